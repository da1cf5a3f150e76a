"""Imitation: in some rollouts a learned optimizer observes an expert and learns to propose its steps."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key, PyTree

from symmetrax._tree import select, squared_norm
from symmetrax.metatrain._estimators import AbstractMetaGradient, TruncatedBPTT, loss_weights
from symmetrax.rollout._unroll import Rollouts, advance_many, begin_many
from symmetrax.tasks._base import AbstractTask

#: The expert used by the public code.
ADAM = optax.adam(0.01)


class _Watching(NamedTuple):
    """The states of a learner and an expert, and a comparison of their last steps.

    `apart` is the squared distance between the two steps, `length` the squared length of the expert's step.
    """

    learner: optax.OptState
    expert: optax.OptState
    apart: Float[Array, ""]
    length: Float[Array, ""]


class Imitation(AbstractMetaGradient):
    """Wraps `estimator` so that a rollout imitates `expert` with probability `share`.

    In such a rollout the parameters follow the expert's steps e_t; the learner observes the gradients along
    that path and proposes steps u_t, updating its recurrent state as usual. The meta-loss of a window is
        weight / 2 * mean over tasks of sum_t |u_t - e_t|^2 / sum_t |e_t|^2.
    In all other rollouts it is the meta-loss of `estimator`. The rollout's key determines whether it
    imitates, so arms that share a key imitate in the same rollouts. The expert, like every function, is not
    part of a checkpoint's identity. Source: Chen et al., Training stronger baselines for learning to
    optimize, 2020 (arXiv:2010.09089), with Adam at rate 0.01 and share 0.3. Its public code (Open-L2O) uses
    the mean of |u_t - e_t|^2 / 2 over coordinates, without dividing by the expert's, and a separate outer
    optimizer; the division brings both kinds of rollout to the same scale, so that they can share an outer
    optimizer. In that code, too, the expert determines the path; the learner never sees where its own steps
    would lead.

    **Arguments:** `expert` is any optax transformation; `weight` scales the meta-loss of imitating rollouts.
    Raises ValueError for a share outside [0, 1] or a negative weight.

    >>> import jax, symmetrax as sx
    >>> family = sx.tasks.make_family("booth")
    >>> usual = sx.metatrain.TruncatedBPTT(family, sx.UpdateRule(), steps=20, truncation=5, tasks=8)
    >>> estimator = Imitation(usual, share=1.0)
    >>> network = sx.learned.CoordinatewiseLSTM(width=4, key=jax.random.key(0))
    >>> carry = estimator.init(network, jax.random.key(1), None)
    >>> loss, gradient, carry = estimator.step(network, carry, jax.random.key(2), None)
    >>> loss.shape, jax.tree.structure(gradient) == jax.tree.structure(network)
    ((), True)
    """

    estimator: TruncatedBPTT = eqx.field(kw_only=True)
    expert: optax.GradientTransformation = eqx.field(kw_only=True)
    share: float | int | Float[Array, ""] = eqx.field(kw_only=True)
    weight: float | int | Float[Array, ""] = eqx.field(kw_only=True)

    def __init__(
        self,
        estimator: TruncatedBPTT,
        expert: optax.GradientTransformation = ADAM,
        *,
        share: float | int | Float[Array, ""] = 0.3,
        weight: float | int | Float[Array, ""] = 1.0,
    ):
        if isinstance(share, float | int) and not 0 <= share <= 1:
            raise ValueError(f"Imitation needs a share of rollouts between 0 and 1, got share={share}.")
        if isinstance(weight, float | int) and not weight >= 0:
            raise ValueError(f"Imitation needs a weight of at least 0, got weight={weight}.")
        self.family, self.make_transform = estimator.family, estimator.make_transform
        self.steps, self.truncation, self.tasks = estimator.steps, estimator.truncation, estimator.tasks
        self.estimator, self.expert, self.share, self.weight = estimator, expert, share, weight

    def init(self, network: PyTree, key: Key[Array, ""], shape: Any) -> tuple[Rollouts, Bool[Array, ""]]:
        # Derived from the key beside the one that draws the tasks, which are therefore those of `estimator`.
        imitates = jax.random.bernoulli(jax.random.fold_in(key, 0), self.share)
        rollouts = begin_many(self._beside(imitates), network, self.family, shape, self.tasks, key)
        return rollouts, imitates

    def step(
        self, network: PyTree, carry: tuple[Rollouts, Bool[Array, ""]], key: Key[Array, ""], shape: Any
    ) -> tuple[Float[Array, ""], PyTree, tuple[Rollouts, Bool[Array, ""]]]:
        del key  # every random draw of a rollout follows from the key of `init`
        rollouts, imitates = carry

        def meta_loss(network):
            after, trace = advance_many(
                self._beside(imitates),
                network,
                self.family,
                shape,
                rollouts,
                self.truncation,
                remat=self.estimator.remat,
                watch=("apart", "length"),
            )
            losses = jnp.mean(trace.loss.reshape(self.truncation, -1), axis=1)
            usual = jnp.sum(loss_weights(self.truncation, self.estimator.ratio) * losses)
            apart, length = (jnp.sum(trace.watched[name], axis=0) for name in ("apart", "length"))
            # There is nothing to imitate if the gradient was zero throughout the window.
            no_step = length == 0
            distance = jnp.mean(jnp.where(no_step, 0.0, apart) / jnp.where(no_step, 1.0, length))
            return jnp.where(imitates, 0.5 * self.weight * distance, usual), after

        (loss, after), gradient = eqx.filter_value_and_grad(meta_loss, has_aux=True)(network)
        return loss, gradient, (jax.lax.stop_gradient(after), imitates)

    def _beside(self, imitates: Bool[Array, ""]):
        """Returns a `make_transform` whose steps are the expert's if `imitates`, else the learner's."""

        def make(network: Any, task: AbstractTask) -> optax.GradientTransformationExtraArgs:
            learner = self.make_transform(network, task)
            return _watching(learner, self.expert, imitates)

        return make


def _watching(
    learner: optax.GradientTransformation, expert: optax.GradientTransformation, imitates: Bool[Array, ""]
) -> optax.GradientTransformationExtraArgs:
    """Feeds every gradient to both optimizers; takes the expert's step if `imitates`, else the learner's.

    >>> import jax.numpy as jnp
    >>> both = _watching(optax.sgd(0.1), optax.sgd(0.3), jnp.array(True))
    >>> step, state = both.update(jnp.array(1.0), both.init(jnp.array(1.0)), jnp.array(1.0))
    >>> round(float(step), 6), round(float(state.apart), 6)
    (-0.3, 0.04)
    """
    learner, expert = optax.with_extra_args_support(learner), optax.with_extra_args_support(expert)

    def init(params: PyTree) -> _Watching:
        return _Watching(learner.init(params), expert.init(params), jnp.zeros(()), jnp.zeros(()))

    def update(updates, state, params=None, **extra):
        ours, learned = learner.update(updates, state.learner, params, **extra)
        # The expert is a constant, so that no derivative of it, however expensive, is computed.
        shown, known = jax.lax.stop_gradient(expert.update(updates, state.expert, params, **extra))
        apart = squared_norm(optax.tree.sub(ours, shown))
        after = _Watching(learned, known, apart, squared_norm(shown))
        return select(imitates, shown, ours), after

    return optax.GradientTransformationExtraArgs(init, update)
