"""All optimizers against each other on the plane: does a learned teleport win where the paper says it loses?

Of the learned teleports one is chosen for each family on a validation stream, and compared with the same
optimizer without teleports: equal features, steps and training. Beside them stand arms of figures 3 to 6 of
arXiv:2504.15399, hand-made optimizers tuned for each horizon, and bounds that are told the best point of the
orbit. Every arm meets the same tasks, from starts as in training and from far ones.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from symmetrax.learned._artifact import save
from symmetrax.studies import plots_league
from symmetrax.studies._league_hand import ARMS as HAND_MADE
from symmetrax.studies._league_hand import lbfgs
from symmetrax.studies._league_verdicts import target_table, targets, verdicts
from symmetrax.studies._orbit_arms import (
    CANDIDATES,
    FAMILIES,
    VANILLA,
    VARIANTS,
    WATCHED,
    Training,
    as_used,
    choose_arm,
    gradients_per_step,
    orbit_arm,
    run_used,
    trained_arm,
    validation,
)
from symmetrax.studies.core._arm import Learned, switched_off
from symmetrax.studies.core._artifacts import usage
from symmetrax.studies.core._console import Reporter, arms_table, verdict_table
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._meta_training import Trained
from symmetrax.studies.core._runs import Runs, resumable, run_many
from symmetrax.studies.core._statistics import compare, intervals
from symmetrax.studies.core._streams import Streams
from symmetrax.studies.core._tuning import tune
from symmetrax.studies.plane import learned
from symmetrax.tasks._families import make_family

#: Arms of figures 3 to 6, under this prefix.
PAPER = "paper-"
#: A run has solved its task when its loss is below this share of the first.
SOLVED = 1e-6
#: Arms that others are compared with.
REFERENCES = (VANILLA, "adam", "crest-polyak", "lbfgs", "paper-vanilla")
#: The name under which the line search of an optimizer tells how many trials it made.
TRIALS = "num_linesearch_steps"


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run.

    `learned` are names of `VARIANTS`; "best" runs where the best point is known in closed form, `ablations`
    on the random families alone. So do the arms that are trained with `distance` times the squared distance
    to the optimum in the meta-loss. `paper` are arms of figures 3 to 6, which run to the second horizon: of
    the many in those figures, the ones without a teleport, with one at every step, guarded, and on schedule.

    >>> config("plane-league", "quick").seeds
    4
    """

    seed: int = 0
    seeds: int = 8
    tasks: int = 1250
    tuning_tasks: int = 200
    families: tuple[str, ...] = FAMILIES
    horizons: tuple[int, ...] = (12, 50, 200)
    training: Training = dataclasses.field(default_factory=Training)
    learned: tuple[str, ...] = tuple(VARIANTS)
    ablations: tuple[str, ...] = ("crest-ungated", "crest-unguarded")
    distance: float = 0.1
    paper: tuple[str, ...] = ("vanilla", "teleport", "teleport-guarded", "teleport-schedule")
    paper_runs: int = 500
    hand_made: tuple[str, ...] = tuple(arm.name for arm in HAND_MADE)
    far: bool = True

    @property
    def chosen_at(self) -> tuple[int, ...]:
        """The horizons that count in choosing an arm: those of the target."""
        return self.horizons[:2]


def config(name: str, preset: str = "full", seed: int = 0) -> Config:
    """The settings under a preset: "full", or "quick" with one family and few seeds, tasks, runs and arms.

    >>> config("plane-league").families[0]
    'ellipse-fixed'
    """
    if preset == "full":
        return Config(seed=seed)
    return Config(
        seed=seed,
        seeds=4,
        tasks=100,
        tuning_tasks=50,
        families=("rosenbrock-random",),
        horizons=(12, 50),
        training=Training(runs=400, tasks=32),
        learned=CANDIDATES[1:],
        distance=0.0,
        paper=(),
        hand_made=("adam", "crest-polyak"),
        far=False,
    )


class Played(NamedTuple):
    """What an arm did on one family: runs by name of the starts ("" as in training, "far"), and facts."""

    ran: dict[str, Runs]
    facts: dict[str, Any]


