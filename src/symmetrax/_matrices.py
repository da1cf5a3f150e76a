"""Validation of matrices and vectors passed by users: shape, finiteness, symmetry, invertibility."""

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from symmetrax._tree import check_finite

#: Eigenvalues smaller than this many rounding errors of the largest one, times the dimension, count as zero.
SLACK = 10


def symmetric(name: str, matrix: Float[Array, "n n"], *, invertible: bool = False) -> Float[Array, "n n"]:
    """Converts `matrix` to floating point and makes it exactly symmetric.

    Raises ValueError, naming `name`, if it is not square; and, unless it is traced, if it is not finite, not
    symmetric to half the digits, or (with `invertible`) singular to working precision.

    >>> symmetric("hessian", jnp.array([[1.0, 2.0], [0.0, 1.0]]))
    Traceback (most recent call last):
    ValueError: `hessian` must be symmetric, but entry (0, 1) is 2.0 and (1, 0) is 0.0. ...
    """
    matrix = floating(matrix)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.size == 0:
        raise ValueError(f"`{name}` must be a square matrix, got shape {matrix.shape}.")
    if not isinstance(matrix, Tracer):
        check_finite(matrix, f"use as `{name}`")
        _check_symmetric(name, np.asarray(matrix))
        if invertible:
            _check_invertible(name, np.asarray(matrix))
    return (matrix + matrix.T) / 2  # eigenvalue solvers read one triangle; derivatives then reach both


def vector(name: str, value: Float[Array, " n"], size: int) -> Float[Array, " n"]:
    """Converts `value` to floating point.

    Raises ValueError, naming `name`, if it does not have `size` entries or, unless it is traced, if they are
    not finite.

    >>> vector("gradient", jnp.ones(3), 2)
    Traceback (most recent call last):
    ValueError: `gradient` must have shape (2,), got (3,).
    """
    value = floating(value)
    if value.shape != (size,):
        raise ValueError(f"`{name}` must have shape ({size},), got {value.shape}.")
    check_finite(value, f"use as `{name}`")
    return value


def floating(value: Array | float) -> Array:
    """Converts integers to floats; floats stay unchanged.

    >>> floating(jnp.array([1, 2])).dtype, floating(jnp.ones(2, jnp.bfloat16)).dtype
    (dtype('float32'), dtype(bfloat16))
    """
    value = jnp.asarray(value)
    return value if jnp.issubdtype(value.dtype, jnp.floating) else value.astype(float)


def regular(values: Float[Array, " n"]) -> Bool[Array, ""]:
    """Returns whether no eigenvalue is zero to working precision.

    >>> print(regular(jnp.array([-1.0, 1e-3])), regular(jnp.array([-1.0, 1e-9])))
    True False
    """
    sizes = jnp.abs(values)
    return jnp.min(sizes) > SLACK * len(values) * jnp.finfo(values.dtype).eps * jnp.max(sizes)


def _check_symmetric(name: str, matrix: np.ndarray) -> None:
    skew = np.abs(matrix - matrix.T)
    if np.max(skew) > np.sqrt(np.finfo(matrix.dtype).eps) * np.max(np.abs(matrix)):
        i, j = np.unravel_index(np.argmax(skew), matrix.shape)
        raise ValueError(
            f"`{name}` must be symmetric, but entry ({i}, {j}) is {matrix[i, j]} and ({j}, {i}) is "
            f"{matrix[j, i]}. If rounding is the cause, or only x' m x matters, pass (m + m.T) / 2."
        )


def _check_invertible(name: str, matrix: np.ndarray) -> None:
    # As `regular`, which runs under `jit` too, but in NumPy: the message shows the eigenvalues.
    sizes = np.abs(np.linalg.eigvalsh(matrix))
    if not np.min(sizes) > SLACK * len(matrix) * np.finfo(matrix.dtype).eps * np.max(sizes):
        raise ValueError(
            f"`{name}` is singular to working precision: the sizes of its eigenvalues go from "
            f"{np.min(sizes):.1e} to {np.max(sizes):.1e} in {matrix.dtype}, so it has no inverse. Add a "
            "small multiple of the identity, or use float64."
        )
