"""A rotation that is learned while it is used (figure 2 of arXiv:2504.15399): which way it turns, how fast.

Algorithm 2 on f(x) = x'Ax = ||Bx||^2, B symmetric: y = B^-1 R(t) B x, x+ = y - rate grad f(y), and then a
step of t against d f(x+) / dt. Section 4.2 says that this turns y to the short axis of its level set, fastest
half way between the axes. Both need a condition; that of the first is measured just below and just above the
rate where the turn reverses. The closed form of appendix B, from which they are read, is right for diagonal A
and t = 0 alone.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from symmetrax.studies import plots_theory
from symmetrax.studies._ellipses import at_once, conditional, level_set, turned
from symmetrax.studies.core._console import Reporter, titled_table, verdict_table
from symmetrax.studies.core._folder import RunFolder
from symmetrax.theory._rotation import angle_slope, printed_angle_slope, step_after_turn, turning_threshold

SOURCE = "arXiv:2504.15399, "
#: A closed form is right if it has this relative error at most.
RIGHT = 1e-8
QUARTER_TURN = np.array([[0.0, -1.0], [1.0, 0.0]])
#: In the figure: the level set of the printed updates, and the length of the longest step, in radians.
OUTER, LONGEST = 1.75, 0.33


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run, angles in degrees, rates as multiples of 1 / (l1 + l2), l the eigenvalues of A.

    A has `eigenvalues`, its eigenvectors turned by `turn`. `below` and `above` are the rates of the two
    panels; `angles` points of the level set are measured, every `arrows`-th is drawn, and `rates` rates are
    tried half way between the axes. `draws` random problems have condition numbers up to `condition`.

    >>> config("fig2").below, config("fig2").above
    (0.99, 1.01)
    """

    seed: int = 0
    eigenvalues: tuple[float, float] = (0.25, 9.0)
    turn: float = 30.0
    below: float = 0.99
    above: float = 1.01
    angles: int = 720
    arrows: int = 36
    rates: int = 151
    draws: int = 1000
    condition: float = 1e3


def config(name: str, preset: str = "full", seed: int = 0) -> Config:
    """The settings under a preset; "quick" draws fewer random problems.

    >>> config("fig2", "quick").draws
    200
    """
    return Config(seed=seed, draws=1000 if preset == "full" else 200)


def run(settings: Config, folder: RunFolder, reporter: Reporter) -> dict[str, Any]:
    """Measure all updates in float64, draw, return numbers and verdicts."""
    matrix = turned(settings.eigenvalues, settings.turn)
    # Between multiples of 45 degrees: neither on an axis nor half way.
    angles = 2 * np.pi * (np.arange(settings.angles) + 0.5) / settings.angles
    points, half_way = level_set(matrix, angles), level_set(matrix, np.array([np.pi / 4]))
    parts = np.linspace(0.0, 1.5, settings.rates)
    values, bases, starts, thetas = _random(settings)
    problems = np.einsum("kia,ka,kja->kij", bases, values, bases)
    with jax.enable_x64(True):
        found = at_once(
            _updates,
            {
                "below": _case(matrix, points, 0.0, settings.below),
                "above": _case(matrix, points, 0.0, settings.above),
                "rates": _case(matrix, half_way, 0.0, parts),
                "random below": _case(problems, starts, thetas, settings.below),
                "random above": _case(problems, starts, thetas, settings.above),
                "diagonal": _case(values[:, :, None] * np.eye(2), starts, 0.0, settings.below),
            },
        )
    draws = {"matrices": problems, "points": starts, "angles": thetas}
    updates = {name: found[f"random {name}"]["update"] for name in ("below", "above")}
    folder.arrays("draws", draws | updates)
    folder.arrays("turning", _arrays(settings, matrix, angles, points, parts, found))
    plots_theory.turning(folder.path / "turning.png", folder.path / "turning.npz")
    l1, l2 = settings.eigenvalues
    results = {
        "groups": {},
        "threshold": 1 / (l1 + l2),
        "sides": {name: _sides(found[name], found[f"random {name}"]) for name in ("below", "above")},
        "speed": {name: _speed(angles, found[name]["update"]) for name in ("below", "above")},
        "fastest_in_the_plane": float(np.degrees(np.arctan(np.sqrt(l1 / l2)))),
        "closed_form": {name: _closed_form(found[name]) for name in ("below", "random below", "diagonal")},
    }
    return results | {"verdicts": _verdicts(results)}


