"""Teleports without a group: a local search for a larger gradient at no larger loss."""

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

    The search is not differentiated: derivatives treat the jump as a constant.

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
    """Increases the gradient subject to f(w) <= f(w0), by successive linear programs, without a symmetry.

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

    **Returns** a `SearchResult` whose `residual` measures violation of the Karush-Kuhn-Tucker (KKT)
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
        search = _Search(self, lambda w: value_fn(eqx.combine(w, rest)), start)
        # A loop, not a scan: the number of trials varies, and a search that has converged costs nothing more.
        walk = jax.lax.while_loop(lambda walk: walk.going, search.turn, search.begin())
        converged = walk.residual <= search.tolerance
        arrival = arrive(numbers, walk.params, walk.residual, walk.evaluations, converged)
        return arrival._replace(params=eqx.combine(arrival.params, rest))


class _Search:
    """A `LevelSet` search from one start: everything that stays constant, and the steps of its loop."""

    def __init__(self, settings: LevelSet, loss: Callable[[PyTree], Array], start: PyTree):
        self.loss, self.start = loss, start
        self.steps, self.backtracks = settings.steps, settings.backtracks
        value, self.gradient0, square = self.measure(start)
        # The loss and the squared norm may be summed in different precisions; compare them in the finer one.
        self.kind = total([value, square]).dtype
        self.value0, self.square0, self.radius = (
            jnp.asarray(x, self.kind) for x in (value, square, settings.radius)
        )
        self.p0 = self.uphill(start, self.gradient0, self.square0)
        self.lean0 = squared_norm(self.p0).astype(self.kind)
        self.tolerance = jnp.asarray(settings.tolerance, self.kind)
        # Rounding alone moves f, so a bound without a tolerance would end the search on the level set.
        self.bound = self.value0 + self.tolerance * jnp.abs(self.value0)

    def measure(self, w: PyTree) -> tuple[Array, PyTree, Array]:
        """Returns the loss, its gradient and the squared norm of that."""
        value, slope = jax.value_and_grad(self.loss)(w)
        gradient = jax.tree.map(widened, conjugate(slope))
        return widened(value), gradient, squared_norm(gradient)

    def uphill(self, w: PyTree, gradient: PyTree, square: Array) -> PyTree:
        """The gradient of log ||gradient||, by one Hessian-vector product."""
        tangent = jax.tree.map(lambda g, x: g.astype(x.dtype), gradient, w)
        curved = jax.jvp(jax.grad(self.loss), (w,), (tangent,))[1]
        return scaled(conjugate(curved), jnp.where(square > 0, square, 1.0))

    def begin(self) -> _Walk:
        """Starts the first line search, with a multiplier that gives a step of length `radius` along p."""
        rho0 = self.radius / jnp.sqrt(jnp.where(self.lean0 > 0, self.lean0, 1.0))
        rho0 = jnp.asarray(rho0, self.kind)
        return self.aim(self.start, self.value0, self.gradient0, self.square0, self.p0, rho0)

    def aim(self, w: PyTree, value: Array, gradient: PyTree, square: Array, p: PyTree, rho: Array) -> _Walk:
        """Solves the linear program at an accepted point and starts a line search there."""
        norm = jnp.where(square > 0, square, 1.0)
        along, lean = pairing(p, gradient).astype(self.kind), squared_norm(p).astype(self.kind)
        slack = jnp.maximum(self.value0 - value, 0.0)
        # The program has a closed form: d = rho p - multiplier g, where the multiplier is zero as long as
        # rho p alone does not use up the slack below the level set.
        multiplier = jnp.maximum(rho * along - slack, 0.0) / norm
        whole = shift(times(rho, p), -multiplier, gradient)
        length = jnp.sqrt(squared_norm(whole)).astype(self.kind)
        cap = jnp.where(length > self.radius, self.radius / jnp.where(length > 0, length, 1.0), 1.0)
        direction = times(cap, whole)
        m = jnp.maximum(along, 0.0) / norm
        off = squared_norm(shift(p, -m, gradient)).astype(self.kind)
        most = jnp.maximum(lean, self.lean0)
        residual = jnp.maximum(off / jnp.where(most > 0, most, 1.0), m * slack)
        sound = jnp.isfinite(residual) & jnp.isfinite(length) & jnp.isfinite(square) & (square > 0)
        return _Walk(
            params=w,
            value=value,
            gradient=gradient,
            square=square,
            rho=rho * cap,
            direction=direction,
            slope=pairing(p, direction).astype(self.kind),
            residual=jnp.where(sound, residual, jnp.inf),
            trial=shift(w, 1.0, direction),
            scale=jnp.ones((), self.kind),
            excess=jnp.array(jnp.inf, self.kind),
            tries=jnp.array(self.backtracks),
            steps=jnp.array(0),
            evaluations=jnp.array(3),
            going=sound & (residual > self.tolerance),
        )

    def turn(self, walk: _Walk) -> _Walk:
        """Evaluates one trial; accepts it, corrects it, or halves the step."""
        value, gradient, square = self.measure(walk.trial)
        value, square = value.astype(self.kind), square.astype(self.kind)
        gain = 0.5 * (jnp.log(square) - jnp.log(walk.square))
        predicted = walk.scale * walk.slope
        finite = jnp.isfinite(value) & jnp.isfinite(gain) & all_finite(gradient)
        accepted = finite & (value <= self.bound) & (gain >= ARMIJO * predicted)

        # Functions without arguments, so that only the branch that is taken computes its derivatives.
        def onward():
            grown = jnp.where((walk.scale == 1) & (gain >= GROW * predicted), 2.0, walk.scale)
            p = self.uphill(walk.trial, gradient, square)
            ahead = self.aim(walk.trial, value, gradient, square, p, walk.rho * grown)
            return ahead._replace(
                steps=walk.steps + 1,
                evaluations=walk.evaluations + 3,
                going=ahead.going & (walk.steps + 1 < self.steps),
            )

        def again():
            # A Newton step along the gradient removes the excess to first order. It keeps the progress along
            # a curved level set, where halving the step would lose half of it.
            excess = value - self.value0
            back = excess / jnp.where(square > 0, square, 1.0)
            length = squared_norm(walk.direction).astype(self.kind)
            near = back**2 * square <= (NEAR * walk.scale) ** 2 * length
            correct = finite & (value > self.bound) & near & (excess <= SHRINK * walk.excess)
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


def arrive(params: PyTree, there: PyTree, residual, evaluations, converged) -> SearchResult:
    """Returns the result of a search that ended at `there`, with derivatives as if the jump were constant.

    >>> result = arrive(jnp.array([1.0]), jnp.array([3.0]), jnp.array(0.0), 5, jnp.array(True))
    >>> float(result.params[0]), int(result.evaluations)
    (3.0, 5)
    >>> float(jax.grad(lambda x: arrive(x, 3 * x, x, 5, x > 0).params)(1.0))
    1.0
    """
    # Not params + stop_gradient(there - params): that would round, and move points that are to be exact.
    exact = jax.tree.map(_with_derivative_of, params, there)
    constants = jax.lax.stop_gradient((residual, jnp.asarray(evaluations, jnp.int32), converged))
    return SearchResult(exact, *constants)


@jax.custom_jvp
def _with_derivative_of(params: Array, there: Array) -> Array:
    """Returns `there`, bit for bit, with the derivative of `params`."""
    return there


@_with_derivative_of.defjvp
def _with_derivative_of_jvp(primals, tangents):
    return primals[1], tangents[0]
