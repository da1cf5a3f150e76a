"""What the arms of a study did on a family of tasks, and how that is compared and judged."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from symmetrax.studies.core._choice import choose_arm
from symmetrax.studies.core._runs import Runs
from symmetrax.studies.core._statistics import compare, intervals, log_ratios, verdict
from symmetrax.studies.core._study import Claim, Study

#: The test on the family that an arm was trained on; others have names.
OWN = ""
#: The test on tasks that arms are chosen on, which are not reported.
VALIDATION = "validation"


class Played(NamedTuple):
    """The runs of all arms on a family: `runs` by test, arm and horizon, and facts about each arm.

    >>> Played._fields
    ('runs', 'facts', 'horizons')
    """

    runs: dict[tuple[str, str, int], Runs]
    facts: dict[str, dict[str, Any]]
    horizons: tuple[int, ...]

    @property
    def steps(self) -> int:
        """The last horizon."""
        return max(self.horizons)

    @property
    def tests(self) -> list[str]:
        """The names of the tests that are reported."""
        return list(dict.fromkeys(test for test, _, _ in self.runs if test != VALIDATION))

    def losses(self, test: str, steps: int) -> dict[str, Float[np.ndarray, "seeds tasks points"]]:
        """The losses of every arm on a test, up to a horizon."""
        asked = {arm: runs for (t, arm, h), runs in self.runs.items() if (t, h) == (test, steps)}
        return {arm: runs.until(steps) for arm, runs in asked.items()}


def groups(study: Study, family: str, played: Played) -> Iterator[tuple[str, dict[str, Any]]]:
    """The arms of `results.json` for every test and horizon of a family, by the name of the group.

    >>> runs = {("", "sgd", 4): Runs(np.ones((2, 3, 5)), {}, {}, 0.1)}
    >>> card = {"sgd": {"seconds": 0.1, "gradient_evaluations": 4.0}}
    >>> study = Study("rates", "Which rate is better?", references=("sgd",))
    >>> [(name, [*arms]) for name, arms in groups(study, "booth", Played(runs, card, (4,)))]
    [('booth', ['sgd'])]
    """
    for test in played.tests:
        for steps in played.horizons:
            horizon = str(steps) if len(played.horizons) > 1 else ""
            name = "-".join(part for part in (family, test, horizon) if part)
            losses = played.losses(test, steps)
            seeds, tasks, _ = next(iter(losses.values())).shape
            arms = compare(losses, study.against, seeds * tasks)
            for arm in arms:
                arms[arm] |= _scaled(_on(played.facts[arm], test), steps, played.steps)
                points = played.runs[test, arm, steps].points
                if points is not None:
                    arms[arm]["points"] = [point for point in points if point <= steps]
            yield name, arms


def choose(study: Study, played: Played) -> dict[str, Any] | None:
    """The candidate that is chosen on a family, and those that it is chosen from, if there are any.

    >>> choose(Study("rates", "Which rate is better?"), Played({}, {}, (4,))) is None
    True
    """
    seen = {arm: played.runs.get((VALIDATION, arm, played.steps)) for arm in study.candidates}
    seen = {arm: ran for arm, ran in seen.items() if ran is not None}
    if not seen:
        return None
    horizons = study.judged or played.horizons
    places = [next(iter(seen.values())).until(steps).shape[-1] - 1 for steps in horizons]
    return {"arm": choose_arm({arm: r.losses for arm, r in seen.items()}, places), "of": list(seen)}


def verdicts(study: Study, family: str, played: Played, chosen: str, where: str) -> Iterator[dict[str, str]]:
    """The outcomes of the claims about a family, at every horizon; `where` follows the text of a claim.

    >>> runs = {("", arm, 4): Runs(np.full((3, 4, 5), x), {}, {}, 0.1) for arm, x in (("a", 1.0), ("b", 2.0))}
    >>> study = Study("rates", "Which rate is better?", claims=(Claim("a", "b", "a beats b"),))
    >>> next(verdicts(study, "booth", Played(runs, {}, (4,)), "a", " on Booth"))["claim"]
    'a beats b on Booth'
    """
    claims = [claim.about(chosen) for claim in study.claims_on(family)]
    for steps in study.judged or played.horizons:
        after = f" after {steps} steps" if len(played.horizons) > 1 else ""
        yield from judged(claims, played.losses(OWN, steps), "{}" + where + after)


def judged(
    claims: Iterable[Claim],
    losses: Mapping[str, Float[np.ndarray, "seeds tasks _"]],
    form: str = "{}",
    margin: float = 0.0,
) -> Iterator[dict[str, str]]:
    """The outcomes of claims whose arms are both there; `form` says where, around the text of a claim.

    Arms may run for different numbers of steps: their last losses are compared. Where the whole interval of
    the log ratio is within `margin` of zero, arms are as good as equal, and the claim is inconclusive.

    >>> losses = {"a": np.ones((3, 4, 2)), "b": np.full((3, 4, 9), 2.0)}
    >>> next(judged([Claim("a", "b", "a beats b")], losses, "{} on Booth"))["claim"]
    'a beats b on Booth'
    """
    asked = [claim for claim in claims if claim.first in losses and claim.second in losses]
    pairs = {(c.first, c.second): log_ratios(losses[c.first], losses[c.second]) for c in asked}
    found = intervals(pairs)
    for claim in asked:
        interval = found[claim.first, claim.second]
        row = verdict(form.format(claim.text), claim.source, interval, negative=claim.lower)
        if max(abs(interval.low), abs(interval.high)) < margin:
            row |= {"outcome": "inconclusive", "why": f"final losses are equal to {margin:.0%}"}
        yield row


def _on(card: dict[str, Any], test: str) -> dict[str, Any]:
    """The facts about an arm on a test."""
    own = {name: value for name, value in card.items() if name != "tests"}
    return own if test == OWN else own | card["tests"][test]


def _scaled(card: dict[str, Any], steps: int, all_steps: int) -> dict[str, Any]:
    """The facts about an arm that ran `all_steps` steps, for the first `steps` of them."""
    scaled = {name: card[name] * steps / all_steps for name in ("seconds", "gradient_evaluations")}
    tuned = card.get("hyperparameters")
    return {**card, **scaled, **({} if tuned is None else {"hyperparameters": tuned[str(steps)]})}
