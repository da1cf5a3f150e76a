"""Networks of several layers as classifiers and regressions, against NumPy, and their exact symmetry."""

from typing import cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import scipy.stats

import symmetrax as sx

# `Images` is the container that `sx.tasks.ImageFamily` takes apart.
from symmetrax.tasks import _families
from symmetrax.tasks._data import Images

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)


def random_images(count, pixels=9, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    return Images(
        rng.random((count, pixels)).astype(np.float32), rng.integers(0, classes, count).astype(np.int32)
    )


def classifier(**options):
    return sx.tasks.Classification(random_images(60), random_images(20, seed=1), (6, 5), 8, 4, **options)


def numpy_outputs(params, x, slope):
    """The network written out with samples as columns: W3 s(W2 s(W1 X + b1) + b2) + b3."""
    p = {name: np.asarray(leaf, float) for name, leaf in params.items()}
    h = np.asarray(x, float).T
    for k in ("1", "2", "3"):
        z = p["w" + k] @ h + (p["b" + k][:, None] if "b" + k in p else 0)
        h = np.where(z < 0, slope * z, z)
    return z.T


def numpy_cross_entropy(logits, labels):
    return np.mean(scipy.special.logsumexp(logits, axis=1) - logits[np.arange(len(labels)), labels])


def random_params(task):
    """Like initial ones, but with biases that are not zero, and nothing to compile."""
    rng, like = np.random.default_rng(0), jax.eval_shape(task.init, KEY)
    return {name: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype) for name, leaf in like.items()}


@pytest.mark.parametrize(("slope", "bias"), [(0.0, True), (0.1, False)])
def test_a_classifier_of_three_layers_is_that_of_numpy(float64, slope, bias, central_differences):
    task = classifier(slope=slope, bias=bias)
    params = random_params(task)
    assert set(params) == {"w1", "w2", "w3"} | ({"b1", "b2", "b3"} if bias else set())
    pixels, labels = batch = task.batch(KEY)
    loss, gradient = eqx.filter_jit(lambda *at: jax.value_and_grad(task.loss)(*at))(params, batch)

    def unflatten(vector):
        ends = np.cumsum([params[name].size for name in sorted(params)])
        parts = zip(sorted(params), np.split(vector, ends[:-1]), strict=True)
        return {name: part.reshape(params[name].shape) for name, part in parts}

    def oracle(vector):
        return numpy_cross_entropy(numpy_outputs(unflatten(vector), pixels, slope), np.asarray(labels))

    def flatten(tree):
        return np.concatenate([np.ravel(tree[name]) for name in sorted(tree)])

    assert loss == pytest.approx(oracle(flatten(params)), rel=1e-12)
    expected = central_differences(oracle, flatten(params))
    np.testing.assert_allclose(flatten(gradient), expected, rtol=1e-6, atol=1e-8)
    held_out, accuracy = eqx.filter_jit(task.held_out)(params)
    logits = numpy_outputs(params, task.test.pixels, slope)
    assert held_out == pytest.approx(numpy_cross_entropy(logits, task.test.labels), rel=1e-12)
    right = np.mean(np.argmax(logits, 1) == task.test.labels)
    assert accuracy == pytest.approx(right, abs=1e-6)  # a mean of booleans is float32


def test_weights_start_by_the_rule_of_he_for_the_slope():
    slope = 0.5
    network = sx.tasks.MLP((9, 16, 12, 4), slope)
    params = jax.jit(jax.vmap(network.init))(jax.random.split(KEY, 2000))
    for name, inputs in {"w1": 9, "w2": 16, "w3": 12}.items():
        assert np.std(params[name]) == pytest.approx(np.sqrt(2 / (1 + slope**2) / inputs), rel=0.01)
        assert np.mean(params[name]) == pytest.approx(0, abs=0.005)
    assert not any(np.any(params[name]) for name in ("b1", "b2", "b3"))
    drawn = np.stack([params[name][:, 0, 0] for name in ("w1", "w2", "w3")])
    assert np.max(np.abs(np.corrcoef(drawn) - np.eye(3))) < 0.1


