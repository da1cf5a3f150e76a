"""What `transfer` concludes: ratios on every network, pooled over those that differ in one way, and words."""

from typing import Any

import numpy as np

from symmetrax.studies._classification_verdicts import seen_ends
from symmetrax.studies.core._console import number, ratio_text, titled_table
from symmetrax.studies.core._runs import Runs
from symmetrax.studies.core._statistics import Interval, intervals, log_ratios, verdict
from symmetrax.studies.core._study import Claim

OURS = "what this library adds"
#: Where a network differs from the one of training, and how it is said.
KINDS = {
    "trained": "on the network of training",
    "widths": "on other widths",
    "depths": "on other depths",
    "data": "on other data",
}

#: Claims: the first arm ends lower than the second.
_ROWS = (
    ("update-tele", "update", "teleports help a learned update"),
    ("update-tele", "update-tele-off", "teleports help it at test: better than switched off"),
    ("update-tele", "update-tele-random", "their direction helps: better than random elements"),
    ("lr-tele", "lr", "teleports help a learned step size"),
    ("lr-tele", "lr-tele-off", "teleports help it at test: better than switched off"),
    ("lr-tele", "lr-tele-random", "their direction helps: better than random elements"),
    ("lr", "lr-absolute", "a step size in units of the first gradient beats one that is absolute"),
    ("lr", "sgd-there", "a learned step size beats descent tuned on the network of training"),
    ("lr", "sgd", "a learned step size beats descent tuned on the network itself"),
    ("update", "adam-there", "a learned update beats Adam tuned on the network of training"),
    ("update", "adam", "a learned update beats Adam tuned on the network itself"),
    ("update-tele", "adam", "a learned update with teleports beats Adam tuned on the network itself"),
)
CLAIMS = tuple(Claim(*row, OURS) for row in _ROWS)

#: What a table of ratios shows: arms against one of them.
TABLES = {
    "update": ("update", ("update-tele", "update-tele-off", "update-tele-random")),
    "lr": ("lr", ("lr-tele", "lr-tele-off", "lr-tele-random", "lr-absolute", "sgd", "sgd-there")),
    "baselines": ("adam", ("adam-there", "sgd", "update", "update-tele", "lr", "lr-tele")),
}

#: A question, and the comparisons that must all come out for "yes"; the first is the plain one.
QUESTIONS = {
    "Do learned teleports help a learned update": (0, 1, 2),
    "Do learned teleports help a learned step size": (3, 4, 5),
    "Does a learned step size beat descent tuned where it was trained": (7,),
    "Does a learned update beat Adam tuned where it was trained": (9,),
}


def pooled(rans: dict[Any, dict[str, Runs]]) -> dict[str, dict[str, Any]]:
    """Every comparison of `CLAIMS`, over the networks of each kind, which count alike.

    The number of a meta-seed is the median over networks of the median log ratio over its runs there.
    """
    pools: dict[str, dict[str, Any]] = {}
    for kind in dict.fromkeys(target.kind for target in rans):
        mine = [ran for target, ran in rans.items() if target.kind == kind]
        ratios = {}
        for ours, theirs in ((claim.first, claim.second) for claim in CLAIMS):
            if all(ours in ran and theirs in ran for ran in mine):
                each = [log_ratios(seen_ends(ran[ours]), seen_ends(ran[theirs])) for ran in mine]
                ratios[f"{ours} / {theirs}"] = np.stack([np.median(one, axis=1) for one in each], axis=1)
        pools[kind] = {name: found._asdict() for name, found in intervals(ratios).items()}
    return pools


def judge(pools: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A verdict for every claim and every kind of network."""
    rows = []
    for kind, pool in pools.items():
        for claim in CLAIMS:
            ours, theirs = claim.first, claim.second
            interval = _interval(pool, ours, theirs)
            if interval is not None:
                text = f"{claim.text}, {KINDS[kind]} ({ours} against {theirs})"
                row = verdict(text, claim.source, interval)
                rows.append({**row, "kind": kind, "ours": ours, "theirs": theirs})
    return rows


def answers(pools: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Questions that take several comparisons, in words, for every kind of network.

    >>> entry = {"log_ratio": -1.0, "low": -2.0, "high": -0.5}
    >>> answers({"widths": {"lr / sgd-there": entry}})
    {'Does a learned step size beat descent tuned where it was trained, on other widths?': 'Yes.'}
    """
    words = {}
    for kind, pool in pools.items():
        for question, rows in QUESTIONS.items():
            found = [_interval(pool, CLAIMS[row].first, CLAIMS[row].second) for row in rows]
            known = [interval for interval in found if interval is not None]
            if known:
                words[f"{question}, {KINDS[kind]}?"] = _answer(known)
    return words


def _answer(found: list[Interval]) -> str:
    if found[0].low > 0:
        return "No, the other way round."
    if found[0].high >= 0:
        return "Not shown."
    if all(interval.high < 0 for interval in found[1:]):
        return "Yes."
    return "The arm is better, but not than every control: it is not shown that teleports are what helps."


def _interval(pool: dict[str, Any], ours: str, theirs: str) -> Interval | None:
    entry = pool.get(f"{ours} / {theirs}")
    return None if entry is None else Interval(**{key: number(value) for key, value in entry.items()})


def ratio_table(groups: dict[str, Any], name: str) -> Any:
    """Arms against one of them on every network: ratios of final losses with intervals; None without both."""
    against, arms = TABLES[name]
    present = next(iter(groups.values()))["arms"]
    arms = [arm for arm in arms if arm in present]
    if against not in present or not arms:
        return None
    table = titled_table(
        f"loss on all training images at the end / {against}'s (95 %)",
        "network",
        (
            "runs",
            against,
            *(arm.removeprefix(f"{against}-") for arm in arms),
            "diverged",
            "rejected",
            "loss change, largest",
        ),
    )
    for target, group in groups.items():
        own = group["arms"]
        diverged = {arm: own[arm]["diverged"] for arm in (against, *arms) if own[arm]["diverged"]}
        rejected = [own[arm].get("rejected") for arm in arms if own[arm].get("rejected") is not None]
        loss_changes = [
            own[arm].get("loss_change_max") for arm in arms if own[arm].get("loss_change_max") is not None
        ]
        table.add_row(
            target,
            str(own[against]["runs"]),
            f"{number(own[against]['final_train_median']):.2g}",
            *(ratio_text(own[arm]["versus"][against]) for arm in arms),
            ", ".join(f"{arm} {count}" for arm, count in diverged.items()) or "0",
            f"{max(map(number, rejected)):.1%}" if rejected else "",
            f"{max(map(number, loss_changes)):.0e}" if loss_changes else "",
        )
    return table


def cost_table(groups: dict[str, Any]) -> Any:
    """Microseconds of a step of every arm on every network, everything included, when many run together."""
    arms = list(next(iter(groups.values()))["arms"])
    table = titled_table("microseconds per step", "network", arms)
    for target, group in groups.items():
        own = [group["arms"][arm] for arm in arms]
        steps = [1e-6 * arm["runs"] * arm["gradient_evaluations"] for arm in own]
        table.add_row(
            target, *(f"{number(arm['seconds']) / per:.3g}" for arm, per in zip(own, steps, strict=True))
        )
    return table
