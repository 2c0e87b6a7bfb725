"""kvant.matmul: one row of x and many, packed weights and weights as in a file, one thread.

Bytes moved are the packed bytes of the weights, x and the result. Weights are larger than the
second-level cache and may stay in the last one: `kvant bench matmul` has the cold figures.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import kvant
from kvant.bench.ggml import ggml

from .cases import COLS, packed_rows

pytestmark = pytest.mark.benchmark(max_time=0.2, min_rounds=7, warmup=True, disable_gc=True)

ROWS = 2048
FORMATS = ("q4_0", "q8_0", "q4_k", "q6_k", "iq4_xs", "mxfp4")
TOKENS = (1, 8, 32)
FAST = kvant.isa.available()[:-1] or kvant.isa.available()


@cache
def weights(format: str) -> kvant.QTensor:
    return kvant.QTensor(packed_rows(format, ROWS), format, (ROWS, COLS))


@cache
def inputs(m: int) -> NDArray[np.float32]:
    return np.random.default_rng(m).standard_normal((m, COLS), np.float32)


@cache
def wanted(format: str, m: int) -> NDArray[np.float32]:
    """The first rows of x times the first rows of the weights, as the scalar kernels see it."""
    before = kvant.isa.current()
    kvant.isa.use("scalar")
    result = kvant.matmul(inputs(m)[:2], weights(format))
    kvant.isa.use(before)
    return result


@pytest.mark.parametrize("kind", ["packed", "unpacked"])
@pytest.mark.parametrize("isa", FAST)
@pytest.mark.parametrize("m", TOKENS)
@pytest.mark.parametrize("format", FORMATS)
def test_matmul(meter: Any, format: str, m: int, isa: str, kind: str) -> None:
    q, x, out = weights(format), inputs(m), np.empty((m, ROWS), np.float32)
    w = q.pack() if kind == "packed" else q
    kvant.isa.use(isa)
    call = lambda: kvant.matmul(x, w, out=out, threads=1)  # noqa: E731
    meter(f"matmul {format}, m = {m}", call, q.nbytes + x.nbytes + out.nbytes)
    assert np.array_equal(out[:2].view(np.uint32), wanted(format, m).view(np.uint32))


@pytest.mark.parametrize("kind", ["ggml", "ggml repack"])
@pytest.mark.parametrize("m", TOKENS)
@pytest.mark.parametrize("format", FORMATS)
def test_peer(meter: Any, format: str, m: int, kind: str) -> None:
    q, x, peer = weights(format), inputs(m), ggml()
    call = peer and peer.product(q.info, q.data, x, 1, repack=kind != "ggml")
    if not call:
        pytest.skip(f"{kind} is absent or does not multiply {format}")
    meter(f"matmul {format}, m = {m}", call, q.nbytes + x.nbytes + call.out.nbytes)
    call.close()
