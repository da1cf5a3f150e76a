"""Legs: how the axes of an array touch hidden spaces, written as strings and walked as arrays.

A leg has one word per axis: `h` (transforms with g), `h*` (with g^-T), `h^2` (with a power), `_` or a number
(nothing acts), `(h _ qk)` (a merged axis, first name slowest), `q+k*+v` (a concatenated axis), `g*&u*` (two
commuting spaces on one axis), `h[0]`, `h[1:]` (a fixed element, or a slice, along the group's first index).
Precedence: `&` before `+` before the blank.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from symmetrax._text import near_match
from symmetrax.symmetry._groups import AbstractGroup, ScaledRotation


@dataclasses.dataclass(frozen=True)
class Word:
    """The name of a space or of an index, with what follows it."""

    name: str
    star: bool = False
    power: float = 1.0
    index: int | tuple[int | None, int | None] | None = None

    def __str__(self) -> str:
        index = "" if self.index is None else f"[{_index_text(self.index)}]"
        power = "" if self.power == 1 else f"^{np.format_float_positional(self.power, trim='-')}"
        return f"{self.name}{index}{power}{'*' * self.star}"


@dataclasses.dataclass(frozen=True)
class Plain:
    """Nothing acts: an axis of the given size, or of any."""

    size: int | None = None

    def __str__(self) -> str:
        return "_" if self.size is None else str(self.size)


@dataclasses.dataclass(frozen=True)
class Merged:
    """An axis that is the product of others, the first one slowest."""

    parts: tuple["Node", ...]

    def __str__(self) -> str:
        return f"({' '.join(map(str, self.parts))})"


@dataclasses.dataclass(frozen=True)
class Concatenated:
    """An axis that is the concatenation of others."""

    parts: tuple["Node", ...]

    def __str__(self) -> str:
        return "+".join(map(str, self.parts))


@dataclasses.dataclass(frozen=True)
class Both:
    """Several commuting spaces on one axis."""

    parts: tuple["Word", ...]

    def __str__(self) -> str:
        return "&".join(map(str, self.parts))


Node = Word | Plain | Merged | Concatenated | Both

_TOKEN = re.compile(
    r"\s*(?P<join>[+&])\s*|(?P<blank>\s+)|(?P<open>\()|(?P<close>\))|(?P<plain>_(?!\w)|0*[1-9]\d*)"
    r"|(?P<name>[A-Za-z]\w*)(?:\[(?P<index>-?\d+|(?:-?\d+)?:(?:-?\d+)?)\])?(?:\^(?P<power>-?\d+(?:\.\d+)?))?(?P<star>\*?)"
)


@functools.lru_cache(maxsize=4096)
def parse(text: str) -> tuple[Node, ...]:
    """The axes of a leg. Raises ValueError for what is not one, pointing at the place.

    >>> [str(node) for node in parse("(h qk*) _")]
    ['(h qk*)', '_']
    """
    tokens: list[tuple[str, re.Match]] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None or match.end() == position:
            raise ValueError(f"Cannot read the leg {text!r} at {text[position:]!r}.")
        kind = next(kind for kind in ("join", "blank", "open", "close", "plain", "name") if match[kind])
        tokens.append((kind, match))
        position = match.end()
    parts, rest = _factors(text, tokens)
    if rest:
        raise ValueError(f"The leg {text!r} closes a bracket that was not opened.")
    return parts


def _factors(text: str, tokens: list) -> tuple[tuple[Node, ...], list]:
    """Blank-separated parts up to a closing bracket or the end."""
    parts: list[Node] = []
    while tokens and tokens[0][0] != "close":
        if tokens[0][0] == "blank":
            tokens = tokens[1:]
            continue
        part, tokens = _sum(text, tokens)
        parts.append(part)
        if tokens and tokens[0][0] not in ("blank", "close"):
            raise ValueError(f"The leg {text!r} has no blank between {part} and {tokens[0][1][0]!r}.")
    return tuple(parts), tokens


def _sum(text: str, tokens: list) -> tuple[Node, list]:
    terms: list[Node] = []
    while True:
        factors: list[Node] = []
        while True:
            factor, tokens = _atom(text, tokens)
            factors.append(factor)
            if not (tokens and tokens[0][1]["join"] == "&"):
                break
            tokens = tokens[1:]
        terms.append(factors[0] if len(factors) == 1 else Both(_words(text, factors)))
        if not (tokens and tokens[0][1]["join"] == "+"):
            return (terms[0] if len(terms) == 1 else Concatenated(tuple(terms))), tokens
        tokens = tokens[1:]


def _atom(text: str, tokens: list) -> tuple[Node, list]:
    if not tokens or tokens[0][0] not in ("open", "plain", "name"):
        raise ValueError(
            f"The leg {text!r} ends, or has a sign, where a name, number, _ or bracket is expected."
        )
    (kind, match), tokens = tokens[0], tokens[1:]
    if kind == "open":
        parts, tokens = _factors(text, tokens)
        if not tokens:
            raise ValueError(f"The leg {text!r} opens a bracket that is not closed.")
        if not parts:
            raise ValueError(f"The leg {text!r} has an empty bracket.")
        return Merged(parts), tokens[1:]
    if kind == "plain":
        return Plain(None if match["plain"] == "_" else int(match["plain"])), tokens
    power = float(match["power"] or 1)
    return Word(match["name"], bool(match["star"]), power, _index(text, match["index"])), tokens


def _words(text: str, factors: list[Node]) -> tuple[Word, ...]:
    for factor in factors:
        if not isinstance(factor, Word):
            raise ValueError(f"In the leg {text!r}, & joins names, not {factor}.")
    return tuple(factor for factor in factors if isinstance(factor, Word))


def _index(text: str, index: str | None) -> int | tuple[int | None, int | None] | None:
    if index is None:
        return None
    if ":" not in index:
        return int(index)
    low, high = (int(end) if end else None for end in index.split(":"))
    return low, high


def _index_text(index: int | tuple[int | None, int | None]) -> str:
    return (
        str(index) if isinstance(index, int) else ":".join("" if end is None else str(end) for end in index)
    )


def words(node: Node) -> tuple[Word, ...]:
    """All names in a node.

    >>> [str(word) for word in words(parse("(h n+(f z*))")[0])]
    ['h', 'n', 'f', 'z*']
    """
    if isinstance(node, Word):
        return (node,)
    return () if isinstance(node, Plain) else tuple(w for part in node.parts for w in words(part))


@dataclasses.dataclass(frozen=True)
class Touch:
    """A space acting on axis `axis` of a fully split block; the group's indices lie along `indices`."""

    word: Word
    axis: int
    indices: tuple[int, ...]


