"""Do learned teleports and learned momentum help to train classifiers of digits and MNIST?

The three arms of section 5.2 of arXiv:2504.15399 (learned step size; with teleports; with momentum too) on
real classification by minibatches, with networks that serve any width, and with the paper's own LSTMs over
the whole gradient at one width; beside them the coordinate-wise LSTM with and without teleports, baselines
tuned on the training stream, and the controls that tell what a teleport itself contributes. Arms are compared
by the loss on all training images after the last step.
"""

import dataclasses
import functools
import json
import os
from typing import Any

import numpy as np

from symmetrax.studies._classification_report import arrays, draw, tables
from symmetrax.studies._classification_verdicts import answers, describe, judge
from symmetrax.studies._classifiers import (
    CONTROLS,
    HAND,
    TRAINED,
    Adjusted,
    Size,
    controls,
    ends,
    image_family,
    trained_arm,
    with_controls,
)
from symmetrax.studies._registry import EXPERIMENTS
from symmetrax.studies.core._arm import Tuned
from symmetrax.studies.core._folder import as_json
from symmetrax.studies.core._hand_made import RATES
from symmetrax.studies.core._meta_training import Budget
from symmetrax.studies.core._played import OWN
from symmetrax.studies.core._run import Run
from symmetrax.studies.core._runs import RECORDED
from symmetrax.studies.core._study import Arm, Study
from symmetrax.tasks._base import AbstractTaskFamily
from symmetrax.tasks._data import FOLDER
from symmetrax.tasks._supervised import Widths

#: The arms whose first meta-seed's network is written as an artifact.
SAVED = ("lr-tele-momentum", "update-tele")

STEPS = ("lr", "lr-momentum", "lr-tele", "lr-tele-momentum")
TRANSPORTS = ("lr-tele-momentum-carry", "lr-tele-momentum-reset")
UPDATES = ("update", "update-tele")
WHOLE = ("whole-lr", "whole-lr-tele", "whole-lr-tele-momentum")
#: Controls that take no training and no compilation of their own.
QUICK_CONTROLS = tuple(
    name
    for name, (of, how) in CONTROLS.items()
    if of in ("lr-tele", "lr-tele-momentum") and how in ("off", "random")
)


@dataclasses.dataclass(frozen=True)
class Group:
    """Arms that meet the same classifiers of `data` ("digits", "mnist"), with hidden layers of these widths.

    Training draws from the widths `trained`, or from all; `budget` replaces those of the settings.

    >>> Group("digits", "digits", (16, (12, 12)), ("lr", "adam")).trained
    ()
    """

    name: str
    data: str
    widths: tuple[Widths, ...]
    arms: tuple[str, ...]
    trained: tuple[Widths, ...] = ()
    budget: Budget | None = None


@dataclasses.dataclass(frozen=True)
class Settings:
    """The groups; `lr`, `update` and `whole` are how the three kinds of networks are trained.

    >>> STUDIES["classification"].settings.size.steps
    100
    """

    groups: tuple[Group, ...]
    lr: Budget
    update: Budget
    whole: Budget
    size: Size = Size()  # noqa: RUF009 (frozen)
    batch: int = 64
    rates: int = len(RATES)


def families(study: Study) -> list[AbstractTaskFamily]:
    """The classifiers of every group; those of MNIST only where SYMMETRAX_DATA names a folder."""
    return [
        image_family(group.data, group.widths, study.settings.batch, group.name)
        for group in study.settings.groups
        if group.data != "mnist" or os.environ.get(FOLDER)
    ]


def arms(study: Study, family: AbstractTaskFamily) -> list[Arm]:
    """The learned arms of a group, each with its controls, and the tuned ones.

    >>> study = STUDIES["classification"].preset("quick")
    >>> [arm.name for arm in arms(study, families(study)[0])][:3]
    ['lr-tele', 'lr-tele-off', 'lr-tele-random']
    """
    settings, found = study.settings, list[Arm]()
    group = next(group for group in settings.groups if group.name == family.name)
    seen = image_family(group.data, group.trained or group.widths, settings.batch)
    for name in (name for name in TRAINED if name in group.arms):
        arm = dataclasses.replace(
            trained_arm(name, seen, settings.size),
            family=None,
            trained_on=seen,
            budget=group.budget or getattr(settings, TRAINED[name].step),
            saved=name in SAVED,
            wrapped=functools.partial(Adjusted.plain, seeds=study.seeds),
        )
        found += [arm, *(c for c in controls(name, group.widths) if c.name in group.arms)]
    rates = tuple(np.geomspace(RATES[0], RATES[-1], settings.rates).tolist())
    return found + [Tuned(name, HAND[name][0], rates, HAND[name][1]) for name in HAND if name in group.arms]


def analyse(run: Run) -> dict[str, Any]:
    """Compare arms by the loss on all training images; answer questions in words."""
    groups, verdicts, words = {}, [], {}
    for name, played in run.played.items():
        rans = {arm: ran for (test, arm, _), ran in played.runs.items() if test == OWN}
        run.folder.arrays(f"{name}-runs", arrays(rans))
        groups[name] = describe(rans, run.results["groups"][name]["arms"])
        # As it is read from the file, where infinities are strings.
        found = json.loads(as_json(groups[name]))
        verdicts += judge(name, found)
        words[name] = answers(found)
    notes = []
    if "mnist" not in groups:
        notes.append(f"Digits alone: MNIST is part of the full preset where {FOLDER} names a folder with it.")
    return {"groups": groups, "verdicts": verdicts, "answers": words, "notes": notes}


_BRIEF = Budget(steps=100, unroll=50, runs=75, tasks=8, chunk=15, patience=2, remat=True)
_ONE_BY_ONE = dataclasses.replace(_BRIEF, runs=240, tasks=1, chunk=40)
_MNIST = dataclasses.replace(_BRIEF, runs=45)
_QUICK = Budget(steps=40, unroll=20, runs=30, tasks=4, chunk=15, remat=True)
_ONE_WIDTH = with_controls(("lr-tele-momentum", *TRANSPORTS, *UPDATES, *WHOLE))
#: Without "lr": its networks would take a fifth of the time, and "lr-tele-off" stands for them.
_FEW = ("lr-tele", "lr-tele-momentum", *QUICK_CONTROLS, *HAND)

STUDIES = {
    "classification": Study(
        name="classification",
        title=EXPERIMENTS["classification"].title,
        families=families,
        arms=arms,
        references=("adam",),
        budget=_BRIEF,
        seeds=6,
        tasks=20,
        tuning_tasks=8,
        watch=RECORDED,
        measure=ends,
        tuned_by="train",
        analyse=analyse,
        figures=(draw,),
        tables=tables,
        settings=Settings(
            (
                Group("digits", "digits", (16, 32), with_controls(STEPS), trained=(16,)),
                Group("mnist", "mnist", (16, 32), with_controls(STEPS), trained=(16,), budget=_MNIST),
                Group("digits-16", "digits", (16,), _ONE_WIDTH),
            ),
            lr=_BRIEF,
            update=_ONE_BY_ONE,
            whole=_BRIEF,
        ),
        quick={
            "seeds": 2,
            "tasks": 10,
            "tuning_tasks": 4,
            "budget": _QUICK,
            "settings": Settings(
                (Group("digits", "digits", (16,), _FEW),),
                lr=_QUICK,
                update=_QUICK,
                whole=_QUICK,
                size=Size(steps=40),
                rates=9,
            ),
        },
    )
}
