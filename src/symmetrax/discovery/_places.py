"""The axes of all arrays, and the spec entries that may appear on them: factorizations, layouts, copies."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from symmetrax.discovery._sites import Shape, Site

#: Maximum number of copies along a merged axis that share an element, for groups with indices.
MOST_REPEATS = 16


@dataclasses.dataclass(frozen=True)
class Place:
    """An axis of an array, with the array axes that may serve as a group's indices there.

    >>> place = Place("w", (3, 8, 5), axis=1, lead=((0, 3),))
    >>> place.length, place.leads, place.per(2)
    (8, (3,), (3, 2))
    """

    path: str
    shape: tuple[int, ...]
    axis: int
    lead: tuple[tuple[int, int], ...]

    @property
    def leads(self) -> tuple[int, ...]:
        return tuple(length for _, length in self.lead)

    @property
    def length(self) -> int:
        return self.shape[self.axis]

    def per(self, *inside: int) -> tuple[int, ...]:
        """The lengths of a group's indices here, including those inside the axis."""
        return (*self.leads, *(length for length in inside if length > 1))

    def site(self, size: int, **layout: int) -> Site:
        return Site(self.path, self.shape, self.axis, size, self.lead, **{"stride": size} | layout)


def places(shapes: Mapping[str, tuple[int, ...]]) -> list[Place]:
    """Lists all axes, with the array axes that may be indices: none, the first, the previous one, or both.

    For matrices, only lengths that are stacked somewhere (in an array of three or more axes) count as
    indices. In a grouped convolution the first axis starts with the groups: a part of it counts as an index
    if the number of groups times the inputs per group is the length of some other axis.

    >>> [(place.axis, place.lead) for place in places({"w": (3, 8, 5)})]
    [(0, ()), (1, ()), (1, ((0, 3),)), (2, ()), (2, ((0, 3),)), (2, ((1, 8),)), (2, ((0, 3), (1, 8)))]
    """
    lengths = {length for shape in shapes.values() for length in shape}
    deep = [shape for shape in shapes.values() if len(shape) > 2]
    stacks = {length for shape in deep for length in shape[:-1]}
    found = []
    for path, shape in shapes.items():
        for axis, length in enumerate(shape):
            # An axis of length one has nothing to mix; it counts only in an array of a single entry.
            if length == 1 and (axis or max(shape) > 1):
                continue
            # Indices stand first (layers, experts) or right before the axis (heads); others are rare.
            ahead = [
                lead
                for lead in dict.fromkeys((0, axis - 1))
                if 0 <= lead < axis and shape[lead] > 1 and (len(shape) > 2 or shape[lead] in stacks)
            ]
            wholes = [(lead, shape[lead]) for lead in ahead]
            leads = [(), *((lead,) for lead in wholes), *([tuple(wholes)] if len(wholes) == 2 else [])]
            if len(shape) > 2 and axis == 1:
                groups = (g for g in divisors(shape[0])[1:-1] if g * length in lengths)
                leads += [((0, g),) for g in groups]
            found += [Place(path, shape, axis, lead) for lead in leads]
    return found


