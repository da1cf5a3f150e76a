"""Rotations in planes of coordinates, conjugated by an invertible map."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from symmetrax._keys import check_key
from symmetrax.symmetry._base import AbstractLieSymmetry, Precondition
from symmetrax.symmetry._maps import AbstractMap
from symmetrax.symmetry._pullback import Pullback


class PlaneRotations(AbstractLieSymmetry):
    """Rotations in the planes of coordinates 1 and 2, 3 and 4, ..., conjugated by `map`: a torus in SO(n).

    It has floor(n/2) of the n(n-1)/2 angles of `Pullback`, one for each plane. They commute and cost little
    in high dimensions, but no rotation carries anything from one plane to another. Elements are the angles.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> task = sx.tasks.generalized_booth(jnp.diag(jnp.array([1.0, 2.0, 3.0, 4.0, 5.0])))
    >>> symmetry, x = PlaneRotations(task.map), jnp.arange(5.0)
    >>> there = symmetry.act(symmetry.exp(jnp.array([1.0, -2.0])), x)
    >>> bool(jnp.allclose(task.loss(there), task.loss(x), rtol=1e-4))
    True
    """

    linear: ClassVar[bool] = False
    reasons: ClassVar[tuple[str, ...]] = Pullback.reasons

    map: AbstractMap

    @property
    def algebra(self) -> tuple[int, ...]:
        return (self.map.size // 2,)

    def identity(self) -> Float[Array, " k"]:
        return jnp.zeros(self.algebra)

    def compose(self, a: Float[Array, " k"], b: Float[Array, " k"]) -> Float[Array, " k"]:
        return a + b

    def inverse(self, a: Float[Array, " k"]) -> Float[Array, " k"]:
        return -a

    def sample(self, key: Key[Array, ""]) -> Float[Array, " k"]:
        check_key(key)
        return jax.random.uniform(key, self.algebra, minval=-jnp.pi, maxval=jnp.pi)

    def exp(self, coordinates: Float[Array, " k"]) -> Float[Array, " k"]:
        return coordinates

    def bounded(self, coordinates: Float[Array, " k"], bound: float | Array) -> Float[Array, " k"]:
        return coordinates

    def act(self, a: Float[Array, " k"], params: Float[Array, " n"], batch: PyTree = None) -> Array:
        u = self.map(params)
        paired = 2 * len(a)
        x, y = u[0:paired:2], u[1:paired:2]
        turned = jnp.stack([jnp.cos(a) * x - jnp.sin(a) * y, jnp.sin(a) * x + jnp.cos(a) * y], axis=-1)
        return self.map.inverse(jnp.concatenate([turned.reshape(-1), u[paired:]]))

    def holds(self, params: Float[Array, " n"], batch: PyTree = None) -> Precondition:
        return Pullback(self.map).holds(params)
