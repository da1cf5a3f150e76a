"""Figures 1 and 2 of arXiv:2504.15399, drawn from the arrays of a run and from nothing else."""

import pathlib
from typing import Any

import matplotlib.lines
import numpy as np

from symmetrax.studies.plots import _write, plt

#: How the vectors of figure 1 are drawn: name, factor, color.
VECTORS = {
    "growth": ("grad $\\|g\\|^2$", 0.2, "#CC79A7"),
    "descent": ("$v_1 = -g$", 1.0, "#999999"),
    "parallel": ("$v_\\parallel$", 1.0, "#E69F00"),
    "symmetry": ("$v_\\perp$", 1.0, "#D55E00"),
    "newton": ("$v_2 = -H^{-1} g$", 1.0, "#0072B2"),
}
TRUE_LENGTH: dict[str, Any] = {"angles": "xy", "scale_units": "xy", "scale": 1}
#: What is good for the claims and what is not: turning to the short axis, and to the long one.
SHORT, LONG = "#0072B2", "#D55E00"
#: Where updates of the angle start, and what they are: the true ones and the printed ones.
ARROWS = (("at", "arrows"), ("outer.at", "printed"))


def newton(path: pathlib.Path, data: pathlib.Path) -> pathlib.Path:
    """Newton's direction and its parts, convex and not; the norm and the alignment along a level set."""
    with np.load(data, allow_pickle=False) as loaded:
        arrays = dict(loaded)
    figure = plt.figure(figsize=(14, 4.9), layout="constrained")
    grid = figure.add_gridspec(2, 3)
    titles = {
        "convex": "convex: the gradient norm grows along $v_\\perp$",
        "counter-example": "H = diag(1, -2), g = (1, 3): it falls along $v_\\perp$",
    }
    for column, (name, title) in enumerate(titles.items()):
        ax = figure.add_subplot(grid[:, column])
        _decomposition(ax, {k.removeprefix(f"{name}."): x for k, x in arrays.items() if k.startswith(name)})
        ax.set_title(title, fontsize=11)
        if name == "convex":
            line = matplotlib.lines.Line2D
            handles = [
                line([], [], color="black", label="level set of the loss"),
                line([], [], color="black", linestyle="--", label="equal gradient norm"),
                line([], [], color="black", marker="*", linestyle="", label="critical point"),
            ]
            ax.legend(handles=handles, fontsize=8, loc="upper left")
    upper = figure.add_subplot(grid[0, 2])
    lower = figure.add_subplot(grid[1, 2], sharex=upper)
    _alignment((upper, lower), arrays)
    return _write(figure, path)


def _decomposition(ax: Any, arrays: dict[str, np.ndarray]) -> None:
    """The level set and the set of equal gradient norm through a point, and the vectors there."""
    x, y, point = arrays["x"], arrays["y"], arrays["point"]
    ax.contour(x, y, arrays["loss"], levels=12, colors="#dddddd", linewidths=0.7, linestyles="-")
    for name, style in (("loss", "-"), ("norm", "--")):
        here = [float(arrays[f"{name}.here"])]
        ax.contour(x, y, arrays[name], levels=here, colors="black", linewidths=1.2, linestyles=style)
    for name, (text, factor, color) in VECTORS.items():
        vector = factor * arrays[name]
        width = 0.015 if name == "descent" else 0.008
        ax.quiver(*point, *vector, color=color, width=width, zorder=3, **TRUE_LENGTH)
        tip, away = point + vector, vector / np.linalg.norm(vector)
        if name == "descent":  # another vector may lie on it: its name stands beside it, on the free side
            free = -np.sign(arrays["symmetry"] @ arrays["growth"]) * arrays["symmetry"]
            tip, away = point + 0.6 * vector, free / np.linalg.norm(free)
        ax.annotate(
            text if factor == 1 else f"{factor:g} {text}",
            tip + 0.03 * (x[-1] - x[0]) * away,
            color=color,
            fontsize=11,
            zorder=4,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8},
            ha="left" if away[0] > 0.4 else "right" if away[0] < -0.4 else "center",
            va="bottom" if away[1] > 0.4 else "top" if away[1] < -0.4 else "center",
        )
    ax.plot(*point, "o", color="black", markersize=5, zorder=5)
    ax.plot(0, 0, "*", color="black", markersize=9, zorder=5)
    ax.set(aspect="equal", xlim=x[[0, -1]], ylim=y[[0, -1]])


