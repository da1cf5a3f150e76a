"""The result of a search: certified symmetries, as a table, as code to paste, and as JSON."""

import dataclasses
import functools
import math
import re
import string
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from symmetrax.discovery._certify import Certificate, as_pattern
from symmetrax.discovery._lie import Look
from symmetrax.groups._diagonal import AbstractGroup, Permutation, SignDiagonal
from symmetrax.groups._matrices import Orthogonal, ScaledRotation
from symmetrax.symmetry._network import NetworkSymmetry


@dataclasses.dataclass(frozen=True)
class Found:
    """A symmetry of one space, its certificate, and the numerical gap that decided it.

    `gap` holds the largest number that counted as zero and the smallest that did not: singular values of
    columns of length about 1 for Lie groups, relative differences for permutations and signs.

    >>> import jax, jax.numpy as jnp, symmetrax as sx
    >>> x = jnp.array([[1.0, 2.0], [0.5, -1.0], [-1.0, 3.0]])
    >>> loss = lambda p: jnp.mean((x @ p["a"].T @ p["b"].T - x) ** 2)
    >>> params = {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 3))}
    >>> (one,) = sx.find_symmetries(loss, params, jax.random.key(0), groups=[sx.groups.GeneralLinear])
    >>> one.name, str(one.group), one.certificate.outcome, one.gap[0] < 1e-4 < one.gap[1]
    ('g0', 'GeneralLinear(3)', 'exact', True)
    """

    symmetry: NetworkSymmetry
    certificate: Certificate
    gap: tuple[float, float]

    @property
    def name(self) -> str:
        return next(iter(self.symmetry.spaces))

    @property
    def group(self) -> AbstractGroup:
        return self.symmetry.spaces[self.name]


@dataclasses.dataclass(frozen=True)
class Cost:
    """Evaluations of the loss, counting both gradients and values, by purpose.

    `points` and `checks` are exact; the other fields are upper bounds.

    >>> Cost(points=20, segments=0, permutations=10, signs=4, certificates=12).total
    49
    """

    points: int
    segments: int
    permutations: int
    signs: int
    certificates: int
    idle: int = 0
    checks: int = 3

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))

    def __str__(self) -> str:
        return (
            f"{self.checks} checks, {self.points} gradients at generic points; at most "
            f"{self.idle} for arrays without a gradient, {self.segments} more for fused axes, "
            f"{self.permutations} for permutations, {self.signs} for signs, {self.certificates} for "
            "certificates"
        )


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
        return isinstance(other, Discovery) and self._told == other._told

    def __hash__(self) -> int:
        return hash(self._told)

    @functools.cached_property  # cached because compiled steps compare a static discovery at every call
    def _told(self) -> tuple:
        """The part that two discoveries of one model share: symmetries and outcomes, not defects or times."""
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
        """The symmetries that hold up to a defect, which their certificates record."""
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
            try:
                whole = one.symmetry if whole is None else whole | one.symmetry
            except ValueError:
                continue
        return whole

    @property
    def text(self) -> str:
        """Python code, ready to paste, that constructs every symmetry found from `params`."""
        return "\n\n".join(_code(family) for family in families(self.found))

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
            "cost": dataclasses.asdict(self.cost) | {"total": self.cost.total},
            "evaluations": self.evaluations,
            "seconds": self.seconds,
        }

    def __str__(self) -> str:
        return "\n".join([_table(self.found), *self._remarks()])

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
                f"move them cannot be found: {', '.join(self.steep)}."
            )
        yield from self.notes
        yield f"{self.evaluations} evaluations of the loss in {self.seconds:.1f} s (foreseen: {self.cost})."


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
        return {path: _finite(loss_change) for path, loss_change in value.items()}
    return _finite(value) if isinstance(value, float) else value


def _finite(value: float) -> float | None:
    """Replaces numbers that are not finite, which JSON cannot represent, by None."""
    return value if math.isfinite(value) else None


