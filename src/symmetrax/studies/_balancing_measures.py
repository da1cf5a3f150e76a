"""Training of badly scaled classifiers at many learning rates, and the windows of rates that train."""

from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Key

from symmetrax._tree import safe_norm
from symmetrax.objectives._base import GradientNorm, Objective, negate
from symmetrax.objectives._landscape import NegativeParameterNorm
from symmetrax.search._closed_form import ClosedForm
from symmetrax.studies.core._statistics import intervals, summary
from symmetrax.teleportation._guard import Guard
from symmetrax.teleportation._transform import TeleportedState, teleported

#: The arms that all others are compared with.
REFERENCES = ("none", "he", "adam")
OBJECTIVES: dict[str, Objective] = {"norm": NegativeParameterNorm(), "gradient": negate(GradientNorm())}


@eqx.filter_jit
def _train(task, optimizer, objective, steps, keys, rates, due, sigma, bound):
    """Losses on all training images before and after, (seeds, rates), and gradient norms around teleports."""
    symmetry = task.symmetry()
    train = (task.train.pixels, task.train.labels)

    def one(key, rate):
        start, scale, order = jax.random.split(key, 3)
        params = task.init(start)
        factors = sigma * jax.random.normal(scale, symmetry.algebra)
        params = symmetry.act(symmetry.exp(factors), params)
        inner = optax.adam(rate) if optimizer == "adam" else optax.sgd(rate)
        moving = teleported(
            inner,
            symmetry,
            objective=OBJECTIVES[objective],
            search=ClosedForm(bound),
            schedule=due,
            guard=Guard(jump=jnp.inf, tolerance=1e-3),
            transport="carry",
        )
        before = task.loss(params, train)

        def step(carried, count):
            params, state = carried
            batch = task.batch(jax.random.fold_in(order, count))
            value_fn = lambda w: task.loss(w, batch)  # noqa: E731
            gradient = jax.grad(value_fn)(params)
            updates, state = moving.update(gradient, state, params, value_fn=value_fn)
            element = symmetry.exp(cast(TeleportedState, state).algebra)

            def around():
                return safe_norm(gradient), safe_norm(symmetry.transport_gradient(element, params, gradient))

            norms = jax.lax.cond(due[count], around, lambda: (jnp.zeros(()), jnp.zeros(())))
            return (optax.apply_updates(params, updates), state), norms

        (params, _), norms = jax.lax.scan(step, (params, moving.init(params)), jnp.arange(steps))
        return before, task.loss(params, train), *norms

    return jax.lax.map(lambda key: jax.vmap(lambda rate: one(key, rate))(rates), keys)


@eqx.filter_jit
def _checks(task, key: Key[Array, ""], sigma, bound) -> dict[str, Array]:
    """The balanced point against its definition, and how a step of descent leaves the balance."""
    symmetry = task.symmetry()
    start, scale = jax.random.split(key)
    he = task.init(start)
    scaled = symmetry.act(symmetry.exp(sigma * jax.random.normal(scale, symmetry.algebra)), he)
    train = (task.train.pixels, task.train.labels)

    def balanced(params):
        from_here = teleported(
            optax.sgd(0.0),
            symmetry,
            objective=NegativeParameterNorm(),
            search=ClosedForm(bound),
            schedule={0},
            guard=Guard(jump=jnp.inf, tolerance=1e-3),
        )
        value_fn = lambda w: task.loss(w, train)  # noqa: E731
        updates, _ = from_here.update(
            jax.grad(value_fn)(params), from_here.init(params), params, value_fn=value_fn
        )
        return cast(dict[str, Array], optax.apply_updates(params, updates))

    first, second = balanced(he), balanced(scaled)
    apart = optax.tree.sub(first, second)
    gradient = jax.grad(task.loss)(first, train)

    def drift(rate):
        moved = optax.apply_updates(first, optax.tree.scale(-rate, gradient))
        return jnp.linalg.norm(
            jnp.concatenate(_imbalances(task, moved)) - jnp.concatenate(_imbalances(task, first))
        )

    sizes = jnp.concatenate([jnp.sum(first[f"w{k}"] ** 2, 1) for k in range(1, len(task.widths) + 1)])
    return {
        "imbalance of the balanced point (relative)": jnp.max(
            jnp.abs(jnp.concatenate(_imbalances(task, first))) / sizes
        ),
        "distance of the balanced points of both starts (relative)": safe_norm(apart) / safe_norm(first),
        "exponent of the drift of the balance in the step size": jnp.log2(drift(0.8) / drift(0.4)),
    }


