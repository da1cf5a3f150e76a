"""Invertible matrices carried past an activation: exact on the batch, measured elsewhere, against NumPy."""

import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import symmetrax as sx

pytestmark = pytest.mark.usefixtures("quick_compilation", "float64")
SLOPE = 0.1


def leaky(z):
    return jnp.where(z > 0, z, SLOPE * z)


def unleaky(h):
    return jnp.where(h > 0, h, h / SLOPE)


def network(sizes, samples, bias=False, seed=0, dtype: Any = float):
    """Parameters (orthogonal rows or columns) with a leaf that no layer owns, and a batch of (x, y)."""
    rng, params = np.random.default_rng(seed), {"other": jnp.arange(3.0)}
    for layer, (n, m) in enumerate(itertools.pairwise(sizes), start=1):
        q = np.linalg.qr(rng.normal(size=(max(n, m), max(n, m))))[0][:m, :n]
        params[f"w{layer}"] = jnp.asarray(q, dtype)
        if bias:
            params[f"b{layer}"] = jnp.asarray(0.3 * rng.normal(size=m), dtype)
    x, y = rng.normal(size=(samples, sizes[0])), rng.normal(size=(samples, sizes[-1]))
    return params, (jnp.asarray(x, dtype), jnp.asarray(y, dtype))


def symmetry_of(params, form, **options):
    layers = range(1, sum(name.startswith("w") for name in params) + 1)
    biases = tuple(f"b{layer}" for layer in layers) if "b1" in params else None
    names, inverse = tuple(f"w{layer}" for layer in layers), options.pop("inverse_activation", unleaky)
    options = {"activation": leaky, "form": form, "biases": biases} | options
    return sx.symmetry.ActivationGL.of(params, names, inverse_activation=inverse, **options)


def features(params, x):
    """NumPy: what every layer computes before its activation, samples as rows; the outputs come last."""
    h, signals = np.asarray(x), []
    for layer in range(1, sum(name.startswith("w") for name in params) + 1):
        z = h @ np.asarray(params[f"w{layer}"]).T + np.asarray(params.get(f"b{layer}", 0.0))
        signals.append(z)
        h = np.where(z > 0, z, SLOPE * z)
    return signals


def loss(params, batch):
    """Mean square, in jax.numpy because gradients are taken of it."""
    h, last = batch[0], sum(name.startswith("w") for name in params)
    for layer in range(1, last + 1):
        h = h @ params[f"w{layer}"].T + params.get(f"b{layer}", 0.0)
        h = leaky(h) if layer < last else h
    return jnp.mean((h - batch[1]) ** 2)


def gap(x, y):
    return np.linalg.norm(np.asarray(x) - np.asarray(y)) / np.linalg.norm(np.asarray(y))


def widest_gap(one, two):
    return max(gap(one[name], two[name]) for name in two)


def coordinates(symmetry, norm, seed=0):
    """Algebra coordinates whose blocks have this Frobenius norm."""
    blocks = (
        np.random.default_rng((seed, layer)).normal(size=n * n) for layer, n in enumerate(symmetry.sizes)
    )
    return jnp.asarray(np.concatenate([norm * x / np.linalg.norm(x) for x in blocks]))


@eqx.filter_jit
def act(symmetry, a, params, batch):
    return symmetry.act(a, params, batch)


@eqx.filter_jit
def holds(symmetry, params, batch):
    return symmetry.holds(params, batch)


def verdict(symmetry, params, batch):
    found = holds(symmetry, params, batch)
    return symmetry.reasons[int(found.code)], float(found.residual)


