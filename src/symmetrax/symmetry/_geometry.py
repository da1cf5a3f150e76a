"""The geometry of orbits: curves along them, updates across them, and conserved quantities."""

from functools import partial, reduce
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from symmetrax._programs import once
from symmetrax.groups._diagonal import AbstractGroup
from symmetrax.groups._matrices import GeneralLinear, ScaledRotation
from symmetrax.symmetry._base import AbstractLieSymmetry
from symmetrax.symmetry._conjugate import conjugate_gradients, power_of_two
from symmetrax.symmetry._network import NetworkSymmetry
from symmetrax.symmetry._paths import named_shapes
from symmetrax.symmetry._sharding import split_like, whole
from symmetrax.symmetry._walk import Binding


def orbit_curve(
    symmetry: AbstractLieSymmetry, coordinates: Array, params: PyTree, points: int = 11, batch: PyTree = None
) -> PyTree:
    """The curve exp(t coordinates).params for t from 0 to 1, along which the loss is constant.

    It connects two minima on the same orbit without a barrier (arXiv:2505.23681).

    **Returns** the parameter tree with a leading axis of length `points` on every array of floats; other
    leaves are unchanged.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> task = sx.tasks.booth()
    >>> curve = orbit_curve(task.symmetry(), jnp.array([2.0]), jnp.array([5.0, -5.0]), points=5)
    >>> print(jax.vmap(task.loss)(curve).round(1))
    [144. 144. 144. 144. 144.]
    """
    coordinates = jnp.asarray(coordinates)
    arrays, rest = eqx.partition(params, eqx.is_inexact_array)

    def at(t):
        moved = symmetry.act(symmetry.exp(t * coordinates), eqx.combine(arrays, rest), batch)
        return eqx.filter(moved, eqx.is_inexact_array)

    # Elements are computed at every time anew; products of small steps would accumulate errors.
    times = jnp.linspace(0.0, 1.0, points, dtype=jnp.result_type(coordinates, float))
    return eqx.combine(jax.vmap(at)(times), rest)


def project_horizontal(
    symmetry: AbstractLieSymmetry, params: PyTree, update: PyTree, batch: PyTree = None, *, steps: int = 1000
) -> PyTree:
    """Projects an update onto the complement of the orbit, removing the part that does not change the loss.

    The tangent space of the orbit at `params` is {V xi}, with V the derivative of act(exp(xi), params) at
    xi = 0. The result is the residual of the least-squares problem min |update - V xi|, even where the
    columns of V are linearly dependent, as for a general linear group larger than the arrays next to it. It
    is computed by conjugate gradients, which stop when the component along the orbit is down to rounding, or
    after `steps` iterations. Inner products of complex arrays take the real part. Source: the horizontal
    projection of da Silva et al. 2025, "Hide & Seek", for low-rank factors; generalized here to any action.

    **Arguments:** `update` is a tree like `params`; leaves that are not arrays of floats are unchanged.
    Raises ValueError if the two trees differ.

    **Returns** a tree like `update` with the same dtypes, computed in at least float32.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> params = {"w1": jnp.array([[2.0]]), "w2": jnp.array([[1.0]])}
    >>> rescaling = sx.models.mlp_symmetry(params, ["w1", "w2"])
    >>> flat = project_horizontal(rescaling, params, {"w1": jnp.array([[2.0]]), "w2": jnp.array([[-1.0]])})
    >>> print(abs(flat["w1"]).max() < 1e-6)  # the update was along the orbit
    True
    """
    numbers, rest = eqx.partition(params, eqx.is_inexact_array)
    given, others = eqx.partition(update, eqx.is_inexact_array)
    _check_alike(numbers, given)
    # In the wider of the two precisions, so that a float32 update of bfloat16 parameters keeps its digits.
    numbers = jax.tree.map(lambda w, u: jnp.asarray(w, _wide(w, u)), numbers, given)
    given = jax.tree.map(jnp.asarray, given)

    def projected(symmetry, batch, numbers, given):
        project = partial(_project, symmetry, rest=rest, batch=batch, steps=steps)
        return split_like(given, project, numbers, given)

    # One program: operation by operation, the first call on a network compiles dozens.
    return eqx.combine(once(projected, symmetry, batch, numbers, given), others)


