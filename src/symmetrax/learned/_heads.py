"""Squashing functions for a head's outputs: bounded and smooth; clipping would zero the gradient."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from symmetrax._tree import safe_norm

#: Bounds of a learned step size, from the code accompanying arXiv:2305.13404.
RATES = (1e-7, 5e-3)


def between(z: Float[Array, "*n"], low: float, high: float) -> Float[Array, "*n"]:
    """Maps z to a positive number between `low` and `high`: low (high / low)^sigmoid(z).

    At z = 0 it is their geometric mean. The head learns the order of magnitude of the result, so that a
    factor of 100 takes the same change of the head everywhere.

    >>> import jax.numpy as jnp
    >>> print(between(jnp.array(0.0), 1e-4, 1e-2).round(6))
    0.001
    """
    return low * (high / low) ** jax.nn.sigmoid(z)


def within(z: Float[Array, " n"], max_norm: float) -> Float[Array, " n"]:
    """Shortens the vector `z` to a norm below `max_norm`: max_norm tanh(||z|| / max_norm) z / ||z||.

    Short vectors pass unchanged, and the derivative at zero is the identity.

    >>> import jax.numpy as jnp
    >>> print(within(jnp.array([30.0, 40.0]), 1.0).round(3))
    [0.6 0.8]
    """
    # Scaling the whole vector, unlike tanh of each entry, keeps its direction.
    ratio = safe_norm(z) / max_norm
    small = ratio < 1e-3
    # tanh(r) / r, by its series where the quotient would lose precision.
    factor = jnp.where(small, 1 - ratio**2 / 3, jnp.tanh(ratio) / jnp.where(small, 1.0, ratio))
    return factor * z


def of_norm(z: Float[Array, " n"], norm: float) -> Float[Array, " n"]:
    """Rescales the vector `z` to exactly this norm; zero stays zero, with derivative zero.

    >>> import jax.numpy as jnp
    >>> print(of_norm(jnp.array([3.0, 4.0]), 0.1))
    [0.06 0.08]
    """
    length = safe_norm(z)
    return jnp.where(length > 0, norm / jnp.where(length > 0, length, 1.0), 0.0) * z


def check_heads(
    emits: Sequence[str],
    known: tuple[str, ...],
    rates: Sequence[float],
    max_norm: float | int | None,
    fixed: bool,
) -> tuple[str, ...]:
    """Returns the outputs of a network in the order of `known`; raises ValueError for invalid arguments.

    >>> check_heads(["momentum", "step_size"], ("step_size", "momentum"), RATES, None, False)
    ('step_size', 'momentum')
    """
    unknown = set(emits) - set(known)
    if unknown:
        raise ValueError(f"`emits` can be any of {', '.join(known)}, got {sorted(unknown)}.")
    if len(rates) != 2 or not 0 < rates[0] < rates[1]:
        raise ValueError(f"`rates` must be bounds of the step size, 0 < low < high, got {tuple(rates)}.")
    if max_norm is not None and not max_norm > 0:
        raise ValueError(f"`max_norm` must be positive, or None for no bound, got {max_norm}.")
    if fixed and max_norm is None:
        raise ValueError("fixed=True needs the norm of the coordinates: pass it as max_norm=...")
    if "update" in emits and "step_size" in emits:
        raise ValueError("`emits` has both update and step_size, each a whole step: choose one of them.")
    return tuple(name for name in known if name in emits)


def coordinates(z: Float[Array, " n"], max_norm: float | None, fixed: bool) -> Float[Array, " n"]:
    """Computes coordinates of a group element from a head's outputs.

    Without `max_norm` they are the outputs; otherwise their norm is below `max_norm`, or with `fixed` equal.

    >>> import jax.numpy as jnp
    >>> print(coordinates(jnp.array([3.0, 4.0]), 10.0, True))
    [6. 8.]
    """
    if max_norm is None:
        return z
    return of_norm(z, max_norm) if fixed else within(z, max_norm)


def scalars(
    names: Sequence[str], z: Float[Array, " n"], rates: tuple[float, float]
) -> dict[str, Float[Array, ""]]:
    """Computes the step size and the momentum, if in `names`, from one number each.

    >>> import jax.numpy as jnp
    >>> {name: float(x) for name, x in scalars(["momentum"], jnp.zeros(1), RATES).items()}
    {'momentum': 0.5}
    """
    made = {"step_size": lambda x: between(x, *rates), "momentum": jax.nn.sigmoid}
    return {name: made[name](z[i]) for i, name in enumerate(names)}
