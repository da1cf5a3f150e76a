"""RNNProp: a coordinate-wise LSTM that reads Adam's statistics and is invariant to the gradient's scale."""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from symmetrax._keys import check_key
from symmetrax._numbers import flat
from symmetrax.learned._base import AbstractLearnedOptimizer
from symmetrax.learned._features import Observation, Proposal, cut, example_info
from symmetrax.learned._networks import LSTM, Linear, LSTMState
from symmetrax.symmetry._base import AbstractLieSymmetry

#: Added to the square root of the second moment, as in Adam.
EPSILON = 1e-8
#: Gradient entries are clipped to this magnitude, so that their squares are finite.
LARGEST = 1e18


class RNNPropMemory(NamedTuple):
    """The memory of `RNNProp` for n coordinates: step count, both moments of the gradient, and LSTM state.

    >>> RNNPropMemory._fields
    ('count', 'first', 'second', 'core')
    """

    count: Int[Array, ""]
    first: Float[Array, " n"]
    second: Float[Array, " n"]
    core: LSTMState


class RNNProp(AbstractLearnedOptimizer):
    """A stacked LSTM applied to each coordinate separately that reads m / sqrt(v) and g / sqrt(v).

    m and v are running means of the gradient g and its square, with decay rates `beta1` and `beta2`,
    corrected for the bias of starting at zero:
        m <- beta1 m + (1 - beta1) g,   m^ = m / (1 - beta1^t),   and v, v^ likewise from g^2.
    The two features m^ / (sqrt(v^) + 1e-8) and g / (sqrt(v^) + 1e-8) go through a dense layer of `width`
    units with ELU, then through the LSTM; the update is `scale` * tanh(linear head), so no coordinate moves
    by more than `scale`. The updates do not change if you multiply the loss by a constant. Source: Lv, Jiang
    and Li, Learning gradient descent: better generalization and longer horizons, 2017 (arXiv:1703.03633),
    with scale 0.1; the public implementations use depth 2, and one of them (Open-L2O) uses scale 0.01.

    Raises ValueError for sizes below 1, a scale that is not positive, and betas outside [0, 1).

    >>> import jax, jax.numpy as jnp
    >>> network = RNNProp(key=jax.random.key(0))
    >>> params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(3)}
    >>> optimizer = network.transform()
    >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
    >>> jax.tree.map(jnp.shape, updates)
    {'b': (3,), 'w': (3, 2)}
    """

    kind: ClassVar[str] = "rnnprop"

    dense: Linear
    core: LSTM
    head: Linear
    width: int = eqx.field(static=True)
    depth: int = eqx.field(static=True)
    scale: float = eqx.field(static=True)
    beta1: float = eqx.field(static=True)
    beta2: float = eqx.field(static=True)

    def __init__(
        self,
        *,
        width: int = 20,
        depth: int = 2,
        scale: float = 0.1,
        beta1: float = 0.95,
        beta2: float = 0.95,
        key: Key[Array, ""],
    ):
        check_key(key)
        if min(width, depth) < 1 or not scale > 0:
            raise ValueError(
                "RNNProp needs width and depth of at least 1 and a positive scale, got "
                f"width={width}, depth={depth}, scale={scale}."
            )
        if not (0 <= beta1 < 1 and 0 <= beta2 < 1):
            raise ValueError(f"RNNProp needs beta1 and beta2 in [0, 1), got beta1={beta1}, beta2={beta2}.")
        dense, core, head = jax.random.split(key, 3)
        self.dense = Linear(2, width, key=dense)
        self.core = LSTM(width, width, depth, key=core)
        self.head = Linear(width, 1, key=head)
        self.width, self.depth, self.scale = width, depth, scale
        self.beta1, self.beta2 = beta1, beta2

    def memory(self, params: PyTree, symmetry: AbstractLieSymmetry | None = None) -> RNNPropMemory:
        zeros = jnp.zeros_like(flat(params)[0])
        return RNNPropMemory(jnp.array(0), zeros, zeros, self.core.zero_state(zeros.shape))

    def propose(self, observation: Observation, memory: RNNPropMemory) -> tuple[Proposal, RNNPropMemory]:
        gradient, unravel = flat(observation.gradient)
        features, count, first, second = self._features(gradient, memory)
        hidden, core = self.core(jax.nn.elu(self.dense(features)), memory.core)
        # As published; bounded steps also keep the rollouts of an untrained network finite.
        update = self.scale * jnp.tanh(self.head(hidden)[0])
        return Proposal(unravel(update)), RNNPropMemory(count, first, second, core)

    def _features(
        self, gradient: Float[Array, " n"], memory: RNNPropMemory
    ) -> tuple[Float[Array, "2 n"], Int[Array, ""], Float[Array, " n"], Float[Array, " n"]]:
        """Returns the inputs of the network, and the count and moments including this gradient."""
        gradient, count = cut(gradient, LARGEST), memory.count + 1
        first = self.beta1 * memory.first + (1 - self.beta1) * gradient
        second = self.beta2 * memory.second + (1 - self.beta2) * jnp.square(gradient)
        steps = count.astype(gradient.dtype)
        bias1, bias2 = (1 - jnp.asarray(beta, gradient.dtype) ** steps for beta in (self.beta1, self.beta2))
        # Coordinates that never had a gradient: the square root has an infinite derivative at zero.
        none = second == 0
        root = jnp.where(none, 0.0, jnp.sqrt(jnp.where(none, 1.0, second / bias2)))
        return jnp.stack([first / bias1, gradient]) / (root + EPSILON)[None], count, first, second

    def example(self) -> Observation:
        return example_info(6)

    def config(self) -> dict[str, Any]:
        return {
            "width": self.width,
            "depth": self.depth,
            "scale": self.scale,
            "beta1": self.beta1,
            "beta2": self.beta2,
        }

    def contract(self) -> dict[str, Any]:
        return {
            "version": 1,
            "reads": ["first moment / root of second", "gradient / root of second"],
            "emits": ["update"],
        }
