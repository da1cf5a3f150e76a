"""Rotation groups and invertible maps, against SciPy's matrix exponential and plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

import symmetrax as sx

pytestmark = pytest.mark.usefixtures("quick_compilation", "float64")
SIZES = (2, 3, 4, 5, 6)
EXP = {n: jax.jit(jax.vmap(sx.groups.SpecialOrthogonal(n).exp)) for n in SIZES}
SAMPLE = {n: jax.jit(jax.vmap(sx.groups.SpecialOrthogonal(n).sample)) for n in SIZES}


def skew(coordinates, n):
    """Entry k of the coordinates is minus the k-th entry above the diagonal, row by row."""
    matrix = np.zeros((n, n))
    k = 0
    for i in range(n):
        for j in range(i + 1, n):
            matrix[i, j], matrix[j, i] = -coordinates[k], coordinates[k]
            k += 1
    return matrix


def generators(n, seed, norm):
    """Coordinates whose skew matrices have this spectral norm."""
    draws = np.random.default_rng(seed).normal(size=(8, n * (n - 1) // 2))
    return np.array([norm * x / np.linalg.norm(skew(x, n), 2) for x in draws])


@pytest.mark.parametrize("n", SIZES)
@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1))
def test_exp_equals_scipy_expm(n, seed):
    coordinates = generators(n, seed, norm=3.0)
    expected = [scipy.linalg.expm(skew(x, n)) for x in coordinates]
    np.testing.assert_allclose(EXP[n](coordinates), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("n", SIZES)
@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1), norm=st.floats(1e-8, 20.0))
def test_exp_is_exact_to_rounding_up_to_norm_20(n, seed, norm):
    """Against an eigendecomposition, which SciPy's own error (2e-14 at norm 20) does not blur."""
    coordinates = generators(n, seed, norm)
    for x, rotation in zip(coordinates, np.asarray(EXP[n](coordinates)), strict=True):
        frequency, mode = np.linalg.eigh(1j * skew(x, n))
        bound = 3e-15 * max(1.0, norm)
        np.testing.assert_allclose(
            rotation, (mode * np.exp(-1j * frequency)) @ mode.conj().T, rtol=0, atol=bound
        )
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(n), rtol=0, atol=2 * bound)
        assert abs(np.linalg.det(rotation) - 1) <= 2 * bound


@pytest.mark.parametrize("n", SIZES)
def test_zero_coordinates_are_exactly_the_identity(n):
    group = sx.groups.SpecialOrthogonal(n)
    assert group.algebra == (n * (n - 1) // 2,)
    assert jnp.array_equal(EXP[n](jnp.zeros((1, *group.algebra)))[0], np.eye(n))
    assert jnp.array_equal(group.identity(), np.eye(n))


def test_one_angle_turns_the_plane_counter_clockwise():
    turned = sx.groups.SpecialOrthogonal(2).multiply(EXP[2](np.array([[0.3]]))[0], jnp.array([[2.0], [0.0]]))
    np.testing.assert_allclose(turned[:, 0], [2 * np.cos(0.3), 2 * np.sin(0.3)], rtol=1e-15)


@pytest.mark.parametrize("n", SIZES)
def test_group_operations_are_matrix_product_and_transpose(n):
    group = sx.groups.SpecialOrthogonal(n)
    a, b = np.asarray(SAMPLE[n](jax.random.split(jax.random.key(3), 2)))
    x = np.linspace(-1, 1, n)
    np.testing.assert_allclose(group.compose(jnp.asarray(a), jnp.asarray(b)), a @ b, rtol=0, atol=1e-15)
    np.testing.assert_allclose(group.inverse(jnp.asarray(a)), np.linalg.inv(a), rtol=0, atol=1e-14)
    moved = group.multiply(jnp.asarray(a), jnp.asarray(x)[:, None])[:, 0]
    np.testing.assert_allclose(moved, a @ x, rtol=0, atol=1e-15)


@pytest.mark.parametrize("n", SIZES)
def test_samples_are_uniform_rotations(n):
    """Haar measure: no matrix is the identity, the image of a vector is uniform on the sphere."""
    samples = np.asarray(SAMPLE[n](jax.random.split(jax.random.key(0), 4000)))
    np.testing.assert_allclose(
        samples @ samples.transpose(0, 2, 1), np.tile(np.eye(n), (4000, 1, 1)), atol=1e-13
    )
    np.testing.assert_allclose(np.linalg.det(samples), 1.0, rtol=1e-12)
    assert np.min(np.abs(samples - np.eye(n)).max((1, 2))) > 1e-6
    np.testing.assert_allclose(samples.mean(0), 0.0, atol=5 / np.sqrt(4000 * n))
    # The square of a coordinate of a uniform unit vector is Beta(1/2, (n - 1)/2) distributed.
    law = scipy.stats.beta(0.5, (n - 1) / 2).cdf
    for row, column in ((0, 0), (n - 1, 0), (0, n - 1)):
        assert scipy.stats.kstest(samples[:, row, column] ** 2, law).pvalue > 1e-3
        assert np.mean(samples[:, row, column] > 0) == pytest.approx(0.5, abs=0.03)


def test_rotations_need_two_dimensions():
    with pytest.raises(ValueError, match="at least 2 dimensions, got size=1"):
        sx.groups.SpecialOrthogonal(1)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_triangular_map_equals_numpy_polynomials(seed):
    """c and d of any degree, highest power first."""
    rng = np.random.default_rng(seed)
    a, b, x, c, d = rng.normal(), rng.normal(), rng.normal(size=2), rng.normal(size=3), rng.normal(size=4)
    h = sx.symmetry.Triangular(*(jnp.asarray(v) for v in (a, b, c, d)))
    u = np.array([np.polyval(c, x[0]) * x[1] + np.polyval(d, x[0]), a * x[0] + b])
    np.testing.assert_allclose(h(jnp.asarray(x)), u, rtol=1e-12, atol=1e-12)
    steepness = 1 / min(abs(a), abs(np.polyval(c, x[0])))
    np.testing.assert_allclose(h.inverse(jnp.asarray(u)), x, rtol=0, atol=1e-13 * (1 + steepness**2))


@pytest.mark.parametrize("n", [2, 3, 5])
def test_affine_map_equals_numpy(n):
    rng = np.random.default_rng(n)
    matrix, offset, x = rng.normal(size=(n, n)) + 3 * np.eye(n), rng.normal(size=n), rng.normal(size=n)
    h = sx.symmetry.Affine(jnp.asarray(matrix), jnp.asarray(offset))
    np.testing.assert_allclose(h(jnp.asarray(x)), matrix @ x + offset, rtol=1e-13)
    np.testing.assert_allclose(h.inverse(jnp.asarray(x)), np.linalg.solve(matrix, x - offset), rtol=1e-12)
