"""Linear relations between measured columns: null spaces, their gaps, and sparse bases of them."""

import dataclasses
from collections.abc import Sequence

import numpy as np

#: Largest singular value, for columns of length 1, of an approximate relation.
NEARLY = 2e-3


def threshold(precision: float) -> float:
    """Largest singular value of normalized columns, or difference of slices, of an exact relation.

    >>> threshold(1e-16), threshold(1e-7)
    (1e-07, 0.0003)
    """
    return 1e-7 if precision < 1e-10 else max(3e-4, 300 * precision)


@dataclasses.dataclass(frozen=True)
class Relation:
    """Coefficients with which columns sum to zero, and the singular values on both sides of the gap.

    >>> relation = Relation(np.array([1.0, 0.0, -2.0]), inside=1e-16, outside=0.3)
    >>> relation.support, relation.uniform
    ([0, 2], False)
    """

    coefficients: np.ndarray
    inside: float
    outside: float

    @property
    def support(self) -> list[int]:
        """The columns that take part."""
        return [int(k) for k in np.flatnonzero(self.coefficients)]

    @property
    def uniform(self) -> bool:
        """Whether all coefficients are equal, as they are for rotations."""
        values = self.coefficients[self.support]
        return bool(np.all(np.abs(values / values[0] - 1) < 0.1))


@dataclasses.dataclass(frozen=True)
class Columns:
    """Measured columns, (rows, columns), and the length each would have if its entries were unrelated.

    >>> Columns(np.array([[3.0, 0.0], [0.0, 0.0]]), np.array([6.0, 0.0])).normalized().tolist()
    [[0.5, 0.0], [0.0, 0.0]]
    """

    values: np.ndarray
    scales: np.ndarray

    def normalized(self) -> np.ndarray:
        return self.values / np.where(self.scales > 0, self.scales, 1.0)


def relations(
    columns: Columns,
    tolerance: float,
    known: Sequence[np.ndarray] = (),
    nearly: Sequence[np.ndarray] = (),
) -> tuple[list[Relation], float]:
    """All relations between the columns that `known` ones do not imply, and the upper end of their gap.

    Exact relations come first. Columns are measured relative to their scales, so singular values are
    dimensionless: up to `tolerance` they count as zero; between it and `NEARLY`, and well separated from the
    next one, as approximately zero. For each known relation one column is left out, which leaves the rest of
    the null space unchanged; the same is done for the `nearly` relations after the exact ones have been
    found.

    >>> values = np.array([[1.0, 1.0, 0.5], [2.0, 2.0, -1.0], [0.0, 0.0, 3.0]])
    >>> found, nearest = relations(Columns(values, np.linalg.norm(values, axis=0)), 1e-7)
    >>> [(charges(relation.coefficients).tolist(), relation.inside < 1e-7 < nearest) for relation in found]
    [([1.0, -1.0, 0.0], True)]
    """
    unit = columns.normalized()
    kept = columns.scales > 0
    found: list[Relation] = []
    far = np.inf
    for threshold, given in ((tolerance, known), (NEARLY, nearly)):
        for relation in given:
            # The largest term, so that the others need not be large multiples to make up for it.
            candidates = [k for k in np.flatnonzero(relation) if kept[k]]
            if candidates:
                kept[max(candidates, key=lambda k: abs(relation[k]) * columns.scales[k])] = False
        indices = np.flatnonzero(kept)
        if not len(indices):
            break
        singular, rows = _right_singular(unit[:, indices])
        inside = int(np.sum(singular <= threshold))
        if threshold == NEARLY:
            # Without a clear gap nothing tells small singular values from those of noise.
            while inside and inside < len(singular) and singular[inside] < 5 * singular[inside - 1]:
                inside -= 1
        far = float(singular[inside]) if inside < len(singular) else np.inf
        if not inside:
            continue
        worst = float(singular[inside - 1])
        basis, pivots = echelon(rows[:inside], clean=min(0.03, max(1e-5, 30 * worst / min(far, 1.0))))
        for vector in basis:
            whole = np.zeros(unit.shape[1])
            whole[indices] = vector
            coefficients = whole / np.where(columns.scales > 0, columns.scales, 1.0)
            found.append(Relation(coefficients, worst, far))
        kept[indices[pivots]] = False
    return found, far


def _right_singular(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Singular values, ascending, and their right singular vectors as rows."""
    # The triangle of a tall matrix has its singular values, and takes a fraction of the time.
    triangle = np.linalg.qr(matrix, mode="r") if len(matrix) > matrix.shape[1] else matrix
    _, singular, rows = np.linalg.svd(triangle, full_matrices=True)
    padded = np.concatenate([singular, np.zeros(matrix.shape[1] - len(singular))])
    return padded[::-1], rows[::-1]


def echelon(rows: np.ndarray, clean: float) -> tuple[np.ndarray, list[int]]:
    """Reduced row echelon form of a basis, with small entries set to zero, and its pivots.

    Pivots are chosen in column order, skipping columns whose entries are all small. Spaces that share no
    columns are separated.

    >>> echelon(np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]), clean=1e-6)
    (array([[1., 1., 0.],
           [0., 0., 1.]]), [0, 2])
    """
    rows, pivots = rows.copy(), []
    for done in range(len(rows)):
        # The first column that is large enough, not the largest: rounding must not decide the basis.
        sizes = np.abs(rows[done:]).max(axis=0)
        column = int(np.flatnonzero(sizes >= 0.3 * sizes.max())[0])
        pivot = done + int(np.argmax(np.abs(rows[done:, column])))
        rows[[done, pivot]] = rows[[pivot, done]]
        rows[done] /= rows[done, column]
        others = np.arange(len(rows)) != done
        rows[others] -= np.outer(rows[others, column], rows[done])
        pivots.append(column)
    rows[np.abs(rows) < clean * np.abs(rows).max(axis=1, keepdims=True)] = 0
    return rows, pivots


def charges(coefficients: np.ndarray) -> np.ndarray:
    """Rounds coefficients to multiples of 1/2 if close, with minimum magnitude 1, the first positive.

    >>> charges(np.array([0.0, -0.501, -0.5, 1.0])).tolist()
    [0.0, 1.0, 1.0, -2.0]
    """
    sizes = np.abs(coefficients[coefficients != 0])
    scaled = coefficients / sizes.min()
    scaled = scaled * np.sign(scaled[np.flatnonzero(scaled)[0]])
    # Charges in networks are small multiples of 1/2, as of squares, roots and variances.
    halves = np.round(2 * scaled) / 2
    near = np.abs(halves - scaled) <= 0.05 * np.abs(scaled)
    return np.where(near, halves, np.round(scaled, 4)) + 0.0
