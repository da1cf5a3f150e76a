"""The hyperparameters of hand-made arms: chosen on the training stream, never on the tasks reported."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from symmetrax.metatrain._devices import spread
from symmetrax.rollout._unroll import MakeTransform, unroll_many
from symmetrax.studies.core._arm import Tuned
from symmetrax.studies.core._runs import Runs, run_many
from symmetrax.studies.core._statistics import DIVERGED, FLOOR
from symmetrax.tasks._base import AbstractTask, AbstractTaskFamily


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
) -> dict[int, dict[str, dict[str, float]]]:
    """For every horizon and arm, the hyperparameters of the lowest median loss over `tasks` training tasks.

    All points of the grid run together, to the last horizon. Below `floor` times the first loss all are
    equal, as in comparisons; of equal medians the one wins with fewer diverged runs, and then the one with
    the lower mean of logarithms. `score` is another quantile than the median: the median is often lowest
    where just under half of the runs diverge, and on other tasks it may be more than half of them.

    With `measure`, that of `run_many`, it is the median of what it calls `by` after the last horizon that is
    the lowest, for instance of the loss on all data where steps see minibatches.

    >>> import jax, symmetrax as sx
    >>> from symmetrax.studies.core._hand_made import descent
    >>> arm = Tuned("gd", descent, rates=(1e-3, 0.05, 3.0), momenta=(0.0,))
    >>> found = tune([arm], sx.tasks.make_family("booth"), jax.random.key(0), horizons=(1, 12), tasks=16)
    >>> {steps: round(best["gd"]["rate"], 3) for steps, best in found.items()}
    {1: 0.05, 12: 0.05}
    """
    best: dict[int, dict[str, dict[str, float]]] = {steps: {} for steps in horizons}
    for sharing in _sharing(arms):
        make, fixed = sharing[0].make, {k: jnp.asarray(value) for k, value in sharing[0].fixed.items()}
        pairs = sorted({pair for arm in sharing for pair in itertools.product(arm.rates, arm.momenta)})
        rates, momenta = (jnp.asarray(values) for values in zip(*pairs, strict=True))
        points = {"rate": rates, "momentum": momenta}
        if measure is None:
            first, *losses = np.moveaxis(
                np.asarray(_losses(make, points, fixed, family, key, (0, *horizons), tasks, shape)), 1, 0
            )
            scores = [_scores(there, first, floor, score) for there in losses]
        else:
            # Not the tasks on which validation or controls draw their numbers.
            keys = jnp.repeat(jax.random.fold_in(key, 3)[None], len(pairs))
            options: Any = {"steps": max(horizons), "tasks": tasks, "shape": shape, "watch": (), "parts": 1}
            every = for_seeds(sharing[0].fixed, len(pairs)) | points
            found = run_many(make, every, family, keys, measure=measure, **options).measured[by]
            finals = np.where(np.isfinite(found), found.astype(float), 1e300)  # between infinities lies NaN
            scores = [np.quantile(finals, score, axis=1).tolist()] * len(horizons)
        for steps, there in zip(horizons, scores, strict=True):
            quality: dict[Any, Any] = dict(zip(pairs, there, strict=True))
            for arm in sharing:
                rate, momentum = min(itertools.product(arm.rates, arm.momenta), key=quality.__getitem__)
                best[steps][arm.name] = {"rate": rate, "momentum": momentum}
    return best


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


@eqx.filter_jit
def _losses(make, points, fixed, family, key, horizons, tasks, shape):
    """Losses after each of `horizons` steps: points, horizons, tasks."""

    def one(point):
        losses = unroll_many(make, {**fixed, **point}, family, key, max(horizons), tasks, shape=shape).loss
        return losses[jnp.asarray(horizons)].reshape(len(horizons), tasks)  # one task has no axis of its own

    return spread(one, points)
