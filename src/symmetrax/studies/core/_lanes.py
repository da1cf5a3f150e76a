"""Many runs of one arm at once, with everything measured that a teleport does and costs.

A run is a *lane*: its own task, start, hyperparameters and random draws. All lanes take a step together, and
whether a teleport is due is one number for all of them, so that no lane pays for a search that is not due
(under `vmap` over the step count, as `unroll_many` has it, every step would search).
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Key, PyTree

from symmetrax._tree import safe_norm
from symmetrax.rollout._unroll import Carry
from symmetrax.search._levelset import AbstractPointSearch
from symmetrax.tasks._base import AbstractTask, AbstractTaskFamily
from symmetrax.teleportation._transform import TeleportedState

#: The arm's own step, where a length is asked for.
OWN = -1.0


class Moment(NamedTuple):
    """What an arm is told at one step beside its gradient: `due` says whether to teleport now.

    `length` is how long its step must be (negative: as long as it likes), `size` how large its teleport, both
    copied from another arm at the same step of the same run; `key` is for its random draws.

    >>> Moment._fields
    ('due', 'key', 'length', 'size')
    """

    due: Bool[Array, ""]
    key: Key[Array, ""]
    length: Float[Array, ""]
    size: Float[Array, ""]


#: What is measured at a teleport: `watch(task, origin, there)` gives scalars by name.
Watch = Callable[[AbstractTask, PyTree, PyTree], dict[str, Array]]

#: An arm: `make(hyperparameters, task, moment, watch)` gives its optimizer, which must contain `recorded`.
Make = Callable[[dict[str, Array], AbstractTask, Moment, Callable], optax.GradientTransformationExtraArgs]


class Recorded(NamedTuple):
    """State of `recorded`: lengths of the last step and of the last teleport, and what was seen there.

    >>> Recorded._fields
    ('inner', 'length', 'jump', 'seen')
    """

    inner: optax.OptState
    length: Float[Array, ""]
    jump: Float[Array, ""]
    seen: dict[str, Array]


def recorded(
    inner: optax.GradientTransformation, moment: Moment, watch: Callable[[PyTree, PyTree], dict[str, Array]]
) -> optax.GradientTransformationExtraArgs:
    """The optimizer `inner` at the length that the moment asks for, and a record of what it did.

    Stands inside `teleported`, so that the parameters it is given are those after the teleport; those before
    are the extra argument `origin`, a pair of parameters and gradient. `watch(origin, there)` is asked when a
    teleport is due.

    >>> moment = Moment(jnp.array(False), jax.random.key(0), jnp.array(3.0), jnp.array(0.0))
    >>> optimizer = recorded(optax.sgd(0.1), moment, lambda origin, there: {})
    >>> x, g = jnp.array([1.0, 0.0]), jnp.array([2.0, 0.0])
    >>> print(optimizer.update(g, optimizer.init(x), x, origin=(x, g))[0])
    [-3. -0.]
    """
    stepper = optax.with_extra_args_support(inner)

    def see(origin, there, rise):
        return {"rise": rise, **watch(origin, there)}

    def init(params: PyTree) -> Recorded:
        zero = jnp.zeros(())
        seen = jax.tree.map(jnp.zeros_like, see(params, params, zero))
        return Recorded(stepper.init(params), zero, zero, seen)

    def update(updates, state, params=None, *, origin=None, **extra):
        if origin is None:
            raise ValueError("`recorded` needs origin=(params, gradient), those before the teleport.")
        before, gradient = origin
        step, after = stepper.update(updates, state.inner, params, **extra)
        own = safe_norm(step)
        scale = jnp.where(moment.length < 0, 1.0, moment.length / jnp.where(own == 0, 1.0, own))
        step = optax.tree.scale(scale, step)

        def look():
            rise = safe_norm(updates) / safe_norm(gradient)
            return safe_norm(optax.tree.sub(params, before)), see(before, params, rise)

        def nothing():
            return jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.seen)

        jump, seen = jax.lax.cond(moment.due, look, nothing)
        return step, Recorded(after, safe_norm(step), jump, seen)

    return optax.GradientTransformationExtraArgs(init, update)


class Log(NamedTuple):
    """What all lanes did: `loss` from the start on, the rest for every step.

    `length` and `jump` are the lengths of steps and teleports, `size` is the norm of a teleport's coordinates
    (with one coordinate, its value), `seen` what was watched there.
    `evaluations` are the gradients that a lane's searches have cost in all; `points` are the parameters
    before every step, if they were asked for.

    >>> Log._fields
    ('loss', 'length', 'jump', 'size', 'seen', 'evaluations', 'points')
    """

    loss: Float[Array, "lanes points"]
    length: Float[Array, "lanes steps"]
    jump: Float[Array, "lanes steps"]
    size: Float[Array, "lanes steps"]
    seen: dict[str, Array]
    evaluations: Float[Array, " lanes"]
    points: PyTree


class Lanes(NamedTuple):
    """The random part of many runs, drawn once for all arms: tasks, starts, and a key for every step.

    >>> Lanes._fields
    ('drawn', 'params', 'draws')
    """

    drawn: PyTree
    params: PyTree
    draws: Key[Array, "steps lanes"]

    @property
    def number(self) -> int:
        """How many lanes there are."""
        return self.draws.shape[1]

    def repeated(self, times: int) -> "Lanes":
        """All lanes, `times` times over."""
        again = lambda axis: lambda x: jnp.concatenate([x] * times, axis)  # noqa: E731
        drawn, params = jax.tree.map(again(0), (self.drawn, self.params))
        return Lanes(drawn, params, again(1)(self.draws))


@eqx.filter_jit
def make_lanes(family: AbstractTaskFamily, keys: Key[Array, " lanes"], steps: int) -> Lanes:
    """Draw tasks and starts; those of a lane depend on its key alone, and so do its draws at each step."""

    def one(key):
        draw, start, rest = jax.random.split(key, 3)
        drawn = family.draw(draw)
        draws = jax.vmap(lambda count: jax.random.fold_in(rest, count))(jnp.arange(steps))
        return drawn, family.task(drawn).init(start), draws

    drawn, params, draws = jax.vmap(one)(keys)
    return Lanes(drawn, params, draws.T)


def lane_keys(keys: Key[Array, " seeds"], tasks: int) -> Key[Array, " lanes"]:
    """One key for each of `tasks` lanes of every seed, seed by seed.

    >>> lane_keys(jax.random.split(jax.random.key(0), 3), 4).shape
    (12,)
    """
    return jax.vmap(lambda key: jax.random.split(key, tasks))(keys).ravel()


class Runs(NamedTuple):
    """The log of an arm, as numpy arrays, its teleports, and what it took.

    `seconds` are those of all lanes together, once compiled; `plain_seconds` those of the same program when
    no teleport is due, with the recording in both.

    >>> Runs._fields[-2:]
    ('seconds', 'plain_seconds')
    """

    log: Log
    when: Bool[np.ndarray, " steps"]
    seconds: float
    plain_seconds: float


def run_lanes(
    make: Make,
    hyper: dict[str, Any],
    family: AbstractTaskFamily,
    lanes: Lanes,
    when: Bool[np.ndarray, " steps"],
    *,
    watch: Watch,
    length: Any = OWN,
    size: Any = 0.0,
    points: bool = False,
) -> Runs:
    """Run an arm on every lane, teleporting at the steps that `when` marks.

    Arms that are given the same lanes are paired. There must be as many draws as steps, or more.
    Hyperparameters, `length` and `size` are numbers or have the lanes, and the steps, as axes.

    >>> import symmetrax as sx
    >>> def descent(hyper, task, moment, watch):
    ...     return recorded(optax.sgd(hyper["rate"]), moment, watch)
    >>> family = sx.tasks.make_family("booth")
    >>> lanes = make_lanes(family, jax.random.split(jax.random.key(0), 5), steps=12)
    >>> nothing = lambda task, origin, there: {}
    >>> ran = run_lanes(descent, {"rate": 0.05}, family, lanes, np.zeros(12, bool), watch=nothing)
    >>> ran.log.loss.shape, bool(np.all(ran.log.loss[:, -1] < ran.log.loss[:, 0]))
    ((5, 13), True)
    """
    arguments = (*_arguments(make, hyper, family, lanes, len(when), length, size), watch, points)
    log, seconds = _timed(jnp.asarray(when), *arguments)
    plain = _timed(jnp.zeros(len(when), bool), *arguments)[1] if np.any(when) else seconds
    return Runs(jax.tree.map(np.asarray, log), np.asarray(when), seconds, min(plain, seconds))


def _arguments(make, hyper, family, lanes: Lanes, steps: int, length: Any = OWN, size: Any = 0.0) -> tuple:
    """Arguments of `_run`, all of them strongly typed arrays, so that arms share programs."""
    number = lanes.number
    hyper = {name: jnp.broadcast_to(jnp.asarray(x, float), (number,)) for name, x in hyper.items()}
    given = (jnp.broadcast_to(jnp.asarray(x, float), (number, steps)).T for x in (length, size))
    return make, hyper, family, lanes._replace(draws=lanes.draws[:steps]), *given


def cut(ran: Runs, steps: int) -> Runs:
    """The first `steps` steps of an arm that never teleports, as if it had stopped there."""
    part = steps / len(ran.when)
    log = jax.tree.map(
        lambda x: x[:, :steps] if x.ndim > 1 else x, ran.log._replace(loss=ran.log.loss[:, 1:])
    )
    log = log._replace(loss=np.concatenate([ran.log.loss[:, :1], log.loss], axis=1))
    return Runs(log, ran.when[:steps], ran.seconds * part, ran.plain_seconds * part)


def best_rate(
    make: Make,
    hyper: dict[str, float],
    rates: Float[np.ndarray, " rates"],
    family: AbstractTaskFamily,
    lanes: Lanes,
    when: Bool[np.ndarray, " steps"],
    *,
    watch: Watch,
    after: int | None = None,
) -> float:
    """The learning rate with the lowest upper quartile of losses at the end (or `after` that step).

    A loss that is not finite counts as infinite. Not the median: that is often least at the edge where just
    under half of the runs diverge, and there it may be more than half of other runs. With as many rates times
    lanes as another run of this arm has lanes, both are one compiled program.
    """
    grid = {**hyper, "rate": np.repeat(rates, lanes.number)}
    _, grid, _, everything, length, size = _arguments(
        make, grid, family, lanes.repeated(len(rates)), len(when)
    )
    log = _run(jnp.asarray(when), make, grid, family, everything, length, size, watch, False)
    last = np.asarray(log.loss[:, -1 if after is None else after]).reshape(len(rates), lanes.number)
    last = np.where(np.isfinite(last), last, np.inf)
    return float(rates[np.argmin(np.quantile(last, 0.75, axis=1, method="inverted_cdf"))])


def _timed(*arguments: Any) -> tuple[Log, float]:
    """A log, and the least seconds of a few calls once compiled: others share the machine."""
    log, least = jax.block_until_ready(_run(*arguments)), float("inf")
    first = began = time.perf_counter()
    for _ in range(20):
        jax.block_until_ready(_run(*arguments))
        now = time.perf_counter()
        least, began = min(least, now - began), now
        if now - first > 0.5:
            break
    return log, least


def measured_evaluations(
    search: AbstractPointSearch, family: AbstractTaskFamily, lanes: Lanes, ran: Runs
) -> float:
    """The mean number of gradients that a point search really spends per teleport of a run with `points`.

    Its own `evaluations` are the most that it can spend. For tasks whose batches are all their data.
    """
    before = jax.tree.map(lambda x: jnp.asarray(x[:, ran.when]), ran.log.points)
    return float(np.mean(_spent(search, family, lanes.drawn, before)))


@eqx.filter_jit
def _spent(search, family, drawn, before):
    def lane(drawn, points):
        task = family.task(drawn)
        batch = task.batch(jax.random.key(0))
        return jax.vmap(lambda w: search(lambda v: task.loss(v, batch), w, batch).evaluations)(points)

    return jax.vmap(lane)(drawn, before)


@eqx.filter_jit
def _run(when, make, hyper, family, lanes, length, size, watch, points) -> Log:
    def optimizer(hyper, task, moment):
        return make(hyper, task, moment, lambda origin, there: watch(task, origin, there))

    def start(hyper, drawn, params, key):
        task = family.task(drawn)
        batch = task.batch(key)
        never = Moment(jnp.array(False), key, jnp.array(OWN), jnp.array(0.0))
        value, gradient = jax.value_and_grad(task.loss)(params, batch)
        state = optimizer(hyper, task, never).init(params)
        return Carry(params, state, batch, value, gradient, key, jnp.array(0))

    def step(carry: Carry, now):
        due, keys, lengths, sizes = now

        def one(hyper, drawn, key, length, size, carry):
            task = family.task(drawn)
            return _step(optimizer(hyper, task, Moment(due, key, length, size)), task, carry, key)

        after = jax.vmap(one)(hyper, lanes.drawn, keys, lengths, sizes, carry)
        record = _recorded(after.state)
        kept = carry.params if points else None
        return after, (after.value, record.length, record.jump, _size(after.state), record.seen, kept)

    first = jax.vmap(start)(hyper, lanes.drawn, lanes.params, lanes.draws[0])
    last, (loss, *rest) = jax.lax.scan(step, first, (when, lanes.draws, length, size))
    loss = jnp.concatenate([first.value[None], loss])
    loss, length, jump, size, seen, kept = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), (loss, *rest))
    spent = last.state.evaluations if isinstance(last.state, TeleportedState) else jnp.zeros(lanes.number)
    return Log(loss, length, jump, size, seen, spent, kept)


def _step(
    transform: optax.GradientTransformationExtraArgs, task: AbstractTask, carry: Carry, key: Key[Array, ""]
) -> Carry:
    """One update, as in `_unroll`, that tells the optimizer where it came from."""
    updates, state = transform.update(
        carry.gradient,
        carry.state,
        carry.params,
        value_fn=lambda params: task.loss(params, carry.batch),
        batch=carry.batch,
        origin=(carry.params, carry.gradient),
    )
    params, batch = optax.apply_updates(carry.params, updates), task.batch(key)
    value, gradient = jax.value_and_grad(task.loss)(params, batch)
    return Carry(params, state, batch, value, gradient, carry.key, carry.count + 1)


def _recorded(state: Any) -> Any:
    return state.inner if isinstance(state, TeleportedState) else state


def _size(state: Any) -> Float[Array, " lanes"]:
    """The norm of the algebra coordinates, lane by lane; where there is only one, its value."""
    if isinstance(state, TeleportedState):
        if state.algebra is None:  # a search without a group
            return jnp.zeros(state.loss_change.shape)
        if state.algebra.shape[-1] == 1:
            return state.algebra[:, 0]
        return jnp.sqrt(jnp.sum(jnp.square(state.algebra), axis=-1))
    return jnp.zeros(state.length.shape)
