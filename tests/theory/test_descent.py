"""What larger gradients guarantee, and what teleports do on the whole way down: brute force in numpy."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import symmetrax as sx
from symmetrax import theory

pytestmark = pytest.mark.usefixtures("quick_compilation", "float64")


def forms(n, count, decades, seed=0):
    """Positive definite matrices of the quadratics x'Ax, and points."""
    random = np.random.default_rng([seed, n])
    axes = np.linalg.qr(random.normal(size=(count, n, n)))[0]
    values = 10.0 ** random.uniform(-decades / 2, decades / 2, size=(count, n))
    matrices = np.einsum("kij,kj,klj->kil", axes, values, axes)
    return (matrices + matrices.transpose(0, 2, 1)) / 2, random.normal(size=(count, n))


def many(function):
    return jax.jit(jax.vmap(function))


@pytest.mark.parametrize(("n", "decades"), [(2, 2), (4, 3), (8, 6)])
def test_the_descent_lemma_has_no_violation_on_1000_quadratics_and_is_tight(n, decades):
    matrices, points = forms(n, 1000, decades)
    top = np.linalg.eigvalsh(matrices)[:, -1]
    parts = np.random.default_rng(1).uniform(0.01, 1.0, 1000)

    @many
    def sides(matrix, x, rate, smoothness):
        return theory.descent_lemma(lambda x: x @ matrix @ x, x, rate, smoothness)

    found = sides(*map(jnp.asarray, (matrices, points, parts / (2 * top), 2 * top)))
    here = np.einsum("ki,kij,kj->k", points, matrices, points)
    assert np.all(found.applies)
    assert np.all(found.left <= found.right + 1e-12 * here)
    steepest = np.linalg.eigh(matrices)[1][:, :, -1]
    tight = sides(*map(jnp.asarray, (matrices, steepest, 1 / (2 * top), 2 * top)))
    np.testing.assert_allclose(tight.left, tight.right, atol=1e-12 * np.max(top))
    assert not np.any(sides(*map(jnp.asarray, (matrices, points, 1.1 / (2 * top), 2 * top))).applies)


def test_after_a_teleport_the_guarantee_grows_and_on_quadratics_the_decrease():
    matrices, points = forms(3, 1000, 2, seed=2)
    top = np.linalg.eigvalsh(matrices)[:, -1]
    rates = np.random.default_rng(3).uniform(0.01, 1.0, 1000) / (2 * top)

    @many
    def sides(matrix, x, rate, smoothness):
        there = theory.steepest_point(matrix, x)

        def loss(x):
            return x @ matrix @ x

        plain = theory.descent_lemma(loss, x, rate, smoothness)
        return there, plain, theory.decrease_after_teleport(loss, x, there, rate, smoothness)

    there, plain, moved = sides(*map(jnp.asarray, (matrices, points, rates, 2 * top)))
    here = np.einsum("ki,kij,kj->k", points, matrices, points)
    assert np.all(moved.applies)
    assert np.all(moved.left <= moved.right + 1e-12 * here)
    assert np.all(moved.right <= plain.right + 1e-12 * here)  # more is guaranteed
    assert np.all(moved.left <= plain.left + 1e-12 * here)  # and more is gained
    np.testing.assert_allclose(np.einsum("ki,kij,kj->k", there, matrices, there), here, rtol=1e-12)


def test_a_merely_larger_gradient_may_gain_less_even_on_a_quadratic():
    """Three dimensions, rate 1/L: the gain weighs eigenvalues by l (1 - a l), the squared norm by l."""
    values = np.array([0.01, 0.55, 1.0])
    matrix, ends = jnp.diag(jnp.asarray(values)), []
    for shares in ([0.0, 1.0, 0.0], [0.415, 0.0, 0.585]):
        x = jnp.asarray(np.sqrt(np.array(shares) / values))  # x'Ax = 1
        found = theory.descent_lemma(lambda x: x @ matrix @ x, x, 0.5, 2.0)
        assert found.applies
        ends.append((float(jnp.linalg.norm(2 * matrix @ x)), float(found.left)))
    (norm, left), (larger_norm, larger_left) = ends
    assert larger_norm > norm
    assert larger_left > left


