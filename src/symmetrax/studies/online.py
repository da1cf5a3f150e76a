"""Learning to teleport on the fly: Algorithm 2 of arXiv:2504.15399, with the controls that it needs.

Published: on f(x) = x' A x in the plane, each update of the angle turns toward the short axis, and hence the
algorithm "provably learns the correct transformation". Here it runs on one ellipse step by step, on random
quadratics of the plane and of more dimensions, on the random families of the benchmark, and on a small
network. What is added: tuned gradient descent and momentum, twice the steps, the angle learned with the
opposite sign, random and constant angles of the same size, and the angle learned anew at every step.
"""

import dataclasses
import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from symmetrax.studies import plots_online
from symmetrax.studies._online_arms import OnlineArm, Runs, Starts, follow, make_starts, tuned
from symmetrax.studies.core._console import Reporter, number, titled_table, verdict_table
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._shares import average, middle, share, share_text, share_verdict
from symmetrax.studies.core._statistics import DIVERGED, Interval, compare, intervals, log_ratios, verdict
from symmetrax.studies.core._streams import Streams
from symmetrax.symmetry._quadratic import QuadraticForm
from symmetrax.tasks._base import AbstractTask, AbstractTaskFamily
from symmetrax.tasks._data import digits
from symmetrax.tasks._families import make_family
from symmetrax.tasks._supervised import ImageFamily

