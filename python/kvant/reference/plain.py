"""Formats of one number per block: f32, f16, bf16."""

from __future__ import annotations

import numpy as np

from .base import Format, Weights
from .numeric import F32, U8


class F32Format(Format):
    """The numbers themselves, little-endian; NaNs keep their bits."""

    name = "f32"
    block = 1
    block_bytes = 4
    keeps_nan = True

    def encode_blocks(self, x: F32, weights: Weights | None) -> U8:
        return x.astype("<f4").view(np.uint8)

    def decode_blocks(self, data: U8) -> F32:
        return data.view("<u4").astype(np.uint32).view(np.float32)


class F16Format(Format):
    """Half precision, ties to even, overflow to infinity.

    Any NaN is encoded as a quiet one without payload, sign kept; decoding keeps sign and payload
    of a NaN and sets its quiet bit.
    """

    name = "f16"
    block = 1
    block_bytes = 2
    keeps_nan = True

    def encode_blocks(self, x: F32, weights: Weights | None) -> U8:
        half = x.astype(np.float16).view(np.uint16)
        sign = ((x.view(np.uint32) >> 16) & 0x8000).astype(np.uint16)
        half = np.where(np.isnan(x), sign | np.uint16(0x7E00), half)
        return half.astype("<u2").view(np.uint8)

    def decode_blocks(self, data: U8) -> F32:
        half = data.view("<u2").astype(np.uint16)
        bits = half.view(np.float16).astype(np.float32).view(np.uint32)
        wide = half.astype(np.uint32)
        nan = (wide & 0x8000) << 16 | np.uint32(0x7FC00000) | (wide & 0x03FF) << 13
        return np.where((wide & 0x7FFF) > 0x7C00, nan, bits).view(np.float32)


class BF16Format(Format):
    """The upper half of an f32, ties to even; NaNs keep their upper bits and are made quiet."""

    name = "bf16"
    block = 1
    block_bytes = 2
    keeps_nan = True

    def encode_blocks(self, x: F32, weights: Weights | None) -> U8:
        bits = x.view(np.uint32)
        even = (bits >> 16) & 1
        rounded = (bits + (np.uint32(0x7FFF) + even)) >> 16
        upper = np.where(np.isnan(x), bits >> 16 | 64, rounded)
        return upper.astype("<u2").view(np.uint8)

    def decode_blocks(self, data: U8) -> F32:
        return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
