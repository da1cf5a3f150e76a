"""Teleports towards more or less curvature and sharpness go where they were sent, at the same loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import symmetrax as sx

# The curvature along a curve, and the direction that `CurvatureStep` draws, to be measured apart.
from symmetrax.objectives._landscape import curvature, unit_direction

from ..cases import mostly_slow

pytestmark = pytest.mark.usefixtures("quick_compilation", "float64")
RUNS = 64
WEIGHTS = ("w1", "w2")


def network(key):
    """Six leaky ReLU units and a batch of four samples, where the data-dependent action is exact."""
    one, two, three, four = jax.random.split(key, 4)
    params = {"w1": jax.random.normal(one, (6, 8)), "w2": jax.random.normal(two, (2, 6))}
    return params, (jax.random.normal(three, (4, 8)), jax.random.normal(four, (4, 2)))


def loss(params, batch):
    x, y = batch
    return jnp.mean((jax.nn.leaky_relu(x @ params["w1"].T) @ params["w2"].T - y) ** 2)


SYMMETRIES = {
    "scaling": sx.models.mlp_symmetry(
        {"w1": jnp.ones((6, 8), jnp.float32), "w2": jnp.ones((2, 6), jnp.float32)}, WEIGHTS
    ),
    "data-dependent": sx.symmetry.ActivationGL(weights=WEIGHTS, sizes=(6,), activation=jax.nn.leaky_relu),
}


def share(condition):
    return float(np.mean(np.asarray(condition)))


@pytest.mark.parametrize("name", mostly_slow(SYMMETRIES, ["scaling"]))
def test_a_curvature_step_bends_the_curve_the_way_it_was_asked(name):
    """B06, for 64 networks: along the curve that the step took, its curvature there against that here."""
    symmetry = SYMMETRIES[name]

    @jax.jit
    @jax.vmap
    def both(key):
        params, batch = network(key)
        found = []
        for down in (False, True):
            search = sx.search.CurvatureStep(key, rate=0.01, down=down)
            there, info = sx.teleport(loss, params, symmetry, batch, search=search)
            direction = unit_direction(symmetry, jax.random.fold_in(key, 0))
            curve = lambda t: symmetry.act(symmetry.exp(t * direction), params, batch)  # noqa: B023, E731
            t = jnp.vdot(info.algebra, direction)
            found.append(curvature(curve, t) - curvature(curve, jnp.zeros(())))
            found += [info.outcome, jnp.abs(loss(there, batch) / loss(params, batch) - 1), jnp.abs(t)]
        return found

    up, outcome, change, step, down, *_ = both(jax.random.split(jax.random.key(0), RUNS))
    assert share(up > 0) >= 0.95
    assert share(down < 0) >= 0.95
    assert share(outcome == 0) == 1
    assert np.max(change) < 1e-9
    assert np.min(step) > 0


@pytest.mark.slow
def test_ascent_on_sharpness_and_mean_curvature_moves_them_both_ways():
    """B06 and B07, for 64 networks and three steps of ascent on rescalings."""
    symmetry = SYMMETRIES["scaling"]

    @jax.jit
    @jax.vmap
    def gains(key):
        params, batch = network(key)
        sharpness = sx.objectives.Sharpness(key, directions=6, radii=(0.1,))
        bending = sx.objectives.Curvature(symmetry, key, curves=2, batch=batch)
        found = {}
        for label, objective in (("sharpness", sharpness), ("curvature", bending)):
            for way, goal in (("up", objective), ("down", sx.objectives.negate(objective))):
                search = sx.search.Ascent(3, 0.01, normalized=True)
                _, info = sx.teleport(loss, params, symmetry, batch, objective=goal, search=search)
                found[label, way] = info.after - info.before
        return list(found.values())

    for gain in gains(jax.random.split(jax.random.key(1), RUNS)):
        assert share(gain > 0) >= 0.95
