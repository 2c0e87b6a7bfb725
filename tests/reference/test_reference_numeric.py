"""The shared steps on inputs where C leaves the answer to the processor."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvant.reference import decode, encode
from kvant.reference.fp4 import e4m3_byte, exponent_byte, nearest_code
from kvant.reference.grids import BOOKS, grid
from kvant.reference.iq4 import LEVELS, nearest_level
from kvant.reference.numeric import (
    low_byte,
    nearest_int,
    ordered_sum,
    peak,
    round_half_away,
    signed_byte,
    to_half,
    truncate,
)

floats = st.floats(width=32, allow_nan=False)


def f32(*values):
    return np.array(values, np.float32)


@given(st.floats(-4194303, 4194303, width=32))
def test_nearest_int_rounds_half_to_even(x):
    assert nearest_int(f32(x))[0] == np.rint(np.float32(x))


def test_nearest_int_reads_the_mantissa_outside_its_domain():
    with np.errstate(all="ignore"):
        inf = f32(np.inf)
        assert nearest_int(inf)[0] == nearest_int(-inf)[0] == -(2**22)
        assert nearest_int(inf - inf)[0] == 0
        assert nearest_int(f32(2.0**22))[0] == -(2**22)
        assert nearest_int(f32(2.0**22 + 3))[0] == -(2**22) + 2


def test_truncate_gives_int_min_for_what_does_not_fit():
    big = f32(np.nan, np.inf, -np.inf, 2.0**31, -(2.0**31), 2147483520, -7.9)
    assert truncate(big).tolist() == [-(2**31)] * 5 + [2147483520, -7]


def test_casts_to_bytes_keep_the_lowest_bits():
    wide = np.array([-(2**31), -1, 200, 256], np.int32)
    assert low_byte(wide).tolist() == [0, 255, 200, 0]
    assert signed_byte(wide).tolist() == [0, -1, -56, 0]


@given(floats)
def test_round_half_away_is_exact(x):
    value = float(np.float32(x))
    expected = value
    if abs(value) < 2**24:
        expected = np.copysign(np.floor(abs(value) + 0.5), value)
    with np.errstate(invalid="ignore"):
        assert round_half_away(f32(x))[0] == np.float32(expected)


def test_round_half_away_below_one_half():
    assert round_half_away(f32(0.49999997, -0.49999997, 0.5, -0.5)).tolist() == [0, 0, 1, -1]


def test_sums_run_in_order_and_start_at_positive_zero():
    column = np.array([2.0**24, 1.0, 1.0, -(2.0**24)], np.float32)[:, None]
    assert ordered_sum(column)[0] == 0.0
    assert not np.signbit(ordered_sum(np.full((3, 1), -0.0, np.float32)))[0]


def test_peak_takes_the_first_of_equal_magnitudes():
    columns = f32(1, -3, 3, 2)[:, None]
    amax, signed = peak(columns)
    assert (amax[0], signed[0]) == (3, -3)
    assert not np.signbit(peak(np.full((4, 1), -0.0, np.float32))[1])[0]


def test_a_nan_scale_has_one_bit_pattern():
    with np.errstate(all="ignore"):
        assert to_half(f32(np.nan, -np.nan, 1e9, -1e9)).tolist() == [0xFE00, 0xFE00, 0x7C00, 0xFC00]


@given(st.floats(-130, 130, width=32))
def test_nearest_level_is_nearest(x):
    miss = np.abs(LEVELS.astype(np.float64) - float(np.float32(x)))
    assert miss[nearest_level(f32(x))[0]] == miss.min()


def test_nearest_level_takes_the_upper_of_two_and_the_last_for_nan():
    middles = (LEVELS[1:].astype(np.float32) + LEVELS[:-1]) / np.float32(2)
    assert nearest_level(middles).tolist() == list(range(1, 16))
    assert nearest_level(f32(np.nan, np.inf, -np.inf)).tolist() == [15, 15, 0]


@pytest.mark.parametrize("power", range(-124, 129))
def test_mxfp4_exponent_near_a_power_of_two_follows_the_rounded_logarithm(power):
    """n units below 2**power count as 2**power when n * log2(e) / 2**24 is below half a step."""
    units = np.arange(1, 64)
    x = ((power + 127 << 23) - units).astype(np.uint32).view(np.float32)
    # Steps of f32 on the near side of `power`, where the logarithms lie; none round up to 0.
    beside = power - 0.5 if power > 0 else -power
    half_step = 2.0 ** (np.floor(np.log2(beside)) - 24) if power else 0.0
    rounds_up = units * np.log2(np.e) / 2**24 < half_step
    assert exponent_byte(x).tolist() == np.where(rounds_up, power + 125, power + 124).tolist()


def test_mxfp4_exponent_of_zero_and_of_denormals():
    tiny = np.array([0, 1, 0x00400000, 0x00800000, 0x01000000], np.uint32).view(np.float32)
    # -149 - 2 + 127 = -24 and so on: negative numbers wrap in the byte.
    assert exponent_byte(tiny).tolist() == [0, 232, 254, 255, 0]


def test_e4m3_rounds_halves_up_and_jumps_to_448_from_256():
    x = f32(0, 1, 1.0625, 1.1875, 240, 247.9, 248, 256, 300, 448, 1e9, 2**-9, 2**-10, 2**-11)
    expected = [0, 0x38, 0x39, 0x3A, 0x77, 0x77, 0x7E, 0x7E, 0x7E, 0x7E, 0x7E, 1, 1, 0]
    assert e4m3_byte(x).tolist() == expected


def test_e2m1_takes_the_lower_code_on_a_tie_and_never_minus_zero():
    ties = f32(0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)
    scale = f32(0.5)
    assert nearest_code(ties, scale).tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert nearest_code(-ties, scale).tolist() == [0, 9, 10, 11, 12, 13, 14]
    assert nearest_code(f32(-0.0, 1e-30, -1e-30), scale).tolist() == [0, 0, 0]


def test_f16_keeps_what_a_nan_carries_when_decoded():
    halves = np.array([0x7C01, 0xFE55, 0x7C00, 0x0001], "<u2").view(np.uint8)
    bits = decode(halves, "f16").view(np.uint32).tolist()
    assert bits == [0x7FC02000, 0xFFCAA000, 0x7F800000, 0x33800000]


def test_f16_and_bf16_encode_nans_as_quiet_ones():
    nans = np.array([0x7F800001, 0xFFC12345], np.uint32).view(np.float32)
    assert encode(nans, "f16").view("<u2").tolist() == [0x7E00, 0xFE00]
    assert encode(nans, "bf16").view("<u2").tolist() == [0x7FC0, 0xFFC1]


@pytest.mark.parametrize("name", BOOKS)
def test_a_code_book_is_an_ascending_set_of_points(name):
    book = BOOKS[name]
    index = np.searchsorted(book.levels, grid(name))
    key = index.astype(np.int64) @ (len(book.levels) ** np.arange(book.width))
    assert grid(name).shape == (book.points, book.width)
    assert (np.diff(key) > 0).all()