def show(settings: Config, results: dict[str, Any], reporter: Reporter) -> None:
    """Print which way updates turn, how good the closed forms are, and the verdicts."""
    threshold, random = f"{results['threshold']:.4f}", f"{settings.draws:,} random A"
    table = titled_table(f"share of updates that turn to the short axis; the threshold is {threshold}")
    for name in ("rate / threshold", "level set", random, "largest update", "at (degrees)"):
        table.add_column(name, justify="right")
    for name in ("below", "above"):
        side, speed = results["sides"][name], results["speed"][name]
        shares = (f"{side[key]:.1%}" for key in ("level_set", "random"))
        table.add_row(
            f"{getattr(settings, name):g}", *shares, f"{speed['largest']:.4f} f", f"{speed['fastest_at']:.6f}"
        )
    reporter.print(table)
    table = titled_table("the update of the angle in closed form, against autodiff")
    for name in ("", "as printed: median error", "wrong sign", "corrected: worst error"):
        table.add_column(name, justify="right" if name else "left")
    labels = {
        "below": "the level set",
        "random below": "random A and angles",
        "diagonal": "diagonal A, angle 0",
    }
    for name, label in labels.items():
        row = results["closed_form"][name]
        printed = f"{row['printed_median']:.2g}", f"{row['printed_wrong_sign']:.1%}"
        table.add_row(label, *printed, f"{row['corrected']:.0e}")
    reporter.print(table)
    reporter.print(verdict_table(results["verdicts"]))


