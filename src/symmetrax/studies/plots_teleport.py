"""Loss curves of teleported optimizers against everything they cost, drawn from results alone."""

import pathlib
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from symmetrax.studies import plots
from symmetrax.studies.core._styles import styles

#: Losses above so many times the first are outside of the picture.
HIGHEST = 30.0
#: What the loss is drawn against: a name, and the key of its values in an arm.
AXES = {"steps": None, "gradient evaluations": "evaluations_curve", "microseconds per run": "seconds_curve"}


def budgets(
    path: pathlib.Path, arms: dict[str, Any], panels: dict[str, tuple[str, ...]], title: str
) -> pathlib.Path:
    """One row for each panel of arms: the median loss against steps, gradient evaluations and microseconds.

    Bands are quartiles. Times are averages over all runs of an arm, which run together.
    """
    rows = {name: [n for n in names if n in arms] for name, names in panels.items()}
    figure, grid = plt.subplots(
        len(rows), len(AXES), figsize=(15, 4 * len(rows)), sharey="row", layout="constrained", squeeze=False
    )
    style = styles(arm for drawn in rows.values() for arm in drawn)
    for row, (name, drawn) in zip(grid, rows.items(), strict=True):
        for ax, (axis, key) in zip(row, AXES.items(), strict=True):
            for arm in drawn:
                _curve(ax, arm, arms[arm], key, style[arm])
            ax.set(xlabel=axis, yscale="log")
            ax.grid(alpha=0.2)
        _limit(row[0], [arms[n] for n in drawn])
        row[0].set(ylabel="loss: median, quartiles", title=name)
        row[-1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    runs = next(iter(arms.values()))["runs"]
    figure.suptitle(f"{title}: {runs:,} runs per arm")
    return plots._write(figure, path)


def _curve(ax: Any, name: str, arm: dict[str, Any], key: str | None, style: dict[str, Any]) -> None:
    low, middle, high = (np.array(arm[f"loss_{q}"], float) for q in ("q25", "median", "q75"))
    along = np.arange(len(middle)) if key is None else np.array(arm[key])
    if key == "seconds_curve":
        along = 1e6 * along
    ends = "" if middle[-1] < HIGHEST * middle[0] else " (diverges)"
    ax.plot(along, middle, label=name + ends, **style)
    ax.fill_between(along, low, high, color=style["color"], alpha=0.1, linewidth=0)


def _limit(ax: Any, arms: list[dict[str, Any]]) -> None:
    """Diverging and solved runs must not hide the others."""
    medians = np.concatenate([np.array(arm["loss_median"], float) for arm in arms])
    start = float(medians[0])
    least = np.min(medians, initial=start, where=medians > 0)
    ax.set_ylim(max(least / 5, 1e-12 * start), HIGHEST * start)
