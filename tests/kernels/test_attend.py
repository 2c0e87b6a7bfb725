"""Attention over a cache of floats: close to f64, whatever the batches and threads."""

from __future__ import annotations

import numpy as np
import pytest

from kvant import KVCache, attention, merge_lse
from kvant.errors import ShapeError
from support import words


def normal(tokens, heads, dim, seed):
    return np.random.default_rng(seed).standard_normal((tokens, heads, dim), dtype=np.float32)


def attend(q, k, v, before=0, threads=None, codec="f16", window=None, **options):
    """Through a cache that gets `before` tokens first."""
    cache = KVCache(1, k.shape[1], k.shape[2], codec, codec, value_dim=v.shape[2], window=window)
    seq = cache.sequence()
    seq.append(0, k[:before], v[:before], threads=threads)
    seq.append(0, k[before:], v[before:], threads=threads)
    return seq.attend(0, q, threads=threads, **options)


@pytest.mark.parametrize("codec", ["f16", "q8_0", "q4_1", "lm3"])
@pytest.mark.parametrize("tokens, before", [(1, 3000), (3, 1500), (700, 0), (130, 900)])
@pytest.mark.parametrize("window", [None, 600])
def test_threads_and_batches_do_not_show(tokens, before, window, codec, isa):
    q, k, v = normal(tokens, 6, 64, 0), *(normal(before + tokens, 2, 64, i) for i in (1, 2))
    how = {"window": window, "codec": codec}
    wanted = words(attend(q, k, v, before, threads=1, **how))
    for threads in (2, 3, 16):
        assert np.array_equal(words(attend(q, k, v, before, threads=threads, **how)), wanted)
    cut = tokens // 2
    first = attend(q[:cut], k[: before + cut], v[: before + cut], before, **how)
    rest = attend(q[cut:], k, v, before + cut, **how)
    assert np.array_equal(words(np.concatenate([first, rest])), wanted)


def softmax_f64(q, k, v, unseen=None, softcap=0.0):
    """[T, H, D] of f64 arrays of as many heads, and the log of the sums."""
    scores = np.einsum("thd,shd->ths", q, k) * q.shape[-1] ** -0.5
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    if unseen is not None:
        scores[unseen[:, None].repeat(q.shape[1], axis=1)] = -np.inf
    top = scores.max(-1, keepdims=True)
    share = np.exp(scores - top)
    total = share.sum(-1, keepdims=True)
    return np.einsum("ths,shd->thd", share / total, v), (top + np.log(total))[..., 0]


@pytest.mark.parametrize("tokens, before", [(5, 700), (64, 0)])
@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_attention_is_close_to_f64(tokens, before, softcap):
    q, k, v = normal(tokens, 4, 128, 0), *(normal(before + tokens, 2, 128, i) for i in (1, 2))
    got, lse = attend(q, k, v, before, softcap=softcap, lse=True)
    k, v = (x.astype(np.float16).astype(np.float64).repeat(2, axis=1) for x in (k, v))
    unseen = np.arange(before + tokens) > np.arange(before, before + tokens)[:, None]
    wanted, sums = softmax_f64(q.astype(np.float64), k, v, unseen, softcap)
    assert np.abs(got - wanted).max() < 2e-6
    assert np.abs(lse - sums).max() < 2e-6


def test_without_a_cache():
    q, k, v = normal(9, 4, 32, 0), normal(20, 2, 32, 1), normal(20, 2, 48, 2)
    wanted, sums = softmax_f64(
        *(x.astype(np.float64) for x in (q, k.repeat(2, axis=1), v.repeat(2, axis=1)))
    )
    got, lse = attention(q, k, v, causal=False, lse=True)
    assert np.abs(got - wanted).max() < 2e-6 and np.abs(lse - sums).max() < 2e-6
    more, fewer = attention(q, k[:3], v[:3], causal=False), attention(q, k[:0], v[:0], causal=False)
    assert more.shape == got.shape and not fewer.any()
    parts = [
        attention(q, k[part], v[part], causal=False, lse=True) for part in (slice(7), slice(7, 20))
    ]
    out, total = merge_lse(parts)
    assert np.abs(out - got).max() < 2e-6 and np.abs(total - lse).max() < 2e-6
    assert np.array_equal(
        words(attention(q, k, v, window=3)), words(attend(q, k, v, 11, codec="f32", window=3))
    )


def test_queries_that_are_not_finite_are_theirs_alone():
    q, k, v = normal(70, 2, 32, 0), normal(70, 2, 32, 1), normal(70, 2, 32, 2)
    for codec in ("f16", "q8_0", "iq4_nl"):
        wanted = attend(q, k, v, codec=codec)
        odd = q.copy()
        odd[20, 1, 3], odd[50, 0, 0] = np.nan, np.inf
        got = attend(odd, k, v, codec=codec)
        assert np.isnan(got[20, 1]).all() and np.isnan(got[50, 0]).all()
        got[20, 1], got[50, 0] = wanted[20, 1], wanted[50, 0]
        assert np.array_equal(words(got), words(wanted))


@pytest.mark.parametrize("window", [1, 64, 100, 700])
@pytest.mark.parametrize("batch", [1, 37, 512])
@pytest.mark.parametrize("codec", ["f16", "q4_0"])
def test_a_window_keeps_what_it_needs(window, batch, codec):
    count = 2600 if batch > 1 else 1300
    q, k, v = normal(count, 2, 16, 0), normal(count, 1, 16, 1), normal(count, 1, 16, 2)
    cache = KVCache(1, 1, 16, codec, codec, window=window)
    small = cache.sequence()
    for at in range(0, count, batch):
        part = slice(at, min(at + batch, count))
        small.append(0, k[part], v[part])
        if batch > 1 or at % 97 == 0:
            wanted = attend(q[part], k[: part.stop], v[: part.stop], at, codec=codec, window=window)
            assert np.array_equal(words(small.attend(0, q[part])), words(wanted))
    most = (window + 64 + batch) // 64 + 2
    assert cache.stats().pages <= most < count // 64
    with pytest.raises(ShapeError, match="truncate"):
        small.truncate(10)
    small.truncate(count - 5)
    small.append(0, k[-5:], v[-5:])
    wanted = attend(q[-5:], k, v, count - 5, codec=codec, window=window)
    assert np.array_equal(words(small.attend(0, q[-5:])), words(wanted))
    with pytest.raises(ShapeError, match="window"):
        small.attend(0, q[: count - 1])
