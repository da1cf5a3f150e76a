"""Pairs of arrays between which scales can be moved, as for AWQ, SmoothQuant and equalization."""

from collections.abc import Iterable
from typing import Any

from jaxtyping import PyTree

from symmetrax.discovery._exports._direction import layout_of, outputs, sides
from symmetrax.discovery._exports._places import Place, described, spaces_of
from symmetrax.discovery._found import Found
from symmetrax.groups._diagonal import NonzeroDiagonal, PositiveDiagonal
from symmetrax.groups._matrices import GeneralLinear


def scaling_pairs(found: Iterable[Found], params: PyTree) -> list[dict[str, Any]]:
    """Lists the spaces whose units can be scaled: what to multiply by the scales, and what to divide.

    Quantization is easier if outliers are moved from activations to weights. This is exact where a group of
    scales acts: multiply all `produce` places of a pair by s (to their `power`), and `consume` places by s to
    their negative `power`. For the gain of a norm before projections this is the mapping of SmoothQuant and
    AWQ (their smoothing layers are `produce`); between two layers around a ReLU it is equalization. Where a
    general linear group acts (`matrix` is true), as between values and outputs of attention, any invertible
    matrix will do, and scales in particular.

    Each pair is a dict with `space`, `group`, `size`, `per` (the lengths of indices: scales have the shape of
    these and `size`), `matrix`, `produce`, `consume`, and `directed`: whether a bias, a gain or the layout of
    other arrays tells which side produces. Queries and keys both do, so that there the two sides are in no
    order. Each place is a dict:

    - `array`, `axis`, `start`, `sizes`, `strides`: the entries of the axis, as in `head_splits`;
    - `names`: what each factor is: the space's name for the units, an index of `per`, or "_" for copies;
    - `power`: of the scale, always 1 and -1 except for functions such as a squared ReLU;
    - `indices`, where indices of `per` are on other axes: the axis, length and stride of each;
    - `element`, where only one element, or a slice, along the first index acts;
    - `offset`, if the array plus this number scales, as for a gain 1 + w.

    **Arguments:** `found` is the `Discovery` (or some of it), `params` the parameters that were searched, of
    which only shapes are read. Raises ValueError if they are others. Approximate symmetries are left out.

    >>> import jax, jax.numpy as jnp, symmetrax as sx
    >>> params = {"w": jnp.ones((3, 4)), "b": jnp.zeros(4), "out": jnp.ones((4, 2))}
    >>> x = jax.random.normal(jax.random.key(0), (8, 3))
    >>> loss = lambda p: jnp.mean((jax.nn.relu(x @ p["w"] + p["b"]) @ p["out"] - x[:, :2]) ** 2)
    >>> found = sx.find_symmetries(loss, params, jax.random.key(1), method="program")
    >>> (pair,) = scaling_pairs(found, params)
    >>> [place["array"] for place in pair["produce"]], [place["array"] for place in pair["consume"]]
    (['b', 'w'], ['out'])
    """
    spaces = spaces_of(found, params)
    known = outputs(spaces)
    # Most matrices have two axes; those of more say nothing about the layout of the others.
    layout = layout_of(known, [(path, [0], [1]) for path in dict.fromkeys(path for path, _ in known)])
    pairs = []
    for name, (group, places) in spaces.items():
        if not isinstance(group, GeneralLinear | PositiveDiagonal | NonzeroDiagonal):
            continue
        produce, consume, directed = sides(places)
        if not directed and known:
            votes = [{_writes(place, layout) for place in side} for side in (produce, consume)]
            directed = votes in ([{True}, {False}], [{False}, {True}])
            if votes == [{False}, {True}]:
                produce, consume = consume, produce
        # Multiplied by s to the power 1 and -1 where the inverse group acts on the first side.
        turn = -1 if produce and produce[0].power < 0 else 1
        pairs.append(
            described(name, group)
            | {
                "matrix": isinstance(group, GeneralLinear),
                "directed": directed,
                "produce": [_turned(place, turn) for place in produce],
                "consume": [_turned(place, turn) for place in consume],
            }
        )
    return pairs


def _writes(place: Place, layout: str) -> bool | None:
    """Whether a place is on the output side of a matrix in this layout."""
    return (place.axis == 1) == (layout == "in out") if len(place.shape) == 2 else None


def _turned(place: Place, turn: int) -> dict[str, Any]:
    made = place.to_json()
    return made | {"power": turn * made["power"]}
