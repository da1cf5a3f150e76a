"""Hundreds of command lines: each ends in one line that helps, and leaves no half-written files."""

import json
import sys

import jax
import pytest

import symmetrax as sx

# Files are damaged array by array, which takes the functions that read and write them.
from symmetrax._files import load_arrays, save_arrays
from symmetrax.cli import main

MODELS = """
import sys
import jax, jax.numpy as jnp, numpy as np, symmetrax as sx

x = jax.random.normal(jax.random.key(0), (6, 3))
params = {"w": jnp.ones((2, 3)) + 0.1 * x[:2], "out": x[2:4, :2]}

def loss(p):
    return jnp.mean((jax.nn.relu(x @ p["w"].T) @ p["out"].T - x[:, :2]) ** 2)

def good(): return loss, params
def raises(): raise RuntimeError("first line\\nsecond line")
def raises_value(): raise ValueError("mine")
def raises_library(): return sx.groups.PositiveDiagonal(0)
def raises_silently(): raise KeyError
def missing(): return {}["width"]
def asserts(): assert params is None
def recurs(): return recurs()
def opens(): return open("/no/such/file")
def leaves(): sys.exit(0)
def leaves_with_words(): sys.exit("bye")
def interrupts(): raise KeyboardInterrupt
def takes(width): return loss, params
def yields(): yield loss, params
def none(): return None
def one(): return (loss,)
def four(): return loss, params, None, None
def a_list(): return [loss, params]
def swapped(): return params, loss
def no_arrays(): return loss, {"w": "weights"}
def no_params(): return loss, None
def integers(): return (lambda p: jnp.sum(p)), jnp.arange(3)
def not_finite(): return loss, {"w": params["w"] * jnp.nan, "out": params["out"]}
def vector(): return (lambda p: p["w"]), params
def words(): return (lambda p: "loss"), params
def nothing(): return (lambda p: None), params
def constant(): return (lambda p: jnp.array(1.0)), params
def breaks(): return (lambda p: p["no"]), params
def branches(): return (lambda p: loss(p) if p["w"][0, 0] > 0 else 0.0), params
def misshapen(): return (lambda p: jnp.sum(p["w"] @ p["w"])), params
def exits(): return (lambda p: sys.exit(0)), params
def three(): return (lambda p, q, r: loss(p)), params
def bad_batch(): return (lambda p, b: loss(p)), params, (lambda key: 1 / 0)
def infinite(): return (lambda p: loss(p) / 0.0), params
def prints():
    print("hello")
    return 3

number = 4
text = "good"
family = sx.tasks.make_family("booth")
def made(): return family
def task(): return sx.tasks.booth()
def names(): return "booth"

class Bare(sx.tasks.AbstractTaskFamily):
    name: str = "bare"
    def draw(self, key): return ()
    def task(self, drawn, shape=None): raise RuntimeError("no task")

class Broken(sx.tasks.AbstractTaskFamily):
    name: str = "broken"
    def draw(self, key): return ()
    def task(self, drawn, shape=None): return 7

bare, broken, kind = Bare(), Broken(), Bare
"""

