"""Rows of logits compared: the bits of the twin on every ISA, and close to float64."""

from __future__ import annotations

import numpy as np
import pytest
from blocks import seeds
from hypothesis import example, given
from hypothesis import strategies as st

from distributions import wild
from kvant.lab.divergence import RowDivergence, kl_divergence, row_divergence
from kvant.reference.divergence import divergence
from support import every_isa

# Around one vector, around one block of the definition, and in between.
lengths = st.one_of(st.integers(1, 70), st.sampled_from([1000, 2047, 2048, 2049, 4100]))
shares = st.sampled_from([0.0, 0.0, 0.001, 0.3])


def words(found):
    return [np.ascontiguousarray(column).view(np.int64).tolist() for column in found]


@given(rows=st.integers(1, 4), vocab=lengths, seed=seeds, share=shares, near=st.booleans())
@example(rows=1, vocab=1, seed=0, share=1.0, near=False)
def test_it_is_its_twin(rows, vocab, seed, share, near):
    base, test = wild(rows, vocab, seed, share), wild(rows, vocab, seed + 1, share)
    if near:
        with np.errstate(all="ignore"):
            test = base + test / 64
    wanted = words(divergence(base, test))
    for isa in every_isa():
        assert words(row_divergence(base, test)) == wanted, isa


def families(vocab, seed):
    """Logits that are hard in one way or another."""
    rng = np.random.default_rng(seed)

    def normal(spread):
        return (rng.standard_normal((2, vocab)) * spread).astype(np.float32)

    x = normal(3)
    yield "a little noise", x, x + normal(0.01)
    yield "much noise", x, x + normal(1)
    yield "hardly any", x, x + normal(1e-4)
    yield "strangers", x, normal(3)
    yield "far strangers", normal(10), normal(10)
    yield "moved", x, x + normal(0.1) + np.float32(1000)
    yield "large", x + np.float32(3e5), x - np.float32(3e5)
    # All mass in a flat tail, where roundings of one kind would add up.
    tail = np.full((2, vocab), -0.1234567, np.float32)
    tail[:, vocab // 2] = (12.3, 12.5)
    yield "tail", tail, -tail
    yield "torn tail", tail, tail + rng.choice(np.float32([-20, 20]), tail.shape)
    yield "rising", np.sort(x), np.sort(x)[:, ::-1].copy()


def exact(base, test):
    """The definition in float64."""

    def log_softmax(x):
        x = x.astype(np.float64)
        x = x - x.max(axis=1, keepdims=True)
        return x - np.log(np.exp(x).sum(axis=1, keepdims=True))

    p, q = log_softmax(base), log_softmax(test)
    return (np.exp(p) * (p - q)).sum(axis=1)


@pytest.mark.parametrize("vocab", [300, 32000, 262144])
def test_it_is_within_a_millionth_of_float64(vocab):
    for name, base, test in families(vocab, vocab):
        found, wanted = kl_divergence(base, test), exact(base, test)
        assert np.abs(found - wanted).max() < 1e-6, name


def test_it_is_as_close_with_few_tokens():
    rng = np.random.default_rng(0)
    for spread in (1, 10, 40):
        base = rng.standard_normal((5000, 3)).astype(np.float32)
        test = (base * rng.choice([0, 1], base.shape) * spread).astype(np.float32)
        assert np.abs(kl_divergence(base, test) - exact(base, test)).max() < 1e-6


def test_log_sums_are_close_to_float64():
    x = np.concatenate([base for _, base, _ in families(5000, 1)])
    wide = x.astype(np.float64)
    most = wide.max(axis=1, keepdims=True)
    wanted = np.log(np.exp(wide - most).sum(axis=1)) + most[:, 0]
    assert np.abs(row_divergence(x, x).base_lse - wanted).max() < 2.0**-23


@given(rows=st.integers(1, 3), vocab=lengths, seed=seeds)
def test_a_row_does_not_diverge_from_itself(rows, vocab, seed):
    x = wild(rows, vocab, seed, 0.0) * np.float32(4)
    assert (kl_divergence(x, x.copy()) == 0.0).all()


def test_rows_and_threads_do_not_show(isa):
    base, test = wild(50, 3000, 0, 0.0), wild(50, 3000, 1, 0.0)
    wanted = words(row_divergence(base, test, threads=1))
    for threads in (2, 3):
        assert words(row_divergence(base, test, threads=threads)) == wanted
    each = [row_divergence(base[i : i + 1], test[i : i + 1]) for i in range(50)]
    assert words(RowDivergence(*map(np.concatenate, zip(*each, strict=True)))) == wanted
    wide = np.concatenate([base, test], axis=1)
    assert words(row_divergence(wide[:, :3000], wide[:, 3000:])) == wanted


def test_special_values(isa):
    inf, nan = np.inf, np.nan

    def kl(base, test):
        return float(kl_divergence(np.float32([base]), np.float32([test]))[0])

    assert kl([0, -inf], [0, -inf]) == 0
    assert kl([0, 0, -inf], [0, 0, 5]) == pytest.approx(np.log(1 + np.exp(5) / 2), abs=1e-6)
    assert kl([0, 0, 5], [0, 0, -inf]) == inf
    assert kl([0, -1e30], [0, -1e30]) == 0
    assert kl([0, -1e5], [0, -inf]) == inf
    for odd in ([nan, 0], [inf, 0], [-inf, -inf], [6e5, 0], [-6e5, -6e5]):
        found = row_divergence(np.float32([odd]), np.float32([[0, 1]]))
        assert np.isnan(found.kl[0])
        assert np.isnan(found.base_lse[0])
        assert found.test_lse[0] == pytest.approx(np.log1p(np.e), abs=1e-6)
        assert np.isnan(kl([0, 1], odd))
    assert kl([5e5, 0], [5e5, 1]) == 0


def test_the_first_of_equals_is_the_top(isa):
    rng = np.random.default_rng(3)
    x = rng.integers(-3, 4, (40, 5000)).astype(np.float32)
    x[0] = -np.inf
    found = row_divergence(x, x[:, ::-1].copy())
    assert found.base_top.tolist() == x.argmax(axis=1).tolist()
    assert found.test_top.tolist() == x[:, ::-1].argmax(axis=1).tolist()
