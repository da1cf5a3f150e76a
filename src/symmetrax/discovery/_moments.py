"""Moments G W^T of gradients and parameters along axes, sampled alike on all sites of a shape."""

import math
from collections.abc import Sequence

import numpy as np

from symmetrax.discovery._points import Measured
from symmetrax.discovery._relations import Columns
from symmetrax.discovery._sites import Shape, Site

#: Units and values of the indices that are compared, and pairs of units in all: more tell nothing new.
UNITS, BLOCKS, PAIRS = 6, 32, 400

#: The most entries of the moments of one axis that are computed as a whole.
LARGEST = 1 << 24

#: Rows for every column of a null space.
ROWS = 2


def points_needed(shape: Shape, sites: int) -> int:
    """Gradients that settle the matrix groups of one shape on so many sites."""
    return -(-(ROWS * sites + 8) // rows(shape, 1))


def rows(shape: Shape, points: int) -> int:
    """Equations that so many gradients give for matrices of one shape."""
    blocks, units = _sampled(shape)
    return points * blocks * units * (units - 1) // 2


def _sampled(shape: Shape) -> tuple[int, int]:
    """How many values of the indices, and units at each, are looked at: about `PAIRS` pairs of units."""
    count, size = int(np.prod(shape[0])), shape[1]
    units = min(size, max(UNITS, math.ceil(math.sqrt(2 * PAIRS / min(count, BLOCKS)))))
    return min(count, max(BLOCKS, 2 * PAIRS // (units * (units - 1)))), units


def spread_out(size: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Random indices below `size`, one from each of `count` equal parts; all if there are no more."""
    count = min(size, count)
    edges = np.arange(count + 1) * size // count
    return rng.integers(edges[:-1], edges[1:])


class Products:
    """Moments G W^T of all axes at all points: computed once for each, as a whole."""

    def __init__(self, measured: Measured):
        self.points = measured.points
        self._kept: dict[tuple, np.ndarray] = {}

    def entries(self, site: Site, number: int, blocks: np.ndarray, units: np.ndarray) -> np.ndarray:
        """The moment at some values of the indices between some units: (blocks, units, units)."""
        point = self.points[number]
        if site.length**2 * int(np.prod([length for _, length in site.lead])) > LARGEST:
            g, w = (site.gather(x[site.path], blocks, units) for x in (point.gradient, point.leaves))
            return np.real(g @ w.swapaxes(-1, -2)).astype(float)
        key = (site.path, site.axis, site.lead, number)
        if key not in self._kept:
            g, w = (site.in_front(x[site.path]) for x in (point.gradient, point.leaves))
            self._kept[key] = np.real(g @ w.swapaxes(-1, -2))
        outer, at = site.sampled(blocks, units)
        return self._kept[key][outer[:, None, None, None], at[:, :, None], at[:, None]].sum(
            axis=-1, dtype=float
        )

    def sizes(self, site: Site, number: int, blocks: np.ndarray, units: np.ndarray) -> np.ndarray:
        """Squares of the lengths that such entries have where gradient and parameter are unrelated."""
        point = self.points[number]
        key = (site.path, site.axis, site.lead, number, "sizes")
        if key not in self._kept:
            g, w = (site.in_front(np.abs(x[site.path]) ** 2) for x in (point.gradient, point.leaves))
            self._kept[key] = np.stack([g.sum(axis=-1), w.sum(axis=-1) / w.shape[-1]])
        outer, at = site.sampled(blocks, units)
        g, w = self._kept[key][:, outer[:, None, None], at]
        return (g[:, :, None] * w[:, None]).sum(axis=-1, dtype=float)


class Moments:
    """Moments of one shape on many sites, at some values of the indices and some units."""

    def __init__(self, products: Products, shape: Shape, sites: Sequence[Site], rng: np.random.Generator):
        per, size = shape
        self.sites = sites
        points = range(min(len(products.points), points_needed(shape, len(sites))))
        blocks, units = _sampled(shape)
        self.units = spread_out(size, units, rng)
        self.blocks = spread_out(int(np.prod(per)), blocks, rng)
        at = self.blocks, self.units
        self.values = [np.stack([products.entries(site, k, *at) for k in points]) for site in sites]
        self.squares = [np.stack([products.sizes(site, k, *at) for k in points]) for site in sites]

    def antisymmetric(self) -> Columns:
        """What rotations see: M - M^T, above the diagonal."""
        rows, columns = np.triu_indices(len(self.units), 1)
        return self._columns(lambda m: m - m.swapaxes(-1, -2), rows, columns)

    def symmetric(self, legs: Sequence[int]) -> Columns:
        """What stretching sees: M + M^T, with the diagonal."""
        rows, columns = np.triu_indices(len(self.units))
        return self._columns(lambda m: m + m.swapaxes(-1, -2), rows, columns, legs)

    def trace(self, legs: Sequence[int]) -> Columns:
        """What scales common to a block see."""
        sums = [(np.einsum("pbii->pb", self.values[k]), np.einsum("pbii->pb", self.squares[k])) for k in legs]
        return stacked([(value.ravel(), np.sqrt(square.sum())) for value, square in sums])

    def _columns(self, part, rows, columns, legs=None) -> Columns:
        chosen = range(len(self.sites)) if legs is None else legs
        return stacked(
            [
                (
                    part(self.values[k])[..., rows, columns].ravel(),
                    # The square counts every pair twice, as the part does.
                    np.sqrt((self.squares[k] + self.squares[k].swapaxes(-1, -2))[..., rows, columns].sum()),
                )
                for k in chosen
            ]
        )


def stacked(parts: Sequence[tuple[np.ndarray, float]]) -> Columns:
    """Columns side by side, from pairs of a column and its scale."""
    return Columns(np.stack([value for value, _ in parts], axis=1), np.array([scale for _, scale in parts]))
