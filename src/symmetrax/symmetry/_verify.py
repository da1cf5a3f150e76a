"""Numerical checks of a symmetry: the worst error of every law, over random elements and points."""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from symmetrax._extras import explained
from symmetrax._keys import check_key
from symmetrax._programs import compiled
from symmetrax._tree import leaf_names
from symmetrax.symmetry._base import AbstractSymmetry
from symmetrax.symmetry._diagnose import Suspect, suspects
from symmetrax.symmetry._network import NetworkSymmetry

#: Descriptions of each law, for the table and for a violation.
LAWS = {
    "invariance": ("the loss keeps its value", "the loss changes by {}"),
    "identity": ("the identity changes nothing", "the identity moves the parameters by {}"),
    "composition": ("a after b is compose(a, b)", "a after b differs from compose(a, b) by {}"),
    "inverse": ("the inverse of a undoes a", "the inverse leaves a distance of {}"),
    "gradient": (
        "transport_gradient is exact",
        "the gradient differs from the result of transport_gradient by {}",
    ),
}

#: A symmetry that is not exact is called approximate if the loss changes by at most the first value and the
#: gradients by at most the second, otherwise wrong. At special parameter values, only gradients reveal a
#: wrong symmetry.
APPROXIMATE, APPROXIMATE_GRADIENT = 1e-3, 1e-1


@dataclasses.dataclass(frozen=True)
class Report:
    """The worst relative errors found by `verify`, each dimensionless (0 is perfect).

    - `invariance`: the relative change of the loss (and of the outputs, if you passed them)
    - `identity`, `composition`, `inverse`: the errors of the moved parameters
    - `gradient`: the error of the gradient law; `leaves` lists it array by array
    - `moved`: the *smallest* relative displacement among the trials; if it is 0, nothing was tested
    - `fresh`: the invariance on data that the action did not see, if you passed any
    - `one_batch`: whether the action may depend on data and was tested only on the batch that it saw
    - `reasons`: the messages from `holds` where the symmetry did not hold
    - `suspects`: specs that may be wrong, if invariance failed

    >>> import jax, jax.numpy as jnp, symmetrax as sx
    >>> task = sx.tasks.booth()
    >>> report = sx.verify(task.loss, jnp.zeros(2), task.symmetry(), jax.random.key(0))
    >>> report.worst < 1e-3, report.moved > 0, report.outcome
    (True, True, 'exact')
    """

    invariance: float
    identity: float
    composition: float
    inverse: float
    gradient: float
    moved: float
    trials: int
    reasons: tuple[str, ...]
    tolerance: float
    fresh: float | None = None
    leaves: dict[str, float] = dataclasses.field(default_factory=dict)
    suspects: tuple[Suspect, ...] = ()
    one_batch: bool = False

    @property
    def worst(self) -> float:
        """The largest of the five errors; NaN if any of them is NaN."""
        return float(np.max([self.invariance, self.identity, self.composition, self.inverse, self.gradient]))

    @property
    def outcome(self) -> str:
        """The result: exact (everywhere, or on the given batch only), approximate, wrong, or untested."""
        # Comparisons are written so that a NaN is never exact, never approximate, and never "moved".
        if not self.moved > 0:
            return "untested: nothing moved"
        if self.worst <= self.tolerance:
            return (
                "exact"
                if self.fresh is None or self.fresh <= self.tolerance
                else "exact on the given batch only"
            )
        near = max(self.invariance, self.identity, self.composition, self.inverse) <= APPROXIMATE
        return "approximate" if near and self.gradient <= APPROXIMATE_GRADIENT else "wrong"

    def __str__(self) -> str:
        lines = [self._sentence(), "", f"{'law':<12}worst error"]
        for name, (law, _) in LAWS.items():
            lines.append(self._row(name, getattr(self, name), law))
            if name == "invariance" and self.fresh is not None:
                lines.append(self._row("fresh data", self.fresh, "the same, on data unseen by the action"))
        lines.append(f"{'moved':<12}{self.moved:.1e}  at least, in {self.trials} trials")
        if not self.gradient <= self.tolerance:
            bad = {name: value for name, value in self.leaves.items() if not value <= self.tolerance}
            lines += [
                f"gradient of {name}: {value:.1e}" for name, value in bad.items() if len(self.leaves) > 1
            ]
        lines += [f"does not hold: {reason}" for reason in self.reasons]
        return "\n".join([*lines, *(f"suspect: {suspect}" for suspect in self.suspects)])

    def _row(self, name: str, error: float, law: str) -> str:
        mark = "" if error <= self.tolerance else "  <- above the tolerance"
        return f"{name:<12}{error:.1e}  {law}{mark}"

    def _sentence(self) -> str:
        """The outcome as a self-explanatory sentence."""
        rounding = f"rounding (tolerance {self.tolerance:.0e})"
        broken = "; ".join(
            text.format("an amount that is not a number" if np.isnan(error) else _share(error))
            for name, (_, text) in LAWS.items()
            if not (error := getattr(self, name)) <= self.tolerance
        )
        match self.outcome:
            case "exact":
                seen = " on the batch that the action saw; pass fresh=... to test others" * self.one_batch
                return f"Exact: this is a symmetry of the loss, up to {rounding}{seen}."
            case "exact on the given batch only":
                return (
                    f"Exact on the given batch only, up to {rounding}: on fresh data the loss changes by "
                    f"{_share(self.fresh or np.nan)}."
                )
            case "approximate":
                return f"Approximate: nearly a symmetry of the loss, but not up to {rounding}: {broken}."
            case "wrong":
                return f"Wrong: this is not a symmetry of the loss: {broken}."
            case _:
                return (
                    "Untested: no random element moved the parameters. Check that the group is not trivial, "
                    "and that the symmetry acts on arrays of `params`."
                )


