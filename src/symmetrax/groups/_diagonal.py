"""Groups acting on a single axis: the interface, scalings, signs and permutations.

An element multiplies every vector of length `size` along the axis, as a matrix would.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

#: Indices over which a group is repeated, with their lengths; each index value has an independent element.
Per = tuple[tuple[str, int], ...]


def as_per(per: Mapping[str, int] | Per) -> Per:
    """Converts indices and their lengths to hashable pairs, in order.

    >>> as_per({"layer": 2, "head": 8})
    (('layer', 2), ('head', 8))
    """
    return tuple((name, int(length)) for name, length in dict(per).items())


class AbstractGroup(eqx.Module):
    """A group of invertible (size, size) matrices, with a matrix for each value of the indices in `per`.

    Group operations are as in `AbstractSymmetry`. The lengths in `per` are leading axes of every shape: an
    element of `GeneralLinear(16, per={"h": 8})` has matrices of shape (8, 16, 16). `dual(a)` is the inverse
    transpose of `a`, which transforms gradients; it is a homomorphism, as is `power` in `abelian` groups.

    >>> import jax
    >>> group = PositiveDiagonal(3, per={"layer": 2})
    >>> group.sample(jax.random.key(0)).shape, group.algebra
    ((2, 3), (2, 3))
    """

    #: Whether elements commute; only then is a power of the action also an action.
    abelian: ClassVar[bool] = False
    #: Whether every element is its own dual, so that gradient norms are constant on the orbit.
    compact: ClassVar[bool] = False
    #: Whether all elements are diagonal matrices, so that two such groups on the same axis commute.
    diagonal: ClassVar[bool] = False
    #: Whether the group contains rotations, along which a basis can be chosen: see `diagonalizing`.
    rotates: ClassVar[bool] = False

    size: eqx.AbstractVar[int]
    per: eqx.AbstractVar[Per]

    def __check_init__(self):
        for name, length in (("size", self.size), *self.per):
            if length < 1:
                raise ValueError(f"{type(self).__name__} needs {name} of at least 1, got {name}={length}.")

    @property
    def lengths(self) -> tuple[int, ...]:
        """Lengths of the `per` indices, in order."""
        return tuple(length for _, length in self.per)

    @property
    @abstractmethod
    def algebra(self) -> tuple[int, ...]:
        """The shape of the coordinates in the algebra, `per` first; contains a zero for discrete groups."""

    @abstractmethod
    def identity(self) -> PyTree:
        """The element that leaves every vector unchanged."""

    @abstractmethod
    def compose(self, a: PyTree, b: PyTree) -> PyTree:
        """The element that acts as `a` after `b`."""

    @abstractmethod
    def inverse(self, a: PyTree) -> PyTree:
        """The element that undoes `a`."""

    @abstractmethod
    def dual(self, a: PyTree) -> PyTree:
        """The inverse transpose of `a`."""

    @abstractmethod
    def exp(self, coordinates: Float[Array, "..."]) -> PyTree:
        """The element at these coordinates of shape `algebra`; zeros give the identity."""

    def bounded(self, coordinates: Float[Array, "..."], bound: float | Array) -> Float[Array, "..."]:
        """Nearby coordinates whose element stretches or shrinks no vector by more than exp(bound)."""
        return coordinates

    @abstractmethod
    def sample(self, key: Key[Array, ""]) -> PyTree:
        """A random, well-conditioned element that is not the identity, and differs along every `per` index.

        If it did not differ, an action by one element for all values of an index would look like one by
        independent elements. The only exception is `Permutation(1)`, which is trivial.
        """

    @abstractmethod
    def multiply(self, a: PyTree, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Multiplies `x` of shape (*per, size, rest) by `a` along the axis of length `size`."""

    def power(self, a: PyTree, exponent: float) -> PyTree:
        """`a` to the power `exponent`; raises ValueError for groups whose elements do not commute."""
        raise ValueError(
            f"{self} has no powers that act as a group, got exponent {exponent}: its elements do not "
            "commute. Use a group of scalings, signs or scaled rotations, or remove the power."
        )

    def diagonalizing(self, moment: Float[Array, "..."]) -> PyTree:
        """The rotation q of the group for which q @ moment @ q.T is as diagonal as the group allows.

        `moment` has shape (*per, size, size) and is symmetric. Without rotations, this is the identity.
        """
        return self.identity()

    def multiply_squares(self, a: PyTree, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Multiplies mean squares of uncorrelated entries, of shape (*per, size, rest), as `a` moves entries.

        Squares of all entries move like this under diagonal matrices and permutations; others mix them, and
        only for uncorrelated entries are the new squares sums of the old ones, by squared matrix entries.
        """
        return self.multiply(self.squared(a), x)

    def squared(self, a: PyTree) -> PyTree:
        """The element that acts on squared entries as `a` acts on entries; for diagonals and permutations."""
        raise ValueError(
            f"{self} mixes the entries of an axis, so squared gradients cannot be transported: use "
            "transport='keep' or 'reset' with optimizers that accumulate them."
        )

    def __str__(self) -> str:
        extra = "".join(f", {name}={length}" for name, length in self.per)
        return f"{type(self).__name__}({self.size}{extra})"


class _AbstractDiagonal(AbstractGroup):
    """Diagonal matrices: an element is its diagonal, of shape (*per, size)."""

    abelian: ClassVar[bool] = True
    diagonal: ClassVar[bool] = True

    @property
    def algebra(self) -> tuple[int, ...]:
        return (*self.lengths, self.size)

    def identity(self) -> Float[Array, "..."]:
        return jnp.ones((*self.lengths, self.size))

    def compose(self, a, b):
        return a * b

    def inverse(self, a):
        return 1 / a

    def dual(self, a):
        return 1 / a

    def exp(self, coordinates):
        return jnp.exp(coordinates)

    def bounded(self, coordinates, bound):
        return jnp.clip(coordinates, -bound, bound)

    def multiply(self, a, x):
        return a[..., None] * x

    def squared(self, a):
        return a * a


class PositiveDiagonal(_AbstractDiagonal):
    """Positive scalings: an element is s > 0 of shape (*per, size), with coordinates log s.

    The symmetry of units with a positively homogeneous activation, sigma(s z) = s sigma(z): ReLU, leaky ReLU
    and parametric ReLU. The group is not compact and gradient norms are unbounded on the orbit, so bound the
    search. With `dyadic`, `exp` and `sample` round elements to powers of two, so that scaling is bit-exact in
    every floating-point format, including bfloat16; the derivative ignores the rounding.

    >>> import jax.numpy as jnp
    >>> PositiveDiagonal(2, dyadic=True).exp(jnp.array([0.0, 1.0])).tolist()
    [1.0, 2.0]
    """

    size: int = eqx.field(static=True)
    per: Per = eqx.field(static=True, converter=as_per, default=())
    dyadic: bool = eqx.field(static=True, default=False)

    def exp(self, coordinates):
        if not self.dyadic:
            return jnp.exp(coordinates)
        # `ldexp` sets the exponent bits, so the result is exactly a power of two.
        rounded = jnp.round(coordinates / jnp.log(2.0))
        exact = jnp.ldexp(jnp.ones_like(coordinates), rounded.astype(int))
        smooth = jnp.exp(coordinates)
        # Has the value of `exact` (a power of two times 1) and the derivative of `smooth`.
        return exact * (smooth / jax.lax.stop_gradient(smooth))

    def power(self, a, exponent):
        return a**exponent

    def sample(self, key):
        if self.dyadic:
            return 2.0 ** jax.random.rademacher(key, self.algebra, float)
        return self.exp(log_scales(key, self.algebra))


class NonzeroDiagonal(_AbstractDiagonal):
    """Scalings by nonzero numbers of either sign; `exp`, with coordinates log s, gives the positive ones.

    The change of basis of arXiv:2012.01118. Any activation has this symmetry if it carries its own scale,
    z -> tau sigma(z / tau), where tau is a parameter with the spec "h".

    >>> import jax
    >>> bool(abs(NonzeroDiagonal(3).sample(jax.random.key(0))).min() > 0)
    True
    """

    size: int = eqx.field(static=True)
    per: Per = eqx.field(static=True, converter=as_per, default=())

    def power(self, a, exponent):
        if exponent != round(exponent):
            raise ValueError(
                f"Scales of either sign have only whole powers, got {exponent}: use a whole power, or "
                "PositiveDiagonal."
            )
        return a ** int(exponent)

    def sample(self, key):
        size, sign = jax.random.split(key)
        return jnp.exp(log_scales(size, self.algebra)) * jax.random.rademacher(sign, self.algebra, float)


class SignDiagonal(_AbstractDiagonal):
    """Sign flips: an element is an array of +1 and -1 of shape (*per, size). Discrete, without an algebra.

    The symmetry of units with an odd activation, sigma(-z) = -sigma(z): tanh, sine.

    >>> import jax
    >>> set(SignDiagonal(5).sample(jax.random.key(0)).tolist()) <= {1.0, -1.0}
    True
    """

    compact: ClassVar[bool] = True

    size: int = eqx.field(static=True)
    per: Per = eqx.field(static=True, converter=as_per, default=())

    @property
    def algebra(self) -> tuple[int, ...]:
        return (*self.lengths, 0)

    def inverse(self, a):
        return a

    def dual(self, a):
        return a

    def exp(self, coordinates):
        return self.identity()

    def power(self, a, exponent):
        if exponent != round(exponent):
            raise ValueError(f"Signs have only whole powers, got {exponent}: use a whole power.")
        return a if round(exponent) % 2 else a * a

    def sample(self, key):
        signs = jax.random.rademacher(key, (*self.lengths, self.size), float)
        return _varied(signs, jnp.ones(self.size), lambda x: x.at[0].multiply(-1))


class Permutation(AbstractGroup):
    """Permutations: an element is an array of indices p of shape (*per, size), (g x)_i = x_{p_i}. Discrete.

    The symmetry of interchangeable units with any activation, and of heads, channels and experts.

    >>> import jax.numpy as jnp
    >>> Permutation(3).multiply(jnp.array([2, 0, 1]), jnp.array([[1.0], [2.0], [3.0]])).ravel().tolist()
    [3.0, 1.0, 2.0]
    """

    compact: ClassVar[bool] = True

    size: int = eqx.field(static=True)
    per: Per = eqx.field(static=True, converter=as_per, default=())

    @property
    def algebra(self) -> tuple[int, ...]:
        return (*self.lengths, 0)

    def identity(self) -> Int[Array, "..."]:
        return jnp.broadcast_to(jnp.arange(self.size), (*self.lengths, self.size))

    def compose(self, a, b):
        return jnp.take_along_axis(b, a, axis=-1)

    def inverse(self, a):
        return jnp.argsort(a, axis=-1)

    def dual(self, a):
        return a

    def exp(self, coordinates):
        return self.identity()

    def sample(self, key):
        shuffled = jnp.argsort(jax.random.uniform(key, (*self.lengths, self.size)), axis=-1)
        return _varied(shuffled, jnp.arange(self.size), lambda x: jnp.roll(x, 1))

    def multiply(self, a, x):
        # A gather moves entries without arithmetic, so every dtype is exact.
        return jnp.take_along_axis(x, a[..., None], axis=-2)

    def squared(self, a):
        return a


def _varied(elements: Array, identity: Array, change: Callable[[Array], Array]) -> Array:
    """Makes the first element differ from the identity, and from the next one along every index.

    A small group has so few elements that all those drawn may be equal.
    """

    def unlike(x: Array, other: Array) -> Array:
        return jnp.where(jnp.all(x == other), change(x), x)

    axes = elements.ndim - 1
    origin = (0,) * axes
    first = unlike(elements[origin], identity)
    elements = elements.at[origin].set(first)
    for axis in range(axes):
        if elements.shape[axis] > 1:
            beside = (*origin[:axis], 1, *origin[axis + 1 :])
            elements = elements.at[beside].set(unlike(elements[beside], first))
    return elements


def log_scales(key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Logarithms of well-conditioned scales, uniform on [-1, 1].

    >>> bool(abs(log_scales(jax.random.key(0), (100,))).max() <= 1)
    True
    """
    return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)
