"""The arms of figure 7: algorithm 3, its predecessors, what transfers, and their controls."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from symmetrax.learned._base import AbstractLearnedOptimizer
from symmetrax.learned._coordinatewise import CoordinatewiseLSTM
from symmetrax.learned._features import Observation, Proposal
from symmetrax.learned._flat_gradient import FlatGradientLSTM
from symmetrax.learned._joint import each_network
from symmetrax.learned._neurons import PerNeuronLSTM
from symmetrax.learned._update_rule import UpdateRule
from symmetrax.studies.core._arm import Build, BuildJoint, Control, Learned, switched_off
from symmetrax.studies.core._control_networks import AbstractControl, Fixed, RandomDirection
from symmetrax.studies.core._run_facts import learned_constant
from symmetrax.studies.core._runs import Runs
from symmetrax.symmetry._base import AbstractLieSymmetry
from symmetrax.tasks._regression import Action, RegressionFamily, Start
from symmetrax.teleportation._guard import Guard
from symmetrax.teleportation._step import Transport

#: The published first step size, in which the learned ones of arXiv:2305.13404 start, too.
FIRST = 1e-4

#: What one of the networks of an arm emits.
Part = Literal["step", "element", "momentum+element", "update", "coordinates", "neurons"]


class Spec(NamedTuple):
    """An arm in words: its networks, the action, and when it teleports.

    `every` is 1 for a teleport at each step, 10 for one at steps 0, 10, 20, ..., and 0 for none: the networks
    and the program are then those of the arm that teleports. None leaves the symmetry out. `learned_size`
    bounds the elements in place of fixing their size.

    >>> SPECS["lr-tele-momentum"].parts
    ('step', 'momentum+element')
    """

    parts: tuple[Part, ...]
    action: Action = "preimage"
    every: int | None = 1
    transport: Transport = "keep"
    as_printed: bool = False
    learned_size: bool = False


_THIRD: tuple[Part, ...] = ("step", "momentum+element")

SPECS = {
    "lr-tele-momentum": Spec(_THIRD),
    "lr-tele": Spec(("step", "element")),
    "lr-momentum": Spec(_THIRD, every=0),
    "lr": Spec(("step",), every=None),
    "update": Spec(("update",), every=None),
    "update-tele": Spec(("update", "element")),
    "coordinates": Spec(("coordinates",), every=None),
    "coordinates-neurons": Spec(("coordinates", "neurons"), "scaling"),
    "as-printed": Spec(_THIRD, every=10, as_printed=True),
    "every-10": Spec(_THIRD, every=10),
    "every-10-carry": Spec(_THIRD, every=10, transport="carry"),
    "every-10-reset": Spec(_THIRD, every=10, transport="reset"),
    "lr-tele-momentum-output": Spec(_THIRD, "output"),
    "lr-tele-momentum-sized": Spec(_THIRD, learned_size=True),
}


@dataclasses.dataclass(frozen=True)
class Networks:
    """Sizes, bounds and outer rates of the networks.

    `rates` are those of the first and the second network of algorithm 3 (step size; momentum and element),
    `update_rates` those of a learned update and of its element. Both are as published, and their roles seem
    swapped: to swap them, swap the numbers. A learned step size lies within `bounds`. `size` is the norm of
    an element's coordinates, or with a learned size `max_norm` their bound; a teleport that changes the loss
    by more than `tolerance` is rejected.

    >>> Networks().rates
    (0.0001, 0.001)
    """

    units: int = 20
    width: int = 300
    bounds: tuple[float, float] = (1e-7, 5e-3)
    rates: tuple[float, float] = (1e-4, 1e-3)
    update_rates: tuple[float, float] = (1e-3, 1e-4)
    small_width: int = 20
    small_rate: float = 1e-3
    size: float = 0.01
    max_norm: float = 0.1
    tolerance: float = 1e-3


def family(law: Start, networks: Networks, action: Action = "preimage") -> RegressionFamily:
    """Regressions on random data: "uniform", as published, or "gaussian", centred.

    >>> family("gaussian", Networks(units=4)).dims
    (4, 4, 4)
    """
    n = networks.units
    name = "regression-20" + ("" if law == "uniform" else f"-{law}")
    return RegressionFamily(name, dims=(n, n, n), samples=n, start=law, data=law, action=action)


def learned_arm(name: str, law: Start, networks: Networks, steps: int) -> Learned:
    """The trained arm of this name, for a horizon of `steps` steps.

    >>> arm = learned_arm("every-10", "uniform", Networks(), 100)
    >>> int(arm.rule.schedule.sum())
    10
    """
    spec = SPECS[name]
    guard = Guard(jump=np.inf, tolerance=networks.tolerance)
    rule = UpdateRule(schedule=(), guard=guard)
    if spec.every is not None:
        times = range(0, steps, spec.every) if spec.every else ()
        options: dict[str, Any] = {"transport": spec.transport, "as_printed": spec.as_printed}
        rule = UpdateRule.at(times, steps, guard=guard, **options)
    make = BuildJoint(tuple(_network(part, spec, networks) for part in spec.parts))
    outer = _outer(tuple(_rate(part, spec, networks) for part in spec.parts))
    return Learned(name, make, rule, outer, family(law, networks, spec.action))


def _network(part: Part, spec: Spec, networks: Networks) -> Build:
    if part == "coordinates":
        return Build.of(CoordinatewiseLSTM, width=networks.small_width)
    if part == "neurons":
        return Build.of(PerNeuronLSTM, width=networks.small_width)
    emits = {"step": "step_size", "momentum+element": "momentum", "update": "update"}
    options: dict[str, Any] = {"emits": (emits[part],) if part in emits else ()}
    if part == "step":
        options["rates"] = networks.bounds
    if part in ("element", "momentum+element"):
        options |= {"algebra": networks.units**2, "fixed": not spec.learned_size}
        options["max_norm"] = networks.max_norm if spec.learned_size else networks.size
    return Build.of(FlatGradientLSTM, size=2 * networks.units**2, width=networks.width, **options)


def _rate(part: Part, spec: Spec, networks: Networks) -> float:
    if part in ("coordinates", "neurons"):
        return networks.small_rate
    first, second = networks.update_rates if "update" in spec.parts else networks.rates
    return first if part in ("step", "update") else second


@functools.cache
def _outer(rates: tuple[float, ...]) -> optax.GradientTransformation:
    """One Adam for each network; one object for all arms of these rates, so that they share programs."""
    return each_network(*map(optax.adam, rates))


#: How the names of controls end.
CONTROLS = (
    "off",
    "random",
    "constant",
    "no-momentum",
    "constant-momentum",
    "only-reset",
)


def controls(arm: Learned) -> list[Control]:
    """What is asked of the networks of a trained arm.

    Teleports switched off, or in a random direction, drawn anew at each step; the step size held,
    after a first one of 1e-4, at the median of what was learned; no momentum, or a constant one. Where
    teleports come now and then and reset the velocity: the reset alone.

    >>> [control.name for control in controls(learned_arm("lr-tele", "uniform", Networks(), 100))]
    ['lr-tele-off', 'lr-tele-random', 'lr-tele-constant']
    """
    spec, name, found = SPECS[arm.name], arm.name, []
    if name == "every-10-reset":
        return [Control(f"{name}-only-reset", name, change=lambda n, seen: Fixed(n, algebra=0.0))]
    if spec.every and not spec.as_printed:
        found = [
            Control(f"{name}-off", name, switched_off),
            Control(f"{name}-random", name, change=lambda n, seen: RandomDirection(n)),
        ]
    if name in ("lr", "lr-tele", "lr-momentum", "lr-tele-momentum"):
        found.append(Control(f"{name}-constant", name, change=_constant_step))
    if name == "lr-tele-momentum":
        found.append(Control(f"{name}-no-momentum", name, change=lambda n, seen: Fixed(n, momentum=0.0)))
        found.append(Control(f"{name}-constant-momentum", name, change=_constant_momentum))
    return found


def _constant_step(networks: PyTree, seen: Callable[[], Runs]) -> "ConstantStep":
    return ConstantStep(networks, learned_constant(seen(), "step_size"))


def _constant_momentum(networks: PyTree, seen: Callable[[], Runs]) -> Fixed:
    return Fixed(networks, momentum=learned_constant(seen(), "momentum"))


class ConstantStep(AbstractControl):
    """A network with a constant step size in place of what it emits, but for the first step, of rate 1e-4.

    The published data make the first step special: a rate that is good later turns all units off at first.

    >>> import jax
    >>> network = FlatGradientLSTM(2, emits=("step_size",), width=4, key=jax.random.key(0))
    >>> optimizer = ConstantStep(network, jnp.array(0.5)).transform()
    >>> first, state = optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)), jnp.ones(2))
    >>> second, _ = optimizer.update(jnp.ones(2), state, jnp.ones(2))
    >>> print(f"{first[0]:.4f}, {second[0]:.1f}")
    -0.0001, -0.5
    """

    kind: ClassVar[str] = "constant-step"
    network: AbstractLearnedOptimizer
    step_size: Float[Array, "*seeds"]

    def memory(self, params: PyTree, symmetry: AbstractLieSymmetry | None = None) -> tuple[PyTree, Array]:
        return self.network.memory(params, symmetry), jnp.array(0)

    def propose(
        self, observation: Observation, memory: tuple[PyTree, Array]
    ) -> tuple[Proposal, tuple[PyTree, Array]]:
        own, count = memory
        proposal, own = super().propose(observation, own)
        return proposal._replace(step_size=jnp.where(count == 0, FIRST, self.step_size)), (own, count + 1)

    def change(self, proposal: Proposal, observation: Observation) -> Proposal:
        return proposal
