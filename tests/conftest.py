"""Profiles of hypothesis, and the fixtures every room may use."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Makes `distributions` and `support` importable under any import mode of pytest.
sys.path.insert(0, str(Path(__file__).resolve().parent))

# They are loaded as plugins; collected for doctests they would clash, having one name.
collect_ignore_glob = ["*conftest.py"]

# The isa fixture is the same for every example of a test, as it should be.
_CALM = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
settings.register_profile("few", max_examples=5, deadline=None, suppress_health_check=_CALM)
settings.register_profile("dev", max_examples=25, deadline=None, suppress_health_check=_CALM)
settings.register_profile(
    "ci", max_examples=30, deadline=None, derandomize=True, suppress_health_check=_CALM
)
settings.register_profile("deep", max_examples=2000, deadline=None, suppress_health_check=_CALM)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for `isa` runs once for each ISA of this machine."""
    if "isa" in metafunc.fixturenames:
        import kvant

        metafunc.parametrize("isa", kvant.isa.available(), indirect=True)


@pytest.fixture
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The ISA in force during the test; the one before is put back."""
    import kvant

    before = kvant.isa.current()
    kvant.isa.use(request.param)
    yield request.param
    kvant.isa.use(before)