@dataclasses.dataclass(frozen=True)
class _Family:
    """Symmetries of repeated layers, which differ in one number in the paths of their arrays."""

    members: list[Found]
    specs: dict[str, str]

    @property
    def name(self) -> str:
        return self.members[0].name + ("_{i}" if len(self.members) > 1 else "")

    def worst(self) -> Certificate:
        return max((one.certificate for one in self.members), key=lambda c: (not c.holds, c.loss_change))


def families(found: Sequence[Found]) -> list[_Family]:
    """Groups the symmetries of repeated layers, in the order in which they were found."""
    by_pattern: dict[tuple, list[tuple[Found, dict[str, str]]]] = {}
    for k, one in enumerate(found):
        numbers = {part for path in one.symmetry.specs for part in path.split(".") if part.isdigit()}
        alone = len(numbers) != 1 or any("{" in path or "}" in path for path in one.symmetry.specs)
        number = "" if alone else numbers.pop()
        paths = {
            path: ".".join("{i}" if part == number else part for part in path.split("."))
            for path in one.symmetry.specs
        }
        specs = {paths[path]: text for path, text in one.symmetry.specs.items()}
        own = re.escape(one.name.lstrip(string.ascii_letters))
        plain = tuple((path, re.sub(rf"\b([a-z]){own}\b", r"\1", text)) for path, text in specs.items())
        pattern = (str(k) if alone else "", str(one.group.lengths), type(one.group), one.group.size, plain)
        by_pattern.setdefault((*pattern, one.certificate.outcome), []).append((one, specs))
    made = []
    for members in by_pattern.values():
        first, specs = members[0]
        if len(members) > 1:
            specs = {
                path: re.sub(rf"\b{first.name}\b", first.name + "_{i}", text) for path, text in specs.items()
            }
        else:
            specs = dict(first.symmetry.specs)
        made.append(_Family([one for one, _ in members], specs))
    return made


def _table(found: Sequence[Found]) -> str:
    """Formats one line per symmetry or family, followed by its specs."""
    if not found:
        return "No symmetries found."
    rows = [("space", "outcome", "loss", "gradient", "gap")]
    groups = families(found)
    for family in groups:
        certificate, count = family.worst(), len(family.members)
        gap = max(one.gap[0] for one in family.members), min(one.gap[1] for one in family.members)
        rows.append(
            (
                f"{family.name}: {family.members[0].group}" + (f", {count} times" if count > 1 else ""),
                certificate.outcome,
                f"{certificate.loss_change:.0e}",
                f"{certificate.gradient:.0e}",
                f"{gap[0]:.0e} | {gap[1]:.0e}",
            )
        )
    widths = [max(len(row[k]) for row in rows) for k in range(5)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    out = [lines[0]]
    for line, family in zip(lines[1:], groups, strict=True):
        width = max(map(len, family.specs))
        out += [line, *(f"    {path:<{width}}  {text}" for path, text in family.specs.items())]
    return "\n".join(out)


def _code(family: _Family) -> str:
    alone = len(family.members) == 1
    paths = {path: as_pattern(path) if alone else path for path in family.specs}
    specs = "".join(f"        {paths[path]!r}: {text!r},\n" for path, text in family.specs.items())
    return (
        f"{family.members[0].name} = sx.NetworkSymmetry(\n"
        f"    {{{family.name!r}: {group_code(family.members[0].group)}}},\n"
        f"    {{\n{specs}    }},\n    like=params,\n)"
    )


def group_code(group: AbstractGroup) -> str:
    """Formats a group as the Python expression that constructs it.

    >>> import symmetrax as sx
    >>> group_code(sx.groups.GeneralLinear(4, per={"h": 2}))
    "sx.groups.GeneralLinear(4, per={'h': 2})"
    """
    arguments = [] if isinstance(group, ScaledRotation) else [str(group.size)]
    arguments += [f"per={dict(group.per)}"] if group.per else []
    if isinstance(group, ScaledRotation) and group.unit:
        arguments.append("unit=True")
    if isinstance(group, Orthogonal) and group.fix:
        arguments.append(f"fix={group.fix!r}")
    return f"sx.groups.{type(group).__name__}({', '.join(arguments)})"
