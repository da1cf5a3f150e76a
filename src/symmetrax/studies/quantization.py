"""What does rounding weights to few bits lose, and how much of it do equalization and rotations win back?

The rules: networks are trained briefly from several seeds; nothing is tuned. Every matrix is rounded to the
nearest of 2^bits - 1 levels, with a scale for the whole matrix or for every output channel; activations and
biases stay. The gap is the loss on unseen data of the rounded network minus that of the network itself. An
arm first moves the parameters along the network's symmetry, which is certified to leave the logits as they
are, and then rounds. Its share is the part of the gap that it closes: 1 if it loses nothing, and negative if
it loses more than plain rounding. Shares are ratios of means over seeds with Fieller's intervals, and are
reported where the t-interval of the gap is above zero; elsewhere the interval of a ratio has no end.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.table
import scipy.stats
from jaxtyping import Array, Float, Int, Key, PyTree

from symmetrax.objectives._base import AbstractObjective
from symmetrax.objectives._quantization import QuantizationError, quantized
from symmetrax.search._basis import RandomBasis
from symmetrax.search._best_basis import BestBasis
from symmetrax.search._equalized import Equalized
from symmetrax.search._orbit import Orbit
from symmetrax.studies._quantization_networks import Network, classifier, language_model
from symmetrax.studies._registry import EXPERIMENTS
from symmetrax.studies.core._console import mean_text, titled_table
from symmetrax.studies.core._measurements import interval_panels
from symmetrax.studies.core._run import Run
from symmetrax.studies.core._shares import average
from symmetrax.studies.core._statistics import LEVEL, Interval, t_interval, verdict
from symmetrax.studies.core._study import Study
from symmetrax.tasks._language import ARCHITECTURES, Architecture

PERS = ("tensor", "channel")
ROTATED = ("random", "best", "best + equalized")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How long the networks are trained, the numbers of bits, and the bases that are tried.

    >>> Settings().bits
    (8, 7, 6, 5, 4, 3)
    """

    image_steps: int = 400
    text_steps: int = 400
    architecture: Architecture = ARCHITECTURES[0]
    bits: tuple[int, ...] = (8, 7, 6, 5, 4, 3)
    samples: int = 16
    networks: tuple[str, ...] = ("cnn", "cnn, folded", "transformer")


#: Network, scales, first arm, second arm (or plain rounding), claim and source; at `JUDGED` bits.
CLAIMS = (
    ("cnn, folded", "tensor", "equalized", "", "equalization helps after batch norm", "arXiv:1906.04721"),
    ("cnn", "tensor", "equalized", "", "equalization helps a CNN without batch norm", "arXiv:1906.04721"),
    ("transformer", "tensor", "equalized", "", "equalization helps a transformer", "ours"),
    ("transformer", "tensor", "random", "", "a random rotation helps a transformer", "arXiv:2404.00456"),
    ("transformer", "channel", "random", "", "a random rotation helps a transformer", "arXiv:2404.00456"),
    ("transformer", "tensor", "best", "random", "the best of several rotations helps more", "ours"),
    ("transformer", "channel", "best", "random", "the best of several rotations helps more", "ours"),
    ("transformer", "tensor", "best + equalized", "best", "equalization adds to a rotation", "ours"),
)
JUDGED = 4


def analyse(run: Run) -> dict[str, Any]:
    """Trains all networks from all seeds, rounds them at every point, and compares losses."""
    settings: Settings = run.study.settings
    kinds: dict[str, Callable[[], Network]] = {
        "cnn": lambda: classifier(settings.image_steps, normalized=False),
        "cnn, folded": lambda: classifier(settings.image_steps, normalized=True),
        "transformer": lambda: language_model(settings.architecture, settings.text_steps),
    }
    networks, arrays, known = {}, {}, {}
    for name in settings.networks:
        run.reporter.note(name)
        network = kinds[name]()
        rounding = Rounding(network, settings)
        found = [rounding.losses(network.train(key), jax.random.fold_in(key, 1)) for key in run.streams.test]
        losses = {key: np.stack([loss[key] for loss, _ in found]) for key in found[0][0]}
        changes = {arm: float(np.max([change[arm] for _, change in found])) for arm in found[0][1]}
        arrays |= {f"{name}.{'.'.join(key)}": values for key, values in losses.items()}
        known[name] = losses
        networks[name] = _summary(settings, losses) | {"logit_change": changes}
        if not network.rotates:
            networks[name]["rotations"] = _rejection(network)
    run.folder.arrays("losses", arrays)
    return {"networks": networks, "verdicts": list(_verdicts(settings, known))}


