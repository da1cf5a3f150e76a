"""The squared norm of a tree along an orbit, with everything summed out that no group element changes.

For an exact linear action, ||a.G||^2 as a function of the element `a` depends on little of the tree G: row
and column sums of squares for scalings, Gram matrices for general linear groups. Once reduced like this, a
single gradient gives its squared norm everywhere on the orbit at the cost of a few small products.
"""

from collections.abc import Iterator
from typing import Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from symmetrax._tree import magnitude, replicated, scaled, squared_norm, squares, total, widened
from symmetrax.groups._diagonal import AbstractGroup, NonzeroDiagonal, PositiveDiagonal
from symmetrax.groups._matrices import GeneralLinear, ScaledRotation
from symmetrax.symmetry._along import apply
from symmetrax.symmetry._network import NetworkSymmetry
from symmetrax.symmetry._walk import Binding

Kind = Literal["squares", "gram", "whole"]

#: Groups that multiply the square at each index by the square of a scale, and change squares in no other way.
#: Their first algebra coordinates are the logarithms of the scales.
SCALINGS = (PositiveDiagonal, NonzeroDiagonal, ScaledRotation)


class _Block(eqx.Module):
    """A block of an array, reduced to sums of squares.

    "squares": squares, summed over the axes that no group element stretches. "gram": the Gram matrices of the
    only axis that is acted on. "whole": the block itself.
    """

    kind: Kind = eqx.field(static=True)
    array: Array
    bindings: tuple[Binding, ...] = eqx.field(static=True)


class Energies(eqx.Module):
    """||act(a, tree)||^2, or ||act(dual(a), tree)||^2 with `dual`, as a function of a = exp(coordinates).

    Compact groups do not change it; `spaces` are the others. All sums are taken over the tree divided by
    `scale`, a power of two near its largest entry, so that no square overflows or underflows.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> params = {"w1": jnp.array([[3.0, 4.0]]), "w2": jnp.array([[2.0]])}
    >>> scaling = {"h": sx.groups.PositiveDiagonal(1)}
    >>> symmetry = sx.NetworkSymmetry(scaling, {"w1": "h _", "w2": "_ h*"}, like=params)
    >>> energies = Energies.of(symmetry, params, dual=False)
    >>> print(energies(jnp.log(jnp.array([2.0]))))  # 4 * 25 + 4 / 4
    101.0
    """

    symmetry: NetworkSymmetry
    scale: Float[Array, ""]
    constant: Float[Array, ""]
    blocks: tuple[_Block, ...]
    dual: bool = eqx.field(static=True)

    @classmethod
    def of(cls, symmetry: NetworkSymmetry, tree: PyTree, *, dual: bool) -> "Energies":
        """Reduces a tree: a gradient (`dual=True`), or parameters."""
        numbers = eqx.filter(tree, eqx.is_inexact_array)
        # The squares of small gradients would underflow in single precision.
        scale = magnitude(numbers)
        blocks: list[_Block] = []
        constants: list[Array] = []

        def collect(x: Array, bindings: tuple[Binding, ...]) -> Array:
            stretching = tuple(t for t in bindings if stretches(symmetry.spaces[t.entry.name]))
            if stretching:
                blocks.append(_reduce(symmetry, x, stretching))
            else:
                constants.append(squared_norm(x))
            # Whatever `visit` does not pass to this function keeps its value, and is counted below.
            return jnp.zeros_like(x)

        unvisited = symmetry.visit(scaled(numbers, scale), collect)
        return cls(symmetry, scale, total([squared_norm(unvisited), *constants]), tuple(blocks), dual)

    @property
    def spaces(self) -> tuple[str, ...]:
        """The spaces whose elements change the norm."""
        return tuple(name for name, group in self.symmetry.spaces.items() if stretches(group))

    @property
    def coupled(self) -> bool:
        """Whether two of them act on a common array, so that the optimum of each depends on the others."""
        return any(len(block.bindings) > 1 for block in self.blocks)

    def __call__(self, coordinates: Float[Array, " k"]) -> Float[Array, ""]:
        # Twice by the scale, because its square alone can underflow.
        return self.relative(coordinates) * self.scale * self.scale

    def relative(self, coordinates: Float[Array, " k"]) -> Float[Array, ""]:
        """The squared norm in units of `scale`^2, which is finite wherever the norm is finite."""
        parts, terms = self.symmetry.split(coordinates), [self.constant]
        for block in self.blocks:
            if block.kind == "gram":
                (binding,) = block.bindings
                matrix = self._matrix(binding, parts[binding.entry.name])
                # ||g G||^2 = tr(g Gram g'), at the size of the group, not of the gradient.
                moved = jnp.matmul(matrix, block.array, precision="highest")
                terms.append(jnp.sum(moved * matrix))
            else:
                array = self._moved(block, block.bindings, parts)
                terms.append(jnp.sum(array if block.kind == "squares" else squares(array)))
        return total(terms)

    def share(self, space: str, parts: dict[str, Array]) -> Iterator[tuple[Binding, float, Array]]:
        """Yields the binding, exponent, and squares or Gram matrices of each array that `space` acts on.

        The other spaces are at `parts`. A scaling s = exp(t) contributes
        sum(squares * exp(2 * exponent * t)), with squares of shape (*per, size); a matrix g contributes
        tr(g' g Gram), or tr((g' g)^-1 Gram) where the exponent is -1.
        """
        for block in self.blocks:
            mine = [binding for binding in block.bindings if binding.entry.name == space]
            if len(mine) > 1:
                raise ValueError(
                    f"ClosedForm needs every array to have at most one axis in the space {space!r}, got one "
                    f"with {len(mine)}: use Ascent()."
                )
            for binding in mine:
                others = tuple(other for other in block.bindings if other is not binding)
                array = self._moved(block, others, parts)
                yield (
                    binding,
                    self._exponent(binding),
                    _unfold(block.kind, self.symmetry.spaces[space], array, binding),
                )

    def _exponent(self, binding: Binding) -> float:
        return -binding.exponent if self.dual else binding.exponent

    def _matrix(self, binding: Binding, part: Array) -> Array:
        """Returns the matrix by which a general linear element multiplies this axis."""
        group = self.symmetry.spaces[binding.entry.name]
        element = group.exp(part if binding.entry.index is None else part[binding.taken])
        # The second part of an element is g^-T, so neither case needs an inverse.
        return element[0] if self._exponent(binding) > 0 else element[1]

    def _moved(self, block: _Block, bindings: tuple[Binding, ...], parts: dict[str, Array]) -> Array:
        array = block.array
        for binding in bindings:
            group, part = self.symmetry.spaces[binding.entry.name], parts[binding.entry.name]
            if block.kind == "squares":
                logs = _logs(group, part)
                logs = logs if binding.entry.index is None else logs[binding.taken]
                array = array * jnp.exp(
                    2 * self._exponent(binding) * broadcast_along(logs, binding, array.ndim)
                )
            else:
                element = group.exp(part)
                array = apply(group, group.dual(element) if self.dual else element, array, binding)
        return array


