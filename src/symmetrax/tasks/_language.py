"""Small transformer language models on text that comes with Python."""

import dataclasses
import functools
import math
import pathlib
import sysconfig
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from symmetrax._tree import widened
from symmetrax.models._attention import attention_symmetry
from symmetrax.models._ready import gated_mlp_symmetry, residual_stream_symmetry
from symmetrax.symmetry._network import NetworkSymmetry
from symmetrax.tasks._base import AbstractTask, AbstractTaskFamily

#: Modules of the standard library, in alphabetical order, whose text is used.
MODULES = 120

#: The last part of the text is held out.
HELD_OUT = 0.1

#: Windows of held-out text on which models are evaluated.
WINDOWS = 384


class Text(eqx.Module):
    """Texts as indices of characters: what models are trained on, what they are tested on, and the alphabet.

    >>> text = Text(np.array([0, 1, 1]), np.array([1]), "ab")
    >>> "".join(text.alphabet[i] for i in text.train)
    'abb'
    """

    train: Int[np.ndarray, " n"]
    test: Int[np.ndarray, " m"]
    alphabet: str = eqx.field(static=True)


@functools.cache
def standard_library(modules: int = MODULES) -> Text:
    """The source code of the first modules of Python's standard library; its last tenth is held out.

    Only ASCII is kept. The text depends on the version of Python: compare losses within one version.

    >>> text = standard_library()
    >>> len(text.train) > 1_000_000, 90 < len(text.alphabet) < 128  # about 3 million characters
    (True, True)
    """
    files = sorted(pathlib.Path(sysconfig.get_path("stdlib")).glob("*.py"))[:modules]
    raw = np.frombuffer(b"".join(file.read_bytes() for file in files), np.uint8)
    raw = raw[raw < 128]
    letters, indices = np.unique(raw, return_inverse=True)
    split = int(len(indices) * (1 - HELD_OUT))
    indices = indices.astype(np.int32)
    return Text(indices[:split], indices[split:], "".join(map(chr, letters)))


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The architecture of a small pre-norm transformer: all norms are RMSNorm without gains.

    `positions="learned"` adds trained vectors to the embeddings; "rotary" turns queries and keys instead.
    With fewer `kv_heads` than `heads`, several queries share keys and values; `normalized` normalizes queries
    and keys. `gated` multi-layer perceptrons are SwiGLU, others GELU. The head is not tied to the embedding.

    >>> Architecture(width=64, heads=4).size
    16
    """

    width: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 4
    hidden: int = 192
    context: int = 64
    positions: Literal["learned", "rotary"] = "learned"
    gated: bool = True
    normalized: bool = False

    def __post_init__(self):
        for name in ("width", "layers", "heads", "kv_heads", "hidden", "context"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.positions not in ("learned", "rotary"):
            raise ValueError(f"`positions` must be 'learned' or 'rotary', got {self.positions!r}.")
        if self.width % self.heads or self.heads % self.kv_heads:
            raise ValueError(
                f"`heads` must divide `width` and be a multiple of `kv_heads`, got width={self.width}, "
                f"heads={self.heads}, kv_heads={self.kv_heads}."
            )
        if self.positions == "rotary" and self.size % 2:
            raise ValueError(
                f"Rotary embeddings turn pairs of entries, and heads have {self.size}: use an even `width` / "
                "`heads`, or positions='learned'."
            )

    @property
    def size(self) -> int:
        """Entries of a head."""
        return self.width // self.heads


class LanguageModel(AbstractTask):
    """A transformer that predicts the next character, trained on windows of text.

    The loss is the mean cross-entropy in nats per character, `batch` draws `batch_size` random windows of
    the training text, and `held_out` evaluates on fixed windows of the test text. Weights are normal with
    variance 1 / inputs, smaller by 2 * layers in the matrices that write to the residual stream; embeddings
    have variance 1. There are no biases and no gains, so the residual stream can be rotated: `symmetry` has
    rotations of the stream, the groups of every head, and with SwiGLU scalings of its units.

    >>> import jax, symmetrax as sx
    >>> task = sx.tasks.make_family("language").task(())
    >>> params = task.init(jax.random.key(0))
    >>> float(task.loss(params, task.batch(jax.random.key(1)))) < 6  # uniform guessing: log(96) = 4.6
    True
    """

    text: Text
    architecture: Architecture = eqx.field(static=True, default=Architecture())
    batch_size: int = eqx.field(static=True, default=16)
    #: The dtype of activations, by default that of the parameters; losses are computed in float32 or better.
    dtype: Any = eqx.field(static=True, default=None)

    def init(self, key: Key[Array, ""]) -> dict[str, Any]:
        a = self.architecture
        keys = iter(jax.random.split(key, 3 + 7 * a.layers))

        def normal(*shape: int, variance: float) -> Array:
            return math.sqrt(variance) * jax.random.normal(next(keys), shape)

        def layer() -> dict[str, Array]:
            read, write = 1 / a.width, 1 / (2 * a.layers)
            small = a.kv_heads * a.size
            return {
                "query": normal(a.width, a.width, variance=read),
                "key": normal(small, a.width, variance=read),
                "value": normal(small, a.width, variance=read),
                "output": normal(a.width, a.width, variance=write / a.width),
                "up": normal(a.hidden, a.width, variance=read),
                "down": normal(a.width, a.hidden, variance=write / a.hidden),
            } | ({"gate": normal(a.hidden, a.width, variance=read)} if a.gated else {})

        letters = len(self.text.alphabet)
        return {
            "embedding": normal(letters, a.width, variance=1.0),
            "layers": [layer() for _ in range(a.layers)],
            "head": normal(letters, a.width, variance=1 / a.width),
        } | ({"positions": normal(a.context, a.width, variance=0.1)} if a.positions == "learned" else {})

    def batch(self, key: Key[Array, ""]) -> Int[Array, "b n"]:
        return self._windows(self.text.train, key, self.batch_size)

    def _windows(self, text: np.ndarray, key: Key[Array, ""], count: int) -> Int[Array, "b n"]:
        """Random windows, one character longer than the context."""
        n = self.architecture.context + 1
        if len(text) < n:
            raise ValueError(f"A window has {n} characters, and the text {len(text)}: reduce `context`.")
        starts = jax.random.randint(key, (count, 1), 0, len(text) - n + 1)
        return jnp.asarray(text)[starts + jnp.arange(n)]

    def logits(self, params: PyTree, letters: Int[Array, "b n"]) -> Float[Array, "b n letters"]:
        """Unnormalized log-probabilities of the characters that follow; at most `context` may be given."""
        if letters.shape[1] > self.architecture.context:
            raise ValueError(
                f"The model sees {self.architecture.context} characters, got {letters.shape[1]}: pass fewer, "
                "or make it with a larger `context`."
            )
        a = self.architecture
        if self.dtype is not None:
            params = jax.tree.map(lambda w: w.astype(self.dtype), params)
        x = params["embedding"][letters]
        if a.positions == "learned":
            x = x + params["positions"][: letters.shape[1]]
        for layer in params["layers"]:
            x = x + self._attention(layer, _normalized(x))
            read = _normalized(x)
            up = read @ layer["up"].T
            hidden = jax.nn.silu(read @ layer["gate"].T) * up if a.gated else jax.nn.gelu(up)
            x = x + hidden @ layer["down"].T
        return widened(_normalized(x) @ params["head"].T)

    def _attention(self, layer: dict[str, Array], x: Float[Array, "b n width"]) -> Float[Array, "b n width"]:
        a = self.architecture

        def heads(name: str, count: int) -> Array:
            return (x @ layer[name].T).reshape(*x.shape[:2], count, a.size)

        query, key, value = heads("query", a.heads), heads("key", a.kv_heads), heads("value", a.kv_heads)
        if a.normalized:
            query, key = _normalized(query), _normalized(key)
        if a.positions == "rotary":
            query, key = _rotary(query), _rotary(key)
        mixed = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        return mixed.reshape(*x.shape[:2], a.width) @ layer["output"].T

    def loss(self, params: PyTree, batch: PyTree = None) -> Float[Array, ""]:
        logits = self.logits(params, batch[:, :-1])
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]))

    def held_out(self, params: PyTree) -> Float[Array, ""]:
        """The loss on fixed windows of the held-out text."""
        windows = self._windows(self.text.test, jax.random.key(0), WINDOWS)
        parts = windows.reshape(-1, math.gcd(WINDOWS, self.batch_size), windows.shape[1])
        return jnp.mean(jax.lax.map(lambda part: self.loss(params, part), parts))

    def symmetry(self) -> NetworkSymmetry:
        a, params = self.architecture, jax.eval_shape(self.init, jax.random.key(0))
        reads = [f"layers.{{i}}.{name}" for name in ("query", "key", "value", "up")]
        reads += ["layers.{i}.gate"] * a.gated
        embeddings = ["embedding", "head"] + ["positions"] * (a.positions == "learned")
        stream = residual_stream_symmetry(
            params, ["layers.{i}.output", "layers.{i}.down"], reads, embeddings=embeddings
        )
        heads = attention_symmetry(
            params,
            *(f"layers.{{i}}.{name}" for name in ("query", "key", "value", "output")),
            heads=a.heads,
            kv_heads=a.kv_heads,
            rotary="half" if a.positions == "rotary" else None,
            normalized=a.normalized,
        )
        whole = stream | heads
        if not a.gated:
            return whole
        return whole | gated_mlp_symmetry(
            params, *(f"layers.{{i}}.{name}" for name in ("gate", "up", "down"))
        )


class TextFamily(AbstractTaskFamily):
    """Language models of several architectures on one text; see `LanguageModel`. Nothing is drawn.

    >>> import symmetrax as sx
    >>> [shape.positions for shape in sx.tasks.make_family("language").shapes]
    ['learned', 'rotary']
    """

    name: str = eqx.field(static=True)
    text: Text
    architectures: tuple[Architecture, ...] = eqx.field(static=True, default=(Architecture(),))
    batch_size: int = eqx.field(static=True, default=16)

    @property
    def shapes(self) -> tuple[Architecture, ...]:
        return self.architectures

    def draw(self, key: Key[Array, ""]) -> tuple[()]:
        return ()

    def task(self, drawn: tuple[()], shape: Architecture | None = None) -> LanguageModel:
        return LanguageModel(self.text, shape or self.architectures[0], self.batch_size)


#: The architectures of the family "language": learned positions, and a modern one.
ARCHITECTURES = (
    Architecture(),
    Architecture(positions="rotary", kv_heads=2, normalized=True),
)


def _normalized(x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
    """RMSNorm without gains."""
    mean_square = jnp.mean(jnp.square(widened(x)), axis=-1, keepdims=True)
    return (x * jax.lax.rsqrt(mean_square + 1e-6)).astype(x.dtype)


def _rotary(x: Float[Array, "b n heads size"]) -> Float[Array, "b n heads size"]:
    """Rotary position embeddings: entry i turns with entry i + size / 2 (arXiv:2104.09864)."""
    half = x.shape[-1] // 2
    frequencies = 1e4 ** -(np.arange(half) / half)
    angles = (np.arange(x.shape[1])[:, None] * frequencies)[:, None, :]
    c, s = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([c * first - s * second, s * first + c * second], axis=-1)
