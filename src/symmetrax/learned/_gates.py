"""The group element that a learned optimizer asks for: gated, and checked against its symmetry's shape."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array

from symmetrax.learned._features import Proposal
from symmetrax.symmetry._base import AbstractLieSymmetry

#: Mode of a learned gate: multiply the coordinates by its probability, or threshold it at 1/2.
Gate = Literal["soft", "hard"]


def gated(proposal: Proposal, gate: Gate, symmetry: AbstractLieSymmetry) -> Array:
    """Applies the gate to the coordinates."""
    coordinates = _fitting(proposal.algebra, symmetry)
    if proposal.gate is None:
        return coordinates
    return proposal.gate * coordinates if gate == "soft" else jnp.where(proposal.gate > 0.5, coordinates, 0.0)


def _fitting(algebra: Array | None, symmetry: AbstractLieSymmetry) -> Array:
    """Returns the coordinates; raises ValueError if they are missing or do not fit the symmetry's shape."""
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
