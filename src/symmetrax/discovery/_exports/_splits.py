"""How axes are split into heads, experts, layers and segments, for optimizers that work per head."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import PyTree

from symmetrax.discovery._exports._places import Factor, Place, spaces_of
from symmetrax.discovery._found import Found
from symmetrax.groups._diagonal import Permutation
from symmetrax.groups._matrices import GeneralLinear, Orthogonal, ScaledRotation

#: Factors that count matrices, not their entries.
_COUNTED = ("heads", "copies", "experts", "layers")


def head_splits(found: Iterable[Found], params: PyTree) -> dict[str, list[dict[str, Any]]]:
    """Lists how the axes of every array are split, as plain dicts, lists and numbers.

    Optimizers that treat every head as a matrix of its own, in any framework, need to know where the heads
    are. Each split is a dict:

    - `axis` and `start`: the split holds the entries `start + i * strides[0] + j * strides[1] + ...` of this
      axis. Segments of a fused axis (queries, keys and values, or gates) are several splits of one axis.
    - `sizes` and `strides`: the length and step of every factor, slowest first.
    - `kinds`: what each factor counts: "heads", "copies" (of heads that share one key, or of gates),
      "frequencies" (of rotary pairs), "units", "entries" (behind each unit, as in flattened images); and, on
      an axis of their own, "experts", "layers" or "heads". Experts can be exchanged, layers cannot.
    - `count`: how many matrices, `size`: how many entries of this axis each of them has.

    Arrays without a split are left out. Heads on which only a permutation acts, on an axis of their own, look
    like hidden units and are left out too.

    **Arguments:** `found` is the `Discovery` (or some of it), `params` the parameters that were searched, of
    which only shapes are read. Raises ValueError if they are others.

    >>> import jax, jax.numpy as jnp, symmetrax as sx
    >>> params = {"q": jnp.ones((5, 6)), "k": jnp.ones((5, 6))}
    >>> x = jax.random.normal(jax.random.key(1), (4, 5))
    >>> def loss(p):
    ...     q, k = (jnp.reshape(x @ p[name], (4, 2, 3)) for name in "qk")
    ...     return jnp.mean(jnp.tanh(jnp.einsum("the,she->hts", q, k)) ** 2)
    >>> found = sx.find_symmetries(loss, params, jax.random.key(1), method="program")
    >>> print(head_splits(found, params)["k"])
    [{'axis': 1, 'start': 0, 'sizes': [2, 3], 'strides': [3, 1], 'kinds': ['heads', 'units'],
      'count': 2, 'size': 3}]
    """
    spaces = spaces_of(found, params)
    places = [place for _, here in spaces.values() for place in here]
    exchanged = {
        (place.path, place.axis, place.units.length, place.units.stride)
        for place in places
        if isinstance(place.group, Permutation)
    }
    splits: dict[str, list[dict[str, Any]]] = {}
    for path in dict.fromkeys(place.path for place in places):
        here = [place for place in places if place.path == path]
        made = [*_own_axes(here, exchanged), *_merged(here)]
        if made:
            splits[path] = sorted(made, key=lambda split: (split["axis"], split["start"]))
    return splits


def _own_axes(places: Sequence[Place], exchanged: set[tuple]) -> Iterator[dict[str, Any]]:
    """Axes that hold an index of some group."""
    seen: set[int] = set()
    # Linear groups first: they tell heads from experts.
    for place in sorted(places, key=lambda place: not isinstance(place.group, GeneralLinear | Orthogonal)):
        for axis, factor in place.indices.values():
            if axis in seen or factor.length < 2:
                continue
            seen.add(axis)
            linear = isinstance(place.group, GeneralLinear | Orthogonal | ScaledRotation)
            kind = "layers"
            if (place.path, axis, factor.length, factor.stride) in exchanged:
                kind = "heads" if linear else "experts"
            behind = [Factor("_", factor.stride, 1)] if factor.stride > 1 else []
            yield _split(axis, 0, [factor, *behind], [kind, "entries"][: 1 + len(behind)])


def _merged(places: Sequence[Place]) -> Iterator[dict[str, Any]]:
    """Axes of several factors, and segments of axes."""
    covered: dict[int, np.ndarray] = {}
    # The finest first: a block of a permutation of heads is what a linear group splits into units.
    for place in sorted(places, key=lambda place: -len(place.factors)):
        factors = [factor for factor in place.factors if factor.length > 1]
        if len(factors) < 2 and place.whole:
            continue
        positions = np.full((), place.start)
        for factor in factors:
            positions = positions[..., None] + factor.stride * np.arange(factor.length)
        taken = covered.setdefault(place.axis, np.zeros(place.shape[place.axis], bool))
        if not taken[positions].all():
            taken[positions] = True
            yield _split(place.axis, place.start, factors, [_kind(place, factor) for factor in factors])


def _kind(place: Place, factor: Factor) -> str:
    at, units = place.factors.index(factor), place.factors.index(place.units)
    blocks = isinstance(place.group, Permutation) and place.block > 1
    if factor.name == "_":
        return "copies" if at < units else "units" if blocks else "entries"
    if factor.name == place.space:
        return "heads" if blocks else "units"
    last = [name for name, _ in place.group.per][-1:]
    return "frequencies" if isinstance(place.group, ScaledRotation) and last == [factor.name] else "heads"


def _split(axis: int, start: int, factors: Sequence[Factor], kinds: Sequence[str]) -> dict[str, Any]:
    sizes = [factor.length for factor in factors]
    counted = [size for size, kind in zip(sizes, kinds, strict=True) if kind in _COUNTED]
    return {
        "axis": axis,
        "start": start,
        "sizes": sizes,
        "strides": [factor.stride for factor in factors],
        "kinds": list(kinds),
        "count": math.prod(counted),
        "size": math.prod(sizes) // math.prod(counted),
    }
