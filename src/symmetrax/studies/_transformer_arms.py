"""The arms of the league of transformers, and how one arm is trained."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key
from optax.contrib import MuonDimensionNumbers, muon

from symmetrax.schedules._schedule import every_n_steps
from symmetrax.search._basis import AbstractElementSearch, Eigenbasis, RandomBasis
from symmetrax.search._searches import Random
from symmetrax.studies._transformer_optimizers import aro, in_shapes, of_matrices, soap
from symmetrax.symmetry._network import NetworkSymmetry
from symmetrax.tasks._language import LanguageModel
from symmetrax.teleportation._transform import teleported
from symmetrax.teleportation._transport import Carry, TransportChoice

#: Adam's second decay, in all arms that are Adam.
B2 = 0.99

#: The moments of `Eigenbasis` are updated at every tenth step: a tenth of the cost, and no less gain.
WATCH: dict[str, Any] = {"stride": 10}


def rate_schedule(rate: Any, steps: int) -> optax.Schedule:
    """Linear warm-up over a tenth of the steps, then a cosine down to 5 %.

    >>> [round(float(rate_schedule(1.0, 100)(k)), 2) for k in (0, 10, 100)]
    [0.0, 1.0, 0.05]
    """
    # optax's schedule compares its peak with zero, so the rate, which may be traced, stays outside.
    shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, steps // 10, steps, 0.05)
    return lambda count: rate * shape(count)


class Setting(NamedTuple):
    """What an arm builds its optimizer from: the schedule of rates, the task and its symmetry.

    >>> Setting._fields
    ('rate', 'task', 'symmetry')
    """

    rate: optax.Schedule
    task: LanguageModel
    symmetry: NetworkSymmetry


def adamw(setting: Setting, decay: float = 0.0) -> optax.GradientTransformation:
    """AdamW, the arm to beat.

    >>> adamw(Setting(lambda count: 0.1, None, None)).init(jnp.ones(2))[0].mu.shape
    (2,)
    """
    return optax.adamw(setting.rate, b2=B2, weight_decay=decay)


@dataclasses.dataclass(frozen=True)
class Teleporting:
    """AdamW that teleports at every `every`-th step (`every=0`: before the first step only).

    `spaces` are "stream", "heads" or both; `search` is by default `Eigenbasis`.

    >>> Teleporting(spaces=("stream",)).every
    50
    """

    every: int = 50
    spaces: tuple[str, ...] = ("stream", "heads")
    search: AbstractElementSearch | Random = Eigenbasis(**WATCH)  # noqa: RUF009 (frozen)
    transport: TransportChoice = Carry("mean")  # noqa: RUF009 (frozen)
    decay: float = 0.0

    def __call__(self, setting: Setting) -> optax.GradientTransformation:
        spaces = [
            name
            for name, group in setting.symmetry.spaces.items()
            if group.rotates and ("stream" if name.startswith("stream") else "heads") in self.spaces
        ]
        return teleported(
            adamw(setting, self.decay),
            setting.symmetry.only(*spaces),
            search=self.search,
            schedule={0} if self.every == 0 else every_n_steps(self.every),
            transport=self.transport,
        )


def muon_of(setting: Setting, heads: bool = False) -> optax.GradientTransformation:
    """Muon for hidden matrices, with steps of RMS 0.2, and Adam for the others; `heads` orthogonalizes heads.

    >>> from symmetrax.tasks._families import make_family
    >>> task = make_family("language").task(())
    >>> state = muon_of(Setting(lambda count: 0.1, task, None)).init(task.init(jax.random.key(0)))
    >>> sorted(state.inner_states)
    ['matrices', 'others']
    """
    a = setting.task.architecture
    apart = {
        "query": (a.heads, a.size, -1),
        "key": (a.kv_heads, a.size, -1),
        "value": (a.kv_heads, a.size, -1),
    }
    apart |= {"output": (a.width, a.heads, a.size)}

    def numbers(params):
        # Everything is a matrix (outputs, inputs), or heads of matrices.
        axes = {"output": (2, 0)} if heads else {}
        paths = jax.tree_util.tree_leaves_with_path(params)
        named = [axes.get(str(path[-1].key), (-1, -2)) for path, _ in paths]
        return jax.tree.unflatten(jax.tree.structure(params), [MuonDimensionNumbers(*pair) for pair in named])

    inner = muon(
        setting.rate,
        muon_weight_dimension_numbers=numbers,
        consistent_rms=0.2,
        weight_decay=0.0,
    )
    return of_matrices(in_shapes(inner, apart) if heads else inner, adamw(setting))


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to train: `make(setting)` returns the optimizer.

    Its learning rate is tuned, or that of the arm `like`. `share` is its number of steps in those of the
    others, `half` computes activations in bfloat16, `minor` arms get half of the seeds, and with `again`
    other data than the other arms.

    >>> Arm("adamw", adamw).share
    1.0
    """

    name: str
    make: Callable[[Setting], optax.GradientTransformation]
    like: str | None = None
    share: float = 1.0
    half: bool = False
    minor: bool = False
    again: bool = False


def _soap(setting: Setting) -> optax.GradientTransformation:
    return soap(setting.rate, b2=B2)


def _aro(setting: Setting) -> optax.GradientTransformation:
    return of_matrices(aro(setting.rate), adamw(setting))


