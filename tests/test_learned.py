"""A network as an optax transformation: update then act, schedules, guards and meta-gradients."""

import functools
import os
import platform
import subprocess
import sys
import textwrap

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import symmetrax as sx

KEY = jax.random.key(0)
MATRIX, OFFSET = np.array([[1.0, 2.0], [2.0, 1.0]]), np.array([-7.0, -5.0])
FULL = ("iterate", "previous", "orbit_derivative")


def network(algebra=1, key=KEY, depth=1, **options):
    return sx.WholeLSTM(2, algebra=algebra, width=8, depth=depth, key=key, **options)


def without_angle(network):
    """The same network with an algebra head of zeros."""
    zeros = jax.tree.map(jnp.zeros_like, network.algebra_head)
    return eqx.tree_at(lambda n: n.algebra_head, network, zeros)


def plain(network, task):
    return network.transform()


@functools.cache
def scenes(name, tasks, steps=6):
    """Random tasks with random points and gradients, the task axis last; a single task has none."""
    family = sx.make_family(name)

    def one(key):
        draw, at, slope = jax.random.split(key, 3)
        points, gradients = 2 * jax.random.normal(at, (steps, 2)), 9 * jax.random.normal(slope, (steps, 2))
        return family.draw(draw), points, gradients

    several = jax.vmap(one, out_axes=-1)(jax.random.split(KEY, tasks))
    return family, jax.tree.map(lambda x: x[..., 0], several) if tasks == 1 else several


def replay(make_transform, network, name, tasks):
    """What an optimizer answers in each scene, and its states.

    Whole runs of two programs part after some steps, when the compiler fuses a multiplication and an addition
    of the loss in one of them only; their optimizers must not."""
    return _replay(make_transform, network, *scenes(name, tasks))


@eqx.filter_jit
def _replay(make_transform, network, family, scene):
    def one(drawn, points, gradients):
        task = family.task(drawn)
        optimizer = make_transform(network, task)

        def answer(state, seen):
            updates, state = optimizer.update(seen[1], state, seen[0], value_fn=task.loss)
            return state, (updates, state)

        return jax.lax.scan(answer, optimizer.init(points[0]), (points, gradients))[1]

    single = scene[1].ndim == 2
    return one(*scene) if single else jax.vmap(one, in_axes=-1, out_axes=-1)(*scene)


@pytest.mark.parametrize("name", ["ellipse-random", "rosenbrock-random"])
@pytest.mark.parametrize("tasks", [1, 7, 64])
def test_zero_angle_equals_vanilla_bit_for_bit(name, tasks):
    """S06: on random tasks, in single precision, batched or not, guarded or not."""
    updates, state = replay(plain, network(algebra=0), name, tasks)
    for guard in (None, sx.Guard()):
        recipe = sx.Recipe(teleports=jnp.ones(6, bool), guard=guard)
        found, after = replay(recipe, without_angle(network()), name, tasks)
        assert not jnp.any(after.algebra)
        assert eqx.tree_equal(after.memory, state.memory)
        assert jnp.array_equal(found, updates)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names an x86 instruction set")
def test_zero_angle_runs_equal_vanilla_runs_bit_for_bit():
    """S06 for whole runs, in a process without instructions that multiply and add at once."""
    flags = os.environ["XLA_FLAGS"] + " --xla_cpu_max_isa=AVX"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WHOLE_RUNS)], env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == ["True"] * 2, done.stderr


WHOLE_RUNS = """
    import equinox as eqx, jax, jax.numpy as jnp, numpy as np, symmetrax as sx

    key, run = jax.random.key(0), eqx.filter_jit(sx.unroll_many)
    networks = [sx.WholeLSTM(2, algebra=k, width=8, key=key) for k in (0, 1)]
    zeros = jax.tree.map(jnp.zeros_like, networks[1].algebra_head)
    networks[1] = eqx.tree_at(lambda n: n.algebra_head, networks[1], zeros)
    for name in ("ellipse-random", "rosenbrock-random"):
        family = sx.make_family(name)
        vanilla = run(lambda n, task: n.transform(), networks[0], family, key, 12, 7, points=True)
        found = run(sx.Recipe(jnp.ones(12, bool)), networks[1], family, key, 12, 7, points=True)
        print(eqx.tree_equal(found, vanilla))
"""


@pytest.mark.parametrize("guard", [None, sx.Guard()])
def test_a_zero_angle_still_has_a_derivative(guard):
    """S06: the head that starts at zero can learn."""
    task = sx.booth(start=[1.0, 1.0])

    def final(head):
        optimizer = eqx.tree_at(lambda n: n.algebra_head, network(), head).transform(
            task.symmetry(), guard=guard
        )
        return sx.unroll(optimizer, task, KEY, 3).loss[-1]

    slopes = jax.jit(jax.grad(final))(without_angle(network()).algebra_head)
    assert jnp.all(slopes.weight != 0)
    assert jnp.all(slopes.bias != 0)


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
    task, learned = sx.booth(start=[2.0, -1.0]), network(inputs=FULL, depth=2, key=jax.random.key(1))
    optimizer = learned.transform(task.symmetry(), schedule=schedule, guard=None)
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


