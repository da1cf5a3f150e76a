"""Traverses an array by its spec: splits its axes into blocks and reassembles the blocks."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from symmetrax._text import near_match
from symmetrax.groups._diagonal import AbstractGroup
from symmetrax.groups._matrices import ScaledRotation
from symmetrax.symmetry._specs import Both, Concatenated, Entry, Merged, Node, Plain, entries, parse


@dataclasses.dataclass(frozen=True)
class Binding:
    """A space acting on axis `axis` of a fully split block; the group's indices lie along `indices`.

    >>> Binding(Entry("h", star=True, power=2.0), axis=0, indices=()).exponent
    -2.0
    """

    entry: Entry
    axis: int
    indices: tuple[int, ...]

    @property
    def exponent(self) -> float:
        """The power of a scale with which this entry multiplies the block: negative for a dual entry."""
        return self.entry.power * (-1) ** self.entry.star

    @property
    def taken(self) -> int | slice:
        """The group's elements that act here, along its first index."""
        index = self.entry.index
        return index if isinstance(index, int) else slice(*(index or (None,)))


#: The callback for every block: maps the block's array and the spaces that act on it to the moved block.
Visit = Callable[[Any, tuple[Binding, ...]], Any]


#: A node, its enclosing brackets, and a description of its position.
_Item = tuple[Node, tuple[int, ...], str]


def walk(text: str, x: Any, groups: Mapping[str, AbstractGroup], visit: Visit) -> Any:
    """Splits a JAX or NumPy array `x` into blocks by its spec, visits every block, and reassembles them.

    Raises ValueError, naming the axis, if the spec does not fit the shape of `x`.

    >>> import symmetrax as sx
    >>> halves = {"a": sx.groups.Permutation(2), "b": sx.groups.Permutation(2)}
    >>> print(walk("a+b", jnp.zeros(4), halves, lambda x, bindings: x + (bindings[0].entry.name == "b")))
    [0. 0. 1. 1.]
    """
    nodes = parse(text)
    shape = x.shape if x.ndim else (1,)  # treat a scalar as an axis of length 1
    if len(nodes) != len(shape):
        raise ValueError(
            f"the spec {text!r} names {len(nodes)} axes, but the array has shape {x.shape}: write one entry "
            "for every axis"
        )
    lengths = index_lengths(nodes, groups)
    _check_names(text, nodes, groups, lengths)
    items = [(node, (), f"axis {k}") for k, node in enumerate(nodes)]
    return _Walk(groups, lengths, visit).block(items, x.reshape(shape)).reshape(x.shape)


