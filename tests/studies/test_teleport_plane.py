"""Teleports on Booth's function, at the smallest size, and the machinery that runs arms side by side."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import symmetrax as sx
from symmetrax.rollout._unroll import begin_many
from symmetrax.studies import _registry, teleport_plane
from symmetrax.studies.core import _costs, _runner
from symmetrax.studies.core._console import Reporter
from symmetrax.studies.core._costs import Group, Trials, compared
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._recorded import Given, drawn, recorded
from symmetrax.studies.core._run import Run
from symmetrax.studies.core._runs import run_many
from symmetrax.studies.core._streams import Streams

pytestmark = pytest.mark.usefixtures("quick_compilation")

STUDY = teleport_plane.STUDIES["teleport-plane"]
TINY = dataclasses.replace(
    STUDY,
    seeds=3,
    tasks=2,
    tuning_tasks=2,
    settings=teleport_plane.Settings(rates=3, functions=("booth",)),
    quick={},
)
QUIET = Reporter(quiet=True)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The experiment end to end, as the command line runs it."""
    patch = pytest.MonkeyPatch()
    patch.setattr(_costs, "TIMINGS", 1)
    path = tmp_path_factory.mktemp("runs") / "plane"
    _registry.run_experiment(TINY, "quick", path, quiet=True)
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
    monkeypatch.setattr(_runner, "Run", None)
    _registry.run_experiment(TINY, "quick", ran[0])
    printed = capsys.readouterr().out
    for words in ("booth-anywhere: final loss, all 6 runs", "teleport-paced", "cost until the loss"):
        assert words in printed
    assert {path.name for path in ran[0].glob("*.png")} == {"booth-published.png", "booth-anywhere.png"}


def plain(hyper, task):
    return drawn(lambda key: recorded(optax.sgd(hyper["rate"]), length=hyper.get("length", -1.0)))


NEVER = np.zeros(12, bool)


@pytest.fixture(scope="module")
def trials():
    family = sx.tasks.make_family("ellipse-fixed")
    streams = Streams.of(1, 3)
    return Trials(family, family, streams, tasks=2, tuning_tasks=6, rates=(1e-3, 0.05, 3.0))


def test_runs_are_those_that_one_would_make_one_by_one(trials):
    ran = trials.run(plain, {"rate": 0.05}, NEVER)
    hyper = {"rate": jnp.array(0.05)}
    for seed, key in enumerate(trials.streams.test):
        started = begin_many(plain, hyper, trials.family, None, 2, key)
        task = trials.family.task(())
        for number in range(2):
            x = started.carry.params[:, number]
            for step in range(12):
                assert ran.runs.losses[seed, number, step] == pytest.approx(float(task.loss(x)), rel=1e-4)
                move = -0.05 * jax.grad(task.loss)(x)
                length = ran.runs.recorded["step_length"][seed, number, step]
                assert length == pytest.approx(float(jnp.linalg.norm(move)), rel=1e-4)
                x = x + move
    short = ran.first(5)
    np.testing.assert_array_equal(short.runs.losses, ran.runs.losses[..., :6])
    assert short.runs.seconds == pytest.approx(ran.runs.seconds * 5 / 12)


def test_steps_take_the_lengths_they_are_given(trials):
    lengths = np.where(np.arange(12) < 6, 0.01 * np.arange(12), -1.0) * np.ones((3, 2, 1))
    paced = trials.run(plain, {"rate": 0.05}, NEVER, length=lengths).runs.recorded["step_length"]
    np.testing.assert_allclose(paced[..., :6], lengths[..., :6], rtol=1e-5)
    own = trials.run(plain, {"rate": 0.05}, NEVER).runs.recorded["step_length"]
    assert not np.allclose(own[..., :6], lengths[..., :6])


