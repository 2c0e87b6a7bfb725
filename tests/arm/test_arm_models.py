"""Attention over a cache, and divergences, on an emulated Arm processor."""

from __future__ import annotations

import numpy as np
import pytest
from codec_client import Server

from kvant.kv import CODECS
from kvant.reference.divergence import divergence
from kvant.reference.kv_attention import kv_attention

pytestmark = pytest.mark.arm


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    "seen, tokens, heads, dim", [(3, 3, 1, 16), (150, 5, 5, 20), (530, 2, 3, 8)]
)
def test_attention_has_the_bits_of_the_reference(
    arm: Server, seen: int, tokens: int, heads: int, dim: int, codec: str
) -> None:
    q, k, v = normal(tokens, heads, dim), normal(seen, dim), normal(seen + 1, dim)[1:].copy()
    how = {"k_codec": codec, "v_codec": codec, "k_rule": "unb", "v_rule": "unb"}
    wanted = kv_attention(q, k[:, None], v[:, None], 0.25, window=70, **how)
    found = arm.attend(q, k, v, CODECS.index(codec))
    assert np.array_equal(found.view(np.uint32), wanted.view(np.uint32))
    if codec.startswith("kivi"):
        return  # Keys that are coded by channel hold no values.
    wanted = kv_attention(q, k[:, None], None, 0.25, value_dim=dim, window=70, **how)
    found = arm.attend(q, k, None, CODECS.index(codec))
    assert np.array_equal(found.view(np.uint32), wanted.view(np.uint32))


@pytest.mark.parametrize("cols", [1, 40, 5000])
def test_divergences_have_the_bits_of_the_reference(arm: Server, cols: int) -> None:
    base, test = 4 * normal(3, cols), 4 * normal(3, cols + 1)[:, 1:].copy()
    wanted, found = divergence(base, test), arm.divergence(base, test)
    for name in found.dtype.names:
        assert np.array_equal(found[name], getattr(wanted, name)), name