def _alignment(axes: tuple[Any, Any], arrays: dict[str, np.ndarray]) -> None:
    """The gradient norm and the cosine to Newton's direction, from the long to the short axis."""
    angle, worse, place = arrays["level.angle"], arrays["level.worse"], float(arrays["level.place"])
    rows = (("level.norm", "$\\|g\\|$"), ("level.cosine", "cos(-g, Newton)"))
    for ax, (name, label) in zip(axes, rows, strict=True):
        values = arrays[name]
        shade = {"color": LONG, "alpha": 0.12, "linewidth": 0}
        ax.fill_between(angle, 0, 1, where=worse, transform=ax.get_xaxis_transform(), **shade)
        ax.plot(angle, values, color="black")
        ax.plot(place, np.interp(place, angle, values), "o", color="black", markersize=5)
        ax.set(ylabel=label, xlim=(0, 90))
        ax.grid(alpha=0.2)
    text = "a small teleport raises $\\|g\\|$\nand worsens the direction"
    axes[0].text(2, 0.95, text, transform=axes[0].get_xaxis_transform(), va="top", fontsize=9)
    axes[0].set_title("along the level set, from long to short axis", fontsize=11)
    axes[0].tick_params(labelbottom=False)
    axes[1].set_xlabel("angle in degrees, where the level set is a circle")
    axes[1].set_xticks(range(0, 91, 15))
    beside = {"textcoords": "offset points", "xytext": (-6, -2), "fontsize": 9, "ha": "right", "va": "top"}
    at_place = (place, np.interp(place, angle, arrays["level.cosine"]))
    axes[1].annotate("the point on the left", at_place, **beside)


def turning(path: pathlib.Path, data: pathlib.Path) -> pathlib.Path:
    """Updates of the angle along a level set just below and above the threshold; their size; and the rate."""
    with np.load(data, allow_pickle=False) as loaded:
        arrays = dict(loaded)
    figure, grid = plt.subplots(
        2, 2, figsize=(11, 8), layout="constrained", gridspec_kw={"height_ratios": [1.35, 1]}
    )
    for ax, name in zip(grid[0], ("below", "above"), strict=True):
        _arrows(ax, arrays, name)
    _updates(grid[1, 0], arrays)
    _rates(grid[1, 1], arrays)
    l1, l2 = arrays["eigenvalues"]
    figure.suptitle(f"steps of the angle in algorithm 2, on x'Ax with eigenvalues {l1:g} and {l2:g}")
    return _write(figure, path)


