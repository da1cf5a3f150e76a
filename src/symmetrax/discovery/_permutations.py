"""Permutations from gradients with two units tied.

If unit u is copied over unit v on every axis of a space, swapping the two changes nothing, so the gradient
has equal slices there. The search therefore ties all candidate axes at once and keeps those with equal
slices; axes that lose equality when one of them is untied belong together.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from symmetrax.discovery._cost import Cost
from symmetrax.discovery._evidence import Evidence
from symmetrax.discovery._found import Look
from symmetrax.discovery._implied import implied
from symmetrax.discovery._leaves import Leaves
from symmetrax.discovery._loss import Loss
from symmetrax.discovery._places import Place, matrix_sites, ordered
from symmetrax.discovery._question import Answer, Question
from symmetrax.discovery._relations import NEARLY, threshold
from symmetrax.discovery._scope import Scope
from symmetrax.discovery._sites import MOST_PARTS, Shape, Site, Spec
from symmetrax.discovery._spaces import Space, with_per
from symmetrax.groups._diagonal import Permutation, PositiveDiagonal

#: How many numbers of blocks (heads, normalization groups) are tried.
MOST_BLOCKS = 4

#: Maximum number of points drawn because a unit was dead at the previous one.
TRIES = 4


@dataclasses.dataclass(frozen=True)
class Permutations(Question):
    """Whether units, blocks of units (heads, groups), or units within blocks are permuted.

    The numbers of blocks are given by `heads` or by the spaces that hold. Ask it once before segments, which
    are not cut out of axes whose units are permuted, and once more after scales, which reveal the groups of
    normalized axes. The second time covers only shapes that are new.

    >>> import jax.numpy as jnp
    >>> scope = Scope.of({"w": jnp.ones((4, 3))})
    >>> Permutations.shapes(scope.places, blocks=[2])
    [((), 4), ((), 3), ((2,), 2), ((), 2)]
    >>> Permutations().cost(scope).permutations
    936
    """

    finds = (Permutation,)

    @staticmethod
    def shapes(places: Sequence[Place], blocks: Iterable[int]) -> list[Shape]:
        """The shapes that may be permuted, largest first.

        They are whole axes, whole axes for each value of an index, `blocks` of an axis, and units within
        `blocks` of an axis.
        """
        found: dict[Shape, None] = {(place.leads, place.length): None for place in places if place.length > 1}
        for count in blocks:
            found[(), count] = None
            for place in places:
                if not place.lead and place.length % count == 0 and place.length > count:
                    found[(count,), place.length // count] = None
        return ordered(found)

    def cost(self, scope: Scope) -> Cost:
        """Bounds both times together, with as many numbers of blocks as are tried at most."""
        shapes = self.shapes(scope.places, ())
        sizes = [len(sites) for shape in shapes for sites in _variants(shape, scope.places)]
        blocks = MOST_BLOCKS * (4 + MOST_PARTS) * _most(len(scope.axes))
        return Cost(permutations=sum(_most(size) for size in sizes) + blocks)

    def answers(self, evidence: Evidence) -> Iterator[Answer]:
        for shape in self.shapes(evidence.live, _blocks(evidence)):
            if not evidence.first_time((Permutations, shape)):
                continue
            for sites in _variants(shape, evidence.live):
                group = with_per(Permutation, shape)
                known = implied(sites, group, evidence.spaces)
                covered = {k for relation in known for k in np.flatnonzero(relation)}
                left = [site for k, site in enumerate(sites) if k not in covered]
                if not left or evidence.lacks(_most(len(left)), f"permutations of {shape[1]}", Permutation):
                    continue
                ties = _Ties(evidence.loss, left, evidence.rng)
                spaces = [
                    [Space(group, tuple(Spec(site) for site in sorted(members, key=left.index)), gap)]
                    for members, gap in ties.components()
                ]
                yield Answer(spaces, Look("permutations", shape, len(left), len(spaces), ties.nearest))


def _blocks(evidence: Evidence) -> list[int]:
    """Numbers of blocks given by `heads` or by the spaces found so far, the most frequent first."""
    # Numbers that the user gives come first, however often spaces have other ones.
    counts: dict[int, int] = dict.fromkeys(evidence.scope.heads or (), len(evidence.spaces) + 1)
    for space in evidence.spaces:
        group = space.group
        # One scale for several neighbouring units marks a group of normalized units.
        if isinstance(group, PositiveDiagonal) and all(spec.site.tail > 1 for spec in space.specs):
            counts[group.size] = counts.get(group.size, 0) + 1
        elif group.per and not isinstance(group, Permutation):
            counts[group.lengths[0]] = counts.get(group.lengths[0], 0) + 1
    often = sorted((count for count in counts if count > 1), key=lambda count: -counts[count])
    return often[:MOST_BLOCKS]


def _most(sites: int) -> int:
    """Upper bound on the gradients for one shape, including permutations that hold approximately."""
    # Once with all tied; then, for each of the two limits, once with those alike, and once without each.
    return TRIES * (1 + 2 * (1 + sites))


def _variants(shape: Shape, places: Sequence[Place]) -> list[list[Site]]:
    """Sites of one shape, at most one per axis: copies either of the whole unit list, or of each unit.

    If an axis is a small multiple of another's length, it may also consist of that many parts with units in
    each, for instance concatenated heads of queries, keys and values.
    """
    sites = [site for site in matrix_sites(shape, places) if site.second == site.third == 1]
    found = []
    for kind in ("repeats", "tail"):
        chosen: dict[tuple[str, int], Site] = {}
        for site in sites:
            if site.copies == 1 or getattr(site, kind) > 1:
                chosen.setdefault((site.path, site.axis), site)
        # Without any copies behind the units, the second variant is the first one again.
        if not found or any(site.tail > 1 for site in chosen.values()):
            found.append(chosen)
    lengths = {place.length for place in places}
    for parts in range(2, MOST_PARTS + 1):
        fused = {
            (place.path, place.axis): _in_parts(place, parts, shape[1])
            for place in places
            if not shape[0] and not place.lead and place.length % (parts * shape[1]) == 0
            if place.length // parts in lengths and place.length > parts * shape[1]
        }
        found += [found[-1] | fused] if fused else []
    return [[*chosen.values()] for chosen in found if chosen]


def _in_parts(place: Place, parts: int, size: int) -> Site:
    """An axis made of a few parts, each of which consists of blocks, the units."""
    block = place.length // parts // size
    return place.site(size, repeats=parts, stride=size * block, tail=block)


class _Ties:
    """Candidate axes of one shape, with the slices of one unit copied over another's."""

    def __init__(self, loss: Loss, sites: Sequence[Site], rng: np.random.Generator):
        self.loss, self.sites, self.rng = loss, sites, rng
        self.nearest = np.inf
        # Differences that count as zero, then as approximately zero; and slices that count as zero.
        self.limits = sorted({threshold(loss.precision), max(NEARLY, threshold(loss.precision))})
        self.least = min(30 * loss.precision, 1e-4)
        self.draw(0)

    def draw(self, number: int) -> None:
        """Draws another point and another unit to copy over a distant one, since neighbours are similar."""
        last = self.sites[0].size - 1
        unit = (0, last, last // 2, int(self.rng.integers(last + 1)))[number % 4]
        self.leaves = self.loss.placed(self.loss.generic(self.rng))
        self.pair = (unit, last if unit <= last // 2 and unit != last else 0)

    def differences(self, tied: Sequence[Site]) -> dict[Site, float]:
        """Relative differences of the gradients' two slices; NaN if both are zero."""
        leaves: Leaves = dict(self.leaves)
        for site in tied:
            leaves[site.path] = site.copied(np.asarray(leaves[site.path]), *self.pair)
        _, gradient = self.loss.gradient(leaves, self.loss.batch)
        found = {}
        for site in self.sites:
            # Complex numbers, so that one formula serves for real and for complex arrays.
            one, other = (side.astype(complex) for side in site.pair(gradient[site.path], *self.pair))
            size = np.sqrt(np.linalg.norm(one) ** 2 + np.linalg.norm(other) ** 2)
            tiny = self.least * np.linalg.norm(gradient[site.path].astype(complex))
            # NaN, not zero: two slices of zeros are equal whether or not their units may be swapped.
            found[site] = np.linalg.norm(one - other) / size if size > tiny else np.nan
        return found

    def settled(self, tied: Sequence[Site]) -> dict[Site, float]:
        """The differences at a point without dead units, if a few draws find one.

        Dead slices are uninformative.
        """
        apart: dict[Site, float] = {}
        for number in range(TRIES):
            apart = self.differences(tied)
            if not any(np.isnan(gap) for gap in apart.values()):
                break
            self.draw(number + 1)
        return apart

    def components(self) -> list[tuple[list[Site], tuple[float, float]]]:
        """Sets of axes that are permuted together, with the differences on both sides of the decision.

        Sets without differences come first, then, if there are any, those with small differences.
        """
        apart, found, counted = self.settled(self.sites), [], 0
        for limit in self.limits:
            alike = [site for site in self.sites if apart[site] <= limit]
            if len(alike) > counted:
                found += self.linked(alike, apart, limit)
                self.nearest = min((gap for gap in apart.values() if gap > limit), default=np.inf)
            counted = len(alike)
        return found

    def linked(
        self, alike: list[Site], apart: dict[Site, float], limit: float
    ) -> list[tuple[list[Site], tuple[float, float]]]:
        """Groups axes that are permuted together: untying one shows which others depend on it."""
        # Ties on axes that are not permuted change the loss too: look again with the others alone tied.
        if len(alike) < len(self.sites):
            apart = self.settled(alike)
            alike = [site for site in alike if apart[site] <= limit]
        found: list[tuple[list[Site], tuple[float, float]]] = []
        for loose in alike:
            if any(loose in members for members, _ in found):
                continue
            without = self.settled([site for site in alike if site is not loose])
            # `not <=`, so that a slice that is dead without the tie counts as lost.
            lost = [site for site in alike if not without[site] <= limit and site is not loose]
            members, gap = [loose, *lost], min((without[site] for site in lost), default=np.inf)
            # With linear activations, untying an axis may only break axes that an earlier one broke too.
            for other in [one for one in found if set(one[0]) & set(members)]:
                found.remove(other)
                members, gap = [*dict.fromkeys([*other[0], *members])], min(gap, other[1][1])
            found.append((members, (max(apart[site] for site in members), gap)))
        return found
