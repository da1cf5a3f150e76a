"""Runs an optimizer on one task or on many at once: the only place where optimizers evaluate losses.

The order of evaluation: `begin` draws the starting point and evaluates the loss and its gradient there. A
step passes them to the optimizer's `update`, applies it, draws the next batch, and evaluates at the *new*
point, so that every update and teleport in a window affects a loss in that window: after T steps a trace
holds f(x_1) ... f(x_T). Each step evaluates one gradient, because the gradient at the new point is also the
one that the next step needs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from symmetrax._extras import bound, updated
from symmetrax._keys import check_key
from symmetrax._programs import compiled
from symmetrax._tree import check_finite, safe_norm
from symmetrax.learned._networks import GATES
from symmetrax.tasks._base import AbstractTask, AbstractTaskFamily

#: The fields of an optimizer's state that are copied to the trace, if the state has them.
WATCHED = ("algebra", "loss_change", "outcome", "previous", "step_size", "momentum")


#: The checkpoint policy of `remat`: the values that are not recomputed. Elementwise functions are cheaper to
#: repeat than to read from memory, matrix products are not.
KEEP = jax.checkpoint_policies.save_only_these_names(GATES)


class Carry(NamedTuple):
    """The state carried from one step to the next: `value` and `gradient` are at `params` on `batch`.

    >>> Carry._fields
    ('params', 'state', 'batch', 'value', 'gradient', 'key', 'count')
    """

    params: PyTree
    state: optax.OptState
    batch: PyTree
    value: Float[Array, "*tasks"]
    gradient: PyTree
    key: Key[Array, "*tasks"]
    count: Int[Array, "*tasks"]


class Trace(NamedTuple):
    """A record of a rollout, with one array per quantity and the step as its first axis.

    `loss` and `gradient_norm` are measured at the point after each step. `watched` holds the requested fields
    of the optimizer's state, and `params` the points, if you requested them (else None).

    >>> Trace._fields
    ('loss', 'gradient_norm', 'watched', 'params')
    """

    loss: Float[Array, "steps *tasks"]
    gradient_norm: Float[Array, "steps *tasks"]
    watched: dict[str, Any]
    params: PyTree


#: A function from a network and a task to an optax transformation.
MakeTransform = Callable[[Any, AbstractTask], optax.GradientTransformation]


def begin(transform: optax.GradientTransformation, task: AbstractTask, key: Key[Array, ""]) -> Carry:
    """Starts a task at random: draws its point and first batch, and initializes the optimizer.

    >>> import jax, optax, symmetrax as sx
    >>> begin(optax.sgd(0.1), sx.tasks.booth(start=[5.0, -5.0]), jax.random.key(0)).value.item()
    144.0
    """
    check_key(key)
    at, first, rest = jax.random.split(key, 3)
    params, batch = task.init(at), task.batch(first)
    value, gradient = jax.value_and_grad(task.loss)(params, batch)
    return Carry(params, transform.init(params), batch, value, gradient, rest, jnp.array(0))


def step(transform: optax.GradientTransformation, task: AbstractTask, carry: Carry) -> Carry:
    """Makes one update and evaluates the task at the new point.

    >>> import jax, optax, symmetrax as sx
    >>> task = sx.tasks.booth(start=[5.0, -5.0])
    >>> step(optax.sgd(0.1), task, begin(optax.sgd(0.1), task, jax.random.key(0))).count.item()
    1
    """
    # Folding in the count, not splitting the carried key: step t draws the same batch whether or not the
    # rollout was cut into windows.
    fresh, own = jax.random.split(jax.random.fold_in(carry.key, carry.count))
    after = task.batch(fresh)
    # If all steps share a batch, the two are equal, but the carried one is a variable of the loop. A task's
    # own array is constant there, so the compiler computes only once what depends on nothing else.
    now = after if task.same_batch else carry.batch
    data = {"batch": now, "key": own}
    value_fn = bound(lambda params: task.loss(params, now), data)
    extra = {"value": carry.value, "grad": carry.gradient, "value_fn": value_fn, **data}
    updates, state = updated(transform, carry.gradient, carry.state, carry.params, extra)
    params = optax.apply_updates(carry.params, updates)
    value, gradient = jax.value_and_grad(task.loss)(params, after)
    return Carry(params, state, after, value, gradient, carry.key, carry.count + 1)


def advance(
    one_step: Callable[..., Carry],
    carry: Carry,
    steps: int,
    *,
    along: PyTree = None,
    watch: tuple[str, ...] = (),
    points: bool = False,
    remat: bool = False,
    axis: int | None = None,
) -> tuple[Carry, Trace]:
    """Runs `steps` steps in one `lax.scan`; the trace records the point after each of them.

    `remat` recomputes each step in the backward pass, except for the results of its matrix products, instead
    of storing it: this saves memory and is often faster. `axis` is the axis of tasks in `carry`, if there is
    one. If given, `along` has the steps as its first axis, and step t is `one_step(carry, along[t])`.

    >>> import functools, jax, optax, symmetrax as sx
    >>> task, optimizer = sx.tasks.booth(), optax.sgd(0.05)
    >>> carry = begin(optimizer, task, jax.random.key(0))
    >>> carry, trace = advance(functools.partial(step, optimizer, task), carry, steps=5)
    >>> trace.loss.shape, bool(trace.loss[-1] == carry.value)
    ((5,), True)
    """

    def body(carry, entry):
        carry = one_step(carry) if along is None else one_step(carry, entry)
        return carry, observe(carry, watch, points, axis)

    return jax.lax.scan(jax.checkpoint(body, policy=KEEP) if remat else body, carry, along, length=steps)


def observe(carry: Carry, watch: tuple[str, ...], points: bool, axis: int | None) -> Trace:
    """Returns the entry of a trace for the current step.

    >>> import jax, optax, symmetrax as sx
    >>> carry = begin(optax.sgd(0.1), sx.tasks.booth(start=[5.0, -5.0]), jax.random.key(0))
    >>> entry = observe(carry, watch=(), points=True, axis=None)
    >>> float(entry.loss), entry.params.tolist()
    (144.0, [5.0, -5.0])
    """
    norm = safe_norm if axis is None else jax.vmap(safe_norm, in_axes=axis)
    watched = {name: _outermost(carry.state, name) for name in watch}
    # `watch` lists fields of many optimizers; each has some of them.
    watched = {name: value for name, value in watched.items() if value is not None}
    return Trace(carry.value, norm(carry.gradient), watched, carry.params if points else None)


def _outermost(state: optax.OptState, name: str) -> Any:
    """Returns the field `name` of a state, from the outermost transformation that has it; else None."""
    found = optax.tree.get_all_with_path(state, name)
    return min(found, key=lambda item: len(item[0]))[1] if found else None


def _from_start(
    one_step, carry: Carry, steps: int, watch: tuple[str, ...], points: bool, axis: int | None
) -> Trace:
    """Returns the trace of `steps` steps, preceded by the start."""
    if steps < 1:
        raise ValueError(f"A rollout needs at least one step, got steps={steps}.")
    first = observe(carry, watch, points, axis)
    _, trace = advance(one_step, carry, steps, watch=watch, points=points, axis=axis)
    return jax.tree.map(lambda start, rest: jnp.concatenate([start[None], rest]), first, trace)


def unroll(
    transform: optax.GradientTransformation,
    task: AbstractTask,
    key: Key[Array, ""],
    steps: int,
    *,
    watch: tuple[str, ...] = WATCHED,
    points: bool = False,
) -> Trace:
    """Runs any optax optimizer on a task from a random start.

    Index 0 of the trace is the start, so 12 steps give 13 numbers. The optimizer receives the extra arguments
    `value`, `grad`, `value_fn`, `batch` and `key`, and ignores those that it does not accept.

    **Arguments:** `watch` names the fields to record from the optimizer's state, such as "algebra",
    "loss_change", "outcome"; `points=True` records the parameters of every step. Raises ValueError for a
    start that is not finite.

    >>> import jax, optax, symmetrax as sx
    >>> trace = unroll(optax.sgd(0.05), sx.tasks.booth(start=[5.0, -5.0]), jax.random.key(0), steps=12)
    >>> trace.loss.shape, trace.loss[0].item(), bool(trace.loss[-1] < 10.0)
    ((13,), 144.0, True)
    """
    check_key(key)
    start, trace = _unroll(transform, task, key, steps, watch, points)
    check_finite(start, "start from")
    return trace


@compiled
def _unroll(transform, task, key, steps, watch, points):
    carry = begin(transform, task, key)
    trace = _from_start(lambda c: step(transform, task, c), carry, steps, watch, points, None)
    return carry.params, trace


class Rollouts(NamedTuple):
    """Many tasks of one family in progress: their arrays and carries, with the task as the *last* axis.

    The last axis turns the products of the recurrent core into one large matrix product; from about a hundred
    tasks this is twice as fast as the first axis. A single task has no such axis, which is faster for one.

    >>> Rollouts._fields
    ('drawn', 'carry')
    """

    drawn: PyTree
    carry: Carry


def begin_many(
    make_transform: MakeTransform,
    network: Any,
    family: AbstractTaskFamily,
    shape: Any,
    tasks: int,
    key: Key[Array, ""],
) -> Rollouts:
    """Draws `tasks` random tasks and starts them; a single task has no task axis.

    >>> import jax, optax, symmetrax as sx
    >>> family = sx.tasks.make_family("ellipse-random")
    >>> descent = lambda rate, task: optax.sgd(rate)
    >>> started = begin_many(descent, 0.1, family, None, tasks=7, key=jax.random.key(0))
    >>> started.carry.value.shape, started.carry.params.shape
    ((7,), (2, 7))
    """

    def one(key):
        draw, start = jax.random.split(key)
        drawn = family.draw(draw)
        task = family.task(drawn, shape)
        return Rollouts(drawn, begin(make_transform(network, task), task, start))

    return _for_tasks(one, tasks, key)


def draw_many(family: AbstractTaskFamily, tasks: int, key: Key[Array, ""]) -> PyTree:
    """Returns the arrays of the tasks that `begin_many` draws from the same key.

    >>> import jax, optax, symmetrax as sx
    >>> family, key = sx.tasks.make_family("ellipse-random"), jax.random.key(0)
    >>> started = begin_many(lambda rate, task: optax.sgd(rate), 0.1, family, None, tasks=7, key=key)
    >>> equal = jax.tree.map(lambda x, y: bool((x == y).all()), draw_many(family, 7, key), started.drawn)
    >>> all(jax.tree.leaves(equal))
    True
    """
    return _for_tasks(lambda key: family.draw(jax.random.split(key)[0]), tasks, key)


def _for_tasks(one: Callable[[Key[Array, ""]], Any], tasks: int, key: Key[Array, ""]) -> Any:
    keys = jax.random.split(key, tasks)
    return one(keys[0]) if tasks == 1 else jax.vmap(one, out_axes=-1)(keys)


def advance_many(
    make_transform: MakeTransform,
    network: Any,
    family: AbstractTaskFamily,
    shape: Any,
    rollouts: Rollouts,
    steps: int,
    **options: Any,
) -> tuple[Rollouts, Trace]:
    """`advance` for many tasks at once; the first axis of the trace is the step, the last the task.

    With `along`, whose first axis is the step and whose last is the task, the transform of step t is
    `make_transform((network, along[t]), task)`.

    >>> import jax, optax, symmetrax as sx
    >>> family = sx.tasks.make_family("ellipse-random")
    >>> descent = lambda rate, task: optax.sgd(rate)
    >>> started = begin_many(descent, 0.1, family, None, tasks=7, key=jax.random.key(0))
    >>> after, trace = advance_many(descent, 0.1, family, None, started, steps=3)
    >>> trace.loss.shape, after.carry.count.tolist()
    ((3, 7), [3, 3, 3, 3, 3, 3, 3])
    """
    one_step, axis = _each(make_transform, network, family, shape, rollouts)
    carry, trace = advance(one_step, rollouts.carry, steps, axis=axis, **options)
    return Rollouts(rollouts.drawn, carry), trace


def _each(
    make_transform, network, family, shape, rollouts: Rollouts
) -> tuple[Callable[..., Carry], int | None]:
    """Returns a function for one step of every task, and the axis of tasks."""

    # Tasks are rebuilt from their arrays inside `vmap`, because a task itself need not be a pytree of arrays.
    def one_step(drawn, carry, *entry):
        task = family.task(drawn, shape)
        return step(make_transform((network, *entry) if entry else network, task), task, carry)

    if rollouts.carry.value.ndim == 0:
        return lambda carry, *entry: one_step(rollouts.drawn, carry, *entry), None
    mapped = jax.vmap(one_step, in_axes=-1, out_axes=-1)
    return lambda carry, *entry: mapped(rollouts.drawn, carry, *entry), -1


def unroll_many(
    make_transform: MakeTransform,
    network: Any,
    family: AbstractTaskFamily,
    key: Key[Array, ""],
    steps: int,
    tasks: int,
    *,
    shape: Any = None,
    watch: tuple[str, ...] = (),
    points: bool = False,
) -> Trace:
    """Runs an optimizer on `tasks` random tasks of a family; the first axis is the step, the last the task.

    The tasks depend only on `key`, so that all optimizers given the same key see the same tasks.

    **Arguments:** `make_transform(network, task)` returns the optax transformation for a task, where
    `network` is any pytree it needs (hyperparameters, a learned optimizer); see `symmetrax.UpdateRule`.

    >>> import jax, optax, symmetrax as sx
    >>> family = sx.tasks.make_family("ellipse-random")
    >>> descent = lambda rate, task: optax.sgd(rate)
    >>> unroll_many(descent, 0.05, family, jax.random.key(0), steps=12, tasks=100).loss.shape
    (13, 100)
    """
    check_key(key)
    if tasks < 1:
        raise ValueError(f"unroll_many needs at least one task, got tasks={tasks}.")
    shape = family.shapes[0] if shape is None else shape
    return _unroll_many(make_transform, network, family, key, steps, tasks, shape, watch, points)


@compiled
def _unroll_many(make_transform, network, family, key, steps, tasks, shape, watch, points):
    rollouts = begin_many(make_transform, network, family, shape, tasks, key)
    one_step, axis = _each(make_transform, network, family, shape, rollouts)
    return _from_start(one_step, rollouts.carry, steps, watch, points, axis)
