"""Running all experiments one after another, each in a process of its own, with one table at the end."""

import collections
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import rich.progress
import rich.table

from symmetrax.cli import main
from symmetrax.studies._registry import EXPERIMENTS
from symmetrax.studies.core._console import Reporter, titled_table
from symmetrax.studies.core._folder import read_results

#: What to call outcomes in a table of all experiments, in this order.
OUTCOMES = ("reproduced", "reversed", "inconclusive")


def run_all(
    preset: str = "full", out: str | Path = "runs", seed: int = 0, names: Iterable[str] = EXPERIMENTS
) -> dict[str, str]:
    """Run experiments, each in its folder `OUT/NAME-PRESET-SEED`; return what went wrong, by name.

    Complete runs are not repeated, and the one that a kill has stopped goes on from there. What an experiment
    prints is kept beside its folder, in `NAME-PRESET-SEED.log`. If one fails, the others still run.
    """
    reporter, names = Reporter(), list(names)
    failed: dict[str, str] = {}
    results: dict[str, dict[str, Any]] = {}
    with _progress(reporter, len(names)) as advance:
        for name in names:
            advance(name)
            folder = Path(out, f"{name}-{preset}-{seed}")
            problem = None if read_results(folder) is not None else _run(name, preset, seed, folder)
            found = None if problem else read_results(folder)
            if found is None:
                failed[name] = problem or "it left no results"
            else:
                results[name] = found
    reporter.print(overview(results, failed))
    return failed


def _run(name: str, preset: str, seed: int, folder: Path) -> str | None:
    """Run one experiment in a process of its own; return the last line of its errors if it fails."""
    # One process could not hold the programs of all: every compiled program takes memory maps, which are few.
    child = f"from symmetrax.studies._all import run_as_child; run_as_child({os.getpid()})"
    arguments = ["run", name, "--preset", preset, "--seed", str(seed), "--out", str(folder)]
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_name(f"{folder.name}.log")
    with log.open("w") as file:
        done = subprocess.run(
            [sys.executable, "-c", child, *arguments], stdout=file, stderr=subprocess.STDOUT, check=False
        )
    if not done.returncode:
        return None
    lines = log.read_text().strip().splitlines()
    return f"{lines[-1] if lines else f'exit code {done.returncode}'} (see {log})"


def run_as_child(parent: int) -> None:
    """Run the command line in `sys.argv`, and end when process `parent` does, or its folder stays held."""
    # Asked of the kernel here, not between fork and exec: the parent has threads, which a fork would break.
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit("the process that started this experiment has ended")
    main()


@contextlib.contextmanager
def _progress(reporter: Reporter, total: int) -> Iterator[Any]:
    """A bar over all experiments that names the present one; yields a function to go to the next."""
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
    )
    with rich.progress.Progress(*columns, console=reporter.errors) as bar:
        task, started = bar.add_task("all experiments", total=total), []

        def advance(name: str) -> None:
            bar.update(task, description=name, completed=len(started))
            started.append(name)

        yield advance
        bar.update(task, description="all experiments", completed=total)


def overview(results: dict[str, dict[str, Any]], failed: dict[str, str]) -> rich.table.Table:
    """One row for each experiment: what became of its claims, how long it took, and the first claim.

    >>> row = {"outcome": "reversed", "claim": "teleports help", "source": "section 5", "why": ""}
    >>> overview({"fig3": {"verdicts": [row], "seconds": 30.0}}, {"fig4": "it was killed"}).row_count
    2
    """
    table = titled_table("all experiments", "experiment", ())
    for name, justify in (("claims", "left"), ("seconds", "right"), ("the first claim", "left")):
        table.add_column(name, justify=justify)  # pyright: ignore[reportArgumentType]
    for name, found in results.items():
        rows = found.get("verdicts", [])
        counts = collections.Counter(row["outcome"] for row in rows)
        known = (*OUTCOMES, *sorted(set(counts) - set(OUTCOMES)))
        said = ", ".join(f"{counts[outcome]} {outcome}" for outcome in known if counts[outcome])
        first = f"{rows[0]['claim']} ({rows[0]['source']}): {rows[0]['outcome']}" if rows else ""
        table.add_row(name, said, f"{float(found.get('seconds', 'nan')):.0f}", first)
    for name, problem in failed.items():
        table.add_row(name, "failed", "", problem)
    return table
