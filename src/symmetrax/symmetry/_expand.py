"""Expansion of the patterns `{i}` in specs and spaces into one copy for every matching array."""

import re
import string
from collections.abc import Mapping
from typing import Any

from symmetrax._text import near_match
from symmetrax.groups._diagonal import AbstractGroup
from symmetrax.symmetry._paths import match_paths
from symmetrax.symmetry._specs import names_in

#: The values of the fields `{i}` of one matching path.
Fields = dict[str, str]


def expand_specs(specs: Mapping[str, str], arrays: Mapping[str, Any]) -> tuple[dict[str, str], list[Fields]]:
    """The spec of every array, and the fields of every match.

    >>> expand_specs({"w{i}": "h{i} _"}, {"w0": None, "w1": None})
    ({'w0': 'h0 _', 'w1': 'h1 _'}, [{'i': '0'}, {'i': '1'}])
    """
    expanded: dict[str, str] = {}
    matches: list[Fields] = []
    for pattern, text in specs.items():
        for name, fields in match_paths(pattern, arrays).items():
            if name in expanded:
                raise ValueError(
                    f"The array {name!r} has two specs, the second from {pattern!r}: keep one of them."
                )
            expanded[name] = _fill(text, fields, pattern)
            matches.append(fields)
    return expanded, matches


def expand_spaces(
    spaces: Mapping[str, AbstractGroup], specs: Mapping[str, str], matches: list[Fields]
) -> dict[str, AbstractGroup]:
    """A space for every copy that a spec names, copies of one pattern in natural order.

    >>> import symmetrax as sx
    >>> matches = [{"i": "10"}, {"i": "9"}]
    >>> list(expand_spaces({"h{i}": sx.groups.Permutation(3)}, {"w10": "h10", "w9": "h9"}, matches))
    ['h9', 'h10']
    """
    used = {name for text in specs.values() for name in names_in(text)}
    expanded: dict[str, AbstractGroup] = {}
    for pattern, group in spaces.items():
        wanted = {field for _, field, _, _ in string.Formatter().parse(pattern) if field is not None}
        copies = (
            {pattern.format(**fields) for fields in matches if wanted <= set(fields)} if wanted else {pattern}
        )
        # Only copies that a spec names: `a{i}` has no copy for a path whose spec does not use it.
        names = sorted(copies & used, key=_natural)
        if not names:
            raise ValueError(
                f"The space {pattern!r} has no spec.{near_match(pattern, used)} Name it in the spec of an "
                "array on which it acts, or remove it."
            )
        expanded |= dict.fromkeys(names, group)
    return expanded


def check_indices(spaces: Mapping[str, AbstractGroup]) -> None:
    """Raises ValueError if an index is also a space: its action would not commute with the indexed group.

    >>> import symmetrax as sx
    >>> spaces = {"h": sx.groups.Permutation(2), "a": sx.groups.PositiveDiagonal(3, per={"h": 2})}
    >>> check_indices(spaces)
    Traceback (most recent call last):
    ValueError: 'h' is a space and an index of another group, and the two do not commute: make...
    """
    for name in (name for group in spaces.values() for name, _ in group.per):
        if name in spaces:
            raise ValueError(
                f"{name!r} is a space and an index of another group, and the two do not commute: make two "
                "symmetries, or give the index another name."
            )


def _fill(text: str, fields: Fields, pattern: str) -> str:
    try:
        return text.format(**fields)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"The spec {text!r} of {pattern!r} has a {{}} that its path does not have, or a brace too many "
            f"({error}): use only the fields of the path."
        ) from None


def _natural(name: str) -> list:
    """Sort key that puts qk2 before qk10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
