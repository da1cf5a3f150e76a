"""Reading the program of a loss, until every space is cut where the program cuts it."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from symmetrax.discovery._double import CALLS, PROGRAMS, SILENT
from symmetrax.discovery._trace._laws import Laws, Operation, joined_data
from symmetrax.discovery._trace._layout import spread
from symmetrax.discovery._trace._nodes import DATA, Form, Node
from symmetrax.discovery._trace._rules import ENTRYWISE, rule_of
from symmetrax.discovery._trace._trees import Part, Source
from symmetrax.discovery._trace._values import (
    Factor,
    Plain,
    Stacked,
    Value,
    alike,
    data,
    opaque,
    plains,
)

#: How often a program is read at most: each time spaces are cut further.
MOST_READINGS = 40

#: Constants larger than this are taken for data without looking.
MOST_CONSTANTS = 1 << 22


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a program says: the parts of all arrays with their spaces, and the laws between these.

    >>> import jax.numpy as jnp
    >>> program = jax.make_jaxpr(lambda w: jnp.sum(jnp.tanh(w)))(jnp.ones((2, 3)))
    >>> reading = read(program, ["w"])
    >>> [item.node.root.length for axis in reading.parts[0].items for item in axis]
    [2, 3]
    """

    parts: list[Part]
    laws: Laws
    unknown: tuple[str, ...]

    @functools.cached_property
    def charges(self) -> dict[int, list[Form]]:
        """The laws of charges, by each of their variables."""
        return _by_variable(self.laws.charges)

    @functools.cached_property
    def signs(self) -> dict[int, list[Form]]:
        """The laws of signs, by each of their variables."""
        return _by_variable(self.laws.signs)


def _by_variable(forms: Sequence[Form]) -> dict[int, list[Form]]:
    found: dict[int, list[Form]] = {}
    different = {tuple(sorted(form.items())): form for form in forms}
    for form in different.values():
        for variable in form:
            found.setdefault(variable, []).append(form)
    return found


def read(program: ClosedJaxpr, paths: Sequence[str]) -> Reading | None:
    """Reads a program whose first inputs are the arrays `paths`, and the others data.

    Returns None if it asks for ever finer cuts.

    >>> import jax.numpy as jnp
    >>> program = jax.make_jaxpr(lambda w: jnp.sum(w[:2] * w[2:]))(jnp.ones(4))
    >>> [part.starts for part in read(program, ["w"]).parts]
    [(0,), (2,)]
    """
    shapes = [_shape(variable) for variable in program.jaxpr.invars]
    sources = [Source(path, shape) for path, shape in zip(paths, shapes, strict=False)]
    states: dict[Any, list[Source]] = {}
    for _ in range(MOST_READINGS):
        reader = _Reader(states)
        inputs = [source.value(reader.counter, reader.parts) for source in sources]
        inputs += [opaque(shape) for shape in shapes[len(paths) :]]
        outputs = reader.run(program.jaxpr, program.consts, inputs, ())
        for value in outputs:
            for plain in plains(value):
                for axis in plain.axes:
                    for factor in axis:
                        reader.laws.zero(factor)
        if not _cut(reader.parts):
            return Reading(reader.parts, reader.laws, tuple(sorted(reader.unknown)))
    return None


def _cut(parts: Sequence[Part]) -> bool:
    """Makes the cuts that were asked for; returns whether there were any."""
    changed = False
    done: set[int] = set()
    for part in parts:
        for item in (item for axis in part.items for item in axis):
            root = item.node.root
            if root is DATA or not root.wanted or id(item.tree) in done or item.tree.kind != "whole":
                continue
            kind, lengths = _finest(root)
            if kind:
                item.tree.become(kind, lengths)
                done.add(id(item.tree))
                changed = True
    return changed


