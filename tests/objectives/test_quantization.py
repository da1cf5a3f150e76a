"""Rounding to few bits against NumPy, its laws, and its error as an objective."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import symmetrax as sx

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHAPES = {"w": (5, 4), "k": (3, 2, 3, 3), "b": (5,)}


def tree(seed, scale=1.0):
    random = np.random.default_rng(seed)
    return {name: scale * random.normal(size=shape) for name, shape in SHAPES.items()}


def by_hand(w, bits, per, axis=0):
    """Every entry is the nearest of all levels of its scale."""
    if per == "channel":
        rows = np.moveaxis(w, axis, 0)
        return np.moveaxis(np.stack([by_hand(row, bits, "tensor") for row in rows]), 0, axis)
    top = np.abs(w).max()
    levels = np.linspace(-top, top, 2**bits - 1)
    return levels[np.abs(w[..., None] - levels).argmin(axis=-1)]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("per", "axis"), [("tensor", 0), ("channel", 0), ("channel", -1)])
def test_every_entry_goes_to_the_nearest_level(float64, bits, per, axis):
    params = tree(bits)
    found = sx.objectives.quantized(params, bits, per=per, axis=axis)
    assert np.array_equal(found["b"], params["b"])
    errors = []
    for name in ("w", "k"):
        expected = by_hand(params[name], bits, per, axis)
        np.testing.assert_allclose(found[name], expected, atol=1e-14)
        errors.append(np.mean((expected - params[name]) ** 2) / np.mean(params[name] ** 2))
    value = sx.objectives.QuantizationError(bits, per, axis=axis)(None, params)
    np.testing.assert_allclose(value, -np.mean(errors), rtol=1e-12)


@hypothesis.settings(max_examples=15)
@hypothesis.given(st.integers(0, 10_000), st.integers(2, 8), st.sampled_from(["tensor", "channel"]))
def test_laws(float64, seed, bits, per):
    params = tree(seed)
    once = sx.objectives.quantized(params, bits, per=per)
    twice = sx.objectives.quantized(once, bits, per=per)
    error = sx.objectives.QuantizationError(bits, per)
    for name in params:
        np.testing.assert_allclose(twice[name], once[name], atol=1e-14)  # idempotent
    assert float(error(None, once)) > -1e-28  # nothing is left to round
    # Arrays of any scale count alike, and signs and orders of rows do not matter.
    scaled = {name: 10.0 ** (k - 1) * w for k, (name, w) in enumerate(params.items())}
    flipped = {name: -w[::-1] for name, w in params.items()}
    for other in (scaled, flipped):
        np.testing.assert_allclose(error(None, other), error(None, params), rtol=1e-9)
    finer = sx.objectives.QuantizationError(bits, "channel")
    # The step of a row is never larger than that of its array, and no error exceeds half a step.
    bound = {name: np.abs(w).max() / (2 ** (bits - 1) - 1) / 2 for name, w in params.items()}
    for name in ("w", "k"):
        there = sx.objectives.quantized(params, bits, per="channel")[name]
        assert np.abs(there - params[name]).max() <= bound[name] * (1 + 1e-12)
    assert float(finer(None, params)) < 0


def test_arrays_by_pattern():
    params = {"layers": [{"up": jnp.ones((2, 2)) / 3, "b": jnp.array([0.1, 1.0])}] * 2}
    params = jax.tree.map(lambda w: w * jnp.array([0.3, 1.0]), params)
    found = sx.objectives.quantized(params, 2, arrays=["layers.{i}.b"])
    for before, after in zip(params["layers"], found["layers"], strict=True):
        assert np.array_equal(after["up"], before["up"])
        np.testing.assert_allclose(after["b"], [0.0, 1.0])
    with pytest.raises(ValueError, match=r"No array is called 'layers.{i}.c'"):
        sx.objectives.quantized(params, 2, arrays=["layers.{i}.c"])


@pytest.mark.parametrize("scale", [0.0, 1e-42, 1e-30, 1e30])
@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_values_and_derivatives_are_finite_at_every_scale(scale, per):
    params = {"w": jnp.asarray(tree(0)["w"], jnp.float32).at[2].set(0.0) * jnp.float32(scale)}
    error = sx.objectives.QuantizationError(4, per)
    value, slope = jax.value_and_grad(lambda p: error(None, p))(params)
    assert np.isfinite(value)
    assert np.all(np.isfinite(slope["w"]))
    assert np.all(np.isfinite(sx.objectives.quantized(params, 4, per=per)["w"]))
    assert (value == 0) == (scale < 1e-38)


def test_dtypes_and_other_leaves_are_kept():
    params = {"w": jnp.ones((2, 2), jnp.bfloat16) / 3, "n": jnp.arange(4).reshape(2, 2), "f": jnp.tanh}
    found = sx.objectives.quantized(params, 4)
    assert found["w"].dtype == jnp.bfloat16
    assert found["n"] is params["n"]
    assert found["f"] is jnp.tanh
    assert float(sx.objectives.QuantizationError(4)(None, {})) == 0


def test_bits_may_be_traced():
    params = jax.tree.map(jnp.asarray, tree(1))
    many = jax.jit(jax.vmap(lambda bits: sx.objectives.QuantizationError(bits)(None, params)))
    values = many(jnp.array([3, 5, 8]))
    for value, bits in zip(values, (3, 5, 8), strict=True):
        np.testing.assert_allclose(value, sx.objectives.QuantizationError(bits)(None, params), rtol=1e-4)
    assert np.all(np.diff(values) > 0)


def test_errors(unchecked):
    with pytest.raises(ValueError, match="`bits` must be between 2 and 16, got 1"):
        sx.objectives.QuantizationError(1)
    with pytest.raises(ValueError, match="`per` must be 'tensor' or 'channel', got 'row'"):
        sx.objectives.quantized({}, 4, per="row")
    with pytest.raises(ValueError, match="Only real floating-point arrays can be quantized, got n"):
        sx.objectives.quantized({"n": jnp.arange(4)}, 4, arrays=["n"])
