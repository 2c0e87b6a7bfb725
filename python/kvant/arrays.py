"""Float arrays at the library's border: which are taken, and how they are described to it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvant import _core
from kvant.errors import ShapeError

__all__ = ["FLOAT_TYPES", "as_rows", "empty", "float_dtype", "float_type", "importance_rows"]

FLOAT_TYPES = ("f32", "f16", "bf16")


def float_type(dtype: np.dtype[Any]) -> str | None:
    """`"f32"`, `"f16"` or `"bf16"` for the dtypes the library reads, else None."""
    known = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
    return known.get(dtype.name) if dtype.isnative else None


def float_dtype(function: str, name: Any) -> tuple[int, np.dtype[Any]]:
    """Number and NumPy dtype of a float type given by name or dtype; bf16 needs `ml_dtypes`."""
    text = name if name in FLOAT_TYPES else None
    if text is None:
        try:
            text = float_type(np.dtype(name))
        except TypeError:
            text = None
    if text is None:
        raise ShapeError(f"[{function}] expected dtype f32, f16 or bf16, got {name!r}")
    if text == "bf16":
        import ml_dtypes

        return 2, np.dtype(ml_dtypes.bfloat16)
    return FLOAT_TYPES.index(text), np.dtype(np.float32 if text == "f32" else np.float16)


def as_rows(function: str, x: Any) -> tuple[NDArray[Any], int, int]:
    """Return x as a matrix [rows, cols] without copying where strides allow it.

    Returns the matrix, the number of its float type and its row stride in elements. Raises
    ShapeError unless x is f32, f16 or bf16 with at least one axis and a contiguous last one.
    """
    array = np.asarray(x)
    kind = float_type(array.dtype)
    if kind is None:
        raise ShapeError(f"[{function}] expected f32, f16 or bf16, got {array.dtype}")
    if array.ndim == 0:
        raise ShapeError(f"[{function}] expected at least one axis, got a scalar")
    cols = array.shape[-1]
    if not array.size:
        # The strides of an empty array mean nothing.
        rows = math.prod(array.shape[:-1])
        return np.empty((rows, cols), array.dtype), FLOAT_TYPES.index(kind), cols
    if cols > 1 and array.strides[-1] != array.itemsize:
        raise ShapeError(
            f"[{function}] expected a contiguous last axis, got strides {array.strides}"
        )
    matrix = array.reshape(-1, cols)
    if matrix.shape[0] > 1 and (
        matrix.strides[0] % array.itemsize or matrix.strides[0] < 0 or matrix.strides[1] < 0
    ):
        matrix = np.ascontiguousarray(matrix)
    if cols > 1 and matrix.shape[0] and matrix.strides[1] != array.itemsize:
        matrix = np.ascontiguousarray(matrix)
    if matrix.ctypes.data % array.itemsize:
        matrix = matrix.copy()
    stride = matrix.strides[0] // array.itemsize if matrix.shape[0] > 1 else cols
    return matrix, FLOAT_TYPES.index(kind), stride


def importance_rows(
    function: str, importance: Any, shape: tuple[int, ...]
) -> tuple[NDArray[np.float32] | None, int]:
    """Return importance as [vectors, cols] and the number of rows each vector serves.

    Taken are one vector [cols] for all rows, or one for each index of the first axis
    [shape[0], cols] (experts). Raises ShapeError otherwise, and for a NaN or an infinity.
    """
    if importance is None:
        return None, 1
    weights = np.require(importance, np.float32, ["C", "ALIGNED"])
    rows = math.prod(shape[:-1])
    if weights.shape == shape[-1:]:
        weights = weights[None]
        per_vector = max(rows, 1)
    elif len(shape) > 1 and weights.shape == (shape[0], shape[-1]):
        per_vector = max(rows // max(shape[0], 1), 1)
    else:
        wanted = f"({shape[-1]},)" + (f" or ({shape[0]}, {shape[-1]})" if len(shape) > 1 else "")
        raise ShapeError(f"[{function}] expected importance of shape {wanted}, got {weights.shape}")
    if not np.isfinite(weights).all():
        at = tuple(int(i) for i in np.argwhere(~np.isfinite(weights))[0])
        raise ShapeError(f"[{function}] expected finite importance, got {weights[at]} at {at}")
    return weights, per_vector


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """An array in the library's own memory: aligned, in huge pages where that pays."""
    return _core.allocate(math.prod(shape) * dtype.itemsize).view(dtype).reshape(shape)
