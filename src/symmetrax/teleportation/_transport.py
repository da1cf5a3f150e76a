"""Transport of an optimizer's state with the parameters, when these jump."""

import dataclasses
import functools
import types
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from symmetrax._tree import leaf_names
from symmetrax.discovery._certify import as_pattern
from symmetrax.discovery._scope import GROUPS, MATRICES
from symmetrax.groups._diagonal import AbstractGroup, PositiveDiagonal
from symmetrax.groups._matrices import GeneralLinear
from symmetrax.search._basis import AbstractElementSearch
from symmetrax.symmetry._base import AbstractLieSymmetry
from symmetrax.symmetry._network import NetworkSymmetry
from symmetrax.symmetry._shift import LogitShift

#: optax's names for the memory of optimizers, by how it transforms under a change of coordinates: averages of
#: gradients, averages of their squares (entry by entry), and displacements.
GRADIENTS = (
    "mu",
    "trace",
    "ema",
    "acc_grads",
    "grad_acc",
    "velocity",
    "grad_avg",
    "prev_grad",
    "previous_gradient",
)
SQUARES = ("nu", "nu_max", "sum_of_squares", "e_g")
SQUARED_DISPLACEMENTS = ("e_x",)
#: Constants that are arrays, such as the coefficients of Muon's iteration.
CONSTANTS = ("ns_coeffs", "hyperparams")
REMEMBERED = frozenset((*GRADIENTS, *SQUARES, *SQUARED_DISPLACEMENTS))
#: States whose fields have names of their own, by how each field transforms.
FIELDS = {
    "ScaleByAdanState": {"m": "gradients", "v": "gradients", "n": "squares", "g": "gradients"},
    "ScaleByAdemamixState": {"m1": "gradients", "m2": "gradients", "nu": "squares"},
    "ScaleBySimplifiedAdEMAMixState": {"m": "gradients", "n": "squares"},
    "MadgradState": {"s": "gradients", "grad_sum_sq": "squares", "x0": "points"},
    "ScaleByLBFGSState": {
        "params": "points",
        "updates": "gradients",
        "diff_params_memory": "stacked displacements",
        "diff_updates_memory": "stacked gradients",
        "weights_memory": "constants",  # inverses of their products, invariant under changes of coordinates
    },
    "ScaleByZoomLinesearchState": {"grad": "gradients"},
    "ScaleByBacktrackingLinesearchState": {"grad": "gradients"},
    "SAMState": {"cache": "points"},
}
#: The same for optimizers that reuse the state type of another one, by the optax function that made them.
BORROWED = {
    "adopt": {"mu": "normalized", "nu": "squares"},
    "adamax": {"mu": "gradients", "nu": "absolute values"},
}
#: Optax functions that keep Adam's quantities in a state of Adam's type.
ADAMS = ("adam", "nadam", "lamb", "yogi", "nadamw")
#: Squares accumulated on top of a constant: the initial value of AdaGrad's and Yogi's accumulators.
SUMS = (("ScaleByRssState", "sum_of_squares"), ("ScaleByAdamState", "nu"))
#: States whose squares are used less the squares of their `mu`.
CENTERED = ("ScaleByRStdDevState", "ScaleByRStdDevWithCountState")
#: Optimizers whose state cannot be moved correctly, with the parts of optax that identify them, and why.
UNMOVABLE = (
    (
        "adadelta",
        {"scale_by_adadelta"},
        "its epsilon sets the length of its steps, in any coordinates",
    ),
    ("lars", {"scale_by_trust_ratio", "trace"}, "its `trace` averages steps, divided by norms of gradients"),
)
#: States that use these field names for something else.
MISNAMED = {
    "ScaleBySM3State": "its `mu` holds squares of whole rows and columns",
    "ScaleByNovogradState": "its `nu` holds norms of whole arrays, by which its `mu` is divided",
}
#: States of chain stages whose output is an average of their input, and so moves like it.
LINEAR = ("TraceState", "EmaState")


#: How averages of squared gradients are moved along rotations and other groups that mix entries.
Squares = Literal["exact", "mean", "keep"]


