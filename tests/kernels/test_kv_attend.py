"""Attention over a compressed cache: the bits of the twin on every ISA."""

from __future__ import annotations

import numpy as np
from blocks import seeds
from hypothesis import example, given
from hypothesis import strategies as st

from kvant import KVCache, KVPolicy, KVSide
from kvant.kv import CODECS
from kvant.reference.kv_attention import kv_attention
from support import every_isa, words

QUANTIZED = [codec for codec in CODECS if codec not in ("f32", "f16", "bf16")]
RULES = {"norm": "nc", "unbiased": "unb", "least": "ls"}


def normal(tokens, heads, dim, seed, spread=0.0):
    """[tokens, heads, dim], channels of different sizes."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((tokens, heads, dim), dtype=np.float32)
    return x * np.exp(spread * rng.standard_normal((1, heads, dim))).astype(np.float32)


def plain(codec, scale="norm"):
    """A codec without transforms."""
    return KVSide(codec, scale=scale)


def attend(cache, q, k, v, parts=(), **options):
    """Through a cache that gets `parts` tokens at a time."""
    seq = cache.sequence()
    at = 0
    for count in (*parts, len(k) - sum(parts)):
        seq.append(0, k[at : at + count], v[at : at + count])
        at += count
    return seq.attend(0, q, **options)


@given(
    k_codec=st.sampled_from(CODECS),
    v_codec=st.sampled_from(CODECS),
    tokens=st.integers(1, 7),
    before=st.one_of(st.integers(0, 80), st.sampled_from([120, 505, 600])),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 8),
    dim=st.sampled_from([16, 32, 64, 80]),
    value_dim=st.sampled_from([16, 20, 32, 96]),
    window=st.one_of(st.none(), st.integers(1, 100), st.just(540)),
    sinks=st.booleans(),
    softcap=st.sampled_from([0.0, 0.0, 5.0]),
    sink=st.sampled_from([0, 0, 4, 70]),
    tail=st.sampled_from([0, 0, 1, 40, 100]),
    rule=st.sampled_from(list(RULES)),
    how=st.sampled_from(["bytes", "fine", "exact"]),
    seed=seeds,
)
@example("q4_0", "q4_1", 5, 130, 2, 3, 64, 96, None, True, 5.0, 4, 40, "norm", "bytes", 0)
@example("lm3", "lm3", 5, 130, 1, 6, 80, 80, 100, False, 0.0, 70, 1, "unbiased", "bytes", 1)
@example("kivi4", "kivi2", 5, 130, 2, 6, 80, 96, None, True, 5.0, 4, 40, "norm", "bytes", 0)
@example("kivi2", "q4_0", 7, 62, 1, 8, 16, 20, 100, False, 0.0, 0, 0, "norm", "bytes", 1)
@example("kivi2", "kivi4", 2, 600, 1, 2, 64, 32, 540, False, 0.0, 70, 1, "norm", "exact", 3)
@example("q4_1", "iq4_nl", 7, 62, 2, 5, 80, 96, None, True, 0.0, 4, 40, "norm", "fine", 4)
@example("q8_0", "f16", 3, 600, 1, 1, 32, 16, None, False, 0.0, 4, 100, "least", "exact", 2)
def test_attention_is_its_twin(
    k_codec,
    v_codec,
    tokens,
    before,
    kv_heads,
    group,
    dim,
    value_dim,
    window,
    sinks,
    softcap,
    sink,
    tail,
    rule,
    how,
    seed,
):
    if before > 130:
        tokens, group = min(tokens, 2), min(group, 3)
    q = normal(tokens, kv_heads * group, dim, seed)
    k = normal(before + tokens, kv_heads, dim, seed + 1, 0.5)
    v = normal(before + tokens, kv_heads, value_dim, seed + 2, 0.5)
    logits = normal(1, 1, kv_heads * group, seed + 3)[0, 0] if sinks else None
    cache = KVCache(
        1,
        kv_heads,
        dim,
        plain(k_codec, rule),
        plain(v_codec, rule),
        value_dim=value_dim,
        window=window,
        policy=KVPolicy(sink=sink, tail=tail, fine=how == "fine"),
    )
    floats = not any(side.quantized for side in cache.sides[0])
    out, lse = kv_attention(
        q,
        k,
        v,
        0.37,
        k_codec=k_codec,
        v_codec=v_codec,
        k_rule=RULES[rule],
        v_rule=RULES[rule],
        window=window,
        sinks=logits,
        softcap=softcap,
        sink=0 if floats else sink,
        tail=0 if floats else tail,
        exact=how == "exact",
        fine=how == "fine",
        lse=True,
    )
    parts = (before,) if seed % 2 else ()
    for isa in every_isa():
        got = attend(
            cache,
            q,
            k,
            v,
            parts,
            scale=0.37,
            softcap=softcap,
            sinks=logits,
            exact=how == "exact",
            lse=True,
        )
        assert np.array_equal(words(got[0]), words(out)), isa
        assert np.array_equal(words(got[1]), words(lse)), isa
