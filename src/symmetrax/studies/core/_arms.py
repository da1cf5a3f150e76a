"""Arms and controls: what is compared, and how each of them is trained, tuned and run.

All arms of an experiment meet the same tasks with the same random draws. A *trained* arm is a learned
optimizer; a *control* runs a trained arm's network in another way; a *tuned* arm is hand-made, with
hyperparameters chosen on the training stream, never on the tasks that are reported.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Key, PyTree

from symmetrax.learned._flat_gradient import FlatGradientLSTM
from symmetrax.learned._update_rule import UpdateRule
from symmetrax.metatrain._devices import spread
from symmetrax.rollout._unroll import MakeTransform, Trace, unroll_many
from symmetrax.search._searches import AbstractSearch, Oracle
from symmetrax.studies.core._statistics import DIVERGED, FLOOR
from symmetrax.symmetry._base import AbstractLieSymmetry
from symmetrax.tasks._base import AbstractTask, AbstractTaskFamily
from symmetrax.teleportation._guard import Guard
from symmetrax.teleportation._transform import teleported

#: 25 learning rates from 1e-3 to 3, equally spaced in their logarithm.
RATES = np.geomspace(1e-3, 3, 25)
#: Values of momentum, and of Adam's b1.
MOMENTA = np.array([0.0, 0.3, 0.5, 0.7, 0.8, 0.9])

When = Literal["never", "schedule", "always"]


@dataclasses.dataclass(frozen=True)
class TrainedArm:
    """A learned optimizer: what its network reads, when it teleports, and how it is meta-trained.

    >>> TrainedArm("teleport", teleports="always").uses_algebra
    True
    """

    name: str
    teleports: When = "never"
    guarded: bool = False
    meta_order: int = 1
    inputs: tuple[str, ...] = ()

    @property
    def uses_algebra(self) -> bool:
        """Whether the network emits algebra coordinates."""
        return self.teleports != "never"


@dataclasses.dataclass(frozen=True)
class ControlArm:
    """The network of the trained arm `of`, with its teleports switched off, or in a random direction.

    >>> ControlArm("teleport-off", of="teleport", how="off").how
    'off'
    """

    name: str
    of: str
    how: Literal["off", "random"]


@dataclasses.dataclass(frozen=True)
class TunedArm:
    """A hand-made optimizer, `make(hyperparameters, task)`, and where its hyperparameters come from.

    They are "rate" and "momentum" (b1 of Adam), each tuned over these values; arms of one `make` share the
    program that tunes them. `extra(task)` is the number of gradient evaluations per step beside the one at
    the new point that every optimizer needs.

    >>> TunedArm("gd", descent, momenta=(0.0,)).rates[0]
    0.001
    """

    name: str
    make: MakeTransform
    rates: tuple[float, ...] = tuple(RATES.tolist())
    momenta: tuple[float, ...] = tuple(MOMENTA.tolist())
    extra: Callable[[AbstractTask], float | int] = lambda task: 0


Arm = TrainedArm | ControlArm | TunedArm


def descent(hyper: dict[str, Array], task: AbstractTask) -> optax.GradientTransformation:
    """Gradient descent with momentum.

    >>> import symmetrax as sx
    >>> optimizer = descent({"rate": jnp.array(0.5), "momentum": jnp.array(0.0)}, sx.tasks.booth())
    >>> optimizer.update(jnp.array(1.0), optimizer.init(jnp.array(1.0)))[0].item()
    -0.5
    """
    return optax.sgd(hyper["rate"], momentum=hyper["momentum"])


def adam(hyper: dict[str, Array], task: AbstractTask) -> optax.GradientTransformation:
    """Adam, whose b1 is the hyperparameter "momentum".

    >>> import symmetrax as sx
    >>> optimizer = adam({"rate": jnp.array(0.5), "momentum": jnp.array(0.9)}, sx.tasks.booth())
    >>> round(optimizer.update(jnp.array(3.0), optimizer.init(jnp.array(3.0)))[0].item(), 5)
    -0.5
    """
    return optax.adam(hyper["rate"], b1=hyper["momentum"])


def oracle_descent(hyper: dict[str, Array], task: AbstractTask) -> optax.GradientTransformation:
    """Gradient descent that first goes, unguarded, to the point of the orbit with the largest gradient.

    >>> import symmetrax as sx
    >>> hyper = {"rate": jnp.array(1 / 18), "momentum": jnp.array(0.0)}
    >>> task = sx.tasks.booth()
    >>> trace = sx.unroll(oracle_descent(hyper, task), task, jax.random.key(0), steps=1)
    >>> bool(trace.loss[1] < 1e-6)  # the best rate on the steep axis: solved at once
    True
    """
    return teleported(descent(hyper, task), symmetry_of(task), search=Oracle(), guard=None)


def oracle_evaluations(task: AbstractTask) -> float | int:
    """What the oracle spends per step: its search, and the gradient at the point it finds.

    >>> import symmetrax as sx
    >>> oracle_evaluations(sx.tasks.booth())
    1
    """
    return search_evaluations(Oracle(), task)


def search_evaluations(search: AbstractSearch, task: AbstractTask) -> float | int:
    """What a teleport by `search` spends before a step: the search, and the gradient at the point it finds.

    >>> import symmetrax as sx
    >>> search_evaluations(sx.search.SinusoidPeak(), sx.tasks.booth())
    5
    """
    return 1 + search.evaluations(symmetry_of(task))


def symmetry_of(task: AbstractTask) -> AbstractLieSymmetry:
    """The task's symmetry, for an arm that teleports; ValueError if it describes none.

    >>> import symmetrax as sx
    >>> symmetry_of(sx.tasks.booth()).algebra
    (1,)
    """
    symmetry = task.symmetry()
    if symmetry is None:
        raise ValueError(f"This arm teleports, and {type(task).__name__} describes no symmetry.")
    return symmetry


class MakeFlatGradient(eqx.Module):
    """Builds a `FlatGradientLSTM` from a key; equal builders are equal to the compiler, so arms share
    programs.

    >>> MakeFlatGradient(size=2, width=4)(jax.random.key(0)).width
    4
    """

    size: int = eqx.field(static=True)
    algebra: int = eqx.field(static=True, default=0)
    width: int = eqx.field(static=True, default=100)
    depth: int = eqx.field(static=True, default=2)
    inputs: tuple[str, ...] = eqx.field(static=True, default=())

    def __call__(self, key: Key[Array, ""]) -> FlatGradientLSTM:
        return FlatGradientLSTM(
            self.size,
            algebra=self.algebra,
            width=self.width,
            depth=self.depth,
            inputs=self.inputs,
            key=key,
        )


def rule_of(
    arm: TrainedArm, schedule: tuple[int, ...], steps: int, *, training: bool, off: bool = False
) -> UpdateRule:
    """How the network of an arm is used: which of `steps` steps teleport, guarded or not.

    The order of the meta-gradient matters to training alone; leaving it out of test rules lets arms share
    compiled programs.

    >>> rule_of(TrainedArm("teleport-schedule", "schedule"), (2,), 4, training=False).schedule.tolist()
    [False, False, True, False]
    """
    teleports = ()
    if arm.uses_algebra:
        on = {"always": range(steps), "schedule": schedule, "never": ()}[arm.teleports]
        teleports = np.zeros(steps, bool)
        teleports[[] if off else [t for t in on if t < steps]] = True
        teleports = jnp.asarray(teleports)
    guard = Guard(tolerance=1e-3) if arm.guarded else None
    return UpdateRule(teleports, guard, arm.meta_order if training else 1)


def tune(
    arms: list[TunedArm],
    family: AbstractTaskFamily,
    key: Key[Array, ""],
    *,
    steps: int,
    tasks: int,
    shape: Any = None,
) -> dict[str, dict[str, float]]:
    """For every arm, the hyperparameters with the lowest median final loss over `tasks` training tasks.

    >>> import symmetrax as sx
    >>> arm = TunedArm("gd", descent, rates=(1e-3, 0.05, 3.0), momenta=(0.0,))
    >>> found = tune([arm], sx.tasks.make_family("booth"), jax.random.key(0), steps=12, tasks=16)
    >>> round(found["gd"]["rate"], 3)
    0.05
    """
    return tune_at(arms, family, key, horizons=(steps,), tasks=tasks, shape=shape, floor=0.0)[steps]


def tune_at(
    arms: Sequence[TunedArm],
    family: AbstractTaskFamily,
    key: Key[Array, ""],
    *,
    horizons: tuple[int, ...],
    tasks: int,
    shape: Any = None,
    floor: float = FLOOR,
) -> dict[int, dict[str, dict[str, float]]]:
    """`tune` for several horizons, from runs to the last of them: hyperparameters by horizon and arm.

    Below `floor` times the first loss all are equal, as in comparisons; of equal medians the one wins with
    fewer diverged runs, and then that with the lower mean of logarithms.

    >>> import symmetrax as sx
    >>> arm = TunedArm("gd", descent, rates=(1e-3, 0.05, 3.0), momenta=(0.0,))
    >>> found = tune_at([arm], sx.tasks.make_family("booth"), jax.random.key(0), horizons=(1, 12), tasks=16)
    >>> {steps: round(best["gd"]["rate"], 3) for steps, best in found.items()}
    {1: 0.05, 12: 0.05}
    """
    best: dict[int, dict[str, dict[str, float]]] = {steps: {} for steps in horizons}
    for make in dict.fromkeys(arm.make for arm in arms):
        sharing = [arm for arm in arms if arm.make is make]
        pairs = sorted({pair for arm in sharing for pair in itertools.product(arm.rates, arm.momenta)})
        rates, momenta = (jnp.asarray(values) for values in zip(*pairs, strict=True))
        points = {"rate": rates, "momentum": momenta}
        first, *losses = np.moveaxis(
            np.asarray(_losses(make, points, family, key, (0, *horizons), tasks, shape)), 1, 0
        )
        for steps, there in zip(horizons, losses, strict=True):
            scores = dict(zip(pairs, _scores(there, first, floor), strict=True))
            for arm in sharing:
                rate, momentum = min(itertools.product(arm.rates, arm.momenta), key=scores.__getitem__)
                best[steps][arm.name] = {"rate": rate, "momentum": momentum}
    return best


def _scores(losses: np.ndarray, first: np.ndarray, floor: float) -> list[tuple[float, int, float]]:
    """For each point (the first axis): the median loss, diverged runs, and the mean of logarithms."""
    losses = np.where(np.isfinite(losses), losses, np.inf)
    kept = np.where(losses < floor * first, 0.0, losses)
    medians = np.quantile(kept, 0.5, axis=1, method="inverted_cdf")
    diverged = np.sum(losses > DIVERGED * first, axis=1)
    with np.errstate(over="ignore"):  # what overflows is cut at DIVERGED all the same
        ratios = losses / first
    means = np.mean(np.log(np.clip(ratios, FLOOR, DIVERGED)), axis=1)
    return list(zip(medians.tolist(), diverged.tolist(), means.tolist(), strict=True))


@eqx.filter_jit
def _losses(make, points, family, key, horizons, tasks, shape):
    """Losses after each of `horizons` steps: points, horizons, tasks."""

    def one(hyper):
        losses = unroll_many(make, hyper, family, key, max(horizons), tasks, shape=shape).loss
        return losses[jnp.asarray(horizons)].reshape(len(horizons), tasks)  # one task has no axis of its own

    return spread(one, points)


def evaluate(
    make: MakeTransform,
    networks: PyTree,
    family: AbstractTaskFamily,
    keys: Key[Array, " seeds"],
    *,
    steps: int,
    tasks: int,
    shape: Any = None,
    watch: tuple[str, ...] = (),
    points: bool = False,
) -> tuple[Trace, float]:
    """Unroll every seed's network on that seed's `tasks` tasks; also the seconds it takes once compiled.

    `networks` and `keys` have the seeds as first axis; so has the trace, then steps, then tasks.

    >>> import symmetrax as sx
    >>> hyper = {"rate": jnp.full(3, 0.05), "momentum": jnp.zeros(3)}
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> trace, seconds = evaluate(descent, hyper, sx.tasks.make_family("booth"), keys, steps=12, tasks=10)
    >>> trace.loss.shape
    (3, 13, 10)
    """
    return timed(_evaluate, make, networks, family, keys, steps, tasks, shape, watch, points)


def timed(compiled: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """What a compiled function returns, and the seconds it takes once it is compiled (it is called twice).

    >>> timed(jax.jit(lambda x: x + 1), jnp.array(1.0))[0].item()
    2.0
    """
    jax.block_until_ready(compiled(*arguments))
    began = time.perf_counter()
    result = jax.block_until_ready(compiled(*arguments))
    return result, time.perf_counter() - began


@eqx.filter_jit
def _evaluate(make, networks, family, keys, steps, tasks, shape, watch, points):
    def one(inputs):
        network, key = inputs
        return unroll_many(make, network, family, key, steps, tasks, shape=shape, watch=watch, points=points)

    return spread(one, (networks, keys))
