"""The gains of pairing units, heads or experts of two networks, whatever acts inside of them."""

import dataclasses
import functools
from collections.abc import Collection, Iterable

import numpy as np

from symmetrax.groups._diagonal import PositiveDiagonal
from symmetrax.groups._matrices import ScaledRotation
from symmetrax.symmetry._align._orders import assign
from symmetrax.symmetry._align._slots import Arrays, Pair, Slot
from symmetrax.symmetry._walk import Binding, walk


@dataclasses.dataclass(frozen=True, eq=False)
class _Tags:
    """For every entry of an array, the copy of a group and the row of its matrix that act on it; -1: none."""

    copy: np.ndarray
    row: np.ndarray
    twice: bool


class Gains:
    """Gains of pairing the units of permutation spaces, given which groups act inside of which units.

    A head of an attention has matrices of its own for its queries and keys: how well two heads fit is decided
    at the best of these matrices, which has a closed form if the networks are balanced, since all that is
    left is orthogonal: the nuclear norm of the product of the two heads. In the same way signs give the
    absolute value, and permutations inside of experts an assignment.

    >>> import symmetrax as sx
    >>> arrays = {"w": np.array([[1.0, 0.0], [0.0, 2.0]])}
    >>> swap = Slot(0, "p", sx.groups.Permutation(2), {"w": "p _"})
    >>> flip = Slot(1, "s", sx.groups.SignDiagonal(2), {"w": "s _"})
    >>> Gains([flip, swap], arrays)(swap, arrays, {"w": -arrays["w"][::-1]}, {flip, swap})
    array([[0., 4.],
           [1., 0.]])
    """

    def __init__(self, slots: list[Slot], arrays: Arrays):
        self.tags = {(slot, path): _tags(slot, path, arrays[path]) for slot in slots for path in slot.specs}
        self.on = {path: [slot for slot in slots if path in slot.specs] for path in arrays}
        self.inside = {
            slot: [other for other in slots if self._acts_inside(other, slot)]
            for slot in slots
            if slot.permutes
        }

    def informed(self, slot: Slot, known: Collection[Slot]) -> list[str]:
        """The arrays that `slot` moves along with nothing else whose element is unknown."""
        free = {slot, *known, *self.inside.get(slot, ())}
        return [path for path in slot.specs if free.issuperset(self.on[path])]

    def __call__(self, slot: Slot, had: Arrays, wanted: Arrays, known: Collection[Slot]) -> np.ndarray:
        """gains[..., i, j]: what the inner product gains if unit j of `had` comes to place i of `wanted`."""
        n = slot.group.size
        copies = int(np.prod(slot.group.lengths))
        total = np.zeros((copies, n, n))
        covered: dict[Slot, list[tuple[np.ndarray, np.ndarray]]] = {}
        for path in slot.specs:
            tags = self.tags[slot, path]
            if tags.twice:  # several axes at once: the terms of all of them, with the other axes as they are
                pairs = slot.pairs(had, wanted, [path])
                # Or, as long as nothing is known about the other axes, whatever their order.
                parts = ((p.taken, p.inner() if slot in known else _sorted_inner(p)) for p in pairs)
                total += slot.total((n, n), parts).reshape(total.shape)
                continue
            x, y = (_units(part[path], tags) for part in (had, wanted))
            unknown = [other for other in self.on[path] if other is not slot and other not in known]
            inner = [other for other in self.inside[slot] if other in self.on[path]]
            if any(other not in inner for other in unknown):
                acting = [
                    (other, self._units_of(other, path, tags))
                    for other in dict.fromkeys((*unknown, *inner))
                    if not _trivial(other)
                ]
                total += _products(slot, tags, *(_invariants(part, acting) for part in (x, y)))
                continue
            rest = np.ones(x.shape[1], bool)
            for other in inner:
                rows = self._units_of(other, path, tags)
                size = int(rows.max()) + 1
                if size > 0:
                    pair = [_full(slot, tags, _matrices(part, rows, size)) for part in (x, y)]
                    covered.setdefault(other, []).append((pair[0], pair[1]))
                    rest &= rows < 0
            total += _products(slot, tags, x[:, rest], y[:, rest])
        for other, parts in covered.items():
            x, y = (np.concatenate(side, axis=-1) for side in zip(*parts, strict=True))
            for copy in range(copies):
                among = slice(copy * n, (copy + 1) * n)
                products = np.real(np.einsum("iam,jbm->ijab", y[among], np.conj(x[among]), optimize=True))
                total[copy] += _best(other, products)
        return total.reshape(*slot.group.lengths, n, n)

    def _units_of(self, other: Slot, path: str, tags: _Tags) -> np.ndarray:
        """The rows of another group's matrix to which the entries of every unit belong; -1: not acted on."""
        theirs = self.tags[other, path]
        # The entries of all units are in the same order, so the first unit speaks for all.
        return _units(theirs.row if not other.group.diagonal else np.minimum(theirs.row, 0), tags)[0]

    def _acts_inside(self, other: Slot, slot: Slot) -> bool:
        """Whether `other` has a copy for every unit of the permutations in `slot`, and acts in it alone."""
        shared = [path for path in slot.specs if path in other.specs]
        if other is slot or not shared or _trivial(other):
            return False
        owners: dict[int, int] = {}
        for path in shared:
            ours, theirs = self.tags[slot, path], self.tags[other, path]
            if ours.twice or theirs.twice:
                continue
            both = (ours.copy >= 0) & (theirs.copy >= 0)
            units = ours.copy[both] * slot.group.size + ours.row[both]
            # A diagonal acts on every entry of an axis by itself.
            size = other.group.size if other.group.diagonal else 1
            theirs_copy = theirs.copy[both] * size + (theirs.row[both] if size > 1 else 0)
            for unit, copy in np.unique(np.stack([units, theirs_copy], axis=-1), axis=0):
                if owners.setdefault(int(unit), int(copy)) != copy:
                    return False
        return len(set(owners.values())) == len(owners) == slot.group.size * int(np.prod(slot.group.lengths))