def test_a_schedule_teleports_at_its_steps_only():
    """S07: none is vanilla, all is the default, and {1} is vanilla but for step 1."""
    family, every, guard = "ellipse-random", jnp.ones(6, bool), sx.Guard(jump=100.0)
    vanilla, _ = replay(plain, network(algebra=0), family, 7)
    (never, _), (once, state), (always, _) = (
        replay(sx.Recipe(teleports=steps, guard=guard), network(), family, 7)
        for steps in (~every, jnp.arange(6) == 1, every)
    )
    default, _ = replay(lambda n, task: n.transform(task.symmetry(), guard=guard), network(), family, 7)
    assert jnp.array_equal(never, vanilla)
    assert jnp.array_equal(always, default)
    assert jnp.array_equal(once[jnp.arange(6) != 1], vanilla[jnp.arange(6) != 1])
    assert jnp.array_equal(once[1], always[1])
    assert not jnp.any(once[1] == vanilla[1])
    assert jnp.array_equal(jnp.any(state.algebra != 0, axis=(1, 2)), jnp.arange(6) == 1)
    assert not jnp.any(state.refused)


def test_a_refused_teleport_leaves_the_update():
    family = "rosenbrock-random"
    vanilla, _ = replay(plain, network(algebra=0), family, 7)
    recipe = sx.Recipe(teleports=jnp.arange(6) >= 2, guard=sx.Guard(jump=jnp.array(1e-20)))
    refused, state = replay(recipe, network(), family, 7)
    assert jnp.array_equal(refused, vanilla)
    assert jnp.array_equal(state.previous, vanilla)
    assert not jnp.any(state.refused[:2])
    assert jnp.all(state.refused[2:] == 2)
    assert jnp.all(state.algebra[2:] != 0)


def test_an_accepted_teleport_keeps_the_loss_of_the_updated_point(float64):
    """S06: f(a.(x + u)) = f(x + u), in every family, wherever the guard lets it pass."""
    for name in ("ellipse-random", "rosenbrock-random"):
        family, many = sx.make_family(name), eqx.filter_jit(sx.unroll_many)
        recipe = sx.Recipe(teleports=jnp.ones(1, bool), guard=sx.Guard(jump=1e3, tolerance=1e-8))
        learned, options = network(key=jax.random.key(5)), {"points": True, "watch": ("refused",)}
        there, here = (many(make, learned, family, KEY, 1, 64, **options) for make in (recipe, plain))
        accepted = there.watched["refused"][1] == 0
        assert jnp.mean(accepted) > 0.9
        assert jnp.all(jnp.any(there.params[1] != here.params[1], axis=0)[accepted])
        change = jnp.abs(there.loss[1] / here.loss[1] - 1)[accepted]
        assert jnp.max(change) <= 1e-8
        assert jnp.median(change) <= 1e-14


def test_clipping_before_a_network_composes_by_optax():
    """The state is read by name through a chain."""
    task, learned = sx.booth(start=[5.0, -5.0]), network()
    inner = learned.transform(task.symmetry(), guard=sx.Guard(jump=1e-20))
    chained = optax.chain(optax.clip_by_global_norm(1.0), inner)
    x = jnp.array([5.0, -5.0])
    gradient = jax.grad(task.loss)(x)
    updates, state = chained.update(gradient, chained.init(x), x, value_fn=task.loss)
    clipped = gradient / jnp.linalg.norm(gradient)
    expected, _ = inner.update(clipped, inner.init(x), x, value_fn=task.loss)
    np.testing.assert_allclose(updates, expected, rtol=1e-6)
    assert optax.tree.get(state, "refused") == 2
    assert optax.tree.get(state, "algebra").shape == (1,)


def test_wrong_uses_of_a_network_say_what_is_missing():
    symmetry, x = sx.booth().symmetry(), jnp.ones(2)

    def update(optimizer, *params, **extra):
        return optimizer.update(x, optimizer.init(x), *params, **extra)

    loss = sx.booth().loss
    for call, message in (
        (lambda: update(network().transform()), "needs params"),
        (lambda: update(network().transform(symmetry), x), "pass value_fn=.*or guard=None"),
        (
            lambda: update(network(2).transform(symmetry), x, value_fn=loss),
            r"shape \(2,\).*has \(1,\).*algebra=1",
        ),
        (lambda: update(network(inputs=FULL).transform(), x, value_fn=loss), "needs a symmetry in transform"),
        (lambda: update(network(inputs=FULL).transform(symmetry), x), r"needs value_fn=... in update\(\)"),
        (lambda: network().transform(meta_order=3), "must be 1 or 2, got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
