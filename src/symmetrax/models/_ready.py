"""Ready-made symmetries of common layers, for parameters with any names.

Each function returns a `NetworkSymmetry`; combine several with `a | b`. Paths may contain patterns
(`blocks.{i}.mlp.up.weight`), in which case every block gets its own spaces. `layout` is the storage order of
matrices: "out in" (equinox, PyTorch; convolutions out, in, height, width) or "in out" (flax; height, width,
in, out). These functions never evaluate the loss, so check the result with `verify`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from jaxtyping import PyTree

from symmetrax.groups._diagonal import Permutation, PositiveDiagonal
from symmetrax.groups._matrices import GeneralLinear, Orthogonal
from symmetrax.models._elementwise import OWN, MakeGroup, check_unowned, chosen_group
from symmetrax.models._layers import bias_paths, layer_order
from symmetrax.symmetry._layouts import (
    HeadLayout,
    Layout,
    kernel_spec,
    matrix_spec,
    path_fields,
    shape_of,
    side_of,
    stream_spec,
    vector_spec,
    with_axes,
)
from symmetrax.symmetry._network import NetworkSymmetry
from symmetrax.symmetry._paths import named_shapes, only_path


def mlp_symmetry(
    params: PyTree,
    weights: Sequence[str] | None = None,
    biases: Sequence[str | None] | None = None,
    *,
    group: MakeGroup | None = None,
    layout: Layout = "out in",
    degree: float | int = 1,
    scales: Sequence[str] = (),
    name: str = "hidden",
) -> NetworkSymmetry:
    """The symmetry of a multilayer perceptron, with a space for every hidden layer.

    The group depends on the activation: `PositiveDiagonal` for ReLU, leaky and parametric ReLU,
    `SignDiagonal` for odd activations (tanh), `Permutation` for any activation, `Orthogonal` for radial
    activations, `GeneralLinear` for linear networks. An activation with sigma(s z) = s^degree sigma(z), such
    as squared ReLU (`degree=2`), also has scalings. If `params.activation` is a function, as in
    `equinox.nn.MLP`, its symmetry is inferred from its values: the default is then scalings or signs, and if
    the activation has neither, or not the group you ask for, a ValueError explains your options. Without an
    `activation`, the default is `PositiveDiagonal`.

    **Arguments:** `weights` and `biases` are paths, in the order of the layers; by default all matrices and
    all vectors of `params`, in tree order. For a dict, the default is the order of the numbers in their
    names if their shapes then follow one another, else the unique order in which they do. `scales` are paths
    of vectors tau of activations z -> tau sigma(z / tau), a vector for each hidden layer: with them, every
    activation has the group `NonzeroDiagonal`. Raises ValueError if the layers do not follow one another, or
    do so in several orders.

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
    if not scales:  # activations with a trainable scale are not tested: any activation has this symmetry
        group = chosen_group(params, group, degree)
    group = PositiveDiagonal if group is None else group
    check_unowned(group, arrays)
    weights, outs = _layers(params, arrays, weights, layout)
    if biases is None:
        scaled = {only_path(path, arrays) for path in scales}
        vectors = [path for path in with_axes(arrays, 1) if path not in scaled and not path.startswith(OWN)]
        biases = bias_paths(params, weights, outs, vectors, arrays)
    # Scaling the input of sigma by s scales its output by s^degree, which the next layer must undo.
    star = "*" if degree == 1 else f"^{-degree:g}"
    names = [f"{name}{k}" for k in range(1, len(weights))]
    specs = {
        path: matrix_spec(out, into if into == "_" else into + star, layout)
        for path, out, into in zip(weights, [*names, "_"], ["_", *names], strict=True)
    }
    for path, space, out in zip(biases, names, outs, strict=False):
        if path is not None:
            if shape_of(arrays, path) != (out,):
                raise ValueError(
                    f"{path} has shape {shape_of(arrays, path)}, but its layer has {out} units: give the "
                    "paths of `biases` in the order of the layers, with None for a layer without a bias."
                )
            specs[path] = space
    specs |= dict(zip(scales, names, strict=False))  # tau transforms like the inputs of its activation
    return NetworkSymmetry(
        {space: group(out) for space, out in zip(names, outs, strict=False)}, specs, params
    )


def _layers(
    params: PyTree, arrays: Mapping[str, Any], weights: Sequence[str] | None, layout: Layout
) -> tuple[Sequence[str], tuple[int, ...]]:
    """The paths of the matrices in the order of the layers, and the number of units of each layer."""
    if weights is None:
        matrices = [path for path in with_axes(arrays, 2) if not path.startswith(OWN)]
        weights = layer_order(params, arrays, matrices, layout)
    else:
        weights = [only_path(path, arrays) for path in weights]
    shapes = [shape_of(arrays, path) for path in weights]
    outs, ins = zip(*(shape if layout == "out in" else shape[::-1] for shape in shapes), strict=True)
    for k in range(1, len(weights)):
        if ins[k] != outs[k - 1]:
            raise ValueError(
                f"{weights[k]} has {ins[k]} inputs, but {weights[k - 1]} before it has {outs[k - 1]} units: "
                f"give the paths of `weights` in the order of the layers, or another layout than {layout!r}."
            )
    return weights, outs


