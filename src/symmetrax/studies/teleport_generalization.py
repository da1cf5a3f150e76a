"""Teleports to flatter or sharper, more or less curved points, and what becomes of the validation loss.

The published experiment (arXiv:2305.13404, section 4) changes sharpness or curvature in the middle of
training by gradient descent. Here every such teleport meets a random element of the same size, and the
published action, which is exact on small batches only, meets exact positive scalings. Beside it stands the
published correlation over independent runs, with the training loss as control: the published sharpness is a
mean of losses around a point, from which the loss at the point is not subtracted.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import rich.table

from symmetrax.studies._generalization_measures import (
    SOURCE,
    _correlation_verdicts,
    _measures,
    correlation,
)
from symmetrax.studies._generalization_moves import PUBLISHED, Data, Settings, moves_of
from symmetrax.studies._registry import EXPERIMENTS
from symmetrax.studies.core._console import number, ratio_text, titled_table
from symmetrax.studies.core._measurements import interval_panels
from symmetrax.studies.core._panels import Curve, Panel, curve_panels
from symmetrax.studies.core._played import judged
from symmetrax.studies.core._race import Blocks, Entry, Trained, classifier, race
from symmetrax.studies.core._run import Run
from symmetrax.studies.core._statistics import compare
from symmetrax.studies.core._streams import Streams
from symmetrax.studies.core._study import Claim, Study

CLAIMS = {
    "sharpness-down": "teleporting to flatter points lowers the validation loss",
    "sharpness-up": "teleporting to sharper points raises the validation loss",
    "curvature-up": "teleporting to larger curvature lowers the validation loss",
    "curvature-down": "teleporting to smaller curvature raises the validation loss",
}


def arms(ways: tuple[str, ...] = ("action", "exact"), rate: float = 1e-2) -> list[Entry]:
    """No teleport, and every teleport with its random partner.

    >>> [arm.name for arm in arms()][:3]
    ['none', 'action-sharpness-up', 'random-action-sharpness-up']
    """
    found = [Entry("none", rate=rate)]
    for way in ways:
        for what, (count, _) in PUBLISHED.items():
            name = f"{way}-{what}"
            found.append(Entry(name, name, teleports=count, rate=rate))
            found.append(Entry(f"random-{name}", name, how="random", teleports=count, rate=rate))
    return found


def analyse(run: Run) -> dict[str, Any]:
    """Train all arms, and measure the correlations, on every data set."""
    settings, groups, verdicts = run.study.settings, {}, []
    for data in settings.data:
        task, blocks = classifier(data.name, images=data.images), Blocks(settings.block)
        streams = Streams.of(run.study.seed, data.seeds)
        run.reporter.note(f"{data.name}: teleports to change sharpness and curvature")
        entries, moves = arms(settings.ways, settings.rate), moves_of(settings, data, task)
        options: dict[str, Any] = {"epochs": data.epochs, "moves": moves, "at": data.at}
        runs = race(optax.sgd, task, entries, streams.test, blocks, **options)
        run.folder.arrays(
            f"{data.name}-validation-loss", {name: r.held.astype(np.float32) for name, r in runs.items()}
        )
        run.reporter.note(f"{data.name}: correlations over {data.correlated} runs")
        measured = _measured(settings, data, task, streams.tune, blocks)
        run.folder.arrays(f"{data.name}-correlation", measured)
        validation = measured.pop("validation loss")
        found = {name: correlation(x, validation, run.study.seed) for name, x in measured.items()}
        groups[data.name] = {"arms": _compared(runs, data.seeds), "correlation": found}
        losses = {name: ran.held[:, None] for name, ran in runs.items()}
        verdicts += judged(_claims(settings.ways, data.name), losses)
        verdicts += _correlation_verdicts(found, data.name)
    return {"groups": groups, "verdicts": verdicts}


def _compared(runs: dict[str, Trained], seeds: int) -> dict[str, Any]:
    """Arms whose losses are validation losses."""
    references = ("none", *(name for name in runs if name.startswith("random-")))
    found = compare({name: ran.held[:, None] for name, ran in runs.items()}, references, seeds)
    for name, arm in found.items():
        ran = runs[name]
        arm["versus"] = {of: v for of, v in arm["versus"].items() if of in ("none", f"random-{name}")}
        arm |= {
            "training_loss_median": np.median(ran.train, axis=0).tolist(),
            "accuracy_mean": np.mean(ran.accuracy[:, -1]),
            "gradient_evaluations": ran.gradients,
            "seconds": ran.seconds,
        }
        if ran.moved is not None:
            with np.errstate(divide="ignore", invalid="ignore"):
                factors = ran.moved.after / ran.moved.before
            arm["teleports"] = {"objective_factor": np.nanmedian(factors), **ran.did()}
    return found


def _measured(settings: Settings, data: Data, task, key, blocks: Blocks) -> dict[str, np.ndarray]:
    """Every measure, and the validation loss, at the ends of independent runs."""
    keys, entry = jax.random.split(key, data.correlated), Entry("none", rate=settings.rate)
    ran = race(optax.sgd, task, [entry], keys, blocks, epochs=data.epochs, moves={}, at=0)["none"]
    rollouts = (ran.params, np.asarray(jax.random.key_data(keys)))
    found = blocks("measures", lambda part: _measures(task, part), rollouts)
    return {**found, "training loss": ran.train[:, -1], "validation loss": ran.held[:, -1]}


def _claims(ways: tuple[str, ...], data: str) -> Iterator[Claim]:
    """The validation loss moves as claimed: against no teleport, and against a random one."""
    for what, claim in CLAIMS.items():
        for way in ways:
            name, words = f"{way}-{what}", {"action": "published action", "exact": "exact scaling"}[way]
            for against, control in (("none", ""), (f"random-{name}", " more than a random one")):
                text = f"{claim}{control} ({data}, {words})"
                yield Claim(name, against, text, SOURCE, lower="lowers" in claim)


def tables(study: Study, results: dict[str, Any]) -> Iterator[rich.table.Table]:
    """The teleports and the correlations."""
    for data, group in results["groups"].items():
        yield _effects(data, group["arms"])
        yield _correlations(data, group["correlation"])


def _effects(data: str, arms: dict[str, Any]) -> rich.table.Table:
    """Validation losses against no teleport and against a random element of the same size."""
    none = arms["none"]
    title = (
        f"{data}: teleports in the middle of training, {none['runs']} seeds; validation loss without them "
        f"{number(none['loss_median'][-1]):.3g}; drift: relative change of the loss on the teleport's batch"
    )
    columns = ("objective", "loss / none (95 %)", "/ random (95 %)", "drift", "lost")
    table = titled_table(title, "arm", columns)
    for name, arm in arms.items():
        if name == "none" or name.startswith("random-"):
            continue
        log = arm["teleports"]
        table.add_row(
            name,
            f"x {number(log['objective_factor']):.4g}",
            _precise(arm["versus"]["none"]),
            _precise(arm["versus"][f"random-{name}"]),
            f"{number(log['drift']):.0e}",
            f"{arm['diverged']}",
        )
    return table


def _precise(versus: dict[str, Any]) -> str:
    """A ratio near one with its interval, to three decimals; of others, two digits."""
    logs = [number(versus[key]) for key in ("log_ratio", "low", "high")]
    if max(abs(x) for x in logs) > 0.3:
        return ratio_text(versus)
    middle, low, high = np.exp(logs)
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def _correlations(data: str, found: dict[str, Any]) -> rich.table.Table:
    """Pearson's r with the validation loss, of every measure."""
    runs = next(iter(found.values()))["runs"]
    title = f"{data}: correlation with the validation loss over {runs} runs"
    table = titled_table(title, "measure", ("r", "95 %, Fisher", "95 %, bootstrap", "rank correlation"))
    for name, row in found.items():
        spans = [f"{row[f'{key}low']:+.2f} to {row[f'{key}high']:+.2f}" for key in ("", "bootstrap_")]
        table.add_row(name, f"{row['r']:+.2f}", *spans, f"{row['rank']:+.2f}")
    return table


