"""The recurrent networks and what they see, against step-by-step NumPy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import symmetrax as sx

# The cores of the networks, at sizes of their own.
from symmetrax.learned._networks import GRU, LSTM, MLP

pytestmark = pytest.mark.usefixtures("quick_compilation")

SEEDS = st.integers(0, 2**32 - 1)
KEY = jax.random.key(0)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def numpy_lstm(core, x, state):
    """One step of a stack of layers for one input vector; gates in the order input, forget, cell, output."""
    after = []
    for cell, (h, c) in zip(core.cells, state, strict=True):
        w, u, b = (np.asarray(a, float) for a in (cell.weight_ih, cell.weight_hh, cell.bias))
        i, f, g, o = np.split(w @ x + u @ h + b, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        x = sigmoid(o) * np.tanh(c)
        after.append((x, c))
    return x, after


def zeros(core):
    width = core.cells[0].weight_hh.shape[1]
    return [(np.zeros(width), np.zeros(width)) for _ in core.cells]


def linear(head, h):
    return np.asarray(head.weight, float) @ h + np.asarray(head.bias, float)


CORE = LSTM(inputs=3, width=8, depth=2, key=KEY)
step = eqx.filter_jit(lambda core, x, state: core(x, state))


@settings(max_examples=10)
@given(seed=SEEDS)
def test_the_state_after_many_steps_equals_numpy(seed):
    """S02."""
    inputs = np.random.default_rng(seed).normal(size=(20, 3)).astype(np.float32)
    state, expected = CORE.zero_state(), zeros(CORE)
    for x in inputs:
        hidden, state = step(CORE, x, state)
        out, expected = numpy_lstm(CORE, x, expected)
        np.testing.assert_allclose(hidden, out, rtol=0, atol=1e-6)
        for layer, right in zip(state, expected, strict=True):
            np.testing.assert_allclose(layer, right, rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch", [(5,), (2, 3)])
def test_trailing_axes_are_independent_sequences(batch):
    """Features come first; each entry of the other axes has its own state."""
    inputs = np.random.default_rng(0).normal(size=(6, 3, *batch)).astype(np.float32)
    state, expected = CORE.zero_state(batch), {at: zeros(CORE) for at in np.ndindex(batch)}
    for x in inputs:
        hidden, state = step(CORE, x, state)
        assert hidden.shape == (8, *batch)
        for at in np.ndindex(batch):
            out, expected[at] = numpy_lstm(CORE, x[(slice(None), *at)], expected[at])
            np.testing.assert_allclose(hidden[(slice(None), *at)], out, rtol=0, atol=1e-6)


def numpy_gru(core, x, state):
    """One step of a stack of layers for one input vector; gates in the order reset, update, new."""
    after = []
    for cell, h in zip(core.cells, state, strict=True):
        w, u, b, b_new = (
            np.asarray(a, float) for a in (cell.weight_ih, cell.weight_hh, cell.bias, cell.bias_new)
        )
        (r, z, n), (own_r, own_z, own_n) = np.split(w @ x + b, 3), np.split(u @ h, 3)
        r, z = sigmoid(r + own_r), sigmoid(z + own_z)
        x = (1 - z) * np.tanh(n + r * (own_n + b_new)) + z * h
        after.append(x)
    return x, after


@pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
def test_a_gru_equals_numpy_on_every_sequence_of_a_batch(batch):
    core = GRU(inputs=3, width=8, depth=2, key=KEY)
    inputs = np.random.default_rng(0).normal(size=(12, 3, *batch)).astype(np.float32)
    state = core.zero_state(batch)
    expected = {at: [np.zeros(8), np.zeros(8)] for at in np.ndindex(batch)}
    for x in inputs:
        hidden, state = step(core, x, state)
        for at in np.ndindex(batch):
            out, expected[at] = numpy_gru(core, x[(slice(None), *at)], expected[at])
            np.testing.assert_allclose(hidden[(slice(None), *at)], out, rtol=0, atol=1e-6)


def test_an_mlp_remembers_nothing():
    core = MLP(inputs=3, width=8, depth=2, key=KEY)
    inputs = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    for x in inputs:
        hidden, state = step(core, x, core.zero_state((5,)))
        assert state == ()
        for k in range(5):
            expected = x[:, k]
            for layer in core.layers:
                expected = np.tanh(linear(layer, expected))
            np.testing.assert_allclose(hidden[:, k], expected, rtol=0, atol=1e-6)


CORES = [
    LSTM(3, 25, 2, key=KEY),
    GRU(3, 25, 2, key=KEY),
    sx.learned.FlatGradientLSTM(2, algebra=1, width=25, key=KEY),
    sx.learned.FlatGradientGRU(2, algebra=1, width=25, key=KEY),
]


@pytest.mark.parametrize("core", CORES, ids=lambda core: type(core).__name__)
def test_initial_weights_are_uniform_within_one_over_root_width(core):
    for leaf in jax.tree.leaves(core):
        assert jnp.max(jnp.abs(leaf)) <= 0.2
    largest = max(jax.tree.leaves(core), key=lambda leaf: leaf.size)
    assert jnp.std(largest) == pytest.approx(0.2 / np.sqrt(3), rel=0.05)
    assert len(np.unique(np.concatenate([np.ravel(x) for x in jax.tree.leaves(core)]))) > 1000


@pytest.mark.parametrize(
    ("inputs", "algebra", "width"),
    [
        ((), 0, 5),
        (("iterate",), 0, 10),
        (("previous",), 1, 10),
        (("orbit_derivative",), 0, 6),
        (("orbit_derivative",), 3, 8),
        (("previous", "iterate", "orbit_derivative"), 1, 16),
    ],
)
def test_each_input_widens_the_core_by_its_size(inputs, algebra, width):
    """S05: iterate and previous update by the number of parameters, the derivative by the algebra's."""
    network = sx.learned.FlatGradientLSTM(5, algebra=algebra, inputs=inputs, width=4, key=KEY)
    assert network.core.cells[0].weight_ih.shape == (16, width)
    assert network.wants == (("orbit_derivative",) if "orbit_derivative" in inputs else ())


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_inputs_are_read_in_one_order_however_they_are_named(order):
    """Gradient, iterate, previous update, orbit derivative."""
    names = ("iterate", "previous", "orbit_derivative")
    network = sx.learned.FlatGradientLSTM(2, algebra=1, inputs=[names[i] for i in order], width=4, key=KEY)
    g, x, u, slope = (np.arange(2.0) + 1, np.arange(2.0) - 3, np.arange(2.0) / 7, np.array([0.3]))
    info = sx.learned.Observation(*(jnp.asarray(v, jnp.float32) for v in (g, x, u, slope)), key=None)
    move, memory = network.propose(info, network.memory(jnp.zeros(2)))
    hidden, state = numpy_lstm(network.core, np.concatenate([g, x, u, slope]), zeros(network.core))
    np.testing.assert_allclose(move.update, linear(network.head, hidden), rtol=0, atol=1e-6)
    np.testing.assert_allclose(move.algebra, linear(network.algebra_head, hidden), rtol=0, atol=1e-6)
    np.testing.assert_allclose(memory[1][1], state[1][1], rtol=0, atol=1e-6)


