"""Figure 1 of arXiv:2504.15399, drawn from the arrays of a run."""

import pathlib
from typing import Any

import numpy as np
from matplotlib.lines import Line2D

from symmetrax.studies.core._panels import plt, write
from symmetrax.studies.core._plane_figures import TRUE_LENGTH
from symmetrax.studies.core._styles import AMBER, BLUE, GRAY, ORANGE, PINK

#: The vectors at the point, with factors.
_VECTORS = {
    "growth": ("grad $\\|g\\|^2$", 0.2, PINK),
    "descent": ("$v_1 = -g$", 1.0, GRAY),
    "parallel": ("$v_\\parallel$", 1.0, AMBER),
    "symmetry": ("$v_\\perp$", 1.0, ORANGE),
    "newton": ("$v_2 = -H^{-1} g$", 1.0, BLUE),
}
_TITLES = {
    "convex": "convex: the gradient norm grows along $v_\\perp$",
    "counter-example": "H = diag(1, -2), g = (1, 3): it falls along $v_\\perp$",
}
_SMALL: dict[str, Any] = {"fontsize": 9, "va": "top"}


def draw(folder: pathlib.Path, results: dict[str, Any]) -> None:
    """Newton's direction and its parts, convex and not; the norm and the alignment along a level set."""
    with np.load(folder / "newton.npz", allow_pickle=False) as loaded:
        arrays = dict(loaded)
    figure, axes = plt.subplot_mosaic(
        [[*_TITLES, "norm"], [*_TITLES, "cosine"]], figsize=(14, 5.1), layout="constrained"
    )
    for name, title in _TITLES.items():
        _decomposition(
            axes[name], {k.removeprefix(f"{name}."): x for k, x in arrays.items() if k.startswith(f"{name}.")}
        )
        axes[name].set_title(title, fontsize=11)
    handles = [
        Line2D([], [], color="black", label="level set of the loss"),
        Line2D([], [], color="black", linestyle="--", label="equal gradient norm"),
        Line2D([], [], color="black", marker="*", linestyle="", label="critical point"),
    ]
    below: dict[str, Any] = {"loc": "outside lower left", "fontsize": 9, "ncols": 3}
    figure.legend(handles=handles, **below)
    _alignment(axes, arrays)
    write(figure, folder / "newton.png")


def _decomposition(ax: Any, arrays: dict[str, np.ndarray]) -> None:
    """The level set and the set of equal gradient norm through a point, and the vectors there."""
    x, y, point = arrays["x"], arrays["y"], arrays["point"]
    ax.contour(x, y, arrays["loss"], levels=12, colors="#dddddd", linewidths=0.7, linestyles="-")
    for name, style in (("loss", "-"), ("norm", "--")):
        here = [float(arrays[f"{name}.here"])]
        ax.contour(x, y, arrays[name], levels=here, colors="black", linewidths=1.2, linestyles=style)
    for name, (text, factor, color) in _VECTORS.items():
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


def _alignment(axes: Any, arrays: dict[str, np.ndarray]) -> None:
    """The gradient norm and the cosine to Newton's direction, from the long to the short axis."""
    angle, place = arrays["level.angle"], float(arrays["level.place"])
    for name, label in (("norm", "$\\|g\\|$"), ("cosine", "cos(-g, Newton)")):
        ax, values = axes[name], arrays[f"level.{name}"]
        shade = {"color": ORANGE, "alpha": 0.12, "linewidth": 0, "transform": ax.get_xaxis_transform()}
        ax.fill_between(angle, 0, 1, where=arrays["level.worse"], **shade)
        ax.plot(angle, values, color="black")
        ax.plot(place, np.interp(place, angle, values), "o", color="black", markersize=5)
        ax.set(ylabel=label, xlim=(0, 90), xticks=range(0, 91, 15))
        ax.grid(alpha=0.2)
    axes["norm"].set_title("along the level set, from long to short axis", fontsize=11)
    axes["norm"].tick_params(labelbottom=False)
    text = "a small teleport raises $\\|g\\|$\nand worsens the direction"
    axes["norm"].text(2, 0.95, text, transform=axes["norm"].get_xaxis_transform(), **_SMALL)
    axes["cosine"].set_xlabel("angle in degrees, where the level set is a circle")
    point = (place, np.interp(place, angle, arrays["level.cosine"]))
    beside = {"textcoords": "offset points", "xytext": (-6, -2), "ha": "right"}
    axes["cosine"].annotate("the point on the left", point, **beside, **_SMALL)
