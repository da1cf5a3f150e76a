"""Where rotations can be merged into arrays, as for QuaRot and SpinQuant, and why not elsewhere."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxtyping import PyTree

from symmetrax._text import listed
from symmetrax.discovery._exports._direction import sides
from symmetrax.discovery._exports._places import Place, described, hidden, spaces_of
from symmetrax.discovery._found import Found
from symmetrax.groups._diagonal import AbstractGroup, Permutation, PositiveDiagonal, SignDiagonal
from symmetrax.groups._matrices import GeneralLinear, Orthogonal

#: Spaces by name: their group, and where it acts.
_Spaces = Mapping[str, tuple[AbstractGroup, list[Place]]]


def rotation_sites(found: Iterable[Found], params: PyTree) -> dict[str, list[dict[str, Any]]]:
    """Lists the spaces that can be rotated, and, for those that cannot, the reason as far as it shows.

    Rotations spread outliers over all units before quantization. If a group `Orthogonal` acts on a space,
    such as the stream of a transformer with RMSNorm, or `GeneralLinear`, as inside heads, you may multiply
    all its places by one orthogonal matrix, per value of the indices `per`, without changing the loss. Of an
    array `w` with the place on axis 0 this makes `Q @ w`, and of a place on axis 1 `w @ Q.T`.

    `rotations` is a list of dicts: `space`, `group`, `size`, `per`, `fix` ("mean" if the rotation must keep
    the vector of ones, as for LayerNorm) and `places`, which are described in `scaling_pairs` (without
    `power`, since a rotation is its own inverse transpose). `refused` lists the spaces whose units can only
    be permuted or change sign, with a `reason`: usually trainable gains, which you should fold into the
    arrays that read them (`scaling_pairs` lists these) before you search again; or an activation.

    **Arguments:** `found` is the `Discovery` (or some of it), `params` the parameters that were searched, of
    which only shapes are read. Raises ValueError if they are others. Approximate symmetries are left out.

    >>> import jax, jax.numpy as jnp, symmetrax as sx
    >>> params = {"w": jnp.ones((3, 4)), "gain": jnp.ones(4), "out": jnp.ones((4, 2))}
    >>> x = jax.random.normal(jax.random.key(0), (8, 3))
    >>> def loss(p):
    ...     y = x @ p["w"]
    ...     y = y / jnp.sqrt((y**2).mean(-1, keepdims=True)) * p["gain"]
    ...     return jnp.mean((y @ p["out"] - x[:, :2]) ** 2)
    >>> found = sx.find_symmetries(loss, params, jax.random.key(1), method="program")
    >>> (refused,) = rotation_sites(found, params)["refused"]
    >>> print(refused["reason"])
    gains of norms, or their biases (gain): fold them into the matrices beside them
    """
    spaces = spaces_of(found, params)
    rotations = [
        _entry(name, group, places)
        | ({"fix": group.fix} if isinstance(group, Orthogonal) and group.fix else {})
        for name, (group, places) in spaces.items()
        if isinstance(group, GeneralLinear | Orthogonal)
    ]
    refused = [
        _entry(name, spaces[name][0], spaces[name][1]) | {"reason": _reason(name, spaces)}
        for name in _discrete(spaces)
    ]
    return {"rotations": rotations, "refused": refused}


def _entry(name: str, group: AbstractGroup, places: Sequence[Place]) -> dict[str, Any]:
    return described(name, group) | {"places": [place.to_json(power=False) for place in places]}


def _axes(places: Sequence[Place]) -> set[tuple[str, int]]:
    return {(place.path, place.axis) for place in places}


def _discrete(spaces: _Spaces) -> list[str]:
    """Spaces of units that are only permuted or change sign, other than those of blocks, such as heads."""
    names, inside = list[str](), hidden(spaces)
    for kind in (Permutation, SignDiagonal):
        for name, (group, places) in spaces.items():
            # The signs of the outputs of a gain are a part of the space: the permutation stands for all.
            within = any(_axes(places) <= _axes(spaces[other][1]) for other in names)
            units = name in inside and all(place.block == 1 for place in places)
            if isinstance(group, kind) and units and not within and not _counts(places, spaces):
                names.append(name)
    return names


def _counts(places: Sequence[Place], spaces: _Spaces) -> bool:
    """Whether the units of a space are the indices of another one: heads or experts on their own axis."""
    return any(
        (place.path, axis, factor.length) == (own.path, own.axis, own.units.length)
        for own in places
        for _, others in spaces.values()
        for place in others
        for axis, factor in place.indices.values()
    )


def _reason(name: str, spaces: _Spaces) -> str:
    here = spaces[name][1]
    axes = _axes(here)
    gains: list[str] = []
    activation = ""
    for group, places in spaces.values():
        if not isinstance(group, PositiveDiagonal) or not _axes(places) <= axes:
            continue
        produce, consume, directed = sides(places)
        if directed and all(place.is_vector for place in produce):
            gains += [place.path for place in produce]
        elif produce and consume:
            activation = "an activation of single units that keeps positive scales, such as a ReLU"
    # A bias changes sign with the stream, a gain does not.
    signs = [
        _axes(places)
        for group, places in spaces.values()
        if isinstance(group, SignDiagonal)
        and _axes(places) < axes
        and not all(place.is_vector for place in places)
    ]
    matrices = {(place.path, place.axis) for place in here if not place.is_vector}
    vectors = [place.path for place in here if place.is_vector]
    for flipped in signs:
        if matrices <= flipped:
            gains += [path for path in vectors if (path, 0) not in flipped]
    if gains:
        gains = list(dict.fromkeys(gains))
        others = [path for path in vectors if path not in gains]
        # A gain that a tied embedding reads has no scales: it looks like a bias.
        untie = f"; if a gain is among {listed(others)}, untie what reads it" if others else ""
        fold = "fold them into the matrices beside them"
        return f"gains of norms, or their biases ({listed(gains)}): {fold}{untie}"
    if activation:
        return activation
    return "a function of single units, such as an activation, or gains that cannot be told from biases"
