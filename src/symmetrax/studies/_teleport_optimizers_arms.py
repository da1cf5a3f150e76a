"""The optimizers and arms of `teleport_optimizers`, what is asked of them, and how they teleport."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp
import optax
from optax.contrib import muon

from symmetrax.objectives._base import GradientNorm
from symmetrax.search._closed_form import ClosedForm
from symmetrax.search._searches import Ascent
from symmetrax.studies.core._race import Entry
from symmetrax.studies.core._race_programs import Proposal, Same
from symmetrax.symmetry._activation import ActivationGL
from symmetrax.tasks._data import FOLDER
from symmetrax.tasks._supervised import Classification
from symmetrax.teleportation._guard import Guard


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """A published setting: `rate` (None: tuned), the epoch of the teleports, the rate of their ascent `eta`,
    and the norm in which the optimizer's step is largest.

    >>> OPTIMIZERS["adam"].metric
    'l1'
    """

    make: Callable[[Any], optax.GradientTransformation]
    rate: float | None
    epoch: int
    eta: float
    metric: Literal["squared", "l1", "nuclear"]


OPTIMIZERS = {
    "sgd": Optimizer(lambda rate: optax.sgd(rate), 1e-2, 2, 1e-4, "squared"),
    "momentum": Optimizer(lambda rate: optax.sgd(rate, momentum=0.9), 1e-3, 0, 5e-2, "squared"),
    "adagrad": Optimizer(
        lambda rate: optax.adagrad(rate, initial_accumulator_value=0.0, eps=1e-10), 1e-2, 2, 1e-4, "l1"
    ),
    "rmsprop": Optimizer(lambda rate: optax.rmsprop(rate, decay=0.99, eps=1e-8), 1e-4, 0, 5e-2, "l1"),
    "adam": Optimizer(lambda rate: optax.adam(rate), 1e-4, 0, 5e-2, "l1"),
    "muon": Optimizer(lambda rate: muon(rate), None, 0, 5e-2, "nuclear"),
}

ARMS = (
    Entry("none"),
    Entry("reset", transport="reset"),
    *(Entry(f"exact-{how}", "exact", how) for how in ("keep", "carry", "reset")),
    *(Entry(f"action-{how}", "action", how) for how in ("keep", "reset")),
    *(Entry(f"small-{how}", "small", how) for how in ("keep", "reset")),
    *(Entry(f"random-exact-{how}", "exact", how, "random") for how in ("keep", "carry")),
    Entry("random-action-reset", "action", "reset", "random"),
    Entry("pseudo-exact-keep", "exact", "keep", "pseudo"),
    Entry("pseudo-action-reset", "action", "reset", "pseudo"),
)
#: Arms whose learning rates are tuned, all over the same values.
TUNED = {"none-tuned": "none", "exact-tuned": "exact-carry", "action-tuned": "action-reset"}

#: What is asked of every optimizer: one arm against another, on the final training loss.
PUBLISHED = {
    ("action-reset", "none"): "teleportation improves the convergence of {}",
    ("action-reset", "reset"): "teleportation improves {} beyond the reset of its state",
    ("action-reset", "longer"): "teleportation improves {} at equal gradient evaluations",
    ("action-tuned", "none-tuned"): "teleportation improves {} if both learning rates are tuned",
}
EXACT = {
    ("exact-carry", "none"): "exact teleportation, the state carried, improves {}",
    ("exact-carry", "random-exact-carry"): "the largest gradient is better for {} than a random scaling",
    ("exact-carry", "scaled"): "exact teleportation improves {} beyond a learning rate larger by as much",
    ("exact-tuned", "none-tuned"): "exact teleportation improves {} if both learning rates are tuned",
}
QUESTIONS = PUBLISHED | EXACT
REFERENCES = tuple(dict.fromkeys([theirs for _, theirs in QUESTIONS] + ["exact-keep", "random-action-reset"]))


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set, and how long and how often networks are trained on it.

    >>> Data("digits", seeds=10, epochs=40, tuning_seeds=3).images
    8000
    """

    name: str
    seeds: int
    epochs: int
    tuning_seeds: int
    rates: int = 9
    images: int = 8000


def _data() -> tuple[Data, ...]:
    """Digits, and MNIST if the environment variable SYMMETRAX_DATA is set.

    Published were 50,000 images, 40 epochs and 5 runs. Here digits (1,437 images) have the 40 epochs and more
    runs; MNIST is cut to at most 8,000 images and 10 epochs, so that all arms fit into a few minutes.
    """
    more = (Data("mnist", seeds=5, epochs=10, tuning_seeds=2, rates=7),) if os.environ.get(FOLDER) else ()
    return (Data("digits", seeds=10, epochs=40, tuning_seeds=3), *more)


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings. `bound` is for the exact scaling at one of eight teleports in a row: a unit is scaled by
    e^0.8 = 2.2 at most, about what raises the gradient norm as an ascent of the published length does not.
    `tolerance` is what the guard forgives the published action, which is not exact on its batch.

    >>> Settings().data[0].epochs
    40
    """

    data: tuple[Data, ...] = dataclasses.field(default_factory=_data)
    optimizers: tuple[str, ...] = tuple(OPTIMIZERS)
    bound: float = 0.1
    ascent: int = 10
    batch: int = 200
    small: int = 5
    tolerance: float = 1.0
    block: int = 10


def moves_of(settings: Settings, task: Classification, optimizer: Optimizer) -> dict[str, Proposal]:
    """The exact scaling in the optimizer's own norm, and the published action on large and small batches.

    >>> from symmetrax.studies.core._race import classifier
    >>> list(moves_of(Settings(), classifier("digits"), OPTIMIZERS["sgd"]))
    ['exact', 'action', 'small']
    """
    bound, eta = jnp.asarray(settings.bound), jnp.asarray(optimizer.eta)
    exact = ClosedForm(bound)
    if optimizer.metric != "squared":
        exact = Ascent(settings.ascent, rate=bound, bound=bound, normalized=True)
    weights = tuple(task.network.matrices)
    action = ActivationGL(weights=weights, sizes=task.widths, activation=task.network.activation)
    loose = Guard(jump=jnp.inf, tolerance=jnp.asarray(settings.tolerance))
    climb = Ascent(settings.ascent, rate=eta, bound=jnp.asarray(1.0))
    return {
        "exact": Proposal(task.symmetry(), exact, settings.batch, Same(GradientNorm(optimizer.metric))),
        "action": Proposal(action, climb, settings.batch, guard=loose),
        "small": Proposal(action, climb, settings.small, guard=loose),
    }
