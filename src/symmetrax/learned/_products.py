"""Products with large matrices, whose weight gradients are computed once per window instead of per step.

The gradient of W x with respect to W, g x^T, is as large as W, and a scan adds one to its accumulator at
every step: for wide networks this accumulation, and not the products, dominates the backward pass. Here each
step returns g and x instead, and the sum over steps and tasks becomes one product after the scan.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

#: Storage for a product's g and x: shapes (out, *b) and (in, *b), with a leading steps axis outside the scan.
Slot = tuple[Float[Array, "..."], Float[Array, "..."]]


# Measured speedups: 1.3 times at width 100 and one task, 1.5 times at width 300 and 16 tasks.
# With more tasks the products outweigh the sums; small matrices are summed within the L1 cache.
LEAST_ENTRIES, MOST_TASKS = 20_000, 32


class Deferred(eqx.Module):
    """A matrix whose derivative `product` sends to the `slot`, as the pair (g, x).

    >>> import jax, jax.numpy as jnp
    >>> slot = (jnp.zeros(2), jnp.zeros(3))
    >>> loss = lambda slot: jnp.sum(product(Deferred(jnp.ones((2, 3)), slot), jnp.arange(3.0)))
    >>> g, x = jax.grad(loss)(slot)  # the derivative by the matrix is their outer product
    >>> print(g, x)
    [1. 1.] [0. 1. 2.]
    """

    weight: Float[Array, "out in"]
    slot: Slot


def product(weight: Float[Array, "out in"] | Deferred, x: Float[Array, "in *b"]) -> Float[Array, "out *b"]:
    """Multiplies `weight` by `x`, whose first axis holds the features.

    >>> import jax.numpy as jnp
    >>> product(jnp.ones((2, 3)), jnp.ones((3, 5))).shape
    (2, 5)
    """
    if isinstance(weight, Deferred):
        return _deferred(weight.weight, x, weight.slot)
    return jnp.tensordot(weight, x, 1)


# The slot has no influence on the result. It exists so that a scan over slots has somewhere to put, for every
# step, what the derivative by the matrix needs.
@jax.custom_vjp
def _deferred(weight: Array, x: Array, slot: Slot) -> Array:
    del slot
    return jnp.tensordot(weight, x, 1)


def _forward(weight: Array, x: Array, slot: Slot) -> tuple[Array, tuple[Array, Array]]:
    return _deferred(weight, x, slot), (weight, x)


def _backward(kept: tuple[Array, Array], g: Array) -> tuple[None, Array, Slot]:
    weight, x = kept
    return None, jnp.tensordot(weight, g, ((0,), (0,))), (g, x)


_deferred.defvjp(_forward, _backward)


def deferrable(network: Any, batch: tuple[int, ...]) -> list[int]:
    """Returns the indices in `network.vector_products()` of the matrices that are worth deferring.

    >>> import jax, symmetrax as sx
    >>> network = sx.learned.FlatGradientLSTM(2, width=100, depth=1, key=jax.random.key(0))
    >>> deferrable(network, batch=()), deferrable(network, batch=(1000,))  # the 400 x 100 recurrent weights
    ([1], [])
    """
    if not hasattr(network, "vector_products") or math.prod(batch) > MOST_TASKS:
        return []
    return [i for i, matrix in enumerate(network.vector_products()) if matrix.size >= LEAST_ENTRIES]


def empty_slots(network: Any, places: list[int], steps: int, batch: tuple[int, ...]) -> list[Slot]:
    """Returns zeros for every matrix, step and, if `batch` holds their number, task.

    >>> import jax, symmetrax as sx
    >>> network = sx.learned.FlatGradientLSTM(2, width=100, depth=1, key=jax.random.key(0))
    >>> jax.tree.map(jnp.shape, empty_slots(network, [1], steps=5, batch=()))
    [((5, 400), (5, 100))]
    """

    def empty(matrix: Array) -> Slot:
        out, of = (jnp.zeros((steps, size, *batch), matrix.dtype) for size in matrix.shape)
        return out, of

    return [empty(network.vector_products()[place]) for place in places]


def defer(network: PyTree, places: list[int], slots: list[Slot]) -> PyTree:
    """Returns `network` with these matrices deferred to the slots of a step.

    >>> import jax, symmetrax as sx
    >>> network = sx.learned.FlatGradientLSTM(2, width=100, depth=1, key=jax.random.key(0))
    >>> deferred = defer(network, [1], [(jnp.zeros(400), jnp.zeros(100))])
    >>> isinstance(deferred.core.cells[0].weight_hh, Deferred)
    True
    """
    matrices = network.vector_products() if places else []
    deferred = [
        Deferred(jax.lax.stop_gradient(matrices[i]), slot) for i, slot in zip(places, slots, strict=True)
    ]
    return _replaced(network, places, deferred)


def collect(gradient: PyTree, places: list[int], slots: list[Slot]) -> PyTree:
    """Completes the `gradient` of a network with deferred matrices, using the derivatives of their slots.

    >>> import jax, symmetrax as sx
    >>> network = sx.learned.FlatGradientLSTM(2, width=100, depth=1, key=jax.random.key(0))
    >>> found = collect(network, [1], [(jnp.ones((5, 400)), jnp.ones((5, 100)))])
    >>> float(found.core.cells[0].weight_hh[0, 0])  # summed over five steps
    5.0
    """
    return _replaced(gradient, places, [_summed(*slot) for slot in slots])


def _summed(g: Float[Array, "steps out *b"], x: Float[Array, "steps in *b"]) -> Float[Array, "out in"]:
    axes = (0, *range(2, g.ndim))
    return jnp.tensordot(g, x, (axes, axes))


def _replaced(network: PyTree, places: list[int], matrices: list) -> PyTree:
    if not places:
        return network
    return eqx.tree_at(lambda n: [n.vector_products()[i] for i in places], network, matrices)
