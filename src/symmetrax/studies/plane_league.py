"""All optimizers against each other on the plane: does a learned teleport win where the paper says it loses?

Of the learned teleports one is chosen for each family on a validation stream, and compared with the same
optimizer without teleports: equal features, steps and training. Beside them are arms of figures 3 to 6 of
arXiv:2504.15399, hand-made optimizers tuned for each horizon, and bounds that are given the best point of the
orbit. Every arm meets the same tasks, from starts as in training and from far ones.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from symmetrax.studies._orbit_arms import (
    CANDIDATES,
    FAMILIES,
    VANILLA,
    VARIANTS,
    WATCHED,
    Networks,
    budget,
    off,
    orbit_arm,
)
from symmetrax.studies._plane_optimizers import ARMS as HAND_MADE
from symmetrax.studies._plane_target import FAR, tables, targets
from symmetrax.studies._registry import EXPERIMENTS
from symmetrax.studies.core._measurements import interval_panels, versus_table
from symmetrax.studies.core._meta_training import Budget
from symmetrax.studies.core._panels import Panel, curve_panels, losses
from symmetrax.studies.core._run import Run
from symmetrax.studies.core._solved import solutions
from symmetrax.studies.core._study import Arm, Claim, Study
from symmetrax.studies.misalignment import paper_arm
from symmetrax.tasks._base import AbstractTaskFamily
from symmetrax.tasks._families import make_family

#: Arms of the loss curves: learned, hand-made, bounds.
DRAWN = (
    VANILLA,
    *CANDIDATES,
    "paper-vanilla",
    "paper-teleport",
    "adam",
    "lbfgs",
    "peak-polyak",
    "oracle-polyak",
)
#: Arms that all others are compared with.
REFERENCES = (VANILLA, "adam", "peak-polyak", "lbfgs", "paper-vanilla", "paper-teleport", *CANDIDATES)

_PAPER = "arXiv:2504.15399, section 5.1.2"
_OPEN = "arXiv:2504.15399, first open question"
_OURS = "a control"

CLAIMS = (
    Claim("paper-vanilla", "paper-teleport", "the published optimizer is better without teleports", _PAPER),
    Claim("{chosen}", VANILLA, "a learned teleport ({chosen}) beats the same optimizer without"),
    Claim("{chosen}", "{chosen}-off", "{chosen} needs its teleports at test", _OURS),
    Claim("{chosen}", "peak-polyak", "{chosen} beats its hand-made model, tuned", _OURS),
    Claim("{chosen}", "adam", "{chosen} beats Adam, tuned", _OURS),
    Claim("{chosen}", "lbfgs", "{chosen} beats L-BFGS", _OURS),
    Claim("peak-ungated", "peak", "peak is worse without its gate", _OURS, lower=False),
    Claim("peak-unguarded", "peak", "peak is worse without the bound on its jumps", _OURS, lower=False),
    Claim("vanilla-distance", VANILLA, "the distance to the optimum in the meta-loss helps", _OPEN),
    Claim("peak-near-distance", "peak-near", "the distance in the meta-loss helps peak-near", _OPEN),
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Which arms there are.

    `learned` are names of `VARIANTS`; "best" runs where the best point is known in closed form, `ablations`
    on the random families alone. So do the arms that are trained with `distance` times the squared distance
    to the optimum in the meta-loss. `paper` are arms of figures 3 to 6: of the many in those figures, the
    ones without a teleport, with one at every step, guarded, and on schedule.

    >>> Settings().ablations
    ('peak-ungated', 'peak-unguarded')
    """

    learned: tuple[str, ...] = tuple(VARIANTS)
    ablations: tuple[str, ...] = ("peak-ungated", "peak-unguarded")
    distance: float = 0.1
    paper: tuple[str, ...] = ("vanilla", "teleport", "teleport-guarded", "teleport-schedule")
    paper_budget: Budget = Budget(runs=500, steps=20, unroll=5, chunk=100, patience=0)  # noqa: RUF009 (frozen)
    hand_made: tuple[str, ...] = tuple(arm.name for arm in HAND_MADE)
    networks: Networks = Networks()  # noqa: RUF009 (frozen)
    far: bool = True


