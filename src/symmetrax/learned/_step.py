"""A learned step size and momentum for networks of any size, computed from a few scalar features."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, PyTree

from symmetrax._keys import check_key
from symmetrax.learned._base import AbstractLearnedOptimizer
from symmetrax.learned._features import Length, Observation, Proposal, example_info
from symmetrax.learned._heads import check_heads, scalars
from symmetrax.learned._networks import LSTM, Linear, LSTMState
from symmetrax.symmetry._base import AbstractLieSymmetry

#: The network's features, in order: logarithms of ratios of norms, and cosines.
FEATURES = (
    "gradient / first gradient",
    "gradient / last gradient",
    "params / first params",
    "params / last params",
    "last step / params",
    "cosine of gradient and last step",
    "cosine of gradient and params",
)
#: Outputs that the network can emit.
EMITS = ("step_size", "momentum")

# Norms below this count as zero.
_TINY = 1e-15
_ZERO = math.log(_TINY)


class StepMemory(NamedTuple):
    """The recurrent state, and logarithms of norms: at the first nonzero gradient and at the last step.

    >>> StepMemory._fields
    ('core', 'started', 'first_gradient', 'first_params', 'gradient', 'params')
    """

    core: LSTMState
    started: Bool[Array, ""]
    first_gradient: Float[Array, ""]
    first_params: Float[Array, ""]
    gradient: Float[Array, ""]
    params: Float[Array, ""]


class StepLSTM(AbstractLearnedOptimizer):
    """A stacked LSTM that emits a step size, and optionally a momentum, for a network of any size.

    It reads the ratios of the norms of gradient, parameters and last step to their previous and initial
    values, and the cosines of the gradient with the last step and with the parameters (`FEATURES` of this
    module), so all of its inputs are scale-free. With z the outputs of its heads,

        rate = low (high / low)^sigmoid(z),  step_size = rate / ||first gradient||^2,  momentum = sigmoid(z).

    A rate therefore has the unit of the loss: it is the decrease of the first step if the loss were linear.
    This is what makes rates transfer between networks. The longest stable step is 2 over the curvature, and
    the curvature of a classifier at initialization grows with width and depth; so does its squared gradient
    norm. On digits the largest eigenvalue of the Hessian is 2.5 with 16 hidden units, 24 with 512 and 37 with
    eight layers of 16, and the squared gradient norm divided by it is 0.21, 0.30 and 0.31. A step size
    learned at one width is too long for wider networks, and so is one in units of ||params|| / ||gradient||.
    With `absolute` the rate is the step size itself, as in arXiv:2305.13404 and arXiv:2504.15399, which each
    serve a single network.

    **Arguments:** `emits` is ("step_size",) or ("step_size", "momentum"); `rates` are (low, high). Raises
    ValueError for other values.

    >>> import jax
    >>> network = StepLSTM(emits=("step_size", "momentum"), key=jax.random.key(0))
    >>> optimizer = network.transform()
    >>> for width in (3, 50):
    ...     params = {"w": jnp.ones((width, 4)), "b": jnp.zeros(width)}
    ...     updates, state = jax.jit(optimizer.update)(params, optimizer.init(params), params)
    ...     print(jax.tree.map(jnp.shape, updates), state.step_size.shape)
    {'b': (3,), 'w': (3, 4)} ()
    {'b': (50,), 'w': (50, 4)} ()
    """

    kind: ClassVar[str] = "step-lstm"

    core: LSTM
    head: Linear
    emits: tuple[str, ...] = eqx.field(static=True)
    rates: tuple[float, float] = eqx.field(static=True)
    absolute: bool = eqx.field(static=True)
    width: int = eqx.field(static=True)
    depth: int = eqx.field(static=True)

    def __init__(
        self,
        *,
        emits: Sequence[str] = ("step_size",),
        rates: Sequence[float] = (1e-2, 10.0),
        absolute: bool = False,
        width: int = 20,
        depth: int = 2,
        key: Key[Array, ""],
    ):
        check_key(key)
        self.emits = check_heads(emits, EMITS, rates, None, False)
        if "step_size" not in self.emits:
            raise ValueError(f"`emits` of a StepLSTM must contain step_size, got {tuple(emits)}.")
        if min(width, depth) < 1:
            raise ValueError(
                f"StepLSTM needs width and depth of at least 1, got width={width}, depth={depth}."
            )
        core, head = jax.random.split(key)
        self.core = LSTM(len(FEATURES), width, depth, key=core)
        self.head = Linear(width, len(self.emits), key=head)
        self.rates, self.absolute = (float(rates[0]), float(rates[1])), absolute
        self.width, self.depth = width, depth

    def memory(self, params: PyTree, symmetry: AbstractLieSymmetry | None = None) -> StepMemory:
        zero = jnp.zeros(())
        return StepMemory(self.core.zero_state(), jnp.array(False), zero, zero, zero, zero)

    def propose(self, observation: Observation, memory: StepMemory) -> tuple[Proposal, StepMemory]:
        features, memory = step_features(observation, memory)
        hidden, core = self.core(features, memory.core)
        proposal = scalars(self.emits, self.head(hidden), self.rates)
        # exp(-2 log ||g||) = 1 / ||g||^2, from the logarithm that is kept for the features.
        if not self.absolute:
            proposal["step_size"] = proposal["step_size"] * jnp.exp(-2 * memory.first_gradient)
        return Proposal(**proposal), memory._replace(core=core)

    def example(self) -> Observation:
        return example_info(6)

    def config(self) -> dict[str, Any]:
        return {
            "emits": list(self.emits),
            "rates": list(self.rates),
            "absolute": self.absolute,
            "width": self.width,
            "depth": self.depth,
        }

    def contract(self) -> dict[str, Any]:
        unit = "1" if self.absolute else "1 / squared norm of the first gradient"
        return {"version": 1, "reads": list(FEATURES), "emits": list(self.emits), "step_size_unit": unit}


def step_features(
    observation: Observation, memory: StepMemory
) -> tuple[Float[Array, " features"], StepMemory]:
    """Computes the features of a `StepLSTM` (named in `FEATURES`), and the memory with this step's norms.

    They are invariant to the units of parameters and loss. Norms count from the first nonzero gradient:
    before it, and in ratios to a zero, every feature is 0.

    >>> g, w, u = jnp.array([3.0, 4.0]), jnp.array([5.0, 0.0]), jnp.zeros(2)
    >>> memory = StepLSTM(key=jax.random.key(0)).memory(w)
    >>> features, memory = step_features(Observation(g, w, u, None, None), memory)
    >>> [f"{feature:.1f}" for feature in features]
    ['0.0', '0.0', '0.0', '0.0', '0.0', '0.0', '0.6']
    """
    g, w, u = (Length.of(tree) for tree in (observation.gradient, observation.params, observation.previous))
    gradient, params, step = (length.log(_TINY) for length in (g, w, u))
    # The first gradient may be zero, for instance at a saddle: count from the first one that has a direction.
    known = memory.started
    now = known | (gradient > _ZERO)
    memory = memory._replace(
        started=now,
        first_gradient=jnp.where(known, memory.first_gradient, jnp.where(now, gradient, 0.0)),
        first_params=jnp.where(known, memory.first_params, params),
    )
    # At the first step there is no last one: the ratios are 1, and their logarithms 0.
    last = [jnp.where(known, old, new) for old, new in ((memory.gradient, gradient), (memory.params, params))]
    features = jnp.stack(
        [
            jnp.where(now, gradient - memory.first_gradient, 0.0),
            gradient - last[0],
            params - memory.first_params,
            params - last[1],
            jnp.where((step > _ZERO) & (params > _ZERO), step - params, 0.0),
            _cosine((observation.gradient, g, gradient), (observation.previous, u, step)),
            _cosine((observation.gradient, g, gradient), (observation.params, w, params)),
        ]
    )
    return features, memory._replace(gradient=gradient, params=params)


def _cosine(*both: tuple[PyTree, Length, Float[Array, ""]]) -> Float[Array, ""]:
    """Computes the cosine of two trees from their known lengths and the logarithms of those."""
    # Entries are divided by the largest before they are multiplied, so that no product overflows.
    (x, x_length, x_log), (y, y_length, y_log) = both
    products = jax.tree.map(lambda x, y: jnp.sum((x / x_length.unit) * (y / y_length.unit)), x, y)
    share = jnp.exp(jnp.log(x_length.unit) - x_log + jnp.log(y_length.unit) - y_log)
    return sum(jax.tree.leaves(products), start=jnp.zeros_like(share)) * share
