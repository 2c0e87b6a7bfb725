"""Blocks of 32 with one f16 scale, some with an f16 minimum: q4_0 q4_1 q5_0 q5_1 q8_0."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from .base import BlockFormat, Groups, Weights
from .bits import pack_fifth, pack_halves, unpack_fifth, unpack_halves
from .numeric import (
    F32,
    I32,
    U8,
    Ints,
    f32,
    half_bytes,
    i8,
    i32,
    low_byte,
    peak,
    read_half,
    reciprocal,
    round_half_away,
    signed_byte,
    truncate,
)
from .search import make_qkx, make_qx

_STEPS = (np.float32(-0.9), np.float32(0.05), 36)


def row_weights(x: F32, weights: Weights) -> F32:
    """Importance times sqrt(mean square of the whole row + x squared), element-major."""
    spread = np.sqrt(weights.row_square[:, None] + x * x)
    return np.ascontiguousarray((weights.importance * spread).T)


class _Symmetric(BlockFormat):
    """w = d * (code - middle), codes 0 .. 2*middle - 1."""

    block = 32
    uses_importance = True
    middle: ClassVar[int]

    def codes(self, x: F32, weights: Weights | None) -> tuple[F32, I32]:
        columns = np.ascontiguousarray(x.T)
        if weights is not None:
            scale, levels = make_qx(columns, self.middle, row_weights(x, weights))
            return scale, np.ascontiguousarray(levels.T)
        _, signed = peak(columns)
        scale = signed / np.float32(-self.middle)
        shifted = x * reciprocal(scale)[:, None] + np.float32(self.middle + 0.5)
        return scale, np.minimum(signed_byte(truncate(f32(shifted))), 2 * self.middle - 1)

    def groups(self, d: F32, codes: Ints) -> Groups:
        return Groups(i8(i32(codes) - self.middle), d[:, None])


class _Asymmetric(BlockFormat):
    """w = d * code + m, codes 0 .. top."""

    block = 32
    uses_importance = True
    top: ClassVar[int]
    clamp: ClassVar[bool]

    def codes(self, x: F32, weights: Weights | None) -> tuple[F32, F32, I32]:
        columns = np.ascontiguousarray(x.T)
        if weights is not None:
            scale, minus, levels = make_qkx(columns, self.top, row_weights(x, weights), *_STEPS)
            return scale, -minus, np.ascontiguousarray(levels.T)
        low = np.full(x.shape[0], np.finfo(np.float32).max, np.float32)
        high = -low
        for value in columns:
            low = f32(np.where(value < low, value, low))
            high = f32(np.where(value > high, value, high))
        scale = (high - low) / np.float32(self.top)
        shifted = (x - low[:, None]) * reciprocal(scale)[:, None] + np.float32(0.5)
        codes = truncate(f32(shifted))
        if self.clamp:
            return scale, low, np.minimum(signed_byte(codes), self.top)
        return scale, low, low_byte(codes).astype(np.int32)

    def groups(self, d: F32, m: F32, codes: Ints) -> Groups:
        return Groups(i8(codes), d[:, None], -m[:, None])


class Q4_0(_Symmetric):  # noqa: N801
    name = "q4_0"
    block_bytes = 18
    middle = 8

    def encode_blocks(self, x: F32, weights: Weights | None) -> U8:
        d, codes = self.codes(x, weights)
        return np.hstack([half_bytes(d), pack_halves(low_byte(codes))])

    def unpack_blocks(self, data: U8) -> Groups:
        return self.groups(read_half(data, 0), unpack_halves(data[:, 2:]))


class Q5_0(_Symmetric):  # noqa: N801
    name = "q5_0"
    block_bytes = 22
    middle = 16

    def encode_blocks(self, x: F32, weights: Weights | None) -> U8:
        d, codes = self.codes(x, weights)
        return np.hstack([half_bytes(d), pack_fifth(codes), pack_halves(codes & 15)])

    def unpack_blocks(self, data: U8) -> Groups:
        codes = unpack_halves(data[:, 6:]) | unpack_fifth(data[:, 2:6])
        return self.groups(read_half(data, 0), codes)


class Q4_1(_Asymmetric):  # noqa: N801
    name = "q4_1"
    block_bytes = 20
    top = 15
    clamp = True

    def encode_blocks(self, x: F32, weights: Weights | None) -> U8:
        d, m, codes = self.codes(x, weights)
        return np.hstack([half_bytes(d), half_bytes(m), pack_halves(low_byte(codes))])

    def unpack_blocks(self, data: U8) -> Groups:
        codes = unpack_halves(data[:, 4:])
        return self.groups(read_half(data, 0), read_half(data, 2), codes)


class Q5_1(_Asymmetric):  # noqa: N801
    name = "q5_1"
    block_bytes = 24
    top = 31
    clamp = False

    def encode_blocks(self, x: F32, weights: Weights | None) -> U8:
        d, m, codes = self.codes(x, weights)
        head = [half_bytes(d), half_bytes(m), pack_fifth(codes)]
        return np.hstack([*head, pack_halves(codes & 15)])

    def unpack_blocks(self, data: U8) -> Groups:
        codes = unpack_halves(data[:, 8:]) | unpack_fifth(data[:, 4:8])
        return self.groups(read_half(data, 0), read_half(data, 2), codes)


class Q8_0(BlockFormat):  # noqa: N801
    """w = d * code, codes -128 .. 127; the encoder uses -127 .. 127."""

    name = "q8_0"
    block = 32
    block_bytes = 34

    def encode_blocks(self, x: F32, weights: Weights | None) -> U8:
        amax, _ = peak(np.ascontiguousarray(x.T))
        d = amax / np.float32(127)
        scaled = x * reciprocal(d)[:, None]
        return np.hstack([half_bytes(d), low_byte(truncate(round_half_away(scaled)))])

    def unpack_blocks(self, data: U8) -> Groups:
        return Groups(data[:, 2:].view(np.int8), read_half(data, 0)[:, None])
