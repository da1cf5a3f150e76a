"""Orbits as geometry, matching of units, and what is independent of the gauge."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import symmetrax as sx

from ..cases import mostly_slow

pytestmark = pytest.mark.usefixtures("quick_compilation", "float64")


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


X, Y = np.random.default_rng(8).normal(size=(12, 4)), np.random.default_rng(9).normal(size=(12, 2))


def relu_net(params, _=None):
    return jnp.mean((jax.nn.relu(X @ params["w1"].T + params["b1"]) @ params["w2"].T - Y) ** 2)


def product(params, _=None):
    return jnp.mean((X @ (params["w2"] @ params["w1"]).T - Y) ** 2)


@pytest.fixture
def params(float64):
    return {"w1": normal(1, 3, 4), "b1": normal(2, 3), "w2": normal(3, 2, 3)}


@pytest.fixture
def pair(float64):
    return {"w1": normal(1, 3, 4), "w2": normal(3, 2, 3)}


@pytest.mark.parametrize("net", ["relu", "linear"])
def test_the_loss_is_constant_along_an_orbit_curve(params, pair, net):
    loss, tree, group = (
        (relu_net, params, sx.groups.PositiveDiagonal)
        if net == "relu"
        else (product, pair, sx.groups.GeneralLinear)
    )
    symmetry = sx.models.mlp_symmetry(tree, ["w1", "w2"], group=group)
    curve = sx.symmetry.orbit_curve(symmetry, 0.7 * normal(4, *symmetry.algebra), tree, points=7)
    losses = jax.vmap(loss)(curve)
    np.testing.assert_allclose(losses, losses[0], rtol=1e-10)
    assert np.all(np.diff(curve["w1"], axis=0).reshape(6, -1).any(axis=1))  # every step moves
    np.testing.assert_array_equal(curve["w1"][0], tree["w1"])


def test_two_minima_of_one_orbit_are_joined_by_the_curve(pair):
    symmetry = sx.models.mlp_symmetry(pair, ["w1", "w2"], group=sx.groups.GeneralLinear)
    other = symmetry.act(symmetry.exp(jnp.ones(9) * 0.3), pair)
    curve = sx.symmetry.orbit_curve(symmetry, jnp.ones(9) * 0.3, pair, points=3)
    np.testing.assert_allclose(curve["w1"][-1], other["w1"], rtol=1e-12)


@pytest.mark.parametrize("net", mostly_slow(["relu", "linear"], ["linear"]))
def test_a_horizontal_update_has_no_part_along_the_orbit(params, pair, net):
    loss, tree, group = (
        (relu_net, params, sx.groups.PositiveDiagonal)
        if net == "relu"
        else (product, pair, sx.groups.GeneralLinear)
    )
    symmetry = sx.models.mlp_symmetry(tree, ["w1", "w2"], group=group)
    update = jax.tree.map(lambda x: normal(x.size, *x.shape), tree)
    flat = sx.symmetry.project_horizontal(symmetry, tree, update)
    # The tangent space, column by column, by central differences of the action itself.
    step, columns = 1e-5, []
    for direction in np.eye(*symmetry.algebra):
        ends = [symmetry.act(symmetry.exp(sign * step * jnp.asarray(direction)), tree) for sign in (1, -1)]
        columns.append(
            np.concatenate([np.ravel(a - b) for a, b in zip(*map(jax.tree.leaves, ends), strict=True)])
        )
    tangents = np.array(columns) / (2 * step)
    vector = np.concatenate([np.ravel(x) for x in jax.tree.leaves(flat)])
    q = np.linalg.qr(tangents.T)[0]
    assert np.linalg.norm(q.T @ vector) < 1e-8 * np.linalg.norm(vector)  # differences are good to 1e-10
    again = sx.symmetry.project_horizontal(symmetry, tree, flat)
    assert max(np.max(np.abs(again[k] - flat[k])) for k in flat) < 1e-12
    # A gradient has no such part: the loss does not change along the orbit.
    gradient = jax.grad(loss)(tree)
    same = sx.symmetry.project_horizontal(symmetry, tree, gradient)
    assert max(np.max(np.abs(same[k] - gradient[k])) for k in gradient) < 1e-12


def test_gradient_flow_conserves_the_moments_and_descent_drifts_with_the_square_of_its_step(params, pair):
    for loss, tree, group in (
        (relu_net, params, sx.groups.PositiveDiagonal),
        (product, pair, sx.groups.GeneralLinear),
    ):
        symmetry = sx.models.mlp_symmetry(tree, ["w1", "w2"], group=group)
        before = sx.symmetry.conserved_quantities(symmetry, tree)["hidden1"]
        if group is sx.groups.GeneralLinear:
            by_hand = tree["w1"] @ tree["w1"].T - tree["w2"].T @ tree["w2"]
        else:
            by_hand = np.sum(tree["w1"] ** 2, 1) + tree["b1"] ** 2 - np.sum(tree["w2"] ** 2, 0)
        np.testing.assert_allclose(before, by_hand, rtol=1e-13)
        gradient = jax.jit(jax.grad(loss))
        drifts = []
        for rate in (1e-3, 1e-4):
            moved = jax.tree.map(lambda w, g: w - rate * g, tree, gradient(tree))  # noqa: B023
            drifts.append(
                np.max(np.abs(sx.symmetry.conserved_quantities(symmetry, moved)["hidden1"] - before))
            )
        assert drifts[0] / drifts[1] == pytest.approx(100, rel=1e-3)  # one step: the square of the rate
        element = symmetry.sample(jax.random.key(1))
        jumped = sx.symmetry.conserved_quantities(symmetry, symmetry.act(element, tree))["hidden1"]
        assert np.max(np.abs(jumped - before)) > 0.1


def test_squared_relu_conserves_its_own_charge():
    """Three homogeneous degrees: w1 counts once, w2 with -2; integrated by small steps."""
    tree = {"w1": normal(1, 3, 4), "w2": 0.3 * normal(3, 2, 3)}
    symmetry = sx.models.mlp_symmetry(tree, ["w1", "w2"], degree=2)
    loss = lambda w: jnp.mean((jax.nn.relu(X @ w["w1"].T) ** 2 @ w["w2"].T - Y) ** 2)  # noqa: E731
    np.testing.assert_allclose(
        sx.symmetry.conserved_quantities(symmetry, tree)["hidden1"],
        np.sum(tree["w1"] ** 2, 1) - 2 * np.sum(tree["w2"] ** 2, 0),
    )
    gradient = jax.grad(loss)(tree)
    rate = jnp.sum(tree["w1"] * gradient["w1"], 1) - 2 * jnp.sum(tree["w2"] * gradient["w2"], 0)
    assert np.max(np.abs(rate)) < 1e-12 * np.max(np.abs(gradient["w1"]))


def test_a_permuted_copy_is_recovered_exactly():
    """B09: two hidden layers and attention heads, from 20 random permutations each."""
    deep = {"w1": normal(1, 7, 4), "w2": normal(2, 6, 7), "w3": normal(3, 2, 6)}
    mlp = sx.models.mlp_symmetry(deep, ["w1", "w2", "w3"], group=sx.groups.Permutation)
    heads = {name: normal(seed, *shape) for seed, (name, shape) in enumerate(HEADS.items())}
    specs = {"q": "(h _) _", "k": "(h _) _", "v": "(h _) _", "o": "_ (h _)"}
    swap = sx.NetworkSymmetry({"h": sx.groups.Permutation(3)}, specs, heads)
    for symmetry, tree in ((mlp, deep), (swap, heads)):
        for seed in range(20):
            copy = symmetry.act(symmetry.sample(jax.random.key(seed)), tree)
            back = symmetry.act(sx.weight_matching(symmetry, copy, tree).element, copy)
            assert all(np.array_equal(back[name], tree[name]) for name in tree)
    noisy = jax.tree.map(lambda x: x + 0.05 * normal(77, *x.shape), copy)
    near = swap.act(sx.weight_matching(swap, noisy, heads).element, noisy)
    assert max(np.max(np.abs(near[name] - heads[name])) for name in heads) < 0.3


HEADS = {"q": (12, 5), "k": (12, 5), "v": (12, 5), "o": (5, 12)}


def test_matching_units_needs_permutations(pair):
    with pytest.raises(ValueError, match="'hidden1' has the group PositiveDiagonal"):
        sx.weight_matching(sx.models.mlp_symmetry(pair, ["w1", "w2"]), pair, pair)


def test_a_step_from_the_balanced_point_does_not_depend_on_the_gauge():
    """B14: the product w2 w1 after one step, from 20 points of one orbit; AdamW fails the same test."""
    pair = {"w1": normal(1, 2, 4), "w2": normal(3, 2, 2)}  # full rank, so that there is a least norm
    symmetry = sx.models.mlp_symmetry(pair, ["w1", "w2"], group=sx.groups.GeneralLinear)
    balanced = sx.teleported(
        optax.sgd(0.1),
        symmetry,
        objective=sx.objectives.NegativeParameterNorm(),
        search=sx.search.ClosedForm(bound=20.0, ridge=0.0),
    )

    def products(optimizer):
        @jax.jit
        def step(w):
            updates, _ = optimizer.update(jax.grad(product)(w), optimizer.init(w), w, value_fn=product)
            moved = optax.apply_updates(w, updates)
            return moved["w2"] @ moved["w1"]

        starts = [symmetry.act(symmetry.sample(key), pair) for key in jax.random.split(jax.random.key(0), 20)]
        return np.array([step(w) for w in starts])

    ours, adamw = products(balanced), products(optax.with_extra_args_support(optax.adamw(0.1)))
    assert np.max(np.abs(ours - ours[0])) < 1e-6
    assert np.max(np.abs(adamw - adamw[0])) > 1e-2
    assert np.max(np.abs(ours[0] - pair["w2"] @ pair["w1"])) > 1e-3  # it moved


def test_the_scale_before_a_normalization_is_a_learning_rate():
    """B12: the gradient goes with 1 / s and is orthogonal to the weights; epsilon's part is measured."""

    def net(params, eps):
        z = X @ params["w"].T
        z = z / jnp.sqrt(jnp.mean(z**2, axis=-1, keepdims=True) + eps)
        return jnp.mean((z @ params["head"].T - Y) ** 2)

    params = {"w": normal(1, 5, 4), "head": normal(2, 2, 5)}
    symmetry = sx.models.normalized_scale_symmetry(params, ["w"])
    scaled = symmetry.act(symmetry.exp(jnp.log(jnp.array([3.0]))), params)
    here, there = (jax.grad(net)(w, 0.0) for w in (params, scaled))
    np.testing.assert_allclose(there["w"], here["w"] / 3, rtol=1e-10)
    assert abs(float(jnp.vdot(params["w"], here["w"]))) < 1e-10
    outcomes = []
    for eps, low, high in ((1e-5, 1e-8, 1e-4), (1e-3, 1e-6, 1e-2)):
        report = sx.verify(lambda w, _: net(w, eps), params, symmetry, jax.random.key(0), trials=4)  # noqa: B023
        assert low < report.invariance < high
        assert report.outcome == ("approximate" if report.invariance <= 1e-3 else "wrong")
        outcomes.append(report.outcome)
    assert outcomes[0] == "approximate"
