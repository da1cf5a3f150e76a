"""Classifiers trained epoch by epoch, many lanes at once, with teleports before the first steps of one epoch.

A *lane* is one training run: an arm under one seed. All lanes of a seed share start, minibatches and the
batches of their teleports. Whole epochs are compiled; what arms do differently (learning rate, transport of
the state, a random element instead of the one found) is data, so that all arms share a few programs. Lanes
go through these programs in blocks of one size: none compiles twice.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Key, PyTree

from symmetrax._tree import safe_norm, select, squared_norm
from symmetrax.metatrain._devices import spread
from symmetrax.objectives._base import Objective, squared_gradient_norm
from symmetrax.search._orbit import Orbit
from symmetrax.search._searches import AbstractSearch
from symmetrax.studies.core._statistics import compare, summary
from symmetrax.symmetry._base import AbstractLieSymmetry
from symmetrax.tasks._data import Images, digits, mnist
from symmetrax.tasks._supervised import Classification
from symmetrax.teleportation._guard import Guard
from symmetrax.teleportation._teleport import Teleporter, teleport
from symmetrax.teleportation._transport import carry

TRANSPORTS = ("keep", "carry", "reset")
#: What the search found is taken, taken with random signs, or replaced by a random displacement.
HOWS = ("found", "random", "pseudo")

#: The initial weights of the published code: uniform within 1 / sqrt(inputs).
UNIFORM = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", in_axis=-1, out_axis=-2)


class Classifier(Classification):
    """A `Classification` whose weights start uniform within 1 / sqrt(inputs), as those of arXiv:2305.13404.

    >>> task = classifier("digits")
    >>> round(float(abs(task.init(jax.random.key(0))["w1"]).max()), 2), len(task.train.labels)
    (0.12, 1437)
    """

    def init(self, key: Key[Array, ""]) -> dict[str, Array]:
        return self.network.init(key, UNIFORM)


def classifier(data: str, widths: tuple[int, ...] = (16, 10), images: int = 8000) -> Classifier:
    """The published network, leaky ReLU of slope 0.1 without biases, on "digits" or "mnist".

    At most `images` training images and a quarter as many held-out ones are used.
    """
    train, test = {"digits": digits, "mnist": mnist}[data]()
    train, test = _first(train, images), _first(test, images // 4)
    return Classifier(train, test, widths, batch_size=20, slope=0.1, bias=False)


class SameSize(AbstractSearch):
    """Coordinates as large as those `search` finds, each with a random sign if `random`: the control of C5.

    >>> import symmetrax as sx
    >>> task, x = sx.tasks.booth(), jnp.array([5.0, -5.0])
    >>> control = SameSize(sx.search.Oracle(), jax.random.key(1), jnp.array(True))
    >>> orbit = Orbit(task.loss, x, task.symmetry())
    >>> found, drawn = (abs(s(orbit).item()) for s in (sx.search.Oracle(), control))
    >>> found == drawn
    True
    """

    search: AbstractSearch
    key: Key[Array, ""]
    random: Bool[Array, ""]

    def __call__(self, orbit: Orbit) -> Float[Array, "..."]:
        found = self.search(orbit)
        signs = jax.random.rademacher(self.key, found.shape, found.dtype)
        return jnp.where(self.random, signs * found, found)

    def evaluations(self, symmetry: AbstractLieSymmetry) -> float | int:
        return self.search.evaluations(symmetry)


class Gradient(eqx.Module):
    """Makes the same objective for every teleport.

    >>> Gradient()(None, None) is squared_gradient_norm
    True
    """

    objective: Objective = squared_gradient_norm

    def __call__(self, key: Key[Array, ""] | None, batch: Any) -> Objective:
        return self.objective


class Proposal(eqx.Module):
    """How one teleport is made: on `batch` fresh training images, `objective(key, batch)` is raised."""

    symmetry: AbstractLieSymmetry
    search: AbstractSearch
    batch: int = eqx.field(static=True)
    objective: Callable[..., Objective] = Gradient()
    guard: Guard = Guard(jump=jnp.inf, tolerance=1e-3)

    def evaluations_needed(self, minibatch: int) -> float:
        """Gradients of one teleport, each counted as gradients on a minibatch of this size."""
        objective = self.objective(jax.random.key(0), None)
        gradients = Teleporter.of(self.symmetry, objective, self.search).evaluations(known=False)
        return gradients * self.batch / minibatch


@dataclasses.dataclass(frozen=True)
class Arm:
    """What happens before the first `teleports` steps of the teleport's epoch: `move` names a `Proposal`,
    None moves nothing. `transport` says what becomes of the optimizer's state, every time.

    >>> Arm("reset", transport="reset").move is None
    True
    """

    name: str
    move: str | None = None
    transport: str = "keep"
    how: str = "found"
    teleports: int = 8


class Entry(NamedTuple):
    """An arm with the learning rates of its seeds, times `late` from the teleport's epoch on."""

    label: str
    arm: Arm
    rates: np.ndarray
    late: np.ndarray | float = 1.0


