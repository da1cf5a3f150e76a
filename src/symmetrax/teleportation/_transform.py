"""`teleported`: an optax optimizer that moves along a symmetry before it steps."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from symmetrax._tree import select
from symmetrax.symmetry._base import AbstractLieSymmetry
from symmetrax.teleportation._guard import NOT_MEASURED, Guard, jump
from symmetrax.teleportation._objectives import Objective, squared_gradient_norm
from symmetrax.teleportation._search import AbstractSearch, Ascent

#: Steps at which a teleport happens: their numbers (from 0), a function of the step count, one boolean per
#: step (an array may be traced, so that a sweep over schedules compiles once), or None for every step.
Schedule = Iterable[int] | Callable[[Array], Any] | Bool[Array | np.ndarray, " steps"] | None


def due(schedule: Schedule, count: Int[Array, ""]) -> Bool[Array, ""]:
    """Whether a teleport is due at step `count`.

    >>> import jax.numpy as jnp
    >>> [bool(due({2, 5}, jnp.array(count))) for count in range(4)]
    [False, False, True, False]
    """
    if schedule is None:
        return jnp.array(True)
    if callable(schedule):
        return jnp.asarray(schedule(count), bool)
    if isinstance(schedule, jax.Array | np.ndarray) and schedule.dtype == bool:
        return jnp.any(jnp.asarray(schedule) & (jnp.arange(len(schedule)) == count))
    return jnp.any(jnp.array(list(schedule), int) == count)


def settled(schedule: Schedule) -> Schedule:
    """A schedule that can be read many times: an iterator is read now."""
    return tuple(schedule) if isinstance(schedule, Iterator) else schedule


class TeleportedState(NamedTuple):
    """State of `teleported`: the inner state, the step count, and the last teleport.

    `algebra` (zeros when none was due), `defect` and `refused` are as in `symmetrax.Teleport`; read them
    with `optax.tree.get(state, "refused")`.

    >>> TeleportedState._fields
    ('count', 'inner', 'algebra', 'defect', 'refused')
    """

    count: Int[Array, ""]
    inner: optax.OptState
    algebra: Float[Array, "..."]
    defect: Float[Array, ""]
    refused: Int[Array, ""]


def teleported(
    inner: optax.GradientTransformation,
    symmetry: AbstractLieSymmetry,
    *,
    objective: Objective = squared_gradient_norm,
    search: AbstractSearch | None = None,
    schedule: Schedule = None,
    guard: Guard | None = Guard(),  # noqa: B008 (a frozen module)
    transport: Literal["keep", "reset"] = "keep",
) -> optax.GradientTransformationExtraArgs:
    """Wrap the optax optimizer `inner`: on schedule, teleport first, then step from the new point.

    The update returned is the whole displacement, teleport and inner step together, so this stands last;
    gradient clipping and learning-rate schedules go inside `inner`. A teleport that is due costs
    `search.evaluations(symmetry)` gradients, two losses for the guard, and one gradient at the new point.
    A refused one leaves the parameters where they are, and its reason in the state.

    **Arguments:** `schedule` gives the steps, counted from 0, before which to teleport (default: all).
    `transport` keeps the inner optimizer's state across a teleport, or resets it. `update` needs the extra
    argument `value_fn` (optax's own name: params to loss), and `batch` for data-dependent actions.

    >>> import jax, jax.numpy as jnp, optax, symmetrax as sx
    >>> task = sx.booth(start=[5.0, -5.0])
    >>> best = sx.Oracle()
    >>> optimizer = teleported(optax.sgd(1 / 18), task.symmetry(), search=best, schedule={0}, guard=None)
    >>> params = task.start
    >>> state = optimizer.init(params)
    >>> updates, state = optimizer.update(jax.grad(task.loss)(params), state, params, value_fn=task.loss)
    >>> task.loss(optax.apply_updates(params, updates)) < 1e-6  # one step solves it
    Array(True, dtype=bool)
    """
    if transport not in ("keep", "reset"):
        raise ValueError(f"`transport` must be 'keep' or 'reset', got {transport!r}.")
    stepper = optax.with_extra_args_support(inner)
    search, schedule = search or Ascent(), settled(schedule)

    def init(params: PyTree) -> TeleportedState:
        nothing = jnp.array(NOT_MEASURED)
        return TeleportedState(jnp.array(0), stepper.init(params), symmetry.zero(), nothing, jnp.array(0))

    def update(updates, state, params=None, *, value_fn=None, batch=None, **extra):
        if params is None or value_fn is None:
            missing = "params" if params is None else "value_fn"
            raise ValueError(
                f"`teleported` needs {missing}: call update(grads, state, params, value_fn=...), where "
                "value_fn maps params to the loss."
            )

        def move():
            def on_orbit(xi):
                return objective(value_fn, symmetry.act(symmetry.exp(xi), params, batch))

            xi = search(on_orbit, symmetry, params)
            jumped = jump(symmetry, symmetry.exp(xi), params, batch, guard=guard, value_fn=value_fn)
            there = optax.tree.add(params, jumped.displacement)
            gradient = jax.grad(value_fn)(there)
            fresh = stepper.init(there) if transport == "reset" else state.inner
            kept = select(jumped.refused == 0, fresh, state.inner)
            return jumped.displacement, gradient, kept, xi, jumped.defect, jumped.refused

        def stay():
            nothing = jnp.asarray(NOT_MEASURED), jnp.asarray(0)
            return optax.tree.zeros_like(params), updates, state.inner, symmetry.zero(), *nothing

        displacement, gradient, carried, xi, defect, refused = jax.lax.cond(
            due(schedule, state.count), move, stay
        )
        there = optax.tree.add(params, displacement)
        if "grad" in extra:
            extra["grad"] = gradient
        step, carried = stepper.update(gradient, carried, there, value_fn=value_fn, batch=batch, **extra)
        return optax.tree.add(displacement, step), TeleportedState(
            state.count + 1, carried, xi, defect, refused
        )

    return optax.GradientTransformationExtraArgs(init, update)
