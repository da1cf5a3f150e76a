"""The standard learned optimizers, with and without the tricks of their training, on classifiers of digits.

A coordinate-wise LSTM and RNNProp, trained plainly and with a curriculum, imitation of Adam and random
scaling; against gradient descent, momentum and Adam tuned for every horizon. Reported on the horizon of
training, and on one ten times as long.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key, PyTree

from symmetrax.learned._artifact import save
from symmetrax.learned._coordinatewise import CoordinatewiseLSTM
from symmetrax.learned._rnnprop import RNNProp
from symmetrax.learned._update_rule import UpdateRule
from symmetrax.metatrain._curriculum import curriculum_train
from symmetrax.metatrain._devices import spread
from symmetrax.metatrain._estimators import AbstractMetaGradient, TruncatedBPTT
from symmetrax.metatrain._imitation import Imitation
from symmetrax.metatrain._loop import Progress, meta_train
from symmetrax.rollout._unroll import unroll_many
from symmetrax.studies import plots
from symmetrax.studies.core._arm import Build
from symmetrax.studies.core._console import Reporter, arms_table, verdict_table
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._hand_made import MOMENTA, RATES, adam, descent
from symmetrax.studies.core._statistics import Interval, compare, verdict
from symmetrax.studies.core._streams import Streams
from symmetrax.tasks._base import AbstractTaskFamily
from symmetrax.tasks._data import digits
from symmetrax.tasks._scaled import RandomlyScaled
from symmetrax.tasks._supervised import ImageFamily

NETWORKS = {"lstm": CoordinatewiseLSTM, "rnnprop": RNNProp}
TRICKS = "-tricks"
#: Hand-made arms: their optimizer, and the values of momentum (b1 of Adam) that are tried with all rates.
HAND = {
    "gd": (descent, (0.0,)),
    "momentum": (descent, tuple(MOMENTA[2:].tolist())),
    "adam": (adam, (0.5, 0.9)),
}
SOURCES = {
    "lstm": "Andrychowicz et al. 2016, section 3",
    "rnnprop": "Lv, Jiang and Li 2017, section 5",
    TRICKS: "arXiv:2010.09089",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run; `tasks` is the number of unseen networks per seed.

    Arms without tricks train `runs` times over `steps` steps, those with them `stage_runs` times at most in
    each stage, over `horizons` steps. `tests` are the horizons of the report; the first should be `steps`.

    >>> config("baselines", "quick").arms
    ('rnnprop', 'rnnprop-tricks')
    """

    seed: int = 0
    seeds: int = 6
    tasks: int = 6
    tuning_tasks: int = 8
    rates: int = 25
    arms: tuple[str, ...] = ("lstm", "rnnprop", "lstm-tricks", "rnnprop-tricks")
    width: int = 10
    batch_size: int = 64
    core: int = 20
    depth: int = 2
    unroll: int = 20
    steps: int = 100
    tests: tuple[int, ...] = (100, 1000)
    runs: int = 200
    horizons: tuple[int, ...] = (100, 200)
    stage_runs: int = 60
    chunk: int = 20
    patience: int = 3
    validation_tasks: int = 8
    share: float = 0.3
    spread: float = 3.0
    learning_rate: float = 3e-3
    clip: float = 1.0


def config(name: str, preset: str = "full", seed: int = 0) -> Config:
    """The settings under a preset.

    >>> config("baselines").seeds
    6
    """
    full = Config(seed=seed)
    if preset == "full":
        return full
    return dataclasses.replace(
        full,
        seeds=2,
        tasks=6,
        tuning_tasks=4,
        rates=9,
        arms=("rnnprop", "rnnprop-tricks"),
        steps=40,
        tests=(40, 200),
        runs=60,
        horizons=(40, 80),
        stage_runs=30,
        chunk=10,
        patience=1,
        validation_tasks=4,
    )


def make_images(settings: Config) -> AbstractTaskFamily:
    """The networks that are trained: one width, so that everything is compiled once."""
    return ImageFamily("digits", *digits(), widths=(settings.width,), batch_size=settings.batch_size)


