"""Small networks and their symmetries, one row each: what the tests of network symmetries run over.

A row says what the network computes, `net(params, x)`; the loss is its mean square error. Axis lengths
differ within a network wherever the architecture lets them, so that sizes catch most wrong entries; the rows
"leaky relu, equal widths" and "transformer, RMSNorm" have equal lengths, where only numbers can tell. Norms
have no epsilon: with it scaling would be approximate.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, PyTree

import symmetrax as sx


class Batch(NamedTuple):
    """Inputs and targets."""

    x: Array
    y: Array


class Row:
    """A network, its parameters, its data, and a symmetry that it has exactly.

    `specs_by_hand` marks rows that test the notation, the others test a ready constructor. `loss` and `net`
    are the same objects at every use, so that each is compiled once.
    """

    def __init__(
        self,
        name: str,
        params: Callable[[], PyTree],
        net: Callable[[PyTree, Array], Array],
        x: Callable[[np.random.Generator], np.ndarray],
        symmetry: Callable[[PyTree], sx.NetworkSymmetry],
        *,
        specs_by_hand: bool = False,
        tolerance: float = 1e-12,
    ):
        self.name, self.params, self.net, self.x, self.symmetry = name, params, net, x, symmetry
        self.specs_by_hand, self.tolerance = specs_by_hand, tolerance

    def loss(self, params: PyTree, batch: Batch) -> Array:
        """Mean square error."""
        return jnp.mean((self.outputs(params, batch) - batch.y) ** 2)

    def outputs(self, params: PyTree, batch: Batch) -> Array:
        """What the network says."""
        return self.net(params, batch.x)

    def batch(self, seed: int) -> Batch:
        """Data drawn with this seed; all seeds give equal shapes."""
        rng = np.random.default_rng(seed)
        x = jnp.asarray(self.x(rng))
        out = eqx.filter_eval_shape(self.net, self.params(), x)
        return Batch(x, jnp.asarray(rng.normal(size=out.shape), out.dtype))

    def __repr__(self) -> str:
        return self.name


def arrays(**shapes: Sequence[int]) -> Callable[[], dict[str, Array]]:
    """Makes a dict of normal arrays; two underscores in a name are a dot in the path, one dict in another."""

    def make() -> dict:
        rng, tree = np.random.default_rng(0), {}
        for name, shape in shapes.items():
            *outer, last = name.split("__")
            inside = tree
            for part in outer:
                inside = inside.setdefault(part, {})
            inside[last] = jnp.asarray(0.5 * rng.normal(size=tuple(shape)))
        return tree

    return make


def vectors(size: int) -> Callable[[np.random.Generator], np.ndarray]:
    return lambda rng: rng.normal(size=(7, size))


def images(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(2, 3, 5, 5))


def tokens(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 11, size=8)


# Perceptrons.


def radial(z: Array) -> Array:
    return z / jnp.sqrt(1 + jnp.sum(z**2, axis=-1, keepdims=True))


def perceptron(act: Callable[[Array], Array], p: PyTree, x: Array) -> Array:
    x = act(x @ p["w1"].T + p["b1"])
    x = act(x @ p["w2"].T + p["b2"])
    return x @ p["w3"].T + p["b3"]


def transported(p: PyTree, x: Array) -> Array:
    """Activations that carry their scales: z -> tau silu(z / tau)."""
    x = p["tau1"] * jax.nn.silu((x @ p["w1"].T + p["b1"]) / p["tau1"])
    x = p["tau2"] * jax.nn.silu((x @ p["w2"].T + p["b2"]) / p["tau2"])
    return x @ p["w3"].T + p["b3"]


PERCEPTRON = arrays(w1=(5, 3), b1=(5,), w2=(4, 5), b2=(4,), w3=(2, 4), b3=(2,))
SQUARE = arrays(w1=(4, 4), b1=(4,), w2=(4, 4), b2=(4,), w3=(4, 4), b3=(4,))
TRANSPORTED = arrays(w1=(5, 3), b1=(5,), tau1=(5,), w2=(4, 5), b2=(4,), tau2=(4,), w3=(2, 4), b3=(2,))
WEIGHTS, BIASES = ("w1", "w2", "w3"), ("b1", "b2", "b3")
MLP = partial(sx.models.mlp_symmetry, weights=WEIGHTS, biases=BIASES)


def equinox_mlp(scan: bool) -> eqx.nn.MLP:
    return eqx.nn.MLP(3, 2, 5, depth=3 if scan else 2, scan=scan, key=jax.random.key(0))


def call_equinox_mlp(model: eqx.nn.MLP, x: Array) -> Array:
    return jax.vmap(model)(x)


def scanned_mlp_symmetry(params: PyTree) -> sx.NetworkSymmetry:
    specs = {"layers.0.weight": "h[0] _", "layers.0.bias": "h[0]", "layers.1.weight": "l h[1:] h[:-1]*"}
    specs |= {"layers.1.bias": "l h[1:]", "layers.2.weight": "_ h[2]*"}
    return sx.NetworkSymmetry({"h": sx.groups.PositiveDiagonal(5, per={"l": 3})}, specs, params)


class FlaxMLP(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.one, self.two = nnx.Linear(3, 5, rngs=rngs), nnx.Linear(5, 4, rngs=rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.head(jax.nn.relu(self.two(jax.nn.relu(self.one(x)))))


def flax_params(make: Callable[[], nnx.Module]) -> PyTree:
    """The parameters alone, in the default precision, which flax's own layers do not follow."""
    pure = nnx.to_pure_dict(nnx.split(make())[1])
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, float)), pure)


