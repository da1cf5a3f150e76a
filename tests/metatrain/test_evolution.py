"""Persistent evolution strategies against exact gradients; random horizons; distances to the optimum."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import symmetrax as sx

from ..cases import mostly_slow

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)


def descent(network, task):
    """A learned optimizer of two weights: a rate, and one that does nothing."""
    return optax.sgd(network["rate"])


NETWORK = {"rate": jnp.array(0.02), "idle": jnp.zeros(3)}
step = eqx.filter_jit(lambda it, network, carry: it.step(network, carry, KEY, None))
init = eqx.filter_jit(lambda it, network: it.init(network, KEY, None))


def gradients(it, network):
    """The meta-losses and meta-gradients of the windows of a run."""
    carry, found = init(it, network), []
    for _ in range(it.windows):
        loss, gradient, carry = step(it, network, carry)
        found.append((float(loss), gradient))
    return found


def pes(**options):
    family = sx.tasks.make_family("ellipse-fixed")
    return sx.metatrain.PES(
        family, descent, **{"steps": 6, "truncation": 1, "pairs": 4000, "sigma": 1e-3} | options
    )


def whole_run():
    """The exact derivative of the six windows' meta-losses in the rate, over many tasks."""
    it = sx.metatrain.TruncatedBPTT(
        sx.tasks.make_family("ellipse-fixed"), descent, steps=6, truncation=6, tasks=4000
    )
    ((loss, gradient),) = gradients(it, NETWORK)
    # Windows of one step weigh its loss by 1, one of 6 by 1/6.
    return 6 * loss, 6 * float(gradient["rate"])


def test_summed_over_windows_it_is_the_gradient_of_the_whole_run(float64):
    """And truncated strategies are not: they miss what a window does to the next."""
    network = jax.tree.map(lambda x: x.astype(jnp.float64), NETWORK)
    loss, exact = whole_run()
    found = {}
    for persistent in (True, False):
        windows = gradients(pes(persistent=persistent), network)
        found[persistent] = sum(float(g["rate"]) for _, g in windows)
        assert sum(value for value, _ in windows) == pytest.approx(loss, rel=0.1)
    assert found[True] == pytest.approx(exact, rel=0.1)
    assert abs(found[False] - exact) > 0.3 * abs(exact)
    last = gradients(pes(), network)[-1][1]["idle"]
    assert last.shape == (3,)
    assert np.all(np.isfinite(last))


def test_the_two_of_a_pair_meet_the_same_tasks_and_differ_by_twice_the_perturbation():
    it = pes(pairs=3, tasks=2)
    carry = init(it, NETWORK)
    assert eqx.tree_equal(*(jax.tree.map(lambda x, k=k: x[k], carry.rollouts.drawn) for k in range(2)))
    _, gradient, after = step(it, NETWORK, carry)
    assert not np.array_equal(after.rollouts.carry.params[0], after.rollouts.carry.params[1])
    assert after.sums["rate"].shape == (3,)
    gap = after.rollouts.carry.value[0].mean(-1), after.rollouts.carry.value[1].mean(-1)
    assert len(np.unique(np.asarray(after.sums["rate"]))) == 3
    assert np.all(np.isfinite(gap))
    assert np.isfinite(gradient["rate"])


def test_perturbations_add_up_over_windows_and_differ():
    it = pes(pairs=4)
    carry, sums = init(it, NETWORK), []
    for _ in range(3):
        _, _, carry = step(it, NETWORK, carry)
        sums.append(np.asarray(carry.sums["rate"]))
    steps = np.diff(np.stack([np.zeros(4), *sums]), axis=0)
    assert len(np.unique(steps)) == 12
    assert np.std(steps) == pytest.approx(1e-3, rel=0.6)


def test_a_pair_that_diverges_is_left_out():
    """At rates around 1e30 one of the two explodes; the rest still gives a finite estimate."""
    it = pes(sigma=1.0, pairs=64, steps=60, truncation=60)
    carry = init(it, NETWORK)
    loss, gradient, after = step(it, NETWORK, carry)
    assert not np.all(np.isfinite(after.rollouts.carry.value))
    assert np.isfinite(loss)
    assert np.isfinite(gradient["rate"])


