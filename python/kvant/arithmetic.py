"""Sums and multiples in place: native so that a decoder's step can be recorded whole."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvant import _core
from kvant.arrays import checked_out, f32_array, result_rows
from kvant.errors import ShapeError

__all__ = ["add", "scale"]

_F32 = np.dtype(np.float32)


def scale(x: NDArray[np.float32], factor: float, *, threads: int | None = None) -> None:
    """Multiply x, f32 in one piece, by a finite factor, in place."""
    _core.scale(result_rows("scale", checked_out("scale", x, x.shape, _F32)), factor, threads or 0)


def add(
    y: NDArray[np.float32], x: NDArray[np.float32], *, threads: int | None = None
) -> NDArray[np.float32]:
    """Add x to y in place: f32 of one shape in one piece, or a vector x to every row of y."""
    if x.shape not in (y.shape, y.shape[-1:]):
        raise ShapeError(f"[add] expected x of shape {y.shape} or {y.shape[-1:]}, got {x.shape}")
    cols = y.shape[-1]
    rows = f32_array("add", "x", x).reshape(1 if x.ndim == 1 else -1, cols)
    _core.add(rows, result_rows("add", checked_out("add", y, y.shape, x.dtype)), threads or 0)
    return y
