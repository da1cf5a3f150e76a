"""Permutations of units and the axes on which they act, for merging models."""

from collections.abc import Iterable
from typing import Any

from jaxtyping import PyTree

from symmetrax.discovery._exports._places import described, spaces_of
from symmetrax.discovery._found import Found
from symmetrax.groups._diagonal import Permutation
from symmetrax.groups._matrices import GeneralLinear, Orthogonal


def permutation_specs(found: Iterable[Found], params: PyTree) -> list[dict[str, Any]]:
    """Lists every permutation of hidden units, and the axes that it permutes, as git re-basin needs them.

    Before two models are averaged, the units of one are brought into the order of the other. Each entry is a
    dict: `space`, `group`, `size` (the number of units), `per` (the lengths of indices: there is a
    permutation for each value of these) and `places`. A place is described in `scaling_pairs` (without
    `power`); its `block` is the number of entries that move with each unit: heads in a merged axis
    `(heads size)` move as blocks of `size`. Rotations and general linear groups contain permutations, so that
    their spaces are listed too. Models that were trained apart differ there by more than an order of units:
    align these spaces by a matrix if your method can.

    Inside this library, `symmetrax.symmetry.weight_matching` does the same on a `NetworkSymmetry`.

    **Arguments:** `found` is the `Discovery` (or some of it), `params` the parameters that were searched, of
    which only shapes are read. Raises ValueError if they are others. Approximate symmetries are left out.

    >>> import jax, jax.numpy as jnp, symmetrax as sx
    >>> params = {"w": jnp.ones((3, 4)), "b": jnp.zeros(4), "out": jnp.ones((4, 2))}
    >>> x = jax.random.normal(jax.random.key(0), (8, 3))
    >>> loss = lambda p: jnp.mean((jax.nn.gelu(x @ p["w"] + p["b"]) @ p["out"] - x[:, :2]) ** 2)
    >>> found = sx.find_symmetries(loss, params, jax.random.key(1), method="program")
    >>> (spec,) = permutation_specs(found, params)
    >>> spec["size"], [(place["array"], place["axis"], place["block"]) for place in spec["places"]]
    (4, [('b', 0, 1), ('out', 0, 1), ('w', 1, 1)])
    """
    specs = []
    for name, (group, places) in spaces_of(found, params).items():
        if isinstance(group, Permutation | Orthogonal | GeneralLinear):
            plain = [place.to_json(power=False) | {"block": place.block} for place in places]
            specs.append(described(name, group) | {"places": plain})
    return specs
