"""Experts and networks through the C ABI: the bits as from Python, and a code for every misuse."""

from __future__ import annotations

import numpy as np
import pytest

import kvant
from distributions import distribution

OK, BAD_SHAPE, BAD_FORMAT, BAD_ALIGNMENT = 0, -1, -2, -3
COUNT, HIDDEN, COLS, OUT, M, TOP = 3, 64, 96, 19, 4, 2


def text(c):
    return c.ffi.string(c.lib.kvant_error_text()).decode()


def pointer(c, kind, array):
    return c.ffi.cast(kind, array.ctypes.data)


def stack(rows, cols, seed):
    x = distribution("normal", COUNT * rows, cols, seed)
    return kvant.quantize(x.reshape(COUNT, rows, cols), "q8_0")


class Call:
    """Calls that fit, with single arguments changed."""

    def __init__(self, c, packed):
        self.c = c
        parts = [stack(HIDDEN, COLS, 0), stack(HIDDEN, COLS, 1), stack(OUT, HIDDEN, 2)]
        self.parts = [q.pack() for q in parts] if packed else parts
        self.x = distribution("normal", M, COLS, 3)
        rng = np.random.default_rng(0)
        self.ids = rng.integers(0, COUNT, (M, TOP))
        self.factors = rng.random((M, TOP), np.float32)
        self.structs = [self.struct(w) for w in self.parts]

    def struct(self, w):
        s = self.c.ffi.new("kvant_experts *")
        s.weights, s.weight_bytes = pointer(self.c, "uint8_t *", w.data), w.nbytes
        s.stride, s.format = w.nbytes // COUNT, w.info.number
        s.packed = isinstance(w, kvant.PackedTensor)
        s.count, s.rows, s.cols = w.shape
        return s

    def args(self, change):
        a = {
            "x": self.x, "type": 0, "tokens": M, "x_stride": COLS, "ids": self.ids,
            "factors": self.factors, "top": TOP, "activation": 0, "act": 0, "threads": 0,
            "per_slot": 0, "y_stride": None, "y": None,
        } | change  # fmt: skip
        for name, kind in (("x", "void *"), ("ids", "int64_t *"), ("factors", "float *")):
            a[name] = pointer(self.c, kind, a[name])
        return a

    def products(self, **change):
        y = np.full((M, TOP, HIDDEN), 7, np.float32)
        a = self.args({"y": y, "y_stride": HIDDEN} | change)
        code = self.c.lib.kvant_matmul_experts(
            a["x"], a["type"], a["tokens"], a["x_stride"], a["per_slot"], self.structs[0],
            a["ids"], a["top"], pointer(self.c, "float *", a["y"]), a["y_stride"], a["act"], 0,
        )  # fmt: skip
        return code, a["y"]

    def moe(self, **change):
        a = self.args({"y": np.full((M, OUT), 7, np.float32), "y_stride": OUT} | change)
        code = self.c.lib.kvant_moe_ffn(
            a["x"], a["type"], a["tokens"], a["x_stride"], *self.structs, a["ids"], a["factors"],
            a["top"], a["activation"], pointer(self.c, "float *", a["y"]), a["y_stride"],
            a["act"], a["threads"],
        )  # fmt: skip
        return code, a["y"]

    def dense(self, **change):
        a = self.args({"y": np.full((M, OUT), 7, np.float32), "y_stride": OUT} | change)
        code = self.c.lib.kvant_ffn(
            a["x"], a["type"], a["tokens"], a["x_stride"], *self.structs, a["activation"],
            pointer(self.c, "float *", a["y"]), a["y_stride"], a["act"], a["threads"],
        )  # fmt: skip
        return code, a["y"]


@pytest.fixture(params=[False, True], ids=["file", "packed"])
def call(c, request):
    return Call(c, request.param)


def same(a, b):
    return np.array_equal(a.view(np.uint32), b.view(np.uint32))


def test_as_from_python(call, isa):
    code, y = call.products()
    assert code == OK and same(y, kvant.matmul_experts(call.x, call.parts[0], call.ids))
    code, y = call.moe()
    assert code == OK
    assert same(y, kvant.moe_ffn(call.x, *call.parts, call.ids, call.factors))
    for s in call.structs:
        s.count = 1
    code, y = call.dense()
    assert code == OK and same(y, kvant.ffn(call.x, *(w[0] for w in call.parts)))


