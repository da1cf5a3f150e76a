"""The interfaces of a symmetry, a transformation of parameters that leaves a loss unchanged.

A symmetry is an *action*: a group element `a` moves parameters `w` to `act(a, w)`, and every loss with this
symmetry keeps its value, `loss(act(a, w)) = loss(w)`. Elements and parameters are pytrees.

You can search and learn groups with a Lie algebra (rotations, scalings) by gradients, but not permutations
and sign flips. There are two interfaces so that no class has a method that only raises. `Joined` combines
two symmetries; it is in this module because `|` constructs it.
"""

import math
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
        """The element that leaves all parameters unchanged."""

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
        """The displacement of parameters by `a`: act(a, w) - act(identity, w), a tree like `params`."""
        # Both by the same formula: act(a, w) - w would count the rounding errors of the action as motion.
        there, here = self.act(a, params, batch), self.act(self.identity(), params, batch)
        return jax.tree.map(lambda v, u, w: (v - u).astype(w.dtype), there, here, params)

    def transport_tangent(self, a: PyTree, params: PyTree, tangent: PyTree, batch: PyTree = None) -> PyTree:
        """Carries a tangent vector from `params` to `act(a, params)`: the derivative of the action."""
        return jax.jvp(lambda w: self.act(a, w, batch), (params,), (tangent,))[1]

    def transport_gradient(
        self, a: PyTree, params: PyTree, cotangent: PyTree, batch: PyTree = None
    ) -> PyTree:
        """Carries a gradient from `params` to `act(a, params)`: the transposed derivative of the inverse."""
        # loss(w') = loss(act(a^-1, w')), and the chain rule at w' = act(a, w).
        there = self.act(a, params, batch)
        (carried,) = jax.vjp(lambda w: self.act(self.inverse(a), w, batch), there)[1](cotangent)
        return carried


def check_vector(symmetry: AbstractSymmetry, params: PyTree, size: int) -> None:
    """Raises ValueError unless the parameters are a single array of shape (size,).

    >>> import symmetrax as sx
    >>> check_vector(sx.tasks.booth().symmetry(), {"x": jnp.zeros(3)}, 2)
    Traceback (most recent call last):
    ValueError: Pullback acts on one array of shape (2,), got a tree of arrays with the shapes [(3,)]...
    """
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(params)]
    if jax.tree.structure(params) != jax.tree.structure(0) or shapes != [(size,)]:
        raise ValueError(
            f"{type(symmetry).__name__} acts on one array of shape ({size},), got a tree of arrays with the "
            f"shapes {shapes[:8]}: pass the array itself as the parameters."
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
        return self.exp(t * direction)  # agrees in all derivatives

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
                f"`|` joins two symmetries that have a Lie algebra, got {type(other).__name__}: act with one "
                "after the other instead."
            )
        # Pyright takes `linear`, an abstract class variable, for a field.
        return Joined(self, other)  # pyright: ignore[reportCallIssue]

    def zero(self) -> Float[Array, "..."]:
        """The coordinates of the identity."""
        return jnp.zeros(self.algebra)


class AbstractConjugated(AbstractLieSymmetry):
    """Abstract base class of symmetries that act with the elements of another, in other coordinates.

    The group is that of `symmetry`; subclasses say how it acts.

    >>> import symmetrax as sx
    >>> issubclass(sx.symmetry.RescaledSymmetry, AbstractConjugated)
    True
    """

    symmetry: eqx.AbstractVar[AbstractLieSymmetry]

    @property
    def reasons(self) -> tuple[str, ...]:
        return self.symmetry.reasons

    @property
    def algebra(self) -> tuple[int, ...]:
        return self.symmetry.algebra

    def identity(self) -> PyTree:
        return self.symmetry.identity()

    def compose(self, a: PyTree, b: PyTree) -> PyTree:
        return self.symmetry.compose(a, b)

    def inverse(self, a: PyTree) -> PyTree:
        return self.symmetry.inverse(a)

    def sample(self, key: Key[Array, ""]) -> PyTree:
        return self.symmetry.sample(key)

    def exp(self, coordinates: Float[Array, "..."]) -> PyTree:
        return self.symmetry.exp(coordinates)

    def jet(self, direction: Float[Array, "..."], t: Float[Array, ""]) -> PyTree:
        return self.symmetry.jet(direction, t)

    def bounded(self, coordinates: Float[Array, "..."], bound: float | Array) -> Float[Array, "..."]:
        return self.symmetry.bounded(coordinates, bound)


