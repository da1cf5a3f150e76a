"""Certificates: how a symmetry changes the loss and every gradient, measured at generic points."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from symmetrax.discovery._double import tolerances
from symmetrax.discovery._draws import draw
from symmetrax.discovery._leaves import Lazy, Leaves
from symmetrax.discovery._loss import SPREAD, Loss
from symmetrax.groups._diagonal import AbstractGroup
from symmetrax.symmetry._dense import DenseAction
from symmetrax.symmetry._network import NetworkSymmetry

#: Largest relative changes of the loss and of a gradient under a symmetry that is still called approximate.
APPROXIMATE, APPROXIMATE_GRADIENT = 1e-2, 1e-1

#: Noise of the points at which elements act, in rotation, relative to the size of each array.
SPREADS = (SPREAD, 0.0, SPREAD / 5)

#: Relative moves up to this size count as no move.
UNMOVED = 1e-6


#: Outcomes of symmetries that hold to the precision of the loss, best first: in double precision, or if
#: parts of the loss have only single or half precision.
HOLDS = ("exact", "single precision", "half precision")


@dataclasses.dataclass(frozen=True)
class Certificate:
    """The largest relative changes under a symmetry, over `trials` random elements.

    They act in turn on `params` with noise of half the size of every array, on `params` unchanged, and on
    `params` with noise of a tenth. `invariance`: |loss(a.w) - loss(w)| on the data that the search used,
    relative to how much the loss varies under such noise. `fresh`: the same on other data, None if there is
    none. `leaves`: ||grad at a.w - grad carried by a||, relative to the latter, per array; `gradient` is
    their maximum. `moved` is the *smallest* relative move of the arrays with a spec: a transformation that
    moves nothing is not a symmetry. `tolerance` and `gradient_tolerance` are the thresholds for rounding. All
    measurements are in double precision; if a part of the loss has less (code outside JAX), the tolerances
    are wider, and the outcome names it.

    >>> good = Certificate(1e-16, None, {"w": 1e-15}, trials=3, tolerance=1e-9, gradient_tolerance=1e-8)
    >>> good.outcome
    'exact'
    >>> dataclasses.replace(good, tolerance=1e-5, gradient_tolerance=1e-2).outcome
    'single precision'
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
        """The largest residual of the gradient law over all arrays."""
        return float(np.max(list(self.leaves.values())))

    @property
    def loss_change(self) -> float:
        """The largest change of the loss, on any data; NaN if a loss was not finite."""
        return float(np.max([self.invariance, self.invariance if self.fresh is None else self.fresh]))

    @property
    def best(self) -> str:
        """The best outcome that the precision of the loss allows."""
        limits = (tolerances(float(jnp.finfo(dtype).eps))[0] for dtype in (jnp.float64, jnp.float32))
        return HOLDS[sum(self.tolerance > limit for limit in limits)]

    @property
    def outcome(self) -> str:
        """The outcome: exact (single or half precision if the loss has no more), approximate or wrong."""
        if not self.moved > UNMOVED:
            return "wrong"
        if self.loss_change <= self.tolerance and self.gradient <= self.gradient_tolerance:
            return self.best
        near = self.loss_change <= APPROXIMATE and self.gradient <= APPROXIMATE_GRADIENT
        return "approximate" if near else "wrong"

    @property
    def holds(self) -> bool:
        """Whether the loss and its gradient change only by rounding."""
        return self.outcome == self.best


@dataclasses.dataclass(frozen=True)
class _Trial:
    """A point and data of a certificate; the point is drawn again from `state` if it is not `kept`."""

    spread: float
    state: Any
    batch: Any
    fresh: bool
    value: float
    lengths: Mapping[str, float]
    kept: tuple[Leaves, Leaves] | None


