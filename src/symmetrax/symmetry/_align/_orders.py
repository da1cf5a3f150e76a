"""The best orders of units, from the gains of pairing them."""

import numpy as np
import scipy.optimize

from symmetrax.symmetry._align._slots import Arrays, Slot, rows_of


def assign(gains: np.ndarray) -> np.ndarray:
    """The orders with the largest total gains, for every copy of the group: (*per, n, n) to (*per, n).

    >>> assign(np.array([[0.0, 1.0], [2.0, 0.0]]))
    array([1, 0])
    """
    flat = gains.reshape(-1, *gains.shape[-2:])
    orders = [scipy.optimize.linear_sum_assignment(one, maximize=True)[1] for one in flat]
    return np.array(orders).reshape(gains.shape[:-1])


def mixed_order(slot: Slot, had: Arrays, wanted: Arrays, gains: np.ndarray) -> np.ndarray:
    """A better order for units on two axes of one array, by Frank-Wolfe steps over mixtures of orders.

    >>> import symmetrax as sx
    >>> slot, w = Slot(0, "h", sx.groups.Permutation(2), {"w": "h h"}), np.array([[1.0, 2.0], [3.0, 4.0]])
    >>> mixed_order(slot, {"w": w}, {"w": w[::-1, ::-1]}, np.array([[0.0, 1.0], [1.0, 0.0]]))
    array([1, 0])
    """
    # The quadratic assignment problem; the score along a line is a parabola, whose maximum is exact.
    eye = np.eye(slot.group.size)
    mixture = np.broadcast_to(eye, gains.shape)

    def score(mixture: np.ndarray) -> float:
        moved = slot.act(mixture, had)
        return float(sum(np.real(np.vdot(wanted[path], moved[path])) for path in slot.specs))

    for _ in range(30):
        towards = eye[assign(gains)] - mixture
        slope = float(np.sum(gains * towards))
        if slope <= 1e-12 * abs(score(mixture)):
            break
        bend = score(mixture + towards) - score(mixture) - slope
        step = 1.0 if bend >= -slope / 2 else -slope / (2 * bend)
        mixture = mixture + step * towards
        gains = _slopes(slot, had, wanted, mixture)
    return assign(mixture)


def _slopes(slot: Slot, had: Arrays, wanted: Arrays, mixture: np.ndarray) -> np.ndarray:
    """The derivative of the inner product in every entry of a mixture of orders."""
    total = np.zeros(mixture.shape)
    for path in slot.specs:
        for (x, bindings), (y, _) in zip(slot.blocks(had, path), slot.blocks(wanted, path), strict=True):
            for k, binding in enumerate(bindings):
                others = bindings[:k] + bindings[k + 1 :]
                moved = x
                for other in others:
                    moved = slot.along(mixture, other, moved)
                rows = [rows_of(part, binding) for part in (moved, y)]
                total[binding.taken if slot.group.lengths else ...] += rows[1] @ np.swapaxes(rows[0], -1, -2)
    return total
