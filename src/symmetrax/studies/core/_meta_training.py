"""Meta-training of learned arms, with a budget, validation, and checkpoints."""

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from symmetrax._files import write_atomic
from symmetrax.metatrain._curriculum import Stage, curriculum_train
from symmetrax.metatrain._estimators import AbstractMetaGradient, Measure, TruncatedBPTT
from symmetrax.metatrain._imitation import Imitation
from symmetrax.metatrain._loop import MetaTrained, Progress, meta_train
from symmetrax.metatrain._stopping import EarlyStopping
from symmetrax.rollout._unroll import MakeTransform, advance_many, begin_many, unroll_many
from symmetrax.studies.core._arm import Learned
from symmetrax.studies.core._console import Reporter
from symmetrax.studies.core._folder import RunFolder, as_json
from symmetrax.studies.core._statistics import FLOOR
from symmetrax.studies.core._streams import Streams
from symmetrax.tasks._base import AbstractTaskFamily


@dataclasses.dataclass(frozen=True)
class Budget:
    """How long networks are trained: at most `runs` runs of `steps` steps, each on `tasks` fresh tasks.

    After every `chunk` runs the networks are validated on `validation_tasks` tasks of the training stream
    (always the same, never trained on); training ends when `patience` rounds have brought nothing, and the
    best networks are returned. `patience=0`, the default, trains for all runs. Validation sees networks of
    one `shape`, by default the first of the family's. `measure` and `distance` are those of `TruncatedBPTT`.

    With `stages`, horizons that grow, training is a curriculum: at most `runs` runs in each stage (see
    `curriculum_train`). A share `imitation` of the meta-loss is the distance from Adam (see `Imitation`).

    >>> Budget(runs=200, seeds=5, steps=100).unroll
    10
    """

    runs: int = 500
    seeds: int = 1
    steps: int = 20
    unroll: int = 10
    tasks: int = 1
    chunk: int = 100
    patience: int = 0
    validation_tasks: int = 32
    ratio: float = 1.0
    remat: bool = False
    shape: Any = None
    measure: Measure = "loss"
    distance: float | None = None
    stages: tuple[int, ...] = ()
    imitation: float = 0.0


class Validation(eqx.Module):
    """A network's quality, the lower the better: the median over tasks of the mean over steps of ln f(x_t).

    The mean of logarithms judges the whole trajectory, whatever the scale of the loss at its start. Losses
    are floored at 1e-12 f(x_0); a task whose losses are not finite counts as infinite.

    >>> from symmetrax.learned._flat_gradient import FlatGradientLSTM
    >>> from symmetrax.learned._update_rule import UpdateRule
    >>> from symmetrax.tasks._families import make_family
    >>> quality = Validation(UpdateRule(), make_family("booth"), jax.random.key(0), steps=3, tasks=4)
    >>> quality(FlatGradientLSTM(2, width=4, key=jax.random.key(1))).shape
    ()
    """

    make_transform: MakeTransform
    family: AbstractTaskFamily
    key: Key[Array, ""]
    steps: int = eqx.field(static=True)
    tasks: int = eqx.field(static=True)
    shape: Any = eqx.field(static=True, default=None)

    def __call__(self, network: PyTree) -> Float[Array, ""]:
        shape = self.family.shapes[0] if self.shape is None else self.shape
        rollouts = begin_many(self.make_transform, network, self.family, shape, self.tasks, self.key)
        _, trace = advance_many(self.make_transform, network, self.family, shape, rollouts, self.steps)
        means = jnp.mean(jnp.log(jnp.maximum(trace.loss, FLOOR * rollouts.carry.value)), axis=0)
        return jnp.median(jnp.where(jnp.isfinite(means), means, jnp.inf))


