"""Rules for operations that look up entries, or say where the largest are."""

import dataclasses
import math
from typing import Any

from symmetrax.discovery._trace._laws import Laws, Operation, joined_data
from symmetrax.discovery._trace._nodes import Node
from symmetrax.discovery._trace._values import (
    Axis,
    Factor,
    Plain,
    Stacked,
    Value,
    alike,
    data,
    opaque,
    pin,
    plains,
)


def one_hot(which: Plain, points: Node) -> Plain:
    """Which unit a number is, as in one-hot codes: the numbers are alike along an axis of all units.

    >>> units = Node(4)
    >>> one_hot(Plain((data(8), alike(4))), units).axes[1][0].node is units
    True
    """
    units = Factor(points.root.length, points)
    same = alike(units.length)
    return Plain(tuple((units,) if axis == same else axis for axis in which.axes))


def top_k(op: Operation) -> Any:
    """The largest entries along the last axis, and which units they are.

    >>> units = Node(4)
    >>> _, which = top_k(Operation(Laws(), [Plain((data(8), (Factor(4, units),)))], {"k": 2}, (8, 2)))
    >>> which.shape, which.points[0] is units
    ((8, 2), True)
    """
    return _best(op.laws, op.inputs[0], op.params.get("axis", len(op.shape) - 1), data(op.params["k"]))


def argmax(op: Operation) -> Any:
    """The number of the largest entry.

    >>> units = Node(4)
    >>> which = argmax(Operation(Laws(), [Plain((data(8), (Factor(4, units),)))], {"axes": (1,)}, (8,)))
    >>> which.shape, which.points[0] is units
    ((8,), True)
    """
    (axis,) = op.params["axes"]
    _, points = _best(op.laws, op.inputs[0], axis, None)
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


def gather(op: Operation) -> Value:
    """Rows looked up in a table: what was looked up is data, and each row keeps its spaces.

    >>> from jax.lax import GatherDimensionNumbers as Numbers
    >>> params = {"dimension_numbers": Numbers((1,), (0,), (0,)), "slice_sizes": (1, 3)}
    >>> table = Plain(((Factor(7, Node(7)),), (Factor(3, Node(3)),)))
    >>> made = gather(Operation(Laws(), [table, opaque((5, 1))], params, (5, 3)))
    >>> [axis[0].kind for axis in made.axes], table.axes[0][0].kind
    (['data', 'live'], 'data')
    """
    value, places = op.inputs[0], op.inputs[1]
    numbers, sizes = op.params["dimension_numbers"], op.params["slice_sizes"]
    points = dict(
        zip(numbers.start_index_map, places.points if isinstance(places, Plain) else (), strict=False)
    )
    if any(plain.live for plain in plains(places)):
        joined_data(places)
    if isinstance(value, Stacked):
        looked = {*numbers.start_index_map, *numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
        if value.axis in looked or sizes[value.axis] != value.shape[value.axis]:
            joined_data(value)
            return opaque(op.shape)
        kept = [
            k
            for k in range(len(value.shape))
            if k not in (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
        ]
        at = numbers.offset_dims[kept.index(value.axis)]
        parts = []
        for n, part in zip(value.lengths, value.parts, strict=True):
            length = value.before * n * value.behind
            own = {**op.params, "slice_sizes": (*sizes[: value.axis], length, *sizes[value.axis + 1 :])}
            shape = (*op.shape[:at], length, *op.shape[at + 1 :])
            parts.append(gather(op._replace(inputs=[part, places], params=own, shape=shape)))
        return value.of(parts, at)
    batching = tuple(numbers.operand_batching_dims)
    kept = [k for k in range(len(value.axes)) if k not in (*numbers.collapsed_slice_dims, *batching)]
    axes = [data(length) for length in op.shape]
    for k, own in enumerate(value.axes):
        if k in kept and sizes[k] == value.shape[k]:
            axes[numbers.offset_dims[kept.index(k)]] = own
        elif points.get(k) and len(own) == 1:
            own[0].join(Factor(own[0].length, points[k]))
            op.laws.zero(own[0])
        else:
            pin(Plain((own,)))
    return value.along(*axes)


def scatter(op: Operation) -> Value:
    """Rows written or added to a table: where they go is data, or the units that their places count.

    >>> from symmetrax.discovery._trace._values import constant
    >>> from jax.lax import ScatterDimensionNumbers as Numbers
    >>> rows, none = Plain((data(5), (Factor(3, Node(3)),))), constant((7, 3), zero=True)
    >>> params = {"dimension_numbers": Numbers((1,), (0,), (0,))}
    >>> made = scatter(Operation(Laws(), [none, opaque((5, 1)), rows], params, (7, 3)))
    >>> [axis[0].kind for axis in made.axes]
    ['data', 'live']
    """
    table, places, rows = op.inputs
    numbers = op.params["dimension_numbers"]
    if any(isinstance(value, Stacked) for value in op.inputs) or numbers.operand_batching_dims or places.live:
        for value in op.inputs:
            joined_data(value)
        return opaque(op.shape)
    assert isinstance(places, Plain)
    assert isinstance(rows, Plain)
    kept = [k for k in range(len(op.shape)) if k not in numbers.inserted_window_dims]
    axes = [data(length) for length in op.shape]
    for k, place in zip(kept, numbers.update_window_dims, strict=True):
        if rows.shape[place] == op.shape[k]:
            axes[k] = rows.axes[place]
        else:
            pin(Plain((rows.axes[place],)))
    for k, axis in enumerate(rows.axes):
        if k not in numbers.update_window_dims:
            pin(Plain((axis,)))
    for k, points in zip(numbers.scatter_dims_to_operand_dims, places.points, strict=False):
        if points and k in numbers.inserted_window_dims and op.shape[k] == points.root.length:
            axes[k] = (Factor(op.shape[k], points),)
    return op.laws.added([table, Plain(tuple(axes), rows.zero)])
