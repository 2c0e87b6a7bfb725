"""Rows of logits compared: the kernel behind every divergence of the lab.

Logits are f32, exponentials are the library's own in f32, all sums and logarithms f64. Nothing of
the size of a vocabulary is allocated. `kvant.reference.divergence` defines every bit;
docs/quality.md has the errors.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .. import _core
from ..arrays import f32_array
from ..errors import ShapeError

__all__ = ["RowDivergence", "Scores", "compare_logits", "kl_divergence", "row_divergence"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

_ROW = np.dtype(
    [("kl", "f8"), ("base_lse", "f8"), ("test_lse", "f8"), ("base_top", "i8"), ("test_top", "i8")]
)


class RowDivergence(NamedTuple):
    """One number per row.

    `kl` is KL(base || test) in nats; `base_lse` and `test_lse` are the logs of the sums of the
    exponentials, so that `x[i] - lse` is the log-probability of token i; `base_top` and `test_top`
    are the indices of the largest logits, the first of equals.
    """

    kl: F64
    base_lse: F64
    test_lse: F64
    base_top: I64
    test_top: I64


class Scores(NamedTuple):
    """What is kept of each scored token.

    `kl` in nats, `nll` and `base_nll` minus the log-probability of the token that came next, `same`
    whether both models find the same token the most likely.
    """

    kl: F64
    nll: F64
    base_nll: F64
    same: npt.NDArray[np.bool_]


def row_divergence(base: F32, test: F32, *, threads: int | None = None) -> RowDivergence:
    """Compare two matrices of logits row by row.

    Parameters
    ----------
    base, test : float32, shape [rows, vocab]
        -inf is a probability of 0. Logits below -2**20 count as -2**20.
    threads : int or None
        At most this many; the set number by default. The bits do not depend on it.

    Returns
    -------
    RowDivergence
        `kl` is exactly 0 where the two rows are the same, and infinite where `test` has -inf and
        `base` has not. A NaN, or a largest logit beyond 2**19 in magnitude, makes a row's sum and
        `kl` NaN.

    Raises
    ------
    ShapeError
        If the two are not f32 matrices of one shape, with at least one column.

    >>> x = np.log(np.float32([[1, 1], [1, 3]]))
    >>> row_divergence(x, x[::-1].copy()).kl.round(6).tolist()
    [0.143841, 0.130812]
    """
    return _rows("row_divergence", base, test, threads)


def kl_divergence(base: F32, test: F32, *, threads: int | None = None) -> F64:
    """KL(base || test) of each row, in nats; see `row_divergence`.

    >>> a = np.array([[1.0, 2.0, 3.0]], np.float32)
    >>> float(kl_divergence(a, a)[0])
    0.0
    >>> float(kl_divergence(a, a[:, ::-1].copy())[0].round(6))
    1.150421
    """
    return _rows("kl_divergence", base, test, threads).kl


def compare_logits(
    base: F32, test: F32, targets: npt.ArrayLike, *, threads: int | None = None
) -> Scores:
    """Score rows of logits [rows, vocab] on the tokens that came next, int [rows].

    Raises
    ------
    ShapeError
        If shapes disagree or a target is outside the vocabulary.

    >>> x = np.eye(2, dtype=np.float32)
    >>> compare_logits(x, x, [0, 1]).nll.round(4).tolist()
    [0.3133, 0.3133]
    """
    found = _rows("compare_logits", base, test, threads)
    at = checked_targets("compare_logits", targets, base.shape)
    index = np.arange(len(at))
    return Scores(
        kl=found.kl,
        nll=found.test_lse - test[index, at],
        base_nll=found.base_lse - base[index, at],
        same=found.base_top == found.test_top,
    )


def checked_targets(function: str, targets: npt.ArrayLike, shape: tuple[int, ...]) -> I64:
    """Targets as int64 [rows], each inside the vocabulary."""
    rows, vocab = shape
    wanted: I64 = np.asarray(targets, dtype=np.int64)
    if wanted.shape != (rows,):
        raise ShapeError(f"[{function}] expected {rows} targets, got {wanted.shape}")
    if rows and (wanted.min() < 0 or wanted.max() >= vocab):
        raise ShapeError(
            f"[{function}] expected targets in 0..{vocab - 1}, got {wanted.min()}..{wanted.max()}"
        )
    return wanted


def _rows(function: str, base: Any, test: Any, threads: int | None) -> RowDivergence:
    p, q = f32_array(function, "base", base), f32_array(function, "test", test)
    if p.ndim != 2 or p.shape != q.shape or not p.shape[1]:
        raise ShapeError(
            f"[{function}] expected two matrices of one shape, got {p.shape} and {q.shape}"
        )
    out = np.empty(len(p), _ROW)
    if len(p):
        _core.divergence(p, q, out.view(np.uint8), threads or 0)
    return RowDivergence(*(np.ascontiguousarray(out[name]) for name in RowDivergence._fields))