@jax.jit
def _updates(
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


def _case(matrix: np.ndarray, points: np.ndarray, angle: Any, part: Any) -> tuple[np.ndarray, ...]:
    """The arguments of `_updates`, of equal length."""
    count = max(len(points), np.size(part))
    shapes = (count, 2, 2), (count, 2), (count,), (count,)
    given = (matrix, points, angle, part)
    return tuple(np.broadcast_to(x, shape) for x, shape in zip(given, shapes, strict=True))


def _random(settings: Config) -> tuple[np.ndarray, ...]:
    """Ascending eigenvalues, eigenvectors, points and angles of random problems: condition numbers are
    log-uniform, angles uniform, points uniform on the circles that are level sets."""
    generator = np.random.default_rng(settings.seed)
    lowest = np.exp(generator.normal(size=settings.draws))
    condition = settings.condition ** generator.uniform(size=settings.draws)
    bases = np.linalg.qr(generator.normal(size=(settings.draws, 2, 2)))[0]
    values = np.stack([lowest, condition * lowest], axis=-1)
    places, thetas = generator.uniform(-np.pi, np.pi, size=(2, settings.draws))
    circle = np.stack([np.cos(places), np.sin(places)], axis=-1)
    return values, bases, np.einsum("kia,ka->ki", bases, circle / np.sqrt(values)), thetas


def _arrays(
    settings: Config,
    matrix: np.ndarray,
    angles: np.ndarray,
    points: np.ndarray,
    parts: np.ndarray,
    found: dict[str, dict[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """What is drawn: arrows along the level set, updates over the angle and over the rate."""
    every = slice(settings.arrows // 2, None, settings.arrows)
    quarter = slice(0, settings.angles // 4)
    l1, l2 = settings.eigenvalues
    root = turned((l1**0.5, l2**0.5), settings.turn)
    grid = np.stack(np.meshgrid(np.linspace(-2.6, 2.6, 19), np.linspace(-1.8, 1.8, 15)), axis=-1).reshape(
        -1, 2
    )
    field = grid @ (np.linalg.inv(root) @ QUARTER_TURN @ root).T
    length = np.linalg.norm(field, axis=1, keepdims=True)
    arrays = {
        "eigenvalues": np.array([l1, l2]),
        "half_way": level_set(matrix, np.pi / 4 * np.arange(1, 8, 2)),
        "level": points,
        "at": points[every],
        "outer": OUTER * points,
        "outer.at": OUTER * points[every],
        "grid": grid,
        "grid.field": field / np.where(length == 0, 1.0, length),
        "angle": np.degrees(angles[quarter]),
        "parts": parts,
        "rates.toward": found["rates"]["toward"],
        "step_bound": np.array((l1 + l2) / (2 * l2)),
    }
    for name in ("below", "above"):
        row = found[name]
        largest = np.max(np.abs(row["update"]))
        updates = {
            "arrows": (row["update"], row["toward"]),
            "printed": (row["printed"], row["printed"] * np.sign(row["update"] * row["toward"])),
        }
        for kind, (update, toward) in updates.items():
            arrays[f"{name}.{kind}"] = (row["field"] * update[:, None])[every] / largest * LONGEST
            arrays[f"{name}.{kind}.short"] = toward[every] > 0
        arrays |= {
            f"{name}.part": np.array(getattr(settings, name)),
            f"{name}.largest": np.array(largest),
            f"{name}.curve": row["toward"][quarter] / largest,
            f"{name}.printed.curve": updates["printed"][1][quarter] / largest,
        }
    return arrays


def _sides(level: dict[str, np.ndarray], random: dict[str, np.ndarray]) -> dict[str, float]:
    return {"level_set": float(np.mean(level["toward"] > 0)), "random": float(np.mean(random["toward"] > 0))}


def _speed(angles: np.ndarray, update: np.ndarray) -> dict[str, float]:
    """The update as a function of the angle psi of the point is a sine of 2 psi: its amplitude, where it is
    largest, in degrees from an axis, and what else there is, relatively."""
    cosine, sine = (2 * np.mean(update * wave(2 * angles)) for wave in (np.cos, np.sin))
    rest = update - cosine * np.cos(2 * angles) - sine * np.sin(2 * angles)
    return {
        "largest": float(np.hypot(cosine, sine)),
        "fastest_at": float(np.degrees(np.arctan2(sine, cosine)) / 2 % 90),
        "rest": float(np.linalg.norm(rest) / np.linalg.norm(update)),
    }


def _closed_form(found: dict[str, np.ndarray]) -> dict[str, float]:
    printed, corrected = (np.abs(found[name] / found["update"] - 1) for name in ("printed", "corrected"))
    return {
        "printed_median": float(np.median(printed)),
        "printed_right": float(np.mean(printed < RIGHT)),
        "printed_wrong_sign": float(np.mean(found["printed"] * found["update"] < 0)),
        "corrected": float(np.max(corrected)),
    }


def _verdicts(results: dict[str, Any]) -> list[dict[str, str]]:
    sides, forms = results["sides"], results["closed_form"]
    turns = conditional(
        "updates turn to the short axis",
        SOURCE + "section 4.2",
        "the rate is below 1 / (l1 + l2)",
        min(sides["below"].values()),
        max(sides["above"].values()),
    )
    turns["why"] += "; rates up to 1/L = 1 / (2 l2) are below"
    places = [row["fastest_at"] for row in results["speed"].values()]
    found = max(abs(np.radians(place) - np.pi / 4) for place in places) < 1e-6
    fastest = {
        "claim": "the angle is updated fastest half way between the axes",
        "source": SOURCE + "section 4.2",
        "outcome": "holds only if" if found else "fails",
        "why": f"half way is meant where level sets are circles: fastest at {places[0]:.6f} degrees there, "
        f"which is {results['fastest_in_the_plane']:.2f} degrees from the long axis in the plane",
    }
    printed = conditional(
        "the closed form of the update is its derivative",
        SOURCE + "appendix B",
        "A is diagonal and the angle is zero",
        forms["diagonal"]["printed_right"],
        forms["random below"]["printed_right"],
    )
    printed["why"] += f"; elsewhere its sign is wrong in {forms['random below']['printed_wrong_sign']:.1%}"
    return [turns, fastest, printed]
