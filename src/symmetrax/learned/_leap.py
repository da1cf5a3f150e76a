"""The teleport in a learned optimizer's step: gated, shortened, judged, and what is carried along."""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PyTree

from symmetrax._tree import select
from symmetrax.learned._features import Proposal
from symmetrax.symmetry._base import AbstractLieSymmetry
from symmetrax.teleportation._guard import Guard, Jump, jump_by, shortened

#: What becomes of the last step, which momentum builds on, when the parameters jump.
Transport = Literal["keep", "carry", "reset"]

#: How a learned gate acts: its probability multiplies the coordinates, or opens at one half.
Gate = Literal["soft", "hard"]


class Leap(NamedTuple):
    """A teleport from `at`: the element exp(algebra), what became of it, and whether it was due at all.

    >>> Leap._fields
    ('symmetry', 'exp', 'at', 'batch', 'algebra', 'jump', 'due')
    """

    symmetry: AbstractLieSymmetry
    exp: Callable[[Array], PyTree]
    at: PyTree
    batch: PyTree
    algebra: Float[Array, "..."]
    jump: Jump
    due: Bool[Array, ""]

    @property
    def moved(self) -> Bool[Array, ""]:
        """Whether the parameters jump."""
        return self.due & (self.jump.refused == 0)

    @property
    def made(self) -> Float[Array, "..."]:
        """The coordinates, or those of the identity where the parameters stay."""
        return jnp.where(self.moved, self.algebra, jnp.zeros_like(self.algebra))

    def transported(self, velocity: PyTree, transport: Transport) -> PyTree:
        """What becomes of a velocity at `at`."""
        if transport == "reset":
            return select(self.moved, optax.tree.zeros_like(velocity), velocity)
        if transport == "carry":
            still = (jax.lax.stop_gradient(self.at), optax.tree.zeros_like(velocity))
            place, tangent = select(self.moved, (self.at, velocity), still)
            carried = self.symmetry.transport_tangent(self.exp(self.made), place, tangent, self.batch)
            return select(self.moved, carried, velocity)
        return velocity

    def carried_gradient(self, gradient: PyTree) -> PyTree:
        """The gradient where the teleport leads, from that at `at`: the same, bit for bit, if nowhere."""
        made = self.made
        carried = self.symmetry.transport_gradient(self.exp(made), self.at, gradient, self.batch)
        return unless(jnp.all(made == 0), gradient, carried)


def leap_from(
    symmetry: AbstractLieSymmetry,
    bound: float | None,
    at: PyTree,
    move: Proposal,
    due: Bool[Array, ""],
    *,
    step: PyTree,
    retreat: PyTree,
    batch: PyTree,
    gate: Gate,
    guard: Guard | None,
    value_fn: Callable[[PyTree], Float[Array, ""]] | None,
) -> Leap:
    """The teleport that a move asks for, from `at`: gated, due or not, shortened, judged by the guard.

    `bound` is what the norm of the coordinates never exceeds, if anything (`exp` is cheaper then); `step` and
    `retreat` are as for `jump_by`.
    """
    exp = symmetry.exp if bound is None else partial(symmetry.exp_within, reach=bound)
    xi = jnp.where(due, _gated(move, gate, symmetry), 0.0)
    xi = xi.astype(jnp.result_type(*jax.tree.leaves(at)))
    xi = shortened(symmetry, exp, xi, at, batch, guard=guard, step=step)
    options = {"guard": guard, "value_fn": value_fn, "retreat": retreat, "step": step}
    return Leap(symmetry, exp, at, batch, xi, jump_by(symmetry, exp, xi, at, batch, **options), due)


@jax.custom_jvp
def unless(condition: Bool[Array, ""], gradient: PyTree, carried: PyTree) -> PyTree:
    """`gradient` where `condition` holds, else `carried`; the derivative is that of `carried` all the same.

    The identity carries a gradient to itself, but for rounding: not at all where the map is singular.
    """
    return select(condition, gradient, carried)


@unless.defjvp
def unless_jvp(primals, tangents):
    return unless(*primals), tangents[2]


def _gated(move: Proposal, gate: Gate, symmetry: AbstractLieSymmetry) -> Array:
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
