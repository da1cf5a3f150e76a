"""The slots of an alignment, acting one after the other."""

import dataclasses

import numpy as np

from symmetrax.groups._matrices import ScaledRotation
from symmetrax.symmetry._align._slots import Arrays, Slot
from symmetrax.symmetry._align._steps import polar

#: A value for every slot.
Values = list[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Found:
    """The values of all slots, the squared distance that remains, and how the search went.

    >>> Found([], 0.0, 3, True).settled
    True
    """

    values: Values
    square: float
    sweeps: int
    settled: bool


class Chain:
    """Slots that act one after the other, those that do not preserve norms first.

    >>> import symmetrax as sx
    >>> chain = Chain([Slot(0, "h", sx.groups.PositiveDiagonal(2), {"w": "h"})])
    >>> chain.moved(chain.added(chain.identity(), 0, np.array([2.0, 3.0])), {"w": np.ones(2)})
    {'w': array([2., 3.])}
    """

    def __init__(self, slots: list[Slot]):
        self.slots = slots
        self.loose = [k for k, slot in enumerate(slots) if not slot.compact]

    def identity(self) -> Values:
        return [slot.identity() for slot in self.slots]

    def added(self, values: Values, k: int, step: np.ndarray) -> Values:
        """The values with another element after that of slot `k`."""
        return [*values[:k], self.slots[k].compose(step, values[k]), *values[k + 1 :]]

    def drawn(self, random: np.random.Generator) -> Values:
        """Random elements of all groups that preserve norms."""
        return [_drawn(slot, random) for slot in self.slots]

    def states(self, values: Values, had: Arrays, wanted: Arrays) -> tuple[list[Arrays], list[Arrays]]:
        """The arrays after each slot has acted, and the target with each later slot undone."""
        after, x = [], had
        for slot, value in zip(self.slots, values, strict=True):
            x = slot.act(value, x)
            after.append(x)
        before, y = [], wanted
        for slot, value in zip(self.slots[::-1], values[::-1], strict=True):
            before.append(y)
            y = slot.act(slot.inverse(value), y) if slot.compact else y
        return after, before[::-1]

    def moved(self, values: Values, had: Arrays, count: int | None = None) -> Arrays:
        """The arrays after all slots have acted, or the first `count` of them."""
        for slot, value in zip(self.slots[:count], values[:count], strict=True):
            had = slot.act(value, had)
        return had

    def undone(self, values: Values, wanted: Arrays) -> Arrays:
        """The target with all slots undone that preserve norms."""
        for slot, value in zip(self.slots[::-1], values[::-1], strict=True):
            wanted = slot.act(slot.inverse(value), wanted) if slot.compact else wanted
        return wanted


def _drawn(slot: Slot, random: np.random.Generator) -> np.ndarray:
    identity = slot.identity()
    if slot.permutes:
        return random.permuted(identity, axis=-1)
    if slot.compact and slot.group.diagonal:
        return random.choice([-1.0, 1.0], size=identity.shape)
    if slot.compact and not isinstance(slot.group, ScaledRotation):
        return polar(slot.group, random.normal(size=identity.shape))
    return identity
