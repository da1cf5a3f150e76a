"""The best element of one group, with all other spaces held fixed, in closed form where there is one."""

from collections.abc import Collection
from fractions import Fraction

import numpy as np
import scipy.linalg

from symmetrax.groups._diagonal import NonzeroDiagonal, PositiveDiagonal, SignDiagonal
from symmetrax.groups._matrices import GeneralLinear, Orthogonal, ScaledRotation, SpecialOrthogonal
from symmetrax.symmetry._align._slots import Arrays, Pair, Slot

#: Scales beyond this factor are not looked for in a single step.
_FARTHEST = 1e8


def turn(slot: Slot, had: Arrays, wanted: Arrays, paths: Collection[str] | None = None) -> np.ndarray:
    """The element of the maximal compact subgroup with the largest inner product of `had` and `wanted`.

    That is the sign of an inner product, its phase, or its polar factor (Procrustes); for positive scales,
    whose only compact subgroup is trivial, the identity.

    >>> import symmetrax as sx
    >>> slot = Slot(0, "h", sx.groups.SignDiagonal(2), {"w": "h"})
    >>> turn(slot, {"w": np.array([1.0, 2.0])}, {"w": np.array([-1.0, 2.0])})
    array([-1.,  1.])
    """
    n, group = slot.group.size, slot.group
    if isinstance(group, PositiveDiagonal):
        return slot.identity()
    pairs = list(slot.pairs(had, wanted, paths))
    if group.diagonal:
        # An even power of a sign is 1.
        odd = [p for p in pairs if p.entry.power % 2]
        inner = slot.total((n,), ((p.taken, np.sum(p.had * p.wanted, axis=-1)) for p in odd))
        return np.where(inner < 0, -1.0, 1.0)
    inner = slot.total((n, n), ((p.taken, p.inner()) for p in pairs))
    if isinstance(group, ScaledRotation):
        z = _complex(inner)
        return np.where(z == 0, 1.0, z / np.where(z == 0, 1.0, np.abs(z)))
    return polar(group, inner)


def gentler_turns(slot: Slot, had: Arrays, wanted: Arrays) -> list[np.ndarray]:
    """Shorter steps in the direction of `turn`, for spaces that act on two axes of one array.

    >>> import symmetrax as sx
    >>> slot = Slot(0, "h", sx.groups.Orthogonal(2), {"w": "h h"})
    >>> w = {"w": np.array([[1.0, 2.0], [3.0, 4.0]])}
    >>> len(gentler_turns(slot, w, w))
    5
    """
    n, whole, found = slot.group.size, turn(slot, had, wanted), []
    for copy in np.ndindex(slot.group.lengths):  # one copy of the group at a time
        step = slot.identity()
        step[copy] = whole[copy]
        found.append(step)
    if isinstance(slot.group, SignDiagonal):  # the single flip that promises most
        parts = ((p.taken, np.sum(p.had * p.wanted, axis=-1)) for p in slot.pairs(had, wanted))
        inner = slot.total((n,), parts)
        return [*found, np.where(inner == np.min(inner), -1.0, 1.0)]
    if slot.group.diagonal or slot.permutes or isinstance(slot.group, ScaledRotation):
        return found
    inner = slot.total((n, n), ((p.taken, p.inner()) for p in slot.pairs(had, wanted)))
    size = np.linalg.norm(inner) * np.eye(n)
    # The more of the identity is added, the smaller the rotation; in the limit it follows the gradient.
    return [*found, *(polar(slot.group, inner + c * size) for c in (1.0, 4.0, 16.0, 64.0))]


def _complex(matrices: np.ndarray) -> np.ndarray:
    """The complex numbers z whose planes have the largest inner product with these 2 x 2 matrices."""
    return matrices[..., 0, 0] + matrices[..., 1, 1] + 1j * (matrices[..., 1, 0] - matrices[..., 0, 1])


