"""Where teleports go, against closed forms and brute-force scans in NumPy."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import symmetrax as sx

from ..cases import mostly_slow

pytestmark = pytest.mark.usefixtures("quick_compilation", "float64")
SEEDS = st.integers(0, 2**32 - 1)


def turn(angle):
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def orbit_norms(matrix, u, angles):
    """Gradient norms 2 |A' R u| on the orbit of f = |u|^2, u = Ax + b, where R turns by each angle."""
    return 2 * np.linalg.norm(np.array([turn(t) @ u for t in angles]) @ matrix, axis=1)


@eqx.filter_jit
def travel(task, x, search):
    return sx.teleport(task.loss, x, task.symmetry(), search=search, guard=None)


@eqx.filter_jit
def travel_all(search, h, points):
    """One teleport on each of many tasks, stacked."""

    def one(h, x):
        task = eqx.tree_at(lambda task: task.map, sx.tasks.booth(), h)
        there, info = sx.teleport(task.loss, x, task.symmetry(), search=search, guard=None)
        return there, info._replace(evaluations=0), task.loss(x), task.loss(there)

    return jax.vmap(one)(h, points)


def random_affine(count, seed):
    rng = np.random.default_rng(seed)
    return jax.vmap(sx.symmetry.Affine)(rng.normal(size=(count, 2, 2)), rng.normal(size=(count, 2))), rng


def test_oracle_on_booth_raises_the_gradient_norm_from_53_67_to_72():
    """S08."""
    task, matrix = sx.tasks.booth(), np.array([[1, 2], [2, 1]])
    there, info = travel(task, jnp.array([5.0, -5.0]), sx.search.Oracle())
    assert np.sqrt(info.before) == pytest.approx(53.67, abs=0.005)
    assert np.sqrt(info.after) == pytest.approx(72.0, rel=1e-12)
    assert task.loss(there) == pytest.approx(144.0, rel=1e-12)
    gradient = 2 * matrix @ (matrix @ np.asarray(there) - [7, 5])
    assert np.linalg.norm(gradient) == pytest.approx(72.0, rel=1e-12)


def test_oracle_reaches_the_closed_form_maximum_on_affine_maps():
    """S08: 2 sqrt(lambda_max f) from 100 random starts on random maps, and no scanned angle is better."""
    h, rng = random_affine(100, 0)
    x = rng.normal(size=(100, 2))
    _, info, before, after = travel_all(sx.search.Oracle(), h, x)
    for i, (matrix, offset) in enumerate(zip(*map(np.asarray, (h.matrix, h.offset)), strict=True)):
        u = matrix @ x[i] + offset
        best = 2 * np.sqrt(np.linalg.eigvalsh(matrix @ matrix.T)[-1] * (u @ u))
        scanned = np.max(orbit_norms(matrix, u, np.linspace(-np.pi, np.pi, 10_001)))
        found = float(info.after[i]) ** 0.5
        assert found == pytest.approx(best, rel=1e-6)
        assert found * (1 - 1e-6) <= scanned <= found * (1 + 1e-6)
        assert abs(info.algebra[i, 0]) <= np.pi / 2 + 1e-12  # the nearer end of the eigenvector
    np.testing.assert_allclose(after, before, rtol=1e-9)


def test_scan_finds_the_maximum_on_rosenbrock():
    """S08: 8686.2 from (-1, -1), where no closed form exists; the loss stays."""
    task = sx.tasks.rosenbrock()
    angles = np.linspace(-np.pi, np.pi, 200_001)
    # u = -10 y + 10 x^2 = 20 and v = x - 1 = -2, turned by every angle.
    u, v = 20 * np.cos(angles) + 2 * np.sin(angles), 20 * np.sin(angles) - 2 * np.cos(angles)
    x = v + 1
    gradient = np.stack([40 * x * u + 2 * v, -20 * u])  # of u^2 + v^2
    assert np.max(np.linalg.norm(gradient, axis=0)) == pytest.approx(8686.2, rel=1e-3)
    for search in (sx.search.GoldenSection(), sx.search.Oracle()):
        there, info = travel(task, jnp.array([-1.0, -1.0]), search)
        assert np.sqrt(info.after) == pytest.approx(8686.2, rel=1e-3)
        assert np.sqrt(info.after) >= np.max(np.linalg.norm(gradient, axis=0)) * (1 - 1e-9)
        assert task.loss(there) == pytest.approx(404.0, rel=1e-9)


