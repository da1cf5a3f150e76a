"""What works first: an optimizer that looks along the orbit, with and without its teleports, on random
Rosenbrock-like functions, beside Adam, Newton's step and the paper's own optimizers; then one for digits."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from symmetrax.learned._artifact import load
from symmetrax.studies import digits, plane_league, plots
from symmetrax.studies._orbit_arms import Training, as_used, orbit_arm
from symmetrax.studies.core._console import Reporter, arms_table, number, titled_table
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._runs import evaluate
from symmetrax.studies.core._streams import Streams
from symmetrax.studies.core._trajectories import TASKS, trajectories
from symmetrax.tasks._families import make_family

#: How the arms of the league are called here.
LABELS = {
    "crest": "teleporting",
    "vanilla": "not teleporting",
    "crest-off": "teleports switched off",
    "adam": "Adam, tuned",
    "newton": "Newton's step",
    "paper-teleport": "paper's, teleporting",
    "paper-vanilla": "paper's, not teleporting",
}

#: A question is whether the first arm ends at a lower loss than the second.
QUESTIONS = (
    ("crest", "vanilla", "Does teleporting help an optimizer that looks along the orbit?"),
    ("crest", "crest-off", "Is it the teleports? (the same network with its teleports switched off)"),
    ("crest", "adam", "Does it beat Adam, tuned for these functions?"),
    ("newton", "crest", "Does Newton's step, which uses second derivatives, beat it?"),
    ("paper-teleport", "paper-vanilla", "Do teleports help the paper's own optimizer?"),
)
ON_DIGITS = "Does a learned optimizer beat tuned Adam on classifiers of digits that it has not seen?"

#: Of which the question's answers are told.
STEPS = 12


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of the two halves.

    >>> config("demo").plane.families
    ('rosenbrock-random',)
    """

    plane: plane_league.Config
    digits: digits.Config


def config(name: str, preset: str = "full", seed: int = 0) -> Config:
    """The settings under a preset; "quick" trains less.

    >>> config("demo").plane.seeds
    4
    """
    full = preset == "full"
    return Config(
        plane_league.Config(
            seed=seed,
            seeds=4,
            tasks=200,
            tuning_tasks=100,
            families=("rosenbrock-random",),
            horizons=(STEPS, 50),
            training=Training(runs=300 if full else 100, tasks=32),
            learned=("crest",),
            ablations=(),
            distance=0.0,
            paper=("vanilla", "teleport"),
            paper_runs=500 if full else 200,
            hand_made=("adam", "newton"),
            far=False,
        ),
        digits.config("digits", "quick", seed),
    )


def run(settings: Config, folder: RunFolder, reporter: Reporter) -> dict[str, Any]:
    """Both halves, in one folder, and their answers in words."""
    on_plane = plane_league.run(settings.plane, folder, reporter)
    arms = on_plane["groups"][f"{_family(settings)}-{STEPS}"]["arms"]
    plots.curves(
        folder.path / "curves.png",
        {name: arms[name] for name in LABELS},
        f"Random Rosenbrock-like functions: {arms['crest']['runs']:,} unseen runs of each optimizer",
        labels=LABELS,
        banded=("crest", "vanilla"),
    )
    (folder.path / "ratios.png").unlink()  # the same as the table, under the names of the league
    _draw_trajectories(settings, folder)
    on_digits = digits.run(settings.digits, folder, reporter)
    versus = on_digits["groups"]["digits"]["arms"]["learned"]["versus"]["adam"]
    return {
        **on_plane,
        "groups": on_plane["groups"] | on_digits["groups"],
        "verdicts": on_plane["verdicts"] + on_digits["verdicts"],
        "answers": [
            *(answer(question, arms[ours]["versus"][theirs]) for ours, theirs, question in QUESTIONS),
            answer(ON_DIGITS, versus),
        ],
    }


def answer(question: str, versus: dict[str, Any]) -> dict[str, str]:
    """Whether one final loss is lower than another, in words: "yes" or "no" if the whole interval says so.

    >>> answer("Is it better?", {"log_ratio": -0.69, "low": -1.1, "high": -0.1})["answer"]
    'yes'
    """
    middle, low, high = (
        float(np.exp(np.clip(number(versus[key]), -700, 700))) for key in ("log_ratio", "low", "high")
    )
    found = "yes" if high < 1 else "no" if low > 1 else "not decided"
    why = f"its final loss is {middle:.2g} times the other's (95 % interval: {low:.2g} to {high:.2g})"
    return {"question": question, "answer": found, "why": why}


def show(settings: Config, results: dict[str, Any], reporter: Reporter) -> None:
    """Print the tables and the answers."""
    arms = results["groups"][f"{_family(settings)}-{STEPS}"]["arms"]
    named = {
        label: {**arms[name], "versus": {LABELS.get(n, n): v for n, v in arms[name]["versus"].items()}}
        for name, label in LABELS.items()
    }
    runs = arms["crest"]["runs"]
    title = f"random Rosenbrock-like functions: loss after {STEPS} steps, all {runs:,} unseen runs"
    reporter.print(arms_table(title, named, LABELS["vanilla"]))
    digits.show(settings.digits, results, reporter, verdicts=False)
    table = titled_table("In words")
    table.add_column("answer", no_wrap=True)
    table.add_column("question, and what was measured")
    for row in results["answers"]:
        table.add_row(row["answer"], f"{row['question']} {row['why'][:1].upper()}{row['why'][1:]}.")
    reporter.print(table)


def _family(settings: Config) -> str:
    return settings.plane.families[0]


def _draw_trajectories(settings: Config, folder: RunFolder) -> None:
    """What the first of the trained networks do on four unseen functions, step by step."""
    family = make_family(_family(settings))
    streams = Streams.of(settings.plane.seed, settings.plane.seeds)
    traces = {}
    for name, variant in (("vanilla", None), ("crest", plane_league.VARIANTS["crest"])):
        network, _ = load(folder.path / "artifacts" / f"{family.name}-{name}.safetensors")
        rule = as_used(orbit_arm(name, family, settings.plane.training, variant).rule, STEPS)
        networks = jax.tree.map(lambda x: jnp.asarray(x)[None], network)
        watch = ("algebra", "outcome") if variant else ()
        options = {"steps": STEPS, "tasks": TASKS, "watch": watch, "points": True}
        traces[name], _ = evaluate(rule, networks, family, streams.test[:1], **options)
    arrays = trajectories(traces, family, streams.test[0], TASKS, first=("crest",))
    folder.arrays("trajectories", arrays)
    plots.trajectories(
        folder.path / "trajectories.png", arrays, "Four unseen functions", {n: LABELS[n] for n in traces}
    )
