"""The update rule: what becomes of the proposals of a learned optimizer."""

from typing import Any, Literal, Protocol, get_args, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from symmetrax.learned._features import Want
from symmetrax.schedules._schedule import Plateau, Schedule, settled
from symmetrax.schedules._schedule import times as when
from symmetrax.symmetry._base import AbstractLieSymmetry
from symmetrax.tasks._base import AbstractTask
from symmetrax.teleportation._guard import Guard
from symmetrax.teleportation._step import Transport

#: Whether the step is taken before or after the group element is applied.
Order = Literal["step-first", "teleport-first"]

#: Mode of a learned gate: multiply the coordinates by its probability, or threshold it at 1/2.
Gate = Literal["soft", "hard"]


@runtime_checkable
class _Network(Protocol):
    """The part of `AbstractLearnedOptimizer` that a rule calls."""

    @property
    def wants(self) -> tuple[Want, ...]: ...

    @property
    def proposes_elements(self) -> bool: ...

    def transform(
        self, symmetry: AbstractLieSymmetry | None, rule: "UpdateRule"
    ) -> optax.GradientTransformationExtraArgs: ...


def _schedule(schedule: Any) -> Any:
    """Converts step numbers to an array, so that programs do not depend on them."""
    schedule = settled(schedule)
    if isinstance(schedule, Plateau):
        raise ValueError(
            "UpdateRule(schedule=...) cannot follow the loss, got a Plateau: give the steps, or wrap the "
            "optimizer in `teleported`, whose schedule it can be."
        )
    if isinstance(schedule, tuple):
        return jnp.asarray(schedule, int)
    return jnp.asarray(schedule) if isinstance(schedule, np.ndarray) else schedule


class UpdateRule(eqx.Module):
    """How the proposals of a learned optimizer become steps and teleports.

    With v = u, where u is the network's update, or -step_size * gradient if it emits a step size, and
    v <- momentum * v + u if it emits a momentum, a scheduled step moves the parameters by the group element
    a = exp(algebra):

        x <- a.(x + v)      order="step-first", algorithm 3 of arXiv:2504.15399 read as a single iterate
        x <- a.x + v        order="teleport-first"

    and every other step by v. In the second form the network observes x and chooses the element there, and
    its step starts from a.x, with the gradient transported by `symmetry.transport_gradient`, exactly and
    without another gradient evaluation, as in algorithm 2.

    A network that proposes no coordinates only steps.

    **Arguments:** `schedule` selects the steps, counted from 0, that teleport (default: all): their numbers,
    one boolean per step, or a function of the count such as `every_n_steps(10)`; () means never. `guard`
    rejects bad teleports and needs the extra argument `value_fn` in `update`; None accepts all.
    `meta_order=1` treats the gradient that the network sees as a constant when you differentiate through
    `update`; 2 differentiates through it. `transport` determines what an accepted teleport does to v: "keep"
    it, "carry" it along as a displacement, da(v), or "reset" it to zero; a rejected teleport keeps it.
    `as_printed` follows the algorithm to the letter: it teleports at every step, and on schedule applies the
    momentum twice, x <- a.(x + momentum * v + u); v is kept. `gate` determines how the probability p of a
    network that emits one is used: "soft" multiplies the coordinates by p, which is differentiable and thus
    fit for training; "hard" multiplies them by 1 if p > 1/2 and by 0 otherwise.

    Call a rule, `rule(network, task)`, to build the optax transformation that uses the task's own symmetry;
    for any other model pass the rule to `network.transform(symmetry, rule)`. A rule is a module, so its
    schedule and guard are arguments of compiled programs, and arms that differ only in them share a program.

    Raises ValueError for unknown words and for combinations that contradict each other.

    >>> import jax, symmetrax as sx
    >>> network = sx.learned.FlatGradientLSTM(2, algebra=1, key=jax.random.key(0))
    >>> optimizer = UpdateRule()(network, sx.tasks.booth())
    >>> trace = sx.unroll(optimizer, sx.tasks.booth(), jax.random.key(1), steps=3, watch=("outcomes",))
    >>> int(trace.watched["outcomes"][-1, 0])  # three teleports were accepted
    3
    """

    schedule: Schedule = eqx.field(converter=_schedule, default=None)
    guard: Guard | None = Guard()
    meta_order: int = eqx.field(static=True, default=1)
    transport: Transport = eqx.field(static=True, default="keep")
    as_printed: bool = eqx.field(static=True, default=False)
    gate: Gate = eqx.field(static=True, default="soft")
    order: Order = eqx.field(static=True, default="step-first")

    def __check_init__(self):
        options = {"meta_order": (1, 2)}
        options |= {"transport": get_args(Transport), "gate": get_args(Gate), "order": get_args(Order)}
        for name, allowed in options.items():
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"`{name}` must be one of {', '.join(map(str, allowed))}, got {value!r}.")
        if self.as_printed and self.transport != "keep":
            raise ValueError(
                f"as_printed keeps the velocity; it does not go with transport={self.transport!r}."
            )
        if self.as_printed and self.order != "step-first":
            raise ValueError(f"as_printed steps first; it does not go with order={self.order!r}.")

    @classmethod
    def at(cls, times: Schedule, steps: int, **options: Any) -> "UpdateRule":
        """Returns the rule that teleports at `times` out of `steps` steps, counted from 0.

        Rules made this way hold one boolean per step, so all schedules over one horizon share a program.
        `options` are the other fields. Raises ValueError for times outside the horizon.

        >>> UpdateRule.at(range(0, 6, 2), 6).schedule.tolist()
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

    @property
    def teleports(self) -> bool:
        """Whether there is a step to teleport at; a schedule whose entries are all False counts.

        >>> UpdateRule().teleports, UpdateRule(schedule=()).teleports
        (True, False)
        """
        return not (isinstance(self.schedule, jax.Array) and self.schedule.shape == (0,))

    def __call__(self, network: _Network, task: AbstractTask) -> optax.GradientTransformationExtraArgs:
        needed = (self.teleports and network.proposes_elements) or bool(network.wants)
        symmetry = task.symmetry() if needed else None
        if needed and symmetry is None:
            raise ValueError(
                f"{type(task).__name__} describes no symmetry, so nothing can teleport on it: use "
                "UpdateRule(schedule=()) and a network that reads none of "
                f"{', '.join(get_args(Want))}."
            )
        return network.transform(symmetry, self)
