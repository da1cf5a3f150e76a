"""A study being run: its folder, its random streams, and what is known so far."""

import dataclasses
import functools
from typing import Any

from symmetrax.studies.core._arm import Learned
from symmetrax.studies.core._console import Reporter
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._meta_training import Budget
from symmetrax.studies.core._played import Played
from symmetrax.studies.core._streams import Streams
from symmetrax.studies.core._study import Study


@dataclasses.dataclass
class Run:
    """A study being run: its folder and random streams, and what is known so far.

    The `analyse` hook of a study receives it when all arms have run: `played` has what they did, by family,
    `results` are those of `results.json` so far, and `streams` the random keys.

    >>> import symmetrax as sx
    >>> gaps = lambda run: {"least": float(run.played["booth"].losses("", 12)["sgd"].min())}
    >>> sx.studies.Study("least", "How far do losses fall?", ["booth"], [], analyse=gaps).analyse is gaps
    True
    """

    study: Study
    folder: RunFolder
    reporter: Reporter
    played: dict[str, Played] = dataclasses.field(default_factory=dict)
    results: dict[str, Any] = dataclasses.field(default_factory=lambda: {"groups": {}, "verdicts": []})

    def __post_init__(self):
        self.streams = Streams.of(self.study.seed, self.study.seeds)

    @functools.cached_property
    def several(self) -> bool:
        """Whether there are several families, so that their names are part of claims and files."""
        return len(self.study.made()) > 1

    def budget(self, arm: Learned) -> Budget:
        """How long an arm is trained."""
        return dataclasses.replace(arm.budget or self.study.budget, seeds=self.study.seeds)