class ErrorOf(AbstractObjective):
    """`QuantizationError` with the scales that `per` says, an index of `PERS`: one program for all.

    >>> params = {"w": jnp.array([[0.0, 3.0], [0.5, 0.75]])}
    >>> [float(ErrorOf(jnp.array(3), jnp.array(per))(None, params)) < 0 for per in (0, 1)]
    [True, False]
    """

    bits: Int[Array, ""]
    per: Int[Array, ""]

    @property
    def cost(self) -> float:
        return 0.0

    def __call__(self, value_fn: Callable | None, params: PyTree) -> Float[Array, ""]:
        return jnp.stack([QuantizationError(self.bits, per)(None, params) for per in PERS])[self.per]


class Rounding:
    """Points of the orbit of a network, and the losses of the networks that are rounded there.

    >>> from symmetrax.studies._quantization_networks import classifier
    >>> Rounding(classifier(1, normalized=False), Settings()).arms
    ('plain', 'equalized')
    """

    def __init__(self, network: Network, settings: Settings):
        self.network, self.bits = network, jnp.asarray(settings.bits)
        self.samples = settings.samples
        self.arms = ("plain", "equalized", *ROTATED) if network.rotates else ("plain", "equalized")
        self.loss, self.logits = jax.jit(network.loss), jax.jit(network.logits)

    @functools.cached_property
    def equalized(self) -> Callable[[PyTree], PyTree]:
        """Equal ranges on both sides of every unit."""

        def moved(params):
            orbit = Orbit(self.network.loss, params, self.network.symmetry, objective=QuantizationError(4))
            return self.network.symmetry.act(self.network.symmetry.exp(Equalized()(orbit)), params)

        return jax.jit(moved)

    @functools.cached_property
    def random(self) -> Callable[[PyTree, Key[Array, ""]], PyTree]:
        """One random basis."""
        symmetry = self.network.symmetry
        return jax.jit(lambda p, key: symmetry.act(RandomBasis(key)((), symmetry, p, 0), p))

    @functools.cached_property
    def best(self) -> Callable[[PyTree, Key[Array, ""], Array, Array], PyTree]:
        """The best of several random bases for these bits and scales, an index of `PERS`."""
        symmetry = self.network.symmetry

        def moved(params, key, bits, per):
            search = BestBasis(key, ErrorOf(bits, per), self.samples)
            return symmetry.act(search((), symmetry, params, 0), params)

        return jax.jit(moved)

    @functools.cached_property
    def rounded(self) -> Callable[[str, PyTree, Array], Array]:
        """The losses after rounding the parameters, which may differ by the number of bits."""

        def loss(per, params, bits):
            return self.network.loss(quantized(params, bits, per=per))

        return jax.jit(loss, static_argnums=0)

    def points(self, params: PyTree, key: Key[Array, ""]) -> Iterator[tuple[str, str, list[PyTree]]]:
        """Yields the arm, the scales, and the parameters before rounding to each number of bits."""
        same: dict[str, PyTree] = {"plain": params, "equalized": self.equalized(params)}
        if self.network.rotates:
            same["random"] = self.random(params, key)
        for k, per in enumerate(PERS):
            for arm, point in same.items():
                yield arm, per, [point] * len(self.bits)
            if self.network.rotates:
                best = [self.best(params, key, bits, jnp.asarray(k)) for bits in self.bits]
                yield "best", per, best
                yield "best + equalized", per, [self.equalized(point) for point in best]

    def losses(
        self, params: PyTree, key: Key[Array, ""]
    ) -> tuple[dict[tuple[str, str], np.ndarray], dict[str, float]]:
        """Losses by arm and scales, for every number of bits; and the largest change of a logit by an arm."""
        found = {("full", ""): np.asarray(self.loss(params))}
        changes: dict[str, float] = {}
        logits = self.logits(params)
        for arm, per, points in self.points(params, key):
            change = max(float(jnp.max(jnp.abs(self.logits(p) - logits))) for p in points[:1] + points[-1:])
            changes[arm] = max(change, changes.get(arm, 0.0))
            values = [self.rounded(per, p, bits) for p, bits in zip(points, self.bits, strict=True)]
            found[arm, per] = np.asarray(values)
        return found, changes


def share(won: Float[np.ndarray, " seeds"], gap: Float[np.ndarray, " seeds"]) -> dict[str, float] | None:
    """The mean of `won` over that of `gap`, by seed, with Fieller's 95 % interval; None if that has no end.

    It holds all ratios r for which the mean of won - r gap is not significantly different from zero.

    >>> gap = np.array([1.0, 1.2, 0.8, 1.1])
    >>> {key: round(value, 2) for key, value in share(gap / 2, gap).items()}
    {'mean': 0.5, 'low': 0.5, 'high': 0.5}
    """
    if t_interval(gap)[0] <= 0:
        return None
    t = scipy.stats.t.ppf((1 + LEVEL) / 2, len(gap) - 1)
    (vx, vxy), (_, vy) = np.cov(won, gap) * t**2 / len(gap)
    x, y = np.mean(won), np.mean(gap)
    # The ends are the roots of (x - r y)^2 = vx - 2 r vxy + r^2 vy.
    lead, half, last = y**2 - vy, x * y - vxy, x**2 - vx
    reach = np.sqrt(max(half**2 - lead * last, 0.0))
    return {"mean": float(x / y), "low": float((half - reach) / lead), "high": float((half + reach) / lead)}


