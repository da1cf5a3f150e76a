"""Claims about teleports inside gradient descent: those of arXiv:2205.10637 and ours, and what is drawn."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from symmetrax.studies.core._charts import AXES
from symmetrax.studies.core._console import number
from symmetrax.studies.core._panels import Panel, curve_panels, losses
from symmetrax.studies.core._study import Claim

SOURCE = "arXiv:2205.10637"
CONTROL = "not in the paper: a control"

PLANE_PANELS = {
    "The published comparison, and tuned": (
        *("gd", "gd-budget", "teleport", "gd-tuned-budget", "teleport-tuned", "oracle-every", "level-set"),
    ),
    "Controls": ("gd", "teleport", "opposite", "random", "pseudo", "gd-paced", "teleport-paced"),
    "Momentum": (
        *("momentum", "momentum-budget"),
        *(f"momentum-teleport-{transport}" for transport in ("keep", "carry", "reset")),
        "momentum-reset",
    ),
}


def regression_panels(method: str) -> dict[str, tuple[str, ...]]:
    """The arms of each picture of a method, "gd" or "adagrad".

    >>> list(regression_panels("gd"))
    ['The published comparison', 'Tuned', 'Controls']
    """
    ways = ("teleport", "teleport-unbounded", "first-order", "scaling", "null-space", "level-set")
    controls = ("random", "pseudo", f"{method}-paced-teleport", "teleport-paced")
    panels = {
        "The published comparison": (method, f"{method}-budget", *ways),
        "Tuned": (f"{method}-tuned", f"{method}-tuned-budget", "teleport-tuned", "scaling-tuned"),
        "Controls": (method, "teleport", *controls, f"{method}-paced-scaling", "scaling-paced"),
    }
    if method != "gd":
        scalings = ("scaling", "scaling-carry", "scaling-reset")
        panels["State"] = (method, "reset", "teleport", "teleport-reset", *scalings)
    return panels


def draw_costs(
    path: Path, arms: Mapping[str, Any], panels: Mapping[str, tuple[str, ...]], title: str
) -> Path:
    """Losses of some arms in each row of panels against steps, gradient evaluations and seconds.

    Times are averages over all runs of an arm, which run together.

    >>> import tempfile
    >>> gd = {"loss_median": [2.0, 1.0], "loss_q25": [1.0, 0.5], "loss_q75": [3.0, 2.0], "runs": 3}
    >>> gd |= {"evaluations_curve": [1, 2], "seconds_curve": [0.0, 0.1]}
    >>> draw_costs(Path(tempfile.mkdtemp(), "booth.png"), {"gd": gd}, {"All": ("gd",)}, "Booth").name
    'booth.png'
    """
    shown = [
        Panel(name if axis == "step" else "", losses(arms, names, banded=names, along=key), axis)
        for name, names in panels.items()
        for axis, key in AXES.items()
    ]
    first = number(next(iter(arms.values()))["loss_median"][0])
    gone = [name for name, arm in arms.items() if not number(arm["loss_median"][-1]) < 30 * first]
    labels = {name: f"{name} (diverges)" for name in gone}
    title = f"{title}: {next(iter(arms.values()))['runs']:,} runs per arm"
    return curve_panels(path, shown, title=title, labels=labels)


def plane_claims(name: str) -> Iterator[Claim]:
    """The paper's claim about a function of the plane, under its protocol and against each control.

    >>> next(plane_claims("booth")).text
    'teleportation accelerates gradient descent on Booth (same rate, same steps)'
    """
    claim = f"teleportation accelerates gradient descent on {name.capitalize()}"
    momentum, budget = "momentum-teleport-keep", "equal gradient evaluations"
    yield Claim("teleport", "gd", f"{claim} (same rate, same steps)", SOURCE)
    for first, second, text in (
        ("teleport", "gd-budget", f"{claim} (same rate, {budget})"),
        ("teleport", "gd-tuned-budget", f"{claim} (against a tuned rate, equal evaluations)"),
        ("teleport-tuned", "gd-tuned", f"{claim} (both tuned, same steps)"),
        ("teleport-tuned", "gd-tuned-budget", f"{claim} (both tuned, {budget})"),
        ("oracle-every", "gd", "the exact largest gradient does so too (same rate, same steps)"),
        ("level-set", "gd", "a search without a group does so too (same rate, same steps)"),
        ("teleport", "opposite", "the direction matters: better than the opposite turn"),
        ("teleport", "random", "the ascent matters: better than its random start alone"),
        ("teleport", "pseudo", "the orbit matters: better than a displacement of that length"),
        ("teleport", "gd-paced", "the place matters: better than steps of its lengths from elsewhere"),
        ("teleport-paced", "gd", "the place helps even at the step lengths of gradient descent"),
        (momentum, "momentum", "it accelerates momentum (tuned, same steps)"),
        (momentum, "momentum-budget", f"it accelerates momentum (tuned, {budget})"),
        ("momentum-teleport-reset", "momentum-reset", "it does more than resetting the momentum"),
    ):
        yield Claim(first, second, text, CONTROL)


def regression_claims(method: str) -> Iterator[Claim]:
    """The paper's claim about a method on a regression, under its protocol and against each control.

    >>> next(regression_claims("gd")).second
    'gd'
    """
    title = {"gd": "gradient descent", "adagrad": "AdaGrad"}[method]
    claim, budget = f"one teleport accelerates {title}", "equal gradient evaluations"
    exact, code = "the exact action, ascent without a bound", "the action of the published code"
    bounded = "the exact action, ascent within a bound"
    yield Claim("teleport-unbounded", method, f"{claim} ({exact}; same rate, same epochs)", SOURCE)
    yield Claim("first-order", method, f"{claim} ({code}; same rate, same epochs)", SOURCE)
    for first, second, text in (
        ("teleport", method, f"{claim} ({bounded}; same rate, same epochs)"),
        ("teleport", f"{method}-budget", f"{claim} ({bounded}; {budget})"),
        ("teleport-tuned", f"{method}-tuned", f"{claim} ({bounded}; both tuned, same epochs)"),
        ("teleport-tuned", f"{method}-tuned-budget", f"{claim} ({bounded}; both tuned, {budget})"),
        ("teleport", "random", "the direction matters: better than a random one of the same size"),
        ("teleport", "pseudo", "the orbit matters: better than a displacement of that length"),
        ("teleport", f"{method}-paced-teleport", "more than longer steps: the same lengths, no teleport"),
        ("scaling", method, "exact rescaling accelerates it (same rate, same epochs)"),
        ("scaling-tuned", f"{method}-tuned", "exact rescaling accelerates it (both tuned)"),
        ("scaling", f"{method}-paced-scaling", "rescaling is more than longer steps of those lengths"),
        ("null-space", method, "the null space of the inputs accelerates it (same rate)"),
        ("level-set", method, "the level set accelerates it (same rate)"),
        ("reset", method, "resetting the accumulator alone accelerates it"),
        ("teleport-reset", "reset", "a teleport does more than the reset that comes with it"),
        ("scaling-carry", "scaling", "carrying the accumulator beats keeping it"),
        ("scaling-reset", "reset", "rescaling does more than the reset that comes with it"),
    ):
        yield Claim(first, second, text, CONTROL)