@dataclasses.dataclass(frozen=True)
class Carry:
    """Moves an optimizer's state with the parameters: transport="carry", with a choice for squares.

    Averages of gradients move exactly. Averages of *squared* gradients determine the averages after a
    teleport only along scalings, signs and permutations. Along groups that mix entries (rotations, general
    linear groups), `squares="exact"` raises ValueError, "mean" moves them as if the entries were
    uncorrelated, by the squares of the matrix entries, and "keep" leaves them unchanged there and moves them
    exactly elsewhere.

    >>> import jax.numpy as jnp, optax, symmetrax as sx
    >>> params = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 2))}
    >>> symmetry = sx.models.low_rank_symmetry(params, "a", "b")
    >>> optimizer = sx.teleported(optax.adam(0.1), symmetry, transport=Carry("mean"))
    >>> int(optimizer.init(params).count)
    0
    """

    squares: Squares = "exact"

    def __post_init__(self):
        if self.squares not in get_args(Squares):
            names = ", ".join(map(repr, get_args(Squares)))
            raise ValueError(f"`squares` must be one of {names}, got {self.squares!r}.")


#: What a teleport does to the state of the inner optimizer.
TransportChoice = Literal["default", "keep", "carry", "reset"] | Carry


def settled_transport(transport: TransportChoice, search: Any) -> Literal["keep", "reset"] | Carry:
    """Resolves "default" and "carry". Raises ValueError for other names.

    >>> settled_transport("carry", None), settled_transport("default", None)
    (Carry(squares='exact'), 'keep')
    """
    match transport:
        case "default":
            return Carry("mean") if isinstance(search, AbstractElementSearch) else "keep"
        case "carry":
            return Carry()
        case Carry() | "keep" | "reset":
            return transport
    raise ValueError(
        f"`transport` must be one of keep, carry, reset, got {transport!r}. Or pass a Carry, which says how "
        "squares move."
    )


def carry(
    state: PyTree,
    symmetry: AbstractLieSymmetry,
    element: PyTree,
    params: PyTree,
    batch: PyTree = None,
    inner: optax.GradientTransformation | None = None,
    squares: Squares = "exact",
) -> PyTree:
    """Returns the optimizer's state after the parameters moved from `params` to `act(element, params)`.

    Each part transforms according to its meaning, known from its optax field name: averages of gradients
    (`mu`, `trace`) by the inverse transpose, like gradients; averages of squared gradients (`nu`,
    `sum_of_squares`) entry by entry, exact for scalings, signs and permutations, and as `squares` says for
    groups that mix entries (see `Carry`); points like the parameters.
    Counts and hyperparameters stay unchanged. Raises ValueError for an unknown field, for squares under a
    group that mixes entries, and for averages of *steps*, which occur behind a dividing stage of a chain, as
    in the momentum of `optax.rmsprop`.

    `inner` is the optimizer that owns the state. It resolves what the fields alone cannot: ADOPT and Adamax
    store other quantities than Adam in a state of Adam's type (normalized gradients as `mu`, absolute values
    as `nu`), the sums of AdaGrad start from a constant, and some states cannot be moved at all (see
    `check_movable`). Terms added to gradients, and clipping or rescaling before the average, are moved as
    gradients are.

    >>> import jax.numpy as jnp, optax, symmetrax as sx
    >>> params = {"w1": jnp.array([[1.0]]), "w2": jnp.array([[1.0]])}
    >>> symmetry = sx.models.mlp_symmetry(params, ["w1", "w2"])
    >>> _, state = optax.sgd(1.0, momentum=0.9).update(params, optax.sgd(1.0, momentum=0.9).init(params))
    >>> double = symmetry.exp(jnp.log(jnp.array([2.0])))
    >>> trace = optax.tree.get(carry(state, symmetry, double, params), "trace")
    >>> print(trace["w1"], trace["w2"])
    [[0.5]] [[2.]]
    """
    moves = _moves(symmetry, element, params, batch, squares)
    # The types of a state are not enough: several optimizers keep other quantities in a state of Adam's type.
    made_by = set() if inner is None else makers(inner)
    check_movable(made_by)
    alike = [name for name in BORROWED if _is_made_by(name, made_by)]
    others = [name for name in ADAMS if _is_made_by(name, made_by)]
    if len(alike) + bool(others) > 1:
        # States of the same type do not tell which of them made which.
        both = " and ".join([*alike, *others[:1]])
        raise ValueError(
            f"transport='carry' cannot move ScaleByAdamState of {both} together: they keep different "
            "quantities in it. Use one of them, or transport='keep' or 'reset'."
        )
    borrowed = [BORROWED[name] for name in alike]
    return _carried(state, None if inner is None else inner.init(params), moves, borrowed, "state")


