"""The points of least norm on the orbits of scales and general linear groups."""

import functools

import numpy as np

from symmetrax.groups._matrices import GeneralLinear, ScaledRotation
from symmetrax.symmetry._align._slots import Arrays, Slot
from symmetrax.symmetry._align._steps import by_exponent


def least_norm(slots: list[Slot], x: Arrays) -> tuple[Arrays, list[np.ndarray]]:
    """The point of least norm on the orbit of the groups that do not preserve norms, and the way there.

    It is unique up to rotations, so two networks of one orbit have the same one.

    >>> import symmetrax as sx
    >>> slot = Slot(0, "h", sx.groups.PositiveDiagonal(1), {"w": "h", "v": "h*"})
    >>> least_norm([slot], {"w": np.array([1.0]), "v": np.array([16.0])})
    ({'w': array([4.]), 'v': array([4.])}, [array([4.])])
    """
    loose = [k for k, slot in enumerate(slots) if not slot.compact]
    values = [slot.identity() for slot in slots]
    before: dict[int, np.ndarray] = {}
    for sweep in range(500):
        logs: dict[int, np.ndarray] = {}
        largest = 0.0
        for k in loose:
            slot = slots[k]
            step = _shrink(slot, x)
            # A general linear orbit without a point of least norm ends in a singular matrix.
            if step is None or not regular(slot, slot.compose(step, values[k])):
                continue
            largest = max(largest, float(np.max(np.abs(step - slot.identity()))))
            values[k], x = slot.compose(step, values[k]), slot.act(step, x)
            if slot.group.diagonal:
                logs[k] = np.log(step)
        if largest < 1e-14:
            break
        # The steps of coupled scales shrink by one factor in the end: sum up the rest of the series.
        if sweep % 3 == 2 and logs.keys() == before.keys():
            ratio = _inner(logs, before) / max(_inner(before, before), 1e-300)
            if 0 < ratio < 1:
                rest = {k: np.exp(log * ratio / (1 - ratio)) for k, log in logs.items()}
                there = x
                for k, step in rest.items():
                    there = slots[k].act(step, there)
                if _square(there) <= _square(x):
                    x = there
                    for k, step in rest.items():
                        values[k] = slots[k].compose(step, values[k])
        before = logs
    return x, values


def _shrink(slot: Slot, x: Arrays) -> np.ndarray | None:
    """The element of a noncompact group that makes the norm of `x` least; None if there is no minimum."""
    n, groups = slot.group.size, by_exponent(slot, x, x)
    if not any(e > 0 for e in groups) or not any(e < 0 for e in groups):
        return None
    # With two axes in one array both halves of a step move it, which would go too far.
    damping = 0.5 if slot.repeated else 1.0
    if isinstance(slot.group, GeneralLinear):
        squares = [
            slot.total(
                (n, n), ((p.taken, p.squares()) for e, ps in groups.items() if (e < 0) == side for p in ps)
            )
            for side in (False, True)
        ]
        return _balanced(squares[0], squares[1], 0.5 * damping)
    axes = (-1, -2) if isinstance(slot.group, ScaledRotation) else (-1,)
    shape = () if isinstance(slot.group, ScaledRotation) else (n,)
    terms = {
        e: slot.total(shape, ((p.taken, np.sum(p.had**2, axis=axes)) for p in pairs))
        for e, pairs in groups.items()
    }
    rising = functools.reduce(np.add, (c for e, c in terms.items() if e > 0))
    falling = functools.reduce(np.add, (c for e, c in terms.items() if e < 0))
    # A unit without inputs or outputs has no least norm.
    usable = (rising > 0) & (falling > 0)
    u = np.zeros(rising.shape)
    if set(terms) == {1.0, -1.0}:
        u = np.log(np.where(usable, falling, 1.0) / np.where(usable, rising, 1.0)) / 4
    else:  # Newton's method for a convex function of u = log s
        for _ in range(100):
            parts = [(e, np.where(usable, c, 0.0) * np.exp(2 * e * u)) for e, c in terms.items()]
            slope = sum(2 * e * c for e, c in parts)
            bend = sum(4 * e * e * c for e, c in parts)
            step = np.clip(-slope / np.where(usable, bend, 1.0), -1.0, 1.0)
            u = u + step
            if np.max(np.abs(step)) < 1e-15:
                break
    return np.exp(damping * u) + (0j if isinstance(slot.group, ScaledRotation) else 0.0)


def _balanced(a: np.ndarray, b: np.ndarray, power: float) -> np.ndarray | None:
    """The power of the matrix S at which tr(S a) + tr(S^-1 b) is least: their geometric mean, S a S = b."""
    n = a.shape[-1]
    sizes = [np.trace(x, axis1=-2, axis2=-1)[..., None, None] for x in (a, b)]
    if not np.all(np.concatenate(sizes) > 0):
        return None
    a, b = (x + 1e-13 * size * np.eye(n) for x, size in zip((a, b), sizes, strict=True))
    root, inverse = _power(a, 0.5), _power(a, -0.5)
    return _power(inverse @ _power(root @ b @ root, 0.5) @ inverse, power)


def _power(x: np.ndarray, exponent: float) -> np.ndarray:
    """A power of symmetric positive matrices."""
    values, vectors = np.linalg.eigh((x + np.swapaxes(x, -1, -2)) / 2)
    floor = 1e-300 + 1e-15 * values[..., -1:]
    return (vectors * np.maximum(values, floor)[..., None, :] ** exponent) @ np.swapaxes(vectors, -1, -2)


def regular(slot: Slot, value: np.ndarray) -> bool:
    """Whether a value can be inverted in double precision, with digits to spare.

    >>> import symmetrax as sx
    >>> regular(Slot(0, "h", sx.groups.GeneralLinear(2), {}), np.diag([1.0, 1e-9]))
    False
    """
    if not np.all(np.isfinite(value)):
        return False
    return not isinstance(slot.group, GeneralLinear) or bool(np.all(np.linalg.cond(value) < 1e6))


def _inner(x: dict[int, np.ndarray], y: dict[int, np.ndarray]) -> float:
    return float(sum(np.sum(x[k] * y[k]) for k in x))


def _square(x: Arrays) -> float:
    return sum(float(np.sum(np.abs(part) ** 2)) for part in x.values())
