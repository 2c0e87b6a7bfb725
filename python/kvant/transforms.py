"""Transforms that spread what is to be quantized, and are undone but for rounding."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kvant import _core
from kvant.arrays import f32_array, f32_result, f32_rows, f32_vector, result_rows
from kvant.errors import ShapeError

__all__ = ["hadamard"]

_LEAST, _MOST = 16, 512


def hadamard(
    x: ArrayLike,
    block: int | None = None,
    *,
    signs: ArrayLike | None = None,
    inverse: bool = False,
    out: NDArray[np.float32] | None = None,
    threads: int | None = None,
) -> NDArray[np.float32]:
    """Walsh-Hadamard transform of every `block` elements of the last axis, divided by sqrt(block).

    It is a rotation: products of two vectors that are both transformed stay what they were, and
    what stood out in one element is spread over all. Without signs it is its own inverse.

    Parameters
    ----------
    x
        f32 [..., k].
    block
        A power of two from 16 to 512 that divides k; the largest by default.
    signs
        f32 [block] of +1 and -1, multiplied by before the transform: against vectors that are
        parallel to one of its rows.
    inverse
        Undo it: transform, then multiply by the signs.
    out, threads
        As for `rms_norm`; `out` may be `x`.

    Returns
    -------
    ndarray
        f32 [..., k]: sums and differences of elements 1, 2, 4, ... apart, each rounded, and then a
        product with 1 / sqrt(block).

    Raises
    ------
    ShapeError
        A shape or dtype does not fit, or a sign is neither +1 nor -1.

    Notes
    -----
    The order is that of Sylvester's matrices. Rotating before quantizing is QuaRot's idea (Ashkboos
    and others, 2024, arXiv:2404.00456).

    Examples
    --------
    >>> import numpy as np, kvant
    >>> x = np.zeros(16, np.float32)
    >>> x[3] = 4
    >>> kvant.hadamard(x)[:6]
    array([ 1., -1., -1.,  1.,  1., -1.], dtype=float32)
    >>> bool(np.allclose(kvant.hadamard(kvant.hadamard(x)), x))
    True
    """
    given = f32_array("hadamard", "x", x)
    cols = given.shape[-1]
    size = min(cols & -cols, _MOST) if block is None else block
    if not _LEAST <= size <= _MOST or size & (size - 1) or cols % size:
        what = "a last axis that 16 divides" if block is None else "a block of 2**4 to 2**9"
        raise ShapeError(f"[hadamard] expected {what} for {given.shape}, got {block or cols}")
    factors = None if signs is None else f32_vector("hadamard", "signs", signs, size)
    if factors is not None and not (np.abs(factors) == 1).all():
        raise ShapeError("[hadamard] expected signs of +1 and -1")
    result = f32_result("hadamard", out, given.shape, (x, signs))
    if given.size:
        rows = f32_rows("hadamard", given)
        target = result_rows("hadamard", result)
        _core.hadamard(rows, size, factors, inverse, target, threads or 0)
    return result
