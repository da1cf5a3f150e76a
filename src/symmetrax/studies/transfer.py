"""Do learned teleports transfer? Trained on one small network, tested on other widths, depths and images.

A learned optimizer that serves networks of any size is joined with a per-neuron LSTM, which teleports by
positive scalings: the coordinate-wise LSTM ("update"), or a network for the step size ("lr"). Both are
meta-trained on one classifier of digits and then meet networks they have never seen. Beside them the same
optimizers trained without teleports, teleports switched off or random at test, and gradient descent and Adam,
with rates tuned on the network of training ("sgd-there") and, apart, on each network itself ("sgd").
"""

import dataclasses
import itertools
import os
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from symmetrax.learned._artifact import save
from symmetrax.studies import plots_transfer
from symmetrax.studies._classification_verdicts import describe
from symmetrax.studies._classifiers import Size, ends, image_family
from symmetrax.studies._transfer_arms import STEPS, TARGETS, TUNED, Target, learned_arms, tune, uses
from symmetrax.studies._transfer_verdicts import answers, cost_table, judge, pooled, ratio_table
from symmetrax.studies.core._artifacts import usage
from symmetrax.studies.core._console import Reporter, verdict_table
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._hand_made import RATES
from symmetrax.studies.core._meta_training import Budget, train
from symmetrax.studies.core._runs import Runs, facts, resumable, run_many
from symmetrax.studies.core._streams import Streams
from symmetrax.tasks._data import FOLDER
from symmetrax.tasks._supervised import ImageFamily


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run. The first of `targets` is the network of training.

    `coordinates` bounds the parameters that a network's unseen runs have together, so that wide networks are
    met by fewer: see `tasks`. The other settings are those of `Budget` and of `Size`.

    >>> {target.name: config("transfer").tasks(target) for target in TARGETS[:5]}
    {'digits 16': 10, 'digits 8': 10, 'digits 32': 10, 'digits 128': 4, 'digits 512': 2}
    """

    targets: tuple[Target, ...] = TARGETS
    steps: tuple[str, ...] = tuple(STEPS)
    baselines: tuple[str, ...] = tuple(TUNED)
    size: Size = dataclasses.field(default_factory=Size)
    seed: int = 0
    seeds: int = 6
    most_tasks: int = 10
    coordinates: int = 40_000
    runs: int = 160
    chunk: int = 20
    patience: int = 0
    validation_tasks: int = 16
    unroll: int = 20
    batch: int = 64
    rates: int = len(RATES)

    def tasks(self, target: Target) -> int:
        """The number of unseen runs of each meta-seed on a network, an even one."""
        return max(2, 2 * (min(self.most_tasks, self.coordinates // target.parameters) // 2))


def config(name: str, preset: str = "full", seed: int = 0) -> Config:
    """The settings under a preset.

    >>> [target.name for target in config("transfer", "quick").targets]
    ['digits 16', 'digits 64']
    """
    if preset == "full":
        return Config(seed=seed)
    return Config(
        (TARGETS[0], Target("widths", "digits", (64,))),
        steps=("update",),
        baselines=("adam",),
        size=Size(steps=60),
        seed=seed,
        seeds=2,
        most_tasks=4,
        runs=40,
        rates=9,
    )


def run(settings: Config, folder: RunFolder, reporter: Reporter) -> dict[str, Any]:
    """Train on the first target, run all arms on all of them; what a target gave is kept in the folder."""
    streams = Streams.of(settings.seed, settings.seeds)
    reporter.note("meta-train on one network")
    networks, training, usages = {}, {}, {}
    for arm in learned_arms(settings.steps, settings.size, _family(settings, settings.targets[0])):
        budget = Budget(
            settings.runs,
            settings.seeds,
            settings.size.steps,
            settings.unroll,
            chunk=settings.chunk,
            patience=settings.patience,
            validation_tasks=settings.validation_tasks,
            remat=True,
        )
        trained = train(arm, budget, streams, folder, reporter)
        networks[arm.name], training[arm.name] = trained.networks, trained.facts
        usages[arm.name] = usage(arm.rule)
    groups, rans, notes, there = {}, {}, [], None
    for target in settings.targets:
        if target.data == "mnist" and not os.environ.get(FOLDER):
            notes.append(f"{target.name} is left out: {FOLDER} names no folder with MNIST.")
            continue
        reporter.note(f"run on {target.name}: {target.parameters:,} parameters")

        def compute(target=target, there=there):
            return _run_target(settings, target, networks, there, streams)

        ran, found = resumable(folder, f"on-{target.name.replace(' ', '-')}", compute)
        there = there or found["tuned"]
        groups[target.name] = {"kind": target.kind, "parameters": target.parameters}
        groups[target.name] |= describe(ran, found["facts"])
        rans[target] = ran
    for name, recorded in training.items():
        groups[settings.targets[0].name]["arms"][name]["training"] = recorded
    folder.arrays("runs", _arrays(rans))
    _save(settings, folder, networks, usages, groups[settings.targets[0].name])
    pools = pooled(rans)
    plots_transfer.losses(folder.path / "losses.png", groups)
    plots_transfer.ratios(folder.path / "ratios.png", groups, pools)
    return {
        "groups": groups,
        "pooled": pools,
        "answers": answers(pools),
        "verdicts": judge(pools),
        "notes": notes,
    }


def show(settings: Config, results: dict[str, Any], reporter: Reporter) -> None:
    """Print the tables of a run."""
    for group in ("update", "lr", "baselines"):
        table = ratio_table(results["groups"], group)
        if table is not None:
            reporter.print(table)
    reporter.print(cost_table(results["groups"]))
    reporter.print(verdict_table(results["verdicts"]))
    for question, answer in results["answers"].items():
        reporter.print(f"{question} {answer}")
    for note in results["notes"]:
        reporter.print(note)


def _family(settings: Config, target: Target) -> ImageFamily:
    return image_family(target.data, (target.widths,), settings.batch)


def _run_target(settings: Config, target: Target, networks, there, streams: Streams):
    """All arms on the unseen runs of one network; facts of each, and the tuned hyperparameters."""
    family, ran, recorded = _family(settings, target), {}, {}
    options = {"steps": settings.size.steps, "tasks": settings.tasks(target), "measure": ends}
    for name, (use, lanes) in uses(networks, settings.size, settings.seeds).items():
        ran[name] = run_many(use, lanes, family, streams.test, **options)
        recorded[name] = facts(ran[name], use)
    tuned = {name: tune(name, family, streams, settings.rates, **options) for name in settings.baselines}
    for name, (suffix, chosen) in itertools.product(settings.baselines, (("", tuned), ("-there", there))):
        hyper = (chosen or tuned)[name]
        lanes = {key: jnp.full(settings.seeds, value) for key, value in hyper.items()}
        ran[name + suffix] = run_many(TUNED[name][0], lanes, family, streams.test, **options)
        recorded[name + suffix] = facts(ran[name + suffix]) | {"hyperparameters": hyper}
    return ran, {"tuned": tuned, "facts": recorded}


def _arrays(rans: dict[Target, dict[str, Runs]]) -> dict[str, np.ndarray]:
    """What is kept of all runs: curves, ends, and defects of teleports."""
    arrays = {}
    for target, ran in rans.items():
        for name, one in ran.items():
            arrays[f"{target.name}|{name}|loss"] = one.losses.astype(np.float32)
            for end, values in one.measured.items():
                arrays[f"{target.name}|{name}|{end}"] = values.astype(np.float32)
            if np.any(one.recorded.get("loss_change", np.array(-1.0)) >= 0):
                arrays[f"{target.name}|{name}|loss_change"] = one.recorded["loss_change"].astype(np.float32)
    return arrays


def _save(
    settings: Config,
    folder: RunFolder,
    networks: dict[str, PyTree],
    usages: dict[str, Any],
    group: dict[str, Any],
) -> None:
    """The first meta-seed's teleporting optimizers as artifacts."""
    training = {
        "family": settings.targets[0].data,
        "widths": list(settings.targets[0].widths),
        "horizon": settings.size.steps,
        "unroll": settings.unroll,
        "schedule": list(settings.size.schedule),
        "runs": settings.runs,
        "seed": settings.seed,
    }
    for name in (name for name in networks if name.endswith("-tele")):
        arm = group["arms"][name]
        evaluation = {key: arm[key] for key in ("runs", "final_train_median", "test_accuracy")}
        first = jax.tree.map(lambda x: x[0] if eqx.is_array(x) else x, networks[name])
        path = folder.path / "artifacts" / f"{name}.safetensors"
        save(first, path, training={**training, "use": usages[name]}, evaluation=evaluation)
