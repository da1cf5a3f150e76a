"""Which objective tells where on an orbit to go: predicted against realized decrease of the loss.

At points along a training run, random positive rescalings of a ReLU network are drawn: points of equal loss.
From each, every optimizer really takes ten steps, started fresh, on the full batch. An objective is good for
an optimizer if its rank order of the points is that of what was gained: Spearman's correlation. The learning
rate is the best of a grid at the point itself, without a rescaling, on another initialization.
"""

import dataclasses
import itertools
from collections.abc import Callable
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
from symmetrax.studies.core._console import Reporter, titled_table, verdict_table
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._statistics import Interval, verdict
from symmetrax.studies.core._streams import Streams
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
class Config:
    """All settings of a run; `spread` is the standard deviation of the logarithms of the scales.

    >>> config("objectives", "quick").seeds
    4
    """

    seed: int = 0
    seeds: int = 10
    points: int = 128
    warmup: tuple[int, ...] = (0, 30, 300)
    images: int = 400
    widths: tuple[int, ...] = (16, 10)
    steps: int = 10
    spread: float = 0.3


def config(name: str, preset: str = "full", seed: int = 0) -> Config:
    """The settings under a preset.

    >>> config("objectives").seeds
    10
    """
    full = Config(seed=seed)
    return (
        full if preset == "full" else dataclasses.replace(full, seeds=4, points=48, warmup=(30,), images=200)
    )


def run(settings: Config, folder: RunFolder, reporter: Reporter) -> dict[str, Any]:
    """Measure, correlate, draw; return the groups and verdicts."""
    streams = Streams.of(settings.seed, settings.seeds)
    batch = _batch(settings)
    rates = {name: _tuned(name, settings, streams.tune, batch) for name in OPTIMIZERS}
    correlations: dict[str, np.ndarray] = {}
    arrays: dict[str, np.ndarray] = {}
    for age in settings.warmup:
        reporter.note(f"rescaled points after {age} steps of gradient descent")
        measured = _measure(settings, age, rates, streams.test, batch)
        for name, values in measured.items():
            arrays[f"{age}.{name}"] = np.asarray(values)
        for optimizer in TITLES:
            gains = np.asarray(measured[f"gain.{optimizer}"])
            for objective in OBJECTIVES:
                predicted = np.asarray(measured[objective])
                pairs = zip(predicted, gains, strict=True)
                rho = [float(np.asarray(scipy.stats.spearmanr(p, g))[0]) for p, g in pairs]
                correlations.setdefault(f"{optimizer} | {objective}", np.zeros((0, settings.seeds)))
                before = correlations[f"{optimizer} | {objective}"]
                correlations[f"{optimizer} | {objective}"] = np.concatenate([before, [rho]])
    folder.arrays("points", arrays)
    results = _results(correlations, rates)
    plots_training.correlations(folder.path / "objectives.png", results["correlations"])
    return results


def show(settings: Config, results: dict[str, Any], reporter: Reporter) -> None:
    """Print the table of correlations, and the verdicts."""
    rows = results["correlations"]
    names = OBJECTIVES
    title = f"rank correlation of objective and gain in {settings.steps} steps, {settings.seeds} seeds (95 %)"
    table = titled_table(title)
    table.add_column("optimizer", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right")
    for optimizer, row in rows.items():
        table.add_row(optimizer, *(_text(row[name]) for name in names))
    reporter.print(table)
    reporter.print(verdict_table(results["verdicts"]))


def _text(entry: dict[str, Any]) -> str:
    return f"{entry['mean']:+.2f} ± {entry['high'] - entry['mean']:.2f}"


def _task(settings: Config) -> Classification:
    return Classification(*digits(), settings.widths, settings.images, slope=0.1, bias=True)


def _batch(settings: Config) -> PyTree:
    return _task(settings).batch(jax.random.fold_in(jax.random.key(settings.seed), 1))


def _objectives(optimizer: Callable, rate: float, key: Key[Array, ""], steps: int) -> dict[str, Objective]:
    return {
        "squared norm": GradientNorm(),
        "l1 norm": GradientNorm("l1"),
        "nuclear norm": GradientNorm("nuclear"),
        "guaranteed decrease": GuaranteedDecrease(0.1),
        "flatness": negate(Sharpness(key, directions=8)),
        "one sgd step": LookaheadLoss(optimizer(rate), 1),
        "three sgd steps": LookaheadLoss(optimizer(rate), 3),
    }


def _descend(
    optimizer: optax.GradientTransformation, value_fn: Callable, params: PyTree, steps: int
) -> PyTree:
    def step(carry, _):
        w, state = carry
        updates, state = optimizer.update(jax.grad(value_fn)(w), state, w)
        return (optax.apply_updates(w, updates), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), None, length=steps)[0][0]


def _tuned(name: str, settings: Config, key: Key[Array, ""], batch: PyTree) -> float:
    """The rate with the least loss after the steps, from another initialization after the longest warm-up."""
    task = _task(settings)

    def value_fn(w):
        return task.loss(w, batch)

    @jax.jit
    def final(rate):
        start = _descend(optax.sgd(0.1), value_fn, task.init(key), max(settings.warmup))
        return value_fn(_descend(OPTIMIZERS[name](rate), value_fn, start, settings.steps))

    losses = np.array([float(final(jnp.asarray(rate))) for rate in RATES])
    return RATES[int(np.nanargmin(np.where(np.isfinite(losses), losses, np.inf)))]


def _measure(
    settings: Config, age: int, rates: dict[str, float], keys: Key[Array, " seeds"], batch: PyTree
) -> dict[str, Float[Array, "seeds points"]]:
    """Objectives and realized gains at random points of the orbit, for every seed."""
    task = _task(settings)
    objectives = _objectives(optax.sgd, rates["sgd"], jax.random.key(settings.seed), settings.steps)

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

    found = [of_seed(key) for key in keys]
    return {name: jnp.stack([one[name] for one in found]) for name in found[0]}


def _results(correlations: dict[str, np.ndarray], rates: dict[str, float]) -> dict[str, Any]:
    """Means over ages and a t-interval over seeds."""
    table: dict[str, dict[str, Any]] = {}
    by_seed = {name: np.mean(rho, axis=0) for name, rho in correlations.items()}
    for name, rho in by_seed.items():
        optimizer, objective = name.split(" | ")
        by_age = np.mean(correlations[name], axis=1).tolist()
        table.setdefault(optimizer, {})[objective] = _interval(rho) | {"by_age": by_age}
    verdicts = []
    own_norms = (("adam", "l1 norm"), ("sign", "l1 norm"), ("muon", "nuclear norm"))
    for (base, own), part in itertools.product(own_norms, PARTS):
        optimizer = _title(base, part)
        difference = _interval(by_seed[f"{optimizer} | squared norm"] - by_seed[f"{optimizer} | {own}"])
        claim = f"for {optimizer} the {own} of the gradient predicts the gain better than the squared norm"
        interval = Interval(difference["mean"], difference["low"], difference["high"])
        row = verdict(claim, SOURCE, interval)
        row["why"] = (
            f"difference of rank correlations {-interval.log_ratio:+.2f} "
            f"(95 % interval {-interval.high:+.2f} to {-interval.low:+.2f})"
        )
        verdicts.append(row)
    return {"groups": {}, "correlations": table, "learning_rates": rates, "verdicts": verdicts}


def _interval(values: np.ndarray) -> dict[str, float]:
    mean = float(np.mean(values))
    half = float(scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values))
    return {"mean": mean, "low": mean - half, "high": mean + half}
