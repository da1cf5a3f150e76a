"""Doctests, in pages and modules, are many small programs: optimizing them takes longer than running them."""

import os

import jax
import pytest
from _pytest.doctest import DoctestModule, DoctestTextfile


@pytest.fixture(autouse=True, scope="module")
def _examples_compile_quickly(request):
    if not isinstance(request.node, DoctestModule | DoctestTextfile) or "OPTIMIZE_ALL" in os.environ:
        yield
        return
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