def test_where_the_step_is_too_long_for_the_lemma_a_teleport_may_gain_less():
    """Rosenbrock with a step far longer than 1/L: it is so at most points."""
    task = sx.tasks.rosenbrock()
    points = 1.5 * np.random.default_rng(4).normal(size=(200, 2))

    @many
    def gains(x):
        there, _ = sx.teleport(task.loss, x, task.symmetry(), search=sx.search.Oracle(), guard=None)
        before, after = (theory.descent_lemma(task.loss, point, 1e-3, 1.0).left for point in (x, there))
        return after > before

    assert np.mean(gains(jnp.asarray(points))) > 0.9


def test_the_steepest_point_by_brute_force():
    for n in (2, 3):
        matrices, points = forms(n, 5, 1.5, seed=5)
        for matrix, x in zip(matrices, points, strict=True):
            found = np.asarray(theory.steepest_point(jnp.asarray(matrix), jnp.asarray(x)))
            level = x @ matrix @ x
            random = np.random.default_rng(6).normal(size=(200_000, n))
            around = random * np.sqrt(level / np.einsum("ki,ij,kj->k", random, matrix, random))[:, None]
            norms = np.linalg.norm(2 * around @ matrix, axis=1)
            assert np.max(norms) <= np.linalg.norm(2 * matrix @ found) * (1 + 1e-12)
            assert np.max(norms) > np.linalg.norm(2 * matrix @ found) * (1 - 1e-3)
            nearest = np.min(np.linalg.norm(around, axis=1))
            assert nearest >= np.linalg.norm(found) * (1 - 1e-12)
            assert np.linalg.norm(found) == pytest.approx(
                np.sqrt(level / np.linalg.eigvalsh(matrix)[-1]), rel=1e-12
            )
            assert found @ x >= 0  # of the two ends, the one on this side


@pytest.mark.parametrize("n", [2, 5, 8])
def test_teleporting_once_is_teleporting_always_on_quadratics(n):
    matrices, points = forms(n, 50, 2, seed=7)
    rates = 0.9 / (2 * np.linalg.eigvalsh(matrices)[:, -1])
    sides = many(functools.partial(theory.teleport_once, steps=20))(
        *map(jnp.asarray, (matrices, points, rates))
    )
    assert np.all(sides.applies)
    scale = np.linalg.norm(sides.left[:, :1], axis=2, keepdims=True)
    assert np.max(np.abs(sides.left - sides.right) / scale) < 1e-12
    double = theory.teleport_once(2 * jnp.eye(3), jnp.ones(3), 0.1, 2)
    assert not np.any(double.applies)  # every point of the sphere is as steep


def test_the_flow_leaves_the_critical_points_of_rosenbrock_and_not_those_of_a_quadratic(central_differences):
    booth, rosenbrock = sx.tasks.booth(), sx.tasks.rosenbrock()
    leaves = eqx.filter_jit(theory.leaves_critical)
    for task, start in ((booth, (5.0, -5.0)), (rosenbrock, (-1.0, -1.0)), (rosenbrock, (0.5, 1.5))):
        there, _ = sx.teleport(
            task.loss, jnp.array(start), task.symmetry(), search=sx.search.Oracle(), guard=None
        )
        measured = float(leaves(task.loss, there))
        gradient = jax.jit(jax.grad(task.loss))

        def bending(x, gradient=gradient):  # H g by differences, along the flow by differences again
            g = np.asarray(gradient(jnp.asarray(x)))
            h = central_differences(lambda x: gradient(jnp.asarray(x)), x, 1e-5)
            return h @ g

        x, g = np.asarray(there), np.asarray(gradient(there))
        step = 1e-4 * g / np.linalg.norm(g)
        hessian = central_differences(lambda x, gradient=gradient: gradient(jnp.asarray(x)), x, 1e-5)
        change = (bending(x + step) - bending(x - step)) / 2e-4 * np.linalg.norm(g)
        third = change - hessian @ hessian @ g
        off = third - (third @ g) / (g @ g) * g
        known = np.linalg.norm(off) / (np.linalg.norm(third) + np.linalg.norm(hessian @ hessian @ g))
        assert measured == pytest.approx(known, abs=1e-4)
        assert (measured < 1e-12) == (task is booth)
    assert theory.leaves_critical(booth.loss, jnp.array([1.0, 3.0])) == 0  # at the minimum it says nothing

    def bends_later(x):  # critical at (1, 0), kept there to first order, and lost all the same
        return x[0] ** 2 / 2 + 2 * x[1] ** 2 + x[1] * (x[0] - 1) ** 3

    assert theory.leaves_critical(bends_later, jnp.array([1.0, 0.0])) == 0
    assert theory.leaves_critical(bends_later, jnp.array([0.8, 0.0])) > 1e-2


