"""One optimizer on one task, or on many: against loops in NumPy and loops over single tasks."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import symmetrax as sx

pytestmark = pytest.mark.usefixtures("quick_compilation")

MATRIX, OFFSET = np.array([[1.0, 2.0], [2.0, 1.0]]), np.array([-7.0, -5.0])
KEY = jax.random.key(0)


def descent(rate, task):
    return optax.sgd(rate)


def learned(network, task):
    return network.transform(task.symmetry())


many = eqx.filter_jit(sx.unroll_many)


@eqx.filter_jit
def alone(make_transform, network, task, key, steps):
    return sx.unroll(make_transform(network, task), task, key, steps, watch=())


@eqx.filter_jit
def rebuild(family, key):
    """The task that a key of `unroll_many` stands for, and the key of its start."""
    draw, start = jax.random.split(key)
    return family.task(family.draw(draw)), start


class Probe(NamedTuple):
    gap: Any
    slope_gap: Any
    batch: Any
    key: Any


def probe():
    """Descent that notes whether what it is given fits together."""

    def init(params):
        return Probe(jnp.zeros(()), jnp.zeros(()), jnp.zeros(64), jnp.zeros(2, jnp.uint32))

    def update(updates, state, params, *, value, grad, value_fn, batch, key):
        here, slope = jax.value_and_grad(value_fn)(params)
        apart = optax.tree.norm(optax.tree.sub(slope, grad)) + optax.tree.norm(optax.tree.sub(updates, grad))
        state = Probe(jnp.abs(here - value), apart, batch[0][0], jax.random.key_data(key))
        return jax.tree.map(lambda g: -0.1 * g, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def test_twelve_steps_give_thirteen_numbers_and_the_first_is_the_start():
    task = sx.tasks.booth(start=[5.0, -5.0])
    trace = jax.jit(lambda key: sx.unroll(optax.sgd(0.05), task, key, 12, points=True))(KEY)
    assert trace.loss.shape == trace.gradient_norm.shape == (13,)
    assert trace.params.shape == (13, 2)
    assert trace.loss[0] == 144.0
    assert jnp.array_equal(trace.params[0], jnp.array([5.0, -5.0]))


@pytest.mark.parametrize("momentum", [None, 0.7])
def test_descent_equals_a_loop_in_numpy(float64, momentum):
    trace = sx.unroll(optax.sgd(0.03, momentum), sx.tasks.booth(start=[5.0, -5.0]), KEY, 12, points=True)
    x, velocity = np.array([5.0, -5.0]), 0.0
    for t in range(13):
        u = MATRIX @ x + OFFSET
        gradient = 2 * MATRIX.T @ u
        np.testing.assert_allclose(trace.params[t], x, rtol=1e-12)
        np.testing.assert_allclose(trace.loss[t], u @ u, rtol=1e-12)
        np.testing.assert_allclose(trace.gradient_norm[t], np.linalg.norm(gradient), rtol=1e-12)
        velocity = (momentum or 0.0) * velocity + gradient
        x = x - 0.03 * velocity


def test_adam_equals_a_loop_in_numpy(float64):
    """S21: the baseline of the published code, Adam at learning rate 0.5, to 1e-12."""
    task = sx.tasks.rosenbrock(start=[-1.0, -1.0])
    trace = jax.jit(lambda key: sx.unroll(optax.adam(0.5), task, key, 50, points=True))(KEY)
    x, m, v = np.array([-1.0, -1.0]), np.zeros(2), np.zeros(2)
    for t in range(51):
        np.testing.assert_allclose(trace.params[t], x, rtol=1e-12, atol=1e-12)
        valley = x[1] - x[0] ** 2
        g = np.array([-400 * x[0] * valley + 2 * (x[0] - 1), 200 * valley])
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        x = x - 0.5 * (m / (1 - 0.9 ** (t + 1))) / (np.sqrt(v / (1 - 0.999 ** (t + 1))) + 1e-8)


@pytest.mark.parametrize("make", ["descent", "learned"])
def test_many_tasks_equal_a_loop_over_single_ones(make):
    """S02: batching changes nothing. Each task's key is split for its draw and its start."""
    family, steps = sx.tasks.make_family("ellipse-random"), 8
    network = sx.learned.FlatGradientLSTM(2, algebra=1, width=8, inputs=("iterate", "previous"), key=KEY)
    transform, network = {"descent": (descent, 0.02), "learned": (learned, network)}[make]
    together = many(transform, network, family, KEY, steps, 7, points=True)
    assert together.loss.shape == (steps + 1, 7)
    assert together.params.shape == (steps + 1, 2, 7)
    for i, key in enumerate(jax.random.split(KEY, 7)):
        single = alone(transform, network, *rebuild(family, key), steps)
        np.testing.assert_allclose(together.loss[:, i], single.loss, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(together.gradient_norm[:, i], single.gradient_norm, rtol=1e-5, atol=1e-5)


def test_a_single_task_has_no_axis():
    family = sx.tasks.make_family("ellipse-random")
    found = many(descent, 0.02, family, KEY, 5, 1)
    single = alone(descent, 0.02, *rebuild(family, jax.random.split(KEY, 1)[0]), 5)
    assert found.loss.shape == (6,)
    np.testing.assert_allclose(found.loss, single.loss, rtol=1e-6)


def test_all_optimizers_meet_the_same_tasks_under_one_key():
    family = sx.tasks.make_family("rosenbrock-random")
    slow, fast = (many(descent, rate, family, KEY, 3, 50) for rate in (1e-4, 1e-3))
    assert jnp.array_equal(slow.loss[0], fast.loss[0])
    assert not jnp.any(slow.loss[1] == fast.loss[1])
    other = many(descent, 1e-4, family, jax.random.key(1), 3, 50)
    assert not np.intersect1d(slow.loss[0], other.loss[0]).size


def test_two_runs_give_equal_arrays():
    family, network = (
        sx.tasks.make_family("ellipse-random"),
        sx.learned.FlatGradientLSTM(2, algebra=1, width=8, key=KEY),
    )
    first, second = (many(learned, network, family, KEY, 8, 7, points=True) for _ in range(2))
    assert eqx.tree_equal(first, second)


def test_value_gradient_and_value_fn_are_of_the_same_minibatch():
    """Every step draws new images, and all that the optimizer is given is about the same ones."""
    task, steps = sx.tasks.make_family("digits").task((), 12), 6
    trace = jax.jit(lambda key: sx.unroll(probe(), task, key, steps, watch=Probe._fields))(KEY)
    np.testing.assert_allclose(trace.watched["gap"], 0.0, atol=1e-6)
    np.testing.assert_allclose(trace.watched["slope_gap"], 0.0, atol=1e-5)
    assert len(np.unique(trace.watched["batch"], axis=0)) == steps + 1
    assert len(np.unique(trace.watched["key"], axis=0)) == steps + 1  # the start's zeros, and one for each


def test_the_loss_in_a_trace_is_at_the_new_point_on_the_new_minibatch():
    task = sx.tasks.make_family("digits").task((), 12)
    at, first, rest = jax.random.split(KEY, 3)
    evaluate, draw = (
        eqx.filter_jit(jax.value_and_grad(lambda *at: task.loss(*at))),
        eqx.filter_jit(task.batch),
    )
    params, batch, expected = task.init(at), draw(first), []
    for t in range(4):
        value, gradient = evaluate(params, batch)
        expected.append(value)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
        batch = draw(jax.random.split(jax.random.fold_in(rest, t))[0])
    found = jax.jit(lambda key: sx.unroll(optax.sgd(0.1), task, key, 3))(KEY)
    np.testing.assert_allclose(found.loss, expected, rtol=1e-5)


@pytest.mark.slow
def test_many_classifiers_train_at_once():
    family = sx.tasks.make_family("digits")
    loss = many(descent, 0.3, family, KEY, 15, 3, shape=family.shapes[1]).loss
    assert loss.shape == (16, 3)
    assert jnp.all(loss[-1] < 0.8 * loss[0])


def test_watched_values_are_read_from_the_state_where_it_has_them():
    task = sx.tasks.booth(start=[5.0, -5.0])
    optimizer = sx.teleported(
        optax.sgd(0.01), task.symmetry(), search=sx.search.Oracle(), schedule={0, 2}, guard=sx.Guard(jump=3.0)
    )
    trace = sx.unroll(optimizer, task, KEY, 3)
    assert set(trace.watched) == {"algebra", "loss_change", "outcome"}
    assert trace.watched["outcome"].tolist()[:2] == [0, 2]  # the jump from the start is longer than 3
    assert trace.watched["algebra"].shape == (4, 1)
    assert sx.unroll(optax.sgd(0.01), task, KEY, 3).watched == {}
    assert sx.unroll(optax.sgd(0.01), task, KEY, 3).params is None
    few = sx.unroll(optimizer, task, KEY, 3, watch=("count", "nothing"))
    assert few.watched["count"].tolist() == [0, 1, 2, 3]
    assert set(few.watched) == {"count"}


def test_a_learned_optimizer_inside_teleported_can_be_watched():
    """Both states tell of a teleport, under the same names."""
    task = sx.tasks.booth(start=[5.0, -5.0])
    learned = sx.learned.FlatGradientLSTM(2, width=8, key=KEY).transform()
    trace = sx.unroll(
        sx.teleported(learned, task.symmetry(), search=sx.search.Oracle(), guard=None), task, KEY, 2
    )
    assert jnp.all(jnp.isfinite(trace.loss))
    assert jnp.any(trace.gradient_norm[1:] != trace.gradient_norm[0])


def test_a_diverged_run_shows_in_the_gradient_norm():
    trace = sx.unroll(optax.sgd(1e3), sx.tasks.rosenbrock(start=[5.0, -5.0]), KEY, 6)
    assert not jnp.isfinite(trace.loss[-1])
    assert not jnp.any(jnp.isfinite(trace.gradient_norm[~jnp.isfinite(trace.loss)]))


def test_a_start_that_is_not_finite_is_an_error():
    task = eqx.tree_at(lambda task: task.start, sx.tasks.booth(start=[5.0, -5.0]), jnp.array([jnp.inf, 0.0]))
    with pytest.raises(ValueError, match=r"not finite: params is \[inf +0\.\]"):
        sx.unroll(optax.sgd(0.1), task, KEY, 3)


def test_no_steps_is_an_error():
    with pytest.raises(ValueError, match="at least one step, got steps=0"):
        sx.unroll(optax.sgd(0.1), sx.tasks.booth(), KEY, 0)
    with pytest.raises(ValueError, match="at least one step, got steps=0"):
        sx.unroll_many(descent, 0.1, sx.tasks.make_family("booth"), KEY, 0, 2)
