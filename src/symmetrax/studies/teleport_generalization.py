"""Teleports to flatter or sharper, more or less curved points, and what becomes of the validation loss.

The published experiment (arXiv:2305.13404, section 4) changes sharpness or curvature in the middle of
training by gradient descent. Here every such teleport meets a random element of the same size, and the
published action, which is exact on small batches only, meets exact positive scalings. Beside it stands the
published correlation over independent runs, with the training loss as control: the published sharpness is a
mean of losses around a point, from which the loss at the point is not subtracted.
"""

import dataclasses
import os
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.table
import scipy.stats
from jaxtyping import Array, Float, Key

from symmetrax.objectives._landscape import Curvature, Sharpness, curvature, one_parameter_curve
from symmetrax.search._orbit import Orbit
from symmetrax.search._searches import AbstractSearch, Ascent
from symmetrax.studies import plots_training
from symmetrax.studies.core._console import Reporter, number, ratio_text, titled_table, verdict_table
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._race import Arm, Clock, Entry, Proposal, Run, classifier, compared, race
from symmetrax.studies.core._statistics import LEVEL, Interval, verdict
from symmetrax.studies.core._streams import Streams
from symmetrax.symmetry._activation import ActivationGL
from symmetrax.symmetry._base import AbstractLieSymmetry
from symmetrax.tasks._data import FOLDER
from symmetrax.tasks._supervised import Classification
from symmetrax.teleportation._guard import Guard

SOURCE = "arXiv:2305.13404, section 4"

#: Teleports in a row, and the rate of their ascent with the published action; up and down.
PUBLISHED = {
    "sharpness-up": (2, 0.05),
    "sharpness-down": (10, -0.05),
    "curvature-up": (10, 0.2),
    "curvature-down": (5, -0.05),
}
CLAIMS = {
    "sharpness-down": "teleporting to flatter points lowers the validation loss",
    "sharpness-up": "teleporting to sharper points raises the validation loss",
    "curvature-up": "teleporting to larger curvature lowers the validation loss",
    "curvature-down": "teleporting to smaller curvature raises the validation loss",
}


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set: runs, epochs, the epoch of the teleports and their batch, and runs of the correlation."""

    name: str
    seeds: int
    epochs: int
    at: int
    batch: int
    correlated: int
    images: int = 8000


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings. Published were batches of 2,000 for the teleports and 100 directions for the sharpness,
    with 9 radii; here digits have 1,437 images in all, so 1,000 are taken, and 4 directions, drawn anew for
    every teleport, of both signs, with 3 radii. Exact scalings climb by steps of length `bound`, within
    `bound` for every unit: ten teleports in a row scale by e at most.

    >>> config("teleport-generalization").data[0].seeds
    20
    """

    data: tuple[Data, ...]
    seed: int = 0
    rate: float = 1e-2
    bound: float = 0.1
    ascent: int = 10
    directions: int = 4
    radii: tuple[float, ...] = (0.1, 0.5, 0.9)
    curves: int = 8
    tolerance: float = 1.0
    block: int = 10
    ways: tuple[str, ...] = ("action", "exact")


def config(name: str, preset: str = "full", seed: int = 0) -> Config:
    """The settings under a preset: MNIST is there if the environment variable SYMMETRAX_DATA is set.

    "quick" leaves out the published action, whose third derivatives take a minute to compile.

    >>> config("teleport-generalization", "quick").data[0].epochs
    10
    """
    if preset == "quick":
        data = (Data("digits", seeds=4, epochs=10, at=5, batch=200, correlated=20),)
        return Config(data, seed, ascent=3, ways=("exact",))
    more = ()
    if os.environ.get(FOLDER):
        more = (Data("mnist", seeds=10, epochs=12, at=6, batch=400, correlated=50),)
    digits = Data("digits", seeds=20, epochs=40, at=20, batch=1000, correlated=100)
    return Config((digits, *more), seed)


class MakeSharpness(eqx.Module):
    """Makes a `Sharpness` for every teleport, in new directions."""

    directions: int = eqx.field(static=True)
    radii: Float[Array, " radii"]

    def __call__(self, key: Key[Array, ""], batch: Any) -> Sharpness:
        return Sharpness(key, self.directions, self.radii)


class MakeCurvature(eqx.Module):
    """Makes a `Curvature` for every teleport, of new curves, for the action on its batch."""

    symmetry: AbstractLieSymmetry
    curves: int = eqx.field(static=True)

    def __call__(self, key: Key[Array, ""], batch: Any) -> Curvature:
        return Curvature(self.symmetry, key, self.curves, batch)


