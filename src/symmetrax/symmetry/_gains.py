"""Folding the gains of normalizations into the matrices that read them."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree

from symmetrax._extras import explained
from symmetrax._precision import coarsest
from symmetrax._tree import leaf_names
from symmetrax.groups._diagonal import NonzeroDiagonal
from symmetrax.symmetry._network import NetworkSymmetry
from symmetrax.symmetry._paths import arrays_at, match_paths, named_shapes, with_arrays
from symmetrax.symmetry._specs import written

#: The largest relative change of the loss by folding that rounding explains, in float32. In half precision it
#: is the machine precision.
TOLERANCE = 1e-4


class Folded(NamedTuple):
    """The result of `fold_gains`: the new parameters, and a mask of those that may still be trained.

    `trainable` is a tree like the parameters, True at the floating-point arrays other than the gains, which
    are 1 now and must stay. Pass it to `equinox.partition`, or train with
    `optax.partition({True: optimizer, False: optax.set_to_zero()}, trainable)`; `optax.masked` would add raw
    gradients to the gains. `loss_change` is the relative change of the loss, None if you passed none.

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

    **Arguments:** `gains` maps the path of each gain to the paths of *all* matrices that read it (or to a
    single path); both may be patterns with `{i}`. A gain is a vector or, for layers stacked along a first
    axis, a matrix whose readers are stacked alike. `inputs` is the axis of the readers along which they
    read: -1 for (out, in), -2 for (in, out). `biases` maps gains to the biases that are added after them;
    they scale along, so that the readers see the same. `offset` is 1 for gains w that act as 1 + w. Pass
    `loss`, a function of the parameters and `batch`: the loss before and after then certifies that the
    function is the same. Call this outside of compiled code, since gains that are zero raise an error.

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
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(params)):
        raise ValueError("`fold_gains` looks at the gains, which compiled code cannot: call it outside.")
    unknown = [pattern for pattern in biases or {} if pattern not in gains]
    if unknown:
        listed = ", ".join(gains)
        raise ValueError(f"`biases` has the key {unknown[0]!r}, but `gains` has {listed}: use these.")
    arrays, specs = named_shapes(params), {}
    spaces: dict[str, NonzeroDiagonal] = {}
    element: dict[str, Array] = {}
    named: dict[str, str] = {}

    def place(path: str, spec: str, what: str) -> None:
        if path in specs:
            raise ValueError(
                f"{path} is listed twice, the second time as {what}: an array can absorb the gain of a "
                "single normalization. List it once."
            )
        specs[path] = spec

    for pattern, readers in gains.items():
        for path, fields in match_paths(pattern, arrays).items():
            gain = _effective(path, arrays_at(params, [path])[path], offset)
            again = path in named  # two patterns may name one gain, each with some of its readers
            space = named.setdefault(path, f"gain{len(named)}")
            stacked = {f"layers_of_{space}": len(gain)} if gain.ndim == 2 else {}
            if not again:
                spaces[space], element[space] = NonzeroDiagonal(gain.shape[-1], stacked), 1 / gain
                place(path, written([*stacked, space], offset), "a gain")
            if biases and pattern in biases:
                for bias in _matching(biases[pattern], fields, arrays):
                    place(bias, written([*stacked, space]), f"the bias of {path}")
            patterns = [readers] if isinstance(readers, str) else readers
            for reader in (name for one in patterns for name in _matching(one, fields, arrays)):
                axis = _read_axis(reader, arrays[reader].shape, path, gain.shape, inputs)
                entries = [*stacked, *["_"] * (len(arrays[reader].shape) - len(stacked))]
                entries[axis] = f"{space}*"
                place(reader, " ".join(entries), f"a reader of {path}")
    there = NetworkSymmetry(spaces, specs, params).act(element, params)
    # Exactly, not up to the rounding of g (1 / g): a gain that is not quite 1 breaks the rotations.
    ones = {path: jnp.full(arrays[path].shape, 1.0 - offset) for path in named}
    there = with_arrays(there, ones) if ones else there
    leaves, structure = jax.tree.flatten(params)
    trainable = [
        name not in named and eqx.is_inexact_array_like(leaf)
        for name, leaf in zip(leaf_names(params), leaves, strict=True)
    ]
    mask = jax.tree.unflatten(structure, trainable)
    return Folded(there, mask, None if loss is None else _certified(loss, params, there, batch))


def _matching(pattern: str, fields: Mapping[str, str], arrays: Mapping) -> list[str]:
    """The arrays that a pattern names once the fields of its gain are filled in; other fields match any."""
    for field, value in fields.items():
        pattern = pattern.replace(f"{{{field}}}", value)
    return [*match_paths(pattern, arrays)]


def _read_axis(reader: str, shape: tuple, path: str, gain: tuple, inputs: int) -> int:
    """The axis along which a matrix reads a gain; raises ValueError if their shapes do not fit."""
    first = len(gain) - 1  # the axis of layers, if any, is none of the inputs
    fits = -len(shape) <= inputs < len(shape) and shape[:first] == gain[:first]
    axis = inputs % len(shape) if fits else 0
    if not fits or axis < first or shape[axis] != gain[-1]:
        raise ValueError(
            f"{reader} of shape {shape} does not read {path} of shape {gain} along axis inputs={inputs}: "
            "pass the axis of its inputs, counted from the end, such as inputs=-2 for matrices (in, out)."
        )
    return axis


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
    before, after = (jnp.asarray(explained(loss, tree, batch)) for tree in (params, there))
    if before.shape or not bool(jnp.isfinite(before)):
        raise ValueError(
            f"The loss must be a finite number to certify that folding does not change it, got "
            f"{before if before.ndim == 0 else f'an array of shape {before.shape}'}."
        )
    change = jnp.abs(after - before) / jnp.maximum(jnp.abs(before), jnp.finfo(before.dtype).tiny)
    numbers, rest = eqx.partition(params, eqx.is_inexact_array)

    def value(w: PyTree) -> Array:
        return jnp.asarray(explained(loss, eqx.combine(w, rest), batch))

    if not bool(change <= TOLERANCE) and not bool(change <= coarsest(value, numbers)):
        raise ValueError(
            f"Folding the gains changed the loss from {float(before):.6g} to {float(after):.6g}: some matrix "
            "that reads a gain is not listed, or one that is listed is used elsewhere too (a head tied to "
            "the embedding), or a normalized result is added to the stream (post-norm), where nothing can "
            "absorb its gain. List all readers, untie the head, or leave these gains out; check `inputs`, "
            "`biases` and `offset`."
        )
    return change
