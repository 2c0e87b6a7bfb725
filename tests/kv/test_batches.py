"""Several sequences in one call: the bits of a call for each, all of them or none."""

from __future__ import annotations

from threading import Thread

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvant import CacheFullError, KVCache, KVPolicy, KVSide, ShapeError
from kvant.kv import StreamingLLM
from kvant.reference.kv_attention import kv_attention
from support import every_isa, words

HEADS, DIM, VALUE_DIM = 2, 32, 20
RNG = np.random.default_rng(0)
K = RNG.standard_normal((3000, HEADS, DIM), dtype=np.float32)
V = RNG.standard_normal((3000, HEADS, VALUE_DIM), dtype=np.float32)
Q = RNG.standard_normal((400, 2 * HEADS, DIM), dtype=np.float32)
SINKS = np.linspace(-1, 1, 2 * HEADS, dtype=np.float32)


def cache_of(k="q8_0", v="q4_0", **options):
    return KVCache(1, HEADS, DIM, k, v, value_dim=VALUE_DIM, **options)


def filled(cache, *lengths):
    """Sequences of so many tokens, no two alike."""
    sequences = []
    for number, length in enumerate(lengths):
        sequences.append(cache.sequence())
        at = 100 * number % 1000
        sequences[-1].append(0, K[at : at + length], V[at : at + length])
    return sequences


def same(a, b):
    return np.array_equal(words(a), words(b))


def page_bytes():
    """Of one page of each head."""
    cache = cache_of()
    held = filled(cache, 1)
    return cache.nbytes if held else 0


def split(x, counts):
    """Of each sequence its own rows; of None none."""
    return [None] * len(counts) if x is None else np.split(x, np.cumsum(counts)[:-1])


def alone(sequences, q, counts, **options):
    """A call for each: results, or the first error and whose it is."""
    results = []
    for number, (seq, own) in enumerate(zip(sequences, split(q, counts), strict=True)):
        try:
            results.append(seq.attend(0, own, lse=True, **options))
        except ShapeError as error:
            return None, f"[attend_many] sequence {number}: {str(error).removeprefix('[attend] ')}"
    return [np.concatenate(each) for each in zip(*results, strict=True)], None


# ---- the bits of single calls ----

CODECS = [("q8_0", "q4_0"), ("kivi2", "kivi4"), ("lm3", "q5_1"), ("f16", "f32"), ("q4_1", "kivi2")]
ORIGINS = ["new", "new", "fork", "shorter", "evicted"]
each_length = st.one_of(st.integers(0, 140), st.sampled_from([512, 700, 1100]))