def call_flax(make: Callable[[], nnx.Module], params: PyTree, *args: Array) -> Array:
    graph, state = nnx.split(nnx.eval_shape(make))
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)(*args)


def flax_mlp() -> FlaxMLP:
    return FlaxMLP(nnx.Rngs(0))


# Convolutions.


def conv(x: Array, kernel: Array, groups: int = 1) -> Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", feature_group_count=groups)


def residual_cnn(flat: bool, p: PyTree, x: Array) -> Array:
    def biased(x, name, bias):
        return conv(x, p[name]) + p[bias][:, None, None]

    x = biased(x, "stem", "stem_bias")
    for block in p["blocks"].values():
        inner = jax.nn.relu(conv(jax.nn.relu(x), block["first"]) + block["inner_bias"][:, None, None])
        x = x + conv(inner, block["second"]) + block["outer_bias"][:, None, None]
    x = jax.nn.relu(x)
    return (x.reshape(len(x), -1) if flat else jnp.mean(x, (2, 3))) @ p["head"].T


def cnn_arrays(head: int, blocks: int) -> Callable[[], PyTree]:
    block = {"first": (6, 4, 3, 3), "inner_bias": (6,), "second": (4, 6, 3, 3), "outer_bias": (4,)}
    shapes = {f"blocks__{k}__{name}": shape for k in range(blocks) for name, shape in block.items()}
    return arrays(stem=(4, 3, 3, 3), stem_bias=(4,), **shapes, head=(2, head))


CNN = partial(
    sx.models.residual_cnn_symmetry,
    stem=["stem"],
    first="blocks.{i}.first",
    second="blocks.{i}.second",
    head="head",
    stream_vectors=["stem_bias", "blocks.{i}.outer_bias"],
    inner_vectors=["blocks.{i}.inner_bias"],
)


