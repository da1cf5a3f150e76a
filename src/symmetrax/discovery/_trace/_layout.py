"""Rules for operations that move entries: shapes, slices, parts side by side."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from symmetrax.discovery._trace._laws import Laws, Operation, Rule, joined_data
from symmetrax.discovery._trace._splitting import reshaped, split, transposed
from symmetrax.discovery._trace._values import (
    Plain,
    Stacked,
    Value,
    alike,
    constant,
    data,
    opaque,
    pin_axis,
    plains,
)


def reshape(op: Operation) -> Value:
    """The same entries in another shape, perhaps after a transposition.

    >>> reshape(Operation(Laws(), [constant((6,))], {"dimensions": None}, (2, 3))).shape
    (2, 3)
    """
    order = op.params["dimensions"]
    return resize(op if order is None else op._replace(inputs=[transposed(op.inputs[0], order)]))


def resize(op: Operation) -> Value:
    """The same entries in another shape.

    >>> resize(Operation(Laws(), [constant((6, 1))], {}, (6,))).shape
    (6,)
    """
    made = reshaped(op.inputs[0], op.shape)
    return constant(op.shape, zero=True) if made is None else made


def transpose(op: Operation) -> Value:
    """Axes in another order.

    >>> transpose(Operation(Laws(), [constant((2, 3))], {"permutation": (1, 0)}, (3, 2))).shape
    (3, 2)
    """
    return transposed(op.inputs[0], op.params["permutation"])


def broadcast(op: Operation) -> Value:
    """New axes, along which entries are alike.

    >>> made = broadcast(Operation(Laws(), [opaque((3,))], {"broadcast_dimensions": (1,)}, (2, 3)))
    >>> [axis[0].kind for axis in made.axes]
    ['alike', 'data']
    """
    return _spread_along(op.inputs[0], op.params["broadcast_dimensions"], op.shape)


def spread(value: Value, shape: Sequence[int]) -> Value:
    """The array with single numbers, and axes of length one, repeated.

    >>> spread(constant(()), (2, 3)).shape
    (2, 3)
    """
    if value.shape == tuple(shape):
        return value
    return _spread_along(value, range(len(shape) - len(value.shape), len(shape)), shape)


def _spread_along(value: Value, places: Sequence[int], shape: Sequence[int]) -> Value:
    if isinstance(value, Stacked):
        at = places[value.axis]
        lengths = [value.before * n * value.behind for n in value.lengths]
        parts = [
            _spread_along(part, places, (*shape[:at], n, *shape[at + 1 :]))
            for n, part in zip(lengths, value.parts, strict=True)
        ]
        return value.of(parts, at)
    axes = [alike(length) for length in shape]
    for own, place in zip(value.axes, places, strict=True):
        axes[place] = own or axes[place]
    return value.along(*axes)


def slice_(op: Operation) -> Value:
    """A part of an array, for which a space on the axis is cut.

    >>> params = {"start_indices": (1,), "limit_indices": (3,), "strides": None}
    >>> slice_(Operation(Laws(), [opaque((6,))], params, (2,))).shape
    (2,)
    """
    value = op.inputs[0]
    steps = op.params["strides"] or [1] * len(op.shape)
    for axis, (start, limit, step) in enumerate(
        zip(op.params["start_indices"], op.params["limit_indices"], steps, strict=True)
    ):
        length = value.shape[axis]
        if (start, limit, step) == (0, length, 1):
            continue
        value = _sliced(value, axis, start, limit, step)
        if value is None:
            return constant(op.shape, zero=True)
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


def split_(op: Operation) -> Any:
    """All parts of an array.

    >>> [part.shape for part in split_(Operation(Laws(), [opaque((6,))], {"axis": 0, "sizes": (2, 4)}, (2,)))]
    [(2,), (4,)]
    """
    axis, sizes = op.params["axis"], [int(n) for n in op.params["sizes"]]
    parts = split(op.inputs[0], axis, 1, sizes, 1)
    if parts is None:
        shapes = [[*op.inputs[0].shape[:axis], n, *op.inputs[0].shape[axis + 1 :]] for n in sizes]
        return [constant(one, zero=True) for one in shapes]
    return list(parts)


def concatenate(op: Operation) -> Value:
    """Arrays one behind the other, each with spaces of its own.

    >>> from symmetrax.discovery._trace._nodes import Node
    >>> from symmetrax.discovery._trace._values import Factor
    >>> units = Plain(((Factor(3, Node(3)),),))
    >>> concatenate(Operation(Laws(), [units, opaque((2,))], {"dimension": 0}, (5,))).lengths
    (3, 2)
    """
    axis = op.params["dimension"]
    inputs = [value for value in op.inputs if value.shape[axis]] or op.inputs[:1]
    if len(inputs) == 1:
        return inputs[0]
    own = [factor for value in inputs for plain in plains(value) for factor in plain.axes[axis]]
    between = any(isinstance(value, Stacked) and value.axis == axis for value in inputs)
    if not between and all(factor.kind != "live" for factor in own):
        return _beside(op.laws, inputs, axis, op.shape)
    return Stacked(axis, 1, tuple(value.shape[axis] for value in inputs), 1, tuple(inputs))


def stack(op: Operation) -> Value:
    """Arrays side by side along a new axis.

    >>> stack(Operation(Laws(), [opaque((3,)), opaque((3,))], {"axis": 0}, (2, 3))).shape
    (2, 3)
    """
    axis = op.params["axis"]
    single = [*op.shape[:axis], 1, *op.shape[axis + 1 :]]
    made = [reshaped(value, single) for value in op.inputs]
    whole = [value for value in made if value is not None]
    if len(whole) < len(made):
        return constant(op.shape, zero=True)
    return concatenate(op._replace(inputs=whole, params={"dimension": axis}))


def _beside(laws: Laws, inputs: Sequence[Value], axis: int, shape: Sequence[int]) -> Value:
    """Arrays one behind the other along an axis of data transform alike along the others."""
    there = [value for value in inputs if not value.zero]
    if not there:
        return constant(shape, zero=True)
    whole = laws.added([longer(value, axis, shape[axis]) for value in there])
    counted = [value.points or (None,) for value in inputs if isinstance(value, Plain)]
    if (
        axis == len(shape) - 1 == len(inputs[0].shape) - 1
        and len(counted) == shape[axis]
        and isinstance(whole, Plain)
    ):
        return dataclasses.replace(whole, points=tuple(one[0] for one in counted))
    return whole


def pad(op: Operation) -> Value:
    """Zeros around an array.

    >>> from symmetrax.discovery._trace._nodes import Node
    >>> from symmetrax.discovery._trace._values import Factor
    >>> units, none = Plain(((Factor(3, Node(3)),),)), constant((), zero=True)
    >>> pad(Operation(Laws(), [units, none], {"padding_config": ((0, 2, 0),)}, (5,))).lengths
    (3, 2)
    """
    value, filling = op.inputs
    for axis, widths in enumerate(op.params["padding_config"]):
        low, high, inner = map(int, widths)
        if (low, high, inner) == (0, 0, 0):
            continue
        length = value.shape[axis]
        live = any(f.kind == "live" for plain in plains(value) for f in plain.axes[axis])
        stacked = isinstance(value, Stacked) and value.axis == axis
        if live or stacked:
            if inner or low < 0 or high < 0 or not filling.zero:
                joined_data(value)
                return opaque(op.shape)
            around = [(n, _zeros_like(value, axis, n)) for n in (low, high)]
            pieces = [*around[:1], (length, value), *around[1:]]
            pieces = [(n, piece) for n, piece in pieces if n]
            value = Stacked(axis, 1, tuple(n for n, _ in pieces), 1, tuple(piece for _, piece in pieces))
        else:
            value = longer(value, axis, length + low + high + inner * max(length - 1, 0))
    return value


def _zeros_like(value: Value, axis: int, length: int) -> Plain:
    shape = list(value.shape)
    shape[axis] = length
    return constant(shape, zero=True)


def longer(value: Value, axis: int, length: int) -> Value:
    """The array with data along an axis.

    >>> longer(constant((2, 3)), 0, 5).shape
    (5, 3)
    """
    if isinstance(value, Stacked):
        return value.of([longer(part, axis, length) for part in value.parts])
    return value.along(*value.axes[:axis], data(length), *value.axes[axis + 1 :])


def dynamic_slice(op: Operation) -> Value:
    """A part of an array at places that are computed: nothing acts on the axes that are shortened.

    >>> dynamic_slice(Operation(Laws(), [opaque((6,)), opaque(())], {}, (2,))).shape
    (2,)
    """
    value = op.inputs[0]
    for start in op.inputs[1:]:
        joined_data(start)
    for axis, (old, new) in enumerate(zip(value.shape, op.shape, strict=True)):
        if old != new:
            pin_axis(value, axis)
            if isinstance(value, Stacked) and value.axis == axis:
                joined_data(value)
                return opaque(op.shape)
            value = longer(value, axis, new)
    return value


def dynamic_update_slice(op: Operation) -> Value:
    """An array with another written into it, at places that are computed: a cache of keys, for instance.

    Nothing acts on the axes along which only a part is written.

    >>> inputs = [constant((6, 2), zero=True), opaque((1, 2)), opaque(()), opaque(())]
    >>> dynamic_update_slice(Operation(Laws(), inputs, {}, (6, 2))).shape
    (6, 2)
    """
    value, part, *starts = op.inputs
    for start in starts:
        joined_data(start)
    for axis, (old, new) in enumerate(zip(value.shape, part.shape, strict=True)):
        if old == new:
            continue
        for one in (value, part):
            pin_axis(one, axis)
        if any(isinstance(one, Stacked) and one.axis == axis for one in (value, part)):
            joined_data(value)
            joined_data(part)
            return opaque(op.shape)
        part = longer(part, axis, old)
    return op.laws.added([value, part])


def along_data(axes_of: Callable[[Operation], Sequence[int]], *, homogeneous: bool = False) -> Rule:
    """A rule that mixes entries along some axes, on which nothing may act then, and treats others alike.

    >>> cumsum = along_data(lambda op: [op.params["axis"]])
    >>> cumsum(Operation(Laws(), [constant((2, 3))], {"axis": 0}, (2, 3))).axes[0][0].kind
    'data'
    """

    def rule(op: Operation) -> Value:
        value = op.inputs[0]
        axes = axes_of(op)
        if isinstance(value, Stacked) and value.axis in axes:
            return opaque(joined_data(value).shape)
        for axis in axes:
            pin_axis(value, axis)
            value = longer(value, axis, op.shape[axis])
        return op.laws.map(value, homogeneous=True) if homogeneous else value

    return rule
