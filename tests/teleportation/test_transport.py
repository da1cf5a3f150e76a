"""After a jump an optimizer has the state that its gradients, in the new coordinates, would have given."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import symmetrax as sx

# `carry` is what `transport="carry"` does to a state, here with elements that no search finds.
from symmetrax.teleportation._transport import carry

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHAPES = {"w1": (4, 3), "b1": (4,), "w2": (2, 4), "b2": (2,)}
WEIGHTS, BIASES = ["w1", "w2"], ["b1", "b2"]
STEPS = 5


def draw(seed, *leading):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(*leading, *shape)) for name, shape in SHAPES.items()}


def symmetry_of(group):
    return sx.models.mlp_symmetry(draw(0), WEIGHTS, BIASES, group=group)


def hidden(tree, out, into):
    """What `out` and `into` make of the hidden axis of arrays that write and read it, in NumPy."""
    return {
        "w1": out(tree["w1"], -2),
        "b1": out(tree["b1"], -1),
        "w2": into(tree["w2"], -1),
        "b2": tree["b2"],
    }


def along(vector, axis):
    return vector if axis == -1 else vector[:, None]


def times(matrix):
    return lambda x, axis: np.moveaxis(np.moveaxis(x, axis, -1) @ matrix.T, -1, axis)


RNG = np.random.default_rng(1)
SCALES = np.exp(RNG.normal(size=4))
SIGNS = np.array([1.0, -1.0, -1.0, 1.0])
ORDER = np.array([2, 0, 3, 1])
MATRIX = RNG.normal(size=(4, 4)) + 3 * np.eye(4)
TURN = np.linalg.qr(RNG.normal(size=(4, 4)))[0]


def scaled(scales):
    """Gradients go with the inverse transpose: against the scales where parameters go with them."""
    return lambda tree: hidden(tree, lambda x, k: x / along(scales, k), lambda x, k: x * along(scales, k))


def permuted(tree):
    def order(x, axis):
        return np.take(x, ORDER, axis)

    return hidden(tree, order, order)


def turned(matrix):
    return lambda tree: hidden(tree, times(np.linalg.inv(matrix).T), times(matrix))


#: Group, element, and what the element does to gradients.
DIAGONAL = {
    "scales": (sx.groups.PositiveDiagonal, SCALES, scaled(SCALES)),
    "signs": (sx.groups.SignDiagonal, SIGNS, scaled(SIGNS)),
    "permutation": (sx.groups.Permutation, ORDER, permuted),
}
MIXING = {
    "GL": (sx.groups.GeneralLinear, (MATRIX, np.linalg.inv(MATRIX).T), turned(MATRIX)),
    "rotation": (sx.groups.Orthogonal, TURN, turned(TURN)),
}

MOMENTUM = {
    "momentum": optax.sgd(0.1, momentum=0.9),
    "nesterov": optax.sgd(optax.linear_schedule(0.1, 0.0, 10), momentum=0.9, nesterov=True),
    "lion": optax.lion(0.1),
    "ema": optax.chain(optax.ema(0.9), optax.trace(0.5), optax.scale(-0.1)),
    "optimistic": optax.optimistic_gradient_descent(0.1),
    # Made when it is used, since it settles its precision then.
    "MultiSteps": lambda: optax.MultiSteps(
        optax.sgd(0.1, momentum=0.9), every_k_schedule=2, accumulator_dtype=jnp.float64
    ).gradient_transformation(),
}
SQUARED = {
    "Adam": optax.adam(0.1),
    "NAdamW": optax.nadamw(0.1),
    "AMSgrad": optax.amsgrad(0.1),
    "AdaBelief": optax.adabelief(0.1, eps_root=0.0),
    "AdaGrad": optax.adagrad(0.1, initial_accumulator_value=0.0),
    "RMSprop": optax.rmsprop(0.1),
    "RMSprop centered": optax.rmsprop(0.1, centered=True, bias_correction=True),
    "Adam of momentum": optax.chain(optax.trace(0.5), optax.scale_by_adam()),
    "Muon": optax.contrib.muon(0.1),
    "inject_hyperparams": optax.inject_hyperparams(optax.adam)(optax.linear_schedule(0.1, 0.0, 10)),
    "apply_if_finite": optax.apply_if_finite(optax.adam(0.1), 3),
    "masked": optax.masked(optax.adam(0.1), {"w1": True, "b1": False, "w2": False, "b2": True}),
    "multi_transform": optax.multi_transform(
        {"matrix": optax.adam(0.1), "vector": optax.sgd(0.1, momentum=0.9)},
        {"w1": "matrix", "b1": "vector", "w2": "matrix", "b2": "vector"},
    ),
}
OTHERS = {"AdaDelta": optax.adadelta(0.1), "Adamax": optax.adamax(0.1)}


@pytest.fixture(scope="module")
def replay():
    """`replay(name, history)`: the state after a history of gradients; one program for each optimizer."""
    programs = {}

    def states(name, history):
        if name not in programs:
            optimizer = (MOMENTUM | SQUARED | OTHERS)[name]
            optimizer = optimizer() if callable(optimizer) else optimizer
            start = jax.tree.map(jnp.asarray, draw(0))

            def run(history):
                def step(state, gradient):
                    updates, state = optimizer.update(gradient, state, start)
                    return state, updates

                return jax.lax.scan(step, optimizer.init(start), history)

            programs[name] = jax.jit(run)
        return programs[name](history)

    return states


def moved_as_replayed(replay, name, group, element, dual):
    history = draw(7, STEPS)
    state, _ = replay(name, history)
    expected, _ = replay(name, dual(history))
    found = carry(state, symmetry_of(group), {"hidden1": jax.tree.map(jnp.asarray, element)}, draw(0))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    changed = False
    for before, x, y in zip(*map(jax.tree.leaves, (state, found, expected)), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-13)
        changed |= not np.allclose(before, y)
    return changed


@pytest.mark.parametrize("name", MOMENTUM | SQUARED)
def test_states_under_diagonal_groups_are_those_of_the_moved_history(float64, replay, name):
    """Counts, and with them bias corrections, stay; what an optimizer does not see stays out."""
    for kind, (group, element, dual) in DIAGONAL.items():
        changed = moved_as_replayed(replay, name, group, element, dual)
        assert changed or (kind == "signs" and name in ("AdaGrad", "RMSprop")), kind  # squares have no signs


@pytest.mark.parametrize("name", MOMENTUM)
def test_momentum_goes_along_with_any_matrix(float64, replay, name):
    for group, element, dual in MIXING.values():
        assert moved_as_replayed(replay, name, group, element, dual)


@pytest.mark.parametrize(("kind", "group_name"), [("GL", "GeneralLinear"), ("rotation", "Orthogonal")])
def test_squares_do_not_go_along_with_groups_that_mix_entries(float64, replay, kind, group_name):
    group, element, _ = MIXING[kind]
    for name in ("Adam", "RMSprop", "AdaGrad", "AMSgrad", "Muon", "AdaDelta"):
        state, _ = replay(name, draw(7, STEPS))
        with pytest.raises(
            ValueError, match=rf"{group_name}\(4\) mixes the entries.*transport='keep' or 'reset'"
        ):
            carry(state, symmetry_of(group), {"hidden1": jax.tree.map(jnp.asarray, element)}, draw(0))


def test_squared_steps_of_adadelta_go_with_the_parameters(float64, replay):
    """Its first step knows no scale but its epsilon: its steps are moved, not those that a replay would take.
    Signs and permutations change no scale."""
    group, element, dual = DIAGONAL["scales"]
    history = draw(7, STEPS)
    state, updates = replay("AdaDelta", history)
    found = carry(state, symmetry_of(group), {"hidden1": jnp.asarray(element)}, draw(0))
    decay = 0.9 ** np.arange(STEPS)[::-1]
    squares = {k: np.tensordot(0.1 * decay, x**2, 1) for k, x in dual(history).items()}
    steps = scaled(1 / SCALES)(jax.tree.map(lambda u: -10 * np.asarray(u), updates))
    lengths = {k: np.tensordot(0.1 * decay, x**2, 1) for k, x in steps.items()}
    for k in SHAPES:
        np.testing.assert_allclose(optax.tree.get(found, "e_g")[k], squares[k], rtol=1e-12)
        np.testing.assert_allclose(optax.tree.get(found, "e_x")[k], lengths[k], rtol=1e-12)
    for kind in ("signs", "permutation"):
        moved_as_replayed(replay, "AdaDelta", *DIAGONAL[kind])


def test_adamax_is_right_under_signs_and_permutations_only(float64, replay):
    """Its largest absolute gradients have the type of Adam's squares: the docstring says what happens."""
    for kind in ("signs", "permutation"):
        moved_as_replayed(replay, "Adamax", *DIAGONAL[kind])
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        moved_as_replayed(replay, "Adamax", *DIAGONAL["scales"])
    assert "Adamax" in carry.__doc__


