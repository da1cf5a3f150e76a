"""Processes that write one file are killed: it is whole at any moment, and the next one tidies up."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from symmetrax._files import load_arrays, save_arrays

fcntl = pytest.importorskip("fcntl")

# Writes until it is killed, and says when it begins.
WRITER = """
import sys
import numpy as np
from symmetrax._files import save_arrays
print("ready", flush=True)
number = float(sys.argv[2])
while True:
    save_arrays(sys.argv[1], {"x": np.full(200_000, number)}, {"number": number})
"""


@pytest.fixture
def start(tmp_path):
    children = []

    def begin(number):
        command = [sys.executable, "-c", WRITER, str(tmp_path / "it.safetensors"), str(number)]
        children.append(subprocess.Popen(command, stdout=subprocess.PIPE))
        return children[-1]

    yield begin
    for child in children:
        child.kill()
        child.communicate()


@pytest.mark.parametrize(("rounds", "writers"), [(1, 2), pytest.param(10, 3, marks=pytest.mark.slow)])
def test_writers_that_are_killed_leave_a_whole_file(start, tmp_path, rounds, writers):
    path, rng, reads = tmp_path / "it.safetensors", np.random.default_rng(0), 0
    for _ in range(rounds):
        children = [start(number) for number in range(writers)]
        assert all(child.stdout.readline() == b"ready\n" for child in children)
        deadline = time.monotonic() + 0.3 + rng.uniform(0.0, 0.1)
        while time.monotonic() < deadline:
            if path.exists():
                arrays, card = load_arrays(path, "file")
                assert np.all(arrays["x"] == card["number"])
                reads += 1
        for child in children:
            child.send_signal(signal.SIGKILL)
            child.wait()
            time.sleep(rng.uniform(0.0, 0.02))
    assert reads > 5 * rounds
    arrays, card = load_arrays(path, "file")
    assert np.all(arrays["x"] == card["number"])
    save_arrays(path, {"x": np.zeros(1)}, {"number": 0.0})
    assert os.listdir(tmp_path) == [path.name]
