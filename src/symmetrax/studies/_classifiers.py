"""Learned optimizers of classifiers: the arms of `classification`, and what is measured where a run ends.

Three kinds of networks. *lr*: a step size, alone or with momentum, from a few global features, and group
elements from an LSTM shared by all hidden units, so that they serve networks of any size. *update*: the
coordinate-wise LSTM, with or without the same. *whole*: the two LSTMs over the whole gradient of algorithm 3,
for one size.
"""

import dataclasses
import functools
import math
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, PyTree

from symmetrax.learned._base import AbstractLearnedOptimizer
from symmetrax.learned._coordinatewise import CoordinatewiseLSTM
from symmetrax.learned._features import Observation, Proposal
from symmetrax.learned._flat_gradient import FlatGradientLSTM
from symmetrax.learned._joint import each_network
from symmetrax.learned._neurons import PerNeuronLSTM
from symmetrax.learned._step import StepLSTM
from symmetrax.learned._update_rule import UpdateRule
from symmetrax.studies.core._arm import Build, BuildJoint, Control, Learned, switched_off
from symmetrax.studies.core._control_networks import AbstractControl, RandomDirection
from symmetrax.studies.core._hand_made import MOMENTA, adam, descent
from symmetrax.studies.core._run_facts import learned_constant
from symmetrax.studies.core._runs import Runs
from symmetrax.tasks._base import AbstractTask
from symmetrax.tasks._data import Images, digits, mnist
from symmetrax.tasks._supervised import Classification, ImageFamily, Widths
from symmetrax.teleportation._guard import Guard
from symmetrax.teleportation._step import Transport

#: Bounds of the step sizes of networks for one size: the learning rates among which baselines are tuned.
RATES = (1e-3, 3.0)

How = Literal["off", "random", "constant", "identity"]


@dataclasses.dataclass(frozen=True)
class Trains:
    """What a learned arm emits beside its step, and what becomes of its velocity at a teleport.

    >>> Trains("lr", momentum=True).teleports
    False
    """

    step: Literal["lr", "update", "whole"]
    teleports: bool = False
    momentum: bool = False
    transport: Transport = "keep"


TRAINED = {
    "lr": Trains("lr"),
    "lr-momentum": Trains("lr", momentum=True),
    "lr-tele": Trains("lr", teleports=True),
    "lr-tele-momentum": Trains("lr", teleports=True, momentum=True),
    "lr-tele-momentum-carry": Trains("lr", teleports=True, momentum=True, transport="carry"),
    "lr-tele-momentum-reset": Trains("lr", teleports=True, momentum=True, transport="reset"),
    "update": Trains("update"),
    "update-tele": Trains("update", teleports=True),
    "whole-lr": Trains("whole"),
    "whole-lr-tele": Trains("whole", teleports=True),
    "whole-lr-tele-momentum": Trains("whole", teleports=True, momentum=True),
}

#: The networks of a trained arm, run in another way: no teleport is due ("off"); elements keep their size and
#: are random; step size and momentum stay at their medians on the training stream ("constant"); every element
#: is the identity, so that of a teleport only the reset of the velocity is left.
CONTROLS: dict[str, tuple[str, How]] = {
    "lr-constant": ("lr", "constant"),
    "lr-tele-off": ("lr-tele", "off"),
    "lr-tele-random": ("lr-tele", "random"),
    "lr-tele-constant": ("lr-tele", "constant"),
    "lr-tele-momentum-off": ("lr-tele-momentum", "off"),
    "lr-tele-momentum-random": ("lr-tele-momentum", "random"),
    "lr-tele-momentum-constant": ("lr-tele-momentum", "constant"),
    "lr-tele-momentum-reset-identity": ("lr-tele-momentum-reset", "identity"),
    "update-tele-off": ("update-tele", "off"),
    "update-tele-random": ("update-tele", "random"),
    "whole-lr-tele-off": ("whole-lr-tele", "off"),
    "whole-lr-tele-random": ("whole-lr-tele", "random"),
    "whole-lr-tele-momentum-off": ("whole-lr-tele-momentum", "off"),
    "whole-lr-tele-momentum-random": ("whole-lr-tele-momentum", "random"),
}


#: The baselines, and the momenta (b1 of Adam) among which each is tuned, beside 25 rates.
HAND = {
    "sgd": (descent, (0.0,)),
    "momentum": (descent, tuple(MOMENTA.tolist())),
    "adam": (adam, tuple(MOMENTA.tolist())),
}


def with_controls(trained: tuple[str, ...]) -> tuple[str, ...]:
    """Those trained arms, their controls, and the baselines.

    >>> with_controls(("lr",))
    ('lr', 'lr-constant', 'sgd', 'momentum', 'adam')
    """
    return (*trained, *(name for name, (of, _) in CONTROLS.items() if of in trained), *HAND)