class AlongCurve(AbstractSearch):
    """The published step: t M with t = `rate` times the derivative, at 0, of the curvature of exp(t M) . w.

    M is drawn from U[0, 1] in the last `coordinates` of the algebra, those of the last hidden layer, and is
    zero elsewhere; its key is that of the objective, a `Curvature`.

    >>> import symmetrax as sx
    >>> AlongCurve(jnp.array(0.2), 100).evaluations(sx.tasks.booth().symmetry())
    3
    """

    rate: Float[Array, ""]
    coordinates: int = eqx.field(static=True)

    def __call__(self, orbit: Orbit) -> Float[Array, "..."]:
        zero, objective = orbit.zero(), cast(Curvature, orbit.objective)
        drawn = jax.random.uniform(objective.key, (self.coordinates,), zero.dtype)
        direction = jnp.zeros_like(zero).at[-self.coordinates :].set(drawn)
        curve = one_parameter_curve(orbit.symmetry, direction, orbit.params, orbit.batch)
        t = jnp.zeros((), zero.dtype)
        slope = jax.jvp(lambda t: curvature(curve, t), (t,), (jnp.ones_like(t),))[1]
        return self.rate * slope * direction

    def evaluations(self, symmetry: AbstractLieSymmetry) -> int:
        return 3


def descent(rate: Array) -> optax.GradientTransformation:
    """Gradient descent.

    >>> rule = descent(jnp.array(0.5))
    >>> rule.update(jnp.array(2.0), rule.init(jnp.array(1.0)))[0].item()
    -1.0
    """
    return optax.sgd(rate)


def arms(ways: tuple[str, ...] = ("action", "exact")) -> tuple[Arm, ...]:
    """No teleport, and every teleport with its random partner.

    >>> [arm.name for arm in arms()][:3]
    ['none', 'action-sharpness-up', 'random-action-sharpness-up']
    """
    found = [Arm("none")]
    for way in ways:
        for what, (count, _) in PUBLISHED.items():
            name = f"{way}-{what}"
            found.append(Arm(name, name, teleports=count))
            found.append(Arm(f"random-{name}", name, how="random", teleports=count))
    return tuple(found)


def run(settings: Config, folder: RunFolder, reporter: Reporter) -> dict[str, Any]:
    """Train all arms, measure the correlations; write arrays and plots; return groups and verdicts."""
    groups, verdicts = {}, []
    for data in settings.data:
        task, clock = classifier(data.name, images=data.images), Clock(settings.block)
        streams = Streams.of(settings.seed, data.seeds)
        reporter.note(f"{data.name}: teleports to change sharpness and curvature")
        moves = _moves(settings, data, task)
        entries = [Entry(arm.name, arm, np.full(data.seeds, settings.rate)) for arm in arms(settings.ways)]
        runs = race(descent, task, entries, streams.test, clock, epochs=data.epochs, moves=moves, at=data.at)
        groups[data.name] = {"arms": _compared(runs, data.seeds)}
        folder.arrays(
            f"{data.name}-validation-loss", {name: r.held.astype(np.float32) for name, r in runs.items()}
        )
        reporter.note(f"{data.name}: correlations over {data.correlated} runs")
        measured = _measured(settings, data, task, streams.tune, clock)
        folder.arrays(f"{data.name}-correlation", measured)
        groups[data.name]["correlation"] = {
            name: correlation(values, measured["validation loss"], settings.seed)
            for name, values in measured.items()
            if name != "validation loss"
        }
        verdicts += _verdicts(groups[data.name], data.name, settings.ways)
        plots_training.effects(
            folder.path / f"{data.name}-teleports.png", groups[data.name]["arms"], data.name
        )
        plots_training.scatter(
            folder.path / f"{data.name}-correlation.png", measured, groups[data.name]["correlation"]
        )
    return {"groups": groups, "verdicts": verdicts}


def show(settings: Config, results: dict[str, Any], reporter: Reporter) -> None:
    """Print the teleports, the correlations and the verdicts."""
    for data, group in results["groups"].items():
        reporter.print(effects_table(data, group["arms"]))
        reporter.print(correlation_table(data, group["correlation"]))
    reporter.print(verdict_table(results["verdicts"]))


