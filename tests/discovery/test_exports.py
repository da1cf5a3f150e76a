"""Exports of a discovery: applied by hand in NumPy they keep the loss, and optax takes the steps they say."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import symmetrax as sx

from ..architectures import ARCHITECTURES, apart, said

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)
WIDTH, HEADS, SIZE, EXPERTS, HIDDEN, WORDS = 6, 2, 3, 4, 5, 9


@functools.cache
def found_in(name):
    one = ARCHITECTURES[name]
    return sx.find_symmetries(one.loss, one.params, KEY, batch=one.batch, method="program")


def decoder_params(layers=1, gains=True):
    """Heads and experts on axes of their own, gains before all projections, an embedding and a head."""
    rng = np.random.default_rng(0)
    shapes = {"q": (WIDTH, HEADS, SIZE), "k": (WIDTH, HEADS, SIZE), "v": (WIDTH, HEADS, SIZE)}
    shapes |= {"o": (HEADS, SIZE, WIDTH), "router": (WIDTH, EXPERTS)}
    shapes |= {"w1": (EXPERTS, WIDTH, HIDDEN), "b1": (EXPERTS, HIDDEN), "w2": (EXPERTS, HIDDEN, WIDTH)}
    shapes |= {"n1": (WIDTH,), "n2": (WIDTH,)} if gains else {}

    def block():
        return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}

    ends = {"embed": (WORDS, WIDTH), "head": (WIDTH, WORDS)} | ({"n3": (WIDTH,)} if gains else {})
    params = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in ends.items()}
    return params | {"blocks": [block() for _ in range(layers)]}


def decoder_loss(p, tokens):
    def norm(x, gain):
        return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-5) * (1.0 if gain is None else gain)

    x = p["embed"][tokens]
    for b in p["blocks"]:
        y = norm(x, b.get("n1"))
        q, k, v = (jnp.einsum("td,dhe->the", y, b[name]) for name in "qkv")
        weights = jax.nn.softmax(jnp.einsum("the,she->hts", q, k))
        x = x + jnp.einsum("hts,she,hed->td", weights, v, b["o"])
        y = norm(x, b.get("n2"))
        inner = jax.nn.relu(jnp.einsum("td,xdh->txh", y, b["w1"]) + b["b1"])
        x = x + jnp.einsum("tx,txh,xhd->td", jax.nn.softmax(y @ b["router"]), inner, b["w2"])
    return said(norm(x, p.get("n3")) @ p["head"], tokens)


def words(key):
    return jax.random.randint(key, (7,), 0, WORDS)


@functools.cache
def decoder_found(gains):
    params = decoder_params(gains=gains)
    return sx.find_symmetries(decoder_loss, params, KEY, batch=words, method="program")


def named(params):
    return dict(zip(sx_names(params), jax.tree.leaves(params), strict=True))


def sx_names(params):
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    return [".".join(str(getattr(key, "key", getattr(key, "idx", ""))) for key in path) for path in paths]


def moved(arrays, place, space, matrices):
    """A copy of the arrays with `matrices`, of shape (*per, n, n), acting at an exported place."""
    w = np.array(arrays[place["array"]], float) + place.get("offset", 0.0)
    positions = np.full((), place["start"])
    for size, stride in zip(place["sizes"], place["strides"], strict=True):
        positions = positions[..., None] + stride * np.arange(size)
    last = np.moveaxis(w, place["axis"], -1)
    others = [axis for axis in range(w.ndim) if axis != place["axis"]]
    element = place.get("element")
    for values in np.ndindex(*space["per"].values()):
        at = dict(zip(space["per"], values, strict=True))
        first = next(iter(at), "")
        if isinstance(element, int):
            if at.pop(first) != element:
                continue
        elif element is not None:
            kept = range(*slice(*element).indices(space["per"][first]))
            if at[first] not in kept:
                continue
            at[first] = kept.index(at[first])
        pick, names, masks = positions, list(place["names"]), [slice(None)] * len(others)
        for index, value in at.items():
            if index in names:
                pick = np.take(pick, value, axis=names.index(index))
                names.remove(index)
            else:
                other = place["indices"][index]
                along = np.arange(w.shape[other["axis"]]) // other["stride"] % other["length"]
                masks[others.index(other["axis"])] = along == value
        pick = np.moveaxis(pick, names.index(space["space"]), -1).reshape(-1, space["size"])
        grid = np.ix_(*(np.arange(n)[mask] for n, mask in zip(last.shape[:-1], masks, strict=True)))
        for units in pick:
            here = (*(axis[..., None] for axis in grid), units)
            last[here] = last[here] @ matrices[values].T
    return arrays | {place["array"]: np.moveaxis(last, -1, place["axis"]) - place.get("offset", 0.0)}


def scales(rng, space, power):
    drawn = np.exp(rng.normal(size=(*space["per"].values(), space["size"])) / 2)
    return lambda exponent: np.eye(space["size"]) * drawn[..., None] ** (power * exponent)


def rotation(rng, space):
    q = np.linalg.qr(rng.normal(size=(*space["per"].values(), space["size"], space["size"])))[0]
    if space.get("fix") != "mean":
        return q
    ones = np.ones((space["size"], 1)) / np.sqrt(space["size"])
    # Around the vector of ones.
    basis = np.linalg.qr(np.hstack([ones, rng.normal(size=(space["size"], space["size"] - 1))]))[0]
    inner = np.linalg.qr(rng.normal(size=(space["size"] - 1, space["size"] - 1)))[0]
    return (
        basis
        @ np.block([[np.eye(1), np.zeros((1, len(inner)))], [np.zeros((len(inner), 1)), inner]])
        @ basis.T
    )


def permutation(rng, space):
    flat = [np.eye(space["size"])[rng.permutation(space["size"])] for _ in np.ndindex(*space["per"].values())]
    return np.reshape(flat, (*space["per"].values(), space["size"], space["size"]))


def check(loss, params, batch, found):
    """All exports, acting one after the other by hand, keep the loss at other parameters."""
    rng = np.random.default_rng(1)
    structure = jax.tree.structure(params)
    arrays = {name: rng.normal(size=leaf.shape) for name, leaf in named(params).items()}
    with jax.enable_x64(True):
        batch = jax.tree.map(lambda x: x.astype(float) if x.dtype.kind == "f" else x, batch(KEY))

        def value(arrays):
            leaves = [jnp.asarray(arrays[name], float) for name in sx_names(params)]
            return float(jax.jit(loss)(jax.tree.unflatten(structure, leaves), batch))

        start = value(arrays)
        for pair in sx.discovery.scaling_pairs(found, params):
            json.dumps(pair)
            drawn = scales(rng, pair, 1)
            assert pair["produce"]
            for place in (*pair["produce"], *pair["consume"]):
                arrays = moved(arrays, place, pair, drawn(place["power"]))
        assert abs(value(arrays) - start) < 1e-8 * (1 + abs(start))
        for space in sx.discovery.rotation_sites(found, params)["rotations"]:
            turn = rotation(rng, space)
            for place in space["places"]:
                arrays = moved(arrays, place, space, turn)
        assert abs(value(arrays) - start) < 1e-8 * (1 + abs(start))
        for space in sx.discovery.permutation_specs(found, params):
            order = permutation(rng, space)
            for place in space["places"]:
                arrays = moved(arrays, place, space, order)
        assert abs(value(arrays) - start) < 1e-8 * (1 + abs(start))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scales_rotations_and_permutations_keep_the_loss(name):
    one = ARCHITECTURES[name]
    check(one.loss, one.params, one.batch, found_in(name))


@pytest.mark.parametrize("gains", [True, False])
def test_those_of_a_decoder_keep_the_loss(gains):
    check(decoder_loss, decoder_params(gains=gains), words, decoder_found(gains))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_splits_of_an_axis_do_not_overlap(name):
    params = ARCHITECTURES[name].params
    splits = sx.discovery.head_splits(found_in(name), params)
    json.dumps(splits)
    for path, here in splits.items():
        counts = {axis: np.zeros(length, int) for axis, length in enumerate(params[path].shape)}
        for split in here:
            positions = np.full((), split["start"])
            for size, stride in zip(split["sizes"], split["strides"], strict=True):
                positions = positions[..., None] + stride * np.arange(size)
            counts[split["axis"]][positions] += 1
            assert split["count"] * split["size"] == positions.size
        assert all(count.max() <= 1 for count in counts.values()), path


def test_splits_name_heads_segments_and_experts():
    splits = sx.discovery.head_splits(
        found_in("vision_transformer"), ARCHITECTURES["vision_transformer"].params
    )
    assert [(s["axis"], s["start"], s["count"], s["size"]) for s in splits["qkv"]] == [
        (1, start, 2, 3) for start in (0, 6, 12)
    ]
    splits = sx.discovery.head_splits(decoder_found(True), decoder_params())
    heads = {"axis": 1, "start": 0, "sizes": [2], "strides": [1], "kinds": ["heads"], "count": 2, "size": 1}
    assert splits["blocks.0.q"] == [heads]
    assert [s["kinds"] for s in splits["blocks.0.w1"]] == [["experts"]]


def test_a_scan_has_layers():
    params, loss = scanned()
    found = sx.find_symmetries(loss, params, KEY, batch=rows, method="program")
    splits = sx.discovery.head_splits(found, params)
    assert [s["kinds"] for s in splits["up"]] == [["layers"]]
    numbers, reasons = sx.discovery.muon_dimension_numbers(found, params)
    assert numbers == {
        "up": optax.contrib.MuonDimensionNumbers((1,), (2,)),
        "down": optax.contrib.MuonDimensionNumbers((1,), (2,)),
        "in": None,
        "out": None,
    }
    assert set(reasons) == {"in", "out"}


def scanned():
    rng = np.random.default_rng(0)
    shapes = {"in": (3, 6), "up": (3, 6, 5), "down": (3, 5, 6), "out": (6, 3)}
    params = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}

    def loss(p, x):
        def step(x, w):
            y = x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-5)
            return x + jax.nn.relu(y @ w["up"]) @ w["down"], None

        y, _ = jax.lax.scan(step, x @ p["in"], {"up": p["up"], "down": p["down"]})
        return apart(y @ p["out"], x)

    return params, loss


def rows(key):
    return jax.random.normal(key, (8, 3))


def newton_schulz(g):
    """The iteration of Jordan's Muon, in NumPy, for one matrix (inputs, outputs)."""
    x = g / np.linalg.norm(g)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x * np.sqrt(max(1, g.shape[1] / g.shape[0]))


