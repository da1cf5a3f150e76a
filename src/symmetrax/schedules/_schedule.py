"""Schedules: the steps at which an optimizer teleports."""

from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int


class Plateau(eqx.Module):
    """Teleports when the loss has not improved on its best by a relative `rtol` for `patience` steps.

    After a teleport the count restarts. Under `vmap` each task has its own plateau; a search then runs, for
    all tasks at once, at every step at which any of them teleports.

    >>> Plateau(patience=3).rtol
    0.001
    """

    patience: int | Int[Array, ""] = 10
    rtol: float | Float[Array, ""] = 1e-3

    def __check_init__(self):
        if isinstance(self.patience, int) and self.patience < 1:
            raise ValueError(f"Plateau needs a patience of at least one step, got patience={self.patience}.")


#: Steps at which to teleport: their numbers (from 0), a function of the step count, one boolean per step (an
#: array may be traced, so that a sweep over schedules compiles once), a plateau of the loss, or None for
#: every step. `settled` validates a schedule.
Schedule = Iterable[Any] | Callable[[Array], Any] | Array | np.ndarray | Plateau | None


#: Iterables that are not collections of step numbers, or are handled as a whole.
NO_STEPS = (str, bytes, Mapping, jax.Array, np.ndarray)
#: The largest number that the step count of an optimizer, an int32, can hold.
MOST_STEPS = np.iinfo(np.int32).max


class Progress(NamedTuple):
    """The memory of a `Plateau`: the smallest loss so far and the number of steps since it decreased.

    >>> Progress._fields
    ('best', 'waited')
    """

    best: Float[Array, ""]
    waited: Int[Array, ""]


def every_n_steps(steps: int, start: int = 0) -> Callable[[Array], Array]:
    """A schedule of the steps start, start + steps, start + 2 steps, ...

    >>> import jax.numpy as jnp
    >>> [bool(due(every_n_steps(3, start=1), jnp.array(count))) for count in range(5)]
    [False, True, False, False, True]
    """
    if not (_is_whole(steps) and _is_whole(start)) or steps < 1:
        raise ValueError(
            "every_n_steps() needs a whole number of steps between teleports, at least one, got "
            f"every_n_steps({steps!r}, start={start!r})."
        )
    return lambda count: (count >= start) & ((count - start) % steps == 0)


def due(schedule: Schedule, count: Int[Array, ""], progress: Progress | None = None) -> Bool[Array, ""]:
    """Returns whether a teleport is due at step `count`.

    >>> import jax.numpy as jnp
    >>> [bool(due({2, 5}, jnp.array(count))) for count in range(4)]
    [False, False, True, False]
    """
    schedule = settled(schedule)
    if isinstance(schedule, Plateau):
        if progress is None:
            raise ValueError(
                "A Plateau needs the losses of earlier steps, got none: use it as the `schedule` of "
                "`teleported`."
            )
        return progress.waited >= schedule.patience
    if schedule is None:
        return jnp.array(True)
    if callable(schedule):
        return jnp.asarray(schedule(count), bool)
    # Compared with all positions instead of indexed: steps beyond the end then don't teleport, where an index
    # would be clipped to the last entry.
    if isinstance(schedule, jax.Array | np.ndarray) and schedule.dtype == bool:
        return jnp.any(jnp.asarray(schedule) & (jnp.arange(len(schedule)) == count))
    return jnp.any(jnp.asarray(schedule, int) == count)


def times(schedule: Schedule, steps: int) -> Bool[np.ndarray, " all"]:
    """Returns which of the first `steps` steps teleport.

    >>> times({0, 2, 9}, 4).tolist()
    [True, False, True, False]
    """
    schedule = settled(schedule)
    with jax.ensure_compile_time_eval():  # also inside compiled code, where the schedule is a constant
        if schedule is None:
            return np.ones(steps, bool)
        if callable(schedule) or isinstance(schedule, Plateau):
            return np.array([bool(due(schedule, jnp.array(step))) for step in range(steps)], bool)
        known = np.asarray(schedule)
        return np.isin(np.arange(steps), np.flatnonzero(known) if known.dtype == bool else known)


def settled(schedule: Any) -> Schedule:
    """Converts a schedule to a form that can be read repeatedly: None, function, `Plateau`, array or tuple.

    Raises ValueError for anything that is not a schedule.

    >>> settled([True, False, True]).tolist(), settled(iter([3, 5]))
    ([True, False, True], (3, 5))
    """
    if schedule is None or isinstance(schedule, Plateau):
        return schedule
    if callable(schedule) and not isinstance(schedule, type):
        return schedule
    if _is_whole(schedule):
        raise ValueError(
            f"`schedule` must be the steps that teleport, got the number {schedule}: write "
            f"every_n_steps({schedule}) to teleport every {schedule} steps, or {{{schedule}}} to teleport "
            f"before step {schedule} alone."
        )
    # An iterator can be read only once, but the schedule is needed at every step, and for the error message.
    read = schedule
    if isinstance(schedule, Iterable) and not isinstance(schedule, NO_STEPS):
        read = tuple(schedule)
        if all(_is_whole(entry) and 0 <= entry <= MOST_STEPS for entry in read):
            return tuple(int(entry) for entry in read)
        # A set of booleans has lost their order.
        if all(_is_flag(entry) for entry in read) and not isinstance(schedule, Set):
            return jnp.stack([jnp.asarray(entry) for entry in read])
    elif isinstance(schedule, jax.Array | np.ndarray) and schedule.ndim == 1:
        # A traced array is accepted by its dtype alone, since its values are unknown; any other array of step
        # numbers is checked entry by entry, like a list.
        whole = jnp.issubdtype(schedule.dtype, jnp.integer)
        if schedule.dtype == bool or (whole and isinstance(schedule, Tracer)):
            return schedule
        if not isinstance(schedule, Tracer) and (whole or not len(schedule)):
            return settled(np.asarray(schedule, int).tolist())
    raise ValueError(
        "`schedule` must be the numbers of the steps that teleport, counted from 0, one boolean for each "
        "step, a function of the step's number such as every_n_steps(10), a Plateau, or None for every "
        f"step, got {read!r}."
    )


def _is_whole(number: Any) -> bool:
    # A bool is an int in Python, but True is not the number of a step.
    return isinstance(number, int | np.integer) and not isinstance(number, bool)


def _is_flag(entry: Any) -> bool:
    return isinstance(entry, bool | np.bool) or (isinstance(entry, jax.Array) and entry.dtype == bool)


def beginning() -> Progress:
    """The progress before the first loss.

    >>> float(beginning().best), int(beginning().waited)
    (inf, 0)
    """
    return Progress(jnp.array(jnp.inf, float), jnp.zeros((), int))


def watched(schedule: Plateau, progress: Progress, value: Float[Array, ""]) -> Progress:
    """Returns the progress after one more loss; a non-finite loss does not count as an improvement.

    >>> import functools
    >>> after = functools.partial(watched, Plateau())
    >>> progress = functools.reduce(after, jnp.array([3.0, 2.0, jnp.nan, 2.0]), beginning())
    >>> float(progress.best), int(progress.waited)
    (2.0, 2)
    """
    # The best loss is infinite before the first one, and inf - rtol * inf would be NaN.
    fell = value < progress.best - schedule.rtol * jnp.abs(
        jnp.where(jnp.isinf(progress.best), 0, progress.best)
    )
    return Progress(
        jnp.where(fell, value, progress.best).astype(progress.best.dtype),
        jnp.where(fell, 0, progress.waited + 1),
    )
