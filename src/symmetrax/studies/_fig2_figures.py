"""Figure 2 of arXiv:2504.15399, drawn from the arrays of a run."""

import pathlib
from typing import Any

import numpy as np
from matplotlib.lines import Line2D

from symmetrax.studies.core._panels import panels, write
from symmetrax.studies.core._plane_figures import TRUE_LENGTH
from symmetrax.studies.core._styles import BLUE, GRAY, GREEN, ORANGE

#: Turning to the short axis, which the claims are about, and to the long one.
_SHORT, _LONG = BLUE, ORANGE
#: Where updates of the angle start, and which they are: the true and the printed ones.
_ARROWS = (("at", "arrows"), ("outer.at", "printed"))


def draw(folder: pathlib.Path, results: dict[str, Any]) -> None:
    """Updates of the angle along a level set just below and above the threshold; their size; and the rate."""
    with np.load(folder / "turning.npz", allow_pickle=False) as loaded:
        arrays = dict(loaded)
    figure, ((below, above), (updates, rates)) = panels(2, 2, 5.5, (4.9, 3.5))
    _arrows(below, arrays, "below")
    _arrows(above, arrays, "above")
    line, black = Line2D, "black"
    handles = [
        line([], [], color=_SHORT, linewidth=2, label="a step turns to the short axis"),
        line([], [], color=_LONG, linewidth=2, label="a step turns to the long axis"),
        line([], [], color=GRAY, linewidth=0.8, label="outer, thin: as appendix B prints it"),
        line([], [], color=black, marker="o", ls="", ms=4, label="half way, where it is a circle"),
        line([], [], color="#cccccc", marker=">", ms=3, label="rotation field"),
    ]
    below_all: Any = "outside lower center"
    figure.legend(handles=handles, loc=below_all, ncols=3, fontsize=9)
    _updates(updates, arrays)
    _rates(rates, arrays)
    l1, l2 = arrays["eigenvalues"]
    figure.suptitle(f"steps of the angle in algorithm 2, on x'Ax with eigenvalues {l1:g} and {l2:g}")
    write(figure, folder / "turning.png")


def _arrows(ax: Any, arrays: dict[str, np.ndarray], name: str) -> None:
    """The rotation field, a level set with the true updates, and around it one with the printed ones."""
    field = {"color": "#cccccc", "width": 0.002, "scale": 34, "pivot": "mid", "zorder": 1}
    ax.quiver(*arrays["grid"].T, *arrays["grid.field"].T, **field)
    ax.plot(*arrays["level"].T, color="black", linewidth=0.8)
    ax.plot(*arrays["outer"].T, color=GRAY, linewidth=0.5)
    for short, color in ((True, _SHORT), (False, _LONG)):
        for (base, kind), width in zip(_ARROWS, (0.007, 0.003), strict=True):
            here = arrays[f"{name}.{kind}.short"] == short
            arrows = (*arrays[base][here].T, *arrays[f"{name}.{kind}"][here].T)
            ax.quiver(*arrows, color=color, width=width, zorder=3, **TRUE_LENGTH)
    ax.plot(*arrays["half_way"].T, "o", color="black", markersize=4, zorder=4)
    part, largest = float(arrays[f"{name}.part"]), float(arrays[f"{name}.largest"])
    ax.set_title(f"rate {part:g} / ($\\lambda_1 + \\lambda_2$): largest step {largest:.3f} f", fontsize=11)
    tips = [arrays[base] + arrays[f"{name}.{kind}"] for base, kind in _ARROWS]
    x, y = 1.03 * np.max(np.abs(np.concatenate([arrays["outer"], *tips])), axis=0)
    ax.set(aspect="equal", xlim=(-x, x), ylim=(-y, y))


def _updates(ax: Any, arrays: dict[str, np.ndarray]) -> None:
    """Updates over the angle of the point, relative to the largest."""
    below, above = (float(arrays[f"{name}.part"]) for name in ("below", "above"))
    lines = {
        "below.curve": (_SHORT, "-", f"{below:g}", (50, 0.88)),
        "above.curve": (_LONG, "-", f"{above:g}", (50, -0.8)),
        "below.printed.curve": ("#666666", "--", f"{below:g}, as printed", (57, -0.25)),
    }
    for name, (color, style, label, place) in lines.items():
        ax.plot(arrays["angle"], arrays[name], color=color, linestyle=style)
        white = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
        ax.text(*place, label, color=color, fontsize=9, ha="center", va="top", bbox=white)
    ax.axvline(45, color="black", linewidth=0.6, linestyle=":")
    ax.axhline(0, color="black", linewidth=0.6)
    ax.set(xlabel="angle from the long axis in degrees, where the level set is a circle", xlim=(0, 90))
    ax.set(ylabel="turn to the short axis / largest", ylim=(-1.08, 1.08), xticks=range(0, 91, 15))
    ax.set_title(f"{below:g} and {above:g} of the threshold 1 / ($\\lambda_1 + \\lambda_2$)", fontsize=11)
    ax.grid(alpha=0.2)


def _rates(ax: Any, arrays: dict[str, np.ndarray]) -> None:
    """The update half way between the axes over the rate, in units of the threshold."""
    parts, toward = arrays["parts"], arrays["rates.toward"]
    ax.plot(parts, toward, color="black")
    ax.axhline(0, color="black", linewidth=0.6)
    for name, color in (("below", _SHORT), ("above", _LONG)):
        part = float(arrays[f"{name}.part"])
        point = (part, np.interp(part, parts, toward))
        ax.plot(*point, "o", color=color, markersize=5, label=f"{part:g} of the threshold")
    label = "1/L, largest (section 3.1)"
    ax.axvline(float(arrays["step_bound"]), color=GREEN, linewidth=1, linestyle="--", label=label)
    ax.set(xlabel="rate $\\cdot (\\lambda_1 + \\lambda_2)$", xlim=parts[[0, -1]])
    ax.set_ylabel("turn to the short axis / f")
    ax.set_title("half way between the axes", fontsize=11)
    ax.grid(alpha=0.2)
    ax.legend(fontsize=7, loc="lower left")
