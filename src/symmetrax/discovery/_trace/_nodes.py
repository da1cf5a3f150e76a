"""Hidden spaces while a program is read: axes that must transform together, and what they allow."""

import dataclasses
from collections.abc import Iterable, Sequence
from fractions import Fraction

#: What a form counts: the powers with which a unit's scale (or the sign of it) enters.
Form = dict[int, Fraction]

#: The form of what does not transform.
NOTHING: Form = {}


@dataclasses.dataclass(eq=False)
class Node:
    """A class of axes with the same units, by union-find; `length` units.

    `flags` say what the program does to the units: "monomial" (a function of single units, or a product of
    two), "ordered" (units differ by constant data), "ones" (sums over units, or equal constants for all of
    them), "norm" (sums of squares), "batch" (an index under which other spaces may differ), "scan" (layers of
    a loop). `wanted` are the factors and cuts that the program asks for and that are not made yet.

    >>> a, b = Node(6), Node(6)
    >>> a.join(b)
    >>> b.mark("monomial")
    >>> a.root is b.root, a.root.flags
    (True, {'monomial'})
    """

    length: int
    parent: "Node | None" = None
    flags: set[str] = dataclasses.field(default_factory=set)
    wanted: list[tuple[str, tuple[int, ...]]] = dataclasses.field(default_factory=list)

    @property
    def root(self) -> "Node":
        node = self
        while node.parent is not None:
            if node.parent.parent is not None:
                node.parent = node.parent.parent
            node = node.parent
        return node

    def join(self, other: "Node") -> None:
        """Unites two classes; anything that meets `DATA` is pinned."""
        mine, its = self.root, other.root
        if mine is its:
            return
        if mine is DATA:
            mine, its = its, mine
        mine.parent = its
        if its is not DATA:
            its.flags |= mine.flags
            its.wanted += mine.wanted

    def mark(self, *flags: str) -> None:
        """Adds flags to the class."""
        if self.root is not DATA:
            self.root.flags.update(flags)

    def want(self, kind: str, lengths: Sequence[int]) -> None:
        """Asks for this class to be a product ("factors") or a sequence ("cuts") of shorter ones."""
        if self.root is not DATA and (kind, tuple(lengths)) not in self.root.wanted:
            self.root.wanted.append((kind, tuple(lengths)))

    @property
    def pinned(self) -> bool:
        """Whether nothing acts on the units."""
        return self.root is DATA


#: The class of all axes on which nothing may act: those of data, and what meets them.
DATA = Node(0)


def plus(*forms: Form, by: Sequence[int | Fraction] | None = None) -> Form:
    """The sum of forms, times numbers.

    >>> plus({1: Fraction(1)}, {1: Fraction(2), 3: Fraction(1)}, by=[2, -1])
    {3: Fraction(-1, 1)}
    """
    total: Form = {}
    for form, factor in zip(forms, by or [1] * len(forms), strict=True):
        for variable, count in form.items():
            total[variable] = total.get(variable, Fraction(0)) + factor * count
    return {variable: count for variable, count in total.items() if count}


def solutions(equations: Iterable[Form], variables: Sequence[int], modulo: int = 0) -> list[list[Fraction]]:
    """A basis of the solutions of homogeneous equations, in reduced echelon form; `modulo` may be 2.

    >>> solutions([{0: Fraction(1), 1: Fraction(1)}], [0, 1])
    [[Fraction(-1, 1), Fraction(1, 1)]]
    """
    # Rows have few entries: most say that two powers are equal.
    pivots: dict[int, Form] = {}
    for form in equations:
        row = _reduced(form, modulo)
        while (bound := next((variable for variable in row if variable in pivots), None)) is not None:
            row = _reduced(plus(row, pivots[bound], by=[1, -row[bound]]), modulo)
        if not row:
            continue
        first = next(iter(row))
        row = _reduced({variable: count / row[first] for variable, count in row.items()}, modulo)
        for other, pivot in pivots.items():
            if first in pivot:
                pivots[other] = _reduced(plus(pivot, row, by=[1, -pivot[first]]), modulo)
        pivots[first] = row
    basis = []
    for free in (variable for variable in variables if variable not in pivots):
        own = {variable: -row[free] for variable, row in pivots.items() if free in row}
        own = _reduced(own, modulo) | {free: Fraction(1)}
        basis.append([own.get(variable, Fraction(0)) for variable in variables])
    return basis


def spanned(vector: Sequence[Fraction], vectors: Sequence[Sequence[Fraction]], modulo: int = 0) -> bool:
    """Whether a vector is a combination of others.

    >>> one, none = Fraction(1), Fraction(0)
    >>> spanned([one, one], [[one, none], [none, one]]), spanned([one, one], [[one, none]])
    (True, False)
    """
    rank = [
        len(solutions([dict(enumerate(map(Fraction, row))) for row in rows], range(len(vector)), modulo))
        for rows in (vectors, [*vectors, vector])
    ]
    return rank[0] == rank[1]


def _reduced(form: Form, modulo: int) -> Form:
    if not modulo:
        return {variable: count for variable, count in form.items() if count}
    # Half of a sign is not a sign: only whole numbers count.
    return {variable: count % modulo for variable, count in form.items() if count % modulo}
