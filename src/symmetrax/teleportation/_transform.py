"""`teleported`: wraps an optax optimizer to move along a symmetry before it steps."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from symmetrax._extras import bound, one_program, updated
from symmetrax._numbers import check_whole
from symmetrax._tree import anywhere, leaf_names, select
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
from symmetrax.search._basis import AbstractElementSearch
from symmetrax.search._levelset import AbstractPointSearch
from symmetrax.symmetry._base import AbstractLieSymmetry
from symmetrax.symmetry._network import NetworkSymmetry
from symmetrax.teleportation._guard import NOT_MEASURED, OUTCOMES
from symmetrax.teleportation._teleport import (
    GuardChoice,
    SearchChoice,
    SymmetryChoice,
    Teleporter,
    check_auto,
    discovered,
    settled_guard,
)
from symmetrax.teleportation._transport import (
    Carry,
    TransportChoice,
    carry,
    check_movable,
    groups_carried,
    makers,
    settled_transport,
)


class TeleportedState(NamedTuple):
    """State of `teleported`: the step count, the inner state, the last teleport and counts of all outcomes.

    `algebra` (zeros if no teleport was due, None for searches without coordinates), `loss_change` and
    `outcome` are as in `Teleport`. `outcomes[code]` counts the teleports that ended with each code of
    `OUTCOMES`: outcomes[0] were accepted, the others rejected. `evaluations` counts the gradients spent by
    all searches so far, `progress` is the memory of a `Plateau`, and `memory` that of an
    `AbstractElementSearch`. Read them with `optax.tree.get(state, "outcomes")`.

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
    memory: PyTree = ()


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

    _discoveries: list["_Discovered"]

    @property
    def found(self) -> Discovery | None:
        """The result of the latest search; None before `init`, and if you passed a symmetry."""
        return self._discoveries[-1].discovery if self._discoveries else None


