"""A claim that can be checked as a number, and the four things that can become of it."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax

Outcome = Literal["holds", "holds only if", "does not hold", "failed"]


class Split(NamedTuple):
    """What is measured where a condition is met, and where it is not.

    >>> Split(0.0, 0.5).outside
    0.5
    """

    inside: float
    outside: float


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim, where it is made, and the check.

    `measure` returns what speaks against the claim: an error, a violation, the share of exceptions.

    - The claim holds if that is at most `bound`.
    - With a `condition` that its source does not state, `measure` returns a `Split`: the claim holds only if
      the condition does, when the number inside is at most `bound` and the one outside above it.
    - With `wrong`, it is known not to hold, and the number must be at least `bound`.

    >>> CLAIM = Claim("x > 0", "a book", lambda: Split(0.0, 1.0), 0.5, condition="x is a square")
    >>> check(CLAIM)["outcome"]
    'holds only if'
    """

    claim: str
    source: str
    measure: Callable[[], float | Split]
    bound: float
    condition: str | None = None
    wrong: bool = False


def check(claim: Claim) -> dict[str, Any]:
    """Measure a claim, in float64. Any other outcome than the expected one is "failed".

    >>> check(Claim("one is small", "nowhere", lambda: 1.0, 0.5))["outcome"]
    'failed'
    """
    with jax.enable_x64(True):
        measured = claim.measure()
    outside = None
    if isinstance(measured, Split):
        measured, outside = float(measured.inside), float(measured.outside)
    measured = float(measured)
    return {
        "claim": claim.claim,
        "source": claim.source,
        "measured": measured,
        "bound": claim.bound,
        "outcome": _outcome(claim, measured, outside),
        "condition": claim.condition,
        "without": outside,
    }


def _outcome(claim: Claim, measured: float, outside: float | None) -> Outcome:
    if claim.wrong:
        return "does not hold" if measured >= claim.bound else "failed"
    if not measured <= claim.bound:
        return "failed"
    if claim.condition is None:
        return "holds"
    # An exception that is NaN or infinite is one, too.
    return "holds only if" if outside is not None and not outside <= claim.bound else "failed"
