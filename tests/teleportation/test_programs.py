"""Outside of compiled code nothing compiles anew for the same structure, whatever object is made anew."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import symmetrax as sx

# A learned teleport inverts matrices without LAPACK: the inverse has a program of its own.
from symmetrax.groups._inverse import inverse

from ..cases import mostly_slow

COMPILED = "/jax/core/compile/backend_compile_duration"

pytestmark = pytest.mark.usefixtures("quick_compilation")


@contextlib.contextmanager
def programs():
    """A list with an entry for every program that is compiled inside."""
    found = []

    def listen(event, duration, **_):
        if event == COMPILED:
            found.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


PARAMS = {"w1": np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3), "w2": np.ones((2, 4), np.float32)}
DATA = np.random.default_rng(0).normal(size=(60, 8, 3)).astype(np.float32)
SPECS = {"w1": "h _", "w2": "_ h*"}


def params():
    return jax.tree.map(jnp.asarray, PARAMS)


def symmetry():
    return sx.NetworkSymmetry({"h": sx.groups.PositiveDiagonal(4)}, SPECS, like=PARAMS)


def loss(w, x):
    return jnp.mean((jax.nn.relu(x @ w["w1"].T) @ w["w2"].T - 1) ** 2)


def updated(optimizer, i, **extra):
    """A step of a loop in Python: everything but the state is made anew."""
    w, x = params(), jnp.asarray(DATA[i])
    gradient = jax.grad(loss)(w, x)
    return optimizer.update(gradient, optimizer.init(w), w, value_fn=lambda w: loss(w, x), **extra)


def teleported(inner, **options):
    return lambda i: updated(sx.teleported(inner(), symmetry(), **options), i)


def learned(network, **options):
    return lambda i: updated(network.transform(symmetry(), sx.UpdateRule(**options)), i)


def in_the_plane(optimizer):
    def call(i):
        x = jnp.array([5.0, -5.0 + i])
        task = sx.tasks.booth()
        made = optimizer(task.symmetry())
        gradient = jax.grad(task.loss)(x)
        return made.update(gradient, made.init(x), x, value_fn=lambda x: task.loss(x), value=float(i))

    return call


def unrolled_many(i):
    family = sx.tasks.make_family("ellipse-random")
    key = jax.random.key(i)
    return sx.unroll_many(lambda rate, task: optax.sgd(rate), jnp.array(0.05), family, key, 2, 3)


def meta_trained(i):
    family = sx.tasks.make_family("ellipse-fixed")
    estimator = sx.metatrain.TruncatedBPTT(family, sx.UpdateRule(), steps=2, truncation=2, tasks=2)
    make = lambda key: sx.learned.FlatGradientLSTM(2, width=3, key=key)  # noqa: E731
    return sx.meta_train(make, estimator, optax.adam(1e-2), jax.random.key(i), outer_steps=2).losses


def gained(i):
    x = jnp.asarray(DATA[i])
    return sx.teleport_gain(lambda w, _: loss(w, x), params(), symmetry(), jax.random.key(i), samples=4)


ENTRIES = {
    "teleported, adam, closed form": teleported(
        lambda: optax.adam(1e-2), search=sx.search.ClosedForm(bound=0.2)
    ),
    "teleported, carry": teleported(
        lambda: optax.adam(1e-2), search=sx.search.ClosedForm(), transport="carry"
    ),
    "teleported, ascent": teleported(lambda: optax.sgd(1e-2), search=sx.search.Ascent(steps=2)),
    "teleported, random": teleported(
        lambda: optax.sgd(1e-2), search=sx.search.Random(jax.random.key(0), samples=2)
    ),
    "teleported, level set": teleported(lambda: optax.sgd(1e-2), search=sx.search.LevelSet(steps=2)),
    "teleported, plateau": teleported(
        lambda: optax.sgd(1e-2), schedule=sx.schedules.Plateau(), search=sx.search.ClosedForm()
    ),
    "teleported, shortened": teleported(
        lambda: optax.sgd(1e-2), search=sx.search.ClosedForm(), guard=sx.Guard(relative=0.1, shorten=True)
    ),
    "teleported, line search": teleported(
        lambda: optax.lbfgs(memory_size=2, linesearch=optax.scale_by_backtracking_linesearch(3)),
        search=sx.search.ClosedForm(),
    ),
    "teleported, oracle": in_the_plane(
        lambda s: sx.teleported(optax.sgd(0.01), s, search=sx.search.GoldenSection(points=4))
    ),
    "teleport": lambda i: sx.teleport(lambda w, x: loss(w, x), params(), symmetry(), jnp.asarray(DATA[i])),
    "teleport, closed over": lambda i: sx.teleport(
        lambda w, _: loss(w, jnp.asarray(DATA)[i]) * (1 + 0.1 * i), params(), symmetry()
    ),
    "teleport gain": gained,
    "unroll": lambda i: sx.unroll(optax.adam(0.05), sx.tasks.booth(), jax.random.key(i), 3),
    "unroll, teleported": lambda i: sx.unroll(
        sx.teleported(optax.sgd(0.05), sx.tasks.booth().symmetry(), schedule=sx.schedules.every_n_steps(2)),
        sx.tasks.booth(),
        jax.random.key(i),
        3,
    ),
    "unroll many": unrolled_many,
    "meta-training": meta_trained,
    "a learned step": lambda i: updated(
        sx.learned.CoordinatewiseLSTM(width=2, key=jax.random.key(0)).transform(), i
    ),
    "a learned teleport": learned(
        sx.learned.Joint(
            (
                sx.learned.CoordinatewiseLSTM(width=2, key=jax.random.key(0)),
                sx.learned.PerNeuronLSTM(width=2, key=jax.random.key(1)),
            )
        ),
        guard=sx.Guard(relative=0.1, shorten=True),
    ),
    "along the orbit": in_the_plane(
        lambda s: sx.learned.OrbitLSTM(2, algebra=1, key=jax.random.key(0)).transform(
            s, sx.UpdateRule(order="teleport-first")
        )
    ),
    "online": lambda i: updated(sx.online_teleported(optax.sgd(0.01), symmetry(), rate=1e-3), i),
    "verify": lambda i: sx.verify(
        lambda w, x: loss(w, x), params(), symmetry(), jax.random.key(i), jnp.asarray(DATA[i]), trials=1
    ),
    "orbit curve": lambda i: sx.symmetry.orbit_curve(symmetry(), jnp.full(4, 0.1 * i), params(), points=3),
    "orbit derivative": lambda i: sx.objectives.orbit_derivative(
        lambda w: loss(w, jnp.asarray(DATA[i])), params(), symmetry()
    ),
    "exp, rotations": lambda i: sx.groups.Orthogonal(4).exp(0.3 * i * jnp.ones(6)),
    "exp, general linear": lambda i: sx.groups.GeneralLinear(3).exp(0.1 * i * jnp.ones((3, 3))),
    "inverse": lambda i: inverse(jnp.eye(3) + 0.1 * i),
}


#: One of each kind; the others take longer.
QUICK = {
    *("teleported, adam, closed form", "teleport, closed over", "unroll, teleported", "a learned step"),
    *("meta-training", "online", "verify", "exp, rotations", "exp, general linear", "inverse"),
}
NAMES = mostly_slow(ENTRIES, QUICK)


@pytest.mark.parametrize("name", NAMES)
def test_the_second_call_compiles_nothing(name):
    for i in range(2):
        jax.block_until_ready(jax.tree.leaves(ENTRIES[name](i)))
    with programs() as compiled:
        ENTRIES[name](2)
    assert not compiled


@pytest.mark.slow
@pytest.mark.parametrize("name", ENTRIES)
def test_fifty_calls_compile_nothing(name):
    ENTRIES[name](0)
    with programs() as compiled:
        for i in range(1, 51):
            ENTRIES[name](i)
    assert not compiled
