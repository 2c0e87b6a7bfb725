"""How far one model's next-token distributions are from another's, token by token."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..errors import ShapeError
from .divergence import F32, F64, I64, Scores, compare_logits, kl_divergence
from .statistics import Divergence, summarize

__all__ = ["I64", "Comparison", "Divergence", "kl_divergence", "log_softmax", "perplexity"]


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


def perplexity(logits: F32, targets: npt.ArrayLike) -> float:
    """exp of the mean negative log-probability of the targets.

    >>> round(perplexity(np.zeros((3, 4), np.float32), [0, 1, 2]), 12)
    4.0
    """
    scores = Comparison()
    scores.update(logits, logits, targets)
    return scores.result().perplexity


@dataclass
class Comparison:
    """Collects the comparison of two models window by window.

    >>> c = Comparison()
    >>> x = np.eye(4, dtype=np.float32)
    >>> c.update(x, x, [0, 1, 2, 3])
    >>> c.result().kl_max, c.result().same_top
    (0.0, 1.0)
    """

    _windows: list[Scores] = field(default_factory=list)
    _documents: list[object] = field(default_factory=list)

    def update(self, base: F32, test: F32, targets: npt.ArrayLike, document: object = None) -> None:
        """Add one window.

        Parameters
        ----------
        base, test : float32 logits, shape [rows, vocab]
        targets : int, shape [rows]
            The token that really came next after each row.
        document : hashable or None
            Windows of one document are one sample of the 95 % interval; None is one of its own.

        Raises
        ------
        ShapeError
            If shapes disagree or a target is outside the vocabulary.
        """
        self.add(compare_logits(base, test, targets), document)

    def add(self, scores: Scores, document: object = None) -> None:
        """Add one window that has been scored; one without tokens is left out."""
        if scores.kl.size:
            self._windows.append(scores)
            self._documents.append(document)

    def result(self) -> Divergence:
        """The figures over everything added so far; ShapeError if that is nothing."""
        if not self._windows:
            raise ShapeError("[Comparison.result] expected at least one scored token, got none")
        return summarize(self._windows, self._documents)
