"""`teleported` with searches for a basis, against Adam in rotated coordinates written in NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import symmetrax as sx

pytestmark = pytest.mark.usefixtures("quick_compilation")

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(40, 7)), RANDOM.normal(size=(40, 5))
PARAMS = {"a": RANDOM.normal(size=(3, 7)), "b": RANDOM.normal(size=(5, 3))}


def loss(p, batch=None):
    return jnp.mean((X @ (p["b"] @ p["a"]).T - Y) ** 2)


def numpy_gradient(a, b):
    residual = 2 * (X @ (b @ a).T - Y) / Y.size
    return b.T @ residual.T @ X, residual.T @ X @ a.T


def low_rank():
    params = jax.tree.map(jnp.asarray, PARAMS)
    return params, sx.models.low_rank_symmetry(params, "a", "b")


def scanned(optimizer, params, steps):
    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state, params, value_fn=loss)
        return (optax.apply_updates(params, updates), state), loss(params)

    return jax.lax.scan(step, (params, optimizer.init(params)), length=steps)


def test_is_adam_in_a_basis_that_turns(float64):
    """Parameters that move to the basis, as against parameters that stay and steps that are turned."""
    params, symmetry = low_rank()
    every, steps, rate, b1, b2 = 4, 13, 0.03, 0.9, 0.99
    optimizer = sx.teleported(
        optax.adam(rate, b1=b1, b2=b2),
        symmetry,
        search=sx.search.Eigenbasis(decay=0.7),
        schedule=sx.schedules.every_n_steps(every),
    )
    (end, state), _ = jax.jit(lambda p: scanned(optimizer, p, steps))(params)

    a, b = PARAMS["a"], PARAMS["b"]
    turned, moment = np.eye(3), np.zeros((3, 3))
    mu, nu = [np.zeros_like(a), np.zeros_like(b)], [np.zeros_like(a), np.zeros_like(b)]
    for t in range(steps):
        ga, gb = numpy_gradient(a, b)
        share = sum(g.size * g @ g.T / np.sum(g * g) for g in (ga, gb.T)) / (ga.size + gb.size)
        moment = 0.7 * moment + 0.3 * share
        if t % every == 0:
            fresh = np.linalg.eigh(moment)[1].T
            # Squares are kept in the coordinates of the basis, and move by the squares of the turn's entries.
            turn = fresh @ turned.T
            nu = [turn**2 @ nu[0], nu[1] @ (turn**2).T]
            turned = fresh
        mu = [b1 * m + (1 - b1) * g for m, g in zip(mu, (ga, gb), strict=True)]
        seen = (turned @ ga, gb @ turned.T)
        nu = [b2 * v + (1 - b2) * g**2 for v, g in zip(nu, seen, strict=True)]
        there = (turned @ mu[0], mu[1] @ turned.T)
        step = [
            -rate * m / (1 - b1 ** (t + 1)) / (np.sqrt(v / (1 - b2 ** (t + 1))) + 1e-8)
            for m, v in zip(there, nu, strict=True)
        ]
        a, b = a + turned.T @ step[0], b + step[1] @ turned
    # The basis is determined up to signs and order, which the function does not see.
    np.testing.assert_allclose(end["b"] @ end["a"], b @ a, atol=1e-11)
    assert state.outcomes.tolist()[0] == 4


def test_compiled_as_in_a_loop_and_for_a_batch(float64):
    params, symmetry = low_rank()
    optimizer = sx.teleported(
        optax.adamw(0.02),
        symmetry,
        search=sx.search.Eigenbasis(stride=2, balanced=True),
        schedule=[1, 0, 1] * 2,
    )
    (end, state), _ = jax.jit(lambda p: scanned(optimizer, p, 6))(params)
    w, s = params, optimizer.init(params)
    for _ in range(6):
        updates, s = optimizer.update(jax.grad(loss)(w), s, w, value_fn=loss)
        w = optax.apply_updates(w, updates)
    for u, v in zip(jax.tree.leaves((end, state)), jax.tree.leaves((w, s)), strict=True):
        np.testing.assert_allclose(u, v, atol=1e-12)
    several = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf, -leaf]), params)
    ends = jax.jit(jax.vmap(lambda p: scanned(optimizer, p, 6)[0][0]))(several)
    np.testing.assert_allclose(ends["b"][0] @ ends["a"][0], end["b"] @ end["a"], atol=1e-10)


@pytest.mark.parametrize("seed", range(20))
def test_the_result_does_not_depend_on_how_a_product_was_split(float64, run_of_splits, seed):
    """20 random splits; plain AdamW fails at every one."""
    random = np.random.default_rng(seed)
    left, _, right = np.linalg.svd(random.normal(size=(3, 3)))
    m = left * np.exp(random.uniform(-1, 1, 3)) @ right
    split = {"a": jnp.asarray(m @ PARAMS["a"]), "b": jnp.asarray(PARAMS["b"] @ np.linalg.inv(m))}
    whole = jax.tree.map(jnp.asarray, PARAMS)
    there, here = run_of_splits["teleported"](split), run_of_splits["teleported"](whole)
    np.testing.assert_allclose(there, here, atol=1e-6)
    plain = np.abs(run_of_splits["adamw"](split) - run_of_splits["adamw"](whole)).max()
    assert plain > 1e-2


@pytest.fixture(scope="module")
def run_of_splits():
    """The product after thirty steps of AdamW, with and without teleports, as compiled functions."""
    with jax.enable_x64(True):
        _, symmetry = low_rank()
        inner = optax.adamw(0.05)
        teleports = sx.teleported(
            inner,
            symmetry,
            search=sx.search.Eigenbasis(balanced=True),
            schedule=sx.schedules.every_n_steps(5),
        )

        def run(optimizer):
            optimizer = optax.with_extra_args_support(optimizer)

            def product(params):
                end, _ = scanned(optimizer, params, 30)[0]
                return end["b"] @ end["a"]

            return jax.jit(product)

        yield {"adamw": run(inner), "teleported": run(teleports)}


@pytest.mark.parametrize("squares", ["mean", "keep", "exact"])
def test_squares_move_as_the_transport_says(float64, squares):
    params, symmetry = low_rank()
    adam = optax.adam(0.1)
    transport = sx.teleportation.Carry(squares)
    optimizer = sx.teleported(
        adam, symmetry, search=sx.search.Eigenbasis(), schedule=[0, 1], transport=transport
    )
    if squares == "exact":
        with pytest.raises(ValueError, match="mixes the entries of an axis, so squared gradients"):
            optimizer.init(params)
        return
    state = optimizer.init(params)
    _, state = optimizer.update(jax.grad(loss)(params), state, params, value_fn=loss)
    nu = jax.tree.map(np.asarray, state.inner[0].nu)
    gradient = jax.grad(loss)(params)
    memory = sx.search.Eigenbasis().watch(state.memory, symmetry, gradient, 1)
    q, _ = sx.search.Eigenbasis()(memory, symmetry, params, 1)["rank"]
    _, state = optimizer.update(gradient, state, params, value_fn=loss)
    there = symmetry.transport_gradient({"rank": (q, q)}, params, gradient)
    moved = {"a": q**2 @ nu["a"], "b": nu["b"] @ (q**2).T} if squares == "mean" else nu
    for name, g in there.items():
        np.testing.assert_allclose(state.inner[0].nu[name], 0.999 * moved[name] + 0.001 * g**2, atol=1e-15)


def test_auto_finds_the_rotations_too(float64):
    params, _ = low_rank()
    optimizer = sx.teleported(optax.adamw(0.02), "auto", search=sx.search.Eigenbasis(), loss=loss)
    state = optimizer.init(params)
    assert list(map(str, [one.group for one in optimizer.found])) == ["GeneralLinear(3)"]
    _, state = optimizer.update(jax.grad(loss)(params), state, params, value_fn=loss)
    assert int(state.outcome) == 0


def test_a_rotation_that_is_no_symmetry_is_rejected():
    """A gain that is trained between a norm and its readers: the guard sees the loss change."""
    params = {"w": jnp.asarray(PARAMS["a"], jnp.float32), "g": jnp.array([1.0, 2.0, 0.5])}

    def gained(p):
        h = jax.nn.tanh(p["w"] @ X.T).T * p["g"]
        return jnp.mean(h**3)

    wrong = sx.NetworkSymmetry({"h": sx.groups.Orthogonal(3)}, {"w": "h _"}, params)
    optimizer = sx.teleported(optax.adam(0.1), wrong, search=sx.search.Eigenbasis())
    state = optimizer.init(params)
    _, state = optimizer.update(jax.grad(gained)(params), state, params, value_fn=gained)
    assert sx.teleportation.OUTCOMES[int(state.outcome)].startswith("not invariant")
    np.testing.assert_allclose(10 * state.inner[0].mu["w"], jax.grad(gained)(params)["w"], rtol=1e-6)


def test_bfloat16_parameters_move_and_stay_bfloat16():
    params, symmetry = low_rank()
    params = jax.tree.map(lambda w: w.astype(jnp.bfloat16), params)
    optimizer = sx.teleported(optax.adam(0.01), symmetry, search=sx.search.Eigenbasis())
    state = optimizer.init(params)
    updates, state = optimizer.update(jax.grad(loss)(params), state, params, value_fn=loss)
    assert int(state.outcome) == 0
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype("bfloat16")}
    assert state.memory["rank"].dtype == jnp.float32


def test_a_state_that_cannot_be_carried_is_named_at_init(unchecked):
    params, symmetry = low_rank()
    optimizer = sx.teleported(optax.novograd(0.1), symmetry, search=sx.search.Eigenbasis())
    with pytest.raises(ValueError, match="cannot move ScaleByNovogradState"):
        optimizer.init(params)
    flat = sx.teleported(optax.flatten(optax.adam(0.1)), symmetry, search=sx.search.Eigenbasis())
    with pytest.raises(ValueError, match=r"ScaleByAdamState\.mu: .* array 'a' \(and 1 more\), which is not"):
        flat.init(params)
    with pytest.raises(TypeError, match=r"got MultiSteps: pass its \.gradient_transformation\(\)"):
        sx.teleported(optax.MultiSteps(optax.adam(0.1), 2), symmetry)


@pytest.mark.parametrize("squares", ["mean", "keep"])
def test_centered_squares_are_never_less_than_those_of_the_mean(float64, squares):
    """Gradients that are the same at every step: their variance is zero, up to rounding, in every basis."""
    params, symmetry = low_rank()
    inner = optax.rmsprop(1e-9, decay=0.5, centered=True)
    search, transport = sx.search.RandomBasis(jax.random.key(1)), sx.teleportation.Carry(squares)
    optimizer = sx.teleported(inner, symmetry, search=search, schedule=[20], transport=transport)
    (params, state), _ = jax.jit(lambda p: scanned(optimizer, p, 21))(params)
    assert int(state.outcomes[0]) == 1
    for name, nu in state.inner[0].nu.items():
        np.testing.assert_allclose(nu, state.inner[0].mu[name] ** 2, atol=1e-4)


@pytest.mark.parametrize("other", [optax.adam, optax.contrib.adopt, optax.contrib.muon])
def test_states_of_one_type_with_different_quantities_are_not_confused(other):
    params, symmetry = low_rank()
    both = optax.partition({"x": optax.adamax(0.1), "y": other(0.1)}, {"a": "x", "b": "y"})
    optimizer = sx.teleported(both, symmetry, search=sx.search.Eigenbasis())
    with pytest.raises(ValueError, match=r"cannot move ScaleByAdamState of .*adamax.* together"):
        optimizer.init(params)
    alone = optax.partition({"x": optax.adamax(0.1), "y": optax.sgd(0.1)}, {"a": "x", "b": "y"})
    sx.teleported(alone, symmetry, search=sx.search.Eigenbasis()).init(params)


def test_the_state_of_another_search_is_named():
    params, symmetry = low_rank()
    optimizer = sx.teleported(optax.adam(0.1), symmetry, search=sx.search.Eigenbasis())
    state: Any = optimizer.init(params)
    gradient = jax.grad(loss)(params)
    other = sx.teleported(optax.adam(0.1), symmetry)
    without = sx.teleportation.TeleportedState(*state[:-1])
    for old, new in ((without, optimizer), (other.init(params), optimizer), (state, other)):
        with pytest.raises(ValueError, match=r"This state is not one of .*\(count=state.count"):
            new.update(gradient, old, params, value_fn=loss)
        whole = new.init(params)._replace(count=old.count, inner=old.inner)
        assert int(new.update(gradient, whole, params, value_fn=loss)[1].count) == 1


@pytest.mark.parametrize("axes", [AxisType.Explicit, AxisType.Auto])
def test_parameters_on_two_devices_move_as_on_one(axes):
    random = np.random.default_rng(1)
    x, y = (random.normal(size=(40, n)).astype(np.float32) for n in (8, 4))
    params = {"a": jnp.asarray(PARAMS["a"][:, :6] @ random.normal(size=(6, 8)), jnp.float32)}
    params["b"] = jnp.asarray(PARAMS["b"][:4], jnp.float32)
    symmetry = sx.models.low_rank_symmetry(params, "a", "b")

    def square(p):
        return jnp.mean((jnp.einsum("br,or->bo", jnp.einsum("bi,ri->br", x, p["a"]), p["b"]) - y) ** 2)

    optimizer = sx.teleported(optax.adamw(0.05), symmetry, search=sx.search.Eigenbasis(balanced=True))

    @jax.jit
    def run(params):
        state = optimizer.init(params)
        for _ in range(2):
            updates, state = optimizer.update(jax.grad(square)(params), state, params, value_fn=square)
            params = optax.apply_updates(params, updates)
        return params, state.outcomes[0]

    alone, _ = run(params)
    mesh = jax.make_mesh((2,), ("d",), axis_types=(axes,))
    places = {
        "a": NamedSharding(mesh, PartitionSpec(None, "d")),
        "b": NamedSharding(mesh, PartitionSpec("d")),
    }
    with jax.set_mesh(mesh):
        split, accepted = run(jax.device_put(params, places))
    assert int(accepted) == 2
    for name, place in places.items():
        np.testing.assert_allclose(split[name], alone[name], atol=2e-6)
        assert split[name].sharding.is_equivalent_to(place, 2)


def test_a_gradient_that_is_missing_and_a_class_in_place_of_a_search(unchecked):
    params, symmetry = low_rank()
    optimizer = sx.teleported(optax.adam(0.1), symmetry, search=sx.search.Eigenbasis())
    gradient = jax.grad(loss)(params) | {"a": None}
    with pytest.raises(ValueError, match="The gradient of a is None: differentiate"):
        optimizer.update(gradient, optimizer.init(params), params, value_fn=loss)
    with pytest.raises(TypeError, match=r"got the class Eigenbasis: call it, Eigenbasis\(\)"):
        sx.teleported(optax.adam(0.1), symmetry, search=sx.search.Eigenbasis)


def test_losses_of_the_parameters_alone_are_losses():
    params, symmetry = low_rank()
    alone = lambda p: loss(p)  # noqa: E731
    _, info = sx.teleport(alone, params, symmetry, search=sx.search.Balanced())
    assert int(info.outcome) == 0
    assert sx.verify(alone, params, symmetry, jax.random.key(0), trials=2).outcome == "exact"
    rows = sx.teleportation.audit(optax.sgd(0.1), alone, params, symmetry, jax.random.key(0), samples=1)
    assert len(rows) == 1
