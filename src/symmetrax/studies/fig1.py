"""Newton's direction taken apart (figure 1 of arXiv:2504.15399), and what that figure leaves out.

The figure has one convex quadratic, one point, and the two parts of Newton's direction there: along the
gradient, and along the level set. Here the same is drawn where the Hessian is indefinite, with the numbers of
the paper's own counter-example; and for all points of one level set of the convex quadratic, whether a small
teleport toward larger gradients turns the gradient to Newton's direction, as section 4.1 concludes.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from symmetrax.studies import plots_theory
from symmetrax.studies._ellipses import at_once, conditional, level_set, turned
from symmetrax.studies.core._console import Reporter, titled_table, verdict_table
from symmetrax.studies.core._folder import RunFolder
from symmetrax.theory._newton import alignment_change, newton_cosine, newton_parts, norm_growth

SOURCE = "arXiv:2504.15399, "
#: After its proof the paper shows that proposition 4.1 may fail where the Hessian is this, by this gradient.
COUNTER_EXAMPLE, GRADIENT = np.diag([1.0, -2.0]), np.array([1.0, 3.0])
#: Signs of the two eigenvalues of the random Hessians.
KINDS = {"positive definite": (1.0, 1.0), "negative definite": (-1.0, -1.0), "indefinite": (1.0, -1.0)}


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run, angles in degrees.

    The convex quadratic is w'Hw/2, H with `eigenvalues`, their eigenvectors turned by `turn`. Its level set
    is {w: w'Hw = size^2}; `place` says where on it the vectors are drawn: the angle to the long axis in the
    coordinates H^(1/2) w, in which the level set is a circle. `angles` points of the level set are measured,
    and `draws` random Hessians of every kind.

    >>> config("fig1").eigenvalues
    (0.3, 1.5)
    """

    seed: int = 0
    eigenvalues: tuple[float, float] = (0.3, 1.5)
    turn: float = 25.0
    size: float = 1.2
    place: float = 33.0
    angles: int = 1440
    draws: int = 1000


def config(name: str, preset: str = "full", seed: int = 0) -> Config:
    """The settings under a preset; "quick" draws fewer random Hessians.

    >>> config("fig1", "quick").draws
    200
    """
    return Config(seed=seed, draws=1000 if preset == "full" else 200)


def run(settings: Config, folder: RunFolder, reporter: Reporter) -> dict[str, Any]:
    """Take Newton's direction apart in float64, at two points and on a level set; draw; return verdicts."""
    hessians = {"convex": turned(settings.eigenvalues, settings.turn), "counter-example": COUNTER_EXAMPLE}
    angles = _angles(settings)
    points = {
        "convex": level_set(hessians["convex"], np.radians([settings.place]), settings.size),
        "counter-example": np.linalg.solve(COUNTER_EXAMPLE, GRADIENT)[None],
        "level": level_set(hessians["convex"], angles, settings.size),
    }
    cases = {name: (x, _repeat(hessians.get(name, hessians["convex"]), x)) for name, x in points.items()}
    with jax.enable_x64(True):
        found = at_once(_parts, cases | _random(settings))
    vectors = {name: {k: np.asarray(x[0]) for k, x in found[name].items()} for name in hessians}
    for name, row in vectors.items():
        row["point"] = points[name][0]
    arrays = {f"{name}.{k}": x for name, row in vectors.items() for k, x in row.items()}
    for name, row in vectors.items():
        arrays[f"{name}.loss.here"] = np.array(-row["point"] @ row["descent"] / 2)
        arrays[f"{name}.norm.here"] = np.array(np.linalg.norm(row["descent"]))
    for name, window in (("convex", (-1.0, 3.0, -1.5, 2.5)), ("counter-example", (-2.4, 3.2, -4.9, 0.7))):
        arrays |= {f"{name}.{k}": x for k, x in _grid(hessians[name], window).items()}
    along, level = _along(angles, points["level"], found["level"])
    folder.arrays("newton", arrays | along | {"level.place": np.array(settings.place)})
    plots_theory.newton(folder.path / "newton.png", folder.path / "newton.npz")
    measured = {name: _numbers(row) for name, row in vectors.items()}
    random = {kind: _shares(found[kind]) for kind in KINDS}
    return {
        "groups": {},
        "vectors": {name: {k: x.tolist() for k, x in row.items()} for name, row in vectors.items()},
        "measured": measured,
        "level_set": level,
        "random": random,
        "verdicts": _verdicts(measured, level, random),
    }