@given(
    codecs=st.sampled_from(CODECS),
    reach=st.sampled_from([{}, {}, {"window": 100}, {"chunk": 90}, {"window": 600}]),
    policy=st.sampled_from([(0, 0), (0, 0), (4, 40), (70, 1)]),
    fine=st.booleans(),
    view=st.booleans(),
    begun=st.lists(st.tuples(st.sampled_from(ORIGINS), each_length), min_size=1, max_size=5),
    grown=st.lists(st.one_of(st.sampled_from([0, 1, 1, 2]), st.integers(0, 90)), min_size=5),
    asked=st.lists(st.one_of(st.sampled_from([0, 1, 1, 1, 2]), st.integers(0, 60)), min_size=5),
    exact=st.booleans(),
    softcap=st.sampled_from([0.0, 0.0, 5.0]),
    threads=st.integers(1, 3),
)
@example(
    CODECS[0], {}, (4, 40), True, False, [("new", 1100), ("fork", 0), ("evicted", 9)], [1] * 5,
    [1] * 5, False, 5.0, 3,
)  # fmt: skip
@example(
    CODECS[2], {}, (0, 0), False, True, [("new", 70), ("fork", 0), ("fork", 0)], [90, 1, 0] * 2,
    [60, 1, 0] * 2, True, 0.0, 2,
)  # fmt: skip
def test_one_call_is_a_call_for_each(
    codecs, reach, policy, fine, view, begun, grown, asked, exact, softcap, threads
):
    view = view and not codecs[0].startswith("kivi")
    cache = KVCache(
        1, HEADS, DIM, codecs[0], None if view else codecs[1], value_dim=VALUE_DIM,
        value_view=view, policy=KVPolicy(*policy, fine=fine), **reach,
    )  # fmt: skip
    sequences = []
    for number, (origin, length) in enumerate(begun):
        if origin == "new" or not sequences:
            sequences.append(cache.sequence())
            at = 100 * number
            own = None if view else V[at : at + length]
            sequences[-1].append(0, K[at : at + length], own)
            continue
        sequences.append(sequences[length % len(sequences)].fork())
        if origin == "shorter" and sequences[-1].held(0) == sequences[-1].length:
            sequences[-1].truncate(max(sequences[-1].length - length % 60, 0))
        elif origin == "evicted" and not reach and not codecs[0].startswith("kivi"):
            sequences[-1].evict(StreamingLLM(sink=2), keep=length % 100 + 3)

    counts = grown[: len(sequences)]
    k, v = K[: sum(counts)], None if view else V[: sum(counts)]
    wanted = [seq.fork() for seq in sequences]
    for seq, *own in zip(wanted, split(k, counts), split(v, counts), strict=True):
        seq.append(0, *own)
    cache.append_many(0, sequences, k, v, counts, threads=threads)
    for seq, other in zip(sequences, wanted, strict=True):
        assert seq.length == other.length
        for head in range(HEADS):
            start = max(seq.held(0, head) - 90, 0)
            assert same(seq.keys(0, head, start), other.keys(0, head, start))
            assert same(seq.values(0, head, start), other.values(0, head, start))

    # One comes twice.
    sequences.append(sequences[0])
    counts = [
        min(n, seq.held(0)) for n, seq in zip([*asked[: len(begun)], 1], sequences, strict=True)
    ]
    options = {"scale": 0.3, "sinks": SINKS, "softcap": softcap, "exact": exact}
    q = Q[: sum(counts)]
    expected, message = alone([*wanted, wanted[0]], q, counts, threads=1, **options)
    out = np.full((len(q), 2 * HEADS, VALUE_DIM), 7, np.float32)
    options |= {"lse": True, "out": out, "threads": threads}
    if message:
        with pytest.raises(ShapeError) as caught:
            cache.attend_many(0, sequences, q, counts, **options)
        assert str(caught.value) == message
        assert (out == 7).all()
        return
    got, lse = cache.attend_many(0, sequences, q, counts, **options)
    assert got is out
    assert same(got, expected[0])
    assert same(lse, expected[1])


@pytest.mark.parametrize("codecs", CODECS)
def test_results_are_those_of_the_twin(codecs):
    lengths, counts = (3, 130, 64, 520), (2, 3, 0, 1)
    for _ in every_isa():
        sequences = filled(cache_of(*map(KVSide, codecs)), *lengths)
        got = sequences[0].cache.attend_many(0, sequences, Q[:6], counts, 0.3, threads=3)
        for number, (own, q) in enumerate(
            zip(split(got, counts), split(Q[:6], counts), strict=True)
        ):
            at = 100 * number
            rows = slice(at, at + lengths[number])
            if len(q):
                twin = kv_attention(
                    q, K[rows], V[rows], 0.3, k_codec=codecs[0], v_codec=codecs[1], v_rule="nc"
                )
                assert same(own, twin)


