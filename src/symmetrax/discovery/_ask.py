"""The loop of a search: every question in turn, and a certificate for every candidate."""

import contextlib
import time
from collections.abc import Callable, Sequence

from symmetrax.discovery._certify import HOLDS, Certifier, symmetry_of
from symmetrax.discovery._cost import Cost
from symmetrax.discovery._evidence import Evidence
from symmetrax.discovery._found import Found
from symmetrax.discovery._implied import follows
from symmetrax.discovery._question import Question
from symmetrax.discovery._spaces import Candidate, Refinement, Space
from symmetrax.symmetry._network import NetworkSymmetry

#: Outcomes of certificates, best first.
OUTCOMES = (*HOLDS, "approximate", "wrong")


def ask(
    questions: Sequence[Question],
    evidence: Evidence,
    certify: Certifier,
    progress: Callable[[str], None] | None = None,
    cost: Cost | None = None,
) -> None:
    """Asks all questions in order, and adds everything that they reveal to the evidence.

    With the foreseen `cost`, `progress` also shows how much time is left.

    Answers are computed one by one. Each sees the candidates that were certified before it, which is why
    questions about large groups should come first: what these imply need not be found again.

    >>> import jax, jax.numpy as jnp, numpy as np
    >>> from symmetrax.discovery._loss import Loss
    >>> from symmetrax.discovery._matrix_groups import MatrixGroups
    >>> from symmetrax.discovery._scope import Scope
    >>> params, key, rng = {"w": jnp.ones(3)}, jax.random.key(0), np.random.default_rng(0)
    >>> with jax.enable_x64(True):
    ...     loss = Loss(lambda p: jnp.sum(p["w"] ** 2), params, key, None, None, x64=False)
    ...     evidence = Evidence(loss, Scope.of(params), rng, points=9, kept=9)
    ...     ask([MatrixGroups()], evidence, Certifier(loss, key, rng, trials=1, most=9))
    >>> [str(space.group) for space in evidence.spaces]
    ['Orthogonal(3)']
    """
    start, before = time.perf_counter(), evidence.loss.evaluations

    def left(spent: float) -> str:
        """The time left, judged from the evaluations so far."""
        made = evidence.loss.evaluations
        if cost is None or made == before:
            return ""
        rest = spent / (made - before) * max(0, cost.total - made)
        return f", {'about' if cost.usual else 'at most'} {rest:.0f} s left"

    def tell(place: int, what: str) -> None:
        if progress is not None:
            found, spent = len(evidence.holding) + len(evidence.refined), time.perf_counter() - start
            name = type(questions[place]).__name__
            progress(
                f"question {place + 1} of {len(questions)} ({name}): {what}; {found} found, "
                f"{evidence.loss.evaluations} evaluations, {spent:.0f} s{left(spent)}"
            )

    for place, question in enumerate(questions):
        if not evidence.loss.in_time:
            evidence.leave_out(f"{type(question).__name__}, for which no time was left", *question.finds)
            continue
        tell(place, "asked")
        for answer in question.answers(evidence):
            if answer.candidates:
                kinds = {str(options[0].group) for options in answer.candidates}
                what = ", ".join(sorted(kinds)[:3]) + (" and others" if len(kinds) > 3 else "")
                tell(place, f"certify {len(answer.candidates)} candidates, {what}")
            if answer.look is not None:
                evidence.looked.append(answer.look)
            wanted = [
                [one for one in options if isinstance(one.group, evidence.scope.groups)]
                for options in answer.candidates
            ]
            if answer.likely:
                _certify_together([options for options in wanted if options], evidence, certify)
            else:
                for options in wanted:
                    _certify(options, evidence, certify)


def _certify_together(
    candidates: Sequence[Sequence[Candidate]], evidence: Evidence, certify: Certifier
) -> None:
    """Certifies the first options of all candidates at once; where this fails, of either half, and so on."""
    first = [_symmetry(options[0], evidence) for options in candidates]
    symmetries = [symmetry for symmetry in first if symmetry is not None]
    if len(symmetries) < 2 or not certify.available:
        apart = candidates
    elif not certify.fits(*symmetries):
        apart = _halves(candidates, evidence, certify)
    elif (certificate := certify(*symmetries)).holds:
        for options, symmetry in zip(candidates, first, strict=True):
            if symmetry is not None:
                _keep(options[0], Found(symmetry, certificate, options[0].gap), evidence)
        # Of those whose first option is known, or cannot be expressed, others may be new.
        apart = [options for options, symmetry in zip(candidates, first, strict=True) if symmetry is None]
    else:
        apart = _halves(candidates, evidence, certify)
    for options in apart:
        _certify(options, evidence, certify)


def _halves(
    candidates: Sequence[Sequence[Candidate]], evidence: Evidence, certify: Certifier
) -> list[Sequence[Candidate]]:
    """Certifies either half together; nothing is left afterwards."""
    half = len(candidates) // 2
    _certify_together(candidates[:half], evidence, certify)
    _certify_together(candidates[half:], evidence, certify)
    return []


def _symmetry(candidate: Candidate, evidence: Evidence) -> NetworkSymmetry | None:
    """The symmetry of a candidate that is new; None if it is known, or if no spec can express it."""
    if isinstance(candidate, Space) and follows(candidate, _known(candidate, evidence)):
        return None
    with contextlib.suppress(ValueError):
        return symmetry_of(*candidate.named(0), evidence.loss.given)
    return None


def _certify(options: Sequence[Candidate], evidence: Evidence, certify: Certifier) -> None:
    """Keeps the first option that holds, or else the first that holds approximately."""
    tried: list[tuple[Candidate, Found]] = []
    for candidate in options:
        # A certificate costs evaluations, so that what others imply is not certified again.
        if isinstance(candidate, Space) and follows(candidate, _known(candidate, evidence)):
            continue
        try:
            symmetry = symmetry_of(*candidate.named(len(evidence.holding)), evidence.loss.given)
        except ValueError as error:
            evidence.inexpressible.append(f"{candidate.group} ({error})")
            continue
        if not certify.available:
            what = f"the certificate of {candidate.group} ({evidence.scope.trials} evaluations)"
            evidence.leave_out(what, type(candidate.group))
            continue
        if not certify.fits(symmetry):
            evidence.leave_out(f"the certificate of {candidate.group}, too large", type(candidate.group))
            continue
        tried.append((candidate, Found(symmetry, certify(symmetry), candidate.gap)))
        if tried[-1][1].certificate.holds:
            break
    if tried:
        _keep(*min(tried, key=lambda pair: OUTCOMES.index(pair[1].certificate.outcome)), evidence)


def _known(space: Space, evidence: Evidence) -> list[Space]:
    """The spaces in which this one would be redundant; approximate ones count unless it looks exact."""
    return [*evidence.spaces, *(evidence.nearly if space.gap[0] > evidence.threshold else ())]


def _keep(candidate: Candidate, found: Found, evidence: Evidence) -> None:
    if isinstance(candidate, Refinement):
        # If a refinement fails, the space that it would have split holds anyway: there is nothing to report.
        if found.certificate.holds:
            evidence.refined.append((candidate, found))
    elif found.certificate.holds:
        evidence.holding.append((candidate, found))
    elif found.certificate.outcome == "wrong":
        evidence.rejected.append(found)
    elif not follows(candidate, evidence.nearly):
        evidence.approximate.append((candidate, found))
