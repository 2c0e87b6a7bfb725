"""Attention over a cache: the bits of the twin on every ISA, and close to f64."""

from __future__ import annotations

import numpy as np
import pytest
from blocks import seeds
from hypothesis import example, given
from hypothesis import strategies as st

from distributions import wild
from kvant.errors import ShapeError
from kvant.models import Cache
from kvant.models.cache import layer_tokens
from kvant.reference.attention import attention
from support import every_isa, words


def draw(tokens, heads, dim, seed, share=0.0):
    """[tokens, heads, dim], sometimes with infinities and NaN."""
    return wild(tokens * heads, dim, seed, share).reshape(tokens, heads, dim)


def normal(tokens, heads, dim, seed):
    return np.random.default_rng(seed).standard_normal((tokens, heads, dim), dtype=np.float32)


def attend(q, k, v, scale, before=0, threads=None, dtype="f16", window=None, **options):
    """Through a cache that gets `before` tokens first."""
    cache = Cache(1, k.shape[1], k.shape[2], v.shape[2], len(k), dtype, [window])
    cache.append(0, k[:before], v[:before], threads=threads)
    cache.advance(before)
    cache.append(0, k[before:], v[before:], threads=threads)
    return cache.attend(0, q, scale, threads=threads, **options)


@given(
    tokens=st.integers(1, 9),
    before=st.one_of(st.integers(0, 80), st.sampled_from([505, 512, 600])),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 8),
    dim=st.sampled_from([1, 4, 16, 20, 64]),
    value_dim=st.sampled_from([1, 12, 16, 80, 96]),
    window=st.one_of(st.none(), st.integers(1, 100), st.just(540)),
    sinks=st.booleans(),
    share=st.sampled_from([0.0, 0.0, 0.002]),
    seed=seeds,
)
@example(1, 0, 1, 1, 1, 1, None, False, 1.0, 0)
@example(9, 600, 1, 5, 4, 16, 60, True, 0.0, 1)
def test_attention_is_its_twin(
    tokens, before, kv_heads, group, dim, value_dim, window, sinks, share, seed
):
    # The twin counts token by token: few of them where there are many keys.
    if before > 100:
        tokens, group, dim, value_dim = (
            min(tokens, 2),
            min(group, 2),
            min(dim, 4),
            min(value_dim, 16),
        )
    q = draw(tokens, kv_heads * group, dim, seed, share)
    k = draw(before + tokens, kv_heads, dim, seed + 1, share)
    v = draw(before + tokens, kv_heads, value_dim, seed + 2, share)
    sink = draw(1, 1, kv_heads * group, seed + 3)[0, 0] if sinks else None
    kind = np.float32 if seed % 3 == 0 else np.float16
    dtype = "f32" if seed % 3 == 0 else "f16"
    wanted = words(attention(q, k, v, 0.37, window=window, sinks=sink, dtype=kind))
    for isa in every_isa():
        got = attend(q, k, v, 0.37, before, window=window, sinks=sink, dtype=dtype)
        assert np.array_equal(words(got), wanted), isa


@pytest.mark.parametrize("tokens, before", [(1, 3000), (3, 1500), (700, 0), (130, 900)])
@pytest.mark.parametrize("window", [None, 600])
def test_threads_and_batches_do_not_show(tokens, before, window, isa):
    q, k, v = normal(tokens, 6, 64, 0), *(normal(before + tokens, 2, 64, i) for i in (1, 2))
    wanted = words(attend(q, k, v, 0.125, before, threads=1, window=window))
    for threads in (2, 3, 16):
        got = attend(q, k, v, 0.125, before, threads=threads, window=window)
        assert np.array_equal(words(got), wanted)
    cut = tokens // 2
    first = attend(q[:cut], k[: before + cut], v[: before + cut], 0.125, before, window=window)
    rest = attend(q[cut:], k, v, 0.125, before + cut, window=window)
    assert np.array_equal(words(np.concatenate([first, rest])), wanted)


@pytest.mark.parametrize("tokens, before", [(5, 700), (64, 0)])
def test_attention_is_close_to_f64(tokens, before):
    q, k, v = normal(tokens, 4, 128, 0), *(normal(before + tokens, 2, 128, i) for i in (1, 2))
    got = attend(q, k, v, 128**-0.5, before)
    k, v = (x.astype(np.float16).astype(np.float64).repeat(2, axis=1) for x in (k, v))
    scores = np.einsum("thd,shd->ths", q.astype(np.float64), k) * 128**-0.5
    unseen = np.arange(before + tokens) > np.arange(before, before + tokens)[:, None]
    scores[unseen[:, None].repeat(4, axis=1)] = -np.inf
    share = np.exp(scores - scores.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)
    assert np.abs(got - np.einsum("ths,shd->thd", share, v)).max() < 2e-6


def test_what_a_token_does_not_see_does_not_matter():
    q, k, v = normal(70, 2, 32, 0), normal(70, 2, 32, 1), normal(70, 2, 32, 2)
    wanted = attend(q, k, v, 0.2, window=9)
    for x in (k, v):
        x[60:] = np.nan
        x[:5] = np.nan
    got = attend(q, k, v, 0.2, window=9)
    assert np.array_equal(words(got[13:60]), words(wanted[13:60]))
    assert np.isnan(got[:13]).any(axis=(1, 2)).all() and np.isnan(got[60:]).all()


