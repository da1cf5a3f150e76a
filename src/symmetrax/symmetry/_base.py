"""The two interfaces of a symmetry, a transformation that leaves a loss unchanged.

A symmetry is an *action*: a group element `a` moves parameters `w` to `act(a, w)` and every loss that has
the symmetry keeps its value, `loss(act(a, w)) = loss(w)`. Elements are pytrees; so are parameters.

Groups with a Lie algebra (rotations, scalings) can be searched and learned by gradients; permutations and
sign flips can not. Hence two interfaces, and no method that only raises.
"""

from abc import abstractmethod
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree


class Precondition(NamedTuple):
    """Whether a symmetry holds here, as values that can be computed inside a compiled program.

    `code` is 0 where the symmetry holds, else an index into the symmetry's `reasons`; `residual` is the
    relative error that decided it (dimensionless).

    >>> import jax.numpy as jnp
    >>> int(Precondition(code=jnp.array(0), residual=jnp.array(0.0)).code)
    0
    """

    code: Int[Array, ""]
    residual: Float[Array, ""]


class AbstractSymmetry(eqx.Module):
    """A group acting on parameters without changing the loss.

    Laws, for elements `a`, `b` and parameters `w` (checked by `symmetrax.verify`):

    - invariance: `loss(act(a, w)) = loss(w)`
    - composition: `act(compose(a, b), w) = act(a, act(b, w))`
    - identity: `act(identity(), w) = w`; inverse: `act(inverse(a), act(a, w)) = w`
    - gradient law: the gradient at `act(a, w)` is `transport_gradient(a, w, g)`, with `g` the gradient at `w`

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> symmetry = sx.booth().symmetry()
    >>> isinstance(symmetry, sx.AbstractSymmetry)
    True
    """

    #: Whether `act` is linear in the parameters, up to constants: then one gradient gives the gradient on the
    #: whole orbit.
    linear: eqx.AbstractClassVar[bool]

    @property
    @abstractmethod
    def reasons(self) -> tuple[str, ...]:
        """Words for the codes of `holds`; the first one is for 0, "holds". May be a class attribute."""

    @abstractmethod
    def identity(self) -> PyTree:
        """The element that moves nothing."""

    @abstractmethod
    def compose(self, a: PyTree, b: PyTree) -> PyTree:
        """The element that acts as `a` after `b`."""

    @abstractmethod
    def inverse(self, a: PyTree) -> PyTree:
        """The element that undoes `a`."""

    @abstractmethod
    def sample(self, key: Key[Array, ""]) -> PyTree:
        """A random element; the identity at most with probability zero, or if there is no other."""

    @abstractmethod
    def act(self, a: PyTree, params: PyTree, batch: PyTree = None) -> PyTree:
        """Parameters moved by `a`. `batch` matters to data-dependent actions only."""

    @abstractmethod
    def holds(self, params: PyTree, batch: PyTree = None) -> Precondition:
        """Whether the action is defined and exact at `params`, as a traceable code and residual."""

    def check(self, params: PyTree) -> None:
        """Raise ValueError if parameters of this structure are not what the symmetry acts on.

        Looks at names and shapes alone, so that optimizers can ask when they are initialized. A symmetry that
        does not say takes everything.
        """

    def displacement(self, a: PyTree, params: PyTree, batch: PyTree = None) -> PyTree:
        """How far `a` moves: act(a, w) - act(identity, w), a tree like `params`.

        Both ends come from the same formula, so that what it rounds away is not taken for a motion.
        """
        there, here = self.act(a, params, batch), self.act(self.identity(), params, batch)
        return jax.tree.map(lambda v, u, w: (v - u).astype(w.dtype), there, here, params)

    def transport_tangent(self, a: PyTree, params: PyTree, tangent: PyTree, batch: PyTree = None) -> PyTree:
        """A displacement at `params`, carried to `act(a, params)`: the derivative of the action."""
        return jax.jvp(lambda w: self.act(a, w, batch), (params,), (tangent,))[1]

    def transport_gradient(
        self, a: PyTree, params: PyTree, cotangent: PyTree, batch: PyTree = None
    ) -> PyTree:
        """A gradient at `params`, carried to `act(a, params)`: the transposed derivative of the inverse."""
        there = self.act(a, params, batch)
        (carried,) = jax.vjp(lambda w: self.act(self.inverse(a), w, batch), there)[1](cotangent)
        return carried


def check_vector(symmetry: AbstractSymmetry, params: PyTree, size: int) -> None:
    """Raise ValueError if parameters are not one array of shape (size,)."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(params)]
    if jax.tree.structure(params) != jax.tree.structure(0) or shapes != [(size,)]:
        raise ValueError(
            f"{type(symmetry).__name__} acts on one array of shape ({size},), not on a tree of arrays with "
            f"the shapes {shapes[:8]}."
        )


class AbstractLieSymmetry(AbstractSymmetry):
    """A symmetry whose group has a Lie algebra, so that it can be searched and learned by gradients.

    Coordinates in the algebra form an array of shape `algebra`; zeros are the identity:
    `exp(zeros) = identity()`.

    >>> import symmetrax as sx
    >>> sx.booth().symmetry().algebra
    (1,)
    """

    @property
    @abstractmethod
    def algebra(self) -> tuple[int, ...]:
        """Shape of the algebra's coordinates."""

    @abstractmethod
    def exp(self, coordinates: Array) -> PyTree:
        """The group element at these coordinates."""

    def exp_within(self, coordinates: Array, reach: float) -> PyTree:
        """`exp` for coordinates known to be no longer than `reach` (each layer's), which may be cheaper."""
        return self.exp(coordinates)

    def jet(self, direction: Float[Array, "..."], t: Float[Array, ""]) -> PyTree:
        """A curve with the value and the first three derivatives of `exp(t * direction)` at t = 0.

        Enough for velocities, accelerations and changes of curvature; some groups have it cheaper than exp.
        """
        return self.exp(t * direction)

    def bounded(self, coordinates: Float[Array, "..."], bound: float | Array) -> Float[Array, "..."]:
        """Coordinates within `bound` of the identity: a search on a group that is not compact has no end.

        Here every coordinate is clipped to [-bound, bound]; compact groups need no bound, and at most
        shorten coordinates of many turns.
        """
        return jnp.clip(coordinates, -bound, bound)

    def __or__(self, other: Any) -> "AbstractLieSymmetry":
        """Both at once, for two that commute: an element of each, the second one acting first."""
        if not isinstance(other, AbstractLieSymmetry):
            raise TypeError(
                f"`|` joins two symmetries that have a Lie algebra, and {type(other).__name__} is none: act "
                "with one after the other."
            )
        from symmetrax.symmetry._joined import Joined

        return Joined(self, other)  # pyright: ignore[reportCallIssue]  (the import is circular)

    def zero(self) -> Float[Array, "..."]:
        """The coordinates of the identity."""
        return jnp.zeros(self.algebra)
