"""The plane families: the paper's constants, the distributions, and what happens to singular maps."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

import symmetrax as sx

# Rejected draws never leave a family, so that its redrawing is tested by itself.
from symmetrax.tasks import _plane

pytestmark = pytest.mark.usefixtures("quick_compilation")

SEEDS = st.integers(0, 2**32 - 1)
RANDOM = ("ellipse-random", "rosenbrock-random")
GRID = np.stack(np.meshgrid(np.linspace(-10, 10, 41), np.linspace(-10, 10, 41)), -1).reshape(-1, 2)

losses = eqx.filter_jit(lambda task, points: jax.vmap(task.loss)(points))
draw_task = eqx.filter_jit(lambda family, key: family.task(family.draw(key)))
hessians = eqx.filter_jit(lambda task, points: jax.vmap(jax.hessian(task.loss))(points))


@eqx.filter_jit
def draws(family, key, count):
    """The entries of `count` random maps and the start of each task, one row per task."""

    def one(key):
        at, start = jax.random.split(key)
        task = family.task(family.draw(at))
        entries = jnp.concatenate([x.ravel() for x in jax.tree.leaves(task.map)])
        return entries, task.init(start)

    return jax.vmap(one)(jax.random.split(key, count))


def test_booth_equals_its_formula_on_a_grid(float64):
    """S14."""
    x, y = GRID.T
    expected = (x + 2 * y - 7) ** 2 + (2 * x + y - 5) ** 2
    for task in (sx.tasks.booth(), sx.tasks.generalized_booth([[1, 2], [2, 1]], [-7, -5])):
        np.testing.assert_allclose(losses(task, GRID), expected, rtol=1e-12, atol=1e-12)
    assert sx.tasks.booth().loss(jnp.array([1.0, 3.0])) == 0.0
    assert not jnp.any(jax.grad(sx.tasks.booth().loss)(jnp.array([1.0, 3.0])))


def test_rosenbrock_equals_its_formula_on_a_grid(float64):
    """S15."""
    x, y = GRID.T
    expected = 100 * (y - x**2) ** 2 + (x - 1) ** 2
    for task in (sx.tasks.rosenbrock(), sx.tasks.generalized_rosenbrock(1, -1, -10, [10, 0, 0])):
        np.testing.assert_allclose(losses(task, GRID), expected, rtol=1e-9, atol=1e-9)
    assert sx.tasks.rosenbrock().loss(jnp.array([1.0, 1.0])) == 0.0
    assert not jnp.any(jax.grad(sx.tasks.rosenbrock().loss)(jnp.array([1.0, 1.0])))


@settings(max_examples=30)
@given(seed=SEEDS)
def test_affine_draws_are_convex(float64, seed):
    """S14: the Hessian is 2 A'A everywhere."""
    task = draw_task(sx.tasks.make_family("ellipse-random"), jax.random.key(seed))
    matrix = np.asarray(task.map.matrix)
    found = hessians(task, jax.random.normal(jax.random.key(seed), (4, 2)))
    np.testing.assert_allclose(found, np.tile(2 * matrix.T @ matrix, (4, 1, 1)), rtol=1e-10, atol=1e-10)
    assert np.all(np.linalg.eigvalsh(found) >= -1e-12)


def test_rosenbrock_is_not_convex_in_a_quarter_of_the_plane(float64):
    """S15: 23.4 % of Hessians are indefinite at points N(0, 1.5^2)."""
    points = 1.5 * np.random.default_rng(0).normal(size=(100_000, 2))
    determinant = np.linalg.det(hessians(sx.tasks.rosenbrock(), points))
    assert np.mean(determinant < 0) == pytest.approx(0.234, abs=0.01)


