"""Gradients of a loss at generic points, from which all relations are derived."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from symmetrax.discovery._leaves import MOST_SCALES, Leaves, replaced
from symmetrax.discovery._loss import SPREAD, Loss
from symmetrax.discovery._places import Place
from symmetrax.discovery._sites import Shape, Site, in_front


@dataclasses.dataclass(frozen=True)
class Point:
    """Parameters and the gradient at them, by name.

    >>> Point({"w": np.ones(2)}, {"w": np.zeros(2)}).leaves["w"].tolist()
    [1.0, 1.0]
    """

    leaves: Leaves
    gradient: Leaves


@dataclasses.dataclass(frozen=True)
class Measured:
    """Gradients at generic points: full ones at the first few, products with the parameters at all.

    `products` has, for every place, the sums of gradient times parameter over all other axes, of shape
    (points, indices, length). `sizes` has the squared length of such products for every array, of shape
    (points,). `slopes` has the gradients of vectors, which have no other axes, in the shape of their
    products. `idle` arrays do not change the loss; `steep` ones do, but have no gradient.

    >>> site = Site("b", (2,), 0, 2, stride=2)
    >>> products = {place_of(site): np.array([[[3.0, 4.0]]])}  # at one point
    >>> measured = Measured([], products, {"b": np.array([25.0])}, {}, (), ())
    >>> rows = measured.rows(((), 2), columns=1, rng=np.random.default_rng(0))
    >>> measured.terms(site, rows)[0].tolist()
    [3.0, 4.0]
    """

    points: list[Point]
    products: dict[Place, np.ndarray]
    sizes: dict[str, np.ndarray]
    slopes: dict[Place, np.ndarray]
    idle: tuple[str, ...]
    steep: tuple[str, ...]

    def rows(self, shape: Shape, columns: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Chooses points and units that give enough rows for this many columns of scales."""
        units, points = int(np.prod(shape[0])) * shape[1], len(next(iter(self.products.values())))
        # A sample: a null space needs few more rows than columns, and there may be millions of units.
        chosen = rng.permutation(points * units)[: max(3 * columns + 16, 64)]
        return np.divmod(np.sort(chosen), units)

    def terms(self, site: Site, rows: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, float]:
        """Gradient times parameter per unit, at some points and units, and its length if unrelated."""
        terms = _units(self.products[place_of(site)], site)
        part = site.positions.size / site.length / terms.shape[1]  # of the array's products, in each row
        return terms[rows], np.sqrt(part * self.sizes[site.path][rows[0]].sum())

    def slope(self, site: Site, rows: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, float]:
        """The gradient of a vector per unit, at some points and units, and its length."""
        slope = _units(self.slopes[place_of(site)], site)[rows]
        return slope, float(np.linalg.norm(slope))


def measure(
    loss: Loss, places: Sequence[Place], rng: np.random.Generator, *, count: int, whole: int
) -> Measured:
    """Computes the gradient at `count` generic points, and keeps it in full at the first `whole` of them.

    Sets the unit of the loss, and how much it varies.

    >>> import jax, jax.numpy as jnp
    >>> params, key, rng = {"w": jnp.ones(3), "x": jnp.ones(2)}, jax.random.key(0), np.random.default_rng(0)
    >>> with jax.enable_x64(True):
    ...     loss = Loss(lambda p: jnp.sum(p["w"] ** 2), params, key, None, None, x64=False)
    ...     measured = measure(loss, [Place("w", (3,), 0, ())], rng, count=3, whole=2)
    ...     measured.points.extend(more_points(loss, rng, 2))
    >>> len(measured.points), measured.sizes["w"].shape, measured.idle
    (4, (3,), ('x',))
    """
    kept: list[Point] = []
    listed = [p for p in places if p.length * int(np.prod(p.leads)) <= MOST_SCALES]
    vectors = [p for p in listed if p.length * int(np.prod(p.leads)) == int(np.prod(p.shape))]
    by_array: dict[str, list[Place]] = {}
    for place in listed:
        by_array.setdefault(place.path, []).append(place)
    products: list[list[np.ndarray]] = []
    slopes: list[list[np.ndarray]] = []
    lengths: list[np.ndarray] = []
    values: list[float] = []
    leaves: Leaves = {}
    for number in range(count):
        if number and not loss.in_time:  # nothing will be asked of these points
            break
        leaves, value, gradient = _generic_gradient(loss, rng)
        # The unit is chosen from a generic gradient: at `params` itself it may vanish.
        if number == 0 and (scale := loss.settle(leaves, gradient)) != 1.0:
            value, gradient = value * scale, {path: g * scale for path, g in gradient.items()}
        if number < whole:
            leaves = dict(leaves)
            kept.append(Point(leaves, gradient))
        sums: dict[Place, np.ndarray] = {}
        sizes = []
        for path in loss.given:  # one after the other: all products together are as large as the parameters
            product = np.real(gradient[path] * leaves[path])
            sizes.append(np.sum(np.square(product)))
            sums |= {place: _along(place, product) for place in by_array.get(path, ())}
        values.append(value)
        products.append([sums[place] for place in listed])
        slopes.append([_along(place, np.real(gradient[place.path])) for place in vectors])
        lengths.append(np.array(sizes))
        del gradient  # before the next is computed
    # The median: a single point where the loss is enormous must not set the scale.
    varies = float(np.median(np.abs(np.array(values) - loss.start)))
    loss.variation = varies if varies > 0 else 1.0
    idle, steep = _without_gradient(loss, leaves, values[-1], np.sqrt(np.max(lengths, axis=0)), rng)
    by_place = {place: np.stack([row[k] for row in products]) for k, place in enumerate(listed)}
    by_path = dict(zip(loss.given, np.transpose(lengths), strict=True))
    by_vector = {place: np.stack([row[k] for row in slopes]) for k, place in enumerate(vectors)}
    return Measured(kept, by_place, by_path, by_vector, idle, steep)


