"""Rules for the primitives of JAX that pass symmetries on; what has none lets nothing act on its inputs."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from symmetrax.discovery._trace._laws import Laws, joined_data
from symmetrax.discovery._trace._nodes import Node
from symmetrax.discovery._trace._values import (
    Axis,
    Factor,
    Plain,
    Stacked,
    Value,
    aligned,
    alike,
    constant,
    data,
    opaque,
    pin,
    plains,
    reshaped,
    split,
    transposed,
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
    "nextafter",
    "igamma",
    "bessel_i0e",
    "bessel_i1e",
    "erf_inv",
)
#: Only the numbers change, not how they transform.
SAME = ("copy", "copy_p", "convert_element_type", "stop_gradient", "reduce_precision", "neg", "real", "imag")
SAME += (
    "device_put",
    "optimization_barrier",
    "sharding_constraint",
    "conj",
    "pvary",
    "name",
    "square_root_free",
)
COMPARISONS = ("gt", "ge", "lt", "le", "eq", "ne")
EXTREMES = ("reduce_max", "reduce_min")
#: Primitives of arrays of one shape.
ENTRYWISE = (*COMPARISONS, "add", "sub", "mul", "div", "max", "min", "pow", "and", "or", "xor", "add_any")
ENTRYWISE += ("select_n", "clamp")

Rule = Callable[[Laws, list[Value], dict[str, Any], Sequence[int]], Value]


def rule_of(name: str) -> Rule | None:
    """The rule of a primitive, given its laws, inputs, parameters and the shape of its result; or None."""
    if name in SAME:
        return lambda laws, inputs, params, shape: inputs[0]
    if name in (*ODD, *EVEN, *OTHER):
        return lambda laws, inputs, params, shape: laws.map(
            inputs[0],
            odd=name in ODD,
            even=name in EVEN,
            homogeneous=name in HOMOGENEOUS,
            power=0 if name in CONSTANT else None,
        )
    return _RULES.get(name)


def _add(laws: Laws, inputs: list[Value], params: dict[str, Any], shape: Sequence[int]) -> Value:
    return laws.added(inputs)


def _mul(laws: Laws, inputs: list[Value], params: dict[str, Any], shape: Sequence[int]) -> Value:
    if inputs[0] is inputs[1]:
        return laws.squared(inputs[0])
    return laws.multiplied(*inputs)


def _div(laws: Laws, inputs: list[Value], params: dict[str, Any], shape: Sequence[int]) -> Value:
    return laws.multiplied(*inputs, power=-1)


def _extreme(laws: Laws, inputs: list[Value], params: dict[str, Any], shape: Sequence[int]) -> Value:
    return laws.map(laws.added(inputs), homogeneous=True)


def _compare(laws: Laws, inputs: list[Value], params: dict[str, Any], shape: Sequence[int]) -> Value:
    for which, other in (inputs, inputs[::-1]):
        if isinstance(which, Plain) and len(which.points) == 1 and which.points[0] and not other.live:
            return _marked(which, which.points[0])
    return laws.map(laws.added(inputs), power=0)


def _marked(which: Plain, points: Node) -> Plain:
    """Which unit a number is, as in one-hot codes: the numbers are alike along an axis of all units."""
    units = Factor(points.root.length, points)
    same = alike(units.length)
    return Plain(tuple((units,) if axis == same else axis for axis in which.axes))


def _top(laws: Laws, inputs: list[Value], params: dict[str, Any], shape: Sequence[int]) -> Any:
    """The largest entries along the last axis, and which units they are."""
    return _best(laws, inputs[0], params.get("axis", len(shape) - 1), data(params["k"]))


def _best_one(laws: Laws, inputs: list[Value], params: dict[str, Any], shape: Sequence[int]) -> Any:
    """The number of the largest entry."""
    (axis,) = params["axes"]
    _, points = _best(laws, inputs[0], axis, None)
    return points


def _best(laws: Laws, value: Value, axis: int, kept: Axis | None) -> list[Value]:
    shape = list(value.shape)
    shape[axis : axis + 1] = [] if kept is None else [math.prod(factor.length for factor in kept)]
    if isinstance(value, Stacked) or len(value.axes[axis]) > 1:
        joined_data(value)
        return [opaque(shape), opaque(shape)]
    for factor in value.axes[axis]:
        laws.extreme(factor)
    rest = [() if kept is None else kept]
    axes = (*value.axes[:axis], *([] if kept is None else rest), *value.axes[axis + 1 :])
    left = value.along(*axes)
    live = tuple(factor.node for factor in value.axes[axis] if factor.kind == "live")
    counted = laws.map(left, power=0)
    assert isinstance(counted, Plain)
    return [
        laws.map(left, homogeneous=True),
        dataclasses.replace(counted, points=live),
    ]


def _scatter(laws: Laws, inputs: list[Value], params: dict[str, Any], shape: Sequence[int]) -> Value:
    """Rows written or added to a table: where they go is data, or the units that their places count."""
    table, places, rows = inputs
    numbers = params["dimension_numbers"]
    if any(isinstance(value, Stacked) for value in inputs) or numbers.operand_batching_dims or places.live:
        for value in inputs:
            joined_data(value)
        return opaque(shape)
    assert isinstance(places, Plain)
    assert isinstance(rows, Plain)
    kept = [k for k in range(len(shape)) if k not in numbers.inserted_window_dims]
    axes = [data(length) for length in shape]
    for k, place in zip(kept, numbers.update_window_dims, strict=True):
        if rows.shape[place] == shape[k]:
            axes[k] = rows.axes[place]
        else:
            pin(Plain((rows.axes[place],)))
    for k, axis in enumerate(rows.axes):
        if k not in numbers.update_window_dims:
            pin(Plain((axis,)))
    for k, points in zip(numbers.scatter_dims_to_operand_dims, places.points, strict=False):
        if points and k in numbers.inserted_window_dims and shape[k] == points.root.length:
            axes[k] = (Factor(shape[k], points),)
    return laws.added([table, Plain(tuple(axes), rows.zero)])


def _select(laws: Laws, inputs: list[Value], params: dict[str, Any], shape: Sequence[int]) -> Value:
    return laws.chosen(inputs[0], inputs[1:])


def _power(laws: Laws, inputs: list[Value], params: dict[str, Any], shape: Sequence[int]) -> Value:
    power = params["y"]
    if power == 2:
        return laws.squared(inputs[0])
    return laws.map(inputs[0], odd=power % 2 == 1, even=power % 2 == 0, power=power)


def _root(power: Any) -> Rule:
    return lambda laws, inputs, params, shape: laws.root(inputs[0], power)


def _pow(laws: Laws, inputs: list[Value], params: dict[str, Any], shape: Sequence[int]) -> Value:
    base, exponent = inputs
    return laws.added([laws.map(base), laws.map(exponent)])


def _clamp(laws: Laws, inputs: list[Value], params: dict[str, Any], shape: Sequence[int]) -> Value:
    return laws.map(inputs[1])


def _sum(laws: Laws, inputs: list[Value], params: dict[str, Any], shape: Sequence[int]) -> Value:
    return _reduced(inputs[0], params["axes"], laws, laws.summed)


def _largest(laws: Laws, inputs: list[Value], params: dict[str, Any], shape: Sequence[int]) -> Value:
    left = _reduced(inputs[0], params["axes"], laws, laws.extreme)
    return laws.map(left, homogeneous=True)


def _reduced(value: Value, axes: Sequence[int], laws: Laws, meet: Callable[[Factor], None]) -> Value:
    if isinstance(value, Stacked):
        parts = [_reduced(part, axes, laws, meet) for part in value.parts]
        if value.axis in axes:
            return laws.added(parts)
        return value.of(parts, value.axis - sum(axis < value.axis for axis in axes))
    for axis in axes:
        for factor in value.axes[axis]:
            meet(factor)
    kept = tuple(own for k, own in enumerate(value.axes) if k not in axes)
    return value.along(*kept)


def _dot(laws: Laws, inputs: list[Value], params: dict[str, Any], shape: Sequence[int]) -> Value:
    (left, right), (left_batch, right_batch) = params["dimension_numbers"]
    return dot(laws, inputs[0], inputs[1], (left, right), (left_batch, right_batch))


def dot(laws: Laws, a: Value, b: Value, contract: Any, batch: Any) -> Value:
    """The product of two arrays, summed over pairs of axes, taken one by one along others."""
    ranks = len(a.shape), len(b.shape)
    free = [
        [k for k in range(rank) if k not in (*contract[side], *batch[side])]
        for side, rank in enumerate(ranks)
    ]
    for side, value in enumerate((a, b)):
        if not isinstance(value, Stacked):
            continue
        own, other = (a, b)[side], (a, b)[1 - side]
        assert isinstance(own, Stacked)
        block = (own.before, own.lengths, own.behind)
        partner = next(
            (
                pair[1 - side][pair[side].index(own.axis)]
                for pair in (contract, batch)
                if own.axis in pair[side]
            ),
            None,
        )
        others: Any = [other] * len(own.parts) if partner is None else split(other, partner, *block)
        if others is None:
            sizes = [
                value.shape[k] for value, axes in ((a, batch[0]), (a, free[0]), (b, free[1])) for k in axes
            ]
            return constant(sizes, zero=True)
        made = [
            dot(laws, *((part, its) if side == 0 else (its, part)), contract, batch)
            for part, its in zip(own.parts, others, strict=True)
        ]
        if own.axis in contract[side]:
            return laws.added(made)
        if own.axis in batch[side]:
            return own.of(made, list(batch[side]).index(own.axis))
        at = len(batch[side]) + free[side].index(own.axis)
        return own.of(made, at + (len(free[0]) if side else 0))
    assert isinstance(a, Plain)
    assert isinstance(b, Plain)
    sizes = [value.shape[k] for value, axes in ((a, batch[0]), (a, free[0]), (b, free[1])) for k in axes]
    if a.zero or b.zero:
        return constant(sizes, zero=True)
    done = [laws.contracted([a.axes[i], b.axes[j]]) for i, j in zip(*contract, strict=True)]
    along: list[Axis] = []
    for i, j in zip(*batch, strict=True):
        places = aligned([a.axes[i], b.axes[j]])
        if places is None:
            done.append(False)
            continue
        along.append(tuple(laws.indexed(place) for place in places))
    if not all(done):
        return constant(sizes, zero=True)
    rest = [value.axes[k] for value, axes in ((a, free[0]), (b, free[1])) for k in axes]
    settled = [tuple(laws.settled(factor) for factor in axis) for axis in rest]
    return Plain((*along, *settled))


def _conv(laws: Laws, inputs: list[Value], params: dict[str, Any], shape: Sequence[int]) -> Value:
    return _convolved(laws, inputs[0], inputs[1], params, shape)


def _convolved(
    laws: Laws, image: Value, kernel: Value, params: dict[str, Any], shape: Sequence[int]
) -> Value:
    numbers = params["dimension_numbers"]
    lhs, rhs, out = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
    groups = params["feature_group_count"]
    if params["batch_group_count"] != 1:
        for value in (image, kernel):
            joined_data(value)
        return opaque(shape)
    if groups == 1:
        # One product over input channels; where pixels and patches go is data.
        a = _spatial_as_data(transposed(image, lhs))
        b = _spatial_as_data(transposed(kernel, rhs))
        made = dot(laws, _without(a), _without(b), ((1,), (1,)), ((), ()))
        spatial = [data(shape[k]) for k in out[2:]]
        return transposed(_with_axes(made, spatial), [out.index(k) for k in range(len(out))])
    a = _without(_spatial_as_data(transposed(image, lhs)))
    b = _without(_spatial_as_data(transposed(kernel, rhs)))
    n, channels = a.shape
    o, i = b.shape
    apart = reshaped(a, (n, groups, channels // groups)), reshaped(b, (groups, o // groups, i))
    if apart[0] is None or apart[1] is None:
        return constant(shape, zero=True)
    made = dot(laws, apart[0], apart[1], ((2,), (2,)), ((1,), (0,)))
    merged = reshaped(transposed(made, (1, 0, 2)), (n, o))
    if merged is None:
        return constant(shape, zero=True)
    spatial = [data(shape[k]) for k in out[2:]]
    return transposed(_with_axes(merged, spatial), [out.index(k) for k in range(len(out))])


def _spatial_as_data(value: Value) -> Value:
    if isinstance(value, Stacked):
        return value.of([_spatial_as_data(part) for part in value.parts])
    for axis in value.axes[2:]:
        for factor in axis:
            factor.pin()
    return value


def _without(value: Value) -> Value:
    """The first two axes."""
    if isinstance(value, Stacked):
        if value.axis > 1:
            return _without(value.parts[0])
        return value.of([_without(part) for part in value.parts])
    return value.along(*value.axes[:2])


def _with_axes(value: Value, axes: Sequence[Axis]) -> Value:
    if isinstance(value, Stacked):
        return value.of([_with_axes(part, axes) for part in value.parts])
    return value.along(*value.axes, *axes)


def _reshape(laws: Laws, inputs: list[Value], params: dict[str, Any], shape: Sequence[int]) -> Value:
    value = inputs[0] if params.get("dimensions") is None else transposed(inputs[0], params["dimensions"])
    made = reshaped(value, shape)
    return constant(shape, zero=True) if made is None else made


def _transpose(laws: Laws, inputs: list[Value], params: dict[str, Any], shape: Sequence[int]) -> Value:
    return transposed(inputs[0], params["permutation"])


def _broadcast(laws: Laws, inputs: list[Value], params: dict[str, Any], shape: Sequence[int]) -> Value:
    return _spread(inputs[0], params["broadcast_dimensions"], shape)


def spread(value: Value, shape: Sequence[int]) -> Value:
    """The array with single numbers, and axes of length one, repeated."""
    if value.shape == tuple(shape):
        return value
    return _spread(value, range(len(shape) - len(value.shape), len(shape)), shape)


def _stack(laws: Laws, inputs: list[Value], params: dict[str, Any], shape: Sequence[int]) -> Value:
    axis = params["axis"]
    single = [*shape[:axis], 1, *shape[axis + 1 :]]
    made = [reshaped(value, single) for value in inputs]
    whole = [value for value in made if value is not None]
    if len(whole) < len(made):
        return constant(shape, zero=True)
    return _concatenate(laws, whole, {"dimension": axis}, shape)


def _spread(value: Value, places: Sequence[int], shape: Sequence[int]) -> Value:
    if isinstance(value, Stacked):
        at = places[value.axis]
        lengths = [value.before * n * value.behind for n in value.lengths]
        parts = [
            _spread(part, places, (*shape[:at], n, *shape[at + 1 :]))
            for n, part in zip(lengths, value.parts, strict=True)
        ]
        return value.of(parts, at)
    axes = [alike(length) for length in shape]
    for own, place in zip(value.axes, places, strict=True):
        axes[place] = own or axes[place]
    return value.along(*axes)


def _slice(laws: Laws, inputs: list[Value], params: dict[str, Any], shape: Sequence[int]) -> Value:
    value = inputs[0]
    steps = params["strides"] or [1] * len(shape)
    for axis, (start, limit, step) in enumerate(
        zip(params["start_indices"], params["limit_indices"], steps, strict=True)
    ):
        length = value.shape[axis]
        if (start, limit, step) == (0, length, 1):
            continue
        value = _sliced(value, axis, start, limit, step)
        if value is None:
            return constant(shape, zero=True)
    return value


def _sliced(value: Value, axis: int, start: int, limit: int, step: int) -> Value | None:
    length, kept = value.shape[axis], -(-(limit - start) // step)
    if isinstance(value, Plain) and all(factor.kind != "live" for factor in value.axes[axis]):
        return split(value, axis, 1, (kept, length - kept), 1)[0] if kept < length else value  # type: ignore[index]
    if step > 1:
        if length % step or start >= step or kept * step != length:
            return split(joined_data(value), axis, 1, (kept, length - kept), 1)[0]  # type: ignore[index]
        parts = split(value, axis, length // step, [1] * step, 1)
        return None if parts is None else parts[start]
    sizes = [size for size in (start, limit - start, length - limit) if size]
    parts = split(value, axis, 1, sizes, 1)
    return None if parts is None else parts[1 if start else 0]


def _concatenate(laws: Laws, inputs: list[Value], params: dict[str, Any], shape: Sequence[int]) -> Value:
    axis = params["dimension"]
    inputs = [value for value in inputs if value.shape[axis]] or inputs[:1]
    if len(inputs) == 1:
        return inputs[0]
    own = [factor for value in inputs for plain in plains(value) for factor in plain.axes[axis]]
    between = any(isinstance(value, Stacked) and value.axis == axis for value in inputs)
    if not between and all(factor.kind != "live" for factor in own):
        return _beside(laws, inputs, axis, shape)
    return Stacked(axis, 1, tuple(value.shape[axis] for value in inputs), 1, tuple(inputs))


def _beside(laws: Laws, inputs: Sequence[Value], axis: int, shape: Sequence[int]) -> Value:
    """Arrays one behind the other along an axis of data transform alike along the others."""

    def longer(value: Value) -> Value:
        if isinstance(value, Stacked):
            return value.of([longer(part) for part in value.parts])
        return value.along(*value.axes[:axis], data(shape[axis]), *value.axes[axis + 1 :])

    there = [value for value in inputs if not all(plain.zero for plain in plains(value))]
    if not there:
        return constant(shape, zero=True)
    whole = laws.added([longer(value) for value in there])
    counted = [value.points or (None,) for value in inputs if isinstance(value, Plain)]
    if (
        axis == len(shape) - 1 == len(inputs[0].shape) - 1
        and len(counted) == shape[axis]
        and isinstance(whole, Plain)
    ):
        return dataclasses.replace(whole, points=tuple(one[0] for one in counted))
    return whole


def _pad(laws: Laws, inputs: list[Value], params: dict[str, Any], shape: Sequence[int]) -> Value:
    value, filling = inputs
    zero = isinstance(filling, Plain) and filling.zero
    for axis, widths in enumerate(params["padding_config"]):
        low, high, inner = map(int, widths)
        if (low, high, inner) == (0, 0, 0):
            continue
        length = value.shape[axis]
        live = any(f.kind == "live" for plain in plains(value) for f in plain.axes[axis])
        stacked = isinstance(value, Stacked) and value.axis == axis
        if live or stacked:
            if inner or low < 0 or high < 0 or not zero:
                joined_data(value)
                return opaque(shape)
            around = [(n, _zeros_like(value, axis, n)) for n in (low, high)]
            pieces = [*around[:1], (length, value), *around[1:]]
            pieces = [(n, piece) for n, piece in pieces if n]
            value = Stacked(axis, 1, tuple(n for n, _ in pieces), 1, tuple(piece for _, piece in pieces))
        else:
            value = _longer(value, axis, length + low + high + inner * max(length - 1, 0))
    return value


def _zeros_like(value: Value, axis: int, length: int) -> Plain:
    shape = list(value.shape)
    shape[axis] = length
    return constant(shape, zero=True)


def _longer(value: Value, axis: int, length: int) -> Value:
    if isinstance(value, Stacked):
        return value.of([_longer(part, axis, length) for part in value.parts])
    return value.along(*value.axes[:axis], data(length), *value.axes[axis + 1 :])


def _squeeze(laws: Laws, inputs: list[Value], params: dict[str, Any], shape: Sequence[int]) -> Value:
    made = reshaped(inputs[0], shape)
    return constant(shape, zero=True) if made is None else made


def _gather(laws: Laws, inputs: list[Value], params: dict[str, Any], shape: Sequence[int]) -> Value:
    """Rows looked up in a table: what was looked up is data, and each row keeps its spaces."""
    value, places = inputs[0], inputs[1]
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    points = dict(
        zip(numbers.start_index_map, places.points if isinstance(places, Plain) else (), strict=False)
    )
    if any(plain.live for plain in plains(places)):
        joined_data(places)
    if isinstance(value, Stacked):
        looked = {*numbers.start_index_map, *numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
        if value.axis in looked or sizes[value.axis] != value.shape[value.axis]:
            joined_data(value)
            return opaque(shape)
        kept = [
            k
            for k in range(len(value.shape))
            if k not in (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
        ]
        at = numbers.offset_dims[kept.index(value.axis)]
        parts = []
        for n, part in zip(value.lengths, value.parts, strict=True):
            length = value.before * n * value.behind
            own = {**params, "slice_sizes": (*sizes[: value.axis], length, *sizes[value.axis + 1 :])}
            parts.append(_gather(laws, [part, places], own, (*shape[:at], length, *shape[at + 1 :])))
        return value.of(parts, at)
    batching = tuple(numbers.operand_batching_dims)
    kept = [k for k in range(len(value.axes)) if k not in (*numbers.collapsed_slice_dims, *batching)]
    axes = [data(length) for length in shape]
    for k, own in enumerate(value.axes):
        if k in kept and sizes[k] == value.shape[k]:
            axes[numbers.offset_dims[kept.index(k)]] = own
        elif points.get(k) and len(own) == 1:
            own[0].join(Factor(own[0].length, points[k]))
            laws.zero(own[0])
        else:
            pin(Plain((own,)))
    return value.along(*axes)


def _dynamic_slice(laws: Laws, inputs: list[Value], params: dict[str, Any], shape: Sequence[int]) -> Value:
    value = inputs[0]
    for start in inputs[1:]:
        joined_data(start)
    for axis, (old, new) in enumerate(zip(value.shape, shape, strict=True)):
        if old != new:
            for plain in plains(value):
                for factor in plain.axes[axis]:
                    factor.pin()
            if isinstance(value, Stacked) and value.axis == axis:
                joined_data(value)
                return opaque(shape)
            value = _longer(value, axis, new)
    return value


def _along_data(axes_of: Callable[[dict[str, Any]], Sequence[int]], *, homogeneous: bool = False) -> Rule:
    """Mixes entries along some axes, on which nothing may act then, and treats all others alike."""

    def rule(laws: Laws, inputs: list[Value], params: dict[str, Any], shape: Sequence[int]) -> Value:
        value = inputs[0]
        axes = axes_of(params)
        if isinstance(value, Stacked) and value.axis in axes:
            return opaque(joined_data(value).shape)
        for plain in plains(value):
            for axis in axes:
                for factor in plain.axes[axis]:
                    factor.pin()
        for axis in axes:
            value = _longer(value, axis, shape[axis])
        return laws.map(value, homogeneous=True) if homogeneous else value

    return rule


def _windows(params: dict[str, Any]) -> list[int]:
    return [k for k, n in enumerate(params["window_dimensions"]) if n > 1 or params["window_strides"][k] > 1]


def _rev(laws: Laws, inputs: list[Value], params: dict[str, Any], shape: Sequence[int]) -> Value:
    return _along_data(lambda params: params["dimensions"])(laws, inputs, params, shape)


def _split(laws: Laws, inputs: list[Value], params: dict[str, Any], shape: Sequence[int]) -> Any:
    axis, sizes = params["axis"], [int(n) for n in params["sizes"]]
    parts = split(inputs[0], axis, 1, sizes, 1)
    if parts is None:
        shapes = [[*inputs[0].shape[:axis], n, *inputs[0].shape[axis + 1 :]] for n in sizes]
        return [constant(one, zero=True) for one in shapes]
    return list(parts)


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
    "square": lambda laws, inputs, params, shape: laws.squared(inputs[0]),
    "sqrt": _root(1),
    "rsqrt": _root(-1),
    "pow": _pow,
    "clamp": _clamp,
    "reduce_sum": _sum,
    **dict.fromkeys(EXTREMES, _largest),
    "dot_general": _dot,
    "conv_general_dilated": _conv,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "expand_dims": _squeeze,
    "transpose": _transpose,
    "broadcast_in_dim": _broadcast,
    "slice": _slice,
    "split": _split,
    "concatenate": _concatenate,
    "stack": _stack,
    "pad": _pad,
    "gather": _gather,
    "dynamic_slice": _dynamic_slice,
    "rev": _rev,
    "top_k": _top,
    **dict.fromkeys(("argmax", "argmin"), _best_one),
    **dict.fromkeys(("scatter", "scatter-add"), _scatter),
    **dict.fromkeys(("cumsum", "cumlogsumexp"), _along_data(lambda params: [params["axis"]])),
    **dict.fromkeys(("cummax", "cummin"), _along_data(lambda params: [params["axis"]], homogeneous=True)),
    "reduce_window_max": _along_data(_windows, homogeneous=True),
    "reduce_window_sum": _along_data(_windows),
    "fft": _along_data(lambda params: range(-len(params["fft_lengths"]), 0)),
}
