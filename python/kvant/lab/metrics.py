"""How far one model's next-token distributions are from another's, token by token.

Logits come in as float32; every sum and logarithm is taken in float64, in blocks of rows so that
no temporary is as large as the logits themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..errors import ShapeError

__all__ = ["Comparison", "Divergence", "kl_divergence", "log_softmax", "perplexity"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

_BLOCK_ELEMENTS = 1 << 20


def log_softmax(logits: F32) -> F64:
    """Natural logarithm of the softmax over the last axis, in float64.

    Parameters
    ----------
    logits : float32, shape [..., vocab]

    Returns
    -------
    float64 array of the same shape. A row with a NaN or with +inf becomes NaN.

    >>> log_softmax(np.zeros((1, 4), np.float32)).round(4)
    array([[-1.3863, -1.3863, -1.3863, -1.3863]])
    """
    x = np.asarray(logits, dtype=np.float64)
    if x.ndim < 1 or x.shape[-1] == 0:
        raise ShapeError(f"[log_softmax] expected a last axis of at least 1, got shape {x.shape}")
    with np.errstate(invalid="ignore"):
        shifted = x - x.max(axis=-1, keepdims=True)
    out: F64 = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return out


def _kl_of_logs(log_p: F64, log_q: F64) -> F64:
    p = np.exp(log_p)
    with np.errstate(invalid="ignore"):
        # Where p is 0 the term is 0, whatever q is.
        terms = np.where(p > 0.0, p * (log_p - log_q), p)
    # The sum of a divergence cannot be negative; rounding could make it so by about 1e-17.
    result: F64 = np.maximum(terms.sum(axis=-1), 0.0)
    return result


def kl_divergence(base: F32, test: F32) -> F64:
    """KL(base || test) of each row, in nats.

    Parameters
    ----------
    base, test : float32 logits, shape [rows, vocab]

    Returns
    -------
    float64, shape [rows]. Exactly 0 where the two rows are the same; infinite where `test` gives
    probability 0 to what `base` allows.

    Raises
    ------
    ShapeError
        If the two are not matrices of one shape.

    >>> a = np.array([[1.0, 2.0, 3.0]], np.float32)
    >>> float(kl_divergence(a, a)[0])
    0.0
    >>> float(kl_divergence(a, a[:, ::-1].copy())[0].round(6))
    1.150421
    """
    _same_matrices("kl_divergence", base, test)
    out = np.empty(base.shape[0], np.float64)
    for rows in _row_blocks(base.shape):
        out[rows] = _kl_of_logs(log_softmax(base[rows]), log_softmax(test[rows]))
    return out


def perplexity(logits: F32, targets: npt.ArrayLike) -> float:
    """exp of the mean negative log-probability of the targets.

    >>> perplexity(np.zeros((3, 4), np.float32), [0, 1, 2])
    4.0
    """
    scores = Comparison()
    scores.update(logits, logits, targets)
    return scores.result().perplexity


@dataclass(frozen=True)
class Divergence:
    """How a test model compares with its base over all scored tokens.

    `kl_*` are nats per token, `same_top` a share in 0..1, `delta_p_rms` the root mean square change
    of the probability of the right token. `kl_error` is the standard error of `kl_mean` over
    windows, because tokens of one window are not independent; NaN with fewer than two windows.
    """

    tokens: int
    windows: int
    perplexity: float
    base_perplexity: float
    kl_mean: float
    kl_error: float
    kl_median: float
    kl_p99: float
    kl_p999: float
    kl_max: float
    same_top: float
    delta_p_rms: float


@dataclass
class Comparison:
    """Collects the comparison of two models window by window.

    >>> c = Comparison()
    >>> x = np.eye(4, dtype=np.float32)
    >>> c.update(x, x, [0, 1, 2, 3])
    >>> c.result().kl_max, c.result().same_top
    (0.0, 1.0)
    """

    _kl: list[F64] = field(default_factory=list)
    _nll: list[F64] = field(default_factory=list)
    _base_nll: list[F64] = field(default_factory=list)
    _same: list[npt.NDArray[np.bool_]] = field(default_factory=list)

    def update(self, base: F32, test: F32, targets: npt.ArrayLike) -> None:
        """Add one window.

        Parameters
        ----------
        base, test : float32 logits, shape [rows, vocab]
        targets : int, shape [rows]
            The token that really came next after each row.

        Raises
        ------
        ShapeError
            If shapes disagree or a target is outside the vocabulary.
        """
        _same_matrices("Comparison.update", base, test)
        rows, vocab = base.shape
        wanted: I64 = np.asarray(targets, dtype=np.int64)
        if wanted.shape != (rows,):
            raise ShapeError(f"[Comparison.update] expected {rows} targets, got {wanted.shape}")
        if rows == 0:
            return
        if wanted.min() < 0 or wanted.max() >= vocab:
            raise ShapeError(
                f"[Comparison.update] expected targets in 0..{vocab - 1}, "
                f"got {wanted.min()}..{wanted.max()}"
            )
        kl, nll, base_nll = (np.empty(rows, np.float64) for _ in range(3))
        same = np.empty(rows, np.bool_)
        for part in _row_blocks(base.shape):
            log_p, log_q = log_softmax(base[part]), log_softmax(test[part])
            index = wanted[part, None]
            kl[part] = _kl_of_logs(log_p, log_q)
            base_nll[part] = -np.take_along_axis(log_p, index, axis=1)[:, 0]
            nll[part] = -np.take_along_axis(log_q, index, axis=1)[:, 0]
            same[part] = base[part].argmax(axis=1) == test[part].argmax(axis=1)
        self._kl.append(kl)
        self._nll.append(nll)
        self._base_nll.append(base_nll)
        self._same.append(same)

    def result(self) -> Divergence:
        """The figures over everything added so far; ShapeError if that is nothing."""
        if not self._kl:
            raise ShapeError("[Comparison.result] expected at least one scored token, got none")
        kl, nll, base_nll = map(np.concatenate, (self._kl, self._nll, self._base_nll))
        median, p99, p999 = _quantiles(kl, (0.5, 0.99, 0.999))
        change = np.exp(-nll) - np.exp(-base_nll)
        return Divergence(
            tokens=kl.size,
            windows=len(self._kl),
            perplexity=float(np.exp(nll.mean())),
            base_perplexity=float(np.exp(base_nll.mean())),
            kl_mean=float(kl.mean()),
            kl_error=_error_over_windows(self._kl),
            kl_median=median,
            kl_p99=p99,
            kl_p999=p999,
            kl_max=float(kl.max()),
            same_top=float(np.concatenate(self._same).mean()),
            delta_p_rms=float(np.sqrt(np.mean(change * change))),
        )


def _quantiles(values: F64, at: tuple[float, ...]) -> list[float]:
    if not np.isfinite(values).all():
        # Interpolating beside an infinity gives NaN; the next larger value is the honest answer.
        return [float(v) for v in np.quantile(values, at, method="higher")]
    return [float(v) for v in np.quantile(values, at)]


def _error_over_windows(windows: list[F64]) -> float:
    """Standard error of the mean over all tokens, windows being the independent samples."""
    n = len(windows)
    if n < 2:
        return float("nan")
    sums = np.array([w.sum() for w in windows])
    sizes = np.array([w.size for w in windows], np.float64)
    if not np.isfinite(sums).all():
        return float("nan")
    residual = sums - sizes * (sums.sum() / sizes.sum())
    return float(np.sqrt(n / (n - 1) * np.sum(residual * residual)) / sizes.sum())


def _row_blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    step = max(1, _BLOCK_ELEMENTS // max(1, shape[1]))
    for start in range(0, shape[0], step):
        yield slice(start, start + step)


def _same_matrices(function: str, base: F32, test: F32) -> None:
    if base.ndim != 2 or base.shape != test.shape:
        raise ShapeError(
            f"[{function}] expected two matrices of one shape, got {base.shape} and {test.shape}"
        )
