"""Evaluating a trained optimizer from its file."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from symmetrax._theirs import blamed, named
from symmetrax.learned._artifact import load
from symmetrax.learned._base import AbstractLearnedOptimizer
from symmetrax.learned._update_rule import UpdateRule
from symmetrax.rollout._environment import Environment
from symmetrax.studies._registry import checked_seed
from symmetrax.studies.core._arm import Tuned
from symmetrax.studies.core._artifacts import options_of, teleports_at
from symmetrax.studies.core._console import Reporter, arms_table
from symmetrax.studies.core._hand_made import adam
from symmetrax.studies.core._run_facts import due
from symmetrax.studies.core._runs import evaluate
from symmetrax.studies.core._statistics import compare, log_ratios, over_tasks
from symmetrax.studies.core._streams import Streams
from symmetrax.studies.core._tuning import tune
from symmetrax.tasks._base import AbstractTask, AbstractTaskFamily
from symmetrax.tasks._families import make_family

#: The most tasks, each with a memory of its own, and the most steps of all together, whose losses are kept.
MOST_TASKS, MOST_STEPS = 10**5, 10**7


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

    `family` is a name that `make_family` knows, or MODULE:OBJECT for your own: an `AbstractTaskFamily`, or a
    function without arguments that returns one. Prints a table and returns the arms, as in `results.json`.
    With families of several shapes, `tasks` is the number for each. Raises ValueError for a bad file, an
    unknown family, or an optimizer that does not fit.

    >>> import symmetrax as sx, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     network = sx.learned.FlatGradientLSTM(2, width=4, key=jax.random.key(0))
    ...     path = sx.save(network, folder + "/new.safetensors")
    ...     arms = evaluate_artifact(path, "booth", steps=3, tasks=5, quiet=True)
    >>> arms["learned"]["runs"]
    5
    """
    if min(steps, tasks) < 1 or tasks > MOST_TASKS or steps * tasks > MOST_STEPS:
        raise ValueError(
            f"An evaluation needs at least one step and one task, and takes at most {MOST_TASKS:,} tasks and "
            f"{MOST_STEPS:,} steps of all together; got {steps} steps of {tasks} tasks."
        )
    checked_seed(seed)
    network, card = load(artifact)
    tasks_of = _own_family(family) if ":" in family else make_family(family)
    with blamed(family):
        arms = _run(network, card["training"], tasks_of, steps, tasks, seed)
    title = f"{pathlib.Path(artifact).name} on {family}: loss after {steps} steps, one network, all tasks"
    Reporter(quiet=quiet).print(arms_table(title, arms, "adam"))
    return arms


def _run(
    network: AbstractLearnedOptimizer,
    training: dict[str, Any],
    family: AbstractTaskFamily,
    steps: int,
    tasks: int,
    seed: int,
) -> dict[str, Any]:
    # Another stream than any training: the experiments of this library draw from the keys' first split.
    streams = Streams.of(seed + 1_000_003, 1)
    rules = {}
    for shape in family.shapes:  # all of them, so that a network that does not fit is refused at once
        rules[shape] = _rule(network, training, steps, family.task(family.draw(streams.tune), shape))
    networks = jax.tree.map(lambda x: x[None], network)
    losses: dict[str, list[np.ndarray]] = {"learned": [], "adam": []}
    seconds = dict.fromkeys(losses, 0.0)
    rejected = []
    for shape, rule in rules.items():
        arm = Tuned("adam", adam)
        tuning = {"horizons": (steps,), "tasks": min(tasks, 200), "shape": shape}
        tuned = tune([arm], family, streams.tune, **tuning)[steps]["adam"]
        same = {name: jnp.full(1, value) for name, value in tuned.items()}
        on = due(rule, steps)
        watch = ("outcome",) if len(on) and rule.guard is not None else ()
        for name, make, nets, seen in (("learned", rule, networks, watch), ("adam", adam, same, ())):
            run = {"steps": steps, "tasks": tasks, "shape": shape, "watch": seen}
            trace, spent = evaluate(make, nets, family, streams.test, **run)
            seconds[name] += spent
            losses[name].append(np.asarray(trace.loss).reshape(1, steps + 1, tasks).transpose(0, 2, 1))
            rejected += [np.asarray(trace.watched[key])[0, on] > 0 for key in seen]
    arrays = {name: np.concatenate(parts, axis=1) for name, parts in losses.items()}
    arms = compare(arrays, (), tasks * len(rules))
    for name, arm in arms.items():
        arm["seconds"] = seconds[name]
    arms["learned"]["versus"]["adam"] = over_tasks(log_ratios(arrays["learned"], arrays["adam"]))._asdict()
    if rejected:
        arms["learned"]["rejected"] = float(np.mean(rejected))
    return arms


def _own_family(name: str) -> AbstractTaskFamily:
    """The family that a user's module has, or makes, under this name."""
    made = named(name, "family")
    if callable(made) and not isinstance(made, AbstractTaskFamily):
        with blamed(name):
            made = made()
    if isinstance(made, AbstractTaskFamily):
        return made
    raise ValueError(
        f"{name} must be a task family (an AbstractTaskFamily), or a function without arguments that returns "
        f"one; got {type(made).__name__}."
    )


def _rule(
    network: AbstractLearnedOptimizer, training: dict[str, Any], steps: int, task: AbstractTask
) -> UpdateRule:
    """The network used as its card says, on schedule, under a guard and in an order, where it can teleport.

    Raises ValueError if the network does not take the task, or for a card that says something else."""
    environment = Environment(task)

    def emitted(key: Key[Array, ""]) -> Any:
        state = environment.reset(key)
        info = environment.observe(state, network.wants)
        return network.propose(info, network.memory(state.params, info.symmetry))[0].algebra

    algebra = jax.eval_shape(emitted, jax.random.key(0))
    if algebra is None or task.symmetry() is None:
        return UpdateRule(schedule=())
    teleports = teleports_at(training.get("schedule"), steps)
    use, guarded = training.get("use", {}), training.get("guarded", True)
    return UpdateRule(jnp.asarray(teleports), **options_of(use, guarded))
