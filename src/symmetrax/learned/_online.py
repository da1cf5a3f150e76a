"""Algorithm 2: the group element is learned while the parameters are, on the task at hand."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from symmetrax._tree import all_finite, select
from symmetrax.symmetry._base import AbstractLieSymmetry
from symmetrax.teleportation._guard import NOT_MEASURED, Guard, Jump, jump, shortened
from symmetrax.teleportation._schedule import Schedule, due, settled
from symmetrax.teleportation._teleport import GuardChoice, settled_guard


class LastStep(NamedTuple):
    """What the step before this one started from, and whether it teleported: its end is differentiated.

    >>> LastStep._fields
    ('params', 'gradient', 'inner', 'moved')
    """

    params: PyTree
    gradient: PyTree
    inner: optax.OptState
    moved: Bool[Array, ""]


class OnlineState(NamedTuple):
    """State of `online_teleported`: the step count, the inner state, and the coordinates that are learned.

    `algebra` are the coordinates of the last teleport, of shape `symmetry.algebra`, `meta` the state of
    their own optimizer; `defect` and `refused` are as in `symmetrax.Teleport`; `unlearned` counts the steps
    whose slope was not finite, after which the coordinates stayed. Read them with
    `optax.tree.get(state, "algebra")`.

    >>> OnlineState._fields
    ('count', 'inner', 'algebra', 'meta', 'last', 'defect', 'refused', 'unlearned')
    """

    count: Int[Array, ""]
    inner: optax.OptState
    algebra: Float[Array, "..."]
    meta: optax.OptState
    last: LastStep
    defect: Float[Array, ""]
    refused: Int[Array, ""]
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
    """Wrap the optax optimizer `inner`: teleport before every step, by coordinates learned on the way.

    Algorithm 2 of arXiv:2504.15399, for any differentiable loss f, Lie symmetry and optimizer:

        y      = exp(theta) . x
        x+     = y + inner step with the gradient at y
        theta <- theta - rate * d f(x+) / d theta        (x a constant)

    The coordinates theta persist: on a loss with a long valley they become a rate of rotation that works
    against the descent's drift into it, and the element is applied anew at every step.

    One gradient a step is enough. That at y is the given one, carried there by `symmetry.pull`; and d f(x+) /
    d theta needs the gradient at x+, which is what the next `update` is given, so theta is updated then. On
    minibatches the slope is thus measured on data that the step has not seen. So `update` must be given the
    gradient at `params`, nothing may change the update afterwards (this stands last), and the symmetry must
    be exact; for data-dependent actions, on one batch. The state holds the last parameters, gradient and
    inner state.

    **Arguments:** `inner` is any optimizer whose update needs nothing but gradients, state and parameters (no
    line search); its state stays as it is when the parameters move. `rate` is the step size of theta, in
    coordinates squared per unit of loss, or an optax optimizer for theta. `order` 2 differentiates the
    gradient at y too, without a Hessian, since it is carried; 1 takes it as a constant: on quadratics that
    turns to the short axis at any step size, where order 2 does so below 1/(l1 + l2)
    (`symmetrax.theory.turn_to_short_axis`). `start` is theta_0 (default: zeros, the identity). `bound` keeps
    coordinates of groups that are not compact within that size at each step; the product of many steps has no
    bound. `schedule` gives the steps that teleport, and learn (default: all). `guard` is as in `teleport` and
    needs the extra argument `value_fn`, two losses a step; None goes without. A refused teleport leaves the
    parameters and sets theta to zero.

    **Errors:** ValueError for other orders and guards, coordinates of another shape, and missing arguments;
    TypeError for a symmetry without an algebra. A slope that is not finite is skipped and counted.

    >>> import jax, jax.numpy as jnp, optax, symmetrax as sx
    >>> task = sx.generalized_booth([[0.5, 0.0], [0.0, 3.0]])  # x'Ax, A = diag(1/4, 9)
    >>> def steps(optimizer, params=jnp.array([-5.0, 3.5])):
    ...     state, start, count = optimizer.init(params), task.loss(params), 0
    ...     while task.loss(params) > 1e-6 * start:
    ...         updates, state = optimizer.update(jax.grad(task.loss)(params), state, params)
    ...         params, count = optax.apply_updates(params, updates), count + 1
    ...     return count
    >>> symmetry = sx.QuadraticForm(jnp.diag(jnp.array([0.25, 9.0])))
    >>> steps(optax.sgd(1 / 18)), steps(online_teleported(optax.sgd(1 / 18), symmetry, 0.1, guard=None))
    (194, 3)
    """
    if order not in (1, 2):
        raise ValueError(f"`order` must be 1 or 2, got {order!r}.")
    if not isinstance(symmetry, AbstractLieSymmetry):
        raise TypeError(
            f"`online_teleported` learns coordinates in a Lie algebra, and {type(symmetry).__name__} is no "
            "AbstractLieSymmetry."
        )
    stepper = optax.with_extra_args_support(inner)
    learner = rate if isinstance(rate, optax.GradientTransformation) else optax.sgd(rate)
    guard = settled_guard(guard, symmetry)
    schedule = settled(schedule)
    zero = symmetry.zero()
    first = zero if start is None else symmetry.bounded(jnp.asarray(start, zero.dtype), bound)
    if first.shape != symmetry.algebra:
        raise ValueError(
            f"`start` must have the shape of the algebra's coordinates, {symmetry.algebra}, got "
            f"{first.shape}."
        )

    def init(params: PyTree) -> OnlineState:
        symmetry.check(params)
        state, nothing = stepper.init(params), optax.tree.zeros_like(params)
        return OnlineState(
            count=jnp.array(0),
            inner=state,
            algebra=first,
            meta=learner.init(first),
            last=LastStep(params, nothing, state, jnp.array(False)),
            defect=jnp.array(NOT_MEASURED),
            refused=jnp.array(0),
            unlearned=jnp.array(0),
        )

    def learned(state: OnlineState, gradient: PyTree, batch: PyTree) -> tuple[Array, optax.OptState, Array]:
        """theta after the last step, whose end has this gradient, its optimizer, and whether that failed."""
        last = state.last

        def end(theta):
            return step_end(stepper, last.inner, symmetry, theta, last.params, last.gradient, batch, order)

        (slope,) = jax.vjp(end, state.algebra)[1](gradient)
        finite = all_finite(slope)
        learns = last.moved & finite
        slope = jnp.where(learns, slope, 0.0)
        change, meta = learner.update(slope, state.meta, state.algebra)
        theta = symmetry.bounded(state.algebra + jnp.asarray(change), bound)
        theta, meta = select(learns, (theta, meta), (state.algebra, state.meta))
        return theta, meta, last.moved & ~finite

    def update(updates, state, params=None, *, value_fn=None, batch=None, **extra):
        del extra  # optax's own, and none that the end of a step can be differentiated with
        if params is None:
            raise ValueError("`online_teleported` needs params: call update(grads, state, params).")
        theta, meta, failed = learned(state, updates, batch)
        moves = due(schedule, state.count)
        now = jnp.where(moves, theta, 0.0)
        displacement, stepped, jumped = jump_and_step(
            stepper, state.inner, symmetry, now, params, updates, batch, guard=guard, value_fn=value_fn
        )
        return displacement, OnlineState(
            count=state.count + 1,
            inner=stepped,
            algebra=jnp.where((jumped.refused == 0) | ~moves, theta, 0.0),
            meta=meta,
            last=LastStep(params, updates, state.inner, moves),
            defect=jnp.where(moves, jumped.defect, NOT_MEASURED).astype(state.defect.dtype),
            refused=jnp.where(moves, jumped.refused, 0).astype(state.refused.dtype),
            unlearned=state.unlearned + failed,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def step_end(
    stepper: optax.GradientTransformationExtraArgs,
    inner: optax.OptState,
    symmetry: AbstractLieSymmetry,
    theta: Float[Array, "..."],
    params: PyTree,
    gradient: PyTree,
    batch: PyTree = None,
    order: Literal[1, 2] = 2,
) -> PyTree:
    """Where a teleport by `theta` and a step lead, to be differentiated by `theta`; the gradient at `params`
    serves for both. With order 1 the carried gradient is a constant."""
    element = symmetry.exp(theta)
    there = symmetry.act(element, params, batch)
    carried = symmetry.pull(element, params, gradient, batch)
    carried = jax.lax.stop_gradient(carried) if order == 1 else jax.tree.map(_smooth, carried)
    return optax.tree.add(there, stepper.update(carried, inner, there)[0])


def jump_and_step(
    stepper: optax.GradientTransformationExtraArgs,
    inner: optax.OptState,
    symmetry: AbstractLieSymmetry,
    theta: Float[Array, "..."],
    params: PyTree,
    gradient: PyTree,
    batch: PyTree = None,
    *,
    guard: Guard | None,
    value_fn: Callable[[PyTree], Float[Array, ""]] | None,
) -> tuple[PyTree, optax.OptState, Jump]:
    """Teleport by `theta` unless `guard` refuses, then step with the gradient carried there: the whole
    displacement, the inner state after it, and what became of the teleport."""
    theta = shortened(symmetry, symmetry.exp, theta, params, batch, guard=guard)
    element = symmetry.exp(theta)
    jumped = jump(symmetry, element, params, batch, guard=guard, value_fn=value_fn)
    element = select(jumped.refused == 0, element, symmetry.identity())
    there = optax.tree.add(params, jumped.displacement)
    carried = symmetry.pull(element, params, gradient, batch)
    step, stepped = stepper.update(carried, inner, there)
    return optax.tree.add(jumped.displacement, step), stepped, jumped


@jax.custom_vjp
def _smooth(gradient: Float[Array, "..."]) -> Float[Array, "..."]:
    """The same, with a finite derivative where an entry is exactly zero: root-mean-square scalings have none
    there, and an entry that stays zero contributes nothing."""
    return gradient


def _smooth_forward(gradient):
    return gradient, gradient


def _smooth_backward(gradient, cotangent):
    return (jnp.where((gradient == 0) & ~jnp.isfinite(cotangent), 0.0, cotangent),)


_smooth.defvjp(_smooth_forward, _smooth_backward)
