"""Names of arrays in a tree: lookup by path, by pattern, and the errors for arrays that are missing."""

import re
import string
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from symmetrax._text import near_match
from symmetrax._tree import known_name, leaf_names


def named_shapes(tree: PyTree) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of all arrays in a tree, by name.

    >>> named_shapes({"w": jnp.ones((2, 3)), "activation": jnp.tanh})["w"].shape
    (2, 3)
    """
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        for name, leaf in zip(leaf_names(tree), jax.tree.leaves(tree), strict=True)
        if hasattr(leaf, "shape") and hasattr(leaf, "dtype")
    }


def arrays_at(tree: PyTree, names: Sequence[str]) -> dict[str, Array]:
    """The arrays with these names. Raises ValueError, listing the available leaves, if any name is missing.

    >>> print(arrays_at({"v": jnp.zeros(2), "w": jnp.ones(2)}, ["w"]))
    {'w': Array([1., 1.], dtype=float32)}
    """
    leaves = dict(zip(leaf_names(tree), jax.tree.leaves(tree), strict=True))
    known = {name: known_name(name, leaves) for name in names}
    missing = [name for name in names if known[name] not in leaves]
    if missing:
        raise ValueError(
            f"The parameters have no leaves {missing}; their leaves are {list(leaves)}: use some of these "
            "names."
        )
    return {name: jnp.asarray(leaves[known[name]]) for name in names}


def with_arrays(tree: PyTree, arrays: Mapping[str, Array]) -> PyTree:
    """Replaces the leaves with these names, keeping their dtypes.

    >>> print(with_arrays({"v": jnp.zeros(2), "w": jnp.ones(2)}, {"w": jnp.array([3, 4])})["w"])
    [3. 4.]
    """
    leaves, structure = jax.tree.flatten(tree)
    names = leaf_names(tree)
    new = {known_name(name, names): array for name, array in arrays.items()}
    replaced = [
        new[name].astype(leaf.dtype) if name in new else leaf
        for name, leaf in zip(names, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, replaced)


def match_paths(pattern: str, names: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The names that match a pattern, each with the values of its `{i}`. Raises ValueError without a match.

    A pattern may end in `.value`, the suffix of flax variables, which is never part of a name.

    >>> match_paths("layers.{i}.weight", {"layers.0.weight": 0, "layers.1.weight": 0, "head": 0})
    {'layers.0.weight': {'i': '0'}, 'layers.1.weight': {'i': '1'}}
    """
    regex, seen = "", set()
    for literal, field, _, _ in string.Formatter().parse(pattern):
        regex += re.escape(literal)
        if field is not None:
            # A field that occurs twice must have the same value in both places: a back-reference.
            regex += f"(?P={field})" if field in seen else f"(?P<{field}>[^.]+)"
            seen.add(field)
    found = {name: match.groupdict() for name in names if (match := re.fullmatch(regex, name))}
    if not found and pattern.endswith(".value"):
        found = match_paths(pattern.removesuffix(".value"), names)
    if not found:
        raise ValueError(
            f"No array is called {pattern!r}.{near_match(pattern, names)} {_available(list(names))}"
        )
    return found


def only_path(pattern: str, names: Mapping[str, Any]) -> str:
    """The unique name that matches. Raises ValueError if no name matches, or several do.

    >>> only_path("head.{part}", {"layers.0.weight": 0, "head.weight": 0})
    'head.weight'
    """
    found = list(match_paths(pattern, names))
    if len(found) > 1:
        raise ValueError(
            f"The path {pattern!r} must name one array, but it matches {', '.join(found)}: write the full "
            "path of one of them."
        )
    return found[0]


def check_present(paths: Collection[str], names: Sequence[str]) -> None:
    """Raises ValueError if the tree lacks arrays on which the symmetry acts.

    >>> check_present(["w"], ["v", "model.w"])
    Traceback (most recent call last):
    ValueError: The symmetry acts on the array 'w', which is not in the tree. It is under 'model' here...
    """
    known = set(names)
    missing = [path for path in paths if path not in known]
    if not missing:
        return
    path, more = missing[0], f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    # The usual cause is a tree that is nested one level more, or less, than the one given as `like`.
    under = {name.removesuffix(f".{path}") for name in names if name.endswith(f".{path}")}
    inside = [name for name in names if path.endswith(f".{name}")]
    if len(under) == 1:
        (under,) = under
        hint = f" It is under {under!r} here: pass that, or construct the symmetry with this tree as `like`."
    elif inside:
        hint = (
            f" It is {inside[0]!r} here: pass the tree that has it under "
            f"{path.removesuffix(inside[0])[:-1]!r}, or construct the symmetry with this tree as `like`."
        )
    else:
        hint = f"{near_match(path, names)} {_available(names)}"
    raise ValueError(f"The symmetry acts on the array {path!r}{more}, which is not in the tree.{hint}")


def _available(names: Sequence[str]) -> str:
    """Lists the first few names, for an error message."""
    return f"There are: {', '.join(names[:8])}{', ...' * (len(names) > 8)}."