def test_vanilla_and_teleporting_networks_of_one_key_share_their_weights():
    vanilla, teleporting = (
        sx.learned.FlatGradientLSTM(2, algebra=k, width=8, key=jax.random.key(3)) for k in (0, 1)
    )
    assert eqx.tree_equal(vanilla.core, teleporting.core)
    assert eqx.tree_equal(vanilla.head, teleporting.head)
    assert vanilla.algebra_head is None
    assert teleporting.algebra_head.weight.shape == (1, 8)
    other = sx.learned.FlatGradientLSTM(2, width=8, key=jax.random.key(4))
    assert not jnp.any(other.core.cells[0].weight_ih == vanilla.core.cells[0].weight_ih)


def numpy_log_and_sign(g):
    g = np.asarray(g, float)
    large = np.abs(g) >= np.exp(-10)
    with np.errstate(divide="ignore"):
        return np.where(large, [np.log(np.abs(g)) / 10, np.sign(g)], [-np.ones_like(g), np.exp(10) * g])


features = jax.jit(sx.learned.log_and_sign)
feature_slopes = jax.jit(jax.vmap(jax.jacobian(lambda g: sx.learned.log_and_sign(g[None])[:, 0])))


@settings(max_examples=50)
@given(st.lists(st.floats(-(2.0**99), 2.0**99) | st.floats(-1e-4, 1e-4), min_size=8, max_size=8))
def test_gradient_features_equal_numpy_and_are_smooth_enough(values):
    g = np.array([*values, 0.0, -0.0, 1e-40], np.float32)
    np.testing.assert_allclose(features(g), numpy_log_and_sign(g), rtol=1e-5, atol=1e-6)
    slopes = np.asarray(feature_slopes(g))
    assert np.all(np.isfinite(slopes))
    large = np.abs(g) >= np.exp(-10)
    expected = np.where(large, [0.1 / np.where(large, g, 1), 0 * g], [0 * g, np.exp(10) + 0 * g])
    np.testing.assert_allclose(slopes.T, expected, rtol=1e-4, atol=1e-6)


