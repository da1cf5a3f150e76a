"""Early stopping: train until more outer steps no longer help, and return the best weights."""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from symmetrax._programs import compiled
from symmetrax._tree import select


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """Stops after `patience` validations in a row without improvement; the best weights are returned.

    `validate` maps a network to a number, lower is better, for instance the median loss on held-out tasks. It
    is compiled, and called for every seed after each chunk of outer steps. Use a fixed key, so that the curve
    reflects the network and not the sampling. A number that is not finite never counts as an improvement.
    Training continues until every seed has run out of patience; each seed returns its own best weights.

    Raises ValueError if `patience` is less than 1. Section 5.2 of arXiv:2504.15399 trains "at an increment of
    100" trajectories until more do not help: `chunk=100, stopping=EarlyStopping(validate, patience=1)`.

    >>> import jax, jax.numpy as jnp, optax, symmetrax as sx
    >>> family, rule = sx.tasks.make_family("ellipse-fixed"), sx.UpdateRule()
    >>> def validate(network):
    ...     unseen = sx.unroll_many(rule, network, family, jax.random.key(7), steps=10, tasks=16)
    ...     return jnp.median(unseen.loss[-1])
    >>> estimator = sx.metatrain.TruncatedBPTT(family, rule, steps=10, truncation=5, tasks=16)
    >>> make = lambda key: sx.learned.FlatGradientLSTM(2, width=8, key=key)
    >>> stopping = EarlyStopping(validate, patience=2)
    >>> trained = sx.meta_train(
    ...     make, estimator, optax.adam(1e-2), jax.random.key(0), outer_steps=40, chunk=10, stopping=stopping
    ... )
    >>> curve = trained.validation[0]
    >>> bool(jnp.isclose(validate(trained.network()), min(curve)))
    True
    """

    validate: Callable[[PyTree], Float[Array, ""]]
    patience: int = 5

    def __post_init__(self):
        if self.patience < 1:
            raise ValueError(f"EarlyStopping needs a patience of at least 1, got patience={self.patience}.")

    # Seeds train together, in one program: none of them can stop before the others.
    def exhausted(self, curve: Float[np.ndarray, "seeds rounds"]) -> bool:
        """Whether every seed has gone `patience` rounds without improvement."""
        return bool(np.all(waited(curve) >= self.patience))


def waited(curve: Float[np.ndarray, "seeds rounds"]) -> Int[np.ndarray, " seeds"]:
    """The number of rounds since each seed last improved; all rounds, if no value was finite.

    >>> waited(np.array([[3.0, 2.0, 2.0, 5.0], [3.0, 2.0, 1.0, 0.0], [np.nan] * 4])).tolist()
    [2, 0, 4]
    """
    # `argmin` returns the first of equal values: an equal value is no improvement.
    rounds = curve.shape[1]
    if rounds == 0:
        return np.zeros(len(curve), int)
    finite = np.where(np.isfinite(curve), curve, np.inf)
    since = rounds - 1 - np.argmin(finite, axis=1)
    return np.where(np.isfinite(finite).any(axis=1), since, rounds)


def improved(curve: Float[np.ndarray, "seeds rounds"]) -> Bool[np.ndarray, " seeds"]:
    """Whether each seed improved on its best value in the last round.

    >>> improved(np.array([[3.0, 2.0], [3.0, 3.0]])).tolist()
    [True, False]
    """
    return waited(curve) == 0


@compiled
def validations(validate: Callable, networks: PyTree) -> Float[Array, " seeds"]:
    """Evaluates `validate` on every seed's network, in one program.

    >>> import jax.numpy as jnp
    >>> print(validations(lambda network: network["w"].sum(), {"w": jnp.ones((2, 3))}))
    [3. 3.]
    """
    return eqx.filter_vmap(validate)(networks)


@compiled
def better(is_better: Bool[Array, " seeds"], networks: PyTree, best: PyTree) -> PyTree:
    """Selects, for each seed, the new network if it is better, otherwise the best one so far.

    >>> import jax.numpy as jnp
    >>> print(better(jnp.array([True, False]), jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0])))
    [1. 4.]
    """
    return eqx.filter_vmap(select)(is_better, networks, best)
