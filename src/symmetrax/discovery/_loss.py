"""The loss of a search: named arrays in double precision, generic points, and a count of evaluations."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr
from jaxtyping import Array, Key, PyTree

from symmetrax._tree import leaf_names
from symmetrax.discovery._compiled import compiled, dtypes_in, fitting, needs_batch
from symmetrax.discovery._double import InDouble, double_of, tolerances
from symmetrax.discovery._leaves import Lazy, Leaves, Noise, is_positive, is_searched, noise_sizes, widened
from symmetrax.discovery._memory import Memory
from symmetrax.groups._diagonal import AbstractGroup

#: Distance of generic points from the given parameters, relative to the size of each array.
SPREAD = 0.5


class Loss:
    """A loss as a function of the named floating-point arrays of its parameters, with its data.

    It counts its evaluations and computes in double precision (`precision` is the machine epsilon of the
    coarsest part), in a unit that keeps squares in range; `variation` is how much it varies under the noise
    of generic points. `x64` says whether the loss and its data were created with double precision enabled.
    `until` is a time of `time.perf_counter()` after which nothing is affordable. `memory` decides whether it
    is `lean`: then arrays are made when they are read, and gradients overwrite the arrays of their point.
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
        memory: Memory | None = None,
    ):
        numbers, self._rest = eqx.partition(params, is_searched)
        arrays, self._structure = jax.tree.flatten(numbers)
        named = dict(zip(leaf_names(numbers), arrays, strict=True))
        #: Shapes and dtypes of the given arrays.
        self.given = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in named.items()}
        # Widened when they are read: parameters are mostly given in single precision.
        self.leaves = Lazy({path: partial(widened, leaf) for path, leaf in named.items()})
        rest = zip(leaf_names(self._rest), jax.tree.leaves(self._rest), strict=True)
        self.skipped = tuple(name for name, leaf in rest if isinstance(leaf, jax.Array | np.ndarray))
        self._x64, self._sizes, self._noise = x64, noise_sizes(self.leaves), None
        self._positive = {path for path, leaf in self.leaves.items() if is_positive(leaf)}
        self._memory, self.lean = memory or Memory(None, 0, 0, 0), False
        self._draw = batch if callable(batch) else None
        self.batch = batch if self._draw is None else self.fresh(key)
        takes_batch = batch is not None or needs_batch(loss)
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
        taken: dict[str, np.ndarray] = {}
        for path in reversed(self.given):
            wide = np.asarray(part := gradient.pop()).astype(double_of(part.dtype), copy=False)
            taken[path] = wide if self.unit == 1.0 else wide / self.unit
        return float(value) / self.unit, {path: taken[path] for path in self.given}

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

    def generic(self, rng: np.random.Generator, spread: float = SPREAD) -> Leaves:
        """Adds noise of `spread` times its size to each array, or its neighbours' size if it is almost zero.

        Positive arrays, such as variances and temperatures, stay positive.

        At zeros and ones a loss has relations that hold nowhere else.
        """
        noise = self.prepare(rng)
        parts = [
            (2,) if np.issubdtype(like.dtype, np.complexfloating) else () for like in self.given.values()
        ]
        shapes = [(*two, *like.shape) for two, like in zip(parts, self.given.values(), strict=True)]
        windows = zip(self.given, noise.windows(shapes, rng), strict=True)
        made = Lazy({path: partial(self._moved, path, window, spread) for path, window in windows})
        return made if self.lean else dict(made)

    def _moved(self, path: str, window: Callable[[], np.ndarray], spread: float) -> np.ndarray:
        leaf, noise = self.leaves[path], window()
        if np.iscomplexobj(leaf):
            noise = noise[0] + 1j * noise[1]
        # A negative variance has no square root: the loss would not be finite there.
        if path in self._positive:
            return leaf * np.exp(spread * noise)
        return leaf + spread * self._sizes[path] * noise

    def prepare(self, rng: np.random.Generator) -> Noise:
        """Draws the noise of all points, if it is not there yet."""
        if self._noise is None:
            kinds = ((like.size, like.dtype) for like in self.given.values())
            total = sum(size * (1 + np.issubdtype(dtype, np.complexfloating)) for size, dtype in kinds)
            self._noise = Noise(total, rng)
        return self._noise

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

    def allows(self, groups: list[AbstractGroup]) -> bool:
        """Whether the memory allows random elements of these groups at once."""
        return self._memory.allows(groups)

    def sizes(self) -> dict[str, float]:
        """The length of each array, or the length of its noise if the array is almost zero."""
        return {path: size * np.sqrt(self.given[path].size) for path, size in self._sizes.items()}

    def placed(self, leaves: Leaves) -> dict[str, Array]:
        """Converts to JAX arrays, so that a point that is used often is copied only once."""
        return {path: jnp.asarray(leaf) for path, leaf in leaves.items()}

    def _call(self, program: Callable, leaves: Leaves, batch: Any) -> Any:
        if not self.narrow:
            # The program overwrites what it is given if it is lean, and so gets copies of its own.
            made = jnp.array if self.lean else jnp.asarray
            return program((self._rest, batch), [made(leaf) for leaf in leaves.values()])
        # In the user's own mode and dtypes, since the program was not widened.
        with jax.enable_x64(self._x64):
            given = [np.asarray(leaf).astype(self.given[path].dtype) for path, leaf in leaves.items()]
            return program((self._rest, batch), [jnp.asarray(leaf) for leaf in given])

    def _choose(self, value: Callable) -> str:
        """Compiles the loss in double precision or, if that fails, unchanged, and returns the reason."""
        self.narrow = ""
        dtypes = [x.dtype for x in self.given.values()]
        programs = [InDouble(fun, dtypes, x64=self._x64) for fun in (value, eqx.filter_value_and_grad(value))]
        like = [jax.ShapeDtypeStruct(x.shape, double_of(x.dtype)) for x in self.given.values()]
        self._value = compiled(programs[0])
        self._value_and_gradient, self.lean = fitting(
            programs[1], (self._rest, self.batch), like, self._memory
        )
        try:
            # Only the program with the gradient: many searches need no other, and compiling takes long.
            self.gradient(self.leaves, self.batch)
        except Exception as error:  # a program can fail in many ways when its dtypes are widened
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
        else:
            self.precision = programs[1].precision
            return ""
        self._value = compiled(value)
        self._value_and_gradient = compiled(eqx.filter_value_and_grad(value))
        with jax.enable_x64(self._x64):
            whole = jax.make_jaxpr(lambda leaves: value(leaves, self._rest, self.batch))(
                [*self.given.values()]
            )
        self.precision = max(float(jnp.finfo(dtype).eps) for dtype in dtypes_in(whole.jaxpr))
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
