"""Teleports in the null space of a batch: along weights that a layer's inputs never excite."""

import math
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Literal, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from symmetrax._tree import (
    all_finite,
    check_finite,
    conjugate,
    known_name,
    leaf_names,
    relative,
    safe_norm,
    select,
    shift,
    squared_norm,
    times,
    widened,
)
from symmetrax.search._levelset import AbstractPointSearch, SearchResult, arrive

Layout = Literal["out in", "in out"]

# Increases of the gradient, and projections of its derivative, below this many rounding errors count as zero.
NOISE = 100


class NullSpace(AbstractPointSearch):
    """Increases the gradient at the same outputs on a batch: weights move in the null space of their inputs.

    With R (n x d) the inputs of a layer with weights W (out x d), and V the right singular vectors of R, each
    step is

        W <- W + rate * D (I - V V'),    D = d (||g||^2 / 2) / dW = (H g)_W,

    where g is the gradient of the loss in all parameters and H its Hessian. This leaves R W', and everything
    computed from it, unchanged; only the gradients of layers *before* W change, so moving the first layer
    alone gains nothing. With `energy` 1, V spans all of R, and steps of any size preserve the loss on the
    batch up to rounding; that requires R to have rank below d, for example fewer samples than inputs. With
    lower `energy`, V holds the fewest directions that account for this fraction of ||R||^2: the weights have
    more freedom, and the loss changes. All layers may move at once, since none changes the inputs of another.
    Leaves that are not named, biases included, stay unchanged.

    **Arguments:** `inputs(params, batch)` returns a dict from the path of a weight leaf, such as
    "blocks.0.weight" ("params" for a lone array), to the layer's inputs R, of shape (..., d); `patches`
    builds the inputs of a convolution. In the `layout` "out in", the axes after a leaf's first are the d
    inputs; in "in out", the inputs are its first axis, or all but the last. Each of `steps` steps moves all
    leaves together by `rate` times their norm, or with `normalize=False` by `rate` times the derivative,
    which depends on the scale of the loss. The total jump is at most `max_norm` long. All numbers except
    `steps` may be arrays.

    **Returns** a `SearchResult` at the visited point with the largest gradient. `residual` is the largest
    relative change of a layer's outputs, ||R (W' - W0')|| / ||R W0'||; `converged` is whether the gradient
    increased. If it did not, for example because there is no null space, the parameters are returned
    unchanged. Derivatives treat the jump as a constant. **Raises** ValueError for a path that is not a leaf,
    and for inputs whose width does not match the leaf. Source: arXiv:2502.11362.

    >>> import jax, jax.numpy as jnp
    >>> x, params = jnp.array([1.0, 2.0]), {"first": jnp.ones((3, 2)), "second": jnp.array([[1.0, 2.0, 3.0]])}
    >>> def hidden(params, x):
    ...     return jnp.tanh(params["first"] @ x)
    >>> search = NullSpace(lambda params, x: {"second": hidden(params, x)})
    >>> found = search(lambda params: jnp.sum(params["second"] @ hidden(params, x)), params, x)
    >>> bool(found.converged), float(found.residual) < 1e-6
    (True, True)
    """

    inputs: Callable[[PyTree, PyTree], dict[str, Array]]
    steps: int = eqx.field(static=True, default=10)
    rate: float | Float[Array, ""] = 1e-2
    energy: float | Float[Array, ""] = 1.0
    max_norm: float | Float[Array, ""] = math.inf
    normalize: bool = eqx.field(static=True, default=True)
    layout: Layout = eqx.field(static=True, default="out in")

    def __check_init__(self):
        for name in ("steps", "rate", "energy", "max_norm"):
            value = getattr(self, name)
            if isinstance(value, int | float) and not value > 0:
                raise ValueError(f"NullSpace needs {name} > 0, got {name}={value}.")
        if isinstance(self.energy, int | float) and self.energy > 1:
            raise ValueError(f"NullSpace needs a fraction as energy, at most 1, got {self.energy}.")
        _check_layout(self.layout)

    def evaluations(self) -> int:
        return 3 * self.steps + 1

    def __call__(self, value_fn, params, batch=None) -> SearchResult:
        numbers, rest = eqx.partition(params, eqx.is_inexact_array)
        check_finite(numbers, "teleport from")
        start = jax.lax.stop_gradient(numbers)
        layers = self._layers(start, jax.lax.stop_gradient(self.inputs(eqx.combine(start, rest), batch)))
        names = leaf_names(start)
        weights = {name: layer.weights for name, layer in layers.items()}
        size = safe_norm(weights)

        def slope(w):
            return jax.grad(lambda w: value_fn(eqx.combine(w, rest)))(w)

        def at(jump):
            leaves, structure = jax.tree.flatten(start)
            for i, name in enumerate(names):
                if name in layers:
                    leaves[i] = leaves[i] + self._fold(jump[name], leaves[i])
            return jax.tree.unflatten(structure, leaves)

        def keep(jump, gradient, best, largest):
            square = squared_norm(gradient).astype(largest.dtype)
            better = (square > largest) & jnp.isfinite(square) & all_finite(jump)
            return select(better, jump, best), jnp.where(better, square, largest)

        def climb(state, _):
            jump, *best = state
            w = at(jump)
            gradient = slope(w)
            best = keep(jump, gradient, *best)
            # H g, the derivative of ||g||^2 / 2, by one forward derivative of the gradient.
            curved = conjugate(jax.jvp(slope, (w,), (conjugate(gradient),))[1])
            curved = dict(zip(names, jax.tree.leaves(curved), strict=True))
            derivative = {n: self._unfold(curved[n], x.weights.shape[1]) for n, x in layers.items()}
            free = {n: x.project(derivative[n]) for n, x in layers.items()}
            # Where no direction is free, the projection leaves rounding errors. With `normalize` they would
            # be scaled up to a full step in a random direction.
            length, noise = safe_norm(free), NOISE * _eps(free) * safe_norm(derivative)
            rate, most = (jnp.asarray(x, length.dtype) for x in (self.rate, self.max_norm))
            rate = rate * size / jnp.where(length > 0, length, 1.0) if self.normalize else rate
            jump = shift(jump, jnp.where(length > noise, rate, 0.0), free)
            far = safe_norm(jump)
            cap = jnp.where(far > most, most / jnp.where(far > 0, far, 1.0), 1.0)
            return (times(cap, jump), *best), best[1]

        # The state is the jump from the start, not the point: small steps are not rounded off, and what is
        # not moved stays equal bit for bit.
        no_jump = jax.tree.map(jnp.zeros_like, weights)
        first = (no_jump, no_jump, jnp.array(-jnp.inf, size.dtype))
        (jump, *best), largest = jax.lax.scan(climb, first, None, length=self.steps)
        jump, square = keep(jump, slope(at(jump)), *best)
        # `largest[0]` belongs to the start. The comparison is False for NaN and -inf, from a start without a
        # finite gradient.
        rose = square > largest[0] * (1 + NOISE * _eps(jump))
        jump = select(rose, jump, no_jump)
        changes = [relative(x.outputs(jump[n]), x.outputs(x.weights)) for n, x in layers.items()]
        residual = jnp.where(rose, jnp.max(jnp.stack(changes)), 0.0)
        arrival = arrive(numbers, select(rose, at(jump), start), residual, self.evaluations(), rose)
        return arrival._replace(params=eqx.combine(arrival.params, rest))

    def _layers(self, params: PyTree, inputs: dict[str, Array]) -> "dict[str, _Layer]":
        """Returns the weights and spans of the named layers, after checking that they fit."""
        leaves = dict(zip(leaf_names(params), jax.tree.leaves(params), strict=True))
        if not inputs:
            raise ValueError(
                f"`inputs` must return the inputs of at least one layer, got none; the leaves are "
                f"{', '.join(leaves)}."
            )
        layers = {}
        for name, rows in inputs.items():
            name = known_name(name, leaves)
            if name not in leaves:
                near = get_close_matches(name, leaves, n=1, cutoff=0.0)
                raise ValueError(f"`inputs` names {name!r}, which is not a leaf; did you mean {near[0]!r}?")
            shape, width = leaves[name].shape, rows.shape[-1] if rows.ndim else 1
            fits = {layout: _widths(shape, layout) for layout in get_args(Layout)}
            if width not in fits[self.layout]:
                wants = " or ".join(map(str, fits[self.layout])) or "two axes or more"
                hint = "".join(f" It would fit layout={other!r}." for other in fits if width in fits[other])
                raise ValueError(
                    f"The inputs of {name!r} have width {width} (shape {rows.shape}), but in the layout "
                    f"{self.layout!r} a leaf of shape {shape} needs {wants}.{hint}"
                )
            layers[name] = _layer(self._unfold(leaves[name], width), rows.reshape(-1, width), self.energy)
        return layers

    def _unfold(self, leaf: Array, width: int) -> Array:
        """Reshapes a leaf to a matrix of shape (out, width)."""
        return leaf.reshape(-1, width) if self.layout == "out in" else leaf.reshape(width, -1).T

    def _fold(self, matrix: Array, leaf: Array) -> Array:
        """Reshapes a matrix of shape (out, width) like the leaf."""
        return (matrix if self.layout == "out in" else matrix.T).reshape(leaf.shape).astype(leaf.dtype)


