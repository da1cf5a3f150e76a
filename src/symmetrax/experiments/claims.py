"""Claims that are checked as numbers, in float64: what a paper says, what is measured, and the bound.

Each check is a function that returns a measured number; `check` compares it with the bound.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from symmetrax._tree import safe_norm
from symmetrax.experiments import teleport_claims as teleports
from symmetrax.symmetry._maps import Affine
from symmetrax.tasks._families import make_family
from symmetrax.tasks._plane import PlaneFamily, SumOfSquares, booth, generalized_booth, rosenbrock
from symmetrax.teleportation._search import Oracle
from symmetrax.teleportation._teleport import teleport

DRAWS = 1000


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim, where it is made, and the check: it holds if `measure()` is at most `bound`.

    >>> CLAIMS[0].bound
    1e-09
    """

    claim: str
    source: str
    measure: Callable[[], float]
    bound: float


def check(claim: Claim) -> dict[str, Any]:
    """Measure a claim. Outcomes: "holds", or "failed" for what should hold and does not.

    >>> check(Claim("one is small", "nowhere", lambda: 1.0, 0.5))["outcome"]
    'failed'
    """
    with jax.enable_x64(True):
        measured = float(claim.measure())
    outcome = "holds" if measured <= claim.bound else "failed"
    return {
        "claim": claim.claim,
        "source": claim.source,
        "measured": measured,
        "bound": claim.bound,
        "outcome": outcome,
    }


def family_invariance(name: str) -> float:
    """Worst relative change of f under random rotations: 1000 draws of (h, x, R), where cond(h') <= 1e4."""
    family = cast(PlaneFamily, make_family(name))

    def one(key):
        draw, start, turn = jax.random.split(key, 3)
        task = family.task(family.draw(draw))
        x, symmetry = task.init(start), task.symmetry()
        there = symmetry.act(symmetry.sample(turn), x)
        worst = jnp.maximum(jnp.linalg.cond(_slope(task, x)), jnp.linalg.cond(_slope(task, there)))
        return worst, jnp.abs(task.loss(there) - task.loss(x)) / task.loss(x)

    condition, defect = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), DRAWS))
    return float(np.max(np.asarray(defect)[np.asarray(condition) <= 1e4]))


def booth_on_a_grid() -> float:
    """Worst difference between generalized Booth with the paper's A, b and Booth's function, relative."""
    x, y = np.meshgrid(np.linspace(-10, 10, 41), np.linspace(-10, 10, 41))
    known = (x + 2 * y - 7) ** 2 + (2 * x + y - 5) ** 2
    return _grid_difference(booth(), x, y, known)


def rosenbrock_on_a_grid() -> float:
    """The same for Rosenbrock's function."""
    x, y = np.meshgrid(np.linspace(-2, 2, 41), np.linspace(-1, 3, 41))
    return _grid_difference(rosenbrock(), x, y, 100 * (y - x**2) ** 2 + (x - 1) ** 2)


def orbit_gradient_range() -> float:
    """Worst relative error of (max / min gradient norm on an orbit) = cond(A), over 100 random ellipses.

    The extremes are searched on 200,001 angles, without derivatives.
    """
    angles = np.linspace(0, np.pi, 200_001)
    circle = np.stack([np.cos(angles), np.sin(angles)])
    worst = 0.0
    for seed in range(100):
        matrix = np.random.default_rng(seed).normal(size=(2, 2))
        norms = np.linalg.norm(2 * matrix.T @ circle, axis=0)
        symmetry = SumOfSquares(Affine(jnp.asarray(matrix), jnp.zeros(2))).symmetry()
        # The same orbit through the library: its gradients at the angles of the two extremes.
        x = symmetry.map.inverse(jnp.array([1.0, 0.0]))
        ends = [
            symmetry.act(symmetry.exp(jnp.asarray(angles[i])[None]), x)
            for i in (norms.argmax(), norms.argmin())
        ]
        top, bottom = (np.linalg.norm(2 * matrix.T @ matrix @ np.asarray(end)) for end in ends)
        condition = np.linalg.cond(matrix)
        if condition <= 100:
            worst = max(worst, float(abs(top / bottom / condition - 1)))
    return worst


