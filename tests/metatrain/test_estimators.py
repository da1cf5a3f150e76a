"""Truncated meta-gradients: windows, weights and batches, against central differences and loops."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import symmetrax as sx

from ..cases import mostly_slow

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)
UNROLL = 3

step = eqx.filter_jit(lambda estimator, network, carry: estimator.step(network, carry, KEY, None))
init = eqx.filter_jit(lambda estimator, network: estimator.init(network, KEY, None))


def estimator(tasks=3, rule=None, ratio=0.5, family="ellipse-random", **options):
    if rule is None:
        rule = sx.UpdateRule(schedule=jnp.ones(2 * UNROLL, bool), guard=None, meta_order=2)
    family = sx.tasks.make_family(family)
    return sx.metatrain.TruncatedBPTT(
        family, rule, steps=2 * UNROLL, truncation=UNROLL, tasks=tasks, ratio=ratio, **options
    )


def small(width=3, depth=1):
    return sx.learned.FlatGradientLSTM(2, algebra=1, width=width, depth=depth, key=KEY)


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 0.9, 1.0, 1.5])
def test_loss_weights_are_powers_that_sum_to_one(float64, ratio):
    """S03: w_t is proportional to ratio^(unroll - 1 - t)."""
    powers = np.array([ratio ** (4 - t) for t in range(5)])
    np.testing.assert_allclose(sx.metatrain.loss_weights(5, ratio), powers / powers.sum(), rtol=1e-14)
    assert float(jnp.sum(sx.metatrain.loss_weights(7, ratio))) == pytest.approx(1.0, abs=1e-15)
    np.testing.assert_allclose(
        jax.jit(sx.metatrain.loss_weights, static_argnums=0)(5, jnp.array(ratio)), powers / powers.sum()
    )


@pytest.mark.parametrize("tasks", mostly_slow([1, 3], ["3"]))
def test_the_meta_loss_is_the_weighted_sum_of_exactly_unroll_losses(float64, tasks):
    """S03, S04: f(x_1) ... f(x_T) in the first window and the next T in the second, summed by hand."""
    it, network = estimator(tasks), small()
    trace = sx.unroll_many(it.make_transform, network, it.family, KEY, 2 * UNROLL, tasks)
    losses = np.asarray(trace.loss).reshape(2 * UNROLL + 1, tasks).mean(1)
    carry = init(it, network)
    for window in range(2):
        meta_loss, _, carry = step(it, network, carry)
        seen = losses[1 + window * UNROLL : 1 + (window + 1) * UNROLL]
        assert float(meta_loss) == pytest.approx(seen @ np.array([1, 2, 4]) / 7, rel=1e-10)
        assert np.all(carry.carry.count == (window + 1) * UNROLL)


def test_the_meta_gradient_of_each_window_equals_central_differences(float64):
    """S04: to 1e-4 in every weight, with the window's start as a constant."""
    it, network = estimator(tasks=2), small(depth=2)
    weights, unravel = ravel_pytree(network)
    shifts = 1e-5 * np.concatenate([np.eye(len(weights)), -np.eye(len(weights))])

    @eqx.filter_jit
    def losses(carry):
        return jax.vmap(lambda w: it.step(unravel(w), carry, KEY, None)[0])(weights + shifts)

    carry = init(it, network)
    for _ in range(it.windows):
        up, down = np.split(np.asarray(losses(carry)), 2)
        expected = (up - down) / 2e-5
        _, gradient, carry = step(it, network, carry)
        found = np.asarray(ravel_pytree(gradient)[0])
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7 * np.max(np.abs(expected)))
        for leaf in jax.tree.leaves(gradient.core):
            assert np.any(leaf != 0)


def test_nothing_is_differentiated_across_windows(float64):
    """S04: the first window's weights reach the second window's loss through values only."""
    it, network = estimator(tasks=2), small()
    start = init(it, network)

    @eqx.filter_jit
    def second(first_weights):
        _, _, carry = it.step(first_weights, start, KEY, None)
        return it.step(network, carry, KEY, None)[0]

    other = jax.tree.map(lambda w: 1.01 * w, network)
    assert second(other) != second(network)
    for leaf in jax.tree.leaves(eqx.filter_jit(eqx.filter_grad(second))(network)):
        assert not np.any(leaf)


class Script(eqx.Module):
    """A network that is a list of moves: at step t, x <- turn(angle_t) . (x + push_t)."""

    angles: jax.Array
    pushes: jax.Array


def scripted(symmetry):
    def make_transform(network, task):
        def update(updates, count, params=None, **extra):
            end = params + network.pushes[count]
            there = symmetry.act(symmetry.exp(network.angles[count][None]), end)
            return there - params, count + 1

        return optax.GradientTransformationExtraArgs(lambda params: jnp.array(0), update)

    return make_transform


