"""The experiment on objectives, end to end in a tiny setting."""

import dataclasses

import numpy as np
import pytest

from symmetrax.studies import objectives
from symmetrax.studies.core._console import Reporter
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._runner import run_study, show_study

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_it_correlates_every_objective_with_every_optimizer(tmp_path):
    settings = objectives.Settings(points=8, images=32, widths=(5,), warmup=(2,), steps=2)
    study = dataclasses.replace(objectives.STUDIES["objectives"], seeds=2, settings=settings)
    folder = RunFolder(tmp_path / "run", "objectives", "quick", study.identity())
    results = run_study(study, folder, Reporter(quiet=True))
    show_study(study, results, Reporter(quiet=True))
    assert tuple(results["correlations"]) == objectives.TITLES
    for row in results["correlations"].values():
        for entry in row.values():
            assert -1 <= entry["mean"] <= 1
            assert entry["low"] <= entry["mean"] <= entry["high"]
    outcomes = [row["outcome"] for row in results["verdicts"]]
    assert len(outcomes) == 6
    assert set(outcomes) <= {"reproduced", "reversed", "inconclusive"}
    assert (folder.path / "objectives.png").exists()
    with np.load(folder.path / "points.npz") as arrays:
        assert arrays["2.gain.sgd"].shape == (2, 8)
        assert np.all(np.isfinite(arrays["2.nuclear norm"]))
        # Equal losses: what one step gains is what the loss is lower by, whatever the objective.
        one = -arrays["2.one sgd step"]
        assert np.all(one > 0)
