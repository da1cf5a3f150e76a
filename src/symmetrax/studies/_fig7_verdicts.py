"""What figure 7 claims, what its controls ask, and the gain of teleports here and on the plane."""

import dataclasses
from typing import Any

import numpy as np
import rich.table
from jaxtyping import Float

from symmetrax.studies import plane
from symmetrax.studies.core._console import Reporter, number, titled_table
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._match import Match
from symmetrax.studies.core._played import OWN, judged
from symmetrax.studies.core._run import Run
from symmetrax.studies.core._runs import Runs
from symmetrax.studies.core._statistics import LEVEL, intervals, log_ratios
from symmetrax.studies.core._study import Claim

FIGURE = "section 5.2, figure 7"
BEFORE = "arXiv:2305.13404, learning to teleport"
CONTROL = "not in the paper: a control"

#: What the controls ask: the first arm is better than the second.
_CONTROLS = (
    ("lr-tele", "lr", "teleports help a learned step size"),
    ("lr-tele", "lr-tele-off", "(lr, tele) needs its teleports at test"),
    ("lr-tele", "lr-tele-random", "elements of (lr, tele) beat random ones of their size"),
    ("lr-tele", "gd-at-lr-tele", "(lr, tele) beats gradient descent at its median step size"),
    ("lr-tele", "lr-tele-constant", "(lr, tele) beats itself at its median step size"),
    ("lr-tele", "as-long-as-lr-tele", "(lr, tele) beats gradient steps of its lengths"),
    ("lr-tele", "warm", "(lr, tele) beats descent tuned after a first step at 1e-4"),
    ("lr-momentum", "lr", "learned momentum helps without teleports"),
    ("lr-momentum", "warm-momentum", "(lr, momentum) beats momentum tuned after such a step"),
    ("lr-tele-momentum", "warm-momentum", "algorithm 3 beats momentum tuned after such a step"),
    ("lr-tele-momentum", "lr-momentum", "teleports help beside learned momentum"),
    ("lr-tele-momentum", "lr-tele-momentum-off", "algorithm 3 needs its teleports at test"),
    ("lr-tele-momentum", "lr-tele-momentum-random", "elements of algorithm 3 beat random ones"),
    ("lr-tele-momentum", "gd-at-lr-tele-momentum", "algorithm 3 beats descent at its median step"),
    ("lr-tele-momentum", "lr-tele-momentum-constant", "algorithm 3 beats itself at its median step"),
    ("lr-tele-momentum", "lr-tele-momentum-no-momentum", "algorithm 3 needs its momentum at test"),
    ("lr-tele-momentum", "lr-tele-momentum-constant-momentum", "algorithm 3 beats its median momentum"),
    ("lr-tele-momentum", "as-long-as-lr-tele-momentum", "algorithm 3 beats descent of its lengths"),
    ("lr-tele-momentum", "as-printed", "algorithm 3 as repaired beats it as printed"),
    ("lr-tele-momentum-output", "lr-tele-momentum", "2305.13404's action beats 2205.10637's in it"),
    ("lr-tele-momentum-sized", "lr-tele-momentum", "elements of learned size beat size 0.01 in it"),
    ("every-10", "lr-momentum", "a teleport every ten steps helps beside learned momentum"),
    ("every-10-carry", "every-10", "carrying the velocity along beats keeping it"),
    ("every-10-reset", "every-10", "resetting the velocity beats keeping it"),
    ("every-10-reset", "every-10-reset-only-reset", "teleports with resets beat the resets alone"),
    ("update-tele", "update-tele-off", "(update, tele) needs its teleports at test"),
    ("update-tele", "update-tele-random", "elements of (update, tele) beat random ones"),
    ("coordinates-neurons", "coordinates", "per-neuron teleports help a coordinate-wise update"),
    ("coordinates-neurons", "coordinates-neurons-off", "per-neuron teleports help at test"),
    ("coordinates-neurons", "coordinates-neurons-random", "per-neuron teleports beat random ones"),
)
CLAIMS = (
    Claim("lr-tele-momentum", "lr-tele", "(lr, tele, momentum) beats (lr, tele)", FIGURE),
    Claim("lr-tele-momentum", "gd-3e-4", "(lr, tele, momentum) beats gradient descent at 3e-4", FIGURE),
    Claim("lr-tele", "gd-3e-4", "(lr, tele) beats gradient descent at 3e-4", BEFORE),
    Claim("update-tele", "update", "(update, tele) beats (update)", BEFORE),
    Claim("update", "lr-tele", "(update) beats (lr, tele)", BEFORE),
    *(Claim(*row, CONTROL) for row in _CONTROLS),
)
#: What is asked in the end, and the claims, by their arms, that bear on it.
QUESTIONS = {
    "Does learned momentum help, as the paper says?": (
        ("lr-tele-momentum", "lr-tele"),
        ("lr-momentum", "lr"),
    ),
    "Is it better than momentum tuned by hand?": (
        ("lr-momentum", "warm-momentum"),
        ("lr-tele-momentum", "warm-momentum"),
    ),
    "Do teleports help?": (
        ("lr-tele", "lr"),
        ("lr-tele-momentum", "lr-momentum"),
        ("update-tele", "update"),
        ("coordinates-neurons", "coordinates"),
        ("every-10", "lr-momentum"),
    ),
    "Are learned elements better than none at test, or random ones?": (
        ("lr-tele", "lr-tele-off"),
        ("lr-tele", "lr-tele-random"),
        ("lr-tele-momentum", "lr-tele-momentum-off"),
        ("lr-tele-momentum", "lr-tele-momentum-random"),
        ("update-tele", "update-tele-off"),
        ("update-tele", "update-tele-random"),
        ("coordinates-neurons", "coordinates-neurons-off"),
        ("coordinates-neurons", "coordinates-neurons-random"),
    ),
    "Is a learned step size better than its own median?": (
        ("lr-tele", "gd-at-lr-tele"),
        ("lr-tele", "lr-tele-constant"),
        ("lr-tele-momentum", "lr-tele-momentum-constant"),
    ),
}
#: An arm with teleports, and the same without.
PAIRS = (
    ("lr-tele", "lr"),
    ("lr-tele-momentum", "lr-momentum"),
    ("update-tele", "update"),
    ("coordinates-neurons", "coordinates"),
)

