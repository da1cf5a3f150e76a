"""Evaluates a loss in double precision, however it was written, by tracing and widening its program.

Casting the parameters is not enough: losses close over single-precision arrays, cast to short floats, are
already compiled, or draw random numbers that depend on the precision. A traced program exposes all of this.
"""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from jaxtyping import Array, PyTree

#: Machine epsilon of the floats that programs are run with.
DOUBLE = float(np.finfo(np.float64).eps)

#: Primitives that only call another program, and the parameters that hold it. Custom derivatives have already
#: been applied, because the traced programs include differentiation.
CALLS = (
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "remat",
    "remat2",
    "checkpoint",
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_vjp_call_jaxpr",
    "custom_vmap_call",
    "custom_partitioning",
)
PROGRAMS = ("jaxpr", "call_jaxpr", "fun_jaxpr", "call")

#: Primitives that need their original dtypes: code outside JAX, and operations on bits.
FOREIGN = ("pure_callback", "io_callback", "ffi_call", "pallas_call", "bitcast_convert_type")

#: Primitives without a result.
SILENT = ("debug_callback", "debug_print")


class InDouble:
    """Runs `fun(arrays, rest, batch)`, which takes arrays of these dtypes, on double-precision arrays.

    `x64` says whether `fun` is traced with double precision enabled. `precision` is the machine epsilon of
    the coarsest numbers that depend on the arrays: double precision, unless code outside JAX computes with
    less.

    >>> third = InDouble(lambda arrays, rest, batch: arrays[0] / jnp.float32(3), [jnp.float32], x64=False)
    >>> with jax.enable_x64(True):
    ...     print(third([jnp.asarray(1.0)], None, None))
    0.3333333333333333
    """

    def __init__(self, fun: Callable[..., PyTree], dtypes: Sequence[Any], *, x64: bool):
        self.precision = DOUBLE
        self._fun, self._dtypes, self._x64 = fun, dtypes, x64

    def __call__(self, arrays: list[Array], rest: PyTree, batch: PyTree) -> PyTree:
        data, static = eqx.partition((rest, batch), eqx.is_array)

        def plain(arrays: list[Array], data: PyTree) -> PyTree:
            return self._fun(arrays, *eqx.combine(data, static))

        with jax.enable_x64(self._x64):
            given = [jax.ShapeDtypeStruct(x.shape, d) for x, d in zip(arrays, self._dtypes, strict=True)]
            program, out = jax.make_jaxpr(plain, return_shape=True)(given, jax.tree.map(_struct, data))
        others = jax.tree.leaves(data)
        live = [*[True] * len(arrays), *[False] * len(others)]
        results = self._run(program.jaxpr, program.consts, [*arrays, *others], live)
        return jax.tree.unflatten(jax.tree.structure(out), results)

    def _run(
        self, program: Jaxpr, consts: Sequence[Any], inputs: Sequence[Any], live: Sequence[bool]
    ) -> list[Any]:
        """Runs a program and returns its results; `live` inputs depend on the parameters."""
        # Equations are evaluated one by one, as `jax.core.eval_jaxpr` does, but on wider numbers.
        known: dict[Any, Any] = {}
        for variable, x in zip([*program.constvars, *program.invars], [*consts, *inputs], strict=True):
            known[variable] = _cast(x, _wide(_dtype(variable)))
        moving = {variable for variable, moves in zip(program.invars, live, strict=True) if moves}

        def read(atom: Any) -> Any:
            return _cast(atom.val, _wide(_dtype(atom))) if isinstance(atom, Literal) else known[atom]

        for equation in program.eqns:
            if equation.primitive.name in SILENT:
                continue
            alive = [not isinstance(atom, Literal) and atom in moving for atom in equation.invars]
            results = self._equation(equation, [read(atom) for atom in equation.invars], alive)
            for variable, x in zip(equation.outvars, results, strict=True):
                known[variable] = _cast(x, _wide(_dtype(variable)))
                if any(alive):
                    moving.add(variable)
        return [read(atom) for atom in program.outvars]

    def _equation(self, equation: JaxprEqn, inputs: Sequence[Any], live: Sequence[bool]) -> Sequence[Any]:
        name, params = equation.primitive.name, equation.params
        if name in CALLS:
            program = next(params[key] for key in PROGRAMS if key in params)
            closed = program if isinstance(program, ClosedJaxpr) else ClosedJaxpr(program, ())
            return self._run(closed.jaxpr, closed.consts, inputs, live)
        if name in FOREIGN:
            narrow = [_dtype(atom) for atom in equation.invars]
            for dtype in (*narrow, *(_dtype(variable) for variable in equation.outvars)) if any(live) else ():
                if _is_float(dtype):
                    self.precision = max(self.precision, float(jnp.finfo(dtype).eps))
            inputs = [_cast(x, dtype) for x, dtype in zip(inputs, narrow, strict=True)]
        elif name == "reduce_precision":  # rounds on purpose, to fewer bits than are wanted here
            return inputs
        else:
            params = {key: self._parameter(x, any(live)) for key, x in params.items()}
            if "precision" in params:  # the matmul precision setting, which is for short floats
                params["precision"] = None
        results = equation.primitive.bind(*inputs, **params)
        return results if equation.primitive.multiple_results else [results]

    def _parameter(self, x: Any, live: bool) -> Any:
        """Widens a parameter of an operation: a dtype, a program (of a loop or branch), or a tuple."""
        # Loops and branches hold programs of their own, which are traced again on wider inputs.
        if isinstance(x, ClosedJaxpr):
            inputs = [jax.ShapeDtypeStruct(v.aval.shape, _wide(_dtype(v))) for v in x.jaxpr.invars]
            lives = [live] * len(inputs)
            return jax.make_jaxpr(lambda *inputs: self._run(x.jaxpr, x.consts, inputs, lives))(*inputs)
        if isinstance(x, Jaxpr):
            return self._parameter(ClosedJaxpr(x, ()), live).jaxpr
        if isinstance(x, np.dtype) or (isinstance(x, type) and issubclass(x, np.generic)):
            return _wide(x)
        if isinstance(x, tuple):
            parts = [self._parameter(part, live) for part in x]
            return type(x)(*parts) if hasattr(x, "_fields") else tuple(parts)
        return x


