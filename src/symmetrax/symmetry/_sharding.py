"""Support for meshes with explicit axes: leaves the sharding of intermediate results to XLA."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import PyTree


def split_like(like: PyTree, function: Callable[..., PyTree], *args: PyTree) -> PyTree:
    """Computes `function(*args)`, whose result has the structure of `like`, with the sharding of `like`.

    On explicit mesh axes (the default of `jax.make_mesh`), JAX requires a sharding for the result of every
    gather, product and reshape. Here only the sharding of the final result is specified.

    >>> import jax.numpy as jnp
    >>> print(split_like(jnp.ones(2), jnp.cumsum, jnp.ones(2)))
    [1. 2.]
    """
    mesh = _explicit_mesh((like, args))
    if mesh is None:  # nothing to specify; an extra level of tracing would cost time at every call
        return function(*args)
    ends = jax.tree.map(lambda x: NamedSharding(mesh, jax.typeof(x).sharding.spec), like)
    return jax.sharding.auto_axes(function, out_sharding=ends)(*args)


def whole(function: Callable[..., PyTree], *args: PyTree) -> PyTree:
    """Computes `function(*args)` from arrays that may be sharded, replicating the results on every device.

    >>> import jax.numpy as jnp
    >>> print(whole(jnp.sum, jnp.ones(2)))
    2.0
    """
    mesh = _explicit_mesh(args)
    if mesh is None:
        return function(*args)
    return jax.sharding.auto_axes(function, out_sharding=NamedSharding(mesh, PartitionSpec()))(*args)


def _explicit_mesh(tree: PyTree) -> Any:
    """The mesh over whose explicit axes an array of the tree is sharded, or None."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array):
            sharding = jax.typeof(leaf).sharding
            if any(axis is not None for axis in sharding.spec):
                return sharding.mesh
    return None
