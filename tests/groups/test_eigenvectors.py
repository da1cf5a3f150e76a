"""Eigenvectors by plane rotations against LAPACK."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import symmetrax as sx
from symmetrax.groups._eigenvectors import eigenvectors


@hypothesis.settings(max_examples=30)
@hypothesis.given(st.integers(1, 9), st.integers(1, 3), st.integers(0, 1000), st.sampled_from([0, 3, 12]))
def test_they_diagonalize_and_rotate(float64, size, copies, seed, decades):
    random = np.random.default_rng(seed)
    spectrum = np.logspace(0, -decades, size) * random.choice([-1, 1], size)
    basis = np.linalg.qr(random.normal(size=(copies, size, size)))[0]
    matrix = basis * spectrum @ basis.swapaxes(-1, -2)
    q = np.asarray(eigenvectors(jnp.asarray(matrix)))
    moved = q @ matrix @ q.swapaxes(-1, -2)
    np.testing.assert_allclose(moved, np.einsum("kii,ij->kij", moved, np.eye(size)), atol=1e-13)
    found = np.sort(np.diagonal(moved, axis1=-2, axis2=-1))
    np.testing.assert_allclose(found, np.sort(np.linalg.eigvalsh(matrix)), atol=1e-13)
    np.testing.assert_allclose(q @ q.swapaxes(-1, -2), np.broadcast_to(np.eye(size), q.shape), atol=1e-14)
    np.testing.assert_allclose(np.linalg.det(q), 1.0, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-32, 1.0, 1e37])
def test_single_precision_at_every_scale(scale):
    x = np.random.default_rng(0).normal(size=(33, 40)).astype(np.float32)
    matrix = x @ x.T
    q = np.asarray(eigenvectors(jnp.asarray(matrix * np.float32(scale / 100))), np.float64)
    moved = q @ matrix @ q.T
    assert np.max(np.abs(moved - np.diag(np.diag(moved)))) < 1e-5 * np.max(matrix)
    np.testing.assert_allclose(q @ q.T, np.eye(33), atol=1e-6)


def test_a_diagonal_matrix_stays_where_it_is():
    # Equal and unordered eigenvalues alike: nothing turns without a reason.
    for diagonal in ([3.0, 1.0, 2.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [0.0, -1.0, 5.0]):
        assert np.array_equal(eigenvectors(jnp.diag(jnp.array(diagonal))), np.eye(3))


def test_what_is_not_finite_stays_visible():
    assert np.all(np.isnan(eigenvectors(jnp.array([[1.0, jnp.nan], [jnp.nan, 2.0]]))))


def test_under_vmap_as_in_a_loop():
    matrices = jnp.asarray(np.random.default_rng(1).normal(size=(4, 5, 5)), jnp.float32)
    np.testing.assert_allclose(
        jax.vmap(eigenvectors)(matrices), jnp.stack([eigenvectors(m) for m in matrices]), atol=2e-6
    )


@pytest.mark.parametrize(
    "group",
    [
        sx.groups.Orthogonal(4, {"head": 3}),
        sx.groups.Orthogonal(4, {"head": 3}, fix="mean"),
        sx.groups.SpecialOrthogonal(5),
        sx.groups.GeneralLinear(3, {"head": 2}),
        sx.groups.ScaledRotation({"pair": 4}),
        sx.groups.PositiveDiagonal(3),
        sx.groups.Permutation(3),
    ],
    ids=str,
)
def test_every_group_diagonalizes_by_a_rotation_that_it_contains(float64, group):
    x = np.random.default_rng(2).normal(size=(*group.lengths, group.size, 9))
    moment = jnp.asarray(x @ x.swapaxes(-1, -2))
    element = group.diagonalizing(moment)
    same = jax.tree.map(lambda a, b: a.shape == b.shape, element, group.identity())
    assert jax.tree.all(same)
    eye = jnp.broadcast_to(jnp.eye(group.size), moment.shape)
    q = group.multiply(element, eye)
    np.testing.assert_allclose(q @ jnp.swapaxes(q, -1, -2), eye, atol=1e-12)
    if not group.rotates:
        assert np.array_equal(q, eye)
        return
    if isinstance(group, sx.groups.Orthogonal) and group.fix:
        ones = np.ones(group.size)
        np.testing.assert_allclose(q @ ones, np.broadcast_to(ones, q.shape[:-1]), atol=1e-12)
        # On the complement of the fixed vector nothing is left to turn.
        again = group.diagonalizing(q @ moment @ jnp.swapaxes(q, -1, -2))
        np.testing.assert_allclose(group.multiply(again, eye), eye, atol=1e-10)
        return
    moved = q @ moment @ jnp.swapaxes(q, -1, -2)
    np.testing.assert_allclose(moved, moved * eye, atol=1e-11)


def test_mean_squares_move_by_the_squares_of_the_entries(float64):
    # The variance of independent entries after a rotation, from many draws.
    random = np.random.default_rng(3)
    for group in (sx.groups.Orthogonal(3), sx.groups.GeneralLinear(3), sx.groups.ScaledRotation()):
        a = group.sample(jax.random.key(4))
        deviations = np.array([1.0, 3.0, 0.5])[: group.size]
        draws = jnp.asarray(deviations[:, None] * random.normal(size=(group.size, 200_000)))
        seen = jnp.mean(group.multiply(a, draws) ** 2, axis=1)
        np.testing.assert_allclose(
            group.multiply_squares(a, jnp.asarray(deviations**2)[:, None])[:, 0], seen, rtol=0.02
        )
