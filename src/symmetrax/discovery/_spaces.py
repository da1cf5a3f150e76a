"""Candidate spaces: a group acting on a set of sites, their implications, and their symmetries."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from symmetrax.discovery._sites import Shape, Site, carried
from symmetrax.groups._diagonal import AbstractGroup, Permutation, PositiveDiagonal, SignDiagonal
from symmetrax.groups._matrices import GeneralLinear, Orthogonal, ScaledRotation
from symmetrax.symmetry._specs import written

#: Letters used in specs for spaces, by group, and for the group's indices.
LETTERS = {GeneralLinear: "g", Orthogonal: "o", ScaledRotation: "z", PositiveDiagonal: "s"}
LETTERS |= {SignDiagonal: "e", Permutation: "p"}
INDICES = "hijkl"


@dataclasses.dataclass(frozen=True)
class Spec:
    """A site on which a space acts, with a power: 1 for g, -1 for its dual, 2 for its square."""

    site: Site
    power: float = 1.0
    copies: tuple[int, ...] | None = None  # which copies along the axis are touched; None for all


@dataclasses.dataclass(frozen=True)
class Space:
    """A group acting on some specs: found, but not yet certified.

    `gap` has the singular values (or relative differences) on both sides of the decision.
    """

    group: AbstractGroup
    specs: tuple[Spec, ...]
    gap: tuple[float, float]

    @property
    def shape(self) -> Shape:
        return self.group.lengths, self.group.size

    @property
    def touched(self) -> frozenset[tuple[str, int, float]]:
        """The axes that the space touches, with the shifts of the arrays it acts on."""
        return frozenset((spec.site.path, spec.site.axis, spec.site.shift) for spec in self.specs)

    @property
    def axes(self) -> frozenset[tuple[str, int]]:
        """The axes that the space touches."""
        return frozenset((spec.site.path, spec.site.axis) for spec in self.specs)

    def named(self, number: int) -> tuple[dict[str, AbstractGroup], dict[str, str]]:
        """The space under its own name, and its specs in spec notation."""
        name = f"{LETTERS[type(self.group)]}{number}"
        indices = [f"{x}{number}" for x in INDICES[: len(self.group.per)]]
        per = dict(zip(indices, self.group.lengths, strict=True))
        group = dataclasses.replace(self.group, per=tuple(per.items()))
        by_array: dict[str, list[Spec]] = {}
        for spec in self.specs:
            by_array.setdefault(spec.site.path, []).append(spec)
        return {name: group}, {path: spec_text(specs, name, indices) for path, specs in by_array.items()}


def together(specs: Sequence[Spec]) -> tuple[Spec, ...]:
    """Merges the parts of an axis that cover all of it with the same power into one spec."""
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
    """Creates a group of this shape, with unnamed indices."""
    per, size = shape
    return group(size=size, per={INDICES[k]: length for k, length in enumerate(per)}, **kwargs)


def spec_text(specs: Sequence[Spec], name: str, indices: Sequence[str]) -> str:
    """The axis spec of some sites on one array. Raises ValueError if no spec can express it."""
    entries = ["_"] * len(specs[0].site.shape)
    for axis in sorted({spec.site.axis for spec in specs}):
        here = sorted(
            (spec for spec in specs if spec.site.axis == axis), key=lambda spec: spec.site.positions.min()
        )
        for spec in here:
            for (lead, length), index in zip(spec.site.lead, indices, strict=False):
                entries[lead] = index if length == spec.site.shape[lead] else f"({index} _)"
        entries[axis] = _axis_text(here, name, indices)
    shifts = {spec.site.shift for spec in specs}
    if len(shifts) > 1:
        raise ValueError("an array has several offsets")
    return written(entries, *shifts)


def _axis_text(specs: Sequence[Spec], name: str, indices: Sequence[str]) -> str:
    parts = [_parts(spec, name, indices) for spec in specs]
    starts = {(part.start, part.end) for part in parts}
    if len(starts) == 1:
        inside = _sum([part.inside for part in parts], parts[0].stride)
        bodies = [(*next(iter(starts)), _bracket([*parts[0].front, inside]))]
    else:
        bodies = [
            (part.start, part.end, _bracket([*part.front, _sum([part.inside], part.stride)]))
            for part in parts
        ]
    return _sum(bodies, specs[0].site.length)


@dataclasses.dataclass(frozen=True)
class _Part:
    start: int
    end: int
    front: tuple[str, ...]
    inside: tuple[int, int, str]
    stride: int


def _parts(spec: Spec, name: str, indices: Sequence[str]) -> _Part:
    """The pieces of a word: its segment, the factors in front of a block, and those inside a block."""
    site = spec.site
    entry = _word(name, spec.power)
    names = iter(indices[len(site.lead) :])
    front = [next(names)] if site.first > 1 else []
    inner = [*([next(names)] if site.second > 1 else []), entry]
    inner += [next(names)] if site.third > 1 else []
    length = site.second * site.size * site.third * site.tail
    both = site.repeats > 1 and site.tail > 1
    inner += [str(site.tail) if both else "_"] if site.tail > 1 else []
    if spec.copies is not None:  # only some of the copies, each as a separate segment
        segments = [(r * site.stride, r * site.stride + length, _bracket(inner)) for r in spec.copies]
        stride = site.stride * site.repeats
        return _Part(site.start, site.start + stride, (), (0, stride, _sum(segments, stride)), stride)
    front += ["_"] if site.repeats > 1 else []
    end = site.start + site.first * site.repeats * site.stride
    body = _bracket(inner) if length < site.stride else " ".join(inner)
    return _Part(site.start, end, tuple(front), (site.offset, site.offset + length, body), site.stride)


def _sum(segments: Sequence[tuple[int, int, str]], length: int) -> str:
    """Formats segments of an axis, with plain entries between them."""
    terms, position = [], 0
    for start, end, text in segments:
        if start < position:
            raise ValueError("segments overlap")
        terms += [str(start - position)] if start > position else []
        terms.append(_bracket([text]) if (start, end) != (0, length) else text)
        position = end
    terms += [str(length - position)] if position < length else []
    return "+".join(terms)


def _bracket(parts: Sequence[str]) -> str:
    """Joins factors into one node, bracketed unless there is a single factor without blanks."""
    text = " ".join(parts)
    return f"({text})" if " " in text and not (len(parts) == 1 and _closed(text)) else text


def _closed(text: str) -> bool:
    """Whether all blanks are inside brackets."""
    depth = 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if character == " " and not depth:
            return False
    return True


def _word(name: str, power: float) -> str:
    if power == 1:
        return name
    return f"{name}*" if power == -1 else f"{name}^{np.format_float_positional(power, trim='-')}"


def contains(big: AbstractGroup, small: AbstractGroup) -> bool:
    """Whether groups of the first kind may have subgroups of the second."""
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
            return isinstance(small, ScaledRotation | PositiveDiagonal)
        case _:
            return type(big) is type(small)


def implied(sites: Sequence[Site], group: AbstractGroup, known: Sequence[Space]) -> list[np.ndarray]:
    """Relations between the columns of `sites` that follow from known spaces.

    `group` is the group being searched for on the sites. A known space implies it if every spec of the known
    space has a site that takes its coordinates in the same way. Spaces with the same specs are also
    considered together.
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
                if np.any(relation):
                    found.append(relation)
    return found


