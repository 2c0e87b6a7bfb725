"""Products against the NumPy twin: equal in every bit, on every ISA, however they are called."""

from __future__ import annotations

import numpy as np
import pytest
from blocks import NAMES
from hypothesis import given
from product_cases import (
    CANONICAL_NAN,
    PLAIN,
    activations,
    acts,
    check,
    cols_near,
    dtypes,
    end_blocks,
    families,
    kinds,
    layouts,
    leading,
    lengths,
    outputs,
    reference_product,
    seeds,
    threads,
    weights,
    words,
)

import kvant
from distributions import distribution
from support import every_isa

BLOCKS = [name for name in NAMES if name not in PLAIN]


@pytest.mark.parametrize("name", NAMES)
@given(
    shape=leading, n=outputs, length=lengths, kind=kinds, family=families, seed=seeds, act=acts,
    dtype=dtypes, layout=layouts, threads=threads,
)  # fmt: skip
def test_products_are_those_of_the_reference(
    name, shape, n, length, kind, family, seed, act, dtype, layout, threads
):
    # The reference takes a step for each column where x is not quantized.
    k = cols_near(name, length if act == "q8" and name not in PLAIN else length % 300 + 1)
    q = weights(name, n, k, seed, kind)
    x = activations(shape, k, family, seed, dtype, layout)
    wanted = reference_product(x, q, act)
    for isa in every_isa():
        check(f"{isa}, as in a file", kvant.matmul(x, q, act=act, threads=threads), wanted)
        packed = q.pack(threads=threads)
        check(f"{isa}, packed", kvant.matmul(x, packed, act=act, threads=threads), wanted)


# More rows of x than a group of panels holds; columns that end within a chunk; several tasks.
@pytest.mark.parametrize(
    ("m", "n", "length", "act"),
    [(130, 50, 1152, "q8"), (300, 19, 544, "q8"), (130, 17, 288, "f32")],
)
@pytest.mark.parametrize("name", NAMES)
def test_many_rows(name, m, n, length, act):
    k = cols_near(name, length if name not in PLAIN else 300)
    q = weights(name, n, k, m)
    x = activations((m,), k, "normal", n)
    wanted = reference_product(x, q, act)
    packed = q.pack()
    for isa in every_isa():
        for limit in (1, 3):
            check(isa, kvant.matmul(x, packed, act=act, threads=limit), wanted)
        check(f"{isa}, as in a file", kvant.matmul(x, q, act=act, threads=2), wanted)


def test_rows_so_long_that_few_fit_a_group():
    for name, k in (("q4_0", 25_600), ("q6_k", 25_600), ("f16", 3000)):
        q = weights(name, 17, k, 0)
        x = activations((61,), k, "normal", 0)
        wanted = reference_product(x, q)
        for isa in every_isa():
            check(f"{name}, {isa}", kvant.matmul(x, q, threads=2), wanted)


@pytest.mark.parametrize("name", BLOCKS)
def test_the_largest_sums(name):
    """Codes and activations at the ends of their ranges, of one sign: nothing saturates."""
    ends = end_blocks(name)
    assert len(ends) >= 2
    data = np.repeat(ends, 2, axis=0).reshape(len(ends), -1)
    q = kvant.QTensor(data, name, (len(ends), 2 * kvant.format_info(name).block))
    k = q.shape[1]
    x = np.ones((4, k), np.float32)
    x[1] = -1
    x[2, ::2] = -1
    x[3] = np.where(np.arange(k) % 3 == 0, -1, 1)
    wanted = reference_product(x, q)
    for isa in every_isa():
        check(isa, kvant.matmul(x, q), wanted)


def test_codes_of_minus_128():
    data = np.full((1, 34), 0x80, np.uint8)
    data[0, :2] = np.array([1], np.float16).view(np.uint8)
    q = kvant.QTensor(data, "q8_0", (1, 32))
    for isa in every_isa():
        got = kvant.matmul(np.array([[127.0] * 32, [-127.0] * 32], np.float32), q)
        assert got.tolist() == [[-128 * 127 * 32], [128 * 127 * 32]], isa


