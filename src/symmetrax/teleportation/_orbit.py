"""The orbit of a point, as searches see it."""

from collections.abc import Callable
from functools import cached_property

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from symmetrax.symmetry._base import AbstractLieSymmetry
from symmetrax.symmetry._network import NetworkSymmetry
from symmetrax.teleportation._energies import Energies
from symmetrax.teleportation._landscape import SmallNorm
from symmetrax.teleportation._objectives import (
    AbstractGradientObjective,
    AbstractOrbitObjective,
    GradientNorm,
    Lower,
    LowerGradient,
    Objective,
    cost_of,
    squared_gradient_norm,
)


class Orbit:
    """An objective on algebra coordinates: `orbit(xi)` is its value at `act(exp(xi), params)`.

    Where one gradient tells the gradients of the whole orbit (an exact linear symmetry, an objective of the
    gradient alone) it is taken once, or not at all if `gradient` is given; squared norms are reduced to row
    and column sums as well, so that a search costs next to nothing. Elsewhere every value is measured at the
    point. `count` numbers the teleports of an optimizer, for searches that draw at random.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> task = sx.booth()
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
        self._known_gradient = gradient

    def __call__(self, coordinates: Float[Array, "..."]) -> Float[Array, ""]:
        if self._shortcut is not None:
            return self._shortcut(coordinates)
        if self.energies is not None:
            return self.sign * self.energies(coordinates)
        element = self.symmetry.exp(coordinates)
        if self.symmetry.linear and isinstance(self.objective, AbstractGradientObjective):
            there = self.symmetry.pull(element, self.params, self.gradient, self.batch)
            return self.objective.measure(there)
        return self.objective(self.value_fn, self.symmetry.act(element, self.params, self.batch))

    def zero(self) -> Float[Array, "..."]:
        """The coordinates of the identity, in the precision of the parameters."""
        dtypes = [leaf.dtype for leaf in jax.tree.leaves(self.params) if hasattr(leaf, "dtype")]
        return self.symmetry.zero().astype(jnp.promote_types(jnp.result_type(*dtypes), jnp.float32))

    @cached_property
    def gradient(self) -> PyTree:
        """The gradient of the loss at `params`."""
        return jax.grad(self.value_fn)(self.params) if self._known_gradient is None else self._known_gradient

    @cached_property
    def energies(self) -> Energies | None:
        """The objective up to its sign, as a squared norm along the orbit, if it is one."""
        if not isinstance(self.symmetry, NetworkSymmetry) or _squared(self.objective) is None:
            return None
        if _squared(self.objective) == "gradient":
            return Energies.of(self.symmetry, self.gradient, dual=True)
        return Energies.of(self.symmetry, self.params, dual=False)

    @cached_property
    def _shortcut(self) -> Callable[[Array], Array] | None:
        """The objective's own way along this orbit, if it has one."""
        if not isinstance(self.objective, AbstractOrbitObjective):
            return None
        return self.objective.along(self.symmetry, self.params, self.batch)

    @property
    def sign(self) -> int:
        """The sign with which the squared norm enters the objective."""
        return 1 if isinstance(self.objective, GradientNorm) or _is_lower(self.objective, SmallNorm) else -1


def price(
    symmetry: AbstractLieSymmetry, objective: Objective, evaluations: float | int, known: bool
) -> float:
    """Gradients of the loss that a search costs, known before it runs; `known` if one is given at the point.

    >>> import symmetrax as sx
    >>> price(sx.booth().symmetry(), sx.GradientNorm(), 30, known=False)
    30.0
    """
    if _squared(objective) == "params" and isinstance(symmetry, NetworkSymmetry):
        return 0.0
    if symmetry.linear and isinstance(objective, AbstractGradientObjective):
        return 0.0 if known or not evaluations else 1.0
    return float(evaluations * cost_of(objective))


def _squared(objective: Objective) -> str | None:
    """Of what the objective is plus or minus the squared norm: "gradient", "params", or nothing."""
    inner = objective.objective if isinstance(objective, Lower | LowerGradient) else objective
    if isinstance(inner, GradientNorm) and inner.metric == "squared":
        return "gradient"
    return "params" if isinstance(inner, SmallNorm) else None


def _is_lower(objective: Objective, kind: type) -> bool:
    return isinstance(objective, Lower | LowerGradient) and isinstance(objective.objective, kind)
