"""Float arrays at the library's border: which are taken, and how they are described to it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvant import _core
from kvant.errors import ShapeError

__all__ = [
    "FLOAT_TYPES",
    "as_rows",
    "bits",
    "checked_out",
    "empty",
    "f32_array",
    "f32_result",
    "f32_rows",
    "f32_vector",
    "float_dtype",
    "float_type",
    "importance_rows",
    "result_rows",
    "zeros",
]

FLOAT_TYPES = ("f32", "f16", "bf16")

_F32 = np.dtype(np.float32)
_KNOWN = {_F32: "f32", np.dtype(np.float16): "f16"}
_SMALL_BYTES = 1 << 16


def float_type(dtype: np.dtype[Any]) -> str | None:
    """`"f32"`, `"f16"` or `"bf16"` for the dtypes the library reads, else None."""
    known = _KNOWN.get(dtype)
    # bf16 is of another package, which may not be there; asking for a name takes microseconds.
    if known is None and dtype.kind == "V" and dtype.name == "bfloat16" and dtype.isnative:
        return "bf16"
    return known


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
    flags = array.flags
    if (
        array.ndim == 2
        and array.dtype == _F32
        and flags.c_contiguous
        and flags.aligned
        and len(array)
    ):
        return array, 0, array.shape[1]
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


def bits(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array, 16-bit floats as whole numbers, because the border knows no bf16."""
    return array if array.dtype == _F32 else array.view(np.uint16)


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
    """An array in the library's own memory: aligned, in huge pages where that pays.

    Small ones come from NumPy: their alignment matters less than the time to make them.
    """
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < _SMALL_BYTES:
        return np.empty(shape, dtype)
    return _core.allocate(nbytes, False).view(dtype).reshape(shape)


def zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The same, filled with zeros, and in the library's memory whatever its size."""
    return _core.allocate(math.prod(shape) * dtype.itemsize, True).view(dtype).reshape(shape)


def checked_out(
    function: str, out: Any, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> NDArray[Any]:
    """Return `out` if results of that shape and dtype can be written to it in one piece."""
    result = _of_kind(function, out, shape, dtype)
    flags = result.flags
    if not (flags.c_contiguous and flags.aligned and flags.writeable):
        raise ShapeError(f"[{function}] expected out to be C-contiguous, aligned and writable")
    return result


def f32_array(function: str, what: str, x: Any) -> NDArray[np.float32]:
    """Return x as an f32 array of at least one axis, the last contiguous; copied if its strides
    or its alignment are no floats'.
    """
    array = np.asarray(x)
    if array.dtype != _F32:
        raise ShapeError(f"[{function}] expected {what} of f32, got {array.dtype}")
    if array.ndim == 0:
        raise ShapeError(f"[{function}] expected {what} of at least one axis, got a scalar")
    flags = array.flags
    if flags.c_contiguous and flags.aligned:
        return array
    if array.size and array.shape[-1] > 1 and array.strides[-1] != 4:
        raise ShapeError(
            f"[{function}] expected {what} with a contiguous last axis, got strides {array.strides}"
        )
    fits = flags.aligned and not any(stride % 4 for stride in array.strides)
    # NumPy calls an array contiguous that is not aligned.
    return array if fits else array.copy()


def f32_rows(function: str, array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what `f32_array` gave as a matrix, copied only where strides ask for it."""
    if array.ndim == 2:
        return array
    if array.flags.c_contiguous and array.size:
        return array.reshape(-1, array.shape[-1])
    return as_rows(function, array)[0]


def f32_vector(function: str, what: str, x: Any, count: int) -> NDArray[np.float32]:
    """Return x as a contiguous f32 vector of `count` numbers."""
    array = np.asarray(x)
    if array.dtype != _F32 or array.shape != (count,):
        raise ShapeError(
            f"[{function}] expected {what} of f32 ({count},), got {array.dtype} {array.shape}"
        )
    flags = array.flags
    return array if flags.c_contiguous and flags.aligned else array.copy()


def f32_result(
    function: str, out: Any, shape: tuple[int, ...], inputs: tuple[Any, ...]
) -> NDArray[np.float32]:
    """Return `out` once it is known to be usable, or a new array when it is None.

    Every element of `out` may be that of an input, all of them or none.
    """
    if out is None:
        return empty(shape, _F32)
    result: NDArray[np.float32] = _of_kind(function, out, shape, _F32)
    flags = result.flags
    if not (flags.writeable and flags.aligned):
        raise ShapeError(f"[{function}] expected out to be aligned and writable")
    if not flags.c_contiguous and result.size:
        _check_apart(function, result)
    for given in inputs:
        if (
            given is not result
            and isinstance(given, np.ndarray)
            and np.may_share_memory(result, given)
            and not _same_place(result, given)
            and np.shares_memory(result, given)
        ):
            raise ShapeError(
                f"[{function}] expected out to be an input or apart from it, got memory that "
                "overlaps one"
            )
    return result


def result_rows(function: str, out: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a view on `out` as a matrix; its rows must be evenly spaced."""
    if out.ndim == 2:
        return out
    rows = out.reshape(-1, out.shape[-1])
    if not out.flags.c_contiguous and not np.may_share_memory(rows, out):
        raise ShapeError(
            f"[{function}] expected out with evenly spaced rows, got strides {out.strides}"
        )
    return rows


def _of_kind(function: str, out: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    if isinstance(out, np.ndarray) and out.shape == shape and out.dtype == dtype:
        return out
    got = f"{out.dtype} {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
    raise ShapeError(f"[{function}] expected out of {dtype} {shape}, got {got}")


def _check_apart(function: str, out: NDArray[np.float32]) -> None:
    """Refuse strides that are no floats', or under which elements share memory."""
    extent = 4
    axes = sorted((abs(s), n) for s, n in zip(out.strides, out.shape, strict=True) if n > 1)
    for stride, count in axes:
        if stride < extent or stride % 4:
            raise ShapeError(
                f"[{function}] expected out whose elements lie apart, got strides {out.strides}"
            )
        extent = stride * count
    if out.shape[-1] > 1 and out.strides[-1] != 4:
        raise ShapeError(
            f"[{function}] expected out with a contiguous last axis, got strides {out.strides}"
        )


def _same_place(a: NDArray[Any], b: NDArray[Any]) -> bool:
    axes = zip(a.shape, a.strides, b.strides, strict=True) if a.shape == b.shape else [(2, 0, 1)]
    return a.ctypes.data == b.ctypes.data and all(n == 1 or s == t for n, s, t in axes)
