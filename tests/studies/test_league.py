"""The league of the plane and the matrix of misalignment: how arms are chosen, judged and told of."""

import dataclasses
import math

import numpy as np
import pytest

from symmetrax.studies import misalignment, plane_league
from symmetrax.studies._league_verdicts import targets, verdicts
from symmetrax.studies._orbit_arms import VANILLA, VARIANTS, Training, choose_arm, orbit_arm, quality
from symmetrax.studies.core._console import Reporter
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._runs import Runs
from symmetrax.tasks._families import make_family

TINY = dataclasses.replace(
    plane_league.config("plane-league", "quick"),
    seeds=2,
    tasks=4,
    tuning_tasks=4,
    families=("ellipse-random",),
    horizons=(3, 5),
    training=Training(runs=2, tasks=2, steps=4, unroll=2, width=4),
    learned=("crest", "crest-near"),
    paper=("vanilla",),
    paper_runs=2,
    hand_made=("adam",),
    far=True,
)


def losses(*finals):
    """One run of three points for each final loss, from a loss of 1."""
    return np.array([[[1.0, 0.5, final] for final in finals]])


def test_an_arm_that_diverges_is_not_chosen_however_good_it_is_elsewhere():
    bold, careful = losses(1e-9, 1e-9, np.nan), losses(0.1, 0.1, 0.1)
    assert quality(bold, [2])[0] == 1
    assert choose_arm({"bold": bold, "careful": careful}, [2]) == "careful"
    assert choose_arm({"bold": bold[:, :2], "careful": careful}, [2]) == "bold"
    # It is enough to have diverged on the way, at a horizon that counts.
    there_and_back = np.array([[[1.0, 20.0, 1e-9]]])
    assert quality(there_and_back, [1, 2])[0] == 1
    assert quality(there_and_back, [2])[0] == 0


def test_losses_are_kept_at_all_steps_to_the_first_horizon_and_at_every_horizon():
    kept = plane_league.points((12, 50, 200))
    assert set(range(13)) | {50, 200} <= set(kept)
    assert len(kept) < 40


def test_arms_without_teleports_have_the_features_and_the_training_of_the_others():
    family, training = make_family("ellipse-fixed"), Training()
    plain = orbit_arm(VANILLA, family, training, None)
    for name in ("teleport", "crest", "crest-near"):
        arm = orbit_arm(name, family, training, VARIANTS[name])
        ours, theirs = dict(arm.make.options), dict(plain.make.options)
        assert {key: ours[key] for key in ("sees", "orbit", "size", "width")} == {
            key: theirs[key] for key in ("sees", "orbit", "size", "width")
        }
        assert arm.outer is plain.outer
        assert arm.rule.schedule.all()
    assert not plain.rule.teleports


def test_the_step_at_which_a_task_is_solved_is_the_first_below_a_millionth():
    settings = dataclasses.replace(TINY, horizons=(2, 4))
    runs = np.array([[[1.0, 0.5, 1e-7, 0.3, 1e-9], [1.0, 0.5, 0.4, np.nan, np.inf]]])
    kept = plane_league._kept(Runs(runs, {}, {}, 0.1), settings)
    assert kept.measured["solved_at"].tolist() == [[2.0, 5.0]]


def row(log_ratio, low, high):
    return {"log_ratio": log_ratio, "low": low, "high": high}


@pytest.mark.parametrize(
    ("high", "diverged", "far_low", "met"),
    [(-0.2, 0, -1.0, True), (-0.05, 0, -1.0, False), (-0.2, 1, -1.0, False), (-0.2, 0, 0.5, False)],
)
def test_the_target_asks_for_a_clear_gain_no_diverged_run_and_no_loss_elsewhere(high, diverged, far_low, met):
    settings = dataclasses.replace(TINY, horizons=(3, 5, 8))

    def arms(versus):
        return {"arms": {"crest": {"versus": {VANILLA: versus}, "diverged": diverged}}}

    groups = {f"ellipse-random-{h}": arms(row(-1.0, -2.0, high)) for h in (3, 5)}
    groups |= {f"ellipse-random-far-{h}": arms(row(far_low + 0.1, far_low, far_low + 1)) for h in (3, 5)}
    share = {"share": {"3": 0.0, "5": 0.5}}
    solved = {VANILLA: share, "crest": {**share, "versus": {VANILLA: row(-0.1, -0.2, 0.0)}}}
    chosen = {"ellipse-random": {"arm": "crest", "of": ["crest"]}}
    results = {"groups": groups, "chosen": chosen, "solved": {"ellipse-random": solved}}
    rows = targets(results, settings)
    assert [(r["horizon"], r["met"]) for r in rows] == [(3, met), (5, met)]
    assert [v["outcome"] for v in verdicts(results, settings)] == ["reproduced", "reproduced"]


