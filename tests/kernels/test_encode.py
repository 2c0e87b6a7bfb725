"""kvant.quantize: every ISA writes the bytes of the reference."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from blocks import (
    CORNERS,
    ENCODED,
    WEIGHTED,
    WEIGHTS,
    block_counts,
    cols_of,
    odd_weights,
    row_counts,
    seeds,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import kvant
from distributions import NAMES as FAMILIES
from distributions import distribution, importance
from golden_files import ANSWERS, golden
from kvant.reference import FORMATS, encode
from support import differing, every_isa

families = st.sampled_from(FAMILIES)
DTYPES = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}


def check(x, name, weights=None):
    """x may be of any float type; the reference sees it as f32."""
    wanted = encode(x.astype(np.float32), name, weights)
    before = x.tobytes()
    for isa in every_isa():
        found = kvant.quantize(x, name, importance=weights).data
        assert np.array_equal(found, wanted), differing(f"{name} on {isa}", found, wanted)
    assert x.tobytes() == before


@pytest.mark.parametrize("name", [name for name in ANSWERS if name in ENCODED])
def test_golden(isa, name):
    answer = golden(name)
    found = kvant.quantize(answer.numbers, name).data
    assert np.array_equal(found, answer.encoded)
    found = kvant.quantize(answer.numbers, name, importance=answer.importance).data
    assert np.array_equal(found, answer.weighted)


@pytest.mark.parametrize("name", ENCODED)
@given(
    family=families,
    rows=row_counts,
    blocks=block_counts,
    seed=seeds,
    weighted=st.booleans(),
    dtype=st.sampled_from(sorted(DTYPES)),
)
def test_every_isa_writes_the_bytes_of_the_reference(
    name, family, rows, blocks, seed, weighted, dtype
):
    x = distribution(family, rows, cols_of(name, blocks), seed)
    if dtype != "f32":
        with np.errstate(over="ignore"):
            x = x.astype(DTYPES[dtype])
        x[~np.isfinite(x)] = 0
    check(x, name, importance(x.shape[1], seed) if weighted else None)


@pytest.mark.parametrize("corner", CORNERS)
@pytest.mark.parametrize("name", ENCODED)
def test_corners(name, corner):
    check(CORNERS[corner](cols_of(name, 3)), name)


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("name", WEIGHTED)
def test_corners_with_odd_importance(name, kind):
    cols = cols_of(name, 2)
    check(np.concatenate([make(cols) for make in CORNERS.values()]), name, odd_weights(kind, cols))


@pytest.mark.parametrize("name", ["q2_k", "q4_k", "q5_k"])
@pytest.mark.parametrize("family", ["laplace", "normal"])
def test_scales_that_come_out_negative_wrap_in_eight_bits(name, family):
    """One weighed column in 64 leaves sub-blocks without weight, and some a scale below zero."""
    cols = cols_of(name, 2)
    check(distribution(family, 8, cols, 3), name, odd_weights("one hot", cols))


@pytest.mark.parametrize("name", ENCODED)
@given(seed=st.integers(0, 2**32 - 1))
def test_any_finite_bit_patterns(name, seed):
    bits = np.random.default_rng(seed).integers(0, 2**32, (2, cols_of(name, 2)), np.uint32)
    bits[(bits & 0x7F800000) == 0x7F800000] &= 0xBFFFFFFF
    check(bits.view(np.float32), name)


@pytest.mark.parametrize("name", ENCODED)
@given(family=families, seed=seeds, shift=st.integers(-140, 100))
def test_any_magnitude(name, family, seed, shift):
    x = distribution(family, 3, cols_of(name, 2), seed)
    with np.errstate(over="ignore"):
        x = np.ldexp(x, shift)
    x[~np.isfinite(x)] = 0
    check(x, name, importance(x.shape[1], seed) if seed % 2 else None)


@pytest.mark.parametrize("ulps", [0, 1, 2, 3, 20, 64, 127])
def test_mxfp4_below_every_power_of_two(ulps):
    powers = np.arange(1, 255, dtype=np.uint32) << 23
    x = np.zeros((len(powers), 32), np.float32)
    x[:, 5] = (powers - np.uint32(ulps)).view(np.float32)
    x[:, 9] = x[:, 5] / np.float32(3)
    check(x, "mxfp4")


@pytest.mark.parametrize("name", ENCODED)
def test_arrays_larger_than_one_task(name, isa):
    """Rows and columns beyond the tiles into which work is cut."""
    block = FORMATS[name].block
    wide = 40 * 1024 // block * block + block
    for rows, cols in [(2, wide), (300, block if block > 1 else 3)]:
        x = distribution("t5", rows, cols, 1)
        whole = kvant.quantize(x, name, importance=importance(cols, 1)).data
        middle = slice(rows // 2, rows // 2 + 1)
        alone = kvant.quantize(x[middle], name, importance=importance(cols, 1)).data
        assert np.array_equal(whole[middle], alone)
    piece = slice(wide - block, wide)
    plain = kvant.quantize(distribution("t5", 2, wide, 1), name).data
    alone = kvant.quantize(distribution("t5", 2, wide, 1)[:, piece], name).data
    assert np.array_equal(plain[:, -alone.shape[1] :], alone)


@pytest.mark.parametrize("name", WEIGHTED)
@settings(max_examples=5)
@given(seed=seeds)
def test_each_expert_is_encoded_with_its_own_importance(name, seed):
    cols = cols_of(name, 1)
    x = distribution("normal", 3 * 5, cols, seed).reshape(3, 5, cols)
    weights = np.stack([importance(cols, seed + k) for k in range(3)])
    for isa in every_isa():
        whole = kvant.quantize(x, name, importance=weights)
        for k in range(3):
            alone = kvant.quantize(x[k], name, importance=weights[k])
            assert whole[k] == alone, isa


@pytest.mark.parametrize("name", ENCODED)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_by_position(name, dtype, bad, isa):
    x = distribution("normal", 7, cols_of(name, 3), 0).astype(DTYPES[dtype])
    at = (4, x.shape[1] - 2)
    x[at] = bad
    x[6, 0] = bad
    with pytest.raises(kvant.ShapeError, match=rf"finite weights, got .*at \({at[0]}, {at[1]}\)"):
        kvant.quantize(x, name)


@given(seed=st.integers(0, 2**32 - 1), dtype=st.sampled_from(["f16", "bf16"]))
def test_halves_are_widened_exactly(seed, dtype):
    words = np.random.default_rng(seed).integers(0, 2**16, (3, 77), np.uint16)
    exponent = np.uint16(0x7C00 if dtype == "f16" else 0x7F80)
    words[(words & exponent) == exponent] = 1
    x = words.view(DTYPES[dtype])
    for _ in every_isa():
        found = kvant.quantize(x, "f32").dequantize()
        assert np.array_equal(found.view(np.uint32), x.astype(np.float32).view(np.uint32))
        assert np.array_equal(kvant.quantize(x, dtype).data, x.view(np.uint8))
