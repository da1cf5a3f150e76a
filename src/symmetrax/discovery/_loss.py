"""The loss of a search: named arrays in double precision, generic points, and a count of evaluations."""

import inspect
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jaxtyping import Array, Key, PyTree

from symmetrax._programs import programs_in
from symmetrax._tree import leaf_names
from symmetrax.discovery._double import InDouble, double_of, tolerances

#: Distance of generic points from the given parameters, relative to the size of each array.
SPREAD = 0.5

#: Arrays below this size, relative to their neighbours, count as zero.
TINY = 1e-6

#: Maximum number of entries along an axis and its indices for which individual scales are searched.
MOST_SCALES = 1 << 16


#: NumPy or JAX arrays by name.
Leaves = dict[str, Any]


class Loss:
    """A loss as a function of the named floating-point arrays of its parameters, with its data.

    It counts its evaluations and computes in double precision (`precision` is the machine epsilon of the
    coarsest part), in a unit that keeps squares in range; `variation` is how much it varies under the noise
    of generic points. `x64` says whether the loss and its data were created with double precision enabled.
    `until` is a time of `time.perf_counter()` after which nothing is affordable.
    Raises a descriptive ValueError if the loss is not a finite, repeatable scalar.

    >>> params, key = {"w": jnp.ones(3)}, jax.random.key(0)
    >>> with jax.enable_x64(True):
    ...     square = Loss(lambda p: jnp.sum(p["w"] ** 2), params, key, None, budget=4, x64=False)
    ...     print(square.gradient(square.leaves, square.batch), square.affords(1))
    (3.0, {'w': array([2., 2., 2.])}) False
    """

    def __init__(
        self,
        loss: Callable,
        params: PyTree,
        key: Key[Array, ""],
        batch: Any,
        budget: int | None,
        *,
        x64: bool,
        until: float | None = None,
    ):
        numbers, self._rest = eqx.partition(params, is_searched)
        arrays, self._structure = jax.tree.flatten(numbers)
        named = dict(zip(leaf_names(numbers), arrays, strict=True))
        #: Shapes and dtypes of the given arrays.
        self.given = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in named.items()}
        self.leaves: dict[str, np.ndarray] = {
            path: np.asarray(leaf).astype(double_of(leaf.dtype)) for path, leaf in named.items()
        }
        rest = zip(leaf_names(self._rest), jax.tree.leaves(self._rest), strict=True)
        self.skipped = tuple(name for name, leaf in rest if isinstance(leaf, jax.Array | np.ndarray))
        self._x64, self._pool, self._sizes = x64, np.zeros(0, np.float32), noise_sizes(self.leaves)
        self._draw = batch if callable(batch) else None
        self.batch = batch if self._draw is None else self.fresh(key)
        takes_batch = batch is not None or _needs_batch(loss)
        self.unit = self.variation = 1.0

        def value(leaves: list[Array], rest: PyTree, batch: PyTree) -> Array:
            tree = eqx.combine(jax.tree.unflatten(self._structure, leaves), rest)
            return loss(tree, batch) if takes_batch else loss(tree)

        self.evaluations, self._budget, self._until, self._plain = 0, budget, until, value
        self._check_scalar(value)
        #: Why the loss cannot be evaluated in double precision; empty if it can.
        self.narrow = self._choose(value)
        self.start = self._check_value()

    def affords(self, evaluations: int) -> bool:
        """Whether the budget allows this many more evaluations, and there is time for any."""
        return self.in_time and (self._budget is None or self.evaluations + evaluations <= self._budget)

    @property
    def in_time(self) -> bool:
        """Whether there is time for another evaluation."""
        return self._until is None or time.perf_counter() < self._until

    def fresh(self, key: Key[Array, ""]) -> Any:
        """Draws other data, or returns None if the loss has only one batch."""
        if self._draw is None:
            return None
        with jax.enable_x64(self._x64):
            return self._draw(key)

    def value(self, leaves: Leaves, batch: Any) -> float:
        self.evaluations += 1
        return float(self._call(self._value, leaves, batch)) / self.unit

    def gradient(self, leaves: Leaves, batch: Any) -> tuple[float, dict[str, np.ndarray]]:
        """Returns the loss and its gradient, as NumPy arrays by name."""
        self.evaluations += 1
        value, gradient = self._call(self._value_and_gradient, leaves, batch)
        taken = [np.asarray(g).astype(double_of(g.dtype), copy=False) for g in gradient]
        taken = taken if self.unit == 1.0 else [g / self.unit for g in taken]
        return float(value) / self.unit, dict(zip(self.leaves, taken, strict=True))

    def apart(self, value: float, other: float) -> float:
        """Distance between two losses, relative to how much the loss varies.

        If the loss has an offset so large that rounding exceeds this, the distance is relative to the visible
        scale instead.
        """
        # Rounding of a loss is relative to the loss, which an offset makes much larger than its variation.
        seen = 10 * self.precision / tolerances(self.precision)[0] * max(abs(value), abs(other))
        return abs(value - other) / max(self.variation, seen)

    def program(self) -> ClosedJaxpr:
        """The traced program of the loss in its own precision; its inputs are all arrays, then the data."""
        data, static = eqx.partition((self._rest, self.batch), eqx.is_array)

        def plain(leaves: list[Array], data: PyTree) -> Array:
            return self._plain(leaves, *eqx.combine(data, static))

        with jax.enable_x64(self._x64):
            like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), data)
            return jax.make_jaxpr(plain)([*self.given.values()], like)

    def generic(self, rng: np.random.Generator, spread: float = SPREAD) -> dict[str, np.ndarray]:
        """Adds noise of `spread` times its size to each array, or its neighbours' size if it is almost zero.

        Positive arrays, such as variances and temperatures, stay positive.

        At zeros and ones a loss has relations that hold nowhere else. The noise of every point is a window
        into one long pool of normal numbers, because drawing new ones would take longer than a gradient.
        """
        self.prepare(rng)
        start = int(rng.integers(MOST_SCALES))
        moved = {}
        for path, leaf in self.leaves.items():
            parts = 2 if np.iscomplexobj(leaf) else 1
            drawn = self._pool[start : start + parts * leaf.size].reshape(parts, *leaf.shape)
            noise, start = drawn[0] if parts == 1 else drawn[0] + 1j * drawn[1], start + drawn.size
            # A negative variance has no square root: the loss would not be finite there.
            if _is_positive(leaf):
                moved[path] = leaf * np.exp(spread * noise)
            else:
                moved[path] = leaf + spread * self._sizes[path] * noise
        return moved

    def prepare(self, rng: np.random.Generator) -> None:
        """Draws the noise of all points, if it is not there yet."""
        total = sum(leaf.size * (2 if np.iscomplexobj(leaf) else 1) for leaf in self.leaves.values())
        # Single precision is enough for noise, and halves the memory of the pool.
        if not len(self._pool):
            self._pool = rng.standard_normal(total + MOST_SCALES, np.float32)

    def settle(self, leaves: Leaves, gradient: Leaves) -> float:
        """Chooses the unit from a first gradient; returns the factor by which losses change from now on.

        It is 1 unless squares would overflow or underflow in double precision.
        """
        effect = max(float(np.max(np.abs(gradient[path] * leaf))) for path, leaf in leaves.items())
        extreme = effect > 0 and not 1e-100 < effect < 1e100
        # A power of two, so that changing the unit rounds nothing.
        factor = 2.0 ** -np.clip(np.round(np.log2(effect)), -1000, 1000) if extreme else 1.0
        self.unit, self.start = self.unit / factor, self.start * factor
        return factor

    def sizes(self) -> dict[str, float]:
        """The length of each array, or the length of its noise if the array is almost zero."""
        return {path: size * np.sqrt(self.leaves[path].size) for path, size in self._sizes.items()}

    def placed(self, leaves: dict[str, np.ndarray]) -> dict[str, Array]:
        """Converts to JAX arrays, so that a point that is used often is copied only once."""
        return {path: jnp.asarray(leaf) for path, leaf in leaves.items()}

    def _call(self, program: Callable, leaves: Leaves, batch: Any) -> Any:
        if not self.narrow:
            return program([jnp.asarray(leaf) for leaf in leaves.values()], self._rest, batch)
        # In the user's own mode and dtypes, since the program was not widened.
        with jax.enable_x64(self._x64):
            given = [np.asarray(leaf).astype(self.given[path].dtype) for path, leaf in leaves.items()]
            return program([jnp.asarray(leaf) for leaf in given], self._rest, batch)

    def _choose(self, value: Callable) -> str:
        """Compiles the loss in double precision or, if that fails, unchanged, and returns the reason."""
        self.narrow = ""
        dtypes = [x.dtype for x in self.given.values()]
        programs = [InDouble(fun, dtypes, x64=self._x64) for fun in (value, eqx.filter_value_and_grad(value))]
        self._value, self._value_and_gradient = (eqx.filter_jit(program) for program in programs)
        try:
            # Only the program with the gradient: many searches need no other, and compiling takes long.
            self.gradient(self.leaves, self.batch)
        except Exception as error:  # a program can fail in many ways when its dtypes are widened
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
        else:
            self.precision = programs[1].precision
            return ""
        self._value = eqx.filter_jit(value)
        self._value_and_gradient = eqx.filter_jit(eqx.filter_value_and_grad(value))
        with jax.enable_x64(self._x64):
            whole = jax.make_jaxpr(lambda leaves: value(leaves, self._rest, self.batch))(
                [*self.given.values()]
            )
        self.precision = max(float(jnp.finfo(dtype).eps) for dtype in _dtypes(whole.jaxpr))
        # Counted as in double precision, however far the failed attempt came, so that costs stay exact.
        self.evaluations = 1
        return reason

    def _check_scalar(self, value: Callable) -> None:
        for path, leaf in self.leaves.items():
            if not np.all(np.isfinite(leaf)):
                raise ValueError(f"Cannot look for symmetries at parameters that are not finite: see {path}.")
        with jax.enable_x64(self._x64):
            out = eqx.filter_eval_shape(value, [*self.given.values()], self._rest, self.batch)
        shape = getattr(out, "shape", None)
        if shape != () or not jnp.issubdtype(out.dtype, jnp.floating):
            kind = f"shape {shape} and dtype {out.dtype}" if shape is not None else type(out).__name__
            raise ValueError(
                f"The loss must return one real number, an array of shape () of floats; it returns {kind}. "
                "Take a mean or a sum."
            )

    def _check_value(self) -> float:
        first, second = (self.gradient(self.leaves, self.batch)[0] for _ in range(2))
        # The two are compiled from one program, so that even rounding is the same unless it draws numbers.
        if first != second and not (np.isnan(first) and np.isnan(second)):
            raise ValueError(
                f"The loss is random: two calls at the same parameters gave {first} and {second}. Close over "
                "a fixed key, switch dropout off, or pass random numbers in `batch`."
            )
        if not np.isfinite(first):
            raise ValueError(f"The loss at `params` is {first}: symmetries need a finite one.")
        return first


