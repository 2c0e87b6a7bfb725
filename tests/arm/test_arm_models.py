"""Attention over a cache, and divergences, on an emulated Arm processor."""

from __future__ import annotations

import numpy as np
import pytest
from codec_client import Server

from distributions import wild
from kvant.reference.attention import attention
from kvant.reference.divergence import divergence

pytestmark = pytest.mark.arm


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("dtype", ["f16", "f32"])
@pytest.mark.parametrize(
    "seen, tokens, heads, dim", [(3, 3, 1, 16), (150, 5, 5, 20), (530, 2, 3, 8)]
)
def test_attention_has_the_bits_of_the_reference(
    arm: Server, seen: int, tokens: int, heads: int, dim: int, dtype: str
) -> None:
    q, k, v = normal(tokens, heads, dim), normal(seen, dim), wild(seen, dim, seen, 0.01)
    kind = np.float16 if dtype == "f16" else np.float32
    wanted = attention(q, k[:, None], v[:, None], 0.25, window=70, dtype=kind)
    found = arm.attend(q, k, v, dtype)
    assert np.array_equal(found.view(np.uint32), wanted.view(np.uint32))


@pytest.mark.parametrize("cols", [1, 40, 5000])
def test_divergences_have_the_bits_of_the_reference(arm: Server, cols: int) -> None:
    base, test = 4 * normal(3, cols), 4 * normal(3, cols + 1)[:, 1:].copy()
    wanted, found = divergence(base, test), arm.divergence(base, test)
    for name in found.dtype.names:
        assert np.array_equal(found[name], getattr(wanted, name)), name
