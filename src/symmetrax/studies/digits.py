"""A learned optimizer on something real: the coordinate-wise LSTM trains classifiers of handwritten digits.

Meta-trained on networks of several widths with fresh initializations and minibatch orders, evaluated on
unseen ones against Adam and gradient descent tuned on the training stream.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from symmetrax.learned._artifact import save
from symmetrax.learned._coordinatewise import CoordinatewiseLSTM
from symmetrax.learned._update_rule import UpdateRule
from symmetrax.metatrain._devices import spread
from symmetrax.metatrain._estimators import TruncatedBPTT
from symmetrax.metatrain._loop import MetaTrained, meta_train
from symmetrax.rollout._unroll import advance_many, begin_many
from symmetrax.studies import plots
from symmetrax.studies.core._arm import Build, Tuned
from symmetrax.studies.core._console import Reporter, arms_table, verdict_table
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._hand_made import adam, descent
from symmetrax.studies.core._runs import timed
from symmetrax.studies.core._statistics import Interval, compare, verdict
from symmetrax.studies.core._streams import Streams
from symmetrax.studies.core._tuning import tune
from symmetrax.tasks._families import make_family

TUNED = (
    Tuned("gd", descent, momenta=(0.0,)),
    Tuned("adam", adam, momenta=(0.9,)),
)


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run; `tasks` is the number of unseen runs per width and seed.

    >>> config("digits", "quick").seeds
    2
    """

    seed: int = 0
    seeds: int = 6
    tasks: int = 50
    tuning_tasks: int = 8
    runs: int = 1000
    batch: int = 1
    steps: int = 100
    unroll: int = 20
    width: int = 20
    learning_rate: float = 3e-3
    clip: float = 1.0


def config(name: str, preset: str = "full", seed: int = 0) -> Config:
    """The settings under a preset.

    >>> config("digits").seeds
    6
    """
    full = Config(seed=seed)
    return (
        full
        if preset == "full"
        else dataclasses.replace(full, seeds=2, tasks=10, tuning_tasks=4, runs=90, steps=60)
    )


def run(settings: Config, folder: RunFolder, reporter: Reporter) -> dict[str, Any]:
    """Train, tune and evaluate; write arrays, the artifact and the plot; return the groups and verdicts."""
    family, streams = make_family("digits"), Streams.of(settings.seed, settings.seeds)
    trained = _train(settings, streams, folder, reporter)
    reporter.note("tune gradient descent and Adam, evaluate on unseen networks")
    losses: dict[str, list[np.ndarray]] = {name: [] for name in ("learned", "gd", "adam")}
    accuracy: dict[str, list[float]] = {name: [] for name in losses}
    seconds = dict.fromkeys(losses, 0.0)
    best = {}
    for shape in family.shapes:
        tuning = {"horizons": (settings.steps,), "tasks": settings.tuning_tasks, "shape": shape}
        tuned = tune(TUNED, family, streams.tune, **tuning)[settings.steps]
        best[str(shape)] = tuned
        uses = {arm.name: (arm.make, _repeat(tuned[arm.name], settings.seeds)) for arm in TUNED}
        uses["learned"] = (UpdateRule(), trained.networks)
        for name, (make, networks) in uses.items():
            arguments = (networks, family, streams.test, settings.steps, settings.tasks, shape)
            (found, right), took = timed(_evaluate, make, *arguments)
            seconds[name] += took
            losses[name].append(np.moveaxis(np.asarray(found), 1, 2))
            accuracy[name].append(float(jnp.mean(right)))
    arrays = {name: np.concatenate(parts, axis=1) for name, parts in losses.items()}
    results = _results(settings, arrays, accuracy, seconds, best)
    group = results["groups"]["digits"]["arms"]
    _save(settings, folder, trained, group["learned"])
    folder.arrays("digits-losses", {name: a.astype(np.float32) for name, a in arrays.items()})
    title = "Classifiers of digits: loss on the next minibatch"
    plots.curves(folder.path / "digits.png", group, title)
    return results


