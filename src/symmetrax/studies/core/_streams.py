"""Random streams: what is trained and tuned on, and what is reported, never meet."""

import dataclasses

import jax
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
        train, tune, test = jax.random.split(jax.random.key(seed), 3)
        return cls(train, tune, jax.vmap(lambda i: jax.random.fold_in(test, i))(jax.numpy.arange(seeds)))
