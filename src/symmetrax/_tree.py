"""Pytree algebra that optax does not have: norms with a derivative at zero, and tests for finiteness."""

from collections.abc import Collection

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, PyTree


def squared_norm(tree: PyTree) -> Float[Array, ""]:
    """Sum of the squares of all entries."""
    return jnp.asarray(sum((jnp.sum(jnp.square(x)) for x in jax.tree.leaves(tree)), start=0.0))


def safe_norm(tree: PyTree) -> Float[Array, ""]:
    """Euclidean norm of all entries, whose derivative at the zero tree is zero instead of NaN."""
    square = squared_norm(tree)
    zero = square == 0  # NaN is not zero
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether no entry is infinite or NaN."""
    leaves = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(leaves)) if leaves else jnp.array(True)


def select(condition: Bool[Array, ""], yes: PyTree, no: PyTree) -> PyTree:
    """`yes` where the scalar `condition` holds, else `no`: trees of equal structure, typed keys included."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def relative(difference: PyTree, reference: PyTree) -> Float[Array, ""]:
    """Norm of `difference` over the norm of `reference`; 0 when both vanish."""
    top, bottom = safe_norm(difference), safe_norm(reference)
    return jnp.where(top == 0, 0.0, top / jnp.where(bottom == 0, 1e-30, bottom))


def leaf_name(path: tuple) -> str:
    """The name of a leaf from its key path: `blocks.0.attn.weight`; "params" for a lone array.

    >>> import jax
    >>> [leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path({"w": [1.0, 2.0]})]
    ['w.0', 'w.1']
    """
    return jax.tree_util.keystr(path, simple=True, separator=".") or "params"


def leaf_names(tree: PyTree) -> list[str]:
    """The names of all leaves of a tree, in its order.

    Where an array is alone in a box, as in flax's variables and partitioned arrays, the box's `.value` is not
    part of the name: a state of variables and the tree of their arrays have the same names.

    >>> leaf_names({"w": [1.0, 2.0], "b": 3.0})
    ['b', 'w.0', 'w.1']
    """
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]

    def opened(k: int) -> tuple:
        path, box = paths[k], paths[k][:-1]
        beside = paths[max(k - 1, 0) : k] + paths[k + 1 : k + 2]  # the leaves of a box stand together
        alone = all(other[: len(box)] != box for other in beside)
        return box if alone and path[-1:] == (jax.tree_util.GetAttrKey("value"),) else path

    return [leaf_name(opened(k)) for k in range(len(paths))]


def known_name(name: str, names: Collection[str]) -> str:
    """`name`, or what it is without a box's `.value` if only that is among `names`.

    >>> known_name("one.kernel.value", ["one.bias", "one.kernel"])
    'one.kernel'
    """
    opened = name.removesuffix(".value")
    return opened if name not in names and opened in names else name


def check_finite(params: PyTree, what: str) -> None:
    """Raise ValueError, naming the leaf, if concrete parameters are not finite; traced ones pass."""
    for name, leaf in zip(leaf_names(params), jax.tree.leaves(params), strict=True):
        if not isinstance(leaf, Tracer) and not bool(np.all(np.isfinite(leaf))):
            raise ValueError(f"Cannot {what} a point that is not finite: {name} is {leaf}.")
