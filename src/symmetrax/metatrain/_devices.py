"""Spreads independent work, such as the seeds of an experiment, over the available devices."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree


def spread(function: Callable[[Any], PyTree], inputs: PyTree) -> PyTree:
    """Applies `function` to every entry of the first axis of `inputs`, and stacks the results.

    On CPUs each device maps over its entries sequentially, which keeps the weights of one network in a core's
    cache; the number of devices used divides the number of entries. On accelerators all entries of a device
    run at once.

    >>> import jax.numpy as jnp
    >>> print(spread(lambda x: x**2, jnp.arange(4.0)))
    [0. 1. 4. 9.]
    """
    on_cpu = jax.default_backend() == "cpu"
    mapped = (lambda x: jax.lax.map(function, x)) if on_cpu else jax.vmap(function)
    along = _along(inputs)
    if along is None:
        return mapped(inputs)
    # `check_vma` would require every loop inside `function` to declare how its carry varies over devices.
    return jax.shard_map(mapped, mesh=along.mesh, in_specs=along.spec, out_specs=along.spec, check_vma=False)(
        inputs
    )


def place(inputs: PyTree) -> PyTree:
    """Puts every entry of the first axis on the device where `spread` uses it, so that programs compile once.

    >>> import jax.numpy as jnp
    >>> print(place(jnp.arange(4.0)))
    [0. 1. 2. 3.]
    """
    along = _along(inputs)
    return inputs if along is None else jax.device_put(inputs, along)


def _along(inputs: PyTree) -> jax.sharding.NamedSharding | None:
    """Returns how the first axis is sharded, or None for a single device."""
    # A prime number of entries uses one device: padding would compute results that nobody asked for.
    entries = jax.tree.leaves(inputs)[0].shape[0]
    devices = max(n for n in range(1, jax.device_count() + 1) if entries % n == 0)
    if devices == 1:
        return None
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("entries",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("entries"))
