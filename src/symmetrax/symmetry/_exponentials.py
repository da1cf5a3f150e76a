"""Matrix exponentials from products alone.

No LAPACK call, which can hang inside a compiled program beside large products on few cores. What has loops
or branches is compiled as a whole: outside of compiled code each call would compile its branches anew.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from symmetrax._tree import anywhere

#: Up to this norm the series and their squarings are exact to rounding.
REACH = 20.0


@partial(jax.jit, static_argnames="size", inline=True)
def isometry(
    coordinates: Float[Array, "... k"], size: int, form: Float[Array, "n n"] | None = None
) -> Float[Array, "... n n"]:
    """exp of `skew` matrices of this size, or with a form of form @ skew.

    Right for every finite length, as far as the rounding of coordinates leaves angles certain. Each squaring
    doubles what the result M lacks in orthogonality, M' M = I, or with a form in M' form M = form, so that a
    Newton step restores it. Lengths whose rounding leaves no angle are shortened.
    """
    parts, halvings, _ = _halved(coordinates, (-1,))

    def double(matrix: Array) -> Array:
        return _restored(product(matrix, matrix), form)

    generator = skew(parts, size)
    near = exponential(generator if form is None else product(form, generator))
    return _doubled(near, halvings[..., None], double)


def skew(coordinates: Float[Array, "... k"], size: int) -> Float[Array, "... n n"]:
    """The skew matrices whose entries above the diagonal are minus the coordinates, row by row."""
    row, column = jnp.triu_indices(size, 1)
    upper = jnp.zeros((*coordinates.shape[:-1], size, size), coordinates.dtype)
    upper = upper.at[..., row, column].set(coordinates)
    return jnp.swapaxes(upper, -1, -2) - upper


@partial(jax.jit, inline=True)
def exponential_pair_or_nan(
    matrix: Float[Array, "... n n"],
) -> tuple[Float[Array, "... n n"], Float[Array, "... n n"]]:
    """exp(matrix) and exp(-matrix) for matrices of any norm; NaN where rounding or overflow lost either."""
    parts, halvings, certain = _halved(matrix, (-2, -1))
    pair = exponential_pair(parts)
    pair = _doubled(pair, halvings, lambda pair: tuple(product(one, one) for one in pair))
    gap = jnp.max(jnp.abs(product(*pair) - jnp.eye(matrix.shape[-1], dtype=matrix.dtype)), axis=(-1, -2))
    inverse = jax.lax.stop_gradient(gap[..., None, None]) < 0.01  # written so that NaN is none
    right, left = (jnp.where(certain & inverse, one, jnp.nan) for one in pair)
    return right, left


def _halved(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """`x` halved until its norm along `axes` is at most `REACH`; how often; and whether that was enough.

    After so many halvings that rounding is a full turn, the rest is divided.
    """
    most = _most_halvings(x.dtype)
    fixed = jax.lax.stop_gradient(x)
    largest = jnp.max(jnp.abs(fixed), axis=axes, keepdims=True, initial=0.0)
    unit = jnp.where(largest > 0, largest, 1.0)  # no square overflows
    relative = jnp.sqrt(jnp.sum((fixed / unit) ** 2, axis=axes, keepdims=True))
    wanted = jnp.ceil(jnp.log2(unit) + jnp.log2(jnp.maximum(relative, 1.0)) - math.log2(REACH))
    halvings = jnp.clip(wanted, 0, most)
    halved = x * jnp.ldexp(jnp.ones_like(halvings), -halvings.astype(int))
    divided = x / unit * (REACH / jnp.maximum(relative, 1.0))
    return jnp.where(wanted <= most, halved, divided), halvings, wanted <= most


def _most_halvings(dtype) -> int:
    return math.ceil(math.log2(2 * math.pi / (REACH * float(jnp.finfo(dtype).eps))))


def _doubled(near: PyTree, halvings: Array, double: Callable[[PyTree], PyTree]) -> PyTree:
    """`double` applied as often as `halvings` says; a branch that costs nothing where nothing was halved."""

    def step(value: PyTree, k: Array) -> tuple[PyTree, None]:
        return jax.tree.map(lambda new, old: jnp.where(k < halvings, new, old), double(value), value), None

    def far(value: PyTree) -> PyTree:
        times = jnp.arange(_most_halvings(halvings.dtype), dtype=halvings.dtype)
        return jax.lax.scan(step, value, times)[0]

    return jax.lax.cond(anywhere(halvings > 0), jax.checkpoint(far), lambda value: value, near)


def _restored(matrix: Float[Array, "... n n"], form: Float[Array, "n n"] | None) -> Float[Array, "... n n"]:
    """A Newton step towards M' form M = form, where M is so near that it helps."""
    transposed = jnp.swapaxes(matrix, -1, -2)
    eye = jnp.broadcast_to(jnp.eye(matrix.shape[-1], dtype=matrix.dtype), matrix.shape)
    inverse = transposed if form is None else product(form, product(transposed, form))
    gap = jnp.max(jnp.abs(product(inverse, matrix) - eye), axis=(-1, -2), keepdims=True)
    near = jax.lax.stop_gradient(gap) < 0.1
    safe, inverse = (jnp.where(near, one, eye) for one in (matrix, inverse))
    return jnp.where(near, 1.5 * safe - 0.5 * product(safe, product(inverse, safe)), matrix)


