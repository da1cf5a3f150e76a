"""Evaluating a trained optimizer from its file."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from symmetrax.experiments._arms import TunedArm, adam, evaluate, tune
from symmetrax.experiments._report import Reporter, arms_table
from symmetrax.experiments._stats import compare
from symmetrax.experiments._streams import Streams
from symmetrax.learned._artifact import load
from symmetrax.learned._recipe import Recipe
from symmetrax.tasks._base import AbstractTask
from symmetrax.tasks._families import make_family
from symmetrax.teleportation._guard import Guard
from symmetrax.teleportation._schedule import times


def evaluate_artifact(
    artifact: str | pathlib.Path,
    family: str,
    *,
    steps: int = 12,
    tasks: int = 1000,
    seed: int = 0,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run the optimizer of a file on unseen tasks of a family, used as its card says, beside tuned Adam.

    Prints a table and returns the arms, as in `results.json`. With families of several shapes, `tasks` is the
    number for each. Raises ValueError for a bad file, an unknown family, or an optimizer that does not fit.

    >>> import symmetrax as sx, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = sx.save(sx.WholeLSTM(2, width=4, key=jax.random.key(0)), folder + "/new.safetensors")
    ...     arms = evaluate_artifact(path, "booth", steps=3, tasks=5, quiet=True)
    >>> arms["learned"]["runs"]
    5
    """
    network, card = load(artifact)
    tasks_of = make_family(family)
    if min(steps, tasks) < 1:
        raise ValueError(f"An evaluation needs at least one step and one task, got {steps} and {tasks}.")
    for shape in tasks_of.shapes:
        _check_fit(network, tasks_of.task(tasks_of.draw(jax.random.key(0)), shape))
    # Another stream than any training: the experiments of this library draw from the keys' first split.
    streams = Streams.of(seed + 1_000_003, 1)
    networks = jax.tree.map(lambda x: x[None], network)
    recipe = _recipe(network, card["training"], steps, tasks_of.task(tasks_of.draw(streams.tune)).symmetry())
    losses: dict[str, list[np.ndarray]] = {"learned": [], "adam": []}
    for shape in tasks_of.shapes:
        arm = TunedArm("adam", adam)
        tuned = tune([arm], tasks_of, streams.tune, steps=steps, tasks=min(tasks, 200), shape=shape)["adam"]
        same = {name: jnp.full(1, value) for name, value in tuned.items()}
        for name, make, nets in (("learned", recipe, networks), ("adam", adam, same)):
            trace, _ = evaluate(make, nets, tasks_of, streams.test, steps=steps, tasks=tasks, shape=shape)
            losses[name].append(np.asarray(trace.loss).reshape(1, steps + 1, tasks).transpose(0, 2, 1))
    arrays = {name: np.concatenate(parts, axis=1) for name, parts in losses.items()}
    arms = compare(arrays, ("adam",), tasks * len(tasks_of.shapes))
    for arm in arms.values():
        arm["gradient_evaluations"] = float(steps)
    title = f"{pathlib.Path(artifact).name} on {family}: loss after {steps} steps, one meta-seed"
    Reporter(quiet=quiet).print(arms_table(title, arms, "adam"))
    return arms


def _check_fit(network: Any, task: AbstractTask) -> None:
    """Let the network refuse the task before anything is tuned or compiled."""
    jax.eval_shape(lambda key: network.memory(task.init(key)), jax.random.key(0))


def _recipe(network: Any, training: dict[str, Any], steps: int, symmetry: Any) -> Recipe:
    """The network used as it was trained: the same steps teleport, guarded or not, where that is possible."""
    if not network.config().get("algebra") or symmetry is None:
        return Recipe()
    teleports = times(training.get("schedule"), steps)
    return Recipe(jnp.asarray(teleports), Guard() if training.get("guarded", True) else None)
