"""Matrix products through the C ABI: the same bits as from Python, and a code for every misuse."""

from __future__ import annotations

import numpy as np
import pytest

import kvant
from distributions import distribution
from kvant import _core

OK, BAD_SHAPE, BAD_FORMAT, BAD_ALIGNMENT = 0, -1, -2, -3
F32, F16 = 0, 1
Q8 = 0
ROWS, COLS, M = 19, 96, 3


def text(c):
    return c.ffi.string(c.lib.kvant_error_text()).decode()


def pointer(c, kind, array):
    return c.ffi.cast(kind, 0 if array is None else array.ctypes.data)


def aligned(size):
    """Bytes of the library's own memory."""
    return _core.allocate(size, True)


@pytest.fixture
def q():
    return kvant.quantize(distribution("normal", ROWS, COLS, 0), "q8_0")


@pytest.fixture
def x():
    return distribution("normal", M, COLS, 1)


class Products:
    """One call of kvant_matmul that fits, with single arguments changed."""

    def __init__(self, c, x, several):
        self.c, self.x = c, x
        self.alive = several
        self.array = c.ffi.new("kvant_product[]", max(len(several), 1))
        self.call = {
            "type": F32, "x_rows": len(x), "cols": x.shape[1], "x_stride": x.shape[1],
            "count": len(several), "activation": Q8, "threads": 0,
        }  # fmt: skip
        self.results = []
        for product, w in zip(self.array, several, strict=False):
            self.results.append(np.full((len(x), w.shape[0]), 7, np.float32))
            product.weights = pointer(c, "uint8_t *", w.data)
            product.weight_bytes, product.format = w.nbytes, w.info.number
            product.packed = isinstance(w, kvant.PackedTensor)
            product.rows = product.y_stride = w.shape[0]
            product.y = pointer(c, "float *", self.results[-1])

    def __call__(self, **change):
        a = {"x": self.x, **self.call, **change}
        return self.c.lib.kvant_matmul(
            pointer(self.c, "void *", a["x"]), a["type"], a["x_rows"], a["cols"], a["x_stride"],
            self.array, a["count"], a["activation"], a["threads"],
        )  # fmt: skip


@pytest.mark.parametrize("name", [f.name for f in kvant.formats()])
def test_packing_and_products_as_from_python(c, name, isa):
    info = kvant.format_info(name)
    cols = max(info.block, 32)
    data = np.random.default_rng(0).integers(0, 256, (ROWS, info.row_bytes(cols)), np.uint8)
    q, x = kvant.QTensor(data, name, (ROWS, cols)), distribution("normal", M, cols, 0)
    size = c.lib.kvant_packed_bytes(info.number, ROWS, cols)
    packed, back = aligned(size), np.zeros_like(data)
    as_bytes = [pointer(c, "uint8_t *", a) for a in (data, packed, back)]
    assert c.lib.kvant_pack(info.number, as_bytes[0], ROWS, cols, as_bytes[1], size, 0) == OK
    assert np.array_equal(packed, q.pack().data)
    assert c.lib.kvant_unpack(info.number, as_bytes[1], ROWS, cols, as_bytes[2], back.size, 0) == OK
    assert np.array_equal(back, data)
    call = Products(c, x, [q, q.pack()])
    assert call() == OK
    for y in call.results:
        assert np.array_equal(y.view(np.uint32), kvant.matmul(x, q).view(np.uint32))


def test_strides_and_results_side_by_side(c, q, x):
    """The columns of three results in one matrix, rows of x with a gap."""
    wide = np.full((M, COLS + 9), np.nan, np.float32)
    wide[:, 4 : 4 + COLS] = x
    room = np.full((M, 3 * ROWS + 2), 7, np.float32)
    call = Products(c, wide[:, 4:], [q, q.pack(), q])
    for i in range(3):
        call.array[i].y = pointer(c, "float *", room[:, 1 + i * ROWS :])
        call.array[i].y_stride = room.shape[1]
    assert call(cols=COLS, x_stride=COLS + 9) == OK
    assert np.array_equal(room[:, 1:-1], np.tile(kvant.matmul(x, q), 3))
    assert (room[:, [0, -1]] == 7).all()
    call.array[1].y = pointer(c, "float *", room[:, ROWS:])
    assert (call(cols=COLS, x_stride=COLS + 9), text(c)) == (
        BAD_SHAPE, "y overlaps x, weights or another y",
    )  # fmt: skip


def test_rows_of_x_in_reverse_and_one_row_for_all(c, q, x):
    call = Products(c, x, [q])
    assert call(x=x[::-1], x_stride=-COLS) == OK
    assert np.array_equal(call.results[0], kvant.matmul(x[::-1], q))
    assert call(x_stride=0) == OK
    assert np.array_equal(call.results[0], kvant.matmul(x[[0, 0, 0]], q))


@pytest.mark.parametrize(
    ("change", "code", "what"),
    [
        ({"count": -1}, BAD_SHAPE, "from 0 to 16 products in a call"),
        ({"count": 17}, BAD_SHAPE, "from 0 to 16 products in a call"),
        ({"activation": 2}, BAD_FORMAT, "no such kind of activations"),
        ({"activation": -1}, BAD_FORMAT, "no such kind of activations"),
        ({"type": 3}, BAD_FORMAT, "no such element type"),
        ({"x_rows": -1}, BAD_SHAPE, "negative number of rows or columns"),
        ({"cols": -32}, BAD_SHAPE, "negative number of rows or columns"),
        ({"cols": 95}, BAD_SHAPE, "columns are not a multiple of the block"),
        ({"cols": 64}, BAD_SHAPE, "weights have the wrong number of bytes"),
        ({"x_rows": 2**60}, BAD_SHAPE, "too many elements"),
    ],
)
def test_misuse_is_refused(c, q, x, change, code, what):
    call = Products(c, x, [q])
    assert (call(**change), text(c)) == (code, what)
    assert (call.results[0] == 7).all()


