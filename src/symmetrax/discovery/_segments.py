"""Matrix groups on segments of concatenated axes: fused projections, partly rotary heads, latent attention.

Nothing in the parameters says where a fused axis is cut. The candidates are equal parts, the lengths of other
axes, those lengths divided by a number of heads, and the remainders; within a head also a rotary part. The
gap decides which are right.
"""

import dataclasses
from collections.abc import Iterator, Sequence

from symmetrax.discovery._cost import Cost
from symmetrax.discovery._evidence import Evidence
from symmetrax.discovery._matrix_groups import MatrixGroups, matrix_answers
from symmetrax.discovery._moments import points_needed
from symmetrax.discovery._places import MOST_REPEATS, Place, divisors, matrix_sites, ordered, splits
from symmetrax.discovery._question import Answer, Question
from symmetrax.discovery._scope import MATRICES, Scope
from symmetrax.discovery._sites import Shape, Site
from symmetrax.discovery._spaces import Space
from symmetrax.groups._matrices import GeneralLinear, ScaledRotation

#: Maximum number of gradients that are kept, where more would fit the memory.
MOST_POINTS = 512

#: Maximum number of blocks into which an axis is split before each block is cut.
MOST_BLOCKS = 64

#: Maximum block length for which every even rotary part is tried; longer blocks try only quarters.
LONGEST = 16

#: Maximum number of differences between lengths that are tried as cuts.
MOST_REMAINDERS = 40


@dataclasses.dataclass(frozen=True)
class Segments(Question):
    """Whether matrix groups act on segments of axes on which no known group acts as a whole.

    There are many candidates of small shapes, which need more gradients than those on whole axes. These are
    computed only now, and only as many as the axes that are left need.

    >>> import jax.numpy as jnp
    >>> scope = Scope.of({"qkv": jnp.ones((12, 4)), "o": jnp.ones((4, 4))})
    >>> Segments().cost(scope).segments + MatrixGroups().kept(scope)
    512
    """

    finds = MATRICES

    def cost(self, scope: Scope) -> Cost:
        return Cost(segments=max(0, min(MOST_POINTS, scope.capacity) - MatrixGroups().kept(scope)))

    def answers(self, evidence: Evidence) -> Iterator[Answer]:
        # An axis whose group rules out others needs no cuts, which saves most questions and gradients.
        bare = [place for place in evidence.live if not _explained(place, evidence.spaces)]
        lengths = [place.length for place in evidence.live]
        candidates = [*_candidates(bare, lengths, evidence.scope.heads)]
        needed = max([0, *(points_needed(shape, len(sites)) for shape, sites in candidates)])
        most = min(MOST_POINTS, evidence.scope.capacity)
        extra = min(needed, most) - len(evidence.measured.points)
        if extra > 0 and not evidence.lacks(extra, "pieces of fused axes", *MATRICES):
            evidence.keep_more(extra)
        yield from matrix_answers(evidence, candidates)


def _explained(place: Place, known: Sequence[Space]) -> bool:
    """Whether a known space acts on the whole axis and rules out further matrix groups there."""
    return any(
        spec.site.path == place.path and spec.site.axis == place.axis and spec.site.whole and _fills(space)
        for space in known
        for spec in space.specs
    )


def _fills(space: Space) -> bool:
    """Whether a space rules out other matrix groups on the axes on which it acts as a whole.

    Scaled rotations do not: a head that rotates only partially shows pairs along all of it. Neither do groups
    that act identically on copies: fused queries, keys and values may rotate together, but also
    independently.
    """
    if isinstance(space.group, GeneralLinear):
        return True
    return not isinstance(space.group, ScaledRotation) and all(spec.site.copies == 1 for spec in space.specs)


def _cuts(length: int, hints: Sequence[int]) -> set[tuple[int, int]]:
    """Segments (start, size) of some partitions of an axis into two, three or four parts.

    >>> sorted(_cuts(34, [10]))[:4]  # halves, a rotary half, the hint, and equal parts of what it leaves
    [(0, 8), (0, 10), (0, 12), (0, 17)]
    """
    partitions = [[length // parts] * parts for parts in (2, 3, 4) if length % parts == 0]
    for hint in dict.fromkeys(hints):
        rest = length - hint
        if rest <= 0:
            continue
        partitions += [[hint, rest], [rest, hint]]
        if rest % 2 == 0:
            partitions += [[rest // 2, rest // 2, hint], [hint, rest // 2, rest // 2]]
    turning = range(2, length, 2) if length <= LONGEST else [length * k // 4 for k in (1, 2, 3)]
    partitions += [part for k in turning if k % 2 == 0 for part in ([k, length - k], [length - k, k])]
    found = set()
    for sizes in partitions:
        start = 0
        for size in sizes:
            found.add((start, size))
            start += size
    return found


def _candidates(
    places: Sequence[Place], lengths: Sequence[int], heads: Sequence[int] | None
) -> Iterator[tuple[Shape, list[Site]]]:
    """For every shape that a segment of one of the axes may have: all of its sites on them.

    `lengths` are the lengths of all axes of all arrays, from which cuts are guessed. `places` may omit axes
    on which a group acts as a whole, because it rules out other groups there.
    """
    lengths = sorted({*lengths})
    rests = {a - b for a in lengths for b in lengths if a > b}
    # Where lengths are many, most of their differences mean nothing.
    rests = rests if len(rests) < MOST_REMAINDERS else ()
    pieces: dict[Shape, dict[Site, None]] = {}
    for place in places:
        for blocks in divisors(place.length):
            if blocks > MOST_BLOCKS or not splits(blocks, heads):
                continue
            width = place.length // blocks
            per_head = [length // blocks for length in lengths if length % blocks == 0]
            for start, size in _cuts(width, [*lengths, *per_head, *rests]):
                for shape, site in _pieces(place, blocks, width, start, size, heads):
                    pieces.setdefault(shape, {})[site] = None
    for shape in ordered(dict.fromkeys(pieces)):
        # A segment may go with a whole axis of another array, as fused values do with their outputs.
        wholes = [site for site in matrix_sites(shape, places) if site.copies == 1]
        yield shape, [*dict.fromkeys([*pieces[shape], *wholes])]


def _pieces(
    place: Place, blocks: int, width: int, start: int, size: int, heads: Sequence[int] | None
) -> Iterator[tuple[Shape, Site]]:
    """The groups that may act on one segment of every block: 2x2 matrices per frequency, or full ones."""
    pairs = size // 2 if size % 2 == 0 else 0
    if blocks == 1:  # a segment of the whole axis, which may itself be a merged axis
        for front in divisors(size):
            if size // front > 1 and splits(front, heads):
                yield ((place.per(front), size // front), place.site(size // front, start=start, first=front))
            within = pairs // front if pairs and pairs % front == 0 else 0
            for layout in ("second", "third") if within > 1 else ():
                layouts = {"start": start, "first": front, "stride": 2 * within, layout: within}
                yield ((place.per(front, within), 2), place.site(2, **layouts))
        return
    for front in divisors(blocks):  # a segment of every block, with one element per block or per several
        copies = blocks // front
        if copies > MOST_REPEATS:
            continue
        block = {"first": front, "repeats": copies, "stride": width, "offset": start}
        if size > 1:
            yield ((place.per(front), size), place.site(size, **block))
        for layout in ("second", "third") if pairs > 1 else ():
            yield ((place.per(front, pairs), 2), place.site(2, **block, **{layout: pairs}))
