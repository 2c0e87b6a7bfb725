"""kvant.hadamard: the bits of its twin on every ISA, a rotation, and its own inverse."""

from __future__ import annotations

import numpy as np
import pytest
from blocks import seeds
from hypothesis import given
from hypothesis import strategies as st

import kvant
from distributions import wild
from kvant.reference import ops
from support import every_isa, words

BLOCKS = [16, 32, 64, 128, 256, 512]


def some_signs(block: int, seed: int) -> np.ndarray:
    return np.where(np.random.default_rng(seed).random(block) < 0.5, -1, 1).astype(np.float32)


def matrix(n: int) -> np.ndarray:
    """Sylvester's construction."""
    h = np.ones((1, 1))
    while len(h) < n:
        h = np.block([[h, h], [h, -h]])
    return h / np.sqrt(n)


@given(
    rows=st.integers(1, 37),
    block=st.sampled_from(BLOCKS),
    count=st.integers(1, 3),
    seed=seeds,
    share=st.sampled_from([0.0, 0.01]),
    signed=st.booleans(),
    inverse=st.booleans(),
)
def test_the_bits_of_the_twin(rows, block, count, seed, share, signed, inverse):
    x = wild(rows, block * count, seed, share)
    signs = some_signs(block, seed) if signed else None
    wanted = words(ops.hadamard(x, block, signs, inverse))
    for isa in every_isa():
        found = kvant.hadamard(x, block, signs=signs, inverse=inverse)
        assert np.array_equal(words(found), wanted), isa


@pytest.mark.parametrize("block", BLOCKS)
def test_it_is_the_matrix_and_undone(block):
    x = np.random.default_rng(block).standard_normal((50, block), dtype=np.float32)
    signs = some_signs(block, 1)
    y = kvant.hadamard(x, signs=signs)
    np.testing.assert_allclose(y, (x * signs) @ matrix(block), atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(y, axis=1), np.linalg.norm(x, axis=1), rtol=1e-6)
    np.testing.assert_allclose(kvant.hadamard(y, signs=signs, inverse=True), x, atol=2e-6)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_strides_and_in_place(threads, isa):
    x = wild(300, 256, 3, 0.0)
    wanted = ops.hadamard(x, 128)
    wide = np.zeros((300, 300), np.float32)
    wide[:, :256] = x
    view = wide[:, :256]
    assert kvant.hadamard(view, 128, out=view, threads=threads) is view
    assert np.array_equal(words(np.ascontiguousarray(view)), words(wanted))
    assert not wide[:, 256:].any()


def test_a_row_alone_has_the_bits_it_has_among_others():
    x = wild(33, 64, 5, 0.02)
    each = np.stack([kvant.hadamard(row) for row in x])
    assert np.array_equal(words(kvant.hadamard(x)), words(each))


def test_what_does_not_fit_is_refused():
    x = np.zeros((2, 96), np.float32)
    assert kvant.hadamard(x).shape == (2, 96)
    for block in (8, 48, 64, 1024, 0, -16):
        with pytest.raises(kvant.ShapeError, match="block of"):
            kvant.hadamard(x, block)
    with pytest.raises(kvant.ShapeError, match="that 16 divides"):
        kvant.hadamard(x[:, :24])
    with pytest.raises(kvant.ShapeError, match="signs of"):
        kvant.hadamard(x, 32, signs=np.zeros(32, np.float32))
    with pytest.raises(kvant.ShapeError, match="signs"):
        kvant.hadamard(x, 32, signs=np.ones(16, np.float32))
