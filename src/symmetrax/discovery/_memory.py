"""How much memory a search takes, and how it stays below a bound."""

import dataclasses

import numpy as np

from symmetrax.groups._diagonal import AbstractGroup
from symmetrax.groups._matrices import GeneralLinear, Orthogonal

#: Points of certificates and their gradients are kept if they take no more bytes than this.
KEPT = 1 << 31

#: Bytes for gradients that questions keep, with their points, and as many for products of the two.
GATHERED = 1 << 29

#: Bytes of the pool that noise is taken from.
NOISE = 1 << 27

#: Copies of the largest array beside the program of the loss: an array, its image, their difference.
BESIDE = 4


@dataclasses.dataclass(frozen=True)
class Memory:
    """The sizes of what a search holds, in bytes, and the `bound` that it has to stay below, if any.

    `size` is that of all searched arrays in double precision, `largest` that of the largest one. `whole`
    gradients are kept for questions that read gradients (`gathers`).

    A search is either fast, and keeps the points of all certificates and the gradients there, or *lean*: it
    draws the points again, makes every array when it is used, and lets the gradient overwrite the parameters
    that it is taken at.

    >>> memory = Memory(None, size=10**9, largest=10**8, trials=3)
    >>> memory.lean  # six points and gradients would be 6 GB
    True
    >>> Memory(10**9, size=10**9, largest=10**8, trials=3).check(10**9)
    Traceback (most recent call last):
    ValueError: `memory` of 1 GB is too small: the search needs 2.9 GB, 1 GB of it for one gradient; ...
    """

    bound: int | None
    size: int
    largest: int
    trials: int
    whole: int = 0
    gathers: bool = False

    def __post_init__(self) -> None:
        if self.bound is not None and not self.bound > 0:
            raise ValueError(f"`memory` must be a positive number of bytes, or None; got {self.bound}.")

    @property
    def lean(self) -> bool:
        """Whether points have to be drawn again, judged before the program of the loss is known."""
        kept = 2 * self.trials * self.size
        return kept > KEPT or (self.bound is not None and self.needed(3 * self.size, lean=False) > self.bound)

    def needed(self, evaluation: int, *, lean: bool) -> int:
        """The bytes of a whole search, if one gradient of the loss takes `evaluation` bytes."""
        need = evaluation + self.size + BESIDE * self.largest + min(NOISE, self.size // 2)
        if not lean:
            need += 2 * self.trials * self.size
        if self.gathers:  # two points at which signs are flipped, besides
            share = share_of(self.bound)
            need += max(share, 2 * self.whole * self.size) + share + 2 * self.size
        return need if self.bound is None else need + self.bound // 8  # that part is for random elements

    def check(self, evaluation: int) -> None:
        """Raises ValueError if the bound is below what the leanest search needs."""
        if self.bound is None or (need := self.needed(evaluation, lean=True)) <= self.bound:
            return
        least, one = (need - self.bound // 8) * 8 / 7e9, evaluation / 1e9
        advice = "use method='program'" if self.gathers else "search a smaller model, and transfer the result"
        given = f"`memory` of {self.bound / 1e9:.3g} GB"
        raise ValueError(
            f"{given} is too small: the search needs {least:.3g} GB, {one:.3g} GB "
            f"of it for one gradient; {advice}."
        )

    def allows(self, groups: list[AbstractGroup]) -> bool:
        """Whether random elements of these groups, for all trials, fit into their part of the bound."""
        needed = sum(map(_entries, groups)) * 8 * (self.trials + 2)  # two more while one is drawn
        return self.bound is None or needed <= self.bound // 8


def share_of(bound: float | int | None) -> int:
    """The bytes for gradients that are kept, and those for products of gradients and points.

    >>> share_of(None), share_of(8e6)
    (536870912, 1000000)
    """
    return GATHERED if bound is None else min(GATHERED, int(bound) // 8)


def _entries(group: AbstractGroup) -> int:
    """The numbers in an element of a group; a general linear one holds its inverse too."""
    copies = int(np.prod(group.lengths)) * group.size
    match group:
        case GeneralLinear():
            return 2 * copies * group.size
        case Orthogonal():
            return copies * group.size
    return copies
