"""Attention over a cache, against the same in NumPy on f32 keys and values.

Bytes moved are those of all keys and values that are seen, once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kvant import KVCache

pytestmark = pytest.mark.benchmark(max_time=0.3, min_rounds=7, warmup=True, disable_gc=True)

HEADS, KV_HEADS, DIM = 32, 8, 128
# New tokens, and tokens before them.
CASES = [(1, 511), (1, 4095), (512, 0)]
F32 = NDArray[np.float32]


def numbers(tokens: int, heads: int) -> F32:
    rng = np.random.default_rng(tokens + heads)
    return rng.standard_normal((tokens, heads, DIM), dtype=np.float32)


def numpy_attention(q: F32, k: F32, v: F32) -> F32:
    tokens, seen, share = len(q), len(k), HEADS // KV_HEADS
    grouped = q.reshape(tokens, KV_HEADS, share, DIM).transpose(1, 2, 0, 3)
    scores = grouped @ k.transpose(1, 2, 0)[:, None] * np.float32(DIM**-0.5)
    unseen = np.arange(seen) > np.arange(seen - tokens, seen)[:, None]
    scores[..., unseen] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    mixed = weights @ v.transpose(1, 0, 2)[:, None]
    return np.asarray(mixed.transpose(2, 0, 1, 3).reshape(tokens, HEADS, DIM))


@pytest.mark.parametrize(("tokens", "before"), CASES)
@pytest.mark.parametrize("threads", [1, 2])
def test_attend(meter: Any, tokens: int, before: int, threads: int) -> None:
    q, k = numbers(tokens, HEADS), numbers(before + tokens, KV_HEADS)
    v = k[::-1].copy()
    sequence = KVCache(1, KV_HEADS, DIM, "f16", "f16").sequence()
    sequence.append(0, k, v)
    out = np.empty_like(q)
    run = lambda: sequence.attend(0, q, out=out, threads=threads)  # noqa: E731
    meter(f"{tokens} of {before + tokens}, {threads} threads", run, 4 * k.size)
    assert np.abs(out - numpy_attention(q, k, v)).max() < 2e-2


@pytest.mark.parametrize(("tokens", "before"), CASES)
def test_numpy(meter: Any, tokens: int, before: int) -> None:
    q, k = numbers(tokens, HEADS), numbers(before + tokens, KV_HEADS)
    meter(f"{tokens} of {before + tokens}", lambda: numpy_attention(q, k, k), 8 * k.size)
