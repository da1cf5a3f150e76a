"""Saves a trained optimizer in one file, with a card and recorded steps that verify it on loading.

The file is `.safetensors`: it holds the weights by path, the arrays of a few recorded steps and, in the
metadata, a JSON card (format, kind, config, feature contract, library version, training, evaluation, licence)
and a checksum of everything. Loading never reads a pickle and never imports code named by a file.
"""

import importlib.metadata
import pathlib
from collections.abc import Sequence
from typing import Any

import equinox as eqx

from symmetrax._files import (
    check_card,
    check_finite_arrays,
    check_writable,
    layout_of,
    named_arrays,
    open_arrays,
    restore,
    save_arrays,
)
from symmetrax.learned._base import AbstractLearnedOptimizer
from symmetrax.learned._rebuild import FORMAT, KINDS, check_rebuilds, kinds_of, skeleton_of
from symmetrax.learned._recorded_steps import (
    arrays_of,
    check_recorded_steps,
    is_array,
    record_steps,
    recorded_parts,
    under,
)


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

    >>> import jax, symmetrax as sx, tempfile
    >>> network = sx.learned.CoordinatewiseLSTM(key=jax.random.key(0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save(network, folder + "/mine.safetensors", training={"family": "digits"})
    ...     loaded, card = load(path)
    >>> card["training"]["family"], card["contract"]["emits"]
    ('digits', ['update'])
    """
    path = pathlib.Path(path)
    parts = recorded_parts(network)
    own = list(dict.fromkeys(type(part) for _, part in parts if type(part) not in KINDS.values()))
    what = f"Cannot save a {type(network).__name__}: it"
    # Everything that `load` will check is checked before the first byte is written.
    try:
        check_writable(path)
        kinds = kinds_of(own)
        weights = {f"weights.{name}": array for name, array in named_arrays(arrays_of(network)).items()}
        check_finite_arrays(weights, what)
        steps = {f"{prefix}{name}": x for prefix, part in parts for name, x in record_steps(part).items()}
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
        check_rebuilds(what, network, card, layout_of(weights | steps), kinds)
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
    kinds = kinds_of(classes)
    try:
        with open_arrays(path, "trained optimizer") as file:
            card, where = file.card, str(file.path)
            # Shapes before values: nothing is read until the card and the layout of the arrays agree.
            skeleton = skeleton_of(where, card, file.layout, kinds)
            arrays = file.read()
        check_finite_arrays(arrays, where)
        restored = restore(arrays_of(skeleton), under("weights.", arrays))
        network = eqx.combine(restored, eqx.filter(skeleton, is_array, inverse=True))
        check_recorded_steps(where, network, arrays)
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
