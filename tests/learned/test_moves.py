"""What a network emits and what becomes of it: algorithm 3 of arXiv:2504.15399, its parts and its options."""

import dataclasses
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import symmetrax as sx
from symmetrax.learned._heads import between, of_norm, within

# A network with constants for outputs, and the functions that bound outputs.
from symmetrax.studies.core._control_networks import Fixed

from ..cases import mostly_slow

STEPS = 6
OPEN = sx.Guard(jump=jnp.inf, tolerance=jnp.inf)
RATES = (1e-4, 1e-2)


@pytest.fixture(autouse=True, scope="module")
def _quickly(quick_compilation):
    pass


def small_family(**options):
    return dataclasses.replace(
        sx.tasks.RegressionFamily("small", dims=(4, 4, 4), samples=4, start="gaussian", data="gaussian"),
        **options,
    )


def algorithm_3(key, *, momentum=True, max_norm: float | None = 0.3):
    first, second = jax.random.split(key)
    emits = ("momentum",) if momentum else ()
    return sx.learned.Joint(
        (
            sx.learned.FlatGradientLSTM(32, emits=("step_size",), rates=RATES, width=8, key=first),
            sx.learned.FlatGradientLSTM(32, emits=emits, algebra=16, max_norm=max_norm, width=8, key=second),
        )
    )


def run(network, family, rule, watch=("step_size", "momentum", "algebra", "outcome", "previous")):
    return sx.unroll_many(rule, network, family, jax.random.key(3), STEPS, tasks=3, watch=watch, points=True)


@pytest.fixture(scope="module")
def network():
    return algorithm_3(jax.random.key(0))


@pytest.fixture(scope="module")
def family():
    return small_family(action="preimage")


def rule(times=(1, 3), **options):
    return sx.UpdateRule.at(times, STEPS, guard=OPEN, **options)


def by_hand(network, task, params, times, transport="keep", as_printed=False):
    """Algorithm 3, written out step by step, with the group element's matrices from scipy."""
    import scipy.linalg

    x, memory, v = params, network.memory(params), jax.tree.map(jnp.zeros_like, params)
    symmetry, losses = task.symmetry(), []
    for t in range(STEPS):
        d = jax.grad(task.loss)(x)
        move, memory = network.propose(sx.learned.Observation(d, x, v, None, None), memory)
        v = jax.tree.map(lambda v, d, m=move: m.momentum * v - m.step_size * d, v, d)
        step = v
        if as_printed and t in times:
            step = jax.tree.map(lambda v, d, m=move: m.momentum * v - m.step_size * d, v, d)
        x = jax.tree.map(jnp.add, x, step)
        if as_printed or t in times:
            g = jnp.asarray(scipy.linalg.expm(np.asarray(move.algebra, float).reshape(4, 4)))
            element = ((g, jnp.linalg.inv(g).T),)
            if transport == "carry":
                v = jax.jvp(lambda w, e=element: symmetry.act(e, w, (task.inputs, task.targets)), (x,), (v,))[
                    1
                ]
            x = symmetry.act(element, x, (task.inputs, task.targets))
            if transport == "reset":
                v = jax.tree.map(jnp.zeros_like, v)
        losses.append(task.loss(x))
    return np.array(losses)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"transport": "carry"},
        pytest.param({"transport": "reset"}, marks=pytest.mark.slow),
        pytest.param({"as_printed": True}, marks=pytest.mark.slow),
    ],
)
def test_algorithm_3_is_what_it_says(float64, options):
    family, network = small_family(action="preimage"), algorithm_3(jax.random.key(0))
    network = jax.tree.map(lambda w: w.astype(float), network)
    drawn = family.draw(jax.random.key(1))
    task = family.task(drawn)
    trace = sx.unroll(rule(**options)(network, task), task, jax.random.key(2), STEPS)
    start = task.init(jax.random.split(jax.random.key(2), 3)[0])
    wanted = by_hand(network, task, start, (1, 3), **options)
    np.testing.assert_allclose(trace.loss[1:], wanted, rtol=1e-9)


@pytest.mark.slow
def test_the_options_differ_from_one_another(network, family):
    options = [{}, {"transport": "carry"}, {"transport": "reset"}, {"as_printed": True}]
    finals = [np.asarray(run(network, family, rule(**o)).loss[-1]) for o in options]
    for i in range(4):
        for j in range(i):
            assert np.all(np.abs(finals[i] / finals[j] - 1) > 1e-5)


@pytest.mark.slow
def test_no_momentum_is_the_arm_without_momentum(network, family):
    without = algorithm_3(jax.random.key(0), momentum=False)
    ours, theirs = (run(net, family, rule()) for net in (Fixed(network, momentum=0.0), without))
    np.testing.assert_array_equal(ours.loss, theirs.loss)
    assert float(jnp.max(jnp.abs(run(network, family, rule()).loss - theirs.loss))) > 1e-3


