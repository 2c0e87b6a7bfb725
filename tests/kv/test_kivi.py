"""Keys that are coded channel by channel: against the twin through any sequence of operations."""

from __future__ import annotations

from copy import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvant import CacheFullError, FormatError, KVCache, KVPolicy, KVSide, ShapeError, isa
from kvant.kv import CODECS, KeyDiff
from kvant.reference import kv_codecs
from kvant.reference.kv_attention import kv_attention
from support import words

KIVI = ["kivi4", "kivi2"]
PAGE, GROUP = 64, 32


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def same(a, b):
    return np.array_equal(words(a), words(b))


def halves(x):
    """The nearest finite f16."""
    return kv_codecs.rounded("f16", np.clip(x, -65504, 65504))


class Plain:
    """One head of one layer, as arrays: what groups are coded from, and what is seen exactly."""

    def __init__(self, k_codec, v_codec, dim, value_dim, sink, tail, window):
        self.codecs = {"k_codec": k_codec, "v_codec": v_codec, "v_rule": "unb"}
        self.sink, self.tail, self.window = sink, tail, window
        self.k, self.near_k = (np.empty((0, dim), np.float32) for _ in range(2))
        self.v, self.near_v = (np.empty((0, value_dim), np.float32) for _ in range(2))
        self.first_exact = 0

    def append(self, k, v):
        first = (len(self.k) - self.tail - PAGE) // PAGE
        self.first_exact = max(self.first_exact, first)
        self.k, self.near_k = (np.concatenate([x, k]) for x in (self.k, self.near_k))
        self.v, self.near_v = (np.concatenate([x, v]) for x in (self.v, self.near_v))

    def truncate(self, length):
        page, group = length // PAGE, length // GROUP * GROUP
        if length % PAGE and page < self.first_exact:
            self.near_k[self.sink :] = halves(self.keys())[self.sink :]
            self.near_v[self.sink :] = halves(self.values())[self.sink :]
        self.k[group:length] = self.near_k[group:length]
        self.k, self.near_k = self.k[:length].copy(), self.near_k[:length].copy()
        self.v, self.near_v = self.v[:length].copy(), self.near_v[:length].copy()
        self.first_exact = min(self.first_exact, page) if length else 0

    def keys(self):
        """Decoded; what is in no full group as f16."""
        full = len(self.k) // GROUP * GROUP
        coded = kv_codecs.encode_channels(self.codecs["k_codec"], self.k[:full])
        decoded = coded.decode(self.k.shape[1])
        return np.concatenate([decoded, halves(self.near_k[full:])])

    def values(self):
        codec = self.codecs["v_codec"]
        if codec in kv_codecs.FLOATS:
            return kv_codecs.rounded(codec, self.v)
        return kv_codecs.decode(kv_codecs.encode(codec, self.v, "unb"), self.v.shape[1])

    def attend(self, q, **options):
        k, v, *near = (x[:, None] for x in (self.k, self.v, self.near_k, self.near_v))
        given = {"window": self.window, "sink": self.sink, "tail": self.tail, **self.codecs}
        return kv_attention(
            q, k, v, 0.3, copies=tuple(near), exact_from=self.first_exact * PAGE, **given, **options
        )

    def copy(self):
        other = Plain.__new__(Plain)
        other.__dict__ = {name: copy(own) for name, own in self.__dict__.items()}
        return other


appends = st.integers(1, 40) | st.sampled_from([31, 32, 33, 64, 96, 200])
operations = st.one_of(
    st.tuples(st.just("append"), appends),
    st.tuples(st.just("roll back"), st.integers(0, 64)),
    st.tuples(st.just("truncate"), st.integers(0, 100)),
    st.tuples(st.sampled_from(["fork", "save", "map", "refuse"]), st.integers(1, 60)),
)


