"""Inverses without LAPACK, and their derivatives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import symmetrax as sx

# The inverse without LAPACK, at matrices that no group draws.
from symmetrax.groups._inverse import inverse

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture
def matrices():
    return jax.random.normal(jax.random.key(0), (50, 20, 20))


def test_matrices_are_inverted_as_lapack_would(float64, matrices):
    x = np.asarray(matrices, float)
    worst = np.max(np.linalg.cond(x))
    found = jax.jit(jax.vmap(inverse))(jnp.asarray(x))
    wanted = np.linalg.inv(x)
    error = np.linalg.norm(found - wanted, axis=(1, 2)) / np.linalg.norm(wanted, axis=(1, 2))
    assert np.max(error) < 1e-15 * worst
    np.testing.assert_allclose(jax.jit(inverse)(jnp.asarray(x[0])), wanted[0], rtol=1e-9, atol=1e-12)


def test_pivots_are_needed_and_found(float64):
    x = np.random.default_rng(0).permutation(np.eye(6)) * np.arange(1, 7) + 1e-12
    found = jax.vmap(inverse)(jnp.stack([x, x.T]))
    np.testing.assert_allclose(found, np.linalg.inv(np.stack([x, x.T])), rtol=1e-12, atol=1e-13)


def test_the_last_axis_may_be_the_batch(matrices):
    last = jax.vmap(inverse, in_axes=-1, out_axes=-1)(jnp.moveaxis(matrices, 0, -1))
    np.testing.assert_array_equal(last, jnp.moveaxis(jax.vmap(inverse)(matrices), 0, -1))


def test_a_learned_teleport_never_calls_lapack():
    """Two programs that do, on two host devices, can wait for each other for ever."""
    family = sx.tasks.RegressionFamily("small", dims=(4, 4, 4), samples=4, action="preimage")
    network = sx.learned.LayerPairLSTM(
        (4, 4, 4), emits=("step_size",), max_norm=0.1, width=4, key=jax.random.key(0)
    )
    estimator = sx.metatrain.TruncatedBPTT(family, sx.UpdateRule.at([0, 1], 2), 2, 2, tasks=3)
    for form in ("preimage", "output"):
        estimator = dataclasses.replace(estimator, family=dataclasses.replace(family, action=form))
        carry = jax.eval_shape(lambda e=estimator: e.init(network, jax.random.key(1), None))
        window = jax.jit(lambda carry, e=estimator: e.step(network, carry, jax.random.key(2), None))
        assert "lapack" not in window.lower(carry).as_text()


def test_derivatives_are_those_of_the_inverse(float64, central_differences):
    x = np.random.default_rng(1).normal(size=(3, 3))

    def flat(v):
        return inverse(jnp.reshape(jnp.asarray(v), (3, 3))).ravel()

    wanted = central_differences(flat, x.ravel())
    for derivative in (jax.jacfwd, jax.jacrev):
        np.testing.assert_allclose(derivative(flat)(jnp.asarray(x.ravel())), wanted, rtol=1e-6, atol=1e-7)


def test_singular_matrices_give_what_a_guard_rejects(matrices):
    singular = matrices[:2].at[1, 3].set(matrices[1, 4])
    found = np.asarray(jax.vmap(inverse)(singular))
    assert np.all(np.isfinite(found[0]))
    assert not np.all(np.abs(found[1]) < 1e4)
