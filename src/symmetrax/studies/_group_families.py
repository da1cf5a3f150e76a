"""Task families with other symmetries than rotations of the plane: SO(n), positive scalings, permutations.

All are sums of squares with the least value 0. The linear maps in them have singular values in [1/3.2, 3.2]
in any dimension: of a Gaussian matrix the condition number grows with n, and the tasks with it.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from symmetrax._text import near_match
from symmetrax._tree import relative
from symmetrax.groups._diagonal import Permutation, PositiveDiagonal
from symmetrax.groups._matrices import matvec
from symmetrax.symmetry._base import AbstractLieSymmetry, AbstractSymmetry, Precondition
from symmetrax.symmetry._maps import AbstractMap
from symmetrax.symmetry._network import NetworkSymmetry
from symmetrax.tasks._base import AbstractTask, AbstractTaskFamily
from symmetrax.tasks._plane import SumOfSquares

#: Singular values are exp(U[-SPREAD, SPREAD]): the condition number is at most 10, that of a Hessian 100.
SPREAD = float(np.log(10.0)) / 2


class Invertible(AbstractMap):
    """h(x) = matrix @ x + offset, with `back` the inverse of the matrix: nothing is ever solved.

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


def orthogonal(key: Key[Array, ""], size: int) -> Float[Array, "n n"]:
    """A uniformly random orthogonal matrix (up to reflection), as a product of reflections: no LAPACK.

    The k-th reflects along a Gaussian vector whose first k entries are zero. Source: Stewart 1980.

    >>> q = orthogonal(jax.random.key(0), 5)
    >>> bool(jnp.allclose(q @ q.T, jnp.eye(5), atol=1e-5))
    True
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
    u, v = orthogonal(left, size), orthogonal(right, size)
    scales = jnp.exp(jax.random.uniform(stretch, (size,), minval=-SPREAD, maxval=SPREAD))
    matrix, back = (jnp.matmul(*pair, precision="highest") for pair in ((u * scales, v), (v.T / scales, u.T)))
    return Invertible(matrix, back, jax.random.normal(shift, (size,)))


class PlaneTurns(AbstractLieSymmetry):
    """Rotations pulled back through `map`, in the planes of coordinates 1 and 2, 3 and 4, ...: a torus.

    Of the n(n-1)/2 angles of SO(n) only floor(n/2), one for each plane, which do not mix; elements are
    those angles. What it leaves out is every rotation that carries something from one plane to another.

    >>> import symmetrax as sx
    >>> task = SumOfSquares(draw_map(jax.random.key(0), 5))
    >>> symmetry, x = PlaneTurns(task.map), jnp.arange(5.0)
    >>> there = symmetry.act(symmetry.exp(jnp.array([1.0, -2.0])), x)
    >>> bool(jnp.allclose(task.loss(there), task.loss(x), rtol=1e-4))
    True
    """

    linear: ClassVar[bool] = False
    reasons: ClassVar[tuple[str, ...]] = ("holds",)

    map: AbstractMap

    @property
    def algebra(self) -> tuple[int, ...]:
        return (self.map.size // 2,)

    def identity(self) -> Float[Array, " k"]:
        return jnp.zeros(self.algebra)

    def compose(self, a: Float[Array, " k"], b: Float[Array, " k"]) -> Float[Array, " k"]:
        return a + b

    def inverse(self, a: Float[Array, " k"]) -> Float[Array, " k"]:
        return -a

    def sample(self, key: Key[Array, ""]) -> Float[Array, " k"]:
        return jax.random.uniform(key, self.algebra, minval=-jnp.pi, maxval=jnp.pi)

    def exp(self, coordinates: Float[Array, " k"]) -> Float[Array, " k"]:
        return coordinates

    def bounded(self, coordinates: Float[Array, " k"], bound: float | Array) -> Float[Array, " k"]:
        return coordinates

    def act(self, a: Float[Array, " k"], params: Float[Array, " n"], batch: PyTree = None) -> Array:
        u = self.map(params)
        paired = 2 * len(a)
        x, y = u[0:paired:2], u[1:paired:2]
        turned = jnp.stack([jnp.cos(a) * x - jnp.sin(a) * y, jnp.sin(a) * x + jnp.cos(a) * y], axis=-1)
        return self.map.inverse(jnp.concatenate([turned.reshape(-1), u[paired:]]))

    def holds(self, params: Float[Array, " n"], batch: PyTree = None) -> Precondition:
        return Precondition(jnp.array(0), relative(self.map.inverse(self.map(params)) - params, params))


class InPlanes(AbstractTask):
    """A sum of squares that is known to have the symmetry `PlaneTurns` alone.

    >>> InPlanes(SumOfSquares(draw_map(jax.random.key(0), 20))).symmetry().algebra
    (10,)
    """

    task: SumOfSquares

    def init(self, key: Key[Array, ""]) -> Float[Array, " n"]:
        return self.task.init(key)

    def batch(self, key: Key[Array, ""]) -> None:
        return None

    def loss(self, params: Float[Array, " n"], batch: None = None) -> Float[Array, ""]:
        return self.task.loss(params)

    def symmetry(self) -> PlaneTurns:
        return PlaneTurns(self.task.map)

    def optimum(self) -> Float[Array, " n"]:
        return self.task.optimum()


class RotationFamily(AbstractTaskFamily):
    """Tasks f(x) = ||A x + b||^2 in n dimensions, from `draw_map`, started at N(0, I).

    Their symmetry is SO(n), or with `planes` the torus of `PlaneTurns`.

    >>> family = RotationFamily("mine", 5)
    >>> family.task(family.draw(jax.random.key(0))).symmetry().algebra
    (10,)
    """

    name: str = eqx.field(static=True)
    size: int = eqx.field(static=True)
    planes: bool = eqx.field(static=True, default=False)

    def draw(self, key: Key[Array, ""]) -> Invertible:
        return draw_map(key, self.size)

    def task(self, drawn: Invertible, shape: None = None) -> SumOfSquares | InPlanes:
        task = SumOfSquares(drawn)
        return InPlanes(task) if self.planes else task


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


_KINDS: dict[str, Any] = {
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
    if kind not in _KINDS or not size.isdecimal() or int(size) < 2:
        raise ValueError(
            f'A family is one of {", ".join(_KINDS)} with a size of at least 2, as "so-5"; '
            f"got {name!r}.{near_match(kind or name, _KINDS)}"
        )
    return _KINDS[kind](name, int(size))


def dimensions(family: AbstractTaskFamily) -> tuple[int, int]:
    """How many parameters the tasks of a family have, and how many coordinates their symmetry's algebra.

    >>> dimensions(group_family("scaling-3"))
    (6, 3)
    """

    def start(key: Key[Array, ""]) -> tuple[PyTree, Array]:
        task = family.task(family.draw(key))
        symmetry = task.symmetry()
        assert isinstance(symmetry, AbstractLieSymmetry)
        return task.init(key), symmetry.zero()

    params, zero = jax.eval_shape(start, jax.random.key(0))
    return sum(x.size for x in jax.tree.leaves(params)), zero.size


def invariance(family: AbstractTaskFamily, key: Key[Array, ""], trials: int) -> float:
    """The largest relative change of the loss, in float64, over random tasks, starts and group elements.

    Elements are exp(N(0, I)), or where the group is discrete its own random ones.

    >>> invariance(group_family("so-5"), jax.random.key(0), 10) < 1e-12
    True
    """

    def one(key: Key[Array, ""]) -> Array:
        draw, start, element = jax.random.split(key, 3)
        task = family.task(family.draw(draw))
        params, symmetry = task.init(start), task.symmetry()
        assert symmetry is not None
        here = task.loss(params)
        there = task.loss(symmetry.act(_element(symmetry, element), params))
        return jnp.abs(there - here) / here

    with jax.enable_x64(True):
        return float(jnp.max(jax.jit(jax.vmap(one))(jax.random.split(key, trials))))


def _element(symmetry: AbstractSymmetry, key: Key[Array, ""]) -> PyTree:
    if isinstance(symmetry, AbstractLieSymmetry) and symmetry.zero().size:
        return symmetry.exp(jax.random.normal(key, symmetry.algebra))
    return symmetry.sample(key)
