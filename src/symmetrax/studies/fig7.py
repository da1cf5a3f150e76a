"""Figure 7 of arXiv:2504.15399: learned step size, momentum and teleport on a regression with two layers.

Algorithm 3 (learned step size; learned momentum and group element) against its parts, its predecessors of
arXiv:2305.13404, and what transfers to other sizes. What is added: meta-seeds, all unseen trajectories in the
statistics beside the published five, arms that differ in one thing, controls, tuned optimizers made by hand,
centred data beside the published ones, and the gain of teleports beside that on the plane.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, PyTree

from symmetrax.learned._artifact import save
from symmetrax.learned._transformation import NOT_EMITTED
from symmetrax.studies import _fig7_hand, plane, plots_fig7
from symmetrax.studies._fig7_arms import CONTROLS, SPECS, Networks, controls, family, learned_arm
from symmetrax.studies._fig7_verdicts import (
    answers,
    epoch_table,
    fresh_losses,
    gains,
    plane_gains,
    verdicts,
)
from symmetrax.studies._registry import choose
from symmetrax.studies.core._arm import Control, Learned
from symmetrax.studies.core._artifacts import usage
from symmetrax.studies.core._console import Reporter, arms_table, verdict_table
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._meta_training import Budget, Trained, train
from symmetrax.studies.core._runs import (
    RECORDED,
    Runs,
    due,
    facts,
    learned_constant,
    learned_course,
    left_out,
    resumable,
    run_many,
)
from symmetrax.studies.core._statistics import compare
from symmetrax.studies.core._streams import Streams
from symmetrax.tasks._base import AbstractTask
from symmetrax.tasks._regression import RegressionFamily, Start

#: Epochs at which losses are reported: index t of a trace is the loss after t steps.
EPOCHS = (1, 10, 29, 99)
#: Arms that every other is compared with.
REFERENCES = (
    "gd-3e-4",
    "gd",
    "momentum",
    "warm-momentum",
    "lr",
    "lr-momentum",
    "lr-tele",
    "lr-tele-momentum",
    "update",
    "coordinates",
    "every-10",
)
#: Arms of which the network of the first meta-seed is saved.
SAVED = ("lr-tele-momentum", "coordinates-neurons")
WATCH = (*RECORDED, "previous")


@dataclasses.dataclass(frozen=True)
class Study:
    """Arms on one law of data, their networks, and which controls are run, by the end of their names.

    Raises ValueError for an unknown arm.

    >>> Study("uniform", ("lr",)).controls[0]
    'off'
    """

    law: Start
    arms: tuple[str, ...]
    networks: Networks = Networks()  # noqa: RUF009 (frozen)
    controls: tuple[str, ...] = CONTROLS

    def __post_init__(self):
        for name in self.arms:
            choose("arm", name, SPECS)


#: The arms of the figure and of its predecessor, each part with and without the others.
MAIN = ("lr-tele-momentum", "lr-tele", "lr-momentum", "lr")
_GAUSSIAN = Networks(bounds=(1e-6, 5e-2))


def _studies() -> dict[str, Study]:
    """All arms at a third of the published width; some of them on centred data; the figure's as published."""
    smaller, gaussian = (dataclasses.replace(n, width=100) for n in (Networks(), _GAUSSIAN))
    learned = ("update", "update-tele", "coordinates", "coordinates-neurons")
    return {
        "uniform": Study("uniform", tuple(SPECS), smaller),
        "gaussian": Study("gaussian", (*MAIN, *learned), gaussian, ("off", "random")),
        "published": Study("uniform", MAIN, controls=("off", "random")),
    }


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run; `tasks` is the number of unseen trajectories of each meta-seed.

    The published ones: two LSTMs of width 300, rates 1e-4 and 1e-3, trajectories one at a time until more do
    not help, 5 unseen trajectories, gradient descent at 3e-4; from the code of the predecessor: windows of
    10, 100 epochs, elements of size 0.01, a teleport at every step. Ours: whether more help is asked after
    every 25, not 100, and 100 are the most; most arms are trained at width 100.

    >>> config("fig7").studies["published"].networks.width
    300
    """

    seed: int = 0
    seeds: int = 6
    tasks: int = 40
    parts: int = 4
    published_tasks: int = 5
    tuning_tasks: int = 100
    runs: int = 100
    chunk: int = 25
    patience: int = 3
    validation_tasks: int = 32
    steps: int = 100
    unroll: int = 10
    studies: dict[str, Study] = dataclasses.field(default_factory=_studies)
    #: Figures of the plane, beside whose gain of teleports the one here is drawn, and their budget.
    plane: tuple[str, ...] = tuple(plane.FIGURES)
    plane_runs: int = 200
    plane_seeds: int = 6
    plane_tasks: int = 100
    #: How many steps gradient descent may take in the time of a learned optimizer, at most.
    patient_steps: int = 5000

    @property
    def test_steps(self) -> int:
        """Unseen trajectories end at the last epoch that the papers show, one step before training ones."""
        return self.steps - 1

    @property
    def epochs(self) -> tuple[int, ...]:
        """The epochs to report that a trajectory has."""
        return tuple(epoch for epoch in EPOCHS if epoch <= self.test_steps)


def config(name: str, preset: str = "full", seed: int = 0) -> Config:
    """The settings under a preset: "full", or "quick": three arms of width 20, small matrices, 30 epochs.

    >>> config("fig7").seeds
    6
    """
    if preset == "full":
        return Config(seed=seed)
    arms = ("lr-tele-momentum", "lr-momentum", "lr-tele")
    small = Networks(units=10, width=20)
    return Config(
        seed=seed,
        seeds=2,
        tasks=40,
        parts=2,
        tuning_tasks=20,
        runs=150,
        chunk=50,
        validation_tasks=16,
        steps=30,
        studies={"uniform": Study("uniform", arms, small, ("off",))},
        plane=(),
        patient_steps=300,
    )


def run(settings: Config, folder: RunFolder, reporter: Reporter) -> dict[str, Any]:
    """Train, tune and run all arms of each study; write arrays, networks, plots; return the results.

    Each arm, with its controls, is a part that is not repeated when a killed run goes on.
    """
    results: dict[str, Any] = {"groups": {}, "verdicts": [], "answers": [], "gains": {}, "fresh": {}}
    for name in settings.studies:
        ran, recorded = study(name, settings, folder, reporter)
        losses = {arm: r.losses for arm, r in ran.items()}
        results["groups"] |= _groups(name, losses, recorded, settings)
        rows = verdicts(
            name, losses, settings.epochs, {arm: card.get("at_cap", 0) for arm, card in recorded.items()}
        )
        results["verdicts"] += [
            {key: row[key] for key in ("claim", "source", "outcome", "why")} for row in rows
        ]
        results["answers"] += answers(name, rows)
        results["gains"] |= gains(name, losses)
        results["fresh"][name] = fresh_losses(ran)
        _write_arrays(folder, name, ran)
    for figure in settings.plane:
        budget = (settings.plane_seeds, settings.plane_tasks, settings.plane_runs)
        results["gains"] |= plane_gains(figure, settings.seed, *budget, folder, reporter)
    plots_fig7.draw(folder.path, results)
    return results


def show(settings: Config, results: dict[str, Any], reporter: Reporter) -> None:
    """Print the tables of a run."""
    last = settings.test_steps
    for name in settings.studies:
        arms = results["groups"][name]["arms"]
        runs = next(iter(arms.values()))["runs"]
        title = f"fig7, {name}: loss at epoch {last}, all {runs:,} unseen runs"
        reporter.print(arms_table(title, arms, "lr-tele"))
        reporter.print(epoch_table(f"{name}: median losses at epochs", arms, settings.epochs))
    reporter.print(verdict_table(results["verdicts"]))
    for sentence in results["answers"]:
        reporter.print(sentence)


def study(
    name: str, settings: Config, folder: RunFolder, reporter: Reporter
) -> tuple[dict[str, Runs], dict[str, dict[str, Any]]]:
    """What all arms of one study did, by name, and what to tell of each."""
    streams = Streams.of(settings.seed, settings.seeds)
    law, networks = settings.studies[name].law, settings.studies[name].networks
    ran: dict[str, Runs] = {}
    recorded: dict[str, dict[str, Any]] = {}
    for which in settings.studies[name].arms:
        arm = learned_arm(which, law, networks, settings.steps)
        found, card = resumable(
            folder, f"{name}-{which}", lambda arm=arm: _part(name, arm, settings, streams, folder, reporter)
        )
        ran |= found
        recorded |= card
    plain = family(law, networks, "scaling")
    hand, card = resumable(
        folder, f"{name}-by-hand", lambda: _fig7_hand.part(plain, recorded, settings, streams, reporter)
    )
    return {**hand, **ran}, {**card, **recorded}


def _part(name: str, arm: Learned, settings: Config, streams: Streams, folder, reporter):
    """Train one arm; run it and its controls; what to tell of each, with the constants that it learned."""
    named = dataclasses.replace(arm, name=f"{name}-{arm.name}")
    chosen = settings.studies[name]
    budget = Budget(
        settings.runs,
        settings.seeds,
        settings.steps,
        settings.unroll,
        chunk=settings.chunk,
        patience=settings.patience,
        validation_tasks=settings.validation_tasks,
    )
    trained = train(named, budget, streams, folder, reporter)
    asked = [c for c in controls(arm) if c.name.removeprefix(f"{arm.name}-") in chosen.controls]
    reporter.note(f"run {named.name} and {len(asked)} controls on unseen trajectories")
    ran, seen = _run_arm(
        arm,
        asked,
        trained.networks,
        streams,
        steps=settings.test_steps,
        tasks=settings.tasks,
        parts=settings.parts,
        watch=WATCH,
        measure=Fresh(family(chosen.law, chosen.networks, "scaling")),
    )
    rules = {control.name: control.rule(arm.rule) for control in asked} | {arm.name: arm.rule}
    recorded = {which: facts(r, rules[which]) for which, r in ran.items()}
    recorded[arm.name] |= {**trained.facts, "left_out": left_out(seen)}
    if np.all(np.sum(np.isfinite(seen.losses).all(axis=-1), axis=1) > 0):
        recorded[arm.name]["lengths"] = learned_course(seen, "previous").tolist()
        if np.all(seen.recorded["step_size"] != NOT_EMITTED):
            recorded[arm.name]["learned_step_size"] = learned_constant(seen, "step_size").tolist()
    if arm.name in SAVED:
        _save(name, arm, trained, settings, folder)
    return ran, recorded


def _run_arm(arm: Learned, asked: list[Control], networks: PyTree, streams: Streams, **options: Any):
    """Run an arm and its controls on the unseen tasks; and what the arm did on half as many of training."""
    steps, tasks, parts = options["steps"], options.pop("tasks"), options.pop("parts")
    half = max(parts // 2, 1)
    stream = jax.random.split(jax.random.fold_in(streams.tune, 2), len(streams.test))
    rule = arm.rule
    if not len(due(rule, steps)):
        rule = dataclasses.replace(rule, schedule=())
    seen = run_many(rule, networks, arm.family, stream, tasks=tasks * half // parts, parts=half, **options)
    options |= {"tasks": tasks, "parts": parts}
    ran = {arm.name: run_many(rule, networks, arm.family, streams.test, **options)}
    for control in asked:
        changed = control.change(networks, lambda: seen)
        ran[control.name] = run_many(control.rule(rule), changed, arm.family, streams.test, **options)
    return ran, seen


class Fresh(eqx.Module):
    """The loss on data that were not trained on: an action that is exact on one batch may change it.

    >>> family = RegressionFamily("small", dims=(2, 3, 2), samples=3)
    >>> task = family.task(family.draw(jax.random.key(0)))
    >>> sorted(Fresh(family)(task, task.init(jax.random.key(1))))
    ['fresh']
    """

    family: RegressionFamily

    def __call__(self, task: AbstractTask, params: PyTree) -> dict[str, Array]:
        return {"fresh": task.loss(params, self.family.draw(jax.random.key(0)))}


def _save(name: str, arm: Learned, trained: Trained, settings: Config, folder: RunFolder) -> None:
    training = {
        "family": arm.family.name,
        "arm": arm.name,
        "horizon": settings.steps,
        "unroll": settings.unroll,
        "runs": trained.facts["trajectories"],
        "seed": settings.seed,
        "use": usage(arm.rule),
    }
    network = jax.tree.map(lambda x: x[0], trained.networks)
    save(network, folder.path / "artifacts" / f"{name}-{arm.name}.safetensors", training=training)


def _groups(name: str, losses: dict[str, np.ndarray], recorded, settings: Config) -> dict[str, Any]:
    """All runs at the last epoch and at 29, and the published protocol: five trajectories."""
    few = min(settings.published_tasks, settings.tasks)
    cuts = {
        name: (losses, settings.tasks),
        f"{name}-{few}": ({arm: x[:, :few] for arm, x in losses.items()}, few),
    }
    if settings.test_steps > 29:
        cuts[f"{name}-epoch-29"] = ({arm: x[..., :30] for arm, x in losses.items()}, settings.tasks)
    groups: dict[str, Any] = {}
    for group, (arrays, tasks) in cuts.items():
        arms = compare(arrays, REFERENCES, settings.seeds * tasks)
        for which, arm in arms.items():
            arm["gradient_evaluations"] = float(len(arm["loss_median"]) - 1)
            if group == name:
                hidden = ("lengths", "recorded", "patient_losses")
                arm |= {key: value for key, value in recorded[which].items() if key not in hidden}
                costs = (recorded[which]["seconds"], recorded["gd"]["seconds"], settings.test_steps)
                patient = recorded["gd"]["patient_losses"]
                arm["gd_in_equal_seconds"] = _fig7_hand.in_equal_seconds(*costs, patient)
                arm["epochs"] = {str(t): arm["loss_median"][t] for t in settings.epochs}
        groups[group] = {"arms": arms}
    return groups


def _write_arrays(folder: RunFolder, name: str, ran: dict[str, Runs]) -> None:
    folder.arrays(f"losses-{name}", {arm: r.losses.astype(np.float32) for arm, r in ran.items()})
    medians = {
        f"{arm}.{key}": np.median(x, (0, 1)) for arm, r in ran.items() for key, x in r.recorded.items()
    }
    folder.arrays(f"recorded-{name}", medians)
