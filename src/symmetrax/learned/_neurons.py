"""A small LSTM shared by all hidden units: learned teleports for networks of any width and depth."""

import math
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from symmetrax._keys import check_key
from symmetrax._tree import replicated
from symmetrax.groups._diagonal import PositiveDiagonal
from symmetrax.learned._base import AbstractLearnedOptimizer
from symmetrax.learned._features import Observation, Proposal, Want, largest_entry
from symmetrax.learned._networks import LSTM, Linear, LSTMState
from symmetrax.models._ready import mlp_symmetry
from symmetrax.symmetry._base import AbstractLieSymmetry
from symmetrax.symmetry._network import NetworkSymmetry
from symmetrax.symmetry._walk import Binding

#: Features of each unit, in order. Norms are compared through the logarithms of their ratios: a ratio does
#: not depend on the scale of loss or parameters, and its logarithm treats growth and decay alike.
FEATURES = (
    "incoming weights / layer",
    "outgoing weights / layer",
    "incoming gradient / layer",
    "outgoing gradient / layer",
    "outgoing weights / incoming weights",
    "outgoing gradient / incoming gradient",
    "gradient of the layer / of all layers",
    "cosine of incoming weights and gradient",
    "cosine of outgoing weights and gradient",
    "slope / unit",
    "slope / all units",
    "mean of outgoing weights / incoming weights",
    "mean of outgoing gradient / incoming gradient",
    "mean of slope / unit",
)

# Squares below this fraction of the largest entry's square count as zero.
_TINY = 1e-12


class PerNeuronLSTM(AbstractLearnedOptimizer):
    """A stacked LSTM that scales hidden units, applied to each unit separately with shared weights.

    For any `NetworkSymmetry` it emits coordinates log s of positive scalings: bound tanh(z) for each unit of
    every `PositiveDiagonal` space, and zeros for the other spaces. For each unit it reads ratios of norms of
    the incoming and outgoing weights and gradients, their cosines, and the derivative of the squared gradient
    norm along the unit's own scaling: see `FEATURES` of this module and `unit_features`. It therefore serves
    every width and depth, is equivariant under permutations of the units, and does not depend on the scale of
    loss and parameters. It proposes no step: combine it in a `Joint` with a network that does.

    **Arguments:** `bound` bounds every coordinate; 0.5, a factor of 1.6 per teleport, is this library's
    choice. The head starts at zero, so an untrained network does not teleport.

    Its methods raise ValueError for a symmetry without `PositiveDiagonal` spaces. Source: positive scalings
    as in arXiv:2012.01118; learned teleports of arXiv:2504.15399.

    >>> import jax, symmetrax as sx
    >>> network = PerNeuronLSTM(key=jax.random.key(0))
    >>> for width in (3, 8):
    ...     params = {"w1": jnp.ones((width, 4)), "w2": jnp.ones((2, width))}
    ...     symmetry = sx.models.mlp_symmetry(params)
    ...     seen = sx.learned.Observation(params, params, params, None, None, symmetry)
    ...     proposal, _ = eqx.filter_jit(network.propose)(seen, network.memory(params, symmetry))
    ...     print(proposal.algebra.shape)
    (3,)
    (8,)
    """

    kind: ClassVar[str] = "per-neuron-lstm"

    core: LSTM
    head: Linear
    width: int = eqx.field(static=True)
    depth: int = eqx.field(static=True)
    bound: float = eqx.field(static=True)

    def __init__(self, *, width: int = 20, depth: int = 2, bound: float | int = 0.5, key: Key[Array, ""]):
        check_key(key)
        if min(width, depth) < 1 or not bound > 0:
            raise ValueError(
                "PerNeuronLSTM needs width and depth of at least 1 and a positive bound, got "
                f"width={width}, depth={depth}, bound={bound}."
            )
        core, head = jax.random.split(key)
        self.core = LSTM(len(FEATURES), width, depth, key=core)
        # A head of zeros proposes the identity: an untrained network doesn't teleport.
        self.head = jax.tree.map(jnp.zeros_like, Linear(width, 1, key=head))
        self.width, self.depth, self.bound = width, depth, float(bound)

    @property
    def wants(self) -> tuple[Want, ...]:
        return ("symmetry",)

    def memory(self, params: PyTree, symmetry: AbstractLieSymmetry | None = None) -> LSTMState:
        units = sum(math.prod(group.algebra) for group in _scalings(symmetry)[1].values())
        return self.core.zero_state((units,))

    def propose(self, observation: Observation, memory: LSTMState) -> tuple[Proposal, LSTMState]:
        symmetry, groups = _scalings(observation.symmetry)
        # The sums below are over whole rows and columns, which a mesh may have sharded.
        params, gradient = jax.tree.map(replicated, (observation.params, observation.gradient))
        features = unit_features(symmetry, params, gradient)
        hidden, memory = self.core(features, memory)
        coordinates = self.bound * jnp.tanh(self.head(hidden)[0])
        parts, start = {}, 0
        for name, group in groups.items():
            end = start + math.prod(group.algebra)
            parts[name], start = coordinates[start:end], end
        return Proposal(algebra=symmetry.join(parts)), memory

    def example(self) -> Observation:
        ramp = jnp.linspace(-1.0, 2.0, 15)
        params = {"b1": ramp[:3], "w1": ramp[3:9].reshape(3, 2), "w2": ramp[9:].reshape(2, 3)}
        gradient = jax.tree.map(lambda x: 1 - x * x, params)
        previous = jax.tree.map(lambda x: 0.1 * x, params)
        return Observation(gradient, params, previous, None, None, mlp_symmetry(params, ["w1", "w2"], ["b1"]))

    def config(self) -> dict[str, Any]:
        return {"width": self.width, "depth": self.depth, "bound": self.bound}

    def contract(self) -> dict[str, Any]:
        return {"version": 1, "reads": list(FEATURES), "emits": ["algebra of positive scalings"]}


