"""The study of learned policies for bases, at its smallest size."""

import numpy as np
import pytest

from symmetrax.studies import basis_policy
from symmetrax.studies.core._console import Reporter
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._runner import run_study, show_study

pytestmark = pytest.mark.usefixtures("quick_compilation")

STUDY = basis_policy.STUDIES["basis-policy"].preset("quick")


# Slow: five programs of a transformer are compiled, which test_transformer_league.py does always.
@pytest.mark.slow
def test_a_policy_is_learned_and_compared(tmp_path, capsys):
    folder = RunFolder(tmp_path / "run", "basis-policy", "quick", STUDY.identity())
    results = run_study(STUDY, folder, Reporter(quiet=True))
    learned = results["policy"]
    assert all(0 < learned[name] < 1 for name in ("threshold", "share", "decay"))
    assert len(learned["generations"]) == STUDY.settings.generations
    arms = results["groups"]["larger"]["arms"]
    held = np.load(folder.path / "held-out-loss.npz")
    gap, *_ = arms["policy"]["difference"]["every-50"]
    np.testing.assert_allclose(gap, np.mean(held["policy"][:, -1] - held["every-50"][:, -1]), rtol=1e-4)
    show_study(STUDY, results, Reporter())
    assert "learned: threshold" in capsys.readouterr().out