def _share(error: float) -> str:
    """Formats a relative error, as a percentage where that is readable."""
    return f"{error:.2g} of its size" if error < 1e-2 or error >= 10 else f"{100 * error:.0f} %"


def verify(
    loss: Callable[[PyTree, PyTree], Float[Array, ""]],
    params: PyTree,
    symmetry: AbstractSymmetry,
    key: Key[Array, ""],
    batch: PyTree = None,
    *,
    fresh: PyTree = None,
    outputs: Callable[[PyTree, PyTree], PyTree] | None = None,
    trials: int = 16,
    spread: float = 1.0,
    tolerance: float | None = None,
) -> Report:
    """Measures how well `symmetry` leaves `loss` unchanged near `params`.

    Draws `trials` points `params + spread * N(0, I)`, with two random elements a, b at each, and measures

    - invariance |loss(a.w) - loss(w)| / |loss(w)|, and likewise for the norm of `outputs`
    - identity ||e.w - w|| / ||w||, inverse ||a^-1.(a.w) - w|| / ||w||
    - composition ||(ab).w - a.(b.w)|| / ||(ab).w||
    - gradient ||grad loss(a.w) - carried|| / ||grad loss(a.w)||, where `carried` is
      transport_gradient(a, w, grad loss(w))

    and returns the worst of each. Points are perturbed because a wrong symmetry can look right at special
    values (zeros, ones); there the gradient law, array by array, is the stronger test. Errors grow like
    machine precision times the condition number of the action, so use float64 where you can. If invariance
    fails for a `NetworkSymmetry`, `verify` tries single edits of its specs and lists those that restore it.

    **Arguments:** `loss(params, batch)` returns a scalar; `batch` is passed to both the loss and the action.
    `fresh` is another batch, which only the loss sees; `outputs(params, batch)` returns the outputs of the
    network. Leaves of `params` that are not arrays of floats are left unchanged. `tolerance` is the largest
    error that counts as rounding: by default 1e-9 in double precision, 1e-3 in single precision, and 16
    times the machine precision below, according to the coarsest dtype of parameters and loss.

    **Returns** a `Report`; print it to see the outcome and a table. Raises TypeError if no leaf is an array
    of floats.

    >>> import jax, jax.numpy as jnp, symmetrax as sx
    >>> task = sx.tasks.rosenbrock()
    >>> wrong = sx.tasks.booth().symmetry()  # another function's symmetry
    >>> sx.verify(task.loss, jnp.zeros(2), wrong, jax.random.key(0)).invariance > 0.1
    True
    """
    check_key(key)
    if trials < 1:
        raise ValueError(f"verify needs at least one trial, got trials={trials}: pass trials=1 or more.")
    numbers, rest = eqx.partition(params, eqx.is_inexact_array)
    leaves = jax.tree.leaves(numbers)
    if not leaves:
        found = sorted({str(getattr(leaf, "dtype", type(leaf).__name__)) for leaf in jax.tree.leaves(params)})
        raise TypeError(
            f"verify perturbs the floating-point arrays of `params`; it has none, only {found}: convert the "
            "parameters to floats."
        )
    if tolerance is None:
        value = jax.eval_shape(lambda w: explained(loss, eqx.combine(w, rest), batch), numbers)
        tolerance = _default_tolerance(*leaves, value)
    laws = _Laws(loss, outputs, symmetry, rest, batch, fresh)
    found = [laws.trial(k, numbers, spread) for k in jax.random.split(key, trials)]
    worst = {name: float(np.max([measured[name] for measured, _, _ in found])) for name in found[0][0]}
    moved = float(np.min([measured["moved"] for measured, _, _ in found]))
    codes = sorted({int(code) for _, _, code in found if code})
    by_leaf = {name: float(np.max([residuals[name] for _, residuals, _ in found])) for name in found[0][1]}
    likely: tuple[Suspect, ...] = ()
    if isinstance(symmetry, NetworkSymmetry) and not worst["invariance"] <= tolerance:
        likely = laws.suspects(symmetry, key, numbers, spread, tolerance)
    return Report(
        **worst | {"moved": moved},
        trials=trials,
        reasons=tuple(symmetry.reasons[code] for code in codes),
        tolerance=tolerance,
        leaves=by_leaf,
        suspects=likely,
        one_batch=batch is not None and fresh is None and not symmetry.linear,
    )


