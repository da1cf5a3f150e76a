"""When a teleport is refused, and the one place where parameters jump."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from symmetrax._tree import all_finite, safe_norm, select
from symmetrax.symmetry._base import AbstractLieSymmetry, AbstractSymmetry

#: Why a teleport was refused, by code; 0 is "not refused".
REFUSALS = (
    "accepted",
    "not finite: the point or the loss after the jump is infinite or NaN",
    "too long: the jump is longer than the guard's bound",
    "not invariant: the loss moved by more than the guard's tolerance",
)

# What `defect` says where nothing measured it: without a guard no loss is evaluated.
NOT_MEASURED = -1.0


class Guard(eqx.Module):
    """Conditions under which a teleport is refused and the parameters stay where they are.

    A jump from w to v is refused when v or its loss is not finite, when ||v - w|| > `jump`, or when
    |loss(v) - loss(w)| > `tolerance` * max(|loss(w)|, `floor`). The bound of 3 is the one measured to turn
    the badly conditioned benchmark from a loss into a win (it is not relative to any scale: set it to suit
    your parameters). All three may be arrays, so that sweeping them compiles nothing anew.

    >>> float(Guard(jump=1.0).jump)
    1.0
    """

    jump: float | Float[Array, ""] = 3.0
    tolerance: float | Float[Array, ""] = 1e-3
    floor: float | Float[Array, ""] = 1e-6

    def __check_init__(self):
        for name in ("jump", "tolerance", "floor"):
            value = getattr(self, name)
            if isinstance(value, int | float) and not value > 0:
                raise ValueError(f"Guard needs {name} > 0, got {name}={value}.")

    def judge(
        self, displacement: PyTree, here: Float[Array, ""], there: Float[Array, ""]
    ) -> tuple[Float[Array, ""], Int[Array, ""]]:
        """Relative defect of the loss, and a code of `REFUSALS`, for a jump from loss `here` to `there`."""
        defect = jnp.abs(there - here) / jnp.maximum(jnp.abs(here), self.floor)
        finite = all_finite(displacement) & jnp.isfinite(there)
        long = safe_norm(displacement) > self.jump
        moved = ~(defect <= self.tolerance)
        return defect, jnp.select([~finite, long, moved], [1, 2, 3], 0)


class Jump(NamedTuple):
    """How far a teleport moved, and whether it did.

    `displacement` is `symmetry.displacement(a, w)`, zeros if refused; `defect` the relative change of the
    loss that was found (-1 without a guard: not measured); `refused` a code of `symmetrax.REFUSALS`.

    >>> import symmetrax as sx
    >>> Jump._fields, sx.REFUSALS[0]
    (('displacement', 'defect', 'refused'), 'accepted')
    """

    displacement: PyTree
    defect: Float[Array, ""]
    refused: Int[Array, ""]


def land(
    displacement: PyTree,
    params: PyTree,
    *,
    guard: Guard | None,
    value_fn: Callable[[PyTree], Float[Array, ""]],
) -> Jump:
    """Take a displacement that was found without a group, unless `guard` refuses; a lower loss is welcome."""
    if guard is None:
        return Jump(displacement, jnp.array(NOT_MEASURED), jnp.array(0))
    trial = jax.lax.stop_gradient(displacement)
    here, there = value_fn(params), value_fn(optax.tree.add(params, trial))
    defect, refused = guard.judge(trial, here, jnp.maximum(there, here))
    taken = select(refused == 0, displacement, optax.tree.zeros_like(displacement))
    return Jump(taken, jax.lax.stop_gradient(defect), refused)


def jump(
    symmetry: AbstractSymmetry,
    element: PyTree,
    params: PyTree,
    batch: PyTree = None,
    *,
    guard: Guard | None,
    value_fn: Callable[[PyTree], Float[Array, ""]] | None = None,
    retreat: PyTree = None,
) -> Jump:
    """Move `params` by `element`, unless `guard` refuses.

    The identity displaces by exactly zero, and its derivative is still the action's: a branch on a zero angle
    would have none, and a head that starts at zero would never learn. A refused jump has zero derivative,
    and none of its infinities or NaNs leak into a gradient: the differentiated action is evaluated at the
    identity, and at `retreat` if given, a point known to be harmless, instead of `params`.

    **Arguments:** `value_fn(params)` is the loss, needed with a guard.
    """
    still = symmetry.identity()
    return _jump(symmetry, lambda a: a, element, still, params, batch, guard, value_fn, retreat)


def jump_by(
    symmetry: AbstractLieSymmetry,
    exp: Callable[[Float[Array, "..."]], PyTree],
    coordinates: Float[Array, "..."],
    params: PyTree,
    batch: PyTree = None,
    *,
    guard: Guard | None,
    value_fn: Callable[[PyTree], Float[Array, ""]] | None = None,
    retreat: PyTree = None,
) -> Jump:
    """`jump` by the element `exp(coordinates)`, whose derivative may be infinite where it is refused."""
    return _jump(symmetry, exp, coordinates, symmetry.zero(), params, batch, guard, value_fn, retreat)


def _jump(symmetry, element, place, still, params, batch, guard, value_fn, retreat) -> Jump:
    """Jump by `element(place)`, which is the identity where `place` is `still`."""

    def displace(place: PyTree, params: PyTree) -> PyTree:
        displacement = symmetry.displacement(element(place), params, batch)
        resting = jax.tree.map(lambda a, e: jnp.all(a == e), place, still)
        return _still(displacement, jnp.all(jnp.stack(jax.tree.leaves(resting))))

    if guard is None:
        return Jump(displace(place, params), jnp.array(NOT_MEASURED), jnp.array(0))
    if value_fn is None:
        raise ValueError(
            "A guarded teleport compares losses: pass value_fn=..., a function from params to the loss, "
            "as an extra argument of `update` (optax's own name), or guard=None to jump unchecked."
        )
    place_, params_ = jax.lax.stop_gradient((place, params))
    trial = displace(place_, params_)
    defect, refused = guard.judge(trial, value_fn(params_), value_fn(optax.tree.add(params_, trial)))
    accepted = refused == 0
    safe = select(accepted, place, still)
    if retreat is not None:
        # A constant: even at the identity an action may have no derivative there.
        params = select(accepted, params, jax.lax.stop_gradient(retreat))
    displacement = displace(safe, params)
    return Jump(
        select(accepted, displacement, optax.tree.zeros_like(displacement)),
        jax.lax.stop_gradient(defect),
        refused,
    )


@jax.custom_jvp
def _still(displacement: PyTree, condition: Bool[Array, ""]) -> PyTree:
    """Zeros where `condition` holds, with the derivative of `displacement` all the same.

    Equal elements give equal ends but for rounding: the compiler may fuse the two calls differently.
    """
    return select(condition, optax.tree.zeros_like(displacement), displacement)


@_still.defjvp
def _still_jvp(primals, tangents):
    return _still(*primals), tangents[0]
