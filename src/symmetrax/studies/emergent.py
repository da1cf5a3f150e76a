"""Measures trained optimizers: momentum, schedule, saturation and gate, and which way they turn.

After arXiv:2011.02159, with optimizers that look along the orbit: the learned step is regressed on past
gradients, its length compared with the gradient's and the loss, and the gate with how much the gradient norm
varies along the orbit. On ellipses the learned angle is compared with the way to the steepest point.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np

from symmetrax.studies._emergent_measures import LAGS, describe
from symmetrax.studies._emergent_steps import look
from symmetrax.studies._orbit_arms import VANILLA, WATCHED, Networks, budget, orbit_arm
from symmetrax.studies._registry import EXPERIMENTS
from symmetrax.studies.core._arm import Learned
from symmetrax.studies.core._console import mean_text, number, titled_table
from symmetrax.studies.core._means import judged
from symmetrax.studies.core._panels import Curve, Panel, curve_panels
from symmetrax.studies.core._played import OWN
from symmetrax.studies.core._run import Run
from symmetrax.studies.core._study import Study
from symmetrax.tasks._base import AbstractTaskFamily

SOURCE = "arXiv:2011.02159"
SIGN_SOURCE = "a check of the setting of figure 3 of arXiv:2504.15399"
NEWTON_SOURCE = "arXiv:2504.15399 on second-order methods"
#: The share of steps in which the learned angle shall have the sign of the oracle's.
ASKED = 0.8


@dataclasses.dataclass(frozen=True)
class Settings:
    """The names of the arms of every family.

    >>> dict(Settings().arms)["ellipse-fixed"]
    ('teleport', 'peak')
    """

    arms: tuple[tuple[str, tuple[str, ...]], ...] = (
        ("ellipse-random", (VANILLA, "teleport", "peak")),
        ("rosenbrock-random", (VANILLA, "teleport", "peak-near")),
        ("ellipse-fixed", ("teleport", "peak")),
    )
    networks: Networks = Networks()  # noqa: RUF009 (frozen)


def arms(study: Study, family: AbstractTaskFamily) -> list[Learned]:
    """The arms of a family."""
    names = dict(study.settings.arms)[family.name]
    return [orbit_arm(name, family, study.budget, study.settings.networks) for name in names]


def analyse(run: Run) -> dict[str, Any]:
    """The measures of every arm, and their verdicts."""
    behaviour: dict[str, Any] = {}
    verdicts: list[dict[str, Any]] = []
    for family in run.study.made():
        played, behaviour[family.name] = run.played[family.name], {}
        for arm in arms(run.study, family):
            ran = played.runs[OWN, arm.name, played.steps]
            tracks = {key: np.asarray(x, float) for key, x in {**ran.recorded, "loss": ran.losses}.items()}
            rates = eqx.filter_eval_shape(arm.make, jax.random.key(0)).rates
            found = behaviour[family.name][arm.name] = describe(tracks, rates)
            verdicts += judge(family.name, arm.name, found)
    return {"behaviour": behaviour, "verdicts": verdicts}


def judge(family: str, arm: str, behaviour: dict[str, Any]) -> list[dict[str, Any]]:
    """Whether the arm keeps momentum, clips, opens its gate where the orbit has headroom, comes nearer to
    Newton's direction than the gradient, and turns the oracle's way."""
    where = f"({arm}, {family})"
    lags, saturation, newton = (behaviour[key] for key in ("lags", "saturation", "newton"))
    past, r2, bend = lags["past"], lags["r2"], saturation["r_bend"]
    rows = [
        judged(
            f"the learned step has momentum {where}",
            SOURCE,
            past,
            f"past gradients have {mean_text(past, '+.2f')} of the present one's weight; R^2 "
            f"{mean_text(r2[0])} without past gradients, {mean_text(r2[-1])} with {LAGS}",
        ),
        judged(
            f"long gradients are clipped, beyond what Polyak's step does by itself {where}",
            SOURCE,
            bend,
            f"the log-log slope of r against the gradient norm is {mean_text(bend, '+.2f')} more above the "
            f"median norm than below; that of the step is {mean_text(saturation['small'])} below it, "
            f"{mean_text(saturation['large'])} above it",
            negative=True,
        ),
        judged(
            f"the learned step is nearer to Newton's direction than the gradient is {where}",
            NEWTON_SOURCE,
            newton["more"],
            f"mean cosine {mean_text(newton['learned'])}, of the gradient {mean_text(newton['gradient'])}: "
            f"{mean_text(newton['more'], '+.3f')} more",
        ),
    ]
    gate, sign = behaviour["gate"], behaviour["sign"]
    if gate is not None and gate["headroom"] is not None:
        entry = gate["headroom"]["at equal step"]
        why = f"rank correlation at equal step {mean_text(entry, '+.2f')}; open in {mean_text(gate['open'])}"
        claim = f"the gate opens where the orbit has headroom {where}"
        rows.append(judged(claim, "not in the papers: a check", entry, f"{why} of steps"))
    if sign is not None:
        claim = f"the learned angle has the sign of the oracle's in {ASKED:.0%} of steps {where}"
        why = (
            f"share {mean_text(sign['all'])} of {sign['steps']:,} steps that are not solved; of those that "
            f"turn {mean_text(sign['turned'])}, against another run's oracle {mean_text(sign['chance'])}"
        )
        rows.append(judged(claim, SIGN_SOURCE, sign["all"], why, least=ASKED))
    return rows


#: Rows of the table, and their places among the measures of an arm.
ROWS = {
    "R^2, present gradient": ("lags", "r2", 0),
    "R^2, 1 past gradient": ("lags", "r2", 1),
    f"R^2, {LAGS} past gradients": ("lags", "r2", LAGS),
    **{f"weight of lag {lag} / present": ("lags", "weights", lag - 1) for lag in range(1, LAGS + 1)},
    "weight of all lags / present": ("lags", "past"),
    "slope, length by gradient": ("saturation", "slope"),
    "  short gradients": ("saturation", "small"),
    "  long gradients": ("saturation", "large"),
    "slope of r, long less short": ("saturation", "r_bend"),
    "slope, r by loss": ("saturation", "r_by_loss"),
    "share of r at its upper bound": ("saturation", "at_most"),
    "gate open": ("gate", "open"),
    "teleports that move": ("gate", "moves"),
    "gate with headroom, at equal step": ("gate", "headroom", "at equal step"),
    "cosine with Newton's step": ("newton", "learned"),
    "  of the gradient": ("newton", "gradient"),
    "sign of the oracle's angle": ("sign", "all"),
    "  where it turns": ("sign", "turned"),
    "  modulo pi": ("sign", "nearer"),
    "  another run's oracle": ("sign", "chance"),
    "cosine of twice the angle to it": ("sign", "peak"),
    "steps that count": ("unsolved",),
}


def tables(study: Study, results: dict[str, Any]) -> Iterator[Any]:
    """The measures of the arms of every family."""
    for family, found in results["behaviour"].items():
        title = f"{family}: what trained optimizers do, mean over {study.seeds} seeds (95 %)"
        table = titled_table(title, "", found)
        for words, place in ROWS.items():
            if any(cells := [_at(measures, place) for measures in found.values()]):
                table.add_row(words, *cells)
        medians = [[np.median(np.array(s, float)) for s in own["schedule"]] for own in found.values()]
        few = [t for t in (0, 1, 2, 4, 9) if t < len(medians[0])]
        table.add_row("r at steps 1, 2, 3, 5, 10", *(" ".join(f"{m[t]:.2f}" for t in few) for m in medians))
        yield table


def _at(found: Any, place: tuple) -> str:
    for key in place:
        if found is None:
            return ""
        found = found[key]
    return mean_text(found)


def draw(folder: Path, results: dict[str, Any]) -> None:
    """For each family: learned steps by number and by gradient norm, and the share that gradients explain."""
    shown = []
    for family, arms in results["behaviour"].items():
        schedules, saturation, lags = {}, {}, {}
        for arm, found in arms.items():
            x = np.array(found["schedule"], float)
            schedules[arm] = Curve(np.arange(len(x)), np.median(x, 1), np.min(x, 1), np.max(x, 1))
            saturation[arm] = Curve(*np.exp(np.array(found["saturation"]["curve"], float)).T[:2])
            means = np.array([[number(e[k]) for k in ("mean", "low", "high")] for e in found["lags"]["r2"]]).T
            lags[arm] = Curve(np.arange(LAGS + 1), *np.clip(means, -0.02, 1.02))
        ends = np.array([f([curve.x for curve in saturation.values()]) for f in (np.min, np.max)])
        saturation["proportional"] = Curve(ends, ends)
        title, x, y = (
            f"{family}: learned schedule",
            "gradient norm / that of the first step",
            "step length / first",
        )
        shown += [
            Panel(title, schedules, y="r, in Polyak's steps", log="", marked=1.0),
            Panel("saturation", saturation, x, y, log="xy"),
            Panel("R² by lags", lags, "past gradients known", "share explained", log=""),
        ]
    curve_panels(folder / "behaviour.png", shown)


STUDIES = {
    "emergent": Study(
        name="emergent",
        title=EXPERIMENTS["emergent"].title,
        families=("ellipse-random", "rosenbrock-random", "ellipse-fixed"),
        arms=arms,
        references=(VANILLA,),
        budget=budget(),
        seeds=8,
        tasks=500,
        parts=None,
        watch=WATCHED,
        look=look,
        analyse=analyse,
        figures=(draw,),
        tables=tables,
        settings=Settings(),
        quick={
            "families": ("ellipse-random", "ellipse-fixed"),
            "seeds": 4,
            "tasks": 200,
            "budget": budget(150),
            "settings": Settings((("ellipse-random", (VANILLA, "peak")), ("ellipse-fixed", ("teleport",)))),
        },
    )
}
