"""Figures in panels, drawn from the files of a run: what all have in common, and curves."""

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")  # before pyplot is imported: no windows
import matplotlib.pyplot as plt
import numpy as np

from symmetrax.studies.core._styles import styles

#: Panels of at most so many losses show their quartiles.
_BANDED = 4
#: Curves of at most so many points show them.
_FEW = 10
#: More dots than this are drawn smaller.
_MANY = 200
#: Losses outside of these, in units of the first one, don't widen the frame.
_LOWEST, _HIGHEST = 1e-12, 30.0


def panels(rows: int, columns: int, width: float, height: Any, **options: Any) -> tuple[Any, np.ndarray]:
    """A figure and its axes by row and column, each `width` wide and `height` high (or one for each row).

    >>> figure, axes = panels(2, 3, width=2.0, height=1.5)
    >>> axes.shape, figure.get_size_inches().tolist()
    ((2, 3), [6.0, 3.0])
    """
    heights = np.broadcast_to(height, rows).tolist()
    size = (width * columns, float(sum(heights)))
    return plt.subplots(
        rows, columns, figsize=size, height_ratios=heights, squeeze=False, layout="constrained", **options
    )


def write(figure: Any, path: pathlib.Path) -> pathlib.Path:
    """Write a figure as PNG and close it. The same figure always gives the same bytes.

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "empty.png")
    >>> write(panels(1, 1, 1.0, 1.0)[0], path).read_bytes()[1:4]
    b'PNG'
    """
    # By default matplotlib adds its version, and files of equal runs would differ.
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)
    return path


def in_lines(items: Sequence[Any], columns: int) -> list[Sequence[Any]]:
    """Items in lines of at most `columns`.

    >>> in_lines("abcde", 3)
    ['abc', 'de']
    """
    return [items[start : start + columns] for start in range(0, len(items), columns)]


def longest(names: Iterable[str]) -> float:
    """The width of the longest of some names in small print, in inches.

    >>> longest(["adam", "momentum"]) == 2 * longest(["adam"])
    True
    """
    return 0.075 * max(map(len, names), default=0)


class Curve(NamedTuple):
    """A line of a panel, or `dots`, with a band from `low` to `high` if there is one.

    >>> Curve(np.array([0.0, 1.0]), np.array([2.0, 1.0])).dots
    False
    """

    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    dots: bool = False


def losses(
    arms: Mapping[str, Any],
    names: Iterable[str] | None = None,
    *,
    banded: Iterable[str] | None = None,
    along: str | None = None,
) -> dict[str, Curve]:
    """The median losses of arms of `results.json`, all or those of `names` that are there.

    They are against steps, or the entry `along` of each arm. Quartiles are those of the arms `banded`: by
    default all if they are at most four, since more bands would cover each other.

    >>> arm = {"loss_median": [2.0, "inf"], "loss_q25": [2.0, 0.5], "loss_q75": [2.0, "inf"]}
    >>> losses({"adam": arm}, ["gd", "adam"])["adam"].high.tolist()
    [2.0, inf]
    """
    shown = [name for name in (arms if names is None else names) if name in arms]
    if banded is None:
        banded = shown if len(shown) <= _BANDED else ()
    curves = {}
    for name in shown:
        low, middle, high = (np.array(arms[name][f"loss_{part}"], float) for part in ("q25", "median", "q75"))
        x = arms[name][along] if along else arms[name].get("points", range(len(middle)))
        curve = Curve(np.array(x, float), middle, low, high)
        curves[name] = curve if name in banded else curve._replace(low=None, high=None)
    return curves


class Panel(NamedTuple):
    """Curves by name under a title; `x` and `y` label the axes, of which those in `log` are logarithmic.

    `marked` is a height to compare with; `ticks` are names for 0, 1, ... on the horizontal axis.

    >>> Panel("Booth", {}).y
    'loss: median, quartiles'
    """

    title: str
    curves: Mapping[str, Curve]
    x: str = "step"
    y: str = "loss: median, quartiles"
    log: str = "y"
    marked: float | None = None
    ticks: Sequence[str] = ()


