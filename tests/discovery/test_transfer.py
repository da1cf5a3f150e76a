"""A small twin is searched, and what it has is carried to the large model: the same as a search of that."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import symmetrax as sx

from ..architectures import apart, layer_norm, said

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)
WORDS = 7


def arrays(shapes):
    rng = np.random.default_rng(0)
    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32), shapes, is_leaf=is_shape
    )


def words(key):
    return jax.random.randint(key, (6,), 0, WORDS)


def rows(key):
    return jax.random.normal(key, (6, 3))


def attend(q, k, v):
    """Queries (time, heads, size), keys and values (time, groups, size)."""
    q = q.reshape(len(q), k.shape[1], -1, q.shape[-1])
    weights = jax.nn.softmax(jnp.einsum("tgce,sge->gcts", q, k))
    return jnp.einsum("gcts,sge->tgce", weights, v).reshape(len(q), -1)


def rms(x):
    return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-5)


def gpt(layers, width, heads):
    """Fused projections, biases, gains, tied embeddings, as in the benchmark."""

    def linear(rows, columns):
        return {"w": (rows, columns), "b": (columns,)}

    norm = {"g": (width,), "b": (width,)}
    block = {"n1": norm, "qkv": linear(width, 3 * width), "out": linear(width, width)}
    block |= {"n2": norm, "up": linear(width, 4 * width), "down": linear(4 * width, width)}
    params = arrays({"words": (WORDS, width), "blocks": [block] * layers, "last": norm})

    def loss(p, tokens):
        def linear(x, w):
            return x @ w["w"] + w["b"]

        x = p["words"][tokens]
        for b in p["blocks"]:
            fused = jnp.split(linear(layer_norm(x, b["n1"]["g"], b["n1"]["b"]), b["qkv"]), 3, axis=-1)
            q, k, v = (part.reshape(len(x), heads, -1) for part in fused)
            x = x + linear(attend(q, k, v), b["out"])
            x = x + linear(jax.nn.gelu(linear(layer_norm(x, b["n2"]["g"], b["n2"]["b"]), b["up"])), b["down"])
        return said(layer_norm(x, p["last"]["g"], p["last"]["b"]) @ p["words"].T, tokens)

    return loss, params, words


def separate(layers, width, heads, groups, size, hidden):
    """Grouped-query attention and a gated MLP, projections (outputs, inputs), in a stream that rotates."""
    block = {"q": (heads * size, width), "k": (groups * size, width), "v": (groups * size, width)}
    block |= {
        "o": (width, heads * size),
        "gate": (hidden, width),
        "up": (hidden, width),
        "down": (width, hidden),
    }
    params = arrays(
        {
            "embed": (WORDS, width),
            "layers": {f"layer_{k}": block for k in range(layers)},
            "head": (WORDS, width),
        }
    )

    def loss(p, tokens):
        x = p["embed"][tokens]
        for b in p["layers"].values():
            y = rms(x)
            q, k, v = ((y @ b[name].T).reshape(len(x), -1, size) for name in "qkv")
            x = x + attend(q, k, v) @ b["o"].T
            y = rms(x)
            x = x + (jax.nn.silu(y @ b["gate"].T) * (y @ b["up"].T)) @ b["down"].T
        return said(rms(x) @ p["head"].T, tokens)

    return loss, params, words


def scanned(layers, width, heads, size, hidden):
    """Layers stacked, with heads on an axis of their own."""
    block = {"q": (width, heads, size), "k": (width, heads, size), "v": (width, heads, size)}
    block |= {"o": (heads, size, width), "up": (width, hidden), "down": (hidden, width)}
    params = arrays(
        {"in": (3, width), "blocks": {name: (layers, *s) for name, s in block.items()}, "out": (width, 3)}
    )

    def loss(p, x):
        def step(x, b):
            q, k, v = (jnp.einsum("td,dhe->the", rms(x), b[name]) for name in "qkv")
            weights = jax.nn.softmax(jnp.einsum("the,she->hts", q, k))
            x = x + jnp.einsum("hts,she,hed->td", weights, v, b["o"])
            return x + jax.nn.relu(rms(x) @ b["up"]) @ b["down"], None

        y, _ = jax.lax.scan(step, x @ p["in"], p["blocks"])
        return apart(y @ p["out"], x)

    return loss, params, rows


def perceptron(widths):
    """Layers in a list, of which each meets the next: an input and an output layer are in it too."""
    ends = [3, *widths, 3]
    params = arrays([{"w": (n, m), "b": (n,)} for m, n in itertools.pairwise(ends)])

    def loss(p, x):
        y = x
        for k, layer in enumerate(p):
            y = y @ layer["w"].T + layer["b"]
            y = jax.nn.relu(y) if k + 1 < len(p) else y
        return apart(y, x)

    return loss, params, rows


def searched(model):
    loss, params, batch = model
    return sx.find_symmetries(loss, params, KEY, batch=batch, method="program")


@functools.cache
def found_in(model, *sizes):
    return searched(model(*sizes))


def carried(large, **options):
    loss, params, batch = large
    return sx.discovery.transfer(found_in(gpt, 1, 6, 2), loss, params, KEY, batch=batch, **options)


def listed(found):
    """Groups and specs, without the numbers in the names of spaces."""
    return sorted(
        (
            type(one.group).__name__,
            one.group.size,
            one.group.lengths,
            tuple(
                sorted((path, re.sub(r"\b([a-z])\d+\b", r"\1", t)) for path, t in one.symmetry.specs.items())
            ),
        )
        for one in found
    )


MODELS = {
    "fused": (gpt, (1, 6, 2), (3, 16, 4), {"heads": 4}),
    "only deeper": (separate, (1, 6, 4, 2, 3, 5), (2, 6, 4, 2, 3, 5), {}),
    "grouped queries": (separate, (1, 6, 4, 2, 3, 5), (2, 10, 6, 2, 4, 9), {"heads": 6}),
    "both numbers of heads": (separate, (1, 6, 4, 2, 3, 5), (1, 10, 6, 2, 4, 9), {"heads": [6, 2]}),
    "one key for all": (separate, (1, 6, 2, 1, 3, 5), (1, 10, 4, 1, 4, 9), {"heads": 4}),
    "scanned": (scanned, (2, 6, 2, 3, 5), (3, 10, 4, 4, 9), {}),
    "two layers": (separate, (2, 6, 4, 2, 3, 5), (3, 8, 2, 1, 4, 5), {"heads": 2}),
    "perceptron": (perceptron, ((5, 4),), ((7, 6, 8, 5),), {}),
}


@pytest.mark.parametrize("name", MODELS)
def test_what_is_carried_is_what_a_search_of_the_large_model_finds(name):
    model, small, large, options = MODELS[name]
    loss, params, batch = model(*large)
    there = sx.discovery.transfer(found_in(model, *small), loss, params, KEY, batch=batch, **options)
    assert listed(there) == listed(searched((loss, params, batch))), "\n".join(there.notes)
    assert all(one.certificate.outcome == "exact" for one in there)
    assert not any("arried" in note for note in there.notes)
    # Three checks, a point, its idle arrays, the points of certificates, and three per kind of group.
    kinds = {type(one.group) for one in there}
    assert there.evaluations <= 3 + 1 + 1 + 3 + 3 * len(kinds) + 3


def test_the_number_of_heads_is_asked_for_where_shapes_leave_it_open():
    with pytest.raises(ValueError, match=r"heads x size has several solutions. Pass `heads=`"):
        carried(gpt(2, 16, 4))
    with pytest.raises(ValueError, match="`heads` has 11, which divides no axis"):
        carried(gpt(2, 16, 4), heads=11)


def test_a_wrong_number_of_heads_fails_its_certificate():
    there = carried(gpt(1, 16, 4), heads=2)
    assert not any(isinstance(one.group, sx.groups.GeneralLinear) for one in there)
    assert any("certificates failed" in note and "GeneralLinear" in note for note in there.notes)
    # The norms and the units do not depend on it.
    assert {"PositiveDiagonal(16)", "Permutation(64)"} <= {str(one.group) for one in there}


def test_names_that_fit_nowhere_are_an_error():
    loss, params, batch = gpt(1, 6, 2)
    found = found_in(gpt, 1, 6, 2)
    with pytest.raises(
        ValueError, match="No array of the large model answers to one of the twin: it has a, the"
    ):
        sx.discovery.transfer(found, lambda p: jnp.sum(p["a"] ** 2), {"a": jnp.ones(3)}, KEY)
    with pytest.raises(ValueError, match="nothing to transfer"):
        sx.discovery.transfer([], loss, params, KEY, batch=batch)


def test_what_does_not_fit_is_noted():
    """A large model without the biases of the twin, and with a larger kernel than a matrix."""
    shapes = {"w": (3, 4), "b": (4,), "out": (4, 3)}

    def loss(p, x):
        y = jax.nn.relu(x @ p["w"] + p["b"]) @ p["out"]
        return apart(jax.nn.relu(y @ p.get("more", jnp.arange(12.0).reshape(3, 4))) @ p["end"], x)

    small = arrays(shapes | {"more": (3, 5), "end": (5, 3)})
    found = sx.find_symmetries(loss, small, KEY, batch=rows, method="program")
    large = arrays(shapes | {"w": (3, 8), "b": (8,), "out": (8, 3), "end": (4, 3)})
    there = sx.discovery.transfer(found, loss, large, KEY, batch=rows)
    assert {str(one.group) for one in there} == {"PositiveDiagonal(8)", "Permutation(8)"}
    assert any("No array of the large model answers to more" in note for note in there.notes)
    assert any("certificates failed" in note and "end" in note for note in there.notes)
    wrong = arrays(shapes | {"w": (3, 8), "b": (8,), "out": (9, 3), "more": (3, 4), "end": (4, 3)})

    def other(p, x):
        return loss({**p, "out": p["out"][:8]}, x)

    there = sx.discovery.transfer(found, other, wrong, KEY, batch=rows)
    assert any("PositiveDiagonal(4) of the twin: no lengths fit its axes" in note for note in there.notes)
    kinds = {"GeneralLinear(3)", "PositiveDiagonal(4)", "Permutation(4)"}
    assert {str(one.group) for one in there} == kinds


def test_a_part_of_a_discovery_can_be_carried():
    loss, params, batch = gpt(2, 8, 2)
    some = [one for one in found_in(gpt, 1, 6, 2) if isinstance(one.group, sx.groups.PositiveDiagonal)]
    there = sx.discovery.transfer(some, loss, params, KEY, batch=batch)
    assert [str(one.group) for one in there] == ["PositiveDiagonal(8)"] * 4
