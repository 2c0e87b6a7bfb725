"""A cache of keys and values: what it takes, what it gives back, what sequences share."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest

import kvant
from kvant import CacheFullError, KVCache, KVPolicy, KVSide
from kvant.kv import CODECS
from support import words

BY_CHANNEL = ["kivi4", "kivi2"]
GGML = ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl"]
HEADS, DIM, VALUE_DIM = 2, 64, 96
RNG = np.random.default_rng(0)
K = RNG.standard_normal((150, HEADS, DIM), dtype=np.float32)
V = RNG.standard_normal((150, HEADS, VALUE_DIM), dtype=np.float32)
Q = RNG.standard_normal((5, 2 * HEADS, DIM), dtype=np.float32)


def cache_of(k="q8_0", v="q4_0", layers=1, **options):
    return KVCache(layers, HEADS, DIM, k, v, value_dim=VALUE_DIM, **options)


def filled(cache, k=K, v=V):
    seq = cache.sequence()
    seq.append(0, k, v)
    return seq


def same(a, b):
    return np.array_equal(words(a), words(b))


# ---- what is taken ----


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_floats_are_the_floats_they_stand_for(codec, dtype):
    k, v = K.astype(dtype), V.astype(dtype)
    halves = filled(cache_of(codec, codec), k, v)
    floats = filled(cache_of(codec, codec), k.astype(np.float32), v.astype(np.float32))
    mixed = filled(cache_of(codec, codec), k, v.astype(np.float32))
    for seq in (halves, mixed):
        assert same(seq.attend(0, Q), floats.attend(0, Q))
        for head in range(HEADS):
            assert same(seq.keys(0, head), floats.keys(0, head))
            assert same(seq.values(0, head), floats.values(0, head))


def views(x):
    """The same numbers behind other strides."""
    wide = np.zeros((len(x), 3 * HEADS, x.shape[2] + 5), x.dtype)
    wide[:, ::3, :-5] = x
    bytes_of = np.zeros(x.nbytes + 1, np.uint8)
    odd = bytes_of[1:].view(x.dtype).reshape(x.shape)
    odd[:] = x
    yield wide[:, ::3, :-5]
    yield np.ascontiguousarray(x.swapaxes(0, 1)).swapaxes(0, 1)
    yield np.asfortranarray(x)
    yield np.ascontiguousarray(x[::-1])[::-1]
    yield np.ascontiguousarray(x[:, ::-1])[:, ::-1]
    yield np.ascontiguousarray(x[:, :, ::-1])[:, :, ::-1]
    yield odd
    frozen = x.copy()
    frozen.flags.writeable = False
    yield frozen


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_strides_make_no_difference(dtype):
    k, v = K.astype(dtype), V.astype(dtype)
    wanted = filled(cache_of(), k, v).attend(0, Q)
    for view_k, view_v in zip(views(k), views(v), strict=True):
        assert same(filled(cache_of(), view_k, view_v).attend(0, Q), wanted)


def test_one_token_for_all():
    k, v = (np.broadcast_to(x[:1], x.shape) for x in (K, V))
    assert same(
        filled(cache_of(), k, v).attend(0, Q), filled(cache_of(), k.copy(), v.copy()).attend(0, Q)
    )


def test_strides_of_queries_make_no_difference():
    seq = filled(cache_of())
    wide = np.zeros((5, 4 * HEADS, DIM), np.float32)
    wide[:, ::2] = Q
    out = np.empty((5, 2 * HEADS, VALUE_DIM), np.float32)
    assert seq.attend(0, wide[:, ::2], out=out) is out
    assert same(out, seq.attend(0, Q))
    odd = np.zeros(Q.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(Q.shape)
    odd[:] = Q
    assert same(out, seq.attend(0, odd))
    assert same(out[::-1], seq.attend(0, np.ascontiguousarray(Q[::-1])[::-1])[::-1])


def test_no_tokens():
    cache = cache_of()
    seq = cache.sequence()
    seq.append(0, K[:0], V[:0])
    assert (seq.length, cache.nbytes) == (0, 0)
    assert seq.attend(0, Q[:0]).shape == (0, 2 * HEADS, VALUE_DIM)
    assert seq.keys(0).shape == (0, DIM)
    assert [x.shape for x in seq.to_ggml(0)] == [(0, HEADS, 68), (0, HEADS, 54)]


# ---- what is given back ----


@pytest.mark.parametrize("codec", GGML)
def test_rows_are_blocks_of_ggml(codec):
    seq = filled(cache_of(codec, codec))
    for rows, x in zip(seq.to_ggml(0), (K, V), strict=True):
        assert np.array_equal(rows, kvant.quantize(x, codec).data)
    for head in range(HEADS):
        for got, x in ((seq.keys(0, head), K), (seq.values(0, head), V)):
            assert same(got, kvant.quantize(x[:, head], codec).dequantize())


@pytest.mark.parametrize("codec", ["f32", "f16", "bf16"])
def test_rows_of_floats(codec):
    dtype = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}[codec]
    seq = filled(cache_of(codec, codec))
    for rows, x in zip(seq.to_ggml(0), (K, V), strict=True):
        assert np.array_equal(rows, x.astype(dtype).view(np.uint8))
    assert same(seq.values(0, 1), V[:, 1].astype(dtype).astype(np.float32))


@pytest.mark.parametrize("k", [codec for codec in CODECS if codec not in BY_CHANNEL])
@pytest.mark.parametrize("v", ["f16", "q5_1", "lm3", "kivi4", "kivi2"])
def test_rows_make_the_same_sequence(k, v):
    seq = filled(cache_of(k, v))
    copy = cache_of(k, v).sequence()
    rows = seq.to_ggml(0)
    # At once, and in pieces that end within pages.
    for start, stop in ((0, 70), (70, 71), (71, 150)):
        copy.from_ggml(0, rows[0][start:stop], rows[1][start:stop])
    for got, wanted in zip(copy.to_ggml(0), rows, strict=True):
        assert np.array_equal(got, wanted)
    assert same(copy.attend(0, Q), seq.attend(0, Q))
    assert same(copy.keys(0, 1), seq.keys(0, 1))


def test_rows_that_were_exact_are_seen_as_they_are_coded():
    policy = KVPolicy(sink=4, tail=30)
    seq, plain = filled(cache_of(policy=policy)), filled(cache_of())
    assert not same(seq.attend(0, Q), plain.attend(0, Q))
    assert same(seq.keys(0), plain.keys(0))


def test_transforms_are_taken_back():
    side = KVSide("f32", rotate="auto", signs=3)
    seq = filled(cache_of(side, side))
    assert np.allclose(seq.keys(0, 1), K[:, 1], atol=1e-5)
    assert np.allclose(seq.values(0, 0, 10, 20), V[10:20, 0], atol=1e-5)


def test_ranges_are_those_of_python():
    seq = filled(cache_of())
    whole = seq.values(0, 1)
    for start, stop in ((0, None), (-70, None), (3, -3), (63, 65), (149, 1000), (90, 10)):
        assert same(seq.values(0, 1, start, stop), whole[start:stop])


# ---- what sequences share ----


def test_a_fork_costs_nothing_until_one_writes():
    cache = cache_of(policy=KVPolicy(sink=4, tail=30))
    seq = filled(cache)
    used, pages = cache.nbytes, cache.stats().pages
    forks = [seq.fork() for _ in range(5)]
    assert (cache.nbytes, cache.stats().pages) == (used, pages)
    before = seq.attend(0, Q)
    forks[0].append(0, K[:1], V[:1])
    # The page that is written to is copied: codes and exact tokens of each head.
    assert cache.stats().pages == pages + 2 * HEADS
    assert same(seq.attend(0, Q), before)
    assert same(forks[1].attend(0, Q), before)
    del forks[:]
    assert (cache.nbytes, cache.stats().pages) == (used, pages)
    seq.append(0, K[:1], V[:1])
    assert cache.stats().pages == pages
    del seq
    assert cache.nbytes == 0


def test_what_is_taken_back_had_never_been():
    options = {"policy": KVPolicy(sink=4, tail=30), "window": 50}
    seq = cache_of(**options).sequence()
    for at in range(150):
        seq.append(0, K[at : at + 1], V[at : at + 1])
    seq.truncate(86)
    seq.append(0, -K[:3], -V[:3])
    wanted = filled(cache_of(**options), *(np.concatenate([x[:86], -x[:3]]) for x in (K, V)))
    assert same(seq.attend(0, Q[:3]), wanted.attend(0, Q[:3]))


def test_a_page_is_freed_by_the_last_that_holds_it():
    cache = cache_of()
    seq = filled(cache)
    fork = seq.fork()
    seq.truncate(0)
    used = cache.nbytes
    assert used > 0
    fork.truncate(64)
    assert cache.nbytes == used // 3
    fork.truncate(0)
    assert cache.nbytes == 0


def test_a_sequence_outlives_its_cache():
    seq = filled(cache_of())
    assert same(seq.fork().attend(0, Q), filled(cache_of()).attend(0, Q))


def test_layers_in_turn():
    cache = cache_of(layers=3, share={2: 0})
    seq = cache.sequence()
    seq.append(1, K[:70], V[:70])
    assert (seq.length, seq.layer_length(1), seq.layer_length(2)) == (0, 70, 0)
    seq.append(0, K[:10], V[:10])
    assert (seq.length, seq.layer_length(2)) == (10, 10)
    assert same(seq.attend(2, Q), seq.attend(0, Q))
    assert same(seq.keys(2, 1), seq.keys(0, 1))


# ---- the budget, and threads ----


def test_no_room():
    page = HEADS * 64 * (68 + 54)
    cache = cache_of(layers=2, budget=4 * page)
    seq = cache.sequence()
    seq.append(0, K[:100], V[:100])
    seq.append(1, K[:64], V[:64])
    before = seq.attend(0, Q)
    for layer, tokens in ((0, 150), (1, 65), (1, 129)):
        with pytest.raises(CacheFullError, match=r"\[append\] the cache is full"):
            seq.append(layer, K[:tokens], V[:tokens])
        assert (cache.nbytes, seq.layer_length(0), seq.layer_length(1)) == (3 * page, 100, 64)
    rows = filled(cache_of()).to_ggml(0)
    with pytest.raises(CacheFullError):
        seq.from_ggml(1, *rows)
    assert same(seq.attend(0, Q), before)
    # To the last byte; and room that is let go of is there for others.
    seq.append(1, K[64:128], V[64:128])
    assert cache.nbytes == cache.budget
    seq.truncate(64)
    other = cache.sequence()
    other.append(0, K[:128], V[:128])
    assert cache.nbytes == cache.budget


def test_threads_on_sequences_of_one_cache():
    cache = cache_of(policy=KVPolicy(sink=4, tail=30), window=80)
    begin = [filled(cache, K[:20], V[:20])]

    def one(number):
        seq = begin[0].fork()
        sign = np.float32(-1) ** number
        out = []
        for at in range(20, 150, 5 + number):
            k, v = sign * K[at : at + 5 + number], sign * V[at : at + 5 + number]
            seq.append(0, k, v)
            out.append(seq.attend(0, Q[:2]))
            if at % 3 == 0:
                seq.fork().append(0, k, v)
        return out

    wanted = [one(number) for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(5):
            for got, want in zip(pool.map(one, range(6)), wanted, strict=True):
                assert all(same(a, b) for a, b in zip(got, want, strict=True))
    assert cache.nbytes > 0
    begin.clear()
    assert cache.nbytes == 0


def test_threads_on_one_sequence():
    """Calls are served one after the other; attention sees whole appends."""
    seq = filled(cache_of(), K[:64], V[:64])
    wanted = {}
    alone = filled(cache_of(), K[:64], V[:64])
    for at in range(64, 150):
        wanted[alone.attend(0, Q[:1], threads=1).tobytes()] = at
        alone.append(0, K[at : at + 1], V[at : at + 1])
    wanted[alone.attend(0, Q[:1]).tobytes()] = 150

    def watch(_):
        return [wanted[seq.attend(0, Q[:1], threads=1).tobytes()] for _ in range(100)]

    with ThreadPoolExecutor(4) as pool:
        seen = [pool.submit(watch, i) for i in range(3)]
        for at in range(64, 150):
            seq.append(0, K[at : at + 1], V[at : at + 1])
        for lengths in seen:
            assert lengths.result() == sorted(lengths.result())
