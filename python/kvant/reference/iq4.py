"""Four-bit codes into a fixed table of sixteen uneven levels: iq4_nl iq4_xs."""

from __future__ import annotations

import numpy as np

from .base import BlockFormat, Groups, Weights
from .bits import pack_halves, unpack_halves
from .numeric import (
    F32,
    I32,
    SMALLEST_GROUP,
    U8,
    f32,
    half_bytes,
    i32,
    low_byte,
    nearest_int,
    ordered_sum,
    peak,
    read_half,
    read_u16,
    reciprocal,
)

LEVELS = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8
)
_LEVELS = LEVELS.astype(np.float32)
_LOW, _HIGH = _LEVELS[0], _LEVELS[-1]
# For every whole number from -127 to 113, the first level above it (15 past the end).
_ABOVE = np.minimum(np.searchsorted(_LEVELS, np.arange(-127, 114), side="right"), 15).astype(
    np.int32
)


def nearest_level(x: F32) -> I32:
    """Index of the nearest level; the upper one on a tie, and 15 for NaN."""
    inside = np.maximum(np.fmin(x, _HIGH), _LOW)
    above = _ABOVE[np.floor(inside).astype(np.int32) + 127]
    upper = _LEVELS[above]
    lower = _LEVELS[above - 1]
    return i32(above - (x - lower < upper - x))


def _search(x: F32, w: F32) -> F32:
    """Scale of each column: sixteen grids, the largest (sum w q x)^2 / (sum w q q) wins."""
    amax, signed = peak(x)

    def sums(inverse: F32) -> tuple[F32, F32]:
        wq = w * (q := _LEVELS[nearest_level(inverse * x)])
        return ordered_sum(wq * x), ordered_sum(wq * q)

    sumqx, sumq2 = sums(np.float32(1.0) / (-signed / _LOW))
    d = f32(np.where(sumq2 > 0, sumqx / sumq2, np.float32(0.0)))
    best = d * sumqx
    for step in range(-7, 8):
        sumqx, sumq2 = sums((np.float32(step) + _LOW) / signed)
        better = (sumq2 > 0) & (sumqx * sumqx > best * sumq2)
        d = f32(np.where(better, sumqx / sumq2, d))
        best = f32(np.where(better, d * sumqx, best))
    return f32(np.where(amax < SMALLEST_GROUP, np.float32(0.0), d))


def _weights(x: F32, weights: Weights | None) -> F32:
    """Search weights (n, block): x squared, or importance * sqrt(2 * mean square + x squared)."""
    square = x * x
    if weights is None:
        return square
    total = ordered_sum(np.ascontiguousarray(square.T)) * np.float32(2.0 / x.shape[1])
    return weights.importance * np.sqrt(total[:, None] + square)


def _columns(x: F32) -> F32:
    return np.ascontiguousarray(x.reshape(-1, 32).T)


class IQ4NL(BlockFormat):
    """w = d * level[code] in blocks of 32; the codes are chosen with the unrounded d."""

    name = "iq4_nl"
    block = 32
    block_bytes = 18
    uses_importance = True

    def encode_blocks(self, x: F32, weights: Weights | None) -> U8:
        d = _search(_columns(x), _columns(_weights(x, weights)))
        codes = nearest_level(reciprocal(d)[:, None] * x)
        return np.hstack([half_bytes(d), pack_halves(codes)])

    def unpack_blocks(self, data: U8) -> Groups:
        return Groups(LEVELS[unpack_halves(data[:, 2:])], read_half(data, 0)[:, None])


class IQ4XS(BlockFormat):
    """w = (d * sc) * level[code] with a signed six-bit sc for each 32 of 256."""

    name = "iq4_xs"
    block = 256
    block_bytes = 136
    uses_importance = True

    def encode_blocks(self, x: F32, weights: Weights | None) -> U8:
        found = _search(_columns(x), _columns(_weights(x, weights))).reshape(-1, 8)
        _, signed = peak(np.ascontiguousarray(found.T))
        d = -signed / np.float32(32)
        sc = np.clip(nearest_int(reciprocal(d)[:, None] * found), -32, 31)
        inverse = reciprocal(d[:, None] * f32(sc))
        codes = nearest_level(inverse[:, :, None] * x.reshape(-1, 8, 32))
        stored = sc + 32
        high = np.bitwise_or.reduce((stored >> 4) << np.arange(0, 16, 2, dtype=np.int32), axis=1)
        low = low_byte((stored[:, ::2] & 15) | (stored[:, 1::2] & 15) << 4)
        high_bytes = high.astype("<u2").view(np.uint8).reshape(-1, 2)
        packed = pack_halves(codes.reshape(-1, 32)).reshape(-1, 128)
        return np.hstack([half_bytes(d), high_bytes, low, packed])

    def unpack_blocks(self, data: U8) -> Groups:
        low = np.stack([data[:, 4:8] & 15, data[:, 4:8] >> 4], axis=2).reshape(-1, 8)
        shifts = np.arange(0, 16, 2, dtype=np.uint16)
        high = (read_u16(data, 2)[:, None] >> shifts) & 3
        sc = low.astype(np.int32) + (high.astype(np.int32) << 4) - 32
        unit = read_half(data, 0)[:, None] * f32(sc)
        codes = unpack_halves(data[:, 8:].reshape(-1, 16)).reshape(-1, 256)
        return Groups(LEVELS[codes], unit)
