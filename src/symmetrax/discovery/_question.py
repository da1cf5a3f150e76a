"""The interface of a question: one kind of symmetry, what it costs to look for, and where it may act."""

import abc
import dataclasses
from collections.abc import Iterator, Sequence
from typing import ClassVar

from symmetrax.discovery._cost import Cost
from symmetrax.discovery._evidence import Evidence
from symmetrax.discovery._found import Look
from symmetrax.discovery._scope import Scope
from symmetrax.discovery._spaces import Candidate
from symmetrax.groups._diagonal import AbstractGroup


@dataclasses.dataclass(frozen=True)
class Answer:
    """Candidates that a question nominates together, with a record of how closely it looked.

    Each candidate is a list of options to certify in order, until one holds. The next answer is computed
    only after these have been certified, so it can build on those that hold. Where nearly all are expected to
    hold (`likely`), their first options are certified together, and apart only where this fails.

    >>> look = Look("scales", ((), 4), sites=3, found=0, nearest=0.2)
    >>> Answer([], look).look.nearest  # nothing to certify, and nothing that comes close
    0.2
    """

    candidates: Sequence[Sequence[Candidate]]
    look: Look | None = None
    likely: bool = False


class Question(abc.ABC):
    """One kind of symmetry to look for.

    A question nominates candidates, and decides nothing: each of them is certified before it is reported or
    used. A subclass states the groups it can find, its cost, and its answers, and knows everything that is
    special about its kind: what must be known first, and what to record if the budget does not suffice.
    Questions hold options at most; everything that a search learns is in `Evidence`.

    >>> class Hunch(Question):
    ...     finds = (AbstractGroup,)
    ...
    ...     def answers(self, evidence):
    ...         yield Answer([])
    >>> Hunch().cost(Scope((), arrays=2, size=64)).total  # beyond what every search needs
    3
    """

    #: The groups that it can find; it is asked if any of them is searched for.
    finds: ClassVar[tuple[type[AbstractGroup], ...]]

    #: Whether its groups are absent where it finds none.
    exhaustive: ClassVar[bool] = True

    def kept(self, scope: Scope) -> int:
        """The number of gradients at generic points that it reads in full, which have to be kept."""
        return 0

    def cost(self, scope: Scope) -> Cost:
        """The evaluations that it needs, known before any is made; certificates are counted elsewhere."""
        return Cost()

    @abc.abstractmethod
    def answers(self, evidence: Evidence) -> Iterator[Answer]:
        """Nominates candidates, given what is known so far."""
