"""Rotations of a stream whose normalizations have trainable gains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import symmetrax as sx

pytestmark = pytest.mark.usefixtures("quick_compilation")

WIDTH, KEY = 6, jax.random.key(0)
WRITERS, READERS = ("words", "o", "down"), ("q", "k", "v", "up", "out")
SPECS = dict.fromkeys(WRITERS, "_ d") | dict.fromkeys(READERS, "d _")


def parameters(dtype=np.float64):
    rng = np.random.default_rng(0)
    shapes = {"words": (5, WIDTH), "up": (WIDTH, 8), "down": (8, WIDTH), "out": (WIDTH, 5)}
    shapes |= dict.fromkeys("qkvo", (WIDTH, WIDTH)) | dict.fromkeys(("g1", "g2", "g3", "b"), (WIDTH,))
    found = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    found |= {name: np.exp(0.3 * found[name]) for name in ("g1", "g2", "g3")}
    return {name: jnp.asarray(leaf, dtype) for name, leaf in found.items()}


def rms(x):
    return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)


def layer(x):
    return rms(x - x.mean(-1, keepdims=True))


def loss(norm, p, tokens):
    x = p["words"][tokens]
    y = p["g1"] * norm(x)
    scores = (y @ p["q"]) @ (y @ p["k"]).T
    x = x + jax.nn.softmax(scores) @ (y @ p["v"]) @ p["o"]
    y = p["g2"] * norm(x) + (p["b"] if norm is layer else 0)
    x = x + jax.nn.gelu(y @ p["up"]) @ p["down"]
    logits = p["g3"] * norm(x) @ p["out"]
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[::-1, None], -1))


GAINS = {"q": ("g1", 0), "k": ("g1", 0), "v": ("g1", 0), "up": ("g2", 0), "out": ("g3", 0)}


def symmetry(params, fix=None, gains=GAINS, specs=SPECS):
    return sx.symmetry.Gained(
        sx.NetworkSymmetry({"d": sx.groups.Orthogonal(WIDTH, fix=fix)}, specs, params), gains, like=params
    )


@pytest.mark.parametrize("norm", [rms, layer])
def test_all_laws_hold_in_double_precision(norm):
    with jax.enable_x64(True):
        params, tokens = parameters(), jnp.array([0, 3, 1, 4])
        options = (
            {}
            if norm is rms
            else {
                "fix": "mean",
                "gains": GAINS | {"b": ("g2", 0, -1)},
                "specs": SPECS | {"b": "d"},
            }
        )
        one = symmetry(params, **options)
        report = sx.verify(lambda p, x: loss(norm, p, x), params, one, KEY, tokens, spread=0.1, trials=4)
        assert report.outcome == "exact", report
        assert report.worst < 1e-10
        assert report.moved > 0.1


def test_the_effective_matrices_rotate_and_gains_do_not_move():
    with jax.enable_x64(True):
        params = parameters()
        one = symmetry(params)
        element = one.sample(KEY)
        there, rotation = one.act(element, params), np.asarray(element["d"])
        for gain in ("g1", "g2", "g3"):
            assert np.array_equal(there[gain], params[gain])
        for path, (gain, _) in GAINS.items():
            effective = np.asarray(params[gain])[:, None] * np.asarray(params[path])
            expected = (rotation @ effective) / np.asarray(params[gain])[:, None]
            assert np.allclose(there[path], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("missing", GAINS)
def test_a_reader_without_its_gains_is_no_symmetry(missing):
    with jax.enable_x64(True):
        params, tokens = parameters(), jnp.array([0, 3, 1, 4])
        one = symmetry(params, gains={path: gain for path, gain in GAINS.items() if path != missing})
        report = sx.verify(lambda p, x: loss(rms, p, x), params, one, KEY, tokens, spread=0.1, trials=2)
        assert report.outcome == "wrong"


def test_half_floats_are_rounded_once():
    params = parameters(jnp.bfloat16)
    one = symmetry(params)
    same = one.act(one.identity(), params)
    assert all(np.array_equal(same[name], params[name]) for name in params)


def test_it_teleports():
    params, tokens = parameters(np.float32), jnp.array([0, 3, 1, 4])
    one = symmetry(params)
    moved, step = sx.teleport(
        lambda p, x: loss(rms, p, x), params, one, tokens, search=sx.search.Ascent(steps=2, rate=1e-2)
    )
    assert abs(float(step.loss_change)) < 1e-3
    assert np.array_equal(moved["g1"], params["g1"])


def test_gains_of_zero_and_mistakes_are_told():
    params = parameters(np.float32)
    one = symmetry(params)
    assert one.reasons[int(one.holds(params).code)] == "holds"
    assert one.reasons[int(one.holds(params | {"g2": params["g2"].at[1].set(0)}).code)] == "a gain is zero"
    with pytest.raises(ValueError, match="a vector as long as axis 1"):
        symmetry(params, gains={"up": ("g2", 1)})
    with pytest.raises(ValueError, match="the symmetry acts on it"):
        symmetry(params, specs=SPECS | {"g2": "d"})
    with pytest.raises(ValueError, match="g9"):
        symmetry(params, gains={"up": ("g9", 0)})
    with pytest.raises(ValueError, match="1 or -1, got 2"):
        symmetry(params, gains={"up": ("g2", 0, 2)})
