"""The report of a search: certified symmetries, as a table, as code to paste, and as JSON."""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from symmetrax._text import listed
from symmetrax.discovery._certify import symmetry_of
from symmetrax.discovery._cost import Cost
from symmetrax.discovery._double import DOUBLE
from symmetrax.discovery._evidence import Evidence
from symmetrax.discovery._explain import explain
from symmetrax.discovery._found import Found, Look
from symmetrax.discovery._implied import follows
from symmetrax.discovery._scope import GROUPS
from symmetrax.discovery._spaces import Candidate
from symmetrax.discovery._tables import code, group_code, table
from symmetrax.groups._diagonal import Permutation, SignDiagonal
from symmetrax.symmetry._network import NetworkSymmetry


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class Discovery:
    """The result of `find_symmetries`: a sequence of `Found` that prints as a table.

    `rejected`: candidates whose certificate failed, which are not symmetries. `asked`: names of the groups
    that were searched for. `unfinished`: those whose search was cut short by budget or memory, or was not
    exhaustive. `looked`: every question, with the number of candidate axes and the distance from zero of the
    nearest non-relation. `idle`: arrays that do not change the loss. `steep`: arrays that change it but have
    no gradient. `notes`: remarks for the reader. `cost` is the predicted number of evaluations, `evaluations`
    the actual number.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> loss = lambda p: jnp.sum((p["a"] @ p["b"]) ** 2)
    >>> params = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 2))}
    >>> found = sx.find_symmetries(loss, params, jax.random.key(0), groups=[sx.groups.GeneralLinear])
    >>> print(found.text)
    g0 = sx.NetworkSymmetry(
        {'g0': sx.groups.GeneralLinear(3)},
        {
            'a': '_ g0',
            'b': 'g0* _',
        },
        like=params,
    )
    """

    found: tuple[Found, ...]
    rejected: tuple[Found, ...]
    asked: tuple[str, ...]
    unfinished: tuple[str, ...]
    looked: tuple[Look, ...]
    idle: tuple[str, ...]
    steep: tuple[str, ...]
    notes: tuple[str, ...]
    cost: Cost
    evaluations: int
    seconds: float

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Discovery) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @functools.cached_property  # cached because compiled steps compare a static discovery at every call
    def _identity(self) -> tuple:
        """The part that two discoveries of one model share: symmetries and outcomes, no measurements."""
        return tuple(
            (group_code(one.group), one.certificate.outcome, *one.symmetry.specs.items())
            for one in self.found
        )

    def __len__(self) -> int:
        return len(self.found)

    def __iter__(self) -> Iterator[Found]:
        return iter(self.found)

    def __getitem__(self, k: int) -> Found:
        return self.found[k]

    @property
    def exact(self) -> tuple[Found, ...]:
        """The symmetries that hold up to rounding."""
        return tuple(one for one in self.found if one.certificate.outcome == "exact")

    @property
    def approximate(self) -> tuple[Found, ...]:
        """The symmetries that hold up to an error, which their certificates record."""
        return tuple(one for one in self.found if one.certificate.outcome == "approximate")

    def joined(self, *, compact: bool = True, discrete: bool = False) -> NetworkSymmetry | None:
        """Joins all exact symmetries (or all that hold as far as the loss shows); None if there are none.

        Without `compact`, rotations are left out: gradient norms are constant on their whole orbit.
        Symmetries that cannot act together with earlier ones (they would not commute, or no single spec can
        express both) are also left out.
        """
        whole: NetworkSymmetry | None = None
        for one in (one for one in self.found if one.certificate.holds):
            if isinstance(one.group, Permutation | SignDiagonal):
                if not discrete:
                    continue
            elif one.group.compact and not compact:
                continue
            # The order of the report decides: matrix groups first, then scales.
            try:
                whole = one.symmetry if whole is None else whole | one.symmetry
            except ValueError:
                continue
        return whole

    @property
    def text(self) -> str:
        """Python code, ready to paste, that constructs every symmetry found from `params`."""
        return code(self.found)

    def explain(self) -> str:
        """Says in words what each symmetry does, which arrays go together, and what follows from it."""
        return "\n".join(explain(self.found))

    def to_json(self) -> dict[str, Any]:
        """Returns everything except the arrays, as input for `json.dumps`."""
        return {
            "found": [_entry(one) for one in self.found],
            "rejected": [_entry(one) for one in self.rejected],
            "asked": list(self.asked),
            "unfinished": list(self.unfinished),
            "looked": [dataclasses.asdict(look) | {"nearest": _finite(look.nearest)} for look in self.looked],
            "idle": list(self.idle),
            "steep": list(self.steep),
            "notes": list(self.notes),
            "cost": self.cost.to_json(),
            "evaluations": self.evaluations,
            "seconds": self.seconds,
        }

    def __str__(self) -> str:
        return "\n".join([table(self.found), *self._remarks()])

    def __repr__(self) -> str:
        return f"<Discovery of {len(self.found)} symmetries>"

    def _remarks(self) -> Iterator[str]:
        if self.found:
            first = self.found[0].certificate
            data = "on fresh data too" if first.fresh is not None else "on the data given"
            yield (
                f"Certified {data}, {first.trials} random elements each; {first.best} means a change of the "
                f"loss up to {first.tolerance:.0e} of how much it varies, and of gradients up to "
                f"{first.gradient_tolerance:.0e}."
            )
        there = {type(one.group).__name__ for one in self.found}
        # Only what was searched for exhaustively can be called absent.
        absent = [name for name in self.asked if name not in there and name not in self.unfinished]
        if absent:
            yield f"Looked for, and not found but inside what is above: {', '.join(absent)}."
        if self.rejected:
            yield f"{len(self.rejected)} candidates failed their certificate and are not symmetries."
        if self.idle:
            yield f"No effect on the loss: {', '.join(self.idle)}."
        if self.steep:
            yield (
                "An effect on the loss but no gradient (jumps, `stop_gradient`), so that symmetries that "
                f"move them are found only if the program shows them: {', '.join(self.steep)}."
            )
        yield from self.notes
        yield f"{self.evaluations} evaluations of the loss in {self.seconds:.1f} s (foreseen: {self.cost})."


