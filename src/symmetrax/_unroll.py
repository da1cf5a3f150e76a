"""One optimizer on one task, or on many at once: the only place where an optimizer meets a loss.

Follow one number through. `begin` draws the starting point and evaluates the loss and its gradient there.
A step hands them to the optimizer's `update`, applies it, draws the next batch, and evaluates at the *new*
point, so that every update and teleport in a window reaches a loss in that window: after T steps a trace
holds f(x_1) ... f(x_T).
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

#: What is read from an optimizer's state into the trace, where the state has it.
WATCHED = ("algebra", "defect", "refused", "previous", "step_size", "momentum")


#: What `remat` does not recompute.
KEEP = jax.checkpoint_policies.save_only_these_names(GATES)


class Carry(NamedTuple):
    """Everything that goes from one step to the next: `value` and `gradient` are at `params` on `batch`.

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
    """A record of a run, one array per quantity with the step as its first axis.

    `loss` and `gradient_norm` are at the points reached; `watched` holds what the optimizer's state tells
    under the names asked for, and `params` the points, if they were asked for (else None).

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
    """The random start of a task: its point, first batch, loss and gradient, and a fresh optimizer state.

    >>> import jax, optax, symmetrax as sx
    >>> begin(optax.sgd(0.1), sx.booth(start=[5.0, -5.0]), jax.random.key(0)).value.item()
    144.0
    """
    check_key(key)
    at, first, rest = jax.random.split(key, 3)
    params, batch = task.init(at), task.batch(first)
    value, gradient = jax.value_and_grad(task.loss)(params, batch)
    return Carry(params, transform.init(params), batch, value, gradient, rest, jnp.array(0))


def step(transform: optax.GradientTransformation, task: AbstractTask, carry: Carry) -> Carry:
    """One update, and the evaluation at the point it leads to.

    >>> import jax, optax, symmetrax as sx
    >>> task = sx.booth(start=[5.0, -5.0])
    >>> step(optax.sgd(0.1), task, begin(optax.sgd(0.1), task, jax.random.key(0))).count.item()
    1
    """
    fresh, own = jax.random.split(jax.random.fold_in(carry.key, carry.count))
    after = task.batch(fresh)
    # Equal arrays, but these do not change in the loop: what an action computes from them alone leaves it.
    now = after if task.same_batch else carry.batch
    data = {"batch": now, "key": own}
    value_fn = bound(lambda params: task.loss(params, now), data)
    told = {"value": carry.value, "grad": carry.gradient, "value_fn": value_fn, **data}
    updates, state = updated(transform, carry.gradient, carry.state, carry.params, told)
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
    """`steps` steps in one `lax.scan`; the trace holds what each of them reached.

    `remat` recomputes each step in the backward pass instead of storing it, but for what its products gave:
    less memory, and often faster.
    `axis` is the axis of tasks in `carry`, if there is one. `along` has the steps as its first axis; step t
    is then `one_step(carry, along[t])`.

    >>> import functools, jax, optax, symmetrax as sx
    >>> task, optimizer = sx.booth(), optax.sgd(0.05)
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
    """The entry of a trace for one moment."""
    norm = safe_norm if axis is None else jax.vmap(safe_norm, in_axes=axis)
    watched = {name: _outermost(carry.state, name) for name in watch}
    watched = {name: value for name, value in watched.items() if value is not None}
    return Trace(carry.value, norm(carry.gradient), watched, carry.params if points else None)


def _outermost(state: optax.OptState, name: str) -> Any:
    """The value of that name in a state, of the outer transformation where one wraps another; else None."""
    found = optax.tree.get_all_with_path(state, name)
    return min(found, key=lambda item: len(item[0]))[1] if found else None


