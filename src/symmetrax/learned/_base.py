"""Optimizers that are networks, and the optax transformation each of them is.

A network proposes a `Proposal` from the `Observation` of a step; what happens then is the same for all of
them and stands here: x <- a.(x + v), or x <- a.x + v where the group element comes first (`_step.py`).
"""

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from symmetrax._extras import one_program
from symmetrax._numbers import as_before, at_precision, check_whole, hold, settled_state
from symmetrax._tree import all_finite, select
from symmetrax.learned._features import Observation, Proposal, ordinary
from symmetrax.learned._gates import Gate, gated
from symmetrax.symmetry._base import AbstractLieSymmetry
from symmetrax.teleportation._guard import NO_STEP, NOT_MEASURED, REFUSALS, Guard
from symmetrax.teleportation._objectives import orbit_derivative, slopes
from symmetrax.teleportation._orbit import Orbit
from symmetrax.teleportation._schedule import Schedule, due, settled
from symmetrax.teleportation._search import Oracle
from symmetrax.teleportation._step import TeleportStep, Transport, teleport_by

#: Whether the step comes before the group element or after it.
Order = Literal["step-first", "teleport-first"]

#: What networks may ask to see in `Observation` that has a price.
Want = Literal["symmetry", "orbit_derivative", "slopes", "best"]

# What `step_size`, `momentum` and `gate` of the state say where the network emits none.
NOT_EMITTED = -1.0


class LearnedState(NamedTuple):
    """State of a learned optimizer's transformation.

    `count` is the number of steps taken, `memory` the network's recurrent state, `previous` its last step
    (before the teleport, and moved by it as `transport` says). `algebra` (zeros when no teleport was due),
    `defect` and `refused` tell of the last teleport, `step_size`, `momentum` and `gate` what the network
    emitted (-1 if it does not); read them with `optax.tree.get(state, "refused")`. Where what the network is
    shown, or the step that comes of it, is infinite or NaN, the update is zero, memory and last step stay as
    they were, and `refused` is the code of `symmetrax.REFUSALS` that says so. `outcomes[code]` counts the
    teleports that ended with each code, outcomes[0] those that were accepted, and the steps that were none.
    No leaf changes its type.

    >>> LearnedState._fields[:7]
    ('count', 'memory', 'previous', 'algebra', 'defect', 'refused', 'outcomes')
    """

    count: Int[Array, ""]
    memory: PyTree
    previous: PyTree
    algebra: Float[Array, "..."]
    defect: Float[Array, ""]
    refused: Int[Array, ""]
    outcomes: Int[Array, " codes"]
    step_size: Float[Array, ""]
    momentum: Float[Array, ""]
    gate: Float[Array, ""]


