"""A small regression network trained with one teleport, as in arXiv:2205.10637.

Published: 4 samples, layers of 5, 6, 7 and 8 units, 300 epochs; gradient descent, or AdaGrad, and at epoch 5
one teleport by a few steps of ascent along matrices that act on the hidden units. What is added: hundreds of
random problems, tuned learning rates, equal gradient evaluations, three other ways to teleport (exact
rescaling in closed form, the null space of the inputs, the level set), and a control for each thing a
teleport does beside choosing its direction.
"""

import dataclasses
import functools
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from symmetrax.search._closed_form import ClosedForm
from symmetrax.search._levelset import LevelSet
from symmetrax.search._nullspace import NullSpace
from symmetrax.search._searches import Ascent
from symmetrax.studies import plots_teleport
from symmetrax.studies._published import FirstOrder, features
from symmetrax.studies.core._budgets import (
    Arm,
    ask,
    copied,
    describe,
    target_table,
    teleports_table,
)
from symmetrax.studies.core._console import Reporter, arms_table, verdict_table
from symmetrax.studies.core._control_searches import Displace, SameSize, Stay
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
from symmetrax.tasks._regression import Regression, RegressionFamily
from symmetrax.teleportation._transform import teleported

SOURCE = "arXiv:2205.10637"
CONTROL = "not in the paper: a control"
FRESH = 64
NO_BOUND = 1e6


