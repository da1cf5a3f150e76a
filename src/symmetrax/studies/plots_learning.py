"""Pictures of learned optimizers on networks, drawn from the results of a run and from nothing else."""

import pathlib
from typing import Any

import matplotlib.ticker
import numpy as np

from symmetrax.studies.core._styles import styles
from symmetrax.studies.plots import _write, plt

#: The longest ratio drawn, either way.
FARTHEST = 100.0


def loss_panels(
    path: pathlib.Path, arms: dict[str, Any], panels: dict[str, tuple[str, ...]], title: str
) -> pathlib.Path:
    """Median losses against steps, some arms in each panel; an arm looks the same in all of them."""
    panels = {text: tuple(name for name in names if name in arms) for text, names in panels.items()}
    panels = {text: names for text, names in panels.items() if len(names) > 1}
    style = styles(name for names in panels.values() for name in names)
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.6 * len(panels), 4), sharey=True, layout="constrained", squeeze=False
    )
    for ax, (text, names) in zip(axes[0], panels.items(), strict=True):
        for name in names:
            ax.plot(np.array(arms[name]["loss_median"], float), label=name, **style[name])
        ax.set(title=text, xlabel="step", yscale="log")
        ax.grid(alpha=0.2)
        ax.legend(fontsize=7)
    axes[0][0].set_ylabel("loss on the next minibatch, median")
    figure.suptitle(title)
    return _write(figure, path)


def ratio_rows(path: pathlib.Path, rows: dict[str, dict[str, Any]], title: str) -> pathlib.Path:
    """One log ratio with its interval for each row, as factors; green below 1, orange above."""
    figure, ax = plt.subplots(figsize=(7.5, 0.27 * len(rows) + 1.3), layout="constrained")
    far = np.log(FARTHEST)
    for row, entry in enumerate(rows.values()):
        logs = np.clip([float(entry[key]) for key in ("log_ratio", "low", "high")], -far, far)
        color = "#009E73" if float(entry["high"]) < 0 else "#D55E00" if float(entry["low"]) > 0 else "#666666"
        ax.plot(np.exp(logs[1:]), [row, row], color=color)
        ax.plot(np.exp(logs[0]), row, "o", color=color, markersize=4)
    ax.axvline(1.0, color="black", linewidth=0.7)
    ax.set_yticks(range(len(rows)), list(rows), fontsize=8)
    ax.invert_yaxis()
    ax.set(xscale="log", title=title)
    reach = max(1.5, *(1.1 * max(x, 1 / x) for x in ax.get_xlim()))
    ax.set_xlim(1 / reach, reach)
    ax.set_xticks([t for t in (0.01, 0.1, 0.2, 0.5, 0.7, 1, 1.4, 2, 5, 10, 100) if 1 / reach <= t <= reach])
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    ax.set_xlabel(f"ratio of final losses, 95 % interval (cut at {FARTHEST:g})", fontsize=9)
    ax.grid(alpha=0.2, axis="x")
    return _write(figure, path)


def correlation_rows(path: pathlib.Path, tables: dict[str, dict[str, Any]]) -> pathlib.Path:
    """Correlations with their intervals: one panel for each table, one row for each of its entries."""
    names = list(next(iter(tables.values())))
    figure, axes = plt.subplots(
        1,
        len(tables),
        figsize=(3.4 * len(tables) + 2, 0.4 * len(names) + 1.5),
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    for ax, (title, table) in zip(axes[0], tables.items(), strict=True):
        for row, name in enumerate(names):
            entry = {key: float(value) for key, value in table[name].items()}
            clear = entry["low"] > 0 or entry["high"] < 0
            color = "#0072B2" if clear else "#999999"
            ax.plot([entry["low"], entry["high"]], [row, row], color=color)
            ax.plot(entry["mean"], row, "o", color=color, markersize=4)
        ax.axvline(0.0, color="black", linewidth=0.7)
        ax.set(title=title, xlim=(-1.02, 1.02), xlabel="correlation, 95 % interval")
        ax.set_yticks(range(len(names)), names)
        ax.grid(alpha=0.2, axis="x")
    axes[0][0].invert_yaxis()
    return _write(figure, path)


def event_clouds(
    path: pathlib.Path, clouds: dict[str, dict[str, np.ndarray]], labels: tuple[str, str]
) -> pathlib.Path:
    """One point for each teleport, x against y, colored by its step; one panel for each cloud."""
    figure, axes = plt.subplots(
        1, len(clouds), figsize=(4.4 * len(clouds) + 0.6, 3.8), layout="constrained", squeeze=False
    )
    for ax, (title, cloud) in zip(axes[0], clouds.items(), strict=True):
        points = ax.scatter(cloud["x"], cloud["y"], c=cloud["step"], s=4, cmap="viridis", alpha=0.6)
        ax.axvline(1.0, color="black", linewidth=0.7)
        wide = np.ptp(np.log(cloud["x"])) > np.log(5)
        ax.set(title=title, xlabel=labels[0], ylabel=labels[1], xscale="log" if wide else "linear")
        if not wide:
            ax.locator_params(axis="x", nbins=5)
            ax.ticklabel_format(axis="x", useOffset=False)
        ax.grid(alpha=0.2)
        figure.colorbar(points, ax=ax, label="step")
    return _write(figure, path)