def stretches(group: AbstractGroup) -> bool:
    """Returns whether elements of the group change norms.

    >>> import symmetrax as sx
    >>> stretches(sx.groups.PositiveDiagonal(3)), stretches(sx.groups.Orthogonal(3))
    (True, False)
    """
    return not group.compact


def _reduce(symmetry: NetworkSymmetry, x: Array, bindings: tuple[Binding, ...]) -> _Block:
    groups = [symmetry.spaces[binding.entry.name] for binding in bindings]
    if all(isinstance(group, SCALINGS) for group in groups):
        kept = {axis for binding in bindings for axis in (*binding.indices, binding.axis)}
        # A scaled rotation scales both entries of each pair alike, so its own axis is summed as well.
        kept -= {
            t.axis for t, group in zip(bindings, groups, strict=True) if isinstance(group, ScaledRotation)
        }
        free = tuple(axis for axis in range(x.ndim) if axis not in kept)
        return _Block("squares", replicated(jnp.sum(squares(x), axis=free, keepdims=True)), bindings)
    x = replicated(x)
    if len(bindings) == 1 and isinstance(groups[0], GeneralLinear):
        return _Block("gram", gram(x, bindings[0]), bindings)
    return _Block("whole", x, bindings)


def _unfold(kind: Kind, group: AbstractGroup, array: Array, binding: Binding) -> Array:
    """Squares of shape (*per, size), or Gram matrices, of the part of an array that one space acts on."""
    if kind == "gram":
        return array
    if isinstance(group, GeneralLinear):
        return gram(array, binding)
    energy = array if kind == "squares" else squares(array)
    if isinstance(group, ScaledRotation):
        energy = jnp.sum(energy, axis=binding.axis, keepdims=True)
    axes = (*binding.indices, binding.axis)
    front = jnp.moveaxis(energy, axes, range(len(axes)))
    return jnp.sum(front.reshape(*front.shape[: len(axes)], -1), axis=-1)


def gram(x: Array, binding: Binding) -> Array:
    """The Gram matrices of an array along a bound axis, of shape (*indices, size, size).

    >>> from symmetrax.symmetry._specs import Entry
    >>> print(gram(jnp.array([[1.0, 2.0], [0.0, 1.0]]), Binding(Entry("h"), axis=0, indices=())))
    [[5. 2.]
     [2. 1.]]
    """
    axes = (*binding.indices, binding.axis)
    front = jnp.moveaxis(widened(x), axes, range(len(axes)))
    flat = front.reshape(*front.shape[: len(axes)], -1)
    # A real matrix multiplies the real and the imaginary part.
    if jnp.iscomplexobj(flat):
        flat = jnp.concatenate([flat.real, flat.imag], axis=-1)
    return jnp.einsum("...ir,...jr->...ij", flat, flat, precision="highest")


def placed(square: Array, binding: Binding, lengths: tuple[int, ...]) -> Array:
    """Places the squares, or Gram matrices, of some copies of a group among those of all copies.

    >>> from symmetrax.symmetry._specs import Entry
    >>> print(placed(jnp.array([5.0]), Binding(Entry("h", index=1), axis=0, indices=()), (2,)))
    [[0.]
     [5.]]
    """
    index = binding.entry.index
    if index is None:
        return square
    taken = index if isinstance(index, int) else slice(*index)
    rest = square.shape[len(lengths) - isinstance(index, int) :]
    return jnp.zeros((*lengths, *rest), square.dtype).at[taken].add(square)


def _logs(group: AbstractGroup, part: Array) -> Array:
    """Logarithms of the scales at these coordinates, of shape (*per, size or 1)."""
    return part[..., :1] if isinstance(group, ScaledRotation) else part


def broadcast_along(logs: Array, binding: Binding, ndim: int) -> Array:
    """Broadcasts `logs`, whose axes are the axes of `binding`, to an array with `ndim` axes.

    >>> from symmetrax.symmetry._specs import Entry
    >>> broadcast_along(jnp.zeros(3), Binding(Entry("h"), axis=1, indices=()), 2).shape
    (1, 3)
    """
    # `binding.indices` are the axes that number copies of the group; they come first in `logs`, but anywhere
    # in the array.
    axes = (*binding.indices, binding.axis)
    order = sorted(range(len(axes)), key=axes.__getitem__)
    shape = [1] * ndim
    for k, axis in enumerate(axes):
        shape[axis] = logs.shape[k]
    return jnp.transpose(logs, order).reshape(shape)
