"""Permutations and signs: from gradients with two units tied, and losses with units flipped.

If unit u is copied over unit v on every axis of a space, swapping the two changes nothing, so the gradient
has equal slices there. The search therefore ties all candidate axes at once and keeps those with equal
slices; axes that lose equality when one of them is untied belong together. Signs are searched for on the axes
of spaces already found: if flipping one set of specs gives the same loss as flipping another, flipping their
symmetric difference changes nothing.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from symmetrax.discovery._double import tolerances
from symmetrax.discovery._lie import Look
from symmetrax.discovery._places import Place, is_vector, matrix_sites, ordered
from symmetrax.discovery._points import Leaves, Loss
from symmetrax.discovery._relations import NEARLY, threshold
from symmetrax.discovery._sites import MOST_PARTS, Shape, Site
from symmetrax.discovery._spaces import Space, Spec, implied, with_per
from symmetrax.groups._diagonal import Permutation, PositiveDiagonal, SignDiagonal

#: Maximum number of specs (counting copies along an axis separately) for which all sets are tried for signs.
MOST_SPECS = 14

#: The sets that are tried if there are more specs.
LIKELY = "all of them, on those with odd charges, and on all but vectors"

#: Maximum number of points drawn because a unit was dead at the previous one.
TRIES = 4


def permutation_shapes(places: Sequence[Place], blocks: Iterable[int]) -> list[Shape]:
    """The shapes that may be permuted, largest first.

    They are whole axes, whole axes for each value of an index, `blocks` of an axis, and units within `blocks`
    of an axis.
    """
    found: dict[Shape, None] = {(place.leads, place.length): None for place in places if place.length > 1}
    for count in blocks:
        found[(), count] = None
        for place in places:
            if not place.lead and place.length % count == 0 and place.length > count:
                found[(count,), place.length // count] = None
    return ordered(found)


def permutation_cost(places: Sequence[Place], blocks: int) -> int:
    """Upper bound on the gradients spent on permutations, with `blocks` numbers of blocks to be found."""
    sizes = [len(sites) for shape in permutation_shapes(places, ()) for sites in variants(shape, places)]
    whole = sum(_most(size) for size in sizes)
    return whole + blocks * (4 + MOST_PARTS) * _most(len([place for place in places if not place.lead]))


def sign_cost(axes: int) -> int:
    """Upper bound on the losses spent on signs if this many axes may carry a space."""
    return axes * _sign_most(MOST_SPECS)


def _most(sites: int) -> int:
    """Upper bound on the gradients for one shape of permutations, including approximate ones."""
    return TRIES * (1 + 2 * (1 + sites))


def _sign_most(specs: int) -> int:
    """Upper bound on the losses for signs on this many specs."""
    return 2 ** (specs // 2) + 2 ** (specs - specs // 2) + 1 + MOST_SPECS if specs <= MOST_SPECS else 4


def variants(shape: Shape, places: Sequence[Place]) -> list[list[Site]]:
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


def permutations(
    loss: Loss,
    places: Sequence[Place],
    shapes: Sequence[Shape],
    rng: np.random.Generator,
    known: Sequence[Space],
    skip: Callable[..., bool],
) -> Iterator[tuple[Look, list[list[Space]]]]:
    """Candidates for the permutations of each shape; `skip(evaluations, what, group)` enforces the budget."""
    for shape in shapes:
        for sites in variants(shape, places):
            group = with_per(Permutation, shape)
            covered = {k for relation in implied(sites, group, known) for k in np.flatnonzero(relation)}
            left = [site for k, site in enumerate(sites) if k not in covered]
            if not left or skip(_most(len(left)), f"permutations of {shape[1]}", Permutation):
                continue
            ties = _Ties(loss, left, rng)
            spaces = [
                [Space(group, tuple(Spec(site) for site in sorted(members, key=left.index)), gap)]
                for members, gap in ties.components()
            ]
            yield Look("permutations", shape, len(left), len(spaces), ties.nearest), spaces


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
            one, other = (side.astype(complex) for side in site.pair(gradient[site.path], *self.pair))
            size = np.sqrt(np.linalg.norm(one) ** 2 + np.linalg.norm(other) ** 2)
            tiny = self.least * np.linalg.norm(gradient[site.path].astype(complex))
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
        if len(alike) < len(self.sites):
            apart = self.settled(alike)
            alike = [site for site in alike if apart[site] <= limit]
        found: list[tuple[list[Site], tuple[float, float]]] = []
        for loose in alike:
            if any(loose in members for members, _ in found):
                continue
            without = self.settled([site for site in alike if site is not loose])
            lost = [site for site in alike if not without[site] <= limit and site is not loose]
            members, gap = [loose, *lost], min((without[site] for site in lost), default=np.inf)
            # With linear activations, untying an axis may only break axes that an earlier one broke too.
            for other in [one for one in found if set(one[0]) & set(members)]:
                found.remove(other)
                members, gap = [*dict.fromkeys([*other[0], *members])], min(gap, other[1][1])
            found.append((members, (max(apart[site] for site in members), gap)))
        return found


@dataclasses.dataclass(frozen=True)
class _Atom:
    """A spec, or one of the copies along its axis, whose sign may be flipped."""

    spec: int
    copies: tuple[int, ...] | None


def signs(
    loss: Loss,
    bases: Sequence[Space],
    known: Sequence[Space],
    rng: np.random.Generator,
    skip: Callable[..., bool],
) -> Iterator[tuple[Look, list[list[Space]]]]:
    """Sign flips on the specs of spaces already found: candidates to be certified."""
    asked: list[Space] = []
    for base in sorted(bases, key=lambda base: -len(base.specs)):
        sites = [spec.site for spec in base.specs]
        if base.group.size < 2 or any(base.shape == s.shape and base.touched <= s.touched for s in asked):
            continue
        asked.append(base)
        atoms = _atoms(sites)
        if skip(_sign_most(len(atoms)), f"signs on the specs of {base.group}", SignDiagonal):
            continue
        flips = _Flips(loss, sites, rng)
        group = with_per(SignDiagonal, base.shape)
        others = [space for space in known if not isinstance(space.group, PositiveDiagonal)]
        given = [
            frozenset(atom for atom in atoms if round(relation[atom.spec]) % 2 == 1)
            for relation in implied(sites, group, others)
        ]
        if set().union(*given) >= set(atoms):
            continue  # a larger group has all these signs
        few = len(atoms) <= MOST_SPECS
        sets = flips.all(atoms, given) if few else flips.likely(base)
        spaces = []
        for chosen in sets:
            specs = tuple(
                _spec(k, sites, [atom for atom in chosen if atom.spec == k])
                for k in sorted({a.spec for a in chosen})
            )
            spaces.append([Space(group, specs, (flips.worst, flips.nearest))])
        tried = "" if few else f"signs on {len(atoms)} specs of {base.group}: on {LIKELY}"
        yield Look("signs", base.shape, len(atoms), len(spaces), flips.nearest, tried), spaces


def _spec(k: int, sites: Sequence[Site], atoms: Sequence[_Atom]) -> Spec:
    copies = tuple(sorted(c for atom in atoms for c in atom.copies or ()))
    return Spec(sites[k], 1.0, copies if 0 < len(copies) < sites[k].copies else None)


def _atoms(sites: Sequence[Site]) -> list[_Atom]:
    found = []
    for k, site in enumerate(sites):
        apart = site.repeats > 1 and site.first == 1 and site.tail == 1
        found += [_Atom(k, (c,)) for c in range(site.repeats)] if apart else [_Atom(k, None)]
    return found


class _Flips:
    """Losses with the signs of half of the units flipped on some specs.

    Flipping a single unit has too little effect.
    """

    def __init__(self, loss: Loss, sites: Sequence[Site], rng: np.random.Generator):
        self.loss, self.sites, self.tolerance = loss, sites, tolerances(loss.precision)[0]
        size = sites[0].size
        self.units = rng.permutation(size)[: -(-size // 2)]
        self.leaves, self.others = (loss.placed(loss.generic(rng)) for _ in range(2))
        self.worst, self.nearest = 0.0, np.inf

    def value(self, atoms: Sequence[_Atom], leaves: Leaves) -> float:
        leaves = dict(leaves)
        for atom in atoms:
            site = self.sites[atom.spec]
            leaves[site.path] = site.flipped(np.asarray(leaves[site.path]), self.units, atom.copies)
        return self.loss.value(leaves, self.loss.batch)

    def all(self, atoms: Sequence[_Atom], given: Sequence[frozenset[_Atom]]) -> list[tuple[_Atom, ...]]:
        """A basis of all sets whose flip preserves the loss, beyond `given`, the smallest first.

        It compares the losses of flips on one half of the specs with those on the other half.
        """
        half = len(atoms) // 2
        left, right = (
            [(chosen, self.value(chosen, self.leaves)) for chosen in _subsets(side)]
            for side in (atoms[:half], atoms[half:])
        )
        gaps = {
            (*one, *other): self.loss.apart(a, b)
            for (one, a), (other, b) in itertools.product(left, right)
            if one or other
        }
        self.nearest = min((gap for gap in gaps.values() if gap > self.tolerance), default=np.inf)
        kept = sorted((chosen for chosen, gap in gaps.items() if gap <= self.tolerance), key=len)
        basis: list[tuple[_Atom, ...]] = []
        span: set[frozenset] = {frozenset()}
        for chosen in given:
            span |= {members ^ chosen for members in span}
        here = self.value((), self.others)
        tried = 0
        for chosen in kept:
            if frozenset(chosen) in span:
                continue
            if (tried := tried + 1) > MOST_SPECS:
                break
            gap = self.loss.apart(self.value(chosen, self.others), here)
            if gap <= self.tolerance:
                self.worst = max(self.worst, gap)
                basis.append(chosen)
                span |= {members ^ frozenset(chosen) for members in span}
        return basis

    def likely(self, base: Space) -> list[tuple[_Atom, ...]]:
        """Tries only the sets described in `LIKELY`, if there are many specs."""
        specs = range(len(self.sites))
        sets = [
            list(specs),
            [k for k in specs if base.specs[k].power % 2 == 1],
            [k for k in specs if not is_vector(self.sites[k].shape)],
        ]
        here = self.value((), self.leaves)
        found = []
        for chosen in dict.fromkeys(tuple(_Atom(k, None) for k in part) for part in sets if part):
            gap = self.loss.apart(self.value(chosen, self.leaves), here)
            if gap <= self.tolerance:
                found.append(chosen)
            else:
                self.nearest = min(self.nearest, gap)
        return found[:1]


def _subsets(atoms: Sequence[_Atom]) -> list[tuple[_Atom, ...]]:
    return [chosen for size in range(len(atoms) + 1) for chosen in itertools.combinations(atoms, size)]


def sign_bases(spaces: Sequence[Space]) -> list[Space]:
    """The spaces on whose specs signs may act: those of permutations and of scales."""
    return [s for s in spaces if isinstance(s.group, Permutation | PositiveDiagonal)]
