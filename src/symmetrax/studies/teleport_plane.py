"""Gradient descent with teleports on the functions of Booth and Rosenbrock, as in arXiv:2205.10637.

Published: one start for each function, the largest gradient searched by ten steps of ascent from a random
angle, against gradient descent at the same learning rate and number of steps. What is added: random starts,
gradient descent tuned and at equal gradient evaluations, the exact best angle, a search without a group,
and a control for each thing a teleport does beside choosing its direction. On a circle only two turns have a
given size, so the control for the direction is the opposite turn; "random" is the search's own random start.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from symmetrax._tree import safe_norm
from symmetrax.search._levelset import LevelSet
from symmetrax.search._searches import Oracle
from symmetrax.studies import plots_teleport
from symmetrax.studies.core._budgets import Arm, ask, copied, describe, target_table, teleports_table
from symmetrax.studies.core._console import Reporter, arms_table, verdict_table
from symmetrax.studies.core._control_searches import AscentFrom, Displace
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._lanes import (
    OWN,
    Moment,
    best_rate,
    cut,
    lane_keys,
    make_lanes,
    measured_evaluations,
    recorded,
    run_lanes,
)
from symmetrax.studies.core._streams import Streams
from symmetrax.tasks._base import AbstractTask
from symmetrax.tasks._plane import PlaneFamily, booth, rosenbrock
from symmetrax.teleportation._transform import teleported

SOURCE = "arXiv:2205.10637"
CONTROL = "not in the paper: a control"
REFERENCES = ("gd", "gd-budget", "gd-tuned", "gd-tuned-budget", "momentum")
TARGET = "gd-tuned"
ASCENT_STEPS = 10


@dataclasses.dataclass(frozen=True)
class Function:
    """The published settings of one function: `schedule` are the steps, from 0, before which it teleports.

    Learning rates are tuned over `rate` times powers of `ratio`, so that the published one is among them;
    `theta` is the rate of the ascent, in radians per unit of the squared gradient norm's slope.

    >>> FUNCTIONS["booth"].steps
    10
    """

    kind: Any
    start: tuple[float, float]
    steps: int
    rate: float
    theta: float
    schedule: tuple[int, ...]
    ratio: float

    def rates(self, count: int) -> np.ndarray:
        """That many learning rates, with the published one in the middle."""
        return self.rate * self.ratio ** (np.arange(count) - count // 2.0)

    def when(self, schedule: Any, steps: int | None = None) -> np.ndarray:
        """A boolean for each step."""
        return np.isin(np.arange(self.steps if steps is None else steps), list(schedule))


FUNCTIONS = {
    "booth": Function("booth", (5.0, -5.0), 10, 0.08, 1e-3, (4,), 1.2),
    "rosenbrock": Function("rosenbrock", (-1.0, -1.0), 1000, 1e-3, 0.1, tuple(range(99, 1000, 100)), 1.4),
}

#: The published starts, and starts everywhere.
PLACES = ("published", "anywhere")


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run.

    Every group has `seeds` times `tasks` runs: of the published start with as many random angles, or of as
    many starts from N(0, `spread`^2). Learning rates are tuned on other starts: N(0, `spread`^2) as well,
    and within `near` (standard deviation) of the published start, never at it.

    >>> config("teleport-plane", "quick").seeds
    20
    """

    seed: int = 0
    seeds: int = 50
    tasks: int = 20
    tuning_tasks: int = 40
    rates: int = 25
    momentum: float = 0.9
    spread: float = 1.5
    near: float = 0.1
    functions: tuple[str, ...] = tuple(FUNCTIONS)


def config(name: str, preset: str = "full", seed: int = 0) -> Config:
    """The settings under a preset.

    >>> config("teleport-plane").seeds * config("teleport-plane").tasks
    1000
    """
    full = Config(seed=seed)
    return full if preset == "full" else dataclasses.replace(full, seeds=20, tasks=5, tuning_tasks=4)


class PlaneArm(eqx.Module):
    """An optimizer of the plane: gradient descent with momentum, and a search before its steps that are due.

    `search` is "none" or one of "ascent", "oracle", "level-set" and "pseudo"; `transport` is what happens to
    the momentum at a teleport. The ascent starts at U[0, turn) plus the moment's size, radians.

    >>> PlaneArm("ascent").transport
    'keep'
    """

    search: str = eqx.field(static=True)
    transport: Any = eqx.field(static=True, default="keep")

    def __call__(
        self, hyper: dict[str, Array], task: AbstractTask, moment: Moment, watch
    ) -> optax.GradientTransformationExtraArgs:
        descent = optax.chain(optax.trace(hyper["momentum"]), optax.scale_by_learning_rate(hyper["rate"]))
        inner = recorded(descent, moment, watch)
        if self.search == "none":
            return inner
        angle = hyper["turn"] * jax.random.uniform(moment.key) + moment.size
        search = {
            "ascent": AscentFrom(angle, hyper["theta"], ASCENT_STEPS),
            "oracle": Oracle(),
            "level-set": LevelSet(),
            "pseudo": Displace(moment.key, moment.size),
        }[self.search]
        symmetry = None if self.search in ("level-set", "pseudo") else task.symmetry()
        return teleported(
            inner,
            symmetry,
            search=search,
            schedule=lambda count: moment.due,
            guard=None,
            transport=self.transport,
        )


