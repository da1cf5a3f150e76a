"""The experiment on figure 7 in a tiny setting, its baseline as published, and the arms that learn."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import symmetrax as sx
from symmetrax.studies import fig7
from symmetrax.studies._fig7_arms import SPECS, Networks, controls, learned_arm
from symmetrax.studies._fig7_hand import as_long, warm
from symmetrax.studies._fig7_verdicts import CLAIMS, QUESTIONS, answers, gains, verdicts
from symmetrax.studies.core._console import Reporter
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._hand_made import descent
from symmetrax.studies.core._meta_training import Budget, Validation
from symmetrax.studies.core._run_facts import facts, learned_constant, learned_course, left_out, step_medians
from symmetrax.studies.core._runner import run_study, show_study
from symmetrax.studies.core._runs import Runs, resumable, run_many
from symmetrax.tasks._families import make_family

TINY = Networks(units=4, width=4, small_width=4)
ARMS = ("lr-tele-momentum", "lr-momentum", "every-10")
STUDY = dataclasses.replace(
    fig7.STUDIES["fig7"].preset("quick"),
    tasks=4,
    parts=2,
    tuning_tasks=2,
    budget=Budget(runs=2, chunk=1, validation_tasks=2, steps=4, unroll=2, patience=3),
    horizons=(3,),
    settings=fig7.Settings(
        {"uniform": fig7.Group("uniform", ARMS, TINY, ("off",))}, published_tasks=2, plane=(), patient_steps=3
    ),
)


@pytest.mark.slow
def test_descent_on_the_published_regression_has_the_published_losses():
    """Medians over 1,000 draws at epochs 1, 10, 29, 99 within a tenth of those of other code."""
    hyper = {"rate": jnp.array(3e-4), "momentum": jnp.array(0.0)}
    family = make_family("regression-20")
    trace = sx.unroll_many(descent, hyper, family, jax.random.key(0), steps=99, tasks=1000)
    medians = np.median(np.asarray(trace.loss), axis=1)
    np.testing.assert_allclose(medians[[1, 10, 29, 99]], [8.66e4, 3.17e3, 40.3, 18.9], rtol=0.1)


@pytest.fixture(scope="module")
def ran(tmp_path_factory, quick_compilation):
    """The smallest run: its folder and results."""
    path = tmp_path_factory.mktemp("runs") / "tiny"
    folder = RunFolder(path, "fig7", "tiny", STUDY.identity())
    results = run_study(STUDY, folder, Reporter(quiet=True))
    show_study(STUDY, results, Reporter(quiet=True))
    return folder, results


def test_every_arm_has_all_its_runs_on_the_same_trajectories(ran):
    folder, results = ran
    arms = results["groups"]["uniform"]["arms"]
    learned = {*ARMS, "lr-tele-momentum-off", "every-10-off"}
    by_hand = {"gd-3e-4", "gd", "momentum", "warm", "warm-momentum"}
    followed = {"gd-at-lr-tele-momentum", "as-long-as-lr-tele-momentum"}
    assert set(arms) == learned | by_hand | followed
    with np.load(folder.path / "losses.npz") as losses:
        for name, arm in arms.items():
            assert arm["runs"] == 2 * 4
            assert losses[name].shape == (2, 4, 4)
            np.testing.assert_allclose(losses[name][..., 0], losses["gd"][..., 0], rtol=1e-6)
    assert results["groups"]["uniform-2"]["arms"]["gd"]["runs"] == 2 * 2


def test_the_learning_curve_is_stored_with_the_run(ran):
    """Validation against trajectories, for every seed; the best networks are those that are run."""
    arm = ran[1]["groups"]["uniform"]["arms"]["lr-tele-momentum"]
    curve = arm["learning_curve"]
    assert curve["trajectories"] == [1, 2][: len(curve["trajectories"])]
    best = np.argmin(curve["validation"], axis=1)
    assert arm["best_after"] == [curve["trajectories"][i] for i in best]
    assert arm["training_seconds"] > 0
    assert arm["at_cap"] == sum(i == 1 for i in best)


def test_teleports_are_in_the_results_with_their_change_of_the_loss(ran):
    """Applied teleports keep the loss, or are counted as rejected."""
    arm = ran[1]["groups"]["uniform"]["arms"]["lr-tele-momentum"]
    assert arm["rejected"] < 0.05
    assert 0 <= arm["loss_change_median"] < 1e-5
    assert "rejected" not in ran[1]["groups"]["uniform"]["arms"]["lr-momentum"]
    fresh = ran[1]["fresh"]["uniform"]
    assert fresh["lr-tele-momentum"]["low"] <= fresh["lr-tele-momentum"]["high"]
    assert fresh["lr-tele-momentum-off"]["median"] > 0


def test_a_finished_part_is_not_repeated(ran):
    def never():
        raise AssertionError("computed again")

    found, card = resumable(ran[0], "uniform-lr-tele-momentum", never)
    np.testing.assert_array_equal(found["@lr-tele-momentum-off@3"].losses.shape, (2, 4, 4))
    assert card["lr-tele-momentum"]["trajectories"] == 2
    # Neither its checkpoint nor its clock is kept.
    assert [path.name for path in (ran[0].path / "checkpoints").iterdir()] == ["parts"]


def test_pictures_and_networks_are_there(ran):
    names = ("curves-uniform", "learning-uniform", "gains")
    assert all((ran[0].path / f"{name}.png").stat().st_size > 10_000 for name in names)
    network, card = sx.load(ran[0].path / "artifacts" / "lr-tele-momentum.safetensors")
    assert network.contract()["emits"] == ["step_size", "momentum", "algebra"]
    assert card["training"]["horizon"] == 4


@pytest.mark.parametrize("rates", [(1e-4, 1e-3), (1e-3, 1e-4)])
def test_networks_have_the_published_outer_rates_and_swapping_them_is_a_setting(rates, quick_compilation):
    """The first step of Adam is as long as its rate."""
    arm = learned_arm("lr-tele-momentum", "uniform", dataclasses.replace(TINY, rates=rates), 4)

    @jax.jit
    def first_steps(key):
        network = arm.make(key)
        ones = jax.tree.map(jnp.ones_like, network)
        updates, _ = arm.outer.update(ones, arm.outer.init(network), network)
        return [optax.tree.min(part) for part in updates.networks]

    assert Networks().rates == (1e-4, 1e-3)
    np.testing.assert_allclose(first_steps(jax.random.key(0)), -np.array(rates), rtol=1e-4)


def test_runs_tell_what_an_unrolled_optimizer_does(quick_compilation):
    """Losses and lengths of steps against points of `unroll_many`, part by part, and the validation."""
    family = make_family("booth")
    hyper = {"rate": jnp.array([0.01, 0.05]), "momentum": jnp.array([0.0, 0.5])}
    keys = jax.random.split(jax.random.key(0), 2)

    def distance(task, params):
        return {"distance": jnp.linalg.norm(params - jnp.array([1.0, 3.0]))}

    ran = run_many(descent, hyper, family, keys, steps=5, tasks=6, parts=2, measure=distance)
    for seed in range(2):
        own = {name: values[seed] for name, values in hyper.items()}
        traces = [
            sx.unroll_many(descent, own, family, jax.random.fold_in(keys[seed], part), 5, 3, points=True)
            for part in range(2)
        ]
        losses = np.concatenate([np.asarray(trace.loss) for trace in traces], axis=1).T
        points = np.concatenate([np.asarray(trace.params) for trace in traces], axis=2)
        np.testing.assert_allclose(ran.losses[seed], losses, rtol=1e-5)
        lengths = np.linalg.norm(np.diff(points, axis=0), axis=1).T
        np.testing.assert_allclose(ran.recorded["length"][seed], lengths, rtol=1e-4)
        ends = np.linalg.norm(points[-1] - np.array([[1.0], [3.0]]), axis=0)
        np.testing.assert_allclose(ran.measured["distance"][seed], ends, rtol=1e-5)
    quality = eqx.filter_jit(Validation(descent, family, jax.random.fold_in(keys[1], 0), steps=5, tasks=3))
    mean_logs = np.log(losses[:3, 1:]).mean(axis=1)
    own = {name: values[1] for name, values in hyper.items()}
    assert float(quality(own)) == pytest.approx(np.median(mean_logs), rel=1e-5)
    # What is not finite is infinitely bad, and what is solved exactly is not.
    assert float(quality({**own, "rate": jnp.array(1e30)})) == np.inf
    with pytest.raises(ValueError, match="7 tasks in 2 equal parts"):
        run_many(descent, hyper, family, keys, steps=5, tasks=7)


def test_what_was_learned_leaves_out_the_first_step_and_what_diverged():
    losses = np.ones((2, 3, 5))
    losses[0, 1, 3] = np.inf
    rates = np.tile([9.0, 1.0, 2.0, 3.0], (2, 3, 1))
    rates[0, 1] = np.nan
    seen = Runs(losses, {"step_size": rates}, {}, 1.0)
    assert left_out(seen) == 1
    assert learned_constant(seen, "step_size").tolist() == [2.0, 2.0]
    assert learned_course(seen, "step_size").tolist() == [[9.0, 1.0, 2.0, 3.0]] * 2
    losses[0] = np.nan
    with pytest.raises(ValueError, match="stayed finite"):
        learned_constant(seen, "step_size")


def test_rejected_teleports_are_counted_and_do_not_count_as_applied():
    rule = sx.UpdateRule.at((0, 2), 3, guard=sx.Guard())
    recorded = {name: np.zeros((1, 2, 3)) for name in ("outcome", "loss_change", "length")}
    recorded["outcome"][0, 1, 2] = 3
    recorded["loss_change"][0, 0] = [1e-7, -1, 3e-7]
    recorded["loss_change"][0, 1] = [2e-7, -1, 0.5]
    found = facts(Runs(np.ones((1, 2, 4)), recorded, {}, 1.0), rule)
    assert found["rejected"] == 0.25
    assert found["loss_change_max"] == 3e-7
    assert found["loss_change_median"] == pytest.approx(2e-7)
    assert step_medians(Runs(np.ones((1, 2, 4)), recorded, {}, 1.0)) == {"length": [0.0, 0.0, 0.0]}
    # To the letter, algorithm 3 teleports at every step.
    recorded["loss_change"][recorded["loss_change"] < 0] = 1e-7
    found = facts(Runs(np.ones((1, 2, 4)), recorded, {}, 1.0), dataclasses.replace(rule, as_printed=True))
    assert found["rejected"] == pytest.approx(1 / 6)


@pytest.mark.parametrize("make", [warm, as_long])
def test_optimizers_by_hand_go_down_the_gradient(make):
    hyper = {"rate": jnp.array(0.5), "momentum": jnp.array(0.9), "lengths": jnp.array([0.3, 0.2])}
    optimizer = make(hyper, None)
    gradient = np.array([3.0, -4.0])
    state, steps = optimizer.init(jnp.zeros(2)), []
    for _ in range(2):
        step, state = optimizer.update(jnp.asarray(gradient), state)
        steps.append(np.asarray(step))
    expected = {
        warm: [-1e-4 * gradient, -0.5 * 1.9 * gradient],
        as_long: [-0.06 * gradient, -0.04 * gradient],
    }
    np.testing.assert_allclose(steps, expected[make], rtol=1e-5)


def test_every_claim_is_about_arms_there_are():
    names = {"gd-3e-4", "gd", "momentum", "warm", "warm-momentum"} | set(SPECS)
    for name in SPECS:
        names |= {control.name for control in controls(learned_arm(name, "uniform", TINY, 4))}
        names |= {f"gd-at-{name}", f"as-long-as-{name}"}
    assert {name for claim in CLAIMS for name in (claim.first, claim.second)} <= names
    assert {pair for pairs in QUESTIONS.values() for pair in pairs} <= {
        (claim.first, claim.second) for claim in CLAIMS
    }


def test_verdicts_are_at_both_epochs_and_say_who_was_still_improving():
    losses = {"lr-tele": np.ones((3, 4, 31)), "lr": np.full((3, 4, 31), np.e)}
    losses["lr"][..., 29] = 1 / np.e
    assert gains("here", losses)["regression, here: lr-tele / lr"]["log_ratio"] == -1
    rows = verdicts("here", losses, (1, 29, 30), {"lr": 2, "lr-tele": 0})
    assert [row["outcome"] for row in rows] == ["reversed", "reproduced"]
    assert all(row["why"].endswith("still improving when training ended: 2 seeds of lr") for row in rows)
    said = answers("here", rows)
    assert said[0] == (
        "here, epoch 30: Do teleports help? Of 1 comparisons 1 say yes, 0 say no, 0 cannot tell."
    )
    assert said[-1].startswith("here: 2 of 2 claims are decided")


def test_settings_are_checked():
    with pytest.raises(ValueError, match="Did you mean 'lr-tele'"):
        fig7.Group("uniform", ("lr-tel",))
    assert isinstance(learned_arm("update", "gaussian", TINY, 4).outer, optax.GradientTransformation)
    assert learned_arm("coordinates-neurons", "gaussian", TINY, 4).family.action == "scaling"
    with pytest.raises(ValueError, match="outside the horizon"):
        sx.UpdateRule.at((4,), 4)
