"""Rotations that fix the mean of an axis, as in residual streams that LayerNorm reads."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from symmetrax.discovery._evidence import Evidence
from symmetrax.discovery._found import Look
from symmetrax.discovery._implied import implied
from symmetrax.discovery._moments import stacked
from symmetrax.discovery._points import Point
from symmetrax.discovery._question import Answer, Question
from symmetrax.discovery._relations import Columns, relations
from symmetrax.discovery._scope import Scope
from symmetrax.discovery._sites import Shape, Site, Spec
from symmetrax.discovery._spaces import Space, with_per
from symmetrax.groups._matrices import Orthogonal

#: Maximum number of zero-mean directions that are compared.
DIRECTIONS = 24


@dataclasses.dataclass(frozen=True)
class CentredRotations(Question):
    """Whether rotations that fix the mean of an axis are symmetries where not all rotations are.

    It reads the gradients that are kept for matrix groups, and needs none of its own; ask it after these.

    >>> import jax.numpy as jnp
    >>> CentredRotations().kept(Scope.of({"w": jnp.ones((4, 3))}))
    3
    """

    finds = (Orthogonal,)

    def kept(self, scope: Scope) -> int:
        return min(scope.capacity, 3)

    def answers(self, evidence: Evidence) -> Iterator[Answer]:
        axes = [place for place in evidence.live if not place.lead]
        # Of two entries, only an exchange keeps the mean, which permutations find.
        for size in sorted({place.length for place in axes if place.length > 2}, reverse=True):
            shape: Shape = ((), size)
            sites = [place.site(size) for place in axes if place.length == size]
            columns = _moments(evidence.measured.points, sites, size)
            if len(columns.values) < len(sites) + 4:
                continue  # small axes have too few pairs of directions to decide
            probe = with_per(Orthogonal, shape)
            given = (implied(sites, probe, spaces) for spaces in (evidence.spaces, evidence.nearly))
            found, nearest = relations(columns, evidence.threshold, *given)
            spaces = [
                [
                    Space(
                        Orthogonal(size, fix="mean"),
                        tuple(Spec(sites[k]) for k in relation.support),
                        (relation.inside, relation.outside),
                    )
                ]
                for relation in found
                if relation.uniform
            ]
            yield Answer(
                spaces, Look("rotations that keep the mean", shape, len(sites), len(spaces), nearest)
            )


def _moments(points: Sequence[Point], sites: Sequence[Site], size: int) -> Columns:
    """Antisymmetric moments between directions of mean zero, one column for every site."""
    frame = _frame(size, min(DIRECTIONS, size - 1))
    parts = []
    for site in sites:
        values, squares = [], []
        for point in points:
            g, w = (
                frame.T @ np.moveaxis(x[site.path].reshape(site.shape), site.axis, 0).reshape(size, -1)
                for x in (point.gradient, point.leaves)
            )
            moment, square = np.real(g @ w.T), np.abs(g) ** 2 @ np.abs(w.T) ** 2
            above = np.triu_indices(len(moment), 1)
            values.append((moment - moment.T)[above])
            squares.append((square + square.T)[above].sum())
        parts.append((np.concatenate(values), np.sqrt(np.sum(squares))))
    return stacked(parts)


def _frame(size: int, count: int) -> np.ndarray:
    """Orthonormal vectors whose entries sum to zero."""
    # A fixed seed: any such vectors will do, and the search's own random stream is left alone.
    rng = np.random.default_rng(size)
    drawn = rng.normal(size=(size, count))
    return np.linalg.qr(drawn - drawn.mean(axis=0))[0]
