"""The scope of a search: all that is known before the loss is evaluated."""

import dataclasses
from collections.abc import Sequence

import equinox as eqx
import jax
from jaxtyping import PyTree

from symmetrax._tree import leaf_names
from symmetrax.discovery._double import double_of
from symmetrax.discovery._leaves import is_searched
from symmetrax.discovery._memory import GATHERED
from symmetrax.discovery._places import Place, places
from symmetrax.groups._diagonal import AbstractGroup, Permutation, PositiveDiagonal, SignDiagonal
from symmetrax.groups._matrices import GeneralLinear, Orthogonal, ScaledRotation

#: Matrix groups that mix the entries of an axis.
MATRICES = (GeneralLinear, Orthogonal, ScaledRotation)

#: All groups that the search supports, in the order in which they are reported.
GROUPS = (*MATRICES, PositiveDiagonal, SignDiagonal, Permutation)


@dataclasses.dataclass(frozen=True, eq=False)
class Scope:
    """The axes of all arrays, and the request: which groups, which numbers of heads, how many trials.

    `places` are the axes of the `arrays` arrays, which take `size` bytes in double precision, the largest of
    them `largest`. Gradients that are kept, with their points, may take `share` bytes.

    >>> import jax.numpy as jnp
    >>> scope = Scope.of({"w": jnp.ones((4, 3)), "b": jnp.zeros(4)}, groups=[Permutation])
    >>> [(place.path, place.length) for place in scope.axes]
    [('b', 4), ('w', 4), ('w', 3)]
    >>> scope.wants(Permutation, SignDiagonal), scope.wants(SignDiagonal)
    (True, False)
    """

    places: tuple[Place, ...]
    arrays: int
    size: int
    groups: tuple[type[AbstractGroup], ...] = GROUPS
    heads: tuple[int, ...] | None = None
    trials: int = 3
    largest: int = 0
    share: int = GATHERED

    @classmethod
    def of(
        cls,
        params: PyTree,
        groups: type[AbstractGroup] | Sequence[type[AbstractGroup]] = GROUPS,
        heads: int | Sequence[int] | None = None,
        trials: int = 3,
        share: int = GATHERED,
    ) -> "Scope":
        """Checks a request for these parameters. Raises ValueError if there is nothing to search."""
        searched = eqx.filter(params, is_searched)
        leaves = jax.tree.leaves(searched)
        if not leaves:
            kinds = sorted({str(getattr(x, "dtype", type(x).__name__)) for x in jax.tree.leaves(params)})
            raise ValueError(
                f"Symmetries are looked for in floating-point arrays; `params` has none, only {kinds}."
            )
        # A scalar has no axis that a spec could name, so it is treated as a vector of length one.
        shapes = {name: leaf.shape or (1,) for name, leaf in zip(leaf_names(searched), leaves, strict=True)}
        sizes = [leaf.size * double_of(leaf.dtype).itemsize for leaf in leaves]
        chosen, at = _chosen_groups(groups, trials), places(shapes)
        by_heads = _chosen_heads(heads, at)
        return cls(tuple(at), len(shapes), sum(sizes), chosen, by_heads, trials, max(sizes), share)

    @property
    def axes(self) -> list[Place]:
        """Every axis of every array once, without the array axes that may be its indices."""
        return [place for place in self.places if not place.lead]

    @property
    def capacity(self) -> int:
        """How many gradients fit the memory, each with its point; never fewer than three."""
        return max(3, self.share // (2 * self.size))

    def wants(self, *groups: type[AbstractGroup]) -> bool:
        """Whether any of these groups is searched for."""
        return not set(groups).isdisjoint(self.groups)


def _chosen_groups(groups: type | Sequence[type], trials: int) -> tuple[type[AbstractGroup], ...]:
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


def _chosen_heads(heads: int | Sequence[int] | None, at: Sequence[Place]) -> tuple[int, ...] | None:
    """Returns the numbers of heads to try, or None for all; raises ValueError if one divides no axis."""
    if heads is None:
        return None
    counts = (heads,) if isinstance(heads, int) else tuple(heads)
    for count in counts:
        if count < 1 or all(place.length % count for place in at):
            lengths = sorted({place.length for place in at})
            raise ValueError(f"`heads` has {count}, which divides no axis; their lengths are {lengths}.")
    return counts
