"""Cutting axes where several arrays, or the parts of one, must be cut alike."""

import dataclasses
import itertools
import math
from collections.abc import Sequence

from symmetrax.discovery._trace._nodes import DATA
from symmetrax.discovery._trace._values import (
    Axis,
    Factor,
    Plain,
    Stacked,
    Value,
    alike,
    constant,
    data,
    opaque,
    pin,
)


def aligned(axes: Sequence[Axis]) -> list[list[Factor]] | None:
    """Cuts the factors of several axes of one length at the same places: a list of factors for each place.

    If a hidden space would have to be cut, this is asked of it, and None returned. If places do not nest,
    nothing can act on these axes.

    >>> [[f.length for f in place] for place in aligned([alike(6), (Factor(2, DATA), Factor(3))])]
    [[2, 2], [3, 3]]
    """
    live = [axis for axis in axes if any(factor.kind == "live" for factor in axis)]
    marks = _marks(live or axes)
    if marks is None:
        for axis in axes:
            pin(Plain((axis,)))
        length = math.prod(factor.length for factor in axes[0])
        return [[Factor(length, DATA)] * len(axes)]
    apart = [refined(axis, marks) if axis in live else _fitted(axis, marks) for axis in axes]
    if any(axis is None for axis in apart):
        return None
    return [list(place) for place in zip(*(axis for axis in apart if axis is not None), strict=True)]


def _marks(axes: Sequence[Axis]) -> list[int] | None:
    """The numbers of entries behind each factor of any axis, from many to one; None if they do not nest."""
    marks = {1}
    for axis in axes:
        behind = 1
        for factor in reversed(axis):
            behind *= factor.length
            marks.add(behind)
    ordered = sorted(marks, reverse=True)
    nested = all(a % b == 0 for a, b in itertools.pairwise(ordered))
    return ordered if nested else None