def more_points(loss: Loss, rng: np.random.Generator, count: int) -> list[Point]:
    """Computes gradients at more generic points.

    >>> import jax, jax.numpy as jnp
    >>> params, key = {"w": jnp.ones(3)}, jax.random.key(0)
    >>> with jax.enable_x64(True):
    ...     loss = Loss(lambda p: jnp.sum(p["w"] ** 2), params, key, None, None, x64=False)
    ...     (point,) = more_points(loss, np.random.default_rng(0), 1)
    >>> np.allclose(point.gradient["w"], 2 * point.leaves["w"])
    True
    """
    taken = (_generic_gradient(loss, rng) for _ in range(count))
    return [Point(dict(leaves), gradient) for leaves, _, gradient in taken]


def _generic_gradient(loss: Loss, rng: np.random.Generator) -> tuple[Leaves, float, Leaves]:
    leaves = loss.generic(rng)
    value, gradient = loss.gradient(leaves, loss.batch)
    if not np.isfinite(value) or not all(np.all(np.isfinite(part)) for part in gradient.values()):
        raise ValueError(_not_finite(loss, leaves, value))
    return leaves, value, gradient


def _without_gradient(
    loss: Loss, leaves: Leaves, here: float, effects: np.ndarray, rng: np.random.Generator
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The arrays with no effect on the loss, and those with an effect but no gradient."""
    # Relative to the array with the largest effect: a gradient of rounding errors is none.
    least = min(30 * loss.precision, 1e-4) * np.max(effects)
    silent = [path for path, effect in zip(loss.given, effects, strict=True) if effect <= least]
    other = loss.generic(rng)

    def matters(paths: Sequence[str]) -> bool:
        there = loss.value(replaced(leaves, other, paths), loss.batch)
        return not abs(there - here) <= 100 * loss.precision * max(abs(here), abs(there), loss.variation)

    # Together first: in most models no silent array has an effect, and one loss shows it.
    changed = bool(silent) and matters(silent)
    apart = changed and loss.affords(len(silent))  # without the budget to test them, report none as idle
    steep = [path for path in silent if not apart or matters([path])] if changed else []
    if len(silent) == len(effects):
        what = (
            f"its gradient is zero at all generic points around them, although it changes with {steep[0]}: "
            "symmetries are read off gradients"
            if steep
            else "neither it nor its gradient changes at generic points around them"
        )
        raise ValueError(f"The loss does not depend on `params` in a way that can be differentiated: {what}.")
    return tuple(path for path in silent if path not in steep), tuple(steep)


def _not_finite(loss: Loss, leaves: Leaves, value: float) -> str:
    """The error message for a loss without a finite gradient near the parameters; names the culprits."""
    blamed = []
    for path in leaves:
        alone, gradient = loss.gradient(replaced(loss.leaves, leaves, [path]), loss.batch)
        if not all(np.all(np.isfinite(part)) for part in (alone, *gradient.values())):
            blamed.append(path)
    who = f"noise on {', '.join(blamed)} alone is enough" if blamed else "no array alone is to blame"
    return (
        f"The loss or its gradient is not finite near `params` (loss {value * loss.unit} at distance "
        f"{SPREAD} of their size; {who}): symmetries are looked for at generic points around them. Start "
        "from parameters where it is smooth, or leave what must not be moved out of `params`."
    )


def _along(place: Place, terms: np.ndarray) -> np.ndarray:
    """Sums over all axes except a place's own: (indices, length)."""
    return in_front(terms.reshape(place.shape), place.lead, place.axis).sum(axis=-1).astype(float)


def place_of(site: Site) -> Place:
    """The axis, with its indices, that a site is on.

    >>> place_of(Site("w", (4, 3), 0, 2, stride=2)).length
    4
    """
    return Place(site.path, site.shape, site.axis, site.lead)


def _units(terms: np.ndarray, site: Site) -> np.ndarray:
    """Sums terms along an axis over the copies of each unit: (points, units)."""
    return terms[:, :, site.positions].sum(axis=-1).reshape(len(terms), -1)
