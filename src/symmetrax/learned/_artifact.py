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
from symmetrax.learned._neurons import PerNeuronLSTM
from symmetrax.learned._orbit import OrbitLSTM
from symmetrax.learned._pairs import PairLSTM
from symmetrax.learned._rnnprop import RNNProp
from symmetrax.learned._step import StepLSTM
from symmetrax.learned._together import Together
from symmetrax.learned._whole import WholeGRU, WholeLSTM, WholeMLP

FORMAT = 1
TOLERANCE = 1e-5
KINDS: dict[str, Any] = {
    network.kind: network
    for network in (
        WholeLSTM,
        WholeGRU,
        WholeMLP,
        CoordinatewiseLSTM,
        RNNProp,
        PairLSTM,
        PerNeuronLSTM,
        StepLSTM,
        OrbitLSTM,
        Together,
    )
}


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
    arrays = {f"weights.{name}": array for name, array in named_arrays(network).items()}
    for prefix, part in _parts(network):
        info = part.example()
        step = named_arrays(_seen(info)) | _answer(part, info)
        arrays |= {f"{prefix}{name}": array for name, array in step.items()}
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


def load(
    path: str | pathlib.Path, *, horizon: int | None = None
) -> tuple[AbstractLearnedOptimizer, dict[str, Any]]:
    """Read a trained optimizer and its card, and check that it still takes the step it recorded.

    Learned optimizers may fail on runs that are longer than those they were trained on. Give the number of
    steps you mean to take as `horizon`, and one that is beyond the card's is refused.

    Raises ArtifactError for a file that is missing or cut short, of another format version, kind or feature
    contract, whose recorded step is not reproduced to 1e-5 relative, or that was trained on shorter runs than
    `horizon` or does not say.

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
    for prefix, part in _parts(network):
        _check_recorded_step(path, part, _under(prefix, arrays))
    known = card["training"].get("horizon")
    if horizon is not None and not (isinstance(known, int) and horizon <= known):
        says = "for a number of steps that its card does not tell" if known is None else f"for {known} steps"
        raise ArtifactError(
            f"{path} was trained {says}, and {horizon} are asked of it: train it on longer runs, or leave "
            "out `horizon` to load it all the same."
        )
    return network, card


def _rebuild(path: pathlib.Path, arrays: dict[str, np.ndarray], card: Any) -> AbstractLearnedOptimizer:
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        found = card.get("format") if isinstance(card, dict) else card
        raise ArtifactError(f"{path} has format {found!r}; this version of symmetrax reads format {FORMAT}.")
    kind, config = card.get("kind", ""), card.get("config", {})
    skeleton = eqx.filter_eval_shape(lambda: _build(path, kind, config))
    if card.get("contract") != skeleton.contract():
        raise ArtifactError(
            f"{path} was trained under the feature contract {card.get('contract')}, but the "
            f"{type(skeleton).__name__} of this version follows {skeleton.contract()}: its inputs or outputs "
            "mean something else."
        )
    return restore(skeleton, _under("weights.", arrays), path)


def _build(path: pathlib.Path, kind: str, config: dict[str, Any]) -> AbstractLearnedOptimizer:
    """A network of this kind and shape."""
    if kind not in KINDS:
        raise ArtifactError(f"{path} is of kind {kind!r}; known kinds are {', '.join(KINDS)}.")
    try:
        if kind == Together.kind:
            parts = [dict(part) for part in config["networks"]]
            return Together(tuple(_build(path, part.pop("kind"), part) for part in parts))
        return KINDS[kind](**config, key=jax.random.key(0))
    except (TypeError, KeyError) as error:
        name = KINDS[kind].__name__
        raise ArtifactError(f"{path} has a config that {name} does not take: {error}.") from error


def _parts(
    network: AbstractLearnedOptimizer, prefix: str = "recorded."
) -> list[tuple[str, AbstractLearnedOptimizer]]:
    """The networks whose steps are recorded, each of those joined, and the beginnings of the steps' names."""
    if isinstance(network, Together):
        found = [_parts(part, f"{prefix}{i}.") for i, part in enumerate(network.networks)]
        return [part for parts in found for part in parts]
    if KINDS.get(network.kind) is not type(network):
        raise ArtifactError(f"Cannot save a {type(network).__name__}: known kinds are {', '.join(KINDS)}.")
    return [(prefix, network)]


def _under(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays whose names begin like this, by the rest of their names."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _check_recorded_step(
    path: pathlib.Path, network: AbstractLearnedOptimizer, recorded: dict[str, np.ndarray]
) -> None:
    example = network.example()
    answers = _answer(network, example)
    missing = {*named_arrays(_seen(example)), *answers} - recorded.keys()
    if missing:
        raise ArtifactError(
            f"{path} lacks {', '.join(sorted(missing))} of the recorded step that shows whether it works."
        )
    info = example._replace(**restore(_seen(example), recorded, path))
    for name, found in _answer(network, info).items():
        wanted = recorded[name]
        worst = float(np.max(np.abs(found - wanted)) / max(np.max(np.abs(wanted)), 1e-30))
        if not worst <= TOLERANCE:
            raise ArtifactError(
                f"{path} does not reproduce its recorded step: the {name} is off by {worst:.1e} relative "
                f"(at most {TOLERANCE:.0e} is expected). The weights or the code have changed."
            )


def _answer(network: AbstractLearnedOptimizer, info: Info) -> dict[str, np.ndarray]:
    """What the network proposes at its first step."""
    move, _ = network.propose(info, network.memory(info.params, info.symmetry))
    if callable(move.update):
        move = move._replace(update=move.update(info.gradient))
    return named_arrays(move._asdict())


def _seen(info: Info) -> dict[str, Any]:
    """The arrays that a network sees."""
    return {name: value for name, value in info._asdict().items() if name != "symmetry"}
