"""The error measures against their definitions written out naively."""

from __future__ import annotations

import math

import numpy as np
import pytest

from distributions import distribution, importance
from kvant.reference import decode, encode, quant_error


def test_measures_match_their_definitions():
    x = distribution("t5", 3, 64, 0)
    y = decode(encode(x, "q4_0"), "q4_0")
    w = importance(64, 0)
    pairs = [(float(a), float(b)) for a, b in zip(x.ravel(), y.ravel(), strict=True)]
    squares = math.fsum((a - b) ** 2 for a, b in pairs)
    xx = math.fsum(a * a for a, _ in pairs)
    yy = math.fsum(b * b for _, b in pairs)
    got = quant_error(x, y, w)
    assert got.rmse == pytest.approx(math.sqrt(squares / len(pairs)))
    assert got.relative_rmse == pytest.approx(math.sqrt(squares / xx))
    assert got.max == max(abs(a - b) for a, b in pairs)
    assert got.cosine == pytest.approx(math.fsum(a * b for a, b in pairs) / math.sqrt(xx * yy))
    columns = [float(each) for each in w] * 3
    above = math.fsum(c * (a - b) ** 2 for c, (a, b) in zip(columns, pairs, strict=True))
    below = math.fsum(c * a * a for c, (a, _) in zip(columns, pairs, strict=True))
    assert got.weighted == pytest.approx(math.sqrt(above / below))


def test_per_row_is_the_whole_taken_row_by_row():
    x = distribution("normal", 4, 32, 1)
    y = np.round(x)
    rows = quant_error(x, y, per_row=True)
    assert rows.rmse.shape == (4,)
    for i in range(4):
        one = quant_error(x[i], y[i])
        assert rows.relative_rmse[i] == pytest.approx(one.relative_rmse)
        assert rows.cosine[i] == pytest.approx(one.cosine)


def test_zeros_are_no_error_but_a_missed_zero_is():
    zero, one = np.zeros(4, np.float32), np.ones(4, np.float32)
    same = quant_error(zero, zero)
    assert (same.relative_rmse, same.weighted, same.cosine, same.max) == (0, 0, 1, 0)
    assert quant_error(zero, one).relative_rmse == np.inf


def test_without_importance_weighted_is_relative():
    x = distribution("normal", 2, 32, 2)
    got = quant_error(x, np.round(x))
    assert got.weighted == pytest.approx(got.relative_rmse)


@pytest.mark.parametrize(
    "args", [(np.zeros(3), np.zeros(4)), (np.zeros(3), np.zeros(3), np.ones(4))]
)
def test_shapes_must_fit(args):
    with pytest.raises(ValueError, match="expected"):
        quant_error(*args)
