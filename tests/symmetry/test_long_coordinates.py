"""Elements at coordinates of any length, against NumPy's eigenvectors; and elements drawn at random."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import symmetrax as sx

LENGTHS = [0.0, 1.0, 19.0, 21.0, 200.0, 1e3, 1e5, 1e12, 1e30]


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield np.dtype(request.param)


def coordinates(group, length, dtype):
    drawn = np.random.default_rng(0).normal(size=group.algebra)
    return (drawn * (length / np.linalg.norm(drawn))).astype(dtype)


def rotation(x, n):
    """exp of the skew matrix with -x above its diagonal, from its eigenvectors."""
    upper = np.zeros((n, n))
    upper[np.triu_indices(n, 1)] = x
    values, vectors = np.linalg.eigh(1j * (upper.T - upper))
    return ((vectors * np.exp(-1j * values)) @ vectors.conj().T).real


@pytest.mark.parametrize(
    "group", [sx.groups.SpecialOrthogonal(3), sx.groups.Orthogonal(5), sx.groups.Orthogonal(4, fix="mean")]
)
def test_rotations_are_orthogonal_at_every_length_and_right_as_far_as_angles_are_certain(dtype, group):
    n, eps = group.size, float(jnp.finfo(dtype).eps)
    weights = jnp.arange(n * n, dtype=dtype).reshape(n, n)
    exp = jax.jit(lambda x: (group.exp(x), jax.grad(lambda y: jnp.sum(weights * group.exp(y)))(x)))
    longest = 0.9 * float(jnp.finfo(dtype).max) / group.algebra[0]
    for length in (*LENGTHS, longest):
        x = coordinates(group, length, dtype)
        q, slope = (np.asarray(a, float) for a in exp(x))
        assert np.max(np.abs(q.T @ q - np.eye(n))) < 20 * eps, length
        assert np.all(np.isfinite(slope)), length
        short = np.asarray(group.bounded(jnp.asarray(x), 1.0), float)
        assert np.linalg.norm(short) < min(20, max(length, 1e-30)) * (1 + 10 * eps)
        if group.algebra[0] == n * (n - 1) // 2 and length * eps < 1:
            np.testing.assert_allclose(q, rotation(np.asarray(x, float), n), atol=5 * max(length, 1) * eps)


def test_derivatives_of_long_rotations_equal_differences():
    with jax.enable_x64(True):
        group = sx.groups.SpecialOrthogonal(3)
        x, d = (jnp.asarray(coordinates(group, length, float)) for length in (300.0, 1e-5))

        @jax.jit
        def derivatives(x, d):
            batch = jnp.stack([x, 0 * x])  # one long, one short
            curved = jax.vmap(jax.hessian(lambda y: group.exp(y)[0, 1]))(batch)
            return jax.jvp(group.exp, (x,), (d,))[1], (group.exp(x + d) - group.exp(x - d)) / 2, curved

        one, two, curved = derivatives(x, d)
        np.testing.assert_allclose(one, two, atol=1e-13)
        assert jnp.all(jnp.isfinite(curved))


def test_what_long_coordinates_cost_stays_a_branch_under_vmap():
    group = sx.groups.SpecialOrthogonal(3)
    slope = jax.grad(lambda x: jnp.sum(group.exp(x)))
    for mapped, leading in (
        (group.exp, ()),
        (jax.vmap(group.exp), (2,)),
        (jax.vmap(jax.vmap(slope)), (2, 2)),
    ):
        assert "cond[" in str(jax.make_jaxpr(mapped)(jnp.ones((*leading, 3))))


@pytest.mark.parametrize("signs", [(-1, -1, -1), (1, 1, -1)])
def test_maps_that_keep_a_form_keep_it_or_are_not_finite(dtype, signs):
    form = sx.symmetry.QuadraticForm(jnp.diag(jnp.array([1.0, 2.0, 3.0]) * jnp.array(signs)).astype(dtype))
    exp = jax.jit(lambda at: form.exp(at))
    for length in LENGTHS:
        m = np.asarray(exp(coordinates(form, length, dtype)), float)
        if not np.all(np.isfinite(m)):
            assert len(set(signs)) == 2
            continue
        j = np.asarray(form.signature, float)
        gap = np.max(np.abs(m.T @ j @ m - j))
        if len(set(signs)) == 1:
            assert gap < 20 * jnp.finfo(dtype).eps, length
        else:
            assert gap <= 100 * jnp.finfo(dtype).eps * np.max(np.abs(m)) ** 2


def test_general_linear_elements_have_an_inverse_or_are_not_finite(dtype):
    exp = jax.jit(sx.groups.GeneralLinear(3).exp)
    turn = np.array([[0.0, 1, 2], [-1, 0, 3], [-2, -3, 0]]) / np.sqrt(28)
    finite = {}
    for name, direction in {"turn": turn, "scale": np.eye(3), "any": turn + np.diag([1, 0, -1])}.items():
        for length in LENGTHS:
            g, dual = (np.asarray(a, float) for a in exp((length * direction).astype(dtype)))
            finite[name, length] = np.all(np.isfinite(g)) and np.all(np.isfinite(dual))
            assert finite[name, length] or np.all(np.isnan([g, dual]))
            if finite[name, length]:
                assert np.max(np.abs(g.T @ dual - np.eye(3))) < 0.011
    assert all(finite["turn", length] for length in LENGTHS[:5])
    assert finite["scale", 21.0]
    assert not finite["scale", 1e3]
    assert not finite["any", 200.0]


PER = {"copy": 3}
SCALES = [
    sx.groups.PositiveDiagonal(n, per, dyadic)
    for n in (1, 2)
    for per in ({}, PER)
    for dyadic in (False, True)
]
OTHERS = [
    kind(n, PER)
    for kind in (sx.groups.NonzeroDiagonal, sx.groups.SignDiagonal, sx.groups.Orthogonal)
    for n in (1, 2)
]
OTHERS += [
    kind(2, PER) for kind in (sx.groups.Permutation, sx.groups.SpecialOrthogonal, sx.groups.GeneralLinear)
]
OTHERS += [
    sx.groups.SignDiagonal(1),
    sx.groups.Permutation(2),
    sx.groups.Permutation(3),
    sx.groups.Orthogonal(1),
    sx.groups.GeneralLinear(1),
]
OTHERS += [
    sx.groups.ScaledRotation(PER),
    sx.groups.ScaledRotation(PER, unit=True),
    sx.groups.Orthogonal(3, PER, fix="mean"),
]
DRAWN = [*SCALES, *OTHERS]


@pytest.mark.parametrize(
    "group", [pytest.param(g, marks=pytest.mark.slow if k % 3 else ()) for k, g in enumerate(DRAWN)], ids=str
)
def test_no_element_drawn_is_the_identity_in_any_copy(group):
    drawn = jax.vmap(group.sample)(jax.random.split(jax.random.key(1), 300))
    fixed = [
        np.asarray(x == e).reshape(300, *group.lengths, -1).all(-1)
        for x, e in zip(jax.tree.leaves(drawn), jax.tree.leaves(group.identity()), strict=True)
    ]
    assert not np.logical_and.reduce(fixed).any()


def test_of_one_unit_there_is_one_permutation_and_verify_says_that_nothing_moved():
    assert sx.groups.Permutation(1).sample(jax.random.key(0)).tolist() == [0]
    params = {"w1": jnp.ones((1, 2)), "w2": jnp.ones((3, 1))}
    symmetry = sx.models.mlp_symmetry(params, group=sx.groups.Permutation)
    report = sx.verify(lambda w, _: jnp.sum(w["w2"] @ w["w1"]), params, symmetry, jax.random.key(0), trials=1)
    assert report.outcome == "untested: nothing moved"