class Certifier:
    """Certifies all symmetries at the same points, at the cost of one gradient per point and symmetry.

    `most` is the maximum number of certificates. `rough` indicates that the loss has no gradient at the
    parameters themselves, so that nearby points replace them.

    >>> from symmetrax.groups._diagonal import SignDiagonal
    >>> params, key, rng = {"w": jnp.ones(3)}, jax.random.key(0), np.random.default_rng(0)
    >>> with jax.enable_x64(True):
    ...     loss = Loss(lambda p: jnp.sum(p["w"] ** 2), params, key, None, None, x64=False)
    ...     certify = Certifier(loss, key, rng, trials=2, most=1)
    ...     certificate = certify(symmetry_of({"e": SignDiagonal(3)}, {"w": "e"}, loss.given))
    >>> certificate.outcome, certify.available
    ('exact', False)
    """

    def __init__(self, loss: Loss, key: Key[Array, ""], rng: np.random.Generator, *, trials: int, most: int):
        self._loss, self._key, self._rng = loss, key, rng
        self._left = most
        self._tolerance, self._gradient_tolerance = tolerances(loss.precision)
        self._drawn: dict[tuple, list[Any]] = {}
        self._held: list[AbstractGroup] = []
        self._elements_rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        self.rough = False
        self._trials = [self._trial(number) for number in range(trials)]

    def _trial(self, number: int) -> _Trial:
        loss, spread = self._loss, SPREADS[number % len(SPREADS)]
        other = loss.fresh(jax.random.fold_in(self._key, number)) if number else None
        batch = loss.batch if other is None else other
        # A norm of zeros, for instance, has no gradient at `params` itself, but has one nearby.
        for noise in (spread, SPREADS[-1]):
            loss.prepare(self._rng)
            state = self._rng.bit_generator.state
            leaves = self._point(noise, self._rng)
            value, gradient = loss.gradient(leaves, batch)
            if all(np.all(np.isfinite(part)) for part in (value, *gradient.values())):
                break
            self.rough |= noise == 0
        lengths = {path: _norm([part]) for path, part in gradient.items()}
        kept = None if loss.lean else (loss.placed(leaves), gradient)
        return _Trial(noise, state, batch, other is not None, value, lengths, kept)

    def _point(self, noise: float, rng: np.random.Generator) -> Leaves:
        return self._loss.generic(rng, noise) if noise else self._loss.leaves

    def _at(self, trial: _Trial) -> tuple[Leaves, Leaves]:
        """The point of a trial, and the gradient there."""
        if trial.kept is not None:
            return trial.kept
        rng = np.random.default_rng()
        rng.bit_generator.state = trial.state
        leaves = self._point(trial.spread, rng)
        return leaves, self._loss.gradient(leaves, trial.batch)[1]

    @property
    def available(self) -> bool:
        """Whether another certificate is within the budget and within the maximum number."""
        return self._left > 0 and self._loss.affords(len(self._trials) * (2 if self._loss.lean else 1))

    def fits(self, *symmetries: NetworkSymmetry) -> bool:
        """Whether there is memory for random elements of all these symmetries at once."""
        return self._loss.allows([next(iter(symmetry.spaces.values())) for symmetry in symmetries])

    def __call__(self, *symmetries: NetworkSymmetry) -> Certificate:
        """Measures how symmetries, whose specs name arrays by path, change the loss and its gradients.

        Several act one after the other, each by elements of its own: if one of them is no symmetry, the
        certificate fails, without telling which.
        """
        self._left -= 1
        changes: dict[bool, list[float]] = {False: [], True: []}
        moves: list[float] = []
        residuals: dict[str, list[float]] = {path: [] for path in self._loss.leaves}
        drawn = self._all_elements(symmetries)
        for k, trial in enumerate(self._trials):
            leaves, here = self._at(trial)
            moved = _Moved(leaves, symmetries, [elements[k] for elements in drawn])
            value, gradient = self._loss.gradient(moved.leaves, trial.batch)
            if trial.spread:  # without noise, arrays of zeros do not move
                moves += moved.distances()
            changes[trial.fresh].append(self._loss.apart(value, trial.value))
            lengths, gaps = dict(trial.lengths), {}
            # Arrays without a spec take part too: a spec that is missing shows in their gradients. One array
            # after the other, since all of them may be large.
            for path in residuals:
                carried = np.asarray(here[path])
                for action in moved.duals:
                    if path in action.symmetry.specs:
                        carried = action.carry(path, carried)
                        lengths[path] = _norm([carried])
                gaps[path] = _norm([gradient.pop(path) - carried])
            del here, moved  # before the point of the next trial is drawn
            for path, least in self._rounding(lengths).items():
                # Two gradients of zero agree, also where the array has no effect to compare with.
                residuals[path].append(0.0 if gaps[path] == 0 else gaps[path] / max(lengths[path], least))
        return Certificate(
            invariance=float(np.max(changes[False])),
            fresh=float(np.max(changes[True])) if changes[True] else None,
            leaves={path: float(np.max(found)) for path, found in residuals.items()},
            trials=len(self._trials),
            tolerance=self._tolerance,
            gradient_tolerance=self._gradient_tolerance,
            moved=float(np.min(moves)),
        )

    def _rounding(self, lengths: Mapping[str, float]) -> dict[str, float]:
        """For each array, the gradient length at which rounding errors are as large as the tolerance.

        Arrays have different units. They are compared by the change of the loss along each of them: gradient
        times size.
        """
        sizes = self._loss.sizes()
        effect = max(self._loss.variation, *(lengths[path] * size for path, size in sizes.items()))
        share = 100 * self._loss.precision / self._gradient_tolerance
        return {path: share * effect / size for path, size in sizes.items()}

    def _all_elements(self, symmetries: Sequence[NetworkSymmetry]) -> list[list[Any]]:
        """Random elements for every trial of each symmetry; no two symmetries share theirs."""
        groups = [next(iter(symmetry.spaces.values())) for symmetry in symmetries]
        kinds = [_kind(group) for group in groups]
        return [
            self._elements(group, kind, kinds[:k].count(kind))
            for k, (group, kind) in enumerate(zip(groups, kinds, strict=True))
        ]

    def _elements(self, group: AbstractGroup, kind: tuple, number: int) -> list[Any]:
        """Elements per trial; symmetries that are certified apart share them, since drawing takes time."""
        if (kind, number) not in self._drawn:
            if not self._loss.allows([group, *self._held]):
                self._drawn.clear()
                self._held.clear()
            self._held.append(group)
            self._drawn[kind, number] = [draw(group, self._elements_rng) for _ in self._trials]
        return self._drawn[kind, number]


