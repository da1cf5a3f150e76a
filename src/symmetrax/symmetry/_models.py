"""Ready legs: the symmetries of common layers, for parameters under any names.

Each function returns a `NetworkSymmetry`; `a | b` joins several into one. Paths may hold patterns
(`blocks.{i}.mlp.up.weight`): every block then gets spaces of its own. `layout` says how matrices are stored:
"out in" (equinox, PyTorch; convolutions out, in, height, width) or "in out" (flax; height, width, in, out).
None of them looks at the loss: check with `verify`.
"""

import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from jaxtyping import PyTree

from symmetrax.symmetry._groups import (
    AbstractGroup,
    GeneralLinear,
    Orthogonal,
    PositiveDiagonal,
    ScaledRotation,
)
from symmetrax.symmetry._network import NetworkSymmetry, match_paths, named_shapes

Layout = Literal["out in", "in out"]
HeadLayout = Literal["out in", "in out", "heads"]
#: Makes the group of a space from its size: a class of groups, or any function.
MakeGroup = Callable[[int], AbstractGroup]


def mlp_symmetry(
    params: PyTree,
    weights: Sequence[str] | None = None,
    biases: Sequence[str | None] | None = None,
    *,
    group: MakeGroup = PositiveDiagonal,
    layout: Layout = "out in",
    degree: float | int = 1,
    scales: Sequence[str] = (),
    name: str = "hidden",
) -> NetworkSymmetry:
    """One space for every hidden layer of a multilayer perceptron.

    The group depends on the activation: `PositiveDiagonal` for ReLU, leaky and parametric ReLU,
    `SignDiagonal` for odd ones (tanh), `Permutation` for any, `Orthogonal` for radial ones, `GeneralLinear`
    for none. An activation with sigma(s z) = s^degree sigma(z), such as squared ReLU (`degree=2`), has
    scalings too.

    **Arguments:** `weights` and `biases` are paths, in the order of the layers; by default all matrices and
    all vectors of `params` in the order of the tree. `scales` are paths of vectors tau of activations
    z -> tau sigma(z / tau), one for each hidden layer: with them every activation has the group
    `NonzeroDiagonal`. Raises ValueError if the layers do not follow one another.

    >>> import equinox as eqx, jax, symmetrax as sx
    >>> model = eqx.nn.MLP(3, 2, width_size=5, depth=2, key=jax.random.key(0))
    >>> print(mlp_symmetry(model))
    hidden1: PositiveDiagonal(5)
    hidden2: PositiveDiagonal(5)
      layers.0.weight  hidden1 _
      layers.1.weight  hidden2 hidden1*
      layers.2.weight  _ hidden2*
      layers.0.bias    hidden1
      layers.1.bias    hidden2
    """
    arrays = named_shapes(params)
    weights = _with_axes(arrays, 2) if weights is None else tuple(weights)
    shapes = [_shape(arrays, path) for path in weights]
    outs, ins = zip(*(shape if layout == "out in" else shape[::-1] for shape in shapes), strict=True)
    for k in range(1, len(weights)):
        if ins[k] != outs[k - 1]:
            raise ValueError(
                f"{weights[k]} reads {ins[k]} units, but {weights[k - 1]} before it has {outs[k - 1]}: give "
                f"the paths of `weights` in the order of the layers, or another layout than {layout!r}."
            )
    if biases is None:
        vectors = [path for path in _with_axes(arrays, 1) if path not in scales]
        biases = vectors if len(vectors) >= len(weights) - 1 else ()
    star = "*" if degree == 1 else f"^{-degree:g}"
    names = [f"{name}{k}" for k in range(1, len(weights))]
    legs = {
        path: _beside(out, into if into == "_" else into + star, layout)
        for path, out, into in zip(weights, [*names, "_"], ["_", *names], strict=True)
    }
    for path, space, out in zip(biases, names, outs, strict=False):
        if path is not None:
            if _shape(arrays, path) != (out,):
                raise ValueError(f"{path} has shape {_shape(arrays, path)}, but its layer has {out} units.")
            legs[path] = space
    legs |= dict(zip(scales, names, strict=False))
    return NetworkSymmetry({space: group(out) for space, out in zip(names, outs, strict=False)}, legs, params)


