"""Four-bit floats (E2M1) under a small scale: mxfp4 (power of two) and nvfp4 (E4M3)."""

from __future__ import annotations

import numpy as np

from .base import BlockFormat, Groups, Weights
from .bits import pack_halves, unpack_halves
from .numeric import F32, U8, f32, low_byte, truncate

# Twice the E2M1 values, by code. Scales are halved to match.
DOUBLED = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)
_DOUBLED = DOUBLED.astype(np.float32)


def nearest_code(x: F32, scale: F32) -> U8:
    """Code with the smallest |DOUBLED[code] * scale - x|; the lowest such code on a tie."""
    best = np.abs(_DOUBLED[0] * scale - x)
    codes = np.zeros(x.shape, np.uint8)
    for code in range(1, 16):
        miss = np.abs(_DOUBLED[code] * scale - x)
        better = miss < best
        best = f32(np.where(better, miss, best))
        codes[better] = code
    return codes


def exponent_byte(amax: F32) -> U8:
    """The mxfp4 scale byte: floor(log2 amax) - 2 + 127 with log2 rounded to f32; 0 for amax 0.

    The rounding matters: a few numbers just below a power of two have a logarithm that rounds up
    to a whole number. Below 2**-125 the result is negative and wraps in the byte.
    """
    log = f32(np.log2(np.where(amax > 0, amax, np.float32(1.0)).astype(np.float64)))
    raw = np.floor(log) - np.float32(2.0) + np.float32(127.0)
    return np.where(amax > 0, low_byte(truncate(f32(raw))), np.uint8(0))


def power_scale(byte: U8) -> F32:
    """Half of 2**(byte - 127), including the two denormal ones; byte 255 is not special."""
    wide = byte.astype(np.uint32)
    bits = np.where(wide < 2, np.uint32(0x00200000) << wide, (wide - 1) << 23)
    return bits.astype(np.uint32).view(np.float32)


def _e4m3_table() -> F32:
    byte = np.arange(256)
    exponent, mantissa = byte >> 3 & 15, byte & 7
    raw = np.where(exponent == 0, mantissa * 2.0**-9, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    raw[[0x00, 0x7F]] = 0
    return f32(raw * 0.5)


# Half of the unsigned E4M3 value of each byte. The top bit is ignored; 0x7F counts as zero.
_HALF_E4M3 = _e4m3_table()


def e4m3_byte(x: F32) -> U8:
    """Nearest unsigned E4M3 number, halves up; everything from 256 on becomes 448 (0x7E)."""
    bits = np.minimum(x, np.float32(448.0)).view(np.int32)
    exponent = (bits >> 23 & 0xFF) - 120
    mantissa = (bits >> 20 & 7) + (bits >> 19 & 1)
    normal = np.where(exponent >= 15, 0x7E, np.minimum((exponent << 3) + mantissa, 0x7E))
    normal = np.where((exponent << 3) + mantissa >= 15 << 3, 0x7E, normal)
    small = np.minimum(truncate(f32(x * np.float32(512.0) + np.float32(0.5))), 7)
    found = np.where(exponent <= 0, small, normal)
    return low_byte(np.where(x > 0, found, 0).astype(np.int32))


def _largest(x: F32) -> F32:
    top = np.zeros(x.shape[0], np.float32)
    for value in np.abs(np.ascontiguousarray(x.T)):
        top = f32(np.where(top < value, value, top))
    return top


class MXFP4(BlockFormat):
    """w = E2M1[code] * 2**(e - 127) in blocks of 32."""

    name = "mxfp4"
    block = 32
    block_bytes = 17

    def encode_blocks(self, x: F32, weights: Weights | None) -> U8:
        e = exponent_byte(_largest(x))
        codes = nearest_code(x, power_scale(e)[:, None])
        return np.hstack([e[:, None], pack_halves(codes)])

    def unpack_blocks(self, data: U8) -> Groups:
        return Groups(DOUBLED[unpack_halves(data[:, 1:])], power_scale(data[:, :1]))


class NVFP4(BlockFormat):
    """w = E2M1[code] * E4M3[scale] in sub-blocks of 16, four to a block."""

    name = "nvfp4"
    block = 64
    group = 16
    block_bytes = 36

    def encode_blocks(self, x: F32, weights: Weights | None) -> U8:
        sub = x.reshape(-1, 16)
        scale = e4m3_byte(_largest(sub) / np.float32(6.0))
        codes = nearest_code(sub, _HALF_E4M3[scale][:, None])
        return np.hstack([scale.reshape(-1, 4), pack_halves(codes).reshape(-1, 32)])

    def unpack_blocks(self, data: U8) -> Groups:
        codes = unpack_halves(data[:, 4:].reshape(-1, 8)).reshape(-1, 64)
        return Groups(DOUBLED[codes], _HALF_E4M3[data[:, :4]])
