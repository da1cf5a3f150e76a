"""The arrays of a search by name, made when they are read, and noise for them."""

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any

import equinox as eqx
import numpy as np

from symmetrax.discovery._double import double_of
from symmetrax.discovery._memory import NOISE

#: Arrays below this size, relative to their neighbours, count as zero.
TINY = 1e-6

#: Maximum number of entries along an axis and its indices for which individual scales are searched.
MOST_SCALES = 1 << 16

#: NumPy or JAX arrays by name.
Leaves = Mapping[str, Any]


class Lazy(Mapping[str, Any]):
    """Arrays that are made anew whenever they are read: copies of large models must not live for long.

    >>> arrays = Lazy({"w": lambda: np.ones(2)})
    >>> arrays["w"] is arrays["w"], dict(arrays)["w"].tolist()
    (False, [1.0, 1.0])
    """

    def __init__(self, made: Mapping[str, Callable[[], Any]]):
        self._made = made

    def __getitem__(self, path: str) -> Any:
        return self._made[path]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)


def replaced(leaves: Leaves, others: Leaves, paths: Collection[str]) -> Leaves:
    """The arrays of `leaves`, but those of `others` at these paths.

    >>> dict(replaced({"a": 1, "b": 2}, {"a": 3, "b": 4}, ["b"]))
    {'a': 1, 'b': 4}
    """
    return Lazy({path: partial((others if path in paths else leaves).__getitem__, path) for path in leaves})


class Noise:
    """Normal numbers for many arrays at many points, as windows into one pool.

    Drawing new numbers for every point would take longer than a gradient. If the arrays have more numbers in
    all than the pool, each gets a window at a random place, which may wrap around.

    >>> noise = Noise(5, np.random.default_rng(0))
    >>> noise.windows([(2,), (3,)], np.random.default_rng(1))[1]().shape
    (3,)
    """

    def __init__(self, total: int, rng: np.random.Generator):
        # A prime number, so that the rows of no matrix meet the same noise again.
        self.long = total * 4 > NOISE
        length = NOISE // 4 - 39 if self.long else total + MOST_SCALES
        # Single precision is enough for noise, and halves the memory of the pool.
        self._pool = rng.standard_normal(length, np.float32)

    def windows(
        self, shapes: list[tuple[int, ...]], rng: np.random.Generator
    ) -> list[Callable[[], np.ndarray]]:
        """Functions that make the noise of arrays of these shapes, without copies where they can."""
        start, found = int(rng.integers(MOST_SCALES)), []
        for shape in shapes:
            if self.long:
                start = int(rng.integers(len(self._pool)))
            found.append(lambda start=start, shape=shape: self._window(start, shape))
            start += int(np.prod(shape))
        return found

    def _window(self, start: int, shape: tuple[int, ...]) -> np.ndarray:
        size, pool = int(np.prod(shape)), self._pool
        if start + size <= len(pool):
            return pool[start : start + size].reshape(shape)
        made, done = np.empty(size, np.float32), 0
        while done < size:
            part = pool[start : start + size - done]
            made[done : done + len(part)] = part
            done, start = done + len(part), 0
        return made.reshape(shape)


def is_searched(leaf: Any) -> bool:
    """Whether a leaf is an array in which symmetries are searched for: floating-point and not empty.

    >>> import jax.numpy as jnp
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


def widened(leaf: Any) -> np.ndarray:
    """An array in double precision, without a copy if it is so already.

    >>> widened(np.ones(2, np.float32)).dtype
    dtype('float64')
    """
    return np.asarray(leaf).astype(double_of(leaf.dtype), copy=False)


def is_positive(leaf: np.ndarray) -> bool:
    """Whether all entries of an array are positive real numbers.

    >>> is_positive(np.ones(2)), is_positive(np.zeros(2))
    (True, False)
    """
    return not np.iscomplexobj(leaf) and bool(np.all(leaf > 0))
