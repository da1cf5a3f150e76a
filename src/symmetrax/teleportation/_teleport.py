"""`teleport`, and the `Teleporter` that it shares with the optimizers."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PyTree

from symmetrax._extras import explained
from symmetrax._programs import once, opened
from symmetrax._tree import check_finite
from symmetrax.discovery._find import find_symmetries
from symmetrax.discovery._report import Discovery
from symmetrax.discovery._scope import GROUPS
from symmetrax.groups._diagonal import AbstractGroup
from symmetrax.objectives._base import Objective, squared_gradient_norm
from symmetrax.search._basis import AbstractElementSearch
from symmetrax.search._closed_form import ClosedForm, has_closed_form
from symmetrax.search._levelset import AbstractPointSearch
from symmetrax.search._orbit import Orbit, evaluations_needed
from symmetrax.search._searches import AbstractSearch, Ascent
from symmetrax.symmetry._base import AbstractLieSymmetry
from symmetrax.symmetry._network import NetworkSymmetry
from symmetrax.teleportation._guard import Guard
from symmetrax.teleportation._step import TeleportStep, teleport_by, teleport_to, teleport_with

#: A symmetry; None for searches that need none; or "auto" to find the symmetries of the loss.
SymmetryChoice = AbstractLieSymmetry | None | Literal["auto"]

#: A search for coordinates, for an element or for a point; None for the default search.
SearchChoice = AbstractSearch | AbstractElementSearch | AbstractPointSearch | None

#: Bound of the default search: no scale changes by more than exp(BOUND), regardless of the scale of the loss.
BOUND = 0.5

#: A teleport is `negligible` if the objective changes by a smaller relative amount than this.
NEGLIGIBLE = 1e-3

#: A guard; None to jump unchecked; or "default", see `default_guard`.
GuardChoice = Guard | None | Literal["default"]


class Teleport(NamedTuple):
    """The record of a teleport: the objective `before` and `after`, and what the jump did.

    `algebra` holds the coordinates found by the search (empty for searches without a group), `loss_change`
    the relative change of the loss (-1 without a guard: not measured) and `outcome` a code of `OUTCOMES`.
    `evaluations` is the number of gradients of the loss that the search spends, known before it runs;
    `before`, `after` and the guard's two losses are not counted. `found` is the result of `symmetry="auto"`,
    else None. `negligible` is True if the objective changed by at most 1e-3 of its value: the teleport did
    next to nothing.

    >>> Teleport._fields[:3]
    ('before', 'after', 'algebra')
    """

    before: Float[Array, ""]
    after: Float[Array, ""]
    algebra: Float[Array, "..."]
    loss_change: Float[Array, ""]
    outcome: Int[Array, ""]
    evaluations: float
    found: Discovery | None = None
    negligible: Bool[Array, ""] | bool = False


def teleport(
    loss: Callable[[PyTree, PyTree], Float[Array, ""]],
    params: PyTree,
    symmetry: SymmetryChoice = None,
    batch: PyTree = None,
    *,
    objective: Objective = squared_gradient_norm,
    search: SearchChoice = None,
    guard: GuardChoice = "default",
) -> tuple[PyTree, Teleport]:
    """Moves `params` along a symmetry to where `objective` is larger, at the same loss.

    **Arguments:** `loss(params, batch)` returns a scalar. Leaves of `params` that are not floating-point
    arrays stay unchanged. `objective(value_fn, params)` is the quantity to increase, by default the squared
    gradient norm. `search` is the search method: by default `ClosedForm(bound=0.5)` where it supports the
    symmetry and the objective, so that no scale changes by more than exp(0.5), else ten steps of
    `Ascent(normalized=True, monotone=True)`, each of length 0.1 in the algebra. `LevelSet` and `NullSpace`
    need no `symmetry`. `guard` rejects bad jumps and `guard=None` accepts all of them; the default is a
    `Guard()`, without the bound on the jump length if the symmetry is exact and linear, else with overlong
    jumps shortened. With `symmetry="auto"` the symmetries of the loss are found first, outside compiled code
    (see `find_symmetries`; its cost is not included in `evaluations`), and all exact ones except rotations
    are used together. Raises ValueError when concrete `params` are not finite.

    **Returns** the new parameters, unchanged if the guard rejected the jump, and a `Teleport` record.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> task, x = sx.tasks.booth(), jnp.array([5.0, -5.0])
    >>> there, info = teleport(task.loss, x, task.symmetry(), guard=sx.Guard(jump=20.0))
    >>> bool(info.after > info.before), int(info.outcome)
    (True, 0)
    """
    numbers, rest = eqx.partition(params, eqx.is_inexact_array)
    check_finite(numbers, "teleport from")
    found = None
    if isinstance(symmetry, str):
        check_auto(symmetry)
        if callable(batch):
            raise ValueError(
                "`teleport` moves parameters for one batch: pass data, not a function that draws some."
            )
        rotates = isinstance(search, AbstractElementSearch)
        found = discovered(loss, params, batch, compact=rotates)
        symmetry = found.joined(compact=rotates)

    def whole(w, batch):
        return explained(loss, eqx.combine(w, rest), batch)

    teleporter = Teleporter.of(symmetry, objective, search, guard)
    apply, constants = opened(whole, numbers, batch)

    def moved(constants, numbers, batch):
        def value_fn(w):
            return apply(constants, w, batch)

        step = teleporter(value_fn, numbers, batch)
        there = optax.tree.add(numbers, step.jump.displacement)
        return there, step.algebra, step.jump, objective(value_fn, numbers), objective(value_fn, there)

    there, algebra, jumped, before, after = once(moved, constants, numbers, batch)
    info = Teleport(
        before=before,
        after=after,
        algebra=algebra,
        loss_change=jumped.loss_change,
        outcome=jumped.outcome,
        evaluations=teleporter.evaluations(known=False),
        found=found,
        negligible=jnp.abs(after - before) <= NEGLIGIBLE * jnp.abs(before),
    )
    return eqx.combine(there, rest), info


def discovered(
    loss: Callable[[PyTree, PyTree], Array],
    params: PyTree,
    batch: PyTree,
    groups: Sequence[type[AbstractGroup]] = GROUPS,
    compact: bool = False,
) -> Discovery:
    """Finds the symmetries of a loss, of which at least one can be teleported along.

    Raises ValueError inside compiled code, and if there is no such symmetry. Rotations change no norms, so
    they count only with `compact`.

    >>> import jax.numpy as jnp
    >>> product = lambda w, batch: jnp.sum((w["a"] @ w["b"]) ** 2)
    >>> discovered(product, {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 2))}, None)
    <Discovery of 3 symmetries>
    """
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((params, batch))):
        raise ValueError(
            "symmetry='auto' looks at gradients and draws conclusions, which compiled code cannot: find the "
            "symmetries once outside, found = find_symmetries(loss, params, key), and pass "
            "found.joined(compact=False)."
        )
    found = find_symmetries(loss, params, jax.random.key(0), batch=batch, groups=groups)
    whole = found.joined(compact=compact)
    if whole is None or whole.zero().size == 0:
        more = (
            ""
            if tuple(groups) == GROUPS
            else "transport='carry' cannot move the optimizer's state along linear groups, which were not "
            "looked for: 'keep' and 'reset' can. "
        )
        raise ValueError(
            "symmetry='auto' found nothing to teleport along, no exact scaling or linear group. "
            f"{more}{found}"
        )
    return found


def check_auto(symmetry: str) -> None:
    """Raises ValueError for any string other than "auto".

    >>> check_auto("none")
    Traceback (most recent call last):
    ValueError: `symmetry` must be a symmetry, None or 'auto', got 'none'.
    """
    if symmetry != "auto":
        raise ValueError(f"`symmetry` must be a symmetry, None or 'auto', got {symmetry!r}.")


class Teleporter(NamedTuple):
    """All that decides a teleport except the point that it starts from: orbit, objective, search and guard.

    Build one with `Teleporter.of`, which fills in the defaults and checks that the parts fit together. A
    search without a group has no `symmetry`.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> task = sx.tasks.booth()
    >>> teleporter = Teleporter.of(task.symmetry(), search=sx.search.Ascent(steps=4, rate=1e-3))
    >>> bool(teleporter(task.loss, jnp.array([5.0, -5.0])).moved), teleporter.evaluations(known=False)
    (True, 12.0)
    """

    symmetry: AbstractLieSymmetry | None
    objective: Objective
    search: AbstractSearch | AbstractElementSearch | AbstractPointSearch
    guard: Guard | None

    @classmethod
    def of(
        cls,
        symmetry: AbstractLieSymmetry | None,
        objective: Objective = squared_gradient_norm,
        search: SearchChoice = None,
        guard: GuardChoice = "default",
    ) -> "Teleporter":
        """Returns the teleporter with all defaults filled in; see `teleport` for the arguments."""
        search, guard = check_search(symmetry, search, objective), settled_guard(guard, symmetry)
        return cls(None if isinstance(search, AbstractPointSearch) else symmetry, objective, search, guard)

    def __call__(
        self,
        value_fn: Callable[[PyTree], Float[Array, ""]],
        params: PyTree,
        batch: PyTree = None,
        gradient: PyTree = None,
        count: Int[Array, ""] | int = 0,
        memory: PyTree = None,
    ) -> TeleportStep:
        """Searches and teleports. `gradient` is the gradient at `params`, if already known.

        `memory` is what an `AbstractElementSearch` remembers; by default the gradient at `params` alone.
        """
        if isinstance(self.search, AbstractPointSearch):
            displacement = optax.tree.sub(self.search(value_fn, params, batch).params, params)
            return teleport_to(displacement, params, guard=self.guard, value_fn=value_fn)
        assert self.symmetry is not None  # guaranteed by check_search
        if isinstance(self.search, AbstractElementSearch):
            assert isinstance(self.symmetry, NetworkSymmetry)  # checked by the search
            if memory is None:
                gradient = jax.grad(value_fn)(params) if gradient is None else gradient
                memory = self.watched(self.search.init(self.symmetry, params), gradient, 0)
            element = self.search(memory, self.symmetry, params, count)
            return teleport_with(
                self.symmetry,
                element,
                params,
                batch,
                guard=self.guard,
                value_fn=value_fn,
                gradient=gradient,
            )
        orbit = Orbit(value_fn, params, self.symmetry, batch, self.objective, gradient, count)
        return teleport_by(
            self.symmetry,
            self.search(orbit),
            params,
            batch,
            guard=self.guard,
            value_fn=value_fn,
            gradient=orbit.known_gradient,
        )

    def evaluations(self, *, known: bool) -> float:
        """The maximum number of gradients of the loss that the search costs, known before it runs.

        `known` says whether the gradient at the start is given.
        """
        if isinstance(self.search, AbstractPointSearch):
            return float(self.search.evaluations())
        if isinstance(self.search, AbstractElementSearch):
            return 0.0 if known else 1.0
        assert self.symmetry is not None  # guaranteed by check_search
        cost = self.search.evaluations(self.symmetry)
        return evaluations_needed(self.symmetry, self.objective, cost, known)

    def zero(self) -> Float[Array, "..."] | None:
        """The coordinates of the identity; None for a search without coordinates."""
        if self.symmetry is None or isinstance(self.search, AbstractElementSearch):
            return None
        return self.symmetry.zero()

    def memory(self, params: PyTree) -> PyTree:
        """What the search remembers before the first step: () unless it is an `AbstractElementSearch`."""
        if not isinstance(self.search, AbstractElementSearch):
            return ()
        assert isinstance(self.symmetry, NetworkSymmetry)  # checked by the search
        return self.search.init(self.symmetry, params)

    def watched(self, memory: PyTree, gradient: PyTree, count: Int[Array, ""] | int) -> PyTree:
        """The memory after the gradient of step `count`."""
        if not isinstance(self.search, AbstractElementSearch):
            return memory
        assert isinstance(self.symmetry, NetworkSymmetry)
        return self.search.watch(memory, self.symmetry, gradient, count)

    def carried(self, memory: PyTree, element: PyTree) -> PyTree:
        """The memory in the coordinates after a teleport by `element`."""
        if not isinstance(self.search, AbstractElementSearch):
            return memory
        assert isinstance(self.symmetry, NetworkSymmetry)
        return self.search.carry(memory, self.symmetry, element)

    @property
    def carries_gradients(self) -> bool:
        """Whether the gradient after the teleport follows from the one before: the action is linear."""
        return self.symmetry is not None and self.symmetry.linear


def check_search(
    symmetry: AbstractLieSymmetry | None,
    search: SearchChoice,
    objective: Objective = squared_gradient_norm,
) -> AbstractSearch | AbstractElementSearch | AbstractPointSearch:
    """Returns the search, by default the closed form where it applies, else a scale-free ascent.

    Raises ValueError if there is nothing to search.

    >>> import symmetrax as sx
    >>> check_search(sx.tasks.booth().symmetry(), None)
    Ascent(rate=0.1, bound=0.5, normalized=True, monotone=True)
    """
    if isinstance(search, type):
        raise TypeError(
            f"`search` must be a search, got the class {search.__name__}: call it, {search.__name__}()."
        )
    if isinstance(search, AbstractPointSearch):
        return search
    if symmetry is None:
        raise ValueError(
            "A search along a group needs a symmetry, got symmetry=None: pass one, or search with LevelSet() "
            "or NullSpace(), which need none."
        )
    if isinstance(search, AbstractElementSearch):
        search.check(symmetry)
        return search
    if symmetry.zero().size == 0:
        raise ValueError(
            f"{type(symmetry).__name__} has no continuous part to search in: its groups are discrete. "
            "Move by symmetry.act(symmetry.sample(key), params) instead."
        )
    if search is not None:
        return search
    if has_closed_form(symmetry, objective):
        return ClosedForm(bound=BOUND)
    return Ascent(rate=BOUND / 5, bound=BOUND, normalized=True, monotone=True)


def default_guard(symmetry: AbstractLieSymmetry | None) -> Guard:
    """`Guard()`, unbounded in length if the symmetry is exact and linear, else shortening long jumps.

    An exact linear action preserves the loss up to rounding at any length, and its searches are bounded in
    the algebra. The bound on the jump is meant for pullbacks through steep maps.

    >>> import symmetrax as sx
    >>> float(default_guard(sx.tasks.booth().symmetry()).jump)
    3.0
    """
    linear = symmetry is None or symmetry.linear
    return Guard(jump=jnp.inf) if linear else Guard(shorten=True)


def settled_guard(guard: GuardChoice, symmetry: AbstractLieSymmetry | None) -> Guard | None:
    """Resolves "default" to a guard; passes a Guard or None through. Raises ValueError for other strings.

    >>> settled_guard(None, None) is None
    True
    """
    if not isinstance(guard, str):
        return guard
    if guard != "default":
        raise ValueError(f"`guard` must be a Guard, None or 'default', got {guard!r}.")
    return default_guard(symmetry)
