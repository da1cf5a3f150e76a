"""Teleports without a group: a local search for the steepest point at no larger loss."""

from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from symmetrax._tree import (
    all_finite,
    check_finite,
    conjugate,
    pairing,
    scaled,
    select,
    shift,
    squared_norm,
    times,
    total,
    widened,
)

# The line search: a step must achieve the fraction ARMIJO of the predicted increase; above the fraction GROW
# the next step may be longer. A Newton step back to the level set is at most a quarter as long as the trial
# step itself, and is followed by another only if it left a quarter of the excess.
ARMIJO, GROW = 0.5, 0.75
NEAR, SHRINK = 0.25, 0.25


class SearchResult(NamedTuple):
    """The result of a point search.

    `residual` is the distance from the goal, as defined by each search; `evaluations` counts the gradients
    of the loss actually spent, a Hessian-vector product as two; `converged` is whether the goal was reached.

    >>> SearchResult._fields
    ('params', 'residual', 'evaluations', 'converged')
    """

    params: PyTree
    residual: Float[Array, ""]
    evaluations: Int[Array, ""]
    converged: Bool[Array, ""]


class AbstractPointSearch(eqx.Module):
    """Abstract base class of searches for parameters of equal loss and larger gradient that use no group.

    The search is not differentiated: the arrival moves with `params` as if the jump were a constant.

    >>> import symmetrax as sx
    >>> isinstance(sx.search.LevelSet(), sx.search.AbstractPointSearch)
    True
    """

    @abstractmethod
    def __call__(
        self, value_fn: Callable[[PyTree], Float[Array, ""]], params: PyTree, batch: PyTree = None
    ) -> SearchResult:
        """Returns a better point than `params`; `value_fn(params)` is the loss, on `batch` if it matters."""

    @abstractmethod
    def evaluations(self) -> int:
        """The maximum number of gradients of the loss that the search can spend, known before it runs."""


class _Walk(NamedTuple):
    """The last accepted point with everything measured there, and the next trial.

    `rho` is the multiplier of p; `excess` is the loss above the start's before the last correction of this
    trial.
    """

    params: PyTree
    value: Array
    gradient: PyTree
    square: Array
    rho: Array
    direction: PyTree
    slope: Array
    residual: Array
    trial: PyTree
    scale: Array
    tries: Array
    excess: Array
    steps: Array
    evaluations: Array
    going: Array


