"""Packing of small codes into bytes, shared by the formats of 32 and of 256 elements."""

from __future__ import annotations

import numpy as np

from .numeric import U8, Ints, i32, low_byte


def pack_halves(codes: Ints) -> U8:
    """Codes (n, 2h) to bytes (n, h): the first half in the low nibbles, the second in the high.

    A code above 15 spills into its neighbour, as an OR of shifted bytes makes it.
    """
    half = codes.shape[1] // 2
    wide = i32(codes)
    return low_byte(wide[:, :half] | (wide[:, half:] << 4))


def unpack_halves(data: U8) -> U8:
    """Bytes (n, h) to codes (n, 2h): all low nibbles, then all high ones."""
    return np.concatenate([data & 15, data >> 4], axis=1)


def pack_fifth(codes: Ints) -> U8:
    """Bit 4 of 32 codes (n, 32) as four bytes (n, 4), element 0 in the lowest bit."""
    return np.packbits((codes >> 4) & 1, axis=1, bitorder="little")


def unpack_fifth(data: U8) -> U8:
    """Four bytes (n, 4) to the bits (n, 32) that `pack_fifth` took, each worth 16."""
    return np.unpackbits(data, axis=1, bitorder="little") << np.uint8(4)


def pack_quarters(codes: Ints) -> U8:
    """Two-bit codes (n, 256) to bytes (n, 64): of each 128, four runs of 32 share 32 bytes."""
    runs = i32(codes).reshape(-1, 2, 4, 32)
    packed = runs[:, :, 0] | runs[:, :, 1] << 2 | runs[:, :, 2] << 4 | runs[:, :, 3] << 6
    return low_byte(packed).reshape(-1, 64)


def unpack_quarters(data: U8) -> U8:
    """Bytes (n, 64) to the two-bit codes (n, 256) that `pack_quarters` took."""
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    return low_byte((data.reshape(-1, 2, 1, 32) >> shifts) & 3).reshape(-1, 256)