def test_muon_orthogonalizes_heads_and_experts():
    params = decoder_params()
    numbers, reasons = sx.discovery.muon_dimension_numbers(decoder_found(True), params)
    gradient = jax.grad(decoder_loss)(params, words(KEY))
    optimizer = optax.contrib.muon(1.0, muon_weight_dimension_numbers=numbers, nesterov=False)
    updates = optimizer.update(gradient, optimizer.init(params), params)[0]["blocks"][0]
    g = {name: np.asarray(leaf, float) for name, leaf in gradient["blocks"][0].items()}
    for name in "qkv":
        expected = np.stack([newton_schulz(g[name][:, h]) for h in range(HEADS)], 1)
        np.testing.assert_allclose(updates[name], -expected, atol=1e-4)
    for name in ("o", "w1", "w2"):
        expected = np.stack([newton_schulz(part) for part in g[name]])
        np.testing.assert_allclose(updates[name], -expected, atol=1e-4)
    np.testing.assert_allclose(updates["router"], -newton_schulz(g["router"]), atol=1e-4)
    assert numbers["embed"] is numbers["head"] is numbers["n3"] is numbers["blocks"][0]["b1"] is None
    assert "looked up" in reasons["embed"]
    assert not {"blocks.0.q", "blocks.0.w1"} & set(reasons)


