"""Ready specs: the group that an activation has, the order of layers, and normalization in both modes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import symmetrax as sx

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)


def mlp(activation, **options):
    return eqx.nn.MLP(3, 2, 4, 2, activation=activation, key=KEY, **options)


@pytest.mark.parametrize(
    ("activation", "group"),
    [
        (jax.nn.relu, sx.groups.PositiveDiagonal),
        (jax.nn.leaky_relu, sx.groups.PositiveDiagonal),
        (eqx.nn.PReLU(), sx.groups.PositiveDiagonal),
        (lambda x: x, sx.groups.PositiveDiagonal),
        (jnp.tanh, sx.groups.SignDiagonal),
        (jnp.sin, sx.groups.SignDiagonal),
        (jax.nn.hard_tanh, sx.groups.SignDiagonal),
    ],
)
def test_the_activation_of_a_model_chooses_the_group(activation, group):
    model = mlp(activation)
    symmetry = sx.models.mlp_symmetry(model)
    assert {type(g) for g in symmetry.spaces.values()} == {group}
    assert str(sx.models.mlp_symmetry(model, group=group)) == str(symmetry)
    assert "hidden1" in jax.jit(lambda: symmetry.identity())()
    x = jax.random.normal(KEY, (5, 3))
    there = symmetry.act(symmetry.sample(KEY), model)
    np.testing.assert_allclose(jax.vmap(there)(x), jax.vmap(model)(x), atol=1e-5)


def test_a_filtered_model_does_not_tell_its_activation():
    params = eqx.filter(mlp(jax.nn.gelu), eqx.is_inexact_array)
    with pytest.raises(ValueError, match=r"activation` of these parameters is None.*Pass the whole model"):
        sx.models.mlp_symmetry(params)
    assert sx.models.mlp_symmetry(params, group=sx.groups.Permutation).spaces[
        "hidden1"
    ] == sx.groups.Permutation(4)


@pytest.mark.parametrize("activation", [jax.nn.gelu, jax.nn.silu, jax.nn.softplus, jax.nn.relu6, jnp.cos])
def test_an_activation_without_scalings_or_signs_is_an_error_that_says_how_to_choose(activation):
    model = mlp(activation)
    for group in (None, sx.groups.PositiveDiagonal, sx.groups.SignDiagonal):
        with pytest.raises(ValueError, match=r"neither scalings nor flips of sign.*group=Permutation"):
            sx.models.mlp_symmetry(model, group=group)
    assert sx.models.mlp_symmetry(model, group=sx.groups.Permutation).spaces[
        "hidden1"
    ] == sx.groups.Permutation(4)


def test_degrees_and_contradictions_are_told():
    squared = mlp(lambda x: jax.nn.relu(x) ** 2)
    with pytest.raises(ValueError, match="have scalings with degree=2, but no scalings of degree 1"):
        sx.models.mlp_symmetry(squared)
    assert sx.models.mlp_symmetry(squared, degree=2).specs["layers.1.weight"] == "hidden2 hidden1^-2"
    with pytest.raises(ValueError, match="have flips of sign, but no scalings of degree 1"):
        sx.models.mlp_symmetry(mlp(jnp.tanh), group=sx.groups.PositiveDiagonal)
    with pytest.raises(ValueError, match="have scalings with degree=1, but no flips of sign"):
        sx.models.mlp_symmetry(mlp(jax.nn.relu), group=sx.groups.SignDiagonal)
    with pytest.raises(ValueError, match="cannot be called on a number"):
        sx.models.mlp_symmetry(eqx.tree_at(lambda m: m.activation, mlp(jnp.tanh), lambda x, key: x))
    with pytest.raises(ValueError, match="parameters for each unit"):
        sx.models.mlp_symmetry(mlp(eqx.nn.PReLU()), group=sx.groups.Permutation)


def shapes(**sizes):
    return {name.replace("_", "."): jnp.ones(size) for name, size in sizes.items()}


def test_layers_of_a_dict_follow_one_another_in_the_one_order_of_their_shapes():
    params = shapes(hidden=(5, 4), head=(2, 5), stem=(4, 3), bias=(4,))
    assert sx.models.mlp_symmetry(params).specs == {
        "stem": "hidden1 _",
        "hidden": "hidden2 hidden1*",
        "head": "_ hidden2*",
        "bias": "hidden1",
    }
    turned = {name: x.T for name, x in params.items()}
    assert sx.models.mlp_symmetry(turned, layout="in out").specs["head"] == "hidden2* _"


def test_numbers_are_an_order_and_so_are_lists():
    square = {f"w{k}": jnp.ones((4, 4)) for k in range(12)} | {f"b{k}": jnp.ones(4) for k in range(12)}
    specs = sx.models.mlp_symmetry(square).specs
    assert specs["w2"] == "hidden3 hidden2*"
    assert specs["w10"] == "hidden11 hidden10*"
    assert specs["b10"] == "hidden11"
    assert "b11" not in specs
    nested = {f"Dense_{k}": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)} for k in range(11)}
    assert sx.models.mlp_symmetry(nested).specs["Dense_10.kernel"] == "_ hidden10*"
    assert sx.models.mlp_symmetry(nested).specs["Dense_9.bias"] == "hidden10"
    assert sx.models.mlp_symmetry([jnp.ones((4, 4))] * 3).specs["1"] == "hidden2 hidden1*"


def test_layers_of_a_dict_without_an_order_are_an_error():
    square = {name: jnp.ones((4, 4)) for name in ("first", "second", "third")}
    with pytest.raises(ValueError, match=r"several orders, such as .*Give the paths of `weights`"):
        sx.models.mlp_symmetry(square)
    assert sx.models.mlp_symmetry(square, ["first", "second", "third"]).specs["third"] == "_ hidden2*"
    with pytest.raises(ValueError, match="follow one another in no order"):
        sx.models.mlp_symmetry(shapes(a=(4, 3), b=(2, 5)))
    with pytest.raises(ValueError, match=r"biases of .* cannot be inferred"):
        sx.models.mlp_symmetry(shapes(a=(4, 3), b=(4, 4), x=(4,), y=(4,)), ["a", "b"])


def test_only_some_layers_may_have_a_bias():
    specs = sx.models.mlp_symmetry(shapes(w1=(4, 3), w2=(4, 4), w3=(2, 4), b2=(4,))).specs
    assert specs["b2"] == "hidden2"


def cnn(training, size):
    """A residual network whose kernels are followed by batch normalization; statistics are arrays of it."""

    def normalize(p, name, x):
        mean, var = (x.mean((0, 2, 3)), x.var((0, 2, 3))) if training else (p[f"m{name}"], p[f"v{name}"] ** 2)
        shape = (1, -1, 1, 1)
        x = (x - mean.reshape(shape)) / jnp.sqrt(var.reshape(shape) + 1e-12)
        return x * p[f"g{name}"].reshape(shape) + p[f"h{name}"].reshape(shape)

    def conv(x, w):
        return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME")

    def loss(p, batch):
        x = jax.nn.relu(normalize(p, "s", conv(batch, p["stem"])))
        inside = jax.nn.relu(normalize(p, "a0", conv(x, p["a0"])))
        x = jax.nn.relu(x + normalize(p, "b0", conv(inside, p["b0"])))
        return jnp.mean(jnp.tanh(x.mean((2, 3)) @ p["head"].T) ** 2 * jnp.arange(1, 3))

    stream, inner = size
    widths = {"s": stream, "a0": inner, "b0": stream}
    params = {f"{kind}{name}": jnp.ones(n) for kind in "gmhv" for name, n in widths.items()}
    kernels = {"stem": (stream, 3, 3, 3), "a0": (inner, stream, 3, 3), "b0": (stream, inner, 3, 3)}
    return loss, params | {name: jnp.ones(s) for name, s in kernels.items()} | {"head": jnp.ones((2, stream))}


@pytest.mark.parametrize(
    ("training", "group"),
    [
        (True, sx.groups.PositiveDiagonal),
        (False, sx.groups.Permutation),
        pytest.param(True, sx.groups.Permutation, marks=pytest.mark.slow),
        pytest.param(False, sx.groups.PositiveDiagonal, marks=pytest.mark.slow),
    ],
)
def test_channels_of_a_network_with_batch_normalization_in_both_modes(training, group):
    with jax.enable_x64(True):
        loss, params = cnn(training, (4, 3))
        symmetry = sx.models.residual_cnn_symmetry(
            params,
            ["stem"],
            "a{i}",
            "b{i}",
            "head",
            stream_vectors=["gs", "hs", "gb0", "hb0"],
            inner_vectors=["ga{i}", "ha{i}"],
            normalized=True,
            stream_statistics=["ms", "vs", "mb0", "vb0"],
            inner_statistics=["ma{i}", "va{i}"],
            group=group,
        )
        batch = jax.random.normal(KEY, (3, 3, 4, 4))
        report = sx.verify(loss, params, symmetry, KEY, batch, trials=1)
        assert report.outcome == "exact", str(report)
    scaled = group is sx.groups.PositiveDiagonal
    assert symmetry.specs["b0"] == ("_ inner0* _ _" if scaled else "stream inner0* _ _")
    assert ("ms" in symmetry.specs) == (not scaled)


def test_some_kernels_may_be_normalized():
    _, params = cnn(True, (4, 3))
    specs = sx.models.residual_cnn_symmetry(
        params, ["stem"], "a{i}", "b{i}", "head", normalized=["a{i}"]
    ).specs
    assert specs["stem"] == "stream _ _ _"
    assert specs["a0"] == "_ stream* _ _"
    with pytest.raises(ValueError, match="`normalized` names 'c'"):
        sx.models.residual_cnn_symmetry(params, ["stem"], "a{i}", "b{i}", "head", normalized=["c"])


def test_the_scale_before_a_normalization_with_running_statistics_scales_them():
    def loss(p, batch):
        x = (batch @ p["w"].T + p["b"] - p["mean"]) / jnp.sqrt(p["var"] ** 2)
        return jnp.sum(jnp.tanh(x) ** 2 * jnp.arange(4))

    with jax.enable_x64(True):
        params = {"w": jnp.ones((4, 3)), "b": jnp.ones(4), "mean": jnp.ones(4), "var": jnp.ones(4)}
        symmetry = sx.models.normalized_scale_symmetry(params, ["w"], ["b", "mean", "var"], groups=4)
        batch = jax.random.normal(KEY, (5, 3))
        assert sx.verify(loss, params, symmetry, KEY, batch, trials=1).outcome == "exact"
        variances = sx.models.normalized_scale_symmetry(
            params, ["w"], ["b", "mean"], variances=["var"], groups=4
        )
        assert variances.specs["var"] == "(scale^2 _)"
        squared = dict(params, var=params["var"] * 3)
        moved = variances.act({"scale": jnp.full(4, 2.0)}, squared)
        np.testing.assert_allclose(moved["var"], 12.0)
