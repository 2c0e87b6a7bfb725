"""Products against an exact loop over fractions, and against float64 within a derived bound."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import exact_f32
from distributions import NAMES as FAMILIES
from distributions import distribution
from kvant.reference import FORMATS, BlockFormat, decode, encode, matmul, quantize_activations
from support import bits

PLAIN = ["f32", "f16", "bf16"]
BLOCKS = [name for name in FORMATS if name not in PLAIN]
seeds = st.integers(0, 2**20)
families = st.sampled_from(FAMILIES)
acts = st.sampled_from(["q8", "f32"])
UNIT = 2.0**-24

# Lowest code, highest code, weights per scale.
CODES = {
    "q4_0": (-8, 7, 32), "q4_1": (0, 15, 32), "q5_0": (-16, 15, 32), "q5_1": (0, 31, 32),
    "q8_0": (-128, 127, 32), "q2_k": (0, 3, 16), "q3_k": (-4, 3, 16), "q4_k": (0, 15, 32),
    "q5_k": (0, 31, 32), "q6_k": (-32, 31, 16), "iq4_nl": (-127, 113, 32),
    "iq4_xs": (-127, 113, 32), "mxfp4": (-12, 12, 32), "nvfp4": (-12, 12, 16),
    "tq1_0": (-1, 1, 32), "tq2_0": (-1, 2, 32), "q1_0": (-1, 1, 32), "q2_0": (-1, 2, 32),
    "iq1_s": (-9, 9, 32), "iq1_m": (-9, 9, 16), "iq2_xxs": (-43, 43, 32), "iq2_xs": (-43, 43, 16),
    "iq2_s": (-43, 43, 16), "iq3_xxs": (-62, 62, 32), "iq3_s": (-15, 15, 32),
}  # fmt: skip


def cols_of(name):
    """Two or three blocks of activations at least, in whole blocks of the format."""
    block = FORMATS[name].block
    return {1: 37, 32: 96, 64: 128}.get(block, block)


def random_rows(name, rows, seed, finite=True):
    """Arbitrary bytes; where asked, blocks whose weights are finite and of sane size."""
    fmt, rng = FORMATS[name], np.random.default_rng(seed)
    count = rows * cols_of(name) // fmt.block
    data = rng.integers(0, 256, (count, fmt.block_bytes), np.uint8)
    while finite:
        if name == "mxfp4":
            data[:, 0] = rng.integers(107, 147, count)
        huge = ~(np.abs(decode(data, name)) < 2.0**40).all(axis=1)
        if not huge.any():
            break
        data[huge] = rng.integers(0, 256, (huge.sum(), fmt.block_bytes), np.uint8)
    return data.reshape(rows, -1)


def exact_block(x):
    """d and q of 32 activations."""
    amax = max(abs(v) for v in x)
    if not np.isfinite(x).all():
        return float("nan"), [0] * len(x)
    if amax < 2.0**-100:
        return 0.0, [0] * len(x)
    inverse = exact_f32.divide(127.0, amax)
    return exact_f32.divide(amax, 127.0), [round(exact_f32.multiply(v, inverse)) for v in x]


def exact_dot(d, q, groups, row, group):
    """One output with eight-bit activations, as the contract has it, one number at a time."""
    acc = 0.0
    for block, unit in enumerate(d):
        t = None
        for start in range(32 * block, 32 * block + 32, group):
            run, g = slice(start, start + group), start // group
            scale, ints = float(groups.scale[row, g]), groups.codes[row, run].tolist()
            isum = float(sum(c * v for c, v in zip(ints, q[run], strict=True)))
            t = exact_f32.multiply(scale, isum) if t is None else exact_f32.fma(scale, isum, t)
            if groups.minimum is not None:
                t = exact_f32.fma(-float(groups.minimum[row, g]), float(sum(q[run])), t)
        acc = exact_f32.fma(unit, t, acc)
    return exact_f32.bits(acc)


def exact_chain(x, w):
    acc = 0.0
    for a, b in zip(x.tolist(), w.tolist(), strict=True):
        acc = exact_f32.fma(b, a, acc)
    return exact_f32.bits(acc)


@given(family=families, seed=seeds, odd=st.sampled_from([None, np.nan, np.inf, -np.inf]))
def test_activations_are_quantized_exactly(family, seed, odd):
    x = distribution(family, 3, 64, seed)
    if odd is not None:
        x[seed % 3, seed % 64] = odd
    a = quantize_activations(x)
    assert (a.q.dtype, a.d.dtype, a.sums.dtype) == (np.int8, np.float32, np.int32)
    for row in range(3):
        for block in range(2):
            part = slice(32 * block, 32 * block + 32)
            d, q = exact_block(x[row, part].tolist())
            assert a.q[row, part].tolist() == q
            # Not through `bits`: the NaN itself must be the canonical one.
            assert a.d.view(np.uint32)[row, block] == exact_f32.bits(d)
    assert np.array_equal(a.sums, a.q.astype(np.int32).reshape(3, 4, 16).sum(axis=2))


@given(seed=seeds)
def test_activations_beside_halves_are_rounded_exactly(seed):
    """Numbers whose code is almost n + 1/2, where 127 / amax must be the nearest f32."""
    rng = np.random.default_rng(seed)
    amax = np.float32(rng.random() + 0.5)
    x = ((rng.integers(-127, 127, 32) + 0.5) * amax / 127).astype(np.float32)
    toward = rng.choice(np.array([-np.inf, np.inf], np.float32), 32)
    x = np.where(rng.random(32) < 0.5, x, np.nextafter(x, toward))
    x[seed % 32] = amax
    assert quantize_activations(x[None]).q[0].tolist() == exact_block(x.tolist())[1]


def test_blocks_count_as_zero_below_a_fixed_size():
    x = np.zeros((3, 32), np.float32)
    x[:, 5] = [2.0**-100, np.nextafter(np.float32(2.0**-100), np.float32(0)), -(2.0**-149)]
    a = quantize_activations(x)
    assert a.q[:, 5].tolist() == [127, 0, 0]
    assert a.d[0, 0] > 0
    assert bits(a.d[1:]).tolist() == [[0], [0]]


@pytest.mark.parametrize("name", BLOCKS)
def test_codes_are_what_the_kernels_multiply(name):
    """Codes of this range and these groups leave one choice for the scales, given the weights."""
    fmt = FORMATS[name]
    assert isinstance(fmt, BlockFormat)
    groups = fmt.unpack(random_rows(name, 64, 0).reshape(4, 16, -1))
    low, high, group = CODES[name]
    assert (groups.codes.min(), groups.codes.max(), fmt.group) == (low, high, group)
    assert groups.codes.shape == (4, 16, cols_of(name))
    assert groups.scale.shape == (4, 16, cols_of(name) // group)
    assert (groups.minimum is not None) == (name in ("q4_1", "q5_1", "q2_k", "q4_k", "q5_k"))
    assert fmt.unpack(np.zeros((0, fmt.block_bytes), np.uint8)).codes.shape == (0, fmt.block)


@pytest.mark.parametrize("name", BLOCKS)
@given(family=families, seed=seeds, finite=st.booleans())
def test_eight_bit_products_are_the_exact_loop(name, family, seed, finite):
    x = distribution(family, 2, cols_of(name), seed)
    data = random_rows(name, 2, seed, finite)
    a, groups = quantize_activations(x), FORMATS[name].unpack(data)
    wanted = [
        [
            exact_dot(a.d[i].tolist(), a.q[i].tolist(), groups, j, FORMATS[name].group)
            for j in range(2)
        ]
        for i in range(2)
    ]
    # Not through `bits`: NaNs must be the canonical one.
    assert matmul(x, data, name).view(np.uint32).tolist() == wanted


@pytest.mark.parametrize("name", PLAIN)
@given(family=families, seed=seeds, act=acts, finite=st.booleans())
def test_products_with_floats_are_the_exact_chain(name, family, seed, act, finite):
    x, data = distribution(family, 2, 37, seed), random_rows(name, 2, seed, finite)
    wanted = [[exact_chain(row, w) for w in decode(data, name)] for row in x]
    assert matmul(x, data, name, act).view(np.uint32).tolist() == wanted


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("family", ["normal", "denormal", "extreme"])
def test_without_quantized_activations_decoded_weights_are_multiplied(name, family):
    x, data = distribution(family, 3, cols_of(name), 0), random_rows(name, 8, 0, False)
    decoded = encode(decode(data, name), "f32")
    assert np.array_equal(bits(matmul(x, data, name, "f32")), bits(matmul(x, decoded, "f32")))


@pytest.mark.parametrize("name", BLOCKS)
@given(family=st.sampled_from(["normal", "t3", "sparse", "ties", "const", "bf16_grid"]), seed=seeds)
def test_eight_bit_products_are_near_the_true_ones(name, family, seed):
    """Half a step of q for each weight, and a few roundings for each block of 32."""
    x, data = distribution(family, 3, cols_of(name), seed), random_rows(name, 4, seed)
    fmt, groups, blocks = FORMATS[name], FORMATS[name].unpack(data), cols_of(name) // 32
    scale = np.repeat(groups.scale.astype(np.float64), fmt.group, axis=1)
    low = 0.0
    if groups.minimum is not None:
        low = np.repeat(groups.minimum.astype(np.float64), fmt.group, axis=1)
    w = scale * groups.codes - low
    a = quantize_activations(x)
    d = np.repeat(a.d.astype(np.float64), 32, axis=1)
    # Three roundings lie between x and d * (q before it is made whole): 127 * 3 * 2**-24 steps.
    of_q = (0.5 + 127 * 3.01 * UNIT) * d @ np.abs(w).T
    # Four roundings of t, one of acc for each block.
    size = (d * np.abs(a.q)) @ (np.abs(scale * groups.codes) + np.abs(low)).T
    of_sums = (4 + blocks) * UNIT * 1.01 * size + 5 * blocks * 2.0**-149
    miss = np.abs(matmul(x, data, name) - x.astype(np.float64) @ w.T)
    assert (miss <= of_q + of_sums).all()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("family", ["normal", "t3", "ties"])
def test_exact_mode_is_near_the_true_products(name, family):
    x, data = distribution(family, 16, cols_of(name), 1), random_rows(name, 16, 1)
    w = decode(data, name).astype(np.float64)
    k = cols_of(name)
    bound = k * UNIT * 1.01 * np.abs(x.astype(np.float64)) @ np.abs(w).T + k * 2.0**-149
    assert (np.abs(matmul(x, data, name, "f32") - x.astype(np.float64) @ w.T) <= bound).all()


def test_whole_numbers_are_multiplied_exactly():
    """Scales of one on both sides leave sums of products of small integers."""
    rng = np.random.default_rng(0)
    x = rng.integers(-127, 128, (5, 96)).astype(np.float32)
    w = rng.integers(-127, 128, (7, 96)).astype(np.float32)
    x[:, ::32] = w[:, ::32] = 127
    assert np.array_equal(matmul(x, encode(w, "q8_0"), "q8_0"), x @ w.T)


@pytest.mark.parametrize("name", FORMATS)
@given(family=families, seed=seeds, act=acts)
def test_an_output_depends_on_its_row_and_its_weights_alone(name, family, seed, act):
    x, data = distribution(family, 5, cols_of(name), seed), random_rows(name, 4, seed, False)
    whole = bits(matmul(x, data, name, act))
    rng = np.random.default_rng(seed)
    rows, outputs = rng.permutation(5), rng.permutation(4)
    assert np.array_equal(bits(matmul(x[rows], data[outputs], name, act)), whole[rows][:, outputs])
    assert np.array_equal(bits(matmul(x[3:4], data[1:2], name, act)), whole[3:4, 1:2])


@pytest.mark.parametrize("name", FORMATS)
@given(seed=seeds, act=acts, odd=st.sampled_from([np.nan, np.inf, -np.inf]))
def test_a_row_that_is_not_finite_touches_no_other(name, seed, act, odd):
    x, data = distribution("normal", 4, cols_of(name), seed), random_rows(name, 3, seed)
    clean = matmul(x, data, name, act)
    x[2, seed % x.shape[1]] = odd
    got = matmul(x, data, name, act)
    others = [0, 1, 3]
    assert np.array_equal(bits(got[others]), bits(clean[others]))
    if np.isnan(odd) or (act == "q8" and name not in PLAIN):
        assert (got[2].view(np.uint32) == 0x7FC00000).all()


@pytest.mark.parametrize("name", FORMATS)
@given(seed=seeds, act=acts)
def test_zeros_give_positive_zeros(name, seed, act):
    x = distribution("normal", 3, cols_of(name), seed)
    x[1] = 0
    x[2] = -0.0
    got = matmul(x, random_rows(name, 3, seed), name, act)
    assert not bits(got[1:]).any()


@given(seed=seeds)
def test_subnormal_activations_count_in_exact_mode_only(seed):
    x = distribution("denormal", 2, 64, seed)
    assume(x.any())
    one = encode(np.eye(64, dtype=np.float32), "q2_0")
    assert not bits(matmul(x, one, "q2_0")).any()
    assert np.array_equal(matmul(x, one, "q2_0", "f32"), x)


def test_a_product_that_vanishes_keeps_its_sign_until_zero_is_added():
    """2**-128 from the weights and 2**-106 from the activations leave nothing but a minus."""
    data = np.zeros((1, 34), np.uint8)
    data[0, [1, 18]] = 9, 9
    x = np.zeros((1, 64), np.float32)
    x[0, 0] = 2.0**-99
    assert bits(matmul(x[:, :32], data[:, :17], "mxfp4")).tolist() == [[0x80000000]]
    assert bits(matmul(x, data, "mxfp4")).tolist() == [[0]]


@pytest.mark.parametrize("name", FORMATS)
def test_empty_products(name):
    k, row = cols_of(name), random_rows(name, 1, 0)
    for act in ("q8", "f32"):
        assert matmul(np.zeros((0, k), np.float32), row, name, act).shape == (0, 1)
        assert matmul(np.zeros((2, k), np.float32), row[:0], name, act).shape == (2, 0)
        nothing = matmul(np.zeros((2, 0), np.float32), row[:, :0], name, act)
        assert bits(nothing).tolist() == [[0], [0]]


def test_inputs_are_left_alone_and_need_not_be_contiguous():
    x, data = distribution("normal", 4, 64, 3), random_rows("q4_0", 4, 3)[:, :36]
    wanted = matmul(x[::2].copy(), data[::2].copy(), "q4_0")
    x.setflags(write=False)
    data.setflags(write=False)
    assert np.array_equal(matmul(x[::2], data[::2], "q4_0"), wanted)
    assert np.array_equal(matmul(np.asfortranarray(x)[::2], data[::2], "q4_0"), wanted)


X = np.zeros((2, 64), np.float32)
ROWS = np.zeros((3, 36), np.uint8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: matmul(X, ROWS, "q9"), r"\[matmul\] expected one of f32, .* got 'q9'"),
        (lambda: matmul(X, ROWS, "q4_0", "int8"), "act of 'q8' or 'f32', got 'int8'"),
        (lambda: matmul(X.astype(float), ROWS, "q4_0"), r"float32 \[m, k\], got float64 \(2, 64\)"),
        (lambda: matmul(X[0], ROWS, "q4_0"), r"float32 \[m, k\], got float32 \(64,\)"),
        (lambda: matmul(X[:, :32], ROWS, "q4_0"), r"float32 \[m, 64\], got k = 32"),
        (lambda: matmul(X, ROWS[:, 1:], "q4_0"), r"\[matmul\] .* multiple of 18 bytes .q4_0., got"),
        (lambda: matmul(X, ROWS.view(np.int8), "q4_0"), r"\[matmul\] expected uint8 bytes"),
        (lambda: matmul(X, ROWS[0], "q4_0"), r"weights \[n, row_bytes\], got \(36,\)"),
        (lambda: quantize_activations(X[:, :33]), r"k a multiple of 32, got 33"),
        (lambda: quantize_activations(X[0]), r"\[quantize_activations\] expected x of float32"),
        (lambda: FORMATS["q4_0"].unpack(ROWS[:, 1:]), r"\[unpack\] .* multiple of 18 bytes"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