def residual_cnn_symmetry(
    params: PyTree,
    stem: Sequence[str],
    first: str,
    second: str,
    head: str,
    *,
    stream_vectors: Sequence[str] = (),
    inner_vectors: Sequence[str] = (),
    group: MakeGroup = PositiveDiagonal,
    layout: Layout = "out in",
) -> NetworkSymmetry:
    """The channels of a convolutional network with residual blocks: one stream, and one space in every block.

    Every block adds `second(sigma(first(x)))` to the stream x, so that all that write to it share one
    element. Vectors are biases, or gains and biases of a normalization with running statistics: those of the
    stream in `stream_vectors`, those inside blocks, with the blocks' `{i}`, in `inner_vectors`.

    **Arguments:** `stem` are paths of what writes to the stream first; `first` and `second` patterns of the
    blocks' kernels; `head` the matrix that reads the stream, pooled or flattened.

    >>> import jax.numpy as jnp
    >>> params = {"stem": jnp.ones((4, 3, 3, 3)), "a0": jnp.ones((6, 4, 3, 3)), "b0": jnp.ones((4, 6, 3, 3))}
    >>> params["head"] = jnp.ones((10, 4))
    >>> residual_cnn_symmetry(params, ["stem"], "a{i}", "b{i}", "head").legs["b0"]
    'stream inner0* _ _'
    """
    arrays = named_shapes(params)
    inner = "inner" + _fields(first)
    channels = _side(_shape(arrays, stem[0]), "out", layout)
    legs = {path: _kernel(len(_shape(arrays, path)), "stream", "_", layout) for path in stem}
    legs[first] = _kernel(len(_shape(arrays, first)), inner, "stream*", layout)
    legs[second] = _kernel(len(_shape(arrays, second)), "stream", inner + "*", layout)
    reads = _side(_shape(arrays, head), "in", layout)
    flat = "(stream* _)" if layout == "out in" else "(_ stream*)"
    legs[head] = _beside("_", "stream*" if reads == channels else flat, layout)
    for path in stream_vectors:
        legs[path] = _vector(len(_shape(arrays, path)), "stream")
    for path in inner_vectors:
        legs[path] = _vector(len(_shape(arrays, path)), inner)
    width = _side(_shape(arrays, first), "out", layout)
    return NetworkSymmetry({"stream": group(channels), inner: group(width)}, legs, params)


