"""Shares of points at which second-order steps raise the gradient norm, drawn from results alone."""

import pathlib
from typing import Any

import matplotlib.ticker
import numpy as np

from symmetrax.studies._landscapes import RANDOM
from symmetrax.studies.core._panels import panels, write
from symmetrax.studies.core._styles import AMBER, BLACK, BLUE, GRAY, GREEN, ORANGE, PINK

_COLORS = (BLACK, GRAY, ORANGE, BLUE, GREEN, PINK, AMBER)
_MARKS = {"newton": "o", "saddle-free": "s", "shifted": "^"}


def draw(folder: pathlib.Path, results: dict[str, Any]) -> None:
    """Where a step's part along the level set raises the gradient norm, and turns -g toward the step."""
    figure, axes = panels(2, 2, 6.5, 4.5)
    groups = results["groups"]
    others = [name for name in groups if not name.startswith(RANDOM)]
    for ax, step in zip(axes[0], ("newton", "saddle-free"), strict=True):
        for i, n in enumerate(dict.fromkeys(g["dimension"] for k, g in groups.items() if k not in others)):
            rows = [g for name, g in groups.items() if name not in others and g["dimension"] == n]
            negative = [float(g["negative"]["median"]) for g in rows]
            _shares(ax, negative, [g["rises"][step] for g in rows], f"{n} dimensions", _COLORS[i], "o-")
        ax.set(xlabel="share of negative eigenvalues", ylabel="share of points", ylim=(-0.02, 1.02))
        ax.set_title(f"random Hessians: the {step} step's part along\nthe level set raises the gradient norm")
        ax.legend(fontsize=8)
    ax = axes[1, 0]
    for i, (step, mark) in enumerate(_MARKS.items()):
        along = np.arange(len(others)) + 0.2 * (i - 1)
        _shares(ax, along, [groups[name]["rises"][step] for name in others], step, _COLORS[i + 2], mark)
    ax.set_xticks(range(len(others)), [name.replace(", ", ",\n") for name in others], rotation=45, fontsize=8)
    ax.set(ylabel="share of points", ylim=(-0.02, 1.04), title="functions and a network: the same")
    ax.legend(fontsize=8)
    ax = axes[1, 1]
    dimensions = [int(n) for n in results["convex"]]
    for i, place in enumerate(next(iter(results["convex"].values()))):
        for direction, line in (("orthogonal", "o-"), ("steepest", "s--")):
            rows = [found[place][direction] for found in results["convex"].values()]
            _shares(ax, dimensions, rows, f"{place}, {direction}", _COLORS[i + 2], line)
    ax.axhline(0.5, color="black", linewidth=0.7)
    ax.set(xscale="log", xlabel="dimensions", ylabel="share of points", ylim=(-0.02, 1.02))
    ax.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    ax.set_xticks(dimensions, [str(n) for n in dimensions])
    ax.set_title("convex quadratics: a small move to larger gradients\nturns -g toward Newton's step")
    ax.legend(fontsize=8)
    for ax in axes.flat:
        ax.grid(alpha=0.2)
    write(figure, folder / "nonconvex.png")


def _shares(ax: Any, along: Any, rows: list[dict[str, Any]], name: str, color: str, line: str) -> None:
    """Shares with their intervals."""
    values = np.array([[float(row[key]) for key in ("share", "low", "high")] for row in rows]).T
    errors = np.maximum([values[0] - values[1], values[2] - values[0]], 0)
    ax.errorbar(
        along, values[0], errors, fmt=line, color=color, label=name, markersize=4, linewidth=1, capsize=2
    )
