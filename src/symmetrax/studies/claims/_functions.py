"""The benchmark's functions: their values, their symmetry, the gradients on their orbits."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from symmetrax._tree import safe_norm
from symmetrax.search._searches import Oracle
from symmetrax.studies.claims._claim import Claim
from symmetrax.symmetry._maps import Affine
from symmetrax.tasks._families import make_family
from symmetrax.tasks._plane import PlaneFamily, SumOfSquares, booth, generalized_booth, rosenbrock
from symmetrax.teleportation._teleport import teleport

DRAWS = 1000


def family_invariance(name: str) -> float:
    """Worst relative change of f under random rotations: 1000 draws of (h, x, R), where cond(h') <= 1e4."""
    family = cast(PlaneFamily, make_family(name))

    def one(key):
        draw, start, turn = jax.random.split(key, 3)
        task = family.task(family.draw(draw))
        x, symmetry = task.init(start), task.symmetry()
        there = symmetry.act(symmetry.sample(turn), x)
        worst = jnp.maximum(_condition(_slope(task, x)), _condition(_slope(task, there)))
        return worst, jnp.abs(task.loss(there) - task.loss(x)) / task.loss(x)

    condition, deviation = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), DRAWS))
    return float(np.max(np.asarray(deviation)[np.asarray(condition) <= 1e4]))


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


def _slope(task: SumOfSquares, x: Any) -> Any:
    return jax.jacobian(task.map)(x)


def _condition(matrix: Any) -> Any:
    """The condition number of a 2 x 2 matrix."""
    (a, b), (c, d) = matrix
    size, volume = jnp.sum(matrix**2), jnp.abs(a * d - b * c)
    return (size + jnp.sqrt(jnp.maximum(size**2 - 4 * volume**2, 0.0))) / (2 * volume)


def _grid_difference(task: SumOfSquares, x: np.ndarray, y: np.ndarray, known: np.ndarray) -> float:
    values = np.asarray(jax.vmap(jax.vmap(task.loss))(jnp.stack([jnp.asarray(x), jnp.asarray(y)], axis=-1)))
    return float(np.max(np.abs(values - known) / np.maximum(known, 1)))


_PAPER = "arXiv:2504.15399, section "
FUNCTIONS = (
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
)
