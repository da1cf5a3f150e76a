"""The two interfaces of a symmetry, a transformation of parameters that leaves a loss unchanged.

A symmetry is an *action*: a group element `a` moves parameters `w` to `act(a, w)`, and every loss with this
symmetry keeps its value, `loss(act(a, w)) = loss(w)`. Elements and parameters are pytrees.

You can search and learn groups with a Lie algebra (rotations, scalings) by gradients, but not permutations
and sign flips. There are two interfaces so that no class has a method that only raises.
"""

from abc import abstractmethod
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree


class Precondition(NamedTuple):
    """Whether a symmetry holds at given parameters, as values that can be computed under `jax.jit`.

    `code` is 0 if the symmetry holds, otherwise an index into the symmetry's `reasons`; `residual` is the
    relative error (dimensionless) on which the decision is based.

    >>> import jax.numpy as jnp
    >>> int(Precondition(code=jnp.array(0), residual=jnp.array(0.0)).code)
    0
    """

    code: Int[Array, ""]
    residual: Float[Array, ""]


class AbstractSymmetry(eqx.Module):
    """A group that acts on parameters without changing the loss.

    The laws, for elements `a`, `b` and parameters `w`, which `symmetrax.verify` checks:

    - invariance: `loss(act(a, w)) = loss(w)`
    - composition: `act(compose(a, b), w) = act(a, act(b, w))`
    - identity: `act(identity(), w) = w`; inverse: `act(inverse(a), act(a, w)) = w`
    - gradient law: the gradient at `act(a, w)` is `transport_gradient(a, w, g)`, where `g` is the gradient
      at `w`

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> symmetry = sx.tasks.booth().symmetry()
    >>> isinstance(symmetry, sx.symmetry.AbstractSymmetry)
    True
    """

    #: Whether `act` is linear in the parameters, up to constants. If so, a single gradient determines the
    #: gradient on the whole orbit.
    linear: eqx.AbstractClassVar[bool]

    @property
    @abstractmethod
    def reasons(self) -> tuple[str, ...]:
        """Messages for the codes of `holds`, starting with "holds" for 0. May be a class attribute."""

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
        """A random element; almost surely not the identity, unless the group is trivial."""

    @abstractmethod
    def act(self, a: PyTree, params: PyTree, batch: PyTree = None) -> PyTree:
        """Moves parameters by `a`. Only data-dependent actions use `batch`."""

    @abstractmethod
    def holds(self, params: PyTree, batch: PyTree = None) -> Precondition:
        """Whether the action is defined and exact at `params`, as a traceable code and residual."""

    def check(self, params: PyTree) -> None:
        """Raises ValueError if the symmetry cannot act on parameters of this structure.

        Uses names and shapes only, so optimizers can call it in `init`. The default accepts everything.
        """

    def displacement(self, a: PyTree, params: PyTree, batch: PyTree = None) -> PyTree:
        """The displacement of parameters by `a`: act(a, w) - act(identity, w), a tree like `params`.

        Both terms come from the same formula, so its rounding errors do not count as motion.
        """
        there, here = self.act(a, params, batch), self.act(self.identity(), params, batch)
        return jax.tree.map(lambda v, u, w: (v - u).astype(w.dtype), there, here, params)

    def transport_tangent(self, a: PyTree, params: PyTree, tangent: PyTree, batch: PyTree = None) -> PyTree:
        """Carries a tangent vector from `params` to `act(a, params)`: the derivative of the action."""
        return jax.jvp(lambda w: self.act(a, w, batch), (params,), (tangent,))[1]

    def transport_gradient(
        self, a: PyTree, params: PyTree, cotangent: PyTree, batch: PyTree = None
    ) -> PyTree:
        """Carries a gradient from `params` to `act(a, params)`: the transposed derivative of the inverse."""
        there = self.act(a, params, batch)
        (carried,) = jax.vjp(lambda w: self.act(self.inverse(a), w, batch), there)[1](cotangent)
        return carried


def check_vector(symmetry: AbstractSymmetry, params: PyTree, size: int) -> None:
    """Raises ValueError unless the parameters are a single array of shape (size,)."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(params)]
    if jax.tree.structure(params) != jax.tree.structure(0) or shapes != [(size,)]:
        raise ValueError(
            f"{type(symmetry).__name__} acts on one array of shape ({size},), not on a tree of arrays with "
            f"the shapes {shapes[:8]}."
        )


class AbstractLieSymmetry(AbstractSymmetry):
    """A symmetry whose group has a Lie algebra, so you can search and learn it by gradients.

    Coordinates in the algebra form an array of shape `algebra`; zeros give the identity,
    `exp(zeros) = identity()`.

    >>> import symmetrax as sx
    >>> sx.tasks.booth().symmetry().algebra
    (1,)
    """

    @property
    @abstractmethod
    def algebra(self) -> tuple[int, ...]:
        """The shape of the coordinates in the algebra."""

    @abstractmethod
    def exp(self, coordinates: Array) -> PyTree:
        """The group element at these coordinates."""

    def exp_within(self, coordinates: Array, max_norm: float) -> PyTree:
        """`exp` for coordinates of norm at most `max_norm` (in each layer), which may be cheaper."""
        return self.exp(coordinates)

    def jet(self, direction: Float[Array, "..."], t: Float[Array, ""]) -> PyTree:
        """A curve that agrees with `exp(t * direction)` in value and first three derivatives at t = 0.

        Sufficient for velocities, accelerations and changes of curvature; for some groups cheaper than `exp`.
        """
        return self.exp(t * direction)

    def bounded(self, coordinates: Float[Array, "..."], bound: float | Array) -> Float[Array, "..."]:
        """Restricts coordinates to within `bound` of the identity, to limit a search on a noncompact group.

        By default every coordinate is clipped to [-bound, bound]. Compact groups need no bound; at most they
        shorten coordinates that make many turns.
        """
        return jnp.clip(coordinates, -bound, bound)

    def __or__(self, other: Any) -> "AbstractLieSymmetry":
        """Combines two commuting symmetries: an element is a pair, of which the second acts first."""
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
