"""How far attention of one layer moves when its keys or its values are coded, in float64.

The reference is softmax attention over keys and values as they are. Rows are pairs of a query's
position and a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import ShapeError
from ..kv import KVCache, KVCalibration, KVSide
from .kv_dump import KVDump

__all__ = ["Moved", "Rows", "Try", "coded", "moved"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Rows:
    """Which queries are looked at, and what they see exactly.

    Attributes
    ----------
    positions : int [R]
        Of the queries.
    sink, tail : int
        So many first keys, and so many up to a query's own, count as f16; see `KVPolicy`.
    top : int
        Of each row, so many largest scores are compared.
    """

    positions: npt.NDArray[np.int64]
    sink: int = 0
    tail: int = 0
    top: int = 8


class Try(NamedTuple):
    """One side of a layer, coded.

    Attributes
    ----------
    value : bool
        Whether it is that of values.
    decoded : ndarray or None
        What it is decoded to; None where the codec cannot hold it.
    quantized : bool
        Whether tokens at both ends are kept better, which floats need not.
    """

    value: bool
    decoded: F32 | None
    quantized: bool = True


class Moved(NamedTuple):
    """Errors of one layer with one side coded.

    Attributes
    ----------
    logit_error : float
        RMS of the scores' error over the RMS of the scores, both less their mean of a row.
    kl_mean, kl_p99, kl_max : float
        KL divergence from the right weights of attention, nats a row.
    top_overlap : float
        Share of the largest scores of a row that are still among them.
    output_error : float
        RMS of the outputs' error over their RMS.
    """

    logit_error: float = 0.0
    kl_mean: float = 0.0
    kl_p99: float = 0.0
    kl_max: float = 0.0
    top_overlap: float = 1.0
    output_error: float = 0.0


def coded(
    x: F32, side: KVSide, value: bool, calibration: KVCalibration | None = None
) -> F32 | None:
    """Rows [T, kv_heads, D] as a cache has them after coding; None where its codec cannot.

    Parameters
    ----------
    x
        Keys or values of a layer.
    side
        How they are stored.
    value
        Whether they are values.
    calibration
        Of this layer alone.
    """
    tokens, heads, dim = x.shape
    other = np.zeros((tokens, heads, 1), np.float32)
    sides, dims = (("f32", side), (1, dim)) if value else ((side, "f32"), (dim, 1))
    cache = KVCache(1, heads, dims[0], *sides, value_dim=dims[1], calibration=calibration)
    sequence = cache.sequence()
    try:
        sequence.append(0, *((other, x) if value else (x, other)))
    except ShapeError:
        return None
    decode = sequence.values if value else sequence.keys
    return np.stack([decode(0, head) for head in range(heads)], axis=1)


def moved(dump: KVDump, layer: int, tries: Sequence[Try], rows: Rows) -> list[Moved]:
    """What each try does to a layer.

    Examples
    --------
    >>> import numpy as np
    >>> q = np.zeros((2, 1, 16), np.float32)
    >>> q[:, :, 0] = 4
    >>> v = np.ones_like(q)
    >>> k = np.arange(2, dtype=np.float32)[:, None, None] * q
    >>> rows = Rows(np.array([1]))
    >>> found = moved(KVDump([q], [k], [v]), 0, [Try(False, k * 2), Try(True, v * 1.5)], rows)
    >>> [round(x, 3) for x in (found[0].logit_error, found[0].kl_mean, found[1].output_error)]
    [1.0, 0.054, 0.5]
    """
    sums = [_Sums(rows.top) for _ in tries]
    for head in range(dump.k[layer].shape[1]):
        seen = _Head(dump, layer, head, rows)
        for own, each in zip(sums, tries, strict=True):
            if each.decoded is None:
                own.fail()
            elif each.value:
                own.outputs(seen.output, seen.mix(each.decoded[:, head], each.quantized))
            else:
                own.keys(seen, seen.scores_of(each.decoded[:, head], each.quantized))
    return [own.result(each.value) for own, each in zip(sums, tries, strict=True)]


class _Head:
    """All queries of one key head: scores, weights and outputs as they should be."""

    def __init__(self, dump: KVDump, layer: int, head: int, rows: Rows) -> None:
        k, v = dump.k[layer], dump.v[layer]
        group = dump.q[layer].shape[1] // k.shape[1]
        own = slice(head * group, head * group + group)
        self._q = dump.q[layer][rows.positions, own].reshape(-1, k.shape[2]).astype(np.float64)
        self._scale, self._softcap = dump.scale[layer], dump.softcap
        self._k, self._v = k[:, head], v[:, head].astype(np.float64)
        at = np.repeat(rows.positions, group)[:, None]
        token = np.arange(len(k))
        window = dump.window[layer]
        self.seen: Bools = token <= at
        if window is not None:
            self.seen &= token > at - window
        self._near = (token < rows.sink) | (token > at - rows.tail)
        sinks = dump.sinks[layer]
        # One more column, of a key without a value.
        self._sinks: F64 | None = None
        if sinks is not None:
            self._sinks = np.tile(np.asarray(sinks, np.float64)[own], len(rows.positions))[:, None]
        self._near_scores: F64 | None = None
        self._near_output: F64 | None = None
        if self._near.any():
            self._near_scores = self._scores(_half(self._k))
        self.scores = self._scores(self._k)
        self.logs, self.weights = self.softmax(self.scores)
        self.output = self.mixed(self.weights)
        if self._near_scores is not None:
            near = np.where(self._near, self.weights[:, : len(k)], 0.0)
            self._near_output = near @ _half(v[:, head]).astype(np.float64)
        # What all tries are compared with.
        self.spread = self.centered_squares(self.scores)
        self.many = np.flatnonzero(self.seen.sum(axis=1) > rows.top)
        self.best = self.largest(self.scores, rows.top)

    def _scores(self, k: F32) -> F64:
        scores: F64 = self._q @ k.astype(np.float64).T * self._scale
        if self._softcap:
            scores = self._softcap * np.tanh(scores / self._softcap)
        return scores

    def scores_of(self, k: F32, quantized: bool) -> F64:
        """Scores [rows, T] with coded keys, but those that are seen exactly."""
        scores = self._scores(k)
        if self._near_scores is None or not quantized:
            return scores
        return np.where(self._near, self._near_scores, scores)

    def softmax(self, scores: F64) -> tuple[F64, F64]:
        """Logarithms of the weights, and the weights; -inf and 0 for keys that are not seen."""
        x = np.where(self.seen, scores, -np.inf)
        if self._sinks is not None:
            x = np.concatenate([x, self._sinks], axis=1)
        x -= x.max(axis=1, keepdims=True)
        weights: F64 = np.exp(x)
        total = weights.sum(axis=1, keepdims=True)
        x -= np.log(total)
        weights /= total
        return x, weights

    def mixed(self, weights: F64, v: F64 | None = None) -> F64:
        """Values, as they are or others, mixed with weights."""
        values = self._v if v is None else v
        mixed: F64 = weights[:, : len(values)] @ values
        return mixed

    def mix(self, v: F32, quantized: bool) -> F64:
        """The output with the right weights and coded values, but those that are seen exactly."""
        far = v.astype(np.float64)
        if self._near_output is None or not quantized:
            return self.mixed(self.weights, far)
        weights = np.where(self._near, 0.0, self.weights[:, : len(v)])
        return self._near_output + self.mixed(weights, far)

    def centered_squares(self, x: F64) -> float:
        """Sum of squares of what is seen, less the mean of a row."""
        own = np.where(self.seen, x, 0.0)
        own -= own.sum(1, keepdims=True) / self.seen.sum(1, keepdims=True)
        return float(np.square(own, out=own).sum(where=self.seen))

    def largest(self, scores: F64, count: int) -> Bools:
        """Where the largest of the rows with `many` keys are."""
        x = np.where(self.seen[self.many], -scores[self.many], np.inf)
        found = np.zeros(x.shape, bool)
        if len(x):
            np.put_along_axis(found, np.argpartition(x, count - 1, axis=1)[:, :count], True, axis=1)
        return found


class _Sums:
    """What the heads of a layer add up to."""

    def __init__(self, top: int) -> None:
        self._top = top
        self._logits, self._outputs = np.zeros(2), np.zeros(2)
        self._kl: list[F64] = []
        self._overlap: list[F64] = []
        self._failed = False

    def fail(self) -> None:
        """The codec cannot hold the numbers."""
        self._failed = True

    def outputs(self, right: F64, got: F64) -> None:
        """Add outputs of one head."""
        self._outputs += np.square(got - right).sum(), np.square(right).sum()

    def keys(self, head: _Head, scores: F64) -> None:
        """Add one head with other scores."""
        self._logits += head.centered_squares(scores - head.scores), head.spread
        logs, weights = head.softmax(scores)
        self.outputs(head.output, head.mixed(weights))
        with np.errstate(invalid="ignore"):
            terms = np.where(head.weights > 0, head.weights * (head.logs - logs), 0.0)
        self._kl.append(np.maximum(terms.sum(axis=1), 0.0))
        if len(head.many):
            both = head.best & head.largest(scores, self._top)
            self._overlap.append(both.sum(axis=1) / self._top)

    def result(self, value: bool) -> Moved:
        """The errors of the layer."""
        if self._failed:
            bad = np.inf
            return Moved(output_error=bad) if value else Moved(bad, bad, bad, bad, 0.0, bad)
        output = _ratio(self._outputs)
        if value:
            return Moved(output_error=output)
        kl = np.concatenate(self._kl)
        overlap = float(np.concatenate(self._overlap).mean()) if self._overlap else 1.0
        return Moved(
            _ratio(self._logits),
            float(kl.mean()),
            float(np.quantile(kl, 0.99)),
            float(kl.max()),
            overlap,
            output,
        )


def _half(x: F32) -> F32:
    """Numbers as f16 has them; those out of its reach as they are."""
    with np.errstate(over="ignore"):
        near = x.astype(np.float16).astype(np.float32)
    return np.where(np.isfinite(near), near, x)


def _ratio(sums: Any) -> float:
    """RMS over RMS of two sums of squares; nothing over nothing is no error."""
    error, whole = (float(x) for x in sums)
    if error == 0:
        return 0.0
    return float(np.sqrt(error / whole)) if whole > 0 else float("inf")
