"""Words for people: near matches of names that were not found."""

import difflib
from collections.abc import Iterable


def near_match(name: str, names: Iterable[str]) -> str:
    """A hint to append to an error about an unknown name; empty if nothing is near.

    >>> near_match("ralu", ["tanh", "relu"])
    " Did you mean 'relu'?"
    """
    near = difflib.get_close_matches(name, list(names), 1)
    return f" Did you mean {near[0]!r}?" if near else ""
