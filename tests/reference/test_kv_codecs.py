"""Codecs of cached keys and values: the tables, the bits by hand, the errors the sources state."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributions import wild
from kvant.reference import FORMATS, encode, kv_codecs, ops
from kvant.reference.kv_codecs import HALF_TABLES, LEVELS, RULES, THRESHOLDS
from support import words

BLOCKS = ("q8_0", "q6_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
RANGES = ("kivi4", "kivi2")
CODED = (*BLOCKS, *HALF_TABLES, *RANGES)


def normal(rows, dim, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, dim), dtype=np.float32)


def through(codec, x, rule="nc"):
    return kv_codecs.decode(kv_codecs.encode(codec, x, rule), x.shape[-1])


def error(x, y):
    x, y = x.astype(np.float64), y.astype(np.float64)
    return np.sum((y - x) ** 2) / np.sum(x * x)


def slope(x, y):
    x, y = x.astype(np.float64), y.astype(np.float64)
    return np.sum(y * x) / np.sum(x * x)


def test_the_codecs():
    assert ("f32", "f16", "bf16", *BLOCKS, *HALF_TABLES, *RANGES) == kv_codecs.CODECS
    assert kv_codecs.BY_CHANNEL == RANGES


def test_the_tables():
    half = {name: table[len(table) // 2 :].tolist() for name, table in LEVELS.items()}
    assert half == {
        "lm4": [6, 18, 31, 44, 59, 76, 97, 127],
        "lm3": [15, 45, 80, 127],
        "lm2": [38, 127],
    }
    above = {name: table[len(table) // 2 :].tolist() for name, table in THRESHOLDS.items()}
    assert above == {
        "lm4": np.float32(
            [0, 0.256845, 0.519495, 0.7947, 1.091685, 1.42527, 1.82436, 2.366685]
        ).tolist(),
        "lm3": np.float32([0, 0.498785, 1.044815, 1.733875]).tolist(),
        "lm2": np.float32([0, 0.9788]).tolist(),
    }


@pytest.mark.parametrize("codec", HALF_TABLES)
def test_the_tables_are_symmetric(codec):
    bits = int(codec[2:])
    levels, thresholds = LEVELS[codec], THRESHOLDS[codec]
    assert (len(levels), len(thresholds)) == (2**bits, 2**bits - 1)
    assert np.array_equal(levels, -levels[::-1]) and np.array_equal(thresholds, -thresholds[::-1])
    assert (np.diff(levels) > 0).all() and (np.diff(thresholds) > 0).all()
    assert thresholds[2 ** (bits - 1) - 1] == 0 and levels[-1] == 127


@pytest.mark.parametrize("codec", HALF_TABLES)
def test_levels_are_means_of_their_cells(codec):
    """The condition of Lloyd (1982), for coordinates on the sphere of radius sqrt(128)."""
    x = np.linspace(0, math.sqrt(128), 2_000_001)
    density = np.maximum(1 - x * x / 128, 0) ** 62.5
    half = np.array(HALF_TABLES[codec])
    edges = np.concatenate([[0], (half[1:] + half[:-1]) / 2, [np.inf]])
    cell = np.searchsorted(edges, x, side="right") - 1
    cell[-1] = len(half) - 1
    means = np.bincount(cell, density * x) / np.bincount(cell, density)
    assert np.abs(means - half).max() < 1e-4


# Mean squared errors over mean squares for Gaussian numbers, as published to so many digits.
PUBLISHED = {
    "q8_0": (2.87e-5, 0.005e-5),
    "q6_0": (4.5e-4, 0.05e-4),
    "q5_1": (1.43e-3, 0.005e-3),
    "q5_0": (1.83e-3, 0.005e-3),
    "q4_1": (6.11e-3, 0.005e-3),
    "iq4_nl": (5.82e-3, 0.005e-3),
    "q4_0": (7.39e-3, 0.005e-3),
}


@pytest.mark.parametrize("codec", BLOCKS)
def test_errors_of_block_codecs(codec):
    wanted, rounding = PUBLISHED[codec]
    x = normal(8000, 128)
    y = through(codec, x)
    assert abs(error(x, y) - wanted) < 0.01 * wanted + rounding
    assert abs(slope(x, y) - 1) < 0.003


@pytest.mark.parametrize(
    ("codec", "wanted", "gain"), [("kivi4", 6.11e-3, 1.001), ("kivi2", 0.154, 1.014)]
)
def test_errors_of_ranges(codec, wanted, gain):
    """Of rows, and of channels: there it is the same."""
    x = normal(8000, 128)
    for y in (through(codec, x), kv_codecs.encode_channels(codec, x).decode(128)):
        assert abs(error(x, y) - wanted) < 0.01 * wanted
        assert abs(slope(x, y) - gain) < 1e-3


# (error, slope) of nc, unb, ls for rows of 128.
SCALED = {
    "lm4": ((0.00921, 0.995), (0.00927, 1.0), (0.00918, 0.991)),
    "lm3": ((0.03388, 0.983), (0.03479, 1.0), (0.03358, 0.966)),
    "lm2": ((0.1191, 0.941), (0.1309, 1.0), (0.1155, 0.885)),
}


@pytest.mark.parametrize("codec", HALF_TABLES)
@pytest.mark.parametrize("rule", RULES)
def test_errors_of_level_codecs(codec, rule):
    wanted, gain = SCALED[codec][RULES.index(rule)]
    x = normal(8000, 128)
    y = through(codec, x, rule)
    assert abs(error(x, y) - wanted) < 0.01 * wanted
    assert abs(slope(x, y) - gain) < (2e-5 if rule == "unb" else 1e-3)


# Of tables made for each length, at the row's own norm.
OWN = {
    64: {"lm4": 0.009132, "lm3": 0.033391, "lm2": 0.114526},
    128: {"lm4": 0.009315, "lm3": 0.033966, "lm2": 0.116000},
    256: {"lm4": 0.009408, "lm3": 0.034256, "lm2": 0.116740},
}


@pytest.mark.parametrize("codec", HALF_TABLES)
@pytest.mark.parametrize("dim", OWN)
def test_the_table_of_128_serves_other_lengths(codec, dim):
    x = normal(8000, dim)
    sigma = np.sqrt(np.mean(x.astype(np.float64) ** 2, axis=1, keepdims=True))
    y = kv_codecs.encode(codec, x).codes * (HALF_TABLES[codec][-1] / 127 * sigma)
    assert abs(error(x, y) - OWN[dim][codec]) < 0.01 * OWN[dim][codec]
    least = error(x, through(codec, x, "ls"))
    assert least < error(x, y) and all(error(x, through(codec, x, r)) >= least for r in RULES)


@pytest.mark.parametrize("codec", HALF_TABLES)
def test_scale_rules_keep_what_they_say(codec):
    x = normal(500, 96, 1)
    wide, square = x.astype(np.float64), np.sum(x.astype(np.float64) ** 2, axis=1)
    y = {rule: through(codec, x, rule).astype(np.float64) for rule in RULES}
    # The scale is rounded to f16.
    assert np.abs(np.sum(y["nc"] ** 2, axis=1) / square - 1).max() < 2e-3
    assert np.abs(np.sum(y["unb"] * wide, axis=1) / square - 1).max() < 1e-3
    left = np.sum(y["ls"] * (wide - y["ls"]), axis=1)
    assert np.abs(left / square).max() < 2e-3


@pytest.mark.parametrize("codec", sorted(set(BLOCKS) - {"q6_0"}))
def test_block_codecs_are_the_formats(codec):
    x = np.concatenate([normal(20, 96), wild(20, 96, 3, 0.0) / np.float32(1e26), 0 * normal(1, 96)])
    wanted = FORMATS[codec].decode(encode(x, codec))
    assert np.array_equal(words(through(codec, x)), words(wanted))


def q6_0_by_hand(x):
    """The block of ik_llama.cpp, number by number: bytes and codes."""
    one = np.float32
    peak = one(0)
    for value in x:
        if abs(value) > abs(peak):
            peak = value
    d = peak / one(-32)
    inverse = one(1) / d if d else one(0)
    codes = [min(63, int(value * inverse + one(32.5))) for value in x]
    qh, qs = [0] * 8, [0] * 16
    for j in range(16):
        qs[j] = (codes[j] & 15) | (codes[j + 16] & 15) << 4
        qh[j % 8] |= ((codes[j] >> 4) | (codes[j + 16] >> 4) << 2) << 4 * (j // 8)
    return [*np.float16(d).tobytes(), *qh, *qs], [code - 32 for code in codes]


@given(seed=st.integers(0, 2**31), exponent=st.integers(-20, 15), ties=st.booleans())
def test_q6_0_by_hand(seed, exponent, ties):
    x = normal(1, 32, seed) * np.float32(2.0**exponent)
    if ties:
        x = np.rint(x * np.float32(2.0 ** (2 - exponent)))
    data, codes = q6_0_by_hand(x[0])
    assert kv_codecs.q6_0_bytes(x)[0].tolist() == data
    coded = kv_codecs.encode("q6_0", x)
    assert coded.codes[0].tolist() == codes and coded.minimum is None
    again = kv_codecs.q6_0_codes(kv_codecs.q6_0_bytes(x))
    assert all(np.array_equal(a, b) for a, b in zip(coded[:2], again[:2], strict=True))


def range_by_hand(values, top):
    """Codes, scale and minimum of a group, number by number."""
    one = np.float32
    low, high = min(values), max(values)
    scale = (high - low) / one(top)
    inverse = one(1) / scale if scale else one(0)
    codes = [min(top, int((value - low) * inverse + one(0.5))) for value in values]
    return codes, one(np.float16(scale)), one(np.float16(low))


@given(
    seed=st.integers(0, 2**31),
    codec=st.sampled_from(RANGES),
    exponent=st.integers(-20, 12),
    flat=st.booleans(),
)
def test_ranges_by_hand(seed, codec, exponent, flat):
    x = normal(64, 33, seed) * np.float32(2.0**exponent)
    if flat:
        x[:, ::2] = x[:1, ::2]
    top = 2 ** int(codec[-1]) - 1
    values = kv_codecs.encode(codec, x[:2])
    wanted = range_by_hand(list(x[0, :32]), top)
    assert (values.codes[0, :32].tolist(), values.scale[0, 0], values.minimum[0, 0]) == wanted
    keys = kv_codecs.encode_channels(codec, x)
    near = kv_codecs.rounded("f16", x)
    for group in range(2):
        part = slice(32 * group, 32 * group + 32)
        for channel in (0, 1, 32):
            wanted = range_by_hand(list(near[part, channel]), top)
            got = keys.scale[group, channel], keys.minimum[group, channel]
            assert (keys.codes[part, channel].tolist(), *got) == wanted


def test_channels_are_refused():
    x = normal(32, 8)
    for codec, keys in (("q4_1", x), ("kivi4", x[:31])):
        with pytest.raises(ValueError, match=r"\[encode_channels\] expected"):
            kv_codecs.encode_channels(codec, keys)
    x[3, 3] = 65520
    with pytest.raises(ValueError, match="expected numbers"):
        kv_codecs.encode_channels("kivi2", x)


def lane_sum_by_hand(terms):
    lanes = [np.float32(0)] * 16
    for i, term in enumerate(terms):
        lanes[i % 16] = lanes[i % 16] + term
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = [a + b for a, b in zip(lanes[:half], lanes[half:], strict=True)]
    return lanes[0]


def levels_by_hand(codec, x, rule):
    """(codes, scale) of one row that is not tiny."""
    y = [*x, *[np.float32(0)] * (-len(x) % 32)]
    square = lane_sum_by_hand([value * value for value in y])
    inverse = np.sqrt(np.float32(len(x)) / square)
    codes = [
        int(LEVELS[codec][sum(bool(value * inverse >= t) for t in THRESHOLDS[codec])])
        for value in y
    ]
    whole = np.float32(sum(code * code for code in codes[: len(x)]))
    product = lane_sum_by_hand([np.float32(c) * value for c, value in zip(codes, y, strict=True)])
    scale = {"nc": np.sqrt(square / whole), "unb": square / product, "ls": product / whole}[rule]
    return codes, np.float32(np.float16(scale))


@given(
    seed=st.integers(0, 2**31),
    dim=st.sampled_from([1, 20, 32, 64, 80, 128]),
    codec=st.sampled_from(sorted(HALF_TABLES)),
    rule=st.sampled_from(RULES),
    exponent=st.integers(-12, 12),
)
def test_levels_by_hand(seed, dim, codec, rule, exponent):
    x = normal(1, dim, seed) * np.float32(2.0**exponent)
    codes, scale = levels_by_hand(codec, x[0], rule)
    coded = kv_codecs.encode(codec, x, rule)
    assert coded.codes[0].tolist() == codes
    assert (coded.scale == scale).all() and coded.scale.shape == (1, len(codes) // 32)


@pytest.mark.parametrize("codec", CODED)
@pytest.mark.parametrize("dim", [1, 33, 80])
def test_rows_are_filled_up(codec, dim):
    x = normal(6, dim).reshape(2, 3, dim)
    coded = kv_codecs.encode(codec, x)
    width = -(-dim // 32) * 32
    assert coded.codes.shape == (2, 3, width) and coded.scale.shape == (2, 3, width // 32)
    assert coded.codes.dtype == np.int32 and coded.scale.dtype == np.float32
    assert (coded.minimum is not None) == (codec in ("q4_1", "q5_1", *RANGES))
    assert np.abs(coded.codes).max() <= 127
    assert kv_codecs.decode(coded, dim).shape == x.shape
    if codec in BLOCKS:
        padded = kv_codecs.encode(codec, kv_codecs.filled(x))
        assert np.array_equal(padded.codes, coded.codes)


@pytest.mark.parametrize("codec", CODED)
def test_rows_of_nothing(codec):
    for x in (np.zeros((2, 64), np.float32), np.full((2, 64), -1e-30, np.float32)):
        for rule in RULES:
            assert (through(codec, x, rule) == 0).all()


@pytest.mark.parametrize("codec", CODED)
def test_large_rows(codec):
    x = normal(50, 64, 2) * np.float32(10_000)
    small = error(x, through(codec, x / np.float32(10_000)) * np.float32(10_000))
    assert abs(error(x, through(codec, x)) / small - 1) < 0.02


@pytest.mark.parametrize("codec", CODED)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e9, -1e25])
def test_what_no_scale_can_hold_is_refused(codec, value):
    for rule in RULES:
        for x in (normal(3, 64), np.zeros((3, 64), np.float32)):
            x[1, 7] = value
            with pytest.raises(ValueError, match="expected numbers"):
                kv_codecs.encode(codec, x, rule)
            # The sum of these is zero, that of their squares infinite.
            x[1, 8] = -value
            with pytest.raises(ValueError, match="expected numbers"):
                kv_codecs.encode(codec, x, rule)


def test_unknown_names_are_refused():
    x = normal(1, 32)
    for case in (
        lambda: kv_codecs.encode("f16", x),
        lambda: kv_codecs.encode("lm3", x, "best"),
        lambda: kv_codecs.rounded("q8_0", x),
    ):
        with pytest.raises(ValueError, match="expected"):
            case()


@pytest.mark.parametrize("codec", HALF_TABLES)
def test_rows_along_a_rotation(codec):
    """A row of a Hadamard matrix, rotated, is one number: held at the norm; signs spread it."""
    rows = ops.hadamard(np.eye(128, dtype=np.float32), 128)
    one_hot = ops.hadamard(rows, 128)
    assert np.allclose(one_hot, np.eye(128), atol=1e-6)
    y = through(codec, one_hot, "unb")
    assert np.allclose(np.diag(y), 1, atol=1e-3)
    # The rest of the row has the least level, of either sign: this is what the signs are for.
    assert error(one_hot, y) > 0.1
    signs = np.where(np.random.default_rng(0).random(128) < 0.5, np.float32(-1), np.float32(1))
    spread = ops.hadamard(rows, 128, signs)
    assert error(spread, through(codec, spread)) < 1.25 * SCALED[codec][0][0]
    for flat in (rows, -rows):
        # All of one magnitude: one level, and a scale that brings it there.
        assert np.allclose(through(codec, flat), flat, rtol=1e-3)


def test_floats_are_rounded():
    x = np.float32([1 + 2**-12, 1 + 2**-9, 65519, -0.0])
    assert kv_codecs.rounded("f32", x).tolist() == x.tolist()
    assert kv_codecs.rounded("f16", x).tolist() == [1, 1 + 2**-9, 65504, 0]
    assert kv_codecs.rounded("bf16", x).tolist() == [1, 1, 65536, 0]
    for codec, value in (("f16", 65520), ("bf16", 3.4e38), ("f32", np.inf), ("f32", np.nan)):
        with pytest.raises(ValueError, match="expected numbers"):
            kv_codecs.rounded(codec, np.float32([value]))
