"""Learned optimizers that look along the orbit, with and without teleports: equal features, equal steps.

`vanilla` has the network, the features and the step of the others, and never teleports. Of the others, each
answers one question, and `CANDIDATES` are those among which a family's arm is chosen on a validation stream.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, cast

import jax
import numpy as np
import optax
from jaxtyping import Array, Float, Key, PyTree

from symmetrax.learned._orbit import OrbitLSTM
from symmetrax.learned._update_rule import UpdateRule
from symmetrax.studies.core._arm import Build, Learned
from symmetrax.studies.core._console import Reporter
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._meta_training import Budget, Trained, train
from symmetrax.studies.core._runs import Runs, run_many
from symmetrax.studies.core._statistics import DIVERGED, FLOOR
from symmetrax.studies.core._streams import Streams
from symmetrax.tasks._base import AbstractTaskFamily
from symmetrax.teleportation._guard import Guard

#: The families of the plane, of figures 3 to 6 of arXiv:2504.15399.
FAMILIES = ("ellipse-fixed", "ellipse-random", "rosenbrock-fixed", "rosenbrock-random")

#: What is told of every step of these arms.
WATCHED = ("algebra", "gate", "outcome")

#: The arm without teleports.
VANILLA = "vanilla"


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


#: Learned teleports, by name. "crest" starts from the angle at which a sinusoid with the slopes of the orbit
#: is largest, and "near" jumps less far; "teleport" learns the angle from nothing; "best" is told it.
VARIANTS = {
    "teleport": Variant(),
    "crest": Variant(centre="peak", order="teleport-first"),
    "crest-near": Variant(near=0.4, centre="peak", order="teleport-first"),
    "crest-ungated": Variant(centre="peak", order="teleport-first", gated=False),
    "crest-unguarded": Variant(near=None, centre="peak", order="teleport-first"),
    "best": Variant(sees=("slopes", "best"), order="teleport-first"),
}

#: How many gradients the two derivatives along one coordinate of the orbit count.
SLOPES = 4.0

#: What the two values of the loss count that a guard compares.
GUARD = 2 / 3

#: Those from which a family's arm is chosen on a validation stream.
CANDIDATES = ("teleport", "crest", "crest-near")


@dataclasses.dataclass(frozen=True)
class Training:
    """How the networks of all arms are trained: Adam with clipped gradients and a cosine schedule.

    >>> Training(runs=10, steps=20, unroll=10).updates
    20
    """

    runs: int = 1000
    tasks: int = 64
    steps: int = 20
    unroll: int = 10
    rate: float = 3e-3
    width: int = 32

    @property
    def updates(self) -> int:
        """How often the network is updated."""
        return self.runs * (self.steps // self.unroll)

    def budget(self, seeds: int, **options: Any) -> Budget:
        """That of `train`, for all runs: these arms are compared at equal training."""
        return Budget(
            self.runs,
            seeds,
            self.steps,
            self.unroll,
            tasks=self.tasks,
            # Equal chunks share one program.
            chunk=self.runs // 10 if self.runs % 10 == 0 else self.runs,
            patience=0,
            **options,
        )


def orbit_arm(
    name: str,
    family: AbstractTaskFamily,
    training: Training,
    variant: Variant | None,
    *,
    size: int = 2,
    coordinates: int = 1,
) -> Learned:
    """The arm of a variant, or without teleports (None), with as many algebra coordinates to look along.

    >>> from symmetrax.tasks._families import make_family
    >>> arm = orbit_arm("vanilla", make_family("ellipse-fixed"), Training(), None)
    >>> arm.make(jax.random.key(0)).algebra, arm.rule.teleports
    (0, False)
    """
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
        width=training.width,
    )
    rule = how(variant, training.steps) if variant else UpdateRule(schedule=())
    return Learned(name, make, rule, _outer(training.rate, training.updates), family)


def how(variant: Variant, steps: int) -> UpdateRule:
    """How a variant is used: a teleport at every step, soft in training; `as_used` makes it hard.

    >>> how(VARIANTS["crest"], 5).order
    'teleport-first'
    """
    guard = None
    if variant.near is not None:
        guard = Guard(jump=math.inf, tolerance=1e-3, relative=variant.near, shorten=True)
    return UpdateRule.at(range(steps), steps, guard=guard, order=variant.order)


def as_used(rule: UpdateRule, steps: int) -> UpdateRule:
    """A rule as it is used on unseen tasks: hard gates, and teleports at all steps if at any.

    >>> as_used(how(VARIANTS["crest"], 5), 7).schedule.sum().item()
    7
    """
    if not rule.teleports:
        return rule
    return UpdateRule.at(range(steps), steps, guard=rule.guard, order=rule.order, gate="hard")


@functools.cache
def _outer(rate: float, updates: int) -> optax.GradientTransformation:
    """One object for all arms, so that they share programs."""
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(rate, updates, 0.03))
    )


def trained_arm(
    arm: Learned,
    training: Training,
    streams: Streams,
    folder: RunFolder,
    reporter: Reporter,
    **options: Any,
) -> Trained:
    """Train an arm, under a name that is its own among all families; `options` are those of `Budget`."""
    named = dataclasses.replace(arm, name=f"{arm.family.name}-{arm.name}")
    return train(named, training.budget(len(streams.test), **options), streams, folder, reporter)


def run_used(
    arm: Learned,
    networks: PyTree,
    keys: Key[Array, " seeds"],
    *,
    steps: int,
    tasks: int,
    family: AbstractTaskFamily | None = None,
    **options: Any,
) -> Runs:
    """Run an arm's networks on unseen tasks, of its family or another; `options` are those of `run_many`."""
    rule = as_used(arm.rule, steps)
    options = {"watch": WATCHED, "parts": 2, **options}
    return run_many(rule, networks, family or arm.family, keys, steps=steps, tasks=tasks, **options)


