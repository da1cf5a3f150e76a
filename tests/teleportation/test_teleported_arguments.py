"""What `teleported` takes: schedules, line searches, losses with arguments, leaves of every kind, keys."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import symmetrax as sx

# Which steps are due, also where the schedule is traced.
from symmetrax.schedules._schedule import due

from ..cases import mostly_slow

pytestmark = pytest.mark.usefixtures("quick_compilation")

START = jnp.array([5.0, -5.0])
TASK = sx.tasks.booth(start=[5.0, -5.0])
SYMMETRY = TASK.symmetry()


NO_SCHEDULES = [
    *(
        "12",
        "abc",
        b"12",
        10,
        0,
        2.5,
        True,
        float("nan"),
        np.int32(3),
        object(),
        sx.schedules.Plateau,
        {"2": True},
        {True},
    ),
    *([1.5], [0, 1.0], [True, 2], [-1], {-3, 2}, [[1, 2]], ["1"], [None], [2**40]),
    *(np.array([-1]), np.array([0.5]), np.zeros((2, 2), bool), jnp.array(True)),
]


@pytest.mark.parametrize("schedule", NO_SCHEDULES)
def test_what_is_no_schedule_is_rejected_where_it_is_given(schedule, unchecked):
    network = sx.learned.FlatGradientLSTM(2, algebra=1, width=2, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"`schedule` must be .*got"):
        sx.teleported(optax.sgd(0.1), SYMMETRY, schedule=schedule)
    with pytest.raises(ValueError, match=r"`schedule` must be .*got"):
        network.transform(SYMMETRY, sx.UpdateRule(schedule))
    with pytest.raises(ValueError, match=r"`schedule` must be .*got"):
        sx.UpdateRule.at(schedule, steps=12)


def test_a_number_as_schedule_is_told_what_it_may_mean(unchecked):
    with pytest.raises(ValueError, match=r"every_n_steps\(10\) to teleport every 10 steps, or \{10\}"):
        sx.teleported(optax.sgd(0.1), SYMMETRY, schedule=10)
    with pytest.raises(ValueError, match=r"cannot follow the loss, got a Plateau"):
        sx.UpdateRule(sx.schedules.Plateau())
    with pytest.raises(ValueError, match=r"every_n_steps\(\) needs a whole number"):
        sx.schedules.every_n_steps(2.5)


@pytest.mark.parametrize(
    ("schedule", "steps"),
    [
        ([False, False, True, False], {2}),
        ((True, False, True), {0, 2}),
        (np.array([False, True]).tolist(), {1}),
        ([np.True_, False], {0}),
        ([jnp.array(False), jnp.array(True)], {1}),
        (iter([False, True]), {1}),
        (np.array([1, 3]), {1, 3}),
        ([np.int64(1), 3], {1, 3}),
        (jnp.array([2]), {2}),
        (np.zeros(0), set()),
        (frozenset({4}), {4}),
        ({1: "a"}.keys(), {1}),
    ],
)
def test_booleans_are_booleans_and_numbers_are_steps(schedule, steps):
    schedule = (
        list(schedule) if not hasattr(schedule, "dtype") and not hasattr(schedule, "__len__") else schedule
    )
    assert {t for t in range(6) if due(schedule, jnp.array(t))} == steps
    assert set(np.flatnonzero(sx.UpdateRule.at(schedule, steps=6).schedule)) == steps
    numbers = jnp.array([3, 4])
    assert not jax.jit(lambda numbers: due(numbers, jnp.array(2)))(numbers)  # also where it is traced


SEARCHES = {
    "L-BFGS": lambda: optax.lbfgs(memory_size=3),
    "backtracking": lambda: optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(20)),
    "backtracking, gradient kept": lambda: optax.chain(
        optax.sgd(1.0), optax.scale_by_backtracking_linesearch(20, store_grad=True)
    ),
    "zoom": lambda: optax.chain(optax.sgd(1.0), optax.scale_by_zoom_linesearch(20)),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(1e3), optax.lbfgs()),
    "sharpness-aware": lambda: optax.contrib.sam(optax.sgd(0.02), optax.sgd(0.01)),
    "chained sharpness-aware": lambda: optax.chain(
        optax.clip(9.0), optax.contrib.sam(optax.sgd(0.02), optax.sgd(0.01))
    ),
    "Polyak": lambda: optax.polyak_sgd(),
    "momo": lambda: optax.contrib.momo(0.01),
    "on a plateau": lambda: optax.chain(optax.sgd(0.02), optax.contrib.reduce_on_plateau()),
    "mechanized": lambda: optax.contrib.mechanize(optax.sgd(0.02)),
    "schedule-free": lambda: optax.contrib.schedule_free_sgd(0.02),
    "teleported": lambda: sx.teleported(optax.sgd(0.02), SYMMETRY, schedule=()),
    "masked": lambda: optax.masked(optax.lbfgs(), True),
}


def plain_steps(optimizer, steps):
    """The loop of optax's own documentation, with what each optimizer takes."""

    @jax.jit
    def step(x, state):
        value, gradient = jax.value_and_grad(TASK.loss)(x)
        extra = {"value": value, "grad": gradient, "value_fn": TASK.loss}
        try:
            updates, state = optimizer.update(gradient, state, x, **extra)
        except TypeError:
            updates, state = optimizer.update(gradient, state, x)
        return optax.apply_updates(x, updates), state

    x, state = START, optimizer.init(START)
    for _ in range(steps):
        x, state = step(x, state)
    return x


