"""Second moments of gradients in the spaces of a symmetry, and the rotations that diagonalize them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from symmetrax._tree import replicated, widened
from symmetrax.groups._diagonal import AbstractGroup
from symmetrax.search._energies import gram, placed
from symmetrax.symmetry._network import NetworkSymmetry
from symmetrax.symmetry._walk import Binding


def rotating(symmetry: NetworkSymmetry) -> dict[str, AbstractGroup]:
    """The spaces whose group contains rotations.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> symmetry = sx.models.low_rank_symmetry({"A": jnp.ones((2, 6)), "B": jnp.ones((5, 2))}, "A", "B")
    >>> list(rotating(symmetry))
    ['rank']
    """
    return {name: group for name, group in symmetry.spaces.items() if group.rotates}


def second_moments(symmetry: NetworkSymmetry, gradient: PyTree) -> dict[str, Float[Array, "sides *per n n"]]:
    """Second moments of a gradient in every space with rotations, each array weighted by its entries.

    Groups that are not compact have two: of the axes on which the group acts, and of those on which its dual
    does. Both together have trace 1.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> params = {"a": jnp.eye(2), "b": jnp.eye(2)}
    >>> print(second_moments(sx.models.low_rank_symmetry(params, "a", "b"), params)["rank"][0])
    [[0.25 0.  ]
     [0.   0.25]]
    """
    groups = rotating(symmetry)
    sums: dict[str, Any] = {}
    entries = dict.fromkeys(groups, 0)

    def collect(x: Array, bindings: tuple[Binding, ...]) -> Array:
        for binding in bindings:
            name = binding.entry.name
            # Axes that move with a power of the element turn by other angles than the basis.
            if name not in groups or binding.entry.power != 1:
                continue
            moment = gram(_unit(replicated(x)), binding)
            trace = jnp.trace(moment, axis1=-2, axis2=-1)[..., None, None]
            share = placed(x.size * moment / jnp.where(trace > 0, trace, 1.0), binding, groups[name].lengths)
            side = int(sides(groups[name]) == 2 and binding.exponent < 0)
            parts = sums.setdefault(name, [jnp.zeros_like(share) for _ in range(sides(groups[name]))])
            parts[side] = parts[side] + share
            entries[name] += x.size
        return x

    symmetry.visit(eqx.filter(gradient, eqx.is_inexact_array), collect)
    # A space may act on no array of this tree (`symmetry.within`).
    return {
        name: jnp.stack(sums[name]) / max(entries[name], 1)
        if name in sums
        else jnp.zeros((sides(group), *group.lengths, group.size, group.size))
        for name, group in groups.items()
    }


def diagonalized(symmetry: NetworkSymmetry, moments: Mapping[str, Float[Array, "sides *per n n"]]) -> dict:
    """The rotations of the spaces to the eigenvectors of their moments, summed over sides.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> symmetry = sx.models.low_rank_symmetry({"A": jnp.ones((2, 6)), "B": jnp.ones((5, 2))}, "A", "B")
    >>> q, _ = diagonalized(symmetry, {"rank": jnp.array([[[2.0, 1.0], [1.0, 2.0]]])})["rank"]
    >>> print(q.round(3))
    [[ 0.707  0.707]
     [-0.707  0.707]]
    """
    alike: dict[AbstractGroup, list[str]] = {}
    for name in moments:
        # All copies of one group are one batch: a single loop in the program, for any number of layers.
        alike.setdefault(dataclasses.replace(symmetry.spaces[name], per=()), []).append(name)
    rotations = {}
    for group, names in alike.items():
        flat = [moments[name].sum(axis=0).reshape(-1, group.size, group.size) for name in names]
        counts = [len(part) for part in flat]
        together = dataclasses.replace(group, per={"copy": sum(counts)})
        elements = together.diagonalizing(jnp.concatenate(flat))
        start = 0
        for name, count in zip(names, counts, strict=True):
            lengths, part = symmetry.spaces[name].lengths, slice(start, start + count)
            rotations[name] = jax.tree.map(
                lambda leaf, p=part, shape=lengths: leaf[p].reshape(*shape, *leaf.shape[1:]), elements
            )
            start += count
    return rotations


def carried(group: AbstractGroup, element: PyTree, moments: Array) -> Array:
    """The second moments of gradients after their space moved by `element`, with the same traces.

    >>> import symmetrax as sx
    >>> quarter = jnp.array([[0.0, -1.0], [1.0, 0.0]])
    >>> print(jnp.diag(carried(sx.groups.Orthogonal(2), quarter, jnp.diag(jnp.array([3.0, 1.0]))[None])[0]))
    [1. 3.]
    """
    # Gradients move with the dual of what moves the parameters.
    moved = []
    for moment, a in zip(moments, (group.dual(element), element), strict=False):
        half = group.multiply(a, moment)
        there = group.multiply(a, jnp.swapaxes(half, -1, -2))
        before, after = (jnp.trace(m, axis1=-2, axis2=-1)[..., None, None] for m in (moment, there))
        moved.append(there * jnp.where(after > 0, before / jnp.where(after > 0, after, 1.0), 1.0))
    return jnp.stack(moved).astype(moments.dtype)


def sides(group: AbstractGroup) -> int:
    """Moments kept for a space: rotations move gradients of both sides alike, other elements do not.

    >>> import symmetrax as sx
    >>> sides(sx.groups.Orthogonal(2)), sides(sx.groups.GeneralLinear(2))
    (1, 2)
    """
    return 1 if group.compact else 2


def _unit(x: Array) -> Array:
    """An array divided by its largest entry, so that squares neither overflow nor underflow."""
    wide = widened(x)
    largest = jnp.max(jnp.abs(wide), initial=0.0)
    return wide / jnp.where(largest > 0, largest, 1.0)