def oracle_closed_form() -> float:
    """Worst relative error of the oracle's gradient norm against 2 sqrt(lambda_max f), 100 random starts."""
    family = cast(PlaneFamily, make_family("ellipse-random"))

    def one(key):
        h = family.draw(key)
        task = family.task(h)
        x = task.init(jax.random.fold_in(key, 1))
        there, _ = teleport(task.loss, x, task.symmetry(), search=Oracle(), guard=None)
        top = jnp.linalg.svd(h.matrix, compute_uv=False)[0]
        return jnp.abs(safe_norm(jax.grad(task.loss)(there)) / (2 * top * jnp.sqrt(task.loss(x))) - 1)

    return float(jnp.max(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), 100))))


def oracle_gradient(task: SumOfSquares, x: tuple[float, float], known: float) -> float:
    """Relative error of the oracle's gradient norm from `x` against a known value."""
    there, _ = teleport(task.loss, jnp.array(x), task.symmetry(), search=Oracle(), guard=None)
    return abs(float(safe_norm(jax.grad(task.loss)(there))) / known - 1)


def quadratic_invariance() -> float:
    """Worst relative change of x' A x under x -> B^-1 R B x with A = B' B, B symmetric: 1000 draws."""
    worst = 0.0
    random = np.random.default_rng(0)
    for _ in range(DRAWS // 20):
        root = random.normal(size=(2, 2))
        root = root @ root.T + 0.1 * np.eye(2)
        task = generalized_booth(root)
        symmetry = task.symmetry()
        for _ in range(20):
            x = random.normal(size=2)
            there = np.asarray(symmetry.act(symmetry.exp(jnp.array([random.uniform(-3, 3)])), jnp.asarray(x)))
            value = x @ (root.T @ root) @ x
            worst = max(worst, float(abs(there @ (root.T @ root) @ there / value - 1)))
    return worst


_PAPER = "arXiv:2504.15399, section "
CLAIMS = (
    *(
        Claim(f"f_h keeps its value under h^-1 R h: {name}, cond(h') <= 1e4", _PAPER + "5.1.1", measure, 1e-9)
        for name, measure in (
            (name, lambda name=name: family_invariance(name))
            for name in ("ellipse-fixed", "ellipse-random", "rosenbrock-fixed", "rosenbrock-random")
        )
    ),
    Claim("A=[[1,2],[2,1]], b=(-7,-5) gives Booth's function", _PAPER + "5.1.1", booth_on_a_grid, 1e-12),
    Claim(
        "c=-10, d=10x^2, a=1, b=-1 gives Rosenbrock's function", _PAPER + "5.1.1", rosenbrock_on_a_grid, 1e-9
    ),
    Claim("g(x) = B^-1 R B x keeps x'Ax", _PAPER + "4.2", quadratic_invariance, 1e-12),
    Claim("gradients differ on an orbit, by a factor of cond(A)", _PAPER + "1", orbit_gradient_range, 1e-6),
    Claim(
        "the largest is 2 sqrt(lambda_max f), in closed form", "arXiv:2205.10637", oracle_closed_form, 1e-6
    ),
    Claim(
        "Booth from (5, -5): 53.67 becomes 72",
        "arXiv:2205.10637",
        lambda: oracle_gradient(booth(), (5.0, -5.0), 72.0),
        1e-9,
    ),
    Claim(
        "Rosenbrock from (-1, -1): 898 becomes 8686.2",
        "arXiv:2205.10637",
        lambda: oracle_gradient(rosenbrock(), (-1.0, -1.0), 8686.2),
        0.05 / 8686.2,
    ),
    Claim(
        "a step of at most 1/L gains a/2 |g|^2 or more: 1000 convex quadratics",
        "arXiv:2403.03362",
        teleports.descent_lemma_violation,
        1e-12,
    ),
    Claim(
        "and no more than that along the steepest axis, at 1/L",
        "arXiv:2403.03362",
        teleports.descent_lemma_slack,
        1e-12,
    ),
    Claim(
        "so it never gains less after a teleport: share of exceptions, 1000 quadratics",
        _PAPER + "2",
        teleports.teleported_decrease_violations,
        0.0,
    ),
    *(
        Claim(
            f"on Rosenbrock, at rate {rate}, it gains less for {share:.1%} of points: error of the share",
            "measured here: the step is longer than 1/L there",
            lambda rate=rate, share=share: abs(teleports.rosenbrock_share(rate) - share),
            0.01,
        )
        for rate, share in ((1e-3, 0.993), (1e-4, 0.837))
    ),
    Claim(
        "at the largest gradient of an orbit the gradient is Newton's direction: 1 - cos, 100 ellipses",
        "arXiv:2205.10637",
        teleports.newton_angle,
        1e-6,
    ),
    Claim(
        "nearly so where the level-set search stops on Booth: 1 - cos",
        "arXiv:2205.10637",
        teleports.level_set_newton_angle,
        1e-3,
    ),
    Claim(
        "the level-set search reaches |g| = 72 on Booth",
        "arXiv:2403.03362",
        teleports.level_set_gradient,
        0.01,
    ),
    Claim("without raising f above 144, relatively", "arXiv:2403.03362", teleports.level_set_excess, 1e-6),
    Claim(
        "and its KKT residual is at most its tolerance",
        "arXiv:2403.03362",
        teleports.level_set_residual,
        1e-6,
    ),
    *(
        Claim(
            f"a larger gradient may hinder: x'diag(.25, 9)x at rate .11, {name} of f after 100 steps",
            _PAPER + "6",
            lambda moved=moved: teleports.hindered(moved),
            0.01,
        )
        for name, moved in (("2.6e-4", False), ("1.76e-2 with a teleport", True))
    ),
    Claim(
        "teleports change nothing on ||x||^2, relatively",
        "arXiv:2403.03362",
        teleports.isotropic_difference,
        1e-12,
    ),
    Claim(
        "Rosenbrock at (0, 1): |g| 200 to 2327, distance 1 to 60.5; f after 1000 steps .640, 2.72, 46.5",
        _PAPER + "6",
        teleports.saddle_errors,
        0.01,
    ),
    Claim("and at rate 1e-4 that teleport diverges: f0 / f", _PAPER + "6", teleports.saddle_survival, 0.1),
    *(
        Claim(
            f"Booth from (5, -5), 10 steps at .08, {name}",
            "arXiv:2205.10637",
            lambda moved=moved: teleports.booth_ends(moved),
            0.01,
        )
        for name, moved in (("f = 2.2025", False), ("one teleport: f = 9.45e-4", True))
    ),
    *(
        Claim(
            f"Rosenbrock from (-1, -1), 1000 steps at .001, {name}: f = {known}",
            "arXiv:2205.10637",
            lambda when=when, known=known: teleports.rosenbrock_ends(when, known),
            0.01,
        )
        for name, when, known in (
            ("no teleport", None, 0.1113),
            ("the largest gradient at step 99", (99,), 0.093),
        )
    ),
    Claim(
        "the largest gradient every 100 steps solves it: f",
        "arXiv:2205.10637",
        teleports.rosenbrock_solved,
        1e-20,
    ),
    Claim(
        "but at the start it diverges: f0 / f three steps later",
        "arXiv:2205.10637",
        teleports.rosenbrock_survival,
        1e-6,
    ),
)


def _slope(task: SumOfSquares, x: Any) -> Any:
    return jax.jacobian(task.map)(x)


def _grid_difference(task: SumOfSquares, x: np.ndarray, y: np.ndarray, known: np.ndarray) -> float:
    values = np.asarray(jax.vmap(jax.vmap(task.loss))(jnp.stack([jnp.asarray(x), jnp.asarray(y)], axis=-1)))
    return float(np.max(np.abs(values - known) / np.maximum(known, 1)))
