"""Runs of optimizers on unseen tasks: a few numbers of every step, and statistics of them."""

import dataclasses
import json
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key, PyTree

from symmetrax._files import load_arrays, save_arrays
from symmetrax._tree import safe_norm
from symmetrax.metatrain._devices import spread
from symmetrax.rollout._unroll import MakeTransform, Rollouts, Trace, advance_many, begin_many, unroll_many
from symmetrax.studies.core._folder import RunFolder, as_json
from symmetrax.tasks._base import AbstractTask, AbstractTaskFamily

#: A task counts as solved when its loss is below this share of the first.
SOLVED = 1e-6

#: What a learned optimizer tells of every step.
RECORDED = ("step_size", "momentum", "algebra", "loss_change", "outcome")


@dataclasses.dataclass(frozen=True)
class Runs:
    """The runs of an optimizer on unseen tasks. All arrays have the axes seeds, tasks, steps.

    `losses` start with f(x_0), so they have one entry more than what is `recorded` of each step: "length" of
    the step (update and teleport together), "gradient_norm" after it, and what was watched, vectors by their
    norms, or looked at, vectors with one axis more. `measured` holds what was measured at the end, axes
    seeds, tasks. `seconds` is for all runs. `points` are the steps whose losses are here, if not all.

    >>> Runs(np.ones((2, 3, 5)), {}, {}, 0.1).steps
    4
    """

    losses: Float[np.ndarray, "seeds tasks points"]
    recorded: dict[str, Float[np.ndarray, "seeds tasks steps"]]
    measured: dict[str, np.ndarray]
    seconds: float
    points: tuple[int, ...] | None = None

    @property
    def steps(self) -> int:
        return self.losses.shape[-1] - 1 if self.points is None else self.points[-1]

    @property
    def runs(self) -> int:
        return self.losses.shape[0] * self.losses.shape[1]

    def until(self, steps: int) -> Float[np.ndarray, "seeds tasks points"]:
        """The losses up to a step."""
        points = range(self.losses.shape[-1]) if self.points is None else self.points
        return self.losses[..., : sum(point <= steps for point in points)]

    def at(self, points: tuple[int, ...]) -> "Runs":
        """The losses at these steps alone, without what was recorded of every step; also when each task was
        "solved_at", the first step with a loss below `SOLVED` times the first, or else one after the last."""
        below = self.losses <= SOLVED * self.losses[..., :1]
        first = np.where(below.any(axis=-1), below.argmax(axis=-1), self.steps + 1).astype(float)
        points = tuple(point for point in points if point <= self.steps)
        measured = {**self.measured, "solved_at": first}
        return Runs(self.losses[..., list(points)], {}, measured, self.seconds, points)


