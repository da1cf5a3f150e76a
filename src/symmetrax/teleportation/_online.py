"""Algorithm 2 of arXiv:2504.15399: learning the group element while optimizing the parameters."""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from symmetrax._extras import one_program
from symmetrax._numbers import as_before, check_whole, hold, own, settled_state
from symmetrax._tree import all_finite, select
from symmetrax.schedules._schedule import Schedule, due, settled
from symmetrax.symmetry._base import AbstractLieSymmetry
from symmetrax.teleportation._guard import NO_STEP, NOT_MEASURED, OUTCOMES, Guard
from symmetrax.teleportation._step import Jump, teleport_by
from symmetrax.teleportation._teleport import GuardChoice, settled_guard


class LastStep(NamedTuple):
    """The start of the previous step and whether it teleported; the end of that step is differentiated.

    >>> LastStep._fields
    ('params', 'gradient', 'inner', 'moved')
    """

    params: PyTree
    gradient: PyTree
    inner: optax.OptState
    moved: Bool[Array, ""]


class OnlineState(NamedTuple):
    """State of `online_teleported`: the step count, the inner state and the learned coordinates.

    `algebra` holds the coordinates of the last teleport, of shape `symmetry.algebra`, and `meta` the state of
    their own optimizer. `loss_change` and `outcome` are as in `Teleport`. `unlearned` counts the steps
    with a non-finite slope, which leave the coordinates unchanged. Read them with
    `optax.tree.get(state, "algebra")`. If the step is infinite or NaN, nothing moves, the inner state is
    kept, and `outcome` is the corresponding code of `OUTCOMES`. `outcomes[code]` counts the
    teleports that ended with each code, including steps that were not taken; outcomes[0] counts the accepted
    ones. No leaf changes its type.

    >>> OnlineState._fields
    ('count', 'inner', 'algebra', 'meta', 'last', 'loss_change', 'outcome', 'outcomes', 'unlearned')
    """

    count: Int[Array, ""]
    inner: optax.OptState
    algebra: Float[Array, "..."]
    meta: optax.OptState
    last: LastStep
    loss_change: Float[Array, ""]
    outcome: Int[Array, ""]
    outcomes: Int[Array, " codes"]
    unlearned: Int[Array, ""]


def online_teleported(
    inner: optax.GradientTransformation,
    symmetry: AbstractLieSymmetry,
    rate: float | Float[Array, ""] | optax.GradientTransformation,
    *,
    order: Literal[1, 2] = 2,
    start: Float[Array, "..."] | None = None,
    bound: float | Float[Array, ""] = 1.0,
    schedule: Schedule = None,
    guard: GuardChoice = "default",
) -> optax.GradientTransformationExtraArgs:
    """Wraps the optax optimizer `inner` to teleport before every step, by coordinates that it learns online.

    Algorithm 2 of arXiv:2504.15399, for any differentiable loss f, Lie symmetry and optimizer:

        y      = exp(theta) . x
        x+     = y + inner step with the gradient at y
        theta <- theta - rate * d f(x+) / d theta        (x a constant)

    The coordinates theta persist, and the group element is applied anew at every step. On a loss with a long
    valley they become a rate of rotation that counteracts the drift of gradient descent into the valley.

    One gradient per step suffices. The gradient at y is the given one, carried there by
    `symmetry.transport_gradient`. The slope d f(x+) / d theta needs the gradient at x+, which is the input of
    the next `update`, so theta is updated then; on minibatches the slope is thus measured on data that the
    step has not seen. It follows that `update` must receive the gradient at `params`, that nothing may change
    the update afterwards (so apply this last in a chain), and that the symmetry must be exact; if the action
    depends on data, all on one batch. The state holds the last parameters, gradient and inner state.

    **Arguments:** `inner` is any optimizer whose update needs only gradients, state and parameters (no line
    search); its state is left as it is when the parameters move. `rate` is the step size of theta, in
    coordinates squared per unit of loss, or an optax optimizer for theta. `order=2` also differentiates the
    gradient at y, which needs no Hessian because that gradient is carried; `order=1` treats it as a constant.
    On quadratics, order 1 turns to the short axis at any step size, order 2 at step sizes below 1/(l1 + l2)
    (`symmetrax.theory.turn_to_short_axis`). `start` is theta_0 (default: zeros, the identity). `bound` limits
    the coordinates of noncompact groups at each step; the product of many steps is unbounded. `schedule`
    selects the steps that teleport and learn (default: all). `guard` is as in `teleport`; it needs the extra
    argument `value_fn` and evaluates two losses per step, and None disables it. A rejected teleport leaves
    the parameters where they are and resets theta to zero.

    **Errors:** ValueError for other orders and guards, coordinates of the wrong shape, and missing arguments;
    TypeError for a symmetry without an algebra. Non-finite slopes are skipped and counted.

    >>> import jax, jax.numpy as jnp, optax, symmetrax as sx
    >>> task = sx.tasks.generalized_booth([[0.5, 0.0], [0.0, 3.0]])  # x'Ax, A = diag(1/4, 9)
    >>> def steps(optimizer, params=jnp.array([-5.0, 3.5])):
    ...     state, start, count = optimizer.init(params), task.loss(params), 0
    ...     while task.loss(params) > 1e-6 * start:
    ...         updates, state = optimizer.update(jax.grad(task.loss)(params), state, params)
    ...         params, count = optax.apply_updates(params, updates), count + 1
    ...     return count
    >>> symmetry = sx.symmetry.QuadraticForm(jnp.diag(jnp.array([0.25, 9.0])))
    >>> steps(optax.sgd(1 / 18)), steps(online_teleported(optax.sgd(1 / 18), symmetry, 0.1, guard=None))
    (194, 3)
    """
    if order not in (1, 2):
        raise ValueError(f"`order` must be 1 or 2, got {order!r}.")
    if not isinstance(symmetry, AbstractLieSymmetry):
        raise TypeError(
            "`online_teleported` learns coordinates in a Lie algebra, so `symmetry` must be an "
            f"AbstractLieSymmetry, got {type(symmetry).__name__}."
        )
    zero = symmetry.zero()
    if zero.size == 0:
        raise ValueError(
            f"`online_teleported` learns coordinates, and {type(symmetry).__name__} has none: its groups are "
            "discrete."
        )
    first = zero if start is None else symmetry.bounded(jnp.asarray(start, zero.dtype), bound)
    if first.shape != symmetry.algebra:
        raise ValueError(
            f"`start` must have the shape of the algebra's coordinates, {symmetry.algebra}, got "
            f"{first.shape}."
        )
    made = _Online(
        stepper=optax.with_extra_args_support(inner),
        symmetry=symmetry,
        learner=rate if isinstance(rate, optax.GradientTransformation) else optax.sgd(rate),
        order=order,
        first=first,
        bound=bound,
        schedule=settled(schedule),
        guard=settled_guard(guard, symmetry),
    )
    return optax.GradientTransformationExtraArgs(made.init, one_program(made.update))