def test_one_width_is_one_hidden_layer():
    sets = random_images(60), random_images(20)
    one, several = (sx.tasks.Classification(*sets, widths, 8, 4) for widths in (6, (6,)))
    assert one.widths == (6,)
    assert one.width == 6
    assert one.network == several.network == sx.tasks.MLP((9, 6, 4))
    assert {name: leaf.shape for name, leaf in jax.eval_shape(one.init, KEY).items()} == {
        "w1": (6, 9),
        "b1": (6,),
        "w2": (4, 6),
        "b2": (4,),
    }
    family = sx.tasks.ImageFamily("mine", *sets, widths=(6, (6, 5)), slope=0.1, bias=False)
    assert family.shapes == (6, (6, 5))
    assert family.task(()).network == sx.tasks.MLP((9, 6, 10), 0.1, bias=False)
    assert family.task((), (6, 5)).network == sx.tasks.MLP((9, 6, 5, 10), 0.1, bias=False)


@pytest.mark.parametrize("sizes", [(3, 2), (3, 0, 2), (3,)])
def test_a_network_needs_hidden_units(sizes):
    with pytest.raises(ValueError, match=r"at least one hidden layer.*got sizes=\(3"):
        sx.tasks.MLP(sizes)


def regression(key=KEY, **options):
    family = sx.tasks.RegressionFamily("mine", **options)
    return family.task(family.draw(key))


@pytest.mark.parametrize("start", ["uniform", "gaussian"])
def test_regression_is_that_of_the_paper(float64, start):
    """1/2 ||Y - W3 s(W2 s(W1 X))||^2 with X of shape (5, 4), Y of shape (8, 4), and slope 0.1."""
    task = regression(start=start)
    params = eqx.filter_jit(task.init)(KEY)
    assert {name: leaf.shape for name, leaf in params.items()} == {"w1": (6, 5), "w2": (7, 6), "w3": (8, 7)}
    x, y = np.asarray(task.inputs).T, np.asarray(task.targets).T
    assert (x.shape, y.shape) == ((5, 4), (8, 4))
    w1, w2, w3 = (np.asarray(params[name]) for name in ("w1", "w2", "w3"))
    first = w1 @ x
    first = np.maximum(first, 0.1 * first)
    second = w2 @ first
    second = np.maximum(second, 0.1 * second)
    expected = 0.5 * np.linalg.norm(y - w3 @ second, "fro") ** 2
    batch = task.batch(KEY)
    assert task.loss(params) == pytest.approx(expected, rel=1e-13)
    assert task.loss(params, batch) == task.loss(params)
    other = (batch[0], batch[1] + 1)
    assert task.loss(params, other) != task.loss(params)
    # The gradient of the last matrix, by hand.
    gradient = jax.grad(task.loss)(params)["w3"]
    np.testing.assert_allclose(gradient, (w3 @ second - y) @ second.T, rtol=1e-11)


def test_data_and_weights_are_uniform_and_independent():
    family = sx.tasks.make_family("regression")

    @jax.jit
    @jax.vmap
    def draw(key):
        data, start = jax.random.split(key)
        inputs, targets = family.draw(data)
        return inputs, targets, family.task((inputs, targets)).init(start)

    inputs, targets, params = draw(jax.random.split(KEY, 500))
    for drawn in (inputs, targets, *params.values()):
        values = np.ravel(drawn)
        assert 0 <= values.min() < 0.001
        assert 0.999 < values.max() <= 1
        assert scipy.stats.kstest(values, "uniform").pvalue > 1e-3
        assert len(np.unique(np.asarray(drawn)[:, 0, 0])) > 490
    entries = np.stack([inputs[:, 0, 0], targets[:, 0, 0], *(leaf[:, 0, 0] for leaf in params.values())])
    assert np.max(np.abs(np.corrcoef(entries) - np.eye(5))) < 0.2


def test_a_centred_start_is_gaussian_and_meets_both_sides_of_the_kink():
    task = regression(dims=(20, 20, 20), samples=20, start="gaussian")
    params = jax.jit(jax.vmap(task.init))(jax.random.split(KEY, 50))
    assert {name: leaf.shape[1:] for name, leaf in params.items()} == {"w1": (20, 20), "w2": (20, 20)}
    assert np.mean(params["w1"]) == pytest.approx(0, abs=0.01)
    assert np.std(params["w1"]) == pytest.approx(np.sqrt(2 / 1.01 / 20), rel=0.02)
    below = np.mean(np.asarray(params["w1"]) @ np.asarray(task.inputs).T < 0)
    assert below == pytest.approx(0.5, abs=0.05)


