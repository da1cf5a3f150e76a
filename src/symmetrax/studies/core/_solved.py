"""When optimizers solve their tasks."""

from typing import Any

import numpy as np

from symmetrax.studies.core._played import Played
from symmetrax.studies.core._statistics import intervals


def solutions(played: Played, test: str, reference: str) -> dict[str, dict[str, Any]]:
    """When arms solve their tasks: the median step, shares by horizon, and the paired ratio to a reference.

    A task that is not solved counts as solved one step after the last. For studies that keep `points`.

    >>> from symmetrax.studies.core._runs import Runs
    >>> fast, slow = (np.ones((2, 3, 5)) * [1.0, x, x, x, x] for x in (1e-9, 0.5))
    >>> ran = {"fast": Runs(fast, {}, {}, 0.1), "slow": Runs(slow, {}, {}, 0.1)}
    >>> runs = {("", arm, 4): own.at((0, 4)) for arm, own in ran.items()}
    >>> solutions(Played(runs, {}, (4,)), "", "slow")["fast"]["share"]
    {'4': 1.0}
    """
    names = [arm for t, arm, steps in played.runs if (t, steps) == (test, played.steps)]
    when = {name: played.runs[test, name, played.steps].measured["solved_at"] for name in names}
    ratios = {n: np.log(np.maximum(x, 1.0) / np.maximum(when[reference], 1.0)) for n, x in when.items()}
    found = intervals({n: x for n, x in ratios.items() if n != reference})
    return {
        name: {
            "median": float(np.median(x)),
            "share": {str(h): float(np.mean(x <= h)) for h in played.horizons},
            "versus": {reference: found[name]._asdict()} if name in found else {},
        }
        for name, x in when.items()
    }
