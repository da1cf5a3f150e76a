"""The action on sums of squares: its laws on every family, by `verify` and against NumPy and SciPy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import symmetrax as sx

from ..cases import mostly_slow

pytestmark = pytest.mark.usefixtures("quick_compilation", "float64")
SEEDS = st.integers(0, 2**32 - 1)


class Shear(sx.symmetry.AbstractMap):
    """h(x, y, z) = (2x + 1, y + x^2, exp(x / 4) z + x y): a bijection of R^3 that no class here knows."""

    size = 3  # pyright: ignore[reportAssignmentType]  (stands in for the property)

    def __call__(self, x):
        x, y, z = x
        return jnp.stack([2 * x + 1, y + x**2, jnp.exp(x / 4) * z + x * y])

    def inverse(self, u):
        x = (u[0] - 1) / 2
        y = u[1] - x**2
        return jnp.stack([x, y, (u[2] - x * y) / jnp.exp(x / 4)])


def affine(n):
    """Condition 3 in n dimensions."""
    left, right = (np.linalg.qr(np.random.default_rng(s).normal(size=(n, n)))[0] for s in (n, n + 1))
    return sx.tasks.generalized_booth(left * np.linspace(1, 3, n) @ right, np.linspace(-1, 1, n))


def with_map(h):
    """f = ||h||^2 for any map of n dimensions."""
    return eqx.tree_at(lambda task: task.map, sx.tasks.generalized_booth(np.eye(h.size)), h)


# Each task with the bound on its errors near the origin.
TABLE = {
    "booth": (sx.tasks.booth, 1e-12),
    "affine-2": (lambda: affine(2), 1e-12),
    "affine-3": (lambda: affine(3), 1e-12),
    "affine-5": (lambda: affine(5), 1e-12),
    "shear-3": (lambda: with_map(Shear()), 1e-12),
    "rosenbrock": (sx.tasks.rosenbrock, 1e-8),
}


@eqx.filter_jit
def laws(task, key):
    """Relative errors of the laws at 100 random points, written out here without `verify`, and the worst
    condition number of the map's Jacobian at the points visited."""
    symmetry = task.symmetry()

    def gap(x, y, reference):
        return jnp.linalg.norm(x - y) / jnp.linalg.norm(reference)

    def trial(key):
        at, first, second = jax.random.split(key, 3)
        w = jax.random.normal(at, (task.map.size,))
        a, b = symmetry.sample(first), symmetry.sample(second)
        there, once = symmetry.act(a, w), symmetry.act(b, w)
        both = symmetry.act(symmetry.compose(a, b), w)
        gradient = jax.grad(task.loss)(there)
        errors = {
            "invariance": jnp.abs(task.loss(there) - task.loss(w)) / task.loss(w),
            "identity": gap(symmetry.act(symmetry.identity(), w), w, w),
            "composition": gap(symmetry.act(a, once), both, both),
            "inverse": gap(symmetry.act(symmetry.inverse(a), there), w, w),
            "gradient": gap(symmetry.transport_gradient(a, w, jax.grad(task.loss)(w)), gradient, gradient),
        }
        visited = jnp.stack([w, there, once, both])
        return errors, jnp.max(jnp.linalg.cond(jax.vmap(jax.jacfwd(task.map))(visited)))

    return jax.vmap(trial)(jax.random.split(key, 100))


@pytest.mark.parametrize("name", mostly_slow(TABLE, ("rosenbrock", "affine-3", "shear-3")))
def test_every_law_holds_to_rounding(name):
    """The error bound is machine precision times the squared condition of the map, at every draw."""
    for seed in range(10):
        errors, condition = laws(TABLE[name][0](), jax.random.key(seed))
        for law, error in errors.items():
            assert float(jnp.max(error / condition**2)) <= 1e-14, law


@pytest.mark.parametrize("name", mostly_slow(TABLE, ("booth", "rosenbrock", "affine-3")))
@settings(max_examples=5)
@given(seed=SEEDS)
def test_verify_finds_no_error_in_a_symmetry(name, seed):
    make, bound = TABLE[name]
    task = make()
    origin = jnp.zeros(task.map.size)
    report = sx.verify(task.loss, origin, task.symmetry(), jax.random.key(seed), trials=4, spread=0.3)
    assert report.worst <= bound
    assert report.moved > 1e-4
    assert report.reasons == ()


@jax.jit
def action(h, x, angle):
    """Stacked maps h, each rotating its own x by its own angle."""
    rotation = sx.groups.SpecialOrthogonal(2).exp
    return jax.vmap(lambda h, x, t: sx.symmetry.Pullback(h).act(rotation(t[None]), x))(h, x, angle)


