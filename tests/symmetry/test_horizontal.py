"""The part of an update across the orbit, against a singular value decomposition of the orbit's tangents."""

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

import symmetrax as sx

from ..cases import mostly_slow

pytestmark = pytest.mark.usefixtures("quick_compilation")

project = eqx.filter_jit(sx.symmetry.project_horizontal)  # as one program: its parts are many small ones


def linear(*sizes, group=sx.groups.GeneralLinear):
    """A chain of matrices, with a group between each and the next."""
    names = [f"w{i}" for i in range(len(sizes) - 1)]
    shapes = {name: (b, a) for name, a, b in zip(names, sizes, sizes[1:], strict=False)}
    like = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    return sx.models.mlp_symmetry(like, names, group=group), shapes


def specs(spaces, texts, shapes):
    return sx.NetworkSymmetry(spaces, texts, like={k: jnp.zeros(s) for k, s in shapes.items()}), shapes


CASES = {
    "more units than the rank": lambda: linear(4, 3, 3),
    "rank above inputs and outputs": lambda: linear(3, 9, 2),
    "square": lambda: linear(5, 5, 5),
    "coupled": lambda: linear(4, 4, 4, 4),
    "scalings": lambda: linear(4, 5, 6, 2, group=sx.groups.PositiveDiagonal),
    "rotations": lambda: linear(4, 4, 3, group=sx.groups.Orthogonal),
    "signs": lambda: linear(4, 4, 3, group=sx.groups.SignDiagonal),
    "redundant": lambda: specs(
        {"h": sx.groups.PositiveDiagonal(3), "g": sx.groups.PositiveDiagonal(3)},
        {"a": "h&g _", "b": "_ h*&g*"},
        {"a": (3, 4), "b": (2, 3)},
    ),
    "heads": lambda: specs(
        {"e": sx.groups.GeneralLinear(3, per={"h": 2}), "z": sx.groups.ScaledRotation(per={"h": 2})},
        {"q": "(h e) _", "k": "(h e*) _", "v": "(h z) _", "o": "_ (h z*)"},
        {"q": (6, 4), "k": (6, 4), "v": (4, 4), "o": (4, 4)},
    ),
    "indexed": lambda: specs(
        {"h": sx.groups.PositiveDiagonal(3, per={"l": 3})},
        {"a": "h[0] _", "w": "l h[1:] h[:-1]*", "b": "_ h[2]*"},
        {"a": (3, 2), "w": (2, 3, 3), "b": (2, 3)},
    ),
}


def vector(tree):
    return np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(tree)])


@eqx.filter_jit
def _columns(symmetry, params):
    """The derivatives of the parameters in every coordinate, along a last axis."""
    return jax.jacfwd(lambda xi: symmetry.act(symmetry.exp(xi), params))(jnp.zeros(symmetry.algebra))


def tangents(symmetry, params):
    """An orthonormal basis of the orbit's tangent space, in double precision."""
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
        columns = _columns(symmetry, params)
        matrix = np.concatenate(
            [
                np.reshape(x, (w.size, x.shape[-1]))
                for x, w in zip(*map(jax.tree.leaves, (columns, params)), strict=True)
            ]
        )
    lengths = np.linalg.norm(matrix, axis=0)
    matrix = matrix[:, lengths > 0] / lengths[lengths > 0]
    left, values, _ = np.linalg.svd(matrix, full_matrices=False)
    return left[:, values > 1e-7 * max(values, default=0.0)]


def drawn(shapes, seed, dtype):
    random = np.random.default_rng(seed)
    return {name: jnp.asarray(random.normal(size=shape), dtype) for name, shape in shapes.items()}


def check(symmetry, params, update, flat, rounding):
    basis, given, found = tangents(symmetry, params), vector(update), vector(flat)
    size = np.linalg.norm(given)
    assert np.linalg.norm(basis.T @ found) <= rounding * size
    assert np.linalg.norm(found - (given - basis @ (basis.T @ given))) <= rounding * size


# All cases in double precision, where errors are plainest, and two in single.
PAIRS = [*((case, "float64") for case in CASES), ("heads", "float32"), ("scalings", "float32")]
PAIRS += [(case, "float32") for case in CASES if case not in ("heads", "scalings")]