@pytest.mark.parametrize("n", [2, 8])
def test_a_gain_in_gradient_norm_lasts_at_least_as_long_as_bounded(n):
    matrices, points = forms(n, 200, 2, seed=8)
    top = np.linalg.eigvalsh(matrices)[:, -1]
    rates = np.random.default_rng(9).uniform(0.01, 0.99, 200) / (2 * top)

    @many
    def sides(matrix, x, rate, smoothness):
        there = theory.steepest_point(matrix, x)
        return theory.persistence(lambda x: x @ matrix @ x, x, there, rate, smoothness, 10)

    found = sides(*map(jnp.asarray, (matrices, points, rates, 2 * top)))
    assert np.all(found.applies)
    assert np.all(found.left >= found.right * (1 - 1e-12))
    assert found.left.shape == (200, 11)
    eye = np.eye(n)
    for k in range(5):  # the third step, by matrix powers
        shrink = np.linalg.matrix_power(eye - 2 * rates[k] * matrices[k], 3)
        steep = np.linalg.eigh(matrices[k])[1][:, -1]
        known = np.linalg.norm(matrices[k] @ shrink @ steep) / np.linalg.norm(
            matrices[k] @ shrink @ points[k]
        )
        level = np.sqrt(points[k] @ matrices[k] @ points[k] / top[k])
        assert found.left[k, 3] == pytest.approx(known * level, rel=1e-9)


@pytest.fixture(scope="module")
def linear_network():
    with jax.enable_x64(True):
        random = np.random.default_rng(10)
        x, y = (jnp.asarray(random.normal(size=(9, n))) for n in (4, 2))
        params = {
            "w1": jnp.asarray(random.normal(size=(3, 4))),
            "w2": jnp.asarray(random.normal(size=(2, 3))),
        }

        def loss(p):
            return jnp.mean((x @ (p["w2"] @ p["w1"]).T - y) ** 2)

        yield params, loss


@pytest.mark.parametrize(
    "group", [sx.groups.GeneralLinear, sx.groups.SpecialOrthogonal, sx.groups.PositiveDiagonal]
)
def test_the_flow_after_an_element_is_known_before_it_acts(linear_network, group):
    params, loss = linear_network
    symmetry = sx.models.mlp_symmetry(params, ["w1", "w2"], group=group)
    element = symmetry.exp(0.4 * jnp.linspace(-1, 1, symmetry.algebra[0]))
    rates = jax.tree.map(lambda w: 1.0 + jnp.arange(w.size, dtype=float).reshape(w.shape) / 7, params)

    @jax.jit
    def both(params):
        return (
            theory.flow_acceleration(loss, params, symmetry, element, rates),
            theory.norm_kept(loss, params, symmetry, element),
        )

    flow, norms = both(params)
    assert flow.applies
    assert flow.left.item() == pytest.approx(flow.right.item(), rel=1e-10)
    there = symmetry.act(element, params)
    gradient = jax.grad(loss)(there)
    ends = [
        float(loss(jax.tree.map(lambda w, r, g, s=s: w - s * r * g, there, rates, gradient)))
        for s in (1e-6, -1e-6)
    ]
    assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(flow.right.item(), rel=1e-7)
    # Rotations of hidden features move parameters by an orthogonal matrix, and gain nothing.
    assert bool(norms.applies) == (group is sx.groups.SpecialOrthogonal)
    ratio = norms.left.item() / norms.right.item()
    assert (abs(ratio - 1) < 1e-12) == (group is sx.groups.SpecialOrthogonal)


