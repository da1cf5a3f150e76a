"""Measures of trained optimizers: momentum, schedule, saturation, gate, direction.

Steps are in units of Polyak's: w = u ||g|| / f, of length r; g is the gradient where the step u begins. Only
steps whose run is not solved count, and each measure is taken seed by seed.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from symmetrax.studies._emergent_steps import cosine, direction
from symmetrax.studies.core._correlations import _at_equal_step, _paired, fisher_interval
from symmetrax.studies.core._means import binned, by_seed, over_seeds
from symmetrax.studies.core._statistics import FLOOR

#: By name, with axes seeds, tasks, steps (and of vectors): what `look` returns, "gate" and "outcome" of the
#: optimizer's state; and the "loss", at one point more.
Tracks = dict[str, np.ndarray]

#: Steps from below this share of f(x_0) are left out: single precision tells their directions badly.
CLEAN = 1e-9
LAGS = 4
#: A headroom that varies less than this (its standard deviation) is that of the grid of angles.
CONSTANT = 0.05
#: Steps this near, as a share, to the largest or smallest that the network can make are at a bound.
AT_BOUND = 0.05

PerStep = Float[np.ndarray, "seeds tasks steps"]


def unsolved(tracks: Tracks, share: float = CLEAN) -> Bool[np.ndarray, "seeds tasks steps"]:
    """Where the loss before the step is finite and above a share of f(x_0), and the step is finite.

    >>> tracks = {"loss": np.array([[[1.0, 0.0, 0.0]]]), "update": np.ones((1, 1, 2, 2))}
    >>> unsolved(tracks).tolist()
    [[[True, False]]]
    """
    before, first = tracks["loss"][..., :-1], tracks["loss"][..., :1]
    return np.isfinite(before) & (before > share * first) & np.isfinite(tracks["update"]).all(axis=-1)


def polyak(tracks: Tracks) -> Float[np.ndarray, "seeds tasks steps 2"]:
    """The steps in units of Polyak's, u ||g|| / f; NaN where the run is solved."""
    norm = np.linalg.norm(tracks["gradient"], axis=-1)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        w = tracks["update"] * (norm / tracks["loss"][..., :-1])[..., None]
    return np.where(unsolved(tracks)[..., None], w, np.nan)


def lagged(w: np.ndarray, gradients: np.ndarray, lags: int) -> tuple[float, np.ndarray]:
    """The share of ||w||^2 that a combination of the present and `lags` past directions of the gradient
    explains, and its weights: one for each lag, the same for all steps, runs and coordinates.

    `w` and `gradients` have the axes runs, steps, 2. Fitted on steps from `LAGS` on, so that all numbers of
    lags are judged on the same steps.

    >>> g = np.random.default_rng(0).normal(size=(50, 9, 2))
    >>> w = -2 * direction(g)
    >>> w[:, 1:] -= direction(g)[:, :-1]
    >>> share, weights = lagged(w, g, 1)
    >>> round(share, 6), weights.round(6).tolist()
    (1.0, [-2.0, -1.0])
    """
    g = direction(gradients)
    steps = g.shape[1]
    columns = np.stack([g[:, LAGS - lag : steps - lag] for lag in range(LAGS + 1)], axis=-1)
    y = w[:, LAGS:]
    good = np.isfinite(columns).all(axis=(-1, -2)) & np.isfinite(y).all(axis=-1)
    x, y = columns[good][..., : lags + 1].reshape(-1, lags + 1), y[good].ravel()
    if len(y) <= lags + 1:
        return np.nan, np.full(lags + 1, np.nan)
    weights = np.linalg.lstsq(x, y, rcond=None)[0]
    return float(1 - np.sum((y - x @ weights) ** 2) / np.sum(y**2)), weights


