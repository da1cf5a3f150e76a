"""Teleports inside six optimizers, with every way to treat their state, against the controls of each.

The published experiment (arXiv:2305.13404, section 5) teleports before each of the first eight steps of one
epoch and builds the optimizer anew every time; so a reset of the optimizer alone is among the controls.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich.table

from symmetrax.studies._registry import EXPERIMENTS
from symmetrax.studies._teleport_optimizers_arms import (
    ARMS,
    EXACT,
    OPTIMIZERS,
    PUBLISHED,
    QUESTIONS,
    REFERENCES,
    TUNED,
    Data,
    Optimizer,
    Settings,
    moves_of,
)
from symmetrax.studies.core._console import number, ratio_text, titled_table
from symmetrax.studies.core._measurements import ONLY, interval_panels
from symmetrax.studies.core._panels import Panel, curve_panels, losses
from symmetrax.studies.core._played import judged
from symmetrax.studies.core._race import Blocks, Trained, classifier, race
from symmetrax.studies.core._run import Run
from symmetrax.studies.core._statistics import compare
from symmetrax.studies.core._streams import Streams
from symmetrax.studies.core._study import Claim, Study
from symmetrax.tasks._supervised import Classification

SOURCE = "arXiv:2305.13404, section 5"


def analyse(run: Run) -> dict[str, Any]:
    """Tune, train all arms and compare them, on every data set with every optimizer."""
    settings, groups, verdicts = run.study.settings, {}, []
    for data in settings.data:
        task, blocks, arrays = classifier(data.name, images=data.images), Blocks(settings.block), {}
        for name in settings.optimizers:
            run.reporter.note(f"{data.name}: {name}")
            groups[f"{data.name}-{name}"], losses = _group(run, data, name, task, blocks)
            arrays |= {f"{name}.{label}": x[:, 0].astype(np.float32) for label, x in losses.items()}
            claims = [Claim(*pair, text.format(name), SOURCE) for pair, text in QUESTIONS.items()]
            verdicts += judged(claims, losses, f"{{}} ({data.name})")
        run.folder.arrays(f"{data.name}-training-loss", arrays)
    return {"groups": groups, "verdicts": verdicts}


def _group(run: Run, data: Data, name: str, task: Classification, blocks: Blocks):
    """Everything about one optimizer on one data set, and the training losses of its arms."""
    optimizer, streams = OPTIMIZERS[name], Streams.of(run.study.seed, data.seeds)
    options: dict[str, Any] = {"moves": moves_of(run.study.settings, task, optimizer), "at": optimizer.epoch}

    def train(entries, keys, epochs=data.epochs):
        return race(optimizer.make, task, entries, keys, blocks, epochs=epochs, **options)

    tuned = _tune(optimizer, data, jax.random.split(streams.tune, data.tuning_seeds), train)
    rate = optimizer.rate or tuned["none-tuned"]
    arms = {arm.name: dataclasses.replace(arm, rate=rate) for arm in ARMS}
    arms |= {
        label: dataclasses.replace(arms[of], name=label, rate=tuned[label]) for label, of in TUNED.items()
    }
    runs = train(list(arms.values()), streams.test)
    # Controls that need the others' records: equal gradient evaluations, equal length of the step.
    steps, none = len(task.train.labels) // task.batch_size, arms["none"]
    extra = int(np.ceil((runs["action-reset"].gradients - runs["none"].gradients) / steps))
    runs |= train([dataclasses.replace(none, name="longer")], streams.test, data.epochs + extra)
    if optimizer.metric == "squared":
        late = _norm_factors(runs["exact-carry"], optimizer.metric)
        runs |= train([dataclasses.replace(none, name="scaled", late=late)], streams.test)
    losses = {label: ran.train[:, None] for label, ran in runs.items()}
    found = compare(losses, REFERENCES, data.seeds)
    held = compare({label: ran.held[:, None] for label, ran in runs.items()}, REFERENCES, data.seeds)
    for label, arm in found.items():
        ran = runs[label]
        arm |= {
            "held_out_median": held[label]["loss_median"],
            "held_out_versus": held[label]["versus"],
            "accuracy_mean": np.mean(ran.accuracy[:, -1]),
            "gradient_evaluations": ran.gradients,
            "seconds": ran.seconds,
            "rate": tuned.get(label, rate),
        }
        if ran.moved is not None:
            factors = _norm_factors(ran, optimizer.metric if arms[label].move == "exact" else "squared")
            arm["teleports"] = ran.did() | {"norm_factor": np.median(factors)}
    return {"arms": found, "tuned": tuned}, losses


def _tune(optimizer: Optimizer, data: Data, keys: Any, train: Callable) -> dict[str, float]:
    """The learning rate with the lowest median final training loss, on starts that are not reported."""
    rates = ((optimizer.rate or 1e-2) * np.geomspace(0.1, 100.0, data.rates)).tolist()
    arms = {arm.name: arm for arm in ARMS}
    named = {(label, rate): f"{label} {rate}" for label in TUNED for rate in rates}
    entries = [
        dataclasses.replace(arms[TUNED[label]], name=name, rate=rate) for (label, rate), name in named.items()
    ]
    lasts = {name: ran.train[:, -1] for name, ran in train(entries, keys).items()}
    finals = {name: np.median(np.where(np.isfinite(x), x, np.inf)) for name, x in lasts.items()}
    return {label: min(rates, key=lambda rate, label=label: finals[named[label, rate]]) for label in TUNED}


def _norm_factors(ran: Trained, metric: str) -> np.ndarray:
    """By how much all teleports of a run together raised the norm of the gradient, for every seed."""
    moved = ran.moved
    assert moved is not None
    taken = (moved.outcome == 0) & (moved.before > 0)
    ratio = np.where(taken, moved.after, 1.0) / np.where(taken, moved.before, 1.0)
    return np.prod(ratio, axis=1) ** (0.5 if metric == "squared" else 1.0)


def tables(study: Study, results: dict[str, Any]) -> Iterator[Any]:
    """The comparisons, for the published and for the exact teleport, and what the teleports did."""
    groups, outcomes = results["groups"], [row["outcome"] for row in results["verdicts"]]
    yield _comparisons("The published action", groups, PUBLISHED)
    yield _comparisons("Exact positive scaling", groups, EXACT)
    yield _teleports(groups)
    counts = {word: outcomes.count(word) for word in ("reproduced", "reversed", "inconclusive")}
    yield "claims: " + ", ".join(f"{count} {word}" for word, count in counts.items())


def _comparisons(what: str, groups: dict[str, Any], pairs: dict[tuple[str, str], str]) -> rich.table.Table:
    """Final training losses, as ratios with intervals: a column for each pair of arms."""
    title = f"{what}: final training loss of one arm over that of another (95 %); below 1 the first is better"
    table = titled_table(title, "data-optimizer", (f"{ours}\n/ {theirs}" for ours, theirs in pairs))
    for name, group in groups.items():
        arms = group["arms"]
        cells = [ratio_text(arms[ours]["versus"][theirs]) if theirs in arms else "" for ours, theirs in pairs]
        table.add_row(name, *cells)
    return table


def _teleports(groups: dict[str, Any]) -> rich.table.Table:
    """The effects of the teleports of an arm on loss and gradient, and their costs."""
    title = "What eight teleports did: medians over seeds and teleports, largest drift in brackets"
    columns = ("final loss", "drift, batch", "drift, fresh", "norm x", "rejected", "grads", "s")
    table = titled_table(title, "data-optimizer, arm", columns)
    for name, group in groups.items():
        for label in ("none", "exact-carry", "action-reset", "small-reset"):
            arm, cells = group["arms"][label], ("", "", "", "")
            if log := arm.get("teleports"):
                drifts = [
                    f"{number(log[key]):.1e} ({number(log[key + '_max']):.0e})" for key in ("drift", "fresh")
                ]
                cells = (*drifts, f"{number(log['norm_factor']):.2f}", f"{log['rejected']:.0%}")
            loss, cost = f"{number(arm['loss_median'][-1]):.3g}", f"{arm['gradient_evaluations']:.0f}"
            table.add_row(f"{name}, {label}", loss, *cells, cost, f"{arm['seconds']:.2g}")
    return table


#: The arms of the panels of curves.
DRAWN = ("none", "reset", "action-reset", "action-keep", "exact-carry", "none-tuned", "exact-tuned")


def draw(folder: Path, results: dict[str, Any]) -> None:
    """Curves for each data set, and all comparisons."""
    groups = results["groups"]
    for data in dict.fromkeys(name.split("-")[0] for name in groups):
        own = {name: group["arms"] for name, group in groups.items() if name.startswith(f"{data}-")}
        shown = [
            Panel(
                name.removeprefix(f"{data}-"),
                losses(arms, DRAWN, banded=()),
                "epoch",
                "training loss: median",
            )
            for name, arms in own.items()
        ]
        title = f"{data}: teleports inside optimizers, {next(iter(own.values()))['none']['runs']} seeds"
        curve_panels(folder / f"{data}.png", shown, title=title)
    tables = {
        f"{ours}\n/ {theirs}": {
            ONLY: {
                name: group["arms"][ours]["versus"][theirs]
                for name, group in groups.items()
                if theirs in group["arms"][ours]["versus"]
            }
        }
        for ours, theirs in QUESTIONS
    }
    interval_panels(folder / "comparisons.png", tables, "ratio of final training losses", cut=20.0)


_SMALL = (Data("digits", seeds=4, epochs=8, tuning_seeds=2, rates=5),)

STUDIES = {
    "teleport-optimizers": Study(
        name="teleport-optimizers",
        title=EXPERIMENTS["teleport-optimizers"].title,
        analyse=analyse,
        figures=(draw,),
        tables=tables,
        settings=Settings(),
        quick={"settings": Settings(_SMALL, optimizers=("momentum", "adagrad"))},
    )
}
