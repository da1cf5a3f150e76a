"""What `classification` concludes: statistics of its arms, verdicts, and answers in words."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float

from symmetrax.studies.core._console import number
from symmetrax.studies.core._run_facts import step_medians
from symmetrax.studies.core._runs import Runs
from symmetrax.studies.core._statistics import Interval, compare, summary, t_interval, verdict
from symmetrax.studies.core._study import Claim

SOURCE = "arXiv:2504.15399, section 5.2"
CONTROL = "not in the paper: a control"

#: Arms that every other is compared with.
REFERENCES = ("lr", "lr-tele", "lr-tele-momentum", "update", "whole-lr", "whole-lr-tele", "adam")

#: Claims: the first arm ends lower than the second.
_ROWS = (
    ("lr-tele", "lr", "teleports help a learned step size", CONTROL),
    ("lr-tele", "lr-tele-off", "they help at test: better than switched off", CONTROL),
    (
        "lr-tele",
        "lr-tele-random",
        "their direction helps: better than random elements of their size",
        CONTROL,
    ),
    ("lr-tele", "lr-tele-constant", "what varies in the step size helps: better than its median", CONTROL),
    ("lr", "lr-constant", "the same without teleports", CONTROL),
    ("lr-tele-momentum", "lr-tele", "learned momentum beside teleports helps", SOURCE),
    ("lr-momentum", "lr", "learned momentum helps without teleports", CONTROL),
    ("lr-tele-momentum", "lr-momentum", "teleports help beside learned momentum", CONTROL),
    ("lr-tele-momentum", "lr-tele-momentum-off", "they help at test: better than switched off", CONTROL),
    ("lr-tele-momentum", "lr-tele-momentum-random", "better than random elements of their size", CONTROL),
    ("lr-tele-momentum", "lr-tele-momentum-constant", "better than constant step size and momentum", CONTROL),
    ("lr-tele-momentum", "lr-tele-momentum-carry", "keeping the velocity beats carrying it along", CONTROL),
    ("lr-tele-momentum", "lr-tele-momentum-reset", "keeping the velocity beats a reset", CONTROL),
    (
        "lr-tele-momentum-reset",
        "lr-tele-momentum-reset-identity",
        "with a reset: better than the reset without the teleport",
        CONTROL,
    ),
    ("update-tele", "update", "teleports help a learned update", CONTROL),
    ("update-tele", "update-tele-off", "they help at test: better than switched off", CONTROL),
    ("update-tele", "update-tele-random", "better than random elements of their size", CONTROL),
    ("whole-lr-tele", "whole-lr", "teleports help a learned step size", CONTROL),
    ("whole-lr-tele", "whole-lr-tele-off", "they help at test: better than switched off", CONTROL),
    ("whole-lr-tele", "whole-lr-tele-random", "better than random elements of their size", CONTROL),
    (
        "whole-lr-tele-momentum",
        "whole-lr-tele",
        "learned momentum beside teleports helps (algorithm 3)",
        SOURCE,
    ),
    ("whole-lr-tele-momentum", "whole-lr-tele-momentum-off", "better than switched off", CONTROL),
    ("whole-lr-tele-momentum", "whole-lr-tele-momentum-random", "better than random elements", CONTROL),
    ("lr", "sgd", "a learned step size beats the tuned constant one", CONTROL),
    ("lr-tele-momentum", "momentum", "the whole beats tuned momentum", CONTROL),
    ("lr-tele-momentum", "adam", "the whole beats tuned Adam", CONTROL),
    ("update", "adam", "a learned update beats tuned Adam", CONTROL),
    ("update-tele", "adam", "a learned update with teleports beats tuned Adam", CONTROL),
    ("whole-lr-tele-momentum", "adam", "algorithm 3 beats tuned Adam", CONTROL),
)
CLAIMS = tuple(Claim(*row) for row in _ROWS)

#: A question, and the comparisons that must all come out for "yes"; the first is the plain one.
QUESTIONS = {
    "does a learned teleport help a learned step size?": (
        ("lr-tele", "lr"),
        ("lr-tele", "lr-tele-off"),
        ("lr-tele", "lr-tele-random"),
    ),
    "does it beside learned momentum?": (
        ("lr-tele-momentum", "lr-momentum"),
        ("lr-tele-momentum", "lr-tele-momentum-off"),
        ("lr-tele-momentum", "lr-tele-momentum-random"),
    ),
    "does it help a learned update?": (
        ("update-tele", "update"),
        ("update-tele", "update-tele-off"),
        ("update-tele", "update-tele-random"),
    ),
    "does it help the LSTMs over the whole gradient?": (
        ("whole-lr-tele", "whole-lr"),
        ("whole-lr-tele", "whole-lr-tele-off"),
        ("whole-lr-tele", "whole-lr-tele-random"),
    ),
    "does learned momentum help, given the teleports?": (("lr-tele-momentum", "lr-tele"),),
    "is it more than a well chosen constant?": (("lr-tele-momentum", "lr-tele-momentum-constant"),),
    "does learned momentum help the LSTMs over the whole gradient?": (
        ("whole-lr-tele-momentum", "whole-lr-tele"),
    ),
    "does it beat tuned Adam?": (("lr-tele-momentum", "adam"),),
    "does a learned update with teleports beat tuned Adam?": (("update-tele", "adam"),),
}


def seen_ends(ran: Runs, name: str = "train") -> Float[np.ndarray, "seeds tasks 2"]:
    """The first loss of each run, and what was measured where it ends."""
    return np.stack([ran.losses[..., 0], ran.measured[name]], axis=-1)


def describe(rans: dict[str, Runs], cards: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A group of `results.json`: every arm's statistics over all runs, beside the facts of its card.

    The curves are of the loss on the next minibatch; "versus" and "diverged" are by the loss on all training
    images at the end, "versus_test" by that on unseen images. Accuracies are means with t-intervals over
    seeds, and so are their differences from Adam's.
    """
    runs = next(iter(rans.values())).runs
    by_train, by_test = (
        compare({name: seen_ends(ran, end) for name, ran in rans.items()}, tuple(rans), runs)
        for end in ("train", "test")
    )
    arms = {}
    for name, ran in rans.items():
        accuracy = np.mean(ran.measured["accuracy"], axis=1)
        arms[name] = {
            **cards[name],
            **summary(ran.losses, runs),
            "diverged": by_train[name]["diverged"],
            "final_train_median": by_train[name]["loss_median"][-1],
            "final_test_median": by_test[name]["loss_median"][-1],
            "versus": by_train[name]["versus"],
            "versus_test": {
                other: by_test[name]["versus"].get(other) for other in REFERENCES if other in rans
            },
            "test_accuracy": float(np.mean(accuracy)),
            "test_accuracy_interval": t_interval(accuracy),
            "recorded": step_medians(ran),
        }
        if "adam" in rans:
            difference = accuracy - np.mean(rans["adam"].measured["accuracy"], axis=1)
            arms[name]["accuracy_over_adam"] = [float(np.mean(difference)), *t_interval(difference)]
    return {"arms": arms, **({"against": "adam"} if "adam" in rans else {})}


