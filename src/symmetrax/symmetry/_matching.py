"""Weight matching: permutes the units of a network to align them with another network."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jaxtyping import Array, PyTree

from symmetrax._tree import leaf_names
from symmetrax.groups._diagonal import Permutation
from symmetrax.symmetry._along import along
from symmetrax.symmetry._host import on_host
from symmetrax.symmetry._network import NetworkSymmetry
from symmetrax.symmetry._paths import check_present
from symmetrax.symmetry._walk import Binding


class Matching(NamedTuple):
    """The result of `weight_matching`: a group element, and how far the networks are apart after it acted.

    `element` maps the name of every space to the order of its units. `distance` is
    ||act(element, params) - target|| / ||target|| over the arrays with specs: 0 for an exact match, about 1.4
    for unrelated networks.

    >>> Matching._fields
    ('element', 'distance')
    """

    element: dict[str, Array]
    distance: float


def weight_matching(
    symmetry: NetworkSymmetry,
    params: PyTree,
    target: PyTree,
    *,
    sweeps: int = 50,
) -> Matching:
    """Finds the permutations that align `params` with `target`.

    Maximizes <act(a, params), target> over a space at a time, in random order, until no space improves or
    after `sweeps` sweeps: weight matching, as in git re-basin (arXiv:2209.04836). If a space occurs on a
    single axis of every array, its subproblem is a linear assignment problem, which is solved exactly. If it
    occurs on two axes of an array, like the units of a recurrent network, the subproblem is a quadratic
    assignment problem, which is improved by Frank-Wolfe steps from the current permutation. The search runs
    twice, from the identity and from an assignment by permutation invariants (the sorted entries of each
    unit), and keeps the better result.

    The second start recovers a permuted copy of a network with distinct units exactly, and usually also a
    slightly noisy copy. For independently trained networks you get a local optimum, so check the distance.

    **Arguments:** `params` and `target` are trees of concrete arrays of equal shapes; the computation runs on
    the host, with NumPy and SciPy, in double precision.

    **Returns** a `Matching`, the element and the remaining distance.

    **Errors:** ValueError for a group that is not `Permutation`, and for an array that is missing, not finite
    or of different shapes in the two trees; TypeError inside `jax.jit` and other transformations.

    >>> import jax, jax.numpy as jnp, symmetrax as sx
    >>> params = {"w1": jnp.arange(6.0).reshape(3, 2), "w2": jnp.ones((1, 3))}
    >>> symmetry = sx.models.mlp_symmetry(params, ["w1", "w2"], group=sx.groups.Permutation)
    >>> shuffled = symmetry.act({"hidden1": jnp.array([2, 0, 1])}, params)
    >>> element, distance = weight_matching(symmetry, shuffled, params)
    >>> element["hidden1"].tolist(), distance
    ([1, 2, 0], 0.0)
    """
    groups: dict[str, Permutation] = {}
    for name, group in symmetry.spaces.items():
        if not isinstance(group, Permutation):
            raise ValueError(
                f"weight_matching permutes units, but the space {name!r} has the group {group}: restrict the "
                "symmetry to spaces of permutations by symmetry.only(...)."
            )
        groups[name] = group
    problem = _Problem(groups, _blocks(symmetry, params, target))
    # From the identity alone the search may end at a poor local optimum; from the invariants it recovers a
    # permuted copy exactly.
    ends = [problem.climb(start, sweeps) for start in (problem.identity(), problem.by_sorted_entries())]
    best = max(ends, key=problem.score)
    element = {
        name: jnp.asarray(order, group.identity().dtype)
        for (name, group), order in zip(groups.items(), best.values(), strict=True)
    }
    return Matching(element, problem.distance(best))


@dataclasses.dataclass(frozen=True)
class _Block:
    """A block of an array in both networks, and the spaces that act on it."""

    had: np.ndarray
    wanted: np.ndarray
    bindings: tuple[Binding, ...]


#: The order of the units in every space, (*per, n), or a mixture of orders as matrices, (*per, n, n).
_Orders = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Problem:
    """The problem of ordering the units of a network to best match another network."""

    groups: Mapping[str, Permutation]
    blocks: list[_Block]

    def identity(self) -> _Orders:
        return {name: np.asarray(group.identity()) for name, group in self.groups.items()}

    def by_sorted_entries(self) -> _Orders:
        """Matches every space by itself, with entries sorted along the axes that other spaces permute."""
        return {name: _assign(self.gains(name, self.identity(), sort=True)) for name in self.groups}

    def climb(self, orders: _Orders, sweeps: int) -> _Orders:
        """Coordinate ascent over the spaces, until no space improves."""
        random = np.random.default_rng(0)  # a fixed seed, so that the result is reproducible
        for _ in range(sweeps):
            changed = False
            for name in random.permutation(list(self.groups)):
                better = self.improve(str(name), orders)
                if better is not None:
                    orders, changed = better, True
            if not changed:
                break
        return orders

    def improve(self, space: str, orders: _Orders) -> _Orders | None:
        """Orders with a better permutation of one space, or None if there is no improvement."""
        score = self.score(orders)
        gains = self.gains(space, orders)
        found = {**orders, space: _assign(gains)}
        # Without repetition the score is linear in the permutation, so the assignment is optimal.
        if not self.repeated(space):
            return found if self.score(found) > score + _rounding(score) else None
        # Frank-Wolfe for the quadratic problem: over mixtures of orders, with exact line search.
        mixed = {**orders, space: _matrices(orders[space])}
        for _ in range(30):
            towards = _matrices(_assign(gains)) - mixed[space]
            slope = float(np.sum(gains * towards))
            if slope <= _rounding(score):
                break
            end = self.score({**mixed, space: mixed[space] + towards})
            bend = end - self.score(mixed) - slope
            # The score along the line is slope t + bend t^2: its maximum on [0, 1].
            step = 1.0 if bend >= -slope / 2 else -slope / (2 * bend)
            mixed = {**mixed, space: mixed[space] + step * towards}
            gains = self.gains(space, mixed)
        ends = [found, {**orders, space: _assign(mixed[space])}]
        best = max(ends, key=self.score)
        return best if self.score(best) > score + _rounding(score) else None

    def repeated(self, space: str) -> bool:
        """Whether a space acts on several axes of the same block."""
        return any(sum(t.entry.name == space for t in block.bindings) > 1 for block in self.blocks)

    def score(self, orders: _Orders) -> float:
        """The inner product of the moved network and the target."""
        return float(sum(np.vdot(b.wanted, self.moved(b, orders)).real for b in self.blocks))

    def distance(self, orders: _Orders) -> float:
        """The distance of the moved network from the target, relative to the target."""
        gaps = sum(np.sum(np.abs(self.moved(b, orders) - b.wanted) ** 2) for b in self.blocks)
        return float(np.sqrt(gaps / max(sum(np.sum(np.abs(b.wanted) ** 2) for b in self.blocks), 1e-300)))

    def gains(self, space: str, orders: _Orders, *, sort: bool = False) -> np.ndarray:
        """gains[..., i, j]: the score gained by unit j in place i, with all other spaces in `orders`."""
        group = self.groups[space]
        total = np.zeros((*group.lengths, group.size, group.size))
        for block in self.blocks:
            for k, binding in enumerate(block.bindings):
                if binding.entry.name != space:
                    continue
                others = block.bindings[:k] + block.bindings[k + 1 :]
                if sort:
                    axes = {other.axis for other in others}
                    had, wanted = (_sorted_along(x, axes) for x in (block.had, block.wanted))
                else:
                    had, wanted = (
                        self.moved(dataclasses.replace(block, bindings=others), orders),
                        block.wanted,
                    )
                rows = [_rows(x, binding) for x in (wanted, had)]
                total[binding.taken] += np.real(rows[0] @ np.swapaxes(rows[1], -1, -2).conj())
        return total

    def moved(self, block: _Block, orders: _Orders) -> np.ndarray:
        """A block of the network with its units permuted by `orders`."""
        x = block.had
        for binding in block.bindings:
            order = orders[binding.entry.name]
            # During Frank-Wolfe steps one space has a mixture of orders, as a matrix.
            mixed = order.ndim > len(self.groups[binding.entry.name].lengths) + 1
            order = order if binding.entry.index is None else order[binding.taken]

            def multiply(flat: np.ndarray, order=order, mixed=mixed) -> np.ndarray:
                return order @ flat if mixed else np.take_along_axis(flat, order[..., None], axis=-2)

            x = along(binding, x, multiply)
        return x


def _assign(gains: np.ndarray) -> np.ndarray:
    """The order with the largest total gain, for every copy of the group."""
    # Exact, in cubic time (SciPy's modified Jonker-Volgenant algorithm).
    flat = gains.reshape(-1, *gains.shape[-2:])
    orders = [scipy.optimize.linear_sum_assignment(one, maximize=True)[1] for one in flat]
    return np.array(orders).reshape(gains.shape[:-1])


def _matrices(order: np.ndarray) -> np.ndarray:
    """The permutation matrices of orders: (*per, n) to (*per, n, n)."""
    return np.eye(order.shape[-1])[order]


def _rows(x: np.ndarray, binding: Binding) -> np.ndarray:
    """Reshapes to the index axes first, then the bound axis, then all other axes flattened."""
    axes = (*binding.indices, binding.axis)
    front = np.moveaxis(x, axes, range(len(axes)))
    return front.reshape(*front.shape[: len(axes)], -1)


def _sorted_along(x: np.ndarray, axes: set[int]) -> np.ndarray:
    """Sorts entries jointly along these axes: a permutation-invariant arrangement."""
    if not axes:
        return x
    front = np.moveaxis(x, sorted(axes), range(-len(axes), 0))
    lengths = front.shape[-len(axes) :]
    ordered = np.sort(front.reshape(*front.shape[: -len(axes)], -1), axis=-1)
    return np.moveaxis(ordered.reshape(*ordered.shape[:-1], *lengths), range(-len(axes), 0), sorted(axes))


def _rounding(score: float) -> float:
    """The rounding tolerance of a score, without which the search could cycle."""
    return 1e-12 * abs(score) + 1e-300


def _blocks(symmetry: NetworkSymmetry, params: PyTree, target: PyTree) -> list[_Block]:
    """The blocks of both networks, in double precision; raises if they cannot be compared."""
    ours, theirs = _on_host(symmetry, "params", params), _on_host(symmetry, "target", target)
    for name in ours:
        if ours[name].shape != theirs[name].shape:
            raise ValueError(
                f"{name} has shape {ours[name].shape} in `params` and {theirs[name].shape} in `target`: "
                "pass two networks of equal shapes."
            )
    sides: list[list[tuple[np.ndarray, tuple[Binding, ...]]]] = []
    for tree in (ours, theirs):
        blocks: list[tuple[np.ndarray, tuple[Binding, ...]]] = []

        def collect(x: np.ndarray, bindings: tuple[Binding, ...], blocks=blocks) -> np.ndarray:
            blocks.append((x, bindings))
            return x

        symmetry.visit(tree, collect)
        sides.append(blocks)
    # Divide by the largest entry, so that no square overflows.
    largest = [float(np.max(np.abs(x), initial=0.0)) for blocks in sides for x, _ in blocks]
    scale = max(largest, default=0.0) or 1.0
    pairs = zip(*sides, strict=True)
    return [_Block(had / scale, wanted / scale, bindings) for (had, bindings), (wanted, _) in pairs]


def _on_host(symmetry: NetworkSymmetry, what: str, tree: PyTree) -> dict[str, np.ndarray]:
    """The arrays with specs, by name, in double precision; raises for arrays that cannot be matched."""
    check_present(symmetry.specs, leaf_names(tree))
    return on_host("weight_matching", what, tree, lambda name, leaf: name in symmetry.specs)