def follows(space: Space, known: Sequence[Space]) -> bool:
    """Whether a space is part of a known space, or of several that share its specs among them."""
    if any(spec.copies is not None for spec in space.specs):
        return False
    able = [
        other
        for other in known
        if contains(other.group, space.group)
        and other.axes <= space.axes
        and all(spec.copies is None for spec in other.specs)
    ]
    alike: dict[frozenset, list[Space]] = {}
    for other in able:
        alike.setdefault(other.axes, []).append(other)
    return any(_covers(spaces, space) for spaces in [*([other] for other in able), *alike.values(), able])


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
                ratio = 1.0 if small.group.compact else power / spec.power
                ways.setdefault(number, set()).add((function.tobytes(), ratio))
    return all(len(found) == 1 for found in ways.values())


def _powers(big: Site, smalls: Sequence[Spec]) -> set[float]:
    """The powers of the small specs that touch the same positions as a site."""
    places = set(big.positions.ravel().tolist())
    return {spec.power for spec in smalls if not places.isdisjoint(spec.site.positions.ravel().tolist())}


def _functions(
    bigs: Sequence[tuple[Site, AbstractGroup]], smalls: Sequence[Site], small: AbstractGroup
) -> list[np.ndarray] | None:
    """How a small space's coordinates on one axis follow from those of some other spaces, or None."""
    shifts = {site.shift for site in (*smalls, *(site for site, _ in bigs))}
    if len(shifts) > 1 and not isinstance(small, Permutation):  # permutations preserve constants
        return None
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
    able = [space for space in known if contains(space.group, group)]
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