def polar(group: object, inner: np.ndarray) -> np.ndarray:
    """The orthogonal matrices in the group with the largest inner product with these.

    >>> import symmetrax as sx
    >>> print(polar(sx.groups.Orthogonal(2), np.array([[0.0, 3.0], [2.0, 0.0]])))
    [[0. 1.]
     [1. 0.]]
    """
    if isinstance(group, Orthogonal) and group.fix == "mean":
        # An orthonormal basis whose first vector is that of ones, which stays fixed.
        n = group.size
        basis = scipy.linalg.null_space(np.ones((1, n)))
        free = polar(None, basis.T @ inner @ basis)
        return basis @ free @ basis.T + np.full((n, n), 1 / n)
    left, _, right = np.linalg.svd(inner)
    if isinstance(group, SpecialOrthogonal):
        # The least singular value pays for the sign of the determinant.
        left[..., -1] *= np.sign(np.linalg.det(left @ right))[..., None]
    return left @ right


def fit(slot: Slot, had: Arrays, wanted: Arrays) -> list[np.ndarray]:
    """Elements of a noncompact group that bring `had` close to `wanted`, the most promising first.

    The exact minimum for scales of spaces that act once on every array; for general linear groups, a
    Gauss-Newton step of several lengths, and the least-squares solutions of the arrays on which g or its dual
    act alone.

    >>> import symmetrax as sx
    >>> slot = Slot(0, "h", sx.groups.PositiveDiagonal(1), {"w": "h", "v": "h*"})
    >>> there = {"w": np.array([6.0]), "v": np.array([1.0])}
    >>> print(fit(slot, {"w": np.array([2.0]), "v": np.array([3.0])}, there)[0].round(6))
    [3.]
    """
    match slot.group:
        case PositiveDiagonal() | NonzeroDiagonal():
            best = _scales(slot, had, wanted)
            shorter = [np.abs(best) ** c for c in (0.5, 0.25, 0.125)] if slot.repeated else []
            return [best, *shorter]
        case ScaledRotation():
            return [_complex_scales(slot, had, wanted)]
        case GeneralLinear():
            return _linear_maps(slot, had, wanted)
    return []


def _scales(slot: Slot, had: Arrays, wanted: Arrays) -> np.ndarray:
    n, terms = slot.group.size, {}
    for exponent, pairs in by_exponent(slot, had, wanted).items():
        squares = slot.total((n,), ((p.taken, np.sum(p.had**2, axis=-1)) for p in pairs))
        inner = slot.total((n,), ((p.taken, np.sum(p.had * p.wanted, axis=-1)) for p in pairs))
        terms[exponent] = squares, inner
    flat = {e: (c.ravel(), d.ravel()) for e, (c, d) in terms.items()}
    signed = isinstance(slot.group, NonzeroDiagonal)
    best = np.array(
        [
            _best_scale({e: (c[k], d[k]) for e, (c, d) in flat.items()}, signed)
            for k in range(int(np.prod(slot.shape)))
        ]
    )
    return _dyadic(slot, best.reshape(slot.shape))


def _dyadic(slot: Slot, scales: np.ndarray) -> np.ndarray:
    """Rounds to powers of two where the group has no other scales."""
    if isinstance(slot.group, PositiveDiagonal) and slot.group.dyadic:
        return 2.0 ** np.round(np.log2(scales))
    return scales


def by_exponent(slot: Slot, had: Arrays, wanted: Arrays) -> dict[float, list[Pair]]:
    """All that a slot moves, by the power of a scale that multiplies it.

    >>> import symmetrax as sx
    >>> slot = Slot(0, "h", sx.groups.PositiveDiagonal(1), {"w": "h", "v": "h*"})
    >>> w = {"w": np.ones(1), "v": np.ones(1)}
    >>> sorted(by_exponent(slot, w, w))
    [-1.0, 1.0]
    """
    pairs: dict[float, list[Pair]] = {}
    for pair in slot.pairs(had, wanted):
        pairs.setdefault(pair.exponent, []).append(pair)
    return pairs


def _best_scale(terms: dict[float, tuple[float, float]], signed: bool = False) -> float:
    """The s that minimizes the sum of c s^(2e) - 2 d s^e over terms {e: (c, d)}, among all roots."""
    # In u with s = u^q all exponents are whole; times a power of u, the derivative is a polynomial in u:
    # a quartic if the exponents are 1 and -1.
    q = int(np.lcm.reduce([Fraction(e).limit_denominator(64).denominator for e in terms]))
    powers: dict[int, float] = {}
    for e, (c, d) in terms.items():
        for power, coefficient in ((round(2 * e * q), e * c), (round(e * q), -e * d)):
            powers[power] = powers.get(power, 0.0) + coefficient
    low, high = min(powers), max(powers)
    roots = np.roots([powers.get(k, 0.0) for k in range(high, low - 1, -1)])
    real = np.real(roots)[np.abs(np.imag(roots)) < 1e-6 * np.abs(roots)]
    real = real if signed else real[real > 0]
    tried = np.array([1.0, *np.sign(real) * np.clip(np.abs(real) ** q, 1 / _FARTHEST, _FARTHEST)])
    values = sum(c * tried ** (2 * e) - 2 * d * tried**e for e, (c, d) in terms.items())
    return float(tried[np.argmin(values)])


