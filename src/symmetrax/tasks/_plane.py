"""Sums of squares of an invertible map: the benchmark families of arXiv:2504.15399, section 5.1.1.

f(x) = ||h(x)||^2 is invariant under rotations conjugated by h. With affine h, the family contains
Booth's function (ellipses); with triangular h, Rosenbrock's.
"""

from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from symmetrax.symmetry._maps import AbstractMap, Affine, Triangular
from symmetrax.symmetry._pullback import Pullback
from symmetrax.tasks._base import AbstractTask, AbstractTaskFamily

# Draws of h beyond this condition number, about one in ten thousand, are singular in float32 and are redrawn.
WORST_CONDITION = 1e4

Kind = Literal["booth", "rosenbrock"]


class SumOfSquares(AbstractTask):
    """f(x) = ||map(x)||^2 on R^n, started at N(start, spread^2 I).

    By default the start is drawn from N(0, I); if you pass `start` without a `spread`, it is always `start`.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> loss = sx.tasks.booth().loss
    >>> loss(jnp.array([1.0, 3.0])).item(), loss(jnp.array([5.0, -5.0])).item()
    (0.0, 144.0)
    """

    map: AbstractMap
    start: Float[Array, " n"]
    spread: Float[Array, ""]

    def __init__(self, map: AbstractMap, start: Any = None, spread: Any = None):
        if spread is None:
            spread = jnp.ones(()) if start is None else jnp.zeros(())
        self.map = map
        # Arrays, not static numbers: tasks with other starts share a compiled program.
        self.start = jnp.zeros(map.size) if start is None else jnp.asarray(start)
        self.spread = jnp.asarray(spread)

    def init(self, key: Key[Array, ""]) -> Float[Array, " n"]:
        return self.start + self.spread * jax.random.normal(key, (self.map.size,))

    def batch(self, key: Key[Array, ""]) -> None:
        return None

    def loss(self, params: Float[Array, " n"], batch: None = None) -> Float[Array, ""]:
        return jnp.sum(jnp.square(self.map(params)))

    def symmetry(self) -> Pullback:
        return Pullback(self.map)

    def optimum(self) -> Float[Array, " n"]:
        return self.map.inverse(jnp.zeros(self.map.size))


def generalized_booth(matrix, offset=None, *, start=None) -> SumOfSquares:
    """The convex quadratic f(x) = ||matrix @ x + offset||^2.

    `matrix` has shape (n, n) and must be invertible; `offset` and `start` have shape (n,), and `offset`
    defaults to zeros. The parameters start at `start`, by default at a draw from N(0, I). Raises ValueError
    for a singular matrix.

    >>> import jax.numpy as jnp
    >>> generalized_booth([[0.5, 0.0], [0.0, 3.0]]).loss(jnp.array([2.0, 1.0])).item()
    10.0
    """
    matrix = _numbers("matrix", matrix)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"`matrix` must be square, got shape {matrix.shape}.")
    offset = np.zeros(len(matrix)) if offset is None else _numbers("offset", offset, (len(matrix),))
    # Checked on the host, in double precision, for the single precision in which tasks usually run.
    if not np.linalg.cond(matrix) < 1 / np.finfo(np.float32).eps:
        raise ValueError(
            "The map x -> matrix @ x + offset must be invertible to single precision, got the singular "
            f"matrix {matrix.tolist()}."
        )
    return SumOfSquares(Affine(jnp.asarray(matrix), jnp.asarray(offset)), _start(start, len(matrix)))


def generalized_rosenbrock(a, b, c, d, *, start=None) -> SumOfSquares:
    """f(x, y) = (c(x) y + d(x))^2 + (a x + b)^2, usually nonconvex.

    `a` and `b` are numbers; `c` and `d` are numbers or coefficients of polynomials in x, highest power first.
    Raises ValueError if the map is singular: for a = 0, or a constant c = 0.

    >>> import jax.numpy as jnp
    >>> f = generalized_rosenbrock(a=1.0, b=-1.0, c=-10.0, d=[10.0, 0.0, 0.0])
    >>> f.loss(jnp.array([-1.0, -1.0])).item()  # Rosenbrock's function: 100 (y - x^2)^2 + (x - 1)^2
    404.0
    """
    a, b = _numbers("a", a, ()), _numbers("b", b, ())
    c, d = np.atleast_1d(_numbers("c", c)), np.atleast_1d(_numbers("d", d))
    if a == 0 or not np.any(c):
        raise ValueError(
            "The map (x, y) -> (c(x) y + d(x), a x + b) must be invertible, so a and c must not be zero, "
            f"got a={a.item()}, c={c.tolist()}."
        )
    return SumOfSquares(Triangular(*(jnp.asarray(v) for v in (a, b, c, d))), _start(start, 2))


