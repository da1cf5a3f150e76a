"""The names of arrays, and symmetries that meet trees in which some of theirs are missing."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import symmetrax as sx

# The names of leaves are what specs are looked up by; no public function returns them.
from symmetrax._tree import leaf_names

KEY = jax.random.key(0)
X = np.linspace(-1, 1, 12).reshape(4, 3).astype(np.float32)
Y = np.ones((4, 2), np.float32)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.a, self.b = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.b(jax.nn.relu(self.a(x)))


class Attention(eqx.Module):
    query: jax.Array
    value: jax.Array


class Box(eqx.Module):
    value: jax.Array


NET = nnx.split(Net(nnx.Rngs(0)), nnx.Param)
PLAIN = {"w1": jnp.ones((4, 3)), "b1": jnp.ones(4), "w2": jnp.ones((2, 4))}
SPECS = {"w1": "h _", "b1": "h", "w2": "_ h*"}
SYMMETRY = sx.NetworkSymmetry({"h": sx.groups.PositiveDiagonal(4)}, SPECS, like=PLAIN)


def test_value_is_no_part_of_the_name_of_an_array_alone_in_its_box():
    graph, state = NET
    names = ["a.bias", "a.kernel", "b.bias", "b.kernel"]
    assert leaf_names(state) == leaf_names(nnx.as_pure(state)) == leaf_names(nnx.merge(graph, state)) == names
    boxed = nn.Dense(3, kernel_init=nn.with_partitioning(nn.initializers.ones, ("x", "y")))
    variables = boxed.init(KEY, X)
    assert leaf_names(variables) == leaf_names(nn.meta.unbox(variables)) == ["params.bias", "params.kernel"]
    assert leaf_names({"s": Box(jnp.ones(2))}) == ["s"]
    assert leaf_names(Box(jnp.ones(2))) == leaf_names(jnp.ones(2)) == ["params"]
    # Where `value` is a name among others, or a key that the user chose, it stays.
    assert leaf_names(Attention(jnp.ones(2), jnp.ones(2))) == ["query", "value"]
    assert leaf_names({"query": 1, "value": 2}) == ["query", "value"]
    assert leaf_names({"value": 2}) == ["value"]
    assert leaf_names({"a": Box(jnp.ones(1)), "b": Box(jnp.ones(1))}) == ["a", "b"]


def flax_symmetry(tree, end=""):
    kernels = [f"{layer}.kernel{end}" for layer in "ab"]
    return sx.models.mlp_symmetry(tree, kernels, [f"a.bias{end}"], layout="in out")


@pytest.mark.parametrize("end", ["", ".value"])
@pytest.mark.parametrize("made_on", ["state", "pure"])
def test_a_symmetry_of_flax_acts_on_states_and_on_pure_trees(made_on, end):
    state, pure = NET[1], nnx.as_pure(NET[1])
    symmetry = flax_symmetry({"state": state, "pure": pure}[made_on], end)
    assert set(symmetry.specs) == {"a.kernel", "a.bias", "b.kernel"}
    element = symmetry.exp(jnp.arange(4.0))
    moved, plainly = symmetry.act(element, state), symmetry.act(element, pure)
    jax.tree.map(np.testing.assert_array_equal, nnx.as_pure(moved), plainly)
    assert type(moved) is type(state)
    np.testing.assert_allclose(plainly["a"]["kernel"], pure["a"]["kernel"] * np.exp(np.arange(4)), rtol=1e-6)
    specs = {f"{{layer}}.bias{end}": "_"}
    patterns = sx.NetworkSymmetry(
        {"h": sx.groups.Permutation(4)}, {f"a.kernel{end}": "_ h"} | specs, like=state
    )
    assert set(patterns.specs) == {"a.kernel", "a.bias", "b.bias"}


def test_an_optimizer_of_flax_teleports_with_a_symmetry_of_its_state():
    graph, state = NET
    symmetry = flax_symmetry(state, ".value")

    def loss(tree):
        return jnp.mean((nnx.merge(graph, tree)(X) - Y) ** 2)

    tx, pure = sx.teleported(optax.sgd(0.1), symmetry, search=sx.search.ClosedForm(0.5)), nnx.as_pure(state)

    @jax.jit
    def step(params):
        gradient = jax.grad(loss)(params)
        return gradient, tx.update(gradient, tx.init(params), params, value_fn=loss)[0]

    gradient, updates = step(pure)
    moved = jax.tree.map(lambda u, g: u + 0.1 * g, updates, gradient)
    assert float(optax.tree.norm(moved)) > 0.1


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"params": PLAIN}, ["'w1' (and 2 more)", "under 'params' here"]),
        ({"w1": PLAIN["w1"], "b1": PLAIN["b1"]}, ["'w2', which is not", "There are: b1, w1."]),
        ({**PLAIN, "b1": None}, ["'b1'", "There are: w1, w2."]),
        ([*PLAIN.values()], ["'w1' (and 2 more)", "There are: 0, 1, 2."]),
    ],
)
def test_a_missing_array_is_an_error_that_names_it(tree, message):
    element, curve = SYMMETRY.identity(), jnp.zeros(4)
    uses = [
        lambda: SYMMETRY.act(element, tree),
        lambda: jax.eval_shape(SYMMETRY.act, element, tree),
        lambda: SYMMETRY.transport_tangent(element, tree, tree),
        lambda: SYMMETRY.transport_gradient(element, PLAIN, tree),
        lambda: SYMMETRY.transport_squared_gradient(element, tree),
        lambda: SYMMETRY.transport_squared_tangent(element, tree),
        lambda: SYMMETRY.displacement(element, tree),
        lambda: SYMMETRY.visit(tree, lambda x, _: x),
        lambda: SYMMETRY.check(tree),
        lambda: sx.symmetry.conserved_quantities(SYMMETRY, tree),
        lambda: sx.symmetry.project_horizontal(SYMMETRY, tree, tree),
        lambda: sx.symmetry.orbit_curve(SYMMETRY, curve, tree),
        lambda: sx.verify(lambda w, _: optax.tree.sum(w), tree, SYMMETRY, KEY, trials=1),
        lambda: sx.teleport(lambda w, _: optax.tree.sum(w), tree, SYMMETRY),
        lambda: sx.teleported(optax.sgd(0.1), SYMMETRY).init(tree),
        lambda: sx.online_teleported(optax.sgd(0.1), SYMMETRY, 0.1).init(tree),
        lambda: sx.learned.PerNeuronLSTM(key=KEY).transform(SYMMETRY).init(tree),
    ]
    for use in uses:
        with pytest.raises(ValueError, match="acts on the array") as error:
            use()
        assert all(word in str(error.value) for word in message), str(error.value)


def test_a_symmetry_of_a_larger_tree_says_under_what_it_was_made():
    whole = sx.models.mlp_symmetry({"params": PLAIN}, ["params.w1", "params.w2"], ["params.b1"])
    with pytest.raises(ValueError, match=r"'params.w1' \(and 2 more\).* 'w1' here: .* under 'params'"):
        whole.act(whole.identity(), PLAIN)


def test_other_symmetries_check_what_they_act_on_as_well():
    shift = sx.symmetry.LogitShift("w2", like=PLAIN)
    with pytest.raises(ValueError, match="'w2', which is not in the tree"):
        shift.act(shift.identity(), {"w1": PLAIN["w1"]})
    with pytest.raises(ValueError, match="'w2'"):
        shift.check({"w1": PLAIN["w1"]})
    shift.check(PLAIN)
    data = sx.symmetry.ActivationGL.of(PLAIN, ("w1", "w2"))
    data.check(PLAIN)
    with pytest.raises(ValueError, match="no leaves"):
        data.check({"w1": PLAIN["w1"]})
    for symmetry in (sx.symmetry.QuadraticForm(jnp.eye(2)), sx.tasks.booth().symmetry()):
        symmetry.check(jnp.ones(2))
        for params in (jnp.ones(3), {"x": jnp.ones(2)}, [jnp.ones(2), jnp.ones(2)]):
            with pytest.raises(ValueError, match=r"one array of shape \(2,\)"):
                sx.teleported(optax.sgd(0.1), symmetry).init(params)


def test_parts_of_a_tree_are_moved_by_asking_for_it():
    element = SYMMETRY.exp(jnp.arange(4.0))
    whole = SYMMETRY.act(element, PLAIN)
    for part in ({"w1": PLAIN["w1"]}, {"b1": PLAIN["b1"], "w2": PLAIN["w2"]}, {"other": jnp.ones(3)}):
        moved = SYMMETRY.within(part).act(element, part)
        for name in part:
            np.testing.assert_array_equal(moved[name], whole.get(name, part[name]))