def _complex_scales(slot: Slot, had: Arrays, wanted: Arrays) -> np.ndarray:
    groups = by_exponent(slot, had, wanted)
    squares = {
        e: slot.total((), ((p.taken, np.sum(p.had**2, axis=(-1, -2))) for p in pairs)).ravel()
        for e, pairs in groups.items()
    }
    inner = {
        e: _complex(slot.total((2, 2), ((p.taken, p.inner()) for p in pairs))).ravel()
        for e, pairs in groups.items()
    }
    best = np.ones(int(np.prod(slot.shape)), complex)
    unit = slot.compact
    for k in range(best.size):
        scale, phase = 1.0, 1.0 + 0j
        # The phase and the scale by turns, each exactly: the value never rises.
        for _ in range(20):
            z = sum(scale**e * m[k] for e, m in inner.items())
            phase = z / abs(z) if abs(z) > 0 else phase
            terms = {e: (c[k], float((inner[e][k] * np.conj(phase)).real)) for e, c in squares.items()}
            scale, before = (1.0 if unit else _best_scale(terms)), scale
            if abs(scale - before) <= 1e-15 * scale:
                break
        best[k] = scale * phase
    return best.reshape(slot.shape)


def _linear_maps(slot: Slot, had: Arrays, wanted: Arrays) -> list[np.ndarray]:
    n = slot.group.size
    sides = {}
    for star in (False, True):
        pairs = [p for p in slot.pairs(had, wanted) if p.entry.star == star]
        squares = slot.total((n, n), ((p.taken, p.squares()) for p in pairs))
        inner = slot.total((n, n), ((p.taken, p.inner()) for p in pairs))
        sides[star] = squares, inner
    (a, y), (b, w) = sides[False], sides[True]
    # The residuals of (1 + xi) x - y and (1 - xi^T) z - w are least where xi a + b xi = y - a + b - w^T: the
    # normal equations are a Sylvester equation.
    right = y - a + b - np.swapaxes(w, -1, -2)
    damped = 1e-12 * (np.trace(a, axis1=-2, axis2=-1) + np.trace(b, axis1=-2, axis2=-1))[..., None, None]
    eye = np.eye(n)
    flat = [x.reshape(-1, n, n) for x in (b + damped * eye, a, right)]
    steps = np.array([_sylvester(*parts) for parts in zip(*flat, strict=True)]).reshape(a.shape)
    found = [scipy.linalg.expm(t * steps) for t in (1.0, 0.5, 0.2, 0.04, 0.008)]
    found.insert(0, eye + steps)
    # Where g acts on arrays of full rank by itself, they alone determine it.
    found += [y @ np.linalg.pinv(a, hermitian=True)]
    dual = w @ np.linalg.pinv(b, hermitian=True)
    if np.all(np.linalg.cond(dual) < _FARTHEST):
        found.append(np.swapaxes(np.linalg.inv(dual), -1, -2))
    return [g for g in found if np.all(np.isfinite(g)) and np.all(np.linalg.cond(g) < _FARTHEST)]


def _sylvester(b: np.ndarray, a: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The solution xi of b xi + xi a = right, for symmetric a and b, shortened to a norm of 2."""
    # In the eigenvectors of both the equation is diagonal, and its kernel can be left alone.
    (p, u), (q, v) = np.linalg.eigh(b), np.linalg.eigh(a)
    sums = p[:, None] + q[None]
    small = sums < 1e-13 * max(float(np.max(sums)), 1e-300)
    xi = u @ (np.where(small, 0.0, u.T @ right @ v) / np.where(small, 1.0, sums)) @ v.T
    return xi * min(1.0, 2.0 / max(float(np.linalg.norm(xi)), 1e-300))
