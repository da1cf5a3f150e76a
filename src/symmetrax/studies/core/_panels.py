"""Figures of several panels, drawn from results alone: curves, ratios, means with intervals, matrices."""

import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from symmetrax.studies.core._console import number
from symmetrax.studies.core._styles import BLACK, GREEN, ORANGE, styles
from symmetrax.studies.plots import _write, plt

#: Ratios beyond this, either way, are drawn at it, and losses below its inverse likewise.
FARTHEST = 1e12

#: Arms by name, as in a group of `results.json`.
Arms = Mapping[str, dict[str, Any]]


def panels(rows: int, columns: int, width: float, height: Any, **options: Any) -> tuple[Any, np.ndarray]:
    """A figure, and its axes by row and column, each `width` wide and `height` high (or by row).

    >>> figure, axes = panels(2, 3, width=2.0, height=1.5)
    >>> axes.shape, figure.get_size_inches().tolist()
    ((2, 3), [6.0, 3.0])
    """
    heights = np.broadcast_to(height, rows).tolist()
    size = (width * columns, float(sum(heights)))
    return plt.subplots(
        rows, columns, figsize=size, height_ratios=heights, squeeze=False, layout="constrained", **options
    )


def curve_panels(path: pathlib.Path, groups: Mapping[str, Arms], drawn: Iterable[str]) -> pathlib.Path:
    """The median losses of some arms, a panel for each group of results."""
    figure, axes = panels(1, len(groups), 4.2, 4.2, sharey=True)
    handles: dict[str, Any] = {}
    for ax, (title, arms) in zip(axes[0], groups.items(), strict=True):
        for name, style in styles(drawn).items():
            if name in arms:
                median = np.maximum(np.array(arms[name]["loss_median"], float), 1 / FARTHEST)
                steps = arms[name].get("points", range(len(median)))
                handles[name] = ax.plot(steps, median, label=name, **style)[0]
        ax.set(
            title=f"{title}\n{next(iter(arms.values()))['runs']:,} runs per arm", xlabel="step", yscale="log"
        )
        ax.grid(alpha=0.2)
    axes[0][0].set_ylabel(f"loss, median over all runs (drawn down to {1 / FARTHEST:g})")
    beside: Any = "outside right"
    figure.legend([*handles.values()], [*handles], loc=beside, fontsize=8)
    return _write(figure, path)


def ratio_panels(path: pathlib.Path, rows: Sequence[Mapping[str, Arms]], against: str) -> pathlib.Path:
    """Final losses over those of one arm, with intervals: rows of panels, each of a group of results."""
    names = [
        list(dict.fromkeys(n for arms in row.values() for n in arms if against in arms[n]["versus"]))
        for row in rows
    ]
    columns = max(len(row) for row in rows)
    height = [0.2 * len(own) + 0.7 for own in names]
    figure, axes = panels(len(rows), columns, 3.4, height, sharex=True, sharey="row")
    for line, row, own in zip(axes, rows, names, strict=True):
        for ax, (title, arms) in zip(line, row.items(), strict=False):
            for k, name in enumerate(own):
                if name in arms and against in arms[name]["versus"]:
                    _ratio(ax, k, arms[name]["versus"][against], hollow=name.endswith("-off"))
            ax.axvline(1.0, color="black", linewidth=0.7)
            ax.set_title(title, fontsize=9)
            ax.set(xscale="log", xlim=(0.4 / FARTHEST, 2.5 * FARTHEST))
            ax.grid(alpha=0.2, axis="x")
        line[0].set_yticks(range(len(own)), own, fontsize=7)
        line[0].set_ylim(len(own) - 0.4, -0.6)
    figure.supxlabel(f"final loss / {against}, 95 % interval (cut at {FARTHEST:g})", fontsize=9)
    return _write(figure, path)


