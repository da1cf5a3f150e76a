"""The command line: what it prints, and how it refuses."""

import json
import signal
import subprocess
import sys
from importlib.metadata import version

import jax
import numpy as np
import pytest

import symmetrax as sx
from symmetrax import _commands
from symmetrax.cli import main
from symmetrax.studies import claims, evaluation
from symmetrax.studies._registry import EXPERIMENTS, run_experiment
from symmetrax.studies.core import _runner
from symmetrax.studies.core._artifacts import usage
from symmetrax.studies.core._console import Reporter
from symmetrax.studies.core._statistics import over_tasks
from symmetrax.tasks._families import family_names


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """The command line sets variables for JAX; a test's process keeps its own."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


def refuse(capsys, *arguments):
    """Run a command that must fail: exit code 2, nothing printed but one line on standard error."""
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    captured = capsys.readouterr()
    assert stopped.value.code == 2
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


def test_the_version_is_told(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"symmetrax {version('symmetrax')}\n"


def test_an_interrupted_run_says_how_to_go_on(capsys, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(_commands, "run_experiment", stop)
    with pytest.raises(SystemExit) as stopped:
        main(["run", "fig3", "--out", "a folder"])
    assert stopped.value.code == 130
    recorded = capsys.readouterr().err
    assert recorded == (
        "symmetrax: stopped; the same command goes on from here: symmetrax run fig3 --out 'a folder'\n"
    )


def test_an_interrupt_ends_the_process_wherever_it_falls():
    """In a callback of the garbage collector, say, where an exception is told and forgotten."""
    script = (
        "import gc\nfrom symmetrax import _commands, cli\n"
        "def work(*_):\n"
        "    gc.callbacks.append(lambda *_: sum(range(1000)))\n"
        "    print('ready', flush=True)\n"
        "    while True: gc.collect(0)\n"
        "_commands.run_experiment = work\n"
        "cli.main(['run', 'fig3'])"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", script], stdout=pipe, stderr=pipe, text=True) as child:
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGINT)
        recorded = child.communicate(timeout=60)[1]
    assert child.returncode == 130
    assert recorded == "symmetrax: stopped; the same command goes on from here: symmetrax run fig3\n"


def test_an_option_that_is_misspelt_is_told_in_one_line(capsys):
    message = refuse(capsys, "run", "fig3", "--sed", "3")
    assert message == (
        "symmetrax: Unrecognized options: --sed, 3. Did you mean '--seed'? For help: symmetrax run --help\n"
    )


@pytest.mark.parametrize("command", list(_commands.COMMANDS))
def test_help_says_something_of_every_option(capsys, command):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert not stopped.value.code
    words = " ".join(capsys.readouterr().out.replace("\u2502", " ").split())
    assert "(default: )" not in words
    assert "None" not in words
    for option in _commands.options(_commands.COMMANDS[command]):
        assert option in words


def test_a_run_that_is_refused_leaves_no_folder(tmp_path, monkeypatch):
    def rejects(*_):
        raise ValueError("no images")

    monkeypatch.setattr(_runner, "run_study", rejects)
    with pytest.raises(ValueError, match="no images"):
        run_experiment("fig3", "quick", tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_an_arm_that_is_finished_shows_done(capsys):
    with Reporter().training("vanilla", 200):
        pass  # nothing to do: the checkpoint has all runs
    recorded = capsys.readouterr().err
    assert "200/200 done" in recorded
    assert "compiling" not in recorded.splitlines()[-1]


def test_list_names_every_experiment_and_family(capsys):
    main(["list"])
    printed = capsys.readouterr().out
    for name in (*EXPERIMENTS, *family_names(), "quick", "full"):
        assert name in printed


def test_help_imports_nothing_heavy():
    script = (
        "import sys\nfrom symmetrax.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'jax', 'numpy', 'matplotlib', 'equinox', 'optax', 'sklearn', 'rich.progress'}\n"
        "heavy |= {'plotly', 'jinja2'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "evaluate" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "fig33"], "Unknown experiment 'fig33'; choose one of demo, "),
        (
            ["run", "fig3", "--preset", "quck"],
            "Unknown preset 'quck'; choose one of quick, full. Did you mean",
        ),
        (
            ["evaluate", "nowhere.safetensors", "--family", "booth"],
            "There is no trained optimizer at nowhere",
        ),
    ],
)
def test_unknown_names_are_refused(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in refuse(capsys, *arguments)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_another_config_is_refused_and_untouched(capsys, tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"experiment": "fig3", "preset": "quick", "settings": {"seeds": 1}})
    )
    before = (tmp_path / "config.json").read_bytes()
    message = refuse(capsys, "run", "fig4", "--preset", "quick", "--out", str(tmp_path))
    assert "holds a run with other settings: experiment is fig3 there, fig4 here" in message
    assert (tmp_path / "config.json").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.fixture
def artifact(tmp_path):
    network = sx.learned.FlatGradientLSTM(2, algebra=1, width=4, key=jax.random.key(0))
    return sx.save(network, tmp_path / "it.safetensors", training={"family": "booth", "guarded": False})


def test_evaluate_prints_the_optimizer_beside_tuned_adam(capsys, artifact):
    main(["evaluate", str(artifact), "--family", "ellipse-random", "--steps", "3", "--tasks", "7"])
    printed = capsys.readouterr().out
    assert "learned" in printed
    assert "adam" in printed
    assert "it.safetensors on ellipse-random: loss after 3 steps" in printed


FAMILY = """
import symmetrax as sx
family = sx.tasks.make_family("regression")
def tiny(): return sx.tasks.RegressionFamily("tiny", dims=(2, 3, 2), samples=4)
number = 3
def booth(): return sx.tasks.booth()
"""


@pytest.mark.usefixtures("quick_compilation")
def test_evaluate_takes_a_family_of_ones_own_and_joined_networks(model, capsys):
    """The per-neuron network needs the symmetry of each task, and teleports."""
    (model / "mymodel.py").write_text(FAMILY)
    first, second = jax.random.split(jax.random.key(0))
    network = sx.learned.Joint(
        (
            sx.learned.CoordinatewiseLSTM(width=3, key=first),
            sx.learned.PerNeuronLSTM(width=3, depth=1, key=second),
        )
    )
    use = {"guard": {"jump": "inf"}, "order": "step-first"}
    path = sx.save(network, model / "both[1].safetensors", training={"schedule": [0, 2], "use": use})
    main(["evaluate", str(path), "--family", "mymodel:tiny", "--steps", "3", "--tasks", "5"])
    printed = capsys.readouterr().out
    assert "both[1].safetensors on mymodel:tiny: loss after 3 steps" in printed
    assert "rejected" in printed  # as every column that has something to tell
    assert "grads" not in printed
    assert "0 to inf" not in printed


def test_a_family_is_an_object_or_a_function_that_makes_one(model):
    (model / "mymodel.py").write_text(FAMILY)
    assert evaluation._own_family("mymodel:family").name == "regression"
    assert evaluation._own_family("mymodel:tiny").name == "tiny"
    for name, kind in (("number", "int"), ("booth", "")):
        with pytest.raises(ValueError, match=f"mymodel:{name} must be a task family .* got {kind}"):
            evaluation._own_family(f"mymodel:{name}")


def test_evaluate_follows_a_card_to_the_letter():
    """The same steps teleport, under the same guard, in the same order."""
    network = sx.learned.FlatGradientLSTM(2, algebra=1, width=3, depth=1, key=jax.random.key(0))
    rule = sx.UpdateRule(guard=sx.Guard(jump=np.inf, relative=0.5, shorten=True), order="teleport-first")
    for schedule in ([1, 3], [False, True, False, True]):
        card = json.loads(json.dumps({"schedule": schedule, "use": usage(rule)}))
        found = evaluation._rule(network, card, 4, sx.tasks.booth())
        assert found.schedule.tolist() == [False, True, False, True]
        assert (found.guard, found.order, found.transport) == (rule.guard, rule.order, rule.transport)
        assert found.gate == "hard"
    assert evaluation._rule(network, {"guarded": False}, 4, sx.tasks.booth()).guard is None
    plain = sx.learned.FlatGradientLSTM(2, width=3, depth=1, key=jax.random.key(0))
    assert not evaluation._rule(plain, {"schedule": [0]}, 4, sx.tasks.booth()).teleports


def test_the_interval_of_one_network_is_over_its_tasks():
    """In 95 of 100 cases the median of the law lies inside; checked where it is known."""
    random = np.random.default_rng(0)
    inside = [
        found.low <= 0.0 <= found.high
        for found in (over_tasks(random.normal(size=(1, 101))) for _ in range(2000))
    ]
    assert 0.94 < np.mean(inside) < 0.98
    assert over_tasks(np.zeros((1, 1))) == (0.0, -np.inf, np.inf)  # one task says nothing of others


def test_evaluate_refuses_what_does_not_fit(capsys, artifact):
    assert "Unknown family 'booht'" in refuse(capsys, "evaluate", str(artifact), "--family", "booht")
    assert "built for 2 parameters" in refuse(capsys, "evaluate", str(artifact), "--family", "digits")
    message = refuse(capsys, "evaluate", str(artifact), "--family", "booth", "--steps", "0")
    assert "at least one step" in message
    artifact.write_bytes(artifact.read_bytes()[:1000])
    assert "not a whole safetensors file" in refuse(capsys, "evaluate", str(artifact), "--family", "booth")


@pytest.mark.usefixtures("quick_compilation")
def test_claims_come_out_as_expected_and_say_so_in_json(capsys):
    main(["claims", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == len(claims.CLAIMS)
    for row, claim in zip(rows, claims.CLAIMS, strict=True):
        assert set(row) == {"claim", "source", "measured", "bound", "outcome", "condition", "without"}
        known = "does not hold" if claim.wrong else "holds only if" if claim.condition else "holds"
        assert row["outcome"] == known, row
        assert (row["measured"] <= row["bound"]) != claim.wrong
        assert (row["without"] is None) == (claim.condition is None)
    outcomes = {row["outcome"] for row in rows}
    assert outcomes == {"holds", "holds only if", "does not hold"}


@pytest.mark.parametrize(
    ("measured", "condition", "wrong", "outcome"),
    [
        (0.1, None, False, "holds"),
        (0.5, None, False, "holds"),
        (0.9, None, False, "failed"),
        (np.nan, None, False, "failed"),
        (0.9, None, True, "does not hold"),
        (0.1, None, True, "failed"),
        (np.nan, None, True, "failed"),
        ((0.1, 0.9), "it rains", False, "holds only if"),
        ((0.1, np.inf), "it rains", False, "holds only if"),
        ((0.1, 0.2), "it rains", False, "failed"),  # it holds without the condition, too
        ((0.9, 0.9), "it rains", False, "failed"),
        (0.1, "it rains", False, "failed"),  # nothing was measured without it
    ],
)
def test_what_becomes_of_a_claim(measured, condition, wrong, outcome):
    number = claims.Split(*measured) if isinstance(measured, tuple) else measured
    claim = claims.Claim("a claim", "nowhere", lambda: number, 0.5, condition, wrong)
    row = claims.check(claim)
    assert row["outcome"] == outcome
    assert row["condition"] == condition


def test_the_table_tells_bounds_from_below_and_conditions(capsys, monkeypatch):
    rows = (
        claims.Claim("cats bark", "a book", lambda: 0.9, 0.5, wrong=True),
        claims.Claim("streets are wet", "a book", lambda: claims.Split(0.0, 0.7), 0.1, condition="it rains"),
    )
    monkeypatch.setattr(claims, "CLAIMS", rows)
    main(["claims"])
    words = " ".join(capsys.readouterr().out.split())
    assert "does not hold 9.0e-01 >= 5.0e-01 cats bark (a book)" in words
    assert "<= 1.0e-01 streets are wet (a book); only if it rains, else 7.0e-01" in words


def test_a_failed_claim_gives_exit_code_1(capsys, monkeypatch):
    broken = claims.Claim("one is small", "nowhere", lambda: 1.0, 0.5)
    undefined = claims.Claim("NaN is small", "nowhere", lambda: np.nan, 0.5)
    for claim in (broken, undefined):
        monkeypatch.setattr(claims, "CLAIMS", (claim,))
        with pytest.raises(SystemExit) as stopped:
            main(["claims"])
        assert stopped.value.code == 1
        assert "failed" in capsys.readouterr().out


MODEL = """
import jax, jax.numpy as jnp

