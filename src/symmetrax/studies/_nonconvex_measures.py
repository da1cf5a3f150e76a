"""Second-order steps at points of any loss, and small moves along the level set: signs, cosines, shares.

For the shifted step proposition 4.1 of arXiv:2504.15399 holds without convexity: grad ||g||^2 = 2 H g =
2 (H + s I) g - 2 s g, of which the last part is orthogonal to v, and the other is the proposition for
H + s I > 0.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from symmetrax.studies._landscapes import Settings, Value
from symmetrax.studies.core._shares import middle, share

#: Second-order steps whose part orthogonal to the gradient is looked at.
STEPS = ("newton", "saddle-free", "shifted")
#: Small moves along the level set: along Newton's orthogonal part, with the sign that raises the gradient
#: norm, and along the steepest ascent of the norm.
MOVES = ("orthogonal", "steepest")
#: Below this ratio of the smallest eigenvalue to the largest, both in size, a Hessian counts as singular.
SINGULAR = 1e-12
#: Upper ends of the bins for the share of negative eigenvalues.
BINS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 1.0)
#: Directions along the level set of a convex quadratic, all toward larger gradients: Newton's orthogonal
#: part, the rotation of z that raises the norm fastest, the direction in x that does, a random rotation of z.
DIRECTIONS = ("orthogonal", "rotation", "steepest", "random")


def measure(
    value_fn: Value, points: Float[Array, "p n"], data: PyTree, size: float, shift: float
) -> dict[str, np.ndarray]:
    """Everything that is measured, at each of the points.

    `eigenvalues`; for each of `STEPS` the slope of ||g||^2 along its part orthogonal to the gradient
    (`slope.NAME`) and the cosine of the step with -g (`cosine.NAME`); for each of `MOVES` that cosine after
    a small move (`MOVE.NAME`), the relative growth of ||g|| (`MOVE.growth`) and of the loss (`MOVE.loss`).
    Derivatives are compiled; eigenvectors are found on the host, where no batch of them can block the
    threads of a compiled program.

    >>> from symmetrax.studies._landscapes import chain
    >>> with jax.enable_x64(True):
    ...     found = measure(chain, jnp.array([[-1.0, 2.0]]), None, 0.01, 0.01)
    >>> bool(found["slope.newton"][0] < 0), bool(np.prod(found["eigenvalues"][0]) < 0)
    (True, True)
    """
    here, gradient, hessian = map(np.asarray, _derivatives(value_fn, points, data))
    eigenvalues, found = _steps(gradient, hessian, shift)
    slopes = {
        name: _dot(2 * _times(hessian, gradient), _orthogonal(d, gradient)) for name, d in found.items()
    }
    seen = {"eigenvalues": eigenvalues, "norm": _length(gradient)}
    seen |= {f"slope.{name}": slope for name, slope in slopes.items()}
    seen |= {f"cosine.{name}": _cosine(-gradient, step) for name, step in found.items()}
    moves = {
        "orthogonal": np.sign(slopes["newton"])[:, None] * _orthogonal(found["newton"], gradient),
        "steepest": _orthogonal(_times(hessian, gradient), gradient),
    }
    for name, direction in moves.items():
        # The shorter of two steps: one that changes the gradient by `size` of its length, and one that
        # changes the point by `size` of its own.
        unit = direction / _length(direction)[:, None]
        longest = np.minimum(_length(gradient) / _length(_times(hessian, unit)), _length(np.asarray(points)))
        ends = _back(value_fn, points + jnp.asarray(size * longest[:, None] * unit), data, jnp.asarray(here))
        value, after, bent = map(np.asarray, _derivatives(value_fn, ends, data))
        there = _steps(after, bent, shift)[1]
        seen |= {f"{name}.{step}": _cosine(-after, there[step]) for step in STEPS}
        seen[f"{name}.growth"] = _length(after) / _length(gradient) - 1
        seen[f"{name}.loss"] = (value - here) / np.abs(here)
    return seen


@eqx.filter_jit
def _derivatives(value_fn: Value, points: Array, data: PyTree) -> tuple[Array, Array, Array]:
    """Values, gradients and Hessians at all points."""

    def at(x, data):
        value, gradient = jax.value_and_grad(value_fn)(x, data)
        return value, gradient, jax.hessian(value_fn)(x, data)

    return jax.lax.map(lambda pair: at(*pair), (points, data), batch_size=50)


@eqx.filter_jit
def _back(value_fn: Value, points: Array, data: PyTree, levels: Array) -> Array:
    """Two of Newton's steps along the gradient, back to the level of each point."""

    def one(y, data, level):
        for _ in range(2):
            value, slope = jax.value_and_grad(value_fn)(y, data)
            y = y - (value - level) / jnp.sum(jnp.square(slope)) * slope
        return y

    return jax.vmap(one)(points, data, levels)


