"""Learned optimizers that look along the orbit, with and without teleports: equal features, equal steps.

`vanilla` has the network, the features and the step of the others, and never teleports. Each of the others
answers one question, and `CANDIDATES` are those among which a family's arm is chosen on a validation stream.
"""

import dataclasses
import functools
import math
from typing import Any

import jax.numpy as jnp
import optax

from symmetrax.learned._orbit import OrbitLSTM
from symmetrax.learned._update_rule import UpdateRule
from symmetrax.studies.core._arm import Build, Control, Learned, switched_off
from symmetrax.studies.core._meta_training import Budget
from symmetrax.tasks._base import AbstractTaskFamily
from symmetrax.teleportation._guard import Guard

#: The families of the plane, of figures 3 to 6 of arXiv:2504.15399.
FAMILIES = ("ellipse-fixed", "ellipse-random", "rosenbrock-fixed", "rosenbrock-random")

#: What is recorded of every step of these arms.
WATCHED = ("algebra", "gate", "loss_change", "outcome")

#: The arm without teleports.
VANILLA = "vanilla"

#: The number of gradients that the two derivatives along one coordinate of the orbit count.
SLOPES = 4.0

#: What the two values of the loss count that a guard compares.
GUARD = 2 / 3


@dataclasses.dataclass(frozen=True)
class Variant:
    """How a learned teleport differs from the others.

    `near` bounds the length of a jump, relative to that of parameters and last step (`Guard.relative`; None:
    no guard at all). The other fields are those of `OrbitLSTM` and `UpdateRule`.

    >>> Variant().near
    1.0
    """

    near: float | None = 1.0
    centre: str = "identity"
    order: str = "step-first"
    gated: bool = True
    sees: tuple[str, ...] = ("slopes",)


#: Learned teleports, by name. "peak" starts from the angle at which a sinusoid with the slopes of the orbit
#: is largest, and "near" jumps less far; "teleport" learns the angle from nothing; "best" is given it.
VARIANTS = {
    "teleport": Variant(),
    "peak": Variant(centre="peak", order="teleport-first"),
    "peak-near": Variant(near=0.4, centre="peak", order="teleport-first"),
    "peak-ungated": Variant(centre="peak", order="teleport-first", gated=False),
    "peak-unguarded": Variant(near=None, centre="peak", order="teleport-first"),
    "best": Variant(sees=("slopes", "best"), order="teleport-first"),
}

#: Those from which a family's arm is chosen on a validation stream.
CANDIDATES = ("teleport", "peak", "peak-near")


def budget(runs: int = 1000, tasks: int = 64, **options: Any) -> Budget:
    """How these arms are trained: for all runs, because they are compared at equal training.

    >>> budget(300).chunk
    30
    """
    chunk = runs // 10 if runs % 10 == 0 else runs  # equal chunks share one program
    return Budget(**{"runs": runs, "tasks": tasks, "steps": 20, "chunk": chunk, "patience": 0, **options})


@dataclasses.dataclass(frozen=True)
class Networks:
    """The width of the networks, and the first rate of the Adam that trains them.

    >>> Networks().width
    32
    """

    width: int = 32
    rate: float = 3e-3


def orbit_arm(
    name: str,
    family: AbstractTaskFamily,
    training: Budget,
    networks: Networks = Networks(),
    *,
    size: int = 2,
    coordinates: int = 1,
    slopes: float = SLOPES,
) -> Learned:
    """The arm of a variant, or "vanilla", with as many algebra coordinates to look along.

    Its network is trained with teleports at every step and a soft gate, and used with a hard one. `slopes` is
    the number of gradients that derivatives along one coordinate count.

    >>> from symmetrax.tasks._families import make_family
    >>> arm = orbit_arm("vanilla", make_family("ellipse-fixed"), budget())
    >>> arm.rule.teleports, 1 + arm.extra
    (False, 5.0)
    """
    variant = None if name == VANILLA else VARIANTS[name]
    look = variant or Variant()
    make = Build.of(
        OrbitLSTM,
        size=size,
        algebra=coordinates if variant else 0,
        orbit=coordinates,
        sees=look.sees,
        gated=look.gated,
        centre=look.centre if variant else "identity",
        max_norm=math.pi if variant else None,
        width=networks.width,
    )
    rule, used = UpdateRule(schedule=()), None
    if variant is not None:
        rule = _rule(variant, training.steps, gate="soft")
        used = functools.partial(_rule, variant, gate="hard")
    return Learned(
        name,
        make,
        rule,
        _outer(networks.rate, training.runs * (training.steps // training.unroll)),
        family,
        used,
        training,
        extra=slopes * ("slopes" in look.sees) * coordinates + GUARD * _guarded(rule),
    )


def off(arm: Learned) -> Control:
    """An arm with its teleports switched off at test; its guard then compares no losses.

    >>> from symmetrax.tasks._families import make_family
    >>> off(orbit_arm("peak", make_family("ellipse-fixed"), budget())).extra
    4.0
    """
    extra = arm.extra - GUARD * _guarded(arm.rule)
    return Control(f"{arm.name}-off", of=arm.name, rule=switched_off, extra=extra)


def _guarded(rule: UpdateRule) -> bool:
    return rule.teleports and rule.guard is not None


def _rule(variant: Variant, steps: int, *, gate: Any) -> UpdateRule:
    guard = None
    if variant.near is not None:
        guard = Guard(jump=math.inf, tolerance=1e-3, relative=jnp.asarray(variant.near), shorten=True)
    order: Any = variant.order
    return UpdateRule.at(range(steps), steps, guard=guard, order=order, gate=gate)


@functools.cache
def _outer(rate: float, updates: int) -> optax.GradientTransformation:
    """One object for all arms, so that they share programs."""
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(rate, updates, 0.03))
    )
