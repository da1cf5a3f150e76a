"""Specs of combined, restricted and renamed symmetries."""

import dataclasses
from collections.abc import Mapping

from symmetrax.groups._diagonal import AbstractGroup, Permutation
from symmetrax.symmetry._specs import (
    Both,
    Concatenated,
    Entry,
    Merged,
    Node,
    Plain,
    entries,
    names_in,
    offset_of,
    parse,
    written,
)
from symmetrax.symmetry._walk import check_commuting, index_lengths


def without(text: str, dropped: set[str], groups: Mapping[str, AbstractGroup]) -> str:
    """Removes spaces from a spec: their entries, and indices used by no other space, become numbers.

    >>> import symmetrax as sx
    >>> without("(h b) h*", {"b"}, {"h": sx.groups.Permutation(2), "b": sx.groups.Permutation(3)})
    '(h 3) h*'
    """
    nodes = parse(text)
    lengths = index_lengths(nodes, groups)
    kept = {
        name for space, group in groups.items() if space not in dropped for name in (space, *dict(group.per))
    }

    def blank(node: Node) -> Node:
        match node:
            case Entry(name):
                return node if name in kept else Plain(groups[name].size if name in groups else lengths[name])
            case Plain():
                return node
            case Both(parts):
                left = tuple(part for part in parts if part.name in kept)
                return Both(left) if len(left) > 1 else left[0] if left else blank(parts[0])
            case Merged(parts) | Concatenated(parts):
                return type(node)(tuple(blank(part) for part in parts))

    def axis(node: Node) -> Node:
        left = blank(node)
        # An axis without any name becomes "_"; one that has only an index is kept, since the group that acts
        # along another axis may need the index.
        return left if entries(left) else Plain()

    return written(map(axis, nodes), offset_of(text))


def renamed(text: str, names: Mapping[str, str]) -> str:
    """Renames spaces in a spec: {old: new}.

    >>> renamed("(kv qk*) _", {"qk": "other"})
    '(kv other*) _'
    """

    def rename(node: Node) -> Node:
        match node:
            case Entry():
                return _renamed_entry(node, names)
            case Plain():
                return node
            case Both(parts):
                return Both(tuple(_renamed_entry(part, names) for part in parts))
            case Merged(parts) | Concatenated(parts):
                return type(node)(tuple(rename(part) for part in parts))

    return written(map(rename, parse(text)), offset_of(text))


def combined(path: str, first: str | None, second: str | None, spaces: Mapping[str, AbstractGroup]) -> str:
    """The spec under which the spaces of two specs of the array at `path` act together, axis by axis.

    >>> import symmetrax as sx
    >>> combined("w", "_ h*", "k _", {"h": sx.groups.Permutation(3), "k": sx.groups.Permutation(2)})
    'k h*'
    """
    if first is None or second is None:
        return first or second or ""
    ones, others = parse(first), parse(second)
    if len(ones) != len(others):
        raise ValueError(
            f"{path}: the specs {first!r} and {second!r} have {len(ones)} and {len(others)} axes: write one "
            "entry for every axis of the array in both."
        )
    # Permutations preserve constants, so they act the same way under any offset.
    offsets = {offset_of(text) for text in (first, second) if not _permutes(text, spaces)} or {0.0}
    if len(offsets) > 1:
        raise ValueError(
            f"{path}: the specs {first!r} and {second!r} have different offsets, under which their groups do "
            "not commute: use one offset in both."
        )
    try:
        nodes = [_combined_axes(one, other) for one, other in zip(ones, others, strict=True)]
        text = written(nodes, *offsets)
        check_commuting(text, spaces)
    except ValueError as error:
        raise ValueError(f"{path}: {error}.") from None
    return text


def _combined_axes(one: Node, other: Node) -> Node:
    """Combines two specs of the same axis; raises ValueError where they split it differently."""
    if one == other or isinstance(other, Plain):
        return one
    if isinstance(one, Plain):
        return other
    for kind in (Merged, Concatenated):
        if isinstance(one, kind) and isinstance(other, kind) and len(one.parts) == len(other.parts):
            return kind(tuple(_combined_axes(a, b) for a, b in zip(one.parts, other.parts, strict=True)))
    if isinstance(one, Entry | Both) and isinstance(other, Entry | Both):
        return Both((*entries(one), *entries(other)))
    raise ValueError(
        f"the specs {one} and {other} split one axis in different ways: write both with the same parts"
    )


def _renamed_entry(entry: Entry, names: Mapping[str, str]) -> Entry:
    return dataclasses.replace(entry, name=names.get(entry.name, entry.name))


def _permutes(text: str, spaces: Mapping[str, AbstractGroup]) -> bool:
    """Whether every group that acts in a spec is a permutation group."""
    return all(isinstance(spaces[name], Permutation) for name in names_in(text) if name in spaces)
