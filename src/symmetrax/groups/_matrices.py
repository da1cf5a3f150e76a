"""Groups of dense matrices: rotations, scaled rotations and general linear groups."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

from symmetrax.groups._diagonal import AbstractGroup, Per, as_per, log_scales
from symmetrax.groups._eigenvectors import eigenvectors
from symmetrax.groups._exponentials import (
    exponential_pair,
    exponential_pair_or_nan,
    isometry,
    product,
    shortened,
)


class _AbstractRotation(AbstractGroup):
    """Orthogonal matrices: an element is an array q of shape (*per, size, size)."""

    compact: ClassVar[bool] = True
    rotates: ClassVar[bool] = True

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

    def bounded(self, coordinates, bound):
        """Shortens long coordinates, which give no further elements and lose precision in their angles."""
        return shortened(coordinates, self.size)

    def diagonalizing(self, moment):
        return eigenvectors(moment)

    def multiply_squares(self, a, x):
        return jnp.matmul(a**2, x, precision="highest")

    def multiply(self, a, x):
        return jnp.matmul(a, x, precision="highest")


class SpecialOrthogonal(_AbstractRotation):
    """Rotations of R^n: an element has shape (*per, n, n) and determinant 1.

    The algebra has n(n-1)/2 coordinates, which up to sign are the entries above the diagonal of a
    skew-symmetric matrix. For n = 2 this is an angle in radians, and `exp` rotates counterclockwise.

    >>> import jax.numpy as jnp
    >>> quarter = SpecialOrthogonal(2).exp(jnp.array([jnp.pi / 2]))
    >>> print(abs(SpecialOrthogonal(2).multiply(quarter, jnp.array([[1.0], [0.0]]))).round(3).ravel())
    [0. 1.]
    """

    size: int = eqx.field(static=True)
    per: Per = eqx.field(static=True, converter=as_per, default=())

    def __check_init__(self):
        if self.size < 2:
            raise ValueError(
                f"A rotation needs a space of at least 2 dimensions, got size={self.size}: use Orthogonal, "
                "which has the reflection."
            )

    def sample(self, key):
        """A uniformly (Haar) distributed rotation."""
        if self.size == 2:
            return self.exp(jax.random.uniform(key, self.algebra, minval=-jnp.pi, maxval=jnp.pi))
        # Haar on O(n); negating a row of the reflections makes it Haar on SO(n).
        rotation = jax.random.orthogonal(key, self.size, self.lengths)
        return rotation.at[..., 0, :].multiply(jnp.sign(jnp.linalg.det(rotation))[..., None])


class Orthogonal(_AbstractRotation):
    """Rotations and reflections of R^n: an element is orthogonal, of shape (*per, n, n).

    The symmetry of a residual stream that is read only through RMSNorm, and of queries and keys that are
    normalized without gains. With `fix="mean"`, for LayerNorm, it is the subgroup that fixes the vector of
    ones; its algebra has (n-1)(n-2)/2 coordinates instead of n(n-1)/2.

    >>> import jax, jax.numpy as jnp
    >>> q = Orthogonal(4, fix="mean").sample(jax.random.key(0))
    >>> bool(jnp.allclose(q @ jnp.ones(4), jnp.ones(4), atol=1e-6))
    True
    """

    size: int = eqx.field(static=True)
    per: Per = eqx.field(static=True, converter=as_per, default=())
    fix: str | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.fix not in (None, "mean"):
            raise ValueError(f"`fix` must be 'mean' or None, got {self.fix!r}.")
        if self.fix and self.size < 3:
            raise ValueError(
                f"fix='mean' needs size >= 3, got size={self.size}: no rotation preserves the mean of fewer "
                "numbers. Use Permutation for the swap of two."
            )

    @property
    def algebra(self) -> tuple[int, ...]:
        n = self._free
        return (*self.lengths, n * (n - 1) // 2)

    def exp(self, coordinates):
        return self._embed(_rotation(coordinates, self._free))

    def bounded(self, coordinates, bound):
        return shortened(coordinates, self._free)

    def sample(self, key):
        """A uniformly (Haar) distributed orthogonal matrix; for size 1, the reflection."""
        if self.size == 1:
            return -self.identity()
        return self._embed(jax.random.orthogonal(key, self._free, self.lengths))

    def diagonalizing(self, moment):
        """With `fix="mean"`, diagonal up to the fixed vector, in the reflection that `exp` uses as well."""
        if self.fix is None:
            return eigenvectors(moment)
        inside = self._reflected(moment)[..., :-1, :-1]
        return self._embed(eigenvectors(inside))

    @property
    def _free(self) -> int:
        return self.size - (self.fix is not None)

    def __str__(self) -> str:
        return super().__str__() if self.fix is None else f"{super().__str__()[:-1]}, fix={self.fix!r})"

    def _embed(self, q: Array) -> Array:
        """Embeds an orthogonal map of the fixed vector's complement in the whole space, by a reflection."""
        if self.fix is None:
            return q
        return self._reflected(self.identity().astype(q.dtype).at[..., :-1, :-1].set(q))

    def _reflected(self, matrix: Array) -> Array:
        """The same map with the normalized vector of ones and the last axis exchanged."""
        normal = jnp.full(self.size, self.size**-0.5).at[-1].add(-1.0)
        reflection = jnp.eye(self.size) - 2 * jnp.outer(normal, normal) / jnp.sum(normal**2)
        return self.compose(reflection, self.compose(matrix, reflection)).astype(matrix.dtype)