def exponential(matrix: Float[Array, "... n n"]) -> Float[Array, "... n n"]:
    """exp of matrices from products alone: Taylor order 12 at matrix / 2^6, then six squarings of exp - 1.

    No LAPACK call, which can hang inside a compiled program beside large products on few cores. Eleven
    products one after another; carrying exp - 1 keeps the small part's digits. Exact to rounding up to norms
    of `REACH`.
    """
    eye = jnp.eye(matrix.shape[-1], dtype=matrix.dtype)
    x = matrix / 64
    xx = product(x, x)
    xxx = product(xx, x)

    def cubic(order: int) -> Array:
        """The three terms of the series that begin at `order`, divided by x^order."""
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
    """Matrix products in full precision, also where the default is less."""
    return jnp.matmul(a, b, precision="highest")


def exponential_pair(
    matrix: Float[Array, "... n n"], reach: float = REACH
) -> tuple[Float[Array, "... n n"], Float[Array, "... n n"]]:
    """exp(matrix) and exp(-matrix), exact to rounding for norms up to `reach`.

    The even and the odd part of the series, x = matrix / 2^k, are summed apart and serve both; then come k
    squarings of exp - 1. The order and k are those with the fewest products: 18 in double precision for norms
    up to 20, where two exponentials have 22; 14 in single; 5 and 2 for norms up to 0.01.

    >>> import jax.numpy as jnp
    >>> print(exponential_pair(jnp.log(2.0) * jnp.eye(2), 1.0)[1].round(3))
    [[0.5 0. ]
     [0.  0.5]]
    """
    order, squarings = _fewest_products(reach, float(jnp.finfo(matrix.dtype).eps))
    eye = jnp.eye(matrix.shape[-1], dtype=matrix.dtype)
    x = matrix / 2**squarings
    powers = [eye, product(x, x)]
    for _ in range(_BLOCKS[order] - 1):
        powers.append(product(powers[-1], powers[1]))

    def polynomial(coefficients: list[float]) -> Array:
        """In x^2, with one more product if it has more terms than there are powers."""

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


# Highest power of x^2 that is computed, for each order of the series.
_BLOCKS = {3: 1, 5: 2, 9: 2, 13: 3}


def _fewest_products(reach: float, eps: float) -> tuple[int, int]:
    """Order and number of squarings, the remainder of the series below eps / 2."""
    products, found = {3: 2, 5: 3, 9: 5, 13: 6}, []
    for order in products:
        squarings = 0
        while (reach / 2**squarings) ** (order + 1) / math.factorial(order + 1) > eps / 2:
            squarings += 1
        found.append((products[order] + 2 * squarings, squarings, order))
    _, squarings, order = min(found)
    return order, squarings
