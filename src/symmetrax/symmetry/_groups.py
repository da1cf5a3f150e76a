"""Matrix groups acting on one axis: an element multiplies vectors of length `size`."""

from abc import abstractmethod

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree


class AbstractGroup(eqx.Module):
    """A group of matrices; see `AbstractSymmetry` for what the operations mean."""

    @abstractmethod
    def identity(self) -> PyTree: ...

    @abstractmethod
    def compose(self, a: PyTree, b: PyTree) -> PyTree: ...

    @abstractmethod
    def inverse(self, a: PyTree) -> PyTree: ...

    @abstractmethod
    def sample(self, key: Key[Array, ""]) -> PyTree: ...

    @abstractmethod
    def multiply(self, a: PyTree, x: Float[Array, " n"]) -> Float[Array, " n"]: ...


class SpecialOrthogonal(AbstractGroup):
    """Rotations of R^n: an element is a matrix of shape (n, n) with determinant 1.

    The algebra has n(n-1)/2 coordinates, the entries above the diagonal of a skew matrix, up to sign: one
    angle in radians when n = 2, where `exp` is the counter-clockwise rotation.

    >>> import jax.numpy as jnp
    >>> quarter = SpecialOrthogonal(2).exp(jnp.array([jnp.pi / 2]))
    >>> print(abs(SpecialOrthogonal(2).multiply(quarter, jnp.array([1.0, 0.0]))).round(3))
    [0. 1.]
    """

    size: int = eqx.field(static=True)

    def __check_init__(self):
        if self.size < 2:
            raise ValueError(f"A rotation needs a space of at least 2 dimensions, got size={self.size}.")

    @property
    def algebra(self) -> tuple[int]:
        """Shape of the coordinates: (n(n-1)/2,)."""
        return (self.size * (self.size - 1) // 2,)

    def identity(self) -> Float[Array, "n n"]:
        return jnp.eye(self.size)

    def compose(self, a: Float[Array, "n n"], b: Float[Array, "n n"]) -> Float[Array, "n n"]:
        return jnp.matmul(a, b, precision="highest")

    def inverse(self, a: Float[Array, "n n"]) -> Float[Array, "n n"]:
        return a.T

    def exp(self, coordinates: Float[Array, " k"]) -> Float[Array, "n n"]:
        if self.size == 2:
            c, s = jnp.cos(coordinates[0]), jnp.sin(coordinates[0])
            return jnp.stack([jnp.stack([c, -s]), jnp.stack([s, c])])
        above = jnp.triu_indices(self.size, 1)
        upper = jnp.zeros((self.size, self.size), coordinates.dtype).at[above].set(coordinates)
        return _exponential(upper.T - upper)

    def sample(self, key: Key[Array, ""]) -> Float[Array, "n n"]:
        """Uniform (Haar) rotation."""
        if self.size == 2:
            return self.exp(jax.random.uniform(key, (1,), minval=-jnp.pi, maxval=jnp.pi))
        rotation = jax.random.orthogonal(key, self.size)
        return rotation.at[0].multiply(jnp.sign(jnp.linalg.det(rotation)))

    def multiply(self, a: Float[Array, "n n"], x: Float[Array, " n"]) -> Float[Array, " n"]:
        return matvec(a, x)


def matvec(matrix: Float[Array, "m n"], x: Float[Array, " n"]) -> Float[Array, " m"]:
    """A small matrix times a vector, as products and sums: it fuses where a tiny dot would not."""
    if matrix.shape == (2, 2):
        (p, q), (r, t) = matrix
        return jnp.stack([p * x[0] + q * x[1], r * x[0] + t * x[1]])
    return jnp.sum(matrix * x, axis=-1)


def _exponential(matrix: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """exp of a matrix from products alone: Taylor order 8 at matrix / 2^10, then ten squarings of exp - 1.

    No LAPACK call, which can hang inside a compiled program beside large products on few cores. Carrying
    exp - 1 keeps the small part's digits.
    """
    small = matrix / 1024
    rest = small / 8
    for order in range(7, 0, -1):
        rest = (small + small @ rest) / order
    for _ in range(10):
        rest = 2 * rest + rest @ rest
    return jnp.eye(matrix.shape[0], dtype=matrix.dtype) + rest
