"""Inputs of the golden files, from integer arithmetic alone.

No random generator of any library is involved, so the inputs can be had again in any language:
the i-th word is the splitmix64 mix of i times 0x9E3779B97F4A7C15, all modulo 2**64.
"""

from __future__ import annotations

import numpy as np

ROWS = 16
_MASK = (1 << 64) - 1


def words(count: int, stream: int) -> np.ndarray:
    """`count` mixed 64-bit words; `stream` tells the inputs apart."""
    start = stream << 32
    step = 0x9E3779B97F4A7C15
    z = np.array([(i * step) & _MASK for i in range(start + 1, start + count + 1)], np.uint64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def numbers(cols: int) -> np.ndarray:
    """f32 of shape (ROWS, cols): sums of four 16-bit fields, bell-shaped, one treatment per row."""
    z = words(ROWS * cols, 0).reshape(ROWS, cols)
    fields = [((z >> np.uint64(16 * k)) & np.uint64(0xFFFF)).astype(np.int64) for k in range(4)]
    bell = sum(fields) - 2 * 0xFFFF
    x = np.ldexp(bell.astype(np.float32), -15)
    x[8] = np.where(fields[0][8] < 0x1000, x[8], 0)  # sparse
    x[9] = np.trunc(x[9] * 2) * np.float32(0.5)  # few values, many ties
    x[10] = np.abs(x[10])  # one sign
    x[11] = np.ldexp(x[11], np.arange(cols) // 16 % 24 - 12)  # uneven sub-blocks
    x[12] = np.where(np.arange(cols) % 64 == 5, x[12], -0.0)  # one in 64
    x[13] = np.ldexp(x[13], -130)  # denormal
    x[14] = np.ldexp(x[14], 100)  # scales overflow f16
    x[15] = np.repeat(x[15, ::32], 32)[:cols]  # flat runs
    return x


def importance(cols: int) -> np.ndarray:
    """f32 of shape (cols,): from 0 to 4, long-tailed, one in 32 zero."""
    z = words(cols, 1)
    high = (z >> np.uint64(48)).astype(np.int64)
    squares = np.ldexp((high * high >> 8).astype(np.float32), -22)
    return np.where(z & np.uint64(31), squares, np.float32(0)).astype(np.float32)


def data(count: int) -> np.ndarray:
    """Arbitrary bytes to decode, of shape (count,)."""
    return (words(count, 2) >> np.uint64(56)).astype(np.uint8)