SOURCE = "arXiv:2504.15399, section 4.2"
CONTROL = "not in the paper: a control"
OURS = "not in the paper"
REFERENCES = ("gd", "gd-twice", "gd-tuned", "gd-tuned-twice", "momentum-tuned", "momentum-tuned-twice")
#: Rates of the angle that are not tuned.
BETAS = (0.01, 0.1, 1.0)
SOLVED = 1e-6
#: Arms whose update and angles the controls copy: a rate of the angle that is not tuned, and the tuned one.
CONTROLLED = ("online-0.1", "online")


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings.

    Every group has `seeds` times `tasks` runs and as many others to tune on, but those of the network, which
    has one for each seed and `practice` to tune on. `rates` and `betas` are the sizes of logarithmic grids.
    Random quadratics have matrices M M' + `ridge` I, M of standard normal entries, starts N(0, `spread`^2)
    and learning rates uniform in [`slow`, 1] / L, L the largest eigenvalue of the Hessian.

    >>> config("online").seeds * config("online").tasks
    1500
    """

    seed: int = 0
    seeds: int = 50
    tasks: int = 30
    steps: int = 30
    cap: int = 200
    ridge: float = 0.1
    spread: float = 3.0
    slow: float = 0.2
    many: int = 4
    groups: tuple[str, ...] = (
        *("quadratic 2", "quadratic 3", "quadratic 5", "quadratic 10"),
        *("ellipse-random", "rosenbrock-random", "network"),
    )
    rates: int = 25
    betas: int = 13
    momenta: tuple[float, ...] = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9)
    networks: int = 20
    width: int = 8
    images: int = 200
    network_steps: int = 100


def config(name: str, preset: str = "full", seed: int = 0) -> Config:
    """The settings under a preset.

    >>> config("online", "quick").groups[:2]
    ('quadratic 2', 'quadratic 3')
    """
    full = Config(seed=seed)
    less: dict[str, Any] = {"seeds": 20, "tasks": 10, "many": 4}
    less |= {"rates": 9, "betas": 5, "momenta": (0.0, 0.5, 0.8), "images": 100, "network_steps": 40}
    less |= {"networks": 8, "groups": ("quadratic 2", "quadratic 3", "rosenbrock-random", "network")}
    return full if preset == "full" else dataclasses.replace(full, **less)


class Quadratic(AbstractTask):
    """f(x) = x' matrix x, positive definite, from a start N(0, spread^2 I); `unit` is 1 / L.

    >>> task = Quadratic(jnp.diag(jnp.array([0.25, 9.0])), jnp.array(1.0))
    >>> task.loss(jnp.array([2.0, 1.0])).item(), task.symmetry().algebra
    (10.0, (1,))
    """

    matrix: Float[Array, "n n"]
    spread: Float[Array, ""]

    def init(self, key: Key[Array, ""]) -> Float[Array, " n"]:
        return self.spread * jax.random.normal(key, self.matrix.shape[:1])

    def batch(self, key: Key[Array, ""]) -> None:
        return None

    def loss(self, params: Float[Array, " n"], batch: None = None) -> Float[Array, ""]:
        return params @ self.matrix @ params

    def symmetry(self) -> QuadraticForm:
        return QuadraticForm(self.matrix)

    @property
    def unit(self) -> Float[Array, ""]:
        """The largest learning rate of the descent lemma."""
        return 0.5 / self.symmetry().values[-1]

    @property
    def minimum(self) -> Float[Array, " n"]:
        """Where the loss is zero."""
        return jnp.zeros(len(self.matrix))


class Quadratics(AbstractTaskFamily):
    """Random quadratics x' (M M' + ridge I) x in n dimensions.

    >>> family = Quadratics("mine", 3, jnp.array(0.1), jnp.array(1.0))
    >>> family.task(family.draw(jax.random.key(0))).matrix.shape
    (3, 3)
    """

    name: str = eqx.field(static=True)
    size: int = eqx.field(static=True)
    ridge: Float[Array, ""]
    spread: Float[Array, ""]

    def draw(self, key: Key[Array, ""]) -> Float[Array, "n n"]:
        m = jax.random.normal(key, (self.size, self.size))
        return m @ m.T + self.ridge * jnp.eye(self.size)

    def task(self, drawn: Float[Array, "n n"], shape: None = None) -> Quadratic:
        return Quadratic(drawn, self.spread)


def run(settings: Config, folder: RunFolder, reporter: Reporter) -> dict[str, Any]:
    """Run every arm of every group; write losses and pictures; return groups, steps and verdicts."""
    streams = Streams.of(settings.seed, settings.seeds)
    reporter.note("one ellipse, step by step")
    with jax.enable_x64(True):
        ellipse, curves = one_ellipse(settings.cap)
    groups, verdicts, arrays = {}, [], {f"ellipse.{name}": loss for name, loss in curves.items()}
    for name in settings.groups:
        reporter.note(f"{name}: tune, run all arms")
        seeds, arms, hyper, starts = run_group(settings, name, streams)
        groups[name] = describe(arms, hyper, starts, seeds)
        verdicts += group_verdicts(arms, groups[name], seeds, name)
        arrays |= {f"{name}.{arm}": ran.loss.astype(np.float32) for arm, ran in arms.items()}
    folder.arrays("losses", arrays)
    plots_online.ellipse(folder.path / "ellipse.png", curves, PAIRS)
    plots_online.groups(folder.path / "groups.png", groups)
    return {"ellipse": ellipse, "groups": groups, "verdicts": verdicts}


#: One ellipse, and learning rates: 1 / L and less, and one above 1 / (l1 + l2).
ELLIPSE = {"values": (0.25, 9.0), "start": (-5.0, 3.5), "rates": (1 / 18, 0.05, 0.02, 0.11)}
SMALL_BETAS = (1e-3, 1e-2, 1e-1)
PAIRS = [(rate, beta) for rate in ELLIPSE["rates"] for beta in SMALL_BETAS]
PLAIN, ONLINE, FIRST = OnlineArm("plain"), OnlineArm("online"), OnlineArm("online", order=1)
ANEW, GIVEN = OnlineArm("anew"), OnlineArm("given")


def one_ellipse(cap: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Steps until f < 1e-6 f(x_0) on one ellipse, at most `cap`, and the losses, at all rates of `PAIRS`.

    The same on a circle tells whether there is anything to learn: `circle` is the largest difference of
    Algorithm 2's losses from those of gradient descent there, relative to the first one.
    """
    values, start = (np.array(ELLIPSE[key], float) for key in ("values", "start"))
    rates, betas = np.array(PAIRS).T
    family = Quadratics("ellipse", 2, jnp.array(0.0), jnp.array(1.0))

    def starts(values, point) -> Starts:
        matrix = jnp.tile(jnp.diag(jnp.asarray(values)), (len(PAIRS), 1, 1))
        points = jnp.tile(jnp.asarray(point), (len(PAIRS), 1))
        return Starts(matrix, points, jax.random.split(jax.random.key(0), len(PAIRS)))

    def go(arm: OnlineArm, starts: Starts, unit: float) -> Runs:
        return follow(arm, {"rate": rates / unit, "beta": betas}, family, starts, cap)

    here, unit = starts(values, start), 0.5 / float(values[1])
    short = np.array([0.0, np.sqrt(np.sum(values * start**2) / values[1])])
    ran = {"gd": go(PLAIN, here, unit), "oracle": go(PLAIN, starts(values, short), unit)}
    ran |= {"online": go(ONLINE, here, unit), "first": go(FIRST, here, unit), "anew": go(ANEW, here, unit)}
    table: dict[str, Any] = {}
    for i, (rate, beta) in enumerate(PAIRS):
        row = table.setdefault(f"{rate:.4g}", {})
        for name, found in ran.items():
            loss = found.loss[i] / found.loss[i, 0]
            below = np.flatnonzero(loss < SOLVED)
            label = name if name in ("gd", "oracle") else f"{name} {beta:g}"
            row[label] = {"steps": int(below[0]) if len(below) else None, "last": float(loss[-1])}
    circle = starts(np.full(2, values[1]), start)
    plain, turning = (go(arm, circle, unit).loss for arm in (PLAIN, ONLINE))
    same = float(np.max(np.abs(turning - plain) / plain[:, :1]))
    return {"table": table, "circle": same}, {name: found.loss for name, found in ran.items()}


