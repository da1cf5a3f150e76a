"""Random streams: what is trained and tuned on, and what is reported, never meet."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key


@dataclasses.dataclass(frozen=True)
class Streams:
    """Disjoint random streams, all from one seed: training tasks, tuning tasks, and unseen tasks per seed.

    >>> Streams.of(0, seeds=3).test.shape
    (3,)
    """

    train: Key[Array, ""]
    tune: Key[Array, ""]
    test: Key[Array, " seeds"]

    @classmethod
    def of(cls, seed: int, seeds: int) -> "Streams":
        """The streams of an experiment with this many meta-seeds."""
        return cls(*_keys(jax.random.key(seed), seeds))


@functools.partial(jax.jit, static_argnames="seeds")
def _keys(key: Key[Array, ""], seeds: int) -> tuple[Key[Array, ""], Key[Array, ""], Key[Array, " seeds"]]:
    train, tune, test = jax.random.split(key, 3)
    return train, tune, jax.vmap(lambda i: jax.random.fold_in(test, i))(jnp.arange(seeds))