class LevelSet(AbstractPointSearch):
    """The largest gradient with f(w) <= f(w0), by successive linear programs, without a symmetry.

    Each step solves: maximize <p, d> - ||d||^2 / (2 rho) subject to f(w) + <g, d> <= f(w0), where g is the
    gradient, H the Hessian and p = H g / ||g||^2 the gradient of log ||g||. A line search starts from d, at
    most `radius` long, and halves it until log ||g|| increases by half of the <p, d> predicted, at a feasible
    point; a trial that left the level set is first brought back by Newton steps along its gradient. So ||g||
    never decreases, f never exceeds f(w0) + `tolerance` |f(w0)| (up to the rounding of f), and non-finite
    trials merely shorten the step. Leaves that are not floating-point arrays stay unchanged. Derivatives
    treat the jump as a constant.

    The search is local: it can stop far below the maximum on the level set, as it does on Rosenbrock's
    function. That maximum may not even exist: the gradients of deep networks can be unbounded on a level set,
    and then the jump is bounded only by `steps` * `radius`.

    **Arguments:** `steps`, the number of linear programs; `radius`, in the units of the parameters (if it is
    far too large, the first line search fails); `tolerance`, for f and for the residual; `backtracks`, the
    most gradients that a line search may spend, corrections included. `radius` and `tolerance` may be arrays.

    **Returns** an `SearchResult` whose `residual` measures violation of the Karush-Kuhn-Tucker (KKT)
    conditions: with m = max(0, <p, g>) / ||g||^2, the larger of ||p - m g||^2 / max(||p||, ||p0||)^2 and m
    (f(w0) - f(w)), where p0 is p at the start. `converged` means that it is at most `tolerance`. If f, its
    gradient or H g is not finite at the start, or the gradient is zero, the start is returned with an
    infinite residual.

    Source: arXiv:2403.03362, with its code's penalty replaced by the return to the level set.

    >>> import jax, jax.numpy as jnp, symmetrax as sx
    >>> task, x = sx.tasks.booth(), jnp.array([5.0, -5.0])
    >>> found = LevelSet()(task.loss, x)
    >>> round(float(jnp.linalg.norm(jax.grad(task.loss)(found.params))), 2), bool(found.converged)
    (72.0, True)
    """

    steps: int = eqx.field(static=True, default=50)
    radius: float | Float[Array, ""] = 1.0
    tolerance: float | Float[Array, ""] = 1e-6
    backtracks: int = eqx.field(static=True, default=25)

    def __check_init__(self):
        for name in ("steps", "radius", "tolerance", "backtracks"):
            value = getattr(self, name)
            if isinstance(value, int | float) and not value > 0:
                raise ValueError(f"LevelSet needs {name} > 0, got {name}={value}.")

    def evaluations(self) -> int:
        return 3 + self.steps * (self.backtracks + 2)

    def __call__(self, value_fn, params, batch=None) -> SearchResult:
        numbers, rest = eqx.partition(params, eqx.is_inexact_array)
        check_finite(numbers, "teleport from")
        start = jax.lax.stop_gradient(numbers)

        def loss(w):
            return value_fn(eqx.combine(w, rest))

        def measure(w):
            value, slope = jax.value_and_grad(loss)(w)
            gradient = jax.tree.map(widened, conjugate(slope))
            return widened(value), gradient, squared_norm(gradient)

        def uphill(w, gradient, square):
            """The gradient of log ||gradient||, by one Hessian-vector product."""
            tangent = jax.tree.map(lambda g, x: g.astype(x.dtype), gradient, w)
            curved = jax.jvp(jax.grad(loss), (w,), (tangent,))[1]
            return scaled(conjugate(curved), jnp.where(square > 0, square, 1.0))

        value0, gradient0, square0 = measure(start)
        kind = total([value0, square0]).dtype
        value0, square0, radius = (jnp.asarray(x, kind) for x in (value0, square0, self.radius))
        p0 = uphill(start, gradient0, square0)
        lean0 = squared_norm(p0).astype(kind)
        tolerance = jnp.asarray(self.tolerance, kind)
        bound = value0 + tolerance * jnp.abs(value0)

        def aim(w, value, gradient, square, p, rho) -> _Walk:
            """Solves the linear program at an accepted point and starts a line search there."""
            norm = jnp.where(square > 0, square, 1.0)
            along, lean = pairing(p, gradient).astype(kind), squared_norm(p).astype(kind)
            slack = jnp.maximum(value0 - value, 0.0)
            multiplier = jnp.maximum(rho * along - slack, 0.0) / norm
            whole = shift(times(rho, p), -multiplier, gradient)
            length = jnp.sqrt(squared_norm(whole)).astype(kind)
            cap = jnp.where(length > radius, radius / jnp.where(length > 0, length, 1.0), 1.0)
            direction = times(cap, whole)
            m = jnp.maximum(along, 0.0) / norm
            off = squared_norm(shift(p, -m, gradient)).astype(kind)
            most = jnp.maximum(lean, lean0)
            residual = jnp.maximum(off / jnp.where(most > 0, most, 1.0), m * slack)
            sound = jnp.isfinite(residual) & jnp.isfinite(length) & jnp.isfinite(square) & (square > 0)
            return _Walk(
                params=w,
                value=value,
                gradient=gradient,
                square=square,
                rho=rho * cap,
                direction=direction,
                slope=pairing(p, direction).astype(kind),
                residual=jnp.where(sound, residual, jnp.inf),
                trial=shift(w, 1.0, direction),
                scale=jnp.ones((), kind),
                excess=jnp.array(jnp.inf, kind),
                tries=jnp.array(self.backtracks),
                steps=jnp.array(0),
                evaluations=jnp.array(3),
                going=sound & (residual > tolerance),
            )

        def turn(walk: _Walk) -> _Walk:
            """Evaluates one trial; accepts it, corrects it, or halves the step."""
            value, gradient, square = measure(walk.trial)
            value, square = value.astype(kind), square.astype(kind)
            gain = 0.5 * (jnp.log(square) - jnp.log(walk.square))
            predicted = walk.scale * walk.slope
            finite = jnp.isfinite(value) & jnp.isfinite(gain) & all_finite(gradient)
            accepted = finite & (value <= bound) & (gain >= ARMIJO * predicted)

            def onward():
                grown = jnp.where((walk.scale == 1) & (gain >= GROW * predicted), 2.0, walk.scale)
                p = uphill(walk.trial, gradient, square)
                ahead = aim(walk.trial, value, gradient, square, p, walk.rho * grown)
                return ahead._replace(
                    steps=walk.steps + 1,
                    evaluations=walk.evaluations + 3,
                    going=ahead.going & (walk.steps + 1 < self.steps),
                )

            def again():
                excess = value - value0
                back = excess / jnp.where(square > 0, square, 1.0)
                length = squared_norm(walk.direction).astype(kind)
                near = back**2 * square <= (NEAR * walk.scale) ** 2 * length
                correct = finite & (value > bound) & near & (excess <= SHRINK * walk.excess)
                scale = jnp.where(correct, walk.scale, walk.scale / 2)
                shorter = shift(walk.params, scale, walk.direction)
                return walk._replace(
                    trial=select(correct, shift(walk.trial, -back, gradient), shorter),
                    scale=scale,
                    tries=walk.tries - 1,
                    excess=jnp.where(correct, excess, jnp.inf),
                    evaluations=walk.evaluations + 1,
                    going=walk.tries > 1,
                )

            return jax.lax.cond(accepted, onward, again)

        rho0 = radius / jnp.sqrt(jnp.where(lean0 > 0, lean0, 1.0))
        walk = aim(start, value0, gradient0, square0, p0, jnp.asarray(rho0, kind))
        walk = jax.lax.while_loop(lambda walk: walk.going, turn, walk)
        converged = walk.residual <= tolerance
        arrival = arrive(numbers, walk.params, walk.residual, walk.evaluations, converged)
        return arrival._replace(params=eqx.combine(arrival.params, rest))


def arrive(params: PyTree, there: PyTree, residual, evaluations, converged) -> SearchResult:
    """Returns an arrival at `there` that moves with `params` as if the jump were a constant."""
    exact = jax.tree.map(_land, params, there)
    constants = jax.lax.stop_gradient((residual, jnp.asarray(evaluations, jnp.int32), converged))
    return SearchResult(exact, *constants)


@jax.custom_jvp
def _land(params: Array, there: Array) -> Array:
    """Returns `there`, bit for bit, with the derivative of `params`."""
    return there


@_land.defjvp
def _land_jvp(primals, tangents):
    return primals[1], tangents[0]
