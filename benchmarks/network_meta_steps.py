"""Inner steps per second of a meta-step on networks, against plain PyTorch run eagerly: `torch_networks`.

`run.py` starts this once per number of threads, which is fixed when jax starts. Both sides run in turns in
one process, after a check that they compute the same meta-loss and meta-gradient. For one task PyTorch runs
as the published code does; that has no axis of tasks, so 128 tasks of ours stand against one of theirs, and
beside that against a batch written by hand. PyTorch gets the better of one and two threads, or one thread for
a single small network. Ours is compiled anew several times.
"""
# Torch is an extra, which the linters do without.
# pyright: reportMissingImports=false

import argparse
import json
import statistics
from collections.abc import Callable
from typing import Any

import torch

import network_workload
from timing import in_turns, row
from torch_networks import MetaStep
from workload import RATE, UNROLL, build, check_finite

MANY = 128

#: Width: required of ours / one trajectory at one task and at many, and of ours / hand-batched at many.
TARGETS = {20: (6.0, 15.0, 1.2), 300: (2.8, 20.0, 1.5)}

#: (width, tasks): meta-steps in one program of ours, and calls of the baseline per turn.
AT_ONCE = {(20, 1): (40, 10), (20, MANY): (4, 2), (300, 1): (10, 2), (300, MANY): (2, 1)}

ARM = {20: "lr + tele", 300: "update + tele"}


def measure(width: int, threads: int, quick: bool) -> list[dict[str, Any]]:
    """The rows of one width."""
    works = {tasks: network_workload.make_workload(width, tasks) for tasks in (1, MANY)}
    eager: dict[Any, tuple[Callable[[], Any], int]] = {}
    for tasks, work in works.items():
        network_workload.check(work, width, tasks)
        networks, theirs = network_workload.to_torch(work, width, tasks)
        step = MetaStep(networks, theirs, UNROLL, RATE)
        for n in (1,) if (width, tasks) == (20, 1) else (1, 2):
            eager["eager", tasks, n] = (_with_threads(step, n), AT_ONCE[width, tasks][1])

    found: dict[tuple[str, int], list[float]] = {
        (side, tasks): [] for side in ("ours", "eager") for tasks in works
    }
    compile_seconds = []
    for _ in range(1 if quick else 3):
        programs = {t: build(work, meta_steps=AT_ONCE[width, t][0]) for t, work in works.items()}
        turns = {("ours", tasks, threads): (program.run, 1) for tasks, program in programs.items()}
        seconds = in_turns({**turns, **eager}, rounds=2 if quick else 5)
        for side, tasks in found:
            best = min(
                statistics.median(times) for (s, t, _), times in seconds.items() if (s, t) == (side, tasks)
            )
            steps = tasks * UNROLL * (AT_ONCE[width, tasks][0] if side == "ours" else 1)
            found[side, tasks].append(steps / best)
        compile_seconds.append(statistics.mean(program.compile_seconds for program in programs.values()))
        for program in programs.values():
            check_finite(program)

    single, many, batched = TARGETS[width]
    where = f"LSTM {width}, {ARM[width]}"

    def against(name: str, tasks: int, theirs: int, required: float) -> dict[str, Any]:
        sides = found["ours", tasks], found["eager", theirs]
        return row(f"{where}, {name}", *sides, "inner steps/s", compile_seconds, required=required)

    return [
        against("1 task", 1, 1, single),
        against(f"{MANY} tasks / one trajectory", MANY, 1, many),
        against(f"{MANY} tasks / hand-batched", MANY, MANY, batched),
    ]


def _with_threads(step: MetaStep, threads: int) -> Callable[[], float]:
    def run() -> float:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        return step()

    return run


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    print(json.dumps([line for width in TARGETS for line in measure(width, options.threads, options.quick)]))