def family_of(settings: Config, name: str) -> tuple[AbstractTaskFamily, int, int]:
    """The family of a group, its number of tasks for each seed, and its steps."""
    if name.startswith("quadratic"):
        size = int(name.split()[1])
        family = Quadratics(name, size, jnp.array(settings.ridge), jnp.array(settings.spread))
        return family, settings.tasks if size == 2 else settings.many, settings.steps
    if name == "network":
        widths = (settings.width,)
        family = ImageFamily(name, *digits(), widths=widths, batch_size=settings.images, slope=0.1)
        return family, 1, settings.network_steps
    return make_family(name), settings.tasks, settings.steps


def run_group(
    settings: Config, name: str, streams: Streams
) -> tuple[int, dict[str, Runs], dict[str, dict[str, Any]], Starts]:
    """The number of seeds, what every arm of a group did, its hyperparameters, and the starts."""
    family, tasks, steps = family_of(settings, name)
    quadratic, network = name.startswith("quadratic"), name == "network"
    seeds = settings.networks if network else settings.seeds
    split = jax.vmap(lambda key: jax.random.split(key, tasks))
    starts = make_starts(family, split(streams.test[:seeds]).ravel())
    practice = make_starts(family, jax.random.split(streams.tune, seeds * tasks))
    lanes = seeds * tasks
    lowest, highest = (0.2, 4.0) if quadratic else (1e-2, 3.0) if network else (1e-3, 1.0)
    rates = np.geomspace(lowest, highest, settings.rates)
    betas = np.geomspace(1e-5, 10.0, settings.betas)
    angles = np.geomspace(1e-3, 1.5, settings.betas)

    def grid(**axes) -> list[dict[str, Any]]:
        return [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]

    def tune(arm, points, length=steps, **given):
        return tuned(arm, points, family, practice, length, **given)

    hyper = {"gd-tuned": tune(PLAIN, grid(rate=rates))}
    hyper["gd-tuned-twice"] = tune(PLAIN, grid(rate=rates), 2 * steps)
    momenta = grid(rate=rates, momentum=settings.momenta)
    hyper["momentum-tuned"] = tune(PLAIN, momenta)
    hyper["momentum-tuned-twice"] = tune(PLAIN, momenta, 2 * steps)
    if quadratic:
        draw = np.random.default_rng((settings.seed, 1)).uniform(settings.slow, 1.0, size=(2, lanes))
        base, other = ({"rate": row} for row in draw)
    else:
        base = other = hyper["gd-tuned"]
    hyper["gd"] = hyper["gd-twice"] = base

    def learned(arm, rate):
        """The rate of the angle that is best on other draws, at a fixed learning rate."""
        return {**rate, "beta": tune(arm, grid(**{k: [v] for k, v in other.items()}, beta=betas))["beta"]}

    hyper |= {f"online-{beta:g}": {**base, "beta": beta} for beta in BETAS}
    hyper["online"] = learned(ONLINE, base)
    hyper["online-first"] = learned(FIRST, base)
    for arm in CONTROLLED:
        hyper[f"{arm}-opposite"] = {**hyper[arm], "beta": -hyper[arm]["beta"]}
        hyper[f"{arm}-random"] = base
    hyper["anew"] = learned(ANEW, base)
    hyper["online-tuned"] = tune(ONLINE, grid(rate=rates[::3], beta=betas))
    heavy = hyper["momentum-tuned"]
    slower = heavy["rate"] * np.array([1.0, 0.7, 0.5, 0.35])
    hyper["online-momentum"] = tune(ONLINE, grid(rate=slower, momentum=[heavy["momentum"]], beta=betas))
    angle = tune(GIVEN, grid(**{k: [v] for k, v in other.items()}, angle=angles))["angle"]
    hyper["constant"] = {**base, "angle": angle}
    if quadratic:
        # The learning rate at which gradient descent is fastest, 1 / (l1 + ln), in units of 1 / (2 ln).
        spectrum = np.linalg.eigvalsh(np.asarray(starts.drawn))
        best = {"rate": 2 * spectrum[:, -1] / (spectrum[:, 0] + spectrum[:, -1])}
        hyper["gd-best"], hyper["online-best"] = best, {**best, "beta": hyper["online"]["beta"]}
        hyper["online-first-best"] = {**best, "beta": hyper["online-first"]["beta"]}

    arms: dict[str, Runs] = {}
    for arm, values in hyper.items():
        size: Any = _sizes(arms[arm.removesuffix("-random")]) if arm.endswith("-random") else 0.0
        length = 2 * steps if arm.endswith("twice") else steps
        arms[arm] = follow(_kind(arm), values, family, starts, length, size=size, timed=True)
    for arm in () if quadratic else CONTROLLED:
        guarded, hyper[f"{arm}-guarded"] = dataclasses.replace(ONLINE, guarded=True), hyper[arm]
        arms[f"{arm}-guarded"] = follow(guarded, hyper[arm], family, starts, steps, timed=True)
    return seeds, arms, hyper, starts


