"""Teleports inside six optimizers, with every way to treat their state, against the controls of each.

The published experiment (arXiv:2305.13404, section 5) teleports before each of the first eight steps of one
epoch and builds the optimizer anew every time; so a reset of the optimizer alone is among the controls.
"""

import dataclasses
import os
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.table
from optax.contrib import muon

from symmetrax.objectives._base import GradientNorm
from symmetrax.search._closed_form import ClosedForm
from symmetrax.search._searches import Ascent
from symmetrax.studies import plots_training
from symmetrax.studies.core._console import Reporter, number, ratio_text, titled_table
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._race import (
    Arm,
    Clock,
    Entry,
    Gradient,
    Proposal,
    Run,
    classifier,
    compared,
    race,
)
from symmetrax.studies.core._statistics import Interval, verdict
from symmetrax.studies.core._streams import Streams
from symmetrax.symmetry._activation import ActivationGL
from symmetrax.tasks._data import FOLDER
from symmetrax.tasks._supervised import Classification
from symmetrax.teleportation._guard import Guard

SOURCE = "arXiv:2305.13404, section 5"


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """A published setting: `rate` (None: tuned), the epoch of the teleports, the rate of their ascent `eta`,
    and the norm in which the optimizer's step is largest."""

    make: Any
    rate: float | None
    epoch: int
    eta: float
    metric: Literal["squared", "l1", "nuclear"]


def _sgd(rate):
    return optax.sgd(rate)


def _momentum(rate):
    return optax.sgd(rate, momentum=0.9)


def _adagrad(rate):
    return optax.adagrad(rate, initial_accumulator_value=0.0, eps=1e-10)


def _rmsprop(rate):
    return optax.rmsprop(rate, decay=0.99, eps=1e-8)


def _adam(rate):
    return optax.adam(rate)


def _muon(rate):
    return muon(rate)


OPTIMIZERS = {
    "sgd": Optimizer(_sgd, 1e-2, 2, 1e-4, "squared"),
    "momentum": Optimizer(_momentum, 1e-3, 0, 5e-2, "squared"),
    "adagrad": Optimizer(_adagrad, 1e-2, 2, 1e-4, "l1"),
    "rmsprop": Optimizer(_rmsprop, 1e-4, 0, 5e-2, "l1"),
    "adam": Optimizer(_adam, 1e-4, 0, 5e-2, "l1"),
    "muon": Optimizer(_muon, None, 0, 5e-2, "nuclear"),
}

ARMS = (
    Arm("none"),
    Arm("reset", transport="reset"),
    *(Arm(f"exact-{how}", "exact", how) for how in ("keep", "carry", "reset")),
    *(Arm(f"action-{how}", "action", how) for how in ("keep", "reset")),
    *(Arm(f"small-{how}", "small", how) for how in ("keep", "reset")),
    *(Arm(f"random-exact-{how}", "exact", how, "random") for how in ("keep", "carry")),
    Arm("random-action-reset", "action", "reset", "random"),
    Arm("pseudo-exact-keep", "exact", "keep", "pseudo"),
    Arm("pseudo-action-reset", "action", "reset", "pseudo"),
)
#: Arms whose learning rates are tuned, all over the same values.
TUNED = {"none-tuned": "none", "exact-tuned": "exact-carry", "action-tuned": "action-reset"}

#: What is asked of every optimizer: one arm against another, on the final training loss.
PUBLISHED = {
    ("action-reset", "none"): "teleportation improves the convergence of {}",
    ("action-reset", "reset"): "teleportation improves {} beyond the reset of its state",
    ("action-reset", "longer"): "teleportation improves {} at equal gradient evaluations",
    ("action-tuned", "none-tuned"): "teleportation improves {} if both learning rates are tuned",
}
EXACT = {
    ("exact-carry", "none"): "exact teleportation, the state carried, improves {}",
    ("exact-carry", "random-exact-carry"): "the largest gradient is better for {} than a random scaling",
    ("exact-carry", "scaled"): "exact teleportation improves {} beyond a learning rate larger by as much",
    ("exact-tuned", "none-tuned"): "exact teleportation improves {} if both learning rates are tuned",
}
QUESTIONS = PUBLISHED | EXACT
REFERENCES = tuple(dict.fromkeys([theirs for _, theirs in QUESTIONS] + ["exact-keep", "random-action-reset"]))


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set, and how long and how often networks are trained on it."""

    name: str
    seeds: int
    epochs: int
    tuning_seeds: int
    rates: int = 9
    images: int = 8000


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings. `bound` is for the exact scaling at one of eight teleports in a row: a unit is scaled by
    e^0.8 = 2.2 at most, about what raises the gradient norm as an ascent of the published length does not.
    `tolerance` is what the guard forgives the published action, which is not exact on its batch.

    Published were 50,000 images, 40 epochs and 5 runs. Here digits (1,437 images) have the 40 epochs and more
    runs; MNIST is cut to at most 8,000 images and 10 epochs, so that all arms fit into a few minutes.

    >>> config("teleport-optimizers", "quick").data[0].name
    'digits'
    """

    data: tuple[Data, ...]
    seed: int = 0
    optimizers: tuple[str, ...] = tuple(OPTIMIZERS)
    bound: float = 0.1
    ascent: int = 10
    batch: int = 200
    small: int = 5
    tolerance: float = 1.0
    block: int = 10