def run(settings: Config, folder: RunFolder, reporter: Reporter) -> dict[str, Any]:
    """Train, choose and run all arms; write losses, networks and pictures; return groups and verdicts."""
    streams = Streams.of(settings.seed, settings.seeds)
    results: dict[str, Any] = {"groups": {}, "chosen": {}, "solved": {}}
    for family in settings.families:
        played, chosen = play(family, settings, streams, folder, reporter)
        results["chosen"][family] = chosen
        for start in ("", "far") if settings.far else ("",):
            # One function from one start is one task.
            tasks = 1 if start and family.endswith("fixed") else settings.tasks
            for horizon in settings.horizons:
                name = "-".join(part for part in (family, start, str(horizon)) if part)
                arms = describe(played, start, horizon, settings, chosen["arm"], tasks)
                results["groups"][name] = {"arms": arms}
            solved = solutions(played, start, settings, tasks)
            results["solved"]["-".join(part for part in (family, start) if part)] = solved
        kept = {name: p.ran[""].losses.astype(np.float32) for name, p in played.items() if "" in p.ran}
        folder.arrays(f"losses-{family}", kept)
        # Hundreds of compiled programs are more memory maps than a process may have.
        jax.clear_caches()
    results["targets"] = targets(results, settings)
    results["verdicts"] = verdicts(results, settings)
    plots_league.league(folder.path, results, settings.horizons)
    return results


def show(settings: Config, results: dict[str, Any], reporter: Reporter) -> None:
    """Print the tables of a run: of all groups, those of the target."""
    for family in results["chosen"]:
        for horizon in settings.chosen_at:
            arms = results["groups"][f"{family}-{horizon}"]["arms"]
            runs = next(iter(arms.values()))["runs"]
            title = f"{family}: loss after {horizon} steps, all {runs:,} unseen runs"
            reporter.print(arms_table(title, arms, VANILLA))
    reporter.print(target_table(results["targets"]))
    reporter.print(verdict_table(results["verdicts"]))


def play(family: str, settings: Config, streams: Streams, folder: RunFolder, reporter: Reporter):
    """All arms on one family, the learned ones trained for it; and which learned teleport is chosen."""
    played: dict[str, Played] = {}

    def part(name: str, compute: Any) -> None:
        ran, found = resumable(folder, f"{family}-{name}", compute)
        played[name] = Played({key.removeprefix("start-"): r for key, r in ran.items()}, found)

    known, random = family.startswith("ellipse"), family.endswith("random")
    for name in (VANILLA, *settings.learned):
        if (known or name != "best") and (random or name not in settings.ablations):
            part(name, lambda name=name: _learned(name, family, settings, streams, folder, reporter))
    if settings.distance and random:
        for name in (VANILLA, *CANDIDATES[-1:]):
            part(
                f"{name}-distance",
                lambda name=name: _learned(name, family, settings, streams, folder, reporter, distance=True),
            )
    for name in settings.paper:
        part(PAPER + name, lambda name=name: _paper(name, family, settings, streams, folder, reporter))
    reporter.note(f"{family}: tune and run the hand-made optimizers")
    for arm in (arm for arm in HAND_MADE if arm.name in settings.hand_made):
        part(arm.name, lambda arm=arm: _hand_made(arm, family, settings, streams))
    candidates = {name: played[name].ran["validation"].losses for name in CANDIDATES if name in played}
    places = [list(points(settings.horizons)).index(h) for h in settings.chosen_at]
    chosen = choose_arm(candidates, places)
    return played, {"arm": chosen, "of": list(candidates)}


def points(horizons: tuple[int, ...]) -> tuple[int, ...]:
    """The steps whose losses are kept: all to the first horizon, fewer later.

    >>> points((3, 8))
    (0, 1, 2, 3, 4, 5, 6, 7, 8)
    """
    later = np.unique(np.geomspace(horizons[0], horizons[-1], 12).astype(int))
    return tuple(sorted({*range(horizons[0] + 1), *later.tolist(), *horizons}))


