"""The probes do all the work that they are timed for, on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest

from kvant import Error, FormatError, ShapeError, _core
from kvant.bench.memory import buffer, huge_share, small_pages
from kvant.bench.probes import KINDS, STREAMS, products_task
from kvant.bench.timing import turns

SIZE = 6 << 20


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("streams", STREAMS)
def test_reading_reads_every_word(isa: str, streams: int, threads: int) -> None:
    words = buffer(SIZE).view(np.uint32)
    words[:] = np.random.default_rng(0).integers(0, 1 << 32, words.size, np.uint32)
    for count in (4096, 40960, SIZE - 4096, SIZE):
        wanted = int(words[: count // 4].sum(dtype=np.uint64)) & 0xFFFFFFFF
        assert _core.probe_read(words.ctypes.data, count, streams, threads) == wanted


@pytest.mark.parametrize("around", [False, True])
def test_copying_copies_every_byte_and_no_more(isa: str, around: bool) -> None:
    a, b = buffer(SIZE), buffer(SIZE)
    a[:] = np.random.default_rng(1).integers(0, 256, SIZE, np.uint8)
    count = SIZE - 8192
    _core.probe_copy(a.ctypes.data, b.ctypes.data, count, around, 2)
    assert np.array_equal(b[:count], a[:count])
    assert (b[count:] == 1).all()


@pytest.mark.parametrize("source_bytes", [0, 100, 1 << 20, SIZE])
def test_storing_stores_every_byte_and_no_more(isa: str, source_bytes: int) -> None:
    a, b = buffer(SIZE), buffer(SIZE)
    count = SIZE - 4096
    _core.probe_store(b.ctypes.data, count, a.ctypes.data, source_bytes, 2)
    assert (b[:count] == 0).all() and (b[count:] == 1).all() and (a == 1).all()


@pytest.mark.parametrize("kind", KINDS.values(), ids=str)
@pytest.mark.parametrize("steps, tasks, threads", [(1, 1, 1), (1000, 3, 2), (77, 5, 1)])
def test_products_are_all_computed(
    isa: str, kind: int, steps: int, tasks: int, threads: int
) -> None:
    """Each product is 1, so what the loops add up is what they claim to have done."""
    products, total = _core.probe_products(kind, steps, tasks, threads)
    assert products == total > 0
    assert products % (steps * tasks) == 0


def test_refusals() -> None:
    a = buffer(SIZE).ctypes.data
    for call in (
        lambda: _core.probe_read(a, 4095, 1, 1),
        lambda: _core.probe_read(a, -4096, 1, 1),
        lambda: _core.probe_read(a, 4096, 3, 1),
        lambda: _core.probe_read(a + 4, 4096, 1, 1),
        lambda: _core.probe_copy(a, a + 4, 4096, True, 1),
        lambda: _core.probe_store(a, 4096, a, -1, 1),
        lambda: _core.probe_products(0, 0, 1, 1),
        lambda: _core.probe_products(0, 1 << 60, 1 << 10, 1),
    ):
        with pytest.raises(ShapeError):
            call()
    with pytest.raises(FormatError):
        _core.probe_products(2, 1, 1, 1)
    assert issubclass(ShapeError, Error)


def test_small_pages_are_small() -> None:
    array = small_pages(8 << 20)
    if array is None:
        pytest.skip("this system has one size of pages")
    assert huge_share(array) in (None, 0.0)


def test_a_task_of_products_counts_its_operations(isa: str) -> None:
    task, amount = products_task("int8", 1, isa)
    times = turns({"x": task}, rounds=3, sample=0.0)["x"]
    assert amount > 0 and times.rate(amount, "wall") > 0
