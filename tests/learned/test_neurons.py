"""What runs on networks of any size: the per-neuron and the step-size network, against NumPy and autodiff."""

import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import symmetrax as sx

# What the network sees of a unit, before any weight.
from symmetrax.learned._neurons import FEATURES, unit_features, unit_sums
from symmetrax.learned._step import step_features
from symmetrax.tasks._data import Images

from .. import zoo
from ..cases import mostly_slow

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)
SIZES = (4, 5, 3, 2)


def normal(seed, *shape, dtype=float):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def perceptron(sizes, seed, dtype=float):
    """Parameters as a plain dict, and the symmetry of a ReLU network of these sizes."""
    params = {}
    for layer, (into, out) in enumerate(itertools.pairwise(sizes), start=1):
        params[f"w{layer}"] = normal(10 * seed + layer, out, into, dtype=dtype)
        params[f"b{layer}"] = normal(10 * seed + layer + 5, out, dtype=dtype)
    matrices = [name for name in params if name[0] == "w"]
    return params, sx.models.mlp_symmetry(params, matrices, [name.replace("w", "b") for name in matrices])


def untame(network, seed=3):
    """The network with a head that is not zero."""
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + 0.5 * random.normal(size=x.shape).astype(x.dtype), network)


@functools.cache
def neurons():
    """An untrained per-neuron network."""
    return sx.learned.PerNeuronLSTM(width=6, key=KEY)


def info(params, gradient, symmetry=None, previous=None):
    return sx.learned.Observation(
        gradient, params, params if previous is None else previous, None, None, symmetry
    )


# The per-neuron network.

ROWS = (
    "relu",
    "squared relu",
    "equinox MLP, scanned",
    "residual CNN, flattened",
    "gated by relu",
    "BatchNorm with statistics",
    "mixture, inside experts",
)


@pytest.mark.parametrize("name", mostly_slow(ROWS, set(ROWS) - {"residual CNN, flattened", "relu"}))
def test_the_slope_of_every_unit_is_that_of_the_squared_gradient_norm(float64, name):
    """No second backward pass, and yet what autodiff finds through the loss: powers, slices, channels."""
    row = zoo.row(name)
    params, batch = row.params(), row.batch(0)
    symmetry = row.symmetry(params)
    arrays, rest = eqx.partition(params, eqx.is_inexact_array)

    def squared_norm(t):
        moved = symmetry.act(symmetry.exp(t), arrays)
        gradient = jax.grad(lambda w: row.loss(eqx.combine(w, rest), batch))(moved)
        return sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient)), gradient

    expected, gradient = jax.jit(jax.grad(squared_norm, has_aux=True))(symmetry.zero())
    sums = unit_sums(symmetry, arrays, gradient)
    found = symmetry.join({space: one.slope for space, one in sums.items()})
    assert np.max(np.abs(expected)) > 1e-4
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9 * np.max(np.abs(expected)))


def features_by_hand(params, gradient, layers):
    """All features in NumPy, for a perceptron with biases."""
    units = []
    for k in range(1, layers):
        w = {"in": np.c_[params[f"w{k}"], params[f"b{k}"]], "out": params[f"w{k + 1}"].T}
        g = {"in": np.c_[gradient[f"w{k}"], gradient[f"b{k}"]], "out": gradient[f"w{k + 1}"].T}
        norms = {(n, side): np.linalg.norm(t[side], axis=1) for n, t in (("w", w), ("g", g)) for side in t}
        inner = {side: np.sum(w[side] * g[side], axis=1) for side in w}
        units.append((norms, inner))
    energy = [2 * (n["g", "in"] ** 2 + n["g", "out"] ** 2) for n, _ in units]
    mean = np.mean(np.concatenate(energy))
    columns = []
    for (n, inner), both in zip(units, energy, strict=True):
        slope = 2 * (n["g", "out"] ** 2 - n["g", "in"] ** 2)
        rows = [
            np.log(n[key] / np.sqrt(np.mean(n[key] ** 2)))
            for key in (("w", "in"), ("w", "out"), ("g", "in"), ("g", "out"))
        ]
        rows += [np.log(n[name, "out"] / n[name, "in"]) for name in "wg"]
        rows += [0.5 * np.log(np.mean(both) / mean) + 0 * slope]
        rows += [inner[side] / (n["w", side] * n["g", side]) for side in ("in", "out")]
        rows += [slope / both, slope / np.sqrt(slope**2 + mean**2)]
        rows += [np.mean(rows[i]) + 0 * slope for i in (4, 5, 9)]
        columns.append(np.array(rows))
    return np.concatenate(columns, axis=1)


