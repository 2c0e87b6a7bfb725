"""Attention over arrays, without a cache to keep."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvant.arrays import float_type
from kvant.errors import ShapeError
from kvant.kv.cache import KVCache

__all__ = ["attention", "merge_lse"]

Array = NDArray[np.float32]


def attention(
    q: Any,
    k: Any,
    v: Any = None,
    scale: float | None = None,
    causal: bool = True,
    window: int | None = None,
    sinks: Array | None = None,
    softcap: float = 0.0,
    lse: bool = False,
    *,
    value_dim: int | None = None,
    chunk: int | None = None,
    threads: int | None = None,
) -> Any:
    """Softmax attention in f32; query head h reads key head h * kv_heads // heads.

    Parameters
    ----------
    q
        f32 [T, heads, head_dim], of the last T of S tokens where attention is causal.
    k, v
        f32, f16 or bf16 [S, kv_heads, head_dim] and [S, kv_heads, value_dim], read as they are.
        Without v the first `value_dim` elements of each key are its value.
    scale
        Of the scores; head_dim ** -0.5 by default.
    causal
        A token sees keys up to its own, else all.
    window
        Keys a token sees at most, its own among them.
    sinks
        f32 [heads], for each head the score of a key without a value.
    softcap
        Scores become cap * tanh(score / cap); 0 for none.
    lse
        Return the logarithm of the sum of all exp(score), too.
    value_dim
        Elements of a value, all of a key by default; goes without v.
    chunk
        A token sees keys of its own chunk of so many only.
    threads
        At most this many; the set number by default.

    Returns
    -------
    ndarray or (ndarray, ndarray)
        f32 [T, heads, value_dim], and with `lse` f32 [T, heads].

    Raises
    ------
    ShapeError
        A shape does not fit, or keys and values are not finite.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.ones((2, 1, 16), np.float32)
    >>> v = x * np.float32([[[1]], [[3]]])
    >>> attention(x, x, v)[:, 0, 0].tolist()
    [1.0, 2.0]
    """
    view, k = v is None, np.asarray(k)
    if not view and value_dim is not None:
        raise ShapeError(f"[attention] expected value_dim without v, got {value_dim} with v")
    v = k if view else np.asarray(v)
    if k.ndim != 3 or v.ndim != 3 or k.shape[:2] != v.shape[:2] or not k.shape[1]:
        raise ShapeError(
            f"[attention] expected k [S, heads, D] and v [S, heads, E], got {k.shape} and {v.shape}"
        )
    names = [float_type(x.dtype) for x in (k, v)]
    if None in names:
        raise ShapeError(f"[attention] expected f32, f16 or bf16, got {k.dtype} and {v.dtype}")
    cache = KVCache(
        1,
        k.shape[1],
        k.shape[2],
        str(names[0]),
        str(names[1]),
        value_dim=v.shape[2] if value_dim is None else value_dim,
        value_view=view,
        window=window,
        chunk=chunk,
    )
    seq = cache.sequence()
    seq.append(0, k, None if view else v, threads=threads)
    return seq.attend(0, q, scale, causal, lse, softcap=softcap, sinks=sinks, threads=threads)


def merge_lse(parts: Any) -> tuple[Array, Array]:
    """Attention over several sets of keys from that over each: (out, lse) of their union.

    Parameters
    ----------
    parts : sequence of (ndarray, ndarray)
        For each set out f32 [T, heads, D] and lse f32 [T, heads].

    Examples
    --------
    >>> import numpy as np
    >>> x = np.ones((1, 1, 16), np.float32)
    >>> a = attention(x, x, x, lse=True)
    >>> out, lse = merge_lse([a, (3 * a[0], a[1])])
    >>> float(out[0, 0, 0])
    2.0
    """
    outs, sums = (np.stack(each) for each in zip(*parts, strict=True))
    top = sums.max(0)
    with np.errstate(invalid="ignore"):
        weights = np.exp(np.where(np.isneginf(top), np.float32(-np.inf), sums - top))
    total = weights.sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.where(total > 0, weights / total, np.float32(0))
        lse = top + np.log(total)
    out = (outs * shares[..., None]).sum(0)
    return out.astype(np.float32), np.where(total > 0, lse, -np.inf).astype(np.float32)
