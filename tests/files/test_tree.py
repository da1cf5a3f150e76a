"""Norms and pairings of every dtype and size, against NumPy in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from symmetrax._tree import conjugate, pairing, safe_norm, scaled, squared_norm
from symmetrax._tree import magnitude as power_of_two

KINDS = ("float16", "bfloat16", "float32", "complex64", "int32")


def entries(kind, seed, size=1.0):
    rng = np.random.default_rng(seed)
    drawn = size * rng.normal(size=(3, 5))
    if kind == "complex64":
        return jnp.asarray(drawn + 1j * size * rng.normal(size=(3, 5)), kind)
    return jnp.asarray(np.round(drawn * 9) if kind == "int32" else drawn, kind)


def flat(tree):
    """All entries as one real vector of doubles: the oracle's view."""
    leaves = [np.asarray(leaf).astype(complex).ravel() for leaf in jax.tree.leaves(tree)]
    return np.concatenate([part for leaf in leaves for part in (leaf.real, leaf.imag)])


@settings(max_examples=30)
@given(st.lists(st.sampled_from(KINDS), min_size=1, max_size=3), st.integers(0, 99))
def test_norms_are_those_of_the_real_vector_of_all_entries(kinds, seed):
    trees = [[entries(kind, seed + 7 * k + i) for i, kind in enumerate(kinds)] for k in range(2)]
    left, right = map(flat, trees)
    with jax.numpy_dtype_promotion("strict"):
        norm, square, paired = safe_norm(trees[0]), squared_norm(trees[0]), pairing(*trees)
    assert norm.dtype == square.dtype == paired.dtype == jnp.float32
    np.testing.assert_allclose(norm, np.linalg.norm(left), rtol=1e-6)
    np.testing.assert_allclose(square, left @ left, rtol=1e-6)
    np.testing.assert_allclose(paired, left @ right, rtol=1e-5, atol=1e-5 * np.linalg.norm(left))


@pytest.mark.parametrize("size", [1e-30, 1e-18, 1.0, 1e18, 1e30, 3e37])
@pytest.mark.parametrize("kind", ["float32", "complex64"])
def test_a_norm_of_any_size_is_finite_and_its_gradient_a_unit_vector(kind, size):
    tree = {"a": entries(kind, 1, size), "b": entries("float32", 2, size / 100)}
    value, gradient = jax.value_and_grad(safe_norm)(tree)
    np.testing.assert_allclose(value, np.linalg.norm(flat(tree)), rtol=1e-6)
    np.testing.assert_allclose(flat(conjugate(gradient)), flat(tree) / np.linalg.norm(flat(tree)), atol=1e-6)


def test_sums_of_half_floats_do_not_overflow():
    assert float(safe_norm(jnp.full(4, 6e4, jnp.float16))) == pytest.approx(1.2e5, rel=1e-3)
    assert float(squared_norm(jnp.full(4, 300, jnp.float16))) == 3.6e5


def test_scaling_by_a_power_of_two_loses_no_bit():
    for size in (1e-35, 1.0, 1e35):
        tree = {"a": entries("float32", 3, size)}
        scale = power_of_two(tree)
        mantissa, _ = np.frexp(float(scale))
        assert mantissa == 0.5
        back = jax.tree.map(lambda x: x * scale, scaled(tree, scale))  # noqa: B023
        assert np.array_equal(back["a"], tree["a"])


def test_norms_of_what_is_empty_zero_infinite_or_not_a_number():
    assert (
        float(safe_norm({})) == float(safe_norm(jnp.zeros((0, 2)))) == float(safe_norm(jnp.zeros(3))) == 0.0
    )
    assert float(safe_norm(jnp.array([1.0, np.inf]))) == np.inf
    assert np.isnan(safe_norm(jnp.array([1.0, np.nan])))
    assert np.array_equal(jax.grad(safe_norm)(jnp.zeros(3)), np.zeros(3))
    assert not squared_norm({}).weak_type


def test_under_double_precision_single_stays_single_and_the_widest_wins():
    with jax.enable_x64(True):
        single, double = jnp.ones(3, jnp.float32), jnp.ones(3)
        assert safe_norm(single).dtype == jnp.float32
        assert safe_norm([single, double]).dtype == jnp.float64
