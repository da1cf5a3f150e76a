"""Files that several processes write and read, links, devices, what the dead left, and who holds a folder."""

import json
import os
import pathlib
import signal
import socket
import stat
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st

from symmetrax._files import (
    check_writable,
    load_arrays,
    named_arrays,
    open_arrays,
    save_arrays,
    write_atomic,
)
from symmetrax.studies.core._folder import RunFolder

fcntl = pytest.importorskip("fcntl")

DTYPES = [bool, *(f"{sort}{bits}" for sort in ("int", "uint") for bits in (8, 16, 32, 64)), "complex64"]
DTYPES += ["float16", "float32", "float64", jnp.bfloat16]


@given(
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 3), max_size=3),
    st.binary(min_size=27 * 8, max_size=27 * 8),
)
def test_arrays_of_every_dtype_come_back_bit_for_bit(tmp_path_factory, dtype, shape, content):
    size = int(np.prod(shape))
    content = bytes(b & 1 for b in content) if dtype is bool else content
    array = np.frombuffer(content, dtype)[:size].reshape(shape)
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    save_arrays(path, {"x": array, "other": np.zeros(1)}, {"any": "card"})
    arrays, card = load_arrays(path, "array")
    assert arrays["x"].dtype == array.dtype
    assert arrays["x"].shape == tuple(shape)
    assert arrays["x"].tobytes() == array.tobytes()
    assert card == {"any": "card"}


def test_other_programs_can_read_the_files(tmp_path):
    path = tmp_path / "it.safetensors"
    save_arrays(path, {"w": np.arange(6.0).reshape(2, 3), "n": np.asarray(3)}, {"kind": "x"})
    with safetensors.safe_open(path, framework="numpy") as file:
        assert np.array_equal(file.get_tensor("w"), np.arange(6.0).reshape(2, 3))
        assert file.get_tensor("n").shape == ()
        assert json.loads(file.metadata()["card"]) == {"kind": "x"}


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_typed_keys_come_back_with_their_implementation(tmp_path, implementation):
    keys = jax.random.split(jax.random.key(7, impl=implementation), (2, 3))
    save_arrays(tmp_path / "keys.safetensors", named_arrays({"a": {"k": keys}}), {})
    found = load_arrays(tmp_path / "keys.safetensors", "keys")[0]["a.k"]
    assert found.dtype == keys.dtype
    assert np.array_equal(jax.random.key_data(found), jax.random.key_data(keys))


def test_a_key_of_an_unknown_implementation_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "keys.safetensors"
    monkeypatch.setattr("jax.random.key_impl", lambda key: "dice")
    save_arrays(path, {"k": jax.random.key(0)}, {})
    with pytest.raises(ValueError, match="The card of"), open_arrays(path, "keys"):
        pass


def test_names_that_coincide_are_refused():
    with pytest.raises(ValueError, match=r"Two arrays have the same name 'a\.b'"):
        named_arrays({"a.b": jnp.ones(1), "a": {"b": jnp.ones(1)}})


def test_what_the_format_lacks_is_not_written(tmp_path):
    for array in (np.ones(1, "complex128"), np.ones(1, jnp.float8_e5m2), np.array([print])):
        with pytest.raises(ValueError, match=f"'w' has dtype {array.dtype}, which the format lacks"):
            save_arrays(tmp_path / "it.safetensors", {"w": array}, {})
    assert not list(tmp_path.iterdir())


