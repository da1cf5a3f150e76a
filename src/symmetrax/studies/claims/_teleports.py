"""Teleports on quadratics and on Booth's and Rosenbrock's functions: what they gain, where they harm."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from symmetrax._tree import safe_norm
from symmetrax.search._levelset import LevelSet
from symmetrax.search._searches import Oracle
from symmetrax.studies.claims._claim import Claim
from symmetrax.symmetry._maps import Affine
from symmetrax.tasks._plane import SumOfSquares, booth, generalized_booth, rosenbrock
from symmetrax.teleportation._teleport import teleport
from symmetrax.teleportation._transform import teleported

DRAWS = 1000
STEPS = 1000


def descent(
    task: SumOfSquares, rate: float, schedule: Iterable[int] | None = None, start: Any = None
) -> np.ndarray:
    """1001 losses of gradient descent, teleported to the largest gradient before the steps of `schedule`.

    >>> losses = descent(booth(), 0.05, start=(5.0, -5.0))
    >>> losses[0].item(), bool(losses[-1] < 1e-6)
    (144.0, True)
    """
    x = jnp.asarray(task.start if start is None else start, float)
    when = None if schedule is None else jnp.asarray(np.isin(np.arange(STEPS), list(schedule)))
    return np.asarray(_descent(task, jnp.asarray(rate, float), when, x))


@jax.jit
def _descent(task, rate, when, x):
    optimizer = optax.with_extra_args_support(optax.sgd(rate))
    if when is not None:
        optimizer = teleported(optimizer, task.symmetry(), search=Oracle(), guard=None, schedule=when)

    def step(carry, _):
        x, state = carry
        updates, state = optimizer.update(jax.grad(task.loss)(x), state, x, value_fn=task.loss)
        x = optax.apply_updates(x, updates)
        return (x, state), task.loss(x)

    _, losses = jax.lax.scan(step, (x, optimizer.init(x)), None, length=STEPS)
    return jnp.concatenate([task.loss(x)[None], losses])


def _random_quadratics(draws: int):
    """Maps A of f(x) = ||A x||^2 with a condition number below 1e3, points, and step sizes in (0, 1/L]."""
    random = np.random.default_rng(0)
    maps = random.normal(size=(4 * draws, 2, 2))
    maps = maps[np.linalg.cond(maps) < 1e3][:draws]
    largest = np.linalg.svd(maps, compute_uv=False)[:, 0]
    rates = random.uniform(0.01, 1.0, draws) / (2 * largest**2)
    return jnp.asarray(maps), jnp.asarray(random.normal(size=(draws, 2))), jnp.asarray(rates)


def _every(one):
    return jax.jit(jax.vmap(one))


def _quadratic(matrix) -> SumOfSquares:
    return SumOfSquares(Affine(matrix, jnp.zeros(2)))


def _decrease(task, x, rate):
    """What one step of gradient descent gains, and what is promised: rate / 2 times the squared gradient."""
    gradient = jax.grad(task.loss)(x)
    return task.loss(x) - task.loss(x - rate * gradient), rate / 2 * jnp.sum(gradient**2)


def _to_largest(task, x):
    return teleport(task.loss, x, task.symmetry(), search=Oracle(), guard=None)[0]


def descent_lemma_violation() -> float:
    """The largest shortfall of f(x) - f(x - a g) below a ||g||^2 / 2, relative to f, for a <= 1/L."""

    def one(matrix, x, rate):
        task = _quadratic(matrix)
        gained, promised = _decrease(task, x, rate)
        return (promised - gained) / task.loss(x)

    return float(jnp.max(_every(one)(*_random_quadratics(DRAWS))))


def descent_lemma_slack() -> float:
    """Its largest slack, relative to f, at a = 1/L along the steepest axis, where there should be none."""

    def one(matrix, x, rate):
        task = _quadratic(matrix)
        _, values, axes = jnp.linalg.svd(matrix)
        gained, promised = _decrease(task, axes[0], 1 / (2 * values[0] ** 2))
        return jnp.abs(gained - promised) / task.loss(axes[0])

    return float(jnp.max(_every(one)(*_random_quadratics(DRAWS))))


def teleported_decrease_violations() -> float:
    """Share of 1000 quadratics on which a step with a <= 1/L gains less after the teleport than before, or
    less than a / 2 times the largest squared gradient."""

    def one(matrix, x, rate):
        task = _quadratic(matrix)
        there = _to_largest(task, x)
        gained, promised = _decrease(task, there, rate)
        plain, _ = _decrease(task, x, rate)
        slack = 1e-12 * task.loss(x)
        return (gained < plain - slack) | (gained < promised - slack)

    return float(jnp.mean(_every(one)(*_random_quadratics(DRAWS))))


def rosenbrock_share(rate: float) -> float:
    """Share of 300 points N(0, 1.5^2) of Rosenbrock's function where a step gains less after the teleport."""
    points = 1.5 * jax.random.normal(jax.random.key(0), (300, 2))
    return float(np.mean(np.asarray(_gains_less(points, jnp.asarray(rate)))))


