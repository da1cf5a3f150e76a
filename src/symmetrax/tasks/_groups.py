"""Task families with other symmetries than rotations of the plane: SO(n), positive scalings, permutations.

All are sums of squares with the least value 0. The linear maps in them have singular values in [1/3.2, 3.2]
in any dimension. Gaussian matrices would not do: their condition number grows with n, and so would the
difficulty of the tasks.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from symmetrax._text import near_match
from symmetrax.groups._diagonal import Permutation, PositiveDiagonal
from symmetrax.groups._matrices import matvec
from symmetrax.symmetry._maps import AbstractMap
from symmetrax.symmetry._network import NetworkSymmetry
from symmetrax.symmetry._plane_rotations import PlaneRotations
from symmetrax.tasks._base import AbstractTask, AbstractTaskFamily
from symmetrax.tasks._plane import SumOfSquares

#: Singular values are exp(U[-SPREAD, SPREAD]): the condition number is at most 10, that of a Hessian 100.
SPREAD = float(np.log(10.0)) / 2


class Invertible(AbstractMap):
    """h(x) = matrix @ x + offset, with `back` the inverse of the matrix, so that no system is ever solved.

    >>> h = Invertible(2 * jnp.eye(3), jnp.eye(3) / 2, jnp.ones(3))
    >>> h.inverse(h(jnp.array([1.0, 2.0, 3.0]))).tolist()
    [1.0, 2.0, 3.0]
    """

    matrix: Float[Array, "n n"]
    back: Float[Array, "n n"]
    offset: Float[Array, " n"]

    @property
    def size(self) -> int:
        return self.offset.shape[0]

    def __call__(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        return matvec(self.matrix, x) + self.offset

    def inverse(self, u: Float[Array, " n"]) -> Float[Array, " n"]:
        return matvec(self.back, u - self.offset)


def _orthogonal(key: Key[Array, ""], size: int) -> Float[Array, "n n"]:
    """A uniformly random orthogonal matrix (up to reflection), as a product of reflections: no LAPACK.

    The k-th reflects along a Gaussian vector whose first k entries are zero. Source: Stewart 1980.
    """
    vectors = jnp.triu(jax.random.normal(key, (size, size)))[:-1]

    def reflect(q: Array, v: Array) -> tuple[Array, None]:
        return q - 2 * jnp.outer(matvec(q, v), v) / jnp.sum(v**2), None

    return jax.lax.scan(reflect, jnp.eye(size, dtype=vectors.dtype), vectors)[0]


def draw_map(key: Key[Array, ""], size: int) -> Invertible:
    """A random map: two uniformly random bases, singular values exp(U[-SPREAD, SPREAD]), offset N(0, I).

    >>> h = draw_map(jax.random.key(0), 4)
    >>> bool(jnp.allclose(h.matrix @ h.back, jnp.eye(4), atol=1e-5))
    True
    """
    left, right, stretch, shift = jax.random.split(key, 4)
    u, v = _orthogonal(left, size), _orthogonal(right, size)
    scales = jnp.exp(jax.random.uniform(stretch, (size,), minval=-SPREAD, maxval=SPREAD))
    matrix, back = (jnp.matmul(*pair, precision="highest") for pair in ((u * scales, v), (v.T / scales, u.T)))
    return Invertible(matrix, back, jax.random.normal(shift, (size,)))


class _InPlanes(AbstractTask):
    """A sum of squares that is known to have the symmetry `PlaneRotations` alone."""

    task: SumOfSquares

    def init(self, key: Key[Array, ""]) -> Float[Array, " n"]:
        return self.task.init(key)

    def batch(self, key: Key[Array, ""]) -> None:
        return None

    def loss(self, params: Float[Array, " n"], batch: None = None) -> Float[Array, ""]:
        return self.task.loss(params)

    def symmetry(self) -> PlaneRotations:
        return PlaneRotations(self.task.map)

    def optimum(self) -> Float[Array, " n"]:
        return self.task.optimum()


class RotationFamily(AbstractTaskFamily):
    """Tasks f(x) = ||A x + b||^2 in n dimensions, from `draw_map`, started at N(0, I).

    Their symmetry is SO(n), or with `planes` the torus of `PlaneRotations`.

    >>> import jax
    >>> family = RotationFamily("mine", 5)
    >>> family.task(family.draw(jax.random.key(0))).symmetry().algebra
    (10,)
    """

    name: str = eqx.field(static=True)
    size: int = eqx.field(static=True)
    planes: bool = eqx.field(static=True, default=False)

    def draw(self, key: Key[Array, ""]) -> Invertible:
        return draw_map(key, self.size)

    def task(self, drawn: Invertible, shape: None = None) -> SumOfSquares | _InPlanes:
        task = SumOfSquares(drawn)
        return _InPlanes(task) if self.planes else task


class Products(AbstractTask):
    """f(u, v) = ||map(u * v)||^2, entry by entry: unchanged by u -> s u, v -> v / s, with a scale for each.

    >>> task = Products(draw_map(jax.random.key(0), 3))
    >>> w = task.init(jax.random.key(1))
    >>> bool(jnp.allclose(task.loss({"u": 2 * w["u"], "v": w["v"] / 2}), task.loss(w)))
    True
    """

    map: AbstractMap

    def init(self, key: Key[Array, ""]) -> dict[str, Array]:
        u, v = jax.random.normal(key, (2, self.map.size))
        return {"u": u, "v": v}

    def batch(self, key: Key[Array, ""]) -> None:
        return None

    def loss(self, params: dict[str, Array], batch: None = None) -> Float[Array, ""]:
        return jnp.sum(jnp.square(self.map(params["u"] * params["v"])))

    def symmetry(self) -> NetworkSymmetry:
        zeros = jnp.zeros(self.map.size)
        group = PositiveDiagonal(self.map.size)
        return NetworkSymmetry({"h": group}, {"u": "h", "v": "h*"}, like={"u": zeros, "v": zeros})


class ProductFamily(AbstractTaskFamily):
    """`Products` with maps from `draw_map`, as many products as its size.

    >>> import jax
    >>> family = ProductFamily("mine", 3)
    >>> family.task(family.draw(jax.random.key(0))).symmetry().algebra
    (3,)
    """

    name: str = eqx.field(static=True)
    size: int = eqx.field(static=True)

    def draw(self, key: Key[Array, ""]) -> Invertible:
        return draw_map(key, self.size)

    def task(self, drawn: Invertible, shape: None = None) -> Products:
        return Products(drawn)


#: Where the networks of `HiddenUnits` are compared with their teachers.
INPUTS = np.linspace(-2.0, 2.0, 10)


class HiddenUnits(AbstractTask):
    """Fit sum_k a_k tanh(w_k s) to a teacher's at ten inputs s: the mean square does not change when hidden
    units, the pairs (w_k, a_k), are permuted.

    >>> teacher = {"w": jnp.ones(4), "a": jnp.ones(4)}
    >>> HiddenUnits(teacher).loss(teacher).item()
    0.0
    """

    teacher: dict[str, Array]

    def init(self, key: Key[Array, ""]) -> dict[str, Array]:
        w, a = jax.random.normal(key, (2, *self.teacher["w"].shape))
        return {"w": w, "a": a}

    def batch(self, key: Key[Array, ""]) -> None:
        return None

    def loss(self, params: dict[str, Array], batch: None = None) -> Float[Array, ""]:
        return jnp.mean(jnp.square(_outputs(params) - _outputs(self.teacher)))

    def symmetry(self) -> NetworkSymmetry:
        return NetworkSymmetry(
            {"h": Permutation(len(self.teacher["w"]))}, {"w": "h", "a": "h"}, like=self.teacher
        )


def _outputs(params: dict[str, Array]) -> Float[Array, " inputs"]:
    inputs = jnp.asarray(INPUTS, params["w"].dtype)
    return jnp.sum(params["a"] * jnp.tanh(inputs[:, None] * params["w"]), axis=-1)


class HiddenUnitFamily(AbstractTaskFamily):
    """`HiddenUnits` with teachers N(0, 1) of as many units as its size; runs start at N(0, 1).

    >>> import jax
    >>> family = HiddenUnitFamily("mine", 4)
    >>> family.task(family.draw(jax.random.key(0))).symmetry().algebra
    (0,)
    """

    name: str = eqx.field(static=True)
    size: int = eqx.field(static=True)

    def draw(self, key: Key[Array, ""]) -> dict[str, Array]:
        w, a = jax.random.normal(key, (2, self.size))
        return {"w": w, "a": a}

    def task(self, drawn: dict[str, Array], shape: None = None) -> HiddenUnits:
        return HiddenUnits(drawn)


#: How families are made, by the kind of their group.
KINDS: dict[str, Any] = {
    "so": lambda name, size: RotationFamily(name, size),
    "torus": lambda name, size: RotationFamily(name, size, planes=True),
    "scaling": ProductFamily,
    "permutation": HiddenUnitFamily,
}


def group_family(name: str) -> AbstractTaskFamily:
    """The family of a kind and a size: "so-5", "torus-10", "scaling-3" or "permutation-4".

    Raises ValueError for other names, and for fewer than two dimensions or units.

    >>> group_family("so-5").name
    'so-5'
    >>> group_family("so")
    Traceback (most recent call last):
    ValueError: A family is one of so, torus, scaling, permutation with a size of at least 2, as "so-5"; ...
    """
    kind, _, size = name.rpartition("-")
    if kind not in KINDS or not size.isdecimal() or int(size) < 2:
        raise ValueError(
            f'A family is one of {", ".join(KINDS)} with a size of at least 2, as "so-5"; '
            f"got {name!r}.{near_match(kind or name, KINDS)}"
        )
    return KINDS[kind](name, int(size))
