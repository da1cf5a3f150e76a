"""What optimizers that look along the orbit did at every step, and what there was to see."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from symmetrax._tree import squared_norm
from symmetrax.learned._update_rule import UpdateRule
from symmetrax.metatrain._devices import spread
from symmetrax.rollout._unroll import draw_many, unroll_many
from symmetrax.search._orbit import Orbit
from symmetrax.search._searches import Oracle
from symmetrax.studies._predictors_features import determinant
from symmetrax.symmetry._maps import Affine
from symmetrax.tasks._base import AbstractTaskFamily
from symmetrax.tasks._plane import SumOfSquares

#: So many angles of the orbit are looked at.
ANGLES = 32

#: By name, axes seeds, tasks, steps, and for vectors one more.
Tracks = dict[str, np.ndarray]


def follow_many(
    rule: UpdateRule,
    networks: PyTree,
    family: AbstractTaskFamily,
    keys: Key[Array, " seeds"],
    *,
    steps: int,
    tasks: int,
) -> Tracks:
    """Run every seed's network on tasks of a family of the plane, and tell of every step:

    - "update" u, "gradient" g where it begins (after the teleport with `order="teleport-first"`), and
      "newton", -H^-1 g there: vectors;
    - "loss", one entry more: at all points;
    - "algebra", "gate" and "outcome": what the state tells;
    - "headroom": ln(largest / median squared gradient norm) on the orbit of the point that is teleported;
    - "oracle": the angle from there to the orbit's steepest point, the nearer of the two; NaN unless the map
      is affine, where it has a closed form.
    """
    found = _follow(rule, networks, family, keys, steps, tasks)
    return {name: np.asarray(values, float) for name, values in found.items()}


@eqx.filter_jit
def _follow(rule, networks, family, keys, steps, tasks):
    arrays, static = eqx.partition(networks, eqx.is_array)
    watch = ("algebra", "gate", "outcome", "previous")

    def of_seed(inputs):
        network, key = eqx.combine(inputs[0], static), inputs[1]
        trace = unroll_many(rule, network, family, key, steps, tasks, watch=watch, points=True)
        drawn = draw_many(family, tasks, key)
        recorded = {name: values[1:] for name, values in trace.watched.items()}

        def at_step(step):
            point, recorded = step

            def one(drawn, point, update, algebra, outcome):
                task = family.task(drawn)
                return _looked(task, point, update, algebra, outcome, rule.order == "teleport-first")

            each = jax.vmap(one, in_axes=-1, out_axes=-1)
            return each(drawn, point, recorded["previous"], recorded["algebra"], recorded["outcome"])

        found = jax.lax.map(at_step, (trace.params[:-1], recorded))
        found |= {"update": recorded["previous"], "algebra": recorded["algebra"][:, 0], "loss": trace.loss}
        found |= {"gate": recorded["gate"], "outcome": recorded["outcome"]}
        return {name: jnp.moveaxis(values, (-1, 0), (0, 1)) for name, values in found.items()}

    return spread(of_seed, (arrays, keys))


def _looked(task: SumOfSquares, point, update, algebra, outcome, first: bool) -> dict[str, Array]:
    """What there was to see at one step of one task."""
    symmetry = task.symmetry()
    gradient = jax.grad(task.loss)(point)
    begins, leaps = point, point + update
    if first:
        element = symmetry.exp(jnp.where(outcome == 0, algebra, 0.0))
        gradient = symmetry.transport_gradient(element, point, gradient)
        begins, leaps = symmetry.act(element, point), point

    def steep(angle: Array) -> Array:
        return squared_norm(jax.grad(task.loss)(symmetry.act(symmetry.exp(angle[None]), leaps)))

    around = jax.vmap(steep)(jnp.linspace(-jnp.pi, jnp.pi, ANGLES, endpoint=False))
    around = jnp.where(jnp.isfinite(around) & (around > 0), around, jnp.nan)
    affine = isinstance(task.map, Affine)
    return {
        "gradient": gradient,
        "newton": newton(jax.hessian(task.loss)(begins), gradient),
        "headroom": jnp.log(jnp.nanmax(around)) - jnp.log(jnp.nanmedian(around)),
        "oracle": Oracle()(Orbit(task.loss, leaps, symmetry))[0] if affine else jnp.array(jnp.nan),
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


def by_seed(measure, *arrays: np.ndarray) -> Sequence[float]:
    """`measure(*entries)` for every entry of the first axes.

    >>> by_seed(lambda a, b: float(a + b), np.array([1.0, 2.0]), np.array([3.0, 4.0]))
    [4.0, 6.0]
    """
    return [measure(*entries) for entries in zip(*arrays, strict=True)]