# Where the action is exact. Square: as many samples as units. Biased: fewer samples than anything.
EXACT = {
    "square": ((9, 6, 6, 3), 6, False),
    "biased": ((9, 8, 6, 3), 5, True),
}


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("form", ["output", "preimage"])
def test_outputs_and_loss_stay_on_the_batch(form, name):
    params, batch = network(*EXACT[name])
    symmetry = symmetry_of(params, form)
    for seed in range(5):
        a = symmetry.exp(coordinates(symmetry, 0.3, seed))
        there = act(symmetry, a, params, batch)
        assert gap(features(there, batch[0])[-1], features(params, batch[0])[-1]) <= 1e-12
        assert abs(float(loss(there, batch) / loss(params, batch)) - 1) <= 1e-12
        moved = [gap(there[name], params[name]) for name in symmetry.weights]
        assert min(moved) > 1e-2
    assert verdict(symmetry, params, batch)[0] == "holds"


@pytest.mark.parametrize("form", ["output", "preimage"])
def test_outputs_stay_in_single_precision(form):
    with jax.enable_x64(False):
        params, batch = network((9, 8, 6, 3), 4, dtype=np.float32)
        symmetry = symmetry_of(params, form)
        there = act(symmetry, symmetry.exp(coordinates(symmetry, 0.1)), params, batch)
        assert all(leaf.dtype == np.float32 for leaf in there.values())
        assert gap(features(there, batch[0])[-1], features(params, batch[0])[-1]) <= 1e-5
        assert verdict(symmetry, params, batch)[0] == "holds"


@pytest.mark.parametrize(
    ("form", "name"), [("output", "square"), ("preimage", "square"), ("preimage", "biased")]
)
def test_the_laws_hold_for_the_parameters(form, name):
    params, batch = network(*EXACT[name])
    symmetry = symmetry_of(params, form)
    a, b = (symmetry.exp(coordinates(symmetry, 0.3, seed)) for seed in (1, 2))
    there, after = act(symmetry, a, params, batch), act(symmetry, b, params, batch)
    assert widest_gap(act(symmetry, symmetry.identity(), params, batch), params) <= 1e-12
    assert widest_gap(act(symmetry, symmetry.inverse(a), there, batch), params) <= 1e-11
    once, twice = act(symmetry, symmetry.compose(a, b), params, batch), act(symmetry, a, after, batch)
    assert widest_gap(once, twice) <= 1e-11
    assert widest_gap(once, act(symmetry, symmetry.compose(b, a), params, batch)) > 1e-2


def test_refitting_fewer_samples_than_units_obeys_the_laws_on_the_batch():
    """What U does beyond the batch depends on the way taken; nothing that the network computes does."""
    params, batch = network(*EXACT["biased"])
    symmetry = symmetry_of(params, "output")
    a, b = (symmetry.exp(coordinates(symmetry, 0.3, seed)) for seed in (1, 2))
    once = act(symmetry, symmetry.compose(a, b), params, batch)
    twice = act(symmetry, a, act(symmetry, b, params, batch), batch)
    back = act(symmetry, symmetry.inverse(a), act(symmetry, a, params, batch), batch)
    for one, two in ((once, twice), (back, params)):
        for x, y in zip(features(one, batch[0]), features(two, batch[0]), strict=True):
            assert gap(x, y) <= 1e-12
        assert widest_gap(one, two) > 1e-4
    assert widest_gap(act(symmetry, symmetry.identity(), params, batch), params) <= 1e-12


@pytest.mark.parametrize("form", ["output", "preimage"])
def test_gradients_are_pulled_along(form):
    params, batch = network((6, 6, 2), 6)
    symmetry = symmetry_of(params, form)

    @jax.jit
    def both(a, params):
        there = jax.grad(loss)(symmetry.act(a, params, batch), batch)
        return there, symmetry.transport_gradient(a, params, jax.grad(loss)(params, batch), batch)

    for seed in range(3):
        there, pulled = both(symmetry.exp(coordinates(symmetry, 0.3, seed)), params)
        assert max(gap(pulled[name], there[name]) for name in symmetry.weights) <= 1e-10
        assert gap(there["w2"], jax.grad(loss)(params, batch)["w2"]) > 1e-2