def _from_start(
    one_step, carry: Carry, steps: int, watch: tuple[str, ...], points: bool, axis: int | None
) -> Trace:
    """The trace of `steps` steps with the start in front."""
    if steps < 1:
        raise ValueError(f"An unroll needs at least one step, got steps={steps}.")
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
    """Run any optax optimizer on a task from a random start.

    Index 0 of the trace is the start, so 12 steps give 13 numbers. The optimizer gets the extra arguments
    `value`, `grad`, `value_fn`, `batch` and `key`, and ignores what it does not know.

    **Arguments:** `watch` names what to read from the optimizer's state, such as "algebra", "defect",
    "refused"; `points=True` keeps the parameters of every step. Raises ValueError for a start that is not
    finite.

    >>> import jax, optax, symmetrax as sx
    >>> trace = unroll(optax.sgd(0.05), sx.booth(start=[5.0, -5.0]), jax.random.key(0), steps=12)
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


class Crew(NamedTuple):
    """Many tasks of one family underway: their arrays and carries, with the task as the *last* axis.

    The last axis makes the recurrent core's products one large matrix product, two times faster than the
    first from about a hundred tasks. A single task has no axis at all, which is faster for one.

    >>> Crew._fields
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
) -> Crew:
    """Draw `tasks` random tasks and begin them; a single one has no task axis."""

    def one(key):
        draw, start = jax.random.split(key)
        drawn = family.draw(draw)
        task = family.task(drawn, shape)
        return Crew(drawn, begin(make_transform(network, task), task, start))

    return _for_tasks(one, tasks, key)


def draw_many(family: AbstractTaskFamily, tasks: int, key: Key[Array, ""]) -> PyTree:
    """The arrays of the tasks that `begin_many` draws from the same key."""
    return _for_tasks(lambda key: family.draw(jax.random.split(key)[0]), tasks, key)


def _for_tasks(one: Callable[[Key[Array, ""]], Any], tasks: int, key: Key[Array, ""]) -> Any:
    keys = jax.random.split(key, tasks)
    return one(keys[0]) if tasks == 1 else jax.vmap(one, out_axes=-1)(keys)


def advance_many(
    make_transform: MakeTransform,
    network: Any,
    family: AbstractTaskFamily,
    shape: Any,
    crew: Crew,
    steps: int,
    **options: Any,
) -> tuple[Crew, Trace]:
    """`advance` for every task of a crew; the trace has the step first and the task last.

    With `along`, whose axes are the step first and the task last, the transform of step t is
    `make_transform((network, along[t]), task)`.
    """
    one_step, axis = _each(make_transform, network, family, shape, crew)
    carry, trace = advance(one_step, crew.carry, steps, axis=axis, **options)
    return Crew(crew.drawn, carry), trace


def _each(make_transform, network, family, shape, crew: Crew) -> tuple[Callable[..., Carry], int | None]:
    """One step of every task of a crew, and the axis of tasks."""

    def one_step(drawn, carry, *entry):
        task = family.task(drawn, shape)
        return step(make_transform((network, *entry) if entry else network, task), task, carry)

    if crew.carry.value.ndim == 0:
        return lambda carry, *entry: one_step(crew.drawn, carry, *entry), None
    mapped = jax.vmap(one_step, in_axes=-1, out_axes=-1)
    return lambda carry, *entry: mapped(crew.drawn, carry, *entry), -1


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
    """Run an optimizer on `tasks` random tasks of a family; the step is the first axis, the task the last.

    The tasks depend on `key` alone, so that all optimizers that are given the same key meet the same ones.

    **Arguments:** `make_transform(network, task)` gives the optax transformation for a task, with `network`
    any pytree it needs (hyperparameters, a learned optimizer); see `symmetrax.UpdateRule`.

    >>> import jax, optax, symmetrax as sx
    >>> family = sx.make_family("ellipse-random")
    >>> descent = lambda rate, task: optax.sgd(rate)
    >>> unroll_many(descent, 0.05, family, jax.random.key(0), steps=12, tasks=100).loss.shape
    (13, 100)
    """
    check_key(key)
    if tasks < 1:
        raise ValueError(f"`unroll_many` needs at least one task, got tasks={tasks}.")
    shape = family.shapes[0] if shape is None else shape
    return _unroll_many(make_transform, network, family, key, steps, tasks, shape, watch, points)


@compiled
def _unroll_many(make_transform, network, family, key, steps, tasks, shape, watch, points):
    crew = begin_many(make_transform, network, family, shape, tasks, key)
    one_step, axis = _each(make_transform, network, family, shape, crew)
    return _from_start(one_step, crew.carry, steps, watch, points, axis)
