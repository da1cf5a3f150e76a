"""Checkpoints of a meta-training: its state in one file, and what identifies the call that it belongs to."""

import hashlib
import pathlib
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from symmetrax._files import (
    check_finite_arrays,
    check_layout,
    is_key,
    layout_of,
    named_arrays,
    open_arrays,
    restore,
    save_arrays,
)
from symmetrax._text import without_addresses
from symmetrax._tree import safe_norm
from symmetrax.metatrain._estimators import AbstractMetaGradient
from symmetrax.metatrain._stopping import EarlyStopping

CHECKPOINT_FORMAT = 5


# Gradients of these norms are fed to the outer optimizer to fingerprint it.
PROBES = (0.1, 0.7, 3.0, 30.0)


# Names, in error messages, of the parts of a call that are not counts.
_ASPECTS = {
    "outer_steps": "number of outer steps",
    "patience": "patience",
    "precision": "precision",
    "chunk": "number of outer steps in a chunk",
    "identity": "`identity`",
    "estimator": "estimator (family, rule, steps, ...)",
    "networks": "`networks` to continue from",
    "key": "key",
}


class TrainingState(NamedTuple):
    """The state of a meta-training; a checkpoint holds all of it.

    >>> TrainingState._fields[:4]
    ('networks', 'outer', 'skipped', 'losses')
    """

    networks: PyTree
    outer: PyTree
    skipped: Int[Array, " seeds"]
    losses: Float[np.ndarray, "seeds outer_steps"]
    done: np.ndarray
    best: PyTree
    validation: Float[np.ndarray, "seeds rounds"]
    diverged: Bool[np.ndarray, " seeds"]


class Checkpoint(NamedTuple):
    """The file of a meta-training, with what identifies the call that it belongs to.

    Functions have no identity that outlives a process, so the outer optimizer and the initialization are
    recognized by what they do: `first_steps`.

    >>> Checkpoint(pathlib.Path("it.safetensors"), {"seeds": 1}, np.zeros((1, 9))).call
    {'seeds': 1}
    """

    path: pathlib.Path
    call: dict[str, Any]
    first_steps: Float[np.ndarray, "arrays entries"]

    def write(self, state: TrainingState) -> None:
        """Writes the state, in one step that replaces the previous one."""
        arrays = named_arrays({**state._asdict(), "first_steps": self.first_steps})
        save_arrays(self.path, arrays, {"format": CHECKPOINT_FORMAT, "call": self.call})

    def read(self, like: TrainingState) -> TrainingState:
        """Loads the state. Raises ValueError if the file is damaged or belongs to another call."""
        with open_arrays(self.path, "meta-training checkpoint") as file:
            # The card before the arrays: it says best why the arrays of another call do not fit.
            self._check_call(file.card)
            expected = layout_of({**like._asdict(), "first_steps": self.first_steps})
            check_layout(file.layout, expected, str(self.path))
            arrays = file.read()
        # To a few digits, because another processor rounds differently.
        before, rounding = arrays["first_steps"], 1e-3
        size = rounding * np.nan_to_num(np.abs(before[:, :1]), posinf=0.0)
        if not np.all(np.isclose(self.first_steps, before, rounding, size, equal_nan=True)):
            raise ValueError(self._another("first networks or outer optimizer"))
        weights = {name: x for name, x in arrays.items() if name.startswith(("networks.", "best."))}
        check_finite_arrays(weights, str(self.path))
        state = restore(like, arrays)
        outer_steps, chunk = self.call["outer_steps"], self.call["chunk"]
        if not (0 <= state.done <= outer_steps and (state.done % chunk == 0 or state.done == outer_steps)):
            raise ValueError(
                f"{self.path} says that {state.done} of {outer_steps} outer steps are done, which chunks of "
                f"{chunk} cannot end at: delete it to train from the start."
            )
        return state

    def _check_call(self, card: Any) -> None:
        """Raises ValueError if the file was written by another call, naming what differs."""
        card = card if isinstance(card, dict) else {}
        if card.get("format") != CHECKPOINT_FORMAT:
            raise ValueError(
                f"{self.path} is a checkpoint of format {card.get('format')!r}, but this version reads "
                f"format {CHECKPOINT_FORMAT}: delete it to train from the start."
            )
        there = card.get("call")
        recorded = there if isinstance(there, dict) else {}
        different = [
            _ASPECTS.get(name, f"number of {name}")
            for name in self.call
            if recorded.get(name) != self.call[name]
        ]
        if different:
            raise ValueError(self._another(", ".join(different)))

    def _another(self, difference: str) -> str:
        return (
            f"{self.path} holds the state of another meta-training, with a different {difference}: delete "
            "it, or pass another path as `checkpoint`."
        )


