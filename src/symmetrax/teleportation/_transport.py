"""What becomes of an optimizer's state when the parameters jump: carried along with them."""

from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PyTree

from symmetrax._tree import leaf_names
from symmetrax.discovery._certify import as_pattern
from symmetrax.discovery._plan import GROUPS, MATRICES
from symmetrax.symmetry._base import AbstractLieSymmetry
from symmetrax.symmetry._groups import AbstractGroup, PositiveDiagonal
from symmetrax.symmetry._matrix_groups import GeneralLinear
from symmetrax.symmetry._network import NetworkSymmetry
from symmetrax.symmetry._shift import LogitShift

#: optax's names for what an optimizer remembers, by how it changes under a change of coordinates: averages of
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
#: Constants that are arrays: the coefficients of Muon's iteration.
CONSTANTS = ("ns_coeffs", "hyperparams")
REMEMBERED = frozenset((*GRADIENTS, *SQUARES, *SQUARED_DISPLACEMENTS))
#: States that have fields of these names with something else in them.
MISNAMED = {
    "ScaleBySM3State": "its `mu` holds squares of whole rows and columns",
    "ScaleByNovogradState": "its `nu` holds norms of whole arrays, by which its `mu` is divided",
}
#: States whose stage of a chain puts out averages of what comes in, which move like it.
LINEAR = ("TraceState", "EmaState")


def carry(
    state: PyTree, symmetry: AbstractLieSymmetry, element: PyTree, params: PyTree, batch: PyTree = None
) -> PyTree:
    """The optimizer's state after the parameters moved from `params` to `act(element, params)`.

    Each part goes by what it *is*, known from its optax field name: averages of gradients (`mu`, `trace`) by
    the inverse transpose, as gradients do; averages of squared gradients (`nu`, `sum_of_squares`) entry by
    entry, exact for scalings, signs and permutations. Counts and hyperparameters stay. Raises ValueError for
    a field it does not know, for squares under a group that mixes entries, and for averages of *steps*: those
    that stand in a chain behind a stage that divides, as the momentum of `optax.rmsprop` does.

    What no name tells is taken on trust. Adamax keeps largest *absolute* gradients as `nu`, in the state of
    Adam: under scalings they are moved as squares, which is wrong (signs and permutations are right); an
    initial value of an accumulator, such as AdaGrad's, is moved as if it were gradients; so is what was
    added to gradients, clipped or rescaled before they were averaged.

    >>> import jax.numpy as jnp, optax, symmetrax as sx
    >>> params = {"w1": jnp.array([[1.0]]), "w2": jnp.array([[1.0]])}
    >>> symmetry = sx.mlp_symmetry(params, ["w1", "w2"])
    >>> _, state = optax.sgd(1.0, momentum=0.9).update(params, optax.sgd(1.0, momentum=0.9).init(params))
    >>> double = symmetry.exp(jnp.log(jnp.array([2.0])))
    >>> trace = optax.tree.get(carry(state, symmetry, double, params), "trace")
    >>> print(trace["w1"], trace["w2"])
    [[0.5]] [[2.]]
    """

    def gradients(tree: PyTree) -> PyTree:
        return symmetry.pull(element, params, tree, batch)

    def squares(tree: PyTree) -> PyTree:
        return _exact(symmetry, "squared gradients").pull_squared(element, tree)

    def squared_displacements(tree: PyTree) -> PyTree:
        return _exact(symmetry, "squared updates").push_squared(element, tree)

    moves: dict[str, Callable[[PyTree], PyTree]] = {
        **dict.fromkeys(GRADIENTS, gradients),
        **dict.fromkeys(SQUARES, squares),
        **dict.fromkeys(SQUARED_DISPLACEMENTS, squared_displacements),
        **dict.fromkeys(CONSTANTS, lambda tree: tree),
    }
    return _carried(state, moves, "state")


def groups_carried(state: PyTree, params: PyTree) -> tuple[type[AbstractGroup], ...]:
    """The groups that `find_symmetries` finds along which `carry` can move this state.

    Raises ValueError, as `carry` does, if there are none.
    """
    arrays = eqx.filter(params, eqx.is_inexact_array)
    named = zip(leaf_names(arrays), jax.tree.leaves(arrays), strict=True)
    axes = [(name, leaf.shape) for name, leaf in named if leaf.ndim and leaf.size]

    def moved(group: type) -> None:
        """Carry the state along a stand-in: the group on the first axis of one array."""
        (name, shape), *_ = axes
        leg = " ".join(["g", *"_" * (len(shape) - 1)])
        symmetry = NetworkSymmetry({"g": group(shape[0])}, {as_pattern(name): leg}, params)
        eqx.filter_eval_shape(lambda s, p: carry(s, symmetry, symmetry.identity(), p), state, params)

    if not axes:
        return GROUPS
    moved(PositiveDiagonal)
    try:
        moved(GeneralLinear)
    except ValueError:
        return tuple(group for group in GROUPS if group not in MATRICES)
    return GROUPS


def _carried(state: Any, moves: dict[str, Callable[[PyTree], PyTree]], where: str) -> Any:
    fields: tuple[str, ...] | None = getattr(state, "_fields", None)
    if fields is not None:
        if type(state).__name__ in MISNAMED:
            name = type(state).__name__
            raise ValueError(
                f"transport='carry' cannot move {name}: {MISNAMED[name]}. Use transport='keep' or 'reset'."
            )
        parts = {}
        for field in fields:
            inside, path = getattr(state, field), f"{type(state).__name__}.{field}"
            parts[field] = moves[field](inside) if field in moves else _carried(inside, moves, path)
        return type(state)(**parts)
    if isinstance(state, tuple | list):
        _check_chain(state)
        return type(state)(_carried(part, moves, where) for part in state)
    if isinstance(state, dict):
        return {key: _carried(part, moves, f"{where}[{key!r}]") for key, part in state.items()}
    if _is_kept(state):
        return state
    raise ValueError(
        f"transport='carry' does not know what {where} is, so it cannot move it with the parameters. It "
        f"knows averages of gradients ({', '.join(GRADIENTS)}) and of squares ({', '.join(SQUARES)}). Use "
        "transport='keep' or 'reset'."
    )


def _check_chain(chain: tuple | list) -> None:
    """Raise ValueError where a stage averages what an earlier one made of the gradients."""
    divided = None
    for stage in chain:
        kinds = [kind.__name__ for kind in _kinds(stage)]
        if divided and kinds:
            raise ValueError(
                f"transport='carry' cannot move {kinds[0]}: it stands behind {divided} in a chain, so that "
                "it holds averages of steps, not of gradients. Use transport='keep' or 'reset'."
            )
        divided = divided or next((kind for kind in kinds if kind not in LINEAR), None)


def _kinds(state: Any) -> Iterator[type]:
    """The types of all states in `state` that remember gradients in any form."""
    fields: tuple[str, ...] = getattr(state, "_fields", ())
    if not REMEMBERED.isdisjoint(fields):
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
    """Counts, scalars, keys and whatever is no array of numbers do not change with coordinates."""
    if not eqx.is_array(leaf) or not eqx.is_inexact_array(leaf):
        return True
    return leaf.ndim == 0


def _exact(symmetry: AbstractLieSymmetry, what: str) -> NetworkSymmetry | LogitShift:
    if not isinstance(symmetry, NetworkSymmetry | LogitShift):
        raise ValueError(
            f"transport='carry' cannot move {what} under {type(symmetry).__name__}, which mixes entries: use "
            "transport='keep' or 'reset' with optimizers that accumulate them."
        )
    return symmetry
