"""Attention over paged keys and values, in NumPy alone: the definition, bit for bit.

Keys are taken page by page (64), pages in chunks of eight that start from nothing and are merged in
order. Everything is f32, rounded after each step, `fma` once for both of its own.
"""

from __future__ import annotations

import numpy as np

from .fma import fma
from .numeric import F32, canonical
from .ops import exp, lane_sum

__all__ = ["CHUNK_PAGES", "PAGE_TOKENS", "attention"]

PAGE_TOKENS, CHUNK_PAGES = 64, 8
_MINUS_INFINITY = np.float32(-np.inf)

State = tuple[np.float32, np.float32, F32]


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
    tokens, heads, _ = q.shape
    seen, groups, width = v.shape
    with np.errstate(all="ignore"):
        keys = canonical(k).astype(dtype).astype(np.float32)
        values = canonical(v).astype(dtype).astype(np.float32)
    out = np.empty((tokens, heads, width), np.float32)
    for token in range(tokens):
        end = seen - tokens + token + 1
        begin = 0 if window is None else max(0, end - window)
        for head in range(heads):
            group = head * groups // heads
            state = _row(q[token, head], keys[:, group], values[:, group], scale, begin, end)
            out[token, head] = _finish(state, None if sinks is None else sinks[head], width)
    return out


def _row(q: F32, k: F32, v: F32, scale: float, begin: int, end: int) -> State | None:
    total: State | None = None
    size = PAGE_TOKENS * CHUNK_PAGES
    for chunk in range(begin // size * size, end, size):
        state: State = (_MINUS_INFINITY, np.float32(0), np.zeros(v.shape[1], np.float32))
        for page in range(chunk, min(chunk + size, end), PAGE_TOKENS):
            first, last = max(page, begin), min(page + PAGE_TOKENS, end)
            if first < last:
                scores = np.full(PAGE_TOKENS, _MINUS_INFINITY)
                scores[first - page : last - page] = _scores(q, k[first:last], scale)
                state = _add_page(state, scores, v[first:last], first - page)
        total = state if total is None else _merge(total, state)
    return total


def _scores(q: F32, k: F32, scale: float) -> F32:
    with np.errstate(all="ignore"):
        total = np.zeros(len(k), np.float32)
        for x, column in zip(q, k.T, strict=True):
            total = fma(x, column, total)
        result: F32 = total * np.float32(scale)
    return result


def _exp(x: F32 | np.float32) -> F32:
    return exp(np.atleast_1d(np.asarray(x, np.float32)))


def _add_page(state: State, scores: F32, v: F32, offset: int) -> State:
    """The state after the keys of a page, of which row `offset` and on are seen and in `v`."""
    before, total, mixed = state
    with np.errstate(all="ignore"):
        # A NaN is no largest score; it spreads through its weight.
        largest = np.float32(np.max(np.where(np.isnan(scores), _MINUS_INFINITY, scores)))
        largest = max(largest, before)
        if largest == _MINUS_INFINITY:
            # Nothing but -inf so far has no weight; a NaN is one.
            weights = np.where(np.isnan(scores), scores, np.float32(0))
            nan = np.isnan(weights).any()
            for weight, value in zip(weights[offset : offset + len(v)], v, strict=True):
                mixed = fma(weight, value, mixed)
            return largest, np.float32(np.nan) if nan else total, mixed
        weights = _exp(scores - largest)
        a = _exp(before - largest)[0]
        total = total * a + lane_sum(weights)[0]
        mixed = mixed * a
        for weight, value in zip(weights[offset : offset + len(v)], v, strict=True):
            mixed = fma(weight, value, mixed)
    return largest, total, mixed


def _merge(one: State, two: State) -> State:
    for state, other in ((two, one), (one, two)):
        if state[0] == _MINUS_INFINITY and state[1] == 0:
            return other
    largest = max(one[0], two[0])
    with np.errstate(all="ignore"):
        a, b = _exp(one[0] - largest)[0], _exp(two[0] - largest)[0]
        return largest, one[1] * a + two[1] * b, fma(two[2], b, one[2] * a)


def _finish(state: State | None, sink: np.float32 | None, width: int) -> F32:
    if state is None or (state[0] == _MINUS_INFINITY and state[1] == 0):
        return np.zeros(width, np.float32)
    largest, total, mixed = state
    factor = np.float32(1)
    with np.errstate(all="ignore"):
        if sink is not None:
            top = max(largest, sink)
            factor = _exp(largest - top)[0]
            total = total * factor + _exp(sink - top)[0]
        return canonical(mixed * factor * (np.float32(1) / total))