class Adjusted(AbstractControl):
    """A network, or one of its controls, by numbers that are arguments of a compiled program: one serves all.

    Coordinates are multiplied by `share` (0: nothing moves) and, where `random`, point in a random direction
    at the same norm; where `held`, step size and momentum are the given ones. `update` needs the extra
    argument `key`. Every field but the network has the seeds first, as the networks have.

    >>> network = Adjusted.plain(StepLSTM(key=jax.random.key(0)), seeds=2)
    >>> network.held.tolist()
    [False, False]
    """

    kind: ClassVar[str] = "adjusted"
    network: AbstractLearnedOptimizer
    share: Float[Array, "*seeds"]
    random: Bool[Array, "*seeds"]
    held: Bool[Array, "*seeds"]
    step_size: Float[Array, "*seeds"]
    momentum: Float[Array, "*seeds"]

    @classmethod
    def plain(cls, networks: AbstractLearnedOptimizer, seeds: int) -> "Adjusted":
        """The networks as they are."""
        no, zero = jnp.zeros(seeds, bool), jnp.zeros(seeds)
        return cls(networks, jnp.ones(seeds), no, no, zero, zero)

    def change(self, proposal: Proposal, observation: Observation) -> Proposal:
        if proposal.step_size is not None:
            proposal = proposal._replace(step_size=jnp.where(self.held, self.step_size, proposal.step_size))
        if proposal.momentum is not None:
            proposal = proposal._replace(momentum=jnp.where(self.held, self.momentum, proposal.momentum))
        if proposal.algebra is not None:
            drawn = RandomDirection(self.network).change(proposal, observation).algebra
            proposal = proposal._replace(algebra=self.share * jnp.where(self.random, drawn, proposal.algebra))
        return proposal


@dataclasses.dataclass(frozen=True)
class Size:
    """How large the learned networks are, and how they are used and trained.

    Teleports come before steps `every`, 2 `every`, ... of `steps`. `width` is that of the LSTMs that serve
    any network, `whole_width` of those over the whole gradient; `rates` are those of the outer Adam, for the
    network that emits the step and for the one that emits the group element.

    >>> Size().schedule
    (5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75, 80, 85, 90, 95)
    """

    steps: int = 100
    every: int = 5
    width: int = 20
    update_width: int = 10
    whole_width: int = 100
    rates: tuple[float, float] = (5e-4, 5e-4)
    update_rates: tuple[float, float] = (3e-3, 1e-3)
    whole_rates: tuple[float, float] = (1e-3, 1e-3)
    clip: float = 0.05
    tolerance: float = 1e-3

    @property
    def schedule(self) -> tuple[int, ...]:
        return tuple(range(self.every, self.steps, self.every))


def image_family(name: str, widths: tuple[Widths, ...], batch: int, title: str = "") -> ImageFamily:
    """ReLU classifiers of "digits" or "mnist" with biases, as the family `title`; images lie on the device.

    Raises ValueError for "mnist" where there are no images.

    >>> image_family("digits", (16, (8, 8)), 64).shapes
    (16, (8, 8))
    """
    sets = {"digits": digits, "mnist": mnist}[name]()
    train, test = (Images(*(jnp.asarray(part) for part in images)) for images in sets)
    return ImageFamily(title or name, train, test, widths, batch)


def trained_arm(name: str, family: ImageFamily, size: Size) -> Learned:
    """The arm `name` of `TRAINED` on a family; an arm of the kind "whole" serves its first width alone.

    >>> trained_arm("lr-tele", image_family("digits", (16,), 64), Size()).rule.transport
    'keep'
    """
    trains = TRAINED[name]
    rule = scheduled(size, trains.transport) if trains.teleports else UpdateRule((), _guard(size))
    if trains.step == "whole":
        builds, rates = _whole(family.task((), family.shapes[0]), trains, size), size.whole_rates
    else:
        builds, rates = _for_any_size(trains, size), size.rates if trains.step == "lr" else size.update_rates
    # Together even if there is one: the networks for the step of all arms of a kind then start equal.
    outer = clipped_adams(rates[: len(builds)], size.clip)
    return Learned(name, BuildJoint(builds), rule, outer, family)


def controls(of: str, widths: tuple[Widths, ...] = ()) -> list[Control]:
    """The controls of a trained arm that runs as `Adjusted` on networks of these widths.

    >>> [control.name for control in controls("lr-tele")]
    ['lr-tele-off', 'lr-tele-random', 'lr-tele-constant']
    """
    return [adjusted(name, of, how, widths) for name, (arm, how) in CONTROLS.items() if arm == of]


