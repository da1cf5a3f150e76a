"""Gradient descent with teleports on the functions of Booth and Rosenbrock, as in arXiv:2205.10637.

Published: one start for each function, the largest gradient searched by ten steps of ascent from a random
angle, against gradient descent at the same learning rate and number of steps. What is added: random starts,
gradient descent tuned and at equal gradient evaluations, the exact best angle, a search without a group,
and a control for each thing a teleport does beside choosing its direction. On a circle only two turns have a
given size, so the control for the direction is the opposite turn; "random" is the search's own random start.
"""

import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Any, cast

import jax.numpy as jnp
import numpy as np

from symmetrax.studies._registry import EXPERIMENTS
from symmetrax.studies._teleport_arms import FUNCTIONS, PlaneArm
from symmetrax.studies._teleport_claims import PLANE_PANELS, draw_costs, plane_claims
from symmetrax.studies.core._costs import Costed, Group, Trials, around, compared, copied, padded, tables
from symmetrax.studies.core._run import Run
from symmetrax.studies.core._study import Study
from symmetrax.tasks._plane import Kind, PlaneFamily

REFERENCES = ("gd", "gd-budget", "gd-tuned", "gd-tuned-budget", "momentum")


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings: `rates` learning rates are tried, and starts from N(0, `spread`^2) beside the published.

    Rates are tuned on other starts of the same law, for the published one on starts within `near` (standard
    deviation) of it, never at it.

    >>> Settings().functions
    ('booth', 'rosenbrock')
    """

    rates: int = 25
    momentum: float = 0.9
    spread: float = 1.5
    near: float = 0.1
    functions: tuple[str, ...] = tuple(FUNCTIONS)
    #: The published starts, and starts everywhere.
    places: tuple[str, ...] = ("published", "anywhere")


def arms_of(run: Run, name: str, place: str) -> dict[str, Costed]:
    """All arms on the runs of one function and one kind of start."""
    study, settings, function = run.study, run.study.settings, FUNCTIONS[name]

    def family(start, spread):
        return PlaneFamily(name, cast(Kind, name), function.task.map, jnp.array(start), jnp.array(spread))

    tested = practice = family((0.0, 0.0), settings.spread)
    if place == "published":
        tested, practice = family(function.start, 0.0), family(function.start, settings.near)
    rates, watched = around(function.rate, function.ratio, settings.rates), ("loss change", "farther")
    trials = Trials(tested, practice, run.streams, study.tasks, study.tuning_tasks, rates, watched)
    plain, ascent, oracle = PlaneArm("none"), PlaneArm("ascent"), PlaneArm("oracle")
    published = {"rate": function.rate, "momentum": 0.0, "theta": function.theta, "turn": float(np.pi)}
    when, steps = function.when(function.schedule), function.steps
    teleport = trials.run(ascent, published, when)
    # Runs without teleports last as long as its gradient evaluations; the shorter ones are cut from them.
    longer = np.zeros(int(teleport.evaluations[-1]), bool)
    budget = trials.run(plain, published, longer)
    arms = {"gd": budget.first(steps), "gd-budget": budget, "teleport": teleport}
    arms["ascent"] = trials.run(ascent, {**published, "turn": 0.0}, when)
    arms["oracle-start"] = trials.run(oracle, published, function.when([0]))
    arms["oracle-once"] = trials.run(oracle, published, function.when(function.schedule[:1]))
    every = function.schedule if len(function.schedule) > 1 else range(steps)
    arms["oracle-every"] = trials.run(oracle, published, function.when(every))
    arms["level-set"] = trials.counted(PlaneArm("level-set"), published, when)

    record, unchanged = teleport.runs.recorded, {**published, "turn": 0.0, "theta": 0.0}
    turn, distance = (copied(record[key], 0.0) for key in ("algebra", "jump"))
    arms["opposite"] = trials.run(ascent, unchanged, when, size=-turn, search=0.0)
    arms["random"] = trials.run(ascent, {**published, "theta": 0.0}, when, search=0.0)
    arms["pseudo"] = trials.run(PlaneArm("pseudo"), published, when, size=distance)
    lengths = padded(record["step_length"], len(longer))
    arms["gd-paced"] = trials.run(plain, published, longer, length=lengths).first(steps)
    lengths = copied(arms["gd"].runs.recorded["step_length"])
    arms["teleport-paced"] = trials.run(ascent, published, when, length=lengths)

    heavy = {**published, "momentum": settings.momentum}
    for label, hyper in (("gd-tuned", published), ("momentum", heavy)):
        short, budget = trials.best(plain, hyper, longer, steps, len(longer))
        arms[label] = trials.run(plain, short, longer).first(steps)
        arms[f"{label}-budget"] = trials.run(plain, budget, longer)
    arms["teleport-tuned"] = trials.tuned(ascent, published, when)
    for transport in ("keep", "carry", "reset"):
        arms[f"momentum-teleport-{transport}"] = trials.tuned(PlaneArm("ascent", transport), heavy, when)
    # A turn by exactly nothing, after which the momentum is reset.
    hyper = {**heavy, "turn": 0.0, "theta": 0.0}
    arms["momentum-reset"] = trials.tuned(PlaneArm("ascent", "reset"), hyper, when, search=0.0, after=0.0)
    return arms


def analyse(run: Run) -> dict[str, Any]:
    """Every arm on every function and kind of start: their losses and costs, and verdicts."""
    groups = []
    for name, place in itertools.product(run.study.settings.functions, run.study.settings.places):
        arms = functools.partial(arms_of, run, name, place)
        where = f"{name.capitalize()}, {'published start' if place == 'published' else 'random starts'}"
        groups.append(Group(f"{name}-{place}", arms, plane_claims(name), where, REFERENCES, "gd-tuned"))
    return compared(run, groups)


def draw(folder: Path, results: dict[str, Any]) -> None:
    """Losses against steps, gradient evaluations and time."""
    for group, content in results["groups"].items():
        draw_costs(folder / f"{group}.png", content["arms"], PLANE_PANELS, group)


STUDIES = {
    "teleport-plane": Study(
        name="teleport-plane",
        title=EXPERIMENTS["teleport-plane"].title,
        seeds=50,
        tasks=20,
        tuning_tasks=40,
        analyse=analyse,
        figures=(draw,),
        tables=tables,
        settings=Settings(),
        quick={"seeds": 20, "tasks": 5, "tuning_tasks": 4},
    )
}
