"""Suggestions of near matches for unknown names."""

import difflib
from collections.abc import Iterable


def near_match(name: str, names: Iterable[str]) -> str:
    """Returns a hint to append to an error about an unknown name; empty if no name is close.

    >>> near_match("ralu", ["tanh", "relu"])
    " Did you mean 'relu'?"
    """
    near = difflib.get_close_matches(name, list(names), 1)
    return f" Did you mean {near[0]!r}?" if near else ""
