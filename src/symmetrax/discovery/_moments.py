"""Moments G W^T of gradients and parameters along axes, sampled identically on all sites of a shape."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from symmetrax.discovery._leaves import Leaves
from symmetrax.discovery._memory import GATHERED
from symmetrax.discovery._points import Measured, Point
from symmetrax.discovery._relations import Columns
from symmetrax.discovery._sites import Shape, Site

#: Numbers of units and index values that are compared, and of pairs in total; more add no information.
UNITS, BLOCKS, PAIRS = 6, 32, 400

#: Number of rows per column of a null space.
ROWS = 1.5


def points_needed(shape: Shape, sites: int) -> int:
    """Number of gradients that determine the matrix groups of one shape on this many sites.

    >>> points_needed(((), 8), sites=4), points_needed(((), 2), sites=4)  # small matrices have few pairs
    (1, 14)
    """
    return math.ceil((ROWS * sites + 8) / rows(shape, 1))


def rows(shape: Shape, points: int) -> int:
    """Number of equations for matrices of one shape from this many gradients.

    >>> rows(((), 8), points=1), rows(((2,), 4), points=1)
    (28, 12)
    """
    blocks, units = _sampled(shape)
    return points * blocks * units * (units - 1) // 2


def _sampled(shape: Shape) -> tuple[int, int]:
    """Numbers of index values, and of units at each, to sample: about `PAIRS` pairs of units."""
    count, size = int(np.prod(shape[0])), shape[1]
    units = min(size, max(UNITS, math.ceil(math.sqrt(2 * PAIRS / min(count, BLOCKS)))))
    return min(count, max(BLOCKS, 2 * PAIRS // (units * (units - 1)))), units


def _spread_out(size: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Random indices below `size`, one from each of `count` equal parts; all indices if there are no more."""
    count = min(size, count)
    # One from each part: neighbours along an axis are often alike, as the pixels of an image are.
    edges = np.arange(count + 1) * size // count
    return rng.integers(edges[:-1], edges[1:])


