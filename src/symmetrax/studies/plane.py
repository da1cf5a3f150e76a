"""Figures 3 to 6 of arXiv:2504.15399: learned optimizers on the plane, with and without teleportation.

Published budget (from code matching the figures): 500 runs of one task, 20 updates, windows of 5, a two-layer
LSTM of width 100, outer Adam at 4e-4, a schedule of {2, 5, 8, 11, 14, 17}, 12 test steps. What is added:
20 meta-seeds, 1,000 unseen tasks for each, tuned baselines, controls, all runs in the statistics, and the
protocol of the published code beside them to show what it hides.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from symmetrax.learned._artifact import save
from symmetrax.metatrain._estimators import TruncatedBPTT
from symmetrax.metatrain._loop import MetaTrained, meta_train
from symmetrax.rollout._unroll import Trace
from symmetrax.studies import plots
from symmetrax.studies._registry import choose
from symmetrax.studies.core._arms import (
    Arm,
    ControlArm,
    MakeFlatGradient,
    TrainedArm,
    TunedArm,
    adam,
    descent,
    evaluate,
    oracle_descent,
    oracle_evaluations,
    rule_of,
    tune,
)
from symmetrax.studies.core._console import Reporter, arms_table, verdict_table
from symmetrax.studies.core._control_networks import RandomDirection
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._learned_arms import LearnedArm
from symmetrax.studies.core._statistics import compare, intervals, log_ratios, sign_verdict, verdict
from symmetrax.studies.core._streams import Streams
from symmetrax.studies.core._trajectories import trajectories
from symmetrax.tasks._base import AbstractTaskFamily
from symmetrax.tasks._families import make_family

FIGURES = {
    "fig3": "ellipse-fixed",
    "fig4": "ellipse-random",
    "fig5": "rosenbrock-fixed",
    "fig6": "rosenbrock-random",
}

ARMS: tuple[Arm, ...] = (
    TunedArm("gd", descent, momenta=(0.0,)),
    TunedArm("momentum", descent),
    TunedArm("adam", adam),
    TunedArm("adam-0.5", adam, rates=(0.5,), momenta=(0.9,)),
    TunedArm("oracle", oracle_descent, momenta=(0.0,), extra=oracle_evaluations),
    TrainedArm("vanilla"),
    TrainedArm("vanilla-2nd", meta_order=2),
    TrainedArm("vanilla-orbit", inputs=("orbit_derivative",)),
    TrainedArm("teleport", "always"),
    TrainedArm("teleport-2nd", "always", meta_order=2),
    TrainedArm("teleport-guarded", "always", guarded=True),
    TrainedArm("teleport-schedule", "schedule"),
    TrainedArm("teleport-schedule-2nd", "schedule", meta_order=2),
    TrainedArm("teleport-schedule-guarded", "schedule", guarded=True),
    TrainedArm("teleport-schedule-orbit", "schedule", inputs=("orbit_derivative",)),
    ControlArm("teleport-off", of="teleport", how="off"),
    ControlArm("teleport-schedule-off", of="teleport-schedule", how="off"),
    ControlArm("random", of="teleport", how="random"),
)

#: Arms that every other is compared with.
REFERENCES = ("vanilla", "adam", "adam-0.5", "teleport")

#: Arms whose trajectories are drawn.
DRAWN = ("adam", "vanilla", "teleport", "teleport-guarded")


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run. Raises ValueError for an unknown arm, or a control without the arm it controls.

    >>> config("fig3", "quick").family
    'ellipse-fixed'
    """

    figure: str
    family: str
    seed: int = 0
    seeds: int = 20
    tasks: int = 1000
    tuning_tasks: int = 1000
    runs: int = 500
    steps: int = 20
    unroll: int = 5
    width: int = 100
    depth: int = 2
    learning_rate: float = 4e-4
    schedule: tuple[int, ...] = (2, 5, 8, 11, 14, 17)
    test_steps: int = 12
    arms: tuple[str, ...] = tuple(arm.name for arm in ARMS)
    #: Whether to show the published protocol too: far fixed starts, and the last run alone.
    far: bool = True

    def __post_init__(self):
        known = {arm.name: arm for arm in ARMS}
        for name in self.arms:
            arm = known[choose("arm", name, known)]
            if isinstance(arm, ControlArm) and arm.of not in self.arms:
                raise ValueError(
                    f"The arm {name!r} runs the network of {arm.of!r}, which is not among the arms."
                )


def config(name: str, preset: str = "full", seed: int = 0) -> Config:
    """The settings of a figure under a preset: "full", or "quick" with fewer seeds, tasks and runs.

    >>> config("fig6").seeds
    20
    """
    full = Config(figure=name, family=FIGURES[name], seed=seed)
    if preset == "full":
        return full
    return dataclasses.replace(full, seeds=4, tasks=200, tuning_tasks=200, runs=200)


@dataclasses.dataclass(frozen=True)
class Ran:
    """What one arm did on the unseen tasks; `losses` has the axes seeds, tasks, steps."""

    trace: Trace
    seconds: float
    gradients: float
    extras: dict[str, Any]

    @property
    def losses(self) -> np.ndarray:
        return np.moveaxis(np.asarray(self.trace.loss), 1, 2)


