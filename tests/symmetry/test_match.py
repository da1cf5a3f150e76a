"""Matching over all groups: planted elements come back, and nothing ends farther than it began."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import symmetrax as sx

from ..cases import mostly_slow

pytestmark = pytest.mark.usefixtures("quick_compilation")

P, S, D = sx.groups.Permutation, sx.groups.SignDiagonal, sx.groups.PositiveDiagonal
GL, O = sx.groups.GeneralLinear, sx.groups.Orthogonal


def drawn(shapes, seed):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


MLP = {"w1": (12, 5), "b1": (12,), "w2": (9, 12), "b2": (9,), "w3": (3, 9), "b3": (3,)}
CNN = {
    "stem": (6, 3, 3, 3),
    "first0": (5, 6, 3, 3),
    "second0": (6, 5, 3, 3),
    "first1": (5, 6, 3, 3),
    "second1": (6, 5, 3, 3),
    "bias": (6,),
    "head": (4, 6),
}
BLOCK = {
    "embed": (11, 8),
    "q": (12, 8),
    "k": (12, 8),
    "v": (12, 8),
    "o": (8, 12),
    "up": (10, 8),
    "gate": (10, 8),
    "down": (8, 10),
}


def mlp(group):
    def symmetries(params):
        weights, biases = ["w1", "w2", "w3"], ["b1", "b2", "b3"]
        return [sx.models.mlp_symmetry(params, weights, biases, group=one) for one in (group, P)]

    return symmetries


def cnn(params):
    return [
        sx.models.residual_cnn_symmetry(
            params, ["stem"], "first{i}", "second{i}", "head", stream_vectors=["bias"], group=group
        )
        for group in (D, P)
    ]


def transformer(params):
    """General linear groups of every head, permuted heads and units, and a rotated stream."""
    heads = {"q": "(h 4) _", "k": "(h 4) _", "v": "(h 4) _", "o": "_ (h 4)"}
    units = {"up": "u _", "gate": "u _", "down": "_ u"}
    return [
        sx.models.attention_symmetry(params, *"qkvo", heads=3)
        | sx.models.gated_mlp_symmetry(params, "gate", "up", "down")
        | sx.models.residual_stream_symmetry(
            params, ["o", "down"], ["q", "k", "v", "up", "gate"], embeddings=["embed"]
        ),
        sx.NetworkSymmetry({"h": P(3), "u": P(10)}, heads | units, params),
    ]


def adapter(params):
    return [sx.models.low_rank_symmetry(params, "a", "b")]


NETWORKS = {
    "ReLU": (MLP, mlp(D)),
    "tanh": (MLP, mlp(S)),
    "residual CNN": (CNN, cnn),
    "transformer": (BLOCK, transformer),
    "adapter": ({"a": (4, 20), "b": (15, 4)}, adapter),
}


def apart(x, y):
    """The distance relative to `y`, written without the library."""
    gaps = sum(np.sum(np.abs(np.asarray(x[k]) - y[k]) ** 2) for k in y)
    return float(np.sqrt(gaps / sum(np.sum(np.abs(v) ** 2) for v in y.values())))


def moved(symmetries, tree, key):
    for one, k in zip(symmetries, jax.random.split(key, len(symmetries)), strict=True):
        tree = jax.tree.map(np.asarray, one.act(one.sample(k), tree))
    return tree


def recovered(name, gauges):
    shapes, make = NETWORKS[name]
    distances = []
    for seed in gauges:
        tree = drawn(shapes, seed)
        symmetries = make(tree)
        elsewhere = moved(symmetries, tree, jax.random.key(seed))
        found = sx.symmetry.match(elsewhere, tree, symmetries)
        assert apart(elsewhere, tree) > 0.1
        distances.append(apart(found.params, tree))
        assert found.settled
    return np.array(distances)


@pytest.mark.parametrize("name", NETWORKS)
def test_planted_elements_of_all_groups_together_are_recovered(float64, name):
    assert np.max(recovered(name, range(4))) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_planted_elements_are_recovered_from_a_hundred_gauges(float64, name):
    assert np.max(recovered(name, range(100))) < 1e-6


#: Spaces on two axes of one array, groups inside of groups, other powers and groups: specs and shapes.
RECURRENT = ({"wx": (9, 3), "wh": (9, 9), "wo": (2, 9)}, {"wx": "h _", "wh": "h h*", "wo": "_ h*"})
EXPERTS = {"w1": (4, 5, 3), "w2": (4, 3, 5)}
STREAM = {"up": (10, 8), "down": (8, 10), "head": (5, 8)}
STREAM_SPECS = {"up": "u s*", "down": "s u", "head": "_ s*"}
ROTARY = {"embed": (11, 8), "q": (3, 2, 2, 8), "k": (3, 2, 2, 8), "v": (12, 8), "o": (8, 12)}
ROTARY_SPECS = {"embed": "_ s", "q": "h f r s*", "k": "h f r* s*", "v": "(h vo) s*", "o": "s (h vo*)"}
OTHERS = {
    "recurrent, permutations and scales": (
        RECURRENT[0],
        [({"h": D(9)}, RECURRENT[1]), ({"h": P(9)}, RECURRENT[1])],
    ),
    "recurrent, permutations and signs": (
        RECURRENT[0],
        [({"h": S(9)}, RECURRENT[1]), ({"h": P(9)}, RECURRENT[1])],
    ),
    "units of experts": (
        EXPERTS,
        [
            ({"u": P(5, per={"e": 4})}, {"w1": "e u _", "w2": "e _ u"}),
            ({"u": D(5, per={"e": 4})}, {"w1": "e u _", "w2": "e _ u*"}),
            ({"e": P(4)}, {"w1": "e _ _", "w2": "e _ _"}),
        ],
    ),
    "rotary heads": (
        ROTARY,
        [
            (
                {
                    "r": sx.groups.ScaledRotation(per={"h": 3, "f": 2}),
                    "vo": GL(4, per={"h": 3}),
                    "s": O(8),
                },
                ROTARY_SPECS,
            ),
            ({"h": P(3)}, {"q": "h _ _ _", "k": "h _ _ _", "v": "(h _) _", "o": "_ (h _)"}),
        ],
    ),
    "stream of LayerNorm": (STREAM, [({"s": O(8, fix="mean"), "u": P(10)}, STREAM_SPECS)]),
    "proper rotations": (STREAM, [({"s": sx.groups.SpecialOrthogonal(8), "u": P(10)}, STREAM_SPECS)]),
    "squared ReLU": (
        {"w": (5, 3), "b": (5,), "o": (2, 5)},
        [({"h": D(5)}, {"w": "h _", "b": "h", "o": "_ h^-2"})],
    ),
    "root of a scale": ({"w": (5, 3), "o": (2, 5)}, [({"h": D(5)}, {"w": "h^0.5 _", "o": "_ h*"})]),
    "scales of either sign": (
        {"w": (5, 3), "o": (2, 5)},
        [({"h": sx.groups.NonzeroDiagonal(5)}, {"w": "h _", "o": "_ h*"})],
    ),
    "powers of two": ({"w": (5, 3), "o": (2, 5)}, [({"h": D(5, dyadic=True)}, {"w": "h _", "o": "_ h*"})]),
    "layers by index": (
        {"w0": (6, 3), "ws": (2, 6, 6), "w2": (2, 6)},
        [
            ({"h": group(6, per={"l": 3})}, {"w0": "h[0] _", "ws": "l h[1:] h[:-1]*", "w2": "_ h[2]*"})
            for group in (D, P)
        ],
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_every_group_and_notation_is_matched(float64, name):
    shapes, parts = OTHERS[name]
    for seed in range(3):
        tree = drawn(shapes, seed)
        symmetries = [sx.NetworkSymmetry(spaces, specs, tree) for spaces, specs in parts]
        elsewhere = moved(symmetries, tree, jax.random.key(seed))
        found = sx.symmetry.match(elsewhere, tree, symmetries)
        assert apart(found.params, tree) < 1e-6
        # The steps, with JAX, and the record say the same as the parameters.
        assert apart(found.act(elsewhere), tree) < 1e-6
        assert found.before == pytest.approx(apart(elsewhere, tree), rel=1e-9)


def test_the_element_of_a_single_symmetry_moves_one_network_to_the_other(float64):
    tree = drawn({"a": (4, 20), "b": (15, 4)}, 0)
    (symmetry,) = adapter(tree)
    element = symmetry.sample(jax.random.key(1))
    found = sx.symmetry.match(tree, symmetry.act(element, tree), symmetry)
    np.testing.assert_allclose(found.element["rank"][0], element["rank"][0], atol=1e-8)
    np.testing.assert_allclose(found.element["rank"][1], element["rank"][1], atol=1e-8)
    assert found.settled
    assert found.sweeps > 0


@pytest.mark.parametrize("name", mostly_slow(NETWORKS, ("ReLU", "tanh", "adapter")))
def test_unlike_networks_end_no_farther_than_they_began_and_steps_describe_the_result(float64, name):
    shapes, make = NETWORKS[name]
    one, other = drawn(shapes, 0), drawn(shapes, 1)
    found = sx.symmetry.match(one, other, make(one), restarts=1, sweeps=10)
    assert found.distance < found.before
    assert found.distance == pytest.approx(apart(found.params, other), rel=1e-9)
    assert apart(found.act(one), found.params) < 1e-9


@pytest.mark.parametrize("name", mostly_slow(["ReLU", "tanh", "transformer"], ("ReLU", "tanh")))
def test_a_copy_with_noise_comes_as_near_as_the_noise(float64, name):
    shapes, make = NETWORKS[name]
    tree = drawn(shapes, 0)
    symmetries, rng = make(tree), np.random.default_rng(1)
    noisy = {path: x + 1e-3 * rng.normal(size=x.shape) for path, x in tree.items()}
    found = sx.symmetry.match(moved(symmetries, noisy, jax.random.key(0)), tree, symmetries)
    assert found.distance <= apart(noisy, tree) * (1 + 1e-6)


def test_permutations_alone_are_as_good_as_weight_matching(float64):
    one, other = drawn(MLP, 0), drawn(MLP, 1)
    symmetry = mlp(P)(one)[1]
    found, known = sx.symmetry.match(one, other, symmetry), sx.weight_matching(symmetry, one, other)
    assert apart(found.params, other) <= apart(symmetry.act(known.element, one), other) * 1.02


def test_modules_in_single_precision_with_offsets_and_other_leaves_keep_their_kinds():
    params = {
        "gain": jnp.array([0.5, -0.2, 0.3]),
        "read": np.arange(6, dtype=np.float32).reshape(2, 3) + 1,
        "steps": 3,
        "name": jnp.tanh,
    }
    symmetry = sx.NetworkSymmetry({"h": D(3)}, {"gain": "h - 1", "read": "_ h*"}, params)
    elsewhere = symmetry.act({"h": jnp.array([2.0, 0.5, 3.0])}, params)
    found = sx.symmetry.match(elsewhere, params, symmetry)
    np.testing.assert_allclose(found.params["gain"], params["gain"], atol=1e-6)
    assert found.params["gain"].dtype == jnp.float32
    assert isinstance(found.params["gain"], jax.Array)
    assert (found.params["steps"], found.params["name"]) == (3, jnp.tanh)
    assert found.distance < 1e-6 < found.before


@pytest.mark.parametrize(("dtype", "size"), [(np.complex64, 1.0), (np.float32, 1e30), (np.float32, 1e-30)])
def test_complex_huge_and_tiny_networks_are_matched(dtype, size):
    rng = np.random.default_rng(0)
    shapes = {"w1": (6, 4), "w2": (2, 6)}
    imaginary = 1j if np.issubdtype(dtype, np.complexfloating) else 0
    tree = {
        k: ((rng.normal(size=s) + imaginary * rng.normal(size=s)) * size).astype(dtype)
        for k, s in shapes.items()
    }
    symmetries = [sx.models.mlp_symmetry(tree, ["w1", "w2"], group=group) for group in (D, P)]
    found = sx.symmetry.match(moved(symmetries, tree, jax.random.key(0)), tree, symmetries)
    assert found.before > 0.1
    assert found.distance < 1e-6


def test_what_a_search_found_is_matched_as_it_is(float64):
    tree = drawn({"w1": (5, 3), "b1": (5,), "w2": (2, 5)}, 0)
    x = np.random.default_rng(1).normal(size=(20, 3))
    loss = lambda p: jnp.mean(jnp.tanh(jax.nn.relu(x @ p["w1"].T + p["b1"]) @ p["w2"].T))  # noqa: E731
    found = sx.find_symmetries(loss, tree, jax.random.key(0), method="program")
    assert {type(one.group) for one in found} >= {D, P}
    elsewhere = moved([one.symmetry for one in found], tree, jax.random.key(1))
    aligned = sx.symmetry.match(elsewhere, tree, found)
    assert aligned.distance < 1e-6 < aligned.before
    assert sx.symmetry.barrier(loss, elsewhere, tree) > 1e-3
    assert sx.symmetry.barrier(loss, aligned.params, tree) < 1e-12


def test_what_cannot_be_matched_says_what_it_is():
    tree = drawn(MLP, 0)
    symmetry = mlp(D)(tree)[0]
    match = sx.symmetry.match
    with pytest.raises(ValueError, match="w2 in `b` has NaN or infinity: replace them"):
        match(tree, {**tree, "w2": np.full((9, 12), np.nan)}, symmetry)
    with pytest.raises(ValueError, match=r"w3 has shape \(3, 9\) in `a` and \(4, 9\) in `b`: pass two"):
        match(tree, {**tree, "w3": np.ones((4, 9))}, symmetry)
    with pytest.raises(ValueError, match="`a` has the array 'w3', which `b` lacks: pass two networks"):
        match(tree, {k: v for k, v in tree.items() if k != "w3"}, symmetry)
    with pytest.raises(ValueError, match=r"acts on the array 'w1' \(and 3 more\), which is not in the tree"):
        match({"w3": tree["w3"]}, {"w3": tree["w3"]}, symmetry)
    with pytest.raises(ValueError, match="w1: axis 0 has length 7"):
        match({**tree, "w1": np.ones((7, 5))}, {**tree, "w1": np.ones((7, 5))}, symmetry)
    with pytest.raises(TypeError, match="got str as its symmetry: pass a NetworkSymmetry"):
        match(tree, tree, "scales")
    with pytest.raises(TypeError, match="got str among its symmetries: pass"):
        match(tree, tree, [symmetry, "scales"])
    with pytest.raises(ValueError, match="got no symmetry: pass"):
        match(tree, tree, [])
    with pytest.raises(TypeError, match="works on the host, but b1 in `a` is traced: call it outside"):
        jax.jit(lambda w: match(w, tree, symmetry).params)(tree)


def test_the_barrier_is_the_largest_excess_over_the_chord():
    # x^4 - x^2 between -1 and 1/2, at the places of the line, by NumPy.
    t = np.linspace(0, 1, 41)
    x = -1 + 1.5 * t
    values = x**4 - x**2
    expected = np.max(values - (1 - t) * values[0] - t * values[-1])
    loss = lambda p: jnp.sum(p["x"] ** 4 - p["x"] ** 2)  # noqa: E731
    one, other = {"x": jnp.array([-1.0])}, {"x": jnp.array([0.5])}
    assert sx.symmetry.barrier(loss, one, other, points=41) == pytest.approx(expected, abs=1e-6)
    # A convex loss has none.
    assert sx.symmetry.barrier(lambda p: jnp.sum(p["x"] ** 2), one, other) == 0


def test_barriers_of_unlike_networks_say_what_is_wrong():
    loss = lambda p: jnp.sum(p["x"])  # noqa: E731
    with pytest.raises(ValueError, match="`points` must be at least 3, two of which are the ends, got 2"):
        sx.symmetry.barrier(loss, {"x": jnp.ones(2)}, {"x": jnp.ones(2)}, points=2)
    with pytest.raises(ValueError, match=r"x has \(2,\) in `a` and \(3,\) in `b`: pass two networks"):
        sx.symmetry.barrier(loss, {"x": jnp.ones(2)}, {"x": jnp.ones(3)})
    with pytest.raises(ValueError, match="The loss of `b` is nan: pass parameters of a finite loss"):
        sx.symmetry.barrier(loss, {"x": jnp.ones(2)}, {"x": jnp.full(2, jnp.nan)})
