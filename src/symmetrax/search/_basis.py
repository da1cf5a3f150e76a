"""Searches for a basis: rotations to the eigenvectors of a second moment of gradients.

The gradient norm is the same in every basis, yet steps of Adam are not: it divides every entry by its own
root mean square. So these searches look at second moments of gradients, averaged over steps, instead of at an
objective, and return a group element instead of coordinates in its algebra.
"""

from abc import abstractmethod

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from symmetrax._keys import check_key
from symmetrax._tree import all_finite
from symmetrax.objectives._landscape import NegativeParameterNorm
from symmetrax.search._balanced import Balanced, check_balanced
from symmetrax.search._moments import carried, diagonalized, rotating, second_moments, sides
from symmetrax.search._orbit import Orbit
from symmetrax.symmetry._base import AbstractLieSymmetry
from symmetrax.symmetry._network import NetworkSymmetry


class AbstractElementSearch(eqx.Module):
    """Abstract base class of searches for a group element, from what they remember of gradients.

    An optimizer calls `init` once, `watch` at every step, and the search itself where a teleport is due.
    After the teleport, `carry` expresses the memory in the new coordinates. The memory is a tree of arrays.

    >>> import symmetrax as sx
    >>> isinstance(sx.search.Eigenbasis(), sx.search.AbstractElementSearch)
    True
    """

    @abstractmethod
    def check(self, symmetry: AbstractLieSymmetry) -> None:
        """Raises ValueError if the search has nothing to do, or too much, along this symmetry."""

    def init(self, symmetry: NetworkSymmetry, params: PyTree) -> PyTree:
        """The memory before the first step; by default there is none."""
        return ()

    def watch(
        self, memory: PyTree, symmetry: NetworkSymmetry, gradient: PyTree, count: Int[Array, ""] | int
    ) -> PyTree:
        """The memory after the gradient of step `count`."""
        return memory

    @abstractmethod
    def __call__(
        self, memory: PyTree, symmetry: NetworkSymmetry, params: PyTree, count: Int[Array, ""] | int
    ) -> PyTree:
        """The element to teleport by."""

    def carry(self, memory: PyTree, symmetry: NetworkSymmetry, element: PyTree) -> PyTree:
        """The memory in the coordinates after a teleport by `element`."""
        return memory


class Eigenbasis(AbstractElementSearch):
    """Teleports to the eigenbasis of a running second moment of gradients, in every space with rotations.

    For every space, C is the average of G G' over steps and over the arrays that have an axis in the space,
    with G the gradient as a matrix whose rows belong to that axis. The teleport rotates the space to the
    eigenvectors of C, in which the entries of gradients are uncorrelated on average, so that an optimizer
    that treats every entry on its own (Adam, RMSprop) treats independent quantities. It rotates `Orthogonal`
    and `SpecialOrthogonal` spaces, the rotations within `GeneralLinear`, and pairs of `ScaledRotation`; other
    spaces stay. C lives in the optimizer's state and rotates with the parameters.

    **Arguments:** At every `stride`-th step C becomes `decay` C + (1 - `decay`) G G'. The contribution of
    each array is divided by its trace and weighted by the array's number of entries: steps of Adam do not
    depend on the scale of a gradient either. With `balanced`, general linear groups and scalings first move
    to their balanced point, see `Balanced`; then the result of a low-rank factorization B A does not depend
    on how it was split. `share` below 1 turns part of the way: to the eigenvectors of C with its entries off
    the diagonal multiplied by `share`. With a `threshold`, a space turns only if the squares of these entries
    are more than that share of all squares of C. A space of more than `largest` dimensions raises ValueError
    at `init`: eigenvectors take O(size^3) operations, in sequences of `size` small ones (about half a second
    for 256 on a CPU).

    The eigenvectors come from Jacobi's method, without LAPACK. A gradient that is not finite is not watched.
    Source: Shampoo's and SOAP's preconditioners (arXiv:1802.09568, arXiv:2409.11321) use such bases inside
    the optimizer; here the parameters themselves move, at no cost between teleports.

    >>> import jax, jax.numpy as jnp, optax, symmetrax as sx
    >>> params = {"a": jnp.ones((2, 3)), "b": jnp.arange(6.0).reshape(3, 2)}
    >>> symmetry = sx.models.low_rank_symmetry(params, "a", "b")
    >>> loss = lambda p: jnp.sum((p["b"] @ p["a"] - 1) ** 2)
    >>> optimizer = sx.teleported(optax.adamw(0.1), symmetry, search=Eigenbasis(), schedule={0})
    >>> state = optimizer.init(params)
    >>> updates, state = optimizer.update(jax.grad(loss)(params), state, params, value_fn=loss)
    >>> moments = optax.tree.get(state, "memory")["rank"].sum(axis=0)
    >>> print(abs(moments[0, 1]) < 1e-6)  # the coordinates of the rank are uncorrelated now
    True
    """

    decay: float | Float[Array, ""] = 0.95
    stride: int = eqx.field(static=True, default=1)
    balanced: bool = eqx.field(static=True, default=False)
    largest: int = eqx.field(static=True, default=1024)
    share: float | Float[Array, ""] = 1.0
    threshold: float | Float[Array, ""] = 0.0

    def __check_init__(self):
        if self.stride < 1:
            raise ValueError(f"`stride` counts steps and must be at least 1, got {self.stride}.")
        if not eqx.is_array(self.decay) and not 0 <= self.decay < 1:
            raise ValueError(f"`decay` must be at least 0 and below 1, got {self.decay}.")
        for name in ("share", "threshold"):
            value = getattr(self, name)
            if not eqx.is_array(value) and not 0 <= value <= 1:
                raise ValueError(f"`{name}` must be between 0 and 1, got {value}.")

    def check(self, symmetry):
        check_rotations(symmetry, self.largest)
        if self.balanced:
            check_balanced(symmetry)

    def init(self, symmetry, params):
        numbers = eqx.filter(params, eqx.is_inexact_array)
        kind = jnp.result_type(jnp.float32, *(leaf.real.dtype for leaf in jax.tree.leaves(numbers)))
        return {
            name: jnp.zeros((sides(group), *group.lengths, group.size, group.size), kind)
            for name, group in rotating(symmetry).items()
        }

    def watch(self, memory, symmetry, gradient, count):
        def average():
            fresh = second_moments(symmetry, gradient)
            finite = all_finite(fresh)
            decay = jnp.where(finite, self.decay, 1.0)
            return jax.tree.map(
                lambda c, new: (decay * c + (1 - decay) * jnp.where(finite, new, 0.0)).astype(c.dtype),
                memory,
                fresh,
            )

        if self.stride == 1:
            return average()
        return jax.lax.cond(jnp.asarray(count) % self.stride == 0, average, lambda: memory)

    def __call__(self, memory, symmetry, params, count):
        if not self.balanced:
            return symmetry.identity() | diagonalized(symmetry, self._wanted(memory))
        balance = symmetry.exp(
            Balanced()(Orbit(no_loss, params, symmetry, objective=NegativeParameterNorm()))
        )
        rotation = diagonalized(symmetry, self._wanted(self.carry(memory, symmetry, balance)))
        return symmetry.compose(symmetry.identity() | rotation, balance)

    def _wanted(self, memory: PyTree) -> PyTree:
        """The moments whose eigenvectors are the basis, summed over sides."""

        def wanted(moments: Array) -> Array:
            moment = jnp.sum(moments, axis=0, keepdims=True)
            diagonal = moment * jnp.eye(moment.shape[-1], dtype=moment.dtype)
            off, whole = (jnp.sum(m**2, axis=(-1, -2), keepdims=True) for m in (moment - diagonal, moment))
            share = jnp.where(off > self.threshold * whole, self.share, 0.0)
            return (diagonal + share * (moment - diagonal)).astype(moment.dtype)

        return jax.tree.map(wanted, memory)

    def carry(self, memory, symmetry, element):
        return {
            name: carried(symmetry.spaces[name], element[name], moments) for name, moments in memory.items()
        }