@pytest.mark.parametrize("make", [sx.tasks.booth, sx.tasks.rosenbrock])
@settings(max_examples=20)
@given(seed=SEEDS)
def test_maps_and_their_inverses_undo_each_other(float64, make, seed):
    """S15: h^-1(h(x)) = x and h(h^-1(u)) = u."""
    h = make().map
    x, u = np.random.default_rng(seed).normal(size=(2, 2))
    np.testing.assert_allclose(h.inverse(h(jnp.asarray(x))), x, rtol=0, atol=1e-10)
    np.testing.assert_allclose(h(h.inverse(jnp.asarray(u))), u, rtol=0, atol=1e-10)


def test_fixed_families_have_the_constants_of_the_paper():
    """Figures 3 and 5, and the two classical functions."""
    x, y = GRID.T
    formulas = {
        "ellipse-fixed": (0.5 * x) ** 2 + (3 * y) ** 2,
        "rosenbrock-fixed": (-2 * y + 0.4 * x**2) ** 2 + (x - 1) ** 2,
        "booth": (x + 2 * y - 7) ** 2 + (2 * x + y - 5) ** 2,
        "rosenbrock": 100 * (y - x**2) ** 2 + (x - 1) ** 2,
    }
    for name, expected in formulas.items():
        family = sx.tasks.make_family(name)
        assert family.name == name
        for seed in (0, 1):
            task = draw_task(family, jax.random.key(seed))
            np.testing.assert_allclose(losses(task, GRID), expected, rtol=1e-4, atol=1e-4)
        _, starts = draws(family, jax.random.key(0), 300)
        assert scipy.stats.kstest(np.ravel(starts), "norm").pvalue > 1e-3


@pytest.mark.parametrize("name", RANDOM)
def test_random_entries_and_starts_are_independent_standard_normal(name):
    """Figures 4 and 6: six numbers per map, iid N(0, 1), and starts N(0, I)."""
    entries, starts = map(np.asarray, draws(sx.tasks.make_family(name), jax.random.key(0), 20_000))
    columns = np.concatenate([entries, starts], 1)
    assert columns.shape == (20_000, 8)
    np.testing.assert_allclose(np.corrcoef(columns, rowvar=False), np.eye(8), rtol=0, atol=0.03)
    for column in columns.T:
        assert scipy.stats.kstest(column, "norm").pvalue > 1e-3


@pytest.mark.parametrize("name", RANDOM)
def test_a_draw_depends_on_the_key_alone(float64, name):
    """S17: reproducible from one seed, alone or in a batch, and two streams have nothing in common."""
    train, again, test = (draws(sx.tasks.make_family(name), jax.random.key(s), 500) for s in (0, 0, 1))
    assert eqx.tree_equal(train, again)
    for mine, other in zip(train, test, strict=True):
        assert not np.intersect1d(mine, other).size
        assert len(np.unique(mine, axis=0)) == 500
    family, first = sx.tasks.make_family(name), jax.random.split(jax.random.key(0), 500)[0]
    task = draw_task(family, jax.random.split(first)[0])
    alone = np.concatenate([np.ravel(x) for x in jax.tree.leaves(task.map)])
    np.testing.assert_allclose(alone, train[0][0], rtol=1e-12)


@settings(max_examples=10)
@given(seed=SEEDS)
def test_bad_draws_are_redrawn_until_they_are_good(float64, seed):
    """Nine in ten are rejected, at different times in one batch; the first good one is uniform below 0.1."""
    keys = jax.random.split(jax.random.key(seed), 300)
    found = np.asarray(redrawn(keys))
    assert np.all(found < 0.1)
    assert scipy.stats.kstest(10 * found, "uniform").pvalue > 1e-4
    first = np.asarray(jax.vmap(jax.random.uniform)(keys))
    assert np.array_equal(found[first < 0.1], first[first < 0.1])
    assert len(np.unique(found)) == 300


redrawn = jax.jit(jax.vmap(lambda key: _plane._redraw(jax.random.uniform, lambda x: x < 0.1, key)))


