"""The result of a proposition's function, and checks on its arguments."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from symmetrax._tree import check_finite


class Sides(NamedTuple):
    """Both sides of a statement, as numbers, and whether its conditions are met.

    `left` is measured and `right` is what the statement says of it; the function's docstring says whether
    they are equal or which is larger, and under which condition. `applies` is that condition: where it is
    False the statement promises nothing; so it is where a side is not finite. All have the shape of the
    statement, most often ().

    >>> import jax.numpy as jnp
    >>> sides = Sides(jnp.array(1.0), jnp.array(2.0), jnp.array(True))
    >>> bool(sides.left <= sides.right)
    True
    """

    left: Float[Array, "*shape"]
    right: Float[Array, "*shape"]
    applies: Bool[Array, "*shape"]


def check_numbers(name: str, value: PyTree) -> None:
    """Raise ValueError for concrete numbers that are not finite."""
    check_finite(value, f"use as `{name}`")


def judged(left: Array, right: Array, applies: Array) -> Sides:
    """Both sides; where one is not finite nothing applies."""
    return Sides(left, right, applies & jnp.isfinite(left) & jnp.isfinite(right))