#: What a walk calls on every block: the block's array and the spaces that act on it, to the moved block.
Visit = Callable[[Any, tuple[Touch, ...]], Any]


def walk(text: str, x: Any, groups: Mapping[str, AbstractGroup], visit: Visit) -> Any:
    """Split `x`, an array of JAX or NumPy, along its axes, `visit` every block, and put the blocks together.

    Raises ValueError, naming the axis, where the leg does not fit the shape of `x`.
    """
    nodes = parse(text)
    shape = x.shape if x.ndim else (1,)  # a number has one axis of length 1
    if len(nodes) != len(shape):
        raise ValueError(f"the leg {text!r} names {len(nodes)} axes, but the array has shape {x.shape}")
    lengths = index_lengths(nodes, groups)
    _check_names(text, nodes, groups, lengths)
    items = [(node, (), f"axis {k}") for k, node in enumerate(nodes)]
    return _Walk(groups, lengths, visit).block(items, x.reshape(shape)).reshape(x.shape)


#: A node, the brackets it is in, and words for where it is.
_Item = tuple[Node, tuple[int, ...], str]


@dataclasses.dataclass(frozen=True)
class _Walk:
    groups: Mapping[str, AbstractGroup]
    lengths: Mapping[str, int]
    visit: Visit

    def block(self, items: list[_Item], x: Any) -> Any:
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
        return self.visit(x, tuple(self.touches(items, x.shape)))

    def size(self, node: Node) -> int | None:
        """The length of an axis, or None if it is not known from the leg alone."""
        match node:
            case Plain(size):
                return size
            case Word(name):
                return self.groups[name].size if name in self.groups else self.lengths.get(name)
            case Both(parts):
                return self.size(parts[0])
            case Merged(parts) | Concatenated(parts):
                sizes = [self.size(part) for part in parts]
                known = [size for size in sizes if size is not None]
                if len(known) < len(sizes):
                    return None
                return int(np.prod(known)) if isinstance(node, Merged) else sum(known)

    def split(self, node: Merged, length: int, where: str) -> list[int]:
        """Lengths of the parts of a merged axis; at most one is inferred."""
        sizes = [self.size(part) for part in node.parts]
        known = int(np.prod([size for size in sizes if size is not None]))
        free = sizes.count(None)
        if free > 1:
            raise ValueError(f"{where}: {node} has {free} parts of unknown size; at most one can be inferred")
        if length % known or (not free and known != length):
            raise ValueError(
                f"{where} has length {length}, which {node} does not divide: its parts have {sizes}"
            )
        return [length // known if size is None else size for size in sizes]

    def segments(self, node: Concatenated, length: int, where: str) -> list[int]:
        """Lengths of the parts of a concatenated axis; at most one is inferred."""
        sizes = [self.size(part) for part in node.parts]
        known = sum(size for size in sizes if size is not None)
        free = sizes.count(None)
        if free > 1:
            raise ValueError(f"{where}: {node} has {free} parts of unknown size; at most one can be inferred")
        if known > length or (not free and known != length):
            raise ValueError(
                f"{where} has length {length}, but the parts of {node} add up to {known}: {sizes}"
            )
        return [length - known if size is None else size for size in sizes]

    def touches(self, items: list[_Item], shape: tuple[int, ...]):
        for k, (node, scope, where) in enumerate(items):
            expected = self.size(node)
            if expected is not None and expected != shape[k]:
                raise ValueError(f"{where} has length {shape[k]}, but {node} has size {expected}")
            for word in words(node):
                if word.name in self.groups:
                    if self.groups[word.name].size != shape[k]:
                        size = self.groups[word.name].size
                        raise ValueError(
                            f"{where} has length {shape[k]}, but the space {word.name!r} has size {size}"
                        )
                    yield Touch(word, k, self.indices(word, items, scope, where))

    def indices(self, word: Word, items: list[_Item], scope: tuple[int, ...], where: str) -> tuple[int, ...]:
        """The axes of the group's indices: looked for in the word's own bracket first, then outside."""
        found = []
        for position, (name, _) in enumerate(self.groups[word.name].per):
            if position == 0 and isinstance(word.index, int):
                continue
            axes: list[int] = []
            for depth in range(len(scope), -1, -1):
                axes = [
                    j
                    for j, (node, other, _) in enumerate(items)
                    if isinstance(node, Word) and node.name == name and other[:depth] == scope[:depth]
                ]
                if axes:
                    break
            if len(axes) != 1:
                problem = "does not occur" if not axes else f"occurs {len(axes)} times"
                raise ValueError(f"{where}: {word} needs its index {name!r} once in this array; it {problem}")
            found += axes
        return tuple(found)


def index_lengths(nodes: tuple[Node, ...], groups: Mapping[str, AbstractGroup]) -> dict[str, int]:
    """The lengths of indices: those of the spaces in this leg, shorter where a slice of the elements acts."""
    lengths = {name: length for group in groups.values() for name, length in group.per}
    spaces = [word for node in nodes for word in words(node) if word.name in groups]
    for word in spaces:
        lengths |= dict(groups[word.name].per)
    for word in spaces:
        if isinstance(word.index, tuple):
            name, length = groups[word.name].per[0] if groups[word.name].per else ("", 0)
            lengths[name] = len(range(*slice(*word.index).indices(length)))
    return lengths


def check_commuting(text: str, groups: Mapping[str, AbstractGroup]) -> None:
    """Raise ValueError if `&` joins spaces whose groups do not commute: together they would be no action."""
    for both in (part for node in parse(text) for part in _boths(node)):
        for word in both.parts:
            if word.name not in groups:
                raise ValueError(f"the leg {text!r} has {word} in {both}, but & joins spaces only")
        kinds = [groups[word.name] for word in both.parts]
        if not all(group.diagonal for group in kinds) and not all(
            isinstance(group, ScaledRotation) for group in kinds
        ):
            raise ValueError(
                f"the leg {text!r} puts {' and '.join(map(str, kinds))} on one axis, which do not commute: "
                "only scalings and signs do, or two scaled rotations. Make two symmetries"
            )


def _boths(node: Node) -> tuple[Both, ...]:
    if isinstance(node, Both):
        return (node,)
    return () if isinstance(node, Word | Plain) else tuple(b for part in node.parts for b in _boths(part))


def _check_names(text: str, nodes: tuple[Node, ...], groups: Mapping[str, AbstractGroup], lengths) -> None:
    for word in (word for node in nodes for word in words(node)):
        if word.name not in groups and word.name not in lengths:
            hint = near_match(word.name, [*groups, *lengths])
            raise ValueError(
                f"the leg {text!r} names {word.name!r}, which is neither a space nor an index.{hint}"
            )
        if word.name in groups:
            group = groups[word.name]
            if word.power != 1 and not group.abelian:
                raise ValueError(
                    f"the leg {text!r} has the power {word}, but elements of {group} do not commute: "
                    "only scalings, signs and scaled rotations have powers"
                )
            if word.index is not None and not group.per:
                raise ValueError(f"the leg {text!r} has the index {word}, but {group} has no `per` to index")
        elif word.star or word.power != 1 or word.index is not None:
            raise ValueError(
                f"the leg {text!r} has {word}, but {word.name!r} is an index: nothing acts along it"
            )
    check_commuting(text, groups)
