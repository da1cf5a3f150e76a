"""Conversion between the caller's parameters and the numbers that an optimizer works on.

The caller's parameters may have any precision, live on any devices, and contain leaves that are not floats.
Internally, all numbers have one precision, at least float32. Results are converted back to the caller's
dtypes and shardings, and the leaves of the state never change their type.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, PyTree

from symmetrax._tree import all_finite, leaf_name, replicated

try:
    from jax.experimental.shard_alike import shard_alike
except ImportError:  # without it, the compiler chooses the sharding itself

    def shard_alike(x, y):
        return x, y


class Held(NamedTuple):
    """Parameters as the caller holds them, and the precision in which to work on them.

    `numbers` has their floats as arrays and None elsewhere; `rest` has the other leaves (integers, booleans,
    functions), which never move.

    >>> held = hold({"w": jnp.ones(2, jnp.bfloat16), "steps": 3, "gain": 0.5})
    >>> print(held.numbers["steps"], held.rest["steps"], held.numbers["gain"].shape, held.dtype)
    None 3 () <class 'jax.numpy.float32'>
    """

    numbers: PyTree
    rest: PyTree
    dtype: Any

    @property
    def inside(self) -> PyTree:
        """The numbers in working precision.

        >>> hold({"w": jnp.ones(2, jnp.bfloat16)}).inside
        {'w': Array([1., 1.], dtype=float32)}
        """
        return self.widened(self.numbers)

    def widened(self, tree: PyTree) -> PyTree:
        """Converts a tree of floats to working precision.

        >>> hold(jnp.ones(2, jnp.bfloat16)).widened([0.5])
        [Array(0.5, dtype=float32)]
        """
        return jax.tree.map(lambda x: jnp.asarray(x, self.dtype), tree)

    def outside(self, tree: PyTree) -> PyTree:
        """Converts a tree like `numbers` to the caller's precisions.

        >>> hold(jnp.ones(2, jnp.bfloat16)).outside(jnp.ones(2))
        Array([1, 1], dtype=bfloat16)
        """
        return jax.tree.map(lambda x, like: jnp.asarray(x, like.dtype), tree, self.numbers)

    def beside(self, tree: PyTree) -> PyTree:
        """Converts a tree like `numbers` to the caller's precisions, on the devices of the parameters.

        >>> hold(jnp.ones(2, jnp.float16)).beside(jnp.array([0.5, 70_000.0]))
        Array([0.5, inf], dtype=float16)
        """
        return jax.tree.map(_alike, self.numbers, self.outside(tree))

    def loss(self, value_fn: Callable[[PyTree], Any] | None) -> Callable[[PyTree], Float[Array, ""]] | None:
        """Returns the caller's loss as a function of a tree like `inside`.

        >>> held = hold({"w": jnp.ones(2, jnp.bfloat16), "steps": 3})
        >>> held.loss(lambda params: params["steps"] * jnp.sum(params["w"]))(held.inside)
        Array(6., dtype=float32)
        """
        if value_fn is None:
            return None
        # In the caller's precisions, so that the optimizer minimizes the loss that training sees.
        return lambda tree: jnp.asarray(value_fn(eqx.combine(self.outside(tree), self.rest)), self.dtype)

    def gradient(self, updates: PyTree) -> PyTree:
        """Returns the caller's gradient as a tree like `inside`; ValueError if an array has no gradient.

        >>> hold({"w": jnp.ones(2)}).gradient({"w": None})
        Traceback (most recent call last):
        ValueError: The gradient of w is missing: `updates` has None there. Pass jax.grad's result, or zeros.
        """

        def wide(path, number, given):
            if number is None:
                return None
            if given is None:
                raise ValueError(
                    f"The gradient of {leaf_name(path)} is missing: `updates` has None there. Pass "
                    "jax.grad's result, or zeros."
                )
            return jnp.asarray(given, self.dtype)

        return jax.tree_util.tree_map_with_path(wide, self.numbers, updates, is_leaf=_is_none)

    def updates(self, tree: PyTree, given: PyTree) -> PyTree:
        """Converts a tree like `inside` to updates: zeros for non-floats, and None where None was `given`.

        >>> held = hold({"w": jnp.ones(2), "steps": jnp.array([3]), "act": jax.nn.relu})
        >>> held.updates({"w": -jnp.ones(2), "steps": None, "act": None}, {"w": 1, "steps": 0, "act": None})
        {'act': None, 'steps': Array([0], dtype=int32), 'w': Array([-1., -1.], dtype=float32)}
        """

        # optax applies updates to every leaf, so an integer needs a zero; a function has, and keeps, None.
        def narrow(number, rest, given, x):
            if number is not None:
                return x
            return jnp.zeros_like(rest) if given is not None and _is_array_like(rest) else given

        return jax.tree.map(narrow, self.numbers, self.rest, given, self.beside(tree), is_leaf=_is_none)

    def stays_finite(self, displacement: PyTree) -> Bool[Array, ""]:
        """Returns whether the parameters are finite after the displacement, in the caller's precisions.

        >>> held = hold(jnp.ones(1, jnp.float16))
        >>> print(held.stays_finite(jnp.array([6e4])), held.stays_finite(jnp.array([7e4])))
        True False
        """
        return all_finite(optax.tree.add(self.numbers, self.outside(displacement)))


def hold(params: PyTree, *beside: PyTree) -> Held:
    """Wraps parameters, with working precision float64 if they or arrays `beside` them are, else float32.

    Raises ValueError for complex parameters.

    >>> hold(jnp.ones(2, jnp.complex64))
    Traceback (most recent call last):
    ValueError: Learned optimizers work on real numbers, and params is complex: hold its real ...
    """
    numbers, rest = eqx.partition(params, lambda x: _is_array_like(x) and _is_kind(x, jnp.inexact))
    for path, x in jax.tree_util.tree_leaves_with_path(numbers):
        if jnp.iscomplexobj(x):
            raise ValueError(
                f"Learned optimizers work on real numbers, and {leaf_name(path)} is complex: hold its real "
                "and imaginary part as two arrays."
            )
    # A network or symmetry in double precision decides, too: narrowing it would lose its digits.
    wide = any(_is_double(x) for x in jax.tree.leaves((numbers, beside)))
    return Held(jax.tree.map(_array, numbers), rest, jnp.float64 if wide else jnp.float32)


def check_whole(params: PyTree) -> None:
    """Raises ValueError if an outer mask has hidden some of the parameters from a symmetry.

    >>> check_whole({"w": jnp.ones(2), "b": optax.MaskedNode()})
    Traceback (most recent call last):
    ValueError: An optimizer that teleports sees only part of the parameters: 1 of them are masked. ...
    """
    is_hidden = lambda x: isinstance(x, optax.MaskedNode)  # noqa: E731
    # optax.masked puts an empty MaskedNode in the place of a leaf, which jax.tree would skip.
    hidden = sum(map(is_hidden, jax.tree.leaves(params, is_leaf=is_hidden)))
    if hidden:
        raise ValueError(
            f"An optimizer that teleports sees only part of the parameters: {hidden} of them are masked. A "
            "symmetry moves arrays together, so put the mask inside, teleported(optax.masked(inner, mask), "
            "symmetry), not around; a learned optimizer can be used without a symmetry."
        )


def at_precision(tree: PyTree, dtype: Any) -> PyTree:
    """Converts the floating-point arrays of a module to this precision.

    Unlike `optax.tree.cast`, it leaves integers, keys and functions alone.

    >>> at_precision({"w": jnp.ones(2, jnp.bfloat16), "steps": 3}, jnp.float32)
    {'steps': 3, 'w': Array([1., 1.], dtype=float32)}
    """
    return jax.tree.map(lambda x: jnp.asarray(x, dtype) if _is_float_array(x) else x, tree)


def settled_state(state: PyTree) -> PyTree:
    """Makes each leaf of an initial state an array of its own that can be donated and is not weakly typed.

    >>> settled_state({"count": 0})
    {'count': Array(0, dtype=int32)}
    """
    return jax.tree.map(own, state)


def own(x: Any) -> Any:
    """Returns a copy of an array or number.

    >>> x = jnp.ones(2)
    >>> own(x) is x, own(0.5)
    (False, Array(0.5, dtype=float32))
    """
    return jax.random.clone(x) if _is_key(x) else jnp.array(x, dtype=jnp.result_type(x))


def as_before(state: PyTree, before: PyTree) -> PyTree:
    """Casts the leaves of a state to the types that they had `before`; typed keys stay as they are.

    >>> as_before({"trace": jnp.ones(2)}, {"trace": jnp.ones(2, jnp.bfloat16)})
    {'trace': Array([1, 1], dtype=bfloat16)}
    """
    return jax.tree.map(lambda x, like: x if _is_key(like) else jnp.asarray(x, like.dtype), state, before)


def flat(tree: PyTree) -> tuple[Float[Array, " n"], Callable[[Array], PyTree]]:
    """Returns all entries of a tree as one vector, and the inverse function.

    Like `jax.flatten_util.ravel_pytree`, which cannot concatenate arrays that are sharded over explicit axes;
    for trees of one dtype.

    >>> vector, back = flat({"a": jnp.ones((2, 2)), "b": jnp.zeros(1)})
    >>> print(vector, jax.tree.map(jnp.shape, back(vector)))
    [1. 1. 1. 1. 0.] {'a': (2, 2), 'b': (1,)}
    """
    leaves, structure = jax.tree.flatten(jax.tree.map(jnp.asarray, tree))
    # Sizes are known without tracing, so the ends are constants of the program.
    ends = np.cumsum([x.size for x in leaves])[:-1].tolist()
    vector = jnp.concatenate([jnp.ravel(replicated(x)) for x in leaves]) if leaves else jnp.zeros(0)

    def back(vector: Array) -> PyTree:
        parts = [part.reshape(x.shape) for part, x in zip(jnp.split(vector, ends), leaves, strict=True)]
        return jax.tree.unflatten(structure, map(_beside, leaves, parts))

    return vector, back


def _beside(x: Array, part: Array) -> Array:
    """Shards `part` like `x`, which has the same shape, if a mesh has explicit axes."""
    sharding = _explicit(x)
    return part if sharding is None else jax.sharding.reshard(part, sharding)


def _alike(x: Array, y: Array) -> Array:
    """Places `y` on the devices of `x`, which has its shape; left alone, the compiler may choose others."""
    if _explicit(x) is not None or _explicit(y) is not None:
        return y
    if isinstance(y, Tracer):
        return shard_alike(x, y)[1]
    return y if isinstance(x, Tracer) or len(x.devices()) == 1 else jax.device_put(y, x.sharding)


def _explicit(x: Any) -> NamedSharding | None:
    """Returns the sharding of an array along explicit mesh axes, as given by its type; else None."""
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