@pytest.mark.slow
def test_the_identity_is_the_arm_without_teleports(network, family):
    idle = run(Fixed(network, algebra=0.0), family, rule())
    never = run(network, family, sx.UpdateRule(schedule=()))
    off = run(network, family, rule(times=()))
    np.testing.assert_array_equal(idle.loss, never.loss)
    np.testing.assert_array_equal(off.loss, never.loss)


def test_a_reset_without_teleport_is_a_control(network, family):
    idle = Fixed(network, algebra=0.0)
    trace = run(idle, family, rule(transport="reset"))
    velocity = np.asarray(trace.watched["previous"]["w1"])
    assert np.all(velocity[2] == 0)
    assert np.all(velocity[4] == 0)
    assert np.all(np.any(velocity[[1, 3, 5]] != 0, axis=(1, 2)))


def test_the_trace_tells_what_was_emitted(network, family):
    watched = run(network, family, rule()).watched
    assert np.all((watched["step_size"][1:] > RATES[0]) & (watched["step_size"][1:] < RATES[1]))
    assert np.all((watched["momentum"][1:] > 0) & (watched["momentum"][1:] < 1))
    assert np.all(watched["step_size"][0] == -1)
    norms = np.linalg.norm(watched["algebra"], axis=1)
    assert np.all((norms > 0).any(axis=1) == [False, False, True, False, True, False, False])
    assert np.all(norms < 0.3)


def test_teleports_keep_the_loss_or_are_rejected(network, family):
    guarded = sx.UpdateRule.at(range(STEPS), STEPS, guard=sx.Guard(jump=jnp.inf, tolerance=1e-4))
    trace = run(network, family, guarded, watch=("loss_change", "outcome"))
    loss_change, outcome = (np.asarray(trace.watched[name][1:]) for name in ("loss_change", "outcome"))
    assert np.all((loss_change <= 1e-4) | (outcome == 3))
    assert np.mean(outcome == 0) > 0.9


def test_each_network_has_its_own_outer_rate(network):
    gradients = jax.tree.map(jnp.ones_like, network)
    outer = sx.learned.each_network(optax.sgd(1e-4), optax.sgd(1e-3))
    updates, _ = outer.update(gradients, outer.init(network), network)
    first, second = (jax.tree.leaves(part) for part in cast(Any, updates).networks)
    assert all(np.allclose(leaf, -1e-4) for leaf in first)
    assert all(np.allclose(leaf, -1e-3) for leaf in second)


@pytest.mark.slow
def test_two_networks_train(family, network):
    estimator = sx.metatrain.TruncatedBPTT(family, rule(), STEPS, 3, tasks=2)
    outer = sx.learned.each_network(optax.adam(1e-4), optax.adam(1e-3))
    trained = sx.meta_train(algorithm_3, estimator, outer, jax.random.key(0), outer_steps=1)
    assert trained.skipped.tolist() == [0]
    assert np.all(np.isfinite(trained.losses))
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), 0)
    moved = jax.tree.map(lambda a, b: np.max(np.abs(a[0] - b)), trained.networks, algorithm_3(key))
    rates = [max(jax.tree.leaves(part)) for part in moved.networks]
    # Two windows of Adam, each of whose steps is at most its rate.
    assert 0 < rates[0] <= 2.01e-4
    assert 2.01e-4 < rates[1] <= 2.01e-3


class Deficient(sx.tasks.RegressionFamily):
    """One sample is a copy of another in about half of the tasks, or in all."""

    always: bool = eqx.field(static=True, default=True)

    def draw(self, key):
        inputs, targets = super().draw(key)
        lost = True if self.always else jax.random.bernoulli(key)
        return inputs.at[1].set(jnp.where(lost, inputs[0], inputs[1])), targets


@pytest.mark.parametrize("transport", mostly_slow(["keep", "carry"], ["carry"]))
def test_lost_rank_is_rejected_and_training_goes_on(network, transport):
    family = Deficient("deficient", dims=(4, 4, 4), samples=4, action="preimage", always=False)
    strict = sx.Guard(jump=jnp.inf, tolerance=1e-3)
    guarded = sx.UpdateRule.at(range(STEPS), STEPS, guard=strict, transport=transport)
    if transport == "keep":
        lost = dataclasses.replace(family, always=True)
        outcome = np.asarray(run(network, lost, guarded).watched["outcome"])
        assert np.all(outcome[1:] > 0)
    check_that_training_goes_on(algorithm_3, family, guarded)