def residual_cnn_symmetry(
    params: PyTree,
    stem: Sequence[str],
    first: str,
    second: str,
    head: str,
    *,
    stream_vectors: Sequence[str] = (),
    inner_vectors: Sequence[str] = (),
    normalized: bool | Sequence[str] = False,
    stream_statistics: Sequence[str] = (),
    inner_statistics: Sequence[str] = (),
    group: MakeGroup | None = None,
    layout: Layout = "out in",
) -> NetworkSymmetry:
    """The channel symmetry of a residual CNN: a space for the stream, and a space inside every block.

    Every block adds `second(sigma(first(x)))` to the stream x, so all kernels that write to the stream share
    an element. Vectors are biases: pass the biases of the stream as `stream_vectors`, and the biases inside
    blocks, with the `{i}` of the blocks, as `inner_vectors`.

    If kernels are followed by a normalization, with batch or running statistics, pass `normalized=True` (or a
    list of the kernels concerned), and as vectors the gains and biases of the normalization instead of the
    kernels'. Scalings and signs then act on these vectors and leave the outputs of the kernel unchanged.
    Permutations also move the kernel, its bias, and its running means and variances if they are in `params`:
    pass these as `stream_statistics` and `inner_statistics`. Permutations are valid only for batch
    normalization, not for channels in groups.

    **Arguments:** `stem` lists the paths of the arrays that first write to the stream; `first` and `second`
    are patterns of the blocks' kernels; `head` is the matrix that reads the stream, pooled or flattened.
    `group` is as in `mlp_symmetry`.

    >>> import jax.numpy as jnp
    >>> params = {"stem": jnp.ones((4, 3, 3, 3)), "a0": jnp.ones((6, 4, 3, 3)), "b0": jnp.ones((4, 6, 3, 3))}
    >>> params["head"] = jnp.ones((10, 4))
    >>> residual_cnn_symmetry(params, ["stem"], "a{i}", "b{i}", "head").specs["b0"]
    'stream inner0* _ _'
    """
    arrays, group = named_shapes(params), chosen_group(params, group, 1)
    inner = "inner" + path_fields(first)
    channels, width = (side_of(shape_of(arrays, path), "out", layout) for path in (stem[0], first))
    spaces = {"stream": group(channels), inner: group(width)}
    check_unowned(group, arrays)
    kernels = [*stem, first, second]
    normed = [] if normalized is False else kernels if normalized is True else list(normalized)
    for path in normed:
        if path not in kernels:
            raise ValueError(
                f"`normalized` names {path!r}, which is not among the kernels {kernels}: name some of "
                "these, or pass True for all."
            )

    def kernel(path: str, out: str, into: str) -> str:
        # The gain of a normalization scales or flips its outputs instead of the kernel; only a permutation
        # moves the kernel as well.
        keeps = path in normed and not isinstance(spaces[out], Permutation)
        return kernel_spec(len(shape_of(arrays, path)), "_" if keeps else out, into, layout)

    specs = {path: kernel(path, "stream", "_") for path in stem}
    specs |= {first: kernel(first, inner, "stream*"), second: kernel(second, "stream", inner + "*")}
    for space, paths in (("stream", stream_statistics), (inner, inner_statistics)):
        if isinstance(spaces[space], Permutation):
            specs |= {path: vector_spec(len(shape_of(arrays, path)), space) for path in paths}
    # A head that reads the flattened stream has an input for every channel and position.
    reads = side_of(shape_of(arrays, head), "in", layout)
    flat = "(stream* _)" if layout == "out in" else "(_ stream*)"
    specs[head] = matrix_spec("_", "stream*" if reads == channels else flat, layout)
    for path in stream_vectors:
        specs[path] = vector_spec(len(shape_of(arrays, path)), "stream")
    for path in inner_vectors:
        specs[path] = vector_spec(len(shape_of(arrays, path)), inner)
    return NetworkSymmetry(spaces, specs, params)


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
    """The symmetry of the hidden units of a gated linear unit, down(act(gate x) * up x).

    For any activation of the gate, `up` scales against `down` (positively or, with `SignDiagonal`, by signs).
    A ReLU gate (`relu=True`) has independent scalings as well; if `params.activation` is a function, it must
    be positively homogeneous.

    **Arguments:** `gate`, `up` and `down` are paths or patterns of the matrices; `vectors` are biases of
    `up`.

    >>> import jax.numpy as jnp
    >>> params = {"gate": jnp.ones((5, 3)), "up": jnp.ones((5, 3)), "down": jnp.ones((3, 5))}
    >>> gated_mlp_symmetry(params, "gate", "up", "down", relu=True).specs["down"]
    '_ up*&gate*'
    """
    arrays, fields = named_shapes(params), path_fields(up)
    if relu:  # raises if the model's activation contradicts it
        chosen_group(params, PositiveDiagonal, 1)
    width = side_of(shape_of(arrays, up), "out", layout)
    spaces, specs = {f"up{fields}": group(width)}, {up: matrix_spec(f"up{fields}", "_", layout)}
    reads = f"up{fields}*"
    if relu:  # gate and up are factors of one product, so `down` undoes both scales
        spaces[f"gate{fields}"] = PositiveDiagonal(width)
        specs[gate] = matrix_spec(f"gate{fields}", "_", layout)
        reads += f"&gate{fields}*"
    specs[down] = matrix_spec("_", reads, layout)
    return NetworkSymmetry(spaces, specs | dict.fromkeys(vectors, f"up{fields}"), params)


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

    RMSNorm commutes with every orthogonal matrix, LayerNorm with the orthogonal matrices that preserve the
    mean. Fold gains into the matrices that read the stream and remove them from the parameters: a remaining
    gain, even if equal to 1, breaks the gradient law. The epsilon of the normalization does no harm here.

    **Arguments:** `writes` and `reads` are paths or patterns of the arrays that add to the stream and that
    read it; `embeddings` are tables (tokens, width), tied to the output or not; `vectors` are biases added to
    the stream.

    >>> import jax.numpy as jnp
    >>> params = {"embed": jnp.ones((7, 4)), "up": jnp.ones((5, 4)), "down": jnp.ones((4, 5))}
    >>> residual_stream_symmetry(params, ["down"], ["up"], embeddings=["embed"]).specs
    {'down': 'stream _', 'up': '_ stream*', 'embed': '_ stream'}
    """
    arrays = named_shapes(params)
    specs = {path: stream_spec(len(shape_of(arrays, path)), "stream", "write", layout) for path in writes}
    specs |= {path: stream_spec(len(shape_of(arrays, path)), "stream*", "read", layout) for path in reads}
    specs |= dict.fromkeys(embeddings, "_ stream") | dict.fromkeys(vectors, "stream")
    # Every array of the stream has its width; embeddings are tables, whatever the layout.
    axis = -1 if layout != "out in" else 0
    width = shape_of(arrays, embeddings[0])[-1] if embeddings else shape_of(arrays, writes[0])[axis]
    return NetworkSymmetry(
        {"stream": Orthogonal(width, fix="mean" if norm == "layer" else None)}, specs, params
    )


def low_rank_symmetry(params: PyTree, a: str, b: str, *, layout: Layout = "out in") -> NetworkSymmetry:
    """The symmetry of low-rank adapters, which depend on their factors only through the product B A.

    (B, A) -> (B M^-1, M A) for any invertible M.

    **Arguments:** `a` and `b` are paths or patterns of A (rank, in) and B (out, rank), as in LoRA.

    >>> import jax.numpy as jnp
    >>> low_rank_symmetry({"A": jnp.ones((2, 6)), "B": jnp.ones((5, 2))}, "A", "B").specs
    {'A': 'rank _', 'B': '_ rank*'}
    """
    space = "rank" + path_fields(a)
    specs = {a: matrix_spec(space, "_", layout), b: matrix_spec("_", space + "*", layout)}
    return NetworkSymmetry(
        {space: GeneralLinear(side_of(shape_of(named_shapes(params), a), "out", layout))}, specs, params
    )


def normalized_scale_symmetry(
    params: PyTree,
    kernels: Sequence[str],
    vectors: Sequence[str] = (),
    *,
    variances: Sequence[str] = (),
    groups: int | None = None,
    layout: Layout = "out in",
) -> NetworkSymmetry:
    """The scale invariance of weights before a normalization, W -> s W.

    The gradient is proportional to 1 / s, so the scale acts as an effective learning rate. The symmetry holds
    up to the epsilon of the normalization, so report it as approximate. If only two values are normalized
    together, the output is a sign; the gradient then comes from epsilon alone, and `verify` calls the
    gradient law wrong.

    **Arguments:** `kernels` and `vectors` (their biases) scale together: the layer as a whole (LayerNorm,
    RMSNorm), or in `groups` parts of the outputs (GroupNorm; for BatchNorm, the number of channels). In
    evaluation mode, the running means of BatchNorm belong to the `vectors`, and its `variances` scale by s^2.

    >>> import jax.numpy as jnp
    >>> normalized_scale_symmetry({"w": jnp.ones((8, 3, 3, 3))}, ["w"], groups=4).specs
    {'w': '(scale _) _ _ _'}
    """
    arrays, groups = named_shapes(params), groups or 1
    specs = {path: kernel_spec(len(shape_of(arrays, path)), "(scale _)", "_", layout) for path in kernels}
    specs |= {path: vector_spec(len(shape_of(arrays, path)), "(scale _)") for path in vectors}
    # A variance is quadratic in the kernel.
    specs |= {path: vector_spec(len(shape_of(arrays, path)), "(scale^2 _)") for path in variances}
    return NetworkSymmetry({"scale": PositiveDiagonal(groups)}, specs, params)
