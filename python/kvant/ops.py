"""What inference code needs around matrix products: norms, rotary positions, softmax, activations.

All take and give f32, have the same bits on every processor and for any number of threads, and a
twin in `kvant.reference.ops` that defines them. docs/ops.md states the order of every sum and the
error of every function.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kvant import _core
from kvant.arrays import (
    checked_out,
    empty,
    f32_array,
    f32_result,
    f32_rows,
    f32_vector,
    float_dtype,
    result_rows,
)
from kvant.errors import FormatError, ShapeError
from kvant.qtensor import QTensor

__all__ = ["activation_mul", "embedding", "rms_norm", "rope", "silu_mul", "softmax"]

_ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3}


def rms_norm(
    x: ArrayLike,
    weight: ArrayLike | None,
    eps: float = 1e-6,
    *,
    out: NDArray[np.float32] | None = None,
    threads: int | None = None,
) -> NDArray[np.float32]:
    """Divide each row by its root mean square, and multiply by `weight`.

    Parameters
    ----------
    x
        f32 [..., k].
    weight
        f32 [k], or None for ones.
    eps
        Added to the mean of squares; finite, not negative.
    out
        f32 array to write to, of the shape of `x` and with evenly spaced rows. It may be `x`; it
        must not overlap an input otherwise.
    threads
        At most this many; the set number by default. The bits do not depend on it.

    Returns
    -------
    ndarray
        f32 [..., k]: `(x * r) * weight` with `r = 1 / sqrt(sum(x * x) / k + eps)`.

    Raises
    ------
    ShapeError
        A shape, dtype or number that does not fit.

    Notes
    -----
    From Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019, arXiv:1910.07467).

    Examples
    --------
    >>> import numpy as np, kvant
    >>> kvant.rms_norm(np.float32([[3, 4], [0, 0]]), np.float32([1, 2]), 0.5)
    array([[0.8320503, 2.2188008],
           [0.       , 0.       ]], dtype=float32)
    """
    given = f32_array("rms_norm", "x", x)
    factors = None if weight is None else f32_vector("rms_norm", "weight", weight, given.shape[-1])
    if not 0 <= eps < np.inf:
        raise ShapeError(f"[rms_norm] expected eps of at least 0, got {eps}")
    result = f32_result("rms_norm", out, given.shape, (x, weight))
    if given.size:
        rows = f32_rows("rms_norm", given)
        _core.rms_norm(rows, factors, eps, result_rows("rms_norm", result), threads or 0)
    return result


def softmax(
    x: ArrayLike,
    *,
    scale: float = 1.0,
    out: NDArray[np.float32] | None = None,
    threads: int | None = None,
) -> NDArray[np.float32]:
    """Softmax of `x * scale` over the last axis.

    Parameters
    ----------
    x
        f32 [..., k]; -inf is a share of zero.
    scale
        Finite.
    out, threads
        As for `rms_norm`.

    Returns
    -------
    ndarray
        f32 [..., k]: `e * (1 / sum(e))` with `e = exp(x * scale - max(x * scale))`. Shares whose
        `e` is below 2**-126.5 are zero. A row that holds a NaN, +inf, or nothing but -inf is NaN.

    Raises
    ------
    ShapeError
        A shape, dtype or number that does not fit.

    Notes
    -----
    The exponential is the library's own polynomial; docs/ops.md has it and its error.

    Examples
    --------
    >>> import numpy as np, kvant
    >>> kvant.softmax(np.float32([0, 0, -np.inf]))
    array([0.5, 0.5, 0. ], dtype=float32)
    """
    given = f32_array("softmax", "x", x)
    if not -np.inf < scale < np.inf:
        raise ShapeError(f"[softmax] expected a finite scale, got {scale}")
    result = f32_result("softmax", out, given.shape, (x,))
    if given.size:
        rows = f32_rows("softmax", given)
        _core.softmax(rows, scale, result_rows("softmax", result), threads or 0)
    return result


def activation_mul(
    gate: ArrayLike,
    up: ArrayLike,
    activation: str = "silu",
    *,
    out: NDArray[np.float32] | None = None,
    threads: int | None = None,
) -> NDArray[np.float32]:
    """`activation(gate) * up`, element by element: the middle of a gated feed-forward layer.

    Parameters
    ----------
    gate, up
        f32 of one shape. Both may be halves of one array, `y[..., :k]` and `y[..., k:]`.
    activation
        `"silu"`: x / (1 + exp(-x)). `"gelu"`: x Phi(x), Phi the normal distribution (erf form).
        `"gelu_tanh"`: its approximation by tanh. `"relu"`: max(x, 0).
    out, threads
        As for `rms_norm`; `out` may be `gate` or `up`.

    Returns
    -------
    ndarray
        f32 of the shape of `gate`.

    Raises
    ------
    ShapeError
        A shape or dtype that does not fit.
    FormatError
        The activation is unknown.

    Notes
    -----
    `silu` and `gelu` of -inf are NaN (-inf times zero); of finite numbers far below zero, -0.
    The layer is from Shazeer (2020, arXiv:2002.05202), silu and gelu from Hendrycks and Gimpel
    (2016, arXiv:1606.08415); docs/ops.md says how they are computed.

    Examples
    --------
    >>> import numpy as np, kvant
    >>> kvant.activation_mul(np.float32([-1, 0, 2]), np.float32([3, 3, 3]), "relu")
    array([0., 0., 6.], dtype=float32)
    """
    return _activation_mul("activation_mul", gate, up, activation, out, threads)


def silu_mul(
    gate: ArrayLike,
    up: ArrayLike,
    *,
    out: NDArray[np.float32] | None = None,
    threads: int | None = None,
) -> NDArray[np.float32]:
    """`silu(gate) * up`, for f32 of one shape: `activation_mul` with its default.

    Raises
    ------
    ShapeError
        A shape or dtype that does not fit.

    Examples
    --------
    >>> import numpy as np, kvant
    >>> kvant.silu_mul(np.float32([0, 1]), np.float32([1, 2]))
    array([0.       , 1.4621172], dtype=float32)
    """
    return _activation_mul("silu_mul", gate, up, "silu", out, threads)


def activation_number(function: str, activation: str) -> int:
    """Return the library's number of an activation."""
    number = _ACTIVATIONS.get(activation)
    if number is None:
        known = ", ".join(_ACTIVATIONS)
        raise FormatError(f"[{function}] expected activation {known}, got {activation!r}")
    return number