def _sorted_inner(pair: Pair) -> np.ndarray:
    """Inner products of rows with their absolute values in ascending order."""
    x, y = (np.sort(np.abs(part), axis=-1) for part in (pair.had, pair.wanted))
    return y @ np.swapaxes(x, -1, -2)


def _trivial(slot: Slot) -> bool:
    """Whether nothing of a group is left between balanced networks."""
    return isinstance(slot.group, PositiveDiagonal)


def _tags(slot: Slot, path: str, x: np.ndarray) -> _Tags:
    twice = False

    def tag(part: np.ndarray, bindings: tuple[Binding, ...], what: str) -> np.ndarray:
        nonlocal twice
        tags = np.full(part.shape, -1)
        twice |= len(bindings) > 1
        for binding in bindings[:1]:
            axes = (binding.axis,) if what == "row" else binding.indices
            numbers = np.arange(slot.group.size)
            if what == "copy":
                numbers = np.arange(int(np.prod(slot.group.lengths))).reshape(slot.group.lengths)
                numbers = numbers[binding.taken] if binding.entry.index is not None else numbers
            # The axes of `numbers` in their places among those of the block.
            wide = np.transpose(numbers, np.argsort(axes)) if axes else numbers
            shape = [part.shape[k] if k in axes else 1 for k in range(part.ndim)]
            tags = np.broadcast_to(wide.reshape(shape), part.shape)
        return tags

    found = {
        what: walk(
            slot.specs[path],
            np.zeros(x.shape, int),
            {slot.name: slot.group},
            functools.partial(tag, what=what),
        )
        for what in ("copy", "row")
    }
    return _Tags(found["copy"].ravel(), found["row"].ravel(), twice)


def _units(x: np.ndarray, tags: _Tags) -> np.ndarray:
    """The entries of every unit of every copy as a row, all in the same order: (copies present * n, rest)."""
    flat = x.ravel()[tags.copy >= 0]
    copies, rows = tags.copy[tags.copy >= 0], tags.row[tags.copy >= 0]
    count = len(np.unique(copies)) * (int(rows.max()) + 1)
    return flat[np.lexsort((rows, copies))].reshape(count, -1)


def _products(slot: Slot, tags: _Tags, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The inner products of all units of a copy with all units of the other network."""
    n = slot.group.size
    present = np.unique(tags.copy[tags.copy >= 0])
    total = np.zeros((int(np.prod(slot.group.lengths)), n, n))
    x, y = (part.reshape(len(present), n, -1) for part in (x, y))
    total[present] = np.real(y @ np.conj(np.swapaxes(x, -1, -2)))
    return total


def _full(slot: Slot, tags: _Tags, units: np.ndarray) -> np.ndarray:
    """Zeros for the copies of the group that do not act on an array."""
    present = np.unique(tags.copy[tags.copy >= 0])
    shape = units.shape[1:]
    full = np.zeros((int(np.prod(slot.group.lengths)), slot.group.size, *shape), units.dtype)
    full[present] = units.reshape(len(present), slot.group.size, *shape)
    return full.reshape(-1, *shape)


def _matrices(x: np.ndarray, rows: np.ndarray, size: int) -> np.ndarray:
    """The entries of every unit as the rows of a matrix: (units, entries) to (units, size, rest)."""
    return np.stack([x[:, rows == k] for k in range(size)], axis=1)


def _invariants(x: np.ndarray, acting: Iterable[tuple[Slot, np.ndarray]]) -> np.ndarray:
    """Numbers for every unit (a row of `x`) that none of the groups acting inside of it change.

    `acting` has, for every group, the row of its matrices to which each entry belongs.
    """
    sizes = [(slot, rows, int(rows.max()) + 1) for slot, rows in acting]
    mixing = [one for one in sizes if not (one[0].permutes or one[0].group.diagonal) and one[2] > 1]
    if mixing:
        # The other groups act on the columns of this matrix, and keep its singular values.
        _, rows, size = max(mixing, key=lambda one: one[2])
        values = np.linalg.svd(_matrices(x, rows, size), compute_uv=False)
        return np.concatenate([values, np.linalg.norm(x[:, rows < 0], axis=1, keepdims=True)], axis=1)
    permuting = [(rows, size) for slot, rows, size in sizes if slot.permutes and size > 1]
    x = np.abs(x) if any(slot.group.diagonal for slot, _, _ in sizes) or np.iscomplexobj(x) else x
    if len(permuting) > 1:
        return np.sort(x, axis=1)
    if permuting:
        rows, size = permuting[0]
        ordered = np.sort(_matrices(x, rows, size), axis=1).reshape(len(x), -1)
        return np.concatenate([ordered, x[:, rows < 0]], axis=1)
    return x


def _best(other: Slot, products: np.ndarray) -> np.ndarray:
    """The largest inner product over the elements of a group, from products (i, j, rows, rows)."""
    if isinstance(other.group, ScaledRotation):
        return np.hypot(products[..., 0, 0] + products[..., 1, 1], products[..., 1, 0] - products[..., 0, 1])
    if other.permutes:
        orders = assign(products)
        return np.take_along_axis(products, orders[..., None], axis=-1)[..., 0].sum(-1)
    if products.shape[-1] == 1:
        return np.abs(products[..., 0, 0])
    return np.linalg.svd(products, compute_uv=False).sum(-1)
