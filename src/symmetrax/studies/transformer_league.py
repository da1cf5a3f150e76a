"""Do teleports to an eigenbasis make AdamW better on transformers? Against Muon, SOAP, ARO and controls.

The rules: two kinds of small language model (`tasks.LanguageModel`) on the source code of Python's standard
library, batches of 16 windows of 64 characters, a warm-up over a tenth of the steps and a cosine to 5 %. A
learning rate is chosen for every arm from the same values by the held-out loss on starts that are not
reported; variants of an arm use its rate. All arms meet the same starts and data, and every run counts. What
is compared is the loss on held-out text after the last step, paired by start. Seconds are charged with
everything: searches, guards, and the update of moments.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich.table
import scipy.stats

from symmetrax._files._arrays import load_arrays, save_arrays
from symmetrax.studies._registry import EXPERIMENTS
from symmetrax.studies._transformer_arms import MAIN, MORE, Arm, Trained, train
from symmetrax.studies.core._console import number, titled_table
from symmetrax.studies.core._panels import Panel, curve_panels, losses
from symmetrax.studies.core._played import judged
from symmetrax.studies.core._run import Run
from symmetrax.studies.core._statistics import compare, t_interval
from symmetrax.studies.core._streams import Streams
from symmetrax.studies.core._study import Claim, Study
from symmetrax.tasks._language import ARCHITECTURES, Architecture, LanguageModel, standard_library


@dataclasses.dataclass(frozen=True)
class Settings:
    """The models, the length of the runs, and the learning rates among which every arm is tuned.

    >>> Settings().points
    10
    """

    kinds: tuple[tuple[str, Architecture], ...] = tuple(
        zip(("learned", "rotary"), ARCHITECTURES, strict=True)
    )
    steps: int = 600
    points: int = 10
    rates: tuple[float, ...] = (0.005, 0.008, 0.0125, 0.02)
    tuning_seeds: int = 1
    more: bool = True


REFERENCES = ("adamw", "teleport", "random")

CLAIMS = (
    Claim("teleport", "adamw", "teleports to the eigenbasis improve tuned AdamW"),
    Claim("teleport", "random", "the eigenbasis is better than random bases at the same steps"),
    Claim("random", "adamw", "random bases harm AdamW", "arXiv:2410.19964", lower=False),
    Claim("muon", "teleport", "tuned Muon is better than AdamW with teleports"),
    Claim("soap", "teleport", "tuned SOAP is better than AdamW with teleports"),
    Claim("adamw-again", "adamw", "AdamW differs from AdamW on other data (a false positive, if it does)"),
    Claim("teleport-88", "adamw", "with teleports 88 % of the steps suffice"),
    Claim("reset", "adamw", "a reset of AdamW's state alone improves it"),
    Claim("teleport-decay", "adamw-decay", "teleports improve AdamW with weight decay"),
    Claim("teleport-bfloat16", "adamw-bfloat16", "teleports improve AdamW with activations in bfloat16"),
)


def analyse(run: Run) -> dict[str, Any]:
    """Trains the arms that all kinds of model share, then the others, and compares the arms of each kind."""
    settings: Settings = run.study.settings
    text, streams = standard_library(), Streams.of(run.study.seed, run.study.seeds)
    tasks = {kind: LanguageModel(text, architecture) for kind, architecture in settings.kinds}
    first = next(iter(tasks))
    order = [(kind, arm) for kind in tasks for arm in MAIN]
    order += [(first, arm) for arm in MORE if settings.more]
    ran: dict[str, dict[str, Trained]] = {kind: {} for kind in tasks}
    rates: dict[str, dict[str, float]] = {kind: {} for kind in tasks}
    for kind, arm in order:
        run.reporter.note(f"{kind}: {arm.name}")
        path = run.folder.path / "checkpoints" / "parts" / f"{kind}-{arm.name}.safetensors"
        if not path.exists():
            known = rates[kind].get(arm.like) if arm.like else None
            found, rate = _play(arm, tasks[kind], settings, streams, known)
            save_arrays(path, {"held": found.held}, {"rate": rate, "seconds": found.seconds})
        arrays, card = load_arrays(path, "part of a run")
        ran[kind][arm.name] = Trained(arrays["held"], card["seconds"])
        rates[kind][arm.name] = card["rate"]
    groups, verdicts = {}, []
    for kind, arms in ran.items():
        groups[kind] = {"arms": _compared(arms, rates[kind])}
        if "adamw-again" in arms:
            groups[kind]["rule"] = decisions(arms["adamw"].held[:, -1], arms["adamw-again"].held[:, -1])
        named = {name: _as_losses(arm.held) for name, arm in arms.items()}
        for claim in CLAIMS:
            pair = _paired(named, (claim.first, claim.second))
            verdicts += judged([claim], pair, f"{{}} ({kind})")
        run.folder.arrays(f"{kind}-held-out-loss", {name: arm.held for name, arm in arms.items()})
    return {"groups": groups, "verdicts": verdicts}


def _play(
    arm: Arm, task: LanguageModel, settings: Settings, streams: Streams, known: float | None
) -> tuple[Trained, float]:
    """Tunes an arm unless its rate is known, and trains it from all starts."""
    rest: dict[str, Any] = {"steps": settings.steps, "points": settings.points}
    if known is None:
        keys = jax.random.split(streams.tune, settings.tuning_seeds)
        tried = train(arm, task, list(settings.rates), keys, **rest)
        last = [float(np.mean(np.where(np.isfinite(t.held), t.held, np.inf)[:, -1])) for t in tried]
        known = settings.rates[int(np.argmin(last))]
    seeds = len(streams.test)
    keys = streams.test[: max(1, seeds // 2)] if arm.minor else streams.test
    return train(arm, task, [known], keys, **rest)[0], known


def _as_losses(held: np.ndarray) -> np.ndarray:
    return held[:, None, :]


def _paired(losses: dict[str, np.ndarray], names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The losses of these arms on the starts that all of them have."""
    there = {name: losses[name] for name in names if name in losses}
    common = min((len(x) for x in there.values()), default=0)
    return {name: x[:common] for name, x in there.items()}