def _kind(arm: str) -> OnlineArm:
    """What an arm of that name is made of."""
    if arm.endswith("-random") or arm == "constant":
        return GIVEN
    if arm.startswith("online"):
        return FIRST if "first" in arm else ONLINE
    return ANEW if arm == "anew" else PLAIN


def describe(
    arms: dict[str, Runs], hyper: dict[str, dict[str, Any]], starts: Starts, seeds: int
) -> dict[str, Any]:
    """The statistics of all arms of a group over all runs, and what their teleports did."""
    losses = {name: _ends(ran, seeds) for name, ran in arms.items()}
    lanes = len(starts.keys)
    found = compare(losses, REFERENCES, lanes)
    last = {name: np.nan_to_num(ran.loss[:, -1], nan=np.inf) for name, ran in arms.items()}
    for name, ran in arms.items():
        size = _sizes(ran)
        moved = (size > 0) & np.isfinite(ran.farther)
        with np.errstate(invalid="ignore"):
            away = np.sum((ran.farther > 1e-6) & moved, axis=1) / np.sum(moved, axis=1)
        steps = ran.farther.shape[1]
        found[name] |= {
            "not_worse": share(last[name] <= last["gd"]),
            "steps": steps,
            "farther": average(away[np.isfinite(away)]),
            "rejected": average(np.mean(ran.outcome > 0, axis=1)),
            "size": middle(np.mean(size, axis=1)),
            "microseconds": 1e6 * ran.seconds / lanes / steps,
            "hyperparameters": {k: float(v) for k, v in hyper[name].items() if np.ndim(v) == 0},
        }
        if np.shape(starts.drawn)[1:] == (2, 2):
            found[name] |= _angles(ran, np.asarray(starts.drawn, float), hyper[name], "first" in name)
    return {"runs": lanes, "arms": found}


def _sizes(ran: Runs) -> np.ndarray:
    """Norms of the coordinates of all teleports; zero where they are not finite."""
    return np.nan_to_num(np.linalg.norm(ran.algebra.astype(float), axis=-1), posinf=0.0)


def _ends(ran: Runs, seeds: int) -> np.ndarray:
    """First and last losses, with the axes of the statistics: arms may differ in length.

    A run that has diverged counts as infinite, so that two such runs are a tie.
    """
    ends = ran.loss[:, [0, -1]].reshape(seeds, -1, 2)
    lost = ~(ends[..., 1:] <= DIVERGED * ends[..., :1])
    return np.where(lost & np.array([False, True]), np.inf, ends)


