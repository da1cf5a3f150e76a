"""Closed-form searches against brute-force scans of the orbit, and what a search costs."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

import symmetrax as sx

# The closed form rests on the energies of an orbit and on the sign of a matrix: each has a law of its own.
from symmetrax.search._closed_form import matrix_sign
from symmetrax.search._energies import Energies

from ..cases import mostly_slow

pytestmark = pytest.mark.usefixtures("quick_compilation", "float64")


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def relu_net(params, batch):
    x, y = batch
    for k in (1, 2):
        x = jax.nn.relu(x @ params[f"w{k}"].T + params[f"b{k}"])
    return jnp.mean((x @ params["w3"].T - y) ** 2)


@pytest.fixture
def deep(float64):
    """Two hidden layers of 3 and 2 units: 32 corners of the box, with an array that both touch."""
    params = {"w1": normal(1, 3, 4), "b1": normal(2, 3), "w2": normal(3, 2, 3), "b2": normal(4, 2)}
    params["w3"] = normal(5, 2, 2)
    symmetry = sx.models.mlp_symmetry(params, ["w1", "w2", "w3"], ["b1", "b2"])
    return params, symmetry, (normal(6, 9, 4), normal(7, 9, 2))


@pytest.fixture
def adapter(float64):
    """A low-rank pair: one general linear space."""
    params = {"A": normal(1, 3, 6), "B": normal(2, 5, 3)}
    symmetry = sx.models.low_rank_symmetry(params, "A", "B")
    x, y = normal(3, 8, 6), normal(4, 8, 5)
    return params, symmetry, lambda p, _: jnp.mean((x @ (p["B"] @ p["A"]).T - y) ** 2)


def attention(params, batch):
    q, k, v = (jnp.einsum("tm,hdm->thd", batch, params[name].reshape(2, 4, 6)) for name in "qkv")
    weights = jax.nn.softmax(jnp.einsum("thd,shd->hts", q, k) / 2)
    heads = jnp.einsum("hts,shd->thd", weights, v).reshape(-1, 8)
    return jnp.mean((heads @ params["o"].T) ** 3)


def gradient_norm(loss, symmetry, params, batch=None):
    """The squared gradient norm on the orbit, by autodiff at the moved point."""

    @jax.jit
    def at(xi):
        return sx.objectives.squared_gradient_norm(
            lambda w: loss(w, batch), symmetry.act(symmetry.exp(xi), params)
        )

    return at


def gap(a, b):
    return abs(float(a) / float(b) - 1)


def test_an_orbit_knows_the_gradient_norm_everywhere(deep, adapter):
    params = {name: normal(seed, *shape) for seed, (name, shape) in enumerate(HEADS.items())}
    heads = sx.models.attention_symmetry(params, *"qkvo", heads=2)
    rows = [(relu_net, *deep), (adapter[2], *adapter[:2], None), (attention, params, heads, normal(9, 5, 6))]
    for loss, params, symmetry, batch in rows:
        truth = gradient_norm(loss, symmetry, params, batch)
        orbit = jax.jit(lambda xi: sx.search.Orbit(lambda w: loss(w, batch), params, symmetry)(xi))  # noqa: B023
        for seed in range(4):
            xi = 0.7 * normal(seed, *symmetry.algebra)
            assert gap(orbit(xi), truth(xi)) < 1e-12


HEADS = {"q": (8, 6), "k": (8, 6), "v": (8, 6), "o": (3, 8)}


@eqx.filter_jit
def energies_and_truth(symmetry, tree, dual):
    """The reduced energy at one point of the orbit, and the arrays there."""
    xi = 0.5 * normal(8, *symmetry.algebra)
    element = symmetry.exp(xi)
    moved = symmetry.act(symmetry.dual(element) if dual else element, tree)
    return Energies.of(symmetry, tree, dual=dual)(xi), moved


def test_rotary_heads_and_sliced_elements_have_energies_too():
    """Against the norm of the carried gradient, array by array, with no reduction."""
    rows = []
    params = {name: normal(seed, *shape) for seed, (name, shape) in enumerate(HEADS.items())}
    rows.append((params, sx.models.attention_symmetry(params, *"qkvo", heads=2, rotary="half")))
    stacked = {"w0": normal(1, 4, 3), "w": normal(2, 2, 4, 4), "b": normal(3, 2, 4), "out": normal(4, 2, 4)}
    specs = {"w0": "h[0] _", "w": "l h[1:] h[:-1]*", "b": "l h[1:]", "out": "_ h[2]*"}
    rows.append(
        (stacked, sx.NetworkSymmetry({"h": sx.groups.PositiveDiagonal(4, per={"l": 3})}, specs, stacked))
    )
    squared = {"w1": normal(1, 4, 3), "w2": normal(2, 2, 4)}
    rows.append((squared, sx.models.mlp_symmetry(squared, ["w1", "w2"], degree=2)))
    linear = {"w1": normal(1, 4, 3), "w2": normal(2, 5, 4), "w3": normal(3, 2, 5)}
    rows.append((linear, sx.models.mlp_symmetry(linear, ["w1", "w2", "w3"], group=sx.groups.GeneralLinear)))
    for tree, symmetry in rows:
        for dual in (False, True):
            energy, moved = energies_and_truth(symmetry, tree, dual)
            assert gap(energy, sum(np.sum(np.square(x)) for x in moved.values())) < 1e-13


def test_the_largest_gradient_norm_in_a_box_is_the_best_of_all_corners(deep):
    params, symmetry, batch = deep
    truth = gradient_norm(relu_net, symmetry, params, batch)
    corners = [0.8 * jnp.array(signs) for signs in itertools.product([-1.0, 1.0], repeat=5)]
    best = max(float(truth(xi)) for xi in corners)
    _, info = sx.teleport(relu_net, params, symmetry, batch, search=sx.search.ClosedForm(bound=0.8))
    assert gap(info.after, best) < 1e-10
    inside = [truth(0.8 * jnp.tanh(normal(seed, 5))) for seed in range(50)]
    assert float(info.after) > max(map(float, inside))


@pytest.mark.parametrize("objective", ["gradient", "params"])
def test_the_least_norm_is_what_a_minimizer_finds(deep, objective):
    params, symmetry, batch = deep
    if objective == "gradient":
        truth, goal = (
            gradient_norm(relu_net, symmetry, params, batch),
            sx.objectives.negate(sx.objectives.GradientNorm()),
        )
    else:
        goal = sx.objectives.NegativeParameterNorm()
        truth = jax.jit(lambda xi: -goal(None, symmetry.act(symmetry.exp(xi), params)))
    found = scipy.optimize.minimize(
        truth, np.zeros(5), jac=jax.grad(truth), method="BFGS", options={"gtol": 1e-12}
    )
    search = sx.search.ClosedForm(bound=10.0, sweeps=40)
    there, info = sx.teleport(relu_net, params, symmetry, batch, objective=goal, search=search)
    assert gap(-info.after, found.fun) < 1e-10
    np.testing.assert_allclose(info.algebra, found.x, atol=1e-6)
    again = sx.teleport(relu_net, there, symmetry, batch, objective=goal, search=search)[1]
    assert np.max(np.abs(again.algebra)) < 1e-7  # it is where it wants to be


def test_balancing_gives_equal_norms_of_what_goes_in_and_what_goes_out():
    params = {"w1": normal(1, 4, 3) * 10, "w2": normal(2, 2, 4)}
    symmetry = sx.models.mlp_symmetry(params, ["w1", "w2"])
    loss = lambda w, _: jnp.sum((w["w2"] @ w["w1"]) ** 2)  # noqa: E731
    there, info = sx.teleport(
        loss,
        params,
        symmetry,
        objective=sx.objectives.NegativeParameterNorm(),
        search=sx.search.ClosedForm(bound=9.0),
    )
    p, q = np.sum(params["w1"] ** 2, axis=1), np.sum(params["w2"] ** 2, axis=0)
    np.testing.assert_allclose(np.exp(4 * info.algebra), q / p, rtol=1e-10)  # s^4 = q / p
    np.testing.assert_allclose(np.sum(there["w1"] ** 2, axis=1), np.sum(there["w2"] ** 2, axis=0), rtol=1e-10)
    assert info.evaluations == 0


def test_squared_relu_has_its_best_scale_though_there_is_no_formula():
    params = {"w1": normal(1, 2, 3), "w2": normal(2, 2, 2)}
    symmetry = sx.models.mlp_symmetry(params, ["w1", "w2"], degree=2)
    x = normal(3, 7, 3)
    loss = lambda w, _: jnp.mean((jax.nn.relu(x @ w["w1"].T) ** 2 @ w["w2"].T - 1) ** 2)  # noqa: E731
    truth = gradient_norm(loss, symmetry, params)
    low = scipy.optimize.minimize(
        truth, np.zeros(2), jac=jax.grad(truth), method="BFGS", options={"gtol": 1e-12}
    )
    _, info = sx.teleport(
        loss,
        params,
        symmetry,
        objective=sx.objectives.negate(sx.objectives.GradientNorm()),
        search=sx.search.ClosedForm(bound=3.0),
    )
    assert gap(-info.after, low.fun) < 1e-10
    _, info = sx.teleport(loss, params, symmetry, search=sx.search.ClosedForm(bound=0.5))
    corners = [truth(0.5 * jnp.array(signs)) for signs in itertools.product([-1.0, 1.0], repeat=2)]
    assert gap(info.after, max(corners)) < 1e-10


@pytest.mark.slow
def test_the_largest_norm_over_matrices_beats_every_other_in_the_ball(adapter):
    params, symmetry, loss = adapter
    truth, bound = gradient_norm(loss, symmetry, params), 0.6
    _, info = sx.teleport(loss, params, symmetry, search=sx.search.ClosedForm(bound=bound))
    found = np.asarray(info.algebra).reshape(3, 3)
    assert np.linalg.norm(found, 2) <= bound * (1 + 1e-12)

    def inside(flat):
        """Any symmetric matrix in the ball, from any nine numbers; log g = x / 2 is enough, since N = g'g."""
        q, values = np.linalg.qr(flat[:9].reshape(3, 3))[0], bound * np.tanh(flat[9:])
        return (q * values) @ q.T

    best = 0.0
    for seed in range(6):
        start = np.random.default_rng(seed).normal(size=12)
        run = scipy.optimize.minimize(
            lambda flat: -float(truth(jnp.asarray(inside(flat)).ravel())),
            start,
            method="Nelder-Mead",
            options={"maxfev": 3000, "xatol": 1e-10, "fatol": 1e-14},
        )
        best = max(best, -run.fun)
    assert best <= float(info.after) * (1 + 1e-12)
    assert best >= float(info.after) * (1 - 1e-6)  # the brute force comes close: it is the maximum


