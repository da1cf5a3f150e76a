"""How the card of an artifact says that its network is used, written and read."""

from typing import Any

import numpy as np

from symmetrax.learned._update_rule import UpdateRule
from symmetrax.teleportation._guard import Guard

#: The numbers of a guard.
BOUNDS = ("jump", "tolerance", "floor", "relative")


def usage(rule: UpdateRule) -> dict[str, Any]:
    """How a rule uses a network, but for its schedule, as JSON values for the card of an artifact.

    >>> import jax.numpy as jnp
    >>> usage(UpdateRule(guard=Guard(jump=jnp.inf, relative=0.5), order="teleport-first"))["guard"]["jump"]
    'inf'
    """
    guard = rule.guard
    given = {} if guard is None else {name: getattr(guard, name) for name in BOUNDS}
    bounds = {name: str(float(bound)) for name, bound in given.items() if bound is not None}
    return {
        "order": rule.order,
        "transport": rule.transport,
        "guard": None if guard is None else {**bounds, "shorten": guard.shorten},
    }


def teleports_at(schedule: Any, steps: int) -> np.ndarray:
    """The steps that teleport by the schedule of a card: all, those in a list, or as its booleans say.

    >>> teleports_at([1, 7], 4).tolist()
    [False, True, False, False]
    """
    teleports = np.zeros(steps, bool)
    if schedule is None:
        teleports[:] = True
    elif isinstance(schedule, list) and all(type(due) is bool for due in schedule):
        teleports[: len(schedule)] = schedule[:steps]
    elif isinstance(schedule, list) and all(type(step) is int and step >= 0 for step in schedule):
        teleports[[step for step in schedule if step < steps]] = True
    else:
        raise ValueError(
            "The card of this artifact cannot be followed: the schedule of its training is a list of steps, "
            f"counted from 0, or of booleans; got {schedule!r:.200}."
        )
    return teleports


def options_of(use: Any, guarded: Any) -> dict[str, Any]:
    """The options of an `UpdateRule` that a card asks for; `guarded` is for cards without a guard.

    >>> options_of({"order": "teleport-first"}, guarded=False)
    {'guard': None, 'gate': 'hard', 'order': 'teleport-first'}
    """
    try:
        given = use.get("guard", {} if guarded else None)
        guard = None
        if given is not None:
            bounds = {name: float(value) for name, value in given.items() if name != "shorten"}
            guard = Guard(**bounds, shorten=bool(given.get("shorten", False)))
        options = {name: use[name] for name in ("order", "transport") if name in use}
        return {"guard": guard, "gate": "hard", **options}
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"The card of this artifact cannot be followed: its training says `use`: {use!r:.200} ({error})."
        ) from error
