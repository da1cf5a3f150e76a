"""Pictures of transfer: one optimizer on many networks, drawn from the results of a run and nothing else."""

import pathlib
from typing import Any

import numpy as np

from symmetrax.studies.core._styles import styles
from symmetrax.studies.plots import _write, plt

#: Arms of the panels, and the marks of their kinds.
MARKS = {
    "update": "o",
    "update-tele": "o",
    "update-tele-random": "o",
    "lr": "s",
    "lr-tele": "s",
    "lr-absolute": "s",
    "sgd": "x",
    "sgd-there": "x",
    "adam": "x",
    "adam-there": "x",
}
TITLES = {"widths": "widths", "depths": "depths", "data": "other images"}
#: Ratios are cut here.
FARTHEST = 20.0
TICKS = (0.05, 0.1, 0.2, 0.5, 0.8, 1, 1.25, 2, 5, 10, 20)


def losses(path: pathlib.Path, groups: dict[str, Any]) -> pathlib.Path:
    """The median loss at the end against the network, one panel for each way to differ."""
    panels = _panels(groups)
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.3 * len(panels) + 1, 4), sharey=True, layout="constrained", squeeze=False
    )
    for ax, (kind, names) in zip(axes[0], panels.items(), strict=True):
        for arm, style in styles(MARKS).items():
            if all(arm in groups[name]["arms"] for name in names):
                values = [float(groups[name]["arms"][arm]["final_train_median"]) for name in names]
                start = float(groups[names[0]]["arms"][arm]["loss_median"][0])
                capped = [value if value < 10 * start else np.nan for value in values]
                ax.plot(range(len(names)), capped, label=arm, marker=MARKS[arm], markersize=4, **style)
        ax.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=8)
        ax.set(title=TITLES[kind], yscale="log")
        ax.grid(alpha=0.2)
    axes[0][0].set_ylabel("loss on all training images at the end, median")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.suptitle(f"Trained on {next(iter(groups))}, tested on others")
    return _write(figure, path)


def ratios(path: pathlib.Path, groups: dict[str, Any], pools: dict[str, dict[str, Any]]) -> pathlib.Path:
    """Ratios of final losses on every network, with intervals; one panel for each comparison."""
    pairs = [pair.split(" / ") for pair in next(iter(pools.values()))]
    names, columns = list(groups), min(4, len(pairs))
    rows = -(-len(pairs) // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(2.6 * columns + 1.2, rows * (0.24 * len(names) + 1.1) + 0.4),
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    for ax, (ours, theirs) in zip(axes.flat, pairs, strict=False):
        for row, name in enumerate(names):
            versus = groups[name]["arms"][ours]["versus"][theirs]
            logs = [float(versus[key]) for key in ("log_ratio", "low", "high")]
            middle, low, high = np.exp(np.clip(logs, -np.log(FARTHEST), np.log(FARTHEST)))
            color = "#009E73" if high < 1 else "#D55E00" if low > 1 else "#666666"
            ax.plot([low, high], [row, row], color=color)
            ax.plot(middle, row, "o", color=color, markersize=4)
        ax.axvline(1.0, color="black", linewidth=0.7)
        ax.set_title(f"{ours}\n/ {theirs}", fontsize=9)
        ax.set_xscale("log")
        reach = max(1.25, 1.1 / ax.get_xlim()[0], 1.1 * ax.get_xlim()[1])
        ticks = [tick for tick in TICKS if 1 / reach <= tick <= reach]
        ticks = ticks if len(ticks) <= 5 else [tick for tick in ticks if tick in TICKS[1::2]]
        ax.set_xlim(1 / reach, reach)
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=8)
        ax.minorticks_off()
        ax.grid(alpha=0.2, axis="x")
    for ax in list(axes.flat)[len(pairs) :]:
        ax.axis("off")
    for ax in axes[:, 0]:
        ax.set_yticks(range(len(names)), names, fontsize=8)
    axes[0, 0].invert_yaxis()
    figure.suptitle(f"Ratios of losses at the end, 95 % intervals (cut at {FARTHEST:g})")
    return _write(figure, path)


def _panels(groups: dict[str, Any]) -> dict[str, list[str]]:
    """The networks of every panel, by size; with the network of training."""
    panels = {}
    for kind in TITLES:
        names = [name for name, group in groups.items() if group["kind"] == kind]
        if names:
            names += [name for name, group in groups.items() if group["kind"] == "trained"]
            panels[kind] = sorted(names, key=lambda name: groups[name]["parameters"])
    return panels or {"widths": list(groups)}