def test_links_are_followed(tmp_path):
    target, link, far = tmp_path / "target", tmp_path / "link", tmp_path / "far"
    target.write_text("old")
    link.symlink_to("target")
    write_atomic(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    far.symlink_to("there/later")  # which is made
    write_atomic(far, "far")
    assert (tmp_path / "there" / "later").read_text() == "far"


def test_what_is_no_regular_file_is_left_alone(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "to pipe").symlink_to("pipe")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    before = {path.name: os.lstat(path) for path in tmp_path.iterdir()}
    for name, words in {"pipe": "a pipe", "to pipe": "a pipe", "socket": "a socket", ".": "a folder"}.items():
        with pytest.raises(ValueError, match=f"it is {words}, and only a regular file is replaced"):
            write_atomic(tmp_path / name, "x")
    for place in ("/dev/null", "/dev/full", "/dev/stdin/x", tmp_path / "circle", tmp_path / ("x" * 300)):
        with pytest.raises(ValueError, match="Cannot write"):
            write_atomic(place, "x")
    listener.close()
    assert {path.name: os.lstat(path).st_ino for path in tmp_path.iterdir()} == {
        name: found.st_ino for name, found in before.items()
    }


def test_a_device_node_stays_one(tmp_path):
    node = tmp_path / "dev"
    try:
        os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes device nodes")
    with pytest.raises(ValueError, match="it is a device"):
        write_atomic(node, "x")
    assert stat.S_ISCHR(node.stat().st_mode)


def test_what_the_process_prints_to_is_not_replaced(tmp_path):
    """Else all that it prints afterwards would be lost."""
    out = tmp_path / "out.txt"
    code = """
from symmetrax._files import check_writable
print("printed", flush=True)
for path in ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "out.txt"):
    try:
        check_writable(path)
    except ValueError as error:
        assert "what this process prints goes there already" in str(error)
    else:
        print("not refused:", path)
"""
    with out.open("w") as file:
        subprocess.run([sys.executable, "-c", code], stdout=file, cwd=tmp_path, check=True)
    assert out.read_text() == "printed\n"


def test_the_mode_of_a_file_is_kept(tmp_path):
    path = tmp_path / "private"
    path.write_text("old")
    path.chmod(0o600)
    write_atomic(path, "new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_file_that_may_not_be_written_is_not_replaced(tmp_path):
    path = tmp_path / "fixed"
    path.write_text("old")
    path.chmod(0o400)
    with pytest.raises(ValueError, match="no permission"):
        check_writable(path)


def test_writers_and_readers_of_one_path_never_meet_a_part(tmp_path):
    """Threads lock like processes do: every read finds a whole file that somebody wrote."""
    path, rounds = tmp_path / "shared.safetensors", 40
    save_arrays(path, {"x": np.zeros(50_000)}, {"writer": 0})
    failures, done = [], threading.Event()

    def write(writer):
        try:
            for _ in range(rounds):
                save_arrays(path, {"x": np.full(50_000, float(writer))}, {"writer": writer})
        except Exception as error:
            failures.append(error)

    def read():
        try:
            while not done.is_set():
                arrays, card = load_arrays(path, "file")
                assert np.all(arrays["x"] == card["writer"])
        except Exception as error:
            failures.append(error)

    writers = [threading.Thread(target=write, args=(i,)) for i in (1, 2, 3)]
    readers = [threading.Thread(target=read) for _ in range(2)]
    for thread in (*writers, *readers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in readers:
        thread.join()
    assert failures == []
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_what_dead_writers_left_is_swept_away_and_what_live_ones_write_is_not(tmp_path):
    path = tmp_path / "run"
    (tmp_path / ".run.123-dead.tmp").write_text("half")
    (tmp_path / ".other.123-dead.tmp").write_text("of another file")
    with (tmp_path / ".run.124-live.tmp").open("wb") as live:
        fcntl.flock(live, fcntl.LOCK_EX)
        write_atomic(path, "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".other.123-dead.tmp", ".run.124-live.tmp", "run"]
    write_atomic(path, "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".other.123-dead.tmp", "run"]


def test_names_of_the_greatest_length_can_be_written(tmp_path):
    for name in ("x" * 255, "ä" * 127):
        write_atomic(tmp_path / name, name)
        assert (tmp_path / name).read_text() == name


SETTINGS = {"seeds": 3}
# Holds the lock of a folder until it is killed, as a run does, without the time it takes to import JAX.
HOLDER = """
import fcntl, json, sys, time
file = open(sys.argv[1] + "/.lock", "a+b")
fcntl.flock(file, fcntl.LOCK_EX)
file.write(json.dumps({"pid": 4711, "host": "elsewhere", "since": "yesterday"}).encode())
file.flush()
print("held", flush=True)
time.sleep(600)
"""


def test_a_folder_has_one_process_at_a_time(tmp_path):
    folder = RunFolder(tmp_path / "run", "fig3", "quick", SETTINGS)
    again = RunFolder(tmp_path / "run", "fig3", "quick", SETTINGS)  # looking is allowed
    with folder.alone():
        with (
            pytest.raises(ValueError, match=rf"is in use by process {os.getpid()} on \S+ since 2"),
            again.alone(),
        ):
            pass
        assert again.finished() is None
    with again.alone():
        pass
    assert [path.name for path in folder.path.iterdir()] == ["config.json"]


def test_the_holder_of_a_folder_is_named_and_its_death_lets_go(tmp_path):
    folder = RunFolder(tmp_path, "fig3", "quick", SETTINGS)
    child = subprocess.Popen([sys.executable, "-S", "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        message = r"is in use by process 4711 on elsewhere since yesterday\. Wait until it is done, or choose"
        with pytest.raises(ValueError, match=message), folder.alone():
            pass
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    with folder.alone():
        told = json.loads((tmp_path / ".lock").read_text())
        assert told["pid"] == os.getpid()
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_run_folders_are_found_through_links(tmp_path):
    (tmp_path / "link").symlink_to("disk/run")  # which is made
    folder = RunFolder(tmp_path / "link", "fig3", "quick", SETTINGS)
    folder.arrays("losses", {"x": np.ones(2)})
    folder.results({"loss": 1.0})
    names = sorted(path.name for path in (tmp_path / "disk" / "run").iterdir())
    assert names == ["config.json", "losses.npz", "results.json"]
    with np.load(folder.path / "losses.npz") as arrays:
        assert arrays["x"].tolist() == [1.0, 1.0]


def test_a_run_folder_replaces_nothing_but_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="exists and is not a run folder"):
        RunFolder(tmp_path / "pipe", "fig3", "quick", SETTINGS)
    folder = RunFolder(tmp_path / "run", "fig3", "quick", SETTINGS)
    os.mkfifo(folder.path / "losses.npz")
    (folder.path / "results.json").symlink_to("/dev/null")
    with pytest.raises(ValueError, match="it is a pipe"):
        folder.arrays("losses", {"x": np.ones(2)})
    with pytest.raises(ValueError, match="it is a device"):
        folder.results({})
    assert not pathlib.Path("/dev/null").is_file()


@pytest.mark.parametrize("content", ["", "{}", "null", "[1]", "{", "[" * 100_000, "\xff"])
def test_results_that_are_none_are_refused(tmp_path, content):
    folder = RunFolder(tmp_path, "fig3", "quick", SETTINGS)
    (tmp_path / "results.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"results\.json has no results"):
        folder.finished()


@pytest.mark.parametrize("content", ["", "{}", "null", "[1]", "{", "[" * 100_000, "\xff"])
def test_a_config_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"config\.json is not the config of a run"):
        RunFolder(tmp_path, "fig3", "quick", SETTINGS)