def _muon_heads(setting: Setting) -> optax.GradientTransformation:
    return muon_of(setting, heads=True)


def _decayed(setting: Setting) -> optax.GradientTransformation:
    return adamw(setting, decay=0.1)


#: Variants of the teleporting arm, at its learning rate, with half of the seeds.
_HOW: dict[str, Any] = {"like": "teleport", "minor": True}
_RANDOM = RandomBasis(jax.random.key(1))
#: Zero coordinates: a teleport that goes nowhere, so that only the reset of the state remains.
_NOWHERE = Random(jax.random.key(1), samples=1, scale=0.0)

#: The arms that every kind of model has.
MAIN = (
    Arm("adamw", adamw),
    Arm("teleport", Teleporting()),
    Arm("muon", muon_of),
    Arm("random", Teleporting(search=_RANDOM), like="teleport"),
)
#: The arms of the first kind alone.
MORE = (
    Arm("adamw-again", adamw, like="adamw", again=True),
    Arm("teleport-88", Teleporting(), like="teleport", share=0.88),
    Arm("stream", Teleporting(spaces=("stream",)), **_HOW),
    Arm("heads", Teleporting(spaces=("heads",)), **_HOW),
    Arm("every-10", Teleporting(every=10), **_HOW),
    Arm("every-200", Teleporting(every=200), **_HOW),
    Arm("balanced", Teleporting(search=Eigenbasis(balanced=True, **WATCH)), **_HOW),
    Arm("squares-kept", Teleporting(transport=Carry("keep")), **_HOW),
    Arm("random-once", Teleporting(every=0, search=_RANDOM), **_HOW),
    Arm("reset", Teleporting(search=_NOWHERE, transport="reset"), **_HOW),
    Arm("soap", _soap, minor=True),
    Arm("muon-heads", _muon_heads, minor=True),
    Arm("aro", _aro, minor=True),
    Arm("adamw-decay", _decayed, like="adamw", minor=True),
    Arm("teleport-decay", Teleporting(decay=0.1), **_HOW),
    Arm("adamw-bfloat16", adamw, like="adamw", half=True, minor=True),
    Arm("teleport-bfloat16", Teleporting(), half=True, **_HOW),
)


class Trained(NamedTuple):
    """What an arm did: held-out losses at `points` steps, of shape (seeds, points), and seconds a step.

    >>> Trained(np.ones((2, 3)), 0.1).held.shape
    (2, 3)
    """

    held: np.ndarray
    seconds: float


def train(
    arm: Arm, task: LanguageModel, rates: list[float], keys: Key[Array, " seeds"], steps: int, points: int
) -> list[Trained]:
    """Trains an arm from every key at every rate, one after the other in one compiled program.

    A key determines initial weights and the order of data, for all arms alike (other data with `again`). The
    seconds a step are the median over runs, without compilation, and with all evaluations on held-out text.

    >>> from symmetrax.tasks._families import make_family
    >>> task = make_family("language").task(())
    >>> len(train(MAIN[0], task, [], jax.random.split(jax.random.key(0), 1), 10, 1))
    0
    """
    if not rates:
        return []
    run = held_out_program(arm, task, steps, points)
    program = jax.jit(run).lower(keys[0], jnp.asarray(rates[0])).compile()
    results = []
    for rate in rates:
        held, seconds = [], []
        for key in keys:
            start = time.perf_counter()
            held.append(np.asarray(program(key, jnp.asarray(rate))))
            seconds.append((time.perf_counter() - start) / (steps * arm.share))
        results.append(Trained(np.stack(held), float(np.median(seconds))))
    return results


def held_out_program(
    arm: Arm, task: LanguageModel, steps: int, points: int
) -> Callable[[Key[Array, ""], Array], Float[Array, " points"]]:
    """A function of a key and a learning rate that trains and returns held-out losses at `points` steps.

    >>> from symmetrax.tasks._families import make_family
    >>> task = make_family("language").task(())
    >>> run = held_out_program(MAIN[0], task, steps=10, points=2)
    >>> jax.eval_shape(run, jax.random.key(0), jnp.ones(())).shape
    (2,)
    """
    if arm.half:
        task = dataclasses.replace(task, dtype=jnp.bfloat16)
    steps = round(steps * arm.share)
    symmetry, chunk = task.symmetry(), steps // points

    def run(key: Key[Array, ""], rate: Array) -> Array:
        begin, data = jax.random.split(key)
        data = jax.random.fold_in(data, 1) if arm.again else data
        optimizer = optax.with_extra_args_support(
            arm.make(Setting(rate_schedule(rate, steps), task, symmetry))
        )
        params = task.init(begin)

        def step(carry, count):
            params, state = carry
            batch = task.batch(jax.random.fold_in(data, count))
            gradient = jax.grad(task.loss)(params, batch)
            updates, state = optimizer.update(gradient, state, params, value_fn=lambda w: task.loss(w, batch))
            return (optax.apply_updates(params, updates), state), None

        def part(carry, counts):
            carry, _ = jax.lax.scan(step, carry, counts)
            return carry, task.held_out(carry[0])

        counts = jnp.arange(chunk * points).reshape(points, chunk)
        return jax.lax.scan(part, (params, optimizer.init(params)), counts)[1]

    return run
