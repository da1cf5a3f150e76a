"""Which tasks gain from learned teleports, and can one know beforehand?

Open question 3 of arXiv:2504.15399. Optimizers that look along the orbit, with teleports and without, are
trained and run on the same unseen tasks. The gain of a task, ln(final loss without / with teleports), is
regressed on what is known of it before it is run. Then the probe `teleport_gain` is followed: teleport where
the gradient norm varies much along the orbit of the start, else not.
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
    gradients_per_step,
    orbit_arm,
    run_used,
    trained_arm,
    validation,
)
from symmetrax.studies._predictors_features import PROBES, WORDS, features_of
from symmetrax.studies._predictors_statistics import (
    PerTask,
    decide,
    gains,
    judged,
    progress,
    regress,
    together,
)
from symmetrax.studies.core._console import (
    Reporter,
    arms_table,
    mean_text,
    number,
    titled_table,
    verdict_table,
)
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._runs import Runs, facts, resumable
from symmetrax.studies.core._statistics import compare
from symmetrax.studies.core._streams import Streams
from symmetrax.tasks._families import make_family

SOURCE = "open question 3 of arXiv:2504.15399"
PROBE_SOURCE = "what `teleport_gain` is for"
#: The end of the name of what an arm did on the tasks that thresholds are chosen on.
CHOSEN = "-validation"
WATCHED = ("loss_change", "outcome")
#: Runs and features are of the same tasks only if both are drawn in equally many parts.
PARTS = 2


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run; `tasks` are those of each meta-seed, `chosen_on` those that choose thresholds.

    >>> config("predictors", "quick").arms
    ('crest-near',)
    """

    seed: int = 0
    seeds: int = 10
    tasks: int = 500
    chosen_on: int = 500
    steps: int = 12
    families: tuple[str, ...] = ("ellipse-random", "rosenbrock-random")
    arms: tuple[str, ...] = ("teleport", "crest", "crest-near")
    training: Training = dataclasses.field(default_factory=Training)


def config(name: str, preset: str = "full", seed: int = 0) -> Config:
    """The settings under a preset: "full", or "quick" with one learned teleport, few seeds and less training.

    >>> config("predictors").arms
    ('teleport', 'crest', 'crest-near')
    """
    if preset == "full":
        return Config(seed=seed)
    return Config(
        seed=seed, seeds=4, tasks=300, chosen_on=300, arms=("crest-near",), training=Training(runs=150)
    )


def run(settings: Config, folder: RunFolder, reporter: Reporter) -> dict[str, Any]:
    """Train, run, measure the features, regress, follow the probe; write arrays and plots."""
    streams = Streams.of(settings.seed, settings.seeds)
    results: dict[str, Any] = {"groups": {}, "predictors": {}, "probes": {}, "verdicts": []}
    panels = {}
    for name in settings.families:
        ran, recorded = _runs(name, settings, streams, folder, reporter)
        reporter.note(f"{name}: features of all tasks")
        family = make_family(name)
        known = features_of(family, streams.test, settings.tasks, PARTS)
        others = features_of(family, validation(streams), settings.chosen_on, PARTS)
        reported = {arm: ran[arm].losses for arm in (VANILLA, *settings.arms)}
        group = compare(reported, (VANILLA,), settings.seeds * settings.tasks)
        results["groups"][name] = {"arms": {arm: {**group[arm], **recorded[arm]} for arm in reported}}
        results["predictors"][name], results["probes"][name] = {}, {}
        gained = {}
        for arm in settings.arms:
            gained[arm] = gains(ran[VANILLA].losses, ran[arm].losses)
            chosen = gains(ran[VANILLA + CHOSEN].losses, ran[arm + CHOSEN].losses)
            found = results["predictors"][name][arm] = regress(known, gained[arm])
            found["parts"] = {
                a: together(known, progress(ran[a].losses), curved=True) for a in (VANILLA, arm)
            }
            probe = results["probes"][name][arm] = decide(known, gained[arm], others, chosen, PROBES)
            results["verdicts"] += judge(name, arm, found, probe)
            panels[f"{name}, {arm}"] = _panel(known, gained[arm], found["strongest"])
        arrays = {
            "start-loss": ran[VANILLA].losses[..., 0],
            **{f"gain-{arm}": x for arm, x in gained.items()},
            **known,
        }
        folder.arrays(f"{name}-tasks", {key: x.astype(np.float32) for key, x in arrays.items()})
    plots_predictors.gains(folder.path / "gains.png", panels)
    plots_predictors.correlations(folder.path / "correlations.png", results["predictors"], WORDS)
    plots_predictors.decisions(folder.path / "decisions.png", results["probes"], WORDS)
    return results


def _runs(name: str, settings: Config, streams: Streams, folder: RunFolder, reporter: Reporter):
    """What all arms did on the tasks that are reported and on those that choose thresholds, and facts."""
    ran: dict[str, Runs] = {}
    recorded: dict[str, Any] = {}
    for label in (VANILLA, *settings.arms):
        arm = orbit_arm(label, make_family(name), settings.training, VARIANTS.get(label))

        def compute(arm=arm, label=label):
            trained = trained_arm(arm, settings.training, streams, folder, reporter)
            own = {
                label + end: run_used(
                    arm, trained.networks, keys, steps=settings.steps, tasks=tasks, watch=WATCHED, parts=PARTS
                )
                for end, keys, tasks in (
                    ("", streams.test, settings.tasks),
                    (CHOSEN, validation(streams), settings.chosen_on),
                )
            }
            card = facts(own[label], as_used(arm.rule, settings.steps))
            del card["recorded"]
            card["gradient_evaluations"] *= gradients_per_step(arm)
            return own, {label: {**card, **trained.facts}}

        found, card = resumable(folder, f"{name}-{label}", compute)
        ran, recorded = ran | found, recorded | card
    return ran, recorded


