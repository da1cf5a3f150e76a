"""Meshes with explicit axes: what permutes, reshapes or multiplies along split axes is left to XLA."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import PyTree


def split_like(like: PyTree, function: Callable[..., PyTree], *args: PyTree) -> PyTree:
    """`function(*args)`, whose result has the structure of `like` and is split over devices as `like` is.

    On axes that a mesh names explicitly (`jax.make_mesh` makes such by default) JAX wants to be told how the
    result of every gather, product and reshape is split. Here only the end is told.

    >>> import jax.numpy as jnp
    >>> print(split_like(jnp.ones(2), jnp.cumsum, jnp.ones(2)))
    [1. 2.]
    """
    mesh = _explicit_mesh((like, args))
    if mesh is None:
        return function(*args)
    ends = jax.tree.map(lambda x: NamedSharding(mesh, jax.typeof(x).sharding.spec), like)
    return jax.sharding.auto_axes(function, out_sharding=ends)(*args)


def whole(function: Callable[..., PyTree], *args: PyTree) -> PyTree:
    """`function(*args)`, whose results are whole on every device, from arrays that may be split.

    >>> import jax.numpy as jnp
    >>> print(whole(jnp.sum, jnp.ones(2)))
    2.0
    """
    mesh = _explicit_mesh(args)
    if mesh is None:
        return function(*args)
    return jax.sharding.auto_axes(function, out_sharding=NamedSharding(mesh, PartitionSpec()))(*args)


def _explicit_mesh(tree: PyTree) -> Any:
    """The mesh over whose explicit axes an array of the tree is split, if one is."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array):
            sharding = jax.typeof(leaf).sharding
            if any(axis is not None for axis in sharding.spec):
                return sharding.mesh
    return None
