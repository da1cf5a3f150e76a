"""What `classification` runs: its arms trained, controlled, tuned, and run on the same unseen classifiers."""

import dataclasses
import itertools
from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from symmetrax.learned._artifact import save
from symmetrax.learned._update_rule import UpdateRule
from symmetrax.rollout._unroll import MakeTransform
from symmetrax.studies._classifiers import (
    CONTROLS,
    TRAINED,
    Adjusted,
    Size,
    ends,
    image_family,
    medians,
    trained_arm,
)
from symmetrax.studies.core._arm import Learned, switched_off
from symmetrax.studies.core._artifacts import usage
from symmetrax.studies.core._console import Reporter
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._hand_made import MOMENTA, RATES, adam, descent
from symmetrax.studies.core._meta_training import Budget, train
from symmetrax.studies.core._runs import Runs, facts, joined, resumable, run_many
from symmetrax.studies.core._streams import Streams
from symmetrax.tasks._base import AbstractTaskFamily
from symmetrax.tasks._supervised import Widths

#: The baselines, and the momenta (b1 of Adam) among which each is tuned, beside 25 rates.
TUNED = {
    "sgd": (descent, (0.0,)),
    "momentum": (descent, tuple(MOMENTA.tolist())),
    "adam": (adam, tuple(MOMENTA.tolist())),
}

#: The arms whose first meta-seed's network is written as an artifact.
SAVED = ("lr-tele-momentum", "update-tele")

STEPS = ("lr", "lr-momentum", "lr-tele", "lr-tele-momentum")
TRANSPORTS = ("lr-tele-momentum-carry", "lr-tele-momentum-reset")
UPDATES = ("update", "update-tele")
WHOLE = ("whole-lr", "whole-lr-tele", "whole-lr-tele-momentum")


def with_controls(trained: tuple[str, ...]) -> tuple[str, ...]:
    """Those trained arms, their controls, and the baselines.

    >>> with_controls(("lr",))
    ('lr', 'lr-constant', 'sgd', 'momentum', 'adam')
    """
    return (*trained, *(name for name, (of, _) in CONTROLS.items() if of in trained), *TUNED)


@dataclasses.dataclass(frozen=True)
class Training:
    """The most runs of training, with this many tasks in each; networks are validated after every `chunk`.

    >>> Training(runs=75, tasks=8).chunk
    15
    """

    runs: int
    tasks: int
    chunk: int = 15


