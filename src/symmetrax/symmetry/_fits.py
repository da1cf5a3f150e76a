"""Least squares and well-conditioned matrices for the action of `ActivationGL`."""

from typing import Literal

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
from jaxtyping import Array, Bool, Float, Inexact, Key

from symmetrax.groups._inverse import inverse

Solver = Literal["qr", "svd", "gram"]


def least_squares(
    x: Inexact[Array, "n p"], y: Inexact[Array, "n q"], solver: Solver
) -> Inexact[Array, "p q"]:
    """The minimum-norm least-squares solution w of x w = y, that is x^+ y.

    >>> print(least_squares(jnp.array([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]), jnp.ones((3, 1)), "svd"))
    [[1. ]
     [0.5]]
    """
    n, p = x.shape
    adjoint = jnp.conj(x.T)
    if solver == "svd":
        return jnp.linalg.pinv(x) @ y
    if n == p:
        return inverse(x) @ y
    if solver == "gram":
        # In reverse mode, JAX 0.10 transposes the Cholesky factor of complex matrices incorrectly.
        kind = "her" if jnp.iscomplexobj(x) else "pos"
        if n < p:
            return adjoint @ jsl.solve(x @ adjoint, y, assume_a=kind)
        return jsl.solve(adjoint @ x, adjoint @ y, assume_a=kind)
    if n < p:
        q, r = jnp.linalg.qr(adjoint)
        return q @ jsl.solve_triangular(r, y, trans="C")
    q, r = jnp.linalg.qr(x)
    return jsl.solve_triangular(r, jnp.conj(q.T) @ y)


def with_one(x: Inexact[Array, "n p"], weight: Inexact[Array, "q r"]) -> Inexact[Array, "n r"]:
    """Features in the form that `weight` expects: with a column of ones if its last column is a bias.

    >>> print(with_one(jnp.array([[5.0, 6.0]]), jnp.zeros((4, 3))))
    [[5. 6. 1.]]
    """
    if x.shape[1] == weight.shape[1] - 1:
        return jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1)
    return x


def after_inverse(weight: Inexact[Array, "q r"], dual: Inexact[Array, "p p"]) -> Inexact[Array, "q r"]:
    """`weight` times g^-1, given g^-T, without changing a bias in the last column.

    >>> print(after_inverse(jnp.array([[4.0, 4.0, 7.0]]), jnp.diag(jnp.array([0.5, 0.25]))))
    [[2. 1. 7.]]
    """
    p = dual.shape[0]
    return jnp.concatenate([weight[:, :p] @ dual.T, weight[:, p:]], axis=1)


def well_conditioned(key: Key[Array, ""], size: int) -> tuple[Array, Array]:
    """A random matrix g of condition number at most e, and g^-T.

    >>> g, dual = well_conditioned(jax.random.key(0), 3)
    >>> bool(jnp.linalg.cond(g) < 2.72), bool(jnp.allclose(g @ dual.T, jnp.eye(3), atol=1e-5))
    (True, True)
    """
    left, middle, right = jax.random.split(key, 3)
    q, r = jax.random.orthogonal(left, size), jax.random.orthogonal(right, size)
    stretch = jnp.exp(jax.random.uniform(middle, (size,), minval=-0.5, maxval=0.5))
    with jax.default_matmul_precision("highest"):
        return (q * stretch) @ r, (q / stretch) @ r


def lost_rank(x: Inexact[Array, "n p"]) -> Bool[Array, ""]:
    """Whether a matrix is rank deficient to working precision; a matrix with NaN is.

    >>> bool(lost_rank(jnp.ones((2, 2)))), bool(lost_rank(jnp.eye(2)))
    (True, False)
    """
    values = jnp.linalg.svdvals(x)
    # Negated, so that a NaN counts as lost.
    return ~(values[-1] > values[0] * max(x.shape) * jnp.finfo(x.dtype).eps)


def rounding(x: Float[Array, "..."]) -> Float[Array, ""]:
    """The rounding tolerance: the square root of the machine precision.

    >>> print(rounding(jnp.ones(3)))
    0.00034526698
    """
    return jnp.sqrt(jnp.finfo(x.dtype).eps)
