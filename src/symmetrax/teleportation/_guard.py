"""When a teleport is refused, and the one place where parameters jump."""

import math
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from symmetrax._tree import all_finite, safe_norm, select, widened
from symmetrax.symmetry._base import AbstractLieSymmetry, AbstractSymmetry
from symmetrax.teleportation._rounding import LOOSE, MOST, rounding

#: Why a teleport was refused, by code; 0 is "not refused".
REFUSALS = (
    "accepted",
    "not finite: the point or the loss after the jump is infinite or NaN",
    "too long: the jump is longer than the guard's bound",
    "not invariant: the loss moved by more than the guard's tolerance",
    "no step: what the optimizer was shown, or the step that came of it, is infinite or NaN",
)

#: The code of an optimizer that did not step at all.
NO_STEP = 4

#: How often a guard that shortens jumps halves their coordinates, at most.
HALVINGS = 8

# What `defect` says where nothing measured it: without a guard no loss is evaluated.
NOT_MEASURED = -1.0


class Guard(eqx.Module):
    """Conditions under which a teleport is refused and the parameters stay where they are.

    A jump from w to v is refused when v or its loss is not finite, when it is too long, or when
    |loss(v) - loss(w)| > `tolerance` * max(|loss(w)|, `floor`). If you give no `tolerance`, it is 1e-3 for
    actions that are not linear, and what rounding explains for those that are: an exact symmetry of this kind
    moves the loss by no more. That depends on the numbers that the loss computes with, float32 or shorter
    ones, and on how sensitive it is to them (see `rounding`); about 1e-5 in float32. Too long is

        ||v - w|| > min(`jump`, `relative` * (||w|| + ||u||)),

    where u is the step that was taken just before, if any. `jump` is a length in the unit of the parameters;
    its default of 3 is the one measured to turn the badly conditioned benchmark from a loss into a win.
    `relative` has no unit, and serves where lengths are not known beforehand. With `shorten` a jump that is
    too long is not refused but made shorter along the group: its coordinates are halved until it is short
    enough, eight times at most. The numbers may be arrays, so that sweeping them compiles nothing anew.

    >>> guard = Guard(jump=jnp.inf, relative=0.5)
    >>> float(guard.longest(jnp.array([3.0, 4.0]), step=jnp.array([1.0, 0.0])))
    3.0
    """

    jump: float | Float[Array, ""] = 3.0
    tolerance: float | Float[Array, ""] | None = None
    floor: float | Float[Array, ""] = 1e-6
    relative: float | Float[Array, ""] = math.inf
    shorten: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        for name in ("jump", "tolerance", "floor", "relative"):
            value = getattr(self, name)
            if isinstance(value, int | float) and not value > 0:
                raise ValueError(f"Guard needs {name} > 0, got {name}={value}.")

    def longest(self, params: PyTree, step: PyTree = None) -> Float[Array, ""]:
        """The length that a jump from `params` may have, after this step."""
        scale = safe_norm(params) + (0.0 if step is None else safe_norm(step))
        longest, relative = jnp.asarray(self.jump, scale.dtype), jnp.asarray(self.relative, scale.dtype)
        # An infinite bound stays one where all lengths are zero.
        return jnp.minimum(longest, jnp.where(jnp.isinf(relative), jnp.inf, relative * scale))

    def judge(
        self,
        displacement: PyTree,
        here: Float[Array, ""],
        there: Float[Array, ""],
        longest: Float[Array, ""] | None = None,
        rounding: Float[Array, ""] | None = None,
    ) -> tuple[Float[Array, ""], Int[Array, ""]]:
        """Relative defect of the loss, and a code of `REFUSALS`, for a jump from loss `here` to `there`.

        `longest` is what `longest` says of the place; by default it is `jump`. `rounding` is the change of
        the loss that rounding explains, the bound where the guard has no tolerance of its own; by default
        that is a part 1e-3.
        """
        here, there = widened(here), widened(there)
        size = jnp.maximum(jnp.abs(here), jnp.asarray(self.floor, here.dtype))
        defect = jnp.abs(there - here) / size
        finite = all_finite(displacement) & jnp.isfinite(there)
        long = safe_norm(displacement) > (self.jump if longest is None else longest)
        if self.tolerance is not None:
            most = jnp.asarray(self.tolerance, defect.dtype)
        else:
            most = LOOSE if rounding is None else jnp.minimum(rounding.astype(defect.dtype) / size, MOST)
        moved = ~(defect <= most)
        return defect, jnp.select([~finite, long, moved], [1, 2, 3], 0).astype(int)


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
    most = rounding(value_fn, params, trial, here, linear=False)
    defect, refused = guard.judge(trial, here, jnp.maximum(there, here), guard.longest(params), most)
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
    step: PyTree = None,
    gradient: PyTree = None,
) -> Jump:
    """Move `params` by `element`, unless `guard` refuses.

    The identity displaces by exactly zero, and its derivative is still the action's: a branch on a zero angle
    would have none, and a head that starts at zero would never learn. A refused jump has zero derivative,
    and none of its infinities or NaNs leak into a gradient: the differentiated action is evaluated at the
    identity, and at `retreat` if given, a point known to be harmless, instead of `params`.

    **Arguments:** `value_fn(params)` is the loss, needed with a guard. `step` is the one that was taken just
    before, if any, which is part of the scale of the guard's lengths. `gradient` is the one at `params`, if
    it is known: it tells the guard how far rounding can move the loss.
    """
    still = symmetry.identity()
    return _jump(
        symmetry, lambda a: a, element, still, params, batch, guard, value_fn, retreat, step, gradient
    )


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
    step: PyTree = None,
    gradient: PyTree = None,
) -> Jump:
    """`jump` by the element `exp(coordinates)`, whose derivative may be infinite where it is refused."""
    still = jnp.zeros_like(coordinates)
    return _jump(symmetry, exp, coordinates, still, params, batch, guard, value_fn, retreat, step, gradient)