Losses = dict[str, Float[np.ndarray, "seeds tasks points"]]


def verdicts(
    study: str, losses: Losses, epochs: tuple[int, ...], at_cap: dict[str, int]
) -> list[dict[str, Any]]:
    """Every claim whose arms ran, at epoch 29 and at the last one.

    `at_cap` says how many meta-seeds of an arm were still improving where their training had to end.
    """
    rows = []
    asked = [claim for claim in CLAIMS if claim.first in losses and claim.second in losses]
    for epoch in sorted({epochs[-1], *({29} & set(epochs))}):
        cut = {name: x[..., : epoch + 1] for name, x in losses.items()}
        for claim, row in zip(asked, judged(asked, cut, f"{study}: {{}}, at epoch {epoch}"), strict=True):
            pair = claim.first, claim.second
            capped = [f"{at_cap[arm]} seeds of {arm}" for arm in pair if at_cap.get(arm)]
            if capped:
                row["why"] += f"; still improving when training ended: {', '.join(capped)}"
            rows.append({**row, "arms": [*pair], "epoch": epoch})
    return rows


def answers(study: str, rows: list[dict[str, Any]]) -> list[str]:
    """The questions in words, at the last epoch; and how many claims chance alone would decide.

    >>> row = {"arms": ["lr-tele", "lr"], "epoch": 99, "outcome": "reversed"}
    >>> answers("uniform", [row])[0]
    'uniform, epoch 99: Do teleports help? Of 1 comparisons 0 say yes, 1 say no, 0 cannot tell.'
    """
    if not rows:
        return []
    last = max(row["epoch"] for row in rows)
    outcomes = {tuple(row["arms"]): row["outcome"] for row in rows if row["epoch"] == last}
    said = []
    for question, pairs in QUESTIONS.items():
        own = [outcomes[pair] for pair in pairs if pair in outcomes]
        if own:
            yes, no = own.count("reproduced"), own.count("reversed")
            said.append(
                f"{study}, epoch {last}: {question} Of {len(own)} comparisons {yes} say yes, {no} say no, "
                f"{len(own) - yes - no} cannot tell."
            )
    decided = sum(row["outcome"] != "inconclusive" for row in rows)
    chance = (1 - LEVEL) * len(rows)
    said.append(
        f"{study}: {decided} of {len(rows)} claims are decided; were there nothing to find, chance would "
        f"decide about {chance:.0f}."
    )
    return said


def gains(study: str, losses: Losses) -> dict[str, dict[str, float]]:
    """The last loss of each arm with teleports over the same without, with its interval."""
    pairs = [pair for pair in PAIRS if pair[0] in losses and pair[1] in losses]
    found = intervals({pair: log_ratios(losses[pair[0]], losses[pair[1]]) for pair in pairs})
    return {f"regression, {study}: {a} / {b}": found[a, b]._asdict() for a, b in pairs}


def fresh_losses(ran: dict[str, Runs]) -> dict[str, dict[str, float]]:
    """For each arm the median loss on data that it was not trained on, and its ratio to the same arm with its
    teleports switched off: elements keep the loss on the batch, and what do they do elsewhere?"""
    measured = {name: r.measured["fresh"] for name, r in ran.items() if "fresh" in r.measured}
    fresh = {name: np.where(np.isfinite(x), x, np.inf)[..., None] for name, x in measured.items()}
    pairs = {name: log_ratios(x, fresh[f"{name}-off"]) for name, x in fresh.items() if f"{name}-off" in fresh}
    found = intervals(pairs)
    return {
        name: {"median": float(np.median(x)), **(found[name]._asdict() if name in found else {})}
        for name, x in fresh.items()
    }


def plane_gains(
    figure: str, seed: int, seeds: int, tasks: int, runs: int, folder: RunFolder, reporter: Reporter
) -> dict[str, dict[str, float]]:
    """The same on a family of the plane: an update with teleports, guarded or not, over one without."""
    names = ("vanilla", "teleport", "teleport-guarded")
    study = plane.STUDIES[figure]
    (family,) = study.made()
    arms = [dataclasses.replace(plane.learned(name, family), saved=False) for name in names]
    budget = dataclasses.replace(study.budget, runs=runs)
    size: dict[str, Any] = {"seed": seed, "seeds": seeds, "tasks": tasks, "budget": budget}
    small = dataclasses.replace(study, arms=arms, tests=None, **size)
    played = Match(Run(small, folder, reporter), family).played()
    losses = played.losses(OWN, played.steps)
    ratios = {name: log_ratios(losses[name], losses["vanilla"]) for name in names[1:]}
    found = intervals(ratios)
    return {f"{family.name}: {name} / vanilla": found[name]._asdict() for name in names[1:]}


def epoch_table(title: str, arms: dict[str, Any], epochs: tuple[int, ...]) -> rich.table.Table:
    """Median losses at some epochs, in the order of the last."""
    table = titled_table(title, "arm", [str(epoch) for epoch in epochs])
    for name, arm in sorted(arms.items(), key=lambda item: number(item[1]["loss_median"][-1])):
        table.add_row(name, *(f"{number(arm['epochs'][str(epoch)]):.4g}" for epoch in epochs))
    return table