def config(name: str, preset: str = "full", seed: int = 0) -> Config:
    """The settings under a preset: MNIST is there if the environment variable SYMMETRAX_DATA is set.

    >>> config("teleport-optimizers").data[0].epochs
    40
    """
    if preset == "quick":
        data = (Data("digits", seeds=4, epochs=8, tuning_seeds=2, rates=5),)
        return Config(data, seed, optimizers=("momentum", "adagrad"))
    more = (Data("mnist", seeds=5, epochs=10, tuning_seeds=2, rates=7),) if os.environ.get(FOLDER) else ()
    return Config((Data("digits", seeds=10, epochs=40, tuning_seeds=3), *more), seed)


def run(settings: Config, folder: RunFolder, reporter: Reporter) -> dict[str, Any]:
    """Tune, train all arms, compare; write arrays and plots; return groups and verdicts."""
    groups, verdicts = {}, []
    for data in settings.data:
        task, clock = classifier(data.name, images=data.images), Clock(settings.block)
        arrays = {}
        for name in settings.optimizers:
            reporter.note(f"{data.name}: {name}")
            group, losses = _group(settings, data, name, task, clock)
            groups[f"{data.name}-{name}"] = group
            arrays |= {f"{name}.{label}": x for label, x in losses.items()}
            verdicts += _verdicts(group["arms"], data.name, name)
        folder.arrays(f"{data.name}-training-loss", arrays)
        plots_training.optimizers(folder.path / f"{data.name}.png", groups, data.name)
    plots_training.forest(folder.path / "comparisons.png", groups, list(QUESTIONS))
    return {"groups": groups, "verdicts": verdicts}


def show(settings: Config, results: dict[str, Any], reporter: Reporter) -> None:
    """Print the comparisons, for the published and for the exact teleport, and what the teleports did."""
    groups, runs = results["groups"], results["verdicts"]
    reporter.print(comparisons_table("The published action", groups, PUBLISHED))
    reporter.print(comparisons_table("Exact positive scaling", groups, EXACT))
    reporter.print(teleports_table(groups))
    counts = {
        word: sum(row["outcome"] == word for row in runs)
        for word in ("reproduced", "reversed", "inconclusive")
    }
    reporter.print("claims: " + ", ".join(f"{count} {word}" for word, count in counts.items()))


def comparisons_table(
    what: str, groups: dict[str, Any], pairs: dict[tuple[str, str], str]
) -> rich.table.Table:
    """Final training losses, as ratios with intervals: a column for each pair of arms."""
    title = f"{what}: final training loss of one arm over that of another (95 %); below 1 the first is better"
    table = titled_table(title)
    table.add_column("data-optimizer", no_wrap=True)
    for ours, theirs in pairs:
        table.add_column(f"{ours}\n/ {theirs}", justify="right", no_wrap=True)
    for name, group in groups.items():
        arms = group["arms"]
        cells = [ratio_text(arms[ours]["versus"][theirs]) if theirs in arms else "" for ours, theirs in pairs]
        table.add_row(name, *cells)
    return table


