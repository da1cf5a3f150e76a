"""Which lengths are equal: where several specs split one axis, their parts are aligned."""

from collections.abc import Iterable, Sequence

from symmetrax.discovery._twin._lengths import Length, Product, Total, Unknown, small, unknowns


class Equalities:
    """What is known to be equal: unknowns, and what they are made of.

    >>> one, other = (Unknown(("size", k), 4) for k in range(2))
    >>> equal = Equalities()
    >>> equal.unify(one, other)
    >>> equal.resolved(one) == equal.resolved(other)
    True
    """

    def __init__(self):
        self._bound: dict[Unknown, Length] = {}

    def resolved(self, length: Length) -> Length:
        """A length in as few unknowns as possible."""
        if isinstance(length, int):
            return length
        if isinstance(length, Unknown):
            return self.resolved(self._bound[length]) if length in self._bound else length
        parts: list[Length] = []
        for part in map(self.resolved, length.parts):
            # Brackets in brackets of one kind are one bracket, so that factors can be compared in order.
            parts += part.parts if type(part) is type(length) else [part]  # pyright: ignore[reportAttributeAccessIssue]
        return type(length)(tuple(parts)) if len(parts) > 1 else parts[0]

    def unify(self, one: Length, other: Length) -> None:
        """Records that two specs split one axis; whatever cannot be aligned is left open."""
        one, other = self.resolved(one), self.resolved(other)
        if one == other or (None not in (a := [small(one), small(other)]) and a[0] != a[1]):
            return
        match one, other:
            case Unknown(), Unknown():
                # Numbers and blanks are bound to spaces, and these to numbers of heads.
                rank = [(one.key[0] != "number", one.counts) for one in (one, other)]
                first, second = (one, other) if rank[0] <= rank[1] else (other, one)
                self._bound[first] = second
            case Unknown(), _:
                self._bind(one, other)
            case _, Unknown():
                self._bind(other, one)
            case (Product(), Product()) | (Total(), Total()):
                self._align(type(one), list(one.parts), list(other.parts))
            case (Product(), Total()):
                self._copies(one, other)
            case (Total(), Product()):
                self._copies(other, one)

    def _bind(self, one: Unknown, length: Length) -> None:
        if one not in unknowns(length):
            self._bound[one] = length

    def _copies(self, product: Product, total: Total) -> None:
        """Segments of equal length, as copies: three of queries, keys and values."""
        first, rest, count = product.parts[0], product.parts[1:], len(total.parts)
        if len({small(part) for part in total.parts}) > 1:
            return
        if isinstance(first, Unknown) and first.key[0] == "number" and small(first) in (None, count):
            self._bind(first, count)
            for part in total.parts:
                self.unify(_made(Product, rest), part)

    def _align(self, kind: type[Product] | type[Total], ones: list[Length], others: list[Length]) -> None:
        while ones and others:
            if len(ones) == 1 or len(others) == 1:
                ends = [_made(kind, side) for side in (ones, others)]
                # An equation says what two brackets of different shapes have in common.
                plain = all(not isinstance(end, kind) for end in ends)
                if plain or any(isinstance(end, Unknown) for end in ends):
                    self.unify(*ends)
                return
            one, other = small(ones[0]), small(others[0])
            if one == other or None in (one, other):
                # A blank in the middle, of unknown length, stands for one factor if the others do.
                if None in (one, other) and len(ones) != len(others):
                    return
                self.unify(ones.pop(0), others.pop(0))
                continue
            few, many = (ones, others) if (one or 0) > (other or 0) else (others, ones)
            whole, end = few[0], _prefix(kind, few[0], many)
            if end is None or not isinstance(whole, Unknown):
                return
            self._bind(whole, _made(kind, many[:end]))
            del few[0], many[:end]


def _made(kind: type[Product] | type[Total], parts: Sequence[Length]) -> Length:
    """A bracket, or its only part."""
    return kind(tuple(parts)) if len(parts) > 1 else parts[0]


def _prefix(kind: type, whole: Length, parts: Iterable[Length]) -> int | None:
    """How many of the parts make up a whole."""
    made = 1 if kind is Product else 0
    for k, part in enumerate(parts):
        size = small(part)
        if size is None:
            return None
        made = made * size if kind is Product else made + size
        if made == small(whole):
            return k + 1
    return None
