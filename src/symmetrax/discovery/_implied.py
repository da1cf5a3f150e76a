"""Implications: which spaces follow from known ones, and which relations between columns these explain."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from symmetrax.discovery._sites import Site, Spec, carried
from symmetrax.discovery._spaces import Space
from symmetrax.groups._diagonal import AbstractGroup, Permutation, PositiveDiagonal, SignDiagonal
from symmetrax.groups._matrices import GeneralLinear, Orthogonal, ScaledRotation


def _contains(big: AbstractGroup, small: AbstractGroup) -> bool:
    """Whether groups of the first kind may have subgroups of the second."""
    # Which subgroups there are on given sites is decided by their coordinates, in `_functions`.
    match big:
        case GeneralLinear():
            return True
        case Orthogonal(fix="mean"):
            return isinstance(small, Permutation) or small == big
        case Orthogonal():
            return isinstance(small, Orthogonal | Permutation | SignDiagonal) or (
                isinstance(small, ScaledRotation) and small.unit
            )
        case ScaledRotation():
            # Half a turn of a pair flips both of its signs.
            return isinstance(small, ScaledRotation | PositiveDiagonal | SignDiagonal)
        case _:
            return type(big) is type(small)


def implied(sites: Sequence[Site], group: AbstractGroup, known: Sequence[Space]) -> list[np.ndarray]:
    """Relations between the columns of `sites` that follow from known spaces.

    `group` is the group being searched for on the sites. A known space implies it if every spec of the known
    space has a site that takes its coordinates in the same way. Spaces with the same specs are also
    considered together.

    >>> sites = [Site("w", (4, 3), 0, 4, stride=4), Site("out", (2, 4), 1, 4, stride=4)]
    >>> known = Space(GeneralLinear(4), (Spec(sites[0]), Spec(sites[1], -1.0)), (0.0, 1.0))
    >>> implied(sites, PositiveDiagonal(4), [known])  # one to the power 1, the other to the power -1
    [array([ 1., -1.])]
    """
    by_path: dict[str, list[int]] = {}
    for k, site in enumerate(sites):
        by_path.setdefault(site.path, []).append(k)
    found = []
    for specs in _bundles(known, group):
        ways: list[dict[bytes, int]] = []
        for spec in specs:
            options: dict[bytes, int] = {}
            for k in by_path.get(spec.path, ()):
                way = spec.way(sites[k], group)
                # Of several sites that take the coordinates in the same way, the first stands for all.
                if way is not None:
                    options.setdefault(way, k)
            ways.append(options)
            if not options:
                break
        for way in ways[0]:
            if all(way in options for options in ways):
                relation = np.zeros(len(sites))
                for spec, options in zip(specs, ways, strict=True):
                    relation[options[way]] += spec.power if isinstance(group, PositiveDiagonal) else 1.0
                # Powers may cancel, as those of both axes of an array do on its single scale.
                if np.any(relation):
                    found.append(relation)
    return found


def follows(space: Space, known: Sequence[Space]) -> bool:
    """Whether a space is part of a known space, or of several that share its specs among them.

    >>> specs = Spec(Site("w", (4, 3), 0, 4, stride=4)), Spec(Site("out", (2, 4), 1, 4, stride=4))
    >>> rotations, units = (Space(group(4), specs, (0.0, 1.0)) for group in (Orthogonal, Permutation))
    >>> follows(units, [rotations]), follows(rotations, [units])
    (True, False)
    """
    if isinstance(space.group, SignDiagonal):
        signs = [other for other in known if isinstance(other.group, SignDiagonal)]
        if _spanned(space.flips, [other.flips for other in signs]):
            return True
    # Signs on some copies of an axis are finer than the coordinates of any other space.
    if any(spec.copies is not None for spec in space.specs):
        return False
    able = [
        other
        for other in known
        if _contains(other.group, space.group)
        and other.axes <= space.axes
        and all(spec.copies is None for spec in other.specs)
    ]
    alike: dict[Any, list[Space]] = {}
    for other in able:
        alike.setdefault(other.axes, []).append(other)
        alike.setdefault(type(other.group), []).append(other)
    # Each alone, then those on the same axes or of one kind together, then all of them.
    return any(_covers(spaces, space) for spaces in [*([other] for other in able), *alike.values(), able])


def _spanned(target: frozenset[tuple], known: Sequence[frozenset[tuple]]) -> bool:
    """Whether flips are those of some known spaces together."""
    basis: list[tuple[tuple, frozenset[tuple]]] = []

    def reduced(flips: frozenset[tuple]) -> frozenset[tuple]:
        for pivot, row in basis:
            flips = flips ^ row if pivot in flips else flips
        return flips

    for flips in known:
        if rest := reduced(flips):
            basis.append((min(rest), rest))
    return not reduced(target)


def _covers(bigs: Sequence[Space], small: Space) -> bool:
    """Whether some elements of the spaces, taken together, act like those of the small space.

    On every axis the small coordinates must follow from the large ones, with a power, and for every large
    space in the same way on all of its specs.
    """
    ways: dict[int, set[tuple[bytes, float]]] = {}
    for axis in small.axes:
        smalls = [spec for spec in small.specs if (spec.site.path, spec.site.axis) == axis]
        here = [
            (number, spec)
            for number, big in enumerate(bigs)
            for spec in big.specs
            if (spec.site.path, spec.site.axis) == axis
        ]
        sites = [(spec.site, bigs[number].group) for number, spec in here]
        functions = _functions(sites, [spec.site for spec in smalls], small.group)
        if functions is None:
            return False
        for (number, spec), function in zip(here, functions, strict=True):
            for power in _powers(spec.site, smalls):
                # Compact groups are their own duals, so that powers do not matter.
                ratio = 1.0 if small.group.compact else power / spec.power
                ways.setdefault(number, set()).add((function.tobytes(), ratio))
    return all(len(found) == 1 for found in ways.values())


def _powers(big: Site, smalls: Sequence[Spec]) -> set[float]:
    """The powers of the small specs that act on some position of a site."""
    places = set(big.positions.ravel().tolist())
    return {spec.power for spec in smalls if not places.isdisjoint(spec.site.positions.ravel().tolist())}


def _functions(
    bigs: Sequence[tuple[Site, AbstractGroup]], smalls: Sequence[Site], small: AbstractGroup
) -> list[np.ndarray] | None:
    """How a small space's coordinates on one axis follow from those of some other spaces, or None."""
    shifts = {site.shift for site in (*smalls, *(site for site, _ in bigs))}
    if len(shifts) > 1 and not isinstance(small, Permutation):  # permutations preserve constants
        return None
    # A diagonal element may act within several matrices of a larger group, a matrix only within one.
    matrices = not isinstance(small, PositiveDiagonal | SignDiagonal)
    way = carried([site for site, _ in bigs], smalls, matrices=matrices) if bigs else None
    if way is None:
        return None
    ends = np.cumsum([site.indices * site.size for site, _ in bigs])
    functions = np.split(way, ends[:-1])
    pairs = [
        function.reshape(-1, 2)
        for (_, group), function in zip(bigs, functions, strict=True)
        if isinstance(group, ScaledRotation)
    ]
    return functions if all(_keeps_pairs(each, matrices) for each in pairs) else None


