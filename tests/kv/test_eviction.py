"""What eviction and removal keep, save, end and refuse."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from kvant import KVCache, KVPolicy
from kvant.errors import CacheFullError, ShapeError, StateError
from kvant.kv import KeyDiff, KVRope, SnapKV, StreamingLLM
from kvant.kv.selection import keep_only
from support import words

HEADS, GROUP, DIM = 2, 3, 32


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def fed(cache, tokens, seed=0):
    seq = cache.sequence()
    for layer, shape in enumerate(cache.shapes):
        k = normal(tokens, shape.kv_heads, shape.head_dim, seed=seed + layer)
        seq.append(layer, k, -k[..., : shape.value_dim])
    return seq


def refuses(call, text, error=ShapeError):
    with pytest.raises(error) as caught:
        call()
    assert text in str(caught.value), str(caught.value)


class Given:
    """A scorer of one's own: scores of each head as they are given."""

    def __init__(self, scores):
        self.given = scores

    def scores(self, keys, values, head):
        return self.given[head.number]


# ---- what is kept ----


def test_each_head_keeps_its_best():
    cache = KVCache(1, HEADS, DIM, "q8_0", "f16")
    seq = fed(cache, 300)
    scores = [normal(300, seed=7), normal(300, seed=8)]
    keys = [seq.keys(0, head) for head in range(HEADS)]
    kept = seq.evict(Given(scores), 100, sink=3, recent=5)
    for head in range(HEADS):
        own = kept[0][head]
        always = {0, 1, 2, *range(295, 300)}
        rest = sorted(set(range(300)) - always, key=lambda t: -scores[head][t])
        assert own.tolist() == sorted(always | set(rest[:92]))
        assert np.array_equal(words(seq.keys(0, head)), words(keys[head][own]))
    assert (seq.length, seq.layer_length(0), seq.held(0, 1)) == (300, 300, 100)


def test_memory_falls():
    cache = KVCache(3, HEADS, DIM, "q4_0", "q4_0", window=[None, 60, None], policy=KVPolicy(4, 64))
    seq = fed(cache, 6400)
    other = KVCache(3, HEADS, DIM, "q4_0", "q4_0", window=[None, 60, None], policy=KVPolicy(4, 64))
    small = fed(other, 640)
    kept = seq.evict(StreamingLLM(), 0.1)
    assert sorted(kept) == [0, 2] and seq.held(0) == 640 and seq.held(1) == 6400
    # What is left over from one long append, before windows and tails move on.
    for one in (seq, small):
        for layer in range(3):
            one.append(layer, *[normal(1, HEADS, DIM)] * 2)
    assert cache.nbytes == other.nbytes


@pytest.mark.parametrize("codec", ["f16", "q5_0"])
def test_a_full_cache_can_be_emptied(codec):
    def make(budget=None):
        return KVCache(2, HEADS, DIM, codec, codec, policy=KVPolicy(4, 30), budget=budget)

    seq = fed(make(), 200)
    cache = make(seq.cache.nbytes)
    seq = fed(cache, 200)
    assert cache.nbytes == cache.budget
    seq.evict(KeyDiff(), 64)
    assert cache.nbytes < cache.budget // 2


def test_pages_that_are_shared_stay_what_they_are():
    seq = fed(KVCache(1, HEADS, DIM, "q4_0", "q4_0", policy=KVPolicy(4, 30)), 500)
    budget = seq.cache.nbytes
    cache = KVCache(1, HEADS, DIM, "q4_0", "q4_0", policy=KVPolicy(4, 30), budget=budget)
    seq = fed(cache, 500)
    fork, q = seq.fork(), normal(3, HEADS * GROUP, DIM)
    before = [words(seq.attend(0, q)), seq.to_ggml(0)[0].tobytes()]
    for call in (lambda: seq.evict(KeyDiff(), 200), lambda: seq.remove(100, 200)):
        refuses(call, "budget has no page left", CacheFullError)
        assert cache.nbytes == budget and seq.held(0) == 500 and seq.length == 500
    roomy = KVCache(1, HEADS, DIM, "q4_0", "q4_0", policy=KVPolicy(4, 30))
    seq = fed(roomy, 500)
    fork = seq.fork()
    seq.evict(KeyDiff(), 200)
    seq.append(0, *[normal(100, HEADS, DIM, seed=3)] * 2)
    assert np.array_equal(words(fork.attend(0, q)), before[0])
    assert fork.to_ggml(0)[0].tobytes() == before[1]
    seq = None
    assert roomy.nbytes == budget
    fork = None
    assert roomy.nbytes == 0


