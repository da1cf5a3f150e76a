"""Cross-layer equalization: scalings after which the arrays on both sides of a unit have equal ranges."""

from collections.abc import Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from symmetrax._tree import leaf_names, replicated, widened
from symmetrax.groups._diagonal import NonzeroDiagonal, PositiveDiagonal
from symmetrax.objectives._quantization import matrices
from symmetrax.search._energies import broadcast_along
from symmetrax.search._orbit import Orbit
from symmetrax.search._searches import AbstractSearch
from symmetrax.symmetry._base import AbstractLieSymmetry
from symmetrax.symmetry._network import NetworkSymmetry
from symmetrax.symmetry._walk import Binding

#: Groups whose coordinates are logarithms of scales.
_SCALINGS = (PositiveDiagonal, NonzeroDiagonal)


class Equalized(AbstractSearch):
    """The point of the orbit where both sides of every unit have equal ranges: cross-layer equalization.

    The range of a unit in an array is its largest magnitude there. With r_up the largest range of the unit in
    the arrays that its scale s multiplies, and r_down in those that it divides, both become equal at
    log s = (log r_down - log r_up) / 2. Rounding with one scale per array then loses least where ranges
    differ between units. The search ignores the objective and costs no gradient.

    A unit of which one side is zero stays, and so do spaces of other groups than `PositiveDiagonal` and
    `NonzeroDiagonal`. Spaces that act on a common array are equalized in turn, in `sweeps` sweeps. For
    powers of a scale (squared ReLU) the equation has a closed form, too. `Balanced` does the same for norms.

    **Arguments:** `arrays` are paths or patterns of the arrays whose ranges count; by default all with at
    least two axes. Biases move along but do not count, as they are rarely quantized to few bits. Raises
    ValueError for a symmetry without scalings, or with offsets, or if two axes of an array are in one space.

    Source: section 4.1 of arXiv:1906.04721, for pairs of layers.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> params = {"w1": jnp.array([[8.0, 4.0], [1.0, 0.5]]), "w2": jnp.array([[2.0, 4.0]])}
    >>> symmetry = sx.models.mlp_symmetry(params, ["w1", "w2"])
    >>> loss = lambda w, x: jnp.sum(w["w2"] @ jax.nn.relu(w["w1"] @ x))
    >>> there, _ = sx.teleport(loss, params, symmetry, jnp.ones(2), search=Equalized())
    >>> print(there["w1"].max(axis=1), there["w2"])
    [4. 2.] [[4. 2.]]
    """

    sweeps: int = eqx.field(static=True, default=20)
    arrays: tuple[str, ...] | None = eqx.field(
        static=True, default=None, converter=lambda given: None if given is None else tuple(given)
    )

    def __check_init__(self):
        if self.sweeps < 1:
            raise ValueError(f"`sweeps` must be at least 1, got {self.sweeps}.")

    def __call__(self, orbit: Orbit) -> Float[Array, " k"]:
        symmetry = check_scalings(orbit.symmetry)
        blocks = _blocks(symmetry, orbit.params, self.arrays)
        spaces = _scalings(symmetry)

        def sweep(_, coordinates: Array) -> Array:
            parts = symmetry.split(coordinates)
            for name in spaces:
                parts[name] = _equal(symmetry, name, blocks, parts)
            return symmetry.join(parts).astype(coordinates.dtype)

        start = orbit.zero()
        # Spaces without a common array don't depend on one another: one sweep is exact.
        if all(len(bindings) < 2 for _, bindings in blocks):
            return sweep(0, start)
        return jax.lax.fori_loop(0, self.sweeps, sweep, start)

    def evaluations(self, symmetry) -> int:
        return 0


def check_scalings(symmetry: AbstractLieSymmetry) -> NetworkSymmetry:
    """Returns a symmetry that has scalings and no offsets; raises ValueError for others.

    >>> import symmetrax as sx
    >>> check_scalings(sx.tasks.booth().symmetry())
    Traceback (most recent call last):
    ValueError: Equalization needs a NetworkSymmetry with scalings and without offsets in its specs, got ...
    """
    if not isinstance(symmetry, NetworkSymmetry) or symmetry.has_offsets or not _scalings(symmetry):
        has = ", ".join(map(str, symmetry.spaces.values())) if isinstance(symmetry, NetworkSymmetry) else ""
        raise ValueError(
            "Equalization needs a NetworkSymmetry with scalings and without offsets in its specs, got "
            f"{has or type(symmetry).__name__}: pass the scalings of ReLU or gated units."
        )
    return symmetry


