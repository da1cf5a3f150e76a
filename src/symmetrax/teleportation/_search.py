"""Where on the orbit to go: searches in the algebra, and the verb `teleport`."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from symmetrax._tree import check_finite
from symmetrax.symmetry._base import AbstractLieSymmetry
from symmetrax.symmetry._maps import Affine
from symmetrax.symmetry._pullback import Pullback
from symmetrax.teleportation._guard import Guard, jump
from symmetrax.teleportation._objectives import Objective, squared_gradient_norm


class AbstractSearch(eqx.Module):
    """A way to find algebra coordinates at which an objective on the orbit is large.

    >>> import symmetrax as sx
    >>> isinstance(sx.Ascent(), sx.AbstractSearch)
    True
    """

    @abstractmethod
    def __call__(
        self,
        objective: Callable[[Array], Float[Array, ""]],
        symmetry: AbstractLieSymmetry,
        params: PyTree,
    ) -> Float[Array, "..."]:
        """Coordinates that make `objective(coordinates)` large on the orbit of `params`."""

    @abstractmethod
    def evaluations(self, symmetry: AbstractLieSymmetry) -> int:
        """Evaluations of the objective (each one gradient of the loss), known before the search runs."""


class Ascent(AbstractSearch):
    """`steps` steps of gradient ascent from the identity: xi <- xi + rate * d objective / d xi.

    Ten steps, the published choice, cost ten derivatives of a gradient. Ascent is local and its best `rate`
    scales with the loss: Booth's function wants 1e-3. Source: algorithm 1 of arXiv:2205.10637, without its
    mistake of returning the coordinates from before the last step.

    >>> Ascent(steps=5).evaluations(None)
    5
    """

    steps: int = eqx.field(static=True, default=10)
    rate: float | Float[Array, ""] = 1e-3

    def __call__(self, objective, symmetry, params):
        def climb(xi, _):
            return xi + self.rate * jax.grad(objective)(xi), None

        return jax.lax.scan(climb, symmetry.zero(), None, length=self.steps)[0]

    def evaluations(self, symmetry) -> int:
        return self.steps


class Scan(AbstractSearch):
    """The best of `points` angles around the circle, refined by `refinements` golden-section steps.

    For one-dimensional compact groups: the algebra must have one coordinate, an angle in radians. Finds the
    global maximum if `points` resolve its peak, to about 2 pi / points * 0.62^refinements.

    >>> Scan(points=64, refinements=20).evaluations(None)
    86
    """

    points: int = eqx.field(static=True, default=256)
    refinements: int = eqx.field(static=True, default=40)

    def __call__(self, objective, symmetry, params):
        if symmetry.algebra != (1,):
            raise ValueError(
                f"Scan goes around a circle: it needs one algebra coordinate, got shape {symmetry.algebra}. "
                "Use Ascent for larger groups."
            )

        def value(angle):
            # NaN would win every argmax; an angle without a finite objective is never the best.
            found = objective(angle[None])
            return jnp.where(jnp.isfinite(found), found, -jnp.inf)

        width = 2 * jnp.pi / self.points
        angles = jnp.arange(self.points) * width - jnp.pi
        best = angles[jnp.argmax(jax.lax.map(value, angles))]
        return _golden(value, best - width, best + width, self.refinements)[None]

    def evaluations(self, symmetry) -> int:
        return self.points + self.refinements + 2


class Oracle(AbstractSearch):
    """The angle with the largest gradient norm: in closed form for an affine map of the plane, else by scan.

    For f(x) = ||A x + b||^2 with u = A x + b, the squared gradient norm at angle t is 4 u' R' S R u with
    S = A A', largest where R u points along the top eigenvector of S: at the angle from u to it, and the
    maximum is 4 lambda_max(S) f(x). The objective it is called with must be the gradient norm.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> task = sx.booth()
    >>> x = jnp.array([5.0, -5.0])
    >>> there, info = sx.teleport(task.loss, x, task.symmetry(), search=Oracle(), guard=None)
    >>> round(float(info.before) ** 0.5, 2), round(float(info.after) ** 0.5, 2)
    (53.67, 72.0)
    """

    scan: Scan = Scan()

    def __call__(self, objective, symmetry, params):
        if not _has_closed_form(symmetry):
            return self.scan(objective, symmetry, params)
        h = cast(Affine, cast(Pullback, symmetry).map)
        u, (row, other) = h(params), h.matrix
        # Half the angle of (S11 - S22, 2 S12) is the direction of the top eigenvector.
        steep = 0.5 * jnp.arctan2(2 * jnp.sum(row * other), jnp.sum(row * row) - jnp.sum(other * other))
        angle = steep - jnp.arctan2(u[1], u[0])
        # The eigenvector has two ends; go to the nearer one.
        return (angle - jnp.pi * jnp.round(angle / jnp.pi))[None]

    def evaluations(self, symmetry) -> int:
        return 0 if _has_closed_form(symmetry) else self.scan.evaluations(symmetry)


class Teleport(NamedTuple):
    """What a teleport did. `before` and `after` are the objective at the old and the new point.

    `algebra` holds the coordinates that were found; `defect` the relative change of the loss (-1 without a
    guard: not measured); `refused` a code of `symmetrax.REFUSALS`; `evaluations` the number of gradient
    evaluations that the search spent.

    >>> Teleport._fields[:3]
    ('before', 'after', 'algebra')
    """

    before: Float[Array, ""]
    after: Float[Array, ""]
    algebra: Float[Array, "..."]
    defect: Float[Array, ""]
    refused: Int[Array, ""]
    evaluations: int


def teleport(
    loss: Callable[[PyTree, PyTree], Float[Array, ""]],
    params: PyTree,
    symmetry: AbstractLieSymmetry,
    batch: PyTree = None,
    *,
    objective: Objective = squared_gradient_norm,
    search: AbstractSearch | None = None,
    guard: Guard | None = Guard(),  # noqa: B008 (a frozen module)
) -> tuple[PyTree, Teleport]:
    """Move `params` along the symmetry to where `objective` is larger, at the same loss.

    **Arguments:** `loss(params, batch)` returns a scalar; `objective(value_fn, params)` is what to raise,
    the squared gradient norm by default; `search` says how (default `Ascent()`); `guard` refuses bad jumps,
    `guard=None` takes them all. Raises ValueError when concrete `params` are not finite.

    **Returns** the new parameters, unchanged if the guard refused, and a `Teleport` record.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> task, x = sx.booth(), jnp.array([5.0, -5.0])
    >>> there, info = teleport(task.loss, x, task.symmetry(), guard=sx.Guard(jump=20.0))
    >>> bool(info.after > info.before), int(info.refused)
    (True, 0)
    """
    check_finite(params, "teleport from")
    search = Ascent() if search is None else search

    def value_fn(w):
        return loss(w, batch)

    def on_orbit(xi):
        return objective(value_fn, symmetry.act(symmetry.exp(xi), params, batch))

    xi = search(on_orbit, symmetry, params)
    jumped = jump(symmetry, symmetry.exp(xi), params, batch, guard=guard, value_fn=value_fn)
    there = optax.tree.add(params, jumped.displacement)
    info = Teleport(
        before=objective(value_fn, params),
        after=objective(value_fn, there),
        algebra=xi,
        defect=jumped.defect,
        refused=jumped.refused,
        evaluations=search.evaluations(symmetry),
    )
    return there, info


def _has_closed_form(symmetry: Any) -> bool:
    return isinstance(symmetry, Pullback) and isinstance(symmetry.map, Affine) and symmetry.map.size == 2


def _golden(value: Callable, low: Array, high: Array, steps: int) -> Array:
    """Maximize a function of one variable with a single peak between `low` and `high`."""
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