def show(settings: Config, results: dict[str, Any], reporter: Reporter) -> None:
    """Print the numbers at the two points, of the random Hessians and of the level set, and the verdicts."""
    table = titled_table("Newton's direction n = -H^-1 g at two points: p along the gradient g, s the rest")
    for name in ("Hessian", "|p + s - n| / |n|", "s . (-g)", "s . grad |g|^2", "n . (-g)", "cos(-g, n)"):
        table.add_column(name, justify="left" if name == "Hessian" else "right", no_wrap=True)
    for panel, row in results["measured"].items():
        exact = (f"{row[name]:.1e}" for name in ("sum_error", "orthogonality"))
        table.add_row(panel, *exact, *(f"{row[name]:+.3g}" for name in ("growth", "descent", "cosine")))
    reporter.print(table)
    table = titled_table(f"{settings.draws:,} random Hessians of each kind and gradients in the plane")
    for name in ("Hessian", "|g| grows along s", "n descends"):
        table.add_column(name, justify="left" if name == "Hessian" else "right")
    for kind, row in results["random"].items():
        table.add_row(kind, f"{row['grows']:.1%}", f"{row['descends']:.1%}")
    reporter.print(table)
    level = results["level_set"]
    reporter.print(
        f"from the long to the short axis of a level set |g| grows by a factor of {level['norm_ratio']:.3g}; "
        f"cos(-g, n) falls to {level['least_cosine']:.3g} at {level['turns_at']:.4g} degrees, then rises: "
        f"better on {level['improves']:.1%} of the angles, {level['improves_by_length']:.1%} of the length"
    )
    reporter.print(verdict_table(results["verdicts"]))


@jax.jit
def _parts(points: Float[Array, "k 2"], hessians: Float[Array, "k 2 2"]) -> dict[str, Float[Array, "k ..."]]:
    """What the theory says of the quadratics w'Hw/2 at these points."""

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


def _angles(settings: Config) -> np.ndarray:
    """Angles of the whole level set, between multiples of 45 degrees, where nothing changes by symmetry."""
    return 2 * np.pi * (np.arange(settings.angles) + 0.5) / settings.angles


def _repeat(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return np.broadcast_to(matrix, (len(points), 2, 2))


def _random(settings: Config) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Points and Hessians: log-normal eigenvalues, uniform eigenvectors, normal gradients."""
    generator = np.random.default_rng(settings.seed)
    cases = {}
    for kind, signs in KINDS.items():
        values = signs * np.exp(generator.normal(size=(settings.draws, 2)))
        bases = np.linalg.qr(generator.normal(size=(settings.draws, 2, 2)))[0]
        hessians = np.einsum("kia,ka,kja->kij", bases, values, bases)
        gradients = generator.normal(size=(settings.draws, 2, 1))
        cases[kind] = np.linalg.solve(hessians, gradients)[..., 0], hessians
    return cases


def _shares(found: dict[str, np.ndarray]) -> dict[str, float]:
    descends = np.sum(found["newton"] * found["descent"], axis=1) > 0
    return {"grows": float(np.mean(found["slope"] >= 0)), "descends": float(np.mean(descends))}


def _numbers(found: dict[str, np.ndarray]) -> dict[str, float]:
    descent, newton, parallel, symmetry = (found[n] for n in ("descent", "newton", "parallel", "symmetry"))
    return {
        "sum_error": float(np.linalg.norm(parallel + symmetry - newton) / np.linalg.norm(newton)),
        "orthogonality": float(abs(symmetry @ descent)),
        "growth": float(symmetry @ found["growth"]),
        "descent": float(newton @ descent),
        "cosine": float(found["cosine"]),
    }


def _along(
    angles: np.ndarray, points: np.ndarray, found: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """One level set: the gradient's norm, its alignment with Newton's direction, and how that changes."""
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


def _grid(hessian: np.ndarray, window: tuple[float, float, float, float]) -> dict[str, np.ndarray]:
    """Values and gradient norms for level sets."""
    x, y = np.linspace(*window[:2], 121), np.linspace(*window[2:], 121)
    points = np.stack(np.meshgrid(x, y), axis=-1)
    gradients = points @ hessian
    return {
        "x": x,
        "y": y,
        "loss": np.sum(points * gradients, axis=-1) / 2,
        "norm": np.linalg.norm(gradients, axis=-1),
    }


def _verdicts(
    measured: dict[str, Any], level: dict[str, Any], random: dict[str, Any]
) -> list[dict[str, str]]:
    definite = min(random[kind]["grows"] for kind in ("positive definite", "negative definite"))
    errors = max(row[name] for row in measured.values() for name in ("sum_error", "orthogonality"))
    saddle = measured["counter-example"]
    parts = {
        "claim": "Newton's direction is a step along the gradient plus one along the level set",
        "source": SOURCE + "figure 1",
        "outcome": "holds" if errors < 1e-12 else "fails",
        "why": f"the sum and the right angle are exact to {errors:.1e}, for any invertible Hessian",
    }
    grows = conditional(
        "the gradient's norm grows along the part of Newton's direction in the level set",
        SOURCE + "proposition 4.1",
        "the Hessian is definite, positive or negative",
        definite,
        random["indefinite"]["grows"],
    )
    grows["why"] += f"; at the paper's own counter-example its square changes by {saddle['growth']:+.3g}"
    descends = conditional(
        "Newton's direction is one of descent",
        "the setting of " + SOURCE + "section 4.1",
        "the Hessian is positive definite",
        random["positive definite"]["descends"],
        np.mean([random[kind]["descends"] for kind in ("negative definite", "indefinite")]).item(),
    )
    closer = conditional(
        "a small teleport to a larger gradient brings the gradient closer to Newton's direction",
        SOURCE + "section 4.1",
        "the point is nearer to the short axis, where level sets are circles",
        level["improves_near_short_axis"],
        level["improves_near_long_axis"],
    )
    return [parts, grows, descends, closer]
