"""Candidates from a reading: for every hidden space the groups that its laws leave, and where they act."""

import contextlib
import functools
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from fractions import Fraction
from typing import Any

from symmetrax.discovery._sites import Site, Spec
from symmetrax.discovery._spaces import Space, together, with_per
from symmetrax.discovery._trace._nodes import Node, solutions, spanned
from symmetrax.discovery._trace._reader import Reading
from symmetrax.discovery._trace._trees import Item, Part
from symmetrax.groups._diagonal import Permutation, PositiveDiagonal, SignDiagonal
from symmetrax.groups._matrices import GeneralLinear, Orthogonal, ScaledRotation

#: No gap decides what is read off a program.
NO_GAP = (math.nan, math.nan)

#: Makes a candidate with some other spaces as indices, or raises ValueError if no spec can express it.
_Make = Callable[[Sequence[Node]], Space]

#: Where a hidden space is: a part of an array, one of its axes, and the factor there.
Place = tuple[Part, int, Item]


def candidates(hidden: "Hidden") -> Iterator[list[list[Space]]]:
    """Spaces to certify, one kind of group after the other: for each a list of options, best first.

    Matrix groups come first, then rotations of pairs, scales, signs and permutations, so that what follows
    from the first need not be certified. Where a space may have an element for every head or layer, this is
    the first option, and a single element the last.

    >>> import jax, jax.numpy as jnp
    >>> from symmetrax.discovery._trace._reader import read
    >>> program = jax.make_jaxpr(lambda a, b: jnp.sum((a @ b) ** 2))(jnp.ones((3, 2)), jnp.ones((2, 3)))
    >>> hidden = Hidden(read(program, ["a", "b"]))
    >>> [[str(options[0].group) for options in kind] for kind in candidates(hidden)][0]
    ['GeneralLinear(2)']
    """
    for kind in (_linear, _rotations, _pairs, _scales, _signs, _permutations):
        found = []
        for root in hidden.places:
            for make in kind(root, hidden):
                options = []
                for order in hidden.indices(root):
                    with contextlib.suppress(ValueError):  # no spec can express it
                        options.append(make(order))
                if options:
                    found.append(options)
        if found:
            yield found


