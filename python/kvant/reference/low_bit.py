"""One and two bits per weight without a search: q1_0 q2_0."""

from __future__ import annotations

import numpy as np

from .base import BlockFormat, Groups, Weights
from .numeric import (
    F32,
    U8,
    f32,
    half_bytes,
    i8,
    i32,
    low_byte,
    ordered_sum,
    peak,
    read_half,
    reciprocal,
    round_half_away,
    truncate,
)

_SHIFTS = np.array([0, 2, 4, 6], np.uint8)


class Q1_0(BlockFormat):  # noqa: N801
    """Signs of 128 weights under their mean magnitude; zero of either sign counts as positive."""

    name = "q1_0"
    block = 128
    block_bytes = 18

    def encode_blocks(self, x: F32, weights: Weights | None) -> U8:
        d = ordered_sum(np.abs(np.ascontiguousarray(x.T))) / np.float32(128)
        return np.hstack([half_bytes(d), np.packbits(x >= 0, axis=1, bitorder="little")])

    def unpack_blocks(self, data: U8) -> Groups:
        bits = np.unpackbits(data[:, 2:], axis=1, bitorder="little")
        return Groups(i8(i32(bits) * 2 - 1), np.repeat(read_half(data, 0)[:, None], 4, axis=1))


class Q2_0(BlockFormat):  # noqa: N801
    """w = (code - 1) * d for 64 weights, d their largest magnitude, codes 0 .. 3."""

    name = "q2_0"
    block = 64
    block_bytes = 18

    def encode_blocks(self, x: F32, weights: Weights | None) -> U8:
        d, _ = peak(np.ascontiguousarray(x.T))
        rounded = truncate(round_half_away(f32(x * reciprocal(d)[:, None])))
        codes = np.clip(rounded + 1, 0, 3).reshape(-1, 16, 4)
        packed = np.bitwise_or.reduce(codes << _SHIFTS.astype(np.int32), axis=2)
        return np.hstack([half_bytes(d), low_byte(packed)])

    def unpack_blocks(self, data: U8) -> Groups:
        codes = (data[:, 2:, None] >> _SHIFTS & 3).reshape(-1, 64)
        return Groups(i8(i32(codes) - 1), np.repeat(read_half(data, 0)[:, None], 2, axis=1))
