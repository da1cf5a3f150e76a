"""The spaces of symmetries as slots of one alignment: their elements as NumPy arrays, and how they act."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from symmetrax.groups._diagonal import (
    AbstractGroup,
    NonzeroDiagonal,
    Permutation,
    PositiveDiagonal,
    SignDiagonal,
)
from symmetrax.groups._matrices import GeneralLinear, Orthogonal, ScaledRotation, SpecialOrthogonal
from symmetrax.symmetry._along import along
from symmetrax.symmetry._network import NetworkSymmetry
from symmetrax.symmetry._specs import Entry
from symmetrax.symmetry._walk import Binding, walk

#: Arrays by path, in double precision.
Arrays = Mapping[str, np.ndarray]

#: The groups with steps, in the order in which their elements act; see `slots_of`.
_ORDER: tuple[type[AbstractGroup], ...] = (
    GeneralLinear,
    ScaledRotation,
    PositiveDiagonal,
    NonzeroDiagonal,
    Orthogonal,
    SpecialOrthogonal,
    SignDiagonal,
    Permutation,
)


class Pair(NamedTuple):
    """What a binding moves, and where it should go: real arrays (*copies, size, rest) of equal shapes.

    >>> Pair(np.ones((3, 2)), np.ones((3, 2)), Entry("h"), slice(None)).exponent
    1.0
    """

    had: np.ndarray
    wanted: np.ndarray
    entry: Entry
    taken: Any

    @property
    def exponent(self) -> float:
        """The power of a scale that multiplies `had`."""
        return self.entry.power * (-1) ** self.entry.star

    def inner(self) -> np.ndarray:
        """inner[..., i, j]: the inner product of row i of `wanted` and row j of `had`."""
        return self.wanted @ np.swapaxes(self.had, -1, -2)

    def squares(self) -> np.ndarray:
        """The Gram matrices of the rows of `had`."""
        return self.had @ np.swapaxes(self.had, -1, -2)


@dataclasses.dataclass(frozen=True, eq=False)
class Slot:
    """A space of the symmetry with number `given`, and the specs of the arrays on which it acts.

    An element, here `value`, is an order of units (*per, n), a diagonal (*per, n), matrices (*per, n, n), or
    complex numbers (*per,) for scaled rotations.

    >>> import symmetrax as sx
    >>> slot = Slot(0, "h", sx.groups.PositiveDiagonal(2), {"w": "_ h*"})
    >>> slot.act(np.array([2.0, 4.0]), {"w": np.ones((1, 2))})["w"]
    array([[0.5 , 0.25]])
    """

    given: int
    name: str
    group: AbstractGroup
    specs: Mapping[str, str]
    #: Whether the space acts on two axes of one block, so that its problems are not linear.
    repeated: bool = False

    @property
    def compact(self) -> bool:
        """Whether the action preserves norms, so that nearest and largest inner product are one problem."""
        return self.group.compact

    @property
    def permutes(self) -> bool:
        return isinstance(self.group, Permutation)

    def identity(self) -> np.ndarray:
        n, lengths = self.group.size, self.group.lengths
        match self.group:
            case Permutation():
                return np.broadcast_to(np.arange(n), (*lengths, n)).copy()
            case ScaledRotation():
                return np.ones(lengths, complex)
        return np.broadcast_to(np.ones(n) if self.group.diagonal else np.eye(n), self.shape).copy()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a value."""
        if isinstance(self.group, ScaledRotation):
            return self.group.lengths
        vectors = self.permutes or self.group.diagonal
        return (*self.group.lengths, *[self.group.size] * (1 if vectors else 2))

    def compose(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The value that acts as `a` after `b`."""
        if self.permutes:
            return np.take_along_axis(b, a, axis=-1)
        return a @ b if a.ndim > len(self.group.lengths) + 1 else a * b

    def inverse(self, a: np.ndarray) -> np.ndarray:
        if self.permutes:
            return np.argsort(a, axis=-1)
        return np.linalg.inv(a) if a.ndim > len(self.group.lengths) + 1 else 1 / a

    def act(self, value: np.ndarray, x: Arrays) -> Arrays:
        """Moves arrays by a value. A permutation may also be mixed: matrices (*per, n, n)."""
        moved = dict(x)
        for path, text in self.specs.items():

            def block(part: np.ndarray, bindings: tuple[Binding, ...]) -> np.ndarray:
                for binding in bindings:
                    part = self.along(value, binding, part)
                return part

            moved[path] = walk(text, x[path], {self.name: self.group}, block)
        return moved

    def along(self, value: np.ndarray, binding: Binding, part: np.ndarray) -> np.ndarray:
        """Moves a block along one of the axes on which the space acts."""
        return along(binding, part, lambda flat: self._multiply(value, binding, flat))

    def _multiply(self, value: np.ndarray, binding: Binding, flat: np.ndarray) -> np.ndarray:
        """Multiplies `flat` of shape (copies, size, rest) as a binding says."""
        entry, extra = binding.entry, value.ndim - len(self.group.lengths)
        value = value if entry.index is None else value[binding.taken]
        if self.permutes:
            return value @ flat if extra > 1 else np.take_along_axis(flat, value[..., None], axis=-2)
        if self.group.diagonal:
            return (value ** (entry.power * (-1) ** entry.star))[..., None] * flat
        if isinstance(self.group, ScaledRotation):
            value = (1 / np.conj(value) if entry.star else value) ** int(entry.power)
            return planes(value) @ flat
        if entry.star and not self.compact:
            value = np.swapaxes(np.linalg.inv(value), -1, -2)
        return value @ flat

    def element(self, value: np.ndarray) -> Any:
        """The value as an element of the group, in NumPy and double precision."""
        if isinstance(self.group, ScaledRotation):
            return np.real(value).copy(), np.imag(value).copy()
        if isinstance(self.group, GeneralLinear):
            return value, np.swapaxes(np.linalg.inv(value), -1, -2)
        return value

    def pairs(self, had: Arrays, wanted: Arrays, paths: Collection[str] | None = None) -> Iterator[Pair]:
        """All that this slot moves, in these arrays, with its axis and copies apart from the rest."""
        for path in self.specs if paths is None else paths:
            for (x, bindings), (y, _) in zip(self.blocks(had, path), self.blocks(wanted, path), strict=True):
                for binding in bindings:
                    rows = [rows_of(part, binding) for part in (x, y)]
                    yield Pair(rows[0], rows[1], binding.entry, binding.taken)

    def total(self, shape: tuple[int, ...], parts: Iterator[tuple[Any, np.ndarray]]) -> np.ndarray:
        """Sums parts, each given with the copies of the group to which it belongs."""
        total = np.zeros((*self.group.lengths, *shape))
        for taken, part in parts:
            total[taken if self.group.lengths else ...] += part
        return total

    def blocks(self, x: Arrays, path: str) -> list[tuple[np.ndarray, tuple[Binding, ...]]]:
        """The blocks of an array on which the space acts."""
        blocks: list[tuple[np.ndarray, tuple[Binding, ...]]] = []

        def collect(part: np.ndarray, bindings: tuple[Binding, ...]) -> np.ndarray:
            if bindings:
                blocks.append((part, bindings))
            return part

        walk(self.specs[path], x[path], {self.name: self.group}, collect)
        return blocks


def planes(z: np.ndarray) -> np.ndarray:
    """Complex numbers as matrices of the plane: (*per,) to (*per, 2, 2).

    >>> planes(np.array(2 + 1j))
    array([[ 2., -1.],
           [ 1.,  2.]])
    """
    p, q = np.real(z), np.imag(z)
    return np.moveaxis(np.array([[p, -q], [q, p]]), (0, 1), (-2, -1))


def rows_of(x: np.ndarray, binding: Binding) -> np.ndarray:
    """Reshapes to the index axes first, then the bound axis, then all other axes, as real numbers.

    >>> rows_of(np.array([[1.0 + 2.0j, 3.0]]), Binding(Entry("h"), axis=1, indices=()))
    array([[1., 2.],
           [3., 0.]])
    """
    axes = (*binding.indices, binding.axis)
    front = np.moveaxis(x, axes, range(len(axes)))
    flat = front.reshape(*front.shape[: len(axes)], -1)
    return np.concatenate([np.real(flat), np.imag(flat)], axis=-1) if np.iscomplexobj(flat) else flat


def slots_of(symmetries: list[NetworkSymmetry], arrays: Arrays) -> list[Slot]:
    """A slot for every space, in the order in which their elements act.

    Scales and general linear groups act first. The problems of all that follows, which preserve norms, then
    stay as they are when later elements are undone. Permutations act last, those of single units before those
    of whole heads and experts: groups of the units then remain what they are when units are permuted.

    >>> import symmetrax as sx
    >>> symmetry = sx.NetworkSymmetry({"h": sx.groups.Permutation(2)}, {"w": "h"}, {"w": np.ones(2)})
    >>> [slot.name for slot in slots_of([symmetry], {"w": np.ones(2)})]
    ['h']
    """
    slots = []
    for given, symmetry in enumerate(symmetries):
        for name, group in symmetry.spaces.items():
            if not isinstance(group, _ORDER):
                raise ValueError(
                    f"The space {name!r} has the group {group}, over which `match` has no search: leave it "
                    "out by symmetry.only(...)."
                )
            slot = Slot(given, name, group, symmetry.only(name).specs)
            blocks = [bindings for path in slot.specs for _, bindings in slot.blocks(arrays, path)]
            slots.append(dataclasses.replace(slot, repeated=any(len(bindings) > 1 for bindings in blocks)))
            if isinstance(group, ScaledRotation) and any(b.entry.power != 1 for bs in blocks for b in bs):
                raise ValueError(
                    f"The space {name!r} has a power of {group}, over which `match` has no search: leave it "
                    "out by symmetry.only(...)."
                )
    # Stable: spaces of one kind keep their order.
    return sorted(slots, key=lambda slot: (_ORDER.index(type(slot.group)), -len(slot.group.per)))
