"""Learned transforms keep the types that `init` gave, for parameters and networks of every precision."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import symmetrax as sx

from ..cases import mostly_slow

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEYS = jax.random.split(jax.random.key(0), 2)
SIZES = {"x": 4, "h": 3, "y": 2}
PRECISIONS = [("bfloat16", False), ("float32", False)]
PRECISIONS += [(dtype, True) for dtype in ("float16", "float32", "float64")]


def plane(dtype):
    """A point of the plane, a loss that any rotation of its image keeps, and that symmetry."""
    matrix = jnp.array([[1.0, 2.0], [2.0, 1.0]], jnp.float32)
    offset = jnp.array([-7.0, -5.0], jnp.float32)

    def loss(x):
        return jnp.sum((matrix.astype(x.dtype) @ x + offset.astype(x.dtype)) ** 2)

    return jnp.array([5.0, -5.0], dtype), loss, sx.symmetry.Pullback(sx.symmetry.Affine(matrix, offset))


def form(dtype):
    """The same for the linear maps that keep a quadratic form."""
    matrix = jnp.diag(jnp.array([0.25, 9.0], jnp.float32))
    return (
        jnp.array([-5.0, 3.5], dtype),
        lambda x: x @ (matrix.astype(x.dtype) @ x),
        sx.symmetry.QuadraticForm(matrix),
    )


def perceptron(dtype):
    """A small ReLU network."""
    random = np.random.default_rng(0)
    params = {"w1": random.normal(size=(3, 4)), "w2": random.normal(size=(2, 3))}
    params = {name: jnp.asarray(w, dtype) for name, w in params.items()}
    x, y = (jnp.asarray(random.normal(size=(8, n)), dtype) for n in (4, 2))

    def loss(p):
        return jnp.mean((jax.nn.relu(x @ p["w1"].T) @ p["w2"].T - y) ** 2)

    return params, loss, sx.models.mlp_symmetry(params, ["w1", "w2"])


def whole(kind=sx.learned.FlatGradientLSTM, size=2, **options):
    return kind(size, algebra=1, width=4, key=KEYS[0], **options)


SEEN = ("iterate", "previous", "orbit_derivative")
STEP = {"emits": ("step_size", "momentum")}
FIRST = sx.UpdateRule(order="teleport-first", transport="carry")

#: Where each transform is tried, and how it is made of a symmetry.
TRANSFORMS = {
    "whole-lstm": (plane, lambda s: whole(inputs=SEEN).transform(s)),
    "whole-gru": (form, lambda s: whole(sx.learned.FlatGradientGRU, **STEP).transform(s, FIRST)),
    "whole-mlp": (
        plane,
        lambda s: whole(sx.learned.FlatGradientMLP, **STEP).transform(s, sx.UpdateRule([1], as_printed=True)),
    ),
    "whole-alone": (plane, lambda s: whole().transform(None)),
    "orbit-lstm": (
        plane,
        lambda s: sx.learned.OrbitLSTM(2, algebra=1, width=4, key=KEYS[0]).transform(s, FIRST),
    ),
    "orbit-best": (
        form,
        lambda s: sx.learned.OrbitLSTM(2, orbit=1, sees=("best",), width=4, key=KEYS[0]).transform(s),
    ),
    "coordinatewise": (perceptron, lambda s: sx.learned.CoordinatewiseLSTM(width=4, key=KEYS[0]).transform()),
    "clipped": (
        perceptron,
        lambda s: sx.learned.CoordinatewiseLSTM(
            width=4, preprocessing="clipped_log_and_sign", key=KEYS[0]
        ).transform(),
    ),
    "rnnprop": (perceptron, lambda s: sx.learned.RNNProp(width=4, key=KEYS[0]).transform()),
    "step": (perceptron, lambda s: sx.learned.StepLSTM(**STEP, width=4, key=KEYS[0]).transform()),
    "pairs": (
        perceptron,
        lambda s: sx.learned.LayerPairLSTM(
            (4, 3, 2), group="scaling", **STEP, width=4, key=KEYS[0]
        ).transform(s, sx.UpdateRule(guard=sx.Guard(relative=0.5, shorten=True))),
    ),
    "together": (
        perceptron,
        lambda s: sx.learned.Joint(
            (
                sx.learned.CoordinatewiseLSTM(width=4, key=KEYS[0]),
                sx.learned.PerNeuronLSTM(width=4, key=KEYS[1]),
            )
        ).transform(s, sx.UpdateRule(transport="reset")),
    ),
    "online-map": (plane, lambda s: sx.online_teleported(optax.sgd(0.01), s, 0.01)),
    "online-form": (form, lambda s: sx.online_teleported(optax.adam(0.01), s, optax.adam(0.1), order=1)),
    "online-network": (perceptron, lambda s: sx.online_teleported(optax.sgd(0.01, 0.9), s, 0.01, guard=None)),
}

#: What these call of optax does not run under strict promotion itself.
LENIENT = ("online-form", "orbit-best")


def types(tree):
    return [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in map(jax.typeof, jax.tree.leaves(tree))]


def one_step(transform, loss):
    """What users write, with all that an update may be given."""

    def step(params, state):
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = transform.update(gradient, state, params, value=value, value_fn=loss)
        return optax.apply_updates(params, updates), state, updates

    return step


@pytest.mark.parametrize(
    "name", mostly_slow(TRANSFORMS, ("whole-lstm", "rnnprop", "step", "together", "online-network"))
)
def test_no_leaf_of_updates_or_state_changes_its_type(name):
    """Whatever the precision, under every promotion rule, by types alone: nothing is compiled."""
    setting, make = TRANSFORMS[name]
    for dtype, double in PRECISIONS:
        with jax.enable_x64(double), jax.numpy_rank_promotion("raise"):
            params, loss, symmetry = setting(jnp.dtype(dtype))
            transform = make(symmetry)
            state = jax.eval_shape(transform.init, params)
            strict = dtype == "float32" and not double and name not in LENIENT
            with jax.numpy_dtype_promotion("strict" if strict else "standard"):
                after, recorded, updates = jax.eval_shape(one_step(transform, loss), params, state)
            kept = [(leaf.shape, leaf.dtype, False) for leaf in jax.tree.leaves(state)]
            assert types(recorded) == kept, (dtype, double)
            assert types(updates) == types(params) == types(after), (dtype, double)


def test_the_types_are_those_of_arrays_that_run():
    """`eval_shape` says what runs; a second call compiles nothing, a scan runs, and half precision learns."""
    setting, make = TRANSFORMS["together"]
    params, loss, symmetry = setting(jnp.bfloat16)
    transform = make(symmetry)
    state = transform.init(params)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))
    step = jax.jit(one_step(transform, loss))
    once, recorded, _ = step(params, state)
    step(once, recorded)
    assert step._cache_size() == 1
    alone = lambda carry, _: (step(*carry)[:2], loss(carry[0]))  # noqa: E731
    (end, _), losses = jax.lax.scan(alone, (params, state), None, length=20)
    assert end["w1"].dtype == losses.dtype == jnp.bfloat16
    assert losses[-1] < losses[0]
