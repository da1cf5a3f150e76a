"""Signs from losses with units flipped.

Signs are searched for on the axes of spaces already found: if flipping one set of specs gives the same loss
as flipping another, flipping their symmetric difference changes nothing.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from symmetrax.discovery._cost import Cost
from symmetrax.discovery._double import tolerances
from symmetrax.discovery._evidence import Evidence
from symmetrax.discovery._found import Look
from symmetrax.discovery._implied import implied
from symmetrax.discovery._leaves import Leaves
from symmetrax.discovery._loss import Loss
from symmetrax.discovery._places import is_vector
from symmetrax.discovery._question import Answer, Question
from symmetrax.discovery._scope import Scope
from symmetrax.discovery._sites import Site, Spec
from symmetrax.discovery._spaces import Space, with_per
from symmetrax.groups._diagonal import Permutation, PositiveDiagonal, SignDiagonal

#: Maximum number of specs (counting copies along an axis separately) for which all sets are tried.
MOST_SPECS = 14

#: The sets that are tried if there are more specs.
LIKELY = "all of them, on those with odd charges, and on all but vectors"


@dataclasses.dataclass(frozen=True)
class Signs(Question):
    """Whether the signs of units flip, on subsets of the specs of permutations and of scales.

    Gradients do not show signs, and there are too many sets of axes to try them all: ask it after
    permutations and scales, whose axes are tried.

    >>> import jax.numpy as jnp
    >>> Signs().cost(Scope.of({"w": jnp.ones((4, 3))})).signs  # two axes
    542
    """

    finds = (SignDiagonal,)

    def cost(self, scope: Scope) -> Cost:
        return Cost(signs=len(scope.axes) * _most(MOST_SPECS))

    def answers(self, evidence: Evidence) -> Iterator[Answer]:
        bases = [
            space
            for space in (*evidence.spaces, *evidence.nearly)
            if isinstance(space.group, Permutation | PositiveDiagonal)
        ]
        asked: list[Space] = []
        for base in sorted(bases, key=lambda base: -len(base.specs)):
            inside = (base.shape == s.shape and base.shifted_axes <= s.shifted_axes for s in asked)
            if base.group.size < 2 or any(inside):
                continue
            asked.append(base)
            atoms = _atoms([spec.site for spec in base.specs])
            what = f"signs on the specs of {base.group}"
            if evidence.lacks(_most(len(atoms)), what, SignDiagonal):
                continue
            if (answer := _answer(evidence, base, atoms)) is not None:
                yield answer


@dataclasses.dataclass(frozen=True)
class _Atom:
    """A spec, or one of the copies along its axis, whose sign may be flipped."""

    spec: int
    copies: tuple[int, ...] | None


def _answer(evidence: Evidence, base: Space, atoms: Sequence[_Atom]) -> Answer | None:
    """The signs on the specs of one space, or None if known spaces have all of them."""
    sites = [spec.site for spec in base.specs]
    flips = _Flips(evidence.loss, sites, evidence.rng)
    group = with_per(SignDiagonal, base.shape)
    # Signs inside larger groups are part of these; positive scales have none.
    others = [space for space in evidence.spaces if not isinstance(space.group, PositiveDiagonal)]
    given = [
        frozenset(atom for atom in atoms if round(relation[atom.spec]) % 2 == 1)
        for relation in implied(sites, group, others)
    ]
    if set().union(*given) >= set(atoms):
        return None
    few = len(atoms) <= MOST_SPECS
    spaces = []
    for chosen in flips.all(atoms, given) if few else flips.likely(base):
        specs = tuple(
            _spec(k, sites, [atom for atom in chosen if atom.spec == k])
            for k in sorted({a.spec for a in chosen})
        )
        spaces.append([Space(group, specs, (flips.worst, flips.nearest))])
    tried = ""
    if not few:
        tried = f"signs on {len(atoms)} specs of {base.group}: on {LIKELY}"
        evidence.unfinished.add(SignDiagonal.__name__)
    return Answer(spaces, Look("signs", base.shape, len(atoms), len(spaces), flips.nearest, tried))


def _most(specs: int) -> int:
    """Upper bound on the losses for this many specs."""
    return 2 ** (specs // 2) + 2 ** (specs - specs // 2) + 1 + MOST_SPECS if specs <= MOST_SPECS else 4


def _spec(k: int, sites: Sequence[Site], atoms: Sequence[_Atom]) -> Spec:
    copies = tuple(sorted(c for atom in atoms for c in atom.copies or ()))
    return Spec(sites[k], 1.0, copies if 0 < len(copies) < sites[k].copies else None)


def _atoms(sites: Sequence[Site]) -> list[_Atom]:
    found = []
    for k, site in enumerate(sites):
        # Gates of a recurrent layer, side by side on one axis, may flip one without the other.
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
        # Half of the units, because larger groups may flip all of them together, but no single one.
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
        # Meeting in the middle: 2^7 + 2^7 losses instead of 2^14, since flips are their own inverses.
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
        # Thousands of pairs are compared, and some may agree by chance: each is tried at another point.
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
        return found[:1]  # two of them need not be independent of each other


def _subsets(atoms: Sequence[_Atom]) -> list[tuple[_Atom, ...]]:
    return [chosen for size in range(len(atoms) + 1) for chosen in itertools.combinations(atoms, size)]