#: One of each kind; the others take longer.
QUICK = {"L-BFGS", "backtracking", "sharpness-aware", "momo"}
NAMES = mostly_slow(SEARCHES, QUICK)


@pytest.mark.parametrize("name", NAMES)
def test_inner_optimizers_get_what_they_take(name):
    """Without teleports it is the inner optimizer; with them, by `unroll` (which offers a key and a batch as
    well), the loss falls as it does."""
    optimizer = SEARCHES[name]()
    expected = plain_steps(optimizer, 3)
    trace = sx.unroll(optimizer, TASK, jax.random.key(0), 3, points=True)
    np.testing.assert_allclose(trace.params[-1], expected, rtol=2e-4, atol=1e-4)
    idle = sx.teleported(optimizer, SYMMETRY, schedule=(), search=sx.search.Oracle())
    trace = sx.unroll(idle, TASK, jax.random.key(0), 3, points=True)
    np.testing.assert_allclose(trace.params[-1], expected, rtol=2e-4, atol=1e-4)
    moving = sx.teleported(
        optimizer, SYMMETRY, schedule={1}, search=sx.search.Oracle(), guard=None, transport="reset"
    )
    trace = sx.unroll(moving, TASK, jax.random.key(0), 3)
    assert trace.loss[-1] < trace.loss[0]


@pytest.mark.parametrize(
    "transport",
    [pytest.param("keep", marks=pytest.mark.slow), pytest.param("reset", marks=pytest.mark.slow), "carry"],
)
def test_lbfgs_teleports_along_a_network(transport, float64):
    rng = np.random.default_rng(0)
    params = {"w1": jnp.asarray(rng.normal(size=(3, 2))), "w2": jnp.asarray(rng.normal(size=(1, 3)))}
    x, y = jnp.asarray(rng.normal(size=(8, 2))), jnp.asarray(rng.normal(size=(8, 1)))

    def loss(w, x, y):
        return jnp.mean((jax.nn.relu(x @ w["w1"].T) @ w["w2"].T - y) ** 2)

    optimizer = sx.teleported(
        optax.lbfgs(memory_size=4),
        sx.models.mlp_symmetry(params, ["w1", "w2"]),
        search=sx.search.ClosedForm(bound=0.1),
        schedule={2, 4},
        transport=transport,
    )

    @jax.jit
    def step(w, state):
        value, gradient = jax.value_and_grad(loss)(w, x, y)
        updates, state = optimizer.update(gradient, state, w, value_fn=loss, x=x, y=y, value=value)
        return optax.apply_updates(w, updates), state, value

    state, losses = optimizer.init(params), []
    for _ in range(7):
        params, state, value = step(params, state)
        losses.append(float(value))
    assert np.all(np.diff(losses) <= 1e-12)
    assert losses[-1] < 0.5 * losses[0]
    assert state.outcomes.tolist() == [2] + [0] * (len(sx.teleportation.OUTCOMES) - 1)