def identified(
    estimator: AbstractMetaGradient,
    networks: PyTree,
    key: Key[Array, ""],
    outer_steps: int,
    seeds: int,
    chunk: int,
    stopping: EarlyStopping | None,
    identity: str,
) -> dict[str, Any]:
    """Returns everything that distinguishes a call of `meta_train`, for the card of its checkpoint.

    >>> import symmetrax as sx
    >>> family, key = sx.tasks.make_family("booth"), jax.random.key(0)
    >>> estimator = sx.metatrain.TruncatedBPTT(family, sx.UpdateRule(), steps=4, truncation=2)
    >>> identified(estimator, None, key, 10, 1, 5, None, "")["outer_steps"]
    10
    """
    patience = 0 if stopping is None else stopping.patience
    counts = {"outer_steps": outer_steps, "seeds": seeds, "chunk": chunk, "patience": patience}
    rest = {"identity": identity, "precision": jnp.result_type(float).name}
    return counts | rest | _digests(estimator, networks, key)


@eqx.filter_jit
def first_steps(optimizer: Any, networks: PyTree) -> Float[Array, "arrays entries"]:
    """A sketch of the networks, and of the steps that the outer optimizer takes from the first network.

    Compared to a few digits, it distinguishes other initializations, learning rates and optimizers, but
    tolerates the rounding differences of another processor.

    >>> one, other = (first_steps(optax.sgd(rate), {"w": jnp.ones((1, 3))}) for rate in (0.1, 0.2))
    >>> one.shape, bool(jnp.allclose(one, other))
    ((2, 9), False)
    """
    # A generic direction, neither random nor constant: optimizers that act on signs or on norms of whole
    # arrays take different steps along it.
    network = jax.tree.map(lambda x: x[0], networks)
    wave = jax.tree.map(lambda x: jnp.sin(1.0 + jnp.arange(x.size).reshape(x.shape)), network)
    length = safe_norm(wave)

    def step(carry, size):
        network, outer = carry
        gradient = jax.tree.map(lambda w, x: (size / length * w).astype(x.dtype), wave, network)
        updates, outer = optimizer.update(gradient, outer, network)
        return (optax.apply_updates(network, updates), outer), updates

    start = (network, optimizer.init(network))
    _, updates = jax.lax.scan(step, start, jnp.asarray(PROBES))
    return jnp.stack([_sketch(x) for x in jax.tree.leaves((networks, updates))])


def _sketch(x: Array) -> Float[Array, " entries"]:
    """Returns the mean magnitude of an array's entries, and eight of its entries."""
    flat = jnp.ravel(x).astype(float)
    places = np.linspace(0, flat.size - 1, 8).astype(int)
    return jnp.concatenate([jnp.mean(jnp.abs(flat))[None], flat[places]]) if flat.size else jnp.zeros(9)


def _digests(estimator: Any, networks: PyTree, key: Key[Array, ""]) -> dict[str, str]:
    """Hashes the parts of a call that are arrays and structures."""
    return {
        name: _digest(x) for name, x in {"estimator": estimator, "networks": networks, "key": key}.items()
    }


def _digest(tree: PyTree) -> str:
    """Hashes a tree: its structure with static fields, its arrays, and the names of functions."""
    # A typed key has no bytes of its own: hash its data, and its dtype for the implementation.
    leaves, structure = jax.tree.flatten(tree)
    digest = hashlib.sha256(without_addresses(structure).encode())
    for leaf in leaves:
        if eqx.is_array_like(leaf):
            array = np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
            digest.update(f"{leaf.dtype if is_key(leaf) else array.dtype}{array.shape}".encode())
            digest.update(array.tobytes())
        else:
            digest.update(without_addresses(leaf).encode())
    return digest.hexdigest()
