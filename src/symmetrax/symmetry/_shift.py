"""The shift that softmax forgets: a number added to all logits alike."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from symmetrax._keys import check_key
from symmetrax._tree import leaf_names
from symmetrax.symmetry._base import AbstractLieSymmetry, Precondition
from symmetrax.symmetry._layouts import Layout
from symmetrax.symmetry._network import check_present, named_shapes, only_path


class LogitShift(AbstractLieSymmetry):
    """Adds the same number to all logits of a sample, which softmax and cross-entropy do not see.

    Where the last layer's logits are W h + b, for features h of any network,

        W -> W + 1 c',    b -> b + d 1

    adds c'h + d to every one of them: the rows of W all move by the vector c, the entries of b by the number
    d. Such shifts form the group R^k under addition, and an element is its own coordinates: c, then d if
    there is a bias. Unlike the actions of `NetworkSymmetry` this is a translation. So `linear` is False, and
    the norm of the parameters changes but the gradient does not: it is the same on the whole orbit, and
    orthogonal to it. Gradient steps never move along it; the least norm is where the rows of W, and the
    entries of b, have mean zero.

    **Arguments:** `weight` and `bias` are the paths of W and b (None without one) in the parameters `like`,
    of which only shapes are used. `layout` says how W is stored: "out in", one row for each class, or
    "in out". Raises ValueError for a path that is not there and for shapes that do not fit.

    Exact for every loss of the softmax of the logits; the parameters alone do not tell, so `holds` always
    says yes, and `symmetrax.verify` measures. Source: arXiv:2012.04728.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> params = {"w": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "b": jnp.zeros(2)}
    >>> symmetry = LogitShift("w", "b", like=params)
    >>> print(symmetry.act(jnp.array([10.0, 20.0, 5.0]), params))
    {'b': Array([5., 5.], dtype=float32), 'w': Array([[11., 22.],
           [13., 24.]], dtype=float32)}
    """

    linear: ClassVar[bool] = False
    reasons: ClassVar[tuple[str, ...]] = ("holds",)

    weight: str = eqx.field(static=True)
    bias: str | None = eqx.field(static=True)
    inputs: int = eqx.field(static=True)
    layout: Layout = eqx.field(static=True)

    def __init__(self, weight: str, bias: str | None = None, *, like: PyTree, layout: Layout = "out in"):
        if layout not in ("out in", "in out"):
            raise ValueError(f"`layout` must be 'out in' or 'in out', got {layout!r}.")
        shapes = named_shapes(like)
        weight = only_path(weight, shapes)
        bias = None if bias is None else only_path(bias, shapes)
        shape = shapes[weight].shape
        if len(shape) != 2:
            raise ValueError(f"LogitShift needs a matrix, but {weight} has shape {shape}.")
        classes, inputs = shape if layout == "out in" else shape[::-1]
        if bias is not None and shapes[bias].shape != (classes,):
            raise ValueError(
                f"{weight}, stored {layout!r}, has {classes} logits, but {bias} has shape "
                f"{shapes[bias].shape}."
            )
        self.weight, self.bias, self.inputs, self.layout = weight, bias, inputs, layout

    @property
    def algebra(self) -> tuple[int]:
        return (self.inputs + (self.bias is not None),)

    def identity(self) -> Float[Array, " k"]:
        return self.zero()

    def compose(self, a: Float[Array, " k"], b: Float[Array, " k"]) -> Float[Array, " k"]:
        return a + b

    def inverse(self, a: Float[Array, " k"]) -> Float[Array, " k"]:
        return -a

    def exp(self, coordinates: Float[Array, " k"]) -> Float[Array, " k"]:
        return coordinates

    def sample(self, key: Key[Array, ""]) -> Float[Array, " k"]:
        check_key(key)
        return jax.random.normal(key, self.algebra)

    def act(self, a: Float[Array, " k"], params: PyTree, batch: PyTree = None) -> PyTree:
        rows = a[: self.inputs]
        shifts = {self.weight: rows if self.layout == "out in" else rows[:, None]}
        if self.bias is not None:
            shifts[self.bias] = a[self.inputs]

        leaves, structure = jax.tree.flatten(params)
        names = leaf_names(params)
        check_present(shifts, names)
        moved = [
            (leaf + shifts[name]).astype(leaf.dtype) if name in shifts else leaf
            for name, leaf in zip(names, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, moved)

    def check(self, params: PyTree) -> None:
        LogitShift(self.weight, self.bias, like=params, layout=self.layout)

    def holds(self, params: PyTree, batch: PyTree = None) -> Precondition:
        return Precondition(jnp.array(0), jnp.array(0.0))

    def transport_tangent(
        self, a: Float[Array, " k"], params: PyTree, tangent: PyTree, batch: PyTree = None
    ) -> PyTree:
        return tangent

    def transport_gradient(
        self, a: Float[Array, " k"], params: PyTree, cotangent: PyTree, batch: PyTree = None
    ) -> PyTree:
        return cotangent

    def pull_squared(self, a: Float[Array, " k"], squares: PyTree) -> PyTree:
        """Squares of gradients (entry by entry) at `params`, carried to `act(a, params)`: they stay."""
        return squares

    def push_squared(self, a: Float[Array, " k"], squares: PyTree) -> PyTree:
        """Squares of displacements (entry by entry), carried to `act(a, params)`: they stay."""
        return squares
