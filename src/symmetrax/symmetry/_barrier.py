"""The loss barrier between two networks: how much the loss rises on the straight line between them."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, PyTree

from symmetrax._tree import leaf_names


def barrier(loss: Callable[[PyTree], Array], a: PyTree, b: PyTree, *, points: int = 25) -> float:
    """The largest excess of the loss on the straight line from `a` to `b` over the line of its end values.

    The maximum over t of loss((1 - t) a + t b) - (1 - t) loss(a) - t loss(b), which is at least 0
    (linear mode connectivity, arXiv:1912.05671, arXiv:2209.04836). Call `match` first: units in different
    orders and gauges raise the loss on the line even if both networks are equal.

    **Arguments:** `loss(params)` returns a scalar; `a`, `b` are trees with equal names and shapes; `points`
    is the number of equally spaced t between 0 and 1, ends included. Leaves that are not arrays of numbers
    with a fraction are those of `a`.

    **Errors:** ValueError for trees of different names or shapes, fewer than three points, and a loss that is
    not finite at one of the ends.

    >>> import jax.numpy as jnp
    >>> round(barrier(lambda p: jnp.cos(p["x"]), {"x": jnp.array(-1.0)}, {"x": jnp.array(1.0)}), 4)
    0.4597
    """
    if points < 3:
        raise ValueError(f"`points` must be at least 3, two of which are the ends, got {points}.")
    (ours, rest), (theirs, _) = (eqx.partition(tree, eqx.is_inexact_array) for tree in (a, b))
    _check_alike(ours, theirs)
    others = jax.tree.leaves(theirs)
    leaves, structure = jax.tree.flatten(ours)

    def at(t: float, leaves: list[Any], others: list[Any]) -> Array:
        return _between(loss, structure, np.asarray(t), leaves, others, rest)

    places = np.linspace(0.0, 1.0, points)
    # The ends by themselves: 0 times what is not finite is not zero.
    ends = {"a": float(at(0.0, leaves, leaves)), "b": float(at(1.0, others, others))}
    for what, value in ends.items():
        if not np.isfinite(value):
            raise ValueError(f"The loss of `{what}` is {value}: pass parameters of a finite loss.")
    between = [float(at(t, leaves, others)) for t in places[1:-1]]
    values = np.array([ends["a"], *between, ends["b"]])
    excess = values - (1 - places) * values[0] - places * values[-1]
    # Where the loss is not finite on the way, the barrier is infinite.
    return float(np.max(np.where(np.isfinite(excess), excess, np.inf)[1:-1], initial=0.0))


# Outside of `barrier`, so that a loss is compiled once for all pairs of networks.
@eqx.filter_jit
def _between(
    loss: Callable[[PyTree], Array],
    structure: Any,
    t: Any,
    leaves: list[Any],
    others: list[Any],
    rest: PyTree,
) -> Array:
    """The loss at a point of the line."""
    mixed = [((1 - t) * x + t * y).astype(x.dtype) for x, y in zip(leaves, others, strict=True)]
    return loss(eqx.combine(jax.tree.unflatten(structure, mixed), rest))


def _check_alike(ours: PyTree, theirs: PyTree) -> None:
    shapes = [
        dict(zip(leaf_names(tree), (leaf.shape for leaf in jax.tree.leaves(tree)), strict=True))
        for tree in (ours, theirs)
    ]
    for name in shapes[0].keys() | shapes[1].keys():
        one, other = (shape.get(name, "no place") for shape in shapes)
        if one != other:
            raise ValueError(
                f"{name} has {one} in `a` and {other} in `b`: pass two networks of one structure and "
                "equal shapes."
            )