def _imbalances(task, params) -> list[Array]:
    """Of every hidden unit, squares of what goes in, its bias included, less those of what comes out."""
    layers = range(1, len(task.widths) + 1)
    return [
        jnp.sum(params[f"w{k}"] ** 2, 1) + params[f"b{k}"] ** 2 - jnp.sum(params[f"w{k + 1}"] ** 2, 0)
        for k in layers
    ]


def widths(rates: np.ndarray, finals: np.ndarray, target: float) -> np.ndarray:
    """Decades of learning rates, on a grid equally spaced in the logarithm, that end below `target`.

    >>> widths(np.array([0.1, 1.0, 10.0]), np.array([[2.0, 0.1, np.nan]]), 1.0)
    array([1.])
    """
    spacing = np.log10(rates[1] / rates[0])
    return np.sum(np.where(np.isfinite(finals), finals, np.inf) < target, axis=1) * spacing


def tops(rates: np.ndarray, finals: np.ndarray, target: float) -> np.ndarray:
    """log10 of the largest rate that ends below `target`; of the smallest rate if none does.

    >>> tops(np.array([0.1, 1.0, 10.0]), np.array([[0.3, 0.2, np.nan]]), 1.0)
    array([0.])
    """
    good = np.where(np.isfinite(finals), finals, np.inf) < target
    return np.max(np.where(good, np.log10(rates), np.log10(rates[0])), axis=1)


def _compared(
    rates: np.ndarray, target: float, starts: dict[str, Any], finals: dict[str, Any], seed: int
) -> dict[str, dict[str, Any]]:
    """Every arm: losses at each seed's own best rate, its window of rates, and both against the others'."""
    decades = {
        key: {name: measure(rates, values, target) for name, values in finals.items()}
        for key, measure in (("window", widths), ("top", tops))
    }
    safe = {name: np.where(np.isfinite(values), values, np.inf) for name, values in finals.items()}
    best = {name: np.log(np.min(values, axis=1)) for name, values in safe.items()}
    pairs = [(a, b) for a in best for b in REFERENCES if a != b]
    versus = intervals({(a, b): (best[a] - best[b])[:, None] for a, b in pairs})
    found = {}
    for name, values in safe.items():
        ends = np.stack([starts[name][:, 0], np.min(values, axis=1)], axis=1)[:, None]
        others = [of for of in REFERENCES if of != name]
        found[name] = {
            **summary(ends, len(ends)),
            "diverged_over_rates": int(np.sum(values > 10 * starts[name])),
            "versus": {of: versus[name, of]._asdict() for of in others},
        }
        for key, measured in decades.items():
            less = {of: _mean_interval(measured[name] - measured[of], seed) for of in others}
            found[name] |= {key: float(np.mean(measured[name])), f"{key}_minus": less}
    return found


def _mean_interval(values: np.ndarray, seed: int, draws: int = 2000) -> dict[str, float]:
    """A mean over seeds with a bootstrap interval. (Medians of widths on a grid would be too coarse.)"""
    rows = np.random.default_rng(seed).integers(len(values), size=(draws, len(values)))
    low, high = np.quantile(values[rows].mean(axis=1), [0.025, 0.975])
    return {"decades": float(values.mean()), "low": float(low), "high": float(high)}
