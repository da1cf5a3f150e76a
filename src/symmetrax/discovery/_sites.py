"""Sites where a space may act on an array: candidate spec entries for every axis, and their implications."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

#: The shape of a group's elements: lengths of its indices, and size of its matrices.
Shape = tuple[tuple[int, ...], int]

#: Maximum number of consecutive copies along an axis on which scales may act independently.
MOST_PARTS = 4


@dataclasses.dataclass(frozen=True)
class Site:
    """A candidate spec entry on one axis of an array: which positions belong to which unit of a space.

    The axis consists of `start` plain entries, then `first * repeats` blocks of `stride` entries, then plain
    ones. In a block, after `offset` plain entries, come `second`, `size`, `third` and `tail`, from slowest to
    fastest. `first`, `second` and `third` are indices of the group; along `repeats` and `tail` the same
    element acts many times: `(kv _ f z)` is first=kv, repeats, second=f, size=z. Other array axes may be
    indices too: `lead` lists each with its effective length, which is the slowest part of the axis if it is
    less than the whole. The action is linear in the array plus `shift`.

    >>> site = Site("qkv", (12, 4), axis=0, size=2, first=2, repeats=3, stride=2)  # (heads 3 z) _
    >>> site.copies, site.per
    (3, (2,))
    >>> site.positions[0].tolist()  # of the units of the first head
    [[0, 2, 4], [1, 3, 5]]
    """

    path: str
    shape: tuple[int, ...]
    axis: int
    size: int
    lead: tuple[tuple[int, int], ...] = ()
    start: int = 0
    first: int = 1
    repeats: int = 1
    stride: int = 0
    offset: int = 0
    second: int = 1
    third: int = 1
    tail: int = 1
    shift: float = 0.0

    @property
    def per(self) -> tuple[int, ...]:
        """The lengths of the group's indices."""
        inside = (length for length in (self.first, self.second, self.third) if length > 1)
        return (*(length for _, length in self.lead), *inside)

    @property
    def indices(self) -> int:
        """The number of values of the group's indices."""
        return int(np.prod(self.per))

    @property
    def length(self) -> int:
        """The length of the axis."""
        return self.shape[self.axis]

    @property
    def whole(self) -> bool:
        """Whether it covers every position of the axis."""
        return self.positions.size == self.length

    @property
    def copies(self) -> int:
        """How many times one element acts along the axis."""
        return self.repeats * self.tail

    @functools.cached_property
    def positions(self) -> np.ndarray:
        """Positions on the axis, of shape (first * second * third, size, copies)."""
        p, r, f, i, q, t = np.ogrid[
            : self.first, : self.repeats, : self.second, : self.size, : self.third, : self.tail
        ]
        inside = ((f * self.size + i) * self.third + q) * self.tail + t
        places = self.start + (p * self.repeats + r) * self.stride + self.offset + inside
        return places.transpose(0, 2, 4, 3, 1, 5).reshape(-1, self.size, self.copies)

    @functools.cached_property
    def labels(self) -> tuple[np.ndarray, np.ndarray]:
        """For all positions along the axes involved: their coordinate and the matrix that acts, or -1.

        Both broadcast against the array; coordinates count units, with the group's indices slowest.
        """
        leads = [length for _, length in self.lead]
        places, outer = self.positions, int(np.prod(leads))
        coordinate, matrix = np.full((2, outer, self.length), -1)
        p, i, r = np.ogrid[: places.shape[0], : places.shape[1], : places.shape[2]]
        for a in range(outer):
            coordinate[a, places] = (a * len(places) + p) * self.size + i + 0 * r
            matrix[a, places] = (a * len(places) + p) * self.copies + r + 0 * i
        axes = (*(axis for axis, _ in self.lead), self.axis)
        sizes = [self.shape[k] if k in axes else 1 for k in range(len(self.shape))]
        order = np.argsort(axes)

        def spread(part: np.ndarray) -> np.ndarray:
            part = part.reshape(*leads, self.length)
            for k, (axis, length) in enumerate(self.lead):
                part = np.repeat(part, self.shape[axis] // length, axis=k)
            return part.transpose(order).reshape(sizes)

        return spread(coordinate), spread(matrix)

    def parts(self) -> list["Site"]:
        """Splits a few consecutive copies (gates of an LSTM, a fused gate and up) into single sites."""
        if not (1 < self.repeats <= MOST_PARTS and self.first == self.second == self.third == self.tail == 1):
            return [self]
        return [
            dataclasses.replace(self, start=self.start + k * self.stride, repeats=1)
            for k in range(self.repeats)
        ]

    def pair(self, x: np.ndarray, u: int, v: int) -> tuple[np.ndarray, np.ndarray]:
        """The slices of units u and v at the first value of every index."""
        taken = self.gather(x, np.array([0]), np.array([u, v]))[0]
        return taken[0], taken[1]

    def change(
        self,
        x: np.ndarray,
        units: int | np.ndarray,
        new: Callable[[np.ndarray], np.ndarray],
        copies: Sequence[int] | None = None,
    ) -> np.ndarray:
        """Replaces the slices of some units at the first value of every index by `new(front)`.

        `front` is the array with the indices and the axis in front, restricted to that value; `new` returns
        the replacement for the units. `copies` selects some of their positions along the axis.
        """
        out = x.reshape(self.shape).copy()
        front = np.moveaxis(out, (*(k for k, _ in self.lead), self.axis), range(len(self.lead) + 1))
        corner = front[tuple(slice(0, self.shape[k] // length) for k, length in self.lead)]
        every = (slice(None),) * len(self.lead)
        corner[(*every, self._at(units, copies))] = new(corner)
        return out.reshape(x.shape)

    def copied(self, x: np.ndarray, u: int, v: int) -> np.ndarray:
        """Copies unit u's slice over unit v's, at the first value of every index."""
        every = (slice(None),) * len(self.lead)
        return self.change(x, v, lambda corner: corner[(*every, self.positions[0, u])])

    def _at(self, units: int | np.ndarray, copies: Sequence[int] | None) -> np.ndarray:
        return self.positions[0, units] if copies is None else self.positions[0, units][..., list(copies)]

    def flipped(self, x: np.ndarray, units: np.ndarray, copies: Sequence[int] | None) -> np.ndarray:
        """Flips the signs of some units' slices, at the first value of every index."""
        every = (slice(None),) * len(self.lead)
        return self.change(
            x, units, lambda corner: -corner[(*every, self._at(units, copies))] - 2 * self.shift, copies
        )

    def gather(self, x: np.ndarray, blocks: np.ndarray, units: np.ndarray) -> np.ndarray:
        """Slices of the array at some index values and some units: (blocks, units, rest)."""
        outer, at = self.sampled(blocks, units)
        taken = self.in_front(x)[outer[:, None, None], at]
        return taken.reshape(len(blocks), len(units), -1)

    def sampled(self, blocks: np.ndarray, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of `in_front` and positions on the axis, for some index values and units."""
        outer, inner = np.divmod(blocks, len(self.positions))
        return outer, self.positions[inner][:, units]

    def in_front(self, x: Any) -> Any:
        """Reshapes the array to (all values of the indices `lead`, the axis, the rest)."""
        return in_front(x.reshape(self.shape), self.lead, self.axis)


@dataclasses.dataclass(frozen=True)
class Spec:
    """A site on which a space acts, with a power: 1 for g, -1 for its dual, 2 for its square.

    >>> Spec(Site("w", (4, 3), 0, 4, stride=4), -1.0).site.whole
    True
    """

    site: Site
    power: float = 1.0
    copies: tuple[int, ...] | None = None  # on which copies along the axis it acts; None for all


def in_front(x: Any, lead: Sequence[tuple[int, int]], axis: int) -> Any:
    """Reshapes an array to (all values of the indices, the axis, the rest); indices are parts of axes.

    >>> in_front(np.zeros((6, 5, 4)), lead=[(0, 3)], axis=2).shape  # the rest has a 2 of the first axis
    (3, 4, 10)
    """
    count, first = len(lead), (*(k for k, _ in lead), axis)
    front = x.transpose((*first, *(k for k in range(x.ndim) if k not in first)))
    parts = [size for (k, length) in lead for size in (length, x.shape[k] // length)]
    apart = front.reshape(*parts, *front.shape[count:])
    slow, fast = range(0, 2 * count, 2), range(1, 2 * count, 2)
    order = (*slow, 2 * count, *fast, *range(2 * count + 1, apart.ndim))
    return apart.transpose(order).reshape(int(np.prod([length for _, length in lead])), x.shape[axis], -1)


def carried(bigs: Sequence[Site], smalls: Sequence[Site], *, matrices: bool) -> np.ndarray | None:
    """How the coordinates on `smalls` follow from those on `bigs`, or None if they do not.

    Both are sites on one array: `bigs` of several spaces, whose coordinates are counted consecutively, and
    `smalls` of one smaller space. With `matrices`, a matrix of the smaller space must also act inside a
    matrix of another space. Two specs of a space imply a smaller space if the result is the same for both.

    >>> whole, pairs = Site("w", (4, 2), 0, 4, stride=4), Site("w", (4, 2), 0, 2, stride=2, repeats=2)
    >>> carried([whole], [pairs], matrices=False).tolist()  # four scales, of which two pairs are equal
    [0, 1, 0, 1]
    >>> carried([pairs], [whole], matrices=False) is None
    True
    """
    axes = {axis for big in bigs for axis in (big.axis, *(lead for lead, _ in big.lead))}
    if any(small.axis not in axes and small.size * small.indices > 1 for small in smalls):
        return None
    shape = np.broadcast_shapes(*(site.labels[0].shape for site in (*bigs, *smalls)))
    coordinate, matrix, labels, blocks = (np.full(shape, -1) for _ in range(4))
    count = 0
    for site in bigs:
        count = _paint(site, shape, coordinate, matrix, count, grow=True)
    for k, site in enumerate(smalls):
        _paint(site, shape, labels, blocks, k, grow=False)
    inside, covered = coordinate >= 0, labels >= 0
    if np.any(covered & ~inside):
        return None
    # -2 marks coordinates that no position shows, -1 those on which the smaller space does not act.
    function = np.full(count, -2)
    function[coordinate[inside]] = labels[inside]
    if np.any(function[coordinate[inside]] != labels[inside]):
        return None
    if matrices:
        _, blocks = np.unique(blocks[covered], return_inverse=True)
        owner = np.full(len(blocks), -1)
        owner[blocks] = matrix[covered]
        if np.any(owner[blocks] != matrix[covered]):
            return None
    return function


def _paint(
    site: Site, shape: tuple[int, ...], coordinate: np.ndarray, matrix: np.ndarray, count: int, *, grow: bool
) -> int:
    """Writes a site's labels into arrays of all labels; returns the next free coordinate if they grow."""
    labels, blocks = site.labels
    # Along axes other than the site's own, the same matrix acts many times.
    own = {site.axis, *(axis for axis, _ in site.lead)}
    others = [axis for axis, length in enumerate(shape) if axis not in own and length > 1]
    copies = np.zeros([1] * len(shape), int)
    for axis in others:
        steps = np.arange(shape[axis]).reshape([-1 if k == axis else 1 for k in range(len(shape))])
        copies = copies * shape[axis] + steps
    number = int(np.prod([shape[axis] for axis in others]))
    labels, blocks, copies = (np.broadcast_to(part, shape) for part in (labels, blocks, copies))
    here = labels >= 0
    coordinate[here] = labels[here] + (count if grow else 0)
    tagged = blocks[here] * number + copies[here]
    # Tags of different sites never meet: no array has 2^40 matrices along its axes.
    matrix[here] = tagged + (1 << 40) * count
    return count + site.indices * site.size
