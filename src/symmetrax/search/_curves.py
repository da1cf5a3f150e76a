"""A step along a random curve in the orbit, towards higher or lower curvature."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from symmetrax._keys import check_key
from symmetrax.objectives._landscape import curvature, one_parameter_curve, unit_direction
from symmetrax.search._orbit import Orbit
from symmetrax.search._searches import AbstractSearch
from symmetrax.symmetry._base import AbstractLieSymmetry


class CurvatureStep(AbstractSearch):
    """One step along a random curve t -> exp(t M) . params, by `rate` * d curvature / dt at t = 0.

    The published search for points of different curvature. M is a random unit direction of the algebra, drawn
    from `key` anew for every teleport of an optimizer; the curvature and its derivative take three nested
    forward-mode derivatives of the action. With `down` the step goes towards lower curvature. The step in t
    stays within `bound`. The search uses neither the objective nor the loss. Source: arXiv:2305.13404, whose
    code nests reverse-mode Jacobians, which is about a hundred thousand times more expensive.

    >>> import jax, jax.numpy as jnp, symmetrax as sx
    >>> ellipse = sx.symmetry.Pullback(sx.symmetry.Affine(jnp.array([[1.0, 0.0], [0.0, 3.0]]), jnp.zeros(2)))
    >>> orbit = sx.search.Orbit(lambda x: jnp.sum(x), jnp.array([1.0, 0.4]), ellipse)
    >>> bool(abs(CurvatureStep(jax.random.key(0), rate=0.1)(orbit)) > 0)
    True
    """

    key: Key[Array, ""]
    rate: float | Float[Array, ""] = 0.05
    bound: float | Float[Array, ""] = 1.0
    down: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        check_key(self.key)

    def __call__(self, orbit: Orbit) -> Float[Array, "..."]:
        zero = orbit.zero()
        # Without the count, every teleport of an optimizer would go along the same curve.
        direction = unit_direction(orbit.symmetry, jax.random.fold_in(self.key, orbit.count)).astype(
            zero.dtype
        )
        curve = one_parameter_curve(orbit.symmetry, direction, orbit.params, orbit.batch)
        start = jnp.zeros((), zero.dtype)
        _, slope = jax.jvp(lambda t: curvature(curve, t), (start,), (jnp.ones_like(start),))
        rate, bound = jnp.asarray(self.rate, zero.dtype), jnp.asarray(self.bound, zero.dtype)
        # The curvature is a ratio of norms and its slope has no natural scale, so the step needs a bound.
        step = (rate * (-slope if self.down else slope)).astype(zero.dtype)
        return jnp.clip(step, -bound, bound) * direction

    def evaluations(self, symmetry: AbstractLieSymmetry) -> int:
        return 1