@pytest.mark.parametrize("solver", ["qr", "svd", "gram"])
@pytest.mark.parametrize("samples", [3, 6, 20])
def test_both_forms_are_the_published_formulas(solver, samples):
    """One hidden layer; exactly on enough samples, else on the batch, and "output" changes U by the least."""
    params, batch = network((6, 6, 2), samples)
    x, v, u = (np.asarray(a) for a in (batch[0].T, params["w1"], params["w2"]))

    def s(z):
        return np.where(z > 0, z, SLOPE * z)

    output = symmetry_of(params, "output", solver=solver)
    xi = coordinates(output, 0.5)
    a = scipy.linalg.expm(np.asarray(xi).reshape(6, 6))
    there = act(output, output.exp(xi), params, batch)
    new = s(a @ v @ x)
    np.testing.assert_allclose(there["w1"], a @ v, rtol=0, atol=1e-13)
    least = u + (u @ s(v @ x) - u @ new) @ np.linalg.pinv(new)
    np.testing.assert_allclose(there["w2"], least, rtol=0, atol=1e-10)
    published = u @ s(v @ x) @ np.linalg.pinv(new)
    np.testing.assert_allclose(there["w2"] @ new, published @ new, rtol=0, atol=1e-11)

    preimage = symmetry_of(params, "preimage", solver=solver)
    there = act(preimage, preimage.exp(xi), params, batch)
    h = a @ s(v @ x)
    published = np.where(h > 0, h, h / SLOPE) @ np.linalg.pinv(x)
    np.testing.assert_allclose(there["w2"], u @ np.linalg.inv(a), rtol=0, atol=1e-13)
    np.testing.assert_allclose(there["w1"] @ x, published @ x, rtol=0, atol=1e-11)
    unseen = np.eye(6) - x @ np.linalg.pinv(x)
    np.testing.assert_allclose(there["w1"], published + v @ unseen, rtol=0, atol=1e-11)


@pytest.mark.parametrize("form", ["output", "preimage"])
def test_three_layers_keep_their_outputs_where_stale_features_would_not(form):
    """Layers 5-6-8-7 on 4 samples. With features of the old weights: 1e-3 and more, not 1e-14."""
    rng, params = np.random.default_rng(0), {}
    for layer, shape in enumerate([(6, 5), (8, 6), (7, 8)], start=1):
        params[f"w{layer}"] = jnp.asarray(rng.normal(size=shape))
    batch = jnp.asarray(rng.normal(size=(4, 5)))
    symmetry = symmetry_of(params, form)
    element = symmetry.exp(coordinates(symmetry, 0.1))
    there = act(symmetry, element, params, batch)
    assert gap(features(there, batch)[-1], features(params, batch)[-1]) <= 1e-12

    stale, x = dict(params), np.asarray(batch).T
    for layer, (a, _) in enumerate(element, start=1):
        v, u, a = (np.asarray(m) for m in (stale[f"w{layer}"], stale[f"w{layer + 1}"], a))
        old = np.where(v @ x > 0, v @ x, SLOPE * (v @ x))
        if form == "output":
            new = np.where(a @ v @ x > 0, a @ v @ x, SLOPE * (a @ v @ x))
            stale[f"w{layer}"], stale[f"w{layer + 1}"] = a @ v, u @ old @ np.linalg.pinv(new)
        else:
            h = a @ old
            stale[f"w{layer}"] = np.where(h > 0, h, h / SLOPE) @ np.linalg.pinv(x)
            stale[f"w{layer + 1}"] = u @ np.linalg.inv(a)
        x = np.asarray(params[f"w{layer}"]) @ x
        x = np.where(x > 0, x, SLOPE * x)
    assert gap(features(stale, batch)[-1], features(params, batch)[-1]) > 1e-4


