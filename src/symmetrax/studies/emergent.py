"""What trained optimizers do: learned momentum, schedule, saturation and gate, and which way they turn.

After arXiv:2011.02159, with optimizers that look along the orbit: the learned step is regressed on past
gradients, its length is held against the gradient's and the loss, and the gate against how much the gradient
norm varies along the orbit. On ellipses the learned angle is held against the way to the steepest point.
"""

import dataclasses
from typing import Any

import numpy as np

from symmetrax.studies import plots_predictors
from symmetrax.studies._orbit_arms import (
    VANILLA,
    VARIANTS,
    Training,
    as_used,
    orbit_arm,
    trained_arm,
)
from symmetrax.studies._predictors_behaviour import LAGS, describe
from symmetrax.studies._predictors_statistics import judged
from symmetrax.studies._predictors_tracks import follow_many
from symmetrax.studies.core._console import Reporter, mean_text, titled_table, verdict_table
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._runs import Runs, resumable
from symmetrax.studies.core._statistics import compare
from symmetrax.studies.core._streams import Streams
from symmetrax.tasks._families import make_family

SOURCE = "arXiv:2011.02159"
SIGN_SOURCE = "a check of the setting of figure 3 of arXiv:2504.15399"
NEWTON_SOURCE = "arXiv:2504.15399 on second-order methods"
#: The share of steps in which the learned angle shall have the sign of the oracle's.
ASKED = 0.8