def effects_table(data: str, arms: dict[str, Any]) -> rich.table.Table:
    """Validation losses against no teleport and against a random element of the same size."""
    none = arms["none"]
    title = (
        f"{data}: teleports in the middle of training, {none['runs']} seeds; validation loss without them "
        f"{number(none['loss_median'][-1]):.3g}; drift: relative change of the loss on the teleport's batch"
    )
    table = titled_table(title)
    table.add_column("arm", no_wrap=True)
    for name in ("objective", "loss / none (95 %)", "/ random (95 %)", "drift", "lost"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, arm in arms.items():
        if name == "none" or name.startswith("random-"):
            continue
        log = arm["teleports"]
        table.add_row(
            name,
            f"x {number(log['objective_factor']):.4g}",
            precise(arm["versus"]["none"]),
            precise(arm["versus"][f"random-{name}"]),
            f"{number(log['drift']):.0e}",
            f"{arm['diverged']}",
        )
    return table


def precise(versus: dict[str, Any]) -> str:
    """A ratio near one with its interval, to three decimals; of others, two digits.

    >>> precise({"log_ratio": 0.001, "low": -0.002, "high": 0.004})
    '1.001 (0.998 to 1.004)'
    """
    logs = [number(versus[key]) for key in ("log_ratio", "low", "high")]
    if max(abs(x) for x in logs) > 0.3:
        return ratio_text(versus)
    middle, low, high = np.exp(logs)
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def correlation_table(data: str, found: dict[str, Any]) -> rich.table.Table:
    """Pearson's r with the validation loss, of every measure."""
    runs = next(iter(found.values()))["runs"]
    title = f"{data}: correlation with the validation loss over {runs} runs"
    table = titled_table(title)
    table.add_column("measure", no_wrap=True)
    for name in ("r", "95 %, Fisher", "95 %, bootstrap", "rank correlation"):
        table.add_column(name, justify="right")
    for name, row in found.items():
        spans = [f"{row[f'{key}low']:+.2f} to {row[f'{key}high']:+.2f}" for key in ("", "bootstrap_")]
        table.add_row(name, f"{row['r']:+.2f}", *spans, f"{row['rank']:+.2f}")
    return table


def correlation(x: np.ndarray, y: np.ndarray, seed: int = 0, draws: int = 2000) -> dict[str, Any]:
    """Pearson's r, its interval by Fisher's z and by a bootstrap over runs, and Spearman's rank correlation.

    >>> found = correlation(np.arange(10.0), np.arange(10.0) ** 2)
    >>> round(found["r"], 3), round(found["rank"], 3)
    (0.963, 1.0)
    """
    r = float(np.corrcoef(x, y)[0, 1])
    half = scipy.stats.norm.ppf((1 + LEVEL) / 2) / np.sqrt(len(x) - 3)
    low, high = np.tanh(np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12)) + np.array([-half, half]))
    rows = np.random.default_rng(seed).integers(len(x), size=(draws, len(x)))
    xs, ys = x[rows], y[rows]
    xs, ys = (v - v.mean(axis=1, keepdims=True) for v in (xs, ys))
    drawn = np.sum(xs * ys, 1) / np.sqrt(np.sum(xs**2, 1) * np.sum(ys**2, 1))
    ends = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    rank = float(np.corrcoef(scipy.stats.rankdata(x), scipy.stats.rankdata(y))[0, 1])
    return {
        "runs": len(x),
        "r": r,
        "low": float(low),
        "high": float(high),
        "bootstrap_low": float(ends[0]),
        "bootstrap_high": float(ends[1]),
        "rank": rank,
    }


def _symmetries(task: Classification) -> dict[str, AbstractLieSymmetry]:
    action = ActivationGL(
        weights=tuple(task.network.matrices), sizes=task.widths, activation=task.network.activation
    )
    return {"action": action, "exact": task.symmetry()}


def _moves(settings: Config, data: Data, task: Classification) -> dict[str, Proposal]:
    """The published rates with the published action; steps of one length with exact scalings."""
    moves, bound, symmetries = {}, jnp.asarray(settings.bound), _symmetries(task)
    for way in settings.ways:
        symmetry = symmetries[way]
        sharpness = MakeSharpness(settings.directions, jnp.asarray(settings.radii))
        curves = MakeCurvature(symmetry, settings.curves if way == "exact" else 1)
        for what, (_, rate) in PUBLISHED.items():
            sharp = what.startswith("sharpness")
            if way == "action" and sharp:
                search = Ascent(settings.ascent, jnp.asarray(rate), jnp.asarray(1.0))
            elif way == "action":
                search = AlongCurve(jnp.asarray(rate), task.widths[-1] ** 2)
            else:
                search = Ascent(settings.ascent, jnp.sign(rate) * bound, bound, normalized=True)
            loose = Guard(jump=jnp.inf, tolerance=jnp.asarray(settings.tolerance))
            objective = sharpness if sharp else curves
            moves[f"{way}-{what}"] = Proposal(symmetry, search, data.batch, objective, loose)
    return moves