def test_the_least_norm_over_matrices_is_the_nuclear_norm_of_the_product(adapter):
    """Gauge-invariant: 2 ||G_B G_A||_*, from any starting point of the orbit."""
    params, symmetry, loss = adapter
    goal, search = (
        sx.objectives.negate(sx.objectives.GradientNorm()),
        sx.search.ClosedForm(bound=8.0, ridge=0.0),
    )
    for seed in (0, 1):
        start = symmetry.act(symmetry.sample(jax.random.key(seed)), params)
        _, info = sx.teleport(loss, start, symmetry, objective=goal, search=search)
        gradient = jax.grad(loss)(start, None)
        # grad_B = D A', grad_A = B' D: the product over the rank is the invariant.
        floor = 2 * np.linalg.svd(gradient["B"] @ gradient["A"], compute_uv=False).sum()
        assert gap(-info.after, floor) < 1e-10


def test_matrix_functions_equal_those_by_eigenvalues():
    for seed, size in ((0, 2), (1, 5), (2, 8)):
        matrix = np.random.default_rng(seed).normal(size=(3, size, size))
        matrix = matrix + np.swapaxes(matrix, 1, 2)
        values, vectors = np.linalg.eigh(matrix)
        expected = np.einsum("bij,bj,bkj->bik", vectors, np.sign(values), vectors)
        np.testing.assert_allclose(matrix_sign(jnp.asarray(matrix)), expected, atol=1e-12)
    assert not np.any(matrix_sign(jnp.zeros((2, 2))))