def attention_symmetry(
    params: PyTree,
    query: str,
    key: str,
    value: str,
    output: str,
    *,
    heads: int,
    kv_heads: int | None = None,
    biases: Mapping[str, str] | None = None,
    rotary: Literal["interleaved", "half"] | None = None,
    rotary_size: int | None = None,
    normalized: bool = False,
    gains: tuple[str, str] | None = None,
    layout: HeadLayout = "out in",
) -> NetworkSymmetry:
    """Queries with keys, and values with outputs, head by head.

    Scores are products of queries and keys, so (W_q, W_k) -> (A W_q, A^-T W_k) keeps them, for any invertible
    A of a head; (W_v, W_o) -> (A W_v, W_o A^-1) keeps what the head adds. With fewer key-value heads than
    heads (grouped-query, multi-query) all heads of a group share A. Rotary embeddings leave only 2 x 2 scaled
    rotations, one per frequency; normalized queries and keys only orthogonal A (with rotary: rotations); with
    trainable gains after the normalization, only scalings of the one gain against the other.

    **Arguments:** paths or patterns of the four matrices. `biases` maps "query", "key", "value" to paths.
    `rotary` is how the pairs lie: "interleaved" (0 with 1) or "half" (0 with size/2); `rotary_size` says how
    many of a head's entries turn (default all). `layout="heads"` is flax's (in, heads, size) and (heads,
    size, out). Values and outputs have their full freedom in all cases.

    >>> import equinox as eqx, jax
    >>> layer = eqx.nn.MultiheadAttention(2, 8, key=jax.random.key(0))
    >>> names = [f"{part}_proj.weight" for part in ("query", "key", "value", "output")]
    >>> print(attention_symmetry(layer, *names, heads=2))
    qk: GeneralLinear(4, kv=2)
    vo: GeneralLinear(4, kv=2)
      query_proj.weight   (kv qk) _
      key_proj.weight     (kv qk*) _
      value_proj.weight   (kv vo) _
      output_proj.weight  _ (kv vo*)
    """
    arrays, fields = named_shapes(params), _fields(query)
    kv_heads = heads if kv_heads is None else kv_heads
    if heads % kv_heads:
        raise ValueError(f"{heads} heads cannot be grouped over {kv_heads} key-value heads.")
    size, read = (_head_size(arrays, path, kv_heads, layout) for path in (key, value))
    kv = {"kv": kv_heads}
    several = "" if heads == kv_heads else " _"

    def axes(entries: str, shared: str = "") -> str:
        """The heads and their entries, in one axis or two."""
        if layout != "heads":
            return f"(kv{shared} {entries})"
        return " ".join((f"(kv{shared})" if shared else "kv", f"({entries})" if " " in entries else entries))

    pairs = _pairs(size, rotary, rotary_size)
    spaces: dict[str, AbstractGroup] = {f"vo{fields}": GeneralLinear(read, kv)}
    sides = {"value": axes(f"vo{fields}")}
    if gains is None:
        entries, more = _query_key(fields, size, pairs, rotary, normalized, kv)
        spaces = more | spaces
        sides |= {"query": axes(entries(""), several), "key": axes(entries("*"))}
    written = {"query": query, "key": key, "value": value}
    legs = {written[part]: _beside(sides[part], "_", layout) for part in written if part in sides}
    legs[output] = _beside("_", axes(f"vo{fields}*", several), layout)
    for part, path in (biases or {}).items():
        if part not in written:
            raise ValueError(f"`biases` has 'query', 'key' and 'value', got {part!r}.")
        if part in sides:
            legs[path] = sides[part]
    if gains is not None:
        if not normalized:
            raise ValueError(
                "`gains` are those of normalized queries and keys: pass normalized=True as well."
            )
        entries, more = _gains(fields, size, pairs, rotary)
        spaces |= more
        legs |= {path: entries(star) for path, star in zip(gains, ("", "*"), strict=True)}
    return NetworkSymmetry(spaces, legs, params)


def gated_mlp_symmetry(
    params: PyTree,
    gate: str,
    up: str,
    down: str,
    *,
    relu: bool = False,
    vectors: Sequence[str] = (),
    group: MakeGroup = PositiveDiagonal,
    layout: Layout = "out in",
) -> NetworkSymmetry:
    """The hidden units of down(act(gate x) * up x), a gated linear unit.

    Whatever the gate's activation, `up` scales against `down` (positively; with `SignDiagonal`, in sign). A
    ReLU gate (`relu=True`) scales as well, by its own amounts.

    **Arguments:** paths or patterns of the three matrices; `vectors` are biases of `up`.

    >>> import jax.numpy as jnp
    >>> params = {"gate": jnp.ones((5, 3)), "up": jnp.ones((5, 3)), "down": jnp.ones((3, 5))}
    >>> gated_mlp_symmetry(params, "gate", "up", "down", relu=True).legs["down"]
    '_ up*&gate*'
    """
    arrays, fields = named_shapes(params), _fields(up)
    width = _side(_shape(arrays, up), "out", layout)
    spaces, legs = {f"up{fields}": group(width)}, {up: _beside(f"up{fields}", "_", layout)}
    reads = f"up{fields}*"
    if relu:
        spaces[f"gate{fields}"] = PositiveDiagonal(width)
        legs[gate] = _beside(f"gate{fields}", "_", layout)
        reads += f"&gate{fields}*"
    legs[down] = _beside("_", reads, layout)
    return NetworkSymmetry(spaces, legs | dict.fromkeys(vectors, f"up{fields}"), params)


