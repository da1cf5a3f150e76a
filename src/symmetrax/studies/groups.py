"""Learned teleports in other groups than the rotations of the plane: SO(n), scalings, permutations.

The arms are those of `_orbit_arms.py`. Permutations have no algebra, so that no teleport along them can be
learned: the study measures the effect of a random one on an optimizer's memory instead.
"""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from symmetrax.learned._orbit import OrbitLSTM
from symmetrax.studies._orbit_arms import (
    CANDIDATES,
    SLOPES,
    VANILLA,
    WATCHED,
    Networks,
    budget,
    off,
    orbit_arm,
)
from symmetrax.studies._orbits import dimensions, example, probe
from symmetrax.studies._registry import EXPERIMENTS
from symmetrax.studies._shuffled import Shuffled
from symmetrax.studies.core._arm import Build, Control, Learned, Tuned
from symmetrax.studies.core._console import number, titled_table
from symmetrax.studies.core._hand_made import adam, descent
from symmetrax.studies.core._measurements import interval_panels, versus_table
from symmetrax.studies.core._meta_training import Budget
from symmetrax.studies.core._played import OWN
from symmetrax.studies.core._run import Run
from symmetrax.studies.core._statistics import log_ratios
from symmetrax.studies.core._study import Arm, Claim, Study
from symmetrax.tasks._base import AbstractTaskFamily
from symmetrax.tasks._families import make_family

SOURCE = "asked in a review of arXiv:2504.15399"

