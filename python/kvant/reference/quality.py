"""How far decoded weights are from the originals, in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

F64: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class QuantError:
    """Errors of y against x; each is a float64 scalar array, or one number per row.

    rmse            sqrt(mean (y - x)^2)
    relative_rmse   rmse / sqrt(mean x^2)
    weighted        sqrt(sum w (y - x)^2 / sum w x^2), w the importance; equal weights without one
    max             largest |y - x|
    cosine          sum x y / sqrt(sum x^2 * sum y^2)

    A quotient of two zeros counts as no error: 0 for the errors, 1 for the cosine.
    """

    rmse: F64
    relative_rmse: F64
    weighted: F64
    max: F64
    cosine: F64


def _quotient(over: ArrayLike, under: ArrayLike, empty: float) -> F64:
    above, below = np.asarray(over, np.float64), np.asarray(under, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = above / below
    return np.asarray(np.where((above == 0) & (below == 0), empty, ratio), np.float64)


def quant_error(
    x: ArrayLike, y: ArrayLike, importance: ArrayLike | None = None, per_row: bool = False
) -> QuantError:
    """Compare decoded numbers with the originals.

    Parameters
    ----------
    x, y : float32 [..., cols]
        Originals and decoded numbers, of the same shape.
    importance : float32 [cols], optional
        Weight of each column in `weighted`.
    per_row : bool
        One number per row of `x` (shape [...]) in place of one for the whole.

    Returns
    -------
    QuantError

    Raises
    ------
    ValueError
        The shapes do not fit each other.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[3.0, 4.0]], np.float32)
    >>> float(quant_error(x, np.array([[3.0, 3.0]], np.float32)).relative_rmse)
    0.2
    """
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if a.shape != b.shape or a.ndim == 0:
        raise ValueError(f"[quant_error] expected equal shapes, got {a.shape} and {b.shape}")
    w = np.ones(a.shape[-1]) if importance is None else np.asarray(importance, np.float64)
    if w.shape != (a.shape[-1],):
        raise ValueError(f"[quant_error] expected importance of ({a.shape[-1]},), got {w.shape}")
    axis = -1 if per_row else None
    miss = a - b
    xx, yy, xy = (np.sum(each, axis=axis) for each in (a * a, b * b, a * b))
    squares = np.sum(miss * miss, axis=axis)
    count = a.shape[-1] if per_row else a.size
    weighted = np.sum(w * miss * miss, axis=axis), np.sum(w * a * a, axis=axis)
    return QuantError(
        rmse=np.sqrt(squares / max(count, 1)),
        relative_rmse=np.sqrt(_quotient(squares, xx, 0.0)),
        weighted=np.sqrt(_quotient(*weighted, 0.0)),
        max=np.max(np.abs(miss), axis=axis, initial=0.0),
        cosine=_quotient(xy, np.sqrt(xx) * np.sqrt(yy), 1.0),
    )