def conserved_quantities(symmetry: NetworkSymmetry, params: PyTree) -> dict[str, Array]:
    """The quantities conserved by gradient flow, by space, for every group that is not discrete.

    This is Noether's theorem for parameters. W transforms with g or g^-T along its axes and the loss does not
    change, so under dW/dt = -grad the moments sum(+- W W') over the specs of a space are constant: row
    energies minus column energies for scalings, Gram matrices of plain specs minus Gram matrices of starred
    specs for general linear groups, and energies of pairs for scaled rotations. Entries with an index, `h[0]`
    or `h[1:]`, contribute to the elements that they name; specs with an offset, `h - 1`, contribute moments
    of the array plus 1. Gradient descent with step size eta drifts by O(eta^2) per step; a teleport jumps.
    Rotation groups conserve antisymmetric moments of gradients, not of parameters, and are omitted. For
    complex arrays the moments are the real parts of W W^H. They are accumulated in at least float32, and
    infinite if too large for their dtype.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> params = {"w1": jnp.array([[3.0, 4.0]]), "w2": jnp.array([[2.0]])}
    >>> print(conserved_quantities(sx.models.mlp_symmetry(params, ["w1", "w2"]), params)["hidden1"])
    [21.]
    """
    return whole(
        partial(_conserved, symmetry), jax.tree.map(jnp.asarray, eqx.filter(params, eqx.is_inexact_array))
    )


def _conserved(symmetry: NetworkSymmetry, params: PyTree) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for name, blocks in _blocks(symmetry, symmetry.shifted(params)).items():
        group = symmetry.spaces[name]
        if group.compact:  # discrete, or with moments of gradients instead of parameters
            continue
        scale, moments = _row_scale(group, blocks), []
        for binding, flat in blocks:
            scaled = flat / scale[binding.taken][..., None]
            if isinstance(group, GeneralLinear):
                moment = jnp.einsum("...ir,...jr->...ij", scaled, scaled.conj(), precision="highest").real
            else:
                moment = jnp.sum(_squares(scaled), axis=-1)
            moments.append(_placed(binding.exponent * moment, binding, group))
        total = sum(moments[1:], start=moments[0])
        # Multiply by the factors in turn, so that cancelled moments stay zero and overflow keeps its sign.
        if isinstance(group, GeneralLinear):
            found[name] = total * scale[..., :, None] * scale[..., None, :]
        else:
            found[name] = total * scale * scale
            if isinstance(group, ScaledRotation):
                found[name] = jnp.sum(found[name], axis=-1)
    return found


def _project(
    symmetry: AbstractLieSymmetry, numbers: PyTree, given: PyTree, rest: PyTree, batch: PyTree, steps: int
) -> PyTree:
    """`project_horizontal` for the floating-point arrays of the parameters and the update."""

    def at(xi: Array) -> PyTree:
        moved = symmetry.act(symmetry.exp(xi), eqx.combine(numbers, rest), batch)
        moved = eqx.filter(moved, eqx.is_inexact_array)
        return jax.tree.map(lambda v, w: _real(v.astype(w.dtype)), moved, numbers)

    zero = symmetry.zero()
    along = jax.linearize(at, zero)[1]
    across = jax.linear_transpose(along, zero)
    lengths = jnp.ones_like(zero)
    if isinstance(symmetry, NetworkSymmetry):  # scaled columns need far fewer iterations
        lengths = jax.lax.stop_gradient(_column_lengths(symmetry, numbers)).astype(zero.dtype)

    def system(unknowns: tuple[PyTree, Array]) -> tuple[PyTree, Array]:
        residual, xi = unknowns
        return jax.tree.map(jnp.add, residual, along(xi)), across(residual)[0]

    def solve(_, right: tuple[PyTree, Array]) -> tuple[PyTree, Array]:
        return conjugate_gradients(along, lambda r: across(r)[0], lengths, *right, steps)

    wanted = jax.tree.map(lambda u, w: _real(u.astype(w.dtype)), given, numbers)
    # Posed as a symmetric system for the residual and xi, for exact derivatives in forward and reverse mode.
    residual, _ = jax.lax.custom_linear_solve(system, (wanted, jnp.zeros_like(zero)), solve, symmetric=True)
    return jax.tree.map(lambda u, r: _as_given(r, u), given, residual)


#: The blocks on which a space acts, each with the index axes first, then the bound axis, then the rest.
_Blocks = list[tuple[Binding, Array]]


