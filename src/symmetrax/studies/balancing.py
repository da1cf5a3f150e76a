"""Balancing as a preconditioner: how many learning rates can train a badly scaled network?

Positive scalings of hidden units change no output, but they change the gradient. Here classifiers of digits
start from He's rule with every hidden unit rescaled at random, by a factor exp(sigma z) with normal z. A
teleport takes them to the point of their orbit with the least norm (balancing) or with the least gradient
norm, once or every few steps.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from symmetrax.studies._balancing_measures import _checks, _compared, _train
from symmetrax.studies._registry import EXPERIMENTS
from symmetrax.studies.core._console import number, titled_table
from symmetrax.studies.core._panels import Curve, Panel, curve_panels
from symmetrax.studies.core._run import Run
from symmetrax.studies.core._runs import timed
from symmetrax.studies.core._statistics import Interval, verdict
from symmetrax.studies.core._study import Study
from symmetrax.tasks._data import Images, digits
from symmetrax.tasks._supervised import Classification


@dataclasses.dataclass(frozen=True)
class Start:
    """An arm: an optimizer, "sgd" or "adam", the rescaled start or not, what is least on the orbit, and how
    often a teleport goes there: 0 for never, -1 for once, before the first step.

    >>> Start("he", scaled=False).every
    0
    """

    name: str
    optimizer: str = "sgd"
    scaled: bool = True
    objective: str = "norm"
    every: int = 0

    def due(self, steps: int) -> np.ndarray:
        """Whether it teleports, for each step."""
        count = np.arange(steps)
        return {0: count < 0, -1: count == 0}.get(self.every, count % max(self.every, 1) == 0)


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings. A learning rate counts if the training loss ends below `target` times log 10, the loss of
    a network that knows nothing. `bound` is for each coordinate of the algebra: it lets every start with
    sigma 1 reach its balanced point, five standard deviations away.

    >>> Settings().rates
    33
    """

    sigma: float = 1.0
    steps: int = 300
    every: int = 20
    rates: int = 33
    lowest: float = 1e-4
    highest: float = 1e2
    target: float = 0.5
    bound: float = 5.0
    batch: int = 64

    @property
    def grid(self) -> np.ndarray:
        """The learning rates."""
        return np.geomspace(self.lowest, self.highest, self.rates)


def arms(settings: Settings) -> tuple[Start, ...]:
    """All arms; those of one optimizer and objective share a compiled program.

    >>> [arm.name for arm in arms(Settings())][:2]
    ['none', 'he']
    """
    return (
        Start("none"),
        Start("he", scaled=False),
        Start("balanced", every=-1),
        Start("balanced-often", every=settings.every),
        Start("low-gradient", objective="gradient", every=-1),
        Start("low-gradient-often", objective="gradient", every=settings.every),
        Start("adam", optimizer="adam"),
        Start("adam-he", optimizer="adam", scaled=False),
        Start("adam-balanced", optimizer="adam", every=-1),
    )


def analyse(run: Run) -> dict[str, Any]:
    """Train with every rate; measure windows and gradients."""
    settings, keys = run.study.settings, run.streams.test
    training, test = (Images(jnp.asarray(x), jnp.asarray(y)) for x, y in digits())
    task = Classification(training, test, (16, 10), settings.batch, slope=0.1)
    finals, starts, facts = {}, {}, {}
    for arm in arms(settings):
        run.reporter.note(arm.name)
        rates, scale = jnp.asarray(settings.grid, jnp.float32), settings.sigma * arm.scaled
        arrays = jax.tree.map(jnp.asarray, (rates, arm.due(settings.steps), scale, settings.bound))
        static = (arm.optimizer, arm.objective, settings.steps)
        found, seconds = timed(_train, task, *static, keys, *arrays)
        starts[arm.name], finals[arm.name], before, after = (np.asarray(x) for x in found)
        facts[arm.name] = {"gradient_evaluations": float(settings.steps), "seconds": seconds}
        taken = (before > 0) & np.isfinite(before) & np.isfinite(after)
        if taken.any():
            facts[arm.name]["teleports"] = {
                "teleports": int(taken.sum()),
                "gradient_falls": float(np.mean(after[taken] <= before[taken] * (1 + 1e-4))),
                "gradient_factor": float(np.median(after[taken] / before[taken])),
            }
    run.folder.arrays("finals", {"rates": settings.grid, **finals})
    target = settings.target * np.log(10)
    compared = _compared(settings.grid, target, starts, finals, run.study.seed)
    group = {
        "arms": {name: arm | facts[name] for name, arm in compared.items()},
        "rates": settings.grid.tolist(),
        "target": target,
        "checks": {k: float(x) for k, x in _checks(task, keys[0], settings.sigma, settings.bound).items()},
    }
    return {"groups": {"digits": group}, "verdicts": list(_verdicts(group["arms"]))}


