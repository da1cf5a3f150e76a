"""Does learned momentum go with what a teleport does to the gradient?

Networks of arXiv:2504.15399, section 5.2, that learn a step size, a momentum beta_t and a group element a_t
are run on unseen tasks. For every teleport the gain ||grad f(a_t.x)|| / ||grad f(x)|| is measured from the
recorded points, outside of the optimizer and on all data, and correlated with the momentum emitted at that
step, and at the next one, which is the first to see the gradient after the teleport. Both drift with time:
beside the plain correlations stand those at equal step, and those with the momentum of another run.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import numpy as np
import optax
from jaxtyping import Array, Key, PyTree

from symmetrax._tree import safe_norm
from symmetrax.learned._update_rule import UpdateRule
from symmetrax.metatrain._devices import spread
from symmetrax.rollout._unroll import draw_many, unroll_many
from symmetrax.studies import _fig7_arms, plots_learning
from symmetrax.studies._classifiers import Size, image_family, trained_arm
from symmetrax.studies.core._arm import Learned, switched_off
from symmetrax.studies.core._console import Reporter, number, titled_table, verdict_table
from symmetrax.studies.core._correlations import MEASURES, correlations, fisher_interval
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._meta_training import Budget, train
from symmetrax.studies.core._runs import due
from symmetrax.studies.core._statistics import Interval, compare, t_interval, verdict
from symmetrax.studies.core._streams import Streams
from symmetrax.tasks._base import AbstractTask
from symmetrax.tasks._supervised import Classification, Widths

SOURCE = "not in the paper: a check"
KINDS = ("spearman", "pearson")
#: The momentum that is paired with the gain of a teleport: that of its own step, and of the next.
PAIRINGS = ("same step", "next step")


@dataclasses.dataclass(frozen=True)
class Group:
    """Networks trained on "regression-20", "regression-20-gaussian" (algorithm 3) or "digits" (the networks
    for any width).

    >>> Group("digits", Budget(runs=60, seeds=6, steps=100, tasks=8)).width
    16
    """

    name: str
    budget: Budget
    networks: _fig7_arms.Networks = dataclasses.field(default_factory=_fig7_arms.Networks)
    size: Size = dataclasses.field(default_factory=Size)
    width: Widths = 16


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run; `tasks` is the number of unseen runs of each meta-seed.

    >>> [group.name for group in config("momentum-correlation").groups]
    ['regression-20', 'digits', 'regression-20-gaussian']
    """

    groups: tuple[Group, ...]
    seed: int = 0
    seeds: int = 6
    tasks: int = 30


def config(name: str, preset: str = "full", seed: int = 0) -> Config:
    """The settings under a preset.

    >>> config("momentum-correlation", "quick").seeds
    2
    """
    if preset != "full":
        small = _fig7_arms.Networks(units=10, width=20)
        budget = Budget(runs=100, seeds=2, steps=60, patience=0)
        digits = Budget(runs=30, seeds=2, steps=60, unroll=30, tasks=8, chunk=30, patience=0, remat=True)
        groups = Group("regression-20", budget, small), Group("digits", digits, size=Size(steps=60))
        return Config(groups, seed, seeds=2, tasks=10)
    regression = Budget(runs=100, seeds=6, steps=100, chunk=20, patience=0)
    digits = Budget(runs=75, seeds=6, steps=100, unroll=50, tasks=8, chunk=15, patience=2, remat=True)
    groups = (
        Group("regression-20", regression),
        Group("digits", digits),
        Group("regression-20-gaussian", regression),
    )
    return Config(groups, seed)


def run(settings: Config, folder: RunFolder, reporter: Reporter) -> dict[str, Any]:
    """Train, measure, correlate, draw."""
    groups, table, teleports, verdicts, clouds = {}, {}, {}, [], {}
    streams = Streams.of(settings.seed, settings.seeds)
    for group in settings.groups:
        arm = make_arm(group)
        budget = dataclasses.replace(group.budget, seeds=settings.seeds)
        trained = train(arm, budget, streams, folder, reporter)
        reporter.note(f"{group.name}: gains of all teleports on unseen runs")
        shape = group.width if group.name == "digits" else None
        seen, still = (
            measure(arm, rule, trained.networks, streams.test, group.budget.steps, settings.tasks, shape)
            for rule in (arm.rule, switched_off(arm.rule))
        )
        steps = due(arm.rule, group.budget.steps)
        events = gather(seen, steps)
        folder.arrays(f"{group.name}-events", {**events, "step": steps})
        table[group.name] = correlate(events)
        teleports[group.name] = describe_teleports(events, seen, still)
        runs = settings.seeds * settings.tasks
        losses = {"lr-tele-momentum": seen["loss"], "lr-tele-momentum-off": still["loss"]}
        groups[group.name] = {"arms": compare(losses, tuple(losses), runs)}
        groups[group.name]["arms"]["lr-tele-momentum"] |= trained.facts
        verdicts += judge(group.name, table[group.name])
        clouds[group.name] = _cloud(events, steps)
    _draw(folder, table, clouds)
    return {"groups": groups, "correlations": table, "teleports": teleports, "verdicts": verdicts}


