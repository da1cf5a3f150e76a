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
    entries = jax.tree.leaves(inputs)[0].shape[0]
    on_cpu = jax.default_backend() == "cpu"
    mapped = (lambda x: jax.lax.map(function, x)) if on_cpu else jax.vmap(function)
    devices = max(n for n in range(1, jax.device_count() + 1) if entries % n == 0)
    if devices == 1:
        return mapped(inputs)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("entries",))
    along = jax.sharding.PartitionSpec("entries")
    return jax.shard_map(mapped, mesh=mesh, in_specs=along, out_specs=along, check_vma=False)(inputs)
