"""Rebuilds a network from the card of a file, with everything in the card bounded by the file's contents.

A checksum protects against accidents, not against malice: whoever writes a file can also write its checksum.
So every value in a file is bounded by the file's actual contents before anything is built from it.
"""

import json
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from symmetrax._files import Layout, check_layout, layout_of
from symmetrax._text import near_match, without_addresses
from symmetrax.learned._base import AbstractLearnedOptimizer
from symmetrax.learned._coordinatewise import CoordinatewiseLSTM
from symmetrax.learned._flat_gradient import FlatGradientGRU, FlatGradientLSTM, FlatGradientMLP
from symmetrax.learned._joint import Joint
from symmetrax.learned._layer_pairs import LayerPairLSTM
from symmetrax.learned._neurons import PerNeuronLSTM
from symmetrax.learned._orbit import OrbitLSTM
from symmetrax.learned._recorded_steps import arrays_of, is_array, record_steps, recorded_parts
from symmetrax.learned._rnnprop import RNNProp
from symmetrax.learned._step import StepLSTM

FORMAT = 2


#: Maximum number of networks joined in a file, and maximum depth of a network: building a network takes time
#: for every part, whatever its size, and a file must not be able to stop the program that loads it.
MOST_NETWORKS = 100


DEEPEST = 1000


KINDS: dict[str, Any] = {
    network.kind: network
    for network in (
        FlatGradientLSTM,
        FlatGradientGRU,
        FlatGradientMLP,
        CoordinatewiseLSTM,
        RNNProp,
        LayerPairLSTM,
        PerNeuronLSTM,
        StepLSTM,
        OrbitLSTM,
        Joint,
    )
}


# Types of a card's fields, besides its format.
_FIELDS = {
    "kind": str,
    "config": dict,
    "contract": dict,
    "classes": dict,
    "library": dict,
    "training": dict,
    "evaluation": dict,
    "licence": str,
}


_DOUBLE = (np.float64, np.int64, np.uint64)


def kinds_of(classes: Sequence[Any]) -> dict[str, Any]:
    """Returns the classes that files may name, by kind: the library's and `classes`.

    Raises ValueError for a class that is not a learned optimizer with a kind of its own.

    >>> sorted(kinds_of([]))[:3]
    ['coordinatewise-lstm', 'flat-gradient-gru', 'flat-gradient-lstm']
    """
    kinds = dict(KINDS)
    for own in classes:
        if not (isinstance(own, type) and issubclass(own, AbstractLearnedOptimizer)):
            raise ValueError(f"`classes` must be subclasses of AbstractLearnedOptimizer, got {own!r}.")
        kind = getattr(own, "kind", None)
        if not isinstance(kind, str) or kinds.get(kind, own) is not own:
            owner = f", which belongs to {kinds[kind].__name__}" if isinstance(kind, str) else ""
            raise ValueError(
                f"{own.__name__} has the kind {kind!r}{owner}: give the class a kind of its own, such as "
                f'kind = "{own.__name__.lower()}".'
            )
        kinds[kind] = own
    return kinds


def skeleton_of(where: str, card: Any, layout: Layout, kinds: dict[str, Any]) -> AbstractLearnedOptimizer:
    """Builds the network a card describes, with shapes for arrays; checks the file's arrays against it.

    Raises ValueError, starting with `where`, for a card or arrays that do not fit together or this version.

    >>> skeleton_of("It", {"format": 1}, {}, kinds_of([]))
    Traceback (most recent call last):
    ValueError: It has format 1; this version of symmetrax reads format 2.
    """
    found = card.get("format") if isinstance(card, dict) else card
    if not isinstance(card, dict) or found != FORMAT:
        raise ValueError(f"{where} has format {found!r}; this version of symmetrax reads format {FORMAT}.")
    for name, kind in _FIELDS.items():
        if not isinstance(card.get(name), kind):
            raise ValueError(
                f"{where} needs a {kind.__name__} as {name!r} in its card, got {card.get(name)!r}."
            )
    _check_bounds(where, card, layout)
    # Only shapes: whatever sizes the config names, no memory is allocated for them.
    skeleton = eqx.filter_eval_shape(lambda: _build(where, card, card["kind"], card["config"], kinds))
    if card["contract"] != skeleton.contract():
        raise ValueError(
            f"{where} was trained with the feature contract {card['contract']}, but in this version a "
            f"{type(skeleton).__name__} has {skeleton.contract()}: its inputs or outputs have another "
            "meaning, so load it with the version that saved it."
        )
    expected = {f"weights.{name}": x for name, x in layout_of(arrays_of(skeleton)).items()}
    for prefix, part in recorded_parts(skeleton):
        steps = eqx.filter_eval_shape(record_steps, part)
        expected |= {f"{prefix}{name}": x for name, x in layout_of(steps).items()}
    check_layout(layout, {name: _as_saved(x, layout.get(name)) for name, x in expected.items()}, where)
    for name, x in layout.items():
        if name.startswith("weights.") and x.dtype in _DOUBLE and jnp.result_type(float) != np.float64:
            raise ValueError(
                f"{where} has the weights {name!r} in {x.dtype}, which JAX supports only with 64-bit types: "
                "load it within jax.enable_x64(True)."
            )
    return skeleton


