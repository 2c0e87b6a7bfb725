"""Memory: alignment of results, and not one byte read or written outside of what was given."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import kvant
from support import run_python

HUGE = 2 << 20


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, HUGE - 1, HUGE, HUGE + 1, 5 * HUGE + 7])
def test_buffers_are_aligned_and_zero(size):
    buffer = kvant._core.allocate(size, True)
    assert buffer.nbytes == size
    assert buffer.ctypes.data % (64 if size < HUGE else HUGE) == 0
    assert not buffer.any()
    buffer[:] = 255
    del buffer
    assert not kvant._core.allocate(size, True).any()


def test_what_is_let_go_of_is_used_again_by_one_owner_at_a_time():
    first = kvant._core.allocate(1 << 20, False)
    place = first.ctypes.data
    second = kvant._core.allocate(1 << 20, False)
    assert second.ctypes.data != place
    view = first[5:]
    del first
    assert kvant._core.allocate(1 << 20, False).ctypes.data != place
    del view
    others = [kvant._core.allocate(1 << 20, False) for _ in range(80)]
    places = {other.ctypes.data for other in others}
    assert place in places and len(places) == 80


def test_large_ones_do_not_keep_small_ones_out():
    large = [kvant._core.allocate(16 << 20, False) for _ in range(6)]
    del large
    place = kvant._core.allocate(5 << 20, False).ctypes.data
    assert kvant._core.allocate(5 << 20, False).ctypes.data == place


def test_results_live_in_such_buffers():
    x = np.zeros((600, 1024), np.float32)
    q = kvant.quantize(x, "q8_0")
    assert q.data.ctypes.data % 64 == 0
    assert q.dequantize().ctypes.data % HUGE == 0


@pytest.mark.parametrize("size", [2**50, 2**63, 2**64 - 1, 2**64 - HUGE])
def test_more_than_there_is(size):
    with pytest.raises(MemoryError):
        kvant._core.allocate(size, True)


def test_a_result_larger_than_memory_is_a_memory_error():
    row = np.zeros(32, np.float32)
    endless = np.lib.stride_tricks.as_strided(row, (2**45, 32), (0, 4), writeable=False)
    with pytest.raises(MemoryError):
        kvant.quantize(endless, "q8_0")
    q = kvant.QTensor(
        np.lib.stride_tricks.as_strided(np.zeros(34, np.uint8), (2**45, 34), (0, 1)),
        "q8_0",
        (2**45, 32),
    )
    with pytest.raises(MemoryError):
        q.dequantize()


def test_memory_is_given_back():
    """A hundred results of 32 MiB, one after another, in far less memory than that."""
    resource = pytest.importorskip("resource")
    q = kvant.quantize(np.zeros((1024, 8192), np.float32), "q8_0")
    q.dequantize()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(30):
        q.dequantize()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


GUARDED = """
import ctypes, mmap, sys
import numpy as np, kvant
from blocks import NAMES, cols_of, random_rows
from distributions import distribution, importance, wild
from kvant.lab import kl_divergence
from kvant.reference import FORMATS

PAGE = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

