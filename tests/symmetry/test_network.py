"""Every symmetry of the zoo holds to rounding, what is not one is found out, and groups are what they say."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import symmetrax as sx

from .. import zoo
from ..cases import mostly_slow
from ..zoo import MLP, ROWS, Attention, Row, arrays, row, vectors

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(3)


def report(row, symmetry=None, **kwargs):
    params = row.params()
    symmetry = row.symmetry(params) if symmetry is None else symmetry(params)
    return sx.verify(row.loss, params, symmetry, KEY, row.batch(0), **{"trials": 2} | kwargs)


# Every kind of spec and of group once; all rows under `make test-slow`.
QUICK = (
    "relu",
    "tanh",
    "transported silu",
    "equinox MLP, scanned",
    "residual CNN, pooled",
    "grouped and depthwise CNN",
    "scale before BatchNorm",
    "GroupNorm, channels of a group permuted",
    "BatchNorm with statistics",
    "multi-query attention",
    "partly rotary, half",
    "normalized and partly rotary, gains, half",
    "normalized with gains, permuted",
    "fused queries, keys, values",
    "latent attention",
    "gated, fused",
    "transformer, RMSNorm",
    "transformer, scanned",
    "low rank",
    "LSTM, signs",
    "flax CNN",
    "mixture, experts permuted",
    "mixture, inside experts",
)


@pytest.mark.parametrize("row", mostly_slow(ROWS, QUICK), ids=str)
def test_every_row_is_exact(row, float64):
    """Loss, outputs and gradients, at perturbed parameters, on data the action did not see."""
    found = report(row, fresh=row.batch(1), outputs=row.outputs)
    assert found.outcome == "exact"
    assert found.worst <= row.tolerance, str(found)
    assert found.fresh <= row.tolerance
    assert found.moved > 0.01
    assert not found.suspects


@pytest.mark.parametrize(
    "name", mostly_slow(["relu", "gelu", "rotary, half", "transformer, RMSNorm"], ["rotary, half"])
)
def test_in_single_precision_the_laws_hold_to_1e_5(name):
    found = report(row(name))
    assert max(found.invariance, found.identity, found.composition, found.inverse) <= 1e-5, str(found)
    assert found.outcome == "exact"


def transformer(norm):
    return lambda params: zoo.transformer_symmetry(norm, False, params)


# A row, what it is taken for, and how far off the loss is at least: these must not come near a tolerance.
WRONG = {
    "any matrix under rotary embeddings": ("rotary, half", Attention(4, 2).symmetry()),
    "pairs of the other rotary layout": ("rotary, half", Attention(4, 2, "interleaved").symmetry()),
    "all entries turning where some do": ("partly rotary, half", Attention(2, 2, "half").symmetry()),
    "any matrix under normalization": ("normalized queries and keys", Attention(4, 2).symmetry()),
    "rotations where there are gains": ("normalized with gains", Attention(4, 2, normalized=True).symmetry()),
    "heads of a group slowest": (
        "grouped-query attention",
        lambda p: sx.NetworkSymmetry(
            {"qk": sx.groups.GeneralLinear(6, per={"kv": 2})}, {"q": "(_ kv qk) _", "k": "(kv qk*) _"}, p
        ),
    ),
    "scaling before gelu": ("gelu", MLP),
    "scaling before tanh": ("tanh", MLP),
    "signs before relu": ("relu", lambda p: MLP(p, group=sx.groups.SignDiagonal)),
    "any matrix before relu": ("relu", lambda p: MLP(p, group=sx.groups.GeneralLinear)),
    "any matrix before a radial activation": ("radial", lambda p: MLP(p, group=sx.groups.GeneralLinear)),
    "squared relu as if it were relu": ("squared relu", MLP),
    "scales that stay behind": ("transported silu", MLP),
    "a silu gate as if it were relu": ("gated", lambda p: zoo.GATED_MLP(p, relu=True)),
    "any rotation before LayerNorm": ("transformer, LayerNorm", transformer("rms")),
    "channels permuted across groups": (
        "GroupNorm, channels of a group permuted",
        lambda p: sx.NetworkSymmetry(
            {"c": sx.groups.Permutation(6)},
            {"kernel": "c _ _ _", "bias": "c _ _", "gain": "c _ _", "head": "_ c"},
            p,
        ),
    ),
    "a variance scaled like a mean": (
        "BatchNorm with statistics",
        lambda p: sx.NetworkSymmetry(
            {"s": sx.groups.PositiveDiagonal(6)}, {"w": "s _", "mean": "s", "var": "s"}, p
        ),
    ),
    "gates of an LSTM in another order": (
        "LSTM, signs",
        lambda p: sx.NetworkSymmetry(
            {"h": sx.groups.SignDiagonal(5)},
            {"weight_ih": "5+h+10 _", "weight_hh": "5+h+10 h*", "bias": "5+h+10", "head": "_ h*"},
            p,
        ),
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_a_symmetry_is_wrong(name, float64):
    of, symmetry = WRONG[name]
    found = report(row(of), symmetry)
    assert found.outcome == "wrong"
    assert found.invariance > 1e-2
    assert max(found.identity, found.composition, found.inverse) <= 1e-12


def rms_with_gain(p, x):
    return (zoo.normalized(x @ p["w"].T, center=False) * p["gain"]) @ p["head"].T


def test_gains_left_in_are_caught_by_the_gradient_alone(float64):
    """At gains equal to one the loss does not show it, but their gradient does, and it alone is named."""
    net = Row(
        "gain",
        lambda: arrays(w=(6, 3), head=(2, 6))() | {"gain": jnp.ones(6)},
        rms_with_gain,
        vectors(3),
        lambda p: sx.models.residual_stream_symmetry(p, ["w"], ["head"]),
    )
    found = report(net, spread=0.0)
    assert found.invariance <= 1e-12
    assert found.outcome == "wrong"
    assert [name for name, loss_change in found.leaves.items() if loss_change > 1e-9] == ["gain"]
    assert found.leaves["gain"] > 0.3
    assert "gradient of gain" in str(found)
    assert report(net).invariance > 1e-2


@pytest.mark.parametrize("name", ["LayerNorm", "BatchNorm"])
def test_scaling_before_a_norm_with_epsilon_is_approximate(name, float64):
    exact = row(f"scale before {name}")
    norm = zoo.layer_normed if name == "LayerNorm" else zoo.batch_normed
    found = report(Row(name, exact.params, lambda p, x: norm(1e-5, p, x), exact.x, exact.symmetry))
    assert found.outcome == "approximate"
    assert 1e-9 < found.invariance < 1e-4


@pytest.mark.parametrize(
    "name", ["relu", "squared relu", "tanh", "gelu", "transported silu", "gated by relu"]
)
def test_squared_gradients_travel_with_the_squared_element(name, float64):
    """Against the square of the gradient at the place where the parameters went."""
    net = row(name)
    params, batch = net.params(), jax.tree.map(lambda leaf: leaf[:1], net.batch(0))
    symmetry = net.symmetry(params)
    a = symmetry.sample(KEY)
    gradient = jax.grad(net.loss)
    here, there = gradient(params, batch), gradient(symmetry.act(a, params), batch)
    carried = symmetry.transport_squared_gradient(a, jax.tree.map(jnp.square, here))
    for path in there:
        np.testing.assert_allclose(
            carried[path], np.square(there[path]), rtol=1e-10, atol=1e-300, err_msg=path
        )


def test_squared_gradients_do_not_travel_along_groups_that_mix_entries():
    for name in ("linear", "radial", "rotary, half"):
        params = row(name).params()
        symmetry = row(name).symmetry(params)
        with pytest.raises(ValueError, match="mixes the entries of an axis"):
            symmetry.transport_squared_gradient(symmetry.identity(), params)


# Groups, against dense matrices.

PER = {"h": 2}
GROUPS = [
    sx.groups.GeneralLinear(3, PER),
    sx.groups.Orthogonal(4, PER),
    sx.groups.Orthogonal(4, PER, fix="mean"),
    sx.groups.SpecialOrthogonal(3, PER),
    sx.groups.PositiveDiagonal(3, PER),
    sx.groups.PositiveDiagonal(3, PER, dyadic=True),
    sx.groups.NonzeroDiagonal(3, PER),
    sx.groups.SignDiagonal(3, PER),
    sx.groups.Permutation(4, PER),
    sx.groups.ScaledRotation(PER),
    sx.groups.ScaledRotation(PER, unit=True),
]


def dense(group, a):
    """The matrices of an element, of shape (2, n, n): what it does to the columns of the identity."""
    return np.asarray(group.multiply(a, jnp.broadcast_to(jnp.eye(group.size), (2, group.size, group.size))))


def generator(group, x):
    """The matrix whose exponential is `exp(x)`, for one value of the index; None: see other tests."""
    match group:
        case sx.groups.GeneralLinear():
            return x
        case sx.groups.PositiveDiagonal(dyadic=False) | sx.groups.NonzeroDiagonal():
            return np.diag(x)
        case sx.groups.ScaledRotation():
            growth, angle = (0.0, x[0]) if group.unit else x
            return np.array([[growth, -angle], [angle, growth]])
        case sx.groups.Orthogonal(fix=None) | sx.groups.SpecialOrthogonal():
            upper = np.zeros((group.size, group.size))
            upper[np.triu_indices(group.size, 1)] = -x
            return upper - upper.T
    return None


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: f"{group}{getattr(group, 'fix', None) or ''}")
def test_group_operations_are_those_of_matrices(group, float64):
    a, b = (group.sample(key) for key in jax.random.split(KEY))
    one, two = dense(group, a), dense(group, b)
    inverse, eye = np.linalg.inv(one), np.broadcast_to(np.eye(group.size), one.shape)

    def same(element, matrices):
        np.testing.assert_allclose(dense(group, element), matrices, rtol=0, atol=1e-13)

    same(group.identity(), eye)
    same(group.compose(a, b), one @ two)
    same(group.inverse(a), inverse)
    same(group.dual(a), inverse.swapaxes(1, 2))
    same(group.exp(jnp.zeros(group.algebra)), eye)
    if group.compact:
        same(group.dual(a), one)
    for power in (-2.0, 0.0, 3.0):
        if group.abelian:
            same(group.power(a, power), np.linalg.matrix_power(one, int(power)))
        else:
            with pytest.raises(ValueError, match="do not commute"):
                group.power(a, power)
    if group.diagonal:
        same(group.squared(a), one**2)
    x = np.random.default_rng(0).normal(size=group.algebra)
    if generator(group, x[0]) is not None:
        same(group.exp(jnp.asarray(x)), [scipy.linalg.expm(generator(group, part)) for part in x])


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: f"{group}{getattr(group, 'fix', None) or ''}")
def test_samples_move_and_are_well_conditioned(group, float64):
    """No sample is the identity, which would pass every law; conditions are below e^2."""
    samples = jax.vmap(group.sample)(jax.random.split(KEY, 64))
    eye = jnp.broadcast_to(jnp.eye(group.size), (2, group.size, group.size))
    matrices = np.asarray(jax.vmap(group.multiply, (0, None))(samples, eye))
    assert np.min(np.abs(matrices - eye).max(axis=(1, 2, 3))) > 1e-3
    assert np.linalg.cond(matrices).max() <= np.exp(2) * (1 + 1e-9)


def test_rotations_that_keep_the_mean(float64):
    group = sx.groups.Orthogonal(5, fix="mean")
    assert group.algebra == (6,)
    x = jnp.asarray(np.random.default_rng(0).normal(size=6))
    for q in (group.sample(KEY), group.exp(x)):
        np.testing.assert_allclose(q @ q.T, np.eye(5), atol=1e-14)
        np.testing.assert_allclose(q @ np.ones(5), np.ones(5), atol=1e-14)
    np.testing.assert_allclose(group.exp(2 * x), group.exp(x) @ group.exp(x), atol=1e-14)
    jacobian = np.asarray(jax.jacobian(group.exp)(jnp.zeros(6))).reshape(25, 6)
    assert np.linalg.matrix_rank(jacobian) == 6


def test_a_thousand_products_do_not_part_a_matrix_from_its_dual():
    """In single precision: rotations in another basis, whose products stay well-conditioned."""
    group, turns = sx.groups.GeneralLinear(6), sx.groups.Orthogonal(6)
    basis = group.sample(jax.random.key(0))

    def step(a, key):
        q = turns.sample(key)
        return group.compose(a, group.compose(basis, group.compose((q, q), group.inverse(basis)))), None

    (g, dual), _ = jax.jit(lambda keys: jax.lax.scan(step, group.identity(), keys))(
        jax.random.split(KEY, 1000)
    )
    assert g.dtype == jnp.float32
    product = np.asarray(g, float).T @ np.asarray(dual, float)
    np.testing.assert_allclose(product, np.eye(6), rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", mostly_slow(["bfloat16", "float16", "float32"], ["bfloat16"]))
def test_powers_of_two_scale_bit_for_bit(dtype):
    """Back and forth is the same array, and the network says the same to the last bit."""
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), row("relu").params())
    symmetry = MLP(params, group=lambda size: sx.groups.PositiveDiagonal(size, dyadic=True))
    a = jax.jit(symmetry.exp)(jax.random.normal(KEY, symmetry.algebra))
    assert all(np.all(np.log2(s) == np.round(np.log2(s))) for s in map(np.asarray, a.values()))
    there = symmetry.act(a, params)
    x = row("relu").batch(0).x.astype(dtype)
    assert jnp.array_equal(row("relu").net(there, x), row("relu").net(params, x))
    back = symmetry.act(symmetry.inverse(a), there)
    for path in params:
        assert there[path].dtype == dtype
        assert jnp.array_equal(back[path], params[path])
    assert not jnp.array_equal(there["w1"], params["w1"])
    slope = jax.jacobian(lambda x: symmetry.exp(x)["hidden1"])(jnp.zeros(symmetry.algebra))
    np.testing.assert_allclose(slope[:, :5], np.eye(5), rtol=1e-6)


def test_arrays_keep_their_precision():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), row("attention").params())
    symmetry = row("attention").symmetry(params)
    there = symmetry.act(symmetry.sample(KEY), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(there)} == {jnp.dtype(jnp.bfloat16)}


def test_a_compiled_action_and_many_elements_at_once(float64):
    net = row("transformer, RMSNorm")
    params = net.params()
    symmetry = net.symmetry(params)
    keys = jax.random.split(KEY, 3)
    elements = jax.jit(jax.vmap(symmetry.sample))(keys)
    moved = jax.jit(jax.vmap(symmetry.act, (0, None)))(elements, params)
    for k in range(3):
        one = symmetry.act(jax.tree.map(lambda leaf, k=k: leaf[k], elements), params)
        for name, several in jax.tree.leaves_with_path(moved):
            np.testing.assert_allclose(several[k], dict(jax.tree.leaves_with_path(one))[name], atol=1e-13)


def test_a_whole_equinox_model_is_moved(float64):
    """Activations and other leaves that are not arrays pass; the model still runs, and says the same."""
    net = row("equinox MLP")
    model = net.params()
    symmetry = net.symmetry(model)
    there = eqx.filter_jit(symmetry.act)(symmetry.sample(KEY), model)
    assert there.activation is model.activation
    x = net.batch(0).x
    np.testing.assert_allclose(net.net(there, x), net.net(model, x), rtol=1e-12)
    assert not np.allclose(there.layers[0].weight, model.layers[0].weight)


def test_the_algebra_is_cut_into_spaces_and_joined_again(float64):
    params = row("latent attention").params()
    symmetry = row("latent attention").symmetry(params)
    x = jnp.arange(float(symmetry.algebra[0]))
    assert jnp.array_equal(symmetry.join(symmetry.split(x)), x)
    assert symmetry.split(x)["n"].shape == (2, 3, 3)
    only = symmetry.join({"v": symmetry.split(x)["v"]})
    moved = symmetry.act(symmetry.exp(only / only.size), params)
    changed = {name for name in params if not jnp.array_equal(moved[name], params[name])}
    assert changed == {"ukv", "o"}


def test_single_spaces_act_as_in_the_whole(float64):
    """`only`, on merged, concatenated, indexed and doubly bound axes."""
    for name in ("latent attention", "gated by relu", "transformer, scanned", "fused queries, keys, values"):
        params = row(name).params()
        symmetry = row(name).symmetry(params)
        a, e = symmetry.sample(KEY), symmetry.identity()
        for space in symmetry.spaces:
            alone = symmetry.only(space).act({space: a[space]}, params)
            whole = symmetry.act(e | {space: a[space]}, params)
            for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(whole), strict=True):
                np.testing.assert_allclose(one, other, rtol=0, atol=1e-13)


def test_joining_needs_groups_that_commute():
    params = row("relu").params()
    scale, shuffle = MLP(params), MLP(params, group=sx.groups.Permutation, name="unit")
    with pytest.raises(ValueError, match=r"w1.*PositiveDiagonal\(5\) and Permutation\(5\).*do not commute"):
        _ = scale | shuffle
    signs = row("tanh").symmetry(params)
    with pytest.raises(ValueError, match="Both symmetries have a space 'hidden1'"):
        _ = scale | signs
    per = sx.NetworkSymmetry({"h": sx.groups.Permutation(5)}, {"w1": "h _"}, params)
    inner = sx.NetworkSymmetry({"e": sx.groups.PositiveDiagonal(3, per={"h": 5})}, {"w1": "h e"}, params)
    with pytest.raises(ValueError, match="'h' is a space and an index"):
        _ = per | inner


def test_joining_needs_spaces_of_one_size_on_an_axis():
    """Two ways to split one merged axis are no spec."""
    params = {"w": jnp.ones((12, 3))}
    heads = sx.NetworkSymmetry({"h": sx.groups.PositiveDiagonal(4)}, {"w": "(h _) _"}, params)
    groups = sx.NetworkSymmetry({"g": sx.groups.SignDiagonal(2)}, {"w": "(g _) _"}, params)
    with pytest.raises(ValueError, match=r"w: the spec .* have different sizes"):
        _ = heads | groups


def test_joined_symmetries_need_spaces_of_their_own_names():
    params = {"q": jnp.ones((4, 6)), "k": jnp.ones((4, 6)), "v": jnp.ones((4, 6)), "o": jnp.ones((6, 4))}
    both = {**{f"a_{n}": x for n, x in params.items()}, **{f"b_{n}": x for n, x in params.items()}}
    one, two = (sx.models.attention_symmetry(both, *(f"{p}_{n}" for n in "qkvo"), heads=2) for p in "ab")
    with pytest.raises(
        ValueError, match=r"Both symmetries have a space 'qk'.* symmetry.renamed\(\{'qk': ...\}\)"
    ):
        _ = one | two
    joined = one | two.renamed({"qk": "other_qk", "vo": "other_vo"})
    assert joined.algebra == (2 * one.algebra[0],)
    assert joined.specs["b_q"] == "(kv other_qk) _"
    assert joined.specs["a_q"] == "(kv qk) _"
    with pytest.raises(ValueError, match="Two spaces would have the same name"):
        one.renamed({"qk": "vo"})
    with pytest.raises(ValueError, match="There is no space 'qq'"):
        one.renamed({"qq": "x"})