@dataclasses.dataclass(frozen=True)
class Study:
    """A family, and the arms that are trained on it.

    >>> Study("ellipse-fixed", ("teleport",)).arms
    ('teleport',)
    """

    family: str
    arms: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run; unseen runs are as long as those of training.

    >>> [study.family for study in config("emergent").studies]
    ['ellipse-random', 'rosenbrock-random', 'ellipse-fixed']
    """

    studies: tuple[Study, ...]
    seed: int = 0
    seeds: int = 8
    tasks: int = 500
    training: Training = dataclasses.field(default_factory=Training)


def config(name: str, preset: str = "full", seed: int = 0) -> Config:
    """The settings under a preset: "full", or "quick" with fewer arms and seeds and less training.

    >>> config("emergent", "quick").seeds
    4
    """
    if preset == "full":
        studies = (
            Study("ellipse-random", (VANILLA, "teleport", "crest")),
            Study("rosenbrock-random", (VANILLA, "teleport", "crest-near")),
            Study("ellipse-fixed", ("teleport", "crest")),
        )
        return Config(studies, seed)
    studies = (
        Study("ellipse-random", (VANILLA, "crest")),
        Study("ellipse-fixed", ("teleport",)),
    )
    return Config(studies, seed, seeds=4, tasks=200, training=Training(runs=150))


def run(settings: Config, folder: RunFolder, reporter: Reporter) -> dict[str, Any]:
    """Train, follow, describe, draw."""
    streams = Streams.of(settings.seed, settings.seeds)
    results: dict[str, Any] = {"groups": {}, "behaviour": {}, "verdicts": []}
    for study in settings.studies:
        losses, recorded, facts = {}, {}, {}
        for label in study.arms:
            ran, card = resumable(
                folder,
                f"{study.family}-{label}",
                lambda study=study, label=label: _part(
                    study.family, label, settings, streams, folder, reporter
                ),
            )
            losses[label] = ran[label].losses
            recorded[label], facts[label] = card["recorded"], card["facts"]
            results["verdicts"] += judge(study.family, label, recorded[label])
        group = compare(losses, (VANILLA,), settings.seeds * settings.tasks)
        results["groups"][study.family] = {"arms": {arm: {**group[arm], **facts[arm]} for arm in losses}}
        results["behaviour"][study.family] = recorded
        folder.arrays(f"losses-{study.family}", {name: x.astype(np.float32) for name, x in losses.items()})
    plots_predictors.behaviour(folder.path / "behaviour.png", results["behaviour"], LAGS)
    return results


def _part(family: str, label: str, settings: Config, streams: Streams, folder: RunFolder, reporter: Reporter):
    """Train one arm, follow it on unseen tasks, and tell what it does."""
    arm = orbit_arm(label, make_family(family), settings.training, VARIANTS.get(label))
    trained = trained_arm(arm, settings.training, streams, folder, reporter)
    steps = settings.training.steps
    tracks = follow_many(
        as_used(arm.rule, steps),
        trained.networks,
        arm.family,
        streams.test,
        steps=steps,
        tasks=settings.tasks,
    )
    return {label: Runs(tracks["loss"], {}, {}, 0.0)}, {
        "recorded": describe(tracks, trained.networks.rates),
        "facts": trained.facts,
    }


def judge(family: str, arm: str, behaviour: dict[str, Any]) -> list[dict[str, Any]]:
    """Whether the arm keeps momentum, clips, opens its gate where the orbit has headroom, comes nearer to
    Newton's direction than the gradient, and turns the oracle's way."""
    where = f"({arm}, {family})"
    lags, bend, newton = behaviour["lags"], behaviour["saturation"]["r_bend"], behaviour["newton"]
    past = lags["past"]
    rows = [
        judged(
            f"the learned step has momentum {where}",
            SOURCE,
            past,
            f"past gradients have {mean_text(past, '+.2f')} of the present one's weight; R^2 "
            f"{mean_text(lags['r2'][0])} without past gradients, {mean_text(lags['r2'][-1])} with {LAGS}",
        ),
        judged(
            f"long gradients are clipped, beyond what Polyak's step does by itself {where}",
            SOURCE,
            bend,
            f"the log-log slope of r against the gradient norm is {mean_text(bend, '+.2f')} more above the "
            "median norm than below; that of the step is "
            f"{mean_text(behaviour['saturation']['small'])} below it, "
            f"{mean_text(behaviour['saturation']['large'])} above it",
            negative=True,
        ),
        judged(
            f"the learned step is nearer to Newton's direction than the gradient is {where}",
            NEWTON_SOURCE,
            newton["more"],
            f"mean cosine {mean_text(newton['learned'])}, of the gradient {mean_text(newton['gradient'])}: "
            f"{mean_text(newton['more'], '+.3f')} more",
        ),
    ]
    if behaviour["gate"] is not None and behaviour["gate"]["headroom"] is not None:
        entry = behaviour["gate"]["headroom"]["at equal step"]
        rows.append(
            judged(
                f"the gate opens where the orbit has headroom {where}",
                "not in the papers: a check",
                entry,
                f"rank correlation at equal step {mean_text(entry, '+.2f')}; open in "
                f"{mean_text(behaviour['gate']['open'])} of steps",
            )
        )
    sign = behaviour["sign"]
    if sign is not None:
        rows.append(
            judged(
                f"the learned angle has the sign of the oracle's in {ASKED:.0%} of steps {where}",
                SIGN_SOURCE,
                sign["all"],
                f"share {mean_text(sign['all'])} of {sign['steps']:,} steps that are not solved; of those "
                f"that turn {mean_text(sign['turned'])}, against another run's oracle "
                f"{mean_text(sign['chance'])}",
                least=ASKED,
            )
        )
    return rows


#: Rows of the table: what it is, and where it stands in what is told of an arm.
ROWS = {
    "R^2, present gradient": ("lags", "r2", 0),
    "R^2, 1 past gradient": ("lags", "r2", 1),
    f"R^2, {LAGS} past gradients": ("lags", "r2", LAGS),
    **{f"weight of lag {lag} / present": ("lags", "weights", lag - 1) for lag in range(1, LAGS + 1)},
    "weight of all lags / present": ("lags", "past"),
    "slope, length by gradient": ("saturation", "slope"),
    "  short gradients": ("saturation", "small"),
    "  long gradients": ("saturation", "large"),
    "slope of r, long less short": ("saturation", "r_bend"),
    "slope, r by loss": ("saturation", "r_by_loss"),
    "share of r at its upper bound": ("saturation", "at_most"),
    "gate open": ("gate", "open"),
    "teleports that move": ("gate", "moves"),
    "gate with headroom, at equal step": ("gate", "headroom", "at equal step"),
    "cosine with Newton's step": ("newton", "learned"),
    "  of the gradient": ("newton", "gradient"),
    "sign of the oracle's angle": ("sign", "all"),
    "  where it turns": ("sign", "turned"),
    "  modulo pi": ("sign", "nearer"),
    "  another run's oracle": ("sign", "chance"),
    "cosine of twice the angle to it": ("sign", "crest"),
    "steps that count": ("unsolved",),
}


def show(settings: Config, results: dict[str, Any], reporter: Reporter) -> None:
    """Print the tables of a run."""
    for family, arms in results["behaviour"].items():
        title = f"{family}: what trained optimizers do, mean over {settings.seeds} seeds (95 %)"
        table = titled_table(title, "", arms)
        for words, path in ROWS.items():
            cells = [_at(found, path) for found in arms.values()]
            if any(cells):
                table.add_row(words, *cells)
        medians = [
            [f"{np.median(np.array(s, float)):.2f}" for s in found["schedule"]] for found in arms.values()
        ]
        table.add_row("r at steps 1, 2, 3, 5, 10", *(" ".join(m[i] for i in _few(len(m))) for m in medians))
        reporter.print(table)
    reporter.print(verdict_table(results["verdicts"]))


def _few(steps: int) -> list[int]:
    return [t for t in (0, 1, 2, 4, 9) if t < steps]


def _at(found: Any, path: tuple) -> str:
    for key in path:
        if found is None:
            return ""
        found = found[key]
    return mean_text(found)