def residual_stream_symmetry(
    params: PyTree,
    writes: Sequence[str],
    reads: Sequence[str],
    *,
    embeddings: Sequence[str] = (),
    vectors: Sequence[str] = (),
    norm: Literal["rms", "layer"] = "rms",
    layout: HeadLayout = "out in",
) -> NetworkSymmetry:
    """Rotations of a residual stream that is read only through normalization without gains.

    RMSNorm commutes with every orthogonal matrix, LayerNorm with those that keep the mean. Gains must be
    folded into the matrices that read, and be gone from the parameters: a gain that stays, even at one,
    breaks the gradient law. A norm's epsilon is harmless here.

    **Arguments:** paths or patterns of what adds to the stream and what reads it; `embeddings` are tables
    (tokens, width), tied to the output or not; `vectors` are biases that are added to the stream.

    >>> import jax.numpy as jnp
    >>> params = {"embed": jnp.ones((7, 4)), "up": jnp.ones((5, 4)), "down": jnp.ones((4, 5))}
    >>> residual_stream_symmetry(params, ["down"], ["up"], embeddings=["embed"]).legs
    {'down': 'stream _', 'up': '_ stream*', 'embed': '_ stream'}
    """
    arrays = named_shapes(params)
    legs = {path: _stream(len(_shape(arrays, path)), "stream", "write", layout) for path in writes}
    legs |= {path: _stream(len(_shape(arrays, path)), "stream*", "read", layout) for path in reads}
    legs |= dict.fromkeys(embeddings, "_ stream") | dict.fromkeys(vectors, "stream")
    axis = -1 if layout != "out in" else 0
    width = _shape(arrays, embeddings[0])[-1] if embeddings else _shape(arrays, writes[0])[axis]
    return NetworkSymmetry(
        {"stream": Orthogonal(width, fix="mean" if norm == "layer" else None)}, legs, params
    )


def low_rank_symmetry(params: PyTree, a: str, b: str, *, layout: Layout = "out in") -> NetworkSymmetry:
    """The inner space of low-rank adapters, whose matrices count only by their product B A.

    (B, A) -> (B M^-1, M A) for any invertible M. **Arguments:** paths or patterns of A (rank, in) and B (out,
    rank), as in LoRA.

    >>> import jax.numpy as jnp
    >>> low_rank_symmetry({"A": jnp.ones((2, 6)), "B": jnp.ones((5, 2))}, "A", "B").legs
    {'A': 'rank _', 'B': '_ rank*'}
    """
    space = "rank" + _fields(a)
    legs = {a: _beside(space, "_", layout), b: _beside("_", space + "*", layout)}
    return NetworkSymmetry(
        {space: GeneralLinear(_side(_shape(named_shapes(params), a), "out", layout))}, legs, params
    )


def normalized_scale_symmetry(
    params: PyTree,
    kernels: Sequence[str],
    vectors: Sequence[str] = (),
    *,
    groups: int | None = None,
    layout: Layout = "out in",
) -> NetworkSymmetry:
    """The scale of what goes into a normalization, W -> s W: the output does not depend on it.

    The gradient goes with 1 / s, so this is a learning rate of its own for every scale. It holds up to the
    norm's epsilon: report it as approximate.

    **Arguments:** `kernels`, and `vectors` (their biases), scale together, the layer as a whole (LayerNorm,
    RMSNorm), or in `groups` parts of the outputs (GroupNorm; BatchNorm: as many as there are channels).

    >>> import jax.numpy as jnp
    >>> normalized_scale_symmetry({"w": jnp.ones((8, 3, 3, 3))}, ["w"], groups=4).legs
    {'w': '(scale _) _ _ _'}
    """
    arrays, groups = named_shapes(params), groups or 1
    legs = {path: _kernel(len(_shape(arrays, path)), "(scale _)", "_", layout) for path in kernels}
    legs |= {path: _vector(len(_shape(arrays, path)), "(scale _)") for path in vectors}
    return NetworkSymmetry({"scale": PositiveDiagonal(groups)}, legs, params)


