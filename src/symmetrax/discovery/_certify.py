"""Certificates: what a symmetry does to the loss and to every gradient, measured at generic points."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key

from symmetrax.discovery._points import Leaves, Loss
from symmetrax.symmetry._dense import DenseAction
from symmetrax.symmetry._groups import AbstractGroup
from symmetrax.symmetry._network import NetworkSymmetry

#: What a symmetry that is not exact may change at most to be called approximate: the loss, and a gradient.
APPROXIMATE, APPROXIMATE_GRADIENT = 1e-2, 1e-1

#: A relative move up to which nothing has moved.
STILL = 1e-6


@dataclasses.dataclass(frozen=True)
class Certificate:
    """Worst relative defects of one symmetry, over `trials` random elements at generic points near `params`.

    `invariance`: |loss(a.w) - loss(w)| / |loss(w)| on the data that the search saw; `fresh`: on other data,
    None if there is none. `leaves`: ||grad at a.w - grad carried by a|| / ||grad at a.w||, array by array;
    `gradient` is the largest of them. `moved` is the *smallest* relative move of the arrays with a leg: what
    moves nothing is no symmetry. `tolerance` and `gradient_tolerance` are what counts as rounding; in
    single precision the second is wide, because rounding now and then turns a ReLU on or off.

    >>> Certificate(1e-16, None, {"w": 1e-15}, trials=3, tolerance=1e-9, gradient_tolerance=1e-8).outcome
    'exact'
    """

    invariance: float
    fresh: float | None
    leaves: Mapping[str, float]
    trials: int
    tolerance: float
    gradient_tolerance: float
    moved: float = 1.0

    @property
    def gradient(self) -> float:
        """The worst residual of the gradient law over all arrays."""
        return float(np.max(list(self.leaves.values())))

    @property
    def defect(self) -> float:
        """The worst change of the loss, on any data; NaN if a loss was not finite."""
        return float(np.max([self.invariance, self.invariance if self.fresh is None else self.fresh]))

    @property
    def outcome(self) -> str:
        """In words: exact, approximate or wrong."""
        if not self.moved > STILL:
            return "wrong"
        if self.defect <= self.tolerance and self.gradient <= self.gradient_tolerance:
            return "exact"
        near = self.defect <= APPROXIMATE and self.gradient <= APPROXIMATE_GRADIENT
        return "approximate" if near else "wrong"


@dataclasses.dataclass(frozen=True)
class _Trial:
    leaves: Leaves
    batch: Any
    fresh: bool
    value: float
    gradient: Leaves


class Certifier:
    """Certifies symmetries at the same generic points, for one gradient each at every point."""

    def __init__(self, loss: Loss, key: Key[Array, ""], rng: np.random.Generator, trials: int):
        self._loss, self._key = loss, key
        self._tolerance, self._gradient_tolerance = tolerances(loss.precision)
        self._drawn: dict[tuple, list[Any]] = {}
        self._trials: list[_Trial] = []
        for number in range(trials):
            leaves = loss.placed(loss.generic(rng))
            other = loss.fresh(jax.random.fold_in(key, number)) if number else None
            batch = loss.batch if other is None else other
            self._trials.append(_Trial(leaves, batch, other is not None, *loss.gradient(leaves, batch)))

    def __call__(self, symmetry: NetworkSymmetry) -> Certificate:
        """What the symmetry, whose legs name arrays by path, does to the loss and its gradients."""
        changes: dict[bool, list[float]] = {False: [], True: []}
        moves: list[float] = []
        residuals: dict[str, list[float]] = {path: [] for path in self._loss.leaves}
        ((name, group),) = symmetry.spaces.items()
        for trial, drawn in zip(self._trials, self._elements(group), strict=True):
            element = {name: drawn}
            there = self._moved(symmetry, element, trial.leaves)
            before = {path: np.asarray(trial.leaves[path]) for path in there}
            steps = _norm(there[path] - before[path] for path in there)
            moves.append(steps / max(_norm(before.values()), 1e-300))
            value, gradient = self._loss.gradient(trial.leaves | there, trial.batch)
            carried = trial.gradient | self._moved(symmetry, symmetry.dual(element), trial.gradient)
            changes[trial.fresh].append(abs(value - trial.value) / max(abs(trial.value), 1e-300))
            least = np.sqrt(self._tolerance) / 30 * _norm(gradient.values())
            for path, moved in gradient.items():
                gap = _norm([moved - carried[path]])
                residuals[path].append(0.0 if gap == 0 else gap / max(_norm([moved]), least, 1e-300))
        return Certificate(
            invariance=float(np.max(changes[False])),
            fresh=float(np.max(changes[True])) if changes[True] else None,
            leaves={path: float(np.max(found)) for path, found in residuals.items()},
            trials=len(self._trials),
            tolerance=self._tolerance,
            gradient_tolerance=self._gradient_tolerance,
            moved=float(np.min(moves)),
        )

    def _elements(self, group: AbstractGroup) -> list[Any]:
        """A random element for every trial, the same for all spaces of one kind: drawing takes longest."""
        options = [getattr(group, field.name) for field in dataclasses.fields(group) if field.name != "per"]
        key = (type(group), group.lengths, *options)
        if key not in self._drawn:
            drawn = jax.vmap(group.sample)(jax.random.split(self._key, len(self._trials)))
            self._drawn[key] = [jax.tree.map(lambda x, k=k: x[k], drawn) for k in range(len(self._trials))]
        return self._drawn[key]

    @staticmethod
    def _moved(symmetry: NetworkSymmetry, element: Any, leaves: Leaves) -> Leaves:
        touched = {path: np.asarray(leaves[path]) for path in symmetry.legs}
        return symmetry.visit(touched, DenseAction(symmetry, element))


def tolerances(precision: float) -> tuple[float, float]:
    """What counts as rounding of a loss, and of gradients, for numbers of this machine precision.

    >>> tolerances(1e-16), tolerances(1e-7)
    ((1e-09, 1e-08), (1e-05, 0.01))
    """
    if precision < 1e-10:
        return 1e-9, 1e-8
    return (1e-5, 1e-2) if precision < 1e-6 else (4 * precision, min(0.5, 40 * precision))


def _norm(leaves: Any) -> float:
    return float(np.sqrt(sum(float(np.linalg.norm(np.ravel(leaf))) ** 2 for leaf in leaves)))


def as_pattern(path: str) -> str:
    """A path as a pattern of legs that matches it alone.

    >>> as_pattern("layers.{x}")
    'layers.{{x}}'
    """
    return path.replace("{", "{{").replace("}", "}}")


def symmetry_of(spaces: Mapping[str, Any], legs: Mapping[str, str], leaves: Leaves) -> NetworkSymmetry:
    """The network symmetry on arrays named by path."""
    shapes = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in leaves.items()}
    return NetworkSymmetry(spaces, {as_pattern(path): text for path, text in legs.items()}, shapes)
