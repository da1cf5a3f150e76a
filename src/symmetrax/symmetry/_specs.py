"""Axis specs: strings that describe how each axis of an array transforms.

An axis spec has an entry per axis: `h` (transforms with g), `h*` (with g^-T), `h^2` (with a power), `_` or a
number (nothing acts), `(h _ qk)` (a merged axis, first name slowest), `q+k*+v` (a concatenated axis), `g*&u*`
(two commuting spaces on the same axis), `h[0]`, `h[1:]` (a fixed element, or a slice, along the group's first
index). `&` binds tighter than `+`, and `+` tighter than a blank. A spec may end in an offset: `h - 1` means
that the array plus 1 transforms with g, as for a gain that enters the network as 1 + w.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Entry:
    """The name of a space or an index, with its optional index, power and star.

    >>> str(Entry("h", star=True, power=2.0, index=0))
    'h[0]^2*'
    """

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
    """An axis on which nothing acts, of the given size or of any size.

    >>> str(Plain()), str(Plain(4))
    ('_', '4')
    """

    size: int | None = None

    def __str__(self) -> str:
        return "_" if self.size is None else str(self.size)


@dataclasses.dataclass(frozen=True)
class Merged:
    """An axis that is the product of other axes, the first axis slowest.

    >>> str(Merged((Entry("head"), Plain())))
    '(head _)'
    """

    parts: tuple["Node", ...]

    def __str__(self) -> str:
        return f"({' '.join(map(str, self.parts))})"


@dataclasses.dataclass(frozen=True)
class Concatenated:
    """An axis that is the concatenation of other axes.

    >>> str(Concatenated((Entry("q"), Entry("k", star=True))))
    'q+k*'
    """

    parts: tuple["Node", ...]

    def __str__(self) -> str:
        return "+".join(map(str, self.parts))


@dataclasses.dataclass(frozen=True)
class Both:
    """Several commuting spaces on the same axis.

    >>> str(Both((Entry("up"), Entry("gate"))))
    'up&gate'
    """

    parts: tuple["Entry", ...]

    def __str__(self) -> str:
        return "&".join(map(str, self.parts))


Node = Entry | Plain | Merged | Concatenated | Both

# Signs include the blanks around them, so that "q + k" is one axis while "q k" is two.
_TOKEN = re.compile(
    r"\s*(?P<join>[+&])\s*|(?P<blank>\s+)|(?P<open>\()|(?P<close>\))|(?P<plain>_(?!\w)|0*[1-9]\d*)"
    r"|(?P<name>[A-Za-z]\w*)(?:\[(?P<index>-?\d+|(?:-?\d+)?:(?:-?\d+)?)\])?(?:\^(?P<power>-?\d+(?:\.\d+)?))?(?P<star>\*?)"
)


#: The offset at the end of a spec. The look-behind keeps the minus sign of a power, `h^-2`, from matching.
_OFFSET = re.compile(r"(?<=[\w)\]*])\s*-\s*(?P<offset>-?\d+(?:\.\d+)?)\s*$")


def offset_of(text: str) -> float:
    """The offset c of a spec, whose group acts on the array plus c: usually 0, and 1 for a gain 1 + w.

    >>> offset_of("_ h - 1"), offset_of("_ h^-2")
    (1.0, 0.0)
    """
    match = _OFFSET.search(text)
    return float(match["offset"]) if match else 0.0


def written(nodes: Iterable["Node | str"], offset: float = 0.0) -> str:
    """The spec with these axes and this offset.

    >>> written(parse("_ h-1"), offset_of("_ h-1"))
    '_ h - 1'
    """
    text = " ".join(map(str, nodes))
    return f"{text} - {np.format_float_positional(offset, trim='-')}" if offset else text


# Cached, since a spec is parsed anew at every action, for every array.
@functools.lru_cache(maxsize=4096)
def parse(text: str) -> tuple[Node, ...]:
    """Parses the axes of a spec, without its offset. Raises ValueError, with the position, if it is invalid.

    >>> [str(node) for node in parse("(h qk*) _")]
    ['(h qk*)', '_']
    """
    # The offset applies to the whole array, so it is cut off before the axes are read.
    end = match.start() if (match := _OFFSET.search(text)) else len(text)
    tokens: list[tuple[str, re.Match]] = []
    position = 0
    while position < end:
        match = _TOKEN.match(text, position, end)
        if match is None or match.end() == position:
            raise ValueError(
                f"Cannot read the spec {text!r} at {text[position:]!r}: expected a name, number, _ or "
                "bracket, as in 'h _', '(h 4) k*' or 'q+k^2'."
            )
        kind = next(kind for kind in ("join", "blank", "open", "close", "plain", "name") if match[kind])
        tokens.append((kind, match))
        position = match.end()
    parts, rest = _factors(text, tokens)
    if rest:
        raise ValueError(f"The spec {text!r} closes a bracket that was not opened: remove one ')'.")
    return parts


def _factors(text: str, tokens: list) -> tuple[tuple[Node, ...], list]:
    """Parses blank-separated parts up to a closing bracket or the end."""
    parts: list[Node] = []
    while tokens and tokens[0][0] != "close":
        if tokens[0][0] == "blank":
            tokens = tokens[1:]
            continue
        part, tokens = _sum(text, tokens)
        parts.append(part)
        if tokens and tokens[0][0] not in ("blank", "close"):
            raise ValueError(
                f"The spec {text!r} has no blank between {part} and {tokens[0][1][0]!r}: separate two axes "
                "by a blank, and names on one axis by + or &."
            )
    return tuple(parts), tokens


def _sum(text: str, tokens: list) -> tuple[Node, list]:
    """Parses terms joined by +, each of which is a product of atoms joined by &."""
    terms: list[Node] = []
    while True:
        factors: list[Node] = []
        while True:
            factor, tokens = _atom(text, tokens)
            factors.append(factor)
            if not (tokens and tokens[0][1]["join"] == "&"):
                break
            tokens = tokens[1:]
        terms.append(factors[0] if len(factors) == 1 else Both(_checked_entries(text, factors)))
        if not (tokens and tokens[0][1]["join"] == "+"):
            return (terms[0] if len(terms) == 1 else Concatenated(tuple(terms))), tokens
        tokens = tokens[1:]


def _atom(text: str, tokens: list) -> tuple[Node, list]:
    """Parses a name, a number, a blank `_` or a bracket."""
    if not tokens or tokens[0][0] not in ("open", "plain", "name"):
        raise ValueError(
            f"The spec {text!r} ends, or has a sign, where a name, number, _ or bracket is expected: "
            "complete or remove the + or &."
        )
    (kind, match), tokens = tokens[0], tokens[1:]
    if kind == "open":
        parts, tokens = _factors(text, tokens)
        if not tokens:
            raise ValueError(f"The spec {text!r} opens a bracket that is not closed: add a ')'.")
        if not parts:
            raise ValueError(f"The spec {text!r} has an empty bracket: name its axes, or write _ instead.")
        return Merged(parts), tokens[1:]
    if kind == "plain":
        return Plain(None if match["plain"] == "_" else int(match["plain"])), tokens
    power = float(match["power"] or 1)
    return Entry(match["name"], bool(match["star"]), power, _index(text, match["index"])), tokens


def _checked_entries(text: str, factors: list[Node]) -> tuple[Entry, ...]:
    for factor in factors:
        if not isinstance(factor, Entry):
            raise ValueError(f"In the spec {text!r}, & joins names, not {factor}: put a name in its place.")
    return tuple(factor for factor in factors if isinstance(factor, Entry))


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


def entries(node: Node) -> tuple[Entry, ...]:
    """All names in a node.

    >>> [str(entry) for entry in entries(parse("(h n+(f z*))")[0])]
    ['h', 'n', 'f', 'z*']
    """
    if isinstance(node, Entry):
        return (node,)
    return () if isinstance(node, Plain) else tuple(e for part in node.parts for e in entries(part))


def names_in(text: str) -> set[str]:
    """The names of all spaces and indices in a spec.

    >>> sorted(names_in("(kv qk*) _"))
    ['kv', 'qk']
    """
    return {entry.name for node in parse(text) for entry in entries(node)}
