"""The comparison of all optimizers on the plane: how arms are chosen, judged and reported."""

import dataclasses

import numpy as np
import pytest

from symmetrax.studies import plane_league
from symmetrax.studies._orbit_arms import VANILLA, Networks, budget, orbit_arm
from symmetrax.studies._plane_target import targets
from symmetrax.studies.core._choice import choose_arm, quality
from symmetrax.studies.core._console import Reporter
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._meta_training import Budget
from symmetrax.studies.core._runner import run_study, show_study
from symmetrax.studies.core._runs import Runs
from symmetrax.tasks._families import make_family

QUIET = Reporter(quiet=True)
TINY = dataclasses.replace(
    plane_league.STUDIES["plane-league"].preset("quick"),
    seeds=2,
    tasks=4,
    tuning_tasks=4,
    families=("ellipse-random",),
    horizons=(3, 5),
    judged=(3, 5),
    budget=budget(2, 2, steps=4, unroll=2),
    settings=plane_league.Settings(
        learned=("peak", "peak-near"),
        distance=0.1,
        paper=("vanilla",),
        paper_budget=Budget(runs=2, steps=20, unroll=5, patience=0),
        hand_made=("adam", "lbfgs"),
        networks=Networks(width=4),
    ),
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
    runs = Runs(np.broadcast_to(np.arange(201.0), (1, 2, 201)), {"length": np.ones((1, 2, 200))}, {}, 0.1)
    thin = runs.at(kept)
    assert thin.steps == 200
    assert thin.until(12)[0, 0].tolist() == list(range(13))
    assert thin.until(50)[0, 0, -1] == 50


def test_arms_without_teleports_have_the_features_and_the_training_of_the_others():
    family = make_family("ellipse-fixed")
    plain = orbit_arm(VANILLA, family, budget())
    for name in ("teleport", "peak", "peak-near"):
        arm = orbit_arm(name, family, budget())
        ours, theirs = dict(arm.make.options), dict(plain.make.options)
        assert {key: ours[key] for key in ("sees", "orbit", "size", "width")} == {
            key: theirs[key] for key in ("sees", "orbit", "size", "width")
        }
        assert arm.outer is plain.outer
        assert arm.rule.schedule.all()
        assert arm.rule_for(7).schedule.shape == (7,)
        assert (arm.rule.gate, arm.rule_for(7).gate) == ("soft", "hard")
    assert not plain.rule.teleports


def test_the_step_at_which_a_task_is_solved_is_the_first_below_a_millionth():
    runs = np.array([[[1.0, 0.5, 1e-7, 0.3, 1e-9], [1.0, 0.5, 0.4, np.nan, np.inf]]])
    assert Runs(runs, {}, {}, 0.1).at((0, 2, 4)).measured["solved_at"].tolist() == [[2.0, 5.0]]


def row(log_ratio, low, high):
    return {"log_ratio": log_ratio, "low": low, "high": high}


@pytest.mark.parametrize(
    ("high", "diverged", "far_low", "met"),
    [(-0.2, 0, -1.0, True), (-0.05, 0, -1.0, False), (-0.2, 1, -1.0, False), (-0.2, 0, 0.5, False)],
)
def test_the_target_asks_for_a_clear_gain_no_diverged_run_and_no_loss_elsewhere(high, diverged, far_low, met):
    study = dataclasses.replace(TINY, horizons=(3, 5, 8))

    def arms(versus):
        return {"arms": {"peak": {"versus": {VANILLA: versus}, "diverged": diverged}}}

    groups = {f"ellipse-random-{h}": arms(row(-1.0, -2.0, high)) for h in (3, 5)}
    groups |= {f"ellipse-random-far-{h}": arms(row(far_low + 0.1, far_low, far_low + 1)) for h in (3, 5)}
    share = {"share": {"3": 0.0, "5": 0.5}}
    solved = {VANILLA: share, "peak": {**share, "versus": {VANILLA: row(-0.1, -0.2, 0.0)}}}
    chosen = {"ellipse-random": {"arm": "peak", "of": ["peak"]}}
    rows = targets(study, {"groups": groups, "chosen": chosen, "solved": {"ellipse-random": solved}})
    assert [(r["horizon"], r["met"]) for r in rows] == [(3, met), (5, met)]


@pytest.mark.slow
def test_a_tiny_run_has_all_arms_on_the_same_tasks(tmp_path, quick_compilation):
    folder = RunFolder(tmp_path / "run", "plane-league", "tiny", TINY.identity())
    results = run_study(TINY, folder, QUIET)
    show_study(TINY, results, QUIET)
    assert set(results["groups"]) == {
        "ellipse-random-3",
        "ellipse-random-5",
        "ellipse-random-far-3",
        "ellipse-random-far-5",
    }
    arms = results["groups"]["ellipse-random-3"]["arms"]
    distance = {"vanilla-distance", "peak-near-distance"}
    learned = {"vanilla", "peak", "peak-off", "peak-near", "peak-near-off", "paper-vanilla"} | distance
    assert set(arms) == learned | {"adam", "lbfgs"}
    assert all(arm["runs"] == 2 * 4 and len(arm["loss_median"]) == 4 for arm in arms.values())
    assert arms["vanilla"]["gradient_evaluations"] == 3 * 5.0
    assert arms["peak"]["gradient_evaluations"] == pytest.approx(3 * (5 + 2 / 3))
    assert arms["peak-off"]["gradient_evaluations"] == 3 * 5.0
    assert arms["lbfgs"]["gradient_evaluations"] > 3
    chosen = results["chosen"]["ellipse-random"]["arm"]
    assert chosen in ("peak", "peak-near")
    claims = [verdict["claim"] for verdict in results["verdicts"]]
    assert f"{chosen} needs its teleports at test after 5 steps" in claims
    assert results["solved"]["ellipse-random-far"]["adam"]["median"] <= 6
    with np.load(folder.path / "losses.npz") as kept:
        for name in kept.files:
            np.testing.assert_allclose(kept[name][..., 0], kept["vanilla"][..., 0], rtol=1e-6)
    assert [target["horizon"] for target in results["targets"]] == [3, 5]
    for name in ("curves.png", "ratios.png"):
        assert (folder.path / name).stat().st_size > 10_000