class Products:
    """Moments G W^T of all axes at all points, computed once each, as a whole, up to `most` bytes.

    Beyond them, only samples are computed.

    >>> point = Point({"w": np.eye(2)}, {"w": np.array([[1.0, 2.0], [3.0, 4.0]])})
    >>> products = Products(Measured([point], {}, {}, {}, (), ()))
    >>> products.entries(Site("w", (2, 2), 0, 2, stride=2), 1, np.array([0]), np.array([0, 1])).tolist()
    [[[[1.0, 2.0], [3.0, 4.0]]]]
    """

    def __init__(self, measured: Measured, most: int = GATHERED):
        self.points, self._most = measured.points, most // 8
        self._size = 0
        self._kept: dict[tuple, np.ndarray] = {}

    def entries(self, site: Site, count: int, blocks: np.ndarray, units: np.ndarray) -> np.ndarray:
        """The moments at the first `count` points, at some index values, between some units.

        The shape is (points, blocks, units, units).
        """
        # Beyond the memory only the sampled slices are multiplied, anew for every site.
        if not self._fits(site, count):
            pairs = (
                self._pair(point, lambda x: site.gather(x[site.path], blocks, units))
                for point in self.points[:count]
            )
            return np.stack([np.real(g @ w.swapaxes(-1, -2)) for g, w in pairs])

        def whole(point: Point) -> np.ndarray:
            g, w = self._pair(point, lambda x: site.in_front(x[site.path]))
            return np.real(g @ w.swapaxes(-1, -2))

        kept, (outer, at) = self._taken(site, count, "moments", whole), site.sampled(blocks, units)
        return kept[:, outer[:, None, None, None], at[:, :, None], at[:, None]].sum(axis=-1)

    def sizes(self, site: Site, count: int, blocks: np.ndarray, units: np.ndarray) -> np.ndarray:
        """Expected squares of these entries if gradient and parameter are unrelated."""

        def whole(point: Point) -> np.ndarray:
            g, w = self._pair(point, lambda x: site.in_front(np.abs(x[site.path]) ** 2))
            return np.stack([g.sum(axis=-1), w.sum(axis=-1) / w.shape[-1]])

        kept, (outer, at) = self._taken(site, count, "sizes", whole), site.sampled(blocks, units)
        g, w = kept[:, :, outer[:, None, None], at].swapaxes(0, 1)
        return (g[:, :, :, None] * w[:, :, None]).sum(axis=-1)

    def _fits(self, site: Site, count: int) -> bool:
        """Whether the moments of the whole axis at this many points are cached, or may be."""
        done = len(self._kept.get((site.path, site.axis, site.lead, "moments"), ()))
        each = site.length**2 * int(np.prod([length for _, length in site.lead]))
        return count <= done or self._size + (count - done) * each <= self._most

    @staticmethod
    def _pair(point: Point, part: Callable[[Leaves], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        return part(point.gradient), part(point.leaves)

    def _taken(self, site: Site, count: int, what: str, whole: Callable[[Point], np.ndarray]) -> np.ndarray:
        """Evaluates `whole` at the first points, cached for all sites on this axis."""
        key = (site.path, site.axis, site.lead, what)
        kept = self._kept.get(key)
        done = 0 if kept is None else len(kept)
        if done < count:
            more = np.stack([whole(point) for point in self.points[done:count]])
            self._kept[key] = more if kept is None else np.concatenate([kept, more])
            self._size += more.size
        return self._kept[key][:count]


class Moments:
    """Moments of one shape on many sites, at some index values and units.

    >>> point = Point({"w": np.eye(2)}, {"w": np.array([[1.0, 2.0], [3.0, 4.0]])})
    >>> products = Products(Measured([point], {}, {}, {}, (), ()))
    >>> sites = [Site("w", (2, 2), 0, 2, stride=2), Site("w", (2, 2), 1, 2, stride=2)]
    >>> Moments(products, ((), 2), sites, np.random.default_rng(0)).antisymmetric().values.tolist()
    [[-1.0, 1.0]]
    """

    def __init__(self, products: Products, shape: Shape, sites: Sequence[Site], rng: np.random.Generator):
        per, size = shape
        self.sites = sites
        count = min(len(products.points), points_needed(shape, len(sites)))
        blocks, units = _sampled(shape)
        self.units = _spread_out(size, units, rng)
        self.blocks = _spread_out(int(np.prod(per)), blocks, rng)
        at = self.blocks, self.units
        self.values = [products.entries(site, count, *at) for site in sites]
        self.squares = [products.sizes(site, count, *at) for site in sites]

    def antisymmetric(self) -> Columns:
        """The moments for rotations: M - M^T, above the diagonal."""
        rows, columns = np.triu_indices(len(self.units), 1)
        return self._columns(lambda m: m - m.swapaxes(-1, -2), rows, columns)

    def symmetric(self, specs: Sequence[int]) -> Columns:
        """The moments for symmetric generators: M + M^T, including the diagonal."""
        rows, columns = np.triu_indices(len(self.units))
        return self._columns(lambda m: m + m.swapaxes(-1, -2), rows, columns, specs)

    def trace(self, specs: Sequence[int]) -> Columns:
        """The moments for scales shared by a block."""
        sums = [
            (np.einsum("pbii->pb", self.values[k]), np.einsum("pbii->pb", self.squares[k])) for k in specs
        ]
        return stacked([(value.ravel(), np.sqrt(square.sum())) for value, square in sums])

    def _columns(self, part, rows, columns, specs=None) -> Columns:
        chosen = range(len(self.sites)) if specs is None else specs
        return stacked(
            [
                (
                    part(self.values[k])[..., rows, columns].ravel(),
                    # The squares count every pair twice, as `part` does.
                    np.sqrt((self.squares[k] + self.squares[k].swapaxes(-1, -2))[..., rows, columns].sum()),
                )
                for k in chosen
            ]
        )


def stacked(parts: Sequence[tuple[np.ndarray, float]]) -> Columns:
    """Stacks columns side by side, from pairs of a column and its scale.

    >>> stacked([(np.array([1.0, 2.0]), 4.0), (np.array([0.0, 1.0]), 1.0)]).normalized().tolist()
    [[0.25, 0.0], [0.5, 1.0]]
    """
    return Columns(np.stack([value for value, _ in parts], axis=1), np.array([scale for _, scale in parts]))