def _ratio(ax: Any, line: int, versus: dict[str, Any], *, hollow: bool) -> None:
    far = math.log(FARTHEST)
    logs = [number(versus[key]) for key in ("log_ratio", "low", "high")]
    median, low, high = np.exp(np.clip(logs, -far, far))
    color = GREEN if high < 1 else ORANGE if low > 1 else BLACK
    ax.plot([low, high], [line, line], color=color)
    ax.plot(median, line, "o", color=color, markersize=4, markerfacecolor="white" if hollow else color)


def mean_panels(
    path: pathlib.Path,
    groups: Mapping[str, Mapping[str, Mapping[str, Any]]],
    label: str,
    words: Mapping[str, str],
) -> pathlib.Path:
    """Means with intervals: a panel for each group, a row for each entry, a color for each arm.

    `groups` are by title, arm and entry, whose names `words` puts into words.
    """
    rows = max(len(entries) for arms in groups.values() for entries in arms.values())
    count = max(len(arms) for arms in groups.values())
    figure, axes = panels(1, len(groups), 5.2, (0.1 * count + 0.25) * rows + 1.2)
    for ax, (title, arms) in zip(axes[0], groups.items(), strict=True):
        looks = styles(arms)
        for i, (arm, entries) in enumerate(arms.items()):
            shift = (i - (len(arms) - 1) / 2) * 0.6 / len(arms)
            for row, entry in enumerate(entries.values()):
                mean, low, high = mean_and_interval(entry)
                color, name = looks[arm]["color"], arm if row == 0 else None
                ax.plot([low, high], [row + shift] * 2, color=color)
                ax.plot(mean, row + shift, "o", color=color, markersize=4, label=name)
        names = list(next(iter(arms.values())))
        ax.axvline(0.0, color="black", linewidth=0.7)
        ax.set_yticks(range(len(names)), [words.get(name, name) for name in names], fontsize=8)
        ax.invert_yaxis()
        ax.set(title=title, xlabel=label)
        ax.grid(alpha=0.2, axis="x")
        ax.legend(fontsize=7)
    return _write(figure, path)


def mean_and_interval(entry: Mapping[str, Any]) -> tuple[float, float, float]:
    """A mean and its interval, which has no width where it is infinite.

    >>> mean_and_interval({"mean": 0.5, "low": "-inf", "high": "inf"})
    (0.5, 0.5, 0.5)
    """
    mean, low, high = (number(entry[key]) for key in ("mean", "low", "high"))
    return mean, low if np.isfinite(low) else mean, high if np.isfinite(high) else mean


def matrix_panels(
    path: pathlib.Path, tables: Mapping[str, Mapping[str, Mapping[str, Any]]], labels: tuple[str, str, str]
) -> pathlib.Path:
    """Log ratios by row and column, as powers of ten, in bold where the interval excludes 0.

    `labels` are those of rows, columns and color.
    """
    names = list(next(iter(tables.values())))
    figure, axes = panels(1, len(tables), 0.95 * len(names) + 1.4, 1.1 * len(names) + 1.6, sharey=True)
    image: Any = None
    for ax, (title, table) in zip(axes[0], tables.items(), strict=True):
        logs = np.array([[number(table[r][c]["log_ratio"]) for c in names] for r in names]) / np.log(10)
        image = ax.imshow(np.clip(logs, -6, 6), cmap="RdBu_r", vmin=-6, vmax=6)
        for row, column in np.ndindex(logs.shape):
            found = table[names[row]][names[column]]
            sure = number(found["low"]) > 0 or number(found["high"]) < 0
            color = "w" if abs(logs[row, column]) > 3.5 else "k"
            text = f"{np.clip(logs[row, column], -6, 6):+.1f}" if row != column else "0"
            weight = "bold" if sure else "normal"
            ax.text(column, row, text, ha="center", va="center", weight=weight, fontsize=9, color=color)
        ax.set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=8)
        ax.set_yticks(range(len(names)), names, fontsize=8)
        ax.set_title(title, fontsize=10)
    axes[0][0].set_ylabel(labels[0])
    figure.supxlabel(labels[1], fontsize=10)
    figure.colorbar(image, ax=axes[0], shrink=0.8).set_label(labels[2], fontsize=8)
    return _write(figure, path)
