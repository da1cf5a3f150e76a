"""Compiling a loss, and what can be known of it before it is evaluated."""

import inspect
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, Literal
from jaxtyping import Array, PyTree

from symmetrax._programs import programs_in
from symmetrax.discovery._double import InDouble
from symmetrax.discovery._memory import Memory


def compiled(fun: Callable, *, lean: bool = False) -> Callable:
    """Compiles a function of (arrays, rest, batch) as one of ((rest, batch), arrays).

    If it is `lean`, its results take the place of the arrays.

    >>> compiled(lambda arrays, rest, batch: [2 * arrays[0]])((None, None), [jnp.ones(2)])[0].tolist()
    [2.0, 2.0]
    """

    def swapped(others: tuple[PyTree, Any], arrays: list[Array]) -> Any:
        return fun(arrays, *others)

    return eqx.filter_jit(swapped, donate="all-except-first" if lean else "none")


def fitting(
    program: InDouble, others: tuple[PyTree, Any], like: list[jax.ShapeDtypeStruct], memory: Memory
) -> tuple[Callable, bool]:
    """Compiles the program of the gradient, if memory is bounded, and says whether it is lean.

    Raises ValueError if the compiled program needs more memory than there may be.

    >>> with jax.enable_x64(True):
    ...     like = [jax.ShapeDtypeStruct((1000,), np.float64)]
    ...     program = InDouble(lambda arrays, *_: (0.0, arrays), [np.float64], x64=True)
    ...     memory = Memory(10**5, size=8000, largest=8000, trials=3)
    ...     print(memory.lean, fitting(program, (None, None), like, memory)[1])
    True True
    """
    lean = memory.lean
    if memory.bound is None:
        return compiled(program, lean=lean), lean
    made = compiled(program, lean=lean)
    taken = _taken(made, others, like)
    if not lean and memory.needed(taken, lean=False) > memory.bound:
        lean, made = True, compiled(program, lean=True)
        taken = _taken(made, others, like)
    if lean:
        memory.check(taken)
    return made, lean


def _taken(made: Any, others: tuple[PyTree, Any], like: list[jax.ShapeDtypeStruct]) -> int:
    """The bytes of a compiled program: what goes in, what comes out, and what is temporary."""
    shapes = [np.broadcast_to(np.zeros((), x.dtype), x.shape) for x in like]  # take no memory
    try:
        sizes = made.lower(others, shapes).compile().compiled.memory_analysis()
    except Exception:  # it cannot be widened, for instance: the first call, which follows, deals with that
        return 0
    if sizes is None:  # some devices do not say
        return 0
    alone = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return alone + sizes.temp_size_in_bytes


def needs_batch(loss: Callable) -> bool:
    """Whether a loss cannot be called with the parameters alone.

    >>> needs_batch(lambda params, batch: 0), needs_batch(lambda params, batch=None: 0)
    (True, False)
    """
    try:
        parameters = inspect.signature(loss).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = (p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))
    return sum(p.default is p.empty for p in positional) > 1


def dtypes_in(jaxpr: Jaxpr) -> set:
    """The dtypes of all floating-point numbers in a program, except constants.

    >>> program = jax.make_jaxpr(lambda x: x.astype(jnp.bfloat16) * 2)(jnp.ones(2, jnp.float32))
    >>> sorted(map(str, dtypes_in(program.jaxpr)))
    ['bfloat16', 'float32']
    """
    made = [equation for equation in jaxpr.eqns if not all(isinstance(x, Literal) for x in equation.invars)]
    values = [*jaxpr.invars, *(value for equation in made for value in equation.outvars)]
    dtypes = {getattr(value.aval, "dtype", None) for value in values}
    found = {dtype for dtype in dtypes if dtype is not None and jnp.issubdtype(dtype, jnp.inexact)}
    for equation in jaxpr.eqns:
        for inner in programs_in(equation):
            found |= dtypes_in(inner)
    return found
