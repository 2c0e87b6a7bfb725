"""Twenty thousand broken files: none crashes, hangs, or takes more memory than it should."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from images import good
from mutate import mutation, seeds, try_bytes, try_file

from kvant import gguf
from kvant.errors import GGUFError

SEED = 2024
SPARE = 64 << 20
COUNT = 20_000 if os.environ.get("HYPOTHESIS_PROFILE") == "ci" else 4_000


def test_mutations_never_crash_hang_or_eat_memory() -> None:
    start = seeds()
    accepted = 0
    slowest = 0.0
    tracemalloc.start()
    try:
        for number in range(COUNT):
            data = mutation(start, SEED, number)
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            clock = time.perf_counter()
            accepted += try_bytes(data)
            slowest = max(slowest, time.perf_counter() - clock)
            taken = tracemalloc.get_traced_memory()[1] - before
            assert taken < len(data) + SPARE, f"mutation {number} took {taken} bytes"
    finally:
        tracemalloc.stop()
    assert slowest < 5.0
    assert COUNT // 50 < accepted < COUNT  # both sides of the reader have been used


def test_accepted_mutations_survive_writing(tmp_path: Path) -> None:
    start = seeds()
    assert sum(try_file(mutation(start, SEED + 1, n), tmp_path) for n in range(400)) > 8


_LIMITED = """
import resource, sys
from mutate import mutation, seeds, try_bytes
start = seeds()
try_bytes(start[0])
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + {spare} + 65536
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
print(sum(try_bytes(mutation(start, {seed}, n)) for n in range({count})))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_AS and /proc")
def test_mutations_live_within_an_address_space_limit() -> None:
    script = _LIMITED.format(spare=SPARE, seed=SEED + 2, count=COUNT // 4)
    here = str(Path(__file__).parent)
    path = os.pathsep.join([here, *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 0


@given(st.binary(max_size=400))
def test_any_bytes(data: bytes) -> None:
    for candidate in (data, b"GGUF" + data, good()[:24] + data):
        try_bytes(candidate)


@given(st.data())
def test_any_change_of_a_good_file(data: st.DataObject) -> None:
    whole = bytearray(good())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at] = data.draw(st.integers(0, 255))
    try_bytes(bytes(whole))


def test_mutations_are_deterministic() -> None:
    start = seeds()
    assert [mutation(start, 1, n) for n in range(50)] == [mutation(start, 1, n) for n in range(50)]
    assert len({mutation(start, 1, n) for n in range(50)}) > 40


def test_data_changes_are_seen_not_refused() -> None:
    whole = bytearray(good())
    whole[-20] ^= 0xFF  # inside the last tensor
    before, after = gguf.from_buffer(good()), gguf.from_buffer(bytes(whole))
    assert not np.array_equal(before.tensors["half"].data, after.tensors["half"].data)
    with pytest.raises(GGUFError):
        gguf.from_buffer(bytes(whole)[:-41])


def test_the_fuzz_program_runs(tmp_path: Path) -> None:
    program = Path(__file__).resolve().parents[2] / "tools" / "fuzz_gguf.py"
    done = subprocess.run(
        [sys.executable, str(program), "--count", "100", "--seed", "9", "--keep", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "seed 9: mutations 0 to 99" in done.stdout
    assert list(tmp_path.iterdir()) == []
