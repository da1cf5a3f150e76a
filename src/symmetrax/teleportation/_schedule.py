"""When a teleport is due."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


class Plateau(eqx.Module):
    """Teleport when the loss has not fallen below its best by a part `rtol` for `patience` steps.

    After a teleport the count starts anew.

    >>> Plateau(patience=3).rtol
    0.001
    """

    patience: int | Int[Array, ""] = 10
    rtol: float | Float[Array, ""] = 1e-3


#: Steps at which a teleport happens: their numbers (from 0), a function of the step count, one boolean per
#: step (an array may be traced, so that a sweep over schedules compiles once), a plateau of the loss, or None
#: for every step.
Schedule = Iterable[int] | Callable[[Array], Any] | Bool[Array | np.ndarray, " steps"] | Plateau | None


class Progress(NamedTuple):
    """The least loss so far, and the steps since it fell: what a `Plateau` remembers."""

    best: Float[Array, ""]
    waited: Int[Array, ""]


def every(steps: int, start: int = 0) -> Callable[[Array], Array]:
    """A schedule: steps start, start + steps, start + 2 steps, ...

    >>> import jax.numpy as jnp
    >>> [bool(due(every(3, start=1), jnp.array(count))) for count in range(5)]
    [False, True, False, False, True]
    """
    if steps < 1:
        raise ValueError(f"every() needs at least one step between teleports, got {steps}.")
    return lambda count: (count >= start) & ((count - start) % steps == 0)


def due(schedule: Schedule, count: Int[Array, ""], progress: Progress | None = None) -> Bool[Array, ""]:
    """Whether a teleport is due at step `count`.

    >>> import jax.numpy as jnp
    >>> [bool(due({2, 5}, jnp.array(count))) for count in range(4)]
    [False, False, True, False]
    """
    if isinstance(schedule, Plateau):
        if progress is None:
            raise ValueError("A Plateau needs the losses so far: use it as the schedule of `teleported`.")
        return progress.waited >= schedule.patience
    if schedule is None:
        return jnp.array(True)
    if callable(schedule):
        return jnp.asarray(schedule(count), bool)
    if isinstance(schedule, jax.Array | np.ndarray) and schedule.dtype == bool:
        return jnp.any(jnp.asarray(schedule) & (jnp.arange(len(schedule)) == count))
    return jnp.any(jnp.array(list(schedule), int) == count)


def settled(schedule: Schedule) -> Schedule:
    """A schedule that can be read many times: an iterator is read now."""
    return tuple(schedule) if isinstance(schedule, Iterator) else schedule


def beginning() -> Progress:
    """Before the first loss."""
    return Progress(jnp.array(jnp.inf), jnp.array(0))


def watched(schedule: Plateau, progress: Progress, value: Float[Array, ""]) -> Progress:
    """The progress after one more loss; one that is not finite is no progress."""
    fell = value < progress.best - schedule.rtol * jnp.abs(
        jnp.where(jnp.isinf(progress.best), 0, progress.best)
    )
    return Progress(
        jnp.where(fell, value, progress.best).astype(progress.best.dtype),
        jnp.where(fell, 0, progress.waited + 1),
    )
