"""kivi4 and kivi2: groups of 32 with scale and minimum; of keys, 32 tokens of one channel.

After KIVI (Liu et al. 2024): values token by token, keys channel by channel. Until all its tokens
are there a group of keys has no codes, and its tokens are seen as f16.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .base import Groups, Weights
from .fma import fma
from .legacy import Q4_1
from .matmul import quantize_activations
from .numeric import F32, I32, U8, f32, half_bytes, i8, i32, low_byte, read_half
from .ops import lane_sum

__all__ = ["KEY_GROUP", "MIDDLE", "ByChannel", "Kivi2", "Kivi4", "channel_scores"]

KEY_GROUP = 32
"""Tokens whose keys share scales."""

MIDDLE = {"kivi4": 8, "kivi2": 2}
"""What products take off the codes."""


class Kivi4(Q4_1):
    """The blocks of q4_1."""

    name = "kivi4"
    uses_importance = False


class Kivi2(Q4_1):
    """w = d * code + m: f16 d, f16 m, byte j with the codes of j, j + 8, j + 16 and j + 24."""

    name = "kivi2"
    block_bytes = 12
    uses_importance = False
    top = 3

    def encode_blocks(self, x: F32, weights: Weights | None) -> U8:
        d, m, codes = self.codes(x, None)
        runs = i32(codes).reshape(-1, 4, 8) << np.array([[0], [2], [4], [6]], np.int32)
        return np.hstack([half_bytes(d), half_bytes(m), low_byte(runs.sum(axis=1, dtype=np.int32))])

    def unpack_blocks(self, data: U8) -> Groups:
        runs = data[:, None, 4:] >> np.array([[0], [2], [4], [6]], np.uint8) & 3
        codes = i8(runs.reshape(-1, 32))
        return self.groups(read_half(data, 0), read_half(data, 2), codes)


class ByChannel(NamedTuple):
    """Keys of whole groups: x = scale * code + minimum.

    codes    int32 [S, D32], D32 being D filled up to a multiple of 32
    scale    float32 [S / 32, D32], an f16 each
    minimum  float32 [S / 32, D32], an f16 each
    middle   what products take off the codes
    """

    codes: I32
    scale: F32
    minimum: F32
    middle: int

    def decode(self, dim: int) -> F32:
        """Keys [S, D], rounded after the product and after the sum."""
        scale, minimum = (np.repeat(x, KEY_GROUP, axis=0) for x in (self.scale, self.minimum))
        return (scale * f32(self.codes) + minimum)[:, :dim]


def channel_scores(q: F32, keys: ByChannel) -> F32:
    """Products of queries [rows, D32] and S keys: [rows, S].

    A group's scales go to the queries, which are quantized as `matmul` does it. A score begins with
    the `lane_sum` of q * (minimum + middle * scale); score = fma(d, sum of q' * (code - middle),
    score) for each block of 32 in order.

    Examples
    --------
    >>> import numpy as np
    >>> codes, one = np.zeros((32, 32), np.int32), np.ones((1, 32), np.float32)
    >>> codes[0] = 10
    >>> channel_scores(one, ByChannel(codes, one / 2, one, 8))[0, :2].tolist()
    [192.0, 32.0]
    """
    out = np.empty((len(q), len(keys.codes)), np.float32)
    with np.errstate(all="ignore"):
        for group, (scale, minimum) in enumerate(zip(keys.scale, keys.minimum, strict=True)):
            scaled = quantize_activations(q * scale)
            whole, middle = f32(scaled.q), np.float32(keys.middle)
            tokens = slice(group * KEY_GROUP, group * KEY_GROUP + KEY_GROUP)
            codes = f32(keys.codes[tokens]) - middle
            total = np.repeat(lane_sum(q * (scale * middle + minimum)), KEY_GROUP, axis=1)
            for block in range(scaled.d.shape[1]):
                part = slice(block * 32, block * 32 + 32)
                # Whole numbers below 2**24, by way of int32 because a sum of zeros could be -0.
                sums = f32(i32(whole[:, part] @ codes[:, part].T))
                total = fma(scaled.d[:, block, None], sums, total)
            out[:, tokens] = total
    return out