def is_searched(leaf: Any) -> bool:
    """Whether a leaf is an array in which symmetries are searched for: floating-point and not empty.

    >>> is_searched(jnp.ones(2)), is_searched(jnp.zeros((0, 2))), is_searched(jnp.arange(2))
    (True, False, False)
    """
    return eqx.is_inexact_array(leaf) and leaf.size > 0


def noise_sizes(leaves: Leaves) -> dict[str, float]:
    """The root mean square of each array or, if that is almost zero, of its neighbours.

    The neighbours of an array are those that share the longest prefix of its path, preferably matrices: noise
    on a bias is as large as on the weights next to it.

    >>> noise_sizes({"a.w": np.full((2, 2), 0.02), "a.b": np.zeros(2), "c": np.full((2, 2), 4.0)})
    {'a.w': 0.02, 'a.b': 0.02, 'c': 4.0}
    """
    own = {path: float(np.sqrt(np.mean(np.abs(leaf) ** 2))) for path, leaf in leaves.items()}
    return {
        path: size if size > (other := _beside(path, leaves, own)) * TINY else other
        for path, size in own.items()
    }


def _beside(path: str, leaves: Leaves, own: dict[str, float]) -> float:
    parts = path.split(".")
    for shared in reversed(range(len(parts))):
        near = [p for p in own if p != path and own[p] > 0 and p.split(".")[:shared] == parts[:shared]]
        if near:
            return float(np.median([own[p] for p in near if leaves[p].ndim > 1] or [own[p] for p in near]))
    return 1 / np.sqrt(max(leaves[path].shape, default=1))


def _is_positive(leaf: np.ndarray) -> bool:
    """Whether all entries of an array are positive real numbers."""
    return not np.iscomplexobj(leaf) and bool(np.all(leaf > 0))


def _needs_batch(loss: Callable) -> bool:
    """Whether a loss cannot be called with the parameters alone."""
    try:
        parameters = inspect.signature(loss).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = (p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))
    return sum(p.default is p.empty for p in positional) > 1


def _dtypes(jaxpr: Jaxpr) -> set:
    """The dtypes of all floating-point numbers in a program, except constants."""
    made = [equation for equation in jaxpr.eqns if not all(isinstance(x, Literal) for x in equation.invars)]
    values = [*jaxpr.invars, *(value for equation in made for value in equation.outvars)]
    dtypes = {getattr(value.aval, "dtype", None) for value in values}
    found = {dtype for dtype in dtypes if dtype is not None and jnp.issubdtype(dtype, jnp.inexact)}
    for equation in jaxpr.eqns:
        for inner in programs_in(equation):
            found |= _dtypes(inner)
    return found
