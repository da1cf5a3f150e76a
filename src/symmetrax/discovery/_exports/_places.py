"""Where the spaces of a discovery act, as plain numbers: axis, start, sizes and strides."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jaxtyping import PyTree

from symmetrax._text import near_match
from symmetrax.discovery._exports._pieces import Factors, pieces
from symmetrax.discovery._found import Found
from symmetrax.groups._diagonal import AbstractGroup
from symmetrax.symmetry._paths import named_shapes
from symmetrax.symmetry._specs import Both, Entry, Node, Plain, offset_of, parse
from symmetrax.symmetry._walk import index_lengths


@dataclasses.dataclass(frozen=True)
class Factor:
    """A factor of an axis: its name in the spec ("_" if nothing acts on it), its length and its stride.

    >>> Factor("h0", length=2, stride=6).name
    'h0'
    """

    name: str
    length: int
    stride: int


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a space acts on an axis: at the positions `start` plus multiples of the strides of all factors.

    One factor has the name of the space: the units on which an element acts. `indices` are those of its
    group's indices that are on other axes, with the axis and the factor there. `power` is that of a scale,
    negative for the inverse. `element` is the fixed element, or the slice, along the first index.

    >>> units = Factor("h0", 2, 6), Factor("g0", 6, 1)
    >>> place = Place("g0", None, "w", (3, 36), 1, 24, units, -1.0, {}, None, 0.0)
    >>> place.to_json() == {
    ...     "array": "w", "axis": 1, "start": 24, "sizes": [2, 6], "strides": [6, 1],
    ...     "names": ["h0", "g0"], "power": -1,
    ... }
    True
    """

    space: str
    group: Any
    path: str
    shape: tuple[int, ...]
    axis: int
    start: int
    factors: tuple[Factor, ...]
    power: float
    indices: Mapping[str, tuple[int, Factor]]
    element: int | tuple[int | None, int | None] | None
    offset: float

    @property
    def units(self) -> Factor:
        return next(factor for factor in self.factors if factor.name == self.space)

    @property
    def whole(self) -> bool:
        """Whether the factors fill the axis."""
        return math.prod(factor.length for factor in self.factors) == self.shape[self.axis]

    @property
    def block(self) -> int:
        """The number of entries behind each unit: more than one if the units are blocks, such as heads."""
        behind = self.factors[self.factors.index(self.units) + 1 :]
        return math.prod(factor.length for factor in behind)

    @property
    def is_vector(self) -> bool:
        """Whether the array has no axis other than this one, the group's indices, and axes of length 1."""
        own = {axis for axis, _ in self.indices.values()} | {self.axis}
        return math.prod(length for k, length in enumerate(self.shape) if k not in own) == 1

    def to_json(self, *, power: bool = True) -> dict[str, Any]:
        """Returns plain dicts, lists and numbers; `indices`, `element` and `offset` only if there are any.

        Without `power` for groups whose elements are their own duals.
        """
        made: dict[str, Any] = {
            "array": self.path,
            "axis": self.axis,
            "start": self.start,
            "sizes": [factor.length for factor in self.factors],
            "strides": [factor.stride for factor in self.factors],
            "names": [factor.name for factor in self.factors],
        }
        if power:
            made["power"] = int(self.power) if self.power == int(self.power) else self.power
        if self.indices:
            made["indices"] = {
                name: {"axis": axis, "length": factor.length, "stride": factor.stride}
                for name, (axis, factor) in self.indices.items()
            }
        if self.element is not None:
            made["element"] = self.element if isinstance(self.element, int) else list(self.element)
        return made | ({"offset": self.offset} if self.offset else {})


def described(space: str, group: AbstractGroup) -> dict[str, Any]:
    """What an entry of an export says of a space, apart from its places.

    >>> import symmetrax as sx
    >>> described("p0", sx.groups.Permutation(4, per={"h": 2}))
    {'space': 'p0', 'group': 'Permutation', 'size': 4, 'per': {'h': 2}}
    """
    return {"space": space, "group": type(group).__name__, "size": group.size, "per": dict(group.per)}


