"""Statistics over tasks, seed by seed: which features predict a gain, and the worth of following them."""

from typing import Any

import numpy as np
import scipy.stats
from jaxtyping import Float

from symmetrax.studies.core._correlations import fisher_interval
from symmetrax.studies.core._means import over_seeds
from symmetrax.studies.core._statistics import FLOOR, Losses, finals, log_ratios

FOLDS = 5
#: A gain beyond this, where a run diverged, counts as this much: from f(x_0) to the floor of all comparisons.
LARGEST = -float(np.log(FLOOR))

PerTask = Float[np.ndarray, "seeds tasks"]


def gains(without: Losses, teleports: Losses) -> PerTask:
    """ln(final loss without / with teleports), run by run, positive where teleports win; at most `LARGEST`.

    >>> gains(np.array([[[1.0, 1.0]]]), np.array([[[1.0, 0.5]]])).round(2).tolist()
    [[0.69]]
    """
    return np.clip(log_ratios(without, teleports), -LARGEST, LARGEST)


def progress(losses: Losses) -> PerTask:
    """ln(final loss / first), floored as in all comparisons, and at most `LARGEST` where a run diverged.

    >>> progress(np.array([[[1.0, np.inf], [1.0, 0.5]]])).round(2).tolist()
    [[27.63, -0.69]]
    """
    return np.minimum(np.log(finals(losses) / losses[..., 0]), LARGEST)


def correlation(x: PerTask, y: PerTask) -> dict[str, Any]:
    """Spearman's correlation over the tasks of each seed; mean and interval on Fisher's scale.

    >>> x = np.arange(12.0).reshape(2, 6)
    >>> round(correlation(x, -(x**3))["mean"], 3)
    -1.0
    """
    found = np.array([_spearman(a, b) for a, b in zip(x, y, strict=True)])
    return {**fisher_interval(found)._asdict(), "seeds": found.tolist()}


def ranked(values: Float[np.ndarray, "... tasks"]) -> Float[np.ndarray, "... tasks"]:
    """Ranks along the last axis, from -1 to 1; equal values have equal ranks.

    >>> ranked(np.array([3.0, 1.0, 2.0])).tolist()
    [1.0, -1.0, 0.0]
    """
    count = values.shape[-1]
    return 2 * (scipy.stats.rankdata(values, axis=-1) - 1) / max(count - 1, 1) - 1


def explained(x: Float[np.ndarray, "tasks features"], y: Float[np.ndarray, " tasks"]) -> float:
    """R^2 of the linear regression of `y` on `x`, predicted for tasks that it was not fitted to.

    Tasks are left out in `FOLDS` folds, every fifth together. Below 0 the mean would predict better; NaN
    where `y` does not vary.

    >>> x = np.linspace(-1, 1, 50)[:, None]
    >>> round(explained(x, 2 * x[:, 0] + 1), 6)
    1.0
    """
    if np.ptp(y) == 0:
        return np.nan
    # scikit-learn's `cross_val_predict` takes 14 times as long for a few hundred tasks.
    design = np.concatenate([np.ones((len(y), 1)), x], axis=1)
    fold = np.arange(len(y)) % FOLDS
    error = np.empty(len(y))
    for own in range(FOLDS):
        out = fold == own
        weights = np.linalg.lstsq(design[~out], y[~out], rcond=None)[0]
        error[out] = y[out] - design[out] @ weights
    return float(1 - np.sum(error**2) / np.sum((y - np.mean(y)) ** 2))


def together(
    known: dict[str, PerTask], values: PerTask, *, curved: bool = False, ranks: bool = True
) -> dict[str, Any]:
    """The cross-validated R^2 of the regression of `values`, or their ranks, on ranks of all features.

    With `curved` squares of the ranks are features too: a gain may be largest in the middle.

    >>> x = np.arange(120.0).reshape(3, 40)
    >>> round(together({"a": x}, x**3)["mean"], 3)
    1.0
    >>> [bool(together({"a": x}, ranked(x) ** 2, curved=curved)["mean"] > 0.5) for curved in (False, True)]
    [False, True]
    """
    x = np.stack([ranked(own) for own in known.values()], axis=-1)
    x = np.concatenate([x, x**2], axis=-1) if curved else x
    return over_seeds([explained(*own) for own in zip(x, ranked(values) if ranks else values, strict=True)])