@pytest.mark.slow
def test_overflowing_elements_are_rejected_and_training_goes_on(family):
    def make(key):
        network = algorithm_3(key, max_norm=None)
        bias = cast(Any, network.networks[1]).algebra_head.bias
        return eqx.tree_at(lambda n: n.networks[1].algebra_head.bias, network, 200 * jnp.sign(bias))

    guarded = sx.UpdateRule.at(range(STEPS), STEPS, guard=sx.Guard(jump=jnp.inf, tolerance=1e-3))
    check_that_training_goes_on(make, family, guarded)


def check_that_training_goes_on(make, family, rule):
    """Rejected teleports leave finite meta-gradients: no window is lost, and the weights move."""
    estimator = sx.metatrain.TruncatedBPTT(family, rule, 2, 2, tasks=4)
    key = jax.random.key(0)
    trained = sx.meta_train(make, estimator, optax.adam(1e-3), key, outer_steps=2)
    assert trained.skipped.tolist() == [0]
    fresh = make(jax.random.fold_in(jax.random.fold_in(key, 0), 0))
    moved = jax.tree.map(lambda a, b: np.max(np.abs(a[0] - b)), trained.networks, fresh)
    assert min(jax.tree.leaves(moved.networks[0])) > 0


@pytest.mark.slow
def test_batches_wider_than_the_layer_are_rejected_and_training_goes_on(network):
    family = small_family(samples=9, action="output")
    guarded = sx.UpdateRule.at(range(STEPS), STEPS, guard=sx.Guard(jump=jnp.inf, tolerance=1e-3))
    trace = run(network, family, guarded)
    outcome = np.asarray(trace.watched["outcome"][1:])
    assert np.mean(outcome == 3) > 0.5
    check_that_training_goes_on(algorithm_3, family, guarded)


@pytest.mark.parametrize("shared", mostly_slow([False, True], ["False"]))
def test_pairs_of_matrices_have_elements_of_their_own(shared):
    family = small_family(dims=(4, 4, 4, 4), action="output")
    key = jax.random.key(0)
    network = sx.learned.LayerPairLSTM(
        (4,) * 4, shared=shared, emits=("step_size",), max_norm=0.01, fixed=True, width=6, key=key
    )
    assert len(network.cores) == (1 if shared else 2)
    trace = run(network, family, rule(), watch=("algebra", "step_size"))
    elements = np.moveaxis(np.asarray(trace.watched["algebra"]), 1, -1).reshape(STEPS + 1, 3, 2, 16)
    np.testing.assert_allclose(np.linalg.norm(elements[2], axis=-1), 0.01, rtol=1e-5)
    assert np.all(np.linalg.norm(elements[2, :, 0] - elements[2, :, 1], axis=-1) > 1e-5)


def test_pairs_scale_networks_of_unequal_widths():
    family = sx.tasks.RegressionFamily("uneven", dims=(3, 5, 4, 2), samples=6)
    network = sx.learned.LayerPairLSTM(
        (3, 5, 4, 2), group="scaling", emits=("step_size",), max_norm=0.5, width=6, key=jax.random.key(0)
    )
    guarded = sx.UpdateRule.at([0, 2], STEPS, guard=sx.Guard(jump=jnp.inf))
    trace = run(network, family, guarded, watch=("algebra", "outcome", "loss_change"))
    assert np.asarray(trace.watched["algebra"]).shape == (STEPS + 1, 9, 3)
    assert np.all(np.asarray(trace.watched["outcome"]) == 0)


def everything(key):
    """Networks with nothing in common in what they read."""
    return sx.learned.Joint(
        (
            sx.learned.StepLSTM(emits=("step_size", "momentum"), width=4, key=key),
            sx.learned.Joint((sx.learned.PerNeuronLSTM(width=4, key=key),)),
        )
    )


@pytest.mark.parametrize(
    "make", [algorithm_3, lambda key: sx.learned.LayerPairLSTM((4, 4, 4), width=4, key=key), everything]
)
def test_joined_networks_are_saved_and_loaded(make, tmp_path):
    network = make(jax.random.key(0))
    loaded, card = sx.load(sx.save(network, tmp_path / "it.safetensors"))
    assert jax.tree.structure(loaded) == jax.tree.structure(network)
    assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (loaded, network)), strict=True))
    assert card["contract"]["emits"] == network.contract()["emits"]