@pytest.mark.slow
def test_a_tiny_league_has_all_arms_on_the_same_tasks(tmp_path, quick_compilation):
    folder = RunFolder(tmp_path / "league", "plane-league", "tiny", dataclasses.asdict(TINY))
    results = plane_league.run(TINY, folder, Reporter(quiet=True))
    plane_league.show(TINY, results, Reporter(quiet=True))
    assert set(results["groups"]) == {
        "ellipse-random-3",
        "ellipse-random-5",
        "ellipse-random-far-3",
        "ellipse-random-far-5",
    }
    arms = results["groups"]["ellipse-random-3"]["arms"]
    learned = {"vanilla", "crest", "crest-near"}
    assert set(arms) == learned | {"crest-off", "crest-near-off", "paper-vanilla", "adam"}
    assert all(arm["runs"] == 2 * 4 and len(arm["loss_median"]) == 4 for arm in arms.values())
    assert arms["vanilla"]["gradient_evaluations"] == 3 * 5.0
    assert arms["crest"]["gradient_evaluations"] == pytest.approx(3 * (5 + 2 / 3))
    assert results["chosen"]["ellipse-random"]["arm"] in ("crest", "crest-near")
    with np.load(folder.path / "losses-ellipse-random.npz") as kept:
        for name in kept.files:
            np.testing.assert_allclose(kept[name][..., 0], kept["vanilla"][..., 0], rtol=1e-6)
    assert len(results["targets"]) == 2
    for name in ("curves.png", "ratios.png"):
        assert (folder.path / name).stat().st_size > 10_000


def test_misalignment_compares_with_training_on_the_tested_family_and_with_no_teleports():
    settings = dataclasses.replace(
        misalignment.config("misalignment", "quick"),
        families=("a", "b"),
        arms=(VANILLA, "crest-near"),
        seeds=2,
    )

    def final(loss):
        return np.broadcast_to(np.array([1.0, loss]), (2, 5, 2))

    made = {
        "a": {"vanilla@a": 0.1, "vanilla@b": 0.3, "crest-near@a": 0.01, "crest-near@b": 0.02},
        "b": {"vanilla@a": 0.8, "vanilla@b": 0.2, "crest-near@a": 20.0, "crest-near@b": 0.1},
    }
    found = misalignment.matrices(
        {family: {name: final(x) for name, x in arms.items()} for family, arms in made.items()}, settings
    )
    assert found["vanilla"]["b"]["a"]["own"]["log_ratio"] == pytest.approx(math.log(3))
    assert found["vanilla"]["a"]["a"]["own"]["log_ratio"] == 0
    assert found["crest-near"]["b"]["a"]["plain"]["log_ratio"] == pytest.approx(math.log(0.02 / 0.3))
    assert found["crest-near"]["a"]["b"]["diverged"] == 1.0
    assert found["crest-near"]["b"]["b"]["diverged"] == 0.0


@pytest.mark.slow
def test_a_tiny_misalignment_trains_on_each_family_and_tests_on_all(tmp_path, quick_compilation):
    settings = dataclasses.replace(
        misalignment.config("misalignment", "quick"),
        seeds=2,
        tasks=4,
        steps=3,
        arms=(VANILLA, "crest-near", "paper-teleport"),
        training=TINY.training,
        paper_runs=2,
    )
    folder = RunFolder(tmp_path / "matrix", "misalignment", "tiny", dataclasses.asdict(settings))
    results = misalignment.run(settings, folder, Reporter(quiet=True))
    misalignment.show(settings, results, Reporter(quiet=True))
    for matrix in results["matrices"].values():
        assert set(matrix) == set(settings.families)
        assert all(matrix[f][f]["own"]["log_ratio"] == 0 for f in matrix)
    assert (folder.path / "matrices.png").stat().st_size > 10_000
