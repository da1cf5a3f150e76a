"""The matrices of misalignment: what arms are compared with, and a run in a tiny setting."""

import dataclasses
import math

import numpy as np
import pytest

from symmetrax.studies import misalignment
from symmetrax.studies._orbit_arms import VANILLA, Networks, budget
from symmetrax.studies.core._console import Reporter
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._meta_training import Budget
from symmetrax.studies.core._runner import run_study, show_study

QUIET = Reporter(quiet=True)
STUDY = misalignment.STUDIES["misalignment"].preset("quick")


def test_training_elsewhere_is_compared_with_the_tested_family_and_with_no_teleports():
    def final(loss):
        return np.broadcast_to(np.array([1.0, loss]), (2, 5, 2))

    near = "peak-near"
    made = {
        "a": {(VANILLA, "a"): 0.1, (VANILLA, "b"): 0.3, (near, "a"): 0.01, (near, "b"): 0.02},
        "b": {(VANILLA, "a"): 0.8, (VANILLA, "b"): 0.2, (near, "a"): 20.0, (near, "b"): 0.1},
    }
    losses = {family: {key: final(x) for key, x in arms.items()} for family, arms in made.items()}
    found = misalignment.matrices(STUDY, losses)
    assert found["vanilla"]["b"]["a"]["own"]["log_ratio"] == pytest.approx(math.log(3))
    assert found["vanilla"]["a"]["a"]["own"]["log_ratio"] == 0
    assert found[near]["b"]["a"]["plain"]["log_ratio"] == pytest.approx(math.log(0.02 / 0.3))
    assert found[near]["a"]["b"]["diverged"] == 1.0
    assert found[near]["b"]["b"]["diverged"] == 0.0
    verdicts = {row["claim"]: row["outcome"] for row in misalignment.verdicts(STUDY, losses)}
    assert len(verdicts) == 3
    assert verdicts["vanilla, trained on another family, is worse than trained on the tested one"] == (
        "reproduced"
    )


@pytest.mark.slow
def test_a_tiny_run_trains_on_each_family_and_tests_on_all(tmp_path, quick_compilation):
    arms = (VANILLA, "peak-near", "paper-teleport")
    paper = Budget(runs=2, steps=20, unroll=5, patience=0)
    settings = misalignment.Settings(arms, paper, Networks(width=4))
    training = budget(2, 2, steps=4, unroll=2)
    study = dataclasses.replace(STUDY, seeds=2, tasks=4, horizons=(3,), budget=training, settings=settings)
    folder = RunFolder(tmp_path / "run", "misalignment", "tiny", study.identity())
    results = run_study(study, folder, QUIET)
    show_study(study, results, QUIET)
    assert set(results["matrices"]) == set(arms)
    for matrix in results["matrices"].values():
        assert set(matrix) == set(study.families)
        assert all(matrix[f][f]["own"]["log_ratio"] == 0 for f in matrix)
    assert set(results["groups"]) == set(study.families)
    assert "vanilla@rosenbrock-random" in results["groups"]["ellipse-random"]["arms"]
    assert (folder.path / "matrices.png").stat().st_size > 10_000
