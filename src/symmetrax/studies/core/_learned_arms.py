"""Arms that learn to optimize networks: how they are built, meta-trained, controlled and run on unseen tasks.

A `LearnedArm` is a network, its use (an `UpdateRule`) and its outer optimizer. A `Control` runs the networks
of an arm in another way: teleports switched off, another transport, some outputs replaced. `train` stops when
more trajectories stop helping; `run_arm` runs an arm and its controls (see `_learned_runs.py`).
"""

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key, PyTree

from symmetrax._files import write_atomic
from symmetrax.learned._base import AbstractLearnedOptimizer
from symmetrax.learned._joint import Joint
from symmetrax.learned._update_rule import UpdateRule
from symmetrax.metatrain._estimators import Measure, TruncatedBPTT
from symmetrax.metatrain._loop import MetaTrained, Progress, meta_train
from symmetrax.metatrain._stopping import EarlyStopping
from symmetrax.rollout._unroll import MakeTransform, advance_many, begin_many
from symmetrax.studies.core._console import Reporter
from symmetrax.studies.core._folder import RunFolder, as_json
from symmetrax.studies.core._learned_runs import Ran, due, run_many
from symmetrax.studies.core._statistics import FLOOR
from symmetrax.studies.core._streams import Streams
from symmetrax.tasks._base import AbstractTaskFamily

MakeNetwork = Callable[[Key[Array, ""]], AbstractLearnedOptimizer]


class Build(eqx.Module):
    """Builds networks of one class with these options from a key; equal builders share compiled programs.

    >>> from symmetrax.learned._flat_gradient import FlatGradientLSTM
    >>> Build.of(FlatGradientLSTM, size=2, width=4)(jax.random.key(0)).width
    4
    """

    kind: Callable[..., AbstractLearnedOptimizer] = eqx.field(static=True)
    options: tuple[tuple[str, Any], ...] = eqx.field(static=True)

    @classmethod
    def of(cls, kind: Callable[..., AbstractLearnedOptimizer], **options: Any) -> "Build":
        """Options must be hashable: tuples, not lists."""
        return cls(kind, tuple(sorted(options.items())))

    def __call__(self, key: Key[Array, ""]) -> AbstractLearnedOptimizer:
        return self.kind(**dict(self.options), key=key)


class BuildJoint(eqx.Module):
    """Builds several networks that work as one optimizer, each from its own key: see `Joint`.

    The i-th network depends on the key and i alone, so that arms with the same first network start equal.

    >>> from symmetrax.learned._flat_gradient import FlatGradientLSTM
    >>> step = Build.of(FlatGradientLSTM, size=2, width=4, emits=("step_size",))
    >>> element = Build.of(FlatGradientLSTM, size=2, width=4, emits=(), algebra=1)
    >>> len(BuildJoint((step, element))(jax.random.key(0)).networks)
    2
    """

    parts: tuple[MakeNetwork, ...]

    def __call__(self, key: Key[Array, ""]) -> Joint:
        return Joint(tuple(part(jax.random.fold_in(key, i)) for i, part in enumerate(self.parts)))


@dataclasses.dataclass(frozen=True)
class LearnedArm:
    """A learned optimizer: its network, its use on a task, its outer optimizer, and the tasks it meets.

    `family` matters where arms see one law of tasks with different symmetries. Arms that have equal builders,
    rules but for arrays, and one `outer` object, share compiled programs.

    >>> from symmetrax.learned._flat_gradient import FlatGradientLSTM
    >>> from symmetrax.tasks._families import make_family
    >>> build = Build.of(FlatGradientLSTM, size=2)
    >>> LearnedArm("update", build, UpdateRule(), optax.adam(1e-3), make_family("ellipse-fixed")).name
    'update'
    """

    name: str
    make: MakeNetwork
    rule: UpdateRule
    outer: optax.GradientTransformation
    family: AbstractTaskFamily


@dataclasses.dataclass(frozen=True)
class Control:
    """The networks of the trained arm `of`, used by another rule (None: the arm's), or changed.

    `change(networks, seen)` gives what is run instead of the networks (stacked over seeds), for instance
    `RandomDirection(networks)`; `seen` is what they did on tasks of the training stream, from which constants
    can be taken (see `learned_constant`).

    >>> Control("teleport-off", of="teleport", rule=UpdateRule()).of
    'teleport'
    """

    name: str
    of: str
    rule: UpdateRule | None = None
    change: Callable[[PyTree, "Ran"], PyTree] = lambda networks, seen: networks


def switched_off(rule: UpdateRule) -> UpdateRule:
    """The same rule, with no teleport due at any step; it shares compiled programs with the first.

    >>> switched_off(UpdateRule.at((0, 2), 4)).schedule.tolist()
    [False, False, False, False]
    """
    off = jax.tree.map(jnp.zeros_like, rule.schedule)
    return dataclasses.replace(rule, schedule=off) if rule.teleports else rule