def _arrows(ax: Any, arrays: dict[str, np.ndarray], name: str) -> None:
    """The rotation field, a level set with the true updates, and around it one with the printed ones."""
    field = {"color": "#cccccc", "width": 0.002, "scale": 34, "pivot": "mid", "zorder": 1}
    ax.quiver(*arrays["grid"].T, *arrays["grid.field"].T, **field)
    ax.plot(*arrays["level"].T, color="black", linewidth=0.8)
    ax.plot(*arrays["outer"].T, color="#999999", linewidth=0.5)
    for short, color in ((True, SHORT), (False, LONG)):
        for (base, kind), width in zip(ARROWS, (0.007, 0.003), strict=True):
            here = arrays[f"{name}.{kind}.short"] == short
            arrows = (*arrays[base][here].T, *arrays[f"{name}.{kind}"][here].T)
            ax.quiver(*arrows, color=color, width=width, zorder=3, **TRUE_LENGTH)
    ax.plot(*arrays["half_way"].T, "o", color="black", markersize=4, zorder=4)
    part, largest = float(arrays[f"{name}.part"]), float(arrays[f"{name}.largest"])
    ax.set_title(f"rate {part:g} / ($\\lambda_1 + \\lambda_2$): largest step {largest:.3f} f", fontsize=11)
    tips = [arrays[base] + arrays[f"{name}.{kind}"] for base, kind in ARROWS]
    reach = 1.03 * np.max(np.abs(np.concatenate([arrays["outer"], *tips])), axis=0)
    ax.set(aspect="equal", xlim=(-reach[0], reach[0]), ylim=(-reach[1], reach[1]))
    if name == "below":
        line = matplotlib.lines.Line2D
        handles = [
            line([], [], color=SHORT, linewidth=2, label="a step turns to the short axis"),
            line([], [], color=LONG, linewidth=2, label="to the long axis"),
            line([], [], color="#999999", linewidth=0.8, label="outer, thin: as appendix B prints it"),
            line(
                [],
                [],
                color="black",
                marker="o",
                linestyle="",
                markersize=4,
                label="half way, where it is a circle",
            ),
            line([], [], color="#cccccc", marker=">", linestyle="-", markersize=3, label="rotation field"),
        ]
        ax.legend(handles=handles, fontsize=8, loc="upper left", framealpha=0.9)


def _updates(ax: Any, arrays: dict[str, np.ndarray]) -> None:
    """Updates over the angle of the point, relative to the largest."""
    parts = {name: float(arrays[f"{name}.part"]) for name in ("below", "above")}
    lines = {
        "below.curve": (SHORT, "-", f"{parts['below']:g}", (50, 0.88)),
        "above.curve": (LONG, "-", f"{parts['above']:g}", (50, -0.8)),
        "below.printed.curve": ("#666666", "--", f"{parts['below']:g}, as printed", (57, -0.25)),
    }
    for name, (color, style, label, place) in lines.items():
        ax.plot(arrays["angle"], arrays[name], color=color, linestyle=style)
        white = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
        ax.text(*place, label, color=color, fontsize=9, ha="center", va="top", bbox=white)
    ax.axvline(45, color="black", linewidth=0.6, linestyle=":")
    ax.axhline(0, color="black", linewidth=0.6)
    ax.set(xlabel="angle from the long axis in degrees, where the level set is a circle", xlim=(0, 90))
    ax.set(ylabel="turn to the short axis / largest", ylim=(-1.08, 1.08))
    title = "{below:g} and {above:g} of the threshold 1 / ($\\lambda_1 + \\lambda_2$)".format(**parts)
    ax.set_title(title, fontsize=11)
    ax.set_xticks(range(0, 91, 15))
    ax.grid(alpha=0.2)


def _rates(ax: Any, arrays: dict[str, np.ndarray]) -> None:
    """The update half way between the axes over the rate, in units of the threshold."""
    parts, toward = arrays["parts"], arrays["rates.toward"]
    ax.plot(parts, toward, color="black")
    ax.axhline(0, color="black", linewidth=0.6)
    for name, color in (("below", SHORT), ("above", LONG)):
        part = float(arrays[f"{name}.part"])
        ax.plot(
            part,
            np.interp(part, parts, toward),
            "o",
            color=color,
            markersize=5,
            label=f"{part:g} of the threshold",
        )
    label = "1/L, the largest rate of section 3.1"
    ax.axvline(float(arrays["step_bound"]), color="#009E73", linewidth=1, linestyle="--", label=label)
    ax.set(xlabel="rate $\\cdot (\\lambda_1 + \\lambda_2)$", xlim=parts[[0, -1]])
    ax.set_title("half way between the axes", fontsize=11)
    ax.set_ylabel("turn to the short axis / f")
    ax.grid(alpha=0.2)
    ax.legend(fontsize=8, loc="lower left")
