"""Quantize arrays, measure what it cost, check packed data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kvant import _core
from kvant.arrays import as_rows, checked_out, empty, importance_rows
from kvant.errors import FormatError, ShapeError
from kvant.formats import format_info, formats
from kvant.qtensor import QTensor

__all__ = ["QuantError", "quant_error", "quantize", "validate"]

_BYTE = np.dtype(np.uint8)


def quantize(
    w: ArrayLike,
    format: str,
    *,
    importance: ArrayLike | None = None,
    threads: int | None = None,
    out: NDArray[np.uint8] | None = None,
) -> QTensor:
    """Quantize an array along its last axis, to the bytes that llama.cpp writes.

    Parameters
    ----------
    w
        f32, f16 or bf16 (`ml_dtypes`) of any leading shape, last axis contiguous and a multiple
        of the format's block.
    format
        Name of a format that can be encoded, such as `"q4_k"`.
    importance
        Importance weights of the columns, f32 [cols], or one vector for each index of the first
        axis [experts, cols]. Formats that do not use them ignore them, as ggml does.
    threads
        At most this many; the set number by default. The bytes do not depend on it.
    out
        uint8 array [..., row_bytes] to write to, C-contiguous.

    Returns
    -------
    QTensor

    Raises
    ------
    ShapeError
        The shape or dtype does not fit, or `w` holds a NaN or an infinity (named by position;
        `out` is then unspecified).
    FormatError
        The format is unknown or can only be decoded.

    Notes
    -----
    The searches are those of ggml's reference quantizers (`ggml_quantize_chunk`, built without
    contraction), run on sixteen blocks at a time; docs/formats.md specifies each.

    Examples
    --------
    >>> import numpy as np, kvant
    >>> w = np.linspace(-1, 1, 2 * 256, dtype=np.float32).reshape(2, 256)
    >>> q = kvant.quantize(w, "q4_k")
    >>> q.nbytes, q.bits_per_weight
    (288, 4.5)
    """
    info = format_info(format)
    if not info.can_encode:
        able = ", ".join(f.name for f in formats() if f.can_encode)
        raise FormatError(f"[quantize] expected a format to encode ({able}), got {format!r}")
    rows, kind, stride = as_rows("quantize", w)
    shape = np.shape(w)
    if shape[-1] % info.block:
        raise ShapeError(
            f"[quantize] last dimension must be a multiple of {info.block} ({info.name}), "
            f"got {shape[-1]}"
        )
    weights, per_vector = importance_rows("quantize", importance, shape)
    wanted = (*shape[:-1], info.row_bytes(shape[-1]))
    if out is None:
        out = empty(wanted, _BYTE)
    else:
        checked_out("quantize", out, wanted, _BYTE)
    bad = _core.encode(
        info.number,
        rows.ctypes.data,
        kind,
        rows.shape[0],
        rows.shape[1],
        stride,
        weights,
        per_vector,
        out.reshape(-1),
        threads or 0,
    )
    if bad >= 0:
        at = tuple(int(i) for i in np.unravel_index(bad, shape))
        raise ShapeError(f"[quantize] expected finite weights, got {np.asarray(w)[at]} at {at}")
    return QTensor(out, info.name, shape)


@dataclass(frozen=True)
class QuantError:
    """Errors of decoded weights y against originals x; numbers, or one f64 array entry per row.

    Attributes
    ----------
    rmse
        sqrt(mean (y - x)^2).
    relative_rmse
        rmse / sqrt(mean x^2).
    weighted
        sqrt(sum w (y - x)^2 / sum w x^2) with w the importance (1 without).
    max
        Largest |y - x|.
    cosine
        sum x y / sqrt(sum x^2 * sum y^2).

    A quotient of two zeros counts as no error.
    """

    rmse: Any
    relative_rmse: Any
    weighted: Any
    max: Any
    cosine: Any


def quant_error(
    w: ArrayLike,
    q: QTensor,
    importance: ArrayLike | None = None,
    per_row: bool = False,
    *,
    threads: int | None = None,
) -> QuantError:
    """Measure a quantized tensor against the array it was made from, in one fused pass.

    Parameters
    ----------
    w
        The originals: f32, f16 or bf16 of the shape of `q`.
    q
        The quantized tensor.
    importance
        As for `quantize`; weighs `weighted`.
    per_row
        One number for each row of the last axis, arrays of shape `q.shape[:-1]`.

    Raises
    ------
    ShapeError
        The shapes differ.

    Examples
    --------
    >>> import numpy as np, kvant
    >>> w = np.sin(np.arange(1024, dtype=np.float32)).reshape(4, 256)
    >>> e = kvant.quant_error(w, kvant.quantize(w, "q8_0"))
    >>> e.relative_rmse < 0.01, e.cosine > 0.9999
    (True, True)
    """
    rows, kind, stride = as_rows("quant_error", w)
    shape = np.shape(w)
    if shape != q.shape:
        raise ShapeError(f"[quant_error] expected weights of shape {q.shape}, got {shape}")
    weights, per_vector = importance_rows("quant_error", importance, shape)
    data, byte_stride = q.byte_rows()
    sums = np.zeros((rows.shape[0], 7))
    _core.row_errors(
        q.info.number,
        data.ctypes.data,
        byte_stride,
        rows.ctypes.data,
        kind,
        rows.shape[0],
        rows.shape[1],
        stride,
        weights,
        per_vector,
        sums,
        threads or 0,
    )
    count = shape[-1]
    if per_row:
        return _errors(sums, count, lambda v: v.reshape(shape[:-1]))
    # Rows are added one after another, so that the result is the same for any number of threads.
    total = np.cumsum(sums, axis=0)[-1:] if len(sums) else np.zeros((1, 7))
    total[:, 6] = sums[:, 6].max(initial=0.0)
    return _errors(total, count * max(len(sums), 1), lambda v: float(v[0]))


def _errors(sums: NDArray[np.float64], count: int, shape: Any) -> QuantError:
    ee, xx, yy, xy, wee, wxx, largest = sums.T

    def ratio(over: Any, under: Any, empty: float) -> Any:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where((over == 0) & (under == 0), empty, over / under)

    return QuantError(
        rmse=shape(np.sqrt(ee / max(count, 1))),
        relative_rmse=shape(np.sqrt(ratio(ee, xx, 0.0))),
        weighted=shape(np.sqrt(ratio(wee, wxx, 0.0))),
        max=shape(largest),
        cosine=shape(ratio(xy, np.sqrt(xx) * np.sqrt(yy), 1.0)),
    )


def validate(q: QTensor, *, threads: int | None = None) -> None:
    """Refuse packed data with a scale that is not a finite number of its format.

    For mxfp4 that is the exponent 255, for nvfp4 scale bytes from 0x7f on: decoding takes them,
    as ggml does, but other readers call them NaN. (ggml's mxfp4 encoder, and so ours, writes 255
    for blocks whose largest magnitude lies in [2^-126, 2^-125).)

    Raises
    ------
    FormatError
        Names the first such block and its row.

    Examples
    --------
    >>> import numpy as np, kvant
    >>> kvant.validate(kvant.quantize(np.ones((1, 32), np.float32), "q4_0"))
    >>> kvant.validate(kvant.QTensor.from_bytes(b"\\xff" * 34, "q8_0", (1, 32)))
    Traceback (most recent call last):
        ...
    kvant.errors.FormatError: [validate] expected finite scales (q8_0), got block 0 of row (0,)
    """
    data, stride = q.byte_rows()
    cols = q.shape[-1]
    block = _core.validate(
        q.info.number,
        data.ctypes.data,
        stride,
        data.shape[0],
        cols,
        threads or 0,
    )
    if block < 0:
        return
    per_row = cols // q.info.block
    row = (
        tuple(int(i) for i in np.unravel_index(block // per_row, q.shape[:-1]))
        if q.ndim > 1
        else ()
    )
    what = "finite numbers" if q.info.block == 1 else "finite scales"
    raise FormatError(
        f"[validate] expected {what} ({q.format}), got block {block % per_row} of row {row}"
    )