def test_directions_without_a_gradient_stay_within_the_bound():
    """A dead unit, and a pair without a gradient: no infinity, no NaN, no jump beyond the box."""
    params = {"w1": jnp.zeros((2, 3)), "w2": normal(1, 2, 2)}
    symmetry = sx.models.mlp_symmetry(params, ["w1", "w2"])
    flat = lambda w, _: 0.0 * jnp.sum(w["w2"])  # noqa: E731
    pair = {"A": jnp.zeros((2, 3)), "B": normal(2, 4, 2)}
    low_rank = sx.models.low_rank_symmetry(pair, "A", "B")
    product = lambda w, _: jnp.sum(w["B"] @ w["A"])  # noqa: E731
    for loss, tree, group in ((flat, params, symmetry), (product, pair, low_rank)):
        for goal in (
            sx.objectives.GradientNorm(),
            sx.objectives.negate(sx.objectives.GradientNorm()),
            sx.objectives.NegativeParameterNorm(),
        ):
            there, info = sx.teleport(
                loss, tree, group, objective=goal, search=sx.search.ClosedForm(bound=2.0)
            )
            assert int(info.outcome) == 0
            assert all(np.all(np.isfinite(leaf)) for leaf in there.values())
            assert np.max(np.abs(info.algebra)) <= 2.0 + 1e-9


