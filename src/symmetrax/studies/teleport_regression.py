"""A small regression network trained with one teleport, as in arXiv:2205.10637.

Published: 4 samples, layers of 5, 6, 7 and 8 units, 300 epochs; gradient descent, or AdaGrad, and at epoch 5
one teleport by a few steps of ascent along matrices that act on the hidden units. What is added: hundreds of
random problems, tuned learning rates, equal gradient evaluations, three other ways to teleport (exact
rescaling in closed form, the null space of the inputs, the level set), and a control for each thing a
teleport does beside choosing its direction.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np

from symmetrax.studies._registry import EXPERIMENTS
from symmetrax.studies._teleport_arms import METHODS, NetworkArm
from symmetrax.studies._teleport_claims import draw_costs, regression_claims, regression_panels
from symmetrax.studies.core._costs import Costed, Group, Trials, around, compared, copied, padded, tables
from symmetrax.studies.core._run import Run
from symmetrax.studies.core._study import Study
from symmetrax.tasks._regression import RegressionFamily

NO_BOUND = 1e6


@dataclasses.dataclass(frozen=True)
class Settings:
    """The published run, the learning rates tried, and `ways`, further ways to teleport.

    Rescalings, and the ascent of every arm but "teleport-unbounded", stay within `bound` in the algebra: on
    these groups the gradient norm has no largest value, so that what limits it is a choice. With bound 1 no
    hidden unit is scaled by more than e, which changes the gradient norm by less than e^2, within the range
    of the learning rates tried. The published search has no bound.

    >>> Settings().epochs
    300
    """

    rates: int = 25
    epochs: int = 300
    epoch: int = 5
    bound: float = 1.0
    dims: tuple[int, ...] = (5, 6, 7, 8)
    samples: int = 4
    methods: tuple[str, ...] = tuple(METHODS)
    ways: tuple[str, ...] = ("first-order", "null-space", "level-set")


def arms_of(run: Run, method: str) -> dict[str, Costed]:
    """All arms of one optimizer."""
    study, settings, chosen = run.study, run.study.settings, METHODS[method]
    family = RegressionFamily("regression", settings.dims, settings.samples)
    rates, watched = around(chosen.rate, chosen.ratio, settings.rates), ("loss change", "on fresh data")
    trials = Trials(family, family, run.streams, study.tasks, study.tuning_tasks, rates, watched)
    arm = functools.partial(NetworkArm, method)
    published = {"rate": chosen.rate, "theta": chosen.theta, "bound": settings.bound}
    when, epochs = np.arange(settings.epochs) == settings.epoch, settings.epochs
    teleport = trials.run(arm("teleport"), published, when)
    # Runs without teleports last as long as its gradient evaluations; the shorter ones are cut from them.
    longer = np.zeros(int(teleport.evaluations[-1]), bool)
    whole = trials.run(arm("none"), published, longer)
    # A linear symmetry carries the gradient along: nothing is evaluated anew.
    after = {"scaling": 0.0, "reset": 0.0}

    arms = {method: whole.first(epochs), f"{method}-budget": whole, "teleport": teleport}
    arms["teleport-unbounded"] = trials.run(arm("teleport"), {**published, "bound": NO_BOUND}, when)
    arms["scaling"] = trials.run(arm("scaling"), published, when, after=0.0)
    for way in settings.ways:
        run_one = trials.counted if way == "level-set" else trials.run
        arms[way] = run_one(arm(way), published, when)

    record = teleport.runs.recorded
    sizes = {"random": copied(record["algebra"], 0.0), "pseudo": copied(record["jump"], 0.0)}
    for name, size in sizes.items():
        arms[name] = trials.run(arm(name), published, when, size=size)
    lengths = copied(arms[method].runs.recorded["step_length"])
    for name in ("teleport", "scaling"):
        own = padded(arms[name].runs.recorded["step_length"], len(longer))
        paced = trials.run(arm("none"), published, longer, length=own)
        arms[f"{method}-paced-{name}"] = paced.first(epochs)
        costs = {"after": after.get(name, 1.0)}
        arms[f"{name}-paced"] = trials.run(arm(name), published, when, length=lengths, **costs)
        arms[f"{name}-tuned"] = trials.tuned(arm(name), published, when, **costs)

    short, budget = trials.best(arm("none"), published, longer, epochs, len(longer))
    arms[f"{method}-tuned"] = trials.run(arm("none"), short, longer).first(epochs)
    arms[f"{method}-tuned-budget"] = trials.run(arm("none"), budget, longer)
    if method != "gd":
        for name, transport in (
            ("reset", "reset"),
            ("teleport", "reset"),
            ("scaling", "carry"),
            ("scaling", "reset"),
        ):
            label = name if name == transport else f"{name}-{transport}"
            costs = {"after": after.get(name, 1.0)}
            arms[label] = trials.run(arm(name, transport), published, when, **costs)
    return arms


def analyse(run: Run) -> dict[str, Any]:
    """Every arm of every optimizer: their losses and costs, and verdicts."""
    groups = []
    for method in run.study.settings.methods:
        title = {"gd": "gradient descent", "adagrad": "AdaGrad"}[method]
        references = (method, f"{method}-budget", f"{method}-tuned", f"{method}-tuned-budget")
        arms, claims = functools.partial(arms_of, run, method), regression_claims(method)
        where, target = f"regression, {title}", f"{method}-tuned"
        groups.append(Group(f"regression-{method}", arms, claims, where, references, target))
    return compared(run, groups)


def draw(folder: Path, results: dict[str, Any]) -> None:
    """Losses against steps, gradient evaluations and time."""
    for group, content in results["groups"].items():
        panels = regression_panels(group.removeprefix("regression-"))
        draw_costs(folder / f"{group}.png", content["arms"], panels, group)


STUDIES = {
    "teleport-regression": Study(
        name="teleport-regression",
        title=EXPERIMENTS["teleport-regression"].title,
        seeds=50,
        tasks=10,
        tuning_tasks=20,
        analyse=analyse,
        figures=(draw,),
        tables=tables,
        settings=Settings(),
        # Compilation is what takes time: one optimizer, and no ways but the paper's and rescaling.
        quick={
            "seeds": 20,
            "tasks": 5,
            "tuning_tasks": 4,
            "settings": Settings(methods=("gd",), ways=()),
        },
    )
}
