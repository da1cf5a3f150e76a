"""Text for messages and comparisons: near matches of unknown names, and what objects print."""

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any


def near_match(name: str, names: Iterable[str]) -> str:
    """Returns a hint to append to an error about an unknown name; empty if no name is close.

    >>> near_match("ralu", ["tanh", "relu"])
    " Did you mean 'relu'?"
    """
    near = difflib.get_close_matches(name, list(names), 1)
    return f" Did you mean {near[0]!r}?" if near else ""


def listed(names: Sequence[str], most: int = 6) -> str:
    """Returns the first names, and how many more there are.

    >>> listed(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def without_addresses(value: Any) -> str:
    """Returns `repr(value)` without addresses in memory, which differ from process to process.

    >>> without_addresses([print, lambda x: x])
    '[<built-in function print>, <function <lambda>>]'
    """
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