class AbstractLearnedOptimizer(eqx.Module):
    """A network that optimizes; its weights are the leaves of the module.

    >>> import jax, jax.numpy as jnp, symmetrax as sx
    >>> network = sx.FlatGradientLSTM(2, key=jax.random.key(0))
    >>> optimizer = network.transform()  # an optax transformation
    >>> updates, state = optimizer.update(jnp.ones(2), optimizer.init(jnp.zeros(2)), jnp.zeros(2))
    >>> updates.shape
    (2,)
    """

    #: Name under which artifacts of this class are saved.
    kind: eqx.AbstractClassVar[str]

    @property
    def wants(self) -> tuple[Want, ...]:
        """Which fields of `Observation` the network reads that have a price: all need a symmetry, even where
        the
        network never teleports, and all but "symmetry" more derivatives of the loss."""
        return ()

    @property
    def algebra_bound(self) -> float | None:
        """A bound on the norm of the emitted coordinates, or of each layer's; `exp` is cheaper then.

        None where there is no bound.
        """
        return None

    def vector_products(self) -> list[Any]:
        """Those of its matrices that it multiplies with exactly one vector in every step, by `product`.

        `TruncatedBPTT` takes their derivatives once for a window, where that is faster.
        """
        return []

    @abstractmethod
    def memory(self, params: PyTree, symmetry: AbstractLieSymmetry | None = None) -> PyTree:
        """The recurrent state before the first step."""

    @abstractmethod
    def propose(self, info: Observation, memory: PyTree) -> tuple[Proposal, PyTree]:
        """A move, and the recurrent state after it."""

    @abstractmethod
    def example(self) -> Observation:
        """An input of the right shape, with flat vectors for gradient and parameters where the network takes
        any structure: artifacts record the step that it gives."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Keyword arguments, as JSON values, from which the class builds a network of this shape."""

    @abstractmethod
    def contract(self) -> dict[str, Any]:
        """The inputs and outputs of the network, in order, as JSON values: two networks of one contract agree
        on
        the meaning of every input and output."""

    def transform(
        self,
        symmetry: AbstractLieSymmetry | None = None,
        *,
        schedule: Schedule = None,
        guard: Guard | None = Guard(),  # noqa: B008 (a frozen module)
        meta_order: int = 1,
        transport: Transport = "keep",
        as_printed: bool = False,
        gate: Gate = "hard",
        order: Order = "step-first",
    ) -> optax.GradientTransformationExtraArgs:
        """This network as an optax transformation.

        The step is v = u, where u is the network's update, or -step_size * gradient if it emits a step size;
        if it emits a momentum, v <- momentum * v + u. Without `symmetry` that is all. With it, on schedule,
        follows the group element a = exp(algebra): x <- a.(x + v), returned as the update
        v + (a.(x + v) - e.(x + v)) with both terms from the same code, so that zero coordinates give exactly
        v. This is algorithm 3 of arXiv:2504.15399, read as one iterate. With `order="teleport-first"` it is
        x <- a.x + v instead: the network, which saw x, chooses the element there, and its step starts from
        a.x with the gradient carried along by `symmetry.transport_gradient`, exactly and at no further
        gradient, as in algorithm 2.

        **Arguments:** `schedule` gives the steps, counted from 0, that teleport (default: all); `guard`
        refuses bad teleports and needs the extra argument `value_fn` in `update`. `meta_order=1` treats the
        gradient that the network sees as a constant when differentiating through `update`; 2 differentiates
        through it. `transport` says what becomes of v when a teleport is made: "keep" it, "carry" it along as
        a displacement, da(v), or "reset" it to zero; one that is refused keeps it. `as_printed` follows the
        algorithm to the letter: it teleports at every step, and on schedule applies the momentum twice,
        x <- a.(x + momentum * v + u); v is kept. `gate` says what becomes of the probability p of a network
        that emits one: the algebra coordinates are multiplied by p ("soft", which has a derivative and is for
        training), or by 1 where p > 1/2 and 0 elsewhere ("hard"). Extra arguments of `update`: `value`,
        `value_fn`, `batch`, `key`; others are ignored.

        Raises ValueError if `symmetry` is given to a network without algebra coordinates of its shape, if the
        network emits no step, and for `as_printed` without a momentum or with another transport than "keep".
        """
        if meta_order not in (1, 2):
            raise ValueError(f"`meta_order` must be 1 or 2, got {meta_order!r}.")
        if transport not in get_args(Transport):
            raise ValueError(
                f"`transport` must be one of {', '.join(get_args(Transport))}, got {transport!r}."
            )
        if as_printed and transport != "keep":
            raise ValueError(f"as_printed keeps the velocity; it does not go with transport={transport!r}.")
        if gate not in get_args(Gate):
            raise ValueError(f"`gate` must be one of {', '.join(get_args(Gate))}, got {gate!r}.")
        if order not in get_args(Order):
            raise ValueError(f"`order` must be one of {', '.join(get_args(Order))}, got {order!r}.")
        if as_printed and order != "step-first":
            raise ValueError(f"as_printed steps first; it does not go with order={order!r}.")
        return _transformation(
            self, symmetry, schedule, guard, meta_order, transport, as_printed, gate, order
        )