def curve_panels(
    path: pathlib.Path,
    shown: Sequence[Panel],
    *,
    columns: int = 3,
    title: str = "",
    labels: Mapping[str, str] | None = None,
) -> pathlib.Path:
    """Curves in panels, `columns` in a line; those of a line with equal labels share their vertical axis.

    An arm looks the same in all panels. Legends stand beside a line of panels with the same curves, else
    below each panel: nowhere do they cover curves. `labels` are by name.

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "curves.png")
    >>> line = Curve(np.arange(2.0), np.array([2.0, 1.0]))
    >>> curve_panels(path, [Panel("Booth", {"adam": line})]).name
    'curves.png'
    """
    lines = in_lines(shown, columns)
    looks = styles(name for panel in shown for name in panel.curves)
    named = {name: (labels or {}).get(name, name) for name in looks}
    panel_width = 6.5 if len(lines[0]) == 1 else 4.7
    figure, axes = panels(len(lines), len(lines[0]), panel_width, 4.4)
    for row, line in zip(axes, lines, strict=True):
        drawn = [_curves(ax, panel, looks) for ax, panel in zip(row, line, strict=False)]
        union = {name: handle for own in drawn for name, handle in own.items()}
        alike = len(union) == max(map(len, drawn))
        for ax, panel, own in zip(row, line, drawn, strict=False):
            group = [k for k, other in enumerate(line) if (other.y, other.log) == (panel.y, panel.log)]
            if ax is row[group[0]]:
                ax.set_ylabel(panel.y)
            else:
                ax.sharey(row[group[0]])
                ax.tick_params(labelleft=False)
            if panel.log == "y":
                ax.set_ylim(_span([curve for k in group for curve in line[k].curves.values()]))
            if not alike:
                _legend(ax, own, named, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=2)
        if alike:
            at = min(len(line), len(row) - 1)  # in an empty panel, or beside the last one
            place = {"bbox_to_anchor": (float(at < len(line)), 1.0), "borderaxespad": 0.5}
            _legend(row[at], union, named, loc="upper left", **place)
            width = max(figure.get_figwidth(), panel_width * len(lines[0]) + longest(named.values()) + 0.6)
            figure.set_figwidth(width)
        for ax in row[len(line) :]:
            ax.axis("off")
    figure.suptitle(title)
    return write(figure, path)


def _legend(ax: Any, lines: Mapping[str, Any], named: Mapping[str, str], **place: Any) -> None:
    # The pad, in sizes of the font, is room for ticks and the label of the axis.
    place = {"borderaxespad": 4.8, "fontsize": 8, **place}
    ax.legend([*lines.values()], [named[name] for name in lines], **place)


def _curves(ax: Any, panel: Panel, looks: Mapping[str, Any]) -> dict[str, Any]:
    """Draw the curves of a panel, and return their lines."""
    ax.set(title=panel.title, xlabel=panel.x)
    ax.set(xscale="log" if "x" in panel.log else "linear", yscale="log" if "y" in panel.log else "linear")
    ax.grid(alpha=0.2)
    if panel.marked is not None:
        ax.axhline(panel.marked, color="black", linewidth=0.7)
    if panel.ticks:
        ax.set_xticks(range(len(panel.ticks)), panel.ticks, rotation=40, ha="right", fontsize=8)
    elif "x" not in panel.log:
        whole = all(np.all(curve.x % 1 == 0) for curve in panel.curves.values())
        ax.locator_params(axis="x", nbins=7, integer=whole)
        ax.ticklabel_format(axis="x", scilimits=(-3, 5), useOffset=False)
    lines = {}
    for name, (x, y, low, high, dots) in panel.curves.items():
        look = looks[name] | {"marker": "." if dots or len(x) <= _FEW else ""}
        if dots:
            size = 5 if len(x) > _MANY else 10
            look |= {"linestyle": "", "markersize": size, "markeredgewidth": 0, "alpha": 0.6}
        (lines[name],) = ax.plot(x, y, **look)
        if low is not None:
            ax.fill_between(x, low, high, color=look["color"], alpha=0.12, linewidth=0)
    return lines


def _span(curves: Sequence[Curve]) -> tuple[float, float]:
    """The lowest and the highest loss of the frame: diverging and solved runs must not hide the others."""
    start = max((float(curve.y[0]) for curve in curves if np.isfinite(curve.y[0])), default=1.0)
    values = np.concatenate([x for curve in curves for x in curve[1:4] if x is not None])
    seen = values[(values > start * _LOWEST) & (values < start * _HIGHEST)]
    return 0.8 * np.min(seen, initial=start), 1.25 * np.max(seen, initial=start)
