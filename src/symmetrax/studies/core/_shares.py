"""Shares and medians of independent draws, with 95 % intervals: how often, where `_stats` says how much."""

from typing import Any

import numpy as np
import scipy.stats

from symmetrax.studies.core._statistics import LEVEL, Outcome, median_interval, t_interval


def share(hits: Any) -> dict[str, float]:
    """The share of independent draws that are true, with Wilson's interval.

    Also `count`, how many are true, and `of`, how many there are. Without draws the interval is [0, 1].

    >>> found = share([True, True, False, True])
    >>> found["share"], round(found["low"], 2), round(found["high"], 2)
    (0.75, 0.3, 0.95)
    """
    hits = np.asarray(hits, bool).ravel()
    count, of = int(np.sum(hits)), len(hits)
    if of == 0:
        return {"share": float("nan"), "low": 0.0, "high": 1.0, "count": 0, "of": 0}
    bounds = scipy.stats.binomtest(count, of).proportion_ci(LEVEL, method="wilson")
    low, high = float(bounds.low), float(bounds.high)
    return {"share": count / of, "low": low, "high": high, "count": count, "of": of}


def middle(values: Any) -> dict[str, float]:
    """The median of independent draws with an interval between two of them, exact for any distribution.

    What is not finite counts as infinite; with fewer than six draws the interval is the whole line.

    >>> found = middle(range(101))
    >>> found["median"], found["low"], found["high"]
    (50.0, 40.0, 60.0)
    """
    values = np.asarray(values, float).ravel()
    values = np.where(np.isnan(values), np.inf, values)
    low, high = median_interval(values)
    return {"median": float(np.median(values)) if len(values) else float("nan"), "low": low, "high": high}


def share_text(found: dict[str, float]) -> str:
    """A share in percent and its interval.

    >>> share_text(share([True] * 30 + [False] * 70))
    '30 % (22 to 40)'
    """
    if found["of"] == 0:
        return "-"
    share, low, high = (_percent(found[key]) for key in ("share", "low", "high"))
    return f"{share} % ({low} to {high})"


def _percent(part: float) -> str:
    """Whole percents, but for one digit more near 0 and 100."""
    text = f"{100 * part:.0f}" if 0.05 <= part <= 0.95 else f"{100 * part:.1f}"
    return text.removesuffix(".0")


def share_verdict(
    claim: str, source: str, found: dict[str, float], above: float | int = 0.5
) -> dict[str, str]:
    """A claim that something is so for more than the share `above` of all draws.

    It is `reproduced` when the whole interval lies above, `reversed` when it lies below. With `above` 1 the
    claim is that it is so in every draw: one exception reverses it.

    >>> share_verdict("heads", "a coin", share([True] * 90 + [False] * 10))["outcome"]
    'reproduced'
    """
    agrees = found["count"] == found["of"] > 0 if above == 1 else found["low"] > above
    below = not agrees if above == 1 else found["high"] < above
    outcome: Outcome = "reproduced" if agrees else "reversed" if below else "inconclusive"
    why = f"{found['count']:,} of {found['of']:,} draws, {share_text(found)}"
    return {"claim": claim, "source": source, "outcome": outcome, "why": why}


def average(values: Any) -> dict[str, float]:
    """The mean of independent draws with a t-interval; with fewer than two the interval is the whole line.

    >>> average([0.0, 1.0, 0.0, 1.0])["mean"]
    0.5
    """
    values = np.asarray(values, float).ravel()
    mean = float(np.mean(values)) if len(values) else float("nan")
    low, high = t_interval(values)
    return {"mean": mean, "low": low, "high": high}