@pytest.mark.parametrize("tasks", [1, 4])
def test_what_steps_are_given_along_goes_with_their_tasks(trials, tasks):
    """In one part or two, and for a single task, which has no axis of its own."""
    lengths = np.random.default_rng(0).uniform(size=(2, tasks, 3)).astype(np.float32)
    given = {"steps": 3, "tasks": tasks, "along": {"length": lengths}, "watch": ("step_length",)}
    for parts in (None, 1 if tasks == 1 else 2):
        ran = run_many(
            Given(plain), {"rate": jnp.ones(2)}, trials.family, trials.streams.test[:2], parts=parts, **given
        )
        np.testing.assert_allclose(ran.recorded["step_length"], lengths, rtol=1e-5)


def test_the_best_rate_is_that_of_runs_made_one_rate_at_a_time(trials):
    practice = dataclasses.replace(
        trials, tasks=6, streams=Streams(*[trials.streams.tune] * 2, trials.streams.tune[None])
    )
    ends = [practice.run(plain, {"rate": r}, NEVER).runs.losses[0, :, -1] for r in trials.rates]
    third = [np.sort(np.where(np.isfinite(e), e, np.inf))[4] for e in ends]
    assert trials.best(plain, {"rate": 0.0}, NEVER, 12) == [{"rate": trials.rates[np.argmin(third)]}]
    assert np.argmin(third) == 1


def test_the_cost_to_a_target_is_counted_where_it_is_first_reached(trials, tmp_path):
    """Twice the steps to the target at half the rate, and never to it without a rate."""
    arms = {}
    for name, rate in (("gd", 0.02), ("slow", 0.01), ("stopped", 0.0)):
        ran = trials.run(plain, {"rate": rate}, NEVER)
        arms[name] = ran.first(4) if name == "gd" else ran
    folder = RunFolder(tmp_path / "run", "costs", "quick", {})
    group = Group("costs", lambda: arms, (), "", ("gd",), "gd")
    found = compared(Run(TINY, folder, QUIET), [group])["groups"]["costs"]["arms"]
    assert found["gd"]["to_target"]["evaluations"]["log_ratio"] == 0
    pairs = zip(arms["slow"].runs.losses.reshape(6, -1), arms["gd"].runs.losses.reshape(6, -1), strict=True)
    first = [np.argmax(slow <= gd[4]) for slow, gd in pairs]
    expected = np.sort(np.log(np.array(first) / 4))[2]
    assert found["slow"]["to_target"]["evaluations"]["log_ratio"] == pytest.approx(expected)
    assert found["stopped"]["to_target"]["evaluations"]["log_ratio"] == np.inf


def test_a_reset_of_the_state_leaves_the_record_in_step(ran):
    """The teleport that resets the momentum is recorded when it happens, as the one that keeps it."""
    for group in ran[1]["groups"].values():
        jumps = {how: group["arms"][f"momentum-teleport-{how}"]["jumps"] for how in ("keep", "reset")}
        assert jumps["reset"]["length"][0] > 0
        assert jumps["keep"]["length"][0] > 0


def test_a_record_says_what_it_misses():
    optimizer, x = recorded(optax.sgd(0.1)), jnp.ones(2)
    with pytest.raises(ValueError, match=r"needs the `origin` of a step: use it inside of `drawn`"):
        optimizer.update(x, optimizer.init(x), x)


@pytest.mark.slow
def test_rosenbrock_is_accelerated_even_at_equal_gradient_evaluations(tmp_path):
    """The quick preset from the published start: gd at .1113, teleports below 1e-6 in the median."""
    settings = teleport_plane.Settings(functions=("rosenbrock",), places=("published",))
    study = dataclasses.replace(STUDY.preset("quick"), settings=settings)
    folder = RunFolder(tmp_path / "run", "teleport-plane", "quick", study.identity())
    arms = _runner.run_study(study, folder, QUIET)["groups"]["rosenbrock-published"]["arms"]
    ends = {name: arm["loss_median"][-1] for name, arm in arms.items()}
    assert ends["gd"] == pytest.approx(0.1113, rel=0.01)
    assert ends["teleport"] < 1e-6 < ends["gd-tuned-budget"]
