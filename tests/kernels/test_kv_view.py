"""Values that are a view of keys: the bits of the twin on every ISA, and of values kept beside."""

from __future__ import annotations

import numpy as np
import pytest
from blocks import seeds
from hypothesis import example, given
from hypothesis import strategies as st

from kvant import KVCache, KVPolicy, KVSide
from kvant.kv import CODECS
from kvant.reference.kv_attention import kv_attention
from support import every_isa, words

RULES = {"norm": "nc", "unbiased": "unb", "least": "ls"}
SIZES = [
    (576, 512),
    (640, 512),
    (96, 64),
    (80, 80),
    (64, 20),
    (32, 32),
    (40, 16),
    (20, 20),
    (33, 1),
]
ROW_SCALES = ("lm4", "lm3", "lm2")
# Keys that are coded by channel hold no values.
ROWS = [codec for codec in CODECS if not codec.startswith("kivi")]


def normal(tokens, heads, dim, seed, spread=0.5):
    """[tokens, heads, dim], channels of different sizes."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((tokens, heads, dim), dtype=np.float32)
    return x * np.exp(spread * rng.standard_normal((1, heads, dim))).astype(np.float32)


def attend(cache, q, k, parts=(), v=None, **options):
    """Through a cache that gets `parts` tokens at a time."""
    seq, at = cache.sequence(), 0
    for count in (*parts, len(k) - sum(parts)):
        seq.append(0, k[at : at + count], None if v is None else v[at : at + count])
        at += count
    return seq.attend(0, q, lse=True, **options)


def same(a, b):
    return all(np.array_equal(words(x), words(y)) for x, y in zip(a, b, strict=True))


@given(
    codec=st.sampled_from(ROWS),
    tokens=st.integers(1, 5),
    before=st.one_of(st.integers(0, 80), st.sampled_from([120, 505, 600])),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 12),
    sizes=st.sampled_from(SIZES),
    window=st.one_of(st.none(), st.integers(1, 100), st.just(540)),
    sinks=st.booleans(),
    softcap=st.sampled_from([0.0, 0.0, 5.0]),
    sink=st.sampled_from([0, 0, 4, 70]),
    tail=st.sampled_from([0, 0, 1, 40, 100]),
    rule=st.sampled_from(list(RULES)),
    how=st.sampled_from(["bytes", "fine", "exact"]),
    seed=seeds,
)
@example("q4_0", 3, 130, 1, 5, (576, 512), None, True, 5.0, 4, 40, "norm", "bytes", 0)
@example("lm3", 2, 130, 1, 6, (640, 512), 100, False, 0.0, 70, 1, "unbiased", "bytes", 1)
@example("q5_1", 2, 70, 2, 7, (96, 64), None, False, 0.0, 4, 100, "norm", "bytes", 2)
@example("f16", 3, 80, 1, 7, (576, 512), None, False, 0.0, 0, 0, "least", "exact", 2)
@example("iq4_nl", 3, 130, 1, 3, (20, 20), None, False, 0.0, 4, 40, "least", "exact", 3)
def test_a_view_is_its_twin(
    codec,
    tokens,
    before,
    kv_heads,
    group,
    sizes,
    window,
    sinks,
    softcap,
    sink,
    tail,
    rule,
    how,
    seed,
):
    dim, value_dim = sizes
    if before * dim > 12000:
        tokens, group, kv_heads = min(tokens, 2), min(group, 3), 1
    if dim > 500:
        before = min(before, 140)
    q = normal(tokens, kv_heads * group, dim, seed, 0.0)
    k = normal(before + tokens, kv_heads, dim, seed + 1)
    logits = normal(1, 1, kv_heads * group, seed + 3)[0, 0] if sinks else None
    side = KVSide(codec, scale=rule)
    cache = KVCache(
        1,
        kv_heads,
        dim,
        side,
        value_dim=value_dim,
        value_view=True,
        window=window,
        policy=KVPolicy(sink=sink, tail=tail, fine=how == "fine"),
    )
    wanted = kv_attention(
        q,
        k,
        None,
        0.37,
        value_dim=value_dim,
        k_codec=codec,
        k_rule=RULES[rule],
        window=window,
        sinks=logits,
        softcap=softcap,
        sink=sink if side.quantized else 0,
        tail=tail if side.quantized else 0,
        exact=how == "exact",
        fine=how == "fine",
        lse=True,
    )
    parts = (before,) if seed % 2 else ()
    for isa in every_isa():
        got = attend(
            cache, q, k, parts, scale=0.37, softcap=softcap, sinks=logits, exact=how == "exact"
        )
        assert same(got, wanted), isa


@pytest.mark.parametrize("codec", [codec for codec in ROWS if codec not in ROW_SCALES])
@pytest.mark.parametrize("rotate", [0, 32])
@pytest.mark.parametrize("group", [1, 5, 128])
def test_a_view_is_what_was_stored_beside(codec, rotate, group):
    """Where both are coded alike: scales of whole blocks, the same rotation."""
    dim, value_dim, policy = 96, 64, KVPolicy(sink=4, tail=40)
    side = KVSide(codec, rotate=rotate, signs=3)
    k, q = normal(700, 1, dim, 0), normal(2, group, dim, 1, 0.0)
    sizes = {"value_dim": value_dim, "policy": policy}
    view = KVCache(1, 1, dim, side, value_view=True, **sizes)
    both = KVCache(1, 1, dim, side, side, **sizes)
    for isa in every_isa():
        for exact in (False, True):
            got = attend(view, q, k, exact=exact)
            assert same(got, attend(both, q, k, v=k[..., :value_dim], exact=exact)), (isa, exact)


@pytest.mark.parametrize("codec", ["q8_0", "q4_0", "q5_1", "lm3", "f16"])
def test_neither_threads_nor_cuts_show(codec):
    """Many heads of one key head are several blocks of rows; many keys are several chunks."""
    k, q = normal(1400, 1, 96, 0), normal(70, 128, 96, 1, 0.0)
    cache = KVCache(
        1, 1, 96, codec, value_dim=64, value_view=True, policy=KVPolicy(sink=9, tail=70)
    )
    wanted = attend(cache, q, k, threads=1)
    for threads in (2, 3):
        assert same(attend(cache, q, k, threads=threads), wanted)
    assert same(attend(cache, q, k, parts=(1, 63, 64, 65, 1000)), wanted)
    # A token at a time over many keys is cut into chunks that are merged.
    seq = cache.sequence()
    seq.append(0, k[:-70])
    rows = []
    for at in range(70):
        seq.append(0, k[len(k) - 70 + at :][:1])
        rows.append(seq.attend(0, q[at : at + 1], lse=True))
    assert same([np.concatenate(each) for each in zip(*rows, strict=True)], wanted)


@given(
    codec=st.sampled_from(ROWS),
    chunk=st.sampled_from([1, 3, 64, 65, 100, 512, 700]),
    window=st.one_of(st.none(), st.integers(1, 100)),
    tokens=st.integers(1, 90),
    before=st.one_of(st.integers(0, 200), st.sampled_from([505, 640])),
    view=st.booleans(),
    tail=st.sampled_from([0, 40]),
    seed=seeds,
)
@example("q8_0", 100, None, 90, 160, False, 40, 0)
@example("f16", 3, None, 70, 100, True, 0, 1)
def test_a_token_sees_its_own_chunk(codec, chunk, window, tokens, before, view, tail, seed):
    dim = 32
    q, k = normal(tokens, 2, dim, seed, 0.0), normal(before + tokens, 1, dim, seed + 1)
    v = None if view else normal(before + tokens, 1, dim, seed + 2)
    side, policy = KVSide(codec), KVPolicy(tail=tail)
    cache = KVCache(
        1, 1, dim, side, side, value_view=view, window=window, chunk=chunk, policy=policy
    )
    wanted = kv_attention(
        q,
        k,
        v,
        0.37,
        value_dim=dim,
        k_codec=codec,
        v_codec=codec,
        v_rule="nc",
        window=window,
        chunk=chunk,
        tail=tail if side.quantized else 0,
        lse=True,
    )
    # Told apart from the twin: what a token sees begins at its own chunk.
    for t in (0, tokens - 1):
        place = before + t
        first = place // chunk * chunk
        if window is not None:
            first = max(first, place + 1 - window)
        alone = kv_attention(
            q[t : t + 1],
            k[first : place + 1],
            None if view else v[first : place + 1],
            0.37,
            value_dim=dim,
            k_codec="f32",
            v_codec="f32",
            lse=True,
        )
        if codec == "f32":
            assert np.allclose(alone[0], wanted[0][t : t + 1], atol=1e-5)
    for isa in every_isa():
        assert same(attend(cache, q, k, (before,), v=v, scale=0.37), wanted), isa
