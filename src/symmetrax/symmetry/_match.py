"""Matching of two networks over all groups of their symmetry at once."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree

from symmetrax._tree import leaf_names
from symmetrax.groups._diagonal import Permutation
from symmetrax.symmetry._align._search import Search
from symmetrax.symmetry._align._slots import slots_of
from symmetrax.symmetry._host import on_host
from symmetrax.symmetry._network import NetworkSymmetry
from symmetrax.symmetry._specs import offset_of


@dataclasses.dataclass(frozen=True, eq=False)
class Match:
    """The result of `match`: the moved parameters, the element that moved them, and how near they came.

    - `params`: the moved parameters, in the dtypes of the given ones.
    - `element`: the element of the symmetry; for several symmetries, a tuple with an element for each.
    - `before`, `distance`: the distance from the target before and after, ||params - target|| / ||target||
      over all arrays of numbers with a fraction.
    - `sweeps`: the number of times that the search went through all spaces; `settled`: whether it ended
      because nothing improved.
    - `steps`: symmetries of a single space each with their elements, in the order in which they act. `act`
      moves any tree by them, such as an average of the parameters.

    Elements are NumPy arrays in double precision.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> params = {"w1": jnp.arange(6.0).reshape(3, 2), "w2": jnp.ones((1, 3))}
    >>> scales = sx.models.mlp_symmetry(params, ["w1", "w2"])
    >>> found = sx.symmetry.match(params, {"w1": 4 * params["w1"], "w2": params["w2"] / 4}, scales)
    >>> print(found.act(params)["w2"], found.settled)
    [[0.25 0.25 0.25]] True
    """

    params: PyTree
    element: Any
    before: float
    distance: float
    sweeps: int
    settled: bool
    steps: tuple[tuple[NetworkSymmetry, dict[str, Any]], ...]

    def act(self, tree: PyTree) -> PyTree:
        """Moves a tree like `params` by the element, with JAX."""
        for symmetry, element in self.steps:
            tree = symmetry.act(element, tree)
        return tree


def match(
    a: PyTree,
    b: PyTree,
    symmetry: NetworkSymmetry | Iterable[Any],
    *,
    restarts: int = 4,
    sweeps: int = 100,
) -> Match:
    """Moves the parameters `a` as near as possible to `b`, over all groups of a symmetry at once.

    Two networks that compute the same may differ by permutations, signs, scales, rotations and general linear
    maps of their hidden spaces; how far two trained networks are apart, and whether the average of both is
    any good, can be told only after these are matched. `weight_matching` matches permutations alone.

    The search goes through the spaces, one after the other, each with its best element while the others stay:
    permutations by assignment, orthogonal groups by Procrustes, signs and scales in closed form, general
    linear groups by Gauss-Newton steps. It first does so between the points of least norm on the orbits of
    the scales and general linear groups, where their gauge is gone up to rotations, and pairs heads by the
    best of the rotations inside of them; then between the given networks. The result is never farther from
    `b` than `a` is. A copy of `b`, moved by any element, is recovered; between networks that were trained
    independently the search finds a local optimum.

    **Arguments:** `a` and `b` are trees with equal names and shapes, of arrays in any precision; the
    computation runs on the host, in double precision. `symmetry` is a `NetworkSymmetry`, the result of
    `find_symmetries`, or a sequence of symmetries that act one after the other, such as the permutations and
    the scales of the same units. The search starts at a guess from invariants, at the identity, and at
    `restarts` random elements of a fixed seed, and stops early at a copy; each start has at most `sweeps`
    sweeps.

    **Returns** a `Match`.

    **Errors:** ValueError for trees of different names or shapes, numbers that are not finite, and a symmetry
    that does not fit; TypeError for what is no symmetry of a network, and inside `jax.jit`.

    >>> import jax, jax.numpy as jnp, symmetrax as sx
    >>> params = {"w1": jnp.arange(6.0).reshape(3, 2), "w2": jnp.array([[1.0, 2.0, 3.0]])}
    >>> units = [sx.models.mlp_symmetry(params, group=group)
    ...          for group in (sx.groups.PositiveDiagonal, sx.groups.Permutation)]
    >>> other = params
    >>> for one in units:
    ...     other = one.act(one.sample(jax.random.key(0)), other)
    >>> found = match(other, params, units)
    >>> found.before > 0.1, found.distance < 1e-6
    (True, True)
    """
    symmetries, single = _symmetries(symmetry)
    for one in symmetries:
        one.check(a)
    ours, theirs = _numbers("a", a), _numbers("b", b)
    _check_alike(ours, theirs)
    paths = [path for path in ours if any(path in one.specs for one in symmetries)]
    offsets = {path: _offset(path, symmetries) for path in paths}
    # Divided by the largest entry, so that no square overflows.
    scale = (
        max((float(np.max(np.abs(x), initial=0.0)) for x in (*ours.values(), *theirs.values())), default=0)
        or 1.0
    )
    had, wanted = ({path: (tree[path] + offsets[path]) / scale for path in paths} for tree in (ours, theirs))
    slots = slots_of(symmetries, had)
    search = Search(slots, had, wanted, sweeps=sweeps, restarts=restarts)
    found = search.run()
    moved = {path: x * scale - offsets[path] for path, x in search.moved(found.values, had).items()}
    steps = []
    elements: list[dict[str, Any]] = [{} for _ in symmetries]
    for slot, value in zip(slots, found.values, strict=True):
        elements[slot.given][slot.name] = element = slot.element(value)
        steps.append((symmetries[slot.given].only(slot.name), {slot.name: element}))
    elements = [
        {name: part[name] for name in one.spaces} for one, part in zip(symmetries, elements, strict=True)
    ]
    return Match(
        params=_placed(a, moved),
        element=elements[0] if single else tuple(elements),
        before=_distance(ours, theirs, scale),
        distance=_distance(ours | moved, theirs, scale),
        sweeps=found.sweeps,
        settled=found.settled,
        steps=tuple(steps),
    )


def _symmetries(symmetry: Any) -> tuple[list[NetworkSymmetry], bool]:
    """The symmetries in what was given, and whether it was a single one."""
    if isinstance(symmetry, NetworkSymmetry):
        return [symmetry], True
    expected = "pass a NetworkSymmetry, the result of find_symmetries, or a sequence of symmetries"
    if not isinstance(symmetry, Iterable) or isinstance(symmetry, str):
        raise TypeError(f"`match` got {type(symmetry).__name__} as its symmetry: {expected}.")
    found = []
    for one in symmetry:
        # A symmetry that was found holds one, and says whether it holds.
        if (certificate := getattr(one, "certificate", None)) is not None and not certificate.holds:
            continue
        one = getattr(one, "symmetry", one)
        if not isinstance(one, NetworkSymmetry):
            raise TypeError(f"`match` got {type(one).__name__} among its symmetries: {expected}.")
        found.append(one)
    if not found:
        raise ValueError(f"`match` got no symmetry: {expected}.")
    return found, False


def _numbers(what: str, tree: PyTree) -> dict[str, np.ndarray]:
    """The arrays of numbers with a fraction, by path, in double precision."""

    def is_fractional(name: str, leaf: Any) -> bool:
        # A traced leaf is an error, whatever its numbers.
        dtype = getattr(leaf, "dtype", type(leaf))
        return isinstance(leaf, Tracer) or jnp.issubdtype(dtype, jnp.inexact)

    return on_host("`match`", what, tree, is_fractional)


def _check_alike(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    for one, other, names in (
        ("a", "b", ours.keys() - theirs.keys()),
        ("b", "a", theirs.keys() - ours.keys()),
    ):
        if names:
            raise ValueError(
                f"`{one}` has the array {min(names)!r}, which `{other}` lacks: pass two networks of "
                "one structure."
            )
    for name, x in ours.items():
        if x.shape != theirs[name].shape:
            raise ValueError(
                f"{name} has shape {x.shape} in `a` and {theirs[name].shape} in `b`: pass two networks of "
                "equal shapes."
            )


def _offset(path: str, symmetries: list[NetworkSymmetry]) -> float:
    """What is added to an array before the groups act on it."""
    # Permutations keep constants, so they act in the same way under any offset.
    offsets = {
        offset_of(one.specs[path])
        for one in symmetries
        if path in one.specs and not all(isinstance(group, Permutation) for group in one.spaces.values())
    } or {0.0}
    if len(offsets) > 1:
        raise ValueError(
            f"{path} has the offsets {sorted(offsets)} in the symmetries given, under which their "
            "groups do not act together: leave one of them out."
        )
    return offsets.pop()


def _distance(x: dict[str, np.ndarray], y: dict[str, np.ndarray], scale: float) -> float:
    gaps = sum(float(np.sum(np.abs((x[path] - y[path]) / scale) ** 2)) for path in y)
    whole = sum(float(np.sum(np.abs(part / scale) ** 2)) for part in y.values())
    return float(np.sqrt(gaps / max(whole, 1e-300)))


def _placed(tree: PyTree, moved: dict[str, np.ndarray]) -> PyTree:
    """The tree with these arrays in the dtypes and libraries of its own."""

    def placed(name: str, leaf: Any) -> Any:
        if name not in moved:
            return leaf
        x = moved[name].astype(leaf.dtype)
        return x if isinstance(leaf, np.ndarray) else jax.device_put(jnp.asarray(x), leaf.sharding)

    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, map(placed, leaf_names(tree), leaves))