def test_prefixes_are_let_go_of_for_room():
    sized = fed(KVCache(1, HEADS, DIM, "q4_0", "q4_0"), 512)
    cache = KVCache(1, HEADS, DIM, "q4_0", "q4_0", budget=sized.cache.nbytes)
    seq = fed(cache, 512)
    assert cache.prefixes.publish(seq, range(512)) == 512
    seq.evict(KeyDiff(), 128)
    assert len(cache.prefixes) == 0 and cache.nbytes == cache.budget // 4
    # What is left is no prefix of anything.
    assert cache.prefixes.publish(seq, range(512)) == 0


def test_a_removal_ends_what_can_be_published():
    cache = KVCache(1, HEADS, DIM)
    seq = fed(cache, 400)
    seq.remove(150, 160)
    assert cache.prefixes.publish(seq.fork(), range(390)) == 128
    seq.truncate(149)
    seq.append(0, *[normal(200, HEADS, DIM)] * 2)
    assert cache.prefixes.publish(seq, range(349)) == 320


def test_heads_of_many_lengths_on_many_threads():
    """Tasks of one head after the other, and of chunks, give the same."""
    cache = KVCache(1, 3, DIM, "q8_0", "q8_0", policy=KVPolicy(3, 40))
    seq = fed(cache, 4000)
    kept = [np.arange(0, 4000, step) for step in (1, 3, 40)]
    keep_only(seq, {0: kept})
    seq.append(0, *[normal(7, 3, DIM, seed=9)] * 2)
    for tokens in (1, 8):
        q = normal(tokens, 6, DIM, seed=2)
        wanted = [words(x) for x in seq.attend(0, q, lse=True, threads=1)]
        for threads in (2, 5, 8):
            got = seq.attend(0, q, lse=True, threads=threads)
            assert all(np.array_equal(words(a), b) for a, b in zip(got, wanted, strict=True))
    # The same on one thread and on many.
    many = fed(KVCache(1, 3, DIM, "q8_0", "q8_0", policy=KVPolicy(3, 40)), 4000)
    keep_only(many, {0: kept}, threads=5)
    many.append(0, *[normal(7, 3, DIM, seed=9)] * 2)
    assert np.array_equal(words(many.attend(0, q, threads=1)), wanted[0])


# ---- what is refused ----


def test_what_an_eviction_ends():
    seq = fed(KVCache(1, HEADS, DIM, "q8_0", "q4_0"), 100)
    seq.evict(Given([np.arange(100.0), -np.arange(100.0)]), 40)
    q = normal(3, HEADS * GROUP, DIM)
    seq.attend(0, q[:1])
    seq.attend(0, q, causal=False)
    refuses(lambda: seq.attend(0, q[:2]), "[attend] keys that these queries see were evicted")
    refuses(lambda: seq.truncate(99), "[truncate] tokens before it were evicted")
    refuses(lambda: seq.remove(61, 70), "tokens among these were evicted")
    refuses(lambda: seq.remove(60, 70), "came after the last eviction, got 60")
    refuses(lambda: seq.remove(0, 70), "came after the last eviction, got 0")
    refuses(lambda: seq.shift(3, KVRope(), 70), "tokens before it were evicted")
    seq.append(0, *[normal(5, HEADS, DIM)] * 2)
    seq.attend(0, normal(6, HEADS * GROUP, DIM))
    refuses(lambda: seq.attend(0, normal(7, HEADS * GROUP, DIM)), "were evicted")
    seq.remove(101, 103)
    assert (seq.length, seq.held(0)) == (103, 43)
    seq.truncate(100)
    assert (seq.length, seq.held(0)) == (100, 40)
    seq.evict(Given([np.arange(40.0)] * 2), 30)
    assert (seq.length, seq.held(0)) == (100, 30)
    seq.truncate(0)
    seq.append(0, *[normal(5, HEADS, DIM)] * 2)
    assert (seq.length, seq.held(0)) == (5, 5)


