"""Base class of learned optimizers, and the optax transformation that runs one.

A network proposes a `Proposal` from the `Observation` of a step. This module applies it, in the same way for
every network: x <- a.(x + v), or x <- a.x + v if the group element comes first (`_step.py`).
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
from symmetrax.objectives._base import orbit_derivative, slopes
from symmetrax.schedules._schedule import Schedule, due, settled
from symmetrax.search._orbit import Orbit
from symmetrax.search._searches import Oracle
from symmetrax.symmetry._base import AbstractLieSymmetry
from symmetrax.teleportation._guard import NO_STEP, NOT_MEASURED, OUTCOMES, Guard
from symmetrax.teleportation._step import TeleportStep, Transport, teleport_by

#: Whether the step is taken before or after the group element is applied.
Order = Literal["step-first", "teleport-first"]

#: Fields of `Observation` that are computed only on request, because they are costly or need a symmetry.
Want = Literal["symmetry", "orbit_derivative", "slopes", "best"]

# Value of `step_size`, `momentum` and `gate` in the state if the network does not emit them.
NOT_EMITTED = -1.0


class LearnedState(NamedTuple):
    """State of a learned optimizer's transformation.

    `count` is the number of steps taken, `memory` the network's recurrent state, and `previous` its last step
    (before the teleport, and moved by it according to `transport`). `algebra` (zeros if no teleport was due),
    `loss_change` and `outcome` describe the last teleport; `step_size`, `momentum` and `gate` hold the values
    the network emitted, or -1 if it does not emit them. Read them with `optax.tree.get(state, "outcome")`. If
    an input of the network, or the resulting step, is infinite or NaN, the update is zero, `memory` and
    `previous` stay unchanged, and `outcome` holds the corresponding code of `OUTCOMES`. `outcomes[code]`
    counts the teleports that ended with each code (`outcomes[0]`: accepted), and the steps skipped as
    non-finite. Every leaf keeps its dtype.

    >>> LearnedState._fields[:7]
    ('count', 'memory', 'previous', 'algebra', 'loss_change', 'outcome', 'outcomes')
    """

    count: Int[Array, ""]
    memory: PyTree
    previous: PyTree
    algebra: Float[Array, "..."]
    loss_change: Float[Array, ""]
    outcome: Int[Array, ""]
    outcomes: Int[Array, " codes"]
    step_size: Float[Array, ""]
    momentum: Float[Array, ""]
    gate: Float[Array, ""]


class AbstractLearnedOptimizer(eqx.Module):
    """Base class of learned optimizers: a network whose weights are the leaves of the module.

    >>> import jax, jax.numpy as jnp, symmetrax as sx
    >>> network = sx.learned.FlatGradientLSTM(2, key=jax.random.key(0))
    >>> optimizer = network.transform()  # an optax transformation
    >>> updates, state = optimizer.update(jnp.ones(2), optimizer.init(jnp.zeros(2)), jnp.zeros(2))
    >>> updates.shape
    (2,)
    """

    #: Name that identifies this class in saved artifacts.
    kind: eqx.AbstractClassVar[str]

    @property
    def wants(self) -> tuple[Want, ...]:
        """Fields of `Observation` that the network reads and that are computed only on request.

        All of them need a symmetry, even if the network never teleports; all but "symmetry" also need further
        derivatives of the loss.
        """
        return ()

    @property
    def algebra_bound(self) -> float | None:
        """A bound on the norm of the emitted coordinates, or of each layer's, or None if they are unbounded.

        With a bound, `exp` is cheaper.
        """
        return None

    def vector_products(self) -> list[Any]:
        """The matrices that the network multiplies by exactly one vector per step, with `product`.

        `TruncatedBPTT` computes their gradients once per window wherever that is faster.
        """
        return []

    @abstractmethod
    def memory(self, params: PyTree, symmetry: AbstractLieSymmetry | None = None) -> PyTree:
        """Returns the recurrent state before the first step."""

    @abstractmethod
    def propose(self, observation: Observation, memory: PyTree) -> tuple[Proposal, PyTree]:
        """Returns a proposal, and the recurrent state after it."""

    @abstractmethod
    def example(self) -> Observation:
        """Returns an input of the right shape; artifacts record the step that the network takes on it.

        Gradient and parameters are flat vectors if the network accepts any structure.
        """

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Returns keyword arguments, as JSON values, from which the class builds a network of this shape."""

    @abstractmethod
    def contract(self) -> dict[str, Any]:
        """Returns the network's inputs and outputs, in order, as JSON values.

        Two networks with equal contracts agree on the meaning of every input and output.
        """

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
        """Converts this network to an optax transformation.

        The step is v = u, where u is the network's update, or -step_size * gradient if it emits a step size;
        if it emits a momentum, v <- momentum * v + u. Without `symmetry` that is all. With it, scheduled
        steps also apply the group element a = exp(algebra): x <- a.(x + v). The returned update is
        v + (a.(x + v) - e.(x + v)), with both terms computed by the same code, so that zero coordinates give
        exactly v. This is algorithm 3 of arXiv:2504.15399, read as a single iterate. With
        `order="teleport-first"` it is x <- a.x + v instead: the network observes x and chooses the element
        there, and its step starts from a.x, with the gradient transported by `symmetry.transport_gradient`,
        exactly and without another gradient evaluation, as in algorithm 2.

        **Arguments:** `schedule` gives the steps, counted from 0, that teleport (default: all). `guard`
        refuses bad teleports and needs the extra argument `value_fn` in `update`. `meta_order=1` treats the
        gradient that the network sees as a constant when you differentiate through `update`; 2 differentiates
        through it. `transport` determines what an accepted teleport does to v: "keep" it, "carry" it along as
        a displacement, da(v), or "reset" it to zero; a refused teleport keeps it. `as_printed` follows the
        algorithm to the letter: it teleports at every step, and on schedule applies the momentum twice,
        x <- a.(x + momentum * v + u); v is kept. `gate` determines how the probability p of a network that
        emits one is used: the algebra coordinates are multiplied by p ("soft", which is differentiable and
        meant for training), or by 1 if p > 1/2 and 0 otherwise ("hard"). `update` takes the extra arguments
        `value`, `value_fn`, `batch` and `key`, and ignores others.

        Raises ValueError if you pass a `symmetry` to a network without algebra coordinates of its shape, if
        the network emits no step, and for `as_printed` without a momentum or with a transport other than
        "keep".
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
            loss_change=jnp.array(NOT_MEASURED),
            outcome=jnp.array(0),
            outcomes=jnp.zeros(len(OUTCOMES), int),
            step_size=jnp.array(NOT_EMITTED),
            momentum=jnp.array(NOT_EMITTED),
            gate=jnp.array(NOT_EMITTED),
        )
        state = at_precision(state, dtype)
        return settled_state(state._replace(previous=held.outside(state.previous)))

    def update(updates, state, params=None, *, value=None, value_fn=None, batch=None, key=None, **extra):
        del extra  # optax passes these to every transformation; networks read none of them
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
        observation, sound = _harmless(seen)
        displacement, after = stepped(
            observation, state, held.dtype, value_fn=held.loss(value_fn), batch=batch
        )
        made = sound & held.lands(displacement) & all_finite((after.memory, after.previous))
        after = as_before(after._replace(previous=held.beside(after.previous)), state)
        stayed = state._replace(
            count=after.count,
            algebra=jnp.zeros_like(state.algebra),
            loss_change=jnp.full_like(state.loss_change, NOT_MEASURED),
            outcome=jnp.full_like(state.outcome, NO_STEP),
            outcomes=state.outcomes.at[NO_STEP].add(1),
        )
        displacement = select(made, displacement, optax.tree.zeros_like(displacement))
        return held.updates(displacement, updates), select(made, after, stayed)

    def stepped(observation, state, dtype, *, value_fn, batch) -> tuple[PyTree, LearnedState]:
        """Returns the displacement that the network chooses and the state after it, finite or not."""
        params = observation.params
        proposal, memory = at_precision(network, dtype).propose(observation, state.memory)
        now = due(schedule, state.count)
        state = state._replace(
            count=state.count + 1,
            memory=memory,
            outcome=jnp.zeros_like(state.outcome),
            step_size=_emitted(proposal.step_size, state.step_size),
            momentum=_emitted(proposal.momentum, state.momentum),
            gate=_emitted(proposal.gate, state.gate),
        )
        if symmetry is None or (proposal.algebra is None and network.wants):
            step = _step(proposal, observation)
            return displaced(step, proposal, observation, now), state._replace(previous=step)
        if order == "teleport-first":
            teleport = teleported(proposal, params, now, observation.previous, params, value_fn, batch)
            gradient = teleport.gradient(observation.gradient)
            previous = teleport.velocity(observation.previous, transport)
            step = _step(proposal, observation._replace(gradient=gradient, previous=previous))
            displacement = optax.tree.add(teleport.jump.displacement, step)
            return displacement, _told(state, teleport, previous=step)
        step = _step(proposal, observation)
        displacement = displaced(step, proposal, observation, now)
        landing = optax.tree.add(params, displacement)
        due_now = jnp.array(True) if as_printed else now
        teleport = teleported(proposal, landing, due_now, displacement, params, value_fn, batch)
        displacement = optax.tree.add(displacement, teleport.jump.displacement)
        return displacement, _told(state, teleport, previous=teleport.velocity(step, transport))

    def teleported(proposal, start, due, step, fallback, value_fn, batch) -> TeleportStep:
        """Performs the teleport that the network asks for: gated, and the identity if none is due."""
        bound = network.algebra_bound
        xi = jnp.where(due, gated(proposal, gate, symmetry), 0.0)
        return teleport_by(
            symmetry,
            xi.astype(jnp.result_type(*jax.tree.leaves(start))),
            start,
            batch,
            guard=guard,
            value_fn=value_fn,
            # With bounded coordinates the exponential needs fewer matrix products.
            exp=symmetry.exp if bound is None else partial(symmetry.exp_within, max_norm=bound),
            due=due,
            step=step,
            fallback=fallback,
        )

    def displaced(step, proposal, observation, now) -> PyTree:
        """Returns the step or, with `as_printed`, the step with the momentum applied to it again."""
        if not as_printed:
            return step
        if proposal.momentum is None:
            raise ValueError("as_printed applies the momentum twice, but this network emits none.")
        return select(now, _step(proposal, observation._replace(previous=step)), step)

    return optax.GradientTransformationExtraArgs(init, one_program(update))


def _told(state: LearnedState, teleport: TeleportStep, previous: PyTree) -> LearnedState:
    """Returns the state with the outcome of a teleport recorded in it."""
    due, jumped = teleport.due, teleport.jump
    return state._replace(
        previous=previous,
        algebra=teleport.algebra,
        loss_change=jnp.where(due, jumped.loss_change, NOT_MEASURED),
        outcome=jnp.where(due, jumped.outcome, 0),
        outcomes=state.outcomes.at[jumped.outcome].add(due.astype(state.outcomes.dtype)),
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
    """Builds the observation of a network that asks for `wants`.

    With `meta_order=1` the gradient, the loss and all that is measured are constants to derivatives.
    """
    seen = {"gradient": gradient, "value": value}
    expensive = [want for want in wants if want != "symmetry"]
    if expensive:
        seen |= _measured(expensive, gradient, params, symmetry, value_fn, batch)
    seen = jax.lax.stop_gradient(seen) if meta_order == 1 else seen
    return Observation(params=params, previous=previous, key=key, symmetry=symmetry, **seen)


def _harmless(observation: Observation) -> tuple[Observation, Bool[Array, ""]]:
    """Replaces all derivatives by zeros if any is not finite; also returns whether all were finite.

    The step from zeros is discarded too, but has finite derivatives. The loss may overflow where its gradient
    does not; handling that is up to the networks that read it.
    """
    names = ("gradient", "orbit_derivative", "slopes", "best")
    seen = {name: getattr(observation, name) for name in names}
    sound = all_finite(seen)
    return observation._replace(**select(sound, seen, optax.tree.zeros_like(seen))), sound


def _measured(expensive, gradient, params, symmetry, value_fn, batch) -> dict[str, Any]:
    """Computes the fields of `Observation` that cost derivatives of the loss."""
    if symmetry is None or value_fn is None:
        missing = "a symmetry in transform()" if symmetry is None else "value_fn=... in update()"
        raise ValueError(
            f"This network reads {', '.join(expensive)}, derivatives along the orbit: it needs {missing}."
        )
    if symmetry.zero().size == 0:
        raise ValueError(
            f"This network reads {', '.join(expensive)}, but {type(symmetry).__name__} has no algebra to "
            "take derivatives in: its groups are discrete. Use a network that does not look along the orbit."
        )
    # In units whose squares neither overflow nor underflow; slopes and best points are dimensionless.
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
    return {want: measures[want]() for want in expensive}


def _step(proposal: Proposal, observation: Observation) -> PyTree:
    """Returns u, or momentum * previous + u."""
    size, momentum = proposal.step_size, proposal.momentum
    step = update_from(proposal, observation.gradient)
    if step is not None and size is not None:
        raise ValueError("This network emits an update and a step size: only one of them can be the step.")
    if step is None:
        if size is None:
            raise ValueError(
                "This network emits no step, neither an update nor a step size: join it with one that "
                "does, as in Joint((CoordinatewiseLSTM(key=key), network))."
            )
        step = jax.tree.map(lambda g: -size * g, observation.gradient)
    if momentum is not None:
        step = jax.tree.map(lambda v, u: momentum * v + u, observation.previous, step)
    return jax.tree.map(lambda u, g: jnp.asarray(u, g.dtype), step, observation.gradient)


def update_from(proposal: Proposal, gradient: PyTree) -> PyTree:
    """Returns the proposal's update, evaluated on the gradient if it is a function; None if there is none."""
    step: Any = proposal.update
    return step(gradient) if callable(step) and not _is_like(gradient, step) else step


def _is_like(gradient: PyTree, step: Any) -> bool:
    """Whether a step is a tree like the gradient: parameters may be modules, which can be callable too."""
    alike = jax.tree.structure(step) == jax.tree.structure(gradient)
    return alike and all(eqx.is_array_like(x) for x in jax.tree.leaves(step))


def _emitted(value: Array | None, last: Array) -> Array:
    return last if value is None else jnp.asarray(value, last.dtype)