def test_bounded_searches_do_not_diverge_where_an_unbounded_one_does():
    """B04: 50 runs of gradient descent with a teleport before every step."""
    x, y = normal(3, 16, 3), normal(4, 16, 2)

    def loss(w):
        return jnp.mean((jax.nn.relu(x @ w["w1"].T) @ w["w2"].T - y) ** 2)

    like = {"w1": jnp.ones((6, 3)), "w2": jnp.ones((2, 6))}
    symmetry = sx.models.mlp_symmetry(like, ["w1", "w2"])

    @jax.jit
    def final(keys, bound, rate):
        search = sx.search.Ascent(10, rate, bound=bound, normalized=True)
        # Downhill first: a balanced point has the least gradient; raising it by a bounded factor is safe.
        optimizer = sx.teleported(optax.sgd(0.01), symmetry, search=search, guard=None)

        def run(key):
            w = jax.tree.map(lambda leaf: 0.5 * jax.random.normal(key, leaf.shape), like)

            def step(carry, _):
                w, state = carry
                updates, state = optimizer.update(jax.grad(loss)(w), state, w, value_fn=loss)
                return (optax.apply_updates(w, updates), state), None

            (w, _), _ = jax.lax.scan(step, (w, optimizer.init(w)), None, length=30)
            return loss(w)

        return jax.vmap(run)(keys)

    keys = jax.random.split(jax.random.key(0), 50)
    bounded, unbounded = np.asarray(final(keys, 0.02, 0.01)), np.asarray(final(keys, 1e3, 1.0))
    assert np.all(np.isfinite(bounded))
    assert np.max(bounded) < 3.0
    assert np.sum(~np.isfinite(unbounded) | (unbounded > 1e3)) >= 25


def test_random_and_grid_searches_take_the_best_of_what_they_try(deep):
    params, symmetry, batch = deep
    truth = gradient_norm(relu_net, symmetry, params, batch)
    key = jax.random.key(3)
    _, one = sx.teleport(
        relu_net, params, symmetry, batch, search=sx.search.Random(key, samples=1, scale=0.3)
    )
    _, many = sx.teleport(
        relu_net, params, symmetry, batch, search=sx.search.Random(key, samples=40, scale=0.3)
    )
    assert gap(one.after, truth(one.algebra)) < 1e-12
    assert float(many.after) > float(one.after)
    assert one.evaluations == 0
    pair = {"w1": normal(1, 2, 3), "w2": normal(2, 2, 2)}
    scaling = sx.models.mlp_symmetry(pair, ["w1", "w2"])
    x = normal(3, 7, 3)
    loss = lambda w, _: jnp.mean((jax.nn.relu(x @ w["w1"].T) @ w["w2"].T - 1) ** 2)  # noqa: E731
    _, info = sx.teleport(loss, pair, scaling, search=sx.search.Grid(points=21, bound=0.5))
    ticks = 0.5 * np.linspace(-1, 1, 21)
    at = gradient_norm(loss, scaling, pair)
    assert gap(info.after, max(float(at(jnp.array(xi))) for xi in itertools.product(ticks, ticks))) < 1e-12


