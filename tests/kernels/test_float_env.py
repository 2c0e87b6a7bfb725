"""A caller's floating-point mode changes no result, and is in force again afterwards."""

from __future__ import annotations

import ctypes
import mmap
import platform

import numpy as np
import pytest
from blocks import ENCODED, NAMES, cols_of, random_rows

import kvant
from distributions import distribution, importance, wild
from kvant.lab.divergence import row_divergence

DEFAULT = 0x1F80
FLUSH = DEFAULT | 0x8040  # results and operands that are denormal count as zero
TOWARD_ZERO = DEFAULT | 0x6000

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="sets the control register of x86"
)


class Mxcsr:
    """The control register, read and written by five bytes of machine code each."""

    def __init__(self):
        everything = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
        self.code = mmap.mmap(-1, mmap.PAGESIZE, prot=everything)
        self.code.write(bytes.fromhex("0fae1fc3"))  # stmxcsr [rdi]; ret
        self.code.write(bytes.fromhex("0fae17c3"))  # ldmxcsr [rdi]; ret
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.code))
        kind = ctypes.CFUNCTYPE(None, ctypes.POINTER(ctypes.c_uint32))
        self.load, self.store = kind(start), kind(start + 4)

    def get(self):
        word = ctypes.c_uint32()
        self.load(word)
        return word.value & ~0x3F  # without the sticky flags

    def set(self, value):
        self.store(ctypes.c_uint32(value))


@pytest.fixture(scope="module")
def mxcsr():
    return Mxcsr()


def results(x, halves, weights, data, name, threads):
    shape = (len(data), cols_of(name, 3))
    q = kvant.QTensor(data, name, shape)
    found = [q.dequantize(kind, threads=threads).tobytes() for kind in ("f32", "f16")]
    if name in ENCODED:
        for importance_ in (None, weights):
            packed = kvant.quantize(x, name, importance=importance_, threads=threads)
            found.append(packed.data.tobytes())
        error = kvant.quant_error(x, kvant.quantize(x, name), weights, True, threads=threads)
        # The quotients behind the other numbers are NumPy's, which follows the caller's mode.
        found.append(error.max.tobytes())
    for given in (x, halves):
        for act in ("q8", "f32"):
            found.append(kvant.matmul(given[::4], q, act=act, threads=threads).tobytes())
    return found


def test_the_mode_is_real(mxcsr):
    tiny = np.full(4, 1e-40, np.float32)
    mxcsr.set(FLUSH)
    flushed = (tiny * np.float32(1)).any()
    mxcsr.set(DEFAULT)
    assert not flushed and (tiny * np.float32(1)).all()


@pytest.mark.parametrize(
    ("mode", "threads"),
    [(FLUSH, 1), (FLUSH, 2), (TOWARD_ZERO, 2)],
    ids=["flush", "flush, two threads", "toward zero"],
)
@pytest.mark.parametrize("name", NAMES)
def test_results_and_the_mode_stay(mxcsr, isa, name, threads, mode):
    cols = cols_of(name, 3)
    x = np.concatenate([distribution(family, 12, cols, 0) for family in ("denormal", "t5")])
    data = random_rows(name, 24, 3, 0)
    # Scales that are denormal halves, where a scale begins the block.
    data[:12, :2] &= np.array([255, 3], np.uint8)
    # Halves of which some are denormal, made before the mode is set: NumPy follows it.
    halves = (x * np.float32(1e-6)).astype(np.float16)
    weights = importance(cols, 0)
    wanted = results(x, halves, weights, data, name, threads)
    mxcsr.set(mode)
    try:
        found = results(x, halves, weights, data, name, threads)
        after = mxcsr.get()
    finally:
        mxcsr.set(DEFAULT)
    assert after == mode
    assert found == wanted


@pytest.mark.parametrize("mode", [FLUSH, TOWARD_ZERO], ids=["flush", "toward zero"])
@pytest.mark.parametrize("threads", [1, 2])
def test_operations_and_the_mode(mxcsr, isa, threads, mode):
    x = wild(40, 2000, 0)
    heads = x.reshape(40, 20, 100)

    def run():
        yield kvant.rms_norm(x, x[0], 1e-7, threads=threads)
        yield kvant.softmax(x, scale=0.1, threads=threads)
        for name in ("silu", "gelu", "gelu_tanh"):
            yield kvant.activation_mul(x, x, name, threads=threads)
        yield kvant.rope(heads, np.arange(40) * 1001, scale=0.3, threads=threads)
        yield np.concatenate(row_divergence(x, x[::-1].copy(), threads=threads))

    wanted = [y.tobytes() for y in run()]
    mxcsr.set(mode)
    try:
        found = [y.tobytes() for y in run()]
        after = mxcsr.get()
    finally:
        mxcsr.set(DEFAULT)
    assert after == mode
    assert found == wanted
