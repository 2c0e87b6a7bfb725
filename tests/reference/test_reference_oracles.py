"""The reference against two independent implementations: gguf-py (NumPy) and libgguf (scalar C).

libgguf's wheel is a build of ggml's own functions without fused multiply-adds, so encoders must
agree with it byte for byte. No stray was found; it merely lacks q2_0 and does not decode
f32/f16/bf16, which is why those are absent here.
"""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributions import NAMES, distribution, importance
from kvant.reference import FORMATS, decode, encode

gguf = pytest.importorskip("gguf")
libgguf = pytest.importorskip("libgguf")

TYPES = {t.name.lower(): t for t in libgguf.GGMLQuantizationType}
QUANTIZED = [name for name in FORMATS if FORMATS[name].block > 1 and name in TYPES]
ENCODED = [name for name in QUANTIZED if FORMATS[name].can_encode]
GGUF_TYPES = {t.name.lower(): t for t in gguf.GGMLQuantizationType}
GGUF_ENCODED = ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "tq1_0", "tq2_0", "mxfp4"]
# 768 is no multiple of nine, 256 columns leave whole-row statistics equal to those of a block.
COLS = 768


def canonical_bits(x):
    return np.where(np.isnan(x), np.uint32(0x7FC00000), x.view(np.uint32))


def random_bytes(name, blocks, seed):
    size = FORMATS[name].block_bytes
    return np.random.default_rng(seed).integers(0, 256, (2, blocks * size), np.uint8)


def from_libgguf(x, name, weights=None):
    return np.asarray(libgguf.quantize_rows(x, TYPES[name], weights))


@pytest.mark.parametrize("name", QUANTIZED)
@given(seed=st.integers(0, 2**32 - 1))
def test_decoding_any_bytes_gives_the_floats_of_libgguf(name, seed):
    data = random_bytes(name, 16, seed)
    theirs = libgguf.dequantize_rows(data, TYPES[name])
    assert np.array_equal(decode(data, name).view(np.uint32), canonical_bits(theirs))


@pytest.mark.parametrize("name", [n for n in QUANTIZED if n != "q1_0"])
def test_decoding_any_bytes_gives_the_floats_of_gguf_py(name):
    data = random_bytes(name, 512, 1)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        theirs = gguf.quants.dequantize(data, GGUF_TYPES[name])
    assert np.array_equal(decode(data, name).view(np.uint32), canonical_bits(theirs))


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "importance"])
@pytest.mark.parametrize("name", ENCODED)
def test_encoding_every_distribution_gives_the_bytes_of_libgguf(name, weighted):
    weights = importance(COLS, 3) if weighted else None
    for family in NAMES:
        x = distribution(family, 9, COLS, 11)
        mine, theirs = encode(x, name, weights), from_libgguf(x, name, weights)
        assert np.array_equal(mine, theirs), f"{family}: {np.argwhere(mine != theirs)[:3]}"


@pytest.mark.parametrize("name", ENCODED)
@given(family=st.sampled_from(NAMES), seed=st.integers(0, 2**20), shift=st.integers(-40, 40))
def test_encoding_at_any_magnitude_gives_the_bytes_of_libgguf(name, family, seed, shift):
    x = distribution(family, 2, 256, seed)
    with np.errstate(over="ignore"):
        x = np.ldexp(x, shift)
    x[~np.isfinite(x)] = 0
    weights = importance(256, seed)
    assert np.array_equal(encode(x, name), from_libgguf(x, name))
    assert np.array_equal(encode(x, name, weights), from_libgguf(x, name, weights))


@pytest.mark.parametrize("name", ENCODED)
@given(st.integers(0, 2**32 - 1))
def test_encoding_any_finite_bit_patterns_gives_the_bytes_of_libgguf(name, seed):
    bits = np.random.default_rng(seed).integers(0, 2**32, (1, 512), np.uint32)
    bits[(bits & 0x7F800000) == 0x7F800000] &= 0xBFFFFFFF
    x = bits.view(np.float32)
    assert np.array_equal(encode(x, name), from_libgguf(x, name))


@pytest.mark.parametrize("name", [n for n in ENCODED if FORMATS[n].uses_importance])
@pytest.mark.parametrize("weights", ["zero", "wide", "half zero"])
def test_odd_importance_gives_the_bytes_of_libgguf(name, weights):
    rng = np.random.default_rng(5)
    vector = {
        "zero": np.zeros(COLS),
        "wide": 10.0 ** rng.uniform(-30, 30, COLS),
        "half zero": rng.integers(0, 2, COLS),
    }[weights].astype(np.float32)
    x = distribution("normal", 4, COLS, 2)
    assert np.array_equal(encode(x, name, vector), from_libgguf(x, name, vector))


@pytest.mark.parametrize("name", GGUF_ENCODED)
@pytest.mark.parametrize("family", ["normal", "t3", "laplace", "sparse", "bf16_grid"])
def test_encoding_gives_the_bytes_of_gguf_py(name, family):
    x = distribution(family, 8, COLS, 4)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        theirs = gguf.quants.quantize(x, GGUF_TYPES[name])
    assert np.array_equal(encode(x, name), theirs)


@pytest.mark.parametrize(("name", "dtype"), [("f16", np.uint16), ("bf16", np.uint16)])
def test_plain_halves_are_those_of_libgguf(name, dtype):
    bits = np.random.default_rng(8).integers(0, 2**32, (4, 4096), np.uint32)
    x = bits.view(np.float32)
    stored = np.ascontiguousarray(libgguf.store_rows(x, TYPES[name]))
    assert np.array_equal(encode(x, name).view(dtype), stored.view(dtype).reshape(4, -1))
