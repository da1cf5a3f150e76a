"""Checking that a symmetry is one: the worst defect of every law, over random elements and points."""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key, PyTree

from symmetrax._tree import relative, safe_norm
from symmetrax.symmetry._base import AbstractSymmetry


@dataclasses.dataclass(frozen=True)
class Report:
    """Worst relative defects found by `verify`, each a number without unit (0 is perfect).

    `invariance`: of the loss. `identity`, `composition`, `inverse`: of the moved parameters.
    `gradient`: of the gradient law. `moved`: the *smallest* relative move among the trials; if it is 0 the
    laws were tested on nothing. `reasons`: what `holds` said where it did not hold, in words.

    >>> import jax, jax.numpy as jnp, symmetrax as sx
    >>> task = sx.booth()
    >>> report = sx.verify(task.loss, jnp.zeros(2), task.symmetry(), jax.random.key(0))
    >>> report.worst < 1e-3, report.moved > 0, report.reasons
    (True, True, ())
    """

    invariance: float
    identity: float
    composition: float
    inverse: float
    gradient: float
    moved: float
    trials: int
    reasons: tuple[str, ...]

    @property
    def worst(self) -> float:
        """The largest of the five defects; NaN if any is."""
        return float(np.max([self.invariance, self.identity, self.composition, self.inverse, self.gradient]))

    def __str__(self) -> str:
        rows = [(f.name, getattr(self, f.name)) for f in dataclasses.fields(self)[:5]]
        lines = [f"{name:<12}{value:.1e}" for name, value in rows]
        lines.append(f"{'moved':<12}{self.moved:.1e} at least, {self.trials} trials")
        return "\n".join([*lines, *(f"does not hold: {reason}" for reason in self.reasons)])


def verify(
    loss: Callable[[PyTree, PyTree], Float[Array, ""]],
    params: PyTree,
    symmetry: AbstractSymmetry,
    key: Key[Array, ""],
    batch: PyTree = None,
    *,
    trials: int = 16,
    spread: float = 1.0,
) -> Report:
    """Measure how well `symmetry` leaves `loss` unchanged near `params`.

    Draws `trials` points `params + spread * N(0, I)` and at each two random elements a, b, and measures

    - invariance |loss(a.w) - loss(w)| / |loss(w)|
    - identity ||e.w - w|| / ||w||, inverse ||a^-1.(a.w) - w|| / ||w||
    - composition ||(ab).w - a.(b.w)|| / ||(ab).w||
    - gradient ||grad loss(a.w) - pull(a, w, grad loss(w))|| / ||grad loss(a.w)||

    and returns the worst of each. Points are perturbed because at special values (zeros, ones) a wrong
    symmetry can look right. Errors grow like machine precision times the condition of the action, so judge
    a report in float64 where you can.

    **Arguments:** `loss(params, batch)` returns a scalar; `batch` is handed to it and to the action.

    **Returns** a `Report`; print it for a table.

    >>> import jax, jax.numpy as jnp, symmetrax as sx
    >>> task = sx.rosenbrock()
    >>> wrong = sx.booth().symmetry()  # another function's symmetry
    >>> sx.verify(task.loss, jnp.zeros(2), wrong, jax.random.key(0)).invariance > 0.1
    True
    """
    if trials < 1:
        raise ValueError(f"verify needs at least one trial, got trials={trials}.")
    if not all(jnp.issubdtype(jnp.asarray(x).dtype, jnp.floating) for x in jax.tree.leaves(params)):
        raise TypeError("verify perturbs `params`, so every leaf must be a floating-point array.")
    defects, codes = _measure(loss, params, symmetry, jax.random.split(key, trials), batch, spread)
    worst = {name: float(np.max(values)) for name, values in defects.items() if name != "moved"}
    reasons = tuple(symmetry.reasons[code] for code in sorted(set(np.asarray(codes).tolist())) if code)
    return Report(**worst, moved=float(np.min(defects["moved"])), trials=trials, reasons=reasons)


@eqx.filter_jit
def _measure(loss, params, symmetry, keys, batch, spread):
    def trial(key):
        at, first, second = jax.random.split(key, 3)
        w = optax.tree.add_scale(params, spread, optax.tree.random_like(at, params))
        a, b, e = symmetry.sample(first), symmetry.sample(second), symmetry.identity()
        there = symmetry.act(a, w, batch)
        both = symmetry.act(symmetry.compose(a, b), w, batch)
        value, gradient = jax.value_and_grad(loss)(w, batch)
        moved_value, moved_gradient = jax.value_and_grad(loss)(there, batch)
        carried = symmetry.pull(a, w, gradient, batch)

        def gap(x, y, reference):
            return relative(optax.tree.sub(x, y), reference)

        defects = {
            "invariance": relative(moved_value - value, value),
            "identity": gap(symmetry.act(e, w, batch), w, w),
            "composition": gap(both, symmetry.act(a, symmetry.act(b, w, batch), batch), both),
            "inverse": gap(symmetry.act(symmetry.inverse(a), there, batch), w, w),
            "gradient": gap(moved_gradient, carried, moved_gradient),
            "moved": safe_norm(optax.tree.sub(there, w)) / jnp.maximum(safe_norm(w), 1e-30),
        }
        return defects, symmetry.holds(w, batch).code

    return jax.vmap(trial)(keys)
