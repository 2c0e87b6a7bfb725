"""QTensor.dequantize and the peers' decoders, one thread: into cache, and into memory.

Bytes moved are the packed bytes that are read and the f32 that are written.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import kvant

from . import peers
from .cases import COLS, packed_rows
from .probes import buffer

pytestmark = pytest.mark.benchmark(max_time=0.2, min_rounds=7, warmup=True, disable_gc=True)

# Output of 256 KiB stays in cache. 32 MiB is written around the caches; the report has larger ones.
WARM, COLD, CHECKED = 16, 2048, 2
FORMATS = [f.name for f in kvant.formats()]
# The scalar twin into memory would add nothing but minutes.
FAST = kvant.isa.available()[:-1] or kvant.isa.available()


@cache
def packed(format: str) -> NDArray[np.uint8]:
    return packed_rows(format, WARM)


@cache
def wanted(format: str) -> NDArray[np.float32]:
    """The first rows as the scalar kernels decode them."""
    before = kvant.isa.current()
    kvant.isa.use("scalar")
    floats = kvant.QTensor(packed(format)[:CHECKED], format, (CHECKED, COLS)).dequantize()
    kvant.isa.use(before)
    result: NDArray[np.float32] = floats
    return result


def output(rows: int) -> NDArray[np.float32]:
    return buffer(rows * COLS * 4).view(np.float32).reshape(rows, COLS)


def check(format: str, got: NDArray[np.float32]) -> None:
    assert np.array_equal(got[:CHECKED].view(np.uint32), wanted(format).view(np.uint32))


@pytest.mark.parametrize("isa", kvant.isa.available())
@pytest.mark.parametrize("format", FORMATS)
def test_dequantize_in_cache(meter: Any, format: str, isa: str) -> None:
    q, out = kvant.QTensor(packed(format), format, (WARM, COLS)), output(WARM)
    kvant.isa.use(isa)
    call = lambda: q.dequantize(out=out, threads=1)  # noqa: E731
    meter(f"dequantize {format}, in cache", call, q.nbytes + out.nbytes)
    check(format, out)


@pytest.mark.parametrize("isa", FAST)
@pytest.mark.parametrize("format", FORMATS)
def test_dequantize_to_memory(meter: Any, format: str, isa: str) -> None:
    data, out = packed_rows(format, COLD), output(COLD)
    q = kvant.QTensor(data, format, out.shape)
    kvant.isa.use(isa)
    call = lambda: q.dequantize(out=out, threads=1)  # noqa: E731
    meter(f"dequantize {format}, to memory", call, q.nbytes + out.nbytes)


@pytest.mark.parametrize("peer", ["gguf-py", "libgguf", "ggml"])
@pytest.mark.parametrize("format", FORMATS)
def test_peer_in_cache(meter: Any, format: str, peer: str) -> None:
    info, data, out = kvant.format_info(format), packed(format), output(WARM)
    ggml, libgguf = peers.ggml(), peers.libgguf()
    call: Any = None
    if peer == "gguf-py":
        call = peers.gguf_py_decoder(info, data)
    elif peer == "libgguf" and libgguf:
        call = libgguf.decoder(info, data, out)
    elif peer == "ggml" and ggml:
        call = ggml.to_float(info, data, out)
    if call is None:
        pytest.skip(f"{peer} is absent or does not decode {format}")
    result = meter(f"dequantize {format}, in cache", call, data.nbytes + out.nbytes)
    check(format, result if peer == "gguf-py" else out)
