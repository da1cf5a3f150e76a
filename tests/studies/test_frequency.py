"""The experiment on the frequency of teleports in a tiny setting."""

import dataclasses

import numpy as np
import pytest

from symmetrax.studies import frequency
from symmetrax.studies._fig7_arms import Networks
from symmetrax.studies.core._console import Reporter
from symmetrax.studies.core._folder import RunFolder

SETTINGS = dataclasses.replace(
    frequency.config("frequency", "quick"),
    tasks=4,
    validation_tasks=2,
    families=("ellipse-random", frequency.REGRESSION),
    every=(1, 2),
    plane=frequency.Horizon(steps=4, unroll=2, runs=2, chunk=2),
    plane_width=4,
    regression=frequency.Horizon(steps=4, unroll=2, runs=2, chunk=1),
    networks=Networks(units=4, width=4),
)


# Slow: learned optimizers are trained for every arm, which test_fig7.py and test_harness.py do always.
@pytest.fixture(scope="module", params=[pytest.param("tiny", marks=pytest.mark.slow)])
def ran(tmp_path_factory, quick_compilation):
    """The smallest run: its folder and results."""
    path = tmp_path_factory.mktemp("runs") / "tiny"
    folder = RunFolder(path, "frequency", "tiny", dataclasses.asdict(SETTINGS))
    results = frequency.run(SETTINGS, folder, Reporter(quiet=True))
    frequency.show(SETTINGS, results, Reporter(quiet=True))
    return folder.path, results


def test_every_schedule_has_all_its_runs_on_the_same_tasks(ran):
    path, results = ran
    assert set(results["groups"]) == set(SETTINGS.families)
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
    settings = frequency.config("frequency")
    for family, steps in (("rosenbrock-random", 20), (frequency.REGRESSION, 100)):
        for every, times in ((1, steps), (5, steps // 5), (10, steps // 10), (None, 0)):
            teleports = np.asarray(frequency.arm(family, every, settings).rule.schedule)
            assert teleports.shape == (steps,)
            assert teleports.sum() == times
            assert every is None or np.all(np.flatnonzero(teleports) == np.arange(0, steps, every))


def test_verdicts_compare_with_never_and_with_every_step(ran):
    claims = [row["claim"] for row in ran[1]["verdicts"]]
    assert "a learned teleport at every step beats none on ellipse-random" in claims
    assert "a learned teleport every 2 steps beats one at every step on regression-20" in claims
    assert "what learned to teleport every 2 steps needs it at test on regression-20" in claims
    assert len(claims) == 2 * 5