def _angles(ran: Runs, matrices: np.ndarray, hyper: dict[str, Any], first: bool) -> dict[str, Any]:
    """Degrees between the last point and the short axis, where level sets are circles, before and after the
    last step, and the share of runs where every update of the angle has the sign that the theory gives it."""
    values, axes = np.linalg.eigh(matrices)
    axes[:, :, 1] *= np.linalg.det(axes)[:, None]
    # z = diag(l)^(1/2) Q' x after the teleport of every step.
    z = np.sqrt(values)[:, None] * np.einsum("pji,psj->psi", axes, ran.there.astype(float))
    keep = 1 - np.asarray(hyper["rate"]).reshape(-1, 1) * values / values[:, -1:]
    after = keep * z[:, -1]
    degrees = {"angle": z[:, -1], "angle_after": after}
    found: dict[str, Any] = {}
    for name, end in degrees.items():
        size = np.degrees(np.arctan2(np.abs(end[:, 0]), np.abs(end[:, 1])))
        found |= {name: middle(size), f"{name}_aligned": share(size < 5)}
    if "beta" in hyper:
        mu = keep if first else keep**2
        slope = (mu[:, None, 1] - mu[:, None, 0]) * z[:, :-1, 0] * z[:, :-1, 1]
        change = np.sign(hyper["beta"]) * np.diff(ran.algebra[..., 0], axis=1)
        found["signs"] = share(np.all(change * slope <= 0, axis=1))
        toward = change * np.sign(z[:, :-1, 0] * z[:, :-1, 1])
        found["toward_short"] = average(np.mean(toward >= 0, axis=1))
    return found


def group_verdicts(
    arms: dict[str, Runs], group: dict[str, Any], seeds: int, name: str
) -> list[dict[str, str]]:
    """What became of the claim on a group, with and against its controls."""
    claim = "Algorithm 2 ends lower than"
    rows = [
        ("online-0.1", "gd", f"{claim} gradient descent at its rate, rate of the angle .1", SOURCE),
        ("online", "gd", f"{claim} gradient descent at its rate, rate of the angle tuned", SOURCE),
        ("online", "gd-twice", f"{claim} twice as many steps of gradient descent", CONTROL),
        ("online", "gd-tuned", f"{claim} gradient descent at a tuned rate", CONTROL),
        ("online-tuned", "gd-tuned", f"{claim} gradient descent, both tuned", CONTROL),
        ("online-tuned", "gd-tuned-twice", f"{claim} twice as many steps, both tuned", CONTROL),
        ("online-tuned", "momentum-tuned", f"{claim} heavy-ball momentum, both tuned", CONTROL),
        (
            "online-tuned",
            "momentum-tuned-twice",
            f"{claim} twice the steps of momentum, both tuned",
            CONTROL,
        ),
        ("online-momentum", "momentum-tuned", f"with momentum {claim} momentum alone, both tuned", CONTROL),
        ("online", "constant", "what is learned matters: lower than one constant angle, tuned", CONTROL),
        ("online", "anew", "memory matters: lower than with an angle learned anew at every step", CONTROL),
    ]
    for arm, rate in zip(CONTROLLED, (".1", "tuned"), strict=True):
        sign = f"the sign of the update matters (rate of the angle {rate}): lower than with the other"
        learned = f"what is learned matters (rate of the angle {rate}): lower than random angles of that size"
        rows += [(arm, f"{arm}-opposite", sign, CONTROL), (arm, f"{arm}-random", learned, CONTROL)]
    if "online-0.1-guarded" in arms:
        rows.append(("online-0.1-guarded", "online-0.1", "the guard helps, rate of the angle .1", CONTROL))
    losses = {arm: _ends(ran, seeds) for arm, ran in arms.items()}
    found = intervals({(a, b): log_ratios(losses[a], losses[b]) for a, b, _, _ in rows})
    verdicts = [_verdict(f"{name}: {text}", source, found[a, b]) for a, b, text, source in rows]
    described = group["arms"]
    if "signs" in described["online-0.1"]:
        for beta in BETAS:
            arm, where = described[f"online-{beta:g}"], f"{name}, rate of the angle {beta:g}"
            text = f"{where}: every update turns toward the short axis"
            verdicts.append(share_verdict(text, SOURCE, arm["signs"], 1))
            text = f"{where}: the angle learned is the correct one (at the end within 5 degrees in most runs)"
            verdicts.append(share_verdict(text, SOURCE, arm["angle_aligned"]))
            text = f"{where}: never worse than gradient descent at the same rate and steps"
            verdicts.append(share_verdict(text, SOURCE, arm["not_worse"], 1))
    return verdicts


