"""The best point of an orbit in closed form, if the objective is a squared norm."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from symmetrax._tree import total
from symmetrax.groups._matrices import GeneralLinear, ScaledRotation, product
from symmetrax.objectives._base import Objective
from symmetrax.search._energies import SCALINGS, Energies, placed, stretches
from symmetrax.search._orbit import Orbit, reducible
from symmetrax.search._searches import AbstractSearch
from symmetrax.symmetry._base import AbstractLieSymmetry
from symmetrax.symmetry._network import NetworkSymmetry
from symmetrax.symmetry._specs import Concatenated, Entry, Merged, Node, Plain, parse


class ClosedForm(AbstractSearch):
    """The largest or smallest gradient norm or parameter norm on the orbit of a `NetworkSymmetry`.

    For a scaling s = exp(t) of one space, the squared norm is sum(p exp(2 t) + q exp(-2 t)), where p and q
    are sums of squares. It is smallest where exp(4 t) = q / p, and largest at an end of the box
    |t| <= `bound`, on the side of the larger of p and q. For a matrix g it is tr(N P) + tr(N^-1 Q) with
    N = g'g and Gram matrices P and Q. It is smallest where N is the geometric mean P^-1 # Q, and largest,
    among all g that neither stretch nor shrink any vector by more than exp(`bound`), at
    log g = bound * sign(P - Q), the matrix sign. Of 2 x 2 scaled rotations only the scale matters. Compact
    groups do not change norms and stay at the identity.

    Spaces that act on a common array are optimized in turn, in `sweeps` sweeps: minimization converges to the
    smallest norm (log J is convex), maximization to a vertex of the box that no single space can improve. All
    of this uses only matrix products. In directions in which P or Q vanish, no smallest norm exists; there
    the geometric mean is taken of P and Q plus `ridge` times their mean eigenvalue, and limited to `bound`.

    The objective must be `GradientNorm()` or `NegativeParameterNorm()`, or `negate` of either. The search
    costs one gradient, or none if the gradient at the point is known. Source: derived here; the minimum for
    low-rank pairs is known as balancing.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> params = {"w1": jnp.array([[4.0]]), "w2": jnp.array([[1.0]])}
    >>> symmetry = sx.models.mlp_symmetry(params, ["w1", "w2"])
    >>> loss = lambda w, _: jnp.sum(w["w2"] @ w["w1"])
    >>> small = sx.objectives.NegativeParameterNorm()
    >>> balanced, _ = sx.teleport(loss, params, symmetry, objective=small, search=ClosedForm())
    >>> print(balanced["w1"], balanced["w2"])
    [[2.]] [[2.]]
    """

    bound: float | Float[Array, ""] = 1.0
    sweeps: int = eqx.field(static=True, default=20)
    ridge: float = 1e-6

    def __call__(self, orbit: Orbit) -> Float[Array, " k"]:
        energies = orbit.energies
        if energies is None:
            raise ValueError(
                "ClosedForm needs a NetworkSymmetry, without offsets in its specs for "
                "NegativeParameterNorm(), and as objective GradientNorm(), NegativeParameterNorm() or "
                f"`negate` of either, got {type(orbit.symmetry).__name__} and {orbit.objective}: use "
                "Ascent()."
            )
        symmetry, largest = energies.symmetry, orbit.sign > 0

        def sweep(_, coordinates: Array) -> Array:
            parts = symmetry.split(coordinates)
            for space in energies.spaces:
                parts[space] = self._best(energies, space, parts, largest)
            return symmetry.join(parts).astype(coordinates.dtype)

        start = orbit.zero()
        # Without a common array the optimum of a space does not depend on the others: one sweep is exact.
        if not energies.coupled:
            return sweep(0, start)
        return jax.lax.fori_loop(0, self.sweeps, sweep, start)

    def evaluations(self, symmetry) -> int:
        return 1

    def _best(self, energies: Energies, space: str, parts: dict[str, Array], largest: bool) -> Array:
        group = energies.symmetry.spaces[space]
        if not isinstance(group, (GeneralLinear, *SCALINGS)):
            raise ValueError(
                f"ClosedForm needs scalings or general linear groups, got {group} for the space {space!r}: "
                "use Ascent()."
            )
        shares = [
            (exponent, placed(square, binding, group.lengths))
            for binding, exponent, square in energies.share(space, parts)
        ]
        if isinstance(group, GeneralLinear):
            up, down = (_total(shares, sign, group.algebra) for sign in (1, -1))
            # The norm is convex in N, so it is largest where all eigenvalues of N are exp(+-2 bound); among
            # those, where N is large on the eigenvectors of P - Q with positive eigenvalues.
            if largest:
                return self.bound * matrix_sign(up - down)
            # The norm depends on g only through N = g'g, so half of log N is the logarithm of one such g.
            return group.bounded(_log_mean(up, down, self.ridge) / 2, self.bound)
        shape = (*group.lengths, 1 if isinstance(group, ScaledRotation) else group.size)
        logs = self._largest(shares, shape) if largest else self._least(shares, shape)
        if isinstance(group, ScaledRotation):
            return jnp.concatenate([logs, jnp.zeros_like(logs)], axis=-1)
        return logs

    def _largest(self, shares: list[tuple[float, Array]], shape: tuple[int, ...]) -> Array:
        """An end of the box; a unit without energy stays at the identity."""
        # The norm is convex in t, so its maximum over an interval is at one of the ends.
        up, down = (self._norm(shares, side * self._ends(shares, shape)) for side in (1, -1))
        ends = self._ends(shares, shape)
        return jnp.where((up == 0) & (down == 0), 0.0, jnp.where(up >= down, ends, -ends))

    def _ends(self, shares: list[tuple[float, Array]], shape: tuple[int, ...]) -> Array:
        return jnp.full(shape, self.bound, _kind(shares))

    def _norm(self, shares: list[tuple[float, Array]], t: Array) -> Array:
        terms = (square * jnp.exp(2 * exponent * t) for exponent, square in shares)
        return sum(terms, start=jnp.zeros_like(t))

    def _least(self, shares: list[tuple[float, Array]], shape: tuple[int, ...]) -> Array:
        """The root of the increasing derivative, in closed form or by bisection of the box."""
        ends = self._ends(shares, shape)
        if all(abs(exponent) == 1 for exponent, _ in shares):
            up, down = (_total(shares, sign, shape) for sign in (1, -1))
            both = (up > 0) & (down > 0)
            # If one side is zero, there is no minimum: the norm decreases all the way to the end of the box.
            there = (jnp.log(jnp.where(both, down, 1.0)) - jnp.log(jnp.where(both, up, 1.0))) / 4
            return jnp.where(both, jnp.clip(there, -ends, ends), ends * (jnp.sign(down) - jnp.sign(up)))

        def slope(t, shares):
            return self._norm([(exponent, exponent * square) for exponent, square in shares], t)

        def halve(_, ends):
            low, high = ends
            middle = (low + high) / 2
            rising = slope(middle, constants) > 0
            return jnp.where(rising, low, middle), jnp.where(rising, middle, high)

        # Bisection is a sequence of comparisons, whose derivative would be zero: don't differentiate it.
        constants = [(exponent, jax.lax.stop_gradient(square)) for exponent, square in shares]
        low, high = jax.lax.fori_loop(0, 60, halve, (-ends, ends))
        middle = (low + high) / 2
        # One Newton step moves the root by a rounding error and supplies the derivative that bisection lacks.
        _, bend = jax.jvp(lambda t: slope(t, constants), (middle,), (jnp.ones_like(middle),))
        newton = middle - slope(middle, shares) / jnp.where(bend > 0, bend, 1.0)
        return jnp.where(bend > 0, jnp.clip(newton, -ends, ends), 0.0)


def has_closed_form(symmetry: AbstractLieSymmetry, objective: Objective) -> bool:
    """Returns whether `ClosedForm` supports this symmetry and this objective.

    >>> import symmetrax as sx
    >>> has_closed_form(sx.tasks.booth().symmetry(), sx.objectives.GradientNorm())
    False
    """
    if not isinstance(symmetry, NetworkSymmetry) or reducible(symmetry, objective) is None:
        return False
    # Two axes of one array in the same space give terms of degree four in g, for which nothing is derived.
    known = (GeneralLinear, *SCALINGS)
    stretching = {name for name, group in symmetry.spaces.items() if stretches(group)}
    return all(isinstance(symmetry.spaces[name], known) for name in stretching) and not any(
        _occurrences(node, name) > 1
        for text in symmetry.specs.values()
        for node in [Merged(parse(text))]
        for name in stretching
    )


def _occurrences(node: Node, name: str) -> int:
    """The number of axes of one block of an array on which a space acts."""
    if isinstance(node, Entry | Plain):
        return int(isinstance(node, Entry) and node.name == name)
    counts = [_occurrences(part, name) for part in node.parts]
    return max(counts) if isinstance(node, Concatenated) else sum(counts)


def matrix_sign(matrix: Float[Array, "... n n"]) -> Float[Array, "... n n"]:
    """The sign of symmetric matrices, from matrix products alone: eigenvalues become -1, 0 or 1.

    Eigenvalues below about 1e-10 of the largest may map to values in between.

    >>> import jax.numpy as jnp
    >>> print(abs(matrix_sign(jnp.array([[0.0, 2.0], [2.0, 0.0]]))).round(3))
    [[0. 1.]
     [1. 0.]]
    """
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(matrix), axis=(-1, -2), keepdims=True))
    matrix = matrix / jnp.where(largest > 0, largest, 1.0)
    square = jnp.sum(matrix**2, axis=(-1, -2), keepdims=True)
    x = matrix / jnp.sqrt(jnp.where(square == 0, 1.0, square))

    # The quintic of Muon (section 2 of arXiv:2502.16982) enlarges small eigenvalues quickly but does not
    # converge; the cubic of Newton and Schulz converges to +-1 but would need many steps to get there.
    def grow(_, x):
        """x (a + b x^2 + c x^4): scales small eigenvalues by 3.4, keeps those near 1 between .6 and 1.3."""
        xx = product(x, x)
        return 3.4445 * x + product(x, -4.7750 * xx + 2.0315 * product(xx, xx))

    def settle(_, x):
        return 1.5 * x - 0.5 * product(x, product(x, x))

    return jax.lax.fori_loop(0, 8, settle, jax.lax.fori_loop(0, 19, grow, x))


def _log_mean(up: Array, down: Array, ridge: float) -> Array:
    """log of the N that minimizes tr(N up) + tr(N^-1 down): of the geometric mean up^-1 # down."""
    size = up.shape[-1]
    eye = jnp.broadcast_to(jnp.eye(size, dtype=up.dtype), up.shape)

    means = [jnp.trace(matrix, axis1=-1, axis2=-2)[..., None, None] / size for matrix in (up, down)]

    def regular(matrix, mean, other):
        """Adds the ridge; if a whole matrix is zero, the other one sets the scale."""
        mean = jnp.where(mean > 0, mean, other)
        return matrix + jnp.where(mean > 0, ridge * mean, 1.0) * eye

    # A direction in which one matrix vanishes has no minimum; the ridge puts one at a finite distance.
    p, q = regular(up, *means), regular(down, *means[::-1])
    scales = [jnp.sqrt(jnp.sum(m**2, axis=(-1, -2), keepdims=True)) for m in (p, q)]
    # The iteration needs norms of at most 1. Dividing P by a and Q by b multiplies the mean by sqrt(a / b),
    # which `shift` takes back.
    mean, _ = _mean_and_inverse(q / scales[1], p / scales[0])
    shift = jnp.log(scales[1] / scales[0]) / 2
    return _logarithm(mean) + shift * eye


