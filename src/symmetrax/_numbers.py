"""Conversion between a caller's parameters and an optimizer's numbers.

Callers hold parameters in any precision, on any devices, and with leaves that are no floats. Inside, all
numbers are of one precision, float32 at least, and what the caller gets back is as it came: dtypes,
shardings, and a state whose leaves never change their type.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, PyTree

from symmetrax._tree import all_finite, leaf_name

try:
    from jax.experimental.shard_alike import shard_alike
except ImportError:  # a compiler that is not told decides by itself

    def shard_alike(x, y):
        return x, y


class Held(NamedTuple):
    """Parameters as the caller holds them, and the precision in which they are worked on.

    `numbers` has the floats among them as arrays and None elsewhere, `rest` the other leaves: integers,
    booleans, functions, which nothing here moves.

    >>> held = hold({"w": jnp.ones(2, jnp.bfloat16), "steps": 3, "gain": 0.5})
    >>> print(held.numbers["steps"], held.rest["steps"], held.numbers["gain"].shape, held.dtype)
    None 3 () <class 'jax.numpy.float32'>
    """

    numbers: PyTree
    rest: PyTree
    dtype: Any

    @property
    def inside(self) -> PyTree:
        """The numbers in the precision of the work."""
        return self.widened(self.numbers)

    def widened(self, tree: PyTree) -> PyTree:
        """A tree of floats in the precision of the work."""
        return jax.tree.map(lambda x: jnp.asarray(x, self.dtype), tree)

    def outside(self, tree: PyTree) -> PyTree:
        """A tree like `numbers` in the caller's precisions."""
        return jax.tree.map(lambda x, like: jnp.asarray(x, like.dtype), tree, self.numbers)

    def beside(self, tree: PyTree) -> PyTree:
        """A tree like `numbers`, in the caller's precisions and on the devices of the parameters."""
        return jax.tree.map(_alike, self.numbers, self.outside(tree))

    def loss(self, value_fn: Callable[[PyTree], Any] | None) -> Callable[[PyTree], Float[Array, ""]] | None:
        """The caller's loss, as a function of a tree like `inside`."""
        if value_fn is None:
            return None
        return lambda tree: jnp.asarray(value_fn(eqx.combine(self.outside(tree), self.rest)), self.dtype)

    def gradient(self, updates: PyTree) -> PyTree:
        """The caller's gradient, as a tree like `inside`; ValueError if an array has none."""

        def wide(path, number, given):
            if number is None:
                return None
            if given is None:
                raise ValueError(f"The gradient of {leaf_name(path)} is missing: `updates` has None there.")
            return jnp.asarray(given, self.dtype)

        return jax.tree_util.tree_map_with_path(wide, self.numbers, updates, is_leaf=_is_none)

    def updates(self, tree: PyTree, given: PyTree) -> PyTree:
        """A tree like `inside` as updates: zeros for what is no float, and None where None was `given`."""

        def narrow(number, rest, given, x):
            if number is not None:
                return x
            return jnp.zeros_like(rest) if given is not None and _is_array_like(rest) else given

        return jax.tree.map(narrow, self.numbers, self.rest, given, self.beside(tree), is_leaf=_is_none)

    def lands(self, displacement: PyTree) -> Bool[Array, ""]:
        """Whether the parameters are finite after the displacement, in the caller's precisions."""
        return all_finite(optax.tree.add(self.numbers, self.outside(displacement)))


def hold(params: PyTree, *beside: PyTree) -> Held:
    """The parameters, to be worked on in float64 if they or arrays `beside` them are, else in float32.

    Raises ValueError for complex parameters.
    """
    numbers, rest = eqx.partition(params, lambda x: _is_array_like(x) and _is_kind(x, jnp.inexact))
    for path, x in jax.tree_util.tree_leaves_with_path(numbers):
        if jnp.iscomplexobj(x):
            raise ValueError(
                f"Learned optimizers work on real numbers, and {leaf_name(path)} is complex: hold its real "
                "and imaginary part as two arrays."
            )
    wide = any(_is_double(x) for x in jax.tree.leaves((numbers, beside)))
    return Held(jax.tree.map(_array, numbers), rest, jnp.float64 if wide else jnp.float32)


