"""Saves a trained optimizer in one file, with a card and recorded steps that verify it on loading.

The file is `.safetensors`: it holds the weights by path, the arrays of a few recorded steps and, in the
metadata, a JSON card (format, kind, config, feature contract, library version, training, evaluation, licence)
and a checksum of everything. Loading never reads a pickle and never imports code named by a file.

A checksum protects against accidents, not against malice: whoever writes a file can also write its checksum.
So every value in a file is bounded by the file's actual contents before anything is built from it.
"""

import importlib.metadata
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from symmetrax._files import (
    Layout,
    check_card,
    check_finite_arrays,
    check_layout,
    check_writable,
    layout_of,
    named_arrays,
    open_arrays,
    restore,
    save_arrays,
)
from symmetrax._text import near_match
from symmetrax.learned._base import AbstractLearnedOptimizer
from symmetrax.learned._coordinatewise import CoordinatewiseLSTM
from symmetrax.learned._features import Observation
from symmetrax.learned._flat_gradient import FlatGradientGRU, FlatGradientLSTM, FlatGradientMLP
from symmetrax.learned._joint import Joint
from symmetrax.learned._layer_pairs import LayerPairLSTM
from symmetrax.learned._neurons import PerNeuronLSTM
from symmetrax.learned._orbit import OrbitLSTM
from symmetrax.learned._rnnprop import RNNProp
from symmetrax.learned._step import StepLSTM
from symmetrax.learned._transformation import update_from

FORMAT = 2
#: Relative error of the recorded steps: float32 products differ by this much between processors.
TOLERANCE = 1e-5

# Each recorded step multiplies the example's gradient by one of these; the memory carries over between steps.
FACTORS = (1.0, -0.5, 2.0)

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


class ArtifactError(ValueError):
    """Raised for a file that this version cannot use as a trained optimizer; the message says why.

    >>> raise ArtifactError("not a trained optimizer")
    Traceback (most recent call last):
    symmetrax.learned._artifact.ArtifactError: not a trained optimizer
    """


def save(
    network: AbstractLearnedOptimizer,
    path: str | pathlib.Path,
    *,
    training: dict[str, Any] | None = None,
    evaluation: dict[str, Any] | None = None,
    licence: str = "MIT",
) -> pathlib.Path:
    """Writes a trained optimizer to one `.safetensors` file.

    **Arguments:** `network` may be an instance of your own class, if the class has its own `kind` and
    `NAME(**network.config(), key=key)` builds a network of the same shape. `training` (family, horizon, seed,
    ...), `evaluation` and `licence` are stored in the card unchanged; the first two must be JSON values.

    Raises ArtifactError, and writes nothing, if weights are infinite or NaN, if the class does not rebuild
    the network from its config, or if `load` would reject the file for any other reason.

    >>> import jax, tempfile
    >>> network = CoordinatewiseLSTM(key=jax.random.key(0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save(network, folder + "/mine.safetensors", training={"family": "digits"})
    ...     loaded, card = load(path)
    >>> card["training"]["family"], card["contract"]["emits"]
    ('digits', ['update'])
    """
    path = pathlib.Path(path)
    parts = _parts(network)
    own = list(dict.fromkeys(type(part) for _, part in parts if type(part) not in KINDS.values()))
    what = f"Cannot save a {type(network).__name__}: it"
    # Everything that `load` will check is checked before the first byte is written.
    try:
        check_writable(path)
        kinds = _kinds(own)
        weights = {f"weights.{name}": array for name, array in named_arrays(_arrays(network)).items()}
        check_finite_arrays(weights, what)
        steps = {f"{prefix}{name}": x for prefix, part in parts for name, x in _record(part).items()}
        check_finite_arrays(steps, what)
        card = {
            "format": FORMAT,
            "kind": network.kind,
            "config": network.config(),
            "contract": network.contract(),
            "classes": {one.kind: f"{one.__module__}:{one.__qualname__}" for one in own},
            "library": {"name": "symmetrax", "version": importlib.metadata.version("symmetrax")},
            "training": training or {},
            "evaluation": evaluation or {},
            "licence": licence,
        }
        card = check_card(card, what)
        _check_rebuilds(what, network, card, layout_of(weights | steps), kinds)
        save_arrays(path, weights | steps, card)
    except ValueError as error:
        raise _artifact_error(error) from error
    return path


