"""The loss barrier between networks that were trained independently, before and after matching their gauges.

Pairs of networks with different seeds are trained. The symmetries of the architecture are discovered; then
one network is moved as near as possible to the other, by permutations alone (as in Git Re-Basin) or by all
groups at once, and the rise of the test loss on the straight line between the two is measured. A copy of the
second network, moved by a random element of all groups, is matched too: there nothing should remain.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from symmetrax._tree import leaf_names
from symmetrax.discovery._draws import draw
from symmetrax.discovery._find import find_symmetries
from symmetrax.discovery._report import Discovery
from symmetrax.groups._diagonal import Permutation
from symmetrax.studies._barrier_models import NETWORKS, Network, Params, trained, transformer
from symmetrax.studies._registry import EXPERIMENTS
from symmetrax.studies.core._console import titled_table
from symmetrax.studies.core._measurements import interval_panels
from symmetrax.studies.core._run import Run
from symmetrax.studies.core._shares import average
from symmetrax.studies.core._statistics import Interval, verdict
from symmetrax.studies.core._study import Study
from symmetrax.symmetry._barrier import barrier
from symmetrax.symmetry._dense import DenseAction
from symmetrax.symmetry._match import match

SOURCE = "arXiv:2209.04836 for permutations; the claim about all groups is ours"
#: How one network is moved towards the other.
NONE, PERMUTED, MATCHED, COPY = "nothing", "permutations", "all groups", "a copy, all groups"
ARMS = (NONE, PERMUTED, MATCHED, COPY)


@dataclasses.dataclass(frozen=True)
class Settings:
    """The networks, and how long they are trained and matched; the number of pairs is that of seeds.

    >>> Settings().networks
    ('perceptron', 'cnn', 'transformer')
    """

    networks: tuple[str, ...] = tuple(NETWORKS)
    steps: int = 1000
    size: int = 32
    layers: int = 2
    points: int = 25
    restarts: int = 1
    sweeps: int = 50


def analyse(run: Run) -> dict[str, Any]:
    """Train pairs, discover, match, measure; compare over pairs."""
    settings = run.study.settings
    barriers: dict[str, dict[str, np.ndarray]] = {}
    about: dict[str, dict[str, Any]] = {}
    for name in settings.networks:
        run.reporter.note(name)
        barriers[name], about[name] = _measured(run, _network(name, settings), settings)
    run.folder.arrays(
        "barriers", {f"{name}.{arm}": x for name, arms in barriers.items() for arm, x in arms.items()}
    )
    table = {name: {arm: average(x) for arm, x in arms.items()} for name, arms in barriers.items()}
    return {"barriers": table, "networks": about, "verdicts": list(_verdicts(barriers))}


def _network(name: str, settings: Settings) -> Network:
    return transformer(layers=settings.layers) if name == "transformer" else NETWORKS[name]()


def _measured(run: Run, network: Network, settings: Settings) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The barriers of all pairs under every arm; losses, distances, and what was found."""
    keys = jax.numpy.stack([jax.random.split(key, 3) for key in run.streams.test])
    ends = [trained(network, keys[:, k], steps=settings.steps, size=settings.size) for k in (0, 1)]
    pairs = [tuple(jax.tree.map(lambda x, at=at: x[at], end) for end in ends) for at in range(len(keys))]
    found = [_discovered(run, network, pairs[0][0], groups) for groups in (None, [Permutation])]
    value = jax.jit(lambda params: network.loss(params, network.test))
    measured: dict[str, list[float]] = {arm: [] for arm in ARMS}
    distances: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for (a, b), key in zip(pairs, keys[:, 2], strict=True):
        starts = {PERMUTED: a, MATCHED: a, COPY: _moved(found[0], b, key)}
        for arm in ARMS:
            near = a
            if arm != NONE:
                options = {"restarts": settings.restarts, "sweeps": settings.sweeps}
                result = match(starts[arm], b, found[arm == PERMUTED].exact, **options)
                near = result.params
                distances[arm].append(result.distance)
                if arm == MATCHED:
                    distances[NONE].append(result.before)
            measured[arm].append(barrier(value, near, b, points=settings.points))
    about = {
        "loss": average([float(value(params)) for pair in pairs for params in pair]),
        "distances": {arm: average(values) for arm, values in distances.items()},
        "groups": [str(one.group) for one in found[0].exact],
    }
    return {arm: np.array(values) for arm, values in measured.items()}, about


def _discovered(run: Run, network: Network, params: Params, groups: Any) -> Discovery:
    """The symmetries of the architecture; they are the same for all pairs."""
    key = jax.random.key(run.study.seed)
    only = {} if groups is None else {"groups": groups}

    def batch(key: Any) -> Any:
        return network.batch(key, 16)

    return find_symmetries(network.loss, params, key, batch=batch, method="program", **only)


def _moved(found: Discovery, params: Params, key: Any) -> Params:
    """The same function, by a random element of every symmetry."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    leaves, structure = jax.tree.flatten(params)
    named = dict(zip(leaf_names(params), map(np.asarray, leaves), strict=True))
    for one in found.exact:
        symmetry = one.symmetry
        action = DenseAction(symmetry, {name: draw(group, rng) for name, group in symmetry.spaces.items()})
        named |= {path: action.move(path, named[path]) for path in symmetry.specs}
    return jax.tree.unflatten(structure, named.values())


def _verdicts(barriers: dict[str, dict[str, np.ndarray]]) -> Iterator[dict[str, str]]:
    """Whether each arm lowers the barrier against the one before it."""
    texts = {
        (PERMUTED, NONE): "matching by permutations lowers the barrier",
        (MATCHED, PERMUTED): "matching by all discovered groups lowers it further than permutations alone",
        (MATCHED, NONE): "matching by all discovered groups lowers the barrier",
    }
    for (name, arms), ((first, second), text) in itertools.product(barriers.items(), texts.items()):
        found = average(arms[first] - arms[second])
        interval = Interval(found["mean"], found["low"], found["high"])
        why = (
            f"mean difference {interval.log_ratio:+.2f} nats "
            f"(95 % interval {interval.low:+.2f} to {interval.high:+.2f})"
        )
        yield verdict(f"{name}: {text}", SOURCE, interval) | {"why": why}


def tables(study: Study, results: dict[str, Any]) -> Iterator[Any]:
    """Barriers, and distances in brackets."""
    title = f"barrier in nats, and distance, after matching by ...; {study.seeds} pairs (95 %)"
    table = titled_table(title, "network", ("test loss", *ARMS))
    for name, row in results["barriers"].items():
        about = results["networks"][name]
        cells = (f"{_text(row[arm])} ({about['distances'][arm]['mean']:.2f})" for arm in ARMS)
        table.add_row(name, f"{about['loss']['mean']:.2f}", *cells)
    yield table


def _text(entry: dict[str, Any]) -> str:
    return f"{entry['mean']:.2f} ± {entry['high'] - entry['mean']:.2f}"


def picture(folder: Path, results: dict[str, Any]) -> None:
    """Barriers with their intervals, a panel for each network."""
    shown = {name: {"": row} for name, row in results["barriers"].items()}
    interval_panels(folder / "barriers.png", shown, "barrier in nats", columns=3)


STUDIES = {
    "barrier": Study(
        name="barrier",
        title=EXPERIMENTS["barrier"].title,
        seeds=5,
        analyse=analyse,
        figures=(picture,),
        tables=tables,
        settings=Settings(),
        quick={"seeds": 2, "settings": Settings(steps=100, layers=1, points=9, restarts=0, sweeps=10)},
    )
}
