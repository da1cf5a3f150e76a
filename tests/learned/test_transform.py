"""A network as an optax transformation, against one written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import symmetrax as sx

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)
MATRIX, OFFSET = np.array([[1.0, 2.0], [2.0, 1.0]]), np.array([-7.0, -5.0])
FULL = ("iterate", "previous", "orbit_derivative")


def network(algebra=1, key=KEY, **options):
    return sx.learned.FlatGradientLSTM(2, algebra=algebra, width=8, key=key, **options)


def turn(angle):
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def by_hand(network, start, steps, teleports):
    """The optimizer on Booth's function in NumPy: the update first, then the rotation of the new point."""
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    array = lambda a: np.asarray(a, float)  # noqa: E731
    states = [(np.zeros(network.width), np.zeros(network.width)) for _ in network.core.cells]
    x, previous, points = np.array(start), np.zeros(2), []
    for t in range(steps):
        u = MATRIX @ x + OFFSET
        slope = 8 * u @ MATRIX @ MATRIX @ turn(np.pi / 2) @ u  # of 4 u'R'SRu at angle zero
        hidden = np.concatenate([2 * MATRIX @ u, x, previous, [slope]])
        for layer, cell in enumerate(network.core.cells):
            h, c = states[layer]
            gates = array(cell.weight_ih) @ hidden + array(cell.weight_hh) @ h + array(cell.bias)
            i, f, g, o = np.split(gates, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            hidden = sigmoid(o) * np.tanh(c)
            states[layer] = hidden, c
        previous = array(network.head.weight) @ hidden + array(network.head.bias)
        angle = (array(network.algebra_head.weight) @ hidden + array(network.algebra_head.bias))[0]
        x = x + previous
        if t in teleports:
            x = np.linalg.solve(MATRIX, turn(angle) @ (MATRIX @ x + OFFSET) - OFFSET)
        points.append((x, previous, angle if t in teleports else 0.0))
    return (np.array(values) for values in zip(*points, strict=True))


@pytest.mark.parametrize("schedule", [None, {1, 3}, ()])
def test_the_update_comes_first_then_the_group_element_acts(float64, schedule):
    """Everything by hand: features in order, the state carried, x <- a.(x + u) on schedule."""
    task, learned = sx.tasks.booth(start=[2.0, -1.0]), network(inputs=FULL, key=jax.random.key(1))
    optimizer = learned.transform(task.symmetry(), sx.UpdateRule(schedule, guard=None))
    watch = ("algebra", "previous")
    trace = jax.jit(lambda key: sx.unroll(optimizer, task, key, 5, points=True, watch=watch))(KEY)
    teleports = range(5) if schedule is None else schedule
    points, updates, angles = by_hand(learned, [2.0, -1.0], 5, teleports)
    np.testing.assert_allclose(trace.params[1:], points, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(trace.watched["previous"][1:], updates, rtol=1e-9)
    np.testing.assert_allclose(trace.watched["algebra"][1:, 0], angles, rtol=1e-9)
    other_order = (
        np.linalg.solve(MATRIX, turn(angles[0]) @ (MATRIX @ [2.0, -1.0] + OFFSET) - OFFSET) + updates[0]
    )
    if schedule is None:
        assert np.linalg.norm(other_order - points[0]) > 1e-3


def test_clipping_before_a_network_composes_by_optax():
    """The state is read by name through a chain."""
    task, learned = sx.tasks.booth(start=[5.0, -5.0]), network()
    inner = learned.transform(task.symmetry(), sx.UpdateRule(guard=sx.Guard(jump=1e-20)))
    chained = optax.chain(optax.clip_by_global_norm(1.0), inner)
    x = jnp.array([5.0, -5.0])
    gradient = jax.grad(task.loss)(x)
    clipped = gradient / jnp.linalg.norm(gradient)
    (updates, state), (expected, _) = (
        jax.jit(lambda g, optimizer=optimizer: optimizer.update(g, optimizer.init(x), x, value_fn=task.loss))(
            g
        )
        for optimizer, g in ((chained, gradient), (inner, clipped))
    )
    np.testing.assert_allclose(updates, expected, rtol=1e-6)
    assert optax.tree.get(state, "outcome") == 2
    assert optax.tree.get(state, "algebra").shape == (1,)


def test_wrong_uses_of_a_network_say_what_is_missing():
    symmetry, x = sx.tasks.booth().symmetry(), jnp.ones(2)

    def update(optimizer, *params, **extra):
        return optimizer.update(x, optimizer.init(x), *params, **extra)

    loss = sx.tasks.booth().loss
    for call, message in (
        (lambda: update(network().transform()), "needs params"),
        (lambda: update(network().transform(symmetry), x), "pass value_fn=.*or guard=None"),
        (
            lambda: update(network(2).transform(symmetry), x, value_fn=loss),
            r"shape \(2,\).*has \(1,\).*algebra=1",
        ),
        (lambda: update(network(inputs=FULL).transform(), x, value_fn=loss), "needs a symmetry in transform"),
        (lambda: update(network(inputs=FULL).transform(symmetry), x), r"needs value_fn=... in update\(\)"),
        (lambda: sx.UpdateRule(meta_order=3), "must be one of 1, 2, got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