class _Moved:
    """A point that several symmetries have moved, array by array, and how far each of them moved it."""

    def __init__(self, leaves: Leaves, symmetries: Sequence[NetworkSymmetry], elements: Sequence[Any]):
        named = [{next(iter(s.spaces)): x} for s, x in zip(symmetries, elements, strict=True)]
        self.actions = [DenseAction(s, x) for s, x in zip(symmetries, named, strict=True)]
        self.duals = [DenseAction(s, s.dual(x)) for s, x in zip(symmetries, named, strict=True)]
        self._squares = np.zeros((len(self.actions), 2))
        # Every array is read once, by the loss: a whole image beside the point would be another copy.
        self.leaves = Lazy({path: partial(self._array, path, leaves) for path in leaves})

    def _array(self, path: str, leaves: Leaves) -> np.ndarray:
        x = np.asarray(leaves[path])
        for number, action in enumerate(self.actions):
            if path in action.symmetry.specs:
                after = action.move(path, x)
                self._squares[number] += _norm([after - x]) ** 2, _norm([x]) ** 2
                x = after
        return x

    def distances(self) -> list[float]:
        """The relative move by each of the symmetries, over all of its arrays."""
        steps, sizes = np.sqrt(self._squares).T
        return [*(steps / np.maximum(sizes, 1e-300))]


def _kind(group: AbstractGroup) -> tuple:
    """What decides how elements are drawn: the group, without the names of its indices."""
    options = [getattr(group, field.name) for field in dataclasses.fields(group) if field.name != "per"]
    return (type(group), group.lengths, *options)


def _norm(leaves: Any) -> float:
    # Not a product of BLAS, whose threads wait for each other where other processes run.
    flat = (np.ravel(np.asarray(leaf)) for leaf in leaves)
    return float(np.sqrt(sum(float(np.einsum("i,i->", np.conj(x), x).real) for x in flat)))


def as_pattern(path: str) -> str:
    """Escapes a path into a spec pattern that matches only this path.

    >>> as_pattern("layers.{x}")
    'layers.{{x}}'
    """
    return path.replace("{", "{{").replace("}", "}}")


def symmetry_of(
    spaces: Mapping[str, Any], specs: Mapping[str, str], given: Mapping[str, jax.ShapeDtypeStruct]
) -> NetworkSymmetry:
    """Builds the network symmetry on arrays named by path.

    >>> from symmetrax.groups._diagonal import SignDiagonal
    >>> given = {"a{0}": jax.ShapeDtypeStruct((3,), np.float32)}
    >>> dict(symmetry_of({"e": SignDiagonal(3)}, {"a{0}": "e"}, given).specs)
    {'a{0}': 'e'}
    """
    return NetworkSymmetry(spaces, {as_pattern(path): text for path, text in specs.items()}, dict(given))
