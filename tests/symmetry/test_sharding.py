"""Meshes with explicit axes: split arrays move as whole ones do, and stay split."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import symmetrax as sx

pytestmark = pytest.mark.usefixtures("quick_compilation")
GROUPS = (
    sx.groups.PositiveDiagonal,
    sx.groups.SignDiagonal,
    sx.groups.Permutation,
    sx.groups.GeneralLinear,
    sx.groups.Orthogonal,
)

SHAPES = {"merged": (8, 6), "bias": (8,), "sum": (2, 12), "heads": (4, 2, 4)}
SPECS = {"merged": "(2 h) _", "bias": "(h _)", "sum": "_ h*+4+h*", "heads": "_ _ h*"}


def split(tree, axis):
    """Every array split over two devices along one of its axes."""
    mesh = jax.make_mesh((2,), ("x",))

    def put(x):
        spec = PartitionSpec(*("x" if k == axis % x.ndim else None for k in range(x.ndim)))
        return jax.device_put(x, NamedSharding(mesh, spec))

    return jax.tree.map(put, tree)


def network(group):
    random = np.random.default_rng(0)
    params = {name: jnp.asarray(random.normal(size=shape), "float32") for name, shape in SHAPES.items()}
    return sx.NetworkSymmetry({"h": group(4)}, SPECS, like=params), params


# The axis that the group moves, and the other one; all pairs under `make test-slow`.
@pytest.mark.parametrize("axis", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("group", GROUPS)
def test_split_arrays_move_as_whole_ones_and_stay_split(group, axis):
    symmetry, params = network(group)
    element, placed = symmetry.sample(jax.random.key(0)), split(params, axis)
    expected = symmetry.act(element, params), symmetry.transport_gradient(element, params, params)
    eager = symmetry.act(element, placed), symmetry.transport_gradient(element, placed, placed)
    compiled = jax.jit(lambda a, w: (symmetry.act(a, w), symmetry.transport_gradient(a, w, w)))(
        element, placed
    )
    for found in (eager, compiled):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), found, expected)
        assert all(x.sharding == placed[name].sharding for tree in found for name, x in tree.items())


@pytest.mark.parametrize("axis", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_split_arrays_are_projected_measured_matched_and_verified(axis):
    symmetry, params = network(sx.groups.GeneralLinear)
    placed = split(params, axis)
    update = jax.tree.map(lambda x: jnp.cos(x), params)
    project = jax.jit(lambda w, u: sx.symmetry.project_horizontal(symmetry, w, u))
    flat, expected = project(placed, split(update, axis)), project(params, update)
    for name in params:
        np.testing.assert_allclose(flat[name], expected[name], atol=2e-5)
        assert flat[name].sharding == placed[name].sharding
    moments = jax.jit(lambda w: sx.symmetry.conserved_quantities(symmetry, w)["h"])
    np.testing.assert_allclose(moments(placed), moments(params), rtol=1e-4, atol=1e-5)
    curve = sx.symmetry.orbit_curve(symmetry, 0.1 * jnp.ones(symmetry.algebra), placed, points=2)
    np.testing.assert_allclose(curve["merged"][0], params["merged"], rtol=1e-6)

    swaps, params = network(sx.groups.Permutation)
    element = swaps.sample(jax.random.key(1))
    back = sx.weight_matching(swaps, swaps.act(element, split(params, axis)), split(params, axis)).element
    np.testing.assert_array_equal(back["h"], swaps.inverse(element)["h"])
    loss = lambda w, _: sum(jnp.sum(jnp.abs(x) ** 3) for x in jax.tree.leaves(w))  # noqa: E731
    assert sx.verify(loss, split(params, axis), swaps, jax.random.key(2), trials=2).outcome == "exact"
