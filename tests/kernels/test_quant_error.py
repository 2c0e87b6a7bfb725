"""kvant.quant_error: agrees with the reference, and every ISA gives the same bits."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
from blocks import ENCODED, cols_of, row_counts, seeds
from hypothesis import given
from hypothesis import strategies as st

import kvant
from distributions import NAMES as FAMILIES
from distributions import distribution, importance
from kvant import reference
from support import every_isa

# 7 sums of up to n float64 terms in any order: n * 2^-53, and a few roundings after them.
TOLERANCE = 1e-12


def close(found, wanted):
    return all(
        np.allclose(f, w, rtol=TOLERANCE, atol=0, equal_nan=True)
        for f, w in zip(astuple(found), astuple(wanted), strict=True)
    )


@pytest.mark.parametrize("name", ENCODED)
@given(
    family=st.sampled_from([f for f in FAMILIES if f != "extreme"]),
    rows=row_counts,
    seed=seeds,
    weighted=st.booleans(),
)
def test_agrees_with_the_reference_and_between_isas(name, family, rows, seed, weighted):
    x = distribution(family, rows, cols_of(name, 2), seed)
    weights = importance(x.shape[1], seed) if weighted else None
    q = kvant.quantize(x, name)
    y = q.dequantize()
    results = set()
    for isa in every_isa():
        found = kvant.quant_error(x, q, weights)
        rows_found = kvant.quant_error(x, q, weights, per_row=True)
        assert close(found, reference.quant_error(x, y, weights)), isa
        assert close(rows_found, reference.quant_error(x, y, weights, per_row=True)), isa
        results.add(np.array(astuple(found)).tobytes() + np.array(astuple(rows_found)).tobytes())
    assert len(results) == 1


def test_known_errors():
    x = np.zeros((2, 32), np.float32)
    x[0, :2] = 3, 4
    zero = kvant.QTensor.from_bytes(bytes(2 * 34), "q8_0", (2, 32))
    found = kvant.quant_error(x, zero, per_row=True)
    assert found.rmse.tolist() == [np.sqrt(25 / 32), 0]
    assert found.relative_rmse.tolist() == [1, 0]
    assert found.max.tolist() == [4, 0]
    assert found.cosine.tolist() == [1, 1]  # a quotient of two zeros counts as no error
    weights = np.zeros(32, np.float32)
    weights[1] = 2
    assert kvant.quant_error(x, zero, weights).weighted == 1


def test_exact_weights_have_no_error():
    x = distribution("normal", 5, 64, 0)
    found = kvant.quant_error(x, kvant.quantize(x, "f32"))
    assert (found.rmse, found.max, found.weighted) == (0, 0, 0)
    assert abs(found.cosine - 1) < 1e-15


@pytest.mark.parametrize("name", ["q8_0", "q4_k"])
def test_threads_and_layout_do_not_show(name):
    x = distribution("t5", 40, cols_of(name, 8), 2).reshape(5, 8, -1)
    weights = np.stack([importance(x.shape[-1], k) for k in range(5)])
    q = kvant.quantize(x, name)
    alone = kvant.quant_error(x, q, weights, threads=1)
    strided = np.concatenate([x, x], axis=-1)[..., : x.shape[-1]]
    for threads in (2, 3, 4):
        assert kvant.quant_error(strided, q, weights, threads=threads) == alone
    each = [kvant.quant_error(x[k], q[k], weights[k]).weighted for k in range(5)]
    rows = kvant.quant_error(x, q, weights, per_row=True)
    assert rows.weighted.shape == (5, 8)
    assert min(each) <= alone.weighted <= max(each)


def test_shapes_must_agree():
    q = kvant.quantize(np.zeros((2, 32), np.float32), "q8_0")
    with pytest.raises(kvant.ShapeError, match=r"weights of shape \(2, 32\), got \(32,\)"):
        kvant.quant_error(np.zeros(32, np.float32), q)
    with pytest.raises(kvant.ShapeError, match=r"expected f32, f16 or bf16, got float64"):
        kvant.quant_error(np.zeros((2, 32)), q)
