"""The error of rounding weights to few bits, which depends on their basis and scales."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from symmetrax._tree import leaf_names, magnitude, scaled, squares, total, widened
from symmetrax.objectives._base import AbstractObjective
from symmetrax.symmetry._paths import match_paths

#: What shares a scale: a whole array, or a slice of it for every output channel.
Per = Literal["tensor", "channel"]

#: The fewest bits with a level besides zero, and the most that are counted exactly in single precision.
FEWEST, MOST = 2, 16


class QuantizationError(AbstractObjective):
    """Minus the relative squared error of rounding weights to `bits` bits: larger is easier to quantize.

    For arrays W_1 ... W_k the value is -(1/k) sum_i ||Q(W_i) - W_i||^2 / ||W_i||^2, where Q is `quantized`:
    symmetric rounding to the nearest of 2^bits - 1 levels between plus and minus the largest magnitude. Each
    error is the mean squared error relative to the mean square of its array, so that arrays of different
    scale and size count alike. An array of zeros has no error. The loss is never evaluated.

    Rotations change no norms, so the values of different bases compare: `sx.search.BestBasis` tries several.
    Scalings do, and a small row counts little here even where the next layer enlarges what it loses. Use
    `sx.search.Equalized` for them. The derivative takes the integers as constant, which is exact wherever it
    exists.

    **Arguments:** `per`, `axis` and `arrays` are as in `quantized`; `bits` may be an array.

    >>> import jax.numpy as jnp
    >>> params = {"w": jnp.array([[0.0, 3.0], [1.0, 1.4]])}
    >>> round(float(QuantizationError(3)(None, params)), 4)  # levels 0, 1, 2, 3: (0.4)^2 / (9 + 1 + 1.96)
    -0.0134
    """

    bits: int | Int[Array, ""]
    per: Per = eqx.field(static=True, default="tensor")
    arrays: tuple[str, ...] | None = eqx.field(
        static=True, default=None, converter=lambda given: None if given is None else tuple(given)
    )
    axis: int = eqx.field(static=True, default=0)

    def __check_init__(self):
        _check(self.bits, self.per)

    @property
    def cost(self) -> float:
        return 0.0

    def __call__(self, value_fn: Callable | None, params: PyTree) -> Float[Array, ""]:
        errors = [
            _relative_error(widened(w), self.bits, self.per, self.axis)
            for w in _chosen(params, self.arrays).values()
        ]
        return -total(errors) / max(len(errors), 1)


def quantized(
    params: PyTree,
    bits: int | Int[Array, ""],
    *,
    per: Per = "tensor",
    arrays: Sequence[str] | None = None,
    axis: int = 0,
) -> PyTree:
    """Rounds weights to `bits` bits and back: parameters as a quantized network would use them.

    Every scale s is max |w| / (2^(bits-1) - 1), and w becomes s round(w / s), rounded to the nearest integer
    and to the even one of two. Zeros stay zero. Computed in at least float32, returned in each array's dtype.

    **Arguments:** `per="tensor"` takes one scale for an array, `per="channel"` one for every slice along
    `axis`, by default the first, which is the output of matrices stored as (out, in) and of kernels stored as
    (out, in, height, width); pass `axis=-1` for flax. `arrays` are paths or patterns such as
    "layers.{i}.up"; by default all real arrays with at least two axes are rounded, and biases stay as they
    are. Raises ValueError for other numbers of bits than 2 to 16, and for a pattern that matches nothing.

    >>> import jax.numpy as jnp
    >>> params = {"w": jnp.array([[0.0, 3.0], [0.5, 0.75]]), "b": jnp.array([0.3])}
    >>> print(quantized(params, 3)["w"])
    [[0. 3.]
     [0. 1.]]
    >>> print(quantized(params, 3, per="channel")["w"], quantized(params, 3)["b"])
    [[0.   3.  ]
     [0.5  0.75]] [0.3]
    """
    _check(bits, per)
    chosen = _chosen(params, arrays)
    leaves, structure = jax.tree.flatten(params)

    def rounded(name: str, leaf: Any) -> Any:
        if name not in chosen:
            return leaf
        wide = widened(leaf)
        step = _steps(wide, bits, per, axis)
        return (step * jnp.round(wide / step)).astype(chosen[name].dtype)

    return jax.tree.unflatten(structure, map(rounded, leaf_names(params), leaves))


def matrices(params: PyTree, arrays: Sequence[str] | None = None) -> set[str]:
    """The names of the arrays that count: those that match, or all real ones with at least two axes.

    >>> import jax.numpy as jnp
    >>> params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    >>> matrices(params), matrices(params, ["{i}"]) == {"b", "w"}
    ({'w'}, True)
    """
    return set(_chosen(params, arrays))


def _chosen(params: PyTree, arrays: Sequence[str] | None) -> dict[str, Array]:
    leaves = dict(zip(leaf_names(params), jax.tree.leaves(params), strict=True))
    real = {
        name: jnp.asarray(leaf)
        for name, leaf in leaves.items()
        if eqx.is_inexact_array(leaf) and not jnp.iscomplexobj(leaf)
    }
    if arrays is None:
        return {name: leaf for name, leaf in real.items() if leaf.ndim > 1}
    names = {name for pattern in arrays for name in match_paths(pattern, leaves)}
    if others := sorted(names - set(real)):
        raise ValueError(
            f"Only real floating-point arrays can be quantized, got {', '.join(others)}: leave them out of "
            "`arrays`."
        )
    return {name: leaf for name, leaf in real.items() if name in names}


def _relative_error(w: Array, bits: int | Array, per: Per, axis: int) -> Float[Array, ""]:
    # Squares of small weights would underflow in single precision; the scale cancels.
    w = scaled(w, magnitude(w))
    step = _steps(w, bits, per, axis)
    # Subtracted after the division, where the integer is exact: a step times an integer is rounded again.
    error = step * (jax.lax.stop_gradient(jnp.round(w / step)) - w / step)
    whole = jnp.sum(squares(w))
    return jnp.sum(squares(error)) / jnp.where(whole > 0, whole, 1.0)


def _steps(w: Array, bits: int | Array, per: Per, axis: int) -> Array:
    """The distance of two levels, along the axes of `w`; 1 where everything is zero."""
    taken = [k for k in range(w.ndim) if per == "tensor" or k != axis % w.ndim]
    largest = jnp.max(jnp.abs(w), axis=tuple(taken), keepdims=True, initial=0.0)
    levels = 2 ** (jnp.asarray(bits) - 1) - 1
    step = largest / levels.astype(w.dtype)
    # Compiled code flushes subnormal steps to zero and would divide by them; such weights are rounded to 0.
    usable = step >= jnp.finfo(w.dtype).tiny
    return jnp.where(usable, step, 1.0)


def _check(bits: Any, per: str) -> None:
    if isinstance(bits, int) and not FEWEST <= bits <= MOST:
        raise ValueError(f"`bits` must be between {FEWEST} and {MOST}, got {bits}.")
    if per not in ("tensor", "channel"):
        raise ValueError(f"`per` must be 'tensor' or 'channel', got {per!r}.")