def _compared(arms: dict[str, Trained], rates: dict[str, float]) -> dict[str, dict[str, Any]]:
    """Statistics of every arm, and differences of its held-out loss from the arms of reference."""
    found = {}
    for name, arm in arms.items():
        pairs = _paired({other: _as_losses(a.held) for other, a in arms.items()}, (name, *REFERENCES))
        found[name] = compare(pairs, REFERENCES, len(pairs[name]))[name]
        ends = arm.held[:, -1]
        found[name] |= {"rate": rates[name], "seconds": arm.seconds, "held_mean": float(np.mean(ends))}
        found[name]["difference"] = {
            other: _difference(ends, arms[other].held[: len(ends), -1])
            for other in REFERENCES
            if other in arms and other != name
        }
    return found


def _difference(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """The mean paired difference with its 95 % t-interval, and the one-sided p-value that ours is lower."""
    gaps = ours - theirs
    low, high = t_interval(gaps)
    return {"mean": float(np.mean(gaps)), "low": low, "high": high, "p": float(_one_sided(gaps))}


def _one_sided(gaps: np.ndarray) -> np.ndarray:
    """The p-values of t-tests along the last axis that the mean is below zero; 1 for a single gap."""
    n = gaps.shape[-1]
    if n < 2:
        return np.ones(gaps.shape[:-1])
    t = np.mean(gaps, axis=-1) / (np.std(gaps, axis=-1, ddof=1) / np.sqrt(n))
    return np.asarray(scipy.stats.t.cdf(t, n - 1))


def decisions(ours: np.ndarray, theirs: np.ndarray, planted: float = 0.01) -> dict[str, float]:
    """How often a one-sided paired t-test at 5 % prefers the first of two arms that differ in data alone.

    Over all ways to exchange the two arms of each pair: `equal` as they are (false positives; 5 % are due),
    and `planted` with the losses of the first arm lowered by that share.

    >>> losses = np.array([1.0, 1.1, 0.9, 1.0, 1.05])
    >>> decisions(losses, losses[::-1], planted=0.5)["planted"]
    1.0
    """
    signs = 1 - 2 * (np.arange(2 ** len(ours))[:, None] >> np.arange(len(ours)) & 1)
    middle, half = (ours + theirs) / 2, (ours - theirs) / 2
    found = {}
    for name, factor in (("equal", 1.0), ("planted", 1.0 - planted)):
        gaps = factor * (middle + signs * half) - (middle - signs * half)
        found[name] = float(np.mean(_one_sided(gaps) < 0.05))
    return found


def tables(study: Study, results: dict[str, Any]) -> Iterator[rich.table.Table | str]:
    """A table for each kind of model."""
    for kind, group in results["groups"].items():
        arms = group["arms"]
        title = f"{kind}: held-out loss after {study.settings.steps} steps, differences from others (95 %)"
        columns = ("seeds", "rate", "loss", "- adamw", "p", "- random bases", "time of a step")
        table = titled_table(title, "arm", columns)
        for name, arm in arms.items():
            table.add_row(
                name,
                str(arm["runs"]),
                f"{arm['rate']:g}",
                f"{number(arm['held_mean']):.4f}",
                _gap(arm, "adamw"),
                f"{number(arm['difference']['adamw']['p']):.1g}" if "adamw" in arm["difference"] else "",
                _gap(arm, "random"),
                f"{arm['seconds'] / arms['adamw']['seconds']:.2f}",
            )
        yield table
        if "rule" in group:
            equal, planted = (number(group["rule"][name]) for name in ("equal", "planted"))
            yield f"{kind}: p < .05 in {equal:.1%} of equal arms, in {planted:.0%} where one is 1 % better"


def _gap(arm: dict[str, Any], other: str) -> str:
    if other not in arm["difference"]:
        return ""
    gap = {key: number(value) for key, value in arm["difference"][other].items()}
    return f"{gap['mean']:+.4f} ({gap['low']:+.4f} to {gap['high']:+.4f})"


def draw(folder: Path, results: dict[str, Any]) -> None:
    """Held-out loss over training, for the arms of both kinds and the other optimizers."""
    shown = ("adamw", "teleport", "random", "muon", "soap", "aro", "stream", "heads")
    panels = [
        Panel(kind, losses(group["arms"], shown), "evaluation, at equal distances", "held-out loss")
        for kind, group in results["groups"].items()
    ]
    curve_panels(folder / "transformer-league.png", panels, title="AdamW in the eigenbasis, by teleports")


_TINY = Architecture(width=16, layers=1, heads=2, kv_heads=2, hidden=32, context=16)

STUDIES = {
    "transformer-league": Study(
        name="transformer-league",
        title=EXPERIMENTS["transformer-league"].title,
        analyse=analyse,
        figures=(draw,),
        tables=tables,
        seeds=8,
        settings=Settings(),
        quick={
            "seeds": 3,
            "settings": Settings((("tiny", _TINY),), steps=60, points=3, rates=(0.01, 0.02), more=False),
        },
    )
}