@dataclasses.dataclass(frozen=True)
class Group:
    """Arms that meet the same classifiers of `data` ("digits", "mnist"), with hidden layers of these widths.

    `tasks` is the number of unseen runs for each width and meta-seed. Training draws from the widths
    `trained`, or from all; `training` says how, for this group alone, in place of what the settings say.

    >>> Group("digits", "digits", (16, (12, 12)), ("lr", "adam")).tasks
    20
    """

    name: str
    data: str
    widths: tuple[Widths, ...]
    arms: tuple[str, ...]
    tasks: int = 20
    trained: tuple[Widths, ...] = ()
    training: Training | None = None


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run; `lr`, `update` and `whole` are how the three kinds of networks are trained.

    >>> Config((Group("digits", "digits", (16,), ("lr", "adam")),)).size.steps
    100
    """

    groups: tuple[Group, ...]
    size: Size = dataclasses.field(default_factory=Size)
    lr: Training = Training(runs=75, tasks=8)
    update: Training = Training(runs=240, tasks=1, chunk=40)
    whole: Training = Training(runs=75, tasks=8)
    seed: int = 0
    seeds: int = 6
    batch: int = 64
    unroll: int = 50
    patience: int = 2
    validation_tasks: int = 32
    tuning_tasks: int = 8
    tuning_rates: int = len(RATES)


#: Runs of arms by name, and what to tell of each beside its losses.
Outcomes = tuple[dict[str, Runs], dict[str, Any]]


def run_group(settings: Config, group: Group, folder: RunFolder, reporter: Reporter) -> Outcomes:
    """Every arm of a group on the same unseen runs, and what to tell of each beside its losses."""
    streams = Streams.of(settings.seed, settings.seeds)
    family = image_family(group.data, group.widths, settings.batch)
    rans: dict[str, Runs] = {}
    recorded: dict[str, Any] = {}

    def learned(name: str) -> Outcomes:
        seen = image_family(group.data, group.trained or group.widths, settings.batch)
        arm = trained_arm(name, seen, settings.size)
        arm = dataclasses.replace(arm, name=f"{group.name}-{name}")
        trained = train(arm, _budget(settings, group, name), streams, folder, reporter)
        reporter.note(f"{arm.name} and its controls on unseen runs")
        own, facts_of = {}, {}
        for use, (rule, networks) in _uses(
            settings, group, name, arm, family, trained.networks, streams
        ).items():
            own[use] = _run(settings, group, rule, networks, family, streams.test)
            more = trained.facts if use == name else {"networks_of": name}
            facts_of[use] = facts(own[use], rule) | more | _constants(networks)
        if name in SAVED:
            _save(settings, group, folder, arm, trained.networks, own[name], name)
        return own, facts_of

    def baselines() -> Outcomes:
        reporter.note(f"{group.name}: tune and run the baselines")
        return _baselines(settings, group, family, streams)

    for name in (name for name in TRAINED if name in group.arms):
        own, facts_of = resumable(folder, f"{group.name}-{name}", lambda name=name: learned(name))
        rans, recorded = rans | own, recorded | facts_of
    own, facts_of = resumable(folder, f"{group.name}-baselines", baselines)
    rans, recorded = rans | own, recorded | facts_of
    return {name: rans[name] for name in group.arms}, recorded


def _budget(settings: Config, group: Group, name: str) -> Budget:
    of_kind = {"lr": settings.lr, "update": settings.update, "whole": settings.whole}
    training = group.training or of_kind[TRAINED[name].step]
    return Budget(
        training.runs,
        settings.seeds,
        settings.size.steps,
        settings.unroll,
        tasks=training.tasks,
        chunk=training.chunk,
        patience=settings.patience,
        validation_tasks=settings.validation_tasks,
        remat=True,
    )


def _uses(
    settings: Config,
    group: Group,
    name: str,
    arm: Learned,
    family: AbstractTaskFamily,
    networks: PyTree,
    streams: Streams,
) -> dict[str, tuple[UpdateRule, PyTree]]:
    """The trained arm and its controls: a rule, and networks with the seeds first."""
    plain = Adjusted.plain(networks, settings.seeds)
    yes = jnp.ones(settings.seeds, bool)
    uses: dict[str, tuple[UpdateRule, PyTree]] = {name: (arm.rule, plain)}
    for control, (of, how) in CONTROLS.items():
        if of != name or control not in group.arms:
            continue
        rule, used = arm.rule, plain
        if how == "off":
            rule = switched_off(rule)
        elif how == "random":
            used = dataclasses.replace(plain, random=yes)
        elif how == "still":
            used = dataclasses.replace(plain, share=jnp.zeros(settings.seeds))
        else:
            held = _medians(settings, group, arm.rule, family, plain, streams)
            used = {width: dataclasses.replace(plain, held=yes, **given) for width, given in held.items()}
        uses[control] = rule, used
    return uses


def _medians(
    settings: Config,
    group: Group,
    rule: UpdateRule,
    family: AbstractTaskFamily,
    networks: PyTree,
    streams: Streams,
) -> dict[Hashable, dict[str, Array]]:
    """For every width what each seed's network emits, as its medians over runs of the tuning stream.

    That stream belongs to training: nothing of the reported runs goes into the constants.
    """
    keys = jax.random.split(jax.random.fold_in(streams.tune, 2), settings.seeds)
    runs = {width: _run(settings, group, rule, networks, family, keys, only=width) for width in family.shapes}
    return {width: medians(ran) for width, ran in runs.items()}


def _constants(networks: PyTree) -> dict[str, Any]:
    """What is held constant, for every width, seed by seed."""
    if not isinstance(networks, dict):
        return {}
    held = {
        str(width): {"step_size": n.step_size.tolist(), "momentum": n.momentum.tolist()}
        for width, n in networks.items()
    }
    return {"constants": held}


def _run(
    settings: Config,
    group: Group,
    make: MakeTransform,
    networks: PyTree,
    family: AbstractTaskFamily,
    keys: Key[Array, " seeds"],
    only: Hashable = None,
) -> Runs:
    """Runs on all widths of a group (or `only` one), with what is measured at their ends.

    `networks` may be a dict from widths to networks.
    """
    widths = family.shapes if only is None else (only,)
    by_width = isinstance(networks, dict) and all(width in networks for width in widths)
    options = {"steps": settings.size.steps, "tasks": group.tasks, "measure": ends}
    parts = []
    for width in widths:
        own = networks[width] if by_width else networks
        parts.append(run_many(make, own, family, keys, shape=width, **options))
    return joined(parts)


def _baselines(settings: Config, group: Group, family: AbstractTaskFamily, streams: Streams) -> Outcomes:
    """The tuned optimizers, each with the best hyperparameters for each width."""
    parts: dict[str, list[Runs]] = {name: [] for name in TUNED if name in group.arms}
    chosen: dict[str, dict[str, Any]] = {name: {} for name in parts}
    for width in family.shapes:
        best = tune(settings, family, width, streams, tuple(parts))
        for name in parts:
            make = TUNED[name][0]
            same = {key: jnp.full(settings.seeds, value) for key, value in best[name].items()}
            parts[name].append(_run(settings, group, make, same, family, streams.test, only=width))
            chosen[name][str(width)] = best[name]
    rans = {name: joined(own) for name, own in parts.items()}
    return rans, {name: facts(ran) | {"hyperparameters": chosen[name]} for name, ran in rans.items()}


def tune(
    settings: Config, family: AbstractTaskFamily, width: Hashable, streams: Streams, names: tuple[str, ...]
) -> dict[str, dict[str, float]]:
    """For these baselines, the hyperparameters with the lowest median final training loss on tuning runs."""
    rates = np.geomspace(RATES[0], RATES[-1], settings.tuning_rates)
    best: dict[str, dict[str, float]] = {}
    for make in dict.fromkeys(TUNED[name][0] for name in names):
        sharing = {name: TUNED[name][1] for name in names if TUNED[name][0] is make}
        momenta = sorted({m for values in sharing.values() for m in values})
        pairs = np.array(list(itertools.product(rates, momenta)))
        points = {"rate": jnp.asarray(pairs[:, 0]), "momentum": jnp.asarray(pairs[:, 1])}
        keys = jnp.repeat(jax.random.fold_in(streams.tune, 3)[None], len(pairs))
        options = {"steps": settings.size.steps, "tasks": settings.tuning_tasks, "shape": width}
        ran = run_many(make, points, family, keys, watch=(), measure=ends, parts=1, **options)
        finals = np.where(np.isfinite(ran.measured["train"]), ran.measured["train"], np.inf)
        quality = np.median(finals, axis=1)
        for name, allowed in sharing.items():
            rows = [i for i in range(len(pairs)) if pairs[i, 1] in allowed]
            rate, momentum = pairs[min(rows, key=lambda i: quality[i])]
            best[name] = {"rate": float(rate), "momentum": float(momentum)}
    return best


def _save(
    settings: Config, group: Group, folder: RunFolder, arm: Learned, networks: PyTree, ran: Runs, name: str
) -> None:
    """The first meta-seed's network as an artifact."""
    training = {
        "family": group.data,
        "arm": name,
        "widths": [str(width) for width in group.trained or group.widths],
        "horizon": settings.size.steps,
        "unroll": settings.unroll,
        "schedule": list(settings.size.schedule),
        "seed": settings.seed,
        "use": usage(arm.rule),
    }
    evaluation = {
        "runs": ran.runs,
        "steps": settings.size.steps,
        "train_loss_median": float(np.median(ran.measured["train"])),
        "test_accuracy": float(np.mean(ran.measured["accuracy"])),
    }
    path = folder.path / "artifacts" / f"{group.name}-{name}.safetensors"
    save(jax.tree.map(lambda x: x[0], networks), path, training=training, evaluation=evaluation)
