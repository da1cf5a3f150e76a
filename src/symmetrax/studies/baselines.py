"""The standard learned optimizers, with and without the tricks of their training, on classifiers of digits.

A coordinate-wise LSTM and RNNProp, trained plainly and with a curriculum, imitation of Adam and random
scaling; against gradient descent, momentum and Adam tuned for every horizon. Reported on the horizon of
training, and on one ten times as long.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from symmetrax.learned._coordinatewise import CoordinatewiseLSTM
from symmetrax.learned._rnnprop import RNNProp
from symmetrax.studies._registry import EXPERIMENTS
from symmetrax.studies.core._arm import Build, Learned, Tuned
from symmetrax.studies.core._hand_made import MOMENTA, RATES, adam, descent
from symmetrax.studies.core._meta_training import Budget
from symmetrax.studies.core._panels import Panel, curve_panels, losses
from symmetrax.studies.core._study import Arm, Claim, Study
from symmetrax.tasks._base import AbstractTaskFamily
from symmetrax.tasks._data import digits
from symmetrax.tasks._scaled import RandomlyScaled
from symmetrax.tasks._supervised import ImageFamily

NETWORKS = {"lstm": CoordinatewiseLSTM, "rnnprop": RNNProp}
TRICKS = "-tricks"
#: Hand-made arms: their optimizer, and the values of momentum (b1 of Adam) that are tried with all rates.
HAND = {
    "gd": (descent, (0.0,)),
    "momentum": (descent, tuple(MOMENTA[2:].tolist())),
    "adam": (adam, (0.5, 0.9)),
}
SOURCES = {
    "lstm": "Andrychowicz et al. 2016, section 3",
    "rnnprop": "Lv, Jiang and Li 2017, section 5",
    TRICKS: "arXiv:2010.09089",
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Which arms are trained, on networks of `width` units, and how.

    `core` and `depth` are the size of the learned optimizers. Arms with tricks train on parameters scaled by
    up to exp(`spread`), by the budget `tricks`. Hand-made arms are tuned over `rates` of the 25 rates.

    >>> Settings().arms
    ('lstm', 'rnnprop', 'lstm-tricks', 'rnnprop-tricks')
    """

    arms: tuple[str, ...] = ("lstm", "rnnprop", "lstm-tricks", "rnnprop-tricks")
    tricks: Budget = Budget(  # noqa: RUF009 (frozen)
        runs=60,
        unroll=20,
        chunk=20,
        patience=3,
        validation_tasks=8,
        remat=True,
        stages=(100, 200),
        imitation=0.3,
    )
    spread: float = 3.0
    rates: int = 25
    width: int = 10
    batch_size: int = 64
    core: int = 20
    depth: int = 2


def families(study: Study) -> list[AbstractTaskFamily]:
    """The networks that are trained: one width, so that everything is compiled once.

    >>> families(STUDIES["baselines"])[0].shapes
    (10,)
    """
    settings = study.settings
    return [ImageFamily("digits", *digits(), widths=(settings.width,), batch_size=settings.batch_size)]


def arms(study: Study, family: AbstractTaskFamily) -> list[Arm]:
    """The learned optimizers, plain and with tricks, and the hand-made ones.

    >>> study = STUDIES["baselines"]
    >>> [arm.name for arm in arms(study, families(study)[0])][3:]
    ['rnnprop-tricks', 'gd', 'momentum', 'adam']
    """
    settings, found = study.settings, list[Arm]()
    scaled = RandomlyScaled(family, settings.spread)
    for name in settings.arms:
        make = Build.of(NETWORKS[name.removesuffix(TRICKS)], width=settings.core, depth=settings.depth)
        tricks: Any = {"trained_on": scaled, "budget": settings.tricks} if name.endswith(TRICKS) else {}
        found.append(Learned(name, make, **tricks))
    rates = tuple(RATES[np.linspace(0, len(RATES) - 1, settings.rates).astype(int)].tolist())
    return found + [Tuned(name, make, rates, momenta) for name, (make, momenta) in HAND.items()]


def claims(study: Study, family: str) -> Iterator[Claim]:
    """Every learned optimizer beats the hand-made ones, and tricks help.

    >>> next(iter(claims(STUDIES["baselines"], "digits"))).text
    'lstm beats tuned gd'
    """
    for name in study.settings.arms:
        kind = name.removesuffix(TRICKS)
        source = SOURCES[kind if kind == name else TRICKS]
        for other in HAND:
            yield Claim(name, other, f"{name} beats tuned {other}", source)
        if kind != name:
            yield Claim(name, kind, f"{name} beats {kind}", source)


def tables(study: Study, results: dict[str, Any]) -> Iterator[str]:
    """One line with the steps of training."""
    arms = next(iter(results["groups"].values()))["arms"]
    spent = {name: arms[name]["training_steps"] for name in study.settings.arms}
    yield "steps of training: " + ", ".join(f"{name} {steps:,}" for name, steps in spent.items())


def draw(folder: Path, results: dict[str, Any]) -> None:
    """Loss curves over every horizon."""
    for group, found in results["groups"].items():
        horizon = group.rsplit("-")[-1]
        curves = losses(found["arms"], banded=found["arms"])
        panel = Panel(f"Classifiers of digits over {horizon} steps", curves)
        curve_panels(folder / f"baselines-{horizon}.png", [panel])


_TRICKS_QUICK = dataclasses.replace(
    Settings().tricks, runs=30, chunk=10, patience=1, validation_tasks=4, stages=(40, 80)
)

STUDIES = {
    "baselines": Study(
        name="baselines",
        title=EXPERIMENTS["baselines"].title,
        families=families,
        arms=arms,
        references=("adam", "gd", "momentum", "lstm", "rnnprop"),
        claims=claims,
        budget=Budget(runs=200, steps=100, unroll=20, chunk=20, remat=True),
        seeds=6,
        tasks=6,
        tuning_tasks=8,
        horizons=(100, 1000),
        parts=None,
        figures=(draw,),
        tables=tables,
        settings=Settings(),
        quick={
            "tasks": 6,
            "seeds": 2,
            "tuning_tasks": 4,
            "horizons": (40, 200),
            "budget": Budget(runs=60, steps=40, unroll=20, chunk=10, remat=True),
            "settings": Settings(("rnnprop", "rnnprop-tricks"), _TRICKS_QUICK, rates=9),
        },
    )
}
