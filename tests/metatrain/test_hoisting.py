"""What makes meta-training fast changes no number: deferred weight gradients, derivatives by hand."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg
from jax.flatten_util import ravel_pytree

import symmetrax as sx

# Deferred products change no result: only the private functions show that there are any.
from symmetrax.groups._exponentials import exponential_pair
from symmetrax.groups._inverse import inverse
from symmetrax.learned import _products
from symmetrax.learned._networks import _gated
from symmetrax.learned._products import Deferred, collect, defer, deferrable, empty_slots, product
from symmetrax.rollout._unroll import begin
from symmetrax.rollout._unroll import step as one_step

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)
UNROLL = 3


@pytest.fixture
def everything(monkeypatch):
    """Defers every matrix, however small, for any number of tasks."""
    monkeypatch.setattr(_products, "LEAST_ENTRIES", 0)
    monkeypatch.setattr(_products, "MOST_TASKS", 1000)


@pytest.fixture
def nothing(monkeypatch):
    """Defers no matrix."""
    monkeypatch.setattr(_products, "MOST_TASKS", 0)


def estimator(tasks, meta_order=1, remat=False):
    rule = sx.UpdateRule(schedule=jnp.ones(UNROLL, bool), guard=None, meta_order=meta_order)
    family = sx.tasks.make_family("ellipse-random")
    return sx.metatrain.TruncatedBPTT(family, rule, steps=UNROLL, truncation=UNROLL, tasks=tasks, remat=remat)


def network(key=KEY):
    """Two joined networks, one of them with two heads."""
    rate = sx.learned.FlatGradientLSTM(2, emits=("step_size",), rates=(1e-2, 1e-1), width=3, depth=1, key=key)
    turn = sx.learned.FlatGradientLSTM(
        2, emits=("momentum",), algebra=1, max_norm=0.5, width=3, key=jax.random.fold_in(key, 1)
    )
    return sx.learned.Joint((rate, turn))


def found(it, network):
    """Meta-loss and meta-gradient, the latter as a vector, of a first window."""
    carry = it.init(network, KEY, None)
    loss, gradient, _ = it.step(network, carry, KEY, None)
    return loss, ravel_pytree(gradient)[0]


CASES = [(1, 1, False), (3, 2, False), (3, 1, True)]


@pytest.fixture(scope="module")
def plain():
    """`found` without deferring, for each of CASES."""
    with pytest.MonkeyPatch.context() as patch, jax.enable_x64(True):
        patch.setattr(_products, "MOST_TASKS", 0)
        return {case: eqx.filter_jit(found)(estimator(*case), network()) for case in CASES}


@pytest.mark.parametrize("case", CASES)
def test_deferred_gradients_equal_plain_ones(float64, everything, plain, case):
    """To 1e-12: with and without tasks, in both meta-orders, with recomputation."""
    assert len(deferrable(network(), (1000,))) == 2 + 1 + 4 + 2
    loss, gradient = eqx.filter_jit(found)(estimator(*case), network())
    np.testing.assert_allclose(loss, plain[case][0], rtol=1e-12)
    scale = float(jnp.max(jnp.abs(plain[case][1])))
    assert scale > 0
    np.testing.assert_allclose(gradient, plain[case][1], rtol=1e-12, atol=1e-13 * scale)


def test_deferring_works_under_vmap_over_seeds(float64, everything, plain):
    networks = eqx.filter_vmap(network)(jax.random.split(KEY, 2))
    networks = jax.tree.map(lambda stacked, own: stacked.at[1].set(own), networks, network())
    _, gradients = eqx.filter_jit(eqx.filter_vmap(found, in_axes=(None, 0)))(estimator(*CASES[0]), networks)
    expected = plain[CASES[0]][1]
    np.testing.assert_allclose(gradients[1], expected, rtol=1e-12, atol=1e-13 * np.max(np.abs(expected)))
    assert np.linalg.norm(gradients[0] - gradients[1]) > 1e-3 * np.linalg.norm(expected)


def regression(width, limit, monkeypatch):
    """`found` for a network over the 100 weights of a regression, in single precision."""
    monkeypatch.setattr(_products, "MOST_TASKS", limit)
    family = sx.tasks.RegressionFamily("small", dims=(5, 10, 5), samples=4, start="gaussian")
    it = sx.metatrain.TruncatedBPTT(family, sx.UpdateRule(), steps=UNROLL, truncation=UNROLL, tasks=2)
    optimizer = sx.learned.FlatGradientLSTM(100, width=width, depth=1, key=KEY)
    return optimizer, eqx.filter_jit(found)(it, optimizer)


def test_large_matrices_are_deferred_in_single_precision_too(monkeypatch):
    """To 1e-6, with the sizes as they are in use: 320 x 100 and 320 x 80 are deferred, 100 x 80 is not."""
    optimizer, (loss, gradient) = regression(80, 32, monkeypatch)
    assert deferrable(optimizer, (2,)) == [0, 1]
    assert deferrable(optimizer, ()) == [0, 1]
    assert deferrable(optimizer, (33,)) == []
    _, (expected_loss, expected) = regression(80, 0, monkeypatch)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6 * float(jnp.max(jnp.abs(expected))))


def test_a_pytree_that_says_nothing_of_its_products_defers_nothing(everything):
    assert deferrable({"w": jnp.ones((500, 500))}, ()) == []
    assert deferrable(sx.learned.CoordinatewiseLSTM(key=KEY), ()) == []
    shared = sx.learned.LayerPairLSTM((3, 3, 3, 3), shared=True, width=3, key=KEY)
    assert deferrable(shared, ()) == []
    assert len(deferrable(sx.learned.LayerPairLSTM((3, 3, 3, 3), width=3, key=KEY), ())) == 2 * (4 + 1)


def test_a_slot_receives_the_two_factors_of_the_weight_gradient(float64):
    """Against NumPy: W' g for x, nothing for W, g and x for the slot; and the sum over steps and tasks."""
    rng = np.random.default_rng(0)
    w, x, g = rng.normal(size=(4, 3)), rng.normal(size=(3, 5)), rng.normal(size=(4, 5))
    slot = (jnp.zeros((4, 5)), jnp.zeros((3, 5)))
    value, back = jax.vjp(lambda w, x, slot: product(Deferred(w, slot), x), *map(jnp.asarray, (w, x)), slot)
    np.testing.assert_allclose(value, w @ x, rtol=1e-14)
    by_w, by_x, (out, into) = back(jnp.asarray(g))
    assert not np.any(by_w)
    np.testing.assert_allclose(by_x, w.T @ g, rtol=1e-14)
    np.testing.assert_array_equal(out, g)
    np.testing.assert_array_equal(into, x)

    core = sx.learned.FlatGradientLSTM(2, width=2, depth=1, key=KEY)
    places = [1]
    shapes = jax.tree.map(jnp.shape, empty_slots(core, places, 6, (7,)), is_leaf=eqx.is_array)
    assert shapes == [((6, 8, 7), (6, 2, 7))]
    gs, xs = rng.normal(size=(6, 8, 7)), rng.normal(size=(6, 2, 7))
    filled = collect(core, places, [(jnp.asarray(gs), jnp.asarray(xs))])
    np.testing.assert_allclose(
        filled.core.cells[0].weight_hh, np.einsum("tob,tib->oi", gs, xs), rtol=1e-12, atol=1e-12
    )
    assert filled.core.cells[0].weight_ih is core.core.cells[0].weight_ih
    deferred = defer(core, places, [(jnp.zeros(8), jnp.zeros(2))])
    assert isinstance(deferred.core.cells[0].weight_hh, Deferred)