class Joined(AbstractLieSymmetry):
    """The combination `first | second`: an element is a pair (a, b) that acts as `a` after `b`.

    This is a group action only if the two commute, act(a, act(b, w)) = act(b, act(a, w)), as they do on
    different arrays or different spaces; `verify` tests this through the composition law. The coordinate
    vector is the concatenation of both coordinate vectors, first and second.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> params = {"w1": jnp.ones((4, 3)), "w2": jnp.ones((2, 4))}
    >>> both = sx.models.mlp_symmetry(params) | sx.symmetry.LogitShift("w2", like=params)
    >>> both.algebra
    (8,)
    """

    first: AbstractLieSymmetry
    second: AbstractLieSymmetry

    # A composition of linear actions is linear, up to constants.
    @property
    def linear(self) -> bool:
        return self.first.linear and self.second.linear

    @property
    def reasons(self) -> tuple[str, ...]:
        return (*self.first.reasons, *self.second.reasons[1:])

    @property
    def algebra(self) -> tuple[int]:
        return (math.prod(self.first.algebra) + math.prod(self.second.algebra),)

    def identity(self) -> tuple[PyTree, PyTree]:
        return self.first.identity(), self.second.identity()

    def compose(self, a: tuple[PyTree, PyTree], b: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        return self.first.compose(a[0], b[0]), self.second.compose(a[1], b[1])

    def inverse(self, a: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        return self.first.inverse(a[0]), self.second.inverse(a[1])

    def sample(self, key: Key[Array, ""]) -> tuple[PyTree, PyTree]:
        one, other = jax.random.split(key)
        return self.first.sample(one), self.second.sample(other)

    def exp(self, coordinates: Float[Array, " k"]) -> tuple[PyTree, PyTree]:
        one, other = self._parts(coordinates)
        return self.first.exp(one), self.second.exp(other)

    def exp_within(self, coordinates: Float[Array, " k"], max_norm: float) -> tuple[PyTree, PyTree]:
        one, other = self._parts(coordinates)
        return self.first.exp_within(one, max_norm), self.second.exp_within(other, max_norm)

    def jet(self, direction: Float[Array, " k"], t: Float[Array, ""]) -> tuple[PyTree, PyTree]:
        one, other = self._parts(direction)
        return self.first.jet(one, t), self.second.jet(other, t)

    def bounded(self, coordinates: Float[Array, " k"], bound: float | Array) -> Float[Array, " k"]:
        one, other = self._parts(coordinates)
        bounded = self.first.bounded(one, bound), self.second.bounded(other, bound)
        return jnp.concatenate([jnp.ravel(part) for part in bounded])

    def zero(self) -> Float[Array, " k"]:
        return jnp.concatenate([jnp.ravel(self.first.zero()), jnp.ravel(self.second.zero())])

    def act(self, a: tuple[PyTree, PyTree], params: PyTree, batch: PyTree = None) -> PyTree:
        return self.first.act(a[0], self.second.act(a[1], params, batch), batch)

    def transport_tangent(self, a: tuple, params: PyTree, tangent: PyTree, batch: PyTree = None) -> PyTree:
        between = self.second.act(a[1], params, batch)
        return self.first.transport_tangent(
            a[0], between, self.second.transport_tangent(a[1], params, tangent, batch), batch
        )

    def transport_gradient(self, a: tuple, params: PyTree, cotangent: PyTree, batch: PyTree = None) -> PyTree:
        # In the order in which the parameters move: to `between` by the second, from there by the first.
        between = self.second.act(a[1], params, batch)
        return self.first.transport_gradient(
            a[0], between, self.second.transport_gradient(a[1], params, cotangent, batch), batch
        )

    def check(self, params: PyTree) -> None:
        self.first.check(params)
        self.second.check(params)

    def holds(self, params: PyTree, batch: PyTree = None) -> Precondition:
        one, other = self.first.holds(params, batch), self.second.holds(params, batch)
        # The codes of `second` follow those of `first`; both start with "holds", which is counted once.
        code = jnp.where(other.code > 0, other.code + len(self.first.reasons) - 1, 0)
        return Precondition(
            jnp.where(one.code > 0, one.code, code), jnp.maximum(one.residual, other.residual)
        )

    def _parts(self, coordinates: Float[Array, " k"]) -> tuple[Array, Array]:
        ends = math.prod(self.first.algebra)
        one, other = coordinates[:ends], coordinates[ends:]
        return one.reshape(self.first.algebra), other.reshape(self.second.algebra)