@pytest.mark.parametrize("name", NAMES)
@given(seed=seeds, n=outputs, length=lengths, act=acts)
def test_a_row_has_the_same_product_alone_and_among_others(name, seed, n, length, act):
    k = cols_near(name, length)
    q, rng = weights(name, n, k, seed), np.random.default_rng(seed)
    m = int(rng.integers(2, 40))
    x = distribution("t5", m, k, seed)
    packed = q.pack()
    whole = kvant.matmul(x, packed, act=act)
    for row in rng.integers(0, m, 3):
        check(f"row {row}", kvant.matmul(x[row], packed, act=act), whole[row])
    some = rng.permutation(m)[: m // 2 + 1]
    check("some rows", kvant.matmul(x[some], q, act=act), whole[some])
    picked = rng.permutation(n)[: n // 2 + 1]
    chosen = kvant.QTensor(q.data[picked], name, (len(picked), k))
    check("some outputs", kvant.matmul(x, chosen, act=act), whole[:, picked])


@pytest.mark.parametrize("name", NAMES)
@given(seed=seeds, odd=kinds.map({"near": np.nan, "finite": np.inf, "any": -np.inf}.get), act=acts)
def test_a_row_that_is_not_finite_touches_no_other(name, seed, odd, act):
    k = cols_near(name, 300)
    q, rng = weights(name, 21, k, seed), np.random.default_rng(seed)
    x = distribution("normal", 9, k, seed)
    hit = rng.choice(9, 2, replace=False)
    odd_x = x.copy()
    odd_x[hit, rng.integers(0, k, 2)] = odd
    others = np.setdiff1d(np.arange(9), hit)
    for isa in every_isa():
        clean, got = kvant.matmul(x, q, act=act), kvant.matmul(odd_x, q, act=act)
        check(isa, got[others], clean[others])
        if np.isnan(odd) or (act == "q8" and name not in PLAIN):
            assert (words(got[hit]) == CANONICAL_NAN).all(), isa


@pytest.mark.parametrize("name", NAMES)
def test_zeros_give_positive_zeros(name, isa):
    k = cols_near(name, 300)
    x = np.zeros((3, k), np.float32)
    x[1] = -0.0
    x[2] = 2.0**-101 if name not in PLAIN else 0
    assert not words(kvant.matmul(x, weights(name, 20, k, 0, "finite"))).any()


# Where some ISAs multiply with another formula, and where not: scales of 2^-41 ... and 2^101.
@pytest.mark.parametrize("exponent", [0, 1, 2, 85, 86, 87, 88, 89, 226, 227, 228, 229, 253, 254])
def test_scales_far_from_one(exponent, isa):
    q = weights("mxfp4", 35, 320, exponent)
    blocks = q.data.reshape(35, 10, 17)
    blocks[:, :, 0] = exponent
    blocks[5:9, ::3, 0] = 127
    blocks[11, :, 1:] = 0
    x = activations((7,), 320, "normal", 1)
    x[2] *= np.float32(2.0**-98)
    wanted = reference_product(x, q, "q8")
    check(isa, kvant.matmul(x, q), wanted)
    check(f"{isa}, packed", kvant.matmul(x, q.pack()), wanted)


def test_a_bad_scale_spoils_its_own_output_only(isa):
    q = weights("q8_0", 40, 320, 0)
    x = distribution("normal", 5, 320, 0)
    clean = kvant.matmul(x, q)
    q.data[[7, 33], 34:36] = np.array([[0x00, 0x7C], [0x01, 0x7C]], np.uint8)  # infinity, NaN
    for weights_ in (q, q.pack()):
        got = kvant.matmul(x, weights_)
        kept = np.setdiff1d(np.arange(40), [7, 33])
        check(isa, got[:, kept], clean[:, kept])
        assert np.isinf(got[:, 7]).all()
        assert (words(got[:, 33]) == CANONICAL_NAN).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("packed", [False, True])
def test_empty_products(name, packed, isa):
    k = cols_near(name, 256)

    def matrix(n, k):
        q = kvant.QTensor(
            weights(name, n, k, 0).data if k else np.zeros((n, 0), np.uint8), name, (n, k)
        )
        return q.pack() if packed else q

    for act in ("q8", "f32"):
        for shape in ((0,), (2, 0), (0, 3)):
            got = kvant.matmul(np.zeros((*shape, k), np.float32), matrix(3, k), act=act)
            assert (got.shape, got.dtype) == ((*shape, 3), np.float32)
        assert kvant.matmul(np.zeros((2, k), np.float32), matrix(0, k), act=act).shape == (2, 0)
        for x in (np.zeros((2, 0), np.float32), np.zeros((2, 0), np.float16)):
            out = np.full((2, 3), 7, np.float32)
            assert kvant.matmul(x, matrix(3, 0), out=out, act=act) is out
            assert not words(out).any()
            assert kvant.matmul(x, matrix(0, 0), act=act).shape == (2, 0)


@given(seed=seeds, dtype=dtypes, layout=layouts, act=acts, shape=leading, threads=threads)
def test_many_at_once_are_what_each_is_alone(seed, dtype, layout, act, shape, threads):
    rng = np.random.default_rng(seed)
    x = activations(shape, 512, "t3", seed, dtype, layout)
    several = []
    for name in rng.choice(NAMES, rng.integers(0, 17)):
        q = weights(str(name), int(rng.integers(0, 60)), 512, seed)
        several.append(q.pack() if rng.random() < 0.5 else q)
    wanted = [kvant.matmul(x, w, act=act, threads=1) for w in several]
    for isa in every_isa():
        found = kvant.matmul_many(x, several, act=act, threads=threads)
        assert len(found) == len(several)
        for i, (got, one) in enumerate(zip(found, wanted, strict=True)):
            check(f"{isa}, {several[i]}", got, one)


def test_the_right_side_of_an_operator(isa):
    q, x = weights("q4_k", 19, 512, 0), activations((2, 3), 512, "normal", 0)
    wanted = reference_product(x, q)
    check("tensor", x @ q.T, wanted)
    check("packed", x @ q.pack().T, wanted)
    check("a vector", x[0, 0] @ q.T, wanted[0, 0])
    check("halves", x.astype(np.float16) @ q.T, reference_product(x.astype(np.float16), q))
    with pytest.raises(kvant.ShapeError, match=r"expected x \[..., 512\]"):
        x[..., :256] @ q.T


def test_weights_may_be_a_view(isa):
    """Read-only bytes at an odd address, every second row, an expert of a stack."""
    q, x = weights("q5_k", 37, 256, 0), activations((3,), 256, "normal", 0)
    wanted = kvant.matmul(x, q)
    raw = bytes(3) + q.data.tobytes()
    mapped = kvant.QTensor(np.frombuffer(raw, np.uint8)[3:].reshape(37, -1), "q5_k", q.shape)
    check("mapped", kvant.matmul(x, mapped), wanted)
    check("every second row", kvant.matmul(x, q[::2]), wanted[:, ::2])
    stack = kvant.QTensor(q.data[:36].reshape(4, 9, -1), "q5_k", (4, 9, 256))
    check("an expert", kvant.matmul(x, stack[2]), wanted[:, 18:27])
    check("packed", kvant.matmul(x, stack.pack()[2]), wanted[:, 18:27])
