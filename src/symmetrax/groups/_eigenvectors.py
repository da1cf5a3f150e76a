"""Eigenvectors of symmetric matrices by plane rotations, without LAPACK."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from symmetrax.groups._exponentials import product

#: Sweeps over all pairs after which the iteration stops; from a random matrix of size 256 it needs seven.
SWEEPS = 15


@partial(jax.jit, inline=True)
def eigenvectors(matrix: Float[Array, "... n n"]) -> Float[Array, "... n n"]:
    """Rotations q, of determinant 1, for which q @ matrix @ q.T is diagonal: eigenvectors as rows.

    Jacobi's method: every rotation makes one pair of entries zero, and n/2 disjoint pairs turn at once. The
    rotations are the smallest possible, at most an eighth of a turn, so a matrix that is diagonal already
    gives the identity, one that is almost diagonal takes two or three sweeps, and eigenvalues are not sorted.
    The result is as orthogonal as its dtype allows. No LAPACK, which can hang in a compiled program (see
    docs/architecture.md): a sweep is n - 1 rounds of O(n^2) operations. Only the symmetric part of `matrix`
    counts. If an entry is infinite or NaN, the result is NaN.

    >>> q = eigenvectors(jnp.array([[2.0, 1.0], [1.0, 2.0]]))
    >>> print(jnp.diag(q @ jnp.array([[2.0, 1.0], [1.0, 2.0]]) @ q.T).round().astype(int))
    [3 1]
    """
    n = matrix.shape[-1]
    if n == 1:
        return jnp.ones_like(matrix)
    matrix = (matrix + jnp.swapaxes(matrix, -1, -2)) / 2
    largest = jnp.max(jnp.abs(matrix), axis=(-1, -2), keepdims=True)
    matrix = matrix / jnp.where(largest > 0, largest, 1.0)
    if n % 2:
        # An idle partner for the unit that is left over: its entries are zero, so nothing turns into it.
        matrix = jnp.pad(matrix, [(0, 0)] * (matrix.ndim - 2) + [(0, 1), (0, 1)])
    size = n + n % 2
    eye = jnp.broadcast_to(jnp.eye(size, dtype=matrix.dtype), matrix.shape)
    half = size // 2
    # Not below the rounding errors that the rotations themselves make.
    enough = jnp.square(size * jnp.finfo(matrix.dtype).eps)

    def turn(_, state):
        """Makes the entries between units i and i + half zero, for every i < half; then forms new pairs."""
        a, q = state
        diagonal = jnp.diagonal(a, axis1=-2, axis2=-1)
        off = jnp.diagonal(a[..., :half, half:], axis1=-2, axis2=-1)
        apart = diagonal[..., :half] - diagonal[..., half:]
        angle = jnp.arctan2(jnp.where(apart < 0, -2 * off, 2 * off), jnp.abs(apart)) / 2
        c, s = jnp.cos(angle), jnp.sin(angle)
        return _turned(_turned(a, c, s, -2), c, s, -1), _turned(q, c, s, -2)

    def sweep(state):
        a, q, done = state
        # After size - 1 rounds every pair has met once, and the units stand in their first order again.
        a, q = jax.lax.fori_loop(0, size - 1, turn, (a, q))
        return a, q, done + 1

    def unfinished(state):
        a, _, done = state
        off = jnp.sum((a * (1 - eye)) ** 2, axis=(-1, -2))
        return jnp.any(off > enough * jnp.sum(a**2, axis=(-1, -2))) & (done < SWEEPS)

    _, q, _ = jax.lax.while_loop(unfinished, sweep, (matrix, eye, jnp.zeros((), int)))
    q = q[..., :n, :n] + 0 * largest  # not finite where the matrix is not
    # Rounding errors of thousands of rotations add up; a Newton step makes the result orthogonal again.
    return product(1.5 * eye[..., :n, :n] - product(q, jnp.swapaxes(q, -1, -2)) / 2, q)


def _turned(x: Array, c: Array, s: Array, axis: int) -> Array:
    """Turns unit i with unit i + half along an axis; then reorders the units for the next round of pairs."""
    c, s = (jnp.expand_dims(angle, -1 if axis == -2 else -2) for angle in (c, s))
    top, bottom = jnp.split(x, 2, axis=axis)
    top, bottom = c * top + s * bottom, c * bottom - s * top
    if x.shape[axis] == 2:
        return jnp.concatenate([top, bottom], axis=axis)

    def part(x: Array, low: int, high: int | None) -> Array:
        return jax.lax.slice_in_dim(x, low, high, axis=x.ndim + axis)

    # The first unit keeps its place and all others move on by one, as in a round-robin tournament.
    half = x.shape[axis] // 2
    order = [part(top, 0, 1), part(bottom, 0, 1), part(top, 1, half - 1), part(bottom, 1, None)]
    return jnp.concatenate([*order, part(top, half - 1, None)], axis=axis)
