"""The probes through the C ABI."""

from __future__ import annotations

import numpy as np
import pytest

OK, BAD_SHAPE, BAD_FORMAT, BAD_ALIGNMENT = 0, -1, -2, -3
SIZE = 4 << 20


@pytest.fixture
def memory(c):
    """Two buffers of the library, as pointers and as arrays."""
    pointers = [c.lib.kvant_buffer_alloc(SIZE) for _ in range(2)]
    arrays = [np.frombuffer(c.ffi.buffer(p, SIZE), np.uint8) for p in pointers]
    yield pointers, arrays
    for p in pointers:
        c.lib.kvant_buffer_free(p, SIZE)


def test_they_work_on_the_memory_given(c, memory):
    (p, q), (a, b) = memory
    a[:] = np.arange(SIZE) % 251
    total = c.ffi.new("uint32_t *")
    for streams in (1, 2, 4, 8):
        assert c.lib.kvant_probe_read(p, SIZE, streams, 2, total) == OK
        assert total[0] == int(a.view(np.uint32).sum(dtype=np.uint64)) % 2**32
    assert c.lib.kvant_probe_read(p, SIZE, 1, 0, c.ffi.NULL) == OK
    assert c.lib.kvant_probe_copy(p, q, SIZE, True, 2) == OK
    assert np.array_equal(a, b)
    assert c.lib.kvant_probe_store(q, SIZE, p, 12345, 2) == OK
    assert not b.any()
    assert c.lib.kvant_probe_store(p, SIZE, c.ffi.NULL, 0, 1) == OK
    assert not a.any()


def test_they_count_their_products(c):
    products, total = c.ffi.new("int64_t *"), c.ffi.new("double *")
    for kind in (c.lib.KVANT_PROBE_INT8, c.lib.KVANT_PROBE_F32):
        assert c.lib.kvant_probe_products(kind, 10, 4, 2, products, total) == OK
        assert products[0] == total[0] > 0
        assert c.lib.kvant_probe_products(kind, 10, 4, 2, products, c.ffi.NULL) == OK
    c.lib.kvant_probe_ticks(10)
    c.lib.kvant_probe_ticks(-1)


def test_they_refuse(c, memory):
    (p, q), _ = memory
    null, products = c.ffi.NULL, c.ffi.new("int64_t *")
    assert c.lib.kvant_probe_read(p, 4095, 1, 1, null) == BAD_SHAPE
    assert c.lib.kvant_probe_read(p, SIZE, 3, 1, null) == BAD_SHAPE
    assert c.lib.kvant_probe_read(p, SIZE, 0, 1, null) == BAD_SHAPE
    assert c.lib.kvant_probe_read(p + 1, 4096, 1, 1, null) == BAD_ALIGNMENT
    assert c.lib.kvant_probe_copy(p, q + 32, 4096, False, 1) == BAD_ALIGNMENT
    assert c.lib.kvant_probe_copy(p, q, -4096, False, 1) == BAD_SHAPE
    assert c.lib.kvant_probe_store(q, 4096, p, -1, 1) == BAD_SHAPE
    assert c.lib.kvant_probe_products(7, 1, 1, 1, products, null) == BAD_FORMAT
    assert c.lib.kvant_probe_products(0, 0, 1, 1, products, null) == BAD_SHAPE
    assert c.lib.kvant_probe_products(0, 2**62, 4, 1, products, null) == BAD_SHAPE
