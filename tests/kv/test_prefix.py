"""Prefixes that sequences share."""

from __future__ import annotations

import gc
import re
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from kvant import CacheFullError, FormatError, KVCache, KVPolicy, ShapeError
from support import words

HEADS, DIM = 2, 32
BANK = np.random.default_rng(0).standard_normal((500, HEADS, DIM), dtype=np.float32)
QUERY = np.random.default_rng(1).standard_normal((1, 2 * HEADS, DIM), dtype=np.float32)
PROMPT = np.random.default_rng(2).integers(0, 500, 300)


def cache_of(**options):
    return KVCache(2, HEADS, DIM, "q8_0", "q4_0", **options)


def extend(seq, tokens):
    for layer in range(2):
        seq.append(layer, BANK[tokens], -BANK[tokens])


def with_tokens(cache, tokens):
    seq = cache.sequence()
    extend(seq, tokens)
    return seq


def published(cache, tokens, **options):
    """The sequence is gone afterwards."""
    return cache.prefixes.publish(with_tokens(cache, tokens), tokens, **options)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 128, 129, 299, 300])
def test_whole_pages_but_never_the_last_token(length):
    cache = cache_of()
    assert published(cache, PROMPT) == 256
    seq, found = cache.prefixes.match(PROMPT[:length])
    assert found == seq.length == (length - 1) // 64 * 64


def test_a_match_has_the_bits_of_tokens_computed_anew():
    cache = cache_of()
    published(cache, PROMPT)
    tokens = np.concatenate([PROMPT[:200], PROMPT[:50]])
    seq, found = cache.prefixes.match(tokens)
    assert found == 192
    extend(seq, tokens[found:])
    wanted = with_tokens(cache_of(), tokens)
    for layer in range(2):
        got, want = (s.attend(layer, QUERY) for s in (seq, wanted))
        assert np.array_equal(words(got), words(want))


def test_pages_are_shared_and_not_copied():
    cache = cache_of()
    published(cache, PROMPT)
    held = cache.nbytes
    sequences = [cache.prefixes.match(PROMPT)[0] for _ in range(10)]
    assert cache.nbytes == held
    for seq in sequences:
        extend(seq, PROMPT[256:])
    assert cache.nbytes == held + 10 * held // 4
    assert cache.prefixes.drop() == 0
    del sequences[:], seq
    assert cache.nbytes == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.int64, np.uint64, ">i4"])
def test_tokens_are_what_they_count(dtype):
    cache = cache_of()
    prompt = PROMPT % 128
    published(cache, [int(t) for t in prompt])
    assert cache.prefixes.match(prompt.astype(dtype))[1] == 256
    assert cache.prefixes.match(np.repeat(prompt.astype(dtype), 2)[::2])[1] == 256


def test_every_token_of_a_prefix_counts():
    cache = cache_of()
    published(cache, PROMPT)
    for at in (0, 63, 64, 255):
        other = PROMPT.copy()
        other[at] += 1
        assert cache.prefixes.match(other)[1] == at // 64 * 64


def test_extra_keeps_apart():
    cache = cache_of()
    published(cache, PROMPT, extra=b"a")
    assert [cache.prefixes.match(PROMPT, extra=e)[1] for e in (b"a", b"b", b"")] == [256, 0, 0]


def test_a_longer_prefix_stands_in_for_its_beginning():
    cache = cache_of()
    seq = with_tokens(cache, PROMPT[:130])
    cache.prefixes.publish(seq, PROMPT[:130])
    extend(seq, PROMPT[130:])
    cache.prefixes.publish(seq, PROMPT)
    cache.prefixes.publish(seq, PROMPT[:100])
    assert len(cache.prefixes) == 1
    assert cache.prefixes.match(PROMPT[:130])[1] == 128


def test_tokens_not_yet_computed_are_left_out():
    cache = cache_of()
    seq = with_tokens(cache, PROMPT[:100])
    assert cache.prefixes.publish(seq, PROMPT) == 64
    assert cache.prefixes.publish(cache.sequence(), PROMPT) == 0
    assert cache.prefixes.publish(seq, []) == 0


def test_the_least_recently_used_is_dropped_first():
    cache = cache_of()
    prompts = [np.roll(PROMPT, i) for i in range(3)]
    for prompt in prompts:
        published(cache, prompt)
    each = cache.nbytes // 3
    cache.prefixes.match(prompts[0])
    assert cache.prefixes.drop(1) == each
    assert [cache.prefixes.match(p)[1] for p in prompts] == [256, 0, 256]
    assert cache.prefixes.drop(each + 1) == 2 * each
    assert len(cache.prefixes) == cache.nbytes == 0


def test_an_append_takes_the_room_of_prefixes():
    one = cache_of()
    with_one = with_tokens(one, PROMPT)
    cache = cache_of(budget=2 * one.nbytes)
    published(cache, PROMPT)
    published(cache, PROMPT + 1 - (PROMPT == 499))
    kept = with_tokens(cache, PROMPT)
    assert len(cache.prefixes) == 1
    with_tokens(cache, PROMPT)
    assert len(cache.prefixes) == 0
    both = [kept, with_tokens(cache, PROMPT)]
    with pytest.raises(CacheFullError, match="budget"):
        with_tokens(cache, PROMPT)
    assert all(np.array_equal(s.attend(0, QUERY), with_one.attend(0, QUERY)) for s in both)


