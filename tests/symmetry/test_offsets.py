"""Specs with offsets: gains that enter as 1 + w, whose action is linear about minus the offset."""

import re

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import symmetrax as sx

# Specs with offsets are read, written and taken apart; `carry` is what `transport="carry"` does.
from symmetrax.learned._neurons import FEATURES, unit_features
from symmetrax.search._closed_form import has_closed_form
from symmetrax.symmetry._specs import offset_of, parse, written
from symmetrax.teleportation._transport import carry

from ..cases import mostly_slow

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)
WIDTH = 4
SPECS = {"gain": "h - 1", "up": "_ h*"}


def draw(seed, dtype=float):
    rng = np.random.default_rng(seed)
    shapes = {"embed": (WIDTH, 3), "gain": (WIDTH,), "up": (5, WIDTH), "down": (2, 5)}
    return {name: jnp.asarray(0.5 * rng.normal(size=shape), dtype) for name, shape in shapes.items()}


def normalized(x):
    return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True))


def block(params, x, gain):
    return jnp.tanh(normalized(x @ params["embed"].T) * gain @ params["up"].T) @ params["down"].T


def loss(params, x):
    """A small block as Gemma has them."""
    return jnp.mean(block(params, x, 1 + params["gain"]) ** 2)


def plain_loss(params, x):
    """The same with one plus the gain as a parameter."""
    return jnp.mean(block(params, x, params["gain"]) ** 2)


def plus_one(params):
    return params | {"gain": params["gain"] + 1}


def minus_one(params):
    return params | {"gain": params["gain"] - 1}


def data(dtype=float):
    return jnp.asarray(np.random.default_rng(9).normal(size=(6, 3)), dtype)


def symmetry_of(group=sx.groups.PositiveDiagonal, specs=SPECS):
    return sx.NetworkSymmetry({"h": group(WIDTH)}, specs, like=draw(0))


def plain_of(symmetry):
    """The symmetry that acts on arrays which have the offset in them."""
    return symmetry.with_specs({path: written(parse(text)) for path, text in symmetry.specs.items()})


def check_close(found, wanted, atol=1e-12):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-11, atol=atol), found, wanted)


# The notation.


@pytest.mark.parametrize(
    ("text", "said", "offset"),
    [
        ("h - 1", "h - 1", 1.0),
        ("h-1", "h - 1", 1.0),
        ("_ h* -0.5", "_ h* - 0.5", 0.5),
        ("(n h) _ - 2", "(n h) _ - 2", 2.0),
        ("h^-2", "h^-2", 0.0),
        ("h^-2-1", "h^-2 - 1", 1.0),
        ("h[-1]", "h[-1]", 0.0),
        ("h[-1] - 1", "h[-1] - 1", 1.0),
        ("h - -1", "h - -1", -1.0),
        ("h - 0", "h", 0.0),
        ("a+b", "a+b", 0.0),
    ],
)
def test_an_offset_is_read_and_written(text, said, offset):
    assert offset_of(text) == offset
    assert written(parse(text), offset_of(text)) == said


@pytest.mark.parametrize("text", ["h - x", "(h - 1) _", "h -", "- 1", "h - 1 _", "h - 1 - 1", "1 - h"])
def test_an_offset_stands_at_the_end_of_a_spec(text):
    with pytest.raises(ValueError, match="spec"):
        sx.NetworkSymmetry({"h": sx.groups.PositiveDiagonal(WIDTH)}, {"gain": text}, like=draw(0))


