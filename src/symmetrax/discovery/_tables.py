"""Symmetries found as a table and as code to paste, with those of repeated layers written once."""

import dataclasses
import math
import re
import string
from collections.abc import Sequence

from symmetrax.discovery._certify import Certificate, as_pattern
from symmetrax.discovery._found import Found
from symmetrax.groups._diagonal import AbstractGroup
from symmetrax.groups._matrices import Orthogonal, ScaledRotation


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


def _families(found: Sequence[Found]) -> list[_Family]:
    """Groups the symmetries of repeated layers, in the order in which they were found."""
    by_pattern: dict[tuple, list[tuple[Found, dict[str, str]]]] = {}
    for k, one in enumerate(found):
        numbers = {part for path in one.symmetry.specs for part in path.split(".") if part.isdigit()}
        # With two numbers (layer and expert, say), one pattern cannot tell which of them repeats.
        alone = len(numbers) != 1 or any("{" in path or "}" in path for path in one.symmetry.specs)
        number = "" if alone else numbers.pop()
        paths = {
            path: ".".join("{i}" if part == number else part for part in path.split("."))
            for path in one.symmetry.specs
        }
        specs = {paths[path]: text for path, text in one.symmetry.specs.items()}
        # Numbers of spaces differ between layers that are otherwise alike, so they are left out.
        own = re.escape(one.name.lstrip(string.ascii_letters))
        plain = tuple((path, re.sub(rf"\b([a-z]){own}\b", r"\1", text)) for path, text in specs.items())
        pattern = (str(k) if alone else "", str(one.group.lengths), type(one.group), one.group.size, plain)
        # Outcomes are part of the key: an approximate layer must not hide among exact ones.
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


def code(found: Sequence[Found]) -> str:
    """Python code that constructs the symmetries from `params`.

    >>> import numpy as np, symmetrax as sx
    >>> symmetry = sx.NetworkSymmetry({"e": sx.groups.SignDiagonal(3)}, {"w": "e _"}, {"w": np.ones((3, 2))})
    >>> certificate = Certificate(0.0, None, {"w": 0.0}, 3, tolerance=1e-9, gradient_tolerance=1e-8)
    >>> print(code([Found(symmetry, certificate, (0.0, 0.5))]))
    e = sx.NetworkSymmetry(
        {'e': sx.groups.SignDiagonal(3)},
        {
            'w': 'e _',
        },
        like=params,
    )
    """
    return "\n\n".join(_code(family) for family in _families(found))


def table(found: Sequence[Found]) -> str:
    """Formats one line per symmetry, or per repeated symmetry, followed by its specs.

    >>> import numpy as np, symmetrax as sx
    >>> symmetry = sx.NetworkSymmetry({"e": sx.groups.SignDiagonal(3)}, {"w": "e _"}, {"w": np.ones((3, 2))})
    >>> certificate = Certificate(0.0, None, {"w": 0.0}, 3, tolerance=1e-9, gradient_tolerance=1e-8)
    >>> print(table([Found(symmetry, certificate, (0.0, 0.5))]))
    space               outcome  loss   gradient  gap
    e: SignDiagonal(3)  exact    0e+00  0e+00     0e+00 | 5e-01
        w  e _
    """
    if not found:
        return "No symmetries found."
    rows = [("space", "outcome", "loss", "gradient", "gap")]
    groups = _families(found)
    for family in groups:
        certificate, count = family.worst(), len(family.members)
        gap = max(one.gap[0] for one in family.members), min(one.gap[1] for one in family.members)
        rows.append(
            (
                f"{family.name}: {family.members[0].group}" + (f", {count} times" if count > 1 else ""),
                certificate.outcome,
                f"{certificate.loss_change:.0e}",
                f"{certificate.gradient:.0e}",
                "program" if math.isnan(gap[0]) else f"{gap[0]:.0e} | {gap[1]:.0e}",
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
    # Braces in a path are literal in a single symmetry, and a placeholder in a family.
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