def momentum(tracks: Tracks) -> dict[str, Any]:
    """How much of the steps 0 to `LAGS` past gradients explain ("r2"), and the "weights" of all of them over
    that of the present one, with their sum ("past"): those of momentum b would be b, b^2, ..."""
    w = polyak(tracks)
    fits = [
        [lagged(*own, lags) for own in zip(w, tracks["gradient"], strict=True)] for lags in range(LAGS + 1)
    ]
    weights = np.array([found[1] for found in fits[-1]])
    relative = weights[:, 1:] / weights[:, :1]
    return {
        "r2": [over_seeds([share for share, _ in found]) for found in fits],
        "present": over_seeds(weights[:, 0]),
        "weights": [over_seeds(own) for own in relative.T],
        "past": over_seeds(np.sum(relative, axis=1)),
    }


def slope(x: np.ndarray, y: np.ndarray) -> float:
    """The slope of the line of least squares, over what is finite; NaN if `x` does not vary.

    >>> slope(np.array([0.0, 1.0, np.nan]), np.array([1.0, 3.0, 0.0]))
    2.0
    """
    good = np.isfinite(x) & np.isfinite(y)
    if np.sum(good) < 2 or np.ptp(x[good]) == 0:
        return np.nan
    x, y = x[good] - np.mean(x[good]), y[good] - np.mean(y[good])
    return float(np.sum(x * y) / np.sum(x * x))


def logarithms(tracks: Tracks) -> dict[str, PerStep]:
    """Logarithms of r, and of step length, gradient norm and loss relative to those of the first step."""
    good = unsolved(tracks)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = {
            "r": np.log(np.linalg.norm(polyak(tracks), axis=-1)),
            "length": np.log(np.linalg.norm(tracks["update"], axis=-1)),
            "gradient": np.log(np.linalg.norm(tracks["gradient"], axis=-1)),
            "loss": np.log(tracks["loss"][..., :-1]),
        }
        logs = {name: np.where(good & np.isfinite(x), x, np.nan) for name, x in logs.items()}
        return {name: x if name == "r" else x - x[..., :1] for name, x in logs.items()}


def saturation(tracks: Tracks, rates: tuple[float, float]) -> dict[str, Any]:
    """How step lengths follow gradient norms, both relative to those of the first step of the run.

    "slope" of the logarithms, 1 for gradient descent with one step size, 0 for steps of one length; "small"
    and "large", where the gradient is smaller or larger than the median; "bend", large less small; "r_bend",
    the same of ln r alone: Polyak's step, r = 1, bends by itself where f / ||g|| does, and what is negative
    here is clipping that was learned; "r_by_loss", the slope of ln r against the log loss; shares of steps at
    the bounds `rates` of what the network can say; and the "curve" of medians, all seeds together.
    """
    logs = logarithms(tracks)
    x, y = logs["gradient"][..., 1:], logs["length"][..., 1:]
    middle = np.nanmedian(x, axis=(1, 2), keepdims=True)
    halves = [np.where(x <= middle, x, np.nan), np.where(x > middle, x, np.nan)]
    small, large = (by_seed(slope, half, y) for half in halves)
    r_small, r_large = (by_seed(slope, half, logs["r"][..., 1:]) for half in halves)
    r, good = np.exp(logs["r"]), np.isfinite(logs["r"])
    low, high = rates[0] * (1 + AT_BOUND), rates[1] * (1 - AT_BOUND)
    both = np.isfinite(x) & np.isfinite(y)
    return {
        "slope": over_seeds(by_seed(slope, x, y)),
        "small": over_seeds(small),
        "large": over_seeds(large),
        "bend": over_seeds(np.array(large) - np.array(small)),
        "r_bend": over_seeds(np.array(r_large) - np.array(r_small)),
        "r_by_loss": over_seeds(by_seed(slope, logs["loss"], logs["r"])),
        "at_most": over_seeds(_share(r > high, good)),
        "at_least": over_seeds(_share(r < low, good)),
        "curve": np.stack(binned(x[both], y[both]), axis=-1).tolist(),
    }


def schedule(tracks: Tracks) -> list[list[float]]:
    """The median of r at every step, for every seed: over all runs that are not solved by then."""
    r = np.linalg.norm(polyak(tracks), axis=-1)
    return [
        [float(np.nanmedian(x)) if np.isfinite(x).any() else np.nan for x in r[..., t]]
        for t in range(r.shape[-1])
    ]


