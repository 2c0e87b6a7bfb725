"""Tokens removed, turned and evicted: the bits of a plain model, on every ISA."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kept_model import ModelHead, ModelSide, attend

from kvant import KVCache, KVPolicy, KVSide
from kvant.kv import CODECS, KVCalibration, KVRope
from kvant.kv.selection import keep_only
from kvant.reference.kv_codecs import BY_CHANNEL
from support import every_isa, words

HEADS, GROUP = 2, 2
# Keys that are coded by channel stay in their groups.
ROWS = [codec for codec in CODECS if codec not in BY_CHANNEL]
EVICT = ("evict", 0.5, 1)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def tables(dim, seed=5):
    rng = np.random.default_rng(seed)
    center = rng.standard_normal((HEADS, dim), dtype=np.float32)
    return center, np.exp(rng.standard_normal((HEADS, dim)) / 2).astype(np.float32)


class Twins:
    """A cache of one layer and its model; every step is done to both."""

    def __init__(self, k, v, dim, value_dim, policy, rope):
        center, equalize = tables(dim)
        calibration = KVCalibration([center], [equalize])
        self.cache = KVCache(
            1, HEADS, dim, k, v, value_dim=value_dim, policy=policy, calibration=calibration
        )
        self.seq = self.cache.sequence()
        k, v = self.cache.sides[0]
        exact = policy if k.quantized or v.quantized else KVPolicy()
        self.heads = [
            ModelHead(
                (
                    ModelSide(
                        k,
                        dim,
                        center[head] if k.center else None,
                        equalize[head] if k.equalize else None,
                    ),
                    ModelSide(v, value_dim),
                ),
                exact.sink,
                exact.tail,
            )
            for head in range(HEADS)
        ]
        self.dims = dim, value_dim
        self.rope = rope
        self.how = {
            "theta": rope.theta,
            "style": rope.style,
            "rotary_dim": rope.rotary_dim,
            "freq_factors": rope.freq_factors,
            "scale": rope.scale,
        }

    def append(self, tokens, seed):
        k, v = (normal(tokens, HEADS, dim, seed=seed + i) for i, dim in enumerate(self.dims))
        at = tokens // 3
        # Exact copies that are there by chance of the cut must not show.
        for part in (slice(0, at), slice(at, None)):
            self.seq.append(0, k[part], v[part])
            for number, head in enumerate(self.heads):
                if len(k[part]):
                    head.append(k[part, number], v[part, number])

    def evict(self, share, seed):
        rng = np.random.default_rng(seed)
        kept = []
        for head in self.heads:
            some = np.flatnonzero(rng.random(head.held) < share)
            if seed % 3 == 0:
                some = np.union1d(some, np.arange(head.held // 4))
            kept.append(some if len(some) else np.array([head.held - 1]))
        keep_only(self.seq, {0: kept})
        for head, own in zip(self.heads, kept, strict=True):
            head.select(own, evict=True)

    @property
    def least(self):
        """The first position that all heads have, and have in its place."""
        return max(head.missing + head.settled if head.missing else 0 for head in self.heads)

    def remove(self, begin, count, turned):
        least, end = self.least, self.seq.length
        start = least + int(begin * (end - least))
        stop = min(start + count, end if start else end - 1)
        self.seq.remove(start, stop, self.rope if turned else None)
        for head in self.heads:
            first, held = start - head.missing, head.held
            kept = [*range(first), *range(stop - head.missing, held)]
            if start < stop:
                how = self.how if turned and first < len(kept) else None
                head.select(kept, False, first, len(kept), start - stop, how)

    def shift(self, by, begin):
        least, end = self.least, self.seq.length
        start = 0 if begin < 0.5 else least + int((begin - 0.5) * 2 * (end - least))
        self.seq.shift(by, self.rope, start)
        for head in self.heads:
            first = start - head.missing if start else 0
            if first < head.held and by:
                head.select(range(head.held), False, first, head.held, by, self.how)

    def truncate(self, count):
        length = max(self.seq.length - count, self.least, 1)
        self.seq.truncate(length)
        for head in self.heads:
            head.truncate(length)

    def check(self, queries, seed):
        seq, heads = self.seq, self.heads
        assert [seq.held(0, n) for n in range(HEADS)] == [head.held for head in heads]
        assert seq.length == heads[0].end == heads[1].end
        for number, head in enumerate(heads):
            for got, side in ((seq.keys(0, number), 0), (seq.values(0, number), 1)):
                assert np.array_equal(words(got), words(head.contents(side)))
        most = min(h.held - h.settled + 1 if h.missing else h.held for h in heads)
        q = normal(min(queries, most), HEADS * GROUP, self.dims[0], seed=seed)
        for causal, exact in ((True, False), (True, True), (False, False)):
            got = seq.attend(0, q, 0.3, causal, exact=exact)
            wanted = attend(heads, q, 0.3, causal, exact)
            assert np.array_equal(words(got), words(wanted)), (causal, exact)


sides = st.sampled_from([0, 1, 2])
steps = st.one_of(
    st.tuples(st.just("append"), st.sampled_from([1, 5, 64, 90]), st.integers(0, 99)),
    st.tuples(st.just("evict"), st.sampled_from([0.05, 0.5, 0.9]), st.integers(0, 99)),
    st.tuples(
        st.just("remove"), st.floats(0, 1), st.sampled_from([0, 1, 30, 64, 100]), st.booleans()
    ),
    st.tuples(st.just("shift"), st.sampled_from([-40, 0, 7]), st.floats(0, 1)),
    st.tuples(st.just("truncate"), st.integers(0, 64)),
)


def side_of(codec, kind, keys):
    if kind == 0:
        return KVSide(codec)
    return KVSide(codec, "auto", 3, center=keys and kind == 2, equalize=keys and kind == 2)


@settings(max_examples=25)
@given(
    k=st.sampled_from(ROWS),
    v=st.sampled_from(CODECS),
    kinds=st.tuples(sides, sides),
    sink=st.sampled_from([0, 3, 70]),
    tail=st.sampled_from([0, 1, 40, 130]),
    rotary=st.sampled_from([None, 32]),
    style=st.sampled_from(["half", "interleaved"]),
    first=st.integers(1, 300),
    plan=st.lists(steps, min_size=1, max_size=5),
    queries=st.integers(1, 70),
)
@example(
    "q4_0", "q4_1", (0, 0), 3, 40, None, "half", 300, [("evict", 0.5, 1), ("append", 90, 3)], 5
)
@example("lm3", "q5_1", (2, 1), 70, 130, 32, "interleaved", 200, [("remove", 0.3, 30, True)], 3)
@example("f16", "f32", (0, 0), 3, 40, None, "half", 250, [("evict", 0.5, 3), ("evict", 0.5, 4)], 1)
@example("q8_0", "bf16", (1, 0), 70, 1, None, "half", 280, [("shift", 7, 0.6), ("truncate", 9)], 9)
def test_changes_are_those_of_the_model(
    k, v, kinds, sink, tail, rotary, style, first, plan, queries
):
    rope = KVRope(500.0, style, rotary, None if rotary else np.linspace(1, 2, 32, dtype="f4"), 2.0)
    for isa in every_isa():
        twins = Twins(
            side_of(k, kinds[0], True),
            side_of(v, kinds[1], False),
            64,
            96,
            KVPolicy(sink, tail),
            rope,
        )
        twins.append(first, 1000)
        for name, *how in plan:
            getattr(twins, name)(*how)
        if isa == "scalar" or len(plan) < 3:
            twins.check(queries, first)
        twins.seq = None
        assert twins.cache.nbytes == 0
