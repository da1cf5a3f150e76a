"""Which tasks gain from learned teleports, and can one know beforehand?

Open question 3 of arXiv:2504.15399. Optimizers that look along the orbit, with teleports and without, are
trained and run on the same unseen tasks. The gain of a task, ln(final loss without / with teleports), is
regressed on what is known of it before it is run. Then the probe `teleport_gain` is followed: teleport where
the gradient norm varies much along the orbit of the start, else not.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from symmetrax.studies._orbit_arms import CANDIDATES, VANILLA, WATCHED, Networks, budget, orbit_arm
from symmetrax.studies._predictors_features import PROBES, WORDS, features_of
from symmetrax.studies._predictors_statistics import decide, gains, progress, regress, together
from symmetrax.studies._registry import EXPERIMENTS
from symmetrax.studies.core._arm import Learned
from symmetrax.studies.core._choice import validation
from symmetrax.studies.core._console import mean_text, number, titled_table
from symmetrax.studies.core._means import binned, judged
from symmetrax.studies.core._measurements import interval_panels
from symmetrax.studies.core._panels import Curve, Panel, curve_panels
from symmetrax.studies.core._played import OWN, VALIDATION
from symmetrax.studies.core._run import Run
from symmetrax.studies.core._study import Study
from symmetrax.tasks._base import AbstractTaskFamily

SOURCE = "open question 3 of arXiv:2504.15399"
PROBE_SOURCE = "what `teleport_gain` is for"


def arms(study: Study, family: AbstractTaskFamily) -> list[Learned]:
    """Those of the study that run on the validation stream, on which thresholds are chosen: all of them."""
    return [orbit_arm(name, family, study.budget, study.settings) for name in study.validated]


def analyse(run: Run) -> dict[str, Any]:
    """Measure the features, regress, follow the probe; write what is known of every task."""
    predictors: dict[str, Any] = {}
    probes: dict[str, Any] = {}
    verdicts: list[dict[str, Any]] = []
    tasks, parts = run.study.tasks, run.study.parts or 1
    for family in run.study.made():
        run.reporter.note(f"{family.name}: features of all tasks")
        known = features_of(family, run.streams.test, tasks, parts)
        others = features_of(family, validation(run.streams), tasks, parts)
        played, gained = run.played[family.name], {}
        losses, seen = (
            {arm: played.runs[test, arm, played.steps].losses for arm in run.study.validated}
            for test in (OWN, VALIDATION)
        )
        predictors[family.name], probes[family.name] = {}, {}
        for arm in (name for name in losses if name != VANILLA):
            gained[arm] = gains(losses[VANILLA], losses[arm])
            found = predictors[family.name][arm] = regress(known, gained[arm])
            found["parts"] = {a: together(known, progress(losses[a]), curved=True) for a in (VANILLA, arm)}
            other = gains(seen[VANILLA], seen[arm])
            probe = probes[family.name][arm] = decide(known, gained[arm], others, other, PROBES)
            verdicts += judge(family.name, arm, found, probe)
        arrays = {"start-loss": losses[VANILLA][..., 0], **{f"gain-{arm}": x for arm, x in gained.items()}}
        kept = {key: x.astype(np.float32) for key, x in {**arrays, **known}.items()}
        run.folder.arrays(f"{family.name}-tasks", kept)
    return {"predictors": predictors, "probes": probes, "verdicts": verdicts}


def judge(family: str, arm: str, found: dict[str, Any], probe: dict[str, Any]) -> list[dict[str, Any]]:
    """Whether features predict the gain, and whether the headroom tells where teleports win and helps.

    >>> entry = {"mean": 0.5, "low": 0.2, "high": 0.8}
    >>> follow = {"auc": {"mean": 0.4, "low": 0.3, "high": 0.45}, "less_always": entry, "share": entry}
    >>> recorded = {"all_curved": entry, "curved": {"loss": entry}, "strongest": "loss"}
    >>> recorded["spearman"] = recorded["curved"]
    >>> rows = judge("ellipse-random", "peak", recorded, {"probes": {"headroom": follow}})
    >>> [row["outcome"] for row in rows]
    ['reproduced', 'reversed', 'reproduced']
    """
    where, strongest = f"({arm}, {family})", found["strongest"]
    every, alone, best = found["all_curved"], found["curved"][strongest], found["spearman"][strongest]
    headroom = probe["probes"]["headroom"]
    auc, more = headroom["auc"], headroom["less_always"]
    return [
        judged(
            f"features of a task predict what teleports gain on it {where}",
            SOURCE,
            every,
            f"R^2 {mean_text(every)} for tasks not fitted to; strongest: {WORDS[strongest]}, alone "
            f"{mean_text(alone)}, rank correlation {mean_text(best)}",
        ),
        judged(
            f"the headroom of the orbit at the start tells where teleports win {where}",
            PROBE_SOURCE,
            auc,
            f"area under the curve {mean_text(auc)}; 0.5 is chance",
            least=0.5,
        ),
        judged(
            f"teleporting only where the headroom is large gains more than teleporting always {where}",
            PROBE_SOURCE,
            more,
            f"mean gain in ln loss {mean_text(more, '+.3f')} more; it teleports on "
            f"{number(headroom['share']['mean']):.0%} of tasks",
        ),
    ]


def tables(study: Study, results: dict[str, Any]) -> Iterator[Any]:
    """For every family, how features go with the gain, and what following the probe gains."""
    for family, found in results["predictors"].items():
        title = f"{family}: gain's rank correlation (95 %) with features; R^2 of line and parabola"
        table = titled_table(title, "feature", found)
        for name in next(iter(found.values()))["spearman"]:
            cells = [
                f"{mean_text(own['spearman'][name])}; {number(own['alone'][name]['mean']):.2f}, "
                f"{number(own['curved'][name]['mean']):.2f}"
                for own in found.values()
            ]
            table.add_row(WORDS[name], *cells)
        rows = {"all features: R^2": "all", "all features: R^2, parabolas": "all_curved"}
        for words, key in {**rows, "  of the gain itself": "all_gain"}.items():
            table.add_row(words, *(mean_text(own[key]) for own in found.values()))
        for words, place in ((f"  of the loss of {VANILLA}", 0), ("  of the loss with teleports", 1)):
            table.add_row(words, *(mean_text(list(own["parts"].values())[place]) for own in found.values()))
        table.add_row("strongest", *(WORDS[own["strongest"]] for own in found.values()))
        table.add_row("its lead over the second", *(mean_text(own["lead"]) for own in found.values()))
        yield table
        yield _decisions(family, results["probes"][family])


def _decisions(family: str, found: dict[str, Any]) -> Any:
    title = f"{family}: mean gain in ln loss against never teleporting (95 % over seeds)"
    table = titled_table(title, "", found)
    for key, words in (("always", "always"), ("where_it_wins", "where it wins (not known beforehand)")):
        table.add_row(words, *(mean_text(own[key]) for own in found.values()))
    for name in PROBES:
        probes = [own["probes"][name] for own in found.values()]
        table.add_row(f"by {WORDS[name]}", *(mean_text(probe["mean_gain"]) for probe in probes))
        table.add_row("  area under its curve", *(mean_text(probe["auc"]) for probe in probes))
        table.add_row("  teleports on", *(f"{number(p['share']['mean']):.0%} of tasks" for p in probes))
    shares = ([f"{number(own[k]['mean']):.0%}" for k in ("wins", "ties", "losses")] for own in found.values())
    table.add_row("wins / ties / losses", *(" / ".join(own) for own in shares))
    return table


#: At most so many tasks are drawn in a panel.
DRAWN = 3000


def draw(folder: Path, results: dict[str, Any]) -> None:
    """Gains against the strongest feature, rank correlations with all, and the gain of following a probe."""
    shown, correlations = [], {}
    for family, found in results["predictors"].items():
        with np.load(folder / f"{family}-tasks.npz", allow_pickle=False) as arrays:
            known = {name: x.ravel() for name, x in arrays.items()}
        for arm, own in found.items():
            name = WORDS[own["strongest"]]
            label = name if name.startswith(("det", "angle")) else f"ln({name})"
            x, y = known[own["strongest"]], known[f"gain-{arm}"]
            some = np.random.default_rng(0).permutation(len(x))[:DRAWN]
            curves = {"tasks": Curve(x[some], y[some], dots=True), "median": Curve(*binned(x, y))}
            title, gain = f"{family}, {arm}", "gain: ln(loss without / with)"
            shown.append(Panel(title, curves, label, gain, log="", marked=0.0))
        correlations[family] = {
            arm: {WORDS[name]: entry for name, entry in own["spearman"].items()} for arm, own in found.items()
        }
    curve_panels(folder / "gains.png", shown, columns=len(shown) // len(correlations))
    interval_panels(folder / "correlations.png", correlations, "rank correlation with the gain")
    decisions = {
        family: {
            arm: {
                "always": own["always"],
                **{name: probe["mean_gain"] for name, probe in own["probes"].items()},
                "where it wins": own["where_it_wins"],
            }
            for arm, own in found.items()
        }
        for family, found in results["probes"].items()
    }
    interval_panels(folder / "decisions.png", decisions, "mean gain in ln loss; never: 0")


STUDIES = {
    "predictors": Study(
        name="predictors",
        title=EXPERIMENTS["predictors"].title,
        families=("ellipse-random", "rosenbrock-random"),
        arms=arms,
        references=(VANILLA,),
        budget=budget(),
        seeds=10,
        tasks=500,
        horizons=(12,),
        watch=WATCHED,
        validated=(VANILLA, *CANDIDATES),
        analyse=analyse,
        figures=(draw,),
        tables=tables,
        settings=Networks(),
        quick={"seeds": 4, "tasks": 300, "validated": (VANILLA, "peak-near"), "budget": budget(150)},
    )
}
