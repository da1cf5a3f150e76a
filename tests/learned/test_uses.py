"""Learned transforms as users of optax use any other: modules, donation, masks, meshes, numbers that fail."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import symmetrax as sx

from ..cases import mostly_slow

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY, OTHER = jax.random.split(jax.random.key(0))
NO_STEP = [reason.startswith("no step") for reason in sx.teleportation.OUTCOMES].index(True)


def coordinatewise():
    return sx.learned.CoordinatewiseLSTM(width=4, key=KEY)


#: Networks that serve parameters of any structure.
ANY = {
    "coordinatewise": coordinatewise,
    "rnnprop": lambda: sx.learned.RNNProp(width=4, key=KEY),
    "step": lambda: sx.learned.StepLSTM(emits=("step_size", "momentum"), width=4, key=KEY),
    "whole": lambda: sx.learned.FlatGradientLSTM(17, width=4, key=KEY),
    "orbit": lambda: sx.learned.OrbitLSTM(17, sees=(), width=4, key=KEY),
}


def mlp():
    """17 parameters: weights of shapes (3, 2) and (2, 3), biases of 3 and 2."""
    return eqx.nn.MLP(2, 2, 3, 1, key=OTHER)


@pytest.mark.parametrize("name", mostly_slow(ANY, ("coordinatewise", "step")))
def test_parameters_may_be_modules_that_can_be_called(name):
    params, static = eqx.partition(mlp(), eqx.is_inexact_array)
    assert callable(params)

    def loss(params):
        return jnp.mean(jax.vmap(eqx.combine(params, static))(jnp.eye(2)) ** 2)

    transform = ANY[name]().transform()

    @jax.jit
    def step(params, state):
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = transform.update(gradient, state, params, value=value)
        return eqx.apply_updates(params, updates), state

    after, state = step(params, transform.init(params))
    assert jax.tree.structure(after) == jax.tree.structure(params)
    assert state.outcome == 0
    assert loss(after) != loss(params)


def test_the_step_may_be_a_function_whatever_the_parameters():
    class Halving(eqx.Module):
        def __call__(self, gradient):
            return jax.tree.map(lambda g: -g / 2, gradient)

    params, _ = eqx.partition(mlp(), eqx.is_inexact_array)
    task = sx.tasks.booth(start=[5.0, -5.0])
    environment = sx.rollout.Environment(task, sx.UpdateRule())
    state = environment.reset(KEY)
    for update in (Halving(), lambda g: -g / 2, jnp.asarray(-state.gradient / 2)):
        after, _ = environment.step(state, sx.learned.Proposal(update=update))
        np.testing.assert_allclose(after.params, state.params - state.gradient / 2, rtol=1e-6)
    del params


@pytest.mark.parametrize("name", mostly_slow([*ANY, "online"], ("coordinatewise", "online")))
def test_leaves_that_are_no_floats_stay_and_python_floats_move(name):
    w = {"w1": jnp.ones((3, 2)), "w2": jnp.ones((2, 3)), "b": jnp.ones(4)}
    params = {
        **w,
        "gain": 0.5,
        "steps": 3,
        "mask": jnp.array([True, False]),
        "ids": jnp.arange(3),
        "none": None,
    }
    if name == "online":
        symmetry = sx.NetworkSymmetry(
            {"h": sx.groups.PositiveDiagonal(3)}, {"w1": "h _", "w2": "_ h*"}, like=w
        )
        transform = sx.online_teleported(optax.adam(0.1), symmetry, 0.01, guard=None)
    else:
        transform = ANY[name]().transform()

    def loss(p):
        return jnp.sum(p["gain"] * (p["w2"] @ p["w1"]) ** 2) + jnp.sum(p["b"] ** 2) * p["mask"][0]

    floats = {name: jnp.asarray(x) for name, x in params.items() if name in ("w1", "w2", "b", "gain")}
    gradient = jax.grad(lambda floats: loss({**params, **floats}))(floats)
    unmoved = {
        "float0": np.zeros(3, jax.dtypes.float0),
        "zeros": jnp.zeros(3, int),
        "none": None,
    }
    for kind, ids in unmoved.items():
        given = {**gradient, "steps": 0, "mask": jnp.zeros(2, bool), "ids": ids, "none": None}
        state = transform.init(params)
        updates, state = transform.update(given, state, params, value=loss(params), value_fn=loss)
        assert state.outcome == 0, kind
        assert updates["gain"].dtype == jnp.float32
        assert updates["gain"] != 0
        if kind == "none":
            assert updates["ids"] is None
            continue
        after = optax.apply_updates(params, updates)
        assert after["steps"] == 3
        np.testing.assert_array_equal(after["mask"], params["mask"])
        np.testing.assert_array_equal(after["ids"], params["ids"])
        assert not np.allclose(after["w1"], params["w1"])


def test_a_float_without_a_gradient_and_complex_parameters_are_rejected_by_name():
    transform = coordinatewise().transform()
    params = {"w": jnp.ones(2), "b": jnp.ones(2)}
    with pytest.raises(ValueError, match="gradient of b is missing"):
        transform.update({"w": jnp.ones(2), "b": None}, transform.init(params), params)
    with pytest.raises(ValueError, match="z is complex: hold its real and"):
        transform.init({"z": jnp.ones(2, complex)})


def perceptron():
    params = {"w1": jnp.linspace(0.1, 1.0, 12).reshape(4, 3), "w2": jnp.linspace(-1.0, 0.3, 8).reshape(2, 4)}
    inputs = jnp.linspace(-1.0, 1.0, 15).reshape(5, 3)

    def loss(p):
        return jnp.mean((jax.nn.relu(inputs @ p["w1"].T) @ p["w2"].T - 1.0) ** 2)

    return params, loss, sx.models.mlp_symmetry(params, ["w1", "w2"])


def together():
    return sx.learned.Joint((coordinatewise(), sx.learned.PerNeuronLSTM(width=4, key=OTHER)))


def test_a_mask_goes_around_a_learned_optimizer_but_not_around_a_symmetry():
    params, loss, symmetry = perceptron()
    gradient = jax.grad(loss)(params)
    masked = optax.masked(coordinatewise().transform(), {"w1": True, "w2": False})
    updates, _ = masked.update(gradient, masked.init(params), params)
    assert np.all(np.asarray(updates["w1"]) != 0)
    np.testing.assert_array_equal(updates["w2"], gradient["w2"])  # what optax.masked does with the others
    for transform in (
        together().transform(symmetry),
        sx.online_teleported(optax.sgd(0.1), symmetry, 0.1),
    ):
        with pytest.raises(ValueError, match="1 of them are masked"):
            optax.masked(transform, {"w1": True, "w2": False}).init(params)


def transforms_of_a_perceptron(symmetry):
    whole = sx.learned.FlatGradientLSTM(20, algebra=4, width=4, key=KEY)
    return {
        "whole": whole.transform(symmetry),
        "first": whole.transform(symmetry, sx.UpdateRule(order="teleport-first")),
        "gru": sx.learned.FlatGradientGRU(20, width=4, key=KEY).transform(),
        "together": together().transform(symmetry),
        "rnnprop": ANY["rnnprop"]().transform(),
        "step": ANY["step"]().transform(),
        "pairs": sx.learned.LayerPairLSTM(
            (3, 4, 2), group="scaling", emits=("step_size",), width=4, key=KEY
        ).transform(symmetry),
        "online": sx.online_teleported(optax.inject_hyperparams(optax.adam)(0.1), symmetry, optax.adam(0.1)),
    }


DONATED = ("whole", "first", "gru", "together", "rnnprop", "step", "pairs", "online")


@pytest.mark.parametrize("name", mostly_slow(DONATED, ("whole", "together", "online")))
def test_states_can_be_donated_and_nothing_compiles_twice(name):
    params, loss, symmetry = perceptron()
    transform = transforms_of_a_perceptron(symmetry)[name]
    start = jax.tree.map(np.asarray, params)

    def update(gradient, state, params):
        return transform.update(gradient, state, params, value_fn=loss)

    donating = jax.jit(update, donate_argnums=1)
    gradients = [jax.grad(loss)(params)]
    points, state = [params], transform.init(params)
    for _ in range(3):
        updates, state = donating(gradients[-1], state, points[-1])
        points.append(optax.apply_updates(points[-1], updates))
        gradients.append(jax.grad(loss)(points[-1]))
    assert donating._cache_size() == 1
    again = transform.init(params)  # nothing that was given away is needed again
    updates, again = donating(gradients[0], again, params)
    np.testing.assert_array_equal(optax.apply_updates(params, updates)["w1"], points[1]["w1"])
    np.testing.assert_array_equal(points[0]["w1"], start["w1"])


SPLITS = ({"w1": ("d", None), "w2": (None, "d")}, {"w1": (None, None), "w2": ("d", None)})


@pytest.mark.parametrize("axes", [AxisType.Explicit, pytest.param(AxisType.Auto, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", mostly_slow(ANY, ("coordinatewise", "step")))
def test_updates_lie_on_the_devices_as_the_parameters_do(name, axes):
    params, loss, _ = perceptron()
    params = {"w1": params["w1"], "w2": params["w2"]}
    transform = {
        **{name: make() for name, make in ANY.items() if name not in ("whole", "orbit")},
        "whole": sx.learned.FlatGradientLSTM(20, width=4, key=KEY),
        "orbit": sx.learned.OrbitLSTM(20, sees=(), width=4, key=KEY),
    }[name].transform()
    gradient, value = jax.grad(loss)(params), loss(params)
    update = jax.jit(lambda g, s, p: transform.update(g, s, p, value=value))
    plain, _ = update(gradient, transform.init(params), params)
    mesh = jax.make_mesh((2,), ("d",), axis_types=(axes,))
    for split in SPLITS:
        places = {name: NamedSharding(mesh, PartitionSpec(*spec)) for name, spec in split.items()}
        placed, along = jax.device_put(params, places), jax.device_put(gradient, places)
        updates, state = update(along, transform.init(placed), placed)
        _, state = update(along, state, placed)
        for leaf in placed:
            np.testing.assert_allclose(updates[leaf], plain[leaf], rtol=1e-5, atol=1e-9)
            assert updates[leaf].sharding.is_equivalent_to(placed[leaf].sharding, 2)
            assert state.previous[leaf].sharding.is_equivalent_to(placed[leaf].sharding, 2)


A, B = jnp.array([[1.0, 2.0], [1.0, 2.0]]), jnp.array([-7.0, -5.0])
SINGULAR = sx.symmetry.Pullback(sx.symmetry.Affine(A, B))
X = jnp.array([5.0, -5.0])


def squares(x):
    return jnp.sum((A @ x + B) ** 2)


@pytest.mark.parametrize("guard", [pytest.param(None, marks=pytest.mark.slow), sx.Guard()])
def test_where_nothing_moves_the_gradient_is_the_one_that_was_given(guard):
    """A map without an inverse, coordinates zero; and a teleport that is rejected; with a gradient of -0."""
    gradient = jax.grad(squares)(X)
    for symmetry, start in ((SINGULAR, 0.0), (sx.tasks.rosenbrock().symmetry(), 1.5)):
        guarded = guard if start == 0 else sx.Guard(jump=1e-3)
        for inner in (optax.sgd(0.01), optax.adam(0.01)):
            transform = sx.online_teleported(inner, symmetry, 0.01, start=jnp.array([start]), guard=guarded)
            updates, state = transform.update(gradient, transform.init(X), X, value_fn=squares)
            plain, _ = inner.update(gradient, inner.init(X), X)
            np.testing.assert_array_equal(updates, plain)
            assert state.outcome == (0 if start == 0 else 2)
    network = sx.learned.Joint((coordinatewise(), Still()))
    first = network.transform(SINGULAR, sx.UpdateRule(order="teleport-first", guard=guard))
    alone = coordinatewise().transform()
    updates, _ = first.update(gradient, first.init(X), X, value_fn=squares)
    np.testing.assert_array_equal(updates, alone.update(gradient, alone.init(X), X)[0])


class Still(sx.learned.AbstractLearnedOptimizer):
    """Emits coordinates of zero."""

    kind = "still"

    def memory(self, params, symmetry=None):
        return ()

    def propose(self, info, memory):
        return sx.learned.Proposal(algebra=jnp.zeros(1)), memory

    def example(self):
        return sx.learned.Observation(X, X, X)

    def config(self):
        return {}

    def contract(self):
        return {"emits": ["algebra"]}


@pytest.mark.parametrize("name", mostly_slow([*ANY, "online"], ("orbit", "step", "online")))
def test_a_gradient_that_is_no_number_costs_one_step_and_nothing_else(name):
    params = jnp.linspace(0.5, 2.0, 17)
    if name == "online":
        symmetry = sx.symmetry.QuadraticForm(jnp.eye(17))
        transform = sx.online_teleported(optax.adam(0.1), symmetry, 0.0, guard=None)
    else:
        transform = ANY[name]().transform()
    update = jax.jit(lambda g, s: transform.update(g, s, params, value=jnp.array(2.0)))
    _, before = update(params, transform.init(params))
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        updates, lost = update(params.at[3].set(bad), before)
        assert np.all(np.asarray(updates) == 0)
        assert lost.outcome == NO_STEP
        assert lost.count == 2
        there, expected = update(params, lost), update(params, before)
        np.testing.assert_array_equal(there[0], expected[0])
        assert there[1].outcome == 0


@pytest.mark.parametrize("name", mostly_slow(ANY, ("orbit", "step")))
def test_weights_have_finite_derivatives_through_steps_that_are_not_made(name):
    params = jnp.linspace(0.5, 2.0, 17)

    def total(network, gradients):
        transform = network.transform()
        state, x = transform.init(params), params
        for gradient in gradients:
            updates, state = transform.update(gradient, state, x, value=jnp.sum(x))
            x = x + updates
        return jnp.sum(jnp.tanh(x / 10))

    derivative = eqx.filter_jit(eqx.filter_grad(total))
    for bad in (jnp.nan, jnp.inf, 1e38, 1e-38, 0.0):
        gradients = jnp.stack([params, jnp.full(17, bad), params])
        found = jax.tree.leaves(derivative(ANY[name](), gradients))
        assert all(np.all(np.isfinite(x)) for x in found), bad
        if bad != 1e38:  # what squashes so long a step is flat
            assert any(np.any(np.asarray(x) != 0) for x in found), bad


def test_polyaks_step_has_the_right_length_for_gradients_of_every_size():
    network = sx.learned.OrbitLSTM(2, sees=(), width=4, key=KEY)
    for size in (1e-37, 1e-30, 1e-25, 1.0, 2e19, 1e38):
        gradient = size * jnp.array([1.0, -1.0])
        transform = network.transform()
        value = jnp.array(size)
        updates, _ = transform.update(gradient, transform.init(X), X, value=value)
        share = np.linalg.norm(np.float64(updates)) * np.linalg.norm(np.float64(gradient)) / float(value)
        assert 0.05 <= share <= 5.0, size


def test_coordinates_that_a_symmetry_does_not_have_cannot_be_learned():
    discrete = sx.NetworkSymmetry(
        {"h": sx.groups.Permutation(4)}, {"w1": "h _", "w2": "_ h"}, like=perceptron()[0]
    )
    with pytest.raises(ValueError, match="NetworkSymmetry has none: its groups are discrete"):
        sx.online_teleported(optax.sgd(0.1), discrete, 0.1)


COUNTING = {
    "learned": lambda s: sx.learned.FlatGradientLSTM(2, algebra=1, width=4, key=KEY).transform(
        s, sx.UpdateRule((1, 2, 3))
    ),
    "first": lambda s: sx.learned.OrbitLSTM(2, algebra=1, width=4, key=KEY).transform(
        s, sx.UpdateRule((1, 2, 3), order="teleport-first")
    ),
    "online": lambda s: sx.online_teleported(
        optax.sgd(1e-3), s, 0.01, schedule=(1, 2, 3), start=jnp.array([0.1])
    ),
}


@pytest.mark.parametrize("name", mostly_slow(COUNTING, ("learned", "online")))
def test_states_count_teleports_and_lost_steps_by_their_outcome(name):
    """Teleports at steps 1 to 3: accepted, rejected because another loss is given, no step at a NaN."""
    task = sx.tasks.booth()
    transform = COUNTING[name](task.symmetry())
    x = jnp.array([5.0, -5.0])
    state = transform.init(x)
    seen = []
    for number in range(5):
        value, gradient = jax.value_and_grad(task.loss)(x)
        gradient = jnp.full(2, jnp.nan) if number == 3 else gradient
        given = (lambda x: x[0] ** 3) if number == 2 else task.loss
        updates, state = transform.update(gradient, state, x, value=value, value_fn=given)
        x = x + updates
        seen.append(int(state.outcome))
    assert seen[0] == seen[4] == 0
    assert seen[2] not in (0, NO_STEP)
    assert seen[3] == NO_STEP
    expected = np.bincount(seen[1:4], minlength=len(sx.teleportation.OUTCOMES))
    assert state.outcomes.tolist() == expected.tolist()