def _scalings(symmetry: NetworkSymmetry) -> list[str]:
    return [name for name, group in symmetry.spaces.items() if isinstance(group, _SCALINGS)]


def _blocks(
    symmetry: NetworkSymmetry, params: PyTree, arrays: tuple[str, ...] | None
) -> list[tuple[Array, tuple[Binding, ...]]]:
    """Logarithms of the ranges of all arrays that count, largest over the axes that no scaling acts on."""
    counted, spaces = matrices(params, arrays), set(_scalings(symmetry))
    blocks = []

    def collect(x: Array, bindings: tuple[Binding, ...]) -> Array:
        mine = tuple(binding for binding in bindings if binding.entry.name in spaces)
        names = [binding.entry.name for binding in mine]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(
                f"Equalization needs every array to have at most one axis in the space {twice[0]!r}, got one "
                f"with {names.count(twice[0])}: leave the space out with symmetry.only(...)."
            )
        kept = {axis for binding in mine for axis in (*binding.indices, binding.axis)}
        free = tuple(axis for axis in range(x.ndim) if axis not in kept)
        largest = jnp.max(jnp.abs(widened(replicated(x))), axis=free, keepdims=True, initial=0.0)
        if mine:
            # In logarithms no product of scales overflows; zeros become minus infinity, and stay that.
            blocks.append((jnp.log(largest), mine))
        return x

    kinds = [
        leaf if name in counted else None
        for name, leaf in zip(leaf_names(params), jax.tree.leaves(params), strict=True)
    ]
    tree = jax.tree.unflatten(jax.tree.structure(params), kinds)
    symmetry.within(tree).visit(tree, collect)
    return blocks


def _equal(
    symmetry: NetworkSymmetry,
    space: str,
    blocks: list[tuple[Array, tuple[Binding, ...]]],
    parts: dict[str, Array],
) -> Array:
    """The coordinates at which the ranges of a space are equal, with the other spaces at `parts`."""
    shape = symmetry.spaces[space].algebra
    sides = list(_ranges(symmetry, space, blocks, parts))
    ups = [(power, logs) for power, logs in sides if power > 0]
    downs = [(-power, logs) for power, logs in sides if power < 0]
    # The larger of the ranges a + p t grows with t, the larger of b - q t falls. They cross at the smallest t
    # at which some a + p t is above all b - q t: (b - a) / 2 if there is one of each, with powers 1.
    crossing = jnp.full(shape, jnp.inf)
    for p, a in ups:
        above = jnp.full(shape, -jnp.inf)
        for q, b in downs:
            # An array in which a unit is zero bounds nothing, whichever side it is on.
            here = jnp.where(jnp.isfinite(a), a, 0.0)
            above = jnp.maximum(above, (b - here) / (p + q))
        crossing = jnp.minimum(crossing, jnp.where(jnp.isfinite(a), above, jnp.inf))
    return jnp.where(jnp.isfinite(crossing), crossing, 0.0)


def _ranges(
    symmetry: NetworkSymmetry,
    space: str,
    blocks: list[tuple[Array, tuple[Binding, ...]]],
    parts: dict[str, Array],
) -> Iterator[tuple[float, Array]]:
    """Yields the exponent and the log ranges, of the shape of the coordinates, of every array of a space."""
    group = symmetry.spaces[space]
    for logs, bindings in blocks:
        moved, mine = logs, None
        for binding in bindings:
            name = binding.entry.name
            if name == space:
                mine = binding
                continue
            part = parts[name] if binding.entry.index is None else parts[name][binding.taken]
            moved = moved + binding.exponent * broadcast_along(part, binding, logs.ndim)
        if mine is None:
            continue
        axes = (*mine.indices, mine.axis)
        front = jnp.moveaxis(moved, axes, range(len(axes)))
        ranges = jnp.max(front.reshape(*front.shape[: len(axes)], -1), axis=-1)
        if mine.entry.index is not None:
            ranges = jnp.full(group.algebra, -jnp.inf, ranges.dtype).at[mine.taken].max(ranges)
        yield mine.exponent, ranges
