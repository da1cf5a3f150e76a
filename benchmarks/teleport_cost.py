"""What a learned teleport costs: the claim that it is cheap because no orbit is searched.

Times of one optimization step (nothing is differentiated in the weights), in one compiled loop: with a
learned teleport against without, and a teleport by ten steps of gradient ascent against a learned one.
arXiv:2504.15399 claims efficiency without a number; ours are: a step at most 1.5 times a plain one, and the
teleport alone 5 times cheaper than by ascent. Run by `run.py` in a process of its own.
"""

import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import symmetrax as sx
from timing import in_turns, row

WIDTH, STEPS = 100, 200
FAMILIES, BATCHES = ("rosenbrock-random", "ellipse-random"), (1, 256)
SLOWDOWN, ADVANTAGE, RARE = 1.5, 5.0, 1.15


class NoCore(eqx.Module):
    """Stands in for the LSTM, in whose time that of a teleport would be lost: the heads and the rest stay."""

    def zero_state(self, batch: tuple[int, ...] = ()) -> jax.Array:
        return jnp.ones((WIDTH, *batch))

    def __call__(self, x: jax.Array, state: jax.Array) -> tuple[jax.Array, jax.Array]:
        # The hidden vector changes from step to step, or the heads would be hoisted out of the loop.
        return state / (1 + jnp.square(x[:1])), state


def bare(network: sx.learned.FlatGradientLSTM) -> sx.learned.FlatGradientLSTM:
    """The network without its core."""
    return eqx.tree_at(lambda n: n.core, network, NoCore())


def by_ascent(network: Any, task: Any) -> Any:
    """Teleport by ascent, then step."""
    return sx.teleported(network.transform(), task.symmetry(), search=sx.search.Ascent(10), guard=None)


def compiled(arm: tuple[Any, Callable], family: Any, batch: int) -> tuple[Callable[[], Any], float]:
    """A call that does STEPS steps on `batch` tasks, and the seconds it took to compile."""
    network, make_transform = arm

    def run(network, key):
        return sx.unroll_many(make_transform, network, family, key, STEPS, batch).loss

    began = time.perf_counter()
    program = jax.jit(run).lower(network, jax.random.key(1)).compile()
    seconds = time.perf_counter() - began
    return lambda: jax.block_until_ready(program(network, jax.random.key(1))), seconds


def measure(family_name: str, batch: int, quick: bool) -> list[dict[str, Any]]:
    """The rows of one family and batch."""
    family = sx.tasks.make_family(family_name)
    lstm = {
        algebra: sx.learned.FlatGradientLSTM(2, algebra=algebra, width=WIDTH, key=jax.random.key(0))
        for algebra in (0, 1)
    }
    plain, free, guarded = (
        sx.UpdateRule(),
        *(sx.UpdateRule(jnp.ones(STEPS, bool), g) for g in (None, sx.Guard())),
    )
    arms: dict[str, tuple[Any, Callable]] = {
        "plain": (lstm[0], plain),
        "learned": (lstm[1], free),
        "guarded": (lstm[1], guarded),
        "bare": (bare(lstm[0]), plain),
        "bare learned": (bare(lstm[1]), free),
        "bare ascent": (bare(lstm[0]), by_ascent),
    }
    found: dict[str, list[float]] = {name: [] for name in arms}
    compile_seconds = []
    for _ in range(1 if quick else 2):
        programs = {name: compiled(arm, family, batch) for name, arm in arms.items()}
        turns = {name: (run, 10 if batch == 1 else 1) for name, (run, _) in programs.items()}
        for name, values in in_turns(turns, rounds=10 if quick else 20).items():
            # The least, not the median: small differences of these are taken.
            found[name].append(1e6 * min(values) / STEPS)
        compile_seconds.append(statistics.mean(seconds for _, seconds in programs.values()))

    def alone(name: str) -> list[float]:
        """The teleport without the rest of the step; at least a hundredth of that."""
        return [max(b - a, a / 100) for a, b in zip(found["bare"], found[name], strict=True)]

    where = f"{family_name}, batch {batch}"
    unit: dict[str, Any] = {"unit": "us", "compile_seconds": compile_seconds}
    slower: dict[str, Any] = unit | {"better": "lower", "required": SLOWDOWN}
    return [
        row(
            f"step with a learned teleport / plain step, {where}", found["learned"], found["plain"], **slower
        ),
        row(f"the same with the guard / plain step, {where}", found["guarded"], found["plain"], **slower),
        row(
            f"teleport by 10-step ascent / learned teleport, {where}",
            alone("bare ascent"),
            alone("bare learned"),
            **unit,
            goal=ADVANTAGE,
        ),
    ]


def once_by_ascent(rate: Any, task: Any) -> Any:
    """Descent with one teleport by ten steps of ascent."""
    options = {"search": sx.search.Ascent(10), "schedule": (STEPS // 2,), "guard": None}
    return sx.teleported(optax.sgd(rate), task.symmetry(), **options)


def measure_rare(quick: bool) -> list[dict[str, Any]]:
    """A search that is due once in 200 steps, on 256 tasks at once: it must not run in the other steps."""
    family, batch = sx.tasks.make_family("ellipse-random"), BATCHES[-1]
    arms: dict[str, tuple[Any, Callable]] = {
        "once": (jnp.array(0.02), once_by_ascent),
        "plain": (jnp.array(0.02), lambda rate, task: optax.sgd(rate)),
    }
    found: dict[str, list[float]] = {name: [] for name in arms}
    compile_seconds = []
    for _ in range(1 if quick else 5):
        programs = {name: compiled(arm, family, batch) for name, arm in arms.items()}
        turns = {name: (run, 3) for name, (run, _) in programs.items()}
        for name, values in in_turns(turns, rounds=10 if quick else 20).items():
            found[name].append(1e6 * statistics.median(values) / STEPS)
        compile_seconds.append(statistics.mean(seconds for _, seconds in programs.values()))
    title = f"{STEPS} steps with one 10-step ascent / without, {batch} tasks"
    unit: dict[str, Any] = {"unit": "us", "compile_seconds": compile_seconds, "better": "lower"}
    return [row(title, found["once"], found["plain"], **unit, required=RARE)]


if __name__ == "__main__":
    quick = "--quick" in sys.argv
    cases = itertools.product(FAMILIES[:1] if quick else FAMILIES, BATCHES)
    rows = [row for case in cases for row in measure(*case, quick)]
    print(json.dumps([*rows, *measure_rare(quick)]))
