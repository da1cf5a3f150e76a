"""Matrix exponentials from matrix products alone.

They avoid LAPACK calls, which can hang inside a compiled program alongside large products on few cores.
Functions with loops or branches are jitted as a whole: otherwise every call outside compiled code would
recompile its branches.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from symmetrax._tree import anywhere

#: The norm up to which the series and their squarings are exact to rounding.
MAX_NORM = 20.0


@partial(jax.jit, static_argnames="size", inline=True)
def isometry(
    coordinates: Float[Array, "... k"], size: int, form: Float[Array, "n n"] | None = None
) -> Float[Array, "... n n"]:
    """exp of `skew` matrices of this size or, given a form, of form @ skew.

    Accurate for every finite length, as far as the rounding of coordinates determines angles. Each squaring
    doubles the deviation of the result M from orthogonality, M' M = I, or with a form from M' form M = form,
    so a Newton step restores it. Coordinates too long for their rounding to determine an angle are shortened.

    >>> turn = isometry(jnp.array([1e4, 2e4, -3e4]), 3)
    >>> bool(jnp.allclose(turn @ turn.T, jnp.eye(3), atol=1e-5))
    True
    """
    parts, halvings, _ = _halved(coordinates, (-1,))

    def double(matrix: Array) -> Array:
        return _restored(product(matrix, matrix), form)

    generator = skew(parts, size)
    near = _exponential(generator if form is None else product(form, generator))
    return _doubled(near, halvings[..., None], double)


def shortened(coordinates: Float[Array, "... k"], size: int) -> Float[Array, "... k"]:
    """Shortens coordinates of rotations to half a turn in every plane of R^n (or to `MAX_NORM`, if longer).

    For n = 2 the angle is returned unchanged.

    >>> print(jnp.linalg.norm(shortened(jnp.full(3, 100.0), 3)).round(3))
    20.0
    """
    if size == 2:
        return coordinates
    # Divided by the largest entry before squaring, so that no square overflows.
    longest = max(MAX_NORM, math.pi * math.sqrt(size / 2))
    parts = coordinates / longest
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(parts), axis=-1, keepdims=True, initial=1.0))
    square = jnp.sum((parts / largest) ** 2, axis=-1, keepdims=True)
    longer = square * largest**2 > 1
    length = largest * jnp.sqrt(jnp.where(longer, square, 1.0))
    return jnp.where(longer, coordinates / length, coordinates)


def skew(coordinates: Float[Array, "... k"], size: int) -> Float[Array, "... n n"]:
    """The skew-symmetric matrices whose entries above the diagonal are minus the coordinates, row by row.

    >>> print(skew(jnp.array([1.0, 2.0, 3.0]), 3))
    [[ 0. -1. -2.]
     [ 1.  0. -3.]
     [ 2.  3.  0.]]
    """
    row, column = jnp.triu_indices(size, 1)
    upper = jnp.zeros((*coordinates.shape[:-1], size, size), coordinates.dtype)
    upper = upper.at[..., row, column].set(coordinates)
    return jnp.swapaxes(upper, -1, -2) - upper


@partial(jax.jit, inline=True)
def exponential_pair_or_nan(
    matrix: Float[Array, "... n n"],
) -> tuple[Float[Array, "... n n"], Float[Array, "... n n"]]:
    """exp(matrix) and exp(-matrix) for matrices of any norm; NaN where rounding or overflow ruins either.

    >>> right, left = exponential_pair_or_nan(jnp.array([[0.0, 1.0], [0.0, 0.0]]))
    >>> print(left)
    [[ 1. -1.]
     [ 0.  1.]]
    """
    parts, halvings, certain = _halved(matrix, (-2, -1))
    pair = exponential_pair(parts)
    pair = _doubled(pair, halvings, lambda pair: tuple(product(one, one) for one in pair))
    gap = jnp.max(jnp.abs(product(*pair) - jnp.eye(matrix.shape[-1], dtype=matrix.dtype)), axis=(-1, -2))
    # The two must be inverse to each other, which errors of squaring destroy; the test is False for NaN.
    inverse = jax.lax.stop_gradient(gap[..., None, None]) < 0.01
    right, left = (jnp.where(certain & inverse, one, jnp.nan) for one in pair)
    return right, left


def _halved(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """Halves `x` until its norm along `axes` is at most `MAX_NORM`; returns it, the count, and whether that
    was enough.

    If `x` is still too long after as many halvings as make its rounding a full turn, it is rescaled instead.
    """
    most = _most_halvings(x.dtype)
    fixed = jax.lax.stop_gradient(x)
    largest = jnp.max(jnp.abs(fixed), axis=axes, keepdims=True, initial=0.0)
    unit = jnp.where(largest > 0, largest, 1.0)  # so that no square overflows
    relative = jnp.sqrt(jnp.sum((fixed / unit) ** 2, axis=axes, keepdims=True))
    wanted = jnp.ceil(jnp.log2(unit) + jnp.log2(jnp.maximum(relative, 1.0)) - math.log2(MAX_NORM))
    halvings = jnp.clip(wanted, 0, most)
    halved = x * jnp.ldexp(jnp.ones_like(halvings), -halvings.astype(int))
    divided = x / unit * (MAX_NORM / jnp.maximum(relative, 1.0))
    return jnp.where(wanted <= most, halved, divided), halvings, wanted <= most


def _most_halvings(dtype) -> int:
    return math.ceil(math.log2(2 * math.pi / (MAX_NORM * float(jnp.finfo(dtype).eps))))


def _doubled(near: PyTree, halvings: Array, double: Callable[[PyTree], PyTree]) -> PyTree:
    """Applies `double` `halvings` times; a branch skips the cost if nothing was halved."""

    def step(value: PyTree, k: Array) -> tuple[PyTree, None]:
        return jax.tree.map(lambda new, old: jnp.where(k < halvings, new, old), double(value), value), None

    def far(value: PyTree) -> PyTree:
        times = jnp.arange(_most_halvings(halvings.dtype), dtype=halvings.dtype)
        return jax.lax.scan(step, value, times)[0]

    # `anywhere` keeps a single branch under `vmap`, and the checkpoint spares reverse mode the stored powers.
    return jax.lax.cond(anywhere(halvings > 0), jax.checkpoint(far), lambda value: value, near)


def _restored(matrix: Float[Array, "... n n"], form: Float[Array, "n n"] | None) -> Float[Array, "... n n"]:
    """A Newton step towards M' form M = form, where M is close enough for the step to help."""
    transposed = jnp.swapaxes(matrix, -1, -2)
    eye = jnp.broadcast_to(jnp.eye(matrix.shape[-1], dtype=matrix.dtype), matrix.shape)
    inverse = transposed if form is None else product(form, product(transposed, form))
    gap = jnp.max(jnp.abs(product(inverse, matrix) - eye), axis=(-1, -2), keepdims=True)
    near = jax.lax.stop_gradient(gap) < 0.1
    safe, inverse = (jnp.where(near, one, eye) for one in (matrix, inverse))
    return jnp.where(near, 1.5 * safe - 0.5 * product(safe, product(inverse, safe)), matrix)


