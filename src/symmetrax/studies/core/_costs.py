"""Costs and gains of arms: gradients and seconds along a run, the cost to a target, teleports in numbers."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import rich.table
from jaxtyping import Bool, Float

from symmetrax.rollout._unroll import MakeTransform
from symmetrax.studies.core._arm import Tuned
from symmetrax.studies.core._console import arms_table, number, ratio_text, titled_table
from symmetrax.studies.core._played import judged
from symmetrax.studies.core._recorded import OWN, Given
from symmetrax.studies.core._run import Run
from symmetrax.studies.core._runs import Runs, run_many
from symmetrax.studies.core._statistics import compare, intervals
from symmetrax.studies.core._streams import Streams
from symmetrax.studies.core._study import Claim, Study
from symmetrax.studies.core._tuning import for_seeds, tune
from symmetrax.tasks._base import AbstractTaskFamily

#: What is recorded of every step, beside what a study watches at teleports.
WATCHED = ("algebra", "evaluations", "step_length", "jump", "rise")

#: How often a run is timed, unless that takes long.
TIMINGS = 10


@dataclasses.dataclass(frozen=True)
class Costed:
    """The runs of an arm that teleports at the steps `when`, and what they cost.

    `plain_seconds` is what the same program takes when no teleport is due. `search` counts the gradients of
    a search where it is not what the optimizer's state says, and `after` those that a teleport needs beside:
    one at the new point, unless the symmetry carries the old one there.

    >>> Costed.__dataclass_fields__["after"].default
    1.0
    """

    runs: Runs
    when: Bool[np.ndarray, " steps"]
    hyper: dict[str, float]
    plain_seconds: float
    after: float = 1.0
    search: float | None = None

    @property
    def teleports(self) -> int:
        """The number of teleports in a run."""
        return int(np.sum(self.when))

    @property
    def evaluations(self) -> Float[np.ndarray, " points"]:
        """Gradient evaluations spent when each loss is reached; the start is free."""
        if not self.teleports:
            return self._along(1.0, 0.0)
        search = self.search
        if search is None:
            search = float(np.mean(self.runs.recorded["evaluations"][..., -1])) / self.teleports
        return self._along(1.0, search + self.after)

    @property
    def seconds(self) -> Float[np.ndarray, " points"]:
        """Seconds that one run takes among all the others, when each loss is reached."""
        extra = (self.runs.seconds - self.plain_seconds) / max(self.teleports, 1)
        return self._along(self.plain_seconds / self.runs.steps, extra) / self.runs.runs

    def first(self, steps: int) -> "Costed":
        """The first steps of an arm that never teleports, as if it had stopped there."""
        part, ran = steps / self.runs.steps, self.runs
        own = {name: values[..., :steps] for name, values in ran.recorded.items()}
        ran = Runs(ran.losses[..., : steps + 1], own, ran.measured, part * ran.seconds)
        return dataclasses.replace(
            self, runs=ran, when=self.when[:steps], plain_seconds=part * self.plain_seconds
        )

    def _along(self, step: float, teleport: float) -> Float[np.ndarray, " points"]:
        return np.concatenate([[0.0], np.cumsum(step + teleport * self.when)])


@dataclasses.dataclass(frozen=True)
class Trials:
    """Arms that run one by one on the same tasks of a family, each with a schedule and hyperparameters.

    Learning rates are tuned over `rates`, on `tuning_tasks` tasks of the family `practice`. `watched` names
    what the arms watch at their teleports.

    >>> Trials.__dataclass_fields__["watched"].default
    ()
    """

    family: AbstractTaskFamily
    practice: AbstractTaskFamily
    streams: Streams
    tasks: int
    tuning_tasks: int
    rates: tuple[float, ...]
    watched: tuple[str, ...] = ()

    def run(
        self,
        make: MakeTransform,
        hyper: dict[str, float],
        when: Bool[np.ndarray, " steps"],
        *,
        length: Any = OWN,
        size: Any = 0.0,
        **costs: float,
    ) -> Costed:
        """Run an arm on all tasks.

        It gets its hyperparameters, the schedule "when", and for each step the "length" of its step and the
        "size" of its teleport: numbers, or arrays with the axes seeds, tasks, steps, such as another arm's.
        """
        seeds = len(self.streams.test)
        shape = (seeds, self.tasks, len(when))
        given = {"length": length, "size": size}
        along = {name: jnp.broadcast_to(jnp.asarray(x, float), shape) for name, x in given.items()}

        def timed(when: np.ndarray) -> Runs:
            networks = for_seeds({**hyper, "when": when}, seeds)
            options: dict[str, Any] = {"steps": len(when), "tasks": self.tasks, "along": along}
            watch = (*WATCHED, "spent", *self.watched)
            arguments = (Given(make), networks, self.family, self.streams.test)
            return run_many(*arguments, watch=watch, parts=None, timings=TIMINGS, **options)

        ran = timed(when)
        plain = timed(np.zeros_like(when)).seconds if np.any(when) else ran.seconds
        return Costed(ran, np.asarray(when), hyper, min(plain, ran.seconds), **costs)

    def tuned(
        self, make: MakeTransform, hyper: dict[str, float], when: Bool[np.ndarray, " steps"], **costs: float
    ) -> Costed:
        """Run an arm at its best learning rate."""
        (best,) = self.best(make, hyper, when, len(when))
        return self.run(make, best, when, **costs)

    def counted(
        self, make: MakeTransform, hyper: dict[str, float], when: Bool[np.ndarray, " steps"]
    ) -> Costed:
        """Run an arm that searches the level set, and count the gradients that it really spends."""
        timed, counted = (self.run(make, {**hyper, "counted": flag}, when) for flag in (0.0, 1.0))
        spent = float(np.mean(counted.runs.recorded["spent"][..., when]))
        return dataclasses.replace(timed, search=spent, hyper=hyper)

    def best(
        self, make: MakeTransform, hyper: dict[str, float], when: Bool[np.ndarray, " steps"], *horizons: int
    ) -> list[dict[str, float]]:
        """The hyperparameters with the rate of the lowest upper quartile of losses, for each horizon."""
        fixed: dict[str, Any] = {
            name: value for name, value in hyper.items() if name not in ("rate", "momentum")
        }
        fixed["when"] = tuple(np.asarray(when).tolist())
        arm = Tuned("arm", make, self.rates, (hyper.get("momentum", 0.0),), fixed=fixed)
        options: dict[str, Any] = {"horizons": horizons, "tasks": self.tuning_tasks, "score": 0.75}
        found = tune([arm], self.practice, self.streams.tune, **options)
        return [{**hyper, "rate": found[steps]["arm"]["rate"]} for steps in horizons]


def around(rate: float, ratio: float, count: int) -> tuple[float, ...]:
    """That many learning rates, `rate` in the middle, each `ratio` times the one before.

    >>> around(0.1, 2.0, 3)
    (0.05, 0.1, 0.2)
    """
    return tuple((rate * ratio ** (np.arange(count) - count // 2.0)).tolist())


def copied(values: Any, default: float = OWN) -> np.ndarray:
    """Lengths or sizes for another arm to copy, with a default where they are not finite.

    >>> copied(np.array([1.0, np.nan])).tolist()
    [1.0, -1.0]
    """
    return np.where(np.isfinite(values), values, default)


def padded(lengths: Float[np.ndarray, "seeds tasks steps"], steps: int) -> np.ndarray:
    """Lengths for a run of more steps, which takes its own after those given.

    >>> padded(np.array([[[1.0, np.nan]]]), 3).tolist()
    [[[1.0, -1.0, -1.0]]]
    """
    more = ((0, 0), (0, 0), (0, steps - lengths.shape[-1]))
    return np.pad(copied(lengths), more, constant_values=OWN)


@dataclasses.dataclass(frozen=True)
class Group:
    """A group of results to make: `arms()` runs its arms, and claims are judged `where` they are made.

    All arms are compared with the `references`, and what they spend with that of the arm `target`.

    >>> Group("none", dict, (), "nowhere", (), "gd").name
    'none'
    """

    name: str
    arms: Callable[[], dict[str, Costed]]
    claims: Iterable[Claim]
    where: str
    references: tuple[str, ...]
    target: str


def compared(run: Run, groups: Iterable[Group]) -> dict[str, Any]:
    """The results of all groups: statistics, costs and verdicts; writes the losses."""
    found, verdicts, arrays = {}, [], {}
    for group in groups:
        run.reporter.note(f"{group.name}: tune learning rates, run all arms")
        arms = group.arms()
        found[group.name] = {"arms": _described(arms, group.references, group.target), "target": group.target}
        losses = {name: arm.runs.losses for name, arm in arms.items()}
        verdicts += judged(group.claims, losses, f"{group.where}: {{}}")
        stride = max(1, min(len(arm.when) for arm in arms.values()) // 100)
        for name, values in losses.items():
            arrays[f"{group.name}.{name}"] = values[..., ::stride].astype(np.float32)
    run.folder.arrays("losses", arrays)
    return {"groups": found, "verdicts": verdicts}


def _described(
    arms: dict[str, Costed], references: tuple[str, ...], target: str
) -> dict[str, dict[str, Any]]:
    """The arms of a group of `results.json`: the usual statistics, costs along the run, and the teleports.

    `to_target` compares, run by run, what an arm spends until its loss is at most the final loss of the arm
    `target` with what that one spends: in gradient evaluations and in seconds. Where `target` diverges there
    is no goal, and it is a tie.
    """
    found = compare({a: arm.runs.losses for a, arm in arms.items()}, references, arms[target].runs.runs)
    reached = {axis: _to_target(arms, target, axis) for axis in ("evaluations", "seconds")}
    for name, arm in arms.items():
        found[name] |= {
            "steps": len(arm.when),
            "teleports": arm.teleports,
            "gradient_evaluations": float(arm.evaluations[-1]),
            "seconds": arm.runs.seconds,
            "evaluations_curve": arm.evaluations.tolist(),
            "seconds_curve": arm.seconds.tolist(),
            "hyperparameters": arm.hyper,
            "to_target": {axis: reached[axis][name] for axis in reached},
            "jumps": _jumps(arm),
        }
    return found


def tables(study: Study, results: dict[str, Any]) -> Iterator[rich.table.Table]:
    """Final losses, teleports and costs to the target of every group."""
    for name, group in results["groups"].items():
        arms, target = group["arms"], group["target"]
        runs, first = next(iter(arms.values()))["runs"], next(iter(arms))
        yield arms_table(f"{name}: final loss, all {runs:,} runs", arms, first)
        yield _teleports_table(f"{name}: teleports, median (largest)", arms)
        words = f"cost until the loss is as low as {target}'s at last, over what {target} spends"
        yield _target_table(f"{name}: {words}", arms)


def _teleports_table(title: str, arms: dict[str, dict[str, Any]]) -> rich.table.Table:
    """Measurements at the teleports of each arm that has any: medians, and the largest in size."""
    jumps = {name: arm["jumps"] for name, arm in arms.items() if arm["jumps"]}
    seen = [name for name in dict.fromkeys(n for jump in jumps.values() for n in jump) if name != "lost"]
    table = titled_table(title, "arm", ("number", *seen, "not finite"))
    for name, jump in jumps.items():
        lost = f"{jump['lost'][0]:.0%}"
        table.add_row(name, str(arms[name]["teleports"]), *(_spread(jump.get(key)) for key in seen), lost)
    return table


def _target_table(title: str, arms: dict[str, dict[str, Any]]) -> rich.table.Table:
    """The costs of each arm until its loss is as low as the target's at last, over those of the target."""
    table = titled_table(title, "arm", ("gradient evaluations (95 %)", "seconds (95 %)"))
    for name, arm in arms.items():
        table.add_row(name, *(ratio_text(arm["to_target"][axis]) for axis in ("evaluations", "seconds")))
    return table


