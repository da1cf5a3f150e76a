"""The combination of two symmetries of the same tree."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from symmetrax.symmetry._base import AbstractLieSymmetry, Precondition


class Joined(AbstractLieSymmetry):
    """The combination `first | second`: an element is a pair (a, b) that acts as `a` after `b`.

    This is a group action only if the two commute, act(a, act(b, w)) = act(b, act(a, w)), as they do on
    different arrays or different spaces; `verify` tests this through the composition law. The coordinate
    vector is the concatenation of both coordinate vectors, first and second.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> params = {"w1": jnp.ones((4, 3)), "w2": jnp.ones((2, 4))}
    >>> both = sx.models.mlp_symmetry(params) | sx.symmetry.LogitShift("w2", like=params)
    >>> both.algebra
    (8,)
    """

    first: AbstractLieSymmetry
    second: AbstractLieSymmetry

    @property
    def linear(self) -> bool:
        return self.first.linear and self.second.linear

    @property
    def reasons(self) -> tuple[str, ...]:
        return (*self.first.reasons, *self.second.reasons[1:])

    @property
    def algebra(self) -> tuple[int]:
        return (math.prod(self.first.algebra) + math.prod(self.second.algebra),)

    def identity(self) -> tuple[PyTree, PyTree]:
        return self.first.identity(), self.second.identity()

    def compose(self, a: tuple[PyTree, PyTree], b: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        return self.first.compose(a[0], b[0]), self.second.compose(a[1], b[1])

    def inverse(self, a: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        return self.first.inverse(a[0]), self.second.inverse(a[1])

    def sample(self, key: Key[Array, ""]) -> tuple[PyTree, PyTree]:
        one, other = jax.random.split(key)
        return self.first.sample(one), self.second.sample(other)

    def exp(self, coordinates: Float[Array, " k"]) -> tuple[PyTree, PyTree]:
        one, other = self._parts(coordinates)
        return self.first.exp(one), self.second.exp(other)

    def exp_within(self, coordinates: Float[Array, " k"], max_norm: float) -> tuple[PyTree, PyTree]:
        one, other = self._parts(coordinates)
        return self.first.exp_within(one, max_norm), self.second.exp_within(other, max_norm)

    def jet(self, direction: Float[Array, " k"], t: Float[Array, ""]) -> tuple[PyTree, PyTree]:
        one, other = self._parts(direction)
        return self.first.jet(one, t), self.second.jet(other, t)

    def bounded(self, coordinates: Float[Array, " k"], bound: float | Array) -> Float[Array, " k"]:
        one, other = self._parts(coordinates)
        bounded = self.first.bounded(one, bound), self.second.bounded(other, bound)
        return jnp.concatenate([jnp.ravel(part) for part in bounded])

    def zero(self) -> Float[Array, " k"]:
        return jnp.concatenate([jnp.ravel(self.first.zero()), jnp.ravel(self.second.zero())])

    def act(self, a: tuple[PyTree, PyTree], params: PyTree, batch: PyTree = None) -> PyTree:
        return self.first.act(a[0], self.second.act(a[1], params, batch), batch)

    def transport_tangent(self, a: tuple, params: PyTree, tangent: PyTree, batch: PyTree = None) -> PyTree:
        between = self.second.act(a[1], params, batch)
        return self.first.transport_tangent(
            a[0], between, self.second.transport_tangent(a[1], params, tangent, batch), batch
        )

    def transport_gradient(self, a: tuple, params: PyTree, cotangent: PyTree, batch: PyTree = None) -> PyTree:
        between = self.second.act(a[1], params, batch)
        return self.first.transport_gradient(
            a[0], between, self.second.transport_gradient(a[1], params, cotangent, batch), batch
        )

    def check(self, params: PyTree) -> None:
        self.first.check(params)
        self.second.check(params)

    def holds(self, params: PyTree, batch: PyTree = None) -> Precondition:
        one, other = self.first.holds(params, batch), self.second.holds(params, batch)
        code = jnp.where(other.code > 0, other.code + len(self.first.reasons) - 1, 0)
        return Precondition(
            jnp.where(one.code > 0, one.code, code), jnp.maximum(one.residual, other.residual)
        )

    def _parts(self, coordinates: Float[Array, " k"]) -> tuple[Array, Array]:
        ends = math.prod(self.first.algebra)
        one, other = coordinates[:ends], coordinates[ends:]
        return one.reshape(self.first.algebra), other.reshape(self.second.algebra)