def test_heads_are_bounded_and_smooth(float64):
    z = jnp.linspace(-30.0, 30.0, 7)
    assert np.all(np.diff(between(z, 1e-7, 5e-3)) > 0)
    assert float(between(jnp.array(-700.0), 1e-7, 5e-3)) >= 1e-7
    for length in (1e-6, 1e-4, 1e-3, 1.0, 50.0):
        x = length * jnp.array([0.6, 0.8])
        assert float(jnp.linalg.norm(within(x, 0.5))) == pytest.approx(0.5 * np.tanh(2 * length), rel=1e-12)
        assert float(jnp.linalg.norm(of_norm(x, 0.5))) == pytest.approx(0.5, rel=1e-12)
    np.testing.assert_allclose(jax.jacobian(lambda x: within(x, 0.5))(jnp.zeros(2)), np.eye(2))
    assert np.all(np.isfinite(jax.jacobian(lambda x: of_norm(x, 0.5))(jnp.zeros(2))))


def test_bad_networks_are_rejected(network, family, unchecked):
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"any of update, step_size, momentum, got \['step'\]"):
        sx.learned.FlatGradientLSTM(2, emits=("step",), key=key)
    with pytest.raises(ValueError, match="emits nothing"):
        sx.learned.FlatGradientLSTM(2, emits=(), key=key)
    with pytest.raises(ValueError, match="0 < low < high, got"):
        sx.learned.FlatGradientLSTM(2, rates=(1e-2, 1e-3), key=key)
    with pytest.raises(ValueError, match="pass it as max_norm"):
        sx.learned.FlatGradientLSTM(2, algebra=1, fixed=True, key=key)
    with pytest.raises(ValueError, match=r"must be positive, .*got -1"):
        sx.learned.FlatGradientLSTM(2, algebra=1, max_norm=-1, key=key)
    with pytest.raises(ValueError, match="needs pairs of matrices of equal shapes"):
        sx.learned.LayerPairLSTM((3, 4, 5, 2), shared=True, key=key)
    with pytest.raises(ValueError, match="at least one hidden layer"):
        sx.learned.LayerPairLSTM((3, 4), key=key)
    with pytest.raises(ValueError, match="Joint needs at least one network, got none"):
        sx.learned.Joint(())
    twice = sx.learned.Joint(
        (sx.learned.FlatGradientLSTM(32, width=4, key=key), sx.learned.FlatGradientLSTM(32, width=4, key=key))
    )
    with pytest.raises(ValueError, match="Two networks of this Joint emit update"):
        run(twice, family, sx.UpdateRule(schedule=()))
    with pytest.raises(ValueError, match="emits no step"):
        run(sx.learned.FlatGradientLSTM(32, emits=(), algebra=16, width=4, key=key), family, rule())
    with pytest.raises(ValueError, match="this network emits none"):
        run(algorithm_3(key, momentum=False), family, rule(as_printed=True))
    with pytest.raises(ValueError, match="choose one of them"):
        sx.learned.FlatGradientLSTM(2, emits=("update", "step_size"), key=key)
    both = sx.learned.Joint((sx.learned.FlatGradientLSTM(32, width=4, key=key), network.networks[0]))
    with pytest.raises(ValueError, match="emits an update and a step size"):
        run(both, family, sx.UpdateRule(schedule=()))
    with pytest.raises(ValueError, match="does not go with transport='carry'"):
        run(network, family, rule(as_printed=True, transport="carry"))
    with pytest.raises(ValueError, match="`transport` must be one of keep, carry, reset, got 'zero'"):
        run(network, family, rule(transport="zero"))
    with pytest.raises(ValueError, match=r"built for 32 parameters, got 98.*PerNeuronLSTM"):
        run(
            network, sx.tasks.RegressionFamily("other", dims=(7, 7, 7), samples=7), sx.UpdateRule(schedule=())
        )
    with pytest.raises(ValueError, match=r"built for matrices .* PerNeuronLSTM"):
        run(sx.learned.LayerPairLSTM((5, 5, 5), emits=("step_size",), key=key), family, rule())
    with pytest.raises(ValueError, match=r"shape \(16,\), but the symmetry has \(4,\).*PerNeuronLSTM"):
        run(network, small_family(), rule())
    with pytest.raises(ValueError, match="step 9, outside the horizon of 6 steps"):
        sx.UpdateRule.at([1, 9], STEPS)
    with pytest.raises(ValueError, match=r"counted from 0, .*got \(-1,\)"):
        sx.UpdateRule.at([-1], STEPS)
    outer = sx.learned.each_network(optax.sgd(1.0))
    with pytest.raises(ValueError, match="got 1 for a Joint of 2"):
        outer.init(network)
    with pytest.raises(ValueError, match="trains the networks of a Joint, got FlatGradientLSTM"):
        outer.init(network.networks[0])
    with pytest.raises(ValueError, match="has no inverse: use a positive slope"):
        sx.tasks.RegressionFamily("relu", slope=0.0, action="preimage")
    with pytest.raises(ValueError, match="`action` must be one of scaling, preimage, output, got 'matrix'"):
        sx.tasks.RegressionFamily("odd", action="matrix")  # pyright: ignore[reportArgumentType]