def run_many(
    make: MakeTransform,
    networks: PyTree,
    family: AbstractTaskFamily,
    keys: Key[Array, " seeds"],
    *,
    steps: int,
    tasks: int,
    shape: Any = None,
    watch: tuple[str, ...] = RECORDED,
    measure: Callable[[AbstractTask, PyTree], dict[str, Array]] | None = None,
    look: Callable[[MakeTransform, AbstractTask, PyTree, PyTree, PyTree], dict[str, Array]] | None = None,
    parts: int | None = 2,
    along: PyTree = None,
    timings: int = 1,
) -> Runs:
    """Run every seed's network on that seed's `tasks` tasks, in `parts` equal parts.

    The first part compiles, the others are timed: `seconds` is what all would take at their median speed.
    With `parts=None` all tasks run at once, and are timed again, at most `timings` times in half a second, of
    which the least counts: others share the machine. The tasks depend on `keys` alone, so that all arms meet
    the same ones. Raises ValueError if `parts` does not divide `tasks`.

    **Arguments:** `make(network, task)` gives the transformation, an `UpdateRule` say; `networks` has the
    seeds as first axis; `watch` names what to read from the optimizer's state; `measure(task, params)` is
    evaluated where the runs end, and `look(make, task, params, state, after)` at every step, with the
    parameters before it, the optimizer's state after it, and the parameters after it. `along` is further
    input of each step of each task, with the axes seeds, tasks, steps: the transformation of step t is then
    `make((network, along[t]), task)`.

    >>> from symmetrax.studies.core._hand_made import descent
    >>> from symmetrax.tasks._families import make_family
    >>> hyper = {"rate": jnp.full(3, 0.05), "momentum": jnp.zeros(3)}
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> ran = run_many(descent, hyper, make_family("booth"), keys, steps=5, tasks=4)
    >>> ran.losses.shape, sorted(ran.recorded)
    ((3, 4, 6), ['gradient_norm', 'length'])
    """
    if tasks < 1 or (parts is not None and (parts < 1 or tasks % parts)):
        raise ValueError(f"`run_many` cannot run {tasks} tasks in {parts} equal parts.")
    shape = family.shapes[0] if shape is None else shape
    arguments = (steps, tasks // (parts or 1), shape, watch, measure, look)
    draws = [keys]
    if parts is not None:
        draws = [jax.vmap(lambda key, i=i: jax.random.fold_in(key, i))(keys) for i in range(parts)]
    found, seconds = [], []
    for i, own in enumerate(draws):
        part = slice(i * arguments[1], (i + 1) * arguments[1])
        given = jax.tree.map(lambda x, part=part: jnp.asarray(x[:, part]), along)
        began = time.perf_counter()
        arrays = _run_many(make, networks, family, own, given, *arguments)
        found.append(jax.tree.map(np.asarray, arrays))
        seconds.append(time.perf_counter() - began)
        while parts is None and len(seconds) <= timings and sum(seconds[1:]) < 0.5:
            began = time.perf_counter()
            jax.block_until_ready(_run_many(make, networks, family, own, given, *arguments))
            seconds.append(time.perf_counter() - began)
    recorded, measured = (
        {name: np.concatenate([arrays[i][name] for arrays in found], axis=1) for name in found[0][i]}
        for i in range(2)
    )
    spent = (
        float(min(seconds[1:] or seconds))
        if parts is None
        else parts * float(np.median(seconds[1:] or seconds))
    )
    return Runs(recorded.pop("loss"), recorded, measured, spent)


@eqx.filter_jit
def _run_many(make, networks, family, keys, along, steps, tasks, shape, watch, measure, look):
    """Records of every step (seeds, tasks, steps), and measurements after the last (seeds, tasks)."""
    arrays, static = eqx.partition(networks, eqx.is_array)

    def one(inputs):
        arrays, key, along = inputs
        network = eqx.combine(arrays, static)
        rollouts = begin_many(make, network, family, shape, tasks, key)
        single = rollouts.carry.value.ndim == 0
        per_task = safe_norm if single else jax.vmap(safe_norm, in_axes=-1)

        def body(rollouts, entry):
            options = {} if entry is None else {"along": entry}
            after, trace = advance_many(make, network, family, shape, rollouts, 1, watch=watch, **options)
            moved = optax.tree.sub(after.carry.params, rollouts.carry.params)
            recorded = {name: _scalars(x, tasks, per_task) for name, x in trace.watched.items()}
            recorded |= {"length": per_task(moved), "gradient_norm": trace.gradient_norm[0]}
            looked = {}
            if look is not None:
                looked = _each(
                    lambda drawn, *step: look(make, family.task(drawn, shape), *step),
                    (rollouts.drawn, rollouts.carry.params, after.carry.state, after.carry.params),
                    single,
                )
            return after, ({"loss": trace.loss[0], **recorded}, looked)

        start = rollouts.carry.value
        # Tasks are the last axis of rollouts, and a single task has none; each step has an axis of its own.
        each = jax.tree.map(lambda x: (x[0] if single else x.T)[:, None], along)
        after, (recorded, looked) = jax.lax.scan(body, rollouts, each, length=steps)
        recorded["loss"] = jnp.concatenate([start[None], recorded["loss"]])
        recorded = jax.tree.map(lambda x: x.reshape(len(x), tasks).T, recorded)
        recorded |= jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), looked)
        return recorded, {} if measure is None else _measured(measure, family, shape, after, single)

    return spread(one, (arrays, keys, along))


def _scalars(value: PyTree, tasks: int, per_task: Callable) -> Array:
    """One number for each task: what was watched, if it is a scalar, else its norm."""
    value = jax.tree.map(lambda x: x[0], value)
    leaves = jax.tree.leaves(value)
    if len(leaves) == 1 and leaves[0].size == tasks:
        return leaves[0].astype(float).reshape(-1)
    return per_task(value)


def _measured(measure, family, shape, rollouts: Rollouts, single: bool) -> dict[str, Array]:
    def one(drawn, params):
        return measure(family.task(drawn, shape), params)

    return _each(one, (rollouts.drawn, rollouts.carry.params), single)


def _each(one: Callable[..., dict[str, Array]], arguments: tuple, single: bool) -> dict[str, Array]:
    """`one` for every task, whose axis is the last of the arguments and the first of what is returned."""
    if single:
        return jax.tree.map(lambda x: x[None], one(*arguments))
    return jax.vmap(one, in_axes=-1)(*arguments)


