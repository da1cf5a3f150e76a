"""Candidates that the program of the loss states: heads, splits, concatenations, what passes through."""

from collections.abc import Iterator

from symmetrax.discovery._evidence import Evidence
from symmetrax.discovery._question import Answer, Question
from symmetrax.discovery._scope import GROUPS
from symmetrax.discovery._trace._candidates import Hidden, candidates
from symmetrax.discovery._trace._reader import read
from symmetrax.discovery._trace._sliced import sliced


class Program(Question):
    """Which spaces the traced program of the loss shows, and which groups its operations leave them.

    It needs no gradients, and its cost grows with the length of the program, not with the number of axes. An
    operation without a rule lets nothing act on its inputs, so that candidates are missing, never wrong for
    good: they are certified like all others.

    >>> import jax, jax.numpy as jnp, numpy as np
    >>> from symmetrax.discovery._loss import Loss
    >>> from symmetrax.discovery._scope import Scope
    >>> params, key = {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 3))}, jax.random.key(0)
    >>> with jax.enable_x64(True):
    ...     loss = Loss(lambda p: jnp.sum((p["a"] @ p["b"]) ** 2), params, key, None, None, x64=False)
    ...     evidence = Evidence(loss, Scope.of(params), np.random.default_rng(0), points=1, kept=0)
    ...     answer, *_ = Program().answers(evidence)
    >>> str(answer.candidates[0][0].group), answer.candidates[0][0].named(0)[1]
    ('GeneralLinear(2)', {'a': '_ g0', 'b': 'g0* _'})
    """

    finds = GROUPS
    exhaustive = False

    def answers(self, evidence: Evidence) -> Iterator[Answer]:
        try:
            reading = read(evidence.loss.program(), list(evidence.loss.given))
        except Exception as error:  # programs are endless in kind, and the gradients are still there
            evidence.unread = f"{type(error).__name__}: {error}".splitlines()[0]
            return
        if reading is None:
            evidence.unread = "its spaces are cut without end"
            return
        evidence.unread = ", ".join(reading.unknown)
        hidden = Hidden(reading, evidence.measured.idle)
        for likely in candidates(hidden):
            yield Answer(likely, likely=True)
        yield Answer(list(sliced(hidden)))
