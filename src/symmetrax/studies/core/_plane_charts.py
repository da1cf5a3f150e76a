"""The trajectories of a run in the plane, as data of the page's panels with a slider."""

import json
import math
from typing import Any

import numpy as np
import plotly.graph_objects

from symmetrax.studies.core._charts import LAYOUT, as_script
from symmetrax.studies.core._styles import styles

_LEVELS = 14
#: Heights are written as 16-bit numbers: 65535 steps between two of 14 levels are more than a screen shows.
_TOP = 65535
_AXIS = {"showgrid": False, "zeroline": False, "ticks": "outside", "tickcolor": "#888888", "automargin": True}
# One scale for both axes, so that arrows and arcs keep their shape.
_LAYOUT = {
    **LAYOUT,
    "showlegend": False,
    "xaxis": {**_AXIS, "nticks": 5, "constrain": "domain"},
    "yaxis": {**_AXIS, "nticks": 5, "constrain": "domain", "scaleanchor": "x"},
}
#: Updates, teleports, points after each step, and the two ends; the page adds places and colors.
_TRACES = [
    {
        "mode": "lines+markers",
        "line": {"width": 2},
        "marker": {"symbol": "arrow", "angleref": "previous", "opacity": 1, "line": {"width": 0}},
        "hoverinfo": "skip",
    },
    {"mode": "lines", "line": {"width": 1.6, "dash": "4px,3px"}, "hoverinfo": "skip"},
    {
        "mode": "markers",
        "marker": {"size": 5},
        "hovertemplate": "%{text}<br>(%{x:.4g}, %{y:.4g})<extra></extra>",
    },
    {
        "mode": "markers",
        "marker": {
            "size": [12, 13],
            "symbol": ["circle-open", "star"],
            "opacity": 1,
            "line": {"width": [2, 0]},
        },
        "hoverinfo": "skip",
    },
]


def plane_panels(arrays: dict[str, np.ndarray]) -> tuple[str, list[str], int, int] | None:
    """Trajectories as JSON, with the names of the arms, the number of tasks and the number of steps.

    `arrays` are those of `trajectories.npz`. Of every arm and task the page needs the updates (pairs of
    points) and the teleports (arcs) one after another, with a gap after each, so that the path up to a step
    is the beginning of a list. Arms with the same frame share its level sets. None if nothing is there.

    >>> plane_panels({}) is None
    True
    """
    arms = [name.removesuffix(".points") for name in arrays if name.endswith(".points")]
    if not arms:
        return None
    grids: dict[bytes, tuple[int, dict[str, Any]]] = {}
    looks, data = styles(arms), {}
    tasks = min(len(arrays[f"{arm}.points"]) for arm in arms)
    steps = max(arrays[f"{arm}.points"].shape[1] for arm in arms) - 1
    for arm in arms:
        parts = []
        for task in range(tasks):
            x, y, loss = (arrays[f"{arm}.grid.{part}"][task] for part in ("x", "y", "loss"))
            frame = str(task).encode() + x.tobytes() + y.tobytes()
            if frame not in grids:
                grids[frame] = len(grids), _level_sets(x, y, loss)
            digits = max(0, 4 - math.floor(math.log10(max(float(np.ptp(x)), 1e-300))))
            part: dict[str, Any] = {
                "grid": grids[frame][0],
                "points": _line(arrays[f"{arm}.points"][task], digits),
            }
            part |= {"width": float(np.ptp(x)), "height": float(np.ptp(y))}
            part["arrows"] = _lines(arrays[f"{arm}.arrows"][task], digits)
            if f"{arm}.arcs" in arrays:
                part["arcs"] = _lines(arrays[f"{arm}.arcs"][task], digits)
                part["stride"] = arrays[f"{arm}.arcs"].shape[2] + 1
            parts.append(part)
        data[arm] = {"color": looks[arm]["color"], "tasks": parts}
    content = {
        "arms": data,
        "grids": [grid for _, grid in grids.values()],
        "traces": _TRACES,
        "layout": _LAYOUT,
    }
    return as_script(json.dumps(content, allow_nan=False)), arms, tasks, steps


def _level_sets(x: np.ndarray, y: np.ndarray, loss: np.ndarray) -> dict[str, Any]:
    """The level sets of the loss on a grid, at equal steps of its logarithm, as a trace of plotly."""
    known = (loss > 0) & np.isfinite(loss)
    logs = np.log(loss[known].astype(float)) if np.any(known) else np.zeros(1)
    low, high = float(np.min(logs)), float(np.max(logs))
    heights = np.full(loss.shape, _TOP)
    heights[known] = np.round((logs - low) / ((high - low) or 1.0) * _TOP)
    heights[np.isfinite(loss) & (loss <= 0)] = 0
    trace = plotly.graph_objects.Contour(
        z=heights.astype(np.uint16),
        x0=float(x[0]),
        dx=float(x[-1] - x[0]) / (len(x) - 1),
        y0=float(y[0]),
        dy=float(y[-1] - y[0]) / (len(y) - 1),
        contours={"coloring": "heatmap", "start": 0, "end": _TOP, "size": _TOP / _LEVELS},
        colorscale=[[k / 4, f"rgba(110,125,150,{0.05 + 0.5 * (1 - k / 4) ** 2:.2f})"] for k in range(5)],
        line={"width": 0.6, "color": "rgba(128,128,128,0.65)"},
        showscale=False,
        hoverinfo="skip",
    )
    (found,) = plotly.graph_objects.Figure(trace).to_dict()["data"]
    return found


def _line(points: np.ndarray, digits: int) -> dict[str, list[float | None]]:
    return {"x": _rounded(points[:, 0], digits), "y": _rounded(points[:, 1], digits)}


def _lines(lines: np.ndarray, digits: int) -> dict[str, list[float | None]]:
    """Lines of equal length, one after another, with a gap after each."""
    gaps = np.full((*lines.shape[:1], 1, 2), np.nan)
    return _line(np.concatenate([lines, gaps], axis=1).reshape(-1, 2), digits)


def _rounded(values: np.ndarray, digits: int) -> list[float | None]:
    return [round(x, digits) if math.isfinite(x) else None for x in values.astype(float).tolist()]
