"""Arms of the experiment on Algorithm 2, and running one of them from many starts at once."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from symmetrax._tree import safe_norm
from symmetrax.symmetry._base import AbstractLieSymmetry
from symmetrax.tasks._base import AbstractTask, AbstractTaskFamily
from symmetrax.tasks._plane import SumOfSquares
from symmetrax.teleportation._guard import Guard
from symmetrax.teleportation._online import LastStep, jump_and_step, online_teleported, step_end


class TurnedState(NamedTuple):
    """State of `turned`: the inner state, the coordinates of the last teleport, and whether it was refused.

    >>> TurnedState._fields
    ('inner', 'algebra', 'outcome')
    """

    inner: optax.OptState
    algebra: Float[Array, "..."]
    outcome: Int[Array, ""]


def turned(
    inner: optax.GradientTransformation, symmetry: AbstractLieSymmetry, choose: Callable, guard: Guard | None
) -> optax.GradientTransformationExtraArgs:
    """Teleport before every step by coordinates that nothing remembers: the controls of Algorithm 2.

    `choose(slope)` gives them; `slope()` is the derivative, at the identity, of the loss after the step.

    >>> import symmetrax as sx
    >>> task = sx.tasks.booth()
    >>> optimizer = turned(optax.sgd(0.1), task.symmetry(), lambda slope: jnp.array([jnp.pi]), None)
    >>> x = jnp.array([1.0, 3.0])  # the minimum, which no rotation moves
    >>> updates, _ = optimizer.update(jnp.zeros(2), optimizer.init(x), x, value_fn=task.loss)
    >>> bool(jnp.max(jnp.abs(updates)) < 1e-5)
    True
    """
    stepper = optax.with_extra_args_support(inner)

    def init(params: PyTree) -> TurnedState:
        return TurnedState(stepper.init(params), symmetry.zero(), jnp.array(0))

    def update(updates, state, params=None, *, value_fn=None, batch=None, **extra):
        if params is None or value_fn is None:
            raise ValueError("`turned` needs params and value_fn.")

        start = LastStep(params, updates, state.inner, jnp.array(True))

        def end(xi):
            return step_end(stepper, symmetry, start, xi, batch)

        xi = choose(lambda: jax.grad(lambda xi: value_fn(end(xi)))(symmetry.zero()))
        displacement, stepped, jumped = jump_and_step(
            stepper, symmetry, start, xi, batch, guard=guard, value_fn=value_fn
        )
        xi = jnp.where(jumped.outcome == 0, xi, 0.0)
        return displacement, TurnedState(stepped, xi, jumped.outcome)

    return optax.GradientTransformationExtraArgs(init, update)


class OnlineArm(eqx.Module):
    """Gradient descent with momentum, and a teleport before each step.

    `kind` is "plain" (none), "online" (Algorithm 2), "anew" (the angle is learned from zero at every step)
    or "given" (coordinates of the given size in a random direction, or all equal and of norm `angle`).
    Hyperparameters are `rate`, in units of the task, `momentum`, `beta`, the rate of the coordinates, and
    `angle`.

    >>> OnlineArm("online").order
    2
    """

    kind: str = eqx.field(static=True)
    order: Any = eqx.field(static=True, default=2)
    guarded: bool = eqx.field(static=True, default=False)

    def __call__(
        self,
        hyper: dict[str, Array],
        symmetry: AbstractLieSymmetry,
        size: Float[Array, ""],
        key: Key[Array, ""],
    ) -> optax.GradientTransformationExtraArgs:
        inner = optax.chain(optax.trace(hyper["momentum"]), optax.scale_by_learning_rate(hyper["rate"]))
        guard = Guard(tolerance=1e-3) if self.guarded else None
        if self.kind == "plain":
            return optax.with_extra_args_support(inner)
        if self.kind == "online":
            return online_teleported(inner, symmetry, hyper["beta"], order=self.order, guard=guard)
        if self.kind == "anew":
            return turned(
                inner, symmetry, lambda slope: symmetry.bounded(-hyper["beta"] * slope(), 1.0), guard
            )
        random, angle = jax.random.normal(key, symmetry.algebra), hyper["angle"]
        equal = jnp.ones(symmetry.algebra)
        xi = size * random / safe_norm(random) + angle * equal / safe_norm(equal)
        return turned(inner, symmetry, lambda slope: xi, guard)


class Starts(NamedTuple):
    """The random part of many runs: arrays of the tasks, starts, and a key for each.

    >>> Starts._fields
    ('drawn', 'params', 'keys')
    """

    drawn: PyTree
    params: PyTree
    keys: Key[Array, " lanes"]


@eqx.filter_jit
def make_starts(family: AbstractTaskFamily, keys: Key[Array, " lanes"]) -> Starts:
    """Draw tasks and starts, each from its own key."""

    def one(key):
        draw, start, rest = jax.random.split(key, 3)
        drawn = family.draw(draw)
        return Starts(drawn, family.task(drawn).init(start), rest)

    return jax.vmap(one)(keys)


class Runs(NamedTuple):
    """What an arm did in all runs: `loss` from the start on, and at every step the coordinates of its
    teleport, the point that led to (on vectors), its change of the distance to the minimum, relative to that
    distance (zero where the minimum is unknown), and whether it was refused. `seconds` are those of all runs.

    >>> Runs._fields
    ('loss', 'algebra', 'there', 'farther', 'outcome', 'seconds')
    """

    loss: Float[np.ndarray, "lanes points"]
    algebra: Float[np.ndarray, "lanes steps k"]
    there: Any
    farther: Float[np.ndarray, "lanes steps"]
    outcome: Any
    seconds: float


def follow(
    arm: OnlineArm,
    hyper: dict[str, Any],
    family: AbstractTaskFamily,
    starts: Starts,
    steps: int,
    *,
    size: Any = 0.0,
    timed: bool = False,
) -> Runs:
    """Run an arm from all starts; hyperparameters and `size` are numbers or have lanes (and steps) as axes.

    >>> import symmetrax as sx
    >>> family = sx.tasks.make_family("booth")
    >>> starts = make_starts(family, jax.random.split(jax.random.key(0), 5))
    >>> ran = follow(OnlineArm("plain"), {"rate": 0.05, "momentum": 0.0}, family, starts, 12)
    >>> ran.loss.shape, bool(np.all(ran.loss[:, -1] < ran.loss[:, 0]))
    ((5, 13), True)
    """
    lanes = len(starts.keys)
    complete = {"momentum": 0.0, "beta": 0.0, "angle": 0.0, **hyper}
    complete = {name: jnp.broadcast_to(jnp.asarray(x, float), (lanes,)) for name, x in complete.items()}
    size = jnp.broadcast_to(jnp.asarray(size, float), (lanes, steps))
    arguments = arm, complete, family, starts, size
    found = jax.block_until_ready(_follow(*arguments))
    seconds = float("nan")
    if timed:
        began = time.perf_counter()
        jax.block_until_ready(_follow(*arguments))
        seconds = time.perf_counter() - began
    loss, algebra, there, farther, outcome = map(np.asarray, found)
    return Runs(loss, algebra, there, farther, outcome, seconds)


def tuned(
    arm: OnlineArm,
    grid: list[dict[str, Any]],
    family: AbstractTaskFamily,
    starts: Starts,
    steps: int,
) -> dict[str, Any]:
    """The hyperparameters with the lowest upper quartile of relative final losses, on these starts.

    A loss that is not finite counts as infinite. The upper quartile, not the median, which is often least
    where just under half of the runs diverge.
    """
    scores = []
    for hyper in grid:
        loss = follow(arm, hyper, family, starts, steps).loss
        with np.errstate(over="ignore", invalid="ignore"):
            last = loss[:, -1] / loss[:, 0]
        last = np.where(np.isfinite(last), last, np.inf)
        scores.append(np.quantile(last, 0.75, method="inverted_cdf"))
    return grid[int(np.argmin(scores))]


def minimum(task: AbstractTask) -> Any:
    """Where the least loss of a task is, if that is known."""
    if isinstance(task, SumOfSquares):
        return task.map.inverse(jnp.zeros(task.map.size))
    return getattr(task, "minimum", None)


@eqx.filter_jit
def _follow(arm, hyper, family, starts, size):
    def lane(hyper, start: Starts, size):
        task = family.task(start.drawn)
        batch, best = task.batch(start.keys), minimum(task)
        symmetry = cast(AbstractLieSymmetry, task.symmetry())
        here = {**hyper, "rate": hyper["rate"] * getattr(task, "unit", 1.0)}

        def value_fn(params):
            return task.loss(params, batch)

        def step(carry, now):
            params, state, gradient = carry
            length, count = now
            transform = arm(here, symmetry, length, jax.random.fold_in(start.keys, count))
            updates, state = transform.update(gradient, state, params, value_fn=value_fn, batch=batch)
            xi, outcome = getattr(state, "algebra", symmetry.zero()), getattr(state, "outcome", 0)
            there = symmetry.act(symmetry.exp(xi), params, batch)
            farther = jnp.zeros(())
            if best is not None:
                farther = safe_norm(there - best) / safe_norm(params - best) - 1
            params = optax.apply_updates(params, updates)
            value, gradient = jax.value_and_grad(value_fn)(params)
            seen = there if isinstance(there, jax.Array) else farther
            return (params, state, gradient), (value, xi, seen, farther, jnp.asarray(outcome))

        value, gradient = jax.value_and_grad(value_fn)(start.params)
        state = arm(here, symmetry, size[0], start.keys).init(start.params)
        moments = size, jnp.arange(len(size))
        _, (values, *rest) = jax.lax.scan(step, (start.params, state, gradient), moments)
        return jnp.concatenate([value[None], values]), *rest

    return jax.vmap(lane)(hyper, starts, size)
