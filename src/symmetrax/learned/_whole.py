"""The optimizer of the paper: an LSTM over the whole gradient."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Key, PyTree

from symmetrax.learned._base import AbstractLearnedOptimizer
from symmetrax.learned._features import INPUTS, Info, Move, example_info
from symmetrax.learned._networks import LSTM, Linear, LSTMState


class WholeLSTM(AbstractLearnedOptimizer):
    """A stacked LSTM that reads the whole gradient and emits the whole update, for one problem size.

    The raw gradient, flattened, goes in; linear heads give the update and, if `algebra` > 0, that many
    coordinates of a group element (the rotation angle on the plane). `inputs` adds any of "iterate",
    "previous" (the last update) and "orbit_derivative" (of the squared gradient norm). The vanilla optimizer
    and the teleporting one built from one key share all weights but the head for the algebra. Source:
    sections 3.2 and 5.1 of arXiv:2504.15399; width 100 is from code matching its figures.

    **Arguments:** `size` is the number of parameters of the problem.

    >>> import jax
    >>> network = WholeLSTM(2, algebra=1, inputs=("iterate",), key=jax.random.key(0))
    >>> network.contract()["reads"]
    ['gradient', 'iterate']
    """

    kind: ClassVar[str] = "whole-lstm"

    core: LSTM
    head: Linear
    algebra_head: Linear | None
    size: int = eqx.field(static=True)
    algebra: int = eqx.field(static=True)
    width: int = eqx.field(static=True)
    depth: int = eqx.field(static=True)
    inputs: tuple[str, ...] = eqx.field(static=True)

    def __init__(
        self,
        size: int,
        *,
        algebra: int = 0,
        width: int = 100,
        depth: int = 2,
        inputs: tuple[str, ...] | list[str] = (),
        key: Key[Array, ""],
    ):
        unknown = set(inputs) - set(INPUTS)
        if unknown:
            raise ValueError(f"Unknown inputs {sorted(unknown)}; choose from {', '.join(INPUTS)}.")
        if min(size, width, depth) < 1 or algebra < 0:
            raise ValueError(
                "WholeLSTM needs size, width and depth of at least 1 and algebra of at least 0, got "
                f"size={size}, width={width}, depth={depth}, algebra={algebra}."
            )
        # The derivative along the orbit has one entry per algebra coordinate, and one for a vanilla network.
        slopes = max(algebra, 1)
        extra = {"iterate": size, "previous": size, "orbit_derivative": slopes}
        core, head, algebra_head = jax.random.split(key, 3)
        self.inputs = tuple(name for name in INPUTS if name in inputs)
        self.core = LSTM(size + sum(extra[name] for name in self.inputs), width, depth, key=core)
        self.head = Linear(width, size, key=head)
        self.algebra_head = Linear(width, algebra, key=algebra_head) if algebra else None
        self.size, self.algebra, self.width, self.depth = size, algebra, width, depth

    @property
    def wants_orbit_derivative(self) -> bool:
        return "orbit_derivative" in self.inputs

    def memory(self, params: PyTree) -> LSTMState:
        size = sum(x.size for x in jax.tree.leaves(params))
        if size != self.size:
            raise ValueError(
                f"This optimizer is built for {self.size} parameters, got {size}. A WholeLSTM serves "
                "one problem size; CoordinatewiseLSTM serves all."
            )
        return self.core.zero_state()

    def propose(self, info: Info, memory: LSTMState) -> tuple[Move, LSTMState]:
        gradient, unravel = ravel_pytree(info.gradient)
        seen = {
            "iterate": info.params,
            "previous": info.previous,
            "orbit_derivative": info.orbit_derivative,
        }
        features = [gradient, *(ravel_pytree(seen[name])[0] for name in self.inputs)]
        hidden, memory = self.core(jnp.concatenate(features), memory)
        if self.algebra_head is None:
            return Move(unravel(self.head(hidden)), None), memory
        # Both heads in one product: the derivative of a single row would be recomputed in every gate's.
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), self.head, self.algebra_head)(hidden)
        return Move(unravel(both[: self.size]), both[self.size :]), memory

    def example(self) -> Info:
        return example_info(self.size, max(self.algebra, 1) if self.wants_orbit_derivative else 0)

    def config(self) -> dict[str, Any]:
        return {
            "size": self.size,
            "algebra": self.algebra,
            "width": self.width,
            "depth": self.depth,
            "inputs": list(self.inputs),
        }

    def contract(self) -> dict[str, Any]:
        return {
            "version": 1,
            "reads": ["gradient", *self.inputs],
            "emits": ["update", *(["algebra"] if self.algebra else [])],
        }