def _exponential(matrix: Float[Array, "... n n"]) -> Float[Array, "... n n"]:
    """exp of matrices from products alone, exact to rounding up to norms of `MAX_NORM`."""
    # Taylor order 12 at matrix / 2^6, then six squarings of exp - 1: eleven sequential products. Without the
    # identity, squaring preserves the digits of the small part.
    eye = jnp.eye(matrix.shape[-1], dtype=matrix.dtype)
    x = matrix / 64
    xx = product(x, x)
    xxx = product(xx, x)

    def cubic(order: int) -> Array:
        """Three terms of the series, starting at `order`, divided by x^order."""
        first, second, third = (1 / math.factorial(order + k) for k in range(3))
        return first * eye + second * x + third * xx

    rest = cubic(9) + xxx / math.factorial(12)
    for order in (6, 3):
        rest = cubic(order) + product(xxx, rest)
    rest = x + xx / 2 + product(xxx, rest)
    for _ in range(6):
        rest = 2 * rest + product(rest, rest)
    return eye + rest


def product(a: Array, b: Array) -> Array:
    """Matrix products in full precision, even if the default precision is lower.

    >>> print(product(jnp.array([[1.0, 2.0]]), jnp.array([[3.0], [4.0]])))
    [[11.]]
    """
    return jnp.matmul(a, b, precision="highest")


def exponential_pair(
    matrix: Float[Array, "... n n"], max_norm: float = MAX_NORM
) -> tuple[Float[Array, "... n n"], Float[Array, "... n n"]]:
    """exp(matrix) and exp(-matrix), exact to rounding for norms up to `max_norm`.

    The number of products grows with the norm: up to 20, it is 18 in double precision and 14 in single; up to
    0.01, it is 5 and 2.

    >>> import jax.numpy as jnp
    >>> print(exponential_pair(jnp.log(2.0) * jnp.eye(2), 1.0)[1].round(3))
    [[0.5 0. ]
     [0.  0.5]]
    """
    # Both results share the even and odd parts of the series in x = matrix / 2^k (two separate exponentials
    # would take 22 products in double precision); then come k squarings of exp - 1.
    order, squarings = _fewest_products(max_norm, float(jnp.finfo(matrix.dtype).eps))
    eye = jnp.eye(matrix.shape[-1], dtype=matrix.dtype)
    x = matrix / 2**squarings
    powers = [eye, product(x, x)]
    for _ in range(_BLOCKS[order] - 1):
        powers.append(product(powers[-1], powers[1]))

    def polynomial(coefficients: list[float]) -> Array:
        """Evaluates a polynomial in x^2, with an extra product if it has more terms than there are powers."""

        def plain(coefficients: list[float]) -> Array:
            terms = zip(coefficients, powers, strict=False)
            return sum((c * power for c, power in terms if c), start=jnp.zeros_like(x))

        most = len(powers)
        if len(coefficients) <= most:
            return plain(coefficients)
        return plain(coefficients[: most - 1]) + product(powers[-1], plain(coefficients[most - 1 :]))

    terms = range((order + 1) // 2)
    even = polynomial([0.0] + [1 / math.factorial(2 * k) for k in terms[1:]])  # without the identity
    odd = product(x, polynomial([1 / math.factorial(2 * k + 1) for k in terms]))
    rests = [even + odd, even - odd]
    for _ in range(squarings):
        rests = [2 * rest + product(rest, rest) for rest in rests]
    return eye + rests[0], eye + rests[1]


# The highest power of x^2 to compute, for each order of the series.
_BLOCKS = {3: 1, 5: 2, 9: 2, 13: 3}


def _fewest_products(max_norm: float, eps: float) -> tuple[int, int]:
    """The cheapest order and number of squarings with the remainder of the series below eps / 2."""
    products, found = {3: 2, 5: 3, 9: 5, 13: 6}, []
    for order in products:
        squarings = 0
        while (max_norm / 2**squarings) ** (order + 1) / math.factorial(order + 1) > eps / 2:
            squarings += 1
        found.append((products[order] + 2 * squarings, squarings, order))
    _, squarings, order = min(found)
    return order, squarings
