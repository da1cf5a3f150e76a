"""Network symmetry elements as NumPy matrices, for one-off actions on arrays of many shapes."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from symmetrax.groups._diagonal import AbstractGroup, Permutation
from symmetrax.groups._matrices import GeneralLinear, ScaledRotation
from symmetrax.symmetry._network import NetworkSymmetry, along, element_for
from symmetrax.symmetry._specs import Word, offset_of
from symmetrax.symmetry._walk import Touch


class DenseAction:
    """An element as NumPy matrices: edits have many shapes, and JAX would compile the action for each."""

    def __init__(self, symmetry: NetworkSymmetry, element: dict[str, Any]):
        self.symmetry, self.element, self.factors = symmetry, element, {}

    def __call__(self, x: np.ndarray, touches: tuple[Touch, ...]) -> np.ndarray:
        moved = x
        for touch in touches:
            moved = along(touch, moved, lambda flat, word=touch.word: self.multiply(word, flat))
        return moved.astype(x.dtype)

    def act(self, points: dict[str, np.ndarray], symmetry: NetworkSymmetry) -> dict[str, np.ndarray]:
        """Moves points by the element, including offsets, with the specs of `symmetry`."""
        moved = symmetry.visit(symmetry.shifted(points), self)
        return {
            path: (moved[path] - offset_of(symmetry.specs[path])).astype(x.dtype)
            for path, x in points.items()
        }

    def multiply(self, word: Word, x: np.ndarray) -> np.ndarray:
        """Applies a word to `x` of shape (indices, size, rest)."""
        group = self.symmetry.spaces[word.name]
        if word not in self.factors:
            element = element_for(group, self.element[word.name], word)
            match group:
                case GeneralLinear():
                    factor = element[0]
                case ScaledRotation():
                    factor = group.multiply(element, _eye(group, word))
                case _:
                    factor = element
            self.factors[word] = np.asarray(factor)
        factor = self.factors[word]
        if isinstance(group, Permutation):
            return np.take_along_axis(x, factor[..., None], axis=-2)
        x = x.astype(np.result_type(factor, x))
        return factor[..., None] * x if group.diagonal else np.matmul(factor, x)


def _eye(group: AbstractGroup, word: Word) -> Array:
    """Identity matrices for all values of the indices that remain after indexing by a word."""
    lengths = np.zeros(group.lengths)
    if word.index is not None:
        lengths = lengths[word.index if isinstance(word.index, int) else slice(*word.index)]
    return jnp.broadcast_to(jnp.eye(group.size), (*lengths.shape, group.size, group.size))