@pytest.mark.parametrize("form", ["output", "preimage"])
def test_the_loss_is_flat_along_the_orbit(form):
    params, batch = network(*EXACT["biased"])
    symmetry = symmetry_of(params, form)
    xi = coordinates(symmetry, 0.3)

    @jax.jit
    def along(t):
        moved, velocity = jax.jvp(lambda t: symmetry.act(symmetry.exp(t * xi), params, batch), (t,), (1.0,))
        gradient = jax.grad(loss)(moved, batch)
        return [jnp.stack([jnp.vdot(gradient[k], velocity[k]), jnp.abs(gradient[k]).sum()]) for k in velocity]

    for t in (0.0, 1.0):
        slopes = np.array(along(t))
        assert np.abs(slopes[:, 0]).max() > 1e-3  # every weight's own part is large; their sum is not
        assert abs(slopes[:, 0].sum()) <= 1e-12 * max(1.0, np.abs(slopes).max())


def test_the_drift_beyond_the_width_is_measured_and_grows_linearly():
    """200 samples on 16 units: about 1 % of the outputs when the coordinates have norm 0.1."""
    rng = np.random.default_rng(0)
    params = {"w1": rng.uniform(-1, 1, (16, 64)) / 8, "w2": rng.uniform(-1, 1, (10, 16)) / 4}
    params, x = jax.tree.map(jnp.asarray, params), jnp.asarray(rng.normal(size=(200, 64)))
    symmetry = symmetry_of(params, "output")
    found = []
    for norm in (0.1, 0.01, 0.001):
        there = act(symmetry, symmetry.exp(coordinates(symmetry, norm)), params, x)
        found.append(gap(features(there, x)[-1], features(params, x)[-1]))
    assert 5e-3 < found[0] < 5e-2
    assert found[0] / found[1] == pytest.approx(10, rel=0.2)
    assert found[1] / found[2] == pytest.approx(10, rel=0.02)
    reason, residual = verdict(symmetry, params, x)
    assert reason == "layer 1: the batch has more samples than the layer has units"
    assert 5e-3 < residual < 5e-2


def test_one_minus_t_is_not_the_inverse_of_exp_t():
    params, batch = network(*EXACT["square"])
    symmetry = symmetry_of(params, "preimage")
    outputs, wrong = features(params, batch[0])[-1], []
    for norm in (0.1, 0.01):
        xi = coordinates(symmetry, norm)
        right = symmetry.exp(xi)
        there = act(symmetry, right, params, batch)
        assert gap(features(there, batch[0])[-1], outputs) <= 1e-13
        generators = np.split(np.asarray(xi), np.cumsum([n * n for n in symmetry.sizes])[:-1])
        published = tuple(
            (jnp.asarray(np.eye(6) + t.reshape(6, 6)), jnp.asarray(np.eye(6) - t.reshape(6, 6).T))
            for t in generators
        )
        there = act(symmetry, published, params, batch)
        wrong.append(gap(features(there, batch[0])[-1], outputs))
    assert wrong[0] > 1e-5
    assert wrong[0] / wrong[1] == pytest.approx(100, rel=0.2)


def test_elements_are_well_conditioned_pairs_with_their_inverse_transposed():
    symmetry = sx.symmetry.ActivationGL(("a", "b", "c"), (8, 6))
    assert symmetry.algebra == (100,)
    generators = np.split(np.asarray(coordinates(symmetry, 0.7)), [64])
    for element in (symmetry.sample(jax.random.key(0)), symmetry.exp(coordinates(symmetry, 0.7))):
        for (g, dual), n in zip(element, symmetry.sizes, strict=True):
            np.testing.assert_allclose(g.T @ dual, np.eye(n), rtol=0, atol=1e-14)
            assert np.linalg.cond(g) <= np.e**2
    for (g, _), t, n in zip(symmetry.exp(coordinates(symmetry, 0.7)), generators, (8, 6), strict=True):
        np.testing.assert_allclose(g, scipy.linalg.expm(t.reshape(n, n)), rtol=0, atol=1e-14)
    for one, two in zip(symmetry.exp(symmetry.zero()), symmetry.identity(), strict=True):
        assert np.array_equal(one, two)


