"""What arms cost and gain: gradients and seconds along a run, the cost to a target, teleports in numbers."""

import dataclasses
from typing import Any

import numpy as np
import rich.table
from jaxtyping import Float

from symmetrax.studies.core._console import number, ratio_text, titled_table
from symmetrax.studies.core._lanes import OWN, Runs
from symmetrax.studies.core._statistics import intervals, log_ratios, summary, verdict


@dataclasses.dataclass(frozen=True)
class Arm:
    """What an arm did on all runs: its record, what one teleport costs in gradients, its settings.

    `after` counts gradients that a teleport needs beside its search: one at the new point, unless the
    symmetry carries the old one there.

    >>> Arm.__dataclass_fields__["after"].default
    1.0
    """

    ran: Runs
    hyper: dict[str, float]
    after: float = 1.0
    search: float | None = None

    @property
    def teleports(self) -> int:
        """The number of teleports in a run."""
        return int(np.sum(self.ran.when))

    @property
    def evaluations(self) -> Float[np.ndarray, " points"]:
        """Gradient evaluations spent when each loss is reached; the start is free."""
        if not self.teleports:
            return self._along(1.0, 0.0)
        spent = float(np.mean(self.ran.log.evaluations)) / self.teleports
        return self._along(1.0, (spent if self.search is None else self.search) + self.after)

    @property
    def seconds(self) -> Float[np.ndarray, " points"]:
        """Seconds that one run takes among all the others, when each loss is reached."""
        lanes, steps = self.ran.log.length.shape
        extra = (self.ran.seconds - self.ran.plain_seconds) / max(self.teleports, 1)
        return self._along(self.ran.plain_seconds / steps, extra) / lanes

    def losses(self, seeds: int) -> Float[np.ndarray, "seeds tasks points"]:
        """The losses with the axes of the statistics."""
        losses = np.asarray(self.ran.log.loss)
        return losses.reshape(seeds, -1, losses.shape[-1])

    def _along(self, step: float, teleport: float) -> Float[np.ndarray, " points"]:
        return np.concatenate([[0.0], np.cumsum(step + teleport * self.ran.when)])


def copied(values: Any, default: float = OWN) -> np.ndarray:
    """Lengths or sizes for another arm to copy, with a default where they are not finite.

    >>> copied(np.array([1.0, np.nan])).tolist()
    [1.0, -1.0]
    """
    return np.where(np.isfinite(values), values, default)


def describe(
    arms: dict[str, Arm], references: tuple[str, ...], seeds: int, target: str
) -> dict[str, dict[str, Any]]:
    """The arms of a group of `results.json`: the usual statistics, costs along the run, and the teleports.

    `to_target` compares, run by run, what an arm spends until its loss is at most the final loss of the arm
    `target` with what that one spends: in gradient evaluations and in seconds. Where `target` diverges there
    is nothing to reach, and it is a tie.
    """
    pairs = {(a, b): _ratios(arms[a], arms[b], seeds) for a in arms for b in references if a != b}
    versus = intervals(pairs)
    runs = len(arms[target].ran.log.loss)
    found = {
        a: {
            **summary(arm.losses(seeds), runs),
            "versus": {b: versus[a, b]._asdict() for b in references if a != b},
        }
        for a, arm in arms.items()
    }
    reached = {axis: _to_target(arms, target, seeds, axis) for axis in ("evaluations", "seconds")}
    for name, arm in arms.items():
        found[name] |= {
            "steps": len(arm.ran.when),
            "teleports": arm.teleports,
            "gradient_evaluations": float(arm.evaluations[-1]),
            "seconds": arm.ran.seconds,
            "evaluations_curve": arm.evaluations.tolist(),
            "seconds_curve": arm.seconds.tolist(),
            "hyperparameters": arm.hyper,
            "to_target": {axis: reached[axis][name] for axis in reached},
            "jumps": _jumps(arm),
        }
    return found


