"""Optimizers that are networks, and the optax transformation each of them is.

A network proposes a `Move` from the `Info` of a step; what happens then is the same for all of them and
stands here: x <- a.(x + v), the step first, then the group element.
"""

from abc import abstractmethod
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from symmetrax._tree import select
from symmetrax.learned._features import Info, Move
from symmetrax.symmetry._base import AbstractLieSymmetry
from symmetrax.teleportation._guard import NOT_MEASURED, Guard, jump_by
from symmetrax.teleportation._objectives import orbit_derivative
from symmetrax.teleportation._schedule import Schedule, due, settled

#: What becomes of the last step, which momentum builds on, when the parameters jump.
Transport = Literal["keep", "carry", "reset"]

# What `step_size` and `momentum` of the state say where the network emits none.
NOT_EMITTED = -1.0


class LearnedState(NamedTuple):
    """State of a learned optimizer's transformation.

    `count` is the number of steps taken, `memory` the network's recurrent state, `previous` its last step
    (before the teleport, and moved by it as `transport` says). `algebra` (zeros when no teleport was due),
    `defect` and `refused` tell of the last teleport, `step_size` and `momentum` what the network emitted (-1
    if it does not); read them with `optax.tree.get(state, "refused")`.

    >>> LearnedState._fields
    ('count', 'memory', 'previous', 'algebra', 'defect', 'refused', 'step_size', 'momentum')
    """

    count: Int[Array, ""]
    memory: PyTree
    previous: PyTree
    algebra: Float[Array, "..."]
    defect: Float[Array, ""]
    refused: Int[Array, ""]
    step_size: Float[Array, ""]
    momentum: Float[Array, ""]


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

    @property
    def wants_symmetry(self) -> bool:
        """Whether the network reads `Info.symmetry`, and so needs one even where it never teleports."""
        return False

    @property
    def algebra_bound(self) -> float | None:
        """What the norm of the emitted coordinates, or of each layer's, never exceeds: `exp` is cheaper then.

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
    def propose(self, info: Info, memory: PyTree) -> tuple[Move, PyTree]:
        """A move, and the recurrent state after it."""

    @abstractmethod
    def example(self) -> Info:
        """An input of the right shape, with flat vectors for gradient and parameters where the network takes
        any structure: artifacts record the step that it gives."""

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
        transport: Transport = "keep",
        as_printed: bool = False,
    ) -> optax.GradientTransformationExtraArgs:
        """This network as an optax transformation.

        The step is v = u, where u is the network's update, or -step_size * gradient if it emits a step size;
        if it emits a momentum, v <- momentum * v + u. Without `symmetry` that is all. With it, on schedule,
        follows the group element a = exp(algebra): x <- a.(x + v), returned as the update
        v + (a.(x + v) - e.(x + v)) with both terms from the same code, so that zero coordinates give exactly
        v. This is algorithm 3 of arXiv:2504.15399, read as one iterate.

        **Arguments:** `schedule` gives the steps, counted from 0, that teleport (default: all); `guard`
        refuses bad teleports and needs the extra argument `value_fn` in `update`. `meta_order=1` treats the
        gradient that the network sees as a constant when differentiating through `update`; 2 differentiates
        through it. `transport` says what becomes of v when a teleport is made: "keep" it, "carry" it along as
        a displacement, da(v), or "reset" it to zero; one that is refused keeps it. `as_printed` follows the
        algorithm to the letter: it teleports at every step, and on schedule applies the momentum twice,
        x <- a.(x + momentum * v + u); v is kept. Extra arguments of `update`: `value_fn`, `batch`, `key`;
        others are ignored.

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
        return _transformation(self, symmetry, schedule, guard, meta_order, transport, as_printed)


