"""Features of a task of the plane before it is run: of its map, its start, the orbit of the start."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from symmetrax._tree import safe_norm
from symmetrax.search._orbit import Orbit
from symmetrax.search._searches import SinusoidPeak
from symmetrax.studies.core._hand_made import descent
from symmetrax.studies.core._runs import run_many
from symmetrax.symmetry._maps import Triangular
from symmetrax.tasks._base import AbstractTaskFamily
from symmetrax.teleportation._guard import Guard
from symmetrax.teleportation._probe import teleport_gain

#: The features, by name, in words.
WORDS = {
    "condition": "condition of the Jacobian",
    "smallest": "min(|a|, |c|)",
    "saddle": "det H < 0 at the start",
    "saddles": "det H < 0, share of the orbit",
    "headroom": "headroom of the orbit",
    "over_here": "largest gradient over that here",
    "headroom_near": "headroom nearby",
    "over_here_near": "largest gradient nearby",
    "jump": "length of the jump to the peak",
    "angle": "angle from the peak",
    "loss": "loss at the start",
}
#: Those of `teleport_gain`, on the whole orbit and within a jump as long as the point.
PROBES = ("headroom", "over_here", "headroom_near", "over_here_near")
#: The number of angles that are looked at, the same ones for all tasks.
ANGLES = 64
#: Jumps nearby are no longer than this, relative to the parameters, as those of "teleport" and "peak".
NEAR = 1.0

_TINY = 1e-30


def features(task: Any, params: Float[Array, "2"]) -> dict[str, Float[Array, ""]]:
    """The features of a `SumOfSquares`, for a run that starts at `params`; logarithms of what is positive.

    Those that an affine map leaves constant, or does not have, are only there for others. A probe that
    accepts no jump found nothing to gain: 0.

    >>> import symmetrax as sx
    >>> found = features(sx.tasks.booth(), jnp.array([5.0, -5.0]))
    >>> round(float(jnp.exp(found["condition"])), 3), "smallest" in found
    (3.0, False)
    """
    symmetry = task.symmetry()
    orbit = Orbit(task.loss, params, symmetry)
    angle = SinusoidPeak()(orbit)
    jump = safe_norm(symmetry.act(symmetry.exp(angle), params) - params)
    found = {
        "condition": jnp.log(condition(jax.jacfwd(task.map)(params))),
        "jump": jnp.log(jnp.maximum(jump / jnp.maximum(safe_norm(params), _TINY), _TINY)),
        "angle": jnp.abs(angle[0]),
        "loss": jnp.log(jnp.maximum(task.loss(params), _TINY)),
    }
    near = Guard(jump=math.inf, tolerance=1e-3, relative=NEAR)
    for end, guard in (("", None), ("_near", near)):
        gain = teleport_gain(
            task.loss, params, symmetry, jax.random.key(0), samples=ANGLES, bound=math.pi, guard=guard
        )
        for name, ratio in (("headroom", gain.headroom), ("over_here", gain.over_here)):
            found[name + end] = jnp.where(jnp.isfinite(ratio) & (ratio > 0), jnp.log(ratio), 0.0)
    if isinstance(task.map, Triangular):
        angles = jnp.linspace(-jnp.pi, jnp.pi, ANGLES, endpoint=False)
        along = jax.vmap(lambda t: symmetry.act(symmetry.exp(t[None]), params))(angles)
        hessian = jax.hessian(task.loss)
        found["saddle"] = (determinant(hessian(params)) < 0).astype(float)
        found["saddles"] = jnp.mean(jax.vmap(lambda x: determinant(hessian(x)) < 0)(along), dtype=float)
        found["smallest"] = jnp.log(jnp.minimum(jnp.abs(task.map.a), jnp.abs(task.map.c[0])))
    return found


def features_of(
    family: AbstractTaskFamily, keys: Key[Array, " seeds"], tasks: int, parts: int
) -> dict[str, Float[np.ndarray, "seeds tasks"]]:
    """Features of the tasks that `run_many` draws from these keys and parts, in the order of `WORDS`."""
    nothing = {"rate": jnp.zeros(len(keys)), "momentum": jnp.zeros(len(keys))}
    measured = run_many(
        descent, nothing, family, keys, steps=1, tasks=tasks, parts=parts, watch=(), measure=features
    ).measured
    return {name: np.asarray(measured[name], float) for name in WORDS if name in measured}


def determinant(matrix: Float[Array, "2 2"]) -> Float[Array, ""]:
    """Of a 2 x 2 matrix.

    >>> determinant(jnp.array([[1.0, 2.0], [3.0, 4.0]])).item()
    -2.0
    """
    (a, b), (c, d) = matrix
    return a * d - b * c


def condition(matrix: Float[Array, "2 2"]) -> Float[Array, ""]:
    """The condition number k of a 2 x 2 matrix: k + 1 / k = ||matrix||^2 / |det|.

    >>> round(condition(jnp.array([[1.0, 2.0], [2.0, 1.0]])).item(), 3)
    3.0
    """
    both = jnp.sum(jnp.square(matrix)) / jnp.maximum(jnp.abs(determinant(matrix)), _TINY)
    return 0.5 * (both + jnp.sqrt(jnp.maximum(both**2 - 4.0, 0.0)))
