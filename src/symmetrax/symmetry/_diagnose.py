"""Finds wrong specs of a network symmetry: single edits that restore invariance."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jaxtyping import Array, Key, PyTree

from symmetrax._tree import leaf_names
from symmetrax.symmetry._dense import DenseAction
from symmetrax.symmetry._network import NetworkSymmetry
from symmetrax.symmetry._specs import (
    Both,
    Concatenated,
    Entry,
    Merged,
    Node,
    Plain,
    entries,
    offset_of,
    parse,
    written,
)
from symmetrax.symmetry._walk import index_lengths, node_size


@dataclasses.dataclass(frozen=True)
class Suspect:
    """A spec that may be wrong: replacing `wrong` by `right` on an axis of an array restores invariance.

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
    change: Callable[[PyTree], float],
    params: PyTree,
    key: Key[Array, ""],
    tolerance: float,
) -> tuple[Suspect, ...]:
    """The axes whose specs may be wrong; `change(there)` is the change of the loss from `params` to `there`.

    Each space is tested separately. If it fails, single edits are tried on every axis: another star,
    power or name of the space there, its removal, the parts of a merged axis in another order, and the
    entries that the specs have on other axes. Two simultaneous mistakes cannot be resolved, and an edit that
    leaves a space without specs does not count as a fix.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> w = {"v": jnp.array([1.0, 2.0]), "u": jnp.array([3.0, 4.0])}
    >>> wrong = sx.NetworkSymmetry({"h": sx.groups.PositiveDiagonal(2)}, {"v": "h", "u": "h"}, like=w)
    >>> change = lambda there: abs(float(there["u"] @ there["v"]) / 11.0 - 1.0)
    >>> for suspect in suspects(wrong, change, w, jax.random.key(0), 1e-5):
    ...     print(suspect)
    u, axis 0: 'h*' instead of 'h' restores invariance
    v, axis 0: 'h*' instead of 'h' restores invariance
    """
    # One space at a time: the identity of all others excludes their mistakes.
    element, identity = symmetry.sample(key), symmetry.identity()
    failing = [
        name
        for name in symmetry.spaces
        if not change(symmetry.act(identity | {name: element[name]}, params)) <= tolerance
    ]
    # Restore all failing spaces together: an edit of a single spec may fix two of them.
    element = identity | {name: element[name] for name in failing}
    values, structure = jax.tree.flatten(params)
    leaves = dict(zip(leaf_names(params), values, strict=True))
    moved = dict(zip(leaves, jax.tree.leaves(symmetry.act(element, params)), strict=True))
    actor = DenseAction(symmetry, element)
    found: dict[Suspect, None] = {}
    for name in failing:
        for specs, suspect in _edits(symmetry, name, {path: leaf.shape for path, leaf in leaves.items()}):
            path = suspect.path
            try:
                # Only the edited array moves differently; all others are reused.
                there = actor.act({path: np.asarray(leaves[path])}, symmetry.with_specs({path: specs}))
            except ValueError:
                continue  # the edit does not fit the array
            if change(jax.tree.unflatten(structure, (moved | there).values())) <= tolerance:
                found[suspect] = None
    return tuple(found)


def _edits(
    symmetry: NetworkSymmetry, space: str, shapes: dict[str, tuple[int, ...]]
) -> Iterator[tuple[str, Suspect]]:
    """Yields single edits of the specs that may change how `space` acts, each for a single array."""
    # Removing the only entry of a space would make every loss invariant, so it is no evidence.
    alone = sum(space in _names(node) for text in symmetry.specs.values() for node in parse(text)) == 1
    for path, shape in shapes.items():
        text = symmetry.specs.get(path, " ".join("_" * max(len(shape), 1)))
        nodes = parse(text)
        editor = _Editor(symmetry, space, index_lengths(nodes, symmetry.spaces))
        for axis, (node, length) in enumerate(zip(nodes, shape or (1,), strict=True)):
            seen = {editor.compared(node)}  # edits that act alike are tried once
            others = [other for other in editor.elsewhere() if editor.fits(other, length)]
            for candidate in (*editor.near(node, length), *others):
                here, there = space in _names(node), space in _names(candidate)
                known = editor.compared(candidate) in seen
                if known or not (here or there) or (alone and here and not there):
                    continue
                seen.add(editor.compared(candidate))
                edited = written((*nodes[:axis], candidate, *nodes[axis + 1 :]), offset_of(text))
                yield edited, Suspect(path, axis, str(node), str(candidate))
        # A gain may enter the network as 1 + w or as w, so the offset 1 is tried as well.
        if len(shape) == 1 and space in _names(nodes[0]):
            edited = written(nodes, 0.0 if offset_of(text) else 1.0)
            yield edited, Suspect(path, 0, written(nodes, offset_of(text)), edited)


def _names(node: Node) -> set[str]:
    return {entry.name for entry in entries(node)}


def _flipped(node: Node, space: str) -> Node:
    """The node with the stars of a space flipped."""
    match node:
        case Entry(name):
            return dataclasses.replace(node, star=not node.star) if name == space else node
        case Plain():
            return node
        case Both(parts):
            return Both(tuple(dataclasses.replace(e, star=e.star != (e.name == space)) for e in parts))
        case Merged(parts) | Concatenated(parts):
            return type(node)(tuple(_flipped(part, space) for part in parts))


