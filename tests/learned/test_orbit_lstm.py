"""The optimizer that looks along the orbit: derivatives there, no scale anywhere, and a gate that shuts."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import symmetrax as sx

# What the network sees of an orbit, before any weight.
from symmetrax.learned._transformation import look
from symmetrax.objectives._base import slopes

from ..cases import mostly_slow

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)
POINT = (1.5, -0.5)


def made(**options):
    return sx.learned.OrbitLSTM(2, **{"algebra": 1, "width": 8, "key": KEY} | options)


def seen(task, wants=("slopes", "best")):
    x = jnp.array(POINT)
    value, gradient = jax.value_and_grad(task.loss)(x)
    symmetry = task.symmetry()
    return look(
        wants, gradient, x, jnp.zeros(2), symmetry, value=value, value_fn=task.loss, batch=None, key=None
    )


def network_loss():
    params = {"w": jnp.array([[0.5, -1.0], [1.0, 2.0], [0.3, 0.7]]), "v": jnp.array([[1.0, -0.5, 0.8]])}
    x = jnp.array([[0.2, 0.9], [1.0, -0.3], [-0.4, 0.8], [0.6, 0.6]])
    specs = {"w": "h _", "v": "_ h*"}
    symmetry = sx.NetworkSymmetry({"h": sx.groups.PositiveDiagonal(3)}, specs, like=params)
    return lambda p: jnp.mean((jax.nn.relu(x @ p["w"].T) @ p["v"].T - 1) ** 2), params, symmetry


@pytest.mark.parametrize("name", mostly_slow(["booth", "rosenbrock", "network"], ("rosenbrock", "network")))
def test_slopes_along_an_orbit_equal_finite_differences(float64, name):
    """Of log ||grad f(exp(t xi) . w)||^2, whose gradient is taken anew at every point."""
    if name == "network":
        loss, params, symmetry = network_loss()
    else:
        task = getattr(sx.tasks, name)()
        loss, params, symmetry = task.loss, jnp.array(POINT), task.symmetry()
    orbit = sx.search.Orbit(loss, params, symmetry, gradient=jax.grad(loss)(params))
    found = jax.jit(lambda: slopes(orbit, orbit.zero()))()
    gradient_at = jax.jit(lambda xi: jax.grad(loss)(symmetry.act(symmetry.exp(xi), params)))

    def norm(xi):
        there = gradient_at(xi)
        return float(np.log(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(there))))

    h = 1e-4
    for j, e in enumerate(np.eye(symmetry.algebra[0])):
        low, here, high = (norm(jnp.asarray(t * e)) for t in (-h, 0.0, h))
        assert float(found.first[j]) == pytest.approx((high - low) / (2 * h), rel=1e-5, abs=1e-7)
        assert float(found.second[j]) == pytest.approx((high - 2 * here + low) / h**2, rel=1e-4, abs=1e-5)


def test_at_a_zero_gradient_all_that_is_seen_and_done_is_finite():
    task = sx.tasks.booth()
    optimum = task.optimum()
    network = made()
    optimizer = network.transform(task.symmetry())

    def end(network, x):
        transform = network.transform(task.symmetry())
        updates, _ = transform.update(
            jax.grad(task.loss)(x), transform.init(x), x, value=task.loss(x), value_fn=task.loss
        )
        return task.loss(x + updates)

    update = jax.jit(lambda g, s, x: optimizer.update(g, s, x, value=jnp.array(0.0), value_fn=task.loss))
    updates, state = update(jnp.zeros(2), optimizer.init(optimum), optimum)
    assert np.all(np.isfinite(updates))
    assert np.isfinite(state.memory.first_loss)
    slopes_at = eqx.filter_jit(eqx.filter_grad(end))
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(slopes_at(network, optimum)))


@pytest.mark.parametrize("apart", [1e-7, 1e-11, 1e-18])
def test_slopes_stay_those_of_the_orbit_where_gradients_are_tiny(apart):
    """Close to a minimum the square of the squared gradient norm is no number of float32 any more."""
    task = sx.tasks.generalized_booth([[0.5, 0.0], [0.0, 3.0]])

    @jax.jit
    def found(length):
        x = length * jnp.array([0.6, 0.8])
        orbit = sx.search.Orbit(task.loss, x, task.symmetry(), gradient=jax.grad(task.loss)(x))
        return slopes(orbit, orbit.zero())

    for near, far in zip(found(apart), found(1.0), strict=True):
        np.testing.assert_allclose(near, far, rtol=1e-4)


def test_the_peak_is_the_best_angle_of_a_quadratic(float64):
    for seed in range(20):
        entries = np.random.default_rng(seed).normal(size=(4, 2))
        task = sx.tasks.generalized_booth(entries[:2], entries[2])
        x, symmetry = jnp.asarray(entries[3]), task.symmetry()
        orbit = sx.search.Orbit(task.loss, x, symmetry, gradient=jax.grad(task.loss)(x))
        there = symmetry.act(symmetry.exp(slopes(orbit, orbit.zero()).peak), x)
        steepest = 2 * np.linalg.norm(entries[:2], 2) * np.sqrt(task.loss(x))
        assert np.linalg.norm(jax.grad(task.loss)(there)) == pytest.approx(steepest, rel=1e-9)


def test_a_network_that_emits_nothing_goes_to_the_peak_if_that_is_its_centre():
    task = sx.tasks.booth(start=[5.0, -5.0])
    network = made(centre="peak", gated=False, max_norm=1.0)
    head = jax.tree.map(jnp.zeros_like, network.algebra_head)
    network = eqx.tree_at(lambda n: n.algebra_head, network, head)
    rule = sx.UpdateRule.at([0], 1, guard=None, order="teleport-first")
    trace = sx.unroll(rule(network, task), task, KEY, 1, watch=("algebra",))
    orbit = sx.search.Orbit(task.loss, jnp.array([5.0, -5.0]), task.symmetry())
    np.testing.assert_allclose(trace.watched["algebra"][-1], slopes(orbit, orbit.zero()).peak, rtol=1e-5)
    assert abs(float(trace.watched["algebra"][-1, 0])) <= network.algebra_bound


@pytest.mark.parametrize("teleports", mostly_slow([True, False], ["True"]))
def test_nothing_depends_on_the_units_of_loss_and_parameters(float64, teleports):
    """f(x) = c^2 ||h(s x)||^2 is optimized as ||h(x)||^2 is, in other numbers."""
    c, s = 3e3, 1e-2
    matrix, offset = jnp.array([[1.0, 0.4], [-0.3, 2.0]]), jnp.array([0.5, -1.0])
    plain = sx.tasks.generalized_booth(matrix, offset, start=[2.0, 1.0])
    other = sx.tasks.generalized_booth(c * s * matrix, c * offset, start=[2.0 / s, 1.0 / s])
    network = made(algebra=1 if teleports else 0, orbit=1)
    rule = sx.UpdateRule.at(range(6), 6, guard=None) if teleports else sx.UpdateRule()
    runs = [sx.unroll(rule(network, task), task, KEY, 6, points=True) for task in (plain, other)]
    np.testing.assert_allclose(runs[1].loss / c**2, runs[0].loss, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(runs[1].params * s, runs[0].params, rtol=1e-9, atol=1e-12)


def test_without_teleports_it_is_the_same_optimizer():
    """Same features, same steps: the head for the group element is all that a teleporting network adds."""
    vanilla, teleporting = made(algebra=0, orbit=1), made()
    assert eqx.tree_equal(vanilla.core, teleporting.core)
    assert eqx.tree_equal(vanilla.head, teleporting.head)
    task = sx.tasks.booth(start=[5.0, -5.0])
    runs = [
        sx.unroll(rule(network, task), task, KEY, 5).loss
        for network, rule in ((vanilla, sx.UpdateRule()), (teleporting, sx.UpdateRule.at([], 5)))
    ]
    assert np.array_equal(*runs)


def test_its_step_is_the_learned_share_of_polyaks():
    task, network = sx.tasks.booth(start=[5.0, -5.0]), made(rates=(1.0, 1.0 + 1e-7))
    network = eqx.tree_at(lambda n: n.head, network, jax.tree.map(jnp.zeros_like, network.head))
    info = seen(task)
    move = eqx.filter_jit(lambda i: network.propose(i, network.memory(i.params))[0].update(i.gradient))
    step = move(info)
    polyak = -info.value / jnp.sum(info.gradient**2) * info.gradient
    np.testing.assert_allclose(step, polyak, rtol=1e-5)


def gate_at(z):
    network = made()
    head = network.algebra_head
    head = eqx.tree_at(lambda h: h.bias, jax.tree.map(jnp.zeros_like, head), jnp.array([0.5, z]))
    return eqx.tree_at(lambda n: n.algebra_head, network, head)


@pytest.mark.parametrize(("z", "hard"), [(1.0, 0.5), (-1.0, 0.0)])
def test_a_gate_is_smooth_in_training_and_hard_at_test(z, hard):
    task = sx.tasks.booth(start=[5.0, -5.0])
    algebra = {}
    for gate in ("soft", "hard"):
        rule = sx.UpdateRule.at([0], 1, guard=None, gate=gate)
        trace = sx.unroll(rule(gate_at(z), task), task, KEY, 1, watch=("algebra", "gate"))
        algebra[gate] = float(trace.watched["algebra"][-1, 0])
        p = float(trace.watched["gate"][-1])
    assert p == pytest.approx(1 / (1 + np.exp(-z)), rel=1e-5)
    assert algebra["soft"] == pytest.approx(0.5 * p, rel=1e-5)
    assert algebra["hard"] == pytest.approx(hard)


def test_a_soft_gate_has_a_derivative_and_a_hard_one_none():
    task = sx.tasks.booth(start=[5.0, -5.0])

    def end(z, rule):
        return sx.unroll(rule(gate_at(z), task), task, KEY, 2).loss[-1]

    slope = eqx.filter_jit(jax.grad(end))
    soft, hard = (sx.UpdateRule.at([0], 2, guard=None, gate=gate) for gate in ("soft", "hard"))
    assert slope(jnp.array(-0.2), soft) != 0
    assert slope(jnp.array(-0.2), hard) == 0


def test_bad_uses_say_what_is_missing(unchecked):
    with pytest.raises(ValueError, match=r"any of slopes, best, got \['curvature'\]"):
        made(sees=("curvature",))
    with pytest.raises(ValueError, match=r"with `sees` the number of algebra coordinates"):
        made(algebra=0)
    for options in (
        {"centre": "summit"},
        {"centre": "peak", "sees": ("best",)},
        {"centre": "peak", "orbit": 3},
    ):
        with pytest.raises(ValueError, match=r'"peak" where the network sees "slopes" along each'):
            made(**options)
    with pytest.raises(ValueError, match="0 < low < high"):
        made(rates=(1.0, 0.5))
    with pytest.raises(ValueError, match="built for 2 parameters, got 3"):
        made().memory(jnp.zeros(3))
    x, symmetry = jnp.ones(2), sx.tasks.booth().symmetry()
    optimizer = made().transform(symmetry)
    with pytest.raises(ValueError, match="value_fn"):
        optimizer.update(x, optimizer.init(x), x)
    with pytest.raises(ValueError, match=r"pass value=\.\.\., the loss at params"):
        optimizer.update(x, optimizer.init(x), x, value_fn=sx.tasks.booth().loss)
    with pytest.raises(ValueError, match=r"reads slopes.*needs a symmetry"):
        made().transform().update(x, made().transform().init(x), x, value=jnp.array(1.0))
    with pytest.raises(ValueError, match="`gate` must be one of soft, hard, got 'open'"):
        sx.UpdateRule(gate="open")
    params = {"w": jnp.ones((2, 1)), "v": jnp.ones((1, 2))}
    swaps = sx.NetworkSymmetry({"h": sx.groups.Permutation(2)}, {"w": "h _", "v": "_ h*"}, like=params)
    four = sx.learned.OrbitLSTM(4, orbit=1, width=4, key=KEY).transform(swaps)
    with pytest.raises(ValueError, match="has no algebra to take derivatives in: its groups are discrete"):
        four.update(params, four.init(params), params, value=jnp.array(1.0), value_fn=lambda p: 1.0)


def test_the_best_coordinates_are_those_of_the_oracle():
    task = sx.tasks.booth()
    info = seen(task, ("best",))
    there = task.symmetry().act(task.symmetry().exp(info.best), info.params)
    steepest = 4 * np.linalg.eigvalsh(np.asarray(task.map.matrix) @ np.asarray(task.map.matrix).T)[-1]
    assert float(jnp.sum(jax.grad(task.loss)(there) ** 2)) == pytest.approx(
        steepest * float(info.value), rel=1e-4
    )
    assert info.slopes is None


@pytest.mark.slow
def test_it_learns_to_optimize_with_and_without_teleports():
    family = sx.tasks.make_family("ellipse-random")
    guard = sx.Guard(jump=jnp.inf, relative=1.0, shorten=True)
    medians = {}
    for algebra in (0, 1):
        rule = sx.UpdateRule(
            jnp.ones(10, bool) if algebra else None, sx.Guard(jump=jnp.inf, relative=1.0, shorten=True)
        )
        estimator = sx.metatrain.TruncatedBPTT(family, rule, steps=10, truncation=10, tasks=64)
        outer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
        trained = sx.meta_train(
            lambda key, algebra=algebra: made(algebra=algebra, orbit=1, width=16, key=key),
            estimator,
            outer,
            KEY,
            outer_steps=120,
        )
        assert trained.losses[0, -20:].mean() < 0.5 * trained.losses[0, :20].mean()
        hard = sx.UpdateRule(rule.schedule, guard, gate="hard")
        trace = sx.unroll_many(hard, trained.network(), family, jax.random.key(5), 10, 500)
        assert np.all(np.isfinite(trace.loss))
        medians[algebra] = float(jnp.median(trace.loss[-1]))
    assert medians[1] < 0.5 * medians[0]
