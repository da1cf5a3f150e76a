"""Conjugate gradients for least squares, accurate to rounding at any condition number."""

from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from symmetrax._tree import select


def conjugate_gradients(
    along: Callable[[Array], PyTree],
    across: Callable[[PyTree], Array],
    lengths: Float[Array, "..."],
    wanted: PyTree,
    shift: Float[Array, "..."],
    steps: int,
) -> tuple[PyTree, Array]:
    """Solves r + V xi = wanted, V' r = shift for the residual r and xi, with V = `along`, V' = `across`.

    Uses conjugate gradients for the least-squares problem, updating the residual itself: the component left
    along the columns of V has the error of a single product, not of the normal equations, and is zero to
    rounding for any condition number. `lengths` approximate the norms of the columns; the unknowns are
    rescaled by them.

    >>> v, eye = jnp.array([[1.0], [1.0]]), jnp.ones(1)
    >>> residual, xi = conjugate_gradients(
    ...     lambda xi: v @ xi, lambda r: v.T @ r, eye, jnp.array([3.0, 1.0]), jnp.zeros(1), steps=10
    ... )
    >>> print(residual, xi)
    [ 1. -1.] [2.]
    """
    # Coordinates that move nothing get the unit 0: they stay zero instead of growing by rounding.
    unit = jnp.where(lengths > 0, 1 / jnp.where(lengths > 0, lengths, 1.0), 0.0)
    unit = jnp.where(jnp.isfinite(unit), unit, 0.0)
    largest = [jnp.max(jnp.abs(x), initial=0.0) for x in (*jax.tree.leaves(wanted), unit * shift)]
    scale = power_of_two(reduce(jnp.maximum, largest))
    start = jax.tree.map(lambda x: x / scale.astype(x.dtype), wanted)
    shift = unit * shift / scale
    whole = _dot(start, start) + _dot(shift, shift)
    eps = max(float(jnp.finfo(x.dtype).eps) for x in (*jax.tree.leaves(wanted), shift))

    def slope_at(residual: PyTree) -> Array:
        return unit * across(residual) - shift

    def unfinished(state: _Descent) -> Array:
        # The slope must be down to rounding and have stopped improving: a single small slope may be luck.
        rounding = state.least <= (8 * eps) ** 2 * whole
        return (
            (state.least > 0) & ~(rounding & (state.since >= 5)) & (state.stalled < 2) & (state.count < steps)
        )

    def step(state: _Descent) -> _Descent:
        moved = along(unit * state.direction)
        length = _dot(moved, moved)
        seen = length > (8 * eps) ** 2 * _dot(state.direction, state.direction)  # else V annihilates it
        rate = jnp.where(seen, state.square / jnp.where(seen, length, 1.0), 0.0)
        residual = jax.tree.map(lambda r, q: r - rate.astype(r.dtype) * q, state.residual, moved)
        xi = state.xi + rate * state.direction
        slope = slope_at(residual)
        square = _dot(slope, slope)
        better = square < state.least
        # The squared norm of the residual fell by rate * square, the most that this step could gain.
        progress = seen & (rate * state.square > (2 * eps) ** 2 * whole)
        return _Descent(
            residual=residual,
            xi=xi,
            direction=slope + square / state.square * state.direction,
            square=square,
            # The last step may be worse than an earlier one, by rounding.
            best=select(better, (residual, xi), state.best),
            least=jnp.minimum(square, state.least),
            since=jnp.where(better, 0, state.since + 1),
            stalled=jnp.where(progress, 0, jnp.where(seen, state.stalled + 1, 2)),
            count=state.count + 1,
        )

    slope, xi, zero = slope_at(start), jnp.zeros_like(shift), jnp.array(0)
    square = _dot(slope, slope)
    first = _Descent(start, xi, slope, square, (start, xi), square, zero, zero, zero)
    residual, xi = jax.lax.while_loop(unfinished, step, first).best
    return jax.tree.map(lambda r: r * scale.astype(r.dtype), residual), unit * xi * scale


class _Descent(NamedTuple):
    """The state of conjugate gradients; `square` is the squared slope norm, `least` its minimum so far."""

    residual: PyTree
    xi: Array
    direction: Array
    square: Array
    best: tuple[PyTree, Array]
    least: Array
    since: Array
    stalled: Array
    count: Array


def _dot(x: PyTree, y: PyTree) -> Float[Array, ""]:
    pairs = zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
    return jnp.asarray(sum((jnp.sum(a * b) for a, b in pairs), start=0.0))


def power_of_two(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The power of two at or below each entry, for scaling without rounding; 1 where the entry is zero.

    >>> print(power_of_two(jnp.array([0.0, 5.0, 0.3])))
    [1.   4.   0.25]
    """
    return jnp.ldexp(jnp.ones_like(x), jnp.where(x > 0, jnp.frexp(x)[1] - 1, 0))
