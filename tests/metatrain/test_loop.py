"""The outer loop: it learns, repeats itself, keeps seeds apart and survives gradients that are not finite."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import symmetrax as sx

# The order in which shapes are visited is a law of its own, for which no training need be compiled.
from symmetrax.metatrain._loop import _shape
from symmetrax.tasks import _plane

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)
OPTIMIZER = optax.adam(1e-2)


def network(key):
    return sx.learned.FlatGradientLSTM(2, algebra=1, width=8, depth=1, key=key)


def wide(key):
    return sx.learned.FlatGradientLSTM(2, width=16, key=key)


def gated(key):
    return sx.learned.FlatGradientGRU(2, width=16, key=key)


def forgetful(key):
    return sx.learned.FlatGradientMLP(2, width=16, key=key)


def estimator(rule=None, family="ellipse-random", tasks=4, steps=10):
    rule = sx.UpdateRule(schedule=jnp.ones(10, bool), guard=None) if rule is None else rule
    return sx.metatrain.TruncatedBPTT(
        sx.tasks.make_family(family), rule, steps=steps, truncation=5, tasks=tasks
    )


def rate(key):
    """A learned optimizer of one weight."""
    return jnp.array(0.01)


def climbing(network, task):
    """Steps that grow with the one weight, until nothing is finite."""
    return optax.sgd(jnp.abs(network))


def standing(network, task):
    return optax.sgd(0.0 * network)


@pytest.mark.parametrize(
    "make", [wide, *(pytest.param(make, marks=pytest.mark.slow) for make in (gated, forgetful))]
)
def test_training_lowers_the_meta_loss(make):
    """S01, small: vanilla on the fixed ellipse, 60 runs of 32 tasks; then on unseen tasks it optimizes."""
    it = estimator(sx.UpdateRule(), "ellipse-fixed", tasks=32, steps=20)
    trained = sx.meta_train(make, it, OPTIMIZER, KEY, outer_steps=60, seeds=2, chunk=60)
    assert trained.losses.shape == (2, 60)
    assert np.all(trained.losses[:, -10:].mean(1) < 0.1 * trained.losses[:, :10].mean(1))
    assert np.all(trained.skipped == 0)
    for seed in range(2):
        learned = trained.network(seed)
        trace = eqx.filter_jit(sx.unroll_many)(
            sx.UpdateRule(), learned, it.family, jax.random.key(9), 12, 200
        )
        assert jnp.median(trace.loss[-1]) < 0.05 * jnp.median(trace.loss[0])


def test_a_seed_does_not_depend_on_how_many_there_are():
    """Two seeds run on two devices, three on one."""
    two, three = (sx.meta_train(network, estimator(), OPTIMIZER, KEY, outer_steps=6, seeds=n) for n in (2, 3))
    for few, many in zip(jax.tree.leaves(two.networks), jax.tree.leaves(three.networks), strict=True):
        np.testing.assert_allclose(many[:2], few, rtol=1e-6, atol=1e-6)
        assert not jnp.any(many[1] == many[2])
    np.testing.assert_allclose(three.losses[:2], two.losses, rtol=1e-5)


def test_training_twice_gives_equal_arrays():
    first, second = (
        sx.meta_train(network, estimator(), OPTIMIZER, KEY, outer_steps=6, seeds=2) for _ in range(2)
    )
    assert eqx.tree_equal(first, second)
    other = sx.meta_train(network, estimator(), OPTIMIZER, jax.random.key(1), outer_steps=6, seeds=2)
    assert not np.any(other.losses == first.losses)


def test_every_seed_starts_from_its_own_network():
    """Nothing to learn: the networks stay as they were drawn."""
    kept = sx.meta_train(
        network,
        estimator(lambda n, task: optax.sgd(0.0), "ellipse-fixed"),
        OPTIMIZER,
        KEY,
        outer_steps=2,
        seeds=2,
    )
    for seed in range(2):
        drawn = network(jax.random.fold_in(jax.random.fold_in(KEY, seed), 0))
        for found, expected in zip(jax.tree.leaves(kept.network(seed)), jax.tree.leaves(drawn), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_chunks_change_nothing():
    whole, pieces = (
        sx.meta_train(network, estimator(), OPTIMIZER, KEY, outer_steps=6, seeds=2, chunk=chunk)
        for chunk in (50, 3)
    )
    np.testing.assert_allclose(pieces.losses, whole.losses, rtol=1e-5)
    for found, expected in zip(
        jax.tree.leaves(pieces.networks), jax.tree.leaves(whole.networks), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_every_run_draws_fresh_tasks_and_arms_of_one_key_meet_the_same():
    """S17: the losses of optimizers that do not move show which tasks they met."""
    it = estimator(standing, tasks=1)
    found = sx.meta_train(rate, it, OPTIMIZER, KEY, outer_steps=20, seeds=2).losses
    assert len(np.unique(found)) == 40
    other = estimator(lambda rates, task: standing(rates[0], task), tasks=1)
    again = sx.meta_train(lambda key: jnp.array([0.5]), other, OPTIMIZER, KEY, outer_steps=20, seeds=2)
    np.testing.assert_allclose(again.losses, found, rtol=1e-6)
    seed, run = 1, 7
    key = jax.random.fold_in(jax.random.fold_in(KEY, seed), 1 + run)
    draw, start = jax.random.split(jax.random.split(key, 1)[0])
    task = it.family.task(it.family.draw(draw))
    expected = task.loss(task.init(jax.random.split(start, 3)[0]))
    assert found[seed, run] == pytest.approx(float(expected), rel=1e-5)


def late_nan(network, task):
    """Descent whose steps are not a number from the second window on."""

    def update(updates, count, params=None, **extra):
        factor = jnp.where(count >= 5, jnp.nan, network)
        return jax.tree.map(lambda g: -factor * g, updates), count + 1

    return optax.GradientTransformationExtraArgs(lambda params: jnp.array(0), update)


def steep(network, task):
    """A finite loss whose derivative in the weight is infinite."""
    extra = jnp.sqrt(network - jax.lax.stop_gradient(network))
    return optax.sgd(0.01 + extra)


def test_training_that_diverges_stops_says_so_and_keeps_its_last_networks(tmp_path):
    path = tmp_path / "state.safetensors"
    it = sx.metatrain.TruncatedBPTT(sx.tasks.make_family("booth"), climbing, steps=4, truncation=2)
    outer, options = optax.sgd(-1e30), {"outer_steps": 40, "seeds": 2, "chunk": 5, "checkpoint": path}
    for _ in range(2):  # the second call finds the checkpoint, and says the same
        with pytest.warns(
            RuntimeWarning, match=r"diverged: .* after 10 of 40 outer steps .*state.safetensors"
        ):
            trained = sx.meta_train(rate, it, outer, KEY, **options)
        assert trained.diverged.tolist() == [True, True]
        assert trained.losses.shape == (2, 10)
        assert np.all(np.isfinite(trained.networks))


def test_windows_that_are_not_finite_are_skipped_and_counted():
    """Every second window is NaN: the weight learns as if there were only the first."""
    bad = sx.meta_train(
        rate, estimator(late_nan, family="ellipse-fixed"), OPTIMIZER, KEY, outer_steps=6, seeds=2
    )
    good = sx.meta_train(
        rate, estimator(late_nan, steps=5, family="ellipse-fixed"), OPTIMIZER, KEY, outer_steps=6, seeds=2
    )
    assert bad.skipped.tolist() == [6, 6]
    assert good.skipped.tolist() == [0, 0]
    np.testing.assert_allclose(bad.networks, good.networks, rtol=1e-6)
    assert np.all(good.networks != 0.01)
    assert np.all(np.isnan(bad.losses))
    assert np.all(np.isfinite(good.losses))


def test_an_infinite_gradient_of_a_finite_loss_leaves_the_weights():
    stuck = sx.meta_train(rate, estimator(steep, family="ellipse-fixed"), OPTIMIZER, KEY, outer_steps=3)
    assert stuck.skipped.tolist() == [6]
    assert np.all(np.isfinite(stuck.losses))
    assert jnp.array_equal(stuck.networks, jnp.array([0.01]))


def test_progress_is_told_after_every_chunk():
    seen = []
    found = sx.meta_train(
        rate,
        estimator(standing, "ellipse-fixed"),
        OPTIMIZER,
        KEY,
        outer_steps=5,
        chunk=2,
        progress=seen.append,
    )
    assert [(p.done, p.outer_steps) for p in seen] == [(2, 5), (4, 5), (5, 5)]
    np.testing.assert_allclose(
        [p.loss for p in seen],
        [found.losses[0, s].mean() for s in (slice(2), slice(2, 4), slice(4, 5))],
        rtol=1e-6,
    )
    assert all(p.tasks_per_second > 0 for p in seen)


@pytest.mark.parametrize("name", ["outer_steps", "seeds", "chunk"])
def test_counts_below_one_are_an_error(name):
    with pytest.raises(ValueError, match=f"at least 1, got .*{name}=0"):
        sx.meta_train(rate, estimator(standing), OPTIMIZER, KEY, **({"outer_steps": 1} | {name: 0}))


def test_every_shape_comes_once_before_any_comes_again():
    """In another order from cycle to cycle and from key to key."""
    shapes, orders = (12, 16, 24, 32), set()
    for seed in range(5):
        cycles = np.reshape([_shape(shapes, jax.random.key(seed), i) for i in range(40)], (10, 4))
        again = np.reshape([_shape(shapes, jax.random.key(seed), i) for i in range(40)], (10, 4))
        assert np.array_equal(np.sort(cycles, axis=1), np.tile(shapes, (10, 1)))
        assert np.array_equal(cycles, again)
        assert len({tuple(cycle) for cycle in cycles}) > 3
        orders.add(tuple(cycles.ravel()))
    assert len(orders) == 5


def test_training_visits_every_shape():
    class Scales(_plane.PlaneFamily):
        """Tasks whose loss tells their shape."""

        @property
        def shapes(self):
            return (1, 10, 100)

        def task(self, drawn, shape=None):
            task = super().task(drawn)
            return eqx.tree_at(lambda t: t.map.offset, task, task.map.offset * 0 + shape)

    flat = sx.symmetry.Affine(1e-6 * jnp.eye(2), jnp.zeros(2))
    it = sx.metatrain.TruncatedBPTT(Scales("scales", "booth", flat), standing, steps=5, truncation=5)
    found = sx.meta_train(rate, it, OPTIMIZER, KEY, outer_steps=6, chunk=1).losses[0]
    met = [round(float(np.sqrt(loss / 2))) for loss in found]
    assert sorted(met[:3]) == sorted(met[3:]) == [1, 10, 100]
    assert met == [_shape((1, 10, 100), KEY, i) for i in range(6)]
    assert len(list(itertools.groupby(met))) > 3
