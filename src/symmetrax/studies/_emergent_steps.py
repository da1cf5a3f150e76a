"""Single steps of optimizers that look along the orbit."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from symmetrax._tree import squared_norm
from symmetrax.learned._transformation import LearnedState
from symmetrax.learned._update_rule import UpdateRule
from symmetrax.search._orbit import Orbit
from symmetrax.search._searches import Oracle
from symmetrax.studies._predictors_features import determinant
from symmetrax.symmetry._maps import Affine
from symmetrax.tasks._plane import SumOfSquares

#: The number of angles of the orbit that are looked at.
ANGLES = 32


def look(
    rule: UpdateRule, task: SumOfSquares, point: Array, state: LearnedState, after: Array
) -> dict[str, Array]:
    """Measures one step of an optimizer that looks along the orbit, and the orbit that it saw.

    - "update" u, "gradient" g where it begins (after the teleport with `order="teleport-first"`), and
      "newton", -H^-1 g there: vectors;
    - "angle": that of the teleport, also if it was rejected;
    - "headroom": ln(largest / median squared gradient norm) on the orbit of the point that is teleported;
    - "oracle": the angle from there to the orbit's steepest point, the nearer of the two; NaN unless the map
      is affine, where it has a closed form.
    """
    symmetry = task.symmetry()
    gradient = jax.grad(task.loss)(point)
    begins, origin = point, point + state.previous
    if rule.order == "teleport-first":
        element = symmetry.exp(jnp.where(state.outcome == 0, state.algebra, 0.0))
        gradient = symmetry.transport_gradient(element, point, gradient)
        begins, origin = symmetry.act(element, point), point

    def steep(angle: Array) -> Array:
        return squared_norm(jax.grad(task.loss)(symmetry.act(symmetry.exp(angle[None]), origin)))

    around = jax.vmap(steep)(jnp.linspace(-jnp.pi, jnp.pi, ANGLES, endpoint=False))
    around = jnp.where(jnp.isfinite(around) & (around > 0), around, jnp.nan)
    affine = isinstance(task.map, Affine)
    return {
        "update": state.previous,
        "gradient": gradient,
        "newton": newton(jax.hessian(task.loss)(begins), gradient),
        "angle": jnp.ravel(state.algebra)[0],
        "headroom": jnp.log(jnp.nanmax(around)) - jnp.log(jnp.nanmedian(around)),
        "oracle": Oracle()(Orbit(task.loss, origin, symmetry))[0] if affine else jnp.array(jnp.nan),
    }


def newton(hessian: Float[Array, "2 2"], gradient: Float[Array, "2"]) -> Float[Array, "2"]:
    """-H^-1 g in closed form; not finite where H is singular.

    >>> newton(jnp.array([[2.0, 0.0], [0.0, 4.0]]), jnp.array([2.0, 2.0])).tolist()
    [-1.0, -0.5]
    """
    (a, b), (c, d) = hessian
    g, k = gradient
    return -jnp.stack([d * g - b * k, a * k - c * g]) / determinant(hessian)


def direction(vectors: Float[np.ndarray, "... n"]) -> Float[np.ndarray, "... n"]:
    """Vectors at length 1; NaN where a vector is zero or not finite.

    >>> direction(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6, 0.8], [nan, nan]]
    """
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    some = np.isfinite(length) & (length > 0)
    return np.where(some, vectors / np.where(some, length, 1.0), np.nan)


def cosine(x: Float[np.ndarray, "... n"], y: Float[np.ndarray, "... n"]) -> Float[np.ndarray, "..."]:
    """Of the angle between vectors; NaN where one is zero or not finite.

    >>> cosine(np.array([[1.0, 0.0]]), np.array([[0.0, 2.0]])).tolist()
    [0.0]
    """
    return np.sum(direction(x) * direction(y), axis=-1)
