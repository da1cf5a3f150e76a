"""Figures of measurements: means and ratios with intervals, and matrices of ratios."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.ticker
import numpy as np
from matplotlib.lines import Line2D

from symmetrax.studies.core._console import number
from symmetrax.studies.core._panels import in_lines, longest, panels, write
from symmetrax.studies.core._styles import BLUE, GREEN, ORANGE, styles

#: A mean or a log ratio with the ends of its interval, as in `results.json`.
Entry = Mapping[str, Any]
#: Ratios beyond this, either way, are drawn at the frame, unless a figure says otherwise.
FARTHEST = 1e12
#: The color of what may as well be no difference.
UNSURE = "#666666"
#: The name of the only series of a table.
ONLY = ""


def versus_table(arms: Mapping[str, Any], against: str) -> dict[str, dict[str, Entry]]:
    """Final losses over those of one arm, as a table of `interval_panels`.

    >>> ratio = {"log_ratio": -0.5, "low": -0.7, "high": -0.3}
    >>> versus_table({"adam": {"versus": {"gd": ratio}}, "gd": {"versus": {}}}, "gd")
    {'': {'adam': {'log_ratio': -0.5, 'low': -0.7, 'high': -0.3}}}
    """
    return {ONLY: {name: arm["versus"][against] for name, arm in arms.items() if against in arm["versus"]}}


def interval_panels(
    path: pathlib.Path,
    tables: Mapping[str, Mapping[str, Mapping[str, Entry]]],
    label: str,
    *,
    columns: int = 4,
    cut: float = FARTHEST,
    limits: tuple[float, float] | None = None,
    title: str = "",
) -> pathlib.Path:
    """Means or ratios with intervals: a panel for each table, a color for each series, a row for each entry.

    `tables` are by title, series and row. Log ratios are drawn as ratios on a logarithmic axis that ends at
    `cut` and its inverse. The color of the only series (see `ONLY`) shows whether an interval excludes 1
    (green: below, orange: above) or 0 (blue). Markers of controls without teleports, whose names end in
    "-off", are hollow.

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "ratios.png")
    >>> table = {ONLY: {"adam": {"log_ratio": -1.0, "low": "-inf", "high": 0.1}}}
    >>> interval_panels(path, {"Booth": table}, "final loss / gd").name
    'ratios.png'
    """
    tables = {key: table for key, table in tables.items() if any(table.values())} or tables
    lines = in_lines([*tables], columns)
    rows = [
        list(dict.fromkeys(name for key in line for part in tables[key].values() for name in part))
        for line in lines
    ]
    looks = styles(name for table in tables.values() for name in table if name != ONLY)
    room = 0.95 + 0.15 * max(key.count("\n") for key in tables)
    heights = [max((0.14 + 0.08 * max(len(looks), 1)) * len(names), 0.5) + room for names in rows]
    figure, axes = panels(len(lines), len(lines[0]), 4.6 if len(lines[0]) == 1 else 3.0, heights)
    beside = longest(name for names in rows for name in names) + longest(looks) + (0.6 if looks else 0.0)
    figure.set_figwidth(figure.get_figwidth() + beside)
    for line, own, names in zip(axes, lines, rows, strict=True):
        for ax, key in zip(line, own, strict=False):
            _intervals(ax, tables[key], names, looks, cut, limits)
            ax.set_title(key, fontsize=9)
            ax.set_yticks(range(len(names)), names if ax is line[0] else [], fontsize=8)
            ax.set_ylim(len(names) - 0.4, -0.6)
        for ax in line[len(own) :]:
            ax.axis("off")
    if looks:
        handles = [Line2D([], [], marker="o", **_marker(name, look), **look) for name, look in looks.items()]
        right: Any = "outside right upper"
        figure.legend(handles, [*looks], loc=right, fontsize=8)
    below = axes[-1, 0].set_xlabel if len(lines[0]) == 1 else figure.supxlabel
    below(f"{label}, 95 % interval", fontsize=9)
    figure.suptitle(title)
    return write(figure, path)


def _intervals(
    ax: Any,
    table: Mapping[str, Mapping[str, Entry]],
    rows: Sequence[str],
    looks: Mapping[str, Any],
    cut: float,
    limits: tuple[float, float] | None,
) -> None:
    ratios = any("log_ratio" in entry for part in table.values() for entry in part.values())
    found = {(series, row): _ends(entry) for series, part in table.items() for row, entry in part.items()}
    values = np.array([*found.values()])
    # Infinite intervals go to the frame, but do not widen it.
    seen = values[np.isfinite(values) & ((values > 1 / cut) & (values < cut) if ratios else True)]
    if ratios:
        _ratio_axis(ax, np.min(seen, initial=0.9), np.max(seen, initial=1.1))
    else:
        low, high = np.min(seen, initial=-0.02), np.max(seen, initial=0.02)
        ax.set_xlim(limits or (low - 0.06 * (high - low), high + 0.06 * (high - low)))
        ax.locator_params(axis="x", nbins=5)
    ax.axvline(float(ratios), color="black", linewidth=0.7, zorder=1)
    ax.grid(alpha=0.2, axis="x")
    ax.tick_params(axis="x", labelsize=8)
    for (series, row), ends in found.items():
        place = 0.6 * (list(table).index(series) - (len(table) - 1) / 2) / len(table) + rows.index(row)
        middle, low, high = np.clip(ends, *ax.get_xlim())
        below, above = (GREEN, ORANGE) if ratios else (BLUE, BLUE)
        color = below if ends[2] < ratios else above if ends[1] > ratios else UNSURE
        look = looks.get(series, {"color": color}) | {"linewidth": 1.5}
        ax.plot([low, high], [place, place], **look)
        ax.plot(middle, place, "o", color=look["color"], zorder=3, **_marker(series or row, look))


def _ends(entry: Entry) -> np.ndarray:
    """A mean or ratio and its interval."""
    if "log_ratio" not in entry:
        return np.array([number(entry[key]) for key in ("mean", "low", "high")])
    logs = [number(entry[key]) for key in ("log_ratio", "low", "high")]
    return np.exp(np.clip(logs, -700, 700))  # finite in float64


def _marker(name: str, look: Mapping[str, Any]) -> dict[str, Any]:
    hollow = name.endswith("-off") and " / " not in name  # not a ratio to a control
    return {"markersize": 4, "markerfacecolor": "white" if hollow else look["color"]}


def _ratio_axis(ax: Any, low: float, high: float) -> None:
    """A logarithmic axis with plain numbers, as many as there is room for."""
    margin, decades = (high / low) ** 0.06, np.log10(high / low)
    ax.set_xscale("log")
    ax.set_xlim(low / margin, high * margin)
    ticks: Any = matplotlib.ticker.LogLocator(subs=(1, 2, 5) if decades < 1.6 else (1, 3), numticks=9)
    if decades < 0.7:
        ticks = matplotlib.ticker.MaxNLocator(4, steps=[1, 2, 5, 10])
    elif decades > 3:
        ticks = matplotlib.ticker.LogLocator(numticks=5)
    ax.xaxis.set_major_locator(ticks)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())


def matrix_panels(
    path: pathlib.Path, tables: Mapping[str, Mapping[str, Mapping[str, Any]]], labels: tuple[str, str, str]
) -> pathlib.Path:
    """Log ratios by row and column, as powers of ten, in bold where the interval excludes 0.

    `labels` are those of rows, columns and color.

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "matrix.png")
    >>> table = {"booth": {"booth": {"log_ratio": 0.5, "low": 0.1, "high": 0.9}}}
    >>> matrix_panels(path, {"adam": table}, ("trained on", "tested on", "log10")).name
    'matrix.png'
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
    return write(figure, path)
