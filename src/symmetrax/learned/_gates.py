"""The group element that a learned optimizer asks for: gated, and of the shape that its symmetry has."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array

from symmetrax.learned._features import Proposal
from symmetrax.symmetry._base import AbstractLieSymmetry

#: How a learned gate acts: its probability multiplies the coordinates, or opens at one half.
Gate = Literal["soft", "hard"]


def gated(move: Proposal, gate: Gate, symmetry: AbstractLieSymmetry) -> Array:
    """The coordinates as the gate leaves them."""
    coordinates = _fitting(move.algebra, symmetry)
    if move.gate is None:
        return coordinates
    return move.gate * coordinates if gate == "soft" else jnp.where(move.gate > 0.5, coordinates, 0.0)


def _fitting(algebra: Array | None, symmetry: AbstractLieSymmetry) -> Array:
    """The coordinates; ValueError if there are none, or of another shape than the symmetry's."""
    if algebra is None:
        raise ValueError(
            "This network emits no algebra coordinates, so it cannot teleport: build it with "
            f"algebra={symmetry.algebra[0]}, join it with one that does (Joint), or use it without a "
            "symmetry."
        )
    if algebra.shape != symmetry.algebra:
        raise ValueError(
            f"The network emits algebra coordinates of shape {algebra.shape}, but the symmetry has "
            f"{symmetry.algebra}; build the network with algebra={symmetry.algebra[0]}, or use "
            "PerNeuronLSTM, which serves networks of every size."
        )
    return algebra