def test_muon_says_where_heads_are_merged():
    params, found = ARCHITECTURES["vision_transformer"].params, found_in("vision_transformer")
    numbers, reasons = sx.discovery.muon_dimension_numbers(found, params)
    assert numbers["qkv"] == optax.contrib.MuonDimensionNumbers((0,), (1,))
    assert reasons["qkv"] == "axis 1 holds 2 x 3 entries: reshape it for a matrix per head"
    assert numbers["patch"] is numbers["positions"] is numbers["head"] is None
    forced = sx.discovery.muon_dimension_numbers(found, params, matrices=["patch"])
    assert forced.numbers["patch"] == optax.contrib.MuonDimensionNumbers((0,), (1,))


def test_muon_takes_a_batch_that_no_group_shows():
    one = ARCHITECTURES["gemma"]
    without = sx.discovery.muon_dimension_numbers(found_in("gemma"), one.params)
    assert "name them in `batch`" in without.reasons["q"]
    given = sx.discovery.muon_dimension_numbers(found_in("gemma"), one.params, batch={"gate_up": [1]})
    assert given.numbers["gate_up"] == optax.contrib.MuonDimensionNumbers((0,), (2,))
    assert "gate_up" not in given.reasons


def test_muon_tells_the_layout_from_biases():
    rng = np.random.default_rng(0)
    shapes = {"a": (5, 3), "b": (5,), "m": (4, 5), "c": (4,), "o": (3, 4)}
    params = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}

    def loss(p, x):
        x = jax.nn.relu(x @ p["a"].T + p["b"])
        return apart(jax.nn.relu(x @ p["m"].T + p["c"]) @ p["o"].T, rows(KEY))

    found = sx.find_symmetries(loss, params, KEY, batch=rows, method="program")
    numbers, _ = sx.discovery.muon_dimension_numbers(found, params)
    assert numbers["m"] == optax.contrib.MuonDimensionNumbers((1,), (0,))