def _scalings(symmetry: Any) -> tuple[NetworkSymmetry, dict[str, PositiveDiagonal]]:
    """Returns the symmetry and its spaces of scalable units."""
    if isinstance(symmetry, NetworkSymmetry):
        groups = {name: g for name, g in symmetry.spaces.items() if isinstance(g, PositiveDiagonal)}
        if groups:
            return symmetry, groups
        found = "one whose spaces are " + ", ".join(map(str, symmetry.spaces.values()))
    else:
        found = "none" if symmetry is None else f"a {type(symmetry).__name__}"
    raise ValueError(
        "PerNeuronLSTM scales hidden units and needs a NetworkSymmetry with a PositiveDiagonal space, got "
        f"{found}: pass one to transform(), for example mlp_symmetry(params), which is exact for ReLU."
    )


class UnitSums(NamedTuple):
    """Sums over the entries attached to each unit of a space: arrays of shape (*per, size).

    A unit's incoming entries are those its scale s multiplies, its outgoing entries those it divides; an
    array on which two spaces act counts for both. `slope` is the derivative, at s = 1, of the squared
    gradient norm with respect to log s. An entry that scales as s^p has a gradient that scales as s^-p, so
    the slope is the sum of -2 p g^2. `steep` is the sum of 2 |p| g^2.

    >>> UnitSums._fields[:3]
    ('weights_in', 'weights_out', 'gradients_in')
    """

    weights_in: Float[Array, "..."]
    weights_out: Float[Array, "..."]
    gradients_in: Float[Array, "..."]
    gradients_out: Float[Array, "..."]
    products_in: Float[Array, "..."]
    products_out: Float[Array, "..."]
    slope: Float[Array, "..."]
    steep: Float[Array, "..."]


def unit_sums(symmetry: NetworkSymmetry, params: PyTree, gradient: PyTree) -> dict[str, UnitSums]:
    """Computes per-unit sums of squares and products for every space of positive scalings, in one pass.

    `params` are the arrays that the scales multiply: parameters plus the offsets of their specs, if there are
    any. The derivative along each unit's scaling needs no second backward pass, because an exact symmetry
    changes the gradient by known factors. Source: the gradient law in section 2 of arXiv:2205.10637.

    >>> import symmetrax as sx
    >>> params = {"w1": jnp.array([[3.0, 4.0]]), "w2": jnp.array([[2.0]])}
    >>> symmetry = sx.models.mlp_symmetry(params)
    >>> sums = unit_sums(symmetry, params, params)["hidden1"]
    >>> sums.weights_in.tolist(), sums.weights_out.tolist(), sums.slope.tolist()
    ([25.0], [4.0], [-42.0])
    """
    groups = _scalings(symmetry)[1]
    dtype = jnp.result_type(*jax.tree.leaves(eqx.filter(gradient, eqx.is_inexact_array)))
    sums = {name: UnitSums(*[jnp.zeros(group.algebra, dtype)] * 8) for name, group in groups.items()}
    both = zip(_blocks(symmetry, params), _blocks(symmetry, gradient), strict=True)
    for (weight, bindings), (slope, _) in both:
        for binding in (binding for binding in bindings if binding.entry.name in groups):
            # An entry that scales with s^p has a gradient that scales with s^-p: the derivative of ||g||^2 by
            # log s is known from ||g||^2 alone.
            power = binding.exponent
            squares, steep, products = (
                _by_unit(x, binding) for x in (weight * weight, slope * slope, weight * slope)
            )
            side = "in" if power > 0 else "out"
            added = {
                f"weights_{side}": squares,
                f"gradients_{side}": steep,
                f"products_{side}": products,
                "slope": -2 * power * steep,
                "steep": 2 * abs(power) * steep,
            }
            old, taken = sums[binding.entry.name], binding.taken
            new = {name: getattr(old, name).at[taken].add(value) for name, value in added.items()}
            sums[binding.entry.name] = old._replace(**new)
    return sums


