"""Invertible maps h of R^n, with which `Pullback` conjugates rotations."""

from abc import abstractmethod

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

from symmetrax.groups._matrices import matvec


class AbstractMap(eqx.Module):
    """A bijection of R^n: `inverse(h(x)) = x` and `h(inverse(u)) = u`.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> h = sx.symmetry.Affine(jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.zeros(2))
    >>> h.inverse(h(jnp.array([1.0, 3.0]))).tolist()
    [1.0, 3.0]
    """

    @property
    @abstractmethod
    def size(self) -> int:
        """The dimension n."""

    @abstractmethod
    def __call__(self, x: Inexact[Array, " n"]) -> Inexact[Array, " n"]:
        """The image of `x`."""

    @abstractmethod
    def inverse(self, u: Inexact[Array, " n"]) -> Inexact[Array, " n"]:
        """The point whose image is `u`."""


class Affine(AbstractMap):
    """h(x) = matrix @ x + offset, with `matrix` of shape (n, n) and `offset` of shape (n,).

    The inverse has a closed form for n = 2 and uses a linear solve for larger n.

    >>> import jax.numpy as jnp
    >>> Affine(jnp.array([[1.0, 2.0], [2.0, 1.0]]), jnp.array([-7.0, -5.0]))(jnp.array([1.0, 3.0])).tolist()
    [0.0, 0.0]
    """

    matrix: Float[Array, "n n"]
    offset: Float[Array, " n"]

    @property
    def size(self) -> int:
        return self.offset.shape[0]

    def __call__(self, x: Inexact[Array, " n"]) -> Inexact[Array, " n"]:
        return matvec(self.matrix, x) + self.offset

    def inverse(self, u: Inexact[Array, " n"]) -> Inexact[Array, " n"]:
        if self.size != 2:
            return jnp.linalg.solve(self.matrix, u - self.offset)
        # Cramer's rule, which XLA fuses with the code around it, unlike a call of LAPACK.
        (a, b), (c, d) = self.matrix
        v, w = u - self.offset
        return jnp.stack([d * v - b * w, a * w - c * v]) / (a * d - b * c)


class Triangular(AbstractMap):
    """h(x, y) = (c(x) y + d(x), a x + b), the map of the plane behind Rosenbrock's function.

    `a` and `b` are numbers; `c` and `d` are the coefficients of polynomials in x, highest power first. The
    inverse is x = (v - b) / a, y = (u - d(x)) / c(x) for (u, v) = h(x, y): it exists where a and c(x) are
    nonzero, and moves points far where they are small.

    >>> import jax.numpy as jnp
    >>> h = Triangular(jnp.array(1.0), jnp.array(-1.0), jnp.array([-10.0]), jnp.array([10.0, 0.0, 0.0]))
    >>> h(jnp.array([2.0, 3.0])).tolist(), h.inverse(jnp.array([10.0, 1.0])).tolist()
    ([10.0, 1.0], [2.0, 3.0])
    """

    a: Float[Array, ""]
    b: Float[Array, ""]
    c: Float[Array, " i"]
    d: Float[Array, " j"]

    @property
    def size(self) -> int:
        return 2

    def __call__(self, x: Inexact[Array, "2"]) -> Inexact[Array, "2"]:
        return jnp.stack(
            [_polynomial(self.c, x[0]) * x[1] + _polynomial(self.d, x[0]), self.a * x[0] + self.b]
        )

    def inverse(self, u: Inexact[Array, "2"]) -> Inexact[Array, "2"]:
        x = (u[1] - self.b) / self.a
        return jnp.stack([x, (u[0] - _polynomial(self.d, x)) / _polynomial(self.c, x)])


def _polynomial(coefficients: Inexact[Array, " k"], x: Inexact[Array, ""]) -> Inexact[Array, ""]:
    """Evaluates a polynomial at x by Horner's rule."""
    # Unrolled, since XLA does not fuse the loop in `jnp.polyval`.
    value = coefficients[0]
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value