def matrix_shapes(at: Sequence[Place], heads: Sequence[int] | None) -> list[Shape]:
    """Shapes of matrix groups that fill some axis exactly, large matrices first.

    An axis may merge an index and a space, or two indices and a space of size 2, as in rotary embeddings.
    `heads` restricts the length of the leading index.

    >>> matrix_shapes(places({"w": (4,)}), heads=None)  # whole, two pairs in either order
    [((), 4), ((2,), 2)]
    """
    found: dict[Shape, None] = {}
    for place in at:
        for front in divisors(place.length):
            size = place.length // front
            if size > 1 and splits(front, heads):
                found[place.per(front), size] = None
        for front in divisors(place.length // 2) if place.length % 2 == 0 else ():
            within = place.length // 2 // front
            if within > 1 and splits(front, heads):
                found[place.per(front, within), 2] = None
    return ordered(found)


def splits(blocks: int, heads: Sequence[int] | None) -> bool:
    """Whether an axis may be split into this many blocks; any number, unless `heads` are given.

    >>> splits(3, None), splits(3, [2, 4]), splits(1, [2, 4])
    (True, False, True)
    """
    return blocks == 1 or heads is None or blocks in heads


def ordered(shapes: Mapping[Shape, None]) -> list[Shape]:
    """Sorts large matrices first, then many of them, so that implied shapes come last.

    >>> ordered({((), 2): None, ((), 8): None, ((4,), 2): None})
    [((), 8), ((4,), 2), ((), 2)]
    """
    return sorted(shapes, key=lambda shape: (-shape[1], -int(np.prod(shape[0])), shape))


def matrix_sites(shape: Shape, at: Sequence[Place]) -> list[Site]:
    """All sites of a space of this shape, in all layouts, on the given axes.

    >>> [(site.repeats, site.tail) for site in matrix_sites(((), 3), places({"b": (6,)}))]
    [(2, 1), (1, 2)]
    """
    per, size = shape
    return [
        site
        for place in at
        if per[: len(place.lead)] == place.leads
        for site in _layouts(place, per[len(place.lead) :], size)
    ]


def _layouts(place: Place, per: tuple[int, ...], size: int) -> Iterator[Site]:
    copies, rest = divmod(place.length, int(np.prod(per)) * size)
    if rest or copies == 0 or (per and copies > MOST_REPEATS) or len(per) > 2:
        return
    front = per[0] if per else 1
    # Copies stand in front of the units or behind them: `(_ z)` and `(z _)`.
    if len(per) < 2:
        yield place.site(size, first=front, repeats=copies)
        if copies > 1:
            yield place.site(size, first=front, stride=size * copies, tail=copies)
    # Pairs of rotary embeddings are neighbours, `(f z)`, or half a head apart, `(z f)`.
    if size == 2 and per:
        first, within = (front, per[1]) if len(per) == 2 else (1, front)
        block = {"first": first, "repeats": copies, "stride": size * within}
        yield place.site(size, **block, third=within)
        if len(per) == 2 or copies > 1:
            yield place.site(size, **block, second=within)


def scale_sites(shape: Shape, at: Sequence[Place]) -> list[Site]:
    """All sites of a space of scales; for a single scale, one per whole array.

    >>> [site.path for site in scale_sites(((), 1), places({"w": (4, 3), "b": (4,)}))]
    ['w', 'b']
    """
    per, size = shape
    if size == 1 and not per:
        firsts = {place.path: place for place in reversed(at) if not place.lead}
        return [p.site(1, stride=p.length, tail=p.length) for p in reversed(firsts.values())]
    sites = matrix_sites(shape, at)
    # Gates side by side may scale apart where some axis has just one of them; vectors always may.
    exact = any(site.copies == 1 for site in sites)
    return [part for site in sites for part in (site.parts() if exact or is_vector(site.shape) else [site])]


def is_vector(shape: tuple[int, ...]) -> bool:
    """Whether an array has at most one axis longer than 1, like biases and gains.

    >>> is_vector((6, 1, 1)), is_vector((6, 2))
    (True, False)
    """
    return sum(length > 1 for length in shape) <= 1


def scale_shapes(at: Sequence[Place]) -> list[Shape]:
    """Numbers of scales that divide some axis, from many down to a single one.

    >>> scale_shapes(places({"b": (4,)}))
    [((), 4), ((), 2), ((), 1)]
    """
    found = {(place.leads, size): None for place in at for size in divisors(place.length)}
    found |= {((), 1): None}
    return ordered({shape: None for shape in found if shape[1] > 1 or not shape[0]})


def divisors(n: int) -> list[int]:
    """The divisors of n, from 1 to n.

    >>> divisors(12)
    [1, 2, 3, 4, 6, 12]
    """
    return [k for k in range(1, n + 1) if n % k == 0]
