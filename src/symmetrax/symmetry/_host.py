"""Arrays of a tree on the host, for algorithms that run outside of compiled code."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree

from symmetrax._tree import leaf_names


def on_host(
    function: str, what: str, tree: PyTree, wanted: Callable[[str, Any], bool]
) -> dict[str, np.ndarray]:
    """Returns the leaves that are `wanted`, given name and leaf, as NumPy arrays in double precision.

    Raises TypeError for traced leaves and ValueError for numbers that are not finite; both name `function`
    and the argument `what`.

    >>> on_host("average", "a", {"w": np.ones(2, np.float32), "n": 3}, lambda name, leaf: name == "w")
    {'w': array([1., 1.])}
    """
    found: dict[str, np.ndarray] = {}
    for name, leaf in zip(leaf_names(tree), jax.tree.leaves(tree), strict=True):
        if not wanted(name, leaf):
            continue
        if isinstance(leaf, Tracer):
            raise TypeError(
                f"{function} works on the host, but {name} in `{what}` is traced: call it outside of "
                "jax.jit, jax.vmap and jax.grad."
            )
        x = np.asarray(leaf)
        x = x.astype(complex if np.iscomplexobj(x) else float)
        if not np.all(np.isfinite(x)):
            raise ValueError(
                f"{function} needs finite numbers, but {name} in `{what}` has NaN or infinity: replace "
                "them, or pass other parameters."
            )
        found[name] = x
    return found
