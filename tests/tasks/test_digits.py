"""Classifiers on scikit-learn's digits, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import sklearn.datasets

import symmetrax as sx

pytestmark = pytest.mark.usefixtures("quick_compilation")

FAMILY = sx.tasks.make_family("digits")


def numpy_logits(params, pixels):
    p = {name: np.asarray(leaf, float) for name, leaf in params.items()}
    return np.maximum(pixels @ p["w1"].T + p["b1"], 0) @ p["w2"].T + p["b2"]


def numpy_loss(params, pixels, labels):
    logits = numpy_logits(params, np.asarray(pixels, float))
    return np.mean(scipy.special.logsumexp(logits, axis=1) - logits[np.arange(len(labels)), labels])


def images(pixels, labels):
    """A set of images with their labels."""
    return {(np.asarray(p).tobytes(), int(y)) for p, y in zip(pixels, labels, strict=True)}


def test_training_and_test_images_split_the_data_set():
    data, target = sklearn.datasets.load_digits(return_X_y=True)
    train, test = FAMILY.train, FAMILY.test
    assert len(train.labels) == 1437
    assert len(test.labels) == 360
    together = np.concatenate([train.pixels, test.pixels]), np.concatenate([train.labels, test.labels])
    assert sorted(images(*together)) == sorted(images((data / 16).astype(np.float32), target))
    assert not images(*train) & images(*test)
    assert np.bincount(test.labels, minlength=10).min() > 20


def test_shapes_are_the_widths_and_the_first_is_the_default():
    assert FAMILY.task(()).width == FAMILY.shapes[0]
    for width in FAMILY.shapes:
        params = FAMILY.task((), width).init(jax.random.key(0))
        shapes = {name: leaf.shape for name, leaf in params.items()}
        assert shapes == {"w1": (width, 64), "b1": (width,), "w2": (10, width), "b2": (10,)}


def test_initial_weights_follow_the_rule_of_he():
    params = jax.vmap(FAMILY.task((), 16).init)(jax.random.split(jax.random.key(0), 100))
    assert np.std(params["w1"]) == pytest.approx(np.sqrt(2 / 64), rel=0.02)
    assert np.std(params["w2"]) == pytest.approx(np.sqrt(2 / 16), rel=0.02)
    assert not np.any(params["b1"])
    assert not np.any(params["b2"])
    assert len(np.unique(params["w1"][:, 0, 0])) == 100


def test_minibatches_show_training_images_with_their_labels():
    task = FAMILY.task((), 12)
    pixels, labels = jax.jit(jax.vmap(task.batch))(jax.random.split(jax.random.key(0), 200))
    assert pixels.shape == (200, 64, 64)
    assert labels.shape == (200, 64)
    seen = images(pixels.reshape(-1, 64), labels.ravel())
    assert seen <= images(*FAMILY.train)
    assert len(seen) == len(images(*FAMILY.train))  # all of them, in 12,800 draws
    assert not jnp.array_equal(labels[0], labels[1])


def test_loss_is_the_mean_cross_entropy():
    task = FAMILY.task((), 12)
    batch = task.batch(jax.random.key(1))
    params = jax.tree.map(lambda x: 3 * x + 0.1, task.init(jax.random.key(2)))
    assert task.loss(params, batch) == pytest.approx(numpy_loss(params, *map(np.asarray, batch)), rel=1e-5)


def test_held_out_measures_loss_and_accuracy_on_the_test_images():
    task = FAMILY.task((), 12)
    params = task.init(jax.random.key(3))
    loss, accuracy = task.held_out(params)
    guesses = np.argmax(numpy_logits(params, FAMILY.test.pixels), 1)
    assert loss == pytest.approx(numpy_loss(params, *FAMILY.test), rel=1e-5)
    assert accuracy == pytest.approx(np.mean(guesses == FAMILY.test.labels), abs=1e-6)


def test_digits_have_no_far_starts():
    with pytest.raises(ValueError, match="'digits' has no far starts"):
        sx.tasks.make_family("digits", far=True)


class Unknown(sx.tasks.Classification):
    """A classifier that does not tell its symmetry."""

    def symmetry(self):
        return None


def test_nothing_can_teleport_without_a_symmetry():
    task = Unknown(FAMILY.train, FAMILY.test, 12, 64)
    rule = sx.UpdateRule(schedule=jnp.ones(3, bool))
    network = sx.learned.PerNeuronLSTM(width=4, key=jax.random.key(0))
    with pytest.raises(ValueError, match="Unknown describes no symmetry"):
        rule(network, task)
