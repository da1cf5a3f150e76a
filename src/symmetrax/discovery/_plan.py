"""The plan of a search, made before any evaluation: its questions and their cost."""

import dataclasses
from collections.abc import Sequence

from jaxtyping import PyTree

from symmetrax.discovery._cost import Cost
from symmetrax.discovery._memory import Memory, share_of
from symmetrax.discovery._question import Question
from symmetrax.discovery._questions import questions_of
from symmetrax.discovery._scope import GROUPS, Scope
from symmetrax.groups._diagonal import AbstractGroup

#: Kinds of candidates that the program of a loss usually shows, which are certified together.
KINDS = 5

#: Candidates of every group that an axis carries at most, on average: one that holds, and one that fails.
MOST_CANDIDATES = 2


def discovery_cost(
    params: PyTree,
    *,
    groups: Sequence[type[AbstractGroup]] = GROUPS,
    heads: int | Sequence[int] | None = None,
    trials: int = 3,
    method: str = "auto",
) -> Cost:
    """Predicts the cost of `find_symmetries` with these arguments, in evaluations of the loss.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> params = {"w": jnp.ones((4, 3)), "b": jnp.zeros(4), "out": jnp.ones((2, 4))}
    >>> print(discovery_cost(params, groups=[sx.groups.PositiveDiagonal]))
    3 checks, 15 gradients at generic points; at most 4 for arrays without a gradient, 0 more
    for fused axes, 0 for permutations, 0 for signs, 36 for certificates
    """
    return Plan.of(params, groups, heads, trials, method=method).cost


@dataclasses.dataclass(frozen=True)
class Plan:
    """The questions to ask in this scope, and their cost.

    `whole` is the number of gradients that are kept in full, `candidates` the maximum number of certificates.

    >>> import jax.numpy as jnp
    >>> plan = Plan.of({"w": jnp.ones((4, 3))}, GROUPS, None, 3)
    >>> plan.whole, plan.candidates, plan.cost.points
    (6, 24, 13)
    >>> plan.afford(20)
    Traceback (most recent call last):
    ValueError: A budget of 20 evaluations is too small: these groups on these arrays need 13 gradients ...
    """

    scope: Scope
    questions: tuple[Question, ...]
    whole: int
    candidates: int
    cost: Cost
    memory: Memory

    @classmethod
    def of(
        cls,
        params: PyTree,
        groups: type[AbstractGroup] | Sequence[type[AbstractGroup]],
        heads: int | Sequence[int] | None,
        trials: int,
        questions: Sequence[Question] | None = None,
        method: str = "auto",
        memory: float | int | None = None,
    ) -> "Plan":
        """Plans a search of these parameters, with questions of your own or those of a method.

        Raises ValueError if the request makes no sense.
        """
        scope = Scope.of(params, groups, heads, trials, share_of(memory))
        questions = questions_of(method, scope) if questions is None else questions
        asked = tuple(question for question in questions if scope.wants(*question.finds))
        whole = max([0, *(question.kept(scope) for question in asked)])
        candidates = MOST_CANDIDATES * len(scope.groups) * len(scope.axes)
        # One point at least, and one loss more for every array whose gradient is zero there. Certificates
        # need a gradient at each of their own points, some of which may have to be drawn twice.
        if any(question.exhaustive for question in asked):
            shared = Cost(points=max(whole, 1), idle=1 + scope.arrays, certificates=trials * (2 + candidates))
        else:  # the points of certificates, and one certificate for each kind of candidates
            shared = Cost(points=1, certificates=trials * (1 + KINDS), usual=True)
        own = [question.cost(scope) for question in dict.fromkeys(asked)]  # what is asked twice, counts once
        gathers = any(question.exhaustive for question in asked)
        bound = None if memory is None else int(memory)
        held = Memory(bound, scope.size, scope.largest, trials, whole, gathers)
        return cls(scope, asked, whole, candidates, sum(own, shared), held)

    def afford(self, budget: int | None) -> None:
        """Raises ValueError if the budget does not cover the gradients that the whole search depends on."""
        trials = self.scope.trials
        least = self.cost.checks + self.cost.points + 1 + 2 * trials
        if budget is not None and budget < least:
            raise ValueError(
                f"A budget of {budget} evaluations is too small: these groups on these arrays need "
                f"{self.cost.points} gradients at generic points and {2 * trials} evaluations to "
                f"certify the first of what is found, {least} in all. In full: {self.cost}. Fewer `groups` "
                "or `heads` cost less."
            )