def symmetries_of(evidence: Evidence) -> tuple[Found, ...]:
    """The symmetries to report: those that others do not imply, ordered by group and numbered.

    >>> import jax.numpy as jnp
    >>> from symmetrax.discovery._loss import Loss
    >>> from symmetrax.discovery._scope import Scope
    >>> params, key, rng = {"w": jnp.ones(3)}, jax.random.key(0), np.random.default_rng(0)
    >>> with jax.enable_x64(True):
    ...     loss = Loss(lambda p: jnp.sum(p["w"] ** 2), params, key, None, None, x64=False)
    ...     evidence = Evidence(loss, Scope.of(params), rng, points=2, kept=0)
    >>> symmetries_of(evidence)  # nothing was asked
    ()
    """
    split = {(type(refinement.group), refinement.axes) for refinement, _ in evidence.refined}
    pairs: list[tuple[Candidate, Found]] = [
        (space, one)
        for space, one in evidence.holding
        if (type(space.group), space.axes) not in split
        # A space that was found first may follow from several that were found later.
        and not follows(space, [other for other in evidence.spaces if other is not space])
    ]
    pairs += evidence.refined
    for k, (space, one) in enumerate(evidence.approximate):
        if not follows(space, [*evidence.spaces, *evidence.nearly[k + 1 :]]):
            pairs.append((space, one))
    # The sort is stable: within a group, spaces stay in the order in which they were found.
    pairs.sort(key=lambda pair: GROUPS.index(type(pair[0].group)))
    return tuple(
        dataclasses.replace(one, symmetry=symmetry_of(*candidate.named(number), evidence.loss.given))
        for number, (candidate, one) in enumerate(pairs)
    )


def notes_of(evidence: Evidence, *, rough: bool, searched: bool = True) -> Iterator[str]:
    """Remarks for the reader; with `rough`, certificates avoid `params` itself, and `searched` says whether
    more was done than to read the program.

    >>> import jax.numpy as jnp
    >>> from symmetrax.discovery._loss import Loss
    >>> from symmetrax.discovery._scope import Scope
    >>> params = {"w": jnp.asarray([1.0, 2.0]), "n": jnp.arange(2)}
    >>> with jax.enable_x64(True):
    ...     loss = Loss(lambda p: jnp.sum(p["w"] ** 2), params, jax.random.key(0), None, None, x64=False)
    ...     evidence = Evidence(loss, Scope.of(params), np.random.default_rng(0), points=2, kept=0)
    >>> for note in notes_of(evidence, rough=False):
    ...     print(note)
    Not arrays of floats, and left as they are: n.
    """
    loss = evidence.loss
    special = [path for path, leaf in loss.leaves.items() if leaf.size > 1 and np.ptp(leaf) == 0]
    if special:
        yield (
            f"At special values, where relations hold that hold nowhere else: {listed(special)}. The "
            "search is at perturbed values of all arrays, certificates are there and at `params`."
        )
    if rough:
        yield "The gradient at `params` itself is not finite: certificates are at points near them only."
    if loss.skipped:
        yield f"Not arrays of floats, and left as they are: {listed(loss.skipped)}."
    if loss.narrow:
        yield f"The loss does not run in double precision ({loss.narrow}), and tolerances follow."
    elif loss.precision > DOUBLE:
        yield (
            f"Parts of the loss are computed outside of JAX, to {loss.precision:.0e} only, and "
            "tolerances follow."
        )
    if not searched:
        yield (
            "Read off the program of the loss; what it does not show, such as approximate symmetries, is "
            "searched for with `method='gradients'`, which takes long if there are many parameters."
        )
    if evidence.unread:
        yield (
            "The program of the loss has operations about which nothing is known, so that it may have more "
            f"symmetries than were read off it: {evidence.unread}."
        )
    if evidence.inexpressible:
        yield f"Relations that no spec can say: {listed(evidence.inexpressible)}."
    if partly := [look.only for look in evidence.looked if look.only]:
        yield f"Too many for all combinations, so that only some were tried: {listed(partly)}."
    if evidence.unasked:
        yield f"Not asked, beyond the budget or the memory: {listed(evidence.unasked)}."


def _entry(one: Found) -> dict[str, Any]:
    certificate = dataclasses.asdict(one.certificate)
    return {
        "spaces": {name: str(group) for name, group in one.symmetry.spaces.items()},
        "specs": dict(one.symmetry.specs),
        "gap": [_finite(end) for end in one.gap],
        "outcome": one.certificate.outcome,
        "certificate": {name: _json(value) for name, value in certificate.items()},
    }


def _json(value: Any) -> Any:
    """Converts a field of a certificate: a number, or the numbers of all arrays."""
    if isinstance(value, dict):
        return {path: _finite(error) for path, error in value.items()}
    return _finite(value) if isinstance(value, float) else value


def _finite(value: float) -> float | None:
    """Replaces numbers that are not finite, which JSON cannot represent, by None."""
    return value if math.isfinite(value) else None
