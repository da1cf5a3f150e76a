"""Correlations of the sharpness and curvature of trained networks with their validation loss."""

from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from symmetrax.objectives._landscape import Curvature, Sharpness
from symmetrax.studies._generalization_moves import symmetries_of
from symmetrax.studies.core._statistics import LEVEL

SOURCE = "arXiv:2305.13404, section 4"


def correlation(x: np.ndarray, y: np.ndarray, seed: int = 0, draws: int = 2000) -> dict[str, Any]:
    """Pearson's r, its interval by Fisher's z and by a bootstrap over runs, and Spearman's rank correlation.

    >>> found = correlation(np.arange(10.0), np.arange(10.0) ** 2)
    >>> round(found["r"], 3), round(found["rank"], 3)
    (0.963, 1.0)
    """
    r = float(np.corrcoef(x, y)[0, 1])
    half = scipy.stats.norm.ppf((1 + LEVEL) / 2) / np.sqrt(len(x) - 3)
    low, high = np.tanh(np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12)) + np.array([-half, half]))
    rows = np.random.default_rng(seed).integers(len(x), size=(draws, len(x)))
    xs, ys = x[rows], y[rows]
    xs, ys = (v - v.mean(axis=1, keepdims=True) for v in (xs, ys))
    drawn = np.sum(xs * ys, 1) / np.sqrt(np.sum(xs**2, 1) * np.sum(ys**2, 1))
    ends = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    rank = float(np.corrcoef(scipy.stats.rankdata(x), scipy.stats.rankdata(y))[0, 1])
    return {
        "runs": len(x),
        "r": r,
        "low": float(low),
        "high": float(high),
        "bootstrap_low": float(ends[0]),
        "bootstrap_high": float(ends[1]),
        "rank": rank,
    }


@eqx.filter_jit
def _measures(task, rollouts):
    """Sharpness and curvature of trained networks, from parameters and the data of keys."""

    def one(inputs):
        params, data = inputs
        images, drawn = jax.random.split(jax.random.fold_in(jax.random.wrap_key_data(data), 2_000_000))
        rows = jax.random.permutation(images, len(task.train.labels))[:200]
        batch = (jnp.asarray(task.train.pixels)[rows], jnp.asarray(task.train.labels)[rows])

        def value_fn(w):
            return task.loss(w, batch)

        mean = Sharpness(drawn, 16, jnp.linspace(0.001, 0.191, 8))(value_fn, params)
        measures = {"sharpness, as published": mean, "sharpness above the loss": mean - value_fn(params)}
        for way, symmetry in symmetries_of(task).items():
            # One curve after another: decompositions beside other products can block each other.
            one_curve = lambda key, of=symmetry: Curvature(of, key, 1, batch)(value_fn, params)  # noqa: E731
            measures[f"curvature, {way}"] = jnp.mean(jax.lax.map(one_curve, jax.random.split(drawn, 100)))
        return measures

    return jax.lax.map(one, rollouts)


def _correlation_verdicts(found: dict[str, Any], data: str) -> Iterator[dict[str, str]]:
    """Whether the measures go with the validation loss as claimed."""
    for name, sign, claim in (
        ("sharpness, as published", 1, "flatter points have a lower validation loss"),
        ("sharpness above the loss", 1, "flatter points, the loss subtracted, have a lower validation loss"),
        ("curvature, action", -1, "more curved points have a lower validation loss"),
    ):
        row = found[name]
        agrees, opposes = (row["low"] > 0, row["high"] < 0)[::sign]
        outcome = "reproduced" if agrees else "reversed" if opposes else "inconclusive"
        why = f"Pearson's r {row['r']:+.2f} (95 % interval {row['low']:+.2f} to {row['high']:+.2f})"
        yield {"claim": f"{claim} ({data})", "source": SOURCE, "outcome": outcome, "why": why}
