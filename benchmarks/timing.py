"""How times are taken: whoever is compared runs in turns, and medians are what counts."""

import statistics
import time
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

Name = TypeVar("Name", bound=Hashable)


def in_turns(contestants: dict[Name, tuple[Callable[[], Any], int]], rounds: int) -> dict[Name, list[float]]:
    """Seconds per call of each contestant `(call, calls per round)`, one number per round.

    They take turns, so that a busy neighbour hits all of them, after one unmeasured call each. A call must
    return when its work is done. The pause lets one engine's threads fall asleep before another starts.
    """
    times: dict[Name, list[float]] = {name: [] for name in contestants}
    for call, _ in contestants.values():
        call()
    for _ in range(rounds):
        for name, (call, calls) in contestants.items():
            time.sleep(0.02)
            began = time.perf_counter()
            for _ in range(calls):
                call()
            times[name].append((time.perf_counter() - began) / calls)
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
    """One line of the table, from pairs of measurements, one per rebuild: medians, and the ratio's spread."""
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