OTHERS = {
    "quits": "import sys\nsys.exit(0)\n",
    "fails": "1 / 0\n",
    "unparsed": "def f(:\n",
    "indented": "  x = 1\n y = 2\n",
    "imports": "import no_such_package\n",
    "circular": "import circular\ncircular.x\n",
    "empty": "",
    "stops": "raise KeyboardInterrupt\n",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory with modules, artifacts and run folders, good and bad."""
    place = tmp_path_factory.mktemp("vectors")
    for name, text in {"models": MODELS, **OTHERS}.items():
        (place / f"{name}.py").write_text(text)
    network = sx.learned.FlatGradientLSTM(2, algebra=1, width=3, depth=1, key=jax.random.key(0))
    good = sx.save(network, place / "good.safetensors", training={"family": "booth"})
    arrays, card = load_arrays(good, "artifact")
    trainings = {
        "words": {"schedule": "abc"},
        "mapping": {"schedule": {"0": True}},
        "halves": {"schedule": [1.5]},
        "strings": {"schedule": ["a"]},
        "nested": {"schedule": [[0]]},
        "used": {"use": 3},
        "guards": {"use": {"guard": "none"}},
        "negative": {"use": {"guard": {"jump": "-1"}}},
        "order": {"use": {"order": "backwards"}},
    }
    for name, training in trainings.items():
        save_arrays(place / f"{name}.safetensors", arrays, {**card, "training": training})
    (place / "cut.safetensors").write_bytes(good.read_bytes()[:200])
    (place / "blank.safetensors").write_bytes(b"")
    (place / "text.safetensors").write_text("hello")
    (place / "file").write_text("in the way")
    (place / "full").mkdir()
    (place / "full" / "file").write_text("in the way")
    for name, text in {
        "object": "{}",
        "null": "null",
        "torn": '{"groups": {"a',
        "number": "3",
        "groups": '{"groups": 3, "verdicts": []}',
        "other": '{"experiment": "fig3", "groups": 3, "verdicts": []}',
        "bytes": "\udcff",
    }.items():
        _run_folder(place / f"results-{name}", text)
    for name, text in {"null": "null", "torn": '{"experim', "list": "[]", "bytes": "\udcff"}.items():
        folder = place / f"config-{name}"
        folder.mkdir()
        (folder / "config.json").write_text(text, errors="surrogateescape")
    (place / "config-folder" / "config.json").mkdir(parents=True)
    return place


def _run_folder(folder, results):
    """A run of fig3 that is complete, but for what its results say."""
    from symmetrax.studies import plane
    from symmetrax.studies.core._folder import RunFolder, as_json

    settings = json.loads(as_json(plane.STUDIES["fig3"].preset("quick").identity()))
    RunFolder(folder, "fig3", "quick", settings)
    (folder / "results.json").write_text(results, errors="surrogateescape")


@pytest.fixture(autouse=True)
def environment(place, monkeypatch, tmp_path):
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    known = set(sys.modules)
    yield
    for name in {"models", *OTHERS} & (set(sys.modules) - known):
        del sys.modules[name]


def tell(arguments, capsys):
    """Run a command: its exit code, and what it printed."""
    code = 0
    try:
        main(arguments)
    except SystemExit as stopped:
        code = stopped.code or 0
    return code, *capsys.readouterr()


def everything(place):
    return {
        str(path.relative_to(place)): path.read_bytes() if path.is_file() else None
        for path in place.rglob("*")
    }


def words(text):
    return text.split(" ")


LONG = "x" * 300
HUGE = str(10**22)

#: Functions of the module of models that return, raise or do something that is of no use.
RETURNS = (
    *("raises", "raises_value", "raises_library", "raises_silently", "missing", "asserts", "recurs", "opens"),
    *("leaves", "leaves_with_words", "takes", "yields", "none", "one", "four", "a_list", "swapped"),
    *("no_arrays", "no_params", "integers", "not_finite", "vector", "words", "nothing", "constant", "breaks"),
    *("branches", "misshapen", "exits", "three", "bad_batch", "infinite", "prints"),
)

REJECTED = [
    # what tyro rejects
    [],
    words("rum"),
    words("--sed"),
    words("run"),
    words("run fig3 fig4"),
    words("run fig3 --sed 3"),
    words("run fig3 --seed"),
    words("run fig3 --seed x"),
    words("run fig3 --seed 1.5"),
    words("evaluate good.safetensors"),
    words("evaluate good.safetensors --family booth --steps many"),
    words("claims --json=3"),
    words("list all"),
    words("discover models:good --heads two"),
    words("discover models:good --trials"),
    ["run", ""],
    [""],
    # names, seeds and sizes
    words("run fig33"),
    words("run fig3 --preset quck"),
    words("run fig3 --preset quick --seed -1"),
    words(f"run fig3 --preset quick --seed {HUGE}"),
    words("evaluate good.safetensors --family booht"),
    words("evaluate good.safetensors --family digits"),
    words("evaluate good.safetensors --family booth --steps 0"),
    words("evaluate good.safetensors --family booth --steps -3"),
    words("evaluate good.safetensors --family booth --tasks 0"),
    words("evaluate good.safetensors --family booth --tasks 1000000000000"),
    words("evaluate good.safetensors --family booth --tasks 1000000 --steps 1"),
    words(f"evaluate good.safetensors --family booth --steps {HUGE}"),
    words("evaluate good.safetensors --family booth --seed -1"),
    words(f"evaluate good.safetensors --family booth --seed {HUGE}"),
    words(f"discover models:good --seed {HUGE}"),
    words("discover models:good --seed -1"),
    words("discover models:good --trials 0"),
    words("discover models:good --trials -1"),
    words("discover models:good --trials 1000000000000"),
    words("discover models:good --budget -1"),
    words("discover models:good --budget 0"),
    words("discover models:good --heads 0"),
    words("discover models:good --heads -2"),
    words("discover models:good --groups Permutations"),
    # folders of runs
    words("run fig3 --preset quick --out file"),
    words("run fig3 --preset quick --out file/below"),
    words("run fig3 --preset quick --out full"),
    words("run fig3 --preset quick --out /dev/null"),
    words("run fig3 --preset quick --out /dev/null/run"),
    words("run fig3 --preset quick --out /proc/run"),
    words("run fig3 --preset quick --out " + LONG),
    *(
        words(f"run fig3 --preset quick --out results-{name}")
        for name in ("object", "null", "torn", "number", "groups", "bytes", "other")
    ),
    *(
        words(f"run fig3 --preset quick --out config-{name}")
        for name in ("null", "torn", "list", "bytes", "folder")
    ),
    # artifacts
    *(
        words(f"evaluate {path} --family booth")
        for path in ("nowhere.safetensors", "full", "/dev/null", "/proc/self/mem", "file", LONG)
    ),
    *(
        words(f"evaluate {name}.safetensors --family booth")
        for name in ("cut", "blank", "text", "words", "mapping", "halves", "strings", "nested", "used")
    ),
    *(words(f"evaluate {name}.safetensors --family booth") for name in ("guards", "negative", "order")),
    # families of the user's own
    *(
        words(f"evaluate good.safetensors --family {name}")
        for name in (
            "models:number",
            "models:text",
            "models:none",
            "models:names",
            "models:task",
            "models:raises",
            "models:leaves",
            "models:takes",
            "models:bare",
            "models:broken",
            "models:kind",
            "models:",
            ":family",
            "models:famly",
            "modles:family",
            "fails:family",
            "quits:family",
        )
    ),
    # models
    *(
        words(f"discover {name}")
        for name in (
            "models",
            "models:",
            ":good",
            ":",
            "models:good:more",
            ".models:good",
            "..models:good",
            "models.py:good",
            "./models.py:good",
            "models.more:good",
            "no.such:good",
            "models:goood",
            "models:number",
            "models:__name__",
            "json:nothing",
            *OTHERS,
        )
    ),
    *(words(f"discover {name}:f") for name in OTHERS if name != "stops"),
    *(words(f"discover models:{name}") for name in RETURNS),
    *(
        words(f"discover models:good --json {path}")
        for path in ("nowhere/found.json", "full", "/dev/null/found.json", "file/found.json", LONG)
    ),
    # reports
    words("report"),
    words("report --out page.html"),
    words("report results-groups nowhere"),
    *(words(f"report {path}") for path in ("nowhere", "file", "full", "/dev/null", "/proc/self", LONG)),
    *(words(f"report config-{name}") for name in ("null", "torn", "list", "bytes", "folder")),
    *(words(f"report results-{name}") for name in ("object", "null", "torn", "number", "bytes")),
    *(
        words(f"report results-groups --out {path}")
        for path in ("full", "file/page.html", "/dev/null/it", LONG)
    ),
]


#: One in three always runs.
VECTORS = [pytest.param(v, marks=[pytest.mark.slow] if i % 3 else []) for i, v in enumerate(REJECTED)]


@pytest.mark.parametrize("arguments", VECTORS, ids=lambda a: " ".join(a)[:60])
def test_bad_input_is_told_in_one_line_and_nothing_is_written(arguments, place, capsys):
    before = everything(place)
    code, out, err = tell(arguments, capsys)
    assert code == 2, err
    assert err.startswith("symmetrax: "), err
    assert err.count("\n") == 1, err
    assert len(err.partition("For help")[0]) > 30, err
    assert "Traceback" not in err + out
    assert everything(place) == before


@pytest.mark.parametrize("arguments", [["discover", "models:interrupts"], ["discover", "stops:f"]])
def test_an_interrupt_says_how_to_go_on(arguments, place, capsys):
    before = everything(place)
    code, _, err = tell(arguments, capsys)
    assert code == 130
    assert err == f"symmetrax: stopped; the same command starts anew: symmetrax {' '.join(arguments)}\n"
    assert everything(place) == before