class Hidden:
    """The hidden spaces on which something may act, and where they are in arrays that are not `idle`.

    >>> import jax, jax.numpy as jnp
    >>> from symmetrax.discovery._trace._reader import read
    >>> program = jax.make_jaxpr(lambda a, b: jnp.sum((a @ b) ** 2))(jnp.ones((3, 2)), jnp.ones((2, 3)))
    >>> hidden = Hidden(read(program, ["a", "b"]))
    >>> [(root.length, len(places)) for root, places in hidden.places.items()]
    [(3, 1), (2, 2), (3, 1)]
    """

    def __init__(self, reading: Reading, idle: Collection[str] = ()):
        self.places: dict[Node, list[Place]] = {}
        self._variables: dict[Node, list[int]] = {}
        self._laws = {False: (reading.charges, 0), True: (reading.signs, 2)}
        self._vectors: dict[tuple[Node, bool], list[list[Fraction]]] = {}
        for part in reading.parts:
            for axis, items in enumerate(part.items):
                for item in (item for item in items if not item.node.pinned):
                    self._variables.setdefault(item.node.root, []).append(item.variable)
                    if part.path not in idle:
                        self.places.setdefault(item.node.root, []).append((part, axis, item))

    def indices(self, root: Node) -> list[list[Node]]:
        """Which spaces may be indices of this one's elements: all that go with it everywhere, to none."""
        common = self.common(root)
        if len(common) == 2:
            return [common, common[:1], common[1:], []]
        return [common, []] if common else [[]]

    def common(self, root: Node) -> list[Node]:
        """The indices that go with a space wherever it is."""
        found: list[Node] | None = None
        for part, axis, own in self.places[root]:
            here = []
            for k, items in enumerate(part.items):
                for item in (item for item in items if item is not own):
                    # Next to the units on their own axis, or where products are taken one by one.
                    if k == axis or {"batch", "scan"} & item.node.root.flags:
                        here.append(item.node.root)
            found = here if found is None else [node for node in found if node in here]
        return [node for node in dict.fromkeys(found or []) if node is not root]

    def vectors(self, root: Node, *, signs: bool = False) -> list[list[Fraction]]:
        """All powers with which a space's elements may act at its places; the first is positive."""
        if (root, signs) not in self._vectors:
            equations, modulo = self._laws[signs]
            # Also of idle arrays: what goes with them goes together.
            variables = self._variables[root]
            own = {id(form): form for variable in variables for form in equations.get(variable, ())}
            here = [variables.index(item.variable) for _, _, item in self.places[root]]
            found: dict[tuple[Fraction, ...], None] = {}
            for vector in solutions([*own.values()], variables, modulo):
                powers = [vector[k] for k in here]
                if any(powers):
                    sign = 1 if next(power for power in powers if power) > 0 else -1
                    found[tuple(power * sign for power in powers)] = None
            self._vectors[root, signs] = [[*powers] for powers in found]
        return self._vectors[root, signs]

    def new_vectors(self, root: Node, *, signs: bool = False) -> list[list[Fraction]]:
        """Those that do not follow from scales (or signs) of spaces that have an element for each unit."""
        known: list[list[Fraction]] = []
        at = {id(part): k for k, (part, _, _) in enumerate(self.places[root])}
        for other, places in self.places.items():
            if other is root or root not in self.common(other):
                continue
            # Of two that are indices of each other, the faster one has the elements.
            if other in self.common(root) and places[0][2].stride > self.places[root][0][2].stride:
                continue
            for vector in self.vectors(other, signs=signs):
                induced = [Fraction(0)] * len(self.places[root])
                for (part, _, _), power in zip(places, vector, strict=True):
                    induced[at[id(part)]] += power
                known.append(induced)
        modulo = 2 if signs else 0
        found = []
        for vector in self.vectors(root, signs=signs):
            if not spanned(vector, known, modulo):
                found.append(vector)
                known.append(vector)
        return found


def specs_of(
    places: Sequence[Place], powers: Sequence[Fraction | int], order: Sequence[Node]
) -> tuple[Spec, ...]:
    """The specs of a space. Raises ValueError if none can express it.

    >>> import jax, jax.numpy as jnp
    >>> from symmetrax.discovery._trace._reader import read
    >>> program = jax.make_jaxpr(lambda a, b: jnp.sum((a @ b) ** 2))(jnp.ones((3, 2)), jnp.ones((2, 3)))
    >>> hidden = Hidden(read(program, ["a", "b"]))
    >>> [(spec.site.path, spec.power) for spec in specs_of([*hidden.places.values()][1], [1, -1], [])]
    [('a', 1.0), ('b', -1.0)]
    """
    alike: dict[Any, list[tuple[Place, float]]] = {}
    for place, power in zip(places, powers, strict=True):
        part, axis, item = place
        if part.path and power:
            start = part.starts[axis]
            alike.setdefault((part.path, axis, item.tree, start - start % item.stride), []).append(
                (place, float(power))
            )
    specs = []
    for same in alike.values():
        # Where an array is cut along another axis, or behind the units, they are in many of its parts.
        (part, axis, item), power = same[0]
        cut = len({other.starts[axis] for (other, _, _), _ in same}) > 1
        specs.append(_spec(site_of(part, axis, item, order, blurred=cut), same))
    if not specs:
        raise ValueError("acts on no array")
    return together(specs)


def _spec(site: Site, same: Sequence[tuple[Place, float]]) -> Spec:
    """One spec for several parts, which must transform alike and fill all other axes."""
    if len({power for _, power in same}) > 1:
        raise ValueError("parts of an axis transform in different ways")
    filled = sum(math.prod(item.length for items in part.items for item in items) for (part, _, _), _ in same)
    others = math.prod(length for k, length in enumerate(site.shape) if k != site.axis)
    if filled != site.positions.size * others:
        raise ValueError("acts on a part of another axis")
    return Spec(site, same[0][1])


def lengths_of(order: Sequence[Node]) -> tuple[int, ...]:
    """The lengths of indices.

    >>> lengths_of([Node(2), Node(3)])
    (2, 3)
    """
    return tuple(node.length for node in order)