def make_arm(group: Group) -> Learned:
    """The arm that learns step size, momentum and group element, and keeps its velocity.

    >>> budget = Budget(runs=1, seeds=1, steps=100)
    >>> make_arm(Group("regression-20-gaussian", budget)).family.name
    'regression-20-gaussian'
    """
    steps = group.budget.steps
    if group.name == "digits":
        size = dataclasses.replace(group.size, steps=steps)
        arm = trained_arm("lr-tele-momentum", image_family("digits", (group.width,), 64), size)
    else:
        law = "gaussian" if group.name.endswith("gaussian") else "uniform"
        arm = _fig7_arms.learned_arm("lr-tele-momentum", law, group.networks, steps)
    return dataclasses.replace(arm, name=group.name)


def measure(
    arm: Learned,
    rule: UpdateRule,
    networks: PyTree,
    keys: Key[Array, " seeds"],
    steps: int,
    tasks: int,
    shape: Widths | None,
) -> dict[str, np.ndarray]:
    """Unseen runs: "loss" (seeds, tasks, steps + 1); "momentum", "outcome" and "gain" (seeds, tasks, steps).

    With x_t the points and v the velocity that is kept, a teleport starts at x_t + v and ends at x_{t+1}.
    """
    found = _measure(rule, networks, arm.family, keys, steps, tasks, shape)
    return {name: np.asarray(values) for name, values in found.items()}


@eqx.filter_jit
def _measure(rule, networks, family, keys, steps, tasks, shape):
    arrays, static = eqx.partition(networks, eqx.is_array)
    watch = ("momentum", "outcome", "previous")

    def of_seed(inputs):
        network, key = eqx.combine(inputs[0], static), inputs[1]
        trace = unroll_many(rule, network, family, key, steps, tasks, shape=shape, watch=watch, points=True)
        drawn = draw_many(family, tasks, key)

        def norms(points):
            def one(drawn, params):
                task = family.task(drawn, shape)
                return safe_norm(jax.grad(task.loss)(params, everything(task)))

            return jax.vmap(one, in_axes=-1)(drawn, points)

        def gain(step):
            before, velocity, after = step
            return norms(after) / norms(optax.tree.add(before, velocity))

        here = jax.tree.map(lambda x: x[:-1], trace.params)
        there, velocity = (
            jax.tree.map(lambda x: x[1:], y) for y in (trace.params, trace.watched["previous"])
        )
        gains = jax.lax.map(gain, (here, velocity, there))
        momentum, outcome = trace.watched["momentum"][1:], trace.watched["outcome"][1:]
        return {"loss": trace.loss.T, "momentum": momentum.T, "outcome": outcome.T, "gain": gains.T}

    return spread(of_seed, (arrays, keys))


def everything(task: AbstractTask) -> PyTree:
    """The batch of all training data of a task; None where the loss has it by itself."""
    return tuple(task.train) if isinstance(task, Classification) else None


def gather(seen: dict[str, np.ndarray], steps: np.ndarray) -> dict[str, np.ndarray]:
    """Gain and momenta of every teleport that was made, (seeds, tasks, teleports); NaN where one was refused.

    >>> seen = {"gain": np.ones((1, 1, 3)), "outcome": np.zeros((1, 1, 3), int)}
    >>> seen["momentum"] = np.array([[[0.1, 0.2, 0.3]]])
    >>> found = gather(seen, np.array([0, 2]))
    >>> found["same step"].tolist(), found["next step"].tolist()
    ([[[0.1, 0.3]]], [[[0.2, nan]]])
    """
    later = np.concatenate([seen["momentum"][..., 1:], np.full_like(seen["momentum"][..., :1], np.nan)], -1)
    made = seen["outcome"][..., steps] == 0
    all_steps = {"gain": seen["gain"], "same step": seen["momentum"], "next step": later}
    return {name: np.where(made, values[..., steps], np.nan) for name, values in all_steps.items()}


def correlate(events: dict[str, np.ndarray]) -> dict[str, Any]:
    """For both pairings and kinds, all measures with intervals over meta-seeds; Pearson's of ln(gain)."""
    positive = events["gain"] > 0
    logs = np.where(positive, np.log(np.where(positive, events["gain"], 1.0)), np.nan)
    return {
        pairing: {
            kind: {
                name: {**fisher_interval(values)._asdict(), "seeds": values.tolist()}
                for name, values in correlations(events[pairing], logs, kind).items()
            }
            for kind in KINDS
        }
        for pairing in PAIRINGS
    }


