"""The target of `plane-league`: a learned teleport that is better than none, and never worse."""

from collections.abc import Iterator
from typing import Any

from symmetrax.studies._orbit_arms import VANILLA
from symmetrax.studies.core._console import number, ratio_text, titled_table
from symmetrax.studies.core._study import Study

#: The chosen arm is to be better than vanilla by ten per cent, with the whole interval.
WANTED = -0.1
#: The test from far starts.
FAR = "far"


def targets(study: Study, results: dict[str, Any]) -> list[dict[str, Any]]:
    """For every family and judged horizon: whether a learned teleport is better, and never worse.

    `met` says that the log ratio to vanilla and its interval end below -0.1, that no run diverged, and that
    from far starts it is not worse. `solved` are the shares of runs that vanilla and the arm have solved by
    then: where both have, final losses are a tie. The arm is the chosen one. On ellipses a peak is the best
    angle in closed form (`in_closed_form`), so that there "teleport", which has to learn its angle, has rows
    too.
    """
    rows = []
    for family, chosen in results["chosen"].items():
        closed = family.startswith("ellipse") and chosen["arm"].startswith("peak")
        judged = {chosen["arm"]: closed}
        if closed and "teleport" in chosen["of"]:
            judged["teleport"] = False
        for name, in_closed_form in judged.items():
            for horizon in study.judged:
                arm = results["groups"][f"{family}-{horizon}"]["arms"][name]
                far = results["groups"].get(f"{family}-{FAR}-{horizon}")
                far = None if far is None else far["arms"][name]["versus"][VANILLA]
                versus = arm["versus"][VANILLA]
                better = max(number(versus["high"]), number(versus["log_ratio"])) < WANTED
                safe = arm["diverged"] == 0 and (far is None or number(far["low"]) <= 0)
                solved = results["solved"][family]
                rows.append(
                    {
                        "family": family,
                        "horizon": horizon,
                        "arm": name,
                        "in_closed_form": in_closed_form,
                        "versus": versus,
                        "far": far,
                        "diverged": arm["diverged"],
                        "solved": {n: solved[n]["share"][str(horizon)] for n in (VANILLA, name)},
                        "steps": solved[name]["versus"][VANILLA],
                        "met": bool(better and safe),
                    }
                )
    return rows


def tables(study: Study, results: dict[str, Any]) -> Iterator[Any]:
    """The rows of `targets`."""
    title = f"Learned teleports over {VANILLA}: final losses, and steps to a millionth of the first loss"
    columns = ("steps", "arm", "loss ratio", "from far", "diverged", "solved", "ratio of steps", "target")
    table = titled_table(title, "family", columns)
    for row in results["targets"]:
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
    yield table