def test_ascent_stays_within_its_bound_on_groups_without_a_maximum(deep, adapter):
    params, symmetry, batch = deep
    _, info = sx.teleport(relu_net, params, symmetry, batch, search=sx.search.Ascent(20, 10.0, bound=0.4))
    assert np.max(np.abs(info.algebra)) <= 0.4
    pair, low_rank, loss = adapter
    _, info = sx.teleport(loss, pair, low_rank, search=sx.search.Ascent(20, 10.0, bound=0.4))
    assert np.linalg.norm(np.asarray(info.algebra).reshape(3, 3)) <= 0.4 * (1 + 1e-12)


def test_one_gradient_serves_a_search_of_any_length(deep):
    """Counted as the loss is really differentiated: once for the search, whatever its length."""
    params, symmetry, batch = deep
    counted = {"gradients": 0}

    @jax.custom_vjp
    def loss_of(w):
        return relu_net(w, batch)

    def forward(w):
        value, back = jax.vjp(lambda v: relu_net(v, batch), w)
        return value, back

    def backward(back, cotangent):
        counted["gradients"] += 1
        return back(cotangent)

    loss_of.defvjp(forward, backward)
    for search in (
        sx.search.Ascent(25, 0.01),
        sx.search.ClosedForm(bound=0.3),
        sx.search.Random(jax.random.key(0), samples=9),
    ):
        counted["gradients"] = 0
        search(sx.search.Orbit(loss_of, params, symmetry))
        assert counted["gradients"] == 1
        _, info = sx.teleport(lambda w, _: loss_of(w), params, symmetry, search=search)
        assert info.evaluations == 1


def test_a_search_that_does_not_fit_says_what_would(deep):
    params, symmetry, batch = deep
    with pytest.raises(ValueError, match=r"ClosedForm needs a NetworkSymmetry.* use Ascent"):
        sx.teleport(
            relu_net,
            params,
            symmetry,
            batch,
            objective=sx.objectives.GradientNorm("l1"),
            search=sx.search.ClosedForm(),
        )
    with pytest.raises(ValueError, match="ClosedForm needs a NetworkSymmetry"):
        sx.teleport(
            sx.tasks.booth().loss, jnp.ones(2), sx.tasks.booth().symmetry(), search=sx.search.ClosedForm()
        )
    with pytest.raises(ValueError, match="Grid needs at most 3 algebra coordinates, got 5"):
        sx.teleport(relu_net, params, symmetry, batch, search=sx.search.Grid())
    with pytest.raises(ValueError, match="needs a symmetry, got symmetry=None"):
        sx.teleport(relu_net, params, None, batch)
    signs = sx.models.mlp_symmetry(params, ["w1", "w2", "w3"], ["b1", "b2"], group=sx.groups.SignDiagonal)
    with pytest.raises(ValueError, match="its groups are discrete"):
        sx.teleport(relu_net, params, signs, batch)
    twice = {"w": normal(1, 3, 3)}
    tied = sx.NetworkSymmetry({"h": sx.groups.PositiveDiagonal(3)}, {"w": "h h*"}, twice)
    with pytest.raises(ValueError, match="at most one axis in the space 'h', got one with 2"):
        sx.teleport(lambda w, _: jnp.sum(w["w"] ** 2), twice, tied, search=sx.search.ClosedForm())


def test_it_compiles_in_single_precision_and_maps_over_points(deep):
    params, symmetry, batch = deep
    single = jax.tree.map(lambda x: x.astype(jnp.float32), (params, batch))
    many = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), single[0])
    travel = jax.jit(
        jax.vmap(
            lambda w: sx.teleport(relu_net, w, symmetry, single[1], search=sx.search.ClosedForm(bound=0.8))
        )
    )
    there, info = travel(many)
    assert there["w1"].dtype == jnp.float32
    _, double = sx.teleport(relu_net, params, symmetry, batch, search=sx.search.ClosedForm(bound=0.8))
    assert abs(float(info.after[0]) / float(double.after) - 1) < 1e-4


def test_the_sign_of_the_matrix_is_a_search_without_lapack():
    """Linear algebra libraries can hang inside compiled programs on few cores: nothing here may call one."""
    params = {"A": normal(1, 3, 6), "B": normal(2, 5, 3)}
    symmetry = sx.models.low_rank_symmetry(params, "A", "B")
    for goal in (sx.objectives.GradientNorm(), sx.objectives.negate(sx.objectives.GradientNorm())):

        def run(w, goal=goal):
            loss = lambda v, _: jnp.sum((v["B"] @ v["A"]) ** 2)  # noqa: E731
            return sx.teleport(loss, w, symmetry, objective=goal, search=sx.search.ClosedForm())[0]

        assert "custom_call" not in jax.jit(run).lower(params).as_text()


