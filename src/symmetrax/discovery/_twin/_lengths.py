"""Lengths of axes as expressions in unknown lengths of spaces, indices and segments."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

from symmetrax.groups._diagonal import AbstractGroup, Permutation
from symmetrax.groups._matrices import ScaledRotation
from symmetrax.symmetry._specs import Both, Concatenated, Entry, Merged, Node, Plain
from symmetrax.symmetry._walk import index_lengths


@dataclasses.dataclass(frozen=True)
class Unknown:
    """A length that may differ between a twin and the large model; `small` is that of the twin, if known.

    `counts` marks numbers of heads, which axes alone may leave open.

    >>> Unknown(("size", 0), 4).small
    4
    """

    key: tuple
    small: int | None
    counts: bool = False


@dataclasses.dataclass(frozen=True)
class Product:
    """The length of a merged axis.

    >>> len(Product((2, 3)).parts)
    2
    """

    parts: tuple["Length", ...]


@dataclasses.dataclass(frozen=True)
class Total:
    """The length of a concatenated axis.

    >>> len(Total((2, 3)).parts)
    2
    """

    parts: tuple["Length", ...]


#: A length: a number, an unknown, or made of lengths.
Length = int | Unknown | Product | Total


def length_of(
    nodes: Sequence[Node], axis: int, space: int, path: str, groups: Mapping[str, AbstractGroup]
) -> Length:
    """The length of an axis of a spec, with unknowns for space number `space`, its indices, and numbers.

    >>> import symmetrax as sx
    >>> from symmetrax.symmetry._specs import parse
    >>> groups = {"g": sx.groups.GeneralLinear(3, per={"h": 2})}
    >>> length = length_of(parse("6+(h g) _"), 0, 0, "w", groups)
    >>> small(length), [unknown.key[0] for unknown in unknowns(length)]
    (12, ['number', 'index', 'size'])
    """
    numbers = itertools.count()
    lengths = index_lengths(tuple(nodes), groups)

    def made(node: Node) -> Length:
        match node:
            case Plain(size):
                return Unknown(("number", space, path, axis, next(numbers)), size)
            case Both(parts):
                return made(parts[0])
            case Entry(name) if name in groups:
                group = groups[name]
                if isinstance(group, ScaledRotation):
                    return 2
                # Blocks that are permuted are heads.
                blocks = isinstance(group, Permutation) and _is_block(nodes[axis], name)
                return Unknown(("size", space, name), group.size, blocks)
            case Entry(name):
                group, full = next((g, dict(g.per)[name]) for g in groups.values() if name in dict(g.per))
                last = isinstance(group, ScaledRotation) and group.per[-1][0] == name
                index = Unknown(("index", space, name), full, not last)
                cut = full - lengths[name]  # of a slice, such as h[1:]
                return Total((index, -cut)) if cut else index
            case Merged(parts):
                return Product(tuple(made(part) for part in parts))
            case Concatenated(parts):
                return Total(tuple(made(part) for part in parts))

    return made(nodes[axis])


def _is_block(node: Node, name: str) -> bool:
    """Whether a space has entries behind its units."""
    if isinstance(node, Concatenated):
        return any(_is_block(part, name) for part in node.parts)
    return isinstance(node, Merged) and any(
        isinstance(part, Entry) and part.name == name and k + 1 < len(node.parts)
        for k, part in enumerate(node.parts)
    )


def unknowns(length: Length) -> Iterator[Unknown]:
    """All unknowns of a length, in order.

    >>> list(unknowns(Product((2, Unknown(("size", 0), 4)))))
    [Unknown(key=('size', 0), small=4, counts=False)]
    """
    if isinstance(length, Unknown):
        yield length
    elif not isinstance(length, int):
        for part in length.parts:
            yield from unknowns(part)


def small(length: Length) -> int | None:
    """The length in the twin, or None if its specs do not tell.

    >>> small(Total((Unknown(("size", 0), 4), 2))), small(Unknown(("number", 0), None))
    (6, None)
    """
    return value(length, {one: one.small for one in unknowns(length) if one.small is not None})


def value(length: Length, known: Mapping[Unknown, int]) -> int | None:
    """A length, given those of some unknowns; None if others are needed.

    >>> value(Product((2, Unknown(("size", 0), 4))), {Unknown(("size", 0), 4): 16})
    32
    """
    if isinstance(length, int):
        return length
    if isinstance(length, Unknown):
        return known.get(length)
    parts = [value(part, known) for part in length.parts]
    there = [part for part in parts if part is not None]
    if len(there) < len(parts):
        return None
    return math.prod(there) if isinstance(length, Product) else sum(there)


def counts_of(length: Length) -> Iterator[Length]:
    """The numbers of heads of an axis: the factors of a merged axis in front of its units.

    >>> heads, size = Unknown(("index", 0), 2, counts=True), Unknown(("size", 0), 4)
    >>> list(counts_of(Product((heads, 3, size)))) == [Product((heads, 3))]
    True
    """
    if isinstance(length, Product) and any(one.counts for part in length.parts for one in unknowns(part)):
        ends = [
            k
            for k, part in enumerate(length.parts)
            if part == 2 or (isinstance(part, Unknown) and not part.counts and part.key[0] != "number")
        ]
        # Copies in front of the heads are segments, of queries and keys say.
        first = next(k for k, part in enumerate(length.parts) if any(one.counts for one in unknowns(part)))
        yield Product(length.parts[first : ends[0] if ends and ends[0] > first else -1])
    elif isinstance(length, Total):
        for part in length.parts:
            yield from counts_of(part)
