"""How much steps of an optimizer depend on the gauge: on the point of an orbit that stands for a function."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Float, Key, PyTree

from symmetrax._extras import explained, updated
from symmetrax._keys import check_key
from symmetrax._programs import once, opened
from symmetrax._tree import check_finite, safe_norm
from symmetrax.symmetry._network import NetworkSymmetry

#: Which elements of each space an audit draws.
Elements = Literal["all", "rotations"]


class GaugeDependence(NamedTuple):
    """How much steps depend on the gauge of one space, over random elements of its group.

    `displacement` has for every element a the length of act(a^-1, w') - w over that of the displacement, with
    w the parameters after the steps from here, and w' those after the steps from act(a, here): 0 for an
    optimizer that does not see the gauge. `loss` has the differences of the losses at w' and w, over the
    change of the loss by the steps from here.

    >>> GaugeDependence("h", "Orthogonal(2)", np.array([0.0, 1e-7]), np.zeros(2)).independent()
    True
    """

    space: str
    group: str
    displacement: Float[np.ndarray, " samples"]
    loss: Float[np.ndarray, " samples"]

    def independent(self, tolerance: float = 1e-3) -> bool:
        """Whether no drawn element changed the displacement by more than `tolerance` of its length."""
        return bool(np.all(self.displacement <= tolerance))


class Audit(tuple[GaugeDependence, ...]):
    """The rows of `audit`, one for each space; printed as a table of medians and maxima.

    >>> print(Audit([GaugeDependence("h", "Orthogonal(2)", np.array([0.5, 0.7]), np.array([0.1, -0.2]))]))
    space  group          displacement (max)   loss (max)
    h      Orthogonal(2)  60.0% (70.0%)        15.0% (20.0%)
    """

    def __str__(self) -> str:
        header = ("space", "group", "displacement (max)", "loss (max)")
        rows = [header, *((r.space, r.group, _spread(r.displacement), _spread(r.loss)) for r in self)]
        widths = [max(len(row[k]) for row in rows) for k in range(3)]
        widths[2] += 1
        return "\n".join(
            "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]])
            for row in rows
        )


def audit(
    optimizer: optax.GradientTransformation,
    loss: Callable[[PyTree, PyTree], Float[Array, ""]],
    params: PyTree,
    symmetry: NetworkSymmetry,
    key: Key[Array, ""],
    batch: PyTree = None,
    *,
    steps: int = 1,
    samples: int = 4,
    elements: Elements = "all",
) -> Audit:
    """Measures how much the first steps of an optimizer depend on the gauge, space by space.

    Points of an orbit are the same function, so an optimizer whose steps differ between them makes a choice
    that the loss does not justify. From `params`, and from act(a, params) for random elements a, it takes
    `steps` steps with a new state, and the ends are compared in one gauge (see `GaugeDependence`). SGD
    and Muon do not see rotations; Adam does. Almost all see scalings and general linear groups.

    **Arguments:** `optimizer` is any optax optimizer (given `value_fn`, `value` and `grad` where it takes
    them), `loss(params, batch)` a scalar, and `symmetry` an exact `NetworkSymmetry`. `samples` elements are
    drawn for every space from `key`, from the whole group, or with `elements="rotations"` only rotations,
    which spaces without any then lack. Raises ValueError where there is nothing to draw.

    **Returns** an `Audit`: a row for every space, with the values of every draw.

    >>> import jax, jax.numpy as jnp, optax, symmetrax as sx
    >>> params = {"a": jnp.ones((2, 3)), "b": jnp.arange(6.0).reshape(3, 2)}
    >>> symmetry = sx.models.low_rank_symmetry(params, "a", "b")
    >>> loss = lambda p, _: jnp.sum((p["b"] @ p["a"] - 1) ** 2)
    >>> key = jax.random.key(0)
    >>> [audit(opt, loss, params, symmetry, key, elements="rotations")[0].independent()
    ...  for opt in (optax.sgd(1e-3), optax.adam(1e-3))]
    [True, False]
    """
    check_key(key)
    for name, value in (("steps", steps), ("samples", samples)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    if elements not in ("all", "rotations"):
        raise ValueError(f"`elements` must be 'all' or 'rotations', got {elements!r}.")
    if not isinstance(symmetry, NetworkSymmetry):
        raise ValueError(
            f"`audit` needs a NetworkSymmetry, whose spaces it goes through, got {type(symmetry).__name__}: "
            "pass that part of the symmetry."
        )
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((params, key, batch))):
        raise ValueError("`audit` returns NumPy arrays, which compiled code cannot: call it outside.")
    spaces = {n: g for n, g in symmetry.spaces.items() if elements == "all" or g.rotates}
    if not spaces:
        has = ", ".join(map(str, symmetry.spaces.values()))
        raise ValueError(f"elements='rotations' needs a space with rotations, got {has}: use elements='all'.")
    numbers, rest = eqx.partition(params, eqx.is_inexact_array)
    check_finite(numbers, "audit an optimizer at")

    def whole(w: PyTree, batch: PyTree) -> Float[Array, ""]:
        return explained(loss, eqx.combine(w, rest), batch)

    apply, constants = opened(whole, numbers, batch)

    def taken(constants: list, numbers: PyTree, batch: PyTree) -> tuple[PyTree, Array, Array]:
        """The parameters after all steps, and the losses before and after."""

        def value_fn(w: PyTree) -> Array:
            return apply(constants, w, batch)

        def step(_, carry):
            w, state = carry
            value, gradient = jax.value_and_grad(value_fn)(w)
            offered = {"value_fn": value_fn, "value": value, "grad": gradient}
            updates, state = updated(optimizer, gradient, state, w, offered)
            return optax.apply_updates(w, updates), state

        end, _ = jax.lax.fori_loop(0, steps, step, (numbers, optimizer.init(numbers)))
        return end, value_fn(numbers), value_fn(end)

    here, first, last = once(taken, constants, numbers, batch)
    length = safe_norm(optax.tree.sub(here, numbers))
    if not (bool(length > 0) and bool(jnp.isfinite(length + last))):
        raise ValueError(
            f"The optimizer's {steps} steps have the length {float(length):.3g} and end at the loss "
            f"{float(last):.6g}, so there is nothing to compare: audit where the gradient is neither zero "
            "nor infinite, and take more `steps` if the optimizer collects gradients or warms up."
        )
    rows = []
    for space, (name, group) in zip(jax.random.split(key, len(spaces)), spaces.items(), strict=True):
        apart, changes = [], []
        for draw in jax.random.split(space, samples):
            drawn = group.sample(draw) if elements == "all" else _rotation(group, draw)
            element = symmetry.identity() | {name: drawn}
            there, _, end = once(taken, constants, symmetry.act(element, numbers), batch)
            back = symmetry.act(symmetry.inverse(element), there)
            apart.append(float(safe_norm(optax.tree.sub(back, here)) / length))
            changes.append(float((end - last) / jnp.abs(last - first)))
        rows.append(GaugeDependence(name, str(group), np.array(apart), np.array(changes)))
    return Audit(rows)


def _rotation(group, key: Key[Array, ""]) -> PyTree:
    """A random rotation of the group: the eigenvectors of a random symmetric matrix."""
    return group.diagonalizing(jax.random.normal(key, (*group.lengths, group.size, group.size)))


def _spread(values: np.ndarray) -> str:
    size = np.abs(values)
    return f"{np.median(size):.1%} ({np.max(size):.1%})"
