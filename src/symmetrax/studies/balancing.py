"""Balancing as a preconditioner: how many learning rates can train a badly scaled network?

Positive scalings of hidden units change no output, but they change the gradient. Here classifiers of digits
start from He's rule with every hidden unit rescaled at random, by a factor exp(sigma z) with normal z. A
teleport takes them to the point of their orbit with the least norm (balancing) or with the least gradient
norm, once or every few steps.
"""

import dataclasses
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Key

from symmetrax._tree import safe_norm
from symmetrax.objectives._base import GradientNorm, Objective, negate
from symmetrax.objectives._landscape import NegativeParameterNorm
from symmetrax.search._closed_form import ClosedForm
from symmetrax.studies import plots_training
from symmetrax.studies.core._console import Reporter, number, titled_table, verdict_table
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._runs import timed
from symmetrax.studies.core._statistics import Interval, intervals, summary
from symmetrax.studies.core._streams import Streams
from symmetrax.tasks._data import Images, digits
from symmetrax.tasks._supervised import Classification
from symmetrax.teleportation._guard import Guard
from symmetrax.teleportation._transform import TeleportedState, teleported

SOURCE = "gauge fixing as preconditioning"
REFERENCES = ("none", "he", "adam")
OBJECTIVES: dict[str, Objective] = {"norm": NegativeParameterNorm(), "gradient": negate(GradientNorm())}