def test_scan_agrees_with_the_closed_form():
    h, rng = random_affine(20, 1)
    x = rng.normal(size=(20, 2))
    closed, scanned = (
        travel_all(search, h, x)[1].after for search in (sx.search.Oracle(), sx.search.GoldenSection(64, 40))
    )
    np.testing.assert_allclose(scanned, closed, rtol=1e-7)


def test_gradient_norms_on_an_affine_orbit_span_the_condition_number():
    """T03: max/min gradient norm = sigma_max/sigma_min; 1 for an isotropic map."""
    rng = np.random.default_rng(2)
    norms = eqx.filter_jit(
        lambda task, x, angles: jax.vmap(
            lambda t: (
                sx.objectives.squared_gradient_norm(
                    task.loss, task.symmetry().act(task.symmetry().exp(t[None]), x)
                )
                ** 0.5
            )
        )(angles)
    )
    for isotropic in (False, True):
        for _ in range(10):
            matrix = 1.7 * turn(rng.uniform(0, 7)) if isotropic else rng.normal(size=(2, 2)) + np.eye(2)
            task, x = sx.tasks.generalized_booth(matrix, rng.normal(size=2)), rng.normal(size=2)
            u = matrix @ x + np.asarray(task.map.offset)
            left, sigma, _ = np.linalg.svd(matrix)
            steep, flat = np.arctan2(*left[::-1, :]) - np.arctan2(u[1], u[0])
            extremes = norms(task, x, np.array([steep, flat]))
            everywhere = norms(task, x, np.linspace(-np.pi, np.pi, 100))
            assert extremes[0] / extremes[1] == pytest.approx(sigma[0] / sigma[1], rel=1e-6)
            assert np.max(everywhere) <= extremes[0] * (1 + 1e-9)
            assert np.min(everywhere) >= extremes[1] * (1 - 1e-9)


@settings(max_examples=30)
@given(seed=SEEDS)
def test_ascent_climbs_like_numpy(seed):
    """Ten steps from the identity: every start gains, to where a loop with d/dt 4 u'R'SRu arrives."""
    rng, matrix = np.random.default_rng(seed), np.array([[1.0, 2.0], [2.0, 1.0]])
    x = rng.normal(size=2)
    _, info = travel(sx.tasks.booth(), jnp.asarray(x), sx.search.Ascent(10, 1e-4))
    u, steepness, angle = matrix @ x - [7, 5], matrix @ matrix, 0.0
    for _ in range(10):
        v = turn(angle) @ u
        angle += 1e-4 * 8 * v @ steepness @ (turn(np.pi / 2) @ v)
    assert info.algebra[0] == pytest.approx(angle, rel=1e-7, abs=1e-12)
    assert info.after == pytest.approx(orbit_norms(matrix, u, [angle])[0] ** 2, rel=1e-7)
    assert info.after > info.before


@settings(max_examples=30)
@given(seed=SEEDS)
def test_short_ascent_never_lowers_the_gradient_norm(seed):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=2))
    _, info = travel(sx.tasks.rosenbrock(), x, sx.search.Ascent(10, jnp.array(1e-9)))
    assert info.after > info.before


def test_teleport_raises_any_objective():
    """Far along the first axis: the point of the level set with the largest x."""
    task = sx.tasks.generalized_booth([[1.0, 0.0], [0.0, 2.0]])
    there, info = sx.teleport(
        task.loss,
        jnp.array([0.0, 1.0]),
        task.symmetry(),
        objective=lambda value_fn, x: x[0],
        search=sx.search.GoldenSection(),
        guard=None,
    )
    np.testing.assert_allclose(there, [2.0, 0.0], atol=1e-6)
    assert info.before == 0.0
    assert info.after == pytest.approx(2.0)


