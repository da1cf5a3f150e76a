"""Bringing one network's units into the order of another's."""

import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jaxtyping import Array, PyTree

from symmetrax.symmetry._groups import Permutation
from symmetrax.symmetry._network import NetworkSymmetry
from symmetrax.symmetry._walk import Touch


def match_units(
    symmetry: NetworkSymmetry, params: PyTree, target: PyTree, *, sweeps: int = 50
) -> dict[str, Array]:
    """The element of permutations that brings `params` nearest to `target`.

    Maximizes <act(a, params), target> over one space at a time, each an assignment problem solved exactly,
    until no space improves or `sweeps` are done: weight matching, as in git re-basin (arXiv:2209.04836). A
    permuted copy is recovered exactly; in general it finds a local optimum. Runs on the host.

    Raises ValueError if a group is not `Permutation`.

    >>> import jax, jax.numpy as jnp, symmetrax as sx
    >>> params = {"w1": jnp.arange(6.0).reshape(3, 2), "w2": jnp.ones((1, 3))}
    >>> symmetry = sx.mlp_symmetry(params, ["w1", "w2"], group=sx.Permutation)
    >>> shuffled = symmetry.act({"hidden1": jnp.array([2, 0, 1])}, params)
    >>> match_units(symmetry, shuffled, params)["hidden1"].tolist()
    [1, 2, 0]
    """
    for name, group in symmetry.spaces.items():
        if not isinstance(group, Permutation):
            raise ValueError(f"match_units permutes units, but the space {name!r} has the group {group}.")
    element = symmetry.identity()
    for _ in range(sweeps):
        changed = False
        for name, group in symmetry.spaces.items():
            gains = _gains(symmetry, symmetry.act(element | {name: group.identity()}, params), target, name)
            best = np.array([scipy.optimize.linear_sum_assignment(gain, maximize=True)[1] for gain in gains])
            order = best.reshape(element[name].shape)
            old = np.asarray(element[name]).reshape(best.shape)
            better = _score(gains, best) > _score(gains, old) * (1 + 1e-12) + 1e-300
            if better:
                element[name], changed = jnp.asarray(order), True
        if not changed:
            break
    return element


def _gains(symmetry: NetworkSymmetry, params: PyTree, target: PyTree, space: str) -> np.ndarray:
    """gains[p, i, j]: what unit j of `params` in the place of unit i of `target` adds, for every copy p."""
    size = symmetry.spaces[space].size
    total = np.zeros((int(np.prod(symmetry.spaces[space].lengths)), size, size))
    sides: list[list[np.ndarray]] = []
    for tree in (target, params):
        found: list[np.ndarray] = []

        def collect(x: Array, touches: tuple[Touch, ...], found=found) -> Array:
            for touch in touches:
                if touch.word.name == space:
                    axes = (*touch.indices, touch.axis)
                    front = np.moveaxis(np.asarray(x), axes, range(len(axes)))
                    found.append(front.reshape(len(total), size, -1))
            return x

        symmetry.visit(tree, collect)
        sides.append(found)
    for wanted, had in zip(*sides, strict=True):
        total += wanted @ np.swapaxes(had, 1, 2)
    return total


def _score(gains: np.ndarray, order: np.ndarray) -> float:
    return float(np.take_along_axis(gains, order[..., None], axis=2).sum())
