"""Random horizons, so that an optimizer does not learn by heart where a rollout ends."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from symmetrax._tree import select
from symmetrax.metatrain._estimators import AbstractMetaGradient


class Underway(NamedTuple):
    """The carry of an estimator, the windows its tasks have left, and the windows completed.

    >>> Underway._fields
    ('carry', 'left', 'windows')
    """

    carry: PyTree
    left: Int[Array, ""]
    windows: Int[Array, ""]


class RandomHorizon(AbstractMetaGradient):
    """Wraps `estimator` so that tasks end after a random number of windows and fresh ones begin.

    Whenever tasks begin, a horizon is drawn uniformly from `shortest` to `estimator.windows` windows. The
    number of windows in an outer step does not change. The network therefore sees a mix of early steps and
    long rollouts, and the outer optimizer steps at different ages of the tasks.

    Raises ValueError if `shortest` is not between 1 and the number of windows in a rollout.

    >>> import jax, symmetrax as sx
    >>> family = sx.tasks.make_family("booth")
    >>> usual = sx.metatrain.TruncatedBPTT(family, sx.UpdateRule(), steps=40, truncation=5, tasks=8)
    >>> RandomHorizon(usual, shortest=2).windows
    8
    """

    estimator: AbstractMetaGradient = eqx.field(kw_only=True)
    shortest: int = eqx.field(static=True, kw_only=True)

    def __init__(self, estimator: AbstractMetaGradient, *, shortest: int = 1):
        if not 1 <= shortest <= estimator.windows:
            raise ValueError(
                f"`shortest` must be from 1 to {estimator.windows}, the number of windows in a rollout, got "
                f"{shortest}."
            )
        self.family, self.make_transform = estimator.family, estimator.make_transform
        self.steps, self.truncation, self.tasks = estimator.steps, estimator.truncation, estimator.tasks
        self.estimator, self.shortest = estimator, shortest

    def init(self, network: PyTree, key: Key[Array, ""], shape: Any) -> Underway:
        return Underway(*self._fresh(network, key, jnp.array(0), shape), jnp.array(0))

    def step(
        self, network: PyTree, carry: Underway, key: Key[Array, ""], shape: Any
    ) -> tuple[Float[Array, ""], PyTree, Underway]:
        # Fresh tasks are drawn in every window and mostly discarded: a draw is cheap compared with a window,
        # and under `vmap` a condition would compute both branches anyway.
        fresh = self._fresh(network, key, carry.windows, shape)
        now, left = select(carry.left == 0, fresh, (carry.carry, carry.left))
        loss, gradient, after = self.estimator.step(network, now, key, shape)
        return loss, gradient, Underway(after, left - 1, carry.windows + 1)

    def _fresh(
        self, network: PyTree, key: Key[Array, ""], windows: Int[Array, ""], shape: Any
    ) -> tuple[PyTree, Int[Array, ""]]:
        """Draws fresh tasks, different for every number of windows completed, and their horizon."""
        draw, length = jax.random.split(jax.random.fold_in(key, windows))
        left = jax.random.randint(length, (), self.shortest, self.windows + 1)
        return self.estimator.init(network, draw, shape), left