def test_rows_of_heads_that_differ():
    seq = fed(KVCache(1, HEADS, DIM), 100)
    keep_only(seq, {0: [np.arange(40), np.arange(30)]})
    refuses(
        lambda: seq.to_ggml(0), "[to_ggml] expected heads with as many tokens each, got [30, 40]"
    )
    assert seq.keys(0, 0).shape == (40, DIM) and seq.values(0, 1, -5).shape == (5, DIM)


@pytest.mark.parametrize(
    ("keep", "given", "text"),
    [
        (0, {}, "a whole number above 0 or a share below 1, got 0"),
        (1.0, {}, "got 1.0"),
        (2.5, {}, "got 2.5"),
        (float("nan"), {}, "got nan"),
        (10, {"sink": -1}, "sink and recent of at least 0"),
        (10, {"floor": 1.5}, "a floor from 0 to 1"),
        (10, {"layers": [1]}, "a layer with a window or chunks lets go by itself"),
        (10, {"layers": [0, 0]}, ""),
        (10, {"layers": [2]}, "which shares those of 0"),
        (10, {"layers": [3]}, "expected a layer below 3, got 3"),
    ],
)
def test_evictions_that_are_refused(keep, given, text):
    cache = KVCache(3, HEADS, DIM, window=[None, 50, None], share={2: 0})
    seq = cache.sequence()
    for layer in (0, 1):
        seq.append(layer, *[normal(100, HEADS, DIM)] * 2)
    before = cache.nbytes
    if given == {"layers": [0, 0]}:
        assert len(seq.evict(KeyDiff(), keep, **given)) == 1
        return
    refuses(lambda: seq.evict(KeyDiff(), keep, **given), text)
    assert cache.nbytes == before and seq.held(0) == 100


def test_tokens_that_come_meanwhile_are_not_lost():
    seq = fed(KVCache(1, HEADS, DIM), 100)

    class Slow:
        def scores(self, keys, values, head):
            seq.append(0, *[normal(1, HEADS, DIM)] * 2)
            return np.arange(len(keys))

    refuses(lambda: seq.evict(Slow(), 10), "[evict] the head holds another number of tokens")
    assert seq.held(0) == 102


@pytest.mark.parametrize("scores", [np.zeros(99), np.zeros((100, 1)), np.full(100, np.nan)])
def test_scores_that_are_none(scores):
    seq = fed(KVCache(1, HEADS, DIM), 100)
    refuses(lambda: seq.evict(Given([scores, scores]), 10), "[evict] expected scores (100,)")
    refuses(
        lambda: seq.evict(SnapKV([normal(3, 5, DIM)]), 10), "a multiple of 2, head_dim] of layer 0"
    )
    refuses(lambda: SnapKV([], kernel=4), "an odd kernel")
    assert seq.held(0) == 100


@pytest.mark.parametrize(
    ("start", "stop", "text"),
    [(-1, 3, "within 100 tokens"), (5, 4, "got 5, 4"), (90, 101, "got 90, 101")],
)
def test_removals_that_are_refused(start, stop, text):
    seq = fed(KVCache(1, HEADS, DIM), 100)
    for call in (lambda: seq.remove(start, stop), lambda: seq.shift(1, KVRope(), start, stop)):
        refuses(call, text)
    refuses(lambda: seq.remove(1, 2, [KVRope()] * 2), "expected rope of 1 layers, got 2")
    refuses(lambda: seq.remove(1, 2, KVRope(rotary_dim=33)), "an even rotary_dim")
    assert seq.length == 100


def test_keys_too_large_once_turned():
    cache = KVCache(2, 1, DIM, "f16", "f16")
    seq = cache.sequence()
    x = normal(100, 1, DIM)
    y = x.copy()
    y[90, 0, [0, 16]] = 60000, -60000
    seq.append(0, x, x)
    seq.append(1, y, x)
    before = [words(seq.keys(layer)) for layer in (0, 1)]
    refuses(lambda: seq.remove(10, 11, KVRope(1e4)), "a number is too large")
    assert seq.length == 100
    assert all(np.array_equal(words(seq.keys(n)), before[n]) for n in (0, 1))
    seq.remove(10, 11)
    assert seq.length == 99


