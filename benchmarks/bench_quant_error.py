"""kvant.quant_error, one fused pass, against decoding first and measuring with NumPy.

Bytes moved are the f32 originals and the packed bytes that are read.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import kvant

from .cases import COLS, importance, weights

pytestmark = pytest.mark.benchmark(max_time=0.2, min_rounds=7, warmup=True, disable_gc=True)

ROWS = 16
FORMATS = ["bf16", "q8_0", "q4_0", "q4_k", "q6_k", "iq4_xs", "mxfp4"]


def with_numpy(
    x: NDArray[np.float32], q: kvant.QTensor, w: NDArray[np.float32]
) -> tuple[float, float, float]:
    """rmse, weighted error and cosine in f64, each array pass on its own."""
    y = q.dequantize(threads=1).astype(np.float64)
    x64 = x.astype(np.float64)
    e = (x64 - y) ** 2
    weighted = np.sqrt((e * w).sum() / (x64**2 * w).sum())
    cosine = (x64 * y).sum() / np.sqrt((x64**2).sum() * (y**2).sum())
    return float(np.sqrt(e.mean())), float(weighted), float(cosine)


@pytest.mark.parametrize("isa", kvant.isa.available())
@pytest.mark.parametrize("format", FORMATS)
def test_quant_error(meter: Any, format: str, isa: str) -> None:
    x, w = weights(ROWS), importance()
    q = kvant.quantize(x, format)
    kvant.isa.use(isa)
    call = lambda: kvant.quant_error(x, q, w, threads=1)  # noqa: E731
    e = meter(f"quant_error {format}", call, x.nbytes + q.nbytes)
    np.testing.assert_allclose((e.rmse, e.weighted, e.cosine), with_numpy(x, q, w), rtol=1e-6)


@pytest.mark.parametrize("format", FORMATS)
def test_numpy(meter: Any, format: str) -> None:
    x, w = weights(ROWS), importance()
    q = kvant.quantize(x, format)
    meter(f"quant_error {format}", lambda: with_numpy(x, q, w), x.nbytes + q.nbytes)
    assert q.shape == (ROWS, COLS)
