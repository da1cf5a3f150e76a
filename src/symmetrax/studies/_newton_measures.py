"""Newton's direction in parts, at points of quadratics of the plane."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from symmetrax.theory._newton import alignment_change, newton_cosine, newton_parts, norm_growth

#: After its proof the paper shows that proposition 4.1 may fail where the Hessian is this, by this gradient.
COUNTER_EXAMPLE, GRADIENT = np.diag([1.0, -2.0]), np.array([1.0, 3.0])
#: Signs of the two eigenvalues of the random Hessians.
KINDS = {"positive definite": (1.0, 1.0), "negative definite": (-1.0, -1.0), "indefinite": (1.0, -1.0)}


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings, angles in degrees.

    The convex quadratic is w'Hw/2, H with `eigenvalues`, their eigenvectors turned by `turn`. Its level set
    is {w: w'Hw = size^2}; `place` says where on it the vectors are drawn: the angle to the long axis in the
    coordinates H^(1/2) w, in which the level set is a circle. `angles` points of the level set are measured,
    and `draws` random Hessians of every kind.

    >>> Settings().eigenvalues
    (0.3, 1.5)
    """

    eigenvalues: tuple[float, float] = (0.3, 1.5)
    turn: float = 25.0
    size: float = 1.2
    place: float = 33.0
    angles: int = 1440
    draws: int = 1000


@jax.jit
def newton_parts_at(
    points: Float[Array, "k 2"], hessians: Float[Array, "k 2 2"]
) -> dict[str, Float[Array, "k ..."]]:
    """Newton's direction in parts for the quadratics w'Hw/2 at these points, and how the gradient changes.

    >>> found = newton_parts_at(np.ones((1, 2)), np.eye(2)[None])
    >>> bool(np.allclose(found["symmetry"], 0, atol=1e-6))  # in a round bowl all is along the gradient
    True
    """

    def at(point, hessian):
        gradient = hessian @ point
        parts = newton_parts(gradient, hessian)
        return {
            "descent": -gradient,
            "newton": parts.newton,
            "parallel": parts.parallel,
            "symmetry": parts.symmetry,
            "growth": 2 * hessian @ gradient,
            "slope": norm_growth(gradient, hessian).left,
            "cosine": newton_cosine(gradient, hessian).left,
            "change": alignment_change(gradient, hessian, parts.symmetry),
        }

    return jax.vmap(at)(points, hessians)


def angles_of(settings: Settings) -> np.ndarray:
    """Angles of the whole level set, between multiples of 45 degrees, where nothing changes by symmetry.

    >>> len(angles_of(Settings(angles=8)))
    8
    """
    return 2 * np.pi * (np.arange(settings.angles) + 0.5) / settings.angles


