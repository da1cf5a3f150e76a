"""How times are taken: whoever is compared runs in turns, and medians are what counts."""

import statistics
import time
from collections.abc import Callable
from typing import Any


def seconds(call: Callable[[], Any], calls: int) -> float:
    """Seconds per call, over `calls` of them; a call must return when its work is done."""
    began = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - began) / calls


def in_turns(contestants: dict[str, tuple[Callable[[], Any], int]], rounds: int) -> dict[str, list[float]]:
    """Seconds per call of each contestant `(call, calls per round)`, one number per round.

    They take turns, so that a busy neighbour hits all of them, after one unmeasured call each. The pause
    between turns lets the thread pool of one engine fall asleep before another starts.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for call, _ in contestants.values():
        call()
    for _ in range(rounds):
        for name, (call, calls) in contestants.items():
            time.sleep(0.02)
            times[name].append(seconds(call, calls))
    return times


def row(
    name: str,
    ours: list[float],
    baseline: list[float],
    unit: str,
    compile_seconds: list[float],
    *,
    better: str = "higher",
    required: float | None = None,
    goal: float | None = None,
) -> dict[str, Any]:
    """One line of the table from paired measurements, one per rebuild: medians, and the spread of the ratio."""
    ratios = [a / b for a, b in zip(ours, baseline, strict=True)]
    return {
        "name": name,
        "ours": statistics.median(ours),
        "baseline": statistics.median(baseline),
        "ratio": statistics.median(ratios),
        "spread": [min(ratios), max(ratios)],
        "unit": unit,
        "compile_seconds": statistics.median(compile_seconds),
        "better": better,
        "required": required,
        "goal": goal,
    }
