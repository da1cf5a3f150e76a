"""Classifiers trained on minibatches, many at once, with teleports before the first steps of one epoch.

A *rollout* is one training run: an arm under one seed. All rollouts of a seed share start, minibatches and
the batches of their teleports. Whole epochs are compiled; what arms do differently (learning rate, transport
of the state, a random element instead of the one found) is data, so that all arms share a few programs.
Rollouts go through these programs in blocks of one size: none compiles twice.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Key, PyTree

from symmetrax.studies.core._race_programs import (
    HOWS,
    TRANSPORTS,
    Moved,
    Proposal,
    begin,
    run_epoch,
    teleports,
    transport_and_step,
)
from symmetrax.tasks._data import Images, digits, mnist
from symmetrax.tasks._supervised import Classification

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

    >>> len(classifier("digits", images=100).train.labels)
    100
    """
    train, test = {"digits": digits, "mnist": mnist}[data]()
    train, test = (
        Images(jnp.asarray(found.pixels[:count]), jnp.asarray(found.labels[:count]))
        for found, count in ((train, images), (test, images // 4))
    )
    return Classifier(train, test, widths, batch_size=20, slope=0.1, bias=False)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A training run for each seed: what happens before the first `teleports` steps of the teleports' epoch.

    `move` names a `Proposal`; None moves nothing. `transport` says what becomes of the optimizer's state,
    every time, and `how` whether the element is the one found. `rate` is the learning rate, times `late` (a
    number, or one for each seed) from the teleports' epoch on.

    >>> Entry("reset", transport="reset").move is None
    True
    """

    name: str
    move: str | None = None
    transport: str = "keep"
    how: str = "found"
    teleports: int = 8
    rate: float = 1e-2
    late: Any = 1.0

    @property
    def acts(self) -> int:
        """The number of steps before which something happens."""
        return 0 if self.move is None and self.transport == "keep" else self.teleports


class Trained(NamedTuple):
    """Training and held-out losses and accuracy after every epoch, axes seeds, epochs + 1; what every
    teleport did, axes seeds, teleports; seconds without compilation, and gradients on minibatches.

    >>> Trained._fields[:3]
    ('train', 'held', 'accuracy')
    """

    train: np.ndarray
    held: np.ndarray
    accuracy: np.ndarray
    moved: Moved | None
    params: PyTree
    seconds: float
    gradients: float

    def did(self) -> dict[str, Any]:
        """The effects of the teleports on the loss: medians over seeds and teleports that are numbers."""
        assert self.moved is not None
        drift, fresh = np.abs(self.moved.drift), np.abs(self.moved.fresh)
        return {
            "drift": np.nanmedian(drift),
            "drift_max": np.max(drift),
            "fresh": np.nanmedian(fresh),
            "fresh_max": np.max(fresh),
            "length": np.nanmedian(self.moved.length),
            "rejected": np.mean(self.moved.outcome > 0),
        }


class Blocks:
    """Calls compiled functions block by block, and counts seconds without their compilation.

    >>> Blocks(2)("double", lambda x: 2 * x, np.arange(3)).tolist()
    [0, 2, 4]
    """

    def __init__(self, block: int):
        self.block, self.warm, self.seconds = block, set(), 0.0

    def __call__(self, name: Any, function: Callable, inputs: PyTree) -> PyTree:
        """`function(inputs)` for numpy arrays with equal first axes; keys go as their data."""
        count = len(jax.tree.leaves(inputs)[0])
        padded = -count % self.block
        inputs = jax.tree.map(lambda x: np.concatenate([x, x[:1].repeat(padded, 0)]), inputs)
        parts = []
        for start in range(0, count + padded, self.block):
            part = jax.tree.map(lambda x, at=slice(start, start + self.block): x[at], inputs)
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
    blocks: Blocks,
    *,
    epochs: int,
    moves: dict[str, Proposal],
    at: int,
) -> dict[str, Trained]:
    """Train all entries from the same starts; teleports come at the start of epoch `at`.

    `make(rate)` is the optimizer, with the learning rate as an array.
    """
    seeds, state = len(keys), _Rollouts(task, entries, keys, blocks, moves, make)
    for epoch in range(epochs):
        first = max((entry.acts for entry in entries), default=0) if epoch == at else 0
        for count in range(first):
            state.teleport(epoch, count)
        state.finish(epoch, first, late=epoch >= at)
    steps = epochs * (len(task.train.labels) // task.batch_size)
    own = {entry.name: slice(k * seeds, (k + 1) * seeds) for k, entry in enumerate(entries)}
    return {entry.name: state.trained(entry, own[entry.name], steps) for entry in entries}


class _Rollouts:
    """The rollouts of a race, entry by entry along the first axis of all arrays, and what is recorded."""

    def __init__(self, task, entries, keys, blocks, moves, make):
        self.task, self.entries, self.blocks, self.moves, self.make = task, entries, blocks, moves, make
        self.seeds, key = len(keys), np.asarray(jax.random.key_data(keys))
        begun = blocks("begin", lambda part: begin(task, part), key)
        begun["state"] = jax.tree.map(np.asarray, jax.vmap(make(jnp.asarray(1.0)).init)(begun["params"]))
        begun["key"] = key
        self.now = jax.tree.map(lambda x: np.concatenate([x] * len(entries)), begun)
        self.losses = [self.now.pop("losses")]
        late = [np.broadcast_to(entry.rate * np.asarray(entry.late), (self.seeds,)) for entry in entries]
        self.rates = self._each("rate"), np.concatenate(late)
        self.moved: dict[str, list[Moved]] = {entry.name: [] for entry in entries}
        self.seconds = dict.fromkeys(self.moved, 0.0)
        blocks.lap()

    def _each(self, field: str) -> np.ndarray:
        """A field of the entry of every rollout."""
        return np.repeat([getattr(entry, field) for entry in self.entries], self.seeds)

    def _call(self, program: Any, function: Callable, inputs: PyTree, entries: Sequence[Entry]) -> PyTree:
        """Run a program on rollouts, and share its seconds among their entries."""
        found = self.blocks(program, function, inputs)
        share = self.blocks.lap() / len(entries)
        for entry in entries:
            self.seconds[entry.name] += share
        return found

    def teleport(self, epoch: int, count: int) -> None:
        """Teleport whatever is due before step `count`, transport the states, and take the step."""
        resting = np.zeros((len(self.now["key"]), *self.task.symmetry().algebra), np.float32)
        there, algebra = jax.tree.map(np.copy, self.now["params"]), resting
        hows = np.repeat([HOWS.index(entry.how) for entry in self.entries], self.seeds)
        for name, move in self.moves.items():
            acting = [entry for entry in self.entries if entry.move == name and count < entry.teleports]
            chosen = np.flatnonzero((self._each("move") == name) & (count < self._each("teleports")))
            if not acting:
                continue
            inputs = jax.tree.map(lambda x: x[chosen], (self.now["params"], self.now["key"], hows))  # noqa: B023
            program = ("teleport", name, jax.tree.structure(move))
            function = lambda part, move=move: teleports(move, self.task, part, jnp.asarray(count))  # noqa: E731
            params, record = self._call(program, function, inputs, acting)
            for x, new in zip(*map(jax.tree.leaves, (there, params)), strict=True):
                x[chosen] = new
            for k, entry in enumerate(acting):
                own = slice(k * self.seeds, (k + 1) * self.seeds)
                self.moved[entry.name].append(jax.tree.map(lambda x, own=own: x[own], record))
            if record.algebra.shape[1:] == resting.shape[1:]:
                # Only scalings carry the state; a displacement at random is by no element.
                taken = (record.outcome == 0) & (hows[chosen] != HOWS.index("pseudo"))
                algebra[chosen] = np.where(taken[:, None], record.algebra, 0.0)
        acts = np.where(count < self._each("teleports"), self._each("transport"), "keep")
        transport = np.array([TRANSPORTS.index(how) for how in acts])
        inputs = {
            **self.now,
            "new": there,
            "algebra": algebra,
            "transport": transport,
            **self._rate(late=True),
        }
        arguments = (jnp.asarray(epoch), jnp.asarray(count))
        function = lambda part: transport_and_step(self.make, self.task, part, *arguments)  # noqa: E731
        self.now |= self._call(("step", self.make), function, inputs, self.entries)

    def finish(self, epoch: int, first: int, *, late: bool) -> None:
        """Steps `first` and on of an epoch."""
        arguments = (jnp.asarray(epoch), jnp.asarray(first))
        function = lambda part: run_epoch(self.make, self.task, part, *arguments)  # noqa: E731
        found = self._call(("epoch", self.make), function, {**self.now, **self._rate(late)}, self.entries)
        self.losses.append(found.pop("losses"))
        self.now |= found

    def _rate(self, late: bool) -> dict[str, np.ndarray]:
        return {"rate": self.rates[late].astype(np.float32)}

    def trained(self, entry: Entry, own: slice, steps: int) -> Trained:
        """The result of an entry."""
        moved, record, gradients = self.moved[entry.name], None, float(steps)
        if entry.move is not None and moved:
            record = jax.tree.map(lambda *x: np.stack(x, axis=1), *moved)
            gradients += len(moved) * self.moves[entry.move].evaluations_needed(self.task.batch_size)
        train, held, accuracy = (
            np.stack([x[own] for x in parts], axis=1) for parts in zip(*self.losses, strict=True)
        )
        params = jax.tree.map(lambda x: x[own], self.now["params"])
        return Trained(train, held, accuracy, record, params, self.seconds[entry.name], gradients)
