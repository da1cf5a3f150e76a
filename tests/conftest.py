"""What all tests share: two host devices, float64 on demand, and one source of numerical derivatives."""

import os

FLAG = "--xla_force_host_platform_device_count=2"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAG}".strip()  # before jax starts

import hypothesis  # noqa: E402
import jax  # noqa: E402
import jaxtyping  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

# The float64 fixture is stateless, so that hypothesis may share it among examples. Same examples every time.
hypothesis.settings.register_profile(
    "repeatable",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture
def float64():
    """Mathematics: double precision for everything made inside the test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def quick_compilation():
    """For modules of many small programs: optimizing them takes longer than running them.

    `make test-slow` sets OPTIMIZE_ALL, so that everything also runs as users compile it."""
    jax.config.update("jax_disable_most_optimizations", "OPTIMIZE_ALL" not in os.environ)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def unchecked(monkeypatch):
    """Without runtime type checks, as users run it: for errors of the library's own."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="session")
def central_differences():
    """`central_differences(f, x, step=1e-6)`: the Jacobian of f at the vector x, output axes first."""

    def jacobian(f, x, step=1e-6):
        columns = []
        for shift in np.eye(len(x)) * step:
            up, down = np.asarray(f(x + shift), float), np.asarray(f(x - shift), float)
            columns.append((up - down) / (2 * step))
        return np.stack(columns, axis=-1)

    return jacobian