def check_movable(made_by: set[str]) -> None:
    """Raises ValueError if an optimizer's state cannot be moved, judged by the functions that made it.

    >>> check_movable(makers(optax.lars(0.1)))
    Traceback (most recent call last):
    ValueError: transport='carry' cannot move the state of lars: its `trace` averages steps, ...
    """
    for name, parts, reason in UNMOVABLE:
        if name in made_by or parts <= made_by:
            raise ValueError(
                f"transport='carry' cannot move the state of {name}: {reason}. Use transport='keep' "
                "or 'reset'."
            )


def makers(optimizer: optax.GradientTransformation) -> set[str]:
    """Returns the names of all optax functions that made an optimizer, found in its closures.

    >>> import optax
    >>> "scale_by_adamax" in makers(optax.chain(optax.clip(1.0), optax.adamax(0.1)))
    True
    """
    found: set[str] = set()
    # By identity, and keeping the object, so that no other can get its id: closures can be cyclic.
    seen: dict[int, Any] = {}
    left: list[Any] = [optimizer]
    while left:
        part = left.pop()
        if id(part) in seen:
            continue
        seen[id(part)] = part
        match part:
            case tuple() | list():
                left.extend(part)
            case dict():
                left.extend(part.values())
            case functools.partial():
                left.extend((part.func, part.args, part.keywords))
            case types.MethodType():
                left.extend((part.__func__, getattr(part.__self__, "__dict__", {})))
            case types.FunctionType():
                if (part.__module__ or "").startswith("optax"):
                    found.add(part.__qualname__.split(".")[0])
                left.append(getattr(part, "__wrapped__", None))
                left.extend(cell.cell_contents for cell in part.__closure__ or () if _is_filled(cell))
    return found


def _is_filled(cell: types.CellType) -> bool:
    # An empty cell, of a name that is assigned later, raises instead of returning None.
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _is_made_by(name: str, made_by: set[str]) -> bool:
    return not made_by.isdisjoint({name, f"scale_by_{name}", f"{name}w"})


def _moves(
    symmetry: AbstractLieSymmetry, element: PyTree, params: PyTree, batch: PyTree, how: Squares
) -> dict[str, Callable[[PyTree], PyTree]]:
    """Returns how each kind of entry in an optimizer's state transforms under a jump."""

    def whole(move: Callable[[PyTree], PyTree]) -> Callable[[PyTree], PyTree]:
        """Extends `move` to trees that are partly masked: an action requires all arrays."""

        def moved(tree: PyTree) -> PyTree:
            filled = jax.tree.map(
                lambda x, w: jax.tree.map(jnp.zeros_like, w) if _is_hidden(x) else x,
                tree,
                params,
                is_leaf=_is_hidden,
            )
            return jax.tree.map(
                lambda x, y: x if _is_hidden(x) else y, tree, move(filled), is_leaf=_is_hidden
            )

        return moved

    gradients = whole(lambda tree: symmetry.transport_gradient(element, params, tree, batch))
    displacements = whole(lambda tree: symmetry.transport_tangent(element, params, tree, batch))

    def move_squares(tree: PyTree) -> PyTree:
        if how == "exact" or not isinstance(symmetry, NetworkSymmetry):
            return _exact(symmetry, "squared gradients").transport_squared_gradient(element, tree)
        if how == "mean":
            return symmetry.transport_mean_squares(element, tree)
        unmixed = [name for name, group in symmetry.spaces.items() if not group.rotates]
        if not unmixed:
            return tree
        part = {name: element[name] for name in unmixed}
        return symmetry.only(*unmixed).transport_squared_gradient(part, tree)

    squares = whole(move_squares)
    squared_displacements = whole(
        lambda tree: _exact(symmetry, "squared updates").transport_squared_tangent(element, tree)
    )

    # ADOPT averages g / sqrt(v): the gradient transforms by one factor and the root of v by another, which is
    # what `squares` does to ones.
    def normalized(tree: PyTree) -> PyTree:
        lengths = squares(jax.tree.map(jnp.ones_like, tree))
        return jax.tree.map(lambda g, s: (g / jnp.sqrt(s)).astype(g.dtype), gradients(tree), lengths)

    return {
        "constants": lambda tree: tree,
        "points": whole(lambda tree: symmetry.act(element, tree, batch)),
        "gradients": gradients,
        "stacked gradients": lambda tree: jax.vmap(gradients)(tree),
        "stacked displacements": lambda tree: jax.vmap(displacements)(tree),
        "squares": squares,
        "squared displacements": squared_displacements,
        "absolute values": lambda tree: jax.tree.map(jnp.sqrt, squares(jax.tree.map(jnp.square, tree))),
        "normalized": normalized,
    }