def draw(folder: Path, results: dict[str, Any]) -> None:
    """The effects of teleports, and every measure against the validation loss."""
    for data, group in results["groups"].items():
        arms = group["arms"]
        names = [name for name in arms if name != "none" and not name.startswith("random-")]
        table = {
            "teleport": {name: arms[name]["versus"]["none"] for name in names},
            "random element of the same size": {
                name: arms[f"random-{name}"]["versus"]["none"] for name in names
            },
        }
        tables, label = {f"{data}, {arms['none']['runs']} seeds": table}, "final validation loss / none"
        interval_panels(folder / f"{data}-teleports.png", tables, label, cut=1.32)
        with np.load(folder / f"{data}-correlation.npz", allow_pickle=False) as measured:
            shown = []
            for name, row in group["correlation"].items():
                dots = {"runs": Curve(measured[name], measured["validation loss"], dots=True)}
                title = f"r = {row['r']:+.2f} ({row['low']:+.2f} to {row['high']:+.2f})"
                shown.append(Panel(title, dots, name, "validation loss", log=""))
        curve_panels(folder / f"{data}-correlation.png", shown)


_SMALL = Data("digits", seeds=4, epochs=10, at=5, batch=200, correlated=20)

STUDIES = {
    "teleport-generalization": Study(
        name="teleport-generalization",
        title=EXPERIMENTS["teleport-generalization"].title,
        analyse=analyse,
        figures=(draw,),
        tables=tables,
        settings=Settings(),
        # Without the published action, whose third derivatives take a minute to compile.
        quick={
            "settings": Settings((Data("digits", 4, 10, 5, 200, correlated=20),), ascent=3, ways=("exact",))
        },
    )
}
