"""All benchmarks: `python benchmarks/run.py [--json] [--quick]`.

Ratios are what to read: both sides of each were measured in turns in one process. Absolute numbers belong
to the machine and to what else ran on it. Each script runs in a process of its own, because the number of
host devices and of XLA's threads are fixed when jax starts.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

#: Script, host devices, threads. Where a row is measured twice, the better one counts, as for PyTorch.
CHILDREN = (
    ("meta_step.py", 1, 1),
    ("meta_step.py", 1, 2),
    ("meta_step.py", 2, 1),
    ("network_meta_steps.py", 1, 1),
    ("network_meta_steps.py", 1, 2),
    ("teleport_cost.py", 1, 1),
    ("network_teleports.py", 1, 1),
)


def main(json_output: bool = False, quick: bool = False) -> None:
    """Run everything and print a table, or with `json_output` a list of rows; `quick` takes fewer rounds."""
    if importlib.util.find_spec("torch") is None:
        print(
            "symmetrax bench: PyTorch is not installed; `make bench` installs it and runs.", file=sys.stderr
        )
        raise SystemExit(2)
    rows = measure(quick)
    if json_output:
        print(json.dumps(rows, indent=2))
    else:
        show(rows)


def measure(quick: bool) -> list[dict[str, Any]]:
    """All rows, in the order of CHILDREN."""
    best: dict[str, dict[str, Any]] = {}
    for script, devices, threads in CHILDREN:
        print(f"{script}: {devices} device(s), {threads} thread(s) ...", file=sys.stderr)
        for row in child(script, devices, threads, quick):
            known = best.setdefault(row["name"], row)
            lower = row["better"] == "lower"
            if (row["ratio"] < known["ratio"]) if lower else (row["ratio"] > known["ratio"]):
                best[row["name"]] = row
    return list(best.values())


def child(script: str, devices: int, threads: int, quick: bool) -> list[dict[str, Any]]:
    """The rows that a script prints, in a process with so many host devices and threads."""
    others = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
    environment = {
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # compile times are measured
        "XLA_FLAGS": f"{others} --xla_force_host_platform_device_count={devices}".strip(),
        "PJRT_NPROC": str(threads),  # the size of XLA's thread pool
        "NPROC": str(threads),  # and its older name
    }
    command = [sys.executable, str(pathlib.Path(__file__).with_name(script))]
    command += ["--devices", str(devices), "--threads", str(threads)] + ["--quick"] * quick
    done = subprocess.run(
        command, env=os.environ | environment, stdout=subprocess.PIPE, text=True, timeout=600
    )
    if done.returncode:
        raise SystemExit(f"symmetrax bench: {script} failed, see above.")
    return json.loads(done.stdout)


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table, wide enough for its numbers even where the output is not a terminal."""
    table = Table(title="medians over rebuilds, with the range of the ratio", title_justify="left")
    table.add_column("")
    for heading in ("ours", "baseline", "unit", "ratio", "required", "goal", "compile"):
        table.add_column(heading, justify="left" if heading == "unit" else "right", no_wrap=True)
    for row in rows:
        lower = row["better"] == "lower"
        required, goal = (
            "" if bound is None else f"{'<=' if lower else '>='} {bound:g}"
            for bound in (row["required"], row["goal"])
        )
        low, high = row["spread"]
        table.add_row(
            row["name"],
            number(row["ours"]),
            number(row["baseline"]),
            row["unit"],
            f"[{color(row)}]{row['ratio']:.2f}[/] ({low:.2f}-{high:.2f})",
            required,
            goal,
            f"{row['compile_seconds']:.1f} s",
        )
    console = Console()
    console.width = max(console.width, 120)
    console.print(table)


def color(row: dict[str, Any]) -> str:
    """Red where the ratio misses what is required, yellow where it misses the goal."""

    def met(bound: float | None) -> bool:
        return bound is None or (row["ratio"] <= bound if row["better"] == "lower" else row["ratio"] >= bound)

    return "red" if not met(row["required"]) else "green" if met(row["goal"]) else "yellow"


def number(value: float) -> str:
    """Three digits, with thousands separated."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print rows as JSON")
    parser.add_argument("--quick", action="store_true", help="fewer rebuilds and rounds")
    options = parser.parse_args()
    main(options.json, options.quick)
