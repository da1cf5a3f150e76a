"""Infers the symmetry group of hidden units from the values of their activation."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from symmetrax.groups._diagonal import AbstractGroup, Permutation, PositiveDiagonal, SignDiagonal

#: Makes the group of a space from its size: a group class, or any function.
MakeGroup = Callable[[int], AbstractGroup]

#: The prefix of the names of an activation's own parameters.
OWN = "activation."

# Points on both sides of 1, and scales far from it, so that a function that is homogeneous only near zero, or
# only for large arguments, does not pass.
_POINTS = np.array([0.02, 0.3, 1.0, 2.5, 7.0], np.float32)
_SCALES = np.array([0.25, 3.0, 40.0], np.float32)
_DEGREES = (1, 2, 3, 0.5)


def chosen_group(params: PyTree, group: MakeGroup | None, degree: float | int) -> MakeGroup:
    """Checks `group` against `params.activation` or infers a group from it; scalings without an activation.

    Raises ValueError, explaining the options, if the activation has neither scalings nor signs, or not the
    group asked for; and, unless you name a `group`, if the activation cannot be called on a number or was
    filtered out of the model.

    >>> import equinox as eqx
    >>> model = eqx.nn.MLP(3, 2, width_size=5, depth=1, activation=jnp.tanh, key=jax.random.key(0))
    >>> chosen_group(model, None, 1).__name__
    'SignDiagonal'
    """
    activation = getattr(params, "activation", None)
    # `known` is None where there is nothing to test: then your `group` is trusted.
    known = None if activation is None else _symmetries(activation)
    if known is None:
        if group is None and activation is None and hasattr(params, "activation"):
            raise ValueError(
                "The `activation` of these parameters is None: filtering leaves only the arrays of a model. "
                "Pass the whole model, so that the symmetry can be inferred from its activation. Or: "
                f"{_ADVICE}"
            )
        if group is None and activation is not None:
            raise ValueError(
                f"The activation {_title(activation)} cannot be called on a number here, so its symmetry is "
                f"unknown. {_ADVICE}"
            )
        return PositiveDiagonal if group is None else group
    odd, degrees = known
    if group is None:
        if degree in degrees:
            return PositiveDiagonal
        if odd and degree == 1:
            return SignDiagonal
    elif (group is not PositiveDiagonal or degree in degrees) and (group is not SignDiagonal or odd):
        return group
    has = [f"scalings with degree={found}" for found in degrees] + ["flips of sign"] * odd
    wanted = "flips of sign" if group is SignDiagonal else f"scalings of degree {degree:g}"
    raise ValueError(
        f"Units with the activation {_title(activation)} have "
        + (f"{' and '.join(has)}, but no {wanted}." if has else "neither scalings nor flips of sign.")
        + f" {_ADVICE}"
    )


_ADVICE = (
    "Pass group=Permutation, which is valid for any activation; group=PositiveDiagonal for a positively "
    "homogeneous one (ReLU; degree=2 for its square); or group=SignDiagonal for an odd one (tanh)."
)


def _title(activation: Any) -> str:
    return repr(getattr(activation, "__name__", type(activation).__name__))


def _symmetries(activation: Any) -> tuple[bool, tuple[float | int, ...]] | None:
    """Whether an activation is odd, and its degrees of homogeneity; None if it cannot be evaluated."""
    try:
        with jax.ensure_compile_time_eval():  # the values decide on the group, also under `jax.jit`
            here, turned = (_values(activation, sign * _POINTS) for sign in (1, -1))
            scaled = [
                (float(s), _values(activation, np.concatenate([s * _POINTS, -s * _POINTS]))) for s in _SCALES
            ]
    except Exception:  # any error in a user's function means that it cannot be evaluated
        return None
    both = np.concatenate([here, turned])
    odd = _close(turned, -here)
    degrees = (d for d in _DEGREES if all(_close(values, s**d * both) for s, values in scaled))
    return odd, tuple(degrees)


def _values(activation: Callable, points: np.ndarray) -> np.ndarray:
    """Evaluates the activation point by point, since its own parameters may have the shape of the layer."""
    return np.asarray(jax.vmap(activation)(jnp.asarray(points)), np.float64)


def _close(one: np.ndarray, other: np.ndarray) -> bool:
    # Relative to each value: a homogeneous function is tested over many orders of magnitude.
    return bool(np.all(np.abs(one - other) <= 1e-4 * np.maximum(np.abs(one), np.abs(other)) + 1e-30))


def check_unowned(group: MakeGroup, names: Iterable[str]) -> None:
    """Raises ValueError if `group` permutes units whose activation has parameters for each unit.

    >>> check_unowned(PositiveDiagonal, ["weight", "activation.slope"])  # scalings leave a slope unchanged
    >>> check_unowned(Permutation, ["weight", "activation.slope"])
    Traceback (most recent call last):
    ValueError: The activation has parameters for each unit (activation.slope)...
    """
    own = [name for name in names if name.startswith(OWN)]
    if own and group is Permutation:
        raise ValueError(
            f"The activation has parameters for each unit ({', '.join(own)}), which a permutation of units "
            "must permute as well: construct a NetworkSymmetry whose specs include them."
        )
