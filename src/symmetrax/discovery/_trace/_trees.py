"""The axes of the arrays of a model, as the products and sequences that a program has shown so far."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

from symmetrax.discovery._trace._nodes import Node
from symmetrax.discovery._trace._values import Axis, Factor, Plain, Stacked, Value


@dataclasses.dataclass(eq=False)
class Tree:
    """An axis or a part of one: "whole", the product of `children` ("factors"), or their sequence ("cuts").

    >>> tree = Tree(6)
    >>> tree.become("factors", (2, 3))
    >>> [child.length for child in tree.children]
    [2, 3]
    """

    length: int
    kind: str = "whole"
    children: "tuple[Tree, ...]" = ()

    def become(self, kind: str, lengths: Sequence[int]) -> None:
        """Replaces a whole by its parts."""
        self.kind, self.children = kind, tuple(Tree(length) for length in lengths)


@dataclasses.dataclass(frozen=True)
class Item:
    """A factor of an axis in one part of an array: its units are `stride` entries apart.

    >>> Item(Tree(3), stride=2, node=Node(3), variable=0).length
    3
    """

    tree: Tree
    stride: int
    node: Node
    variable: int

    @property
    def length(self) -> int:
        return self.tree.length


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of an array: for every axis its first entry, and its factors from slowest to fastest.

    >>> parts = []
    >>> _ = Source("w", (6, 2)).value(itertools.count(), parts)
    >>> parts[0].path, [len(items) for items in parts[0].items]
    ('w', [1, 1])
    """

    path: str
    shape: tuple[int, ...]
    starts: tuple[int, ...]
    items: tuple[tuple[Item, ...], ...]


class Source:
    """An array of the model, or the state of a loop (`path` is empty), that is read with fresh spaces.

    >>> source = Source("w", (6, 2))
    >>> parts = []
    >>> source.value(itertools.count(), parts).shape, len(parts)
    ((6, 2), 1)
    """

    def __init__(self, path: str, shape: Sequence[int]):
        self.path, self.shape = path, tuple(shape)
        self.trees = tuple(Tree(length) for length in shape)

    def value(self, counter: Iterator[int], parts: list[Part]) -> Value:
        """The array with a new space for every factor; its parts are added to `parts`."""
        axes = [[(tree, 1)] if tree.length > 1 else [] for tree in self.trees]
        return self._value(axes, [0] * len(axes), counter, parts)

    def _value(self, axes: list[Any], starts: list[int], counter: Iterator[int], parts: list[Part]) -> Value:
        axes = [_flat(axis) for axis in axes]
        for k, axis in enumerate(axes):
            for at, (tree, stride) in enumerate(axis):
                if tree.kind != "cuts":
                    continue
                made = []
                lengths = [child.length for child in tree.children]
                for start, child in zip(itertools.accumulate([0, *lengths[:-1]]), tree.children, strict=True):
                    own = [*axis[:at], *([(child, stride)] if child.length > 1 else []), *axis[at + 1 :]]
                    there = [*starts[:k], starts[k] + start * stride, *starts[k + 1 :]]
                    made.append(self._value([*axes[:k], own, *axes[k + 1 :]], there, counter, parts))
                before = math.prod(tree.length for tree, _ in axis[:at])
                behind = math.prod(tree.length for tree, _ in axis[at + 1 :])
                return Stacked(k, before, tuple(lengths), behind, tuple(made))
        items = tuple(
            tuple(Item(tree, stride, Node(tree.length), next(counter)) for tree, stride in axis)
            for axis in axes
        )
        parts.append(Part(self.path, self.shape, tuple(starts), items))
        return Plain(tuple(_factors(axis) for axis in items))


def _flat(axis: Sequence[tuple[Tree, int]]) -> list[tuple[Tree, int]]:
    """Replaces products by their factors."""
    out: list[tuple[Tree, int]] = []
    for tree, stride in axis:
        if tree.kind == "factors":
            behind = tree.length
            for child in tree.children:
                behind //= child.length
                out += _flat([(child, stride * behind)])
        else:
            out.append((tree, stride))
    return out


def _factors(axis: Sequence[Item]) -> Axis:
    one = Fraction(1)
    return tuple(Factor(i.length, i.node, {i.variable: one}, {i.variable: one}) for i in axis)