def relu():
    x = jax.random.normal(jax.random.key(0), (8, 3))
    keys = jax.random.split(jax.random.key(1))
    params = {"w": jax.random.normal(keys[0], (4, 3)), "out": jax.random.normal(keys[1], (2, 4))}
    def loss(p, x):
        return jnp.mean((jax.nn.relu(x @ p["w"].T) @ p["out"].T - x[:, :2]) ** 2)
    return loss, params, lambda key: jax.random.normal(key, (8, 3))

def nothing():
    return 3

number = 4
"""


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A module in the working directory that nobody has imported."""
    (tmp_path / "mymodel.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("mymodel", None)
    sys.path[:] = [path for path in sys.path if path != str(tmp_path)]


def test_discover_prints_cost_table_and_code_and_writes_json(model, capsys):
    main(["discover", "mymodel:relu", "--double", "--json", "found.json", "--heads", "1"])
    printed = capsys.readouterr().out
    assert printed.startswith("Evaluations of the loss: 3 checks, 16 gradients at generic points")
    assert "s0: PositiveDiagonal(4)  exact" in printed
    assert "s0 = sx.NetworkSymmetry(" in printed
    assert "'w': 's0* _'," in printed
    assert "Certified on fresh data too" in printed
    recorded = json.loads((model / "found.json").read_text())
    assert [found["outcome"] for found in recorded["found"]] == ["exact", "exact"]
    assert recorded["found"][0]["certificate"]["tolerance"] == 1e-9
    assert not jax.config.jax_enable_x64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mymodel"], "Name a function as MODULE:FUNCTION"),
        (["nomodel:relu"], "There is no module 'nomodel'"),
        (["mymodel:rely"], "mymodel has no function 'rely'. Did you mean 'relu'?"),
        (["mymodel:number"], "mymodel has no function 'number'"),
        (["mymodel:nothing"], "must return (loss, params) or (loss, params, batch)"),
        (["mymodel:relu", "--groups", "Permutations"], "Did you mean 'Permutation'?"),
        (["mymodel:relu", "--json", "nowhere/found.json"], "The folder of nowhere/found.json does not exist"),
    ],
)
def test_discover_refuses(model, capsys, arguments, message):
    assert message in refuse(capsys, "discover", *arguments)


def test_discover_names_a_budget_that_is_too_small(model, capsys):
    with pytest.raises(SystemExit):
        main(["discover", "mymodel:relu", "--budget", "3"])
    assert "A budget of 3 evaluations is too small" in capsys.readouterr().err
