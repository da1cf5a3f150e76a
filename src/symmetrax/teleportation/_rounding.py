"""How far rounding can move a loss along an exact symmetry: the default tolerance of guards."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from symmetrax._precision import coarsest
from symmetrax._tree import safe_norm, widened

#: The relative change of the loss that is allowed for nonlinear actions, which are exact only up to a fit to
#: the data or the inverse of a map.
LOOSE = 1e-3

# Allowances in units of the machine precision of the numbers that the loss computes with: for the sums in a
# loss, for its last rounding, and the number of standard deviations of rounded parameters. On perceptrons of
# up to eight layers with log scales up to 1, the last was at most 5.
SUMS, LAST, DEVIATIONS = 32, 4, 8

# Without a gradient the sensitivity of the loss is unknown; this is enough for networks that fit the data to
# one percent.
UNKNOWN = 80

#: The largest tolerance for rounding, relative to the loss: in half precision, rounding can be as large as
#: the loss itself.
MOST = 0.1


def rounding(
    value_fn: Callable[[PyTree], Float[Array, ""]],
    params: PyTree,
    displacement: PyTree,
    here: Float[Array, ""],
    gradient: PyTree = None,
    *,
    linear: bool,
) -> Float[Array, ""]:
    """The absolute change of the loss `here` that rounding explains, for a jump by `displacement`.

    For a linear action with the `gradient` g at `params` w, it is to first order the precision of the numbers
    times the norm of all products g (|w| + |displacement|), since each rounded parameter moves the loss by
    this much at random. Without a gradient it is a multiple of the precision. For nonlinear actions it is at
    least 1e-3 of the loss.

    >>> loss = lambda w: jnp.sum(w**2)
    >>> w = jnp.array([1.0, 2.0])
    >>> float(rounding(loss, w, jnp.zeros(2), loss(w), jax.grad(loss)(w), linear=True) / loss(w)) < 1e-5
    True
    """
    value = jnp.abs(widened(here))
    coarse, last = coarsest(value_fn, params), float(jnp.finfo(here.dtype).eps)
    if not linear or gradient is None:
        least = min(MOST, UNKNOWN * max(coarse, last))
        return value * (least if linear else max(LOOSE, least))

    def product(g: Array, w: Array, d: Array) -> Array:
        return widened(g) * (jnp.abs(widened(w)) + jnp.abs(widened(d)))

    spread = safe_norm(jax.tree.map(product, gradient, params, displacement)).astype(value.dtype)
    sums = min(coarse, float(jnp.finfo(jnp.float32).eps))  # half precision is summed in single precision
    return (SUMS * sums + LAST * last) * value + DEVIATIONS * coarse * spread
