"""Gains of optimizers from rescaled points of equal loss, and objectives at these points."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key, PyTree

from symmetrax.objectives._base import GradientNorm, LookaheadLoss, Objective, negate
from symmetrax.objectives._landscape import GuaranteedDecrease, Sharpness
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


def title_of(optimizer: str, part: float) -> str:
    """An optimizer at a part of its best rate.

    >>> title_of("adam", 0.1)
    'adam / 10'
    """
    return optimizer if part == 1 else f"{optimizer} / {1 / part:g}"


TITLES = tuple(title_of(name, part) for part in PARTS for name in OPTIMIZERS)
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


def _tuned_rate(
    name: str, settings: Settings, task: Classification, key: Key[Array, ""], batch: PyTree
) -> float:
    """The rate with the least loss after the steps, from another initialization after the longest warm-up."""

    def value_fn(w):
        return task.loss(w, batch)

    @jax.jit
    def final(rate):
        start = _descend(optax.sgd(0.1), value_fn, task.init(key), max(settings.warmup))
        return value_fn(_descend(OPTIMIZERS[name](rate), value_fn, start, settings.steps))

    losses = np.array([float(final(jnp.asarray(rate))) for rate in RATES])
    return RATES[int(np.nanargmin(np.where(np.isfinite(losses), losses, np.inf)))]


def _measured(
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
                found[f"gain.{title_of(name, part)}"] = here - value_fn(last)
            return found

        return jax.lax.map(at, jax.random.split(draw, settings.points), batch_size=16)

    found = [jax.tree.map(np.asarray, of_seed(key)) for key in keys]
    return {name: np.stack([one[name] for one in found]) for name in found[0]}
