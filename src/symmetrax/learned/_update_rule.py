"""The rule that turns a network and a task into an optax transformation."""

from typing import Any, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool

from symmetrax.learned._base import AbstractLearnedOptimizer, Order, Want
from symmetrax.learned._gates import Gate
from symmetrax.schedules._schedule import Schedule, settled
from symmetrax.schedules._schedule import times as when
from symmetrax.tasks._base import AbstractTask
from symmetrax.teleportation._guard import Guard
from symmetrax.teleportation._step import Transport


def _booleans(teleports: Any) -> Any:
    """Converts to an array of booleans; raises ValueError for anything else."""
    if teleports is None:
        return None
    if not isinstance(teleports, jax.Array | np.ndarray):
        teleports = settled(teleports)
    if isinstance(teleports, jax.Array | np.ndarray) and teleports.dtype == bool:
        return jnp.asarray(teleports)
    raise ValueError(
        f"UpdateRule(teleports=...) takes one boolean for each step, got {teleports!r}: to name the steps "
        "that teleport, write UpdateRule.at([2, 5], steps=12)."
    )


class UpdateRule(eqx.Module):
    """Builds an optax transformation from a network and a task: `rule(network, task)`.

    If the task has its own symmetry, the rule passes it to `AbstractLearnedOptimizer.transform`, which
    documents the other fields. A rule is a module, so the schedule and the guard are arguments of compiled
    programs, and arms that differ only in them share a program. `teleports[t]` says whether step t teleports;
    a missing entry, or None, means never. A learned `gate` is "soft" by default, for training; use "hard" for
    testing.

    >>> import jax, symmetrax as sx
    >>> network = sx.learned.FlatGradientLSTM(2, algebra=1, key=jax.random.key(0))
    >>> optimizer = UpdateRule(teleports=jax.numpy.ones(20, bool))(network, sx.tasks.booth())
    >>> trace = sx.unroll(optimizer, sx.tasks.booth(), jax.random.key(1), steps=3)
    >>> trace.loss.shape
    (4,)
    """

    teleports: Bool[Array, " steps"] | None = eqx.field(converter=_booleans, default=None)
    guard: Guard | None = Guard()
    meta_order: int = eqx.field(static=True, default=1)
    transport: Transport = eqx.field(static=True, default="keep")
    as_printed: bool = eqx.field(static=True, default=False)
    gate: Gate = eqx.field(static=True, default="soft")
    order: Order = eqx.field(static=True, default="step-first")

    @classmethod
    def at(cls, times: Schedule, steps: int, **options: Any) -> "UpdateRule":
        """Returns the rule that teleports at `times` out of `steps` steps, counted from 0.

        `options` are the other fields. Raises ValueError for times outside the horizon.

        >>> UpdateRule.at(range(0, 6, 2), 6).teleports.tolist()
        [True, False, True, False, True, False]
        >>> UpdateRule.at([2, 10], 6)
        Traceback (most recent call last):
        ValueError: The schedule has step 10, outside the horizon of 6 steps, counted from 0 to 5.
        """
        schedule = settled(times)
        outside = [t for t in schedule if t >= steps] if isinstance(schedule, tuple) else []
        if outside:
            raise ValueError(
                f"The schedule has step {max(outside)}, outside the horizon of {steps} steps, counted from 0 "
                f"to {steps - 1}."
            )
        return cls(jnp.asarray(when(schedule, steps)), **options)

    def __call__(
        self, network: AbstractLearnedOptimizer, task: AbstractTask
    ) -> optax.GradientTransformationExtraArgs:
        symmetry = None
        if self.teleports is not None or network.wants:
            symmetry = task.symmetry()
            if symmetry is None:
                raise ValueError(
                    f"{type(task).__name__} describes no symmetry, so nothing can teleport on it: use "
                    "UpdateRule(teleports=None) and a network that reads none of "
                    f"{', '.join(get_args(Want))}."
                )
        return network.transform(
            symmetry,
            schedule=() if self.teleports is None else self.teleports,
            guard=self.guard,
            meta_order=self.meta_order,
            transport=self.transport,
            as_printed=self.as_printed,
            gate=self.gate,
            order=self.order,
        )