@pytest.mark.parametrize(("case", "dtype"), mostly_slow(PAIRS, PAIRS[: len(CASES) + 2], unpack=True))
def test_nothing_is_left_along_the_orbit(case, dtype):
    """The least-squares projection, whether the tangents depend on each other or not."""
    with jax.enable_x64(dtype == "float64"):
        symmetry, shapes = CASES[case]()
        for seed in range(3):
            params, update = drawn(shapes, seed, dtype), drawn(shapes, seed + 50, dtype)
            if seed == 2:  # a dead unit
                name = next(iter(params))
                params[name] = params[name].at[..., 0, :].set(0.0)
            flat = project(symmetry, params, update)
            assert all(flat[k].dtype == dtype for k in flat)
            check(symmetry, params, update, flat, 64 * float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize("case", ["rank above inputs and outputs", "scalings", "rotations"])
def test_scales_of_parameters_and_updates_do_not_matter(case):
    symmetry, shapes = CASES[case]()
    params, update = drawn(shapes, 0, "float32"), drawn(shapes, 1, "float32")
    flat = project(symmetry, params, update)
    scaled = lambda tree, size: jax.tree.map(lambda x: x * size, tree)  # noqa: E731
    for size in (2.0**-66, 2.0**66):
        np.testing.assert_allclose(
            vector(project(symmetry, scaled(params, size), update)), vector(flat), atol=3e-6
        )
        np.testing.assert_allclose(
            vector(project(symmetry, params, scaled(update, size))) / size, vector(flat), atol=3e-6
        )
    assert not np.any(vector(project(symmetry, params, scaled(update, 0.0))))
    np.testing.assert_array_equal(vector(project(symmetry, scaled(params, 0.0), update)), vector(update))


def test_units_of_very_different_scales_are_projected_each():
    symmetry, shapes = CASES["scalings"]()
    params, update = drawn(shapes, 0, "float32"), drawn(shapes, 1, "float32")
    scales = {"hidden1": 10.0 ** jnp.linspace(-15, 15, 5), "hidden2": 10.0 ** jnp.linspace(10, -10, 6)}
    params = symmetry.act({**symmetry.identity(), **scales}, params)
    check(symmetry, params, update, project(symmetry, params, update), 1e-5)


def test_the_projection_is_mapped_and_differentiated(float64, central_differences):
    symmetry, shapes = CASES["rank above inputs and outputs"]()
    params, update = drawn(shapes, 0, "float64"), drawn(shapes, 1, "float64")
    pair, back = jax.flatten_util.ravel_pytree((params, update))
    weights = np.random.default_rng(2).normal(size=len(pair) // 2)

    @jax.jit
    def value(x):
        return jnp.vdot(
            weights, jax.flatten_util.ravel_pytree(sx.symmetry.project_horizontal(symmetry, *back(x)))[0]
        )

    differences = central_differences(lambda x: np.atleast_1d(value(x)), np.asarray(pair))[0]
    np.testing.assert_allclose(jax.jit(jax.grad(value))(pair), differences, atol=1e-7)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(value))(pair), differences, atol=1e-7)
    many = jax.tree.map(lambda x: jnp.stack([x, 2 * x + 1]), (params, update))
    mapped = jax.jit(jax.vmap(lambda w, u: sx.symmetry.project_horizontal(symmetry, w, u)))(*many)
    for k in range(2):
        alone = project(symmetry, *jax.tree.map(lambda x: x[k], many))  # noqa: B023
        np.testing.assert_allclose(vector(jax.tree.map(lambda x: x[k], mapped)), vector(alone), atol=1e-11)  # noqa: B023


