"""What is kept of runs of classifiers, and what `classification` shows."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rich.table

from symmetrax.studies.core._console import number, titled_table
from symmetrax.studies.core._folder import as_json
from symmetrax.studies.core._measurements import ONLY, interval_panels
from symmetrax.studies.core._panels import Panel, curve_panels, losses
from symmetrax.studies.core._runs import Runs
from symmetrax.studies.core._study import Study


def arrays(rans: dict[str, Runs]) -> dict[str, np.ndarray]:
    """What is kept of all runs: losses, ends, and what was emitted; for teleports their changes of the loss.

    >>> ran = Runs(np.ones((2, 3, 5)), {"momentum": np.ones((2, 3, 4))}, {"train": np.ones((2, 3))}, 0.1)
    >>> sorted(arrays({"lr": ran}))
    ['lr.loss', 'lr.momentum', 'lr.train']
    """
    found = {}
    for name, ran in rans.items():
        kept = ("step_size", "momentum", "loss_change", "outcome")
        recorded = {key: ran.recorded[key] for key in kept if key in ran.recorded}
        # Where nothing was emitted or no teleport was due, -1 stands at every step.
        recorded = {key: x for key, x in recorded.items() if np.any(x >= 0)}
        values = {"loss": ran.losses, **ran.measured, **recorded}
        found |= {f"{name}.{key}": x.astype(np.float32) for key, x in values.items()}
    return found


#: What is drawn together.
LOSS = "loss on the next minibatch: median"
PANELS = {
    "Step size, teleports, momentum": (
        "lr",
        "lr-tele",
        "lr-momentum",
        "lr-tele-momentum",
        "whole-lr",
        "whole-lr-tele",
        "whole-lr-tele-momentum",
        "sgd",
        "momentum",
        "adam",
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


def draw(folder: Path, results: dict[str, Any]) -> None:
    """Loss curves, and the ratios that verdicts are about."""
    for name, group in json.loads(as_json(results["groups"])).items():
        arms = group["arms"]
        title = f"{name}: {next(iter(arms.values()))['runs']:,} unseen runs for each arm"
        panels = [Panel(text, losses(arms, names, banded=()), y=LOSS) for text, names in PANELS.items()]
        curve_panels(
            folder / f"{name}.png", [panel for panel in panels if len(panel.curves) > 1], title=title
        )
        pairs = [(row["ours"], row["theirs"]) for row in results["verdicts"] if row["group"] == name]
        ratios = {ONLY: {f"{ours} / {theirs}": arms[ours]["versus"][theirs] for ours, theirs in pairs}}
        interval_panels(folder / f"{name}-ratios.png", {title: ratios}, "ratio of final losses", cut=100.0)


def tables(study: Study, results: dict[str, Any]) -> Iterator[Any]:
    """Accuracies, answers and notes."""
    for name, group in results["groups"].items():
        yield _accuracy_table(name, group["arms"])
        for question, answer in results["answers"][name].items():
            yield f"{name}: {question} {answer}"
    yield from results["notes"]


def _accuracy_table(name: str, arms: dict[str, Any]) -> rich.table.Table:
    columns = (
        "accuracy, unseen images",
        "over adam's",
        "median step size",
        "momentum",
        "loss change, largest",
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
