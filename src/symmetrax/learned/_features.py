"""What a learned optimizer sees at a step."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from symmetrax.symmetry._base import AbstractLieSymmetry
from symmetrax.teleportation._objectives import Slopes


class Info(NamedTuple):
    """What is known when an optimizer has to move.

    `gradient` and `params` have the structure of the parameters, `previous` is the last step (zeros at
    first), `orbit_derivative` the derivative of the squared gradient norm in the algebra coordinates (None
    unless the network asks for it), `key` a random key for optimizers that draw (None unless one is passed to
    `update`), `symmetry` the one that the optimizer may teleport along, if any. `value` is the loss; `slopes`
    are the derivatives of the logarithm of the squared gradient norm along the orbit, `best` the coordinates
    of its best point (each None unless the network asks for it).

    >>> Info(gradient=1.0, params=2.0, previous=0.0, orbit_derivative=None, key=None).params
    2.0
    """

    gradient: PyTree
    params: PyTree
    previous: PyTree
    orbit_derivative: Array | None = None
    key: Key[Array, ""] | None = None
    symmetry: AbstractLieSymmetry | None = None
    value: Float[Array, ""] | None = None
    slopes: Slopes | None = None
    best: Float[Array, "..."] | None = None


class Move(NamedTuple):
    """What a network emits: any of an update, algebra coordinates, a step size, a momentum; None for others.

    The step is u = `update`, or what `update` makes of the gradient where the step starts, if it is a
    function; without one, -`step_size` * gradient. With `momentum` steps add up,
    v <- momentum * v + u. `algebra` are the coordinates of the group element; with `gate`, the probability
    of teleporting at all, they are multiplied by it (see `AbstractLearnedOptimizer.transform`).

    >>> Move(step_size=0.5).update is None
    True
    """

    update: PyTree = None
    algebra: Any = None
    step_size: Float[Array, ""] | None = None
    momentum: Float[Array, ""] | None = None
    gate: Float[Array, ""] | None = None


#: Inputs that the whole-gradient optimizer can take beside the gradient, each adding its size to the width.
INPUTS = ("iterate", "previous", "orbit_derivative")


def example_info(size: int, slopes: int = 0) -> Info:
    """A fixed, unremarkable input for `size` parameters and, if any, `slopes` algebra coordinates."""
    ramp = jnp.linspace(-1.0, 2.0, size)
    slope = jnp.linspace(0.5, 1.0, slopes) if slopes else None
    return Info(gradient=ramp, params=1 - ramp, previous=0.1 * ramp, orbit_derivative=slope, key=None)


def log_and_sign(gradient: Float[Array, " n"], p: float = 10.0) -> Float[Array, "2 n"]:
    """The two features per coordinate of Andrychowicz et al. 2016 (appendix A).

    With |g| >= exp(-p): (log|g| / p, sign g); below: (-1, exp(p) g). Both have the gradient's order of
    magnitude removed, and finite derivatives everywhere.

    >>> print(log_and_sign(jnp.array([1.0, 0.0, -1e-5])).round(2))
    [[ 0.   -1.   -1.  ]
     [ 1.    0.   -0.22]]
    """
    size = jnp.abs(gradient)
    large = size >= jnp.exp(-p)
    logarithm = jnp.log(jnp.where(large, size, 1.0)) / p
    return jnp.stack(
        [jnp.where(large, logarithm, -1.0), jnp.where(large, jnp.sign(gradient), jnp.exp(p) * gradient)]
    )