WIDE = "the batch has more samples than the layer has"


def test_holds_names_the_layer_that_the_batch_is_too_wide_for():
    params, batch = network((9, 8, 3, 8, 2), 5)
    assert verdict(symmetry_of(params, "output"), params, batch)[0] == f"layer 2: {WIDE} units"
    reason, residual = verdict(symmetry_of(params, "preimage"), params, batch)
    assert reason == f"layer 3: {WIDE} inputs"
    assert residual > 1e-4
    enough, batch = network((9, 4, 8, 2), 5, bias=True)  # a bias is one more unit
    assert verdict(symmetry_of(enough, "output"), enough, batch)[0] == "holds"
    without = {name: leaf for name, leaf in enough.items() if not name.startswith("b")}
    assert verdict(symmetry_of(without, "output"), without, batch)[0] == f"layer 1: {WIDE} units"


def test_holds_names_the_layer_that_lost_rank():
    params, (x, _) = network(*EXACT["square"])
    twice = x.at[3].set(x[1])
    assert verdict(symmetry_of(params, "output"), params, twice)[0] == "layer 1: the features have lost rank"
    assert verdict(symmetry_of(params, "preimage"), params, twice)[0] == "layer 1: the inputs have lost rank"
    silent = params | {"w2": params["w2"].at[4].set(0.0)}
    assert verdict(symmetry_of(params, "output"), silent, x)[0] == "layer 2: the features have lost rank"
    silent = params | {"w1": params["w1"].at[4].set(0.0)}
    assert verdict(symmetry_of(params, "preimage"), silent, x)[0] == "layer 2: the inputs have lost rank"
    assert verdict(symmetry_of(params, "output"), params, x * jnp.nan)[0].startswith("layer 1: the features")


def test_the_svd_solver_is_exact_on_repeated_samples():
    params, (x, _) = network(*EXACT["square"])
    twice = x.at[3].set(x[1])
    for form in ("output", "preimage"):
        reason, residual = verdict(symmetry_of(params, form, solver="svd"), params, twice)
        assert "lost rank" in reason
        assert residual <= 1e-12


def test_holds_names_the_layer_whose_values_leave_the_domain():
    params, batch = network(*EXACT["square"])
    symmetry = symmetry_of(params, "preimage", activation=jnp.tanh, inverse_activation=jnp.arctanh)
    small = params | {"w1": 0.1 * params["w1"]}
    assert verdict(symmetry, small, batch)[0] == "holds"
    domain = "a value left the domain of the inverse activation"
    assert verdict(symmetry, params | {"w1": 30 * params["w1"]}, batch)[0] == f"layer 1: {domain}"
    assert verdict(symmetry, small | {"w2": 300 * params["w2"]}, batch)[0] == f"layer 2: {domain}"
    assert verdict(symmetry_of(params, "output", activation=jnp.tanh), params, batch)[0] == "holds"


def test_holds_reports_outputs_that_rounding_spoils():
    """A condition number of 1e12: QR keeps the digits that an explicit pseudo-inverse loses."""
    params, (x, _) = network((9, 8, 3), 5)
    near = x.at[3].set(x[1] + 1e-12 * x[2])
    reason, residual = verdict(symmetry_of(params, "output"), params, near)
    assert reason == "holds"
    assert residual <= 1e-14
    reason, residual = verdict(symmetry_of(params, "output", solver="svd"), params, near)
    assert reason == "the outputs on the batch change by more than rounding"
    assert residual > 1e-7


