"""Newton's step and the gradient norm: proposition 4.1 of arXiv:2504.15399, its lemma, and its reading."""

import jax
import jax.numpy as jnp
import numpy as np

from symmetrax import theory
from symmetrax.studies.claims._claim import Claim, Split
from symmetrax.tasks._plane import rosenbrock

DIMENSIONS = (2, 3, 5, 8)
DRAWS = 500
_ROSENBROCK_POINTS = 20_000


def random_hessians(n: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Normal gradients, and Hessians of condition up to 100 with random axes: "positive", "negative",
    "definite" (either) or "indefinite"."""
    random = np.random.default_rng(n)
    axes = np.linalg.qr(random.normal(size=(DRAWS, n, n)))[0]
    values = 10.0 ** random.uniform(-1, 1, size=(DRAWS, n))
    signs = random.choice([-1.0, 1.0], size=(DRAWS, n))
    if kind == "indefinite":
        signs[:, 0], signs[:, 1] = 1.0, -1.0
    else:
        signs = {"positive": 1.0, "negative": -1.0, "definite": signs[:, :1]}[kind]
    hessians = np.einsum("kij,kj,klj->kil", axes, values * signs, axes)
    return random.normal(size=(DRAWS, n)), (hessians + hessians.transpose(0, 2, 1)) / 2


def decomposition_error() -> float:
    """The largest relative error of parallel + symmetry = newton and of symmetry . gradient = 0."""
    worst = 0.0
    for n in DIMENSIONS:
        gradients, hessians = random_hessians(n, "indefinite")
        parts = jax.tree.map(np.asarray, _parts(jnp.asarray(gradients), jnp.asarray(hessians)))
        solved = -np.linalg.solve(hessians, gradients[..., None])[..., 0]
        sizes = np.linalg.norm(solved, axis=1)
        whole = np.linalg.norm(parts.parallel + parts.symmetry - solved, axis=1) / sizes
        across = np.sum(parts.symmetry * gradients, axis=1) / (sizes * np.linalg.norm(gradients, axis=1))
        worst = max(worst, float(np.max(whole)), float(np.max(np.abs(across))))
    return worst


def power_violation() -> float:
    """The largest left / right - 1 of lemma A.1 in 20,000 positive definite draws, half of them with powers
    that are not integers."""
    excess = -np.inf
    for n in range(2, 7):
        random = np.random.default_rng(n)
        axes = np.linalg.qr(random.normal(size=(4000, n, n)))[0]
        values, vectors = 10.0 ** random.uniform(-1, 1, size=(4000, n)), random.normal(size=(4000, n))
        matrices = np.einsum("kij,kj,klj->kil", axes, values, axes)
        alpha, beta = random.integers(-2, 3, size=(2, 4000)).astype(float)
        beta[2000:] = random.uniform(-2, 2, 2000)
        sides = _powers(*map(jnp.asarray, (vectors, matrices, alpha, beta)))
        excess = max(excess, float(jnp.max(sides.left / sides.right - 1)))
    return excess


def counter_example_error() -> float:
    """The largest error of the printed 100, -3.5, -17 and 59.5, and of the rate -8.1 that follows."""
    gradient, hessian = _counter_example()
    sides = theory.power_inequality(gradient, hessian, 0.0, 1.0)
    inverse = gradient @ jnp.linalg.solve(hessian, gradient)
    rate = theory.norm_growth(gradient, hessian).left
    found = jnp.stack([sides.left, sides.right, inverse, gradient @ hessian @ gradient, rate])
    return float(jnp.max(jnp.abs(found - jnp.array([100, 59.5, -3.5, -17, -8.1]))))


def falling_share() -> Split:
    """The share of points where the gradient norm falls along the symmetry component: definite and
    indefinite Hessians, the latter in the plane, where it always falls."""
    inside = 0.0
    for n in DIMENSIONS:
        inside = max(inside, _falling(*random_hessians(n, "definite")))
    return Split(inside, _falling(*random_hessians(2, "indefinite")))


def identity_error() -> float:
    """The largest error of the sum over pairs of eigenvalues, relative to the two terms of its definition."""
    worst = 0.0
    for n in DIMENSIONS:
        for kind in ("definite", "indefinite"):
            gradients, hessians = random_hessians(n, kind)
            inverse = np.einsum("ki,kij,kj->k", gradients, np.linalg.inv(hessians), gradients)
            form = np.einsum("ki,kij,kj->k", gradients, hessians, gradients)
            square = np.sum(gradients**2, axis=1)
            right = np.asarray(_growth(jnp.asarray(gradients), jnp.asarray(hessians)).right)
            error = np.abs(right - 2 * (inverse * form / square - square))
            worst = max(worst, float(np.max(error / (square + np.abs(inverse * form / square)))))
    return worst


def damped_falling_share() -> float:
    """The share of indefinite Hessians, shifted to be positive definite, where it falls along that step's."""
    share = 0.0
    for n in DIMENSIONS:
        gradients, hessians = random_hessians(n, "indefinite")
        shifts = 1.1 * np.abs(np.linalg.eigvalsh(hessians)[:, 0])
        sides = _damped(*map(jnp.asarray, (gradients, hessians, shifts)))
        falls = np.asarray(sides.left) < -1e-9 * np.sum(gradients**2, axis=1)
        share = max(share, float(np.mean(falls | ~np.asarray(sides.applies))))
    return share


def rosenbrock_share_error() -> float:
    """Distance of the share of points N(0, 1.5^2) where the norm falls from .2398,
    an integral; all must be indefinite."""
    task = rosenbrock()

    @jax.jit
    @jax.vmap
    def falls(x):
        gradient = jax.grad(task.loss)(x)
        sides = theory.norm_growth(gradient, jax.hessian(task.loss)(x))
        return sides.left < -1e-9 * jnp.sum(gradient**2), sides.applies

    points = 1.5 * np.random.default_rng(0).normal(size=(_ROSENBROCK_POINTS, 2))
    fallen, definite = map(np.asarray, falls(jnp.asarray(points)))
    return float("inf") if np.any(fallen & definite) else abs(float(np.mean(fallen)) - 0.2398)


def arbitrary_direction_imbalance() -> float:
    """How far from one half the share of random directions is along which the norm rises, at most."""
    shares = []
    for n in DIMENSIONS:
        gradients, hessians = random_hessians(n, "positive")
        directions = np.random.default_rng([n, 1]).normal(size=gradients.shape)
        slopes = _slopes(*map(jnp.asarray, (gradients, hessians, directions)))
        shares.append(float(jnp.mean(slopes > 0)))
    return float(np.max(np.abs(np.array(shares) - 0.5)))


def cosine_error() -> float:
    """The largest error of the cosine with Newton's step against Kantorovich's product, and in the plane."""
    worst = 0.0
    for n in DIMENSIONS:
        sides = _cosines(*map(jnp.asarray, random_hessians(n, "positive")))
        worst = max(worst, float(jnp.max(jnp.abs(sides.left - sides.right))))
    random = np.random.default_rng(0)
    low, high = np.exp(np.sort(random.uniform(-2, 2, size=(2, DRAWS)), axis=0))
    on = jax.jit(jax.vmap(theory.newton_cosine_on_ellipse))
    sides = on(*map(jnp.asarray, (random.uniform(0, np.pi, DRAWS), low, high)))
    return max(worst, float(jnp.max(jnp.abs(sides.left - sides.right))))


def worse_share(n: int, draws: int = 1500) -> float:
    """The share of points where a small move along the symmetry component turns the gradient away from
    Newton's step: log-normal eigenvalues, sigma = 1.5, and A^(1/2) x uniform on the sphere."""
    random = np.random.default_rng([n, 2])
    values = np.exp(1.5 * random.normal(size=(draws, n)))
    z = random.normal(size=(draws, n))
    x = z / np.linalg.norm(z, axis=1, keepdims=True) / np.sqrt(values)
    return float(jnp.mean(_changes(jnp.asarray(2 * values * x), jnp.asarray(2 * values)) < 0))


def _counter_example():
    return jnp.array([1.0, 3.0]), jnp.diag(jnp.array([1.0, -2.0]))


def _falling(gradients: np.ndarray, hessians: np.ndarray) -> float:
    left = np.asarray(_growth(jnp.asarray(gradients), jnp.asarray(hessians)).left)
    return float(np.mean(left < -1e-9 * np.sum(gradients**2, axis=1)))  # but for rounding


_parts = jax.jit(jax.vmap(theory.newton_parts))
_growth = jax.jit(jax.vmap(theory.norm_growth))
_damped = jax.jit(jax.vmap(theory.damped_norm_growth))
_slopes = jax.jit(jax.vmap(theory.norm_slope))
_cosines = jax.jit(jax.vmap(theory.newton_cosine))
_powers = jax.jit(jax.vmap(theory.power_inequality))


@jax.jit
@jax.vmap
def _changes(gradient, values):
    hessian = jnp.diag(values)
    return theory.alignment_change(gradient, hessian, theory.newton_parts(gradient, hessian).symmetry)


_PAPER = "arXiv:2504.15399, section "
NEWTON = (
    Claim(
        "Newton's step is a part along the gradient plus a part along the level set: error",
        _PAPER + "4.1",
        decomposition_error,
        1e-12,
    ),
    Claim(
        "(w'A^a w)^2 <= (w'A^(a+b) w)(w'A^(a-b) w) for A > 0: left / right - 1, 20,000 draws",
        _PAPER + "A, lemma A.1",
        power_violation,
        1e-12,
    ),
    Claim(
        "its counter-example gives 100 > 59.5 = -3.5 * -17, and the squared norm changes at -8.1",
        _PAPER + "A, equations 11 and 12",
        counter_example_error,
        1e-12,
    ),
    Claim(
        "the gradient norm rises along the symmetry component of Newton's step: share of exceptions",
        _PAPER + "4.1, proposition 4.1, and the abstract",
        falling_share,
        0.0,
        condition="the Hessian is definite; negative is as good as positive",
    ),
    Claim(
        "it rises along that of the damped step -(H + s I)^-1 g, H + s I > 0: share of indefinite exceptions",
        "derived here; " + _PAPER + "A leaves it open",
        damped_falling_share,
        0.0,
    ),
    Claim(
        "its rate is a sum over pairs of eigenvalues: relative error",
        "derived here from " + _PAPER + "4.1",
        identity_error,
        1e-9,
    ),
    Claim(
        "on Rosenbrock's function it falls at 24.0 % of points, all indefinite: error of the share",
        "measured here; " + _PAPER + "A says that it may",
        rosenbrock_share_error,
        0.01,
    ),
    Claim(
        "along an arbitrary direction the norm may rise or fall: distance of the share from a half",
        _PAPER + "4.1",
        arbitrary_direction_imbalance,
        0.3,
    ),
    Claim(
        "the cosine of gradient and Newton's step is Kantorovich's product: error",
        "derived here for " + _PAPER + "4.1",
        cosine_error,
        1e-12,
    ),
    *(
        Claim(
            f"a small teleport brings gradient steps closer to Newton's: share of points where not, n = {n}",
            _PAPER + "4.1",
            lambda n=n: worse_share(n),
            bound,
            wrong=True,
        )
        for n, bound in ((2, 0.45), (3, 0.5), (10, 0.75), (50, 0.97))
    ),
)
