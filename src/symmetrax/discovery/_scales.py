"""Positive scales from gradients: relations between gradient times parameter, summed per unit."""

import dataclasses
from collections.abc import Iterator

from symmetrax.discovery._cost import Cost
from symmetrax.discovery._evidence import Evidence
from symmetrax.discovery._found import Look
from symmetrax.discovery._implied import implied
from symmetrax.discovery._moments import stacked
from symmetrax.discovery._places import scale_shapes, scale_sites
from symmetrax.discovery._question import Answer, Question
from symmetrax.discovery._relations import charges, relations
from symmetrax.discovery._scope import Scope
from symmetrax.discovery._sites import Spec
from symmetrax.discovery._spaces import Space, together, with_per
from symmetrax.groups._diagonal import PositiveDiagonal

#: Gradients beyond the number of arrays, so that a relation of a single scale cannot hold by chance.
SPARE = 12


@dataclasses.dataclass(frozen=True)
class Scales(Question):
    """Whether units are scaled, with any charges: many scales first, a single scale last.

    The gradient along a scale is the sum of charge * gradient * parameter over the sites, so a relation
    between these products is a symmetry, and its coefficients are the charges. Only products are kept, so
    that this works where whole gradients do not fit the memory.

    >>> Scales().cost(Scope((), arrays=3, size=96)).points
    15
    """

    finds = (PositiveDiagonal,)

    def cost(self, scope: Scope) -> Cost:
        return Cost(points=scope.arrays + SPARE)

    def answers(self, evidence: Evidence) -> Iterator[Answer]:
        measured = evidence.measured
        axes = [place for place in evidence.live if place in measured.products]
        for shape in scale_shapes(axes):
            sites = scale_sites(shape, axes)
            rows = measured.rows(shape, len(sites), evidence.rng)
            columns = stacked([measured.terms(site, rows) for site in sites])
            group = with_per(PositiveDiagonal, shape)
            given = (implied(sites, group, spaces) for spaces in (evidence.spaces, evidence.nearly))
            found, nearest = relations(columns, evidence.threshold, *given)
            spaces = []
            for relation in found:
                powers = charges(relation.coefficients)
                specs = together([Spec(sites[k], float(powers[k])) for k in relation.support])
                spaces.append([Space(group, specs, (relation.inside, relation.outside))])
            yield Answer(spaces, Look("scales", shape, len(sites), len(found), nearest))