def test_scan_passes_over_angles_without_a_finite_objective():
    task = sx.tasks.generalized_booth(np.eye(2))
    objective = lambda _, x: jnp.where(x[1] > 0, jnp.where(x[0] > 0, jnp.nan, jnp.inf), x[0])  # noqa: E731
    there, _ = sx.teleport(
        task.loss,
        jnp.array([-1.0, 0.0]),
        task.symmetry(),
        objective=objective,
        search=sx.search.GoldenSection(),
        guard=None,
    )
    np.testing.assert_allclose(there, [1.0, 0.0], atol=0.03)


def test_scan_needs_a_circle():
    task = sx.tasks.generalized_booth(np.eye(3))
    with pytest.raises(ValueError, match=r"one algebra coordinate, an angle, got shape \(3,\): use Ascent"):
        sx.teleport(task.loss, jnp.ones(3), task.symmetry(), search=sx.search.GoldenSection())
    with pytest.raises(ValueError, match="use Ascent"):
        sx.teleport(task.loss, jnp.ones(3), task.symmetry(), search=sx.search.Oracle())


def test_ascent_serves_larger_groups():
    task = sx.tasks.generalized_booth(np.diag([1.0, 2.0, 3.0]))
    there, info = travel(task, jnp.ones(3), sx.search.Ascent(200, 1e-3))
    best = 4 * 9 * 14.0
    assert info.before < 0.8 * best
    assert info.after == pytest.approx(best, rel=1e-6)
    assert info.algebra.shape == (3,)
    assert task.loss(there) == pytest.approx(14.0, rel=1e-12)


def test_a_search_says_what_it_costs():
    line, curve = sx.tasks.booth().symmetry(), sx.tasks.rosenbrock().symmetry()
    assert sx.search.Ascent(steps=7).evaluations(line) == 21  # a derivative costs three values
    assert sx.search.GoldenSection(64, 20).evaluations(line) == 86
    assert sx.search.Oracle().evaluations(line) == 0
    assert sx.search.Oracle(sx.search.GoldenSection(64, 20)).evaluations(curve) == 86
    assert travel(sx.tasks.booth(), jnp.ones(2), sx.search.Ascent(steps=7))[1].evaluations == 21


@pytest.mark.parametrize("where", ["plain", "inside a dict"])
def test_a_point_that_is_not_finite_is_rejected_by_name(where):
    x = jnp.array([1.0, jnp.nan])
    point, name = (x, "params") if where == "plain" else ({"layer": {"w": x}}, "layer.w")
    with pytest.raises(ValueError, match=rf"not finite: {name} is \[ *1\. *nan\]"):
        sx.teleport(sx.tasks.booth().loss, point, sx.tasks.booth().symmetry())


@pytest.mark.parametrize("name", ["booth", "rosenbrock", "three dimensions"])
def test_orbit_derivative_equals_central_differences(name, central_differences):
    """S05: the derivative of the squared gradient norm in every algebra coordinate."""
    rng = np.random.default_rng(5)
    affine = lambda: sx.tasks.generalized_booth(rng.normal(size=(3, 3)), rng.normal(size=3))  # noqa: E731
    task = {"booth": sx.tasks.booth, "rosenbrock": sx.tasks.rosenbrock, "three dimensions": affine}[name]()
    symmetry = task.symmetry()
    slope = eqx.filter_jit(lambda x: sx.objectives.orbit_derivative(task.loss, x, symmetry))
    along = eqx.filter_jit(
        lambda xi, x: sx.objectives.squared_gradient_norm(task.loss, symmetry.act(symmetry.exp(xi), x))
    )
    for _ in range(5):
        x = jnp.asarray(0.5 * rng.normal(size=task.map.size))
        expected = central_differences(lambda xi: along(xi, x), np.zeros(symmetry.algebra), 1e-5)  # noqa: B023
        found = slope(x)
        assert found.shape == symmetry.algebra
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * np.max(np.abs(expected)))


