"""Imitation of an expert, against the same written as a loop over two optimizers apart."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import symmetrax as sx

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)
STEPS, UNROLL, TASKS = 6, 3, 2
FAMILY = sx.tasks.make_family("ellipse-random")
EXPERT = optax.adam(0.05)

init = eqx.filter_jit(lambda estimator, network, key: estimator.init(network, key, None))
step = eqx.filter_jit(lambda estimator, network, carry: estimator.step(network, carry, KEY, None))


def momentum(network, task):
    """A learned optimizer of two weights, and a state."""
    return optax.sgd(network["rate"], momentum=network["momentum"])


def weights():
    return {"rate": jnp.array(0.03), "momentum": jnp.array(0.5)}


def usual(make=momentum, tasks=TASKS):
    return sx.metatrain.TruncatedBPTT(FAMILY, make, steps=STEPS, truncation=UNROLL, tasks=tasks, ratio=0.5)


def imitation(share, **options):
    return sx.metatrain.Imitation(usual(), EXPERT, share=jnp.asarray(share), **options)


@pytest.fixture(scope="module")
def path():
    """The expert's points, and the gradients there: steps, coordinates, tasks."""
    with jax.enable_x64(True):
        trace = sx.unroll_many(lambda _, task: EXPERT, None, FAMILY, KEY, STEPS, TASKS, points=True)
        drawn = jax.vmap(lambda key: FAMILY.draw(jax.random.split(key)[0]))(jax.random.split(KEY, TASKS))
        slope = jax.vmap(lambda d, x: jax.grad(FAMILY.task(d).loss)(x), (0, -1), -1)
        yield np.asarray(trace.params), np.asarray(jax.jit(jax.vmap(slope, (None, 0)))(drawn, trace.params))


def watched(network, path):
    """What the learner with these weights proposes on the expert's path, and the expert's steps."""
    points, gradients = path
    velocity, proposed = np.zeros_like(points[0]), []
    for gradient in gradients[:-1]:
        velocity = float(network["momentum"]) * velocity + gradient
        proposed.append(-float(network["rate"]) * velocity)
    return np.array(proposed), np.diff(points, axis=0)


@pytest.fixture(scope="module")
def runs():
    """The two windows of a run that imitates, and of one that does not."""
    with jax.enable_x64(True):
        found = {}
        for share in (0.0, 1.0):
            it, network = imitation(share, weight=2.0), weights()
            carry, windows = init(it, network, KEY), []
            for _ in range(STEPS // UNROLL):
                loss, gradient, carry = step(it, network, carry)
                windows.append((float(loss), gradient, carry))
            found[share] = windows
        yield found


def test_the_meta_loss_is_the_relative_distance_from_the_experts_steps(float64, runs, path):
    """Window by window, with the learner's velocity going on and the path being the expert's."""
    proposed, shown = watched(weights(), path)
    for window, (loss, _, carry) in enumerate(runs[1.0]):
        rows = slice(window * UNROLL, (window + 1) * UNROLL)
        apart = np.sum((proposed - shown)[rows] ** 2, axis=(0, 1)) / np.sum(shown[rows] ** 2, axis=(0, 1))
        assert loss == pytest.approx(2.0 * 0.5 * np.mean(apart), rel=1e-9)
        assert bool(carry[1])
    np.testing.assert_allclose(runs[1.0][-1][2][0].carry.params, path[0][-1], rtol=1e-12)


def test_its_gradient_is_that_of_the_distance_alone(float64, runs, path):
    """Central differences in the first window: the expert's path does not depend on the weights."""
    for name in ("rate", "momentum"):
        sides = []
        for shift in (1e-5, -1e-5):
            network = weights()
            network[name] = network[name] + shift
            proposed, shown = (x[:UNROLL] for x in watched(network, path))
            sides.append(
                np.mean(np.sum((proposed - shown) ** 2, axis=(0, 1)) / np.sum(shown**2, axis=(0, 1)))
            )
        expected = (sides[0] - sides[1]) / 2e-5
        assert float(runs[1.0][0][1][name]) == pytest.approx(expected, rel=1e-6)


def test_runs_that_do_not_imitate_are_those_of_the_wrapped_estimator(float64, runs):
    network, carry = weights(), init(usual(), weights(), KEY)
    for loss, gradient, after in runs[0.0]:
        expected, slope, carry = step(usual(), network, carry)
        assert loss == pytest.approx(float(expected), rel=1e-12)
        for name in slope:
            assert float(gradient[name]) == pytest.approx(float(slope[name]), rel=1e-9)
        np.testing.assert_allclose(after[0].carry.params, carry.carry.params, rtol=1e-12)
        assert not bool(after[1])


def test_a_share_of_the_runs_imitates_and_the_rest_does_not():
    """400 keys: within four standard deviations of 0.3."""
    it = imitation(0.3)
    keys = jax.random.split(KEY, 400)
    drawn = eqx.filter_jit(eqx.filter_vmap(lambda key: it.init(weights(), key, None)[1]))(keys)
    assert abs(float(jnp.mean(drawn)) - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 400)


def test_a_learner_that_imitates_becomes_the_expert():
    """It finds the expert's rate by watching alone: no run is its own."""
    make = lambda network, task: optax.sgd(jnp.exp(network))  # noqa: E731
    it = sx.metatrain.Imitation(usual(make), optax.sgd(0.02), share=1.0)
    trained = sx.meta_train(lambda key: jnp.array(-5.0), it, optax.adam(0.1), KEY, outer_steps=60)
    assert float(jnp.exp(trained.network())) == pytest.approx(0.02, rel=0.05)
    assert trained.losses[0, 0] > 0.1
    assert trained.losses[0, -1] < 1e-2


def test_nothing_to_imitate_is_no_loss():
    """An expert that does not move: zero, with finite derivatives, in single precision."""
    it = sx.metatrain.Imitation(usual(tasks=1), optax.sgd(0.0), share=1.0)
    loss, gradient, _ = step(it, weights(), init(it, weights(), KEY))
    assert float(loss) == 0.0
    assert all(float(x) == 0.0 for x in gradient.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 1.5}, "between 0 and 1, got share=1.5"),
        ({"share": -0.1}, "between 0 and 1, got share=-0.1"),
        ({"weight": -1.0}, "at least 0, got weight=-1.0"),
    ],
)
def test_bad_settings_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        sx.metatrain.Imitation(usual(), **options)
