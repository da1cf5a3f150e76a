"""Does an optimizer that learned on one distribution of tasks misalign with another?

arXiv:2504.15399 supposes so, and tests on one distribution at a time. Here every arm is trained on each of
the four families of the plane and tested on all of them: a matrix for each arm, whose entries are paired
ratios of final losses to the same arm trained on the tested family itself.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from symmetrax.studies import plane
from symmetrax.studies._orbit_arms import FAMILIES, VANILLA, WATCHED, Networks, budget, orbit_arm
from symmetrax.studies._registry import EXPERIMENTS
from symmetrax.studies.core._arm import Learned
from symmetrax.studies.core._console import ratio_text, titled_table
from symmetrax.studies.core._measurements import matrix_panels
from symmetrax.studies.core._meta_training import Budget
from symmetrax.studies.core._run import Run
from symmetrax.studies.core._statistics import DIVERGED, compare, finals, intervals, log_ratios, verdict
from symmetrax.studies.core._study import Study
from symmetrax.tasks._base import AbstractTaskFamily

#: Arms of figures 3 to 6 have this prefix.
PAPER = "paper-"
SOURCE = "arXiv:2504.15399, section 6"

#: Losses by tested family, then by arm and the family that it was trained on.
Losses = dict[str, dict[tuple[str, str], np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Settings:
    """The arms, and how those of the paper are trained.

    >>> Settings().arms
    ('vanilla', 'peak-near', 'paper-vanilla', 'paper-teleport')
    """

    arms: tuple[str, ...] = (VANILLA, "peak-near", "paper-vanilla", "paper-teleport")
    paper: Budget = Budget(runs=500, steps=20, unroll=5, chunk=100, patience=0)  # noqa: RUF009 (frozen)
    networks: Networks = Networks()  # noqa: RUF009 (frozen)


def arms(study: Study, family: AbstractTaskFamily) -> list[Learned]:
    """The arms, trained on a family."""
    return [
        paper_arm(name.removeprefix(PAPER), family, study.settings.paper)
        if name.startswith(PAPER)
        else orbit_arm(name, family, study.budget, study.settings.networks)
        for name in study.settings.arms
    ]


def paper_arm(name: str, family: AbstractTaskFamily, training: Budget) -> Learned:
    """An arm of figures 3 to 6.

    >>> from symmetrax.tasks._families import make_family
    >>> paper_arm("teleport", make_family("ellipse-fixed"), Budget()).name
    'paper-teleport'
    """
    return dataclasses.replace(plane.learned(name, family), name=PAPER + name, budget=training)


def without(arm: str, study: Study) -> str | None:
    """The arm without teleports that an arm is compared with, if it teleports.

    >>> without("paper-teleport", STUDIES["misalignment"])
    'paper-vanilla'
    """
    plain = f"{PAPER}{VANILLA}" if arm.startswith(PAPER) else VANILLA
    return plain if arm != plain and plain in study.settings.arms else None


def analyse(run: Run) -> dict[str, Any]:
    """Groups by the family of the test, matrices, and verdicts over all pairs of families."""
    losses: Losses = {family: {} for family in run.played}
    for source, played in run.played.items():
        for test in played.tests:
            for arm, own in played.losses(test, played.steps).items():
                losses[test or source][arm, source] = own
    return {
        "groups": {family: _group(run.study, family, found) for family, found in losses.items()},
        "matrices": matrices(run.study, losses),
        "verdicts": verdicts(run.study, losses),
    }


def _group(study: Study, family: str, losses: dict[tuple[str, str], np.ndarray]) -> dict[str, Any]:
    references = tuple(f"{arm}@{family}" for arm in study.settings.arms)
    named = {"@".join(key): own for key, own in losses.items()}
    return {"arms": compare(named, references, study.seeds * study.tasks), "against": references[0]}


def matrices(study: Study, losses: Losses) -> dict[str, Any]:
    """For each arm, family of training and family of test, ratios and the share of runs that diverged.

    "own" is the ratio to the same arm trained where it is tested, "plain" that to the arm without teleports
    trained on the same family.
    """
    pairs: dict[tuple[str, str, str, str], np.ndarray] = {}
    for family, found in losses.items():
        for (arm, source), own in found.items():
            pairs[arm, source, family, "own"] = log_ratios(own, found[arm, family])
            plain = without(arm, study) or arm
            pairs[arm, source, family, "plain"] = log_ratios(own, found[plain, source])
    table: dict[str, Any] = {arm: {s: {} for s in losses} for arm in study.settings.arms}
    for (arm, source, family, kind), interval in intervals(pairs).items():
        last = losses[family][arm, source]
        cell = table[arm][source].setdefault(family, {})
        cell |= {kind: interval._asdict(), "diverged": float(np.mean(finals(last) > DIVERGED * last[..., 0]))}
    return table


def verdicts(study: Study, losses: Losses) -> list[dict[str, str]]:
    """Whether training elsewhere is worse, over all pairs of families, and whether teleports win there."""
    asked: dict[tuple[str, bool], np.ndarray] = {}
    elsewhere = [(source, family) for source in losses for family in losses if source != family]
    for arm in study.settings.arms:
        claims = {f"{arm}, trained on another family, is worse than trained on the tested one": (arm, False)}
        if plain := without(arm, study):
            claims[f"{arm} beats {plain} on families that neither was trained on"] = (plain, True)
        for claim, (other, better) in claims.items():
            ratios = [
                log_ratios(losses[f][arm, s], losses[f][other, s if better else f]) for s, f in elsewhere
            ]
            asked[claim, better] = np.concatenate(ratios, axis=1)
    found = intervals(asked)
    return [verdict(claim, SOURCE, found[claim, better], negative=better) for claim, better in asked]


def tables(study: Study, results: dict[str, Any]) -> Iterator[Any]:
    """The matrices as tables."""
    for arm, matrix in results["matrices"].items():
        titles = {"own": f"{arm} over {arm} trained on the tested family"}
        if plain := without(arm, study):
            titles["plain"] = f"{arm} over {plain}, both trained on the family of the row"
        for kind, title in titles.items():
            table = titled_table(f"{title}: ratio of final losses", "trained on, tested on:", list(matrix))
            for source, row in matrix.items():
                table.add_row(source, *(ratio_text(row[family][kind]) for family in matrix))
            yield table


def draw(folder: Path, results: dict[str, Any]) -> None:
    """For each arm, what training on one family costs on another."""
    own = {
        arm: {source: {family: cell["own"] for family, cell in row.items()} for source, row in matrix.items()}
        for arm, matrix in results["matrices"].items()
    }
    labels = ("trained on", "tested on", "log10 of the loss over that of training on the tested family")
    matrix_panels(folder / "matrices.png", own, labels)


STUDIES = {
    "misalignment": Study(
        name="misalignment",
        title=EXPERIMENTS["misalignment"].title,
        families=FAMILIES,
        arms=arms,
        budget=budget(),
        seeds=6,
        tasks=500,
        horizons=(12,),
        parts=1,
        watch=WATCHED,
        tests=lambda study, family: {f.name: f for f in study.made() if f.name != family.name},
        analyse=analyse,
        figures=(draw,),
        tables=tables,
        settings=Settings(),
        quick={
            "families": FAMILIES[1::2],
            "seeds": 3,
            "tasks": 100,
            "budget": budget(300, 32),
            "settings": Settings(arms=(VANILLA, "peak-near")),
        },
    )
}
