"""Do learned teleports transfer? Trained on one small network, tested on other widths, depths and images.

A learned optimizer that serves networks of any size is joined with a per-neuron LSTM, which teleports by
positive scalings: the coordinate-wise LSTM ("update"), or a network for the step size ("lr"). Both are
meta-trained on one classifier of digits and then meet networks they have never seen. Beside them the same
optimizers trained without teleports, teleports switched off or random at test, and gradient descent and Adam,
with rates tuned on the network of training ("sgd-there") and, apart, on each network itself ("sgd").
"""

import dataclasses
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from symmetrax.studies._classification_report import arrays
from symmetrax.studies._classification_verdicts import describe
from symmetrax.studies._classifiers import Size, ends, image_family
from symmetrax.studies._registry import EXPERIMENTS
from symmetrax.studies._transfer_targets import STEPS, TARGETS, Target, learned_arms
from symmetrax.studies._transfer_verdicts import answers, cost_table, judge, pooled, ratio_table
from symmetrax.studies.core._arm import Tuned
from symmetrax.studies.core._console import number
from symmetrax.studies.core._hand_made import RATES, adam, descent
from symmetrax.studies.core._measurements import ONLY, interval_panels
from symmetrax.studies.core._meta_training import Budget
from symmetrax.studies.core._panels import Curve, Panel, curve_panels
from symmetrax.studies.core._run import Run
from symmetrax.studies.core._runs import RECORDED
from symmetrax.studies.core._study import Arm, Study
from symmetrax.tasks._base import AbstractTaskFamily
from symmetrax.tasks._data import FOLDER

#: The baselines, and the momenta (b1 of Adam) among which each is tuned, beside the rates.
HAND = {"sgd": (descent, (0.0, 0.9)), "adam": (adam, (0.9,))}
THERE = "-there"


@dataclasses.dataclass(frozen=True)
class Settings:
    """The networks, of which the first is that of training, and which arms there are.

    `coordinates` bounds the parameters that a network's unseen runs have together, so that wide networks are
    met by fewer runs.

    >>> Settings().targets[0].name
    'digits 16'
    """

    targets: tuple[Target, ...] = TARGETS
    steps: tuple[str, ...] = tuple(STEPS)
    baselines: tuple[str, ...] = tuple(HAND)
    size: Size = Size()  # noqa: RUF009 (frozen)
    coordinates: int = 40_000
    batch: int = 64
    rates: int = len(RATES)

    def there(self) -> list[Target]:
        """The networks that there are data for."""
        return [target for target in self.targets if target.data != "mnist" or os.environ.get(FOLDER)]


def families(study: Study) -> list[AbstractTaskFamily]:
    """The network of training."""
    return [_family(study.settings, study.settings.targets[0])]


def other_networks(study: Study, family: AbstractTaskFamily) -> dict[str, AbstractTaskFamily]:
    """The other networks."""
    others = study.settings.there()[1:]
    return {target.family: _family(study.settings, target) for target in others}


def _family(settings: Settings, target: Target) -> AbstractTaskFamily:
    return image_family(target.data, (target.widths,), settings.batch, target.family)


