"""The common implementation of teleports: exponential of the coordinates, shortening, and the guard."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from symmetrax._tree import safe_norm, select
from symmetrax.symmetry._base import AbstractLieSymmetry, AbstractSymmetry
from symmetrax.teleportation._guard import NOT_MEASURED, Guard
from symmetrax.teleportation._rounding import rounding

#: How to treat the last step, which momentum builds on, when the parameters jump.
Transport = Literal["keep", "carry", "reset"]

#: The maximum number of times that a guard which shortens jumps halves their coordinates.
HALVINGS = 8


class Jump(NamedTuple):
    """The displacement of a teleport, and whether it was accepted.

    `displacement` is `symmetry.displacement(a, w)`, zeros if rejected; `loss_change` is the measured relative
    change of the loss (-1 without a guard: not measured); `outcome` is a code of `OUTCOMES`.

    >>> import symmetrax as sx
    >>> Jump._fields, sx.teleportation.OUTCOMES[0]
    (('displacement', 'loss_change', 'outcome'), 'accepted')
    """

    displacement: PyTree
    loss_change: Float[Array, ""]
    outcome: Int[Array, ""]


class TeleportStep(NamedTuple):
    """A teleport from `start` by the element exp(algebra): the jump, and how to transport vectors along it.

    `due` is False if no teleport was scheduled; nothing moves then. If the element is known without
    coordinates, `algebra` is the element and `exp` is None. Searches without a group have no symmetry, no
    `exp` and no coordinates.

    >>> TeleportStep._fields
    ('symmetry', 'exp', 'start', 'batch', 'algebra', 'jump', 'due')
    """

    symmetry: AbstractLieSymmetry | None
    exp: Callable[[Array], PyTree] | None
    start: PyTree
    batch: PyTree
    algebra: PyTree
    jump: Jump
    due: Bool[Array, ""]

    @property
    def moved(self) -> Bool[Array, ""]:
        """Whether the parameters jump."""
        return self.due & (self.jump.outcome == 0)

    @property
    def element(self) -> PyTree:
        """The element that acted: the identity if the parameters stay."""
        # Select the coordinates, not the element: a rejected element may have no derivative.
        return self._made if self.exp is None else self.exp(self._made)

    def gradient(self, gradient: PyTree) -> PyTree:
        """Carries the gradient at `start` to the end of the teleport, bit-identical if nothing moved."""
        assert self.symmetry is not None
        carried = self.symmetry.transport_gradient(self.element, self.start, gradient, self.batch)
        nowhere = ~self.moved if self.exp is None else jnp.all(self._made == 0)
        return unless(nowhere, gradient, carried)

    def velocity(self, velocity: PyTree, transport: Transport) -> PyTree:
        """Transports a velocity at `start` to the end of the teleport."""
        if transport == "reset":
            return select(self.moved, optax.tree.zeros_like(velocity), velocity)
        if transport == "keep":
            return velocity
        assert self.symmetry is not None
        still = (jax.lax.stop_gradient(self.start), optax.tree.zeros_like(velocity))
        place, tangent = select(self.moved, (self.start, velocity), still)
        carried = self.symmetry.transport_tangent(self.element, place, tangent, self.batch)
        return select(self.moved, carried, velocity)

    @property
    def _made(self) -> PyTree:
        """The coordinates (or the element) of the jump, or of the identity if the parameters stay."""
        if self.exp is not None:
            return jnp.where(self.moved, self.algebra, jnp.zeros_like(self.algebra))
        assert self.symmetry is not None
        return select(self.moved, self.algebra, self.symmetry.identity())


def teleport_by(
    symmetry: AbstractLieSymmetry,
    coordinates: Float[Array, "..."],
    params: PyTree,
    batch: PyTree = None,
    *,
    guard: Guard | None,
    value_fn: Callable[[PyTree], Float[Array, ""]] | None = None,
    exp: Callable[[Float[Array, "..."]], PyTree] | None = None,
    due: Bool[Array, ""] | bool = True,
    step: PyTree = None,
    fallback: PyTree = None,
    gradient: PyTree = None,
) -> TeleportStep:
    """Teleports `params` by exp(coordinates), shortened if the guard shortens, unless the guard rejects it.

    **Arguments:** `exp` is `symmetry.exp` by default; if the norm of the coordinates is bounded, there are
    cheaper alternatives. `due` says whether the teleport is scheduled; if not, nothing moves. The other
    arguments are as for `jump`.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> task, x = sx.tasks.booth(), jnp.array([5.0, -5.0])
    >>> step = teleport_by(task.symmetry(), jnp.array([0.3]), x, guard=sx.Guard(), value_fn=task.loss)
    >>> bool(step.moved), bool(jnp.isclose(task.loss(x + step.jump.displacement), task.loss(x)))
    (True, True)
    """
    exp = symmetry.exp if exp is None else exp
    coordinates = coordinates if due is True else jnp.where(due, coordinates, 0.0)
    xi = shortened(symmetry, exp, coordinates, params, batch, guard=guard, step=step)
    jumped = jump(
        symmetry,
        xi,
        params,
        batch,
        exp=exp,
        guard=guard,
        value_fn=value_fn,
        step=step,
        fallback=fallback,
        gradient=gradient,
    )
    return TeleportStep(symmetry, exp, params, batch, xi, jumped, jnp.asarray(due))


def teleport_with(
    symmetry: AbstractLieSymmetry,
    element: PyTree,
    params: PyTree,
    batch: PyTree = None,
    *,
    guard: Guard | None,
    value_fn: Callable[[PyTree], Float[Array, ""]] | None = None,
    gradient: PyTree = None,
) -> TeleportStep:
    """Teleports `params` by an element that was found without coordinates, unless the guard rejects it.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> task, x = sx.tasks.booth(), jnp.array([5.0, -5.0])
    >>> quarter = task.symmetry().exp(jnp.array([jnp.pi / 2]))
    >>> step = teleport_with(task.symmetry(), quarter, x, guard=None)
    >>> bool(jnp.isclose(task.loss(x + step.jump.displacement), task.loss(x)))
    True
    """
    jumped = jump(symmetry, element, params, batch, guard=guard, value_fn=value_fn, gradient=gradient)
    return TeleportStep(symmetry, None, params, batch, element, jumped, jnp.array(True))


def teleport_to(
    displacement: PyTree,
    params: PyTree,
    *,
    guard: Guard | None,
    value_fn: Callable[[PyTree], Float[Array, ""]],
) -> TeleportStep:
    """Takes a displacement that was found without a group, unless `guard` rejects it.

    Decreases of the loss are always accepted.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> square = lambda x: jnp.sum(x**2)
    >>> step = teleport_to(jnp.array([1.0]), jnp.array([1.0]), guard=sx.Guard(jump=5.0), value_fn=square)
    >>> sx.teleportation.OUTCOMES[int(step.jump.outcome)]
    "not invariant: the loss changed by more than the guard's tolerance"
    """

    def taken(jumped: Jump) -> TeleportStep:
        return TeleportStep(None, None, params, None, jnp.zeros(0), jumped, jnp.array(True))

    if guard is None:
        return taken(Jump(displacement, jnp.array(NOT_MEASURED), jnp.array(0)))
    trial = jax.lax.stop_gradient(displacement)
    here, there = value_fn(params), value_fn(optax.tree.add(params, trial))
    most = rounding(value_fn, params, trial, here, linear=False)
    loss_change, outcome = guard.judge(trial, here, jnp.maximum(there, here), guard.longest(params), most)
    moved = select(outcome == 0, displacement, optax.tree.zeros_like(displacement))
    return taken(Jump(moved, jax.lax.stop_gradient(loss_change), outcome))


def jump(
    symmetry: AbstractSymmetry,
    place: PyTree,
    params: PyTree,
    batch: PyTree = None,
    *,
    guard: Guard | None,
    exp: Callable[[PyTree], PyTree] | None = None,
    value_fn: Callable[[PyTree], Float[Array, ""]] | None = None,
    step: PyTree = None,
    fallback: PyTree = None,
    gradient: PyTree = None,
) -> Jump:
    """Moves `params` by the element `place`, or with `exp` by exp(place), unless `guard` rejects it.

    The identity displaces by exactly zero, yet keeps the derivative of the action: branching on a zero angle
    would have none, and a head that starts at zero would never learn. A rejected jump has zero derivative,
    and none of its infinities or NaNs leak into a gradient: the differentiated action is evaluated at the
    identity, and at `fallback` if given, a point known to be harmless, instead of `params`.

    **Arguments:** `value_fn(params)` is the loss, required with a guard. `step` is the preceding step, if
    any, which contributes to the scale of the guard's lengths. `gradient` is the gradient at `params`, if
    known, from which the guard estimates how far rounding can move the loss.

    >>> import symmetrax as sx
    >>> task, x = sx.tasks.booth(), jnp.array([5.0, -5.0])
    >>> half = task.symmetry().exp(jnp.array([jnp.pi]))  # half a turn, farther than the guard allows
    >>> jumped = jump(task.symmetry(), half, x, guard=sx.Guard(jump=1.0), value_fn=task.loss)
    >>> print(jumped.displacement, sx.teleportation.OUTCOMES[int(jumped.outcome)])
    [0. 0.] too long: the jump is longer than the guard's bound
    """
    still = symmetry.identity() if exp is None else jnp.zeros_like(place)

    def displace(place: PyTree, params: PyTree) -> PyTree:
        element = place if exp is None else exp(place)
        displacement = symmetry.displacement(element, params, batch)
        resting = jax.tree.map(lambda a, e: jnp.all(a == e), place, still)
        return zero_where(displacement, jnp.all(jnp.stack(jax.tree.leaves(resting))))

    if guard is None:
        return Jump(displace(place, params), jnp.array(NOT_MEASURED), jnp.array(0))
    if value_fn is None:
        raise ValueError(
            "A guarded teleport compares losses: pass value_fn=..., a function from params to the loss, "
            "as an extra argument of `update` (optax's own name), or guard=None to jump unchecked."
        )
    place_, params_, gradient_ = jax.lax.stop_gradient((place, params, gradient))
    trial = displace(place_, params_)
    longest = guard.longest(params_, jax.lax.stop_gradient(step))
    here, there = value_fn(params_), value_fn(optax.tree.add(params_, trial))
    most = rounding(value_fn, params_, trial, here, gradient_, linear=symmetry.linear)
    loss_change, outcome = guard.judge(trial, here, there, longest, most)
    accepted = outcome == 0
    if fallback is not None:
        # A constant: even at the identity an action may have no derivative there.
        params = select(accepted, params, jax.lax.stop_gradient(fallback))
    displacement = displace(select(accepted, place, still), params)
    return Jump(
        select(accepted, displacement, optax.tree.zeros_like(displacement)),
        jax.lax.stop_gradient(loss_change),
        outcome,
    )


def shortened(
    symmetry: AbstractLieSymmetry,
    exp: Callable[[Float[Array, "..."]], PyTree],
    coordinates: Float[Array, "..."],
    params: PyTree,
    batch: PyTree = None,
    *,
    guard: Guard | None,
    step: PyTree = None,
) -> Float[Array, "..."]:
    """Halves the coordinates of a jump until it is as short as `guard` requires, if the guard shortens.

    Derivatives treat the number of halvings as a constant. A jump that is still too long after eight halvings
    is returned as it is, for the guard to reject.

    >>> import symmetrax as sx
    >>> task, x, guard = sx.tasks.booth(), jnp.array([5.0, -5.0]), sx.Guard(jump=1.0, shorten=True)
    >>> print(shortened(task.symmetry(), task.symmetry().exp, jnp.array([2.0]), x, guard=guard))
    [0.0625]
    """
    if guard is None or not guard.shorten:
        return coordinates
    at, place, step = jax.lax.stop_gradient((params, coordinates, step))
    longest = guard.longest(at, step)

    def too_long(share: Float[Array, ""]) -> Bool[Array, ""]:
        length = safe_norm(symmetry.displacement(exp(share * place), at, batch))
        return ~(length <= longest)  # negated so that NaN counts as too long

    def halve(state):
        share, _ = state
        return share / 2, too_long(share / 2)

    one = jnp.ones((), place.dtype)
    share, left = jax.lax.while_loop(
        lambda state: state[1] & (state[0] > 2.0**-HALVINGS), halve, (one, too_long(one))
    )
    return jnp.where(left, 1.0, share) * coordinates


@jax.custom_jvp
def zero_where(displacement: PyTree, condition: Bool[Array, ""]) -> PyTree:
    """Returns zeros where `condition` holds, but always with the derivative of `displacement`.

    Equal elements lead to equal ends only up to rounding, since the compiler may fuse the two calls
    differently.

    >>> jax.value_and_grad(lambda x: zero_where(3 * x, jnp.array(True)))(1.0)
    (Array(0., dtype=float32, weak_type=True), Array(3., dtype=float32, weak_type=True))
    """
    return select(condition, optax.tree.zeros_like(displacement), displacement)


@zero_where.defjvp
def _zero_where_jvp(primals, tangents):
    return zero_where(*primals), tangents[0]


@jax.custom_jvp
def unless(condition: Bool[Array, ""], gradient: PyTree, carried: PyTree) -> PyTree:
    """Returns `gradient` where `condition` holds, else `carried`; always with the derivative of `carried`.

    The identity carries a gradient to itself only up to rounding, and not at all where the map is singular.

    >>> float(jax.grad(lambda x: unless(jnp.array(True), 5.0, 3 * x))(1.0))
    3.0
    """
    return select(condition, gradient, carried)


@unless.defjvp
def _unless_jvp(primals, tangents):
    return unless(*primals), tangents[2]
