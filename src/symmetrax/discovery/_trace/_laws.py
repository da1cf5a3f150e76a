"""The laws that a program imposes on hidden spaces, where arrays are added, multiplied and summed."""

import dataclasses
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from symmetrax.discovery._trace._nodes import DATA, Form, plus
from symmetrax.discovery._trace._splitting import aligned, split
from symmetrax.discovery._trace._values import (
    Axis,
    Factor,
    Plain,
    Stacked,
    Value,
    constant,
    each,
    opaque,
    pin,
)


@dataclasses.dataclass
class Laws:
    """Everything imposed so far: forms of charges and of signs that must vanish.

    A value that cannot be known before a space is cut is replaced by zeros, which impose nothing; the
    program is read again once the space is cut.

    >>> from symmetrax.discovery._trace._nodes import Node
    >>> laws, units, once = Laws(), Node(3), {0: Fraction(1)}
    >>> relu = laws.map(Plain(((Factor(3, units, once, once),),)), homogeneous=True)
    >>> laws.charges, laws.signs, units.flags
    ([], [{0: Fraction(1, 1)}], {'monomial'})
    """

    charges: list[Form] = dataclasses.field(default_factory=list)
    signs: list[Form] = dataclasses.field(default_factory=list)

    def zero(self, factor: Factor, *, charge: bool = True, sign: bool = True) -> None:
        """Allows no scales, or no signs, of these units."""
        if factor.kind == "live":
            if charge and factor.charge:
                self.charges.append(factor.charge)
            if sign and factor.sign:
                self.signs.append(factor.sign)

    def settled(self, factor: Factor) -> Factor:
        """The same units; if they are squares, nothing mixes them any more."""
        if factor.square:
            factor.mark("monomial")
        return factor._replace(square=False)

    def equal(self, first: Factor, second: Factor) -> None:
        """Two arrays have the same units, and transform alike."""
        first.join(second)
        for forms, a, b in (
            (self.charges, first.charge, second.charge),
            (self.signs, first.sign, second.sign),
        ):
            if apart := plus(a, b, by=[1, -1]):
                forms.append(apart)

    # --- entry by entry

    def together(self, values: Sequence[Value], meet: Callable[[list[Factor]], Factor]) -> Value:
        """Arrays of one shape combined entry by entry; `meet` says what becomes of factors that meet."""
        stacked = next((value for value in values if isinstance(value, Stacked)), None)
        if stacked is not None:
            block = (stacked.axis, stacked.before, stacked.lengths, stacked.behind)
            apart = [split(value, *block) for value in values]
            if any(parts is None for parts in apart):
                return constant(values[0].shape, zero=True)
            rows = zip(*(parts for parts in apart if parts is not None), strict=True)
            return stacked.of([self.together(row, meet) for row in rows])
        axes: list[Axis] = []
        for own in zip(*(value.axes for value in values if isinstance(value, Plain)), strict=True):
            places = aligned(own)
            if places is None:
                return constant(values[0].shape, zero=True)
            axes.append(tuple(meet(place) for place in places))
        return Plain(tuple(axes))

    def added(self, values: Sequence[Value]) -> Value:
        """The sum, or a choice between arrays that must transform alike."""
        there = [value for value in values if not value.zero]
        if not there:
            return values[0]
        total = there[0] if len(there) == 1 else self.together(there, self._add)
        # Numbers of units that count from the end are added to how many there are.
        points = {value.points for value in there if isinstance(value, Plain)} - {()}
        if len(points) == 1 and isinstance(total, Plain):
            return dataclasses.replace(total, points=points.pop())
        return total

    def _add(self, place: list[Factor]) -> Factor:
        live = [factor for factor in place if factor.kind == "live"]
        if not live:
            return next((factor for factor in place if factor.kind == "data"), place[0])._replace(
                square=False
            )
        if any(factor.kind == "data" for factor in place):
            return _pinned(place)
        if len(live) < len(place):  # a constant for all units
            for factor in live:
                factor.mark("ones")
                self.zero(factor)
        live = [self.settled(factor) for factor in live]
        for other in live[1:]:
            self.equal(live[0], other)
        return live[0] if len(live) == len(place) else live[0]._replace(charge={}, sign={})

    def multiplied(self, first: Value, second: Value, *, power: int = 1) -> Value:
        """The product with the second array to a power: its charges are added."""
        if first.zero or (second.zero and power > 0):
            return constant(first.shape, zero=True)
        return self.together([first, second], lambda place: self._multiply(place, power))

    def chosen(self, which: Value, cases: Sequence[Value]) -> Value:
        """One of several arrays for every entry."""
        found = self.added(cases)
        counted = isinstance(found, Plain) and found.points
        if which.shape != found.shape or found.zero or counted:
            return found
        return self.together([found, which], lambda place: self._multiply(place, 1))

    def _multiply(self, place: list[Factor], power: int) -> Factor:
        first, second = place
        kinds = [factor.kind for factor in place]
        if "live" not in kinds:
            return Factor(first.length, DATA) if "data" in kinds else first._replace(square=False)
        if "alike" in kinds:
            factor = first if kinds[0] == "live" else second
            if kinds[0] != "live" and power < 0:
                factor = self.settled(factor)
                factor.mark("monomial")
                return factor._replace(charge=plus(factor.charge, by=[-1]))
            return factor
        first, second = (self.settled(factor) for factor in place)
        if "data" in kinds:
            factor = first if kinds[0] == "live" else second
            factor.mark("monomial", "ordered")
            charge = factor.charge if factor is first else plus(factor.charge, by=[power])
            return factor._replace(charge=charge)
        first.join(second)
        first.mark("monomial")
        charge = plus(first.charge, second.charge, by=[1, power])
        return Factor(first.length, first.node, charge, plus(first.sign, second.sign))

    def map(
        self,
        value: Value,
        *,
        odd: bool = False,
        even: bool = False,
        homogeneous: bool = False,
        power: int | Fraction | None = None,
    ) -> Value:
        """A function of every entry. An odd function passes signs on, an even one removes them, a
        homogeneous one passes positive scales on, to a power."""

        def one(plain: Plain) -> Plain:
            return Plain(
                tuple(tuple(self._map(f, odd, even, homogeneous, power) for f in axis) for axis in plain.axes)
            )

        return each(value, one)

    def root(self, value: Value, power: int) -> Value:
        """The square root of every entry, to a power."""
        return self.map(value, power=Fraction(power, 2))

    def _map(
        self, factor: Factor, odd: bool, even: bool, homogeneous: bool, power: int | Fraction | None
    ) -> Factor:
        if factor.kind != "live":
            return factor._replace(square=False)
        factor = self.settled(factor)
        factor.mark("monomial")
        if not homogeneous and power is None:
            self.zero(factor, sign=False)
        if not odd and not even:
            self.zero(factor, charge=False)
        charge = (
            plus(factor.charge, by=[1 if power is None else power])
            if homogeneous or power is not None
            else {}
        )
        return factor._replace(charge=charge, sign=factor.sign if odd else {})

    def squared(self, value: Value) -> Value:
        """The square of every entry, whose sums rotations keep."""

        def one(factor: Factor) -> Factor:
            factor = self.settled(factor)
            return factor._replace(charge=plus(factor.charge, by=[2]), sign={}, square=factor.kind == "live")

        return each(
            value, lambda plain: Plain(tuple(tuple(map(one, axis)) for axis in plain.axes), plain.zero)
        )

    # --- sums

    def summed(self, factor: Factor) -> None:
        """Units are summed: they must be equal, unless they are squares."""
        if factor.kind == "live":
            factor.mark("norm" if factor.square else "ones")
            if factor.square:
                self.charges.append(factor.charge)
            else:
                self.zero(factor)

    def extreme(self, factor: Factor) -> None:
        """The largest of the units is taken."""
        if factor.kind == "live":
            factor.mark("ones", "monomial")
            self.zero(factor)

    def contracted(self, axes: Sequence[Axis]) -> bool:
        """Two axes are multiplied and summed over; False if a hidden space was asked to be cut."""
        places = aligned(axes)
        if places is None:
            return False
        for place in places:
            first, second = (self.settled(factor) for factor in place)
            kinds = {first.kind, second.kind}
            if kinds == {"live"}:
                first.join(second)
                for forms, a, b in (
                    (self.charges, first.charge, second.charge),
                    (self.signs, first.sign, second.sign),
                ):
                    if total := plus(a, b):
                        forms.append(total)
            elif kinds == {"live", "alike"}:
                self.summed(first if first.kind == "live" else second)
            elif "live" in kinds:
                _pinned(place)
        return True

    def indexed(self, place: list[Factor]) -> Factor:
        """Axes along which products are taken one by one, as over the heads of attention."""
        factor = self._multiply(place, 1)
        if all(one.kind == "live" for one in place):
            factor.mark("batch")
        return factor


class Operation(NamedTuple):
    """One operation of a program: the laws so far, its inputs, its parameters and the shape of its result.

    >>> Operation(Laws(), [constant((2,))], {}, (2,)).inputs[0].shape
    (2,)
    """

    laws: Laws
    inputs: list[Value]
    params: dict[str, Any]
    shape: Sequence[int]


#: What an operation makes of its inputs: a value, or several.
Rule = Callable[[Operation], Any]


def _pinned(place: Sequence[Factor]) -> Factor:
    for factor in place:
        factor.pin()
    return Factor(place[0].length, DATA)


def joined_data(value: Value) -> Value:
    """Nothing may act on this array; returns data of its shape.

    >>> from symmetrax.discovery._trace._nodes import Node
    >>> units = Node(3)
    >>> joined_data(Plain(((Factor(3, units),),))).shape, units.pinned
    ((3,), True)
    """
    pin(value)
    return opaque(value.shape)
