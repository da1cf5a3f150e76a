"""An LSTM per pair of adjacent weight matrices, as in the published learned teleports, or a shared one."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from symmetrax._keys import check_key
from symmetrax._numbers import flat
from symmetrax.learned._base import AbstractLearnedOptimizer
from symmetrax.learned._features import Observation, Proposal, cut
from symmetrax.learned._heads import RATES, check_heads, coordinates, scalars
from symmetrax.learned._networks import LSTM, Linear, LSTMState
from symmetrax.symmetry._base import AbstractLieSymmetry

#: Group acting on the hidden units between two matrices: all invertible matrices, or positive scalings.
Acting = Literal["general", "scaling"]


class LayerPairLSTM(AbstractLearnedOptimizer):
    """An LSTM that emits a group element per hidden layer from the gradients of its two adjacent matrices.

    It serves a perceptron without biases and with `sizes` (inputs, hidden units, ..., outputs), whose
    parameters hold the matrices `w1`, `w2`, ... (see `MLP`). A stacked LSTM reads the flattened gradient of a
    pair and emits the coordinates of that layer's element: the n^2 entries of a matrix (`group="general"`,
    for `ActivationGL`), or n scalings (`group="scaling"`, for the perceptron's own symmetry). Each pair has
    its own LSTM; with `shared` all pairs use the same LSTM, each with its own memory, and must have equal
    shapes. `emits` adds "step_size" and "momentum", each computed from the mean output of the pairs' heads.
    `max_norm` and `fixed` apply to each layer's element separately; the other arguments are as in
    `FlatGradientLSTM`.

    Raises ValueError for inconsistent sizes. Source: the code accompanying arXiv:2305.13404, where elements
    are I + T with ||T|| = 0.01 (here exp(T)); it has a single pair.

    >>> import jax
    >>> sizes, key = (20, 20, 20, 20), jax.random.key(0)
    >>> network = LayerPairLSTM(sizes, shared=True, max_norm=0.01, fixed=True, key=key)
    >>> network.contract()["emits"], network.algebra
    (['algebra'], 800)
    """

    kind: ClassVar[str] = "layer-pair-lstm"

    cores: tuple[LSTM, ...]
    heads: tuple[Linear, ...]
    sizes: tuple[int, ...] = eqx.field(static=True)
    shared: bool = eqx.field(static=True)
    group: Acting = eqx.field(static=True)
    emits: tuple[str, ...] = eqx.field(static=True)
    rates: tuple[float, float] = eqx.field(static=True)
    max_norm: float | None = eqx.field(static=True)
    fixed: bool = eqx.field(static=True)
    width: int = eqx.field(static=True)
    depth: int = eqx.field(static=True)

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        shared: bool = False,
        group: Acting = "general",
        emits: Sequence[str] = (),
        max_norm: float | int | None = None,
        fixed: bool = False,
        rates: Sequence[float] = RATES,
        width: int = 300,
        depth: int = 2,
        key: Key[Array, ""],
    ):
        check_key(key)
        sizes = tuple(sizes)
        if len(sizes) < 3 or min(*sizes, width, depth) < 1:
            raise ValueError(
                "LayerPairLSTM needs sizes (inputs, at least one hidden layer, outputs) and width and depth "
                f"of at least 1, got sizes={sizes}, width={width}, depth={depth}."
            )
        if group not in get_args(Acting):
            raise ValueError(f"`group` must be one of {', '.join(get_args(Acting))}, got {group!r}.")
        reads = [a * b + b * c for a, b, c in zip(sizes, sizes[1:], sizes[2:], strict=False)]
        writes = [n * n if group == "general" else n for n in sizes[1:-1]]
        if shared and (len(set(reads)) > 1 or len(set(writes)) > 1):
            raise ValueError(
                f"shared=True needs pairs of matrices of equal shapes, but with sizes={sizes} they have "
                f"{reads} entries: use shared=False, or PerNeuronLSTM."
            )
        # No "update": a network that serves pairs of matrices has nothing to say about each of their entries.
        self.emits = check_heads(emits, ("step_size", "momentum"), rates, max_norm, fixed)
        self.sizes, self.shared, self.group, self.fixed = sizes, shared, group, fixed
        self.rates, self.width, self.depth = (float(rates[0]), float(rates[1])), width, depth
        self.max_norm = None if max_norm is None else float(max_norm)
        count = 1 if shared else len(reads)
        keys = [jax.random.split(k) for k in jax.random.split(key, count)]
        self.cores = tuple(LSTM(n, width, depth, key=k[0]) for n, k in zip(reads, keys, strict=False))
        self.heads = tuple(
            Linear(width, n + len(self.emits), key=k[1]) for n, k in zip(writes, keys, strict=False)
        )

    @property
    def algebra(self) -> int:
        """The number of coordinates."""
        return sum(n * n if self.group == "general" else n for n in self.sizes[1:-1])

    @property
    def algebra_bound(self) -> float | None:
        return self.max_norm

    def vector_products(self) -> list[Any]:
        # Shared matrices multiply a vector for each pair, but a slot of `_products` holds one for each step.
        if self.shared:
            return []
        cores = [matrix for core in self.cores for matrix in core.vector_products()]
        return [*cores, *(head.weight for head in self.heads)]

    @property
    def _pairs(self) -> int:
        return len(self.sizes) - 2

    def memory(self, params: PyTree, symmetry: AbstractLieSymmetry | None = None) -> tuple[LSTMState, ...]:
        self._matrices(params)
        return tuple(self.cores[0 if self.shared else i].zero_state() for i in range(self._pairs))

    def propose(
        self, observation: Observation, memory: tuple[LSTMState, ...]
    ) -> tuple[Proposal, tuple[LSTMState, ...]]:
        flattened = [cut(flat(matrix)[0]) for matrix in self._matrices(observation.gradient)]
        elements, numbers, after = [], [], []
        for i, (pair, state) in enumerate(zip(pairwise(flattened), memory, strict=True)):
            # Adjacent pairs share a matrix: each hidden layer sees the gradients on both of its sides.
            j = 0 if self.shared else i
            hidden, state = self.cores[j](jnp.concatenate(pair), state)
            out = self.heads[j](hidden)
            split = out.shape[0] - len(self.emits)
            elements.append(coordinates(out[:split], self.max_norm, self.fixed))
            numbers.append(out[split:])
            after.append(state)
        named = scalars(self.emits, sum(numbers[1:], start=numbers[0]) / len(numbers), self.rates)
        return Proposal(algebra=jnp.concatenate(elements), **named), tuple(after)

    def _matrices(self, tree: PyTree) -> list[Float[Array, "out in"]]:
        names = [f"w{layer}" for layer in range(1, len(self.sizes))]
        shapes = [(b, a) for a, b in pairwise(self.sizes)]
        found = {name: jnp.shape(tree[name]) for name in names if isinstance(tree, dict) and name in tree}
        if found != dict(zip(names, shapes, strict=True)):
            raise ValueError(
                f"This LayerPairLSTM is built for matrices {dict(zip(names, shapes, strict=True))}, got "
                f"{jax.tree.map(jnp.shape, tree)}: pass their sizes, or use PerNeuronLSTM for any network."
            )
        return [tree[name] for name in names]

    def example(self) -> Observation:
        ends = pairwise(self.sizes)
        ramp = {f"w{i}": jnp.linspace(-1.0, 2.0, a * b).reshape(b, a) for i, (a, b) in enumerate(ends, 1)}
        return Observation(
            ramp, jax.tree.map(lambda x: 1 - x, ramp), jax.tree.map(lambda x: 0.1 * x, ramp), None, None
        )

    def config(self) -> dict[str, Any]:
        return {
            "sizes": list(self.sizes),
            "shared": self.shared,
            "group": self.group,
            "emits": list(self.emits),
            "max_norm": self.max_norm,
            "fixed": self.fixed,
            "rates": list(self.rates),
            "width": self.width,
            "depth": self.depth,
        }

    def contract(self) -> dict[str, Any]:
        return {"version": 1, "reads": ["gradients of a pair"], "emits": [*self.emits, "algebra"]}