def test_rows_with_gaps(call):
    room = np.full((M, OUT + 3), 7, np.float32)
    code, _ = call.moe(y=room, y_stride=OUT + 3)
    assert code == OK and same(room[:, :OUT].copy(), call.moe()[1])
    assert (room[:, OUT:] == 7).all()
    code, y = call.moe(x=call.x[::-1], x_stride=-COLS)
    assert code == OK
    assert same(y, kvant.moe_ffn(call.x[::-1], *call.parts, call.ids, call.factors))


def test_every_other_expert(call):
    """A stride beyond one matrix: half of the experts of the stack."""
    for s in call.structs:
        s.count, s.stride = 2, 2 * s.stride
    ids = call.ids % 2
    code, y = call.products(ids=ids)
    assert code == OK and same(y, kvant.matmul_experts(call.x, call.parts[0], 2 * ids))


SHARED = [
    ({"type": 3}, BAD_FORMAT, "no such element type"),
    ({"tokens": -1}, BAD_SHAPE, "negative"),
    ({"top": -1}, BAD_SHAPE, "negative"),
    ({"tokens": 2**31}, BAD_SHAPE, "too many rows"),
    ({"tokens": 2**40, "top": 2**40}, BAD_SHAPE, "too many rows"),
    ({"y_stride": 1}, BAD_SHAPE, "rows of y overlap"),
    ({"act": 2}, BAD_FORMAT, "no such kind of activations"),
    ({"ids": np.full((M, TOP), COUNT)}, BAD_SHAPE, "an id names no expert"),
    ({"ids": np.full((M, TOP), -1)}, BAD_SHAPE, "an id names no expert"),
]


@pytest.mark.parametrize(("change", "code", "what"), SHARED)
def test_misuse(call, change, code, what):
    for run in (call.moe, call.products):
        found, y = run(**change)
        assert (found, what in text(call.c)) == (code, True), text(call.c)
        assert (y == 7).all()


@pytest.mark.parametrize(
    ("part", "field", "value", "code", "what"),
    [
        (0, "format", 99, BAD_FORMAT, "no such format"),
        (0, "weight_bytes", 5, BAD_SHAPE, "wrong number of bytes"),
        (1, "stride", 2**40, BAD_SHAPE, "wrong number of bytes"),
        (2, "stride", -64, BAD_SHAPE, "wrong number of bytes"),
        (2, "count", -1, BAD_SHAPE, "wrong number of experts"),
        (1, "count", 2, BAD_SHAPE, "different numbers of experts"),
        (1, "rows", 48, BAD_SHAPE, "do not fit together"),
        (2, "cols", 32, BAD_SHAPE, "do not fit together"),
        (0, "cols", 95, BAD_SHAPE, "multiple of the block"),
        (0, "rows", -1, BAD_SHAPE, "negative"),
    ],
)
def test_networks_that_do_not_fit(call, part, field, value, code, what):
    setattr(call.structs[part], field, value)
    found, y = call.moe()
    assert (found, what in text(call.c)) == (code, True), text(call.c)
    assert (y == 7).all()


def test_odd_addresses_and_overlaps(c):
    call = Call(c, True)
    for s in call.structs:
        s.count = 1
    call.structs[1].weights += 4
    call.structs[1].weight_bytes -= 4
    assert call.dense()[0] == BAD_ALIGNMENT
    call = Call(c, True)
    call.structs[1].stride += 4
    assert call.moe()[0] == BAD_ALIGNMENT
    call = Call(c, False)
    assert (call.dense()[0], "one matrix each" in text(c)) == (BAD_SHAPE, True)
    assert call.moe(activation=4)[0] == BAD_FORMAT
    for inside in (call.x, call.factors, call.ids, call.parts[2].data):
        y = inside.reshape(-1).view(np.uint8)[:4].view(np.float32)
        code, _ = call.moe(y=y, y_stride=OUT, tokens=1)
        assert (code, "overlaps" in text(c)) == (BAD_SHAPE, True), text(c)
