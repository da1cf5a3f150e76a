"""What is known of an array in a program: for every axis the hidden spaces that it is made of."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from symmetrax.discovery._trace._nodes import DATA, NOTHING, Form, Node


class Factor(NamedTuple):
    """One factor of an axis: units of a hidden space, or units that are all alike (`node` is None).

    The array transforms with the scales of the units to the powers of `charge`, and with their signs to those
    of `sign`. `square` says that its entries are squares of what transforms linearly.

    >>> [factor.kind for factor in (Factor(3), Factor(3, DATA), Factor(3, Node(3)))]
    ['alike', 'data', 'live']
    """

    length: int
    node: Node | None = None
    charge: Form = NOTHING
    sign: Form = NOTHING
    square: bool = False

    @property
    def kind(self) -> str:
        """Whether its units are "alike", "data" (nothing acts on them) or "live"."""
        return "alike" if self.node is None else "data" if self.node.pinned else "live"

    def mark(self, *flags: str) -> None:
        """Says what the program does to the units."""
        if self.node is not None:
            self.node.mark(*flags)

    def join(self, other: "Factor") -> None:
        """Says that these units are those of another factor."""
        if self.node is not None and other.node is not None:
            self.node.join(other.node)

    def want(self, kind: str, lengths: Sequence[int]) -> None:
        """Asks for the units to be a product or a sequence."""
        if self.node is not None:
            self.node.want(kind, lengths)

    def pin(self) -> None:
        """Lets nothing act on the units."""
        if self.node is not None:
            self.node.join(DATA)


#: The factors of an axis, from slowest to fastest; factors of length one are left out.
Axis = tuple[Factor, ...]


def data(length: int) -> Axis:
    """An axis of data.

    >>> data(3)[0].kind, data(1)
    ('data', ())
    """
    return (Factor(length, DATA),) if length > 1 else ()


def alike(length: int) -> Axis:
    """An axis along which all entries are alike.

    >>> alike(3)[0].kind
    'alike'
    """
    return () if length == 1 else (Factor(length),)


@dataclasses.dataclass(frozen=True)
class Plain:
    """An array whose axes are products of factors. An array of zeros transforms like anything.

    Its entries may be numbers of units, as `top_k` returns them: `points` is the space that they are of, or
    one for every entry along the last axis.

    >>> Plain(((Factor(2), Factor(3)), ())).shape
    (6, 1)
    """

    axes: tuple[Axis, ...]
    zero: bool = False
    points: tuple[Node | None, ...] = ()

    def along(self, *axes: Axis) -> "Plain":
        """The same entries along other axes."""
        return dataclasses.replace(self, axes=axes)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(math.prod(factor.length for factor in axis) for axis in self.axes)

    @property
    def live(self) -> bool:
        """Whether anything acts on it."""
        return any(factor.kind == "live" for axis in self.axes for factor in axis)


@dataclasses.dataclass(frozen=True)
class Stacked:
    """Arrays side by side along an axis, each with hidden spaces of its own.

    The axis has `before` blocks, each of parts with these `lengths`, times `behind` entries: part k is what
    remains if every block keeps its k-th part.

    >>> Stacked(0, 1, (2, 3), 1, (opaque((2, 4)), opaque((3, 4)))).shape
    (5, 4)
    """

    axis: int
    before: int
    lengths: tuple[int, ...]
    behind: int
    parts: "tuple[Value, ...]"

    @property
    def shape(self) -> tuple[int, ...]:
        shape = list(self.parts[0].shape)
        shape[self.axis] = self.before * sum(self.lengths) * self.behind
        return tuple(shape)

    @property
    def live(self) -> bool:
        return any(part.live for part in self.parts)

    @property
    def zero(self) -> bool:
        return all(part.zero for part in self.parts)

    def of(self, parts: "Sequence[Value]", axis: int | None = None) -> "Value":
        """Other arrays side by side in the same way, perhaps along another axis."""
        return dataclasses.replace(self, axis=self.axis if axis is None else axis, parts=tuple(parts))


Value = Plain | Stacked


def constant(shape: Sequence[int], *, zero: bool = False) -> Plain:
    """An array of equal entries.

    >>> constant((2, 3), zero=True).zero
    True
    """
    return Plain(tuple(alike(length) for length in shape), zero)


def opaque(shape: Sequence[int]) -> Plain:
    """An array of data.

    >>> opaque((2, 3)).live
    False
    """
    return Plain(tuple(data(length) for length in shape))


def plains(value: Value) -> list[Plain]:
    """The arrays that a value is put together from.

    >>> len(plains(Stacked(0, 1, (2, 3), 1, (opaque((2,)), opaque((3,))))))
    2
    """
    if isinstance(value, Plain):
        return [value]
    return [plain for part in value.parts for plain in plains(part)]


def each(value: Value, function: Callable[[Plain], Plain]) -> Value:
    """Applies a function that leaves the axes where they are.

    >>> each(constant((2,)), lambda plain: plain.along(data(2))).axes[0][0].kind
    'data'
    """
    if isinstance(value, Plain):
        return function(value)
    return value.of([each(part, function) for part in value.parts])


def pin_axis(value: Value, axis: int) -> None:
    """Lets nothing act along an axis.

    >>> units = Node(3)
    >>> pin_axis(Plain((data(2), (Factor(3, units),))), 1)
    >>> units.pinned
    True
    """
    for plain in plains(value):
        for factor in plain.axes[axis]:
            factor.pin()


def pin(value: Value) -> None:
    """Lets nothing act on an array.

    >>> units = Node(3)
    >>> pin(Plain(((Factor(3, units),),)))
    >>> units.pinned
    True
    """
    for axis in range(len(value.shape)):
        pin_axis(value, axis)