def _transformation(network, symmetry, schedule, guard, meta_order, transport, as_printed, gate, order):
    schedule = settled(schedule)

    def init(params: PyTree) -> LearnedState:
        held = hold(params, network, symmetry)
        if symmetry is not None:
            check_whole(params)
            symmetry.check(held.numbers)
        numbers, dtype = held.inside, held.dtype
        state = LearnedState(
            count=jnp.array(0),
            memory=network.memory(numbers, symmetry),
            previous=optax.tree.zeros_like(numbers),
            algebra=jnp.zeros(()) if symmetry is None else symmetry.zero(),
            defect=jnp.array(NOT_MEASURED),
            refused=jnp.array(0),
            outcomes=jnp.zeros(len(REFUSALS), int),
            step_size=jnp.array(NOT_EMITTED),
            momentum=jnp.array(NOT_EMITTED),
            gate=jnp.array(NOT_EMITTED),
        )
        state = at_precision(state, dtype)
        return settled_state(state._replace(previous=held.outside(state.previous)))

    def update(updates, state, params=None, *, value=None, value_fn=None, batch=None, key=None, **extra):
        del extra  # optax's own, and none that a network reads
        if params is None:
            raise ValueError("A learned optimizer needs params: call update(grads, state, params).")
        if symmetry is not None:
            check_whole(params)
        held = hold(params, network, symmetry)
        seen = look(
            network.wants,
            held.gradient(updates),
            held.inside,
            held.widened(state.previous),
            symmetry,
            value=None if value is None else jnp.asarray(value, held.dtype),
            value_fn=held.loss(value_fn),
            batch=batch,
            key=key,
            meta_order=meta_order,
        )
        info, sound = _harmless(seen)
        displacement, after = stepped(info, state, held.dtype, value_fn=held.loss(value_fn), batch=batch)
        made = sound & held.lands(displacement) & all_finite((after.memory, after.previous))
        after = as_before(after._replace(previous=held.beside(after.previous)), state)
        stayed = state._replace(
            count=after.count,
            algebra=jnp.zeros_like(state.algebra),
            defect=jnp.full_like(state.defect, NOT_MEASURED),
            refused=jnp.full_like(state.refused, NO_STEP),
            outcomes=state.outcomes.at[NO_STEP].add(1),
        )
        displacement = select(made, displacement, optax.tree.zeros_like(displacement))
        return held.updates(displacement, updates), select(made, after, stayed)

    def stepped(info, state, dtype, *, value_fn, batch) -> tuple[PyTree, LearnedState]:
        """The displacement that the network decides on, and the state after it, finite or not."""
        params = info.params
        move, memory = at_precision(network, dtype).propose(info, state.memory)
        now = due(schedule, state.count)
        state = state._replace(
            count=state.count + 1,
            memory=memory,
            refused=jnp.zeros_like(state.refused),
            step_size=_emitted(move.step_size, state.step_size),
            momentum=_emitted(move.momentum, state.momentum),
            gate=_emitted(move.gate, state.gate),
        )
        if symmetry is None or (move.algebra is None and network.wants):
            step = _step(move, info)
            return displaced(step, move, info, now), state._replace(previous=step)
        if order == "teleport-first":
            teleport = teleported(move, params, now, info.previous, params, value_fn, batch)
            gradient = teleport.gradient(info.gradient)
            previous = teleport.velocity(info.previous, transport)
            step = _step(move, info._replace(gradient=gradient, previous=previous))
            displacement = optax.tree.add(teleport.jump.displacement, step)
            return displacement, _told(state, teleport, previous=step)
        step = _step(move, info)
        displacement = displaced(step, move, info, now)
        landing = optax.tree.add(params, displacement)
        due_now = jnp.array(True) if as_printed else now
        teleport = teleported(move, landing, due_now, displacement, params, value_fn, batch)
        displacement = optax.tree.add(displacement, teleport.jump.displacement)
        return displacement, _told(state, teleport, previous=teleport.velocity(step, transport))

    def teleported(move, start, due, step, fallback, value_fn, batch) -> TeleportStep:
        """The teleport that the network asks for, from `start`: gated, and the identity where none is due."""
        bound = network.algebra_bound
        xi = jnp.where(due, gated(move, gate, symmetry), 0.0)
        return teleport_by(
            symmetry,
            xi.astype(jnp.result_type(*jax.tree.leaves(start))),
            start,
            batch,
            guard=guard,
            value_fn=value_fn,
            # With bounded coordinates the exponential takes fewer products.
            exp=symmetry.exp if bound is None else partial(symmetry.exp_within, reach=bound),
            due=due,
            step=step,
            fallback=fallback,
        )

    def displaced(step, move, info, now) -> PyTree:
        """The step, or as printed the one with the momentum applied to it again."""
        if not as_printed:
            return step
        if move.momentum is None:
            raise ValueError("as_printed applies the momentum twice, but this network emits none.")
        return select(now, _step(move, info._replace(previous=step)), step)

    return optax.GradientTransformationExtraArgs(init, one_program(update))


def _told(state: LearnedState, teleport: TeleportStep, previous: PyTree) -> LearnedState:
    """The state that tells of a teleport."""
    due, jumped = teleport.due, teleport.jump
    return state._replace(
        previous=previous,
        algebra=teleport.algebra,
        defect=jnp.where(due, jumped.defect, NOT_MEASURED),
        refused=jnp.where(due, jumped.refused, 0),
        outcomes=state.outcomes.at[jumped.refused].add(due.astype(state.outcomes.dtype)),
    )


