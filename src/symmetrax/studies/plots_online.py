"""Shares and cosines of second-order steps, and learning to teleport on the fly, drawn from results alone."""

import pathlib
from typing import Any

import matplotlib.ticker
import numpy as np

from symmetrax.studies.core._panels import panels, write
from symmetrax.studies.core._styles import AMBER, BLACK, BLUE, GRAY, GREEN, ORANGE, PINK

COLORS = (BLACK, GRAY, ORANGE, BLUE, GREEN, PINK, AMBER)

MARKS = {"newton": "o", "saddle-free": "s", "shifted": "^"}

#: Arms on one ellipse, and those without a rate of the angle.
LINES = {"gd": "-", "oracle": "--", "online": "-", "first": "--", "anew": ":"}
ALONE = ("gd", "oracle")


def nonconvex(path: pathlib.Path, results: dict[str, Any]) -> pathlib.Path:
    """Where a step's part along the level set raises the gradient norm, and turns -g toward the step."""
    figure, axes = panels(2, 2, 6.5, 4.5)
    groups = results["groups"]
    others = [name for name in groups if not name.startswith("random")]
    for ax, step in zip(axes[0], ("newton", "saddle-free"), strict=True):
        for i, n in enumerate(dict.fromkeys(g["dimension"] for k, g in groups.items() if k not in others)):
            rows = [g for name, g in groups.items() if name not in others and g["dimension"] == n]
            negative = [float(g["negative"]["median"]) for g in rows]
            _shares(ax, negative, [g["rises"][step] for g in rows], f"{n} dimensions", COLORS[i], "o-")
        ax.set(xlabel="share of negative eigenvalues", ylabel="share of points", ylim=(-0.02, 1.02))
        ax.set_title(f"random Hessians: the {step} step's part along\nthe level set raises the gradient norm")
        ax.legend(fontsize=8)
    ax = axes[1, 0]
    for i, (step, mark) in enumerate(MARKS.items()):
        along = np.arange(len(others)) + 0.2 * (i - 1)
        _shares(ax, along, [groups[name]["rises"][step] for name in others], step, COLORS[i + 2], mark)
    ax.set_xticks(range(len(others)), [name.replace(", ", ",\n") for name in others], rotation=45, fontsize=8)
    ax.set(ylabel="share of points", ylim=(-0.02, 1.04), title="functions and a network: the same")
    ax.legend(fontsize=8)
    ax = axes[1, 1]
    dimensions = [int(n) for n in results["convex"]]
    for i, place in enumerate(next(iter(results["convex"].values()))):
        for direction, line in (("orthogonal", "o-"), ("steepest", "s--")):
            rows = [found[place][direction] for found in results["convex"].values()]
            _shares(ax, dimensions, rows, f"{place}, {direction}", COLORS[i + 2], line)
    ax.axhline(0.5, color="black", linewidth=0.7)
    ax.set(xscale="log", xlabel="dimensions", ylabel="share of points", ylim=(-0.02, 1.02))
    ax.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    ax.set_xticks(dimensions, [str(n) for n in dimensions])
    ax.set_title("convex quadratics: a small move to larger gradients\nturns -g toward Newton's step")
    ax.legend(fontsize=8)
    for ax in axes.flat:
        ax.grid(alpha=0.2)
    return write(figure, path)


def _shares(ax: Any, along: Any, rows: list[dict[str, Any]], name: str, color: str, line: str) -> None:
    """Shares with their intervals."""
    values = np.array([[float(row[key]) for key in ("share", "low", "high")] for row in rows]).T
    errors = np.maximum([values[0] - values[1], values[2] - values[0]], 0)
    ax.errorbar(
        along, values[0], errors, fmt=line, color=color, label=name, markersize=4, linewidth=1, capsize=2
    )


def ellipse(
    path: pathlib.Path, curves: dict[str, np.ndarray], pairs: list[tuple[float, float]]
) -> pathlib.Path:
    """Losses on one ellipse, one panel for each learning rate; `pairs` are those and rates of the angle."""
    rates = list(dict.fromkeys(rate for rate, _ in pairs))
    figure, axes = panels(1, len(rates), 4.0, 4.0, sharey=True)
    for ax, rate in zip(axes[0], rates, strict=True):
        rows = [(i, beta) for i, (r, beta) in enumerate(pairs) if r == rate]
        for place, (name, line) in enumerate(LINES.items()):
            for (i, beta), width in zip(rows, (0.7, 1.3, 2.0), strict=True):
                label = name if name in ALONE else f"{name}, {beta:g}"
                if name not in ALONE or i == rows[0][0]:
                    loss = curves[name][i] / curves[name][i, 0]
                    ax.plot(loss, line, color=COLORS[place], label=label, linewidth=width)
        ax.set(title=f"learning rate {rate:.3g}", xlabel="step", yscale="log", ylim=(1e-8, 3))
        ax.grid(alpha=0.2)
    axes[0, 0].set_ylabel("f / f(x_0)")
    axes[0, -1].legend(
        fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0), title="arm, rate of the angle"
    )
    return write(figure, path)