def _kept(ran: Runs, settings: Config) -> Runs:
    """The losses at `points`, the step at which the task was solved, and means of what was told of steps."""
    steps = points(settings.horizons)
    kept = [step for step in steps if step <= ran.steps]
    below = ran.losses <= SOLVED * ran.losses[..., :1]
    first = np.where(below.any(axis=-1), below.argmax(axis=-1), ran.steps + 1).astype(float)
    shares = {n: np.mean(ran.recorded[n] > 0.5, axis=-1) for n in ("gate", "outcome") if n in ran.recorded}
    shares |= {"solved_at": first, "steps": np.asarray(ran.steps)}
    return Runs(ran.losses[..., kept], {}, shares, ran.seconds)


def _learned(name, family, settings, streams, folder, reporter, distance=False):
    """Train one arm; run it, and switched off, on all starts and on the validation stream."""
    arm = orbit_arm(name, make_family(family), settings.training, VARIANTS.get(name))
    named = dataclasses.replace(arm, name=f"{name}-distance" if distance else name)
    options = {"distance": settings.distance} if distance else {}
    trained = trained_arm(named, settings.training, streams, folder, reporter, **options)
    ran, facts = _everywhere(arm, trained, settings, streams)
    if name in CANDIDATES and not distance:
        off = switched_off(as_used(arm.rule, settings.horizons[-1]))
        options = {"steps": settings.horizons[-1], "tasks": settings.tasks, "watch": WATCHED, "parts": 2}
        ran["off"] = _kept(run_many(off, trained.networks, arm.family, streams.test, **options), settings)
    if not distance:
        card = {"family": family, "arm": name, "horizon": settings.training.steps, "seed": settings.seed}
        card |= {"training": dataclasses.asdict(settings.training), "use": usage(arm.rule)}
        save(_first(trained), folder.path / "artifacts" / f"{family}-{name}.safetensors", training=card)
    return {f"start-{key}": r for key, r in ran.items()}, {
        **facts,
        "gradients_per_step": gradients_per_step(arm),
    }


def _paper(name, family, settings, streams, folder, reporter):
    """Train and run an arm of figures 3 to 6 as published."""
    arm = learned(name, make_family(family))
    training = Training(settings.paper_runs, tasks=1, steps=20, unroll=5)
    named = dataclasses.replace(arm, name=PAPER + name)
    trained = trained_arm(named, training, streams, folder, reporter)
    used = dataclasses.replace(arm, rule=arm.rule_for(settings.chosen_at[-1]))
    ran, facts = _everywhere(used, trained, settings, streams, settings.chosen_at[-1])
    extra = 2 if "orbit" in name else 0
    return {f"start-{key}": r for key, r in ran.items()}, {**facts, "gradients_per_step": 1.0 + extra}


def _everywhere(arm: Learned, trained: Trained, settings: Config, streams: Streams, published=None):
    """The arm on unseen tasks from near and far starts, and a candidate on the validation stream."""
    ran = {"": _run(arm, trained, settings, streams.test, arm.family, published)}
    if settings.far:
        far = make_family(arm.family.name, far=True)
        ran["far"] = _run(arm, trained, settings, streams.test, far, published)
    if arm.name in CANDIDATES:
        ran["validation"] = _run(arm, trained, settings, validation(streams), arm.family, published)
    return ran, trained.facts


def _run(arm, trained, settings, keys, family, published: int | None = None) -> Runs:
    """Run an arm to the last horizon; one of the paper's, by its own rule, to the step `published`."""
    tasks = settings.tasks
    if published is None:
        steps = settings.horizons[-1]
        return _kept(run_used(arm, trained.networks, keys, steps=steps, tasks=tasks, family=family), settings)
    watch = ("outcome",) if arm.rule.guard is not None and arm.rule.teleports else ()
    options = {"steps": published, "tasks": tasks, "watch": watch, "parts": 2}
    return _kept(run_many(arm.rule, trained.networks, family, keys, **options), settings)


