"""Folding the gains of normalizations into the matrices that read them."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from symmetrax._extras import explained
from symmetrax._tree import known_name, leaf_names
from symmetrax.groups._diagonal import NonzeroDiagonal
from symmetrax.symmetry._network import NetworkSymmetry
from symmetrax.symmetry._paths import arrays_at, match_paths, named_shapes

#: The largest relative change of the loss by folding that rounding explains, in float32.
TOLERANCE = 1e-4


class Folded(NamedTuple):
    """The result of `fold_gains`: the new parameters, and a mask of those that may still be trained.

    `trainable` is a tree like the parameters, False at the gains, which are 1 now and must stay. Pass it to
    `optax.masked` or `equinox.partition`, or leave the gains out of the model. `loss_change` is the relative
    change of the loss, None if you passed none.

    >>> Folded._fields
    ('params', 'trainable', 'loss_change')
    """

    params: PyTree
    trainable: PyTree
    loss_change: Float[Array, ""] | None


def fold_gains(
    params: PyTree,
    gains: Mapping[str, Sequence[str]],
    *,
    biases: Mapping[str, str] | None = None,
    offset: float = 0.0,
    inputs: int = -1,
    loss: Callable[[PyTree, PyTree], Float[Array, ""]] | None = None,
    batch: PyTree = None,
) -> Folded:
    """Moves the gains of normalizations into the matrices that read them, without changing the function.

    A gain g that scales a normalized stream and is read by a matrix W gives the same function as a gain of 1
    and W diag(g): this is a teleport along the scalings of the normalized stream, to the point where all its
    gains are 1. Without gains the stream can be rotated, so `residual_stream_symmetry` holds afterwards.

    **Arguments:** `gains` maps the path of each gain to the paths of *all* matrices that read it; both may be
    patterns with `{i}`. A gain is a vector or, for layers stacked along a first axis, a matrix whose readers
    are stacked alike. `inputs` is the axis of the readers along which they read: -1 for (out, in), -2 for
    (in, out). `biases` maps gains to the biases that are added after them; they scale along, so that the
    readers see the same. `offset` is 1 for gains w that act as 1 + w. Pass `loss` (and `batch`): the loss
    before and after then certifies that the function is the same.

    Gains that are zero somewhere cannot be moved; neither can gains that a matrix shared with another place
    reads (a head tied to the embedding), nor those of a normalization *after* a block, whose result is added
    to the stream (post-norm): no matrix reads it alone. Raises ValueError for the first, and for the others
    if the loss changes.

    >>> import jax.numpy as jnp
    >>> params = {"gain": jnp.array([2.0, 0.5]), "up": jnp.array([[1.0, 4.0]])}
    >>> loss = lambda p, x: jnp.sum(p["up"] @ (p["gain"] * x / jnp.linalg.norm(x)))
    >>> folded = fold_gains(params, {"gain": ["up"]}, loss=loss, batch=jnp.array([1.0, 2.0]))
    >>> print(folded.params["gain"], folded.params["up"], folded.trainable)
    [1. 1.] [[2. 2.]] {'gain': False, 'up': True}
    """
    arrays, specs = named_shapes(params), {}
    spaces: dict[str, NonzeroDiagonal] = {}
    element: dict[str, Array] = {}
    folded: set[str] = set()
    for pattern, readers in gains.items():
        for path, fields in match_paths(pattern, arrays).items():
            space = f"gain{len(spaces)}"
            gain = _effective(path, arrays_at(params, [path])[path], offset)
            stacked = {f"layer{len(spaces)}": len(gain)} if gain.ndim == 2 else {}
            spaces[space], element[space] = NonzeroDiagonal(gain.shape[-1], stacked), 1 / gain
            vector = " ".join([*stacked, space])
            specs[path] = f"{vector} {'+' if offset < 0 else '-'} {abs(offset):g}" if offset else vector
            folded.add(path)
            if biases and pattern in biases:
                specs[biases[pattern].format(**fields)] = vector
            for reader in (known_name(reader.format(**fields), arrays) for reader in readers):
                if reader in specs:
                    raise ValueError(
                        f"{reader} is listed twice, the second time as a reader of {path}: a matrix can "
                        "absorb the gain of a single normalization. List it once."
                    )
                rank = len(arrays[reader].shape) if reader in arrays else 2
                entries = [*stacked, *["_"] * (rank - len(stacked))]
                entries[inputs] = f"{space}*"
                specs[reader] = " ".join(entries)
    there = NetworkSymmetry(spaces, specs, params).act(element, params)
    trainable = [name not in folded for name in leaf_names(params)]
    mask = jax.tree.unflatten(jax.tree.structure(params), trainable)
    return Folded(there, mask, None if loss is None else _certified(loss, params, there, batch))


def _effective(path: str, gain: Array, offset: float) -> Array:
    """The gain as it acts, in float32 or better; raises ValueError if it cannot be moved."""
    if gain.ndim not in (1, 2):
        raise ValueError(
            f"A gain is a vector, or a matrix with a row for every stacked layer, got {path} of shape "
            f"{gain.shape}: leave it out, or reshape it."
        )
    acting = gain.astype(jnp.promote_types(gain.dtype, jnp.float32)) + offset
    if not bool(jnp.all(jnp.isfinite(acting) & (acting != 0))):
        raise ValueError(
            f"{path} is zero or not finite somewhere, so the matrices that read it cannot absorb it: remove "
            "these channels, or leave this gain out and do not rotate its stream."
        )
    return acting


def _certified(loss: Callable, params: PyTree, there: PyTree, batch: PyTree) -> Float[Array, ""]:
    """The relative change of the loss; raises ValueError if it is more than rounding."""
    before, after = (explained(loss, tree, batch) for tree in (params, there))
    change = jnp.abs(after - before) / jnp.maximum(jnp.abs(before), jnp.finfo(before.dtype).tiny)
    if not bool(change <= TOLERANCE):
        raise ValueError(
            f"Folding the gains changed the loss from {float(before):.6g} to {float(after):.6g}: some matrix "
            "that reads a gain is not listed, or one that is listed is used elsewhere too (a head tied to "
            "the embedding), or a normalized result is added to the stream (post-norm), where nothing can "
            "absorb its gain. List all readers, untie the head, or leave these gains out."
        )
    return change