def test_features_equal_numpy_and_have_no_scale(float64):
    params, symmetry = perceptron(SIZES, 1)
    gradient = perceptron(SIZES, 2)[0]
    found = jax.jit(lambda w, g: unit_features(symmetry, w, g))
    expected = features_by_hand(params, gradient, 3)
    assert expected.shape == (len(FEATURES), 8)
    np.testing.assert_allclose(found(params, gradient), expected, rtol=0, atol=1e-8)
    times = lambda c, tree: jax.tree.map(lambda x: c * x, tree)  # noqa: E731
    np.testing.assert_allclose(found(times(1e5, params), times(1e-30, gradient)), expected, atol=1e-8)


def test_features_and_their_derivatives_are_finite_where_all_is_zero():
    params, symmetry = perceptron(SIZES, 1, np.float32)
    features = lambda w, g: unit_features(symmetry, w, g)  # noqa: E731
    both = jax.jit(lambda w, g: (features(w, g), jax.jacrev(features, argnums=(0, 1))(w, g)))
    zeros = jax.tree.map(np.zeros_like, params)
    dead = {**params, "w1": params["w1"] * np.array([[1], [0], [1], [1], [0]], np.float32)}
    for w, g in ((params, zeros), (zeros, params), (zeros, zeros), (dead, dead)):
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(both(w, g)))


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (np.float64, 1e-12)])
def test_permuted_units_get_permuted_coordinates(dtype, tolerance):
    """E29, over two steps, so that the memory of every unit goes along with it."""
    with jax.enable_x64(dtype == np.float64):
        network = untame(sx.learned.PerNeuronLSTM(width=6, key=KEY))
        params, symmetry = perceptron(SIZES, 1, dtype)
        steps = [perceptron(SIZES, seed, dtype)[0] for seed in (2, 3)]
        orders = (np.array([3, 0, 4, 1, 2]), np.array([2, 0, 1]))

        def permuted(tree):
            one, two = orders
            return {
                **tree,
                "w1": tree["w1"][one],
                "b1": tree["b1"][one],
                "w2": tree["w2"][two][:, one],
                "b2": tree["b2"][two],
                "w3": tree["w3"][:, two],
            }

        def run(params, gradients):
            memory, found = network.memory(params, symmetry), []
            for gradient in gradients:
                move, memory = network.propose(info(params, gradient, symmetry), memory)
                found.append(move.algebra)
            return jnp.stack(found)

        run = jax.jit(run)
        found, other = run(params, steps), run(permuted(params), [permuted(g) for g in steps])
        order = np.concatenate([orders[0], 5 + orders[1]])
        assert found.dtype == dtype
        assert np.min(np.abs(found - found[:, order]).max(axis=1)) > 1e-3  # the units differ
        np.testing.assert_allclose(other, found[:, order], rtol=0, atol=tolerance)


def test_an_untrained_network_stays_and_a_trained_one_stays_in_reach():
    params, symmetry = perceptron(SIZES, 1, np.float32)
    network = sx.learned.PerNeuronLSTM(width=6, bound=0.01, key=KEY)
    seen, memory = info(params, params, symmetry), network.memory(params, symmetry)
    propose = jax.jit(lambda network: network.propose(seen, memory)[0].algebra)
    np.testing.assert_array_equal(propose(network), np.zeros(8))
    largest = np.max(np.abs(propose(jax.tree.map(lambda x: 1e3 * x, untame(network)))))
    assert 0.009 < largest <= np.float32(0.01)