def gate(tracks: Tracks) -> dict[str, Any] | None:
    """How often the gate is open, at all and at each step ("course"), how often teleports move, and how the
    gate's probability goes with the headroom of the orbit, over all steps and at equal step (None where all
    orbits have one headroom); None without a gate."""
    if np.all(tracks["gate"] < 0):
        return None
    good = unsolved(tracks)
    opens = tracks["gate"] > 0.5
    known = {name: np.where(good, tracks[name], np.nan) for name in ("gate", "headroom")}
    measures = {"across": _paired, "at equal step": _at_equal_step}
    found = {
        name: np.array(by_seed(lambda x, y, m=measure: m(x, y, "spearman"), known["gate"], known["headroom"]))
        for name, measure in measures.items()
    }
    varies = bool(np.nanstd(known["headroom"]) > CONSTANT)
    return {
        "open": over_seeds(_share(opens, good)),
        "moves": over_seeds(_share((tracks["angle"] != 0) & (tracks["outcome"] == 0), good)),
        "course": [over_seeds(_share(opens[..., t], good[..., t])) for t in range(good.shape[-1])],
        "headroom": {
            name: {**fisher_interval(found[name])._asdict(), "seeds": found[name].tolist()}
            for name in measures
        }
        if varies
        else None,
    }


def newtons(tracks: Tracks) -> dict[str, Any]:
    """Mean cosines with Newton's step where the step begins: of the learned step, and of -g ("gradient")."""
    good = unsolved(tracks)
    pairs = {"learned": tracks["update"], "gradient": -tracks["gradient"]}
    found = {name: np.where(good, cosine(x, tracks["newton"]), np.nan) for name, x in pairs.items()}
    recorded = {name: over_seeds(by_seed(np.nanmean, x)) for name, x in found.items()}
    return {**recorded, "more": over_seeds(by_seed(np.nanmean, found["learned"] - found["gradient"]))}


def agreement(tracks: Tracks, share: float = FLOOR) -> dict[str, Any] | None:
    """Whether learned angles have the sign of the oracle's, over the steps that are not solved.

    "all": of all these steps, those whose angle is zero (closed gate) counted as wrong; "turned": of those
    that turn; "chance": the same with the oracle of another run; "nearer": with the learned angle taken
    modulo pi, to the nearer of the two points of an ellipse that are equally steep; "peak": the mean cosine
    of twice the difference, 1 at the steepest point of the orbit and -1 at the flattest. None where there is
    no oracle, or no teleports.
    """
    good = unsolved(tracks, share) & np.isfinite(tracks["oracle"])
    if not good.any() or (np.all(tracks["gate"] < 0) and not np.any(tracks["angle"])):
        return None
    angle, oracle = tracks["angle"], tracks["oracle"]
    turned = good & (angle != 0)
    nearer = angle - np.pi * np.round(angle / np.pi)
    same = {
        "turned": np.sign(angle) == np.sign(oracle),
        "chance": np.sign(angle) == np.sign(np.roll(oracle, 1, axis=1)),
        "nearer": np.sign(nearer) == np.sign(oracle),
    }
    return {
        "all": over_seeds(_share(same["turned"] & turned, good)),
        **{name: over_seeds(_share(x, turned)) for name, x in same.items()},
        "peak": over_seeds(_share(np.cos(2 * (angle - oracle)), turned)),
        "steps": int(np.sum(good)),
        "turning": over_seeds(_share(turned, good)),
    }


def _share(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """The mean of `values` where `among` holds, for each seed; NaN where nothing is."""
    axes = tuple(range(1, values.ndim))
    count = np.sum(among, axis=axes)
    total = np.sum(np.where(among, values, 0.0), axis=axes)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def describe(tracks: Tracks, rates: tuple[float, float]) -> dict[str, Any]:
    """All of it, and the share of steps that are not solved."""
    everything = np.ones(tracks["loss"][..., :-1].shape, bool)
    return {
        "unsolved": over_seeds(_share(unsolved(tracks), everything)),
        "lags": momentum(tracks),
        "saturation": saturation(tracks, rates),
        "schedule": schedule(tracks),
        "gate": gate(tracks),
        "newton": newtons(tracks),
        "sign": agreement(tracks),
    }