def test_codes_too_large_for_an_exact_copy():
    cache = KVCache(1, 1, DIM, "q8_0", "q8_0", policy=KVPolicy(sink=2))
    seq = cache.sequence()
    x = normal(100, 1, DIM)
    x[50, 0, 3] = 1e6
    seq.append(0, x, x)
    refuses(lambda: keep_only(seq, {0: [np.arange(50, 60)]}), "an exact copy")
    assert seq.held(0) == 100
    keep_only(seq, {0: [np.arange(40, 60)]})
    assert seq.held(0) == 20


# ---- files ----


@pytest.mark.parametrize("in_place", [False, True])
def test_states_of_what_was_evicted(tmp_path, in_place):
    def make():
        return KVCache(1, HEADS, DIM, "q4_0", "q5_1", policy=KVPolicy(3, 20))

    seq = fed(make(), 300)
    keep_only(seq, {0: [np.arange(0, 300, 3), np.arange(7, 50)]})
    seq.append(0, *[normal(9, HEADS, DIM)] * 2)
    seq.save(tmp_path / "a")
    cache = make()
    again = cache.load(tmp_path / "a", in_place=in_place)
    assert (again.length, again.held(0, 1)) == (309, 52)
    q = normal(10, HEADS * GROUP, DIM)
    assert np.array_equal(words(again.attend(0, q)), words(seq.attend(0, q)))
    refuses(lambda: again.truncate(299), "were evicted")
    assert cache.prefixes.publish(again, range(309)) == 0
    fork = again.fork()
    for one in (seq, again):
        one.evict(KeyDiff(), 40)
        one.append(0, *[normal(9, HEADS, DIM, seed=4)] * 2)
    assert np.array_equal(words(again.attend(0, q)), words(seq.attend(0, q)))
    assert fork.held(0, 1) == 52
    again = fork = one = None
    gc.collect()  # errors hold frames, and those sequences
    assert cache.nbytes == 0


@pytest.mark.parametrize(
    ("missing", "settled", "sound"),
    [
        (200, 10, True),
        (200, 100, True),
        (200, 101, False),
        (200, 0, False),
        (0, 5, False),
        (-1, 5, False),
        (5, -1, False),
        (1 << 60, 5, False),
    ],
)
@pytest.mark.parametrize("window", [None, 80])
def test_states_that_cannot_be(missing, settled, sound, window):
    cache = KVCache(1, 1, DIM, "q4_0", "q4_0", window=window)
    seq = fed(cache, 100)
    state = np.frombuffer(seq._core.save(0, 0), np.uint8).copy()
    state[:64].view(np.int64)[6:] = missing, settled
    other = cache.sequence()
    if sound and window is None:
        other._core.load(0, 0, state, False)
        assert (other.length, other.held(0)) == (100 + missing, 100)
    else:
        refuses(lambda: other._core.load(0, 0, state, False), "not one of such a layer")


def test_no_state_of_keys_by_channel_was_evicted():
    """Nothing evicts them, and what takes tokens back relies on it."""
    cache = KVCache(1, 1, DIM, "kivi4", "q4_0")
    state = np.frombuffer(fed(cache, 200)._core.save(0, 0), np.uint8).copy()
    state[:64].view(np.int64)[6:] = 1, 1
    other = cache.sequence()
    refuses(lambda: other._core.load(0, 0, state, False), "not one of such a layer")


def test_a_window_cut_to_its_edge_is_saved(tmp_path):
    cache = KVCache(1, 1, DIM, "q4_0", "q4_0", window=65)
    seq = cache.sequence()
    for _ in range(5):
        seq.append(0, *[normal(64, 1, DIM)] * 2)
    length = next(n for n in range(320) if not _refused(seq, n))
    seq.truncate(length)
    seq.save(tmp_path / "a")
    assert cache.load(tmp_path / "a").length == length


def _refused(seq, length):
    try:
        seq.fork().truncate(length)
    except ShapeError:
        return True
    return length == 0


def test_other_headers_are_refused(tmp_path, monkeypatch):
    import json

    from kvant.kv import state

    seq = fed(KVCache(1, 1, DIM), 3)
    written = json.dumps
    monkeypatch.setattr(
        state.json, "dumps", lambda x: written({**x, "changed": "a"} if "changed" in x else x)
    )
    seq.save(tmp_path / "a")
    monkeypatch.undo()
    with pytest.raises(StateError):
        seq.cache.load(tmp_path / "a")