def groups_carried(
    state: PyTree, params: PyTree, inner: optax.GradientTransformation, squares: Squares = "exact"
) -> tuple[type[AbstractGroup], ...]:
    """Returns the groups known to `find_symmetries` along which `carry` can move this state.

    Raises ValueError, as `carry` does, if there are none.

    >>> import jax.numpy as jnp, optax
    >>> params = {"w": jnp.ones((2, 2))}
    >>> adam, sgd = optax.adam(0.1), optax.sgd(0.1, momentum=0.9)
    >>> [GeneralLinear in groups_carried(o.init(params), params, o) for o in (adam, sgd)]
    [False, True]
    """
    arrays = eqx.filter(params, eqx.is_inexact_array)
    named = zip(leaf_names(arrays), jax.tree.leaves(arrays), strict=True)
    axes = [(name, leaf.shape) for name, leaf in named if leaf.ndim and leaf.size]

    def moved(group: type) -> None:
        """Carries the state along a stand-in symmetry: the group acting on the first axis of one array."""
        (name, shape), *_ = axes
        spec = " ".join(["g", *"_" * (len(shape) - 1)])
        symmetry = NetworkSymmetry({"g": group(shape[0])}, {as_pattern(name): spec}, params)
        eqx.filter_eval_shape(
            lambda s, p: carry(s, symmetry, symmetry.identity(), p, inner=inner, squares=squares),
            state,
            params,
        )

    if not axes:
        return GROUPS
    # A state that scalings cannot move is moved by no group, so this error is not caught. Matrices mix
    # entries, which squares entry by entry do not survive.
    moved(PositiveDiagonal)
    try:
        moved(GeneralLinear)
    except ValueError:
        return tuple(group for group in GROUPS if group not in MATRICES)
    return GROUPS


def _kind(state: Any, field: str, borrowed: list[dict[str, str]]) -> str | None:
    """Returns the kind of a state's field, or None if it is unknown."""
    name = type(state).__name__
    if name == "ScaleByAdamState" and borrowed:
        return borrowed[0].get(field)
    if name in FIELDS:
        return FIELDS[name].get(field)
    named = {
        **dict.fromkeys(GRADIENTS, "gradients"),
        **dict.fromkeys(SQUARES, "squares"),
        **dict.fromkeys(SQUARED_DISPLACEMENTS, "squared displacements"),
        **dict.fromkeys(CONSTANTS, "constants"),
    }
    return named.get(field)