def _verdict(claim: str, source: str, interval: Interval) -> dict[str, str]:
    """The usual verdict, but none where the whole interval is within 1 % of equality."""
    row = verdict(claim, source, interval)
    if max(abs(interval.low), abs(interval.high)) < 0.01:
        row |= {"outcome": "inconclusive", "why": "final losses are equal to 1 %"}
    return row


def show(settings: Config, results: dict[str, Any], reporter: Reporter) -> None:
    """Print the tables of a run, and the verdicts."""
    rows = results["ellipse"]["table"]
    title = (
        f"x' diag(.25, 9) x, by learning rate: steps until f < 1e-6 f(x_0), or the ratio after {settings.cap}"
    )
    table = titled_table(title, "arm", list(rows))
    for arm in next(iter(rows.values())):
        table.add_row(arm, *(_steps(row[arm]) for row in rows.values()))
    reporter.print(table)
    same = f"On a circle losses differ from those of gradient descent by {results['ellipse']['circle']:.1e}."
    reporter.print(same)
    for name, group in results["groups"].items():
        arms = group["arms"]
        order = sorted(arms, key=lambda arm: _over_gd(arms[arm])[0])
        title = f"{name}: log10 of the final loss over another's, median of all {group['runs']:,} runs (95 %)"
        columns = ("at most gd's", "over gd", "over gd-tuned", "over momentum-tuned", "diverged")
        table = titled_table(title, "arm", columns)
        for arm in order:
            table.add_row(arm, *_losses(arms[arm]))
        reporter.print(table)
        columns = ["farther", "rejected", "size", "us/step", "hyperparameters"]
        columns += ["angle", "after", "within 5 degrees"] if "angle" in arms["gd"] else []
        table = titled_table(f"{name}: teleports, and what they cost", "arm", columns)
        for arm in order:
            table.add_row(arm, *_teleports(arms[arm]))
        reporter.print(table)
    reporter.print(verdict_table(results["verdicts"]))


def _steps(cell: dict[str, Any]) -> str:
    return f"{number(cell['last']):.1e}" if cell["steps"] is None else str(cell["steps"])


def _over_gd(row: dict[str, Any]) -> tuple[float, ...]:
    """log10 of the ratio to gradient descent at the same rate: median, and its interval."""
    found = row["versus"].get("gd", {"log_ratio": 0.0, "low": 0.0, "high": 0.0})
    return tuple(number(found[key]) / np.log(10) for key in ("log_ratio", "low", "high"))


def _losses(row: dict[str, Any]) -> list[str]:
    cells = [f"{number(row['not_worse']['share']):.1%}"]
    for other in ("gd", "gd-tuned", "momentum-tuned"):
        found = row["versus"].get(other)
        cells.append("" if found is None else _decades(found))
    return [*cells, f"{row['diverged'] / row['runs']:.1%}"]


def _decades(found: dict[str, Any]) -> str:
    """A log ratio and its interval, in powers of ten."""
    middle, low, high = (number(found[key]) / np.log(10) for key in ("log_ratio", "low", "high"))
    return f"{middle:.2f} ({low:.1f} to {high:.1f})"


def _teleports(row: dict[str, Any]) -> list[str]:
    farther = number(row["farther"]["mean"])
    cells = ["" if np.isnan(farther) else f"{farther:.0%}", f"{number(row['rejected']['mean']):.0%}"]
    cells += [f"{number(row['size']['median']):.2g}", f"{number(row['microseconds']):.2g}"]
    cells.append(", ".join(f"{key} {value:.2g}" for key, value in row["hyperparameters"].items()))
    if "angle" in row:
        cells += [f"{number(row[key]['median']):.0f}" for key in ("angle", "angle_after")]
        cells.append(share_text(row["angle_aligned"]))
    return cells