def load(
    path: str | pathlib.Path,
    *,
    horizon: int | None = None,
    classes: Sequence[type[AbstractLearnedOptimizer]] = (),
) -> tuple[AbstractLearnedOptimizer, dict[str, Any]]:
    """Reads a trained optimizer and its card, and checks that it reproduces the recorded steps.

    **Arguments:** `classes` are your own classes that the file may need. The file refers to them by `kind`;
    `load` never imports anything that a file names. Learned optimizers may fail on runs longer than those
    they were trained on: pass the number of steps you intend to take as `horizon`, and `load` rejects an
    optimizer trained on shorter runs.

    The weights are restored bit for bit, in the dtype they were saved in. Raises ArtifactError for a file
    that is missing, damaged or truncated; that has another format version, kind or feature contract; whose
    recorded steps are not reproduced to 1e-5 relative (or to the rounding of its weights, if they are in half
    precision); or that was trained on runs shorter than `horizon` or does not record their length. Raises
    ValueError if any of `classes` is not a learned optimizer with its own `kind`.

    >>> load("nowhere.safetensors")
    Traceback (most recent call last):
    symmetrax.learned._artifact.ArtifactError: There is no trained optimizer at nowhere.safetensors.
    """
    kinds = _kinds(classes)
    try:
        with open_arrays(path, "trained optimizer") as file:
            card, where = file.card, str(file.path)
            # Shapes before values: nothing is read until the card and the layout of the arrays agree.
            skeleton = _skeleton(where, card, file.layout, kinds)
            arrays = file.read()
        check_finite_arrays(arrays, where)
        restored = restore(_arrays(skeleton), _under("weights.", arrays))
        network = eqx.combine(restored, eqx.filter(skeleton, _is_array, inverse=True))
        _check_recorded_steps(where, network, arrays)
    except ValueError as error:
        raise _artifact_error(error) from error
    except Exception as error:  # a malicious config can raise anything in a network's code
        unusable = ValueError(f"{path} cannot be used: {type(error).__name__}: {error}")
        raise _artifact_error(unusable) from error
    known = card["training"].get("horizon")
    if horizon is not None and not (type(known) is int and horizon <= known):
        trained = "an unknown number of" if known is None else str(known)
        raise ArtifactError(
            f"{path} was trained on runs of {trained} steps, but horizon={horizon} asks for {horizon}: train "
            "it on longer runs, or omit `horizon` to load it anyway."
        )
    return network, card


def _artifact_error(error: ValueError) -> ArtifactError:
    """Puts the error on one line, and truncates long quotations."""
    # A message may quote a card, which whoever wrote the file can make as long as they like.
    line = " ".join(str(error).split())
    return ArtifactError(line if len(line) <= 1000 else f"{line[:700]} ... {line[-200:]}")


def _kinds(classes: Sequence[Any]) -> dict[str, Any]:
    """Returns the classes that files may name, by kind: the library's and `classes`."""
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


def _skeleton(where: str, card: Any, layout: Layout, kinds: dict[str, Any]) -> AbstractLearnedOptimizer:
    """Builds the network a card describes, with shapes for arrays; checks the file's arrays against it."""
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
    expected = {f"weights.{name}": x for name, x in layout_of(_arrays(skeleton)).items()}
    for prefix, part in _parts(skeleton):
        steps = eqx.filter_eval_shape(_record, part)
        expected |= {f"{prefix}{name}": x for name, x in layout_of(steps).items()}
    check_layout(layout, {name: _as_saved(x, layout.get(name)) for name, x in expected.items()}, where)
    for name, x in layout.items():
        if name.startswith("weights.") and x.dtype in _DOUBLE and jnp.result_type(float) != np.float64:
            raise ValueError(
                f"{where} has the weights {name!r} in {x.dtype}, which JAX supports only with 64-bit types: "
                "load it within jax.enable_x64(True)."
            )
    return skeleton


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