def repeated(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The matrix, once for each point.

    >>> repeated(np.eye(2), np.zeros((3, 2))).shape
    (3, 2, 2)
    """
    return np.broadcast_to(matrix, (len(points), 2, 2))


def random_cases(settings: Settings, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Points and Hessians: log-normal eigenvalues, uniform eigenvectors, normal gradients.

    >>> points, hessians = random_cases(Settings(draws=5), seed=0)["indefinite"]
    >>> bool(np.all(np.linalg.det(hessians) < 0))
    True
    """
    generator = np.random.default_rng(seed)
    cases = {}
    for kind, signs in KINDS.items():
        values = signs * np.exp(generator.normal(size=(settings.draws, 2)))
        bases = np.linalg.qr(generator.normal(size=(settings.draws, 2, 2)))[0]
        hessians = np.einsum("kia,ka,kja->kij", bases, values, bases)
        gradients = generator.normal(size=(settings.draws, 2, 1))
        cases[kind] = np.linalg.solve(hessians, gradients)[..., 0], hessians
    return cases


def shares(found: dict[str, np.ndarray]) -> dict[str, float]:
    """How often the gradient grows along Newton's part in the level set, and how often Newton's descends.

    >>> shares({"newton": np.ones((2, 2)), "descent": np.ones((2, 2)), "slope": np.array([1.0, -1.0])})
    {'grows': 0.5, 'descends': 1.0}
    """
    descends = np.sum(found["newton"] * found["descent"], axis=1) > 0
    return {"grows": float(np.mean(found["slope"] >= 0)), "descends": float(np.mean(descends))}


def numbers(found: dict[str, np.ndarray]) -> dict[str, float]:
    """How exact the parts are at one point, and what each of them does there.

    >>> found = newton_parts_at(np.ones((1, 2)), np.diag([1.0, 2.0])[None])
    >>> round(numbers({name: np.asarray(x[0]) for name, x in found.items()})["orthogonality"], 4)
    0.0
    """
    descent, newton, parallel, symmetry = (found[n] for n in ("descent", "newton", "parallel", "symmetry"))
    return {
        "sum_error": float(np.linalg.norm(parallel + symmetry - newton) / np.linalg.norm(newton)),
        "orthogonality": float(abs(symmetry @ descent)),
        "growth": float(symmetry @ found["growth"]),
        "descent": float(newton @ descent),
        "cosine": float(found["cosine"]),
    }


def along_level_set(
    angles: np.ndarray, points: np.ndarray, found: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """One level set: the gradient's norm, its alignment with Newton's direction, and how that changes.

    >>> angles = angles_of(Settings(angles=48))
    >>> hessian = np.diag([0.3, 1.5])
    >>> points = np.stack([np.cos(angles) / 0.3**0.5, np.sin(angles) / 1.5**0.5], axis=1)
    >>> found = newton_parts_at(points, repeated(hessian, points))
    >>> _, level = along_level_set(angles, points, {name: np.asarray(x) for name, x in found.items()})
    >>> level["norm_rises"], round(level["norm_ratio"], 1)
    (True, 2.2)
    """
    norm, cosine, change = np.linalg.norm(found["descent"], axis=1), found["cosine"], found["change"]
    # Proportional to the length for each angle: a change by length times this is one by the angle.
    length = np.linalg.norm(np.roll(points, -1, axis=0) - np.roll(points, 1, axis=0), axis=1)
    near_short = np.abs(np.sin(angles)) > np.abs(np.cos(angles))
    quarter = slice(0, len(angles) // 4)
    arrays = {
        "level.points": points,
        "level.angle": np.degrees(angles[quarter]),
        "level.norm": norm[quarter],
        "level.cosine": cosine[quarter],
        "level.worse": change[quarter] < 0,
    }
    level = {
        "norm_ratio": float(norm.max() / norm.min()),
        "norm_rises": bool(np.all(np.diff(norm[quarter]) > 0)),
        "least_cosine": float(cosine.min()),
        "turns_at": float(np.degrees(_crossing(angles[quarter], (change * length)[quarter]))),
        "improves": float(np.mean(change > 0)),
        "improves_by_length": float(np.sum(length[change > 0]) / np.sum(length)),
        "improves_near_short_axis": float(np.mean(change[near_short] > 0)),
        "improves_near_long_axis": float(np.mean(change[~near_short] > 0)),
    }
    return arrays, level


def _crossing(angles: np.ndarray, change: np.ndarray) -> float:
    """The angle where a function sampled beside it changes its sign, by linear interpolation."""
    (i,) = np.flatnonzero(np.diff(np.sign(change)))
    return float(np.interp(0.0, change[i : i + 2], angles[i : i + 2]))


def value_grid(hessian: np.ndarray, window: tuple[float, float, float, float]) -> dict[str, np.ndarray]:
    """Values and gradient norms of w'Hw/2 on a grid, for its level sets.

    >>> value_grid(np.eye(2), (-1.0, 1.0, -1.0, 1.0))["loss"].shape
    (121, 121)
    """
    x, y = np.linspace(*window[:2], 121), np.linspace(*window[2:], 121)
    points = np.stack(np.meshgrid(x, y), axis=-1)
    gradients = points @ hessian
    return {
        "x": x,
        "y": y,
        "loss": np.sum(points * gradients, axis=-1) / 2,
        "norm": np.linalg.norm(gradients, axis=-1),
    }
