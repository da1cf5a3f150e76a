"""The experiment on real images, at its smallest size."""

import dataclasses

import numpy as np
import pytest

import symmetrax as sx
from symmetrax.learned._coordinatewise import CoordinatewiseLSTM
from symmetrax.studies import demo, digits
from symmetrax.studies.core._arm import Build, Learned
from symmetrax.studies.core._console import Reporter
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._meta_training import Budget
from symmetrax.studies.core._runner import run_study, show_study
from symmetrax.tasks._data import digits as images

pytestmark = pytest.mark.usefixtures("quick_compilation")

TINY = dataclasses.replace(
    digits.STUDIES["digits"],
    # One width, so that there is little to compile.
    families=lambda study: [sx.tasks.ImageFamily("digits", *images(), (4,), 16)],
    arms=(Learned("learned", Build.of(CoordinatewiseLSTM, width=4)), *digits.ARMS[1:]),
    seeds=2,
    tasks=3,
    tuning_tasks=2,
    budget=Budget(runs=2, steps=4, unroll=2, chunk=10, remat=True),
)


# Slow: learned optimizers are trained for every arm, which test_fig7.py and test_harness.py do always.
@pytest.fixture(scope="module", params=[pytest.param("tiny", marks=pytest.mark.slow)])
def ran(tmp_path_factory):
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "digits", "digits", "tiny", TINY.identity())
    return folder.path, run_study(TINY, folder, Reporter(quiet=True))


def test_every_arm_has_all_its_runs_and_its_accuracy(ran):
    arms = ran[1]["groups"]["digits"]["arms"]
    assert set(arms) == {"learned", "gd", "adam"}
    for arm in arms.values():
        assert arm["runs"] == 6
        assert len(arm["loss_median"]) == TINY.budget.steps + 1
        assert 0 <= arm["test_accuracy"] <= 1
        assert arm["seconds"] > 0
    assert arms["adam"]["hyperparameters"]["momentum"] == 0.9


def test_arms_start_from_the_same_networks_on_the_same_minibatches(ran):
    with np.load(ran[0] / "losses.npz", allow_pickle=False) as losses:
        starts = [losses[name][..., 0] for name in ("learned", "gd", "adam")]
    np.testing.assert_allclose(starts[0], starts[1], rtol=1e-5)
    np.testing.assert_allclose(starts[0], starts[2], rtol=1e-5)
    assert len(np.unique(starts[0])) == 6


def test_its_artifact_optimizes_any_network(ran):
    network, card = sx.load(ran[0] / "artifacts" / "learned.safetensors")
    assert card["training"]["family"] == "digits"
    assert 0 <= card["evaluation"]["test_accuracy"] <= 1
    params = {"w": np.ones((2, 3), np.float32)}
    updates, _ = network.transform().update(params, network.transform().init(params), params)
    assert updates["w"].shape == (2, 3)


def test_its_table_prints(ran, capsys):
    show_study(TINY, ran[1], Reporter())
    printed = capsys.readouterr().out
    assert "accuracy on unseen images: learned" in printed
    assert "a learned optimizer beats tuned Adam" in printed


def test_the_demo_is_the_plane_and_digits():
    study = demo.STUDIES["demo"]
    assert study.tasks == 200
    assert set(study.settings.hand_made) >= {"adam", "newton"}
    assert set(study.settings.paper) >= {"vanilla", "teleport"}
    assert demo.digits_study(study).identity() == digits.STUDIES["digits"].preset("quick").identity()


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [(-2.0, -0.1, "yes"), (0.1, 2.0, "no"), (-0.1, 0.1, "not decided"), ("-inf", "inf", "not decided")],
)
def test_the_demo_answers_only_what_the_whole_interval_says(low, high, found):
    recorded = demo.answer("Is it?", {"log_ratio": 0.0, "low": low, "high": high})
    assert recorded["answer"] == found
    assert recorded["why"].startswith("its final loss is 1 times the other's (95 % interval: ")
