"""Matrix groups from gradients: relations between moments of gradients and parameters.

If a group acts on some axes, the derivative of the loss along it is zero: the moments M = G W^T of gradient
and parameter along those axes sum to zero. All matrix groups here contain rotations, so the antisymmetric
parts of the moments find them, layout by layout; the symmetric parts then identify the group.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from symmetrax.discovery._evidence import Evidence
from symmetrax.discovery._found import Look
from symmetrax.discovery._implied import implied
from symmetrax.discovery._moments import Moments, points_needed, rows
from symmetrax.discovery._places import matrix_shapes, matrix_sites
from symmetrax.discovery._question import Answer, Question
from symmetrax.discovery._relations import NEARLY, Relation, charges, relations
from symmetrax.discovery._scope import MATRICES, Scope
from symmetrax.discovery._sites import Shape, Site, Spec
from symmetrax.discovery._spaces import Space, with_per
from symmetrax.groups._matrices import GeneralLinear, Orthogonal, ScaledRotation


@dataclasses.dataclass(frozen=True)
class MatrixGroups(Question):
    """Whether a matrix group acts on whole axes, which may be merged with indices or copied.

    It reads relations off gradients that are kept in full, as many as its shape with the most sites needs.

    >>> import jax.numpy as jnp
    >>> scope = Scope.of({"w": jnp.ones((4, 3)), "out": jnp.ones((2, 4))})
    >>> MatrixGroups.candidates(scope)[0][0]  # 4 x 4 matrices, without indices
    ((), 4)
    >>> MatrixGroups().kept(scope)
    16
    """

    finds = MATRICES

    @staticmethod
    def candidates(scope: Scope) -> list[tuple[Shape, list[Site]]]:
        """The shapes that fill some axis, large matrices first, each with all the sites that it may have."""
        shapes = matrix_shapes(scope.places, scope.heads)
        found = [(shape, matrix_sites(shape, scope.places)) for shape in shapes]
        return [(shape, sites) for shape, sites in found if sites]

    def kept(self, scope: Scope) -> int:
        needed = (points_needed(shape, len(sites)) for shape, sites in self.candidates(scope))
        return min(scope.capacity, max([3, *needed]))

    def answers(self, evidence: Evidence) -> Iterator[Answer]:
        live = {place.path for place in evidence.live}
        asked = [
            (shape, [site for site in sites if site.path in live])
            for shape, sites in self.candidates(evidence.scope)
        ]
        return matrix_answers(evidence, asked)


def matrix_answers(evidence: Evidence, candidates: Sequence[tuple[Shape, list[Site]]]) -> Iterator[Answer]:
    """Nominates matrix groups of each shape on its sites; list large matrices first.

    >>> import jax, jax.numpy as jnp
    >>> from symmetrax.discovery._loss import Loss
    >>> params, key, rng = {"w": jnp.ones((3, 2))}, jax.random.key(0), np.random.default_rng(0)
    >>> with jax.enable_x64(True):
    ...     loss = Loss(lambda p: jnp.sum((p["w"].T @ p["w"]) ** 3), params, key, None, None, x64=False)
    ...     evidence = Evidence(loss, Scope.of(params), rng, points=9, kept=9)
    >>> (answer,) = matrix_answers(evidence, [(((), 3), [Site("w", (3, 2), 0, 3, stride=3)])])
    >>> [str(space.group) for options in answer.candidates for space in options]
    ['Orthogonal(3)']
    """
    asked = []
    for shape, sites in candidates:
        if sites and rows(shape, len(evidence.measured.points)) < len(sites) + 4:
            # Fewer equations than unknowns have solutions that are not symmetries.
            evidence.leave_out(
                f"matrices {shape} on {len(sites)} entries (they need {points_needed(shape, len(sites))} "
                f"gradients, kept are {len(evidence.measured.points)})",
                *MATRICES,
            )
        elif sites:
            asked.append((shape, sites))
    for shape, sites in asked:
        yield _answer(evidence, shape, sites)


def _answer(evidence: Evidence, shape: Shape, sites: Sequence[Site]) -> Answer:
    groups, tolerance = evidence.scope.groups, evidence.threshold
    moments = Moments(evidence.products, shape, sites, evidence.rng)
    columns = moments.antisymmetric()
    probe = with_per(ScaledRotation, shape, unit=True) if shape[1] == 2 else with_per(Orthogonal, shape)
    given = implied(sites, probe, evidence.spaces)
    found, nearest = relations(columns, tolerance, given, implied(sites, probe, evidence.nearly))
    spaces = [
        options
        for relation in found
        if relation.uniform and (options := _options(moments, relation, shape, groups, tolerance))
    ]
    if shape[1] == 2:
        # Pairs that are known to rotate, as parts of a larger axis, may have a larger group here.
        turning = [Relation(relation, 0.0, nearest) for relation in given if np.all(relation >= 0)]
        options = (_options(moments, relation, shape, groups, tolerance) for relation in turning)
        spaces += [found[:1] for found in options if found and isinstance(found[0].group, GeneralLinear)]
    return Answer(spaces, Look("matrices", shape, len(sites), len(spaces), nearest))


def _options(
    moments: Moments, relation: Relation, shape: Shape, groups: Sequence[type], tolerance: float
) -> list[Space]:
    """The groups whose rotations these may be, large ones first; the symmetric moments decide."""
    specs = relation.support
    limit = tolerance if relation.inside <= tolerance else NEARLY
    # Coefficients of a relation between symmetric moments are charges: 1 for g, -1 for its dual g*.
    tests = [(GeneralLinear, moments.symmetric)]
    tests += [(ScaledRotation, moments.trace)] if shape[1] == 2 else []
    found = []
    for group, columns in tests:
        stretched = relations(columns(specs), limit)[0]
        signs = [charges(other.coefficients) for other in stretched if len(other.support) == len(specs)]
        signs = [sign for sign in signs if np.all(np.abs(sign) == 1)]
        if signs and group in groups:
            made = [Spec(moments.sites[k], power) for k, power in zip(specs, signs[0], strict=True)]
            gap = (max(relation.inside, stretched[0].inside), min(relation.outside, stretched[0].outside))
            found.append(Space(with_per(group, shape), tuple(made), gap))
    plain = tuple(Spec(moments.sites[k]) for k in specs)
    gap = (relation.inside, relation.outside)
    if Orthogonal in groups:
        found.append(Space(with_per(Orthogonal, shape), plain, gap))
    if shape[1] == 2 and ScaledRotation in groups:
        found.append(Space(with_per(ScaledRotation, shape, unit=True), plain, gap))
    return found