class Moved(NamedTuple):
    """What one teleport did: the objective before and after, relative changes of the loss on its own batch
    and on held-out images, the length of the jump, the code of a refusal, and coordinates."""

    before: Array
    after: Array
    drift: Array
    fresh: Array
    length: Array
    outcome: Array
    algebra: Array


class Run(NamedTuple):
    """The training and held-out losses and the accuracy after every epoch, (seeds, epochs + 1); what every
    teleport did, (seeds, teleports); seconds without compilation, and gradients on minibatches."""

    train: np.ndarray
    held: np.ndarray
    accuracy: np.ndarray
    moved: Moved | None
    params: PyTree
    seconds: float
    gradients: float


class Clock:
    """Calls compiled functions block by block, and counts seconds without their compilation."""

    def __init__(self, block: int):
        self.block, self.warm, self.seconds = block, set(), 0.0

    def __call__(self, name: Any, function: Callable, lanes: PyTree) -> PyTree:
        """`function(lanes)` for lanes as numpy arrays with equal first axes; keys go as their data."""
        count = len(jax.tree.leaves(lanes)[0])
        padded = -count % self.block
        lanes = jax.tree.map(lambda x: np.concatenate([x, x[:1].repeat(padded, 0)]), lanes)
        parts = []
        for start in range(0, count + padded, self.block):
            part = jax.tree.map(lambda x, at=slice(start, start + self.block): x[at], lanes)
            if name not in self.warm:
                jax.block_until_ready(function(part))
                self.warm.add(name)
            began = time.perf_counter()
            parts.append(jax.tree.map(np.asarray, jax.block_until_ready(function(part))))
            self.seconds += time.perf_counter() - began
        return jax.tree.map(lambda *x: np.concatenate(x)[:count], *parts)

    def lap(self) -> float:
        """Seconds since the last lap."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def race(
    make: Callable[[Array], optax.GradientTransformation],
    task: Classification,
    entries: Sequence[Entry],
    keys: Key[Array, " seeds"],
    clock: Clock,
    *,
    epochs: int,
    moves: dict[str, Proposal],
    at: int,
) -> dict[str, Run]:
    """Train all entries from the same starts for `epochs` epochs; teleports come at the start of epoch `at`.

    `make(rate)` is the optimizer, with the learning rate as an array.
    """
    rollouts = _Crew(make, task, entries, keys, clock, moves)
    acting = [entry.arm.teleports for entry in entries if entry.arm.move or entry.arm.transport != "keep"]
    for epoch in range(epochs):
        late, first = epoch >= at, max(acting, default=0) if epoch == at else 0
        for count in range(first):
            rollouts.step(epoch, count, rollouts.teleport(count))
        rollouts.finish(epoch, first, late)
    steps = epochs * (len(task.train.labels) // task.batch_size)
    return {entry.label: rollouts.run(entry, steps) for entry in entries}


class _Crew:
    """The lanes of a race, by label: parameters and states, and what is recorded of them."""

    def __init__(self, make, task, entries, keys, clock, moves):
        self.make, self.task, self.clock, self.moves = make, task, clock, moves
        self.entries = {entry.label: entry for entry in entries}
        self.seeds, self.keys = len(keys), np.asarray(jax.random.key_data(keys))
        started = clock("begin", lambda part: _begin(task, part), self.keys)
        state = jax.tree.map(np.asarray, jax.vmap(make(jnp.asarray(1.0)).init)(started["params"]))
        self.lanes = dict.fromkeys(self.entries, (started["params"], state))
        self.losses = {label: [started["losses"]] for label in self.entries}
        self.moved: dict[str, list[Moved]] = {label: [] for label in self.entries}
        self.seconds = dict.fromkeys(self.entries, 0.0)
        clock.lap()

    def teleport(self, count: int) -> dict[str, tuple[PyTree, np.ndarray]]:
        """Where every lane goes before step `count`, and the coordinates of the scaling it goes by."""
        still = np.zeros((self.seeds, *self.task.symmetry().algebra), np.float32)
        there = {label: (params, still) for label, (params, _) in self.lanes.items()}
        for name, move in self.moves.items():
            arms = {label: entry.arm for label, entry in self.entries.items()}
            some = [label for label, arm in arms.items() if arm.move == name and count < arm.teleports]
            lanes = {
                label: (self.lanes[label][0], self.keys, np.full(self.seeds, HOWS.index(arms[label].how)))
                for label in some
            }
            program = ("teleport", name, jax.tree.structure(move))
            found = self._together(
                program, lambda part, move=move: _teleports(move, self.task, part, jnp.asarray(count)), lanes
            )
            for label, (params, record) in found.items():
                self.moved[label].append(record)
                scaled = arms[label].how != "pseudo" and record.algebra.shape == still.shape
                taken = np.where(record.outcome[:, None] == 0, record.algebra, 0.0) if scaled else still
                there[label] = params, taken.astype(np.float32)
        return there

    def step(self, epoch: int, count: int, there: dict[str, tuple[PyTree, np.ndarray]]) -> None:
        """Transport the states, and take step `count` from the new points."""
        lanes = {}
        for label, entry in self.entries.items():
            transport = entry.arm.transport if count < entry.arm.teleports else "keep"
            lanes[label] = {
                "old": self.lanes[label][0],
                "new": there[label][0],
                "state": self.lanes[label][1],
                "algebra": there[label][1],
                "transport": np.full(self.seeds, TRANSPORTS.index(transport)),
                "key": self.keys,
                "rate": self._rates(entry, late=True),
            }
        self.lanes = self._together(
            ("step", self.make),
            lambda part: _transported(self.make, self.task, part, jnp.asarray(epoch), jnp.asarray(count)),
            lanes,
        )

    def finish(self, epoch: int, first: int, late: bool) -> None:
        """Steps `first` and on of an epoch."""
        lanes = {
            label: {
                "params": self.lanes[label][0],
                "state": self.lanes[label][1],
                "key": self.keys,
                "rate": self._rates(entry, late),
            }
            for label, entry in self.entries.items()
        }
        found = self._together(
            ("epoch", self.make),
            lambda part: _epoch(self.make, self.task, part, jnp.asarray(epoch), jnp.asarray(first)),
            lanes,
        )
        for label, lane in found.items():
            self.lanes[label] = lane["params"], lane["state"]
            self.losses[label].append(lane["losses"])

    def run(self, entry: Entry, steps: int) -> Run:
        """What became of an entry."""
        label, moved = entry.label, self.moved[entry.label]
        train, held, accuracy = [np.stack(parts, axis=1) for parts in zip(*self.losses[label], strict=True)]
        record, gradients = None, float(steps)
        if entry.arm.move is not None and moved:
            record = jax.tree.map(lambda *x: np.stack(x, axis=1), *moved)
            gradients += len(moved) * self.moves[entry.arm.move].evaluations_needed(self.task.batch_size)
        params, seconds = self.lanes[label][0], self.seconds[label]
        return Run(train, held, accuracy, record, params, seconds, gradients)

    def _rates(self, entry: Entry, late: bool) -> np.ndarray:
        rates = np.asarray(entry.rates) * (entry.late if late else 1.0)
        return np.broadcast_to(rates, (self.seeds,)).astype(np.float32)

    def _together(self, program: Any, function: Callable, lanes: dict[str, PyTree]) -> dict[str, Any]:
        """Run lanes of several entries as one batch, and share the seconds among them."""
        if not lanes:
            return {}
        found = self.clock(program, function, jax.tree.map(lambda *x: np.concatenate(x), *lanes.values()))
        share, parts = self.clock.lap() / len(lanes), {}
        for k, label in enumerate(lanes):
            self.seconds[label] += share
            at = slice(k * self.seeds, (k + 1) * self.seeds)
            parts[label] = jax.tree.map(lambda x, at=at: x[at], found)
        return parts


def compared(
    curves: dict[str, np.ndarray], references: tuple[str, ...], seeds: int
) -> dict[str, dict[str, Any]]:
    """The statistics of every arm, from losses of shape (seeds, epochs + 1), paired by their last values.

    Arms may be of different length.

    >>> found = compared({"a": np.ones((3, 4)), "b": np.ones((3, 6))}, ("a",), seeds=3)
    >>> found["b"]["versus"]["a"]["log_ratio"], len(found["b"]["loss_median"])
    (0.0, 6)
    """
    ends = compare({label: curve[:, None, [0, -1]] for label, curve in curves.items()}, references, seeds)
    return {
        label: {**summary(curve[:, None], seeds), "versus": ends[label]["versus"]}
        for label, curve in curves.items()
    }


@eqx.filter_jit
def _begin(task, keys):
    def one(key):
        params = task.init(jax.random.wrap_key_data(key))
        return {"params": params, "losses": _losses(task, params)}

    return jax.lax.map(one, keys)


@eqx.filter_jit
def _epoch(make, task, lanes, epoch, first):
    """Steps `first` and on of an epoch, and the losses at its end."""

    def one(lane):
        optimizer, order = make(lane["rate"]), _order(task, lane["key"], epoch)

        def step(i, carried):
            params, state = carried
            return _step(optimizer, task, params, state, order[i])

        params, state = jax.lax.fori_loop(first, len(order), step, (lane["params"], lane["state"]))
        return {"params": params, "state": state, "losses": _losses(task, params)}

    return spread(one, lanes)


@eqx.filter_jit
def _transported(make, task, lanes, epoch, count):
    """The state after a teleport from `old` to `new`, and then step `count` of an epoch."""
    symmetry = task.symmetry()

    def one(lane):
        optimizer, state = make(lane["rate"]), lane["state"]
        carried = carry(state, symmetry, symmetry.exp(lane["algebra"]), lane["old"])
        state = select(lane["transport"] == TRANSPORTS.index("carry"), carried, state)
        reset = lane["transport"] == TRANSPORTS.index("reset")
        state = select(reset, optimizer.init(lane["new"]), state)
        return _step(optimizer, task, lane["new"], state, _order(task, lane["key"], epoch)[count])

    return spread(one, lanes)


@eqx.filter_jit
def _teleports(move: Proposal, task, lanes, count):
    # One device, one lane after another: decompositions beside other products can block each other.
    test = (jnp.asarray(task.test.pixels), jnp.asarray(task.test.labels))

    def one(inputs):
        params, data, how = inputs
        key = jax.random.fold_in(jax.random.fold_in(jax.random.wrap_key_data(data), 1_000_000), count)
        images, signs, noise, drawn = jax.random.split(key, 4)
        rows = jax.random.permutation(images, len(task.train.labels))[: move.batch]
        batch = _rows(task, rows)
        search = SameSize(move.search, signs, how == HOWS.index("random"))
        there, info = teleport(
            task.loss,
            params,
            move.symmetry,
            batch,
            objective=move.objective(drawn, batch),
            search=search,
            guard=move.guard,
        )
        jump = optax.tree.sub(there, params)
        jump = select(how == HOWS.index("pseudo"), _as_long(noise, jump), jump)
        there = optax.tree.add(params, jump)

        def change(on):
            return (task.loss(there, on) - task.loss(params, on)) / task.loss(params, on)

        drift, fresh, length = change(batch), change(test), safe_norm(jump)
        return there, Moved(info.before, info.after, drift, fresh, length, info.outcome, info.algebra)

    return jax.lax.map(one, lanes)


def _as_long(key: Key[Array, ""], displacement: PyTree) -> PyTree:
    """A random displacement in which every array is as long as in this one."""
    noise = optax.tree.random_like(key, displacement)
    return jax.tree.map(lambda x, d: x * jnp.sqrt(squared_norm(d) / squared_norm(x)), noise, displacement)


def _order(task, key_data, epoch):
    """The minibatches of an epoch: a fresh permutation, cut into rows."""
    n, size = len(task.train.labels), task.batch_size
    key = jax.random.fold_in(jax.random.wrap_key_data(key_data), epoch)
    return jax.random.permutation(key, n)[: n // size * size].reshape(-1, size)


def _rows(task, rows):
    return jnp.asarray(task.train.pixels)[rows], jnp.asarray(task.train.labels)[rows]


def _step(optimizer, task, params, state, rows):
    gradient = jax.grad(task.loss)(params, _rows(task, rows))
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state


def _losses(task, params):
    train = (jnp.asarray(task.train.pixels), jnp.asarray(task.train.labels))
    return (task.loss(params, train), *task.held_out(params))


def _first(images: Images, count: int) -> Images:
    return Images(jnp.asarray(images.pixels[:count]), jnp.asarray(images.labels[:count]))