def _check_rebuilds(
    what: str,
    network: AbstractLearnedOptimizer,
    card: dict[str, Any],
    layout: Layout,
    kinds: dict[str, Any],
) -> None:
    """Raises ValueError if `load` would not rebuild this network from its card."""
    made = _skeleton(what, card, layout, kinds)
    for ours, theirs in zip(_non_arrays(network), _non_arrays(made), strict=True):
        if ours != theirs:
            raise ValueError(
                f"{what} is not what {type(network).__name__}(**network.config(), key=key) builds. Return "
                f"every argument of the class from config(): it is {ours}, but would be loaded as {theirs}."
            )


def _non_arrays(network: AbstractLearnedOptimizer) -> tuple[str, ...]:
    """Returns everything except arrays: the structure with its static fields, and the other leaves."""
    rest = eqx.filter(network, _is_array, inverse=True)
    recorded = (jax.tree.structure(rest), jax.tree.leaves(rest))
    return tuple(re.sub(r" at 0x[0-9a-f]+", "", repr(x)) for x in recorded)


def _parts(network: AbstractLearnedOptimizer, prefix: str = "recorded.") -> list[tuple[str, Any]]:
    """Lists the networks whose steps are recorded (each part of a `Joint`), with their name prefixes."""
    if type(network) is Joint:
        found = [_parts(part, f"{prefix}{i}.") for i, part in enumerate(network.networks)]
        return [part for parts in found for part in parts]
    return [(prefix, network)]


def _arrays(network: AbstractLearnedOptimizer) -> AbstractLearnedOptimizer:
    """Returns the weights only."""
    return eqx.filter(network, _is_array)


def _is_array(leaf: Any) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)


def _under(prefix: str, arrays: dict[str, Any]) -> dict[str, Any]:
    """Selects the arrays whose names start with `prefix`, and strips it."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _check_recorded_steps(where: str, network: AbstractLearnedOptimizer, arrays: dict[str, Any]) -> None:
    floating = [x.dtype for x in jax.tree.leaves(_arrays(network)) if jnp.issubdtype(x.dtype, jnp.floating)]
    # The steps are computed in the precision of the weights, so half precision reproduces fewer digits.
    tolerance = max([TOLERANCE, *(8 * float(jnp.finfo(dtype).eps) for dtype in floating)])
    for prefix, part in _parts(network):
        recorded = _under(prefix, arrays)
        for name, found in _steps(part, restore(_seen(part.example()), recorded)).items():
            found, wanted = (np.asarray(x).astype(complex) for x in (found, recorded[name]))
            worst = np.max(np.abs(found - wanted), initial=0) / np.max(np.abs(wanted), initial=1e-30)
            # Negated, so that NaN is an error.
            if not worst <= tolerance:
                raise ValueError(
                    f"{where} does not reproduce its recorded steps: {name} has a relative error of "
                    f"{worst:.1e}, more than {tolerance:.0e}. Its weights, or the network's code, have "
                    "changed: load it with the version that saved it."
                )


def _record(network: AbstractLearnedOptimizer) -> dict[str, Any]:
    """Returns the network's example input, and the proposals it makes on it."""
    seen = _seen(network.example())
    return named_arrays(seen) | named_arrays(_steps(network, seen))


# Compiled when saving and when loading, because an eager and a compiled network round differently.
@eqx.filter_jit
def _steps(network: AbstractLearnedOptimizer, seen: dict[str, Any]) -> dict[str, Any]:
    """Returns the network's proposals in its first steps; from the second on they depend on its memory."""
    observation, recorded = network.example()._replace(**seen), {}
    memory = network.memory(observation.params, observation.symmetry)
    for step, factor in enumerate(FACTORS):
        gradient = jax.tree.map(lambda g, factor=factor: factor * g, observation.gradient)
        proposal, memory = network.propose(observation._replace(gradient=gradient), memory)
        proposal = proposal._replace(update=update_from(proposal, gradient))
        recorded |= {f"step{step}.{name}": x for name, x in named_arrays(proposal._asdict()).items()}
    return recorded


def _seen(observation: Observation) -> dict[str, Any]:
    """Returns the arrays that a network sees."""
    return {name: value for name, value in observation._asdict().items() if name != "symmetry"}