def teleports_table(groups: dict[str, Any]) -> rich.table.Table:
    """What the teleports of an arm did to loss and gradient, and what they cost."""
    title = "What eight teleports did: medians over seeds and teleports, largest drift in brackets"
    table = titled_table(title)
    table.add_column("data-optimizer, arm", no_wrap=True)
    for name in ("final loss", "drift, batch", "drift, fresh", "norm x", "rejected", "grads", "s"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, group in groups.items():
        for label in ("none", "exact-carry", "action-reset", "small-reset"):
            arm = group["arms"][label]
            log = arm.get("teleports")
            cells = ("", "", "", "")
            if log is not None:
                drifts = [
                    f"{number(log[key]):.1e} ({number(log[key + '_max']):.0e})" for key in ("drift", "fresh")
                ]
                cells = (*drifts, f"{number(log['norm_factor']):.2f}", f"{log['rejected']:.0%}")
            table.add_row(
                f"{name}, {label}",
                f"{number(arm['loss_median'][-1]):.3g}",
                *cells,
                f"{arm['gradient_evaluations']:.0f}",
                f"{arm['seconds']:.2g}",
            )
    return table


def _group(settings: Config, data: Data, name: str, task: Classification, clock: Clock):
    """Everything about one optimizer on one data set."""
    optimizer, streams = OPTIMIZERS[name], Streams.of(settings.seed, data.seeds)
    moves = _moves(settings, task, optimizer)

    def train(entries, keys, epochs=data.epochs):
        return race(
            optimizer.make, task, entries, keys, clock, epochs=epochs, moves=moves, at=optimizer.epoch
        )

    tuned = _tune(optimizer, data, streams, train)
    rate = optimizer.rate or tuned["none-tuned"]
    arms = {arm.name: arm for arm in ARMS}
    entries = [Entry(arm.name, arm, np.full(data.seeds, rate)) for arm in ARMS]
    entries += [Entry(label, arms[of], np.full(data.seeds, tuned[label])) for label, of in TUNED.items()]
    runs = train(entries, streams.test)
    steps = len(task.train.labels) // task.batch_size
    # Controls that need the others' records: equal gradient evaluations (C8), equal length of the step (C7).
    extra = int(np.ceil((runs["action-reset"].gradients - runs["none"].gradients) / steps))
    runs |= train(
        [Entry("longer", arms["none"], np.full(data.seeds, rate))], streams.test, data.epochs + extra
    )
    if optimizer.metric == "squared":
        late = _norm_factors(runs["exact-carry"], optimizer.metric)
        runs |= train([Entry("scaled", arms["none"], np.full(data.seeds, rate), late)], streams.test)
    found = compared({label: run.train for label, run in runs.items()}, REFERENCES, data.seeds)
    held = compared({label: run.held for label, run in runs.items()}, REFERENCES, data.seeds)
    for label, arm in found.items():
        run_ = runs[label]
        arm |= {
            "held_out_median": held[label]["loss_median"],
            "held_out_versus": held[label]["versus"],
            "accuracy_mean": np.mean(run_.accuracy[:, -1]),
            "gradient_evaluations": run_.gradients,
            "seconds": run_.seconds,
            "rate": tuned.get(label, rate),
        }
        if run_.moved is not None:
            own = arms[TUNED.get(label, label)].move == "exact"
            arm["teleports"] = _log(run_, optimizer.metric if own else "squared")
    return {"arms": found, "tuned": tuned}, {
        label: run.train.astype(np.float32) for label, run in runs.items()
    }


def _moves(settings: Config, task: Classification, optimizer: Optimizer) -> dict[str, Proposal]:
    """The exact scaling in the optimizer's own norm, and the published action on large and small batches."""
    own = GradientNorm(optimizer.metric)
    bound, eta = jnp.asarray(settings.bound), jnp.asarray(optimizer.eta)
    exact = (
        ClosedForm(bound)
        if optimizer.metric == "squared"
        else Ascent(settings.ascent, rate=bound, bound=bound, normalized=True)
    )
    weights = tuple(task.network.matrices)
    action = ActivationGL(weights=weights, sizes=task.widths, activation=task.network.activation)
    loose = Guard(jump=jnp.inf, tolerance=jnp.asarray(settings.tolerance))
    climb = Ascent(settings.ascent, rate=eta, bound=jnp.asarray(1.0))
    return {
        "exact": Proposal(task.symmetry(), exact, settings.batch, Gradient(own)),
        "action": Proposal(action, climb, settings.batch, guard=loose),
        "small": Proposal(action, climb, settings.small, guard=loose),
    }


def _tune(optimizer: Optimizer, data: Data, streams: Streams, train) -> dict[str, float]:
    """The learning rate with the lowest median final training loss, on starts that are not reported."""
    base = optimizer.rate or 1e-2
    rates = base * np.geomspace(0.1, 100.0, data.rates)
    arms, keys = {arm.name: arm for arm in ARMS}, jax.random.split(streams.tune, data.tuning_seeds)
    entries = [
        Entry(f"{label} {rate}", arms[of], np.full(data.tuning_seeds, rate))
        for label, of in TUNED.items()
        for rate in rates
    ]
    finals = {label: np.median(_finite(run.train[:, -1])) for label, run in train(entries, keys).items()}
    return {label: float(min(rates, key=lambda r, n=label: finals[f"{n} {r}"])) for label in TUNED}


def _finite(losses: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(losses), losses, np.inf)


def _norm_factors(run: Run, metric: str) -> np.ndarray:
    """By how much all teleports of a run together raised the norm of the gradient, for every seed."""
    moved = run.moved
    assert moved is not None
    taken = (moved.outcome == 0) & (moved.before > 0)
    ratio = np.where(taken, moved.after, 1.0) / np.where(taken, moved.before, 1.0)
    return np.prod(ratio, axis=1) ** (0.5 if metric == "squared" else 1.0)


def _log(run: Run, metric: str) -> dict[str, Any]:
    """C9: what the teleports did to the loss; medians over seeds and teleports."""
    moved = run.moved
    assert moved is not None
    drift, fresh = np.abs(moved.drift), np.abs(moved.fresh)
    return {
        "drift": np.median(drift),
        "drift_max": np.max(drift),
        "fresh": np.median(fresh),
        "fresh_max": np.max(fresh),
        "length": np.median(moved.length),
        "norm_factor": np.median(_norm_factors(run, metric)),
        "rejected": np.mean(moved.outcome > 0),
    }


def _verdicts(arms: dict[str, Any], data: str, name: str) -> list[dict[str, str]]:
    return [
        verdict(f"{claim.format(name)} ({data})", SOURCE, Interval(**arms[ours]["versus"][theirs]))
        for (ours, theirs), claim in QUESTIONS.items()
        if theirs in arms
    ]
