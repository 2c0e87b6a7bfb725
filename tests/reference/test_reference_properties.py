"""What must hold for every input: shapes, independence of rows, scaling, bounds, round trips."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributions import NAMES, distribution, importance
from kvant.reference import FORMATS, decode, encode

CODERS = [name for name in FORMATS if FORMATS[name].can_encode]
# Formats for which decoded numbers encode to themselves.
STABLE = ["f32", "f16", "bf16", "q4_0", "q5_0", "q8_0"]
STABLE += ["mxfp4", "tq1_0", "tq2_0", "q1_0", "q2_0"]
# Formats whose encoder does not search, so that a bound for each number can be proved.
BOUNDED = ["f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0"]
BOUNDED += ["mxfp4", "nvfp4", "tq1_0", "tq2_0", "q1_0", "q2_0"]
seeds = st.integers(0, 2**20)
families = st.sampled_from(NAMES)


def cols_of(name, blocks=2):
    return FORMATS[name].block * blocks


@pytest.mark.parametrize("name", CODERS)
@given(family=families, seed=seeds)
def test_rows_are_encoded_independently(name, family, seed):
    x = distribution(family, 5, cols_of(name), seed)
    weights = importance(x.shape[1], seed)
    order = np.random.default_rng(seed).permutation(5)
    for given_weights in (None, weights):
        whole = encode(x, name, given_weights)
        assert np.array_equal(encode(x[order], name, given_weights), whole[order])
        assert np.array_equal(encode(x[3], name, given_weights), whole[3])


@pytest.mark.parametrize("name", CODERS)
def test_work_in_pieces_gives_the_same_bytes(name, monkeypatch):
    x = distribution("t5", 3, cols_of(name, 5), 1)
    weights = importance(x.shape[1], 1)
    whole = encode(x, name, weights)
    monkeypatch.setattr("kvant.reference.base._CHUNK", 2 * FORMATS[name].block)
    assert np.array_equal(encode(x, name, weights), whole)
    assert np.array_equal(decode(whole, name), decode(whole[None], name)[0])


@pytest.mark.parametrize("name", CODERS)
@given(seed=seeds, shift=st.integers(0, 4))
def test_a_power_of_two_passes_through(name, seed, shift):
    """Numbers of ordinary size keep every scale inside the range of its small float."""
    x = distribution("normal", 2, cols_of(name), seed) * np.float32(4)
    factor = np.float32(2.0**shift)
    for weights in (None, importance(x.shape[1], seed)):
        scaled = decode(encode(x * factor, name, weights), name)
        assert np.array_equal(scaled, decode(encode(x, name, weights), name) * factor)


@pytest.mark.parametrize("name", STABLE)
@given(family=families, seed=seeds)
def test_decoded_numbers_encode_to_themselves(name, family, seed):
    x = distribution(family, 2, cols_of(name), seed)
    if family in ("denormal", "extreme"):
        x = np.clip(x, -1e4, 1e4)
    if name == "mxfp4":
        x[np.abs(x) < 1e-30] = 0
    once = decode(encode(x, name), name)
    assert np.array_equal(decode(encode(once, name), name), once)


def worst(x, name):
    """The bound of docs/formats.md for each block, on blocks whose scale is a normal number."""
    amax = np.abs(x).max(axis=1)
    spread = x.max(axis=1) - x.min(axis=1)
    low = np.abs(x.min(axis=1))
    half = 2.0**-11
    return {
        "q4_0": amax * (1 / 8 + half),
        "q5_0": amax * (1 / 16 + half),
        "q8_0": amax * (0.5 / 127 + half),
        "q4_1": spread * (0.5 / 15 + half) + low * half,
        "q5_1": spread * (0.5 / 31 + half) + low * half,
        "mxfp4": amax * 0.25,
        "nvfp4": amax * (1 / 6 + 1 / 16),
        "tq1_0": amax * (0.5 + half),
        "tq2_0": amax * (0.5 + half),
        "q2_0": amax * (0.5 + half),
        "q1_0": amax * (1 + half),
        "f16": amax * half,
        "bf16": amax * 2.0**-8,
    }[name]


@pytest.mark.parametrize("name", BOUNDED)
@given(family=st.sampled_from(["normal", "t3", "t5", "ties", "const", "bf16_grid"]), seed=seeds)
def test_errors_stay_within_the_stated_bound(name, family, seed):
    block = 16 if name == "nvfp4" else FORMATS[name].block
    x = distribution(family, 2, cols_of(name), seed)
    miss = np.abs(x.astype(np.float64) - decode(encode(x, name), name)).reshape(-1, block)
    blocks = x.astype(np.float64).reshape(-1, block)
    scale_ok = np.abs(blocks).max(axis=1) > (0.1 if name == "nvfp4" else 0.02)
    bound = np.where(scale_ok, worst(blocks, name) * (1 + 1e-6) + 2.0**-24, np.inf)
    assert (miss.max(axis=1) <= bound).all()


# Relative root-mean-square error on normal numbers, as in docs/formats.md, rounded up.
TYPICAL = {
    "q2_k": 0.305, "q3_k": 0.155, "q4_k": 0.073, "q5_k": 0.037, "q6_k": 0.0182,
    "q4_0": 0.088, "q4_1": 0.080, "q5_0": 0.044, "q5_1": 0.039, "q8_0": 0.0056,
    "iq4_nl": 0.078, "iq4_xs": 0.079, "mxfp4": 0.118, "nvfp4": 0.098,
}  # fmt: skip


@pytest.mark.parametrize("name", TYPICAL)
def test_typical_error_is_as_documented(name):
    x = distribution("normal", 16, 1024, 6)
    miss = decode(encode(x, name), name) - x
    relative = np.sqrt((miss**2).mean() / (x**2).mean())
    assert 0.9 * TYPICAL[name] < relative < TYPICAL[name]


@pytest.mark.parametrize("name", [n for n in CODERS if FORMATS[n].uses_importance])
def test_importance_lowers_the_error_that_it_weighs(name):
    x = distribution("normal", 16, 1024, 6)
    weights = importance(1024, 6)
    weighted = (decode(encode(x, name, weights), name) - x) ** 2 * weights
    plain = (decode(encode(x, name), name) - x) ** 2 * weights
    assert weighted.mean() < plain.mean()


@pytest.mark.parametrize("name", [n for n in CODERS if not FORMATS[n].uses_importance])
def test_importance_is_ignored_by_formats_without_a_search(name):
    x = distribution("normal", 2, cols_of(name), 0)
    assert np.array_equal(encode(x, name, importance(x.shape[1], 0)), encode(x, name))


@pytest.mark.parametrize("name", FORMATS)
def test_shapes(name):
    fmt = FORMATS[name]
    rows = np.zeros((3, 0, 2 * fmt.block_bytes), np.uint8)
    assert decode(rows, name).shape == (3, 0, 2 * fmt.block)
    assert decode(np.zeros((2, 5, fmt.block_bytes), np.uint8), name).shape == (2, 5, fmt.block)
    if fmt.can_encode:
        x = np.zeros((2, 5, 3 * fmt.block), np.float32)
        assert encode(x, name).shape == (2, 5, 3 * fmt.block_bytes)
        assert encode(x[:, :, :0], name).shape == (2, 5, 0)
        assert not decode(encode(x, name), name).any()


@pytest.mark.parametrize("name", CODERS)
def test_inputs_are_left_alone_and_need_not_be_contiguous(name):
    x = distribution("normal", 4, 2 * cols_of(name), 3)
    weights = importance(x.shape[1], 3)
    x.setflags(write=False)
    weights.setflags(write=False)
    every_other = encode(x[::2], name, weights)
    assert np.array_equal(every_other, encode(x[::2].copy(), name, weights))
    data = np.repeat(every_other, 2, axis=0)[::2]
    assert np.array_equal(decode(data, name), decode(every_other, name))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: encode(np.zeros(31, np.float32), "q4_0"), "multiple of 32 .q4_0., got 31"),
        (lambda: encode(np.float32(1), "f32"), "got a scalar"),
        (lambda: encode(np.zeros(32), "q4_0"), "float32 numbers, got float64"),
        (lambda: encode(np.zeros(256, np.float32), "iq1_s"), "with an encoder, got iq1_s"),
        (lambda: encode(np.zeros(32, np.float32), "q9_9"), "got 'q9_9'"),
        (
            lambda: encode(np.zeros(32, np.float32), "q4_0", np.ones(31, np.float32)),
            r"importance of float32 \(32,\), got float32 \(31,\)",
        ),
        (lambda: decode(np.zeros(17, np.uint8), "q4_0"), "multiple of 18 bytes .q4_0., got 17"),
        (lambda: decode(np.zeros(18, np.int8), "q4_0"), "uint8 bytes, got int8"),
        (lambda: decode(np.zeros(18, np.uint8), "nope"), "got 'nope'"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
