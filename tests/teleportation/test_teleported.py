"""The optax wrapper that teleports on schedule, against loops in NumPy and the published numbers."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import symmetrax as sx

# Which steps are due, for every kind of schedule, without a run of each; and the programs inside of one.
from symmetrax._programs import programs_in
from symmetrax.schedules._schedule import due

pytestmark = pytest.mark.usefixtures("quick_compilation")

START = (5.0, -5.0)
MATRIX = np.array([[1.0, 2.0], [2.0, 1.0]])


class Turn(sx.search.AbstractSearch):
    """Always the same angle."""

    angle: float

    def __call__(self, orbit):
        return jnp.full(orbit.symmetry.algebra, self.angle)

    def evaluations(self, symmetry):
        return 0


def turn(angle):
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def numpy_booth(steps, rate, teleports=(), climbs=10, climb_rate=1e-3):
    """Gradient descent on Booth's function with teleports by ascent before the steps in `teleports`."""
    u, losses = MATRIX @ START - [7, 5], []
    for t in range(steps):
        if t in teleports:
            angle = 0.0
            for _ in range(climbs):
                v = turn(angle) @ u
                angle += climb_rate * 8 * v @ MATRIX @ MATRIX @ turn(np.pi / 2) @ v
            u = turn(angle) @ u
        u = u - rate * 2 * MATRIX @ MATRIX @ u
        losses.append(u @ u)
    return np.array(losses)


def run(optimizer, steps=10, task=None, **options):
    task = sx.tasks.booth(start=START) if task is None else task
    return jax.jit(lambda key: sx.unroll(optimizer, task, key, steps, **options))(jax.random.key(0))


def test_one_teleport_on_booth_gives_the_published_numbers(float64):
    """From (5, -5) at rate 0.08: gradient descent ends at 2.2025, shrinking by .7056 per step; a teleport by
    ten steps of ascent just before the fifth step makes that .1936, and the end 9.45e-4."""
    plain = run(optax.sgd(0.08)).loss
    assert plain[-1] == pytest.approx(2.2025, abs=5e-5)
    np.testing.assert_allclose(plain[7:] / plain[6:-1], 0.7056, rtol=1e-3)
    for t in (4, 5):
        optimizer = sx.teleported(
            optax.sgd(0.08),
            sx.tasks.booth().symmetry(),
            search=sx.search.Ascent(10, 1e-3),
            schedule={t},
            guard=None,
        )
        trace = run(optimizer)
        np.testing.assert_allclose(trace.loss[1:], numpy_booth(10, 0.08, {t}), rtol=1e-7)
        np.testing.assert_allclose(trace.loss[t + 1 :] / trace.loss[t:-1], 0.1936, rtol=1e-3)
        teleported = jnp.any(trace.watched["algebra"] != 0, axis=1)
        assert np.array_equal(np.flatnonzero(teleported), [t + 1])  # index 0 is the start
        if t == 4:
            assert trace.loss[-1] == pytest.approx(9.45e-4, abs=5e-7)


def test_the_oracle_and_one_step_solve_a_quadratic(float64):
    optimizer = sx.teleported(
        optax.sgd(1 / 18), sx.tasks.booth().symmetry(), search=sx.search.Oracle(), schedule={0}, guard=None
    )
    assert run(optimizer, steps=1).loss[-1] < 1e-20


@pytest.mark.parametrize(
    "schedule",
    [
        (),
        lambda count: count < 0,
        {10, 99},
        pytest.param(set(), marks=pytest.mark.slow),
        pytest.param(jnp.zeros(10, bool), marks=pytest.mark.slow),
    ],
)
def test_without_a_due_teleport_it_is_the_inner_optimizer_exactly(schedule):
    inner = optax.adam(0.1)
    wrapped = sx.teleported(inner, sx.tasks.booth().symmetry(), schedule=schedule)
    plain, found = run(inner, points=True), run(wrapped, points=True)
    assert jnp.array_equal(found.loss, plain.loss)
    assert jnp.array_equal(found.params, plain.params)
    assert not jnp.any(found.watched["algebra"])
    assert jnp.all(found.watched["loss_change"] == -1)
    assert not jnp.any(found.watched["outcome"])