def _finest(node: Node) -> tuple[str, tuple[int, ...]]:
    """The first of the cuts that were asked of a space: factors, as fine as all ask for, or pieces."""
    factors = [lengths for kind, lengths in node.wanted if kind == "factors"]
    if factors:
        marks = {node.length}
        for lengths in factors:
            behind = math.prod(lengths)
            for length in lengths:
                behind //= length
                marks.add(behind)
        ordered = sorted(marks, reverse=True)
        if any(a % b for a, b in itertools.pairwise(ordered)):
            node.join(DATA)
            return "", ()
        return "factors", tuple(a // b for a, b in itertools.pairwise(ordered))
    places = {place for _, lengths in node.wanted for place in itertools.accumulate(lengths)}
    ends = [0, *sorted(places)]
    return "cuts", tuple(b - a for a, b in itertools.pairwise(ends))


class _Reader:
    """One reading: the spaces and laws found so far. `states` are those of loops, kept between readings."""

    def __init__(self, states: dict[Any, list[Source]]):
        self.laws, self.parts, self.counter = Laws(), [], itertools.count()
        self.states, self.unknown = states, set[str]()

    def run(
        self, program: Jaxpr, consts: Sequence[Any], inputs: Sequence[Value], where: tuple[int, ...]
    ) -> list[Value]:
        """The values of a program's results; `where` is the place of this program in those around it."""
        known: dict[Any, Value] = {}
        for variable, value in zip(program.constvars, consts, strict=True):
            known[variable] = _given(value)
        for variable, value in zip(program.invars, inputs, strict=True):
            known[variable] = value

        def value_of(atom: Any) -> Value:
            return _given(atom.val) if isinstance(atom, Literal) else known[atom]

        for number, equation in enumerate(program.eqns):
            if equation.primitive.name in SILENT:
                continue
            found = self._equation(equation, [value_of(atom) for atom in equation.invars], (*where, number))
            for variable, value in zip(equation.outvars, found, strict=True):
                known[variable] = value
        return [value_of(atom) for atom in program.outvars]

    def _equation(self, equation: JaxprEqn, inputs: list[Value], where: tuple[int, ...]) -> list[Value]:
        name, params = equation.primitive.name, equation.params
        shapes = [_shape(variable) for variable in equation.outvars]
        if name in CALLS:
            inner = next(params[key] for key in PROGRAMS if key in params)
            closed = inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ())
            return self.run(closed.jaxpr, closed.consts, inputs, where)
        if name == "scan":
            return self._scan(params, inputs, where)
        if name == "while":
            return self._while(params, inputs, where)
        if name == "cond":
            return self._cond(params, inputs, where)
        rule = rule_of(name)
        if rule is None:
            if any(value.live for value in inputs):
                self.unknown.add(name)
                for value in inputs:
                    joined_data(value)
            return [opaque(shape) for shape in shapes]
        if name in ENTRYWISE:  # which take single numbers, and axes of length one, for whole arrays
            which = name == "select_n" and inputs[0].shape == ()
            inputs = [
                value if which and k == 0 else spread(value, shapes[0]) for k, value in enumerate(inputs)
            ]
        made = rule(Operation(self.laws, inputs, {key: _whole(x) for key, x in params.items()}, shapes[0]))
        return made if isinstance(made, list) else [made]

    def _scan(self, params: Mapping[str, Any], inputs: list[Value], where: tuple[int, ...]) -> list[Value]:
        consts, carries = params["num_consts"], params["num_carry"]
        layers = Node(params["length"])
        layers.mark("scan", "ordered")
        state = self._state(where, inputs[consts : consts + carries])
        sliced = [self._layer(value, layers) for value in inputs[consts + carries :]]
        closed = params["jaxpr"]
        out = self.run(closed.jaxpr, closed.consts, [*inputs[:consts], *state, *sliced], where)
        for before, after in zip(state, out[:carries], strict=True):
            self.laws.added([before, after])
        axis = (Factor(params["length"], layers),) if params["length"] > 1 else ()
        return [*state, *(_stacked(value, axis) for value in out[carries:])]

    def _while(self, params: Mapping[str, Any], inputs: list[Value], where: tuple[int, ...]) -> list[Value]:
        first, second = params["cond_nconsts"], params["body_nconsts"]
        state = self._state(where, inputs[first + second :])
        goes_on, body = params["cond_jaxpr"], params["body_jaxpr"]
        self.run(goes_on.jaxpr, goes_on.consts, [*inputs[:first], *state], (*where, 0))
        out = self.run(body.jaxpr, body.consts, [*inputs[first : first + second], *state], (*where, 1))
        for before, after in zip(state, out, strict=True):
            self.laws.added([before, after])
        return state

    def _cond(self, params: Mapping[str, Any], inputs: list[Value], where: tuple[int, ...]) -> list[Value]:
        joined_data(inputs[0])
        results = [
            self.run(branch.jaxpr, branch.consts, inputs[1:], (*where, k))
            for k, branch in enumerate(params["branches"])
        ]
        return [self.laws.added(values) for values in zip(*results, strict=True)]

    def _state(self, where: tuple[int, ...], initial: Sequence[Value]) -> list[Value]:
        """The state of a loop: new spaces that are equal to those it starts with."""
        sources = self.states.setdefault(where, [Source("", value.shape) for value in initial])
        state = [source.value(self.counter, self.parts) for source in sources]
        for value, start in zip(state, initial, strict=True):
            self.laws.added([value, start])
        return state

    def _layer(self, value: Value, layers: Node) -> Value:
        """What one pass of a loop sees of an array: all axes but the first, which is that of the passes."""
        if isinstance(value, Stacked):
            if value.axis == 0:
                return opaque(joined_data(value).shape[1:])
            return value.of([self._layer(part, layers) for part in value.parts], value.axis - 1)
        for factor in value.axes[0]:
            if factor.kind == "live" and factor.length == layers.length:
                factor.join(Factor(layers.length, layers))
                self.laws.zero(factor)
            elif factor.kind == "live":
                joined_data(Plain((value.axes[0],)))
        return value.along(*value.axes[1:])


def _stacked(value: Value, axis: tuple[Factor, ...]) -> Value:
    if isinstance(value, Stacked):
        return value.of([_stacked(part, axis) for part in value.parts], value.axis + 1)
    return value.along(axis, *value.axes)


def _whole(x: Any) -> Any:
    """A parameter with NumPy's integers, of which some programs are made, as those of Python."""
    if isinstance(x, np.integer):
        return int(x)
    return tuple(map(_whole, x)) if type(x) is tuple else x


def _shape(variable: Any) -> tuple[int, ...]:
    return tuple(variable.aval.shape)


def _given(value: Any) -> Plain:
    """A constant of a program: along which axes its entries are alike."""
    shape = tuple(np.shape(value))
    dtype = getattr(value, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.extended):
        return opaque(shape)
    if math.prod(shape) > MOST_CONSTANTS:
        return opaque(shape)
    numbers = np.asarray(value)
    if numbers.dtype.kind not in "biufc":
        numbers = numbers.astype(np.float32)
    zero = not np.any(numbers)
    same = [
        bool(np.all(numbers == np.take(numbers, [0], axis=k))) if n else True for k, n in enumerate(shape)
    ]
    axes = tuple(alike(n) if equal else data(n) for n, equal in zip(shape, same, strict=True))
    return Plain(axes, zero)
