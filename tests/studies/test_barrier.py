"""The study of the loss barrier, end to end in a tiny setting."""

import dataclasses

import numpy as np
import pytest

from symmetrax.studies import barrier
from symmetrax.studies.core._console import Reporter
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._runner import run_study, show_study

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_a_copy_has_no_barrier_and_matching_never_goes_away_from_the_target(tmp_path):
    settings = dataclasses.replace(
        barrier.Settings(), networks=("perceptron",), steps=30, points=5, restarts=0, sweeps=5
    )
    study = dataclasses.replace(barrier.STUDIES["barrier"], seeds=2, settings=settings)
    folder = RunFolder(tmp_path / "run", "barrier", "quick", study.identity())
    results = run_study(study, folder, Reporter(quiet=True))
    show_study(study, results, Reporter(quiet=True))
    row, about = results["barriers"]["perceptron"], results["networks"]["perceptron"]
    assert tuple(row) == barrier.ARMS
    assert row[barrier.COPY]["mean"] < 1e-4
    assert about["distances"][barrier.COPY]["mean"] < 1e-4
    distances = [about["distances"][arm]["mean"] for arm in (barrier.MATCHED, barrier.PERMUTED, barrier.NONE)]
    assert distances == sorted(distances)
    assert about["groups"] == ["PositiveDiagonal(32)"] * 2 + ["Permutation(32)"] * 2
    assert len(results["verdicts"]) == 3
    assert (folder.path / "barriers.png").exists()
    with np.load(folder.path / "barriers.npz") as arrays:
        assert arrays["perceptron.all groups"].shape == (2,)
