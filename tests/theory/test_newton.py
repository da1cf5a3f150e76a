"""Newton's step against the level set, by solves, finite differences and scans that share no code with it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.special

import symmetrax as sx
from symmetrax import theory

pytestmark = pytest.mark.usefixtures("quick_compilation", "float64")

#: Dimension and decades of eigenvalues: the last ones are badly conditioned.
CASES = ((2, 1), (3, 2), (5, 4), (8, 8))
DRAWS = 500


def draws(n, decades, kind="positive", seed=0):
    """Gradients and symmetric matrices, as numpy arrays of shapes (draws, n) and (draws, n, n)."""
    random = np.random.default_rng([seed, n])
    axes = np.linalg.qr(random.normal(size=(DRAWS, n, n)))[0]
    values = 10.0 ** random.uniform(-decades / 2, decades / 2, size=(DRAWS, n))
    if kind == "negative":
        values = -values
    if kind == "indefinite":
        signs = random.choice([-1.0, 1.0], size=(DRAWS, n))
        signs[:, 0], signs[:, 1] = 1.0, -1.0
        values = values * signs
    hessians = np.einsum("kij,kj,klj->kil", axes, values, axes)
    return random.normal(size=(DRAWS, n)), (hessians + hessians.transpose(0, 2, 1)) / 2


@functools.cache
def compiled(name):
    """One program per statement and dimension, shared by all tests of this file."""
    return jax.jit(jax.vmap(getattr(theory, name)))


def over(name, *arrays):
    return jax.tree.map(np.asarray, compiled(name)(*map(jnp.asarray, arrays)))


@pytest.mark.parametrize(("n", "decades"), CASES)
def test_newtons_step_is_the_sum_of_two_orthogonal_parts(n, decades):
    for kind in ("positive", "indefinite"):
        gradients, hessians = draws(n, decades, kind)
        parts = over("newton_parts", gradients, hessians)
        solved = -np.linalg.solve(hessians, gradients[..., None])[..., 0]
        sizes = np.linalg.norm(solved, axis=1)
        condition = 10.0**decades
        assert np.max(np.linalg.norm(parts.newton - solved, axis=1) / sizes) < 1e-14 * n * condition
        whole = np.linalg.norm(parts.parallel + parts.symmetry - parts.newton, axis=1)
        assert np.max(whole / sizes) < 1e-15
        across = np.abs(np.sum(parts.symmetry * gradients, axis=1))
        assert np.max(across / (np.linalg.norm(gradients, axis=1) * sizes)) < 1e-14


@pytest.mark.parametrize(("n", "decades"), CASES)
def test_proposition_4_1_holds_for_definite_hessians_of_either_sign(n, decades):
    for kind in ("positive", "negative"):
        gradients, hessians = draws(n, decades, kind)
        sides = over("norm_growth", gradients, hessians)
        assert np.all(sides.applies)
        assert np.all(sides.right >= 0)  # a sum of squares
        # The definition cancels: relative to what is subtracted, there are no violations.
        terms = 2 * np.sum(gradients**2, axis=1)
        assert np.all(sides.left >= -1e-14 * terms * np.linalg.cond(hessians))


@pytest.mark.parametrize(("n", "decades"), CASES[:3])
@pytest.mark.parametrize("kind", ["positive", "negative", "indefinite"])
def test_the_identity_with_eigenvalues_holds_to_nine_digits(n, decades, kind):
    gradients, hessians = draws(n, decades, kind)
    sides = over("norm_growth", gradients, hessians)
    inverse = np.einsum("ki,kij,kj->k", gradients, np.linalg.inv(hessians), gradients)
    form = np.einsum("ki,kij,kj->k", gradients, hessians, gradients)
    square = np.sum(gradients**2, axis=1)
    terms = np.abs(2 * square) + np.abs(2 * inverse * form / square)
    known = 2 * (inverse * form / square - square)
    assert np.max(np.abs(sides.left - known) / terms) < 1e-9
    assert np.max(np.abs(sides.right - known) / terms) < 1e-9
    clear = np.abs(known) > 1e-3 * terms  # where the definition does not cancel
    assert np.mean(clear) > 0.5
    assert np.max(np.abs(sides.left / sides.right - 1)[clear]) < 1e-9


def test_proposition_4_1_at_2000_points_of_a_convex_function_by_finite_differences():
    random = np.random.default_rng(1)
    worst = np.inf
    for n, count in ((2, 800), (5, 800), (8, 400)):
        slopes, offsets = random.normal(size=(7, n)), random.normal(size=7)
        points = 2 * random.normal(size=(count, n))

        def gradient(x, slopes=slopes, offsets=offsets):  # of logsumexp + ||x||^2 / 20
            weights = scipy.special.softmax(x @ slopes.T + offsets, axis=-1)
            return weights @ slopes + x / 10

        def hessian(x, slopes=slopes, offsets=offsets):
            weights = scipy.special.softmax(x @ slopes.T + offsets)
            mean = weights @ slopes
            return (slopes.T * weights) @ slopes - np.outer(mean, mean) + np.eye(len(x)) / 10

        hessians = np.stack([hessian(x) for x in points])
        sides = over("norm_growth", gradient(points), hessians)
        assert np.all(sides.left >= 0)
        assert np.all(sides.applies)
        parts = over("newton_parts", gradient(points), hessians)
        size = np.linalg.norm(parts.symmetry, axis=1, keepdims=True)
        step = 1e-5 * parts.symmetry / size
        rise = np.sum(gradient(points + step) ** 2 - gradient(points - step) ** 2, axis=1) / 2e-5
        worst = min(worst, np.min(rise))
        terms = 2 * np.linalg.norm(np.einsum("kij,kj->ki", hessians, gradient(points)), axis=1)
        assert np.max(np.abs(sides.left / size[:, 0] - rise) / terms) < 1e-8  # rise: central differences
    assert worst >= -1e-9


def test_where_a_plane_hessian_is_indefinite_the_norm_always_falls():
    random = np.random.default_rng(2)
    hessians = random.normal(size=(2000, 2, 2))
    hessians = hessians + hessians.transpose(0, 2, 1)
    sides = over("norm_growth", random.normal(size=(2000, 2)), hessians)
    signs = np.sign(np.linalg.det(hessians))
    np.testing.assert_array_equal(np.sign(sides.right), signs)
    clear = np.abs(sides.right) > 1e-9 * np.max(np.abs(sides.right))
    np.testing.assert_array_equal(np.sign(sides.left)[clear], signs[clear])
    assert 0.3 < np.mean(signs < 0) < 0.9
    np.testing.assert_array_equal(sides.applies, signs > 0)


def test_on_rosenbrocks_function_it_fails_at_a_quarter_of_the_points():
    x, y = 1.5 * np.random.default_rng(3).normal(size=(2, 40_000))
    gradients = np.stack([-400 * x * (y - x**2) + 2 * (x - 1), 200 * (y - x**2)], axis=1)
    hessians = np.stack(
        [np.stack([1200 * x**2 - 400 * y + 2, -400 * x], 1), np.stack([-400 * x, np.full_like(x, 200.0)], 1)],
        axis=1,
    )
    sides = over("norm_growth", gradients, hessians)
    falls = sides.left < -1e-9 * np.sum(gradients**2, axis=1)
    assert 0.224 < np.mean(falls) < 0.244
    np.testing.assert_array_equal(falls, np.linalg.det(hessians) < 0)


@pytest.mark.parametrize(("n", "decades"), CASES[:3])
def test_along_the_damped_step_the_norm_rises_also_where_the_hessian_is_indefinite(n, decades):
    gradients, hessians = draws(n, decades, "indefinite")
    least = np.linalg.eigvalsh(hessians)[:, 0]
    shifts = np.abs(least) * np.random.default_rng(10).uniform(1.1, 3.0, DRAWS)
    sides = over("damped_norm_growth", gradients, hessians, shifts)
    assert np.all(sides.applies)
    assert np.all(sides.right >= 0)
    step = -np.linalg.solve(hessians + shifts[:, None, None] * np.eye(n), gradients[..., None])[..., 0]
    square = np.sum(gradients**2, axis=1)
    along = step - (np.sum(step * gradients, axis=1) / square)[:, None] * gradients
    known = 2 * np.einsum("ki,kij,kj->k", along, hessians, gradients)
    terms = (
        2
        * np.linalg.norm(step, axis=1)
        * np.linalg.norm(np.einsum("kij,kj->ki", hessians, gradients), axis=1)
    )
    assert np.max(np.abs(sides.left - known) / terms) < 1e-9
    assert np.max(np.abs(sides.right - known) / terms) < 1e-9
    too_small = over("damped_norm_growth", gradients, hessians, 0.5 * np.abs(least))
    assert not np.any(too_small.applies)


def test_the_counter_example_of_appendix_a():
    gradient, hessian = jnp.array([1.0, 3.0]), jnp.diag(jnp.array([1.0, -2.0]))
    sides = theory.power_inequality(gradient, hessian, 0.0, 1.0)
    assert sides.left.item() == pytest.approx(100, abs=1e-12)
    assert sides.right.item() == pytest.approx(59.5, abs=1e-12)
    assert not sides.applies
    parts = theory.newton_parts(gradient, hessian)
    np.testing.assert_allclose(parts.newton, [-1.0, 1.5], atol=1e-15)
    np.testing.assert_allclose(parts.symmetry, [-1.35, 0.45], atol=1e-15)
    assert (-gradient @ parts.newton).item() == pytest.approx(-3.5, abs=1e-12)  # not a descent direction
    assert (gradient @ hessian @ gradient).item() == pytest.approx(-17, abs=1e-12)
    growth = theory.norm_growth(gradient, hessian)
    assert growth.left.item() == pytest.approx(-8.1, abs=1e-12)
    assert growth.right.item() == pytest.approx(-8.1, abs=1e-12)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_lemma_a_1_has_no_violation_in_20_000_draws(n):
    random = np.random.default_rng([4, n])
    axes = np.linalg.qr(random.normal(size=(4000, n, n)))[0]
    values, vectors = 10.0 ** random.uniform(-1, 1, size=(4000, n)), random.normal(size=(4000, n))
    matrices = np.einsum("kij,kj,klj->kil", axes, values, axes)
    alpha, beta = random.integers(-2, 3, size=(2, 4000)).astype(float)
    beta[2000:] = random.uniform(-2, 2, 2000)  # real powers, too
    sides = over("power_inequality", vectors, matrices, alpha, beta)
    assert np.all(sides.applies)
    assert np.all(sides.left <= sides.right * (1 + 1e-12))
    assert np.mean(sides.left < 0.999 * sides.right) > 0.5
    power = np.linalg.matrix_power
    for k in range(20):
        w, a, p, q = vectors[k], matrices[k], int(alpha[k]), int(beta[k])
        known = w @ power(a, p + q) @ w * (w @ power(a, p - q) @ w)
        assert sides.right[k] == pytest.approx(known, rel=1e-10)
        assert sides.left[k] == pytest.approx((w @ power(a, p) @ w) ** 2, rel=1e-10)


def test_along_an_arbitrary_direction_the_norm_may_rise_or_fall():
    random = np.random.default_rng(6)
    for n in (2, 8):
        gradients, hessians = draws(n, 2)
        slopes = over("norm_slope", gradients, hessians, random.normal(size=gradients.shape))
        assert 0.2 < np.mean(slopes > 0) < 0.8
    # Against differences of the norm of a quadratic's gradient, along what is left of the direction.
    g, h, v = gradients[0], hessians[0], np.ones(8)
    v = v - (v @ g) / (g @ g) * g
    known = (np.sum((g + 1e-6 * h @ v) ** 2) - np.sum((g - 1e-6 * h @ v) ** 2)) / 2e-6
    found = theory.norm_slope(*map(jnp.asarray, (g, h, np.ones(8))))
    assert found.item() == pytest.approx(known, rel=1e-7)


@pytest.mark.parametrize(("n", "decades"), CASES[:3])
def test_the_cosine_with_newtons_step_is_kantorovichs_product(n, decades):
    gradients, hessians = draws(n, decades)
    sides = over("newton_cosine", gradients, hessians)
    solved = np.linalg.solve(hessians, gradients[..., None])[..., 0]
    known = np.sum(solved * gradients, axis=1)
    known = known / (np.linalg.norm(solved, axis=1) * np.linalg.norm(gradients, axis=1))
    np.testing.assert_allclose(sides.left, known, rtol=1e-9)
    np.testing.assert_allclose(sides.right, known, rtol=1e-9)


def test_the_cosine_on_an_ellipse_to_twelve_digits():
    random = np.random.default_rng(7)
    angles, logs = random.uniform(0, np.pi, 1000), random.uniform(-2, 2, size=(2, 1000))
    low, high = np.exp(np.sort(logs, axis=0))
    sides = over("newton_cosine_on_ellipse", angles, low, high)
    np.testing.assert_allclose(sides.left, sides.right, rtol=1e-12)
    ends = over("newton_cosine_on_ellipse", np.array([0.0, np.pi / 2]), np.ones(2), np.full(2, 9.0))
    np.testing.assert_allclose(ends.left, 1.0, rtol=1e-12)  # on both axes
    scan = np.linspace(0, np.pi / 2, 100_001)
    cosines = over("newton_cosine_on_ellipse", scan, np.ones_like(scan), np.full_like(scan, 9.0)).left
    assert abs(scan[np.argmin(cosines)] - np.pi / 4) < 1e-4


@pytest.mark.parametrize(("n", "share"), [(2, 50), (3, 46), (5, 38), (10, 22), (50, 0.8)])
def test_a_small_teleport_rarely_brings_the_gradient_closer_to_newtons_step(n, share):
    """In per cent of points: log-normal eigenvalues, sigma 1.5, and A^(1/2) x uniform on the sphere."""
    random = np.random.default_rng([8, n])
    count = 4000 if n < 50 else 1000
    values = np.exp(1.5 * random.normal(size=(count, n)))
    z = random.normal(size=(count, n))
    x = z / np.linalg.norm(z, axis=1, keepdims=True) / np.sqrt(values)
    gradients = 2 * values * x
    newton = -x
    along = newton - gradients * (
        np.sum(newton * gradients, axis=1, keepdims=True) / np.sum(gradients**2, axis=1, keepdims=True)
    )

    def cosine(x):
        g = 2 * values * x
        return np.sum(g * x, axis=1) / (np.linalg.norm(g, axis=1) * np.linalg.norm(x, axis=1))

    step = 1e-6 * np.linalg.norm(x, axis=1, keepdims=True) / np.linalg.norm(along, axis=1, keepdims=True)
    known = cosine(x + step * along) - cosine(x - step * along)
    assert abs(100 * np.mean(known > 0) - share) < (2 if n == 2 else 3)
    some = slice(0, 200)  # the library's derivative, at some of the points
    hessians = 2 * values[some, :, None] * np.eye(n)
    symmetry = over("newton_parts", gradients[some], hessians).symmetry
    change = over("alignment_change", gradients[some], hessians, symmetry)
    known = known[some] / (2 * 1e-6 * np.linalg.norm(x[some], axis=1))
    np.testing.assert_allclose(change, known, atol=1e-6 * np.max(np.abs(known)))


def test_at_an_eigenvector_the_gradient_is_newtons_direction():
    for n, decades in CASES[:3]:
        _, hessians = draws(n, decades)
        _, axes = np.linalg.eigh(hessians)
        sides = over("collinearity", axes[:, :, -1], hessians)
        assert np.all(sides.applies)
        np.testing.assert_allclose(sides.left, 1.0, atol=1e-12)
        assert not np.any(over("collinearity", axes[:, :, 0] + axes[:, :, 1], hessians).applies)


@pytest.mark.parametrize("n", [2, 4])
def test_on_a_quadratic_the_symmetry_component_is_the_steepest_ascent_along_the_orbit(n):
    _, (matrix, *_) = draws(n, 2)
    x = np.random.default_rng(n).normal(size=n)
    symmetry = sx.symmetry.QuadraticForm(jnp.asarray(matrix))

    @jax.jit
    def slopes(x):
        def at(coordinates):
            return symmetry.act(symmetry.exp(coordinates), x)

        def square(coordinates):
            return jnp.sum((2 * symmetry.matrix @ at(coordinates)) ** 2)

        ascent = jax.grad(square)(symmetry.zero())
        return jax.jvp(at, (symmetry.zero(),), (ascent,))[1]

    moved = np.asarray(slopes(jnp.asarray(x)))
    part = np.asarray(theory.newton_parts(jnp.asarray(2 * matrix @ x), jnp.asarray(2 * matrix)).symmetry)
    cosine = moved @ part / (np.linalg.norm(moved) * np.linalg.norm(part))
    assert cosine == pytest.approx(1, abs=1e-12)


def test_the_saddle_free_step_always_descends():
    gradients, hessians = draws(5, 2, "indefinite")
    steps = over("saddle_free", gradients, hessians)
    assert np.all(np.sum(steps * gradients, axis=1) < 0)
    absolute = np.stack([np.real(scipy.linalg.sqrtm(h @ h)) for h in hessians[:20]])
    np.testing.assert_allclose(np.einsum("kij,kj->ki", absolute, steps[:20]), -gradients[:20], rtol=1e-9)


def test_a_zero_gradient_gives_zeros_not_nan():
    zero, hessian = jnp.zeros(3), jnp.diag(jnp.array([1.0, 2.0, -3.0]))
    assert all(not np.any(part) for part in theory.newton_parts(zero, hessian))
    for sides in (theory.norm_growth(zero, hessian), theory.newton_cosine(zero, hessian)):
        assert sides.left == sides.right == 0
    assert not theory.collinearity(zero, hessian).applies
    assert theory.alignment_change(zero, hessian, jnp.ones(3)) == 0
    assert theory.alignment_change(jnp.ones(3), hessian, zero) == 0
    slope = jax.grad(lambda g: theory.norm_growth(g, hessian).right)(zero)
    assert np.all(np.isfinite(slope))


def test_in_single_precision_too():
    gradients, hessians = (x.astype(np.float32) for x in draws(3, 2))
    sides = over("norm_growth", gradients, hessians)
    assert sides.left.dtype == np.float32
    terms = 2 * np.sum(gradients**2, axis=1) * np.linalg.cond(hessians)
    assert np.max(np.abs(sides.left - sides.right) / terms) < 1e-5


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("hessian", "message"),
    [
        (np.ones((2, 3)), r"`hessian` must be a square matrix, got shape \(2, 3\)"),
        (np.array([[1.0, 2.0], [0.0, 1.0]]), r"entry \(0, 1\) is 2.0 and \(1, 0\) is 0.0"),
        (np.diag([1.0, 1e-17]), "singular to working precision: .* from 1.0e-17 to 1.0e\\+00 in float64"),
        (np.diag([1.0, np.nan]), "use as `hessian` a point that is not finite"),
    ],
)
def test_bad_hessians_are_rejected(hessian, message):
    with pytest.raises(ValueError, match=message):
        theory.newton_parts(jnp.ones(2), jnp.asarray(hessian))


@pytest.mark.usefixtures("unchecked")
def test_bad_gradients_are_rejected():
    for function in (theory.newton_parts, theory.saddle_free):
        with pytest.raises(ValueError, match="use as `gradient` a point that is not finite"):
            function(jnp.array([1.0, jnp.inf]), jnp.eye(2))


def test_inside_a_compiled_program_a_singular_hessian_does_not_apply():
    random = np.random.default_rng(9)
    factors = random.normal(size=(200, 3, 2))
    singular = np.einsum("kij,klj->kil", factors, factors)  # rank two, but for rounding
    gradients = random.normal(size=(200, 3))
    for name in ("norm_growth", "newton_cosine", "collinearity"):
        assert not np.any(over(name, gradients, singular).applies)
    assert np.all(np.isnan(over("newton_parts", gradients, singular).newton))
    assert np.all(np.isnan(over("saddle_free", gradients, singular)))


def test_derivatives_are_finite_where_eigenvalues_coincide():
    gradient, eye = jnp.array([1.0, 2.0, 3.0]), jnp.eye(3)
    for statement in (
        lambda g, h: jnp.sum(theory.newton_parts(g, h).symmetry),
        lambda g, h: theory.norm_growth(g, h).left,
        lambda g, h: theory.newton_cosine(g, h).left,
    ):
        for slope in jax.grad(statement, argnums=(0, 1))(gradient, eye):
            assert np.all(np.isfinite(slope))
    by_hessian = jax.grad(lambda h: jnp.sum(theory.newton_parts(gradient, h).newton))(eye)
    shift = 1e-6 * np.outer([1.0, 0, 0], [1.0, 0, 0])
    ends = [-np.linalg.solve(np.eye(3) + sign * shift, gradient).sum() for sign in (1, -1)]
    assert by_hessian[0, 0] == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-6)


@pytest.mark.usefixtures("unchecked")
def test_integers_and_numpy_arrays_are_welcome_and_other_shapes_are_not():
    parts = theory.newton_parts(np.array([1, 3]), np.diag([1, -2]))
    np.testing.assert_allclose(parts.newton, [-1.0, 1.5])
    assert theory.newton_cosine_on_ellipse(0.3, 1, 3).applies
    for gradient in (np.ones((2, 1)), np.ones(3)):
        with pytest.raises(ValueError, match=r"`gradient` must have shape \(2,\), got"):
            theory.norm_growth(gradient, np.eye(2))
    with pytest.raises(ValueError, match=r"square matrix, got shape \(0, 0\)"):
        theory.newton_parts(np.ones(0), np.ones((0, 0)))
    with pytest.raises(ValueError, match="use as `direction` a point that is not finite"):
        theory.norm_slope(np.ones(2), np.eye(2), np.array([np.nan, 1.0]))
