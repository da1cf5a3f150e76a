"""A symmetry in other units: every parameter scaled by its own number."""

import optax
from jaxtyping import PyTree

from symmetrax.symmetry._base import AbstractConjugated, AbstractLieSymmetry, Precondition


class RescaledSymmetry(AbstractConjugated):
    """A symmetry of `loss` transferred to `loss(params * scale)`: w -> act(a, w s) / s.

    `scale` is a tree like the parameters, without zeros, and products are entry by entry. A linear diagonal
    change of coordinates conjugates exactly: elements, composition and algebra are those of `symmetry`, and
    the result is linear if `symmetry` is.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> task, scale = sx.tasks.booth(), jnp.array([2.0, 0.5])
    >>> symmetry = RescaledSymmetry(task.symmetry(), scale)
    >>> x = jnp.array([5.0, -5.0])
    >>> there = symmetry.act(symmetry.exp(jnp.array([0.5])), x)
    >>> bool(jnp.allclose(task.loss(there * scale), task.loss(x * scale)))
    True
    """

    symmetry: AbstractLieSymmetry
    scale: PyTree

    def __init__(self, symmetry: AbstractLieSymmetry, scale: PyTree):
        self.symmetry, self.scale = symmetry, scale

    @property
    def linear(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.symmetry.linear

    def act(self, a: PyTree, params: PyTree, batch: PyTree = None) -> PyTree:
        return optax.tree.div(self.symmetry.act(a, optax.tree.mul(params, self.scale), batch), self.scale)

    def transport_tangent(self, a: PyTree, params: PyTree, tangent: PyTree, batch: PyTree = None) -> PyTree:
        params, tangent = optax.tree.mul(params, self.scale), optax.tree.mul(tangent, self.scale)
        return optax.tree.div(self.symmetry.transport_tangent(a, params, tangent, batch), self.scale)

    # A gradient scales inversely to the parameters, so it is divided and multiplied the other way around.
    def transport_gradient(
        self, a: PyTree, params: PyTree, cotangent: PyTree, batch: PyTree = None
    ) -> PyTree:
        params, cotangent = optax.tree.mul(params, self.scale), optax.tree.div(cotangent, self.scale)
        return optax.tree.mul(self.symmetry.transport_gradient(a, params, cotangent, batch), self.scale)

    def holds(self, params: PyTree, batch: PyTree = None) -> Precondition:
        return self.symmetry.holds(optax.tree.mul(params, self.scale), batch)
