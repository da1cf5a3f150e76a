"""What `momentum-correlation` computes of teleports: events, correlations and verdicts."""

from typing import Any

import numpy as np
from jaxtyping import PyTree

from symmetrax.studies.core._console import number
from symmetrax.studies.core._correlations import correlations, fisher_interval
from symmetrax.studies.core._means import judged
from symmetrax.studies.core._statistics import t_interval
from symmetrax.tasks._base import AbstractTask
from symmetrax.tasks._supervised import Classification

SOURCE = "not in the paper: a check"
KINDS = ("spearman", "pearson")
#: The momentum that is paired with the gain of a teleport: that of its own step, and of the next.
PAIRINGS = ("same step", "next step")


def everything(task: AbstractTask) -> PyTree:
    """The batch of all training data of a task; None where the loss has it by itself.

    >>> from symmetrax.tasks._families import make_family
    >>> len(everything(make_family("digits").task(()))[0])
    1437
    """
    return tuple(task.train) if isinstance(task, Classification) else None


def gather(seen: dict[str, np.ndarray], steps: np.ndarray) -> dict[str, np.ndarray]:
    """Gain and momenta of every teleport that was made, (seeds, tasks, teleports); NaN if it was rejected.

    >>> seen = {"gain": np.ones((1, 1, 3)), "outcome": np.zeros((1, 1, 3), int)}
    >>> seen["momentum"] = np.array([[[0.1, 0.2, 0.3]]])
    >>> found = gather(seen, np.array([0, 2]))
    >>> found["same step"].tolist(), found["next step"].tolist()
    ([[[0.1, 0.3]]], [[[0.2, nan]]])
    """
    later = np.concatenate([seen["momentum"][..., 1:], np.full_like(seen["momentum"][..., :1], np.nan)], -1)
    made = seen["outcome"][..., steps] == 0
    all_steps = {"gain": seen["gain"], "same step": seen["momentum"], "next step": later}
    return {name: np.where(made, values[..., steps], np.nan) for name, values in all_steps.items()}


def correlate(events: dict[str, np.ndarray]) -> dict[str, Any]:
    """For both pairings and kinds, all measures with intervals over meta-seeds; Pearson's of ln(gain)."""
    positive = events["gain"] > 0
    logs = np.where(positive, np.log(np.where(positive, events["gain"], 1.0)), np.nan)
    return {
        pairing: {
            kind: {
                name: {**fisher_interval(values)._asdict(), "seeds": values.tolist()}
                for name, values in correlations(events[pairing], logs, kind).items()
            }
            for kind in KINDS
        }
        for pairing in PAIRINGS
    }


def describe_teleports(
    events: dict[str, np.ndarray], seen: dict[str, np.ndarray], off: dict[str, np.ndarray]
) -> dict[str, Any]:
    """How large gains and momenta are, and what teleports do to the momentum: against the same networks with
    teleports switched off, a mean difference with a t-interval over meta-seeds."""
    gains = events["gain"][np.isfinite(events["gain"])]
    difference = np.mean(seen["momentum"] - off["momentum"], axis=(1, 2))
    low, high = t_interval(difference)
    return {
        "teleports": int(np.size(events["gain"])),
        "rejected_or_not_finite": float(np.mean(~np.isfinite(events["gain"]))),
        "gain_quartiles": np.quantile(gains, [0.25, 0.5, 0.75]).tolist() if len(gains) else [],
        "share_of_gains_above_1": float(np.mean(gains > 1)) if len(gains) else np.nan,
        "momentum_quartiles": np.quantile(seen["momentum"], [0.25, 0.5, 0.75]).tolist(),
        "momentum_less_that_without_teleports": {
            "mean": float(np.mean(difference)),
            "low": low,
            "high": high,
        },
    }


def judge(name: str, table: dict[str, Any]) -> list[dict[str, Any]]:
    """Whether the momentum goes with the gain, as it stands and at equal step, by Spearman's correlation.

    >>> entry = {"mean": 0.5, "low": 0.2, "high": 0.7}
    >>> found = {"spearman": {"across": entry, "at equal step": entry}}
    >>> judge("digits", {"same step": found, "next step": found})[0]["outcome"]
    'reproduced'
    """
    rows = []
    for pairing in PAIRINGS:
        for measured in ("across", "at equal step"):
            entry = table[pairing]["spearman"][measured]
            words = {
                "across": "over all teleports",
                "at equal step": "at equal step, the drift with time removed",
            }
            claim = f"{name}: learned momentum of the {pairing} rises with the gain, {words[measured]}"
            why = "rank correlation {} (95 % interval {} to {})".format(
                *(f"{number(entry[key]):+.2f}" for key in ("mean", "low", "high"))
            )
            rows.append(judged(claim, SOURCE, entry, why))
    return rows


#: At most so many teleports are drawn.
DRAWN = 4000


def cloud(events: dict[str, np.ndarray], steps: np.ndarray) -> dict[str, np.ndarray]:
    """Every teleport as a point, or as many of them as can be told apart."""
    step = np.broadcast_to(steps, events["gain"].shape)
    good = np.isfinite(events["gain"]) & np.isfinite(events["same step"])
    points = {"x": events["gain"][good], "y": events["same step"][good], "step": step[good]}
    some = np.random.default_rng(0).permutation(int(np.sum(good)))[:DRAWN]
    return {name: values[some] for name, values in points.items()}