def plain_cnn(p: PyTree, x: Array) -> Array:
    """Kernels as flax has them, (height, width, in, out); images (height, width, channels), flattened."""

    def conv(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    x = conv(jnp.moveaxis(x, 1, -1), p["stem"])
    x = jax.nn.relu(x + conv(jax.nn.relu(conv(x, p["first"])), p["second"]))
    return x.reshape(len(x), -1) @ p["head"]


def grouped_cnn(p: PyTree, x: Array) -> Array:
    x = jax.nn.relu(conv(x, p["stem"]))
    x = jax.nn.relu(conv(x, p["depthwise"], groups=4))
    x = jax.nn.relu(conv(x, p["grouped"], groups=2))
    return jnp.mean(x, (2, 3)) @ p["head"].T


def grouped_cnn_symmetry(params: PyTree) -> sx.NetworkSymmetry:
    """A space of the stem, one after the depthwise convolution, and one after the grouped one.

    A depthwise kernel (4, 1, 3, 3) reads and writes each channel: both spaces on one axis. The grouped one,
    (6, 2, 3, 3), has two groups; each reads two channels, so that space is per group as well.
    """
    sizes = {"s": 2, "d": 2, "o": 3}
    spaces = {name: sx.groups.PositiveDiagonal(size, per={"G": 2}) for name, size in sizes.items()}
    specs = {
        "stem": "(G s) _ _ _",
        "depthwise": "(G s*&d) _ _ _",
        "grouped": "(G o) d* _ _",
        "head": "_ (G o*)",
    }
    return sx.NetworkSymmetry(spaces, specs, params)


# Normalizations.


def normalized(x: Array, axes: int | tuple[int, ...] = -1, center: bool = True, eps: float = 0.0) -> Array:
    """LayerNorm without gains, or RMSNorm if not centered."""
    x = x - jnp.mean(x, axes, keepdims=True) if center else x
    return x / jnp.sqrt(jnp.mean(x**2, axes, keepdims=True) + eps)


def layer_normed(eps: float, p: PyTree, x: Array) -> Array:
    return jnp.tanh(normalized(x @ p["w"].T + p["b"], eps=eps) * p["gain"]) @ p["head"].T


def group_normed(p: PyTree, x: Array) -> Array:
    x = conv(x, p["kernel"]) + p["bias"]
    x = normalized(x.reshape(len(x), 2, -1), eps=0).reshape(x.shape)
    return jnp.mean(jnp.tanh(x * p["gain"]), (2, 3)) @ p["head"].T


def batch_normed(eps: float, p: PyTree, x: Array) -> Array:
    return jnp.tanh(normalized(x @ p["w"].T, axes=0, eps=eps) * p["gain"] + p["b"]) @ p["head"].T


def batch_normed_with_statistics(p: PyTree, x: Array) -> Array:
    """As in evaluation: mean and variance are arrays too. The variance enters by its absolute value."""
    x = (x @ p["w"].T - p["mean"]) / jnp.sqrt(jnp.abs(p["var"]))
    return jnp.tanh(x * p["gain"]) @ p["head"].T


# Attention.


def rotary(x: Array, layout: str | None, size: int | None = None) -> Array:
    """Turn pairs of the first `size` entries of x of shape (time, heads, entries) by position."""
    if layout is None:
        return x
    turned, rest = jnp.split(x, [x.shape[-1] if size is None else size], axis=-1)
    shape = {"interleaved": (-1, 2), "half": (2, -1)}[layout]
    pairs = turned.reshape(*turned.shape[:-1], *shape)
    a, b = (pairs[..., 0], pairs[..., 1]) if layout == "interleaved" else (pairs[..., 0, :], pairs[..., 1, :])
    angle = jnp.arange(len(x))[:, None, None] * 0.5 ** jnp.arange(a.shape[-1])
    c, s = jnp.cos(angle), jnp.sin(angle)
    turned = jnp.stack([c * a - s * b, s * a + c * b], axis=-1 if layout == "interleaved" else -2)
    return jnp.concatenate([turned.reshape(*turned.shape[:-2], -1), rest], axis=-1)


def attend(q: Array, k: Array, v: Array) -> Array:
    """q (time, heads, entries), k and v (time, kv heads, entries) -> (time, heads * entries of v)."""
    grouped = q.reshape(len(q), k.shape[1], -1, q.shape[-1])
    scores = jnp.einsum("tkge,ske->kgts", grouped, k) / np.sqrt(q.shape[-1])
    mask = jnp.tril(jnp.ones((len(q), len(q)), bool))
    read = jnp.einsum("kgts,skv->tkgv", jax.nn.softmax(jnp.where(mask, scores, -1e9)), v)
    return read.reshape(len(q), -1)


class Attention(NamedTuple):
    """What varies between attention layers; parameters are q, k, v, o and, if there are any, the others."""

    heads: int
    kv: int
    rotary: Literal["interleaved", "half"] | None = None
    rotary_size: int | None = None
    normalized: bool = False

    def __call__(self, p: PyTree, x: Array) -> Array:
        q, k, v = (x @ p[name].T + p.get(name + "_bias", 0.0) for name in "qkv")
        q = q.reshape(len(x), self.heads, -1)
        k, v = k.reshape(len(x), self.kv, -1), v.reshape(len(x), self.kv, -1)
        if self.normalized:
            q, k = normalized(q, center=False), normalized(k, center=False)
        q, k = q * p.get("q_gain", 1.0), k * p.get("k_gain", 1.0)
        q, k = (rotary(side, self.rotary, self.rotary_size) for side in (q, k))
        return attend(q, k, v) @ p["o"].T

    def arrays(self, biases: bool = False, gains: bool = False) -> Callable[[], PyTree]:
        """Parameters with 6 entries in queries and keys, 5 in values, in a stream of width 9."""
        shapes = {"q": (6 * self.heads, 9), "k": (6 * self.kv, 9), "v": (5 * self.kv, 9)}
        more = {f"{name}_bias": shapes[name][:1] for name in "qkv"} if biases else {}
        more |= {"q_gain": (6,), "k_gain": (6,)} if gains else {}
        return arrays(**shapes, **more, o=(9, 5 * self.heads))

    def symmetry(self, biases: bool = False, gains: bool = False) -> Callable[[PyTree], sx.NetworkSymmetry]:
        return lambda params: sx.models.attention_symmetry(
            params,
            *"qkvo",
            heads=self.heads,
            kv_heads=self.kv,
            biases={"query": "q_bias", "key": "k_bias", "value": "v_bias"} if biases else None,
            rotary=self.rotary,
            rotary_size=self.rotary_size,
            normalized=self.normalized,
            gains=("q_gain", "k_gain") if gains else None,
        )

    def row(self, name: str, **kwargs: bool) -> Row:
        return Row(name, self.arrays(**kwargs), self, vectors(9), self.symmetry(**kwargs))

    def row_by_hand(self, name: str, spaces: dict, specs: dict[str, str], **kwargs: bool) -> Row:
        return by_hand(name, self.arrays(**kwargs), self, vectors(9), spaces, specs)


def by_hand(name: str, params, net, x, spaces: dict, specs: dict[str, str], **kwargs: float) -> Row:
    symmetry = partial(sx.NetworkSymmetry, spaces, specs)
    return Row(name, params, net, x, symmetry, specs_by_hand=True, **kwargs)


def fused_attention(per_head: bool, p: PyTree, x: Array) -> Array:
    y = x @ p["qkv"].T
    if per_head:
        y = y.reshape(len(x), 2, 6 + 6 + 5)
        q, k, v = y[..., :6], y[..., 6:12], y[..., 12:]
    else:
        q, k, v = (part.reshape(len(x), 2, -1) for part in jnp.split(y, [12, 24], axis=-1))
    return attend(q, k, v) @ p["o"].T


def shared_attention(p: PyTree, x: Array) -> Array:
    """One matrix for queries and keys."""
    q, v = ((x @ p[name].T).reshape(len(x), 2, -1) for name in "qv")
    return attend(q, q, v) @ p["o"].T


def latent_attention(p: PyTree, x: Array) -> Array:
    """Multi-head latent attention: low-rank queries, keys and values, and one rotary key for all heads."""
    q = (x @ p["dq"].T @ p["uq"].T).reshape(len(x), 2, 3 + 4)
    latent, turned = jnp.split(x @ p["dkv"].T, [5], axis=-1)
    k, v = jnp.split((latent @ p["ukv"].T).reshape(len(x), 2, 3 + 6), [3], axis=-1)
    q = jnp.concatenate([q[..., :3], rotary(q[..., 3:], "interleaved")], axis=-1)
    shared = jnp.broadcast_to(rotary(turned[:, None], "interleaved"), (len(x), 2, 4))
    return attend(q, jnp.concatenate([k, shared], axis=-1), v) @ p["o"].T


def equinox_attention() -> eqx.nn.MultiheadAttention:
    return eqx.nn.MultiheadAttention(
        2, 9, qk_size=6, vo_size=5, use_query_bias=True, use_value_bias=True, key=jax.random.key(0)
    )


def call_equinox_attention(layer: eqx.nn.MultiheadAttention, x: Array) -> Array:
    return layer(x, x, x)


def flax_attention() -> nnx.MultiHeadAttention:
    return nnx.MultiHeadAttention(2, in_features=9, qkv_features=12, decode=False, rngs=nnx.Rngs(0))


# Transformers and what else there is.


def gated(act: Callable[[Array], Array], p: PyTree, x: Array) -> Array:
    return (act(x @ p["gate"].T) * (x @ p["up"].T + p.get("up_bias", 0.0))) @ p["down"].T


GATED = arrays(gate=(5, 3), up=(5, 3), up_bias=(5,), down=(2, 5))
GATED_MLP = partial(sx.models.gated_mlp_symmetry, gate="gate", up="up", down="down", vectors=["up_bias"])


def transformer(center: bool, tied: bool, p: PyTree, x: Array) -> Array:
    """Pre-norm blocks of attention and a gated MLP on token embeddings."""
    norm = partial(normalized, center=center)
    x = p["embed"][x]
    for block in p["blocks"].values():
        x = x + Attention(2, 1)(block["attn"], norm(x)) + block["bias"]
        x = x + gated(jax.nn.silu, block["mlp"], norm(x))
    return norm(x) @ p["embed" if tied else "head"].T


def transformer_arrays(width: int, up: int, size: int, tied: bool) -> Callable[[], PyTree]:
    block = {"attn__q": (2 * size, width), "attn__k": (size, width), "attn__v": (size, width)}
    block |= {"attn__o": (width, 2 * size), "bias": (width,)}
    block |= {"mlp__gate": (up, width), "mlp__up": (up, width), "mlp__down": (width, up)}
    blocks = {f"blocks__0__{name}": shape for name, shape in block.items()}
    return arrays(embed=(11, width), **blocks, **({} if tied else {"head": (11, width)}))


def transformer_symmetry(norm: Literal["rms", "layer"], tied: bool, params: PyTree) -> sx.NetworkSymmetry:
    block = "blocks.{i}."
    attention = (block + "attn." + part for part in "qkvo")
    return (
        sx.models.attention_symmetry(params, *attention, heads=2, kv_heads=1)
        | sx.models.gated_mlp_symmetry(params, *(f"{block}mlp.{part}" for part in ("gate", "up", "down")))
        | sx.models.residual_stream_symmetry(
            params,
            writes=[block + "attn.o", block + "mlp.down"],
            reads=[
                *(block + "attn." + part for part in "qkv"),
                block + "mlp.gate",
                block + "mlp.up",
                *(() if tied else ("head",)),
            ],
            embeddings=["embed"],
            vectors=[block + "bias"],
            norm=norm,
        )
    )


def scanned_transformer(p: PyTree, x: Array) -> Array:
    """The same with the blocks' arrays stacked, and one head of attention."""

    def block(x, w):
        y = normalized(x, center=False)
        x = x + attend(*((y @ w[name].T)[:, None] for name in "qkv")) @ w["o"].T
        return x + jax.nn.gelu(normalized(x, center=False) @ w["up"].T) @ w["down"].T, None

    x, _ = jax.lax.scan(block, p["embed"][x], p["blocks"])
    return normalized(x, center=False) @ p["embed"].T


def low_rank(p: PyTree, x: Array) -> Array:
    return jnp.tanh(x @ (p["w"] + p["B"] @ p["A"]).T) @ p["head"].T


def lstm(p: PyTree, x: Array) -> Array:
    """Gates i, f, g, o, in this order, along one axis."""

    def step(state, x):
        h, c = state
        i, f, g, o = jnp.split(x @ p["weight_ih"].T + h @ p["weight_hh"].T + p["bias"], 4)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zeros = jnp.zeros(p["bias"].shape[0] // 4)
    return jax.lax.scan(step, (zeros, zeros), x)[1] @ p["head"].T


def mixture(p: PyTree, x: Array) -> Array:
    weights = jax.nn.softmax(x @ p["router"].T)
    inner = jax.nn.relu(jnp.einsum("efd,td->tef", p["w1"], x))
    return jnp.einsum("te,edf,tef->td", weights, p["w2"], inner)


def read_out(cell: Callable, x: Array, head: Array) -> Array:
    """What a linear layer reads from the hidden states of a recurrent cell; an LSTM's state is a pair."""
    zeros = jnp.zeros(head.shape[1])
    start = (zeros, zeros) if isinstance(cell, eqx.nn.LSTMCell) else zeros

    def step(state, x):
        state = cell(x, state)
        return state, state[0] if isinstance(state, tuple) else state

    return jax.lax.scan(step, start, x)[1] @ head.T


def equinox_cell(kind: Callable) -> PyTree:
    return {"cell": kind(3, 5, key=jax.random.key(0)), "head": jax.random.normal(jax.random.key(1), (2, 5))}


def call_equinox_cell(params: PyTree, x: Array) -> Array:
    return read_out(params["cell"], x, params["head"])


def equinox_cnn() -> PyTree:
    first, second = jax.random.split(jax.random.key(0))
    norm = eqx.nn.GroupNorm(2, 6, eps=0.0)
    gains = jax.random.normal(jax.random.key(2), (2, 6))
    norm = eqx.tree_at(lambda n: (n.weight, n.bias), norm, (gains[0], gains[1]))
    conv, head = eqx.nn.Conv2d(3, 6, 3, key=first), eqx.nn.Linear(6, 2, key=second)
    return {"conv": conv, "norm": norm, "head": head}


def call_equinox_cnn(p: PyTree, x: Array) -> Array:
    def one(image):
        return p["head"](jnp.mean(jax.nn.relu(p["norm"](p["conv"](image))), (1, 2)))

    return jax.vmap(one)(x)


class FlaxCNN(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.stem, self.inner = nnx.Conv(3, 4, (3, 3), rngs=rngs), nnx.Conv(4, 6, (3, 3), rngs=rngs)
        self.head = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        x = jax.nn.relu(self.inner(jax.nn.relu(self.stem(jnp.moveaxis(x, 1, -1)))))
        return self.head(jnp.mean(x, (1, 2)))


def flax_cnn() -> FlaxCNN:
    return FlaxCNN(nnx.Rngs(0))


def weight_normed(p: PyTree, x: Array) -> Array:
    """Directions v of length one, times gains."""
    w = p["gain"][:, None] * p["v"] / jnp.linalg.norm(p["v"], axis=1, keepdims=True)
    return jax.nn.relu(x @ w.T + p["b"]) @ p["head"].T


def batch_normed_relu(p: PyTree, x: Array) -> Array:
    x = normalized(x @ p["w"].T, axes=0)
    return jax.nn.relu(x * p["gain"] + p["b"]) @ p["head"].T


def fused_gated(p: PyTree, x: Array) -> Array:
    gate, up = jnp.split(x @ p["gate_up"].T, 2, axis=-1)
    return (jax.nn.silu(gate) * up) @ p["down"].T


LSTM = arrays(weight_ih=(20, 3), weight_hh=(20, 5), bias=(20,), head=(2, 5))
MIXTURE = arrays(router=(4, 3), w1=(4, 5, 3), w2=(4, 2, 5))
TRANSFORMER = {
    "q": (2, 4, 6),
    "k": (2, 4, 6),
    "v": (2, 3, 6),
    "o": (2, 6, 3),
    "up": (2, 5, 6),
    "down": (2, 6, 5),
}
HEADS = {"q": "(h _) _", "k": "(h _) _", "v": "(h _) _", "o": "_ (h _)"}


ROWS = [
    Row("relu", PERCEPTRON, partial(perceptron, jax.nn.relu), vectors(3), MLP),
    Row("leaky relu, equal widths", SQUARE, partial(perceptron, jax.nn.leaky_relu), vectors(4), MLP),
    Row(
        "tanh",
        PERCEPTRON,
        partial(perceptron, jnp.tanh),
        vectors(3),
        partial(MLP, group=sx.groups.SignDiagonal),
    ),
    Row(
        "gelu",
        PERCEPTRON,
        partial(perceptron, jax.nn.gelu),
        vectors(3),
        partial(MLP, group=sx.groups.Permutation),
    ),
    Row(
        "linear",
        PERCEPTRON,
        partial(perceptron, lambda z: z),
        vectors(3),
        partial(MLP, group=sx.groups.GeneralLinear),
    ),
    Row(
        "radial",
        PERCEPTRON,
        partial(perceptron, radial),
        vectors(3),
        partial(MLP, group=sx.groups.Orthogonal),
    ),
    Row(
        "squared relu",
        PERCEPTRON,
        partial(perceptron, lambda z: jax.nn.relu(z) ** 2),
        vectors(3),
        partial(MLP, degree=2),
        # Two squares in a row: the scales of the first layer enter with the fourth power.
    ),
    Row(
        "transported silu",
        TRANSPORTED,
        transported,
        vectors(3),
        partial(MLP, group=sx.groups.NonzeroDiagonal, scales=["tau1", "tau2"]),
    ),
    Row("equinox MLP", partial(equinox_mlp, False), call_equinox_mlp, vectors(3), sx.models.mlp_symmetry),
    Row(
        "equinox MLP, scanned",
        partial(equinox_mlp, True),
        call_equinox_mlp,
        vectors(3),
        scanned_mlp_symmetry,
        specs_by_hand=True,
    ),
    Row(
        "flax MLP",
        partial(flax_params, flax_mlp),
        partial(call_flax, flax_mlp),
        vectors(3),
        partial(
            sx.models.mlp_symmetry,
            weights=["one.kernel", "two.kernel", "head.kernel"],
            biases=["one.bias", "two.bias", "head.bias"],
            layout="in out",
        ),
    ),
    Row("residual CNN, pooled", cnn_arrays(4, blocks=2), partial(residual_cnn, False), images, CNN),
    Row("residual CNN, flattened", cnn_arrays(100, blocks=1), partial(residual_cnn, True), images, CNN),
    Row(
        "residual CNN, in out",
        arrays(stem=(3, 3, 3, 4), first=(3, 3, 4, 6), second=(3, 3, 6, 4), head=(100, 2)),
        plain_cnn,
        images,
        partial(
            sx.models.residual_cnn_symmetry,
            stem=["stem"],
            first="first",
            second="second",
            head="head",
            layout="in out",
        ),
    ),
    Row(
        "grouped and depthwise CNN",
        arrays(stem=(4, 3, 3, 3), depthwise=(4, 1, 3, 3), grouped=(6, 2, 3, 3), head=(2, 6)),
        grouped_cnn,
        images,
        grouped_cnn_symmetry,
        specs_by_hand=True,
    ),
    Row(
        "scale before LayerNorm",
        arrays(w=(6, 3), b=(6,), gain=(6,), head=(2, 6)),
        partial(layer_normed, 0.0),
        vectors(3),
        lambda params: sx.models.normalized_scale_symmetry(params, ["w"], ["b"]),
    ),
    Row(
        "scale before GroupNorm",
        arrays(kernel=(6, 3, 3, 3), bias=(6, 1, 1), gain=(6, 1, 1), head=(2, 6)),
        group_normed,
        images,
        lambda params: sx.models.normalized_scale_symmetry(params, ["kernel"], ["bias"], groups=2),
    ),
    Row(
        "scale before BatchNorm",
        arrays(w=(6, 3), gain=(6,), b=(6,), head=(2, 6)),
        partial(batch_normed, 0.0),
        vectors(3),
        lambda params: sx.models.normalized_scale_symmetry(params, ["w"], groups=6),
    ),
    by_hand(
        "GroupNorm, channels of a group permuted",
        arrays(kernel=(6, 3, 3, 3), bias=(6, 1, 1), gain=(6, 1, 1), head=(2, 6)),
        group_normed,
        images,
        {"c": sx.groups.Permutation(3, per={"G": 2})},
        {"kernel": "(G c) _ _ _", "bias": "(G c) _ _", "gain": "(G c) _ _", "head": "_ (G c)"},
    ),
    by_hand(
        "BatchNorm with statistics",
        arrays(w=(6, 3), mean=(6,), var=(6,), gain=(6,), head=(2, 6)),
        batch_normed_with_statistics,
        vectors(3),
        {"s": sx.groups.PositiveDiagonal(6)},
        {"w": "s _", "mean": "s", "var": "s^2"},
    ),
    Attention(2, 2).row("attention"),
    Attention(2, 2).row("attention with biases", biases=True),
    Attention(4, 2).row("grouped-query attention"),
    Attention(4, 1).row("multi-query attention"),
    Attention(4, 2, "interleaved").row("rotary, interleaved", biases=True),
    Attention(4, 2, "half").row("rotary, half"),
    Attention(4, 2, "interleaved", 4).row("partly rotary, interleaved"),
    Attention(2, 2, "half", 4).row("partly rotary, half"),
    Attention(4, 2, normalized=True).row("normalized queries and keys"),
    Attention(4, 2, normalized=True).row("normalized with gains", gains=True),
    Attention(2, 2, "half", normalized=True).row("normalized and rotary"),
    Attention(2, 2, "interleaved", normalized=True).row(
        "normalized and rotary, gains, interleaved", gains=True
    ),
    Attention(2, 2, "half", normalized=True).row("normalized and rotary, gains, half", gains=True),
    Attention(2, 2, "half", 4, normalized=True).row("normalized and partly rotary, gains, half", gains=True),
    Attention(2, 2).row_by_hand("heads permuted", {"h": sx.groups.Permutation(2)}, HEADS),
    Attention(2, 2, normalized=True).row_by_hand(
        "normalized with gains, permuted",
        {"e": sx.groups.Permutation(6)},
        {"q": "(_ e) _", "k": "(_ e) _", "q_gain": "e", "k_gain": "e"},
        gains=True,
    ),
    Attention(2, 2, normalized=True).row_by_hand(
        "normalized with gains, signs",
        {"e": sx.groups.SignDiagonal(6, per={"h": 2})},
        {"q": "(h e) _", "k": "(h e) _"},
        gains=True,
    ),
    by_hand(
        "fused queries, keys, values",
        arrays(qkv=(2 * 17, 9), o=(9, 10)),
        partial(fused_attention, False),
        vectors(9),
        {"qk": sx.groups.GeneralLinear(6, per={"h": 2}), "vo": sx.groups.GeneralLinear(5, per={"h": 2})},
        {"qkv": "(h qk)+(h qk*)+(h vo) _", "o": "_ (h vo*)"},
    ),
    by_hand(
        "fused per head",
        arrays(qkv=(2 * 17, 9), o=(9, 10)),
        partial(fused_attention, True),
        vectors(9),
        {"qk": sx.groups.GeneralLinear(6, per={"h": 2}), "vo": sx.groups.GeneralLinear(5, per={"h": 2})},
        {"qkv": "(h qk+qk*+vo) _", "o": "_ (h vo*)"},
    ),
    by_hand(
        "one matrix for queries and keys",
        arrays(q=(12, 9), v=(10, 9), o=(9, 10)),
        shared_attention,
        vectors(9),
        {"qk": sx.groups.Orthogonal(6, per={"h": 2})},
        {"q": "(h qk) _"},
    ),
    by_hand(
        "latent attention",
        arrays(dq=(4, 9), uq=(2 * 7, 4), dkv=(5 + 4, 9), ukv=(2 * 9, 5), o=(9, 12)),
        latent_attention,
        vectors(9),
        {
            "r": sx.groups.GeneralLinear(4),
            "c": sx.groups.GeneralLinear(5),
            "n": sx.groups.GeneralLinear(3, per={"h": 2}),
            "v": sx.groups.GeneralLinear(6, per={"h": 2}),
            "z": sx.groups.ScaledRotation(per={"f": 2}),
        },
        {
            "dq": "r _",
            "uq": "(h n+(f z)) r*",
            "dkv": "c+(f z*) _",
            "ukv": "(h n*+v) c*",
            "o": "_ (h v*)",
        },
    ),
    Row(
        "equinox attention",
        equinox_attention,
        call_equinox_attention,
        vectors(9),
        lambda params: sx.models.attention_symmetry(
            params,
            *(f"{part}_proj.weight" for part in ("query", "key", "value", "output")),
            heads=2,
            biases={part: f"{part}_proj.bias" for part in ("query", "value")},
        ),
    ),
    Row(
        "flax attention",
        partial(flax_params, flax_attention),
        partial(call_flax, flax_attention),
        vectors(9),
        lambda params: sx.models.attention_symmetry(
            params,
            *(f"{part}.kernel" for part in ("query", "key", "value", "out")),
            heads=2,
            biases={part: f"{part}.bias" for part in ("query", "key", "value")},
            layout="heads",
        ),
    ),
    Row("gated", GATED, partial(gated, jax.nn.silu), vectors(3), GATED_MLP),
    Row(
        "gated, signs",
        GATED,
        partial(gated, jax.nn.silu),
        vectors(3),
        partial(GATED_MLP, group=sx.groups.SignDiagonal),
    ),
    Row("gated by relu", GATED, partial(gated, jax.nn.relu), vectors(3), partial(GATED_MLP, relu=True)),
    by_hand(
        "gated by nothing",
        GATED,
        partial(gated, lambda z: z),
        vectors(3),
        {"g": sx.groups.PositiveDiagonal(5), "u": sx.groups.PositiveDiagonal(5)},
        {"gate": "g _", "up": "u _", "up_bias": "u", "down": "_ g*&u*"},
    ),
    by_hand(
        "gated, fused",
        arrays(gate_up=(10, 3), down=(2, 5)),
        fused_gated,
        vectors(3),
        {"u": sx.groups.PositiveDiagonal(5)},
        {"gate_up": "5+u _", "down": "_ u*"},
    ),
    Row(
        "transformer, RMSNorm, untied",
        transformer_arrays(6, 5, 4, tied=False),
        partial(transformer, False, False),
        tokens,
        partial(transformer_symmetry, "rms", False),
    ),
    Row(
        "transformer, RMSNorm",
        transformer_arrays(6, 6, 6, tied=True),
        partial(transformer, False, True),
        tokens,
        partial(transformer_symmetry, "rms", True),
    ),
    Row(
        "transformer, LayerNorm",
        transformer_arrays(6, 5, 4, tied=False),
        partial(transformer, True, False),
        tokens,
        partial(transformer_symmetry, "layer", False),
    ),
    by_hand(
        "transformer, scanned",
        arrays(embed=(11, 6), **{f"blocks__{name}": shape for name, shape in TRANSFORMER.items()}),
        scanned_transformer,
        tokens,
        {
            "d": sx.groups.Orthogonal(6),
            "qk": sx.groups.GeneralLinear(4, per={"L": 2}),
            "vo": sx.groups.GeneralLinear(3, per={"L": 2}),
            "f": sx.groups.Permutation(5, per={"L": 2}),
        },
        {
            "embed": "_ d",
            "blocks.q": "L qk d*",
            "blocks.k": "L qk* d*",
            "blocks.v": "L vo d*",
            "blocks.o": "L d vo*",
            "blocks.up": "L f d*",
            "blocks.down": "L d f*",
        },
    ),
    Row(
        "low rank",
        arrays(w=(5, 4), A=(3, 4), B=(5, 3), head=(2, 5)),
        low_rank,
        vectors(4),
        lambda params: sx.models.low_rank_symmetry(params, "A", "B"),
    ),
    by_hand(
        "LSTM, units permuted",
        LSTM,
        lstm,
        vectors(3),
        {"h": sx.groups.Permutation(5)},
        {"weight_ih": "(_ h) _", "weight_hh": "(_ h) h*", "bias": "(_ h)", "head": "_ h*"},
    ),
    by_hand(
        "LSTM, signs",
        LSTM,
        lstm,
        vectors(3),
        {"h": sx.groups.SignDiagonal(5)},
        {"weight_ih": "10+h+5 _", "weight_hh": "10+h+5 h*", "bias": "10+h+5", "head": "_ h*"},
    ),
    by_hand(
        "equinox GRU",
        partial(equinox_cell, eqx.nn.GRUCell),
        call_equinox_cell,
        vectors(3),
        {"h": sx.groups.Permutation(5)},
        {
            "cell.weight_ih": "(_ h) _",
            "cell.weight_hh": "(_ h) h",
            "cell.bias": "(_ h)",
            "cell.bias_n": "h",
            "head": "_ h",
        },
    ),
    by_hand(
        "equinox LSTM",
        partial(equinox_cell, eqx.nn.LSTMCell),
        call_equinox_cell,
        vectors(3),
        {"h": sx.groups.SignDiagonal(5)},
        {
            "cell.weight_ih": "10+h+5 _",
            "cell.weight_hh": "10+h+5 h",
            "cell.bias": "10+h+5",
            "head": "_ h",
        },
    ),
    by_hand(
        "equinox CNN, GroupNorm",
        equinox_cnn,
        call_equinox_cnn,
        images,
        {"c": sx.groups.PositiveDiagonal(6), "s": sx.groups.PositiveDiagonal(2)},
        {
            "conv.weight": "(s _) _ _ _",
            "conv.bias": "(s _) _ _",
            "norm.weight": "c",
            "norm.bias": "c",
            "head.weight": "_ c*",
        },
    ),
    by_hand(
        "flax CNN",
        partial(flax_params, flax_cnn),
        partial(call_flax, flax_cnn),
        images,
        {"a": sx.groups.PositiveDiagonal(4), "b": sx.groups.PositiveDiagonal(6)},
        {
            "stem.kernel": "_ _ _ a",
            "stem.bias": "a",
            "inner.kernel": "_ _ a* b",
            "inner.bias": "b",
            "head.kernel": "b* _",
        },
    ),
    by_hand(
        "weight-normalized",
        arrays(v=(5, 3), gain=(5,), b=(5,), head=(2, 5)),
        weight_normed,
        vectors(3),
        {"s": sx.groups.PositiveDiagonal(5), "a": sx.groups.PositiveDiagonal(5)},
        {"v": "s _", "gain": "a", "b": "a", "head": "_ a*"},
    ),
    by_hand(
        "batch-normalized, ReLU",
        arrays(w=(6, 3), gain=(6,), b=(6,), head=(2, 6)),
        batch_normed_relu,
        vectors(3),
        {"s": sx.groups.PositiveDiagonal(6), "a": sx.groups.PositiveDiagonal(6)},
        {"w": "s _", "gain": "a", "b": "a", "head": "_ a*"},
    ),
    by_hand(
        "mixture, experts permuted",
        MIXTURE,
        mixture,
        vectors(3),
        {"e": sx.groups.Permutation(4)},
        {"router": "e _", "w1": "e _ _", "w2": "e _ _"},
    ),
    by_hand(
        "mixture, inside experts",
        MIXTURE,
        mixture,
        vectors(3),
        {"f": sx.groups.PositiveDiagonal(5, per={"e": 4})},
        {"w1": "e f _", "w2": "e _ f*"},
    ),
]
NAMES = [row.name for row in ROWS]
READY = [row for row in ROWS if not row.specs_by_hand]


def row(name: str) -> Row:
    """The row of this name."""
    return ROWS[NAMES.index(name)]
