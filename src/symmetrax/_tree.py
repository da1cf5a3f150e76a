"""Pytree operations missing from `optax.tree`: norms for every dtype and magnitude, and finiteness tests.

Norms and pairings treat a tree as the real vector of all its entries, where a complex number counts as two
entries. Sums are taken at least in single precision: squares of float16 overflow at 256, in `optax.tree.norm`
too.
"""

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree

#: `select(condition, yes, no)`: `yes` where the scalar `condition` holds, else `no`, typed keys included.
select = optax.tree.where

#: Converts a JAX gradient to the direction of steepest ascent, and back: for complex parameters `jax.grad`
#: returns the conjugate of that direction.
conjugate = optax.tree.conj


def widened(x: ArrayLike) -> Array:
    """Converts `x` to at least single precision: half precision is converted, complex stays complex.

    >>> [widened(jnp.ones(2, kind)).dtype.name for kind in ("bfloat16", "int32", "complex64")]
    ['float32', 'float32', 'complex64']
    """
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return x.astype(float)
    return x.astype(jnp.float32) if jnp.finfo(x.dtype).bits < 32 else x


def squares(x: ArrayLike) -> Float[Array, "..."]:
    """Returns |x|^2, entry by entry.

    >>> print(squares(jnp.array([3 + 4j])))
    [25.]
    """
    x = widened(x)
    if jnp.iscomplexobj(x):
        return jnp.square(x.real) + jnp.square(x.imag)
    return jnp.square(x)


def squared_norm(tree: PyTree) -> Float[Array, ""]:
    """Returns the sum of the squares |x|^2 of all entries.

    >>> print(squared_norm({"w": jnp.full(2, 300, jnp.float16)}))  # 300^2 overflows float16
    180000.0
    """
    return total([jnp.sum(squares(x)) for x in jax.tree.leaves(tree)])


def pairing(left: PyTree, right: PyTree) -> Float[Array, ""]:
    """Returns the sum of the products of all entries, the real part of conj(left) * right if complex.

    >>> print(pairing([jnp.array(2.0), jnp.array(1j)], [jnp.array(3.0), jnp.array(5j)]))
    11.0
    """

    def product(x: Array, y: Array) -> Array:
        x, y = widened(x), widened(y)
        if jnp.iscomplexobj(x) or jnp.iscomplexobj(y):
            return jnp.sum(x.real * y.real + x.imag * y.imag)
        return jnp.sum(x * y)

    return total([product(x, y) for x, y in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)])


def total(numbers: list[Float[Array, ""]]) -> Float[Array, ""]:
    """Returns the sum of scalars of at least single precision, in the widest of their precisions.

    >>> print(total([jnp.array(1.0), jnp.array(2.0)]), total([]))
    3.0 0.0
    """
    # NumPy's promotion, since JAX's raises if you set `jax_numpy_dtype_promotion` to "strict".
    kind = np.result_type(np.float32, *(x.dtype for x in numbers))
    return sum((x.astype(kind) for x in numbers), start=jnp.zeros((), kind))


def magnitude(tree: PyTree) -> Float[Array, ""]:
    """Returns a power of two near the largest entry, to divide by before squaring: exact, and a constant.

    It is 1 if all entries are zero, or if any is infinite or NaN.

    >>> print(magnitude({"w": jnp.array([3.0, -5.0])}), magnitude(jnp.zeros(2)))
    4.0 1.0
    """
    leaves = [jnp.abs(part) for x in jax.tree.leaves(jax.lax.stop_gradient(tree)) for part in _parts(x)]
    kind = total([jnp.zeros((), x.dtype) for x in leaves]).dtype
    largest = [jnp.max(x, initial=0.0).astype(kind) for x in leaves] or [jnp.zeros((), kind)]
    biggest = jnp.max(jnp.stack(largest))
    usable = (biggest > 0) & jnp.isfinite(biggest)
    _, exponent = jnp.frexp(jnp.where(usable, biggest, 1.0))
    # Compilers multiply by reciprocals, and the reciprocals of the largest floats are flushed to zero.
    most = jnp.finfo(kind).maxexp - 28
    return jnp.ldexp(jnp.ones((), kind), jnp.clip(exponent - 1, -most, most))


def _parts(x: ArrayLike) -> tuple[Array, ...]:
    x = widened(x)
    return (x.real, x.imag) if jnp.iscomplexobj(x) else (x,)


def scaled(tree: PyTree, scale: Float[Array, ""]) -> PyTree:
    """Divides `tree` by `scale`, in at least single precision.

    >>> print(scaled(jnp.array([8.0, 6.0]), jnp.array(4.0)))
    [2.  1.5]
    """
    return jax.tree.map(lambda x: widened(x) / scale.astype(widened(x).dtype), tree)


def replicated(x: Any) -> Any:
    """Replicates an array on every device of a mesh with explicit axes: for small or indivisible arrays.

    >>> mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    >>> x = jax.device_put(jnp.arange(4), NamedSharding(mesh, PartitionSpec("x")))
    >>> print(jax.typeof(x), jax.typeof(replicated(x)))
    int32[4@x] int32[4]
    """
    sharding = jax.typeof(x).sharding if isinstance(x, jax.Array) else None
    if sharding is None or all(axis is None for axis in sharding.spec):
        return x
    return jax.sharding.reshard(x, NamedSharding(sharding.mesh, PartitionSpec()))