def _default_tolerance(*arrays: Array | jax.ShapeDtypeStruct) -> float:
    """The rounding tolerance for the coarsest of these dtypes."""
    eps = max(float(jnp.finfo(x.dtype).eps) for x in arrays if jnp.issubdtype(x.dtype, jnp.inexact))
    return 1e-9 if eps < 1e-12 else 1e-3 if eps < 1e-6 else 16 * eps


def _near(key: Key[Array, ""], numbers: PyTree, spread: float) -> PyTree:
    """`numbers` plus normal noise of standard deviation `spread`."""
    # A single draw for all arrays: compiling a draw per shape would take most of the time of `verify`.
    leaves, structure = jax.tree.flatten(numbers)
    ends = np.cumsum([0, *(leaf.size for leaf in leaves)])
    # Complex numbers use both rows. The length is a power of two so that similar sizes share a program.
    real, imaginary = np.asarray(jax.random.normal(key, (2, 2 ** int(ends[-1]).bit_length())))
    noise = []
    for leaf, low, high in zip(leaves, ends, ends[1:], strict=False):
        drawn = real[low:high] + 1j * imaginary[low:high] if jnp.iscomplexobj(leaf) else real[low:high]
        noise.append(drawn.reshape(leaf.shape))
    moved = [leaf + (spread * x).astype(leaf.dtype) for leaf, x in zip(leaves, noise, strict=True)]
    return jax.tree.unflatten(structure, moved)


def _norm(tree: PyTree) -> float:
    """The Euclidean norm of all entries."""
    # In NumPy, since JAX would compile for every new shape.
    sizes = [np.abs(np.asarray(leaf)).astype(float) for leaf in jax.tree.leaves(tree)]
    return float(np.sqrt(sum(np.sum(size**2) for size in sizes)))


def _relative(x: PyTree, y: PyTree, reference: PyTree, least: float = 0.0) -> float:
    """The norm of x - y over the norm of `reference`, or over `least` if larger; 0 if x equals y."""
    with np.errstate(invalid="ignore", over="ignore"):
        gap = _norm(jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), x, y))
        return 0.0 if gap == 0 else gap / float(np.maximum(_norm(reference), np.maximum(least, 1e-30)))