@pytest.mark.slow
def test_it_trains_a_network():
    family = sx.tasks.make_family("ellipse-fixed")
    it = sx.metatrain.PES(family, sx.UpdateRule(), steps=20, truncation=5, tasks=8, pairs=16, sigma=0.02)
    trained = sx.meta_train(
        lambda key: sx.learned.FlatGradientLSTM(2, width=8, key=key),
        it,
        optax.adam(1e-2),
        KEY,
        outer_steps=60,
    )
    assert trained.losses[0, -10:].mean() < 0.5 * trained.losses[0, :10].mean()
    assert trained.skipped.tolist() == [0]


@pytest.mark.parametrize("options", [{"pairs": 0}, {"sigma": 0.0}, {"sigma": -1.0}])
def test_strategies_that_cannot_be_say_why(options, unchecked):
    with pytest.raises(ValueError, match="at least one pair and sigma > 0"):
        pes(**options)


def horizon(shortest=1, steps=20, tasks=2):
    usual = sx.metatrain.TruncatedBPTT(
        sx.tasks.make_family("ellipse-random"), descent, steps=steps, truncation=2, tasks=tasks
    )
    return sx.metatrain.RandomHorizon(usual, shortest=shortest)


def test_tasks_begin_anew_where_their_horizon_ends():
    it = horizon(shortest=2)
    ends, oldest = [], 0
    for seed in range(20):
        ages, fresh = [], []
        carry = it.init(NETWORK, jax.random.key(seed), None)
        for _ in range(it.windows):
            before = carry
            _, _, carry = eqx.filter_jit(it.step)(NETWORK, carry, jax.random.key(seed), None)
            ages.append(int(carry.carry.carry.count[0]) // 2)
            fresh.append(not eqx.tree_equal(before.carry.drawn, carry.carry.drawn))
        ends += [age for age, following in itertools.pairwise(ages) if following == 1]
        oldest = max(oldest, *ages)
        assert fresh == [False, *(age == 1 for age in ages[1:])]
    assert min(ends) >= 2
    assert oldest > 5


def test_a_horizon_as_long_as_the_run_changes_nothing_but_the_draw():
    it = horizon(shortest=10)
    network, carry = NETWORK, it.init(NETWORK, KEY, None)
    plain = it.estimator.init(NETWORK, jax.random.split(jax.random.fold_in(KEY, 0))[0], None)
    for _ in range(3):
        loss, gradient, carry = step(it, network, carry)
        other, right, plain = step(it.estimator, network, plain)
        assert float(loss) == float(other)
        assert eqx.tree_equal(gradient, right)


@pytest.mark.parametrize("shortest", [0, 11])
def test_a_horizon_outside_the_run_is_an_error(shortest):
    with pytest.raises(ValueError, match=f"must be from 1 to 10, .*got {shortest}"):
        horizon(shortest=shortest)


@pytest.mark.parametrize("tasks", mostly_slow([1, 3], ["3"]))
def test_the_distance_to_the_optimum_is_added_to_every_loss(float64, tasks):
    family = sx.tasks.make_family("rosenbrock-random")
    losses = {}
    network = jax.tree.map(lambda x: x.astype(jnp.float64), NETWORK)
    for distance in (None, 0.3):
        it = sx.metatrain.TruncatedBPTT(
            family, descent, steps=4, truncation=4, tasks=tasks, distance=distance
        )
        losses[distance] = float(step(it, network, init(it, network))[0])
    trace = sx.unroll_many(descent, network, family, KEY, 4, tasks, points=True)
    rollouts = it.init(network, KEY, None)
    optima = []
    for k in range(tasks):
        drawn = rollouts.drawn if tasks == 1 else jax.tree.map(lambda x, k=k: x[..., k], rollouts.drawn)
        optima.append(np.asarray(family.task(drawn).optimum()))
        assert float(family.task(drawn).loss(jnp.asarray(optima[-1]))) < 1e-20
    points = np.asarray(trace.params)[1:].reshape(4, 2, tasks)
    apart = np.sum((points - np.stack(optima, axis=-1)) ** 2, axis=1).mean()
    assert losses[0.3] - losses[None] == pytest.approx(0.3 * apart, rel=1e-9)


def test_a_task_that_does_not_know_its_optimum_says_so():
    it = sx.metatrain.TruncatedBPTT(
        sx.tasks.make_family("digits"), descent, steps=2, truncation=2, distance=0.1
    )
    with pytest.raises(ValueError, match=r"has no optimum\(\) .*use distance=None"):
        it.step(NETWORK, it.init(NETWORK, KEY, it.family.shapes[0]), KEY, it.family.shapes[0])
    np.testing.assert_allclose(sx.tasks.booth().optimum(), [1.0, 3.0], atol=1e-5)
