"""The outer loop: many tasks and seeds in one compiled program, checkpointed, with bit-exact resume."""

import pathlib
import time
import warnings
from collections.abc import Callable, Hashable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from symmetrax._files import check_writable
from symmetrax._keys import check_key
from symmetrax._programs import compiled
from symmetrax._tree import all_finite, select
from symmetrax.metatrain._checkpoint import Checkpoint, TrainingState, first_steps, identified
from symmetrax.metatrain._devices import place, spread
from symmetrax.metatrain._estimators import AbstractMetaGradient
from symmetrax.metatrain._stopping import EarlyStopping, better, improved, validations

# A chunk with at least this many windows and no finite meta-gradient counts as divergence.
ENOUGH_WINDOWS = 10


class MetaTrained(NamedTuple):
    """The result of meta-training. The first axis of every array is the seed.

    `networks` is the trained network, all seeds stacked; `losses` the mean meta-loss of every outer step, of
    shape (seeds, outer_steps); `skipped` the number of windows skipped because their meta-gradient was not
    finite. With early stopping `networks` are the best ones, `losses` has the outer steps that were
    completed, and `validation` one value per chunk; without early stopping, `validation` has no columns.
    `diverged` marks the seeds without a single finite meta-gradient in the last chunk: their networks are the
    last ones that were trained.

    >>> MetaTrained._fields
    ('networks', 'losses', 'skipped', 'validation', 'diverged')
    """

    networks: PyTree
    losses: Float[np.ndarray, "seeds outer_steps"]
    skipped: Int[np.ndarray, " seeds"]
    validation: Float[np.ndarray, "seeds rounds"]
    diverged: Bool[np.ndarray, " seeds"]

    def network(self, seed: int = 0) -> PyTree:
        """Returns the network of one seed."""
        return jax.tree.map(lambda x: x[seed], self.networks)


class Progress(NamedTuple):
    """The state of the training, passed to a progress callback after every chunk.

    >>> Progress(done=50, outer_steps=500, loss=0.1, tasks_per_second=1e3).done
    50
    """

    done: int
    outer_steps: int
    loss: float
    tasks_per_second: float


