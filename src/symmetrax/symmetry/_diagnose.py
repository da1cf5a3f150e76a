"""Which leg is wrong: single edits of a network symmetry's legs that restore invariance."""

import dataclasses
from collections.abc import Callable, Iterator

import jax
from jaxtyping import Array, Key, PyTree

from symmetrax.symmetry._legs import Both, Concatenated, Merged, Node, Plain, Word, parse, walk, words
from symmetrax.symmetry._network import NetworkSymmetry, named_shapes


@dataclasses.dataclass(frozen=True)
class Suspect:
    """A leg that may be wrong: `right` instead of `wrong`, on one axis of one array, mends the law.

    >>> str(Suspect("w2", 1, "h", "h*"))
    "w2, axis 1: 'h*' instead of 'h' restores invariance"
    """

    path: str
    axis: int
    wrong: str
    right: str

    def __str__(self) -> str:
        return f"{self.path}, axis {self.axis}: {self.right!r} instead of {self.wrong!r} restores invariance"


def suspects(
    symmetry: NetworkSymmetry,
    defect: Callable[[NetworkSymmetry, PyTree], float],
    params: PyTree,
    key: Key[Array, ""],
    tolerance: float,
) -> tuple[Suspect, ...]:
    """The axes whose legs may be wrong, where `defect(symmetry, element)` is above `tolerance`.

    One space acts at a time; for each that fails, every single edit is tried on every axis: the star on or
    off, nothing, and the words that the legs use for axes of that length. Two mistakes at once cannot be told
    apart. An edit that leaves a space without two legs is no repair: fewer legs are easier to keep.
    """
    element, identity = symmetry.sample(key), symmetry.identity()
    failing = {
        name
        for name in symmetry.spaces
        if not defect(symmetry, identity | {name: element[name]}) <= tolerance
    }
    shapes = named_shapes(params)
    found = []
    for name in symmetry.spaces:
        if name not in failing:
            continue
        for edited, suspect in _edits(symmetry, name, shapes):
            # All that failed must be restored together: an edit of one leg may serve two spaces.
            if defect(edited, identity | {space: element[space] for space in failing}) <= tolerance:
                found.append(suspect)
    return tuple(dict.fromkeys(found))


def _edits(
    symmetry: NetworkSymmetry, space: str, shapes: dict[str, jax.ShapeDtypeStruct]
) -> Iterator[tuple[NetworkSymmetry, Suspect]]:
    compact = symmetry.spaces[space].compact
    vocabulary = _vocabulary(symmetry, space, shapes)
    for path, array in shapes.items():
        text = symmetry.legs.get(path, " ".join("_" * max(len(array.shape), 1)))
        nodes = parse(text)
        for axis, node in enumerate(nodes):
            length = array.shape[axis] if array.shape else 1
            candidates = [*_local_edits(node, space), *vocabulary.get(length, ())]
            if not any(word.name == space for word in words(node)):
                candidates = [c for c in candidates if any(word.name == space for word in words(c))]
            seen = {_compared(node, symmetry)}
            for candidate in candidates:
                if _compared(candidate, symmetry) in seen:
                    continue
                seen.add(_compared(candidate, symmetry))
                legs = symmetry.legs | {
                    path: " ".join(map(str, (*nodes[:axis], candidate, *nodes[axis + 1 :])))
                }
                if _count(legs, space) < (1 if compact else 2) or not _fits(symmetry, legs[path], array):
                    continue
                edited = symmetry.with_legs(legs)
                yield edited, Suspect(path, axis, str(node), str(candidate))


def _local_edits(node: Node, space: str) -> list[Node]:
    """The star on or off on one word of the space, or that word gone."""
    match node:
        case Word(name):
            if name != space:
                return []
            return [dataclasses.replace(node, star=not node.star), Plain()]
        case Plain():
            return []
        case Both(parts):
            edits: list[Node] = []
            for k, part in enumerate(parts):
                rest = (*parts[:k], *parts[k + 1 :])
                if part.name == space:
                    edits.append(rest[0] if len(rest) == 1 else Both(rest))
                    edits.append(
                        Both((*parts[:k], dataclasses.replace(part, star=not part.star), *parts[k + 1 :]))
                    )
            return edits
        case Merged(parts) | Concatenated(parts):
            return [
                type(node)((*parts[:k], edit, *parts[k + 1 :]))
                for k, part in enumerate(parts)
                for edit in _local_edits(part, space)
            ]


def _vocabulary(
    symmetry: NetworkSymmetry, space: str, shapes: dict[str, jax.ShapeDtypeStruct]
) -> dict[int, list[Node]]:
    """What the legs put on axes of each length, with and without the space's star; and nothing."""
    found: dict[int, dict[Node, None]] = {}
    for path, text in symmetry.legs.items():
        shape = shapes[path].shape or (1,)
        for node, length in zip(parse(text), shape, strict=True):
            nodes = found.setdefault(length, {Plain(): None})
            nodes[node] = None
            for edit in _local_edits(node, space):
                nodes[edit] = None
    group = symmetry.spaces[space]
    if not group.per:
        for word in (Word(space), Word(space, star=True)):
            found.setdefault(group.size, {Plain(): None})[word] = None
    return {length: list(nodes) for length, nodes in found.items()}


def _compared(node: Node, symmetry: NetworkSymmetry) -> str:
    """A node as text, where stars of compact groups do not count and signs are blanks."""
    text = str(node)
    for word in words(node):
        if word.star and word.name in symmetry.spaces and symmetry.spaces[word.name].compact:
            text = text.replace(str(word), str(dataclasses.replace(word, star=False)))
    return text


def _count(legs: dict[str, str], space: str) -> int:
    return sum(word.name == space for text in legs.values() for node in parse(text) for word in words(node))


def _fits(symmetry: NetworkSymmetry, text: str, array: jax.ShapeDtypeStruct) -> bool:
    try:
        jax.eval_shape(lambda x: walk(text, x, symmetry.spaces, lambda block, touches: block), array)
    except ValueError:
        return False
    return True
