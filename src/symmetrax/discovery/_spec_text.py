"""Spec notation for sites: the text of an axis spec, which the parser of `symmetry` reads back."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from symmetrax.discovery._sites import Spec
from symmetrax.symmetry._specs import written


def spec_text(specs: Sequence[Spec], name: str, indices: Sequence[str]) -> str:
    """The axis spec of some sites on one array. Raises ValueError if no spec can express it.

    >>> from symmetrax.discovery._sites import Site
    >>> heads = Site("w", (12, 5), axis=0, size=3, first=4, stride=3)
    >>> rows = Spec(heads), Spec(Site("w", (12, 5), axis=1, size=3, start=2, stride=3), -1.0)
    >>> spec_text(rows[:1], "g", ["h"]), spec_text(rows[1:], "g", [])
    ('(h g) _', '_ 2+g*')
    """
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
    # The length of one segment at most can be inferred, so that those of several are written.
    several = (
        len({(spec.site.start, spec.site.first * spec.site.repeats * spec.site.stride) for spec in specs}) > 1
    )
    parts = [_parts(spec, name, indices, sized=several) for spec in specs]
    starts = {(part.start, part.end) for part in parts}
    # Sites on one segment share its bracket; sites on different segments are added up.
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


def _parts(spec: Spec, name: str, indices: Sequence[str], *, sized: bool) -> _Part:
    """The pieces of an entry: its segment, the factors in front of a block, and those inside a block."""
    site = spec.site
    entry = _entry(name, spec.power)
    names = iter(indices[len(site.lead) :])
    front = [next(names)] if site.first > 1 else []
    inner = [*([next(names)] if site.second > 1 else []), entry]
    inner += [next(names)] if site.third > 1 else []
    length = site.second * site.size * site.third * site.tail
    # A second blank in one bracket would be ambiguous, so that its length is written.
    both = site.repeats > 1 and site.tail > 1
    inner += [str(site.tail) if both or sized else "_"] if site.tail > 1 else []
    if spec.copies is not None:  # only some of the copies, each as a separate segment
        segments = [(r * site.stride, r * site.stride + length, _bracket(inner)) for r in spec.copies]
        stride = site.stride * site.repeats
        return _Part(site.start, site.start + stride, (), (0, stride, _sum(segments, stride)), stride)
    front += [str(site.repeats) if sized else "_"] if site.repeats > 1 else []
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


def _entry(name: str, power: float) -> str:
    if power == 1:
        return name
    return f"{name}*" if power == -1 else f"{name}^{np.format_float_positional(power, trim='-')}"