def run(settings: Config, folder: RunFolder, reporter: Reporter) -> dict[str, Any]:
    """Train, tune and evaluate; write arrays, artifacts and plots; return the groups and verdicts."""
    family, streams = make_images(settings), Streams.of(settings.seed, settings.seeds)
    trained = {name: _trained(name, settings, family, streams, folder, reporter) for name in settings.arms}
    reporter.note("tune gradient descent, momentum and Adam for every horizon, evaluate on unseen networks")
    tuned = _tuned(settings, family, streams)
    longest = max(settings.tests)
    losses = {
        name: np.asarray(_losses(UpdateRule(), networks, family, streams.test, longest, settings.tasks))
        for name, (networks, _) in trained.items()
    }
    arrays, groups = {}, {}
    for horizon in settings.tests:
        cut = {name: values[..., : horizon + 1] for name, values in losses.items()}
        for name, (make, _) in HAND.items():
            hyper = {key: jnp.full(settings.seeds, x) for key, x in tuned[horizon][name].items()}
            found = _losses(make, hyper, family, streams.test, longest, settings.tasks)
            cut[name] = np.asarray(found)[..., : horizon + 1]
        groups[f"digits-{horizon}"] = {"arms": _arms(settings, cut, tuned[horizon], trained)}
        arrays |= {f"{name}-{horizon}": values.astype(np.float32) for name, values in cut.items()}
    results = {"groups": groups, "verdicts": _verdicts(settings, groups)}
    _save(settings, folder, trained, groups)
    folder.arrays("baselines-losses", arrays)
    for horizon in settings.tests:
        title = f"Classifiers of digits over {horizon} steps; learned optimizers trained on {settings.steps}"
        plots.curves(folder.path / f"baselines-{horizon}.png", groups[f"digits-{horizon}"]["arms"], title)
    return results


def show(settings: Config, results: dict[str, Any], reporter: Reporter) -> None:
    """Print the tables of a run, and the verdicts."""
    groups = {horizon: results["groups"][f"digits-{horizon}"]["arms"] for horizon in settings.tests}
    for horizon, arms in groups.items():
        title = f"digits: loss after {horizon} steps, all {arms['adam']['runs']:,} unseen runs"
        reporter.print(arms_table(title, arms, "adam"))
    spent = {name: groups[settings.tests[0]][name]["training_steps"] for name in settings.arms}
    reporter.print("steps of training: " + ", ".join(f"{name} {steps:,}" for name, steps in spent.items()))
    reporter.print(verdict_table(results["verdicts"]))


def _trained(name, settings, family, streams, folder, reporter) -> tuple[PyTree, int]:
    """The networks of an arm, all seeds stacked, and the steps that each was trained for."""
    optimizer = optax.chain(optax.clip_by_global_norm(settings.clip), optax.adam(settings.learning_rate))
    kind = NETWORKS[name.removesuffix(TRICKS)]
    make = Build.of(kind, width=settings.core, depth=settings.depth)
    place = folder.path / "checkpoints" / name
    common = {
        "seeds": settings.seeds,
        "chunk": settings.chunk,
        "save_every": 20.0,
        "identity": folder.identity,
    }

    def estimator(steps: int, tasks: AbstractTaskFamily = family) -> TruncatedBPTT:
        return TruncatedBPTT(tasks, UpdateRule(), steps, settings.unroll, remat=True)

    if not name.endswith(TRICKS):
        with reporter.training(name, settings.runs) as progress:
            trained = meta_train(
                make,
                estimator(settings.steps),
                optimizer,
                streams.train,
                outer_steps=settings.runs,
                checkpoint=place / "run.safetensors",
                progress=progress,
                **common,
            )
        return trained.networks, settings.runs * settings.steps

    scaled = RandomlyScaled(family, settings.spread)

    def tricky(steps: int) -> AbstractMetaGradient:
        return Imitation(estimator(steps, scaled), share=settings.share)

    total = settings.stage_runs * len(settings.horizons)
    with reporter.training(name, total) as progress:
        result = curriculum_train(
            make,
            tricky,
            optimizer,
            streams.train,
            _Validation(family, jax.random.fold_in(streams.tune, 1), settings.validation_tasks),
            outer_steps=settings.stage_runs,
            horizons=settings.horizons,
            patience=settings.patience,
            checkpoints=place,
            progress=lambda stage, now: progress(_overall(now, stage, settings.stage_runs, total)),
            **common,
        )
    steps = sum(stage.steps * stage.trained.losses.shape[1] for stage in result.stages)
    return result.networks, int(steps)


def _overall(now: Progress, stage: int, runs: int, total: int) -> Progress:
    return now._replace(done=stage * runs + now.done, runs=total)