@jax.jit
def _gains_less(points, rate):
    task = rosenbrock()

    def one(x):
        return _decrease(task, _to_largest(task, x), rate)[0] < _decrease(task, x, rate)[0]

    return jax.vmap(one)(points)


def newton_angle() -> float:
    """1 - cos(g, H^-1 g) at the largest gradient of the orbit, the worst of 100 random ellipses."""

    def one(matrix, x, _):
        task = _quadratic(matrix)
        return _off_newton(task, _to_largest(task, x))

    return float(jnp.max(_every(one)(*_random_quadratics(100))))


def level_set_newton_angle() -> float:
    """The same where the level-set search stops on Booth's function from (5, -5)."""
    return float(_off_newton(booth(), _level_set().params))


@jax.jit
def _off_newton(task, x):
    gradient = jax.grad(task.loss)(x)
    newton = jnp.linalg.solve(jax.hessian(task.loss)(x), gradient)
    return 1 - gradient @ newton / (safe_norm(gradient) * safe_norm(newton))


@jax.jit
def _level_set():
    task = booth()
    return LevelSet()(task.loss, jnp.array([5.0, -5.0]))


def level_set_gradient() -> float:
    """How far the gradient norm that the level-set search reaches on Booth's function is from 72."""
    return abs(float(safe_norm(jax.grad(booth().loss)(_level_set().params))) - 72.0)


def level_set_excess() -> float:
    """By how much, relatively, the loss exceeds 144 where it stops; never negative."""
    return max(float(booth().loss(_level_set().params)) / 144.0 - 1, 0.0)


def level_set_residual() -> float:
    """Its own residual of the conditions of Karush, Kuhn and Tucker."""
    return float(_level_set().residual)


def hindered(teleports: bool) -> float:
    """Relative error of f / f0 after 100 steps at 0.11 on x'diag(.25, 9)x from (-5, .1), the value known.

    Gradient descent is at 2.6e-4 of the start; from the largest gradient, only the steep axis is left, whose
    error shrinks by |1 - 2 * 9 * 0.11| = .98 a step: 1.76e-2.
    """
    task = generalized_booth([[0.5, 0.0], [0.0, 3.0]], start=(-5.0, 0.1))
    losses = descent(task, 0.11, (0,) if teleports else None)
    return abs(losses[100] / losses[0] / (1.76e-2 if teleports else 2.6e-4) - 1)


def isotropic_difference() -> float:
    """The largest relative difference that teleports at every step make to gradient descent on ||x||^2."""
    task = generalized_booth(np.eye(2), start=(3.0, -1.0))
    plain, moved = descent(task, 0.1)[:51], descent(task, 0.1, range(50))[:51]
    return float(np.max(np.abs(moved / plain - 1)))


def saddle_errors() -> float:
    """The largest relative error of the published numbers of Rosenbrock's function at (0, 1).

    The Hessian there is indefinite, and the largest gradient of the orbit lies far from the minimum.
    """
    task, x = rosenbrock(), jnp.array([0.0, 1.0])
    there = _to_largest(task, x)
    norms = [float(safe_norm(jax.grad(task.loss)(point))) for point in (x, there)]
    away = [float(safe_norm(point - 1.0)) for point in (x, there)]
    ends = [descent(task, rate, start=x)[-1] for rate in (1e-4, 1e-5)]
    teleported_end = descent(task, 1e-5, start=there)[-1]
    values = [float(task.loss(point)) for point in (x, there)]
    found = np.array([*values, *norms, *away, *ends, teleported_end])
    return float(np.max(np.abs(found / [101, 101, 200, 2327, 1.0, 60.5, 0.640, 2.72, 46.5] - 1)))


def saddle_survival() -> float:
    """f0 / f after 1000 steps at 1e-4 from that largest gradient: 0 if they diverge."""
    task = rosenbrock()
    losses = descent(task, 1e-4, start=_to_largest(task, jnp.array([0.0, 1.0])))
    return float(losses[0] / losses[-1]) if np.isfinite(losses[-1]) else 0.0