def spaces_of(found: Iterable[Found], params: PyTree) -> dict[str, tuple[AbstractGroup, list[Place]]]:
    """The group of every space that holds, and the places where it acts.

    Raises ValueError if the parameters lack an array, or have one of another shape than the searched ones.

    >>> import jax, jax.numpy as jnp, symmetrax as sx
    >>> loss = lambda p: jnp.sum((p["a"] @ p["b"]) ** 2)
    >>> params = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 2))}
    >>> search = {"groups": [sx.groups.GeneralLinear], "method": "program"}
    >>> found = sx.find_symmetries(loss, params, jax.random.key(0), **search)
    >>> [(name, [(place.path, place.axis) for place in places]) for name, (_, places) in
    ...  spaces_of(found, params).items()]
    [('g0', [('a', 1), ('b', 0)])]
    """
    arrays = named_shapes(params)
    spaces: dict[str, tuple[AbstractGroup, list[Place]]] = {}
    for one in found:
        if not one.certificate.holds:
            continue
        for path in one.symmetry.specs:
            if path not in arrays:
                raise ValueError(
                    f"The discovery has the array {path!r}, which is not in the parameters."
                    f"{near_match(path, arrays)} Pass the parameters that were searched."
                )
        for name, group in one.symmetry.spaces.items():
            places = [
                place
                for path, text in one.symmetry.specs.items()
                for place in _places(name, one.symmetry.spaces, path, text, arrays[path].shape)
            ]
            spaces[name] = group, places
    return spaces


def hidden(spaces: Mapping[str, tuple[AbstractGroup, list[Place]]]) -> dict[str, list[Place]]:
    """The spaces inside the network, not at its ends: those that two matrices share, or with heads.

    A loss that treats outputs alike lets them be permuted or rotated, on the last matrix and bias alone.

    >>> hidden({})
    {}
    """
    return {
        name: places
        for name, (group, places) in spaces.items()
        if group.per
        or len({(place.path, place.axis) for place in places if not place.is_vector}) > 1
        or any(not place.whole or len(place.factors) > 1 for place in places)
    }


def _places(
    name: str, groups: Mapping[str, AbstractGroup], path: str, text: str, shape: tuple[int, ...]
) -> Iterator[Place]:
    nodes = parse(text)
    if len(nodes) != max(len(shape), 1):
        raise ValueError(
            f"The discovery has {path!r} with {len(nodes)} axes, the parameters have shape {shape}: pass the "
            "parameters that were searched."
        )
    lengths = index_lengths(nodes, groups)
    try:
        axes = [
            list(pieces(node, length, groups, lengths))
            for node, length in zip(nodes, shape or (1,), strict=True)
        ]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    for axis, parts in enumerate(axes):
        for start, factors in parts:
            for entry in _entries(factors, name):
                plain = tuple(
                    Factor(name if node is entry or _holds(node, entry) else _name(node), length, stride)
                    for node, length, stride in factors
                )
                here = {factor.name for factor in plain}
                indices = {
                    index: (other, factor)
                    for index, _ in groups[name].per
                    if index not in here
                    for other, factor in _index(index, axis, axes)
                }
                power = entry.power * (-1) ** entry.star
                yield Place(
                    name,
                    groups[name],
                    path,
                    tuple(shape),
                    axis,
                    start,
                    plain,
                    power,
                    indices,
                    entry.index,
                    offset_of(text),
                )


def _entries(factors: Factors, name: str) -> Iterator[Entry]:
    for node, _, _ in factors:
        for entry in node.parts if isinstance(node, Both) else (node,):
            if isinstance(entry, Entry) and entry.name == name:
                yield entry


def _holds(node: Node, entry: Entry) -> bool:
    return isinstance(node, Both) and any(part is entry for part in node.parts)


def _name(node: Node) -> str:
    return "_" if isinstance(node, Plain) else str(node)


def _index(index: str, axis: int, axes: list[list[tuple[int, Factors]]]) -> Iterator[tuple[int, Factor]]:
    """The axis, other than this one, on which an index lies."""
    for other, parts in enumerate(axes):
        for _, factors in parts:
            for node, length, stride in factors:
                if other != axis and isinstance(node, Entry) and node.name == index:
                    yield other, Factor(index, length, stride)