def test_momentum_goes_along_with_a_pullback_and_squares_do_not(float64):
    """x -> A^-1 (R (A x + b) - b) has the derivative A^-1 R A everywhere."""
    task, angle = sx.tasks.booth(), 0.7
    matrix = np.array([[1.0, 2.0], [2.0, 1.0]])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    derivative = np.linalg.solve(matrix, turn @ matrix)
    history, x, symmetry = (
        np.random.default_rng(0).normal(size=(4, 2)),
        jnp.array([3.0, -2.0]),
        task.symmetry(),
    )
    element = symmetry.exp(jnp.array([angle]))
    state = optax.trace(0.9).init(x)
    for gradient in history:
        _, state = optax.trace(0.9).update(jnp.asarray(gradient), state)
    weights = 0.9 ** np.arange(4)[::-1]
    expected = weights @ (history @ np.linalg.inv(derivative))  # rows times the transposed inverse transpose
    np.testing.assert_allclose(carry(state, symmetry, element, x).trace, expected, rtol=1e-12)
    with pytest.raises(ValueError, match="cannot move squared gradients under Pullback, which mixes entries"):
        carry(optax.adam(0.1).init(x), symmetry, element, x)


class Strange(NamedTuple):
    count: Any
    mystery: Any


def strange():
    return optax.GradientTransformation(
        lambda params: Strange(jnp.array(0), jax.tree.map(jnp.ones_like, params)),
        lambda updates, state, params=None: (updates, state),
    )


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (optax.chain(optax.clip(1.0), strange()), r"cannot move the unknown state Strange.mystery\['b1'\]:"),
        (optax.adafactor(0.1), r"cannot move the unknown state FactoredState.v_row\['b1'\]:"),
        (optax.contrib.prodigy(), r"cannot move the unknown state ProdigyState.exp_avg\['b1'\]:"),
        (optax.sm3(0.1), r"cannot move ScaleBySM3State: its `mu` holds squares of whole rows"),
        (optax.novograd(0.1), r"cannot move ScaleByNovogradState: its `nu` holds norms of whole arrays"),
        (optax.rmsprop(0.1, momentum=0.9), r"cannot move TraceState: it follows ScaleByRmsState"),
        (
            optax.chain(optax.apply_if_finite(optax.adam(0.1), 2), optax.ema(0.9)),
            r"cannot move EmaState: it follows ScaleByAdamState in a chain, .* averages steps",
        ),
        (optax.chain(optax.contrib.muon(0.1), optax.trace(0.9)), r"cannot move TraceState: .* in a chain"),
    ],
)
def test_what_is_not_known_is_rejected_by_name(optimizer, message):
    params = {name: jnp.ones(shape) for name, shape in SHAPES.items()}
    with pytest.raises(ValueError, match=message + ".*transport='keep' or 'reset'"):
        carry(
            optimizer.init(params), symmetry_of(sx.groups.PositiveDiagonal), {"hidden1": jnp.ones(4)}, params
        )


