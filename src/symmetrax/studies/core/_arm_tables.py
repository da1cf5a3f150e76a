"""Tables of the arms of a study: losses, paired comparisons, and costs."""

import collections
import math
from typing import Any

from symmetrax.studies.core._console import ratio_text
from symmetrax.studies.core._readable import Cell, Table, Tree, Whisker, readable, real, sort_key
from symmetrax.studies.core._styles import dash_array, styles

Arms = dict[str, dict[str, Any]]

#: Entries of an arm that have a place of their own on the page.
_SHOWN = (
    *("runs", "diverged", "rejected", "loss_q25", "loss_median", "loss_q75", "loss_mean", "points", "versus"),
    *("gradient_evaluations", "seconds", "training_seconds", "evaluations_curve", "seconds_curve"),
)
#: Intervals are drawn up to this natural log of a ratio; longer ones leave the picture.
_FAR = math.log(1e6)


def arms_of(group: Any) -> Arms:
    """The arms of a group of `results.json`; none if it has another form.

    >>> arms_of({"arms": {"adam": {"runs": 3}, "note": "none"}})
    {'adam': {'runs': 3}}
    """
    arms = group.get("arms") if isinstance(group, dict) else None
    return (
        {str(name): arm for name, arm in arms.items() if isinstance(arm, dict)}
        if isinstance(arms, dict)
        else {}
    )


def last(arm: dict[str, Any], name: str = "loss_median") -> float | None:
    """The last entry of a curve of an arm, if there is one.

    >>> last({"loss_median": [1.0, "inf"]})
    inf
    """
    curve = arm.get(name)
    return real(curve[-1]) if isinstance(curve, list) and curve else None


def by_loss(arms: Arms) -> list[str]:
    """The names of arms, lowest final median first, those without one last.

    >>> by_loss({"a": {"loss_median": [2.0]}, "b": {"loss_median": [1.0]}})
    ['b', 'a']
    """

    def order(name: str) -> tuple[bool, float]:
        value = last(arms[name])
        return (True, 0.0) if value is None or math.isnan(value) else (False, value)

    return sorted(arms, key=order)


def references(arms: Arms) -> list[str]:
    """The arms that others are compared with, the main one first.

    An arm isn't compared with itself, so the main one is the one that most arms list first.

    >>> references({"a": {"versus": {"b": {}}}, "b": {"versus": {"c": {}}}, "c": {"versus": {"b": {}}}})
    ['b', 'c']
    """
    lists = [list(arm["versus"]) for arm in arms.values() if isinstance(arm.get("versus"), dict)]
    firsts = collections.Counter(names[0] for names in lists if names)
    others = (name for names in lists for name in names)
    return list(dict.fromkeys([*(name for name, _ in firsts.most_common(1)), *others]))


def swatch(style: dict[str, Any]) -> dict[str, Any]:
    """The line of an arm, as the key of a table.

    >>> swatch(styles(["adam"])["adam"])
    {'color': '#000000', 'dash': '', 'width': 2.0}
    """
    return {"color": style["color"], "dash": dash_array(style), "width": style["linewidth"]}


def arms_table(arms: Arms, caption: str) -> Table:
    """The statistics of all arms, lowest final median first; empty columns are left out.

    >>> arms_table({"adam": {"loss_median": [2.0, 1.0], "runs": 4, "diverged": 1}}, "losses").columns
    ['arm', 'median loss', 'diverged']
    """
    against = next(iter(references(arms)), "")
    column, looks = f"loss / {against} (95 %)", styles(arms)
    whiskers = _whiskers({name: _versus(arm, against) for name, arm in arms.items()})
    one = next((Whisker(*[found.one] * 4) for found in whiskers.values()), None)
    rows = []
    for name in by_loss(arms):
        arm, versus = arms[name], _versus(arms[name], against)
        row = {
            "arm": Cell(name, name, swatch=swatch(looks[name])),
            "median loss": Cell.of(last(arm)),
            "mean loss": Cell.of(last(arm, "loss_mean")),
            "diverged": _share(real(arm.get("diverged")), real(arm.get("runs"))),
            column: Cell("1, the reference", "0", whisker=one) if name == against else Cell(""),
            "gradients": Cell.of(real(arm.get("gradient_evaluations"))),
            "µs / step": Cell.of(_per_step(arm)),
            "rejected": _share(real(arm.get("rejected")), 1.0),
        }
        if versus:
            row[column] = Cell(ratio_text(versus), sort_key(versus["log_ratio"]), whisker=whiskers[name])
        rows.append(row)
    return _without_empty(caption, rows)


