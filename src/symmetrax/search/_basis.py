"""Searches for a basis: rotations to the eigenvectors of a second moment of gradients, and balancing.

The gradient norm is the same in every basis, yet steps of Adam are not: it divides every entry by its own
root mean square. So these searches look at second moments of gradients, averaged over steps, instead of at an
objective, and return a group element instead of coordinates in its algebra.
"""

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from symmetrax._keys import check_key
from symmetrax._tree import all_finite, replicated, widened
from symmetrax.groups._diagonal import AbstractGroup
from symmetrax.objectives._landscape import NegativeParameterNorm
from symmetrax.search._closed_form import ClosedForm
from symmetrax.search._energies import Energies, gram, placed
from symmetrax.search._orbit import Orbit, reducible
from symmetrax.search._searches import AbstractSearch
from symmetrax.symmetry._base import AbstractLieSymmetry
from symmetrax.symmetry._network import NetworkSymmetry
from symmetrax.symmetry._walk import Binding

#: The largest norm of the logarithm of a balancing element.
BALANCING_BOUND = 20.0


class Balanced(AbstractSearch):
    """The point of the orbit where the two sides of every space have equal norms: balancing.

    For a scaling, the squared norms of the arrays that it multiplies and of those that it divides become
    equal, for every unit; for a general linear group, their Gram matrices. This is the smallest parameter
    norm on the orbit, so the search ignores the objective and costs no gradient. A space of which one side is
    zero has no balanced point and stays as it is (a LoRA factor at its start, a dead unit). Compact groups
    change no norms.

    `sweeps` and `ridge` are as in `ClosedForm`, which computes the point.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> params = {"w1": jnp.array([[4.0]]), "w2": jnp.array([[1.0]])}
    >>> symmetry = sx.models.mlp_symmetry(params, ["w1", "w2"])
    >>> loss = lambda w, _: jnp.sum(w["w2"] @ w["w1"])
    >>> balanced, _ = sx.teleport(loss, params, symmetry, search=Balanced())
    >>> print(balanced["w1"], balanced["w2"])
    [[2.]] [[2.]]
    """

    sweeps: int = eqx.field(static=True, default=20)
    ridge: float = 1e-10

    def __call__(self, orbit: Orbit) -> Float[Array, " k"]:
        symmetry = orbit.symmetry
        check_balanced(symmetry)
        assert isinstance(symmetry, NetworkSymmetry)
        norms = Orbit(orbit.value_fn, orbit.params, symmetry, objective=NegativeParameterNorm())
        assert norms.energies is not None
        closed = ClosedForm(bound=BALANCING_BOUND, sweeps=self.sweeps, ridge=self.ridge)(norms)
        parts = symmetry.split(closed)
        for name in norms.energies.spaces:
            parts[name] = jnp.where(_has_sides(norms.energies, name), parts[name], 0.0)
        return symmetry.join(parts).astype(closed.dtype)

    def evaluations(self, symmetry) -> int:
        return 0


def check_balanced(symmetry: AbstractLieSymmetry) -> None:
    """Raises ValueError if balancing has no closed form for this symmetry.

    >>> import symmetrax as sx
    >>> check_balanced(sx.tasks.booth().symmetry())
    Traceback (most recent call last):
    ValueError: Balancing needs a NetworkSymmetry without offsets in its specs, got Pullback: ...
    """
    if reducible(symmetry, NegativeParameterNorm()) is None:
        raise ValueError(
            f"Balancing needs a NetworkSymmetry without offsets in its specs, got {type(symmetry).__name__}: "
            "restrict it to the other spaces with symmetry.only(...)."
        )


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

    @abstractmethod
    def init(self, symmetry: NetworkSymmetry, params: PyTree) -> PyTree:
        """The memory before the first step."""

    @abstractmethod
    def watch(
        self, memory: PyTree, symmetry: NetworkSymmetry, gradient: PyTree, count: Int[Array, ""] | int
    ) -> PyTree:
        """The memory after the gradient of step `count`."""

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
            name: jnp.zeros((_sides(group), *group.lengths, group.size, group.size), kind)
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
            Balanced()(Orbit(_no_loss, params, symmetry, objective=NegativeParameterNorm()))
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
            name: _carried(symmetry.spaces[name], element[name], moments) for name, moments in memory.items()
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

    def init(self, symmetry, params):
        return ()

    def watch(self, memory, symmetry, gradient, count):
        return memory

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


def rotating(symmetry: NetworkSymmetry) -> dict[str, AbstractGroup]:
    """The spaces whose group contains rotations.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> symmetry = sx.models.low_rank_symmetry({"A": jnp.ones((2, 6)), "B": jnp.ones((5, 2))}, "A", "B")
    >>> list(rotating(symmetry))
    ['rank']
    """
    return {name: group for name, group in symmetry.spaces.items() if group.rotates}