@given(
    k_codec=st.sampled_from(KIVI),
    v_codec=st.sampled_from(CODECS),
    dims=st.sampled_from([(16, 16), (80, 96), (96, 20), (20, 80)]),
    sink=st.sampled_from([0, 0, 4, 70]),
    tail=st.sampled_from([0, 0, 1, 40, 100]),
    window=st.sampled_from([None, None, 30, 90]),
    done=st.lists(operations, min_size=2, max_size=9),
    group=st.integers(1, 9),
    exact=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_operations_give_the_bits_of_the_twin(
    tmp_path_factory, k_codec, v_codec, dims, sink, tail, window, done, group, exact, seed
):
    rng, before = np.random.default_rng(seed), isa.current()
    given = {"value_dim": dims[1], "policy": KVPolicy(sink, tail), "window": window}
    cache = KVCache(1, 1, dims[0], k_codec, KVSide(v_codec, scale="unbiased"), **given)
    real, plain = cache.sequence(), Plain(k_codec, v_codec, *dims, sink, tail, window)
    others = []
    try:
        for name, count in [("append", 150), *done]:
            isa.use(isa.available()[rng.integers(len(isa.available()))])
            length = len(plain.k)
            if name in ("append", "refuse"):
                spread = np.exp(rng.standard_normal(dims[0]))
                k = (rng.standard_normal((count, dims[0])) * spread).astype(np.float32)
                v = rng.standard_normal((count, dims[1]), dtype=np.float32)
                if name == "append":
                    real.append(0, k[:, None], v[:, None])
                    plain.append(k, v)
                else:
                    k[-1, 5] = 7e4
                    with pytest.raises(ShapeError, match=f"token {count - 1}, head 0"):
                        real.append(0, k[:, None], v[:, None])
            elif name == "fork":
                others.append((real, plain))
                real, plain = real.fork(), plain.copy()
            elif name in ("save", "map"):
                path = tmp_path_factory.mktemp("states") / "a"
                real.save(path)
                real = cache.load(path, in_place=name == "map")
            else:
                cut = length - min(count, length) if name == "roll back" else length * count // 100
                try:
                    real.truncate(cut)
                except ShapeError:
                    assert window is not None
                    continue
                plain.truncate(cut)
        others.append((real, plain))
        for own, known in others:
            if not len(known.k):
                continue
            q = rng.standard_normal((min(2, len(known.k)), group, dims[0]), dtype=np.float32)
            start = 0 if window is None else len(known.k)
            assert same(own.keys(0, 0, start), known.keys()[start:])
            try:
                got = own.attend(0, q, 0.3, exact=exact)
            except ShapeError:
                assert window is not None
                continue
            assert same(got, known.attend(q, exact=exact))
    finally:
        isa.use(before)


@pytest.mark.parametrize(("codec", "wanted"), [("kivi4", 6.11e-3), ("kivi2", 0.154)])
@pytest.mark.parametrize("value", [False, True])
def test_the_error_through_a_cache(codec, wanted, value):
    x = normal(8000, 1, 128)
    seq = KVCache(1, 1, 128, codec, codec).sequence()
    seq.append(0, x, x)
    y = (seq.values if value else seq.keys)(0)
    error = np.sum((y - x[:, 0]).astype(np.float64) ** 2) / np.sum(x.astype(np.float64) ** 2)
    assert abs(error / wanted - 1) < 0.01
    assert seq.cache.stats().bits == {"kivi4": 5.0, "kivi2": 3.0}[codec]


def test_values_are_those_of_q4_1():
    x, q = normal(150, 2, 80), normal(3, 4, 80, seed=1)
    sequences = [KVCache(1, 2, 80, "f16", codec).sequence() for codec in ("kivi4", "q4_1")]
    for seq in sequences:
        seq.append(0, x, x)
    a, b = sequences
    assert np.array_equal(a.to_ggml(0)[1], b.to_ggml(0)[1])
    assert same(a.attend(0, q), b.attend(0, q))


@pytest.mark.parametrize("codec", KIVI)
def test_large_channels_cost_the_others_nothing(codec):
    x = normal(64, 1, 64)
    x[:, :, 5] *= 1000
    seq = KVCache(1, 1, 64, codec, "f16").sequence()
    seq.append(0, x, x)
    alone = np.delete(x, 5, axis=2)
    other = KVCache(1, 1, 63, codec, "f16").sequence()
    other.append(0, alone, alone)
    assert same(np.delete(seq.keys(0), 5, axis=1), other.keys(0))


@pytest.mark.parametrize("codec", KIVI)
@pytest.mark.parametrize("exact", [False, True])
def test_channels_without_a_range(codec, exact):
    """A scale of zero; the least range that f16 has; the largest."""
    k = np.zeros((64, 1, 40), np.float32)
    k[:, 0] = np.float16(np.linspace(-700, 700, 40))
    k[::2, 0, 3], k[1::2, 0, 3] = 2.0**-24, 0
    k[::2, 0, 4], k[1::2, 0, 4] = 65504, -65504
    v = normal(64, 1, 40)
    seq = KVCache(1, 1, 40, codec, codec).sequence()
    seq.append(0, k, v)
    decoded = seq.keys(0)
    constant = np.delete(np.arange(40), [3, 4])
    assert same(decoded[:, constant], k[:, 0, constant])
    assert np.abs(decoded[:, 3]).max() <= 2.0**-24 and np.abs(decoded[:, 4]).max() > 65000
    out = seq.attend(0, normal(2, 3, 40, seed=1) * 1e-4, exact=exact)
    assert np.isfinite(out).all()
    # Their codes may stand for more than f16 holds; copies are as near as they can be.
    for _ in range(4):
        seq.append(0, k, v)
    seq.truncate(50)
    assert np.isfinite(seq.attend(0, normal(1, 3, 40))).all()
    large = np.abs(seq.keys(0)[:, 4])
    assert large[:32].min() > 65000 and large[32:].min() > 65000 and large[32:].max() <= 65504


@pytest.mark.parametrize("codec", KIVI)
@pytest.mark.parametrize("queries", [1, 40])
def test_a_row_does_not_know_its_later_tokens(codec, queries):
    k, v, q = normal(300, 1, 32), normal(300, 1, 32, seed=1), normal(queries, 2, 32, seed=2)
    cache = KVCache(1, 1, 32, codec, "q4_0")
    whole = cache.sequence()
    whole.append(0, k, v)
    got = whole.attend(0, q)
    seq = cache.sequence()
    seq.append(0, k[: 300 - queries], v[: 300 - queries])
    for i in range(queries):
        at = 300 - queries + i
        seq.append(0, k[at : at + 1], v[at : at + 1])
        assert same(seq.attend(0, q[i : i + 1])[0], got[i])


@pytest.mark.parametrize("back", [1, 31, 32, 33, 63, 64])
@pytest.mark.parametrize("length", [65, 96, 127, 200, 400])
def test_what_is_taken_back_had_never_been(back, length):
    x, y = normal(length, 1, 32), normal(50, 1, 32, seed=1)
    cache = KVCache(1, 1, 32, "kivi2", "kivi2")
    seq, wanted = cache.sequence(), cache.sequence()
    for at in range(length):
        seq.append(0, x[at : at + 1], x[at : at + 1])
    seq.truncate(length - back)
    wanted.append(0, x[: length - back], x[: length - back])
    for own in (seq, wanted):
        own.append(0, y, y)
    q = normal(20, 2, 32, seed=2)
    assert same(seq.attend(0, q), wanted.attend(0, q))
    assert same(seq.keys(0), wanted.keys(0))


def test_a_group_that_opens_again_needs_room_where_all_is_shared():
    x, q = normal(336, 1, 32), normal(1, 1, 32, seed=1)
    cache = KVCache(1, 1, 32, "kivi4", "kivi4")
    whole = cache.sequence()
    whole.append(0, x[:335], x[:335])
    cache = KVCache(1, 1, 32, "kivi4", "kivi4", budget=cache.nbytes)
    seq = cache.sequence()
    seq.append(0, x[:335], x[:335])
    seq.append(0, x[335:], x[335:])
    assert cache.nbytes < cache.budget
    other, before = seq.fork(), seq.attend(0, q)
    rest = [cache.sequence() for _ in range(4)]
    with pytest.raises(CacheFullError):
        for each in rest:
            each.append(0, x[:64], x[:64])
    full = cache.nbytes
    with pytest.raises(CacheFullError, match="truncate"):
        other.truncate(70)
    assert (other.length, cache.nbytes) == (336, full)
    assert same(other.attend(0, q), before)
    # Whole pages need none, and alone a sequence has the page that it lets go of.
    other.truncate(64)
    assert cache.nbytes == full
    seq.truncate(70)
    assert cache.nbytes < full
    assert np.allclose(seq.keys(0), x[:70, 0], atol=0.3)


@pytest.mark.parametrize("side", [KVSide("kivi4"), KVSide("kivi2", rotate=32)])
def test_keys_have_no_rows(side):
    seq = KVCache(1, 1, 32, side, "q4_0").sequence()
    seq.append(0, normal(40, 1, 32), normal(40, 1, 32))
    with pytest.raises(FormatError, match=r"\[to_ggml\] keys that are coded by channel"):
        seq.to_ggml(0)
    k, v = np.zeros((2, 1, 20), np.uint8), np.zeros((2, 1, 18), np.uint8)
    with pytest.raises(FormatError, match=r"\[from_ggml\] keys that are coded by channel"):
        seq.from_ggml(0, k[:, :, : 4 + 4 * int(side.codec[-1])], v)
    assert seq.length == 40


def test_groups_are_not_torn_apart():
    cache = KVCache(2, 1, 32, "q4_0", "q4_0", policy=KVPolicy(layers={1: ("kivi4", "q4_0")}))
    seq, x, q = cache.sequence(), normal(100, 1, 32), normal(1, 1, 32, seed=1)
    for layer in (0, 1):
        seq.append(layer, x, x)
    before = [seq.attend(layer, q) for layer in (0, 1)]
    with pytest.raises(FormatError, match=r"\[remove\] keys that are coded by channel stay"):
        seq.remove(10, 20)
    with pytest.raises(FormatError, match="keys that are coded by channel stay"):
        seq.evict(KeyDiff(), keep=0.5)
    assert seq.length == 100
    assert all(same(seq.attend(layer, q), before[layer]) for layer in (0, 1))


@pytest.mark.parametrize("first_exact", [1, 2])
def test_states_without_the_open_group_are_refused(first_exact):
    cache = KVCache(1, 1, 32, "kivi4", "kivi4")
    seq = cache.sequence()
    seq.append(0, normal(70, 1, 32), normal(70, 1, 32))
    state = np.frombuffer(seq._core.save(0, 0), np.uint8).copy()
    head = state[:64].view(np.int64)
    assert head[:6].tolist() == [70, 0, 2, 0, 2, 0]
    page = 64 * 32 * 2 * 2
    head[3], head[4] = first_exact, 2 - first_exact
    cut = np.concatenate([state[: -2 * page], state[len(state) - page * (2 - first_exact) :]])
    fresh = cache.sequence()
    if first_exact == 1:
        fresh._core.load(0, 0, cut, False)
        assert fresh.length == 70
    else:
        with pytest.raises(ShapeError, match="not one of such a layer"):
            fresh._core.load(0, 0, cut, False)
