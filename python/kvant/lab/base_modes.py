"""What a `.kvl` file keeps of a scored position, and how a test model is compared with it.

hidden       the final hidden state in f32; exact where the head that makes logits of it is shared
hidden-f16   the same in f16
f16          logits minus their largest, in f16
topk         the k largest log-probabilities and the log of what is left
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import Error, ShapeError
from .divergence import F32, F64, I64, Scores, checked_targets, compare_logits, row_divergence

__all__ = ["MODES", "Head", "Mode", "TopK"]

Bytes = npt.NDArray[np.uint8]
Head = Callable[[F32], F32]
"""Hidden states [rows, width] to logits [rows, vocab]."""


class Mode(Protocol):
    """One way to keep rows. `size` is the width of hidden states or k, 0 where there is none."""

    @property
    def number(self) -> int:
        """What stands in the file."""

    @property
    def hidden(self) -> bool:
        """Whether rows are hidden states."""

    @property
    def sized(self) -> bool:
        """Whether there is a size."""

    def row_bytes(self, vocab: int, size: int) -> int:
        """Bytes of one scored position."""

    def encode(self, rows: F32, targets: I64, size: int) -> Bytes:
        """Rows as bytes [rows, row_bytes]."""

    def decode(self, data: Bytes, vocab: int, size: int) -> Any:
        """What is stored: hidden states, logits, or a TopK."""

    def compare(self, stored: Any, test: F32, targets: I64, head: Head | None) -> Scores:
        """Score a test model's logits."""


class TopK(NamedTuple):
    """The most likely tokens [rows, k], from the most likely on, and what is left.

    `log_p` are their log-probabilities, `tail` the log of the sum of all others, `target` the
    log-probability of the token that came next.
    """

    ids: npt.NDArray[np.int64]
    log_p: F32
    tail: F32
    target: F32


@dataclass(frozen=True)
class Plain:
    """Floats of one type: hidden states or logits."""

    number: int
    dtype: str
    hidden: bool

    @property
    def sized(self) -> bool:
        return self.hidden

    def row_bytes(self, vocab: int, size: int) -> int:
        return np.dtype(self.dtype).itemsize * (size if self.hidden else vocab)

    def encode(self, rows: F32, targets: I64, size: int) -> Bytes:
        values = rows if self.hidden else rows - rows.max(axis=1, keepdims=True)
        if self.dtype == "<f2":
            # -inf stays; what f16 cannot hold otherwise is its largest number.
            limit = np.float32(65504)
            values = np.where(np.isinf(values), values, np.clip(values, -limit, limit))
        return np.ascontiguousarray(values, self.dtype).view(np.uint8)

    def decode(self, data: Bytes, vocab: int, size: int) -> F32:
        return np.ascontiguousarray(data).view(self.dtype).astype(np.float32)

    def compare(self, stored: F32, test: F32, targets: I64, head: Head | None) -> Scores:
        if self.hidden and head is None:
            raise Error("[LogitBase.compare] expected a head for hidden states, got none")
        logits = head(stored) if self.hidden and head is not None else stored
        return compare_logits(np.asarray(logits, np.float32), test, targets)


_LEAST_LOG = float(np.log(2.0**-1000))


@dataclass(frozen=True)
class MostLikely:
    """The k largest log-probabilities, u32 and f32, behind those of the target and the rest."""

    number: int
    sized: bool = True
    hidden: bool = False

    def row_bytes(self, vocab: int, size: int) -> int:
        return 8 + 8 * size

    def encode(self, rows: F32, targets: I64, size: int) -> Bytes:
        lse = row_divergence(rows, rows).base_lse[:, None]
        ids: I64 = np.argpartition(-rows, size - 1, axis=1)[:, :size]
        # The largest first, the smaller number first among equals.
        ids = np.sort(ids, axis=1)
        order = np.argsort(-np.take_along_axis(rows, ids, axis=1), axis=1, kind="stable")
        ids = np.take_along_axis(ids, order, axis=1)
        logits = np.take_along_axis(rows, ids, axis=1)
        log_p = logits - lse
        tail = _log_rest(rows, ids)[:, None]
        target = np.take_along_axis(rows, targets[:, None], axis=1) - lse
        parts = [target, tail, log_p]
        floats = [part.astype("<f4").view(np.uint8) for part in parts]
        return np.concatenate([*floats, ids.astype("<u4").view(np.uint8)], axis=1)

    def decode(self, data: Bytes, vocab: int, size: int) -> TopK:
        floats = np.ascontiguousarray(data[:, : 8 + 4 * size]).view("<f4")
        ids = np.ascontiguousarray(data[:, 8 + 4 * size :]).view("<u4").astype(np.int64)
        return TopK(ids, floats[:, 2:], floats[:, 1], floats[:, 0])

    def compare(self, stored: TopK, test: F32, targets: I64, head: Head | None) -> Scores:
        """`kl` is a lower bound: tokens outside the k are taken as one."""
        at = checked_targets("LogitBase.compare", targets, test.shape)
        if stored.ids.max(initial=0) >= test.shape[1]:
            raise ShapeError(f"[LogitBase.compare] expected ids below {test.shape[1]}, got others")
        found = row_divergence(test, test)
        log_q: F64 = np.take_along_axis(test, stored.ids, axis=1) - found.base_lse[:, None]
        log_p = stored.log_p.astype(np.float64)
        # The base's rest may have been rounded up from nothing.
        rest = np.maximum(_log_rest(test, stored.ids), _LEAST_LOG)
        kl = _terms(log_p, log_q).sum(axis=1) + _terms(stored.tail.astype(np.float64), rest)
        return Scores(
            kl=np.maximum(kl, 0.0),
            nll=found.base_lse - test[np.arange(len(at)), at],
            base_nll=-stored.target.astype(np.float64),
            same=stored.ids[:, 0] == found.base_top,
        )


def _log_rest(rows: F32, ids: I64) -> F64:
    """Log-probability of all tokens but those of `ids`, summed up: as a difference it is lost."""
    out = np.empty(len(rows))
    for row in range(len(rows)):
        exps = np.exp(rows[row].astype(np.float64) - float(rows[row].max()))
        total = exps.sum()
        exps[ids[row]] = 0.0
        with np.errstate(divide="ignore"):
            out[row] = np.log(exps.sum() / total)
    return out


def _terms(log_p: F64, log_q: F64) -> F64:
    """p log(p / q), 0 where p is."""
    with np.errstate(invalid="ignore"):
        return np.where(log_p == -np.inf, 0.0, np.exp(log_p) * (log_p - log_q))


MODES: Mapping[str, Mode] = {
    "hidden": Plain(0, "<f4", hidden=True),
    "hidden-f16": Plain(1, "<f2", hidden=True),
    "f16": Plain(2, "<f2", hidden=False),
    "topk": MostLikely(3),
}
