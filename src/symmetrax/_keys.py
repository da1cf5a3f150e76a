"""Validation of random keys at the public interface."""

import jax
import jax.numpy as jnp
import numpy as np


def check_key(key: object) -> None:
    """Raises TypeError for anything that is not a key of `jax.random`, such as a seed.

    >>> check_key(0)
    Traceback (most recent call last):
    TypeError: `key` must be a key of jax.random, got 0 (int): write jax.random.key(0).
    """
    if isinstance(key, jax.Array | np.ndarray):
        typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        if typed or (key.dtype == np.uint32 and key.ndim > 0):  # legacy keys are plain arrays
            return
    seed = key if isinstance(key, int) and not isinstance(key, bool) else 0
    raise TypeError(
        f"`key` must be a key of jax.random, got {key!r} ({type(key).__name__}): "
        f"write jax.random.key({seed})."
    )