def check_whole(params: PyTree) -> None:
    """Raise ValueError if a mask outside has hidden some of the parameters from a symmetry."""
    is_hidden = lambda x: isinstance(x, optax.MaskedNode)  # noqa: E731
    hidden = sum(map(is_hidden, jax.tree.leaves(params, is_leaf=is_hidden)))
    if hidden:
        raise ValueError(
            f"An optimizer that teleports sees only part of the parameters: {hidden} of them are masked. A "
            "symmetry moves arrays together, so put the mask inside, teleported(optax.masked(inner, mask), "
            "symmetry), not around; a learned optimizer can be used without a symmetry."
        )


def at_precision(tree: PyTree, dtype: Any) -> PyTree:
    """A module with its arrays of floats in this precision."""
    return jax.tree.map(lambda x: jnp.asarray(x, dtype) if _is_float_array(x) else x, tree)


def settled_state(state: PyTree) -> PyTree:
    """A first state, each leaf an array of its own that can be donated, of a type that is not weak."""
    return jax.tree.map(own, state)


def own(x: Any) -> Any:
    """A copy of an array or number."""
    return jax.random.clone(x) if _is_key(x) else jnp.array(x, dtype=jnp.result_type(x))


def as_before(state: PyTree, before: PyTree) -> PyTree:
    """The state with the types of the leaves that it had `before`."""
    return jax.tree.map(lambda x, like: x if _is_key(like) else jnp.asarray(x, like.dtype), state, before)


def gathered(x: Any) -> Any:
    """An array that can be reshaped at will: where a mesh with explicit axes splits it, a whole one."""
    sharding = _explicit(x) if eqx.is_array(x) else None
    return x if sharding is None else jax.sharding.reshard(x, NamedSharding(sharding.mesh, PartitionSpec()))


def flat(tree: PyTree) -> tuple[Float[Array, " n"], Callable[[Array], PyTree]]:
    """All entries of a tree as one vector, and the way back.

    `jax.flatten_util.ravel_pytree` for trees of one dtype, whose arrays may be split over explicit axes.

    >>> vector, back = flat({"a": jnp.ones((2, 2)), "b": jnp.zeros(1)})
    >>> print(vector, jax.tree.map(jnp.shape, back(vector)))
    [1. 1. 1. 1. 0.] {'a': (2, 2), 'b': (1,)}
    """
    leaves, structure = jax.tree.flatten(jax.tree.map(jnp.asarray, tree))
    ends = np.cumsum([x.size for x in leaves])[:-1].tolist()
    vector = jnp.concatenate([jnp.ravel(gathered(x)) for x in leaves]) if leaves else jnp.zeros(0)

    def back(vector: Array) -> PyTree:
        parts = [part.reshape(x.shape) for part, x in zip(jnp.split(vector, ends), leaves, strict=True)]
        return jax.tree.unflatten(structure, map(_beside, leaves, parts))

    return vector, back


def _beside(x: Array, part: Array) -> Array:
    """`part` split over devices as `x`, which has its shape, where a mesh has explicit axes."""
    sharding = _explicit(x)
    return part if sharding is None else jax.sharding.reshard(part, sharding)


def _alike(x: Array, y: Array) -> Array:
    """`y` on the devices of `x`, which has its shape: what the compiler chooses for it may be elsewhere."""
    if _explicit(x) is not None or _explicit(y) is not None:
        return y
    if isinstance(y, Tracer):
        return shard_alike(x, y)[1]
    return y if isinstance(x, Tracer) or len(x.devices()) == 1 else jax.device_put(y, x.sharding)


def _explicit(x: Any) -> NamedSharding | None:
    """The sharding of an array that is split along explicit axes of a mesh, which its type tells."""
    sharding = jax.typeof(x).sharding
    if all(axis is None for axis in sharding.spec):
        return None
    return sharding if isinstance(x, Tracer) else x.sharding


def _array(x: Any) -> Array:
    return jnp.asarray(x, jnp.result_type(x))


def _is_none(x: Any) -> bool:
    return x is None


def _is_array_like(x: Any) -> bool:
    return isinstance(x, jax.Array | np.ndarray | np.generic | bool | int | float | complex)


def _is_kind(x: Any, kind: Any) -> bool:
    return jnp.issubdtype(x.dtype if hasattr(x, "dtype") else jnp.result_type(x), kind)


def _is_float_array(x: Any) -> bool:
    return isinstance(x, jax.Array | np.ndarray) and _is_kind(x, jnp.floating)


def _is_double(x: Any) -> bool:
    return _is_float_array(x) and jnp.result_type(x) == jnp.float64


def _is_key(x: Any) -> bool:
    return isinstance(x, jax.Array) and _is_kind(x, jax.dtypes.prng_key)
