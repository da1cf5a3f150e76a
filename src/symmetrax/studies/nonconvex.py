"""Is a teleport like Newton's step where the loss is not convex?

Proposition 4.1 of arXiv:2504.15399: for a convex loss the part of Newton's step that is orthogonal to the
gradient, v, raises the gradient norm, as teleports do on purpose. Appendix A says that this may fail
elsewhere. Here it is counted: on Rosenbrock's function and chains of it, on random symmetric Hessians, and
on a small network before, during and after training; for Newton's step, for the saddle-free step -|H|^-1 g
and for the shifted step -(H + s I)^-1 g that trust regions and damping take. A second question is whether a
small move along the level set toward larger gradients turns -g toward these steps. All in float64.

For the shifted step the proposition holds without convexity: grad ||g||^2 = 2 H g = 2 (H + s I) g - 2 s g,
of which the last part is orthogonal to v, and the other is the proposition for H + s I > 0.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from symmetrax.studies import plots_online
from symmetrax.studies._landscapes import Tanh, chain, quadratic
from symmetrax.studies.core._console import Reporter, number, titled_table, verdict_table
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._shares import middle, share, share_text, share_verdict

SOURCE = "arXiv:2504.15399, proposition 4.1"
APPENDIX = "arXiv:2504.15399, appendix A"
REMARK = "arXiv:2504.15399, section 4.1"
OURS = "not in the paper"
OPEN = "arXiv:2504.15399 leaves it open"

#: Second-order steps whose part orthogonal to the gradient is looked at.
STEPS = ("newton", "saddle-free", "shifted")
#: Small moves along the level set: along Newton's orthogonal part, with the sign that raises the gradient
#: norm, and along the steepest ascent of the norm.
MOVES = ("orthogonal", "steepest")
#: Below this ratio of the smallest eigenvalue to the largest, both in size, a Hessian counts as singular.
SINGULAR = 1e-12
#: Upper ends of the bins for the share of negative eigenvalues.
BINS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 1.0)
#: Where on the ellipsoids of a convex quadratic points are drawn: uniformly in coordinates z = H^(1/2) x, in
#: which level sets are spheres, uniformly in x, or there and then descended by ten steps of 1/(2 L).
PLACES = ("uniform z", "uniform x", "descended")
#: Directions along the level set of a convex quadratic, all toward larger gradients: Newton's orthogonal
#: part, the rotation of z that raises the norm fastest, the direction in x that does, a random rotation of z.
DIRECTIONS = ("orthogonal", "rotation", "steepest", "random")

#: A loss of one vector, with arrays that differ from point to point.
Value = Callable[[Array, PyTree], Array]


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings. `points` are for each group but Rosenbrock's function, which has `plane`.

    `negative` are shares of negative eigenvalues of the random Hessians, rounded to whole numbers, at least
    one for a share that is not zero. `size` is how much a small move changes the gradient or the point,
    relative to their lengths. `shift` is the least eigenvalue of a shifted indefinite Hessian, relative to
    the largest of H in size.

    >>> config("nonconvex", "quick").points
    200
    """

    seed: int = 0
    points: int = 1000
    plane: int = 20_000
    convex: int = 20_000
    spread: float = 1.5
    sigma: float = 1.5
    size: float = 0.01
    shift: float = 0.01
    chains: tuple[int, ...] = (4, 8, 16, 32)
    dimensions: tuple[int, ...] = (2, 3, 5, 10, 20, 50)
    ellipsoids: tuple[int, ...] = (2, 3, 5, 10, 50)
    negative: tuple[float, ...] = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
    networks: int = 200
    units: tuple[int, int, int] = (4, 8, 3)
    samples: int = 64
    epochs: int = 2000
    rate: float = 0.1


def config(name: str, preset: str = "full", seed: int = 0) -> Config:
    """The settings under a preset.

    >>> config("nonconvex").chains
    (4, 8, 16, 32)
    """
    full = Config(seed=seed)
    less: dict[str, Any] = {"points": 200, "plane": 4000, "convex": 4000, "networks": 40, "epochs": 600}
    less |= {"chains": (4, 16), "dimensions": (2, 10, 50), "negative": (0.0, 0.1, 0.25, 0.5, 1.0)}
    return full if preset == "full" else dataclasses.replace(full, **less)


