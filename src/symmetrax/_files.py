"""Files that are whole or absent: named arrays with JSON beside them, written atomically. No pickles."""

import json
import os
import pathlib
import struct
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import PyTree


def write_atomic(path: pathlib.Path, content: bytes | str) -> None:
    """Write a file so that a crash at any moment leaves the old one or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # One name, so that what a killed process leaves is overwritten by the next.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_arrays(path: pathlib.Path, arrays: dict[str, np.ndarray], card: dict[str, Any]) -> None:
    """Write arrays and a JSON card as one `.safetensors` file."""
    # Not np.ascontiguousarray, which gives a number of shape () an axis.
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    metadata = {"card": json.dumps(card, sort_keys=True)}
    write_atomic(path, safetensors.numpy.save(contiguous, metadata))


def load_arrays(path: pathlib.Path, what: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what `save_arrays` wrote. Raises ValueError, naming `what` was to be read, for anything else."""
    if not path.is_file():
        raise ValueError(f"There is no {what} at {path}.")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            card = (file.metadata() or {}).get("card")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (safetensors.SafetensorError, OSError, struct.error) as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}. Expected a {what}.") from error
    if card is None:
        raise ValueError(f"{path} has no card in its metadata, so it is not a {what}.")
    try:
        return arrays, json.loads(card)
    except json.JSONDecodeError as error:
        raise ValueError(f"The card of {path} is not JSON: {error}. Expected a {what}.") from error


def named_arrays(tree: PyTree) -> dict[str, np.ndarray]:
    """The arrays of a tree by path: `core.cells.0.bias`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_name(path): np.asarray(leaf) for path, leaf in leaves}


def restore(like: PyTree, arrays: dict[str, np.ndarray], path: pathlib.Path) -> PyTree:
    """A tree like `like` with the arrays of these names. Raises ValueError where they do not fit."""

    def leaf(at, expected):
        name, found = _name(at), arrays.get(_name(at))
        if found is None:
            raise ValueError(f"{path} lacks the array {name!r} of shape {expected.shape}.")
        if found.shape != expected.shape:
            raise ValueError(
                f"{path}: the array {name!r} has shape {found.shape}, expected {expected.shape}."
            )
        as_array = np.asarray if isinstance(expected, np.ndarray) else jax.numpy.asarray
        return as_array(found, expected.dtype)

    return jax.tree_util.tree_map_with_path(leaf, like)


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
