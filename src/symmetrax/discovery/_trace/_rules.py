"""Rules for the primitives of JAX that pass symmetries on; what has none lets nothing act on its inputs."""

from typing import Any

from symmetrax.discovery._trace._contractions import convolution, dot_general, reduce_extreme, reduce_sum
from symmetrax.discovery._trace._laws import Operation, Rule
from symmetrax.discovery._trace._layout import (
    along_data,
    broadcast,
    concatenate,
    dynamic_slice,
    dynamic_update_slice,
    pad,
    reshape,
    resize,
    slice_,
    split_,
    stack,
    transpose,
)
from symmetrax.discovery._trace._lookup import argmax, gather, one_hot, scatter, top_k
from symmetrax.discovery._trace._values import (
    Plain,
    Value,
)

#: Functions f(-x) = -f(x), f(-x) = f(x), and f(a x) = a f(x) for a > 0.
ODD = ("tanh", "sin", "asin", "atan", "sinh", "asinh", "atanh", "erf", "erf_inv", "sign", "tan", "cbrt")
EVEN = ("cos", "cosh", "abs")
HOMOGENEOUS = ("abs",)
#: Scales do not change their results.
CONSTANT = ("sign",)
OTHER = (
    "exp",
    "exp2",
    "log",
    "log1p",
    "expm1",
    "logistic",
    "erfc",
    "acos",
    "acosh",
    "floor",
    "ceil",
    "round",
)
OTHER += (
    "lgamma",
    "digamma",
    "is_finite",
    "not",
    "igamma",
    "bessel_i0e",
    "bessel_i1e",
    "clz",
    "population_count",
)
#: Each result is an input, or numbers that transform in the same way.
SAME = ("copy", "copy_p", "convert_element_type", "stop_gradient", "reduce_precision", "neg", "real", "imag")
SAME += ("conj", "name", "device_put", "optimization_barrier", "sharding_constraint", "pvary")
COMPARISONS = ("gt", "ge", "lt", "le", "eq", "ne")
EXTREMES = ("reduce_max", "reduce_min")
#: Primitives of arrays of one shape.
ENTRYWISE = (*COMPARISONS, "add", "sub", "mul", "div", "max", "min", "pow", "and", "or", "xor", "add_any")
ENTRYWISE += ("select_n", "clamp")


def rule_of(name: str) -> Rule | None:
    """The rule of a primitive; None for one about which nothing is known.

    >>> rule_of("tanh") is not None, rule_of("sort") is None
    (True, True)
    """
    if name in SAME:
        return lambda op: op.inputs
    if name in (*ODD, *EVEN, *OTHER):
        return lambda op: op.laws.map(
            op.inputs[0],
            odd=name in ODD,
            even=name in EVEN,
            homogeneous=name in HOMOGENEOUS,
            power=0 if name in CONSTANT else None,
        )
    return _RULES.get(name)


def _add(op: Operation) -> Value:
    return op.laws.added(op.inputs)


def _mul(op: Operation) -> Value:
    if op.inputs[0] is op.inputs[1]:
        return op.laws.squared(op.inputs[0])
    return op.laws.multiplied(*op.inputs)


def _div(op: Operation) -> Value:
    return op.laws.multiplied(*op.inputs, power=-1)


def _extreme(op: Operation) -> Value:
    return op.laws.map(op.laws.added(op.inputs), homogeneous=True)


def _compare(op: Operation) -> Value:
    for which, other in (op.inputs, op.inputs[::-1]):
        if isinstance(which, Plain) and len(which.points) == 1 and which.points[0] and not other.live:
            return one_hot(which, which.points[0])
    return op.laws.map(op.laws.added(op.inputs), power=0)


def _select(op: Operation) -> Value:
    return op.laws.chosen(op.inputs[0], op.inputs[1:])


def _power(op: Operation) -> Value:
    power = op.params["y"]
    if power == 2:
        return op.laws.squared(op.inputs[0])
    return op.laws.map(op.inputs[0], odd=power % 2 == 1, even=power % 2 == 0, power=power)


def _root(power: Any) -> Rule:
    return lambda op: op.laws.root(op.inputs[0], power)


def _pow(op: Operation) -> Value:
    base, exponent = op.inputs
    return op.laws.added([op.laws.map(base), op.laws.map(exponent)])


def _clamp(op: Operation) -> Value:
    return op.laws.map(op.inputs[1])


def _windows(op: Operation) -> list[int]:
    steps = op.params["window_strides"]
    return [k for k, n in enumerate(op.params["window_dimensions"]) if n > 1 or steps[k] > 1]


def _transformed(op: Operation) -> range:
    """The axes of a Fourier transform: the last ones."""
    rank = len(op.shape)
    return range(rank - len(op.params["fft_lengths"]), rank)


_RULES: dict[str, Rule] = {
    "add": _add,
    "sub": _add,
    "add_any": _add,
    "mul": _mul,
    "div": _div,
    "max": _extreme,
    "min": _extreme,
    **dict.fromkeys(COMPARISONS, _compare),
    **dict.fromkeys(("and", "or", "xor"), _compare),
    "select_n": _select,
    "integer_pow": _power,
    "square": lambda op: op.laws.squared(op.inputs[0]),
    "sqrt": _root(1),
    "rsqrt": _root(-1),
    "pow": _pow,
    "clamp": _clamp,
    "reduce_sum": reduce_sum,
    **dict.fromkeys(EXTREMES, reduce_extreme),
    "dot_general": dot_general,
    "conv_general_dilated": convolution,
    "reshape": reshape,
    "squeeze": resize,
    "expand_dims": resize,
    "transpose": transpose,
    "broadcast_in_dim": broadcast,
    "slice": slice_,
    "split": split_,
    "concatenate": concatenate,
    "stack": stack,
    "pad": pad,
    "gather": gather,
    "dynamic_slice": dynamic_slice,
    "dynamic_update_slice": dynamic_update_slice,
    "rev": along_data(lambda op: op.params["dimensions"]),
    "top_k": top_k,
    **dict.fromkeys(("argmax", "argmin"), argmax),
    **dict.fromkeys(("scatter", "scatter-add"), scatter),
    **dict.fromkeys(("cumsum", "cumlogsumexp"), along_data(lambda op: [op.params["axis"]])),
    **dict.fromkeys(("cummax", "cummin"), along_data(lambda op: [op.params["axis"]], homogeneous=True)),
    "reduce_window_max": along_data(_windows, homogeneous=True),
    "reduce_window_sum": along_data(_windows),
    "fft": along_data(_transformed),
}