def double_of(dtype: Any) -> Any:
    """The double-precision dtype for a floating-point dtype; complex stays complex.

    >>> double_of(jnp.bfloat16), double_of(np.complex64)
    (dtype('float64'), dtype('complex128'))
    """
    return np.dtype(np.complex128 if jnp.issubdtype(dtype, jnp.complexfloating) else np.float64)


def tolerances(precision: float) -> tuple[float, float]:
    """Rounding tolerances of a loss and of its gradients, for numbers with this machine epsilon.

    >>> tolerances(1e-16), tolerances(1e-7)
    ((1e-09, 1e-08), (1e-05, 0.01))
    """
    if precision < 1e-10:
        return 1e-9, 1e-8
    return (1e-5, 1e-2) if precision < 1e-6 else (4 * precision, min(0.5, 40 * precision))


def _is_float(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.inexact)


def _wide(dtype: Any) -> Any:
    """The wider dtype. Floats of one byte or less quantize on purpose, and stay."""
    return double_of(dtype) if _is_float(dtype) and np.dtype(dtype).itemsize > 1 else dtype


def _cast(x: Any, dtype: Any) -> Any:
    """Casts an array to this dtype; leaves extended dtypes such as keys unchanged."""
    if not jnp.issubdtype(dtype, jax.dtypes.extended) and getattr(x, "dtype", None) != dtype:
        return (
            jax.lax.convert_element_type(x, dtype)
            if isinstance(x, jax.Array)
            else np.asarray(x).astype(dtype)
        )
    return x


def _dtype(atom: Any) -> Any:
    return atom.aval.dtype


def _struct(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)