CLAIMS = (
    Claim(
        "vanilla-shuffled",
        VANILLA,
        "a random permutation at every step costs the learned optimizer something",
        SOURCE,
        lower=False,
    ),
    Claim("{chosen}", VANILLA, "the learned teleport chosen by validation ({chosen}) beats vanilla", SOURCE),
    Claim("{chosen}", "{chosen}-off", "{chosen} needs its teleports at test", SOURCE),
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """`runs` shortens the training of families whose group elements are expensive.

    Not here: the whole of SO(10) and SO(20), with 45 and 190 angles. One run of 64 tasks and 20 steps would
    take seconds to minutes on two cores. Learned arms look along a torus there, of 5 and 10 angles; of the
    whole groups only the headroom is `probed`, over so many `trials` with so many `samples` of each orbit.

    >>> dict(Settings().runs)["so-5"]
    300
    """

    probed: tuple[str, ...] = ("so-10", "so-20")
    runs: tuple[tuple[str, int], ...] = (("so-5", 300), ("torus-10", 500), ("torus-20", 400))
    trials: int = 200
    samples: int = 64
    networks: Networks = Networks()  # noqa: RUF009 (frozen)


def arms(study: Study, family: AbstractTaskFamily) -> list[Arm]:
    """All arms on a family: learned teleports if the symmetry has an algebra, else random elements of the
    group.

    >>> [arm.name for arm in arms(STUDIES["groups"], make_family("permutation-4"))][:3]
    ['vanilla', 'vanilla-shuffled', 'vanilla-shuffled-carried']
    """
    continuous = bool(dimensions(family)[1])
    runs = dict(study.settings.runs).get(family.name, study.budget.runs)
    training = dataclasses.replace(study.budget, runs=runs, chunk=runs // 10)
    found: list[Arm] = []
    for name in (VANILLA, *study.candidates) if continuous else (VANILLA,):
        arm = learned(name, family, training, study.settings.networks)
        found += [arm] if name == VANILLA else [arm, off(arm)]
    found += [Tuned("gd", descent, momenta=(0.0,)), Tuned("adam", adam)]
    if not continuous:
        memory = [(VANILLA, False), (VANILLA, True), ("gd", False), ("adam", False), ("adam", True)]
        found[1:1] = [_shuffled(name, carried=carried) for name, carried in memory]
    return found


def _shuffled(of: str, *, carried: bool) -> Control:
    name = f"{of}-shuffled-carried" if carried else f"{of}-shuffled"
    return Control(name, of=of, rule=functools.partial(Shuffled, carried=carried))


def learned(name: str, family: AbstractTaskFamily, training: Budget, networks: Networks) -> Learned:
    """The arm called "vanilla" or like one of `VARIANTS`, as large as the tasks and the algebra are.

    Where the algebra has no coordinates vanilla sees nothing of the orbit. Raises ValueError for a learned
    teleport there.

    >>> learned("peak", make_family("so-5"), budget(), Networks()).make(jax.random.key(0)).algebra
    10
    >>> learned("peak", make_family("permutation-4"), budget(), Networks())
    Traceback (most recent call last):
    ValueError: No teleport can be learned on permutation-4: its symmetry has no algebra. Use "vanilla", ...
    """
    size, coordinates = dimensions(family)
    if not coordinates and name != VANILLA:
        raise ValueError(
            f"No teleport can be learned on {family.name}: its symmetry has no algebra. "
            f'Use "{VANILLA}", got {name!r}.'
        )
    # Where the action is linear, one gradient tells the slopes of the whole orbit.
    slopes = 0.0 if example(family).symmetry().linear else SLOPES
    found = orbit_arm(name, family, training, networks, size=size, coordinates=coordinates, slopes=slopes)
    if not coordinates:
        return dataclasses.replace(found, make=Build.of(OrbitLSTM, size=size, sees=(), width=networks.width))
    return found


def analyse(run: Run) -> dict[str, Any]:
    """Measure the orbits of every family; also which arm was chosen there."""
    settings, found = run.study.settings, {}
    key = jax.random.fold_in(run.streams.tune, 4)
    for name in (*(family.name for family in run.study.made()), *settings.probed):
        run.reporter.note(f"{name}: invariance and headroom")
        found[name] = probe(make_family(name), key, settings.trials, settings.samples)
    for name, played in run.played.items():
        found[name]["chosen"] = run.results.get("chosen", {}).get(name, {"arm": None})["arm"]
        for steps in played.horizons:
            losses = played.losses(OWN, steps)
            if "gd-shuffled" in losses:
                worst = float(np.max(np.abs(log_ratios(losses["gd-shuffled"], losses["gd"]))))
                found[name].setdefault("gd_shuffled", {})[str(steps)] = worst
    return {"families": found}


def tables(study: Study, results: dict[str, Any]) -> Iterator[Any]:
    """The measurements of the orbits of every family."""
    columns = ("parameters", "angles", "invariance", "headroom", "best / here", "whole group")
    table = titled_table("The orbits: medians over random starts", "family", columns)
    for name, found in results["families"].items():
        shown = [number(found[key]) for key in ("invariance", "headroom", "over_here", "reachable")]
        shown = ["" if np.isnan(x) else f"{x:.2g}" for x in shown]
        table.add_row(name, str(found["parameters"]), str(found["coordinates"]), *shown)
    yield table


def draw(folder: Path, results: dict[str, Any]) -> None:
    """Final losses over those of vanilla: a row for each family, a column for each horizon."""
    tables = {name: versus_table(group["arms"], VANILLA) for name, group in results["groups"].items()}
    horizons = len({name.rpartition("-")[2] for name in tables})
    interval_panels(folder / "groups.png", tables, f"final loss / {VANILLA}", columns=horizons)


STUDIES = {
    "groups": Study(
        name="groups",
        title=EXPERIMENTS["groups"].title,
        families=("so-2", "so-5", "torus-10", "torus-20", "scaling-3", "permutation-4"),
        arms=arms,
        references=(VANILLA, *(f"{name}-off" for name in CANDIDATES)),
        claims=CLAIMS,
        budget=budget(),
        seeds=4,
        tasks=250,
        tuning_tasks=128,
        horizons=(12, 50),
        watch=WATCHED,
        candidates=CANDIDATES,
        analyse=analyse,
        figures=(draw,),
        tables=tables,
        settings=Settings(),
        quick={
            "families": ("scaling-3", "permutation-4"),
            "seeds": 2,
            "tasks": 60,
            "tuning_tasks": 64,
            "candidates": ("peak-near",),
            "budget": budget(150, 32),
            "settings": Settings(probed=(), trials=50, samples=32),
        },
    )
}
