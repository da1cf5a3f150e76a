"""Scales of vectors plus a constant, such as gains that enter a network as 1 + w."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from symmetrax.discovery._cost import Cost
from symmetrax.discovery._evidence import Evidence
from symmetrax.discovery._found import Look
from symmetrax.discovery._implied import implied
from symmetrax.discovery._moments import stacked
from symmetrax.discovery._places import scale_shapes, scale_sites
from symmetrax.discovery._points import place_of
from symmetrax.discovery._question import Answer, Question
from symmetrax.discovery._relations import Relation, charges, relations
from symmetrax.discovery._scales import Scales
from symmetrax.discovery._scope import Scope
from symmetrax.discovery._sites import Shape, Site, Spec
from symmetrax.discovery._spaces import Space, with_per
from symmetrax.groups._diagonal import Permutation, PositiveDiagonal, SignDiagonal


@dataclasses.dataclass(frozen=True)
class OffsetScales(Question):
    """Whether vectors scale after a constant has been added to them.

    If w + c scales, then gradient times w and c times the gradient form a single term of a relation: with the
    gradients as separate columns, the coefficients determine c. The search covers vectors without scales so
    far, so ask it after plain scales. It accepts a constant c that is a multiple of 1/2: a smaller constant
    is an error of scales that hold approximately.

    >>> OffsetScales().cost(Scope((), arrays=3, size=96)).points
    15
    """

    finds = (PositiveDiagonal,)

    def cost(self, scope: Scope) -> Cost:
        return Scales().cost(scope)  # both read the same gradients

    def answers(self, evidence: Evidence) -> Iterator[Answer]:
        axes = [place for place in evidence.live if place in evidence.measured.products]
        for shape in scale_shapes(axes):
            sites = scale_sites(shape, axes)
            lone = _lone(evidence, sites)
            rows = evidence.measured.rows(shape, len(sites) + len(lone), evidence.rng)
            if not lone or len(rows[0]) < len(sites) + len(lone) + 4:
                continue
            yield _answer(evidence, shape, sites, lone, rows)


def _lone(evidence: Evidence, sites: Sequence[Site]) -> list[int]:
    """The sites of vectors on which no space with scales was found."""
    taken = {
        spec.site.path
        for space in evidence.spaces
        if not isinstance(space.group, Permutation | SignDiagonal)
        for spec in space.specs
    }
    return [
        k
        for k, site in enumerate(sites)
        if site.path not in taken
        and site.copies == 1
        and site.whole
        and place_of(site) in evidence.measured.slopes
    ]


def _answer(
    evidence: Evidence,
    shape: Shape,
    sites: Sequence[Site],
    lone: Sequence[int],
    rows: tuple[np.ndarray, np.ndarray],
) -> Answer:
    measured, tolerance = evidence.measured, evidence.threshold
    slopes = [measured.slope(sites[k], rows) for k in lone]
    known = implied(sites, with_per(PositiveDiagonal, shape), evidence.spaces)
    given = [np.append(relation, np.zeros(len(lone))) for relation in known]
    # Translations, for instance of two biases that are added, are relations between gradients alone. They are
    # no scales, and would mix with every relation if they were left in the null space.
    given += [
        np.append(np.zeros(len(sites)), relation.coefficients)
        for relation in relations(stacked(slopes), tolerance)[0]
    ]
    columns = stacked([*(measured.terms(site, rows) for site in sites), *slopes])
    found, nearest = relations(columns, tolerance, given)
    spaces = [
        [space]
        for relation in found
        if relation.inside <= tolerance and (space := _shifted(relation, sites, lone, shape))
    ]
    return Answer(spaces, Look("scales of vectors plus constants", shape, len(sites), len(spaces), nearest))


def _shifted(relation: Relation, sites: Sequence[Site], lone: Sequence[int], shape: Shape) -> Space | None:
    """Converts a relation between products and gradients to scales, if it has constants."""
    products, slopes = np.split(relation.coefficients, [len(sites)])
    constants = {k: slope for k, slope in zip(lone, slopes, strict=True) if slope}
    if not constants or any(products[k] == 0 for k in constants):
        return None
    powers, specs = charges(products), []
    for k, site in enumerate(sites):
        if products[k]:
            exact = float(constants.get(k, 0.0) / products[k])
            shift = round(2 * exact) / 2
            if abs(shift - exact) > 1e-5 or (k in constants and not shift):
                return None  # scales that hold approximately, not a constant in the model
            specs.append(Spec(dataclasses.replace(site, shift=shift), float(powers[k])))
    return Space(with_per(PositiveDiagonal, shape), tuple(specs), (relation.inside, relation.outside))
