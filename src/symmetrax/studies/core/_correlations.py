"""Does one number of a teleport go with another? Correlations that clocks do not explain, with intervals.

Two quantities of the steps of a run drift with time, and are correlated for that reason alone. So the plain
correlation stands beside two controls: the correlation at equal step (the partial correlation given the step
number), and that with the first quantity of another run, which has the same clock and nothing else.
"""

from typing import Literal, NamedTuple

import numpy as np
import scipy.stats
from jaxtyping import Float

from symmetrax.studies.core._statistics import t_interval

#: Quantities of every teleport: seeds, runs of one seed, teleports of one run; NaN where there is none.
Events = Float[np.ndarray, "seeds runs events"]

Kind = Literal["spearman", "pearson"]

#: Correlations nearer to 1 than this are counted as this far: a perfect one has no finite Fisher transform.
CLOSEST = 1e-6

#: What `correlations` finds of every kind.
MEASURES = ("within runs", "within runs, other run", "across", "across, other run", "at equal step")


class Correlation(NamedTuple):
    """A mean correlation over meta-seeds, and its 95 % interval.

    >>> Correlation(mean=0.5, low=0.2, high=0.7).low
    0.2
    """

    mean: float
    low: float
    high: float


def fisher_interval(values: Float[np.ndarray, " seeds"]) -> Correlation:
    """The mean of one correlation for each seed, and a t-interval, both on Fisher's scale z = artanh(r).

    Seeds without a correlation (NaN) are left out; with fewer than two others the interval is all of [-1, 1].

    >>> found = fisher_interval(np.array([0.4, 0.5, 0.6]))
    >>> [round(x, 2) for x in found]
    [0.5, 0.22, 0.71]
    """
    z = np.arctanh(np.clip(values[np.isfinite(values)], -1 + CLOSEST, 1 - CLOSEST))
    if len(z) == 0:
        return Correlation(np.nan, -1.0, 1.0)
    return Correlation(*(float(np.tanh(x)) for x in (np.mean(z), *t_interval(z))))


def correlations(x: Events, y: Events, kind: Kind) -> dict[str, Float[np.ndarray, " seeds"]]:
    """For every seed, the correlation of `x` with `y`: Spearman's, of ranks, or Pearson's, of values.

    - "within runs": over the teleports of a run, then the mean over runs on Fisher's scale;
    - "across": over all teleports of all runs;
    - "at equal step": over all teleports, with the mean over runs at each step taken off both (of the ranks,
      for Spearman's). This is the partial correlation given the step number, taken as a factor, so that a
      drift of any shape is gone;
    - "..., other run": the same with the `x` of another run (the mean over all ways to shift the runs): what
      the common clock alone gives.

    Teleports where either is not finite are left out. A seed has NaN where nothing varies.

    >>> clock = np.arange(20.0)
    >>> noise = np.random.default_rng(0).normal(size=(2, 1, 40, 20))
    >>> found = correlations(clock + noise[0], clock + noise[1], "pearson")
    >>> {name: round(float(found[name][0]), 1) for name in ("across", "across, other run")}
    {'across': 1.0, 'across, other run': 1.0}
    >>> bool(abs(found["at equal step"][0]) < 0.1)
    True
    """
    both = np.isfinite(x) & np.isfinite(y)
    x, y = np.where(both, x, np.nan), np.where(both, y, np.nan)
    found = {
        "within runs": [_within(a, b, kind) for a, b in zip(x, y, strict=True)],
        "across": [_paired(a, b, kind) for a, b in zip(x, y, strict=True)],
        "at equal step": [_at_equal_step(a, b, kind) for a, b in zip(x, y, strict=True)],
    }
    for name, measure in (("within runs", _within), ("across", _paired)):
        found[f"{name}, other run"] = [_shifted(measure, a, b, kind) for a, b in zip(x, y, strict=True)]
    return {name: np.array(found[name], float) for name in MEASURES}


def _paired(x: np.ndarray, y: np.ndarray, kind: Kind) -> float:
    """The correlation of the entries that are finite in both; NaN if one of them does not vary."""
    both = np.isfinite(x) & np.isfinite(y)
    x, y = x[both], y[both]
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return np.nan
    if kind == "spearman":
        x, y = scipy.stats.rankdata(x), scipy.stats.rankdata(y)
    # `scipy.stats.pearsonr` and `spearmanr` also compute p-values, and take up to 13 times as long.
    return float(np.corrcoef(x, y)[0, 1])


def _within(x: np.ndarray, y: np.ndarray, kind: Kind) -> float:
    return _mean([_paired(a, b, kind) for a, b in zip(x, y, strict=True)])


def _at_equal_step(x: np.ndarray, y: np.ndarray, kind: Kind) -> float:
    if kind == "spearman":
        x, y = (scipy.stats.rankdata(v, axis=None, nan_policy="omit").reshape(v.shape) for v in (x, y))
    seen = np.isfinite(x).any(axis=0)
    x, y = x[:, seen], y[:, seen]
    return _paired(x - np.nanmean(x, axis=0), y - np.nanmean(y, axis=0), "pearson")


def _shifted(measure, x: np.ndarray, y: np.ndarray, kind: Kind) -> float:
    return _mean([measure(np.roll(x, shift, axis=0), y, kind) for shift in range(1, len(x))])


def _mean(values: list[float]) -> float:
    """The mean of correlations on Fisher's scale; NaN if there is none."""
    z = np.array(values)
    z = np.arctanh(np.clip(z[np.isfinite(z)], -1 + CLOSEST, 1 - CLOSEST))
    return float(np.tanh(np.mean(z))) if len(z) else np.nan
