"""The experiment on the frequency of teleports in a tiny setting."""

import dataclasses

import numpy as np
import pytest

from symmetrax.studies import frequency
from symmetrax.studies._fig7_arms import Networks
from symmetrax.studies._fig7_arms import family as regression
from symmetrax.studies.core._arm import Learned
from symmetrax.studies.core._console import Reporter
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._meta_training import Budget
from symmetrax.studies.core._runner import run_study, show_study

NETWORKS = Networks(units=4, width=4)
REGRESSION = regression("uniform", NETWORKS)
TINY = dataclasses.replace(
    frequency.STUDIES["frequency"],
    families=("ellipse-random", REGRESSION),
    seeds=2,
    tasks=4,
    budget=Budget(runs=2, steps=4, unroll=2, chunk=2, patience=0),
    settings=frequency.Settings(
        every=(1, 2),
        plane_width=4,
        regression=Budget(runs=2, steps=4, unroll=2, chunk=1, patience=3, validation_tasks=2),
        networks=NETWORKS,
    ),
)


# Slow: learned optimizers are trained for every arm, which test_fig7.py and test_plane.py do always.
@pytest.fixture(scope="module", params=[pytest.param("tiny", marks=pytest.mark.slow)])
def ran(tmp_path_factory, quick_compilation):
    """The smallest run: its folder and results."""
    path = tmp_path_factory.mktemp("runs") / "tiny"
    folder = RunFolder(path, "frequency", "tiny", TINY.identity())
    results = run_study(TINY, folder, Reporter(quiet=True))
    show_study(TINY, results, Reporter(quiet=True))
    return folder.path, results


def test_every_schedule_has_all_its_runs_on_the_same_tasks(ran):
    path, results = ran
    assert set(results["groups"]) == {"ellipse-random", "regression-20"}
    for family, group in results["groups"].items():
        arms = group["arms"]
        assert set(arms) == {"never", "every-1", "every-1-off", "every-2", "every-2-off"}
        with np.load(path / f"losses-{family}.npz") as losses:
            for name, arm in arms.items():
                assert arm["runs"] == 2 * 4
                np.testing.assert_allclose(losses[name][..., 0], losses["never"][..., 0], rtol=1e-6)
        assert 0 <= arms["every-1"]["rejected"] <= 1
        assert "never" in arms["every-2"]["versus"]
    assert (path / "frequency.png").stat().st_size > 10_000


def test_schedules_are_those_asked_for():
    study = frequency.STUDIES["frequency"]
    for family, steps in zip(study.made(), (20, 20, 100), strict=True):
        arms = [arm for arm in study.arms_on(family) if isinstance(arm, Learned)]
        for arm, every in zip(arms, (None, 1, 5, 10), strict=True):
            teleports = np.asarray(arm.rule.schedule)
            assert teleports.shape == (steps,)
            assert np.flatnonzero(teleports).tolist() == (list(range(0, steps, every)) if every else [])


def test_verdicts_compare_with_never_and_with_every_step(ran):
    claims = [row["claim"] for row in ran[1]["verdicts"]]
    assert "a learned teleport at every step beats none on ellipse-random" in claims
    assert "a learned teleport every 2 steps beats one at every step on regression-20" in claims
    assert "what learned to teleport every 2 steps needs it at test on regression-20" in claims
    assert len(claims) == 2 * 5
