"""The shift invariance of softmax: a number added to all logits."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from symmetrax._keys import check_key
from symmetrax._tree import leaf_names
from symmetrax.symmetry._base import AbstractLieSymmetry, Precondition
from symmetrax.symmetry._layouts import Layout
from symmetrax.symmetry._paths import check_present, named_shapes, only_path


class LogitShift(AbstractLieSymmetry):
    """Adds the same number to all logits of a sample, which leaves softmax and cross-entropy unchanged.

    If the logits of the last layer are W h + b, for the features h of any network, then

        W -> W + 1 c',    b -> b + d 1

    adds c'h + d to every logit: all rows of W move by the vector c, all entries of b by the number d. These
    shifts form the group R^k under addition, and an element is its own coordinate vector: c, then d if there
    is a bias. Unlike the actions of `NetworkSymmetry`, this is a translation, so `linear` is False. The norm
    of the parameters changes along the orbit, but the gradient is constant on it and orthogonal to it.
    Gradient steps never move along the orbit; the norm is smallest where the rows of W, and the entries of b,
    have mean zero.

    **Arguments:** `weight` and `bias` are the paths of W and b (None without a bias) in the parameters
    `like`, of which only shapes are used. `layout` is the storage order of W: "out in", with a row for each
    class, or "in out". Raises ValueError for missing paths and incompatible shapes.

    Exact for every loss that depends on the logits only through their softmax. The parameters alone cannot
    show this, so `holds` always succeeds; use `symmetrax.verify` to test your loss. Source: arXiv:2012.04728.

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
            raise ValueError(
                f"LogitShift needs a matrix, but {weight} has shape {shape}: name the weight of the last "
                "layer."
            )
        classes, inputs = shape if layout == "out in" else shape[::-1]
        if bias is not None and shapes[bias].shape != (classes,):
            raise ValueError(
                f"{weight}, stored {layout!r}, has {classes} logits, but {bias} has shape "
                f"{shapes[bias].shape}: name the bias of the same layer, or pass another `layout`."
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
        # The same vector is added to the row of every class, by broadcasting.
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
        LogitShift(self.weight, self.bias, like=params, layout=self.layout)  # the constructor checks shapes

    def holds(self, params: PyTree, batch: PyTree = None) -> Precondition:
        return Precondition(jnp.array(0), jnp.array(0.0))

    # The action is a translation, so its derivative is the identity.
    def transport_tangent(
        self, a: Float[Array, " k"], params: PyTree, tangent: PyTree, batch: PyTree = None
    ) -> PyTree:
        return tangent

    def transport_gradient(
        self, a: Float[Array, " k"], params: PyTree, cotangent: PyTree, batch: PyTree = None
    ) -> PyTree:
        return cotangent

    def transport_squared_gradient(self, a: Float[Array, " k"], squares: PyTree) -> PyTree:
        """Carries entrywise squares of gradients from `params` to `act(a, params)`, unchanged."""
        return squares

    def transport_squared_tangent(self, a: Float[Array, " k"], squares: PyTree) -> PyTree:
        """Carries entrywise squares of displacements to `act(a, params)`, unchanged."""
        return squares
