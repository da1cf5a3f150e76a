"""The sum of a matrix's singular values, from matrix products alone."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

from symmetrax._tree import magnitude, pairing, replicated, safe_norm, widened

# Odd polynomials a s + b s^3 + c s^5 of singular values in (0, 1.2). The first multiplies small values by 3.4
# and maps the others to between 0.68 and 1.14; the second takes those to 1, cubing the error each time.
GROW, SETTLE = (3.4445, -4.7750, 2.0315), (1.875, -1.25, 0.375)


def nuclear_norm(matrix: Inexact[Array, "m n"]) -> Float[Array, ""]:
    """Sum of the singular values of `matrix` = U S V': its inner product with its polar factor U V'.

    The polar factor comes from a Newton-Schulz iteration. It needs neither LAPACK nor gaps between singular
    values, can be batched, and runs at the speed of matrix products: 17 rounds in single precision and 34 in
    double, of three products each. Singular values below machine precision times the norm may be missed. The
    derivative is U V' on the range of `matrix`, and between that and zero where singular values are rounding
    errors: a subgradient, finite at every rank and zero at the zero matrix. Source: the coefficients of Muon
    (section 2 of arXiv:2502.16982), with convergent steps added.

    >>> import jax.numpy as jnp
    >>> round(float(nuclear_norm(jnp.array([[3.0, 0.0], [0.0, -4.0]]))), 5)
    7.0
    """
    matrix = replicated(widened(matrix))
    return _pair(matrix, _polar(matrix))


@jax.custom_jvp
def _pair(matrix: Inexact[Array, "m n"], factor: Inexact[Array, "m n"]) -> Float[Array, ""]:
    return pairing(factor, matrix)


@_pair.defjvp
def _pair_jvp(primals, tangents):
    # The polar factor maximizes the sum among matrices of spectral norm 1: its own derivative adds nothing.
    matrix, factor = primals
    return _pair(matrix, factor), pairing(factor, tangents[0])


def _polar(matrix: Inexact[Array, "m n"]) -> Inexact[Array, "m n"]:
    """U V' of the singular value decomposition, restricted to the range of `matrix`."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    precision = float(jnp.finfo(matrix.dtype).eps)
    growing = math.ceil(math.log(1 / precision) / math.log(GROW[0]))
    rounds = jnp.array([GROW] * growing + [SETTLE] * 4, matrix.dtype)

    def sharpen(x, coefficients):
        a, b, c = coefficients
        gram = jnp.matmul(x, x.conj().T, precision="highest")
        mixed = b * gram + c * jnp.matmul(gram, gram, precision="highest")
        return a * x + jnp.matmul(mixed, x, precision="highest"), None

    # Divide twice, so that the norm cannot overflow. The factor does not depend on the scale.
    for size in (magnitude, safe_norm):
        scale = jax.lax.stop_gradient(size(wide))
        wide = wide / jnp.where(scale == 0, 1, scale)
    factor, _ = jax.lax.scan(sharpen, wide, rounds)
    return factor if matrix.shape[0] <= matrix.shape[1] else factor.T
