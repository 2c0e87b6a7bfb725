"""Formats whose codes are numbers of code-book points; decoding only.

iq2_xxs iq2_xs iq2_s iq3_xxs iq3_s store magnitudes from a book and signs apart; iq1_s and iq1_m
store points of -1, 0, 1 that a small shift moves up or down. All cover 256 weights in eight runs
of 32, each run in groups of eight.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .base import BlockFormat, Groups
from .grids import grid
from .numeric import F32, I8, U8, Ints, f32, from_half, i8, low_byte, read_half

_BITS = np.arange(8, dtype=np.uint8)
_EIGHTH = np.float32(0.125)
_QUARTER, _HALF = np.float32(0.25), np.float32(0.5)


def _words(data: U8, dtype: str) -> NDArray[np.uint32]:
    """Little-endian words of each block, widened."""
    return np.ascontiguousarray(data).view(dtype).astype(np.uint32)


def _even_signs(index: Ints) -> U8:
    """Seven stored signs and an eighth that makes the number of minus signs even."""
    low = index & 127
    odd = low ^ low >> 4
    odd = odd ^ odd >> 2
    odd = odd ^ odd >> 1
    return low_byte(low | (odd & 1) << 7)


def _signed(points: I8, signs: U8) -> I8:
    """Magnitudes (n, 32, 8), minus where a sign bit is set, as codes (n, 256)."""
    minus = (signs[:, :, None] >> _BITS) & 1
    return np.where(minus != 0, -points, points).reshape(-1, 256)


def _half_steps(d: F32, codes: Ints, unit: np.float32) -> F32:
    """d * (0.5 + code) * unit, one per code."""
    return d[:, None] * (_HALF + f32(codes)) * unit


def _nibbles(data: U8) -> U8:
    """Low then high nibble of each byte, in order."""
    return np.stack([data & 15, data >> 4], axis=2).reshape(-1, 2 * data.shape[1])


class _DecodeOnly(BlockFormat):
    block = 256
    can_encode = False


class IQ2XXS(_DecodeOnly):
    name = "iq2_xxs"
    block_bytes = 66

    def unpack_blocks(self, data: U8) -> Groups:
        index = data[:, 2:].reshape(-1, 8, 8)[:, :, :4].reshape(-1, 32)
        word = _words(data[:, 2:], "<u4")[:, 1::2]
        signs = _even_signs(word[:, :, None] >> np.arange(0, 28, 7, dtype=np.uint32))
        scale = _half_steps(read_half(data, 0), word >> 28, _QUARTER)
        return Groups(_signed(grid("iq2xxs")[index], signs.reshape(-1, 32)), scale)


class IQ2XS(_DecodeOnly):
    name = "iq2_xs"
    group = 16
    block_bytes = 74

    def unpack_blocks(self, data: U8) -> Groups:
        word = _words(data[:, 2:66], "<u2")
        scale = _half_steps(read_half(data, 0), _nibbles(data[:, 66:]), _QUARTER)
        return Groups(_signed(grid("iq2xs")[word & 511], _even_signs(word >> 9)), scale)


class IQ2S(_DecodeOnly):
    name = "iq2_s"
    group = 16
    block_bytes = 82

    def unpack_blocks(self, data: U8) -> Groups:
        pairs = data[:, 66:74, None] >> np.array([0, 2, 4, 6], np.uint8) & 3
        index = data[:, 2:34] | pairs.reshape(-1, 32).astype(np.uint16) << 8
        scale = _half_steps(read_half(data, 0), _nibbles(data[:, 74:]), _QUARTER)
        return Groups(_signed(grid("iq2s")[index], data[:, 34:66]), scale)


class IQ3XXS(_DecodeOnly):
    name = "iq3_xxs"
    block_bytes = 98

    def unpack_blocks(self, data: U8) -> Groups:
        word = _words(data[:, 66:], "<u4")
        signs = _even_signs(word[:, :, None] >> np.arange(0, 28, 7, dtype=np.uint32))
        scale = _half_steps(read_half(data, 0), word >> 28, _HALF)
        points = grid("iq3xxs")[data[:, 2:66]].reshape(-1, 32, 8)
        return Groups(_signed(points, signs.reshape(-1, 32)), scale)


class IQ3S(_DecodeOnly):
    name = "iq3_s"
    block_bytes = 110

    def unpack_blocks(self, data: U8) -> Groups:
        high = np.unpackbits(data[:, 66:74], axis=1, bitorder="little")
        points = grid("iq3s")[data[:, 2:66] | high.astype(np.uint16) << 8].reshape(-1, 32, 8)
        odd = 1 + 2 * _nibbles(data[:, 106:])
        scale = read_half(data, 0)[:, None] * f32(odd)
        return Groups(_signed(points, data[:, 74:106]), scale)


def _eighths(index: Ints, down: Ints) -> I8:
    """8 * (point +- 1/8) for points of (n, 32) numbers, as codes (n, 256)."""
    shift = i8(np.where(down != 0, -1, 1))
    return (grid("iq1s")[index] * np.int8(8) + shift[:, :, None]).reshape(-1, 256)


class IQ1S(_DecodeOnly):
    name = "iq1_s"
    block_bytes = 50

    def unpack_blocks(self, data: U8) -> Groups:
        word = _words(data[:, 34:], "<u2")
        high = (word[:, :, None] >> np.array([0, 3, 6, 9], np.uint32) & 7).reshape(-1, 32)
        scale = read_half(data, 0)[:, None] * f32(2 * (word >> 12 & 7) + 1) * _EIGHTH
        down = np.repeat(word >> 15, 4, axis=1)
        return Groups(_eighths(data[:, 2:34] | high << 8, down), scale)


class IQ1M(_DecodeOnly):
    name = "iq1_m"
    group = 16
    block_bytes = 56

    def unpack_blocks(self, data: U8) -> Groups:
        word = _words(data[:, 48:], "<u2")
        top = word >> 12
        bits = top[:, 0] | top[:, 1] << 4 | top[:, 2] << 8 | top[:, 3] << 12
        d = from_half(bits.astype(np.uint16))
        codes = (word[:, :, None] >> np.array([0, 3, 6, 9], np.uint32) & 7).reshape(-1, 16)
        scale = d[:, None] * f32(2 * codes + 1) * _EIGHTH
        high = _nibbles(data[:, 32:48])
        index = data[:, :32] | (high & 7).astype(np.uint16) << 8
        return Groups(_eighths(index, high & 8), scale)