@dataclasses.dataclass(frozen=True)
class _Walk:
    groups: Mapping[str, AbstractGroup]
    lengths: Mapping[str, int]
    visit: Visit

    def block(self, items: list[_Item], x: Any) -> Any:
        # Splits the first axis that has parts, and recurses until no axis has any. The pieces of a
        # concatenated axis are walked one by one, since different groups may act on them.
        for k, (node, scope, where) in enumerate(items):
            before, after = items[:k], items[k + 1 :]
            if isinstance(node, Merged):
                sizes = self.split(node, x.shape[k], where)
                inside = [(part, (*scope, k), f"{part} in {where}") for part in node.parts]
                apart = x.reshape(*x.shape[:k], *sizes, *x.shape[k + 1 :])
                return self.block([*before, *inside, *after], apart).reshape(x.shape)
            if isinstance(node, Concatenated):
                sizes = self.segments(node, x.shape[k], where)
                library = np if isinstance(x, np.ndarray) else jnp
                pieces = library.split(x, np.cumsum(sizes)[:-1], axis=k)
                moved = [
                    self.block([*before, (part, scope, f"{part} in {where}"), *after], piece)
                    for part, piece in zip(node.parts, pieces, strict=True)
                ]
                return library.concatenate(moved, axis=k)
        return self.visit(x, tuple(self.bindings(items, x.shape)))

    def split(self, node: Merged, length: int, where: str) -> list[int]:
        """The lengths of the parts of a merged axis; at most one length is inferred."""
        sizes, free = self.part_sizes(node, where)
        known = int(np.prod([size for size in sizes if size is not None]))
        if length % known or (not free and known != length):
            raise ValueError(
                f"{where} has length {length}, which is not a product of the sizes {sizes} of {node}: "
                "correct the sizes of its parts"
            )
        return [length // known if size is None else size for size in sizes]

    def segments(self, node: Concatenated, length: int, where: str) -> list[int]:
        """The lengths of the parts of a concatenated axis; at most one length is inferred."""
        sizes, free = self.part_sizes(node, where)
        known = sum(size for size in sizes if size is not None)
        if known > length or (not free and known != length):
            raise ValueError(
                f"{where} has length {length}, but the parts of {node} add up to {known}: correct the sizes "
                f"{sizes} of its parts"
            )
        return [length - known if size is None else size for size in sizes]

    def part_sizes(self, node: Merged | Concatenated, where: str) -> tuple[list[int | None], int]:
        """The sizes of a node's parts, and how many of them are unknown: at most one can be inferred."""
        sizes = [node_size(part, self.groups, self.lengths) for part in node.parts]
        free = sizes.count(None)
        if free > 1:
            raise ValueError(
                f"{where}: {node} has {free} parts of unknown size, of which at most one can be inferred: "
                "write numbers for the others"
            )
        return sizes, free

    def bindings(self, items: list[_Item], shape: tuple[int, ...]):
        for k, (node, scope, where) in enumerate(items):
            expected = node_size(node, self.groups, self.lengths)
            if expected is not None and expected != shape[k]:
                raise ValueError(
                    f"{where} has length {shape[k]}, but {node} has size {expected}: correct the spec or "
                    "the size"
                )
            for entry in entries(node):
                if entry.name in self.groups:
                    if self.groups[entry.name].size != shape[k]:
                        size = self.groups[entry.name].size
                        raise ValueError(
                            f"{where} has length {shape[k]}, but the space {entry.name!r} has size {size}: "
                            f"make its group of size {shape[k]}, or correct the spec"
                        )
                    yield Binding(entry, k, self.indices(entry, items, scope, where))

    def indices(
        self, entry: Entry, items: list[_Item], scope: tuple[int, ...], where: str
    ) -> tuple[int, ...]:
        """The axes of the group's indices, searched from the entry's own bracket outwards."""
        found = []
        for position, (name, _) in enumerate(self.groups[entry.name].per):
            # A fixed element, `h[0]`, has no axis for the first index.
            if position == 0 and isinstance(entry.index, int):
                continue
            axes: list[int] = []
            # From the innermost bracket outwards, so that `(h q) (h k)` binds each to its own `h`.
            for depth in range(len(scope), -1, -1):
                axes = [
                    j
                    for j, (node, other, _) in enumerate(items)
                    if isinstance(node, Entry) and node.name == name and other[:depth] == scope[:depth]
                ]
                if axes:
                    break
            if len(axes) != 1:
                problem = "does not occur" if not axes else f"occurs {len(axes)} times"
                raise ValueError(
                    f"{where}: {entry} needs its index {name!r} once in this array; it {problem}: write it "
                    "on the axis along which the group's elements lie"
                )
            found += axes
        return tuple(found)


def node_size(node: Node, groups: Mapping[str, AbstractGroup], lengths: Mapping[str, int]) -> int | None:
    """The length of an axis, or None if the spec alone does not determine it.

    >>> node_size(parse("(h 4)")[0], {}, {"h": 2}), node_size(parse("(h _)")[0], {}, {"h": 2})
    (8, None)
    """
    match node:
        case Plain(size):
            return size
        case Entry(name):
            return groups[name].size if name in groups else lengths.get(name)
        case Both(parts):
            return node_size(parts[0], groups, lengths)  # all parts have one size, see `check_commuting`
        case Merged(parts) | Concatenated(parts):
            sizes = [node_size(part, groups, lengths) for part in parts]
            known = [size for size in sizes if size is not None]
            if len(known) < len(sizes):
                return None
            return int(np.prod(known)) if isinstance(node, Merged) else sum(known)


def index_lengths(nodes: tuple[Node, ...], groups: Mapping[str, AbstractGroup]) -> dict[str, int]:
    """The lengths of indices; spaces in this spec take precedence, and slices shorten their index.

    >>> import symmetrax as sx
    >>> groups = {"a": sx.groups.PositiveDiagonal(3, per={"h": 8})}
    >>> index_lengths(parse("h a"), groups), index_lengths(parse("h a[1:]"), groups)
    ({'h': 8}, {'h': 7})
    """
    lengths = {name: length for group in groups.values() for name, length in group.per}
    spaces = [entry for node in nodes for entry in entries(node) if entry.name in groups]
    # Two groups may use one name for indices of different lengths, in different arrays.
    for entry in spaces:
        lengths |= dict(groups[entry.name].per)
    for entry in spaces:
        if isinstance(entry.index, tuple):
            name, length = groups[entry.name].per[0] if groups[entry.name].per else ("", 0)
            lengths[name] = len(range(*slice(*entry.index).indices(length)))
    return lengths


def check_commuting(text: str, groups: Mapping[str, AbstractGroup]) -> None:
    """Raises ValueError if `&` joins spaces whose groups do not commute, which would not give an action.

    >>> import symmetrax as sx
    >>> check_commuting("a&b", {"a": sx.groups.PositiveDiagonal(3), "b": sx.groups.Permutation(3)})
    Traceback (most recent call last):
    ValueError: the spec 'a&b' puts PositiveDiagonal(3) and Permutation(3) on one axis, which do not...
    """
    for both in (part for node in parse(text) for part in _boths(node)):
        for entry in both.parts:
            if entry.name not in groups:
                raise ValueError(
                    f"the spec {text!r} has {entry} in {both}, but & joins spaces only: remove {entry}"
                )
        kinds = [groups[entry.name] for entry in both.parts]
        if len({group.size for group in kinds}) > 1:
            raise ValueError(
                f"the spec {text!r} puts {' and '.join(map(str, kinds))} on one axis, which have different "
                "sizes: use groups of one size, or split the axis"
            )
        # Diagonal matrices commute, and so do scaled rotations, which are complex numbers.
        if not all(group.diagonal for group in kinds) and not all(
            isinstance(group, ScaledRotation) for group in kinds
        ):
            raise ValueError(
                f"the spec {text!r} puts {' and '.join(map(str, kinds))} on one axis, which do not commute: "
                "only scalings and signs do, or two scaled rotations. Make two symmetries instead"
            )


def _boths(node: Node) -> tuple[Both, ...]:
    if isinstance(node, Both):
        return (node,)
    return () if isinstance(node, Entry | Plain) else tuple(b for part in node.parts for b in _boths(part))


def _check_names(text: str, nodes: tuple[Node, ...], groups: Mapping[str, AbstractGroup], lengths) -> None:
    for entry in (entry for node in nodes for entry in entries(node)):
        if entry.name not in groups and entry.name not in lengths:
            known = [*groups, *lengths]
            raise ValueError(
                f"the spec {text!r} names {entry.name!r}, which is neither a space nor an index."
                f"{near_match(entry.name, known)} The spaces and indices are: {', '.join(known)}"
            )
        if entry.name in groups:
            group = groups[entry.name]
            if entry.power != 1 and not group.abelian:
                raise ValueError(
                    f"the spec {text!r} has the power {entry}, but elements of {group} do not commute: "
                    "only scalings, signs and scaled rotations have powers. Remove the power"
                )
            if entry.index is not None and not group.per:
                raise ValueError(
                    f"the spec {text!r} has the index {entry}, but {group} has no `per` to index: make the "
                    f"group with per={{...}}, or write {entry.name!r}"
                )
        elif entry.star or entry.power != 1 or entry.index is not None:
            raise ValueError(
                f"the spec {text!r} has {entry}, but {entry.name!r} is an index: nothing acts along it. "
                f"Write {entry.name!r}"
            )
    check_commuting(text, groups)