def booth_ends(teleports: bool) -> float:
    """Relative error of Booth's function after 10 steps at .08 from (5, -5), teleported before the fifth."""
    losses = descent(booth(), 0.08, (4,) if teleports else None, (5.0, -5.0))
    return abs(losses[10] / (9.45e-4 if teleports else 2.2025) - 1)


def rosenbrock_ends(schedule: tuple[int, ...] | None, known: float) -> float:
    """Relative error of Rosenbrock's function after 1000 steps at 1e-3 from (-1, -1)."""
    return abs(descent(rosenbrock(), 1e-3, schedule, (-1.0, -1.0))[-1] / known - 1)


def rosenbrock_solved() -> float:
    """Its value with a teleport to the largest gradient every hundred steps."""
    return float(descent(rosenbrock(), 1e-3, range(99, 1000, 100), (-1.0, -1.0))[-1])


def rosenbrock_survival() -> float:
    """f0 / f three steps after a teleport to the largest gradient at the start: 0 if it diverges."""
    losses = descent(rosenbrock(), 1e-3, (0,), (-1.0, -1.0))
    return float(losses[0] / losses[3]) if np.isfinite(losses[3]) else 0.0


_PAPER = "arXiv:2504.15399, section "
TELEPORTS = (
    Claim(
        "a step of at most 1/L gains a/2 |g|^2 or more: 1000 convex quadratics",
        "arXiv:2403.03362",
        descent_lemma_violation,
        1e-12,
    ),
    Claim(
        "and no more than that along the steepest axis, at 1/L",
        "arXiv:2403.03362",
        descent_lemma_slack,
        1e-12,
    ),
    Claim(
        "so it never gains less after a teleport: share of exceptions, 1000 quadratics",
        _PAPER + "2",
        teleported_decrease_violations,
        0.0,
    ),
    *(
        Claim(
            f"on Rosenbrock, at rate {rate}, it gains less for {share:.1%} of points: error of the share",
            "measured here: the step is longer than 1/L there",
            lambda rate=rate, share=share: abs(rosenbrock_share(rate) - share),
            0.01,
        )
        for rate, share in ((1e-3, 0.993), (1e-4, 0.837))
    ),
    Claim(
        "at the largest gradient of an orbit the gradient is Newton's direction: 1 - cos, 100 ellipses",
        "arXiv:2205.10637",
        newton_angle,
        1e-6,
    ),
    Claim(
        "nearly so where the level-set search stops on Booth: 1 - cos",
        "arXiv:2205.10637",
        level_set_newton_angle,
        1e-3,
    ),
    Claim(
        "the level-set search reaches |g| = 72 on Booth",
        "arXiv:2403.03362",
        level_set_gradient,
        0.01,
    ),
    Claim("without raising f above 144, relatively", "arXiv:2403.03362", level_set_excess, 1e-6),
    Claim(
        "and its KKT residual is at most its tolerance",
        "arXiv:2403.03362",
        level_set_residual,
        1e-6,
    ),
    *(
        Claim(
            f"a larger gradient may hinder: x'diag(.25, 9)x at rate .11, {name} of f after 100 steps",
            _PAPER + "6",
            lambda moved=moved: hindered(moved),
            0.01,
        )
        for name, moved in (("2.6e-4", False), ("1.76e-2 with a teleport", True))
    ),
    Claim(
        "teleports change nothing on ||x||^2, relatively",
        "arXiv:2403.03362",
        isotropic_difference,
        1e-12,
    ),
    Claim(
        "Rosenbrock at (0, 1): |g| 200 to 2327, distance 1 to 60.5; f after 1000 steps .640, 2.72, 46.5",
        _PAPER + "6",
        saddle_errors,
        0.01,
    ),
    Claim("and at rate 1e-4 that teleport diverges: f0 / f", _PAPER + "6", saddle_survival, 0.1),
    *(
        Claim(
            f"Booth from (5, -5), 10 steps at .08, {name}",
            "arXiv:2205.10637",
            lambda moved=moved: booth_ends(moved),
            0.01,
        )
        for name, moved in (("f = 2.2025", False), ("one teleport: f = 9.45e-4", True))
    ),
    *(
        Claim(
            f"Rosenbrock from (-1, -1), 1000 steps at .001, {name}: f = {known}",
            "arXiv:2205.10637",
            lambda when=when, known=known: rosenbrock_ends(when, known),
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
        rosenbrock_solved,
        1e-20,
    ),
    Claim(
        "but at the start it diverges: f0 / f three steps later",
        "arXiv:2205.10637",
        rosenbrock_survival,
        1e-6,
    ),
)