def teleported(
    inner: optax.GradientTransformation,
    symmetry: SymmetryChoice = None,
    *,
    objective: Objective = squared_gradient_norm,
    search: SearchChoice = None,
    schedule: Schedule = None,
    guard: GuardChoice = "default",
    transport: TransportChoice = "default",
    loss: Callable[[PyTree, PyTree], Float[Array, ""]] | None = None,
    batch: PyTree = None,
) -> TeleportedTransformation:
    """Wraps the optax optimizer `inner`: on schedule, teleports first, then steps from the new point.

    The returned update is the whole displacement, teleport plus inner step, and needs the gradient at
    `params`. So apply it last in a chain, and put gradient clipping, masks and learning-rate schedules inside
    `inner`. Each teleport costs its search (see `Teleport`), two losses for the guard, and one
    gradient at the new point. With an exact linear symmetry and an objective of the gradient alone, the
    gradient at `params` serves for the search and the step, and only the guard adds to the cost. A rejected
    teleport leaves the parameters where they are; the state records the reason.

    **Arguments:** `objective`, `search` and `guard` are as in `teleport`. `schedule` selects the steps,
    counted from 0, before which to teleport (default: all): numbers, booleans, a function of the count such
    as `every_n_steps(10)`, or a `Plateau`. `transport` determines how a teleport changes the inner
    optimizer's state: "keep" leaves it, "reset" reinitializes it, and "carry" moves it with the parameters
    (momentum like gradients; squares exactly for scalings, signs and permutations), raising ValueError for
    state it does not know; `Carry` has a choice for squares along rotations. The default is "keep", and
    `Carry("mean")` for a search that returns an element, such as `Eigenbasis`: that chooses a basis for the
    optimizer, whose state must then move there too.

    `update` needs the extra argument `value_fn` (optax's name for a function from params to loss), and
    `batch` for data-dependent actions; a `Plateau` reads the loss from `value` if you pass it. If `value_fn`
    has further arguments, as in value_fn(params, x, y), pass them to `update` by name, as you do for optax's
    line searches: update(..., x=x, y=y). The inner optimizer receives those of them that it accepts.
    Parameters that are not floating-point arrays do not move. If `params` is a filtered equinox module, let
    `value_fn` recombine the module: `lambda w: loss(eqx.combine(w, model), batch)`.

    With `symmetry="auto"`, `init` finds the symmetries outside compiled code from `loss(params, batch)`. You
    must then pass `loss` here, and `batch` (or a function of a key that draws one) if the loss needs data.
    All exact symmetries except rotations are used together (and with `Eigenbasis` rotations too). With
    transport="carry", only groups along which the state of `inner` can be carried are considered (scalings,
    if it holds squares). `optimizer.found` is the `Discovery`, made once per structure of the parameters. It
    is not part of the state, which holds only arrays: in a new process, call `init` before you restore a
    saved state.

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
    made = _Teleported(inner, symmetry, objective, search, schedule, guard, transport, loss, batch)
    transformation = TeleportedTransformation(made.init, one_program(made.update))
    transformation._discoveries = made.discoveries
    return transformation


class _Discovered(NamedTuple):
    """The symmetries found for parameters of one structure, and the teleporter along all of them."""

    structure: Any
    discovery: Discovery
    teleporter: Teleporter


class _Start(NamedTuple):
    """The start of a step: floating-point parameters, their gradient, other leaves, loss and data."""

    numbers: PyTree
    gradient: PyTree
    rest: PyTree
    value_fn: Callable[[PyTree], Float[Array, ""]]
    batch: PyTree

    def whole(self, numbers: PyTree) -> PyTree:
        """The parameters with these floating-point ones."""
        return eqx.combine(numbers, self.rest)

    def value(self, numbers: PyTree) -> Float[Array, ""]:
        return self.value_fn(self.whole(numbers))

    def after(self, displacement: PyTree) -> PyTree:
        """The parameters at the end of a displacement."""
        return self.whole(optax.tree.add(self.numbers, displacement))


class _Moved(NamedTuple):
    """A teleport, or none: what the inner step starts from, and what the state records."""

    displacement: PyTree
    gradient: PyTree
    state: TeleportedState


@dataclasses.dataclass(frozen=True)
class _Teleported:
    """The two functions of `teleported`, whose arguments are the fields."""

    inner: optax.GradientTransformation
    symmetry: SymmetryChoice
    objective: Objective
    search: SearchChoice
    schedule: Schedule
    guard: GuardChoice
    transport: TransportChoice
    loss: Callable[[PyTree, PyTree], Float[Array, ""]] | None
    batch: PyTree
    discoveries: list[_Discovered] = dataclasses.field(default_factory=list)
    #: The teleporter along the symmetry given; None if the symmetries are to be found.
    given: Teleporter | None = dataclasses.field(init=False, default=None)

    def __post_init__(self):
        object.__setattr__(self, "transport", settled_transport(self.transport, self.search))
        if not isinstance(self.inner, optax.GradientTransformation):
            hint = hasattr(self.inner, "gradient_transformation") * ": pass its .gradient_transformation()"
            raise TypeError(f"`teleported` wraps an optax optimizer, got {type(self.inner).__name__}{hint}.")
        if isinstance(self.transport, Carry):
            if isinstance(self.search, AbstractPointSearch):
                raise ValueError(
                    "transport='carry' moves the state by a group element, and this search has none: use "
                    "'keep' or 'reset'."
                )
            check_movable(makers(self.inner))
        object.__setattr__(self, "schedule", settled(self.schedule))
        if not isinstance(self.symmetry, str):
            object.__setattr__(self, "given", self._teleporter(self.symmetry))
            return
        check_auto(self.symmetry)
        settled_guard(self.guard, None)
        if self.loss is None:
            raise ValueError(
                "symmetry='auto' finds the symmetries of a loss: pass it, as in teleported(inner, 'auto', "
                "loss=loss)."
            )

    def init(self, params: PyTree) -> TeleportedState:
        """Returns the initial state; finds the symmetries first if the caller passed none."""
        check_whole(params)
        if isinstance(self.symmetry, AbstractLieSymmetry):
            self.symmetry.check(params)
        state = self._stepper.init(params)
        if isinstance(self.symmetry, str):
            self._discover(params, state)
        teleporter = self._along(params)
        symmetry = teleporter.symmetry
        if isinstance(self.transport, Carry) and isinstance(symmetry, NetworkSymmetry):
            # Raise for state that cannot be carried now, not at the first teleport.
            identity, squares = symmetry.identity(), self.transport.squares
            eqx.filter_eval_shape(
                lambda s: carry(s, symmetry, identity, params, inner=self.inner, squares=squares), state
            )
        return TeleportedState(
            count=jnp.zeros((), int),
            inner=state,
            algebra=teleporter.zero(),
            loss_change=jnp.array(NOT_MEASURED, float),
            outcome=jnp.zeros((), int),
            outcomes=jnp.zeros(len(OUTCOMES), int),
            evaluations=jnp.zeros(()),
            progress=beginning(),
            memory=teleporter.memory(params),
        )

    def update(self, updates, state, params=None, *, value_fn=None, batch=None, **extra):
        """Returns the displacement of a teleport, if one is due, plus the inner step from its end."""
        if params is None or value_fn is None:
            missing = "params" if params is None else "value_fn"
            raise ValueError(
                f"`teleported` needs {missing}: call update(grads, state, params, value_fn=...), where "
                "value_fn maps params to the loss."
            )
        check_whole(updates)
        extra |= {} if batch is None else {"batch": batch}
        value_fn = bound(value_fn, extra)
        numbers, rest = eqx.partition(params, eqx.is_inexact_array)
        gradient = jax.tree.map(lambda w, g: None if w is None else g, numbers, updates, is_leaf=_is_none)
        _check_gradients(numbers, gradient)
        start = _Start(numbers, gradient, rest, value_fn, batch)

        progress = state.progress
        if isinstance(self.schedule, Plateau):
            value = extra["value"] if extra.get("value") is not None else value_fn(params)
            progress = watched(self.schedule, progress, value)
        moves = due(self.schedule, state.count, progress)
        teleporter = self._along(params)
        _check_memory(state, teleporter, params)
        state = state._replace(memory=teleporter.watched(state.memory, gradient, state.count))

        def stay() -> _Moved:
            return self._stay(start, state)

        def move_where_due() -> _Moved:
            return select(moves, self._move(teleporter, start, state), stay())

        # Under `vmap`, search only at steps at which some member of the batch teleports.
        moved = jax.lax.cond(anywhere(moves), move_where_due, stay)
        there = start.after(moved.displacement)
        offered = {**extra, "value_fn": value_fn, "grad": eqx.combine(moved.gradient, updates)}
        step, inner = updated(
            self._stepper,
            offered["grad"],
            moved.state.inner,
            there,
            offered,
            value=lambda: value_fn(there),
        )
        displacement = jax.tree.map(_sum, moved.displacement, step, is_leaf=_is_none)
        progress = progress._replace(waited=jnp.where(moves, 0, progress.waited))
        return displacement, moved.state._replace(count=state.count + 1, inner=inner, progress=progress)

    def _move(self, teleporter: Teleporter, start: _Start, state: TeleportedState) -> _Moved:
        """Teleports, and carries gradient and inner state to the end."""
        step = teleporter(start.value, start.numbers, start.batch, start.gradient, state.count, state.memory)
        displacement, loss_change, outcome = step.jump
        inner = state.inner
        if self.transport == "reset":
            inner = self._stepper.init(start.after(displacement))
        elif isinstance(self.transport, Carry) and teleporter.symmetry is not None:
            params, squares = start.whole(start.numbers), self.transport.squares
            inner = carry(inner, teleporter.symmetry, step.element, params, start.batch, self.inner, squares)
        if teleporter.carries_gradients:
            gradient = step.gradient(start.gradient)
        else:
            gradient = jax.grad(start.value)(optax.tree.add(start.numbers, displacement))
        recorded = state._replace(
            inner=select(outcome == 0, inner, state.inner),
            algebra=None if state.algebra is None else step.algebra.astype(state.algebra.dtype),
            loss_change=loss_change.astype(state.loss_change.dtype),
            outcome=outcome.astype(state.outcome.dtype),
            outcomes=state.outcomes.at[outcome].add(1),
            evaluations=state.evaluations + teleporter.evaluations(known=True),
            memory=teleporter.carried(state.memory, step.element) if step.symmetry is not None else (),
        )
        return _Moved(displacement, gradient, recorded)

    def _stay(self, start: _Start, state: TeleportedState) -> _Moved:
        """Leaves everything as it is."""
        recorded = state._replace(
            algebra=optax.tree.zeros_like(state.algebra),
            loss_change=jnp.full_like(state.loss_change, NOT_MEASURED),
            outcome=jnp.zeros_like(state.outcome),
        )
        return _Moved(optax.tree.zeros_like(start.numbers), start.gradient, recorded)

    @property
    def _stepper(self) -> optax.GradientTransformationExtraArgs:
        return optax.with_extra_args_support(self.inner)

    def _teleporter(self, symmetry: AbstractLieSymmetry | None) -> Teleporter:
        # Symmetries found automatically are linear, as the default guard of no symmetry assumes.
        guard = settled_guard(self.guard, None if isinstance(self.symmetry, str) else symmetry)
        return Teleporter.of(symmetry, self.objective, self.search, guard)

    def _along(self, params: PyTree) -> Teleporter:
        """Returns the teleporter along the symmetry given, or found for parameters of this structure."""
        if self.given is not None:
            return self.given
        structure = _structure(params)
        for found in self.discoveries:
            if found.structure == structure:
                return found.teleporter
        raise ValueError(
            "symmetry='auto' has not looked at parameters of this structure yet: call init(params) "
            "once in this process, before the first update and before you use a state that was saved."
        )

    def _discover(self, params: PyTree, state: optax.OptState) -> None:
        """Finds the symmetries of the loss, once per structure of the parameters."""
        structure = _structure(params)
        if all(found.structure != structure for found in self.discoveries):
            assert self.loss is not None  # checked when the optimizer was made
            groups = GROUPS
            if isinstance(self.transport, Carry):
                groups = groups_carried(state, params, self.inner, self.transport.squares)
            rotates = isinstance(self.search, AbstractElementSearch)
            found = discovered(self.loss, params, self.batch, groups, compact=rotates)
            teleporter = self._teleporter(found.joined(compact=rotates))
            self.discoveries.append(_Discovered(structure, found, teleporter))


def _check_gradients(numbers: PyTree, gradient: PyTree) -> None:
    """Raises ValueError if a parameter has None for a gradient, naming it."""
    if jax.tree.structure(numbers) == jax.tree.structure(gradient):
        return
    missing = [name for name in leaf_names(numbers) if name not in set(leaf_names(gradient))]
    if missing:
        raise ValueError(
            f"The gradient of {missing[0]} is None: differentiate the loss by all floating-point parameters, "
            "or leave those that you don't train out of `params`."
        )


def _structure(params: PyTree) -> Any:
    """A key for the structure of parameters: tree structure, shapes and dtypes."""
    leaves, structure = jax.tree.flatten(params)
    return structure, [(jnp.shape(x), jnp.result_type(x)) if eqx.is_array_like(x) else x for x in leaves]


def _check_memory(state: TeleportedState, teleporter: Teleporter, params: PyTree) -> None:
    """Raises ValueError for the state of another search, with other coordinates or another memory."""
    fresh = eqx.filter_eval_shape(lambda p: (teleporter.zero(), teleporter.memory(p)), params)
    if jax.tree.structure((state.algebra, state.memory)) != jax.tree.structure(fresh):
        raise ValueError(
            f"This state is not one of {type(teleporter.search).__name__}: it has no memory that fits, as "
            "when it was saved with another search. Keep what the optimizer remembers, by "
            "optimizer.init(params)._replace(count=state.count, inner=state.inner)."
        )


def _sum(displacement, step):
    """The sum of both, or the one that is not None."""
    present = [x for x in (displacement, step) if x is not None]
    return sum(present[1:], start=present[0]) if present else None


def _is_none(leaf) -> bool:
    return leaf is None
