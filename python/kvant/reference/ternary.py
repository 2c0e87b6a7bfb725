"""Codes -1, 0, 1 under one f16 scale per 256: tq1_0 (base 3) and tq2_0 (two bits)."""

from __future__ import annotations

import numpy as np

from .base import BlockFormat, Groups, Weights
from .bits import pack_quarters, unpack_quarters
from .numeric import (
    F32,
    I32,
    U8,
    f32,
    half_bytes,
    i8,
    i32,
    low_byte,
    peak,
    read_half,
    reciprocal,
    round_half_away,
)

_POWERS = np.array([1, 3, 9, 27, 81], np.uint8)


def _trits(x: F32) -> tuple[F32, I32]:
    """The largest magnitude d, and round(x / d) + 1 in 0 .. 2; what is not finite counts as 0."""
    d, _ = peak(np.ascontiguousarray(x.T))
    rounded = round_half_away(f32(x * reciprocal(d)[:, None]))
    return d, np.where(np.isfinite(rounded), rounded, np.float32(0.0)).astype(np.int32) + 1


def _pack(trits: I32) -> U8:
    """Five trits (n, 5, m) to bytes (n, m): the base-3 number times 256/243, rounded up."""
    number = np.zeros((trits.shape[0], trits.shape[2]), np.int32)
    for digit in range(5):
        number = number * 3 + trits[:, digit]
    return low_byte((number * 256 + 242) // 243)


def _unpack(data: U8) -> U8:
    """Bytes (n, m) to trits (n, 5, m): multiply in eight bits, then take the carry of times 3."""
    shifted = data[:, None, :] * _POWERS[:, None]
    return (shifted.astype(np.uint16) * 3 >> 8).astype(np.uint8)


class TQ1_0(BlockFormat):  # noqa: N801
    """Five codes to a byte: 32 bytes hold 160 of them, 16 hold 80, and 4 hold the last 16."""

    name = "tq1_0"
    block = 256
    block_bytes = 54

    def encode_blocks(self, x: F32, weights: Weights | None) -> U8:
        d, trits = _trits(x)
        tail = np.zeros((x.shape[0], 5, 4), np.int32)
        tail[:, :4] = trits[:, 240:].reshape(-1, 4, 4)
        wide = _pack(trits[:, :160].reshape(-1, 5, 32))
        narrow = _pack(trits[:, 160:240].reshape(-1, 5, 16))
        return np.hstack([wide, narrow, _pack(tail), half_bytes(d)])

    def unpack_blocks(self, data: U8) -> Groups:
        wide = _unpack(data[:, :32]).reshape(-1, 160)
        narrow = _unpack(data[:, 32:48]).reshape(-1, 80)
        tail = _unpack(data[:, 48:52])[:, :4].reshape(-1, 16)
        codes = i32(np.hstack([wide, narrow, tail])) - 1
        return Groups(i8(codes), np.repeat(read_half(data, 52)[:, None], 8, axis=1))


class TQ2_0(BlockFormat):  # noqa: N801
    """Two bits to a code; the unused code 3 decodes to 2 * d."""

    name = "tq2_0"
    block = 256
    block_bytes = 66

    def encode_blocks(self, x: F32, weights: Weights | None) -> U8:
        d, trits = _trits(x)
        return np.hstack([pack_quarters(trits & 3), half_bytes(d)])

    def unpack_blocks(self, data: U8) -> Groups:
        codes = i32(unpack_quarters(data[:, :64])) - 1
        return Groups(i8(codes), np.repeat(read_half(data, 64)[:, None], 8, axis=1))
