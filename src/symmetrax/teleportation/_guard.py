"""When a teleport is refused, and the parameters stay where they are."""

import math

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from symmetrax._tree import all_finite, safe_norm, widened
from symmetrax.teleportation._rounding import LOOSE, MOST

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
