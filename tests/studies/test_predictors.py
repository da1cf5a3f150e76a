"""What predicts the gain of teleports: the statistics, the features, and the experiment at its smallest."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import symmetrax as sx
from symmetrax.studies import _predictors_features, predictors
from symmetrax.studies._orbit_arms import Networks, budget
from symmetrax.studies._predictors_statistics import (
    LARGEST,
    area,
    decide,
    explained,
    follow,
    gains,
    regress,
    threshold,
)
from symmetrax.studies.core._console import Reporter
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._runner import run_study, show_study

pytestmark = pytest.mark.usefixtures("quick_compilation")

TINY = dataclasses.replace(
    predictors.STUDIES["predictors"].preset("quick"),
    seeds=2,
    tasks=12,
    horizons=(3,),
    budget=budget(2, 2, steps=4, unroll=2),
    settings=Networks(width=4),
)


def test_area_is_the_statistic_of_mann_and_whitney():
    random = np.random.default_rng(0)
    score, wins = np.round(random.normal(size=60), 1), random.random(60) < 0.4
    difference = score[wins][:, None] - score[~wins]
    assert area(score, wins) == pytest.approx(np.mean(np.where(difference == 0, 0.5, difference > 0)))
    assert np.isnan(area(score, np.ones(60, bool)))


def test_the_threshold_is_the_best_there_is():
    random = np.random.default_rng(1)
    for _ in range(20):
        score, gain = np.round(random.normal(size=15), 1), random.normal(size=15)
        cut = threshold(score, gain)
        best = max(np.sum(gain[score > value]) for value in (-np.inf, *score))
        assert np.sum(gain[score > cut]) == pytest.approx(best)
    assert threshold(np.arange(3.0), -np.ones(3)) == np.inf
    assert threshold(np.arange(3.0), np.ones(3)) == -np.inf


def test_a_probe_without_information_is_not_followed():
    score, gain = np.ones((2, 30)), np.linspace(-0.5, 3, 60).reshape(2, 30)
    found = follow(score, gain, (score, gain))
    assert found["auc"]["seeds"] == pytest.approx([0.5, np.nan], nan_ok=True)
    assert found["less_always"]["mean"] == 0


def test_regressions_do_not_predict_noise_and_find_what_is_there():
    random = np.random.default_rng(2)
    x, noise = random.normal(size=(3, 200)), random.normal(size=(3, 200))
    assert explained(noise[0][:, None], x[0]) < 0.05
    found = regress({"noise": noise, "cause": x}, np.exp(x) + 0.1 * random.normal(size=(3, 200)))
    assert found["strongest"] == "cause"
    assert found["alone"]["cause"]["mean"] > 0.9
    assert found["all_curved"]["mean"] > 0.9
    assert found["lead"]["low"] > 0


def test_runs_that_diverged_count_and_stay_finite():
    without = np.array([[[1.0, np.inf], [1.0, np.nan], [1.0, 1.0]]])
    teleports = np.array([[[1.0, 1.0], [1.0, np.inf], [1.0, np.inf]]])
    np.testing.assert_allclose(gains(without, teleports), [[LARGEST, 0.0, -LARGEST]])


def test_shares_of_wins_ties_and_losses_are_of_all_tasks():
    gain = np.array([[1.0, 0.0, -1.0, 2.0]] * 2)
    found = decide({"a": gain}, gain, {"a": gain}, gain, ("a",))
    assert [found[name]["mean"] for name in ("wins", "ties", "losses")] == [0.5, 0.25, 0.25]
    assert found["probes"]["a"]["mean_gain"]["mean"] == found["where_it_wins"]["mean"] == 0.75


def test_features_are_those_of_the_map_and_the_start():
    task = sx.tasks.generalized_rosenbrock(0.5, -1.0, -2.0, [0.4, 0.0, 0.0])
    x = jnp.array([1.0, -1.5])
    found = jax.jit(lambda x: _predictors_features.features(task, x))(x)
    found = {name: float(value) for name, value in found.items()}
    assert set(found) == set(_predictors_features.WORDS)
    jacobian, hessian = jax.jacfwd(task.map)(x), jax.hessian(task.loss)(x)
    assert np.exp(found["condition"]) == pytest.approx(np.linalg.cond(np.asarray(jacobian)), rel=1e-4)
    assert found["saddle"] == (np.linalg.det(np.asarray(hessian)) < 0)
    assert np.exp(found["smallest"]) == pytest.approx(0.5)
    assert np.exp(found["loss"]) == pytest.approx(float(task.loss(x)), rel=1e-5)
    assert found["over_here"] >= found["over_here_near"] - 1e-6


@pytest.mark.slow
def test_the_smallest_run_names_a_predictor_and_reports_all_runs(tmp_path, capsys):
    folder = RunFolder(tmp_path / "run", "predictors", "tiny", TINY.identity())
    results = run_study(TINY, folder, Reporter(quiet=True))
    folder.results(results)
    results = json.loads((folder.path / "results.json").read_text())
    for family in (family.name for family in TINY.made()):
        arms = results["groups"][family]["arms"]
        assert {arm["runs"] for arm in arms.values()} == {24}
        assert "vanilla" in arms["peak-near"]["versus"]
        found = results["predictors"][family]["peak-near"]
        assert found["strongest"] in found["spearman"]
        assert ("smallest" in found["spearman"]) == family.startswith("rosenbrock")
        assert set(results["probes"][family]["peak-near"]["probes"]) == set(_predictors_features.PROBES)
        with np.load(folder.path / f"{family}-tasks.npz") as arrays:
            assert arrays["gain-peak-near"].shape == (2, 12)
            starts = np.asarray(arrays["start-loss"])
            np.testing.assert_allclose(arrays["loss"], np.log(starts), rtol=1e-3, atol=1e-3)
            assert np.isfinite([arrays[name] for name in found["spearman"]]).all()
    assert len(results["verdicts"]) == 6
    for name in ("gains", "correlations", "decisions"):
        assert (folder.path / f"{name}.png").stat().st_size > 10_000
    show_study(TINY, results, Reporter())
    assert "strongest" in capsys.readouterr().out
