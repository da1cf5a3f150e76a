"""Infers the order of a perceptron's layers, and the bias of each layer, from names and shapes."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import jax
from jaxtyping import PyTree

from symmetrax._tree import leaf_names
from symmetrax.symmetry._layouts import Layout, side_of


def layer_order(params: PyTree, arrays: Mapping[str, Any], matrices: list[str], layout: Layout) -> list[str]:
    """The matrices in the order of their layers, which is the tree order where that is meaningful.

    The order of a dict is not, since JAX sorts its keys: there it is the order of the numbers in names that
    are otherwise equal, or else the only order in which the shapes of consecutive layers match. Raises
    ValueError if there is no such order, or more than one.

    >>> import jax.numpy as jnp
    >>> params = {"first": jnp.ones((5, 3)), "last": jnp.ones((2, 4)), "middle": jnp.ones((4, 5))}
    >>> layer_order(params, params, ["first", "last", "middle"], "out in")
    ['first', 'middle', 'last']
    """
    if len(matrices) < 2 or not _between_keys(params, matrices):
        return matrices
    shapes = {path: arrays[path].shape for path in matrices}

    def follows(first: str, second: str) -> bool:
        return side_of(shapes[second], "in", layout) == side_of(shapes[first], "out", layout)

    if len({re.sub(r"\d+", "#", path) for path in matrices}) == 1:
        numbered = sorted(matrices, key=_numbers)
        if all(follows(*pair) for pair in pairwise(numbered)):
            return numbered
    orders = _chains(matrices, follows)
    # Two are enough to show that the order is ambiguous; there may be very many.
    found = [order for order, _ in zip(orders, range(2), strict=False)]
    if len(found) != 1:
        listed = ", ".join(f"{path} {shape}" for path, shape in shapes.items())
        orders = " and ".join(" -> ".join(order) for order in found)
        problem = f"several orders, such as {orders}" if found else "no order"
        raise ValueError(
            f"A dict has no order of layers, and the shapes of its matrices ({listed}; stored {layout!r}) "
            f"follow one another in {problem}. Give the paths of `weights` in the order of the layers."
        )
    return found[0]


def bias_paths(
    params: PyTree, weights: Sequence[str], outs: Sequence[int], vectors: list[str], arrays: Mapping[str, Any]
) -> list[str | None]:
    """The bias of each layer, or None, matched by parent, by number, by width, or in order.

    Raises ValueError if the match is ambiguous.

    >>> import jax.numpy as jnp
    >>> arrays = {"w1": jnp.ones((5, 3)), "w2": jnp.ones((2, 5)), "b1": jnp.ones(5)}
    >>> bias_paths(arrays, ["w1", "w2"], (5, 2), ["b1"], arrays)
    ['b1', None]
    """
    if not vectors:
        return []
    # The strongest evidence first: the same module, the same number, a unique width, the same order.
    for key_of in (_parent, _numbers):
        keys = [key_of(path) for path in weights]
        found = {key_of(path): path for path in vectors}
        if (
            all(keys)
            and len(set(keys)) == len(keys)
            and len(found) == len(vectors)
            and set(found) <= set(keys)
        ):
            return [found.get(key) for key in keys]
    widths = [arrays[path].shape for path in vectors]
    by_width = dict(zip(widths, vectors, strict=True))
    # Widths identify layers only if no two layers, and no two vectors, share one.
    if len(set(outs)) == len(outs) and len(by_width) == len(vectors):
        return [by_width.get((out,)) for out in outs]
    fits = len(vectors) >= len(outs) - 1 and widths == [(out,) for out in outs[: len(vectors)]]
    if fits and not _between_keys(params, vectors):
        return list(vectors)
    raise ValueError(
        f"Which of {', '.join(vectors)} are biases of {', '.join(weights)} cannot be inferred: give the "
        "paths of `biases` in the order of the layers, with None for a layer without a bias."
    )


def _between_keys(params: PyTree, matrices: list[str]) -> bool:
    """Whether some of these arrays differ in their path by a dict key that is not an integer."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    chosen = [path for name, path in zip(leaf_names(params), paths, strict=True) if name in set(matrices)]
    # JAX sorts dict keys; the order of list items, attributes and integer keys is the order of the model.
    for one, other in pairwise(chosen):
        keys = [a for a, b in zip(one, other, strict=False) if a != b]
        if isinstance(keys[0], jax.tree_util.DictKey) and not isinstance(keys[0].key, int):
            return True
    return False


def _chains(matrices: list[str], follows) -> Iterator[list[str]]:
    """Generates all orders in which every matrix follows the previous matrix."""

    def extended(chain: list[str], left: list[str]) -> Iterator[list[str]]:
        if not left:
            yield chain
        for path in left:
            if not chain or follows(chain[-1], path):
                yield from extended([*chain, path], [other for other in left if other != path])

    return extended([], matrices)


def _numbers(path: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", path))


def _parent(path: str) -> str:
    return path.rpartition(".")[0]
