"""Matching of units: permuted copies come back exactly, whatever shares their axes; the rest is reported."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import symmetrax as sx

from ..cases import mostly_slow

pytestmark = pytest.mark.usefixtures("quick_compilation")
P = sx.groups.Permutation

#: Spaces, specs and shapes.
NETWORKS = {
    "recurrent": (
        {"h": P(16)},
        {"wx": "h _", "wh": "h h", "wo": "_ h"},
        {"wx": (16, 3), "wh": (16, 16), "wo": (2, 16)},
    ),
    "recurrent matrix alone": ({"h": P(16)}, {"wh": "h h"}, {"wh": (16, 16)}),
    "gated, merged axes": (
        {"h": P(8)},
        {"wi": "(4 h) _", "wh": "(4 h) h", "b": "(4 h)"},
        {"wi": (32, 3), "wh": (32, 8), "b": (32,)},
    ),
    "scanned layers, indexed": (
        {"h": P(6, per={"l": 3})},
        {"w0": "h[0] _", "ws": "l h[1:] h[:-1]", "w2": "_ h[2]"},
        {"w0": (6, 3), "ws": (2, 6, 6), "w2": (2, 6)},
    ),
    "recurrent, for every layer": (
        {"h": P(8, per={"l": 3})},
        {"wx": "l h _", "wh": "l h h"},
        {"wx": (3, 8, 3), "wh": (3, 8, 8)},
    ),
    "layers that are coupled": (
        {"a": P(12), "b": P(10), "c": P(8)},
        {"w1": "a _", "w2": "b a", "w3": "c b", "w4": "_ c"},
        {"w1": (12, 3), "w2": (10, 12), "w3": (8, 10), "w4": (2, 8)},
    ),
    "heads and their entries": (
        {"h": P(3), "e": P(4)},
        {"v": "(h e) _", "o": "_ (h e)"},
        {"v": (12, 5), "o": (5, 12)},
    ),
}


def network(name, seed, dtype=np.float32):
    spaces, specs, shapes = NETWORKS[name]
    random = np.random.default_rng(seed)
    imaginary = 1j if np.issubdtype(dtype, np.complexfloating) else 0
    tree = {
        k: (random.normal(size=s) + imaginary * random.normal(size=s)).astype(dtype)
        for k, s in shapes.items()
    }
    return sx.NetworkSymmetry(spaces, specs, like=tree), tree, random


def shuffled(symmetry, random):
    """A random element, made by NumPy."""
    return {
        name: jnp.asarray(random.permuted(np.asarray(group.identity()), axis=-1))
        for name, group in symmetry.spaces.items()
    }


@pytest.mark.parametrize(
    "name",
    mostly_slow(
        NETWORKS,
        (
            "recurrent, for every layer",
            "layers that are coupled",
            "heads and their entries",
            "gated, merged axes",
        ),
    ),
)
def test_permuted_copies_are_recovered_exactly(name):
    for seed in range(20 if name.startswith("recurrent") else 5):
        symmetry, tree, random = network(name, seed)
        element = shuffled(symmetry, random)
        copy = symmetry.act(element, tree)
        found, distance = sx.weight_matching(symmetry, copy, tree)
        back = symmetry.inverse(element)
        assert all(np.array_equal(found[space], back[space]) for space in back)
        assert distance == 0


@pytest.mark.parametrize("name", NETWORKS)
def test_copies_with_noise_are_recovered_and_the_distance_is_that_of_the_noise(name):
    symmetry, tree, random = network(name, 3)
    element = shuffled(symmetry, random)
    noisy = jax.tree.map(lambda x: x + 0.03 * random.normal(size=x.shape), symmetry.act(element, tree))
    found, distance = sx.weight_matching(symmetry, noisy, tree)
    back = symmetry.inverse(element)
    assert all(np.array_equal(found[space], back[space]) for space in back)
    moved = symmetry.act(found, noisy)
    gaps = [np.sum((np.asarray(moved[k], float) - tree[k]) ** 2) for k in tree]
    norms = [np.sum(np.asarray(tree[k], float) ** 2) for k in tree]
    assert distance == pytest.approx(np.sqrt(sum(gaps) / sum(norms)), rel=1e-6)


def test_networks_with_nothing_in_common_are_far_from_each_other_but_no_farther_than_before():
    symmetry, tree, _ = network("recurrent", 0)
    _, other, _ = network("recurrent", 1)
    _, distance = sx.weight_matching(symmetry, other, tree)
    before = np.sqrt(
        sum(np.sum((other[k] - tree[k]) ** 2) for k in tree) / sum(np.sum(x**2) for x in tree.values())
    )
    assert 0.5 < distance < before


@pytest.mark.parametrize(("dtype", "size"), [(np.complex64, 1.0), (np.float32, 1e30), (np.float32, 1e-30)])
def test_complex_huge_and_tiny_networks_are_matched(dtype, size):
    symmetry, tree, random = network("recurrent", 0, dtype)
    tree = {k: (x * size).astype(dtype) for k, x in tree.items()}
    element = shuffled(symmetry, random)
    found = sx.weight_matching(symmetry, symmetry.act(element, tree), tree).element
    assert np.array_equal(found["h"], symmetry.inverse(element)["h"])


def test_what_cannot_be_matched_says_what_it_is():
    symmetry, tree, _ = network("recurrent", 0)
    broken = {**tree, "wh": np.full((16, 16), np.nan, np.float32)}
    with pytest.raises(ValueError, match="wh in `params` has NaN or infinity"):
        sx.weight_matching(symmetry, broken, tree)
    with pytest.raises(ValueError, match="acts on the array 'wh', which is not in the tree"):
        sx.weight_matching(symmetry, tree, {k: tree[k] for k in ("wx", "wo")})
    with pytest.raises(ValueError, match=r"wx has shape \(16, 3\) in `params` and \(16, 4\) in `target`"):
        sx.weight_matching(symmetry, tree, {**tree, "wx": np.ones((16, 4), np.float32)})
    with pytest.raises(
        TypeError, match=r"works on the host, but .* in `params` is traced: call it outside of"
    ):
        jax.jit(lambda w: sx.weight_matching(symmetry, w, tree))(tree)
