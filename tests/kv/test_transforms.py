"""Transforms without a codec behind them: attention stays what it is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvant import KVCache, KVPolicy, KVSide
from kvant.kv import KVCalibration, calibrate

_ALL = KVSide("f32", rotate="auto", signs=7, center=True, equalize=True)
_ROTATED = KVSide("f32", rotate="auto", signs=3)


def attention(q, k, v, scale, window=None, sinks=None, softcap=0.0):
    """Softmax attention in float64: (out, lse)."""
    group = q.shape[1] // k.shape[1]
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    k, v = k.repeat(group, axis=1), v.repeat(group, axis=1)
    scores = np.einsum("thd,shd->ths", q, k) * scale
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    at = np.arange(len(k) - len(q), len(k))[:, None]
    token = np.arange(len(k))
    seen = (token <= at) & (token > at - (window or len(k)))
    scores = np.where(seen[:, None], scores, -np.inf)
    if sinks is not None:
        own = np.broadcast_to(sinks[None, :, None], (*scores.shape[:2], 1))
        scores = np.concatenate([scores, own], axis=2)
    top = scores.max(axis=2, keepdims=True)
    weights = np.exp(scores - top)
    total = weights.sum(axis=2, keepdims=True)
    out = np.einsum("ths,she->the", (weights / total)[..., : len(v)], v)
    return out, (top + np.log(total))[..., 0]


def arrays(tokens, seen, kv_heads, group, dim, value_dim, seed):
    """Keys with channels of different means and sizes, as models have them."""
    rng = np.random.default_rng(seed)
    q = rng.standard_normal((tokens, kv_heads * group, dim), dtype=np.float32)
    k = rng.standard_normal((seen, kv_heads, dim), dtype=np.float32)
    k *= np.exp(rng.standard_normal((kv_heads, dim)) / 2).astype(np.float32)
    k += 2 * rng.standard_normal((kv_heads, dim), dtype=np.float32)
    v = rng.standard_normal((seen, kv_heads, value_dim), dtype=np.float32)
    return q, k, v


def off(got, right):
    """The largest difference, of the largest number."""
    return np.abs(got - right).max() / np.abs(right).max()


@given(
    tokens=st.integers(1, 5),
    before=st.one_of(st.integers(0, 70), st.just(600)),
    kv_heads=st.integers(1, 2),
    group=st.sampled_from([1, 2, 4, 8]),
    dim=st.sampled_from([16, 64, 80, 128]),
    value_dim=st.sampled_from([16, 20, 64]),
    window=st.one_of(st.none(), st.integers(1, 100)),
    sinks=st.booleans(),
    softcap=st.sampled_from([0.0, 5.0, 50.0]),
    seed=st.integers(0, 1 << 30),
)
@example(3, 130, 2, 4, 128, 64, 50, True, 5.0, 0)
@example(1, 600, 1, 8, 80, 20, None, True, 50.0, 1)
def test_transforms_alone_leave_attention_as_it_is(
    tokens, before, kv_heads, group, dim, value_dim, window, sinks, softcap, seed
):
    q, k, v = arrays(tokens, before + tokens, kv_heads, group, dim, value_dim, seed)
    logits = np.float32(np.arange(kv_heads * group) - 1) if sinks else None
    cache = KVCache(
        1,
        kv_heads,
        dim,
        _ALL,
        _ROTATED,
        value_dim=value_dim,
        window=window,
        calibration=calibrate([k], [q]),
    )
    sequence = cache.sequence()
    sequence.append(0, k, v)
    got = sequence.attend(0, q, sinks=logits, softcap=softcap, lse=True)
    right = attention(q, k, v, dim**-0.5, window, logits, softcap)
    assert off(got[0], right[0]) < 1e-5
    # A sum that is near 1 has a logarithm near 0.
    assert np.abs(got[1] - right[1]).max() < 1e-5 * max(1, np.abs(right[1]).max())
    if window is None:
        for head in range(kv_heads):
            assert off(sequence.keys(0, head), k[:, head]) < 1e-5
            assert off(sequence.values(0, head), v[:, head]) < 1e-5


@pytest.mark.parametrize("sides", [("q8_0", "f32"), ("f32", "q8_0"), ("q8_0", "q8_0")])
@pytest.mark.parametrize("softcap", [0.0, 5.0])
def test_exact_tokens_and_coded_ones_see_the_same_shift(sides, softcap):
    """With centered keys the exact first and last tokens must not be off by what is taken off."""
    q, k, v = arrays(4, 300, 2, 4, 64, 64, 0)
    k += 4
    k_side = KVSide(sides[0], rotate="auto", signs=1, center=True, equalize=True)
    cache = KVCache(
        1,
        2,
        64,
        k_side,
        sides[1],
        policy=KVPolicy(sink=4, tail=64),
        calibration=calibrate([k], [q]),
    )
    sequence = cache.sequence()
    sequence.append(0, k, v)
    out, lse = sequence.attend(0, q, softcap=softcap, lse=True)
    right = attention(q, k, v, 64**-0.5, softcap=softcap)
    assert off(out, right[0]) < 0.02
    assert off(lse, right[1]) < 0.005


def test_a_calibration_of_another_model_is_exact_too():
    """Any mean and any factors are: only how well codes fit depends on them."""
    q, k, v = arrays(4, 100, 1, 2, 32, 32, 2)
    rng = np.random.default_rng(3)
    mean = rng.standard_normal((1, 32), dtype=np.float32)
    factors = np.exp(rng.standard_normal((1, 32))).astype(np.float32)
    cache = KVCache(1, 1, 32, _ALL, "f32", calibration=KVCalibration([mean], [factors]))
    sequence = cache.sequence()
    sequence.append(0, k, v)
    assert off(sequence.attend(0, q), attention(q, k, v, 32**-0.5)[0]) < 1e-5