def _blocks(symmetry: NetworkSymmetry, tree: PyTree) -> dict[str, _Blocks]:
    """The blocks of every space, in at least float32."""
    found: dict[str, _Blocks] = {}

    def collect(x: Array, bindings: tuple[Binding, ...]) -> Array:
        for binding in bindings:
            axes = (*binding.indices, binding.axis)
            front = jnp.moveaxis(x, axes, range(len(axes))).astype(_wide(x))
            flat = front.reshape(*front.shape[: len(axes)], -1)
            found.setdefault(binding.entry.name, []).append((binding, flat))
        return x

    symmetry.visit(tree, collect)
    return found


def _row_scale(group: AbstractGroup, blocks: _Blocks) -> Float[Array, "..."]:
    """Powers of two near the largest entry of every row, (*per, n); dividing by them makes squaring safe."""
    largest = [_placed(jnp.max(jnp.abs(flat), axis=-1), binding, group) for binding, flat in blocks]
    # Of two, so that dividing by it is exact; per row, since rows of one array may differ by many orders.
    largest = reduce(jnp.maximum, largest)
    if isinstance(group, ScaledRotation):  # its rows are summed
        largest = jnp.broadcast_to(jnp.max(largest, axis=-1, keepdims=True), largest.shape)
    return jax.lax.stop_gradient(power_of_two(largest))


def _placed(part: Array, binding: Binding, group: AbstractGroup) -> Array:
    """Places values for the elements that an entry names, with zeros for the group's other elements."""
    if binding.entry.index is None:
        return part
    shape = (*group.lengths, *part.shape[len(binding.indices) :])
    return jnp.zeros(shape, part.dtype).at[binding.taken].set(part)


def _column_lengths(symmetry: NetworkSymmetry, params: PyTree) -> Float[Array, " k"]:
    """Roughly how far each algebra coordinate moves the parameters, per unit of the coordinate."""
    lengths: dict[str, Array] = {}
    for name, blocks in _blocks(symmetry, symmetry.shifted(params)).items():
        group = symmetry.spaces[name]
        if 0 in group.algebra:  # a discrete group has no coordinates
            continue
        scale = _row_scale(group, blocks)

        def rows(blocks: _Blocks, group=group, scale=scale) -> Array:
            squares = [
                _placed(
                    binding.exponent**2 * jnp.sum(_squares(flat / scale[binding.taken][..., None]), -1),
                    binding,
                    group,
                )
                for binding, flat in blocks
            ]
            return scale * jnp.sqrt(sum(squares, start=jnp.zeros(scale.shape)))

        if group.diagonal:
            length = rows(blocks)
        elif isinstance(group, GeneralLinear):
            # Entry (i, j) of the coordinates adds row j to row i of plain arrays, and -row i to row j of dual
            # ones.
            plain = rows([block for block in blocks if not block[0].entry.star])
            starred = rows([block for block in blocks if block[0].entry.star])
            length = jnp.hypot(plain[..., None, :], starred[..., :, None])
        else:
            length = jnp.max(rows(blocks), axis=-1).reshape(
                *group.lengths, *[1] * (len(group.algebra) - len(group.lengths))
            )
        lengths[name] = jnp.broadcast_to(length, group.algebra)
    return symmetry.join(lengths)


def _squares(x: Array) -> Float[Array, "..."]:
    """Entrywise |z|^2."""
    return jnp.real(x * jnp.conj(x))


def _wide(*arrays: Array) -> Any:
    """The dtype in which to compute with these arrays: at least float32."""
    return jnp.result_type(*(x.dtype for x in arrays), jnp.float32)


def _real(x: Array) -> PyTree:
    """Splits a complex array into two real arrays, so that inner products are real."""
    return (x.real, x.imag) if jnp.iscomplexobj(x) else x


def _as_given(parts: PyTree, like: Array) -> Array:
    """The inverse of `_real`, in the dtype of `like`."""
    return (jax.lax.complex(*parts) if isinstance(parts, tuple) else parts).astype(like.dtype)


def _check_alike(params: PyTree, update: PyTree) -> None:
    """Raises ValueError, naming the first array that differs, unless both trees have the same arrays."""
    ours, theirs = named_shapes(params), named_shapes(update)
    for name in {**ours, **theirs}:
        if name not in ours or name not in theirs or ours[name].shape != theirs[name].shape:
            shapes = [str(found[name].shape) if name in found else "nothing" for found in (ours, theirs)]
            raise ValueError(
                f"The update must be a tree like the parameters, but {name} is {shapes[0]} in the parameters "
                f"and {shapes[1]} in the update: give both the same structure and shapes."
            )