def _hand_made(arm, family, settings, streams):
    """Tune a hand-made arm for every horizon, and run each choice."""
    ran: dict[str, Runs] = {}
    trials = 0.0
    near = make_family(family)
    tuning = {"horizons": settings.horizons, "tasks": settings.tuning_tasks}
    best = {h: found[arm.name] for h, found in tune([arm], near, streams.tune, **tuning).items()}
    for start in ("", "far") if settings.far else ("",):
        made: dict[str, Runs] = {}
        for horizon, found in best.items():
            same = {name: jnp.full(settings.seeds, value) for name, value in found.items()}
            if str(found) not in made:
                options = {"steps": settings.horizons[-1], "tasks": settings.tasks, "parts": 2}
                watch = (TRIALS,) if arm.make is lbfgs else ()
                tasks = make_family(family, far=bool(start))
                own = run_many(arm.make, same, tasks, streams.test, watch=watch, **options)
                if watch and not start:
                    trials = float(np.mean(own.recorded[TRIALS][..., : settings.horizons[0]]))
                made[str(found)] = _kept(own, settings)
            ran[f"start-{start}@{horizon}"] = made[str(found)]
    task = near.task(near.draw(jax.random.key(0)))
    return ran, {"hyperparameters": best, "gradients_per_step": 1.0 + arm.extra(task) + trials}


def _first(trained: Trained) -> Any:
    return jax.tree.map(lambda x: x[0], trained.networks)


def at(played: Played, start: str, horizon: int) -> Runs | None:
    """What an arm did within a horizon: in the run that was tuned for it, if there is one."""
    return played.ran.get(f"{start}@{horizon}", played.ran.get(start))


def describe(
    played: dict[str, Played], start: str, horizon: int, settings: Config, chosen: str, tasks: int
) -> dict[str, Any]:
    """The arms of a group of `results.json`: all on one family, from one kind of start, after one horizon.

    Of each seed's tasks the first `tasks` count.
    """
    count = 1 + list(points(settings.horizons)).index(horizon)
    losses, facts = {}, {}
    for name, one in played.items():
        ran = at(one, start, horizon)
        if ran is None or ran.losses.shape[-1] < count:
            continue
        losses[name] = ran.losses[:, :tasks, :count]
        facts[name] = {
            "gradient_evaluations": horizon * one.facts["gradients_per_step"],
            "seconds": ran.seconds * horizon / int(ran.measured["steps"].max()),
        }
        if "outcome" in ran.measured:
            facts[name]["rejected"] = float(np.mean(ran.measured["outcome"]))
        if "gate" in ran.measured:
            facts[name]["gate_open"] = float(np.mean(ran.measured["gate"]))
        if start == "" and "off" in one.ran:
            losses[f"{name}-off"] = one.ran["off"].losses[:, :tasks, :count]
            facts[f"{name}-off"] = {"gradient_evaluations": facts[name]["gradient_evaluations"]}
    references = (*REFERENCES, *CANDIDATES, f"{chosen}-off", "paper-teleport")
    arms = compare(losses, tuple(dict.fromkeys(references)), settings.seeds * tasks)
    for name, arm in arms.items():
        arm["points"] = list(points(settings.horizons)[:count])
        arm |= facts[name]
        if horizon == settings.horizons[0] and start == "":
            arm |= {k: v for k, v in _told(played, name).items() if k != "gradients_per_step"}
    return arms


def _told(played: dict[str, Played], name: str) -> dict[str, Any]:
    return played[name].facts if name in played else {}


def solutions(played: dict[str, Played], start: str, settings: Config, tasks: int) -> dict[str, Any]:
    """When arms solve their tasks: the median step, shares by horizon, and the paired ratio to `vanilla`.

    A task that is not solved counts as solved one step after the last; arms that stop earlier are left out.
    """
    last, count = settings.horizons[-1], len(points(settings.horizons))
    ran = {name: at(one, start, last) for name, one in played.items()}
    whole = {name: r for name, r in ran.items() if r is not None and r.losses.shape[-1] == count}
    when = {name: r.measured["solved_at"][:, :tasks] for name, r in whole.items()}
    ratios = {n: np.log(np.maximum(x, 1.0) / np.maximum(when[VANILLA], 1.0)) for n, x in when.items()}
    found = intervals({n: x for n, x in ratios.items() if n != VANILLA})
    return {
        name: {
            "median": float(np.median(x)),
            "share": {str(h): float(np.mean(x <= h)) for h in settings.horizons},
            "versus": {VANILLA: found[name]._asdict()} if name in found else {},
        }
        for name, x in when.items()
    }
