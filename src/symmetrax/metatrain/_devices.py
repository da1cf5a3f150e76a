"""Independent work, such as the seeds of an experiment, spread over the devices there are."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree


def spread(function: Callable[[Any], PyTree], inputs: PyTree) -> PyTree:
    """`function` on every entry of the first axis of `inputs`, stacked.

    On CPUs the entries are mapped one after another, which keeps the weights of one network in a core's
    cache, on each of as many devices as divide their number; on accelerators all at once.
    """
    on_cpu = jax.default_backend() == "cpu"
    mapped = (lambda x: jax.lax.map(function, x)) if on_cpu else jax.vmap(function)
    along = _along(inputs)
    if along is None:
        return mapped(inputs)
    return jax.shard_map(mapped, mesh=along.mesh, in_specs=along.spec, out_specs=along.spec, check_vma=False)(
        inputs
    )


def place(inputs: PyTree) -> PyTree:
    """Put every entry of the first axis where `spread` will work on it, so that programs compile once."""
    along = _along(inputs)
    return inputs if along is None else jax.device_put(inputs, along)


def _along(inputs: PyTree) -> jax.sharding.NamedSharding | None:
    """How the first axis is cut, or None for a single device."""
    entries = jax.tree.leaves(inputs)[0].shape[0]
    devices = max(n for n in range(1, jax.device_count() + 1) if entries % n == 0)
    if devices == 1:
        return None
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("entries",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("entries"))
