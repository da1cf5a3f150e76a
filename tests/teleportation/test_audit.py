"""How much optimizers see of the gauge, known beforehand for the usual ones."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import muon

import symmetrax as sx

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)


def net(p, batch=None):
    x = jnp.linspace(-1, 1, 12).reshape(4, 3)
    hidden = jax.nn.relu(x @ p["w1"].T) @ p["mid"].T
    return jnp.mean((hidden @ p["down"].T @ p["w2"].T - 1) ** 2)


@pytest.fixture
def model(float64):
    """A layer of units, and a linear one between them: scalings, and a general linear group."""
    random = np.random.default_rng(0)
    shapes = {"w1": (5, 3), "mid": (4, 5), "down": (6, 4), "w2": (2, 6)}
    params = {name: jnp.asarray(random.normal(size=shape)) for name, shape in shapes.items()}
    scales = sx.NetworkSymmetry({"h": sx.groups.PositiveDiagonal(5)}, {"w1": "h _", "mid": "_ h*"}, params)
    linear = sx.NetworkSymmetry({"r": sx.groups.GeneralLinear(4)}, {"mid": "r _", "down": "_ r*"}, params)
    units = sx.NetworkSymmetry({"p": sx.groups.Permutation(5)}, {"w1": "p _", "mid": "_ p"}, params)
    return params, scales | linear, units


def dependence(optimizer, params, symmetry, **options):
    rows = sx.teleportation.audit(optimizer, net, params, symmetry, KEY, **options)
    return {row.space: float(np.max(row.displacement)) for row in rows}


@pytest.mark.parametrize("steps", [1, 4])
def test_rotations_are_seen_by_adam_alone(model, steps):
    params, symmetry, _ = model
    found = {
        name: dependence(optimizer, params, symmetry, elements="rotations", steps=steps)
        for name, optimizer in {
            "sgd": optax.sgd(1e-3, momentum=0.9),
            "muon": muon(1e-3, adam_learning_rate=1e-3),
            "adam": optax.adam(1e-3),
        }.items()
    }
    assert all(list(rows) == ["r"] for rows in found.values())  # units have no rotations
    assert found["sgd"]["r"] < 1e-10
    assert found["muon"]["r"] < 1e-6
    assert found["adam"]["r"] > 0.1


def test_scalings_and_general_linear_groups_are_seen_by_all(model):
    params, symmetry, _ = model
    for optimizer in (optax.sgd(1e-3), optax.adam(1e-3)):
        assert min(dependence(optimizer, params, symmetry).values()) > 0.05


def test_permutations_by_none(model):
    params, _, units = model
    assert dependence(optax.adam(1e-3), params, units) == {"p": pytest.approx(0, abs=1e-12)}


def test_teleports_to_a_balanced_eigenbasis_forget_the_gauge(model):
    params, symmetry, _ = model
    symmetry = symmetry.only("r")
    search = sx.search.Eigenbasis(balanced=True)
    optimizer = sx.teleported(optax.adamw(1e-3), symmetry, search=search)
    plain = dependence(optax.adamw(1e-3), params, symmetry, steps=3)["r"]
    # The ends are in the gauge of their own teleports, in which the products are equal: compare losses.
    (row,) = sx.teleportation.audit(optimizer, net, params, symmetry, KEY, steps=3)
    assert np.max(np.abs(row.loss)) < 1e-4 < plain


def test_the_table_has_a_row_for_every_space(model):
    params, symmetry, _ = model
    lines = str(sx.teleportation.audit(optax.sgd(1e-3), net, params, symmetry, KEY)).splitlines()
    assert [line.split()[0] for line in lines] == ["space", "h", "r"]


def test_steps_that_move_nothing_are_not_compared(model):
    params, symmetry, _ = model
    for optimizer in (optax.set_to_zero(), optax.sgd(jnp.nan)):
        with pytest.raises(ValueError, match=r"1 steps have the length .* nothing to compare"):
            dependence(optimizer, params, symmetry)
    gathered = optax.MultiSteps(optax.sgd(1e-3), 2).gradient_transformation()
    with pytest.raises(ValueError, match="take more `steps`"):
        dependence(gathered, params, symmetry)
    assert dependence(gathered, params, symmetry, steps=2)["h"] > 0.01


def test_what_cannot_be_audited(model, unchecked):
    params, symmetry, units = model
    with pytest.raises(ValueError, match=r"needs a space with rotations, got Permutation\(5\)"):
        dependence(optax.sgd(1.0), params, units, elements="rotations")
    with pytest.raises(ValueError, match="`steps` must be at least 1, got 0"):
        dependence(optax.sgd(1.0), params, symmetry, steps=0)
    shift = sx.symmetry.LogitShift("w2", like=params)
    for other in (shift, symmetry | shift):
        with pytest.raises(ValueError, match=f"needs a NetworkSymmetry, .* got {type(other).__name__}"):
            dependence(optax.sgd(1.0), params, other)
    with pytest.raises(ValueError, match="compiled code cannot"):
        jax.jit(lambda p: dependence(optax.sgd(1.0), p, symmetry)["h"])(params)
    with pytest.raises(ValueError, match="`elements` must be"):
        dependence(optax.sgd(1.0), params, symmetry, elements="some")
