"""Lengths of the large model from equations: one for every axis of its arrays."""

from collections.abc import Iterable, Sequence

from symmetrax.discovery._twin._lengths import Length, Unknown, small, unknowns, value

#: The length of an axis of the large model, in unknowns, and as it is.
Equation = tuple[Length, int]

#: The values of some unknowns.
Values = dict[Unknown, int]


class Unsolved(ValueError):
    """No lengths of the large model fit, or too many do; `heads` says whether their number would help.

    >>> Unsolved("no length fits", heads=False).heads
    False
    """

    def __init__(self, reason: str, *, heads: bool):
        super().__init__(reason)
        self.heads = heads


def solve(
    equations: Sequence[Equation],
    needed: Sequence[Unknown],
    counts: Sequence[Length] = (),
    heads: Sequence[int] | None = None,
) -> list[Values]:
    """Finds lengths of the `needed` unknowns that satisfy the equations; the largest units come first.

    `counts` are numbers of heads, of which the largest must be among `heads`. Raises `Unsolved` if nothing
    fits, or if only the number of heads would tell.

    >>> count, size = Unknown(("index", 0), 2, counts=True), Unknown(("size", 0), 4)
    >>> from symmetrax.discovery._twin._lengths import Product
    >>> solve([(Product((count, size)), 64), (size, 16)], [count])[0][count]
    4
    >>> solve([(Product((count, size)), 64)], [count])
    Traceback (most recent call last):
    symmetrax.discovery._twin._solve.Unsolved: 64 = heads x size has several solutions
    """
    equations = _connected(equations, needed)
    if heads is None and all(small(length) in (size, None) for length, size in equations):
        # Nothing has changed, so that nothing has to be asked.
        every = dict.fromkeys(one for length, _ in equations for one in unknowns(length))
        same = _propagated(equations, {one: one.small for one in every if one.small is not None})
        if same is not None:
            return [same]
    values = _propagated(equations, {})
    if values is None:
        raise Unsolved("no lengths fit its axes", heads=False)
    open_counts = [one for one in _open(equations, values) if one.counts]
    if not set(needed) - set(values):
        solutions = [values]
    elif open_counts and heads is None:
        total = next(size for length, size in equations if open_counts[0] in unknowns(length))
        raise Unsolved(f"{total} = heads x size has several solutions", heads=True)
    else:
        divisors = sorted({k for count in heads or () for k in range(1, count + 1) if count % k == 0})
        solutions = list(_branches(equations, values, needed, divisors))
    if heads is not None and open_counts:
        most = [max([v for c in counts if (v := value(c, s)) is not None], default=0) for s in solutions]
        solutions = [s for s, count in zip(solutions, most, strict=True) if count in heads]
        if not solutions:
            raise Unsolved(f"no lengths fit heads={list(heads)}", heads=False)
    if not solutions:
        raise Unsolved("its lengths are not determined by those of the axes", heads=False)
    # A matrix group per half of a head is a part of the true one: the largest units are tried first.
    return sorted(solutions, key=lambda s: [s[one] for one in needed if one.counts])


def _connected(equations: Sequence[Equation], needed: Iterable[Unknown]) -> list[Equation]:
    """The equations that have something to do with the unknowns that are needed."""
    reached, rest, out = set(needed), list(equations), list[Equation]()
    while here := [one for one in rest if reached & set(unknowns(one[0]))]:
        out += here
        reached |= {unknown for length, _ in here for unknown in unknowns(length)}
        rest = [one for one in rest if one not in here]
    return out


def _open(equations: Sequence[Equation], values: Values) -> list[Unknown]:
    return [
        one
        for one in dict.fromkeys(u for length, _ in equations for u in unknowns(length))
        if one not in values
    ]


def _propagated(equations: Sequence[Equation], values: Values) -> Values | None:
    """Solves equations of one unknown until there are none; None if an equation has no solution."""
    values = dict(values)
    while True:
        before = len(values)
        for length, size in equations:
            free = {one for one in unknowns(length) if one not in values}
            if not free and value(length, values) != size:
                return None
            if len(free) == 1:
                (one,) = free
                low, high = 1, size + 1  # slices make a length shorter than its index
                while low < high:
                    middle = (low + high) // 2
                    made = value(length, values | {one: middle})
                    low, high = (middle + 1, high) if made is not None and made < size else (low, middle)
                values[one] = low
                if value(length, values) != size:
                    return None
        if len(values) == before:
            return values


def _branches(
    equations: Sequence[Equation], values: Values, needed: Sequence[Unknown], divisors: Sequence[int]
) -> Iterable[Values]:
    if not set(needed) - set(values):
        yield values
        return
    free = _open(equations, values)
    if counts := [one for one in free if one.counts]:
        tries = [{counts[0]: count} for count in divisors]
    else:
        # Segments in proportion to the axis, or of the same length as in the twin.
        tries = [
            {one: one.small * size // whole}
            for length, size in equations
            for one in unknowns(length)
            if one in free and one.small and (whole := small(length)) and one.small * size % whole == 0
        ][:1]
        tries += [{one: one.small} for one in free if one.small][:1]
    seen: list[Values] = []
    for more in tries:
        further = _propagated(equations, values | more)
        if further is not None:
            for solution in _branches(equations, further, needed, divisors):
                if solution not in seen:
                    seen.append(solution)
                    yield solution
