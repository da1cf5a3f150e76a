"""A first look: an optimizer that sees the loss along the orbit, with and without teleports.

It learns on random Rosenbrock-like functions, and is compared with Adam, Newton's step and the paper's own
optimizers. A second half trains one for classifiers of digits.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from symmetrax.studies import digits, plane_league
from symmetrax.studies._orbit_arms import budget
from symmetrax.studies._registry import EXPERIMENTS
from symmetrax.studies.core._console import arms_table, number, titled_table
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._panels import Panel, curve_panels, losses
from symmetrax.studies.core._plane_figures import trajectories
from symmetrax.studies.core._run import Run
from symmetrax.studies.core._runner import run_study
from symmetrax.studies.core._study import Study
from symmetrax.studies.core._trajectories import paths
from symmetrax.tasks._families import make_family

#: How the arms are called here.
LABELS = {
    "peak": "teleporting",
    "vanilla": "not teleporting",
    "peak-off": "teleports switched off",
    "adam": "Adam, tuned",
    "newton": "Newton's step",
    "paper-teleport": "paper's, teleporting",
    "paper-vanilla": "paper's, not teleporting",
}

#: A question is whether the first arm ends at a lower loss than the second.
QUESTIONS = (
    ("peak", "vanilla", "Does teleporting help an optimizer that looks along the orbit?"),
    ("peak", "peak-off", "Is it the teleports? (the same network with its teleports switched off)"),
    ("peak", "adam", "Does it beat Adam, tuned for these functions?"),
    ("newton", "peak", "Does Newton's step, which uses second derivatives, beat it?"),
    ("paper-teleport", "paper-vanilla", "Do teleports help the paper's own optimizer?"),
)
ON_DIGITS = "Does a learned optimizer beat tuned Adam on classifiers of digits that it has not seen?"

FAMILY = "rosenbrock-random"
#: The number of steps after which the questions are answered.
STEPS = 12


def analyse(run: Run) -> dict[str, Any]:
    """The second half, on digits, and the answers of both in words."""
    on_plane = plane_league.analyse(run)
    arms = run.results["groups"][f"{FAMILY}-{STEPS}"]["arms"]
    run.folder.arrays("trajectories", paths(run, make_family(FAMILY), ("vanilla", "peak"), STEPS))
    on_digits = _digits(run)
    versus = on_digits["groups"]["digits"]["arms"]["learned"]["versus"]["adam"]
    return {
        **on_plane,
        "groups": run.results["groups"] | on_digits["groups"],
        "verdicts": run.results["verdicts"] + on_digits["verdicts"],
        "answers": [
            *(answer(question, arms[ours]["versus"][theirs]) for ours, theirs, question in QUESTIONS),
            answer(ON_DIGITS, versus),
        ],
    }


def _digits(run: Run) -> dict[str, Any]:
    """The results of the quick preset of `digits`, in a folder inside that of the run."""
    study = digits_study(run.study)
    folder = RunFolder(run.folder.path / "digits", "digits", "quick", study.identity())
    found = folder.finished()
    if found is None:
        found = run_study(study, folder, run.reporter)
        folder.results({"experiment": "digits", "preset": "quick", **found})
        folder.drop_checkpoints()
    found["groups"]["digits"]["against"] = "adam"
    return found


def digits_study(study: Study) -> Study:
    """The second half of the demo: the quick preset of `digits` with the demo's seed.

    >>> digits_study(STUDIES["demo"]).seeds
    2
    """
    return digits.STUDIES["digits"].preset("quick", study.seed)


def answer(question: str, versus: dict[str, Any]) -> dict[str, str]:
    """Whether one final loss is lower than another, in words: "yes" or "no" if the whole interval says so.

    >>> answer("Is it better?", {"log_ratio": -0.69, "low": -1.1, "high": -0.1})["answer"]
    'yes'
    """
    median, low, high = (
        float(np.exp(np.clip(number(versus[key]), -700, 700))) for key in ("log_ratio", "low", "high")
    )
    found = "yes" if high < 1 else "no" if low > 1 else "not decided"
    why = f"its final loss is {median:.2g} times the other's (95 % interval: {low:.2g} to {high:.2g})"
    return {"question": question, "answer": found, "why": why}


def tables(study: Study, results: dict[str, Any]) -> Iterator[Any]:
    """The arms under names that a reader knows, and the answers."""
    arms = results["groups"][f"{FAMILY}-{STEPS}"]["arms"]
    named = {
        label: {**arms[name], "versus": {LABELS.get(n, n): v for n, v in arms[name]["versus"].items()}}
        for name, label in LABELS.items()
    }
    runs = arms["peak"]["runs"]
    title = f"random Rosenbrock-like functions: loss after {STEPS} steps, all {runs:,} unseen runs"
    yield arms_table(title, named, LABELS["vanilla"])
    table = titled_table("In words")
    table.add_column("answer", no_wrap=True)
    table.add_column("question, and what was measured")
    for row in results["answers"]:
        table.add_row(row["answer"], f"{row['question']} {row['why'][:1].upper()}{row['why'][1:]}.")
    yield table


def draw(folder: Path, results: dict[str, Any]) -> None:
    """Loss curves, and trajectories of the first networks on four unseen functions."""
    arms = results["groups"][f"{FAMILY}-{STEPS}"]["arms"]
    title = f"Random Rosenbrock-like functions: {arms['peak']['runs']:,} unseen runs of each optimizer"
    panel = Panel(title, losses(arms, LABELS, banded=("peak", "vanilla")))
    curve_panels(folder / "curves.png", [panel], labels=LABELS)
    with np.load(folder / "trajectories.npz", allow_pickle=False) as arrays:
        trajectories(folder / "trajectories.png", dict(arrays), "Four unseen functions", LABELS)


def _paper(runs: int) -> Any:
    paper = dataclasses.replace(plane_league.Settings().paper_budget, runs=runs)
    return plane_league.Settings(
        learned=("peak",),
        distance=0.0,
        paper=("vanilla", "teleport"),
        paper_budget=paper,
        hand_made=("adam", "newton"),
        far=False,
    )


STUDIES = {
    "demo": dataclasses.replace(
        plane_league.STUDIES["plane-league"],
        name="demo",
        title=EXPERIMENTS["demo"].title,
        families=(FAMILY,),
        seeds=4,
        tasks=200,
        tuning_tasks=100,
        horizons=(STEPS, 50),
        budget=budget(300, 32),
        analyse=analyse,
        figures=(draw,),
        tables=tables,
        settings=_paper(500),
        quick={"budget": budget(100, 32), "settings": _paper(200)},
    )
}