@dataclasses.dataclass(frozen=True)
class Arm:
    """An optimizer, "sgd" or "adam", the rescaled start or not, what is least on the orbit, and how often a
    teleport goes there: 0 for never, -1 for once, before the first step.

    >>> Arm("he", scaled=False).every
    0
    """

    name: str
    optimizer: str = "sgd"
    scaled: bool = True
    objective: str = "norm"
    every: int = 0


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings. A learning rate counts if the training loss ends below `target` times log 10, the loss of
    a network that knows nothing. `bound` is for each coordinate of the algebra: it lets every start with
    sigma 1 reach its balanced point, five standard deviations away.

    >>> config("balancing").rates
    33
    """

    seed: int = 0
    seeds: int = 24
    sigma: float = 1.0
    steps: int = 300
    every: int = 20
    rates: int = 33
    lowest: float = 1e-4
    highest: float = 1e2
    target: float = 0.5
    bound: float = 5.0
    batch: int = 64


def config(name: str, preset: str = "full", seed: int = 0) -> Config:
    """The settings under a preset.

    >>> config("balancing", "quick").seeds
    6
    """
    full = Config(seed=seed)
    return full if preset == "full" else dataclasses.replace(full, seeds=6, steps=120, rates=25)


def arms(settings: Config) -> tuple[Arm, ...]:
    """All arms; those of one optimizer and objective share a compiled program.

    >>> [arm.name for arm in arms(config("balancing"))][:2]
    ['none', 'he']
    """
    return (
        Arm("none"),
        Arm("he", scaled=False),
        Arm("balanced", every=-1),
        Arm("balanced-often", every=settings.every),
        Arm("low-gradient", objective="gradient", every=-1),
        Arm("low-gradient-often", objective="gradient", every=settings.every),
        Arm("adam", optimizer="adam"),
        Arm("adam-he", optimizer="adam", scaled=False),
        Arm("adam-balanced", optimizer="adam", every=-1),
    )


def run(settings: Config, folder: RunFolder, reporter: Reporter) -> dict[str, Any]:
    """Train with every rate, measure windows and gradients; return groups and verdicts."""
    train, test = (Images(jnp.asarray(x), jnp.asarray(y)) for x, y in digits())
    task = Classification(train, test, (16, 10), settings.batch, slope=0.1)
    keys = Streams.of(settings.seed, settings.seeds).test
    rates = np.geomspace(settings.lowest, settings.highest, settings.rates)
    finals, starts, logs, seconds = {}, {}, {}, {}
    for arm in arms(settings):
        reporter.note(arm.name)
        count = np.arange(settings.steps)
        due = {0: count < 0, -1: count == 0}.get(arm.every, count % max(arm.every, 1) == 0)
        static = (arm.optimizer, arm.objective, settings.steps)
        arrays = (
            jnp.asarray(rates, jnp.float32),
            jnp.asarray(due),
            settings.sigma * arm.scaled,
            settings.bound,
        )
        arrays = jax.tree.map(jnp.asarray, arrays)
        found, seconds[arm.name] = timed(_train, task, *static, keys, *arrays)
        starts[arm.name], finals[arm.name], before, after = (np.asarray(x) for x in found)
        taken = (before > 0) & np.isfinite(before) & np.isfinite(after)
        if taken.any():
            logs[arm.name] = {
                "teleports": int(taken.sum()),
                "gradient_falls": float(np.mean(after[taken] <= before[taken] * (1 + 1e-4))),
                "gradient_factor": float(np.median(after[taken] / before[taken])),
            }
    folder.arrays("finals", {"rates": rates, **finals})
    group = _group(settings, rates, starts, finals, logs, seconds)
    group["checks"] = {
        name: float(x) for name, x in _checks(task, keys[0], settings.sigma, settings.bound).items()
    }
    results = {"groups": {"digits": group}, "verdicts": _verdicts(group)}
    plots_training.windows(folder.path / "windows.png", rates, finals, settings.target * np.log(10))
    return results


def show(settings: Config, results: dict[str, Any], reporter: Reporter) -> None:
    """Print the windows, the checks and the verdicts."""
    group = results["groups"]["digits"]
    title = (
        f"Learning rates, in decades, that train to a loss of {settings.target} log 10 in {settings.steps} "
        f"steps; {settings.seeds} seeds"
    )
    table = titled_table(title)
    table.add_column("arm", no_wrap=True)
    for name in ("window", "minus none (95 %)", "minus he (95 %)", "top", "minus none (95 %)", "loss"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, arm in group["arms"].items():
        table.add_row(
            name,
            f"{number(arm['window']):.2f}",
            *(_difference(arm["window_minus"].get(of)) for of in ("none", "he")),
            f"{number(arm['top']):+.2f}",
            _difference(arm["top_minus"].get("none")),
            f"{number(arm['loss_median'][-1]):.2g}",
        )
    reporter.print(table)
    reporter.print(
        "window: how wide the range is; top: log10 of its upper end; loss: at each seed's best rate"
    )
    for name, arm in group["arms"].items():
        if "teleports" in arm:
            falls, factor = (number(arm["teleports"][k]) for k in ("gradient_falls", "gradient_factor"))
            reporter.print(
                f"{name}: the gradient norm falls at {falls:.1%} of the teleports, median factor {factor:.2g}"
            )
    checks = ", ".join(f"{name} {number(value):.1e}" for name, value in group["checks"].items())
    reporter.print(f"checks: {checks}")
    reporter.print(verdict_table(results["verdicts"]))


@eqx.filter_jit
def _train(task, optimizer, objective, steps, keys, rates, due, sigma, bound):
    """Losses on all training images before and after, (seeds, rates), and gradient norms around teleports."""
    symmetry = task.symmetry()
    train = (task.train.pixels, task.train.labels)

    def one(key, rate):
        start, scale, order = jax.random.split(key, 3)
        params = task.init(start)
        factors = sigma * jax.random.normal(scale, symmetry.algebra)
        params = symmetry.act(symmetry.exp(factors), params)
        inner = optax.adam(rate) if optimizer == "adam" else optax.sgd(rate)
        moving = teleported(
            inner,
            symmetry,
            objective=OBJECTIVES[objective],
            search=ClosedForm(bound),
            schedule=due,
            guard=Guard(jump=jnp.inf, tolerance=1e-3),
            transport="carry",
        )
        before = task.loss(params, train)

        def step(carried, count):
            params, state = carried
            batch = task.batch(jax.random.fold_in(order, count))
            value_fn = lambda w: task.loss(w, batch)  # noqa: E731
            gradient = jax.grad(value_fn)(params)
            updates, state = moving.update(gradient, state, params, value_fn=value_fn)
            element = symmetry.exp(cast(TeleportedState, state).algebra)

            def around():
                return safe_norm(gradient), safe_norm(symmetry.transport_gradient(element, params, gradient))

            norms = jax.lax.cond(due[count], around, lambda: (jnp.zeros(()), jnp.zeros(())))
            return (optax.apply_updates(params, updates), state), norms

        (params, _), norms = jax.lax.scan(step, (params, moving.init(params)), jnp.arange(steps))
        return before, task.loss(params, train), *norms

    return jax.lax.map(lambda key: jax.vmap(lambda rate: one(key, rate))(rates), keys)


def widths(rates: np.ndarray, finals: np.ndarray, target: float) -> np.ndarray:
    """Decades of learning rates, on a grid equally spaced in the logarithm, that end below `target`.

    >>> widths(np.array([0.1, 1.0, 10.0]), np.array([[2.0, 0.1, np.nan]]), 1.0)
    array([1.])
    """
    spacing = np.log10(rates[1] / rates[0])
    return np.sum(np.where(np.isfinite(finals), finals, np.inf) < target, axis=1) * spacing


def tops(rates: np.ndarray, finals: np.ndarray, target: float) -> np.ndarray:
    """log10 of the largest rate that ends below `target`; of the smallest rate if none does.

    >>> tops(np.array([0.1, 1.0, 10.0]), np.array([[0.3, 0.2, np.nan]]), 1.0)
    array([0.])
    """
    good = np.where(np.isfinite(finals), finals, np.inf) < target
    return np.max(np.where(good, np.log10(rates), np.log10(rates[0])), axis=1)


def _group(settings: Config, rates, starts, finals, logs, seconds) -> dict[str, Any]:
    target = settings.target * np.log(10)
    measures = {"window": widths, "top": tops}
    decades = {
        key: {name: measure(rates, values, target) for name, values in finals.items()}
        for key, measure in measures.items()
    }
    found_losses = _log_ratios(starts, finals)
    group = {}
    for name, values in finals.items():
        # Every seed at its own best rate: the loss before and after.
        safe = np.where(np.isfinite(values), values, np.inf)
        best = np.stack([starts[name][:, 0], np.min(safe, axis=1)], axis=1)[:, None]
        every = np.stack([starts[name], safe], axis=2)
        group[name] = {
            **summary(best, settings.seeds),
            "diverged_over_rates": int(np.sum(every[..., 1] > 10 * every[..., 0])),
            **{key: float(np.mean(decades[key][name])) for key in measures},
            **{
                f"{key}_minus": {
                    of: _mean_interval(decades[key][name] - decades[key][of], settings.seed)
                    for of in REFERENCES
                    if of != name
                }
                for key in measures
            },
            "versus": {of: found_losses[name, of]._asdict() for of in REFERENCES if of != name},
            "gradient_evaluations": float(settings.steps),
            "seconds": seconds[name],
        }
        if name in logs:
            group[name]["teleports"] = logs[name]
    return {"arms": group, "rates": rates.tolist(), "target": target}


def _log_ratios(starts, finals) -> dict[tuple[str, str], Interval]:
    best = {n: np.log(np.min(np.where(np.isfinite(v), v, np.inf), axis=1)) for n, v in finals.items()}
    return intervals({(a, b): (best[a] - best[b])[:, None] for a in best for b in REFERENCES if a != b})


def _mean_interval(values: np.ndarray, seed: int, draws: int = 2000) -> dict[str, float]:
    """A mean over seeds with a bootstrap interval. (Medians of widths on a grid would be too coarse.)"""
    rows = np.random.default_rng(seed).integers(len(values), size=(draws, len(values)))
    low, high = np.quantile(values[rows].mean(axis=1), [0.025, 0.975])
    return {"decades": float(values.mean()), "low": float(low), "high": float(high)}


@eqx.filter_jit
def _checks(task, key: Key[Array, ""], sigma, bound) -> dict[str, Array]:
    """The balanced point against its definition, and how a step of descent leaves the balance."""
    symmetry = task.symmetry()
    start, scale = jax.random.split(key)
    he = task.init(start)
    scaled = symmetry.act(symmetry.exp(sigma * jax.random.normal(scale, symmetry.algebra)), he)
    train = (task.train.pixels, task.train.labels)

    def balanced(params):
        from_here = teleported(
            optax.sgd(0.0),
            symmetry,
            objective=NegativeParameterNorm(),
            search=ClosedForm(bound),
            schedule={0},
            guard=Guard(jump=jnp.inf, tolerance=1e-3),
        )
        value_fn = lambda w: task.loss(w, train)  # noqa: E731
        updates, _ = from_here.update(
            jax.grad(value_fn)(params), from_here.init(params), params, value_fn=value_fn
        )
        return cast(dict[str, Array], optax.apply_updates(params, updates))

    first, second = balanced(he), balanced(scaled)
    apart = optax.tree.sub(first, second)
    gradient = jax.grad(task.loss)(first, train)

    def drift(rate):
        moved = optax.apply_updates(first, optax.tree.scale(-rate, gradient))
        return jnp.linalg.norm(
            jnp.concatenate(_imbalances(task, moved)) - jnp.concatenate(_imbalances(task, first))
        )

    sizes = jnp.concatenate([jnp.sum(first[f"w{k}"] ** 2, 1) for k in range(1, len(task.widths) + 1)])
    return {
        "imbalance of the balanced point (relative)": jnp.max(
            jnp.abs(jnp.concatenate(_imbalances(task, first))) / sizes
        ),
        "distance of the balanced points of both starts (relative)": safe_norm(apart) / safe_norm(first),
        "exponent of the drift of the balance in the step size": jnp.log2(drift(0.8) / drift(0.4)),
    }


def _imbalances(task, params) -> list[Array]:
    """Of every hidden unit, squares of what goes in, its bias included, less those of what comes out."""
    layers = range(1, len(task.widths) + 1)
    return [
        jnp.sum(params[f"w{k}"] ** 2, 1) + params[f"b{k}"] ** 2 - jnp.sum(params[f"w{k + 1}"] ** 2, 0)
        for k in layers
    ]


def _difference(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    return f"{number(found['decades']):+.2f} ({number(found['low']):+.2f} to {number(found['high']):+.2f})"


def _verdicts(group: dict[str, Any]) -> list[dict[str, str]]:
    rows = []
    for ours, theirs, key, claim in (
        ("balanced", "none", "window", "balancing once widens the window of learning rates"),
        ("balanced", "none", "top", "balancing once raises the largest learning rate that trains"),
        ("low-gradient", "none", "window", "the least gradient norm, once, widens the window"),
        ("low-gradient", "none", "top", "the least gradient norm, once, raises the largest learning rate"),
        ("balanced", "he", "window", "balancing once gives a wider window than He's rule"),
        ("balanced-often", "he", "window", "balancing often gives a wider window than He's rule"),
        (
            "low-gradient-often",
            "he",
            "window",
            "the least gradient norm, often, gives a wider window than He's",
        ),
        ("balanced", "adam", "window", "balanced gradient descent has a wider window than Adam"),
        ("adam-balanced", "adam", "window", "balancing once widens Adam's window"),
    ):
        found = group["arms"][ours][f"{key}_minus"][theirs]
        low, high = found["low"], found["high"]
        outcome = "reproduced" if low > 0 else "reversed" if high < 0 else "inconclusive"
        why = f"{_difference(found)} decades, mean over seeds with its 95 % interval"
        rows.append({"claim": claim, "source": SOURCE, "outcome": outcome, "why": why})
    return rows
