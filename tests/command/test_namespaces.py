"""The public names: where they are, and that each has documentation with an example."""

import inspect
import pathlib
import subprocess
import sys
import types

import pytest

import symmetrax as sx

NAMESPACES = [name for name in sx.__all__ if isinstance(getattr(sx, name), types.ModuleType)]


def test_few_names_stand_at_the_top():
    assert len(sx.__all__) <= 30
    assert "theory" in NAMESPACES


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_every_public_name_has_an_example(namespace):
    """Constants, such as the codes of outcomes, are documented where they are used."""
    module = getattr(sx, namespace)
    assert ">>>" in module.__doc__
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert ">>>" in (inspect.getdoc(value) or ""), f"sx.{namespace}.{name}"


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_names_at_the_top_are_those_of_their_namespace(namespace):
    module = getattr(sx, namespace)
    for name in set(sx.__all__) & set(module.__all__):
        assert getattr(sx, name) is getattr(module, name)


def test_importing_a_namespace_imports_no_other():
    """Names load on first use, so that a program pays for what it uses."""
    listed = "[name for name in sys.modules if name.startswith('symmetrax.')]"
    code = f"import sys, symmetrax as sx; sx.groups; print({listed})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[1] for name in eval(done.stdout)}
    assert loaded == {"groups"}


def test_the_core_imports_no_experiment():
    """Apart from the command line, which needs the extra `studies`."""
    source = pathlib.Path(sx.__file__).parent
    for path in source.rglob("*.py"):
        place = path.relative_to(source)
        if place.parts[0] not in ("studies", "cli.py", "_commands.py"):
            assert "symmetrax.studies" not in path.read_text(), place
