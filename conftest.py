"""What tests and doctests share: how examples compile, and how many compiled programs a process keeps."""

import gc
import os
import pathlib

import jax
import pytest
import tests.typechecker  # noqa: F401  (jaxtyping's import hook imports no more than `tests`)
from _pytest.doctest import DoctestModule, DoctestTextfile

#: Memory maps of a process from which on compiled programs are dropped; Linux allows 65,530.
MANY_MAPS = 10_000


def pytest_collection_finish(session):
    """The search for garbage took a twentieth of the time, mostly in modules, which live until the end."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


@pytest.fixture(autouse=True, scope="module")
def _examples_compile_quickly(request):
    """Doctests are many small programs: optimizing them takes longer than running them."""
    if not isinstance(request.node, DoctestModule | DoctestTextfile) or "OPTIMIZE_ALL" in os.environ:
        yield
        return
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True)
def _old_programs_are_dropped():
    """Every compiled program holds memory and several memory maps for as long as its process lives."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MANY_MAPS:
        jax.clear_caches()
        gc.collect()
