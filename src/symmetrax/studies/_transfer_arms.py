"""What `transfer` compares: networks to test on, learned optimizers with their controls, tuned baselines."""

import dataclasses
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from symmetrax.learned._coordinatewise import CoordinatewiseLSTM
from symmetrax.learned._neurons import PerNeuronLSTM
from symmetrax.learned._step import StepLSTM
from symmetrax.learned._update_rule import UpdateRule
from symmetrax.studies._classifiers import Adjusted, Size, clipped_adams, scheduled
from symmetrax.studies.core._arm import Build, BuildJoint, Learned, switched_off
from symmetrax.studies.core._hand_made import RATES, adam, descent
from symmetrax.studies.core._runs import run_many
from symmetrax.studies.core._streams import Streams
from symmetrax.tasks._supervised import ImageFamily

#: The networks that propose the step. "lr-absolute" does not measure its step sizes by the first gradient.
STEPS = {
    "update": (CoordinatewiseLSTM, {}),
    "lr": (StepLSTM, {}),
    "lr-absolute": (StepLSTM, {"absolute": True}),
}
#: What is trained with teleports too.
TELEPORTING = ("update", "lr")
#: The baselines, and the momenta (b1 of Adam) among which each is tuned, beside the rates.
TUNED = {"sgd": (descent, (0.0, 0.9)), "adam": (adam, (0.9,))}


@dataclasses.dataclass(frozen=True)
class Target:
    """A network to test on: hidden layers of `widths` units, on "digits" or "mnist".

    `kind` says what differs from the network of training: "trained" (nothing), "widths", "depths", "data".

    >>> Target("depths", "digits", (16, 16, 16)).name, Target("widths", "digits", (64,)).parameters
    ('digits 16x3', 4810)
    """

    kind: str
    data: str
    widths: tuple[int, ...]

    @property
    def name(self) -> str:
        first, *deeper = self.widths
        return f"{self.data} {first}" + (f"x{1 + len(deeper)}" if deeper else "")

    @property
    def parameters(self) -> int:
        sizes = [{"digits": 64, "mnist": 784}[self.data], *self.widths, 10]
        return sum((into + 1) * out for into, out in itertools.pairwise(sizes))


TARGETS = (
    Target("trained", "digits", (16,)),
    *(Target("widths", "digits", (width,)) for width in (8, 32, 128, 512)),
    *(Target("depths", "digits", (16,) * depth) for depth in (2, 4, 8)),
    Target("data", "mnist", (16,)),
)


def learned_arms(names: tuple[str, ...], size: Size, family: ImageFamily) -> list[Learned]:
    """What is trained. An arm without teleports has a per-neuron network too, which is never used and learns
    nothing, so that it shares programs with the arm that has them.

    >>> from symmetrax.studies._classifiers import image_family
    >>> [arm.name for arm in learned_arms(tuple(STEPS), Size(), image_family("digits", (16,), 64))]
    ['update', 'update-tele', 'lr', 'lr-tele', 'lr-absolute']
    """
    outer, arms, teleports = clipped_adams(size.rates, size.clip), [], scheduled(size)
    for name in names:
        kind, options = STEPS[name]
        step = Build.of(kind, width=size.width, **options)
        build = BuildJoint((step, Build.of(PerNeuronLSTM, width=size.width)))
        arms.append(Learned(name, build, switched_off(teleports), outer, family))
        if name in TELEPORTING:
            arms.append(Learned(f"{name}-tele", build, teleports, outer, family))
    return arms


def uses(networks: dict[str, PyTree], size: Size, seeds: int) -> dict[str, tuple[UpdateRule, PyTree]]:
    """Every learned arm and its controls: a rule, and networks with the seeds first; all one structure."""
    on = scheduled(size)
    off, found = switched_off(on), {}
    for name, trained in networks.items():
        plain = Adjusted.plain(trained, seeds)
        if not name.endswith("-tele"):
            found[name] = off, plain
            continue
        found[name], found[f"{name}-off"] = (on, plain), (off, plain)
        found[f"{name}-random"] = on, dataclasses.replace(plain, random=jnp.ones(seeds, bool))
    return found


def tune(name: str, family: ImageFamily, streams: Streams, rates: int, **options: Any) -> dict[str, float]:
    """The rate and momentum with the lowest median final loss over all training images, on the training
    stream. They go through the program of the unseen runs, some at a time; `options` are its options."""
    make, momenta = TUNED[name]
    seeds = len(streams.test)
    pairs = np.array(list(itertools.product(np.geomspace(RATES[0], RATES[-1], rates), momenta)))
    keys = jnp.repeat(jax.random.fold_in(streams.tune, 1)[None], seeds)
    quality = []
    for block in range(math.ceil(len(pairs) / seeds)):
        rows = np.arange(block * seeds, (block + 1) * seeds) % len(pairs)
        points = {"rate": jnp.asarray(pairs[rows, 0]), "momentum": jnp.asarray(pairs[rows, 1])}
        finals = run_many(make, points, family, keys, **options).measured["train"]
        quality += np.median(np.where(np.isfinite(finals), finals, np.inf), axis=1).tolist()
    rate, momentum = pairs[int(np.argmin(quality[: len(pairs)]))]
    return {"rate": float(rate), "momentum": float(momentum)}