def _activation_mul(
    function: str, gate: ArrayLike, up: ArrayLike, activation: str, out: Any, threads: int | None
) -> NDArray[np.float32]:
    number = activation_number(function, activation)
    given = f32_array(function, "gate", gate)
    other = f32_array(function, "up", up)
    if other.shape != given.shape:
        raise ShapeError(f"[{function}] expected up of shape {given.shape}, got {other.shape}")
    result = f32_result(function, out, given.shape, (gate, up))
    if given.size:
        _core.activation_mul(
            number,
            f32_rows(function, given),
            f32_rows(function, other),
            result_rows(function, result),
            threads or 0,
        )
    return result


def rope(
    x: ArrayLike,
    positions: ArrayLike,
    *,
    theta: float = 10000.0,
    style: str = "half",
    rotary_dim: int | None = None,
    freq_factors: ArrayLike | None = None,
    scale: float = 1.0,
    out: NDArray[np.float32] | None = None,
    threads: int | None = None,
) -> NDArray[np.float32]:
    """Rotate pairs of each head by the angles of its token's position (rotary embedding).

    Parameters
    ----------
    x
        f32 [tokens, heads, head_dim]; tokens and heads may have any stride.
    positions
        Whole numbers [tokens]. Angles up to 1e8 are taken.
    theta
        Base of the frequencies, at least 1: pair i has theta ** (-2 * i / rotary_dim).
    style
        `"half"` pairs i with i + rotary_dim / 2 (Hugging Face, most GGUF architectures),
        `"interleaved"` pairs 2i with 2i + 1 (GGUF files of llama).
    rotary_dim
        Numbers of each head that are rotated, even; the rest is copied. All by default.
    freq_factors
        f32 [rotary_dim / 2] above 0, by which frequencies are divided (`rope_freqs.weight`).
    scale
        Positions are divided by it (linear scaling, `rope.scaling.factor`).
    out, threads
        As for `rms_norm`; any strides do whose last axis is contiguous.

    Returns
    -------
    ndarray
        f32 [tokens, heads, head_dim]. Angles are formed in f64, cosine and sine rounded to f32,
        and each pair becomes fma(a, cos, -(b * sin)), fma(b, cos, a * sin).

    Raises
    ------
    ShapeError
        A shape, dtype, style or number that does not fit.

    Notes
    -----
    From Su and others, "RoFormer" (2021, arXiv:2104.09864); scaling of positions from Chen and
    others (2023, arXiv:2306.15595).

    Examples
    --------
    >>> import numpy as np, kvant
    >>> kvant.rope(np.float32([[[1, 0]], [[1, 0]]]), [0, 1])
    array([[[1.        , 0.        ]],
    <BLANKLINE>
           [[0.5403023 , 0.84147096]]], dtype=float32)
    """
    given = f32_array("rope", "x", x)
    if given.ndim != 3:
        raise ShapeError(f"[rope] expected x [tokens, heads, head_dim], got shape {given.shape}")
    tokens, _, dim = given.shape
    rotary = dim if rotary_dim is None else rotary_dim
    if rotary < 2 or rotary % 2 or rotary > dim:
        raise ShapeError(f"[rope] expected an even rotary_dim from 2 to {dim}, got {rotary}")
    if style not in ("half", "interleaved"):
        raise ShapeError(f"[rope] expected style 'half' or 'interleaved', got {style!r}")
    if not 1 <= theta < np.inf:
        raise ShapeError(f"[rope] expected theta of at least 1, got {theta}")
    if not 0 < scale < np.inf:
        raise ShapeError(f"[rope] expected scale above 0, got {scale}")
    factors = None
    if freq_factors is not None:
        factors = f32_vector("rope", "freq_factors", freq_factors, rotary // 2)
        if not ((factors > 0) & (factors < np.inf)).all():
            raise ShapeError("[rope] expected freq_factors that are finite and above 0")
    places = np.asarray(positions)
    whole = places.dtype.kind in "iu" and places.dtype != np.uint64
    if places.shape != (tokens,) or not (whole or tokens == 0):
        raise ShapeError(
            f"[rope] expected positions of int64 ({tokens},), got {places.dtype} {places.shape}"
        )
    result = f32_result("rope", out, given.shape, (x, freq_factors))
    if not given.size:
        return result
    places = np.ascontiguousarray(places, np.int64)
    interleaved = style == "interleaved"
    try:
        _core.rope(given, places, rotary, interleaved, theta, scale, factors, result, threads or 0)
    except ShapeError:
        # All else was checked above.
        raise ShapeError(
            f"[rope] expected angles up to 1e8, got positions from {places.min()} to {places.max()}"
        ) from None
    return result


def embedding(
    q: QTensor,
    ids: ArrayLike,
    *,
    dtype: Any = "f32",
    out: NDArray[Any] | None = None,
    threads: int | None = None,
) -> NDArray[Any]:
    """Rows of a quantized table [n, k] by number.

    Parameters
    ----------
    q
        The table, of two axes.
    ids
        Whole numbers in 0 .. n - 1, of any shape.
    dtype, out, threads
        As for `QTensor.dequantize`.

    Returns
    -------
    ndarray
        f32, f16 or bf16 [..., k], with the shape of `ids` in front.

    Raises
    ------
    ShapeError
        An id is out of range, or a shape or dtype does not fit.

    Examples
    --------
    >>> import numpy as np, kvant
    >>> table = kvant.quantize(np.arange(96, dtype=np.float32).reshape(3, 32), "f32")
    >>> kvant.embedding(table, [[2, 0]])[..., 0]
    array([[64.,  0.]], dtype=float32)
    """
    if q.ndim != 2:
        raise ShapeError(f"[embedding] expected a table of two axes, got shape {q.shape}")
    places = np.asarray(ids)
    if places.dtype.kind not in "iu" and places.size:
        raise ShapeError(f"[embedding] expected whole numbers for ids, got {places.dtype}")
    bad = (places < 0) | (places >= q.shape[0])
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ShapeError(
            f"[embedding] expected ids in 0 .. {q.shape[0] - 1}, got {int(places[first])} "
            f"at {first}"
        )
    shape = (*places.shape, q.shape[1])
    number, kind = float_dtype("embedding", dtype)
    if out is None:
        out = empty(shape, kind)
    elif np.may_share_memory(checked_out("embedding", out, shape, kind), q.data):
        raise ShapeError("[embedding] expected out apart from the table, got its memory")
    data, stride = q.byte_rows()
    index = np.ascontiguousarray(places.reshape(-1), np.int64)
    flat = out.reshape(-1).view(np.uint8)
    _core.embedding(q.info.number, data, stride, index, q.shape[1], number, flat, threads or 0)
    return out
