"""Records what the quick presets of all experiments give, and compares a later tree with it.

    python golden/golden.py record [NAME ...]    run, and write golden/results/NAME.json.gz
    python golden/golden.py compare [NAME ...]   run, and list what differs; exit code 1 if anything does

Each experiment runs in a process of its own at two seeds. Words (verdicts) and whole numbers (runs, failures)
must be equal, other numbers within `--tolerance`; wall-clock is left out. Of a sequence of numbers, such as a
loss at every step, the first and the last are kept. Results depend in their last digits on the processor, and
after many steps in more: record and compare on one machine.
"""

import argparse
import gzip
import json
import math
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from symmetrax.studies._registry import EXPERIMENTS

RESULTS = pathlib.Path(__file__).parent / "results"
SEEDS = (0, 1)

#: What measures the machine, not the experiment.
TIMES = re.compile(r"second|wall|compil|machine|version|path|milliseconds|_ms$|gigabytes", re.IGNORECASE)

#: Significant digits that are kept.
DIGITS = 6


def facts(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """All numbers and words of a tree of results, by where they stand; of long sequences the ends."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if not TIMES.search(str(key)):
                yield from facts(value, f"{name}/{key}")
    elif isinstance(tree, list):
        rows = all(isinstance(x, dict) for x in tree)
        ends = range(len(tree)) if len(tree) <= (50 if rows else 3) else (0, len(tree) - 1)
        yield f"{name}/length", len(tree)
        for k in ends:
            yield from facts(tree[k], f"{name}/{k}")
    elif isinstance(tree, float):
        yield name, float(f"{tree:.{DIGITS}g}") if math.isfinite(tree) else str(tree)
    elif "why" not in name.rsplit("/", 1)[-1]:  # sentences repeat the numbers
        yield name, tree


def run(name: str, seed: int) -> dict[str, Any]:
    """The facts of one run."""
    with tempfile.TemporaryDirectory() as place:
        out = pathlib.Path(place, "run")
        command = [sys.executable, "-m", "symmetrax.cli", "run", name, "--preset", "quick"]
        done = subprocess.run(
            [*command, "--seed", str(seed), "--out", str(out)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{name}, seed {seed}, failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        return dict(facts(json.loads((out / "results.json").read_text())))


def differences(before: dict[str, Any], after: dict[str, Any], tolerance: float) -> Iterator[str]:
    """What differs, one line each. Facts that are new are none."""
    for name in sorted(before):
        one, other = before[name], after.get(name, "nothing")
        numbers = all(isinstance(x, float | int) and not isinstance(x, bool) for x in (one, other))
        whole = all(isinstance(x, int) for x in (one, other))
        if numbers and not whole and math.isclose(one, other, rel_tol=tolerance, abs_tol=1e-12):
            continue
        if one != other:
            yield f"  {name}: {one} -> {other}"


def main() -> None:
    """Record or compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["record", "compare"])
    parser.add_argument("names", nargs="*", metavar="NAME", help="experiments; default: all")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="relative, for numbers (1e-3)")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="of a comparison (0 1)")
    options = parser.parse_args()
    if unknown := set(options.names) - set(EXPERIMENTS):
        parser.error(f"unknown experiments: {', '.join(sorted(unknown))}")
    RESULTS.mkdir(exist_ok=True)
    changed = 0
    for name in options.names or EXPERIMENTS:
        path, start = RESULTS / f"{name}.json.gz", time.perf_counter()
        if options.action == "compare" and not path.exists():
            print(f"{name}: nothing is recorded", flush=True)
            continue
        found = {str(seed): run(name, seed) for seed in options.seeds}
        spent = f"{time.perf_counter() - start:.0f} s"
        if options.action == "record":
            path.write_bytes(gzip.compress(json.dumps(found).encode(), mtime=0))
            print(f"{name}: recorded {sum(map(len, found.values()))} facts in {spent}", flush=True)
            continue
        before = json.loads(gzip.decompress(path.read_bytes()))
        lines = [line for seed in found for line in differences(before[seed], found[seed], options.tolerance)]
        changed += bool(lines)
        print(f"{name}: {len(lines)} differences in {spent}", *lines[:20], sep="\n", flush=True)
    sys.exit(1 if changed else 0)


if __name__ == "__main__":
    main()
