"""Which tokens a cache keeps: scorers, and budgets over heads.

The scorers are those of kvpress (NVIDIA), each after its paper; a new one is a class with a method
`scores`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kvant.errors import ShapeError
from kvant.kv.arguments import own_place
from kvant.kv.rope import KVRope
from kvant.kv.selection import Tokens, keep_only

if TYPE_CHECKING:
    from kvant.kv.sequence import KVSequence

__all__ = ["ExpectedAttention", "Head", "Kept", "KeyDiff", "Scorer", "SnapKV", "StreamingLLM"]

Array = NDArray[np.float32]
F64 = NDArray[np.float64]
Kept: TypeAlias = dict[int, list[Tokens]]
Queries: TypeAlias = Mapping[int, Array] | Sequence[Array]
"""Of each layer, by its number: f32 [tokens, heads, head_dim]."""


class Head(NamedTuple):
    """Which head is scored: its layer and number, how many there are, and the layer's tokens."""

    layer: int
    number: int
    heads: int
    length: int

    def queries(self, given: Queries) -> F64:
        """Of the query heads that read this one, [tokens, group, head_dim]."""
        q = np.asarray(given[self.layer], np.float64)
        if q.ndim != 3 or not len(q) or q.shape[1] % self.heads or not q.shape[1]:
            raise ShapeError(
                f"[evict] expected queries [T, a multiple of {self.heads}, head_dim] of layer "
                f"{self.layer}, got {q.shape}"
            )
        group = q.shape[1] // self.heads
        return q[:, self.number * group : (self.number + 1) * group]


class Scorer(Protocol):
    """What says which tokens are worth keeping."""

    def scores(self, keys: Array, values: Array, head: Head) -> NDArray[Any]:
        """Of one head, keys f32 [T, head_dim] and values f32 [T, value_dim]: [T], higher is kept.

        Infinity for what stays in any case.
        """


@dataclass(frozen=True)
class StreamingLLM:
    """The first `sink` tokens and the last (Xiao et al. 2023, "Attention Sinks").

    >>> x = np.zeros((4, 32), np.float32)
    >>> StreamingLLM(sink=1).scores(x, x, Head(0, 0, 1, 4)).tolist()
    [inf, 1.0, 2.0, 3.0]
    """

    sink: int = 4

    def scores(self, keys: Array, values: Array, head: Head) -> F64:
        """Places, and infinity for sinks."""
        places = np.arange(len(keys), dtype=np.float64)
        places[: self.sink] = np.inf
        return places


@dataclass(frozen=True)
class KeyDiff:
    """Keys unlike the mean of all directions (Park et al. 2025, "KeyDiff").

    >>> keys = np.float32([[1, 0], [1, 0], [0, 1]])
    >>> KeyDiff().scores(keys, keys, Head(0, 0, 1, 3)).argmax()
    np.int64(2)
    """

    def scores(self, keys: Array, values: Array, head: Head) -> F64:
        """Minus the cosine of each key and the mean of all keys of length one."""
        directions = _directions(keys.astype(np.float64))
        return -(directions @ _directions(directions.mean(0)))


@dataclass(frozen=True, eq=False)
class SnapKV:
    """What the last tokens attend to (Li et al. 2024, "SnapKV").

    Attributes
    ----------
    queries
        Of each layer, as attention takes them: f32 [tokens, heads, head_dim], the last `window` of
        which are of the last tokens of the sequence.
    window : int
        So many last tokens ask, and stay.
    kernel : int
        Weights are averaged over so many neighbours; odd.
    scale : float or None
        Of the scores; head_dim ** -0.5 by default.
    """

    queries: Queries
    window: int = 64
    kernel: int = 5
    scale: float | None = None

    def __post_init__(self) -> None:
        if self.window < 1 or self.kernel < 1 or self.kernel % 2 == 0:
            raise ShapeError(
                "[SnapKV] expected a window of at least 1 and an odd kernel, "
                f"got {self.window} and {self.kernel}"
            )

    def scores(self, keys: Array, values: Array, head: Head) -> F64:
        """Mean softmax weights over queries and group, infinity for the window."""
        q = head.queries(self.queries)[-self.window :]
        asking, before = len(q), len(keys) - len(q)
        if before <= 0:
            return np.full(len(keys), np.inf)
        scale = keys.shape[1] ** -0.5 if self.scale is None else self.scale
        logits = q.swapaxes(0, 1) @ keys.astype(np.float64).T * scale
        unseen = np.arange(len(keys)) > before + np.arange(asking)[:, None]
        weights = _softmax(np.where(unseen, -np.inf, logits))[..., :before].mean(1)
        kernel, half = np.full(self.kernel, 1 / self.kernel), self.kernel // 2
        pooled = [np.convolve(row, kernel)[half : half + before] for row in weights]
        scores = np.mean(pooled, 0)
        return np.concatenate([scores, np.full(asking, np.inf)])


