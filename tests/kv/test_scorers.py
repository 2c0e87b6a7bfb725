"""Scorers of tokens against plain loops over their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from kvant.kv import ExpectedAttention, Head, KeyDiff, KVRope, SnapKV
from kvant.kv.eviction import _shared

HEADS, GROUP, DIM = 2, 3, 32


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


@pytest.mark.parametrize(
    ("tokens", "window", "kernel"), [(40, 7, 5), (11, 7, 5), (9, 7, 3), (5, 8, 5)]
)
def test_snapkv(tokens, window, kernel):
    keys, q = normal(tokens, DIM), normal(window + 2, HEADS * GROUP, DIM, seed=1)
    got = SnapKV([q], window, kernel).scores(keys, keys, Head(0, 1, HEADS, tokens))
    before = tokens - window
    if before <= 0:
        assert np.isinf(got).all() and len(got) == tokens
        return
    rows = []
    for head in range(GROUP, 2 * GROUP):
        weights = np.zeros(before)
        for asking in range(window):
            seen = keys[: before + asking + 1].astype(np.float64)
            row = softmax(seen @ q[2 + asking, head].astype(np.float64) / np.sqrt(DIM))
            weights += row[:before] / window
        padded = np.pad(weights, kernel // 2)
        rows.append([padded[t : t + kernel].sum() / kernel for t in range(before)])
    assert np.allclose(got[:before], np.mean(rows, axis=0), rtol=1e-12)
    assert np.isinf(got[before:]).all() and len(got) == tokens


def test_keydiff():
    keys = normal(30, DIM)
    unit = keys / np.sqrt((keys.astype(np.float64) ** 2).sum(1))[:, None]
    mean = unit.mean(0)
    wanted = [-(row @ mean) / np.linalg.norm(mean) for row in unit]
    assert np.allclose(KeyDiff().scores(keys, keys, Head(0, 0, 1, 30)), wanted, rtol=1e-6)


@pytest.mark.parametrize("rope", [None, KVRope(100.0), KVRope(50.0, "interleaved", 16, scale=2.0)])
def test_expected_attention(rope):
    tokens, future, sink = 20, 16, 3
    keys, values = normal(tokens, DIM), normal(tokens, 8, seed=1)
    q = normal(50, HEADS * GROUP, DIM, seed=2) + 0.3
    scorer = ExpectedAttention({4: q}, rope, future, sink)
    if rope is not None:
        scorer = ExpectedAttention({4: q}, [rope] * 5, future, sink)
    got = scorer.scores(keys, values, Head(4, 0, HEADS, 77))
    assert np.isinf(got[:sink]).all()
    turn = np.zeros((DIM, DIM))
    for position in range(77, 77 + future):
        for i in range(DIM):
            one = np.zeros((1, 1, DIM), np.float32)
            one[0, 0, i] = 1
            turned = one if rope is None else rope.turn(one, [position])
            turn[:, i] += turned[0, 0] / future
    rows, seen = [], keys[sink:].astype(np.float64)
    for head in range(GROUP):
        own = q[sink:, head].astype(np.float64)
        mean = turn @ own.mean(0)
        covariance = turn @ np.cov(own.T, bias=True) @ turn.T
        logits = [k @ mean / np.sqrt(DIM) + k @ covariance @ k / (2 * DIM) for k in seen]
        rows.append(softmax(np.array(logits)))
    wanted = np.mean(rows, axis=0) * np.linalg.norm(values[sink:], axis=1)
    assert np.allclose(got[sink:], wanted, rtol=1e-5)


def test_heads_that_share_what_they_keep():
    scores = [np.array([9.0, 8, 7, 6, 5, 4, 3, 2]), np.array([1.0, 0.5, 0.25, 0.1, 0, 0, 0, 0])]
    kept = _shared(scores, [4, 4], 0.5)
    assert [k.tolist() for k in kept] == [[0, 1, 2, 3, 4, 5], [0, 1]]
    assert [len(k) for k in _shared(scores, [4, 4], 1.0)] == [4, 4]
    infinite = [np.full(8, np.inf), scores[1]]
    assert [len(k) for k in _shared(infinite, [4, 4], 0.5)] == [6, 2]
    # Never none of a head.
    assert [len(k) for k in _shared(scores, [2, 2], 0.0)] == [3, 1]


def test_short_heads_keep_what_they_have():
    q = {0: normal(8, HEADS * GROUP, DIM)}
    for tokens in (0, 2, 4):
        keys = normal(tokens, DIM) if tokens else np.empty((0, DIM), np.float32)
        scores = ExpectedAttention(q, None).scores(keys, keys, Head(0, 0, HEADS, 8))
        assert scores.tolist() == [np.inf] * tokens
