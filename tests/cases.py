"""Which cases of a test with many run always, and which under `make test-slow` only."""

from collections.abc import Iterable
from typing import Any

import pytest


def mostly_slow(cases: Iterable[Any], quick: Iterable[Any], *, unpack: bool = False) -> list[Any]:
    """`cases` as parameters of a test: marked slow, but for those whose text is that of one in `quick`.

    For matrices of cases that go through the same code: the quick ones are to meet every branch of it once.
    With `unpack` a case is a tuple with a value for each of several arguments.
    """
    cases, names = list(cases), set(map(str, quick))
    unknown = names - set(map(str, cases))
    assert not unknown, f"There are no cases {sorted(unknown)}."
    return [
        pytest.param(*(case if unpack else (case,)), marks=() if str(case) in names else pytest.mark.slow)
        for case in cases
    ]
