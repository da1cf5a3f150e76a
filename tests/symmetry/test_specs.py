"""Specs: what the notation says, what it does to an array (against einsum), and what it says to a typo."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import symmetrax as sx

# The grammar of specs, node by node.
from symmetrax.symmetry._specs import Both, Concatenated, Entry, Merged, Plain, parse

SEEDS = st.integers(0, 2**32 - 1)
NAMES = ("h", "qk", "Stream", "inner_0", "a1b2", "x_")


def random_word(rng):
    """A name, with a star, a power and an index or without."""
    ends = tuple(None if rng.random() < 0.3 else int(rng.integers(-12, 13)) for _ in range(2))
    power = float(rng.choice([1.0, rng.integers(-9, 10), rng.integers(-5000, 5000) / 1000, rng.normal()]))
    index = (None, None, int(rng.integers(-9, 10)), ends)[rng.integers(4)]
    return Entry(str(rng.choice(NAMES)), bool(rng.random() < 0.5), power, index)


def random_node(rng, depth=3, summand=False):
    """Brackets hold everything, sums everything but sums."""
    kind = rng.integers(6 if depth else 4)
    if kind == 0:
        return Plain(None if rng.random() < 0.5 else int(rng.integers(1, 10**6)))
    if kind == 1:
        return Both(tuple(random_word(rng) for _ in range(rng.integers(2, 4))))
    if kind < 4 or (summand and kind == 5):
        return random_word(rng)
    if kind == 4:
        return Merged(tuple(random_node(rng, depth - 1) for _ in range(rng.integers(1, 4))))
    return Concatenated(tuple(random_node(rng, depth - 1, summand=True) for _ in range(rng.integers(2, 4))))


def random_spec(seed):
    rng = np.random.default_rng(seed)
    return tuple(random_node(rng) for _ in range(rng.integers(5)))


@settings(max_examples=300)
@given(SEEDS)
def test_what_is_written_is_read_back(seed):
    nodes = random_spec(seed)
    assert parse(" ".join(map(str, nodes))) == nodes


@settings(max_examples=200)
@given(SEEDS)
def test_blanks_around_brackets_and_signs_do_not_matter(seed):
    nodes = random_spec(seed)
    text = re.sub(r"([+&])", r"  \1 ", " ".join(map(str, nodes)))
    assert parse(" " + text.replace("(", "( ").replace(")", "  )")) == nodes


@settings(max_examples=1000)
@given(st.text(alphabet="hkq_12 ()+&*^[]:-.") | st.text(max_size=12))
def test_no_text_does_worse_than_a_value_error(text):
    try:
        nodes = parse(text)
    except ValueError as error:
        said = str(error)
        assert repr(text) in said
    else:
        assert parse(" ".join(map(str, nodes))) == nodes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(h _", "opens a bracket that is not closed"),
        ("h) _", "closes a bracket that was not opened"),
        ("() _", "has an empty bracket"),
        ("h+", "where a name, number, _ or bracket is expected"),
        ("h&", "where a name, number, _ or bracket is expected"),
        ("h&(a b)", r"& joins names, not \(a b\)"),
        ("h&4", "& joins names, not 4"),
        ("h** _", r"Cannot read the spec 'h\*\* _' at '\* _'"),
        ("h[] _", r"Cannot read the spec .* at '\[\] _'"),
        ("h[--1]", "Cannot read"),
        ("h[1:2:3]", "Cannot read"),
        ("0 h", "Cannot read the spec '0 h' at '0 h'"),
        ("h^x", "Cannot read"),
        ("a*b", r"no blank between a\* and 'b'"),
        ("4h _", "no blank between 4 and 'h'"),
        ("(a b)c", r"no blank between \(a b\) and 'c'"),
    ],
)
def test_typos_are_pointed_at(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


# What a spec does, against einsum and slices in NumPy.

RNG = np.random.default_rng(0)
MATRIX = {name: RNG.normal(size=shape) for name, shape in {"a": (3, 3), "k": (2, 4, 4), "l": (3, 5)}.items()}
DUAL = {"a": np.linalg.inv(MATRIX["a"]).T, "k": np.linalg.inv(MATRIX["k"]).swapaxes(1, 2)}
SCALE = np.exp(MATRIX["l"])
TURN = RNG.normal(size=(2, 2))  # cosine-like and sine-like parts, for two frequencies
SPACES = {
    "a": sx.groups.GeneralLinear(3),
    "k": sx.groups.GeneralLinear(4, per={"h": 2}),
    "l": sx.groups.PositiveDiagonal(5, per={"layer": 3}),
    "z": sx.groups.ScaledRotation(per={"f": 2}),
    "s": sx.groups.PositiveDiagonal(5),
}
ONE = SCALE[0]


def halves(x, axis, *sizes):
    return np.split(x, np.cumsum(sizes), axis=axis)


def turned(x):
    """Pairs on the last axis but one, frequencies on the one before."""
    p, q = TURN[..., None]
    return np.stack([p * x[..., 0, :] - q * x[..., 1, :], q * x[..., 0, :] + p * x[..., 1, :]], axis=-2)


def in_blocks(x, matrix):
    """(h k) on the first axis."""
    return np.einsum("hij,hjr->hir", matrix, x.reshape(2, 4, -1)).reshape(x.shape)


def grouped(x):
    return np.einsum("hij,hgjr->hgir", MATRIX["k"], x.reshape(2, 3, 4, -1)).reshape(x.shape)


def nested(x):
    plain, pairs, rest = halves(x, 0, 2, 4)
    a = np.einsum("ij,jr->ir", MATRIX["a"], rest)
    return np.concatenate([plain, turned(pairs.reshape(2, 2, -1)).reshape(pairs.shape), a])


def per_head(x):
    """(h k+k*+3 a): a concatenation inside a merged axis."""
    k, dual, rest = halves(x.reshape(2, 17, -1), 1, 4, 4)
    k, dual = np.einsum("hij,hjr->hir", MATRIX["k"], k), np.einsum("hij,hjr->hir", DUAL["k"], dual)
    rest = np.einsum("ij,hgjr->hgir", MATRIX["a"], rest.reshape(2, 3, 3, -1)).reshape(rest.shape)
    return np.concatenate([k, dual, rest], axis=1).reshape(x.shape)


CASES = {
    "a": (3, lambda x: MATRIX["a"] @ x),
    "a*": (3, lambda x: DUAL["a"] @ x),
    "_ a": ((2, 3), lambda x: x @ MATRIX["a"].T),
    "a a*": ((3, 3), lambda x: MATRIX["a"] @ x @ DUAL["a"].T),
    "_ _ a _": ((2, 3, 3, 2), lambda x: np.einsum("ij,abjc->abic", MATRIX["a"], x)),
    "(h k) _": ((8, 3), lambda x: in_blocks(x, MATRIX["k"])),
    "(h k*) a": ((8, 3), lambda x: in_blocks(x, DUAL["k"]) @ MATRIX["a"].T),
    "(h _ k) _": ((24, 2), grouped),
    "(k h) _": (
        (8, 2),
        lambda x: np.einsum("hij,jhr->ihr", MATRIX["k"], x.reshape(4, 2, -1)).reshape(x.shape),
    ),
    "k h": ((4, 2), lambda x: np.einsum("hij,jh->ih", MATRIX["k"], x)),
    "_ h k": ((3, 2, 4), lambda x: np.einsum("hij,rhj->rhi", MATRIX["k"], x)),
    "(h _) k": (
        (6, 4),
        lambda x: np.einsum("hij,hgj->hgi", MATRIX["k"], x.reshape(2, 3, 4)).reshape(x.shape),
    ),
    "(_ a)": (6, lambda x: (x.reshape(2, 3) @ MATRIX["a"].T).ravel()),
    "(a 2)": (6, lambda x: (MATRIX["a"] @ x.reshape(3, 2)).ravel()),
    "2+a": (5, lambda x: np.concatenate([x[:2], MATRIX["a"] @ x[2:]])),
    "a+_ _": ((5, 2), lambda x: np.concatenate([MATRIX["a"] @ x[:3], x[3:]])),
    "a+a*+a": (9, lambda x: np.concatenate([MATRIX["a"] @ x[:3], DUAL["a"] @ x[3:6], MATRIX["a"] @ x[6:]])),
    "2+(f z)+a _": ((9, 2), nested),
    "(h k+k*+(_ a)) _": ((34, 2), per_head),
    "(z f)": (
        4,
        lambda x: turned(x.reshape(2, 2).T[..., None])[..., 0].T.ravel(),
    ),
    "s": (5, lambda x: ONE * x),
    "s^2 s*": ((5, 5), lambda x: ONE[:, None] ** 2 * x / ONE),
    "s^-0.5": (5, lambda x: x / np.sqrt(ONE)),
    "s^2*": (5, lambda x: x / ONE**2),
    "layer l": ((3, 5), lambda x: SCALE * x),
    "l[2] a": ((5, 3), lambda x: SCALE[2][:, None] * x @ MATRIX["a"].T),
    "l[-1]*": (5, lambda x: x / SCALE[2]),
    "layer l[1:] l[:-1]*": ((2, 5, 5), lambda x: SCALE[1:, :, None] * x / SCALE[:-1, None, :]),
    "s&l[1]* _": ((5, 2), lambda x: (ONE / SCALE[1])[:, None] * x),
    "(_ s)": (10, lambda x: (x.reshape(2, 5) * ONE).ravel()),
}


@pytest.mark.parametrize("text", CASES)
def test_a_spec_does_what_einsum_does(text, float64):
    shape, oracle = CASES[text]
    x = np.random.default_rng(1).normal(size=shape)
    element = {
        "a": (jnp.asarray(MATRIX["a"]), jnp.asarray(DUAL["a"])),
        "k": (jnp.asarray(MATRIX["k"]), jnp.asarray(DUAL["k"])),
        "l": jnp.asarray(SCALE),
        "z": tuple(map(jnp.asarray, TURN)),
        "s": jnp.asarray(ONE),
    }
    used = {word for word in re.findall(r"[a-z]+", text) if word in SPACES}
    symmetry = sx.NetworkSymmetry({name: SPACES[name] for name in used}, {"x": text}, {"x": x})
    np.testing.assert_allclose(
        symmetry.act(element, {"x": jnp.asarray(x)})["x"], oracle(x), rtol=1e-12, atol=1e-12
    )


def test_a_number_has_one_axis_of_length_one(float64):
    symmetry = sx.NetworkSymmetry({"s": sx.groups.PositiveDiagonal(1)}, {"x": "s"}, {"x": jnp.array(2.0)})
    moved = symmetry.act({"s": jnp.array([3.0])}, {"x": jnp.array(2.0)})["x"]
    assert moved.shape == ()
    assert moved == 6.0


# Specs that are rejected, and the messages.

PARAMS = {
    "w": jnp.ones((8, 3)),
    "v": jnp.ones((3, 5)),
    "blocks": [{"q": jnp.ones((8, 3))}, {"q": jnp.ones((8, 3))}],
}
A, K = {"a": sx.groups.GeneralLinear(3)}, {"k": sx.groups.GeneralLinear(4, per={"h": 2})}
BAD = {
    "length": (A, {"w": "a _"}, ["w: ", "axis 0", "length 8", "a", "size 3"]),
    "length of a merged axis": (A, {"w": "(a _) _"}, ["w: ", "axis 0", "length 8", "(a _)", "[3, None]"]),
    "factors": (K, {"v": "_ (h k)"}, ["v: ", "axis 1", "length 5", "(h k)", "[2, 4]"]),
    "sum": (A, {"v": "_ a+3"}, ["v: ", "axis 1", "length 5", "add up to 6"]),
    "sum with a blank": (A, {"v": "a 7+_"}, ["v: ", "axis 1", "length 5", "add up to 7"]),
    "inside a bracket": (A, {"w": "(2 a+2) _"}, ["w: ", "axis 0", "length 8", "[2, 5]"]),
    "two unknown sizes": (A, {"w": "(_ _) a"}, ["w: ", "axis 0", "2 parts of unknown size"]),
    "two unknown terms": (A, {"w": "_+_ a"}, ["w: ", "axis 0", "2 parts of unknown size"]),
    "number of axes": (A, {"w": "_ a _"}, ["w: ", "'_ a _'", "names 3 axes", "(8, 3)"]),
    "unknown space": ({"hidden": sx.groups.Permutation(3)}, {"w": "_ hiden"}, ["no spec", "'hiden'"]),
    "unknown name": (A, {"w": "_ a", "v": "aa _"}, ["v: ", "'aa'", "neither a space nor an index", "'a'"]),
    "path": (A, {"ww": "_ a"}, ["No array is called 'ww'", "Did you mean 'w'?", "blocks.0.q"]),
    "pattern": (
        A,
        {"block.{i}.q": "_ a"},
        ["No array is called 'block.{i}.q'", "Did you mean 'blocks."],
    ),
    "power": (A, {"w": "_ a^2"}, ["w: ", "a^2", "GeneralLinear(3)", "do not commute"]),
    "space without a spec": (A | K, {"w": "_ a"}, ["The space 'k' has no spec"]),
    "missing index": (K, {"w": "(2 k) _"}, ["w: ", "axis 0", "k needs its index 'h'", "does not occur"]),
    "index twice": (
        K,
        {"blocks.{i}.q": "(h k) _", "w": "(h _ h _) _"},
        ["w: ", "axis 0", "2 parts of unknown size"],
    ),
    "index twice, elsewhere": (
        {"e": sx.groups.PositiveDiagonal(2, per={"h": 2})},
        {"w": "(h h e) _"},
        ["w: ", "'h' once in this array; it occurs 2 times"],
    ),
    "an index that is a space": (
        K | {"h": sx.groups.Permutation(2)},
        {"w": "(h k) _"},
        ["'h' is a space and an index"],
    ),
    "an index with a star": (K, {"w": "(h* k) _"}, ["w: ", "h*", "is an index: nothing acts along it"]),
    "an index beside a space": (K | A, {"w": "(h k) a&h"}, ["w: ", "h in a&h", "& joins spaces only"]),
    "two that do not commute": (
        A | {"s": sx.groups.PositiveDiagonal(3)},
        {"w": "_ a&s"},
        ["w: ", "GeneralLinear(3) and PositiveDiagonal(3)", "do not commute"],
    ),
    "a position without an index": (A, {"w": "_ a[0]"}, ["w: ", "a[0]", "no `per` to index"]),
    "brackets": (K, {"w": "(h k _"}, ["'(h k _'", "a bracket that is not closed"]),
    "two specs": (
        A,
        {"blocks.{i}.q": "_ a", "blocks.0.q": "_ a"},
        ["'blocks.0.q' has two specs"],
    ),
    "an unbound field": (A, {"w": "_ a{i}"}, ["'_ a{i}' of 'w'", "that its path does not have"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_specs_are_rejected_with_their_place(name):
    spaces, specs, said = BAD[name]
    with pytest.raises(ValueError) as error:  # noqa: PT011 - every word of the message is checked
        sx.NetworkSymmetry(spaces, specs, like=PARAMS)
    for words in said:
        assert words in str(error.value), (words, str(error.value))


def test_an_unknown_space_is_met_with_the_near_one():
    with pytest.raises(ValueError, match=r"The space 'hidden' has no spec. Did you mean 'hiden'\?"):
        sx.NetworkSymmetry({"hidden": sx.groups.Permutation(3)}, {"w": "_ hiden"}, PARAMS)
    with pytest.raises(
        ValueError, match=r"'hiden', which is neither a space nor an index. Did you mean 'hidden'"
    ):
        sx.NetworkSymmetry({"hidden": sx.groups.Permutation(3)}, {"w": "_ hiden", "v": "hidden _"}, PARAMS)
    symmetry = sx.NetworkSymmetry(A, {"w": "_ a"}, PARAMS)
    with pytest.raises(ValueError, match="There is no space 'b'"):
        symmetry.only("b")


def test_patterns_make_one_space_for_every_block_and_no_other():
    """`ab0` is not a copy of `a{i}`."""
    params = {"x": [jnp.ones(2), jnp.ones(2)], "y": [jnp.ones(4), jnp.ones(4)]}
    spaces = {"ab{i}": sx.groups.PositiveDiagonal(4), "a{i}": sx.groups.PositiveDiagonal(2)}
    symmetry = sx.NetworkSymmetry(spaces, {"x.{i}": "a{i}", "y.{i}": "ab{i}"}, params)
    assert {name: group.size for name, group in symmetry.spaces.items()} == {
        "ab0": 4,
        "ab1": 4,
        "a0": 2,
        "a1": 2,
    }


def test_blocks_are_in_the_order_of_their_numbers():
    params = {"x": [jnp.ones(1) for _ in range(11)]}
    symmetry = sx.NetworkSymmetry({"s{i}": sx.groups.PositiveDiagonal(1)}, {"x.{i}": "s{i}"}, params)
    assert list(symmetry.spaces) == [f"s{k}" for k in range(11)]


def test_an_index_may_have_another_length_elsewhere():
    """Two attention layers with other numbers of heads, in one model."""
    spaces = {"k": sx.groups.GeneralLinear(4, per={"h": 2}), "m": sx.groups.GeneralLinear(1, per={"h": 3})}
    symmetry = sx.NetworkSymmetry(spaces, {"w": "(h k) _", "v": "(h m) _"}, PARAMS)
    moved = symmetry.act(symmetry.identity(), PARAMS)
    assert jnp.array_equal(moved["w"], PARAMS["w"])


def test_one_space_of_several_keeps_the_index_another_axis_needs():
    spaces = {"a": sx.groups.PositiveDiagonal(4), "b": sx.groups.PositiveDiagonal(3, per={"h": 2})}
    symmetry = sx.NetworkSymmetry(spaces, {"w": "(h a) b"}, PARAMS)
    assert symmetry.only("b").specs == {"w": "(h 4) b"}
    assert symmetry.only("a").specs == {"w": "(2 a) _"}
