"""Inputs that look like weights, in huge pages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..formats import format_info
from ..quant import quantize
from .memory import buffer

__all__ = ["Once", "packed_rows", "weights"]

T = TypeVar("T")


class Once(Generic[T]):
    """Makes inputs at their first use, and forgets them after the last."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._made: list[T] = []

    def __call__(self) -> T:
        if not self._made:
            self._made.append(self._make())
        return self._made[0]

    def forget(self) -> list[Any]:
        """A last step, which finds no rows."""
        self._made.clear()
        return []


def weights(rows: int, cols: int, seed: int = 0) -> NDArray[np.float32]:
    """Normal numbers of a model's magnitude, in huge pages."""
    x = buffer(rows * cols * 4).view(np.float32).reshape(rows, cols)
    rng = np.random.default_rng(seed)
    piece = min(rows, 512)
    x[:piece] = rng.standard_normal((piece, cols), np.float32) * np.float32(0.02)
    for start in range(piece, rows, piece):
        # Other memory, the same statistics; drawing them all anew would take longer than timing.
        count = min(piece, rows - start)
        x[start : start + count] = np.roll(x[:count], start, axis=1)
    return x


def packed_rows(format: str, rows: int, cols: int) -> NDArray[np.uint8]:
    """Packed rows in huge pages; random bytes with finite scales for what kvant only decodes."""
    info = format_info(format)
    distinct = min(rows, 64)
    if info.can_encode:
        piece = quantize(weights(distinct, cols), format).data
    else:
        rng = np.random.default_rng(2)
        # Below 0x70 no half, in whatever place the format keeps it, is a NaN or an infinity.
        piece = rng.integers(0, 0x70, (distinct, info.row_bytes(cols)), np.uint8)
    out = buffer(rows * info.row_bytes(cols)).reshape(rows, -1)
    for start in range(0, rows, distinct):
        out[start : start + distinct] = piece[: rows - start]
    return out