def test_parts_and_sums_of_a_symmetry_keep_the_offset():
    params = {"layers": [draw(0), draw(1)]}
    specs = {"layers.{i}.gain": "h{i} - 1", "layers.{i}.up": "_ h{i}*"}
    symmetry = sx.NetworkSymmetry({"h{i}": sx.groups.PositiveDiagonal(WIDTH)}, specs, like=params)
    assert symmetry.specs["layers.1.gain"] == "h1 - 1"
    assert symmetry.only("h1").specs == {"layers.1.gain": "h1 - 1", "layers.1.up": "_ h1*"}
    assert symmetry.renamed({"h0": "a"}).specs["layers.0.gain"] == "a - 1"
    part = {"layers": [{"gain": params["layers"][0]["gain"]}]}
    assert symmetry.within(part).specs == {"layers.0.gain": "h0 - 1"}
    assert "h1 - 1" in str(symmetry)

    signs = sx.NetworkSymmetry(
        {"s": sx.groups.SignDiagonal(WIDTH)}, {"gain": "s - 1", "up": "_ s"}, like=draw(0)
    )
    both = symmetry_of() | signs
    assert both.specs == {"gain": "h&s - 1", "up": "_ h*&s"}
    assert both.only("s").specs == signs.specs


def test_other_offsets_on_one_array_are_no_action():
    others = sx.NetworkSymmetry({"s": sx.groups.SignDiagonal(WIDTH)}, {"gain": "s"}, like=draw(0))
    with pytest.raises(ValueError, match="different offsets"):
        _ = symmetry_of() | others
    wide = {"w": jnp.ones((3, WIDTH))}
    rows = sx.NetworkSymmetry({"p": sx.groups.Permutation(3)}, {"w": "p _"}, like=wide)
    scales = sx.NetworkSymmetry({"h": sx.groups.PositiveDiagonal(WIDTH)}, {"w": "_ h - 1"}, like=wide)
    assert (rows | scales).specs == {"w": "p h - 1"}
    assert (scales | rows).specs == {"w": "p h - 1"}


# The action.

GROUPS = {
    "scales": (sx.groups.PositiveDiagonal, SPECS),
    "any scales": (sx.groups.NonzeroDiagonal, SPECS),
    "signs": (sx.groups.SignDiagonal, {"gain": "h - 1", "up": "_ h"}),
    "powers": (sx.groups.PositiveDiagonal, {"gain": "h^2 - 1", "up": "_ h^-2"}),
    "dual": (sx.groups.PositiveDiagonal, {"gain": "h* - 1", "up": "_ h"}),
}