def _verdicts(arms: dict[str, Any]) -> Iterator[dict[str, str]]:
    low = "the least gradient norm"
    for ours, theirs, key, claim in (
        ("balanced", "none", "window", "balancing once widens the window of learning rates"),
        ("balanced", "none", "top", "balancing once raises the largest learning rate that trains"),
        ("low-gradient", "none", "window", f"{low}, once, widens the window"),
        ("low-gradient", "none", "top", f"{low}, once, raises the largest learning rate"),
        ("balanced", "he", "window", "balancing once gives a wider window than He's rule"),
        ("balanced-often", "he", "window", "balancing often gives a wider window than He's rule"),
        ("low-gradient-often", "he", "window", f"{low}, often, gives a wider window than He's"),
        ("balanced", "adam", "window", "balanced gradient descent has a wider window than Adam"),
        ("adam-balanced", "adam", "window", "balancing once widens Adam's window"),
    ):
        found = arms[ours][f"{key}_minus"][theirs]
        interval = Interval(found["decades"], found["low"], found["high"])
        why = f"{_difference(found)} decades, mean over seeds with its 95 % interval"
        yield verdict(claim, "gauge fixing as preconditioning", interval, negative=False) | {"why": why}


def _difference(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    return f"{number(found['decades']):+.2f} ({number(found['low']):+.2f} to {number(found['high']):+.2f})"


def tables(study: Study, results: dict[str, Any]) -> Iterator[Any]:
    """The windows, what teleports did, the checks and the verdicts."""
    group, settings = results["groups"]["digits"], study.settings
    reached = f"a loss of {settings.target} log 10 in {settings.steps} steps; {study.seeds} seeds"
    table = titled_table(
        f"Learning rates, in decades, that train to {reached}",
        "arm",
        ("window", "minus none (95 %)", "minus he (95 %)", "top", "minus none (95 %)", "loss"),
    )
    for name, arm in group["arms"].items():
        table.add_row(
            name,
            f"{number(arm['window']):.2f}",
            *(_difference(arm["window_minus"].get(of)) for of in ("none", "he")),
            f"{number(arm['top']):+.2f}",
            _difference(arm["top_minus"].get("none")),
            f"{number(arm['loss_median'][-1]):.2g}",
        )
    yield table
    yield "window: how wide the range is; top: log10 of its upper end; loss: at each seed's best rate"
    for name, arm in group["arms"].items():
        if "teleports" in arm:
            falls, factor = (number(arm["teleports"][k]) for k in ("gradient_falls", "gradient_factor"))
            text = f"the gradient norm falls at {falls:.1%} of the teleports, median factor {factor:.2g}"
            yield f"{name}: {text}"
    yield "checks: " + ", ".join(f"{name} {number(value):.1e}" for name, value in group["checks"].items())


#: Larger losses are drawn at this one.
WORST = 10.0


def draw(folder: Path, results: dict[str, Any]) -> None:
    """Final losses against learning rates."""
    with np.load(folder / "finals.npz", allow_pickle=False) as arrays:
        finals = dict(arrays)
    rates, target = finals.pop("rates"), results["groups"]["digits"]["target"]
    curves = {
        name: Curve(rates, np.minimum(np.median(np.where(np.isfinite(x), x, np.inf), axis=0), WORST))
        for name, x in finals.items()
    }
    y = f"final training loss: median ({WORST:g}: or worse)"
    shown = [
        Panel(
            "Adam" if adam else "gradient descent",
            {name: curve for name, curve in curves.items() if name.startswith("adam") == adam},
            *("learning rate", y, "xy", target),
        )
        for adam in (False, True)
    ]
    curve_panels(folder / "windows.png", shown)


STUDIES = {
    "balancing": Study(
        name="balancing",
        title=EXPERIMENTS["balancing"].title,
        seeds=24,
        analyse=analyse,
        figures=(draw,),
        tables=tables,
        settings=Settings(),
        quick={"seeds": 6, "settings": Settings(steps=120, rates=25)},
    )
}