def _keeps_pairs(pairs: np.ndarray, matrices: bool) -> bool:
    """Whether an action on pairs may come from scaled rotations: it rotates them, or acts equally on both."""
    if matrices:
        return bool(np.all((pairs < 0) | (pairs % 2 == [0, 1])))
    return bool(np.all(pairs[:, 0] == pairs[:, 1]))


@dataclasses.dataclass(frozen=True)
class _Joint:
    """One axis of an array with the sites that several spaces have there, and their groups."""

    path: str
    power: float
    sites: tuple[tuple[Site, AbstractGroup], ...]

    def way(self, small: Site, group: AbstractGroup) -> bytes | None:
        """How a smaller space on a site follows from these spaces, in a form that can be compared."""
        functions = _functions(self.sites, [small], group)
        return None if functions is None else np.concatenate(functions).tobytes()


def _bundles(known: Sequence[Space], group: AbstractGroup) -> list[list[_Joint]]:
    """Spaces that may contain the group, individually, and together if they have the same specs."""
    able = [space for space in known if _contains(space.group, group)]
    alike: dict[tuple, list[Space]] = {}
    for space in able:
        specs = sorted((spec.site.path, spec.site.axis, spec.power) for spec in space.specs)
        alike.setdefault(tuple(specs), []).append(space)
    together = [[space] for space in able] + [spaces for spaces in alike.values() if len(spaces) > 1]
    return [_joined(spaces) for spaces in together]


def _joined(spaces: Sequence[Space]) -> list[_Joint]:
    places: dict[tuple[str, int], list[tuple[Spec, AbstractGroup]]] = {}
    for space in spaces:
        for spec in space.specs:
            places.setdefault((spec.site.path, spec.site.axis), []).append((spec, space.group))
    return [
        _Joint(path, found[0][0].power, tuple((spec.site, group) for spec, group in found))
        for (path, _), found in places.items()
    ]
