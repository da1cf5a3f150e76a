"""Multiplication of an array by a group element along one of its axes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from symmetrax.groups._diagonal import AbstractGroup
from symmetrax.symmetry._specs import Entry
from symmetrax.symmetry._walk import Binding

#: How an element multiplies arrays of shape (*per, size, rest): a group's `multiply` or `multiply_squares`.
Multiply = Callable[[PyTree, Array], Array]


def apply(
    group: AbstractGroup, element: PyTree, x: Array, binding: Binding, multiply: Multiply | None = None
) -> Array:
    """Multiplies the axis of `x` given by `binding` by the element, or by its dual or power.

    >>> import symmetrax as sx
    >>> columns = Binding(Entry("h", star=True), axis=1, indices=())
    >>> print(apply(sx.groups.PositiveDiagonal(2), jnp.array([2.0, 4.0]), jnp.ones((1, 2)), columns))
    [[0.5  0.25]]
    """
    multiply = group.multiply if multiply is None else multiply
    return along(binding, x, lambda flat: multiply(element_for(group, element, binding.entry), flat))


def element_for(group: AbstractGroup, element: PyTree, entry: Entry) -> PyTree:
    """The part of an element that an entry refers to: its dual, a power, or the elements at some indices.

    >>> import symmetrax as sx
    >>> print(element_for(sx.groups.PositiveDiagonal(2), jnp.array([2.0, 4.0]), Entry("h", power=2.0)))
    [ 4. 16.]
    """
    if entry.index is not None:
        taken = entry.index if isinstance(entry.index, int) else slice(*entry.index)
        element = jax.tree.map(lambda leaf: leaf[taken], element)
    # Indexed before the dual and the power, which then cost only what is used.
    if entry.star:
        element = group.dual(element)
    return element if entry.power == 1 else group.power(element, entry.power)


def along(binding: Binding, x: Any, multiply: Callable[[Any], Any]) -> Any:
    """Applies `multiply` with the index axes first, then the bound axis, then all other axes flattened.

    >>> along(Binding(Entry("h"), axis=1, indices=()), np.ones((2, 3)), lambda flat: np.cumsum(flat, axis=0))
    array([[1., 2., 3.],
           [1., 2., 3.]])
    """
    # With the indices first, a group multiplies all its elements by broadcasting, and a single flat last axis
    # is one matrix product instead of many.
    library = np if isinstance(x, np.ndarray) else jnp
    front = range(len(binding.indices) + 1)
    axes = (*binding.indices, binding.axis)
    apart = library.moveaxis(x, axes, front)
    flat = apart.reshape(*apart.shape[: len(axes)], -1)
    return library.moveaxis(multiply(flat).reshape(apart.shape), front, axes)
