"""The trajectories of a run in the plane as a figure; `_plane_charts` has those of the page."""

import pathlib
from collections.abc import Mapping
from typing import Any

import matplotlib.colors
import numpy as np

from symmetrax.studies.core._panels import panels, write
from symmetrax.studies.core._styles import styles

#: The parts of a trajectory.
_PARTS = ("points", "arrows", "arcs")
#: Arrows are as long as the vectors that they show.
TRUE_LENGTH: dict[str, Any] = {"angles": "xy", "scale_units": "xy", "scale": 1}


def trajectories(
    path: pathlib.Path, arrays: Mapping[str, np.ndarray], title: str, labels: Mapping[str, str] | None = None
) -> pathlib.Path:
    """Draw the arrays of `trajectories.npz`: a row for each arm (`labels` by arm), a column for each task.

    Level sets are gray, updates arrows and teleports dashed arcs. A trajectory that goes much farther than
    the others of its task has a frame of its own.

    >>> import tempfile
    >>> line, grid = np.array([[[0.1, 0.2], [0.4, 0.5]]]), np.array([np.linspace(0.0, 1.0, 3)])
    >>> arrays = {"gd.points": line, "gd.arrows": line[:, None], "gd.grid.x": grid, "gd.grid.y": grid}
    >>> arrays["gd.grid.loss"] = grid[..., None] ** 2 + grid[:, None] ** 2
    >>> trajectories(pathlib.Path(tempfile.mkdtemp(), "paths.png"), arrays, "a bowl").name
    'paths.png'
    """
    arms = [name.removesuffix(".points") for name in arrays if name.endswith(".points")]
    tasks = len(arrays[f"{arms[0]}.points"])
    figure, axes = panels(len(arms), tasks, 3.1, 3.0)
    looks = styles(arms)
    for row, arm in zip(axes, arms, strict=True):
        for task, ax in enumerate(row):
            x, y, loss = (arrays[f"{arm}.grid.{name}"][task] for name in ("x", "y", "loss"))
            own = {part: arrays[f"{arm}.{part}"][task] for part in _PARTS if f"{arm}.{part}" in arrays}
            _level_sets(ax, x, y, loss)
            _path(ax, **own, color=looks[arm]["color"])
            ax.set(xlim=x[[0, -1]], ylim=y[[0, -1]])
            ax.tick_params(labelsize=6)
        row[0].set_ylabel(arm if labels is None else labels[arm])
    for task, ax in enumerate(axes[0]):
        ax.set_title(f"task {task + 1}", fontsize=9)
    figure.suptitle(
        f"{title}: circle start, arrows updates, dashed arcs teleports along level sets, star end"
    )
    return write(figure, path)


def _level_sets(ax: Any, x: np.ndarray, y: np.ndarray, loss: np.ndarray) -> None:
    positive = np.maximum(loss, np.min(loss[loss > 0]))
    levels = np.geomspace(positive.min(), positive.max(), 14)
    norm = matplotlib.colors.LogNorm(levels[0], levels[-1])
    ax.contour(x, y, positive, levels=levels, norm=norm, cmap="Greys_r", linewidths=0.5)


def _path(ax: Any, points: np.ndarray, arrows: np.ndarray, arcs: Any = (), *, color: str) -> None:
    starts, ends = np.moveaxis(arrows, 1, 0)
    ax.quiver(*starts.T, *(ends - starts).T, color=color, width=0.008, zorder=3, **TRUE_LENGTH)
    for arc in arcs:
        ax.plot(*arc.T, color=color, linestyle=(0, (2, 1)), linewidth=0.9)
    ax.plot(*points[0], "o", color="black", markersize=4, zorder=4)
    ax.plot(*points[-1], "*", color="black", markersize=7, zorder=4)