def _summary(settings: Settings, losses: dict[tuple[str, str], np.ndarray]) -> dict[str, Any]:
    """The loss, and by scales and bits the gap and all shares, with intervals."""
    full, summary = losses["full", ""], {"loss": average(losses["full", ""])}
    for per in PERS:
        plain, rows = losses["plain", per], {}
        for k, bits in enumerate(settings.bits):
            gap = plain[:, k] - full
            found = {
                arm: share(plain[:, k] - values[:, k], gap)
                for (arm, other), values in losses.items()
                if other == per and arm != "plain"
            }
            shares = {arm: entry for arm, entry in found.items() if entry is not None}
            rows[str(bits)] = {"gap": average(gap), "shares": shares}
        summary[per] = rows
    return summary


def _rejection(network: Network) -> str:
    """The error of a search for a basis, where there are no rotations."""
    try:
        RandomBasis(jax.random.key(0)).check(network.symmetry)
    except ValueError as error:
        return str(error)
    raise AssertionError("The symmetry has rotations.")


def _verdicts(
    settings: Settings, losses: dict[str, dict[tuple[str, str], np.ndarray]]
) -> Iterator[dict[str, str]]:
    k = settings.bits.index(JUDGED)
    for name, per, first, second, text, source in CLAIMS:
        if name not in settings.networks:
            continue
        own, claim = losses[name], f"{text} ({name}, {JUDGED} bits per {per})"
        gap = own["plain", per][:, k] - own["full", ""]
        found = share(own[second or "plain", per][:, k] - own[first, per][:, k], gap)
        if found is None:
            nothing = Interval(0.0, -np.inf, np.inf)
            yield verdict(claim, source, nothing) | {"why": "plain rounding costs too little to tell"}
            continue
        why = f"share of the gap {mean_text(found, '+.2f')}" + (f", beyond {second!r}" if second else "")
        interval = Interval(found["mean"], found["low"], found["high"])
        yield verdict(claim, source, interval, negative=False) | {"why": why}


def tables(study: Study, results: dict[str, Any]) -> Iterator[rich.table.Table]:
    """A table for each network and kind of scales."""
    for name, network in results["networks"].items():
        arms = [arm for arm in network["logit_change"] if arm != "plain"]
        for per in PERS:
            title = (
                f"{name}, a scale per {per}: loss {mean_text(network['loss'], '.3f')}, what rounding adds, "
                f"and the shares of that which are won back ({study.seeds} seeds, 95 %)"
            )
            table = titled_table(title, "bits", ("gap", *arms))
            for bits, row in network[per].items():
                shares = [mean_text(row["shares"][arm]) if arm in row["shares"] else "" for arm in arms]
                table.add_row(bits, mean_text(row["gap"], ".4f"), *shares)
            yield table
    change = titled_table("largest change of a logit before rounding", "network", ("equalized", *ROTATED))
    for name, network in results["networks"].items():
        moved = network["logit_change"]
        change.add_row(
            name, *(f"{moved[arm]:.0e}" if arm in moved else "" for arm in ("equalized", *ROTATED))
        )
    yield change


def draw(folder: Path, results: dict[str, Any]) -> None:
    """Shares with intervals: a panel for each network and kind of scales, a row for each number of bits."""
    panels: dict[str, dict[str, dict[str, Any]]] = {}
    for name, network in results["networks"].items():
        for per in PERS:
            panel: dict[str, dict[str, Any]] = {}
            for bits, row in network[per].items():
                for arm, share in row["shares"].items():
                    panel.setdefault(arm, {})[f"{bits} bits"] = share
            panels[f"{name}, per {per}"] = panel
    interval_panels(folder / "quantization.png", panels, "share of the gap", columns=2, limits=(-1.0, 1.0))


_TINY = Architecture(width=16, layers=1, heads=2, kv_heads=2, hidden=32, context=16)

STUDIES = {
    "quantization": Study(
        name="quantization",
        title=EXPERIMENTS["quantization"].title,
        analyse=analyse,
        figures=(draw,),
        tables=tables,
        seeds=5,
        settings=Settings(),
        quick={"seeds": 2, "settings": Settings(60, 60, _TINY, (8, 4, 3), 4, ("cnn, folded", "transformer"))},
    )
}
