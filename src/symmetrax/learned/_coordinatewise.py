"""The standard baseline of learning to optimize: a small LSTM shared by all coordinates."""

from typing import Any, ClassVar, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from symmetrax._keys import check_key
from symmetrax._numbers import flat
from symmetrax.learned._base import AbstractLearnedOptimizer
from symmetrax.learned._features import Observation, Proposal, example_info, log_and_sign
from symmetrax.learned._networks import LSTM, Linear, LSTMState
from symmetrax.symmetry._base import AbstractLieSymmetry

Preprocessing = Literal["log_and_sign", "clipped_log_and_sign"]


def clipped_log_and_sign(gradient: Float[Array, " n"], k: float | int = 5) -> Float[Array, "2 n"]:
    """The two features per coordinate used by the public code of Andrychowicz et al. 2016, and by Open-L2O.

    They are max(log(|g| + eps) / k, -1) and clip(exp(k) g, -1, 1), where eps is the machine epsilon. Apart
    from eps they equal `log_and_sign(gradient, p=k)`: gradients below exp(-5) = 0.007 count as small.

    >>> print(clipped_log_and_sign(jnp.array([1.0, 0.0, -1e-9]))[1].round(7))
    [ 1.e+00  0.e+00 -1.e-07]
    """
    # The published formula: eps makes the logarithm finite at zero, and is lost below exp(-k) anyway.
    logarithm = jnp.log(jnp.abs(gradient) + jnp.finfo(gradient.dtype).eps) / k
    return jnp.stack([jnp.maximum(logarithm, -1.0), jnp.clip(jnp.exp(k) * gradient, -1.0, 1.0)])


PREPROCESSING = {"log_and_sign": log_and_sign, "clipped_log_and_sign": clipped_log_and_sign}


class CoordinatewiseLSTM(AbstractLearnedOptimizer):
    """A stacked LSTM applied to each coordinate separately, with shared weights; it serves any network.

    Each coordinate's gradient is preprocessed into the two features of `log_and_sign`, or of
    `clipped_log_and_sign`, as `preprocessing` says; a linear head times `scale` gives that coordinate's
    update. Source: Andrychowicz et al., Learning to learn by gradient descent by gradient descent, 2016
    (arXiv:1606.04474); width 20, depth 2 and scale 0.01 are the commonly used values.

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
    preprocessing: Preprocessing = eqx.field(static=True)

    def __init__(
        self,
        *,
        width: int = 20,
        depth: int = 2,
        scale: float = 0.01,
        preprocessing: Preprocessing = "log_and_sign",
        key: Key[Array, ""],
    ):
        check_key(key)
        if preprocessing not in PREPROCESSING:
            known = ", ".join(get_args(Preprocessing))
            raise ValueError(f"`preprocessing` must be one of {known}, got {preprocessing!r}.")
        if min(width, depth) < 1 or not scale > 0:
            raise ValueError(
                "CoordinatewiseLSTM needs width and depth of at least 1 and a positive scale, got "
                f"width={width}, depth={depth}, scale={scale}."
            )
        core, head = jax.random.split(key)
        self.core = LSTM(2, width, depth, key=core)
        self.head = Linear(width, 1, key=head)
        self.width, self.depth, self.scale, self.preprocessing = width, depth, scale, preprocessing

    def memory(self, params: PyTree, symmetry: AbstractLieSymmetry | None = None) -> LSTMState:
        return self.core.zero_state((flat(params)[0].size,))

    def propose(self, observation: Observation, memory: LSTMState) -> tuple[Proposal, LSTMState]:
        # The core takes features first, so all coordinates of the network are one matrix product per layer.
        gradient, unravel = flat(observation.gradient)
        hidden, memory = self.core(PREPROCESSING[self.preprocessing](gradient), memory)
        return Proposal(unravel(self.scale * self.head(hidden)[0]), None), memory

    def example(self) -> Observation:
        return example_info(6)

    def config(self) -> dict[str, Any]:
        return {
            "width": self.width,
            "depth": self.depth,
            "scale": self.scale,
            "preprocessing": self.preprocessing,
        }

    def contract(self) -> dict[str, Any]:
        return {"version": 1, "reads": [f"{self.preprocessing}(gradient)"], "emits": ["update"]}
