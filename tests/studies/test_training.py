"""Teleports in the training of classifiers: the smallest runs of three experiments."""

import dataclasses
import json

import numpy as np
import pytest

from symmetrax.studies import (
    _generalization_moves,
    balancing,
    teleport_generalization,
    teleport_optimizers,
)
from symmetrax.studies._generalization_measures import correlation
from symmetrax.studies._registry import EXPERIMENTS, run_experiment
from symmetrax.studies._teleport_optimizers_arms import ARMS, Data, Settings
from symmetrax.studies.core import _runner
from symmetrax.studies.core._console import Reporter
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._runner import run_study, show_study

pytestmark = pytest.mark.usefixtures("quick_compilation")

QUIET = Reporter(quiet=True)


def run(study, path):
    folder = RunFolder(path / study.name, study.name, "tiny", study.identity())
    folder.results({"experiment": study.name, "seconds": 1.0, **run_study(study, folder, QUIET)})
    return folder.path, json.loads((folder.path / "results.json").read_text())


@pytest.fixture(scope="module")
def optimizers(tmp_path_factory):
    """AdaGrad on a few images: two seeds, three epochs, teleports in the third."""
    data = Data("digits", seeds=2, epochs=3, tuning_seeds=1, rates=2, images=200)
    # With small batches as large as the others, their teleports share a program.
    settings = Settings((data,), optimizers=("adagrad",), ascent=2, batch=40, small=40, block=4)
    study = dataclasses.replace(
        teleport_optimizers.STUDIES["teleport-optimizers"], settings=settings, quick={}
    )
    return study, *run(study, tmp_path_factory.mktemp("optimizers"))


# Slow: the run above has a training loop with teleports as well.
@pytest.fixture(scope="module", params=[pytest.param("tiny", marks=pytest.mark.slow)])
def balanced(tmp_path_factory):
    """Two seeds, three learning rates, four steps."""
    settings = balancing.Settings(steps=4, every=2, rates=3)
    study = dataclasses.replace(balancing.STUDIES["balancing"], seeds=2, settings=settings)
    return study, *run(study, tmp_path_factory.mktemp("balancing"))


def test_all_arms_have_all_runs_and_costs(optimizers):
    arms = optimizers[2]["groups"]["digits-adagrad"]["arms"]
    assert {arm.name for arm in ARMS} < set(arms)
    assert {"none-tuned", "exact-tuned", "action-tuned", "longer"} < set(arms)
    for name, arm in arms.items():
        assert arm["runs"] == 2, name
        assert len(arm["loss_median"]) == (4 if name != "longer" else len(arm["loss_median"])), name
        assert arm["seconds"] > 0, name
    # 3 epochs of 10 steps; 8 teleports of one gradient on 40 images, or of two steps at three gradients each.
    assert arms["none"]["gradient_evaluations"] == 30
    assert arms["exact-carry"]["gradient_evaluations"] == 30 + 8 * 2
    assert arms["action-reset"]["gradient_evaluations"] == 30 + 8 * 6 * 2
    assert len(arms["longer"]["loss_median"]) == 4 + 10


def test_arms_are_paired(optimizers):
    with np.load(optimizers[1] / "digits-training-loss.npz") as losses:
        losses = dict(losses)
    none = losses["adagrad.none"]
    for name, values in losses.items():
        np.testing.assert_array_equal(values[:, 0], none[:, 0], err_msg=name)
        if "tuned" not in name:
            # The first teleport is at the start of the third epoch: until then nothing differs.
            np.testing.assert_array_equal(values[:, :3], none[:, :3], err_msg=name)
    for name in ("reset", "exact-keep", "exact-carry", "exact-reset", "action-reset", "pseudo-exact-keep"):
        assert np.all(losses[f"adagrad.{name}"][:, 3] != none[:, 3]), name
    assert np.all(losses["adagrad.exact-keep"][:, 3] != losses["adagrad.exact-carry"][:, 3])


def test_what_teleports_did_is_logged(optimizers):
    arms = optimizers[2]["groups"]["digits-adagrad"]["arms"]
    assert arms["none"].get("teleports") is None
    exact = arms["exact-carry"]["teleports"]
    assert float(exact["drift_max"]) < 1e-5
    assert float(exact["fresh_max"]) < 1e-5
    assert float(exact["norm_factor"]) > float(arms["random-exact-carry"]["teleports"]["norm_factor"])
    assert float(arms["pseudo-exact-keep"]["teleports"]["fresh"]) > 1e-4
    assert arms["action-reset"]["teleports"]["rejected"] < 1


