"""Attention over a quantized cache, in NumPy alone: the definition, bit for bit.

Pages, chunks and softmax are those of `attention`. Keys of a quantized codec meet queries that are
quantized like the activations of `matmul`. Values of one are added up as whole numbers: for each
block of 32 of a value and each page, the weights times the scales become bytes of one unit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .attention import PAGE_TOKENS, Bools, Index, Mix, attend_heads, chain_scores, mix_floats
from .base import Groups
from .fma import fma
from .kivi import KEY_GROUP, MIDDLE, channel_scores
from .kv_codecs import (
    BLOCK,
    BY_CHANNEL,
    FLOATS,
    Coded,
    decode,
    encode,
    encode_channels,
    filled,
    rounded,
)
from .matmul import _product_of_groups, quantize_activations
from .numeric import F32, f32, i8, i32
from .ops import exp, lane_sum

__all__ = ["cap_scores", "centered", "code_scores", "kv_attention", "left_of", "mix_codes"]

_ONE, _BYTE = np.float32(1), np.float32(255)
# Blocks of weights below this are zero; from it on 255 / m and m / 255 are normal numbers.
_SMALLEST = np.float32(2.0**-100)
# Of codes that are not signed.
_CENTERS = {"q4_1": 8, "q5_1": 16, **MIDDLE}


def kv_attention(
    q: F32,
    k: F32,
    v: F32 | None,
    scale: float,
    *,
    value_dim: int = 0,
    k_codec: str = "f16",
    v_codec: str = "f16",
    k_rule: str = "nc",
    v_rule: str = "unb",
    window: int | None = None,
    chunk: int | None = None,
    causal: bool = True,
    sinks: F32 | None = None,
    softcap: float = 0.0,
    bias: F32 | None = None,
    sink: int = 0,
    tail: int = 0,
    exact_from: int = 0,
    copies: tuple[F32, F32] | None = None,
    exact: bool = False,
    fine: bool = False,
    positions: ArrayLike | None = None,
    lse: bool = False,
) -> F32 | tuple[F32, F32]:
    """Attention over keys and values in any codec; query head h reads key head h * G // H.

    Parameters
    ----------
    q
        f32 [T, H, D].
    k, v
        f32 [S, G, D] and [S, G, E], finite; v None for values that are the first `value_dim` = E
        elements of each key, as `k_codec` and `k_rule` make it: scales are those of all of the key.
    scale
        Of the scores.
    k_codec, v_codec
        Two of `kv_codecs.CODECS`.
    k_rule, v_rule
        How lm4, lm3 and lm2 choose their scales.
    window
        Keys a token sees at most, its own among them.
    chunk
        A token sees keys of its own chunk of so many only.
    causal
        Whether a token sees the keys up to its own position, or all of them.
    sinks
        f32 [H], scores of keys without a value.
    softcap
        Above 0: scores become softcap * tanh(score / softcap).
    bias
        f32 [T, H], added to products of queries and keys.
    sink, tail
        The first `sink` tokens and the last `tail` that a row may see count as f16 on sides whose
        codec is quantized. With keys that are coded by channel, so do those from the last multiple
        of 32 on.
    exact_from
        Tokens before it are in no tail.
    copies
        f32 [S, G, D] and [S, G, E], what counts as f16 where that is not `k` and `v` any more.
    exact
        Quantized sides are decoded, and all arithmetic is that of floats.
    fine
        Queries and weights are taken in sixteen bits: what eight leave is taken once more.
    positions
        int [T], where queries stand; the last T of S without it.
    lse
        Whether to give the logarithm of the sum of all weights too.

    Returns
    -------
    ndarray or tuple
        f32 [T, H, E], and f32 [T, H] with `lse`: -inf where a row sees nothing.

    Raises
    ------
    ValueError
        Unknown codecs or rules, a window that is not causal, numbers a codec cannot hold.

    Examples
    --------
    >>> import numpy as np
    >>> one = np.ones((2, 1, 4), np.float32)
    >>> v = one * np.float32([[[1]], [[3]]])
    >>> kv_attention(one, one, v, 1.0, k_codec="q8_0", v_codec="q8_0")[:, 0, 0].round(2).tolist()
    [1.0, 2.0]
    """
    if not causal and (window is not None or chunk is not None):
        raise ValueError("[kv_attention] expected neither window nor chunk without causality")
    if v is None:
        v_codec, v_rule = k_codec, k_rule
    seen, groups, width = (*k.shape[:2], value_dim) if v is None else v.shape
    places = seen - len(q) + np.arange(len(q)) if positions is None else np.asarray(positions)
    end = places + 1 if causal else np.full(len(q), seen)
    begin = np.zeros_like(end) if window is None else np.maximum(0, end - window)
    if chunk is not None:
        begin = np.maximum(begin, (end - 1) // chunk * chunk)
    token = np.arange(-(-seen // PAGE_TOKENS) * PAGE_TOKENS)
    near, first = token < sink, end - tail
    if k_codec in BY_CHANNEL:
        first = np.minimum(first, end // KEY_GROUP * KEY_GROUP)
        exact_from = min(exact_from, seen // KEY_GROUP * KEY_GROUP)
    near = near | ((token >= first[:, None]) & (token >= exact_from))
    # What was in the tail of any token had to be a number of f16.
    halves = seen if tail or k_codec in BY_CHANNEL else min(sink, seen)
    near_k, near_v = copies or (k, k[..., :width] if v is None else v)

    def prepare(group: int, own: Index, rows: F32) -> tuple[F32, Mix]:
        keys = k[:, group]
        values = keys[:, :width] if v is None else v[:, group]
        close = np.repeat(near, len(own), axis=0)
        added = np.float32(0) if bias is None else bias[:, own].reshape(-1, 1)
        with np.errstate(all="ignore"):
            scores = (_products(rows, keys, k_codec, k_rule, exact) + added) * np.float32(scale)
            if fine and not exact and k_codec not in (*FLOATS, *BY_CHANNEL):
                left = _products(left_of(rows), keys, k_codec, k_rule, exact)
                scores = scores + (left + np.float32(0)) * np.float32(scale)
        if k_codec not in FLOATS and halves:
            kept = rounded("f16", near_k[:halves, group])
            at = np.flatnonzero(close[:, :halves].any(axis=0))
            with np.errstate(all="ignore"):
                near_scores = (chain_scores(rows, kept[at]) + added) * np.float32(scale)
            scores[:, at] = np.where(close[:, at], near_scores, scores[:, at])
        with np.errstate(all="ignore"):
            scores = cap_scores(f32(scores), softcap)
        if v_codec in FLOATS:
            return scores, mix_floats(rounded(v_codec, values))
        coded = encode(v_codec, keys if v is None else values, v_rule)
        coded = _first_blocks(coded, -(-width // BLOCK))
        body = (
            mix_floats(decode(coded, width)) if exact else mix_codes(centered(v_codec, coded), fine)
        )
        kept = rounded("f16", near_v[:halves, group])
        return scores, _with_exact(body, mix_floats(kept), close)

    out, sums = attend_heads(q, groups, width, begin, end, sinks, prepare)
    return (out, sums) if lse else out


def _first_blocks(coded: Coded, blocks: int) -> Coded:
    low = None if coded.minimum is None else coded.minimum[:, :blocks]
    return Coded(coded.codes[:, : blocks * BLOCK], coded.scale[:, :blocks], low)


def _products(q: F32, k: F32, codec: str, rule: str, exact: bool) -> F32:
    if codec in FLOATS:
        return chain_scores(q, rounded(codec, k))
    if codec in BY_CHANNEL:
        scores = np.zeros((len(q), len(k)), np.float32)
        whole = len(k) // KEY_GROUP * KEY_GROUP
        groups = encode_channels(codec, k[:whole])
        found = chain_scores(q, groups.decode(k.shape[1])) if exact else None
        scores[:, :whole] = channel_scores(filled(q), groups) if found is None else found
        return scores
    coded = encode(codec, k, rule)
    return chain_scores(q, decode(coded, k.shape[1])) if exact else code_scores(q, coded)


def code_scores(q: F32, keys: Coded) -> F32:
    """Products of queries [rows, D], quantized as `matmul` does it, and S keys: [rows, S].

    Examples
    --------
    >>> import numpy as np
    >>> keys = encode("q8_0", np.float32([[127, -127]]))
    >>> code_scores(np.float32([[2, 1]]), keys).round(3).tolist()
    [[126.0]]
    """
    low = None if keys.minimum is None else -keys.minimum
    with np.errstate(all="ignore"):
        activations = quantize_activations(filled(q))
        return _product_of_groups(activations, Groups(i8(keys.codes), keys.scale, low), BLOCK)


def left_of(q: F32) -> F32:
    """What queries [rows, D] are beyond their eight bits.

    Examples
    --------
    >>> import numpy as np
    >>> left_of(np.float32([[127, 1.25]])).tolist()
    [[0.0, 0.25]]
    """
    with np.errstate(all="ignore"):
        coded = quantize_activations(filled(q))
        return f32(filled(q) - f32(coded.q) * np.repeat(coded.d, BLOCK, axis=-1))[:, : q.shape[1]]


def cap_scores(scores: F32, cap: float) -> F32:
    """cap * tanh(scores / cap), as (1 - e) / (1 + e) with e = exp(-2 |x|); a cap of 0 is none.

    Examples
    --------
    >>> import numpy as np
    >>> cap_scores(np.float32([-1, 100]), 2.0).round(4).tolist()
    [-0.9241999983787537, 2.0]
    """
    if not cap > 0:
        return scores
    limit = np.float32(cap)
    with np.errstate(all="ignore"):
        y = scores * (_ONE / limit)
        e = exp(np.float32(-2) * np.abs(y))
        return f32(np.copysign((_ONE - e) / (_ONE + e), y)) * limit


def centered(codec: str, values: Coded) -> Coded:
    """Codes of q4_1 less 8, of q5_1 less 16, and f32 minima to match; others as they are.

    What the rounding of weights takes away does not cancel where all codes have one sign.

    Examples
    --------
    >>> import numpy as np
    >>> found = centered("q4_1", encode("q4_1", np.arange(-1, 31, dtype=np.float32)))
    >>> found.codes[[0, -1]].tolist(), found.minimum.round(2).tolist()
    ([-8, 7], [15.529999732971191])
    """
    if values.minimum is None:
        return values
    center = _CENTERS[codec]
    moved = values.minimum + np.float32(center) * values.scale
    return Coded(values.codes - np.int32(center), values.scale, moved)


def mix_codes(values: Coded, fine: bool = False) -> Mix:
    """Values as codes: weights times scales as bytes, products with codes as whole numbers.

    For each page, row and block of 32: w = weight * abs(scale), m the largest w that is no NaN,
    unit = m / 255, u = w * (255 / m) rounded half to even; mixed = fma(sum of u * code, unit,
    mixed), codes negated where the scale is. Below 2**-100, m counts as zero. Where the codec has
    minima, the `lane_sum` of weight * minimum is added then.

    `fine`: u is rounded down, and max(w - u * unit, 0) are weights w once more, added last.

    Examples
    --------
    >>> import numpy as np
    >>> mix, seen = mix_codes(encode("q8_0", np.float32([[127], [254]]))), np.arange(64)[None] < 2
    >>> mix(0, np.array([0]), np.ones((1, 64), np.float32), seen, np.zeros((1, 1), np.float32))
    array([[381.49805]], dtype=float32)
    """
    missing = -len(values.codes) % PAGE_TOKENS
    codes = f32(np.where(np.repeat(values.scale, BLOCK, axis=1) < 0, -values.codes, values.codes))
    codes = np.pad(codes, ((0, missing), (0, 0)))
    scales = np.pad(np.abs(values.scale), ((0, missing), (0, 0)))
    low = None if values.minimum is None else np.pad(values.minimum, ((0, missing), (0, 0)))

    def add(page: int, w: F32, mixed: F32, rounded_to: np.ufunc) -> tuple[F32, F32]:
        """Weights w [blocks, rows, 64] times the values of a page, and what is left of them."""
        most = np.fmax.reduce(w, axis=2, initial=np.float32(0))
        used = most >= _SMALLEST
        factor = f32(np.where(used, _BYTE / most, np.float32(0)))
        unit = f32(np.where(used, most / _BYTE, np.float32(0)))
        # A weight that is NaN shows in the sum of weights.
        u = np.nan_to_num(rounded_to(w * factor[:, :, None]), nan=0.0)
        page_codes = codes[page : page + PAGE_TOKENS]
        per_block = page_codes.reshape(PAGE_TOKENS, -1, BLOCK).transpose(1, 0, 2)
        # Whole numbers below 2**24, exact in any order; by way of int32 because zeros could be -0.
        sums = f32(i32(u @ per_block))
        rows, width = w.shape[1], mixed.shape[1]
        wide = sums.transpose(1, 0, 2).reshape(rows, -1)[:, :width]
        mixed = fma(wide, np.repeat(unit.T, BLOCK, axis=1)[:, :width], mixed)
        return mixed, f32(np.fmax(w - u * unit[:, :, None], np.float32(0)))

    def mix(page: int, rows: Index, weights: F32, seen: Bools, mixed: F32) -> F32:
        part, width = slice(page, page + PAGE_TOKENS), mixed.shape[1]
        p = f32(np.where(seen, weights, np.float32(0)))
        w = p * scales[part].T[:, None]
        mixed, left = add(page, w, mixed, np.floor if fine else np.rint)
        if low is not None:
            shift = lane_sum(p[:, None] * low[part].T)[..., 0]
            mixed = mixed + np.repeat(shift, BLOCK, axis=1)[:, :width]
        return add(page, left, mixed, np.rint)[0] if fine else mixed

    return mix


def _with_exact(body: Mix, near: Mix, close: Bools) -> Mix:
    """The body's tokens, then those that count as f16, `close` [rows, S]."""

    def mix(page: int, rows: Index, weights: F32, seen: Bools, mixed: F32) -> F32:
        own = close[rows, page : page + PAGE_TOKENS]
        mixed = body(page, rows, weights, seen & ~own, mixed)
        return near(page, rows, weights, seen & own, mixed)

    return mix
