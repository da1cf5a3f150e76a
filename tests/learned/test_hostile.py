"""Learned transforms on hostile tasks: every update is finite, or zero with the reason in the state."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import symmetrax as sx

from ..cases import mostly_slow

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEYS = jax.random.split(jax.random.key(0), 2)
STEPS = 3
NO_STEP = [reason.startswith("no step") for reason in sx.teleportation.OUTCOMES].index(True)
STEP = {"emits": ("step_size", "momentum")}
FIRST = sx.UpdateRule(order="teleport-first", transport="carry")
UNGUARDED = sx.UpdateRule(guard=None)
SEEN = ("iterate", "previous", "orbit_derivative")


def whole(kind=sx.learned.FlatGradientLSTM, **options):
    return kind(2, algebra=1, width=4, key=KEYS[0], **options)


def orbit(**options):
    return sx.learned.OrbitLSTM(2, algebra=1, width=4, key=KEYS[0], **options)


#: On the plane, through maps that may be singular.
PLANE = {
    "whole-lstm": lambda s: whole().transform(s, UNGUARDED),
    "orbit-derivative": lambda s: whole(inputs=SEEN).transform(s),
    "whole-gru": lambda s: whole(sx.learned.FlatGradientGRU, **STEP).transform(s, FIRST),
    "whole-mlp": lambda s: whole(sx.learned.FlatGradientMLP, **STEP).transform(
        s, sx.UpdateRule(as_printed=True, guard=None)
    ),
    "orbit-lstm": lambda s: orbit().transform(s),
    "orbit-first": lambda s: orbit(centre="peak", gated=False).transform(
        s, dataclasses.replace(FIRST, guard=None)
    ),
    "online": lambda s: sx.online_teleported(optax.sgd(0.01), s, 0.01),
    "online-adam": lambda s: sx.online_teleported(optax.adam(0.01), s, 0.01, guard=None, order=1),
}

#: On a perceptron.
NETWORK = {
    "coordinatewise": lambda s: sx.learned.CoordinatewiseLSTM(width=4, key=KEYS[0]).transform(),
    "clipped": lambda s: sx.learned.CoordinatewiseLSTM(
        width=4, preprocessing="clipped_log_and_sign", key=KEYS[0]
    ).transform(),
    "rnnprop": lambda s: sx.learned.RNNProp(width=4, key=KEYS[0]).transform(),
    "step": lambda s: sx.learned.StepLSTM(**STEP, width=4, key=KEYS[0]).transform(),
    "step-absolute": lambda s: sx.learned.StepLSTM(absolute=True, width=4, key=KEYS[0]).transform(),
    "pairs": lambda s: sx.learned.LayerPairLSTM(
        (3, 3, 2), group="scaling", **STEP, width=4, key=KEYS[0]
    ).transform(s),
    "together": lambda s: sx.learned.Joint(
        (sx.learned.CoordinatewiseLSTM(width=4, key=KEYS[0]), sx.learned.PerNeuronLSTM(width=4, key=KEYS[1]))
    ).transform(s, UNGUARDED),
    "online-network": lambda s: sx.online_teleported(optax.sgd(0.01, 0.9), s, 0.01, guard=None),
}


def hostile(random, count, shape, zeros=0.2):
    """Floats of all sizes: of one magnitude, of many, with zeros, and now and then nothing else."""
    ends = random.uniform(-38, 38, (count, 1)), random.uniform(-38, 38, (count, int(np.prod(shape))))
    powers = np.where(random.random((count, 1)) < 0.5, *ends)
    x = 10.0**powers * random.choice([-1, 1], powers.shape) * random.uniform(0.5, 1.0, powers.shape)
    x[random.random(x.shape) < zeros * random.random((count, 1))] = 0.0
    x[random.random(count) < 0.05] = 0.0
    return x.reshape(count, *shape).astype(np.float32)


def ordinary(random, count, shape):
    return random.normal(size=(count, *shape)).astype(np.float32)


def plane_tasks(random, count):
    """Maps, half of them singular or nearly; points; gradients, some of which are those of the loss."""
    matrix = ordinary(random, count, (2, 2))
    tilt = random.choice([0.0, 1e-7, 1e-3, 1.0], count)
    matrix[:, 1] = matrix[:, 0] + tilt[:, None] * matrix[:, 1]
    wild = random.random(count) < 0.3
    matrix[wild] = hostile(random, count, (2, 2))[wild]
    matrix[0], matrix[1] = [[1, 2], [1, 2]], 0.0
    x = np.where(random.random((count, 1)) < 0.5, ordinary(random, count, (2,)), hostile(random, count, (2,)))
    given = np.stack([hostile(random, count, (2,)) for _ in range(STEPS)], 1)
    return matrix, ordinary(random, count, (2,)), x, given, random.random((count, STEPS)) < 0.3


def network_tasks(random, count):
    def tree(draw):
        return {"w1": draw((3, 3)), "w2": draw((2, 3))}

    params = tree(lambda shape: ordinary(random, count, shape))
    wild = random.random(count) < 0.3
    for name, x in tree(lambda shape: hostile(random, count, shape)).items():
        params[name][wild] = x[wild]
    given = tree(lambda s: np.stack([hostile(random, count, s) for _ in range(STEPS)], 1))
    return params, given, random.random((count, STEPS)) < 0.1


def run(transform, loss, params, given, own):
    """What every step gave, on gradients that are `given` or the loss's `own`."""

    def step(carry, recorded):
        params, state = carry
        gradient, own = recorded
        value, true = jax.value_and_grad(loss)(params)
        gradient = jax.tree.map(lambda t, g: jnp.where(own, t, g), true, gradient)
        updates, after = transform.update(gradient, state, params, value=value, value_fn=loss)
        return (optax.apply_updates(params, updates), after), (updates, after.outcome, after)

    return jax.lax.scan(step, (params, transform.init(params)), (given, own))[1]


