"""Network symmetry elements as NumPy matrices, for one-off actions on arrays of many shapes."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from symmetrax.groups._diagonal import AbstractGroup, Permutation
from symmetrax.groups._matrices import GeneralLinear, ScaledRotation
from symmetrax.symmetry._along import along, element_for
from symmetrax.symmetry._network import NetworkSymmetry
from symmetrax.symmetry._specs import Entry, offset_of
from symmetrax.symmetry._walk import Binding, walk


class DenseAction:
    """An element as NumPy matrices: edits have many shapes, and JAX would compile the action for each.

    >>> import symmetrax as sx
    >>> symmetry = sx.NetworkSymmetry({"h": sx.groups.PositiveDiagonal(2)}, {"w": "h"}, {"w": np.ones(2)})
    >>> DenseAction(symmetry, {"h": jnp.array([2.0, 3.0])}).act({"w": np.ones(2)}, symmetry)
    {'w': array([2., 3.])}
    """

    def __init__(self, symmetry: NetworkSymmetry, element: dict[str, Any]):
        self.symmetry, self.element, self.factors = symmetry, element, {}

    def __call__(self, x: np.ndarray, bindings: tuple[Binding, ...]) -> np.ndarray:
        moved = x
        for binding in bindings:
            moved = along(binding, moved, lambda flat, entry=binding.entry: self.multiply(entry, flat))
        return moved.astype(x.dtype)

    def act(self, points: dict[str, np.ndarray], symmetry: NetworkSymmetry) -> dict[str, np.ndarray]:
        """Moves points by the element, including offsets, with the specs of `symmetry`."""
        moved = symmetry.visit(symmetry.shifted(points), self)
        return {
            path: (moved[path] - offset_of(symmetry.specs[path])).astype(x.dtype)
            for path, x in points.items()
        }

    def move(self, path: str, x: np.ndarray) -> np.ndarray:
        """Moves one array by the element, with its offset, as the specs of the symmetry say."""
        offset = offset_of(spec := self.symmetry.specs[path])
        return (walk(spec, x + offset if offset else x, self.symmetry.spaces, self) - offset).astype(x.dtype)

    def carry(self, path: str, x: np.ndarray) -> np.ndarray:
        """Moves a displacement of one array or, if the element is a dual, a gradient."""
        return walk(self.symmetry.specs[path], x, self.symmetry.spaces, self)

    def multiply(self, entry: Entry, x: np.ndarray) -> np.ndarray:
        """Multiplies `x` of shape (indices, size, rest) as an entry says."""
        group = self.symmetry.spaces[entry.name]
        if entry not in self.factors:  # the conversion to NumPy waits for JAX, so it is done once per entry
            element = element_for(group, self.element[entry.name], entry)
            match group:
                case GeneralLinear():
                    factor = element[0]
                case ScaledRotation():
                    factor = group.multiply(element, _eye(group, entry))
                case _:
                    factor = element
            self.factors[entry] = np.asarray(factor)
        factor = self.factors[entry]
        if isinstance(group, Permutation):
            if factor.size == group.size:  # one permutation: whole rows are copied
                return np.take(x, np.ravel(factor), axis=-2)
            return np.take_along_axis(x, factor[..., None], axis=-2)
        x = x.astype(np.result_type(factor, x))
        return factor[..., None] * x if group.diagonal else np.matmul(factor, x)


def _eye(group: AbstractGroup, entry: Entry) -> Array:
    """Identity matrices for all values of the indices that remain after indexing by an entry."""
    lengths = np.zeros(group.lengths)
    if entry.index is not None:
        lengths = lengths[entry.index if isinstance(entry.index, int) else slice(*entry.index)]
    return jnp.broadcast_to(jnp.eye(group.size), (*lengths.shape, group.size, group.size))