def run(settings: Config, folder: RunFolder, reporter: Reporter) -> dict[str, Any]:
    """Train, tune and evaluate all arms; write arrays, artifacts and plots; return groups and verdicts."""
    family, streams = make_family(settings.family), Streams.of(settings.seed, settings.seeds)
    arms = [arm for arm in ARMS if arm.name in settings.arms]
    trained = {
        arm.name: train(arm, settings, family, streams, folder, reporter)
        for arm in arms
        if isinstance(arm, TrainedArm)
    }
    hand_made = [arm for arm in arms if isinstance(arm, TunedArm)]
    tuned = tune(hand_made, family, streams.tune, steps=settings.test_steps, tasks=settings.tuning_tasks)
    reporter.note(f"evaluate {len(arms)} arms on {settings.seeds} x {settings.tasks} unseen tasks")
    ran = {a.name: run_arm(a, settings, family, streams, trained, tuned) for a in arms}
    group = describe(settings, ran)
    results = {"groups": {settings.family: {"arms": group}}, "verdicts": verdicts(settings, ran)}
    if settings.far:
        far = far_protocol(settings, streams, arms, trained, tuned)
        results["groups"][f"{settings.family}-far"] = {"arms": describe(settings, far)}
        results["verdicts"] += last_run_verdicts(far)
        folder.arrays("losses-far", {name: r.losses.astype(np.float32) for name, r in far.items()})
    save_networks(settings, folder, trained, group)
    folder.arrays("losses", {name: r.losses.astype(np.float32) for name, r in ran.items()})
    drawn = {name: ran[name].trace for name in DRAWN if name in ran}
    folder.arrays("trajectories", trajectories(drawn, family, streams.test[0], settings.tasks))
    plots.plane(folder.path, results, settings.family)
    return results


def show(settings: Config, results: dict[str, Any], reporter: Reporter) -> None:
    """Print the tables of a run."""
    title = f"{settings.figure}: loss after {settings.test_steps} steps on {{}}, all {{:,}} unseen runs"
    for name, group in results["groups"].items():
        runs = next(iter(group["arms"].values()))["runs"]
        reporter.print(arms_table(title.format(name, runs), group["arms"], "vanilla"))
    reporter.print(verdict_table(results["verdicts"]))


def train(
    arm: TrainedArm,
    settings: Config,
    family: AbstractTaskFamily,
    streams: Streams,
    folder: RunFolder,
    reporter: Reporter,
) -> MetaTrained:
    """Meta-train one arm with all its seeds, from its checkpoint if there is one."""
    make = MakeFlatGradient(2, int(arm.uses_algebra), settings.width, settings.depth, arm.inputs)
    how = rule_of(arm, settings.schedule, settings.steps, training=True)
    estimator = TruncatedBPTT(family, how, settings.steps, settings.unroll)
    with reporter.training(arm.name, settings.runs) as progress:
        return meta_train(
            make,
            estimator,
            _outer_adam(settings.learning_rate),
            streams.train,
            outer_steps=settings.runs,
            seeds=settings.seeds,
            chunk=100,
            checkpoint=folder.path / "checkpoints" / f"{arm.name}.safetensors",
            identity=folder.identity,
            save_every=20.0,
            progress=progress,
        )


@functools.cache
def _outer_adam(rate: float) -> optax.GradientTransformation:
    """The published outer optimizer, unclipped; one object for all arms, so that they share programs."""
    return optax.adam(rate)


def paper_arm(name: str, family: str, steps: int | None = None) -> LearnedArm:
    """An arm of these figures with its published settings, for other experiments.

    Its rule is that of training, or with `steps` that of a test of so many steps.

    >>> paper_arm("teleport", "ellipse-fixed", steps=50).rule.schedule.sum().item()
    50
    """
    settings = Config(figure="", family=family)
    arm = next(a for a in ARMS if isinstance(a, TrainedArm) and a.name == name)
    make = MakeFlatGradient(2, int(arm.uses_algebra), settings.width, settings.depth, arm.inputs)
    how = rule_of(arm, settings.schedule, steps or settings.steps, training=steps is None)
    return LearnedArm(name, make, how, _outer_adam(settings.learning_rate), make_family(family))


def run_arm(
    arm: Arm,
    settings: Config,
    family: AbstractTaskFamily,
    streams: Streams,
    trained: dict[str, MetaTrained],
    tuned: dict[str, dict[str, float]],
) -> Ran:
    """Run one arm on the unseen tasks."""
    make, networks, extra, extras = _use(arm, settings, family, trained, tuned)
    watch = () if isinstance(arm, TunedArm) else ("algebra", "outcome", "previous")
    trace, seconds = evaluate(
        make,
        networks,
        family,
        streams.test,
        steps=settings.test_steps,
        tasks=settings.tasks,
        watch=watch,
        points=True,
    )
    if getattr(make, "guard", None) is not None:
        due = int(np.sum(np.asarray(make.schedule)[: settings.test_steps])) * settings.seeds * settings.tasks
        extras["rejected"] = float(np.sum(np.asarray(trace.watched["outcome"]) > 0) / max(due, 1))
    return Ran(trace, seconds, settings.test_steps * (1.0 + extra), extras)