def _transformation(network, symmetry, schedule, guard, meta_order, transport, as_printed):
    schedule = settled(schedule)

    def init(params: PyTree) -> LearnedState:
        return LearnedState(
            count=jnp.array(0),
            memory=network.memory(params, symmetry),
            previous=optax.tree.zeros_like(params),
            algebra=jnp.zeros(()) if symmetry is None else symmetry.zero(),
            defect=jnp.array(NOT_MEASURED),
            refused=jnp.array(0),
            step_size=jnp.array(NOT_EMITTED),
            momentum=jnp.array(NOT_EMITTED),
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
        return Info(gradient, params, state.previous, slope, key, symmetry)

    def update(updates, state, params=None, *, value_fn=None, batch=None, key=None, **extra):
        del extra  # optax's own, and none that a network reads
        if params is None:
            raise ValueError("A learned optimizer needs params: call update(grads, state, params).")
        info = look(updates, state, params, value_fn, batch, key)
        move, memory = network.propose(info, state.memory)
        now = due(schedule, state.count)
        step = _step(move, info)
        displacement = step
        if as_printed:
            if move.momentum is None:
                raise ValueError("as_printed applies the momentum twice, but this network emits none.")
            displacement = select(now, _step(move, info._replace(previous=step)), step)
        state = state._replace(
            count=state.count + 1,
            memory=memory,
            previous=step,
            step_size=_emitted(move.step_size, state.step_size),
            momentum=_emitted(move.momentum, state.momentum),
        )
        only_reads = network.wants_orbit_derivative or network.wants_symmetry
        if symmetry is None or (move.algebra is None and only_reads):
            return displacement, state
        teleports = jnp.array(True) if as_printed else now
        xi = jnp.where(teleports, _fitting(move.algebra, symmetry), 0.0)
        bound = network.algebra_bound
        exp = symmetry.exp if bound is None else partial(symmetry.exp_within, reach=bound)
        landing = optax.tree.add(params, displacement)
        jumped = jump_by(symmetry, exp, xi, landing, batch, guard=guard, value_fn=value_fn, retreat=params)
        moved = teleports & (jumped.refused == 0)
        if transport == "reset":
            state = state._replace(previous=select(moved, optax.tree.zeros_like(step), step))
        elif transport == "carry":
            nothing = (symmetry.zero(), jax.lax.stop_gradient(params), optax.tree.zeros_like(step))
            safe, at, tangent = select(moved, (xi, landing, step), nothing)
            carried = symmetry.push(exp(safe), at, tangent, batch)
            state = state._replace(previous=select(moved, carried, step))
        state = state._replace(
            algebra=xi,
            defect=jnp.where(teleports, jumped.defect, NOT_MEASURED),
            refused=jnp.where(teleports, jumped.refused, 0),
        )
        return optax.tree.add(displacement, jumped.displacement), state

    return optax.GradientTransformationExtraArgs(init, update)


def _step(move: Move, info: Info) -> PyTree:
    """u, or momentum * previous + u."""
    step, size, momentum = move.update, move.step_size, move.momentum
    if step is not None and size is not None:
        raise ValueError("This network emits an update and a step size: only one of them can be the step.")
    if step is None:
        if size is None:
            raise ValueError(
                "This network emits no step, neither an update nor a step size: join it with one that "
                "does, as in Together((CoordinatewiseLSTM(key=key), network))."
            )
        step = jax.tree.map(lambda g: (-size * g).astype(g.dtype), info.gradient)
    if momentum is None:
        return step
    return jax.tree.map(lambda v, u: (momentum * v + u).astype(u.dtype), info.previous, step)


def _emitted(value: Array | None, last: Array) -> Array:
    return last if value is None else jnp.asarray(value, last.dtype)


def _fitting(algebra: Array | None, symmetry: AbstractLieSymmetry) -> Array:
    """The coordinates; ValueError if there are none, or of another shape than the symmetry's."""
    if algebra is None:
        raise ValueError(
            "This network emits no algebra coordinates, so it cannot teleport: build it with "
            f"algebra={symmetry.algebra[0]}, join it with one that does (Together), or use it without a "
            "symmetry."
        )
    if algebra.shape != symmetry.algebra:
        raise ValueError(
            f"The network emits algebra coordinates of shape {algebra.shape}, but the symmetry has "
            f"{symmetry.algebra}; build the network with algebra={symmetry.algebra[0]}, or use "
            "PerNeuronLSTM, which serves networks of every size."
        )
    return algebra