def _linear(root: Node, hidden: Hidden) -> Iterator[_Make]:
    places, powers = hidden.places[root], units_of(hidden.vectors(root))
    if powers is not None and not {"monomial", "ordered", "ones", "norm"} & root.flags:
        yield lambda order: Space(
            with_per(GeneralLinear, (lengths_of(order), root.length)), specs_of(places, powers, order), NO_GAP
        )


def _rotations(root: Node, hidden: Hidden) -> Iterator[_Make]:
    if not {"monomial", "ordered"} & root.flags:
        places = hidden.places[root]
        fix = {"fix": "mean"} if "ones" in root.flags else {}
        ones = [1] * len(places)
        yield lambda order: Space(
            with_per(Orthogonal, (lengths_of(order), root.length), **fix),
            specs_of(places, ones, order),
            NO_GAP,
        )


def units_of(vectors: Sequence[Sequence[Fraction]]) -> list[Fraction] | None:
    """Charges of 1 and -1 on all axes, if the charges allow them.

    >>> units_of([[Fraction(1), Fraction(-1)]]), units_of([[Fraction(1), Fraction(2)]])
    ([Fraction(1, 1), Fraction(-1, 1)], None)
    """
    total = [sum(column) for column in zip(*vectors, strict=True)] if vectors else []
    for vector in (total, *vectors):
        if vector and all(abs(charge) == 1 for charge in vector):
            return [Fraction(charge) for charge in vector]
    return None


def _pairs(root: Node, hidden: Hidden) -> Iterator[_Make]:
    """Rotations of pairs of units, as in rotary embeddings: a space that an axis has twice."""
    if "monomial" not in root.flags:
        return
    places = hidden.places[root]
    twins: dict[Any, list[Place]] = {}
    for part, axis, item in places:
        if part.path:
            others = tuple(start for k, start in enumerate(part.starts) if k != axis)
            twins.setdefault((part.path, axis, others, item.length, item.stride), []).append(
                (part, axis, item)
            )
    if any(len(two) != 2 for two in twins.values()):
        return
    units = units_of(hidden.vectors(root))
    charges = {id(item): float(units[k]) if units else 1.0 for k, (_, _, item) in enumerate(places)}

    def make(order: Sequence[Node], unit: bool) -> Space:
        found: dict[Site, list[tuple[Place, float]]] = {}
        for two in twins.values():
            (part, axis, item), (other, _, _) = two
            site = site_of(part, axis, item, order, apart=other.starts[axis] - part.starts[axis])
            found.setdefault(site, []).extend((place, 1.0 if unit else charges[id(item)]) for place in two)
        shape = (*lengths_of(order), root.length), 2
        group = with_per(ScaledRotation, shape, unit=True) if unit else with_per(ScaledRotation, shape)
        return Space(group, tuple(_spec(site, same) for site, same in found.items()), NO_GAP)

    for unit in (False, True) if units else (True,):
        yield functools.partial(make, unit=unit)


def _scales(root: Node, hidden: Hidden) -> Iterator[_Make]:
    places = hidden.places[root]
    for vector in hidden.new_vectors(root):
        denominator = math.lcm(*(charge.denominator for charge in vector))
        whole = [charge * denominator for charge in vector]
        yield lambda order, whole=whole: Space(
            with_per(PositiveDiagonal, (lengths_of(order), root.length)),
            specs_of(places, whole, order),
            NO_GAP,
        )


def _signs(root: Node, hidden: Hidden) -> Iterator[_Make]:
    places = hidden.places[root]
    for vector in hidden.new_vectors(root, signs=True):
        yield lambda order, vector=vector: Space(
            with_per(SignDiagonal, (lengths_of(order), root.length)), specs_of(places, vector, order), NO_GAP
        )


def _permutations(root: Node, hidden: Hidden) -> Iterator[_Make]:
    if "ordered" not in root.flags:
        places = hidden.places[root]
        ones = [1] * len(places)
        yield lambda order: Space(
            with_per(Permutation, (lengths_of(order), root.length)), specs_of(places, ones, order), NO_GAP
        )