def _fitted(axis: Axis, marks: Sequence[int]) -> Axis:
    """Cuts or merges factors on which nothing acts, to fit those of another axis."""
    out = []
    for start, end in itertools.pairwise(marks):
        behind = math.prod(factor.length for factor in axis)
        node = None
        for factor in axis:
            first, behind = behind, behind // factor.length
            if first > end and behind < start and factor.node is not None:
                node = DATA
        out.append(Factor(start // end, node))
    return tuple(out)


def refined(axis: Axis, marks: Sequence[int]) -> Axis | None:
    """Cuts an axis where so many entries are behind; None if a hidden space was asked to be cut.

    >>> [factor.length for factor in refined(alike(12), [4])]
    [3, 4]
    """
    out: list[Factor] = []
    behind = math.prod(factor.length for factor in axis)
    missing = False
    for factor in axis:
        start, behind = behind, behind // factor.length
        inner = [mark for mark in marks if behind < mark < start]
        ends = [start, *inner, behind]
        lengths = [a // b for a, b in itertools.pairwise(ends)]
        if any(a % b for a, b in itertools.pairwise(ends)):
            pin(Plain((axis,)))
            return refined(data(math.prod(f.length for f in axis)), marks)
        if inner and factor.kind == "live":
            factor.want("factors", lengths)
            missing = True
        out += [factor._replace(length=length) for length in lengths]
    return None if missing else tuple(out)


def split(
    value: Value, axis: int, before: int, lengths: Sequence[int], behind: int
) -> "tuple[Value, ...] | None":
    """The parts of an array along an axis; None if a hidden space was asked to be cut there.

    >>> [part.shape for part in split(opaque((6, 2)), 0, 1, (4, 2), 1)]
    [(4, 2), (2, 2)]
    """
    if not all(lengths):
        full = split(value, axis, before, [length for length in lengths if length], behind)
        shape = value.shape
        nothing = constant((*shape[:axis], 0, *shape[axis + 1 :]), zero=True)
        rest = iter(full or ())
        return full and tuple(next(rest) if length else nothing for length in lengths)
    if list(lengths) == [value.shape[axis]]:
        return (value,)
    if isinstance(value, Stacked):
        return _split_stacked(value, axis, before, tuple(lengths), behind)
    factors = value.axes[axis]
    if all(factor.kind != "live" for factor in factors):
        return tuple(_with(value, axis, _cut_dead(factors, length, lengths)) for length in lengths)
    total = math.prod(factor.length for factor in factors)
    place = _place(factors, before, sum(lengths), behind)
    if place is None:
        # Equal pieces may be cut between slower units.
        unit = math.gcd(*lengths)
        if unit > 1:
            return split(value, axis, before, [length // unit for length in lengths], behind * unit)
        marks = [mark for mark in (total // before, behind) if 1 < mark < total]
        if refined(factors, marks) is not None:
            pin(Plain((factors,)))
            return split(opaque(value.shape), axis, before, lengths, behind)
        return None
    factor = factors[place]
    if factor.kind == "live":
        factor.want("cuts", lengths)
        return None
    return tuple(
        _with(
            value,
            axis,
            (*factors[:place], *([factor._replace(length=n)] if n > 1 else []), *factors[place + 1 :]),
        )
        for n in lengths
    )


def _cut_dead(factors: Axis, length: int, lengths: Sequence[int]) -> Axis:
    total = math.prod(factor.length for factor in factors) // sum(lengths) * length
    same = all(factor.node is None for factor in factors)
    return alike(total) if same else data(total)


def _with(value: Plain, axis: int, factors: Axis) -> Plain:
    return value.along(*value.axes[:axis], factors, *value.axes[axis + 1 :])


def _place(factors: Axis, before: int, length: int, behind: int) -> int | None:
    """The factor of this length with so many blocks before and entries behind it."""
    slow, total = 1, math.prod(factor.length for factor in factors)
    for k, factor in enumerate(factors):
        if (slow, factor.length, total // slow // factor.length) == (before, length, behind):
            return k
        slow *= factor.length
    return None


def _split_stacked(
    value: Stacked, axis: int, before: int, lengths: tuple[int, ...], behind: int
) -> "tuple[Value, ...] | None":
    if value.axis != axis or not _same_blocks(value, before, behind, lengths):
        apart = (
            [split(part, axis, before, lengths, behind) for part in value.parts] if value.axis != axis else []
        )
        if value.axis == axis:
            return _recut(value, before, lengths, behind)
        if any(parts is None for parts in apart):
            return None
        return tuple(value.of([parts[k] for parts in apart if parts]) for k in range(len(lengths)))
    pieces = list(zip(value.lengths, value.parts, strict=True))
    found: list[Value] = []
    for length in lengths:
        taken: list[tuple[int, Value]] = []
        while sum(n for n, _ in taken) < length:
            n, part = pieces.pop(0)
            room = length - sum(n for n, _ in taken)
            if n > room:
                halves = split(part, axis, before, (room, n - room), behind)
                if halves is None:
                    return None
                pieces.insert(0, (n - room, halves[1]))
                n, part = room, halves[0]
            taken.append((n, part))
        if len(taken) == 1:
            found.append(taken[0][1])
        else:
            found.append(
                Stacked(axis, before, tuple(n for n, _ in taken), behind, tuple(p for _, p in taken))
            )
    return tuple(found)


def _same_blocks(value: Stacked, before: int, behind: int, lengths: tuple[int, ...]) -> bool:
    return (value.before, value.behind, sum(value.lengths)) == (before, behind, sum(lengths))


def _recut(value: Stacked, before: int, lengths: tuple[int, ...], behind: int) -> "tuple[Value, ...] | None":
    """Splits along the axis of the parts, in blocks of other sizes: between them, or within every part."""
    scale = math.gcd(*lengths)
    if value.before == before and scale > 1 and behind * scale == value.behind:
        return _split_stacked(value, value.axis, before, tuple(n // scale for n in lengths), value.behind)
    scale = math.gcd(*value.lengths)
    if value.before == before and scale > 1 and value.behind * scale == behind:
        finer = dataclasses.replace(
            value, lengths=tuple(n // scale for n in value.lengths), behind=value.behind * scale
        )
        return _split_stacked(finer, value.axis, before, lengths, behind)
    if value.behind % (sum(lengths) * behind) == 0:  # within the entries behind the parts
        inner = before // sum(value.lengths)
        apart = [
            split(part, value.axis, inner * n, lengths, behind)
            for n, part in zip(value.lengths, value.parts, strict=True)
        ]
        if any(parts is None for parts in apart):
            return None
        kept = [
            dataclasses.replace(
                value,
                behind=value.behind // sum(lengths) * n,
                parts=tuple(parts[k] for parts in apart if parts),
            )
            for k, n in enumerate(lengths)
        ]
        return tuple(kept)
    pin(value)
    return split(opaque(value.shape), value.axis, before, lengths, behind)


def reshaped(value: Value, shape: Sequence[int]) -> Value | None:
    """The array in another shape; None if a hidden space was asked to be cut.

    >>> reshaped(Plain(((Factor(2), Factor(3)),)), (2, 3)).axes
    ((Factor(length=2, node=None, charge={}, sign={}, square=False),), (Factor(length=3, node=None, ...),))
    """
    if isinstance(value, Stacked):
        return _reshaped_stacked(value, tuple(shape))
    factors = tuple(factor for axis in value.axes for factor in axis)
    total = math.prod(shape)
    marks, behind = [], total
    for length in shape:
        behind //= length
        marks.append(behind)
    cut = refined(factors, sorted({m for m in marks if 1 < m < total}, reverse=True))
    if cut is None:
        return None
    rest = list(cut)
    axes = []
    for length in shape:
        own: list[Factor] = []
        while math.prod(factor.length for factor in own) < length:
            own.append(rest.pop(0))
        axes.append(tuple(own))
    return value.along(*axes)


def _reshaped_stacked(value: Stacked, shape: tuple[int, ...]) -> Value | None:
    old = value.shape
    ahead = math.prod(old[: value.axis]) * value.before
    total = sum(value.lengths)
    slow = 1
    for axis, length in enumerate(shape):
        inside, rest = divmod(ahead, slow)
        if length > 1 and not rest and length % inside == 0 and length > inside:
            most = length // inside  # how much of the parts, and of what is behind them, is on this axis
            lengths, behind = value.lengths, most // total
            if most % total:
                unit, odd = divmod(total, most)
                if odd or any(n % unit for n in lengths):
                    break
                lengths, behind = tuple(n // unit for n in lengths), 1
            parts = [
                reshaped(part, (*shape[:axis], inside * n * behind, *shape[axis + 1 :]))
                for n, part in zip(lengths, value.parts, strict=True)
            ]
            if any(part is None for part in parts):
                return None
            return Stacked(axis, inside, lengths, behind, tuple(part for part in parts if part is not None))
        slow *= length
        if slow > ahead:
            break
    pin(value)
    return opaque(shape)


def transposed(value: Value, order: Sequence[int]) -> Value:
    """The array with its axes in another order.

    >>> transposed(opaque((2, 3)), (1, 0)).shape
    (3, 2)
    """
    if isinstance(value, Plain):
        return value.along(*(value.axes[k] for k in order))
    return value.of([transposed(part, order) for part in value.parts], tuple(order).index(value.axis))