def _mean_and_inverse(y: Array, z: Array, steps: int = 45) -> tuple[Array, Array]:
    """z^-1 # y and its inverse, by coupled Newton-Schulz steps from symmetric y and z of norm at most 1."""

    eye = jnp.broadcast_to(jnp.eye(y.shape[-1], dtype=y.dtype), y.shape)

    def step(_, pair):
        # The products are symmetric in exact arithmetic; unless they are made so, rounding errors grow.
        y, z = pair
        middle = 1.5 * eye - 0.5 * product(z, y)
        return _symmetric(product(y, middle)), _symmetric(product(middle, z))

    return jax.lax.fori_loop(0, steps, step, (y, z))


def _logarithm(matrix: Array, roots: int = 7, terms: int = 18) -> Array:
    """log of symmetric positive matrices: square roots until they are near the identity, then a series."""
    eye = jnp.broadcast_to(jnp.eye(matrix.shape[-1], dtype=matrix.dtype), matrix.shape)
    scale = jnp.sqrt(jnp.sum(matrix**2, axis=(-1, -2), keepdims=True))

    def root(_, x):
        size = jnp.sqrt(jnp.sum(x**2, axis=(-1, -2), keepdims=True))
        found, _ = _mean_and_inverse(x / size, eye)
        return found * jnp.sqrt(size)

    # Normalizing before every root lets `_mean_and_inverse` converge, whatever the condition number.
    rest = jax.lax.fori_loop(0, roots, root, matrix / scale) - eye
    series = eye / terms
    for k in range(terms - 1, 0, -1):
        series = eye / k - product(rest, series)
    return 2**roots * product(rest, series) + jnp.log(scale) * eye


def _symmetric(a: Array) -> Array:
    return (a + jnp.swapaxes(a, -1, -2)) / 2


def _total(shares: list[tuple[float, Array]], sign: int, shape: tuple[int, ...]) -> Array:
    """Sums the squares or Gram matrices of the blocks whose exponent has this sign."""
    there = (square for exponent, square in shares if exponent * sign > 0)
    return sum(there, start=jnp.zeros(shape, _kind(shares)))


def _kind(shares: list[tuple[float, Array]]) -> jnp.dtype:
    """The dtype in which energies are summed."""
    return total([jnp.zeros((), square.dtype) for _, square in shares]).dtype