def gradients_per_step(arm: Learned) -> float:
    """What a step costs in gradients of the loss.

    One, and two nested Jacobian-vector products of the gradient count as four, for each coordinate that the
    network looks along; the two losses that a guard compares count two thirds.

    >>> from symmetrax.tasks._families import make_family
    >>> gradients_per_step(orbit_arm("vanilla", make_family("ellipse-fixed"), Training(), None))
    5.0
    """
    options: dict[str, Any] = dict(cast(Build, arm.make).options)
    guarded = arm.rule.teleports and arm.rule.guard is not None
    return 1.0 + SLOPES * ("slopes" in options["sees"]) * options["orbit"] + GUARD * guarded


def validation(streams: Streams) -> Key[Array, " seeds"]:
    """Keys of the tasks on which arms are chosen, which nothing is trained on or reported for."""
    return jax.random.split(jax.random.fold_in(streams.tune, 3), len(streams.test))


def quality(losses: Float[np.ndarray, "seeds tasks points"], horizons: Sequence[int]) -> tuple[int, float]:
    """How good an arm is on a validation stream, the lower the better.

    First the number of runs that have diverged at one of the horizons: an arm that may ruin a run is not to
    be chosen while another does not. Then the mean, over all runs and horizons, of ln(loss / first loss),
    floored at the 1e-12 of all comparisons.

    >>> diverged, mean = quality(np.array([[[1.0, 0.1], [1.0, 0.001]]]), [1])
    >>> diverged, round(mean, 2)
    (0, -4.61)
    """
    first, there = losses[..., :1], losses[..., list(horizons)]
    with np.errstate(over="ignore"):  # what overflows is cut at DIVERGED all the same
        ratio = np.where(np.isfinite(there), there, np.inf) / first
    diverged = ratio > DIVERGED
    return int(np.sum(diverged.any(axis=-1))), float(np.mean(np.log(np.clip(ratio, FLOOR, DIVERGED))))


def choose_arm(losses: dict[str, Float[np.ndarray, "seeds tasks points"]], horizons: Sequence[int]) -> str:
    """The arm of the best `quality`.

    >>> choose_arm({"a": np.array([[[1.0, 0.1]]]), "b": np.array([[[1.0, 20.0]]])}, [1])
    'a'
    """
    return min(losses, key=lambda name: quality(losses[name], horizons))
