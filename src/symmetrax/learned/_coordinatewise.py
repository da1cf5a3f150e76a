"""The standard baseline of learning to optimize: one small LSTM shared by all coordinates."""

from typing import Any, ClassVar

import equinox as eqx
import jax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Key, PyTree

from symmetrax.learned._base import AbstractLearnedOptimizer
from symmetrax.learned._features import Info, Move, example_info, log_and_sign
from symmetrax.learned._networks import LSTM, Linear, LSTMState


class CoordinatewiseLSTM(AbstractLearnedOptimizer):
    """A stacked LSTM run on every coordinate apart, with shared weights, so that it serves any network.

    Each coordinate's gradient becomes the two features of `log_and_sign`; a linear head times `scale` is
    that coordinate's update. Source: Andrychowicz et al., Learning to learn by gradient descent by gradient
    descent, 2016; width 20, depth 2 and scale 0.01 are the values in common use.

    >>> import jax, jax.numpy as jnp
    >>> network = CoordinatewiseLSTM(key=jax.random.key(0))
    >>> params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(3)}
    >>> optimizer = network.transform()
    >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
    >>> jax.tree.map(jnp.shape, updates)
    {'b': (3,), 'w': (3, 2)}
    """

    kind: ClassVar[str] = "coordinatewise-lstm"

    core: LSTM
    head: Linear
    width: int = eqx.field(static=True)
    depth: int = eqx.field(static=True)
    scale: float = eqx.field(static=True)

    def __init__(self, *, width: int = 20, depth: int = 2, scale: float = 0.01, key: Key[Array, ""]):
        if min(width, depth) < 1 or not scale > 0:
            raise ValueError(
                "CoordinatewiseLSTM needs width and depth of at least 1 and a positive scale, got "
                f"width={width}, depth={depth}, scale={scale}."
            )
        core, head = jax.random.split(key)
        self.core = LSTM(2, width, depth, key=core)
        self.head = Linear(width, 1, key=head)
        self.width, self.depth, self.scale = width, depth, scale

    @property
    def wants_orbit_derivative(self) -> bool:
        return False

    def memory(self, params: PyTree) -> LSTMState:
        return self.core.zero_state((sum(x.size for x in jax.tree.leaves(params)),))

    def propose(self, info: Info, memory: LSTMState) -> tuple[Move, LSTMState]:
        gradient, unravel = ravel_pytree(info.gradient)
        hidden, memory = self.core(log_and_sign(gradient), memory)
        return Move(unravel(self.scale * self.head(hidden)[0]), None), memory

    def example(self) -> Info:
        return example_info(6)

    def config(self) -> dict[str, Any]:
        return {"width": self.width, "depth": self.depth, "scale": self.scale}

    def contract(self) -> dict[str, Any]:
        return {"version": 1, "reads": ["log_and_sign(gradient)"], "emits": ["update"]}