def shortened(
    symmetry: AbstractLieSymmetry,
    exp: Callable[[Float[Array, "..."]], PyTree],
    coordinates: Float[Array, "..."],
    params: PyTree,
    batch: PyTree = None,
    *,
    guard: Guard | None,
    step: PyTree = None,
) -> Float[Array, "..."]:
    """The coordinates of a jump that is as long as `guard` allows: halved until it is, if the guard shortens.

    How often they are halved is a constant to derivatives. What is too long after eight times stays as it is,
    for the guard to refuse.
    """
    if guard is None or not guard.shorten:
        return coordinates
    at, place, step = jax.lax.stop_gradient((params, coordinates, step))
    longest = guard.longest(at, step)

    def too_long(share: Float[Array, ""]) -> Bool[Array, ""]:
        length = safe_norm(symmetry.displacement(exp(share * place), at, batch))
        return ~(length <= longest)  # so that NaN is too long

    def halve(state):
        share, _ = state
        return share / 2, too_long(share / 2)

    one = jnp.ones((), place.dtype)
    share, left = jax.lax.while_loop(
        lambda state: state[1] & (state[0] > 2.0**-HALVINGS), halve, (one, too_long(one))
    )
    return jnp.where(left, 1.0, share) * coordinates


def _jump(symmetry, element, place, still, params, batch, guard, value_fn, retreat, step, gradient) -> Jump:
    """Jump by `element(place)`, which is the identity where `place` is `still`."""

    def displace(place: PyTree, params: PyTree) -> PyTree:
        displacement = symmetry.displacement(element(place), params, batch)
        resting = jax.tree.map(lambda a, e: jnp.all(a == e), place, still)
        return zero_where(displacement, jnp.all(jnp.stack(jax.tree.leaves(resting))))

    if guard is None:
        return Jump(displace(place, params), jnp.array(NOT_MEASURED), jnp.array(0))
    if value_fn is None:
        raise ValueError(
            "A guarded teleport compares losses: pass value_fn=..., a function from params to the loss, "
            "as an extra argument of `update` (optax's own name), or guard=None to jump unchecked."
        )
    place_, params_, gradient_ = jax.lax.stop_gradient((place, params, gradient))
    trial = displace(place_, params_)
    longest = guard.longest(params_, jax.lax.stop_gradient(step))
    here, there = value_fn(params_), value_fn(optax.tree.add(params_, trial))
    most = rounding(value_fn, params_, trial, here, gradient_, linear=symmetry.linear)
    defect, refused = guard.judge(trial, here, there, longest, most)
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
def zero_where(displacement: PyTree, condition: Bool[Array, ""]) -> PyTree:
    """Zeros where `condition` holds, with the derivative of `displacement` all the same.

    Equal elements give equal ends but for rounding: the compiler may fuse the two calls differently.
    """
    return select(condition, optax.tree.zeros_like(displacement), displacement)


@zero_where.defjvp
def _zero_where_jvp(primals, tangents):
    return zero_where(*primals), tangents[0]
