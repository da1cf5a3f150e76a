"""Many steps: what a teleport is worth over time, for SGD, beside Newton's method, and in the worst case."""

from typing import cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from symmetrax import theory
from symmetrax.groups._matrices import GeneralLinear, SpecialOrthogonal
from symmetrax.models._ready import mlp_symmetry
from symmetrax.search._searches import Oracle
from symmetrax.studies.claims._claim import Claim, Split
from symmetrax.tasks._families import make_family
from symmetrax.tasks._plane import PlaneFamily, booth, rosenbrock
from symmetrax.teleportation._teleport import teleport

DRAWS = 200


def random_forms(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positive definite matrices of condition up to 100, points, and step sizes up to 1/L for x'Ax."""
    random = np.random.default_rng([seed, n])
    axes = np.linalg.qr(random.normal(size=(DRAWS, n, n)))[0]
    values = 10.0 ** random.uniform(-1, 1, size=(DRAWS, n))
    matrices = np.einsum("kij,kj,klj->kil", axes, values, axes)
    rates = random.uniform(0.01, 0.99, DRAWS) / (2 * values.max(axis=1))
    return (matrices + matrices.transpose(0, 2, 1)) / 2, random.normal(size=(DRAWS, n)), rates


def flow_error() -> float:
    """Relative error of the loss's rate of change after an element of GL acts, as known before it acts."""
    sides = _linear_network(GeneralLinear)[0]
    return abs(float(sides.left / sides.right) - 1)


def norm_change() -> float:
    """Relative change of the gradient norm of a linear network when its hidden features are rotated."""
    sides = _linear_network(SpecialOrthogonal)[1]
    return abs(float(sides.left / sides.right) - 1) if sides.applies else float("inf")


def persistence_violation() -> float:
    """By how much, relatively, a gain in gradient norm falls below its bound in ten steps, at most."""

    @jax.jit
    @jax.vmap
    def shortfall(matrix, x, rate, smoothness):
        there = theory.steepest_point(matrix, x)
        sides = theory.persistence(lambda x: x @ matrix @ x, x, there, rate, smoothness, 10)
        return jnp.max(1 - sides.left / sides.right)

    worst = -np.inf
    for n in (2, 5):
        matrices, points, rates = random_forms(n)
        tops = 2 * np.linalg.eigvalsh(matrices)[:, -1]
        worst = max(worst, float(jnp.max(shortfall(*map(jnp.asarray, (matrices, points, rates, tops))))))
    return worst


def once_difference() -> float:
    """How far gradient descent after one teleport is from that with one before every step, relatively."""

    @jax.jit
    @jax.vmap
    def difference(matrix, x, rate):
        sides = theory.teleport_once(matrix, x, rate, 20)
        return jnp.max(jnp.abs(sides.left - sides.right)) / jnp.linalg.norm(sides.left[0])

    return max(float(jnp.max(difference(*map(jnp.asarray, random_forms(n))))) for n in (2, 5))


def nearest_point_excess() -> float:
    """How much nearer to the optimum some point of the level set is than the one with the largest
    gradient, relatively: 20,000 points of each of ten level sets in three dimensions."""
    worst = -np.inf
    matrices, points, _ = random_forms(3)
    for matrix, x in zip(matrices[:10], points[:10], strict=True):
        found = np.linalg.norm(theory.steepest_point(jnp.asarray(matrix), jnp.asarray(x)))
        random = np.random.default_rng(0).normal(size=(20_000, 3))
        scale = np.sqrt(x @ matrix @ x / np.einsum("ki,ij,kj->k", random, matrix, random))
        worst = max(worst, 1 - float(np.min(np.linalg.norm(random, axis=1) * scale) / found))
    return worst


def critical_drift() -> Split:
    """How fast gradient flow leaves the largest gradient of an orbit: Booth's function; Rosenbrock's."""
    drifts = []
    for task, start in ((booth(), (5.0, -5.0)), (rosenbrock(), (-1.0, -1.0))):
        there, _ = teleport(task.loss, jnp.array(start), task.symmetry(), search=Oracle(), guard=None)
        drifts.append(float(eqx.filter_jit(theory.leaves_critical)(task.loss, there)))
    return Split(*drifts)


def sgd_ratio() -> float:
    """Left over right side of the bound for SGD with teleports, at most: with and without noise."""
    worst = 0.0
    for m, n, noise in ((6, 12, 0.0), (12, 4, 1.0)):
        random = np.random.default_rng(0)
        inputs = random.normal(size=(m, n))
        targets = inputs @ random.normal(size=n) + noise * random.normal(size=m)
        start = 3 * random.normal(size=n)
        for steps in (10, 1000):
            keys = jax.random.split(jax.random.key(steps), 32)
            x, y, w = map(jnp.asarray, (inputs, targets, start))
            sides = theory.teleported_sgd(x, y, w, steps, keys)
            worst = max(worst, float(sides.left / sides.right))
    return worst


def damped_newton_excess() -> float:
    """By how much the error of a step exceeds its bound, at most: log cosh + x^2 / 10, on every axis."""

    def loss(x):
        return jnp.sum(jnp.log(jnp.cosh(x)) + 0.1 * x**2)

    @jax.jit
    @jax.vmap
    def excess(x, rate):
        sides = theory.damped_newton(loss, x, jnp.zeros(3), rate, 0.2, 4 / np.sqrt(27))
        return jnp.where(sides.applies, sides.left - sides.right, jnp.inf)

    sizes = np.linspace(-3, 3, 40)
    points = np.concatenate([np.outer(sizes, axis) for axis in np.eye(3)])
    rates = np.random.default_rng(0).uniform(0.05, 0.8, len(points))
    return float(jnp.max(excess(jnp.asarray(points), jnp.asarray(rates))))


def worst_case_error() -> float:
    """Relative error of a teleported step's factor on an isotropic quadratic, against the class's worst."""
    random = np.random.default_rng(0)
    worst = 0.0
    for rate in (0.02, 0.1, 0.18, 0.19):
        rotation = np.linalg.qr(random.normal(size=(4, 4)))[0]
        x, turn = jnp.asarray(random.normal(size=4)), jnp.asarray(rotation)
        sides = theory.isotropic_contraction(x, turn, rate, 1.0, 10.0)
        worst = max(worst, abs(float(sides.left / sides.right) - 1))
    return worst


def endless_orbit_error() -> float:
    """Relative error of the squared norm on a ReLU network's scaling orbit, at scales .01 to 100."""
    random = np.random.default_rng(0)
    x, y = jnp.asarray(random.normal(size=(4, 20))), jnp.asarray(random.normal(size=(2, 20)))
    first, second = jnp.asarray(random.normal(size=(6, 4))), jnp.asarray(random.normal(size=(2, 6)))

    def loss(v, u):
        return jnp.sum((u @ jax.nn.relu(v @ x) - y) ** 2)

    scales = jnp.array([0.01, 0.1, 1.0, 10.0, 100.0])
    sides = jax.vmap(lambda scale: theory.norm_at_scale(loss, first, second, scale))(scales)
    return float(jnp.max(jnp.abs(sides.left / sides.right - 1)))


def moved_away() -> Split:
    """The share of teleports to the largest gradient that lead away from the optimum: on ellipses at most,
    and on functions of Rosenbrock's kind at least, one of a kind or random."""
    shares = {}
    for name in ("ellipse-fixed", "ellipse-random", "rosenbrock-fixed", "rosenbrock-random"):
        family = cast(PlaneFamily, make_family(name))

        @jax.jit
        @jax.vmap
        def away(key, family=family):
            task = family.task(family.draw(key))
            x = task.init(jax.random.fold_in(key, 1))
            there, _ = teleport(task.loss, x, task.symmetry(), search=Oracle(), guard=None)
            best = task.map.inverse(jnp.zeros(2))
            nearer = jnp.linalg.norm(there - best) <= jnp.linalg.norm(x - best) * (1 + 1e-9)
            return ~nearer  # infinitely far is away

        shares[name] = float(jnp.mean(away(jax.random.split(jax.random.key(0), 500))))
    ellipses = max(share for name, share in shares.items() if name.startswith("ellipse"))
    return Split(ellipses, min(share for name, share in shares.items() if name.startswith("rosenbrock")))


def _linear_network(group: type):
    """Flow and norm of a two-layer linear network after one element of a group acts on its hidden units."""
    random = np.random.default_rng(0)
    x, y = (jnp.asarray(random.normal(size=(9, n))) for n in (4, 2))
    params = {"w1": jnp.asarray(random.normal(size=(3, 4))), "w2": jnp.asarray(random.normal(size=(2, 3)))}

    def loss(p):
        return jnp.mean((x @ (p["w2"] @ p["w1"]).T - y) ** 2)

    symmetry = mlp_symmetry(params, ["w1", "w2"], group=group)
    element = symmetry.exp(0.4 * jnp.linspace(-1, 1, symmetry.algebra[0]))
    rates = jax.tree.map(lambda w: 1.0 + jnp.arange(w.size, dtype=float).reshape(w.shape) / 7, params)

    @jax.jit
    def both(params):
        return (
            theory.flow_acceleration(loss, params, symmetry, element, rates),
            theory.norm_kept(loss, params, symmetry, element),
        )

    return both(params)


_ZHAO = "arXiv:2205.10637"
_LATER = "arXiv:2305.13404, "
_LEVEL = "arXiv:2403.03362, "
DESCENT = (
    Claim(
        "how an element changes gradient flow is known before it acts: relative error",
        _ZHAO,
        flow_error,
        1e-9,
    ),
    Claim(
        "an orthogonal element leaves the gradient norm as it is: relative change, linear network",
        _ZHAO,
        norm_change,
        1e-12,
    ),
    Claim(
        "a gain g in gradient norm is at least ((1 - aL)/(1 + aL))^t g after t steps: violation",
        _ZHAO,
        persistence_violation,
        1e-12,
    ),
    Claim(
        "on a positive definite quadratic teleporting once is teleporting always: difference",
        _ZHAO,
        once_difference,
        1e-12,
    ),
    Claim(
        "and no point of the level set is nearer to the optimum: by how much one is",
        _ZHAO,
        nearest_point_excess,
        1e-12,
    ),
    Claim(
        "gradient flow keeps to the largest gradients, so that one teleport is enough: how fast it leaves",
        _LATER + "definition 3.3, proposition 3.4",
        critical_drift,
        1e-9,
        condition="the third derivative along the gradient is parallel to it: quadratics, not Rosenbrock",
    ),
    Claim(
        "SGD with teleports nears stationary orbits: largest left / right of the bound",
        _LATER + "theorem 3.1; constants proved here",
        sgd_ratio,
        1.0,
    ),
    Claim(
        "after an exact teleport a step is a damped Newton step: excess over the bound",
        _LATER + "proposition 3.2; constants derived here",
        damped_newton_excess,
        1e-12,
    ),
    Claim(
        "no teleport improves the worst case of smooth, strongly convex losses: relative error",
        _LEVEL + "proposition 2.6",
        worst_case_error,
        1e-12,
    ),
    Claim(
        "on the orbit of a ReLU network the squared norm is P / s^2 + s^2 Q, unbounded: relative error",
        _LEVEL + "proposition B.2",
        endless_orbit_error,
        1e-9,
    ),
    Claim(
        "a teleport to the largest gradient leads nearer to the optimum: share of exceptions",
        _ZHAO + ", of quadratics; doubted in arXiv:2504.15399, section 6",
        moved_away,
        0.0,
        condition="the function is a convex quadratic",
    ),
)