def measure(
    value_fn: Value, points: Float[Array, "p n"], data: PyTree, size: float, shift: float
) -> dict[str, np.ndarray]:
    """Everything that is measured, at each of the points.

    `eigenvalues`; for each of `STEPS` the slope of ||g||^2 along its part orthogonal to the gradient
    (`slope.NAME`) and the cosine of the step with -g (`cosine.NAME`); for each of `MOVES` that cosine after
    a small move (`MOVE.NAME`), the relative growth of ||g|| (`MOVE.growth`) and of the loss (`MOVE.loss`).
    Derivatives are compiled; eigenvectors are found on the host, where no batch of them can block the
    threads of a compiled program.

    >>> with jax.enable_x64(True):
    ...     found = measure(chain, jnp.array([[-1.0, 2.0]]), None, 0.01, 0.01)
    >>> bool(found["slope.newton"][0] < 0), bool(np.prod(found["eigenvalues"][0]) < 0)
    (True, True)
    """
    here, gradient, hessian = map(np.asarray, _derivatives(value_fn, points, data))
    eigenvalues, found = _steps(gradient, hessian, shift)
    slopes = {
        name: _dot(2 * _times(hessian, gradient), _orthogonal(d, gradient)) for name, d in found.items()
    }
    seen = {"eigenvalues": eigenvalues, "norm": _length(gradient)}
    seen |= {f"slope.{name}": slope for name, slope in slopes.items()}
    seen |= {f"cosine.{name}": _cosine(-gradient, step) for name, step in found.items()}
    moves = {
        "orthogonal": np.sign(slopes["newton"])[:, None] * _orthogonal(found["newton"], gradient),
        "steepest": _orthogonal(_times(hessian, gradient), gradient),
    }
    for name, direction in moves.items():
        # The shorter of two steps: one that changes the gradient by `size` of its length, and one that
        # changes the point by `size` of its own.
        unit = direction / _length(direction)[:, None]
        reach = np.minimum(_length(gradient) / _length(_times(hessian, unit)), _length(np.asarray(points)))
        ends = _back(value_fn, points + jnp.asarray(size * reach[:, None] * unit), data, jnp.asarray(here))
        value, after, bent = map(np.asarray, _derivatives(value_fn, ends, data))
        there = _steps(after, bent, shift)[1]
        seen |= {f"{name}.{step}": _cosine(-after, there[step]) for step in STEPS}
        seen[f"{name}.growth"] = _length(after) / _length(gradient) - 1
        seen[f"{name}.loss"] = (value - here) / np.abs(here)
    return seen


@eqx.filter_jit
def _derivatives(value_fn: Value, points: Array, data: PyTree) -> tuple[Array, Array, Array]:
    """Values, gradients and Hessians at all points."""

    def at(x, data):
        value, gradient = jax.value_and_grad(value_fn)(x, data)
        return value, gradient, jax.hessian(value_fn)(x, data)

    return jax.lax.map(lambda pair: at(*pair), (points, data), batch_size=50)


@eqx.filter_jit
def _back(value_fn: Value, points: Array, data: PyTree, levels: Array) -> Array:
    """Two of Newton's steps along the gradient, back to the level of each point."""

    def one(y, data, level):
        for _ in range(2):
            value, slope = jax.value_and_grad(value_fn)(y, data)
            y = y - (value - level) / jnp.sum(jnp.square(slope)) * slope
        return y

    return jax.vmap(one)(points, data, levels)