@dataclasses.dataclass(frozen=True)
class _Editor:
    """Edits of a node for a given space, in an array whose indices have these lengths."""

    symmetry: NetworkSymmetry
    space: str
    lengths: dict[str, int]

    def near(self, node: Node, length: int) -> list[Node]:
        """Single changes of an entry: the space in every variant that occurs in the specs, or removed."""
        group = self.symmetry.spaces[self.space]
        match node:
            case Entry(name) if name == self.space:
                return [*self.variants(), Plain(group.size)]
            case Entry(name):
                other = self.symmetry.spaces.get(name)
                joinable = (
                    other is not None and other.size == group.size and other.diagonal and group.diagonal
                )
                return [
                    *self.variants(),
                    *([Both((node, entry)) for entry in self.variants()] if joinable else []),
                ]
            case Plain():
                return list(self.variants()) if length == group.size else []
            case Both(parts):
                edits: list[Node] = []
                for k, part in enumerate(parts):
                    rest = (*parts[:k], *parts[k + 1 :])
                    if part.name == self.space:
                        edits.append(rest[0] if len(rest) == 1 else Both(rest))
                        edits += [Both((*parts[:k], entry, *parts[k + 1 :])) for entry in self.variants()]
                return edits
            case Merged(parts) | Concatenated(parts):
                edits = []
                for k, (part, size) in enumerate(zip(parts, self.sizes(node, length), strict=False)):
                    edits += [
                        type(node)((*parts[:k], edit, *parts[k + 1 :])) for edit in self.near(part, size)
                    ]
                if isinstance(node, Merged):
                    for j, k in itertools.combinations(range(len(parts)), 2):
                        swapped = {j: parts[k], k: parts[j]}
                        edits.append(Merged(tuple(swapped.get(i, part) for i, part in enumerate(parts))))
                return edits

    def elsewhere(self) -> tuple[Node, ...]:
        """The axes of all specs, with either star, and for merged axes with or without blanks."""
        found: dict[Node, None] = {Plain(): None}
        for node in (node for text in self.symmetry.specs.values() for node in parse(text)):
            for one in (node, _flipped(node, self.space)):
                found[one] = None
                if isinstance(one, Merged):
                    blank = Plain()
                    without = tuple(part for part in one.parts if part != blank)
                    found |= {Merged(without): None} if without else {}
                    if blank not in one.parts:
                        for k in range(len(without) + 1):
                            found[Merged((*without[:k], blank, *without[k:]))] = None
        return tuple(found)

    def variants(self) -> tuple[Entry, ...]:
        """The space's entry with every star, power and index that occurs in the specs."""
        # A dict as an ordered set: suspects are reported in a reproducible order.
        group = self.symmetry.spaces[self.space]
        found = {Entry(self.space): None, Entry(self.space, star=True): None}
        for text in self.symmetry.specs.values():
            for entry in (entry for node in parse(text) for entry in entries(node)):
                if entry.name == self.space or (entry.index is None and group.abelian):
                    found[dataclasses.replace(entry, name=self.space)] = None
        return tuple(found)

    def fits(self, node: Node, length: int) -> bool:
        """Whether a node fits an axis of this length, without a blank of length 1 in a merged axis."""
        # A blank of length 1 would only rewrite a spec that is tried anyway.
        sizes = self.sizes(node, length)
        parts = node.parts if isinstance(node, Merged) else ()
        empty = any(isinstance(part, Plain) and size == 1 for part, size in zip(parts, sizes, strict=False))
        return bool(sizes) and not empty

    def sizes(self, node: Node, length: int) -> tuple[int, ...]:
        """The lengths of a node's parts on an axis of this length; empty if it does not fit."""
        if not isinstance(node, Merged | Concatenated):
            size = node_size(node, self.symmetry.spaces, self.lengths)
            return (length,) if size is None or size == length else ()
        sizes = [node_size(part, self.symmetry.spaces, self.lengths) for part in node.parts]
        known = [size for size in sizes if size is not None]
        if len(sizes) - len(known) > 1:
            return ()
        total = int(np.prod(known)) if isinstance(node, Merged) else sum(known)
        if len(known) == len(sizes):
            return tuple(known) if total == length else ()
        left, over = divmod(length, total) if isinstance(node, Merged) else (length - total, 0)
        fits = not over and left > 0
        return tuple(left if size is None else size for size in sizes) if fits else ()

    def compared(self, node: Node) -> Node:
        """A canonical form, equal for nodes that act alike: drops stars of compact groups and blank sizes."""
        match node:
            case Entry(name) if name in self.symmetry.spaces and self.symmetry.spaces[name].compact:
                return dataclasses.replace(node, star=False)
            case Entry():
                return node
            case Plain():
                return Plain()
            case Both(parts):
                found = sorted((self.compared(part) for part in parts), key=str)
                return Both(tuple(part for part in found if isinstance(part, Entry)))
            case Merged(parts) | Concatenated(parts):
                if not _names(node) & set(self.symmetry.spaces):
                    return Plain()
                return type(node)(tuple(self.compared(part) for part in parts))
