"""Hostile teleports end at a finite point of the same loss, or leave the point as it was and say why."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import symmetrax as sx

from ..cases import mostly_slow

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)
LIKE = {"w1": jnp.zeros((4, 2)), "b1": jnp.zeros(4), "w2": jnp.zeros((2, 4))}
SCALING = sx.models.mlp_symmetry(LIKE, ["w1", "w2"], ["b1"])
LINEAR = sx.NetworkSymmetry({"h": sx.groups.GeneralLinear(4)}, {"w1": "h _", "b1": "h", "w2": "_ h*"}, LIKE)


def network(params, batch, activation=jax.nn.relu):
    x, y = batch
    hidden = activation(
        jnp.einsum("bi,hi->bh", x.astype(params["w1"].dtype), params["w1"]) + params["b1"][None]
    )
    out = jnp.einsum("bh,oh->bo", hidden, params["w2"]).astype(jnp.float32)
    return jnp.mean((out - y) ** 2)


def matrices(params, batch):
    return network(params, batch, lambda z: z)


SEARCHES = {
    "default": None,
    "closed": sx.search.ClosedForm(),
    "ascent": sx.search.Ascent(3, 0.1),
    "normalized": sx.search.Ascent(3, 0.1, normalized=True),
    "random": sx.search.Random(KEY, samples=4),
    "far": sx.search.Random(KEY, samples=1, scale=100.0, bound=80.0),
    "curvature": sx.search.CurvatureStep(KEY),
    "level set": sx.search.LevelSet(steps=2),
    "null space": sx.search.NullSpace(lambda params, batch: {"w1": batch[0][:1]}, steps=2),
}
OBJECTIVES = {
    "gradient": sx.objectives.GradientNorm(),
    "down": sx.objectives.negate(sx.objectives.GradientNorm()),
    "l1": sx.objectives.GradientNorm("l1"),
    "nuclear": sx.objectives.GradientNorm("nuclear"),
    "small": sx.objectives.NegativeParameterNorm(),
    "decrease": sx.objectives.GuaranteedDecrease(),
    "sharpness": sx.objectives.Sharpness(KEY, directions=2, radii=(0.1,)),
    "after": sx.objectives.LookaheadLoss(optax.adam(0.1), 2),
}
SHORT = [
    ("default", "gradient"),
    ("default", "l1"),
    ("closed", "down"),
    ("ascent", "decrease"),
    ("far", "small"),
]
SHORT += [("level set", "gradient"), ("null space", "gradient")]
#: Magnitudes of the layers and the data; one of them is zero, tiny, huge or not even.
SIZES = [
    (1, 1, 1),
    (0, 1, 1),
    (1, 0, 1),
    (0, 0, 0),
    (1e-30, 1, 1),
    (1, 1e-30, 1e-5),
    (1e8, 1e-8, 1),
    (1e30, 1, 1),
]
SIZES += [
    (1e30, 1e30, 1e30),
    (1e-30, 1e-30, 1),
    (1, 1, 1e19),
    (1e15, 1e15, 1),
    (np.nan, 1, 1),
    (1, 1, np.inf),
]


def points(seed):
    rng = np.random.default_rng(seed)
    for first, second, data in SIZES:
        params = {"w1": first * rng.normal(size=(4, 2)), "b1": first * rng.normal(size=4)}
        params["w2"] = second * rng.normal(size=(2, 4))
        batch = rng.normal(size=(5, 2)), data * rng.normal(size=(5, 2))
        yield jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (params, batch))


def check_all(search, objective, symmetry, loss, seed=0):
    free = isinstance(SEARCHES[search], sx.search.AbstractPointSearch)

    @jax.jit
    def both(params, batch):
        options = {"search": SEARCHES[search], "objective": OBJECTIVES[objective]}
        there, info = sx.teleport(loss, params, None if free else symmetry, batch, **options)
        return there, info, loss(params, batch), loss(there, batch)

    moved = 0
    for params, batch in points(seed):
        there, info, here, after = both(params, batch)
        same = all(
            np.array_equal(a, b, equal_nan=True)
            for a, b in zip(*map(jax.tree.leaves, (there, params)), strict=True)
        )
        if info.outcome:
            assert same, (search, objective, info)
        else:
            assert all(np.all(np.isfinite(leaf)) for leaf in there.values()), (search, objective, info)
            assert np.isfinite(after), (search, objective, info)
            worse = float(after) - float(here)
            assert worse <= 1e-3 * max(abs(float(here)), 1e-6), (search, objective, info)
            moved += not same
    assert moved > 0 or search in ("far", "curvature", "null space"), (search, objective)


@pytest.mark.parametrize(("search", "objective"), SHORT)
def test_hostile_points_are_left_alone_or_moved_at_the_same_loss(search, objective):
    check_all(search, objective, SCALING, network)


def test_hostile_points_under_matrices():
    check_all("closed", "down", LINEAR, matrices)
    check_all("default", "gradient", LINEAR, matrices)


@pytest.mark.slow
@pytest.mark.parametrize(("search", "objective"), [*itertools.product(SEARCHES, OBJECTIVES)])
def test_every_search_with_every_objective(search, objective):
    if search == "closed" and objective not in ("gradient", "down", "small"):
        return  # there is no closed form
    for seed in range(5):
        check_all(search, objective, SCALING, network, seed)
    check_all(search, objective, LINEAR, matrices)


def kinds(tree):
    return jax.tree.map(lambda x: (x.dtype, x.shape), tree)


TYPES = [("float32", True), ("float16", False), ("bfloat16", True)]
TYPES += [("float32", False), ("float16", True), ("bfloat16", False)]


@pytest.mark.parametrize(("dtype", "x64"), mostly_slow(TYPES, TYPES[:3], unpack=True))
def test_dtypes_stay_as_init_gave_them(dtype, x64):
    """One program of `teleport` and of ten steps of `teleported` in a scan, for every dtype."""
    with jax.enable_x64(x64):
        rng = np.random.default_rng(0)
        params = {name: jnp.asarray(0.5 * rng.normal(size=leaf.shape), dtype) for name, leaf in LIKE.items()}
        batch = tuple(jnp.asarray(rng.normal(size=(5, 2)), jnp.float32) for _ in range(2))
        value_fn = lambda w: network(w, batch)  # noqa: E731
        # The usual epsilon is zero in float16, and Adam divides by it where a unit is dead.
        optimizer = sx.teleported(optax.adam(1e-3, eps=1e-4), SCALING, schedule={1, 4}, transport="carry")

        @jax.jit
        def everything(params):
            def step(carry, _):
                params, state = carry
                updates, state = optimizer.update(
                    jax.grad(value_fn)(params), state, params, value_fn=value_fn
                )
                return (optax.apply_updates(params, updates), state), optax.tree.get(state, "outcome")

            start = (params, optimizer.init(params))
            end, outcome = jax.lax.scan(step, start, None, length=6)
            there, info = sx.teleport(network, params, SCALING, batch)
            level, _ = sx.teleport(network, params, None, batch, search=sx.search.LevelSet(steps=2))
            return start, end, outcome, there, info, level

        start, end, outcome, there, info, level = everything(params)
        assert kinds(start) == kinds(end)
        assert kinds(there) == kinds(level) == kinds(params)
        assert int(info.outcome) == 0
        assert float(info.after) > 1.2 * float(info.before)
        assert np.all(outcome == 0)
        assert all(np.all(np.isfinite(np.asarray(leaf, float))) for leaf in end[0].values())


@pytest.mark.slow  # tests/symmetry/test_sharding.py and tests/learned/test_uses.py split arrays as well
@pytest.mark.parametrize("axis", [0, 1])
def test_parameters_that_are_split_over_devices_move_as_whole_ones(axis):
    """A mesh with explicit axes, as `jax.make_mesh` makes it."""
    mesh = jax.make_mesh((2,), ("data",))
    rng = np.random.default_rng(0)
    whole = {name: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32) for name, leaf in LIKE.items()}
    batch = tuple(jnp.asarray(rng.normal(size=(5, 2)), jnp.float32) for _ in range(2))
    spec = PartitionSpec("data", None) if axis == 0 else PartitionSpec(None, "data")

    def loss(params, batch, activation=jax.nn.relu):
        x, y = batch
        one, two = (jnp.asarray(params[name]) for name in ("w1", "w2"))
        hidden = activation(
            jnp.einsum("bi,hi->bh", x, one, out_sharding=PartitionSpec()) + params["b1"][None]
        )
        return jnp.mean((jnp.einsum("bh,oh->bo", hidden, two, out_sharding=PartitionSpec()) - y) ** 2)

    rows = [
        ("gradient", "default"),
        ("down", "default"),
        ("small", "closed"),
        ("gradient", "ascent"),
        ("nuclear", "ascent"),
    ]
    rows += [("gradient", "level set"), ("gradient", "null space")]

    def all_ends(params, batch):
        ends = []
        for objective, search in rows:
            symmetry = None if isinstance(SEARCHES[search], sx.search.AbstractPointSearch) else SCALING
            options = {"objective": OBJECTIVES[objective], "search": SEARCHES[search]}
            ends.append(sx.teleport(loss, params, symmetry, batch, **options)[0])
        return ends

    with jax.set_mesh(mesh):
        split = {
            n: jax.device_put(x, NamedSharding(mesh, spec if x.ndim == 2 else PartitionSpec()))
            for n, x in whole.items()
        }
        ends, expected = jax.jit(all_ends)(split, batch), jax.jit(all_ends)(whole, batch)
    for row, one, other in zip(rows, ends, expected, strict=True):
        assert one["w1"].sharding.spec == split["w1"].sharding.spec, row
        for name, leaf in one.items():
            np.testing.assert_allclose(leaf, other[name], rtol=2e-4, atol=1e-5, err_msg=f"{row} {name}")
