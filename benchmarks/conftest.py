"""Makes `pytest benchmarks` collect bench_*.py, and keeps what every module shares."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kvant

from .cases import Settings
from .probes import bandwidths


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Collect the modules here, which no default name of test files matches."""
    ours = file_path.name.startswith("bench_") and file_path.suffix == ".py"
    # Files named on the command line are collected anyway.
    if ours and not parent.session.isinitpath(file_path):
        module: pytest.Module = pytest.Module.from_parent(parent, path=file_path)
        return module
    return None


@pytest.fixture(autouse=True)
def _isa_put_back() -> Iterator[None]:
    before = kvant.isa.current()
    yield
    kvant.isa.use(before)


def timing(config: pytest.Config) -> bool:
    """Whether this run times, rather than calls everything once."""
    return bool(config.getoption("benchmark_enable") or not config.getoption("benchmark_disable"))


@pytest.fixture(scope="session")
def copy_bandwidth(request: pytest.FixtureRequest) -> float:
    """Bytes a second that one thread copies in this run; 0 when nothing is timed."""
    if not timing(request.config):
        return 0.0
    return bandwidths(Settings().decode_mib << 20, rounds=7)["copy"] * 1e9


class Meter:
    """Runs a call under pytest-benchmark and notes what it moved."""

    def __init__(self, benchmark: Any, copy: float) -> None:
        self.benchmark = benchmark
        self.copy = copy

    def __call__(self, group: str, call: Any, nbytes: int, rounds: int | None = None) -> Any:
        """Time `call`, which reads and writes `nbytes` bytes, beside the others of its group.

        `rounds` is for what is too slow to be repeated as often as the rest.
        """
        self.benchmark.group = group
        if rounds is None:
            result = self.benchmark(call)
        else:
            result = self.benchmark.pedantic(call, rounds=rounds)
        self.benchmark.extra_info["bytes moved"] = nbytes
        if self.benchmark.stats is not None:
            rate = nbytes / self.benchmark.stats.stats.median
            self.benchmark.extra_info["bytes per second"] = rate
            self.benchmark.extra_info["of copy bandwidth"] = rate / self.copy
        return result


@pytest.fixture
def meter(benchmark: Any, copy_bandwidth: float) -> Meter:
    """Times one call and notes bytes moved, bytes a second, and the share of copy bandwidth."""
    return Meter(benchmark, copy_bandwidth)
