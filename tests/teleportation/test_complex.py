"""Complex parameters: everything that moves them, against the same network written with their real parts."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import symmetrax as sx

from ..cases import mostly_slow

pytestmark = pytest.mark.usefixtures("quick_compilation")

X = jnp.array([[1.0, 2.0], [-1.0, 0.5], [0.3, 1.0]])
Z = {"w1": jnp.array([[1 + 2j, -1j], [0.5, 2 - 1j]]), "w2": jnp.array([[1j, 3.0], [1 - 1j, 1.0]])}


def loss(w, x):
    return jnp.sum(jnp.abs(x @ w["w1"].T @ w["w2"].T - 1) ** 2)


def parts(z):
    return {name: jnp.stack([leaf.real, leaf.imag]) for name, leaf in z.items()}


def loss_of_parts(p, x):
    return loss({name: leaf[0] + 1j * leaf[1] for name, leaf in p.items()}, x)


def both():
    """The arguments of `teleport`, in complex numbers and in pairs of real ones."""
    symmetry = sx.models.mlp_symmetry(Z, ["w1", "w2"])
    specs = {name: "_ " + text for name, text in symmetry.specs.items()}
    return (loss, Z, symmetry), (
        loss_of_parts,
        parts(Z),
        sx.NetworkSymmetry(symmetry.spaces, specs, parts(Z)),
    )


OBJECTIVES = [
    sx.objectives.GradientNorm(),
    sx.objectives.NegativeParameterNorm(),
    sx.objectives.negate(sx.objectives.GradientNorm()),
    sx.objectives.GuaranteedDecrease(),
]


@pytest.mark.parametrize(
    "objective",
    [
        OBJECTIVES[0],
        OBJECTIVES[1],
        pytest.param(OBJECTIVES[2], marks=pytest.mark.slow),
        pytest.param(OBJECTIVES[3], marks=pytest.mark.slow),
    ],
    ids=lambda objective: type(objective).__name__,
)
def test_teleports_of_complex_parameters_are_those_of_their_parts(objective):
    searches = [sx.search.Ascent(3, 0.1, normalized=True), sx.search.Random(jax.random.key(0), samples=4)]
    if not isinstance(objective, sx.objectives.GuaranteedDecrease):
        searches.append(sx.search.ClosedForm())
    for search in searches:
        (there, one), (twin, other) = (
            sx.teleport(*row, batch=X, objective=objective, search=search) for row in both()
        )
        np.testing.assert_allclose(one.algebra, other.algebra, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(one.after, other.after, rtol=1e-4)
        assert one.outcome == other.outcome == 0
        for name, leaf in parts(there).items():
            np.testing.assert_allclose(leaf, twin[name], rtol=1e-4, atol=1e-5)


def test_searches_without_a_group_move_complex_parameters():
    one, other = (sx.teleport(*row[:2], batch=X, search=sx.search.LevelSet(steps=3)) for row in both())
    for name, leaf in parts(one[0]).items():
        np.testing.assert_allclose(leaf, other[0][name], rtol=1e-3, atol=1e-3)
    free = sx.search.NullSpace(lambda p, x: {"w2": x @ p["w1"].T}, steps=3)
    there, info = sx.teleport(loss, Z, batch=X[:1], search=free)
    assert info.outcome == 0
    assert info.after > info.before
    np.testing.assert_allclose(loss(there, X[:1]), loss(Z, X[:1]), rtol=1e-5)


A, B = jnp.array([[1.0, 0.2], [0.3, 2.0]]), jnp.array([1.0, -1.0])
M = jnp.array([[2.0, 0.3], [0.3, 1.0]])
PLANE = {
    "pullback": (
        sx.symmetry.Pullback(sx.symmetry.Affine(A, B)),
        lambda z, _: jnp.sum(jnp.abs(A @ z + B) ** 2),
    ),
    "quadratic form": (sx.symmetry.QuadraticForm(M), lambda z, _: jnp.real(jnp.conj(z) @ M @ z)),
}


@pytest.mark.parametrize("name", mostly_slow(PLANE, ["pullback"]))
def test_real_rotations_keep_complex_points_on_the_level_set(name):
    symmetry, loss = PLANE[name]
    z = jnp.array([1 + 2j, 0.5 - 1j])
    assert sx.verify(loss, z, symmetry, jax.random.key(0), tolerance=1e-5).outcome == "exact"
    there, info = sx.teleport(loss, z, symmetry)
    assert there.dtype == z.dtype
    assert info.outcome == 0
    assert info.after > 1.01 * info.before


def bend(z):
    """A function of complex numbers that is neither linear nor analytic."""
    return z * jnp.exp(1j * jnp.abs(z) / 3) + 0.3 * jnp.conj(z)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("samples", mostly_slow([4, 5, 7], ["4", "7"]))
def test_complex_layers_are_refitted_with_the_adjoint(samples):
    def draw(seed, *shape):
        parts = jax.random.normal(jax.random.key(seed), (2, *shape))
        return 0.3 * (parts[0] + 1j * parts[1])

    params, x = {"v": draw(1, 5, 9), "u": draw(2, 2, 5)}, draw(3, samples, 9)
    found = []
    for solver in ("qr", "svd", "gram"):
        symmetry = sx.symmetry.ActivationGL(weights=("v", "u"), sizes=(5,), activation=bend, solver=solver)
        element = symmetry.exp(0.1 * jax.random.normal(jax.random.key(4), symmetry.algebra))

        @eqx.filter_jit
        def moved_and_back(p, symmetry, element):
            moved, transport_gradient = jax.vjp(lambda p: symmetry.act(element, p, x), p)
            return moved, transport_gradient(jax.tree.map(jnp.ones_like, moved))

        moved, gradient = moved_and_back(params, symmetry, element)
        found.append((moved, gradient))
        if samples <= 5:
            here, there = (bend(x @ p["v"].T) @ p["u"].T for p in (params, moved))
            np.testing.assert_allclose(there, here, rtol=1e-9)
    for other in found[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8), found[0], other)