def test_the_cell_s_derivative_equals_central_differences(float64, central_differences):
    """Written out by hand in `_gated`; forward and backward."""
    point = np.random.default_rng(0).normal(size=10)

    def both(z):
        return jnp.concatenate(_gated(z[:8], z[8:]))

    expected = central_differences(jax.jit(both), point)
    np.testing.assert_allclose(jax.jacfwd(both)(point), expected, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(jax.jacrev(both)(point), expected, rtol=1e-7, atol=1e-9)


def test_the_inverse_has_its_derivative_in_closed_form(float64):
    """Against (A + h E)^-1 - (A - h E)^-1 by NumPy."""
    rng = np.random.default_rng(1)
    a, e, step = rng.normal(size=(5, 5)), rng.normal(size=(5, 5)), 1e-6
    expected = (np.linalg.inv(a + step * e) - np.linalg.inv(a - step * e)) / (2 * step)
    value, tangent = jax.jvp(inverse, (jnp.asarray(a),), (jnp.asarray(e),))
    np.testing.assert_allclose(value, np.linalg.inv(a), rtol=1e-10)
    np.testing.assert_allclose(tangent, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("norm", [0.01, 0.3, 3.0, 20.0])
def test_both_exponentials_equal_scipy_s(float64, norm):
    """exp(x) and exp(-x), and their differences from the identity, to rounding at every promised norm."""
    x = np.random.default_rng(2).normal(size=(6, 6))
    x *= norm / np.linalg.norm(x)
    for dtype, tolerance in ((np.float64, 1e-14), (np.float32, 2e-6)):
        rounded = x.astype(dtype).astype(float)
        for value, sign in zip(exponential_pair(jnp.asarray(x, dtype), norm), (1, -1), strict=True):
            expected = scipy.linalg.expm(sign * rounded)
            assert value.dtype == dtype
            np.testing.assert_allclose(value, expected, rtol=0, atol=tolerance * np.max(np.abs(expected)))


@pytest.mark.parametrize(("norm", "products"), [(0.01, 2), (20.0, 14)])
def test_a_small_reach_saves_products(norm, products):
    made = str(jax.make_jaxpr(lambda x: exponential_pair(x, norm))(jnp.ones((3, 3))))
    assert made.count("dot_general") == products


def test_a_bounded_head_makes_the_element_cheaper_and_no_different(float64):
    """`exp_within` is taken where a network promises a bound, and equals `exp`."""
    symmetry = sx.tasks.MLP((4, 5, 3), slope=0.1, bias=False).invertible_symmetry("output")
    xi = jax.random.normal(KEY, symmetry.algebra)
    xi = 0.01 * xi / jnp.linalg.norm(xi)
    for found, expected in zip(
        jax.tree.leaves(symmetry.exp_within(xi, 0.01)), jax.tree.leaves(symmetry.exp(xi)), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15)
    assert network().algebra_bound == 0.5
    assert sx.learned.FlatGradientLSTM(2, max_norm=1.0, emits=("update",), key=KEY).algebra_bound is None
    assert sx.learned.FlatGradientLSTM(2, algebra=1, key=KEY).algebra_bound is None


class Counting(sx.tasks.AbstractTask):
    """A task whose loss and batch tell which batch was used; with `varied` every key gives another."""

    level: jax.Array
    varied: bool = eqx.field(static=True)

    def init(self, key):
        return jnp.zeros(())

    def batch(self, key):
        return jax.random.uniform(key) if self.varied else self.level

    def loss(self, params, batch=None):
        return (params - (self.level if batch is None else batch)) ** 2

    def symmetry(self):
        return None


@pytest.mark.parametrize("varied", [True, False])
def test_a_step_works_on_the_batch_it_was_given(varied):
    """Where all batches are one array, a step takes that; else the one whose gradient it is handed."""
    seen = []

    def update(updates, state, params=None, *, batch, value_fn, **extra):
        seen.append((batch, value_fn(jnp.zeros(()))))
        return updates, state

    task = Counting(jnp.array(3.0), varied)
    transform = optax.GradientTransformationExtraArgs(lambda params: (), update)
    carry = begin(transform, task, KEY)
    one_step(transform, task, carry)
    (batch, value), current = seen[0], carry.batch
    assert batch is (current if varied else task.level)
    assert float(value) == pytest.approx(float(current) ** 2, rel=1e-6)
    assert float(carry.gradient) == pytest.approx(-2 * float(current), rel=1e-6)