@dataclasses.dataclass(frozen=True)
class _Online:
    """The two functions of `online_teleported`."""

    stepper: optax.GradientTransformationExtraArgs
    symmetry: AbstractLieSymmetry
    learner: optax.GradientTransformation
    order: Literal[1, 2]
    first: Float[Array, "..."]
    bound: float | Float[Array, ""]
    schedule: Schedule
    guard: Guard | None

    def init(self, params: PyTree) -> OnlineState:
        """Returns the initial state, with the first coordinates."""
        check_whole(params)
        held = hold(params, self.symmetry)
        self.symmetry.check(held.numbers)
        inner, theta = self.stepper.init(held.numbers), jnp.asarray(self.first, held.dtype)
        nowhere = LastStep(held.numbers, optax.tree.zeros_like(held.numbers), inner, jnp.array(False))
        return settled_state(
            OnlineState(
                count=jnp.array(0),
                inner=inner,
                algebra=theta,
                meta=self.learner.init(theta),
                last=nowhere,
                loss_change=jnp.array(NOT_MEASURED, held.dtype),
                outcome=jnp.array(0),
                outcomes=jnp.zeros(len(OUTCOMES), int),
                unlearned=jnp.array(0),
            )
        )

    def update(self, updates, state, params=None, *, value_fn=None, batch=None, **extra):
        """Learns from the last step, then teleports by the learned coordinates and steps."""
        del extra  # optax's own arguments; the end of a step cannot be differentiated with any of them
        if params is None:
            raise ValueError("`online_teleported` needs params: call update(grads, state, params).")
        check_whole(params)
        held = hold(params, self.symmetry)
        gradient = held.gradient(updates)
        theta, meta, failed = self._learned(state, gradient, batch)
        moves = due(self.schedule, state.count)
        start = LastStep(params, updates, state.inner, moves)
        now = jnp.where(moves, theta, 0.0)
        displacement, inner, jumped = jump_and_step(
            self.stepper, self.symmetry, start, now, batch, guard=self.guard, value_fn=value_fn
        )
        displacement = held.gradient(displacement)
        made = held.stays_finite(displacement)
        outcome = jnp.where(made, jnp.where(moves, jumped.outcome, 0), NO_STEP)
        # A teleport that was rejected, or that ended nowhere, sends the coordinates back to zero; a gradient
        # that is no number says nothing about them.
        jumps = (jumped.outcome == 0) & (made | ~all_finite(gradient))
        after = OnlineState(
            count=state.count + 1,
            inner=select(made, as_before(inner, state.inner), state.inner),
            algebra=jnp.where(jumps | ~moves, theta, 0.0),
            meta=meta,
            last=LastStep(held.numbers, held.outside(gradient), state.inner, moves & made),
            loss_change=jnp.where(moves & made, jumped.loss_change, NOT_MEASURED),
            outcome=outcome,
            outcomes=state.outcomes.at[outcome].add((moves | ~made).astype(state.outcomes.dtype)),
            unlearned=state.unlearned + failed.astype(state.unlearned.dtype),
        )
        displacement = select(made, displacement, optax.tree.zeros_like(displacement))
        # Copy, so that you can donate states and still use the parameters and gradients of this step.
        after = after._replace(last=jax.tree.map(own, after.last))
        return held.updates(displacement, updates), as_before(after, state)

    def _learned(
        self, state: OnlineState, gradient: PyTree, batch: PyTree
    ) -> tuple[Array, optax.OptState, Array]:
        """Returns theta updated by the last step, its optimizer state, and whether the slope was not finite.

        `gradient` is the gradient at the end of that step.
        """
        last = state.last

        def end(theta):
            return step_end(self.stepper, self.symmetry, last, theta, batch, self.order)

        (slope,) = jax.vjp(end, state.algebra)[1](gradient)
        finite = all_finite(slope)
        learns = last.moved & finite
        slope = jnp.where(learns, slope, 0.0)
        change, meta = self.learner.update(slope, state.meta, state.algebra)
        theta = self.symmetry.bounded(state.algebra + jnp.asarray(change), self.bound)
        theta, meta = as_before((theta, meta), (state.algebra, state.meta))
        theta, meta = select(learns, (theta, meta), (state.algebra, state.meta))
        return theta, meta, last.moved & ~finite