class ScaledRotation(AbstractGroup):
    """2 x 2 rotations times positive scales, which commute with rotary position embeddings.

    An element is a pair z = (a, b) of arrays of shape (*per,) for the complex number a + ib, acting as
    [[a, -b], [b, a]]. The algebra has shape (*per, 2): the log of the scale, and the angle in radians. With
    `unit`, the scale is 1 and the algebra is just the angle, of shape (*per, 1).

    >>> import jax.numpy as jnp
    >>> half = ScaledRotation().exp(jnp.array([0.0, jnp.pi]))
    >>> ScaledRotation().multiply(half, jnp.array([[1.0], [2.0]])).round(3).ravel().tolist()
    [-1.0, -2.0]
    """

    abelian: ClassVar[bool] = True
    rotates: ClassVar[bool] = True

    per: Per = eqx.field(static=True, converter=as_per, default=())
    unit: bool = eqx.field(static=True, default=False)
    size: int = eqx.field(static=True, default=2)

    @property
    def compact(self) -> bool:
        return self.unit

    def __check_init__(self):
        if self.size != 2:
            raise ValueError(
                f"ScaledRotation acts on axes of length 2, got size={self.size}: leave `size` out, and "
                "count pairs by `per`."
            )

    @property
    def algebra(self) -> tuple[int, ...]:
        return (*self.lengths, 1 if self.unit else 2)

    def __str__(self) -> str:
        return f"{super().__str__()[:-1]}, unit=True)" if self.unit else super().__str__()

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
            raise ValueError(
                f"Scaled rotations have only whole powers, got {exponent} (other powers have several "
                "values): use a whole power."
            )
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
        return self.exp(jnp.concatenate([log_scales(scale, angles.shape), angles], axis=-1))

    def diagonalizing(self, moment):
        q = eigenvectors(moment)
        return q[..., 0, 0], q[..., 1, 0]

    def multiply_squares(self, a, x):
        p, q = a[0][..., None] ** 2, a[1][..., None] ** 2
        return jnp.stack([p * x[..., 0, :] + q * x[..., 1, :], q * x[..., 0, :] + p * x[..., 1, :]], axis=-2)

    def multiply(self, a, x):
        p, q = a[0][..., None], a[1][..., None]
        return jnp.stack([p * x[..., 0, :] - q * x[..., 1, :], q * x[..., 0, :] + p * x[..., 1, :]], axis=-2)