def test_moments_keep_their_precision_and_the_identity_changes_nothing():
    params = {name: jnp.asarray(x, jnp.float32) for name, x in draw(0).items()}
    optimizer = optax.adam(0.1, mu_dtype=jnp.bfloat16)
    _, state = optimizer.update(params, optimizer.init(params), params)
    symmetry = symmetry_of(sx.groups.PositiveDiagonal)
    moved = jax.jit(lambda a: carry(state, symmetry, a, params))
    assert eqx.tree_equal(moved(symmetry.identity()), state)
    found = moved({"hidden1": jnp.full(4, 2.0)})
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(state), strict=True):
        assert x.dtype == y.dtype
    factor = {"w1": 0.5, "b1": 0.5, "w2": 2.0, "b2": 1.0}  # powers of two are exact
    for name in SHAPES:
        assert jnp.array_equal(found[0].mu[name], factor[name] * state[0].mu[name])
        assert jnp.array_equal(found[0].nu[name], factor[name] ** 2 * state[0].nu[name])


class Always(sx.search.AbstractSearch):
    """Always the same coordinates."""

    coordinates: Any

    def __call__(self, orbit):
        return self.coordinates

    def evaluations(self, symmetry):
        return 0


@pytest.mark.parametrize("reject", [False, True])
def test_an_optimizer_carries_its_state_where_it_teleports(float64, reject):
    """Adam by hand in NumPy: moments move with the point before step 2, and the count goes on."""
    rng = np.random.default_rng(3)
    x, y, params = rng.normal(size=(6, 3)), rng.normal(size=(6, 2)), draw(4)

    def loss(p):
        return jnp.mean((jax.nn.relu(x @ p["w1"].T + p["b1"]) @ p["w2"].T + p["b2"] - y) ** 2)

    def numpy_gradient(p):
        inner = x @ p["w1"].T + p["b1"]
        h, on = np.maximum(inner, 0), inner > 0
        error = 2 * (h @ p["w2"].T + p["b2"] - y) / y.size
        back = on * (error @ p["w2"])
        return {"w1": back.T @ x, "b1": back.sum(0), "w2": error.T @ h, "b2": error.sum(0)}

    guard = sx.Guard(jump=1e-3 if reject else 1e3)
    optimizer = sx.teleported(
        optax.adam(0.1),
        symmetry_of(sx.groups.PositiveDiagonal),
        search=Always(jnp.log(SCALES)),
        schedule={2},
        guard=guard,
        transport="carry",
    )

    @jax.jit
    def step(w, state):
        updates, state = optimizer.update(jax.grad(loss)(w), state, w, value_fn=loss)
        return optax.apply_updates(w, updates), state

    w = jax.tree.map(jnp.asarray, params)
    state = optimizer.init(w)
    m = v = {k: np.zeros(shape) for k, shape in SHAPES.items()}
    for t in range(4):
        w, state = step(w, state)
        assert state.outcome == (2 if reject and t == 2 else 0)
        if t == 2 and not reject:
            params, m, v = scaled(1 / SCALES)(params), scaled(SCALES)(m), scaled(SCALES**2)(v)
        g = numpy_gradient(params)
        m = {k: 0.9 * m[k] + 0.1 * g[k] for k in g}
        v = {k: 0.999 * v[k] + 0.001 * g[k] ** 2 for k in g}
        for k in g:
            bias = 1 - 0.9 ** (t + 1), 1 - 0.999 ** (t + 1)
            params[k] = params[k] - 0.1 * (m[k] / bias[0]) / (np.sqrt(v[k] / bias[1]) + 1e-8)
    for k in SHAPES:
        np.testing.assert_allclose(w[k], params[k], rtol=1e-11)
        np.testing.assert_allclose(optax.tree.get(state, "nu")[k], v[k], rtol=1e-11)
