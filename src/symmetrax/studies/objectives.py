"""Which objective tells where on an orbit to go: predicted against realized decrease of the loss.

At points along a training run, random positive rescalings of a ReLU network are drawn: points of equal loss.
From each, every optimizer really takes ten steps, started fresh, on the full batch. An objective is good for
an optimizer if its rank order of the points is that of what was gained: Spearman's correlation. The learning
rate is the best of a grid at the point itself, without a rescaling, on another initialization.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.stats
from jaxtyping import Array, Float, Key, PyTree

from symmetrax.objectives._base import GradientNorm, LookaheadLoss, Objective, negate
from symmetrax.objectives._landscape import GuaranteedDecrease, Sharpness
from symmetrax.studies import plots_training
from symmetrax.studies._registry import EXPERIMENTS
from symmetrax.studies.core._console import titled_table, verdict_table
from symmetrax.studies.core._runner import Run
from symmetrax.studies.core._shares import average
from symmetrax.studies.core._statistics import Interval, verdict
from symmetrax.studies.core._study import Study
from symmetrax.tasks._data import digits
from symmetrax.tasks._supervised import Classification

RATES = tuple(float(rate) for rate in np.geomspace(1e-3, 1.0, 13))
#: Every optimizer is tried at the best rate and at a tenth of it, where first-order theory should hold.
PARTS = (1.0, 0.1)
#: The size of a step is what a rate multiplies; for Muon and sign-like steps it is smaller by their norms.
OPTIMIZERS: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "adam": lambda rate: optax.adam(0.1 * rate),
    "sign": lambda rate: optax.sign_sgd(0.01 * rate),
    "muon": lambda rate: optax.contrib.muon(0.1 * rate),
}


def _title(optimizer: str, part: float) -> str:
    return optimizer if part == 1 else f"{optimizer} / {1 / part:g}"


TITLES = tuple(_title(name, part) for part in PARTS for name in OPTIMIZERS)
#: The columns of the table, in this order.
OBJECTIVES = (
    "squared norm",
    "l1 norm",
    "nuclear norm",
    "guaranteed decrease",
    "flatness",
    "one sgd step",
    "three sgd steps",
)
SOURCE = "arXiv:2409.20325 for the norms; the claim is ours"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured where; `spread` is the standard deviation of the logarithms of the scales.

    >>> Settings().warmup
    (0, 30, 300)
    """

    points: int = 128
    warmup: tuple[int, ...] = (0, 30, 300)
    images: int = 400
    widths: tuple[int, ...] = (16, 10)
    steps: int = 10
    spread: float = 0.3


def analyse(run: Run) -> dict[str, Any]:
    """Measure, and correlate objectives with gains; write the points."""
    settings, streams = run.study.settings, run.streams
    task = Classification(*digits(), settings.widths, settings.images, slope=0.1, bias=True)
    key = jax.random.key(run.study.seed)
    batch = task.batch(jax.random.fold_in(key, 1))
    rates = {name: _tuned(name, settings, task, streams.tune, batch) for name in OPTIMIZERS}
    correlations: dict[tuple[str, str], list[list[float]]] = {}
    arrays: dict[str, np.ndarray] = {}
    for age in settings.warmup:
        run.reporter.note(f"rescaled points after {age} steps of gradient descent")
        measured = _measure(settings, task, age, rates, key, streams.test, batch)
        arrays |= {f"{age}.{name}": values for name, values in measured.items()}
        for optimizer, objective in itertools.product(TITLES, OBJECTIVES):
            pairs = zip(measured[objective], measured[f"gain.{optimizer}"], strict=True)
            rho = [float(np.asarray(scipy.stats.spearmanr(p, g))[0]) for p, g in pairs]
            correlations.setdefault((optimizer, objective), []).append(rho)
    run.folder.arrays("points", arrays)
    by_seed = {pair: np.mean(rho, axis=0) for pair, rho in correlations.items()}
    table: dict[str, dict[str, Any]] = {optimizer: {} for optimizer in TITLES}
    for (optimizer, objective), rho in by_seed.items():
        by_age = np.mean(correlations[optimizer, objective], axis=1).tolist()
        table[optimizer][objective] = average(rho) | {"by_age": by_age}
    return {"correlations": table, "learning_rates": rates, "verdicts": list(_verdicts(by_seed))}