def test_other_spaces_stay_as_they_are():
    params = {"q": normal(0, 3, 4), "k": normal(1, 3, 4), "up": normal(2, 5, 4), "down": normal(3, 2, 5)}
    specs = {"q": "r _", "k": "r* _", "up": "h _", "down": "_ h*"}
    groups = {"r": sx.groups.GeneralLinear(3), "h": sx.groups.PositiveDiagonal(5)}
    symmetry = sx.NetworkSymmetry(groups, specs, params)
    network = untame(neurons())
    memory = network.memory(params, symmetry)
    move, memory = eqx.filter_jit(network.propose)(info(params, params, symmetry), memory)
    parts = symmetry.split(move.algebra)
    np.testing.assert_array_equal(parts["r"], np.zeros((3, 3)))
    assert np.all(parts["h"] != 0)
    assert memory[0][0].shape == (6, 5)


def test_what_has_no_units_to_scale_is_rejected():
    network = neurons()
    params = {"w1": np.ones((3, 4)), "w2": np.ones((2, 3))}
    signs = sx.models.mlp_symmetry(params, group=sx.groups.SignDiagonal)
    for symmetry, found in (
        (None, "got none"),
        (sx.tasks.booth().symmetry(), "got a "),
        (signs, r"SignDiagonal\(3\)"),
    ):
        with pytest.raises(ValueError, match=f"needs a NetworkSymmetry.*{found}.*mlp_symmetry"):
            network.memory(params, symmetry)
    with pytest.raises(ValueError, match=r"positive bound, got width=20, depth=2, bound=-1\.0"):
        sx.learned.PerNeuronLSTM(bound=-1.0, key=KEY)
    optimizer = network.transform(sx.models.mlp_symmetry(params), sx.UpdateRule(guard=None))
    with pytest.raises(ValueError, match=r"emits no step.*Joint"):
        jax.eval_shape(optimizer.update, params, jax.eval_shape(optimizer.init, params), params)


# Both networks with tasks as the last axis.


def test_tasks_as_the_last_axis_are_tasks_apart():
    together = sx.learned.Joint((untame(neurons()), sx.learned.StepLSTM(width=6, key=KEY)))
    symmetry = perceptron(SIZES, 1)[1]
    single = [perceptron(SIZES, seed, np.float32)[0] for seed in (4, 5, 6)]
    stacked = jax.tree.map(lambda *x: np.stack(x, axis=-1), *single)

    def step(w):
        seen = info(w, jax.tree.map(jnp.sin, w), symmetry)
        return together.propose(seen, together.memory(w, symmetry))[0]

    found = jax.jit(jax.vmap(step, in_axes=-1, out_axes=-1))(stacked)
    assert found.algebra.shape == (8, 3)
    alone = jax.jit(step)
    for i, w in enumerate(single):
        expected = alone(w)
        np.testing.assert_allclose(found.algebra[:, i], expected.algebra, rtol=0, atol=1e-6)
        np.testing.assert_allclose(found.step_size[i], expected.step_size, rtol=1e-5)


# The optimizer of both: coordinate-wise for the step, per-neuron for the element.


@pytest.fixture(scope="module")
def both(quick_compilation):
    first, second = jax.random.split(KEY)
    neurons = untame(sx.learned.PerNeuronLSTM(width=4, key=second))
    return sx.learned.Joint((sx.learned.CoordinatewiseLSTM(width=4, key=first), neurons))