def meta_train(
    make_network: Callable[[Key[Array, ""]], PyTree],
    estimator: AbstractMetaGradient,
    optimizer: optax.GradientTransformation,
    key: Key[Array, ""],
    *,
    outer_steps: int,
    seeds: int = 1,
    chunk: int = 50,
    checkpoint: str | pathlib.Path | None = None,
    save_every: float = 0.0,
    progress: Callable[[Progress], None] | None = None,
    stopping: EarlyStopping | None = None,
    networks: PyTree = None,
    identity: str = "",
) -> MetaTrained:
    """Trains networks to optimize: algorithm 1 of arXiv:2504.15399, for several meta-seeds at once.

    Each of `outer_steps` outer steps draws `estimator.tasks` fresh tasks, optimizes them in
    `estimator.windows` windows and updates the network with `optimizer` (any optax transformation) after each
    window. A window
    whose meta-gradient or step is not finite is skipped and counted. If all windows of a chunk (with ten or
    more) are skipped for every seed, training has diverged: it stops, saves and returns the last valid
    networks, and emits a RuntimeWarning. Outer steps are compiled in chunks of `chunk`. Seeds are spread over
    the available devices, and mapped (vmapped on accelerators) on each. The tasks of a chunk share one of
    `estimator.family.shapes`; all shapes are used once, in random order, before any is repeated.

    Seed i uses `fold_in(key, i)`, so you can add seeds without changing the first ones, and arms trained from
    the same key see the same tasks. With `checkpoint`, the state is written to that file after a chunk, at
    most every `save_every` seconds, and at the end; the same call resumes from it, bit for bit as if it had
    never been interrupted. Raises ValueError, before computing anything, if the file is damaged, belongs to a
    different call, or is not writable. Calls are compared by their arguments, the networks they start from,
    and the first steps of `optimizer`. Put anything else that distinguishes a call, such as the code of
    functions or of the task family, into `identity`. With `stopping` the networks are validated after each
    chunk, training ends when validation stops improving, or after `outer_steps`, and the best networks are
    returned. With `networks` (all seeds stacked, as in `MetaTrained.networks`) training continues from these,
    with a fresh state of `optimizer`, and `make_network` is not called.

    >>> import jax, optax, symmetrax as sx
    >>> family = sx.tasks.make_family("ellipse-fixed")
    >>> estimator = sx.metatrain.TruncatedBPTT(family, sx.UpdateRule(), steps=10, truncation=5, tasks=16)
    >>> make = lambda key: sx.learned.FlatGradientLSTM(2, width=8, key=key)
    >>> trained = meta_train(make, estimator, optax.adam(1e-2), jax.random.key(0), outer_steps=20, seeds=2)
    >>> trained.losses.shape, trained.skipped.tolist()
    ((2, 20), [0, 0])
    """
    check_key(key)
    if min(outer_steps, seeds, chunk) < 1:
        raise ValueError(
            f"`outer_steps`, `seeds` and `chunk` must be at least 1, got outer_steps={outer_steps}, "
            f"seeds={seeds} and chunk={chunk}."
        )
    if networks is not None:
        _check_stacked(networks, seeds)
    path = None if checkpoint is None else pathlib.Path(checkpoint)
    if path is not None:
        # Now, not when the first chunk is done: an hour of training is a high cost for a wrong path.
        check_writable(path)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(seeds))
    state = _begin(make_network, optimizer, keys, networks, outer_steps, chunk, stopping)
    file = None
    if path is not None:
        call = identified(estimator, networks, key, outer_steps, seeds, chunk, stopping, identity)
        file = Checkpoint(path, call, np.asarray(first_steps(optimizer, state.networks)))
        if path.exists():
            state = file.read(state)
    state = _placed(state)
    # A resumed training is measured from where it resumes, so that its rate is that of this process.
    began, first = time.perf_counter(), int(state.done)
    saved = began
    for done in range(first, outer_steps, chunk):
        # Also before the first chunk: the checkpoint may be that of a training that has ended early.
        if _is_over(state, stopping, done // chunk):
            break
        count = min(chunk, outer_steps - done)
        shape = _shape(estimator.family.shapes, key, done // chunk)
        state, losses = _trained(estimator, optimizer, state, keys, done, count, shape)
        if stopping is not None:
            state = _validated(stopping, state, done // chunk)
        over = done + count == outer_steps or _is_over(state, stopping, done // chunk + 1)
        if file is not None and (over or time.perf_counter() - saved >= save_every):
            saved = time.perf_counter()
            file.write(state)
        if progress is not None:
            rate = seeds * estimator.tasks * (done + count - first) / (time.perf_counter() - began)
            progress(Progress(done + count, outer_steps, float(np.mean(losses)), rate))
    if np.all(state.diverged):
        warnings.warn(_divergence(int(state.done), outer_steps, path), RuntimeWarning, stacklevel=2)
    made, skipped = int(state.done), np.asarray(state.skipped)
    networks = state.networks if stopping is None else state.best
    curve = state.validation if stopping is None else state.validation[:, : -(-made // chunk)]
    return MetaTrained(networks, state.losses[:, :made], skipped, curve, np.asarray(state.diverged))


def _begin(
    make_network: Callable[[Key[Array, ""]], PyTree],
    optimizer: optax.GradientTransformation,
    keys: Key[Array, " seeds"],
    networks: PyTree,
    outer_steps: int,
    chunk: int,
    stopping: EarlyStopping | None,
) -> TrainingState:
    """Returns the state before the first outer step."""
    start = _initial(make_network, optimizer, keys, networks)
    seeds, rounds = len(keys), 0 if stopping is None else -(-outer_steps // chunk)
    return TrainingState(
        *start,
        losses=np.full((seeds, outer_steps), np.nan, np.float32),
        done=np.asarray(0),
        best=() if stopping is None else start[0],
        validation=np.full((seeds, rounds), np.nan, np.float32),
        diverged=np.zeros(seeds, bool),
    )


def _placed(state: TrainingState) -> TrainingState:
    """Puts the arrays of the compiled programs on the devices that will use them."""
    now, outer, skipped, best = place((state.networks, state.outer, state.skipped, state.best))
    return state._replace(networks=now, outer=outer, skipped=skipped, best=best)


def _is_over(state: TrainingState, stopping: EarlyStopping | None, rounds: int) -> bool:
    """Returns whether training ends before `outer_steps`: diverged, or out of patience after `rounds`."""
    exhausted = stopping is not None and stopping.exhausted(state.validation[:, :rounds])
    return exhausted or bool(np.all(state.diverged))


def _trained(
    estimator: AbstractMetaGradient,
    optimizer: optax.GradientTransformation,
    state: TrainingState,
    keys: Key[Array, " seeds"],
    done: int,
    count: int,
    shape: Hashable,
) -> tuple[TrainingState, Float[Array, "seeds count"]]:
    """Returns the state after `count` more outer steps, and their meta-losses."""
    # `done` is an array, so that all chunks of the same length share a compiled program.
    trained = _train(estimator, optimizer, state[:3], keys, jnp.asarray(done), count, shape)
    now, outer, skipped, losses = jax.block_until_ready(trained)
    windows = count * estimator.windows
    # A single window without a finite meta-gradient is bad luck; a whole chunk of them is divergence.
    diverged = (np.asarray(skipped - state.skipped) == windows) & (windows >= ENOUGH_WINDOWS)
    # A copy, because the states before it, which a caller may hold, share the array.
    history = state.losses.copy()
    history[:, done : done + count] = losses
    return (
        state._replace(
            networks=now,
            outer=outer,
            skipped=skipped,
            losses=history,
            done=np.asarray(done + count),
            diverged=diverged,
        ),
        losses,
    )


def _divergence(made: int, outer_steps: int, path: pathlib.Path | None) -> str:
    where = "" if path is None else f", saved in {path}"
    return (
        "Meta-training diverged: no window of its last chunk had a finite meta-gradient, for any seed. It "
        f"stops after {made} of {outer_steps} outer steps with the last valid networks{where}. "
        "Lower the learning rate, clip the meta-gradients, shorten the horizon, or guard the teleports."
    )


def _validated(stopping: EarlyStopping, state: TrainingState, index: int) -> TrainingState:
    """Returns the state with a new point on the validation curve, and the best networks so far."""
    curve = state.validation.copy()
    curve[:, index] = validations(stopping.validate, state.networks)
    best = better(jnp.asarray(improved(curve[:, : index + 1])), state.networks, state.best)
    return state._replace(best=best, validation=curve)


@compiled
def _initial(make_network, optimizer, keys, networks) -> tuple[PyTree, PyTree, Int[Array, " seeds"]]:
    """Builds networks (fresh unless given), outer states and counts of all seeds, in one program."""
    if networks is None:
        networks = eqx.filter_vmap(lambda key: make_network(jax.random.fold_in(key, 0)))(keys)
    networks = jax.tree.map(jnp.asarray, networks)
    return networks, jax.vmap(optimizer.init)(networks), jnp.zeros(len(keys), int)


@compiled
def _train(estimator, optimizer, state, keys, done, count, shape):
    """Trains every seed for `count` outer steps, of which the first has the number `done`."""

    def window(rollout_key):
        def body(carry, _):
            network, outer, skipped, rollouts = carry
            loss, gradient, rollouts = estimator.step(network, rollouts, rollout_key, shape)
            updates, after = optimizer.update(gradient, outer, network)
            stepped = optax.apply_updates(network, updates)
            # The step is checked, too: a large but finite gradient can overflow the weights, and no later
            # window could bring them back.
            finite = jnp.isfinite(loss) & all_finite(gradient) & all_finite(stepped)
            network = select(finite, stepped, network)
            outer = select(finite, after, outer)
            return (network, outer, skipped + ~finite, rollouts), loss

        return body

    def outer_step(carry, index, key):
        # 0 draws the initial network. By number, so that the chunks and a resume do not change the tasks.
        rollout_key = jax.random.fold_in(key, 1 + index)
        rollouts = estimator.init(carry[0], rollout_key, shape)
        body = window(rollout_key)
        (*carry, _), losses = jax.lax.scan(body, (*carry, rollouts), None, length=estimator.windows)
        return tuple(carry), jnp.mean(losses)

    def seed(inputs):
        state, key = inputs
        return jax.lax.scan(lambda c, i: outer_step(c, i, key), state, done + jnp.arange(count))

    (networks, outer, skipped), losses = spread(seed, (state, keys))
    return networks, outer, skipped, losses


def _shape(shapes: tuple[Hashable, ...], key: Key[Array, ""], index: int) -> Hashable:
    """Returns the shape of chunk `index`: each cycle goes through all shapes in a random order."""
    # On the host, because a shape selects a compiled program; from the key, because a resume must agree.
    cycle, place = divmod(index, len(shapes))
    entropy = [int(x) for x in np.asarray(jax.random.key_data(key)).ravel()]
    return shapes[np.random.default_rng([*entropy, cycle]).permutation(len(shapes))[place]]


def _check_stacked(networks: PyTree, seeds: int) -> None:
    for leaf in jax.tree.leaves(networks):
        shape = np.shape(leaf)
        if shape[:1] != (seeds,):
            raise ValueError(
                f"`networks` must be {seeds} networks, one for each seed, stacked along the first axis as in "
                f"MetaTrained.networks, but one of their arrays has shape {shape}."
            )