def test_chunks_wait_in_waves_where_there_are_many():
    """Eleven sequences whose states would take more than 64 MiB, cut into chunks, and not cut."""
    heads, tokens = 48, 34 * 512
    cache = KVCache(1, 1, 16, "q8_0", "q4_0", value_dim=1024)
    first = cache.sequence()
    v = np.random.default_rng(1).standard_normal((512, 1, 1024), dtype=np.float32)
    for at in range(0, tokens, 512):
        k = np.random.default_rng(at).standard_normal((512, 1, 16), dtype=np.float32)
        first.append(0, k, np.roll(v, at // 7, 0))
    sequences = [first.fork() for _ in range(11)]
    for number, seq in enumerate(sequences):
        seq.truncate(tokens - 40 * number)
    q = np.random.default_rng(2).standard_normal((11, heads, 16), dtype=np.float32)
    whole = cache.attend_many(0, sequences, q, threads=1)
    assert same(cache.attend_many(0, sequences, q, threads=3), whole)
    assert same(sequences[4].attend(0, q[4:5], threads=2), whole[4:5])


def test_as_many_tokens_each():
    cache = cache_of()
    sequences = [cache.sequence() for _ in range(3)]
    cache.append_many(0, sequences, K[:12], V[:12])
    assert [seq.length for seq in sequences] == [4, 4, 4]
    got = cache.attend_many(0, sequences, Q[:6])
    assert same(got, cache.attend_many(0, sequences, Q[:6], [2, 2, 2]))
    assert same(got[2:4], sequences[1].attend(0, Q[2:4]))


def test_no_sequences():
    cache = cache_of()
    cache.append_many(0, [], K[:0], V[:0])
    assert cache.attend_many(0, [], Q[:0]).shape == (0, 2 * HEADS, VALUE_DIM)


# ---- all or none ----


def state(sequences):
    """What sequences hold, and what they answer."""
    return [
        (
            seq.length,
            seq.keys(0).tobytes(),
            seq.values(0, 1).tobytes(),
            seq.attend(0, Q[:2]).tobytes(),
        )
        for seq in sequences
    ]


def test_a_number_that_cannot_be_stored():
    cache = cache_of()
    sequences = filled(cache, 10, 70, 64)
    sequences.append(sequences[1].fork())
    before, nbytes = state(sequences), cache.nbytes
    k = K[:40].copy()
    k[25, 1, 3] = np.nan
    wanted = (
        r"^\[append_many\] expected finite numbers in reach of q8_0/q4_0, got one that is not in "
        r"sequence 2, at position 79 \(token 15, head 1\)$"
    )
    for threads in (1, 3):
        with pytest.raises(ShapeError, match=wanted):
            cache.append_many(0, sequences, k, V[:40], [10, 0, 20, 10], threads=threads)
        assert state(sequences) == before
        assert cache.nbytes == nbytes


def test_no_room():
    page = page_bytes()
    cache = cache_of(budget=5 * page)
    sequences = filled(cache, 64, 70, 30)
    assert cache.nbytes == 4 * page
    before = state(sequences)
    with pytest.raises(CacheFullError, match=r"^\[append_many\] sequence 2: the cache is full"):
        cache.append_many(0, sequences, K[:67], V[:67], [1, 1, 65])
    assert state(sequences) == before
    assert cache.nbytes == 4 * page
    # A prefix goes where it takes the room.
    cache.prefixes.publish(filled(cache, 64)[0], range(64))
    assert cache.nbytes == 5 * page
    cache.append_many(0, sequences, K[:3], V[:3])
    assert [seq.length for seq in sequences] == [65, 71, 31]
    assert cache.nbytes == 5 * page


def test_forks_copy_the_page_that_they_share():
    page = page_bytes()
    for budget, fits in ((3, True), (2, False)):
        cache = cache_of(budget=budget * page)
        sequences = filled(cache, 30)
        sequences.append(sequences[0].fork())
        before = state(sequences)
        if not fits:
            with pytest.raises(CacheFullError):
                cache.append_many(0, sequences, K[:2], V[:2])
            assert state(sequences) == before
            assert cache.nbytes == page
            continue
        cache.append_many(0, sequences, K[:2], V[:2])
        assert cache.nbytes == 2 * page
        for number, seq in enumerate(sequences):
            assert same(seq.keys(0, 0, 0, 30), filled(cache_of(), 30)[0].keys(0))
            assert seq.length == 31
            assert same(seq.values(0, 0, 30), filled(cache_of(), 1)[0].values(0)) == (number == 0)


TWO = r"2 sequences that add up to 6 tokens, got "


@pytest.mark.parametrize(
    ("counts", "what"),
    [
        ([3, 2], TWO + r"\[3, 2\]"),
        ([6], TWO + r"\[6\]"),
        ([7, -1], TWO + r"\[7, -1\]"),
        ([2, 2, 2], TWO + r"\[2, 2, 2\]"),
    ],
)
def test_counts_that_do_not_fit(counts, what):
    cache = cache_of()
    sequences = filled(cache, 10, 20)
    before = state(sequences)
    with pytest.raises(ShapeError, match=r"^\[attend_many\] expected counts of " + what):
        cache.attend_many(0, sequences, Q[:6], counts)
    with pytest.raises(ShapeError, match=r"^\[append_many\] expected counts of " + what):
        cache.append_many(0, sequences, K[:6], V[:6], counts)
    assert state(sequences) == before


def test_sequences_that_cannot_be():
    cache = cache_of()
    one, two = filled(cache, 10, 20)
    with pytest.raises(ShapeError, match=r"^\[append_many\] sequence 2: a sequence comes twice$"):
        cache.append_many(0, [one, two, one], K[:3], V[:3])
    with pytest.raises(ShapeError, match="sequence 1: a sequence comes twice"):
        cache.append_many(0, [one, one], K[:3], V[:3], [3, 0])
    other = filled(cache_of(), 10)[0]
    for call in (
        lambda: cache.append_many(0, [one, other], K[:2], V[:2]),
        lambda: cache.attend_many(0, [one, other], Q[:2]),
    ):
        with pytest.raises(
            ShapeError, match="expected sequences of this cache, got one of another at 1"
        ):
            call()
    with pytest.raises(ShapeError, match="expected as many tokens for each of 2 sequences, got 3"):
        cache.attend_many(0, [one, two], Q[:3])
    with pytest.raises(ShapeError, match="expected as many tokens for each of 0 sequences, got 3"):
        cache.append_many(0, [], K[:3], V[:3])
    with pytest.raises(ShapeError, match=r"^\[attend_many\] expected q \[T"):
        cache.attend_many(0, [one, two], Q[:2, :3])
    with pytest.raises(ShapeError, match=r"^\[append_many\] expected 4 values"):
        cache.append_many(0, [one, two], K[:4], V[:2])
    for counts, number in (([11, 20], 0), ([10, 21], 1), ([0, 31], 1)):
        wanted = rf"^\[attend_many\] sequence {number}: there are fewer keys than queries$"
        with pytest.raises(ShapeError, match=wanted):
            cache.attend_many(0, [one, two], Q[:31], counts)
    assert (one.length, two.length) == (10, 20)


# ---- threads ----


def test_threads_with_the_same_sequences_in_opposite_order():
    """Two that wait for each other would never end."""
    cache, count = cache_of(), 100
    sequences = filled(cache, *[9] * count)

    def grow(order):
        some = [sequences[i] for i in order]
        for number in range(60):
            cache.append_many(0, some, K[:count], V[:count], threads=1 + number % 2)
            for _ in range(5):
                cache.attend_many(0, some, Q[:count], threads=1)

    orders = (range(count), range(count)[::-1], np.random.default_rng(0).permutation(count))
    calls = [Thread(target=grow, args=[order], daemon=True) for order in orders]
    for call in calls:
        call.start()
    for call in calls:
        call.join(timeout=30)
        assert not call.is_alive()
    assert [seq.length for seq in sequences] == [9 + 3 * 60] * count