def watch(task: AbstractTask, origin, there) -> dict[str, Float[Array, ""]]:
    """Relative change of the loss (or of 1e-6, if it is less); how much farther away the minimum is."""
    here, after = task.loss(origin), task.loss(there)
    minimum = task.symmetry().map.inverse(jnp.zeros(2))  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    away = [safe_norm(point - minimum) for point in (origin, there)]
    return {"loss change": (after - here) / jnp.maximum(here, 1e-6), "farther": away[1] - away[0]}


def run(settings: Config, folder: RunFolder, reporter: Reporter) -> dict[str, Any]:
    """Run every arm on every group; write losses and plots; return groups and verdicts."""
    groups, verdicts, losses = {}, [], {}
    for name in settings.functions:
        for place in PLACES:
            group = f"{name}-{place}"
            reporter.note(f"{group}: tune learning rates, run all arms")
            arms = run_group(settings, FUNCTIONS[name], place)
            groups[group] = {"arms": describe(arms, REFERENCES, settings.seeds, TARGET)}
            verdicts += group_verdicts(settings, arms, name, place)
            stride = max(1, FUNCTIONS[name].steps // 100)
            for arm, ran in arms.items():
                losses[f"{group}.{arm}"] = ran.losses(settings.seeds)[..., ::stride].astype(np.float32)
    folder.arrays("losses", losses)
    for group, content in groups.items():
        plots_teleport.budgets(folder.path / f"{group}.png", content["arms"], PANELS, group)
    return {"groups": groups, "verdicts": verdicts}


def run_group(settings: Config, function: Function, place: str) -> dict[str, Arm]:
    """All arms on the runs of one function and one kind of start."""
    known = {"booth": booth, "rosenbrock": rosenbrock}[function.kind]()

    def family(start, spread):
        return PlaneFamily(function.kind, function.kind, known.map, jnp.array(start), jnp.array(spread))

    anywhere = family((0.0, 0.0), settings.spread)
    tested = anywhere if place == "anywhere" else family(function.start, 0.0)
    practice = anywhere if place == "anywhere" else family(function.start, settings.near)
    streams = Streams.of(settings.seed, settings.seeds)
    published = {"rate": function.rate, "momentum": 0.0, "theta": function.theta, "turn": float(np.pi)}

    # As many draws as the longest run has steps: its budget of gradient evaluations.
    most = function.steps + len(function.schedule) * (3 * ASCENT_STEPS + 1)
    lanes = make_lanes(tested, lane_keys(streams.test, settings.tasks), most)
    tuning = make_lanes(practice, jax.random.split(streams.tune, settings.tuning_tasks), most)

    def go(make, hyper, when, **given) -> Arm:
        return Arm(run_lanes(make, hyper, tested, lanes, when, watch=watch, **given), hyper)

    def rate(make, hyper, when, after=None) -> dict[str, float]:
        """Hyperparameters with the learning rate that is best on other starts."""
        rates = function.rates(settings.rates)
        found = best_rate(make, hyper, rates, practice, tuning, when, watch=watch, after=after)
        return {**hyper, "rate": found}

    plain, ascent, oracle = PlaneArm("none"), PlaneArm("ascent"), PlaneArm("oracle")
    when = function.when(function.schedule)
    teleport = go(ascent, published, when)
    # Runs without teleports are that long; the shorter ones are cut.
    longer = function.when((), int(teleport.evaluations[-1]))

    def cut_and_whole(hyper, **given) -> tuple[Arm, Arm]:
        whole = go(plain, hyper, longer, **given)
        return dataclasses.replace(whole, ran=cut(whole.ran, function.steps)), whole

    def tuned(make, hyper) -> Arm:
        return go(make, rate(make, hyper, when), when)

    arms = {}
    arms["gd"], arms["gd-budget"] = cut_and_whole(published)
    arms["teleport"] = teleport
    arms["ascent"] = go(ascent, {**published, "turn": 0.0}, when)
    arms["oracle-start"] = go(oracle, published, function.when([0]))
    arms["oracle-once"] = go(oracle, published, function.when(function.schedule[:1]))
    every = function.schedule if len(function.schedule) > 1 else range(function.steps)
    arms["oracle-every"] = go(oracle, published, function.when(every))
    level = go(PlaneArm("level-set"), published, when, points=True)
    spent = measured_evaluations(LevelSet(), tested, lanes, level.ran)
    arms["level-set"] = dataclasses.replace(level, search=spent)

    turn, distance = (copied(x, 0.0) for x in (teleport.ran.log.size, teleport.ran.log.jump))
    still = {**published, "turn": 0.0, "theta": 0.0}
    for name, hyper, given in (("opposite", still, -turn), ("random", {**published, "theta": 0.0}, 0.0)):
        arms[name] = dataclasses.replace(go(ascent, hyper, when, size=given), search=0.0)
    arms["pseudo"] = go(PlaneArm("pseudo"), published, when, size=distance)
    lengths = np.full((lanes.number, len(longer)), OWN)
    lengths[:, : function.steps] = copied(teleport.ran.log.length)
    arms["gd-paced"], _ = cut_and_whole(published, length=lengths)
    arms["teleport-paced"] = go(ascent, published, when, length=copied(arms["gd"].ran.log.length))

    heavy = {**published, "momentum": settings.momentum}
    for name, hyper in (("gd-tuned", published), ("momentum", heavy)):
        arms[name], _ = cut_and_whole(rate(plain, hyper, longer, after=function.steps))
        _, arms[f"{name}-budget"] = cut_and_whole(rate(plain, hyper, longer))
    arms["teleport-tuned"] = tuned(ascent, published)
    for transport in ("keep", "carry", "reset"):
        arms[f"momentum-teleport-{transport}"] = tuned(PlaneArm("ascent", transport), heavy)
    # A turn by exactly nothing, after which the momentum is reset.
    only = tuned(PlaneArm("ascent", "reset"), {**heavy, "turn": 0.0, "theta": 0.0})
    arms["momentum-reset"] = dataclasses.replace(only, search=0.0, after=0.0)
    return arms


def group_verdicts(settings: Config, arms: dict[str, Arm], name: str, place: str) -> list[dict[str, str]]:
    """What became of the paper's claim, under its protocol and against each control."""
    title = name.capitalize()
    claim = f"teleportation accelerates gradient descent on {title}"
    rows = [
        ("teleport", "gd", f"{claim} (same rate, same steps)", SOURCE),
        ("teleport", "gd-budget", f"{claim} (same rate, equal gradient evaluations)", CONTROL),
        ("teleport", "gd-tuned-budget", f"{claim} (against a tuned rate, equal evaluations)", CONTROL),
        ("teleport-tuned", "gd-tuned", f"{claim} (both tuned, same steps)", CONTROL),
        ("teleport-tuned", "gd-tuned-budget", f"{claim} (both tuned, equal gradient evaluations)", CONTROL),
        ("oracle-every", "gd", "the exact largest gradient does so too (same rate, same steps)", CONTROL),
        ("level-set", "gd", "a search without a group does so too (same rate, same steps)", CONTROL),
        ("teleport", "opposite", "the direction matters: better than the opposite turn", CONTROL),
        ("teleport", "random", "the ascent matters: better than its random start alone", CONTROL),
        ("teleport", "pseudo", "the orbit matters: better than a displacement of that length", CONTROL),
        (
            "teleport",
            "gd-paced",
            "the place matters: better than steps of its lengths from elsewhere",
            CONTROL,
        ),
        ("teleport-paced", "gd", "the place helps even at the step lengths of gradient descent", CONTROL),
        ("momentum-teleport-keep", "momentum", "it accelerates momentum (tuned, same steps)", CONTROL),
        (
            "momentum-teleport-keep",
            "momentum-budget",
            "it accelerates momentum (tuned, equal gradient evaluations)",
            CONTROL,
        ),
        ("momentum-teleport-reset", "momentum-reset", "it does more than resetting the momentum", CONTROL),
    ]
    where = "published start" if place == "published" else "random starts"
    return ask(rows, arms, settings.seeds, f"{title}, {where}")


#: What is drawn together.
PANELS = {
    "The published comparison, and tuned": (
        "gd",
        "gd-budget",
        "teleport",
        "gd-tuned-budget",
        "teleport-tuned",
        "oracle-every",
        "level-set",
    ),
    "Controls": ("gd", "teleport", "opposite", "random", "pseudo", "gd-paced", "teleport-paced"),
    "Momentum": (
        "momentum",
        "momentum-budget",
        "momentum-teleport-keep",
        "momentum-teleport-carry",
        "momentum-teleport-reset",
        "momentum-reset",
    ),
}


def show(settings: Config, results: dict[str, Any], reporter: Reporter) -> None:
    """Print the tables of a run."""
    for name, group in results["groups"].items():
        arms = group["arms"]
        runs = next(iter(arms.values()))["runs"]
        title = f"{name}: final loss, all {runs:,} runs"
        reporter.print(arms_table(title, arms, "gd"))
        reporter.print(teleports_table(f"{name}: teleports, median (largest)", arms))
        title = f"{name}: cost until the loss is as low as {TARGET}'s at last, over what {TARGET} spends"
        reporter.print(target_table(title, arms))
    reporter.print(verdict_table(results["verdicts"]))
