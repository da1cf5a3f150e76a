"""Which objective tells where on an orbit to go: predicted against realized decrease of the loss.

At points along a training run, random positive rescalings of a ReLU network are drawn: points of equal loss.
From each, every optimizer really takes ten steps, started fresh, on the full batch. An objective is good for
an optimizer if its rank order of the points is that of what was gained: Spearman's correlation. The learning
rate is the best of a grid at the point itself, without a rescaling, on another initialization.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import scipy.stats

from symmetrax.studies._objectives_measures import (
    OBJECTIVES,
    OPTIMIZERS,
    PARTS,
    TITLES,
    Settings,
    _measured,
    _tuned_rate,
    title_of,
)
from symmetrax.studies._registry import EXPERIMENTS
from symmetrax.studies.core._console import titled_table
from symmetrax.studies.core._measurements import ONLY, interval_panels
from symmetrax.studies.core._run import Run
from symmetrax.studies.core._shares import average
from symmetrax.studies.core._statistics import Interval, verdict
from symmetrax.studies.core._study import Study
from symmetrax.tasks._data import digits
from symmetrax.tasks._supervised import Classification

SOURCE = "arXiv:2409.20325 for the norms; the claim is ours"


def analyse(run: Run) -> dict[str, Any]:
    """Measure, and correlate objectives with gains; write the points."""
    settings, streams = run.study.settings, run.streams
    task = Classification(*digits(), settings.widths, settings.images, slope=0.1, bias=True)
    key = jax.random.key(run.study.seed)
    batch = task.batch(jax.random.fold_in(key, 1))
    rates = {name: _tuned_rate(name, settings, task, streams.tune, batch) for name in OPTIMIZERS}
    correlations: dict[tuple[str, str], list[list[float]]] = {}
    arrays: dict[str, np.ndarray] = {}
    for age in settings.warmup:
        run.reporter.note(f"rescaled points after {age} steps of gradient descent")
        measured = _measured(settings, task, age, rates, key, streams.test, batch)
        arrays |= {f"{age}.{name}": values for name, values in measured.items()}
        for optimizer, objective in itertools.product(TITLES, OBJECTIVES):
            pairs = zip(measured[objective], measured[f"gain.{optimizer}"], strict=True)
            rho = [float(np.asarray(scipy.stats.spearmanr(p, g))[0]) for p, g in pairs]
            correlations.setdefault((optimizer, objective), []).append(rho)
    run.folder.arrays("points", arrays)
    by_seed = {pair: np.mean(rho, axis=0) for pair, rho in correlations.items()}
    table: dict[str, dict[str, Any]] = {optimizer: {} for optimizer in TITLES}
    for (optimizer, objective), rho in by_seed.items():
        by_age = np.mean(correlations[optimizer, objective], axis=1).tolist()
        table[optimizer][objective] = average(rho) | {"by_age": by_age}
    return {"correlations": table, "learning_rates": rates, "verdicts": list(_verdicts(by_seed))}


def _verdicts(by_seed: dict[tuple[str, str], np.ndarray]) -> Iterator[dict[str, str]]:
    """Whether the norm of an optimizer's own geometry predicts its gains better than the squared norm."""
    own_norms = (("adam", "l1 norm"), ("sign", "l1 norm"), ("muon", "nuclear norm"))
    for (base, own), part in itertools.product(own_norms, PARTS):
        optimizer = title_of(base, part)
        found = average(by_seed[optimizer, "squared norm"] - by_seed[optimizer, own])
        interval = Interval(found["mean"], found["low"], found["high"])
        claim = f"for {optimizer} the {own} of the gradient predicts the gain better than the squared norm"
        why = (
            f"difference of rank correlations {-interval.log_ratio:+.2f} "
            f"(95 % interval {-interval.high:+.2f} to {-interval.low:+.2f})"
        )
        yield verdict(claim, SOURCE, interval) | {"why": why}


def tables(study: Study, results: dict[str, Any]) -> Iterator[Any]:
    """The table of correlations, and the verdicts."""
    steps = study.settings.steps
    title = f"rank correlation of objective and gain in {steps} steps, {study.seeds} seeds (95 %)"
    table = titled_table(title, "optimizer", OBJECTIVES)
    for optimizer, row in results["correlations"].items():
        table.add_row(optimizer, *(_text(row[name]) for name in OBJECTIVES))
    yield table


def _text(entry: dict[str, Any]) -> str:
    return f"{entry['mean']:+.2f} ± {entry['high'] - entry['mean']:.2f}"


def draw(folder: Path, results: dict[str, Any]) -> None:
    """Rank correlations with their intervals."""
    tables = {optimizer: {ONLY: row} for optimizer, row in results["correlations"].items()}
    columns = -(-len(tables) // 2)
    interval_panels(
        folder / "objectives.png", tables, "rank correlation", columns=columns, limits=(-1.02, 1.02)
    )


STUDIES = {
    "objectives": Study(
        name="objectives",
        title=EXPERIMENTS["objectives"].title,
        seeds=10,
        analyse=analyse,
        figures=(draw,),
        tables=tables,
        settings=Settings(),
        quick={"seeds": 4, "settings": Settings(points=48, warmup=(30,), images=200)},
    )
}
