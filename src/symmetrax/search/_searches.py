"""Searches in the algebra for the best point of an orbit."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from symmetrax._keys import check_key
from symmetrax._tree import safe_norm, select
from symmetrax.objectives._base import slopes
from symmetrax.search._orbit import Orbit
from symmetrax.symmetry._base import AbstractLieSymmetry
from symmetrax.symmetry._maps import Affine
from symmetrax.symmetry._pullback import Pullback

#: Cost of a derivative, in evaluations of the objective: a forward pass, and a backward pass at twice that.
DERIVATIVE = 3


class AbstractSearch(eqx.Module):
    """Abstract base class of searches for algebra coordinates at which an objective on the orbit is large.

    >>> import symmetrax as sx
    >>> isinstance(sx.search.Ascent(), sx.search.AbstractSearch)
    True
    """

    @abstractmethod
    def __call__(self, orbit: Orbit) -> Float[Array, "..."]:
        """Returns coordinates that make `orbit(coordinates)` large."""

    @abstractmethod
    def evaluations(self, symmetry: AbstractLieSymmetry) -> float | int:
        """Evaluations of the objective, known before the search runs; a derivative counts as three."""


class Ascent(AbstractSearch):
    """Gradient ascent from the identity: `steps` steps of xi <- xi + rate * d objective / d xi.

    Ten steps are the published choice. Ascent is local, and its best `rate` scales with the loss: for Booth's
    function it is 1e-3. With `normalized`, every step has length `rate` instead, independent of the scale.
    With `monotone`, a step that would not increase the objective is rejected and the next one is half as
    long, so the search never ends lower than it began. On noncompact groups, where the gradient norm has no
    maximum, the coordinates stay within `bound` (see `bounded`). Source: algorithm 1 of arXiv:2205.10637,
    except that its mistake of returning the coordinates from before the last step is corrected.

    >>> Ascent(steps=5).evaluations(None)
    15
    """

    steps: int = eqx.field(static=True, default=10)
    rate: float | Float[Array, ""] = 1e-3
    bound: float | Float[Array, ""] = 1.0
    normalized: bool = eqx.field(static=True, default=False)
    monotone: bool = eqx.field(static=True, default=False)

    def __call__(self, orbit):
        zero = orbit.zero()
        rate, bound = jnp.asarray(self.rate, zero.dtype), jnp.asarray(self.bound, zero.dtype)
        # The objective's own units are needed only if the length of a step depends on the slope.
        objective = orbit.relative if self.normalized else orbit

        def ahead(xi, rate, slope):
            if self.normalized:
                length = safe_norm(slope)
                slope = slope / jnp.where(length > 0, length, 1.0)
            return orbit.symmetry.bounded(xi + rate * slope, bound).astype(zero.dtype)

        def climb(xi, _):
            return ahead(xi, rate, jax.grad(objective)(xi)), None

        def climb_or_halve(state, _):
            xi, value, slope, rate = state
            # The slope at an accepted point comes with its value, so a step costs one derivative, as without
            # `monotone`, and one more is needed at the start.
            there = ahead(xi, rate, slope)
            found, turned = jax.value_and_grad(objective)(there)
            rose = (found > value) & jnp.all(jnp.isfinite(turned))
            return (
                *select(rose, (there, found, turned), (xi, value, slope)),
                jnp.where(rose, rate, rate / 2),
            ), None

        if not self.monotone:
            return jax.lax.scan(climb, zero, None, length=self.steps)[0]
        start = (zero, *jax.value_and_grad(objective)(zero), rate)
        return jax.lax.scan(climb_or_halve, start, None, length=self.steps)[0][0]

    def evaluations(self, symmetry) -> int:
        return DERIVATIVE * (self.steps + self.monotone)


class Random(AbstractSearch):
    """The best of `samples` random elements with normal coordinates of standard deviation `scale`.

    With one sample, this is the control experiment for optimized teleports: a random element of the same
    size. Each teleport of an optimizer draws anew, from `key` and the step number. Coordinates stay within
    `bound`.

    >>> import jax
    >>> Random(jax.random.key(0), samples=4).evaluations(None)
    4
    """

    key: Key[Array, ""]
    samples: int = eqx.field(static=True, default=16)
    scale: float | Float[Array, ""] = 0.1
    bound: float | Float[Array, ""] = 1.0

    def __check_init__(self):
        check_key(self.key)

    def __call__(self, orbit):
        keys = jax.random.split(jax.random.fold_in(self.key, orbit.count), self.samples)
        zero = orbit.zero()

        scale, bound = jnp.asarray(self.scale, zero.dtype), jnp.asarray(self.bound, zero.dtype)

        def draw(key):
            drawn = scale * jax.random.normal(key, zero.shape, zero.dtype)
            return orbit.symmetry.bounded(drawn, bound)

        # A single sample needs no comparison, and so no evaluation.
        return draw(keys[0]) if self.samples == 1 else _best(orbit, jax.vmap(draw)(keys))

    def evaluations(self, symmetry) -> int:
        return self.samples if self.samples > 1 else 0


class Grid(AbstractSearch):
    """The best point of a grid: `points` values per coordinate in [-bound, bound], for at most 3 coordinates.

    >>> import symmetrax as sx
    >>> Grid(points=9).evaluations(sx.tasks.booth().symmetry())
    9
    """

    points: int = eqx.field(static=True, default=33)
    bound: float | Float[Array, ""] = 1.0

    def __call__(self, orbit):
        zero = orbit.zero()
        if zero.size > 3:
            raise ValueError(
                f"Grid needs at most 3 algebra coordinates, got {zero.size}, which is too large for a grid: "
                "use Ascent or Random."
            )
        bound = jnp.asarray(self.bound, zero.dtype)
        ticks = [bound * jnp.linspace(-1.0, 1.0, self.points, dtype=zero.dtype)] * zero.size
        nodes = jnp.stack([axis.ravel() for axis in jnp.meshgrid(*ticks)], axis=-1)
        return _best(orbit, nodes.reshape(-1, *zero.shape))

    def evaluations(self, symmetry) -> int:
        return self.points ** symmetry.zero().size


class GoldenSection(AbstractSearch):
    """The best of `points` angles around the circle, refined by `refinements` golden-section steps.

    For one-dimensional compact groups: the algebra must have one coordinate, an angle in radians. Finds the
    global maximum if `points` resolve its peak, to within about 2 pi / points * 0.62^refinements.

    >>> GoldenSection(points=64, refinements=20).evaluations(None)
    86
    """

    points: int = eqx.field(static=True, default=256)
    refinements: int = eqx.field(static=True, default=40)

    def __call__(self, orbit):
        symmetry = orbit.symmetry
        if symmetry.algebra != (1,):
            raise ValueError(
                f"GoldenSection needs one algebra coordinate, an angle, got shape {symmetry.algebra}: use "
                "Ascent for larger groups."
            )

        def value(angle):
            return _comparable(orbit.relative(angle[None]))

        # The scan finds the right peak, golden section its top: the best angle's neighbors enclose a maximum.
        width = 2 * jnp.pi / self.points
        angles = jnp.arange(self.points, dtype=orbit.zero().dtype) * width - jnp.pi
        values = jax.lax.map(value, angles)
        best = angles[jnp.argmax(values)]
        found = _golden(value, best - width, best + width, self.refinements)
        return jnp.where(jnp.any(jnp.isfinite(values)), found, 0.0)[None]

    def evaluations(self, symmetry) -> int:
        return self.points + self.refinements + 2


class Oracle(AbstractSearch):
    """The angle with the largest gradient norm: in closed form for an affine map of the plane, else by scan.

    For f(x) = ||A x + b||^2 with u = A x + b, the squared gradient norm at angle t is 4 u' R' S R u with
    S = A A'. It is largest at the angle from u to the top eigenvector of S, where R u points along it, and
    the maximum is 4 lambda_max(S) f(x). The objective of the orbit must be the gradient norm.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> task = sx.tasks.booth()
    >>> x = jnp.array([5.0, -5.0])
    >>> there, info = sx.teleport(task.loss, x, task.symmetry(), search=Oracle(), guard=None)
    >>> round(float(info.before) ** 0.5, 2), round(float(info.after) ** 0.5, 2)
    (53.67, 72.0)
    """

    scan: GoldenSection = GoldenSection()

    def __call__(self, orbit):
        if not _has_closed_form(orbit.symmetry):
            return self.scan(orbit)
        h = cast(Affine, cast(Pullback, orbit.symmetry).map)
        u, (row, other) = h(orbit.params), h.matrix
        # The top eigenvector points along half the angle of (S11 - S22, 2 S12).
        steep = 0.5 * jnp.arctan2(2 * jnp.sum(row * other), jnp.sum(row * row) - jnp.sum(other * other))
        angle = steep - jnp.arctan2(u[1], u[0])
        # The eigenvector is defined up to sign: choose the smaller angle.
        return (angle - jnp.pi * jnp.round(angle / jnp.pi))[None].astype(orbit.zero().dtype)

    def evaluations(self, symmetry) -> int:
        return 0 if _has_closed_form(symmetry) else self.scan.evaluations(symmetry)


class SinusoidPeak(AbstractSearch):
    """The peak of the sinusoid that fits the objective at the identity: atan2(2 J', -J'') / 2.

    For rotations of the plane: the algebra must have one coordinate, an angle t in radians. On the orbit of a
    quadratic the squared gradient norm is J(t) = c + d cos(2 (t - t*)), so two derivatives determine its
    maximizer t* exactly. On other orbits the angle is a heuristic, much cheaper than a scan. With a guard
    that shortens long jumps, followed by Polyak's step, it solves most of the random Rosenbrock-like
    functions of the benchmark in a dozen steps.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> task, x = sx.tasks.booth(), jnp.array([5.0, -5.0])
    >>> there, info = sx.teleport(task.loss, x, task.symmetry(), search=SinusoidPeak(), guard=None)
    >>> round(float(info.before) ** 0.5, 2), round(float(info.after) ** 0.5, 2)
    (53.67, 72.0)
    """

    def __call__(self, orbit):
        zero = orbit.zero()
        if zero.shape != (1,):
            raise ValueError(
                f"SinusoidPeak needs one algebra coordinate, an angle, got shape {zero.shape}: use Ascent "
                "for larger groups."
            )
        return slopes(orbit.relative, zero).peak.astype(zero.dtype)

    def evaluations(self, symmetry) -> int:
        return 4


def _best(orbit: Orbit, candidates: Float[Array, "n ..."]) -> Float[Array, "..."]:
    """Returns the candidate with the largest objective, or the identity if no candidate has a finite one."""
    # One candidate at a time: `vmap` would hold the activations of the network for all of them.
    values = jax.lax.map(lambda xi: _comparable(orbit.relative(xi)), candidates)
    return jnp.where(jnp.any(jnp.isfinite(values)), candidates[jnp.argmax(values)], 0.0)


def _comparable(value: Float[Array, ""]) -> Float[Array, ""]:
    """Maps NaN and infinities to -inf: `argmax` would otherwise pick NaN."""
    return jnp.where(jnp.isfinite(value), value, -jnp.inf)


def _has_closed_form(symmetry: Any) -> bool:
    return isinstance(symmetry, Pullback) and isinstance(symmetry.map, Affine) and symmetry.map.size == 2


def _golden(value: Callable, low: Array, high: Array, steps: int) -> Array:
    """Maximizes a function of one variable with a single peak between `low` and `high`."""
    # With this ratio, one inner point of an interval is an inner point of the next: one evaluation per step.
    ratio = (5**0.5 - 1) / 2

    def shrink(state, _):
        low, high, left, right, at_left, at_right = state
        go_left = at_left > at_right
        low, high = jnp.where(go_left, low, left), jnp.where(go_left, right, high)
        probe = jnp.where(go_left, high - ratio * (high - low), low + ratio * (high - low))
        found = value(probe)
        left, right = jnp.where(go_left, probe, right), jnp.where(go_left, left, probe)
        at_left, at_right = jnp.where(go_left, found, at_right), jnp.where(go_left, at_left, found)
        return (low, high, left, right, at_left, at_right), None

    left, right = high - ratio * (high - low), low + ratio * (high - low)
    start = (low, high, left, right, value(left), value(right))
    low, high, left, right, at_left, at_right = jax.lax.scan(shrink, start, None, length=steps)[0]
    return jnp.where(at_left > at_right, left, right)
