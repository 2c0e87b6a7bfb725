"""Bytes of f32, f16 and bf16 values turned into each other."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kvant.errors import ModelError

__all__ = ["convert_bytes"]

Bytes = npt.NDArray[np.uint8]


def convert_bytes(data: Bytes, source: str, target: str) -> Bytes:
    """Values of one type as bytes of another, rounded to nearest, ties to even.

    Raises
    ------
    ModelError
        A finite value is too large for the target type.
    """
    if source == target:
        return data
    values = _to_f32(data, source)
    if target == "f32":
        return values.view(np.uint8)
    if target == "f16":
        with np.errstate(over="ignore"):
            half = values.astype("<f2")
        if np.isinf(half).sum() != np.isinf(values).sum():
            raise ModelError(
                "[convert] expected values within f16 (65504), got larger ones: use bf16 or f32"
            )
        return half.view(np.uint8)
    bits = values.view("<u4")
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)
    # Rounding must not carry a NaN into infinity or zero.
    rounded = np.where(np.isnan(values), bits | 0x400000, rounded)
    high = (rounded >> 16).astype("<u2")
    if ((high & 0x7FFF) == 0x7F80).sum() != np.isinf(values).sum():
        raise ModelError("[convert] expected values within bf16, got larger ones: use f32")
    return high.view(np.uint8)


def _to_f32(data: Bytes, source: str) -> npt.NDArray[np.float32]:
    flat = np.ascontiguousarray(data).reshape(-1)
    if source == "f32":
        return flat.view("<f4")
    if source == "f16":
        return flat.view("<f2").astype("<f4")
    return (flat.view("<u2").astype("<u4") << 16).view("<f4")