def ask(
    rows: list[tuple[str, str, str, str]], arms: dict[str, Arm], seeds: int, where: str
) -> list[dict[str, str]]:
    """Verdicts on rows of (arm, other arm, claim that the first ends lower, source)."""
    found = intervals({(a, b): _ratios(arms[a], arms[b], seeds) for a, b, _, _ in rows})
    return [verdict(f"{where}: {claim}", source, found[a, b]) for a, b, claim, source in rows]


def _ratios(ours: Arm, theirs: Arm, seeds: int) -> np.ndarray:
    """Paired log ratios of final losses, of runs that may differ in length."""
    return log_ratios(*(arm.losses(seeds)[..., [0, -1]] for arm in (ours, theirs)))


def teleports_table(title: str, arms: dict[str, dict[str, Any]]) -> rich.table.Table:
    """What was measured at the teleports of each arm that has any: medians, and the largest in size."""
    table = titled_table(title)
    jumps = {name: arm["jumps"] for name, arm in arms.items() if arm["jumps"]}
    seen = [name for name in dict.fromkeys(n for jump in jumps.values() for n in jump) if name != "lost"]
    table.add_column("arm", no_wrap=True)
    for name in ("number", *seen, "not finite"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, jump in jumps.items():
        lost = f"{jump['lost'][0]:.0%}"
        table.add_row(name, str(arms[name]["teleports"]), *(_spread(jump.get(key)) for key in seen), lost)
    return table


def target_table(title: str, arms: dict[str, dict[str, Any]]) -> rich.table.Table:
    """What each arm spends until its loss is as low as the target's at last, over what the target spends."""
    table = titled_table(title)
    table.add_column("arm", no_wrap=True)
    table.add_column("gradient evaluations (95 %)", justify="right", no_wrap=True)
    table.add_column("seconds (95 %)", justify="right", no_wrap=True)
    for name, arm in arms.items():
        table.add_row(name, *(ratio_text(arm["to_target"][axis]) for axis in ("evaluations", "seconds")))
    return table


def _spread(quantiles: list | None) -> str:
    """A median, and the largest in size."""
    if quantiles is None:
        return ""
    middle, most = (number(x) for x in quantiles)
    return f"{middle:.2g} ({most:.2g})"


def _jumps(arm: Arm) -> dict[str, list[float]]:
    """Median and largest size of everything seen at the teleports of all runs, and the share not finite."""
    if not arm.teleports:
        return {}
    log, when = arm.ran.log, arm.ran.when
    seen = {"length": log.jump, **log.seen}
    values = {name: x[:, when].ravel() for name, x in seen.items()}
    whole = np.all([np.isfinite(x) for x in values.values()], axis=0)
    found = {"lost": [float(np.mean(~whole))]}
    for name, x in values.items():
        kept = x[whole].astype(float)
        if kept.size:
            found[name] = [float(np.median(kept)), float(np.max(np.abs(kept)))]
    return found


def _to_target(arms: dict[str, Arm], reference: str, seeds: int, axis: str) -> dict[str, dict[str, float]]:
    """Log ratio, with interval, of what an arm and the reference spend until the reference's final loss."""
    target = arms[reference].losses(seeds)[..., -1:]
    lost = ~np.isfinite(target)
    target = np.where(lost, np.inf, target)
    spent = {}
    for name, arm in arms.items():
        losses = arm.losses(seeds)
        below = np.where(np.isfinite(losses), losses, np.inf) <= target
        first = np.argmax(below, axis=-1)
        cost = getattr(arm, axis)
        spent[name] = np.where(np.any(below, axis=-1), cost[np.maximum(first, 1)], np.inf)
    ratios = {}
    for name, ours in spent.items():
        with np.errstate(divide="ignore"):
            ratios[name] = np.where(lost[..., 0], 0.0, np.log(ours) - np.log(spent[reference]))
    return {name: interval._asdict() for name, interval in intervals(ratios).items()}