@pytest.mark.parametrize("name", mostly_slow(GROUPS, ("scales", "signs", "dual")))
@hypothesis.given(seed=st.integers(0, 1000))
@hypothesis.settings(max_examples=3)
def test_the_laws_hold(name, seed, float64):
    symmetry, w, x = symmetry_of(*GROUPS[name]), draw(seed), data()
    a, b = (symmetry.sample(jax.random.key(seed + k)) for k in (0, 1))
    there = symmetry.act(a, w)
    assert abs(loss(there, x) / loss(w, x) - 1) <= 1e-12
    check_close(there, minus_one(plain_of(symmetry).act(a, plus_one(w))))
    check_close(symmetry.act(symmetry.compose(a, b), w), symmetry.act(a, symmetry.act(b, w)))
    check_close(symmetry.act(symmetry.inverse(a), there), w)
    check_close(symmetry.act(symmetry.identity(), w), w, atol=0)
    gradient = jax.grad(loss)(w, x)
    check_close(jax.grad(loss)(there, x), symmetry.transport_gradient(a, w, gradient))
    tangent = draw(seed + 2)
    check_close(
        symmetry.transport_tangent(a, w, tangent), jax.jvp(lambda w: symmetry.act(a, w), (w,), (tangent,))[1]
    )
    squares = symmetry.transport_squared_gradient(a, jax.tree.map(jnp.square, gradient))
    check_close(squares, jax.tree.map(jnp.square, jax.grad(loss)(there, x)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_identity_moves_no_small_gain(dtype):
    """Which 1 + w - 1 would round away."""
    w = {name: jnp.asarray(1e-4 * x, dtype) for name, x in draw(0).items()}
    symmetry = symmetry_of()
    there = symmetry.act(symmetry.identity(), w)
    assert all(np.array_equal(there[name], w[name]) and there[name].dtype == dtype for name in w)
    moved = symmetry.act({"h": jnp.full(WIDTH, 2.0)}, w)["gain"]
    np.testing.assert_allclose(
        moved.astype(float), 2 * w["gain"].astype(float) + 1, rtol=float(jnp.finfo(dtype).eps)
    )


def test_a_permutation_with_an_offset_is_one_without():
    specs = {"gain": "h - 1", "up": "_ h"}
    a = {"h": jnp.array([2, 0, 3, 1])}
    w = draw(0, np.float32)
    found = symmetry_of(sx.groups.Permutation, specs).act(a, w)
    wanted = plain_of(symmetry_of(sx.groups.Permutation, specs)).act(a, w)
    assert all(np.array_equal(found[name], wanted[name]) for name in w)


def test_an_offset_counts_for_a_whole_stack_and_for_untouched_parts_of_none(float64):
    w = {"gains": np.random.default_rng(0).normal(size=(2, 3, 6))}
    groups = {"h": sx.groups.PositiveDiagonal(4, per={"layer": 2})}
    symmetry = sx.NetworkSymmetry(groups, {"gains": "layer _ h+2 - 1"}, like=w)
    a = symmetry.sample(KEY)
    wanted = w["gains"].copy()
    wanted[..., :4] = np.asarray(a["h"])[:, None] * (wanted[..., :4] + 1) - 1
    np.testing.assert_allclose(symmetry.act(a, w)["gains"], wanted, rtol=1e-12, atol=1e-12)
    assert np.array_equal(symmetry.act(a, w)["gains"][..., 4:], w["gains"][..., 4:])


# What rests on it.


@pytest.mark.parametrize("dtype", mostly_slow(["float64", "float32"], ["float32"]))
def test_verify_says_exact(dtype, float64):
    w, x = draw(0, dtype), data(dtype)
    assert sx.verify(loss, w, symmetry_of(), KEY, x).outcome == "exact"


def test_verify_names_an_offset_that_is_missing_and_one_too_many():
    w, x = draw(0), data()
    for value, symmetry, wrong, right in (
        (loss, plain_of(symmetry_of()), "h", "h - 1"),
        (plain_loss, symmetry_of(), "h - 1", "h"),
    ):
        report = sx.verify(value, w, symmetry, KEY, x)
        assert report.outcome == "wrong"
        assert ("gain", wrong, right) in [(one.path, one.wrong, one.right) for one in report.suspects]


@pytest.mark.parametrize(
    "search", [sx.search.ClosedForm(0.4), sx.search.Ascent(4)], ids=["closed form", "ascent"]
)
def test_a_teleport_goes_where_the_network_without_offset_goes(search, float64):
    w, x = draw(0), data()
    there, info = sx.teleport(loss, w, symmetry_of(), x, search=search)
    wanted, known = sx.teleport(plain_loss, plus_one(w), plain_of(symmetry_of()), x, search=search)
    check_close(there, minus_one(wanted))
    assert int(info.outcome) == 0
    assert info.evaluations == known.evaluations == 1
    np.testing.assert_allclose(info.after, known.after, rtol=1e-10)
    gradient = jax.grad(loss)(there, x)
    np.testing.assert_allclose(info.after, sum(jnp.sum(g**2) for g in gradient.values()), rtol=1e-10)


def test_moments_are_carried_as_a_replay_has_them(float64):
    """Moments know nothing of offsets, and averages of parameters do."""
    w, scales = draw(0), np.array([0.5, 2.0, 3.0, 1.5])
    symmetry, element = symmetry_of(), {"h": jnp.asarray(scales)}
    there = symmetry.act(element, w)

    def replayed(optimizer, start, history):
        state = optimizer.init(start)
        for gradient in history:
            _, state = optimizer.update(gradient, state, start)
        return state

    history = [draw(seed) for seed in (3, 4, 5)]
    moved = [g | {"gain": g["gain"] / scales, "up": g["up"] * scales} for g in history]
    adam = optax.adam(0.1)
    check_close(carry(replayed(adam, w, history), symmetry, element, w), replayed(adam, there, moved))
    start = optax.contrib.madgrad(0.1).init(w)
    check_close(optax.tree.get(carry(start, symmetry, element, w), "x0"), there)


@pytest.mark.slow
def test_a_teleported_run_is_the_one_without_offset(float64):
    """Adam sees gradients alone, so both runs are one, apart by the constant."""
    x, runs = data(), []
    for value, symmetry, start in (
        (loss, symmetry_of(), draw(0)),
        (plain_loss, plain_of(symmetry_of()), plus_one(draw(0))),
    ):
        transform = sx.teleported(
            optax.adam(1e-2), symmetry, schedule=[1], search=sx.search.ClosedForm(0.3), transport="carry"
        )
        w, state = start, transform.init(start)
        for _ in range(3):
            updates, state = transform.update(
                jax.grad(value)(w, x), state, w, value_fn=lambda w, value=value: value(w, x)
            )
            w = optax.apply_updates(w, updates)
        runs.append(w)
    check_close(runs[0], minus_one(runs[1]), atol=1e-10)


def test_small_norm_is_the_norm_of_the_parameters(float64):
    w, x, symmetry = draw(0), data(), symmetry_of()
    orbit = sx.search.Orbit(
        lambda w: loss(w, x), w, symmetry, objective=sx.objectives.NegativeParameterNorm()
    )
    xi = 0.3 * jnp.arange(WIDTH)
    there = symmetry.act(symmetry.exp(xi), w)
    np.testing.assert_allclose(orbit(xi), -sum(np.sum(np.square(v)) for v in there.values()), rtol=1e-12)
    assert not has_closed_form(symmetry, sx.objectives.NegativeParameterNorm())
    assert has_closed_form(symmetry, sx.objectives.GradientNorm())
    with pytest.raises(ValueError, match="without offsets"):
        sx.teleport(
            loss,
            w,
            symmetry,
            x,
            objective=sx.objectives.NegativeParameterNorm(),
            search=sx.search.ClosedForm(),
        )
    moved, info = sx.teleport(loss, w, symmetry, x, objective=sx.objectives.NegativeParameterNorm())
    assert info.after > info.before
    assert abs(loss(moved, x) / loss(w, x) - 1) <= 1e-10


def test_gradient_flow_conserves_the_moments_of_what_transforms(float64):
    symmetry, w, x = symmetry_of(), draw(0), data()
    before = sx.symmetry.conserved_quantities(symmetry, w)["h"]
    np.testing.assert_allclose(before, (w["gain"] + 1) ** 2 - np.sum(w["up"] ** 2, axis=0), rtol=1e-12)

    def velocity(w):
        return jax.tree.map(jnp.negative, jax.grad(loss)(w, x))

    def slope(w):
        return jax.jvp(lambda w: sx.symmetry.conserved_quantities(symmetry, w)["h"], (w,), (velocity(w),))[1]

    assert np.max(np.abs(slope(w))) <= 1e-12
    plain = plain_of(symmetry)
    assert (
        np.max(
            np.abs(
                jax.jvp(lambda w: sx.symmetry.conserved_quantities(plain, w)["h"], (w,), (velocity(w),))[1]
            )
        )
        > 1e-4
    )


def test_the_orbit_is_where_updates_have_no_effect(float64):
    symmetry, w, x = symmetry_of(), draw(0), data()
    xi = jnp.linspace(-0.5, 0.5, WIDTH)
    curve = sx.symmetry.orbit_curve(symmetry, xi, w, points=4)
    np.testing.assert_allclose(jax.vmap(lambda w: loss(w, x))(curve), loss(w, x), rtol=1e-12)
    along = jax.jvp(lambda xi: symmetry.act(symmetry.exp(xi), w), (symmetry.zero(),), (xi,))[1]
    rest = sx.symmetry.project_horizontal(symmetry, w, along)
    assert max(np.max(np.abs(v)) for v in rest.values()) <= 1e-10
    gradient = jax.grad(loss)(w, x)
    check_close(sx.symmetry.project_horizontal(symmetry, w, gradient), gradient, atol=1e-10)


def test_units_look_as_they_do_without_an_offset(float64):
    w, x = draw(0), data()
    found = unit_features(symmetry_of(), w, jax.grad(loss)(w, x))
    wanted = unit_features(plain_of(symmetry_of()), plus_one(w), jax.grad(plain_loss)(plus_one(w), x))
    assert len(FEATURES) == len(found)
    # Both are divided by the largest entry of all parameters, which cancels but for tiny constants.
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-8)


# Discovery.


def found_in(value, w):
    """Specs and outcomes of what is found, by the kind of group, without the numbers of spaces."""
    x = data()
    found = sx.find_symmetries(
        lambda w: value(w, x),
        w,
        KEY,
        groups=[sx.groups.PositiveDiagonal, sx.groups.SignDiagonal, sx.groups.Permutation],
    )
    assert not found.rejected
    return [
        (
            type(one.group),
            {path: re.sub(r"(?<=[a-z])\d+", "", text) for path, text in one.symmetry.specs.items()},
        )
        for one in found.exact
    ]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_gains_that_enter_as_one_plus_w_are_found(dtype, request):
    if dtype is np.float64:
        request.getfixturevalue("float64")
    found = found_in(loss, draw(0, dtype))
    assert (sx.groups.PositiveDiagonal, {"gain": "s - 1", "up": "_ s*"}) in found
    assert (sx.groups.SignDiagonal, {"gain": "e - 1", "up": "_ e"}) in found
    assert (sx.groups.Permutation, {"embed": "p _", "gain": "p", "up": "_ p"}) in found


def test_a_gain_of_zeros_is_no_obstacle():
    found = found_in(loss, draw(0) | {"gain": jnp.zeros(WIDTH)})
    assert (sx.groups.PositiveDiagonal, {"gain": "s - 1", "up": "_ s*"}) in found


def test_plain_gains_and_biases_have_no_offset():
    found = found_in(plain_loss, draw(0))
    assert (sx.groups.PositiveDiagonal, {"gain": "s", "up": "_ s*"}) in found
    assert not any("-" in text for _, specs in found for text in specs.values())

    def two_biases(w, x):
        """Of which a constant may go from one to the other, which is no scaling."""
        return jnp.mean(jnp.tanh(x @ w["embed"].T + w["gain"] + w["bias"]) @ w["up"].T)

    found = found_in(two_biases, draw(0) | {"bias": draw(1)["gain"]})
    assert not any("-" in text for _, specs in found for text in specs.values())


def test_stacked_gains_beside_biases_and_other_constants_are_found():
    def stacked(w, x):
        h = x @ w["embed"].T
        for layer in range(2):
            inside = normalized(h) * (0.5 + w["gains"][layer]) + w["biases"][layer]
            h = h + jnp.tanh(inside @ w["ups"][layer].T) @ w["downs"][layer].T
        return jnp.mean(h**2)

    rng = np.random.default_rng(0)
    shapes = {"embed": (4, 3), "gains": (2, 4), "biases": (2, 4), "ups": (2, 5, 4), "downs": (2, 4, 5)}
    found = found_in(stacked, {k: jnp.asarray(rng.normal(size=shape)) for k, shape in shapes.items()})
    specs = {"biases": "h s", "gains": "h s - 0.5", "ups": "h _ s*"}
    assert (sx.groups.PositiveDiagonal, specs) in found
