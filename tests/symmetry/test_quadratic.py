"""All linear maps that keep a quadratic form: laws, the literal example of a boost, bad input."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import symmetrax as sx

pytestmark = pytest.mark.usefixtures("quick_compilation", "float64")


@functools.cache
def laws(n):
    """One program per dimension: every law at one matrix, two elements, one point."""

    @jax.jit
    def run(matrix, a, b, x, gradient):
        symmetry = sx.symmetry.QuadraticForm(matrix)
        g, h = symmetry.exp(a), symmetry.exp(b)
        there = symmetry.act(g, x)
        return {
            "kept": (there @ matrix @ there, x @ matrix @ x),
            "composed": (symmetry.act(symmetry.compose(g, h), x), symmetry.act(g, symmetry.act(h, x))),
            "undone": (symmetry.act(symmetry.inverse(g), there), x),
            "identity": (symmetry.act(symmetry.exp(symmetry.zero()), x), x),
            "pulled": (symmetry.transport_gradient(g, x, 2 * matrix @ x), 2 * matrix @ there),
            "carried": (
                symmetry.transport_gradient(g, x, gradient),
                super(sx.symmetry.QuadraticForm, symmetry).transport_gradient(g, x, gradient),
            ),
            "additive": (symmetry.compose(g, g), symmetry.exp(2 * a)),
        }

    return run


def draw(n, seed, share):
    random = np.random.default_rng(seed)
    axes = np.linalg.qr(random.normal(size=(n, n)))[0]
    values = 10 ** random.uniform(-1, 1, n) * np.where(np.arange(n) < share * n, -1, 1)
    return random, (axes * values) @ axes.T


@hypothesis.given(st.sampled_from([2, 3, 5]), st.integers(0, 10_000), st.sampled_from([0.0, 0.5, 1.0]))
@hypothesis.settings(max_examples=30)
def test_the_laws_hold_for_forms_of_every_signature(n, seed, share):
    random, matrix = draw(n, seed, share)
    k = n * (n - 1) // 2
    parts = [matrix, *random.uniform(-1, 1, (2, k)), random.normal(size=n), random.normal(size=n)]
    for law, (left, right) in laws(n)(*map(jnp.asarray, parts)).items():
        scale = np.linalg.norm(parts[3]) ** 2 * 10 if law == "kept" else 1.0
        np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-10 * max(scale, 1.0), err_msg=law)


def test_positive_definite_forms_are_those_of_the_paper():
    random, matrix = draw(2, 3, 0.0)
    values, axes = np.linalg.eigh(matrix)
    root = (axes * np.sqrt(values)) @ axes.T
    x, angle = random.normal(size=2), 2.3
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    symmetry = sx.symmetry.QuadraticForm(jnp.asarray(matrix))
    there = symmetry.act(symmetry.exp(jnp.array([angle])), jnp.asarray(x))
    np.testing.assert_allclose(there, np.linalg.solve(root, turn @ root @ x), rtol=1e-12)
    map = sx.symmetry.Affine(jnp.asarray(root), jnp.zeros(2))
    other = sx.symmetry.Pullback(map)
    np.testing.assert_allclose(there, other.act(other.exp(jnp.array([angle])), jnp.asarray(x)), rtol=1e-12)


def test_a_boost_raises_the_gradient_and_leads_away_from_the_saddle():
    """x1^2 - 2 x2^2 at (1, 3), rapidity 1: the value is kept, gradient and distance grow."""
    form = jnp.diag(jnp.array([1.0, -2.0]))
    symmetry = sx.symmetry.QuadraticForm(form)
    x = jnp.array([1.0, 3.0])
    there = symmetry.act(symmetry.exp(jnp.array([-1.0])), x)
    root = np.sqrt(2.0)
    known = [np.cosh(1) + root * np.sinh(1) * 3, np.cosh(1) * 3 + np.sinh(1) / root]
    np.testing.assert_allclose(there, known, rtol=1e-14)
    assert (there @ form @ there).item() == pytest.approx(-17, rel=1e-14)
    norms = [np.linalg.norm(2 * np.diag([1.0, -2.0]) @ np.asarray(p)) for p in (x, there)]
    assert norms == pytest.approx([12.17, 25.45], abs=0.005)
    assert [np.linalg.norm(p) for p in (x, there)] == pytest.approx([3.16, 8.51], abs=0.005)


def test_verify_finds_it_exact_and_searches_are_bounded_where_there_are_boosts():
    _, indefinite = draw(3, 5, 0.5)
    symmetry = sx.symmetry.QuadraticForm(jnp.asarray(indefinite))
    report = sx.verify(
        lambda x, _: x @ jnp.asarray(indefinite) @ x, jnp.array([1.0, -2.0, 0.5]), symmetry, jax.random.key(0)
    )
    assert report.outcome == "exact", report
    far = jnp.array([300.0, -400.0, 50.0])
    turned = sx.symmetry.QuadraticForm(jnp.eye(3)).exp(
        sx.symmetry.QuadraticForm(jnp.eye(3)).bounded(far, 1.0)
    )
    np.testing.assert_allclose(turned @ turned.T, np.eye(3), atol=1e-12)
    long = jnp.array([3.0, -4.0, 0.5])
    np.testing.assert_array_equal(symmetry.bounded(long, 1.0), [1.0, -1.0, 0.5])
    definite = sx.symmetry.QuadraticForm(jnp.eye(3))
    np.testing.assert_array_equal(definite.bounded(long, 1.0), long)


def test_in_single_precision_and_for_traced_singular_matrices():
    symmetry = sx.symmetry.QuadraticForm(jnp.eye(2, dtype=jnp.float32))
    assert symmetry.act(symmetry.identity(), jnp.ones(2, jnp.float32)).dtype == jnp.float32
    assert symmetry.zero().dtype == symmetry.exp(jnp.zeros(1)).dtype == jnp.float32
    slope = jax.grad(lambda t: jnp.sum(symmetry.act(symmetry.exp(t), jnp.ones(2, jnp.float32))))
    assert np.isfinite(slope(jnp.array([500.0], jnp.float32)))
    holds = jax.jit(lambda m: sx.symmetry.QuadraticForm(m).holds(jnp.ones(2)).code)
    assert [int(holds(jnp.diag(jnp.array([1.0, second])))) for second in (2.0, 0.0)] == [0, 1]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([[1.0, 2.0, 3.0]], "`matrix` must be a square matrix"),
        ([[2.0]], "at least 2 x 2"),
        ([[1.0, 2.0], [0.0, 1.0]], "must be symmetric"),
        ([[1.0, 0.0], [0.0, 1e-17]], "singular to working precision"),
        ([[1.0, 0.0], [0.0, np.inf]], "not finite"),
    ],
)
def test_bad_matrices_are_rejected(matrix, message):
    with pytest.raises(ValueError, match=message):
        sx.symmetry.QuadraticForm(jnp.asarray(matrix))
