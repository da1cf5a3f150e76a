"""A trained optimizer in one file, with a card, and a recorded step that proves it still works.

The file is `.safetensors`: the weights by path, the arrays of one recorded step, and in the metadata a JSON
card: format, kind, config, feature contract, library version, training, evaluation, licence. No pickle is
ever read.
"""

import importlib.metadata
import pathlib
from typing import Any

import equinox as eqx
import jax
import numpy as np

from symmetrax._files import load_arrays, named_arrays, restore, save_arrays
from symmetrax.learned._base import AbstractLearnedOptimizer
from symmetrax.learned._coordinatewise import CoordinatewiseLSTM
from symmetrax.learned._features import Info
from symmetrax.learned._whole import WholeLSTM

FORMAT = 1
TOLERANCE = 1e-5
KINDS: dict[str, Any] = {c.kind: c for c in (WholeLSTM, CoordinatewiseLSTM)}


class ArtifactError(ValueError):
    """A file that is not a trained optimizer this version can use; the message says why.

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
    """Write a trained optimizer to one `.safetensors` file.

    **Arguments:** `training` (family, horizon, seed, ...), `evaluation` and `licence` go into the card as
    they are; the first two must be JSON values.

    >>> import jax, tempfile
    >>> network = CoordinatewiseLSTM(key=jax.random.key(0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save(network, folder + "/mine.safetensors", training={"family": "digits"})
    ...     loaded, card = load(path)
    >>> card["training"]["family"], card["contract"]["emits"]
    ('digits', ['update'])
    """
    path = pathlib.Path(path)
    if KINDS.get(network.kind) is not type(network):
        raise ArtifactError(f"Cannot save a {type(network).__name__}: known kinds are {', '.join(KINDS)}.")
    info = network.example()
    arrays = {f"weights.{name}": array for name, array in named_arrays(network).items()}
    arrays |= {f"recorded.{name}": array for name, array in named_arrays(info._asdict()).items()}
    arrays |= {f"recorded.{name}": array for name, array in _answer(network, info).items()}
    card = {
        "format": FORMAT,
        "kind": network.kind,
        "config": network.config(),
        "contract": network.contract(),
        "library": {"name": "symmetrax", "version": importlib.metadata.version("symmetrax")},
        "training": training or {},
        "evaluation": evaluation or {},
        "licence": licence,
    }
    save_arrays(path, arrays, card)
    return path


def load(path: str | pathlib.Path) -> tuple[AbstractLearnedOptimizer, dict[str, Any]]:
    """Read a trained optimizer and its card, and check that it still takes the step it recorded.

    Raises ArtifactError for a file that is missing or cut short, of another format version, kind or feature
    contract, or whose recorded step is not reproduced to 1e-5 relative.

    >>> load("nowhere.safetensors")
    Traceback (most recent call last):
    symmetrax.learned._artifact.ArtifactError: There is no trained optimizer at nowhere.safetensors.
    """
    path = pathlib.Path(path)
    try:
        arrays, card = load_arrays(path, "trained optimizer")
        network = _rebuild(path, arrays, card)
    except ArtifactError:
        raise
    except ValueError as error:
        raise ArtifactError(str(error)) from error
    _check_recorded_step(path, network, arrays)
    return network, card


def _rebuild(path: pathlib.Path, arrays: dict[str, np.ndarray], card: Any) -> AbstractLearnedOptimizer:
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        found = card.get("format") if isinstance(card, dict) else card
        raise ArtifactError(f"{path} has format {found!r}; this version of symmetrax reads format {FORMAT}.")
    kind = KINDS.get(card.get("kind", ""))
    if kind is None:
        raise ArtifactError(f"{path} is of kind {card.get('kind')!r}; known kinds are {', '.join(KINDS)}.")
    try:
        skeleton = eqx.filter_eval_shape(lambda: kind(**card.get("config", {}), key=jax.random.key(0)))
    except TypeError as error:
        raise ArtifactError(f"{path} has a config that {kind.__name__} does not take: {error}.") from error
    if card.get("contract") != skeleton.contract():
        raise ArtifactError(
            f"{path} was trained under the feature contract {card.get('contract')}, but this version's "
            f"{kind.__name__} follows {skeleton.contract()}: its inputs or outputs mean something else."
        )
    prefix = "weights."
    weights = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
    return restore(skeleton, weights, path)


def _check_recorded_step(path: pathlib.Path, network: AbstractLearnedOptimizer, arrays: dict) -> None:
    recorded = {n.removeprefix("recorded."): a for n, a in arrays.items() if n.startswith("recorded.")}
    if not {"gradient", "params", "previous", "update"} <= recorded.keys():
        raise ArtifactError(f"{path} lacks the recorded step that shows whether it still works.")
    info = Info(**{name: recorded.get(name) for name in Info._fields})
    for name, found in _answer(network, info).items():
        wanted = recorded[name]
        worst = float(np.max(np.abs(found - wanted)) / max(np.max(np.abs(wanted)), 1e-30))
        if not worst <= TOLERANCE:
            raise ArtifactError(
                f"{path} does not reproduce its recorded step: the {name} is off by {worst:.1e} relative "
                f"(at most {TOLERANCE:.0e} is expected). The weights or the code have changed."
            )


def _answer(network: AbstractLearnedOptimizer, info: Info) -> dict[str, np.ndarray]:
    """What the network proposes at its first step, for gradients and parameters that are flat vectors."""
    move, _ = network.propose(info, network.memory(info.params))
    return named_arrays({"update": move.update, "algebra": move.algebra})
