"""Do learned teleports and learned momentum help to train classifiers of digits and MNIST?

The three arms of section 5.2 of arXiv:2504.15399 (learned step size; with teleports; with momentum too) on
real classification by minibatches, with networks that serve any width, and with the paper's own LSTMs over
the whole gradient at one width; beside them the coordinate-wise LSTM with and without teleports, baselines
tuned on the training stream, and the controls that tell what a teleport itself contributes. Arms are compared
by the loss on all training images after the last step.
"""

import dataclasses
import json
import os
from typing import Any

import numpy as np
import rich.table

from symmetrax.studies import plots_learning
from symmetrax.studies._classification_runs import (
    STEPS,
    TRANSPORTS,
    TUNED,
    UPDATES,
    WHOLE,
    Config,
    Group,
    Training,
    run_group,
    with_controls,
)
from symmetrax.studies._classification_verdicts import answers, describe, judge
from symmetrax.studies._classifiers import CONTROLS, Size
from symmetrax.studies.core._console import Reporter, arms_table, number, titled_table, verdict_table
from symmetrax.studies.core._folder import RunFolder, as_json
from symmetrax.studies.core._runs import Runs
from symmetrax.tasks._data import FOLDER

#: Controls that take no training and no compilation of their own.
QUICK_CONTROLS = tuple(
    name
    for name, (of, how) in CONTROLS.items()
    if of in ("lr-tele", "lr-tele-momentum") and how in ("off", "random")
)


def config(name: str, preset: str = "full", seed: int = 0) -> Config:
    """The settings under a preset; MNIST is part of "full" where SYMMETRAX_DATA names a folder.

    >>> config("classification").seeds
    6
    """
    if preset != "full":
        # Without "lr": its networks would take a fifth of the time, and "lr-tele-off" stands for them.
        arms = ("lr-tele", "lr-tele-momentum", *QUICK_CONTROLS, *TUNED)
        group = Group("digits", "digits", (16,), arms, tasks=10)
        lr = Training(runs=30, tasks=4)
        small = Config((group,), Size(steps=40), lr, seed=seed, seeds=2, unroll=20, patience=0)
        return dataclasses.replace(small, tuning_tasks=4, tuning_rates=9)
    one_width = with_controls(("lr-tele-momentum", *TRANSPORTS, *UPDATES, *WHOLE))
    digits = Group("digits", "digits", (16, 32), with_controls(STEPS), trained=(16,))
    brief = Training(runs=45, tasks=8)
    mnist = Group("mnist", "mnist", (16, 32), with_controls(STEPS), trained=(16,), training=brief)
    single = Group("digits-16", "digits", (16,), one_width)
    groups = (digits, mnist, single) if os.environ.get(FOLDER) else (digits, single)
    return Config(groups, seed=seed)


def run(settings: Config, folder: RunFolder, reporter: Reporter) -> dict[str, Any]:
    """Train, tune, run all arms of all groups; an arm that is done is kept with the checkpoints."""
    groups, verdicts, words = {}, [], {}
    for group in settings.groups:
        rans, recorded = run_group(settings, group, folder, reporter)
        folder.arrays(f"{group.name}-runs", _arrays(rans))
        found = groups[group.name] = describe(rans, recorded)
        # As it is read from the file, where infinities are strings.
        found = json.loads(as_json(found))
        rows = judge(group.name, found)
        verdicts += rows
        words[group.name] = answers(found)
        _draw(folder, group, found, rows)
    notes = []
    if not any(group.data == "mnist" for group in settings.groups):
        notes.append(f"Digits alone: MNIST is part of the full preset where {FOLDER} names a folder with it.")
    return {"groups": groups, "verdicts": verdicts, "answers": words, "notes": notes}


def _arrays(rans: dict[str, Runs]) -> dict[str, np.ndarray]:
    """What is kept of all runs: losses, ends, and for teleports defects and refusals."""
    arrays = {}
    for name, ran in rans.items():
        arrays[f"{name}.loss"] = ran.losses.astype(np.float32)
        arrays |= {f"{name}.{end}": values.astype(np.float32) for end, values in ran.measured.items()}
        for recorded in ("step_size", "momentum", "loss_change", "outcome"):
            if recorded in ran.recorded and np.any(ran.recorded[recorded] > 0):
                arrays[f"{name}.{recorded}"] = ran.recorded[recorded].astype(np.float32)
    return arrays


#: What is drawn together.
PANELS = {
    "Step size, teleports, momentum": (
        "lr",
        "lr-tele",
        "lr-momentum",
        "lr-tele-momentum",
        "whole-lr",
        "whole-lr-tele",
        "whole-lr-tele-momentum",
        *TUNED,
    ),
    "Learned update": ("update", "update-tele", "update-tele-off", "update-tele-random", "adam"),
    "Controls": (
        "lr-tele",
        "lr-tele-off",
        "lr-tele-random",
        "lr-tele-constant",
        "lr-tele-momentum",
        "lr-tele-momentum-off",
        "lr-tele-momentum-random",
        "lr-tele-momentum-constant",
        "whole-lr-tele-momentum",
        "whole-lr-tele-momentum-off",
        "whole-lr-tele-momentum-random",
    ),
}


def _draw(folder: RunFolder, group: Group, found: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    title = f"{group.name}: {next(iter(found['arms'].values()))['runs']:,} unseen runs for each arm"
    plots_learning.loss_panels(folder.path / f"{group.name}.png", found["arms"], PANELS, title)
    ratios = {
        f"{row['ours']} / {row['theirs']}": found["arms"][row["ours"]]["versus"][row["theirs"]]
        for row in rows
    }
    plots_learning.ratio_rows(folder.path / f"{group.name}-ratios.png", ratios, title)


def show(settings: Config, results: dict[str, Any], reporter: Reporter) -> None:
    """Print the tables of a run."""
    for name, group in results["groups"].items():
        arms = group["arms"]
        runs = next(iter(arms.values()))["runs"]
        # The table's losses are those on all training images.
        finals = {
            arm: {**entry, "loss_median": [*entry["loss_median"][:-1], entry["final_train_median"]]}
            for arm, entry in arms.items()
        }
        reporter.print(
            arms_table(f"{name}: loss on all training images, all {runs:,} unseen runs", finals, "adam")
        )
        reporter.print(_accuracy_table(name, arms))
        for question, answer in results["answers"][name].items():
            reporter.print(f"{name}: {question} {answer}")
    reporter.print(verdict_table(results["verdicts"]))
    for note in results["notes"]:
        reporter.print(note)


def _accuracy_table(name: str, arms: dict[str, Any]) -> rich.table.Table:
    columns = (
        "accuracy, unseen images",
        "over adam's",
        "median step size",
        "momentum",
        "defect, largest",
        "trajectories",
    )
    table = titled_table(f"{name}: accuracy, and what the networks did", "arm", columns)
    for arm, entry in arms.items():
        low, high = (number(x) for x in entry["test_accuracy_interval"])
        over = entry.get("accuracy_over_adam")
        recorded = entry.get("recorded", {})
        loss_change = entry.get("loss_change_max")
        table.add_row(
            arm,
            f"{entry['test_accuracy']:.1%} ({low:.1%} to {high:.1%})",
            "" if over is None else "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * number(x) for x in over)),
            *(
                f"{np.median(recorded[key]):.2g}" if key in recorded else ""
                for key in ("step_size", "momentum")
            ),
            "" if loss_change is None else f"{number(loss_change):.1e}",
            str(entry.get("trajectories", "")),
        )
    return table