class StageValidation(eqx.Module):
    """A network's quality in a curriculum: the mean loss over the last tenth of runs on validation tasks.

    >>> from symmetrax.learned._flat_gradient import FlatGradientLSTM
    >>> from symmetrax.learned._update_rule import UpdateRule
    >>> from symmetrax.tasks._families import make_family
    >>> quality = StageValidation(UpdateRule(), make_family("booth"), jax.random.key(0), tasks=4)
    >>> quality(FlatGradientLSTM(2, width=4, key=jax.random.key(1)), 3).shape
    ()
    """

    make_transform: MakeTransform
    family: AbstractTaskFamily
    key: Key[Array, ""]
    tasks: int = eqx.field(static=True)

    def __call__(self, network: PyTree, steps: int) -> Float[Array, ""]:
        trace = unroll_many(self.make_transform, network, self.family, self.key, steps, self.tasks)
        return jnp.mean(trace.loss[-max(1, steps // 10) :])


class Trained(NamedTuple):
    """What training an arm gave: its networks (seeds first), and what to tell of it in `results.json`.

    >>> Trained._fields
    ('networks', 'facts')
    """

    networks: PyTree
    facts: dict[str, Any]


def train(
    arm: Learned,
    budget: Budget,
    streams: Streams,
    folder: RunFolder,
    reporter: Reporter,
    *,
    start: PyTree = None,
) -> Trained:
    """Meta-train one arm with all its seeds, from its checkpoint if there is one.

    The facts are the learning curve (validation against trajectories, seed by seed), the
    trajectories that each seed's best network has seen, how many seeds were still improving where training
    had to end ("at_cap"), skipped windows, and the seconds of training, compilation included. `start` gives
    networks, stacked over seeds, to go on from.
    """
    path = folder.path / "checkpoints" / f"{arm.name}.safetensors"
    key = jax.random.fold_in(streams.tune, 1)
    common: dict[str, Any] = {
        "outer_steps": budget.runs,
        "seeds": budget.seeds,
        "chunk": budget.chunk,
        "identity": folder.identity,
    }
    with (
        reporter.training(arm.name, budget.runs * max(len(budget.stages), 1)) as progress,
        _Clock(path.with_suffix(".json")) as clock,
    ):
        if budget.stages:
            staged = curriculum_train(
                arm.make,
                lambda steps: _estimator(arm, budget, steps),
                arm.outer,
                streams.train,
                StageValidation(arm.rule, arm.family, key, budget.validation_tasks),
                horizons=budget.stages,
                patience=budget.patience,
                checkpoints=path.with_suffix(""),
                progress=_over_stages(clock.beside(progress), budget),
                **common,
            )
            return Trained(staged.networks, _stage_facts(staged.stages, budget, clock.seconds))
        stopping = None
        if budget.patience:
            seen = (arm.trained_on or arm.family, key, budget.steps, budget.validation_tasks, budget.shape)
            stopping = EarlyStopping(Validation(arm.rule, *seen), budget.patience)
        trained = meta_train(
            arm.make,
            _estimator(arm, budget, budget.steps),
            arm.outer,
            streams.train,
            checkpoint=path,
            progress=clock.beside(progress),
            stopping=stopping,
            networks=start,
            **common,
        )
    return Trained(trained.networks, _facts(trained, budget, clock.seconds))


def _estimator(arm: Learned, budget: Budget, steps: int) -> AbstractMetaGradient:
    estimator = TruncatedBPTT(
        arm.trained_on or arm.family,
        arm.rule,
        steps,
        budget.unroll,
        budget.tasks,
        budget.ratio,
        budget.remat,
        distance=budget.distance,
        measure=budget.measure,
    )
    return Imitation(estimator, share=budget.imitation) if budget.imitation else estimator


def _over_stages(show: Callable[[Progress], None], budget: Budget) -> Callable[[int, Progress], None]:
    total = budget.runs * len(budget.stages)
    return lambda stage, now: show(now._replace(done=stage * budget.runs + now.done, outer_steps=total))


def _stage_facts(stages: tuple[Stage, ...], budget: Budget, seconds: float) -> dict[str, Any]:
    made = [stage.trained.losses.shape[1] for stage in stages]
    return {
        "trajectories": sum(made) * budget.tasks,
        "training_steps": sum(stage.steps * runs for stage, runs in zip(stages, made, strict=True)),
        "skipped_windows": sum(int(np.sum(stage.trained.skipped)) for stage in stages),
        "training_seconds": seconds,
    }


def _facts(trained: MetaTrained, budget: Budget, seconds: float) -> dict[str, Any]:
    made = trained.losses.shape[1]
    facts = {
        "trajectories": made * budget.tasks,
        "training_steps": made * budget.steps,
        "skipped_windows": int(np.sum(trained.skipped)),
        "training_seconds": seconds,
    }
    if budget.patience:
        curve = np.where(np.isfinite(trained.validation), trained.validation, np.inf)
        seen = [min((i + 1) * budget.chunk, made) * budget.tasks for i in range(curve.shape[1])]
        facts["learning_curve"] = {"trajectories": seen, "validation": curve.tolist()}
        best = np.argmin(curve, axis=1)
        facts["best_after"] = [seen[i] for i in best]
        facts["at_cap"] = int(np.sum(best == curve.shape[1] - 1)) if made == budget.runs else 0
    return facts


class _Clock:
    """Seconds of training that survive a kill: written after every chunk, beside the checkpoint."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        try:
            self.seconds = float(json.loads(path.read_text())["seconds"]) if path.exists() else 0.0
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} does not tell the seconds of training; delete it.") from error

    def __enter__(self):
        self.last = time.perf_counter()
        return self

    def __exit__(self, *_):
        self._tick()

    def beside(self, progress: Callable[[Progress], None]) -> Callable[[Progress], None]:
        def both(recorded: Progress) -> None:
            self._tick()
            progress(recorded)

        return both

    def _tick(self) -> None:
        now = time.perf_counter()
        self.seconds, self.last = self.seconds + now - self.last, now
        write_atomic(self.path, as_json({"seconds": self.seconds}))