def patches(
    x: Float[Array, "n *image"],
    kernel_shape: Sequence[int],
    *,
    strides: Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "VALID",
    dilation: Sequence[int] | None = None,
    layout: Layout = "out in",
) -> Float[Array, "rows width"]:
    """Extracts the patches that a convolution multiplies by its weights, as inputs for `NullSpace`.

    The result has one row per position and image. **Arguments:** `kernel_shape` holds the spatial sizes, such
    as (3, 3); `strides`, `padding` and `dilation` are as in `jax.lax.conv_general_dilated`. With the layout
    "out in", as in Equinox, `x` has the shape (n, channels, height, width) and rows fit a leaf (out,
    channels, 3, 3); with "in out", as in Flax, the shapes are (n, height, width, channels) and (3, 3,
    channels, out). Any number of spatial axes; no grouped convolutions.

    >>> patches(jnp.ones((2, 3, 8, 8)), (5, 5)).shape  # 2 * 4 * 4 positions, 3 * 5 * 5 weights
    (32, 75)
    """
    _check_layout(layout)
    if x.ndim != len(kernel_shape) + 2:
        raise ValueError(
            f"A kernel of shape {tuple(kernel_shape)} needs images with {len(kernel_shape) + 2} axes, batch "
            f"and channels included, got shape {x.shape}."
        )
    x = x if layout == "out in" else jnp.moveaxis(x, -1, 1)
    # Patches are computed as a convolution with an identity kernel, which at an accelerator's default
    # precision would round the inputs.
    found = jax.lax.conv_general_dilated_patches(
        x,
        tuple(kernel_shape),
        (1,) * len(kernel_shape) if strides is None else tuple(strides),
        padding,
        rhs_dilation=dilation,
        precision=jax.lax.Precision.HIGHEST,
    )
    # The channels are the slow axis of a patch, as in a kernel (out, channels, 3, 3); (3, 3, channels, out)
    # has them fast.
    rows = jnp.moveaxis(found, 1, -1).reshape(-1, x.shape[1], math.prod(kernel_shape))
    return (rows if layout == "out in" else rows.swapaxes(1, 2)).reshape(len(rows), -1)


