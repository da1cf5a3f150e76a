"""Symmetries of different kinds as one."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
import pytest

import symmetrax as sx

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (6, 3))
PARAMS = {"s": jnp.array([1.0, 2.0]), "w1": jnp.ones((4, 3)), "w2": jnp.ones((2, 4))}


class Squeeze(sx.symmetry.AbstractLieSymmetry):
    """s[0] up and s[1] down."""

    linear: ClassVar[bool] = True
    reasons: ClassVar[tuple[str, ...]] = ("holds", "is never said")
    algebra = (1, 1)  # pyright: ignore[reportAssignmentType]  (stands in for the property)

    def identity(self):
        return jnp.ones(1)

    def compose(self, a, b):
        return a * b

    def inverse(self, a):
        return 1 / a

    def exp(self, coordinates):
        return jnp.exp(coordinates[0])

    def sample(self, key):
        return jnp.exp(jax.random.normal(key, (1,)))

    def act(self, a, params, batch=None):
        return params | {"s": params["s"] * jnp.concatenate([a, 1 / a])}

    def transport_gradient(self, a, params, cotangent, batch=None):
        return self.act(1 / a, cotangent)

    def holds(self, params, batch=None):
        return sx.symmetry.Precondition(jnp.array(1), jnp.array(0.5))


def loss(p, batch=None):
    return jnp.mean(jax.nn.log_softmax(jax.nn.relu(X @ p["w1"].T) @ p["w2"].T)[:, 0] ** 2) * jnp.prod(p["s"])


def test_symmetries_of_different_kinds_join_on_either_side():
    own, scaling, shift = (
        Squeeze(),
        sx.models.mlp_symmetry(PARAMS, ["w1", "w2"]),
        sx.symmetry.LogitShift("w2", like=PARAMS),
    )
    for both, linear in ((own | scaling, True), (scaling | own, True), (shift | own, False)):
        report = sx.verify(loss, PARAMS, both, KEY, trials=1)
        assert report.outcome == "exact", str(report)
        assert both.linear == linear
        assert report.reasons == ("is never said",)
        zero = both.zero()
        assert zero.shape == both.algebra == both.bounded(zero + 9, 1.0).shape
    assert (own | scaling).algebra == (5,)


def test_what_does_not_commute_fails_the_law_of_composition():
    joined = sx.symmetry.LogitShift("w2", like=PARAMS) | sx.models.mlp_symmetry(PARAMS, ["w1", "w2"])
    report = sx.verify(loss, PARAMS, joined, KEY, trials=1)
    assert report.invariance < 1e-4
    assert report.composition > 1e-2


def test_an_optimizer_teleports_along_both():
    both = Squeeze() | sx.models.mlp_symmetry(PARAMS, ["w1", "w2"])
    tx = sx.teleported(optax.sgd(0.0), both, search=sx.search.Ascent(rate=0.1, steps=2))
    gradient, state = jax.grad(loss)(PARAMS), tx.init(PARAMS)
    updates, state = jax.jit(lambda g, s: tx.update(g, s, PARAMS, value_fn=loss))(gradient, state)
    assert int(state.outcome) == 0
    assert all(float(optax.tree.norm(updates[name])) > 0 for name in PARAMS)
    with pytest.raises(ValueError, match="'w1'"):
        tx.init({"s": PARAMS["s"]})


def test_only_symmetries_with_an_algebra_join():
    with pytest.raises(TypeError, match="have a Lie algebra, got int"):
        _ = sx.models.mlp_symmetry(PARAMS, ["w1", "w2"]) | 3
