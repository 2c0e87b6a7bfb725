"""kvant.quantize and the peers' encoders: one thread, rows that stay in the second-level cache.

Bytes moved are the f32 that are read and the packed bytes that are written.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import kvant

from . import peers
from .cases import COLS, importance, weights
from .probes import buffer

pytestmark = pytest.mark.benchmark(max_time=0.2, min_rounds=7, warmup=True, disable_gc=True)

ROWS, CHECKED = 16, 2
FORMATS = [f.name for f in kvant.formats() if f.can_encode]
WEIGHTED = [f.name for f in kvant.formats() if f.can_encode and f.uses_importance]
CASES = [(f, False) for f in FORMATS] + [(f, True) for f in WEIGHTED]


@cache
def wanted(format: str, weighted: bool) -> NDArray[np.uint8]:
    """The first rows as the scalar kernels encode them."""
    before = kvant.isa.current()
    kvant.isa.use("scalar")
    q = kvant.quantize(weights(ROWS)[:CHECKED], format, importance=vector(weighted))
    kvant.isa.use(before)
    return q.data


def vector(weighted: bool) -> NDArray[np.float32] | None:
    return importance() if weighted else None


def name(case: tuple[str, bool]) -> str:
    return f"{case[0]}{'-importance' if case[1] else ''}"


@pytest.mark.parametrize("isa", kvant.isa.available())
@pytest.mark.parametrize("case", CASES, ids=name)
def test_quantize(meter: Any, case: tuple[str, bool], isa: str) -> None:
    format, weighted = case
    x, w = weights(ROWS), vector(weighted)
    out = np.empty((ROWS, kvant.format_info(format).row_bytes(COLS)), np.uint8)
    kvant.isa.use(isa)

    def call() -> kvant.QTensor:
        return kvant.quantize(x, format, importance=w, threads=1, out=out)

    meter(f"quantize {name(case)}", call, x.nbytes + out.nbytes)
    assert np.array_equal(out[:CHECKED], wanted(format, weighted))


@pytest.mark.parametrize("peer", ["ggml chunk", "libgguf"])
@pytest.mark.parametrize("case", CASES, ids=name)
def test_peer(meter: Any, case: tuple[str, bool], peer: str) -> None:
    info, w, x = kvant.format_info(case[0]), vector(case[1]), weights(ROWS)
    out = buffer(ROWS * info.row_bytes(COLS)).reshape(ROWS, -1)
    ggml, libgguf = peers.ggml(), peers.libgguf()
    call: Any = None
    if peer == "libgguf" and libgguf:
        call = libgguf.encoder(info, x, out, w)
    elif peer == "ggml chunk" and ggml:
        call = ggml.chunk(info, x, out, w)
    if call is None:
        pytest.skip(f"{peer} is absent or does not encode {info.name}")
    meter(f"quantize {name(case)}", call, x.nbytes + out.nbytes)
    if peer == "libgguf":
        assert np.array_equal(out[:CHECKED], wanted(*case))
