"""Inner steps per second of a meta-step, against plain PyTorch run eagerly (see `torch_baseline`).

The number of host devices and of threads are fixed when jax starts, so each pair is measured in a child
process: this script with `--devices` and `--threads`, which prints rows as JSON. PyTorch is measured in the
same child, in turns with ours, and gets the better of one and two threads, as we do on one device; at one
task both sides have one thread. Every program is compiled anew several times, because equal programs differ
in speed from build to build.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

ONE, MANY = 1, 1024

#: Children: (host devices, threads of XLA's pool).
CONFIGURATIONS = ((1, 1), (1, 2), (2, 1))

#: (tasks, devices): (required, goal), both of ours / baseline.
TARGETS = {(ONE, 1): (60.0, None), (MANY, 1): (2.5, 4.0), (MANY, 2): (5.0, 7.0)}


def rows(quick: bool) -> list[dict[str, Any]]:
    """All rows of the table: every child's, the best number of threads where there is a choice."""
    best: dict[str, dict[str, Any]] = {}
    for devices, threads in CONFIGURATIONS:
        for row in child(pathlib.Path(__file__), devices, threads, quick):
            known = best.get(row["name"])
            if known is None or row["ratio"] > known["ratio"]:
                best[row["name"]] = row
    return list(best.values())


def child(script: pathlib.Path, devices: int, threads: int, quick: bool) -> list[dict[str, Any]]:
    """Run `script` in a process of its own, with so many host devices and threads; the rows it prints."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}".strip()
    environment = {
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # compile times are measured
        "XLA_FLAGS": flags,
        "NPROC": str(threads),  # the size of XLA's thread pool
        "PJRT_NPROC": str(threads),
    }
    command = [sys.executable, str(script), "--devices", str(devices), "--threads", str(threads)]
    done = subprocess.run(
        [*command, "--quick"] if quick else command,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=600,
    )
    return json.loads(done.stdout)


def measure(tasks: int, devices: int, threads: int, quick: bool) -> dict[str, Any]:
    """One row, measured in this process."""
    import parity
    import torch
    from torch_baseline import MetaStep
    from workload import RATE, UNROLL, build, check_finite, make_workload
    from timing import in_turns, row

    work = make_workload(tasks)
    parity.check(work)
    network, them = parity.to_torch(work)
    eager = MetaStep(network, them, UNROLL, RATE)

    def pinned(threads: int):
        def run():
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
            eager()

        return run, 20 if tasks == ONE else 4

    ours, baseline, compile_seconds = [], [], []
    for _ in range(2 if quick else 6):
        program = build(work, meta_steps=100 if tasks == ONE else 1, devices=devices)
        contestants = {"ours": (program.run, 2 if tasks == ONE else 10), "1": pinned(1)}
        if tasks > ONE:
            contestants["2"] = pinned(2)
        times = in_turns(contestants, rounds=3 if quick else 7)
        ours.append(tasks * UNROLL * program.meta_steps / times.pop("ours"))
        baseline.append(tasks * UNROLL / min(times.values()))
        compile_seconds.append(program.compile_seconds)
        check_finite(program)
    where = "" if tasks == ONE else f", {devices} device" + "s" * (devices > 1)
    name = f"2D meta-step, {tasks:,} task{'s' * (tasks > 1)}{where}"
    required, goal = TARGETS[tasks, devices]
    found = row(name, ours, baseline, "inner steps/s", compile_seconds, required=required, goal=goal)
    return found | {"threads": threads}


def main() -> None:
    """What the child does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    wanted = [MANY] if (options.devices, options.threads) != (1, 1) else [ONE, MANY]
    print(json.dumps([measure(tasks, options.devices, options.threads, options.quick) for tasks in wanted]))


if __name__ == "__main__":
    main()