def test_a_loss_takes_its_data_by_name():
    def loss(x, a, *, b=0.0):
        return TASK.loss(x) * a + b

    optimizer = sx.teleported(optax.sgd(0.01), SYMMETRY, search=sx.search.Oracle(), schedule={0})
    gradient = jax.grad(loss)(START, 2.0)
    state = optimizer.init(START)
    expected, _ = optimizer.update(gradient, state, START, value_fn=lambda x: loss(x, 2.0, b=1.0))
    found, _ = optimizer.update(gradient, state, START, value_fn=loss, a=2.0, b=1.0)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    batched, _ = optimizer.update(gradient, state, START, value_fn=lambda x, batch: loss(x, batch), batch=2.0)
    np.testing.assert_allclose(batched, expected, rtol=1e-5)
    with pytest.raises(TypeError, match=r"`value_fn` needs a besides the parameters.*a=\.\.\."):
        optimizer.update(gradient, state, START, value_fn=loss, b=1.0)


def rescaled(extra):
    rng = np.random.default_rng(0)
    arrays = {"w1": jnp.asarray(rng.normal(size=(3, 2)), jnp.float32), "w2": jnp.ones((1, 3))}
    return arrays, arrays | extra


@pytest.mark.parametrize(
    ("search", "transport"),
    [(sx.search.ClosedForm(), "keep"), (sx.search.LevelSet(steps=2), "reset")],
    ids=repr,
)
def test_leaves_that_are_no_floats_stay_where_they_are(search, transport):
    extra = {"steps": jnp.array(3), "mask": jnp.array([True, False]), "n": np.arange(3)}
    arrays, model = rescaled(extra)
    symmetry = sx.models.mlp_symmetry(arrays, ["w1", "w2"])
    x = jnp.ones((4, 2))

    def loss(w):
        return jnp.mean((jax.nn.relu(x * 1.0 @ w["w1"].T) @ w["w2"].T - 1) ** 2)

    optimizer = sx.teleported(optax.sgd(0.1), symmetry, search=search, transport=transport)
    gradient = jax.grad(loss)(arrays)
    expected, _ = optimizer.update(gradient, optimizer.init(arrays), arrays, value_fn=loss)
    zeros = jax.tree.map(jnp.zeros_like, extra)
    for gradients in (gradient | zeros, gradient | dict.fromkeys(extra)):
        updates, state = jax.jit(lambda g: optimizer.update(g, optimizer.init(model), model, value_fn=loss))(
            gradients
        )
        for name in arrays:
            np.testing.assert_allclose(updates[name], expected[name], rtol=1e-6)
        moved = eqx.apply_updates(model, updates)
        assert all(jnp.array_equal(moved[name], model[name]) for name in extra)
        assert int(state.outcome) == 0


@pytest.mark.parametrize(
    "schedule",
    [None, sx.schedules.every_n_steps(2), sx.schedules.Plateau(patience=1), {0}, jnp.array([True])],
)
@pytest.mark.parametrize("search", [sx.search.Oracle(), sx.search.LevelSet(steps=1)], ids=repr)
def test_the_state_keeps_its_types_and_has_no_empty_arrays(schedule, search):
    """Weak types too: a second type is a second program, and a carry that `lax.scan` rejects."""
    optimizer = sx.teleported(optax.adam(0.1), SYMMETRY, search=search, schedule=schedule)
    state = optimizer.init(START)

    def update(state):
        return optimizer.update(jnp.ones(2), state, START, value_fn=TASK.loss)[1]

    after = jax.eval_shape(update, state)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    for x, y in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
        assert (x.shape, x.dtype, x.weak_type) == (y.shape, y.dtype, y.weak_type)
        assert x.size


def test_what_became_of_all_teleports_is_counted():
    optimizer = sx.teleported(
        optax.sgd(0.01),
        SYMMETRY,
        search=sx.search.Oracle(),
        schedule=sx.schedules.every_n_steps(2),
        guard=sx.Guard(jump=2.0),
    )
    codes, trace = (
        [],
        sx.unroll(optimizer, TASK, jax.random.key(0), 8, watch=("outcome", "outcomes", "algebra")),
    )
    for t in range(0, 8, 2):
        codes.append(int(trace.watched["outcome"][t + 1]))
    counts = np.bincount(codes, minlength=len(sx.teleportation.OUTCOMES))
    assert trace.watched["outcomes"][-1].tolist() == counts.tolist()
    assert counts.sum() == 4


