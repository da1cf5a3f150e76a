"""The picture of learned teleports in other groups, drawn from the results of a run alone."""

import pathlib
from typing import Any

import numpy as np

from symmetrax.studies.core._styles import styles
from symmetrax.studies.plots import _write, plt

#: Ratios beyond this, either way, are drawn at it.
FARTHEST = 1e6


def draw(path: pathlib.Path, groups: dict[str, Any], against: str) -> pathlib.Path:
    """Final losses over those of one arm, with intervals: a row of panels for each family, one panel for
    each horizon, one line for each arm."""
    families: dict[str, dict[str, Any]] = {}
    for name, group in groups.items():
        family, _, horizon = name.partition(" ")
        families.setdefault(family, {})[horizon] = group["arms"]
    columns = max(len(horizons) for horizons in families.values())
    lines = [max(len(arms) for arms in horizons.values()) for horizons in families.values()]
    figure, axes = plt.subplots(
        len(families),
        columns,
        figsize=(4.2 * columns + 1.5, 0.2 * sum(lines) + 0.55 * len(lines) + 0.6),
        height_ratios=lines,
        sharex=True,
        layout="constrained",
        squeeze=False,
    )
    color = {name: style["color"] for name, style in styles(_shown(families, against)).items()}
    for row, (family, horizons) in zip(axes, families.items(), strict=True):
        for ax, (horizon, arms) in zip(row, horizons.items(), strict=True):
            names = [name for name in arms if against in arms[name]["versus"]]
            for line, name in enumerate(names):
                _interval(
                    ax, line, arms[name]["versus"][against], color[_kind(name)], off=name.endswith("-off")
                )
            ax.axvline(1.0, color="black", linewidth=0.7)
            ax.set_yticks(range(len(names)), names if ax is row[0] else [""] * len(names), fontsize=7)
            ax.set_ylim(len(names) - 0.4, -0.6)
            ax.set_title(f"{family} {horizon}", fontsize=9)
            ax.set(xscale="log", xlim=(0.4 / FARTHEST, 2.5 * FARTHEST))
            ax.grid(alpha=0.2, axis="x")
    for ax in axes[-1]:
        ax.set_xlabel(f"final loss / {against}, 95 % interval (cut at {FARTHEST:g})", fontsize=8)
    return _write(figure, path)


def _interval(ax: Any, line: int, entry: dict[str, Any], color: str, *, off: bool) -> None:
    far = np.log(FARTHEST)
    middle, low, high = np.exp(
        np.clip([float(entry[key]) for key in ("log_ratio", "low", "high")], -far, far)
    )
    ax.plot([low, high], [line, line], color=color)
    ax.plot(middle, line, "o", color=color, markersize=4, markerfacecolor="white" if off else color)


def _shown(families: dict[str, dict[str, Any]], against: str) -> list[str]:
    """Kinds of arms, in the order in which they first come."""
    tables = [arms for horizons in families.values() for arms in horizons.values()]
    return [_kind(name) for arms in tables for name in arms if name != against]


def _kind(name: str) -> str:
    """An arm without what its controls add to its name."""
    return name.removesuffix("-off").removesuffix("-carried").removesuffix("-shuffled")
