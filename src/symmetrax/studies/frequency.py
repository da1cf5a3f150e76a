"""How often to teleport: learned teleports at every step, every 5, every 10 and never, each trained for it.

Reviewers of arXiv:2504.15399 asked for the frequency of teleports on convex and other problems. Here are a
convex family and one that is not, both of the plane, with a learned update (section 5.1), and the regression
of figure 7 with learned step size and momentum. All schedules of a family share their networks' start and
their tasks.
"""

import dataclasses
import functools
from typing import Any

import numpy as np
import optax

from symmetrax.learned._flat_gradient import FlatGradientLSTM
from symmetrax.learned._update_rule import UpdateRule
from symmetrax.studies import plots_fig7
from symmetrax.studies._fig7_arms import Networks, learned_arm
from symmetrax.studies.core._console import Reporter, arms_table, verdict_table
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._learned_arms import (
    Budget,
    Build,
    Control,
    LearnedArm,
    run_arm,
    switched_off,
    train,
)
from symmetrax.studies.core._learned_runs import Ran, facts, remembered
from symmetrax.studies.core._statistics import Interval, compare, verdict
from symmetrax.studies.core._streams import Streams
from symmetrax.tasks._families import make_family
from symmetrax.teleportation._guard import Guard

#: The family of the networks; the others are of the plane.
REGRESSION = "regression-20"
NEVER = "never"