def second_moments(symmetry: NetworkSymmetry, gradient: PyTree) -> dict[str, Float[Array, "sides *per n n"]]:
    """Second moments of a gradient in every space with rotations, each array weighted by its entries.

    Groups that are not compact have two: of the axes on which the group acts, and of those on which its dual
    does. Both together have trace 1.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> params = {"a": jnp.eye(2), "b": jnp.eye(2)}
    >>> print(second_moments(sx.models.low_rank_symmetry(params, "a", "b"), params)["rank"][0])
    [[0.25 0.  ]
     [0.   0.25]]
    """
    groups = rotating(symmetry)
    sums: dict[str, Any] = {}
    entries = dict.fromkeys(groups, 0)

    def collect(x: Array, bindings: tuple[Binding, ...]) -> Array:
        for binding in bindings:
            name = binding.entry.name
            if name not in groups:
                continue
            moment = gram(_unit(replicated(x)), binding)
            trace = jnp.trace(moment, axis1=-2, axis2=-1)[..., None, None]
            share = placed(x.size * moment / jnp.where(trace > 0, trace, 1.0), binding, groups[name].lengths)
            side = int(_sides(groups[name]) == 2 and binding.exponent < 0)
            sides = sums.setdefault(name, [jnp.zeros_like(share) for _ in range(_sides(groups[name]))])
            sides[side] = sides[side] + share
            entries[name] += x.size
        return x

    symmetry.visit(eqx.filter(gradient, eqx.is_inexact_array), collect)
    return {name: jnp.stack(sides) / entries[name] for name, sides in sums.items()}


def diagonalized(symmetry: NetworkSymmetry, moments: Mapping[str, Float[Array, "sides *per n n"]]) -> dict:
    """The rotations of the spaces to the eigenvectors of their moments, summed over sides.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> symmetry = sx.models.low_rank_symmetry({"A": jnp.ones((2, 6)), "B": jnp.ones((5, 2))}, "A", "B")
    >>> q, _ = diagonalized(symmetry, {"rank": jnp.array([[[2.0, 1.0], [1.0, 2.0]]])})["rank"]
    >>> print(q.round(3))
    [[ 0.707  0.707]
     [-0.707  0.707]]
    """
    alike: dict[AbstractGroup, list[str]] = {}
    for name in moments:
        # All copies of one group are one batch: a single loop in the program, for any number of layers.
        alike.setdefault(dataclasses.replace(symmetry.spaces[name], per=()), []).append(name)
    rotations = {}
    for group, names in alike.items():
        flat = [moments[name].sum(axis=0).reshape(-1, group.size, group.size) for name in names]
        counts = [len(part) for part in flat]
        together = dataclasses.replace(group, per={"copy": sum(counts)})
        elements = together.diagonalizing(jnp.concatenate(flat))
        start = 0
        for name, count in zip(names, counts, strict=True):
            lengths, part = symmetry.spaces[name].lengths, slice(start, start + count)
            rotations[name] = jax.tree.map(
                lambda leaf, p=part, shape=lengths: leaf[p].reshape(*shape, *leaf.shape[1:]), elements
            )
            start += count
    return rotations


def _carried(group: AbstractGroup, element: PyTree, moments: Array) -> Array:
    """The second moments of gradients after their space moved by `element`, with the same traces."""
    # Gradients move with the dual of what moves the parameters.
    moved = []
    for moment, a in zip(moments, (group.dual(element), element), strict=False):
        half = group.multiply(a, moment)
        there = group.multiply(a, jnp.swapaxes(half, -1, -2))
        before, after = (jnp.trace(m, axis1=-2, axis2=-1)[..., None, None] for m in (moment, there))
        moved.append(there * jnp.where(after > 0, before / jnp.where(after > 0, after, 1.0), 1.0))
    return jnp.stack(moved).astype(moments.dtype)


def _sides(group: AbstractGroup) -> int:
    """Moments kept for a space: rotations move gradients of both sides alike, other elements do not."""
    return 1 if group.compact else 2


def _has_sides(energies: Energies, space: str) -> Array:
    """Whether both sides of a space are present: by unit for scalings, by copy for matrices."""
    symmetry = energies.symmetry
    group, here = symmetry.spaces[space], symmetry.split(symmetry.zero())
    sums: list[Any] = [0.0, 0.0]
    for binding, exponent, square in energies.share(space, here):
        full = placed(square, binding, group.lengths)
        is_matrix = full.ndim - len(group.lengths) == 2
        sums[exponent < 0] += jnp.trace(full, axis1=-2, axis2=-1) if is_matrix else full
    present = jnp.asarray((sums[0] > 0) & (sums[1] > 0))
    return present.reshape(*present.shape, *[1] * (len(group.algebra) - present.ndim))


def _unit(x: Array) -> Array:
    """An array divided by its largest entry, so that squares neither overflow nor underflow."""
    wide = widened(x)
    largest = jnp.max(jnp.abs(wide), initial=0.0)
    return wide / jnp.where(largest > 0, largest, 1.0)


def _no_loss(params: PyTree) -> Array:
    raise AssertionError("Balancing looks at parameters alone.")