def test_the_coordinatewise_network_is_one_small_network_per_coordinate():
    """Each coordinate apart, with shared weights, against NumPy; a tree of parameters, over several steps."""
    network = sx.learned.CoordinatewiseLSTM(width=6, scale=0.1, key=KEY)
    optimizer = network.transform()
    params = {"layer": {"w": jnp.zeros((3, 2)), "b": jnp.zeros(3)}, "out": [jnp.zeros(1)]}
    gradients = [
        jax.tree.map(lambda p, s=s: np.random.default_rng(s).normal(size=p.shape).astype(np.float32), params)
        for s in range(3)
    ]
    update, state = jax.jit(optimizer.update), optimizer.init(params)
    states = [zeros(network.core) for _ in range(10)]
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        assert jax.tree.structure(updates) == jax.tree.structure(params)
        flat = np.concatenate([np.ravel(g) for g in jax.tree.leaves(gradient)])
        found = np.concatenate([np.ravel(u) for u in jax.tree.leaves(updates)])
        for i, g in enumerate(flat):
            hidden, states[i] = numpy_lstm(network.core, numpy_log_and_sign(g), states[i])
            assert found[i] == pytest.approx(0.1 * linear(network.head, hidden)[0], abs=1e-6)


@settings(max_examples=10)
@given(seed=SEEDS)
def test_permuted_coordinates_get_permuted_updates(seed):
    rng = np.random.default_rng(seed)
    gradients, order = rng.normal(size=(3, 9)).astype(np.float32), rng.permutation(9)
    plain, permuted = (coordinatewise(g) for g in (gradients, gradients[:, order]))
    np.testing.assert_allclose(permuted, plain[:, order], rtol=0, atol=1e-8)


@jax.jit
def coordinatewise(gradients):
    optimizer = sx.learned.CoordinatewiseLSTM(width=6, key=KEY).transform()
    params = jnp.zeros(9)

    def step(state, g):
        updates, state = optimizer.update(g, state, params)
        return state, updates

    return jax.lax.scan(step, optimizer.init(params), gradients)[1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: sx.learned.FlatGradientLSTM(2, inputs=("gradient",), key=KEY),
            r"any of iterate, .*got \['gradient'\]",
        ),
        (lambda: sx.learned.FlatGradientLSTM(2, width=0, key=KEY), "width=0"),
        (lambda: sx.learned.FlatGradientLSTM(0, key=KEY), "size=0"),
        (lambda: sx.learned.FlatGradientLSTM(2, algebra=-1, key=KEY), "algebra=-1"),
        (lambda: sx.learned.CoordinatewiseLSTM(scale=0.0, key=KEY), "scale=0.0"),
        (lambda: sx.learned.CoordinatewiseLSTM(depth=0, key=KEY), "depth=0"),
        (
            lambda: sx.learned.FlatGradientLSTM(2, key=KEY).transform().init(jnp.zeros(3)),
            "built for 2 parameters, got 3",
        ),
    ],
)
def test_networks_that_cannot_be_say_why(make, message):
    with pytest.raises(ValueError, match=message):
        make()