def regress(known: dict[str, PerTask], gain: PerTask) -> dict[str, Any]:
    """How each feature, and all together, go with the gain.

    "spearman" of each; R^2, cross-validated, for ranks of the gain of lines ("alone") and of parabolas
    ("curved") in the rank of each; "all" and "all_curved", the same with all features; "all_gain", that of
    all for the gain itself. "strongest" is the feature with the largest mean of "curved", "second" the next,
    and "lead" how much more the one explains than the other.

    >>> known = {"a": np.random.default_rng(0).normal(size=(3, 40)), "b": np.arange(120.0).reshape(3, 40)}
    >>> regress(known, -np.arange(120.0).reshape(3, 40))["strongest"]
    'b'
    """
    curved = {name: together({name: x}, gain, curved=True) for name, x in known.items()}
    order = sorted(curved, key=lambda name: -np.nan_to_num(curved[name]["mean"], nan=-np.inf))
    first, second = order[0], order[min(1, len(order) - 1)]
    return {
        "spearman": {name: correlation(x, gain) for name, x in known.items()},
        "alone": {name: together({name: x}, gain) for name, x in known.items()},
        "curved": curved,
        "all": together(known, gain),
        "all_curved": together(known, gain, curved=True),
        "all_gain": together(known, gain, curved=True, ranks=False),
        "strongest": first,
        "second": second,
        "lead": over_seeds(np.array(curved[first]["seeds"]) - np.array(curved[second]["seeds"])),
    }


def area(score: Float[np.ndarray, " tasks"], wins: np.ndarray) -> float:
    """The chance that a task where teleports win has a larger score than one where not, ties as one half.

    This is the area under the receiver operating characteristic; NaN where all tasks are of one kind.

    >>> area(np.array([3.0, 2.0, 1.0]), np.array([True, True, False]))
    1.0
    """
    count = int(np.sum(wins))
    if count in (0, len(wins)):
        return np.nan
    pairs = count * (len(wins) - count)
    return float(scipy.stats.mannwhitneyu(score[wins], score[~wins], method="asymptotic").statistic / pairs)


def threshold(score: Float[np.ndarray, " tasks"], gain: Float[np.ndarray, " tasks"]) -> float:
    """The score above which teleporting gains most in the mean; infinite if it never gains, -inf if always.

    >>> threshold(np.array([1.0, 2.0, 3.0]), np.array([-1.0, 2.0, 1.0]))
    1.0
    """
    values = np.concatenate([[-np.inf], np.unique(score)])
    total = [np.sum(gain[score > value]) for value in values]
    best = values[int(np.argmax(total))]
    return float(best) if best < np.max(score) else np.inf


def follow(score: PerTask, gain: PerTask, chosen_on: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
    """The worth of a probe: "auc" of winning against the score; "mean_gain" when teleporting only where the
    score exceeds the threshold of the seed, chosen on other tasks (their scores and gains); the "share" of
    tasks that this teleports, and "less_always", the mean gain less that of teleporting always.

    >>> score = np.array([[1.0, 2.0, 3.0, 4.0]] * 2)
    >>> gain = np.array([[-2.0, -1.0, 1.0, 2.0]] * 2)
    >>> found = follow(score, gain, (score, gain))
    >>> found["auc"]["mean"], found["mean_gain"]["mean"], found["less_always"]["mean"]
    (1.0, 0.75, 0.75)
    """
    cut = np.array([threshold(s, g) for s, g in zip(*chosen_on, strict=True)])
    taken = score > cut[:, None]
    followed = np.mean(np.where(taken, gain, 0.0), axis=1)
    return {
        "auc": over_seeds([area(s, g > 0) for s, g in zip(score, gain, strict=True)]),
        "mean_gain": over_seeds(followed),
        "less_always": over_seeds(followed - np.mean(gain, axis=1)),
        "share": over_seeds(np.mean(taken, axis=1)),
        "thresholds": cut.tolist(),
    }


def decide(
    known: dict[str, PerTask],
    gain: PerTask,
    others: dict[str, np.ndarray],
    other_gain: np.ndarray,
    probes: tuple,
) -> dict[str, Any]:
    """The mean gain of teleporting: "always", "where_it_wins" (which nobody knows beforehand), and by
    each of the `probes`; never gains 0. Thresholds are chosen on `others`, features of tasks that are not
    reported. "wins", "ties" and "losses" are shares of tasks.

    >>> known = {"headroom": np.array([[1.0, 2.0, 3.0, 4.0]] * 2)}
    >>> gain = np.array([[-2.0, 0.0, 1.0, 2.0]] * 2)
    >>> found = decide(known, gain, known, gain, ("headroom",))
    >>> found["always"]["mean"], found["where_it_wins"]["mean"], found["wins"]["mean"]
    (0.25, 0.75, 0.5)
    """
    return {
        "wins": over_seeds(np.mean(gain > 0, axis=1)),
        "ties": over_seeds(np.mean(gain == 0, axis=1)),
        "losses": over_seeds(np.mean(gain < 0, axis=1)),
        "always": over_seeds(np.mean(gain, axis=1)),
        "where_it_wins": over_seeds(np.mean(np.maximum(gain, 0.0), axis=1)),
        "probes": {name: follow(known[name], gain, (others[name], other_gain)) for name in probes},
    }


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    if np.ptp(x) == 0 or np.ptp(y) == 0:  # scipy would warn
        return np.nan
    return float(scipy.stats.spearmanr(x, y).statistic)  # pyright: ignore[reportAttributeAccessIssue]
