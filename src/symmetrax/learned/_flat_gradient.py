"""The paper's optimizer: an LSTM over the whole gradient."""

from collections.abc import Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from symmetrax._keys import check_key
from symmetrax._numbers import flat
from symmetrax.learned._base import AbstractLearnedOptimizer
from symmetrax.learned._features import INPUTS, Observation, Proposal, Want, cut, example_info
from symmetrax.learned._heads import RATES, check_heads, coordinates, scalars
from symmetrax.learned._networks import GRU, LSTM, MLP, Core, Linear, side_by_side
from symmetrax.symmetry._base import AbstractLieSymmetry

#: Outputs that a network over the whole gradient can emit besides algebra coordinates.
EMITS = ("update", "step_size", "momentum")


class AbstractFlatGradient(AbstractLearnedOptimizer):
    """A network that reads the whole gradient and emits the whole update, for one problem size.

    See `FlatGradientLSTM`, the paper's network; the subclasses differ only in their core.

    >>> import jax, symmetrax as sx
    >>> isinstance(sx.learned.FlatGradientGRU(2, key=jax.random.key(0)), AbstractFlatGradient)
    True
    """

    #: The network between the inputs and the heads.
    make_core: eqx.AbstractClassVar[type[Core]]

    core: Core
    head: Linear | None
    algebra_head: Linear | None
    scalar_head: Linear | None
    size: int = eqx.field(static=True)
    algebra: int = eqx.field(static=True)
    width: int = eqx.field(static=True)
    depth: int = eqx.field(static=True)
    inputs: tuple[str, ...] = eqx.field(static=True)
    emits: tuple[str, ...] = eqx.field(static=True)
    rates: tuple[float, float] = eqx.field(static=True)
    max_norm: float | None = eqx.field(static=True)
    fixed: bool = eqx.field(static=True)

    def __init__(
        self,
        size: int,
        *,
        emits: Sequence[str] = ("update",),
        algebra: int = 0,
        max_norm: float | int | None = None,
        fixed: bool = False,
        rates: Sequence[float] = RATES,
        width: int = 100,
        depth: int = 2,
        inputs: Sequence[str] = (),
        key: Key[Array, ""],
    ):
        check_key(key)
        unknown = set(inputs) - set(INPUTS)
        if unknown:
            raise ValueError(f"`inputs` can be any of {', '.join(INPUTS)}, got {sorted(unknown)}.")
        self.emits = check_heads(emits, EMITS, rates, max_norm, fixed)
        if not self.emits and not algebra:
            raise ValueError(
                f"{type(self).__name__} emits nothing: pass emits=..., any of {', '.join(EMITS)}, or algebra "
                "> 0."
            )
        if min(size, width, depth) < 1 or algebra < 0:
            raise ValueError(
                f"{type(self).__name__} needs size, width and depth of at least 1 and algebra of at least 0, "
                f"got size={size}, width={width}, depth={depth}, algebra={algebra}."
            )
        # The derivative along the orbit has one entry per algebra coordinate. A network without teleports
        # gets one entry, too, so that it can be compared with a teleporting one at equal inputs.
        slopes = max(algebra, 1)
        extra = {"iterate": size, "previous": size, "orbit_derivative": slopes}
        core, head, algebra_head = jax.random.split(key, 3)
        self.inputs = tuple(name for name in INPUTS if name in inputs)
        self.core = self.make_core(size + sum(extra[name] for name in self.inputs), width, depth, key=core)
        self.head = Linear(width, size, key=head) if "update" in self.emits else None
        self.algebra_head = Linear(width, algebra, key=algebra_head) if algebra else None
        numbers = len([name for name in self.emits if name != "update"])
        # A key derived from that of another head, not a fourth one: the weights of networks without scalars
        # then stay those of earlier versions.
        self.scalar_head = Linear(width, numbers, key=jax.random.fold_in(head, 1)) if numbers else None
        self.size, self.algebra, self.width, self.depth = size, algebra, width, depth
        self.rates, self.fixed = (float(rates[0]), float(rates[1])), fixed
        self.max_norm = None if max_norm is None else float(max_norm)

    @property
    def wants(self) -> tuple[Want, ...]:
        return ("orbit_derivative",) if "orbit_derivative" in self.inputs else ()

    @property
    def algebra_bound(self) -> float | None:
        return self.max_norm if self.algebra else None

    def vector_products(self) -> list[Any]:
        return [*self.core.vector_products(), *(head.weight for head in self._heads)]

    @property
    def _heads(self) -> list[Linear]:
        return [head for head in (self.head, self.algebra_head, self.scalar_head) if head is not None]

    def memory(self, params: PyTree, symmetry: AbstractLieSymmetry | None = None) -> PyTree:
        size = sum(x.size for x in jax.tree.leaves(params))
        if size != self.size:
            raise ValueError(
                f"This {type(self).__name__} is built for {self.size} parameters, got {size}: build one with "
                f"size={size}, or use CoordinatewiseLSTM, which serves any size, with PerNeuronLSTM to "
                "teleport."
            )
        return self.core.zero_state()

    def propose(self, observation: Observation, memory: PyTree) -> tuple[Proposal, PyTree]:
        gradient, unravel = flat(observation.gradient)
        seen = {
            "iterate": observation.params,
            "previous": observation.previous,
            "orbit_derivative": observation.orbit_derivative,
        }
        features = [gradient, *(flat(seen[name])[0] for name in self.inputs)]
        hidden, memory = self.core(cut(jnp.concatenate(features)), memory)
        out = side_by_side(self._heads, hidden)
        ends = (size := self.size if self.head is not None else 0), size + self.algebra
        update, algebra, numbers = jnp.split(out, ends)
        return (
            Proposal(
                update=None if self.head is None else unravel(update),
                algebra=coordinates(algebra, self.max_norm, self.fixed) if self.algebra else None,
                **scalars([name for name in self.emits if name != "update"], numbers, self.rates),
            ),
            memory,
        )

    def example(self) -> Observation:
        return example_info(self.size, max(self.algebra, 1) if self.wants else 0)

    def config(self) -> dict[str, Any]:
        return {
            "size": self.size,
            "emits": list(self.emits),
            "algebra": self.algebra,
            "max_norm": self.max_norm,
            "fixed": self.fixed,
            "rates": list(self.rates),
            "width": self.width,
            "depth": self.depth,
            "inputs": list(self.inputs),
        }

    def contract(self) -> dict[str, Any]:
        return {
            "version": 1,
            "reads": ["gradient", *self.inputs],
            "emits": [*self.emits, *(["algebra"] if self.algebra else [])],
        }