@dataclasses.dataclass(frozen=True)
class Budget:
    """How long networks are trained: at most `runs` runs of `steps` steps, each on `tasks` fresh tasks.

    After every `chunk` runs the networks are validated on `validation_tasks` tasks of the training stream
    (always the same, never trained on); training ends when `patience` rounds have brought nothing, and the
    best networks are returned. `patience=0` trains for all runs. Validation sees networks of one `shape`, by
    default the first of the family's. `measure` and `distance` are those of `TruncatedBPTT`.

    >>> Budget(runs=200, seeds=5, steps=100).unroll
    10
    """

    runs: int
    seeds: int
    steps: int
    unroll: int = 10
    tasks: int = 1
    chunk: int = 100
    patience: int = 1
    validation_tasks: int = 32
    ratio: float = 1.0
    remat: bool = False
    shape: Any = None
    measure: Measure = "loss"
    distance: float | None = None


class Validation(eqx.Module):
    """A network's quality, the lower the better: the median over tasks of the mean over steps of ln f(x_t).

    The mean of logarithms judges the whole trajectory, whatever the scale of the loss at its start. Losses
    are floored at 1e-12 f(x_0); a task whose losses are not finite counts as infinite.

    >>> from symmetrax.learned._flat_gradient import FlatGradientLSTM
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


class Trained(NamedTuple):
    """What training an arm gave: its networks (seeds first), and what to tell of it in `results.json`.

    >>> Trained._fields
    ('networks', 'facts')
    """

    networks: PyTree
    facts: dict[str, Any]


def train(
    arm: LearnedArm,
    budget: Budget,
    streams: Streams,
    folder: RunFolder,
    reporter: Reporter,
    *,
    start: PyTree = None,
) -> Trained:
    """Meta-train one arm with all its seeds, from its checkpoint if there is one.

    The facts are the learning curve (validation against trajectories, seed by seed; E10 asks for it), the
    trajectories that each seed's best network has seen, how many seeds were still improving where training
    had to end ("at_cap"), skipped windows, and the seconds of training, compilation included. `start` gives
    networks, stacked over seeds, to go on from.
    """
    estimator = TruncatedBPTT(
        arm.family,
        arm.rule,
        budget.steps,
        budget.unroll,
        budget.tasks,
        budget.ratio,
        budget.remat,
        distance=budget.distance,
        measure=budget.measure,
    )
    stopping = None
    if budget.patience:
        key = jax.random.fold_in(streams.tune, 1)
        quality = Validation(arm.rule, arm.family, key, budget.steps, budget.validation_tasks, budget.shape)
        stopping = EarlyStopping(quality, budget.patience)
    path = folder.path / "checkpoints" / f"{arm.name}.safetensors"
    with reporter.training(arm.name, budget.runs) as progress, _Clock(path.with_suffix(".json")) as clock:
        trained = meta_train(
            arm.make,
            estimator,
            arm.outer,
            streams.train,
            outer_steps=budget.runs,
            seeds=budget.seeds,
            chunk=budget.chunk,
            checkpoint=path,
            identity=folder.identity,
            progress=clock.beside(progress),
            stopping=stopping,
            networks=start,
        )
    return Trained(trained.networks, _facts(trained, budget, clock.seconds))


def _facts(trained: MetaTrained, budget: Budget, seconds: float) -> dict[str, Any]:
    made = trained.losses.shape[1]
    facts = {
        "trajectories": made * budget.tasks,
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
        def both(told: Progress) -> None:
            self._tick()
            progress(told)

        return both

    def _tick(self) -> None:
        now = time.perf_counter()
        self.seconds, self.last = self.seconds + now - self.last, now
        write_atomic(self.path, as_json({"seconds": self.seconds}))


def run_arm(
    arm: LearnedArm,
    controls: Sequence[Control],
    networks: PyTree,
    streams: Streams,
    *,
    steps: int,
    tasks: int,
    **options: Any,
) -> tuple[dict[str, Ran], Ran]:
    """Run an arm and the controls that are `of` it on the unseen tasks, by name; and what the arm did on the
    training stream, as many tasks as half of the parts of `run_many` have. `options` are those of `run_many`.

    An arm none of whose steps teleports is run without its symmetry: the same, and what it costs."""
    parts = options.pop("parts", 2)
    keys = {"steps": steps, **options}
    half = max(parts // 2, 1)
    stream = jax.random.split(jax.random.fold_in(streams.tune, 2), len(streams.test))
    rule = arm.rule
    if not len(due(rule, steps)):
        rule = dataclasses.replace(rule, schedule=())
    seen = run_many(rule, networks, arm.family, stream, tasks=tasks * half // parts, parts=half, **keys)
    keys["parts"] = parts
    ran = {arm.name: run_many(rule, networks, arm.family, streams.test, tasks=tasks, **keys)}
    for control in controls:
        if control.of == arm.name:
            changed, how = control.change(networks, seen), control.rule or rule
            ran[control.name] = run_many(how, changed, arm.family, streams.test, tasks=tasks, **keys)
    return ran, seen
