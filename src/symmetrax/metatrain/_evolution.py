"""Meta-gradients from losses alone: evolution strategies with persistent perturbations."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from symmetrax.metatrain._estimators import (
    AbstractMetaGradient,
    Measure,
    check_measure,
    loss_weights,
    measured,
)
from symmetrax.rollout._unroll import Rollouts, advance_many, begin_many


class Particles(NamedTuple):
    """The pairs of perturbed networks in progress, and the sum of each pair's perturbations so far.

    The leading axes of the arrays in `rollouts` are the sign of the perturbation and the pair; in `sums`, the
    pair.

    >>> Particles._fields
    ('rollouts', 'sums', 'windows')
    """

    rollouts: Rollouts
    sums: PyTree
    windows: Int[Array, ""]


class PES(AbstractMetaGradient):
    """Persistent evolution strategies: meta-gradients without backpropagation, unbiased over whole rollouts.

    In every window each of `pairs` pairs draws a perturbation e ~ N(0, sigma^2 I) of the network's weights
    and takes two networks, network + e and network - e, through `truncation` more steps on its own `tasks`
    tasks. With L+ and L- their meta-losses and s the sum of the pair's perturbations in all windows so far,
    the estimate is

        gradient = mean over pairs of s (L+ - L-) / (2 sigma^2).

    Summed over the windows of a rollout, its expectation is the gradient of the whole rollout's meta-loss,
    smoothed by sigma: windows are short, but there is no truncation bias. Backpropagation through long
    rollouts explodes if the dynamics are chaotic. This estimator does not, but its variance grows with the
    number of weights and of windows. With `persistent=False` s is only the last perturbation: truncated
    evolution strategies, with the bias of truncated backpropagation. If one of a pair's losses is not finite,
    the pair contributes nothing to that window. Source: Vicol, Metz, Sohl-Dickstein 2021, Unbiased gradient
    estimation in unrolled computation graphs with persistent evolution strategies (arXiv:2112.13835).

    **Arguments:** as for every estimator, where `tasks` counts the tasks of each pair; `ratio` and `measure`
    are as in `TruncatedBPTT`. Raises ValueError for fewer than one pair, or sigma <= 0.

    >>> import jax, symmetrax as sx
    >>> estimator = PES(sx.tasks.make_family("booth"), sx.UpdateRule(), steps=20, truncation=5, pairs=4)
    >>> network = sx.learned.FlatGradientLSTM(2, width=4, key=jax.random.key(0))
    >>> carry = estimator.init(network, jax.random.key(1), None)
    >>> loss, gradient, carry = estimator.step(network, carry, jax.random.key(2), None)
    >>> loss.shape, jax.tree.structure(gradient) == jax.tree.structure(network)
    ((), True)
    """

    sigma: float | Float[Array, ""] = 0.01
    ratio: float | Float[Array, ""] = 1.0
    pairs: int = eqx.field(static=True, default=16)
    persistent: bool = eqx.field(static=True, default=True)
    measure: Measure = eqx.field(static=True, default="loss")

    def __check_init__(self):
        check_measure(self.measure)
        if self.pairs < 1 or (isinstance(self.sigma, float | int) and not self.sigma > 0):
            raise ValueError(
                f"PES needs at least one pair and sigma > 0, got pairs={self.pairs}, sigma={self.sigma}."
            )

    def init(self, network: PyTree, key: Key[Array, ""], shape: Any) -> Particles:
        def begin(key):
            return begin_many(self.make_transform, network, self.family, shape, self.tasks, key)

        # Both members of a pair start on the same tasks, so that the difference of their losses is due to the
        # perturbation alone.
        rollouts = jax.vmap(begin)(jax.random.split(key, self.pairs))
        both = jax.vmap(lambda _: rollouts)(jnp.arange(2))
        sums = jax.tree.map(lambda x: jnp.zeros((self.pairs, *x.shape), x.dtype), network)
        return Particles(both, sums, jnp.array(0))

    def step(
        self, network: PyTree, carry: Particles, key: Key[Array, ""], shape: Any
    ) -> tuple[Float[Array, ""], PyTree, Particles]:
        # The key is that of the rollout; the count makes it a new perturbation in every window.
        drawn = self._perturbations(network, jax.random.fold_in(key, carry.windows))
        sums = jax.tree.map(jnp.add, carry.sums, drawn) if self.persistent else drawn

        def window(sign, perturbation, rollouts):
            shifted = jax.tree.map(lambda x, e: x + sign.astype(x.dtype) * e, network, perturbation)
            after, trace = advance_many(
                self.make_transform, shifted, self.family, shape, rollouts, self.truncation
            )
            losses = measured(trace.loss, self.measure)
            return jnp.sum(loss_weights(self.truncation, self.ratio) * losses), after

        pairs = jax.vmap(window, in_axes=(None, 0, 0))
        losses, rollouts = jax.vmap(pairs, in_axes=(0, None, 0))(
            jnp.array([1.0, -1.0]), drawn, carry.rollouts
        )
        # A pair with a single finite loss says nothing about the slope, so neither of the two is used.
        counted = jnp.all(jnp.isfinite(losses), axis=0)
        gap = jnp.where(counted, losses[0] - losses[1], 0.0) / (2 * self.sigma**2 * self.pairs)
        # The sum of perturbations, not the last one, credits a perturbation with its effect on later windows:
        # this removes the bias of truncation.
        gradient = jax.tree.map(lambda s: jnp.tensordot(gap.astype(s.dtype), s, 1), sums)
        loss = jnp.sum(jnp.where(counted, losses, 0.0)) / (2 * jnp.sum(counted))
        return loss, gradient, Particles(rollouts, sums, carry.windows + 1)

    def _perturbations(self, network: PyTree, key: Key[Array, ""]) -> PyTree:
        leaves, structure = jax.tree.flatten(network)
        keys = jax.random.split(key, len(leaves))
        drawn = [
            self.sigma * jax.random.normal(k, (self.pairs, *x.shape), x.dtype)
            for k, x in zip(keys, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, drawn)
