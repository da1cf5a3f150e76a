"""The teleport of a learned optimizer: nothing at a zero angle, on schedule, rejected, on the level set."""

import functools
import os
import platform
import subprocess
import sys
import textwrap

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import symmetrax as sx

from ..cases import mostly_slow

KEY = jax.random.key(0)


def network(algebra=1):
    return sx.learned.FlatGradientLSTM(2, algebra=algebra, width=8, depth=1, key=KEY)


def without_angle(network):
    """The same network with an algebra head of zeros."""
    zeros = jax.tree.map(jnp.zeros_like, network.algebra_head)
    return eqx.tree_at(lambda n: n.algebra_head, network, zeros)


def plain(network, task):
    return network.transform()


@functools.cache
def scenes(name, tasks, steps=6):
    """Random tasks with random points and gradients, the task axis last; a single task has none."""
    family = sx.tasks.make_family(name)

    def one(key):
        draw, at, slope = jax.random.split(key, 3)
        points, gradients = 2 * jax.random.normal(at, (steps, 2)), 9 * jax.random.normal(slope, (steps, 2))
        return family.draw(draw), points, gradients

    several = jax.jit(jax.vmap(one, out_axes=-1))(jax.random.split(KEY, tasks))
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


SIZES = [(1, "ellipse-random"), (7, "rosenbrock-random"), (1, "rosenbrock-random"), (7, "ellipse-random")]
SIZES += [(64, "ellipse-random"), (64, "rosenbrock-random")]


@pytest.mark.parametrize(("tasks", "name"), mostly_slow(SIZES, SIZES[:2], unpack=True))
def test_zero_angle_equals_vanilla_bit_for_bit(name, tasks):
    """S06: on random tasks, in single precision, batched or not, guarded or not."""
    updates, state = replay(plain, network(algebra=0), name, tasks)
    for guard in (None, sx.Guard()):
        rule = sx.UpdateRule(schedule=jnp.ones(6, bool), guard=guard)
        found, after = replay(rule, without_angle(network()), name, tasks)
        assert not jnp.any(after.algebra)
        assert eqx.tree_equal(after.memory, state.memory)
        assert jnp.array_equal(found, updates)


@pytest.mark.slow  # in single steps: the test above
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
    networks = [sx.learned.FlatGradientLSTM(2, algebra=k, width=8, key=key) for k in (0, 1)]
    zeros = jax.tree.map(jnp.zeros_like, networks[1].algebra_head)
    networks[1] = eqx.tree_at(lambda n: n.algebra_head, networks[1], zeros)
    for name in ("ellipse-random", "rosenbrock-random"):
        family = sx.tasks.make_family(name)
        vanilla = run(lambda n, task: n.transform(), networks[0], family, key, 12, 7, points=True)
        found = run(sx.UpdateRule(jnp.ones(12, bool)), networks[1], family, key, 12, 7, points=True)
        print(eqx.tree_equal(found, vanilla))
"""


@pytest.mark.parametrize("guard", [pytest.param(None, marks=pytest.mark.slow), sx.Guard()])
def test_a_zero_angle_still_has_a_derivative(guard):
    """S06: the head that starts at zero can learn."""
    task = sx.tasks.booth(start=[1.0, 1.0])

    def final(head):
        optimizer = eqx.tree_at(lambda n: n.algebra_head, network(), head).transform(
            task.symmetry(), sx.UpdateRule(guard=guard)
        )
        return sx.unroll(optimizer, task, KEY, 3).loss[-1]

    slopes = jax.jit(jax.grad(final))(without_angle(network()).algebra_head)
    assert jnp.all(slopes.weight != 0)
    assert jnp.all(slopes.bias != 0)


def test_a_schedule_teleports_at_its_steps_only():
    """S07: none is vanilla, all is the default, and {1} is vanilla but for step 1."""
    family, every, guard = "ellipse-random", jnp.ones(6, bool), sx.Guard(jump=100.0)
    vanilla, _ = replay(plain, network(algebra=0), family, 7)
    (never, _), (once, state), (always, _) = (
        replay(sx.UpdateRule(schedule=steps, guard=guard), network(), family, 7)
        for steps in (~every, jnp.arange(6) == 1, every)
    )
    default, _ = replay(
        lambda n, task: n.transform(task.symmetry(), sx.UpdateRule(guard=guard)), network(), family, 7
    )
    assert jnp.array_equal(never, vanilla)
    assert jnp.array_equal(always, default)
    assert jnp.array_equal(once[jnp.arange(6) != 1], vanilla[jnp.arange(6) != 1])
    assert jnp.array_equal(once[1], always[1])
    assert not jnp.any(once[1] == vanilla[1])
    assert jnp.array_equal(jnp.any(state.algebra != 0, axis=(1, 2)), jnp.arange(6) == 1)
    assert not jnp.any(state.outcome)


def test_a_rejected_teleport_leaves_the_update():
    family = "rosenbrock-random"
    vanilla, _ = replay(plain, network(algebra=0), family, 7)
    rule = sx.UpdateRule(schedule=jnp.arange(6) >= 2, guard=sx.Guard(jump=jnp.array(1e-20)))
    updates, state = replay(rule, network(), family, 7)
    assert jnp.array_equal(updates, vanilla)
    assert jnp.array_equal(state.previous, vanilla)
    assert not jnp.any(state.outcome[:2])
    assert jnp.all(state.outcome[2:] == 2)
    assert jnp.all(state.algebra[2:] != 0)


@pytest.mark.parametrize("name", mostly_slow(["ellipse-random", "rosenbrock-random"], ["rosenbrock-random"]))
def test_an_accepted_teleport_keeps_the_loss_of_the_updated_point(float64, name):
    """S06: f(a.(x + u)) = f(x + u), in every family, wherever the guard lets it pass."""
    family, (drawn, points, gradients) = scenes.__wrapped__(name, 64)
    rule = sx.UpdateRule(schedule=jnp.ones(6, bool), guard=sx.Guard(jump=1e3, tolerance=1e-8))
    updates, state = _replay(rule, network(), family, (drawn, points, gradients))
    at = jax.vmap(lambda d, x: jax.vmap(family.task(d).loss)(x), in_axes=-1, out_axes=-1)
    here, there = (eqx.filter_jit(at)(drawn, points + move) for move in (state.previous, updates))
    accepted = state.outcome == 0
    assert jnp.mean(accepted) > 0.9
    assert jnp.all(jnp.any(updates != state.previous, axis=1)[accepted])
    change = jnp.abs(there / here - 1)[accepted]
    assert jnp.max(change) <= 1e-8
    assert jnp.median(change) <= 1e-14