def site_of(
    part: Part, axis: int, item: Item, order: Sequence[Node], *, apart: int = 0, blurred: bool = False
) -> Site:
    """Where a space acts in one part of an array, with these indices.

    With `apart`, pairs of entries so far apart are the units, and the space is the last index. With `blurred`
    all entries behind a unit transform alike, also those of other parts. Raises ValueError if no site can
    express it.

    >>> import jax, jax.numpy as jnp
    >>> from symmetrax.discovery._trace._reader import read
    >>> program = jax.make_jaxpr(lambda a, b: jnp.sum((a @ b) ** 2))(jnp.ones((3, 2)), jnp.ones((2, 3)))
    >>> hidden = Hidden(read(program, ["a", "b"]))
    >>> part, axis, item = [*hidden.places.values()][1][0]
    >>> site_of(part, axis, item, []).axis
    1
    """
    lead: list[tuple[int, int]] = []
    place: dict[Node, int] = {}
    for k, items in enumerate(part.items):
        for at, other in enumerate(items):
            if k == axis or other.node.root not in order:
                continue
            if at or part.starts[k] or (len(items) == 1) != (other.length == part.shape[k]):
                raise ValueError("an index is inside another axis")
            lead.append((k, other.length))
            place[other.node.root] = k - len(part.items)
    factors: list[tuple[int, int, str]] = []
    for at, other in enumerate(part.items[axis]):
        if other is not item:
            index = other.node.root in order
            place |= {other.node.root: at} if index else {}
            factors.append((other.length, other.stride, "index" if index else "copy"))
        elif apart:
            factors += [(item.length, item.stride, "index"), (2, apart, "unit")]
        else:
            factors.append((item.length, item.stride, "unit"))
    if sorted(order, key=lambda node: place[node]) != list(order):
        raise ValueError("indices stand in another order")
    factors.sort(key=lambda factor: -factor[1])
    start = part.starts[axis]
    if blurred:
        behind = [factor for factor in factors if factor[1] < item.stride]
        if any(role == "index" for _, _, role in behind):
            raise ValueError("an index behind units of several parts")
        factors = [*factors[: len(factors) - len(behind)], (item.stride, 1, "copy")]
        start -= start % item.stride
    size = 2 if apart else item.length
    layout = _layout(_merged(factors), start)
    return Site(part.path, part.shape, axis, size, tuple(lead), **layout)


def _layout(factors: list[tuple[int, int, str]], start: int) -> dict[str, int]:
    """The layout of a site from the factors of an axis, slowest first: their lengths, strides and roles."""
    wrong = ValueError("a layout that no site has")
    at = next(k for k, (_, _, role) in enumerate(factors) if role == "unit")
    before, (size, stride, _), after = factors[:at], factors[at], factors[at + 1 :]
    layout, names, behind = {}, ["third", "tail"], stride
    for length, step, role in after:
        name = "third" if role == "index" else "tail"
        if name not in names or behind != length * step:
            raise wrong
        names = names[names.index(name) + 1 :]
        layout[name], behind = length, step
    if behind != 1:
        raise wrong
    block = size * stride
    if len(before) > 1 and before[-1][2] == "index" and before[-1][1] == block:
        layout["second"] = before[-1][0]
        block *= before.pop()[0]
    extent = block
    if before and before[-1][2] == "copy":
        layout["repeats"], block, _ = before.pop()
        if before and before[-1][1] != layout["repeats"] * block:
            raise wrong
        if before:
            layout["first"] = before[-1][0]
    elif before:
        layout["first"], block, _ = before[-1]
    if len(before) > 1 or (before and before[-1][2] != "index"):
        raise wrong
    if extent == block:
        return layout | {"start": start, "stride": block}
    return layout | {"start": start - start % block, "offset": start % block, "stride": block}


def _merged(factors: Sequence[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """Joins neighbouring factors along which an element acts many times."""
    out: list[tuple[int, int, str]] = []
    for length, stride, role in factors:
        if out and role == out[-1][2] == "copy" and out[-1][1] == length * stride:
            out[-1] = (out[-1][0] * length, stride, role)
        else:
            out.append((length, stride, role))
    return out