def _as_saved(expected: jax.ShapeDtypeStruct, found: jax.ShapeDtypeStruct | None) -> jax.ShapeDtypeStruct:
    """Returns the expected shape in the found precision, if both dtypes are of the same kind."""
    for sort in (jnp.floating, jnp.signedinteger):
        if found is not None and jnp.issubdtype(expected.dtype, sort) and jnp.issubdtype(found.dtype, sort):
            return jax.ShapeDtypeStruct(expected.shape, found.dtype)
    return expected


def _check_bounds(where: str, card: dict[str, Any], layout: Layout) -> None:
    """Raises ValueError if the config's network is too large for the file, before building anything."""
    size = sum(x.size * x.dtype.itemsize for x in layout.values())
    held = f"it has {len(layout)} arrays of {size} bytes"
    joined = 0

    def check(name: str, value: Any, most: int) -> None:
        nonlocal joined
        if isinstance(value, dict):
            # A card can nest networks deeply; every level counts towards the number that are joined.
            joined += name == "networks"
            # The integers in a user-defined class's config may count things other than array entries.
            most = size if value.get("kind", card["kind"]) in tuple(KINDS) else max(size, 10**6)
            for inner, x in value.items():
                check(inner, x, most)
        elif isinstance(value, list):
            if len(value) > len(layout):
                raise ValueError(f"{where} is too small for a network with {len(value)} {name}: {held}.")
            for x in value:
                check(name, x, most)
        elif isinstance(value, int):
            most = min(len(layout), DEEPEST) if name == "depth" else most
            if abs(value) > most:
                raise ValueError(f"{where} is too small for a network with {name}={value}: {held}.")

    check("config", card["config"], size)
    if joined > MOST_NETWORKS:
        raise ValueError(f"{where} joins {joined} networks, but a file can join at most {MOST_NETWORKS}.")


def _build(
    where: str, card: dict[str, Any], kind: Any, config: dict[str, Any], kinds: dict[str, Any]
) -> AbstractLearnedOptimizer:
    """Builds a network of this kind and shape."""
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(_unknown(where, kind, card["classes"], kinds))
    name = kinds[kind].__name__
    if kind == Joint.kind:
        parts = config.get("networks")
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            raise ValueError(
                f"{where} has a config that {name} does not accept: networks must be a list of configs, got "
                f"{parts!r}."
            )
        of_parts = [(part.get("kind"), {k: v for k, v in part.items() if k != "kind"}) for part in parts]
        made = Joint(tuple(_build(where, card, kind, config, kinds) for kind, config in of_parts))
    else:
        try:
            made = kinds[kind](**config, key=jax.random.key(0))
        except Exception as error:  # the class may raise anything for an invalid config
            raise ValueError(f"{where} has a config that {name} does not accept: {error}.") from error
    # A class may ignore or change an argument, and so build another network than the card describes.
    recorded = made.config()
    for field, value in config.items():
        if _text(recorded.get(field)) != _text(value):
            raise ValueError(f"{where} has a config that {name} does not reproduce: {field}={value!r}.")
    return made


def _unknown(where: str, kind: Any, classes: dict[str, Any], kinds: dict[str, Any]) -> str:
    """Returns the error message for an unknown kind."""
    own = classes.get(kind) if isinstance(kind, str) else None
    if isinstance(own, str):
        name = own.rpartition(":")[2].rpartition(".")[2]
        return (
            f"{where} is of kind {kind!r}, saved from the class {own}, which is not part of symmetrax: "
            f"import the class and call load(path, classes=[{name}])."
        )
    hint = near_match(kind, kinds) if isinstance(kind, str) else ""
    return f"{where} is of kind {kind!r}; known kinds are {', '.join(kinds)}.{hint}"


def check_rebuilds(
    what: str,
    network: AbstractLearnedOptimizer,
    card: dict[str, Any],
    layout: Layout,
    kinds: dict[str, Any],
) -> None:
    """Raises ValueError if `load` would not rebuild this network from its card.

    >>> import jax, symmetrax as sx
    >>> network = sx.learned.RNNProp(width=4, key=jax.random.key(0))
    >>> check_rebuilds("It", network, {"format": 1}, {}, kinds_of([]))
    Traceback (most recent call last):
    ValueError: It has format 1; this version of symmetrax reads format 2.
    """
    made = skeleton_of(what, card, layout, kinds)
    for ours, theirs in zip(_non_arrays(network), _non_arrays(made), strict=True):
        if ours != theirs:
            raise ValueError(
                f"{what} is not what {type(network).__name__}(**network.config(), key=key) builds. Return "
                f"every argument of the class from config(): it is {ours}, but would be loaded as {theirs}."
            )


def _non_arrays(network: AbstractLearnedOptimizer) -> tuple[str, ...]:
    """Returns everything except arrays: the structure with its static fields, and the other leaves."""
    rest = eqx.filter(network, is_array, inverse=True)
    recorded = (jax.tree.structure(rest), jax.tree.leaves(rest))
    return tuple(map(without_addresses, recorded))


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