def on_the_plane(make):
    def one(matrix, offset, x, given, own):
        symmetry = sx.symmetry.Pullback(sx.symmetry.Affine(matrix, offset))
        return run(make(symmetry), lambda x: jnp.sum((matrix @ x + offset) ** 2), x, given, own)

    return one


def on_a_network(make):
    inputs = jnp.linspace(-1.0, 1.0, 12).reshape(4, 3)

    def one(params, given, own):
        def loss(p):
            return jnp.mean((jax.nn.relu(inputs @ p["w1"].T) @ p["w2"].T - 1.0) ** 2)

        return run(make(sx.models.mlp_symmetry(params, ["w1", "w2"])), loss, params, given, own)

    return one


def outcomes(name, count, seed=0):
    """All steps on `count` hostile tasks of one kind of transform, in one program; and the tasks."""
    random = np.random.default_rng(seed)
    if name in PLANE:
        tasks, one = plane_tasks(random, count), on_the_plane(PLANE[name])
    else:
        tasks, one = network_tasks(random, count), on_a_network(NETWORK[name])
    return tasks, jax.jit(jax.vmap(one))(*tasks)


def check(name, count, seed=0):
    """Asserts that all numbers are finite; returns the tasks, and which of their steps were no steps."""
    tasks, (updates, outcome, states) = outcomes(name, count, seed)
    flat = np.concatenate([np.reshape(u, (count, STEPS, -1)) for u in jax.tree.leaves(updates)], axis=-1)
    assert np.all(np.isfinite(flat))
    stayed = np.asarray(outcome) == NO_STEP
    assert np.all(flat[stayed] == 0)
    for leaf in jax.tree.leaves(getattr(states, "memory", ())):
        assert np.all(np.isfinite(leaf))
    return tasks, stayed


OFTEN = ("whole-lstm", "orbit-derivative", "orbit-first", "online", "rnnprop", "step", "pairs", "together")
NAMES = mostly_slow(PLANE | NETWORK, OFTEN)


@pytest.mark.parametrize("name", NAMES)
def test_no_number_is_lost_silently(name):
    tasks, stayed = check(name, 400)
    # Rejecting everything would be finite too: where nothing is extreme, the first step is taken.
    ordinary = plane_ordinary(*tasks) if name in PLANE else network_ordinary(*tasks)
    assert np.sum(ordinary) > 15
    assert not np.any(stayed[ordinary, 0])


def plane_ordinary(matrix, offset, x, given, own):
    """Tasks with a regular map and a point of usual size whose first gradient fits the loss."""
    values = np.linalg.svd(np.float64(matrix), compute_uv=False)
    regular = (values[:, 0] < 1e3) & (values[:, 1] > 1e-2)
    return regular & usual(x, largest=1e3) & (own[:, 0] | usual(given[:, 0], least=1e-6, largest=1e6))


def network_ordinary(params, given, own):
    known = own[:, 0] | np.all([usual(x[:, 0], least=1e-6, largest=1e6) for x in given.values()], axis=0)
    return np.all([usual(x, largest=1e3) for x in params.values()], axis=0) & known


def usual(x, largest, least=0.0):
    """For each task, whether its largest entry lies in these bounds."""
    size = np.max(np.abs(np.reshape(x, (len(x), -1))), axis=1)
    return (size >= least) & (size <= largest)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PLANE, *NETWORK])
def test_no_number_is_lost_silently_in_ten_thousand_tasks(name):
    for seed in range(1, 6):
        check(name, 2_000, seed)
