"""Gradients of a loss at generic points: what all relations are read off."""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr
from jaxtyping import Array, Key, PyTree

from symmetrax._tree import leaf_names
from symmetrax.discovery._places import Place
from symmetrax.discovery._sites import in_front

#: How far generic points are from the given parameters, relative to the size of each array.
SPREAD = 0.5

#: The most entries along an axis and its indices for which scales are looked for one by one.
MOST_SCALES = 1 << 16


#: Arrays by name, of NumPy or JAX.
Leaves = dict[str, Any]


class Loss:
    """A loss on the floating-point arrays of its parameters, by name, with its data and a count of its calls.

    Raises ValueError, saying what is wrong, if it is not a finite, repeatable scalar.
    """

    def __init__(self, loss: Callable, params: PyTree, key: Key[Array, ""], batch: Any, budget: int | None):
        numbers, self._rest = eqx.partition(params, is_searched)
        arrays, self._structure = jax.tree.flatten(numbers)
        self.leaves: dict[str, np.ndarray] = dict(
            zip(leaf_names(numbers), map(np.asarray, arrays), strict=True)
        )
        rest = zip(leaf_names(self._rest), jax.tree.leaves(self._rest), strict=True)
        self.skipped = tuple(name for name, leaf in rest if isinstance(leaf, jax.Array | np.ndarray))
        self._pool = np.zeros(0, np.float32)
        self._draw = batch if callable(batch) else None
        self.batch = batch(key) if callable(batch) else batch
        takes_batch = batch is not None or _needs_batch(loss)

        def value(leaves: list[Array], rest: PyTree, batch: PyTree) -> Array:
            tree = eqx.combine(jax.tree.unflatten(self._structure, leaves), rest)
            return loss(tree, batch) if takes_batch else loss(tree)

        self._value = eqx.filter_jit(value)
        self._value_and_gradient = eqx.filter_jit(eqx.filter_value_and_grad(value))
        self.evaluations, self._budget = 0, budget
        self._check(value)
        jaxpr = jax.make_jaxpr(lambda leaves: value(leaves, self._rest, self.batch))(
            self._arrays(self.leaves)
        )
        #: Machine precision of the coarsest numbers that the loss computes with.
        self.precision = max(float(jnp.finfo(dtype).eps) for dtype in _dtypes(jaxpr.jaxpr))

    def affords(self, evaluations: int) -> bool:
        """Whether the budget has room for so many more."""
        return self._budget is None or self.evaluations + evaluations <= self._budget

    def fresh(self, key: Key[Array, ""]) -> Any:
        """Other data, or None if the loss has only one batch."""
        return None if self._draw is None else self._draw(key)

    def value(self, leaves: Leaves, batch: Any) -> float:
        self.evaluations += 1
        return float(self._value(self._arrays(leaves), self._rest, batch))

    def generic(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """The arrays with noise of half their own size, and of a sensible size where they are all but zero.

        At zeros and ones a loss has relations that it has nowhere else. The noise of all points are stretches
        of one long row of normal numbers: drawing new ones would take longer than a gradient.
        """
        total = sum(leaf.size * (2 if np.iscomplexobj(leaf) else 1) for leaf in self.leaves.values())
        if not len(self._pool):
            self._pool = rng.standard_normal(total + MOST_SCALES, np.float32)
        start = int(rng.integers(MOST_SCALES))
        moved = {}
        for path, leaf in self.leaves.items():
            least = 0.4 / np.sqrt(max(leaf.shape, default=1)) if leaf.ndim > 1 else 0.4
            size = SPREAD * max(float(np.sqrt(np.mean(np.abs(leaf) ** 2))), least)
            parts = 2 if np.iscomplexobj(leaf) else 1
            drawn = self._pool[start : start + parts * leaf.size].reshape(parts, *leaf.shape)
            noise, start = drawn[0] if parts == 1 else drawn[0] + 1j * drawn[1], start + drawn.size
            moved[path] = (leaf + leaf.dtype.type(size) * noise).astype(leaf.dtype)
        return moved

    def gradient(self, leaves: Leaves, batch: Any) -> tuple[float, dict[str, np.ndarray]]:
        """The loss and its gradient, as NumPy arrays by name."""
        self.evaluations += 1
        value, gradient = self._value_and_gradient(self._arrays(leaves), self._rest, batch)
        return float(value), {path: _wide(g) for path, g in zip(self.leaves, gradient, strict=True)}

    def placed(self, leaves: Leaves) -> dict[str, Array]:
        """The arrays as those of JAX: a point that is used often is then copied once."""
        return dict(zip(self.leaves, self._arrays(leaves), strict=True))

    def _arrays(self, leaves: Leaves) -> list[Array]:
        return [jnp.asarray(leaves[path], leaf.dtype) for path, leaf in self.leaves.items()]

    def _check(self, value: Callable) -> None:
        for path, leaf in self.leaves.items():
            if not np.all(np.isfinite(leaf)):
                raise ValueError(f"Cannot look for symmetries at parameters that are not finite: see {path}.")
        out = eqx.filter_eval_shape(value, self._arrays(self.leaves), self._rest, self.batch)
        shape = getattr(out, "shape", None)
        if shape != () or not jnp.issubdtype(out.dtype, jnp.floating):
            kind = f"shape {shape} and dtype {out.dtype}" if shape is not None else type(out).__name__
            raise ValueError(
                f"The loss must return one real number, an array of shape () of floats; it returns {kind}. "
                "Take a mean or a sum."
            )
        first, second = (self.value(self.leaves, self.batch) for _ in range(2))
        if first != second and not (np.isnan(first) and np.isnan(second)):
            raise ValueError(
                f"The loss is random: two calls at the same parameters gave {first} and {second}. Close over "
                "a fixed key, switch dropout off, or pass random numbers in `batch`."
            )
        if not np.isfinite(first):
            raise ValueError(f"The loss at `params` is {first}: symmetries need a finite one.")


def is_searched(leaf: Any) -> bool:
    """Whether a leaf is an array in which symmetries are looked for: of floats, and not empty.

    >>> is_searched(jnp.ones(2)), is_searched(jnp.zeros((0, 2))), is_searched(jnp.arange(2))
    (True, False, False)
    """
    return eqx.is_inexact_array(leaf) and leaf.size > 0


def _wide(leaf: Any) -> np.ndarray:
    """An array of NumPy, in single precision at least: NumPy multiplies no shorter matrices."""
    leaf = np.asarray(leaf)
    return leaf.astype(np.float32) if leaf.dtype.itemsize < 4 else leaf


def _needs_batch(loss: Callable) -> bool:
    """Whether a loss cannot be called with the parameters alone."""
    try:
        parameters = inspect.signature(loss).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = (p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))
    return sum(p.default is p.empty for p in positional) > 1


