"""Statistics, fixed once for all experiments.

Every run counts: a loss that is not finite counts as infinite, and a run has diverged when its final loss is
infinite or above 10 f(x_0). Final losses are floored at 1e-12 f(x_0), below which both sides of a comparison
have solved the task. Arms meet the same tasks, so comparisons are paired; the unit of inference is the
meta-seed, since the tasks of one seed share one trained network.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
import scipy.stats
from jaxtyping import Float

FLOOR = 1e-12
DIVERGED = 10.0
#: With at least this many seeds intervals come from a cluster bootstrap, with fewer from a t-distribution.
ENOUGH_SEEDS = 20
LEVEL = 0.95

Losses = Float[np.ndarray, "seeds tasks steps"]


class Interval(NamedTuple):
    """A median paired difference of natural logs of final losses, with its 95 % interval.

    Negative: the first arm is better. `log_ratio` -0.69 says that it halves the loss.

    >>> Interval(log_ratio=-0.69, low=-1.0, high=-0.4).high
    -0.4
    """

    log_ratio: float
    low: float
    high: float


Outcome = Literal["reproduced", "reversed", "inconclusive"]


def finals(losses: Losses) -> Float[np.ndarray, "seeds tasks"]:
    """Final losses, infinite where they are not finite, floored at 1e-12 f(x_0).

    >>> finals(np.array([[[1.0, 0.0], [1.0, np.nan]]])).tolist()
    [[1e-12, inf]]
    """
    last = np.where(np.isfinite(losses[..., -1]), losses[..., -1], np.inf)
    return np.maximum(last.astype(float), FLOOR * losses[..., 0])


def summary(losses: Losses, expected_runs: int) -> dict:
    """Median, quartiles and mean of every step, and the number of diverged runs, over *all* runs.

    Raises ValueError if fewer or more than `expected_runs` runs came in.

    >>> summary(np.array([[[1.0, 0.5], [1.0, 20.0]]]), expected_runs=2)["diverged"]
    1
    """
    runs = losses.reshape(-1, losses.shape[-1]).astype(float)
    if len(runs) != expected_runs:
        raise ValueError(f"Statistics are over all runs: expected {expected_runs}, got {len(runs)}.")
    runs = np.where(np.isfinite(runs), runs, np.inf)
    quartiles = np.quantile(runs, [0.25, 0.5, 0.75], axis=0, method="inverted_cdf")
    return {
        "runs": len(runs),
        "diverged": int(np.sum(runs[:, -1] > DIVERGED * runs[:, 0])),
        **{
            f"loss_{name}": row.tolist()
            for name, row in zip(("q25", "median", "q75"), quartiles, strict=True)
        },
        "loss_mean": np.mean(runs, axis=0).tolist(),
    }


def log_ratios(
    ours: Losses, theirs: Float[np.ndarray, "seeds tasks points"]
) -> Float[np.ndarray, "seeds tasks"]:
    """ln(our final loss / their final loss), run by run; 0 where both diverged. Lengths may differ.

    >>> log_ratios(np.array([[[1.0, 0.5]]]), np.array([[[1.0, 1.0]]])).round(2).tolist()
    [[-0.69]]
    """
    ours, theirs = finals(ours), finals(theirs)
    both = np.isinf(ours) & np.isinf(theirs)
    # Solved against solved is a tie too, but only if both starts are the same: they are, by pairing.
    with np.errstate(divide="ignore", invalid="ignore"):
        difference = np.log(ours) - np.log(theirs)
    return np.where(both | (ours == theirs), 0.0, difference)


def intervals(
    ratios: dict[Any, Float[np.ndarray, "seeds tasks"]], seed: int = 0, draws: int = 1000
) -> dict[Any, Interval]:
    """The median of each array of paired log ratios with a 95 % interval; all arrays have one shape.

    With 20 seeds or more: a cluster bootstrap that resamples seeds, then tasks within each, `draws` times
    (the same resamples for all). With fewer: a t-interval on the medians of the seeds; with one seed the
    interval is the whole line.

    >>> intervals({"a": np.full((3, 4), -1.0)})["a"]
    Interval(log_ratio=-1.0, low=-1.0, high=-1.0)
    """
    if not ratios:
        return {}
    seeds, _ = next(iter(ratios.values())).shape
    bounds = _bootstrap(ratios, seed, draws) if seeds >= ENOUGH_SEEDS else _t_intervals(ratios)
    return {name: Interval(_median(values), *bounds[name]) for name, values in ratios.items()}


def over_tasks(ratios: Float[np.ndarray, "1 tasks"]) -> Interval:
    """The median of one network's paired log ratios, with a 95 % interval over tasks, from order statistics.

    It tells of this network on other tasks, not of others that are trained alike.

    >>> over_tasks(np.linspace(-2.0, 0.0, 101)[None])
    Interval(log_ratio=-1.0, low=-1.2, high=-0.8)
    """
    return Interval(_median(ratios), *median_interval(ratios[0]))


def median_interval(values: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """The 95 % interval of a median, between two of the values; exact for any distribution.

    With fewer than six values it is the whole line.

    >>> median_interval(np.arange(101.0))
    (40.0, 60.0)
    """
    if len(values) == 0:
        return -np.inf, np.inf
    low, high = scipy.stats.quantile_test(values, p=0.5).confidence_interval(LEVEL)
    return (-np.inf if np.isnan(low) else float(low)), (np.inf if np.isnan(high) else float(high))


def t_interval(values: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """The 95 % t-interval of a mean; with fewer than two values it is the whole line.

    >>> [round(x, 2) for x in t_interval(np.array([1.0, 2.0, 3.0]))]
    [-0.48, 4.48]
    """
    if len(values) < 2:
        return -np.inf, np.inf
    # `scipy.stats.t.interval` and `ttest_1samp` give NaN where all values are equal.
    half = scipy.stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * scipy.stats.sem(values)
    return float(np.mean(values) - half), float(np.mean(values) + half)


def compare(
    losses: dict[str, Losses], references: tuple[str, ...], expected_runs: int
) -> dict[str, dict[str, Any]]:
    """The statistics of every arm, and its paired comparison ("versus") with each arm of reference.

    >>> arms = {"a": np.ones((3, 4, 2)), "b": np.full((3, 4, 2), 2.0)}
    >>> arms["b"][..., -1] = np.e
    >>> compare(arms, ("b", "not there"), expected_runs=12)["a"]["versus"]["b"]["log_ratio"]
    -1.0
    """
    references = tuple(name for name in references if name in losses)
    pairs = {(a, b): log_ratios(losses[a], losses[b]) for a in losses for b in references if a != b}
    found = intervals(pairs)
    return {
        a: {
            **summary(values, expected_runs),
            "versus": {b: found[a, b]._asdict() for b in references if a != b},
        }
        for a, values in losses.items()
    }


def verdict(claim: str, source: str, interval: Interval, *, negative: bool = True) -> dict:
    """Whether a claim is `reproduced`, `reversed` or `inconclusive`: it is the first when the whole interval
    and the median lie on the claim's side of zero (`negative`: the first arm is better), the second when they
    lie on the other.

    >>> verdict("a beats b", "section 5", Interval(-1.0, -2.0, -0.5))["outcome"]
    'reproduced'
    """
    # The medians of seeds may all lie on one side of that of all runs, where many runs are ties.
    below, above = (
        max(interval.high, interval.log_ratio) < 0,
        min(interval.low, interval.log_ratio) > 0,
    )
    agrees, opposes = (below, above) if negative else (above, below)
    outcome: Outcome = "reproduced" if agrees else "reversed" if opposes else "inconclusive"
    why = (
        f"median log ratio {interval.log_ratio:+.2f} (95 % interval {interval.low:+.2f} to "
        f"{interval.high:+.2f}), a factor of {np.exp(interval.log_ratio):.2g} in the final loss"
    )
    return {"claim": claim, "source": source, "outcome": outcome, "why": why}


def sign_verdict(claim: str, source: str, ratios: Float[np.ndarray, " seeds"]) -> dict:
    """The verdict of a sign test at 5 % on one log ratio for each seed; ties are left out.

    >>> sign_verdict("a beats b", "section 5", np.full(20, -1.0))["why"]
    'one run alone says so for 20 of 20 meta-seeds'
    """
    wins, losses = int(np.sum(ratios < 0)), int(np.sum(ratios > 0))
    decided = wins + losses > 0 and scipy.stats.binomtest(wins, wins + losses).pvalue < 1 - LEVEL
    outcome: Outcome = "inconclusive" if not decided else "reproduced" if wins > losses else "reversed"
    why = f"one run alone says so for {wins} of {len(ratios)} meta-seeds"
    return {"claim": claim, "source": source, "outcome": outcome, "why": why}


def _median(values: np.ndarray) -> float:
    return float(np.quantile(values, 0.5, method="inverted_cdf"))


def _t_intervals(ratios: dict[Any, np.ndarray]) -> dict[Any, tuple[float, float]]:
    """Intervals from the medians of the seeds, around their mean."""
    bounds = {}
    for name, values in ratios.items():
        medians = np.quantile(values, 0.5, axis=1, method="inverted_cdf")
        bounds[name] = t_interval(medians) if np.all(np.isfinite(medians)) else (-np.inf, np.inf)
    return bounds


def _bootstrap(ratios: dict[Any, np.ndarray], seed: int, draws: int) -> dict[Any, tuple[float, float]]:
    """Percentile intervals of the median under resampled seeds and tasks, as weights of sorted values.

    `scipy.stats.bootstrap` resamples one axis, and cannot draw tasks anew within every drawn seed.
    """
    random = np.random.default_rng(seed)
    seeds, tasks = next(iter(ratios.values())).shape
    orders = {name: np.argsort(values, axis=None, kind="stable") for name, values in ratios.items()}
    medians = {name: np.empty(draws) for name in ratios}
    for draw in range(draws):
        copies = random.multinomial(seeds, np.full(seeds, 1 / seeds))
        weights = np.concatenate(
            [np.bincount(random.integers(tasks, size=k * tasks), minlength=tasks) for k in copies]
        )
        for name, order in orders.items():
            reached = np.cumsum(weights[order])
            middle = np.searchsorted(reached, reached[-1] / 2)
            medians[name][draw] = ratios[name].flat[order[middle]]
    tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    bounds = {name: np.quantile(m, tails, method="inverted_cdf") for name, m in medians.items()}
    return {name: (float(low), float(high)) for name, (low, high) in bounds.items()}
