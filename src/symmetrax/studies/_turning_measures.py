"""Updates of a rotation that is learned while it is used, on quadratics of the plane."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from symmetrax.theory._rotation import angle_slope, printed_angle_slope, step_after_turn, turning_threshold

#: A closed form is right if it has this relative error at most.
RIGHT = 1e-8


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings, angles in degrees, rates as multiples of 1 / (l1 + l2), l the eigenvalues of A.

    A has `eigenvalues`, its eigenvectors turned by `turn`. `below` and `above` are the rates of the two
    panels; `angles` points of the level set are measured, every `arrows`-th is drawn, and `rates` rates are
    tried half way between the axes. `draws` random problems have condition numbers up to `condition`.

    >>> Settings().below, Settings().above
    (0.99, 1.01)
    """

    eigenvalues: tuple[float, float] = (0.25, 9.0)
    turn: float = 30.0
    below: float = 0.99
    above: float = 1.01
    angles: int = 720
    arrows: int = 36
    rates: int = 151
    draws: int = 1000
    condition: float = 1e3


@jax.jit
def angle_updates(
    matrices: Float[Array, "k 2 2"],
    points: Float[Array, "k 2"],
    angles: Float[Array, " k"],
    parts: Float[Array, " k"],
) -> dict[str, Float[Array, "k ..."]]:
    """Steps of the angle at unit learning rate: by autodiff, in closed form, as printed.

    `toward` is the first, positive if it turns to the short axis; `field` is how the turned point moves with
    the angle.
    """

    def at(matrix, x, angle, part):
        values, axes = jnp.linalg.eigh(matrix)
        root = axes @ (jnp.sqrt(values)[:, None] * axes.T)
        rate = part * turning_threshold(root)

        def turn(angle):
            return step_after_turn(root, x, angle, 0.0)

        def closeness(angle):
            return (axes[:, 1] @ turn(angle)) ** 2 / jnp.sum(turn(angle) ** 2)

        sides = angle_slope(root, x, angle, rate)
        return {
            "update": -sides.left,
            "corrected": -sides.right,
            "printed": -printed_angle_slope(root, x, rate),
            "toward": -sides.left * jnp.sign(jax.grad(closeness)(angle)),
            "field": jax.jacfwd(turn)(angle),
        }

    return jax.vmap(at)(matrices, points, angles, parts)


def case(matrix: np.ndarray, points: np.ndarray, angle: Any, part: Any) -> tuple[np.ndarray, ...]:
    """The arguments of `angle_updates`, of equal length.

    >>> [x.shape for x in case(np.eye(2), np.ones((3, 2)), 0.0, 0.5)]
    [(3, 2, 2), (3, 2), (3,), (3,)]
    """
    count = max(len(points), np.size(part))
    shapes = (count, 2, 2), (count, 2), (count,), (count,)
    given = (matrix, points, angle, part)
    return tuple(np.broadcast_to(x, shape) for x, shape in zip(given, shapes, strict=True))


def random_cases(settings: Settings, seed: int) -> tuple[np.ndarray, ...]:
    """Ascending eigenvalues, eigenvectors, points and angles of random problems.

    Condition numbers are log-uniform, angles uniform, points uniform on the circles that are level sets.

    >>> values, bases, points, angles = random_cases(Settings(draws=4), seed=0)
    >>> values.shape, bool(np.all(values[:, 1] >= values[:, 0]))
    ((4, 2), True)
    """
    generator = np.random.default_rng(seed)
    lowest = np.exp(generator.normal(size=settings.draws))
    condition = settings.condition ** generator.uniform(size=settings.draws)
    bases = np.linalg.qr(generator.normal(size=(settings.draws, 2, 2)))[0]
    values = np.stack([lowest, condition * lowest], axis=-1)
    places, thetas = generator.uniform(-np.pi, np.pi, size=(2, settings.draws))
    circle = np.stack([np.cos(places), np.sin(places)], axis=-1)
    return values, bases, np.einsum("kia,ka->ki", bases, circle / np.sqrt(values)), thetas


def sides(level: dict[str, np.ndarray], random: dict[str, np.ndarray]) -> dict[str, float]:
    """The share of updates that turn to the short axis, on the level set and at random.

    >>> sides({"toward": np.array([1.0, -1.0])}, {"toward": np.array([1.0, 1.0])})
    {'level_set': 0.5, 'random': 1.0}
    """
    return {"level_set": float(np.mean(level["toward"] > 0)), "random": float(np.mean(random["toward"] > 0))}


def speed(angles: np.ndarray, update: np.ndarray) -> dict[str, float]:
    """The update as a function of the angle psi of the point, which is a sine of 2 psi.

    Its amplitude, the angle from an axis where it is largest, in degrees, and the relative size of the rest.

    >>> angles = 2 * np.pi * (np.arange(8) + 0.5) / 8
    >>> {name: round(x, 6) for name, x in speed(angles, np.sin(2 * angles)).items()}
    {'largest': 1.0, 'fastest_at': 45.0, 'rest': 0.0}
    """
    cosine, sine = (2 * np.mean(update * wave(2 * angles)) for wave in (np.cos, np.sin))
    rest = update - cosine * np.cos(2 * angles) - sine * np.sin(2 * angles)
    return {
        "largest": float(np.hypot(cosine, sine)),
        "fastest_at": float(np.degrees(np.arctan2(sine, cosine)) / 2 % 90),
        "rest": float(np.linalg.norm(rest) / np.linalg.norm(update)),
    }


def closed_form(found: dict[str, np.ndarray]) -> dict[str, float]:
    """How far the closed forms of the update are from its derivative.

    >>> found = {"update": np.array([1.0]), "printed": np.array([-2.0]), "corrected": np.array([1.0])}
    >>> closed_form(found)["printed_wrong_sign"]
    1.0
    """
    printed, corrected = (np.abs(found[name] / found["update"] - 1) for name in ("printed", "corrected"))
    return {
        "printed_median": float(np.median(printed)),
        "printed_right": float(np.mean(printed < RIGHT)),
        "printed_wrong_sign": float(np.mean(found["printed"] * found["update"] < 0)),
        "corrected": float(np.max(corrected)),
    }
