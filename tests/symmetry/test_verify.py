"""`verify` has to find what is wrong: each law is broken on purpose, and the report must name that one."""

import dataclasses
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import symmetrax as sx

pytestmark = pytest.mark.usefixtures("quick_compilation", "float64")
SEEDS = st.integers(0, 2**32 - 1)
LAWS = ("invariance", "identity", "composition", "inverse", "gradient")


class WrongInverse(sx.symmetry.Pullback):
    def inverse(self, a):
        return a


class WrongOrder(sx.symmetry.Pullback):
    def compose(self, a, b):
        return self.group.compose(b, a)


class WrongIdentity(sx.symmetry.Pullback):
    def identity(self):
        return self.exp(jnp.full(self.algebra, 0.1))


class WrongPull(sx.symmetry.Pullback):
    def transport_gradient(self, a, params, cotangent, batch=None):
        return self.transport_tangent(a, params, cotangent, batch)


class Motionless(sx.symmetry.Pullback):
    def act(self, a, params, batch=None):
        return params


def task():
    """Three dimensions: rotations of the plane commute, which hides a wrong order."""
    matrix = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0] * [1.0, 2.0, 3.0]
    return sx.tasks.generalized_booth(matrix, [1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("broken", "wrong"),
    [
        (sx.symmetry.Pullback, set()),
        (WrongOrder, {"composition"}),
        (WrongIdentity, {"identity"}),
        (WrongPull, {"gradient"}),
        (WrongInverse, {"inverse", "gradient"}),  # gradients travel by the derivative of the inverse
    ],
)
@settings(max_examples=5)
@given(seed=SEEDS)
def test_verify_names_the_law_that_is_broken(broken, wrong, seed):
    symmetry = broken(task().map)
    report = sx.verify(task().loss, jnp.zeros(3), symmetry, jax.random.key(seed))
    for law in LAWS:
        loss_change = getattr(report, law)
        assert loss_change > 0.05 if law in wrong else loss_change < 1e-12, law
    assert report.worst == max(getattr(report, law) for law in LAWS)


@settings(max_examples=5)
@given(seed=SEEDS)
def test_verify_finds_that_a_symmetry_of_another_function_moves_the_loss(seed):
    """A true group action that is not a symmetry of this loss: only the laws with a loss in them break."""
    report = sx.verify(
        sx.tasks.rosenbrock().loss, jnp.zeros(2), sx.tasks.booth().symmetry(), jax.random.key(seed)
    )
    assert report.invariance > 0.1
    assert report.gradient > 0.1
    assert max(report.identity, report.composition, report.inverse) < 1e-12


def test_verify_tells_when_nothing_moved():
    report = sx.verify(task().loss, jnp.zeros(3), Motionless(task().map), jax.random.key(0))
    assert report.worst == 0.0
    assert report.moved == 0.0
    assert sx.verify(task().loss, jnp.zeros(3), task().symmetry(), jax.random.key(0)).moved > 0.0


def test_verify_reaches_every_leaf_and_hands_on_the_batch():
    """A dict of parameters with data: the loss and the action both need the batch."""

    class Scaled(sx.symmetry.Pullback):
        def act(self, a, params, batch=None):
            u = batch * jnp.concatenate([params["p"], params["q"]])
            u = super().act(a, u) / batch
            return {"p": u[:1], "q": u[1:]}

        def holds(self, params, batch=None):
            return super().holds(batch * jnp.concatenate([params["p"], params["q"]]))

    def loss(params, batch):
        return sx.tasks.booth().loss(batch * jnp.concatenate([params["p"], params["q"]]))

    params = {"p": jnp.zeros(1), "q": jnp.zeros(1)}
    report = sx.verify(loss, params, Scaled(sx.tasks.booth().map), jax.random.key(0), jnp.array([2.0, 0.5]))
    assert report.worst < 1e-11


def test_a_singular_map_does_not_hold_and_says_why():
    for matrix in ([[1.0, 2.0], [2.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]):
        singular = eqx.tree_at(lambda task: task.map.matrix, sx.tasks.booth(), jnp.array(matrix))
        symmetry = singular.symmetry()
        assert symmetry.holds(jnp.array([1.0, 2.3])).code == 1
        report = sx.verify(singular.loss, jnp.zeros(2), symmetry, jax.random.key(0))
        assert not report.worst <= 1.0
        assert report.reasons == ("the map is not invertible here: h^-1(h(x)) differs from x",)
        assert "does not hold: the map is not invertible" in str(report)


def test_a_map_holds_until_its_inverse_loses_half_the_digits():
    for small, code in ((1e-3, 0), (1e-13, 1)):
        h = sx.symmetry.Triangular(jnp.array(1.0), jnp.array(0.0), jnp.array([small]), jnp.array([1.0, 1.0]))
        found = sx.symmetry.Pullback(h).holds(jnp.array([0.3, 0.7]))
        assert found.code == code
        assert (found.residual > 1e-8) == code


def test_a_defect_that_is_not_a_number_is_the_worst():
    report = sx.verify(
        lambda w, _: jnp.sum(w) * jnp.nan, jnp.zeros(2), sx.tasks.booth().symmetry(), jax.random.key(0)
    )
    assert np.isnan(report.invariance)
    assert np.isnan(report.gradient)
    assert np.isnan(report.worst)


def test_a_report_prints_its_outcome_in_words_then_one_line_per_law_and_what_moved():
    report = sx.verify(task().loss, jnp.zeros(3), task().symmetry(), jax.random.key(0), trials=4)
    verdict, blank, header, *rows, moved = str(report).splitlines()
    assert verdict == "Exact: this is a symmetry of the loss, up to rounding (tolerance 1e-09)."
    assert (blank, header.split()[0]) == ("", "law")
    assert [row.split()[0] for row in rows] == list(LAWS)
    assert float(rows[0].split()[1]) == pytest.approx(report.invariance, rel=0.1)
    assert not any("above the tolerance" in row for row in rows)
    assert moved.startswith("moved")
    assert moved.endswith("at least, in 4 trials")
    assert [field.name for field in dataclasses.fields(report)][:5] == list(LAWS)


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({"invariance": 6e-6}, "Approximate: nearly a symmetry .* the loss changes by 6e-06 of its size\\."),
        ({"invariance": 0.31}, "Wrong: this is not a symmetry of the loss: the loss changes by 31 %\\."),
        ({"inverse": 0.5, "gradient": 2.0}, "Wrong: .*the inverse leaves .* 50 %; the gradient .* 200 %\\."),
        ({"invariance": np.nan}, "Wrong: .*the loss changes by an amount that is not a number\\."),
        ({"moved": 0.0}, "Untested: no random element moved the parameters"),
        ({"fresh": 0.02}, "Exact on the given batch only, .*: on fresh data the loss changes by 2 %\\."),
        ({"one_batch": True}, "Exact: .* on the batch that the action saw; pass fresh="),
    ],
)
def test_the_first_line_of_a_report_says_what_came_out(changed, verdict):
    fields = dict.fromkeys(LAWS, 1e-15) | {"moved": 0.5, "trials": 4, "reasons": (), "tolerance": 1e-9}
    report = sx.symmetry.Report(**{**fields, **changed})
    lines = str(report).splitlines()
    assert re.match(verdict, lines[0])
    failed = [line.split()[0] for line in lines if "above the tolerance" in line]
    assert failed == [name for name in changed if name not in ("moved", "one_batch")]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64", "complex64", "complex128"])
