"""Does an optimizer that learned on one distribution of tasks misalign with another?

arXiv:2504.15399 supposes so, and tests on one distribution at a time. Here every arm is trained on each of
the four families of the plane and tested on all of them: a matrix for each arm, whose entries are paired
ratios of final losses to the same arm trained on the tested family itself.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from symmetrax.studies import plots_league
from symmetrax.studies._orbit_arms import (
    FAMILIES,
    VANILLA,
    VARIANTS,
    Training,
    as_used,
    orbit_arm,
    trained_arm,
)
from symmetrax.studies.core._arm import Learned
from symmetrax.studies.core._console import Reporter, ratio_text, titled_table, verdict_table
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._runs import Runs, resumable, run_many
from symmetrax.studies.core._statistics import (
    DIVERGED,
    Interval,
    compare,
    finals,
    intervals,
    log_ratios,
    verdict,
)
from symmetrax.studies.core._streams import Streams
from symmetrax.studies.plane import learned
from symmetrax.tasks._families import make_family

#: Arms of figures 3 to 6 have this prefix.
PAPER = "paper-"


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run.

    >>> config("misalignment", "quick").arms
    ('vanilla', 'crest-near')
    """

    seed: int = 0
    seeds: int = 6
    tasks: int = 500
    steps: int = 12
    families: tuple[str, ...] = FAMILIES
    arms: tuple[str, ...] = (VANILLA, "crest-near", "paper-vanilla", "paper-teleport")
    training: Training = dataclasses.field(default_factory=Training)
    paper_runs: int = 500


def config(name: str, preset: str = "full", seed: int = 0) -> Config:
    """The settings under a preset: "full", or "quick" with two families and arms, few seeds, tasks and runs.

    >>> config("misalignment").families
    ('ellipse-fixed', 'ellipse-random', 'rosenbrock-fixed', 'rosenbrock-random')
    """
    if preset == "full":
        return Config(seed=seed)
    return Config(
        seed=seed,
        seeds=3,
        tasks=100,
        families=FAMILIES[1::2],
        arms=(VANILLA, "crest-near"),
        training=Training(runs=300, tasks=32),
    )


def run(settings: Config, folder: RunFolder, reporter: Reporter) -> dict[str, Any]:
    """Train every arm on every family, test each on all; write losses and a picture; return matrices."""
    streams = Streams.of(settings.seed, settings.seeds)
    ran: dict[str, dict[str, Runs]] = {family: {} for family in settings.families}
    for name in settings.arms:
        for source in settings.families:
            found, _ = resumable(
                folder,
                f"{source}-{name}",
                lambda name=name, source=source: (
                    _tested(name, source, settings, streams, folder, reporter),
                    {},
                ),
            )
            for family in settings.families:
                ran[family][trained_on(name, source)] = found[family]
        # Hundreds of compiled programs are more memory maps than a process may have.
        jax.clear_caches()
    losses = {family: {name: r.losses for name, r in arms.items()} for family, arms in ran.items()}
    results: dict[str, Any] = {"groups": {}, "matrices": matrices(losses, settings)}
    for family, arms in losses.items():
        references = tuple(trained_on(name, family) for name in settings.arms)
        found = compare(arms, references, settings.seeds * settings.tasks)
        results["groups"][family] = {"arms": found}
        folder.arrays(f"losses-{family}", {name: x.astype(np.float32) for name, x in arms.items()})
    results["verdicts"] = verdicts(losses, settings)
    plots_league.matrices(folder.path / "matrices.png", results["matrices"])
    return results


def show(settings: Config, results: dict[str, Any], reporter: Reporter) -> None:
    """Print the tables of a run."""
    for name, matrix in results["matrices"].items():
        title = f"{name}: loss after {settings.steps} steps over that of {name} trained on the tested family"
        table = titled_table(title, "trained on, tested on:", list(matrix))
        for source in matrix:
            table.add_row(source, *(ratio_text(matrix[source][family]["own"]) for family in matrix))
        reporter.print(table)
    for name in (name for name in settings.arms if _has_plain(name, settings)):
        matrix = results["matrices"][name]
        title = f"{name} over {_plain(name)}, both trained on the family of the row"
        table = titled_table(title, "trained on, tested on:", list(matrix))
        for source in matrix:
            table.add_row(source, *(ratio_text(matrix[source][family]["plain"]) for family in matrix))
        reporter.print(table)
    reporter.print(verdict_table(results["verdicts"]))


