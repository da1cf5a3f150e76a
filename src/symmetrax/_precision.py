"""The precision of the floats through which parameters enter a loss, read off its traced program."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, Literal
from jaxtyping import Array, PyTree

from symmetrax._programs import programs_in

#: Machine precision of float32 products on accelerators, by default.
SHORT_PRODUCTS = {"gpu": 2.0**-10, "tpu": 2.0**-7}


def coarsest(value_fn: Callable[[PyTree], Array], params: PyTree) -> float:
    """The coarsest machine precision of the floats through which `params` enter `value_fn(params)`.

    >>> coarsest(lambda w: jnp.sum(w.astype(jnp.bfloat16)), jnp.ones(3)) == float(jnp.finfo(jnp.bfloat16).eps)
    True
    """
    program = jax.make_jaxpr(value_fn)(params).jaxpr
    return max(_precisions(program, set(program.invars)), default=0.0)


def _precisions(program: Jaxpr, dependent: set[Any]) -> set[float]:
    """The precisions of all floats in a program that depend on the variables `dependent`."""
    # Only what depends on the parameters: a mask or an index in half precision moves no loss.
    found = {_eps(variable) for variable in dependent}
    for equation in program.eqns:
        inputs = [x for x in equation.invars if not isinstance(x, Literal) and x in dependent]
        if not inputs:
            continue
        dependent |= set(equation.outvars)
        found |= {_eps(variable) for variable in equation.outvars}
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            found.add(_product_eps(equation))
        # Conservative: all inputs of an inner program count as dependent, not only those that are.
        for inner in programs_in(equation):
            found |= _precisions(inner, set(inner.invars))
    return found


def _eps(variable: Any) -> float:
    dtype = getattr(variable.aval, "dtype", None)
    return float(jnp.finfo(dtype).eps) if dtype is not None and jnp.issubdtype(dtype, jnp.inexact) else 0.0


def _product_eps(equation: Any) -> float:
    """The precision of float32 products on accelerators, at default precision."""
    short = SHORT_PRODUCTS.get(jax.default_backend(), 0.0)
    precision = equation.params["precision"]
    pair = precision if isinstance(precision, tuple) else (precision,)
    default = all(side in (None, jax.lax.Precision.DEFAULT) for side in pair)
    return short if default and _eps(equation.outvars[0]) == float(jnp.finfo(jnp.float32).eps) else 0.0