@pytest.mark.parametrize(
    ("field", "value", "code", "what"),
    [
        ("format", 99, BAD_FORMAT, "no such format"),
        ("format", -1, BAD_FORMAT, "no such format"),
        ("rows", -1, BAD_SHAPE, "negative number of rows or columns"),
        ("rows", 2**60, BAD_SHAPE, "too many elements"),
        ("rows", ROWS + 1, BAD_SHAPE, "weights have the wrong number of bytes"),
        ("weight_bytes", 0, BAD_SHAPE, "weights have the wrong number of bytes"),
        ("packed", 1, BAD_SHAPE, "weights have the wrong number of bytes"),
        ("y_stride", ROWS - 1, BAD_SHAPE, "rows of y overlap"),
        ("y_stride", -ROWS, BAD_SHAPE, "rows of y overlap"),
    ],
)
def test_a_wrong_field_of_the_second_product_is_found(c, q, x, field, value, code, what):
    call = Products(c, x, [q, q])
    setattr(call.array[1], field, value)
    assert (call(), text(c)) == (code, what)
    assert all((y == 7).all() for y in call.results)


def test_addresses(c, q, x):
    call = Products(c, x, [q, q.pack()])
    raw = np.zeros(x.nbytes + 1, np.uint8)[1:]
    assert (call(x=raw), text(c)) == (BAD_ALIGNMENT, "floats are not aligned to their size")
    assert call(x=raw, type=F16) == BAD_ALIGNMENT
    call.array[0].y = pointer(c, "float *", np.zeros(9999, np.uint8)[1:])
    assert (call(), text(c)) == (BAD_ALIGNMENT, "floats are not aligned to their size")
    call = Products(c, x, [q.pack()])
    size = call.array[0].weight_bytes
    room = aligned(size + 64)
    for offset in (1, 16, 32):
        call.array[0].weights = pointer(c, "uint8_t *", room[offset:])
        assert (call(), text(c)) == (BAD_ALIGNMENT, "packed weights are not aligned to 64 bytes")


def test_misuse_of_packing(c, q):
    number, size = q.info.number, q.pack().nbytes
    data, out = pointer(c, "uint8_t *", q.data), aligned(size + 64)
    out[:] = 7
    to = pointer(c, "uint8_t *", out)
    odd = pointer(c, "uint8_t *", out[16:])
    lib = c.lib
    for got, code, what in (
        (lambda: lib.kvant_packed_bytes(99, 1, 32), BAD_FORMAT, "no such format"),
        (lambda: lib.kvant_packed_bytes(number, 1, 33), BAD_SHAPE, "columns are not a multiple"),
        (lambda: lib.kvant_packed_bytes(number, -1, 32), BAD_SHAPE, "negative number"),
        (lambda: lib.kvant_packed_bytes(0, 1, 2**58), BAD_SHAPE, "too many elements"),
        (lambda: lib.kvant_packed_bytes(0, 2**63 - 1, 0), BAD_SHAPE, "too many elements"),
        (lambda: lib.kvant_packed_bytes(0, 2**52, 0), BAD_SHAPE, "too many elements"),
        (lambda: lib.kvant_pack(99, data, ROWS, COLS, to, size, 0), BAD_FORMAT, "no such format"),
        (
            lambda: lib.kvant_pack(number, data, ROWS, COLS, to, size - 1, 0),
            BAD_SHAPE,
            "wrong number",
        ),
        (lambda: lib.kvant_pack(number, data, ROWS, 33, to, size, 0), BAD_SHAPE, "not a multiple"),
        (
            lambda: lib.kvant_pack(number, data, ROWS, COLS, odd, size, 0),
            BAD_ALIGNMENT,
            "packed weights",
        ),
        (
            lambda: lib.kvant_unpack(99, to, ROWS, COLS, data, q.nbytes, 0),
            BAD_FORMAT,
            "no such format",
        ),
        (
            lambda: lib.kvant_unpack(number, to, ROWS, COLS, data, q.nbytes + 1, 0),
            BAD_SHAPE,
            "wrong number",
        ),
        (
            lambda: lib.kvant_unpack(number, odd, ROWS, COLS, data, q.nbytes, 0),
            BAD_ALIGNMENT,
            "packed weights",
        ),
    ):
        assert got() == code
        assert what in text(c)
    assert (out == 7).all()


def test_empty_ones(c, q, x):
    assert c.lib.kvant_packed_bytes(q.info.number, 0, 64) == 0
    assert c.lib.kvant_packed_bytes(q.info.number, 64, 0) == 0
    call = Products(c, x, [q])
    assert call(count=0) == OK
    assert call(x_rows=0) == OK
    assert (call.results[0] == 7).all()
    empty = Products(c, x, [kvant.QTensor(np.zeros((ROWS, 0), np.uint8), "q8_0", (ROWS, 0))])
    assert empty(cols=0) == OK
    assert not empty.results[0].view(np.uint32).any()