def test_what_counts_as_rounding_follows_the_coarsest_dtype(dtype):
    params = {"w1": jnp.ones((3, 2), dtype), "w2": jnp.ones((2, 3), dtype)}
    symmetry = sx.models.mlp_symmetry(params, ["w1", "w2"], group=sx.groups.GeneralLinear)

    def loss(w, _):
        return jnp.mean(jnp.abs((w["w2"] @ w["w1"]).astype(jnp.promote_types(dtype, "float32"))) ** 2)

    report = sx.verify(loss, params, symmetry, jax.random.key(0), trials=3)
    assert report.outcome == "exact"
    assert (report.tolerance == 1e-9) == (dtype in ("float64", "complex128"))
    coarse = sx.verify(
        lambda w, b: loss(w, b).astype("float32"), params, symmetry, jax.random.key(0), trials=1
    )
    assert coarse.tolerance >= 1e-3


def test_verify_rejects_no_trials_and_integer_parameters():
    with pytest.raises(ValueError, match="at least one trial, got trials=0"):
        sx.verify(
            sx.tasks.booth().loss, jnp.zeros(2), sx.tasks.booth().symmetry(), jax.random.key(0), trials=0
        )
    with pytest.raises(TypeError, match="it has none, only \\['int64'\\]"):
        sx.verify(sx.tasks.booth().loss, jnp.zeros(2, int), sx.tasks.booth().symmetry(), jax.random.key(0))
