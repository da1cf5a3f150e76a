"""The plan of a search, made before any evaluation: its questions and their cost."""

import dataclasses
from collections.abc import Sequence

import equinox as eqx
import jax
from jaxtyping import PyTree

from symmetrax._tree import leaf_names
from symmetrax.discovery._discrete import permutation_cost, sign_cost
from symmetrax.discovery._double import double_of
from symmetrax.discovery._found import Cost
from symmetrax.discovery._moments import points_needed
from symmetrax.discovery._places import Place, matrix_shapes, matrix_sites, places
from symmetrax.discovery._points import is_searched
from symmetrax.discovery._sites import Shape, Site
from symmetrax.groups._diagonal import AbstractGroup, Permutation, PositiveDiagonal, SignDiagonal
from symmetrax.groups._matrices import GeneralLinear, Orthogonal, ScaledRotation

#: Matrix groups that mix the entries of an axis.
MATRICES = (GeneralLinear, Orthogonal, ScaledRotation)

#: All groups that the search supports, in the order in which they are reported.
GROUPS = (*MATRICES, PositiveDiagonal, SignDiagonal, Permutation)

#: Maximum number of gradients kept for segments of fused axes, and the memory limit in bytes for them and
#: their points.
MOST_POINTS, MEMORY = 512, 1 << 29

#: How many numbers of blocks (heads, normalization groups) are tried for permutations.
MOST_BLOCKS = 4


def discovery_cost(
    params: PyTree,
    *,
    groups: Sequence[type[AbstractGroup]] = GROUPS,
    heads: int | Sequence[int] | None = None,
    trials: int = 3,
) -> Cost:
    """Predicts the cost of `find_symmetries` with these arguments, in evaluations of the loss.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> params = {"w": jnp.ones((4, 3)), "b": jnp.zeros(4), "out": jnp.ones((2, 4))}
    >>> print(discovery_cost(params, groups=[sx.groups.PositiveDiagonal]))
    3 checks, 15 gradients at generic points; at most 4 for arrays without a gradient, 0 more
    for fused axes, 0 for permutations, 0 for signs, 36 for certificates
    """
    return Plan.of(params, groups, heads, trials).cost


def chosen_groups(groups: type | Sequence[type], trials: int) -> tuple[type[AbstractGroup], ...]:
    """Returns the groups to search for. Raises ValueError for unsupported groups, none, or no trials."""
    chosen = (groups,) if isinstance(groups, type) else tuple(groups)
    for group in chosen:
        if group not in GROUPS:
            known = ", ".join(known.__name__ for known in GROUPS)
            raise ValueError(f"`groups` has {getattr(group, '__name__', group)!r}; can be found: {known}.")
    if not chosen or trials < 1:
        raise ValueError(
            f"Needs at least one group and one trial, got {len(chosen)} groups and trials={trials}."
        )
    return chosen


def chosen_heads(heads: int | Sequence[int] | None, at: Sequence[Place]) -> tuple[int, ...] | None:
    """Returns the numbers of heads to try, or None for all; raises ValueError if one divides no axis."""
    if heads is None:
        return None
    counts = (heads,) if isinstance(heads, int) else tuple(heads)
    for count in counts:
        if count < 1 or all(place.length % count for place in at):
            lengths = sorted({place.length for place in at})
            raise ValueError(f"`heads` has {count}, which divides no axis; their lengths are {lengths}.")
    return counts


@dataclasses.dataclass(frozen=True)
class Plan:
    """The questions that can be determined before any evaluation, and their cost."""

    at: tuple[Place, ...]
    matrices: tuple[tuple[Shape, list[Site]], ...]
    groups: tuple[type, ...]
    heads: tuple[int, ...] | None
    trials: int
    whole: int
    candidates: int
    cost: Cost

    @classmethod
    def of(
        cls, params: PyTree, groups: Sequence[type], heads: int | Sequence[int] | None, trials: int
    ) -> "Plan":
        searched = eqx.filter(params, is_searched)
        leaves = jax.tree.leaves(searched)
        if not leaves:
            kinds = sorted({str(getattr(x, "dtype", type(x).__name__)) for x in jax.tree.leaves(params)})
            raise ValueError(
                f"Symmetries are looked for in floating-point arrays; `params` has none, only {kinds}."
            )
        shapes = {name: leaf.shape or (1,) for name, leaf in zip(leaf_names(searched), leaves, strict=True)}
        size = sum(leaf.size * double_of(leaf.dtype).itemsize for leaf in leaves)
        groups, at = chosen_groups(groups, trials), places(shapes)
        counts = chosen_heads(heads, at)
        lie = bool(set(groups) & set(MATRICES))
        matrices = [(s, matrix_sites(s, at)) for s in matrix_shapes(at, counts)] if lie else []
        matrices = [(shape, sites) for shape, sites in matrices if sites]
        room = max(3, MEMORY // (2 * size))
        needed = (points_needed(shape, len(sites)) for shape, sites in matrices)
        whole = min(room, max([3, *needed])) if lie else 0
        axes = [place for place in at if not place.lead]
        candidates = 2 * len(groups) * len(axes)
        cost = Cost(
            points=max(whole, len(shapes) + 12 if PositiveDiagonal in groups else 1),
            segments=max(0, min(MOST_POINTS, room) - whole) if lie else 0,
            permutations=permutation_cost(at, MOST_BLOCKS) if Permutation in groups else 0,
            signs=sign_cost(len(axes)) if SignDiagonal in groups else 0,
            certificates=trials * (2 + candidates),
            idle=1 + len(shapes),
        )
        return cls(tuple(at), tuple(matrices), groups, counts, trials, whole, candidates, cost)

    def afford(self, budget: int | None) -> None:
        """Raises ValueError if the budget does not cover the gradients that the whole search depends on."""
        least = self.cost.checks + self.cost.points + 1 + 2 * self.trials
        if budget is not None and budget < least:
            raise ValueError(
                f"A budget of {budget} evaluations is too small: these groups on these arrays need "
                f"{self.cost.points} gradients at generic points and {2 * self.trials} evaluations to "
                f"certify the first of what is found, {least} in all. In full: {self.cost}. Fewer `groups` "
                "or `heads` cost less."
            )