@pytest.mark.parametrize("widths", [pytest.param((3,), marks=pytest.mark.slow), (6, 2, 5)])
def test_one_optimizer_teleports_exactly_on_every_width_and_depth(both, widths):
    x, labels = normal(0, 7, 4, dtype=np.float32), np.arange(7) % 2
    images = Images(x, labels.astype(np.int32))
    task = sx.tasks.Classification(images, images, widths, 7, classes=2)
    rule = sx.UpdateRule.at((0, 2), 3, guard=sx.Guard(jump=jnp.inf))
    run = jax.jit(lambda r, n: sx.unroll(r(n, task), task, KEY, 3, points=True))
    trace, off = run(rule, both), run(sx.UpdateRule.at((), 3, guard=rule.guard), both)
    assert np.all(trace.watched["outcome"] == 0)
    loss_change = trace.watched["loss_change"]
    np.testing.assert_array_equal(loss_change[:, None] >= 0, [[False], [True], [False], [True]])
    assert np.max(loss_change) < 1e-5
    assert np.all(np.any(trace.watched["algebra"][jnp.array([1, 3])] != 0, axis=1))
    for name in off.params:
        moved = np.max(np.abs(trace.params[name][1] - off.params[name][1]))
        assert (moved > 1e-5) == (name != f"b{len(widths) + 1}")
    if len(widths) == 1:
        alone = sx.unroll(sx.UpdateRule()(both.networks[0], task), task, KEY, 3, points=True)
        for name in off.params:
            np.testing.assert_allclose(off.params[name], alone.params[name], rtol=0, atol=1e-7)


@pytest.mark.slow
def test_meta_training_teaches_both_networks(both):
    """The per-neuron head starts at zero, where it has a gradient all the same."""
    fresh = eqx.tree_at(
        lambda b: b.networks[1].head, both, jax.tree.map(jnp.zeros_like, both.networks[1].head)
    )
    family = sx.tasks.RegressionFamily("small", dims=(4, 3, 2), samples=3, start="gaussian")
    rule = sx.UpdateRule.at((0, 2), 4, guard=None)
    estimator = sx.metatrain.TruncatedBPTT(family, rule, steps=4, truncation=2, tasks=2)
    outer = sx.learned.each_network(optax.adam(1e-3), optax.adam(1e-2))
    trained = sx.meta_train(lambda key: fresh, estimator, outer, KEY, outer_steps=2, chunk=2)
    assert trained.skipped[0] == 0
    for before, after in zip(jax.tree.leaves(fresh), jax.tree.leaves(trained.network()), strict=True):
        assert np.any(before != after)


# The step-size network.


def step_by_hand(gradients, params, steps):
    """The features of every step in NumPy."""
    norm = lambda x: np.linalg.norm(np.concatenate([np.ravel(v) for v in x.values()]))  # noqa: E731
    dot = lambda x, y: sum(np.sum(x[k] * y[k]) for k in x)  # noqa: E731
    rows = []
    for t, (g, w, u) in enumerate(zip(gradients, params, steps, strict=True)):
        last = max(t - 1, 0)
        rows.append(
            [
                np.log(norm(g) / norm(gradients[0])),
                np.log(norm(g) / norm(gradients[last])),
                np.log(norm(w) / norm(params[0])),
                np.log(norm(w) / norm(params[last])),
                np.log(norm(u) / norm(w)) if norm(u) else 0.0,
                dot(g, u) / (norm(g) * norm(u)) if norm(u) else 0.0,
                dot(g, w) / (norm(g) * norm(w)),
            ]
        )
    return np.array(rows)


@pytest.fixture(scope="module")
def observed(quick_compilation):
    """A function that shows a StepLSTM several steps: features, step sizes, momenta."""

    @jax.jit
    def observe(network, gradients, params, steps):
        memory, found = network.memory(params[0]), []
        for g, w, u in zip(gradients, params, steps, strict=True):
            seen = info(w, g, previous=u)
            features, _ = step_features(seen, memory)
            move, memory = network.propose(seen, memory)
            assert move.update is None
            assert move.algebra is None
            found.append((features, move.step_size, move.momentum))
        return tuple(jnp.stack(x) for x in zip(*found, strict=True))

    return observe