class RandomBasis(AbstractElementSearch):
    """Teleports to a random basis of every space with rotations: the control experiment for `Eigenbasis`.

    Each teleport draws anew, from `key` and the step number.

    >>> import jax
    >>> RandomBasis(jax.random.key(0)).largest
    1024
    """

    key: Key[Array, ""]
    largest: int = eqx.field(static=True, default=1024)

    def __check_init__(self):
        check_key(self.key)

    def check(self, symmetry):
        check_rotations(symmetry, self.largest)

    def __call__(self, memory, symmetry, params, count):
        groups = rotating(symmetry)
        keys = jax.random.split(jax.random.fold_in(self.key, count), len(groups))
        # The eigenvectors of a symmetric matrix of normal numbers are uniformly distributed.
        draws = {
            name: jax.random.normal(key, (1, *group.lengths, group.size, group.size))
            for key, (name, group) in zip(keys, groups.items(), strict=True)
        }
        return symmetry.identity() | diagonalized(symmetry, draws)


def check_rotations(symmetry: AbstractLieSymmetry, largest: int) -> None:
    """Raises ValueError if the symmetry has no rotations, or in a space that is too large.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> params = {"w1": jnp.ones((3, 2)), "w2": jnp.ones((1, 3))}
    >>> check_rotations(sx.models.mlp_symmetry(params), 1024)
    Traceback (most recent call last):
    ValueError: A search for a basis needs a space with rotations (Orthogonal, SpecialOrthogonal, ...
    """
    spaces = symmetry.spaces if isinstance(symmetry, NetworkSymmetry) else {}
    if not any(group.rotates for group in spaces.values()):
        has = ", ".join(map(str, spaces.values())) or type(symmetry).__name__
        raise ValueError(
            "A search for a basis needs a space with rotations (Orthogonal, SpecialOrthogonal, GeneralLinear "
            f"or ScaledRotation), got {has}: pass such a NetworkSymmetry, or another search."
        )
    for name, group in spaces.items():
        if group.rotates and group.size > largest:
            others = ", ".join(repr(other) for other in spaces if other != name) or "..."
            raise ValueError(
                f"The space {name!r} has {group.size} dimensions, of which eigenvectors are too expensive "
                f"beyond largest={largest}: pass a larger `largest`, or leave it out with "
                f"symmetry.only({others})."
            )


def no_loss(params: PyTree) -> Array:
    """The loss given to objectives that look at parameters alone: calling it is a mistake.

    >>> no_loss(jnp.ones(2))
    Traceback (most recent call last):
    AssertionError: The objective looks at parameters alone.
    """
    raise AssertionError("The objective looks at parameters alone.")
