"""The pages' examples are many small programs: optimizing them takes longer than running them."""

import os

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def _quickly():
    jax.config.update("jax_disable_most_optimizations", "OPTIMIZE_ALL" not in os.environ)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
