"""Pictures of training runs: curves in panels, and comparisons with their intervals."""

import pathlib
from typing import Any

import matplotlib.ticker
import numpy as np

from symmetrax.studies.core._styles import styles
from symmetrax.studies.plots import _write, plt

#: Arms of the panels of one optimizer.
ARMS = ("none", "reset", "action-reset", "action-keep", "exact-carry", "none-tuned", "exact-tuned")


def optimizers(path: pathlib.Path, groups: dict[str, Any], data: str) -> pathlib.Path:
    """One panel of training loss against epochs for every optimizer on one data set."""
    names = [name for name in groups if name.startswith(f"{data}-")]
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4.2 * columns, 3.4 * rows), layout="constrained", squeeze=False
    )
    for ax, name in zip(axes.flat, names, strict=False):
        arms = groups[name]["arms"]
        for label, style in styles(ARMS).items():
            ax.plot(np.array(arms[label]["loss_median"], float), label=label, **style)
        ax.set(title=name.removeprefix(f"{data}-"), xlabel="epoch", yscale="log")
        ax.grid(alpha=0.2)
    for ax in axes.flat[len(names) :]:
        ax.axis("off")
    for ax in axes[:, 0]:
        ax.set_ylabel("training loss, median")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=7, fontsize=9)
    runs = groups[names[0]]["arms"]["none"]["runs"]
    figure.suptitle(f"{data}: teleports inside optimizers, {runs} seeds")
    return _write(figure, path)


def forest(path: pathlib.Path, groups: dict[str, Any], pairs: list[tuple[str, str]]) -> pathlib.Path:
    """One panel for each pair of arms, one interval for each group: ratios of final training losses."""
    names, columns = list(groups), min(4, len(pairs))
    rows = -(-len(pairs) // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(2.7 * columns + 1.2, rows * (0.24 * len(names) + 1.1) + 0.4),
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    for ax, (ours, theirs) in zip(axes.flat, pairs, strict=False):
        for row, name in enumerate(names):
            versus = groups[name]["arms"][ours]["versus"].get(theirs)
            if versus is None:
                continue
            logs = [np.clip(float(versus[key]), -3, 3) for key in ("log_ratio", "low", "high")]
            middle, low, high = np.exp(logs)
            color = "#009E73" if high < 1 else "#D55E00" if low > 1 else "#666666"
            ax.plot([low, high], [row, row], color=color)
            ax.plot(middle, row, "o", color=color, markersize=4)
        ax.axvline(1.0, color="black", linewidth=0.7)
        ax.set_title(f"{ours}\n/ {theirs}", fontsize=9)
        ax.set_xscale("log")
        reach = min(max(1.25, 1.1 / ax.get_xlim()[0], 1.1 * ax.get_xlim()[1]), 20.0)
        ax.set_xlim(1 / reach, reach)
        ticks = [t for t in (0.1, 0.2, 0.5, 0.8, 1, 1.25, 2, 5, 10) if 1 / reach <= t <= reach]
        ax.set_xticks([t for t in ticks if reach < 3 or t not in (0.8, 1.25)], minor=False)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        ax.tick_params(labelsize=7)
        ax.set_yticks(range(len(names)), names)
        ax.set_ylim(len(names) - 0.5, -0.5)
    text = "ratio of final training losses (at most 20), 95 % interval; green: better, orange: worse"
    figure.supxlabel(text, fontsize=9)
    return _write(figure, path)


def effects(path: pathlib.Path, arms: dict[str, Any], data: str) -> pathlib.Path:
    """The final validation loss of every teleport over that of none, beside its random partner's."""
    names = [name for name in arms if name != "none" and not name.startswith("random-")]
    figure, ax = plt.subplots(figsize=(6.4, 0.42 * len(names) + 1.4), layout="constrained")
    for row, name in enumerate(names):
        for shift, label, color in ((-0.13, name, "#D55E00"), (0.13, f"random-{name}", "#999999")):
            versus = arms[label]["versus"]["none"]
            middle, low, high = np.exp(
                [np.clip(float(versus[k]), -0.28, 0.28) for k in ("log_ratio", "low", "high")]
            )
            ax.plot([low, high], [row + shift] * 2, color=color)
            text = {0: ("teleport", "random element of the same size")[shift > 0]}.get(row)
            ax.plot(middle, row + shift, "o", color=color, markersize=4, label=text)
    ax.axvline(1.0, color="black", linewidth=0.7)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set_xlim(0.74, 1.35)
    runs = arms["none"]["runs"]
    ax.set(
        xlabel="final validation loss / that without a teleport (cut at 0.76, 1.32)",
        title=f"{data}, {runs} seeds",
    )
    ax.legend(fontsize=8)
    return _write(figure, path)


def scatter(path: pathlib.Path, measured: dict[str, Any], found: dict[str, Any]) -> pathlib.Path:
    """Every measure against the validation loss, one point for each run."""
    figure, axes = plt.subplots(
        1, len(found), figsize=(2.7 * len(found), 3.0), sharey=True, layout="constrained", squeeze=False
    )
    for ax, (name, row) in zip(axes[0], found.items(), strict=True):
        ax.plot(measured[name], measured["validation loss"], ".", color="#0072B2", markersize=4)
        ax.set_title(f"r = {row['r']:+.2f} ({row['low']:+.2f} to {row['high']:+.2f})", fontsize=9)
        ax.set_xlabel(name, fontsize=9)
        ax.locator_params(axis="x", nbins=4)
        ax.ticklabel_format(axis="x", style="sci", scilimits=(-3, 3))
        ax.tick_params(labelsize=7)
    axes[0][0].set_ylabel("validation loss")
    return _write(figure, path)


def correlations(path: pathlib.Path, table: dict[str, dict[str, Any]]) -> pathlib.Path:
    """Rank correlations with their intervals: one panel for each optimizer, one row for each objective."""
    names = list(next(iter(table.values())))
    columns = -(-len(table) // 2)
    size = (2.2 * columns + 1.5, 0.6 * len(names) + 2)
    figure, axes = plt.subplots(2, columns, figsize=size, sharey=True, sharex=True, layout="constrained")
    for ax, (optimizer, row) in zip(axes.flat, table.items(), strict=False):
        for k, name in enumerate(names):
            entry = row[name]
            ax.plot([float(entry["low"]), float(entry["high"])], [k, k], color="#0072B2")
            ax.plot(float(entry["mean"]), k, "o", color="#0072B2", markersize=4)
        ax.axvline(0, color="#999999", linewidth=0.8)
        ax.set(title=optimizer, xlim=(-1, 1), xlabel="rank correlation")
        ax.set_yticks(range(len(names)), names)
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.grid(alpha=0.2)
    return _write(figure, path)


def windows(path: pathlib.Path, rates: Any, finals: dict[str, Any], target: float) -> pathlib.Path:
    """Final training loss against the learning rate, gradient descent on the left, Adam on the right."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for ax, title in zip(axes, ("gradient descent", "Adam"), strict=True):
        names = [name for name in finals if name.startswith("adam") == (title == "Adam")]
        for name, style in styles(names).items():
            median = np.median(np.where(np.isfinite(finals[name]), finals[name], np.inf), axis=0)
            ax.plot(rates, np.minimum(median, 10.0), label=name, **style)
        ax.axhline(target, color="black", linewidth=0.6, linestyle=":")
        ax.set(xscale="log", yscale="log", xlabel="learning rate", title=title)
        ax.grid(alpha=0.2)
        ax.legend(fontsize=8)
    axes[0].set_ylabel("final training loss, median over seeds (10: or worse)")
    return _write(figure, path)