def dead(params):
    """The second unit of the first layer has no outgoing weights, the first of the second one never fires."""
    return params | {"w2": params["w2"].at[:, 1].set(0.0), "b2": params["b2"].at[0].set(-100.0)}


@pytest.mark.parametrize("degree", [1])
@pytest.mark.parametrize("objective", ["gradient", "down", "params"])
def test_derivatives_through_a_search_are_finite_where_an_energy_is_zero_and_equal_differences(
    deep, objective, degree, central_differences
):
    """A loss of the point where a teleport leads, by the directions in which dead units stay dead."""
    params, symmetry, batch = deep
    if degree == 2:  # exponents other than one: the least norm is found by halving
        symmetry = symmetry.with_specs({k: v.replace("*", "^-2") for k, v in symmetry.specs.items()})
    goal = {
        "gradient": sx.objectives.GradientNorm(),
        "down": sx.objectives.negate(sx.objectives.GradientNorm()),
        "params": sx.objectives.NegativeParameterNorm(),
    }[objective]
    params = dead(params)
    names = ("w1", "b1", "w3")
    weights = {name: normal(seed, *leaf.shape) for seed, (name, leaf) in enumerate(params.items())}

    @jax.jit
    def measured(shift):
        moved = {**params}
        ends = np.cumsum([0, *(params[name].size for name in names)])
        for name, low, high in zip(names, ends, ends[1:], strict=False):
            moved[name] = params[name] + shift[low:high].reshape(params[name].shape)
        orbit = sx.search.Orbit(lambda w: relu_net(w, batch), moved, symmetry, objective=goal)
        there = symmetry.act(symmetry.exp(sx.search.ClosedForm(bound=2.0)(orbit)), moved)
        return sum(jnp.sum(weights[name] * there[name]) for name in there)

    at = jnp.zeros(sum(params[name].size for name in names))
    slope = jax.jit(jax.grad(measured))(at)
    assert np.all(np.isfinite(slope))
    assert np.any(slope != 0)
    np.testing.assert_allclose(slope, central_differences(measured, at), rtol=1e-5, atol=1e-6)

    def everywhere(p):
        search = sx.search.ClosedForm()
        there, _ = sx.teleport(relu_net, p, symmetry, batch, objective=goal, search=search, guard=None)
        return sum(map(jnp.sum, jax.tree.leaves(there)))

    everything = jax.jit(jax.grad(everywhere))(params)
    assert all(np.all(np.isfinite(leaf)) for leaf in everything.values())


@pytest.mark.parametrize("objective", mostly_slow(["small", "flat", "steep"], ["flat"]))
def test_derivatives_through_matrices_are_finite_where_a_side_is_zero(adapter, objective):
    params, symmetry, loss = adapter
    options = {"objective": OBJECTIVES[objective], "search": sx.search.ClosedForm(), "guard": None}
    slope = jax.jit(jax.grad(lambda p: jnp.sum(sx.teleport(loss, p, symmetry, **options)[0]["A"])))
    for gone in ("A", "B"):
        point = params | {gone: jnp.zeros_like(params[gone])}
        assert all(np.all(np.isfinite(leaf)) for leaf in slope(point).values())


@eqx.filter_jit
def found_by_all(tree, symmetry, objective):
    """Where three searches go from `tree`, whose gradient is itself: one program for trees of all scales."""
    loss = lambda w: sum(jnp.sum(leaf) for leaf in jax.tree.leaves(w))  # noqa: E731
    orbit = sx.search.Orbit(loss, tree, symmetry, objective=objective, gradient=tree)
    searches = (
        sx.search.ClosedForm(bound=0.7),
        sx.search.Ascent(3, 0.1, normalized=True, monotone=True),
        sx.search.Random(jax.random.key(0), samples=5),
    )
    return [search(orbit) for search in searches]


OBJECTIVES = {
    "small": sx.objectives.NegativeParameterNorm(),
    "steep": sx.objectives.GradientNorm(),
    "flat": sx.objectives.negate(sx.objectives.GradientNorm()),
}