def versus_table(arms: Arms, caption: str) -> Table | None:
    """Final losses of all arms (rows) over those of every reference (columns), if there are several.

    >>> versus_table({"adam": {"loss_median": [1.0]}}, "ratios") is None
    True
    """
    columns = references(arms)
    if len(columns) < 2:
        return None
    rows = []
    for name in by_loss(arms):
        row = {"arm": Cell(name, name)}
        for other in columns:
            versus = _versus(arms[name], other)
            row[f"/ {other}"] = (
                Cell(ratio_text(versus), sort_key(versus["log_ratio"])) if versus else Cell("")
            )
        rows.append(row)
    return _without_empty(caption, rows)


def costs_table(groups: dict[str, Arms], caption: str) -> Table | None:
    """Seconds of meta-training and of the evaluation, and gradients, of every arm that reports them.

    >>> arms = {"vanilla": {"training_seconds": 9.5, "gradient_evaluations": 12}}
    >>> costs_table({"ellipse": arms}, "costs").columns
    ['arm', 'group', 'meta-training, s', 'gradients per run']
    """
    rows = [
        {
            "arm": Cell(name, name),
            "group": Cell(group, group),
            "meta-training, s": Cell.of(real(arm.get("training_seconds"))),
            "evaluation, s": Cell.of(real(arm.get("seconds"))),
            "gradients per run": Cell.of(real(arm.get("gradient_evaluations"))),
            "runs": Cell.of(real(arm.get("runs"))),
        }
        for group, arms in groups.items()
        for name, arm in arms.items()
        if {"training_seconds", "seconds", "gradient_evaluations"} & set(arm)
    ]
    return _without_empty(caption, rows) if rows else None


def other_facts(arms: Arms, caption: str) -> Table | Tree | str:
    """Everything else that is recorded of the arms: hyperparameters, accuracies, shares.

    >>> other_facts({"adam": {"loss_median": [1.0], "test_accuracy": 0.9}}, "more").columns
    ['', 'test_accuracy']
    """
    rest = {name: {key: item for key, item in arm.items() if key not in _SHOWN} for name, arm in arms.items()}
    return readable({name: facts for name, facts in rest.items() if facts}, caption)


def _versus(arm: dict[str, Any], other: str) -> dict[str, Any] | None:
    """The comparison with another arm, if it is there and whole."""
    versus = arm.get("versus")
    found = versus.get(other) if isinstance(versus, dict) else None
    whole = isinstance(found, dict) and all(
        real(found.get(key)) is not None for key in ("log_ratio", "low", "high")
    )
    return found if whole else None


def _whiskers(versus: dict[str, dict[str, Any] | None]) -> dict[str, Whisker]:
    """All intervals on one logarithmic axis that has 1 on it."""
    logs = {
        name: [min(max(real(found[key]) or 0.0, -_FAR), _FAR) for key in ("low", "log_ratio", "high")]
        for name, found in versus.items()
        if found
    }
    # An interval that is the whole line says nothing of the scale.
    ends = [x for row in logs.values() for x in (row if row[2] - row[0] < _FAR else row[1:2])]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    place = lambda x: round(4 + 92 * (x - low) / ((high - low) or 1.0), 1)  # noqa: E731
    return {
        name: Whisker(max(place(row[0]), 0.0), place(row[1]), min(place(row[2]), 100.0), place(0.0))
        for name, row in logs.items()
    }


def _share(part: float | None, whole: float | None) -> Cell:
    if part is None or not whole:
        return Cell("")
    tip = f"{part:.0f} of {whole:.0f} runs" if whole != 1 else ""
    return Cell(f"{part / whole:.1%}", sort_key(part / whole), tip)


def _per_step(arm: dict[str, Any]) -> float | None:
    """Microseconds per optimizer step and task, everything included, when many tasks run together."""
    seconds, runs, points = real(arm.get("seconds")), real(arm.get("runs")), arm.get("points")
    curve = arm.get("loss_median")
    steps = real(points[-1]) if isinstance(points, list) and points else len(curve or ()) - 1
    return 1e6 * seconds / runs / steps if seconds is not None and runs and steps and steps > 0 else None


def _without_empty(caption: str, rows: list[dict[str, Cell]]) -> Table:
    columns = [name for name in (rows[0] if rows else ()) if any(row[name].text for row in rows)]
    return Table(caption, columns, [[row[name] for name in columns] for row in rows])