@dataclasses.dataclass(frozen=True)
class Method:
    """The published settings of one optimizer: its rate, and the steps and rate of the ascent.

    Learning rates are tuned over `rate` times powers of `ratio`.

    >>> METHODS["adagrad"].ascent_steps
    2
    """

    rate: float
    ascent_steps: int
    theta: float
    ratio: float

    def rates(self, count: int) -> np.ndarray:
        """That many learning rates, with the published one in the middle."""
        return self.rate * self.ratio ** (np.arange(count) - count // 2.0)


METHODS = {"gd": Method(1e-4, 8, 1e-7, 1.4), "adagrad": Method(0.1, 2, 1e-5, 1.4)}


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run: `seeds` times `tasks` random problems, each from its own random start.

    Rescalings, and the ascent of every arm but "teleport-unbounded", stay within `bound` in the algebra: on
    these groups the gradient norm has no largest value, so that what limits it is a choice. With bound 1 no
    hidden unit is scaled by more than e, which changes the gradient norm by less than e^2, still within the
    range of the learning rates tried. The published search has no bound.

    >>> config("teleport-regression", "quick").seeds
    20
    """

    seed: int = 0
    seeds: int = 50
    tasks: int = 10
    tuning_tasks: int = 20
    rates: int = 25
    epochs: int = 300
    epoch: int = 5
    bound: float = 1.0
    dims: tuple[int, ...] = (5, 6, 7, 8)
    samples: int = 4
    methods: tuple[str, ...] = tuple(METHODS)
    #: Other ways to teleport.
    ways: tuple[str, ...] = ("first-order", "null-space", "level-set")


def config(name: str, preset: str = "full", seed: int = 0) -> Config:
    """The settings under a preset.

    >>> config("teleport-regression").epochs
    300
    """
    full = Config(seed=seed)
    if preset == "full":
        return full
    # Compilation is what takes time: one optimizer, and no ways but the paper's and rescaling.
    return dataclasses.replace(full, seeds=20, tasks=5, tuning_tasks=4, methods=("gd",), ways=())


class NetworkArm(eqx.Module):
    """An optimizer, and what is searched before its steps that are due.

    `search` is "none" or one of "teleport" (the published action, kept exact), "first-order" (the published
    code's approximation of it), "random", "scaling", "null-space", "level-set", "pseudo" and "reset".

    >>> NetworkArm("gd", "scaling").transport
    'keep'
    """

    method: str = eqx.field(static=True)
    search: str = eqx.field(static=True)
    transport: Any = eqx.field(static=True, default="keep")

    def __call__(
        self, hyper: dict[str, Array], task: AbstractTask, moment: Moment, watch
    ) -> optax.GradientTransformationExtraArgs:
        rate = hyper["rate"]
        if self.method == "gd":
            optimizer = optax.sgd(rate)
        else:
            optimizer = optax.adagrad(rate, initial_accumulator_value=0.0, eps=1e-10)
        inner = recorded(optimizer, moment, watch)
        if self.search == "none":
            return inner
        task = cast(Regression, task)
        action = task.network.invertible_symmetry("preimage")
        ascent = Ascent(METHODS[self.method].ascent_steps, hyper["theta"], hyper["bound"])
        symmetry, search = {
            "teleport": lambda: (action, ascent),
            "first-order": lambda: (None, FirstOrder(METHODS[self.method].ascent_steps, hyper["theta"])),
            "random": lambda: (action, SameSize(moment.key, moment.size)),
            "scaling": lambda: (task.symmetry(), ClosedForm(hyper["bound"])),
            "null-space": lambda: (None, NullSpace(features)),
            "level-set": lambda: (None, LevelSet()),
            "pseudo": lambda: (None, Displace(moment.key, moment.size)),
            "reset": lambda: (None, Stay()),
        }[self.search]()
        return teleported(
            inner,
            symmetry,
            search=search,
            schedule=lambda count: moment.due,
            guard=None,
            transport=self.transport,
        )


def watch(task: AbstractTask, origin: PyTree, there: PyTree) -> dict[str, Array]:
    """Relative change of the loss at a teleport: on the samples, and on fresh ones of the same law."""
    task = cast(Regression, task)
    random = np.random.default_rng(0)
    shapes = (task.inputs.shape[1], task.targets.shape[1])
    fresh = tuple(jnp.asarray(random.uniform(size=(FRESH, width)), task.inputs.dtype) for width in shapes)

    def change(batch):
        here, after = task.loss(origin, batch), task.loss(there, batch)
        return (after - here) / jnp.maximum(here, 1e-6)

    return {"loss change": change(None), "on fresh data": change(fresh)}


def run(settings: Config, folder: RunFolder, reporter: Reporter) -> dict[str, Any]:
    """Run every arm on every problem; write losses and plots; return groups and verdicts."""
    groups, verdicts, losses = {}, [], {}
    for method in settings.methods:
        group = f"regression-{method}"
        reporter.note(f"{group}: tune learning rates, run all arms")
        arms = run_method(settings, method)
        references = (method, f"{method}-budget", f"{method}-tuned", f"{method}-tuned-budget")
        groups[group] = {"arms": describe(arms, references, settings.seeds, f"{method}-tuned")}
        verdicts += method_verdicts(settings, arms, method)
        stride = max(1, settings.epochs // 100)
        for name, arm in arms.items():
            losses[f"{group}.{name}"] = arm.losses(settings.seeds)[..., ::stride].astype(np.float32)
    folder.arrays("losses", losses)
    for group, content in groups.items():
        panels = PANELS[group.removeprefix("regression-")]
        plots_teleport.budgets(folder.path / f"{group}.png", content["arms"], panels, group)
    return {"groups": groups, "verdicts": verdicts}


def run_method(settings: Config, method: str) -> dict[str, Arm]:
    """All arms of one optimizer."""
    family = RegressionFamily("regression", settings.dims, settings.samples)
    streams = Streams.of(settings.seed, settings.seeds)
    most = settings.epochs + 3 * METHODS[method].ascent_steps + 1
    lanes = make_lanes(family, lane_keys(streams.test, settings.tasks), most)
    tuning = make_lanes(family, jax.random.split(streams.tune, settings.tuning_tasks), most)
    chosen = METHODS[method]
    published = {"rate": chosen.rate, "theta": chosen.theta, "bound": settings.bound}
    unbounded = {**published, "bound": NO_BOUND}
    rates = chosen.rates(settings.rates)
    when = np.arange(settings.epochs) == settings.epoch

    def go(make, hyper, when=when, **given) -> Arm:
        return Arm(run_lanes(make, hyper, family, lanes, when, watch=watch, **given), hyper)

    def rate(make, hyper, when, after=None) -> dict[str, float]:
        """Hyperparameters with the learning rate that is best on other problems."""
        found = best_rate(make, hyper, rates, family, tuning, when, watch=watch, after=after)
        return {**hyper, "rate": found}

    arm = functools.partial(NetworkArm, method)
    plain = arm("none")
    teleport = go(arm("teleport"), published)
    # Runs without teleports are as long as the budget of gradient evaluations; the others are cut from them.
    budget = int(teleport.evaluations[-1])
    longer = np.zeros(budget, bool)

    def shorter(whole: Arm, steps: int) -> Arm:
        return dataclasses.replace(whole, ran=cut(whole.ran, steps))

    arms = {}
    whole = go(plain, published, longer)
    arms[method], arms[f"{method}-budget"] = shorter(whole, settings.epochs), shorter(whole, budget)
    arms["teleport"] = teleport
    arms["teleport-unbounded"] = go(arm("teleport"), unbounded)
    free = {"after": 0.0}  # a linear symmetry carries the gradient along: nothing is evaluated anew
    arms["scaling"] = dataclasses.replace(go(arm("scaling"), published), **free)
    for way in settings.ways:
        arms[way] = go(arm(way), published, points=way == "level-set")
    if "level-set" in arms:
        spent = measured_evaluations(LevelSet(), family, lanes, arms["level-set"].ran)
        arms["level-set"] = dataclasses.replace(arms["level-set"], search=spent)

    size, distance = (copied(x, 0.0) for x in (teleport.ran.log.size, teleport.ran.log.jump))
    arms["random"] = go(arm("random"), published, size=size)
    arms["pseudo"] = go(arm("pseudo"), published, size=distance)
    for name in ("teleport", "scaling"):
        lengths = np.full((lanes.number, len(longer)), OWN)
        lengths[:, : settings.epochs] = copied(arms[name].ran.log.length)
        paced = go(plain, published, longer, length=lengths)
        arms[f"{method}-paced-{name}"] = shorter(paced, settings.epochs)
    lengths = copied(arms[method].ran.log.length)
    arms["teleport-paced"] = go(arm("teleport"), published, length=lengths)
    arms["scaling-paced"] = dataclasses.replace(go(arm("scaling"), published, length=lengths), **free)

    arms[f"{method}-tuned"] = shorter(
        go(plain, rate(plain, published, longer, settings.epochs), longer), settings.epochs
    )
    arms[f"{method}-tuned-budget"] = shorter(
        go(plain, rate(plain, published, longer, budget), longer), budget
    )
    for name in ("teleport", "scaling"):
        found = go(arm(name), rate(arm(name), published, when))
        arms[f"{name}-tuned"] = dataclasses.replace(found, after=arms[name].after)
    if method != "gd":
        arms["reset"] = dataclasses.replace(go(arm("reset", "reset"), published), **free)
        arms["teleport-reset"] = go(arm("teleport", "reset"), published)
        for transport in ("carry", "reset"):
            found = go(arm("scaling", transport), published)
            arms[f"scaling-{transport}"] = dataclasses.replace(found, **free)
    return arms


def method_verdicts(settings: Config, arms: dict[str, Arm], method: str) -> list[dict[str, str]]:
    """What became of the paper's claim, under its protocol and against each control."""
    title = {"gd": "gradient descent", "adagrad": "AdaGrad"}[method]
    claim = f"one teleport accelerates {title}"
    exact, code = "the exact action, ascent without a bound", "the action of the published code"
    bounded = "the exact action, ascent within a bound"
    rows = [
        ("teleport-unbounded", method, f"{claim} ({exact}; same rate, same epochs)", SOURCE),
        ("first-order", method, f"{claim} ({code}; same rate, same epochs)", SOURCE),
        ("teleport", method, f"{claim} ({bounded}; same rate, same epochs)", CONTROL),
        ("teleport", f"{method}-budget", f"{claim} ({bounded}; equal gradient evaluations)", CONTROL),
        ("teleport-tuned", f"{method}-tuned", f"{claim} ({bounded}; both tuned, same epochs)", CONTROL),
        (
            "teleport-tuned",
            f"{method}-tuned-budget",
            f"{claim} ({bounded}; both tuned, equal gradient evaluations)",
            CONTROL,
        ),
        ("teleport", "random", "the direction matters: better than a random one of the same size", CONTROL),
        ("teleport", "pseudo", "the orbit matters: better than a displacement of that length", CONTROL),
        (
            "teleport",
            f"{method}-paced-teleport",
            "more than longer steps: the same lengths, no teleport",
            CONTROL,
        ),
        ("scaling", method, "exact rescaling accelerates it (same rate, same epochs)", CONTROL),
        ("scaling-tuned", f"{method}-tuned", "exact rescaling accelerates it (both tuned)", CONTROL),
        (
            "scaling",
            f"{method}-paced-scaling",
            "rescaling is more than longer steps of those lengths",
            CONTROL,
        ),
        ("null-space", method, "the null space of the inputs accelerates it (same rate)", CONTROL),
        ("level-set", method, "the level set accelerates it (same rate)", CONTROL),
    ]
    if method != "gd":
        rows += [
            ("reset", method, "resetting the accumulator alone accelerates it", CONTROL),
            ("teleport-reset", "reset", "a teleport does more than the reset that comes with it", CONTROL),
            ("scaling-carry", "scaling", "carrying the accumulator beats keeping it", CONTROL),
            ("scaling-reset", "reset", "rescaling does more than the reset that comes with it", CONTROL),
        ]
    rows = [row for row in rows if row[0] in arms]
    return ask(rows, arms, settings.seeds, f"regression, {title}")


def _panels(method: str) -> dict[str, tuple[str, ...]]:
    ways = ("teleport", "teleport-unbounded", "first-order", "scaling", "null-space", "level-set")
    tuned = (f"{method}-tuned", f"{method}-tuned-budget", "teleport-tuned", "scaling-tuned")
    controls = ("random", "pseudo", f"{method}-paced-teleport", "teleport-paced")
    scale = (f"{method}-paced-scaling", "scaling-paced")
    panels = {
        "The published comparison": (method, f"{method}-budget", *ways),
        "Tuned": tuned,
        "Controls": (method, "teleport", *controls, *scale),
    }
    if method != "gd":
        panels["State"] = (
            method,
            "reset",
            "teleport",
            "teleport-reset",
            *(f"scaling{x}" for x in ("", "-carry", "-reset")),
        )
    return panels


#: What is drawn together.
PANELS = {method: _panels(method) for method in METHODS}


def show(settings: Config, results: dict[str, Any], reporter: Reporter) -> None:
    """Print the tables of a run."""
    for name, group in results["groups"].items():
        arms, method = group["arms"], name.removeprefix("regression-")
        runs = next(iter(arms.values()))["runs"]
        reporter.print(arms_table(f"{name}: final loss, all {runs:,} runs", arms, method))
        reporter.print(teleports_table(f"{name}: teleports, median (largest)", arms))
        title = (
            f"{name}: cost until the loss is as low as {method}-tuned's at last, over what that one spends"
        )
        reporter.print(target_table(title, arms))
    reporter.print(verdict_table(results["verdicts"]))