def step_end(
    stepper: optax.GradientTransformationExtraArgs,
    symmetry: AbstractLieSymmetry,
    start: LastStep,
    theta: Float[Array, "..."],
    batch: PyTree = None,
    order: Literal[1, 2] = 2,
) -> PyTree:
    """Returns the end of a step after a teleport by `theta`, to be differentiated with respect to `theta`.

    The gradient at the start serves for both. With order 1 the carried gradient is a constant.

    >>> import jax.numpy as jnp, optax, symmetrax as sx
    >>> task, x = sx.tasks.booth(), jnp.array([5.0, -5.0])
    >>> stepper = optax.with_extra_args_support(optax.sgd(0.1))
    >>> start = LastStep(x, jax.grad(task.loss)(x), stepper.init(x), jnp.array(True))
    >>> print(jax.jacobian(lambda x: step_end(stepper, task.symmetry(), start, x))(jnp.zeros(1)).shape)
    (2, 1)
    """
    params, gradient, inner, _ = start
    held = hold(params, symmetry)
    element = symmetry.exp(theta)
    there = held.widened(symmetry.act(element, held.inside, batch))
    carried = held.widened(symmetry.transport_gradient(element, held.inside, held.gradient(gradient), batch))
    carried = jax.lax.stop_gradient(carried) if order == 1 else jax.tree.map(_smooth, carried)
    step, _ = stepper.update(held.outside(carried), inner, held.outside(there))
    return optax.tree.add(there, held.widened(step))


def jump_and_step(
    stepper: optax.GradientTransformationExtraArgs,
    symmetry: AbstractLieSymmetry,
    start: LastStep,
    theta: Float[Array, "..."],
    batch: PyTree = None,
    *,
    guard: Guard | None,
    value_fn: Callable[[PyTree], Float[Array, ""]] | None,
) -> tuple[PyTree, optax.OptState, Jump]:
    """Teleports by `theta` unless `guard` rejects it, then steps with the gradient carried there.

    Returns the whole displacement, the inner state after the step, and the outcome of the teleport.

    >>> import jax.numpy as jnp, optax, symmetrax as sx
    >>> task, x = sx.tasks.booth(), jnp.array([5.0, -5.0])
    >>> stepper = optax.with_extra_args_support(optax.sgd(0.1))
    >>> start = LastStep(x, jax.grad(task.loss)(x), stepper.init(x), jnp.array(True))
    >>> nowhere, _, jumped = jump_and_step(
    ...     stepper, task.symmetry(), start, jnp.zeros(1), guard=None, value_fn=None
    ... )
    >>> bool(jnp.allclose(nowhere, -0.1 * jax.grad(task.loss)(x)))  # the identity: the inner step alone
    True
    """
    params, gradient, inner, _ = start
    held = hold(params, symmetry)
    at, value_fn = held.inside, held.loss(value_fn)
    teleport = teleport_by(symmetry, theta, at, batch, guard=guard, value_fn=value_fn)
    displacement = teleport.jump.displacement
    there = held.outside(optax.tree.add(at, displacement))
    carried = held.outside(teleport.gradient(held.gradient(gradient)))
    step, stepped = stepper.update(carried, inner, there)
    return held.updates(optax.tree.add(displacement, held.widened(step)), gradient), stepped, teleport.jump


@jax.custom_vjp
def _smooth(gradient: Float[Array, "..."]) -> Float[Array, "..."]:
    """The identity, with a finite derivative where an entry is exactly zero.

    Root-mean-square scalings have no derivative there, and an entry that stays zero contributes nothing.
    """
    return gradient


def _smooth_forward(gradient):
    return gradient, gradient


def _smooth_backward(gradient, cotangent):
    return (jnp.where((gradient == 0) & ~jnp.isfinite(cotangent), 0.0, cotangent),)


_smooth.defvjp(_smooth_forward, _smooth_backward)
