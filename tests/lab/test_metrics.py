"""Metrics against the formulas in plain float64, and the properties they must have."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kvant.errors import ShapeError
from kvant.lab.metrics import Comparison, kl_divergence, log_softmax, perplexity

F32 = npt.NDArray[np.float32]

logits = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 9)),
    elements=st.floats(-80, 80, width=32),
)


def pair(shape: tuple[int, int]) -> Any:
    each = hnp.arrays(np.float32, shape, elements=st.floats(-30, 30, width=32))
    return st.tuples(each, each)


pairs = st.tuples(st.integers(1, 4), st.integers(2, 8)).flatmap(pair)


def plain_kl(base: F32, test: F32) -> list[float]:
    """The definition, with Python's own sums."""
    found = []
    for a, b in zip(base.astype(float), test.astype(float), strict=True):
        p, q = np.exp(a - a.max()), np.exp(b - b.max())
        p, q = p / p.sum(), q / q.sum()
        found.append(sum(float(x * np.log(x / y)) for x, y in zip(p, q, strict=True) if x > 0))
    return found


@given(pairs)
def test_kl_is_its_definition(both: tuple[F32, F32]) -> None:
    np.testing.assert_allclose(kl_divergence(*both), plain_kl(*both), rtol=1e-7, atol=3e-7)


@given(logits)
def test_a_model_does_not_diverge_from_itself(x: F32) -> None:
    assert (kl_divergence(x, x.copy()) == 0.0).all()


@given(pairs)
def test_kl_is_never_negative_and_sees_any_change(both: tuple[F32, F32]) -> None:
    kl = kl_divergence(*both)
    assert (kl >= 0).all()
    apart = np.abs(log_softmax(both[0]) - log_softmax(both[1])).max(axis=1) > 1e-3
    heavy = np.exp(log_softmax(both[0])).min(axis=1) > 1e-3
    assert (kl[apart & heavy] > 0).all()


@given(logits)
def test_log_softmax_is_a_distribution(x: F32) -> None:
    log_p = log_softmax(x)
    assert log_p.dtype == np.float64
    np.testing.assert_allclose(np.exp(log_p).sum(axis=-1), 1.0, rtol=1e-12)
    np.testing.assert_allclose(log_p - log_p[:, :1], x.astype(float) - x[:, :1], atol=1e-12)


def test_tokens_without_probability() -> None:
    base = np.array([[0.0, 0.0, -np.inf]], np.float32)
    test = np.array([[0.0, 1.0, 2.0]], np.float32)
    assert kl_divergence(base, base)[0] == 0.0
    assert np.isfinite(kl_divergence(base, test)[0])
    assert kl_divergence(test, base)[0] == np.inf
    huge = np.array([[3e5, -3e38]], np.float32)
    assert kl_divergence(huge, huge)[0] == 0.0


@given(st.integers(1, 50), st.integers(1, 9))
def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(vocab: int, rows: int) -> None:
    flat = np.full((rows, vocab), 3.0, np.float32)
    assert perplexity(flat, np.arange(rows) % vocab) == pytest.approx(vocab, rel=1e-7)


def test_figures_of_a_comparison() -> None:
    rng = np.random.default_rng(5)
    base = rng.standard_normal((4, 50, 12)).astype(np.float32)
    test = base + rng.standard_normal(base.shape).astype(np.float32) / 4
    targets = rng.integers(0, 12, (4, 50))
    scores = Comparison()
    for b, t, ids in zip(base, test, targets, strict=True):
        scores.update(b, t, ids)
    found = scores.result()

    kl = np.array(plain_kl(base.reshape(200, 12), test.reshape(200, 12)))
    assert (found.tokens, found.windows) == (200, 4)
    assert found.kl_mean == pytest.approx(kl.mean(), rel=1e-6)
    expected = np.quantile(kl, [0.5, 0.99, 0.999])
    got = [found.kl_median, found.kl_p99, found.kl_p999]
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert found.kl_max == pytest.approx(kl.max(), rel=1e-6)
    means = kl.reshape(4, 50).mean(axis=1)
    assert found.kl_error == pytest.approx(means.std(ddof=1) / 2, rel=1e-5)
    same = base.argmax(axis=-1) == test.argmax(axis=-1)
    assert found.same_top == pytest.approx(same.mean())
    assert 0 < found.same_top < 1

    def right(x: F32) -> npt.NDArray[np.float64]:
        return np.take_along_axis(log_softmax(x), targets[..., None], -1)

    assert found.perplexity == pytest.approx(np.exp(-right(test).mean()))
    assert found.base_perplexity == pytest.approx(np.exp(-right(base).mean()))
    change = np.exp(right(test)) - np.exp(right(base))
    assert found.delta_p_rms == pytest.approx(np.sqrt((change**2).mean()))


def test_an_infinite_divergence_stays_in_the_tail() -> None:
    base = np.zeros((1000, 2), np.float32)
    test = base.copy()
    test[0] = (0, -np.inf)
    scores = Comparison()
    scores.update(base, test, np.zeros(1000, int))
    found = scores.result()
    assert (found.kl_median, found.kl_p99) == (0.0, 0.0)
    assert found.kl_p999 == found.kl_max == found.kl_mean == np.inf
    assert np.isnan(found.kl_error)


def test_refusals() -> None:
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(ShapeError, match=r"\(2, 3\) and \(2, 4\)"):
        kl_divergence(x, np.zeros((2, 4), np.float32))
    with pytest.raises(ShapeError, match="2 targets"):
        Comparison().update(x, x, [1])
    with pytest.raises(ShapeError, match=r"0\.\.2"):
        Comparison().update(x, x, [1, 3])
    with pytest.raises(ShapeError, match="at least one"):
        Comparison().result()
    with pytest.raises(ShapeError, match="last axis"):
        log_softmax(np.zeros((2, 0), np.float32))