def test_other_leaves_stay_and_elements_can_be_mapped_over():
    params, batch = network((9, 8, 3), 5)
    nested = {"layers": [params["w1"], (params["w2"],)], "count": jnp.array(7), "other": params["other"]}
    symmetry = sx.symmetry.ActivationGL(
        ("layers.0", "layers.1.0"), (8,), activation=leaky, inputs=lambda batch: batch["x"]
    )
    xi = jnp.stack([coordinates(symmetry, 0.3, seed) for seed in range(3)])
    mapped = jax.jit(
        jax.vmap(lambda xi: symmetry.act(symmetry.exp(xi), nested, {"x": batch[0]})),
    )(xi)
    assert jax.tree.structure(mapped) == jax.tree.structure(nested)
    assert np.array_equal(mapped["count"], [7, 7, 7])
    assert mapped["count"].dtype == nested["count"].dtype
    assert np.array_equal(mapped["other"], np.tile(params["other"], (3, 1)))
    plain = symmetry_of(params, "output")
    for seed in range(3):
        alone = act(plain, plain.exp(xi[seed]), params, batch)
        np.testing.assert_allclose(mapped["layers"][0][seed], alone["w1"], rtol=0, atol=1e-13)
        np.testing.assert_allclose(mapped["layers"][1][0][seed], alone["w2"], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("form", "samples"), [("output", 5), ("output", 40), ("preimage", 5)])
def test_teleport_raises_the_gradient_and_is_rejected_where_the_loss_moves(form, samples):
    params, batch = network((9, 6, 3), samples)
    weights = {name: params[name] for name in ("w1", "w2")}
    symmetry, guard = symmetry_of(weights, form), sx.Guard(jump=10.0, tolerance=1e-9)

    @jax.jit
    def jump(weights, batch):
        return sx.teleport(loss, weights, symmetry, batch, search=sx.search.Ascent(3, 0.01), guard=guard)

    there, info = jump(weights, batch)
    if samples == 5:
        assert info.outcome == 0
        assert info.after > 1.01 * info.before
        assert info.loss_change <= 1e-12
    else:
        assert sx.teleportation.OUTCOMES[info.outcome].startswith("not invariant")
        assert all(np.array_equal(there[name], weights[name]) for name in weights)


def test_what_does_not_fit_is_rejected_with_a_reason():
    params, batch = network((9, 8, 3), 5)
    two = ("w1", "w2")
    for options, message in (
        ({"weights": ("w1",), "sizes": ()}, "at least two weights"),
        ({"weights": two, "sizes": (8, 3)}, "one size for each hidden layer"),
        ({"weights": two, "sizes": (8,), "biases": ("b1",)}, "one name .or None. for each"),
        ({"weights": two, "sizes": (8,), "form": "preimage"}, "pass inverse_activation"),
    ):
        with pytest.raises(ValueError, match=message):
            sx.symmetry.ActivationGL(**options)
    symmetry = sx.symmetry.ActivationGL(two, (8,))
    with pytest.raises(ValueError, match=r"no leaves \['v'\]; their leaves are \['other', 'w1', 'w2'\]"):
        sx.symmetry.ActivationGL.of(params, ("w1", "v"))
    with pytest.raises(ValueError, match=r"w1 must have shape \(7, any\), got \(8, 9\)"):
        sx.symmetry.ActivationGL(two, (7,)).holds(params, batch)
    with pytest.raises(ValueError, match="pass the batch"):
        symmetry.act(symmetry.identity(), params)
    with pytest.raises(ValueError, match=r"shape \(samples, features\), got \(5, 3, 3\): pass inputs="):
        symmetry.holds(params, batch[0].reshape(5, 3, 3))
    with pytest.raises(ValueError, match=r"w1 takes 9 features, the inputs have shape \(5, 8\)"):
        symmetry.holds(params, batch[0][:, :8])


def test_options_are_words(unchecked):
    for option in ("form", "solver"):
        with pytest.raises(ValueError, match=f"`{option}` must be .*, got 'no'"):
            sx.symmetry.ActivationGL(("w1", "w2"), (8,), **{option: "no"})  # type: ignore