def test_after_an_exact_teleport_a_step_is_a_damped_newton_step():
    """log cosh + quadratic, separable: every axis is critical, and |f'''| <= 4 / sqrt(27)."""
    mu, lipschitz = 0.2, 4 / np.sqrt(27)

    def loss(x):
        return jnp.sum(jnp.log(jnp.cosh(x)) + mu / 2 * x**2)

    axes = [jnp.eye(3)[i] * size for i in range(3) for size in (-2.0, -0.3, 0.1, 1.0)]
    sides = jax.jit(
        jax.vmap(lambda x, rate: theory.damped_newton(loss, x, jnp.zeros(3), rate, mu, lipschitz))
    )
    for rate in (0.1, 0.5, 0.8):
        found = sides(jnp.stack(axes), jnp.full(12, rate))
        assert np.all(found.applies)
        assert np.all(found.left <= found.right + 1e-15)
    # At rate 1 / lambda the quadratic term is alone, and for small errors it is reached up to the bound.
    x = jnp.stack([jnp.array([0.1, 0.0, 0.0])])
    curvature = 1 / np.cosh(0.1) ** 2 + mu
    found = sides(x, jnp.array([1 / curvature]))
    # g = tanh x + mu x, so x - g / f'' is what is left: no term of first order.
    left = 0.1 - (np.tanh(0.1) + mu * 0.1) / curvature
    assert found.left[0] == pytest.approx(abs(left), rel=1e-9)
    assert found.right[0] == pytest.approx(lipschitz / (2 * mu) * 0.01, rel=1e-6)
    assert not np.any(sides(jnp.array([[1.0, 0.5, 0.0]]), jnp.array([0.1])).applies)
    # Not separable in these coordinates, from the largest gradient of an orbit, found by a teleport.
    ellipse = sx.tasks.generalized_booth([[1.0, 0.4], [-0.3, 0.8]])
    there, _ = sx.teleport(
        ellipse.loss, jnp.array([1.0, 2.0]), ellipse.symmetry(), search=sx.search.Oracle(), guard=None
    )
    least, most = np.linalg.svd(ellipse.map.matrix, compute_uv=False)[[1, 0]] ** 2 * 2
    found = theory.damped_newton(ellipse.loss, there, jnp.zeros(2), 0.5 / most, least, 0.0)
    assert found.applies
    assert found.left.item() == pytest.approx(found.right.item(), rel=1e-9)  # no third derivative: no error


@pytest.mark.parametrize(("m", "n", "noise"), [(6, 12, 0.0), (12, 4, 1.0)])
def test_teleported_sgd_stays_below_its_bound(m, n, noise):
    """Over-parametrized, where the least loss is 0, and with noise, where it is not."""
    random = np.random.default_rng(11)
    inputs = random.normal(size=(m, n))
    targets = inputs @ random.normal(size=n) + noise * random.normal(size=m)
    start = 3 * random.normal(size=n)
    previous = np.inf
    for steps in (20, 320):
        keys = jax.random.split(jax.random.key(0), 64)
        sides = theory.teleported_sgd(*map(jnp.asarray, (inputs, targets, start)), steps, keys)
        assert 0 < sides.left <= sides.right
        assert sides.left < previous
        previous = float(sides.left)
    # The right side, by numpy.
    best = np.linalg.lstsq(inputs, targets, rcond=None)[0]
    losses = [np.sum((inputs @ w - targets) ** 2) / (2 * m) for w in (start, best)]
    beta = np.max(np.sum(inputs**2, axis=1))
    known = (2 * beta * (losses[0] - losses[1]) + beta * losses[1]) / np.sqrt(319)
    assert sides.right.item() == pytest.approx(known, rel=1e-9)