@dataclasses.dataclass(frozen=True)
class Horizon:
    """How long the tasks of a family are, and how much training they get.

    >>> Horizon(steps=20, unroll=5, runs=500, chunk=100).steps
    20
    """

    steps: int
    unroll: int
    runs: int
    chunk: int


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run; `every` are the steps from one teleport to the next, the first at step 0.

    On the plane as published: 500 runs of 20 steps, windows of 5, width 100, rate 4e-4. The regression is
    that of `fig7` with networks of width 100. Unseen trajectories are as long as those of training.

    >>> config("frequency", "quick").seeds
    2
    """

    seed: int = 0
    seeds: int = 6
    tasks: int = 100
    validation_tasks: int = 32
    families: tuple[str, ...] = ("ellipse-random", "rosenbrock-random", REGRESSION)
    every: tuple[int, ...] = (1, 5, 10)
    plane: Horizon = Horizon(steps=20, unroll=5, runs=500, chunk=100)
    plane_width: int = 100
    plane_rate: float = 4e-4
    regression: Horizon = Horizon(steps=100, unroll=10, runs=100, chunk=25)
    networks: Networks = dataclasses.field(default_factory=lambda: Networks(width=100))

    def horizon(self, family: str) -> Horizon:
        """That of a family."""
        return self.regression if family == REGRESSION else self.plane


def config(name: str, preset: str = "full", seed: int = 0) -> Config:
    """The settings under a preset: "full", or "quick" with few seeds, tasks and runs.

    >>> config("frequency").every
    (1, 5, 10)
    """
    if preset == "full":
        return Config(seed=seed)
    return Config(
        seed=seed,
        seeds=2,
        tasks=40,
        validation_tasks=16,
        plane=Horizon(steps=20, unroll=5, runs=100, chunk=50),
        regression=Horizon(steps=30, unroll=10, runs=40, chunk=20),
        networks=Networks(units=10, width=20),
    )


def arm(family: str, every: int | None, settings: Config) -> LearnedArm:
    """The optimizer that learns to teleport every so many steps, or never (None).

    >>> arm("ellipse-random", 5, Config()).rule.schedule.sum().item()
    4
    """
    steps = settings.horizon(family).steps
    times = range(0, steps, every) if every else ()
    name = f"every-{every}" if every else NEVER
    if family == REGRESSION:
        found = learned_arm("lr-tele-momentum", "uniform", settings.networks, steps)
        return dataclasses.replace(found, name=name, rule=UpdateRule.at(times, steps, guard=found.rule.guard))
    make = Build.of(FlatGradientLSTM, size=2, algebra=1, width=settings.plane_width)
    # The bound on jumps is what the badly conditioned family needs; the other's teleports are of any length.
    guard = Guard(jump=3.0 if family.startswith("rosenbrock") else np.inf, tolerance=1e-3)
    rule = UpdateRule.at(times, steps, guard=guard)
    return LearnedArm(name, make, rule, _outer(settings.plane_rate), make_family(family))


@functools.cache
def _outer(rate: float) -> optax.GradientTransformation:
    """One object for all schedules, so that they share programs."""
    return optax.adam(rate)


def run(settings: Config, folder: RunFolder, reporter: Reporter) -> dict[str, Any]:
    """Train and run every schedule on every family; write arrays and plots; return groups and verdicts."""
    streams = Streams.of(settings.seed, settings.seeds)
    results: dict[str, Any] = {"groups": {}, "verdicts": []}
    for family in settings.families:
        losses, arms = _family(family, settings, streams, folder, reporter)
        results["groups"][family] = {"arms": arms}
        results["verdicts"] += verdicts(family, arms, settings)
        folder.arrays(f"losses-{family}", {name: x.astype(np.float32) for name, x in losses.items()})
    plots_fig7.frequencies(folder.path / "frequency.png", results["groups"], NEVER)
    return results


def show(settings: Config, results: dict[str, Any], reporter: Reporter) -> None:
    """Print the tables of a run."""
    for family, group in results["groups"].items():
        runs = next(iter(group["arms"].values()))["runs"]
        steps = settings.horizon(family).steps
        title = f"{family}: loss after {steps} steps, all {runs:,} unseen runs"
        reporter.print(arms_table(title, group["arms"], NEVER))
    reporter.print(verdict_table(results["verdicts"]))


def _family(family: str, settings: Config, streams: Streams, folder, reporter):
    """The losses of all schedules on one family, and the arms of its group."""
    ran: dict[str, Ran] = {}
    told: dict[str, dict[str, Any]] = {}
    for every in (None, *settings.every):
        own = arm(family, every, settings)
        found, card = remembered(
            folder,
            f"{family}-{own.name}",
            lambda own=own: _part(family, own, settings, streams, folder, reporter),
        )
        ran |= found
        told |= card
    losses = {name: r.losses for name, r in ran.items()}
    references = (NEVER, "every-1", *(name for name in losses if name.endswith("-off")))
    arms = compare(losses, references, settings.seeds * settings.tasks)
    return losses, {name: {**arms[name], **told[name]} for name in ran}


def _part(family: str, own: LearnedArm, settings: Config, streams: Streams, folder, reporter):
    """Train for one schedule; run it as trained, and with its teleports switched off."""
    horizon = settings.horizon(family)
    budget = Budget(
        horizon.runs,
        settings.seeds,
        horizon.steps,
        horizon.unroll,
        chunk=horizon.chunk,
        validation_tasks=settings.validation_tasks,
        patience=3 if family == REGRESSION else 0,
    )
    named = dataclasses.replace(own, name=f"{family}-{own.name}")
    trained = train(named, budget, streams, folder, reporter)
    off = [Control(f"{own.name}-off", own.name, switched_off(own.rule))] if own.name != NEVER else []
    ran, _ = run_arm(own, off, trained.networks, streams, steps=horizon.steps, tasks=settings.tasks)
    told = {name: facts(r, own.rule if name == own.name else None) for name, r in ran.items()}
    told[own.name] |= trained.facts
    for card in told.values():
        del card["told"]
    return ran, told


def verdicts(family: str, arms: dict[str, Any], settings: Config) -> list[dict[str, str]]:
    """Whether each schedule beats none, itself without its teleports, and a teleport at every step."""
    source = "asked by reviewers of arXiv:2504.15399"
    rows = []
    for every in settings.every:
        name = f"every-{every}"
        steps = "at every step" if every == 1 else f"every {every} steps"
        asked = {NEVER: f"a learned teleport {steps} beats none on {family}"}
        asked[f"{name}-off"] = f"what learned to teleport {steps} needs it at test on {family}"
        if every > 1:
            asked["every-1"] = f"a learned teleport every {every} steps beats one at every step on {family}"
        for other, claim in asked.items():
            if other in arms[name]["versus"]:
                rows.append(verdict(claim, source, Interval(**arms[name]["versus"][other])))
    return rows