def versus(group: dict[str, Any], ours: str, theirs: str) -> Interval | None:
    """The comparison of two arms of a group of `results.json`; None if it has not both."""
    entry = group["arms"].get(ours, {}).get("versus", {}).get(theirs)
    return None if entry is None else Interval(**{key: number(value) for key, value in entry.items()})


def judge(name: str, group: dict[str, Any]) -> list[dict[str, Any]]:
    """The verdicts of a group, by the loss on all training images."""
    rows = []
    for claim in CLAIMS:
        ours, theirs = claim.first, claim.second
        interval = versus(group, ours, theirs)
        if interval is not None:
            row = verdict(f"{name}: {claim.text} ({ours} against {theirs})", claim.source, interval)
            rows.append({**row, "group": name, "ours": ours, "theirs": theirs})
    return rows


def answers(group: dict[str, Any]) -> dict[str, str]:
    """Questions that take several comparisons, in words.

    >>> entry = {"log_ratio": -1.0, "low": -2.0, "high": -0.5}
    >>> answers({"arms": {"update-tele": {"versus": {"adam": entry}}}})
    {'does a learned update with teleports beat tuned Adam?': 'yes: 0.368 (0.135 to 0.607) of adam'}
    """
    words = {}
    for question, pairs in QUESTIONS.items():
        found = [(theirs, versus(group, ours, theirs)) for ours, theirs in pairs]
        if found[0][1] is not None:
            words[question] = _answer((theirs, i) for theirs, i in found if i is not None)
    return words


def _answer(found: Iterable[tuple[str, Interval]]) -> str:
    found = list(found)
    ratios = ", ".join(
        f"{np.exp(i.log_ratio):.3g} ({np.exp(i.low):.3g} to {np.exp(min(i.high, 700)):.3g}) of {theirs}"
        for theirs, i in found
    )
    plain = found[0][1]
    if plain.low > 0:
        word = "no, it is worse"
    elif plain.high >= 0:
        word = "not shown"
    elif all(i.high < 0 for _, i in found[1:]):
        word = "yes"
    else:
        word = "the arm is better, a control as well"
    return f"{word}: {ratios}"