class FlatGradientLSTM(AbstractFlatGradient):
    """A stacked LSTM that reads the whole gradient and emits the whole update, for one problem size.

    It reads the raw, flattened gradient. Linear heads emit the outputs listed in `emits` (see `Proposal`)
    and, if `algebra` > 0, that many coordinates of a group element (the rotation angle, in the plane).
    `inputs` adds any of "iterate", "previous" (the last step) and "orbit_derivative" (of the squared gradient
    norm). A vanilla and a teleporting optimizer built from the same key share all weights except the algebra
    head. Source: sections 3.2, 5.1 and 5.2 of arXiv:2504.15399; width 100 comes from code matching its
    figures 3 to 6, figure 7 uses 300.

    **Arguments:** `size` is the number of parameters of the problem, `width` and `depth` are the LSTM's (100
    and 2), and `key` draws its weights. A step size lies between the two `rates`, low
    (high / low)^sigmoid(z), a momentum between 0 and 1. `max_norm` bounds the norm of the coordinates:
    max_norm tanh(||z|| / max_norm); with `fixed` the norm is exactly `max_norm`. Raises ValueError for
    invalid names and numbers.

    >>> import jax
    >>> network = FlatGradientLSTM(2, algebra=1, inputs=("iterate",), key=jax.random.key(0))
    >>> network.contract()["reads"]
    ['gradient', 'iterate']
    """

    kind: ClassVar[str] = "flat-gradient-lstm"
    make_core: ClassVar[type[Core]] = LSTM

    def __init__(self, size: int, *, key: Key[Array, ""], **options: Any):
        super().__init__(size, key=key, **options)


class FlatGradientGRU(AbstractFlatGradient):
    """`FlatGradientLSTM` with GRU cells: three quarters of the weights, and one state instead of two.

    **Arguments:** as in `FlatGradientLSTM`.

    >>> import jax
    >>> FlatGradientGRU(2, algebra=1, key=jax.random.key(0)).contract()["emits"]
    ['update', 'algebra']
    """

    kind: ClassVar[str] = "flat-gradient-gru"
    make_core: ClassVar[type[Core]] = GRU

    def __init__(self, size: int, *, key: Key[Array, ""], **options: Any):
        super().__init__(size, key=key, **options)


class FlatGradientMLP(AbstractFlatGradient):
    """`FlatGradientLSTM` without memory: its output depends on the current step's inputs alone.

    **Arguments:** as in `FlatGradientLSTM`.

    >>> import jax
    >>> FlatGradientMLP(2, inputs=("previous",), key=jax.random.key(0)).contract()["reads"]
    ['gradient', 'previous']
    """

    kind: ClassVar[str] = "flat-gradient-mlp"
    make_core: ClassVar[type[Core]] = MLP

    def __init__(self, size: int, *, key: Key[Array, ""], **options: Any):
        super().__init__(size, key=key, **options)
