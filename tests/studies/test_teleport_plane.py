"""Teleports on Booth's function, at the smallest size, and the machinery that runs arms side by side."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import symmetrax as sx
from symmetrax.studies import _registry, teleport_plane
from symmetrax.studies.core._budgets import Arm, describe
from symmetrax.studies.core._console import Reporter
from symmetrax.studies.core._lanes import best_rate, cut, make_lanes, recorded, run_lanes

pytestmark = pytest.mark.usefixtures("quick_compilation")

TINY = dataclasses.replace(
    teleport_plane.config("teleport-plane"), seeds=3, tasks=2, tuning_tasks=2, rates=3, functions=("booth",)
)
QUIET = Reporter(quiet=True)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The experiment end to end, as the command line runs it."""
    patch = pytest.MonkeyPatch()
    patch.setattr(teleport_plane, "config", lambda name, preset, seed: TINY)
    path = tmp_path_factory.mktemp("runs") / "plane"
    _registry.run_experiment("teleport-plane", "quick", path, quiet=True)
    patch.undo()
    return path, json.loads((path / "results.json").read_text())


def test_every_arm_counts_all_its_runs_and_says_what_it_cost(ran):
    groups = ran[1]["groups"]
    assert set(groups) == {"booth-published", "booth-anywhere"}
    for group in groups.values():
        for name, arm in group["arms"].items():
            assert arm["runs"] == 6
            for key in ("loss_median", "loss_q25", "loss_q75", "loss_mean", "evaluations_curve"):
                assert len(arm[key]) == arm["steps"] + 1, (name, key)
            assert arm["seconds"] > 0
            assert {"gd", "gd-budget", "gd-tuned", "gd-tuned-budget"} - {name} <= set(arm["versus"])
            assert set(arm["to_target"]) == {"evaluations", "seconds"}
            assert bool(arm["jumps"]) == (arm["teleports"] > 0)


def test_budgets_add_up(ran):
    """Ten ascent steps cost thirty gradients and the new point one; so long runs gradient descent."""
    arms = ran[1]["groups"]["booth-published"]["arms"]
    assert arms["gd"]["gradient_evaluations"] == 10
    assert arms["teleport"]["gradient_evaluations"] == 10 + 30 + 1
    assert arms["gd-budget"]["gradient_evaluations"] == 41
    assert arms["random"]["gradient_evaluations"] == 11
    assert arms["momentum-reset"]["gradient_evaluations"] == 10
    assert 13 < arms["level-set"]["gradient_evaluations"] < 10 + 1353
    assert arms["teleport"]["evaluations_curve"][4:6] == [4, 36]


def test_the_published_numbers(ran):
    arms = ran[1]["groups"]["booth-published"]["arms"]
    assert arms["gd"]["loss_median"][-1] == pytest.approx(2.2025, rel=1e-3)
    assert arms["teleport"]["loss_median"][-1] == pytest.approx(9.45e-4, rel=1e-3)
    assert arms["gd-budget"]["loss_median"][10] == arms["gd"]["loss_median"][10]


def test_arms_meet_the_same_starts(ran):
    with np.load(ran[0] / "losses.npz", allow_pickle=False) as losses:
        for group, distinct in (("booth-published", 1), ("booth-anywhere", 6)):
            starts = [losses[name][..., 0] for name in losses.files if name.startswith(group)]
            for start in starts:
                np.testing.assert_array_equal(start, starts[0])
            assert len(np.unique(starts[0])) == distinct


def test_teleports_keep_the_loss_and_pseudo_teleports_do_not(ran):
    for group in ran[1]["groups"].values():
        arms = group["arms"]
        assert arms["teleport"]["jumps"]["loss change"][1] < 1e-4
        assert arms["pseudo"]["jumps"]["loss change"][1] > 0.1
        for size in range(2):  # the pseudo-teleport is as long as the teleport
            lengths = [arms[name]["jumps"]["length"][size] for name in ("teleport", "pseudo")]
            assert lengths[0] == pytest.approx(lengths[1], rel=1e-4)


def test_verdicts_name_both_protocols(ran):
    verdicts = ran[1]["verdicts"]
    for row in verdicts:
        assert set(row) == {"claim", "source", "outcome", "why"}
        assert row["outcome"] in ("reproduced", "reversed", "inconclusive")
    claims = " ".join(row["claim"] for row in verdicts)
    for words in ("published start", "random starts", "same rate, same steps", "equal gradient evaluations"):
        assert words in claims


def test_a_complete_run_is_shown_and_not_repeated(ran, monkeypatch, capsys):
    monkeypatch.setattr(teleport_plane, "config", lambda name, preset, seed: TINY)
    monkeypatch.setattr(teleport_plane, "run", None)
    _registry.run_experiment("teleport-plane", "quick", ran[0])
    printed = capsys.readouterr().out
    for words in ("booth-anywhere: final loss, all 6 runs", "teleport-paced", "cost until the loss"):
        assert words in printed
    assert {path.name for path in ran[0].glob("*.png")} == {"booth-published.png", "booth-anywhere.png"}