def _steps(
    gradients: np.ndarray, hessians: np.ndarray, shift: float
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Eigenvalues, and each of `STEPS`: Newton's, the saddle-free and the shifted one."""
    eigenvalues, axes = np.linalg.eigh(hessians)
    sizes, along = np.abs(eigenvalues), np.einsum("kji,kj->ki", axes, gradients)
    lift = np.maximum(-eigenvalues[:, 0], 0.0) + shift * np.max(sizes, axis=1)
    divisors = (eigenvalues, sizes, eigenvalues + lift[:, None])
    with np.errstate(divide="ignore", invalid="ignore"):  # singular Hessians are counted, not hidden
        steps = {name: -_times(axes, along / d) for name, d in zip(STEPS, divisors, strict=True)}
    return eigenvalues, steps


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.sum(a * b, axis=1)


def _length(a: np.ndarray) -> np.ndarray:
    return np.linalg.norm(a, axis=1)


def _times(matrices: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    return np.einsum("kij,kj->ki", matrices, vectors)


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return _dot(a, b) / (_length(a) * _length(b))


def _orthogonal(directions: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    """The part of each direction that is orthogonal to its gradient."""
    return directions - (_dot(directions, gradients) / _dot(gradients, gradients))[:, None] * gradients


def run(settings: Config, folder: RunFolder, reporter: Reporter) -> dict[str, Any]:
    """Measure every group, count, draw; return the groups, the convex quadratics and the verdicts."""
    with jax.enable_x64(True):
        key = jax.random.key(settings.seed)
        groups, arrays = {}, {}
        for name, value_fn, points, data in _groups(settings, key, reporter):
            seen = measure(value_fn, points, data, settings.size, settings.shift)
            groups[name] = summarize(seen)
            arrays |= {f"{name}.{label}": values.astype(np.float32) for label, values in seen.items()}
    reporter.note("convex quadratics")
    convex = {str(n): alignment(settings, n) for n in settings.ellipsoids}
    folder.arrays("points", arrays)
    results = {"groups": groups, "convex": convex, "verdicts": _verdicts(groups, convex)}
    plots_online.nonconvex(folder.path / "nonconvex.png", results)
    return results


def _groups(settings: Config, key: Key[Array, ""], reporter: Reporter):
    """Name, loss, points and data of every group, one after another."""
    keys = (jax.random.fold_in(key, i) for i in itertools.count())
    reporter.note("Rosenbrock's function and chains of it")
    for n in (2, *settings.chains):
        count = settings.plane if n == 2 else settings.points
        points = settings.spread * jax.random.normal(next(keys), (count, n))
        yield ("rosenbrock" if n == 2 else f"chain {n}"), chain, points, None
    for n in settings.dimensions:
        reporter.note(f"random Hessians in {n} dimensions")
        for negative in negatives(n, settings.negative):
            one, two = jax.random.split(next(keys))
            sizes = jnp.exp(settings.sigma * jax.random.normal(one, (settings.points, n)))
            eigenvalues = jnp.where(jnp.arange(n) < negative, -sizes, sizes)
            gradients = jax.random.normal(two, (settings.points, n))
            yield random_name(n, negative), quadratic, gradients / eigenvalues, eigenvalues
    reporter.note("a small network")
    network = Tanh(settings.units)
    data, ages = trained(settings, network, next(keys))
    for age, points in zip(AGES, ages, strict=True):
        yield f"network, {age}", network, points, data


def random_name(n: int, negative: int) -> str:
    """The name of a group of random Hessians.

    >>> random_name(10, 1)
    'random 10, 1 negative'
    """
    return f"random {n}, {negative} negative"


def negatives(n: int, shares: tuple[float, ...]) -> tuple[int, ...]:
    """Numbers of negative eigenvalues for shares of n: whole, and at least one for a share that is not zero.

    >>> negatives(5, (0.0, 0.1, 0.5, 0.9, 1.0))
    (0, 1, 2, 4, 5)
    """
    return tuple(dict.fromkeys(max(1, round(share * n)) if share else 0 for share in shares))


#: When the small network is looked at.
AGES = ("at initialization", "half way", "trained")


def trained(
    settings: Config, network: Tanh, key: Key[Array, ""]
) -> tuple[PyTree, tuple[Float[Array, "networks n"], ...]]:
    """Data of every network, and its parameters at each of `AGES`, by gradient descent on all data.

    Inputs are N(0, 1), targets those of another random network with weights three times as large.
    """

    @jax.jit
    def one(key):
        start, inputs, teacher = jax.random.split(key, 3)
        x = jax.random.normal(inputs, (settings.samples, settings.units[0]))
        data = (x, network.outputs(network.init(teacher, 3.0), x))

        def epoch(params, _):
            return params - settings.rate * jax.grad(network)(params, data), None

        first = network.init(start)
        half = jax.lax.scan(epoch, first, None, length=settings.epochs // 2)[0]
        last = jax.lax.scan(epoch, half, None, length=settings.epochs - settings.epochs // 2)[0]
        return data, (first, half, last)

    return jax.vmap(one)(jax.random.split(key, settings.networks))


def summarize(seen: dict[str, np.ndarray]) -> dict[str, Any]:
    """Shares and medians over all points of a group.

    A singular Hessian has no Newton step and counts as a point whose norm is not raised; so does whatever is
    not finite.
    """
    eigenvalues = seen["eigenvalues"]
    sizes = np.abs(eigenvalues)
    singular = ~(np.min(sizes, axis=1) > SINGULAR * np.max(sizes, axis=1))
    part = np.mean(eigenvalues < 0, axis=1)
    definite = ((part == 0) | (part == 1)) & ~singular
    indefinite = ~definite & ~singular
    with np.errstate(invalid="ignore"):
        rises = {name: (seen[f"slope.{name}"] > 0) & ~singular for name in STEPS}
        closer = {
            name: {move: seen[f"{move}.{name}"] > seen[f"cosine.{name}"] for move in MOVES} for name in STEPS
        }
    whole = np.all([np.isfinite(x).reshape(len(part), -1).all(axis=1) for x in seen.values()], axis=0)
    bins = np.digitize(part, BINS, right=True)
    return {
        "points": len(part),
        "dimension": eigenvalues.shape[1],
        "definite": share(definite),
        "singular": share(singular),
        "not_finite": share(~whole),
        "negative": middle(part),
        "rises": {name: share(hits) for name, hits in rises.items()},
        "rises_definite": {name: share(hits[definite]) for name, hits in rises.items()},
        "rises_indefinite": {name: share(hits[indefinite]) for name, hits in rises.items()},
        "by_negative": [
            {"upto": end, "points": int(np.sum(bins == i))}
            | {name: share(hits[bins == i]) for name, hits in rises.items()}
            for i, end in enumerate(BINS)
        ],
        "cosine": {
            name: {
                "before": middle(seen[f"cosine.{name}"]),
                "change": {move: middle(seen[f"{move}.{name}"] - seen[f"cosine.{name}"]) for move in MOVES},
                "closer": {move: share(hits) for move, hits in closer[name].items()},
            }
            for name in STEPS
        },
        "growth": {move: middle(seen[f"{move}.growth"]) for move in MOVES},
        "loss_change": {move: float(np.max(np.abs(seen[f"{move}.loss"]))) for move in MOVES},
    }


def alignment(settings: Config, n: int) -> dict[str, Any]:
    """On random convex quadratics: how often a move to larger gradients turns -g toward Newton's step.

    Eigenvalues are log-normal. `share` is counted from the sign of the derivative of the cosine, which for
    shares p_i = z_i^2 / ||z||^2 is (sum_i p_i d_i  sum_i p_i / d_i)^(-1/2).

    >>> found = alignment(config("nonconvex", "quick"), 2)
    >>> 0.45 < found["uniform z"]["orthogonal"]["share"] < 0.55
    True
    """
    random = np.random.default_rng((settings.seed, n))
    values = np.exp(settings.sigma * random.normal(size=(settings.convex, n)))
    drawn = random.normal(size=(settings.convex, n))
    turn = random.normal(size=(settings.convex, n))
    most = np.max(values, axis=1, keepdims=True)
    starts = {
        "uniform z": drawn / np.sqrt(values),
        "uniform x": drawn,
        "descended": drawn * (1 - 0.5 * values / most) ** 10,
    }
    found = {}
    for place, x in starts.items():
        moves, cosine = along_ellipsoid(values, x, turn)
        found[place] = {name: share(slope > 0) for name, slope in moves.items()} | {"cosine": middle(cosine)}
    return found


def along_ellipsoid(
    values: Float[np.ndarray, "p n"], x: Float[np.ndarray, "p n"], turn: Float[np.ndarray, "p n"]
) -> tuple[dict[str, Float[np.ndarray, " p"]], Float[np.ndarray, " p"]]:
    """Slopes of log cos(-g, Newton) along each of `DIRECTIONS`, and the cosine, on x' diag(values) x."""

    def dot(a, b):
        return np.sum(a * b, axis=1, keepdims=True)

    root = np.sqrt(values)
    z, g = root * x, 2 * values * x
    z2 = dot(z, z)
    random = turn - dot(turn, z) / z2 * z
    curved = 2 * values * g
    directions = {
        "orthogonal": root * (-x + dot(x, g) / dot(g, g) * g),
        "rotation": (values - dot(z, values * z) / z2) * z,
        "steepest": root * (curved - dot(curved, g) / dot(g, g) * g),
        "random": random * np.sign(dot(values * z, random)),
    }
    p = z**2 / z2
    up, down = dot(p, values), dot(p, 1 / values)
    slopes = {}
    for name, dz in directions.items():
        dp = 2 * z * dz / z2
        slopes[name] = -0.5 * (dot(dp, values) / up + dot(dp, 1 / values) / down)[:, 0]
    return slopes, (up * down)[:, 0] ** -0.5


def _verdicts(groups: dict[str, Any], convex: dict[str, Any]) -> list[dict[str, str]]:
    """What became of the proposition, of its appendix, and of the remark about small teleports."""

    def pooled(key: str, step: str, names: Any) -> dict[str, float]:
        count, of = (sum(groups[name][key][step][field] for name in names) for field in ("count", "of"))
        return share(np.arange(of) < count)

    plane = [name for name in groups if groups[name]["dimension"] == 2]
    raises = "Newton's part along the level set raises the gradient norm"
    rises = pooled("rises_indefinite", "newton", plane)
    falls = share(np.arange(rises["of"]) >= rises["count"])
    claim = f"{raises} wherever the Hessian is definite, positive or negative"
    rows = [share_verdict(claim, SOURCE, pooled("rises_definite", "newton", groups), 1)]
    claim = f"in two dimensions {raises.replace('raises', 'lowers')} wherever the Hessian is indefinite"
    rows.append(share_verdict(claim, APPENDIX, falls, 1))
    others = [name for name in groups if not name.startswith("random")]
    for name in others:
        claim = f"{name}: {raises} at most points"
        rows.append(share_verdict(claim, OPEN, groups[name]["rises"]["newton"]))
    for name in others:
        claim = f"{name}: the saddle-free step's part does so at most points"
        rows.append(share_verdict(claim, OURS, groups[name]["rises"]["saddle-free"]))
    claim = "the part of the shifted step along the level set does so at every point of every group"
    rows.append(share_verdict(claim, OURS, pooled("rises", "shifted", groups), 1))
    closer = "a small move to larger gradients turns -g toward"
    for n, places in convex.items():
        claim = f"convex quadratics in {n} dimensions, z uniform: {closer} Newton's step"
        rows.append(share_verdict(claim, REMARK, places["uniform z"]["orthogonal"]))
    for name in others:
        found = groups[name]["cosine"]["saddle-free"]["closer"]["orthogonal"]
        rows.append(share_verdict(f"{name}: {closer} the saddle-free step", REMARK, found))
    return rows


def show(settings: Config, results: dict[str, Any], reporter: Reporter) -> None:
    """Print the tables of shares and cosines, and the verdicts."""
    groups = results["groups"]
    others = {name: group for name, group in groups.items() if not name.startswith("random")}
    columns = ("points", "definite", "singular", "not finite", "negative eigenvalues, median")
    table = titled_table("points and their Hessians", "group", columns)
    for name, group in others.items():
        counts = [f"{group[key]['share']:.0%}" for key in ("definite", "singular", "not_finite")]
        table.add_row(name, f"{group['points']:,}", *counts, f"{number(group['negative']['median']):.0%}")
    reporter.print(table)
    title = "share of points where a step's part along the level set raises the gradient norm (95 %)"
    table = titled_table(title, "group", ("newton", "newton, indefinite", "saddle-free", "shifted"))
    for name, group in others.items():
        rises = [group["rises"][step] for step in STEPS]
        rises.insert(1, group["rises_indefinite"]["newton"])
        table.add_row(name, *map(share_text, rises))
    reporter.print(table)
    ends = ["0%", *(f"to {end:.0%}" for end in BINS[1:])]
    table = titled_table("the same, newton, in % by the share of negative eigenvalues", "group", ends)
    for name, group in others.items():
        table.add_row(name, *(_percents(part["newton"]) for part in group["by_negative"]))
    reporter.print(table)
    shares = [f"{part:.0%}" for part in settings.negative]
    for step in ("newton", "saddle-free"):
        title = f"random Hessians, {step}, in % by the share of negative eigenvalues"
        table = titled_table(title, "dimensions", shares)
        for n in settings.dimensions:
            found = []
            for part in settings.negative:
                (count,) = negatives(n, (part,))
                near = abs(count / n - part) < 0.11 and (count < n or part == 1)
                found.append(_percents(groups[random_name(n, count)]["rises"][step]) if near else "")
            table.add_row(str(n), *found)
        reporter.print(table)
    title = (
        "median cosine of -g with a step, before and after a small move; how often the move brings it closer"
    )
    table = titled_table(title, "group", [f"{step}, {move}" for step in STEPS for move in MOVES])
    for name, group in others.items():
        cells = [_closer(group["cosine"][step], move) for step in STEPS for move in MOVES]
        table.add_row(name, *cells)
    reporter.print(table)
    title = (
        "convex quadratics: share of points where a move to larger gradients turns -g toward Newton's step"
    )
    table = titled_table(title, "dimensions, place", DIRECTIONS)
    for n, places in results["convex"].items():
        for place, found in places.items():
            table.add_row(f"{n}, {place}", *(share_text(found[name]) for name in DIRECTIONS))
    reporter.print(table)
    reporter.print(verdict_table(results["verdicts"]))


def _percents(found: dict[str, Any]) -> str:
    return share_text(found).replace(" %", "").replace(" to ", "-")


def _closer(cosine: dict[str, Any], move: str) -> str:
    before, change = cosine["before"]["median"], cosine["change"][move]["median"]
    return f"{number(before):.3f} {number(change):+.4f}, {number(cosine['closer'][move]['share']):.0%}"
