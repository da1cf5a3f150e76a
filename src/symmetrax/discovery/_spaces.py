"""Candidates: a group acting on a set of sites, and refinements that split such a space."""

import abc
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from symmetrax.discovery._sites import Shape, Spec
from symmetrax.discovery._spec_text import spec_text
from symmetrax.groups._diagonal import AbstractGroup, Permutation, PositiveDiagonal, SignDiagonal
from symmetrax.groups._matrices import GeneralLinear, Orthogonal, ScaledRotation

#: Letters used in specs for spaces, by group, and for the group's indices.
LETTERS = {GeneralLinear: "g", Orthogonal: "o", ScaledRotation: "z", PositiveDiagonal: "s"}
LETTERS |= {SignDiagonal: "e", Permutation: "p"}
INDICES = "hijkl"


@dataclasses.dataclass(frozen=True)
class Space:
    """A group acting on some specs: nominated, but not yet certified.

    `gap` has the singular values (or relative differences) on both sides of the decision.

    >>> from symmetrax.discovery._sites import Site
    >>> specs = Spec(Site("w", (4, 3), 0, 4, stride=4)), Spec(Site("out", (2, 4), 1, 4, stride=4), -1.0)
    >>> space = Space(GeneralLinear(4), specs, (1e-15, 0.5))
    >>> space.named(7)[1]
    {'w': 'g7 _', 'out': '_ g7*'}
    >>> sorted(space.axes)
    [('out', 1), ('w', 0)]
    """

    group: AbstractGroup
    specs: tuple[Spec, ...]
    gap: tuple[float, float]

    @property
    def shape(self) -> Shape:
        return self.group.lengths, self.group.size

    @property
    def shifted_axes(self) -> frozenset[tuple[str, int, float]]:
        """The axes on which the space acts, with the shifts of their arrays."""
        return frozenset((spec.site.path, spec.site.axis, spec.site.shift) for spec in self.specs)

    @property
    def axes(self) -> frozenset[tuple[str, int]]:
        """The axes on which the space acts."""
        return frozenset((spec.site.path, spec.site.axis) for spec in self.specs)

    @functools.cached_property
    def flips(self) -> frozenset[tuple]:
        """What its signs flip: entries of axes, each with the unit whose sign it has."""
        found: set[tuple] = set()
        for spec in self.specs:
            site = spec.site
            copies = range(site.copies) if spec.copies is None else spec.copies
            for (index, unit, copy), place in np.ndenumerate(site.positions):
                if copy in copies:
                    found ^= {(site.path, site.axis, site.lead, int(place), index * site.size + unit)}
        return frozenset(found)

    def named(self, number: int) -> tuple[dict[str, AbstractGroup], dict[str, str]]:
        """The space under its own name, and its specs in spec notation."""
        name = f"{LETTERS[type(self.group)]}{number}"
        # Indices have numbers of their own: a symmetry that joins several spaces must not mix them up.
        indices = [f"{x}{number}" for x in INDICES[: len(self.group.per)]]
        per = dict(zip(indices, self.group.lengths, strict=True))
        group = dataclasses.replace(self.group, per=tuple(per.items()))
        by_array: dict[str, list[Spec]] = {}
        for spec in self.specs:
            by_array.setdefault(spec.site.path, []).append(spec)
        return {name: group}, {path: spec_text(specs, name, indices) for path, specs in by_array.items()}


class Refinement(abc.ABC):
    """A larger group that a known space may be part of, written in specs that no `Space` can express.

    If it holds, it replaces the space with the same kind of group on the same axes in the report; otherwise
    it is forgotten. It implies nothing, and is not compared with other candidates.

    >>> class Nothing(Refinement):
    ...     group, gap, axes = SignDiagonal(2), (0.0, 1.0), frozenset({("w", 0)})
    ...
    ...     def named(self, number):
    ...         return {f"e{number}": self.group}, {"w": f"e{number} _"}
    >>> Nothing().named(3)[1]
    {'w': 'e3 _'}
    """

    group: AbstractGroup
    gap: tuple[float, float]

    @property
    @abc.abstractmethod
    def axes(self) -> frozenset[tuple[str, int]]:
        """The axes on which it acts."""

    @abc.abstractmethod
    def named(self, number: int) -> tuple[dict[str, AbstractGroup], dict[str, str]]:
        """The refinement under its own name, and its specs in spec notation."""


#: Everything that can be certified.
Candidate = Space | Refinement


def together(specs: Sequence[Spec]) -> tuple[Spec, ...]:
    """Merges the parts of an axis that cover all of it with the same power into one spec.

    >>> from symmetrax.discovery._sites import Site
    >>> halves = [Spec(Site("w", (6, 2), 0, 3, start=start, stride=3)) for start in (0, 3)]
    >>> [spec.site.repeats for spec in together(halves)]
    [2]
    """
    made: list[Spec] = []
    for spec in specs:
        site = spec.site
        count, rest = divmod(site.length, site.size)
        whole = dataclasses.replace(site, start=0, repeats=count)
        parts = [Spec(part, spec.power) for part in whole.parts()] if not rest else []
        if len(parts) > 1 and spec in parts and all(part in specs for part in parts):
            made += [Spec(whole, spec.power)] if spec == parts[0] else []
        else:
            made.append(spec)
    return tuple(made)


def with_per(group: Callable[..., AbstractGroup], shape: Shape, **kwargs: Any) -> AbstractGroup:
    """Creates a group of this shape, with unnamed indices.

    >>> str(with_per(Permutation, ((2,), 5)))
    'Permutation(5, h=2)'
    """
    per, size = shape
    return group(size=size, per={INDICES[k]: length for k, length in enumerate(per)}, **kwargs)