def value(h, x):
    """||h(x)||^2 of stacked maps in NumPy, and the condition of the Jacobian of h."""
    if isinstance(h, sx.symmetry.Affine):
        u, jacobian = np.einsum("kij,kj->ki", h.matrix, x) + h.offset, np.asarray(h.matrix)
    else:
        d = np.asarray(h.d).T
        u = np.stack([h.c[:, 0] * x[:, 1] + (d[0] * x[:, 0] + d[1]) * x[:, 0] + d[2], h.a * x[:, 0] + h.b], 1)
        slope = 2 * d[0] * x[:, 0] + d[1]
        rows = [[slope, np.asarray(h.c[:, 0])], [np.asarray(h.a), np.zeros(len(x))]]
        jacobian = np.moveaxis(np.array(rows), -1, 0)
    return np.sum(u**2, 1), np.linalg.cond(jacobian)


@pytest.mark.parametrize("name", ["ellipse-random", "rosenbrock-random"])
def test_random_families_are_invariant_where_well_conditioned(name, record_property):
    """S16: 1,000 draws of map, point and angle; beyond condition 1e4 the change is only recorded."""
    family, rng = sx.tasks.make_family(name), np.random.default_rng(0)
    h = jax.jit(jax.vmap(family.draw))(jax.random.split(jax.random.key(0), 1000))
    x, angle = rng.normal(size=(1000, 2)), rng.uniform(-np.pi, np.pi, 1000)
    (before, here), (after, there) = value(h, x), value(h, np.asarray(action(h, x, angle)))
    change, condition = np.abs(after - before) / before, np.maximum(here, there)
    good = condition <= 1e4
    assert good.sum() > 800
    assert np.max(change[good]) <= 1e-9
    record_property("beyond", f"{np.sum(~good)} of 1000, worst change {np.max(change[~good], initial=0)}")


@pytest.mark.parametrize("n", [2, 3, 5])
def test_affine_action_equals_numpy(n):
    task, rng = affine(n), np.random.default_rng(7)
    matrix, offset = np.asarray(task.map.matrix), np.asarray(task.map.offset)
    act = eqx.filter_jit(task.symmetry().act)
    for seed in range(20):
        rotation, x = np.asarray(task.symmetry().sample(jax.random.key(seed))), rng.normal(size=n)
        expected = np.linalg.solve(matrix, rotation @ (matrix @ x + offset) - offset)
        np.testing.assert_allclose(act(rotation, x), expected, rtol=1e-12, atol=1e-12)


def test_rotations_conjugated_by_a_matrix_keep_its_quadratic():
    """T12: f(x) = x'Ax with A = B'B under x -> B^-1 R B x."""
    rng = np.random.default_rng(3)
    act = jax.jit(
        lambda b, t, x: sx.symmetry.Pullback(sx.symmetry.Affine(b, jnp.zeros(2))).act(rotation(t), x)
    )
    rotation = sx.groups.SpecialOrthogonal(2).exp
    for _ in range(200):
        q = np.linalg.qr(rng.normal(size=(2, 2)))[0]
        b = q * rng.uniform(0.3, 3, 2) @ q.T
        x, angle = rng.normal(size=2), rng.uniform(-np.pi, np.pi)
        there = np.asarray(act(b, np.array([angle]), x))
        c, s = np.cos(angle), np.sin(angle)
        np.testing.assert_allclose(there, np.linalg.solve(b, np.array([[c, -s], [s, c]]) @ b @ x), rtol=1e-11)
        assert abs(there @ b.T @ b @ there / (x @ b.T @ b @ x) - 1) <= 1e-12


@pytest.mark.parametrize("name", ["booth", "rosenbrock", "affine-5", "shear-3"])
def test_push_and_pull_are_the_derivative_of_the_action_and_its_inverse_transpose(name, central_differences):
    task = TABLE[name][0]()
    symmetry, n = task.symmetry(), task.map.size
    act, transport_tangent, transport_gradient = (
        eqx.filter_jit(f) for f in (symmetry.act, symmetry.transport_tangent, symmetry.transport_gradient)
    )
    for seed in range(5):
        rng = np.random.default_rng(seed)
        a = symmetry.exp(jnp.asarray(rng.uniform(-0.5, 0.5, symmetry.algebra)))
        x, tangent, cotangent = 0.5 * rng.normal(size=(3, n))
        jacobian = central_differences(lambda w: act(a, w), x)  # noqa: B023
        pushed, pulled = transport_tangent(a, x, tangent), transport_gradient(a, x, cotangent)
        np.testing.assert_allclose(pushed, jacobian @ tangent, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(jacobian.T @ pulled, cotangent, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(pulled @ pushed, cotangent @ tangent, rtol=1e-9, atol=1e-10)
