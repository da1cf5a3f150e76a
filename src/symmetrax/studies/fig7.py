"""Figure 7 of arXiv:2504.15399: learned step size, momentum and teleport on a regression with two layers.

Algorithm 3 (learned step size; learned momentum and group element) against its parts, its predecessors of
arXiv:2305.13404, and what transfers to other sizes. What is added: meta-seeds, all unseen trajectories in the
statistics beside the published five, arms that differ in one thing, controls, tuned optimizers made by hand,
centred data beside the published ones, and the gain of teleports beside that on the plane.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from symmetrax.studies import plane
from symmetrax.studies._fig7_arms import CONTROLS, SPECS, Networks, controls, family, learned_arm
from symmetrax.studies._fig7_groups import REFERENCES, epochs, fresh, groups_of
from symmetrax.studies._fig7_hand import TUNED, followers
from symmetrax.studies._fig7_verdicts import answers, epoch_table, fresh_losses, gains, plane_gains, verdicts
from symmetrax.studies._registry import EXPERIMENTS, choose
from symmetrax.studies.core._measurements import ONLY, interval_panels
from symmetrax.studies.core._meta_training import Budget
from symmetrax.studies.core._panels import Curve, Panel, curve_panels, losses
from symmetrax.studies.core._played import OWN
from symmetrax.studies.core._run import Run
from symmetrax.studies.core._runs import RECORDED
from symmetrax.studies.core._study import Arm, Study
from symmetrax.tasks._base import AbstractTaskFamily
from symmetrax.tasks._regression import Start

#: Arms of which the network of the first meta-seed is saved.
SAVED = ("lr-tele-momentum", "coordinates-neurons")
#: The arms of the figure and of its predecessor, each part with and without the others.
MAIN = ("lr-tele-momentum", "lr-tele", "lr-momentum", "lr")


@dataclasses.dataclass(frozen=True)
class Group:
    """Arms on one law of data, their networks, and which controls are run, by the end of their names.

    Raises ValueError for an unknown arm.

    >>> Group("uniform", ("lr",)).controls[0]
    'off'
    """

    law: Start
    arms: tuple[str, ...]
    networks: Networks = Networks()  # noqa: RUF009 (frozen)
    controls: tuple[str, ...] = CONTROLS

    def __post_init__(self):
        for name in self.arms:
            choose("arm", name, SPECS)


@dataclasses.dataclass(frozen=True)
class Settings:
    """The groups of arms, by name; and what is reported beside their losses.

    `published_tasks` are the unseen trajectories of the published protocol. `plane` are figures of the plane,
    beside whose gain of teleports the one here is drawn, and the rest their budget. Gradient descent may take
    `patient_steps` in the time of a learned optimizer, at most.

    >>> STUDIES["fig7"].settings.groups["published"].networks.width
    300
    """

    groups: dict[str, Group]
    published_tasks: int = 5
    plane: tuple[str, ...] = tuple(plane.FIGURES)
    plane_runs: int = 200
    plane_seeds: int = 6
    plane_tasks: int = 100
    patient_steps: int = 5000


def families(study: Study) -> list[AbstractTaskFamily]:
    """The regressions of every group, under its name."""
    return [
        dataclasses.replace(family(group.law, group.networks, "scaling"), name=name)
        for name, group in study.settings.groups.items()
    ]


def arms(study: Study, regression: AbstractTaskFamily) -> list[Arm]:
    """The learned arms of a group with their controls, and optimizers made by hand.

    >>> study = STUDIES["fig7"].preset("quick")
    >>> [arm.name for arm in arms(study, families(study)[0])][:3]
    ['lr-tele-momentum', 'lr-tele-momentum-off', 'gd-at-lr-tele-momentum']
    """
    group, found = study.settings.groups[regression.name], list[Arm]()
    for name in group.arms:
        arm = learned_arm(name, group.law, group.networks, study.budget.steps)
        asked = [c for c in controls(arm) if c.name.removeprefix(f"{name}-") in group.controls]
        found += [dataclasses.replace(arm, saved=name in SAVED), *asked, *followers(name)]
    return [*found, *TUNED]


def analyse(run: Run) -> dict[str, Any]:
    """All groups, claims at two epochs, answers, and the gains of teleports here and on the plane."""
    settings = run.study.settings
    results: dict[str, Any] = {"groups": {}, "verdicts": [], "answers": [], "gains": {}, "fresh": {}}
    for regression in run.study.made():
        name, played = regression.name, run.played[regression.name]
        losses = played.losses(OWN, played.steps)
        results["groups"] |= groups_of(run, regression, played)
        at_cap = {arm: card.get("at_cap", 0) for arm, card in played.facts.items()}
        rows = verdicts(name, losses, epochs(played.steps), at_cap)
        kept = ("claim", "source", "outcome", "why")
        results["verdicts"] += [{key: row[key] for key in kept} for row in rows]
        results["answers"] += answers(name, rows)
        results["gains"] |= gains(name, losses)
        ran = {arm: played.runs[OWN, arm, played.steps] for arm in losses}
        results["fresh"][name] = fresh_losses(ran)
        medians = {
            f"{arm}.{k}": np.median(x, (0, 1)) for arm, r in ran.items() for k, x in r.recorded.items()
        }
        run.folder.arrays(f"recorded-{name}", medians)
    for figure in settings.plane:
        budget = (settings.plane_seeds, settings.plane_tasks, settings.plane_runs)
        results["gains"] |= plane_gains(figure, run.study.seed, *budget, run.folder, run.reporter)
    return results


_UPDATES = ("update", "update-tele", "coordinates", "coordinates-neurons")
#: The arms of each panel of loss curves.
PANELS = {
    "The figure's arms": ("gd-3e-4", "lr-tele", "lr-tele-momentum", "as-printed"),
    "Without teleports, and by hand": (
        *("lr", "lr-tele", "lr-momentum", "lr-tele-momentum", "momentum", "warm-momentum"),
    ),
    "Learned updates": (*_UPDATES, "lr-tele", "gd-3e-4"),
}


def draw(folder: Path, results: dict[str, Any]) -> None:
    """Loss curves, learning curves, and gains of teleports."""
    for name, group in results["groups"].items():
        arms = group["arms"]
        if "epochs" not in next(iter(arms.values())):
            continue  # those of the plane
        learned = any(arm in arms for arm in _UPDATES)
        shown = [
            Panel(text, losses(arms, names), x="epoch")
            for text, names in PANELS.items()
            if learned or text != "Learned updates"
        ]
        runs = next(iter(arms.values()))["runs"]
        title = f"regression, {name}: {runs:,} unseen trajectories for each arm"
        curve_panels(folder / f"curves-{name}.png", shown, title=title)
        curve_panels(folder / f"learning-{name}.png", [_learning(name, arms)])
    if results["gains"]:
        title = "final loss with teleports over that without"
        interval_panels(folder / "gains.png", {"": {ONLY: results["gains"]}}, title, cut=100.0)


def _learning(name: str, arms: dict[str, Any]) -> Panel:
    """Validation against trajectories, median and range of the meta-seeds: training stops when it rises."""
    curves = {}
    for arm, own in arms.items():
        if "learning_curve" in own:
            seeds = np.atleast_2d(np.array(own["learning_curve"]["validation"], float))
            bands = np.min(seeds, 0), np.max(seeds, 0)
            curves[arm] = Curve(np.array(own["learning_curve"]["trajectories"]), np.median(seeds, 0), *bands)
    y = "validation, median and range of seeds:\nmedian over tasks of the mean ln loss"
    title = f"regression, {name}: do more trajectories help?"
    return Panel(title, curves, x="training trajectories", y=y, log="")


def tables(study: Study, results: dict[str, Any]) -> Iterator[Any]:
    """Losses at epochs, and the answers."""
    for name in study.settings.groups:
        own = results["groups"][name]["arms"]
        yield epoch_table(f"{name}: median losses at epochs", own, epochs(study.budget.steps - 1))
    yield from results["answers"]


#: Most arms are trained at a third of the published width.
_SMALLER = dataclasses.replace(Networks(), width=100)
_GAUSSIAN = dataclasses.replace(Networks(bounds=(1e-6, 5e-2)), width=100)

# As published: two LSTMs of width 300, rates 1e-4 and 1e-3, trajectories one at a time until more do not
# help, 5 unseen trajectories, gradient descent at 3e-4; from the code of the predecessor: windows of 10, 100
# epochs, elements of size 0.01, a teleport at every step. Ours: whether more help is asked after every 25,
# not 100, and 100 are the most. Unseen trajectories end at the last epoch that the papers show, one before
# training ones.
STUDIES = {
    "fig7": Study(
        name="fig7",
        title=EXPERIMENTS["fig7"].title,
        families=families,
        arms=arms,
        references=REFERENCES,
        budget=Budget(runs=100, steps=100, unroll=10, chunk=25, patience=3),
        seeds=6,
        tasks=40,
        parts=4,
        tuning_tasks=100,
        horizons=(99,),
        watch=(*RECORDED, "previous"),
        measure=fresh,
        analyse=analyse,
        figures=(draw,),
        tables=tables,
        settings=Settings(
            {
                "uniform": Group("uniform", tuple(SPECS), _SMALLER),
                "gaussian": Group("gaussian", (*MAIN, *_UPDATES), _GAUSSIAN, ("off", "random")),
                "published": Group("uniform", MAIN, controls=("off", "random")),
            }
        ),
        quick={
            "seeds": 2,
            "parts": 2,
            "tuning_tasks": 20,
            "budget": Budget(runs=150, steps=30, unroll=10, chunk=50, patience=3, validation_tasks=16),
            "horizons": (29,),
            "settings": Settings(
                {
                    "uniform": Group(
                        "uniform",
                        ("lr-tele-momentum", "lr-momentum", "lr-tele"),
                        Networks(units=10, width=20),
                        ("off",),
                    )
                },
                plane=(),
                patient_steps=300,
            ),
        },
    )
}
