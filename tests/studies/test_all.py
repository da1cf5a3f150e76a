"""All experiments in one command: complete ones are kept, failures are told, the table has a row for each."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from symmetrax.cli import main
from symmetrax.studies._all import overview, run_all
from symmetrax.studies.core._console import Reporter

#: The quickest experiment.
QUICK = "fig1"


def test_complete_runs_are_kept_and_failures_are_told(tmp_path, capsys):
    folder = tmp_path / "fig3-quick-0"
    folder.mkdir()
    row = {"claim": "teleports help", "source": "section 5", "outcome": "reversed", "why": ""}
    text = json.dumps({"experiment": "fig3", "seconds": 30.4, "verdicts": [row, row]})
    (folder / "results.json").write_text(text)
    (tmp_path / "fig4-quick-0").mkdir()
    (tmp_path / "fig4-quick-0" / "thesis.tex").write_text("years of work")
    failed = run_all("quick", tmp_path, names=["fig3", "fig4"])
    assert (folder / "results.json").read_text() == text
    assert list(failed) == ["fig4"]
    assert "is not a run folder" in failed["fig4"]
    table = capsys.readouterr().out
    assert "2 reversed" in table
    assert "teleports help (section 5): reversed" in table
    assert "failed" in table


def test_experiments_without_claims_have_a_row(capsys):
    Reporter().print(overview({"objectives": {"seconds": 3.0}}, {}))
    assert "objectives" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"), [(["run"], "got neither"), (["run", "fig3", "--all"], "got both 'fig3' and")]
)
def test_one_name_or_all(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a child outlives its parent there")
def test_a_killed_list_continues(tmp_path):
    code = (
        f"from symmetrax.studies._all import run_all; run_all('quick', {str(tmp_path)!r}, names=[{QUICK!r}])"
    )
    killed = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not (tmp_path / f"{QUICK}-quick-0" / "config.json").exists():
        time.sleep(0.05)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert run_all("quick", tmp_path, names=[QUICK]) == {}
    assert (tmp_path / f"{QUICK}-quick-0" / "report.html").exists()
