"""Guards: conditions under which a teleport is rejected."""

import math

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from symmetrax._tree import all_finite, safe_norm, widened
from symmetrax.teleportation._rounding import LOOSE, MOST

#: Why a teleport was rejected, by code; code 0 means that it was accepted.
OUTCOMES = (
    "accepted",
    "not finite: the point or the loss after the jump is infinite or NaN",
    "too long: the jump is longer than the guard's bound",
    "not invariant: the loss changed by more than the guard's tolerance",
    "no step: the optimizer's input, or the step that it proposed, is infinite or NaN",
)

#: The code for an optimizer that did not step at all.
NO_STEP = 4

# The value of `loss_change` where it was not measured: without a guard the loss is not evaluated.
NOT_MEASURED = -1.0


class Guard(eqx.Module):
    """Conditions under which a teleport is rejected, so that the parameters stay unchanged.

    A jump from w to v is rejected if v or its loss is not finite, if the jump is too long, or if
    |loss(v) - loss(w)| > `tolerance` * max(|loss(w)|, `floor`). The default tolerance is 1e-3 for nonlinear
    actions and the expected rounding error for linear ones, since an exact linear symmetry changes the loss
    by no more than that. The rounding error depends on the precision in which the loss is computed (float32
    or lower) and on how sensitive the loss is to it (see `rounding`); it is about 1e-5 in float32. A jump is
    too long if

        ||v - w|| > min(`jump`, `relative` * (||w|| + ||u||)),

    where u is the preceding optimizer step, if any. `jump` is a length in the units of the parameters; its
    default of 3 was measured to turn the badly conditioned benchmark from a loss into a win. `relative` is
    dimensionless, for when lengths are not known beforehand. With `shorten`, a jump that is too long is
    shortened along the group instead of rejected: its coordinates are halved, at most eight times, until it
    is short enough. The numbers may be arrays, so that sweeping over them triggers no recompilation.

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
        """The maximum length of a jump from `params`, after the given step."""
        scale = safe_norm(params) + (0.0 if step is None else safe_norm(step))
        longest, relative = jnp.asarray(self.jump, scale.dtype), jnp.asarray(self.relative, scale.dtype)
        # An infinite bound must stay infinite where all lengths are zero (inf * 0 is NaN).
        return jnp.minimum(longest, jnp.where(jnp.isinf(relative), jnp.inf, relative * scale))

    def judge(
        self,
        displacement: PyTree,
        here: Float[Array, ""],
        there: Float[Array, ""],
        longest: Float[Array, ""] | None = None,
        rounding: Float[Array, ""] | None = None,
    ) -> tuple[Float[Array, ""], Int[Array, ""]]:
        """Returns the relative change of the loss and a code of `OUTCOMES` for a jump from `here` to `there`.

        `here` and `there` are losses. `longest` is the result of `longest` at the starting point, by default
        `jump`. `rounding` is the change of the loss that rounding can explain, and serves as the bound if the
        guard has no tolerance of its own; by default that bound is a relative change of 1e-3.
        """
        here, there = widened(here), widened(there)
        # Without the floor, a loss near zero would make every rounding error a large relative change.
        size = jnp.maximum(jnp.abs(here), jnp.asarray(self.floor, here.dtype))
        loss_change = jnp.abs(there - here) / size
        finite = all_finite(displacement) & jnp.isfinite(there)
        long = safe_norm(displacement) > (self.jump if longest is None else longest)
        if self.tolerance is not None:
            most = jnp.asarray(self.tolerance, loss_change.dtype)
        else:
            most = LOOSE if rounding is None else jnp.minimum(rounding.astype(loss_change.dtype) / size, MOST)
        # Negated, so that NaN is a change. `select` returns the code of the first condition that holds.
        moved = ~(loss_change <= most)
        return loss_change, jnp.select([~finite, long, moved], [1, 2, 3], 0).astype(int)