@compiled
def _values(loss, outputs, numbers, rest, batch):
    """The loss, its gradient, and the outputs, in one program for all trials."""

    def value(numbers):
        return explained(loss, eqx.combine(numbers, rest), batch)

    computed = None if outputs is None else outputs(eqx.combine(numbers, rest), batch)
    return *jax.value_and_grad(value)(numbers), computed


@dataclasses.dataclass(frozen=True)
class _Laws:
    """The laws of a symmetry and a loss."""

    # Only the loss is compiled: each action is evaluated just once or twice, for which compilation takes too
    # long.

    loss: Callable
    outputs: Callable | None
    symmetry: AbstractSymmetry
    rest: PyTree
    batch: PyTree
    fresh: PyTree

    def act(self, a: PyTree, numbers: PyTree) -> PyTree:
        moved = self.symmetry.act(a, eqx.combine(numbers, self.rest), self.batch)
        return eqx.filter(moved, eqx.is_inexact_array)

    def values(self, numbers: PyTree, batch: PyTree) -> tuple[Array, PyTree, PyTree]:
        return _values(self.loss, self.outputs, numbers, self.rest, batch)

    def change(self, here: tuple, there: PyTree, batch: PyTree) -> float:
        """The relative change from `here` of the loss or of the outputs, whichever is larger."""
        value, outputs = here[0], here[2]
        moved, _, moved_outputs = self.values(there, batch)
        change = _relative(moved, value, value)
        if outputs is None:
            return change
        return float(np.maximum(change, _relative(moved_outputs, outputs, outputs)))  # NaN wins

    def suspects(
        self, symmetry: NetworkSymmetry, key: Array, numbers: PyTree, spread: float, tolerance: float
    ) -> tuple[Suspect, ...]:
        """The specs that may be wrong, by the change of the loss at one random point."""
        at, element = jax.random.split(key)
        w = _near(at, numbers, spread)
        here = self.values(w, self.batch)
        return suspects(symmetry, lambda there: self.change(here, there, self.batch), w, element, tolerance)

    def trial(
        self, key: Array, numbers: PyTree, spread: float
    ) -> tuple[dict[str, float], dict[str, float], Array]:
        """The errors of all laws at a random point, the gradient's by array, and the code of `holds`."""
        symmetry, batch = self.symmetry, self.batch
        at, first, second = jax.random.split(key, 3)
        w = _near(at, numbers, spread)
        a, b, e = symmetry.sample(first), symmetry.sample(second), symmetry.identity()
        there = self.act(a, w)
        both = self.act(symmetry.compose(a, b), w)
        here = self.values(w, batch)
        gradient = here[1]
        _, moved_gradient, _ = self.values(there, batch)
        carried = eqx.filter(
            symmetry.transport_gradient(a, eqx.combine(w, self.rest), gradient, batch), eqx.is_inexact_array
        )

        measured = {
            "invariance": self.change(here, there, batch),
            "identity": _relative(self.act(e, w), w, w),
            "composition": _relative(both, self.act(a, self.act(b, w)), both),
            "inverse": _relative(self.act(symmetry.inverse(a), there), w, w),
            "gradient": _relative(moved_gradient, carried, moved_gradient),
            "moved": _relative(there, w, w),
        }
        if self.fresh is not None:
            measured["fresh"] = self.change(self.values(w, self.fresh), there, self.fresh)
        # If a leaf's gradient is pure rounding error, a relative error is meaningless: measure it against the
        # whole gradient.
        least = 1e-6 * _norm(moved_gradient)
        pairs = zip(jax.tree.leaves(moved_gradient), jax.tree.leaves(carried), strict=True)
        residuals = {
            name: _relative(x, y, x, least)
            for name, (x, y) in zip(leaf_names(moved_gradient), pairs, strict=True)
        }
        return measured, residuals, symmetry.holds(eqx.combine(w, self.rest), batch).code