def _use(
    arm: Arm, settings: Config, family, trained, tuned
) -> tuple[Any, PyTree, float | int, dict[str, Any]]:
    """The transformation, the networks, extra gradients per step, and what to tell of an arm."""
    if isinstance(arm, TunedArm):
        best = tuned[arm.name]
        task = family.task(family.draw(jax.random.key(0)))
        same = {name: jnp.full(settings.seeds, value) for name, value in best.items()}
        return arm.make, same, arm.extra(task), {"hyperparameters": best}
    of = next(a for a in ARMS if isinstance(a, TrainedArm) and a.name == getattr(arm, "of", arm.name))
    networks, off = trained[of.name].networks, isinstance(arm, ControlArm) and arm.how == "off"
    if isinstance(arm, ControlArm) and arm.how == "random":
        networks = RandomDirection(networks)
    extras = {"skipped_windows": int(np.sum(trained[of.name].skipped))}
    # The derivative along the orbit is one Hessian-vector product, counted as two gradients.
    extra = 2 if of.inputs else 0
    return rule_of(of, settings.schedule, settings.steps, training=False, off=off), networks, extra, extras


def describe(settings: Config, ran: dict[str, Ran]) -> dict[str, Any]:
    """The arms of a group of `results.json`."""
    arms = compare({name: r.losses for name, r in ran.items()}, REFERENCES, settings.seeds * settings.tasks)
    costs = {
        n: {"gradient_evaluations": r.gradients, "seconds": r.seconds, **r.extras} for n, r in ran.items()
    }
    return {name: {**arms[name], **costs[name]} for name in ran}


CLAIMS = (
    ("vanilla", "teleport", "vanilla L2O beats L2O with a teleport at every step"),
    ("vanilla", "teleport-schedule", "vanilla L2O beats L2O with teleports on a schedule"),
    ("vanilla-2nd", "teleport-2nd", "the same with second-order meta-gradients"),
    ("vanilla-orbit", "teleport-schedule-orbit", "the same when both see the derivative along the orbit"),
)
FINDINGS = (
    ("teleport-guarded", "vanilla", "guarded teleports beat vanilla L2O"),
    ("teleport", "teleport-off", "the learned teleport itself helps (against switching it off at test)"),
    ("teleport", "random", "the learned direction helps (against a random one of the same size)"),
    ("vanilla", "adam", "vanilla L2O beats Adam tuned for the task family"),
)


def verdicts(settings: Config, ran: dict[str, Ran]) -> list[dict[str, str]]:
    """The paper's claims and the questions that its figures leave open."""
    figure = next(name for name, family in FIGURES.items() if family == settings.family)
    source = f"section 5.1.2, figure {figure.removeprefix('fig')}"
    asked = [(a, b, text, source) for a, b, text in CLAIMS]
    asked += [(a, b, text, "not in the paper: a control") for a, b, text in FINDINGS]
    asked = [row for row in asked if row[0] in ran and row[1] in ran]
    found = intervals({(a, b): log_ratios(ran[a].losses, ran[b].losses) for a, b, _, _ in asked})
    return [verdict(text, source, found[a, b]) for a, b, text, source in asked]


def far_protocol(settings: Config, streams: Streams, arms, trained, tuned) -> dict[str, Ran]:
    """All arms from the far fixed start that the published code tests from."""
    family = make_family(settings.family, far=True)
    learned = [a for a in arms if isinstance(a, TrainedArm) or a.name in ("adam-0.5", "adam")]
    return {a.name: run_arm(a, settings, family, streams, trained, tuned) for a in learned}


def last_run_verdicts(far: dict[str, Ran]) -> list[dict[str, str]]:
    """What one would conclude from the last run alone, as the published code does, seed by seed."""
    rows = []
    for ours, theirs, text in CLAIMS[:2]:
        if ours in far and theirs in far:
            last = log_ratios(far[ours].losses, far[theirs].losses)[:, -1]
            claim = f"{text}, by the published protocol (last run, far start)"
            rows.append(sign_verdict(claim, "code matching the figures", last))
    return rows


def save_networks(
    settings: Config, folder: RunFolder, trained: dict[str, MetaTrained], group: dict[str, Any]
) -> None:
    """One artifact per trained arm, of the first meta-seed; then the checkpoints are not needed any more."""
    for name, result in trained.items():
        training = {
            "family": settings.family,
            "arm": name,
            "horizon": settings.steps,
            "unroll": settings.unroll,
            "runs": settings.runs,
            "seed": settings.seed,
            "schedule": list(settings.schedule) if "schedule" in name else None,
            "guarded": "guarded" in name,
        }
        evaluation = {key: group[name][key] for key in ("runs", "diverged")}
        evaluation |= {"steps": settings.test_steps, "loss_median": group[name]["loss_median"][-1]}
        save(
            result.network(0),
            folder.path / "artifacts" / f"{name}.safetensors",
            training=training,
            evaluation=evaluation,
        )