def test_a_loss_of_a_filtered_model_is_told_to_combine_it():
    model = eqx.nn.MLP(2, 1, 3, 1, key=jax.random.key(0))
    params = eqx.filter(model, eqx.is_inexact_array)
    symmetry = sx.models.mlp_symmetry(model)
    x = jnp.ones((4, 2))

    def loss(model, batch=None):
        return jnp.mean(jax.vmap(model)(x) ** 2)

    optimizer = sx.teleported(optax.sgd(0.1), symmetry, search=sx.search.ClosedForm())
    gradient = eqx.filter_grad(loss)(model)
    with pytest.raises(TypeError, match=r"since they were filtered.*eqx.combine\(w, model\)"):
        optimizer.update(gradient, optimizer.init(params), params, value_fn=loss)
    with pytest.raises(TypeError, match=r"eqx.combine\(w, model\)"):
        sx.teleport(loss, params, symmetry)
    with pytest.raises(TypeError, match=r"eqx.combine\(w, model\)"):
        sx.verify(loss, params, symmetry, jax.random.key(0), trials=1)
    updates, _ = optimizer.update(
        gradient, optimizer.init(params), params, value_fn=lambda w: loss(eqx.combine(w, model))
    )
    assert loss(eqx.apply_updates(model, updates)) < loss(model)


@pytest.mark.parametrize("key", [0, None, 1.5, np.zeros(2), "key", True])
def test_a_seed_is_no_key(key, unchecked):
    family, network = (
        sx.tasks.make_family("booth"),
        sx.learned.FlatGradientLSTM(2, width=2, key=jax.random.key(0)),
    )
    estimator = sx.metatrain.TruncatedBPTT(family, sx.UpdateRule(), steps=2, truncation=2, tasks=2)
    rescaling = sx.NetworkSymmetry({"h": sx.groups.PositiveDiagonal(2)}, {"w": "h"}, like={"w": jnp.ones(2)})
    calls = [
        lambda: sx.unroll(optax.sgd(0.1), TASK, key, 2),
        lambda: sx.unroll_many(lambda n, t: optax.sgd(0.1), None, family, key, 2, 2),
        lambda: sx.meta_train(lambda k: network, estimator, optax.adam(0.1), key, outer_steps=1),
        lambda: sx.metatrain.curriculum_train(
            lambda k: network, None, optax.adam(0.1), key, None, outer_steps=1
        ),
        lambda: sx.verify(TASK.loss, START, SYMMETRY, key),
        lambda: sx.teleport_gain(TASK.loss, START, SYMMETRY, key),
        lambda: sx.find_symmetries(TASK.loss, START, key),
        lambda: sx.rollout.Environment(TASK).reset(key),
        lambda: sx.search.Random(key),
        lambda: sx.objectives.Sharpness(key),
        lambda: sx.objectives.Curvature(SYMMETRY, key),
        lambda: sx.search.CurvatureStep(key),
        lambda: SYMMETRY.sample(key),
        lambda: rescaling.sample(key),
        lambda: sx.learned.FlatGradientLSTM(2, key=key),
        lambda: sx.learned.FlatGradientGRU(2, key=key),
        lambda: sx.learned.CoordinatewiseLSTM(key=key),
        lambda: sx.learned.RNNProp(key=key),
        lambda: sx.learned.PerNeuronLSTM(key=key),
        lambda: sx.learned.StepLSTM(key=key),
        lambda: sx.learned.OrbitLSTM(2, algebra=1, key=key),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=r"`key` must be a key of jax.random, got .*jax.random.key\("):
            call()
    sx.unroll(optax.sgd(0.1), TASK, jax.random.PRNGKey(0), 1)  # the older keys serve as well


def test_parameters_without_a_bound_array_are_rejected_before_the_first_step():
    params = {"w1": jnp.ones((3, 2)), "w2": jnp.ones((1, 3))}
    optimizer = sx.teleported(
        optax.sgd(0.1), sx.models.mlp_symmetry(params, ["w1", "w2"]), search=sx.search.ClosedForm()
    )
    with pytest.raises(ValueError, match="w1"):
        optimizer.init({"params": params})