def test_teleported_sgd_step_by_step_in_numpy():
    """The same samples, the orbit's extremes by eigenvectors, and those checked by a scan over rotations."""
    random = np.random.default_rng(12)
    inputs, targets, start = random.normal(size=(5, 3)), random.normal(size=5), random.normal(size=3)
    keys, steps = jax.random.split(jax.random.key(0), 3), 4
    sides = theory.teleported_sgd(*map(jnp.asarray, (inputs, targets, start)), steps, keys)
    best = np.linalg.lstsq(inputs, targets, rcond=None)[0]
    values, axes = np.linalg.eigh(inputs.T @ inputs)
    beta = np.max(np.sum(inputs**2, axis=1))

    def norm(w):
        return np.sum((inputs.T @ (inputs @ w - targets) / 5) ** 2)

    def teleported(w):
        radius = np.linalg.norm(inputs @ (w - best))
        ends = [best + sign * radius / np.sqrt(values[-1]) * axes[:, -1] for sign in (1, -1)]
        return min(ends, key=lambda end: np.linalg.norm(end - w))

    record = np.zeros((3, steps))
    for run, key in enumerate(keys):
        w = start
        for t, draw in enumerate(jax.random.split(key, steps)):
            there = teleported(w)
            record[run, t] = norm(there)
            i = int(jax.random.randint(draw, (), 0, 5))
            w = there - (inputs[i] @ there - targets[i]) * inputs[i] / (beta * np.sqrt(steps - 1))
    assert sides.left.item() == pytest.approx(np.min(np.mean(record, axis=0)), rel=1e-9)
    # No rotation of the fitted residual has a larger gradient, and some come close.
    _, sizes, rows = np.linalg.svd(inputs, full_matrices=False)
    directions = random.normal(size=(100_000, 3))
    directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    radius = np.linalg.norm(inputs @ (start - best))
    points = best + (radius * directions / sizes) @ rows
    residuals = points @ inputs.T - targets
    np.testing.assert_allclose(np.sum(residuals**2, axis=1), np.sum(residuals[0] ** 2), rtol=1e-10)
    scanned = np.max(np.sum((residuals @ inputs / 5) ** 2, axis=1))
    assert record[0, 0] * (1 - 1e-3) < scanned <= record[0, 0] * (1 + 1e-12)


@pytest.mark.parametrize("rate", [0.05, 0.18, 0.19])
def test_no_teleport_improves_the_worst_case(rate):
    random = np.random.default_rng(13)
    for n in (2, 5):
        rotation = np.linalg.qr(random.normal(size=(n, n)))[0]
        x = random.normal(size=n)
        sides = theory.isotropic_contraction(jnp.asarray(x), jnp.asarray(rotation), rate, 1.0, 10.0)
        assert sides.applies
        assert sides.left.item() == pytest.approx(sides.right.item(), rel=1e-12)
        # The factor over all quadratics of the class, by a scan over spectra.
        spectra = random.uniform(1.0, 10.0, size=(10_000, n))
        points = random.normal(size=(10_000, n))
        after = np.sum(spectra * ((1 - rate * spectra) * points) ** 2, axis=1)
        assert np.max(after / np.sum(spectra * points**2, axis=1)) <= sides.right + 1e-12
    assert not theory.isotropic_contraction(jnp.ones(2), 2 * jnp.eye(2), rate, 1.0, 10.0).applies


