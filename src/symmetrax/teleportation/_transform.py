"""`teleported`: wraps an optax optimizer to move along a symmetry before it steps."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from symmetrax._extras import bound, one_program, updated
from symmetrax._numbers import check_whole
from symmetrax._tree import anywhere, select
from symmetrax.discovery._report import Discovery
from symmetrax.discovery._scope import GROUPS
from symmetrax.objectives._base import Objective, squared_gradient_norm
from symmetrax.schedules._schedule import (
    Plateau,
    Progress,
    Schedule,
    beginning,
    due,
    settled,
    watched,
)
from symmetrax.search._levelset import AbstractPointSearch
from symmetrax.search._searches import AbstractSearch
from symmetrax.symmetry._base import AbstractLieSymmetry
from symmetrax.symmetry._network import NetworkSymmetry
from symmetrax.teleportation._guard import NOT_MEASURED, OUTCOMES
from symmetrax.teleportation._teleport import (
    GuardChoice,
    SymmetryChoice,
    check_auto,
    check_search,
    discovered,
    search_and_teleport,
    search_price,
    settled_guard,
)
from symmetrax.teleportation._transport import carry, check_movable, groups_carried, makers

TRANSPORTS = ("keep", "carry", "reset")


class TeleportedState(NamedTuple):
    """State of `teleported`: the step count, the inner state, the last teleport and counts of all outcomes.

    `algebra` (zeros if no teleport was due, None for searches without a group), `loss_change` and `outcome`
    are as in `Teleport`. `outcomes[code]` counts the teleports that ended with each code of `OUTCOMES`:
    outcomes[0] were accepted, the others refused. `evaluations` counts the gradients spent by all searches so
    far, and `progress` is the memory of a `Plateau`. Read them with `optax.tree.get(state, "outcomes")`.

    >>> TeleportedState._fields[:6]
    ('count', 'inner', 'algebra', 'loss_change', 'outcome', 'outcomes')
    """

    count: Int[Array, ""]
    inner: optax.OptState
    algebra: PyTree
    loss_change: Float[Array, ""]
    outcome: Int[Array, ""]
    outcomes: Int[Array, " codes"]
    evaluations: Float[Array, ""]
    progress: Progress


class TeleportedTransformation(optax.GradientTransformationExtraArgs):
    """The optax transformation returned by `teleported`, with the result of `symmetry="auto"` in `found`.

    >>> import jax.numpy as jnp, optax, symmetrax as sx
    >>> optimizer = sx.teleported(optax.sgd(0.1), "auto", loss=lambda p: jnp.sum((p["a"] @ p["b"]) ** 2))
    >>> optimizer.found is None
    True
    >>> state = optimizer.init({"a": jnp.ones((2, 3)), "b": jnp.ones((3, 2))})
    >>> print(optimizer.found[0].group)
    GeneralLinear(3)
    """

    _discoveries: list[tuple[Any, Discovery]]

    @property
    def found(self) -> Discovery | None:
        """The result of the latest search; None before `init`, and if you passed a symmetry."""
        return self._discoveries[-1][1] if self._discoveries else None


def teleported(
    inner: optax.GradientTransformation,
    symmetry: SymmetryChoice = None,
    *,
    objective: Objective = squared_gradient_norm,
    search: AbstractSearch | AbstractPointSearch | None = None,
    schedule: Schedule = None,
    guard: GuardChoice = "default",
    transport: Literal["keep", "carry", "reset"] = "keep",
    loss: Callable[[PyTree, PyTree], Float[Array, ""]] | None = None,
    batch: PyTree = None,
) -> TeleportedTransformation:
    """Wraps the optax optimizer `inner`: on schedule, teleports first, then steps from the new point.

    The returned update is the whole displacement, teleport plus inner step, and needs the gradient at
    `params`. So apply it last in a chain, and put gradient clipping, masks and learning-rate schedules inside
    `inner`. Each teleport costs its search (see `Teleport`), two losses for the guard, and one
    gradient at the new point. With an exact linear symmetry and an objective of the gradient alone, the
    gradient at `params` serves for the search and the step, and only the guard adds to the cost. A refused
    teleport leaves the parameters where they are; the state records the reason.

    **Arguments:** `objective`, `search` and `guard` are as in `teleport`. `schedule` selects the steps,
    counted from 0, before which to teleport (default: all): numbers, booleans, a function of the count such
    as `every_n_steps(10)`, or a `Plateau`. `transport` determines how a teleport changes the inner
    optimizer's state: "keep" leaves it, "reset" reinitializes it, and "carry" moves it with the parameters
    (momentum like gradients; squares exactly for scalings, signs and permutations), raising ValueError for
    state it does not know.

    `update` needs the extra argument `value_fn` (optax's name for a function from params to loss), and
    `batch` for data-dependent actions; a `Plateau` reads the loss from `value` if you pass it. If `value_fn`
    has further arguments, as in value_fn(params, x, y), pass them to `update` by name, as you do for optax's
    line searches: update(..., x=x, y=y). The inner optimizer receives those of them that it accepts.
    Parameters that are not floating-point arrays do not move. If `params` is a filtered equinox module, let
    `value_fn` recombine the module: `lambda w: loss(eqx.combine(w, model), batch)`.

    With `symmetry="auto"`, `init` finds the symmetries outside compiled code from `loss(params, batch)`. You
    must then pass `loss` here, and `batch` (or a function of a key that draws one) if the loss needs data.
    All exact symmetries except rotations are used together. With transport="carry", only groups along which
    the state of `inner` can be carried are considered (scalings, if it holds squares). `optimizer.found` is
    the `Discovery`, made once per structure of the parameters. It is not part of the state, which holds only
    arrays: in a new process, call `init` before you restore a saved state.

    >>> import jax, jax.numpy as jnp, optax, symmetrax as sx
    >>> task = sx.tasks.booth(start=[5.0, -5.0])
    >>> best = sx.search.Oracle()
    >>> optimizer = teleported(optax.sgd(1 / 18), task.symmetry(), search=best, schedule={0}, guard=None)
    >>> params = task.start
    >>> state = optimizer.init(params)
    >>> updates, state = optimizer.update(jax.grad(task.loss)(params), state, params, value_fn=task.loss)
    >>> task.loss(optax.apply_updates(params, updates)) < 1e-6  # one step solves it
    Array(True, dtype=bool)
    """
    if transport not in TRANSPORTS:
        raise ValueError(f"`transport` must be one of {', '.join(TRANSPORTS)}, got {transport!r}.")
    if not isinstance(inner, optax.GradientTransformation):
        raise TypeError(f"`teleported` wraps an optax optimizer, got {type(inner).__name__}.")
    free_form = isinstance(search, AbstractPointSearch)
    if free_form and transport == "carry":
        raise ValueError(
            "transport='carry' moves the state by a group element, and this search has none: use 'keep' or "
            "'reset'."
        )
    if transport == "carry":
        check_movable(makers(inner))
    schedule, stepper = settled(schedule), optax.with_extra_args_support(inner)
    if isinstance(symmetry, str):
        check_auto(symmetry)
        if loss is None:
            raise ValueError(
                "symmetry='auto' finds the symmetries of a loss: pass it, as in teleported(inner, 'auto', "
                "loss=loss)."
            )
        guard = settled_guard(guard, None)  # symmetries found automatically are linear
    else:
        check_search(symmetry, search)
        guard = settled_guard(guard, symmetry)

    discoveries: list[tuple[Any, Discovery]] = []

    def along(params: PyTree) -> tuple[AbstractLieSymmetry | None, Array | None]:
        """Returns the symmetry, given or found, and the coordinates to record if no teleport is due."""
        chosen = symmetry
        if isinstance(chosen, str):
            found = [discovery for structure, discovery in discoveries if structure == _structure(params)]
            if not found:
                raise ValueError(
                    "symmetry='auto' has not looked at parameters of this structure yet: call init(params) "
                    "once in this process, before the first update and before you use a state that was saved."
                )
            chosen = found[0].joined(compact=False)
        return chosen, None if free_form or chosen is None else chosen.zero()

    def init(params: PyTree) -> TeleportedState:
        check_whole(params)
        if isinstance(symmetry, AbstractLieSymmetry):
            symmetry.check(params)
        auto = loss if isinstance(symmetry, str) else None
        state = stepper.init(params)
        groups = groups_carried(state, params, inner) if auto and transport == "carry" else GROUPS
        if auto is not None and all(structure != _structure(params) for structure, _ in discoveries):
            discoveries.append((_structure(params), discovered(auto, params, batch, groups)))
        chosen, nowhere = along(params)
        if transport == "carry" and isinstance(chosen, NetworkSymmetry):
            # Raise for state that cannot be carried now, not at the first teleport.
            still = chosen.identity()
            eqx.filter_eval_shape(lambda state: carry(state, chosen, still, params, inner=inner), state)
        return TeleportedState(
            count=jnp.zeros((), int),
            inner=state,
            algebra=nowhere,
            loss_change=jnp.array(NOT_MEASURED, float),
            outcome=jnp.zeros((), int),
            outcomes=jnp.zeros(len(OUTCOMES), int),
            evaluations=jnp.zeros(()),
            progress=beginning(),
        )

    def update(updates, state, params=None, *, value_fn=None, batch=None, **extra):
        if params is None or value_fn is None:
            missing = "params" if params is None else "value_fn"
            raise ValueError(
                f"`teleported` needs {missing}: call update(grads, state, params, value_fn=...), where "
                "value_fn maps params to the loss."
            )
        check_whole(updates)
        if batch is not None:
            extra["batch"] = batch
        value_fn = bound(value_fn, extra)
        symmetry, nowhere = along(params)
        numbers, rest = eqx.partition(params, eqx.is_inexact_array)
        given = jax.tree.map(lambda w, g: None if w is None else g, numbers, updates, is_leaf=_is_none)

        def value_of(numbers):
            return value_fn(eqx.combine(numbers, rest))

        def move():
            step = search_and_teleport(
                value_of,
                numbers,
                symmetry,
                batch,
                objective=objective,
                search=search,
                guard=guard,
                gradient=given,
                count=state.count,
            )
            displacement, loss_change, outcome = step.jump
            carried = state.inner
            if transport == "reset":
                carried = stepper.init(eqx.combine(optax.tree.add(numbers, displacement), rest))
            elif transport == "carry" and symmetry is not None:
                carried = carry(carried, symmetry, step.element, params, batch, inner)
            if symmetry is not None and symmetry.linear and not free_form:
                gradient = step.gradient(given)
            else:
                gradient = jax.grad(value_of)(optax.tree.add(numbers, displacement))
            return (
                displacement,
                gradient,
                select(outcome == 0, carried, state.inner),
                None if nowhere is None else step.algebra.astype(nowhere.dtype),
                loss_change.astype(state.loss_change.dtype),
                outcome.astype(state.outcome.dtype),
                state.outcomes.at[outcome].add(1),
                state.evaluations + search_price(symmetry, objective, search, known=True),
            )

        def stay():
            nothing = jnp.full_like(state.loss_change, NOT_MEASURED), jnp.zeros_like(state.outcome)
            still = optax.tree.zeros_like(numbers)
            return still, given, state.inner, nowhere, *nothing, state.outcomes, state.evaluations

        progress = state.progress
        if isinstance(schedule, Plateau):
            value = extra["value"] if extra.get("value") is not None else value_fn(params)
            progress = watched(schedule, progress, value)
        moves = due(schedule, state.count, progress)

        def move_where_due():
            return select(moves, move(), stay())

        # Under `vmap`, search only at steps at which some member of the batch teleports.
        displacement, gradient, carried, xi, loss_change, outcome, outcomes, spent = jax.lax.cond(
            anywhere(moves), move_where_due, stay
        )
        progress = progress._replace(waited=jnp.where(moves, 0, progress.waited))
        there = eqx.combine(optax.tree.add(numbers, displacement), rest)
        gradient = eqx.combine(gradient, updates)
        offered = {**extra, "value_fn": value_fn, "grad": gradient}
        step, carried = updated(stepper, gradient, carried, there, offered, value=lambda: value_fn(there))
        whole = jax.tree.map(_sum, displacement, step, is_leaf=_is_none)
        return whole, TeleportedState(
            state.count + 1, carried, xi, loss_change, outcome, outcomes, spent, progress
        )

    transformation = TeleportedTransformation(init, one_program(update))
    transformation._discoveries = discoveries
    return transformation


def _structure(params: PyTree) -> Any:
    """A key for the structure of parameters: tree structure, shapes and dtypes."""
    leaves, structure = jax.tree.flatten(params)
    return structure, [(jnp.shape(x), jnp.result_type(x)) if eqx.is_array_like(x) else x for x in leaves]


def _sum(displacement, step):
    """The sum of both, or the one that is not None."""
    present = [x for x in (displacement, step) if x is not None]
    return sum(present[1:], start=present[0]) if present else None


def _is_none(leaf) -> bool:
    return leaf is None