def test_gains_block_rotations_until_they_are_folded():
    params, found = decoder_params(), decoder_found(True)
    refused = {
        entry["size"]: entry["reason"] for entry in sx.discovery.rotation_sites(found, params)["refused"]
    }
    assert "gains of norms, or their biases (" in refused[WIDTH]
    assert all(gain in refused[WIDTH] for gain in ("blocks.0.n1", "blocks.0.n2", "n3"))
    assert "ReLU" in refused[HIDDEN]
    # Folded by the mapping itself: divide the gains by themselves, and multiply what reads them.
    arrays = {name: np.asarray(leaf, float) for name, leaf in named(params).items()}
    before = decoder_loss(params, words(KEY))
    for pair in sx.discovery.scaling_pairs(found, params):
        if pair["group"] == "PositiveDiagonal" and len(pair["produce"]) == 1:
            gain = np.abs(arrays[pair["produce"][0]["array"]])
            for place in (*pair["produce"], *pair["consume"]):
                arrays = moved(arrays, place, pair, np.eye(WIDTH) * gain[:, None] ** -place["power"])
    assert all(np.allclose(np.abs(arrays[name]), 1) for name in ("blocks.0.n1", "blocks.0.n2", "n3"))
    leaves = [jnp.asarray(arrays[name], jnp.float32) for name in sx_names(params)]
    after = decoder_loss(jax.tree.unflatten(jax.tree.structure(params), leaves), words(KEY))
    assert abs(after - before) < 1e-4
    sites = sx.discovery.rotation_sites(decoder_found(False), decoder_params(gains=False))
    streams = [entry for entry in sites["rotations"] if entry["group"] == "Orthogonal"]
    assert [entry["size"] for entry in streams] == [WIDTH]
    assert {place["array"] for place in streams[0]["places"]} >= {"embed", "head", "blocks.0.router"}


def test_other_parameters_are_an_error():
    found = found_in("vision_transformer")
    params = ARCHITECTURES["vision_transformer"].params
    with pytest.raises(ValueError, match="'head', which is not in the parameters"):
        sx.discovery.head_splits(found, {name: leaf for name, leaf in params.items() if name != "head"})
    with pytest.raises(ValueError, match=r"qkv.*pass the parameters that were searched"):
        sx.discovery.head_splits(found, params | {"qkv": jnp.ones((6, 17))})
    with pytest.raises(ValueError, match="Did you mean 'patch'"):
        sx.discovery.muon_dimension_numbers(found, params, matrices=["pach"])