@dataclass(frozen=True, eq=False)
class ExpectedAttention:
    """What queries yet to come will attend to (Devoto et al. 2025, "Expected Attention").

    Queries are taken for normal, with the mean and covariance of those given, and turned by the
    next positions on average.

    Attributes
    ----------
    queries
        Of each layer, without positions: f32 [tokens, heads, head_dim]. Those that attention
        takes have theirs taken back by `rope.turn(q, -positions)`.
    rope : KVRope, or one or None for each layer
        How positions are put in.
    future : int
        Positions that are averaged over.
    sink : int
        First queries that do not count, and first tokens that stay.
    scale : float or None
        Of the scores; head_dim ** -0.5 by default.
    """

    queries: Queries
    rope: KVRope | Sequence[KVRope | None] | None
    future: int = 512
    sink: int = 4
    scale: float | None = None

    def scores(self, keys: Array, values: Array, head: Head) -> F64:
        """softmax(k . mu scale + k' C k scale^2 / 2) averaged over the group, times |v|."""
        if len(keys) <= self.sink:
            return np.full(len(keys), np.inf)
        q = head.queries(self.queries)
        q = q[self.sink :] if len(q) > self.sink else q
        dim = keys.shape[1]
        scale = dim**-0.5 if self.scale is None else self.scale
        turn = self._mean_turn(head, dim)
        mean = q.mean(0)
        off = q - mean
        covariance = np.einsum("qgi,qgj->gij", off, off, optimize=True) / len(q)
        mean, covariance = mean @ turn.T, turn @ covariance @ turn.T
        k = keys.astype(np.float64)[self.sink :]
        logits = mean @ k.T * scale
        logits += [((k @ each) * k).sum(1) * scale**2 / 2 for each in covariance]
        v = np.linalg.norm(values.astype(np.float64)[self.sink :], axis=1)
        scores = _softmax(logits).mean(0) * v
        return np.concatenate([np.full(min(self.sink, len(keys)), np.inf), scores])

    def _mean_turn(self, head: Head, dim: int) -> F64:
        """The mean of the rotations of the next positions, as a matrix that acts on columns."""
        rope = self.rope
        how = rope[head.layer] if isinstance(rope, Sequence) else rope
        if how is None:
            return np.eye(dim)
        ends = np.arange(head.length, head.length + self.future)
        ones = np.broadcast_to(np.eye(dim, dtype=np.float32), (len(ends), dim, dim))
        return np.asarray(how.turn(np.ascontiguousarray(ones), ends).mean(0, dtype=np.float64)).T


def evict(
    seq: KVSequence,
    scorer: Scorer,
    keep: float,
    layers: Sequence[int] | None,
    sink: int,
    recent: int,
    shared: bool,
    floor: float,
    threads: int | None,
) -> Kept:
    """Let go of tokens; arguments are those of `KVSequence.evict`."""
    share = isinstance(keep, float | np.floating)
    if not (0 < keep < 1 if share else isinstance(keep, int | np.integer) and keep >= 1):
        raise ShapeError(f"[evict] expected a whole number above 0 or a share below 1, got {keep}")
    if sink < 0 or recent < 0 or not 0 <= floor <= 1:
        raise ShapeError(
            "[evict] expected sink and recent of at least 0 and a floor from 0 to 1, "
            f"got {sink}, {recent} and {floor}"
        )
    cache = seq.cache
    if layers is None:
        layers = [n for n in cache.owned if cache.shapes[n].sees_all]
    kept: Kept = {}
    held = {}
    for layer in layers:
        own_place("evict", cache, layer)
        heads = cache.shapes[layer].kv_heads
        scores = [
            _scores(seq, scorer, Head(layer, n, heads, seq.layer_length(layer)), sink, recent)
            for n in range(heads)
        ]
        held[layer] = [len(own) for own in scores]
        budgets = [_budget(len(own), keep, share) for own in scores]
        kept[layer] = (
            _shared(scores, budgets, floor)
            if shared
            else [_best(*each) for each in zip(scores, budgets, strict=True)]
        )
    keep_only(seq, kept, held, threads)
    return kept


def _scores(seq: KVSequence, scorer: Scorer, head: Head, sink: int, recent: int) -> F64:
    keys = seq.keys(head.layer, head.number)
    given = scorer.scores(keys, seq.values(head.layer, head.number), head)
    scores = np.array(given, np.float64)
    if scores.shape != (len(keys),) or np.isnan(scores).any():
        raise ShapeError(
            f"[evict] expected scores ({len(keys)},) that are numbers, got {scores.shape} "
            f"with {np.isnan(scores).sum()} that are none"
        )
    scores[:sink] = np.inf
    scores[max(len(scores) - recent, 0) :] = np.inf
    return scores


def _budget(held: int, keep: float, share: bool) -> int:
    return min(max(int(held * keep), 1), held) if share else min(int(keep), held)


def _best(scores: F64, count: int) -> Tokens:
    """The best so many, ascending; the first of equals."""
    order = np.argsort(-scores, kind="stable")[:count]
    return np.sort(order).astype(np.int64)


def _shared(scores: list[F64], budgets: list[int], floor: float) -> list[Tokens]:
    """All heads' best, of each head at least `floor` of its own part."""
    raised = []
    for own, budget in zip(scores, budgets, strict=True):
        safe = _best(own, min(max(int(budget * floor), 1), len(own)))
        # Above infinity there is nothing: what is safe comes first among equals.
        order = np.zeros((len(own), 2))
        order[safe, 0] = 1
        order[:, 1] = own
        raised.append(order)
    both = np.concatenate(raised)
    chosen = np.zeros(len(both), bool)
    chosen[np.lexsort((-both[:, 1], -both[:, 0]))[: sum(budgets)]] = True
    ends = np.cumsum([len(own) for own in scores])[:-1]
    return [np.flatnonzero(part).astype(np.int64) for part in np.split(chosen, ends)]


def _directions(x: F64) -> F64:
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.where(length > 0, length, 1)


def _softmax(x: F64) -> F64:
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))
