"""Rotations conjugated by an invertible map: the symmetry of any sum of squares."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, Key, PyTree

from symmetrax._keys import check_key
from symmetrax._tree import relative
from symmetrax.groups._matrices import SpecialOrthogonal, matvec
from symmetrax.symmetry._base import AbstractLieSymmetry, Precondition, check_vector
from symmetrax.symmetry._maps import AbstractMap


class Pullback(AbstractLieSymmetry):
    """Rotations R in SO(n) acting by x -> h^-1(R h(x)), which preserve f(x) = ||h(x)||^2.

    `map` is h, a bijection of R^n. Elements are matrices R of shape (n, n); the algebra has n(n-1)/2
    coordinates, a single angle in radians for n = 2. The action is exact for every R, but points can move
    arbitrarily far where h^-1 is steep. Source: section 5.1.1 of arXiv:2504.15399 (n = 2).

    `linear` is False: the action is affine in x only for linear h. Use `transport_gradient` to carry
    gradients.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> task = sx.tasks.booth()
    >>> symmetry = Pullback(task.map)
    >>> x = jnp.array([5.0, -5.0])
    >>> there = symmetry.act(symmetry.exp(jnp.array([0.5])), x)
    >>> bool(jnp.allclose(task.loss(there), task.loss(x)))
    True
    """

    linear: ClassVar[bool] = False
    reasons: ClassVar[tuple[str, ...]] = (
        "holds",
        "the map is not invertible here: h^-1(h(x)) differs from x",
    )

    map: AbstractMap

    @property
    def group(self) -> SpecialOrthogonal:
        """The rotations that act on the image of the map."""
        return SpecialOrthogonal(self.map.size)

    @property
    def algebra(self) -> tuple[int, ...]:
        return self.group.algebra

    def identity(self) -> Float[Array, "n n"]:
        return self.group.identity()

    def compose(self, a: Float[Array, "n n"], b: Float[Array, "n n"]) -> Float[Array, "n n"]:
        return self.group.compose(a, b)

    def inverse(self, a: Float[Array, "n n"]) -> Float[Array, "n n"]:
        return self.group.inverse(a)

    def sample(self, key: Key[Array, ""]) -> Float[Array, "n n"]:
        check_key(key)
        return self.group.sample(key)

    def exp(self, coordinates: Float[Array, " k"]) -> Float[Array, "n n"]:
        return self.group.exp(coordinates)

    def bounded(self, coordinates: Float[Array, " k"], bound) -> Float[Array, " k"]:
        return self.group.bounded(coordinates, bound)

    def act(self, a: Float[Array, "n n"], params: Inexact[Array, " n"], batch=None) -> Inexact[Array, " n"]:
        return self.map.inverse(matvec(a, self.map(params)))

    def check(self, params: PyTree) -> None:
        if type(self).act is Pullback.act:  # subclasses may act on other trees
            check_vector(self, params, self.map.size)

    def holds(self, params: Inexact[Array, " n"], batch=None) -> Precondition:
        residual = relative(self.map.inverse(self.map(params)) - params, params)
        tolerance = jnp.sqrt(jnp.finfo(params.dtype).eps)
        # Written so that a NaN residual counts as a failure.
        return Precondition(jnp.where(residual <= tolerance, 0, 1), residual)
