"""Hand-made optimizers for the plane: classical ones, and those that know, or guess, where an orbit is best.

Each is `make(hyperparameters, task)` for a `Tuned`; "rate" and "momentum" are what is tuned, whatever they
mean to the optimizer.
"""

import math

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from symmetrax.search._searches import AbstractSearch, GoldenSection, Oracle, SinusoidPeak
from symmetrax.studies._orbit_arms import GUARD
from symmetrax.studies.core._arm import Tuned
from symmetrax.studies.core._hand_made import FromTheBest, adam, descent, search_evaluations, symmetry_of
from symmetrax.tasks._base import AbstractTask
from symmetrax.teleportation._guard import Guard
from symmetrax.teleportation._online import online_teleported
from symmetrax.teleportation._transform import teleported

# Where the best angle is not known in closed form: 76 gradients a step.
_ORACLE = Oracle(GoldenSection(points=64, refinements=10))

#: Multiples of Polyak's step: 1 is his, 2 is Gauss and Newton's along an eigenvector.
MULTIPLES = (0.5, 1.0, 1.5, 2.0)

Hyper = dict[str, Float[Array, ""]]


def polyak(hyper: Hyper, task: AbstractTask) -> optax.GradientTransformation:
    """Gradient descent with steps of `rate` times Polyak's, f / ||g||^2 for losses whose least value is 0.

    >>> import symmetrax as sx
    >>> hyper = {"rate": jnp.array(2.0), "momentum": jnp.array(0.0)}
    >>> task = sx.tasks.generalized_booth([[2.0, 0.0], [0.0, 2.0]])
    >>> bool(sx.unroll(polyak(hyper, task), task, jax.random.key(0), steps=1).loss[1] < 1e-12)
    True
    """
    return optax.chain(optax.polyak_sgd(max_learning_rate=math.inf), optax.scale(hyper["rate"]))


def peak_polyak(hyper: Hyper, task: AbstractTask) -> optax.GradientTransformation:
    """Polyak's step after a teleport to the peak that the slopes of the orbit predict.

    "momentum" is how far, relative to the parameters, a jump may go (see `Guard`).

    >>> import symmetrax as sx
    >>> hyper = {"rate": jnp.array(2.0), "momentum": jnp.array(3.0)}
    >>> trace = sx.unroll(peak_polyak(hyper, sx.tasks.booth()), sx.tasks.booth(), jax.random.key(0), steps=4)
    >>> bool(trace.loss[4] < 1e-6)
    True
    """
    guard = Guard(jump=math.inf, tolerance=1e-3, relative=hyper["momentum"], shorten=True)
    return teleported(polyak(hyper, task), symmetry_of(task), search=SinusoidPeak(), guard=guard)


def online(hyper: Hyper, task: AbstractTask) -> optax.GradientTransformation:
    """Algorithm 2 around gradient descent; "momentum" is the rate of the coordinates.

    >>> import symmetrax as sx
    >>> hyper = {"rate": jnp.array(1 / 18), "momentum": jnp.array(1e-3)}
    >>> trace = sx.unroll(online(hyper, sx.tasks.booth()), sx.tasks.booth(), jax.random.key(0), steps=3)
    >>> bool(trace.loss[3] < trace.loss[0])
    True
    """
    return online_teleported(optax.sgd(hyper["rate"]), symmetry_of(task), hyper["momentum"])


def newton(hyper: Hyper, task: AbstractTask) -> optax.GradientTransformation:
    """`rate` times Newton's step in the plane; no step where the Hessian is singular.

    >>> import symmetrax as sx
    >>> hyper = {"rate": jnp.array(1.0), "momentum": jnp.array(0.0)}
    >>> trace = sx.unroll(newton(hyper, sx.tasks.booth()), sx.tasks.booth(), jax.random.key(0), steps=1)
    >>> bool(trace.loss[1] < 1e-9)
    True
    """

    def update(updates, state, params=None, **extra):
        (a, b), (c, d) = jax.hessian(extra["value_fn"])(params)
        determinant = a * d - b * c
        adjugate = jnp.array([[d, -b], [-c, a]])
        step = adjugate @ updates / jnp.where(determinant == 0, 1.0, determinant)
        return -hyper["rate"] * jnp.where(determinant == 0, 0.0, step), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def lbfgs(hyper: Hyper, task: AbstractTask) -> optax.GradientTransformation:
    """Limited-memory BFGS with a line search (zoom); nothing is tuned. In the plane its memory holds all.

    >>> import symmetrax as sx
    >>> hyper = {"rate": jnp.array(1.0), "momentum": jnp.array(0.0)}
    >>> trace = sx.unroll(lbfgs(hyper, sx.tasks.booth()), sx.tasks.booth(), jax.random.key(0), steps=8)
    >>> bool(trace.loss[8] < 1e-6)
    True
    """
    inner = optax.lbfgs(memory_size=10)

    def update(updates, state, params=None, **extra):
        # The line search hands all that it does not know to the loss.
        known = {name: extra[name] for name in ("value", "value_fn")}
        return inner.update(updates, state, params, grad=updates, **known)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _searching(search: AbstractSearch, losses: float = 0.0):
    """Extra gradients per step: the search, the gradient where it leads, and the guard's losses."""
    return lambda task: search_evaluations(search, task) + losses


ARMS = (
    Tuned("gd", descent, momenta=(0.0,)),
    Tuned("momentum", descent),
    Tuned("adam", adam),
    Tuned("polyak", polyak, MULTIPLES, (0.0,)),
    Tuned("newton", newton, (1.0,), (0.0,), extra=lambda task: 4),
    Tuned("lbfgs", lbfgs, (1.0,), (0.0,), counts="num_linesearch_steps"),
    Tuned("online", online, momenta=(1e-2, 1e-1, 1.0, 10.0, 100.0), extra=lambda task: GUARD),
    Tuned("peak-polyak", peak_polyak, MULTIPLES, (0.4, 1.0, 3.0), _searching(SinusoidPeak(), GUARD)),
    Tuned("oracle-gd", FromTheBest(descent, _ORACLE), momenta=(0.0,), extra=_searching(_ORACLE)),
    Tuned("oracle-polyak", FromTheBest(polyak, _ORACLE), MULTIPLES, (0.0,), extra=_searching(_ORACLE)),
)