@pytest.mark.parametrize("place", [0, 64, 511, 600])
def test_scores_of_minus_infinity_have_no_weight(place):
    k, v = np.full((601, 1, 1), -np.inf, np.float32), normal(601, 1, 16, 0)
    k[place] = 1
    q = np.ones((1, 1, 1), np.float32)
    for dtype in ("f16", "f32"):
        kept = v[place].astype(np.float16 if dtype == "f16" else np.float32)
        got = attend(q, k, v, 1.0, 600, dtype=dtype)
        assert np.array_equal(got[0], kept.astype(np.float32))
        k[place], wanted = -np.inf, np.zeros((1, 16), np.float32)
        assert np.array_equal(attend(q, k, v, 1.0, 600, dtype=dtype)[0], wanted)
        k[place] = 1


def test_a_cache_grows_and_forgets():
    q, k, v = normal(300, 2, 16, 0), normal(300, 1, 16, 1), normal(300, 1, 16, 2)
    wanted = attend(q, k, v, 0.25)
    cache = Cache(1, 1, 16)
    assert cache.capacity == 64
    for token in range(300):
        cache.append(0, k[token : token + 1], v[token : token + 1])
        got = cache.attend(0, q[token : token + 1], 0.25)
        assert np.array_equal(words(got), words(wanted[token : token + 1]))
        cache.advance(1)
    assert cache.capacity == 512
    cache.truncate(100)
    cache.append(0, k[100:], v[100:])
    assert np.array_equal(words(cache.attend(0, q[100:], 0.25)), words(wanted[100:]))


@pytest.mark.parametrize("window", [1, 64, 100, 700])
@pytest.mark.parametrize("batch", [1, 37, 512])
def test_a_window_keeps_what_it_needs(window, batch):
    count = 2600
    q, k, v = normal(count, 2, 16, 0), normal(count, 1, 16, 1), normal(count, 1, 16, 2)
    small = Cache(1, 1, 16, capacity=4096, windows=[window])
    size = small.nbytes
    assert size == 2 * 32 * layer_tokens(4096, window) < 2 * 32 * 4096
    for at in range(0, count, batch):
        part = slice(at, min(at + batch, count))
        small.append(0, k[part], v[part])
        if batch > 1 or at % 97 == 0:
            wanted = attend(q[part], k[: part.stop], v[: part.stop], 0.25, at, window=window)
            assert np.array_equal(words(small.attend(0, q[part], 0.25)), words(wanted))
        small.advance(part.stop - at)
    assert small.nbytes == size
    with pytest.raises(ShapeError, match="truncate"):
        small.truncate(10)
    small.truncate(count - 5)
    small.append(0, k[-5:], v[-5:])
    wanted = attend(q[-5:], k, v, 0.25, count - 5, window=window)
    assert np.array_equal(words(small.attend(0, q[-5:], 0.25)), words(wanted))


def test_an_interrupted_cache_is_as_it_was(monkeypatch):
    q, k, v = normal(300, 1, 16, 0), normal(300, 1, 16, 1), normal(300, 1, 16, 2)
    cache = Cache(1, 1, 16, windows=[20])
    cache.append(0, k[:60], v[:60])
    cache.advance(60)
    room = Cache._room

    def interrupted(self, pages, first):
        room(self, pages)
        raise KeyboardInterrupt

    monkeypatch.setattr(Cache, "_room", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.append(0, k[60:], v[60:])
    monkeypatch.undo()
    assert (cache.length, cache.capacity) == (60, 64)
    cache.append(0, k[60:], v[60:])
    wanted = attend(q[60:], k, v, 0.25, 60, window=20)
    assert np.array_equal(words(cache.attend(0, q[60:], 0.25)), words(wanted))


def test_wrong_shapes_are_refused():
    cache, appended = Cache(1, 2, 16), Cache(1, 2, 16)
    k = normal(3, 2, 16, 0)
    appended.append(0, k[:2], k[:2])
    cases = [
        lambda: cache.append(0, k[:, :1], k),
        lambda: cache.append(0, k, k[:2]),
        lambda: cache.attend(0, k[:, :, :8], 1.0),
        lambda: cache.attend(0, normal(3, 3, 16, 0), 1.0),
        lambda: Cache(1, 2, 16, windows=[0]),
        lambda: Cache(2, 2, 16, windows=[None]),
        lambda: Cache(1, 0, 16),
        lambda: Cache(1, 2, -4),
        lambda: appended.attend(0, k, 1.0),
        lambda: Cache(1, 2, 16, dtype="q8_0"),
        lambda: cache.attend(0, k, 1.0, sinks=np.zeros(3, np.float32)),
        lambda: cache.attend(0, k, 1.0, out=np.zeros((3, 2, 8), np.float32)),
        lambda: cache.attend(0, normal(65, 2, 16, 0), 1.0),
        lambda: cache.truncate(1),
    ]
    for case in cases:
        with pytest.raises(ShapeError, match=r"expected|past|least"):
            case()
    assert cache.length == 0
