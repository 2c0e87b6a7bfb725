"""The functions the reference of the operations is made of, against f64 and exact arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvant.reference import ops

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
close_floats = st.floats(-4, 4, width=32)


def nearest(x: Fraction) -> float:
    """The nearest f32, ties to even."""
    if not x:
        return 0.0
    exponent = max(math.floor(math.log2(abs(x))) - 24, -149)
    while abs(x) >= Fraction(2) ** (exponent + 24):
        exponent += 1
    exponent = max(exponent, -149)
    while exponent > -149 and abs(x) < Fraction(2) ** (exponent + 23):
        exponent -= 1
    whole = round(x / Fraction(2) ** exponent)
    return math.inf if abs(whole) * 2.0**exponent >= 2.0**128 else whole * 2.0**exponent


@given(a=st.one_of(floats, close_floats), b=st.one_of(floats, close_floats), c=floats)
def test_fma_rounds_once(a, b, c):
    found = float(ops.fma(np.float32(a), np.float32(b), np.float32(c)))
    wanted = nearest(Fraction(a) * Fraction(b) + Fraction(c))
    assert abs(found) == abs(wanted) if math.isinf(wanted) else found == wanted


def units(found, wanted):
    return np.abs(found - wanted) / np.exp2(np.maximum(np.frexp(wanted)[1], -125) - 24.0)


def test_exp_is_within_nine_tenths_of_a_unit():
    x = np.random.default_rng(0).uniform(-87.33, 88.37, 300_000).astype(np.float32)
    x[:100_000] /= np.float32(100)
    assert units(ops.exp(x), np.exp(x.astype(np.float64))).max() < 0.9


def test_ends_of_exp():
    inf = np.inf
    x = np.float32([0, -0.0, -87.69, -1000, -inf, 88.37, 88.38, 1000, inf])
    found = ops.exp(x)
    assert found[:5].tolist() == [1, 1, 0, 0, 0]
    assert np.isfinite(found[5]) and (found[6:] == inf).all()
    assert np.isnan(ops.exp(np.float32([np.nan]))).all()


def test_cosine_and_sine():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(-10, 10, 20_000), rng.uniform(-1e8, 1e8, 20_000)])
    # Where the reduction cancels most: next to multiples of pi / 2.
    x = np.concatenate([x, rng.integers(0, 6 * 10**7, 20_000) * (math.pi / 2)])
    cos, sin = ops.cos_sin(x)
    assert np.abs(cos - np.vectorize(math.cos)(x)).max() < 1e-15
    assert np.abs(sin - np.vectorize(math.sin)(x)).max() < 1e-15


@pytest.mark.parametrize("theta", [1.0, 1.5, 10000.0, 500000.0, 1e6, 1e300])
@pytest.mark.parametrize("rotary", [2, 6, 64, 128])
def test_frequencies(theta, rotary):
    wanted = [theta ** (-2 * i / rotary) for i in range(rotary // 2)]
    # The exponent, up to ln 1e300 = 690, is known to two units of its last place.
    bound = (2 + 2 * math.log(theta)) * 2.0**-52
    assert np.abs(ops.frequencies(theta, rotary) / wanted - 1).max() < bound


def test_lane_sum_is_the_stated_order():
    x = np.random.default_rng(0).standard_normal(37).astype(np.float32)
    lanes = [np.float32(0)] * 16
    for i, value in enumerate(x):
        lanes[i % 16] = lanes[i % 16] + value
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = [a + b for a, b in zip(lanes[:half], lanes[half:], strict=True)]
    assert ops.lane_sum(x)[0] == lanes[0]


def test_embedding_is_decoding():
    data = np.random.default_rng(0).integers(0, 120, (5, 34), np.uint8)
    found = ops.embedding(data, "q8_0", [[4, 0, 4]])
    assert found.shape == (1, 3, 32)
    assert np.array_equal(found[0, 0], found[0, 2])
