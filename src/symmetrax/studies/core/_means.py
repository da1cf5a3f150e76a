"""Means over meta-seeds with intervals, verdicts on them, and medians in bins."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from symmetrax.studies.core._console import number
from symmetrax.studies.core._statistics import Interval, t_interval, verdict


def over_seeds(values: Any) -> dict[str, Any]:
    """The mean of one number for each seed, its 95 % t-interval, and the numbers; seeds without one are left
    out.

    >>> {name: np.round(x, 2).tolist() for name, x in over_seeds([1.0, 2.0, 3.0]).items()}
    {'mean': 2.0, 'low': -0.48, 'high': 4.48, 'seeds': [1.0, 2.0, 3.0]}
    """
    values = np.asarray(values, float)
    kept = values[np.isfinite(values)]
    low, high = t_interval(kept) if len(kept) else (-np.inf, np.inf)
    mean = float(np.mean(kept)) if len(kept) else np.nan
    return {"mean": mean, "low": low, "high": high, "seeds": values.tolist()}


def by_seed(measure: Callable[..., float], *arrays: np.ndarray) -> Sequence[float]:
    """`measure(*entries)` for every entry of the first axes.

    >>> by_seed(lambda a, b: float(a + b), np.array([1.0, 2.0]), np.array([3.0, 4.0]))
    [4.0, 6.0]
    """
    return [measure(*entries) for entries in zip(*arrays, strict=True)]


def judged(
    claim: str, source: str, entry: dict[str, Any], why: str, *, least: float = 0.0, negative: bool = False
) -> dict[str, Any]:
    """The verdict that a mean over seeds is above `least` (`negative`: below it), for this reason.

    >>> judged("it helps", "here", {"mean": 0.9, "low": 0.85, "high": 0.95}, "0.9", least=0.8)["outcome"]
    'reproduced'
    """
    interval = Interval(*(number(entry[key]) - least for key in ("mean", "low", "high")))
    return {**verdict(claim, source, interval, negative=negative), "why": why}


def binned(x: np.ndarray, y: np.ndarray, bins: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Medians of `x` and `y` in bins of equally many points, in the order of `x`.

    >>> binned(np.array([2.0, 1.0, 4.0, 3.0]), np.array([20.0, 10.0, 40.0, 30.0]), bins=2)
    (array([1.5, 3.5]), array([15., 35.]))
    """
    parts = np.array_split(np.argsort(x, kind="stable"), min(bins, len(x)))
    in_x, in_y = (np.array([np.median(values[part]) for part in parts]) for values in (x, y))
    return in_x, in_y