class _Layer(NamedTuple):
    """A layer: weights (out, d), inputs (n, d), and a basis (k, d) of the rows that must not move."""

    weights: Array
    inputs: Array
    basis: Array
    has_null_space: Array

    def project(self, derivative: Array) -> Array:
        """Projects a derivative (out, d) onto directions that no input excites; zero if there are none."""
        free = derivative.astype(self.basis.dtype)
        # The first pass leaves rounding errors relative to the size of what it removed.
        for _ in range(2):
            free = free - _product(_product(free, self.basis.T), self.basis.conj())
        return jnp.where(self.has_null_space, free, 0.0)

    def outputs(self, weights: Array) -> Array:
        """The layer's outputs (n, out)."""
        return _product(self.inputs, weights.astype(self.inputs.dtype).T)


def _layer(weights: Array, rows: Array, energy: Array | float) -> _Layer:
    """Returns the layer with the leading right singular vectors up to `energy` as basis, the others zero."""
    # A real weight multiplies the real and the imaginary part of a complex input.
    if jnp.iscomplexobj(rows) and not jnp.iscomplexobj(weights):
        rows = jnp.concatenate([rows.real, rows.imag])
    rows = rows.astype(widened(weights).dtype)
    n, d = rows.shape
    # With more samples than inputs, reduce to the (d, d) factor R of a QR decomposition, which has the same
    # right singular vectors.
    _, values, basis = jnp.linalg.svd(jnp.linalg.qr(rows, mode="r") if n > d else rows, full_matrices=False)
    rank = values > jnp.finfo(rows.dtype).eps * max(n, d) * values[0]
    squares = jnp.square(values)
    before = jnp.cumsum(squares) - squares
    # A boolean mask instead of slicing keeps shapes static: the rank depends on the data.
    held = rank & ((jnp.asarray(energy) >= 1) | (before < energy * jnp.sum(squares)))
    return _Layer(weights, rows, jnp.where(held[:, None], basis, 0.0), jnp.sum(held) < d)


def _product(a: Array, b: Array) -> Array:
    """A matrix product in full precision: at an accelerator's default precision the null space is lost."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _widths(shape: tuple[int, ...], layout: Layout) -> list[int]:
    """Returns the input widths that fit a leaf of this shape."""
    if len(shape) < 2:
        return []
    return [math.prod(shape[1:])] if layout == "out in" else sorted({shape[0], math.prod(shape[:-1])})


def _eps(tree: PyTree) -> float:
    return max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(tree))


def _check_layout(layout: str) -> None:
    if layout not in get_args(Layout):
        raise ValueError(f"`layout` must be one of {get_args(Layout)}, got {layout!r}.")
