"""Random group elements drawn in NumPy: a search draws many shapes, and JAX would compile for each."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from symmetrax.groups._diagonal import AbstractGroup, Permutation, PositiveDiagonal, SignDiagonal
from symmetrax.groups._matrices import GeneralLinear, Orthogonal, ScaledRotation


def draw(group: AbstractGroup, rng: np.random.Generator) -> Any:
    """A random element, well-conditioned and not the identity, as `group.sample` draws it.

    >>> import symmetrax as sx
    >>> element = draw(sx.groups.Orthogonal(4, fix="mean"), np.random.default_rng(0))
    >>> np.allclose(element @ element.T, np.eye(4)), np.allclose(element @ np.ones(4), 1)
    (True, True)
    """
    shape = (*group.lengths, group.size)
    match group:
        case GeneralLinear():
            left, right = rotations(group.lengths, group.size, rng), rotations(group.lengths, group.size, rng)
            stretch = np.exp(rng.uniform(-1, 1, shape))[..., None, :]
            return left * stretch @ right, left / stretch @ right
        case Orthogonal(size=1):
            return -np.ones((*shape, 1))
        case Orthogonal(fix=None):
            return rotations(group.lengths, group.size, rng)
        case Orthogonal():
            ones = np.full((group.size, 1), group.size**-0.5)
            # A basis of the complement of the vector of ones, in which any orthogonal matrix may act.
            basis = np.linalg.qr(np.concatenate([ones, np.eye(group.size)[:, 1:]], axis=1))[0][:, 1:]
            return basis @ rotations(group.lengths, group.size - 1, rng) @ basis.T + ones @ ones.T
        case ScaledRotation():
            angle = rng.uniform(-np.pi, np.pi, group.lengths)
            scale = np.ones(group.lengths) if group.unit else np.exp(rng.uniform(-1, 1, group.lengths))
            return scale * np.cos(angle), scale * np.sin(angle)
        case PositiveDiagonal(dyadic=False):
            return np.exp(rng.uniform(-1, 1, shape))
        case SignDiagonal():
            return _varied(rng.choice([-1.0, 1.0], shape), np.ones(group.size), lambda x: [-x[0], *x[1:]])
        case Permutation():
            shuffled = np.argsort(rng.uniform(size=shape), axis=-1)
            return _varied(shuffled, np.arange(group.size), lambda x: np.roll(x, 1))
    return jax.tree.map(np.asarray, group.sample(jax.random.key(int(rng.integers(2**31)))))


def rotations(lengths: tuple[int, ...], size: int, rng: np.random.Generator) -> np.ndarray:
    """Orthogonal matrices, uniformly distributed.

    >>> rotations((3,), 2, np.random.default_rng(0)).shape
    (3, 2, 2)
    """
    q, r = np.linalg.qr(rng.standard_normal((*lengths, size, size)))
    # The signs of the diagonal make the factorization unique, and with that the distribution uniform.
    return q * np.sign(np.diagonal(r, axis1=-2, axis2=-1))[..., None, :]


def _varied(elements: np.ndarray, identity: np.ndarray, change: Callable[[np.ndarray], Any]) -> np.ndarray:
    """Changes the first element if it is the identity, and the next along every axis if it is equal to it."""
    origin = (0,) * (elements.ndim - 1)
    steps = [(*origin[:k], 1, *origin[k + 1 :]) for k, n in enumerate(elements.shape[:-1]) if n > 1]
    for place, other in ((origin, identity), *((step, origin) for step in steps)):
        unlike = elements[other] if isinstance(other, tuple) else other
        if np.array_equal(elements[place], unlike):
            elements[place] = change(elements[place])
    return elements
