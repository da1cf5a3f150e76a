"""Matrix groups acting on one axis: an element multiplies every vector of length `size` along that axis."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

#: Indices over which a group is repeated, with their lengths: one independent element for each value.
Per = tuple[tuple[str, int], ...]


def _as_per(per: Mapping[str, int] | Per) -> Per:
    return tuple((name, int(length)) for name, length in dict(per).items())


class AbstractGroup(eqx.Module):
    """Invertible matrices of shape (size, size), one for each value of the indices in `per`.

    Group operations are as in `AbstractSymmetry`; `per={"h": 8}` stands in front of every shape: an element
    of `GeneralLinear(16, per={"h": 8})` has matrices of shape (8, 16, 16). `dual(a)` is the inverse transpose
    of `a`, by which gradients travel; it is a homomorphism, like `power` in groups that are `abelian`.

    >>> import jax
    >>> group = PositiveDiagonal(3, per={"layer": 2})
    >>> group.sample(jax.random.key(0)).shape, group.algebra
    ((2, 3), (2, 3))
    """

    #: Whether elements commute: only then is a power of the action an action.
    abelian: ClassVar[bool] = False
    #: Whether every element is its own dual: then gradient norms are the same on the whole orbit.
    compact: ClassVar[bool] = False
    #: Whether all elements are diagonal matrices: then two such groups on one axis commute.
    diagonal: ClassVar[bool] = False

    size: eqx.AbstractVar[int]
    per: eqx.AbstractVar[Per]

    def __check_init__(self):
        for name, length in (("size", self.size), *self.per):
            if length < 1:
                raise ValueError(f"{type(self).__name__} needs {name} >= 1, got {length}.")

    @property
    def lengths(self) -> tuple[int, ...]:
        """Lengths of the `per` indices, in order."""
        return tuple(length for _, length in self.per)

    @property
    @abstractmethod
    def algebra(self) -> tuple[int, ...]:
        """Shape of the coordinates of the algebra, `per` first; a zero in it for discrete groups."""

    @abstractmethod
    def identity(self) -> PyTree:
        """The element that moves nothing."""

    @abstractmethod
    def compose(self, a: PyTree, b: PyTree) -> PyTree:
        """`a` after `b`."""

    @abstractmethod
    def inverse(self, a: PyTree) -> PyTree:
        """The element that undoes `a`."""

    @abstractmethod
    def dual(self, a: PyTree) -> PyTree:
        """The inverse transpose of `a`."""

    @abstractmethod
    def exp(self, coordinates: Float[Array, "..."]) -> PyTree:
        """The element at these coordinates, of shape `algebra`; zeros give the identity."""

    def bounded(self, coordinates: Float[Array, "..."], bound: float | Array) -> Float[Array, "..."]:
        """Near coordinates whose element stretches no vector by more than exp(bound), nor shrinks it."""
        return coordinates

    @abstractmethod
    def sample(self, key: Key[Array, ""]) -> PyTree:
        """A random, well-conditioned element other than the identity."""

    @abstractmethod
    def multiply(self, a: PyTree, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """`a` times `x` of shape (*per, size, rest), along the axis of length `size`."""

    def power(self, a: PyTree, exponent: float) -> PyTree:
        """`a` to the power of `exponent`; groups whose elements do not commute have none but the first."""
        raise ValueError(f"Elements of {self} do not commute, so that their powers are no action.")

    def squared(self, a: PyTree) -> PyTree:
        """The element that moves squares of entries as `a` moves entries: for diagonals and permutations."""
        raise ValueError(
            f"{self} mixes the entries of an axis, so that squared gradients cannot be carried along it: "
            "use transport='keep' or 'reset' with optimizers that accumulate them."
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
    """Positive scalings: an element is s > 0 of shape (*per, size), its algebra log s.

    The symmetry of units whose activation is positively homogeneous, sigma(s z) = s sigma(z): ReLU, leaky
    and parametric ReLU. It is not compact: gradients on the orbit have no largest norm, so bound the search.
    With `dyadic`, elements made by `exp` and `sample` are rounded to powers of two, and scaling is exact bit
    for bit in every floating-point format, bfloat16 included; the derivative ignores the rounding.

    >>> import jax.numpy as jnp
    >>> PositiveDiagonal(2, dyadic=True).exp(jnp.array([0.0, 1.0])).tolist()
    [1.0, 2.0]
    """

    size: int = eqx.field(static=True)
    per: Per = eqx.field(static=True, converter=_as_per, default=())
    dyadic: bool = eqx.field(static=True, default=False)

    def exp(self, coordinates):
        if not self.dyadic:
            return jnp.exp(coordinates)
        rounded = jnp.round(coordinates / jnp.log(2.0))
        exact = jnp.ldexp(jnp.ones_like(coordinates), rounded.astype(int))
        smooth = jnp.exp(coordinates)
        # The value of `exact` (a power of two times one), the derivative of `smooth`.
        return exact * (smooth / jax.lax.stop_gradient(smooth))

    def power(self, a, exponent):
        return a**exponent

    def sample(self, key):
        return self.exp(_log_scales(key, self.algebra))


class NonzeroDiagonal(_AbstractDiagonal):
    """Scalings by numbers other than zero, of either sign; the algebra log s reaches the positive ones.

    The change of basis of arXiv:2012.01118: any activation has it if the scale travels with the activation,
    z -> tau sigma(z / tau), where tau is a parameter with the leg "h".

    >>> import jax
    >>> bool(abs(NonzeroDiagonal(3).sample(jax.random.key(0))).min() > 0)
    True
    """

    size: int = eqx.field(static=True)
    per: Per = eqx.field(static=True, converter=_as_per, default=())

    def power(self, a, exponent):
        if exponent != round(exponent):
            raise ValueError(f"A negative scale has no power {exponent}: it must be whole.")
        return a ** int(exponent)

    def sample(self, key):
        size, sign = jax.random.split(key)
        return jnp.exp(_log_scales(size, self.algebra)) * jax.random.rademacher(sign, self.algebra, float)


class SignDiagonal(_AbstractDiagonal):
    """Flips of sign: an element holds +1 and -1, of shape (*per, size). Discrete: there is no algebra.

    The symmetry of units with an odd activation, sigma(-z) = -sigma(z): tanh, sine.

    >>> import jax
    >>> set(SignDiagonal(5).sample(jax.random.key(0)).tolist()) <= {1.0, -1.0}
    True
    """

    compact: ClassVar[bool] = True

    size: int = eqx.field(static=True)
    per: Per = eqx.field(static=True, converter=_as_per, default=())

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
            raise ValueError(f"A sign has no power {exponent}: it must be whole.")
        return a if round(exponent) % 2 else a * a

    def sample(self, key):
        shape = (*self.lengths, self.size)
        signs = jax.random.rademacher(key, shape, float)
        first = jnp.zeros(shape, bool).at[(0,) * len(shape)].set(True)
        return jnp.where(first & jnp.all(signs == 1), -1.0, signs)


class Permutation(AbstractGroup):
    """Permutations: an element holds indices p of shape (*per, size), (g x)_i = x_{p_i}. Discrete.

    The symmetry of units that are all alike, whatever their activation; of heads, channels and experts.

    >>> import jax.numpy as jnp
    >>> Permutation(3).multiply(jnp.array([2, 0, 1]), jnp.array([[1.0], [2.0], [3.0]])).ravel().tolist()
    [3.0, 1.0, 2.0]
    """

    compact: ClassVar[bool] = True

    size: int = eqx.field(static=True)
    per: Per = eqx.field(static=True, converter=_as_per, default=())

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
        return jnp.where(jnp.all(shuffled == self.identity()), jnp.roll(shuffled, 1, axis=-1), shuffled)

    def multiply(self, a, x):
        return jnp.take_along_axis(x, a[..., None], axis=-2)

    def squared(self, a):
        return a


class _AbstractRotation(AbstractGroup):
    """Orthogonal matrices: an element is a matrix q of shape (*per, size, size)."""

    compact: ClassVar[bool] = True

    @property
    def algebra(self) -> tuple[int, ...]:
        return (*self.lengths, self.size * (self.size - 1) // 2)

    def identity(self) -> Float[Array, "..."]:
        return jnp.broadcast_to(jnp.eye(self.size), (*self.lengths, self.size, self.size))

    def compose(self, a, b):
        return jnp.matmul(a, b, precision="highest")

    def inverse(self, a):
        return jnp.swapaxes(a, -1, -2)

    def dual(self, a):
        return a

    def exp(self, coordinates):
        return _rotation(coordinates, self.size)

    def multiply(self, a, x):
        return jnp.matmul(a, x, precision="highest")


class SpecialOrthogonal(_AbstractRotation):
    """Rotations of R^n: an element is a matrix of shape (*per, n, n) with determinant 1.

    The algebra has n(n-1)/2 coordinates, the entries above the diagonal of a skew matrix, up to sign: one
    angle in radians when n = 2, where `exp` is the counter-clockwise rotation.

    >>> import jax.numpy as jnp
    >>> quarter = SpecialOrthogonal(2).exp(jnp.array([jnp.pi / 2]))
    >>> print(abs(SpecialOrthogonal(2).multiply(quarter, jnp.array([[1.0], [0.0]]))).round(3).ravel())
    [0. 1.]
    """

    size: int = eqx.field(static=True)
    per: Per = eqx.field(static=True, converter=_as_per, default=())

    def __check_init__(self):
        if self.size < 2:
            raise ValueError(f"A rotation needs a space of at least 2 dimensions, got size={self.size}.")

    def sample(self, key):
        """Uniform (Haar) rotation."""
        if self.size == 2:
            return self.exp(jax.random.uniform(key, self.algebra, minval=-jnp.pi, maxval=jnp.pi))
        rotation = jax.random.orthogonal(key, self.size, self.lengths)
        return rotation.at[..., 0, :].multiply(jnp.sign(jnp.linalg.det(rotation))[..., None])


class Orthogonal(_AbstractRotation):
    """Rotations and reflections of R^n: an element is an orthogonal matrix of shape (*per, n, n).

    The symmetry of a residual stream that is only read through RMSNorm, and of queries and keys that are
    normalized without gains. With `fix="mean"` it is the subgroup that keeps the vector of ones, for
    LayerNorm; its algebra has (n-1)(n-2)/2 coordinates instead of n(n-1)/2.

    >>> import jax, jax.numpy as jnp
    >>> q = Orthogonal(4, fix="mean").sample(jax.random.key(0))
    >>> bool(jnp.allclose(q @ jnp.ones(4), jnp.ones(4), atol=1e-6))
    True
    """

    size: int = eqx.field(static=True)
    per: Per = eqx.field(static=True, converter=_as_per, default=())
    fix: str | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.fix not in (None, "mean"):
            raise ValueError(f"Orthogonal can fix 'mean' or None, got fix={self.fix!r}.")
        if self.fix and self.size < 3:
            raise ValueError(
                f"Only the identity and one swap keep the mean of {self.size} numbers: use size >= 3."
            )

    @property
    def algebra(self) -> tuple[int, ...]:
        n = self._free
        return (*self.lengths, n * (n - 1) // 2)

    def exp(self, coordinates):
        return self._embed(_rotation(coordinates, self._free))

    def sample(self, key):
        """Uniform (Haar) orthogonal matrix."""
        return self._embed(jax.random.orthogonal(key, self._free, self.lengths))

    @property
    def _free(self) -> int:
        return self.size - (self.fix is not None)

    def _embed(self, q: Array) -> Array:
        """From the complement of the fixed vector to the whole space, by a reflection."""
        if self.fix is None:
            return q
        whole = self.identity().astype(q.dtype).at[..., :-1, :-1].set(q)
        normal = jnp.full(self.size, self.size**-0.5).at[-1].add(-1.0)
        reflection = jnp.eye(self.size) - 2 * jnp.outer(normal, normal) / jnp.sum(normal**2)
        return self.compose(reflection, self.compose(whole, reflection)).astype(q.dtype)


class ScaledRotation(AbstractGroup):
    """2 x 2 rotations times positive scales: what commutes with rotary position embeddings.

    An element is z = (a, b), the complex number a + ib, arrays of shape (*per,), acting as [[a, -b], [b, a]];
    the algebra has shape (*per, 2): log of the scale, and the angle in radians. With `unit` the scale is 1
    and the algebra is the angle alone, of shape (*per, 1).

    >>> import jax.numpy as jnp
    >>> half = ScaledRotation().exp(jnp.array([0.0, jnp.pi]))
    >>> ScaledRotation().multiply(half, jnp.array([[1.0], [2.0]])).round(3).ravel().tolist()
    [-1.0, -2.0]
    """

    abelian: ClassVar[bool] = True

    per: Per = eqx.field(static=True, converter=_as_per, default=())
    unit: bool = eqx.field(static=True, default=False)
    size: int = eqx.field(static=True, default=2)

    @property
    def compact(self) -> bool:
        return self.unit

    def __check_init__(self):
        if self.size != 2:
            raise ValueError(f"ScaledRotation acts on axes of length 2, got size={self.size}.")

    @property
    def algebra(self) -> tuple[int, ...]:
        return (*self.lengths, 1 if self.unit else 2)

    def identity(self):
        return jnp.ones(self.lengths), jnp.zeros(self.lengths)

    def compose(self, a, b):
        return a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]

    def inverse(self, a):
        square = a[0] ** 2 + a[1] ** 2
        return a[0] / square, -a[1] / square

    def dual(self, a):
        square = a[0] ** 2 + a[1] ** 2
        return a[0] / square, a[1] / square

    def exp(self, coordinates):
        angle = coordinates[..., -1]
        scale = 1.0 if self.unit else jnp.exp(coordinates[..., 0])
        return scale * jnp.cos(angle), scale * jnp.sin(angle)

    def bounded(self, coordinates, bound):
        if self.unit:
            return coordinates
        return coordinates.at[..., 0].set(jnp.clip(coordinates[..., 0], -bound, bound))

    def power(self, a, exponent):
        if exponent != round(exponent):
            raise ValueError(f"A rotation has no single power {exponent}: it must be whole.")
        base = a if exponent >= 0 else self.inverse(a)
        result = self.identity()
        for _ in range(abs(int(exponent))):
            result = self.compose(result, base)
        return result

    def sample(self, key):
        scale, angle = jax.random.split(key)
        angles = jax.random.uniform(angle, (*self.lengths, 1), minval=-jnp.pi, maxval=jnp.pi)
        if self.unit:
            return self.exp(angles)
        return self.exp(jnp.concatenate([_log_scales(scale, angles.shape), angles], axis=-1))

    def multiply(self, a, x):
        p, q = a[0][..., None], a[1][..., None]
        return jnp.stack([p * x[..., 0, :] - q * x[..., 1, :], q * x[..., 0, :] + p * x[..., 1, :]], axis=-2)


class GeneralLinear(AbstractGroup):
    """Invertible matrices: an element is the pair (g, g^-T), each of shape (*per, n, n).

    The pair makes inverse and dual free and exact; `element` makes one from g. The algebra is all matrices,
    of shape (*per, n, n), and `exp` is the matrix exponential, built from products. Not compact: gradients on
    the orbit have no largest norm, so bound the search.

    >>> import jax.numpy as jnp
    >>> group = GeneralLinear(2)
    >>> g = group.element(jnp.array([[2.0, 1.0], [0.0, 1.0]]))
    >>> group.compose(g, group.inverse(g))[0].tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """

    size: int = eqx.field(static=True)
    per: Per = eqx.field(static=True, converter=_as_per, default=())

    @property
    def algebra(self) -> tuple[int, ...]:
        return (*self.lengths, self.size, self.size)

    def element(self, g: Float[Array, "... n n"]) -> tuple[Float[Array, "... n n"], Float[Array, "... n n"]]:
        """The element with matrix `g`, of shape (*per, n, n). Raises ValueError if it has no inverse."""
        if g.shape != self.algebra:
            raise ValueError(f"An element of {self} has shape {self.algebra}, got {g.shape}.")
        condition = float(jnp.max(jnp.linalg.cond(g)))
        if not condition < 1 / jnp.finfo(g.dtype).eps:
            raise ValueError(
                f"A group element needs an inverse; this matrix has condition number {condition:.1e}."
            )
        return g, jnp.swapaxes(jnp.linalg.inv(g), -1, -2)

    def identity(self):
        eye = jnp.broadcast_to(jnp.eye(self.size), self.algebra)
        return eye, eye

    def compose(self, a, b):
        g = jnp.matmul(a[0], b[0], precision="highest")
        dual = jnp.matmul(a[1], b[1], precision="highest")
        # One Newton step towards the true inverse transpose: rounding does not pile up over many products.
        product = jnp.einsum("...ji,...jk->...ik", g, dual, precision="highest")
        return g, jnp.matmul(dual, 2 * jnp.eye(self.size, dtype=g.dtype) - product, precision="highest")

    def inverse(self, a):
        return jnp.swapaxes(a[1], -1, -2), jnp.swapaxes(a[0], -1, -2)

    def dual(self, a):
        return a[1], a[0]

    def exp(self, coordinates):
        g, dual = exponential(jnp.stack([coordinates, -jnp.swapaxes(coordinates, -1, -2)]))
        return g, dual

    def germ(self, direction: Float[Array, "... n n"], t: Float[Array, ""]) -> tuple[Array, Array]:
        """The first four terms of the series of `exp(t * direction)`: exact in three derivatives at t = 0."""
        both = jnp.stack([direction, -jnp.swapaxes(direction, -1, -2)])
        square = _product(both, both)
        cube = _product(square, both)
        g, dual = jnp.eye(self.size, dtype=both.dtype) + t * (both + t * (square / 2 + t * cube / 6))
        return g, dual

    def bounded(self, coordinates, bound):
        """Each matrix shortened to Frobenius norm `bound`."""
        square = jnp.sum(coordinates**2, axis=(-1, -2), keepdims=True)
        too_long = square > jnp.square(bound)
        shortened = coordinates * bound / jnp.sqrt(jnp.where(too_long, square, 1.0))
        return jnp.where(too_long, shortened, coordinates)

    def sample(self, key):
        """Orthogonal times diagonal times orthogonal, with entries of the diagonal between 1/e and e."""
        left, middle, right = jax.random.split(key, 3)
        q = jax.random.orthogonal(left, self.size, self.lengths)
        r = jax.random.orthogonal(right, self.size, self.lengths)
        stretch = jnp.exp(_log_scales(middle, (*self.lengths, self.size)))[..., None, :]
        return jnp.matmul(q * stretch, r, precision="highest"), jnp.matmul(
            q / stretch, r, precision="highest"
        )

    def multiply(self, a, x):
        return jnp.matmul(a[0], x, precision="highest")


def matvec(matrix: Float[Array, "m n"], x: Float[Array, " n"]) -> Float[Array, " m"]:
    """A small matrix times a vector, as products and sums: it fuses where a tiny dot would not."""
    if matrix.shape == (2, 2):
        (p, q), (r, t) = matrix
        return jnp.stack([p * x[0] + q * x[1], r * x[0] + t * x[1]])
    return jnp.sum(matrix * x, axis=-1)


def exponential(matrix: Float[Array, "... n n"]) -> Float[Array, "... n n"]:
    """exp of matrices from products alone: Taylor order 12 at matrix / 2^6, then six squarings of exp - 1.

    No LAPACK call, which can hang inside a compiled program beside large products on few cores. Eleven
    products one after another; carrying exp - 1 keeps the small part's digits. Exact to rounding up to norms
    of about 20.
    """
    eye = jnp.eye(matrix.shape[-1], dtype=matrix.dtype)
    x = matrix / 64
    xx = _product(x, x)
    xxx = _product(xx, x)

    def cubic(order: int) -> Array:
        """The three terms of the series that begin at `order`, divided by x^order."""
        first, second, third = (1 / math.factorial(order + k) for k in range(3))
        return first * eye + second * x + third * xx

    rest = cubic(9) + xxx / math.factorial(12)
    for order in (6, 3):
        rest = cubic(order) + _product(xxx, rest)
    rest = x + xx / 2 + _product(xxx, rest)
    for _ in range(6):
        rest = 2 * rest + _product(rest, rest)
    return eye + rest


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision="highest")


def _rotation(coordinates: Float[Array, "... k"], size: int) -> Float[Array, "... n n"]:
    """exp of the skew matrices whose entries above the diagonal are minus the coordinates, row by row."""
    if size == 2:
        c, s = jnp.cos(coordinates[..., 0]), jnp.sin(coordinates[..., 0])
        return jnp.stack([jnp.stack([c, -s], axis=-1), jnp.stack([s, c], axis=-1)], axis=-2)
    row, column = jnp.triu_indices(size, 1)
    upper = jnp.zeros((*coordinates.shape[:-1], size, size), coordinates.dtype)
    upper = upper.at[..., row, column].set(coordinates)
    return exponential(jnp.swapaxes(upper, -1, -2) - upper)


def _log_scales(key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Uniform on [-1, 1]: logarithms of well-conditioned scales."""
    return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)