def trained_on(name: str, family: str) -> str:
    """The name of an arm that was trained on a family.

    >>> trained_on("vanilla", "ellipse-fixed")
    'vanilla@ellipse-fixed'
    """
    return f"{name}@{family}"


def _plain(name: str) -> str:
    """The arm without teleports that an arm belongs to."""
    return f"{PAPER}{VANILLA}" if name.startswith(PAPER) else VANILLA


def _has_plain(name: str, settings: Config) -> bool:
    """Whether an arm teleports, and the one without is there to compare it with."""
    return name != _plain(name) and _plain(name) in settings.arms


def _arm(name: str, family: str, settings: Config) -> tuple[Learned, Training]:
    if name.startswith(PAPER):
        arm = learned(name.removeprefix(PAPER), make_family(family))
        return dataclasses.replace(arm, name=name), Training(settings.paper_runs, tasks=1, steps=20, unroll=5)
    return orbit_arm(name, make_family(family), settings.training, VARIANTS.get(name)), settings.training


def _tested(name: str, source: str, settings: Config, streams: Streams, folder, reporter) -> dict[str, Runs]:
    """What an arm that is trained on one family does on all."""
    arm, training = _arm(name, source, settings)
    networks = trained_arm(arm, training, streams, folder, reporter).networks
    options = {"steps": settings.steps, "tasks": settings.tasks, "watch": (), "parts": 1}
    rule = as_used(arm.rule, settings.steps)
    return {f: run_many(rule, networks, make_family(f), streams.test, **options) for f in settings.families}


Losses = dict[str, dict[str, np.ndarray]]


def matrices(losses: Losses, settings: Config) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """For each arm, family of training and family of test, ratios and the share of runs that diverged.

    "own" is the ratio to the same arm trained where it is tested, "plain" that to the arm without teleports
    trained on the same family.
    """
    pairs = {}
    for name in settings.arms:
        for source in settings.families:
            for family, arms in losses.items():
                ours = arms[trained_on(name, source)]
                for kind, other in (("own", (name, family)), ("plain", (_plain(name), source))):
                    if trained_on(*other) in arms:
                        pairs[name, source, family, kind] = log_ratios(ours, arms[trained_on(*other)])
    found = intervals(pairs)
    table: dict[str, Any] = {name: {s: {} for s in settings.families} for name in settings.arms}
    for (name, source, family, kind), interval in found.items():
        cell = table[name][source].setdefault(family, {})
        cell[kind] = interval._asdict()
        last = losses[family][trained_on(name, source)]
        cell["diverged"] = float(np.mean(finals(last) > DIVERGED * last[..., 0]))
    return table


def verdicts(losses: Losses, settings: Config) -> list[dict[str, str]]:
    """Whether training elsewhere is worse, over all pairs of families, and whether teleports win there."""
    asked, claims = {}, {}
    for name in settings.arms:
        elsewhere = [(s, f) for s in settings.families for f in settings.families if s != f]
        for kind, text in (
            ("own", f"{name}, trained on another family, is worse than trained on the tested one"),
            ("plain", f"{name} beats {_plain(name)} on families that neither was trained on"),
        ):
            if kind == "plain" and not _has_plain(name, settings):
                continue
            ratios = [
                log_ratios(
                    losses[f][trained_on(name, s)],
                    losses[f][trained_on(name, f) if kind == "own" else trained_on(_plain(name), s)],
                )
                for s, f in elsewhere
            ]
            asked[name, kind] = np.concatenate(ratios, axis=1)
            claims[name, kind] = text
    found: dict[Any, Interval] = intervals(asked)
    source = "arXiv:2504.15399, section 6"
    return [verdict(claims[key], source, found[key], negative=key[1] == "plain") for key in asked]