def three_steps():
    gradients, params, steps = ([perceptron((3, 4, 2), 3 * k + t)[0] for t in range(3)] for k in range(3))
    return gradients, params, [jax.tree.map(np.zeros_like, steps[0]), *steps[1:]]


def test_step_features_equal_numpy_and_the_unit_of_nothing_matters(float64, observed):
    network = sx.learned.StepLSTM(emits=("momentum", "step_size"), rates=(0.1, 10.0), width=6, key=KEY)
    gradients, params, steps = three_steps()
    features, sizes, momenta = observed(network, gradients, params, steps)
    np.testing.assert_allclose(features, step_by_hand(gradients, params, steps), rtol=0, atol=1e-10)
    assert np.all((momenta > 0) & (momenta < 1))
    square = sum(np.sum(g**2) for g in gradients[0].values())
    assert np.all((sizes * square > 0.1) & (sizes * square < 10.0))
    # Parameters in units of d, losses in units of c: gradients grow by c / d, and steps must by d.
    c, d = 1e-6, 1e3
    times = lambda factor, trees: [jax.tree.map(lambda x: factor * x, tree) for tree in trees]  # noqa: E731
    seen = times(c / d, gradients), times(d, params), times(d, steps)
    other = observed(network, *seen)
    np.testing.assert_allclose(other[0], features, atol=1e-9)
    np.testing.assert_allclose(other[1], sizes * (d / c) ** 2, rtol=1e-9)
    np.testing.assert_allclose(other[2], momenta, rtol=1e-9)
    absolute = sx.learned.StepLSTM(
        emits=("momentum", "step_size"), rates=(0.1, 10.0), width=6, absolute=True, key=KEY
    )
    np.testing.assert_allclose(observed(absolute, *seen)[1], sizes * square, rtol=1e-9)


def test_a_step_size_survives_gradients_of_zero(observed):
    network = sx.learned.StepLSTM(emits=("step_size", "momentum"), width=6, key=KEY)
    gradients, params, steps = jax.tree.map(lambda x: x.astype(np.float32), three_steps())
    zeros = jax.tree.map(np.zeros_like, gradients[0])

    def total(network, *seen):
        return sum(jnp.sum(x) for x in observed(network, *seen))

    derivative = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3), allow_int=True))
    for seen in (([zeros] * 3, params, steps), ([zeros, *gradients[1:]], [zeros] * 3, [zeros] * 3)):
        values = observed(network, *seen), derivative(network, *seen)
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(values))
    # The unit is the first gradient that is not zero.
    late = observed(network, [zeros, *gradients[1:]], params, steps)[1]
    assert late[1] * sum(np.sum(g**2) for g in gradients[1].values()) == pytest.approx(0.3, rel=0.5)
    assert late[0] == pytest.approx(0.3, rel=0.5)


def test_wrong_settings_of_a_step_network_are_rejected():
    for options, message in (
        ({"emits": ("momentum",)}, "must contain step_size"),
        ({"emits": ("update",)}, "any of step_size, momentum"),
        ({"rates": (1.0, 0.1)}, "0 < low < high"),
        ({"width": 0}, "at least 1, got width=0"),
    ):
        with pytest.raises(ValueError, match=message):
            sx.learned.StepLSTM(**options, key=KEY)


@pytest.mark.parametrize("kind", [sx.learned.PerNeuronLSTM, sx.learned.StepLSTM])
def test_config_and_contract_describe_the_network(kind):
    network = kind(width=5, depth=1, key=KEY)
    again = kind(**network.config(), key=KEY)
    assert eqx.tree_equal(network, again)
    assert network.contract() == again.contract()
    assert network.core.cells[0].weight_ih.shape == (20, len(network.contract()["reads"]))
    seen = network.example()
    move, _ = eqx.filter_jit(network.propose)(seen, network.memory(seen.params, seen.symmetry))
    assert jax.tree.leaves(move)
