"""Running a study: train, tune, run on unseen tasks, compare, judge, draw."""

from typing import Any

import jax
import numpy as np

from symmetrax.studies.core._console import Reporter, arms_table, verdict_table
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._match import Match
from symmetrax.studies.core._played import choose, groups, verdicts
from symmetrax.studies.core._run import Run
from symmetrax.studies.core._study import Study

#: After so many runs compiled programs are dropped: hundreds are more memory maps than a process may have.
PROGRAMS = 50


def run_study(study: Study, folder: RunFolder, reporter: Reporter) -> dict[str, Any]:
    """Run a study in its folder; return its results.

    Every arm of every family is a part that a killed process need not repeat.
    """
    run = Run(study, folder, reporter)
    programs = 0
    for family in study.made():
        run.played[family.name] = played = Match(run, family).played()
        if (chosen := choose(study, played)) is not None:
            run.results.setdefault("chosen", {})[family.name] = chosen
        found = groups(study, family.name, played)
        run.results["groups"] |= {name: {"arms": arms} for name, arms in found}
        named, where = (chosen or {"arm": "{chosen}"})["arm"], f" on {family.name}" if run.several else ""
        run.results["verdicts"] += verdicts(study, family.name, played, named, where)
        for test in played.tests:
            place = (family.name if run.several else "", test)
            kept = {arm: x.astype(np.float32) for arm, x in played.losses(test, played.steps).items()}
            folder.arrays("-".join(part for part in ("losses", *place) if part), kept)
        programs += len(played.runs)
        if programs > PROGRAMS:
            jax.clear_caches()
            programs = 0
    if study.analyse is not None:
        run.results |= study.analyse(run)
    for figure in study.figures:
        figure(folder.path, run.results)
    return run.results


def show_study(study: Study, results: dict[str, Any], reporter: Reporter) -> None:
    """Print a table for every group of results, those of the study, and the verdicts.

    Groups that a study makes itself, without families, have the tables that it makes too.
    """
    own = study.tables is not None and not study.families
    for name, group in () if own else results["groups"].items():
        arms = group["arms"]
        first = next(iter(arms.values()))
        steps = first["points"][-1] if "points" in first else len(first["loss_median"]) - 1
        against = group.get("against") or study.against[0]
        which = "loss"
        if (final := f"final_{study.tuned_by}_median") in first:
            which = f"{study.tuned_by} loss"
            arms = {n: {**x, "loss_median": [*x["loss_median"][:-1], x[final]]} for n, x in arms.items()}
        title = f"{study.name}: {which} after {steps} steps on {name}, all {first['runs']:,} unseen runs"
        reporter.print(arms_table(title, arms, against))
    for table in () if study.tables is None else study.tables(study, results):
        reporter.print(table)
    if results["verdicts"]:
        reporter.print(verdict_table(results["verdicts"]))