def test_teleports_change_nothing_on_an_isotropic_quadratic():
    """E21: equal loss curves, to twelve digits, with a rotation before every step."""
    symmetry, start = (
        sx.symmetry.QuadraticForm(jnp.eye(4)),
        jnp.asarray(np.random.default_rng(14).normal(size=4)),
    )

    @jax.jit
    def curve(angles):
        optimizer = sx.online_teleported(optax.sgd(0.1), symmetry, 0.0, start=angles, guard=None)

        def step(carry, _):
            x, state = carry
            updates, state = optimizer.update(2 * x, state, x)
            return (x + updates, state), (jnp.sum((x + updates) ** 2), x)

        return jax.lax.scan(step, (start, optimizer.init(start)), None, length=50)[1]

    curves = [curve(angles) for angles in (jnp.zeros(6), jnp.linspace(-1.0, 2.0, 6))]
    np.testing.assert_allclose(curves[0][0], curves[1][0], rtol=1e-12)
    assert np.linalg.norm(curves[0][1][1] - curves[1][1][1]) > 0.1  # other points, equal losses
    sides = theory.norm_kept(lambda x: jnp.sum(x**2), start, symmetry, jnp.asarray(np.eye(4)[::-1].copy()))
    assert sides.applies
    assert sides.left.item() == pytest.approx(sides.right.item(), rel=1e-15)
    wrong = theory.norm_kept(lambda x: x[0] ** 2, start, symmetry, jnp.asarray(np.eye(4)[::-1].copy()))
    assert not wrong.applies  # the loss has not this symmetry


def test_on_the_orbit_of_a_relu_network_the_gradient_norm_has_no_largest_value():
    random = np.random.default_rng(15)
    x, y = jnp.asarray(random.normal(size=(4, 20))), jnp.asarray(random.normal(size=(2, 20)))
    first, second = jnp.asarray(random.normal(size=(6, 4))), jnp.asarray(random.normal(size=(2, 6)))

    def loss(v, u):
        return jnp.sum((u @ jax.nn.relu(v @ x) - y) ** 2)

    scales = jnp.array([1e-2, 1e-1, 1.0, 10.0, 100.0])
    sides = jax.jit(jax.vmap(lambda s: theory.norm_at_scale(loss, first, second, s)))(scales)
    assert np.all(sides.applies)
    np.testing.assert_allclose(sides.left, sides.right, rtol=1e-10)
    assert np.all(np.asarray(sides.left)[[0, -1]] > 1e3 * np.asarray(sides.left)[2])
    away = jax.vmap(
        lambda s: theory.norm_at_scale(lambda v, u: loss(v, u) + jnp.sum(v**2), first, second, s)
    )(scales)
    np.testing.assert_array_equal(away.applies, [False, False, True, False, False])


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_rejected():
    def loss(x):
        return jnp.sum(x**2)

    bad, good = jnp.array([jnp.nan, 1.0]), jnp.ones(2)
    with pytest.raises(ValueError, match="use as `x` a point that is not finite"):
        theory.descent_lemma(loss, bad, 0.1, 2.0)
    with pytest.raises(ValueError, match="use as `there` a point that is not finite"):
        theory.decrease_after_teleport(loss, good, bad, 0.1, 2.0)
    with pytest.raises(ValueError, match="needs steps >= 2, got 1"):
        theory.teleported_sgd(jnp.eye(2), good, good, 1, jax.random.split(jax.random.key(0), 2))
    with pytest.raises(ValueError, match="singular to working precision"):
        theory.teleport_once(jnp.diag(jnp.array([1.0, 0.0])), good, 0.1, 2)
    with pytest.raises(ValueError, match="must be positive definite, but its least eigenvalue is -4"):
        theory.steepest_point(jnp.diag(jnp.array([1.0, -4.0])), good)
    with pytest.raises(ValueError, match="use as `optimum` a point that is not finite"):
        theory.damped_newton(loss, good, bad, 0.1, 2.0, 0.0)
    assert not theory.isotropic_contraction(0 * good, jnp.eye(2), 0.1, 1.0, 2.0).applies
    assert not theory.isotropic_contraction(good, jnp.eye(2), -0.1, 1.0, 2.0).applies
    assert np.all(np.isfinite(jax.jacobian(lambda x: theory.steepest_point(jnp.eye(2), x))(0 * good)))
    with pytest.raises(ValueError, match="`matrix` must be symmetric"):
        theory.steepest_point(jnp.array([[1.0, 1.0], [0.0, 1.0]]), good)
