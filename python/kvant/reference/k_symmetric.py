"""Super-blocks of 256 with signed scales for sixteen sub-blocks of 16: q3_k q6_k.

w = (d * sc) * code with a signed code and a signed integer sc per sub-block.
"""

from __future__ import annotations

import numpy as np

from .base import BlockFormat, Groups, Weights
from .bits import pack_quarters, unpack_quarters
from .k_asymmetric import sub_blocks, super_weights
from .numeric import (
    F32,
    I32,
    SMALLEST_GROUP,
    U8,
    f32,
    from_half,
    half_bytes,
    i8,
    low_byte,
    nearest_int,
    ordered_sum,
    peak,
    read_half,
    signed_byte,
    to_half,
)
from .search import make_q3, make_qx


def _round_codes(x: F32, d: F32, sc: I32, codes: I32, middle: int) -> I32:
    """Codes + middle for the scales as stored; where a scale is zero the searched codes stay."""
    sub = x.reshape(-1, 16, 16)
    unit = from_half(to_half(d))[:, None] * f32(sc)
    new = np.clip(nearest_int(sub / unit[:, :, None]), -middle, middle - 1) + middle
    return np.where((unit != 0)[:, :, None], new, codes.reshape(sub.shape)).reshape(-1, 256)


def _groups(d: F32, sc: I32, codes: I32) -> Groups:
    return Groups(i8(codes), d[:, None] * f32(sc))


def _by_row(columns: I32) -> I32:
    return np.ascontiguousarray(columns.T)


class Q3_K(BlockFormat):  # noqa: N801
    """Codes -4 .. 3 (two bits, and an inverted third one apart), scales of six bits."""

    name = "q3_k"
    block = 256
    group = 16
    block_bytes = 110
    uses_importance = True

    def scales(self, x: F32, weights: Weights | None) -> tuple[F32, I32, I32]:
        """Unit d (n), scales 0 .. 63 (n, 16) and codes 0 .. 7 (n, 256) of the search."""
        columns = sub_blocks(x, 16)
        if weights is not None:
            w = super_weights(x, weights, 16, 2.0)
            found, codes = make_qx(columns, 4, w)
            scales = np.ascontiguousarray(found.reshape(-1, 16).T)
            sums = np.ascontiguousarray(ordered_sum(w).reshape(-1, 16).T)
            d, sc = make_qx(scales, 32, sums)
            return d, sc.T, _by_row(codes)
        found, codes = make_q3(columns, 4)
        scales = np.ascontiguousarray(found.reshape(-1, 16).T)
        _, signed = peak(scales)
        some = signed != 0
        inverse = np.float32(-32) / signed
        sc = np.clip(signed_byte(nearest_int(inverse * scales)), -32, 31) + 32
        d = f32(np.where(some, np.float32(1.0) / inverse, np.float32(0.0)))
        return d, np.where(some, sc, 0).T, _by_row(codes)

    def encode_blocks(self, x: F32, weights: Weights | None) -> U8:
        d, sc, searched = self.scales(x, weights)
        codes = _round_codes(x, d, sc - 32, searched, 4)
        high = np.packbits((codes > 3).reshape(-1, 8, 32), axis=1, bitorder="little").reshape(
            -1, 32
        )
        nibbles = low_byte((sc[:, :8] & 15) | (sc[:, 8:] & 15) << 4)
        upper = (sc >> 4).reshape(-1, 4, 4) << np.array([0, 2, 4, 6], np.int32)[:, None]
        pairs = low_byte(np.bitwise_or.reduce(upper, axis=1))
        return np.hstack([high, pack_quarters(codes & 3), nibbles, pairs, half_bytes(d)])

    def unpack_blocks(self, data: U8) -> Groups:
        codes = unpack_quarters(data[:, 32:96]).astype(np.int32)
        high = np.unpackbits(data[:, None, :32], axis=1, bitorder="little").reshape(-1, 256)
        nibbles = np.hstack([data[:, 96:104] & 15, data[:, 96:104] >> 4])
        shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
        upper = (data[:, None, 104:108] >> shifts & 3).reshape(-1, 16)
        sc = (nibbles | upper << 4).astype(np.int32) - 32
        return _groups(read_half(data, 108), sc, codes - 4 + (high.astype(np.int32) << 2))


class Q6_K(BlockFormat):  # noqa: N801
    """Codes -32 .. 31 (four and two bits), scales of eight bits."""

    name = "q6_k"
    block = 256
    group = 16
    block_bytes = 210
    uses_importance = True

    def encode_blocks(self, x: F32, weights: Weights | None) -> U8:
        w = None if weights is None else sub_blocks(weights.importance, 16)
        found, searched = make_qx(sub_blocks(x, 16), 32, w)
        scales = np.ascontiguousarray(found.reshape(-1, 16).T)
        amax, signed = peak(scales)
        inverse = np.float32(-128) / signed
        d = np.float32(1.0) / inverse
        sc = _by_row(signed_byte(np.minimum(nearest_int(inverse * scales), 127)))
        codes = _round_codes(x, d, sc, _by_row(searched), 32)
        runs = codes.reshape(-1, 2, 4, 32)
        low = (runs[:, :, :2] & 15) | (runs[:, :, 2:] & 15) << 4
        parts = [low_byte(low).reshape(-1, 128), pack_quarters(codes >> 4), low_byte(sc)]
        packed = np.hstack([*parts, half_bytes(d)])
        packed[amax < SMALLEST_GROUP] = 0
        return packed

    def unpack_blocks(self, data: U8) -> Groups:
        low = data[:, :128].reshape(-1, 2, 64)
        nibbles = np.stack([low & 15, low >> 4], axis=2).reshape(-1, 256)
        codes = (nibbles | unpack_quarters(data[:, 128:192]) << 4).astype(np.int32) - 32
        sc = data[:, 192:208].view(np.int8).astype(np.int32)
        return _groups(read_half(data, 208), sc, codes)
