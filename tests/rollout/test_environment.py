"""E24: an environment that is given every move makes the trajectory of the optimizer that made them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import symmetrax as sx

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)
STEPS = 6

NETWORKS = {
    "update": (sx.learned.FlatGradientLSTM(2, width=6, key=KEY), sx.UpdateRule()),
    "teleports": (
        sx.learned.FlatGradientLSTM(2, algebra=1, width=6, key=KEY),
        sx.UpdateRule.at([1, 2, 4], STEPS),
    ),
    "momentum": (
        sx.learned.FlatGradientLSTM(2, emits=("step_size", "momentum"), algebra=1, width=6, key=KEY),
        sx.UpdateRule.at(range(STEPS), STEPS, transport="carry"),
    ),
    "orbit": (
        sx.learned.OrbitLSTM(2, algebra=1, width=6, key=KEY),
        sx.UpdateRule.at(range(STEPS), STEPS, gate="hard"),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_asking_the_network_by_hand_makes_its_trajectory(name):
    network, rule = NETWORKS[name]
    task = sx.tasks.booth(start=[5.0, -5.0])
    expected = sx.unroll(rule(network, task), task, KEY, STEPS, points=True)
    environment = sx.rollout.Environment(task, rule)

    @jax.jit
    def turn(state, memory):
        move, memory = network.propose(environment.observe(state, network.wants), memory)
        return *environment.step(state, move), memory

    state = environment.reset(KEY)
    memory = network.memory(state.params, task.symmetry())
    costs, points = [float(state.value)], [state.params]
    for _ in range(STEPS):
        state, cost, memory = turn(state, memory)
        costs.append(float(cost))
        points.append(state.params)
    np.testing.assert_allclose(costs, expected.loss, rtol=1e-5)
    np.testing.assert_allclose(np.stack(points), expected.params, rtol=1e-5, atol=1e-6)
    assert int(state.count) == STEPS


def test_many_environments_step_at_once():
    environment = sx.rollout.Environment(sx.tasks.booth())
    states = jax.vmap(environment.reset)(jax.random.split(KEY, 5))
    moves = sx.learned.Proposal(update=-0.01 * jax.vmap(environment.observe)(states).gradient)
    after, cost = jax.vmap(environment.step)(states, moves)
    assert cost.shape == (5,)
    assert jnp.all(after.value < states.value)


def test_a_move_without_a_step_is_rejected():
    environment = sx.rollout.Environment(sx.tasks.booth())
    with pytest.raises(ValueError, match="emits no step"):
        environment.step(environment.reset(KEY), sx.learned.Proposal(algebra=jnp.zeros(1)))
