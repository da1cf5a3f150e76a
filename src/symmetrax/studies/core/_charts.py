"""Interactive loss curves as figures of plotly, in JSON that is safe inside a page."""

import html
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects

from symmetrax.studies.core._arm_tables import Arms, by_loss, last
from symmetrax.studies.core._readable import real, text_of
from symmetrax.studies.core._statistics import FLOOR
from symmetrax.studies.core._styles import dash_array, styles

#: With more arms than this, bands are hidden at first: they would cover each other.
_BANDED = 8
#: The axis ends at this many times the largest initial loss: curves that diverge don't squeeze the others.
_CEILING = 1e3
#: At most about this many points of a curve are drawn.
_DRAWN = 300
#: Visible on light and dark pages alike.
GRID, AXIS = "rgba(128,128,128,0.22)", "rgba(128,128,128,0.6)"
#: The layout of all charts; the page adds colors of text, which depend on its theme, and sizes.
LAYOUT = {
    "template": {"data": {}},  # plotly's own template sets colors of a light page
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "#888888", "activecolor": "#888888"},
    "font": {"family": "inherit", "size": 13},
    "margin": {"l": 10, "r": 10, "t": 10, "b": 10},
    "hovermode": "closest",
}
#: The horizontal axes, by the entry of an arm with the values at its steps; None are the steps themselves.
AXES = {"step": None, "gradient evaluations": "evaluations_curve", "seconds per run": "seconds_curve"}


class Chart(NamedTuple):
    """A chart: its figure as JSON, its horizontal axes, whether bands are shown, and arms without a line.

    >>> loss_chart({"adam": {"loss_median": [1.0, "inf"]}}).axes
    ['step']
    """

    figure: str
    axes: list[str]
    banded: bool
    log: bool
    missing: list[str]


def as_script(json: str) -> str:
    """JSON that can't end the script element that holds it.

    >>> as_script('["</script>"]')
    '["\\\\u003c/script>"]'
    """
    return json.replace("<", "\\u003c")


def label(name: str) -> str:
    """A name as plotly displays it literally: plotly reads tags and entities in texts.

    >>> label("<b>")
    '&lt;b&gt;'
    """
    return html.escape(name, quote=False)


def loss_chart(arms: Arms, span: tuple[float, float] | None = None) -> Chart | None:
    """Medians of the losses of all arms and their quartile bands, or None if no arm has a curve.

    An arm's line and band are one legend group, so that plotly switches them together. `span` are the lowest
    and highest loss that the axis shows, for charts that are compared; by default those of the arms.

    >>> loss_chart({"adam": {"final": 1.0}}) is None
    True
    """
    drawn = {name: arm for name, arm in arms.items() if last(arm) is not None}
    span = loss_span(drawn) if span is None else span
    if not drawn or span is None:
        return None
    axes = [axis for axis, entry in AXES.items() if all(_places(arm, entry) for arm in drawn.values())]
    log, banded = span[0] > 0, len(drawn) <= _BANDED
    figure = plotly.graph_objects.Figure(layout=LAYOUT)
    looks = styles(arms)
    ranks = {name: rank for rank, name in enumerate(by_loss(drawn))}
    for name in sorted(drawn, key=lambda name: looks[name]["zorder"]):
        places = {axis: _places(drawn[name], AXES[axis]) for axis in axes}
        for trace in _traces(drawn[name], places, span):
            trace["meta"] |= {"color": looks[name]["color"]}
            trace["line"] |= {"color": looks[name]["color"]}
            if trace["meta"]["band"]:
                trace["visible"] = banded
            else:
                trace["line"] |= {
                    "dash": dash_array(looks[name]) or "solid",
                    "width": looks[name]["linewidth"],
                }
            figure.add_scatter(name=label(name), legendgroup=name, legendrank=ranks[name], **trace)
    figure.update_layout(_layout(span, axes[0], log))
    missing = [name for name in arms if name not in drawn or not math.isfinite(_least(drawn[name]))]
    return Chart(as_script(str(figure.to_json())), axes, banded, log, missing)


def loss_span(arms: Arms) -> tuple[float, float] | None:
    """The lowest and the highest loss that a chart of these arms shows, or None if there is none.

    >>> loss_span({"adam": {"loss_median": [1.0, 0.5, "inf"]}})
    (0.5, 1.0)
    """
    curves = [curve for arm in arms.values() if (curve := _numbers(arm.get("loss_median")))]
    finite = [x for curve in curves for x in curve if math.isfinite(x)]
    if not finite:
        return None
    start = max((curve[0] for curve in curves if math.isfinite(curve[0])), default=max(finite))
    # Below the floor a task counts as solved; a zero has no place on a logarithmic axis.
    low = max(min(finite), FLOOR * start) if start > 0 and min(finite) >= 0 else min(finite)
    high = min(max(finite), _CEILING * start) if start > 0 else max(finite)
    return low, max(high, low)


