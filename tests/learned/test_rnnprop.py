"""RNNProp and the clipped features of the coordinate-wise LSTM, against both written out in NumPy."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import symmetrax as sx

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)
STEPS = 5


def network(**options):
    return sx.learned.RNNProp(width=4, key=KEY, **options)


def rows(count=3):
    """Gradients of several orders of magnitude, one coordinate that stays zero and one that does at first."""
    gradients = np.random.default_rng(0).normal(size=(STEPS, count)) * np.geomspace(1e-6, 1e4, STEPS)[:, None]
    gradients[:, 0] = 0.0
    gradients[0, 1] = 0.0
    return gradients


@jax.jit
def proposed(network, gradients):
    """The updates for one gradient after the other."""

    def step(memory, gradient):
        info = sx.learned.Observation(gradient, gradient, gradient, None, None)
        move, memory = network.propose(info, memory)
        return memory, move.update

    return jax.lax.scan(step, network.memory(gradients[0]), gradients)[1]


def by_hand(network, gradients):
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    array = lambda a: np.asarray(a, float)  # noqa: E731
    linear = lambda layer, x: array(layer.weight) @ x + array(layer.bias)[:, None]  # noqa: E731
    coordinates = gradients.shape[1]
    first = second = np.zeros(coordinates)
    states = [(np.zeros((4, coordinates)),) * 2 for _ in network.core.cells]
    updates = []
    for t, g in enumerate(gradients, start=1):
        first = network.beta1 * first + (1 - network.beta1) * g
        second = network.beta2 * second + (1 - network.beta2) * g**2
        root = np.sqrt(second / (1 - network.beta2**t)) + 1e-8
        seen = linear(network.dense, np.stack([first / (1 - network.beta1**t) / root, g / root]))
        hidden = np.where(seen > 0, seen, np.exp(seen) - 1)
        for layer, cell in enumerate(network.core.cells):
            h, c = states[layer]
            gates = array(cell.weight_ih) @ hidden + array(cell.weight_hh) @ h + array(cell.bias)[:, None]
            i, f, new, o = np.split(gates, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(new)
            hidden = sigmoid(o) * np.tanh(c)
            states[layer] = hidden, c
        updates.append(network.scale * np.tanh(linear(network.head, hidden)[0]))
    return np.array(updates)


@pytest.mark.parametrize("options", [{}, {"beta1": 0.9, "beta2": 0.999, "scale": 0.01}])
def test_every_step_is_the_published_one(float64, options):
    """Bias-corrected moments with the same weight, ELU, two layers, a bounded output."""
    it = network(**options)
    found = proposed(it, jnp.asarray(rows()))
    np.testing.assert_allclose(found, by_hand(it, rows()), rtol=1e-10)
    assert np.all(np.abs(found) < it.scale)


def test_single_precision_gives_the_same():
    it = network()
    np.testing.assert_allclose(
        proposed(it, jnp.asarray(rows(), jnp.float32)), by_hand(it, rows()), rtol=1e-4, atol=1e-6
    )


def test_the_scale_of_a_loss_does_not_matter(float64):
    """But for the 1e-8 beside the root."""
    found, scaled = (proposed(network(), jnp.asarray(factor * rows())) for factor in (1e4, 1e8))
    np.testing.assert_allclose(found, scaled, rtol=1e-5)
    assert np.ptp(found) > 1e-3


def test_derivatives_are_finite_where_no_gradient_ever_came(float64):
    """Also through the gradients that it sees, whose running square is zero."""
    weights, seen = jax.grad(lambda n, g: jnp.sum(proposed(n, g)), argnums=(0, 1))(
        network(), jnp.zeros((STEPS, 3))
    )
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((weights, seen)))
    assert np.any(weights.head.bias != 0)


def test_it_serves_any_network_and_comes_back_from_its_file(tmp_path):
    it = network(scale=0.05, beta2=0.9)
    loaded, card = sx.load(sx.save(it, tmp_path / "it.safetensors"))
    assert eqx.tree_equal(loaded, it)
    assert card["kind"] == "rnnprop"
    params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(3)}
    optimizer = loaded.transform()
    updates, _ = jax.jit(lambda p: optimizer.update(p, optimizer.init(p), p))(params)
    assert jax.tree.map(jnp.shape, updates) == {"w": (3, 2), "b": (3,)}
    assert np.unique(updates["w"]).size == 1  # every coordinate by the same rule


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width and depth of at least 1.*width=0"),
        ({"depth": 0}, "width and depth of at least 1.*depth=0"),
        ({"scale": 0.0}, "a positive scale, got.*scale=0.0"),
        ({"beta1": 1.0}, r"in \[0, 1\), got beta1=1.0"),
        ({"beta2": -0.1}, r"in \[0, 1\), got beta1=0.95, beta2=-0.1"),
    ],
)
def test_bad_settings_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        sx.learned.RNNProp(**options, key=KEY)


def test_clipped_features_are_those_of_the_public_code(float64):
    gradients = [0.0, 1e-12, -1e-4, 0.006, -0.0067, 0.007, 1.0, -30.0, 1e6]
    eps = 2.0**-52
    logarithm = [max(math.log(abs(g) + eps) / 5, -1.0) for g in gradients]
    sign = [min(max(g * math.exp(5), -1.0), 1.0) for g in gradients]
    found = sx.learned.clipped_log_and_sign(jnp.array(gradients))
    np.testing.assert_allclose(found, [logarithm, sign], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found, sx.learned.log_and_sign(jnp.array(gradients), p=5.0), atol=1e-12)
    slopes = jax.vmap(jax.jacfwd(lambda g: sx.learned.clipped_log_and_sign(g[None])))(jnp.array(gradients))
    assert np.all(np.isfinite(slopes))


def test_clipped_features_in_single_precision_know_its_precision():
    assert float(sx.learned.clipped_log_and_sign(jnp.zeros(1), k=20)[0, 0]) == pytest.approx(
        math.log(2.0**-23) / 20, rel=1e-5
    )


def test_the_coordinatewise_lstm_reads_either(unchecked):
    """One set of weights, other features: the networks differ in that alone."""
    usual, clipped = (
        sx.learned.CoordinatewiseLSTM(width=4, preprocessing=name, key=KEY)
        for name in ("log_and_sign", "clipped_log_and_sign")
    )
    for a, b in zip(jax.tree.leaves(usual), jax.tree.leaves(clipped), strict=True):
        assert jnp.array_equal(a, b)
    assert clipped.contract()["reads"] == ["clipped_log_and_sign(gradient)"]
    assert clipped.config()["preprocessing"] == "clipped_log_and_sign"
    gradient = jnp.array([0.5, -0.02])
    info = sx.learned.Observation(gradient, gradient, gradient, None, None)
    found, other = (it.propose(info, it.memory(gradient))[0].update for it in (clipped, usual))
    hidden, _ = clipped.core(sx.learned.clipped_log_and_sign(gradient), clipped.memory(gradient))
    np.testing.assert_allclose(found, clipped.scale * clipped.head(hidden)[0], rtol=1e-6)
    assert not np.any(found == other)
    with pytest.raises(ValueError, match="one of log_and_sign, clipped_log_and_sign, got 'none'"):
        sx.learned.CoordinatewiseLSTM(preprocessing="none", key=KEY)