@pytest.mark.parametrize("invariant", [True, False])
def test_every_update_and_teleport_of_a_window_reaches_its_losses(float64, invariant):
    """Each push has a derivative in its own window and in no other. Each angle too, but for a window's last
    one: a true symmetry hides it from the loss it reaches, and that of another function shows it."""
    symmetry = (sx.tasks.booth if invariant else sx.tasks.rosenbrock)().symmetry()
    it = estimator(rule=scripted(symmetry), family="booth", ratio=1.0)
    network = Script(jnp.full(2 * UNROLL, 0.1), jnp.full((2 * UNROLL, 2), 0.05))
    carry = init(it, network)
    for window in range(2):
        _, gradient, carry = step(it, network, carry)
        own = np.arange(2 * UNROLL) // UNROLL == window
        assert np.all(gradient.pushes[own] != 0)
        assert not np.any(gradient.pushes[~own])
        assert not np.any(gradient.angles[~own])
        *rest, last = np.abs(gradient.angles[own])
        assert min(rest) > 1e-3
        assert last < 1e-12 if invariant else last > 1e-3


def test_a_batch_of_tasks_gives_the_mean_of_single_gradients():
    """To 1e-5: the tasks of rollouts one by one, as rollouts without a task axis."""
    it, network = estimator(tasks=5, rule=sx.UpdateRule(schedule=jnp.ones(6, bool), guard=None)), small(8)
    carry = init(it, network)
    for _ in range(2):
        alone = [step(it, network, jax.tree.map(lambda x, i=i: x[..., i], carry)) for i in range(5)]
        loss, gradient, carry = step(it, network, carry)
        mean = jax.tree.map(lambda *leaves: sum(leaves) / 5, *(a[1] for a in alone))
        np.testing.assert_allclose(loss, np.mean([a[0] for a in alone]), rtol=1e-5)
        scale = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(mean))
        for found, expected in zip(jax.tree.leaves(gradient), jax.tree.leaves(mean), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * scale)


def test_recomputing_steps_changes_no_gradient(float64):
    network = small()
    plain, again = (
        step(estimator(remat=remat), network, init(estimator(remat=remat), network))
        for remat in (False, True)
    )
    for found, expected in zip(jax.tree.leaves(again[:2]), jax.tree.leaves(plain[:2]), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("numbers", [(20, 6, 1), (5, 10, 1), (0, 5, 1), (20, 0, 1), (20, 5, 0)])
def test_windows_that_do_not_fit_are_an_error_with_the_numbers(numbers):
    steps, unroll, tasks = numbers
    message = f"that divides `steps`, got steps={steps}, truncation={unroll}, tasks={tasks}"
    with pytest.raises(ValueError, match=message):
        sx.metatrain.TruncatedBPTT(
            sx.tasks.make_family("booth"), sx.UpdateRule(), steps=steps, truncation=unroll, tasks=tasks
        )


@pytest.mark.parametrize("tasks", mostly_slow([1, 3], ["3"]))
def test_logarithms_of_losses_are_averaged_and_no_scale_enters(float64, tasks):
    it, network = estimator(tasks, measure="log"), small()
    trace = sx.unroll_many(it.make_transform, network, it.family, KEY, 2 * UNROLL, tasks)
    logs = np.log(np.asarray(trace.loss)).reshape(2 * UNROLL + 1, tasks).mean(1)
    loss, gradient, _ = step(it, network, init(it, network))
    assert float(loss) == pytest.approx(logs[1 : 1 + UNROLL] @ np.array([1, 2, 4]) / 7, rel=1e-10)
    _, plain, _ = step(estimator(tasks), network, init(estimator(tasks), network))
    assert not np.allclose(ravel_pytree(gradient)[0], ravel_pytree(plain)[0])


def test_the_logarithm_of_a_loss_of_zero_is_finite_with_a_finite_gradient():
    it = sx.metatrain.TruncatedBPTT(
        sx.tasks.make_family("booth"),
        lambda rate, task: optax.sgd(0.0 * rate),
        steps=2,
        truncation=2,
        measure="log",
    )
    at_optimum = jax.tree.map(jnp.zeros_like, init(it, jnp.array(0.1)).carry.params) + jnp.array([1.0, 3.0])
    carry = init(it, jnp.array(0.1))
    carry = carry._replace(carry=carry.carry._replace(params=at_optimum))
    loss, gradient, _ = step(it, jnp.array(0.1), carry)
    assert np.isfinite(loss)
    assert np.isfinite(gradient)


def test_an_unknown_measure_is_an_error(unchecked):
    with pytest.raises(ValueError, match="`measure` must be one of loss, log, got 'square'"):
        estimator(measure="square")
