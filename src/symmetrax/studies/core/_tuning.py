"""The hyperparameters of hand-made arms: chosen on the training stream, never on the tasks reported."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from symmetrax.rollout._unroll import MakeTransform
from symmetrax.studies.core._arm import Tuned
from symmetrax.studies.core._runs import Runs, run_many
from symmetrax.studies.core._statistics import DIVERGED, FLOOR
from symmetrax.tasks._base import AbstractTask, AbstractTaskFamily

#: Tuning may run so many times the tasks it needs, if it then shares the program that runs an arm.
SPARE = 3


def tune(
    arms: Sequence[Tuned],
    family: AbstractTaskFamily,
    key: Key[Array, ""],
    *,
    horizons: tuple[int, ...],
    tasks: int,
    shape: Any = None,
    floor: float = FLOOR,
    score: float = 0.5,
    measure: Callable[[AbstractTask, PyTree], dict[str, Array]] | None = None,
    by: str = "",
    watch: tuple[str, ...] = (),
    block: tuple[int, int] | None = None,
) -> dict[int, dict[str, dict[str, float]]]:
    """For every horizon and arm, the hyperparameters of the lowest median loss over `tasks` training tasks.

    All points of the grid run together, to the last horizon. Below `floor` times the first loss all are
    equal, as in comparisons; of equal medians the one wins with fewer diverged runs, and then the one with
    the lower mean of logarithms. `score` is another quantile than the median: the median is often lowest
    where just under half of the runs diverge, and on other tasks it may be more than half of them.

    With `measure`, that of `run_many`, and `by` it is the median of what it calls `by` after the last horizon
    that is the lowest, for instance of the loss on all data where steps see minibatches. `block` are the
    numbers of seeds and tasks of a program that will run the arms with the same `watch` and `measure`: points
    then go through that program, so many at a time, and nothing is compiled for tuning alone.

    >>> import jax, symmetrax as sx
    >>> from symmetrax.studies.core._hand_made import descent
    >>> arm = Tuned("gd", descent, rates=(1e-3, 0.05, 3.0), momenta=(0.0,))
    >>> found = tune([arm], sx.tasks.make_family("booth"), jax.random.key(0), horizons=(1, 12), tasks=16)
    >>> {steps: round(best["gd"]["rate"], 3) for steps, best in found.items()}
    {1: 0.05, 12: 0.05}
    """
    best: dict[int, dict[str, dict[str, float]]] = {steps: {} for steps in horizons}
    if by:  # not the tasks on which validation or controls draw their numbers
        key = jax.random.fold_in(jax.random.fold_in(key, 3), 0)
    options: dict[str, Any] = {"steps": max(horizons), "shape": shape, "watch": watch, "measure": measure}
    for sharing in _sharing(arms):
        pairs = sorted({pair for arm in sharing for pair in itertools.product(arm.rates, arm.momenta)})
        if len(pairs) == 1:  # nothing to choose
            ((rate, momentum),) = pairs
            for found in best.values():
                found |= {arm.name: {"rate": rate, "momentum": momentum} for arm in sharing}
            continue
        rates, momenta = (np.asarray(values, np.float32) for values in zip(*pairs, strict=True))
        points = {**for_seeds(sharing[0].fixed, len(pairs)), "rate": rates, "momentum": momenta}
        ran = _run_points(sharing[0].make, points, family, key, tasks, block, options)
        if by:
            last = ran.measured[by]
            finals = np.where(np.isfinite(last), last.astype(float), 1e300)  # between infinities lies NaN
            scores = [np.quantile(finals, score, axis=1).tolist()] * len(horizons)
        else:
            first = ran.losses[..., 0]
            scores = [_scores(ran.losses[..., steps], first, floor, score) for steps in horizons]
        for steps, there in zip(horizons, scores, strict=True):
            quality: dict[Any, Any] = dict(zip(pairs, there, strict=True))
            for arm in sharing:
                rate, momentum = min(itertools.product(arm.rates, arm.momenta), key=quality.__getitem__)
                best[steps][arm.name] = {"rate": rate, "momentum": momentum}
    return best


def _run_points(
    make: MakeTransform,
    points: Mapping[str, Any],
    family: AbstractTaskFamily,
    key: Key[Array, ""],
    tasks: int,
    block: tuple[int, int] | None,
    options: Mapping[str, Any],
) -> Runs:
    """The runs of all points of a grid on the same tasks, a point in place of a seed."""
    count = len(points["rate"])
    size, together = block or (count, tasks)
    if not tasks <= together <= SPARE * tasks:
        size, together = count, tasks
    found = []
    for start in range(0, count, size):
        own = np.minimum(np.arange(start, start + size), count - 1)  # the last point fills the last block
        part = {name: jnp.asarray(np.asarray(x)[own]) for name, x in points.items()}
        keys = jnp.broadcast_to(key, size)
        found.append(run_many(make, part, family, keys, tasks=together, parts=None, timings=0, **options))
    # Tasks depend on the key and their number alone: the first are those of fewer tasks.
    losses = np.concatenate([ran.losses[:, :tasks] for ran in found])[:count]
    measured = {
        name: np.concatenate([ran.measured[name][:, :tasks] for ran in found])[:count]
        for name in found[0].measured
    }
    return Runs(losses, {}, measured, sum(ran.seconds for ran in found))


def tune_by_runs(
    arms: Sequence[Tuned],
    run: Callable[[MakeTransform, dict[str, Any]], Runs],
    *,
    horizons: tuple[int, ...],
    score: float = 0.5,
) -> dict[int, dict[str, dict[str, Any]]]:
    """For every horizon and arm, all hyperparameters, those of the lowest median of last losses over first.

    `run(make, hyper)` runs an arm on tuning tasks, one point of the grid after another. Use it in place of
    `tune` where that program is needed anyway, and takes longer to compile than all points to run.

    >>> import jax, symmetrax as sx
    >>> from symmetrax.studies.core._hand_made import descent
    >>> def run(make, hyper):
    ...     given = for_seeds(hyper, 1), sx.tasks.make_family("booth"), jax.random.key(0)[None]
    ...     return run_many(make, *given, steps=12, tasks=16, parts=1)
    >>> tune_by_runs([Tuned("gd", descent, (1e-3, 0.05, 3.0), (0.0,))], run, horizons=(12,))
    {12: {'gd': {'rate': 0.05, 'momentum': 0.0}}}
    """
    best: dict[int, dict[str, dict[str, Any]]] = {steps: {} for steps in horizons}
    for arm in arms:
        points = list(itertools.product(arm.rates, arm.momenta))
        found = []
        for rate, momentum in points:
            losses = run(arm.make, {**arm.fixed, "rate": rate, "momentum": momentum}).losses
            with np.errstate(over="ignore", invalid="ignore"):
                found.append((losses / losses[..., :1]).reshape(-1, losses.shape[-1]))
        for steps in horizons:
            there = np.stack([losses[:, steps] for losses in found])
            scores = _scores(there, np.ones(there.shape[1:]), FLOOR, score)
            rate, momentum = points[min(range(len(points)), key=scores.__getitem__)]
            best[steps][arm.name] = {**arm.fixed, "rate": rate, "momentum": momentum}
    return best


def for_seeds(hyper: Mapping[str, Any], seeds: int) -> dict[str, Array]:
    """Hyperparameters as `run_many` wants them: arrays whose first axis is the seed.

    >>> for_seeds({"rate": 0.1, "when": (True, False)}, 3)["when"].shape
    (3, 2)
    """
    arrays = {name: jnp.asarray(value) for name, value in hyper.items()}
    # Python's numbers are weakly typed, and would compile programs of their own.
    return {k: jnp.full((seeds, *x.shape), x, x.dtype) for k, x in arrays.items()}


def _sharing(arms: Sequence[Tuned]) -> list[list[Tuned]]:
    """Arms that differ only in the values to be tuned."""
    groups: list[list[Tuned]] = []
    for arm in arms:
        same = [g for g in groups if g[0].make is arm.make and g[0].fixed == arm.fixed]
        same[0].append(arm) if same else groups.append([arm])
    return groups


def _scores(
    losses: np.ndarray, first: np.ndarray, floor: float, score: float
) -> list[tuple[float, int, float]]:
    """For each point (the first axis): the median loss, diverged runs, and the mean of logarithms."""
    losses = np.where(np.isfinite(losses), losses, np.inf)
    kept = np.where(losses < floor * first, 0.0, losses)
    medians = np.quantile(kept, score, axis=1, method="inverted_cdf")
    diverged = np.sum(losses > DIVERGED * first, axis=1)
    with np.errstate(over="ignore"):  # what overflows is cut at DIVERGED all the same
        ratios = losses / first
    means = np.mean(np.log(np.clip(ratios, FLOOR, DIVERGED)), axis=1)
    return list(zip(medians.tolist(), diverged.tolist(), means.tolist(), strict=True))