class Fenced:
    '''Room whose last byte (or first, when at_end is false) lies beside a forbidden page.'''
    def __init__(self, size, at_end):
        pages = -(-size // PAGE)
        self.map = mmap.mmap(-1, (pages + 2) * PAGE)
        whole = np.frombuffer(self.map, np.uint8)
        for first in (0, (pages + 1) * PAGE):
            assert libc.mprotect(whole.ctypes.data + first, PAGE, 0) == 0
        start = (pages + 1) * PAGE - size if at_end else PAGE
        self.bytes = whole[start : start + size]

def fence(array, at_end):
    room = Fenced(array.nbytes, at_end).bytes
    room[:] = array.reshape(-1).view(np.uint8)
    return room.view(array.dtype).reshape(array.shape)

def room(shape, dtype, at_end):
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return Fenced(size, at_end).bytes.view(dtype).reshape(shape)

def products(q, at_end):
    x = distribution("normal", 5, q.shape[1], 1)
    rows, p = q.shape[0], q.pack()
    data, back = q.data.reshape(-1), room(q.data.shape, np.uint8, at_end)
    packed = kvant.PackedTensor(room(p.data.shape, np.uint8, True), q.info, q.shape)
    kvant._core.pack(q.info.number, data, *q.shape, packed.data, 1)
    assert np.array_equal(packed.data, p.data)
    kvant._core.unpack(q.info.number, packed.data, *q.shape, back.reshape(-1), 1)
    assert np.array_equal(back, q.data)
    for numbers in (x, x[:1], x.astype(np.float16)):
        for act in ("q8", "f32"):
            wanted = kvant.matmul(numbers, p, act=act)
            for w in (q, packed):
                y = room(wanted.shape, np.float32, at_end)
                kvant.matmul(fence(numbers, at_end), w, act=act, out=y)
                assert np.array_equal(y, wanted, equal_nan=True)

if sys.argv[-1] == "touch":
    x = room((4,), np.uint8, True)
    ctypes.memset(x.ctypes.data + 4, 0, 1)

for isa in kvant.isa.available():
    kvant.isa.use(isa)
    for name in NAMES:
        for rows, blocks in ((1, 1), (3, 2), (17, 1)):
            cols = cols_of(name, blocks)
            for at_end in (True, False):
                data = fence(random_rows(name, rows, blocks, 0), at_end)
                q = kvant.QTensor(data, name, (rows, cols))
                for dtype, kind in ((np.float32, "f32"), (np.float16, "f16")):
                    q.dequantize(kind, out=room((rows, cols), dtype, at_end))
                try:
                    kvant.validate(q)
                except kvant.FormatError:
                    pass
                x = distribution("normal", rows, cols, 0)
                weights = fence(importance(cols, 0), at_end)
                kvant.quant_error(fence(x, at_end), q, weights)
                if FORMATS[name].can_encode:
                    wanted = kvant.quantize(x, name, importance=weights).data
                    for numbers in (fence(x, at_end), fence(x.astype(np.float16), at_end)):
                        out = room(wanted.shape, np.uint8, at_end)
                        kvant.quantize(numbers, name, importance=weights, out=out)
                    kvant.quantize(fence(x, at_end), name, importance=weights, out=out)
                    assert np.array_equal(out, wanted)
                    kvant.quantize(fence(x, at_end), name, out=out)
                products(q, at_end)
    for cols in (2, 14, 16, 18, 40):
        for at_end in (True, False):
            x, y = fence(wild(3, cols, 0), at_end), fence(wild(3, cols, 1), at_end)
            out = room((3, cols), np.float32, at_end)
            kvant.rms_norm(x, fence(x[0], at_end), out=out)
            kvant.softmax(x, out=out)
            kvant.activation_mul(x, y, "gelu", out=out)
            kl_divergence(x, y)
            for style in ("half", "interleaved"):
                places = fence(np.arange(3), at_end)
                factors = fence(np.ones(cols // 2, np.float32), at_end)
                kvant.rope(x[:, None], places, style=style, freq_factors=factors, out=out[:, None])
print("fine")
"""


def guarded(argument):
    from pathlib import Path

    here = repr(str(Path(__file__).resolve().parent))
    return run_python(
        f"import sys; sys.path.insert(0, {here}); sys.argv = [{argument!r}]\n{GUARDED}"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="needs mprotect through ctypes")
def test_no_byte_outside_inputs_and_outputs_is_touched():
    done = guarded("run")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "fine", "")


@pytest.mark.skipif(sys.platform != "linux", reason="needs mprotect through ctypes")
def test_the_fence_is_real():
    assert guarded("touch").returncode < 0


@pytest.mark.parametrize("name", [f.name for f in kvant.formats()])
def test_margins_stay_untouched(name, isa):
    """Outputs that are windows of larger arrays: the neighbours keep their bytes."""
    info = kvant.format_info(name)
    cols, rows = info.block * 3, 5
    row_bytes = info.row_bytes(cols)
    room = np.full(row_bytes * rows + 128, 0xA5, np.uint8)
    if info.can_encode:
        x = np.linspace(-1, 1, rows * cols, dtype=np.float32).reshape(rows, cols)
        kvant.quantize(x, name, out=room[64:-64].reshape(rows, row_bytes))
    q = kvant.QTensor(room[64:-64].reshape(rows, row_bytes), name, (rows, cols))
    floats = np.full(rows * cols + 32, 7, np.float32)
    q.dequantize(out=floats[16:-16].reshape(rows, cols))
    for margin in (room[:64], room[-64:]):
        assert (margin == 0xA5).all()
    for margin in (floats[:16], floats[-16:]):
        assert (margin == 7).all()
