"""A probe that measures, before you teleport, how much an objective varies on an orbit."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key, PyTree

from symmetrax._extras import explained
from symmetrax._keys import check_key
from symmetrax._programs import once, opened
from symmetrax._tree import check_finite
from symmetrax.objectives._base import Objective, squared_gradient_norm
from symmetrax.search._orbit import Orbit, evaluations_needed
from symmetrax.symmetry._base import AbstractLieSymmetry
from symmetrax.teleportation._guard import Guard
from symmetrax.teleportation._rounding import rounding
from symmetrax.teleportation._teleport import GuardChoice, check_search, settled_guard


class Gain(NamedTuple):
    """The result of `teleport_gain` on an orbit.

    `here` is the objective at the point; `median` and `largest` are taken over the draws that the guard
    accepts, and `accepted` is the accepted share of all draws. `evaluations` is the cost in gradients of the
    loss. `headroom`, largest / median, measures how much the objective varies on the orbit: 1 means not at
    all.

    >>> found = Gain(*map(jnp.asarray, (2.0, 1.0, 4.0, 1.0, 0.0)))
    >>> float(found.headroom), float(found.over_here)
    (4.0, 2.0)
    """

    here: Float[Array, ""]
    median: Float[Array, ""]
    largest: Float[Array, ""]
    accepted: Float[Array, ""]
    evaluations: float | Float[Array, ""]

    @property
    def headroom(self) -> Float[Array, ""]:
        """The ratio of the largest objective to the median; NaN if no draw was accepted."""
        return self.largest / self.median

    @property
    def over_here(self) -> Float[Array, ""]:
        """The ratio of the largest objective to its value at the point."""
        return self.largest / self.here


def teleport_gain(
    loss: Callable[[PyTree, PyTree], Float[Array, ""]],
    params: PyTree,
    symmetry: AbstractLieSymmetry,
    key: Key[Array, ""],
    batch: PyTree = None,
    *,
    objective: Objective = squared_gradient_norm,
    samples: int = 64,
    bound: float | Float[Array, ""] = 1.0,
    guard: GuardChoice = "default",
) -> Gain:
    """Measures how much an objective varies on the orbit of `params`, over elements that the guard accepts.

    Draws `samples` elements exp(xi), xi ~ N(0, bound^2 I) within `bound` (see `AbstractLieSymmetry.bounded`),
    measures `objective` at each of them and checks whether `guard` would accept the jump. If the gradient
    norm is constant along the orbit, no teleport can change what a gradient step achieves; if it varies, a
    search may find more. This is a necessary condition, not a guarantee: a larger gradient does not always
    mean faster descent. Can be compiled.

    **Arguments:** as for `teleport`. Raises ValueError for a symmetry without an algebra and for fewer than
    two samples.

    >>> import jax, jax.numpy as jnp, symmetrax as sx
    >>> task, x = sx.tasks.booth(), jnp.array([5.0, -5.0])
    >>> bool(teleport_gain(task.loss, x, task.symmetry(), jax.random.key(0), bound=3.0).headroom > 1.2)
    True
    >>> round_bowl = sx.tasks.generalized_booth([[1.0, 0.0], [0.0, 1.0]])  # equally steep along an orbit
    >>> found = teleport_gain(round_bowl.loss, x, round_bowl.symmetry(), jax.random.key(0), guard=None)
    >>> round(float(found.headroom), 3)
    1.0
    """
    check_key(key)
    if samples < 2:
        raise ValueError(f"teleport_gain needs at least two samples to compare, got samples={samples}.")
    check_search(symmetry, None)
    numbers, rest = eqx.partition(params, eqx.is_inexact_array)
    check_finite(numbers, "probe the orbit of")
    chosen = settled_guard(guard, symmetry)

    def whole(w: PyTree, batch: PyTree) -> Float[Array, ""]:
        return explained(loss, eqx.combine(w, rest), batch)

    # Arrays in the closure of the loss become arguments: a new lambda for every batch then compiles once.
    apply, constants = opened(whole, numbers, batch)

    def probed(constants: list, numbers: PyTree, key: Array, batch: PyTree) -> Gain:
        def value_fn(w: PyTree) -> Float[Array, ""]:
            return apply(constants, w, batch)

        return _probed(value_fn, numbers, symmetry, key, batch, objective, samples, bound, chosen)

    return once(probed, constants, numbers, key, batch)


def _probed(value_fn, numbers, symmetry, key, batch, objective, samples, bound, chosen) -> Gain:
    orbit = Orbit(value_fn, numbers, symmetry, batch, objective)
    zero = orbit.zero()
    bound = jnp.asarray(bound, zero.dtype)
    drawn = bound * jax.random.normal(key, (samples, *zero.shape), zero.dtype)
    here = value_fn(numbers)

    def at(xi: Array) -> tuple[Array, Array]:
        xi = symmetry.bounded(xi, bound)
        known = orbit.known_gradient
        return orbit(xi), _accepted(chosen, symmetry, xi, numbers, batch, value_fn, here, known)

    # One element at a time: `vmap` would hold the activations of the network for all samples.
    values, accepted = jax.lax.map(at, drawn)
    kept = jnp.where(accepted & jnp.isfinite(values), values, jnp.nan)
    return Gain(
        here=orbit(zero),
        median=jnp.nanmedian(kept),
        largest=jnp.nanmax(kept),
        accepted=jnp.mean(jnp.isfinite(kept)),
        # The guard evaluates the loss once per element, which counts as a third of a gradient.
        evaluations=evaluations_needed(symmetry, objective, samples + 1, known=False)
        + (0.0 if chosen is None else (samples + 1) / 3),
    )


def _accepted(guard: Guard | None, symmetry, xi, params, batch, value_fn, here, gradient) -> Bool[Array, ""]:
    """Returns whether a guard would accept a jump by the element exp(xi)."""
    if guard is None:
        return jnp.array(True)
    # The symmetry computes the displacement itself: a difference of two points would be mostly rounding error
    # where the jump is small.
    displacement = symmetry.displacement(symmetry.exp(xi), params, batch)
    there = value_fn(optax.tree.add(params, displacement))
    most = rounding(value_fn, params, displacement, here, gradient, linear=symmetry.linear)
    return guard.judge(displacement, here, there, guard.longest(params), most)[1] == 0
