"""The kinds of arms: learned, tuned, and controls that run a learned arm's networks in another way."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key, PyTree

from symmetrax.learned._base import AbstractLearnedOptimizer
from symmetrax.learned._joint import Joint
from symmetrax.learned._update_rule import UpdateRule
from symmetrax.rollout._unroll import MakeTransform
from symmetrax.studies.core._hand_made import MOMENTA, RATES
from symmetrax.tasks._base import AbstractTask

MakeNetwork = Callable[[Key[Array, ""]], AbstractLearnedOptimizer]


class Build(eqx.Module):
    """Builds networks of one class with these options from a key; equal builders share compiled programs.

    >>> from symmetrax.learned._flat_gradient import FlatGradientLSTM
    >>> Build.of(FlatGradientLSTM, size=2, width=4)(jax.random.key(0)).width
    4
    """

    kind: Callable[..., AbstractLearnedOptimizer] = eqx.field(static=True)
    options: tuple[tuple[str, Any], ...] = eqx.field(static=True)

    @classmethod
    def of(cls, kind: Callable[..., AbstractLearnedOptimizer], **options: Any) -> "Build":
        """Options must be hashable: tuples, not lists."""
        return cls(kind, tuple(sorted(options.items())))

    def __call__(self, key: Key[Array, ""]) -> AbstractLearnedOptimizer:
        return self.kind(**dict(self.options), key=key)


class BuildJoint(eqx.Module):
    """Builds several networks that work as one optimizer, each from its own key: see `Joint`.

    The i-th network depends on the key and i alone, so that arms with the same first network start equal.

    >>> from symmetrax.learned._flat_gradient import FlatGradientLSTM
    >>> step = Build.of(FlatGradientLSTM, size=2, width=4, emits=("step_size",))
    >>> element = Build.of(FlatGradientLSTM, size=2, width=4, emits=(), algebra=1)
    >>> len(BuildJoint((step, element))(jax.random.key(0)).networks)
    2
    """

    parts: tuple[MakeNetwork, ...]

    def __call__(self, key: Key[Array, ""]) -> Joint:
        return Joint(tuple(part(jax.random.fold_in(key, i)) for i, part in enumerate(self.parts)))


#: The outer optimizer of arms that name none; one object, so that they share compiled programs.
OUTER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(3e-3))


def _same_networks(networks: PyTree, seen: Any = None) -> PyTree:
    return networks


@dataclasses.dataclass(frozen=True)
class Learned:
    """A learned optimizer: how its network is built, meta-trained, and used on unseen tasks.

    `make(key)` builds the network, `rule` is its use in training (by default a teleport at every step, if the
    network proposes elements), and `outer` the optimizer of its weights (by default Adam at 3e-3 with clipped
    gradients). On unseen tasks it is used by `used(steps)`, or else by `rule`.
    `family` is given where arms see one law of tasks with different symmetries, `trained_on` where training
    sees other tasks than those reported (fewer shapes, or scaled at random), `budget` where the arm is
    trained otherwise than the others of its study. `extra` counts the gradients that a step costs beside the
    one at its end, and `saved` says whether the network of the first meta-seed is written as an artifact.
    `wrapped(networks)` is what runs on unseen tasks in place of the trained networks, and what controls
    change: with a network whose changes are numbers, an arm and all its controls share one program.
    Arms that have equal builders, rules but for arrays, and one `outer` object, share compiled programs.

    >>> from symmetrax.learned._flat_gradient import FlatGradientLSTM
    >>> build = Build.of(FlatGradientLSTM, size=2)
    >>> Learned("update", build).rule.teleports
    True
    """

    name: str
    make: MakeNetwork
    rule: UpdateRule = UpdateRule()  # noqa: RUF009 (frozen)
    outer: optax.GradientTransformation = OUTER
    family: Any = None
    used: Callable[[int], UpdateRule] | None = None
    budget: Any = None
    extra: float = 0.0
    saved: bool = True
    trained_on: Any = None
    wrapped: Callable[[PyTree], PyTree] = _same_networks

    def rule_for(self, steps: int) -> UpdateRule:
        """The rule on unseen tasks of so many steps."""
        return self.rule if self.used is None else self.used(steps)


def _same_rule(rule: UpdateRule) -> UpdateRule:
    return rule


def _no_facts(networks: PyTree) -> dict[str, Any]:
    return {}


@dataclasses.dataclass(frozen=True)
class Control:
    """The networks of the learned arm `of`, or the hyperparameters of a tuned one, used in another way.

    `rule(used)` returns the rule that replaces the arm's, such as `switched_off`, or any other function that
    makes an optimizer; for a tuned arm `used` is its `make`. `change(networks, seen)` returns what is run in
    place of the networks (which are stacked over seeds), for instance `RandomDirection(networks)`; `seen()`
    runs them on tasks of the training stream, from which constants can be taken (see `learned_constant`), and
    `seen(shape)` on those of one shape; `change` may return networks by shape. `extra` counts gradients as
    that of the arm does, by default as many. `describe` returns facts about what `change` returned.

    >>> Control("teleport-off", of="teleport", rule=switched_off).of
    'teleport'
    """

    name: str
    of: str
    rule: Callable[[Any], Any] = _same_rule
    change: Callable[[PyTree, Callable[..., Any]], PyTree] = _same_networks
    extra: float | None = None
    describe: Callable[[PyTree], dict[str, Any]] = _no_facts


def switched_off(rule: UpdateRule) -> UpdateRule:
    """The same rule, with no teleport due at any step; it shares compiled programs with the first.

    >>> switched_off(UpdateRule.at((0, 2), 4)).schedule.tolist()
    [False, False, False, False]
    """
    if not rule.teleports:
        return rule
    due: Any = rule.schedule
    flags = isinstance(due, jax.Array) and due.dtype == bool
    return dataclasses.replace(rule, schedule=jnp.zeros_like(due) if flags else [False])


@dataclasses.dataclass(frozen=True)
class Tuned:
    """A hand-made optimizer, `make(hyperparameters, task)`, and where its hyperparameters come from.

    They are "rate" and "momentum" (b1 of Adam), each tuned over these values; arms of one `make` share the
    program that tunes them. `extra(task)` is the number of gradient evaluations per step beside the one at
    the new point that every optimizer needs; `counts` is the name under which the optimizer's state has a
    number of further ones, such as the trials of a line search. `fixed` are further hyperparameters, which
    are not tuned: numbers, or tuples of them. With `anew` it is tuned on every test of its study, where other
    arms keep what was best on their own family.

    >>> from symmetrax.studies.core._hand_made import descent
    >>> Tuned("gd", descent, momenta=(0.0,)).rates[0]
    0.001
    """

    name: str
    make: MakeTransform
    rates: tuple[float, ...] = tuple(RATES.tolist())
    momenta: tuple[float, ...] = tuple(MOMENTA.tolist())
    extra: Callable[[AbstractTask], float | int] = lambda task: 0
    counts: str | None = None
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    anew: bool = False
