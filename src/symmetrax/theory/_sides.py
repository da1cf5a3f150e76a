"""The result type of the functions in this package, checks of their arguments, and shared formulas."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from symmetrax._tree import check_finite, safe_norm


class Sides(NamedTuple):
    """Both sides of a statement, as numbers, and whether its conditions are met.

    `left` is the measured value and `right` the value or bound that the statement predicts; the function's
    docstring says whether they are equal or which is larger, and under which condition. `applies` is that
    condition: where it is False, and where a side is not finite, the statement says nothing. All three have
    the shape of the statement, usually ().

    >>> import jax.numpy as jnp
    >>> sides = Sides(jnp.array(1.0), jnp.array(2.0), jnp.array(True))
    >>> bool(sides.left <= sides.right)
    True
    """

    left: Float[Array, "*shape"]
    right: Float[Array, "*shape"]
    applies: Bool[Array, "*shape"]


def check_numbers(name: str, value: PyTree) -> None:
    """Raises ValueError for concrete numbers that are not finite.

    >>> check_numbers("x", jnp.array([1.0, jnp.nan]))
    Traceback (most recent call last):
    ValueError: Cannot use as `x` a point that is not finite...
    """
    check_finite(value, f"use as `{name}`")


def judged(left: Array, right: Array, applies: Array) -> Sides:
    """Both sides of a statement, which does not apply where one of them is not finite.

    >>> bool(judged(jnp.array(1.0), jnp.array(jnp.inf), jnp.array(True)).applies)
    False
    """
    return Sides(left, right, applies & jnp.isfinite(left) & jnp.isfinite(right))


def projection(vector: Float[Array, " n"], onto: Float[Array, " n"]) -> Float[Array, " n"]:
    """The part of `vector` along `onto`; zero if `onto` is zero.

    >>> print(projection(jnp.array([1.0, 2.0]), jnp.array([3.0, 0.0])))
    [1. 0.]
    """
    # Normalized first, so that no square overflows.
    unit = over(onto, safe_norm(onto))
    return (vector @ unit) * unit


def over(top: Array, bottom: Float[Array, ""]) -> Array:
    """`top` / `bottom`, and zero where the bottom is zero.

    >>> print(over(jnp.array(1.0), jnp.array(0.0)), over(jnp.array(1.0), jnp.array(4.0)))
    0.0 0.25
    """
    # The inner `where` keeps the derivative finite in the branch that is not taken.
    zero = bottom == 0
    return jnp.where(zero, 0.0, top / jnp.where(zero, 1.0, bottom))