def test_the_peak_of_a_quadratics_orbit_is_the_oracles_angle():
    """Exactly, from two derivatives at the point alone; both ends of the axis are as good."""
    h, rng = random_affine(100, 3)
    x = rng.normal(size=(100, 2))
    (_, peak, before, after), (_, oracle, _, _) = (
        travel_all(s, h, x) for s in (sx.search.SinusoidPeak(), sx.search.Oracle())
    )
    np.testing.assert_allclose(peak.after, oracle.after, rtol=1e-8)
    np.testing.assert_allclose(np.sin(peak.algebra - oracle.algebra), 0, atol=1e-6)
    np.testing.assert_allclose(after, before, rtol=1e-8)
    assert sx.search.SinusoidPeak().evaluations(sx.tasks.booth().symmetry()) == 4


def test_the_peak_and_polyaks_step_solve_random_rosenbrock_functions():
    """In twelve steps, where Polyak's step alone does not, and no jump is longer than its scale."""
    family = sx.tasks.make_family("rosenbrock-random")
    guard = sx.Guard(jump=jnp.inf, relative=1.0, shorten=True)

    def polyak(f_min, task):
        return optax.chain(optax.polyak_sgd(max_learning_rate=1e6, f_min=f_min), optax.scale(2.0))

    def peak(f_min, task):
        return sx.teleported(
            polyak(f_min, task), task.symmetry(), search=sx.search.SinusoidPeak(), guard=guard
        )

    plain, moved = (
        sx.unroll_many(make, 0.0, family, jax.random.key(0), 12, 200).loss[-1] for make in (polyak, peak)
    )
    assert np.median(plain) > 1e-2
    assert np.median(moved) < 1e-9
    assert np.mean(~np.isfinite(moved)) < 0.01


def test_the_peak_needs_one_angle():
    task = sx.tasks.generalized_booth(np.eye(3))
    with pytest.raises(ValueError, match=r"needs one algebra coordinate, an angle, got shape \(3,\)"):
        sx.teleport(task.loss, jnp.ones(3), task.symmetry(), search=sx.search.SinusoidPeak())


class Everywhere(sx.search.AbstractSearch):
    """Looks at the orbit inside of a loop, of a condition and of a derivative, and outside, in any order."""

    inside_first: bool

    def __call__(self, orbit):
        zero = orbit.zero()

        def step(xi, _):
            return xi + 0.01 * jax.grad(orbit)(xi) / (1 + orbit(xi)), None

        first = zero if self.inside_first else zero * orbit(zero)
        xi, _ = jax.lax.scan(step, first, None, length=3)
        return jax.lax.cond(orbit(xi) > orbit(zero), lambda: xi * jnp.sign(orbit(xi)), lambda: zero)

    def evaluations(self, symmetry):
        return 20


def searches():
    key = jax.random.key(0)
    return {
        "default": None,
        "ascent": sx.search.Ascent(2, 1e-4),
        "monotone": sx.search.Ascent(2, 0.1, normalized=True, monotone=True),
        "random": sx.search.Random(key, samples=3),
        "grid": sx.search.Grid(points=3),
        "scan": sx.search.GoldenSection(8, 3),
        "peak": sx.search.SinusoidPeak(),
        "oracle": sx.search.Oracle(),
        "curvature": sx.search.CurvatureStep(key),
        "own": Everywhere(True),
        "own, outside first": Everywhere(False),
    }


@pytest.mark.parametrize(
    "name", mostly_slow(searches(), ("ascent", "grid", "scan", "peak", "oracle", "curvature", "own"))
)
def test_searches_may_look_anywhere_and_obey_the_strict_modes_of_jax(name):
    task, x = sx.tasks.booth(), jnp.array([5.0, -5.0])
    with jax.checking_leaks(), jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        there, info = jax.jit(lambda x: sx.teleport(task.loss, x, task.symmetry(), search=searches()[name]))(
            x
        )
    assert info.outcome in (0, 2)
    assert np.all(np.isfinite(there))


