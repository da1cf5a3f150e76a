"""The optax transformation that runs a learned optimizer.

A network proposes a `Proposal` from the `Observation` of a step. This module applies it as the update rule
says, in the same way for every network.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from symmetrax._extras import one_program
from symmetrax._numbers import as_before, at_precision, check_whole, hold, settled_state
from symmetrax._tree import all_finite, select
from symmetrax.learned._features import Observation, Proposal, Want, ordinary
from symmetrax.learned._update_rule import UpdateRule
from symmetrax.objectives._base import orbit_derivative, slopes
from symmetrax.schedules._schedule import due
from symmetrax.search._orbit import Orbit
from symmetrax.search._searches import Oracle
from symmetrax.symmetry._base import AbstractLieSymmetry
from symmetrax.teleportation._guard import NO_STEP, NOT_MEASURED, OUTCOMES
from symmetrax.teleportation._step import TeleportStep, teleport_by

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


@dataclasses.dataclass(frozen=True)
class Transformation:
    """A network on a symmetry (or none) by an update rule, as the two functions of optax.

    >>> import jax, jax.numpy as jnp, symmetrax as sx
    >>> network = sx.learned.FlatGradientLSTM(2, key=jax.random.key(0))
    >>> optimizer = Transformation(network, None, sx.UpdateRule()).build()
    >>> int(optimizer.init(jnp.zeros(2)).count)
    0
    """

    network: Any
    symmetry: AbstractLieSymmetry | None
    rule: UpdateRule

    def build(self) -> optax.GradientTransformationExtraArgs:
        """Returns the optax transformation."""
        return optax.GradientTransformationExtraArgs(self._init, one_program(self._update))

    def _init(self, params: PyTree) -> LearnedState:
        symmetry, network = self.symmetry, self.network
        # A network may look along the orbit and yet never teleport: then it wants a symmetry.
        if symmetry is not None and not (network.proposes_elements or network.wants):
            raise ValueError(
                "This network emits no algebra coordinates, so it cannot teleport: build it with "
                f"algebra={symmetry.algebra[0]}, join it with one that does (Joint), or use it without a "
                "symmetry."
            )
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

    def _update(
        self, updates, state, params=None, *, value=None, value_fn=None, batch=None, key=None, **extra
    ):
        del extra  # optax passes these to every transformation; networks read none of them
        if params is None:
            raise ValueError("A learned optimizer needs params: call update(grads, state, params).")
        if self.symmetry is not None:
            check_whole(params)
        held = hold(params, self.network, self.symmetry)
        value_fn = held.loss(value_fn)
        observation, sound = _harmless(
            look(
                self.network.wants,
                held.gradient(updates),
                held.inside,
                held.widened(state.previous),
                self.symmetry,
                value=None if value is None else jnp.asarray(value, held.dtype),
                value_fn=value_fn,
                batch=batch,
                key=key,
                meta_order=self.rule.meta_order,
            )
        )
        displacement, after = self._step(observation, state, held.dtype, value_fn, batch)
        made = sound & held.stays_finite(displacement) & all_finite((after.memory, after.previous))
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

    def _step(self, observation, state, dtype, value_fn, batch) -> tuple[PyTree, LearnedState]:
        """Returns the displacement that the network chooses and the state after it, finite or not."""
        rule, params = self.rule, observation.params
        proposal, memory = at_precision(self.network, dtype).propose(observation, state.memory)
        now = due(rule.schedule, state.count)
        state = state._replace(
            count=state.count + 1,
            memory=memory,
            outcome=jnp.zeros_like(state.outcome),
            step_size=_emitted(proposal.step_size, state.step_size),
            momentum=_emitted(proposal.momentum, state.momentum),
            gate=_emitted(proposal.gate, state.gate),
        )
        if self.symmetry is None or proposal.algebra is None:
            step = _velocity(proposal, observation)
            return self._printed(step, proposal, observation, now), state._replace(previous=step)
        if rule.order == "teleport-first":
            teleport = self._teleport(proposal, params, now, observation.previous, params, value_fn, batch)
            gradient = teleport.gradient(observation.gradient)
            previous = teleport.velocity(observation.previous, rule.transport)
            step = _velocity(proposal, observation._replace(gradient=gradient, previous=previous))
            displacement = optax.tree.add(teleport.jump.displacement, step)
            return displacement, _recorded(state, teleport, previous=step)
        step = _velocity(proposal, observation)
        displacement = self._printed(step, proposal, observation, now)
        end = optax.tree.add(params, displacement)
        now = jnp.array(True) if rule.as_printed else now
        teleport = self._teleport(proposal, end, now, displacement, params, value_fn, batch)
        displacement = optax.tree.add(displacement, teleport.jump.displacement)
        return displacement, _recorded(state, teleport, previous=teleport.velocity(step, rule.transport))

    def _teleport(self, proposal, start, due, step, fallback, value_fn, batch) -> TeleportStep:
        """Performs the teleport that the network proposes, if it is due."""
        symmetry, bound = self.symmetry, self.network.algebra_bound
        assert symmetry is not None
        return teleport_by(
            symmetry,
            self._gated(proposal).astype(jnp.result_type(*jax.tree.leaves(start))),
            start,
            batch,
            guard=self.rule.guard,
            value_fn=value_fn,
            # With bounded coordinates the exponential needs fewer matrix products.
            exp=symmetry.exp if bound is None else partial(symmetry.exp_within, max_norm=bound),
            due=due,
            step=step,
            fallback=fallback,
        )

    def _gated(self, proposal: Proposal) -> Array:
        """Returns the coordinates after the gate; raises ValueError if they do not fit the symmetry."""
        symmetry, algebra, gate = self.symmetry, proposal.algebra, proposal.gate
        assert symmetry is not None
        if algebra.shape != symmetry.algebra:
            raise ValueError(
                f"The network emits algebra coordinates of shape {algebra.shape}, but the symmetry has "
                f"{symmetry.algebra}; build the network with algebra={symmetry.algebra[0]}, or use "
                "PerNeuronLSTM, which serves networks of every size."
            )
        if gate is None:
            return algebra
        return gate * algebra if self.rule.gate == "soft" else jnp.where(gate > 0.5, algebra, 0.0)

    def _printed(self, step, proposal, observation, now) -> PyTree:
        """Returns the step or, with `as_printed`, the step with the momentum applied to it again."""
        if not self.rule.as_printed:
            return step
        if proposal.momentum is None:
            raise ValueError("as_printed applies the momentum twice, but this network emits none.")
        return select(now, _velocity(proposal, observation._replace(previous=step)), step)


def _recorded(state: LearnedState, teleport: TeleportStep, previous: PyTree) -> LearnedState:
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

    >>> import symmetrax as sx
    >>> task, x = sx.tasks.booth(), jnp.array([5.0, -5.0])
    >>> gradient, given = jax.grad(task.loss)(x), {"value": None, "value_fn": task.loss, "batch": None}
    >>> seen = look(("orbit_derivative",), gradient, x, jnp.zeros(2), task.symmetry(), key=None, **given)
    >>> seen.orbit_derivative.shape, seen.slopes is None
    ((1,), True)
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


def _velocity(proposal: Proposal, observation: Observation) -> PyTree:
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
    """Returns the proposal's update, evaluated on the gradient if it is a function; None if there is none.

    >>> print(update_from(Proposal(update=lambda g: -0.1 * g), jnp.array([1.0, 2.0])))
    [-0.1 -0.2]
    """
    step: Any = proposal.update
    return step(gradient) if callable(step) and not _is_like(gradient, step) else step


def _is_like(gradient: PyTree, step: Any) -> bool:
    """Whether a step is a tree like the gradient: parameters may be modules, which can be callable too."""
    alike = jax.tree.structure(step) == jax.tree.structure(gradient)
    return alike and all(eqx.is_array_like(x) for x in jax.tree.leaves(step))


def _emitted(value: Array | None, last: Array) -> Array:
    return last if value is None else jnp.asarray(value, last.dtype)
