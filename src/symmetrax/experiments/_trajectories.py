"""What a picture of trajectories needs: points, updates, teleport arcs and level sets of a few tasks."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from symmetrax._unroll import Trace, draw_many
from symmetrax.tasks._base import AbstractTaskFamily

TASKS = 4
ARC = 33
GRID = 121


def trajectories(
    traces: dict[str, Trace], family: AbstractTaskFamily, key: Key[Array, ""], tasks: int
) -> dict[str, np.ndarray]:
    """Arrays by name for the first tasks of the first seed, from traces with axes seeds, steps, tasks.

    For every arm: `ARM.points` (task, step + 1, 2); if it teleports, `ARM.arcs` (task, step, 33, 2), from
    where the update led to where the teleport ended, along the orbit. For the tasks: `grid.x`, `grid.y`
    (task, 121) and `grid.loss` (task, 121, 121), indexed [task, y, x].
    """
    count = min(TASKS, tasks)
    drawn = draw_many(family, tasks, key)
    some = [jax.tree.map(lambda x, i=i: x if tasks == 1 else x[..., i], drawn) for i in range(count)]
    arrays = {}
    for name, trace in traces.items():
        points = np.asarray(trace.params[0])[..., :count]  # step, coordinate, task
        arrays[f"{name}.points"] = np.moveaxis(points, -1, 0)
        if "algebra" in trace.watched and trace.watched["algebra"].ndim == 4:
            landings = points[:-1] + np.asarray(trace.watched["previous"][0])[1:, :, :count]
            # A refused teleport went nowhere, whatever its angle.
            taken = np.asarray(trace.watched["refused"][0])[1:, None, :count] == 0
            angles = np.where(taken, np.asarray(trace.watched["algebra"][0])[1:, :, :count], 0.0)
            arrays[f"{name}.arcs"] = np.stack(
                [_arcs(family.task(some[i]), landings[..., i], angles[..., i]) for i in range(count)]
            )
    reach = np.concatenate([a for n, a in arrays.items() if n.endswith(".points")], axis=1)
    windows = [_window(reach[i]) for i in range(count)]
    arrays["grid.x"] = np.stack([np.linspace(window[0, 0], window[0, 1], GRID) for window in windows])
    arrays["grid.y"] = np.stack([np.linspace(window[1, 0], window[1, 1], GRID) for window in windows])
    arrays["grid.loss"] = np.stack(
        [_levels(family.task(some[i]), arrays["grid.x"][i], arrays["grid.y"][i]) for i in range(count)]
    )
    return arrays


def _arcs(task, landings: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """The path along the orbit from each landing point, at equal steps of the angle."""
    symmetry = task.symmetry()
    shares = jnp.linspace(0, 1, ARC)
    one = lambda x, xi: jax.vmap(lambda s: symmetry.act(symmetry.exp(s * xi), x))(shares)  # noqa: E731
    return np.asarray(jax.vmap(one)(jnp.asarray(landings), jnp.asarray(angles)))


def _window(points: np.ndarray) -> np.ndarray:
    """Bounds of x and y that show nearly all points, with a margin; a few far jumps may leave the picture."""
    finite = points[np.all(np.isfinite(points), axis=1)]
    low, high = np.quantile(finite, [0.05, 0.95], axis=0)
    low, high = np.minimum(low, points[0]), np.maximum(high, points[0])
    # One scale for both axes, so that arrows and arcs keep their shape.
    half = 0.6 * np.max(np.maximum(high - low, 0.25))
    middle = (low + high) / 2
    return np.stack([middle - half, middle + half], axis=1)


def _levels(task, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    grid = jnp.stack(jnp.meshgrid(jnp.asarray(x), jnp.asarray(y)), axis=-1)
    return np.asarray(jax.vmap(jax.vmap(task.loss))(grid))
