"""Attention over paged keys and values, in NumPy alone: the definition, bit for bit.

Keys are taken page by page (64), pages in chunks of eight that start from nothing and are merged in
order. Everything is f32, rounded after each step, `fma` once for both of its own. Rows of queries
go side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .fma import fma
from .numeric import F32, canonical, f32
from .ops import _log64, exp, halve, lane_parts

__all__ = [
    "CHUNK_PAGES",
    "PAGE_TOKENS",
    "State",
    "attend_heads",
    "attend_rows",
    "attention",
    "chain_scores",
    "finish",
    "mix_floats",
]

PAGE_TOKENS, CHUNK_PAGES = 64, 8
_MINUS_INFINITY = np.float32(-np.inf)

Index: TypeAlias = NDArray[np.intp]
Bools: TypeAlias = NDArray[np.bool_]

Mix: TypeAlias = Callable[[int, Index, F32, Bools, F32], F32]
"""mixed after a page: (first token, rows, weights and seen [rows, 64], mixed [rows, E])."""
Prepare: TypeAlias = Callable[[int, Index, F32], tuple[F32, Mix]]


class State(NamedTuple):
    """What rows have gathered: the largest score, sums of weights as lanes, the weighted values.

    largest    float32 [rows]
    total      float32 [rows, 16]
    mixed      float32 [rows, E]
    """

    largest: F32
    total: F32
    mixed: F32

    def sum(self) -> F32:
        """Of all weights: float32 [rows]."""
        return f32(halve(self.total)[:, 0])


def attention(
    q: F32,
    k: F32,
    v: F32,
    scale: float,
    *,
    window: int | None = None,
    sinks: F32 | None = None,
    dtype: type = np.float16,
) -> F32:
    """Causal attention of the last T of S tokens; query head h reads key head h * G // H.

    Parameters
    ----------
    q
        f32 [T, H, D].
    k, v
        f32 [S, G, D] and [S, G, E], rounded to `dtype` here.
    scale
        Of the scores.
    window
        Keys a token sees at most, its own among them.
    sinks
        f32 [H], scores of keys without a value.
    dtype
        Of the cache: np.float16 or np.float32.

    Returns
    -------
    ndarray
        f32 [T, H, E].

    Examples
    --------
    >>> import numpy as np
    >>> one = np.ones((2, 1, 4), np.float32)
    >>> attention(one, one, one * np.float32([[[1]], [[3]]]), 1.0)[:, 0, 0].tolist()
    [1.0, 2.0]
    """
    tokens = len(q)
    seen, groups, width = v.shape
    with np.errstate(all="ignore"):
        keys = canonical(k).astype(dtype).astype(np.float32)
        values = canonical(v).astype(dtype).astype(np.float32)
    end = seen - tokens + 1 + np.arange(tokens)
    begin = np.zeros_like(end) if window is None else np.maximum(0, end - window)

    def prepare(group: int, own: Index, rows: F32) -> tuple[F32, Mix]:
        with np.errstate(all="ignore"):
            scores = chain_scores(rows, keys[:, group]) * np.float32(scale)
        return scores, mix_floats(values[:, group])

    return attend_heads(q, groups, width, begin, end, sinks, prepare)[0]


def attend_heads(
    q: F32, groups: int, width: int, begin: Index, end: Index, sinks: F32 | None, prepare: Prepare
) -> tuple[F32, F32]:
    """Attention of all heads: `attend_rows` for the rows of each key head.

    Parameters
    ----------
    q
        f32 [T, H, D].
    groups
        G; query head h reads key head h * G // H.
    width
        E, of the values.
    begin, end
        int [T], the tokens that each token sees.
    sinks
        f32 [H] or None.
    prepare
        Scores [rows, S] and the way to mix values, given the number of a key head, the query heads
        that read it, and their rows of q [rows, D], tokens slowest.

    Returns
    -------
    tuple
        f32 [T, H, E] and f32 [T, H], as from `finish`.

    Examples
    --------
    >>> import numpy as np
    >>> q, ends = np.ones((1, 2, 1), np.float32), np.array([2])
    >>> def prepare(group, heads, rows):
    ...     return np.zeros((2, 2), np.float32), mix_floats(np.float32([[1], [3]]))
    >>> attend_heads(q, 1, 1, ends * 0, ends, None, prepare)[0].tolist()
    [[[2.0], [2.0]]]
    """
    tokens, heads, _ = q.shape
    out, sums = np.empty((tokens, heads, width), np.float32), np.empty((tokens, heads), np.float32)
    group_of = np.arange(heads) * groups // heads
    for group in range(groups):
        own = np.flatnonzero(group_of == group)
        scores, mix = prepare(group, own, q[:, own].reshape(tokens * len(own), -1))
        first, last = np.repeat(begin, len(own)), np.repeat(end, len(own))
        state = attend_rows(scores, first, last, width, mix)
        means, lse = finish(state, None if sinks is None else np.tile(sinks[own], tokens))
        out[:, own] = means.reshape(tokens, len(own), width)
        sums[:, own] = lse.reshape(tokens, len(own))
    return out, sums


def chain_scores(q: F32, k: F32) -> F32:
    """Products of queries [rows, D] and keys [S, D], one fma for each of D in order: [rows, S].

    Examples
    --------
    >>> import numpy as np
    >>> chain_scores(np.float32([[1, 2]]), np.float32([[3, 4], [5, 6]])).tolist()
    [[11.0, 17.0]]
    """
    total = np.zeros((len(q), len(k)), np.float32)
    for x, column in zip(q.T, k.T, strict=True):
        total = fma(x[:, None], column, total)
    return total


def mix_floats(v: F32) -> Mix:
    """Values [S, E] as f32: one fma for each key that a row sees, in order.

    Examples
    --------
    >>> import numpy as np
    >>> mix, seen = mix_floats(np.float32([[2], [3]])), np.arange(64)[None] == 1
    >>> mix(0, np.array([0]), np.ones((1, 64), np.float32), seen, np.zeros((1, 1), np.float32))
    array([[3.]], dtype=float32)
    """

    def mix(page: int, rows: Index, weights: F32, seen: Bools, mixed: F32) -> F32:
        for j, value in enumerate(v[page : page + PAGE_TOKENS]):
            if seen[:, j].any():
                added = fma(weights[:, j, None], value, mixed)
                mixed = f32(np.where(seen[:, j, None], added, mixed))
        return mixed

    return mix


def attend_rows(scores: F32, begin: Index, end: Index, width: int, mix: Mix) -> State:
    """Gather what each row sees, chunk by chunk.

    Parameters
    ----------
    scores
        f32 [rows, S].
    begin, end
        int [rows]: row i sees the tokens from begin[i] until before end[i].
    width
        E, of the values.
    mix
        Adds the values of a page.

    Returns
    -------
    State

    Examples
    --------
    >>> import numpy as np
    >>> v, ends = np.float32([[1], [3], [8]]), np.array([2])
    >>> state = attend_rows(np.zeros((1, 3), np.float32), ends * 0, ends, 1, mix_floats(v))
    >>> [each.tolist() for each in (state.largest, state.sum(), state.mixed)]
    [[0.0], [2.0], [[4.0]]]
    """
    count, tokens = scores.shape
    size = PAGE_TOKENS * CHUNK_PAGES
    total = _nothing(count, width)
    last = min(tokens, int(end.max(initial=0)))
    for chunk in range(int(begin.min(initial=0)) // size * size, last, size):
        state = _nothing(count, width)
        for page in range(chunk, min(chunk + size, last), PAGE_TOKENS):
            token = page + np.arange(PAGE_TOKENS)
            seen = (token >= begin[:, None]) & (token < np.minimum(end, tokens)[:, None])
            rows = np.flatnonzero(seen.any(axis=1))
            if not rows.size:
                continue
            part = np.full((rows.size, PAGE_TOKENS), _MINUS_INFINITY)
            shown = scores[rows, page : page + PAGE_TOKENS]
            part[:, : shown.shape[1]] = shown
            part[~seen[rows]] = _MINUS_INFINITY
            before = State(*(each[rows] for each in state))
            for each, new in zip(
                state, _add_page(before, part, mix, page, rows, seen[rows]), strict=True
            ):
                each[rows] = new
        total = _merge(total, state)
    return total


def _nothing(rows: int, width: int) -> State:
    zeros = np.zeros((rows, width), np.float32)
    return State(np.full(rows, _MINUS_INFINITY), np.zeros((rows, 16), np.float32), zeros)


def _add_page(state: State, scores: F32, mix: Mix, page: int, rows: Index, seen: Bools) -> State:
    before, total, mixed = state
    with np.errstate(all="ignore"):
        # A NaN is no largest score; it spreads through its weight.
        nan = np.isnan(scores)
        top = np.where(nan, _MINUS_INFINITY, scores).max(axis=1)
        largest = np.maximum(top, before)
        # Nothing but -inf so far has no weight; a NaN is one.
        none = largest == _MINUS_INFINITY
        rest = np.where(nan, scores, np.float32(0))
        weights = f32(np.where(none[:, None], rest, exp(scores - largest[:, None])))
        a = f32(np.where(none, np.float32(1), exp(before - largest)))
        sums = total * a[:, None] + lane_parts(weights)
        return State(largest, sums, mix(page, rows, weights, seen, mixed * a[:, None]))


def _empty(state: State) -> Bools:
    found: Bools = (state.largest == _MINUS_INFINITY) & (state.sum() == 0)
    return found


def _merge(one: State, two: State) -> State:
    largest = np.maximum(one.largest, two.largest)
    with np.errstate(all="ignore"):
        a, b = exp(one.largest - largest), exp(two.largest - largest)
        total = fma(two.total, b[:, None], one.total * a[:, None])
        mixed = fma(two.mixed, b[:, None], one.mixed * a[:, None])
    both = State(largest, total, mixed)
    first, second = _empty(two), _empty(one) & ~_empty(two)
    chosen = []
    for x, y, z in zip(one, two, both, strict=True):
        shape = (-1, *[1] * (x.ndim - 1))
        chosen.append(f32(np.where(first.reshape(shape), x, np.where(second.reshape(shape), y, z))))
    return State(*chosen)


def finish(state: State, sink: F32 | None) -> tuple[F32, F32]:
    """Weighted means [rows, E], and the logarithm of the sum of all weights [rows].

    `sink` f32 [rows] is one more score, without a value. Rows that saw nothing have zeros, and the
    sink's score or -inf. No zero is negative.

    Examples
    --------
    >>> import numpy as np
    >>> state = State(np.float32([0]), np.float32([[2] + 15 * [0]]), np.float32([[4]]))
    >>> [each.tolist() for each in finish(state, None)]
    [[[2.0]], [0.6931471824645996]]
    """
    largest, total, mixed = state.largest, state.sum(), state.mixed
    empty = _empty(state)
    with np.errstate(all="ignore"):
        if sink is not None:
            top = np.maximum(largest, sink)
            factor = exp(largest - top)
            largest, total = top, total * factor + exp(sink - top)
            mixed = mixed * factor[:, None]
        out = canonical(mixed * (np.float32(1) / total)[:, None] + np.float32(0))
        lse = f32(largest.astype(np.float64) + np.array([_log64(float(x)) for x in total]))
    zero = np.where(empty[:, None], np.float32(0), out)
    nothing = _MINUS_INFINITY if sink is None else sink
    return f32(zero), canonical(f32(np.where(empty, nothing, lse)))
