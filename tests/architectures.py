"""Networks as others write them, each with the spaces that it must have: group, size, indices and arrays.

Unlike the rows of the zoo they are in single precision, and axes are fused, stacked, sliced and concatenated
in the ways of published code.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

#: A group, its size, the lengths of its indices, and the arrays on which it acts.
Expected = tuple[str, int, tuple[int, ...], str]


class Architecture(NamedTuple):
    """A loss of parameters and data, and the spaces that are known by hand."""

    loss: Callable[[PyTree, Any], Array]
    params: dict[str, Array]
    batch: Callable[[Array], Any]
    spaces: list[Expected]


ARCHITECTURES: dict[str, Architecture] = {}


def architecture(params: dict[str, tuple[int, ...]], batch: Any, spaces: list[Expected]) -> Callable:
    """Registers a loss under the name of its function, with parameters of these shapes."""

    def register(loss: Callable[[PyTree, Any], Array]) -> Callable[[PyTree, Any], Array]:
        rng = np.random.default_rng(len(ARCHITECTURES))
        drawn = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in params.items()}
        ARCHITECTURES[loss.__name__] = Architecture(loss, drawn, batch, spaces)
        return loss

    return register


def rows(key: Array) -> Array:
    return jax.random.normal(key, (8, 3))


def images(key: Array) -> Array:
    return jax.random.normal(key, (2, 8, 8, 3))


def words(key: Array) -> Array:
    return jax.random.randint(key, (6,), 0, 7)


def apart(x: Array, y: Array) -> Array:
    return jnp.mean((x - y) ** 2)


def conv(x: Array, kernel: Array, stride: int = 1, groups: int = 1) -> Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=numbers, feature_group_count=groups
    )


def layer_norm(x: Array, gain: Array, bias: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * gain + bias


def said(logits: Array, tokens: Array) -> Array:
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, None], 1))


@architecture(
    {"w": (3, 5), "b": (5,), "out": (8, 3)},
    rows,
    [("PositiveDiagonal", 5, (), "w b out"), ("Permutation", 5, (), "w b out")],
)
def concatenated_skip(p, x):
    return apart(jnp.concatenate([jax.nn.relu(x @ p["w"] + p["b"]), x], -1) @ p["out"], x)


@architecture(
    {"w1": (3, 5), "w2": (8, 4), "out": (12, 3)},
    rows,
    [
        ("PositiveDiagonal", 5, (), "w1 w2 out"),
        ("PositiveDiagonal", 4, (), "w2 out"),
        ("Permutation", 5, (), "w1 w2 out"),
        ("Permutation", 4, (), "w2 out"),
    ],
)
def dense_net(p, x):
    first = jnp.concatenate([x, jax.nn.relu(x @ p["w1"])], -1)
    return apart(jnp.concatenate([first, jax.nn.relu(first @ p["w2"])], -1) @ p["out"], x)


@architecture(
    {"down": (3, 3, 3, 4), "deep": (3, 3, 4, 6), "up": (3, 3, 10, 5), "out": (1, 1, 5, 3)},
    images,
    [
        ("PositiveDiagonal", 4, (), "down deep up"),
        ("PositiveDiagonal", 6, (), "deep up"),
        ("PositiveDiagonal", 5, (), "up out"),
        ("Permutation", 4, (), "down deep up"),
        ("Permutation", 6, (), "deep up"),
        ("Permutation", 5, (), "up out"),
    ],
)
def u_net(p, x):
    high = jax.nn.relu(conv(x, p["down"]))
    low = jax.nn.relu(conv(high, p["deep"], stride=2))
    both = jnp.concatenate([high, jax.image.resize(low, (2, 8, 8, 6), "nearest")], -1)
    return apart(conv(jax.nn.relu(conv(both, p["up"])), p["out"]), x)


@architecture(
    {"w1": (3, 6), "b1": (6,), "w2": (9, 5), "b2": (5,), "rgb": (5, 3)},
    rows,
    [
        ("PositiveDiagonal", 6, (), "w1 b1 w2"),
        ("PositiveDiagonal", 5, (), "w2 b2 rgb"),
        ("Permutation", 6, (), "w1 b1 w2"),
        ("Permutation", 5, (), "w2 b2 rgb"),
    ],
)
def nerf(p, x):
    hidden = jax.nn.relu(x @ p["w1"] + p["b1"])
    hidden = jax.nn.relu(jnp.concatenate([hidden, x], -1) @ p["w2"] + p["b2"])
    return apart(jax.nn.sigmoid(hidden @ p["rgb"]), x)


@architecture(
    {"w1": (3, 6), "b1": (6,), "w2": (6, 5), "b2": (5,), "out": (5, 3)},
    rows,
    [
        ("SignDiagonal", 6, (), "w1 b1 w2"),
        ("SignDiagonal", 5, (), "w2 b2 out"),
        ("Permutation", 6, (), "w1 b1 w2"),
        ("Permutation", 5, (), "w2 b2 out"),
    ],
)
def siren(p, x):
    hidden = jnp.sin(3 * (x @ p["w1"] + p["b1"]))
    return apart(jnp.sin(3 * (hidden @ p["w2"] + p["b2"])) @ p["out"], x)


@architecture(
    {"q": (3, 2, 4), "kv": (2, 3, 2, 4), "out": (2, 4, 3)},
    rows,
    [("GeneralLinear", 4, (2, 2), "q kv out"), ("Permutation", 2, (), "q kv out")],
)
def stacked_keys_and_values(p, x):
    q = jnp.einsum("td,dhe->the", x, p["q"])
    k, v = jnp.einsum("td,cdhe->cthe", x, p["kv"])
    weights = jax.nn.softmax(jnp.einsum("the,she->hts", q, k))
    return apart(jnp.einsum("hts,she,hed->td", weights, v, p["out"]), x)


@architecture(
    {"w": (3, 5), "t": (5,), "out": (5, 3)},
    rows,
    [("PositiveDiagonal", 5, (), "w t out"), ("Permutation", 5, (), "w t out")],
)
def learned_thresholds(p, x):
    z = x @ p["w"]
    return apart(jnp.where(z > p["t"], z, 0) @ p["out"], x)


@architecture(
    {"w": (3, 6), "out": (6, 3)},
    rows,
    [
        ("PositiveDiagonal", 2, (), "w out"),
        ("SignDiagonal", 4, (), "w out"),
        ("Permutation", 2, (), "w out"),
        ("Permutation", 4, (), "w out"),
    ],
)
def half_of_a_layer_with_another_activation(p, x):
    z = x @ p["w"]
    return apart(jnp.concatenate([jax.nn.relu(z[:, :2]), jnp.tanh(z[:, 2:])], -1) @ p["out"], x)


@architecture(
    {
        "into": (3, 8),
        "conv": (3, 4),
        "conv_bias": (4,),
        "select": (4, 7),
        "dt": (1, 4),
        "dt_bias": (4,),
        "log_a": (4, 3),
        "skip": (4,),
        "out": (4, 3),
    },
    rows,
    [
        ("PositiveDiagonal", 4, (), "into conv"),
        ("PositiveDiagonal", 3, (), "select"),
        ("SignDiagonal", 4, (), "into conv"),
        ("SignDiagonal", 3, (), "select"),
        ("Permutation", 4, (), "into conv conv_bias select dt dt_bias log_a skip out"),
        ("Permutation", 3, (), "select log_a"),
    ],
)
def selective_state_space(p, x):
    u, gate = jnp.split(x @ p["into"], 2, -1)
    padded = jnp.pad(u, ((2, 0), (0, 0)))
    u = jax.nn.silu(sum(padded[i : i + 8] * p["conv"][i] for i in range(3)) + p["conv_bias"])
    dt, b, c = jnp.split(u @ p["select"], [1, 4], -1)
    dt = jax.nn.softplus(dt @ p["dt"] + p["dt_bias"])

    def step(state, now):
        u, dt, b, c = now
        state = jnp.exp(-dt[:, None] * jnp.exp(p["log_a"])) * state + (dt * u)[:, None] * b
        return state, state @ c

    _, y = jax.lax.scan(step, jnp.zeros((4, 3)), (u, dt, b, c))
    return apart((y + u * p["skip"]) * jax.nn.silu(gate) @ p["out"], x)


@architecture(
    {
        "patch": (3, 6),
        "cls": (6,),
        "positions": (9, 6),
        "g1": (6,),
        "b1": (6,),
        "qkv": (6, 18),
        "qkv_bias": (18,),
        "o": (6, 6),
        "o_bias": (6,),
        "g2": (6,),
        "b2": (6,),
        "up": (6, 8),
        "up_bias": (8,),
        "down": (8, 6),
        "down_bias": (6,),
        "head": (6, 2),
    },
    rows,
    [
        ("GeneralLinear", 3, (2,), "qkv qkv_bias"),
        ("GeneralLinear", 3, (2,), "qkv qkv_bias o"),
        ("PositiveDiagonal", 6, (), "g1 b1 qkv"),
        ("PositiveDiagonal", 6, (), "g2 b2 up"),
        ("SignDiagonal", 6, (), "g1 b1 qkv"),
        ("SignDiagonal", 6, (), "g2 b2 up"),
        ("Permutation", 2, (), "qkv qkv_bias o"),
        ("Permutation", 8, (), "up up_bias down"),
        ("Permutation", 6, (), "patch cls positions g1 b1 qkv o o_bias g2 b2 up down down_bias head"),
    ],
)
def vision_transformer(p, x):
    h = jnp.concatenate([p["cls"][None], x @ p["patch"]], 0) + p["positions"]
    fused = layer_norm(h, p["g1"], p["b1"]) @ p["qkv"] + p["qkv_bias"]
    q, k, v = fused.reshape(9, 3, 2, 3).transpose(1, 2, 0, 3)
    mixed = jax.nn.softmax(q @ k.swapaxes(-1, -2)) @ v
    h = h + mixed.transpose(1, 0, 2).reshape(9, 6) @ p["o"] + p["o_bias"]
    hidden = jax.nn.gelu(layer_norm(h, p["g2"], p["b2"]) @ p["up"] + p["up_bias"])
    h = h + hidden @ p["down"] + p["down_bias"]
    return apart(h[0] @ p["head"], jnp.ones(2))


@architecture(
    {"a": (8, 5), "b": (5, 8), "c": (3, 6), "d": (6, 3), "out": (3, 2)},
    rows,
    [("Permutation", 5, (), "a b"), ("Permutation", 6, (), "c d")],
)
def mlp_mixer(p, x):
    h = x + (jax.nn.gelu(x.T @ p["a"]) @ p["b"]).T
    h = h + jax.nn.gelu(h @ p["c"]) @ p["d"]
    return apart(h.mean(0) @ p["out"], jnp.ones(2))


@architecture(
    {
        "stem": (2, 2, 3, 4),
        "depthwise": (3, 3, 1, 4),
        "gain": (4,),
        "bias": (4,),
        "up": (4, 8),
        "up_bias": (8,),
        "down": (8, 4),
        "scale": (4,),
        "head": (4, 2),
    },
    images,
    [
        ("PositiveDiagonal", 4, (), "gain bias up"),
        ("PositiveDiagonal", 4, (), "scale down"),
        ("SignDiagonal", 4, (), "gain bias up"),
        ("SignDiagonal", 4, (), "scale down"),
        ("Permutation", 4, (), "stem depthwise gain bias up down scale head"),
        ("Permutation", 8, (), "up up_bias down"),
    ],
)
def conv_next(p, x):
    h = conv(x, p["stem"], stride=2)
    inner = layer_norm(conv(h, p["depthwise"], groups=4), p["gain"], p["bias"])
    h = h + p["scale"] * (jax.nn.gelu(inner @ p["up"] + p["up_bias"]) @ p["down"])
    return apart(h.mean((1, 2)) @ p["head"], jnp.ones(2))


@architecture(
    {"conv": (3, 3, 3, 4), "squeeze": (4, 2), "excite": (2, 4), "head": (4, 2)},
    images,
    [
        ("PositiveDiagonal", 4, (), "conv squeeze head"),
        ("PositiveDiagonal", 2, (), "squeeze excite"),
        ("Permutation", 4, (), "conv squeeze excite head"),
        ("Permutation", 2, (), "squeeze excite"),
    ],
)
def squeeze_and_excite(p, x):
    h = jax.nn.relu(conv(x, p["conv"]))
    gates = jax.nn.sigmoid(jax.nn.relu(h.mean((1, 2)) @ p["squeeze"]) @ p["excite"])
    return apart((h * gates[:, None, None]).mean((1, 2)) @ p["head"], jnp.ones(2))


def gru(into: Array, back: Array, state: Array, x: Array) -> Array:
    (a, b, c), (r, s, t) = jnp.split(x @ into, 3), jnp.split(state @ back, 3)
    update, reset = jax.nn.sigmoid(a + r), jax.nn.sigmoid(b + s)
    return update * state + (1 - update) * jnp.tanh(c + reset * t)


@architecture(
    {"embed": (7, 4), "ei": (4, 15), "eh": (5, 15), "di": (4, 15), "dh": (5, 15), "out": (5, 4)},
    words,
    [
        ("GeneralLinear", 4, (), "embed ei di out"),
        ("SignDiagonal", 5, (), "ei eh di dh out"),
        ("Permutation", 5, (), "ei eh di dh out"),
    ],
)
def sequence_to_sequence(p, tokens):
    embedded = p["embed"][tokens]
    encode = lambda h, x: (gru(p["ei"], p["eh"], h, x), None)  # noqa: E731
    state, _ = jax.lax.scan(encode, jnp.zeros(5), embedded)

    def decode(h, x):
        h = gru(p["di"], p["dh"], h, x)
        return h, h @ p["out"] @ p["embed"].T

    return said(jax.lax.scan(decode, state, embedded)[1], tokens)


@architecture(
    {"router": (3, 4), "w1": (4, 3, 5), "w2": (4, 5, 3)},
    rows,
    [
        ("PositiveDiagonal", 5, (4,), "w1 w2"),
        ("Permutation", 5, (4,), "w1 w2"),
        ("Permutation", 4, (), "router w1 w2"),
    ],
)
def experts_by_top_k(p, x):
    logits = x @ p["router"]
    best, which = jax.lax.top_k(logits, 2)
    gates = jnp.zeros_like(logits).at[jnp.arange(8)[:, None], which].set(jax.nn.softmax(best))
    hidden = jax.nn.relu(jnp.einsum("bd,edh->beh", x, p["w1"]))
    return apart((gates[..., None] * jnp.einsum("beh,ehd->bed", hidden, p["w2"])).sum(1), x)


@architecture(
    {"message": (3, 5), "update": (5, 4), "out": (4, 2)},
    rows,
    [
        ("PositiveDiagonal", 5, (), "message update"),
        ("PositiveDiagonal", 4, (), "update out"),
        ("Permutation", 5, (), "message update"),
        ("Permutation", 4, (), "update out"),
    ],
)
def graph_network(p, x):
    source, target = jnp.arange(5), (jnp.arange(5) + 1) % 5
    h = jax.nn.relu(x @ p["message"])
    h = jax.nn.relu((h + jnp.zeros_like(h).at[target].add(h[source])) @ p["update"])
    return apart(h.mean(0) @ p["out"], jnp.ones(2))


@architecture(
    {"q": (3, 6), "k": (3, 6), "v": (3, 4), "out": (4, 3)},
    rows,
    [("GeneralLinear", 4, (), "v out"), ("Permutation", 6, (), "q k")],
)
def linear_attention(p, x):
    q, k = (jax.nn.elu(x @ p[name]) + 1 for name in "qk")
    return apart(q @ (k.T @ (x @ p["v"])) / (q @ k.sum(0))[:, None] @ p["out"], x)


@architecture(
    {
        "embed": (7, 6),
        "n1": (6,),
        "q": (6, 2, 4),
        "kv": (6, 2, 1, 4),
        "qn": (4,),
        "kn": (4,),
        "o": (2, 4, 6),
        "n2": (6,),
        "gate_up": (6, 2, 5),
        "down": (5, 6),
        "n3": (6,),
    },
    words,
    [
        ("SignDiagonal", 6, (), "embed q kv o gate_up down"),
        ("Permutation", 5, (), "gate_up down"),
        ("Permutation", 6, (), "embed n1 q kv o n2 gate_up down n3"),
        ("Permutation", 2, (), "q o"),
    ],
)
def gemma(p, tokens):
    """Tied embeddings, gains 1 + w, queries and keys normalized and rotary, one key for all queries."""

    def norm(x, w):
        return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * (1 + w)

    def turned(x):
        angles = jnp.arange(6)[:, None, None] * 10.0 ** -jnp.arange(2)
        u, v = jnp.split(x, 2, -1)
        c, s = jnp.cos(angles), jnp.sin(angles)
        return jnp.concatenate([u * c - v * s, v * c + u * s], -1)

    x = p["embed"][tokens] * 6**0.5
    h = norm(x, p["n1"])
    q = turned(norm(jnp.einsum("td,dhe->the", h, p["q"]), p["qn"]))
    k, v = jnp.einsum("td,dche->cthe", h, p["kv"])
    weights = jax.nn.softmax(jnp.einsum("the,se->hts", q, turned(norm(k, p["kn"]))[:, 0]))
    x = x + jnp.einsum("hts,se,hed->td", weights, v[:, 0], p["o"])
    gate, up = jnp.einsum("td,dcf->ctf", norm(x, p["n2"]), p["gate_up"])
    x = x + (jax.nn.gelu(gate) * up) @ p["down"]
    return said(norm(x, p["n3"]) @ p["embed"].T, tokens)


@architecture(
    {"lift": (1, 4), "gain": (4,), "bias": (4, 1), "out": (4, 1)},
    rows,
    [("PositiveDiagonal", 4, (), "gain lift"), ("Permutation", 4, (), "lift gain bias out")],
)
def fourier_gains(p, x):
    """Channels in front of the axis that is transformed."""
    spectrum = jnp.fft.rfft(x[:, None] * p["lift"].T) * p["gain"][:, None]
    hidden = jax.nn.gelu(jnp.fft.irfft(spectrum, n=3) + p["bias"])
    return apart(jnp.einsum("bct,co->bto", hidden, p["out"])[..., 0], x)