def _traces(arm: dict[str, Any], places: dict[str, list[float]], span: tuple[float, float]) -> list[dict]:
    """The band, if there are quartiles, and the line of an arm."""
    low, high = span
    bottom, top = (low / 1e3, high * 1e3) if low > 0 else (low - (high - low), high + (high - low))
    # An infinite quartile leaves the picture at the top: a gap there would look like a finite one.
    inside = lambda x: min(max(x, bottom), top)  # noqa: E731
    median = _numbers(arm["loss_median"])
    q25, q75 = _numbers(arm.get("loss_q25")), _numbers(arm.get("loss_q75"))
    traces, few = [], _few(len(median))
    if len(q25) == len(q75) == len(median):
        known = [k for k in few if not math.isnan(q25[k]) and not math.isnan(q75[k])]
        around = {axis: [x[k] for k in known] + [x[k] for k in reversed(known)] for axis, x in places.items()}
        edge = [inside(q75[k]) for k in known] + [inside(q25[k]) for k in reversed(known)]
        band = {"fill": "toself", "line": {"width": 0}, "opacity": 0.26, "hoverinfo": "skip", "mode": "lines"}
        traces.append(_at(around, edge, True) | band | {"showlegend": False})
    median, places = [median[k] for k in few], {axis: [x[k] for k in few] for axis, x in places.items()}
    heights = [max(x, bottom) if math.isfinite(x) else None for x in median]
    line = {"line": {}, "mode": "lines", "hovertemplate": "%{x}: %{y:.3g}<extra>%{fullData.name}</extra>"}
    if any(y is not None and y != x for x, y in zip(median, heights, strict=True)):  # drawn at the floor
        line |= {
            "text": [text_of(x) for x in median],
            "hovertemplate": line["hovertemplate"].replace("y:.3g", "text"),
        }
    return [*traces, _at(places, heights, False) | line]


def _few(count: int) -> list[int]:
    """Which entries of a long curve are drawn: more than a screen resolves, closer together at the start."""
    if count <= _DRAWN:
        return list(range(count))
    even = np.linspace(0, count - 1, _DRAWN // 2)
    early = np.geomspace(1, count - 1, _DRAWN // 4)
    return np.unique(np.round([*even, *early]).astype(int)).tolist()


def _at(places: dict[str, list[float]], y: Sequence[float | None], band: bool) -> dict[str, Any]:
    """A trace that knows its places on every horizontal axis, for the buttons of the page."""
    short = {axis: [_short(x) for x in xs] for axis, xs in places.items()}
    first = next(iter(short))
    meta = {"band": band, "x": short if len(short) > 1 else {}}
    return {"x": short[first], "y": [None if x is None else _short(x) for x in y], "meta": meta}


def _short(x: float) -> float:
    """Five digits: more would be a third of the page, and cannot be seen."""
    return float(f"{x:.5g}")


def _layout(span: tuple[float, float], axis: str, log: bool) -> dict[str, Any]:
    scales = {"linear": _linear(*span)} | ({"log": _logarithmic(*span)} if log else {})
    lines = {"gridcolor": GRID, "zeroline": False, "linecolor": AXIS, "ticks": "outside", "tickcolor": AXIS}
    return {
        "xaxis": {
            **lines,
            "automargin": True,
            "showline": True,
            "title": {"text": axis, "font": {"size": 13}},
        },
        "yaxis": {**lines, "automargin": True, "title": {"text": "loss", "font": {"size": 13}}},
        "legend": {"tracegroupgap": 0, "y": 0.92},  # below the buttons of plotly
        "meta": scales,  # what the buttons of the page change
        **{name.replace(".", "_"): value for name, value in scales["log" if log else "linear"].items()},
    }


def _linear(low: float, high: float) -> dict[str, Any]:
    edge = 0.04 * ((high - low) or abs(high) or 1.0)
    bottom = min(0.0, low) - edge / 2 if low >= 0 else low - edge
    return _scale("linear", [bottom, high + edge], {"tickmode": "auto", "dtick": None})


def _logarithmic(low: float, high: float) -> dict[str, Any]:
    """A label for each decade, or every second, third ... of many; of few decades at 1, 2 and 5."""
    bottom, top = math.log10(low), math.log10(high)
    margin = max(0.05 * (top - bottom), 0.05)
    if top - bottom >= 2:
        ticks = {"tickmode": "linear", "dtick": max(1, round((top - bottom) / 7)), "tick0": 0}
    else:
        decades = range(math.floor(bottom - margin), math.ceil(top + margin))
        values = [float(f"{digit}e{k}") for k in decades for digit in (1, 2, 5)]
        ticks = {"tickmode": "array", "tickvals": values, "ticktext": [f"{x:g}" for x in values]}
    return _scale("log", [bottom - margin, top + margin], ticks)


def _scale(kind: str, ends: list[float], ticks: dict[str, Any]) -> dict[str, Any]:
    size = 10.5 if kind == "log" else 13  # plotly enlarges powers of ten
    size = 13 if ticks.get("tickmode") == "array" else size
    entries = {"type": kind, "range": ends, "exponentformat": "power", "tickfont.size": size, **ticks}
    return {f"yaxis.{name}": value for name, value in entries.items()}


def _places(arm: dict[str, Any], entry: str | None) -> list[float]:
    """Where the steps of an arm are on a horizontal axis; empty if it doesn't say."""
    count = len(arm["loss_median"])
    found = _numbers(arm.get(entry or "points"))
    if len(found) == count and all(map(math.isfinite, found)):
        return found
    return [float(k) for k in range(count)] if entry is None else []


def _numbers(values: Any) -> list[float]:
    """The numbers of a curve; NaN for what isn't one."""
    if not isinstance(values, list):
        return []
    return [math.nan if (x := real(value)) is None else x for value in values]


def _least(arm: dict[str, Any]) -> float:
    return min((x for x in _numbers(arm["loss_median"]) if math.isfinite(x)), default=math.inf)