@pytest.mark.parametrize(
    "name",
    mostly_slow(
        ["default", "ascent", "monotone", "random", "curvature", "own", "own, outside first"],
        ("default", "random", "own, outside first"),
    ),
)
def test_an_orbit_of_a_network_may_be_looked_at_anywhere(name):
    params = {"w1": jnp.ones((3, 2)), "w2": jnp.ones((2, 3))}
    symmetry = sx.models.mlp_symmetry(params, ["w1", "w2"])
    loss = lambda w, x: jnp.sum((x @ w["w1"].T @ w["w2"].T) ** 2)  # noqa: E731
    with jax.checking_leaks(), jax.numpy_dtype_promotion("strict"):
        _, info = jax.jit(
            lambda w: sx.teleport(loss, w, symmetry, jnp.ones((4, 2)), search=searches()[name])
        )(params)
    assert info.outcome == 0


def test_a_search_that_finds_nothing_finite_stays_where_it_is():
    for search in (
        sx.search.GoldenSection(8, 3),
        sx.search.Grid(points=3),
        sx.search.Random(jax.random.key(0), samples=3),
    ):
        orbit = sx.search.Orbit(
            sx.tasks.booth().loss,
            jnp.ones(2),
            sx.tasks.booth().symmetry(),
            objective=lambda f, w: f(w) * jnp.nan,
        )
        assert np.array_equal(search(orbit), [0.0])


def test_a_monotone_ascent_never_ends_lower_than_it_began():
    task = sx.tasks.booth()
    for seed in range(5):
        x = 3 * jax.random.normal(jax.random.key(seed), (2,))
        for rate in (0.01, 0.3, 3.0):
            search = sx.search.Ascent(6, jnp.array(rate), normalized=True, monotone=True)
            _, info = travel(task, x, search)
            assert info.after >= info.before * (1 - 1e-5)
    best = sx.teleport(task.loss, x, task.symmetry(), search=sx.search.Oracle(), guard=None)[0]
    _, info = sx.teleport(task.loss, best, task.symmetry(), search=search, guard=None)
    assert info.negligible


def test_a_teleport_that_does_next_to_nothing_says_so():
    task, x = sx.tasks.booth(), jnp.array([5.0, -5.0])
    assert sx.teleport(task.loss, x, task.symmetry(), search=sx.search.Ascent(1, 1e-9))[1].negligible
    assert not sx.teleport(task.loss, x, task.symmetry())[1].negligible
    rejected = sx.teleport(
        task.loss, x, task.symmetry(), search=sx.search.Oracle(), guard=sx.Guard(jump=1e-3)
    )[1]
    assert rejected.outcome == 2
    assert rejected.negligible


@pytest.mark.parametrize(
    "name",
    mostly_slow(
        ["default", "ascent", "monotone", "random", "grid", "scan", "oracle"], ("default", "random", "scan")
    ),
)
def test_single_precision_stays_single_under_x64(name):
    with jax.enable_x64(True):
        task, x = sx.tasks.booth(), jnp.array([5.0, -5.0], jnp.float32)
        search = searches()[name]
        if hasattr(search, "rate"):
            search = dataclasses.replace(
                search, rate=jnp.asarray(search.rate), bound=jnp.asarray(search.bound)
            )
        there, _ = jax.jit(lambda x: sx.teleport(task.loss, x, task.symmetry(), search=search))(x)
        orbit = sx.search.Orbit(task.loss, x, task.symmetry())
        found = orbit.zero() if search is None else jax.jit(lambda: search(orbit))()
    assert there.dtype == found.dtype == jnp.float32


def test_searches_without_a_group_leave_integers_and_booleans_alone():
    params = {"w": jnp.array([[1.0, 2.0]]), "steps": jnp.array([3]), "mask": jnp.array([True, False])}
    loss = lambda w: jnp.sum((w["w"] ** 2 + 1) * w["mask"]) + 0.0 * w["steps"][0]  # noqa: E731
    for search in (
        sx.search.LevelSet(steps=2),
        sx.search.NullSpace(lambda p, _: {"w": jnp.array([[1.0, 0.0]])}, steps=2),
    ):
        found = jax.jit(lambda p: search(loss, p))(params)  # noqa: B023
        assert np.array_equal(found.params["steps"], [3])
        assert found.params["mask"].dtype == bool
        assert np.all(np.isfinite(found.params["w"]))