def unit_features(
    symmetry: NetworkSymmetry, params: PyTree, gradient: PyTree
) -> Float[Array, "features units"]:
    """Computes the features of every unit for a `PerNeuronLSTM`.

    The rows are named in `FEATURES`; the columns are the units, in the order of the algebra's coordinates.
    All features are invariant to the scale of parameters and gradients, and have finite derivatives even
    where weights or gradients are zero. The layer of a unit is its space.

    >>> import symmetrax as sx
    >>> params = {"w1": jnp.array([[3.0, 4.0], [1.0, 0.0]]), "w2": jnp.array([[2.0, 1.0]])}
    >>> features = unit_features(sx.models.mlp_symmetry(params), params, params)
    >>> slopes = features[FEATURES.index("slope / unit")]  # (4 - 25) / (4 + 25), (1 - 1) / (1 + 1)
    >>> print([f"{slope:.3f}" for slope in slopes])
    ['-0.724', '0.000']
    """
    sums = unit_sums(symmetry, _scaled(symmetry.shifted(params)), _scaled(gradient))
    units = sum(one.steep.size for one in sums.values())
    # Relative to the mean over all units, not of each layer, so that layers can be compared.
    steep = jnp.sum(jnp.stack([jnp.sum(one.steep) for one in sums.values()])) / units
    return jnp.concatenate([_layer(one, steep) for one in sums.values()], axis=1)


def _layer(sums: UnitSums, steep: Float[Array, ""]) -> Float[Array, "features units"]:
    """Computes the features of one space; `steep` is the mean of `sums.steep` over all units."""
    s = jax.tree.map(jnp.ravel, sums)
    to_layer = [
        _log(x) - _log(jnp.mean(x)) for x in (s.weights_in, s.weights_out, s.gradients_in, s.gradients_out)
    ]
    weights = _log(s.weights_out) - _log(s.weights_in)
    gradients = _log(s.gradients_out) - _log(s.gradients_in)
    layer = _log(jnp.mean(s.steep)) - _log(steep)
    cosines = [
        products / jnp.sqrt(squares * steeps + _TINY)
        for products, squares, steeps in (
            (s.products_in, s.weights_in, s.gradients_in),
            (s.products_out, s.weights_out, s.gradients_out),
        )
    ]
    # `own` compares a unit's outgoing and incoming gradient; `shared` is small for units that hardly matter.
    own = s.slope / (s.steep + _TINY)
    shared = s.slope / jnp.sqrt(s.slope**2 + steep**2 + _TINY**2)
    # Means over the layer are equal for all of its units, and let each of them know what the others are like.
    pooled = [jnp.mean(x) for x in (weights, gradients, own)]
    rows = [*to_layer, weights, gradients, layer, *cosines, own, shared, *pooled]
    return jnp.stack([jnp.broadcast_to(row, own.shape) for row in rows])


def _log(square: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Computes the logarithm of a norm from its square."""
    return 0.5 * jnp.log(square + _TINY)


def _scaled(tree: PyTree) -> PyTree:
    """Divides the tree by its largest entry, held constant in derivatives; all features have degree zero."""
    largest = largest_entry(eqx.filter(tree, eqx.is_inexact_array))
    unit = jnp.where(largest > 0, largest, 1.0)
    return jax.tree.map(lambda x: x / unit if eqx.is_inexact_array(x) else x, tree)


def _blocks(symmetry: NetworkSymmetry, tree: PyTree) -> Iterator[tuple[Array, tuple[Binding, ...]]]:
    """Iterates over the blocks of all arrays with a spec, with the spaces that act on them."""
    blocks: list[tuple[Array, tuple[Binding, ...]]] = []

    def collect(x: Array, bindings: tuple[Binding, ...]) -> Array:
        blocks.append((x, bindings))
        return x

    symmetry.visit(tree, collect)
    return iter(blocks)


def _by_unit(x: Array, binding: Binding) -> Array:
    """Sums over all axes except the bound axis and the group's indices, and keeps their order."""
    axes = (*binding.indices, binding.axis)
    kept = jnp.sum(x, axis=tuple(axis for axis in range(x.ndim) if axis not in axes))
    ranks = sorted(axes)
    return jnp.transpose(kept, [ranks.index(axis) for axis in axes])
