"""What the drawings of the theory share: ellipses, statements under a condition, one program for all."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def turned(eigenvalues: tuple[float, float], degrees: float) -> Float[np.ndarray, "2 2"]:
    """The symmetric matrix with these eigenvalues, its eigenvectors turned from the axes by an angle.

    >>> turned((1.0, 4.0), 90.0).round(6).tolist()
    [[4.0, -0.0], [-0.0, 1.0]]
    """
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    basis = np.array([[c, -s], [s, c]])
    return basis @ np.diag(eigenvalues) @ basis.T


def level_set(
    matrix: Float[np.ndarray, "2 2"], angles: Float[np.ndarray, " k"], size: float = 1.0
) -> Float[np.ndarray, "k 2"]:
    """Points of {w: w' matrix w = size^2} for positive definite `matrix`, at angles in radians from the long
    toward the short axis, in the coordinates matrix^(1/2) w, in which it is a circle.

    >>> level_set(np.diag([1.0, 4.0]), np.array([0.0, np.pi / 2])).round(6).tolist()
    [[1.0, 0.0], [0.0, 0.5]]
    """
    values, basis = np.linalg.eigh(matrix)
    basis = basis * np.sign(basis[0, 0] or 1.0)
    basis[:, 1] *= np.sign(np.linalg.det(basis))
    return size * np.stack([np.cos(angles), np.sin(angles)], axis=-1) / np.sqrt(values) @ basis.T


def conditional(claim: str, source: str, condition: str, inside: float, outside: float) -> dict[str, str]:
    """A verdict on a claim that may need a condition, from the shares of cases in which it is true.

    "holds": true with and without the condition; "holds only if": always with, never without it; "holds if":
    always with, sometimes without it; else "fails".

    >>> conditional("x / x = 1", "school", "x is not zero", inside=1.0, outside=0.0)["outcome"]
    'holds only if'
    """
    outcome = {1.0: "holds", 0.0: "holds only if"}.get(outside, "holds if") if inside == 1 else "fails"
    why = f"{condition}: true in {100 * inside:.4g} % of the cases with this, {100 * outside:.4g} % without"
    return {"claim": claim, "source": source, "outcome": outcome, "why": why}


def at_once(
    function: Callable[..., dict[str, Array]], cases: dict[str, tuple[np.ndarray, ...]]
) -> dict[str, dict[str, np.ndarray]]:
    """Evaluate a compiled function of stacked arguments on all cases together, so that it is compiled once.

    >>> at_once(lambda x: {"square": x**2}, {"a": (np.ones(1),), "b": (np.array([2.0, 3.0]),)})["b"]
    {'square': array([4., 9.], dtype=float32)}
    """
    found = function(*(jnp.asarray(np.concatenate(stack)) for stack in zip(*cases.values(), strict=True)))
    ends = np.cumsum([len(case[0]) for case in cases.values()])[:-1]
    parts = {key: np.split(np.asarray(x), ends) for key, x in found.items()}
    return {name: {key: x[i] for key, x in parts.items()} for i, name in enumerate(cases)}
