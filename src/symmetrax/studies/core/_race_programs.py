"""The compiled programs of a race: teleports, the step after them, and whole epochs.

What rollouts do differently is data, so that all arms of a race share these programs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key, PyTree

from symmetrax._tree import safe_norm, select, squared_norm
from symmetrax.metatrain._devices import spread
from symmetrax.objectives._base import Objective, squared_gradient_norm
from symmetrax.search._searches import AbstractSearch
from symmetrax.studies.core._control_searches import RandomSigns
from symmetrax.symmetry._base import AbstractLieSymmetry
from symmetrax.teleportation._guard import Guard
from symmetrax.teleportation._teleport import Teleporter, teleport
from symmetrax.teleportation._transport import carry

TRANSPORTS = ("keep", "carry", "reset")
#: What the search found is taken, taken with random signs, or replaced by a random displacement.
HOWS = ("found", "random", "pseudo")


class Same(eqx.Module):
    """Makes the same objective for every teleport; equal ones share compiled programs, as closures do not.

    >>> Same()(None, None) is squared_gradient_norm
    True
    """

    objective: Objective = squared_gradient_norm

    def __call__(self, key: Key[Array, ""] | None, batch: Any) -> Objective:
        return self.objective


class Proposal(eqx.Module):
    """How one teleport is made: on `batch` fresh training images, `objective(key, batch)` is raised.

    >>> import symmetrax as sx
    >>> symmetry = sx.tasks.make_family("digits").task(()).symmetry()
    >>> Proposal(symmetry, sx.search.ClosedForm(), batch=200).evaluations_needed(20)
    10.0
    """

    symmetry: AbstractLieSymmetry
    search: AbstractSearch
    batch: int = eqx.field(static=True)
    objective: Callable[..., Objective] = Same()
    guard: Guard = Guard(jump=jnp.inf, tolerance=1e-3)

    def evaluations_needed(self, minibatch: int) -> float:
        """Gradients of one teleport, each counted as gradients on a minibatch of this size."""
        objective = self.objective(jax.random.key(0), None)
        gradients = Teleporter.of(self.symmetry, objective, self.search).evaluations(known=False)
        return gradients * self.batch / minibatch


class Moved(NamedTuple):
    """The record of one teleport: the objective before and after, relative changes of the loss on its own
    batch and on held-out images, the length of the jump, the code of a rejection, and coordinates.

    >>> Moved._fields[:2]
    ('before', 'after')
    """

    before: Array
    after: Array
    drift: Array
    fresh: Array
    length: Array
    outcome: Array
    algebra: Array


@eqx.filter_jit
def begin(task, keys):
    """The parameters that every key draws, and the losses there (training, held out) with the accuracy.

    >>> from symmetrax.studies.core._race import classifier
    >>> keys = jax.random.key_data(jax.random.split(jax.random.key(0), 3))
    >>> [x.shape for x in begin(classifier("digits", images=100), keys)["losses"]]
    [(3,), (3,), (3,)]
    """

    def one(key):
        params = task.init(jax.random.wrap_key_data(key))
        return {"params": params, "losses": _losses(task, params)}

    return jax.lax.map(one, keys)


@eqx.filter_jit
def run_epoch(make, task, rollouts, epoch, first):
    """Steps `first` and on of an epoch, and the losses at its end.

    A rollout has "params", the "state" of its optimizer, a "key" (its data) and a "rate".

    >>> from symmetrax.studies.core._race import classifier
    >>> task = classifier("digits", images=100)
    >>> keys = jax.random.key_data(jax.random.split(jax.random.key(0)))
    >>> started = begin(task, keys)
    >>> rollouts = {"params": started["params"], "state": jax.vmap(optax.sgd(0.1).init)(started["params"])}
    >>> after = run_epoch(optax.sgd, task, {**rollouts, "key": keys, "rate": jnp.full(2, 0.1)}, 0, 0)
    >>> bool((after["losses"][0] < started["losses"][0]).all())
    True
    """

    def one(rollout):
        optimizer, order = make(rollout["rate"]), _order(task, rollout["key"], epoch)

        def step(i, carried):
            params, state = carried
            return _step(optimizer, task, params, state, order[i])

        params, state = jax.lax.fori_loop(first, len(order), step, (rollout["params"], rollout["state"]))
        return {"params": params, "state": state, "losses": _losses(task, params)}

    return spread(one, rollouts)


@eqx.filter_jit
def transport_and_step(make, task, rollouts, epoch, count):
    """The state after a teleport from "params" to "new", and then step `count` of an epoch.

    Beside the entries of `run_epoch`, a rollout has the coordinates of its teleport, "algebra", and
    "transport", an index of `TRANSPORTS`.

    >>> from symmetrax.studies.core._race import classifier
    >>> task = classifier("digits", images=100)
    >>> keys = jax.random.key_data(jax.random.split(jax.random.key(0)))
    >>> params = begin(task, keys)["params"]
    >>> state, algebra = jax.vmap(optax.sgd(0.1).init)(params), jnp.zeros((2, *task.symmetry().algebra))
    >>> rollouts = {"params": params, "new": params, "state": state, "algebra": algebra, "key": keys}
    >>> rollouts |= {"rate": jnp.full(2, 0.1), "transport": jnp.zeros(2, int)}
    >>> sorted(transport_and_step(optax.sgd, task, rollouts, 0, 0))
    ['params', 'state']
    """
    symmetry = task.symmetry()

    def one(rollout):
        optimizer, state = make(rollout["rate"]), rollout["state"]
        carried = carry(state, symmetry, symmetry.exp(rollout["algebra"]), rollout["params"])
        state = select(rollout["transport"] == TRANSPORTS.index("carry"), carried, state)
        reset = rollout["transport"] == TRANSPORTS.index("reset")
        state = select(reset, optimizer.init(rollout["new"]), state)
        order = _order(task, rollout["key"], epoch)
        params, state = _step(optimizer, task, rollout["new"], state, order[count])
        return {"params": params, "state": state}

    return spread(one, rollouts)


@eqx.filter_jit
def teleports(move: Proposal, task, rollouts, count):
    """Where each rollout's teleport before step `count` leads, and its record.

    A rollout is its parameters, the data of its key, and an index of `HOWS`.

    >>> import symmetrax as sx
    >>> from symmetrax.studies.core._race import classifier
    >>> task = classifier("digits", images=100)
    >>> keys = jax.random.key_data(jax.random.split(jax.random.key(0)))
    >>> move = Proposal(task.symmetry(), sx.search.ClosedForm(), batch=20)
    >>> _, moved = teleports(move, task, (begin(task, keys)["params"], keys, jnp.zeros(2, int)), 0)
    >>> bool((moved.after >= moved.before).all())
    True
    """
    # One device, one rollout after another: decompositions beside other products can block each other.
    test = (jnp.asarray(task.test.pixels), jnp.asarray(task.test.labels))

    def one(inputs):
        params, data, how = inputs
        key = jax.random.fold_in(jax.random.fold_in(jax.random.wrap_key_data(data), 1_000_000), count)
        images, signs, noise, drawn = jax.random.split(key, 4)
        rows = jax.random.permutation(images, len(task.train.labels))[: move.batch]
        batch = _rows(task, rows)
        search = RandomSigns(move.search, signs, how == HOWS.index("random"))
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

    return jax.lax.map(one, rollouts)


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
