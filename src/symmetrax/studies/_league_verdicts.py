"""What the league says: the target, family by family, and the claims that it puts to the test."""

from collections.abc import Iterator
from typing import Any

import rich.table

from symmetrax.studies._orbit_arms import CANDIDATES, VANILLA
from symmetrax.studies.core._console import number, ratio_text, titled_table
from symmetrax.studies.core._statistics import Interval, verdict

#: The arm that is nowhere told where the orbit is best.
LEARNS_ITS_ANGLE = "teleport"
#: The chosen arm is to be better than vanilla by ten per cent, with the whole interval.
WANTED = -0.1

_PAPER = "arXiv:2504.15399, section 5.1.2"
_OPEN = "arXiv:2504.15399, first open question"
_OURS = "a control"


def targets(results: dict[str, Any], settings: Any) -> list[dict[str, Any]]:
    """For every family and horizon of the target: whether a learned teleport is better, and never worse.

    `met` says that the log ratio to vanilla and its interval end below -0.1, that no run diverged, and that
    from far starts it is not worse. `solved` are the shares of runs that vanilla and the arm have solved by
    then: where both have, final losses are a tie. The arm is the chosen one. On ellipses a crest is the best
    angle in closed form (`in_closed_form`), so that there the one that has to learn its angle has rows too.
    """
    rows = []
    for family, name, in_closed_form in _judged(results):
        for horizon in settings.chosen_at:
            arms = results["groups"][f"{family}-{horizon}"]["arms"]
            versus = arms[name]["versus"][VANILLA]
            far = results["groups"].get(f"{family}-far-{horizon}")
            far = None if far is None else far["arms"][name]["versus"][VANILLA]
            better = max(number(versus["high"]), number(versus["log_ratio"])) < WANTED
            safe = arms[name]["diverged"] == 0 and (far is None or number(far["low"]) <= 0)
            solved = results["solved"][family]
            rows.append(
                {
                    "family": family,
                    "horizon": horizon,
                    "arm": name,
                    "in_closed_form": in_closed_form,
                    "versus": versus,
                    "far": far,
                    "diverged": arms[name]["diverged"],
                    "solved": {n: solved[n]["share"][str(horizon)] for n in (VANILLA, name)},
                    "steps": solved[name]["versus"][VANILLA],
                    "met": bool(better and safe),
                }
            )
    return rows


def _judged(results: dict[str, Any]) -> Iterator[tuple[str, str, bool]]:
    """Families, arms, and whether the arm is told the best angle there."""
    for family, chosen in results["chosen"].items():
        name = chosen["arm"]
        in_closed_form = family.startswith("ellipse") and name.startswith("crest")
        yield family, name, in_closed_form
        if in_closed_form and LEARNS_ITS_ANGLE in chosen["of"]:
            yield family, LEARNS_ITS_ANGLE, False


def target_table(rows: list[dict[str, Any]]) -> rich.table.Table:
    """The rows of `targets`.

    >>> target_table([]).row_count
    0
    """
    title = f"Learned teleports over {VANILLA}: final losses, and steps to a millionth of the first loss"
    columns = ("steps", "arm", "loss ratio", "from far", "diverged", "solved", "ratio of steps", "target")
    table = titled_table(title, "family", columns)
    for row in rows:
        without, with_it = row["solved"].values()
        table.add_row(
            row["family"],
            str(row["horizon"]),
            row["arm"] + (" (closed form)" if row["in_closed_form"] else ""),
            ratio_text(row["versus"]),
            "" if row["far"] is None else ratio_text(row["far"]),
            str(row["diverged"]),
            f"{without:.0%}, {with_it:.0%}",
            ratio_text(row["steps"]),
            "met" if row["met"] else "missed",
        )
    return table


def verdicts(results: dict[str, Any], settings: Any) -> list[dict[str, str]]:
    """The paper's claim under its own arms, and what the controls say of the chosen one."""
    rows = []
    for family, chosen in results["chosen"].items():
        for horizon in settings.chosen_at:
            arms = results["groups"][f"{family}-{horizon}"]["arms"]
            for ours, theirs, claim, source, negative in _asked(chosen["arm"]):
                versus = arms.get(ours, {}).get("versus", {}).get(theirs)
                if versus is not None:
                    middle, low, high = (number(versus[key]) for key in Interval._fields)
                    # The medians of seeds may all lie on one side of that of all runs, where many are ties.
                    found = Interval(middle, min(low, middle), max(high, middle))
                    where = f"{claim} on {family} after {horizon} steps"
                    rows.append(verdict(where, source, found, negative=negative))
    return rows


def _asked(chosen: str) -> list[tuple[str, str, str, str, bool]]:
    """Pairs of arms, the claim that the first is better (or worse: False), and who makes it."""
    near = CANDIDATES[-1]
    return [
        (
            "paper-vanilla",
            "paper-teleport",
            "the published optimizer is better without teleports",
            _PAPER,
            True,
        ),
        (chosen, VANILLA, f"a learned teleport ({chosen}) beats the same optimizer without", "ours", True),
        (chosen, f"{chosen}-off", f"{chosen} needs its teleports at test", _OURS, True),
        (chosen, "crest-polyak", f"{chosen} beats its hand-made model, tuned", _OURS, True),
        (chosen, "adam", f"{chosen} beats Adam, tuned", _OURS, True),
        (chosen, "lbfgs", f"{chosen} beats L-BFGS", _OURS, True),
        ("crest-ungated", "crest", "crest is worse without its gate", _OURS, False),
        ("crest-unguarded", "crest", "crest is worse without the bound on its jumps", _OURS, False),
        (f"{VANILLA}-distance", VANILLA, "the distance to the optimum in the meta-loss helps", _OPEN, True),
        (f"{near}-distance", near, f"the distance in the meta-loss helps {near}", _OPEN, True),
    ]