def tasks_of(study: Study, family: AbstractTaskFamily) -> int:
    """The number of unseen runs of each meta-seed on a network, an even one.

    >>> study = STUDIES["transfer"]
    >>> networks = other_networks(study, families(study)[0])
    >>> {name: tasks_of(study, family) for name, family in list(networks.items())[:4]}
    {'digits-8': 10, 'digits-32': 10, 'digits-128': 4, 'digits-512': 2}
    """
    target = next(target for target in study.settings.targets if target.family == family.name)
    return max(2, 2 * (min(study.tasks, study.settings.coordinates // target.parameters) // 2))


def arms(study: Study, family: AbstractTaskFamily) -> list[Arm]:
    """What is trained, with its controls, and baselines tuned where it was trained and on each network.

    >>> study = STUDIES["transfer"]
    >>> [arm.name for arm in arms(study, families(study)[0])][:4]
    ['update', 'update-tele', 'update-tele-off', 'update-tele-random']
    """
    settings = study.settings
    found: list[Arm] = learned_arms(settings.steps, settings.size, study.seeds)
    rates = tuple(np.geomspace(RATES[0], RATES[-1], settings.rates).tolist())
    for name, suffix in itertools.product(settings.baselines, ("", THERE)):
        make, momenta = HAND[name]
        found.append(Tuned(name + suffix, make, rates, momenta, anew=not suffix))
    return found


def analyse(run: Run) -> dict[str, Any]:
    """Compare arms on every network, and pool networks that differ in one way from that of training."""
    settings, ((family, played),) = run.study.settings, run.played.items()
    groups, rans = {}, {}
    for target in settings.there():
        test = "" if target.family == family else target.family
        ran = rans[target] = {arm: r for (t, arm, _), r in played.runs.items() if t == test}
        cards = run.results["groups"][f"{family}-{test}" if test else family]["arms"]
        run.folder.arrays(f"{target.family}-runs", arrays(ran))
        groups[target.name] = {"kind": target.kind, "parameters": target.parameters, **describe(ran, cards)}
    pools = pooled(rans)
    absent = [target.name for target in settings.targets if target not in rans]
    return {
        "groups": groups,
        "pooled": pools,
        "answers": answers(pools),
        "verdicts": judge(pools),
        "notes": [f"{name} is left out: {FOLDER} names no folder with MNIST." for name in absent],
    }


TITLES = {"widths": "widths", "depths": "depths", "data": "other images"}
#: The arms of the panels of losses.
DRAWN = (
    *("update", "update-tele", "update-tele-random", "lr", "lr-tele", "lr-absolute"),
    *("sgd", "sgd-there", "adam", "adam-there"),
)


def draw(folder: Path, results: dict[str, Any]) -> None:
    """Losses on all networks, and ratios."""
    groups = results["groups"]
    y = "loss on all training images\nat the end: median"
    shown = [
        Panel(title, _curves({name: groups[name]["arms"] for name in names}), "", y, ticks=names)
        for title, names in by_kind(groups).items()
    ]
    title = f"Trained on {next(iter(groups))}, tested on others"
    curve_panels(folder / "losses.png", shown, title=title)
    pairs = [pair.split(" / ") for pair in next(iter(results["pooled"].values()))]
    tables = {
        f"{ours}\n/ {theirs}": {
            ONLY: {name: group["arms"][ours]["versus"][theirs] for name, group in groups.items()}
        }
        for ours, theirs in pairs
    }
    interval_panels(folder / "ratios.png", tables, "ratio of losses at the end", cut=20.0)


def _curves(arms: dict[str, Any]) -> dict[str, Curve]:
    """The losses at the end on the networks that have these arms, where they do not diverge."""
    first = next(iter(arms.values()))
    curves = {}
    for arm in DRAWN:
        if all(arm in own for own in arms.values()):
            ends = np.array([number(own[arm]["final_train_median"]) for own in arms.values()])
            ends[ends >= 10 * number(first[arm]["loss_median"][0])] = np.nan
            curves[arm] = Curve(np.arange(len(ends)), ends)
    return curves


def by_kind(groups: dict[str, Any]) -> dict[str, list[str]]:
    """The networks of every way to differ, by size, with the network of training.

    >>> networks = {"64": {"kind": "trained", "parameters": 9}, "32": {"kind": "widths", "parameters": 5}}
    >>> by_kind(networks)
    {'widths': ['32', '64']}
    """
    trained = [name for name, group in groups.items() if group["kind"] == "trained"]
    panels = {}
    for kind, title in TITLES.items():
        if names := [name for name, group in groups.items() if group["kind"] == kind]:
            panels[title] = sorted(names + trained, key=lambda name: groups[name]["parameters"])
    return panels or {"widths": trained}


def tables(study: Study, results: dict[str, Any]) -> Iterator[Any]:
    """Ratios on every network, what a step takes, and answers."""
    found = (ratio_table(results["groups"], group) for group in ("update", "lr", "baselines"))
    yield from (table for table in found if table is not None)
    yield cost_table(results["groups"])
    yield from (f"{question} {answer}" for question, answer in results["answers"].items())
    yield from results["notes"]


STUDIES = {
    "transfer": Study(
        name="transfer",
        title=EXPERIMENTS["transfer"].title,
        families=families,
        tests=other_networks,
        arms=arms,
        budget=Budget(steps=100, unroll=20, runs=160, chunk=20, remat=True),
        seeds=6,
        tasks=10,
        tuning_tasks=10,
        tasks_of=tasks_of,
        watch=RECORDED,
        measure=ends,
        tuned_by="train",
        analyse=analyse,
        figures=(draw,),
        tables=tables,
        settings=Settings(),
        quick={
            "seeds": 2,
            "tasks": 4,
            "tuning_tasks": 4,
            "budget": Budget(steps=60, unroll=20, runs=40, chunk=20, remat=True),
            "settings": Settings(
                (TARGETS[0], Target("widths", "digits", (64,))),
                steps=("update",),
                baselines=("adam",),
                size=Size(steps=60),
                rates=9,
            ),
        },
    )
}