def _verdicts(by_seed: dict[tuple[str, str], np.ndarray]) -> Iterator[dict[str, str]]:
    """Whether the norm of an optimizer's own geometry predicts its gains better than the squared norm."""
    own_norms = (("adam", "l1 norm"), ("sign", "l1 norm"), ("muon", "nuclear norm"))
    for (base, own), part in itertools.product(own_norms, PARTS):
        optimizer = _title(base, part)
        found = average(by_seed[optimizer, "squared norm"] - by_seed[optimizer, own])
        interval = Interval(found["mean"], found["low"], found["high"])
        claim = f"for {optimizer} the {own} of the gradient predicts the gain better than the squared norm"
        why = (
            f"difference of rank correlations {-interval.log_ratio:+.2f} "
            f"(95 % interval {-interval.high:+.2f} to {-interval.low:+.2f})"
        )
        yield verdict(claim, SOURCE, interval) | {"why": why}


def tables(study: Study, results: dict[str, Any]) -> Iterator[Any]:
    """The table of correlations, and the verdicts."""
    steps = study.settings.steps
    title = f"rank correlation of objective and gain in {steps} steps, {study.seeds} seeds (95 %)"
    table = titled_table(title, "optimizer", OBJECTIVES)
    for optimizer, row in results["correlations"].items():
        table.add_row(optimizer, *(_text(row[name]) for name in OBJECTIVES))
    yield table
    yield verdict_table(results["verdicts"])


def _text(entry: dict[str, Any]) -> str:
    return f"{entry['mean']:+.2f} ± {entry['high'] - entry['mean']:.2f}"


def _objectives(rate: float, key: Key[Array, ""]) -> dict[str, Objective]:
    return {
        "squared norm": GradientNorm(),
        "l1 norm": GradientNorm("l1"),
        "nuclear norm": GradientNorm("nuclear"),
        "guaranteed decrease": GuaranteedDecrease(0.1),
        "flatness": negate(Sharpness(key, directions=8)),
        "one sgd step": LookaheadLoss(optax.sgd(rate), 1),
        "three sgd steps": LookaheadLoss(optax.sgd(rate), 3),
    }


def _descend(
    optimizer: optax.GradientTransformation, value_fn: Callable, params: PyTree, steps: int
) -> PyTree:
    def step(carry, _):
        w, state = carry
        updates, state = optimizer.update(jax.grad(value_fn)(w), state, w)
        return (optax.apply_updates(w, updates), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), None, length=steps)[0][0]


def _tuned(name: str, settings: Settings, task: Classification, key: Key[Array, ""], batch: PyTree) -> float:
    """The rate with the least loss after the steps, from another initialization after the longest warm-up."""

    def value_fn(w):
        return task.loss(w, batch)

    @jax.jit
    def final(rate):
        start = _descend(optax.sgd(0.1), value_fn, task.init(key), max(settings.warmup))
        return value_fn(_descend(OPTIMIZERS[name](rate), value_fn, start, settings.steps))

    losses = np.array([float(final(jnp.asarray(rate))) for rate in RATES])
    return RATES[int(np.nanargmin(np.where(np.isfinite(losses), losses, np.inf)))]


def _measure(
    settings: Settings,
    task: Classification,
    age: int,
    rates: dict[str, float],
    key: Key[Array, ""],
    keys: Key[Array, " seeds"],
    batch: PyTree,
) -> dict[str, Float[np.ndarray, "seeds points"]]:
    """Objectives and realized gains at random points of the orbit, for every seed."""
    objectives = _objectives(rates["sgd"], key)

    def value_fn(w):
        return task.loss(w, batch)

    @eqx.filter_jit
    def of_seed(key):
        start, draw = jax.random.split(key)
        params = _descend(optax.sgd(0.1), value_fn, task.init(start), age)
        symmetry = task.symmetry()
        here = value_fn(params)

        def at(key):
            xi = settings.spread * jax.random.normal(key, symmetry.algebra)
            w = symmetry.act(symmetry.exp(xi), params)
            found = {name: objective(value_fn, w) for name, objective in objectives.items()}
            for (name, make), part in itertools.product(OPTIMIZERS.items(), PARTS):
                last = _descend(make(part * rates[name]), value_fn, w, settings.steps)
                found[f"gain.{_title(name, part)}"] = here - value_fn(last)
            return found

        return jax.lax.map(at, jax.random.split(draw, settings.points), batch_size=16)

    found = [jax.tree.map(np.asarray, of_seed(key)) for key in keys]
    return {name: np.stack([one[name] for one in found]) for name in found[0]}


def draw(folder: Path, results: dict[str, Any]) -> None:
    """Rank correlations with their intervals."""
    plots_training.correlations(folder / "objectives.png", results["correlations"])


STUDIES = {
    "objectives": Study(
        name="objectives",
        title=EXPERIMENTS["objectives"].title,
        seeds=10,
        analyse=analyse,
        figures=(draw,),
        tables=tables,
        settings=Settings(),
        quick={"seeds": 4, "settings": Settings(points=48, warmup=(30,), images=200)},
    )
}