@pytest.mark.parametrize(
    ("schedule", "steps"),
    [
        (None, {0, 1, 2, 3, 4, 5}),
        ({2, 5}, {2, 5}),
        ([0, 3, 9], {0, 3}),
        (range(1, 3), {1, 2}),
        (lambda count: count % 2 == 1, {1, 3, 5}),
        (jnp.array([True, False, True]), {0, 2}),
        (np.array([True, False, True, True]), {0, 2, 3}),
        (jnp.zeros(0, bool), set()),
        ((), set()),
    ],
)
def test_a_schedule_says_which_steps_teleport(schedule, steps):
    assert {t for t in range(6) if due(schedule, jnp.array(t))} == steps


def test_an_iterator_serves_as_schedule_for_every_run():
    optimizer = sx.teleported(
        optax.sgd(0.01), sx.tasks.booth().symmetry(), search=Turn(0.1), schedule=iter([1]), guard=None
    )
    first, second = (run(optimizer, steps=3).watched["algebra"] for _ in range(2))
    assert np.array_equal(np.flatnonzero(first), [2])
    assert jnp.array_equal(first, second)


def test_a_sweep_over_schedules_compiles_once():
    traces = 0

    @jax.jit
    def final(schedule):
        nonlocal traces
        traces += 1
        optimizer = sx.teleported(
            optax.sgd(0.08),
            sx.tasks.booth().symmetry(),
            search=sx.search.Ascent(),
            schedule=schedule,
            guard=None,
        )
        return sx.unroll(optimizer, sx.tasks.booth(start=START), jax.random.key(0), 10).loss[-1]

    finals = [final(jnp.arange(10) == t) for t in (3, 5)]
    np.testing.assert_allclose(finals, [numpy_booth(10, 0.08, {t})[-1] for t in (3, 5)], rtol=1e-2)
    assert traces == 1


@pytest.mark.parametrize("transport", ["keep", "reset"])
@pytest.mark.parametrize("reject", [False, True])
def test_the_inner_state_is_kept_or_reset_when_a_teleport_happens(float64, transport, reject):
    """Adam by hand: the point jumps at step 1; moments go on, or start anew unless the jump is rejected."""
    task, angle, rate = sx.tasks.booth(start=START), 0.3, 0.1
    optimizer = sx.teleported(
        optax.adam(rate),
        task.symmetry(),
        search=Turn(angle),
        schedule={1},
        guard=sx.Guard(jump=1e-3 if reject else 1e3),
        transport=transport,
    )
    x, m, v, count, points = np.array(START), np.zeros(2), np.zeros(2), 0, [START]
    for t in range(4):
        if t == 1 and not reject:
            x = np.linalg.solve(MATRIX, turn(angle) @ (MATRIX @ x - [7, 5]) + [7, 5])
            if transport == "reset":
                m, v, count = np.zeros(2), np.zeros(2), 0
        g, count = 2 * MATRIX @ (MATRIX @ x - [7, 5]), count + 1
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        x = x - rate * (m / (1 - 0.9**count)) / (np.sqrt(v / (1 - 0.999**count)) + 1e-8)
        points.append(x)
    trace = run(optimizer, steps=4, points=True)
    np.testing.assert_allclose(trace.params, points, rtol=1e-11)
    assert np.array_equal(trace.watched["outcome"], [0, 0, 2 if reject else 0, 0, 0])
    assert (trace.watched["loss_change"][2] >= 0).item()


def test_extra_arguments_reach_the_inner_optimizer_at_the_new_point(float64):
    """Polyak's step is value / |gradient|^2 times the gradient, of the point after the jump."""
    task, x = sx.tasks.booth(), jnp.array(START)
    optimizer = sx.teleported(optax.polyak_sgd(), task.symmetry(), search=sx.search.Oracle(), guard=None)
    value, gradient = jax.value_and_grad(task.loss)(x)
    state = optimizer.init(x)
    updates, _ = optimizer.update(gradient, state, x, value=value, grad=gradient, value_fn=task.loss)
    there, _ = sx.teleport(task.loss, x, task.symmetry(), search=sx.search.Oracle(), guard=None)
    g = 2 * MATRIX @ (MATRIX @ np.asarray(there) - [7, 5])
    np.testing.assert_allclose(x + updates, there - 144 * g / (g @ g), rtol=1e-9)