def adjusted(name: str, of: str, how: How, widths: tuple[Widths, ...] = ()) -> Control:
    """One control of an arm that runs as `Adjusted`.

    >>> adjusted("lr-tele-off", "lr-tele", "off").rule is switched_off
    True
    """
    if how == "off":
        return Control(name, of, rule=switched_off)
    if how == "constant":
        return Control(name, of, change=functools.partial(_held, widths), describe=_constants)
    return Control(name, of, change=_random if how == "random" else _identity)


def _random(plain: Adjusted, seen: Any) -> Adjusted:
    return dataclasses.replace(plain, random=jnp.ones_like(plain.random))


def _identity(plain: Adjusted, seen: Any) -> Adjusted:
    return dataclasses.replace(plain, share=jnp.zeros_like(plain.share))


def _held(widths: tuple[Widths, ...], plain: Adjusted, seen: Any) -> dict[Widths, Adjusted]:
    """For every width, what each seed's network emits there is held at its medians on the training stream."""
    yes = jnp.ones_like(plain.held)
    return {width: dataclasses.replace(plain, held=yes, **medians(seen(width))) for width in widths}


def _constants(held: dict[Widths, Adjusted]) -> dict[str, Any]:
    """What is held constant, for every width, seed by seed."""
    values = {
        str(width): {"step_size": n.step_size.tolist(), "momentum": n.momentum.tolist()}
        for width, n in held.items()
    }
    return {"constants": values}


def _for_any_size(trains: Trains, size: Size) -> tuple[Build, ...]:
    if trains.step == "update":
        step = Build.of(CoordinatewiseLSTM, width=size.update_width)
    else:
        emits = ("step_size", "momentum") if trains.momentum else ("step_size",)
        step = Build.of(StepLSTM, emits=emits, width=size.width)
    return (step, Build.of(PerNeuronLSTM, width=size.width)) if trains.teleports else (step,)


def _whole(task: Classification, trains: Trains, size: Size) -> tuple[Build, ...]:
    """A network for the step size; one for the group element and, as in algorithm 3, the momentum."""
    params = jax.eval_shape(task.init, jax.random.key(0))
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    build = functools.partial(Build.of, FlatGradientLSTM, size=parameters, width=size.whole_width)
    step = build(emits=("step_size",), rates=RATES)
    if not trains.teleports:
        return (step,)
    (coordinates,) = task.symmetry().algebra
    emits = ("momentum",) if trains.momentum else ()
    # Within the ball in which every unit is scaled by e^(1/2) at most on average, as PerNeuronLSTM has it.
    return step, build(emits=emits, algebra=coordinates, max_norm=0.5 * math.sqrt(coordinates))


def _guard(size: Size) -> Guard:
    """The change of the loss is measured, and no jump is too long: the action is linear and exact."""
    return Guard(jump=jnp.inf, tolerance=size.tolerance)


def scheduled(size: Size, transport: Transport = "keep") -> UpdateRule:
    """Teleports on schedule, each with its change of the loss measured.

    >>> int(scheduled(Size()).schedule.sum())
    19
    """
    return UpdateRule.at(size.schedule, size.steps, guard=_guard(size), transport=transport)


@functools.cache
def clipped_adams(rates: tuple[float, ...], clip: float) -> optax.GradientTransformation:
    """One clipped Adam for each network; arms of equal rates get one object, and so share programs.

    >>> clipped_adams((1e-3,), 1.0) is clipped_adams((1e-3,), 1.0)
    True
    """
    clipped = optax.clip_by_global_norm(clip)
    return each_network(*(optax.chain(clipped, optax.adam(rate)) for rate in rates))


def ends(task: AbstractTask, params: PyTree) -> dict[str, Array]:
    """The loss on all training images and on unseen ones, and the accuracy on the latter."""
    assert isinstance(task, Classification)
    loss, accuracy = task.held_out(params)
    return {"train": task.loss(params, tuple(task.train)), "test": loss, "accuracy": accuracy}


def medians(ran: Runs) -> dict[str, Float[Array, " seeds"]]:
    """For every seed, the medians over runs and steps of what its network emitted.

    >>> recorded = {"step_size": np.ones((2, 3, 4)), "momentum": np.full((2, 3, 4), -1.0)}
    >>> medians(Runs(np.ones((2, 3, 5)), recorded, {}, 0.1))
    {'step_size': Array([1., 1.], dtype=float32)}
    """
    emitted = [name for name in ("step_size", "momentum") if np.all(ran.recorded[name] >= 0)]
    return {name: learned_constant(ran, name) for name in emitted}
