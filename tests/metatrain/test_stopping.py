"""Early stopping, on networks that only count: what they are worth is written in a table."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import symmetrax as sx

pytestmark = pytest.mark.usefixtures("quick_compilation")

CHUNK = 2


class Counting(sx.metatrain.AbstractMetaGradient):
    """The meta-gradient is -1: gradient descent at rate 1 counts the windows."""

    def init(self, network, key, shape):
        return ()

    def step(self, network, carry, key, shape):
        return network["count"] * 0.5, {"count": jnp.array(-1.0), "seed": jnp.array(0.0)}, carry


def make(key):
    """A counter, and a number that tells the two seeds apart."""
    return {"count": jnp.array(0.0), "seed": jax.random.uniform(key)}


def train(curves, patience, runs=20, checkpoint=None, progress=None):
    """Each row of `curves` is the validation curve of one seed, by chunks."""
    table = jnp.asarray(curves, jnp.float32)
    keys = [jax.random.fold_in(jax.random.fold_in(jax.random.key(0), i), 0) for i in range(len(table))]
    marks = jnp.stack([jax.random.uniform(key) for key in keys])

    def validate(network):
        row = jnp.argmin(jnp.abs(marks - network["seed"]))
        return table[row, (network["count"] / CHUNK - 1).astype(int)]

    estimator = Counting(sx.tasks.make_family("booth"), sx.UpdateRule(), steps=1, truncation=1)
    stopping = None if patience is None else sx.metatrain.EarlyStopping(validate, patience)
    return sx.meta_train(
        make,
        estimator,
        optax.sgd(1.0),
        jax.random.key(0),
        outer_steps=runs,
        seeds=len(table),
        chunk=CHUNK,
        stopping=stopping,
        checkpoint=checkpoint,
        progress=progress,
    )


def counts(trained):
    return np.asarray(trained.networks["count"]).tolist()


@pytest.mark.parametrize(
    ("curve", "patience", "rounds", "best"),
    [
        ([5, 4, 3, 4, 5, 6, 0, 0, 0, 0], 2, 5, 3),  # what comes later is never seen
        ([5, 4, 3, 4, 5, 6, 0, 7, 8, 9], 4, 10, 7),  # unless one waits
        ([9, 8, 7, 6, 5, 4, 3, 2, 1, 0], 1, 10, 10),  # the runs end first
        ([5, 5, 5, 5, 5, 5, 5, 5, 5, 5], 3, 4, 1),  # equal is no improvement
        ([5, np.nan, 4, np.inf, np.nan, 1, 1, 1, 1, 1], 2, 5, 3),  # nor is what is not finite
    ],
)
def test_training_stops_after_the_patience_and_returns_the_best_weights(curve, patience, rounds, best):
    trained = train([curve], patience)
    assert counts(trained) == [CHUNK * best]
    assert trained.losses.shape == (1, CHUNK * rounds)
    assert np.all(np.isfinite(trained.losses))
    np.testing.assert_array_equal(trained.validation, np.asarray([curve[:rounds]], np.float32))


def test_if_nothing_is_ever_finite_the_first_weights_are_returned():
    trained = train([[np.nan] * 10], 2)
    assert counts(trained) == [0.0]
    assert trained.validation.shape == (1, 2)


def test_seeds_train_until_the_last_has_waited_and_keep_their_own_best():
    trained = train([[1, 2, 3, 4, 5, 6, 7, 8, 9, 9], [9, 8, 7, 6, 7, 8, 9, 9, 9, 9]], 2)
    assert counts(trained) == [2.0, 8.0]
    assert trained.validation.shape == (2, 6)


def test_without_early_stopping_the_last_weights_are_returned_and_nothing_is_validated():
    trained = train([[1.0] * 10], None)
    assert counts(trained) == [20.0]
    assert trained.validation.shape == (1, 0)


@pytest.mark.parametrize("stop", [2, 6, 8])
def test_resumed_training_stops_where_an_uninterrupted_one_does(tmp_path, stop):
    curve = [5, 3, 2, 4, 5, 0, 0, 0, 0, 0]

    class Interruption(Exception):
        pass

    def interrupt(now):
        if now.done == stop:
            raise Interruption

    path = tmp_path / "run.safetensors"
    with pytest.raises(Interruption):
        train([curve], 2, checkpoint=path, progress=interrupt)
    trained = train([curve], 2, checkpoint=path)
    assert counts(trained) == [6.0]
    assert trained.losses.shape == (1, 10)
    again = train([curve], 2, checkpoint=path)  # already over: nothing is trained
    np.testing.assert_array_equal(again.validation, trained.validation)
    assert counts(again) == [6.0]
    with pytest.raises(ValueError, match="another meta-training"):
        train([curve], 3, checkpoint=path)


def test_a_learned_optimizer_keeps_its_best_weights():
    family, rule = sx.tasks.make_family("ellipse-fixed"), sx.UpdateRule()

    def validate(network):
        unseen = sx.unroll_many(rule, network, family, jax.random.key(7), steps=5, tasks=8)
        return jnp.median(unseen.loss[-1])

    estimator = sx.metatrain.TruncatedBPTT(family, rule, steps=5, truncation=5, tasks=4)
    trained = sx.meta_train(
        lambda key: sx.learned.FlatGradientLSTM(2, width=6, depth=1, key=key),
        estimator,
        optax.adam(0.3),  # so fast that it gets worse again
        jax.random.key(0),
        outer_steps=30,
        seeds=2,
        chunk=3,
        stopping=sx.metatrain.EarlyStopping(validate, patience=2),
    )
    best = [float(eqx.filter_jit(validate)(trained.network(seed))) for seed in range(2)]
    np.testing.assert_allclose(best, np.min(trained.validation, axis=1), rtol=1e-4)


def test_a_patience_of_zero_is_rejected():
    with pytest.raises(ValueError, match="patience of at least 1, got patience=0"):
        sx.metatrain.EarlyStopping(lambda network: 0.0, patience=0)