def _dtypes(jaxpr: Jaxpr) -> set:
    """Types of all floating-point numbers in a program: a loss in double may compute parts in single."""
    values = [*jaxpr.invars, *(value for equation in jaxpr.eqns for value in equation.outvars)]
    dtypes = {getattr(value.aval, "dtype", None) for value in values}
    found = {dtype for dtype in dtypes if dtype is not None and jnp.issubdtype(dtype, jnp.inexact)}
    for equation in jaxpr.eqns:
        for inner in jax.tree.leaves([*equation.params.values()]):
            if isinstance(inner, ClosedJaxpr | Jaxpr):
                found |= _dtypes(inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner)
    return found


@dataclasses.dataclass(frozen=True)
class Point:
    """Parameters and the gradient there, by name."""

    leaves: dict[str, np.ndarray]
    gradient: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Measured:
    """Gradients at generic points: all of them at the first few, products with the parameters at all.

    `products` has for every place the sums of gradient times parameter over all other axes, of shape (points,
    indices, length); `sizes` the squared length of such products for every array, of shape (points,). `idle`
    arrays do not change the loss.
    """

    points: list[Point]
    products: dict[Place, np.ndarray]
    sizes: dict[str, np.ndarray]
    idle: tuple[str, ...]


def measure(
    loss: Loss, places: Sequence[Place], rng: np.random.Generator, *, count: int, whole: int
) -> Measured:
    """The gradient at `count` generic points, kept as a whole at the first `whole` of them."""
    kept: list[Point] = []
    listed = [p for p in places if p.length * int(np.prod(p.leads)) <= MOST_SCALES]
    products: list[list[np.ndarray]] = []
    lengths: list[np.ndarray] = []
    effects = dict.fromkeys(loss.leaves, 0.0)
    for number in range(count):
        leaves = loss.generic(rng)
        value, gradient = loss.gradient(leaves, loss.batch)
        product = {path: np.real(gradient[path] * leaves[path]) for path in leaves}
        sizes = np.array([np.sum(np.square(terms), dtype=float) for terms in product.values()])
        if not np.isfinite(value) or not np.all(np.isfinite(sizes)):
            raise ValueError(
                f"The loss or its gradient is not finite near `params` (loss {value} at distance {SPREAD} of "
                "their size): symmetries are looked for at generic points around them. Start from parameters "
                "where it is smooth."
            )
        if number < whole:
            kept.append(Point({path: _wide(leaf) for path, leaf in leaves.items()}, gradient))
        for path, size in zip(effects, sizes, strict=True):
            effects[path] = max(effects[path], float(np.sqrt(size)) / max(abs(value), np.finfo(float).tiny))
        products.append([_along(place, product[place.path]) for place in listed])
        lengths.append(sizes)
    least = min(30 * loss.precision, 1e-4)
    idle = tuple(path for path, effect in effects.items() if effect < least)
    if len(idle) == len(effects):
        raise ValueError(
            "The loss does not depend on `params`: its gradient is zero at all generic points around them."
        )
    by_place = {place: np.stack([row[k] for row in products]) for k, place in enumerate(listed)}
    by_path = dict(zip(effects, np.transpose(lengths), strict=True))
    return Measured(kept, by_place, by_path, idle)


def _along(place: Place, terms: np.ndarray) -> np.ndarray:
    """Sums over all axes but a place's own: (indices, length)."""
    return in_front(terms.reshape(place.shape), place.lead, place.axis).sum(axis=-1).astype(float)
