"""The runtime type checker of the tests."""

import functools
from collections.abc import Callable

import jaxtyping
from beartype import beartype as check

__all__ = ["check"]

_jaxtyped = jaxtyping.jaxtyped


def _unless_local(function: Callable | None = None, **options) -> Callable:
    """`jaxtyping.jaxtyped`, except that local functions stay as they are."""
    if function is None:
        return functools.partial(_unless_local, **options)
    return function if "<locals>" in function.__qualname__ else _jaxtyped(function, **options)


# Local functions are made, and would be decorated, at every call of the one around them: a tenth of the time.
jaxtyping.jaxtyped = _unless_local
