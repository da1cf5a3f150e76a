"""Checks on matrices that people pass in: square, finite, symmetric, invertible."""

import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from symmetrax._tree import check_finite


def symmetric(name: str, matrix: Float[Array, "n n"], *, invertible: bool = False) -> Float[Array, "n n"]:
    """`matrix`, made symmetric to the last digit.

    Raises ValueError, with `name`, if it is not square; and, unless it is traced, if it is not finite, not
    symmetric to half the digits, or (with `invertible`) singular to working precision.
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"`{name}` must be a square matrix, got shape {matrix.shape}.")
    if not isinstance(matrix, Tracer):
        check_finite(matrix, f"use as `{name}`")
        _check_symmetric(name, np.asarray(matrix))
        if invertible:
            _check_invertible(name, np.asarray(matrix))
    return (matrix + matrix.T) / 2


def _check_symmetric(name: str, matrix: np.ndarray) -> None:
    skew = np.abs(matrix - matrix.T)
    tolerance = np.sqrt(np.finfo(matrix.dtype).eps) * np.max(np.abs(matrix), initial=0.0)
    if np.max(skew, initial=0.0) > tolerance:
        i, j = np.unravel_index(np.argmax(skew), matrix.shape)
        raise ValueError(
            f"`{name}` must be symmetric, but entry ({i}, {j}) is {matrix[i, j]} and ({j}, {i}) is "
            f"{matrix[j, i]}. If rounding is the cause, or only x' m x matters, pass (m + m.T) / 2."
        )


def _check_invertible(name: str, matrix: np.ndarray) -> None:
    sizes = np.abs(np.linalg.eigvalsh(matrix))
    if not np.min(sizes) > np.finfo(matrix.dtype).eps * np.max(sizes):
        raise ValueError(
            f"`{name}` is singular to working precision: the sizes of its eigenvalues go from "
            f"{np.min(sizes):.1e} to {np.max(sizes):.1e} in {matrix.dtype}, so it has no inverse. Add a "
            "small multiple of the identity, or use float64."
        )
