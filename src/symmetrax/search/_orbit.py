"""The orbit of a point, as seen by a search."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from symmetrax._tree import total, widened
from symmetrax.objectives._base import (
    AbstractGradientObjective,
    AbstractOrbitObjective,
    GradientNorm,
    Negated,
    NegatedGradient,
    Objective,
    cost_of,
    squared_gradient_norm,
)
from symmetrax.objectives._landscape import NegativeParameterNorm
from symmetrax.search._energies import Energies
from symmetrax.symmetry._base import AbstractLieSymmetry
from symmetrax.symmetry._network import NetworkSymmetry


class Orbit:
    """An objective in algebra coordinates: `orbit(xi)` is its value at `act(exp(xi), params)`.

    If one gradient determines the gradients on the whole orbit (an exact linear symmetry, an objective of the
    gradient alone), it is computed once, or not at all if you pass `gradient`. Squared norms are further
    reduced to row and column sums, so that the cost of a search is negligible. Otherwise every value is
    measured at its point. `count` numbers the teleports of an optimizer, for searches that draw at random.
    Everything that an orbit caches is computed at construction, so a search may evaluate it anywhere, inside
    or outside of loops, conditions and derivatives.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> task = sx.tasks.booth()
    >>> orbit = Orbit(task.loss, jnp.array([5.0, -5.0]), task.symmetry())
    >>> print(orbit(orbit.zero()))
    2880.0
    """

    def __init__(
        self,
        value_fn: Callable[[PyTree], Float[Array, ""]],
        params: PyTree,
        symmetry: AbstractLieSymmetry,
        batch: PyTree = None,
        objective: Objective = squared_gradient_norm,
        gradient: PyTree = None,
        count: Int[Array, ""] | int = 0,
    ):
        self.value_fn, self.params, self.symmetry, self.batch = value_fn, params, symmetry, batch
        self.objective, self.count = objective, count
        self._measure = None
        if symmetry.linear and isinstance(objective, AbstractGradientObjective):
            self._measure = objective.measure
        # A linear action transforms gradients without evaluating the loss again, and an objective of the
        # gradient alone needs nothing else.
        #: The gradient at `params`, if it was given or computed.
        self.known_gradient = gradient
        if self._measure is not None:
            self.known_gradient = self.gradient
        #: The objective along the orbit as a squared norm, up to its sign, if it is a squared norm.
        self.energies: Energies | None = None
        quantity = reducible(symmetry, objective)
        if isinstance(symmetry, NetworkSymmetry) and quantity is not None:
            dual = quantity == "gradient"
            self.energies = Energies.of(symmetry, self.known_gradient if dual else params, dual=dual)
        self._shortcut = None
        if isinstance(objective, AbstractOrbitObjective):
            self._shortcut = objective.along(symmetry, params, batch)

    def __call__(self, coordinates: Float[Array, "..."]) -> Float[Array, ""]:
        if self._shortcut is not None:
            return self._shortcut(coordinates)
        if self.energies is not None:
            return self.sign * self.energies(coordinates)
        element = self.symmetry.exp(coordinates)
        if self._measure is not None:
            return self._measure(
                self.symmetry.transport_gradient(element, self.params, self.known_gradient, self.batch)
            )
        # An element in a higher precision would promote half-precision parameters, and so the whole loss.
        there = self.symmetry.act(element, self.params, self.batch)
        there = jax.tree.map(lambda v, w: v.astype(w.dtype) if hasattr(w, "dtype") else v, there, self.params)
        return self.objective(self.value_fn, there)

    def relative(self, coordinates: Float[Array, "..."]) -> Float[Array, ""]:
        """The objective up to a positive factor, finite where possible, for searches that compare."""
        if self.energies is not None:
            return self.sign * self.energies.relative(coordinates)
        return self(coordinates)

    def zero(self) -> Float[Array, "..."]:
        """Returns the coordinates of the identity, in the precision of the parameters."""
        numbers = jax.tree.leaves(eqx.filter(self.params, eqx.is_inexact_array))
        kind = total([jnp.zeros((), widened(leaf).real.dtype) for leaf in numbers]).dtype
        return self.symmetry.zero().astype(kind)

    @property
    def gradient(self) -> PyTree:
        """The gradient of the loss at `params`, recomputed at every call unless it is known."""
        return jax.grad(self.value_fn)(self.params) if self.known_gradient is None else self.known_gradient

    @property
    def sign(self) -> int:
        """The sign of the squared norm in the objective."""
        return (
            1
            if isinstance(self.objective, GradientNorm) or _is_negated(self.objective, NegativeParameterNorm)
            else -1
        )


def evaluations_needed(
    symmetry: AbstractLieSymmetry, objective: Objective, evaluations: float | int, known: bool
) -> float:
    """Gradients of the loss that a search costs, known in advance; `known` if you have one at the point.

    >>> import symmetrax as sx
    >>> evaluations_needed(sx.tasks.booth().symmetry(), sx.objectives.GradientNorm(), 30, known=False)
    30.0
    """
    if _squared_quantity(objective) == "params" and isinstance(symmetry, NetworkSymmetry):
        return 0.0
    if symmetry.linear and isinstance(objective, AbstractGradientObjective):
        return 0.0 if known or not evaluations else 1.0
    return float(evaluations * cost_of(objective))


def reducible(symmetry: AbstractLieSymmetry, objective: Objective) -> str | None:
    """Returns "gradient" or "params" if the objective is plus or minus its squared norm, else None.

    It is None, too, if `Energies` cannot evaluate the norm along the orbits of this symmetry: gradients move
    linearly, but parameters only if the specs have no offsets.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> params = {"w1": jnp.ones((3, 2)), "w2": jnp.ones((1, 3))}
    >>> reducible(sx.models.mlp_symmetry(params), sx.objectives.GradientNorm())
    'gradient'
    """
    quantity = _squared_quantity(objective)
    if not isinstance(symmetry, NetworkSymmetry) or (quantity == "params" and symmetry.has_offsets):
        return None
    return quantity


def _squared_quantity(objective: Objective) -> str | None:
    """Returns "gradient" or "params" if the objective is plus or minus its squared norm, else None."""
    inner = objective.objective if isinstance(objective, Negated | NegatedGradient) else objective
    if isinstance(inner, GradientNorm) and inner.metric == "squared":
        return "gradient"
    return "params" if isinstance(inner, NegativeParameterNorm) else None


def _is_negated(objective: Objective, kind: type) -> bool:
    return isinstance(objective, Negated | NegatedGradient) and isinstance(objective.objective, kind)