def booth(*, start=None) -> SumOfSquares:
    """Booth's function (x + 2y - 7)^2 + (2x + y - 5)^2, with its minimum 0 at (1, 3).

    >>> import jax.numpy as jnp
    >>> booth().loss(jnp.array([0.0, 0.0])).item()
    74.0
    """
    return generalized_booth([[1.0, 2.0], [2.0, 1.0]], [-7.0, -5.0], start=start)


def rosenbrock(*, start=None) -> SumOfSquares:
    """Rosenbrock's function 100 (y - x^2)^2 + (x - 1)^2, with its minimum 0 at (1, 1).

    >>> import jax.numpy as jnp
    >>> rosenbrock().loss(jnp.array([1.0, 1.0])).item()
    0.0
    """
    return generalized_rosenbrock(1.0, -1.0, -10.0, [10.0, 0.0, 0.0], start=start)


class PlaneFamily(AbstractTaskFamily):
    """Tasks f(x) = ||h(x)||^2 with a fixed or random map h of the plane; see `make_family`.

    `kind` is "booth" (h affine: entries of matrix and offset iid N(0, 1)) or "rosenbrock" (h triangular:
    a, b, the constant c and the three coefficients of d iid N(0, 1)), as in figures 4 and 6 of
    arXiv:2504.15399. Draws with a singular map (condition above 1e4; |a| or |c| below 1e-4) are redrawn.
    With `fixed`, every task has that map. The start is drawn from N(start, spread^2 I), by default N(0, I).

    >>> import jax
    >>> family = PlaneFamily(name="mine", kind="booth", fixed=booth().map)
    >>> family.task(family.draw(jax.random.key(0))).loss(jax.numpy.array([1.0, 3.0])).item()
    0.0
    """

    name: str = eqx.field(static=True)
    kind: Kind = eqx.field(static=True)
    fixed: AbstractMap | None = None
    start: Float[Array, "2"] = eqx.field(default_factory=lambda: jnp.zeros(2))
    spread: Float[Array, ""] = eqx.field(default_factory=lambda: jnp.ones(()))

    def draw(self, key: Key[Array, ""]) -> PyTree:
        if self.fixed is not None:  # nothing varies but the start
            return ()
        if self.kind == "booth":
            return _redraw(_draw_affine, _good_affine, key)
        return _redraw(_draw_triangular, _good_triangular, key)

    def task(self, drawn: PyTree, shape: None = None) -> SumOfSquares:
        return SumOfSquares(drawn if self.fixed is None else self.fixed, self.start, self.spread)


def _draw_affine(key: Key[Array, ""]) -> Affine:
    entries = jax.random.normal(key, (2, 3))
    return Affine(entries[:, :2], entries[:, 2])


def _good_affine(h: Affine) -> Array:
    """Returns whether the condition is below the bound: for 2 x 2, ||A||_F^2 / |det A| is cond + 1/cond."""
    (a, b), (c, d) = h.matrix
    return jnp.sum(jnp.square(h.matrix)) < WORST_CONDITION * jnp.abs(a * d - b * c)


def _draw_triangular(key: Key[Array, ""]) -> Triangular:
    entries = jax.random.normal(key, (6,))
    return Triangular(entries[0], entries[1], entries[2:3], entries[3:])


def _good_triangular(h: Triangular) -> Array:
    return jnp.minimum(jnp.abs(h.a), jnp.abs(h.c[0])) * WORST_CONDITION > 1


def _redraw(draw: Callable[[Key[Array, ""]], Any], good: Callable[[Any], Array], key: Key[Array, ""]) -> Any:
    """Draws until `good` accepts the draw."""

    # A loop of unknown length instead of many draws of which one is selected: almost always one is enough.
    def again(state):
        key, retry = jax.random.split(state[0])
        return key, draw(retry)

    return jax.lax.while_loop(lambda state: ~good(state[1]), again, (key, draw(key)))[1]


def _numbers(name: str, value: Any, shape: tuple[int, ...] | None = None) -> np.ndarray:
    numbers = np.asarray(value, dtype=float)
    if shape is not None and numbers.shape != shape:
        raise ValueError(f"`{name}` must have shape {shape}, got {numbers.shape}.")
    if not np.all(np.isfinite(numbers)):
        raise ValueError(f"`{name}` must be finite, got {numbers.tolist()}.")
    return numbers


def _start(start: Any, size: int) -> np.ndarray | None:
    return None if start is None else _numbers("start", start, (size,))