def test_rows_of_a_file_take_the_room_of_prefixes():
    one = cache_of()
    rows = [with_tokens(one, PROMPT).to_ggml(layer) for layer in range(2)]
    cache = cache_of(budget=5 * 2 * HEADS * 64 * (34 + 18))
    published(cache, PROMPT)
    seq = cache.sequence()
    for layer in range(2):
        seq.from_ggml(layer, *rows[layer])
    assert (len(cache.prefixes), seq.length) == (0, 300)


def test_a_window_serves_the_lengths_it_can():
    cache = cache_of(window=[None, 70])
    seq = with_tokens(cache, PROMPT)
    cache.prefixes.publish(seq, PROMPT)
    # All tokens came at once, so that nothing was let go of.
    assert cache.prefixes.match(PROMPT[:100])[1] == 64
    cache.prefixes.drop()
    seq = cache.sequence()
    for at in range(0, 300, 10):
        extend(seq, PROMPT[at : at + 10])
        if seq.length == 130:
            assert cache.prefixes.publish(seq, PROMPT) == 128
    assert cache.prefixes.publish(seq, PROMPT) == 256
    assert len(cache.prefixes) == 2
    lengths = [cache.prefixes.match(PROMPT[:n])[1] for n in (300, 256, 200, 129, 128)]
    assert lengths == [256, 128, 128, 128, 64]
    assert cache.prefixes.publish(seq, PROMPT[:100]) == 0
    fork, _ = cache.prefixes.match(PROMPT)
    extend(fork, PROMPT[256:])
    wanted = with_tokens(cache_of(window=[None, 70]), PROMPT)
    for layer in range(2):
        got, want = (s.attend(layer, QUERY) for s in (fork, wanted))
        assert np.array_equal(words(got), words(want))


def test_a_tail_is_exact_where_its_tokens_were_published():
    policy = KVPolicy(sink=4, tail=100)
    cache = cache_of(policy=policy)
    seq = with_tokens(cache, PROMPT[:200])
    assert cache.prefixes.publish(seq, PROMPT) == 192
    extend(seq, PROMPT[200:])
    assert cache.prefixes.publish(seq, PROMPT) == 256
    fork, found = cache.prefixes.match(PROMPT[:210])
    assert found == 192
    extend(fork, PROMPT[192:210])
    wanted = with_tokens(cache_of(policy=policy), PROMPT[:210])
    assert np.array_equal(words(fork.attend(0, QUERY)), words(wanted.attend(0, QUERY)))


def test_threads_share_an_index():
    one = cache_of()
    alone = with_tokens(one, PROMPT)
    wanted = alone.attend(0, QUERY)
    # Room for what is computed and for little that is kept.
    cache = cache_of(budget=5 * one.nbytes)

    def serve(number):
        for turn in range(20):
            prompt = PROMPT if turn % 2 else np.roll(PROMPT, number)
            seq, found = cache.prefixes.match(prompt)
            extend(seq, prompt[found:])
            cache.prefixes.publish(seq, prompt)
            if turn % 2:
                assert np.array_equal(words(seq.attend(0, QUERY)), words(wanted))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(serve, range(1, 5)))
    cache.prefixes.drop()
    assert cache.nbytes == 0


def test_memory_does_not_wait_for_the_collector():
    gc.disable()
    try:
        cache = cache_of()
        published(cache, PROMPT)
        index, there = cache.prefixes, weakref.ref(cache)
        del cache
        assert there() is None
        with pytest.raises(ShapeError, match="whose cache is gone"):
            index.match(PROMPT)
        assert index.drop() == 0
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.zeros(70, np.float32), "tokens [T] of whole numbers, got float32 (70,)"),
        (np.zeros((2, 70), np.int64), "tokens [T] of whole numbers, got int64 (2, 70)"),
        (np.zeros(70, bool), "tokens [T] of whole numbers, got bool (70,)"),
        ([-1] * 70, "tokens from 0 to 2^32 - 1, got -1 to -1"),
        ([1 << 32] * 70, "tokens from 0 to 2^32 - 1, got 4294967296 to 4294967296"),
    ],
)
def test_what_is_no_token(tokens, message):
    cache = cache_of()
    with pytest.raises(ShapeError, match=re.escape(f"[match] expected {message}")):
        cache.prefixes.match(tokens)
    with pytest.raises(ShapeError, match=re.escape(f"[publish] expected {message}")):
        cache.prefixes.publish(cache.sequence(), tokens)


def test_a_sequence_of_another_cache():
    with pytest.raises(ShapeError, match="sequence of the index's cache"):
        cache_of().prefixes.publish(cache_of().sequence(), PROMPT)


def test_what_another_thread_changes_meanwhile_is_no_prefix(monkeypatch):
    """Tokens go between the call of `publish` and its copy of the sequence."""
    cache = cache_of()
    seq = with_tokens(cache, PROMPT)
    whole = type(seq).fork

    def fork(self):
        self.remove(100, 110)
        return whole(self)

    monkeypatch.setattr(type(seq), "fork", fork)
    assert cache.prefixes.publish(seq, PROMPT) == 64


def test_a_change_that_was_refused_leaves_a_prefix():
    cache = KVCache(2, HEADS, DIM, "kivi4", "q4_0")
    seq = with_tokens(cache, PROMPT)
    with pytest.raises(FormatError):
        seq.remove(100, 110)
    assert cache.prefixes.publish(seq, PROMPT) == 256
