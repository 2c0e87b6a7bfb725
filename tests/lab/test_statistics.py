"""Figures of a comparison against their formulas, token by token; the interval, and of what."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from llama_figures import figures, percentile

from kvant.lab.divergence import Scores
from kvant.lab.metrics import Comparison
from kvant.lab.statistics import (
    DELTA_P_QUANTILES,
    KL_QUANTILES,
    Divergence,
    bootstrap_interval,
    summarize,
)


def scores(rng: np.random.Generator, size: int, level: float = 1.0) -> Scores:
    base_nll = rng.exponential(3, size)
    nll = np.abs(base_nll + rng.standard_normal(size) / 4)
    return Scores(rng.exponential(level, size), nll, base_nll, rng.random(size) < 0.8)


def test_figures_are_those_of_llama_perplexity() -> None:
    rng = np.random.default_rng(1)
    windows = [scores(rng, size) for size in (120, 40, 200, 1)]
    found = summarize(windows)
    wanted = figures([tuple(t) for w in windows for t in zip(*w, strict=True)])  # type: ignore[misc]
    kl, change = wanted.pop("kl"), wanted.pop("delta_p")
    for name, value in wanted.items():
        got = getattr(found, name) if hasattr(found, name) else found.errors[name[:-6]]
        # llama-perplexity takes the difference of large sums of squares.
        assert got == pytest.approx(value, rel=1e-8), name
    for name, at in KL_QUANTILES.items():
        assert found.kl_quantiles[name] == pytest.approx(percentile(kl, at), rel=1e-12)
    for name, at in DELTA_P_QUANTILES.items():
        assert found.delta_p_quantiles[name] == pytest.approx(percentile(change, at), rel=1e-9)
    assert found.kl_max == max(kl)
    assert (found.tokens, found.windows) == (361, 4)


def test_the_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    hits = 0
    for trial in range(100):
        # Windows differ more than their tokens, which an error over tokens would not see.
        levels = rng.normal(1, 0.2, 60)
        blocks = [level + rng.normal(0, 0.1, 30) for level in levels]
        low, high = bootstrap_interval(blocks, seed=trial)
        hits += low <= 1 <= high
    assert 88 <= hits <= 100


def test_the_interval_is_repeatable_and_of_documents() -> None:
    rng = np.random.default_rng(3)
    windows = [scores(rng, 50, level) for level in (1, 1, 1, 5, 5, 5)]
    alone, again = summarize(windows), summarize(windows)
    assert alone == again
    assert alone.kl_low < alone.kl_mean < alone.kl_high
    named = summarize(windows, ["a"] * 3 + ["b"] * 3)
    # With two documents only, their own means bound everything.
    assert named.kl_high - named.kl_low > alone.kl_high - alone.kl_low
    assert dataclasses.replace(named, kl_low=0, kl_high=0) == dataclasses.replace(
        alone, kl_low=0, kl_high=0
    )
    one = summarize(windows, ["a"] * 6)
    assert np.isnan([one.kl_low, one.kl_high]).all()
    assert np.isnan(bootstrap_interval([np.ones(2), np.array([np.inf])])).all()


def test_documents_are_named_with_the_window() -> None:
    rng = np.random.default_rng(4)
    base = rng.standard_normal((6, 20, 5)).astype(np.float32)
    found = []
    for documents in ([None] * 6, ["a", "a", "a", "b", "b", None]):
        comparison = Comparison()
        for window, document in zip(base, documents, strict=True):
            comparison.update(window, window * np.float32(1.5), [0] * 20, document)
        found.append(comparison.result())
    assert found[0].kl_low != found[1].kl_low
    assert found[0].kl_mean == found[1].kl_mean


def test_few_tokens_leave_figures_open() -> None:
    one = Scores(np.array([0.5]), np.array([1.0]), np.array([1.0]), np.array([True]))
    found = summarize([one])
    assert found.kl_mean == 0.5
    for name in ("kl_error", "kl_low", "kl_high", "correlation"):
        assert np.isnan(getattr(found, name)), name
    assert np.isnan(found.errors["perplexity"])
    assert found.errors["delta_p_rms"] == found.delta_p_rms == 0
    assert isinstance(found, Divergence)