def arms(study: Study, family: AbstractTaskFamily) -> list[Arm]:
    """All arms on a family.

    >>> [arm.name for arm in arms(STUDIES["plane-league"], make_family("ellipse-fixed"))][:4]
    ['vanilla', 'teleport', 'teleport-off', 'peak']
    """
    settings, found = study.settings, list[Arm]()
    known, random = family.name.startswith("ellipse"), family.name.endswith("random")
    for name in (VANILLA, *settings.learned):
        if (known or name != "best") and (random or name not in settings.ablations):
            arm = orbit_arm(name, family, study.budget, settings.networks)
            found += [arm, off(arm)] if name in CANDIDATES else [arm]
    if settings.distance and random:
        further = dataclasses.replace(study.budget, distance=settings.distance)
        for name in (VANILLA, CANDIDATES[-1]):
            arm = orbit_arm(name, family, further, settings.networks)
            found.append(dataclasses.replace(arm, name=f"{name}-distance", saved=False))
    for name in settings.paper:
        found.append(dataclasses.replace(paper_arm(name, family, settings.paper_budget), saved=False))
    return found + [arm for arm in HAND_MADE if arm.name in settings.hand_made]


def points(horizons: tuple[int, ...]) -> tuple[int, ...]:
    """The steps whose losses are kept: all to the first horizon, fewer later.

    >>> points((3, 8))
    (0, 1, 2, 3, 4, 5, 6, 7, 8)
    """
    later = np.unique(np.geomspace(horizons[0], horizons[-1], 12).astype(int))
    return tuple(sorted({*range(horizons[0] + 1), *later.tolist(), *horizons}))


def analyse(run: Run) -> dict[str, Any]:
    """When arms solve their tasks, and whether the target is met."""
    solved = {
        f"{family}-{test}" if test else family: solutions(played, test, VANILLA)
        for family, played in run.played.items()
        for test in played.tests
    }
    return {"solved": solved, "targets": targets(run.study, {**run.results, "solved": solved})}


def draw(folder: Path, results: dict[str, Any]) -> None:
    """Loss curves of every family, and the ratio of all arms to vanilla."""
    steps = sorted({row["horizon"] for row in results["targets"]})
    arms = {h: {f: results["groups"][f"{f}-{h}"]["arms"] for f in results["chosen"]} for h in steps}
    last = arms[steps[-1]]
    shown = [Panel(family, losses(own, DRAWN, banded=()), y="loss: median") for family, own in last.items()]
    curve_panels(folder / "curves.png", shown, columns=len(shown))
    tables = {family: versus_table(own, VANILLA) for family, own in arms[steps[0]].items()}
    interval_panels(folder / "ratios.png", tables, f"loss after {steps[0]} steps / {VANILLA}")


STUDIES = {
    "plane-league": Study(
        name="plane-league",
        title=EXPERIMENTS["plane-league"].title,
        families=FAMILIES,
        arms=arms,
        references=(*REFERENCES, *(f"{name}-off" for name in CANDIDATES)),
        claims=CLAIMS,
        budget=budget(),
        seeds=8,
        tasks=1250,
        tuning_tasks=200,
        horizons=(12, 50, 200),
        judged=(12, 50),
        points=points,
        watch=WATCHED,
        candidates=CANDIDATES,
        tests=lambda study, family: {FAR: make_family(family.name, far=True)} if study.settings.far else {},
        analyse=analyse,
        figures=(draw,),
        tables=tables,
        settings=Settings(),
        quick={
            "families": ("rosenbrock-random",),
            "seeds": 4,
            "tasks": 100,
            "tuning_tasks": 50,
            "horizons": (12, 50),
            "budget": budget(400, 32),
            "settings": Settings(
                learned=CANDIDATES[1:], distance=0.0, paper=(), hand_made=("adam", "peak-polyak"), far=False
            ),
        },
    )
}