def test_it_works_under_jit_with_parameters_in_a_tree():
    """A loss of a dict, and a symmetry that acts on it."""

    class Pair(sx.symmetry.Pullback):
        def act(self, a, params, batch=None):
            x, y = super().act(a, jnp.stack([params["x"], params["y"]]))
            return {"x": x, "y": y}

    def loss(params):
        return sx.tasks.booth().loss(jnp.stack([params["x"], params["y"]]))

    optimizer = sx.teleported(
        optax.sgd(0.08), Pair(sx.tasks.booth().map), search=sx.search.Ascent(), schedule={5}, guard=None
    )

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params, value_fn=loss)
        return optax.apply_updates(params, updates), state

    params = {"x": jnp.array(START[0]), "y": jnp.array(START[1])}
    state = optimizer.init(params)
    for expected in numpy_booth(8, 0.08, {5}):
        params, state = step(params, state)
        assert loss(params) == pytest.approx(expected, rel=1e-3)
    assert optax.tree.get(state, "outcome") == 0
    assert state.count == 8


def test_single_precision_parameters_work_where_double_is_on(float64):
    """Nothing depends on x64 being on or off."""
    task = sx.tasks.booth(start=START)
    task = eqx.tree_at(lambda t: t.map, task, jax.tree.map(lambda a: a.astype(jnp.float32), task.map))
    x = jnp.array(START, jnp.float32)
    optimizer = sx.teleported(optax.sgd(0.08), task.symmetry(), search=Turn(0.1), schedule={0}, guard=None)
    updates, _ = optimizer.update(jax.grad(task.loss)(x), optimizer.init(x), x, value_fn=task.loss)
    assert updates.dtype == jnp.float32
    expected = np.linalg.solve(MATRIX, turn(0.1) @ (MATRIX @ START - [7, 5]) + [7, 5])
    expected = expected - 0.08 * 2 * MATRIX @ (MATRIX @ expected - [7, 5])
    np.testing.assert_allclose(x + updates, expected, rtol=1e-5)


def test_wrong_calls_say_what_is_missing(unchecked):
    optimizer = sx.teleported(optax.sgd(0.1), sx.tasks.booth().symmetry())
    x = jnp.array(START)
    with pytest.raises(ValueError, match=r"`teleported` needs value_fn: call update\(grads, state, params"):
        optimizer.update(x, optimizer.init(x), x)
    with pytest.raises(ValueError, match="`teleported` needs params"):
        optimizer.update(x, optimizer.init(x), value_fn=sx.tasks.booth().loss)
    with pytest.raises(ValueError, match="must be one of keep, carry, reset, got 'move'"):
        sx.teleported(optax.sgd(0.1), sx.tasks.booth().symmetry(), transport="move")


def conditions(jaxpr):
    """How many branches a program has that are taken or not, in all its parts."""
    inner = [part for equation in jaxpr.eqns for part in programs_in(equation)]
    return sum(e.primitive.name == "cond" for e in jaxpr.eqns) + sum(map(conditions, inner))


def ascending(rate, task, schedule):
    return sx.teleported(
        optax.sgd(rate), task.symmetry(), search=sx.search.Ascent(3), schedule=schedule, guard=None
    )


@pytest.mark.parametrize(
    "schedule",
    [
        {3},
        pytest.param(sx.schedules.every_n_steps(4), marks=pytest.mark.slow),
        sx.schedules.Plateau(patience=1),
    ],
    ids=["once", "often", "plateau"],
)
def test_many_tasks_search_only_at_the_steps_where_one_of_them_teleports(schedule):
    family, key = sx.tasks.make_family("ellipse-random"), jax.random.key(0)
    make = functools.partial(ascending, schedule=schedule)

    def many(key):
        return sx.unroll_many(make, 0.02, family, key, 6, 5, watch=("outcomes", "algebra"))

    # A condition that differs from task to task would be no branch any more, but a choice: both sides run.
    assert conditions(jax.make_jaxpr(many)(key).jaxpr) > 0

    @jax.jit
    def one(key):
        draw, start = jax.random.split(key)
        task = family.task(family.draw(draw), family.shapes[0])
        return sx.unroll(make(0.02, task), task, start, 6, watch=("outcomes", "algebra"))

    found = jax.jit(many)(key)
    for k, own in enumerate(jax.random.split(key, 5)):
        alone = one(own)
        np.testing.assert_allclose(found.loss[:, k], alone.loss, rtol=1e-4)
        np.testing.assert_array_equal(found.watched["outcomes"][..., k], alone.watched["outcomes"])
        np.testing.assert_allclose(found.watched["algebra"][..., k], alone.watched["algebra"], atol=1e-4)
