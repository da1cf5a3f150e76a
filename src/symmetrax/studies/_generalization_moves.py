"""Teleports that change the sharpness or the curvature at a point, by the published rates and exactly."""

import dataclasses
import os
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from symmetrax.objectives._landscape import Curvature, Sharpness, curvature, one_parameter_curve
from symmetrax.search._orbit import Orbit
from symmetrax.search._searches import AbstractSearch, Ascent
from symmetrax.studies.core._race_programs import Proposal
from symmetrax.symmetry._activation import ActivationGL
from symmetrax.symmetry._base import AbstractLieSymmetry
from symmetrax.tasks._data import FOLDER
from symmetrax.tasks._supervised import Classification
from symmetrax.teleportation._guard import Guard

#: Teleports in a row, and the rate of their ascent with the published action; up and down.
PUBLISHED = {
    "sharpness-up": (2, 0.05),
    "sharpness-down": (10, -0.05),
    "curvature-up": (10, 0.2),
    "curvature-down": (5, -0.05),
}


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set: runs, epochs, the epoch of the teleports and their batch, and runs of the correlation.

    >>> Data("digits", seeds=20, epochs=40, at=20, batch=1000, correlated=100).images
    8000
    """

    name: str
    seeds: int
    epochs: int
    at: int
    batch: int
    correlated: int
    images: int = 8000


def _data() -> tuple[Data, ...]:
    """Digits, and MNIST if the environment variable SYMMETRAX_DATA is set."""
    small = Data("digits", seeds=20, epochs=40, at=20, batch=1000, correlated=100)
    return small, *([Data("mnist", 10, 12, 6, 400, correlated=50)] if os.environ.get(FOLDER) else [])


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings. Published were batches of 2,000 for the teleports and 100 directions for the sharpness,
    with 9 radii; here digits have 1,437 images in all, so 1,000 are taken, and 4 directions, drawn anew for
    every teleport, of both signs, with 3 radii. Exact scalings climb by steps of length `bound`, within
    `bound` for every unit: ten teleports in a row scale by e at most.

    >>> Settings().ways
    ('action', 'exact')
    """

    data: tuple[Data, ...] = dataclasses.field(default_factory=_data)
    rate: float = 1e-2
    bound: float = 0.1
    ascent: int = 10
    directions: int = 4
    radii: tuple[float, ...] = (0.1, 0.5, 0.9)
    curves: int = 8
    tolerance: float = 1.0
    block: int = 10
    ways: tuple[str, ...] = ("action", "exact")


class MakeSharpness(eqx.Module):
    """Makes a `Sharpness` for every teleport, in new directions.

    >>> MakeSharpness(4, jnp.array([0.1]))(jax.random.key(0), None).directions
    4
    """

    directions: int = eqx.field(static=True)
    radii: Float[Array, " radii"]

    def __call__(self, key: Key[Array, ""], batch: Any) -> Sharpness:
        return Sharpness(key, self.directions, self.radii)


class MakeCurvature(eqx.Module):
    """Makes a `Curvature` for every teleport, of new curves, for the action on its batch.

    >>> import symmetrax as sx
    >>> MakeCurvature(sx.tasks.booth().symmetry(), 8)(jax.random.key(0), None).curves
    8
    """

    symmetry: AbstractLieSymmetry
    curves: int = eqx.field(static=True)

    def __call__(self, key: Key[Array, ""], batch: Any) -> Curvature:
        return Curvature(self.symmetry, key, self.curves, batch)


class AlongCurve(AbstractSearch):
    """The published step: t M with t = `rate` times the derivative, at 0, of the curvature of exp(t M) . w.

    M is drawn from U[0, 1] in the last `coordinates` of the algebra, those of the last hidden layer, and is
    zero elsewhere; its key is that of the objective, a `Curvature`.

    >>> import symmetrax as sx
    >>> AlongCurve(jnp.array(0.2), 100).evaluations(sx.tasks.booth().symmetry())
    3
    """

    rate: Float[Array, ""]
    coordinates: int = eqx.field(static=True)

    def __call__(self, orbit: Orbit) -> Float[Array, "..."]:
        zero, objective = orbit.zero(), cast(Curvature, orbit.objective)
        drawn = jax.random.uniform(objective.key, (self.coordinates,), zero.dtype)
        direction = jnp.zeros_like(zero).at[-self.coordinates :].set(drawn)
        curve = one_parameter_curve(orbit.symmetry, direction, orbit.params, orbit.batch)
        t = jnp.zeros((), zero.dtype)
        slope = jax.jvp(lambda t: curvature(curve, t), (t,), (jnp.ones_like(t),))[1]
        return self.rate * slope * direction

    def evaluations(self, symmetry: AbstractLieSymmetry) -> int:
        return 3


def symmetries_of(task: Classification) -> dict[str, AbstractLieSymmetry]:
    """The published action, which is exact on small batches only, and the exact scalings.

    >>> from symmetrax.studies.core._race import classifier
    >>> list(symmetries_of(classifier("digits")))
    ['action', 'exact']
    """
    action = ActivationGL(
        weights=tuple(task.network.matrices), sizes=task.widths, activation=task.network.activation
    )
    return {"action": action, "exact": task.symmetry()}


def moves_of(settings: Settings, data: Data, task: Classification) -> dict[str, Proposal]:
    """The published rates with the published action; steps of one length with exact scalings.

    >>> from symmetrax.studies.core._race import classifier
    >>> data = Data("digits", seeds=4, epochs=10, at=5, batch=200, correlated=20)
    >>> len(moves_of(Settings((data,)), data, classifier("digits")))
    8
    """
    moves, bound, symmetries = {}, jnp.asarray(settings.bound), symmetries_of(task)
    for way in settings.ways:
        symmetry = symmetries[way]
        sharpness = MakeSharpness(settings.directions, jnp.asarray(settings.radii))
        curves = MakeCurvature(symmetry, settings.curves if way == "exact" else 1)
        for what, (_, rate) in PUBLISHED.items():
            sharp = what.startswith("sharpness")
            if way == "action" and sharp:
                search = Ascent(settings.ascent, jnp.asarray(rate), jnp.asarray(1.0))
            elif way == "action":
                search = AlongCurve(jnp.asarray(rate), task.widths[-1] ** 2)
            else:
                search = Ascent(settings.ascent, jnp.sign(rate) * bound, bound, normalized=True)
            loose = Guard(jump=jnp.inf, tolerance=jnp.asarray(settings.tolerance))
            objective = sharpness if sharp else curves
            moves[f"{way}-{what}"] = Proposal(symmetry, search, data.batch, objective, loose)
    return moves