@settings(max_examples=30)
@given(angles=st.tuples(*[st.floats(-3, 3)] * 2), condition=st.floats(1.1, 1e6), scale=st.floats(1e-3, 1e3))
def test_affine_maps_count_as_singular_beyond_condition_1e4(float64, angles, condition, scale):
    (c, s), (d, t) = ((np.cos(a), np.sin(a)) for a in angles)
    left, right = np.array([[c, -s], [s, c]]), np.array([[d, -t], [t, d]])
    matrix = scale * left @ np.diag([1, 1 / condition]) @ right
    good = _plane._good_affine(sx.symmetry.Affine(jnp.asarray(matrix), jnp.zeros(2)))
    if abs(condition / 1e4 - 1) > 1e-6:
        assert bool(good) == (condition < 1e4)


def test_triangular_maps_count_as_singular_where_a_or_c_is_below_1e_4():
    for a, c, good in ((1.0, -1.0, True), (2e-4, 1.0, True), (5e-5, 1.0, False), (1.0, -5e-5, False)):
        h = sx.symmetry.Triangular(jnp.array(a), jnp.array(0.0), jnp.array([c]), jnp.zeros(3))
        assert bool(_plane._good_triangular(h)) == good


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sx.tasks.generalized_booth([[1, 2], [2, 4]]), r"invertible.*\[\[1.0, 2.0\], \[2.0, 4.0\]\]"),
        (lambda: sx.tasks.generalized_booth([[1, 2, 3], [4, 5, 6]]), r"must be square, got shape \(2, 3\)"),
        (lambda: sx.tasks.generalized_booth([[1, np.nan], [2, 4]]), r"`matrix` must be finite.*nan"),
        (lambda: sx.tasks.generalized_booth(np.eye(2), [1]), r"`offset` must have shape \(2,\), got \(1,\)"),
        (lambda: sx.tasks.booth(start=[np.inf, 1]), r"`start` must be finite, got \[inf, 1.0\]"),
        (lambda: sx.tasks.booth(start=[1.0, 2.0, 3.0]), r"`start` must have shape \(2,\), got \(3,\)"),
        (lambda: sx.tasks.generalized_rosenbrock(0, 1, 1, [1]), "a=0.0"),
        (lambda: sx.tasks.generalized_rosenbrock(1, 1, [0, 0], [1]), r"c=\[0.0, 0.0\]"),
        (lambda: sx.tasks.generalized_rosenbrock(1, np.nan, 1, [1]), "`b` must be finite, got nan"),
        (lambda: sx.tasks.generalized_rosenbrock([1, 2], 1, 1, [1]), r"`a` must have shape \(\), got \(2,\)"),
        (lambda: sx.tasks.rosenbrock(start=[np.nan, 0]), r"`start` must be finite, got \[nan, 0.0\]"),
    ],
)
def test_singular_and_non_finite_inputs_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_far_starts_are_the_points_of_the_published_code():
    for name, start in {
        "ellipse-fixed": (-5, 3.5),
        "ellipse-random": (-5, 3.5),
        "booth": (-5, 3.5),
        "rosenbrock": (-6, -2),
        "rosenbrock-fixed": (-6, -2),
        "rosenbrock-random": (-6, -2),
    }.items():
        _, starts = draws(sx.tasks.make_family(name, far=True), jax.random.key(0), 3)
        assert np.array_equal(starts, np.tile(start, (3, 1)))


def test_an_unknown_family_suggests_a_near_name():
    with pytest.raises(ValueError, match=r"Unknown family 'elipse-random'.*Did you mean 'ellipse-random'\?"):
        sx.tasks.make_family("elipse-random")
    with pytest.raises(ValueError, match=r"choose one of ellipse-fixed, ellipse-random.*language\.$"):
        sx.tasks.make_family("xyz")
    assert set(sx.tasks.family_names()) >= {"ellipse-fixed", "rosenbrock-random", "booth", "digits"}