def _steps(
    gradients: np.ndarray, hessians: np.ndarray, shift: float
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Eigenvalues, and each of `STEPS`: Newton's, the saddle-free and the shifted one."""
    eigenvalues, axes = np.linalg.eigh(hessians)
    sizes, along = np.abs(eigenvalues), np.einsum("kji,kj->ki", axes, gradients)
    lift = np.maximum(-eigenvalues[:, 0], 0.0) + shift * np.max(sizes, axis=1)
    divisors = (eigenvalues, sizes, eigenvalues + lift[:, None])
    with np.errstate(divide="ignore", invalid="ignore"):  # singular Hessians are counted, not hidden
        steps = {name: -_times(axes, along / d) for name, d in zip(STEPS, divisors, strict=True)}
    return eigenvalues, steps


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.sum(a * b, axis=1)


def _length(a: np.ndarray) -> np.ndarray:
    return np.linalg.norm(a, axis=1)


def _times(matrices: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    return np.einsum("kij,kj->ki", matrices, vectors)


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return _dot(a, b) / (_length(a) * _length(b))


def _orthogonal(directions: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    """The part of each direction that is orthogonal to its gradient."""
    return directions - (_dot(directions, gradients) / _dot(gradients, gradients))[:, None] * gradients


def summarize(seen: dict[str, np.ndarray]) -> dict[str, Any]:
    """Shares and medians over all points of a group.

    A singular Hessian has no Newton step and counts as a point whose norm is not raised; so does whatever is
    not finite.

    >>> from symmetrax.studies._landscapes import chain
    >>> with jax.enable_x64(True):
    ...     seen = measure(chain, jnp.array([[-1.0, 2.0], [1.0, 0.5]]), None, size=0.01, shift=0.01)
    >>> summarize(seen)["rises"]["newton"]["count"], summarize(seen)["definite"]["count"]
    (1, 1)
    """
    eigenvalues = seen["eigenvalues"]
    sizes = np.abs(eigenvalues)
    singular = ~(np.min(sizes, axis=1) > SINGULAR * np.max(sizes, axis=1))
    part = np.mean(eigenvalues < 0, axis=1)
    definite = ((part == 0) | (part == 1)) & ~singular
    indefinite = ~definite & ~singular
    with np.errstate(invalid="ignore"):
        rises = {name: (seen[f"slope.{name}"] > 0) & ~singular for name in STEPS}
        closer = {
            name: {move: seen[f"{move}.{name}"] > seen[f"cosine.{name}"] for move in MOVES} for name in STEPS
        }
    whole = np.all([np.isfinite(x).reshape(len(part), -1).all(axis=1) for x in seen.values()], axis=0)
    bins = np.digitize(part, BINS, right=True)
    return {
        "points": len(part),
        "dimension": eigenvalues.shape[1],
        "definite": share(definite),
        "singular": share(singular),
        "not_finite": share(~whole),
        "negative": middle(part),
        "rises": {name: share(hits) for name, hits in rises.items()},
        "rises_definite": {name: share(hits[definite]) for name, hits in rises.items()},
        "rises_indefinite": {name: share(hits[indefinite]) for name, hits in rises.items()},
        "by_negative": [
            {"upto": end, "points": int(np.sum(bins == i))}
            | {name: share(hits[bins == i]) for name, hits in rises.items()}
            for i, end in enumerate(BINS)
        ],
        "cosine": {
            name: {
                "before": middle(seen[f"cosine.{name}"]),
                "change": {move: middle(seen[f"{move}.{name}"] - seen[f"cosine.{name}"]) for move in MOVES},
                "closer": {move: share(hits) for move, hits in closer[name].items()},
            }
            for name in STEPS
        },
        "growth": {move: middle(seen[f"{move}.growth"]) for move in MOVES},
        "loss_change": {move: float(np.max(np.abs(seen[f"{move}.loss"]))) for move in MOVES},
    }


def alignment(settings: Settings, seed: int, n: int) -> dict[str, Any]:
    """On random convex quadratics: how often a move to larger gradients turns -g toward Newton's step.

    Eigenvalues are log-normal. `share` is counted from the sign of the derivative of the cosine, which for
    shares p_i = z_i^2 / ||z||^2 is (sum_i p_i d_i  sum_i p_i / d_i)^(-1/2).

    >>> found = alignment(Settings(convex=4000), seed=0, n=2)
    >>> 0.45 < found["uniform z"]["orthogonal"]["share"] < 0.55
    True
    """
    random = np.random.default_rng((seed, n))
    values = np.exp(settings.sigma * random.normal(size=(settings.convex, n)))
    drawn = random.normal(size=(settings.convex, n))
    turn = random.normal(size=(settings.convex, n))
    most = np.max(values, axis=1, keepdims=True)
    # Uniform in coordinates z = H^(1/2) x, in which level sets are spheres, in x, and descended from there by
    # ten steps of 1/(2 L).
    starts = {
        "uniform z": drawn / np.sqrt(values),
        "uniform x": drawn,
        "descended": drawn * (1 - 0.5 * values / most) ** 10,
    }
    found = {}
    for place, x in starts.items():
        moves, cosine = along_ellipsoid(values, x, turn)
        found[place] = {name: share(slope > 0) for name, slope in moves.items()} | {"cosine": middle(cosine)}
    return found


def along_ellipsoid(
    values: Float[np.ndarray, "p n"], x: Float[np.ndarray, "p n"], turn: Float[np.ndarray, "p n"]
) -> tuple[dict[str, Float[np.ndarray, " p"]], Float[np.ndarray, " p"]]:
    """Slopes of log cos(-g, Newton) along each of `DIRECTIONS`, and the cosine, on x' diag(values) x.

    >>> circle = along_ellipsoid(np.ones((1, 2)), np.array([[3.0, 4.0]]), np.ones((1, 2)))
    >>> circle[1].tolist()  # on circles -g is Newton's step
    [1.0]
    """

    def dot(a, b):
        return np.sum(a * b, axis=1, keepdims=True)

    root = np.sqrt(values)
    z, g = root * x, 2 * values * x
    z2 = dot(z, z)
    random = turn - dot(turn, z) / z2 * z
    curved = 2 * values * g
    directions = {
        "orthogonal": root * (-x + dot(x, g) / dot(g, g) * g),
        "rotation": (values - dot(z, values * z) / z2) * z,
        "steepest": root * (curved - dot(curved, g) / dot(g, g) * g),
        "random": random * np.sign(dot(values * z, random)),
    }
    p = z**2 / z2
    up, down = dot(p, values), dot(p, 1 / values)
    slopes = {}
    for name, dz in directions.items():
        dp = 2 * z * dz / z2
        slopes[name] = -0.5 * (dot(dp, values) / up + dot(dp, 1 / values) / down)[:, 0]
    return slopes, (up * down)[:, 0] ** -0.5
