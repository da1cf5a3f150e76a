"""The networks that `transfer` tests on, and the learned arms that it trains."""

import dataclasses
import functools
import itertools
from typing import Any

from symmetrax.learned._coordinatewise import CoordinatewiseLSTM
from symmetrax.learned._neurons import PerNeuronLSTM
from symmetrax.learned._step import StepLSTM
from symmetrax.studies._classifiers import Adjusted, Size, adjusted, clipped_adams, scheduled
from symmetrax.studies.core._arm import Build, BuildJoint, Learned, switched_off

#: The networks that propose the step. "lr-absolute" does not measure its step sizes by the first gradient.
STEPS = {
    "update": (CoordinatewiseLSTM, {}),
    "lr": (StepLSTM, {}),
    "lr-absolute": (StepLSTM, {"absolute": True}),
}
#: What is trained with teleports too.
TELEPORTING = ("update", "lr")


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
    def family(self) -> str:
        """The name of its task family, which is part of names of files."""
        return self.name.replace(" ", "-")

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


def learned_arms(names: tuple[str, ...], size: Size, seeds: int) -> list[Any]:
    """What is trained, with its controls.

    An arm without teleports has a per-neuron network too, which is never used and learns nothing, so that it
    shares programs with the arm that has them.

    >>> [arm.name for arm in learned_arms(("lr-absolute", "lr"), Size(), seeds=2)]
    ['lr-absolute', 'lr', 'lr-tele', 'lr-tele-off', 'lr-tele-random']
    """
    found, teleports = [], scheduled(size)
    outer, wrapped = clipped_adams(size.rates, size.clip), functools.partial(Adjusted.plain, seeds=seeds)
    for name in names:
        kind, options = STEPS[name]
        step = Build.of(kind, width=size.width, **options)
        build = BuildJoint((step, Build.of(PerNeuronLSTM, width=size.width)))
        plain = Learned(name, build, switched_off(teleports), outer, saved=False, wrapped=wrapped)
        found.append(plain)
        if name in TELEPORTING:
            arm = f"{name}-tele"
            found.append(dataclasses.replace(plain, name=arm, rule=teleports, saved=True))
            found += [adjusted(f"{arm}-off", arm, "off"), adjusted(f"{arm}-random", arm, "random")]
    return found
