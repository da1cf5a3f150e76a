"""Meta-gradient estimators: gradients of a rollout's loss with respect to the optimizer's weights."""

from abc import abstractmethod
from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from symmetrax.learned._products import collect, defer, deferrable, empty_slots
from symmetrax.rollout._unroll import MakeTransform, Rollouts, advance_many, begin_many
from symmetrax.tasks._base import AbstractTaskFamily


def loss_weights(truncation: int, ratio: float | Float[Array, ""] = 1.0) -> Float[Array, " truncation"]:
    """Weights w_t of the losses in a window, proportional to ratio^(truncation - 1 - t), with sum 1.

    `ratio` 1 weighs all steps equally; below 1 the last steps count most. 0 keeps only the last step.

    >>> print(loss_weights(3, 0.5))
    [0.14285715 0.2857143  0.5714286 ]
    """
    # 0^0 = 1 in JAX, so that ratio 0 keeps the last step.
    powers = jnp.asarray(ratio, float) ** jnp.arange(truncation - 1, -1, -1)
    return powers / jnp.sum(powers)


#: Whether a meta-loss averages the losses of the tasks or their logarithms.
Measure = Literal["loss", "log"]

# Losses are clamped to this value before their logarithm is taken: a task that is solved exactly would
# otherwise have an infinite meta-loss.
LEAST_LOSS = 1e-30


def measured(losses: Float[Array, "steps *tasks"], measure: Measure) -> Float[Array, " steps"]:
    """Averages the losses, or their logarithms, over tasks.

    >>> print(measured(jnp.array([[1.0, jnp.e**2]]), "log"))
    [1.]
    """
    if measure == "log":
        losses = jnp.log(jnp.maximum(losses, LEAST_LOSS))
    return jnp.mean(losses.reshape(len(losses), -1), axis=1)


def check_measure(measure: str) -> None:
    """Raises ValueError for an unknown measure.

    >>> check_measure("mean")
    Traceback (most recent call last):
    ValueError: `measure` must be one of loss, log, got 'mean'.
    """
    if measure not in get_args(Measure):
        raise ValueError(f"`measure` must be one of {', '.join(get_args(Measure))}, got {measure!r}.")


class AbstractMetaGradient(eqx.Module):
    """Base class of meta-gradient estimators, which work window by window.

    `init` draws fresh tasks; each `step` advances them by one window and returns the window's meta-loss, an
    estimate of its gradient with respect to the network, and the carry for the next window. A rollout has
    `windows` windows of `truncation` steps, `steps` in all, on `tasks` tasks of `family`, which are optimized
    by `make_transform(network, task)`. Raises ValueError if `truncation` does not divide `steps`.

    >>> import symmetrax as sx
    >>> family = sx.tasks.make_family("booth")
    >>> estimator = sx.metatrain.TruncatedBPTT(family, sx.UpdateRule(), steps=20, truncation=5)
    >>> isinstance(estimator, sx.metatrain.AbstractMetaGradient), estimator.windows
    (True, 4)
    """

    family: AbstractTaskFamily
    make_transform: MakeTransform
    steps: int = eqx.field(static=True)
    truncation: int = eqx.field(static=True)
    tasks: int = eqx.field(static=True, default=1)

    def __check_init__(self):
        if min(self.steps, self.truncation, self.tasks) < 1 or self.steps % self.truncation:
            raise ValueError(
                f"{type(self).__name__} needs `steps`, `truncation` and `tasks` of at least 1, and a "
                f"`truncation` that divides `steps`, got steps={self.steps}, truncation={self.truncation}, "
                f"tasks={self.tasks}."
            )

    @property
    def windows(self) -> int:
        """The number of windows in a rollout."""
        return self.steps // self.truncation

    @abstractmethod
    def init(self, network: PyTree, key: Key[Array, ""], shape: Any) -> PyTree:
        """Draws fresh tasks of this shape, at their start."""

    @abstractmethod
    def step(
        self, network: PyTree, carry: PyTree, key: Key[Array, ""], shape: Any
    ) -> tuple[Float[Array, ""], PyTree, PyTree]:
        """Advances one window; returns its meta-loss, the meta-gradient (like `network`), and the carry."""