def plain(hyper, task, moment, watch):
    return recorded(optax.sgd(hyper["rate"]), moment, watch)


def nothing(task, origin, there):
    return {}


@pytest.fixture(scope="module")
def lanes():
    family = sx.tasks.make_family("ellipse-fixed")
    return family, make_lanes(family, jax.random.split(jax.random.key(1), 6), 12)


def test_lanes_are_the_runs_that_one_would_make_one_by_one(lanes):
    family, many = lanes
    ran = run_lanes(plain, {"rate": 0.05}, family, many, np.zeros(12, bool), watch=nothing)
    task = family.task(())
    for lane in range(many.number):
        x = many.params[lane]
        for step in range(12):
            assert ran.log.loss[lane, step] == pytest.approx(float(task.loss(x)), rel=1e-4)
            move = -0.05 * jax.grad(task.loss)(x)
            assert ran.log.length[lane, step] == pytest.approx(float(jnp.linalg.norm(move)), rel=1e-4)
            x = x + move
    short = cut(ran, 5)
    np.testing.assert_array_equal(short.log.loss, ran.log.loss[:, :6])
    assert short.seconds == pytest.approx(ran.seconds * 5 / 12)


def test_steps_take_the_lengths_they_are_given(lanes):
    family, many = lanes
    lengths = np.where(np.arange(12) < 6, 0.01 * np.arange(12), -1.0) * np.ones((6, 1))
    ran = run_lanes(plain, {"rate": 0.05}, family, many, np.zeros(12, bool), watch=nothing, length=lengths)
    np.testing.assert_allclose(ran.log.length[:, :6], lengths[:, :6], rtol=1e-5)
    own = run_lanes(plain, {"rate": 0.05}, family, many, np.zeros(12, bool), watch=nothing)
    assert not np.allclose(own.log.length[:, :6], lengths[:, :6])


def test_the_best_rate_is_that_of_runs_made_one_rate_at_a_time(lanes):
    family, many = lanes
    rates, never = np.array([1e-3, 0.05, 3.0]), np.zeros(12, bool)
    ends = [run_lanes(plain, {"rate": r}, family, many, never, watch=nothing).log.loss[:, -1] for r in rates]
    best = rates[np.argmin([np.sort(np.where(np.isfinite(e), e, np.inf))[4] for e in map(np.asarray, ends)])]
    assert best_rate(plain, {"rate": 0.0}, rates, family, many, never, watch=nothing) == best == 0.05


def test_the_cost_to_a_target_is_counted_where_it_is_first_reached(lanes):
    """Twice the steps to the target at half the rate, and never to it without a rate."""
    family, many = lanes
    arms = {}
    for name, rate in (("gd", 0.02), ("slow", 0.01), ("still", 0.0)):
        ran = run_lanes(plain, {"rate": rate}, family, many, np.zeros(12, bool), watch=nothing)
        arms[name] = Arm(cut(ran, 4) if name == "gd" else ran, {"rate": rate})
    found = describe(arms, ("gd",), 3, "gd")
    assert found["gd"]["to_target"]["evaluations"]["log_ratio"] == 0
    first = [
        np.argmax(s <= g[4]) for s, g in zip(arms["slow"].ran.log.loss, arms["gd"].ran.log.loss, strict=True)
    ]
    expected = np.sort(np.log(np.array(first) / 4))[2]
    assert found["slow"]["to_target"]["evaluations"]["log_ratio"] == pytest.approx(expected)
    assert found["still"]["to_target"]["evaluations"]["log_ratio"] == np.inf


def test_a_record_says_what_it_misses():
    moment = teleport_plane.Moment(jnp.array(False), jax.random.key(0), jnp.array(-1.0), jnp.array(0.0))
    optimizer = recorded(optax.sgd(0.1), moment, lambda origin, there: {})
    x = jnp.ones(2)
    with pytest.raises(ValueError, match=r"needs origin=\(params, gradient\)"):
        optimizer.update(x, optimizer.init(x), x)


@pytest.mark.slow
def test_rosenbrock_is_accelerated_even_at_equal_gradient_evaluations(tmp_path):
    """The quick preset from the published start: gd at .1113, teleports below 1e-6 in the median."""
    settings = dataclasses.replace(
        teleport_plane.config("teleport-plane", "quick"), functions=("rosenbrock",)
    )
    arms = teleport_plane.run_group(settings, teleport_plane.FUNCTIONS["rosenbrock"], "published")
    ends = {name: float(np.median(arm.losses(settings.seeds)[..., -1])) for name, arm in arms.items()}
    assert ends["gd"] == pytest.approx(0.1113, rel=0.01)
    assert ends["teleport"] < 1e-6 < ends["gd-tuned-budget"]