def _compared(runs: dict[str, Run], seeds: int) -> dict[str, Any]:
    """Arms whose losses are validation losses."""
    references = ("none", *(name for name in runs if name.startswith("random-")))
    found = compared({name: run.held for name, run in runs.items()}, references, seeds)
    for name, arm in found.items():
        run_ = runs[name]
        arm["versus"] = {of: v for of, v in arm["versus"].items() if of in ("none", f"random-{name}")}
        arm |= {
            "training_loss_median": np.median(run_.train, axis=0).tolist(),
            "accuracy_mean": np.mean(run_.accuracy[:, -1]),
            "gradient_evaluations": run_.gradients,
            "seconds": run_.seconds,
        }
        moved = run_.moved
        if moved is not None:
            with np.errstate(divide="ignore", invalid="ignore"):
                factors = moved.after / moved.before
            arm["teleports"] = {
                "objective_factor": np.nanmedian(factors),
                "drift": np.nanmedian(np.abs(moved.drift)),
                "drift_max": np.max(np.abs(moved.drift)),
                "fresh": np.nanmedian(np.abs(moved.fresh)),
                "fresh_max": np.max(np.abs(moved.fresh)),
                "length": np.nanmedian(moved.length),
                "rejected": np.mean(moved.outcome > 0),
            }
    return found


def _measured(settings: Config, data: Data, task, key, clock: Clock) -> dict[str, np.ndarray]:
    """Every measure, and the validation loss, at the ends of independent runs."""
    keys = jax.random.split(key, data.correlated)
    entry = Entry("none", Arm("none"), np.full(data.correlated, settings.rate))
    run_ = race(descent, task, [entry], keys, clock, epochs=data.epochs, moves={}, at=0)["none"]
    lanes = (run_.params, np.asarray(jax.random.key_data(keys)))
    found = clock("measures", lambda part: _measures(task, part), lanes)
    return {
        **found,
        "training loss": run_.train[:, -1],
        "validation loss": run_.held[:, -1],
    }


@eqx.filter_jit
def _measures(task, lanes):
    def one(inputs):
        params, data = inputs
        images, drawn = jax.random.split(jax.random.fold_in(jax.random.wrap_key_data(data), 2_000_000))
        rows = jax.random.permutation(images, len(task.train.labels))[:200]
        batch = (jnp.asarray(task.train.pixels)[rows], jnp.asarray(task.train.labels)[rows])

        def value_fn(w):
            return task.loss(w, batch)

        mean = Sharpness(drawn, 16, jnp.linspace(0.001, 0.191, 8))(value_fn, params)
        measures = {"sharpness, as published": mean, "sharpness above the loss": mean - value_fn(params)}
        for way, symmetry in _symmetries(task).items():
            # One curve after another: see `_training`.
            one_curve = lambda key, of=symmetry: Curvature(of, key, 1, batch)(value_fn, params)  # noqa: E731
            measures[f"curvature, {way}"] = jnp.mean(jax.lax.map(one_curve, jax.random.split(drawn, 100)))
        return measures

    return jax.lax.map(one, lanes)


def _verdicts(group: dict[str, Any], data: str, ways: tuple[str, ...]) -> list[dict[str, str]]:
    """Whether the validation loss moves as claimed; against no teleport, and against a random one."""
    rows = []
    for what, claim in CLAIMS.items():
        lowers = "lowers" in claim
        for way in ways:
            words = {"action": "published action", "exact": "exact scaling"}[way]
            for against, control in (("none", ""), (f"random-{way}-{what}", " more than a random one")):
                found = Interval(**group["arms"][f"{way}-{what}"]["versus"][against])
                text = f"{claim}{control} ({data}, {words})"
                rows.append(verdict(text, SOURCE, found, negative=lowers))
    for name, sign, claim in (
        ("sharpness, as published", 1, "flatter points have a lower validation loss"),
        ("sharpness above the loss", 1, "flatter points, the loss subtracted, have a lower validation loss"),
        ("curvature, action", -1, "more curved points have a lower validation loss"),
    ):
        found = group["correlation"][name]
        agrees, opposes = (found["low"] > 0, found["high"] < 0)[::sign]
        outcome = "reproduced" if agrees else "reversed" if opposes else "inconclusive"
        why = f"Pearson's r {found['r']:+.2f} (95 % interval {found['low']:+.2f} to {found['high']:+.2f})"
        rows.append({"claim": f"{claim} ({data})", "source": SOURCE, "outcome": outcome, "why": why})
    return rows