def test_many_regressions_train_at_once():
    """The published rate for gradient descent: the loss falls on every task."""
    family = sx.tasks.make_family("regression")
    loss = sx.unroll_many(lambda rate, task: optax.sgd(rate), 1e-4, family, KEY, 300, 20).loss
    assert loss.shape == (301, 20)
    assert len(np.unique(loss[0])) == 20
    assert np.all(loss[-1] < 0.01 * loss[0])
    assert np.all(np.diff(loss, axis=0) < 0)


def check_symmetry(task, params, batch, hidden, tolerance):
    symmetry = task.symmetry()
    assert symmetry.algebra == (sum(hidden),)
    logs = np.random.default_rng(1).normal(size=sum(hidden))

    @jax.jit
    def move(coordinates):
        moved = symmetry.act(symmetry.exp(coordinates), params)
        return moved, task.loss(moved, batch), task.loss(params, batch)

    moved, after, before = move(jnp.asarray(logs, params["w1"].dtype))
    s1, s2 = np.split(np.exp(logs), [hidden[0]])
    expected = {
        "w1": s1[:, None] * params["w1"],
        "w2": s2[:, None] * np.asarray(params["w2"]) / s1,
        "w3": np.asarray(params["w3"]) / s2,
    }
    if "b1" in params:
        expected |= {"b1": s1 * params["b1"], "b2": s2 * params["b2"], "b3": params["b3"]}
    assert set(moved) == set(params) == set(expected)
    for name, leaf in expected.items():
        np.testing.assert_allclose(moved[name], leaf, rtol=tolerance)
    np.testing.assert_allclose(after, before, rtol=tolerance)


@pytest.mark.parametrize(("slope", "bias"), [(0.0, True), (0.1, False)])
def test_scaling_hidden_units_leaves_a_classifier_unchanged(float64, slope, bias):
    task = classifier(slope=slope, bias=bias)
    check_symmetry(task, random_params(task), task.batch(KEY), (6, 5), 1e-12)


def test_scaling_hidden_units_leaves_a_regression_unchanged(float64):
    task = regression()
    check_symmetry(task, random_params(task), None, (6, 7), 1e-12)


def test_the_symmetry_holds_in_single_precision():
    task = classifier()
    check_symmetry(task, random_params(task), task.batch(KEY), (6, 5), 1e-5)


@pytest.fixture
def few_images(monkeypatch):
    """The family "mnist" on 50 random images instead."""
    sets = random_images(50, 784, 10), random_images(10, 784, 10, seed=1)
    monkeypatch.setattr(_families, "mnist", lambda: sets)
    return sets


def test_the_family_mnist_is_the_network_of_the_paper(few_images):
    family = cast(sx.tasks.ImageFamily, sx.tasks.make_family("mnist"))
    task = family.task(())
    shapes = {name: leaf.shape for name, leaf in jax.eval_shape(task.init, KEY).items()}
    assert shapes == {"w1": (16, 784), "w2": (10, 16), "w3": (10, 10)}
    assert task.network.slope == 0.1
    pixels, labels = task.batch(KEY)
    assert (pixels.shape, labels.shape) == ((20, 784), (20,))
    assert np.array_equal(family.train.pixels, few_images[0].pixels)
    assert np.array_equal(family.test.labels, few_images[1].labels)
    rows = [np.flatnonzero((few_images[0].pixels == image).all(1)).item() for image in np.asarray(pixels)]
    assert np.array_equal(few_images[0].labels[rows], labels)


def test_images_are_read_only_when_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(_families, "mnist", lambda: asked.append(1) or (random_images(5, 784),) * 2)
    assert {"mnist", "regression", "digits"} <= set(sx.tasks.family_names())
    sx.tasks.make_family("digits")
    sx.tasks.make_family("regression")
    assert not asked
    sx.tasks.make_family("mnist")
    assert asked


def test_bad_choices_are_named(few_images, unchecked):
    for name in ("mnist", "regression"):
        with pytest.raises(ValueError, match=f"'{name}' has no far starts"):
            sx.tasks.make_family(name, far=True)
    with pytest.raises(ValueError, match=r"Unknown family 'minst'.*Did you mean 'mnist'\?"):
        sx.tasks.make_family("minst")
    with pytest.raises(ValueError, match="at least 1, got samples=0"):
        sx.tasks.RegressionFamily("mine", samples=0)
    with pytest.raises(ValueError, match="must be one of uniform, gaussian, got 'normal'"):
        sx.tasks.RegressionFamily("mine", start="normal")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"got sizes=\(20, 20\)"):
        sx.tasks.RegressionFamily("mine", dims=(20, 20))
