"""First- and second-order meta-gradients against central differences in every weight."""

import equinox as eqx
import jax
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import symmetrax as sx

pytestmark = pytest.mark.usefixtures("quick_compilation", "float64")
STEP = 1e-5


def everywhere(final, weights):
    """Central differences of `final` in each weight, all in one compiled program."""
    shifts = STEP * np.concatenate([np.eye(len(weights)), -np.eye(len(weights))])
    values = np.asarray(jax.jit(jax.vmap(final))(weights + shifts))
    return (values[: len(weights)] - values[len(weights) :]) / (2 * STEP)


def setting(inputs):
    """A small network as a vector, and its two steps from a fixed start on Rosenbrock's function."""
    task = sx.tasks.generalized_rosenbrock(1.0, -1.0, -2.0, [0.4, 0.0, 0.0], start=[0.5, -0.3])
    network = sx.learned.FlatGradientLSTM(
        2, algebra=1, width=3, depth=2, inputs=inputs, key=jax.random.key(0)
    )
    weights, unravel = ravel_pytree(network)

    def transform(vector, order):
        return unravel(vector).transform(task.symmetry(), sx.UpdateRule(guard=None, meta_order=order))

    return task, np.asarray(weights), transform


@pytest.mark.parametrize(
    "inputs", [pytest.param((), marks=pytest.mark.slow), ("iterate", "previous", "orbit_derivative")]
)
def test_second_order_is_the_derivative_of_what_happens(inputs):
    task, weights, transform = setting(inputs)

    def final(vector, order=2):
        return sx.unroll(transform(vector, order), task, jax.random.key(0), 2, watch=()).loss[-1]

    found = jax.jit(jax.grad(final))(weights)
    expected = everywhere(final, weights)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8 * np.max(np.abs(expected)))
    first = jax.jit(jax.grad(lambda vector: final(vector, 1)))(weights)
    assert np.linalg.norm(first - found) > 1e-2 * np.linalg.norm(found)


def test_first_order_is_the_derivative_with_the_gradients_frozen():
    """What the network sees of the loss is a constant; the iterate it also reads is not."""
    task, weights, transform = setting(("iterate", "previous"))

    def play(vector, order, frozen):
        optimizer, x, seen = transform(vector, order), task.start, []
        state = optimizer.init(x)
        for t in range(2):
            seen.append(jax.grad(task.loss)(x))
            gradient = seen[-1] if frozen is None else frozen[t]
            updates, state = optimizer.update(gradient, state, x, value_fn=task.loss)
            x = optax.apply_updates(x, updates)
        return task.loss(x), seen

    found, seen = jax.jit(jax.grad(lambda vector: play(vector, 1, None), has_aux=True))(weights)
    expected = everywhere(lambda vector: play(vector, 2, seen)[0], weights)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8 * np.max(np.abs(expected)))


def test_both_orders_agree_where_the_gradient_does_not_depend_on_the_weights():
    """After one step the only gradient is the one at the start."""
    task, weights, transform = setting(())

    @eqx.filter_jit
    def slope(order):
        final = lambda v: sx.unroll(transform(v, order), task, jax.random.key(0), 1, watch=()).loss[-1]  # noqa: E731
        return jax.grad(final)(weights)

    np.testing.assert_allclose(slope(1), slope(2), rtol=1e-12)
    assert np.any(slope(1) != 0)
