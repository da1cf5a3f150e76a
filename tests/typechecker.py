"""The runtime type checker of the tests."""

from collections.abc import Callable

from beartype import beartype


def check(function: Callable) -> Callable:
    """`function`, checked by beartype unless it is local.

    Local functions are made, and would be decorated, at every call of the one around them.
    """
    return function if "<locals>" in getattr(function, "__qualname__", "") else beartype(function)
