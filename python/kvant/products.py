"""Matrix products with quantized weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kvant import _core
from kvant.arrays import as_rows, bits, checked_out, empty
from kvant.errors import ShapeError
from kvant.weights import Weights, check_weights

__all__ = ["matmul", "matmul_many"]

_ACTIVATIONS = {"q8": 0, "f32": 1}
_F32 = np.dtype(np.float32)
_MOST_PRODUCTS = 16


def matmul(
    x: ArrayLike,
    w: Weights,
    *,
    out: NDArray[np.float32] | None = None,
    act: str = "q8",
    threads: int | None = None,
) -> NDArray[np.float32]:
    """Multiply activations by the transpose of quantized weights: `x @ W.T`.

    The result depends on x and the weights only: the same bits on every processor, for any number
    of threads, packed or not, and for a row alone or among others.

    Parameters
    ----------
    x
        f32, f16 or bf16 [..., k].
    w
        Weights [n, k] in any format: a tensor, or one packed by `QTensor.pack`, which is faster.
    out
        f32 [..., n], C-contiguous, to write to; it must not overlap an input. Then nothing is
        allocated.
    act
        `"q8"`: each block of 32 activations is rounded to eight bits with a scale of its own and
        multiplied in integers. `"f32"`: decoded weights times x in f32, for validation. Float
        weights always take x as it is.
    threads
        At most this many; the set number by default.

    Returns
    -------
    ndarray
        f32 [..., n]. A NaN or an infinity in a row of x makes that row NaN and touches no other
        (with `act="f32"` it spreads as IEEE arithmetic has it).

    Raises
    ------
    ShapeError
        The last axes differ, a dtype, `w` or `act` is none of these, or `out` does not fit or
        overlaps an input.

    Notes
    -----
    docs/kernels.md defines every operation. Eight-bit activations are llama.cpp's idea (its Q8_0
    and Q8_K); here each block of 32 has a scale for every format.

    Examples
    --------
    >>> import numpy as np, kvant
    >>> w = kvant.quantize(np.eye(64, dtype=np.float32), "q8_0").pack()
    >>> x = np.full(64, 127, np.float32)
    >>> kvant.matmul(x, w)[:3]
    array([126.99225, 126.99225, 126.99225], dtype=float32)
    >>> (x @ w.T).shape
    (64,)
    """
    check_weights("matmul", "weights", w, 2)
    matrix = w.matrix()
    if (
        type(x) is np.ndarray
        and x.dtype == np.float32
        and x.flags.c_contiguous
        and x.flags.aligned
        and x.ndim
    ):
        shape = (*x.shape[:-1], matrix.rows)
        if x.shape[-1] != matrix.cols:
            raise _wrong_columns("matmul", x.shape, w)
        if out is None:
            out = empty(shape, _F32)
        else:
            checked_out("matmul", out, shape, _F32)
        _core.matmul(x, matrix, out, act_number("matmul", act), threads or 0)
        return out
    return _products("matmul", x, [w], None if out is None else [out], act, threads)[0]


def matmul_many(
    x: ArrayLike,
    weights: Sequence[Weights],
    *,
    out: Sequence[NDArray[np.float32]] | None = None,
    act: str = "q8",
    threads: int | None = None,
) -> list[NDArray[np.float32]]:
    """Multiply the same activations by several weights, as for queries, keys and values.

    The activations are quantized once and the products share the threads; every result has the
    bits that `matmul` gives.

    Parameters
    ----------
    x
        f32, f16 or bf16 [..., k].
    weights
        Up to 16 weights [n, k]; formats and n may differ.
    out
        One array for each, as for `matmul`; they must not overlap each other.
    act, threads
        As for `matmul`.

    Returns
    -------
    list of ndarray
        f32 [..., n], one for each.

    Raises
    ------
    ShapeError
        As for `matmul`; also when there are more than 16 weights, or another number of `out`.

    Examples
    --------
    >>> import numpy as np, kvant
    >>> w = kvant.quantize(np.ones((3, 32), np.float32), "q4_0")
    >>> [y.tolist() for y in kvant.matmul_many(np.ones(32, np.float32), [w, w.pack()])]
    [[32.0, 32.0, 32.0], [32.0, 32.0, 32.0]]
    """
    if len(weights) > _MOST_PRODUCTS:
        raise ShapeError(
            f"[matmul_many] expected up to {_MOST_PRODUCTS} weights, got {len(weights)}"
        )
    if out is not None and len(out) != len(weights):
        raise ShapeError(f"[matmul_many] expected {len(weights)} arrays as out, got {len(out)}")
    for w in weights:
        check_weights("matmul_many", "weights", w, 2)
    return _products("matmul_many", x, weights, out, act, threads)


def _products(
    function: str,
    x: ArrayLike,
    weights: Sequence[Weights],
    out: Sequence[NDArray[np.float32]] | None,
    act: str,
    threads: int | None,
) -> list[NDArray[np.float32]]:
    matrix, kind, stride = as_rows(function, x)
    leading = np.shape(x)[:-1]
    handles = [w.matrix() for w in weights]
    results = []
    for i, (w, handle) in enumerate(zip(weights, handles, strict=True)):
        if handle.cols != matrix.shape[1]:
            raise _wrong_columns(function, (*leading, matrix.shape[1]), w)
        shape = (*leading, handle.rows)
        results.append(
            empty(shape, _F32) if out is None else checked_out(function, out[i], shape, _F32)
        )
    _core.matmul_many(
        function,
        bits(matrix),
        kind,
        math.prod(leading),
        matrix.shape[1],
        stride,
        handles,
        results,
        act_number(function, act),
        threads or 0,
    )
    return results


def act_number(function: str, act: str) -> int:
    """Return the library's number of a kind of activations."""
    number = _ACTIVATIONS.get(act)
    if number is None:
        raise ShapeError(f"[{function}] expected act to be 'q8' or 'f32', got {act!r}")
    return number


def _wrong_columns(function: str, shape: tuple[int, ...], w: Weights) -> ShapeError:
    return ShapeError(
        f"[{function}] expected x [..., {w.shape[-1]}] for weights {w.shape}, got {shape}"
    )