def test_complex_arrays_are_pairs_of_real_ones(float64):
    """Real scalings of complex arrays: a row's part along itself, by the real part of the pairing, goes."""
    random = np.random.default_rng(0)
    a, b, u, v = (random.normal(size=(3, 2)) + 1j * random.normal(size=(3, 2)) for _ in range(4))
    params, update = (
        {"a": jnp.asarray(a), "b": jnp.asarray(b.T)},
        {"a": jnp.asarray(u), "b": jnp.asarray(v.T)},
    )
    symmetry = sx.NetworkSymmetry(
        {"h": sx.groups.PositiveDiagonal(3)}, {"a": "h _", "b": "_ h*"}, like=params
    )
    flat = project(symmetry, params, update)
    along = np.sum((np.conj(a) * u).real - (np.conj(b) * v).real, 1) / np.sum(abs(a) ** 2 + abs(b) ** 2, 1)
    np.testing.assert_allclose(flat["a"], u - along[:, None] * a, atol=1e-13)
    np.testing.assert_allclose(flat["b"], (v + along[:, None] * b).T, atol=1e-13)
    np.testing.assert_allclose(
        sx.symmetry.conserved_quantities(symmetry, params)["h"],
        np.sum(abs(a) ** 2, 1) - np.sum(abs(b) ** 2, 1),
        rtol=1e-13,
    )
    curve = sx.symmetry.orbit_curve(symmetry, jnp.ones(3), params, points=3)
    np.testing.assert_allclose(curve["a"][1], np.exp(0.5) * a, rtol=1e-12)


def test_models_with_functions_in_them_and_filtered_updates_are_taken():
    model = eqx.nn.MLP(2, 2, 3, 1, activation=jax.nn.relu, key=jax.random.key(0))
    symmetry = sx.models.mlp_symmetry(model)
    grads = eqx.filter_grad(lambda m: jnp.sum(m(jnp.ones(2)) ** 2))(model)
    flat = project(symmetry, model, grads)
    np.testing.assert_allclose(
        flat.layers[0].weight, grads.layers[0].weight, atol=1e-6
    )  # a gradient is across
    curve = sx.symmetry.orbit_curve(symmetry, jnp.ones(symmetry.algebra), model, points=2)
    assert curve.activation is model.activation
    with pytest.raises(ValueError, match=r"weight is \(3, 2\) in the parameters and nothing in the update"):
        sx.symmetry.project_horizontal(
            symmetry, model, eqx.tree_at(lambda m: m.layers[0].weight, grads, None)
        )


def test_low_precision_is_computed_in_single():
    symmetry, shapes = CASES["scalings"]()
    params, update = drawn(shapes, 0, "float16"), drawn(shapes, 1, "bfloat16")
    flat = project(symmetry, params, update)
    assert all(x.dtype == "bfloat16" for x in flat.values())
    check(symmetry, params, update, flat, 2 * float(jnp.finfo("bfloat16").eps))
    large = {name: x * 100 for name, x in params.items()}
    exact = sx.symmetry.conserved_quantities(symmetry, jax.tree.map(lambda x: x.astype("float32"), large))
    for name, moment in sx.symmetry.conserved_quantities(symmetry, large).items():
        assert moment.dtype == "float32"
        np.testing.assert_array_equal(moment, exact[name])


def test_indexed_entries_are_conserved_as_their_layers_written_apart_are():
    symmetry, shapes = CASES["indexed"]()
    params = drawn(shapes, 0, "float32")
    a, w, b = params["a"], params["w"], params["b"]
    rows, columns = (lambda x: np.sum(np.square(x), 1)), (lambda x: np.sum(np.square(x), 0))
    by_hand = [rows(a) - columns(w[0]), rows(w[0]) - columns(w[1]), rows(w[1]) - columns(b)]
    np.testing.assert_allclose(sx.symmetry.conserved_quantities(symmetry, params)["h"], by_hand, rtol=1e-5)


def test_moments_that_are_too_large_are_infinite_and_differences_of_equals_zero():
    symmetry = sx.models.mlp_symmetry({"w1": jnp.ones((3, 2)), "w2": jnp.ones((2, 3))}, ["w1", "w2"])
    w1 = jnp.array([[1e30, 1e30], [1e30, 2e30], [1.0, 2.0]])
    found = sx.symmetry.conserved_quantities(
        symmetry, {"w1": w1, "w2": jnp.array([[1e30, 1e30, 1.0], [1e30, 1e30, 1.0]])}
    )
    assert found["hidden1"].tolist() == [0.0, np.inf, 3.0]