def look(
    wants: tuple[Want, ...],
    gradient: PyTree,
    params: PyTree,
    previous: PyTree,
    symmetry: AbstractLieSymmetry | None,
    *,
    value: Float[Array, ""] | None,
    value_fn: Callable[[PyTree], Float[Array, ""]] | None,
    batch: PyTree,
    key: Key[Array, ""] | None,
    meta_order: int = 1,
) -> Observation:
    """The observation of a network that asks for `wants`; a constant to derivatives if `meta_order` is 1."""
    seen = {"gradient": gradient, "value": value}
    dear = [want for want in wants if want != "symmetry"]
    if dear:
        seen |= _measured(dear, gradient, params, symmetry, value_fn, batch)
    seen = jax.lax.stop_gradient(seen) if meta_order == 1 else seen
    return Observation(params=params, previous=previous, key=key, symmetry=symmetry, **seen)


def _harmless(info: Observation) -> tuple[Observation, Bool[Array, ""]]:
    """The observation, with zeros for all derivatives where any is not finite, and whether all are.

    A step from zeros is not made either, but has finite derivatives. The loss may overflow where its gradient
    does not: that is for networks that read it.
    """
    names = ("gradient", "orbit_derivative", "slopes", "best")
    seen = {name: getattr(info, name) for name in names}
    sound = all_finite(seen)
    return info._replace(**select(sound, seen, optax.tree.zeros_like(seen))), sound


def _measured(dear, gradient, params, symmetry, value_fn, batch) -> dict[str, Any]:
    """Fields of `Observation` that cost derivatives of the loss."""
    if symmetry is None or value_fn is None:
        missing = "a symmetry in transform()" if symmetry is None else "value_fn=... in update()"
        raise ValueError(
            f"This network reads {', '.join(dear)}, derivatives along the orbit: it needs {missing}."
        )
    if symmetry.zero().size == 0:
        raise ValueError(
            f"This network reads {', '.join(dear)}, but {type(symmetry).__name__} has no algebra to take "
            "derivatives in: its groups are discrete. Use a network that does not look along the orbit."
        )
    # In units in which squares neither overflow nor vanish: slopes and best points have no unit.
    unit = ordinary(gradient)
    orbit = Orbit(
        lambda w: value_fn(w) / unit,
        params,
        symmetry,
        batch,
        gradient=jax.tree.map(lambda g: g / unit, gradient),
    )
    measures = {
        "orbit_derivative": lambda: orbit_derivative(orbit.value_fn, params, symmetry, batch) * unit * unit,
        "slopes": lambda: slopes(orbit, orbit.zero()),
        "best": lambda: Oracle()(orbit),
    }
    return {want: measures[want]() for want in dear}


def _step(move: Proposal, info: Observation) -> PyTree:
    """u, or momentum * previous + u."""
    size, momentum = move.step_size, move.momentum
    step = update_from(move, info.gradient)
    if step is not None and size is not None:
        raise ValueError("This network emits an update and a step size: only one of them can be the step.")
    if step is None:
        if size is None:
            raise ValueError(
                "This network emits no step, neither an update nor a step size: join it with one that "
                "does, as in Joint((CoordinatewiseLSTM(key=key), network))."
            )
        step = jax.tree.map(lambda g: -size * g, info.gradient)
    if momentum is not None:
        step = jax.tree.map(lambda v, u: momentum * v + u, info.previous, step)
    return jax.tree.map(lambda u, g: jnp.asarray(u, g.dtype), step, info.gradient)


def update_from(move: Proposal, gradient: PyTree) -> PyTree:
    """The update of a move, or what it makes of the gradient if it is a function; None if there is none."""
    step: Any = move.update
    return step(gradient) if callable(step) and not _is_like(gradient, step) else step


def _is_like(gradient: PyTree, step: Any) -> bool:
    """Whether a step is a tree like the gradient: parameters may be modules, which can be called as well."""
    alike = jax.tree.structure(step) == jax.tree.structure(gradient)
    return alike and all(eqx.is_array_like(x) for x in jax.tree.leaves(step))


def _emitted(value: Array | None, last: Array) -> Array:
    return last if value is None else jnp.asarray(value, last.dtype)
