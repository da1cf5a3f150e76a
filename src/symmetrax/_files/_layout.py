"""Trees as arrays by name: names, shapes and dtypes, and putting loaded arrays back into a tree."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree

#: Names of arrays with their shapes and dtypes, including typed keys.
Layout = dict[str, jax.ShapeDtypeStruct]


def named_arrays(tree: PyTree) -> dict[str, Any]:
    """Returns the arrays of a tree by path: `core.cells.0.bias`. Typed keys remain typed.

    >>> named_arrays({"core": [1.0, 2.0]})
    {'core.0': array(1.), 'core.1': array(2.)}
    """
    named = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = _name(path)
        if name in named:  # {"a.b": x} and {"a": {"b": x}}
            raise ValueError(f"Two arrays have the same name {name!r}: rename a key of their dictionaries.")
        typed = is_key(leaf) or isinstance(leaf, Tracer | jax.ShapeDtypeStruct)
        named[name] = leaf if typed else np.asarray(leaf)
    return named


def layout_of(tree: PyTree) -> Layout:
    """Returns the names, shapes and dtypes of the arrays of a tree.

    >>> layout_of({"w": jnp.ones((2, 3))})
    {'w': ShapeDtypeStruct(shape=(2, 3), dtype=float32)}
    """
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in named_arrays(tree).items()}


def check_layout(found: Layout, expected: Layout, where: str) -> None:
    """Raises ValueError, naming `where`, unless names, shapes and dtypes match exactly.

    >>> check_layout(layout_of({"w": np.ones(2)}), layout_of({"w": np.ones(3)}), "it.safetensors")
    Traceback (most recent call last):
    ValueError: it.safetensors has an array 'w' that has shape (2,), expected (3,).
    """
    for name, wanted in expected.items():
        if name not in found:
            raise ValueError(f"{where} lacks the array {name!r} of shape {wanted.shape}.")
        for aspect in ("shape", "dtype"):
            a, b = getattr(found[name], aspect), getattr(wanted, aspect)
            if a != b:
                raise ValueError(f"{where} has an array {name!r} that has {aspect} {a}, expected {b}.")
    extra = sorted(found.keys() - expected.keys())
    if extra:
        raise ValueError(f"{where} has arrays that do not belong there: {', '.join(map(repr, extra[:5]))}.")


def restore(like: PyTree, arrays: dict[str, Any]) -> PyTree:
    """Returns a tree like `like` with the arrays of these names, whose layout has been checked.

    >>> restore({"w": [jnp.zeros(2)]}, {"w.0": np.ones(2, "float32")})
    {'w': [Array([1., 1.], dtype=float32)]}
    """

    def leaf(at, expected):
        found = arrays[_name(at)]
        # JAX would narrow the 64-bit counters and curves that a caller keeps in NumPy.
        return found if isinstance(expected, np.ndarray) or is_key(found) else jnp.asarray(found)

    return jax.tree_util.tree_map_with_path(leaf, like)


def is_key(leaf: Any) -> bool:
    """Returns whether `leaf` is an array of typed keys, or the shape of one.

    >>> is_key(jax.random.key(0)), is_key(jax.random.PRNGKey(0))
    (True, False)
    """
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def check_finite_arrays(arrays: dict[str, Any], where: str) -> None:
    """Raises ValueError, naming `where`, if an array has an entry that is infinite or NaN.

    >>> check_finite_arrays({"w": np.array([1.0, np.nan])}, "it.safetensors")
    Traceback (most recent call last):
    ValueError: it.safetensors has 1 entries of 2 in 'w' that are infinite or NaN.
    """
    for name, array in arrays.items():
        if not is_key(array) and jnp.issubdtype(array.dtype, jnp.inexact):
            bad = np.size(array) - int(np.sum(np.isfinite(np.asarray(array))))
            if bad:
                raise ValueError(
                    f"{where} has {bad} entries of {np.size(array)} in {name!r} that are infinite or NaN."
                )


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