def test_verdicts_and_tables_of_the_optimizers(optimizers, capsys):
    study, path, results = optimizers
    claims = [row["claim"] for row in results["verdicts"]]
    assert "teleportation improves adagrad beyond the reset of its state (digits)" in claims
    assert {row["outcome"] for row in results["verdicts"]} <= {"reproduced", "reversed", "inconclusive"}
    assert (path / "digits.png").exists()
    assert (path / "comparisons.png").exists()
    show_study(study, results, Reporter())
    assert "exact-carry" in capsys.readouterr().out


def test_a_complete_run_is_not_repeated(optimizers, monkeypatch):
    study, path, _ = optimizers
    # The folder of the fixture is of another preset.
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"preset": "quick"}))
    monkeypatch.setattr(_runner, "Run", None)
    assert run_experiment(study, "quick", path, quiet=True) == path


def test_balancing_has_all_arms_windows_and_checks(balanced, capsys):
    study, path, results = balanced
    group = results["groups"]["digits"]
    assert set(group["arms"]) == {arm.name for arm in balancing.arms(study.settings)}
    for name, arm in group["arms"].items():
        assert arm["runs"] == 2, name
        assert 0 <= arm["window"] <= 6 + 3, name
    # Teleports: one a run, or one every two of four steps, for 2 seeds and 3 rates.
    assert group["arms"]["balanced"]["teleports"]["teleports"] == 6
    assert group["arms"]["low-gradient"]["teleports"]["gradient_falls"] == 1
    checks = {name.split()[0]: float(value) for name, value in group["checks"].items()}
    assert checks["imbalance"] < 1e-4
    assert checks["distance"] < 1e-4
    assert abs(checks["exponent"] - 2) < 0.05
    assert len(results["verdicts"]) == 9
    assert (path / "windows.png").exists()
    show_study(study, results, Reporter())
    assert "window" in capsys.readouterr().out


def test_balancing_starts_all_scaled_arms_alike(balanced):
    with np.load(balanced[1] / "finals.npz") as finals:
        assert finals["none"].shape == (2, 3)
        # The smallest rate hardly moves: arms on one orbit keep its loss.
        np.testing.assert_allclose(finals["balanced"][:, 0], finals["none"][:, 0], rtol=0.02)


def test_correlations_have_intervals():
    random = np.random.default_rng(0)
    x = random.normal(size=50)
    y = x + random.normal(size=50)
    found = correlation(x, y)
    # Fisher's interval, by hand.
    z = np.arctanh(np.corrcoef(x, y)[0, 1])
    np.testing.assert_allclose(
        [found["low"], found["high"]], np.tanh([z - 1.959964 / 47**0.5, z + 1.959964 / 47**0.5])
    )
    assert found["bootstrap_low"] < found["r"] < found["bootstrap_high"]


def test_they_are_registered():
    for name in ("teleport-optimizers", "teleport-generalization", "balancing"):
        assert name in EXPERIMENTS


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_generalization_has_arms_correlations_and_verdicts(tmp_path, capsys):
    """Slow for its compilation: third derivatives of decompositions."""
    data = _generalization_moves.Data("digits", 2, 2, 1, batch=40, correlated=6, images=200)
    settings = _generalization_moves.Settings(
        (data,), ascent=1, directions=1, radii=(0.1,), curves=1, block=2
    )
    study = teleport_generalization.STUDIES["teleport-generalization"]
    study = dataclasses.replace(study, settings=settings)
    path, results = run(study, tmp_path)
    group = results["groups"]["digits"]
    assert set(group["arms"]) == {arm.name for arm in teleport_generalization.arms()}
    assert all(arm["runs"] == 2 for arm in group["arms"].values())
    assert float(group["arms"]["exact-sharpness-up"]["teleports"]["fresh_max"]) < 1e-5
    assert group["correlation"]["training loss"]["runs"] == 6
    assert len(results["verdicts"]) == 19
    assert (path / "digits-correlation.png").exists()
    assert (path / "digits-teleports.png").exists()
    show_study(study, results, Reporter())
    assert "curvature" in capsys.readouterr().out
