"""What a format is to the reference: a name, a block, and two functions on blocks.

Shapes are handled here and nowhere else. A format sees blocks only: `encode_blocks` takes f32 of
shape (n, block), `decode_blocks` or `unpack_blocks` takes bytes of shape (n, block_bytes).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .numeric import F32, I8, U8, canonical, f32, ordered_sum

# Elements that are worked on at once: enough to hide the interpreter, few enough for the cache.
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Weights:
    """What an importance vector brings to a set of blocks.

    `importance` has the shape of the blocks; `row_square` is, per block, the mean square of the
    whole row that the block belongs to.
    """

    importance: F32
    row_square: F32


@dataclass(frozen=True)
class Groups:
    """Weights as small integers under one scale per group: w = scale * code - minimum.

    `codes` has the shape of the weights; `scale` and `minimum` have one number in place of each
    `group` weights along the last axis. Formats without a minimum have None there.
    """

    codes: I8
    scale: F32
    minimum: F32 | None = None


class Format(ABC):
    """One storage format; a subclass states the sizes and the two functions on blocks."""

    name: ClassVar[str]
    block: ClassVar[int]
    block_bytes: ClassVar[int]
    can_encode: ClassVar[bool] = True
    uses_importance: ClassVar[bool] = False
    keeps_nan: ClassVar[bool] = False

    def encode_blocks(self, x: F32, weights: Weights | None) -> U8:
        """Bytes of shape (n, block_bytes) for f32 blocks of shape (n, block)."""
        raise TypeError(f"{self.name} has no encoder")

    @abstractmethod
    def decode_blocks(self, data: U8) -> F32:
        """f32 blocks of shape (n, block) for bytes of shape (n, block_bytes)."""

    def encode(self, x: ArrayLike, importance: ArrayLike | None = None) -> U8:
        """Encode rows: f32 [..., cols] to uint8 [..., cols / block * block_bytes]."""
        if not self.can_encode:
            raise ValueError(f"[encode] expected a format with an encoder, got {self.name}")
        rows = np.asarray(x)
        if rows.dtype != np.float32:
            raise ValueError(f"[encode] expected float32 numbers, got {rows.dtype}")
        if rows.ndim == 0 or rows.shape[-1] % self.block:
            got = rows.shape[-1] if rows.ndim else "a scalar"
            raise ValueError(
                f"[encode] expected a last axis that is a multiple of {self.block} "
                f"({self.name}), got {got}"
            )
        cols = rows.shape[-1]
        weigh = importance is not None and self.uses_importance
        per_column = _check_importance(importance, cols) if importance is not None else None
        flat = np.ascontiguousarray(rows).reshape(-1, self.block)
        out = np.empty((flat.shape[0], self.block_bytes), np.uint8)
        with np.errstate(all="ignore"):
            means = _row_square(rows.reshape(-1, cols)) if weigh and cols else None
            for start in range(0, flat.shape[0], step := max(1, _CHUNK // self.block)):
                part = slice(start, min(start + step, flat.shape[0]))
                weights = None
                if per_column is not None and means is not None:
                    weights = _weights_of(part, per_column.reshape(-1, self.block), means)
                out[part] = self.encode_blocks(flat[part], weights)
        return out.reshape(*rows.shape[:-1], cols // self.block * self.block_bytes)

    def decode(self, data: ArrayLike) -> F32:
        """Decode rows: uint8 [..., row_bytes] to f32 [..., row_bytes / block_bytes * block]."""
        rows = self.check_bytes("decode", data)
        flat = rows.reshape(-1, self.block_bytes)
        out = np.empty((flat.shape[0], self.block), np.float32)
        with np.errstate(all="ignore"):
            for start in range(0, flat.shape[0], step := max(1, _CHUNK // self.block)):
                values = self.decode_blocks(flat[start : start + step])
                out[start : start + step] = values if self.keeps_nan else canonical(values)
        return out.reshape(*rows.shape[:-1], rows.shape[-1] // self.block_bytes * self.block)

    def check_bytes(self, function: str, data: ArrayLike) -> U8:
        """The data as contiguous packed rows, or a ValueError on behalf of `function`."""
        rows = np.asarray(data)
        if rows.dtype != np.uint8:
            raise ValueError(f"[{function}] expected uint8 bytes, got {rows.dtype}")
        if rows.ndim == 0 or rows.shape[-1] % self.block_bytes:
            got = rows.shape[-1] if rows.ndim else "a scalar"
            raise ValueError(
                f"[{function}] expected rows that are a multiple of {self.block_bytes} bytes "
                f"({self.name}), got {got}"
            )
        return np.ascontiguousarray(rows)


class BlockFormat(Format):
    """A format whose blocks are codes in groups of 16 or 32; a subclass says which they are."""

    group: ClassVar[int] = 32

    @abstractmethod
    def unpack_blocks(self, data: U8) -> Groups:
        """Codes (n, block), scales and minima (n, block / group) of bytes (n, block_bytes).

        Formats with a table of values have the values as codes.
        """

    def decode_blocks(self, data: U8) -> F32:
        groups = self.unpack_blocks(data)
        sub = f32(groups.codes).reshape(-1, self.block // self.group, self.group)
        values = groups.scale[:, :, None] * sub
        if groups.minimum is not None:
            values = values - groups.minimum[:, :, None]
        return values.reshape(-1, self.block)

    def unpack(self, data: ArrayLike) -> Groups:
        """Split rows: uint8 [..., row_bytes] to codes [..., cols] and numbers [..., cols/group]."""
        rows = self.check_bytes("unpack", data)
        with np.errstate(all="ignore"):
            found = self.unpack_blocks(rows.reshape(-1, self.block_bytes))
        blocks = rows.shape[-1] // self.block_bytes
        cols = (*rows.shape[:-1], blocks * self.block)
        per_group = (*rows.shape[:-1], blocks * self.block // self.group)
        low = None if found.minimum is None else found.minimum.reshape(per_group)
        return Groups(found.codes.reshape(cols), found.scale.reshape(per_group), low)


def _check_importance(importance: ArrayLike, cols: int) -> F32:
    vector = np.asarray(importance)
    if vector.dtype != np.float32 or vector.shape != (cols,):
        raise ValueError(
            f"[encode] expected importance of float32 ({cols},), got {vector.dtype} {vector.shape}"
        )
    return np.ascontiguousarray(vector)


def _row_square(rows: F32) -> F32:
    return ordered_sum((rows * rows).T) / np.float32(rows.shape[1])


def _weights_of(part: slice, per_block: F32, means: F32) -> Weights:
    index: NDArray[np.intp] = np.arange(part.start, part.stop)
    row, column = np.divmod(index, per_block.shape[0])
    return Weights(per_block[column], means[row])