class _Validation(eqx.Module):
    """The mean loss of the last tenth of a run, on tasks of the tuning stream without random scaling."""

    family: AbstractTaskFamily
    key: Key[Array, ""]
    tasks: int = eqx.field(static=True)

    def __call__(self, network: PyTree, steps: int) -> Float[Array, ""]:
        trace = unroll_many(UpdateRule(), network, self.family, self.key, steps, self.tasks)
        return jnp.mean(trace.loss[-max(1, steps // 10) :])


@eqx.filter_jit
def _losses(make, networks, family, keys, steps, tasks) -> Float[Array, "seeds tasks points"]:
    def one(inputs):
        network, key = inputs
        return unroll_many(make, network, family, key, steps, tasks).loss.T

    return spread(one, (networks, keys))


@eqx.filter_jit
def _grid(make, points, family, key, horizons, tasks) -> Float[Array, "points horizons tasks"]:
    def one(hyper):
        return unroll_many(make, hyper, family, key, max(horizons), tasks).loss[jnp.array(horizons)]

    return spread(one, points)


def _tuned(settings: Config, family: AbstractTaskFamily, streams: Streams) -> dict[int, dict[str, Any]]:
    """For every horizon and hand-made arm the rate and momentum of the lowest median loss at its end."""
    rates = RATES[np.linspace(0, len(RATES) - 1, settings.rates).astype(int)]
    best: dict[int, dict[str, Any]] = {horizon: {} for horizon in settings.tests}
    for make in (descent, adam):
        sharing = {name: momenta for name, (other, momenta) in HAND.items() if other is make}
        pairs = [(rate, m) for momenta in sharing.values() for m in momenta for rate in rates]
        points = {"rate": jnp.array([p[0] for p in pairs]), "momentum": jnp.array([p[1] for p in pairs])}
        found = _grid(make, points, family, streams.tune, settings.tests, settings.tuning_tasks)
        found = np.where(np.isfinite(found), found, np.inf)
        medians = np.quantile(found, 0.5, axis=2, method="inverted_cdf")
        for name, momenta in sharing.items():
            mine = np.array([momentum in momenta for _, momentum in pairs])
            for column, horizon in enumerate(settings.tests):
                rate, momentum = pairs[int(np.argmin(np.where(mine, medians[:, column], np.inf)))]
                best[horizon][name] = {"rate": float(rate), "momentum": float(momentum)}
    return best


def _arms(settings: Config, losses, tuned, trained) -> dict[str, Any]:
    references = (*HAND, *(name for name in settings.arms if not name.endswith(TRICKS)))
    arms = compare(losses, references, settings.seeds * settings.tasks)
    for name, arm in arms.items():
        arm["gradient_evaluations"] = float(losses[name].shape[-1] - 1)
        if name in tuned:
            arm["hyperparameters"] = tuned[name]
        else:
            arm["training_steps"] = trained[name][1]
    return arms


def _verdicts(settings: Config, groups: dict[str, Any]) -> list[dict[str, str]]:
    rows = []
    for horizon in settings.tests:
        arms = groups[f"digits-{horizon}"]["arms"]
        where = "on the training distribution" if horizon == settings.steps else f"over {horizon} steps"
        for name in settings.arms:
            kind = name.removesuffix(TRICKS)
            others = [*HAND] if kind == name else [*HAND, kind]
            source = SOURCES[kind if kind == name else TRICKS]
            for other in others:
                if other in arms[name]["versus"]:
                    against = f"tuned {other}" if other in HAND else other
                    interval = Interval(**arms[name]["versus"][other])
                    rows.append(verdict(f"{name} beats {against} {where}", source, interval))
    return rows


def _save(settings: Config, folder: RunFolder, trained: dict[str, Any], groups: dict[str, Any]) -> None:
    for name, (networks, steps) in trained.items():
        arm = groups[f"digits-{settings.tests[0]}"]["arms"][name]
        training = {"family": "digits", "horizon": settings.steps, "unroll": settings.unroll}
        training |= {"steps": steps, "tricks": name.endswith(TRICKS), "seed": settings.seed}
        evaluation = {
            "steps": settings.tests[0],
            "runs": arm["runs"],
            "diverged": arm["diverged"],
            "loss_median": arm["loss_median"][-1],
        }
        first = jax.tree.map(lambda x: x[0], networks)
        path = folder.path / "artifacts" / f"{name}.safetensors"
        save(first, path, training=training, evaluation=evaluation)