def describe_teleports(
    events: dict[str, np.ndarray], seen: dict[str, np.ndarray], still: dict[str, np.ndarray]
) -> dict[str, Any]:
    """How large gains and momenta are, and what teleports do to the momentum: against the same networks with
    teleports switched off, a mean difference with a t-interval over meta-seeds."""
    gains = events["gain"][np.isfinite(events["gain"])]
    difference = np.mean(seen["momentum"] - still["momentum"], axis=(1, 2))
    low, high = t_interval(difference)
    return {
        "teleports": int(np.size(events["gain"])),
        "rejected_or_not_finite": float(np.mean(~np.isfinite(events["gain"]))),
        "gain_quartiles": np.quantile(gains, [0.25, 0.5, 0.75]).tolist() if len(gains) else [],
        "share_of_gains_above_1": float(np.mean(gains > 1)) if len(gains) else np.nan,
        "momentum_quartiles": np.quantile(seen["momentum"], [0.25, 0.5, 0.75]).tolist(),
        "momentum_less_that_without_teleports": {
            "mean": float(np.mean(difference)),
            "low": low,
            "high": high,
        },
    }


def judge(name: str, table: dict[str, Any]) -> list[dict[str, Any]]:
    """Whether the momentum goes with the gain, as it stands and at equal step, by Spearman's correlation.

    >>> entry = {"mean": 0.5, "low": 0.2, "high": 0.7}
    >>> found = {"spearman": {"across": entry, "at equal step": entry}}
    >>> judge("digits", {"same step": found, "next step": found})[0]["outcome"]
    'reproduced'
    """
    rows = []
    for pairing in PAIRINGS:
        for measured in ("across", "at equal step"):
            entry = table[pairing]["spearman"][measured]
            interval = Interval(*(number(entry[key]) for key in ("mean", "low", "high")))
            words = {
                "across": "over all teleports",
                "at equal step": "at equal step, the drift with time removed",
            }
            claim = f"{name}: learned momentum of the {pairing} rises with the gain, {words[measured]}"
            row = verdict(claim, SOURCE, interval, negative=False)
            why = "rank correlation {:+.2f} (95 % interval {:+.2f} to {:+.2f})".format(*interval)
            rows.append({**row, "why": why})
    return rows


#: At most so many teleports are drawn.
DRAWN = 4000


def _cloud(events: dict[str, np.ndarray], steps: np.ndarray) -> dict[str, np.ndarray]:
    """Every teleport as a point, or as many of them as can be told apart."""
    step = np.broadcast_to(steps, events["gain"].shape)
    good = np.isfinite(events["gain"]) & np.isfinite(events["same step"])
    points = {"x": events["gain"][good], "y": events["same step"][good], "step": step[good]}
    some = np.random.default_rng(0).permutation(int(np.sum(good)))[:DRAWN]
    return {name: values[some] for name, values in points.items()}


def _draw(folder: RunFolder, table: dict[str, Any], clouds: dict[str, Any]) -> None:
    panels = {
        f"{name}, {pairing}": {m: _numbers(found["spearman"][m]) for m in MEASURES}
        for name, pairings in table.items()
        for pairing, found in pairings.items()
    }
    plots_learning.correlation_rows(folder.path / "correlations.png", panels)
    labels = ("gain in gradient norm of the teleport", "learned momentum of its step")
    plots_learning.event_clouds(folder.path / "teleports.png", clouds, labels)


def _numbers(entry: dict[str, Any]) -> dict[str, float]:
    return {key: float(entry[key]) for key in ("mean", "low", "high")}


def show(settings: Config, results: dict[str, Any], reporter: Reporter) -> None:
    """Print the tables of a run."""
    for name, pairings in results["correlations"].items():
        title = f"{name}: correlation of momentum and gain, mean over {settings.seeds} seeds (95 %)"
        table = titled_table(title, "momentum of, kind", MEASURES)
        for pairing, kinds in pairings.items():
            for kind, measured in kinds.items():
                table.add_row(f"{pairing}, {kind}", *(_text(measured[measure]) for measure in MEASURES))
        reporter.print(table)
        recorded = results["teleports"][name]
        gains = ", ".join(f"{number(x):.4g}" for x in recorded["gain_quartiles"])
        momenta = ", ".join(f"{number(x):.3f}" for x in recorded["momentum_quartiles"])
        shift = _text(recorded["momentum_less_that_without_teleports"], ".3f")
        reporter.print(
            f"{name}: {recorded['teleports']:,} teleports, gain quartiles {gains}, above 1 in "
            f"{number(recorded['share_of_gains_above_1']):.0%}; momentum quartiles {momenta}; with teleports "
            f"less without {shift}"
        )
    reporter.print(verdict_table(results["verdicts"]))


def _text(entry: dict[str, Any], form: str = ".2f") -> str:
    mean, low, high = (number(entry[key]) for key in ("mean", "low", "high"))
    return f"{mean:+{form}} ({low:+{form}} to {high:+{form}})"
