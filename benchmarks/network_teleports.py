"""What a teleport of a network costs, in gradients of the same batch: 784-16-10-10, 200 samples.

Exact scalings need one gradient for a search of any length; the data-dependent action of arXiv:2305.13404
needs a derivative of the gradient's norm in every step; a curvature step needs no gradient at all. Everything
includes moving the parameters, but for what says "given the gradient". Run by `run.py` in its own process.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import symmetrax as sx
from timing import in_turns, row

SIZES, SAMPLES, STEPS = (784, 16, 10, 10), 200, 10
NETWORK, WEIGHTS = sx.tasks.MLP(SIZES, slope=0.1, bias=False), ("w1", "w2", "w3")


def of_outputs(outputs: jax.Array, batch: Any) -> jax.Array:
    """Cross-entropy."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs, batch[1]))


def loss(params: Any, batch: Any) -> jax.Array:
    """The loss of a network on a batch."""
    return of_outputs(NETWORK(params, batch[0]), batch)


def plain_norm(value_fn: Callable, params: Any) -> jax.Array:
    """The squared gradient norm as a plain function, which no search can see through."""
    return sx.objectives.squared_gradient_norm(value_fn, params)


def teleports(params: Any, batch: Any) -> dict[str, tuple[Callable, tuple]]:
    """What is timed: a function and its arguments."""
    scaling = sx.models.mlp_symmetry(params, WEIGHTS)
    leaky = lambda z: jnp.where(z > 0, z, 0.1 * z)  # noqa: E731
    dependent = sx.symmetry.ActivationGL.of(params, WEIGHTS, activation=leaky, solver="gram")
    ascent = sx.search.Ascent(STEPS, 1e-2)

    def search(symmetry, how, objective: Callable = sx.objectives.squared_gradient_norm):
        def found(params, batch, gradient=None):
            orbit = sx.search.Orbit(lambda w: loss(w, batch), params, symmetry, batch, objective, gradient)
            return how(orbit)

        return found

    def moved(symmetry, how, objective: Callable = sx.objectives.squared_gradient_norm):
        found = search(symmetry, how, objective)
        return lambda params, batch: symmetry.act(symmetry.exp(found(params, batch)), params, batch)

    given = (params, batch, jax.grad(loss)(params, batch))
    sgd = optax.with_extra_args_support(optax.sgd(0.1))
    online = {order: sx.online_teleported(sgd, scaling, 1e-3, order=order, guard=None) for order in (1, 2)}

    def stepped(optimizer):
        def step(params, batch, state):
            updates, state = optimizer.update(jax.grad(loss)(params, batch), state, params)
            return optax.apply_updates(params, updates), state

        return step, (params, batch, optimizer.init(params))

    return {
        "gradient": (jax.grad(loss), (params, batch)),
        "closed": (moved(scaling, sx.search.ClosedForm(0.5)), (params, batch)),
        "energies": (search(scaling, ascent), (params, batch)),
        "energies given": (search(scaling, ascent), given),
        "autodiff": (search(scaling, ascent, plain_norm), (params, batch)),
        "dependent": (
            moved(dependent, ascent, sx.objectives.FeatureGradientNorm(of_outputs)),
            (params, batch),
        ),
        "curvature": (moved(dependent, sx.search.CurvatureStep(jax.random.key(3))), (params, batch)),
        "sgd": stepped(sgd),
        "online": stepped(online[2]),
        "online, first order": stepped(online[1]),
    }


def measure(quick: bool) -> list[dict[str, Any]]:
    """All rows."""
    x, y = (jax.random.key(k) for k in (1, 2))
    batch = (jax.random.uniform(x, (SAMPLES, SIZES[0])), jax.random.randint(y, (SAMPLES,), 0, SIZES[-1]))
    params = NETWORK.init(jax.random.key(0))
    found: dict[str, list[float]] = {}
    compile_seconds = []
    for _ in range(1 if quick else 5):
        turns, began = {}, time.perf_counter()
        for name, (function, arguments) in teleports(params, batch).items():
            program = jax.jit(function).lower(*arguments).compile()
            turns[name] = (lambda p=program, a=arguments: jax.block_until_ready(p(*a)), 20)
        compile_seconds.append((time.perf_counter() - began) / len(turns))
        for name, values in in_turns(turns, rounds=5 if quick else 15).items():
            found.setdefault(name, []).append(1e6 * sorted(values)[len(values) // 2])

    unit: dict[str, Any] = {"unit": "us", "compile_seconds": compile_seconds}

    def per_gradient(title: str, name: str, bound: float) -> dict[str, Any]:
        return row(
            f"{title} / gradient", found[name], found["gradient"], better="lower", required=bound, **unit
        )

    def per_step(title: str, name: str, bound: float) -> dict[str, Any]:
        return row(
            f"{title} / step of SGD", found[name], found["sgd"], better="lower", required=bound, **unit
        )

    def faster(title: str, name: str, bound: float) -> dict[str, Any]:
        # Baseline over ours, so that more is better, as for the other speed-ups.
        return row(
            f"10 ascent steps by autodiff / {title}", found["autodiff"], found[name], required=bound, **unit
        )

    return [
        per_gradient("positive scaling: search and move", "closed", 1.5),
        per_gradient("data-dependent action: 10 ascent steps and move", "dependent", 12.0),
        per_gradient("curvature step and move", "curvature", 4.0),
        per_step("a step of Algorithm 2, positive scaling", "online", 1.5),
        per_step("the same, first order", "online, first order", 1.5),
        faster("on energies, gradient included", "energies", 10.0),
        faster("on energies, given the gradient", "energies given", 50.0),
    ]


if __name__ == "__main__":
    print(json.dumps(measure("--quick" in sys.argv)))
