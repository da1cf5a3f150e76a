"""Balancing: the point of an orbit where the two sides of every space are equally large."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from symmetrax.objectives._landscape import NegativeParameterNorm
from symmetrax.search._closed_form import ClosedForm
from symmetrax.search._energies import Energies, placed
from symmetrax.search._orbit import Orbit, reducible
from symmetrax.search._searches import AbstractSearch
from symmetrax.symmetry._base import AbstractLieSymmetry
from symmetrax.symmetry._network import NetworkSymmetry

#: The largest norm of the logarithm of a balancing element.
BOUND = 20.0


class Balanced(AbstractSearch):
    """The point of the orbit where the two sides of every space have equal norms: balancing.

    For a scaling, the squared norms of the arrays that it multiplies and of those that it divides become
    equal, for every unit; for a general linear group, their Gram matrices. This is the smallest parameter
    norm on the orbit, so the search ignores the objective and costs no gradient. A space of which one side is
    zero has no balanced point and stays as it is (a LoRA factor at its start, a dead unit). Compact groups
    change no norms.

    `sweeps` and `ridge` are as in `ClosedForm`, which computes the point.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> params = {"w1": jnp.array([[4.0]]), "w2": jnp.array([[1.0]])}
    >>> symmetry = sx.models.mlp_symmetry(params, ["w1", "w2"])
    >>> loss = lambda w, _: jnp.sum(w["w2"] @ w["w1"])
    >>> balanced, _ = sx.teleport(loss, params, symmetry, search=Balanced())
    >>> print(balanced["w1"], balanced["w2"])
    [[2.]] [[2.]]
    """

    sweeps: int = eqx.field(static=True, default=20)
    ridge: float = 1e-10

    def __call__(self, orbit: Orbit) -> Float[Array, " k"]:
        symmetry = orbit.symmetry
        check_balanced(symmetry)
        assert isinstance(symmetry, NetworkSymmetry)
        norms = Orbit(orbit.value_fn, orbit.params, symmetry, objective=NegativeParameterNorm())
        assert norms.energies is not None
        closed = ClosedForm(bound=BOUND, sweeps=self.sweeps, ridge=self.ridge)(norms)
        parts = symmetry.split(closed)
        for name in norms.energies.spaces:
            parts[name] = jnp.where(_has_sides(norms.energies, name), parts[name], 0.0)
        return symmetry.join(parts).astype(closed.dtype)

    def evaluations(self, symmetry) -> int:
        return 0


def check_balanced(symmetry: AbstractLieSymmetry) -> None:
    """Raises ValueError if balancing has no closed form for this symmetry.

    >>> import symmetrax as sx
    >>> check_balanced(sx.tasks.booth().symmetry())
    Traceback (most recent call last):
    ValueError: Balancing needs a NetworkSymmetry without offsets in its specs, got Pullback: ...
    """
    if reducible(symmetry, NegativeParameterNorm()) is None:
        mend = "balance along a NetworkSymmetry alone, then along the others"
        if isinstance(symmetry, NetworkSymmetry):
            mend = "restrict it to the other spaces with symmetry.only(...)"
        raise ValueError(
            f"Balancing needs a NetworkSymmetry without offsets in its specs, got {type(symmetry).__name__}: "
            f"{mend}."
        )


def _has_sides(energies: Energies, space: str) -> Array:
    """Whether both sides of a space are present: by unit for scalings, by copy for matrices."""
    symmetry = energies.symmetry
    group, here = symmetry.spaces[space], symmetry.split(symmetry.zero())
    sums: list[Any] = [0.0, 0.0]
    for binding, exponent, square in energies.share(space, here):
        full = placed(square, binding, group.lengths)
        is_matrix = full.ndim - len(group.lengths) == 2
        sums[exponent < 0] += jnp.trace(full, axis1=-2, axis2=-1) if is_matrix else full
    present = jnp.asarray((sums[0] > 0) & (sums[1] > 0))
    return present.reshape(*present.shape, *[1] * (len(group.algebra) - present.ndim))