def _panel(known: dict[str, PerTask], gain: PerTask, strongest: str) -> dict[str, Any]:
    return {"x": known[strongest].ravel(), "y": gain.ravel(), "label": WORDS[strongest]}


def judge(family: str, arm: str, found: dict[str, Any], probe: dict[str, Any]) -> list[dict[str, Any]]:
    """Whether features predict the gain, and whether the headroom tells where teleports win and helps.

    >>> entry = {"mean": 0.5, "low": 0.2, "high": 0.8}
    >>> follow = {"auc": {"mean": 0.4, "low": 0.3, "high": 0.45}, "less_always": entry, "share": entry}
    >>> recorded = {"all_curved": entry, "curved": {"loss": entry}, "strongest": "loss"}
    >>> recorded["spearman"] = recorded["curved"]
    >>> rows = judge("ellipse-random", "crest", recorded, {"probes": {"headroom": follow}})
    >>> [row["outcome"] for row in rows]
    ['reproduced', 'reversed', 'reproduced']
    """
    where = f"({arm}, {family})"
    best = found["spearman"][found["strongest"]]
    every, alone = found["all_curved"], found["curved"][found["strongest"]]
    rows = [
        judged(
            f"features of a task predict what teleports gain on it {where}",
            SOURCE,
            every,
            f"R^2 {mean_text(every)} for tasks not fitted to; strongest: {WORDS[found['strongest']]}, alone "
            f"{mean_text(alone)}, rank correlation {mean_text(best)}",
        )
    ]
    headroom = probe["probes"]["headroom"]
    auc = headroom["auc"]
    shifted = {key: number(auc[key]) - 0.5 for key in ("mean", "low", "high")}
    rows.append(
        judged(
            f"the headroom of the orbit at the start tells where teleports win {where}",
            PROBE_SOURCE,
            shifted,
            f"area under the curve {mean_text(auc)}; 0.5 is chance",
        )
    )
    rows.append(
        judged(
            f"teleporting only where the headroom is large gains more than teleporting always {where}",
            PROBE_SOURCE,
            headroom["less_always"],
            f"mean gain in ln loss {mean_text(headroom['less_always'], '+.3f')} more; it teleports on "
            f"{number(headroom['share']['mean']):.0%} of tasks",
        )
    )
    return rows


def show(settings: Config, results: dict[str, Any], reporter: Reporter) -> None:
    """Print the tables of a run."""
    for family, group in results["groups"].items():
        runs = settings.seeds * settings.tasks
        title = f"{family}: loss after {settings.steps} steps, all {runs:,} unseen runs"
        reporter.print(arms_table(title, group["arms"], VANILLA))
        arms = results["predictors"][family]
        title = f"{family}: gain's rank correlation (95 %) with features; R^2 of line and parabola"
        table = titled_table(title, "feature", arms)
        for name in next(iter(arms.values()))["spearman"]:
            cells = [
                f"{mean_text(a['spearman'][name])}; {number(a['alone'][name]['mean']):.2f}, "
                f"{number(a['curved'][name]['mean']):.2f}"
                for a in arms.values()
            ]
            table.add_row(WORDS[name], *cells)
        table.add_row("all features: R^2", *(mean_text(a["all"]) for a in arms.values()))
        table.add_row("all features: R^2, parabolas", *(mean_text(a["all_curved"]) for a in arms.values()))
        table.add_row("  of the gain itself", *(mean_text(a["all_gain"]) for a in arms.values()))
        for words, place in ((f"  of the loss of {VANILLA}", 0), ("  of the loss with teleports", 1)):
            table.add_row(words, *(mean_text(list(a["parts"].values())[place]) for a in arms.values()))
        table.add_row("strongest", *(WORDS[a["strongest"]] for a in arms.values()))
        table.add_row("its lead over the second", *(mean_text(a["lead"]) for a in arms.values()))
        reporter.print(table)
        reporter.print(_decisions(family, results["probes"][family]))
    reporter.print(verdict_table(results["verdicts"]))


def _decisions(family: str, arms: dict[str, Any]) -> Any:
    table = titled_table(
        f"{family}: mean gain in ln loss against never teleporting (95 % over seeds)", "", arms
    )
    for name, words in (("always", "always"), ("where_it_wins", "where it wins (not known beforehand)")):
        table.add_row(words, *(mean_text(arm[name]) for arm in arms.values()))
    for name in PROBES:
        recorded = [arm["probes"][name] for arm in arms.values()]
        table.add_row(f"by {WORDS[name]}", *(mean_text(t["mean_gain"]) for t in recorded))
        table.add_row("  area under its curve", *(mean_text(t["auc"]) for t in recorded))
        table.add_row("  teleports on", *(f"{number(t['share']['mean']):.0%} of tasks" for t in recorded))
    shares = [
        " / ".join(f"{number(arm[k]['mean']):.0%}" for k in ("wins", "ties", "losses"))
        for arm in arms.values()
    ]
    table.add_row("wins / ties / losses", *shares)
    return table
