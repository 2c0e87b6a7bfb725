"""Super-blocks of 256 whose sub-blocks have a scale and a minimum: q2_k q4_k q5_k.

w = (d * sc) * code - dmin * mc, with small integers sc and mc per sub-block.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from .base import BlockFormat, Groups, Weights
from .bits import pack_quarters, unpack_quarters
from .numeric import (
    F32,
    I32,
    U8,
    Ints,
    f32,
    from_half,
    half_bytes,
    i8,
    low_byte,
    nearest_int,
    ordered_sum,
    read_half,
    to_half,
)
from .search import make_qkx, make_qp

_Step = tuple[np.float32, np.float32, int]
_WEIGHTED_STEPS: _Step = (np.float32(-0.9), np.float32(0.05), 36)


def sub_blocks(x: F32, size: int) -> F32:
    """Blocks (n, 256) as columns (size, n * 256/size), one per sub-block."""
    return np.ascontiguousarray(x.reshape(-1, size).T)


def super_weights(x: F32, weights: Weights, size: int, factor: float) -> F32:
    """Importance times sqrt(factor * mean square of the super-block + x squared), as columns."""
    square = x * x
    mean = np.float32(factor) * ordered_sum(np.ascontiguousarray(square.T)) / np.float32(256)
    return sub_blocks(f32(weights.importance * np.sqrt(mean[:, None] + square)), size)


def _largest(x: F32) -> F32:
    top = np.zeros(x.shape[0], np.float32)
    for value in x.T:
        top = f32(np.where(value > top, value, top))
    return top


class _Asymmetric(BlockFormat):
    block = 256
    uses_importance = True
    top: ClassVar[int]
    scale_top: ClassVar[int]
    steps: ClassVar[_Step]
    sigma_factor: ClassVar[float]
    absolute: ClassVar[bool] = False

    def plain_weights(self, columns: F32) -> F32:
        """Weights of a search without importance."""
        square = ordered_sum(columns * columns) / np.float32(self.group)
        return f32(np.sqrt(square) + np.abs(columns))

    def small_codes(self, x: F32) -> tuple[F32, I32]:
        """One f32 unit and integer codes for the scales (or minima) of each super-block."""
        largest = _largest(x)
        some = largest > 0
        inverse = np.where(some, np.float32(self.scale_top) / largest, np.float32(0.0))
        codes = nearest_int(f32(inverse[:, None] * x))
        return largest / np.float32(self.scale_top), low_byte(codes).astype(np.int32)

    def scales(self, x: F32, weights: Weights | None) -> tuple[F32, F32, I32, I32, I32]:
        """Units d and dmin (n), scales and minima (n, 256/group), searched codes (n, 256)."""
        columns = sub_blocks(x, self.group)
        if weights is None:
            w = self.plain_weights(columns)
            found = make_qkx(columns, self.top, w, *self.steps, absolute=self.absolute)
        else:
            w = super_weights(x, weights, self.group, self.sigma_factor)
            found = make_qkx(columns, self.top, w, *_WEIGHTED_STEPS)
        count = 256 // self.group
        codes = np.ascontiguousarray(found[2].T).reshape(-1, 256)
        if weights is None:
            d, sc = self.small_codes(found[0].reshape(-1, count))
            dmin, mc = self.small_codes(found[1].reshape(-1, count))
            return d, dmin, sc, mc, codes
        scales, minus, sums = (
            np.ascontiguousarray(each.reshape(-1, count).T)
            for each in (found[0], found[1], ordered_sum(w))
        )
        d, sc = make_qp(scales, self.scale_top, sums)
        dmin, mc = make_qp(minus, self.scale_top, sums)
        return d, dmin, sc.T, mc.T, codes

    def round_codes(self, x: F32, d: F32, dmin: F32, sc: Ints, mc: Ints, codes: I32) -> I32:
        """Codes for the scales as stored; where a scale is zero the searched codes stay."""
        sub = x.reshape(-1, 256 // self.group, self.group)
        unit = from_half(to_half(d))[:, None] * f32(sc)
        shift = from_half(to_half(dmin))[:, None] * f32(mc)
        new = np.clip(nearest_int((sub + shift[:, :, None]) / unit[:, :, None]), 0, self.top)
        return np.where((unit != 0)[:, :, None], new, codes.reshape(sub.shape)).reshape(-1, 256)

    def groups(self, d: F32, dmin: F32, sc: Ints, mc: Ints, codes: Ints) -> Groups:
        return Groups(i8(codes), d[:, None] * f32(sc), dmin[:, None] * f32(mc))


class Q2_K(_Asymmetric):  # noqa: N801
    """Sixteen sub-blocks of 16; scale and minimum of four bits each."""

    name = "q2_k"
    block_bytes = 84
    group = 16
    top = 3
    scale_top = 15
    steps = (np.float32(-0.5), np.float32(0.1), 15)
    sigma_factor = 1.0
    absolute = True

    def plain_weights(self, columns: F32) -> F32:
        return np.abs(columns)

    def encode_blocks(self, x: F32, weights: Weights | None) -> U8:
        d, dmin, sc, mc, codes = self.scales(x, weights)
        both = low_byte(sc | mc << 4)
        codes = self.round_codes(x, d, dmin, both & 15, both >> 4, codes)
        return np.hstack([both, pack_quarters(codes), half_bytes(d), half_bytes(dmin)])

    def unpack_blocks(self, data: U8) -> Groups:
        codes = unpack_quarters(data[:, 16:80])
        sc, mc = data[:, :16] & 15, data[:, :16] >> 4
        return self.groups(read_half(data, 80), read_half(data, 82), sc, mc, codes)


def pack_six(sc: I32, mc: I32) -> U8:
    """Eight scales and eight minima of six bits (n, 8) as twelve bytes (n, 12)."""
    out = np.zeros((sc.shape[0], 12), np.int32)
    out[:, 0:4] = sc[:, :4] | (sc[:, 4:] >> 4) << 6
    out[:, 4:8] = mc[:, :4] | (mc[:, 4:] >> 4) << 6
    out[:, 8:12] = (sc[:, 4:] & 15) | (mc[:, 4:] & 15) << 4
    return low_byte(out)


def unpack_six(data: U8) -> tuple[Ints, Ints]:
    """Twelve bytes (n, 12) as eight scales and eight minima (n, 8)."""
    a, b, c = data[:, :4], data[:, 4:8], data[:, 8:12]
    sc = np.hstack([a & 63, (c & 15) | (a >> 6) << 4])
    mc = np.hstack([b & 63, (c >> 4) | (b >> 6) << 4])
    return sc, mc


class Q4_K(_Asymmetric):  # noqa: N801
    """Eight sub-blocks of 32; scale and minimum of six bits each."""

    name = "q4_k"
    block_bytes = 144
    top = 15
    scale_top = 63
    steps = (np.float32(-1.0), np.float32(0.1), 20)
    sigma_factor = 2.0
    clamp_searched = False

    def head(self, x: F32, weights: Weights | None) -> tuple[list[U8], I32]:
        """The first sixteen bytes, and codes rounded for them."""
        d, dmin, sc, mc, codes = self.scales(x, weights)
        if weights is None or self.clamp_searched:
            sc, mc = np.minimum(sc, 63), np.minimum(mc, 63)
        packed = pack_six(sc, mc)
        sc8, mc8 = unpack_six(packed)
        codes = self.round_codes(x, d, dmin, sc8, mc8, codes)
        return [half_bytes(d), half_bytes(dmin), packed], codes

    def encode_blocks(self, x: F32, weights: Weights | None) -> U8:
        head, codes = self.head(x, weights)
        return np.hstack([*head, pack_pairs(codes)])

    def unpack_blocks(self, data: U8) -> Groups:
        sc, mc = unpack_six(data[:, 4:16])
        codes = unpack_pairs(data[:, 16:])
        return self.groups(read_half(data, 0), read_half(data, 2), sc, mc, codes)


class Q5_K(Q4_K):  # noqa: N801
    """As q4_k, with a fifth bit per code in 32 bytes of their own."""

    name = "q5_k"
    block_bytes = 176
    top = 31
    steps = (np.float32(-0.5), np.float32(0.1), 15)
    clamp_searched = True

    def encode_blocks(self, x: F32, weights: Weights | None) -> U8:
        head, codes = self.head(x, weights)
        fifth = (codes >> 4).reshape(-1, 8, 32) << np.arange(8, dtype=np.int32)[:, None]
        high = low_byte(np.bitwise_or.reduce(fifth, axis=1))
        return np.hstack([*head, high, pack_pairs(codes & 15)])

    def unpack_blocks(self, data: U8) -> Groups:
        sc, mc = unpack_six(data[:, 4:16])
        shifts = np.arange(8, dtype=np.uint8)[:, None]
        fifth = ((data[:, None, 16:48] >> shifts) & 1).reshape(-1, 256)
        codes = unpack_pairs(data[:, 48:]) | fifth << 4
        return self.groups(read_half(data, 0), read_half(data, 2), sc, mc, codes)


def pack_pairs(codes: I32) -> U8:
    """Nibbles (n, 256) to bytes (n, 128): of each 64, two runs of 32 share 32 bytes."""
    runs = codes.reshape(-1, 4, 2, 32)
    return low_byte(runs[:, :, 0] | runs[:, :, 1] << 4).reshape(-1, 128)


def unpack_pairs(data: U8) -> U8:
    """Bytes (n, 128) to the nibbles (n, 256) that `pack_pairs` took."""
    runs = data.reshape(-1, 4, 32)
    return low_byte(np.stack([runs & 15, runs >> 4], axis=2)).reshape(-1, 256)
