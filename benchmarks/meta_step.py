"""Inner steps per second of a meta-step, against plain PyTorch run eagerly (see `torch_baseline`).

`run.py` starts this once per number of host devices and of threads, which are fixed when jax starts. Both
sides run in turns in one process, after a check that they compute the same meta-loss and meta-gradient.
PyTorch gets the better of one and two threads, or one for a single task. Ours is compiled anew several
times, because equal programs differ in speed from build to build.
"""
# Torch is an extra, which the linters do without.
# pyright: reportMissingImports=false

import argparse
import json
import statistics
from collections.abc import Callable
from typing import Any

import torch

import parity
from timing import in_turns, row
from torch_baseline import MetaStep
from workload import RATE, UNROLL, build, check_finite, make_workload

#: (tasks, devices): (required, goal) of ours / baseline.
TARGETS = {(1, 1): (60.0, None), (1024, 1): (2.5, 4.0), (1024, 2): (5.0, 7.0)}

#: tasks: meta-steps in one program of ours, and calls of the baseline per turn (an eighth of a second).
AT_ONCE = {1: (200, 20), 1024: (10, 5)}


def measure(tasks: int, devices: int, threads: int, quick: bool) -> dict[str, Any]:
    """The row for so many tasks on so many devices."""
    work = make_workload(tasks)
    differences = parity.check(work)
    network, their_tasks = parity.to_torch(work)
    eager = MetaStep(network, their_tasks, UNROLL, RATE)
    meta_steps, calls = AT_ONCE[tasks]

    def eagerly(threads: int) -> Callable[[], float]:
        def run() -> float:
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
            return eager()

        return run

    ours, baseline, compile_seconds = [], [], []
    for _ in range(2 if quick else 6):
        program = build(work, meta_steps=meta_steps, devices=devices)
        turns = {n: (eagerly(n), calls) for n in ((1,) if tasks == 1 else (1, 2))}
        seconds = in_turns({0: (program.run, 1), **turns}, rounds=3 if quick else 9)
        mine, *theirs = (statistics.median(values) for values in seconds.values())
        ours.append(tasks * UNROLL * meta_steps / mine)
        baseline.append(tasks * UNROLL / min(theirs))
        compile_seconds.append(program.compile_seconds)
        check_finite(program)
    required, goal = TARGETS[tasks, devices]
    name = (
        "2D meta-step, 1 task" if tasks == 1 else f"2D meta-step, {tasks:,} tasks, {devices} host device(s)"
    )
    found = row(name, ours, baseline, "inner steps/s", compile_seconds, required=required, goal=goal)
    return found | {"threads": threads, "differences": differences}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    single = [1] if (options.devices, options.threads) == (1, 1) else []
    sizes = [*single, 1024]
    print(json.dumps([measure(size, options.devices, options.threads, options.quick) for size in sizes]))
