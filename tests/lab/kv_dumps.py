"""Dumps with the shapes of keys that make coding hard, each a suite of its own."""

from __future__ import annotations

import numpy as np

from kvant.lab import KVDump

TOKENS, DIM = 512, 128


def parts(seed: int, heads: int = 4, kv_heads: int = 2) -> list[np.ndarray]:
    """Queries, keys and values without anything special."""
    rng = np.random.default_rng(seed)
    shapes = [(TOKENS, count, DIM) for count in (heads, kv_heads, kv_heads)]
    return [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]


def some_channels(seed: int) -> np.ndarray:
    """One channel in twenty."""
    return np.random.default_rng(seed + 100).permutation(DIM)[: DIM // 20]


def normal(seed: int = 0) -> KVDump:
    q, k, v = parts(seed)
    return KVDump([q], [k], [v])


def bias(seed: int = 0, size: float = 10.0) -> KVDump:
    """A few channels of keys are far from zero all the time, as biases of a product leave them."""
    q, k, v = parts(seed)
    rng = np.random.default_rng(seed + 1)
    channels = some_channels(seed)
    k[:, :, channels] += size * rng.choice([-1, 1], len(channels)).astype(np.float32)
    return KVDump([q], [k], [v])


def outliers(seed: int = 0, size: float = 8.0) -> KVDump:
    """A few channels of keys are large, and queries hardly ask for them."""
    q, k, v = parts(seed)
    channels = some_channels(seed)
    k[:, :, channels] *= size
    q[:, :, channels] /= size
    return KVDump([q], [k], [v])


def drifting(seed: int = 0) -> KVDump:
    """The mean of the keys moves along the text."""
    q, k, v = parts(seed)
    rng = np.random.default_rng(seed + 1)
    k += 8 * rng.standard_normal(DIM, dtype=np.float32)
    steps = rng.standard_normal((TOKENS, 1, DIM), dtype=np.float32)
    k += np.cumsum(steps, axis=0) / np.float32(TOKENS**0.5)
    return KVDump([q], [k], [v])


def walsh(seed: int = 0) -> KVDump:
    """Keys are rows of a Hadamard matrix, which a rotation without signs makes one number of."""
    q, k, v = parts(seed)
    bits = np.arange(DIM)
    counts = np.array([[bin(a & b).count("1") for b in bits] for a in bits])
    rows = np.where(counts % 2, np.float32(-1), np.float32(1))
    chosen = np.random.default_rng(seed + 1).integers(0, DIM, k.shape[:2])
    return KVDump([q], [rows[chosen] + k / 64], [v])
