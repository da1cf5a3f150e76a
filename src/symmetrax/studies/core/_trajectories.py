"""What a picture of trajectories needs: points, updates, teleport arcs and level sets of a few tasks."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from symmetrax.learned._artifact import load
from symmetrax.rollout._unroll import Trace, draw_many
from symmetrax.studies.core._arm import Learned, Tuned
from symmetrax.studies.core._hand_made import symmetry_of
from symmetrax.studies.core._run import Run
from symmetrax.studies.core._runs import evaluate
from symmetrax.tasks._base import AbstractTaskFamily

TASKS = 4
ARC = 33
GRID = 121
#: How many times as far as the middle arm of a task an arm goes that has a frame of its own.
FAR = 4.0


def paths(
    run: Run, family: AbstractTaskFamily, names: tuple[str, ...], steps: int | None = None
) -> dict[str, np.ndarray]:
    """The `trajectories` of some arms of a study on unseen tasks, by the networks of the first meta-seed."""
    arms = {arm.name: arm for arm in run.study.arms_on(family)}
    played = run.played[family.name]
    key, steps = run.streams.test[:1], played.steps if steps is None else steps
    options = {"steps": steps, "tasks": min(TASKS, run.study.tasks), "points": True}
    traces, first = {}, []
    for name in (name for name in names if name in arms):
        arm, watch = arms[name], ()
        if isinstance(arm, Tuned):
            hyper = played.facts[name]["hyperparameters"][str(played.steps)]
            make, networks = arm.make, {field: jnp.full(1, value) for field, value in hyper.items()}
        else:
            assert isinstance(arm, Learned)  # a control has no networks of its own
            network, _ = load(run.folder.path / "artifacts" / f"{name}.safetensors")
            make, networks = (
                arm.rule_for(steps),
                jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[None]), network),
            )
            watch = ("algebra", "outcome", "previous") if arm.rule.teleports else ()
            first += [name] if arm.rule.order == "teleport-first" else []
        traces[name], _ = evaluate(make, networks, family, key, watch=watch, **options)
    return trajectories(traces, family, run.streams.test[0], options["tasks"], tuple(first))


def trajectories(
    traces: dict[str, Trace],
    family: AbstractTaskFamily,
    key: Key[Array, ""],
    tasks: int,
    first: tuple[str, ...] = (),
) -> dict[str, np.ndarray]:
    """Arrays by name for the first tasks of the first seed, from traces with axes seeds, steps, tasks.

    For every arm: `ARM.points` (task, step + 1, 2); `ARM.arrows` (task, step, 2, 2), the ends of its updates;
    if it teleports, `ARM.arcs` (task, step, 33, 2), along the orbit from where the update led, or, for arms
    that teleport `first`, to where it starts; and the frame of its picture: `ARM.grid.x`, `ARM.grid.y`
    (task, 121) and `ARM.grid.loss` (task, 121, 121), indexed [task, y, x].
    """
    count = min(TASKS, tasks)
    drawn = jax.tree.map(np.asarray, _drawn(family, tasks, key))
    some = [jax.tree.map(lambda x, i=i: x if tasks == 1 else x[..., i], drawn) for i in range(count)]
    arrays = {}
    for name, trace in traces.items():
        points = np.asarray(trace.params[0])[..., :count]  # step, coordinate, task
        arrays[f"{name}.points"] = places = np.moveaxis(points, -1, 0)
        starts, ends = places[:, :-1], places[:, 1:]
        if "algebra" in trace.watched and trace.watched["algebra"].ndim == 4:
            leaves = points[:-1]
            if name not in first:
                leaves = leaves + np.asarray(trace.watched["previous"][0])[1:, :, :count]
            # A refused teleport went nowhere, whatever its angle.
            taken = np.asarray(trace.watched["outcome"][0])[1:, None, :count] == 0
            angles = np.where(taken, np.asarray(trace.watched["algebra"][0])[1:, :, :count], 0.0)
            at = (np.moveaxis(x, -1, 0) for x in (leaves, angles))
            arrays[f"{name}.arcs"] = arcs = _of_each(_arcs, family, some, *at)
            starts, ends = (arcs[:, :, -1], ends) if name in first else (starts, arcs[:, :, 0])
        arrays[f"{name}.arrows"] = np.stack([starts, ends], axis=2)
    paths = {
        name: np.concatenate(
            [
                arrays[f"{name}.{part}"].reshape(count, -1, 2)
                for part in ("points", "arrows", "arcs")
                if f"{name}.{part}" in arrays
            ],
            axis=1,
        )
        for name in traces
    }
    frames = [frames_of({name: path[i] for name, path in paths.items()}) for i in range(count)]
    for name in traces:
        x, y = (
            np.stack([np.linspace(frame[name][k, 0], frame[name][k, 1], GRID) for frame in frames])
            for k in (0, 1)
        )
        arrays |= {
            f"{name}.grid.x": x,
            f"{name}.grid.y": y,
            f"{name}.grid.loss": _of_each(_levels, family, some, x, y),
        }
    return arrays


def _of_each(
    function: Callable[..., Array], family: AbstractTaskFamily, drawn: list[PyTree], *along: np.ndarray
) -> np.ndarray:
    """A compiled function of every task, and of its entries of arrays."""
    given = [jax.tree.map(jnp.asarray, entry) for entry in zip(drawn, *along, strict=True)]
    return np.stack([np.asarray(function(family, *entry)) for entry in given])


# Compiled as a whole: op by op each of these would be dozens of small programs.
_drawn = eqx.filter_jit(draw_many)


@eqx.filter_jit
def _arcs(family: AbstractTaskFamily, drawn: PyTree, starts: Array, angles: Array) -> Array:
    """The path along the orbit from each point, at equal steps of the angle."""
    symmetry = symmetry_of(family.task(drawn))
    shares = jnp.linspace(0, 1, ARC)
    one = lambda x, xi: jax.vmap(lambda s: symmetry.act(symmetry.exp(s * xi), x))(shares)  # noqa: E731
    return jax.vmap(one)(starts, angles)


def frames_of(paths: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Bounds of x and y of every arm's picture of one task, so that its whole path is inside.

    All arms have one frame, but for those that go more than `FAR` times as far as the middle one: in their
    frame the others could not be seen.

    >>> near, far = np.array([[0.0, 0.0], [1.0, 0.0]]), np.array([[0.0, 0.0], [100.0, 0.0]])
    >>> frames = frames_of({"a": near, "b": 2 * near, "c": far})
    >>> frames["a"].round(2).tolist(), bool(frames["c"][0, 1] > 100)
    ([[-0.1, 2.1], [-1.1, 1.1]], True)
    """
    inside = {name: path[np.all(np.isfinite(path), axis=1)] for name, path in paths.items()}
    spans = {name: np.max(np.ptp(path, axis=0)) for name, path in inside.items()}
    middle = np.quantile([*spans.values()], 0.5, method="inverted_cdf")
    near = [name for name in paths if spans[name] <= FAR * middle]
    common = _frame(np.concatenate([inside[name] for name in near]))
    return {name: common if name in near else _frame(inside[name]) for name in paths}


def _frame(points: np.ndarray) -> np.ndarray:
    low, high = np.min(points, axis=0), np.max(points, axis=0)
    # One scale for both axes, so that arrows and arcs keep their shape.
    half = 0.55 * np.max(np.maximum(high - low, 0.25))
    middle = (low + high) / 2
    return np.stack([middle - half, middle + half], axis=1)


@eqx.filter_jit
def _levels(family: AbstractTaskFamily, drawn: PyTree, x: Array, y: Array) -> Array:
    return jax.vmap(jax.vmap(family.task(drawn).loss))(jnp.stack(jnp.meshgrid(x, y), axis=-1))