def _spread(quantiles: list | None) -> str:
    """A median, and the largest in size."""
    if quantiles is None:
        return ""
    middle, most = (number(x) for x in quantiles)
    return f"{middle:.2g} ({most:.2g})"


def _jumps(arm: Costed) -> dict[str, list[float]]:
    """Median and largest size of everything seen at the teleports of all runs, and the share not finite."""
    if not arm.teleports:
        return {}
    skipped = ("algebra", "evaluations", "step_length", "length", "gradient_norm", "spent")
    values = {"length": arm.runs.recorded["jump"]}
    values |= {k: x for k, x in arm.runs.recorded.items() if k not in (*skipped, "jump")}
    values = {name: x[..., arm.when].ravel() for name, x in values.items()}
    whole = np.all([np.isfinite(x) for x in values.values()], axis=0)
    found = {"lost": [float(np.mean(~whole))]}
    for name, x in values.items():
        kept = x[whole].astype(float)
        if kept.size:
            found[name] = [float(np.median(kept)), float(np.max(np.abs(kept)))]
    return found


def _to_target(arms: dict[str, Costed], reference: str, axis: str) -> dict[str, dict[str, float]]:
    """Log ratio, with interval, of what an arm and the reference spend until the reference's final loss."""
    target = arms[reference].runs.losses[..., -1:]
    lost = ~np.isfinite(target)
    target = np.where(lost, np.inf, target)
    spent = {}
    for name, arm in arms.items():
        losses = arm.runs.losses
        below = np.where(np.isfinite(losses), losses, np.inf) <= target
        first = np.argmax(below, axis=-1)
        cost = getattr(arm, axis)
        spent[name] = np.where(np.any(below, axis=-1), cost[np.maximum(first, 1)], np.inf)
    ratios = {}
    for name, ours in spent.items():
        with np.errstate(divide="ignore"):
            ratios[name] = np.where(lost[..., 0], 0.0, np.log(ours) - np.log(spent[reference]))
    return {name: interval._asdict() for name, interval in intervals(ratios).items()}
