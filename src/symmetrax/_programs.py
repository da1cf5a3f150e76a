"""Programs that compile once, because a function is identified by its computation, not its object identity.

JAX caches a compiled program by the function object. If a loop creates a closure at every step, such as
`lambda w: loss(w, batch)`, or a branch function for control flow, every step compiles a new program. Here a
call is traced, the arrays that it closes over become arguments, and a program for the same computation is
looked up by the equations of the trace.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer, eval_jaxpr
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from jaxtyping import PyTree

#: The numbers of programs kept, and of functions kept with their closures; the oldest are dropped.
KEPT, KEPT_FUNCTIONS = 256, 32

#: Primitives with custom rules for derivatives or `vmap`, and the parameter that holds their program. The
#: rules do not matter: compiled programs are neither differentiated nor mapped.
WITH_RULES = {"custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr", "custom_vmap_call": "call"}

#: Errors raised in a trace by a function that depends on the values of its arguments.
LOOKS_AT_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


def once(fun: Callable, *args: Any) -> Any:
    """`fun(*args)` as one program, compiled once for all functions with the same computation.

    Arrays and numbers among the arguments are inputs of the program; everything else is part of the function,
    which is traced at every call. This is a plain call inside compiled code, under transformations, and if
    `fun` depends on the values of its arguments, as a search on the host does.

    >>> import jax.numpy as jnp
    >>> [float(once(lambda x: rate * x, jnp.array(3.0))) for rate in jnp.array([1.0, 2.0])]
    [3.0, 6.0]
    """
    if _underway(args):
        return fun(*args)
    numbers, rest = eqx.partition(jax.tree.map(_as_array, args), eqx.is_array)
    return _run(_tracer(fun, _Rest(rest)), numbers, lambda: fun(*args))


def compiled(fun: Callable) -> Callable:
    """Like `equinox.filter_jit`, but recreated functions and optimizers do not trigger recompilation.

    A function among the arguments is traced once per object, and compiled once for all objects with the same
    computation.

    >>> import jax.numpy as jnp
    >>> at_three = compiled(lambda f, x: f(x))
    >>> [float(at_three(lambda x: x + 1, jnp.array(3.0))) for _ in range(2)]
    [4.0, 4.0]
    """
    inside = eqx.filter_jit(fun)
    known = functools.lru_cache(maxsize=KEPT_FUNCTIONS)(functools.partial(_tracer, fun))

    @functools.wraps(fun)
    def call(*args: Any) -> Any:
        if _underway(args):
            return inside(*args)
        numbers, rest = eqx.partition(args, eqx.is_array)
        return _run(known(_Rest(rest)), numbers, lambda: inside(*args))

    return call


def opened(fun: Callable, *example: PyTree) -> tuple[Callable, list]:
    """Returns `fun` as a function of its constants and its arguments, and the constants.

    The constants are the numbers and arrays that `fun` closes over, and anything computed from these alone.
    So a function that is recreated with other numbers, or for another part of the data, differs only in its
    constants. `fun` is traced at `example`; for arguments of other shapes or dtypes, `fun` itself is called.

    >>> import jax.numpy as jnp
    >>> data = jnp.arange(6.0).reshape(2, 3)
    >>> apply, constants = opened(lambda w: 0.5 * jnp.sum(w * data[1]), jnp.ones(3))
    >>> float(apply(constants, jnp.ones(3)))
    6.0
    """
    if _underway(example):
        return lambda _, *args: fun(*args), []
    numbers, rest = eqx.partition(example, eqx.is_array)
    traced = _traced(_tracer(fun, _Rest(rest)), numbers)
    if traced is None:
        return lambda _, *args: fun(*args), []
    steps: list[_Step] = []
    inputs = [_Later() for _ in traced.jaxpr.jaxpr.invars]
    results = _open(traced.jaxpr, inputs, steps)
    refs = [ref for step in steps for ref in step.inputs] + results
    known = list({id(ref): ref for ref in refs if isinstance(ref, _Known)}.values())
    expected, structure = _signature(example), jax.tree.structure(traced.out_info)

    def apply(constants: list, *args: PyTree) -> Any:
        if _signature(args) != expected:
            return fun(*args)
        given = jax.tree.leaves(eqx.filter(args, eqx.is_array))
        values: dict[Any, Any] = dict(zip([*known, *inputs], [*constants, *given], strict=True))
        for step in steps:
            outputs = _bind(step.equation, [values[ref] for ref in step.inputs])
            values.update(zip(step.outputs, outputs, strict=True))
        return _whole(jax.tree.unflatten(structure, [values[ref] for ref in results]))

    return apply, [jnp.asarray(ref.value) for ref in known]


class _Rest:
    """The non-array arguments; equal to others that define the same function."""

    def __init__(self, tree: PyTree):
        leaves, structure = jax.tree.flatten(tree)
        self.tree, self._parts = tree, (structure, leaves)

    @functools.cached_property
    def key(self) -> Any:
        structure, leaves = self._parts
        return structure, tuple(_key(leaf) for leaf in leaves)

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Rest) and self.key == other.key


@jax.tree_util.register_static
class _Aside:
    """The non-array results, kept in their tree structure."""

    def __init__(self, tree: PyTree):
        self.tree = tree


def _tracer(fun: Callable, rest: _Rest) -> Any:
    """Returns `fun` as a function of its arrays alone, ready for tracing."""

    def of_arrays(numbers: PyTree) -> tuple[PyTree, _Aside]:
        arrays, aside = eqx.partition(fun(*eqx.combine(numbers, rest.tree)), eqx.is_array)
        return arrays, _Aside(aside)

    return jax.jit(of_arrays)


def _whole(result: tuple[PyTree, _Aside]) -> Any:
    return eqx.combine(result[0], result[1].tree)


def _traced(tracer: Any, numbers: PyTree) -> Any:
    """Returns the trace, or None if `fun` depends on values or closes over those of an outer derivative."""
    try:
        traced = tracer.trace(numbers)
    except LOOKS_AT_VALUES:
        return None
    # Values of an outer derivative that the function closes over appear as constants or as additional inputs.
    own = len(traced.jaxpr.jaxpr.invars) == len(jax.tree.leaves(numbers))
    return traced if own and not any(isinstance(x, Tracer) for x in traced.jaxpr.consts) else None


def _run(tracer: Any, numbers: PyTree, plainly: Callable[[], Any]) -> Any:
    traced = _traced(tracer, numbers)
    if traced is None:
        return plainly()
    results = _program_of(traced.jaxpr.jaxpr)(traced.jaxpr.consts, *jax.tree.leaves(numbers))
    return _whole(jax.tree.unflatten(jax.tree.structure(traced.out_info), results))


class _Trace:
    """The equations of a trace; equal to another with the same computation and input types."""

    def __init__(self, jaxpr: Jaxpr):
        self.jaxpr, self.key = jaxpr, _key(jaxpr)
        self.hash = hash(self.key)

    def __hash__(self) -> int:
        return self.hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Trace) and self.key == other.key


@functools.lru_cache(maxsize=KEPT)
def _program_of(jaxpr: Jaxpr) -> Callable:
    # Repeated calls of a function share a trace: reading it again would take longer than running the program.
    return _program(_Trace(jaxpr))


@functools.lru_cache(maxsize=KEPT)
def _program(trace: _Trace) -> Callable:
    return jax.jit(functools.partial(eval_jaxpr, trace.jaxpr))


class _Same:
    """An object that equals only itself."""

    def __init__(self, value: Any):
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value


def _key(value: Any) -> Any:
    """Returns a key to compare and hash instead of `value`: equal only for equal computations."""
    match value:
        case ClosedJaxpr():
            return _key(value.jaxpr), tuple(_Same(constant) for constant in value.consts)
        case Jaxpr():
            return _jaxpr_key(value)
        case tuple() | list():
            return type(value), tuple(_key(part) for part in value)
        case dict():
            return dict, tuple((name, _key(value[name])) for name in sorted(value, key=str))
        case float():
            return float, value.hex()
        case np.ndarray() | np.generic():
            return value.dtype, value.shape, value.tobytes()
    try:
        hash(value)
    except TypeError:
        return _Same(value)
    return type(value), value


def _jaxpr_key(jaxpr: Jaxpr) -> Any:
    numbers = {var: i for i, var in enumerate([*jaxpr.constvars, *jaxpr.invars])}
    given = tuple(var.aval for var in numbers)
    equations = []
    for equation in jaxpr.eqns:
        inputs = tuple(_atom_key(atom, numbers) for atom in equation.invars)
        numbers.update((var, len(numbers) + i) for i, var in enumerate(equation.outvars))
        params = equation.params
        if equation.primitive.name in WITH_RULES:
            params = {"program": params[WITH_RULES[equation.primitive.name]]}
        outputs = tuple(var.aval for var in equation.outvars)
        equations.append((equation.primitive, inputs, outputs, _key(dict(params)), equation.ctx))
    results = tuple(_atom_key(atom, numbers) for atom in jaxpr.outvars)
    return len(jaxpr.constvars), given, tuple(equations), results


def _atom_key(atom: Any, numbers: dict[Any, int]) -> Any:
    return (atom.aval, _key(np.asarray(atom.val))) if isinstance(atom, Literal) else numbers[atom]


class _Known:
    """A value that follows from constants."""

    def __init__(self, value: Any):
        self.value = value


class _Later:
    """A value that depends on the arguments."""


class _Step:
    """An equation that remains to be evaluated, with known and unknown inputs."""

    def __init__(self, equation: JaxprEqn, inputs: list, outputs: list):
        self.equation, self.inputs, self.outputs = equation, inputs, outputs


def _open(closed: ClosedJaxpr, inputs: Sequence[Any], steps: list[_Step]) -> list[Any]:
    """Returns the results of a trace; appends to `steps` the equations that depend on the arguments."""
    jaxpr = closed.jaxpr
    known = [_Known(constant) for constant in closed.consts]
    values: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*known, *inputs], strict=True))

    def read(atom: Any) -> Any:
        return _Known(atom.val) if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        read_in = [read(atom) for atom in equation.invars]
        if _calls_with_constants(equation):
            outputs = _open(equation.params["jaxpr"], read_in, steps)
        elif _can_be_done(equation, read_in):
            outputs = [_Known(x) for x in _bind(equation, [jnp.asarray(ref.value) for ref in read_in])]
        else:
            outputs = [_Later() for _ in equation.outvars]
            steps.append(_Step(equation, read_in, outputs))
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _calls_with_constants(equation: JaxprEqn) -> bool:
    """Returns whether this calls a compiled function that closes over arrays."""
    inner = equation.params.get("jaxpr")
    return (
        equation.primitive.name in ("jit", "pjit") and isinstance(inner, ClosedJaxpr) and bool(inner.consts)
    )


def _can_be_done(equation: JaxprEqn, inputs: list[Any]) -> bool:
    """Returns whether an equation follows from constants, without requiring compilation."""
    known = all(isinstance(ref, _Known) for ref in inputs)
    closes_over = any(not isinstance(atom, Literal) for atom in equation.invars)
    return known and closes_over and not equation.effects and not programs_in(equation)


def programs_in(equation: JaxprEqn) -> list[Jaxpr]:
    """The programs that an equation runs: bodies of loops, branches, functions called.

    >>> loop = jax.make_jaxpr(lambda x: jax.lax.fori_loop(0, 3, lambda i, x: 2 * x, x))(1.0)
    >>> [len(programs_in(equation)) for equation in loop.eqns]
    [1]
    """
    parts = jax.tree.leaves([*equation.params.values()])
    return [x.jaxpr if isinstance(x, ClosedJaxpr) else x for x in parts if isinstance(x, ClosedJaxpr | Jaxpr)]


def _bind(equation: JaxprEqn, values: list[Any]) -> list[Any]:
    """Evaluates an equation."""
    primitive = equation.primitive
    bound = primitive.get_bind_params(equation.params)
    functions, params = bound if isinstance(bound, tuple) else ((), bound)  # a tuple before JAX 0.10
    outputs = primitive.bind(*functions, *values, **params)
    return list(outputs) if primitive.multiple_results else [outputs]


def _signature(args: PyTree) -> Any:
    leaves, structure = jax.tree.flatten(args)
    return structure, [(x.shape, x.dtype) if eqx.is_array(x) else x for x in leaves]


def _underway(args: Any) -> bool:
    """Returns whether a trace is in progress, for a program or a derivative, or compilation is disabled."""
    if jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue]
        return True
    leaves = jax.tree.leaves(args)
    return any(isinstance(leaf, Tracer) for leaf in leaves) or isinstance(jnp.zeros(()), Tracer)


def _as_array(leaf: Any) -> Any:
    return jnp.asarray(leaf) if isinstance(leaf, bool | int | float | complex | np.generic) else leaf
