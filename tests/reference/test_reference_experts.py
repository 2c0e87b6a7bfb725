"""Feed-forward networks and experts: compositions of products whose bits are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import exact_f32
from distributions import distribution
from kvant.reference import encode, ffn, matmul, matmul_experts, moe_ffn
from support import bits

EXPERTS, HIDDEN, N = 3, 256, 2
seeds = st.integers(0, 2**20)
acts = st.sampled_from(["q8", "f32"])


def activate(gate, up):
    return np.maximum(gate, np.float32(0)) * up


def packed(name, rows, cols, seed):
    """Experts whose rows are encoded normal numbers."""
    w = distribution("normal", EXPERTS * rows, cols, seed)
    return encode(w.reshape(EXPERTS, rows, cols), name), name


GATE = packed("q8_0", HIDDEN, 32, 1)
UP = packed("q4_0", HIDDEN, 32, 2)
DOWN = packed("q2_k", N, HIDDEN, 3)


def one(weights, expert):
    return weights[0][expert], weights[1]


def routed(m, top, seed):
    """Rows, chosen experts and their weights."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((m, 32)).astype(np.float32)
    return x, rng.integers(0, EXPERTS, (m, top)), rng.random((m, top), np.float32)


@given(seed=seeds, act=acts)
def test_a_network_is_its_three_products(seed, act):
    x = distribution("normal", 3, 32, seed)
    gate, up, down = (one(each, seed % EXPERTS) for each in (GATE, UP, DOWN))
    hidden = activate(matmul(x, *gate, act), matmul(x, *up, act))
    assert np.array_equal(
        bits(ffn(x, gate, up, down, activate, act)), bits(matmul(hidden, *down, act))
    )


@given(seed=seeds, m=st.integers(0, 5), top=st.integers(0, 4), act=acts)
def test_each_slot_is_a_product_with_its_own_expert(seed, m, top, act):
    x, ids, _ = routed(m, top, seed)
    got = matmul_experts(x, GATE, ids, act)
    assert got.shape == (m, top, HIDDEN)
    for row in range(m):
        for slot in range(top):
            wanted = matmul(x[row : row + 1], *one(GATE, ids[row, slot]), act)[0]
            assert np.array_equal(bits(got[row, slot]), bits(wanted))


@given(seed=seeds, m=st.integers(0, 4), top=st.integers(0, 4), act=acts)
def test_slots_are_added_in_the_order_of_the_router(seed, m, top, act):
    x, ids, weights = routed(m, top, seed)
    got = moe_ffn(x, GATE, UP, DOWN, ids, weights, activate, act)
    assert got.shape == (m, N)
    for row in range(m):
        wanted = [0.0] * N
        for slot in range(top):
            network = (one(each, ids[row, slot]) for each in (GATE, UP, DOWN))
            out = ffn(x[row : row + 1], *network, activate, act)[0].tolist()
            weight = float(weights[row, slot])
            wanted = [exact_f32.fma(weight, a, y) for a, y in zip(out, wanted, strict=True)]
        assert bits(got[row]).tolist() == [exact_f32.bits(y) for y in wanted]


def test_a_row_that_is_not_finite_touches_no_other():
    x, ids, weights = routed(3, 2, 0)
    clean = moe_ffn(x, GATE, UP, DOWN, ids, weights, activate)
    x[1, 7] = np.nan
    got = moe_ffn(x, GATE, UP, DOWN, ids, weights, activate)
    assert np.array_equal(bits(got[[0, 2]]), bits(clean[[0, 2]]))
    assert (got[1].view(np.uint32) == 0x7FC00000).all()


X, IDS, WEIGHTS = routed(2, 2, 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: matmul_experts(X, one(GATE, 0), IDS), r"\[experts, n, row_bytes\], got \(256, 34"),
        (lambda: matmul_experts(X, GATE, IDS + 2), r"ids from 0 to 2, got 2 to 4"),
        (lambda: matmul_experts(X, GATE, IDS - 9), r"ids from 0 to 2, got -9 to -7"),
        (lambda: matmul_experts(X, GATE, IDS * 1.0), r"whole ids \[2, top\], got float64 \(2, 2\)"),
        (lambda: matmul_experts(X, GATE, IDS[0]), r"whole ids \[2, top\], got int64 \(2,\)"),
        (lambda: matmul_experts(X, GATE, IDS[:1]), r"whole ids \[2, top\], got int64 \(1, 2\)"),
        (lambda: matmul_experts(X, GATE, IDS, "f16"), "act of 'q8' or 'f32', got 'f16'"),
        (
            lambda: moe_ffn(X, GATE, UP, DOWN, IDS, WEIGHTS[:, :1], activate),
            r"weights of float32 \(2, 2\), got float32 \(2, 1\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
