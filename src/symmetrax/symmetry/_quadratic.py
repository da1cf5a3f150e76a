"""The linear maps that preserve a quadratic form: rotations of ellipses, boosts of hyperbolas."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, Key, PyTree

from symmetrax._keys import check_key
from symmetrax._matrices import regular, symmetric
from symmetrax.groups._exponentials import isometry, product, shortened, skew
from symmetrax.symmetry._base import AbstractLieSymmetry, Precondition, check_vector


class QuadraticForm(AbstractLieSymmetry):
    """Linear maps x -> root^-1 M root x that preserve f(x) = x' matrix x, for an invertible matrix.

    With matrix = Q diag(d) Q', root = Q diag(|d|)^(1/2) Q' and J = Q diag(sign d) Q', the elements are
    matrices M of shape (n, n) with M' J M = J, and

        exp(coordinates) = exp(J S),  S skew with -coordinates above its diagonal, row by row

    For a positive definite matrix these are the rotations R in x -> B^-1 R B x, with B the symmetric root of
    the matrix; the coordinates are n(n-1)/2 angles, in radians. For an indefinite matrix they include boosts:
    the group is O(p, q), orbits are unbounded, and a point can move to any distance at the same value. The
    action is linear, so a single gradient determines the gradient on the whole orbit. `exp` has a closed form
    for n = 2; for larger n, `bounded` shortens rotations to norm 20, or pi sqrt(n / 2) if that is longer (a
    full turn is 6.3), since rounding makes large angles inaccurate. The derivative with respect to `matrix`
    does not exist where eigenvalues have equal magnitude.

    **Errors:** ValueError for a matrix that is not square, not symmetric, not finite, or (unless it is
    traced) singular to working precision. Source: section 4.2 of arXiv:2504.15399, where n = 2 and the matrix
    is positive definite.

    >>> import jax.numpy as jnp
    >>> symmetry = QuadraticForm(jnp.array([[1.0, 0.0], [0.0, -2.0]]))
    >>> x = symmetry.act(symmetry.exp(jnp.array([-1.0])), jnp.array([1.0, 3.0]))
    >>> print(f"{x[0] ** 2 - 2 * x[1] ** 2:.3f} at distance {jnp.linalg.norm(x):.2f}")  # it was 3.16
    -17.000 at distance 8.51
    """

    linear: ClassVar[bool] = True
    reasons: ClassVar[tuple[str, ...]] = ("holds", "the matrix is singular to working precision")

    matrix: Float[Array, "n n"]
    root: Float[Array, "n n"]
    unroot: Float[Array, "n n"]
    signature: Float[Array, "n n"]
    #: The eigenvalues of the matrix, in ascending order.
    values: Float[Array, " n"]

    def __init__(self, matrix: Float[Array, "n n"]):
        matrix = jnp.asarray(matrix)
        if matrix.shape == (1, 1):
            raise ValueError(
                "`matrix` must be at least 2 x 2, got shape (1, 1): a form of one variable has no symmetry "
                "but the sign. Use a matrix of more variables."
            )
        matrix = symmetric("matrix", matrix, invertible=True)
        # Decomposed once, here: the action, `exp` and `holds` are products alone.
        values, axes = jnp.linalg.eigh(matrix)
        sizes = jnp.sqrt(jnp.abs(values))
        self.matrix = matrix
        self.root = product(axes * sizes[None], axes.T)
        self.unroot = product(axes / sizes[None], axes.T)
        self.signature = product(axes * jnp.sign(values)[None], axes.T)
        self.values = values

    @property
    def size(self) -> int:
        """The dimension n."""
        return len(self.matrix)

    @property
    def algebra(self) -> tuple[int, ...]:
        return (self.size * (self.size - 1) // 2,)

    def identity(self) -> Float[Array, "n n"]:
        return jnp.eye(self.size, dtype=self.matrix.dtype)

    def compose(self, a: Float[Array, "n n"], b: Float[Array, "n n"]) -> Float[Array, "n n"]:
        return product(a, b)

    def inverse(self, a: Float[Array, "n n"]) -> Float[Array, "n n"]:
        return product(self.signature, product(a.T, self.signature))

    def sample(self, key: Key[Array, ""]) -> Float[Array, "n n"]:
        check_key(key)
        return self.exp(jax.random.normal(key, self.algebra, self.matrix.dtype))

    def exp(self, coordinates: Float[Array, " k"]) -> Float[Array, "n n"]:
        coordinates = coordinates.astype(self.matrix.dtype)
        if self.size > 2:
            return isometry(coordinates, self.size, self.signature)
        # The square of the generator is -det J times the square of the coordinate.
        t, quarter = coordinates[0], skew(jnp.ones_like(coordinates), 2)
        definite = jnp.linalg.det(self.signature) > 0
        boost = jnp.where(definite, 0.0, t)  # avoids overflow in the branch not taken
        even = jnp.where(definite, jnp.cos(t), jnp.cosh(boost))
        odd = jnp.where(definite, jnp.sin(t), jnp.sinh(boost))
        return even * self.identity() + odd * product(self.signature, quarter)

    def bounded(self, coordinates: Float[Array, " k"], bound) -> Float[Array, " k"]:
        """Shortens rotations to a few turns; for an indefinite matrix, clips every coordinate to `bound`."""
        # The trace counts signs: +-n if all eigenvalues have one sign, else at most n - 2 in size.
        definite = jnp.abs(jnp.trace(self.signature)) > self.size - 1
        return jnp.where(definite, shortened(coordinates, self.size), jnp.clip(coordinates, -bound, bound))

    def zero(self) -> Float[Array, " k"]:
        return jnp.zeros(self.algebra, self.matrix.dtype)

    def act(self, a: Float[Array, "n n"], params: Inexact[Array, " n"], batch=None) -> Inexact[Array, " n"]:
        return self.unroot @ (a @ (self.root @ params))

    def transport_gradient(self, a, params, cotangent, batch=None) -> Inexact[Array, " n"]:
        return self.root @ (self.inverse(a).T @ (self.unroot @ cotangent))

    def check(self, params: PyTree) -> None:
        check_vector(self, params, self.size)

    def holds(self, params: Inexact[Array, " n"], batch=None) -> Precondition:
        sizes = jnp.abs(self.values)
        residual = jnp.finfo(self.matrix.dtype).eps * jnp.max(sizes) / jnp.min(sizes)
        return Precondition(jnp.where(regular(self.values), 0, 1), residual)