class GeneralLinear(AbstractGroup):
    """Invertible matrices: an element is a pair (g, g^-T), each of shape (*per, n, n).

    Storing the pair makes inverse and dual free and exact; use `element` to make it from g. The algebra is
    all matrices of shape (*per, n, n), and `exp` is the matrix exponential, computed from products alone: NaN
    where g is too ill-conditioned for the precision of its dtype. The group is not compact and gradient norms
    are unbounded on the orbit, so bound the search.

    >>> import jax.numpy as jnp
    >>> group = GeneralLinear(2)
    >>> g = group.element(jnp.array([[2.0, 1.0], [0.0, 1.0]]))
    >>> group.compose(g, group.inverse(g))[0].tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """

    rotates: ClassVar[bool] = True

    size: int = eqx.field(static=True)
    per: Per = eqx.field(static=True, converter=as_per, default=())

    @property
    def algebra(self) -> tuple[int, ...]:
        return (*self.lengths, self.size, self.size)

    def element(self, g: Float[Array, "... n n"]) -> tuple[Float[Array, "... n n"], Float[Array, "... n n"]]:
        """The element with matrix `g` of shape (*per, n, n). Raises ValueError if `g` is singular."""
        if g.shape != self.algebra:
            raise ValueError(f"`g` must have shape {self.algebra}, as an element of {self}, got {g.shape}.")
        condition = float(jnp.max(jnp.linalg.cond(g)))
        if not condition < 1 / jnp.finfo(g.dtype).eps:
            raise ValueError(
                "`g` must be invertible to working precision, got a matrix of condition number "
                f"{condition:.1e} in {g.dtype}: use a better conditioned matrix, or float64."
            )
        return g, jnp.swapaxes(jnp.linalg.inv(g), -1, -2)

    def identity(self):
        eye = jnp.broadcast_to(jnp.eye(self.size), self.algebra)
        return eye, eye

    def compose(self, a, b):
        g = jnp.matmul(a[0], b[0], precision="highest")
        dual = jnp.matmul(a[1], b[1], precision="highest")
        # A Newton step towards the true inverse transpose keeps rounding from accumulating over products.
        product = jnp.einsum("...ji,...jk->...ik", g, dual, precision="highest")
        return g, jnp.matmul(dual, 2 * jnp.eye(self.size, dtype=g.dtype) - product, precision="highest")

    def inverse(self, a):
        return jnp.swapaxes(a[1], -1, -2), jnp.swapaxes(a[0], -1, -2)

    def dual(self, a):
        return a[1], a[0]

    def exp(self, coordinates):
        return self._element(exponential_pair_or_nan(coordinates))

    def exp_within(self, coordinates: Float[Array, "... n n"], max_norm: float) -> tuple[Array, Array]:
        """`exp` of matrices with norms up to `max_norm`; a smaller `max_norm` needs fewer products."""
        return self._element(exponential_pair(coordinates, max_norm))

    @staticmethod
    def _element(pair: tuple[Array, Array]) -> tuple[Array, Array]:
        """Makes an element from a matrix and its inverse."""
        g, inverse = pair
        return g, jnp.swapaxes(inverse, -1, -2)

    def jet(self, direction: Float[Array, "... n n"], t: Float[Array, ""]) -> tuple[Array, Array]:
        """The first four terms of the series of `exp(t * direction)`: exact to third derivatives at t = 0."""
        both = jnp.stack([direction, -jnp.swapaxes(direction, -1, -2)])
        square = product(both, both)
        cube = product(square, both)
        g, dual = jnp.eye(self.size, dtype=both.dtype) + t * (both + t * (square / 2 + t * cube / 6))
        return g, dual

    def bounded(self, coordinates, bound):
        """Shortens each matrix to a Frobenius norm of at most `bound`."""
        # The root is taken only where it is needed: its derivative at zero is infinite.
        square = jnp.sum(coordinates**2, axis=(-1, -2), keepdims=True)
        too_long = square > jnp.square(bound)
        shortened = coordinates * bound / jnp.sqrt(jnp.where(too_long, square, 1.0))
        return jnp.where(too_long, shortened, coordinates)

    def sample(self, key):
        """Orthogonal times diagonal times orthogonal, with diagonal entries between 1/e and e."""
        left, middle, right = jax.random.split(key, 3)
        q = jax.random.orthogonal(left, self.size, self.lengths)
        r = jax.random.orthogonal(right, self.size, self.lengths)
        stretch = jnp.exp(log_scales(middle, (*self.lengths, self.size)))[..., None, :]
        return jnp.matmul(q * stretch, r, precision="highest"), jnp.matmul(
            q / stretch, r, precision="highest"
        )

    def diagonalizing(self, moment):
        q = eigenvectors(moment)
        return q, q

    def multiply_squares(self, a, x):
        return jnp.matmul(a[0] ** 2, x, precision="highest")

    def multiply(self, a, x):
        return jnp.matmul(a[0], x, precision="highest")


def matvec(matrix: Float[Array, "m n"], x: Inexact[Array, " n"]) -> Inexact[Array, " m"]:
    """A small matrix times a vector.

    >>> print(matvec(jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([1.0, -1.0])))
    [-1. -1.]
    """
    # As products and sums, which XLA fuses with the code around them, unlike a dot.
    if matrix.shape == (2, 2):
        (p, q), (r, t) = matrix
        return jnp.stack([p * x[0] + q * x[1], r * x[0] + t * x[1]])
    return jnp.sum(matrix * x, axis=-1)


def _rotation(coordinates: Float[Array, "... k"], size: int) -> Float[Array, "... n n"]:
    """exp of `skew` matrices, in closed form for n = 2."""
    if size == 2:
        c, s = jnp.cos(coordinates[..., 0]), jnp.sin(coordinates[..., 0])
        return jnp.stack([jnp.stack([c, -s], axis=-1), jnp.stack([s, c], axis=-1)], axis=-2)
    return isometry(coordinates, size)
