"""The core without the packages of the extra `studies`."""

import ast
import pathlib
import subprocess
import sys
import textwrap

import pytest

import symmetrax

# The list of what the command line needs beyond the core.
from symmetrax._optional import STUDIES

SOURCE = pathlib.Path(symmetrax.__file__).parent
#: The command line, which runs the experiments.
THIN = ("cli.py", "_commands.py")

BLOCKED = f"import sys; sys.modules.update(dict.fromkeys({STUDIES!r}))\n"

EXAMPLE = """
import jax, jax.numpy as jnp, optax, tempfile
import symmetrax as sx

params = {"w": jnp.ones((4, 3)), "b": jnp.zeros(4), "out": jnp.ones((2, 4))}
x = jax.random.normal(jax.random.key(0), (8, 3))
loss = lambda p: jnp.mean((jax.nn.relu(x @ p["w"].T + p["b"]) @ p["out"].T - x[:, :2]) ** 2)
found = sx.find_symmetries(loss, params, jax.random.key(1))
optimizer = sx.teleported(optax.adam(1e-2), found.joined(compact=False))
state = optimizer.init(params)
updates, state = optimizer.update(jax.grad(loss)(params), state, params, value_fn=loss)
assert found.exact and state.outcomes[0] == 1
with tempfile.TemporaryDirectory() as folder:
    network = sx.learned.CoordinatewiseLSTM(width=3, depth=1, key=jax.random.key(2))
    path = sx.save(network, folder + "/it.safetensors")
    sx.load(path)
"""


def python(code):
    command = [sys.executable, "-c", BLOCKED + textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_finding_teleporting_and_loading_need_the_core_alone():
    done = python(EXAMPLE)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [["list"], ["run", "demo"], ["--help"]])
def test_the_command_line_says_how_to_install_what_it_needs(arguments):
    done = python(f"from symmetrax.cli import main; main({arguments!r})")
    assert done.returncode == 2
    assert done.stderr == 'symmetrax: The command line needs tyro: pip install "symmetrax[studies]"\n'


def test_data_say_how_to_install_what_they_need():
    done = python("from symmetrax.tasks._data import digits; digits()")
    assert 'digits() needs sklearn: pip install "symmetrax[studies]"' in done.stderr


def test_no_module_of_the_core_imports_the_experiments():
    for path in SOURCE.rglob("*.py"):
        if path.relative_to(SOURCE).parts[0] in ("studies", *THIN):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.startswith("symmetrax.studies") for name in names), path


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_wheel_alone_finds_teleports_and_loads(tmp_path):
    root, interpreter = SOURCE.parents[1], tmp_path / "venv" / "bin" / "python"
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, root]
    subprocess.run(build, check=True)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([interpreter, "-m", "pip", "install", "--quiet", wheel], check=True)
    installed = subprocess.run([interpreter, "-m", "pip", "list"], capture_output=True, text=True, check=True)
    assert not {"tyro", "rich", "matplotlib", "scikit-learn", "plotly", "jinja2"} & {
        *installed.stdout.split()
    }
    subprocess.run([interpreter, "-c", EXAMPLE], check=True, cwd=tmp_path)