KINDS = [("small", "scaling"), ("steep", "matrix"), ("flat", "matrix")]
KINDS += [("small", "matrix"), ("steep", "scaling"), ("flat", "scaling")]


@pytest.mark.parametrize(("objective", "kind"), mostly_slow(KINDS, KINDS[:3], unpack=True))
def test_the_best_point_does_not_depend_on_the_scale_of_the_numbers(deep, adapter, kind, objective):
    """Squares of these numbers overflow or vanish in single precision."""
    params, symmetry = (deep if kind == "scaling" else adapter)[:2]

    def found(scale):
        tree = {name: jnp.asarray(scale * leaf, jnp.float32) for name, leaf in params.items()}
        return found_by_all(tree, symmetry, OBJECTIVES[objective])

    usual = found(1.0)
    for size in (1e-25, 1e-12, 1e12, 1e30):
        for one, other in zip(usual, found(size), strict=True):
            assert np.all(np.isfinite(other))
            assert np.any(other != 0)
            np.testing.assert_allclose(other, one, atol=2e-3)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_floats_find_what_single_precision_finds(deep, dtype):
    params, symmetry, _ = deep
    short = {name: jnp.asarray(300 * leaf, dtype) for name, leaf in params.items()}
    single = {name: leaf.astype(jnp.float32) for name, leaf in short.items()}
    found = [
        sx.search.ClosedForm()(
            sx.search.Orbit(
                lambda w: jnp.zeros(()), tree, symmetry, objective=sx.objectives.NegativeParameterNorm()
            )
        )
        for tree in (short, single)
    ]
    np.testing.assert_allclose(*found, rtol=1e-6)
    assert found[0].dtype == jnp.float32


def test_complex_parameters_have_the_energies_of_their_parts(deep, adapter):
    for params, symmetry in (deep[:2], adapter[:2]):
        tree = {name: leaf + 1j * normal(9, *leaf.shape) for name, leaf in params.items()}
        for dual in (False, True):
            energy, moved = energies_and_truth(symmetry, tree, dual)
            assert gap(energy, sum(np.sum(np.abs(x) ** 2) for x in moved.values())) < 1e-12


def test_the_default_is_the_closed_form_where_there_is_one(deep, adapter):
    params, symmetry, batch = deep
    for objective in (
        sx.objectives.GradientNorm(),
        sx.objectives.NegativeParameterNorm(),
        sx.objectives.negate(sx.objectives.GradientNorm()),
    ):
        _, info = sx.teleport(relu_net, params, symmetry, batch, objective=objective)
        _, same = sx.teleport(
            relu_net, params, symmetry, batch, objective=objective, search=sx.search.ClosedForm(0.5)
        )
        assert jnp.array_equal(info.algebra, same.algebra)
        assert not info.negligible
    _, info = sx.teleport(adapter[2], *adapter[:2])
    assert float(info.after) > 1.2 * float(info.before)


@pytest.mark.parametrize("factor", mostly_slow([1e-12, 1.0, 1e12], ["1e-12"]))
def test_elsewhere_the_default_climbs_whatever_the_scale_of_the_loss(deep, factor):
    params, symmetry, batch = deep
    loss = lambda p, b: factor * relu_net(p, b)  # noqa: E731
    for objective in (sx.objectives.GradientNorm("l1"), sx.objectives.GradientNorm("nuclear")):
        _, info = sx.teleport(loss, params, symmetry, batch, objective=objective, guard=None)
        assert float(info.after) > 1.1 * float(info.before)
        assert not info.negligible
        assert info.evaluations == 1


def test_a_group_that_acts_twice_on_an_array_is_climbed(float64):
    params = {"q": normal(1, 3, 5), "m": normal(2, 3, 3), "k": normal(3, 3, 5)}
    symmetry = sx.NetworkSymmetry(
        {"h": sx.groups.PositiveDiagonal(3)}, {"q": "h _", "m": "h* h*", "k": "h _"}, params
    )
    loss = lambda p, _: jnp.sum(jnp.einsum("ai,ab,bj->ij", p["q"], p["m"], p["k"]) ** 2)  # noqa: E731
    _, info = sx.teleport(loss, params, symmetry)
    assert float(info.after) > 1.2 * float(info.before)
    assert info.outcome == 0