def _carried(
    state: Any,
    fresh: Any,
    moves: dict[str, Callable[[PyTree], PyTree]],
    borrowed: list[dict[str, str]],
    where: str,
) -> Any:
    """Returns `state` moved; `fresh` is the state before the first step, if known."""
    fields: tuple[str, ...] | None = getattr(state, "_fields", None)
    if fields is not None:
        if type(state).__name__ in MISNAMED:
            name = type(state).__name__
            raise ValueError(
                f"transport='carry' cannot move {name}: {MISNAMED[name]}. Use transport='keep' or 'reset'."
            )
        parts = {}
        for field in fields:
            inside, start, path = (
                getattr(state, field),
                getattr(fresh, field, None),
                f"{type(state).__name__}.{field}",
            )
            kind = _kind(state, field, borrowed)
            if kind is None:
                parts[field] = _carried(inside, start, moves, borrowed, path)
                continue
            try:
                parts[field] = _carried_field(state, field, start, moves, kind)
            except ValueError as error:  # squares that a group mixes, or a tree unlike the parameters
                raise ValueError(f"{path}: {error}") from None
        return type(state)(**parts)
    if isinstance(state, tuple | list):
        _check_chain(state)
        starts = fresh if isinstance(fresh, tuple | list) else [None] * len(state)
        return type(state)(
            _carried(part, start, moves, borrowed, where) for part, start in zip(state, starts, strict=True)
        )
    if isinstance(state, dict):
        starts = fresh if isinstance(fresh, dict) else {}
        return {
            key: _carried(part, starts.get(key), moves, borrowed, f"{where}[{key!r}]")
            for key, part in state.items()
        }
    if _is_kept(state):
        return state
    raise ValueError(
        f"transport='carry' cannot move the unknown state {where}: it moves averages of gradients "
        f"({', '.join(GRADIENTS)}) and of squares ({', '.join(SQUARES)}). Use transport='keep' or 'reset'."
    )


def _carried_field(state: Any, field: str, start: Any, moves: dict[str, Callable], kind: str) -> Any:
    """Returns a field of a known kind, moved; `start` is its value before the first step, if known."""
    inside, name = getattr(state, field), type(state).__name__
    if start is not None and (name, field) in SUMS:
        # Only the accumulated part transforms; the initial constant is the same in all coordinates.
        grown = moves[kind](optax.tree.sub(inside, start))
        return jax.tree.map(lambda x, x0: jnp.maximum(x + x0, 0), grown, start)
    if name in CENTERED and kind == "squares":
        # The variance moves as squares do; as they are, they could become less than mu^2.
        square = jax.tree.map(_square, state.mu)
        variance = jax.tree.map(lambda x, y: jnp.maximum(x - y, 0), inside, square)
        there = jax.tree.map(_square, moves["gradients"](state.mu))
        return optax.tree.add(moves[kind](variance), there)
    return moves[kind](inside)


def _check_chain(chain: tuple | list) -> None:
    """Raises ValueError if a stage averages gradients that an earlier stage has transformed."""
    divided = None
    for stage in chain:
        kinds = [kind.__name__ for kind in _kinds(stage)]
        if divided and kinds:
            raise ValueError(
                f"transport='carry' cannot move {kinds[0]}: it follows {divided} in a chain, so it averages "
                "steps, not gradients. Use transport='keep' or 'reset'."
            )
        divided = divided or next((kind for kind in kinds if kind not in LINEAR), None)


def _kinds(state: Any) -> Iterator[type]:
    """Yields the types of all states within `state` that hold gradients in any form."""
    fields: tuple[str, ...] = getattr(state, "_fields", ())
    if not REMEMBERED.isdisjoint(fields) or type(state).__name__ == "ScaleByLBFGSState":
        yield type(state)
    if fields:
        parts = [getattr(state, field) for field in fields if field not in REMEMBERED]
    else:
        parts = (
            state.values() if isinstance(state, dict) else state if isinstance(state, tuple | list) else ()
        )
    for part in parts:
        yield from _kinds(part)


def _is_kept(leaf: Any) -> bool:
    """Returns True for leaves that do not depend on coordinates: counts, scalars, keys and non-arrays."""
    if not eqx.is_array(leaf) or not eqx.is_inexact_array(leaf):
        return True
    return leaf.ndim == 0


def _square(x: Array) -> Array:
    """|x|^2, as optax averages it for complex gradients."""
    return jnp.square(jnp.abs(x))


def _is_hidden(part: Any) -> bool:
    return isinstance(part, optax.MaskedNode)


def _exact(symmetry: AbstractLieSymmetry, what: str) -> NetworkSymmetry | LogitShift:
    if not isinstance(symmetry, NetworkSymmetry | LogitShift):
        raise ValueError(
            f"transport='carry' cannot move {what} under {type(symmetry).__name__}, which mixes entries. Use "
            "transport='keep' or 'reset'."
        )
    return symmetry