def joined(parts: list[Runs]) -> Runs:
    """Runs on families of several shapes as one, the tasks side by side; the seconds add up.

    >>> one = Runs(np.ones((2, 3, 5)), {"length": np.ones((2, 3, 4))}, {}, 0.1)
    >>> joined([one, one]).recorded["length"].shape
    (2, 6, 4)
    """

    def beside(dicts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return {name: np.concatenate([d[name] for d in dicts], axis=1) for name in dicts[0]}

    return Runs(
        np.concatenate([part.losses for part in parts], axis=1),
        beside([part.recorded for part in parts]),
        beside([part.measured for part in parts]),
        sum(part.seconds for part in parts),
        parts[0].points,
    )


def resumable(
    folder: RunFolder, name: str, compute: Callable[[], tuple[dict[str, Runs], dict[str, Any]]]
) -> tuple[dict[str, Runs], dict[str, Any]]:
    """Returns what `compute` returns, runs by name and facts, or finds it in the folder from an earlier call.

    An experiment of many arms goes through them one by one, keeps what each did, and forgets its networks:
    the checkpoints of training called `name` are deleted. All is dropped when the experiment is complete.
    """
    path = folder.path / "checkpoints" / "parts" / f"{name}.safetensors"
    if not path.exists():
        ran, found = compute()
        # Horizons share one record of runs: it is written once, under the first of its names.
        first: dict[int, str] = {}
        same = {arm: first.setdefault(id(r), arm) for arm, r in ran.items()}
        kept = {arm: ran[arm] for arm in dict.fromkeys(same.values())}
        arrays = {
            f"{arm}|{field}|{key}": np.ascontiguousarray(array)
            for arm, r in kept.items()
            for field, values in (("recorded", {"": r.losses, **r.recorded}), ("measured", r.measured))
            for key, array in values.items()
        }
        about = {arm: {"seconds": r.seconds, "points": r.points} for arm, r in kept.items()}
        save_arrays(path, arrays, {"runs": about, "same": same, "facts": json.loads(as_json(found))})
        for suffix in (".safetensors", ".json"):
            (folder.path / "checkpoints" / f"{name}{suffix}").unlink(missing_ok=True)
    arrays, card = load_arrays(path, "part of a run")
    loaded = {}
    for arm, about in card["runs"].items():
        own = {tuple(key.split("|")[1:]): a for key, a in arrays.items() if key.split("|")[0] == arm}
        recorded = {key: a for (field, key), a in own.items() if field == "recorded"}
        measured = {key: a for (field, key), a in own.items() if field == "measured"}
        points = None if about["points"] is None else tuple(about["points"])
        loaded[arm] = Runs(recorded.pop(""), recorded, measured, about["seconds"], points)
    return {arm: loaded[other] for arm, other in card["same"].items()}, card["facts"]


def evaluate(
    make: MakeTransform,
    networks: PyTree,
    family: AbstractTaskFamily,
    keys: Key[Array, " seeds"],
    *,
    steps: int,
    tasks: int,
    shape: Any = None,
    watch: tuple[str, ...] = (),
    points: bool = False,
) -> tuple[Trace, float]:
    """Unroll every seed's network on that seed's `tasks` tasks; also the seconds it takes once compiled.

    `networks` and `keys` have the seeds as first axis; so has the trace, then steps, then tasks.

    >>> import symmetrax as sx
    >>> from symmetrax.studies.core._hand_made import descent
    >>> hyper = {"rate": jnp.full(3, 0.05), "momentum": jnp.zeros(3)}
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> trace, seconds = evaluate(descent, hyper, sx.tasks.make_family("booth"), keys, steps=12, tasks=10)
    >>> trace.loss.shape
    (3, 13, 10)
    """
    return timed(_evaluate, make, networks, family, keys, steps, tasks, shape, watch, points)


def timed(compiled: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """Returns the value of a compiled function, and the seconds it takes once compiled (it is called twice).

    >>> timed(jax.jit(lambda x: x + 1), jnp.array(1.0))[0].item()
    2.0
    """
    jax.block_until_ready(compiled(*arguments))
    began = time.perf_counter()
    result = jax.block_until_ready(compiled(*arguments))
    return result, time.perf_counter() - began


@eqx.filter_jit
def _evaluate(make, networks, family, keys, steps, tasks, shape, watch, points):
    def one(inputs):
        network, key = inputs
        return unroll_many(make, network, family, key, steps, tasks, shape=shape, watch=watch, points=points)

    return spread(one, (networks, keys))
