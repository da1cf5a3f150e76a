"""A training that is killed again and again ends in the same weights as one that never was."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import safetensors

CHUNKS, RUNS_PER_CHUNK = 100, 5

# Trains with a checkpoint, and writes the weights at the end. Telling its progress slows it down a little, so
# that there is something to interrupt.
CHILD = f"""
    import sys, time
    import jax, jax.numpy as jnp, numpy as np, optax, symmetrax as sx

    folder = sys.argv[1]
    rule = sx.UpdateRule(schedule=jnp.arange(10) % 3 == 2)
    family = sx.tasks.make_family("ellipse-random")
    trained = sx.meta_train(
        lambda key: sx.learned.FlatGradientLSTM(2, algebra=1, width=8, key=key),
        sx.metatrain.TruncatedBPTT(family, rule, steps=10, truncation=5, tasks=2),
        optax.adam(1e-2),
        jax.random.key(0),
        outer_steps={CHUNKS * RUNS_PER_CHUNK},
        seeds=2,
        chunk={RUNS_PER_CHUNK},
        checkpoint=folder + "/run.safetensors",
        progress=lambda now: time.sleep(0.01),
    )
    leaves = jax.tree.leaves((trained.networks, trained.losses, trained.skipped))
    np.savez(folder + "/weights.npz", *leaves)
"""


@pytest.fixture
def start(tmp_path):
    """Start a child that trains in a folder; compiled programs are kept for the next one."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    children = []

    def begin(folder):
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-c", textwrap.dedent(CHILD), str(folder)]
        with (tmp_path / "errors.txt").open("w") as errors:
            children.append(subprocess.Popen(command, env=environment, stderr=errors))
        return children[-1]

    yield begin
    for child in children:
        child.kill()
        child.wait()


def chunks_done(folder):
    """How far the checkpoint is, in chunks; it must be whole at any moment."""
    path = folder / "run.safetensors"
    if not path.exists():
        return 0
    with safetensors.safe_open(path, framework="numpy") as file:
        return int(file.get_tensor("done")) // RUNS_PER_CHUNK


def wait(child, until):
    while child.poll() is None and not until():
        time.sleep(0.001)


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_a_training_killed_at_random_moments_ends_in_the_same_weights(kills, start, tmp_path):
    """Kills fall into the start-up, between checkpoints and into their writing."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert start(whole).wait() == 0, (tmp_path / "errors.txt").read_text()
    rng, reached = np.random.default_rng(0), []
    for kill in range(kills):
        child, before, began = start(broken), chunks_done(broken), time.monotonic()
        if kill % 4 == 3:  # during the start-up
            delay = rng.uniform(0.0, 1.0)
            wait(child, lambda: time.monotonic() > began + delay)  # noqa: B023
        else:  # some chunks later, and a random part of one more
            more, delay = rng.integers(1, 6), rng.uniform(0.0, 0.03)
            wait(child, lambda: chunks_done(broken) >= before + more)  # noqa: B023
            time.sleep(delay)
        assert child.poll() is None, (tmp_path / "errors.txt").read_text()
        child.send_signal(signal.SIGKILL)
        child.wait()
        reached.append(chunks_done(broken))
    assert reached == sorted(reached)
    assert len({done for done in reached if 0 < done < CHUNKS}) >= kills // 2
    assert not (broken / "weights.npz").exists()
    assert start(broken).wait() == 0, (tmp_path / "errors.txt").read_text()
    expected, found = np.load(whole / "weights.npz"), np.load(broken / "weights.npz")
    assert expected.files == found.files
    assert len(found.files) > 8
    for name in expected.files:
        assert np.array_equal(found[name], expected[name])
    assert sorted(path.name for path in broken.iterdir()) == ["run.safetensors", "weights.npz"]