class TruncatedBPTT(AbstractMetaGradient):
    """Backpropagation through windows of `truncation` steps: algorithm 1 of arXiv:2504.15399.

    The meta-loss of a window is the mean over tasks of sum_t w_t f(x_t), over exactly `truncation` losses,
    with the weights `loss_weights(truncation, ratio)`. Parameters and optimizer state carry over into the
    next window; their derivatives do not. `make_transform` decides whether to differentiate through the
    gradient that the network sees (`UpdateRule.meta_order`).

    **Arguments:** as for every estimator; `remat` recomputes steps in the backward pass (less memory).
    `distance` adds distance * ||x_t - optimum||^2 to every loss, for tasks that know their `optimum`; this
    answers the first open question of the paper. Raises ValueError for tasks that do not. With
    `measure="log"` every loss is replaced by its logarithm: no task dominates the others, regardless of
    scale, and late steps count as much as early ones, as in comparisons of optimizers by ratios of losses.

    >>> import jax, symmetrax as sx
    >>> family = sx.tasks.make_family("booth")
    >>> estimator = TruncatedBPTT(family, sx.UpdateRule(), steps=20, truncation=5, tasks=8)
    >>> network = sx.learned.FlatGradientLSTM(2, width=4, key=jax.random.key(0))
    >>> carry = estimator.init(network, jax.random.key(1), None)
    >>> loss, gradient, carry = estimator.step(network, carry, jax.random.key(2), None)
    >>> loss.shape, jax.tree.structure(gradient) == jax.tree.structure(network)
    ((), True)
    """

    ratio: float | Float[Array, ""] = 1.0
    remat: bool = eqx.field(static=True, default=False)
    distance: float | Float[Array, ""] | None = None
    measure: Measure = eqx.field(static=True, default="loss")

    def __check_init__(self):
        check_measure(self.measure)

    def init(self, network: PyTree, key: Key[Array, ""], shape: Any) -> Rollouts:
        return begin_many(self.make_transform, network, self.family, shape, self.tasks, key)

    def step(
        self, network: PyTree, carry: Rollouts, key: Key[Array, ""], shape: Any
    ) -> tuple[Float[Array, ""], PyTree, Rollouts]:
        del key  # every random draw of a rollout follows from the key of `init`

        # For wide networks the gradients of large matrices are not accumulated step by step: see `_products`.
        batch = carry.carry.value.shape
        places = deferrable(network, batch)
        slots = empty_slots(network, places, self.truncation, batch)

        def make_deferred(parts, task):
            network, slots = parts
            return self.make_transform(defer(network, places, slots), task)

        def meta_loss(both):
            network, slots = both
            after, trace = advance_many(
                make_deferred if places else self.make_transform,
                network,
                self.family,
                shape,
                carry,
                self.truncation,
                along=slots if places else None,
                remat=self.remat,
                points=self.distance is not None,
            )
            losses = measured(trace.loss, self.measure)
            if self.distance is not None:
                losses = losses + self.distance * self._distances(trace.params, carry.drawn, shape)
            return jnp.sum(loss_weights(self.truncation, self.ratio) * losses), after

        # The state after the window is an auxiliary output: derivatives end here, at the truncation.
        (loss, after), (gradient, found) = eqx.filter_value_and_grad(meta_loss, has_aux=True)(
            (network, slots)
        )
        return loss, collect(gradient, places, found), jax.lax.stop_gradient(after)

    def _distances(self, points: PyTree, drawn: PyTree, shape: Any) -> Float[Array, " truncation"]:
        """Mean over tasks of the squared distances from a window's points to the optima."""

        def one(points, drawn):
            task = self.family.task(drawn, shape)
            optimum = task.optimum()
            if optimum is None:
                raise ValueError(
                    f"{type(task).__name__} has no optimum() to measure distances from: use distance=None."
                )
            apart = jax.tree.map(lambda x, y: jnp.square(x - y).reshape(self.truncation, -1), points, optimum)
            return sum((jnp.sum(x, axis=1) for x in jax.tree.leaves(apart)), start=jnp.zeros(self.truncation))

        if self.tasks == 1:
            return one(points, drawn)
        return jnp.mean(jax.vmap(one, in_axes=-1, out_axes=-1)(points, drawn), axis=-1)
