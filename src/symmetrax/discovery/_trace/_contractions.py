"""Rules for sums and products that are summed: matrix products, convolutions, reductions."""

from collections.abc import Callable, Sequence
from typing import Any

from symmetrax.discovery._trace._laws import Laws, Operation, joined_data
from symmetrax.discovery._trace._splitting import aligned, reshaped, split, transposed
from symmetrax.discovery._trace._values import (
    Axis,
    Factor,
    Plain,
    Stacked,
    Value,
    constant,
    data,
    opaque,
    pin_axis,
)


def reduce_sum(op: Operation) -> Value:
    """The sum along some axes.

    >>> from symmetrax.discovery._trace._nodes import Node
    >>> units = Node(4)
    >>> reduce_sum(Operation(Laws(), [Plain((data(8), (Factor(4, units),)))], {"axes": (1,)}, (8,))).shape
    (8,)
    >>> units.flags  # all units must be equal
    {'ones'}
    """
    return _reduced(op.inputs[0], op.params["axes"], op.laws, op.laws.summed)


def reduce_extreme(op: Operation) -> Value:
    """The largest entry along some axes.

    >>> reduce_extreme(Operation(Laws(), [constant((2, 3))], {"axes": (0,)}, (3,))).shape
    (3,)
    """
    left = _reduced(op.inputs[0], op.params["axes"], op.laws, op.laws.extreme)
    return op.laws.map(left, homogeneous=True)


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


def dot_general(op: Operation) -> Value:
    """The product of two arrays, as `dot` says.

    >>> params = {"dimension_numbers": (((1,), (0,)), ((), ()))}
    >>> dot_general(Operation(Laws(), [constant((2, 3)), constant((3, 4))], params, (2, 4))).shape
    (2, 4)
    """
    (left, right), (left_batch, right_batch) = op.params["dimension_numbers"]
    return dot(op.laws, op.inputs[0], op.inputs[1], (left, right), (left_batch, right_batch))


def dot(laws: Laws, a: Value, b: Value, contract: Any, batch: Any) -> Value:
    """The product of two arrays, summed over pairs of axes, taken one by one along others.

    >>> from symmetrax.discovery._trace._nodes import Node
    >>> a, b = Node(3), Node(3)
    >>> left, right = Plain((data(2), (Factor(3, a),))), Plain(((Factor(3, b),), data(4)))
    >>> dot(Laws(), left, right, ((1,), (0,)), ((), ())).shape, a.root is b.root
    ((2, 4), True)
    """
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


def convolution(op: Operation) -> Value:
    """A convolution: a product over channels; where pixels go is data.

    >>> import jax, jax.numpy as jnp
    >>> from symmetrax.discovery._trace._reader import read
    >>> kernels = {"a": jnp.ones((3, 2, 4)), "b": jnp.ones((3, 4, 2))}
    >>> def loss(a, b, x=jnp.ones((1, 5, 2)), numbers=("NWC", "WIO", "NWC")):
    ...     for kernel in (a, b):
    ...         x = jax.lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=numbers)
    ...     return jnp.sum(x)
    >>> reading = read(jax.make_jaxpr(loss)(*kernels.values()), list(kernels))
    >>> reading.parts[0].items[2][0].node.root is reading.parts[1].items[1][0].node.root
    True
    """
    return _convolved(op.laws, op.inputs[0], op.inputs[1], op.params, op.shape)


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
    for axis in range(2, len(value.shape)):
        pin_axis(value, axis)
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
