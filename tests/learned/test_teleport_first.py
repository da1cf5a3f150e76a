"""Teleporting before the step: x <- a.x + v, with the gradient carried along and none taken anew."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import symmetrax as sx

from ..cases import mostly_slow

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)
FIRST = {"guard": None, "order": "teleport-first"}


def tasks():
    params = {"w1": (5, 3), "w2": (2, 5)}
    x, y = jax.random.normal(jax.random.key(1), (7, 3)), jax.random.normal(jax.random.key(2), (7, 2))

    class Network(sx.tasks.AbstractTask):
        def init(self, key):
            keys = jax.random.split(key, 2)
            return {n: jax.random.normal(k, s) for k, (n, s) in zip(keys, params.items(), strict=True)}

        def batch(self, key):
            return None

        def loss(self, params, batch=None):
            return jnp.mean((jax.nn.relu(x @ params["w1"].T) @ params["w2"].T - y) ** 2)

        def symmetry(self):
            like = {name: jnp.zeros(shape) for name, shape in params.items()}
            return sx.NetworkSymmetry({"h": sx.groups.PositiveDiagonal(5)}, {"w1": "h _", "w2": "_ h*"}, like)

    return {"booth": sx.tasks.booth(), "rosenbrock": sx.tasks.rosenbrock(), "network": Network()}


@pytest.mark.parametrize("name", mostly_slow(tasks(), ("rosenbrock", "network")))
@pytest.mark.parametrize("transport", ["keep", "carry", "reset"])
def test_the_step_starts_where_the_teleport_leads(float64, name, transport):
    """Two steps by hand, with the gradient taken by autodiff at the point that the teleport reached."""
    task = tasks()[name]
    symmetry = task.symmetry()
    environment = sx.rollout.Environment(task, sx.UpdateRule.at([1], 2, transport=transport, **FIRST))
    state = environment.reset(KEY)
    w, rate, beta = state.params, jnp.array(1e-3), jnp.array(0.7)
    xi = 0.3 * jax.random.normal(KEY, symmetry.algebra)
    for _ in range(2):
        state, _ = environment.step(state, sx.learned.Proposal(step_size=rate, momentum=beta, algebra=xi))
    v = jax.tree.map(lambda g: -rate * g, jax.grad(task.loss)(w))
    w = jax.tree.map(jnp.add, w, v)
    a = symmetry.exp(xi)
    there = symmetry.act(a, w)
    if transport == "carry":
        v = jax.jvp(lambda w: symmetry.act(a, w), (w,), (v,))[1]
    elif transport == "reset":
        v = jax.tree.map(jnp.zeros_like, v)
    v = jax.tree.map(lambda v, g: beta * v - rate * g, v, jax.grad(task.loss)(there))
    for found, right in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(jax.tree.map(jnp.add, there, v)), strict=True
    ):
        np.testing.assert_allclose(found, right, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("guard", [None, sx.Guard()])
def test_no_teleport_is_the_optimizer_without_to_the_bit(guard):
    task = sx.tasks.rosenbrock(start=[1.5, -0.5])
    network = sx.learned.FlatGradientLSTM(2, algebra=1, width=6, key=KEY)
    zeros = jax.tree.map(jnp.zeros_like, network.algebra_head)
    network = eqx.tree_at(lambda n: n.algebra_head, network, zeros)
    vanilla = sx.unroll(network.transform(), task, KEY, 5).loss
    rule = sx.UpdateRule.at(range(5), 5, guard=guard, order="teleport-first")
    assert np.array_equal(sx.unroll(rule(network, task), task, KEY, 5).loss, vanilla)


def test_a_rejected_teleport_leaves_the_plain_step():
    task = sx.tasks.booth(start=[5.0, -5.0])
    rule = sx.UpdateRule.at([0], 1, guard=sx.Guard(jump=1e-3), order="teleport-first")
    environment = sx.rollout.Environment(task, rule)
    state = environment.reset(KEY)
    after, _ = environment.step(
        state, sx.learned.Proposal(step_size=jnp.array(0.01), algebra=jnp.array([1.0]))
    )
    assert int(after.state.outcome) == 2
    np.testing.assert_allclose(after.params, state.params - 0.01 * state.gradient, rtol=1e-6)


def test_the_best_angle_and_twice_polyaks_step_solve_a_quadratic_at_once(float64):
    """Where the gradient is an eigenvector of A A' in the image of A: what a network can learn to do."""
    task = sx.tasks.booth(start=[5.0, -5.0])
    environment = sx.rollout.Environment(task, sx.UpdateRule.at([0], 1, **FIRST))
    state = environment.reset(KEY)
    best = environment.observe(state, ("best",)).best

    def polyak(gradient):
        return -2 * state.value / jnp.sum(gradient**2) * gradient

    _, cost = environment.step(state, sx.learned.Proposal(update=polyak, algebra=best))
    assert float(cost) < 1e-20 * float(state.value)


def test_the_derivative_in_the_coordinates_is_that_of_both_effects(float64):
    """Of a.x + step(gradient there): the jump moves the point and turns the gradient."""
    task = sx.tasks.booth(start=[5.0, -5.0])
    symmetry, environment = task.symmetry(), sx.rollout.Environment(task, sx.UpdateRule.at([0], 1, **FIRST))
    state = environment.reset(KEY)

    def end(xi):
        return environment.step(state, sx.learned.Proposal(step_size=jnp.array(0.02), algebra=xi))[0].params

    def right(xi):
        there = symmetry.act(symmetry.exp(xi), state.params)
        return there - 0.02 * jax.grad(task.loss)(there)

    for xi in (jnp.array([0.3]), jnp.zeros(1)):
        np.testing.assert_allclose(jax.jacobian(end)(xi), jax.jacobian(right)(xi), rtol=1e-9)


def test_options_that_do_not_fit_are_rejected(unchecked):
    with pytest.raises(ValueError, match="`order` must be one of step-first, teleport-first, got 'first'"):
        sx.UpdateRule(order="first")
    with pytest.raises(ValueError, match="as_printed steps first"):
        sx.UpdateRule(order="teleport-first", as_printed=True)
