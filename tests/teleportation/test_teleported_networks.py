"""`teleported` around networks: as part of training loops of all kinds, and what it rejects."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import symmetrax as sx

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHAPES = {"w1": (4, 3), "b1": (4,), "w2": (2, 4), "b2": (2,)}
WEIGHTS, BIASES = ["w1", "w2"], ["b1", "b2"]
SEARCH = sx.search.ClosedForm(bound=0.3)
RNG = np.random.default_rng(0)
BATCH = RNG.normal(size=(6, 3)), RNG.normal(size=(6, 2))


def draw(seed=0, dtype=None):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in SHAPES.items()}


def outputs(params, x, act=jax.nn.relu):
    return act(x @ params["w1"].T + params["b1"]) @ params["w2"].T + params["b2"]


def loss(params, batch, act=jax.nn.relu):
    x, y = (jnp.asarray(a, params["w1"].dtype) for a in batch)
    return jnp.mean((outputs(params, x, act) - y) ** 2)


def value_fn(params):
    return loss(params, BATCH)


def linear_loss(params, batch):
    return loss(params, batch, act=lambda z: z)


SYMMETRY = sx.models.mlp_symmetry(
    {name: np.zeros(shape) for name, shape in SHAPES.items()}, WEIGHTS, BIASES
)  # no arrays in it


def wrap(inner, **options):
    return sx.teleported(
        inner, SYMMETRY, **{"search": SEARCH, "schedule": sx.schedules.every_n_steps(2)} | options
    )


def train(optimizer, params, steps=4, value_fn=value_fn, **extra):
    """Parameters after each step, and the states, from one scan."""
    optimizer = optax.with_extra_args_support(optimizer)

    def step(carry, _):
        w, state = carry
        updates, state = optimizer.update(jax.grad(value_fn)(w), state, w, value_fn=value_fn, **extra)
        w = optax.apply_updates(w, updates)
        return (w, state), (w, state)

    return jax.lax.scan(step, (params, optimizer.init(params)), None, length=steps)[1]


def close(a, b, rtol=1e-12, atol=1e-13):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)


def at(tree, step):
    return jax.tree.map(lambda x: x[step], tree)


def teleports(states):
    """The steps at which one happened."""
    return list(np.flatnonzero(np.any(np.asarray(states.algebra) != 0, axis=-1)))


MATRICES = {"w1": True, "b1": False, "w2": True, "b2": False}
INNER = {
    "clip, schedule, mask": lambda: optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.inject_hyperparams(optax.adamw)(optax.cosine_decay_schedule(0.1, 10), weight_decay=0.1),
        optax.masked(optax.trace(0.9), MATRICES),
    ),
    "MultiSteps": lambda: optax.MultiSteps(
        optax.sgd(0.1), 2, accumulator_dtype=jnp.float64
    ).gradient_transformation(),
}

# By hand: teleport(), then the gradient taken anew at the new point.
by_hand = jax.jit(partial(sx.teleport, loss, symmetry=SYMMETRY, batch=BATCH, search=SEARCH))
gradient_at = jax.jit(jax.grad(value_fn))


@pytest.mark.parametrize("name", INNER)
def test_it_is_a_teleport_and_then_the_inner_step(float64, name):
    inner = INNER[name]()
    found, states = jax.jit(partial(train, wrap(inner)))(draw())
    assert teleports(states) == [0, 2]
    assert not np.any(states.outcome)
    w, update = draw(), jax.jit(inner.update)
    state = inner.init(w)
    for t in range(4):
        if t % 2 == 0:
            w, info = by_hand(w)
            close(at(states.algebra, t), info.algebra)
            assert info.evaluations == 1  # nobody gave it a gradient
            assert states.evaluations[t] == 0
        updates, state = update(gradient_at(w), state, w)
        w = optax.apply_updates(w, updates)
        close(at(found, t), w)


@pytest.fixture(scope="module")
def runs():
    """One training, compiled once: its optimizer, the program, and what it does from seed 0."""
    with jax.enable_x64(True):
        optimizer = wrap(optax.adam(0.1), transport="carry")
        program = jax.jit(partial(train, optimizer))
        return optimizer, program, program(draw())[0]


def test_it_stands_last_in_a_chain(float64, runs):
    optimizer, _, found = runs
    chained, (_, states) = jax.jit(partial(train, optax.chain(optax.zero_nans(), optimizer)))(draw())
    close(chained, found)
    assert teleports(states) == [0, 2]
    assert optax.tree.get(states, "outcome").shape == (4,)


def test_seeds_are_mapped(float64, runs):
    optimizer, program, found = runs
    several = jax.tree.map(lambda *x: jnp.stack(x), *(draw(seed) for seed in range(3)))
    mapped, states = jax.jit(jax.vmap(partial(train, optimizer)))(several)
    close(at(mapped, 0), found)
    close(at(mapped, 2), program(draw(2))[0])
    assert states.outcome.shape == (3, 4)


def test_parameters_may_lie_on_several_devices(float64, runs):
    _, program, found = runs
    mesh = Mesh(np.array(jax.devices()[:2]), ("units",))
    assert mesh.size == 2
    spread = {"w1": ("units", None), "b1": ("units",), "w2": (None, "units"), "b2": (None,)}
    params = {
        name: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spread[name])))
        for name, x in draw().items()
    }
    assert len(params["w1"].sharding.device_set) == 2
    sharded, _ = program(params)
    assert len(sharded["w1"].sharding.device_set) == 2
    close(sharded, found)


def test_accumulated_gradients_of_two_batches_teleport_once(float64):
    """Two mini-steps: nothing moves after the first; after the second it is one step with the mean."""
    optimizer = wrap(optax.sgd(0.1), schedule=None)
    several = optax.MultiSteps(optimizer, every_k_schedule=2, accumulator_dtype=jnp.float64)
    halves = [tuple(a[part] for a in BATCH) for part in (slice(0, 3), slice(3, 6))]
    gradients = [jax.grad(loss)(draw(), half) for half in halves]
    w = draw()
    update = jax.jit(partial(several.update, value_fn=value_fn))
    state = several.init(w)
    first, state = update(gradients[0], state, w)
    assert not any(np.any(x) for x in jax.tree.leaves(first))
    assert state.inner_opt_state.count == 0
    second, state = update(gradients[1], state, w)
    assert state.inner_opt_state.count == 1
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *gradients)
    expected, _ = jax.jit(partial(optimizer.update, value_fn=value_fn))(mean, optimizer.init(w), w)
    close(second, expected)
    assert np.any(state.inner_opt_state.algebra)


def updates_are_a_teleport_and_a_step(loss, params, symmetry, batch):
    """In single precision."""
    optimizer, on_batch = sx.teleported(optax.sgd(0.1), symmetry, search=SEARCH), partial(loss, batch=batch)

    @jax.jit
    def both(params):
        state = optimizer.init(params)
        updates, state = optimizer.update(jax.grad(on_batch)(params), state, params, value_fn=on_batch)
        there, info = sx.teleport(loss, params, symmetry, batch, search=SEARCH)
        stepped = optax.tree.add_scale(there, -0.1, jax.grad(on_batch)(there))
        return optax.apply_updates(params, updates), state, stepped, info

    found, state, expected, info = both(params)
    assert (state.outcome, info.outcome) == (0, 0)
    assert np.any(state.algebra)
    close(found, expected, 1e-5, 1e-6)


def test_models_of_equinox_are_parameters():
    model = eqx.nn.MLP(3, 2, width_size=4, depth=1, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    symmetry = sx.models.mlp_symmetry(model)

    def model_loss(model, batch):
        return jnp.mean((jax.vmap(model)(batch[0]) - batch[1]) ** 2)

    batch = jax.tree.map(jnp.asarray, BATCH)

    def split_loss(params, batch):
        return model_loss(eqx.combine(params, static), batch)

    updates_are_a_teleport_and_a_step(split_loss, params, symmetry, batch)
    there, info = eqx.filter_jit(sx.teleport)(model_loss, model, symmetry, batch, search=SEARCH)
    assert info.outcome == 0
    assert there.activation is model.activation


def test_states_of_flax_are_parameters():
    class Net(nnx.Module):
        def __init__(self):
            self.one, self.two = (nnx.Linear(*sizes, rngs=nnx.Rngs(0)) for sizes in ((3, 4), (4, 2)))

        def __call__(self, x):
            return self.two(jax.nn.relu(self.one(x)))

    graph, params = nnx.split(Net(), nnx.Param)
    symmetry = sx.models.mlp_symmetry(
        params,
        ["one.kernel.value", "two.kernel.value"],
        ["one.bias.value"],
        layout="in out",
    )

    def flax_loss(params, batch):
        return jnp.mean((nnx.merge(graph, params)(batch[0]) - batch[1]) ** 2)

    batch = jax.tree.map(jnp.asarray, BATCH)
    updates_are_a_teleport_and_a_step(flax_loss, params, symmetry, batch)


def tanh_value(params):
    """Not what SYMMETRY is a symmetry of."""
    return loss(params, BATCH, act=jnp.tanh)


@pytest.mark.parametrize(
    ("guard", "function", "code"),
    [(sx.Guard(jump=1e-9), value_fn, 2), (sx.Guard(jump=1e9, tolerance=1e-6), tanh_value, 3)],
)
def test_a_rejected_teleport_changes_nothing_and_the_inner_step_is_taken(float64, guard, function, code):
    inner, w = optax.sgd(0.1, momentum=0.9), draw()
    optimizer = wrap(inner, guard=guard, schedule={1}, transport="carry")
    gradient, state, plain = jax.grad(function)(w), optimizer.init(w), inner.init(w)
    for _ in range(2):
        updates, state = optimizer.update(gradient, state, w, value_fn=function)
        expected, plain = inner.update(gradient, plain, w)
        assert eqx.tree_equal(updates, expected)
        assert eqx.tree_equal(state.inner, plain)
        assert state.outcome == (code if state.count == 2 else 0)
    assert np.any(state.algebra)  # what was found, and rejected


@pytest.mark.parametrize("group", [sx.groups.PositiveDiagonal, sx.groups.GeneralLinear])
def test_one_gradient_serves_the_search_and_the_step(float64, group):
    """`value_fn` has no derivative here; what the inner optimizer sees is the true one at the new point."""
    true = loss if group is sx.groups.PositiveDiagonal else linear_loss

    @jax.custom_vjp
    def without(params):
        return true(params, BATCH)

    def reject(*_):
        raise AssertionError("no derivative of the loss should be taken")

    without.defvjp(reject, reject)
    w, recorder = draw(), optax.trace(0.0)
    symmetry = sx.models.mlp_symmetry(w, WEIGHTS, BIASES, group=group)
    optimizer = sx.teleported(recorder, symmetry, search=SEARCH)
    here = jax.grad(true)(w, BATCH)
    updates, state = jax.jit(partial(optimizer.update, value_fn=without))(here, optimizer.init(w), w)
    seen = state.inner.trace
    point = optax.tree.sub(optax.tree.add(w, updates), seen)  # the recorder's step is the gradient itself
    assert np.any(state.algebra)
    close(seen, jax.grad(true)(point, BATCH), rtol=1e-11, atol=1e-12)
    assert optax.tree.norm(seen) > 1.01 * optax.tree.norm(here)
    assert state.evaluations == 0


@pytest.mark.parametrize(
    ("options", "cost"),
    [
        (
            {
                "objective": sx.objectives.GuaranteedDecrease(),
                "search": sx.search.Random(jax.random.key(0), samples=2),
            },
            2 * 3,
        ),
        ({"objective": sx.objectives.NegativeParameterNorm()}, 0),
    ],
)
def test_the_state_counts_what_teleport_says_it_costs(float64, options, cost):
    _, states = jax.jit(partial(train, wrap(optax.sgd(0.01), **options), steps=3))(draw())
    costs = []
    jax.eval_shape(
        lambda w: costs.append(
            sx.teleport(loss, w, SYMMETRY, BATCH, **{"search": SEARCH} | options)[1].evaluations
        ),
        draw(),
    )
    assert costs == [cost]
    assert np.array_equal(states.evaluations, [cost, cost, 2 * cost])


@pytest.mark.parametrize(
    "search",
    [
        sx.search.LevelSet(steps=3, radius=0.1, backtracks=5),
        sx.search.NullSpace(
            lambda params, batch: {"w2": jnp.tanh(batch[0] @ params["w1"].T + params["b1"])}, steps=2
        ),
    ],
    ids=["LevelSet", "NullSpace"],
)
def test_searches_without_a_group(float64, search):
    w, batch = draw(), tuple(jnp.asarray(a[:3]) for a in BATCH)  # fewer samples than hidden units
    tanh_loss = partial(loss, act=jnp.tanh)
    on_batch = partial(tanh_loss, batch=batch)
    options = {"search": search, "guard": sx.Guard(jump=1.0)}
    optimizer = sx.teleported(optax.sgd(0.1), transport="reset", **options)

    @jax.jit
    def both(w):
        state = optimizer.init(w)
        updates, state = optimizer.update(jax.grad(on_batch)(w), state, w, value_fn=on_batch, batch=batch)
        there, info = sx.teleport(tanh_loss, w, batch=batch, **options)
        stepped = optax.tree.add_scale(there, -0.1, jax.grad(on_batch)(there))
        return optax.apply_updates(w, updates), state, stepped, info

    found, state, expected, info = both(w)
    assert info.after > 1.001 * info.before
    assert (state.outcome, state.algebra, state.evaluations) == (0, None, search.evaluations())
    close(found, expected)
    with pytest.raises(ValueError, match="transport='carry' moves the state by a group element"):
        sx.teleported(optax.sgd(0.1), search=search, transport="carry")


def test_a_data_dependent_symmetry_needs_the_batch(float64):
    w, batch = draw(), tuple(jnp.asarray(a[:3]) for a in BATCH)
    leaky_loss = partial(loss, act=jax.nn.leaky_relu)
    on_batch = partial(leaky_loss, batch=batch)
    symmetry = sx.symmetry.ActivationGL.of(w, WEIGHTS, biases=tuple(BIASES))
    options = {"search": sx.search.Ascent(1, 1e-3), "guard": sx.Guard(jump=1e3)}
    optimizer = sx.teleported(optax.sgd(0.1), symmetry, **options)
    with pytest.raises(
        ValueError, match="ActivationGL depends on the data, and the batch is None: pass the batch"
    ):
        jax.eval_shape(partial(optimizer.update, value_fn=on_batch), w, optimizer.init(w), w)

    @jax.jit
    def both(w):
        state = optimizer.init(w)
        updates, state = optimizer.update(jax.grad(on_batch)(w), state, w, value_fn=on_batch, batch=batch)
        there, info = sx.teleport(leaky_loss, w, symmetry, batch, **options)
        stepped = optax.tree.add_scale(there, -0.1, jax.grad(on_batch)(there))
        return optax.apply_updates(w, updates), state, stepped, info

    found, state, expected, info = both(w)
    assert info.after > info.before
    assert (state.outcome, state.evaluations) == (0, info.evaluations)
    close(found, expected, rtol=1e-10, atol=1e-11)


def at_values(optimizer, values):
    """The steps at which a teleport happens while the loss is said to be `values`, at a point that stays."""
    w = draw()
    gradient = jax.grad(value_fn)(w)

    def step(state, value):
        _, state = optimizer.update(gradient, state, w, value_fn=value_fn, **value)
        return state, state

    return teleports(jax.jit(lambda v: jax.lax.scan(step, optimizer.init(w), v, length=12)[1])(values))


def test_a_plateau_is_as_many_steps_without_progress_as_it_says(float64):
    patient = wrap(optax.sgd(0.1), schedule=sx.schedules.Plateau(patience=3))
    # Falls, waits for 3, teleports, waits for 2, falls, waits for 3 and teleports.
    values = np.array([1.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.4, 0.4, 0.4, 0.4, 0.3])
    assert at_values(patient, {"value": values}) == [4, 10]
    # A fall below a part `rtol` of the best, a rise, and what is no number are no progress.
    values = np.array([1.0, 0.9995, 2.0, np.nan, 0.9, 0.9, np.inf, 0.8999, 0.8, -1.0, -2.0, -3.0])
    assert at_values(patient, {"value": values}) == [3, 7]
    values = 1.0 * np.arange(12, 0, -1)
    assert at_values(patient, {"value": values}) == []
    eager = wrap(optax.sgd(0.1), schedule=sx.schedules.Plateau(patience=3, rtol=0.5))
    assert at_values(eager, {"value": values}) == [3, 6]  # 12 to 6 is no fall below half, 6 to 5 is


def test_a_plateau_looks_at_the_loss_if_no_value_is_given(float64):
    """At a point that stays, no step after the first is progress."""
    assert at_values(wrap(optax.sgd(0.1), schedule=sx.schedules.Plateau(patience=3)), {}) == [3, 6, 9]


def test_every_counts_from_its_start(float64):
    assert at_values(wrap(optax.sgd(0.1), schedule=sx.schedules.every_n_steps(4, start=2)), {}) == [2, 6, 10]
    with pytest.raises(ValueError, match=r"between teleports, at least one, got every_n_steps\(0, start=0\)"):
        sx.schedules.every_n_steps(0)


@pytest.mark.parametrize(
    ("dtype", "double", "digits"), [(jnp.bfloat16, False, 0.03), (jnp.float32, True, 1e-4)]
)
def test_parameters_keep_their_precision(runs, dtype, double, digits):
    """In a scan, so that the state keeps its types as well; with double precision on and off."""
    _, _, expected = runs
    with jax.enable_x64(double):
        w, guard = draw(dtype=dtype), sx.Guard(jump=1e3, tolerance=0.1)  # bfloat16 has three digits
        found, states = jax.jit(partial(train, wrap(optax.adam(0.1), transport="carry", guard=guard)))(w)
    assert {x.dtype for x in found.values()} == {jnp.dtype(dtype)}
    assert teleports(states) == [0, 2]
    assert not np.any(states.outcome)
    first = {name: np.asarray(x[0], float) for name, x in found.items()}
    close(first, {name: np.asarray(x[0]) for name, x in expected.items()}, rtol=digits, atol=digits)


def test_a_mask_outside_is_the_wrong_order(unchecked):
    mask = {"w1": True, "b1": True, "w2": False, "b2": False}
    outside = optax.masked(wrap(optax.sgd(0.1)), mask)
    with pytest.raises(ValueError, match=r"2 of them are masked.*put the mask inside"):
        outside.init(draw())
    parts = optax.multi_transform(
        {"a": wrap(optax.sgd(0.1)), "b": optax.sgd(0.1)}, {k: "a" if v else "b" for k, v in mask.items()}
    )
    with pytest.raises(ValueError, match=r"2 of them are masked.*put the mask inside"):
        parts.init(draw())


def test_wrong_calls_say_what_is_missing(unchecked):
    optimizer, w = wrap(optax.sgd(0.1)), draw()
    with pytest.raises(ValueError, match=r"`teleported` needs value_fn: call update\(grads, state, params"):
        optimizer.update(w, optimizer.init(w), w)
    with pytest.raises(ValueError, match=r"`teleported` needs value_fn"):
        optax.chain(optax.clip(1.0), optimizer).update(w, optax.chain(optax.clip(1.0), optimizer).init(w), w)
    for options in ({}, {"search": sx.search.Ascent()}):
        with pytest.raises(ValueError, match="got symmetry=None: pass one, or search with LevelSet"):
            sx.teleported(optax.sgd(0.1), **options)
    discrete = sx.models.mlp_symmetry(w, WEIGHTS, BIASES, group=sx.groups.SignDiagonal)
    with pytest.raises(ValueError, match="NetworkSymmetry has no continuous part to search in"):
        sx.teleported(optax.sgd(0.1), discrete)
    with pytest.raises(TypeError, match="`teleported` wraps an optax optimizer, got float"):
        sx.teleported(0.1, SYMMETRY)