def show(settings: Config, results: dict[str, Any], reporter: Reporter, *, verdicts: bool = True) -> None:
    """Print the table of a run, and what it says of claims."""
    arms = results["groups"]["digits"]["arms"]
    title = (
        f"digits: loss after {settings.steps} steps, all {next(iter(arms.values()))['runs']:,} unseen runs"
    )
    reporter.print(arms_table(title, arms, "adam"))
    right = ", ".join(f"{name} {arm['test_accuracy']:.1%}" for name, arm in arms.items())
    reporter.print(f"accuracy on unseen images: {right}")
    if verdicts:
        reporter.print(verdict_table(results["verdicts"]))


SOURCE = "Andrychowicz et al. 2016, section 3"


def _train(settings: Config, streams: Streams, folder: RunFolder, reporter: Reporter) -> MetaTrained:
    optimizer = optax.chain(optax.clip_by_global_norm(settings.clip), optax.adam(settings.learning_rate))
    estimator = TruncatedBPTT(
        make_family("digits"), UpdateRule(), settings.steps, settings.unroll, settings.batch, remat=True
    )
    with reporter.training("coordinate-wise LSTM", settings.runs) as progress:
        return meta_train(
            Build.of(CoordinatewiseLSTM, width=settings.width),
            estimator,
            optimizer,
            streams.train,
            outer_steps=settings.runs,
            seeds=settings.seeds,
            chunk=10,
            checkpoint=folder.path / "checkpoints" / "digits.safetensors",
            identity=folder.identity,
            save_every=20.0,
            progress=progress,
        )


def _repeat(hyper: dict[str, float], seeds: int) -> dict[str, Array]:
    return {name: jnp.full(seeds, value) for name, value in hyper.items()}


@eqx.filter_jit
def _evaluate(make, networks, family, keys, steps, tasks, shape):
    """Losses (seeds, steps + 1, tasks), and the accuracy on unseen images after the last step."""

    def one(inputs):
        network, key = inputs
        rollouts = begin_many(make, network, family, shape, tasks, key)
        after, trace = advance_many(make, network, family, shape, rollouts, steps)
        right = jax.vmap(family.task((), shape).held_out, in_axes=-1)(after.carry.params)[1]
        return jnp.concatenate([rollouts.carry.value[None], trace.loss]), right

    return spread(one, (networks, keys))


def _results(settings: Config, arrays, accuracy, seconds, best) -> dict[str, Any]:
    arms = compare(arrays, ("learned", "adam"), settings.seeds * settings.tasks * len(best))
    for name, arm in arms.items():
        arm["test_accuracy"] = float(np.mean(accuracy[name]))
        arm["gradient_evaluations"] = float(settings.steps)
        arm["seconds"] = seconds[name]
    for name in ("gd", "adam"):
        arms[name]["hyperparameters"] = {width: tuned[name] for width, tuned in best.items()}
    claim = "a learned optimizer beats tuned Adam on networks like those it was trained on"
    return {
        "groups": {"digits": {"arms": arms}},
        "verdicts": [verdict(claim, SOURCE, Interval(**arms["learned"]["versus"]["adam"]))],
    }


def _save(settings: Config, folder: RunFolder, trained: MetaTrained, arm: dict[str, Any]) -> None:
    training = {
        "family": "digits",
        "horizon": settings.steps,
        "unroll": settings.unroll,
        "runs": settings.runs,
        "tasks": settings.batch,
        "seed": settings.seed,
    }
    evaluation = {
        "steps": settings.steps,
        "runs": arm["runs"],
        "diverged": arm["diverged"],
        "loss_median": arm["loss_median"][-1],
        "test_accuracy": arm["test_accuracy"],
    }
    path = folder.path / "artifacts" / "digits-coordinatewise.safetensors"
    save(trained.network(0), path, training=training, evaluation=evaluation)
