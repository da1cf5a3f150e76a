"""Dimension numbers for Muon: which axes of each array form a matrix, and along which it has a batch."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import optax
from jaxtyping import PyTree

from symmetrax._tree import leaf_names
from symmetrax.discovery._exports._direction import layout_of, outputs
from symmetrax.discovery._exports._places import Place, hidden, spaces_of
from symmetrax.discovery._found import Found
from symmetrax.groups._diagonal import Permutation
from symmetrax.symmetry._paths import match_paths, named_shapes

#: Why nothing may act on an axis.
_NOTHING = "data, a table that is looked up, or a space without symmetries"

#: The two sides of a matrix: axes of an array.
_Sides = tuple[tuple[int, ...], tuple[int, ...]]


class MuonNumbers(NamedTuple):
    """Dimension numbers for every array, and what could not be said about some of them.

    `numbers` has the structure of the parameters, with `optax.contrib.MuonDimensionNumbers` or None as
    leaves. `reasons` says, by path, why an array has None, or what its numbers leave out.

    >>> MuonNumbers({"b": None}, {"b": "a vector"}).reasons
    {'b': 'a vector'}
    """

    numbers: PyTree
    reasons: dict[str, str]


def muon_dimension_numbers(
    found: Iterable[Found],
    params: PyTree,
    *,
    batch: Mapping[str, Sequence[int]] | None = None,
    matrices: Sequence[str] = (),
) -> MuonNumbers:
    """Tells Muon which axes of every array form a matrix, with a matrix for every head, expert and layer.

    Muon orthogonalizes the momentum of every matrix. An array `(width, heads, size)` holds one matrix per
    head and an array `(experts, width, hidden)` one per expert, and a discovery knows: where a group has an
    element for each value of an index, the axis of this index is a batch of matrices. All other axes are
    sorted into a reduction and an output side, by the hidden spaces that they meet. Biases and gains tell
    which side is the output; where they don't, the layout of most other matrices decides. It only matters
    for the factor with which Muon scales steps by the shape.

    An array is left to Adam (None) if one of its sides meets no hidden space: embeddings that are looked up,
    the first layer and the last, as recommended for Muon. Dimension numbers cannot split an axis, so that
    heads merged in one axis, `(heads size)`, and fused projections are orthogonalized as one matrix, and
    `reasons` says so.

    **Arguments:** `found` is the `Discovery` (or some of it), `params` the parameters that were searched, of
    which only shapes are read. `batch` maps patterns of paths, such as `blocks.{i}.q`, to axes that are a
    batch although no group shows it. `matrices` lists patterns of arrays that Muon must take although one
    of their sides meets no hidden space.

    **Returns** `numbers`, for `optax.contrib.muon(muon_weight_dimension_numbers=...)`, and `reasons`. Raises
    ValueError if `params` are not those that were searched, or a pattern matches no array.

    >>> import jax, jax.numpy as jnp, symmetrax as sx
    >>> params = {"up": jnp.ones((4, 3, 5)), "mid": jnp.ones((4, 5, 6)), "down": jnp.ones((4, 6, 2))}
    >>> x = jax.random.normal(jax.random.key(0), (8, 3))
    >>> def loss(p):  # four experts
    ...     hidden = jax.nn.relu(jax.nn.relu(x @ p["up"]) @ p["mid"])
    ...     return jnp.mean(jnp.tanh(hidden @ p["down"]).sum(0) ** 2)
    >>> found = sx.find_symmetries(loss, params, jax.random.key(1), method="program")
    >>> numbers, reasons = muon_dimension_numbers(found, params)
    >>> numbers["mid"]
    MuonDimensionNumbers(reduction_axis=(1,), output_axis=(2,))
    >>> numbers["up"], reasons["up"]
    (None, 'nothing acts on axis 1: data, a table that is looked up, or a space without symmetries')
    """
    spaces, shapes = spaces_of(found, params), named_shapes(params)
    given = {
        path: set(axes) for pattern, axes in (batch or {}).items() for path in match_paths(pattern, shapes)
    }
    forced = {path for pattern in matrices for path in match_paths(pattern, shapes)}
    places: dict[str, list[Place]] = {path: [] for path in shapes}
    for here in hidden(spaces).values():
        for place in here:
            places[place.path].append(place)
    split: dict[str, _Sides] = {}
    reasons: dict[str, str] = {}
    for path, leaf in shapes.items():
        axes, reason = _sides(leaf.shape, places[path], given.get(path, set()), forced=path in forced)
        if axes is not None:
            split[path] = axes
        if reason:
            reasons[path] = reason
    known = outputs(spaces)
    layout = layout_of(known, [(path, *sides) for path, sides in split.items()])

    def number(path: str) -> optax.contrib.MuonDimensionNumbers | None:
        if path not in split:
            return None
        first, second = split[path]
        votes = [known[path, axis] == (axis in second) for axis in (*first, *second) if (path, axis) in known]
        if votes[0] if votes else layout == "in out":
            return optax.contrib.MuonDimensionNumbers(first, second)
        return optax.contrib.MuonDimensionNumbers(second, first)

    numbers = [number(path) for path in leaf_names(params)]
    return MuonNumbers(jax.tree.unflatten(jax.tree.structure(params), numbers), reasons)


def _sides(
    shape: tuple[int, ...], places: Sequence[Place], batch: set[int], *, forced: bool
) -> tuple[_Sides | None, str]:
    """The two sides of an array, or None, and what is to be said about them."""
    # An axis of length one takes no part in a product.
    batch = {axis % len(shape) for axis in batch} | {k for k, length in enumerate(shape) if length == 1}
    partly = ""
    for place in places:
        for name, (axis, factor) in place.indices.items():
            if factor.length == shape[axis]:
                batch.add(axis)
            else:
                partly = f"index {name} is a part of axis {axis}, which dimension numbers cannot split"
    rest = [k for k in range(len(shape)) if k not in batch]
    if len(rest) < 2:
        return None, "a vector" if len(shape) < 2 else "a vector for each entry of its other axes"
    named = sorted({place.axis for place in places} & set(rest))
    if len(named) < 2 and not (forced and named):
        bare = [k for k in rest if k not in named]
        return (
            None,
            f"nothing acts on {_axes(bare)}: data, a table that is looked up, or a space without symmetries",
        )
    if len(named) > 2:
        return None, f"{_axes(named)} meet hidden spaces: name those that are a batch in `batch`"
    if len(named) < 2:
        one, other = tuple(named), tuple(k for k in rest if k not in named)
        return ((one, other) if one < other else (other, one)), partly or _merged(places)
    # Spatial axes stand beside the inputs of a kernel, the size of heads behind the heads.
    first, second = (tuple(k for k in rest if (k < named[1]) == before) for before in (True, False))
    joined = [k for k in rest if k not in named]
    if joined and not partly:
        partly = f"{_axes(joined)} joined to a side: if they count matrices, name them in `batch`"
    return (first, second), partly or _merged(places)


def _axes(axes: Sequence[int]) -> str:
    return f"ax{'is' if len(axes) == 1 else 'es'} {', '.join(map(str, axes))}"


def _merged(places: Sequence[Place]) -> str:
    """What is merged or concatenated on one axis, which dimension numbers cannot say."""
    for place in places:
        ahead = place.factors[: place.factors.index(place.units)]
        blocks = isinstance(place.group, Permutation) and place.block > 1
        if ahead or blocks:
            sizes = " x ".join(str(factor.length) for factor in place.factors)
            return f"axis {place.axis} holds {sizes} entries: reshape it for a matrix per head"
    if any(not place.whole for place in places):
        place = next(place for place in places if not place.whole)
        return f"axis {place.axis} is concatenated from several parts: split it for a matrix per part"
    return ""
