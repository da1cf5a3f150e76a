"""Optimizers that are networks, and the optax transformation each of them is.

A network proposes a `Move` from the `Info` of a step; what happens then is the same for all of them and
stands here: x <- a.(x + u), the update first, then the group element.
"""

from abc import abstractmethod
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from symmetrax.learned._features import Info, Move
from symmetrax.symmetry._base import AbstractLieSymmetry
from symmetrax.teleportation._guard import NOT_MEASURED, Guard, jump
from symmetrax.teleportation._objectives import orbit_derivative
from symmetrax.teleportation._schedule import Schedule, due, settled


class LearnedState(NamedTuple):
    """State of a learned optimizer's transformation.

    `count` is the number of steps taken, `memory` the network's recurrent state, `previous` its last update
    (before the teleport). `algebra` (zeros when no teleport was due), `defect` and `refused` tell of the
    last teleport; read them with `optax.tree.get(state, "refused")`.

    >>> LearnedState._fields
    ('count', 'memory', 'previous', 'algebra', 'defect', 'refused')
    """

    count: Int[Array, ""]
    memory: PyTree
    previous: PyTree
    algebra: Float[Array, "..."]
    defect: Float[Array, ""]
    refused: Int[Array, ""]


class AbstractLearnedOptimizer(eqx.Module):
    """A network that optimizes; its weights are the leaves of the module.

    >>> import jax, jax.numpy as jnp, symmetrax as sx
    >>> network = sx.WholeLSTM(2, key=jax.random.key(0))
    >>> optimizer = network.transform()  # an optax transformation
    >>> updates, state = optimizer.update(jnp.ones(2), optimizer.init(jnp.zeros(2)), jnp.zeros(2))
    >>> updates.shape
    (2,)
    """

    #: Name under which artifacts of this class are saved.
    kind: eqx.AbstractClassVar[str]

    @property
    @abstractmethod
    def wants_orbit_derivative(self) -> bool:
        """Whether the network reads `Info.orbit_derivative`, which costs a second derivative."""

    @abstractmethod
    def memory(self, params: PyTree) -> PyTree:
        """The recurrent state before the first step."""

    @abstractmethod
    def propose(self, info: Info, memory: PyTree) -> tuple[Move, PyTree]:
        """A move, and the recurrent state after it."""

    @abstractmethod
    def example(self) -> Info:
        """An input of the right shape, with flat vectors for gradient and parameters: artifacts record the
        step that it gives."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Keyword arguments, as JSON values, from which the class builds a network of this shape."""

    @abstractmethod
    def contract(self) -> dict[str, Any]:
        """What the network reads and emits, in order, as JSON values: two networks of one contract agree on
        the meaning of every input and output."""

    def transform(
        self,
        symmetry: AbstractLieSymmetry | None = None,
        *,
        schedule: Schedule = None,
        guard: Guard | None = Guard(),  # noqa: B008 (a frozen module)
        meta_order: int = 1,
    ) -> optax.GradientTransformationExtraArgs:
        """This network as an optax transformation.

        Without `symmetry` it applies the network's update u. With it, on schedule, also the group element
        a = exp(algebra): x <- a.(x + u), returned as the update u + (a.(x + u) - e.(x + u)) with both terms
        from the same code, so that zero coordinates give exactly u.

        **Arguments:** `schedule` gives the steps, counted from 0, that teleport (default: all); `guard`
        refuses bad teleports and needs the extra argument `value_fn` in `update`. `meta_order=1` treats the
        gradient that the network sees as a constant when differentiating through `update`; 2 differentiates
        through it. Extra arguments of `update`: `value_fn`, `batch`, `key`; others are ignored.

        Raises ValueError if `symmetry` is given to a network without algebra coordinates of its shape.
        """
        if meta_order not in (1, 2):
            raise ValueError(f"`meta_order` must be 1 or 2, got {meta_order!r}.")
        return _transformation(self, symmetry, schedule, guard, meta_order)


def _transformation(network, symmetry, schedule, guard, meta_order):
    schedule = settled(schedule)

    def init(params: PyTree) -> LearnedState:
        return LearnedState(
            count=jnp.array(0),
            memory=network.memory(params),
            previous=optax.tree.zeros_like(params),
            algebra=jnp.zeros(()) if symmetry is None else symmetry.zero(),
            defect=jnp.array(NOT_MEASURED),
            refused=jnp.array(0),
        )

    def look(updates, state, params, value_fn, batch, key) -> Info:
        slope = None
        if network.wants_orbit_derivative:
            if symmetry is None or value_fn is None:
                missing = "a symmetry in transform()" if symmetry is None else "value_fn=... in update()"
                raise ValueError(f"This network reads the derivative along the orbit: it needs {missing}.")
            slope = orbit_derivative(value_fn, params, symmetry, batch)
        seen = (updates, slope)
        gradient, slope = jax.lax.stop_gradient(seen) if meta_order == 1 else seen
        return Info(gradient, params, state.previous, slope, key)

    def update(updates, state, params=None, *, value_fn=None, batch=None, key=None, **extra):
        del extra  # optax's own, and none that a network reads
        if params is None:
            raise ValueError("A learned optimizer needs params: call update(grads, state, params).")
        info = look(updates, state, params, value_fn, batch, key)
        move, memory = network.propose(info, state.memory)
        state = state._replace(count=state.count + 1, memory=memory, previous=move.update)
        if symmetry is None or (move.algebra is None and network.wants_orbit_derivative):
            return move.update, state
        if move.algebra is None:
            raise ValueError(
                "This network emits no algebra coordinates, so it cannot teleport: build it with "
                f"algebra={symmetry.algebra[0]}, or use it without a symmetry."
            )
        if move.algebra.shape != symmetry.algebra:
            raise ValueError(
                f"The network emits algebra coordinates of shape {move.algebra.shape}, but the symmetry has "
                f"{symmetry.algebra}; build the network with algebra={symmetry.algebra[0]}."
            )
        now = due(schedule, state.count - 1)
        xi = jnp.where(now, move.algebra, 0.0)
        landing = optax.tree.add(params, move.update)
        jumped = jump(
            symmetry, symmetry.exp(xi), landing, batch, guard=guard, value_fn=value_fn, retreat=params
        )
        state = state._replace(
            algebra=xi,
            defect=jnp.where(now, jumped.defect, NOT_MEASURED),
            refused=jnp.where(now, jumped.refused, 0),
        )
        return optax.tree.add(move.update, jumped.displacement), state

    return optax.GradientTransformationExtraArgs(init, update)
