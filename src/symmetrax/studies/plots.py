"""Pictures, drawn from the files of a run and from nothing else."""

import json
import pathlib
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.colors
import matplotlib.pyplot as plt
import numpy as np

from symmetrax.studies.core._styles import styles

#: What goes together in the panels of a figure of loss curves.
PANELS = {
    "The figure's arms": ("adam-0.5", "vanilla", "teleport", "teleport-schedule"),
    "Guard, second order, orbit derivative": (
        "vanilla",
        "vanilla-2nd",
        "teleport-2nd",
        "teleport-guarded",
        "teleport-schedule-guarded",
        "vanilla-orbit",
        "teleport-schedule-orbit",
    ),
    "Controls": ("teleport", "teleport-off", "random", "gd", "momentum", "adam", "oracle"),
}

#: What is drawn of a trajectory.
PARTS = ("points", "arrows", "arcs")


def redraw(folder: str | pathlib.Path) -> list[pathlib.Path]:
    """Draw a complete run again from its files.

    >>> redraw("no-such-run")
    Traceback (most recent call last):
    ValueError: no-such-run holds no complete run: there is no results.json.
    """
    folder = pathlib.Path(folder)
    if not (folder / "results.json").exists():
        raise ValueError(f"{folder} holds no complete run: there is no results.json.")
    results = json.loads((folder / "results.json").read_text())
    return plane(folder, results, next(iter(results["groups"])))


def plane(folder: pathlib.Path, results: dict[str, Any], family: str) -> list[pathlib.Path]:
    """Loss curves and trajectories of a figure of the plane."""
    arms = results["groups"][family]["arms"]
    drawn = [_curves(folder / "curves.png", arms, family)]
    with np.load(folder / "trajectories.npz", allow_pickle=False) as arrays:
        drawn.append(trajectories(folder / "trajectories.png", dict(arrays), family))
    return drawn


def curves(
    path: pathlib.Path,
    arms: dict[str, Any],
    title: str,
    *,
    log: bool = True,
    labels: dict[str, str] | None = None,
    banded: tuple[str, ...] | None = None,
) -> pathlib.Path:
    """One panel of loss curves, with quartile bands (of all arms or those named); `labels` are by arm."""
    figure, axes = plt.subplots(figsize=(7.5, 4.8), layout="constrained")
    for name, style in styles(arms).items():
        label = name if labels is None else labels[name]
        _curve(axes, label, arms[name], style, band=banded is None or name in banded)
    axes.set_yscale("log" if log else "linear")
    axes.set(xlabel="step", ylabel="loss: median, quartiles", title=title)
    axes.legend(fontsize=8)
    return _write(figure, path)


def _curves(path: pathlib.Path, arms: dict[str, Any], family: str) -> pathlib.Path:
    panels = {title: [n for n in names if n in arms] for title, names in PANELS.items()}
    panels = {title: names for title, names in panels.items() if names}
    figure, axes = plt.subplots(
        1, len(panels), figsize=(5 * len(panels), 4.2), sharey=True, layout="constrained", squeeze=False
    )
    style = styles(name for names in panels.values() for name in names)
    for ax, (title, names) in zip(axes[0], panels.items(), strict=True):
        for name in names:
            _curve(
                ax,
                name,
                arms[name],
                style[name],
                band=name in ("vanilla", "teleport", "teleport-guarded", "adam"),
            )
        ax.set(xlabel="step", title=title, yscale="log")
        ax.grid(alpha=0.2)
        ax.legend(fontsize=8)
    lowest = min(float(x) for names in panels.values() for n in names for x in arms[n]["loss_median"])
    axes[0][0].set_ylim(bottom=max(lowest / 5, 1e-12))
    axes[0][0].set_ylabel("loss: median over all runs, quartile band")
    runs = next(iter(arms.values()))["runs"]
    figure.suptitle(f"{family}: {runs:,} unseen runs per arm")
    return _write(figure, path)


def _curve(axes: Any, name: str, arm: dict[str, Any], style: dict[str, Any], *, band: bool = True) -> None:
    middle = np.array(arm["loss_median"], float)
    steps = arm.get("points", range(len(middle)))
    axes.plot(steps, middle, label=name, **style)
    if band:
        low, high = np.array(arm["loss_q25"], float), np.array(arm["loss_q75"], float)
        axes.fill_between(steps, low, high, color=style["color"], alpha=0.12, linewidth=0)


def trajectories(
    path: pathlib.Path, arrays: dict[str, np.ndarray], title: str, labels: dict[str, str] | None = None
) -> pathlib.Path:
    """One row per arm, one column per task: level sets, updates as arrows, teleports as arcs. A trajectory
    that goes much farther than the others of its task has a frame of its own."""
    arms = [name.removesuffix(".points") for name in arrays if name.endswith(".points")]
    tasks = len(arrays[f"{arms[0]}.points"])
    figure, axes = plt.subplots(
        len(arms), tasks, figsize=(3.1 * tasks, 3 * len(arms)), layout="constrained", squeeze=False
    )
    style = styles(arms)
    for row, arm in enumerate(arms):
        for task in range(tasks):
            ax = axes[row, task]
            x, y, loss = (arrays[f"{arm}.grid.{name}"][task] for name in ("x", "y", "loss"))
            _level_sets(ax, x, y, loss)
            own = {part: arrays[f"{arm}.{part}"][task] for part in PARTS if f"{arm}.{part}" in arrays}
            _path(ax, **own, color=style[arm]["color"])
            ax.set(xlim=x[[0, -1]], ylim=y[[0, -1]])
            ax.tick_params(labelsize=6)
            if task == 0:
                ax.set_ylabel(arm if labels is None else labels[arm])
            if row == 0:
                ax.set_title(f"task {task + 1}", fontsize=9)
    figure.suptitle(
        f"{title}: circle start, arrows updates, dashed arcs teleports along level sets, star end"
    )
    return _write(figure, path)


def _level_sets(ax: Any, x: np.ndarray, y: np.ndarray, loss: np.ndarray) -> None:
    positive = np.maximum(loss, np.min(loss[loss > 0]))
    levels = np.geomspace(positive.min(), positive.max(), 14)
    norm = matplotlib.colors.LogNorm(levels[0], levels[-1])
    ax.contour(x, y, positive, levels=levels, norm=norm, cmap="Greys_r", linewidths=0.5)


def _path(ax: Any, points: np.ndarray, arrows: np.ndarray, arcs: Any = (), *, color: str) -> None:
    starts, ends = np.moveaxis(arrows, 1, 0)
    true_length: dict[str, Any] = {"angles": "xy", "scale_units": "xy", "scale": 1}
    ax.quiver(*starts.T, *(ends - starts).T, color=color, width=0.008, zorder=3, **true_length)
    for arc in arcs:
        ax.plot(*arc.T, color=color, linestyle=(0, (2, 1)), linewidth=0.9)
    ax.plot(*points[0], "o", color="black", markersize=4, zorder=4)
    ax.plot(*points[-1], "*", color="black", markersize=7, zorder=4)


def _write(figure: Any, path: pathlib.Path) -> pathlib.Path:
    # Fixed metadata: two runs of one command give equal files.
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)
    return path