def safe_norm(tree: PyTree) -> Float[Array, ""]:
    """Returns the Euclidean norm of entries of any size; the derivative at the zero tree is zero, not NaN.

    >>> print(f"{safe_norm(jnp.array([3e30, 4e30])):.1e}", jax.grad(safe_norm)(jnp.zeros(2)))
    5.0e+30 [0. 0.]
    """
    scale = magnitude(tree)
    square = squared_norm(scaled(tree, scale))
    zero = square == 0  # NaN is not zero
    # The inner `where` keeps the infinite derivative of the root at zero out of the gradient.
    return jnp.where(zero, 0.0, scale * jnp.sqrt(jnp.where(zero, 1.0, square)))


def times(scale: Float[Array, ""], tree: PyTree) -> PyTree:
    """Returns scale * tree, computed in at least single precision, in the dtypes of `tree`.

    >>> times(jnp.array(0.5), {"w": jnp.ones(2, jnp.bfloat16)})  # `optax.tree.scale` returns float32
    {'w': Array([0.5, 0.5], dtype=bfloat16)}
    """

    def product(x: Array) -> Array:
        wide = widened(x)
        return (scale.astype(wide.real.dtype) * wide).astype(x.dtype)

    return jax.tree.map(product, tree)


def shift(params: PyTree, scale: Float[Array, ""] | float, direction: PyTree) -> PyTree:
    """Returns params + scale * direction, computed in at least single precision, in the dtypes of `params`.

    >>> print(shift(jnp.ones(2), 0.5, jnp.array([2.0, 4.0])))
    [2. 3.]
    """

    def moved(w: Array, d: Array) -> Array:
        wide = widened(w)
        return (wide + jnp.asarray(scale, wide.real.dtype) * d.astype(wide.dtype)).astype(w.dtype)

    return jax.tree.map(moved, params, direction)


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Returns whether all entries are finite.

    >>> print(all_finite({"w": jnp.array([1.0, jnp.inf])}), all_finite({}))
    False True
    """
    leaves = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(leaves)) if leaves else jnp.array(True)


@jax.custom_batching.custom_vmap
def anywhere(condition: Bool[Array, "..."]) -> Bool[Array, ""]:
    """Returns whether a condition holds anywhere; under `vmap`, anywhere in the batch.

    Under `vmap`, a `lax.cond` on `condition` computes both branches for every member of the batch. A
    `lax.cond` on `anywhere(condition)` remains a single branch for all.

    >>> taken = jax.vmap(lambda x: jax.lax.cond(anywhere(x > 2), lambda: x + 10, lambda: x))
    >>> print(taken(jnp.array([1.0, 2.0])), taken(jnp.array([1.0, 3.0])))
    [1. 2.] [11. 13.]
    """
    return jnp.any(condition)


@anywhere.def_vmap
def _anywhere_in_batch(size: int, batched: list[bool], condition: Array) -> tuple[Array, bool]:
    return anywhere(condition), False


def relative(difference: PyTree, reference: PyTree) -> Float[Array, ""]:
    """Returns the norm of `difference` relative to the norm of `reference`; 0 if both vanish.

    >>> print(relative(jnp.array([1.0]), jnp.array([4.0])))
    0.25
    """
    top, bottom = safe_norm(difference), safe_norm(reference)
    return jnp.where(top == 0, 0.0, top / jnp.where(bottom == 0, 1e-30, bottom).astype(top.dtype))


def leaf_name(path: tuple) -> str:
    """Returns the name of a leaf, from its key path: `blocks.0.attn.weight`; "params" for a lone array.

    >>> import jax
    >>> [leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path({"w": [1.0, 2.0]})]
    ['w.0', 'w.1']
    """
    return jax.tree_util.keystr(path, simple=True, separator=".") or "params"


def leaf_names(tree: PyTree) -> list[str]:
    """Returns the names of all leaves of a tree, in order.

    If an array is the only leaf of a box, as in flax's variables and partitioned arrays, the box's `.value`
    is not part of the name: a state of variables and the tree of their arrays have the same names.

    >>> leaf_names({"w": [1.0, 2.0], "b": 3.0})
    ['b', 'w.0', 'w.1']
    """
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]

    def opened(k: int) -> tuple:
        path, box = paths[k], paths[k][:-1]
        beside = paths[max(k - 1, 0) : k] + paths[k + 1 : k + 2]  # the leaves of a box are adjacent
        alone = all(other[: len(box)] != box for other in beside)
        return box if alone and path[-1:] == (jax.tree_util.GetAttrKey("value"),) else path

    return [leaf_name(opened(k)) for k in range(len(paths))]


def known_name(name: str, names: Collection[str]) -> str:
    """Returns `name`, without the `.value` of a box if only the shortened name is among `names`.

    >>> known_name("one.kernel.value", ["one.bias", "one.kernel"])
    'one.kernel'
    """
    opened = name.removesuffix(".value")
    return opened if name not in names and opened in names else name


def check_finite(params: PyTree, what: str) -> None:
    """Raises ValueError, naming the leaf, if concrete parameters are not finite; traced ones pass.

    >>> check_finite({"w": jnp.array([1.0, jnp.nan])}, "teleport from")
    Traceback (most recent call last):
    ValueError: Cannot teleport from a point that is not finite: w is [ 1. nan].
    """
    for name, leaf in zip(leaf_names(params), jax.tree.leaves(params), strict=True):
        if not isinstance(leaf, Tracer) and not bool(np.all(np.isfinite(leaf))):
            raise ValueError(f"Cannot {what} a point that is not finite: {name} is {leaf}.")
