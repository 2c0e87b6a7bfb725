"""The few array operations a decoder is made of, in f32 NumPy.

Shapes: T tokens, H query heads, G key/value heads, D head width, S tokens seen so far.
Nothing is checked here; the model checks its input once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

# Queries handled at a time: bounds the score matrix and skips keys a chunk cannot see.
_QUERY_CHUNK = 256


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """Divide each row by its root mean square, then multiply by `weight`."""
    mean = np.mean(np.square(x), axis=-1, keepdims=True)
    y: Array = x * (np.float32(1) / np.sqrt(mean + np.float32(eps))) * weight
    return y


def softmax(x: Array) -> Array:
    """Softmax over the last axis; rows may hold -inf but not only -inf."""
    y: Array = np.exp(x - x.max(axis=-1, keepdims=True))
    y /= y.sum(axis=-1, keepdims=True)
    return y


def swiglu(gate: Array, up: Array) -> Array:
    """`silu(gate) * up`."""
    # exp overflows to infinity for very negative gates, and gate / inf is the right zero.
    with np.errstate(over="ignore"):
        return np.asarray(gate / (np.float32(1) + np.exp(-gate)) * up, np.float32)


def rope_angles(
    first: int, count: int, dim: int, base: float, factors: Array | None, scale: float
) -> tuple[Array, Array]:
    """Cosine and sine, each [count, 1, dim / 2], of positions first .. first + count - 1.

    `factors` [dim / 2] divide the frequencies one by one, `scale` divides the position. Angles are
    formed in f64 so that late positions lose nothing.
    """
    frequency = base ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    if factors is not None:
        frequency = frequency / factors
    angle = np.outer(np.arange(first, first + count) / scale, frequency)[:, None, :]
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def rope_half(x: Array, cos: Array, sin: Array) -> Array:
    """Rotate pairs (i, i + D/2) of x [T, H, D]: the order of Hugging Face and of qwen3 files."""
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def rope_interleaved(x: Array, cos: Array, sin: Array) -> Array:
    """Rotate pairs (2i, 2i + 1) of x [T, H, D]: the order of llama files."""
    a, b = x[..., 0::2], x[..., 1::2]
    return np.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)


def attention(q: Array, k: Array, v: Array) -> Array:
    """Causal attention of the last T of S tokens, query head h reading key head h * G // H.

    Parameters
    ----------
    q : f32 [T, H, D]
    k, v : f32 [G, S, D] and [G, S, E], S >= T

    Returns
    -------
    f32 [T, H * E]
    """
    tokens, heads, dim = q.shape
    groups, seen, width = v.shape
    share = heads // groups
    before = seen - tokens
    q = (q * np.float32(dim**-0.5)).reshape(tokens, groups, share, dim).transpose(1, 2, 0, 3)
    out = np.empty((tokens, groups, share, width), dtype=np.float32)
    for a in range(0, tokens, _QUERY_CHUNK):
        b = min(a + _QUERY_CHUNK, tokens)
        rows, keys = b - a, before + b
        scores: Any = q[:, :, a:b].reshape(groups, share * rows, dim) @ k[:, :keys].swapaxes(1, 2)
        scores = scores.reshape(groups, share, rows, keys)
        future = np.triu(np.ones((rows, rows), dtype=bool), 1)
        scores[..., before + a :][..., future] = -np.inf
        mixed = softmax(scores).reshape(groups, share * rows, keys) @ v[:, :keys]
        out[a:b] = mixed.reshape(groups, share, rows, width).transpose(2, 0, 1, 3)
    return out.reshape(tokens, heads * width)