def _pairs(size: int, rotary: str | None, rotary_size: int | None) -> int:
    """How many pairs of a head's entries turn."""
    if rotary not in (None, "interleaved", "half"):
        raise ValueError(f"`rotary` is 'interleaved', 'half' or None, got {rotary!r}.")
    if rotary is None:
        return 0
    turning = size if rotary_size is None else rotary_size
    if turning % 2 or not 0 < turning <= size:
        raise ValueError(f"Rotary embeddings turn an even number of a head's {size} entries, got {turning}.")
    return turning // 2


def _gains(
    fields: str, size: int, pairs: int, rotary: str | None
) -> tuple[Callable[[str], str], dict[str, AbstractGroup]]:
    """The leg of a vector of gains, from its star, and its groups: pairs that turn share one scale."""
    rest = size - 2 * pairs
    spaces: dict[str, AbstractGroup] = {f"gain{fields}": PositiveDiagonal(pairs)} if pairs else {}
    if rest:
        spaces[f"gain{fields}" if not pairs else f"rest{fields}"] = PositiveDiagonal(rest)

    def entries(star: str) -> str:
        gain = f"gain{fields}{star}"
        if not pairs:
            return gain
        paired = f"({gain} _)" if rotary == "interleaved" else f"(_ {gain})"
        return f"{paired}+rest{fields}{star}" if rest else paired

    return entries, spaces


def _query_key(
    fields: str, size: int, pairs: int, rotary: str | None, normalized: bool, kv: dict[str, int]
) -> tuple[Callable[[str], str], dict[str, AbstractGroup]]:
    """The leg of a head's entries, from its star, and the groups of queries and keys."""
    rest = size - 2 * pairs
    spaces: dict[str, AbstractGroup] = {}
    if rest:
        spaces[f"qk{fields}"] = Orthogonal(rest, kv) if normalized else GeneralLinear(rest, kv)
    if not pairs:
        return lambda star: f"qk{fields}{star}", spaces
    spaces[f"turn{fields}"] = ScaledRotation(per={**kv, "f": pairs}, unit=normalized)

    def entries(star: str) -> str:
        turn = f"turn{fields}{star}"
        turning = f"f {turn}" if rotary == "interleaved" else f"{turn} f"
        return f"({turning})+qk{fields}{star}" if rest else turning

    return entries, spaces


def _beside(out: str, into: str, layout: HeadLayout) -> str:
    return f"{out} {into}" if layout == "out in" else f"{into} {out}"


def _stream(axes: int, word: str, side: Literal["write", "read"], layout: HeadLayout) -> str:
    first = (layout == "out in") == (side == "write")
    blanks = ["_"] * (axes - 1)
    return " ".join([word, *blanks] if first else [*blanks, word])


def _kernel(axes: int, out: str, into: str, layout: Layout) -> str:
    space = ["_"] * (axes - 2)
    return " ".join([out, into, *space] if layout == "out in" else [*space, into, out])


def _vector(axes: int, word: str) -> str:
    """A bias; equinox gives those of convolutions axes of length 1 behind."""
    return " ".join([word, *["_"] * (axes - 1)])


def _head_size(arrays: Mapping[str, Any], path: str, heads: int, layout: HeadLayout) -> int:
    shape = _shape(arrays, path)
    if layout == "heads":
        return shape[-1]
    length = shape[0 if layout == "out in" else -1]
    if length % heads:
        raise ValueError(f"{path} has {length} outputs, which {heads} heads cannot share.")
    return length // heads


def _side(shape: tuple[int, ...], side: Literal["out", "in"], layout: Layout) -> int:
    if layout == "out in":
        return shape[0] if side == "out" else shape[1]
    return shape[-1] if side == "out" else shape[-2]


def _shape(arrays: Mapping[str, Any], path: str) -> tuple[int, ...]:
    """The shape of the first array that matches."""
    return arrays[next(iter(match_paths(path, arrays)))].shape


def _with_axes(arrays: Mapping[str, Any], axes: int) -> tuple[str, ...]:
    return tuple(path for path, array in arrays.items() if len(array.shape) == axes)


def _fields(pattern: str) -> str:
    """The `{i}` of a pattern, to put behind the name of a space."""
    return "".join(
        f"{{{field}}}" for _, field, _, _ in string.Formatter().parse(pattern) if field is not None
    )
